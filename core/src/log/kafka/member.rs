//! What librdkafka tells a member of a group, and the answers that can't wait.
//!
//! A member's consumer is never assigned anything to fetch: each rebalance is answered with an *empty* list, which is all that the group protocol needs to
//! go on, and the records are read by the [fetcher](super::fetch). The library stops fetching every partition of a member while the
//! answer to a revocation is due; here that answer waits until the work on a few partitions has ended, and the others must go on meanwhile.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use tracing::warn;

use super::brokers::Known;
use super::config::KafkaConfig;
use super::link::{Link, Observer};
use crate::log::{Committed, GroupSpec, Topic, TopicPartition};

pub(super) type MemberConsumer = BaseConsumer<MemberEvents>;

/// What happened, in its order.
#[derive(Debug)]
pub(super) enum Happened {
    Assigned(Vec<TopicPartition>),
    /// The answer is due: [`release`].
    Revoked(Vec<TopicPartition>),
    /// All of them; answered already.
    Lost,
    /// The answer to the one commit that is on its way.
    Committed(Option<Code>),
    /// The code, whether the consumer is of no use any more, and what librdkafka said.
    Failed(Code, bool, String),
}

#[derive(Default)]
pub(super) struct Happenings {
    list: Mutex<VecDeque<Happened>>,
    /// Things that were served. A poll that returns nothing may have served something, with more to come.
    served: AtomicU64,
    /// What librdkafka said of the error that the poll under way returns.
    reason: Mutex<String>,
    /// Nobody is interested any more: everything is answered at once.
    closing: AtomicBool,
}

impl Happenings {
    fn push(&self, happened: Happened) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push_back(happened);
    }

    pub(super) fn pop(&self) -> Option<Happened> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

pub(super) struct MemberEvents {
    observer: Observer,
    happenings: Arc<Happenings>,
}

/// A consumer that has joined, where its happenings go, and who commits for it.
pub(super) struct Client {
    pub(super) consumer: Arc<MemberConsumer>,
    pub(super) happenings: Arc<Happenings>,
    pub(super) commits: mpsc::Sender<Content>,
    pub(super) known: Known,
}

/// Joins. `thread` is woken when there is something to [`serve`].
pub(super) fn join(config: &KafkaConfig, link: &Arc<Link>, spec: &GroupSpec, session_timeout: Duration, thread: Thread) -> Result<Client, KafkaError> {
    let happenings = Arc::new(Happenings::default());
    let observer = Observer::new(link, "member");
    let known = observer.known();
    let context = MemberEvents { observer, happenings: happenings.clone() };
    let mut consumer: MemberConsumer = config.member(&spec.name, session_timeout, spec.release_timeout).create_with_context(context)?;
    let member = thread.clone();
    consumer.set_nonempty_callback(move || thread.unpark());
    let topics: Vec<_> = spec.topics.iter().map(Topic::as_str).collect();
    consumer.subscribe(&topics)?;
    let consumer = Arc::new(consumer);
    let commits = start_committer(&consumer, &happenings, member);
    let commits = commits.map_err(|error| KafkaError::ClientCreation(format!("no thread for commits: {error}")))?;
    Ok(Client { consumer, happenings, commits, known })
}

/// Serves everything that waits.
pub(super) fn serve(consumer: &MemberConsumer, happenings: &Happenings) {
    loop {
        let served = happenings.served.load(Ordering::Relaxed);
        match consumer.poll(Duration::ZERO) {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
                let reason = std::mem::take(&mut *happenings.reason.lock().unwrap_or_else(PoisonError::into_inner));
                happenings.push(Happened::Failed(error.rdkafka_error_code().unwrap_or(Code::Unknown), fatal, reason));
            }
            None if happenings.served.load(Ordering::Relaxed) == served => return,
            None => {}
        }
    }
}

/// A commit to be sent.
pub(super) type Content = Vec<(TopicPartition, Committed)>;

/// Starts the thread that sends the commits of one consumer, one after another; it ends when the sender is dropped. In the safe interface of librdkafka only
/// a commit that *waits* has a result; and the member's thread must not wait.
fn start_committer(consumer: &Arc<MemberConsumer>, happenings: &Arc<Happenings>, member: Thread) -> std::io::Result<mpsc::Sender<Content>> {
    let (commits, waiting) = mpsc::channel::<Content>();
    let (consumer, happenings) = (Arc::downgrade(consumer), happenings.clone());
    std::thread::Builder::new().name("kafka-commit".to_owned()).spawn(move || {
        while let Ok(content) = waiting.recv() {
            let Some(consumer) = consumer.upgrade() else { return };
            let mut list = TopicPartitionList::new();
            for (partition, committed) in content {
                let Ok(number) = super::legal(&partition) else { continue };
                let mut element = list.add_partition(partition.topic.as_str(), number);
                // Only negative offsets are refused.
                let _ = element.set_offset(rdkafka::Offset::Offset(i64::try_from(committed.offset.get()).unwrap_or(i64::MAX)));
                element.set_metadata(&committed.metadata);
            }
            let code = consumer.commit(&list, CommitMode::Sync).err().map(|error| error.rdkafka_error_code().unwrap_or(Code::Unknown));
            drop(consumer);
            happenings.push(Happened::Committed(code));
            member.unpark();
        }
    })?;
    Ok(commits)
}

/// The answer to a revocation: the partitions go back to the group.
pub(super) fn release(consumer: &MemberConsumer) {
    if let Err(error) = consumer.incremental_unassign(&TopicPartitionList::new()) {
        warn!(%error, "a revocation could not be answered");
    }
}

impl ClientContext for MemberEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.happenings.served.fetch_add(1, Ordering::Relaxed);
        self.observer.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.happenings.served.fetch_add(1, Ordering::Relaxed);
        *self.happenings.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.chars().take(300).collect();
        self.observer.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.happenings.served.fetch_add(1, Ordering::Relaxed);
        self.observer.stats_raw(statistics);
    }
}

impl ConsumerContext for MemberEvents {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        self.happenings.served.fetch_add(1, Ordering::Relaxed);
        let list = owned(partitions);
        let none = TopicPartitionList::new();
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if let Err(error) = consumer.incremental_assign(&none) {
                warn!(%error, "an assignment could not be answered");
            }
            self.happenings.push(Happened::Assigned(list));
        } else if consumer.assignment_lost() {
            release(consumer);
            self.happenings.push(Happened::Lost);
        } else if self.happenings.closing.load(Ordering::Acquire) {
            release(consumer);
        } else {
            self.happenings.push(Happened::Revoked(list));
        }
    }
}

fn owned(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| Topic::new(element.topic()).partition(u32::try_from(element.partition()).unwrap_or(0))).collect()
}

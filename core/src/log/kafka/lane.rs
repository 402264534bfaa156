//! One consumer that fetches for many streams, at most one per partition.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use serde::Deserialize;
use tracing::{debug, warn};

use super::config::KafkaConfig;
use super::control::Control;
use super::link::{Link, Observer};
use super::stream::{Pace, Stream, StreamId};
use super::wake::Bell;
use crate::log::{Entry, Offset, Record, Timestamp, Topic, TopicPartition};

/// A partition that should be fetched and is not, for this long, is started again; a consumer that hears nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(15);

/// How long the metadata of a topic that is new to a consumer are waited for.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Records that are taken in one turn. Others wait for their turn too.
const TURN: usize = 512;

pub(super) struct Lane {
    consumer: Arc<BaseConsumer<LaneEvents>>,
    /// Topics that the consumer has been told to look at.
    known: HashSet<Topic>,
    control: Arc<Control>,
    events: Arc<Shared>,
    link: Arc<Link>,
    /// By topic, then partition: what a message is looked up by.
    by_partition: HashMap<String, HashMap<i32, StreamId>>,
    streams: HashMap<StreamId, Stream>,
    /// Streams to be assigned and partitions to be unassigned, in the next turn and together.
    to_assign: Vec<StreamId>,
    to_unassign: Vec<TopicPartition>,
    /// Streams whose user is gone, until they are removed.
    gone: HashSet<StreamId>,
    ended: Vec<StreamId>,
    lost: Vec<Stream>,
    empty_since: Instant,
    out_of_range: bool,
    /// Whether a partition is to be paused or resumed.
    to_pause: bool,
    fetched: (u64, Instant),
    stalled: bool,
}

/// What the consumer's callbacks leave for the lane.
#[derive(Default)]
struct Shared {
    /// Things that were served. A poll that returns nothing may have served something, with more to come.
    served: AtomicU64,
    /// What the consumer said of itself last, in JSON.
    statistics: Mutex<Option<Vec<u8>>>,
}

/// What is wanted of it.
#[derive(Deserialize)]
struct Said {
    brokers: BTreeMap<String, SaidBroker>,
    topics: BTreeMap<String, SaidTopic>,
}

#[derive(Deserialize)]
struct SaidBroker {
    /// Responses; that to a fetch that finds nothing counts too.
    rx: u64,
}

#[derive(Deserialize)]
struct SaidTopic {
    partitions: BTreeMap<String, SaidPartition>,
}

#[derive(Deserialize)]
struct SaidPartition {
    partition: i32,
    desired: bool,
    fetch_state: String,
}

impl Said {
    fn received(&self) -> u64 {
        self.brokers.values().map(|broker| broker.rx).sum()
    }

    /// Whether the library does not fetch a partition although it is assigned.
    fn is_inactive(&self, partition: &TopicPartition) -> bool {
        let partitions = self.topics.get(partition.topic.as_str()).map(|topic| &topic.partitions);
        partitions.is_some_and(|all| all.values().any(|p| p.partition == number(partition) && p.desired && p.fetch_state != "active"))
    }
}

struct LaneEvents {
    observer: Observer,
    shared: Arc<Shared>,
}

impl ClientContext for LaneEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.observer.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.observer.error(error, reason);
    }

    /// Read where there is time for it: a poll must not take long.
    fn stats_raw(&self, statistics: &[u8]) {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics.to_vec());
    }
}

impl ConsumerContext for LaneEvents {}

impl Lane {
    /// `bell` rings when there is something to take.
    pub(super) fn create(config: &KafkaConfig, link: &Arc<Link>, control: &Arc<Control>, pace: Pace, bell: Bell) -> Result<Self, KafkaError> {
        let events = Arc::new(Shared::default());
        let context = LaneEvents { observer: Observer::new(link, "read"), shared: events.clone() };
        let mut consumer: BaseConsumer<LaneEvents> = config.reader(pace).create_with_context(context)?;
        consumer.set_nonempty_callback(move || bell.ring());
        Ok(Self {
            consumer: Arc::new(consumer),
            known: HashSet::new(),
            control: Arc::clone(control),
            events,
            link: link.clone(),
            by_partition: HashMap::new(),
            streams: HashMap::new(),
            to_assign: Vec::new(),
            to_unassign: Vec::new(),
            gone: HashSet::new(),
            ended: Vec::new(),
            lost: Vec::new(),
            empty_since: Instant::now(),
            out_of_range: false,
            to_pause: false,
            fetched: (0, Instant::now()),
            stalled: false,
        })
    }

    pub(super) fn idle_for(&self) -> Duration {
        if self.streams.is_empty() { self.empty_since.elapsed() } else { Duration::ZERO }
    }

    pub(super) fn reads(&self, partition: &TopicPartition) -> bool {
        self.by_partition.get(partition.topic.as_str()).is_some_and(|streams| streams.contains_key(&number(partition)))
    }

    pub(super) fn add(&mut self, mut stream: Stream) {
        (stream.assigned, stream.paused, stream.held) = (false, false, false);
        stream.alive = Instant::now();
        self.by_partition.entry(stream.partition.topic.as_str().to_owned()).or_default().insert(number(&stream.partition), stream.id);
        self.to_assign.push(stream.id);
        self.streams.insert(stream.id, stream);
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        self.gone.remove(&id);
        let stream = self.streams.remove(&id)?;
        let topic = stream.partition.topic.as_str();
        if let Some(streams) = self.by_partition.get_mut(topic) {
            streams.remove(&number(&stream.partition));
            if streams.is_empty() {
                self.by_partition.remove(topic);
            }
        }
        // librdkafka remembers a pause beyond the assignment: whoever reads this partition next would get nothing.
        if stream.held
            && let Err(error) = self.consumer.resume(&list([(stream.partition.clone(), None)]))
        {
            warn!(%error, "a partition could not be resumed");
        }
        // Not assigned yet: there is nothing to take back.
        if let Some(at) = self.to_assign.iter().position(|waiting| *waiting == id) {
            self.to_assign.swap_remove(at);
        } else {
            self.to_unassign.push(stream.partition.clone());
        }
        if self.streams.is_empty() {
            self.empty_since = Instant::now();
        }
        Some(stream)
    }

    pub(super) fn want(&mut self, id: StreamId, records: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.want(records);
        }
    }

    /// Does what blocks: tells the consumer what it is to read and what not, removes streams whose user is gone, and looks for those that stand still.
    pub(super) fn tend(&mut self) {
        self.look_for_stalls();
        for id in std::mem::take(&mut self.gone) {
            self.remove(id);
            self.ended.push(id);
        }
        self.settle();
        self.pause_and_resume();
    }

    /// Whether there is something to [tend](Self::tend) to.
    pub(super) fn needs_tending(&self) -> bool {
        self.to_pause || self.out_of_range || !self.gone.is_empty()
    }

    fn settle(&mut self) {
        if !self.to_unassign.is_empty() {
            let list = list(self.to_unassign.drain(..).map(|partition| (partition, None)));
            if let Err(error) = self.consumer.incremental_unassign(&list) {
                warn!(%error, "a partition could not be unassigned");
            }
        }
        if !self.to_assign.is_empty() {
            let mut partitions = Vec::with_capacity(self.to_assign.len());
            for id in self.to_assign.drain(..) {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.assigned = true;
                    partitions.push((stream.partition.clone(), Some(stream.next())));
                }
            }
            let list = list(partitions);
            if let Err(error) = self.consumer.incremental_assign(&list) {
                warn!(%error, "a partition could not be assigned");
            }
            for (topic, _) in list.to_topic_map().into_keys() {
                self.look_at(Topic::new(&topic));
            }
        }
    }

    fn pause_and_resume(&mut self) {
        if !std::mem::take(&mut self.to_pause) {
            return;
        }
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for stream in self.streams.values_mut().filter(|stream| stream.paused != stream.held) {
            stream.held = stream.paused;
            stream.alive = Instant::now();
            if stream.paused { pause.push((stream.partition.clone(), None)) } else { resume.push((stream.partition.clone(), None)) }
        }
        if !pause.is_empty()
            && let Err(error) = self.consumer.pause(&list(pause))
        {
            warn!(%error, "a partition could not be paused");
        }
        if !resume.is_empty()
            && let Err(error) = self.consumer.resume(&list(resume))
        {
            warn!(%error, "a partition could not be resumed");
        }
    }

    /// librdkafka looks once a second where the partitions of topics are that it has not read before; one that is asked for its metadata is found at once.
    fn look_at(&mut self, topic: Topic) {
        if self.known.contains(&topic) {
            return;
        }
        let (consumer, asked) = (Arc::clone(&self.consumer), topic.clone());
        // Without an answer librdkafka finds it by itself.
        drop(self.control.ask(move |_| {
            let _ = consumer.client().fetch_metadata(Some(asked.as_str()), LOOK_LIMIT);
            Ok(())
        }));
        self.known.insert(topic);
    }

    /// Takes what was fetched, and hands over what can be. Does not block. True when there is more to take.
    pub(super) fn pass_on(&mut self, waker: &Waker) -> bool {
        let more = self.take(waker);
        for stream in self.streams.values_mut() {
            if !stream.flush(waker) {
                self.gone.insert(stream.id);
            } else if stream.paused && stream.has_room() {
                stream.paused = false;
                self.to_pause = true;
            }
        }
        more
    }

    fn take(&mut self, waker: &Waker) -> bool {
        let mut taken = 0;
        while taken < TURN {
            let served = self.events.served.load(Ordering::Relaxed);
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    taken += 1;
                    let id = self.by_partition.get(message.topic()).and_then(|streams| streams.get(&message.partition()));
                    // One that is not assigned yet: this is what another one has left that read the same partition before.
                    if let Some(stream) = id.and_then(|id| self.streams.get_mut(id)).filter(|stream| stream.assigned) {
                        stream.push(entry(&message));
                        // It may be taken at once; then there is no need to pause.
                        if stream.is_full() && !stream.paused && stream.flush(waker) && stream.is_full() {
                            stream.paused = true;
                            self.to_pause = true;
                        }
                    }
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    // Which partition it was is not told.
                    Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => self.out_of_range = true,
                    Some(Code::AllBrokersDown | Code::BrokerTransportFailure) => {}
                    _ => debug!(%error, "reading failed; it goes on by itself"),
                },
                None if self.events.served.load(Ordering::Relaxed) == served => return false,
                None => {}
            }
        }
        true
    }

    /// Streams that were removed because their user is gone.
    pub(super) fn take_ended(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.ended)
    }

    /// Streams that are not read although they should be: the offset may lie outside of the log.
    pub(super) fn take_lost(&mut self) -> Vec<Stream> {
        if std::mem::take(&mut self.out_of_range) {
            // Which one it was is not told, so all that have nothing going on are looked at.
            let suspects: Vec<_> = self.streams.values().filter(|stream| !stream.paused).map(|stream| stream.id).collect();
            for id in suspects {
                let removed = self.remove(id);
                self.lost.extend(removed);
            }
            self.settle();
        }
        std::mem::take(&mut self.lost)
    }

    /// Whether the consumer as a whole hears nothing.
    pub(super) fn is_stalled(&mut self) -> bool {
        std::mem::take(&mut self.stalled)
    }

    fn look_for_stalls(&mut self) {
        let Some(said) = self.events.statistics.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let said: Said = match serde_json::from_slice(&said) {
            Ok(said) => said,
            Err(error) => return warn!(%error, "what a consumer says of itself can't be read"),
        };
        let received = said.received();
        let reading = self.streams.values().any(|stream| !stream.paused);
        if self.link.is_away() || !reading || received != self.fetched.0 {
            self.fetched = (received, Instant::now());
        }
        if self.link.is_away() {
            self.streams.values_mut().for_each(|stream| stream.alive = Instant::now());
            return;
        }
        self.stalled = self.fetched.1.elapsed() > STALLED;
        let mut again = Vec::new();
        for stream in self.streams.values_mut() {
            if stream.paused || !said.is_inactive(&stream.partition) {
                stream.alive = Instant::now();
            } else if stream.alive.elapsed() > STALLED {
                again.push(stream.id);
            }
        }
        for id in again {
            if let Some(stream) = self.remove(id) {
                warn!(partition = %stream.partition, next = %stream.next(), "a partition was not fetched although it should be; it was started again");
                // As one whose offset may be outside of the log: that is asked first.
                self.lost.push(stream);
            }
        }
        self.settle();
    }

    /// Gives up its streams.
    pub(super) fn take_all(&mut self) -> Vec<Stream> {
        self.by_partition.clear();
        self.streams.drain().map(|(_, stream)| stream).collect()
    }
}

fn number(partition: &TopicPartition) -> i32 {
    i32::try_from(partition.partition).unwrap_or(i32::MAX)
}

fn list(partitions: impl IntoIterator<Item = (TopicPartition, Option<Offset>)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        let mut element = list.add_partition(partition.topic.as_str(), number(&partition));
        if let Some(offset) = offset {
            let offset = KafkaOffset::Offset(i64::try_from(offset.get()).unwrap_or(i64::MAX));
            // Only negative offsets are refused.
            let _ = element.set_offset(offset);
        }
    }
    list
}

fn entry(message: &BorrowedMessage<'_>) -> Entry {
    let millis = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0);
    Entry {
        offset: Offset::new(u64::try_from(message.offset()).unwrap_or(0)),
        timestamp: Timestamp::from_millis(millis),
        record: Record { key: message.key().map_or_else(Bytes::new, Bytes::copy_from_slice), value: message.payload().map(Bytes::copy_from_slice) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_consumer_says_of_itself_is_read() {
        let partition = |number: i32, desired: bool, state: &str| {
            format!(r#""{number}":{{"partition":{number},"broker":1,"desired":{desired},"fetch_state":"{state}","txmsgs":0}}"#)
        };
        let partitions =
            [partition(0, true, "active"), partition(1, true, "offset-query"), partition(2, false, "none"), partition(-1, false, "none")].join(",");
        let json = format!(
            r#"{{"name":"x#consumer-1","brokers":{{"a/1":{{"rx":3,"rxbytes":300}},"a/2":{{"rx":4}}}},"topics":{{"t":{{"topic":"t","partitions":{{{partitions}}}}}}}}}"#
        );
        let said: Said = serde_json::from_str(&json).unwrap();
        assert_eq!(said.received(), 7);
        let inactive = |topic: &str, number| said.is_inactive(&Topic::new(topic).partition(number));
        assert!(inactive("t", 1), "assigned, and not fetched");
        assert!(!inactive("t", 0) && !inactive("t", 2) && !inactive("t", 3) && !inactive("u", 1));
    }
}

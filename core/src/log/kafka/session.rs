//! A member's own thread: it owns the member's consumer and does all of its polling, answering and committing. It never waits for the broker.

use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::commit::{CommitQueue, Verdict, Work};
use super::config::{GroupProtocol, KafkaConfig};
use super::control::Control;
use super::group::Owned;
use super::link::Link;
use super::member::{self, Client, Happened};
use super::ownership::{Question, Revoking};
use super::wake::{self, Watched};
use crate::clock::Moment;
use crate::log::{Committed, GroupEvent, GroupSpec, LogError, Topic, TopicPartition};

/// Pause before a commit goes again that met a rebalance.
const COMMIT_AGAIN: Duration = Duration::from_millis(20);
/// How long a commit goes again.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
/// Pause before the commits of a new partition are asked for again, and before a consumer is made again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long leaving may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// What a stock broker grants at least.
const STOCK_MINIMUM: Duration = Duration::from_secs(6);
/// The same trouble is told again after this long.
const TROUBLE_AGAIN: Duration = Duration::from_secs(30);
/// How long the thread sleeps at most.
const TICK: Duration = Duration::from_millis(500);

pub(super) enum Command {
    Work(Work),
    /// What the group has committed for partitions that were assigned, by the number of the question.
    Found(u64, Result<Vec<Option<Committed>>, LogError>),
    /// A topic of the group that is not there.
    Missing(Topic),
}

pub(super) struct Session {
    pub(super) config: KafkaConfig,
    pub(super) link: Arc<Link>,
    pub(super) control: Arc<Control>,
    pub(super) spec: GroupSpec,
    /// What was asked for, or what the broker grants.
    pub(super) session_timeout: Duration,
    pub(super) owned: Owned,
    pub(super) events: UnboundedSender<GroupEvent>,
    pub(super) answers: mpsc::Sender<Command>,
    pub(super) commits: CommitQueue,
    /// When a commit that met a rebalance goes again.
    pub(super) commit_due: Option<Instant>,
    /// Since when the commit at the head is tried.
    pub(super) commit_since: Option<Instant>,
    /// Assigned partitions whose commits are being asked for.
    pub(super) questions: Vec<Question>,
    pub(super) next_question: u64,
    /// Partitions that were asked for and are not released yet. The answer to the group is due when it is empty.
    pub(super) revoking: Option<Revoking>,
    pub(super) trouble: Option<(String, Instant)>,
    /// When to ask whether the group's topics are there.
    pub(super) topics_due: Option<Instant>,
    /// When to make a new consumer, if there is none.
    pub(super) again: Option<Instant>,
}

/// How a member ends.
enum End {
    Left(oneshot::Sender<Result<(), LogError>>),
    /// Its user dropped it, which is a death: the session runs out.
    Died,
    Closed,
}

impl Session {
    pub(super) fn new(
        config: &KafkaConfig,
        link: &Arc<Link>,
        control: &Arc<Control>,
        spec: GroupSpec,
        owned: Owned,
        events: UnboundedSender<GroupEvent>,
        answers: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            config: config.clone(),
            link: link.clone(),
            control: control.clone(),
            session_timeout: spec.session_timeout,
            spec,
            owned,
            events,
            answers,
            commits: CommitQueue::default(),
            commit_due: None,
            commit_since: None,
            questions: Vec::new(),
            next_question: 0,
            revoking: None,
            trouble: None,
            // With the classic protocol the library complains of a topic that is not there; with KIP-848 nobody does.
            topics_due: (config.group_protocol == GroupProtocol::Consumer).then(Instant::now),
            again: None,
        }
    }

    pub(super) fn run(mut self, commands: mpsc::Receiver<Command>) {
        let waker = wake::waker();
        let watched = self.events.clone();
        let mut gone: Watched<()> = Box::pin(async move { watched.closed().await });
        let mut client: Option<Client> = None;
        let end = loop {
            if self.link.is_closed() {
                break End::Closed;
            }
            if wake::poll(&mut gone, &waker).is_some() {
                break End::Died;
            }
            if client.is_none() && self.again.is_none_or(|due| due <= Instant::now()) {
                client = self.create();
            }
            while let Ok(command) = commands.try_recv() {
                match command {
                    Command::Work(work) => self.commits.push(work),
                    Command::Found(id, found) => self.found(id, found),
                    Command::Missing(topic) => {
                        self.tell_trouble(format!("group {:?}: there is no topic {topic}", self.spec.name));
                        self.topics_due = Some(Instant::now() + TROUBLE_AGAIN);
                    }
                }
            }
            if let Some(joined) = &client {
                member::serve(&joined.consumer, &joined.happenings);
                let mut renew = false;
                while let Some(happened) = joined.happenings.pop() {
                    renew |= self.take(joined, happened);
                }
                if let Some(leaving) = self.advance(joined) {
                    break End::Left(leaving);
                }
                self.ask(joined);
                self.ask_for_topics();
                renew |= self.is_late();
                if joined.known.is_none() {
                    warn!(group = self.spec.name, "a member knew no broker any more, and starts anew");
                    renew = true;
                }
                if renew && let Some(joined) = client.take() {
                    self.lose_all("the member had to start anew");
                    self.commits.forget();
                    joined.happenings.close();
                    close(joined, self.spec.lease);
                    self.again = Some(Instant::now() + ASK_AGAIN);
                }
            } else if let Some(leaving) = self.idle() {
                break End::Left(leaving);
            }
            std::thread::park_timeout(self.sleep());
        };
        drop(gone);
        let why = LogError::Fenced(format!("group {:?}: this member has left it", self.spec.name));
        self.commits.end(&why);
        while let Ok(command) = commands.try_recv() {
            if let Command::Work(work) = command {
                work.refuse(&why);
            }
        }
        drop(commands);
        self.end(client, end);
    }

    fn create(&mut self) -> Option<Client> {
        match member::join(&self.config, &self.link, &self.spec, self.session_timeout, std::thread::current()) {
            Ok(client) => {
                self.again = None;
                Some(client)
            }
            Err(error) => {
                self.tell_trouble(format!("group {:?}: {error}", self.spec.name));
                self.again = Some(Instant::now() + Duration::from_secs(1));
                None
            }
        }
    }

    /// Whether a member that the group has taken for dead has had its last lease. Kafka does not tell a dead member from a silent one; but with the classic protocol the
    /// coordinator takes a commit for a sign of life, and nothing but the end of a session takes a partition from a member that holds a lease: a member that gives up or
    /// is late to release leaves by itself, see [`close`]. With KIP-848 a commit is no sign of life.
    pub(super) fn leases_end_with_sessions(&self) -> bool {
        self.config.group_protocol == GroupProtocol::Classic && self.spec.lease <= self.session_timeout
    }

    /// How long nothing is due.
    fn sleep(&self) -> Duration {
        let late = self.revoking.as_ref().map(|revoking| revoking.since + self.spec.release_timeout + Duration::from_millis(1));
        let due = [self.commit_due, self.again, late].into_iter().flatten().chain(self.questions.iter().filter_map(|question| question.due)).min();
        due.map_or(TICK, |due| due.saturating_duration_since(Instant::now()).min(TICK))
    }

    /// Without a consumer there is nothing to commit to.
    fn idle(&mut self) -> Option<oneshot::Sender<Result<(), LogError>>> {
        self.commits.next_request(Moment::now(), |_| false);
        match self.commits.next_other() {
            Some(Work::Leave(reply)) => Some(reply),
            _ => None,
        }
    }

    /// True when the consumer must be replaced.
    fn take(&mut self, client: &Client, happened: Happened) -> bool {
        match happened {
            Happened::Assigned(partitions) => {
                if !partitions.is_empty() {
                    self.question(partitions);
                }
            }
            Happened::Revoked(partitions) => self.revoke(client, partitions),
            // Those whose revocation was not answered yet are lost too.
            Happened::Lost => self.lose_all("the session ended"),
            Happened::Committed(code) => self.committed(client, code),
            Happened::Failed(code, fatal, reason) => return self.failed(code, fatal, &reason),
        }
        false
    }

    /// Asks whether the group's topics are there.
    fn ask_for_topics(&mut self) {
        if self.topics_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.topics_due = None;
        let (topics, answers, thread) = (self.spec.topics.clone(), self.answers.clone(), std::thread::current());
        // Without an answer there is no news either.
        drop(self.control.ask(move |control| {
            if let Some(topic) = topics.into_iter().find(|topic| matches!(control.partitions(topic), Ok(None))) {
                let _ = answers.send(Command::Missing(topic));
                thread.unpark();
            }
            Ok(())
        }));
    }

    fn committed(&mut self, client: &Client, code: Option<Code>) {
        let verdict = Verdict::of(&self.spec.name, code);
        let fenced = matches!(verdict, Verdict::Failed(LogError::Fenced(_)));
        let give_up = self.commit_since.is_some_and(|since| since.elapsed() > COMMIT_PATIENCE);
        if self.commits.answered(verdict, give_up) {
            self.commit_due = Some(Instant::now() + COMMIT_AGAIN);
        } else {
            self.commit_since = None;
        }
        // While the answer to a revocation is due, librdkafka keeps it to itself that the member was thrown out. It tells when it joins again.
        if fenced && self.revoking.is_some() {
            self.lose_all("the group went on without this member");
            member::release(&client.consumer);
        }
    }

    /// Does what is next in the queue. Returns who wants to know when the member has left.
    fn advance(&mut self, client: &Client) -> Option<oneshot::Sender<Result<(), LogError>>> {
        if self.commit_due.is_some_and(|due| due > Instant::now()) {
            return None;
        }
        self.commit_due = None;
        while !self.commits.is_busy() {
            match self.commits.next_other() {
                Some(Work::Release(partitions)) => {
                    self.release(&partitions);
                    continue;
                }
                Some(Work::Leave(reply)) => return Some(reply),
                Some(Work::Commit(_)) | None => {}
            }
            let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
            let owns = |partition: &TopicPartition| {
                owned.contains_key(partition)
                    // Beside its own partitions an owner commits for those of other topics that belong to them.
                    || (!self.spec.topics.contains(&partition.topic) && owned.keys().any(|other| other.partition == partition.partition))
            };
            let content = self.commits.next_request(Moment::now(), owns);
            drop(owned);
            match content {
                Some(content) => self.send(client, content),
                None if self.commits.is_empty() => break,
                None => {}
            }
        }
        self.answer_revocation(client);
        None
    }

    fn send(&mut self, client: &Client, content: impl IntoIterator<Item = (TopicPartition, Committed)>) {
        self.commit_since.get_or_insert_with(Instant::now);
        if client.commits.send(content.into_iter().collect()).is_err() {
            self.committed(client, Some(Code::Fail));
        }
    }

    /// True when the consumer must be replaced.
    fn failed(&mut self, code: Code, fatal: bool, reason: &str) -> bool {
        match code {
            Code::InvalidSessionTimeout => {
                let granted = if self.session_timeout < STOCK_MINIMUM { STOCK_MINIMUM } else { self.session_timeout * 2 };
                warn!(
                    group = self.spec.name,
                    asked = ?self.session_timeout,
                    taken = ?granted,
                    "the broker refused the session timeout (its group.min.session.timeout.ms is larger); a dead box is noticed later"
                );
                self.session_timeout = granted;
                return true;
            }
            Code::GroupAuthorizationFailed
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InconsistentGroupProtocol
            | Code::GroupMaxSizeReached
            | Code::InvalidGroupId
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition => self.tell_trouble(format!("group {:?}: {reason}", self.spec.name)),
            _ => debug!(group = self.spec.name, %code, "a member's request failed; it goes on by itself"),
        }
        if fatal {
            self.tell_trouble(format!("group {:?}: {reason}: the client starts anew", self.spec.name));
        }
        fatal
    }

    pub(super) fn tell_trouble(&mut self, text: String) {
        let told = self.trouble.as_ref().is_some_and(|(last, when)| *last == text && when.elapsed() < TROUBLE_AGAIN);
        if !told {
            self.trouble = Some((text.clone(), Instant::now()));
            let _ = self.events.send(GroupEvent::Trouble(text));
        }
    }

    fn end(self, client: Option<Client>, end: End) {
        // Nothing is told of any partition from here on.
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).clear();
        drop(self.events);
        let Some(client) = client else {
            if let End::Left(reply) = end {
                let _ = reply.send(Ok(()));
            }
            return;
        };
        if matches!(end, End::Died) {
            // librdkafka leaves the group when its client is closed, and goes on sending heartbeats when it is not: so it is closed when the session would be over.
            let over = Instant::now() + self.session_timeout;
            while Instant::now() < over && !self.link.is_closed() {
                std::thread::park_timeout(over.saturating_duration_since(Instant::now()).min(TICK));
            }
        }
        client.happenings.close();
        if self.revoking.is_some() {
            member::release(&client.consumer);
        }
        let closed = close(client, Duration::ZERO);
        if let End::Left(reply) = end {
            let left = closed.recv_timeout(LEAVE_LIMIT).map_err(|_| LogError::Unavailable(format!("group {:?}: leaving took too long", self.spec.name)));
            let _ = reply.send(left);
        }
    }
}

/// Closes a member's consumer, on a thread of its own because that takes a moment; says when it is done. It leaves the group after `lease`: who has been told that everything is
/// lost may take that long to notice.
fn close(client: Client, lease: Duration) -> mpsc::Receiver<()> {
    let (done, closed) = mpsc::channel();
    let closing = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || {
        std::thread::sleep(lease);
        // First, because a question about commits may keep the client for a moment longer.
        client.consumer.unsubscribe();
        drop(client);
        let _ = done.send(());
    });
    if let Err(error) = closing {
        warn!(%error, "a client could not be closed in the background");
    }
    closed
}

//! The pub/sub substrate: topics of partitions of ordered records.
//!
//! One trait, [`Log`], with two implementations that pass the same conformance tests:
//!
//! - [`kafka`]: Apache Kafka, for production.
//! - [`embedded`]: in the process of `bluebox up`, for a laptop; its in-memory core is what simulations run on.
//!
//! What a log promises, and nothing more:
//!
//! 1. An append that was acknowledged is durable, has one offset, and is read by every reader of its partition, in offset order.
//! 2. An append that failed says whether the record is provably not there ([`AppendError::NotPersisted`]) or may be ([`AppendError::Unknown`]).
//! 3. A partition of a group has one owner at a time in the eyes of the log. A former owner that does not know yet that it is one (a zombie) may go on
//!    reading and appending, but its commits fail once the log has given the partition to another.
//! 4. A partition is taken from a live owner only after it released it ([`GroupEvent::Revoking`]); from a dead one after its session ran out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Moment;

pub mod embedded;
pub mod kafka;

/// The name of a topic. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The topic of this name: 1 to 249 of the characters `a-z A-Z 0-9 . _ -`, the rule of Kafka; what breaks it is refused when the topic is made.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A partition of this topic; the first is 0.
    pub fn partition(&self, partition: u32) -> TopicPartition {
        TopicPartition { topic: self.clone(), partition }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One partition of a topic.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Topic,
    /// The partition's number; the first is 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A record's place in its partition. The first is 0; holes are possible (retention, compaction).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(u64);

impl Offset {
    /// The offset with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The offset after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many offsets lie from `start` (included) to this one (excluded); 0 if `start` is not below.
    pub const fn distance_from(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// When the log appended a record, by the log's wall clock (Kafka: LogAppendTime): milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time this many milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it is later than this.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What is appended.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// What compaction goes by; empty: none.
    pub key: Bytes,
    /// What the record says; `None` is a tombstone, which removes its key from a compacted topic.
    pub value: Option<Bytes>,
}

/// Without what it says: that may be secret.
impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.value.as_ref().map(Bytes::len);
        f.debug_struct("Record").field("key_bytes", &self.key.len()).field("value_bytes", &value).finish()
    }
}

impl Record {
    /// A record without a key.
    pub fn new(value: Bytes) -> Self {
        Self { key: Bytes::new(), value: Some(value) }
    }

    /// A record with a key, for a compacted topic.
    pub fn keyed(key: Bytes, value: Bytes) -> Self {
        Self { key, value: Some(value) }
    }
}

/// A record as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub offset: Offset,
    /// When it was appended.
    pub timestamp: Timestamp,
    /// What was appended.
    pub record: Record,
}

/// Where an acknowledged append went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The record's place.
    pub offset: Offset,
    /// When it was appended, by the log.
    pub timestamp: Timestamp,
}

/// Why an append has no acknowledgement. Tells what is known of the record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Provably not in the log: it never left this process, or the log says that it was not persisted. Appending again can't make two.
    #[error("not persisted: {0}")]
    NotPersisted(String),
    /// It may be in the log, now or later. Appending again may make two.
    #[error("may or may not be persisted: {0}")]
    Unknown(String),
    /// Larger than the log takes; provably not in it.
    #[error("record of {size_bytes} bytes is larger than the log takes ({limit_bytes} bytes)")]
    TooLarge {
        /// The record's key and value.
        size_bytes: usize,
        /// What the log takes.
        limit_bytes: usize,
    },
}

/// Why the log did not do what it was asked, other than an append.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The log can't be reached now; trying later may help.
    #[error("the log is not available: {0}")]
    Unavailable(String),
    /// There is no such topic or partition.
    #[error("{0}: there is no such topic or partition")]
    NotFound(String),
    /// The member is none any more, or another owns the partition: a commit that came too late. Nothing was committed.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The log refuses, and will again.
    #[error("refused: {0}")]
    Refused(String),
}

/// A value that the log owes, or why it can't be had.
///
/// Cancel safe in this sense: dropping it does not undo what was asked.
#[must_use = "futures do nothing unless awaited"]
pub struct Pending<T, E = LogError>(State<T, E>);

enum State<T, E> {
    Ready(Option<Result<T, E>>),
    Waiting(oneshot::Receiver<Result<T, E>>),
}

/// The acknowledgement of an append.
pub type Append = Pending<Appended, AppendError>;

impl<T, E> Pending<T, E> {
    /// Already known.
    pub fn ready(result: Result<T, E>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// Known when the sender says so. A sender that is dropped counts as unavailable (for appends: unknown).
    pub fn new() -> (oneshot::Sender<Result<T, E>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(State::Waiting(receiver)))
    }
}

/// What a promise becomes when the one who should keep it is gone.
pub trait Gone {
    /// That error.
    fn gone() -> Self;
}

impl Gone for LogError {
    fn gone() -> Self {
        Self::Unavailable("the log's client was closed".to_owned())
    }
}

impl Gone for AppendError {
    fn gone() -> Self {
        Self::Unknown("the log's client was closed".to_owned())
    }
}

impl<T: Unpin, E: Gone + Unpin> Future for Pending<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(result) => Poll::Ready(result.take().unwrap_or_else(|| Err(E::gone()))),
            State::Waiting(receiver) => Pin::new(receiver).poll(cx).map(|r| r.unwrap_or_else(|_| Err(E::gone()))),
        }
    }
}

/// The first offset that is still there, and the one that the next record will get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset that is still there; `end` if the partition is empty.
    pub start: Offset,
    /// The offset that the next record will get.
    pub end: Offset,
}

/// What a reader is told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The next records, in offset order; never empty.
    Entries(Vec<Entry>),
    /// The log no longer has what was asked for: reading goes on at `start`. Sent before the entries that follow the hole.
    Truncated {
        /// The offset that was wanted.
        wanted: Offset,
        /// The first that is there.
        start: Offset,
    },
}

/// Reads one partition from an offset on, for as long as it is kept. Readers don't belong to groups and see every record.
///
/// At most a small number of batches is read ahead of its user; then the log waits. While the log can't be reached it waits too.
pub struct Reader(mpsc::Receiver<Read>);

impl Reader {
    /// A reader and the end that feeds it; `batches` may wait unread (at least 1).
    pub fn new(batches: usize) -> (mpsc::Sender<Read>, Self) {
        let (sender, receiver) = mpsc::channel(batches.max(1));
        (sender, Self(receiver))
    }

    /// The next records; `None` when the log's client was closed. Waits for ever if nothing is appended. Cancel safe.
    pub async fn next(&mut self) -> Option<Read> {
        self.0.recv().await
    }
}

/// A group to be a member of.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// The group's name: members of the same one share the partitions.
    pub name: String,
    /// The topics whose partitions are shared.
    pub topics: Vec<Topic>,
    /// After this long without a sign of life, a member is taken for dead. Kafka's brokers refuse less than their `group.min.session.timeout.ms`;
    /// the implementation then takes that minimum and says so in a log line.
    pub session_timeout: Duration,
    /// How long a member may keep a partition that it was asked for; past it, it is taken for dead.
    pub release_timeout: Duration,
    /// How long after a commit was *sent* that succeeded a member may act as an owner. Where a commit is a sign of life, and this is no longer than the session timeout,
    /// a member whose session has run out can't act any more, though it may still be running.
    pub lease: Duration,
}

/// What a group commits for a partition: where its next owner starts, and a note for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Every record below is done.
    pub offset: Offset,
    /// Up to 4,000 bytes of printable ASCII, by the group's own rules.
    pub metadata: String,
}

/// A partition that this member now owns, and what its former owner left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Which.
    pub partition: TopicPartition,
    /// The last commit of the group; `None` if there never was one.
    pub committed: Option<Committed>,
    /// True when the log knows that no former owner may act any more: its connection ended with its process, it released the partition, or its
    /// [lease](GroupSpec::lease) has run out with its session. False: it may be a zombie that has not noticed.
    pub former_is_gone: bool,
}

/// What a member is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// These partitions are this member's now. Nothing is read of them before [`GroupControl::start`].
    Assigned(Vec<Assignment>),
    /// Records of an owned partition, in offset order; never more than what was asked for with [`GroupControl::want`].
    Records {
        /// Whose.
        partition: TopicPartition,
        /// The records; never empty.
        entries: Vec<Entry>,
    },
    /// The log's start lies above what was to be read next: records are missing.
    Truncated {
        /// Whose.
        partition: TopicPartition,
        /// The offset that was wanted.
        wanted: Offset,
        /// The first that is there.
        start: Offset,
    },
    /// Others should get these. They stay this member's until it releases them; it does so when its work on them has ended.
    Revoking(Vec<TopicPartition>),
    /// These were taken away: another may own them already. No commit for them will succeed.
    Lost(Vec<TopicPartition>),
    /// The group can't be joined or was left by force, for a reason that the user must know (authorization, a topic that is gone). The client goes on trying.
    Trouble(String),
}

/// A member's side of a group. Dropping it is a death: the session runs out. [`GroupControl::leave`] is the orderly way.
pub struct Membership {
    events: mpsc::UnboundedReceiver<GroupEvent>,
    control: Arc<dyn GroupControl>,
}

/// What a member can ask for. None of it blocks.
pub trait GroupControl: Send + Sync {
    /// Begins to read an assigned partition at `from`, with nothing wanted yet.
    fn start(&self, partition: &TopicPartition, from: Offset);

    /// How many more records of this partition the member takes: replaces what was said before. 0 pauses.
    fn want(&self, partition: &TopicPartition, records: u32);

    /// Commits, all or nothing: for partitions that this member owns, and for those of topics that the group does not share out (what belongs to an owned
    /// partition, and goes with it). The value is the moment just before the request left this process: a success proves that at that
    /// moment this member was one.
    ///
    /// # Errors
    /// [`LogError::Fenced`] when it is none any more; [`LogError::Unavailable`] when it is not known whether it was committed.
    fn commit(&self, commits: Vec<(TopicPartition, Committed)>) -> Pending<Moment>;

    /// Gives up partitions that were asked for. Nothing may be committed for them afterwards.
    fn release(&self, partitions: Vec<TopicPartition>);

    /// Gives up everything and leaves the group.
    fn leave(&self) -> Pending<()>;

    /// The member has taken this event: what it asks for from now on, it asks knowing it. Called by [`Membership`] itself.
    ///
    /// A member that has lost partitions must not get them again before it took the news: a commit from its former time would count for the new one.
    fn taken(&self, _event: &GroupEvent) {}
}

impl Membership {
    /// A membership from its two halves. The number of waiting events is bounded by what the member wants, and by its partitions.
    pub fn new(events: mpsc::UnboundedReceiver<GroupEvent>, control: Arc<dyn GroupControl>) -> Self {
        Self { events, control }
    }

    /// What happened next; `None` after it was left. Cancel safe.
    pub async fn next(&mut self) -> Option<GroupEvent> {
        let event = self.events.recv().await?;
        self.control.taken(&event);
        Some(event)
    }

    /// The same without waiting: `None` when nothing has happened yet.
    pub fn try_next(&mut self) -> Option<GroupEvent> {
        let event = self.events.try_recv().ok()?;
        self.control.taken(&event);
        Some(event)
    }

    /// What the member can ask for.
    pub fn control(&self) -> &Arc<dyn GroupControl> {
        &self.control
    }
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub topic: Topic,
    /// How many partitions; at least 1, fixed for good.
    pub partitions: u32,
    /// How long a record is kept; `None`: for ever.
    pub retention: Option<Duration>,
    /// Whether only the last record of each key is kept (after a while, in the background). With `retention`: that, and nothing older.
    pub compacted: bool,
    /// How long a record stays there at least before compaction may remove it; `None`: as the log likes.
    pub compaction_lag: Option<Duration>,
}

/// How a topic is kept, as the log has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// How long a record is kept; `None`: for ever.
    pub retention: Option<Duration>,
    /// How many bytes of a partition are kept at most, whatever their age; `None`: all.
    pub retention_bytes: Option<u64>,
    /// Whether only the last record of each key is kept.
    pub compacted: bool,
    /// How long a record is safe from that at least.
    pub compaction_lag: Duration,
    /// Whether records that are older than `retention` are deleted at all.
    pub deleted: bool,
    /// Whether a record's time is when the log took it: every deadline counts from there.
    pub log_append_time: bool,
    /// The largest record that the log takes, with what the client adds to it.
    pub max_message_bytes: u64,
}

/// Whether the log can be reached, as far as the client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It can, or nothing is known to the contrary.
    Up,
    /// It is known to be away since then.
    Away(Moment),
}

/// What a client of the log knows of the brokers that it appends to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistics {
    /// Records that were given to the client and are not acknowledged.
    pub queued_records: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// The brokers that it knows.
    pub brokers: Vec<BrokerStatistics>,
}

/// One broker.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerStatistics {
    /// Its number.
    pub node: i32,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Requests that were sent or are to be, and have no answer.
    pub requests_waiting: u32,
    /// How long requests took lately, on average; zero if there were none.
    pub round_trip_mean: Duration,
    /// What 99 % of them did not exceed.
    pub round_trip_p99: Duration,
}

/// The substrate. All of it is cheap to call and never blocks; what takes time is in the values that it returns.
pub trait Log: Send + Sync + 'static {
    /// Appends a record to the end of a partition. Done when it is durable. Appends to one partition that are made in an order are stored in it.
    ///
    /// Bounded: with too much on its way, it is [`AppendError::NotPersisted`] at once; with the log known to be away too.
    fn append(&self, to: &TopicPartition, record: Record) -> Append;

    /// Reads a partition from `at` on. Where `at` is above the end, waits for it; where it is below the start, says [`Read::Truncated`].
    fn read(&self, from: &TopicPartition, at: Offset) -> Reader;

    /// Like [`Log::read`], for a partition in which something comes seldom: it must not make the reading of the others dearer. What comes is told as soon.
    fn read_rare(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.read(from, at)
    }

    /// Like [`Log::read`], for a partition whose end nobody waits for: what comes may be told some tenths of a second later, and much of it at once. It must not make the reading of the others dearer.
    fn read_late(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.read(from, at)
    }

    /// The bounds of a partition: everything whose append was acknowledged before the call lies below `end`.
    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds>;

    /// The ends of these partitions, in their order: everything whose append was acknowledged before the call lies below. For who asks about many at once; in a tokio runtime.
    fn ends(&self, of: Vec<TopicPartition>) -> Pending<Vec<Offset>> {
        let asked: Vec<_> = of.iter().map(|partition| self.bounds(partition)).collect();
        let (tell, pending) = Pending::new();
        tokio::spawn(async move {
            let mut ends = Vec::with_capacity(asked.len());
            for bounds in asked {
                match bounds.await {
                    Ok(bounds) => ends.push(bounds.end),
                    Err(error) => return drop(tell.send(Err(error))),
                }
            }
            // One who has gone is told nothing.
            let _ = tell.send(Ok(ends));
        });
        pending
    }

    /// Becomes a member of a group.
    fn join(&self, group: GroupSpec) -> Membership;

    /// What a group has committed for these partitions, from outside of it.
    fn committed(&self, group: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>>;

    /// Makes those of the topics that are not there yet; done when they can be used. What is there already is left as it is.
    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()>;

    /// How many partitions a topic has; `None` if there is no such topic.
    fn partitions(&self, of: &Topic) -> Pending<Option<u32>>;

    /// How these topics are kept, in their order; `None` of one that is not there, or whose settings this client may not see, and where nobody but Bluebox can set them.
    fn settings(&self, of: Vec<Topic>) -> Pending<Vec<Option<TopicSettings>>> {
        Pending::ready(Ok(vec![None; of.len()]))
    }

    /// Whether the log can be reached.
    fn health(&self) -> watch::Receiver<Health>;

    /// The largest record (key and value) that an append takes, in bytes.
    fn max_record_bytes(&self) -> usize;

    /// What is known of the brokers, some seconds old at most; `None` where there are none, or nothing is known yet.
    fn statistics(&self) -> Option<Statistics> {
        None
    }
}

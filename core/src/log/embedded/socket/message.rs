//! What frames carry, and how the log's own types are written in it.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::clock::millis;
use crate::log::{AppendError, Assignment, Bounds, Committed, Entry, GroupSpec, LogError, Offset, Record, Timestamp, Topic, TopicPartition, TopicSpec};

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Place {
    #[prost(string, tag = "1")]
    pub(super) topic: String,
    #[prost(uint32, tag = "2")]
    pub(super) partition: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Places {
    #[prost(message, repeated, tag = "1")]
    pub(super) places: Vec<Place>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AppendAsk {
    #[prost(message, optional, tag = "1")]
    pub(super) to: Option<Place>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CommittedAsk {
    #[prost(string, tag = "1")]
    pub(super) group: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) of: Vec<Place>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TopicSpecs {
    #[prost(message, repeated, tag = "1")]
    pub(super) specs: Vec<TopicSpecSay>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TopicSpecSay {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(uint32, tag = "2")]
    partitions: u32,
    #[prost(uint64, optional, tag = "3")]
    retention_ms: Option<u64>,
    #[prost(bool, tag = "4")]
    compacted: bool,
    #[prost(uint64, optional, tag = "5")]
    compaction_lag_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadAsk {
    #[prost(message, optional, tag = "1")]
    pub(super) from: Option<Place>,
    #[prost(uint64, tag = "2")]
    pub(super) at: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct JoinAsk {
    #[prost(string, tag = "1")]
    group: String,
    #[prost(string, repeated, tag = "2")]
    topics: Vec<String>,
    #[prost(uint64, tag = "3")]
    session_timeout_ms: u64,
    #[prost(uint64, tag = "4")]
    release_timeout_ms: u64,
    #[prost(uint64, tag = "5")]
    lease_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CommitAsk {
    /// The request: the frame's id is the membership.
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) commits: Vec<CommitSay>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CommitSay {
    #[prost(message, optional, tag = "1")]
    of: Option<Place>,
    /// Not there: nothing is committed.
    #[prost(uint64, optional, tag = "2")]
    offset: Option<u64>,
    #[prost(string, tag = "3")]
    metadata: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct AppendedSay {
    #[prost(uint64, tag = "1")]
    pub(super) offset: u64,
    #[prost(uint64, tag = "2")]
    pub(super) timestamp: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Failure {
    #[prost(enumeration = "Kind", tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(uint64, tag = "3")]
    size_bytes: u64,
    #[prost(uint64, tag = "4")]
    limit_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
enum Kind {
    Unavailable = 0,
    NotFound = 1,
    Fenced = 2,
    Refused = 3,
    NotPersisted = 4,
    Unknown = 5,
    TooLarge = 6,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct BoundsSay {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CommittedSay {
    #[prost(message, repeated, tag = "1")]
    pub(super) commits: Vec<CommitSay>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Entries {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<EntrySay>,
}

#[derive(Clone, PartialEq, Message)]
struct EntrySay {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint64, tag = "2")]
    timestamp: u64,
    #[prost(bytes = "bytes", tag = "3")]
    key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "4")]
    value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TruncatedSay {
    /// Not there for a reader.
    #[prost(message, optional, tag = "1")]
    pub(super) of: Option<Place>,
    #[prost(uint64, tag = "2")]
    pub(super) wanted: u64,
    #[prost(uint64, tag = "3")]
    pub(super) start: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Assignments {
    #[prost(message, repeated, tag = "1")]
    assignments: Vec<AssignmentSay>,
}

#[derive(Clone, PartialEq, Message)]
struct AssignmentSay {
    #[prost(message, optional, tag = "1")]
    committed: Option<CommitSay>,
    #[prost(bool, tag = "2")]
    former_is_gone: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RecordsSay {
    #[prost(message, optional, tag = "1")]
    pub(super) of: Option<Place>,
    #[prost(message, optional, tag = "2")]
    pub(super) entries: Option<Entries>,
}

impl From<&TopicPartition> for Place {
    fn from(of: &TopicPartition) -> Self {
        Self { topic: of.topic.as_str().to_owned(), partition: of.partition }
    }
}

impl Place {
    pub(super) fn read(&self) -> TopicPartition {
        Topic::new(&self.topic).partition(self.partition)
    }
}

impl Places {
    pub(super) fn new(of: &[TopicPartition]) -> Self {
        Self { places: of.iter().map(Place::from).collect() }
    }

    pub(super) fn read(&self) -> Vec<TopicPartition> {
        self.places.iter().map(Place::read).collect()
    }
}

impl TopicSpecs {
    pub(super) fn new(specs: &[TopicSpec]) -> Self {
        let say = |spec: &TopicSpec| TopicSpecSay {
            topic: spec.topic.as_str().to_owned(),
            partitions: spec.partitions,
            retention_ms: spec.retention.map(millis),
            compacted: spec.compacted,
            compaction_lag_ms: spec.compaction_lag.map(millis),
        };
        Self { specs: specs.iter().map(say).collect() }
    }

    pub(super) fn read(self) -> Vec<TopicSpec> {
        let read = |say: TopicSpecSay| TopicSpec {
            topic: Topic::new(&say.topic),
            partitions: say.partitions,
            retention: say.retention_ms.map(Duration::from_millis),
            compacted: say.compacted,
            compaction_lag: say.compaction_lag_ms.map(Duration::from_millis),
        };
        self.specs.into_iter().map(read).collect()
    }
}

impl JoinAsk {
    pub(super) fn new(spec: &GroupSpec) -> Self {
        Self {
            group: spec.name.clone(),
            topics: spec.topics.iter().map(|t| t.as_str().to_owned()).collect(),
            session_timeout_ms: millis(spec.session_timeout),
            release_timeout_ms: millis(spec.release_timeout),
            lease_ms: millis(spec.lease),
        }
    }

    pub(super) fn read(self) -> GroupSpec {
        GroupSpec {
            name: self.group,
            topics: self.topics.iter().map(|t| Topic::new(t)).collect(),
            session_timeout: Duration::from_millis(self.session_timeout_ms),
            release_timeout: Duration::from_millis(self.release_timeout_ms),
            lease: Duration::from_millis(self.lease_ms),
        }
    }
}

impl CommitSay {
    pub(super) fn new(of: &TopicPartition, committed: Option<Committed>) -> Self {
        let (offset, metadata) = committed.map_or((None, String::new()), |c| (Some(c.offset.get()), c.metadata));
        Self { of: Some(of.into()), offset, metadata }
    }

    pub(super) fn read(self) -> Option<(TopicPartition, Option<Committed>)> {
        let committed = self.offset.map(|offset| Committed { offset: Offset::new(offset), metadata: self.metadata });
        Some((self.of?.read(), committed))
    }
}

impl From<Bounds> for BoundsSay {
    fn from(bounds: Bounds) -> Self {
        Self { start: bounds.start.get(), end: bounds.end.get() }
    }
}

impl BoundsSay {
    pub(super) fn read(self) -> Bounds {
        Bounds { start: Offset::new(self.start), end: Offset::new(self.end) }
    }
}

impl Entries {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        let say = |e: Entry| EntrySay { offset: e.offset.get(), timestamp: e.timestamp.as_millis(), key: e.record.key, value: e.record.value };
        Self { entries: entries.into_iter().map(say).collect() }
    }

    pub(super) fn read(self) -> Vec<Entry> {
        let read = |say: EntrySay| Entry {
            offset: Offset::new(say.offset),
            timestamp: Timestamp::from_millis(say.timestamp),
            record: Record { key: say.key, value: say.value },
        };
        self.entries.into_iter().map(read).collect()
    }
}

impl Assignments {
    pub(super) fn new(assignments: Vec<Assignment>) -> Self {
        let say = |a: Assignment| AssignmentSay { committed: Some(CommitSay::new(&a.partition, a.committed)), former_is_gone: a.former_is_gone };
        Self { assignments: assignments.into_iter().map(say).collect() }
    }

    pub(super) fn read(self) -> Vec<Assignment> {
        let read = |say: AssignmentSay| {
            let (partition, committed) = say.committed?.read()?;
            Some(Assignment { partition, committed, former_is_gone: say.former_is_gone })
        };
        self.assignments.into_iter().filter_map(read).collect()
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let (kind, text) = match error {
            LogError::Unavailable(text) => (Kind::Unavailable, text),
            LogError::NotFound(text) => (Kind::NotFound, text),
            LogError::Fenced(text) => (Kind::Fenced, text),
            LogError::Refused(text) => (Kind::Refused, text),
        };
        Self { kind: kind.into(), text, ..Self::default() }
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NotPersisted(text) => Self { kind: Kind::NotPersisted.into(), text, ..Self::default() },
            AppendError::Unknown(text) => Self { kind: Kind::Unknown.into(), text, ..Self::default() },
            AppendError::TooLarge { size_bytes, limit_bytes } => {
                Self { kind: Kind::TooLarge.into(), text: String::new(), size_bytes: size_bytes as u64, limit_bytes: limit_bytes as u64 }
            }
        }
    }
}

impl Failure {
    pub(super) fn log_error(self) -> LogError {
        match self.kind() {
            Kind::NotFound => LogError::NotFound(self.text),
            Kind::Fenced => LogError::Fenced(self.text),
            Kind::Refused => LogError::Refused(self.text),
            Kind::Unavailable | Kind::NotPersisted | Kind::Unknown | Kind::TooLarge => LogError::Unavailable(self.text),
        }
    }

    pub(super) fn append_error(self) -> AppendError {
        let bytes = |n| usize::try_from(n).unwrap_or(usize::MAX);
        match self.kind() {
            Kind::NotPersisted => AppendError::NotPersisted(self.text),
            Kind::TooLarge => AppendError::TooLarge { size_bytes: bytes(self.size_bytes), limit_bytes: bytes(self.limit_bytes) },
            _ => AppendError::Unknown(self.text),
        }
    }
}

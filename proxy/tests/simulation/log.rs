//! The log: the embedded one's own partitions in memory, on simulated time. Who is told what, and when, is the world's affair.

use std::collections::BTreeMap;
use std::sync::Arc;

use bluebox_core::InstanceId;
use bluebox_core::call::Call;
use bluebox_core::log::embedded::partition::{Found, Partition};
use bluebox_core::log::{Entry, Offset, Record, Timestamp, Topic, TopicPartition};
use bluebox_core::wire::{CallsEntry, ControlEntry, DeadLetter, FrontierEntry, ParkedCall, RecordedEntry, Reply};

use crate::scenario::{MS, Time};

/// A partition of one of the topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Calls(u32),
    Parked(u32),
    Control(u32),
    Recorded(u32),
    Dead(u32),
    Replies(u32),
    Frontier(u32),
}

/// What a record says.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Call(Arc<Call>),
    Fence(InstanceId),
    /// Nothing that can be read.
    Noise,
    Parked(ParkedCall),
    Control(ControlEntry),
    Recorded(RecordedEntry),
    Dead(Box<DeadLetter>),
    Reply(Reply),
    Frontier(FrontierEntry),
}

impl Value {
    fn encode(&self) -> Record {
        Record::new(match self {
            Self::Call(call) => CallsEntry::Call(Box::new(Call::clone(call))).encode(),
            Self::Fence(instance) => CallsEntry::Fence(*instance).encode(),
            Self::Noise => bytes::Bytes::from_static(b"\xff"),
            Self::Parked(parked) => parked.encode(),
            Self::Control(control) => control.encode(),
            Self::Recorded(entry) => entry.encode(),
            Self::Dead(letter) => letter.encode(),
            Self::Reply(reply) => reply.encode(),
            Self::Frontier(entry) => entry.encode(),
        })
    }

    fn decode(of: Place, record: Record) -> Self {
        let value = record.value.unwrap_or_default();
        let read = match of {
            Place::Calls(_) => CallsEntry::decode(value).map(|entry| match entry {
                CallsEntry::Call(call) => Self::Call(Arc::from(call)),
                CallsEntry::Fence(instance) => Self::Fence(instance),
            }),
            Place::Parked(_) => ParkedCall::decode(value).map(Self::Parked),
            Place::Control(_) => ControlEntry::decode(value).map(Self::Control),
            Place::Recorded(_) => RecordedEntry::decode(value).map(Self::Recorded),
            Place::Dead(_) => DeadLetter::decode(value).map(|letter| Self::Dead(Box::new(letter))),
            Place::Replies(_) => Reply::decode(value).map(Self::Reply),
            Place::Frontier(_) => FrontierEntry::decode(value).map(Self::Frontier),
        };
        read.unwrap_or(Self::Noise)
    }
}

#[derive(Debug, Default)]
pub(crate) struct TheLog {
    places: BTreeMap<Place, Partition>,
}

/// The log's clock.
pub(crate) fn timestamp(now: Time) -> Timestamp {
    Timestamp::from_millis(1_000_000_000 + now / MS)
}

pub(crate) fn calls_topic() -> Topic {
    Topic::new("app.calls")
}

pub(crate) fn parked_topic() -> Topic {
    Topic::new("app.parked")
}

pub(crate) fn replies(number: u32) -> TopicPartition {
    Topic::new("caller.replies").partition(number)
}

impl TheLog {
    pub(crate) fn append(&mut self, now: Time, to: Place, value: &Value) -> (Offset, Timestamp) {
        let appended = self.places.entry(to).or_insert_with(|| Partition::empty(0)).append(value.encode(), timestamp(now));
        (appended.offset, appended.timestamp)
    }

    pub(crate) fn end(&self, of: Place) -> Offset {
        self.places.get(&of).map_or(Offset::default(), |partition| partition.bounds().end)
    }

    pub(crate) fn get(&self, of: Place, at: Offset) -> Option<Value> {
        self.range(of, at, at.next()).next().map(|(_, _, value)| value)
    }

    /// The records of `[from, end)`.
    pub(crate) fn range(&self, of: Place, from: Offset, end: Offset) -> impl Iterator<Item = (Offset, Timestamp, Value)> + use<> {
        let wanted = usize::try_from(end.distance_from(from)).unwrap_or(usize::MAX);
        let entries = match self.places.get(&of).map(|partition| partition.find(from, wanted, usize::MAX)) {
            Some(Found::Entries { entries, .. }) if wanted > 0 => entries,
            _ => Vec::new(),
        };
        entries.into_iter().map(move |Entry { offset, timestamp, record }| (offset, timestamp, Value::decode(of, record)))
    }
}

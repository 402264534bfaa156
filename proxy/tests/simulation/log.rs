//! The log as records in memory: what was appended, when, and nothing else. Who is told what, and when, is the world's affair.

use std::collections::BTreeMap;
use std::sync::Arc;

use bluebox_core::InstanceId;
use bluebox_core::call::Call;
use bluebox_core::log::{Offset, Timestamp, Topic, TopicPartition};
use bluebox_core::wire::{DeadLetter, ParkedCall, RecordedEntry, Reply};

use crate::scenario::{MS, Time};

/// A partition of one of the topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Calls(u32),
    Parked(u32),
    Recorded(u32),
    Dead(u32),
    Replies(u32),
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Call(Arc<Call>),
    Fence(InstanceId),
    /// Nothing that can be read.
    Noise,
    Parked(ParkedCall),
    Recorded(RecordedEntry),
    Dead(Box<DeadLetter>),
    Reply(Reply),
}

#[derive(Debug, Default)]
pub(crate) struct TheLog {
    places: BTreeMap<Place, Vec<(Timestamp, Value)>>,
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
    pub(crate) fn append(&mut self, now: Time, to: Place, value: Value) -> (Offset, Timestamp) {
        let records = self.places.entry(to).or_default();
        records.push((timestamp(now), value));
        (Offset::new(records.len() as u64 - 1), timestamp(now))
    }

    pub(crate) fn end(&self, of: Place) -> Offset {
        Offset::new(self.places.get(&of).map_or(0, |r| r.len() as u64))
    }

    pub(crate) fn get(&self, of: Place, at: Offset) -> Option<&(Timestamp, Value)> {
        self.places.get(&of)?.get(usize::try_from(at.get()).ok()?)
    }

    /// The records of `[from, end)`.
    pub(crate) fn range(&self, of: Place, from: Offset, end: Offset) -> impl Iterator<Item = (Offset, Timestamp, &Value)> {
        (from.get()..end.get()).filter_map(move |n| self.get(of, Offset::new(n)).map(|(t, v)| (Offset::new(n), *t, v)))
    }
}

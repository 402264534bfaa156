//! How transactions are written down: Protocol Buffers, as everything in the log.
//!
//! Each record of the topic is the whole state of one transaction: keyed with its id, with a version that grows by one and the epoch of its writer. Of several for one transaction the one of the
//! highest epoch counts, and of that the one of the highest version. A fence is the first record of an owner; its offset is the epoch.

use bluebox_core::InstanceId;
use bluebox_core::log::{Offset, Record as LogRecord};
use bluebox_observe::trace::Context;
use bytes::Bytes;
use prost::Message as _;

use crate::TransactionId;
use crate::gate::Version;
use crate::saga::Saga;
use crate::transaction::Lra;

mod convert;
mod proto;
mod words;

/// A record that can't be read. Nothing of it can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record of a transaction can't be read: {0}")]
pub struct Unreadable(&'static str);

/// The state of a transaction, of either kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// An LRA.
    Lra(Box<Lra>),
    /// A saga.
    Saga(Box<Saga>),
}

impl State {
    /// Whose state it is.
    pub fn id(&self) -> TransactionId {
        match self {
            Self::Lra(lra) => lra.id,
            Self::Saga(saga) => saga.id,
        }
    }
}

/// The state of a transaction, as one owner has written it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// The epoch of the owner: the offset of its fence.
    pub epoch: Offset,
    /// Which of the transaction's records it is.
    pub version: Version,
    /// The state.
    pub state: State,
    /// The trace of the last request about it that named one: its callbacks go on in that, whoever makes them.
    pub trace: Option<Context>,
}

impl Record {
    /// Whether it counts, and not the other one.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.epoch, self.version) > (other.epoch, other.version)
    }
}

/// An entry of the topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A new owner begins.
    Fence(InstanceId),
    /// The state of a transaction.
    State(Box<Record>),
    /// The transaction is over and not kept any more.
    Removed(TransactionId),
}

/// The key of fences.
const FENCE_KEY: &[u8] = b"fence";

impl Entry {
    /// The record of the log.
    pub fn encode(&self) -> LogRecord {
        match self {
            Self::Fence(instance) => LogRecord::keyed(Bytes::from_static(FENCE_KEY), proto::Entry::of_fence(*instance).encode_to_vec().into()),
            Self::State(record) => LogRecord::keyed(record.state.id().key().into(), proto::Entry::from(&**record).encode_to_vec().into()),
            Self::Removed(id) => LogRecord { key: id.key().into(), value: None },
        }
    }

    /// Reads a record of the log.
    ///
    /// # Errors
    /// When it is none of this topic's, when key and value name different transactions, or when it is of a later version that this one must not guess at.
    pub fn decode(record: LogRecord) -> Result<Self, Unreadable> {
        let key = std::str::from_utf8(&record.key).map_err(|_| Unreadable("a key that is no text"))?;
        let Some(value) = record.value else {
            return key.parse().map(Self::Removed).map_err(|_| Unreadable("a tombstone of no transaction"));
        };
        let entry = Self::try_from(proto::Entry::decode(value).map_err(|_| Unreadable("no such message"))?)?;
        match &entry {
            Self::State(record) if record.state.id().key() != key => Err(Unreadable("key and value name different transactions")),
            _ => Ok(entry),
        }
    }
}

#[cfg(test)]
mod tests;

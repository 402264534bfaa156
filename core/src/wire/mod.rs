//! How calls and outcomes are written into records: Protocol Buffers, so that fields can be added and older readers go on.
//!
//! Each topic has one kind of entry, an enum below with `encode` and `decode`. Decoding shares the record's memory: bodies and header values aren't copied.

use bytes::Bytes;
use prost::Message as _;

use crate::call::{Call, Digest, Outcome, Reason};
use crate::log::{Committed, Offset, Record, Timestamp, TopicPartition};
use crate::{CallId, InstanceId};

mod convert;
mod proto;

/// A record that can't be read. Nothing of it can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record can't be read: {0}")]
pub struct Unreadable(&'static str);

/// An entry of a component's `calls` topic.
#[derive(Debug, Clone, PartialEq)]
pub enum CallsEntry {
    /// A call.
    Call(Box<Call>),
    /// A new owner has taken over: its offset is the epoch.
    Fence(InstanceId),
}

/// An entry of a component's `parked` topic: a call that was moved aside, with what was known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedCall {
    /// The epoch of the owner that wrote this.
    pub epoch: Offset,
    /// Its offset in the `calls` partition of the same number.
    pub origin: Offset,
    /// When it was appended there.
    pub accepted: Timestamp,
    /// Deliveries begun so far.
    pub attempts: u32,
    /// Whether a delivery may have been cut off by a crash.
    pub may_have_started: bool,
    /// The call.
    pub call: Box<Call>,
}

/// An entry of a `replies` topic.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// How a call ended.
    Outcome(Box<Outcome>),
    /// A recorded call had ended before: its outcome lies there.
    At {
        /// Which call.
        id: CallId,
        /// Which life of it.
        replay: u32,
        /// Its digest.
        digest: Digest,
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
    /// The answer to a [`ControlEntry::Query`].
    Status {
        /// The query's own id.
        query: CallId,
        /// What the owner says.
        status: CallStatus,
    },
}

/// What an owner knows of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallStatus {
    /// It has no outcome yet; this many deliveries were begun.
    Pending {
        /// Deliveries begun so far.
        attempts: u32,
    },
    /// Its outcome lies there.
    Ended {
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
    /// The owner does not know; the reply partition must be searched.
    Unknown,
}

/// An entry of a component's `control` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEntry {
    /// Asks the owner what has become of a call.
    Query {
        /// The query's own id, for the answer.
        query: CallId,
        /// The call.
        id: CallId,
        /// Its offset in the `calls` partition of the same number.
        offset: Offset,
        /// Its digest: another call with the same key has the same id.
        digest: Digest,
        /// Where the answer goes.
        reply_to: TopicPartition,
    },
    /// Ends a call that has not been answered.
    Cancel {
        /// The call.
        id: CallId,
        /// Its offset in the `calls` partition of the same number.
        offset: Offset,
    },
}

/// An entry of a component's `recorded` topic, by call id: an index, not the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEntry {
    /// Which call has ended.
    pub id: CallId,
    /// The epoch of the owner that wrote this: its fence's offset in the `calls` partition.
    pub epoch: Offset,
    /// What must be the same when it comes again.
    pub digest: Digest,
    /// The reply partition with the outcome.
    pub partition: TopicPartition,
    /// Its offset there.
    pub offset: Offset,
}

/// An entry of a stateful component's `frontier` topic. Compaction goes by their keys; which may be used again, and when, is in [`crate::assigned`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontierEntry {
    /// The partition is this claimant's from here on: its offset is the epoch.
    Claim(InstanceId),
    /// What an owner commits.
    Commit {
        /// The offset of the owner's claim.
        epoch: Offset,
        /// Counts the commits of the epoch, from 1: a later one may be stored before an earlier one.
        sequence: u64,
        /// What tells the keys of an epoch's commits apart: one of a few numbers.
        slot: u32,
        /// All that it has committed, not only what is new.
        commits: Vec<(TopicPartition, Committed)>,
    },
}

impl FrontierEntry {
    /// The key of its record.
    pub fn key(&self) -> Bytes {
        match self {
            Self::Claim(by) => [b"claim ", &by.as_bytes()[..]].concat().into(),
            Self::Commit { epoch, slot, .. } => [&epoch.get().to_be_bytes()[..], &slot.to_be_bytes()].concat().into(),
        }
    }

    /// Its record.
    pub fn record(&self) -> Record {
        Record::keyed(self.key(), self.encode())
    }
}

/// An entry of a component's `dead-letters` topic.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Why it was given up.
    pub reason: Reason,
    /// What happened last, in words.
    pub detail: String,
    /// Deliveries begun.
    pub attempts: u32,
    /// Its offset in the `calls` partition of the same number.
    pub origin: Offset,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// The call. A large body was copied into chunks of the same dead-letter partition.
    pub call: Box<Call>,
}

/// The key of [`Settled`] records; letters and the chunks of their bodies have others.
pub const SETTLED_KEY: &[u8] = b"settled";

/// An entry of a component's `dead-letters` topic, under [`SETTLED_KEY`]: what an operator did with letters in the same partition. It is written after them, so it is
/// kept as long as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Which call.
    pub id: CallId,
    /// Which life of it: the one that ended as a dead letter.
    pub replay: u32,
    /// What was done.
    pub how: Settlement,
}

/// What an operator did with a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The call was appended again, with the next number of replay.
    Replayed,
    /// It was given up for good.
    Dropped,
}

macro_rules! entry {
    ($(#[$doc:meta])* $entry:ty, $wire:ty) => {
        impl $entry {
            /// The value of its record.
            pub fn encode(&self) -> Bytes {
                <$wire>::from(self).encode_to_vec().into()
            }

            /// Reads the value of a record.
            ///
            /// # Errors
            /// When it is none of this topic's, or of a later version that this one must not guess at.
            pub fn decode(value: Bytes) -> Result<Self, Unreadable> {
                <$wire>::decode(value).map_err(|_| Unreadable("no such message"))?.try_into()
            }
        }
    };
}

entry!(CallsEntry, proto::CallsEntry);
entry!(ParkedCall, proto::ParkedCall);
entry!(Reply, proto::Reply);
entry!(ControlEntry, proto::ControlEntry);
entry!(RecordedEntry, proto::RecordedEntry);
entry!(FrontierEntry, proto::FrontierEntry);
entry!(DeadLetter, proto::DeadLetter);
entry!(Settled, proto::Settled);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, Method, StatusCode};

    use super::convert::REASONS;
    use super::*;
    use crate::ComponentName;
    use crate::call::{Body, BulkBody, ReplyAddress, Request, Response, Source};
    use crate::log::Topic;

    fn a_call(body: Body) -> Call {
        let mut headers = HeaderMap::new();
        headers.append("x-twice", HeaderValue::from_static("one"));
        headers.append("x-twice", HeaderValue::from_static("two"));
        headers.append("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        let replies = Topic::new("bluebox.web.replies").partition(3);
        Call {
            id: CallId::random(),
            replay: 1,
            caller: ComponentName::try_new("web").unwrap(),
            callee: ComponentName::try_new("cart").unwrap(),
            ordering_key: Some(Bytes::from_static(b"k")),
            reply_to: ReplyAddress { partition: replies, position: Offset::new(7) },
            ttl: Duration::from_millis(1234),
            wait: Some(Duration::from_millis(99)),
            recorded: Some([9; 32]),
            request: Request {
                method: Method::from_bytes(b"PURGE").unwrap(),
                target: "/items?q=%20".to_owned(),
                authority: "cart:80".to_owned(),
                headers,
                body,
                trailers: HeaderMap::new(),
            },
        }
    }

    #[test]
    fn a_call_and_back() {
        let bulk = Body::Bulk(BulkBody { partition: Topic::new("b").partition(1), chunks: vec![Offset::new(3), Offset::new(9)], len_bytes: 300_000 });
        for body in [Body::empty(), Body::Inline(Bytes::from_static(b"\0\xff")), bulk] {
            let entry = CallsEntry::Call(Box::new(a_call(body)));
            assert_eq!(CallsEntry::decode(entry.encode()), Ok(entry));
        }
        let fence = CallsEntry::Fence(InstanceId::random());
        assert_eq!(CallsEntry::decode(fence.encode()), Ok(fence));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(CallsEntry::decode(Bytes::from_static(b"\xff\xff\xff")).is_err());
        assert!(CallsEntry::decode(Bytes::new()).is_err());
        assert!(Reply::decode(Bytes::new()).is_err());
    }

    #[test]
    fn replies_and_the_rest_and_back() {
        let id = CallId::random();
        let at = Topic::new("r").partition(2);
        let offset = Offset::new(5);
        for status in [CallStatus::Pending { attempts: 0 }, CallStatus::Ended { partition: at.clone(), offset }, CallStatus::Unknown] {
            let reply = Reply::Status { query: id, status };
            assert_eq!(Reply::decode(reply.encode()), Ok(reply));
        }
        for source in [Source::App].into_iter().chain(REASONS.map(Source::Proxy)) {
            let response = Response {
                status: StatusCode::from_u16(299).unwrap(),
                reason: Some(Bytes::from_static(b"Fine")),
                headers: HeaderMap::new(),
                body: Body::empty(),
                trailers: HeaderMap::new(),
            };
            let reply = Reply::Outcome(Box::new(Outcome { id, replay: 2, attempts: 3, digest: Some([4; 32]), source, response }));
            assert_eq!(Reply::decode(reply.encode()), Ok(reply));
        }
        let reply = Reply::At { id, replay: 0, digest: [5; 32], partition: at.clone(), offset };
        assert_eq!(Reply::decode(reply.encode()), Ok(reply));
        let query = ControlEntry::Query { query: id, id, offset, digest: [6; 32], reply_to: at.clone() };
        assert_eq!(ControlEntry::decode(query.encode()), Ok(query));
        let cancel = ControlEntry::Cancel { id, offset };
        assert_eq!(ControlEntry::decode(cancel.encode()), Ok(cancel));
        let entry = RecordedEntry { id, epoch: offset, digest: [1; 32], partition: at, offset };
        assert_eq!(RecordedEntry::decode(entry.encode()), Ok(entry));
        let commits = vec![(Topic::new("c").partition(2), Committed { offset, metadata: "a note".to_owned() })];
        for entry in [FrontierEntry::Claim(InstanceId::random()), FrontierEntry::Commit { epoch: offset, sequence: 7, slot: 2, commits }] {
            assert_eq!(FrontierEntry::decode(entry.encode()), Ok(entry));
        }
        let parked = ParkedCall {
            epoch: offset,
            origin: offset,
            accepted: Timestamp::from_millis(9),
            attempts: 2,
            may_have_started: true,
            call: Box::new(a_call(Body::empty())),
        };
        assert_eq!(ParkedCall::decode(parked.encode()), Ok(parked));
        let call = Box::new(a_call(Body::empty()));
        let letter = DeadLetter { reason: Reason::Deadline, detail: "late".to_owned(), attempts: 1, origin: offset, accepted: Timestamp::from_millis(1), call };
        assert_eq!(DeadLetter::decode(letter.encode()), Ok(letter));
        for how in [Settlement::Replayed, Settlement::Dropped] {
            let settled = Settled { id, replay: 1, how };
            assert_eq!(Settled::decode(settled.encode()), Ok(settled));
        }
    }
}

//! How calls and outcomes are written into records: Protocol Buffers, so that fields can be added and older readers go on.
//!
//! Each topic has one kind of entry, an enum below with `encode` and `decode`. Decoding shares the record's memory: bodies and header values aren't copied.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use prost::Message as _;

use crate::call::{Body, BulkBody, Call, Outcome, Reason, ReplyAddress, Request, Response, Source};
use crate::log::{Offset, Timestamp, Topic, TopicPartition};
use crate::{CallId, ComponentName, InstanceId};

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

/// An entry of a component's `parked` topic.
#[derive(Debug, Clone, PartialEq)]
pub enum ParkedEntry {
    /// A call that was moved aside.
    Call(ParkedCall),
    /// A new owner has taken over: entries of an older epoch after this are void.
    Fence {
        /// Its epoch: the offset of its fence in the `calls` partition.
        epoch: Offset,
    },
}

/// A call that was moved aside, with what was known of it.
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
pub enum RecordedEntry {
    /// A recorded call ended.
    Ended {
        /// Which call.
        id: CallId,
        /// The epoch of the owner that wrote this: its fence's offset in the `calls` partition.
        epoch: Offset,
        /// What must be the same when it comes again.
        digest: crate::call::Digest,
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
    /// A new owner has taken over: entries of an older epoch after this are void.
    Fence {
        /// Its epoch.
        epoch: Offset,
    },
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
entry!(ParkedEntry, proto::ParkedEntry);
entry!(Reply, proto::Reply);
entry!(ControlEntry, proto::ControlEntry);
entry!(RecordedEntry, proto::RecordedEntry);
entry!(DeadLetter, proto::DeadLetter);

mod proto {
    //! The messages. A field's number is for good.

    use bytes::Bytes;
    use prost::{Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Field {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(bytes = "bytes", tag = "2")]
        pub value: Bytes,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Place {
        #[prost(string, tag = "1")]
        pub topic: String,
        #[prost(uint32, tag = "2")]
        pub partition: u32,
        #[prost(uint64, tag = "3")]
        pub offset: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Bulk {
        #[prost(message, required, tag = "1")]
        pub at: Place,
        #[prost(uint64, repeated, tag = "2")]
        pub chunks: Vec<u64>,
        #[prost(uint64, tag = "3")]
        pub len_bytes: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Content {
        #[prost(bytes = "bytes", tag = "1")]
        pub inline: Bytes,
        #[prost(message, optional, tag = "2")]
        pub bulk: Option<Bulk>,
        #[prost(message, repeated, tag = "3")]
        pub trailers: Vec<Field>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Call {
        #[prost(bytes = "bytes", tag = "1")]
        pub id: Bytes,
        #[prost(uint32, tag = "2")]
        pub replay: u32,
        #[prost(string, tag = "3")]
        pub caller: String,
        #[prost(string, tag = "4")]
        pub callee: String,
        #[prost(bytes = "bytes", optional, tag = "5")]
        pub ordering_key: Option<Bytes>,
        #[prost(message, required, tag = "6")]
        pub reply_to: Place,
        #[prost(uint64, tag = "7")]
        pub ttl_millis: u64,
        #[prost(bytes = "bytes", optional, tag = "8")]
        pub recorded: Option<Bytes>,
        #[prost(string, tag = "9")]
        pub method: String,
        #[prost(string, tag = "10")]
        pub target: String,
        #[prost(string, tag = "11")]
        pub authority: String,
        #[prost(message, repeated, tag = "12")]
        pub headers: Vec<Field>,
        #[prost(message, required, tag = "13")]
        pub content: Content,
        #[prost(uint64, optional, tag = "14")]
        pub wait_millis: Option<u64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Fence {
        #[prost(bytes = "bytes", tag = "1")]
        pub instance: Bytes,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct CallsEntry {
        #[prost(oneof = "CallsKind", tags = "1, 2")]
        pub kind: Option<CallsKind>,
    }

    // Nearly all are calls; a box would be an allocation for each of them.
    #[allow(clippy::large_enum_variant)]
    #[derive(Clone, PartialEq, Oneof)]
    pub(super) enum CallsKind {
        #[prost(message, tag = "1")]
        Call(Call),
        #[prost(message, tag = "2")]
        Fence(Fence),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ParkedEntry {
        #[prost(uint64, tag = "1")]
        pub epoch: u64,
        /// Absent: a fence.
        #[prost(message, optional, tag = "2")]
        pub call: Option<ParkedCall>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ParkedCall {
        #[prost(uint64, tag = "1")]
        pub origin: u64,
        #[prost(uint64, tag = "2")]
        pub accepted_millis: u64,
        #[prost(uint32, tag = "3")]
        pub attempts: u32,
        #[prost(bool, tag = "4")]
        pub may_have_started: bool,
        #[prost(message, required, tag = "5")]
        pub call: Call,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Outcome {
        #[prost(bytes = "bytes", tag = "1")]
        pub id: Bytes,
        #[prost(uint32, tag = "2")]
        pub replay: u32,
        #[prost(uint32, tag = "3")]
        pub attempts: u32,
        /// 0: the app; else see `reason`.
        #[prost(uint32, tag = "4")]
        pub source: u32,
        #[prost(uint32, tag = "5")]
        pub status: u32,
        #[prost(bytes = "bytes", optional, tag = "6")]
        pub reason: Option<Bytes>,
        #[prost(message, repeated, tag = "7")]
        pub headers: Vec<Field>,
        #[prost(message, required, tag = "8")]
        pub content: Content,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct At {
        #[prost(bytes = "bytes", tag = "1")]
        pub id: Bytes,
        #[prost(uint32, tag = "2")]
        pub replay: u32,
        #[prost(message, required, tag = "3")]
        pub place: Place,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Status {
        #[prost(bytes = "bytes", tag = "1")]
        pub query: Bytes,
        #[prost(uint32, optional, tag = "2")]
        pub pending_attempts: Option<u32>,
        #[prost(message, optional, tag = "3")]
        pub ended: Option<Place>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Reply {
        #[prost(oneof = "ReplyKind", tags = "1, 2, 3")]
        pub kind: Option<ReplyKind>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(super) enum ReplyKind {
        #[prost(message, tag = "1")]
        Outcome(Outcome),
        #[prost(message, tag = "2")]
        At(At),
        #[prost(message, tag = "3")]
        Status(Status),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Query {
        #[prost(bytes = "bytes", tag = "1")]
        pub query: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub id: Bytes,
        #[prost(uint64, tag = "3")]
        pub offset: u64,
        #[prost(message, required, tag = "4")]
        pub reply_to: Place,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Cancel {
        #[prost(bytes = "bytes", tag = "1")]
        pub id: Bytes,
        #[prost(uint64, tag = "2")]
        pub offset: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ControlEntry {
        #[prost(oneof = "ControlKind", tags = "1, 2")]
        pub kind: Option<ControlKind>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(super) enum ControlKind {
        #[prost(message, tag = "1")]
        Query(Query),
        #[prost(message, tag = "2")]
        Cancel(Cancel),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct RecordedEntry {
        #[prost(uint64, tag = "1")]
        pub epoch: u64,
        /// Absent: a fence.
        #[prost(message, optional, tag = "2")]
        pub ended: Option<Ended>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Ended {
        #[prost(bytes = "bytes", tag = "1")]
        pub id: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub digest: Bytes,
        #[prost(message, required, tag = "3")]
        pub place: Place,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct DeadLetter {
        #[prost(uint32, tag = "1")]
        pub reason: u32,
        #[prost(string, tag = "2")]
        pub detail: String,
        #[prost(uint32, tag = "3")]
        pub attempts: u32,
        #[prost(uint64, tag = "4")]
        pub origin: u64,
        #[prost(uint64, tag = "5")]
        pub accepted_millis: u64,
        #[prost(message, required, tag = "6")]
        pub call: Call,
    }
}

fn id_bytes(id: &CallId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn id_from(bytes: &Bytes) -> Result<CallId, Unreadable> {
    <[u8; 16]>::try_from(&bytes[..]).map(CallId::from_bytes).map_err(|_| Unreadable("an id has 16 bytes"))
}

fn name_from(name: &str) -> Result<ComponentName, Unreadable> {
    ComponentName::try_new(name).map_err(|_| Unreadable("no component's name"))
}

fn fields(headers: &HeaderMap) -> Vec<proto::Field> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| proto::Field { name: name.as_str().to_owned(), value: Bytes::copy_from_slice(value.as_bytes()) };
    headers.iter().map(field).collect()
}

fn headers_from(fields: Vec<proto::Field>) -> Result<HeaderMap, Unreadable> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Unreadable("no field name"))?;
        let value = HeaderValue::from_maybe_shared(field.value).map_err(|_| Unreadable("no field value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn place(partition: &TopicPartition, offset: Offset) -> proto::Place {
    proto::Place { topic: partition.topic.as_str().to_owned(), partition: partition.partition, offset: offset.get() }
}

fn place_from(place: &proto::Place) -> (TopicPartition, Offset) {
    (Topic::new(&place.topic).partition(place.partition), Offset::new(place.offset))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn content(body: &Body, trailers: &HeaderMap) -> proto::Content {
    let (inline, bulk) = match body {
        Body::Inline(bytes) => (bytes.clone(), None),
        Body::Bulk(bulk) => {
            let chunks = bulk.chunks.iter().map(|c| c.get()).collect();
            let at = place(&bulk.partition, Offset::default());
            (Bytes::new(), Some(proto::Bulk { at, chunks, len_bytes: bulk.len_bytes }))
        }
    };
    proto::Content { inline, bulk, trailers: fields(trailers) }
}

fn content_from(content: proto::Content) -> Result<(Body, HeaderMap), Unreadable> {
    let body = match content.bulk {
        None => Body::Inline(content.inline),
        Some(bulk) => {
            Body::Bulk(BulkBody { partition: place_from(&bulk.at).0, chunks: bulk.chunks.into_iter().map(Offset::new).collect(), len_bytes: bulk.len_bytes })
        }
    };
    Ok((body, headers_from(content.trailers)?))
}

impl From<&Call> for proto::Call {
    fn from(call: &Call) -> Self {
        Self {
            id: id_bytes(&call.id),
            replay: call.replay,
            caller: call.caller.to_string(),
            callee: call.callee.to_string(),
            ordering_key: call.ordering_key.clone(),
            reply_to: place(&call.reply_to.partition, call.reply_to.position),
            ttl_millis: millis(call.ttl),
            wait_millis: call.wait.map(millis),
            recorded: call.recorded.map(|d| Bytes::copy_from_slice(&d)),
            method: call.request.method.to_string(),
            target: call.request.target.clone(),
            authority: call.request.authority.clone(),
            headers: fields(&call.request.headers),
            content: content(&call.request.body, &call.request.trailers),
        }
    }
}

impl TryFrom<proto::Call> for Call {
    type Error = Unreadable;

    fn try_from(call: proto::Call) -> Result<Self, Unreadable> {
        let (partition, position) = place_from(&call.reply_to);
        let (body, trailers) = content_from(call.content)?;
        let digest = |d: Bytes| <[u8; 32]>::try_from(&d[..]).map_err(|_| Unreadable("a digest has 32 bytes"));
        Ok(Self {
            id: id_from(&call.id)?,
            replay: call.replay,
            caller: name_from(&call.caller)?,
            callee: name_from(&call.callee)?,
            ordering_key: call.ordering_key,
            reply_to: ReplyAddress { partition, position },
            ttl: Duration::from_millis(call.ttl_millis),
            wait: call.wait_millis.map(Duration::from_millis),
            recorded: call.recorded.map(digest).transpose()?,
            request: Request {
                method: Method::from_bytes(call.method.as_bytes()).map_err(|_| Unreadable("no method"))?,
                target: call.target,
                authority: call.authority,
                headers: headers_from(call.headers)?,
                body,
                trailers,
            },
        })
    }
}

impl From<&CallsEntry> for proto::CallsEntry {
    fn from(entry: &CallsEntry) -> Self {
        let kind = match entry {
            CallsEntry::Call(call) => proto::CallsKind::Call((&**call).into()),
            CallsEntry::Fence(instance) => proto::CallsKind::Fence(proto::Fence { instance: Bytes::copy_from_slice(instance.as_bytes()) }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::CallsEntry> for CallsEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::CallsEntry) -> Result<Self, Unreadable> {
        match entry.kind.ok_or(Unreadable("a calls entry of an unknown kind"))? {
            proto::CallsKind::Call(call) => Ok(Self::Call(Box::new(call.try_into()?))),
            proto::CallsKind::Fence(fence) => {
                let instance = <[u8; 16]>::try_from(&fence.instance[..]).map_err(|_| Unreadable("an id has 16 bytes"))?;
                Ok(Self::Fence(InstanceId::from_bytes(instance)))
            }
        }
    }
}

impl From<&ParkedEntry> for proto::ParkedEntry {
    fn from(entry: &ParkedEntry) -> Self {
        match entry {
            ParkedEntry::Fence { epoch } => Self { epoch: epoch.get(), call: None },
            ParkedEntry::Call(parked) => Self {
                epoch: parked.epoch.get(),
                call: Some(proto::ParkedCall {
                    origin: parked.origin.get(),
                    accepted_millis: parked.accepted.as_millis(),
                    attempts: parked.attempts,
                    may_have_started: parked.may_have_started,
                    call: (&*parked.call).into(),
                }),
            },
        }
    }
}

impl TryFrom<proto::ParkedEntry> for ParkedEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::ParkedEntry) -> Result<Self, Unreadable> {
        let epoch = Offset::new(entry.epoch);
        let Some(parked) = entry.call else {
            return Ok(Self::Fence { epoch });
        };
        Ok(Self::Call(ParkedCall {
            epoch,
            origin: Offset::new(parked.origin),
            accepted: Timestamp::from_millis(parked.accepted_millis),
            attempts: parked.attempts,
            may_have_started: parked.may_have_started,
            call: Box::new(parked.call.try_into()?),
        }))
    }
}

const REASONS: [Reason; 7] = [Reason::Attempts, Reason::Poison, Reason::Deadline, Reason::Answer, Reason::KeyReused, Reason::RecordedFull, Reason::Cancelled];

fn reason_number(reason: Reason) -> u32 {
    match reason {
        Reason::Attempts => 1,
        Reason::Poison => 2,
        Reason::Deadline => 3,
        Reason::Answer => 4,
        Reason::KeyReused => 5,
        Reason::RecordedFull => 6,
        Reason::Cancelled => 7,
    }
}

fn reason_from(number: u32) -> Result<Reason, Unreadable> {
    REASONS.into_iter().find(|r| reason_number(*r) == number).ok_or(Unreadable("an unknown reason"))
}

impl From<&Outcome> for proto::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let response = &outcome.response;
        Self {
            id: id_bytes(&outcome.id),
            replay: outcome.replay,
            attempts: outcome.attempts,
            source: match outcome.source {
                Source::App => 0,
                Source::Proxy(reason) => reason_number(reason),
            },
            status: response.status.as_u16().into(),
            reason: response.reason.clone(),
            headers: fields(&response.headers),
            content: content(&response.body, &response.trailers),
        }
    }
}

impl TryFrom<proto::Outcome> for Outcome {
    type Error = Unreadable;

    fn try_from(outcome: proto::Outcome) -> Result<Self, Unreadable> {
        let (body, trailers) = content_from(outcome.content)?;
        let status = u16::try_from(outcome.status).ok().and_then(|s| StatusCode::from_u16(s).ok());
        Ok(Self {
            id: id_from(&outcome.id)?,
            replay: outcome.replay,
            attempts: outcome.attempts,
            source: match outcome.source {
                0 => Source::App,
                number => Source::Proxy(reason_from(number)?),
            },
            response: Response {
                status: status.ok_or(Unreadable("no status"))?,
                reason: outcome.reason,
                headers: headers_from(outcome.headers)?,
                body,
                trailers,
            },
        })
    }
}

impl From<&Reply> for proto::Reply {
    fn from(reply: &Reply) -> Self {
        let kind = match reply {
            Reply::Outcome(outcome) => proto::ReplyKind::Outcome((&**outcome).into()),
            Reply::At { id, replay, partition, offset } => {
                proto::ReplyKind::At(proto::At { id: id_bytes(id), replay: *replay, place: place(partition, *offset) })
            }
            Reply::Status { query, status } => {
                let (pending_attempts, ended) = match status {
                    CallStatus::Pending { attempts } => (Some(*attempts), None),
                    CallStatus::Ended { partition, offset } => (None, Some(place(partition, *offset))),
                    CallStatus::Unknown => (None, None),
                };
                proto::ReplyKind::Status(proto::Status { query: id_bytes(query), pending_attempts, ended })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::Reply> for Reply {
    type Error = Unreadable;

    fn try_from(reply: proto::Reply) -> Result<Self, Unreadable> {
        Ok(match reply.kind.ok_or(Unreadable("a reply of an unknown kind"))? {
            proto::ReplyKind::Outcome(outcome) => Self::Outcome(Box::new(outcome.try_into()?)),
            proto::ReplyKind::At(at) => {
                let (partition, offset) = place_from(&at.place);
                Self::At { id: id_from(&at.id)?, replay: at.replay, partition, offset }
            }
            proto::ReplyKind::Status(status) => {
                let said = match (status.pending_attempts, &status.ended) {
                    (Some(attempts), _) => CallStatus::Pending { attempts },
                    (None, Some(at)) => {
                        let (partition, offset) = place_from(at);
                        CallStatus::Ended { partition, offset }
                    }
                    (None, None) => CallStatus::Unknown,
                };
                Self::Status { query: id_from(&status.query)?, status: said }
            }
        })
    }
}

impl From<&ControlEntry> for proto::ControlEntry {
    fn from(entry: &ControlEntry) -> Self {
        let kind = match entry {
            ControlEntry::Query { query, id, offset, reply_to } => proto::ControlKind::Query(proto::Query {
                query: id_bytes(query),
                id: id_bytes(id),
                offset: offset.get(),
                reply_to: place(reply_to, Offset::default()),
            }),
            ControlEntry::Cancel { id, offset } => proto::ControlKind::Cancel(proto::Cancel { id: id_bytes(id), offset: offset.get() }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::ControlEntry> for ControlEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::ControlEntry) -> Result<Self, Unreadable> {
        Ok(match entry.kind.ok_or(Unreadable("a control entry of an unknown kind"))? {
            proto::ControlKind::Query(q) => {
                Self::Query { query: id_from(&q.query)?, id: id_from(&q.id)?, offset: Offset::new(q.offset), reply_to: place_from(&q.reply_to).0 }
            }
            proto::ControlKind::Cancel(c) => Self::Cancel { id: id_from(&c.id)?, offset: Offset::new(c.offset) },
        })
    }
}

impl From<&RecordedEntry> for proto::RecordedEntry {
    fn from(entry: &RecordedEntry) -> Self {
        match entry {
            RecordedEntry::Fence { epoch } => Self { epoch: epoch.get(), ended: None },
            RecordedEntry::Ended { id, epoch, digest, partition, offset } => Self {
                epoch: epoch.get(),
                ended: Some(proto::Ended { id: id_bytes(id), digest: Bytes::copy_from_slice(digest), place: place(partition, *offset) }),
            },
        }
    }
}

impl TryFrom<proto::RecordedEntry> for RecordedEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::RecordedEntry) -> Result<Self, Unreadable> {
        let epoch = Offset::new(entry.epoch);
        let Some(ended) = entry.ended else {
            return Ok(Self::Fence { epoch });
        };
        let (partition, offset) = place_from(&ended.place);
        let digest = <[u8; 32]>::try_from(&ended.digest[..]).map_err(|_| Unreadable("a digest has 32 bytes"))?;
        Ok(Self::Ended { id: id_from(&ended.id)?, epoch, digest, partition, offset })
    }
}

impl From<&DeadLetter> for proto::DeadLetter {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            reason: reason_number(letter.reason),
            detail: letter.detail.clone(),
            attempts: letter.attempts,
            origin: letter.origin.get(),
            accepted_millis: letter.accepted.as_millis(),
            call: (&*letter.call).into(),
        }
    }
}

impl TryFrom<proto::DeadLetter> for DeadLetter {
    type Error = Unreadable;

    fn try_from(letter: proto::DeadLetter) -> Result<Self, Unreadable> {
        Ok(Self {
            reason: reason_from(letter.reason)?,
            detail: letter.detail,
            attempts: letter.attempts,
            origin: Offset::new(letter.origin),
            accepted: Timestamp::from_millis(letter.accepted_millis),
            call: Box::new(letter.call.try_into()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let reply = Reply::Outcome(Box::new(Outcome { id, replay: 2, attempts: 3, source, response }));
            assert_eq!(Reply::decode(reply.encode()), Ok(reply));
        }
        let reply = Reply::At { id, replay: 0, partition: at.clone(), offset };
        assert_eq!(Reply::decode(reply.encode()), Ok(reply));
        let query = ControlEntry::Query { query: id, id, offset, reply_to: at.clone() };
        assert_eq!(ControlEntry::decode(query.encode()), Ok(query));
        let cancel = ControlEntry::Cancel { id, offset };
        assert_eq!(ControlEntry::decode(cancel.encode()), Ok(cancel));
        for entry in [RecordedEntry::Fence { epoch: offset }, RecordedEntry::Ended { id, epoch: offset, digest: [1; 32], partition: at, offset }] {
            assert_eq!(RecordedEntry::decode(entry.encode()), Ok(entry));
        }
        let parked = ParkedCall {
            epoch: offset,
            origin: offset,
            accepted: Timestamp::from_millis(9),
            attempts: 2,
            may_have_started: true,
            call: Box::new(a_call(Body::empty())),
        };
        for entry in [ParkedEntry::Call(parked), ParkedEntry::Fence { epoch: offset }] {
            assert_eq!(ParkedEntry::decode(entry.encode()), Ok(entry));
        }
        let call = Box::new(a_call(Body::empty()));
        let letter = DeadLetter { reason: Reason::Deadline, detail: "late".to_owned(), attempts: 1, origin: offset, accepted: Timestamp::from_millis(1), call };
        assert_eq!(DeadLetter::decode(letter.encode()), Ok(letter));
    }
}

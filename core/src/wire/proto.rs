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
pub(super) struct ParkedCall {
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
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
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub digest: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct At {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(uint32, tag = "2")]
    pub replay: u32,
    #[prost(message, required, tag = "3")]
    pub place: Place,
    #[prost(bytes = "bytes", tag = "4")]
    pub digest: Bytes,
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
    #[prost(bytes = "bytes", tag = "5")]
    pub digest: Bytes,
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
    #[prost(bytes = "bytes", tag = "2")]
    pub id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub digest: Bytes,
    #[prost(message, required, tag = "4")]
    pub place: Place,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Commit {
    #[prost(message, required, tag = "1")]
    pub place: Place,
    #[prost(string, tag = "2")]
    pub metadata: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Commits {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(message, repeated, tag = "3")]
    pub commits: Vec<Commit>,
    #[prost(uint32, tag = "4")]
    pub slot: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FrontierEntry {
    #[prost(oneof = "FrontierKind", tags = "1, 2")]
    pub kind: Option<FrontierKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum FrontierKind {
    #[prost(message, tag = "1")]
    Claim(Fence),
    #[prost(message, tag = "2")]
    Commits(Commits),
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

#[derive(Clone, PartialEq, Message)]
pub(super) struct Settled {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(uint32, tag = "2")]
    pub replay: u32,
    /// 1: replayed, 2: dropped.
    #[prost(uint32, tag = "3")]
    pub how: u32,
}

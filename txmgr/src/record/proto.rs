//! The messages. A field's number is for good.

use bytes::Bytes;
use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    pub kind: Option<Kind>,
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    #[prost(uint64, tag = "5")]
    pub version: u64,
    /// As a `traceparent`, 55 bytes.
    #[prost(string, optional, tag = "6")]
    pub trace: Option<String>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Kind {
    #[prost(bytes = "bytes", tag = "1")]
    Fence(Bytes),
    #[prost(message, tag = "2")]
    Lra(Lra),
    #[prost(message, tag = "3")]
    Saga(Saga),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Line {
    /// 0: nothing is asked for; else see `words`.
    #[prost(uint32, tag = "1")]
    pub phase: u32,
    #[prost(uint32, tag = "2")]
    pub n: u32,
    #[prost(uint32, tag = "3")]
    pub failures: u32,
    #[prost(uint64, tag = "4")]
    pub not_before_millis: u64,
    #[prost(string, optional, tag = "5")]
    pub last_error: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Links {
    #[prost(string, optional, tag = "1")]
    pub compensate: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub complete: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub status: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub forget: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub after: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub nested: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Participant {
    #[prost(uint32, tag = "1")]
    pub callee: u32,
    #[prost(message, required, tag = "2")]
    pub links: Links,
    #[prost(string, optional, tag = "3")]
    pub data: Option<String>,
    #[prost(uint32, tag = "4")]
    pub status: u32,
    #[prost(message, required, tag = "5")]
    pub line: Line,
    #[prost(bool, tag = "6")]
    pub tried: bool,
    #[prost(bool, tag = "7")]
    pub was_in_progress: bool,
    #[prost(string, optional, tag = "8")]
    pub poll: Option<String>,
    #[prost(bool, tag = "9")]
    pub told_after: bool,
    #[prost(bool, tag = "10")]
    pub told_forget: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parent {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub url: String,
    #[prost(bool, tag = "3")]
    pub enlisted: bool,
    #[prost(bool, tag = "4")]
    pub settled: bool,
    #[prost(message, required, tag = "5")]
    pub line: Line,
    #[prost(bool, tag = "6")]
    pub closing: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Lra {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub origin: Option<Bytes>,
    #[prost(string, tag = "3")]
    pub client: String,
    #[prost(uint32, tag = "4")]
    pub status: u32,
    #[prost(uint64, tag = "5")]
    pub started_millis: u64,
    #[prost(uint64, optional, tag = "6")]
    pub deadline_millis: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub ended_millis: Option<u64>,
    #[prost(message, optional, tag = "8")]
    pub parent: Option<Parent>,
    #[prost(message, repeated, tag = "9")]
    pub participants: Vec<Participant>,
    #[prost(string, repeated, tag = "12")]
    pub left: Vec<String>,
    #[prost(string, tag = "13")]
    pub base: String,
    #[prost(uint32, tag = "10")]
    pub next_callee: u32,
    #[prost(bool, tag = "11")]
    pub forgotten: bool,
    /// Not in records of before it was kept.
    #[prost(message, optional, boxed, tag = "14")]
    pub kept: Option<Box<Kept>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Kept {
    #[prost(bytes = "bytes", tag = "1")]
    pub call: Bytes,
    #[prost(uint32, tag = "2")]
    pub replay: u32,
    #[prost(string, tag = "3")]
    pub component: String,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub outcome: Option<Bytes>,
    #[prost(uint32, tag = "5")]
    pub written: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StepRequest {
    #[prost(string, tag = "1")]
    pub method: String,
    #[prost(string, tag = "2")]
    pub url: String,
    #[prost(string, optional, tag = "3")]
    pub content_type: Option<String>,
    #[prost(bytes = "bytes", tag = "4")]
    pub body: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Step {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, required, tag = "2")]
    pub action: StepRequest,
    #[prost(message, optional, tag = "3")]
    pub compensation: Option<StepRequest>,
    #[prost(uint32, repeated, tag = "4")]
    pub after: Vec<u32>,
    #[prost(uint32, tag = "5")]
    pub status: u32,
    #[prost(message, required, tag = "6")]
    pub line: Line,
    #[prost(uint64, optional, tag = "7")]
    pub pause_until_millis: Option<u64>,
    #[prost(bool, tag = "8")]
    pub still_going: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Saga {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub origin: Option<Bytes>,
    #[prost(uint32, tag = "3")]
    pub status: u32,
    #[prost(uint64, tag = "4")]
    pub started_millis: u64,
    #[prost(uint64, optional, tag = "5")]
    pub deadline_millis: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub ended_millis: Option<u64>,
    #[prost(message, repeated, tag = "7")]
    pub steps: Vec<Step>,
    #[prost(string, optional, tag = "8")]
    pub why: Option<String>,
    #[prost(bool, tag = "9")]
    pub forgotten: bool,
}

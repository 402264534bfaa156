//! The messages of OTLP (`opentelemetry/proto/collector/trace/v1`), as a collector reads and answers them. A field's number is for good. Public for tests that are a collector.
#![allow(missing_docs, reason = "OpenTelemetry says what they mean")]

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(int32, tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    pub links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    /// The flags of `traceparent`, and whether the parent is elsewhere (bits 8 and 9).
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(string, tag = "2")]
    pub message: String,
    /// 0: nothing is said, 1: well, 2: an error.
    #[prost(int32, tag = "3")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    #[prost(oneof = "AnyKind", tags = "1, 2, 3")]
    pub kind: Option<AnyKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum AnyKind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
}

#[derive(Clone, PartialEq, Message)]
pub struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenTelemetry's own library for Python (opentelemetry-proto 1.45) makes of the values below.
    const GOLDEN: &str = "\
        0ae0010a180a160a0c736572766963652e6e616d6512060a046361727412c3010a0c0a07626c7565626f7812013112b2010a100102030405060708090a0b0c0d\
        0e0f10120801020304050607082208090a0b0c0d0e0f102a09504f53542063617274300539010064a7b3b6e00d41020064a7b3b6e00d4a080a016112030a0178\
        4a070a0162120210014a100a0163120b18f9ffffffffffffffff016a380a100102030405060708090a0b0c0d0e0f1012080909090909090909221a0a0c626c75\
        65626f782e6c696e6b120a0a0861636365707465647a0612026e6f1802850101030000";
    const GOLDEN_ANSWER: &str = "0a080803120466756c6c";

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn attribute(key: &str, kind: AnyKind) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { kind: Some(kind) }) }
    }

    #[test]
    fn the_messages_are_those_of_opentelemetry() {
        let span = Span {
            trace_id: (1..=16).collect(),
            span_id: (1..=8).collect(),
            parent_span_id: (9..=16).collect(),
            name: "POST cart".to_owned(),
            kind: 5,
            start_time_unix_nano: 1_000_000_000_000_000_001,
            end_time_unix_nano: 1_000_000_000_000_000_002,
            attributes: vec![attribute("a", AnyKind::Text("x".to_owned())), attribute("b", AnyKind::Bool(true)), attribute("c", AnyKind::Int(-7))],
            links: vec![Link {
                trace_id: (1..=16).collect(),
                span_id: vec![9; 8],
                attributes: vec![attribute("bluebox.link", AnyKind::Text("accepted".to_owned()))],
            }],
            status: Some(Status { message: "no".to_owned(), code: 2 }),
            flags: 0x301,
        };
        let scope = Scope { name: "bluebox".to_owned(), version: "1".to_owned() };
        let resource = Resource { attributes: vec![attribute("service.name", AnyKind::Text("cart".to_owned()))] };
        let spans = ResourceSpans { resource: Some(resource), scope_spans: vec![ScopeSpans { scope: Some(scope), spans: vec![span] }] };
        let request = ExportRequest { resource_spans: vec![spans] };
        assert_eq!(request.encode_to_vec(), bytes(GOLDEN));
        let answer = ExportResponse { partial_success: Some(PartialSuccess { rejected_spans: 3, error_message: "full".to_owned() }) };
        assert_eq!(ExportResponse::decode(&*bytes(GOLDEN_ANSWER)).unwrap(), answer);
    }
}

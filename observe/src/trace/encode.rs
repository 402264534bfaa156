//! Writes what goes to a collector, piece by piece: a span is never anything but the bytes it is sent as.
//!
//! The messages of [`otlp`](super::otlp) say the same; of those, each attribute would be three allocations, in front of a call that waits.

use super::context::Context;
use super::span::Value;

/// The parts of `Span`: field and wire type in one byte, as Protocol Buffers have it.
const TRACE_ID: u8 = 1 << 3 | LENGTH;
const SPAN_ID: u8 = 2 << 3 | LENGTH;
const PARENT_SPAN_ID: u8 = 4 << 3 | LENGTH;
const NAME: u8 = 5 << 3 | LENGTH;
const KIND: u8 = 6 << 3;
const START: u8 = 7 << 3 | FIXED_64;
const END: u8 = 8 << 3 | FIXED_64;
const ATTRIBUTE: u8 = 9 << 3 | LENGTH;
const LINK: u8 = 13 << 3 | LENGTH;
const STATUS: u8 = 15 << 3 | LENGTH;
/// Field 16, which takes two.
const FLAGS: [u8; 2] = [0x80 | FIXED_32, 1];

const FIXED_64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED_32: u8 = 5;

/// An error (`Status.code`).
const ERROR: u8 = 2;
/// Whether it is known if the parent is elsewhere, and whether it is (`Span.flags`).
const KNOWN: u32 = 0x100;
const ELSEWHERE: u32 = 0x200;

/// What of a span is known when it begins.
pub(super) fn begun(span: &mut Vec<u8>, kind: u8, name: &str) {
    field(span, NAME, name.as_bytes());
    span.extend([KIND, kind]);
}

/// What it is below.
pub(super) fn parent(span: &mut Vec<u8>, id: u64) {
    field(span, PARENT_SPAN_ID, &id.to_be_bytes());
}

/// Something that is said of it.
pub(super) fn attribute(span: &mut Vec<u8>, key: &str, value: Value<'_>) {
    key_value(span, ATTRIBUTE, key, value);
}

/// That it points to another.
pub(super) fn link(span: &mut Vec<u8>, to: &Context, what: &str) {
    let mut link = Vec::with_capacity(96);
    field(&mut link, 1 << 3 | LENGTH, &to.trace.to_be_bytes());
    field(&mut link, 2 << 3 | LENGTH, &to.span.to_be_bytes());
    key_value(&mut link, 4 << 3 | LENGTH, "bluebox.link", Value::Text(what));
    field(span, LINK, &link);
}

/// That it did not go well.
pub(super) fn failed(span: &mut Vec<u8>, why: &str) {
    let said = if why.is_empty() { 0 } else { sized(why.len()) };
    span.push(STATUS);
    varint(span, said as u64 + 2);
    if !why.is_empty() {
        field(span, 2 << 3 | LENGTH, why.as_bytes());
    }
    span.extend([3 << 3, ERROR]);
}

/// What is known of it when it has ended. Times are nanoseconds since 1970.
pub(super) fn ended(span: &mut Vec<u8>, context: &Context, elsewhere: bool, start: u64, end: u64) {
    field(span, TRACE_ID, &context.trace.to_be_bytes());
    field(span, SPAN_ID, &context.span.to_be_bytes());
    span.push(START);
    span.extend(start.to_le_bytes());
    span.push(END);
    span.extend(end.to_le_bytes());
    span.extend(FLAGS);
    let flags = u32::from(context.sampled) | KNOWN | if elsewhere { ELSEWHERE } else { 0 };
    span.extend(flags.to_le_bytes());
}

/// What every request says of where its spans come from.
#[derive(Debug)]
pub(super) struct Source {
    /// `ResourceSpans.resource`.
    resource: Vec<u8>,
    /// `ScopeSpans.scope`.
    scope: Vec<u8>,
}

impl Source {
    /// The process has these attributes; what makes the spans has this name and version.
    pub(super) fn new<'t>(attributes: impl Iterator<Item = (&'t str, &'t str)>, name: &str, version: &str) -> Self {
        let (mut inner, mut resource, mut scope) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in attributes {
            key_value(&mut inner, 1 << 3 | LENGTH, key, Value::Text(value));
        }
        field(&mut resource, 1 << 3 | LENGTH, &inner);
        inner.clear();
        field(&mut inner, 1 << 3 | LENGTH, name.as_bytes());
        field(&mut inner, 2 << 3 | LENGTH, version.as_bytes());
        field(&mut scope, 1 << 3 | LENGTH, &inner);
        Self { resource, scope }
    }

    /// What comes before so many bytes of [spans](span) in an `ExportTraceServiceRequest`.
    pub(super) fn before(&self, spans: usize) -> Vec<u8> {
        let scope_spans = self.scope.len() + spans;
        let resource_spans = self.resource.len() + sized(scope_spans);
        let mut before = Vec::with_capacity(sized(resource_spans) - spans);
        before.push(1 << 3 | LENGTH);
        varint(&mut before, resource_spans as u64);
        before.extend_from_slice(&self.resource);
        before.push(2 << 3 | LENGTH);
        varint(&mut before, scope_spans as u64);
        before.extend_from_slice(&self.scope);
        before
    }
}

/// `ScopeSpans.spans`: one more of those that are sent together.
pub(super) fn span(spans: &mut Vec<u8>, span: &[u8]) {
    field(spans, 2 << 3 | LENGTH, span);
}

/// A `KeyValue`, as the field of this tag.
fn key_value(out: &mut Vec<u8>, tag: u8, key: &str, value: Value<'_>) {
    let size = match value {
        Value::Text(text) => sized(text.len()),
        Value::Bool(_) => 2,
        Value::Int(number) => 1 + varint_size(number.cast_unsigned()),
    };
    out.push(tag);
    varint(out, (sized(key.len()) + sized(size)) as u64);
    field(out, 1 << 3 | LENGTH, key.as_bytes());
    out.push(2 << 3 | LENGTH);
    varint(out, size as u64);
    match value {
        Value::Text(text) => field(out, 1 << 3 | LENGTH, text.as_bytes()),
        Value::Bool(yes) => out.extend([2 << 3, u8::from(yes)]),
        Value::Int(number) => {
            out.push(3 << 3);
            varint(out, number.cast_unsigned());
        }
    }
}

fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What [`field`] writes for so many.
const fn sized(length: usize) -> usize {
    1 + varint_size(length as u64) + length
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

const fn varint_size(number: u64) -> usize {
    (70 - (number | 1).leading_zeros() as usize) / 7
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use prost::Message as _;

    use super::super::otlp::{AnyKind, AnyValue, ExportRequest, KeyValue, Link, Resource, ResourceSpans, Scope, ScopeSpans, Span, Status};
    use super::*;

    fn said(key: &str, kind: AnyKind) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { kind: Some(kind) }) }
    }

    /// A span in which each length takes one, two and three bytes, as the message says it and as it is written.
    fn said_and_written(of: &str) -> (Span, Vec<u8>) {
        let (context, link_to) = (Context { trace: 7, span: 8, sampled: true }, Context { trace: u128::MAX, span: 1, sampled: false });
        let numbers = [0, 1, 127, 128, 16_383, 16_384, i64::MAX, -1, i64::MIN];
        let attributes = numbers.iter().map(|number| said("number", AnyKind::Int(*number)));
        let attributes = attributes.chain([said(of, AnyKind::Bool(true)), said("no", AnyKind::Bool(false)), said("text", AnyKind::Text(of.to_owned()))]);
        let message = Span {
            trace_id: context.trace.to_be_bytes().to_vec(),
            span_id: context.span.to_be_bytes().to_vec(),
            parent_span_id: 9_u64.to_be_bytes().to_vec(),
            name: of.to_owned(),
            kind: 4,
            start_time_unix_nano: 1,
            end_time_unix_nano: u64::MAX,
            attributes: attributes.collect(),
            links: vec![Link {
                trace_id: link_to.trace.to_be_bytes().to_vec(),
                span_id: link_to.span.to_be_bytes().to_vec(),
                attributes: vec![said("bluebox.link", AnyKind::Text(of.to_owned()))],
            }],
            status: Some(Status { message: of.to_owned(), code: 2 }),
            flags: 0x301,
        };
        let mut written = Vec::new();
        begun(&mut written, 4, of);
        parent(&mut written, 9);
        for number in numbers {
            attribute(&mut written, "number", Value::Int(number));
        }
        attribute(&mut written, of, Value::Bool(true));
        link(&mut written, &link_to, of);
        attribute(&mut written, "no", Value::Bool(false));
        attribute(&mut written, "text", Value::Text(of));
        failed(&mut written, of);
        ended(&mut written, &context, true, 1, u64::MAX);
        (message, written)
    }

    #[test]
    fn what_is_written_is_what_the_messages_say() {
        let texts = [String::new(), "x".to_owned(), "ä".repeat(200), "y".repeat(20_000)];
        let (messages, written): (Vec<_>, Vec<_>) = texts.iter().map(|text| said_and_written(text)).unzip();
        let source = Source::new([("service.name", "cart"), ("b", "")].into_iter(), "bluebox", "1");
        let scope = Scope { name: "bluebox".to_owned(), version: "1".to_owned() };
        let resource = Resource { attributes: vec![said("service.name", AnyKind::Text("cart".to_owned())), said("b", AnyKind::Text(String::new()))] };
        for spans in 0..=messages.len() {
            let scope_spans = vec![ScopeSpans { scope: Some(scope.clone()), spans: messages[..spans].to_vec() }];
            let message = ExportRequest { resource_spans: vec![ResourceSpans { resource: Some(resource.clone()), scope_spans }] };
            let mut after = Vec::new();
            written[..spans].iter().for_each(|written| span(&mut after, written));
            let before = source.before(after.len());
            assert_eq!(before.capacity(), before.len(), "its size is known before");
            assert_eq!(ExportRequest::decode((&*before).chain(&*after)).unwrap(), message);
        }
    }
}

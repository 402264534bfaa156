//! The call and its outcome as values: parsed parts, never raw heads.
//!
//! What apps say to each other may be secret, so as text for logs (`Debug`) a call has the names of its fields and the length of its content, and no value, no query, no key.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::log::{Offset, TopicPartition};
use crate::{CallId, ComponentName};

/// One HTTP request on its way to a component.
#[derive(Clone, PartialEq)]
pub struct Call {
    /// Its id for life.
    pub id: CallId,
    /// How often an operator has replayed it out of the dead letters; 0 for the first life. An outcome belongs to id and replay.
    pub replay: u32,
    /// Who calls: the caller's component, or the gateway's name.
    pub caller: ComponentName,
    /// Who is called.
    pub callee: ComponentName,
    /// Calls with the same one are delivered in log order, one at a time.
    pub ordering_key: Option<Bytes>,
    /// Where the caller awaits the outcome.
    pub reply_to: ReplyAddress,
    /// How long after its append the call stays deliverable; its deadline is append time + this.
    pub ttl: Duration,
    /// How long the caller's connection is held after the append; `None` when nobody waits (`respond-async`).
    pub wait: Option<Duration>,
    /// For a recorded call (`Idempotency-Key` or `respond-async`): a digest of what must be the same when it comes again. `None`: not recorded.
    pub recorded: Option<Digest>,
    /// The request.
    pub request: Request,
}

/// The longest encoded outcome that the record of a transaction keeps for the call that ended it, in bytes.
pub const MAX_KEPT_OUTCOME_BYTES: usize = 64 << 10;

/// SHA-256 of the parts of a recorded call that must not change between retries.
pub type Digest = [u8; 32];

/// Where the outcome of a call is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyAddress {
    /// The reply partition of the caller.
    pub partition: TopicPartition,
    /// The caller's read position there when it sent the call: the outcome can only lie at or above it.
    pub position: Offset,
}

/// An HTTP request as parsed parts (RFC 9110), without hop-by-hop fields.
#[derive(Clone, PartialEq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query in origin form (RFC 9112, section 3.2.1); `*` for OPTIONS of the server.
    pub target: String,
    /// The authority that the caller named: `cart`, `cart:8080`. Becomes the Host of the delivery.
    pub authority: String,
    /// End-to-end fields, repeated ones in their order.
    pub headers: HeaderMap,
    /// The content.
    pub body: Body,
    /// Trailer fields; empty if there were none.
    pub trailers: HeaderMap,
}

/// Content: in the record, or in chunks elsewhere.
#[derive(Clone, PartialEq)]
pub enum Body {
    /// In the record.
    Inline(Bytes),
    /// In chunk records that were durable before this record was appended.
    Bulk(BulkBody),
}

impl Body {
    /// No content.
    pub const fn empty() -> Self {
        Self::Inline(Bytes::new())
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Bulk(bulk) => bulk.len_bytes,
        }
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the chunks of a large body lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkBody {
    /// The partition that has them all.
    pub partition: TopicPartition,
    /// Their offsets, in the order of the content. Not always adjacent (others write there too), nor always rising (one that failed was appended again).
    pub chunks: Vec<Offset>,
    /// The length of the content in bytes.
    pub len_bytes: u64,
}

/// What ended a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Which call.
    pub id: CallId,
    /// Which life of it.
    pub replay: u32,
    /// How many deliveries had been begun; 0 when there was none.
    pub attempts: u32,
    /// For a recorded call: its digest. Another call with the same `Idempotency-Key` has the same id, and must not take this for its own.
    pub digest: Option<Digest>,
    /// Who says so.
    pub source: Source,
    /// The response that the caller gets.
    pub response: Response,
}

/// Who made an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The app answered.
    App,
    /// The proxy gave the call up or refused it: a problem document (RFC 9457).
    Proxy(Reason),
}

/// Why a proxy ended a call itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Too many failed attempts, now a dead letter (502).
    Attempts,
    /// Its box died of it too often, now a dead letter (502).
    Poison,
    /// Its deadline passed without an outcome, now a dead letter (502).
    Deadline,
    /// The answer was over the size limit or never ended; the app did act (502).
    Answer,
    /// The same `Idempotency-Key` came with another method, target or body (422).
    KeyReused,
    /// No room for another recorded call; it was not delivered (503).
    RecordedFull,
    /// It was cancelled (499, as nginx has it).
    Cancelled,
    /// The path's rule about transactions does not let it in, or its transaction has ended otherwise (412).
    Transaction,
    /// Its transaction could not be begun or joined; the app did not get it (503).
    NoCoordinator,
}

/// An HTTP response as parsed parts, without hop-by-hop fields.
#[derive(Clone, PartialEq)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The reason phrase where it is not the usual one (RFC 9112, section 4).
    pub reason: Option<Bytes>,
    /// End-to-end fields, repeated ones in their order.
    pub headers: HeaderMap,
    /// The content.
    pub body: Body,
    /// Trailer fields; empty if there were none.
    pub trailers: HeaderMap,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, replay, caller, callee, ordering_key, reply_to, ttl, wait, recorded, request } = self;
        let mut shown = f.debug_struct("Call");
        shown.field("id", id).field("replay", replay).field("caller", caller).field("callee", callee).field("ordered", &ordering_key.is_some());
        shown.field("reply_to", reply_to).field("ttl", ttl).field("wait", wait).field("recorded", &recorded.is_some()).field("request", request).finish()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, target, authority, headers, body, trailers } = self;
        let path = target.split('?').next().unwrap_or_default();
        let mut shown = f.debug_struct("Request");
        shown.field("method", method).field("authority", authority).field("path", &path);
        shown.field("headers", &Names(headers)).field("body", body).field("trailers", &Names(trailers)).finish()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, reason: _, headers, body, trailers } = self;
        let mut shown = f.debug_struct("Response");
        shown.field("status", status).field("headers", &Names(headers)).field("body", body).field("trailers", &Names(trailers)).finish_non_exhaustive()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::Bulk(bulk) => f.debug_tuple("Bulk").field(bulk).finish(),
        }
    }
}

/// The names of fields.
struct Names<'h>(&'h HeaderMap);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::log::Topic;

    #[test]
    fn no_secret_is_in_the_text_for_logs() {
        const SECRET: &str = "geheim";
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static(SECRET))]);
        let body = Body::Inline(Bytes::from_static(SECRET.as_bytes()));
        let response = Response {
            status: StatusCode::OK,
            reason: Some(Bytes::from_static(SECRET.as_bytes())),
            headers: headers.clone(),
            body: body.clone(),
            trailers: headers.clone(),
        };
        let request = Request {
            method: Method::POST,
            target: format!("/items?token={SECRET}"),
            authority: "cart".to_owned(),
            headers: headers.clone(),
            body,
            trailers: headers,
        };
        let name = ComponentName::try_new("cart").unwrap();
        let call = Call {
            id: CallId::random(),
            replay: 0,
            caller: name.clone(),
            callee: name,
            ordering_key: Some(Bytes::from_static(SECRET.as_bytes())),
            reply_to: ReplyAddress { partition: Topic::new("r").partition(0), position: Offset::new(0) },
            ttl: Duration::ZERO,
            wait: None,
            recorded: None,
            request,
        };
        let outcome = Outcome { id: call.id, replay: 0, attempts: 1, digest: None, source: Source::App, response };
        let text = format!("{call:?} {outcome:?}");
        assert!(!text.contains(SECRET) && !text.contains(&format!("{:?}", SECRET.as_bytes())), "{text}");
        assert!(text.contains("authorization") && text.contains("/items") && text.contains("6 bytes") && text.contains(&call.id.to_string()), "{text}");
    }
}

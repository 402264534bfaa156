//! The proxy's own errors: problem documents (RFC 9457) that say they are the proxy's, which call they are about, and whether a retry is safe.

use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::call::{Body, Reason, Response};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde::Serialize;

use crate::fields;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What is wrong, for each thing that the proxy says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can't be understood, or two readers could understand it differently.
    BadRequest,
    /// The request body has a transfer coding that is not understood.
    UnknownCoding,
    /// The request head is over the limit.
    HeadTooLarge,
    /// The request body is over the component's limit.
    TooLarge,
    /// The request head did not arrive in time.
    SlowHead,
    /// The request body stood still for too long.
    SlowBody,
    /// The request would come back to this proxy itself.
    Loop,
    /// An exchange that can't be durable (upgrade, CONNECT, gRPC) to a component that doesn't take such.
    StreamRefused,
    /// The host names an ordinal that a stateful component can't have.
    NoSuchOrdinal,
    /// The proxy hasn't read the registry to its end yet, so it doesn't know what is a component.
    NotReady,
    /// The call is provably not in the log.
    NotAccepted,
    /// As many calls as the proxy may hold are waiting already.
    TooManyWaiting,
    /// The log did not say whether it has the call.
    AcceptanceUnknown,
    /// The call was accepted and has no outcome within the wait.
    NoOutcomeYet,
    /// The outcome of the call can't be read: its body isn't where it was.
    OutcomeUnreadable,
    /// What is no component could not be reached.
    PassThroughFailed,
    /// What is no component did not take the connection in time.
    PassThroughTimeout,
    /// There is no such resource at `http://bluebox/`, or the id is malformed.
    NoSuchResource,
    /// The resource of Bluebox doesn't take this method.
    MethodNotAllowed,
    /// The call is older than what is kept of it.
    CallGone,
    /// The log can't be asked now.
    LogAway,
    /// A proxy ended the call itself.
    Ended(Reason),
    /// A mistake in Bluebox itself.
    Internal,
}

/// Every kind, for the reference in the docs and for tests.
pub const KINDS: [Kind; 31] = [
    Kind::BadRequest,
    Kind::UnknownCoding,
    Kind::HeadTooLarge,
    Kind::TooLarge,
    Kind::SlowHead,
    Kind::SlowBody,
    Kind::Loop,
    Kind::StreamRefused,
    Kind::NoSuchOrdinal,
    Kind::NotReady,
    Kind::NotAccepted,
    Kind::TooManyWaiting,
    Kind::AcceptanceUnknown,
    Kind::NoOutcomeYet,
    Kind::OutcomeUnreadable,
    Kind::PassThroughFailed,
    Kind::PassThroughTimeout,
    Kind::NoSuchResource,
    Kind::MethodNotAllowed,
    Kind::CallGone,
    Kind::LogAway,
    Kind::Ended(Reason::Attempts),
    Kind::Ended(Reason::Poison),
    Kind::Ended(Reason::Deadline),
    Kind::Ended(Reason::Answer),
    Kind::Ended(Reason::KeyReused),
    Kind::Ended(Reason::RecordedFull),
    Kind::Ended(Reason::Cancelled),
    Kind::Ended(Reason::Transaction),
    Kind::Ended(Reason::NoCoordinator),
    Kind::Internal,
];

impl Kind {
    /// The word that stands in `bluebox-error` and at the end of the document's `type`.
    pub const fn word(self) -> &'static str {
        self.row().0
    }

    /// The status that it is answered with.
    pub const fn status(self) -> StatusCode {
        self.row().1
    }

    /// The document's `title`.
    pub const fn title(self) -> &'static str {
        self.row().2
    }

    /// Whether, with nothing more known, sending the request again can't make two of it: it provably was not, and will not be, delivered.
    pub const fn retry_safe(self) -> bool {
        use Reason::{Answer, Attempts, Cancelled, Deadline, KeyReused, NoCoordinator, Poison, RecordedFull, Transaction};
        match self {
            Self::AcceptanceUnknown | Self::NoOutcomeYet | Self::OutcomeUnreadable | Self::PassThroughFailed | Self::Internal => false,
            Self::Ended(Attempts | Poison | Deadline | Answer | Cancelled) => false,
            // An attempt before this one may have reached the app.
            Self::Ended(Transaction | NoCoordinator) => false,
            Self::Ended(KeyReused | RecordedFull) => true,
            _ => true,
        }
    }

    const fn row(self) -> (&'static str, StatusCode, &'static str) {
        const CLIENT_CLOSED_REQUEST: StatusCode = match StatusCode::from_u16(499) {
            Ok(status) => status,
            Err(_) => StatusCode::BAD_REQUEST,
        };
        match self {
            Self::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, "The request can't be understood"),
            Self::UnknownCoding => ("unknown-coding", StatusCode::NOT_IMPLEMENTED, "The request body has a transfer coding that is not understood"),
            Self::HeadTooLarge => ("head-too-large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large"),
            Self::TooLarge => ("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request body is too large"),
            Self::SlowHead => ("slow-head", StatusCode::REQUEST_TIMEOUT, "The request head did not arrive in time"),
            Self::SlowBody => ("slow-body", StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time"),
            Self::Loop => ("loop", StatusCode::LOOP_DETECTED, "The request would come back to this proxy"),
            Self::StreamRefused => ("stream-refused", StatusCode::NOT_IMPLEMENTED, "This exchange can't be durable"),
            // Neither 404, which is an app's, nor 503: there is no use in trying again.
            Self::NoSuchOrdinal => ("no-such-ordinal", StatusCode::BAD_REQUEST, "The component has no such ordinal"),
            Self::NotReady => ("not-ready", StatusCode::SERVICE_UNAVAILABLE, "The proxy does not know the components yet"),
            Self::NotAccepted => ("not-accepted", StatusCode::SERVICE_UNAVAILABLE, "The call was not accepted"),
            Self::TooManyWaiting => ("too-many-waiting", StatusCode::SERVICE_UNAVAILABLE, "Too many calls are waiting"),
            Self::AcceptanceUnknown => ("acceptance-unknown", StatusCode::GATEWAY_TIMEOUT, "It is not known whether the call was accepted"),
            Self::NoOutcomeYet => ("no-outcome-yet", StatusCode::GATEWAY_TIMEOUT, "The call was accepted and has no outcome yet"),
            Self::OutcomeUnreadable => ("outcome-unreadable", StatusCode::BAD_GATEWAY, "The call has ended, but its outcome can't be read"),
            Self::PassThroughFailed => ("pass-through-failed", StatusCode::BAD_GATEWAY, "The server could not be reached"),
            Self::PassThroughTimeout => ("pass-through-timeout", StatusCode::GATEWAY_TIMEOUT, "The server did not take the connection in time"),
            // 404 only ever comes from an app.
            Self::NoSuchResource => ("no-such-resource", StatusCode::BAD_REQUEST, "Bluebox has no such resource"),
            Self::MethodNotAllowed => ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "The resource does not take this method"),
            Self::CallGone => ("call-gone", StatusCode::GONE, "The call is older than what is kept of it"),
            Self::LogAway => ("log-away", StatusCode::SERVICE_UNAVAILABLE, "The log can't be reached"),
            Self::Ended(Reason::Attempts) => ("attempts", StatusCode::BAD_GATEWAY, "Too many attempts failed: the call is a dead letter"),
            Self::Ended(Reason::Poison) => ("poison", StatusCode::BAD_GATEWAY, "Boxes died of it: the call is a dead letter"),
            Self::Ended(Reason::Deadline) => ("deadline", StatusCode::BAD_GATEWAY, "The deadline passed without an answer: the call is a dead letter"),
            Self::Ended(Reason::Answer) => ("answer", StatusCode::BAD_GATEWAY, "The app's answer was too large or never ended"),
            Self::Ended(Reason::KeyReused) => ("key-reused", StatusCode::UNPROCESSABLE_ENTITY, "The Idempotency-Key belongs to another request"),
            Self::Ended(Reason::RecordedFull) => ("recorded-full", StatusCode::SERVICE_UNAVAILABLE, "No room for another recorded call"),
            Self::Ended(Reason::Cancelled) => ("cancelled", CLIENT_CLOSED_REQUEST, "The call was cancelled"),
            Self::Ended(Reason::Transaction) => ("transaction", StatusCode::PRECONDITION_FAILED, "The call's transaction does not allow it"),
            Self::Ended(Reason::NoCoordinator) => ("no-coordinator", StatusCode::SERVICE_UNAVAILABLE, "The call's transaction could not be begun"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "A mistake in Bluebox"),
        }
    }

    const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::NotReady | Self::NotAccepted | Self::TooManyWaiting | Self::LogAway | Self::Ended(Reason::RecordedFull | Reason::NoCoordinator) => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }
}

/// One error of the proxy, on its way to a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    detail: String,
    call: Option<CallId>,
    retry_safe: bool,
    closes: bool,
}

#[derive(Serialize)]
struct Document<'p> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'p str,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<String>,
    retry_safe: bool,
}

impl Problem {
    /// A problem; `detail` names the thing, the value and the remedy.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), call: None, retry_safe: kind.retry_safe(), closes: false }
    }

    /// The same, about this call.
    #[must_use]
    pub fn about(mut self, call: CallId) -> Self {
        self.call = Some(call);
        self
    }

    /// The same, with more known of whether a retry is safe.
    #[must_use]
    pub fn retry_safe(mut self, safe: bool) -> Self {
        self.retry_safe = safe;
        self
    }

    /// The same, after which nothing more can be read from the connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// The call that it is about.
    pub fn call(&self) -> Option<CallId> {
        self.call
    }

    /// What is wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The response that is recorded as the outcome of a call that a proxy ended itself.
    pub fn for_reason(reason: Reason, call: CallId, detail: impl Into<String>) -> Response {
        let problem = Self::new(Kind::Ended(reason), detail).about(call);
        Response { status: problem.kind.status(), reason: None, headers: problem.headers(), body: Body::Inline(problem.document()), trailers: HeaderMap::new() }
    }

    /// The response that the caller gets now.
    pub fn into_response(self) -> http::Response<Bytes> {
        let mut response = http::Response::new(self.document());
        *response.status_mut() = self.kind.status();
        *response.headers_mut() = self.headers();
        if self.closes {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn document(&self) -> Bytes {
        let document = Document {
            r#type: format!("urn:bluebox:problem:{}", self.kind.word()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            call: self.call.map(|id| id.to_string()),
            retry_safe: self.retry_safe,
        };
        // Strings, a number and a bool: there is nothing in it that could fail.
        let mut bytes = serde_json::to_vec(&document).unwrap_or_default();
        // For those who look at it with curl.
        bytes.push(b'\n');
        bytes.into()
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(fields::ERROR, HeaderValue::from_static(self.kind.word()));
        headers.insert(fields::RETRY_SAFE, HeaderValue::from_static(if self.retry_safe { "true" } else { "false" }));
        if let Some(value) = self.call.and_then(|id| HeaderValue::try_from(id.to_string()).ok()) {
            headers.insert(fields::CALL_ID, value);
        }
        if let Some(after) = self.kind.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        headers
    }
}

/// Whether a request may be sent again although an earlier one may still be delivered: it changes nothing (RFC 9110, section 9.2.1), or its key lets it find
/// the earlier one. PUT and DELETE are idempotent, but not against one that comes late.
pub fn can_be_repeated(method: &Method, keyed: bool) -> bool {
    keyed || method.is_safe()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_whose_it_is_and_what_can_be_done() {
        let id = CallId::random();
        let response = Problem::for_reason(Reason::Poison, id, "3 boxes \"died\"");
        assert_eq!(response.status, 502);
        assert_eq!(response.headers[fields::ERROR], "poison");
        assert_eq!(response.headers[fields::RETRY_SAFE], "false");
        assert_eq!(response.headers[fields::CALL_ID], id.to_string().as_str());
        assert_eq!(response.headers[header::CONTENT_TYPE], MEDIA_TYPE);
        let Body::Inline(body) = response.body else { panic!("a problem is small") };
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(document["type"], "urn:bluebox:problem:poison");
        assert_eq!(document["status"], 502);
        assert_eq!(document["detail"], "3 boxes \"died\"");
        assert_eq!(document["call"], id.to_string());
        assert_eq!(document["retry_safe"], false);
    }

    #[test]
    fn each_kind_has_a_word_of_its_own_and_none_is_404() {
        let words: std::collections::BTreeSet<_> = KINDS.iter().map(|k| k.word()).collect();
        assert_eq!(words.len(), KINDS.len());
        for kind in KINDS {
            assert!(kind.status().is_client_error() || kind.status().is_server_error());
            assert_ne!(kind.status(), StatusCode::NOT_FOUND, "404 only ever comes from an app");
        }
    }

    #[test]
    fn what_was_not_accepted_can_be_tried_again_later() {
        let response = Problem::new(Kind::NotAccepted, "the log is away").into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()[fields::RETRY_SAFE], "true");
        assert!(!Problem::new(Kind::NoOutcomeYet, "").into_response().headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn only_what_changes_nothing_or_has_a_key_can_be_repeated() {
        assert!(can_be_repeated(&Method::GET, false));
        assert!(!can_be_repeated(&Method::PUT, false));
        assert!(can_be_repeated(&Method::POST, true));
    }

    #[test]
    fn the_docs_have_each_kind_as_it_is() {
        let docs = include_str!("../../docs/http.md");
        for kind in KINDS {
            let row = format!("| `{}` | {} | ", kind.word(), kind.status().as_u16());
            let found = docs.lines().find_map(|l| l.strip_prefix(&row)).unwrap_or_else(|| panic!("docs/http.md has no row {row:?}"));
            if kind != Kind::PassThroughFailed {
                assert!(found.starts_with(if kind.retry_safe() { "true |" } else { "false" }), "{row}{found}");
            }
        }
    }
}

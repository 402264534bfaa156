//! The answers that say no: problem documents (RFC 9457), with the status code that the wire has for them.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::effect::Refusal;

/// An answer.
pub(super) type Answered = Response<Full<Bytes>>;

/// Why a request is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    word: &'static str,
    title: &'static str,
    detail: String,
    allow: Option<&'static str>,
    again: bool,
}

impl Problem {
    fn new(status: u16, word: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, word, title, detail: detail.into(), allow: None, again: false }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(400, "malformed", "The request makes no sense", detail)
    }

    pub(super) fn no_such_resource(path: &str) -> Self {
        let path: String = path.chars().take(80).collect();
        Self::new(404, "no-such-resource", "There is no such resource", format!("{path:?} is nothing that the transaction manager has"))
    }

    pub(super) fn unknown(detail: impl Into<String>) -> Self {
        Self::new(404, "unknown", "There is no such transaction", detail)
    }

    pub(super) fn gone(detail: impl Into<String>) -> Self {
        Self::new(410, "gone", "The transaction is not kept any more", detail)
    }

    pub(super) fn method(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(405, "method-not-allowed", "The resource has no such method", format!("it has {allow}")) }
    }

    pub(super) fn version(detail: impl Into<String>) -> Self {
        Self::new(417, "unsupported-version", "This version of the interface is not spoken", detail)
    }

    pub(super) fn refused_url(detail: impl Into<String>) -> Self {
        Self::new(412, "refused-url", "Nobody will be called there", detail)
    }

    pub(super) fn no_data(detail: impl Into<String>) -> Self {
        Self::new(412, "no-data", "Participants of this version leave no data", detail)
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(413, "too-large", "The request is too large", detail)
    }

    pub(super) fn not_served() -> Self {
        let detail = "nobody serves this transaction at the moment: its owner has just changed. Nothing was done; try again";
        Self { again: true, ..Self::new(503, "not-served", "Try again", detail) }
    }

    pub(super) fn registry_unread() -> Self {
        let detail = "it can't be told now whether a component that is named has registered: the log is away, or slow. Nothing was done; try again";
        Self { again: true, ..Self::new(503, "registry-unread", "Try again", detail) }
    }

    /// A machine has refused.
    pub(super) fn refusal(refusal: &Refusal) -> Self {
        let (word, title) = match refusal {
            Refusal::NotActive(..) => ("not-active", "The transaction is not active"),
            Refusal::OtherEnd(..) => ("other-end", "The other end was decided"),
            Refusal::NoSuchParticipant(_) => ("no-such-participant", "There is no such participant"),
            Refusal::NoParent(_) => ("no-parent", "The parent is not there, or not active any more"),
            Refusal::Full(_) => ("full", "The transaction is full"),
            Refusal::NotEnding(..) => ("not-ending", "The transaction waits for nobody"),
            Refusal::NotEnded(..) => ("not-ended", "The transaction has not ended"),
            Refusal::NotFailed(..) => ("not-failed", "The transaction has not failed"),
            Refusal::OtherKind(_) => ("other-kind", "The transaction is of another kind"),
            Refusal::NoOutcome(_) => ("no-outcome", "No outcome of this call is kept"),
            Refusal::OutcomeNotKept(_) => ("outcome-not-kept", "The outcome of this call is not kept"),
        };
        Self::new(refusal.status_code(), word, title, refusal.to_string())
    }

    /// Whether it is about a participant that is none.
    pub(super) fn is_no_such_participant(&self) -> bool {
        self.word == "no-such-participant"
    }

    /// Whether the other end was decided than the one that was asked for.
    pub(super) fn is_other_end(&self) -> bool {
        self.word == "other-end"
    }

    /// With another status code.
    pub(super) fn coded(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn answer(&self) -> Answered {
        let document = json!({
            "type": format!("urn:bluebox:txmgr:{}", self.word), "title": self.title, "status": self.status.as_u16(), "detail": self.detail,
        });
        let mut response = Response::new(Full::from(document.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.again {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

//! What the proxy asks of the coordinator of transactions, by durable calls as any app makes them: `http://txmgr/lra-coordinator` speaks MicroProfile LRA.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::{Body, Call, MAX_KEPT_OUTCOME_BYTES, Outcome, Source};
use bluebox_core::wire::Reply;
use bluebox_core::{CallId, ComponentName};
use bluebox_observe::trace::{Context, TRACEPARENT};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};

use super::COORDINATOR;
use crate::outbound::OutboundSide;
use crate::outbound::envelope::IDEMPOTENCY_KEY;
use crate::outbound::prefer::PREFER;

/// Below it the coordinator has its resources.
const BASE: &str = "/lra-coordinator/";

/// On the answer to a join, and then on the call to the app: where the participant's record is.
pub const RECOVERY: HeaderName = HeaderName::from_static("long-running-action-recovery");

/// On an end, whose content is an encoded outcome, and on the question for that: the call that it is of. A coordinator that does not know it keeps nothing.
const OUTCOME_OF: HeaderName = HeaderName::from_static("txmgr-outcome-of");

/// On the answer to an end: `other`, if another outcome is kept for the same call.
const OUTCOME: HeaderName = HeaderName::from_static("txmgr-outcome");

const API_VERSION: HeaderName = HeaderName::from_static("narayana-lra-api-version");

/// How long one call to the coordinator is waited for; then it is made again.
const WAIT_SECONDS: &str = "wait=30";

/// Under so many keys it is tried to begin one LRA. Each answer is recorded under its key, those that say nothing too, such as 503; whoever asks again goes through the same keys in the same order.
const MOST_KEYS: u32 = 8;

/// The longest path of an LRA, in bytes.
const LONGEST_ID_BYTES: usize = 2048;

/// The way to the coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    side: Arc<OutboundSide>,
    /// Below which span it is asked.
    trace: Option<Context>,
}

/// Which LRA, as this coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LraPath(String);

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// The coordinator did not answer, or not for good: it can be asked again.
    NotNow(String),
    /// It said no.
    Refused(StatusCode, String),
}

/// How an LRA was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it was asked for.
    AsAsked,
    /// So it was, and another delivery of the same call has said so before, with another outcome: that one counts.
    Before,
}

/// The outcome of a call that has ended its LRA.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    /// This one.
    Outcome(Box<Outcome>),
    /// It was too long to be kept, or it is not kept any more.
    NotAny,
    /// None was told: the LRA was ended by somebody else, or its coordinator keeps none.
    Nothing,
}

/// What has become of an LRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is open.
    Active,
    /// It is closed, or will be for certain.
    Closed,
    /// It is cancelled, or will be for certain; or nobody knows it any more.
    Cancelled,
}

impl LraPath {
    /// Of a context: whatever host it names, it is asked of the coordinator under its own name. So a call can't lead the proxy anywhere else.
    pub fn of(context: &HeaderValue) -> Option<Self> {
        let url = context.to_str().ok()?.trim();
        let after_scheme = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
        let path = &after_scheme[after_scheme.find('/')?..];
        // A nested LRA's URL may name its parent in its query.
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let id = path.strip_prefix(BASE)?.trim_end_matches('/');
        let is_id = !id.is_empty() && id.len() <= LONGEST_ID_BYTES && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%:".contains(&b));
        (is_id && !id.bytes().all(|b| b == b'.')).then(|| Self(format!("{BASE}{id}")))
    }
}

impl Coordinator {
    /// Reached by the calls out of this proxy.
    pub fn new(side: Arc<OutboundSide>) -> Self {
        Self { side, trace: None }
    }

    /// The same, asked below this span.
    #[must_use]
    pub fn below(&self, trace: Option<Context>) -> Self {
        Self { side: Arc::clone(&self.side), trace }
    }

    /// Begins an LRA for a call. However often it is asked for the same call, from whichever box, it is the same one: the call has an `Idempotency-Key`.
    ///
    /// # Errors
    /// When there is none now, or the coordinator says no.
    pub async fn begin(&self, component: &ComponentName, call: &Call, time_limit: Duration, parent: Option<&HeaderValue>) -> Result<HeaderValue, Undone> {
        let parent = parent.and_then(|parent| parent.to_str().ok()).map(|parent| format!("&ParentLRA={}", encoded(parent))).unwrap_or_default();
        let target = format!("{BASE}start?ClientID={component}%3A{}&TimeLimit={}{parent}", call.id, time_limit.as_millis());
        // A rule that was changed meanwhile asks for something else. Under the same key that would be refused.
        let digest = Sha256::digest(&target);
        let key = format!("begin-{}-{}-{}", call.id, call.replay, digest[..8].iter().map(|b| format!("{b:02x}")).collect::<String>());
        let mut number = 1;
        let answer = loop {
            let answer = self.ask(Method::POST, &target, Some(&format!("{key}-{number}")), HeaderMap::new(), Bytes::new()).await?;
            if number == MOST_KEYS || !answer.response.status.is_server_error() {
                break answer;
            }
            number += 1;
        };
        let location = answer.response.headers.get(header::LOCATION).cloned();
        let location = location.or_else(|| HeaderValue::from_str(text(&answer).trim()).ok());
        match (answer.response.status, location) {
            (StatusCode::OK | StatusCode::CREATED, Some(lra)) if LraPath::of(&lra).is_some() => Ok(lra),
            (status, _) => Err(Undone::Refused(status, excerpt(&answer))),
        }
    }

    /// Enlists a participant with these links. It is durable when this returns; what is said again changes nothing. Gives back where its record is.
    ///
    /// # Errors
    /// When that can't be done now, or the LRA takes no more: 412.
    pub async fn join(&self, lra: &LraPath, links: &str) -> Result<Option<HeaderValue>, Undone> {
        let mut fields = HeaderMap::new();
        let links = HeaderValue::from_str(links).map_err(|e| Undone::Refused(StatusCode::BAD_REQUEST, format!("{links:?}: {e}")))?;
        fields.insert(header::LINK, links);
        let answer = self.ask(Method::PUT, &format!("{}?TimeLimit=0", lra.0), None, fields, Bytes::new()).await?;
        if !answer.response.status.is_success() {
            return Err(Undone::Refused(answer.response.status, excerpt(&answer)));
        }
        let headers = &answer.response.headers;
        Ok(headers.get(RECOVERY).or_else(|| headers.get(header::LOCATION)).cloned())
    }

    /// Closes or cancels. It is decided, for good, when this returns, and the outcome of the call is kept with the decision; participants are told by and by.
    ///
    /// # Errors
    /// When it is not known whether it is, or it was decided otherwise: 412.
    pub async fn end(&self, lra: &LraPath, close: bool, outcome: &Outcome) -> Result<Ended, Undone> {
        let verb = if close { "close" } else { "cancel" };
        let encoded = Reply::Outcome(Box::new(outcome.clone())).encode();
        // Of one that is too long it is kept that it was.
        let encoded = if encoded.len() > MAX_KEPT_OUTCOME_BYTES { Bytes::new() } else { encoded };
        let answer = self.ask(Method::PUT, &format!("{}/{verb}", lra.0), None, outcome_of(outcome.id, outcome.replay)?, encoded).await?;
        // A coordinator may answer 200 and say in the body which end it has come to.
        let other = if close { text(&answer).contains("Cancel") } else { text(&answer).contains("Clos") };
        if !answer.response.status.is_success() || other {
            return Err(Undone::Refused(answer.response.status, excerpt(&answer)));
        }
        Ok(if answer.response.headers.contains_key(OUTCOME) { Ended::Before } else { Ended::AsAsked })
    }

    /// The outcome of a call that has ended an LRA, as another delivery of it has told it with the end.
    ///
    /// # Errors
    /// When the coordinator can't say now.
    pub async fn outcome(&self, lra: &LraPath, call: &Call) -> Result<Kept, Undone> {
        let answer = self.ask(Method::GET, &format!("{}/outcome", lra.0), None, outcome_of(call.id, call.replay)?, Bytes::new()).await?;
        let encoded = match (answer.response.status, &answer.response.body) {
            (StatusCode::OK, Body::Inline(encoded)) => encoded.clone(),
            (StatusCode::GONE, _) => return Ok(Kept::NotAny),
            _ => return Ok(Kept::Nothing),
        };
        match Reply::decode(encoded) {
            Ok(Reply::Outcome(outcome)) if (outcome.id, outcome.replay, outcome.digest) == (call.id, call.replay, call.recorded) => Ok(Kept::Outcome(outcome)),
            _ => Ok(Kept::Nothing),
        }
    }

    /// What has become of an LRA.
    ///
    /// # Errors
    /// When the coordinator can't say.
    pub async fn fate(&self, lra: &LraPath) -> Result<Fate, Undone> {
        let fields = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("text/plain"))]);
        let answer = self.ask(Method::GET, &format!("{}/status", lra.0), None, fields, Bytes::new()).await?;
        match (answer.response.status, text(&answer).trim().trim_matches('"')) {
            (StatusCode::OK, "Active") => Ok(Fate::Active),
            (StatusCode::OK, "Closing" | "Closed" | "FailedToClose") => Ok(Fate::Closed),
            (StatusCode::OK, "Cancelling" | "Cancelled" | "FailedToCancel") | (StatusCode::NOT_FOUND | StatusCode::GONE, _) => Ok(Fate::Cancelled),
            (status, _) => Err(Undone::NotNow(format!("the status of an LRA: {status} {}", excerpt(&answer)))),
        }
    }

    async fn ask(&self, method: Method, target: &str, key: Option<&str>, fields: HeaderMap, content: Bytes) -> Result<Arc<Outcome>, Undone> {
        let request = Request::builder()
            .method(&method)
            .uri(target)
            .header(header::HOST, COORDINATOR)
            .header(PREFER, WAIT_SECONDS)
            .header(API_VERSION, "2.0")
            .body(Full::new(content));
        let (mut head, body) = request.map_err(|e| Undone::Refused(StatusCode::BAD_REQUEST, format!("{method} {target}: {e}")))?.into_parts();
        head.headers.extend(fields);
        if let Some(trace) = self.trace {
            head.headers.insert(TRACEPARENT, trace.value());
        }
        if let Some(key) = key {
            let key = HeaderValue::from_str(key).map_err(|e| Undone::Refused(StatusCode::BAD_REQUEST, e.to_string()))?;
            head.headers.insert(IDEMPOTENCY_KEY, key);
        }
        let outcome = self.side.errand(head, body).await.map_err(|problem| Undone::NotNow(format!("http://{COORDINATOR}: {}", problem.kind().title())))?;
        let status = outcome.response.status;
        // What is recorded under a key stays so.
        let for_good = key.is_some() || (outcome.source == Source::App && !status.is_server_error());
        if for_good { Ok(outcome) } else { Err(Undone::NotNow(format!("{method} http://{COORDINATOR}{target}: {status} {}", excerpt(&outcome)))) }
    }
}

fn outcome_of(call: CallId, replay: u32) -> Result<HeaderMap, Undone> {
    let value = HeaderValue::from_str(&format!("{call}/{replay}")).map_err(|e| Undone::Refused(StatusCode::BAD_REQUEST, e.to_string()))?;
    Ok(HeaderMap::from_iter([(OUTCOME_OF, value)]))
}

fn text(outcome: &Outcome) -> &str {
    match &outcome.response.body {
        Body::Inline(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        Body::Bulk(_) => "",
    }
}

fn excerpt(outcome: &Outcome) -> String {
    text(outcome).chars().take(200).collect()
}

/// As a value in a query (RFC 3986, section 2.3).
fn encoded(text: &str) -> String {
    text.bytes().map(|b| if b.is_ascii_alphanumeric() || b"-._~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lra_is_asked_of_this_coordinator_whatever_host_its_url_names() {
        for (url, path) in [
            ("http://txmgr/lra-coordinator/0_1", Some("/lra-coordinator/0_1")),
            ("https://elsewhere:8080/lra-coordinator/0_1/", Some("/lra-coordinator/0_1")),
            ("http://txmgr/lra-coordinator/0_2?ParentLRA=http%3A%2F%2Ftxmgr", Some("/lra-coordinator/0_2")),
            ("http://txmgr/lra-coordinator/", None),
            ("http://txmgr/lra-coordinator/..", None),
            ("http://txmgr/lra-coordinator/a/close", None),
            ("http://txmgr/lra-coordinator/a b", None),
            ("http://txmgr/v1/sagas/1", None),
            ("http://txmgr", None),
            ("ftp://txmgr/lra-coordinator/1", None),
            ("", None),
        ] {
            assert_eq!(LraPath::of(&HeaderValue::from_str(url).unwrap()), path.map(|p| LraPath(p.to_owned())), "{url}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(url in "(http://)?[ -~]{0,30}(/lra-coordinator/)?[ -~]{0,10}") {
            let _ = LraPath::of(&HeaderValue::from_str(&url).unwrap());
        }
    }
}

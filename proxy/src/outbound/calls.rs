//! `http://bluebox/v1/calls/ID`: what has become of a call whose caller did not wait.
//!
//! An ID says where everything lies, so that any proxy can answer, also after a restart of the one that gave it out: it asks the owner of the call, and with no
//! answer from one looks into the reply partition itself.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bluebox_core::call::{Digest, Outcome, ReplyAddress, Source};
use bluebox_core::clock::{millis, wall_clock};
use bluebox_core::log::{Health, Offset, Read, Record, Timestamp};
use bluebox_core::name::RESERVED;
use bluebox_core::wire::{CallStatus, ControlEntry, Reply};
use bluebox_core::{CallId, ComponentName};
use bytes::{Buf, BufMut, Bytes};
use http::header::{self, HeaderValue};
use http::{Method, Response};
use serde_json::json;

use crate::bulk::OutBody;
use crate::config::ProxyConfig;
use crate::fields;
use crate::outbound::OutboundSide;
use crate::outbound::append::Accepted;
use crate::outbound::pending::read_outcome;
use crate::outbound::respond::{self, AnswerBody, Asked};
use crate::problem::{Kind, Problem};

/// Where the calls are, below `http://bluebox`.
pub const PATH: &str = "/v1/calls/";

/// How long the owner of a call has to answer.
const OWNER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a look into the reply partition may take.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The version of IDs that is written; others are refused.
const VERSION: u8 = 2;
/// The longest ID, in characters; what is longer is none.
const LONGEST_ID: usize = 400;

/// Everything that must be known of a call to say what has become of it. Its text is what stands in a `Location`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRef {
    /// Who was called.
    pub callee: ComponentName,
    /// The partition of its `calls` topic.
    pub partition: u32,
    /// The call's place there.
    pub offset: Offset,
    /// Who called: its reply topic has the outcome.
    pub caller: ComponentName,
    /// The partition of the reply topic.
    pub reply_partition: u32,
    /// The outcome can only lie at or above it.
    pub position: Offset,
    /// The call.
    pub id: CallId,
    /// Until then what is asked for is kept, by the log's clock.
    pub kept_until: Timestamp,
    /// The call's digest. The id of a call with an `Idempotency-Key` can be guessed by who guesses the key; this can't. With it here nobody has to read what was
    /// called to say what became of it.
    pub digest: Digest,
}

impl CallRef {
    /// Of an accepted recorded call.
    pub fn new(config: &ProxyConfig, accepted: &Accepted, reply_to: &ReplyAddress, id: CallId, callee: ComponentName, digest: &Digest) -> Self {
        let kept = millis(config.retention.replies);
        Self {
            callee,
            partition: accepted.partition.partition,
            offset: accepted.appended.offset,
            caller: config.name.clone(),
            reply_partition: reply_to.partition.partition,
            position: reply_to.position,
            id,
            kept_until: Timestamp::from_millis(accepted.appended.timestamp.as_millis().saturating_add(kept)),
            digest: *digest,
        }
    }

    /// The value of `Location`.
    pub fn location(&self) -> String {
        format!("http://{RESERVED}{PATH}{}", self.encode())
    }

    /// The text of the ID: URL-safe.
    pub fn encode(&self) -> String {
        let mut bytes = vec![VERSION];
        for name in [&self.callee, &self.caller] {
            // A name has 63 bytes at most.
            bytes.put_u8(u8::try_from(name.as_str().len()).unwrap_or(0));
            bytes.put_slice(name.as_str().as_bytes());
        }
        bytes.put_u32(self.partition);
        bytes.put_u64(self.offset.get());
        bytes.put_u32(self.reply_partition);
        bytes.put_u64(self.position.get());
        bytes.put_slice(self.id.as_bytes());
        bytes.put_u64(self.kept_until.as_millis());
        bytes.put_slice(&self.digest);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads an ID; `None` if it is none, or of another version.
    pub fn decode(text: &str) -> Option<Self> {
        if text.len() > LONGEST_ID {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut bytes = &bytes[..];
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        fn name(bytes: &mut &[u8]) -> Option<ComponentName> {
            let len = usize::from(bytes.try_get_u8().ok()?);
            let (name, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            ComponentName::try_new(std::str::from_utf8(name).ok()?).ok()
        }
        fn some<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (first, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(*first)
        }
        let call = Self {
            callee: name(&mut bytes)?,
            caller: name(&mut bytes)?,
            partition: bytes.try_get_u32().ok()?,
            offset: Offset::new(bytes.try_get_u64().ok()?),
            reply_partition: bytes.try_get_u32().ok()?,
            position: Offset::new(bytes.try_get_u64().ok()?),
            id: CallId::from_bytes(some(&mut bytes)?),
            kept_until: Timestamp::from_millis(bytes.try_get_u64().ok()?),
            digest: some(&mut bytes)?,
        };
        bytes.is_empty().then_some(call)
    }
}

/// Answers a request to `http://bluebox/`.
///
/// # Errors
/// 400 for what is no call, 405 for another method than GET and HEAD, 410 past what is kept, 503 with the log away.
pub async fn serve(side: &OutboundSide, method: &Method, target: &str, asked: &Asked) -> Result<Response<AnswerBody>, Problem> {
    let path = target.split('?').next().unwrap_or_default();
    let Some(id) = path.strip_prefix(PATH) else {
        let shown: String = path.chars().take(80).collect();
        return Err(Problem::new(Kind::NoSuchResource, format!("{shown:?}: Bluebox has {PATH}ID")));
    };
    if ![Method::GET, Method::HEAD].contains(method) {
        return Err(Problem::new(Kind::MethodNotAllowed, "a call can be read with GET and HEAD"));
    }
    let Some(call) = CallRef::decode(id) else {
        return Err(Problem::new(Kind::NoSuchResource, "this is no ID of a call; take the one of the Location field as it is"));
    };
    let status = status(side, &call).await.map_err(|problem| problem.about(call.id))?;
    let mut response = match status {
        Status::Ended(outcome) => {
            let mut response = respond::recorded(&outcome.response, &side.bulk, asked).await?;
            response.headers_mut().insert(fields::CALL_STATE, HeaderValue::from_static("ended"));
            response
        }
        Status::Pending { attempts } => {
            let document = json!({ "state": "pending", "call": call.id.to_string(), "attempts": attempts });
            let body = if *method == Method::HEAD { OutBody::empty() } else { OutBody::full(Bytes::from(document.to_string())) };
            let mut response = Response::new(AnswerBody::Own(body));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            headers.insert(fields::CALL_STATE, HeaderValue::from_static("pending"));
            response
        }
    };
    // Its state is never an answer for another time.
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}

enum Status {
    Pending { attempts: Option<u32> },
    Ended(Box<Outcome>),
}

async fn status(side: &OutboundSide, call: &CallRef) -> Result<Status, Problem> {
    if wall_clock() > call.kept_until {
        return Err(gone());
    }
    if matches!(*side.log.health().borrow(), Health::Away(_)) {
        return Err(Problem::new(Kind::LogAway, "the log can't be reached now; the call is not affected; ask again"));
    }
    // A log may make the topics that it is asked for: it is asked for none that nobody registered.
    let directory = side.directory.borrow().clone();
    match directory.registry.get(call.callee.as_str()) {
        Some((_, component)) if call.partition < component.partitions => {}
        None if !directory.complete => return Err(Problem::new(Kind::NotReady, "the registry has not been read yet; ask again")),
        _ => return Err(no_such_call()),
    }
    is_kept(side, call).await?;
    match ask_owner(side, call).await? {
        Some(CallStatus::Pending { attempts }) => Ok(Status::Pending { attempts: Some(attempts) }),
        Some(CallStatus::Ended { partition, offset }) => {
            let outcome = read_outcome(&*side.log, &partition, offset, &call.id).await;
            outcome.map(|o| Status::Ended(Box::new(o))).map_err(|unread| unread.problem(Kind::LogAway))
        }
        Some(CallStatus::Unknown) | None => {
            let mut found = None;
            match (tokio::time::timeout(SEARCH_TIMEOUT, search(side, call, &mut found)).await, found) {
                (_, Some(outcome)) => Ok(Status::Ended(outcome)),
                (Ok(Ok(())), None) => Ok(Status::Pending { attempts: None }),
                (Ok(Err(problem)), None) => Err(problem),
                (Err(_), None) => Err(Problem::new(Kind::LogAway, "the outcome was not found in time; ask again")),
            }
        }
    }
}

fn gone() -> Problem {
    Problem::new(Kind::CallGone, "the call is older than what is kept; keep outcomes longer with a longer retention of replies")
}

fn no_such_call() -> Problem {
    Problem::new(Kind::NoSuchResource, "there is no such call")
}

/// Whether the place that the ID names is there, and what was there is kept.
async fn is_kept(side: &OutboundSide, call: &CallRef) -> Result<(), Problem> {
    let partition = side.config.prefix.topics(&call.callee).calls.partition(call.partition);
    match side.log.bounds(&partition).await {
        Ok(bounds) if call.offset >= bounds.end => Err(no_such_call()),
        Ok(bounds) if call.offset < bounds.start => Err(gone()),
        Ok(_) => Ok(()),
        Err(bluebox_core::log::LogError::NotFound(_)) => Err(no_such_call()),
        Err(e) => Err(Problem::new(Kind::LogAway, format!("{partition}: {e}"))),
    }
}

/// Asks the owner of the call's partition; `None` when there is no answer within a second.
async fn ask_owner(side: &OutboundSide, call: &CallRef) -> Result<Option<CallStatus>, Problem> {
    let query = CallId::random();
    let mut ticket = side.pending.expect_status(query)?;
    let entry = ControlEntry::Query { query, id: call.id, offset: call.offset, digest: call.digest, reply_to: ticket.reply_to() };
    let control = side.config.prefix.topics(&call.callee).control.partition(call.partition);
    let asked = async {
        side.log.append(&control, Record::new(entry.encode())).await.ok()?;
        Some(ticket.status().await)
    };
    Ok(tokio::time::timeout(OWNER_TIMEOUT, asked).await.ok().flatten())
}

/// Looks for the outcome where it must lie if there is one. Within a life of the call the first counts, and the last life: that of a dead letter that was
/// replayed.
async fn search(side: &OutboundSide, call: &CallRef, found: &mut Option<Box<Outcome>>) -> Result<(), Problem> {
    let mut take = |outcome: Box<Outcome>| {
        if found.as_ref().is_none_or(|f| f.replay < outcome.replay) {
            *found = Some(outcome);
        }
    };
    let partition = side.config.prefix.topics(&call.caller).replies.partition(call.reply_partition);
    let away = |e: &dyn std::fmt::Display| Problem::new(Kind::LogAway, format!("{partition}: {e}"));
    let bounds = side.log.bounds(&partition).await.map_err(|e| away(&e))?;
    let mut next = call.position;
    let (mut truncated, mut forged) = (false, false);
    let mut reader = side.log.read(&partition, next);
    while next < bounds.end {
        match reader.next().await {
            Some(Read::Entries(entries)) => {
                for entry in entries {
                    next = entry.offset.next();
                    match entry.record.value.map(Reply::decode) {
                        Some(Ok(Reply::Outcome(outcome))) if outcome.id == call.id && outcome.digest == Some(call.digest) => take(outcome),
                        // It ended, and it was another call: of who guessed the key and did not know the rest.
                        Some(Ok(Reply::Outcome(outcome))) if outcome.id == call.id && outcome.source == Source::App => forged = true,
                        Some(Ok(Reply::At { id, digest: its, partition, offset, .. })) if id == call.id && its == call.digest => {
                            take(Box::new(read_outcome(&*side.log, &partition, offset, &id).await.map_err(|unread| unread.problem(Kind::LogAway))?));
                        }
                        _ => {}
                    }
                }
            }
            Some(Read::Truncated { start, .. }) => {
                truncated = true;
                next = start;
            }
            None => return Err(away(&"the log's client was closed")),
        }
    }
    match (truncated, forged) {
        (true, _) => Err(gone()),
        (false, true) => Err(no_such_call()),
        (false, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn a_call() -> CallRef {
        CallRef {
            callee: ComponentName::try_new("cart").unwrap(),
            partition: 31,
            offset: Offset::new(u64::MAX),
            caller: ComponentName::try_new("web").unwrap(),
            reply_partition: 7,
            position: Offset::new(12),
            id: CallId::random(),
            kept_until: Timestamp::from_millis(99),
            digest: [7; 32],
        }
    }

    #[test]
    fn an_id_says_everything_and_is_safe_in_a_url() {
        let call = a_call();
        let text = call.encode();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(CallRef::decode(&text), Some(call));
    }

    #[test]
    fn the_longest_id_is_short_enough() {
        let long = ComponentName::try_new(&"x".repeat(63)).unwrap();
        let call = CallRef { callee: long.clone(), caller: long, ..a_call() };
        assert_eq!(CallRef::decode(&call.encode()), Some(call));
    }

    proptest! {
        #[test]
        fn what_is_no_id_is_refused(text in "[A-Za-z0-9_-]{0,420}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Neither panics, and what is taken is written back the same.
            for text in [text, URL_SAFE_NO_PAD.encode(bytes)] {
                if let Some(call) = CallRef::decode(&text) {
                    prop_assert_eq!(call.encode(), text);
                }
            }
        }
    }
}

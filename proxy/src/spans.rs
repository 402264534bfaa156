//! The spans of a call. Where no traces are wanted there are none, and what is here costs one look at whether they are.
//!
//! All spans of a call are in one trace: that of the request which the app made (`traceparent`), else one that begins here and has the call's own id, so that every box that sees the call
//! finds the same one.
//!
//! ```text
//! POST cart                              the call, in the caller's proxy        (client)
//! └─ send bluebox.cart.calls             until the log has it: it is accepted   (producer)
//!    ├─ process bluebox.cart.calls       an attempt, in the callee's proxy      (consumer)
//!    │     …                             what the app says of it
//!    └─ process bluebox.cart.calls       the next attempt; linked to the one before
//!       └─ send bluebox.web.replies      the outcome becomes durable            (producer)
//! ```
//!
//! The context travels in the call itself, in the field `traceparent` of its request: that of the second span. The app gets that of the attempt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bluebox_core::call::Call;
use bluebox_core::log::{Offset, Timestamp, TopicPartition};
use bluebox_core::{CallId, ComponentName};
use bluebox_observe::trace::recent::Recent;
use bluebox_observe::trace::span::mixed;
use bluebox_observe::trace::{self, Context, Counts, Kind, Span, TRACEPARENT, Tracer};
use http::{HeaderMap, Method, StatusCode};

use crate::inbound::partition::{DeliveryEnd, Ending, Verdict};
use crate::line;
use crate::outbound::append::Accepted;
use crate::problem::Problem;

/// Where traces go, and what they say the log is.
#[derive(Debug, Clone)]
pub struct Traces {
    /// What the environment says.
    pub settings: trace::Settings,
    /// The log, as OpenTelemetry names it: [`KAFKA`], or `bluebox` for the embedded one.
    pub log: &'static str,
}

/// Makes the spans of calls, if there are to be any. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    tracer: Tracer,
    log: &'static str,
    /// The last attempts of calls that have no end yet.
    last: Mutex<Recent<(CallId, u32), Context>>,
}

impl Spans {
    /// Has them sent from now on, if `traces` are wanted: from the process `instance`, which calls by this name.
    pub fn start(traces: Option<&Traces>, name: &ComponentName, instance: &str, counts: Counts) -> Self {
        let shared = |traces: &Traces| {
            let tracer = Tracer::start(traces.settings.clone(), name.as_str(), instance, counts);
            Arc::new(Shared { tracer, log: traces.log, last: Mutex::default() })
        };
        Self(traces.map(shared))
    }

    /// Whether there are any.
    pub const fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Sends the last of them, for as long as this at most.
    pub async fn close(&self, within: Duration) {
        if let Some(shared) = &self.0 {
            shared.tracer.close(within).await;
        }
    }

    /// A call is about to be appended, which a request has made since `began`; the context that it travels with is put into its header fields.
    pub fn calls(&self, call: &Calling<'_>, headers: &mut HeaderMap, began: Instant) -> Option<Box<Called>> {
        let shared = self.0.as_deref()?;
        let name = format!("{} {}", known(call.method), call.callee);
        let (parent, root) = (Context::of(headers), trace_of(&call.id));
        let Some(span) = shared.tracer.begin(Kind::Client, &name, parent, root) else {
            if parent.is_none() {
                headers.insert(TRACEPARENT, shared.tracer.not_kept(root).value());
            }
            return None;
        };
        let mut span = span.since(began);
        span.set("http.request.method", known(call.method));
        span.set("url.path", line::path(call.target));
        span.set("server.address", call.callee.as_str());
        span.set("bluebox.call.id", &call.id.to_string());
        span.set("bluebox.caller", call.caller.as_str());
        let mut append = span.child(Kind::Producer, &format!("send {}", call.topic));
        shared.say_message(&mut append, "send", call.topic, &call.id);
        headers.insert(TRACEPARENT, append.context()?.value());
        Some(Box::new(Called { call: Some(span), append: Some(append), log: shared.log }))
    }

    /// An attempt to deliver a call begins.
    pub fn attempts(&self, call: &Call, attempt: Trying<'_>) -> Option<Span> {
        let shared = self.0.as_deref()?;
        let accepted = Context::of(&call.request.headers);
        let name = format!("process {}", attempt.of.topic);
        let key = (call.id, call.replay);
        let before = shared.last().of(&key);
        let mut span = shared.tracer.begin(Kind::Consumer, &name, accepted, trace_of(&call.id))?;
        if before.is_none() && attempt.number == 1 && !attempt.may_have_started {
            span = span.with_id(first_attempt(call));
        }
        shared.say_attempt(&mut span, call, &attempt);
        if let Some(accepted) = accepted {
            span.link(accepted, "accepted");
        }
        match before {
            Some(before) => span.link(before, "attempt before"),
            None if attempt.may_have_started => {
                let before = shared.tell_of_the_attempt_of_another_box(call, &attempt, accepted, &name);
                if let Some(before) = before {
                    span.link(before, "attempt before");
                }
            }
            None => {}
        }
        if let Some(context) = span.context() {
            shared.last().keep(key, context);
        }
        Some(span)
    }

    /// The end of a call is about to be made durable.
    pub fn ends(&self, ending: &Ending) -> Option<EndingSpans> {
        let shared = self.0.as_deref()?;
        let last = shared.last().take(&(ending.id, ending.replay));
        // One that never was delivered is below its acceptance.
        let accepted = || match &ending.verdict {
            Verdict::DeadLetter { call: crate::inbound::partition::Payload::Here(call), .. } => {
                Context::of(&call.request.headers).filter(|context| context.sampled)
            }
            _ => None,
        };
        Some(EndingSpans { tracer: shared.tracer.clone(), log: shared.log, below: last.or_else(accepted)?, id: ending.id, attempts: ending.attempts })
    }
}

impl Shared {
    fn last(&self) -> MutexGuard<'_, Recent<(CallId, u32), Context>> {
        // Nothing in there can panic half-way.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_message(&self, span: &mut Span, operation: &'static str, topic: &str, id: &CallId) {
        say_message(span, self.log, operation, topic, id);
    }

    fn say_attempt(&self, span: &mut Span, call: &Call, attempt: &Trying<'_>) {
        self.say_message(span, "process", attempt.of.topic.as_str(), &call.id);
        span.set("messaging.consumer.group.name", attempt.of.topic.as_str());
        say_place(span, self.log, attempt.of.partition, attempt.origin);
        span.set("messaging.message.body.size", call.request.body.len());
        span.set("http.request.method", known(&call.request.method));
        span.set("url.path", line::path(&call.request.target));
        span.set("bluebox.call.id", &call.id.to_string());
        span.set("bluebox.caller", call.caller.as_str());
        span.set("bluebox.component", call.callee.as_str());
        span.set("bluebox.attempt", attempt.number);
        if attempt.may_have_started {
            span.set("bluebox.may_have_started", true);
        }
        if call.replay > 0 {
            span.set("bluebox.replay", call.replay);
        }
    }

    /// What another box had begun, and could not tell of itself because it died or was cut off. Its span is made here, with the id that it had there if it was the first of the call, so
    /// that what the app had said of it has its place.
    fn tell_of_the_attempt_of_another_box(&self, call: &Call, attempt: &Trying<'_>, accepted: Option<Context>, name: &str) -> Option<Context> {
        // A count that was not committed is lost with its box: then the number here is that of the attempt before.
        let number = attempt.number.saturating_sub(1).max(1);
        let mut span = self.tracer.begin(Kind::Consumer, name, accepted, trace_of(&call.id))?;
        if number == 1 {
            span = span.with_id(first_attempt(call));
        }
        if let Some(at) = attempt.accepted {
            span = span.since_wall_clock(SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis()));
        }
        self.say_attempt(&mut span, call, &Trying { number, may_have_started: false, ..*attempt });
        span.set("bluebox.delivery.end", "box_lost");
        span.set("error.type", "box_lost");
        span.set("bluebox.told_by_successor", true);
        span.fail("the box that may have been at this died or was taken for dead; told by the one that took over");
        let context = span.context();
        span.end();
        context
    }
}

/// A call that a request makes, as far as its spans say it.
#[derive(Debug, Clone, Copy)]
pub struct Calling<'c> {
    /// Its id.
    pub id: CallId,
    /// Who calls.
    pub caller: &'c ComponentName,
    /// Who is called.
    pub callee: &'c ComponentName,
    /// The method.
    pub method: &'c Method,
    /// The request target.
    pub target: &'c str,
    /// Where calls to the callee are appended.
    pub topic: &'c str,
}

/// An attempt, as far as its spans say it.
#[derive(Debug, Clone, Copy)]
pub struct Trying<'a> {
    /// Its number.
    pub number: u32,
    /// Whether a former one may have been cut off by a crash.
    pub may_have_started: bool,
    /// Where the call lies.
    pub of: &'a TopicPartition,
    /// And at which offset.
    pub origin: Offset,
    /// When the log took it.
    pub accepted: Option<Timestamp>,
}

/// The spans of a call in its caller's proxy. Dropped without an end, its caller hung up.
#[derive(Debug)]
pub struct Called {
    call: Option<Span>,
    append: Option<Span>,
    log: &'static str,
}

impl Called {
    /// It is handed to the log, now.
    pub fn appending(&mut self) {
        if let Some(append) = &mut self.append {
            append.restart();
        }
    }

    /// The log has said whether it took it. `None`: the outcome came first.
    pub fn appended(&mut self, report: Option<&Result<Accepted, Problem>>) {
        let Some(mut append) = self.append.take() else { return };
        match report {
            Some(Ok(accepted)) => {
                say_place(&mut append, self.log, accepted.partition.partition, accepted.appended.offset);
            }
            Some(Err(problem)) => {
                append.set("error.type", problem.kind().word());
                append.fail(problem.kind().title());
            }
            None => {}
        }
        append.end();
    }

    /// It is over for who made it; `word` says how.
    pub fn ended(mut self, answer: Result<StatusCode, &Problem>, word: &'static str) {
        let Some(mut call) = self.call.take() else { return };
        let status = answer.unwrap_or_else(|problem| problem.kind().status());
        call.set("http.response.status_code", u32::from(status.as_u16()));
        call.set("bluebox.result", word);
        match answer {
            Err(problem) => {
                call.set("error.type", problem.kind().word());
                call.fail(problem.kind().title());
                // It never came so far, or that was told already.
                if let Some(mut append) = self.append.take() {
                    append.fail("not begun");
                }
            }
            Ok(status) if status.is_client_error() || status.is_server_error() => {
                call.set("error.type", status.as_str());
                call.fail("");
            }
            Ok(_) => {}
        }
        call.end();
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        if let Some(mut call) = self.call.take() {
            call.fail("the caller hung up; the call goes on");
            call.end();
        }
    }
}

/// An attempt has ended.
pub fn delivered(mut span: Span, end: &DeliveryEnd) {
    span.set("bluebox.delivery.end", end.word());
    match end {
        DeliveryEnd::Answered(outcome) | DeliveryEnd::NotNow(_, outcome) => {
            let status = outcome.response.status;
            span.set("http.response.status_code", u32::from(status.as_u16()));
            if status.is_server_error() {
                span.set("error.type", status.as_str());
                span.fail("");
            }
        }
        DeliveryEnd::Failed(_) | DeliveryEnd::NotThere | DeliveryEnd::NotBegun => {
            span.set("error.type", end.word());
            span.fail(match end {
                DeliveryEnd::Failed(why) => why.clone(),
                _ => String::new(),
            });
        }
    }
    span.end();
}

/// The spans of the end of a call in its callee's proxy.
#[derive(Debug)]
pub struct EndingSpans {
    tracer: Tracer,
    log: &'static str,
    below: Context,
    id: CallId,
    attempts: u32,
}

impl EndingSpans {
    /// The outcome goes to a reply partition.
    pub fn replies(&self, to: &TopicPartition) -> Span {
        self.sends(to)
    }

    /// The call becomes a dead letter.
    pub fn buries(&self, to: &TopicPartition, why: &'static str) -> Span {
        let mut span = self.sends(to);
        span.set("bluebox.attempts", self.attempts);
        span.set("error.type", why);
        span.fail("a dead letter");
        span
    }

    fn sends(&self, to: &TopicPartition) -> Span {
        let mut span = self.tracer.below(self.below, Kind::Producer, &format!("send {}", to.topic));
        say_message(&mut span, self.log, "send", to.topic.as_str(), &self.id);
        span.set("messaging.destination.partition.id", &to.partition.to_string());
        span
    }
}

/// Of what OpenTelemetry says of messages (*Semantic conventions for messaging*), what both ends say.
fn say_message(span: &mut Span, log: &'static str, operation: &'static str, topic: &str, id: &CallId) {
    span.set("messaging.system", log);
    span.set("messaging.operation.name", operation);
    span.set("messaging.operation.type", operation);
    span.set("messaging.destination.name", topic);
    span.set("messaging.message.id", &id.to_string());
}

fn say_place(span: &mut Span, log: &'static str, partition: u32, offset: Offset) {
    span.set("messaging.destination.partition.id", &partition.to_string());
    span.set(if log == KAFKA { "messaging.kafka.offset" } else { "bluebox.offset" }, offset.get());
}

/// The method, if it is one of those that everybody knows (*Semantic conventions for HTTP*).
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

/// The trace of a call whose caller had none.
fn trace_of(id: &CallId) -> u128 {
    u128::from_be_bytes(*id.as_bytes()).max(1)
}

/// The id of the span of the first attempt: whoever takes the call over finds it out too.
fn first_attempt(call: &Call) -> u64 {
    let id = trace_of(&call.id);
    mixed((id >> 64) as u64 ^ mixed(id as u64 ^ u64::from(call.replay) << 32))
}

/// Kafka, as OpenTelemetry names it.
pub const KAFKA: &str = "kafka";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_few() {
        assert_eq!((known(&Method::PATCH), known(&Method::from_bytes(b"MAKE-ME-UP-1").unwrap())), ("PATCH", "_OTHER"));
    }
}

//! A durable call out of the app, from its request to its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bluebox_core::call::{Digest, Outcome, ReplyAddress, Source};
use bluebox_core::fail_point_async;
use bluebox_core::log::Offset;
use bluebox_core::registry::Component;
use bluebox_core::topics::Topics;
use bluebox_core::{CallId, ComponentName};
use bluebox_observe::{During, Words};
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode, request};
use http_body_util::Full;
use tracing::debug;

use crate::bulk::{Hold, OutBody, TakeIn, TakeInError};
use crate::outbound::append::{self, Accepted, Accepting};
use crate::outbound::calls::CallRef;
use crate::outbound::envelope::{Caller, Destination, Draft};
use crate::outbound::long_wait::{self, LongWait};
use crate::outbound::pending::{Answer, Ticket};
use crate::outbound::prefer::{PREFERENCE_APPLIED, Preferences};
use crate::outbound::respond::{self, AnswerBody, Asked, BodyError};
use crate::outbound::route::Route;
use crate::outbound::spread::OnItsWay;
use crate::outbound::{AppBody, OutboundSide};
use crate::problem::{Kind, Problem, can_be_repeated};
use crate::spans::Called;
use crate::{fields, line, metrics};
/// How long, and how much, of a body that nobody wants is still read, so that its sender finds the time to read why.
const DRAIN_TIME: Duration = Duration::from_secs(2);
const DRAIN_BYTES: u64 = 16 << 20;

/// What must come of a body per second on average: who sends less would hold memory for hours.
const LEAST_BODY_RATE: u64 = 1024;

/// The least time that the log is given to take a call, however short the wait.
const SHORTEST_APPEND: Duration = Duration::from_secs(10);

impl OutboundSide {
    /// Makes a durable call of the proxy's own, as one of the app's would be, and waits for its outcome.
    ///
    /// # Errors
    /// When there is no outcome within the wait that its head asks for, the call was not accepted, or its host is no component.
    pub async fn errand(&self, head: request::Parts, body: Full<Bytes>) -> Result<Arc<Outcome>, Problem> {
        match self.decide(&head, None).await? {
            Route::Call { destination, component } => {
                let topics = self.config.prefix.topics(&destination.callee);
                let handed = Box::pin(self.hand_over(head, body, destination, &component, &topics)).await?;
                let mut handed = Box::new(handed);
                let carried = self.wait(&mut handed).await;
                let spans = handed.spans.take();
                let outcome = match carried {
                    Ok(Carried::Ended(answer)) => answer.map_err(|unread| unread.problem(Kind::NoOutcomeYet)),
                    Ok(Carried::Later(_)) => Err(Problem::new(Kind::NoOutcomeYet, "the call was accepted and has no outcome yet")),
                    Err(problem) => Err(problem),
                };
                if let Some(spans) = spans {
                    spans.ended(outcome.as_ref().map(|outcome| outcome.response.status), "app");
                }
                outcome
            }
            _ => Err(Problem::new(Kind::NotReady, "there is no such component")),
        }
    }

    /// A durable call, until it is on its way into the log.
    pub(super) async fn call(&self, mut head: request::Parts, body: AppBody, destination: Destination, component: &Component) -> Result<Handed, Problem> {
        let callee = destination.callee.clone();
        let topics = self.config.prefix.topics(&callee);
        self.contexts.pass_on(&mut head.headers, &callee);
        let mut open = Open { results: self.metrics.calls.of(callee.as_str()).clone(), id: None, line: line::Sent::begin(&head, &callee), over: false };
        match self.hand_over(head, body, destination, component, &topics).await {
            Ok(handed) => {
                open.id = Some(handed.id);
                Ok(Handed { open: Some(open), ..handed })
            }
            Err(problem) => {
                let word = self.metrics.problem(problem.kind());
                open.ended(Err(&problem), word);
                Err(problem)
            }
        }
    }

    /// The first stages of a durable call: envelope, body, append.
    async fn hand_over<B>(&self, head: request::Parts, body: B, destination: Destination, component: &Component, topics: &Topics) -> Result<Handed, Problem>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BodyError>,
    {
        let mut spans = None;
        match self.stages_of_a_call(head, body, destination, component, topics, &mut spans).await {
            Ok(handed) => Ok(Handed { spans, ..handed }),
            Err(problem) => {
                if let Some(spans) = spans {
                    spans.ended(Err(&problem), metrics::result_of(problem.kind()));
                }
                Err(problem)
            }
        }
    }

    async fn stages_of_a_call<B>(
        &self,
        mut head: request::Parts,
        mut body: B,
        destination: Destination,
        component: &Component,
        topics: &Topics,
        spans: &mut Option<Box<Called>>,
    ) -> Result<Handed, Problem>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BodyError>,
    {
        let began = Instant::now();
        let limits = &self.config.outbound;
        let callee = destination.callee.clone();
        let caller = Caller { name: &self.config.name, shared_by_callers: self.config.shared_by_callers };
        let expects = head.headers.contains_key(header::EXPECT);
        let long_wait = head.extensions.remove::<LongWait>();
        let mut on_its_way = None;
        let draw = || {
            let (id, drawn) = self.spread.draw(&callee, component.partitions);
            on_its_way = Some(drawn);
            id
        };
        let mut draft = Draft::new(head, destination, caller, limits, draw)?;
        let (id, keyed, hold, ttl, preferences, ordinal) = (draft.id, draft.keyed, draft.hold, draft.ttl, draft.preferences, draft.ordinal);
        let repeatable = can_be_repeated(&draft.method, keyed);
        if self.spans.are_wanted() {
            let topic = topics.calls.as_str();
            let (call, headers) = draft.calling(topic);
            *spans = self.spans.calls(&call, headers, began);
        }
        fail_point_async!(OutEnveloped, return Err(Problem::new(Kind::Internal, "a fail point")));
        // Before anything of the body is asked for: with the log away the answer is 503 at once.
        append::check_health(&*self.log).map_err(|p| p.about(id))?;
        self.while_the_log_is_there(self.pending.until_ready()).await;
        let ticket = self.pending.expect(id).map_err(|p| p.about(id))?;
        fail_point_async!(OutExpected, return Err(Problem::new(Kind::Internal, "a fail point")));

        let take_in = TakeIn {
            limit_bytes: component.body_limit_bytes,
            idle_timeout: limits.body_idle_timeout,
            waits_out: false,
            least_bytes_per_second: LEAST_BODY_RATE,
            longest: Duration::MAX,
        };
        let taken = match self.bulk.take_in(&mut body, &take_in, draft.digest.as_mut()).await {
            Ok(taken) => taken,
            Err(e) => {
                // A sender that waits for 100 Continue sends nothing unless something is read.
                if !expects {
                    drain(body);
                }
                return Err(refused_body(e).about(id));
            }
        };
        fail_point_async!(OutTakenIn, return Err(Problem::new(Kind::Internal, "a fail point")));
        let (call, memory) = draft.seal(taken, ticket.reply_address());
        let (position, recorded) = (call.reply_to.position, call.recorded);
        ticket.only(recorded);

        fail_point_async!(OutAppend, return Err(Problem::new(Kind::NotAccepted, "a fail point")));
        if let Some(spans) = spans {
            spans.appending();
        }
        let mut accepting = append::append(&*self.log, topics, component.partitions, ordinal, call);
        if limits.cancel_on_disconnect && recorded.is_none() {
            accepting.cancel_on_drop(self.log.clone(), topics);
        }
        fail_point_async!(OutAppending, return Err(Problem::new(Kind::AcceptanceUnknown, "a fail point")));
        Ok(Handed {
            id,
            callee,
            began,
            since: tokio::time::Instant::now(),
            hold,
            ttl,
            repeatable,
            preferences,
            recorded,
            position,
            ticket,
            accepting,
            on_its_way: Some((memory, on_its_way)),
            unknown: None,
            long_wait,
            open: None,
            spans: None,
        })
    }

    /// The last stages of a durable call: await the outcome, answer.
    #[allow(clippy::manual_async_fn, reason = "a function that is async by itself would keep its arguments twice, and many may wait")]
    pub(super) fn end<'a>(&'a self, mut handed: Box<Handed>, asked: &'a Asked) -> impl Future<Output = Result<Response<AnswerBody>, Problem>> + Send + 'a {
        async move {
            let carried = self.wait(&mut handed).await;
            // Boxed: no room is kept for it during the wait.
            Box::pin(self.respond(handed, carried, asked)).await
        }
    }

    async fn respond(&self, mut handed: Box<Handed>, carried: Result<Carried, Problem>, asked: &Asked) -> Result<Response<AnswerBody>, Problem> {
        let (began, open, spans) = (handed.began, handed.open.take(), handed.spans.take());
        drop(handed);
        let (word, answer) = match carried {
            Ok(Carried::Ended(answer)) => {
                metrics::took(&self.metrics.whole, began.elapsed());
                fail_point_async!(BackFirstByte, return Err(Problem::new(Kind::OutcomeUnreadable, "a fail point")));
                let outcome = answer.map_err(|unread| unread.problem(Kind::NoOutcomeYet));
                let answered = match &outcome {
                    Ok(outcome) => respond::recorded(&outcome.response, &self.bulk, asked).await.map_err(|p| p.about(outcome.id)),
                    Err(problem) => Err(problem.clone()),
                };
                match (&answered, outcome.map(|o| o.source)) {
                    (Err(problem), _) => (self.metrics.problem(problem.kind()), answered),
                    (Ok(_), Ok(Source::Proxy(reason))) => (self.metrics.problem(Kind::Ended(reason)), answered),
                    (Ok(_), _) => ("app", answered),
                }
            }
            Ok(Carried::Later(answer)) => ("accepted", Ok(*answer)),
            Err(problem) => (self.metrics.problem(problem.kind()), Err(problem)),
        };
        if let Some(spans) = spans {
            spans.ended(answer.as_ref().map(Response::status), word);
        }
        if let Some(open) = open {
            open.ended(answer.as_ref(), word);
        }
        answer
    }

    /// Waits for what a call that was handed to the log comes to.
    ///
    /// Small, because many may wait, and for long: what is there only until the log has the call is boxed, and gone then.
    async fn wait(&self, handed: &mut Handed) -> Result<Carried, Problem> {
        if let Some(answer) = Box::pin(self.until_appended(handed)).await? {
            return Ok(Carried::Ended(answer));
        }
        let waiting = During::new(&self.metrics.waiting);
        let answer = if handed.hold.is_zero() { None } else { self.outcome(handed).await };
        drop(waiting);
        handed.accepting.let_go();
        match (answer, handed.unknown.take()) {
            (Some(answer), _) => {
                metrics::took(&self.metrics.outcome, handed.since.elapsed());
                Ok(Carried::Ended(answer))
            }
            (None, Some(problem)) => Err(*problem),
            (None, None) => self.later_or_too_late(handed),
        }
    }

    /// Waits until the log has said whether it has a call, or its outcome is there.
    async fn until_appended(&self, handed: &mut Handed) -> Result<Option<Answer>, Problem> {
        let hold = handed.hold;
        // Its request is read, and its body; with many that wait it needs hyper no longer.
        if let Some(long_wait) = handed.long_wait.as_ref().filter(|_| !hold.is_zero() && self.waits_for_long_after().is_zero()) {
            long_wait.begin();
        }
        let first = tokio::select! {
            accepted = handed.accepting.accepted(hold.max(SHORTEST_APPEND)) => First::Report(accepted),
            // An outcome is as good an acknowledgement as any. But who does not want to wait is always answered the same way.
            answer = handed.ticket.answer(), if !hold.is_zero() => First::Outcome(answer),
        };
        handed.on_its_way = None;
        if let Some(spans) = &mut handed.spans {
            let report = match &first {
                First::Report(report) => Some(report),
                First::Outcome(_) => None,
            };
            spans.appended(report);
        }
        let report = match first {
            First::Report(report) => report,
            First::Outcome(answer) => {
                handed.accepting.let_go();
                return Ok(Some(answer));
            }
        };
        if report.is_ok() {
            metrics::took(&self.metrics.append, handed.since.elapsed());
        }
        fail_point_async!(OutAccepted, return Err(Problem::new(Kind::AcceptanceUnknown, "a fail point")));
        match report.map_err(|problem| self.append_failed(problem, handed.repeatable)) {
            Ok(_) => handed.since = tokio::time::Instant::now(),
            // It may be in the log all the same: then its outcome comes.
            Err(problem) if problem.kind() == Kind::AcceptanceUnknown => handed.unknown = Some(Box::new(problem)),
            Err(problem) => {
                handed.accepting.let_go();
                return Err(problem);
            }
        }
        Ok(None)
    }

    /// Waits for the outcome of a call that is in the log, or may be; after a while as one who waits for long. `None`: the wait is over.
    async fn outcome(&self, handed: &mut Handed) -> Option<Answer> {
        let waits_until = handed.since + handed.hold;
        let soon = handed.since + self.waits_for_long_after();
        if let Some(long_wait) = handed.long_wait.take().filter(|_| soon < waits_until) {
            if let Ok(answer) = tokio::time::timeout_at(soon, handed.ticket.answer()).await {
                return Some(answer);
            }
            long_wait.begin();
        }
        tokio::time::timeout_at(waits_until, handed.ticket.answer()).await.ok()
    }

    /// The wait for the outcome of a call that was accepted is over.
    fn later_or_too_late(&self, handed: &Handed) -> Result<Carried, Problem> {
        let asks_later = handed.recorded.filter(|_| handed.preferences.respond_async);
        if let (Some(digest), Some(accepted)) = (asks_later, handed.accepting.place()) {
            let reply_to = ReplyAddress { partition: self.pending.partition().clone(), position: handed.position };
            let call_ref = CallRef::new(&self.config, &accepted, &reply_to, handed.id, handed.callee.clone(), &digest);
            return Ok(Carried::Later(Box::new(later(&call_ref, &accepted, handed.preferences.applied(true)))));
        }
        let waited = humantime::format_duration(handed.hold);
        // Who reads, and can't ask later, has no use for an answer that comes when nobody waits any more.
        let goes_on = if handed.ttl > handed.hold { "the call goes on" } else { "that was its deadline too, so it is not begun any more" };
        let detail = format!(
            "it was waited for {waited}; {goes_on}. Ask for a longer wait with `Prefer: wait=N`, or for the outcome later with `Prefer: respond-async`"
        );
        Err(Problem::new(Kind::NoOutcomeYet, detail).about(handed.id).retry_safe(handed.repeatable))
    }

    /// After which time a caller that comes now waits for long.
    fn waits_for_long_after(&self) -> Duration {
        let waiting = self.pending.waiting();
        let held = usize::try_from(self.metrics.waiting_long.get()).unwrap_or(0);
        long_wait::after(self.config.outbound.long_wait, waiting, waiting.saturating_sub(held))
    }

    fn append_failed(&self, problem: Problem, repeatable: bool) -> Problem {
        let unknown = problem.kind() == Kind::AcceptanceUnknown;
        self.metrics.append_failures.inc(if unknown { "unknown" } else { "not_persisted" });
        if unknown { problem.retry_safe(repeatable) } else { problem }
    }
}

/// A call that was handed to the log, as far as it must be known to its end. Nothing of what its caller sent is held.
pub(super) struct Handed {
    id: CallId,
    callee: ComponentName,
    began: Instant,
    /// When it was handed over; and when the log said that it is there, once it has.
    since: tokio::time::Instant,
    hold: Duration,
    ttl: Duration,
    repeatable: bool,
    preferences: Preferences,
    recorded: Option<Digest>,
    /// Where the replies were read when it was sent.
    position: Offset,
    ticket: Ticket,
    accepting: Accepting,
    /// What is kept until it is in the log: memory, and its share of a batch.
    on_its_way: Option<(Hold, Option<OnItsWay>)>,
    /// Why it is not known whether it is in the log, where that is so.
    unknown: Option<Box<Problem>>,
    long_wait: Option<LongWait>,
    /// Not there for an errand of the proxy's own.
    open: Option<Open>,
    /// Its spans, if they are kept.
    spans: Option<Box<Called>>,
}

/// A call of the app that is not over for who made it: counted and logged when it is, and also when its connection ends first.
struct Open {
    results: Words,
    id: Option<CallId>,
    /// What is logged of it in the end, if anybody wants to read that.
    line: Option<line::Sent>,
    over: bool,
}

impl Open {
    fn ended(mut self, answer: Result<&Response<AnswerBody>, &Problem>, word: &str) {
        self.over = true;
        self.results.inc(word);
        if let Some(line) = self.line.take() {
            line.ended(self.id, answer, word);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // A panic is answered, but not from here.
        let word = if std::thread::panicking() { "internal" } else { "gone" };
        self.results.inc(word);
        if let Some(line) = self.line.take() {
            line.broke_off(self.id, word);
        }
    }
}

/// What came first of a call that was handed to the log.
enum First {
    /// Whether the log has it.
    Report(Result<Accepted, Problem>),
    /// Its outcome.
    Outcome(Answer),
}

enum Carried {
    Ended(Answer),
    Later(Box<Response<AnswerBody>>),
}

/// 202: the call is durable, and its outcome can be asked for (RFC 7240, section 4.1).
fn later(call: &CallRef, accepted: &Accepted, applied: Option<HeaderValue>) -> Response<AnswerBody> {
    debug!(partition = %accepted.partition, offset = %accepted.appended.offset, "accepted a call whose outcome is asked for later");
    let mut response = Response::new(AnswerBody::Own(OutBody::empty()));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    let values = [(header::LOCATION, call.location()), (fields::CALL_ID, call.id.to_string()), (fields::CALL_STATE, "pending".to_owned())];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    if let Some(applied) = applied {
        headers.insert(PREFERENCE_APPLIED, applied);
    }
    response
}

fn refused_body(error: TakeInError) -> Problem {
    let text = error.to_string();
    match error {
        TakeInError::TooLarge { .. } => Problem::new(Kind::TooLarge, text),
        TakeInError::Idle { .. } | TakeInError::Endless { .. } | TakeInError::TooSlow { .. } => Problem::new(Kind::SlowBody, text).closing(),
        TakeInError::Broken(_) => Problem::new(Kind::BadRequest, text).closing(),
        // No call points to what was stored of it, so nothing was accepted.
        TakeInError::NotStored(_) => Problem::new(Kind::NotAccepted, format!("{text}; nothing was accepted, so it is safe to try again")),
    }
}

/// Reads on, for a while, what a caller sends after it was refused: a connection that is closed with unread data loses the answer too.
fn drain<B>(mut body: B)
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    use bytes::Buf as _;
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let mut left = DRAIN_BYTES;
        let reading = async {
            while let Some(Ok(frame)) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
                left = left.saturating_sub(frame.data_ref().map_or(0, |d| d.remaining() as u64));
                if left == 0 {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    });
}

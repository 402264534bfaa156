//! Spans: made, said something of, ended.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::context::Context;
use super::encode;
use super::export::{self, Counts};
use super::sampler::{Limit, Sampler};
use super::settings::Settings;
use super::waiting::Waiting;

/// What part a span has in a message's way (OpenTelemetry: *SpanKind*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something within.
    Internal,
    /// Answers a request.
    Server,
    /// Makes a request.
    Client,
    /// Hands over a message that another takes up later.
    Producer,
    /// Takes one up.
    Consumer,
}

impl Kind {
    /// OpenTelemetry's number for it.
    const fn number(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Server => 2,
            Self::Client => 3,
            Self::Producer => 4,
            Self::Consumer => 5,
        }
    }
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'v> {
    /// A text.
    Text(&'v str),
    /// A number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl<'v> From<&'v str> for Value<'v> {
    fn from(text: &'v str) -> Self {
        Self::Text(text)
    }
}

impl<'v> From<&'v String> for Value<'v> {
    fn from(text: &'v String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// Makes spans, and has them sent. Cheap to clone; clones are one.
///
/// What is measured here is on the way of a call: nothing waits, and what can't be kept is dropped and counted.
#[derive(Clone)]
pub struct Tracer(Arc<Shared>);

struct Shared {
    sampler: Sampler,
    limit: Option<Limit>,
    /// Whether it was told that there is a limit.
    told: AtomicBool,
    ids: Ids,
    ended: Arc<Waiting>,
    counts: Counts,
    closing: watch::Sender<bool>,
    closed: watch::Receiver<bool>,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").field("sampler", &self.0.sampler).finish_non_exhaustive()
    }
}

/// Ids of spans: never 0, and unlike each other's as random ones are.
struct Ids(AtomicU64);

impl Ids {
    fn new() -> Self {
        let mut seed = [0; 8];
        // Without randomness the process's own time and place are as good as anything.
        if getrandom::fill(&mut seed).is_err() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            seed = (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40).to_ne_bytes();
        }
        Self(AtomicU64::new(u64::from_ne_bytes(seed)))
    }

    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        mixed(self.0.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// A number that has nothing to do with this one for anybody who looks (SplitMix64); never 0.
pub fn mixed(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

impl Tracer {
    /// Has spans sent to where `settings` say, until it is closed. They are told to come from `service`, if those don't say otherwise, and from the process `instance`.
    ///
    /// To be called in a tokio runtime.
    pub fn start(settings: Settings, service: &str, instance: &str, counts: Counts) -> Self {
        let ended = Arc::new(Waiting::new(settings.batch, settings.queue));
        let (closing, told_to_close) = watch::channel(false);
        let (tell_closed, closed) = watch::channel(false);
        let (sampler, waiting) = (settings.sampler, Arc::clone(&ended));
        let export = export::Export::new(settings, service, instance, counts.clone());
        tokio::spawn(async move {
            export.run(&waiting, told_to_close).await;
            // Nobody may wait for it.
            let _ = tell_closed.send(true);
        });
        let limit = sampler.most_begun.map(|most| Limit::new(most, Instant::now()));
        Self(Arc::new(Shared { sampler, limit, told: AtomicBool::new(false), ids: Ids::new(), ended, counts, closing, closed }))
    }

    /// Begins a span: below `parent`, or at the root of the trace `root`, which must not be 0. `None` if it is not to be kept; [what tells so](Self::not_kept) is to be handed on.
    pub fn begin(&self, kind: Kind, name: &str, parent: Option<Context>, root: u128) -> Option<Span> {
        let trace = parent.map_or(root, |parent| parent.trace);
        if !self.0.sampler.keeps(trace, parent) || (parent.is_none() && !self.has_room_for_another()) {
            return None;
        }
        let context = Context { trace, span: self.0.ids.next(), sampled: true };
        let parent = parent.map(|parent| Parent { span: parent.span, elsewhere: true });
        Some(self.made(kind, name, context, parent))
    }

    /// Whether not as many traces have begun in this second as may.
    fn has_room_for_another(&self) -> bool {
        let Some(limit) = self.0.limit.as_ref().filter(|limit| !limit.takes(Instant::now())) else { return true };
        self.0.counts.limited();
        if !self.0.told.swap(true, Ordering::Relaxed) {
            let most = limit.most();
            tracing::info!(
                "more than {most} traces a second begin here, of which no more are kept; OTEL_TRACES_SAMPLER=parentbased_always_on keeps all. Told once; bluebox_trace_spans_total counts them"
            );
        }
        false
    }

    /// What a request carries on whose trace `root` began here and is not kept, so that nobody keeps a part of it.
    pub fn not_kept(&self, root: u128) -> Context {
        Context { trace: root, span: self.0.ids.next(), sampled: false }
    }

    /// Begins a span below one of this process that is kept.
    pub fn below(&self, above: Context, kind: Kind, name: &str) -> Span {
        let context = Context { trace: above.trace, span: self.0.ids.next(), sampled: true };
        self.made(kind, name, context, Some(Parent { span: above.span, elsewhere: false }))
    }

    fn made(&self, kind: Kind, name: &str, context: Context, parent: Option<Parent>) -> Span {
        let mut bytes = Vec::with_capacity(ROOM);
        encode::begun(&mut bytes, kind.number(), name);
        if let Some(parent) = parent {
            encode::parent(&mut bytes, parent.span);
        }
        let (start, began) = (SystemTime::now(), Instant::now());
        let elsewhere = parent.is_some_and(|parent| parent.elsewhere);
        Span { tracer: self.clone(), open: Some(Box::new(Open { context, elsewhere, start, began, bytes, error: None })) }
    }

    /// Sends what has ended until now, and then no more. Gives up after `within`.
    pub async fn close(&self, within: Duration) {
        self.0.closing.send_replace(true);
        let mut closed = self.0.closed.clone();
        if tokio::time::timeout(within, closed.wait_for(|closed| *closed)).await.is_err() {
            tracing::warn!("the last spans were not all sent: what takes them did not answer within {} ms", within.as_millis());
        }
    }
}

/// What a span is below.
#[derive(Debug, Clone, Copy)]
struct Parent {
    span: u64,
    elsewhere: bool,
}

/// Bytes that most spans have room in.
const ROOM: usize = 640;

/// Something that takes time. Dropped without having been ended, it was cut off.
#[derive(Debug)]
pub struct Span {
    tracer: Tracer,
    /// There until it has ended.
    open: Option<Box<Open>>,
}

/// A span that has not ended.
#[derive(Debug)]
struct Open {
    context: Context,
    elsewhere: bool,
    start: SystemTime,
    began: Instant,
    /// What is known of it already, as it is sent.
    bytes: Vec<u8>,
    error: Option<Cow<'static, str>>,
}

impl Span {
    /// A span below this one.
    pub fn child(&self, kind: Kind, name: &str) -> Self {
        // Only one that has ended has none, and nobody has that any more.
        self.tracer.below(self.context().unwrap_or(Context { trace: 1, span: 1, sampled: true }), kind, name)
    }

    /// What is handed on to whoever comes below it.
    pub fn context(&self) -> Option<Context> {
        self.open.as_ref().map(|open| open.context)
    }

    /// With an id that others can find out too.
    #[must_use]
    pub fn with_id(mut self, id: u64) -> Self {
        if let Some(open) = &mut self.open {
            open.context.span = id.max(1);
        }
        self
    }

    /// As one that began then.
    #[must_use]
    pub fn since(mut self, began: Instant) -> Self {
        if let Some(open) = &mut self.open {
            let earlier = open.began.saturating_duration_since(began);
            open.start = open.start.checked_sub(earlier).unwrap_or(open.start);
            open.began = began;
        }
        self
    }

    /// As one that began when the wall clock showed this, or begins now if that is later.
    #[must_use]
    pub fn since_wall_clock(mut self, start: SystemTime) -> Self {
        if let Some(open) = &mut self.open {
            let earlier = open.start.duration_since(start).unwrap_or_default();
            open.start -= earlier;
            open.began = open.began.checked_sub(earlier).unwrap_or(open.began);
        }
        self
    }

    /// Begins it anew, now.
    pub fn restart(&mut self) {
        if let Some(open) = &mut self.open {
            (open.start, open.began) = (SystemTime::now(), Instant::now());
        }
    }

    /// Says something of it.
    pub fn set<'v>(&mut self, key: &'static str, value: impl Into<Value<'v>>) {
        if let Some(open) = &mut self.open {
            encode::attribute(&mut open.bytes, key, value.into());
        }
    }

    /// Points to another span; `what` says what that is to it.
    pub fn link(&mut self, to: Context, what: &'static str) {
        if let Some(open) = &mut self.open {
            encode::link(&mut open.bytes, &to, what);
        }
    }

    /// It did not go well.
    pub fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        if let Some(open) = &mut self.open {
            open.error = Some(why.into());
        }
    }

    /// It is over, now.
    pub fn end(mut self) {
        self.send();
    }

    fn send(&mut self) {
        let Some(open) = self.open.take() else { return };
        let Open { context, elsewhere, start, began, mut bytes, error } = *open;
        if let Some(why) = error {
            encode::failed(&mut bytes, &why);
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let start = start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        encode::ended(&mut bytes, &context, elsewhere, nanos(start), nanos(start + began.elapsed()));
        let to = &self.tracer.0;
        if !to.ended.push(&bytes) {
            to.counts.dropped();
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = &mut self.open {
            open.error.get_or_insert(Cow::Borrowed("cut off"));
            self.send();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unlike_each_other() {
        let ids = Ids::new();
        let drawn: HashSet<u64> = (0..10_000).map(|_| ids.next()).collect();
        assert!(drawn.len() == 10_000 && !drawn.contains(&0));
        assert_ne!(Ids::new().next(), Ids::new().next());
        assert_eq!(mixed(0), 1);
    }
}

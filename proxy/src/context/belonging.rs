//! Which call into the app a request out of it belongs to, as far as that can be known: a pure state machine.
//!
//! It never guesses. What it goes by, in this order: the trace that the app copied from the call (the very span that was handed in, else the trace), else that all calls under way have the
//! same context, which is so when there is only one. Where these leave several possibilities that are not the same, the context is *lost*.

use std::collections::BTreeMap;
use std::time::Duration;

use bluebox_core::clock::{Moment, OnceAMinute};
use http::HeaderValue;

use super::trace::Trace;

/// Deliveries without an answer that are remembered, in whose name the app may still be working. Beyond, one only knows that there are such.
const MOST_LINGERING: usize = 256;

/// The calls that the app is at.
#[derive(Debug, Default)]
pub struct Belonging {
    under_way: BTreeMap<u64, Entry>,
    last: u64,
    /// How many of those under way have ended without an answer.
    lingering: usize,
    /// Until then there may be some in whose name the app works, and of which nothing is known any more.
    blind_until: Option<Moment>,
    lost: OnceAMinute,
}

#[derive(Debug)]
struct Entry {
    context: Option<HeaderValue>,
    trace: Option<Trace>,
    /// It ended without an answer: until then the app may go on working in its name.
    lingers_until: Option<Moment>,
}

/// What a request out of the app belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belongs {
    /// To a call with this context.
    To(HeaderValue),
    /// To no call with a context.
    ToNone,
    /// That can't be known.
    Lost(Lost),
}

/// Why it can't be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Several calls are under way, and the app copied no trace.
    SeveralCalls,
    /// Several calls of the trace are under way.
    SeveralInTrace,
    /// It belongs to a trace that none of the calls under way was handed in with.
    AnotherTrace,
    /// The app copied no trace, and nothing else counts (`pass-context: traced`).
    NoTrace,
}

impl Lost {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::SeveralCalls, Self::SeveralInTrace, Self::AnotherTrace, Self::NoTrace];

    /// The word for it in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SeveralCalls => "several_calls",
            Self::SeveralInTrace => "several_in_trace",
            Self::AnotherTrace => "another_trace",
            Self::NoTrace => "no_trace",
        }
    }
}

impl Belonging {
    /// A call with this context and this trace is being handed to the app.
    pub fn begun(&mut self, context: Option<HeaderValue>, trace: Option<Trace>) -> u64 {
        self.last += 1;
        self.under_way.insert(self.last, Entry { context, trace, lingers_until: None });
        self.last
    }

    /// It has ended: with an answer, or without one, and then the app may work on for as long as this.
    pub fn ended(&mut self, now: Moment, delivery: u64, goes_on_for: Option<Duration>) {
        self.forget(now);
        let Some(time) = goes_on_for else {
            self.under_way.remove(&delivery);
            return;
        };
        if self.lingering >= MOST_LINGERING {
            self.under_way.remove(&delivery);
            self.cut_off(now, time);
        } else if let Some(entry) = self.under_way.get_mut(&delivery) {
            entry.lingers_until = Some(now + time);
            self.lingering += 1;
        }
    }

    /// A call of which nothing is known was cut off: the app may work on in its name for as long as this.
    pub fn cut_off(&mut self, now: Moment, goes_on_for: Duration) {
        self.blind_until = self.blind_until.max(Some(now + goes_on_for));
    }

    /// What a request with this trace belongs to. Besides those that are known here, so many `unseen` calls are under way, which have no context. `traced_only`: nothing but a trace counts.
    pub fn of(&mut self, now: Moment, trace: Option<Trace>, unseen: usize, traced_only: bool) -> Belongs {
        self.forget(now);
        if self.under_way.values().all(|entry| entry.context.is_none()) {
            return Belongs::ToNone;
        }
        let unseen = unseen > 0 || self.blind_until.is_some();
        if let Some(trace) = trace {
            let of_span = |entry: &&Entry| entry.trace == Some(trace);
            let of_trace = |entry: &&Entry| entry.trace.is_some_and(|t| t.id == trace.id);
            if self.under_way.values().any(|entry| of_span(&entry)) {
                return agreed(self.under_way.values().filter(of_span), unseen, Lost::SeveralInTrace);
            }
            if self.under_way.values().any(|entry| of_trace(&entry)) {
                return agreed(self.under_way.values().filter(of_trace), unseen, Lost::SeveralInTrace);
            }
            // The app continues no trace that it was handed; but where it was handed one, this is another's: of work that it does by itself, perhaps.
            if traced_only || self.under_way.values().any(|entry| entry.trace.is_some()) {
                return Belongs::Lost(Lost::AnotherTrace);
            }
        } else if traced_only {
            return Belongs::Lost(Lost::NoTrace);
        }
        agreed(self.under_way.values(), unseen, Lost::SeveralCalls)
    }

    /// A context was lost. How many were since it was last told, if it is time to tell of it again.
    pub fn lost(&mut self, now: Moment) -> Option<u64> {
        self.lost.happened(now)
    }

    /// How many calls are remembered.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    fn forget(&mut self, now: Moment) {
        if self.lingering > 0 {
            self.under_way.retain(|_, entry| entry.lingers_until.is_none_or(|until| now < until));
            self.lingering = self.under_way.values().filter(|entry| entry.lingers_until.is_some()).count();
        }
        self.blind_until = self.blind_until.filter(|until| now < *until);
    }
}

/// The context that all of these have, if it is the same. One of which nothing is known has none, or may have any trace.
fn agreed<'e>(mut entries: impl Iterator<Item = &'e Entry>, unseen: bool, else_lost: Lost) -> Belongs {
    let Some(first) = entries.next() else { return Belongs::ToNone };
    match (&first.context, entries.all(|entry| entry.context == first.context)) {
        (None, true) => Belongs::ToNone,
        (Some(context), true) if !unseen => Belongs::To(context.clone()),
        _ => Belongs::Lost(else_lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn context(text: &'static str) -> Option<HeaderValue> {
        Some(HeaderValue::from_static(text))
    }

    fn trace(id: u128, span: u64) -> Option<Trace> {
        Some(Trace { id, span })
    }

    fn to(text: &'static str) -> Belongs {
        Belongs::To(HeaderValue::from_static(text))
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    fn of(calls: &mut Belonging, trace: Option<Trace>) -> Belongs {
        calls.of(at(0), trace, 0, false)
    }

    #[test]
    fn of_the_only_call() {
        let mut calls = Belonging::default();
        assert_eq!(of(&mut calls, None), Belongs::ToNone);
        let one = calls.begun(context("a"), None);
        assert_eq!(of(&mut calls, None), to("a"));
        assert_eq!(of(&mut calls, trace(9, 9)), to("a"), "the app began a trace, because it was handed none");
        calls.ended(at(0), one, None);
        assert_eq!(of(&mut calls, None), Belongs::ToNone);
        assert!(calls.is_empty());
    }

    #[test]
    fn between_two_nothing_is_guessed() {
        for other in [None, context("b")] {
            let mut calls = Belonging::default();
            let one = calls.begun(context("a"), None);
            let two = calls.begun(other.clone(), None);
            assert_eq!(of(&mut calls, None), Belongs::Lost(Lost::SeveralCalls));
            calls.ended(at(0), one, None);
            assert_eq!(of(&mut calls, None), other.map_or(Belongs::ToNone, Belongs::To));
            calls.ended(at(0), two, None);
        }
    }

    #[test]
    fn between_two_of_one_context_nothing_has_to_be_guessed() {
        let mut calls = Belonging::default();
        calls.begun(context("a"), None);
        calls.begun(context("a"), None);
        assert_eq!(of(&mut calls, None), to("a"));
    }

    #[test]
    fn without_any_context_nothing_is_lost() {
        let mut calls = Belonging::default();
        calls.begun(None, trace(1, 1));
        calls.begun(None, None);
        for trace in [None, trace(1, 1), trace(7, 7)] {
            assert_eq!(calls.of(at(0), trace, 5, true), Belongs::ToNone);
        }
    }

    #[test]
    fn a_copied_trace_tells_calls_apart() {
        let mut calls = Belonging::default();
        calls.begun(context("a"), trace(1, 10));
        calls.begun(context("b"), trace(2, 20));
        calls.begun(None, trace(3, 30));
        assert_eq!(of(&mut calls, trace(1, 11)), to("a"), "an app that makes spans of its own");
        assert_eq!(of(&mut calls, trace(2, 20)), to("b"), "one that copies the field as it is");
        assert_eq!(of(&mut calls, trace(3, 31)), Belongs::ToNone, "it belongs to a call without a context: nothing is lost");
        assert_eq!(of(&mut calls, trace(4, 40)), Belongs::Lost(Lost::AnotherTrace));
        assert_eq!(of(&mut calls, None), Belongs::Lost(Lost::SeveralCalls));
    }

    #[test]
    fn in_one_trace_the_span_tells_calls_apart() {
        let mut calls = Belonging::default();
        calls.begun(context("a"), trace(1, 10));
        calls.begun(None, trace(1, 11));
        assert_eq!(of(&mut calls, trace(1, 10)), to("a"));
        assert_eq!(of(&mut calls, trace(1, 11)), Belongs::ToNone);
        assert_eq!(of(&mut calls, trace(1, 12)), Belongs::Lost(Lost::SeveralInTrace));
        calls.begun(None, trace(1, 10));
        assert_eq!(of(&mut calls, trace(1, 10)), Belongs::Lost(Lost::SeveralInTrace), "the caller copied it too");
    }

    #[test]
    fn work_of_the_app_itself_is_not_taken_for_the_calls() {
        let mut calls = Belonging::default();
        calls.begun(context("a"), trace(1, 10));
        assert_eq!(of(&mut calls, trace(2, 20)), Belongs::Lost(Lost::AnotherTrace));
        assert_eq!(of(&mut calls, None), to("a"), "an app that copies nothing");
    }

    #[test]
    fn calls_that_nobody_looked_at_count() {
        let mut calls = Belonging::default();
        calls.begun(context("a"), trace(1, 10));
        assert_eq!(calls.of(at(0), None, 1, false), Belongs::Lost(Lost::SeveralCalls));
        assert_eq!(calls.of(at(0), trace(1, 10), 1, false), Belongs::Lost(Lost::SeveralInTrace), "it may have been handed the same trace");
    }

    #[test]
    fn where_only_traces_count_the_only_call_does_not() {
        let mut calls = Belonging::default();
        calls.begun(context("a"), trace(1, 10));
        assert_eq!(calls.of(at(0), None, 0, true), Belongs::Lost(Lost::NoTrace));
        assert_eq!(calls.of(at(0), trace(1, 11), 0, true), to("a"));
    }

    #[test]
    fn an_attempt_without_an_answer_may_go_on() {
        let mut calls = Belonging::default();
        let first = calls.begun(context("a"), None);
        calls.ended(at(0), first, Some(MINUTE));
        calls.begun(context("b"), None);
        assert_eq!(calls.of(at(59), None, 0, false), Belongs::Lost(Lost::SeveralCalls));
        assert_eq!(calls.of(at(60), None, 0, false), to("b"));
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_forgotten_is_not_guessed() {
        let mut calls = Belonging::default();
        for _ in 0..10 * MOST_LINGERING {
            let delivery = calls.begun(context("a"), None);
            calls.ended(at(0), delivery, Some(MINUTE));
        }
        assert_eq!(calls.len(), MOST_LINGERING);
        let delivery = calls.begun(context("b"), None);
        calls.ended(at(10), delivery, Some(MINUTE));
        calls.begun(context("a"), None);
        assert_eq!(calls.of(at(60), None, 0, false), Belongs::Lost(Lost::SeveralCalls), "that of b has been forgotten");
        assert_eq!(calls.of(at(70), None, 0, false), to("a"));
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn it_is_told_once_a_minute() {
        let mut calls = Belonging::default();
        assert_eq!(calls.lost(at(0)), Some(1));
        assert_eq!(calls.lost(at(1)), None);
        assert_eq!(calls.lost(at(2)), None);
        assert_eq!(calls.lost(at(60)), Some(3));
    }

    /// Against an oracle that knows whose request it is: what is said is never another's context.
    #[derive(Debug, Clone)]
    enum Step {
        Begin(Option<u8>, Option<(u8, u8)>),
        End(u8, bool),
        Ask { whose: u8, copies: bool, own_span: bool },
    }

    fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
        use proptest::prelude::*;
        let begin = (proptest::option::of(0u8..3), proptest::option::of((1u8..4, 1u8..4))).prop_map(|(context, trace)| Step::Begin(context, trace));
        let end = (any::<u8>(), any::<bool>()).prop_map(|(which, answered)| Step::End(which, answered));
        let ask = (any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(whose, copies, own_span)| Step::Ask { whose, copies, own_span });
        proptest::collection::vec(prop_oneof![3 => begin, 1 => end, 4 => ask], 1..40)
    }

    proptest::proptest! {
        #[test]
        fn what_is_said_is_never_anothers(steps in steps()) {
            let mut calls = Belonging::default();
            let mut known: Vec<(u64, Option<HeaderValue>, Option<Trace>, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Begin(context, trace) => {
                        let context = context.map(|n| HeaderValue::from(u16::from(n)));
                        let trace = trace.map(|(id, span)| Trace { id: id.into(), span: span.into() });
                        known.push((calls.begun(context.clone(), trace), context, trace, true));
                    }
                    Step::End(which, answered) => {
                        let living: Vec<usize> = (0..known.len()).filter(|n| known[*n].3).collect();
                        if let Some(n) = living.get(usize::from(which) % living.len().max(1)).copied() {
                            calls.ended(at(0), known[n].0, (!answered).then_some(MINUTE));
                            known[n].3 = false;
                            if answered {
                                known.remove(n);
                            }
                        }
                    }
                    // The app works in the name of one of them: of one that was cut off, too.
                    Step::Ask { whose, copies, own_span } => {
                        let Some((_, context, trace, _)) = known.get(usize::from(whose) % known.len().max(1)) else { continue };
                        let copied = trace.filter(|_| copies).map(|t| if own_span { Trace { span: 99, ..t } } else { t });
                        match calls.of(at(1), copied, 0, false) {
                            Belongs::To(said) => proptest::prop_assert_eq!(Some(said), context.clone()),
                            Belongs::ToNone => proptest::prop_assert_eq!(&None, context),
                            Belongs::Lost(_) => {}
                        }
                    }
                }
            }
        }
    }
}

//! One who is called: for what, how often, and when again.

use std::time::Duration;

use bluebox_core::log::Timestamp;
use bluebox_core::planted;

use crate::TransactionId;
use crate::callback::{CallbackKey, Callee, Phase};
use crate::time::{backoff, later};

/// How often and for how long things are tried.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rules {
    /// The pause after the first outcome that asks for another call; it doubles. Default 200 ms.
    pub first_pause: Duration,
    /// The longest pause. Default 5 s: what has healed is noticed within it.
    pub longest_pause: Duration,
    /// How long those who joined earlier wait for the first outcome of one who joined later before they are asked to compensate too. Default 10 s.
    pub patience: Duration,
    /// How long what has ended is kept, so that its outcome can be asked for. Default 24 h.
    pub retention: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
        Self { first_pause: Duration::from_millis(200), longest_pause: 5 * second, patience: 10 * second, retention: 24 * hour }
    }
}

/// The end of a pause; now, if no pause that was begun by this clock could end so late.
pub fn possible_pause(until: Timestamp, now: Timestamp, rules: &Rules) -> Timestamp {
    if until > later(now, rules.longest_pause) { now } else { until }
}

/// The longest text of an error that is kept.
const MAX_ERROR: usize = 300;

/// What was said, and the reason that was given for it.
pub fn with_reason(said: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| said.to_owned(), |reason| format!("{said}: {reason}"))
}

/// What one callee is asked for now. It is part of the record: a new owner goes on with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Line {
    /// What is asked for; `None`: nothing.
    pub phase: Option<Phase>,
    /// Outcomes so far that asked for another call; never reset, so that no key comes twice.
    pub n: u32,
    /// Of those, the ones in a row since something new was asked for.
    pub failures: u32,
    /// The call is not made before this.
    pub not_before: Timestamp,
    /// What was last said that made another call necessary, or that it failed for good, and why.
    pub last_error: Option<String>,
}

impl Line {
    /// Asks for something new, from now on.
    pub fn ask(&mut self, phase: Phase, now: Timestamp) {
        *self = Self { phase: Some(phase), n: self.n, failures: 0, not_before: now, last_error: self.last_error.take() };
    }

    /// The last call has had an outcome, which asks for another one.
    pub fn ask_again(&mut self, phase: Phase, now: Timestamp, rules: &Rules, error: Option<String>) {
        if !planted!(TxnKeyReused) {
            self.n = self.n.saturating_add(1);
        }
        self.failures = self.failures.saturating_add(1);
        self.phase = Some(phase);
        self.not_before = later(now, backoff(rules.first_pause, rules.longest_pause, self.failures));
        if let Some(mut error) = error {
            if let Some((at, _)) = error.char_indices().nth(MAX_ERROR) {
                error.truncate(at);
            }
            self.last_error = Some(error);
        }
    }

    /// Ends a pause that can't be: none is longer than the longest. A clock has begun it that was ahead of this one: that of a former owner, or this one before it was set.
    pub fn end_impossible_pause(&mut self, now: Timestamp, rules: &Rules) {
        self.not_before = possible_pause(self.not_before, now, rules);
    }

    /// Nothing more is asked for.
    pub fn end(&mut self) {
        self.phase = None;
        self.failures = 0;
    }

    /// An operator has given up on it: nothing more is asked for.
    pub fn give_up(&mut self) {
        self.end();
        self.last_error = Some(match self.last_error.take() {
            Some(error) => format!("an operator gave it up; before: {error}"),
            None => "an operator gave it up".to_owned(),
        });
    }

    /// The call that is without an outcome, if there is one.
    pub fn key(&self, transaction: TransactionId, callee: Callee) -> Option<CallbackKey> {
        self.phase.map(|phase| CallbackKey { transaction, callee, phase, n: self.n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_with_outcomes_only_and_pauses_with_failures() {
        let (rules, at) = (Rules::default(), Timestamp::from_millis);
        let mut line = Line::default();
        line.ask(Phase::Complete, at(1_000));
        assert_eq!((line.n, line.not_before), (0, at(1_000)));
        line.ask_again(Phase::Status, at(2_000), &rules, Some("x".repeat(1_000)));
        assert_eq!((line.n, line.not_before, line.last_error.as_ref().unwrap().len()), (1, at(2_200), MAX_ERROR));
        line.ask_again(Phase::Status, at(3_000), &rules, None);
        assert_eq!((line.n, line.not_before), (2, at(3_400)));
        line.end();
        line.ask(Phase::Compensate, at(9_000));
        assert_eq!((line.n, line.failures, line.not_before), (2, 0, at(9_000)));
    }
}

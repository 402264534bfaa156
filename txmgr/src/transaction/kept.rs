//! The outcome of the call that ended an LRA, kept with the decision: a box whose rule ends the transaction of a call can die before the outcome of that call is in the log, and whoever gets the
//! call then must not do it again, and has no other place to learn how it was answered.
//!
//! It is what the box says it is: nothing looks into it, and nobody is shown it but who gets the same call again in the name of the same component.

use std::fmt;

use bluebox_core::call::MAX_KEPT_OUTCOME_BYTES;
use bluebox_core::{CallId, ComponentName};
use bytes::Bytes;

/// How much of the log an outcome may take with all records of its transaction together, in bytes. Each record is the whole of a transaction, and one whose participant is away for days has many.
const MAX_WRITTEN_BYTES: usize = 1 << 20;

/// Whose outcome it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutcomeOf {
    /// The call.
    pub call: CallId,
    /// Which life of it: how often it was replayed out of the dead letters.
    pub replay: u32,
    /// The component that was called, and ends the LRA. Its proxy says so of itself, and no app can.
    pub component: ComponentName,
}

/// An outcome, kept.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Kept {
    /// Whose it is.
    pub of: OutcomeOf,
    /// As its proxy has encoded it; `None`: it was too long, or has been written too often, or others were kept instead.
    pub outcome: Option<Bytes>,
    /// How many records it was written in.
    pub written: u32,
}

impl Kept {
    /// An outcome that is to be kept. One of more than [`MAX_KEPT_OUTCOME_BYTES`], or none, is only known to have been there.
    pub fn new(of: OutcomeOf, outcome: Bytes) -> Self {
        let fits = !outcome.is_empty() && outcome.len() <= MAX_KEPT_OUTCOME_BYTES;
        Self { of, outcome: fits.then_some(outcome), written: 0 }
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.outcome.as_ref().map_or(0, Bytes::len)
    }

    /// Whether this is kept already for the same call, and says something else than `other`: two boxes had the call, and one of them does not know that it is not its owner any more.
    pub(super) fn overrules(&self, other: &Self) -> bool {
        self.of == other.of && self.outcome.is_some() && self.outcome != other.outcome
    }

    /// It is to be written once more.
    pub(super) fn is_written(&mut self) {
        self.written = self.written.saturating_add(1);
        let times = usize::try_from(self.written).unwrap_or(usize::MAX);
        if self.len_bytes().saturating_mul(times) > MAX_WRITTEN_BYTES {
            self.outcome = None;
        }
    }
}

/// What apps say to each other may be secret.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, outcome, written } = self;
        f.debug_struct("Kept").field("of", of).field("bytes", &outcome.as_ref().map(Bytes::len)).field("written", written).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bytes: usize) -> Kept {
        let of = OutcomeOf { call: CallId::from_bytes([1; 16]), replay: 0, component: ComponentName::try_new("trip").unwrap() };
        Kept::new(of, Bytes::from(vec![b'x'; bytes]))
    }

    #[test]
    fn what_is_too_long_or_written_too_often_is_not_kept() {
        assert_eq!((kept(0).outcome, kept(MAX_KEPT_OUTCOME_BYTES + 1).outcome), (None, None));
        let mut longest = kept(MAX_KEPT_OUTCOME_BYTES);
        let mut writes = 0;
        while longest.outcome.is_some() {
            longest.is_written();
            writes += 1;
        }
        assert_eq!(writes, MAX_WRITTEN_BYTES / MAX_KEPT_OUTCOME_BYTES + 1);
    }

    #[test]
    fn one_that_says_something_else_for_the_same_call_is_overruled_and_no_other() {
        let (one, other) = (kept(1), kept(2));
        assert!(one.overrules(&other) && !one.overrules(&one));
        let of_another = Kept { of: OutcomeOf { replay: 1, ..one.of.clone() }, ..other.clone() };
        assert!(!one.overrules(&of_another) && !Kept { outcome: None, ..one }.overrules(&other));
    }
}

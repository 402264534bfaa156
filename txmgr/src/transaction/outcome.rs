//! What the outcome of a callback changes.

use std::sync::Arc;

use bluebox_core::log::Timestamp;
use bluebox_core::planted;

use super::{MAX_LRA_BYTES, Participant, Transaction};
use crate::callback::{CallbackKey, Callee, Outcome, Phase};
use crate::effect::Effect;
use crate::line::{Rules, with_reason};
use crate::wire::status::ParticipantStatus;

impl Transaction {
    pub(super) fn apply_outcome(&mut self, now: Timestamp, key: CallbackKey, outcome: Outcome, out: &mut Vec<Effect>) {
        if key.transaction != self.lra.id {
            return;
        }
        if key.callee == Callee::PARENT {
            return self.enlist_ended(now, key, outcome, out);
        }
        let id = self.lra.id;
        let nested = self.lra.parent.is_some();
        // What does not fit into the record is as if it had not been said: who takes their time are asked again then.
        let outcome = match outcome {
            Outcome::InProgress(Some(place)) if self.lra.len_bytes() + place.len() > MAX_LRA_BYTES => Outcome::InProgress(None),
            outcome => outcome,
        };
        let Some(participant) = self.lra.participants.iter_mut().find(|p| p.callee == key.callee) else { return };
        let waited_for = participant.line.key(id, key.callee);
        let late = waited_for != Some(key);
        if late && !(planted!(TxnLateOutcomes) && waited_for.is_some()) {
            // An outcome that another owner has been told too, or that comes twice.
            return;
        }
        self.under_way.remove(&key.callee);
        match key.phase {
            Phase::After if outcome == Outcome::Done => {
                participant.told_after = true;
                participant.line.end();
            }
            Phase::Forget if outcome == Outcome::Done => {
                participant.told_forget = true;
                participant.line.end();
            }
            Phase::After | Phase::Forget => participant.line.ask_again(key.phase, now, &self.rules, Some(in_words(&outcome))),
            _ => participant.answered(now, key.phase, outcome, nested, &self.rules),
        }
        // The number of the next call must be durable before it is used. That nothing more is asked can be learned again, and what others say makes a record soon.
        let again = participant.line.phase.is_some();
        if !again && self.lra.participants.iter().any(|p| p.line.phase.is_some()) { self.gate.change_by_and_by() } else { self.gate.change() }
    }
}

/// What an outcome says of a participant that was asked to complete or to compensate.
enum Says {
    Done,
    Failed,
    InProgress,
    /// It knows nothing of having been asked.
    NotBegun,
    Nonsense,
}

impl Participant {
    /// The outcome of complete, compensate or status.
    fn answered(&mut self, now: Timestamp, phase: Phase, outcome: Outcome, nested: bool, rules: &Rules) {
        let compensating = self.status == ParticipantStatus::Compensating;
        self.tried = true;
        let main = if compensating { Phase::Compensate } else { Phase::Complete };
        let says = match &outcome {
            Outcome::Done => Says::Done,
            Outcome::Failed(_) => Says::Failed,
            Outcome::InProgress(_) => Says::InProgress,
            Outcome::Says(status) => self.names(*status, compensating, nested),
            Outcome::Again(_) => Says::Nonsense,
        };
        if let Outcome::InProgress(Some(place)) = &outcome {
            // "If there is no @Status method then the response MAY provide a status URL in the HTTP Location header" ("Eventual compensations").
            self.poll = Some(Arc::from(place.as_str()));
        }
        match says {
            Says::Done => {
                self.status = if compensating { ParticipantStatus::Compensated } else { ParticipantStatus::Completed };
                self.line.end();
            }
            Says::Failed => {
                self.status = if compensating { ParticipantStatus::FailedToCompensate } else { ParticipantStatus::FailedToComplete };
                self.line.last_error = Some(in_words(&outcome));
                self.line.end();
            }
            // "If there is no @Status then the @Compensate or @Complete methods will continue to be invoked until the implementation knows it has the final status" ("Compensating Activities").
            Says::InProgress => {
                self.was_in_progress = true;
                let next = if self.status_url().is_some() { Phase::Status } else { main };
                self.line.ask_again(next, now, rules, None);
            }
            // "the ParticipantStatus will indicate … Active. The implementation MUST repeat the invocation" ("Reporting the status of a participant").
            Says::NotBegun => self.line.ask_again(main, now, rules, None),
            // Nobody knows what has happened: "As the participant defines the @Status method the LRA implementation MUST invoke it" (there); without one it is asked again. For ever, or until an
            // operator ends it.
            Says::Nonsense => {
                let next = if phase != Phase::Status && self.status_url().is_none() { main } else { Phase::Status };
                self.line.ask_again(next, now, rules, Some(in_words(&outcome)));
            }
        }
    }

    /// A participant names its status.
    fn names(&self, status: ParticipantStatus, compensating: bool, nested: bool) -> Says {
        use ParticipantStatus as P;
        match (compensating, status) {
            (false, P::Completed) | (true, P::Compensated) => Says::Done,
            (false, P::Completing) | (true, P::Compensating) => Says::InProgress,
            (false, P::FailedToComplete) | (true, P::FailedToCompensate) => Says::Failed,
            (_, P::Active) => Says::NotBegun,
            // In a nested LRA it has completed before, and a nested LRA may have closed by itself: Completed → Compensating is still to come. Completing is to be waited for.
            (true, P::Completed) if nested || self.links.nested.is_some() => Says::NotBegun,
            (true, P::Completing) if nested || self.links.nested.is_some() => Says::InProgress,
            // A nested LRA may cancel by itself while its parent closes ("Nesting LRAs", 1): nothing of it is left.
            (false, P::Compensated) if self.links.nested.is_some() => Says::Done,
            (false, P::Compensating) if self.links.nested.is_some() => Says::InProgress,
            (false, P::FailedToCompensate) if self.links.nested.is_some() => Says::Failed,
            // "compensation violations include the case where a participant completes when asked to compensate … Similar remarks apply to completion violations" ("The Model").
            (true, P::Completed | P::FailedToComplete) | (false, P::Compensated | P::FailedToCompensate) => Says::Failed,
            (true, P::Completing) | (false, P::Compensating) => Says::Nonsense,
        }
    }
}

fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::InProgress(_) => "in progress".to_owned(),
        Outcome::Failed(reason) => with_reason("it said that it failed for good", reason.as_deref()),
        Outcome::Says(status) => format!("it said {status}"),
        Outcome::Again(what) => what.clone(),
    }
}

//! An LRA as participant of another one ("Nesting LRAs"): it is an LRA of its own, with an owner of its own, and its parent calls it as it calls any other participant.

use bluebox_core::log::Timestamp;

use super::{Transaction, Waiter, Waits};
use crate::callback::{CallbackKey, Callee, Outcome, Phase};
use crate::effect::{Answer, Effect, Refusal, RequestId};
use crate::wire::status::{LraStatus, ParticipantStatus};

impl Transaction {
    /// The parent has (or has not) taken it in.
    pub(super) fn enlist_ended(&mut self, now: Timestamp, key: CallbackKey, outcome: Outcome, out: &mut Vec<Effect>) {
        let id = self.lra.id;
        let Some(parent) = self.lra.parent.as_mut().filter(|p| p.line.key(id, Callee::PARENT) == Some(key)) else { return };
        self.under_way.remove(&Callee::PARENT);
        self.gate.change();
        match outcome {
            Outcome::Done => self.enlisted(out),
            Outcome::Failed(_) => {
                parent.line.end();
                // Nobody was told of it: there is nothing in it. But for those who have guessed its name, it ends as any other.
                if self.lra.status == LraStatus::Active {
                    self.decide(now, LraStatus::Cancelling, out);
                }
            }
            outcome => {
                let error = if let Outcome::Again(what) = outcome { Some(what) } else { None };
                parent.line.ask_again(Phase::Enlist, now, &self.rules, error);
            }
        }
    }

    fn enlisted(&mut self, out: &mut Vec<Effect>) {
        let Some(parent) = self.lra.parent.as_mut() else { return };
        parent.line.end();
        parent.enlisted = true;
        self.gate.change();
        for request in std::mem::take(&mut self.starters) {
            self.answer(request, Answer::Started(self.lra.id), out);
        }
    }

    /// It is cancelled before its parent had it: whoever began it is told so.
    pub(super) fn refuse_starters(&mut self, out: &mut Vec<Effect>) {
        let Some(parent) = self.lra.parent.as_mut().filter(|p| !p.enlisted) else { return };
        parent.line.end();
        let parent = parent.id;
        self.under_way.remove(&Callee::PARENT);
        for request in std::mem::take(&mut self.starters) {
            self.answer(request, Answer::Refused(Refusal::NoParent(parent)), out);
        }
    }

    /// The parent calls: `/nested/ID/complete`, `compensate`, `status`, `forget`.
    pub(super) fn of_parent(&mut self, now: Timestamp, request: RequestId, phase: Phase, answer_by: Timestamp, out: &mut Vec<Effect>) {
        let Some(parent) = &self.lra.parent else {
            let refusal = Refusal::OtherKind(self.lra.id);
            return self.answer(request, Answer::Refused(refusal), out);
        };
        let settled = parent.settled;
        if !parent.enlisted && self.lra.status == LraStatus::Active {
            // It has it, then, though nobody has said so yet.
            self.under_way.remove(&Callee::PARENT);
            self.enlisted(out);
        }
        if phase == Phase::Complete
            && let Some(parent) = self.lra.parent.as_mut().filter(|p| !p.closing)
        {
            parent.closing = true;
            self.gate.change();
        }
        match (phase, self.lra.status) {
            (Phase::Complete, LraStatus::Active) => self.decide(now, LraStatus::Closing, out),
            (Phase::Compensate, LraStatus::Active) => self.decide(now, LraStatus::Cancelling, out),
            // "If a nested LRA cancels then all of its children must cancel (even if they closed)" ("Nesting LRAs", 3).
            (Phase::Compensate, LraStatus::Closed) if !settled => self.decide(now, LraStatus::Cancelling, out),
            // It is to be asked again when it has closed.
            (Phase::Compensate, LraStatus::Closing) | (Phase::Status, _) => {
                return self.answer(request, Answer::Participant(self.status_as_participant()), out);
            }
            (Phase::Forget, status) if status.is_final() => {
                if let Some(parent) = self.lra.parent.as_mut().filter(|p| !p.settled) {
                    parent.settled = true;
                    self.gate.change();
                }
            }
            (Phase::Complete | Phase::Compensate, _) => {}
            (_, status) => return self.answer(request, Answer::Refused(Refusal::NotEnded(self.lra.id, status)), out),
        }
        self.waiters.push(Waiter { request, waits: Waits::Parent(phase), answer_by });
    }

    /// What the parent is told now.
    pub(super) fn answer_to_parent(&self, phase: Phase) -> Answer {
        let settled = self.lra.parent.as_ref().is_some_and(|p| p.settled);
        match (phase, self.lra.status) {
            (Phase::Forget, _) => Answer::Done,
            // "A nested LRA can close or cancel independently of its parent" ("Nesting LRAs", 1): there is nothing left to complete.
            (Phase::Complete, LraStatus::Cancelled) => Answer::Gone,
            (Phase::Complete, LraStatus::FailedToCancel) => Answer::Participant(ParticipantStatus::FailedToComplete),
            (Phase::Compensate, LraStatus::FailedToClose) => Answer::Participant(ParticipantStatus::FailedToCompensate),
            // After its forget the effects of a closed one can't be undone any more.
            (Phase::Compensate, LraStatus::Closed) if settled => Answer::Participant(ParticipantStatus::FailedToCompensate),
            _ => Answer::Participant(self.status_as_participant()),
        }
    }
}

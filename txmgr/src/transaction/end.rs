//! The decision, whom to ask and in which order, and when it is over.

use std::sync::Arc;

use bluebox_core::log::Timestamp;
use bluebox_core::planted;

use super::{Kept, Lra, Participant, Transaction, WRITTEN_WITHIN, Waiter, Waits};
use crate::callback::{Callback, CallbackKey, Callee, Phase};
use crate::effect::{Answer, Effect, Refusal, RequestId};
use crate::time::later;
use crate::wire::status::{LraStatus, ParticipantStatus};

impl Transaction {
    /// Close or cancel. Both can be asked for again and again; whoever asks for the other end comes too late (412).
    ///
    /// The first outcome that comes with the end that is decided is kept: in the record of the decision, where it came with that.
    pub(super) fn end(&mut self, now: Timestamp, request: RequestId, to: LraStatus, answer_by: Timestamp, kept: Option<Box<Kept>>, out: &mut Vec<Effect>) {
        let status = self.lra.status;
        let same_end = status.is_cancel() == to.is_cancel();
        // Of two deliveries of one call, which say what is to be kept, the one that is decided first counts.
        let decides = if kept.is_none() { self.is_open_to(to) } else { status == LraStatus::Active };
        if decides || (planted!(TxnDecidesTwice) && !same_end) {
            self.decide(now, to, out);
        } else if !same_end {
            return self.answer(request, Answer::Refused(Refusal::OtherEnd(self.lra.id, status)), out);
        }
        let mut waits = Waits::End;
        match (&self.lra.kept, kept) {
            (None, Some(kept)) => {
                self.lra.kept = Some(kept);
                self.gate.change();
            }
            (Some(there), Some(kept)) if there.overrules(&kept) => waits = Waits::EndOverruled,
            _ => {}
        }
        self.waiters.push(Waiter { request, waits, answer_by });
    }

    /// Whether this end would be decided now. "A nested LRA can close or cancel independently of its parent" ("Nesting LRAs", 1), also one after the other.
    pub(super) fn is_open_to(&self, to: LraStatus) -> bool {
        self.lra.status == LraStatus::Active || (to == LraStatus::Cancelling && self.lra.can_be_undone())
    }

    /// "When the timeout is reached, the LRA moves to the state Cancelling" ("Timing out LRAs"). It is looked at before whatever else happens, so that a close that comes later finds it cancelled
    /// however late the timer is.
    pub(super) fn cancel_if_late(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.lra.status == LraStatus::Active && self.lra.deadline.is_some_and(|deadline| deadline <= now) {
            self.decide(now, LraStatus::Cancelling, out);
        }
    }

    /// The decision: the one commit point. Everybody who has to act on it is named in the same record, with the key of the first call.
    pub(super) fn decide(&mut self, now: Timestamp, to: LraStatus, out: &mut Vec<Effect>) {
        self.lra.ended = None;
        self.set_status(to, out);
        for participant in &mut self.lra.participants {
            participant.tried = false;
            // Where it was to be asked how the other end goes on.
            participant.poll = None;
            let (url, phase, doing, done) = if to == LraStatus::Closing {
                (&participant.links.complete, Phase::Complete, ParticipantStatus::Completing, ParticipantStatus::Completed)
            } else {
                (&participant.links.compensate, Phase::Compensate, ParticipantStatus::Compensating, ParticipantStatus::Compensated)
            };
            if url.is_some() {
                participant.status = doing;
                participant.line.ask(phase, now);
            } else {
                participant.status = done;
                participant.line.end();
            }
        }
        if to == LraStatus::Cancelling {
            self.refuse_starters(out);
        }
    }

    /// What follows from what is: it is called after everything that happens.
    pub(super) fn drive(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        for line in self.lra.lines_mut() {
            line.end_impossible_pause(now, &self.rules);
        }
        self.finish(now, out);
        self.tell(now);
        self.send(now, out);
        self.answer_waiters(now, out);
        self.write_late(now);
    }

    /// What can be written later has its time.
    fn write_late(&mut self, now: Timestamp) {
        if !self.gate.can_wait() {
            self.write_by = None;
        } else if *self.write_by.get_or_insert_with(|| later(now, WRITTEN_WITHIN)) <= now {
            self.gate.hurry();
            self.write_by = None;
        }
    }

    /// Ended is who has asked everybody and got a last answer from everybody; failed is who got a failure ("LRA State Model").
    fn finish(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let lra = &self.lra;
        if !lra.status.is_ending() || !lra.participants.iter().all(|p| p.status.is_final() || p.links.is_listener()) {
            return;
        }
        let failed = lra.participants.iter().any(|p| p.status.is_failed());
        let status = match (lra.status, failed) {
            (LraStatus::Closing, false) => LraStatus::Closed,
            (LraStatus::Closing, true) => LraStatus::FailedToClose,
            (_, false) => LraStatus::Cancelled,
            (_, true) => LraStatus::FailedToCancel,
        };
        self.lra.ended = Some(now);
        self.set_status(status, out);
    }

    /// Who is to be told once the state is the last one: first how it ended, then that it may be forgotten. So nothing comes after a forget.
    ///
    /// A nested LRA that has closed is not there yet: it "must retain the ability to cancel the effects if the parent cancels" ("Nesting LRAs", 2).
    fn tell(&mut self, now: Timestamp) {
        let settled = if planted!(TxnForgetsEarly) { self.lra.status.is_final() } else { self.lra.is_settled() };
        if !settled || self.lra.forgotten {
            return;
        }
        let nested = self.lra.parent.is_some();
        for participant in self.lra.participants.iter_mut().filter(|p| p.line.phase.is_none()) {
            if participant.links.after.is_some() && !participant.told_after {
                participant.line.ask(Phase::After, now);
                self.gate.change();
            } else if wants_forget(participant, nested) && !participant.told_forget {
                participant.line.ask(Phase::Forget, now);
                self.gate.change();
            }
        }
    }

    /// Makes the calls whose time and turn have come, one at a time to each callee.
    fn send(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        for at in (0..self.lra.participants.len()).rev() {
            if self.turn_at(at).is_some_and(|turn| turn <= now)
                && let Some(participant) = self.lra.participants.get(at)
                && let Some(callback) = callback(&self.lra, participant)
            {
                self.call(now, participant.line.not_before, callback, out);
            }
        }
        if let Some(parent) = &self.lra.parent
            && let Some(key) = parent.line.key(self.lra.id, Callee::PARENT)
        {
            let callback = Callback { url: Arc::from(parent.id.key()), ..callback_of(&self.lra, key) };
            self.call(now, parent.line.not_before, callback, out);
        }
    }

    fn call(&mut self, now: Timestamp, not_before: Timestamp, callback: Callback, out: &mut Vec<Effect>) {
        let callee = callback.key.callee;
        if not_before <= now && !self.under_way.contains_key(&callee) {
            let before = out.len();
            self.gate.hold(Effect::Call(callback), out);
            self.under_way.insert(callee, (out.len() > before).then_some(now));
        }
    }

    /// From when on a participant may be called; `None` while that depends on something else than time.
    ///
    /// "All participants that are registered with the LRA will be invoked to perform compensation in the reverse order" ("The Model"); those who take their time, or can't be reached, don't hold
    /// up the others (its footnote). So one has its turn when all who joined later have had a first outcome, or were waited for with patience.
    fn turn_at(&self, at: usize) -> Option<Timestamp> {
        let participant = self.lra.participants.get(at)?;
        let mut turn = Timestamp::default();
        if participant.line.phase != Some(Phase::Compensate) || participant.tried || planted!(TxnOrderIgnored) {
            return Some(turn);
        }
        for later_one in self.lra.participants.iter().skip(at + 1).filter(|p| !p.tried && p.line.phase == Some(Phase::Compensate)) {
            let left = self.under_way.get(&later_one.callee).copied().flatten()?;
            turn = turn.max(later(left, self.rules.patience));
        }
        Some(turn)
    }

    /// When the next call is made, if nothing else happens.
    pub(super) fn next_call_at(&self) -> Option<Timestamp> {
        let participants = self.lra.participants.iter().enumerate().filter(|(_, p)| p.line.phase.is_some() && !self.under_way.contains_key(&p.callee));
        let calls = participants.filter_map(|(at, p)| Some(self.turn_at(at)?.max(p.line.not_before)));
        let parent = self.lra.parent.iter().filter(|p| p.line.phase.is_some() && !self.under_way.contains_key(&Callee::PARENT)).map(|p| p.line.not_before);
        calls.chain(parent).min()
    }

    fn answer_waiters(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let over = self.lra.is_told();
        for waiter in std::mem::take(&mut self.waiters) {
            if !over && waiter.answer_by > now {
                self.waiters.push(waiter);
                continue;
            }
            let answer = match waiter.waits {
                Waits::End => Answer::Status(self.lra.status),
                Waits::EndOverruled => Answer::EndedOtherwise(self.lra.status),
                Waits::Parent(phase) => self.answer_to_parent(phase),
            };
            self.answer(waiter.request, answer, out);
        }
    }
}

/// Whether a participant must be told when it may forget: when it has failed, or once took its time ("Forgetting an LRA"); and in a nested LRA, or being one, when it has completed, because it
/// then had to remember how to compensate ("Nesting LRAs", 2).
fn wants_forget(participant: &Participant, nested: bool) -> bool {
    let had_to_remember = participant.status == ParticipantStatus::Completed && (nested || participant.links.nested.is_some());
    participant.links.forget.is_some() && (participant.status.is_failed() || participant.was_in_progress || had_to_remember)
}

/// The call that a participant is to get now.
fn callback(lra: &Lra, participant: &Participant) -> Option<Callback> {
    let key: CallbackKey = participant.line.key(lra.id, participant.callee)?;
    let links = &participant.links;
    let url = match key.phase {
        Phase::Complete => links.complete.as_ref(),
        Phase::Compensate => links.compensate.as_ref(),
        Phase::Status => participant.status_url(),
        Phase::Forget => links.forget.as_ref(),
        Phase::After => links.after.as_ref(),
        Phase::Enlist | Phase::Action | Phase::Undo => None,
    };
    let ended = (key.phase == Phase::After).then_some(lra.status);
    Some(Callback { url: Arc::clone(url?), data: participant.data.clone(), ended, ..callback_of(lra, key) })
}

fn callback_of(lra: &Lra, key: CallbackKey) -> Callback {
    let parent = lra.parent.as_ref().map(|parent| Arc::clone(&parent.url));
    Callback { key, url: Arc::from(""), base: Some(Arc::clone(&lra.base)), parent, data: None, ended: None, step: None, not_after: None }
}

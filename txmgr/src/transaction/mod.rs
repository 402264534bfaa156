//! One LRA in the hands of its owner. Pure: requests, outcomes and the time come in; effects and records go out.
//!
//! ```text
//!                     ┌─ close ──▶ Closing ────▶ Closed | FailedToClose
//!   start ──▶ Active ─┤                             │ (nested, and the parent cancels)
//!                     └─ cancel, ─▶ Cancelling ◀────┘
//!                        deadline       └──────▶ Cancelled | FailedToCancel
//!
//!   participant:   Active ─▶ Completing ───▶ Completed | FailedToComplete
//!                     │                          │ (nested)
//!                     └────▶ Compensating ◀──────┘
//!                                 └────────▶ Compensated | FailedToCompensate
//! ```
//!
//! The decision to close or to cancel is one record; it is the only commit point, and no participant is asked before it is durable. Whatever was not decided is cancelled by its deadline, or by
//! its client: there is nothing to be presumed.
//!
//! - `state`: what the records say.
//! - `join`: join, leave, renew.
//! - `end`: the decision, whom to ask and in which order, and when it is over.
//! - `kept`: the outcome of the call that ended it.
//! - `outcome`: what the outcome of a callback changes.
//! - `nested`: an LRA as participant of another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::CallId;
use bluebox_core::log::Timestamp;

use crate::TransactionId;
use crate::callback::{CallbackKey, Callee, Outcome, Phase};
use crate::effect::{Answer, Effect, Refusal, RequestId};
use crate::gate::{Gate, Version};
use crate::line::{Line, Rules};
use crate::time::later;
use crate::wire::status::{LraStatus, ParticipantStatus};

mod end;
mod join;
mod kept;
mod nested;
mod outcome;
mod state;
#[cfg(test)]
mod tests;

pub use join::{Join, MAX_LRA_BYTES, Told};
pub use kept::{Kept, OutcomeOf};
pub use state::{Links, Lra, Parent, Participant};

/// How long it is not written that a participant is done, while others are still asked: each outcome of theirs, and the end, makes a record that says it too. Should its owner die before, the
/// participant is asked again under the same key, and the log has that outcome.
const WRITTEN_WITHIN: std::time::Duration = std::time::Duration::from_millis(100);

/// The longest name that a client can give itself.
pub const MAX_CLIENT_BYTES: usize = 256;

/// What begins an LRA.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Start {
    /// Its name.
    pub id: TransactionId,
    /// The call that begins it.
    pub origin: Option<CallId>,
    /// What the client calls itself; what is longer than [`MAX_CLIENT_BYTES`] is cut.
    pub client: Arc<str>,
    /// What its URL is to begin with: scheme and authority that the client used, and the coordinator's path.
    pub base: Arc<str>,
    /// How long it may be active.
    pub limit: Option<std::time::Duration>,
    /// The parent of a nested one: its id and URL.
    pub parent: Option<(TransactionId, Arc<str>)>,
}

/// What is asked of an LRA.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// To take in a participant or a listener.
    Join(Join),
    /// To let a participant go: the URL that it is known by.
    Leave(Arc<str>),
    /// A new time limit, from now on; `None` takes it away.
    Renew(Option<std::time::Duration>),
    /// To close. Answered when it has ended, or else then.
    Close(Timestamp),
    /// To cancel. Answered when it has ended, or else then.
    Cancel(Timestamp),
    /// To close, or (`false`) to cancel, and with that decision to tell a participant something else from now on. Answered as `Close` and `Cancel` are.
    EndAndTell(bool, Timestamp, Box<Told>),
    /// To close, or (`false`) to cancel, and to keep with that decision the outcome of the call that asks for it. Answered as `Close` and `Cancel` are.
    EndAndKeep(bool, Timestamp, Box<Kept>),
    /// To tell the outcome that is kept for this call.
    Outcome(OutcomeOf),
    /// To tell its status.
    Status,
    /// To tell all of it.
    Read,
    /// To tell how a participant is called (`GET` of its recovery URL).
    ReadParticipant(Callee),
    /// To call a participant at other URLs (`PUT` of its recovery URL).
    Move(Callee, Box<Links>),
    /// From the parent of a nested one: `Complete`, `Compensate`, `Status` or `Forget`. Answered when it is done, or else then.
    OfParent(Phase, Timestamp),
    /// From an operator: to try at once what waits to be tried again.
    Retry,
    /// From an operator: to wait for nobody any more. Who has not answered yet has failed.
    GiveUp,
    /// From an operator: to forget what has failed.
    Forget,
}

/// What an LRA becomes that is to close, or to cancel.
const fn ending(close: bool) -> LraStatus {
    if close { LraStatus::Closing } else { LraStatus::Cancelling }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Waits {
    End,
    /// The same, and another outcome is kept than the one it came with.
    EndOverruled,
    Parent(Phase),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Waiter {
    request: RequestId,
    waits: Waits,
    answer_by: Timestamp,
}

/// One LRA in the hands of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Transaction {
    rules: Arc<Rules>,
    lra: Lra,
    gate: Gate<Effect>,
    /// Callees with a call of this owner that has no outcome yet, and when it left: not before its record is durable.
    under_way: BTreeMap<Callee, Option<Timestamp>>,
    waiters: Vec<Waiter>,
    /// When what can be written later is written at last.
    write_by: Option<Timestamp>,
    /// Who has begun it and waits for the parent to take it in.
    starters: BTreeSet<RequestId>,
}

impl Transaction {
    /// Begins one. Its answer comes when it is durable, and, if it is nested, when the parent has taken it in.
    ///
    /// A participant of the parent is durable there before the nested LRA is used: otherwise work could be done in it that nobody would ever compensate.
    pub fn start(rules: Arc<Rules>, now: Timestamp, request: RequestId, start: Start, out: &mut Vec<Effect>) -> Self {
        let Start { id, origin, client, base, limit, parent } = start;
        let client = client.get(..client.floor_char_boundary(MAX_CLIENT_BYTES)).map_or_else(|| Arc::clone(&client), Arc::from);
        let parent = parent.map(|(id, url)| {
            let mut line = Line::default();
            line.ask(Phase::Enlist, now);
            Parent { id, url, enlisted: false, closing: false, settled: false, line }
        });
        let deadline = limit.map(|limit| later(now, limit));
        let lra = Lra {
            id,
            origin,
            client,
            base,
            status: LraStatus::Active,
            started: now,
            deadline,
            ended: None,
            parent,
            participants: Vec::new(),
            next_callee: 0,
            left: Vec::new(),
            forgotten: false,
            kept: None,
        };
        let mut transaction = Self::owned(rules, lra, Version::default());
        transaction.set_status(LraStatus::Active, out);
        transaction.begun(request, out);
        transaction.drive(now, out);
        transaction
    }

    /// Goes on with one from its last record: with the same keys, deadlines and pauses.
    pub fn recover(rules: Arc<Rules>, now: Timestamp, lra: Lra, version: Version, out: &mut Vec<Effect>) -> Self {
        let mut transaction = Self::owned(rules, lra, version);
        transaction.drive(now, out);
        transaction
    }

    fn owned(rules: Arc<Rules>, lra: Lra, version: Version) -> Self {
        Self { rules, lra, gate: Gate::new(version), under_way: BTreeMap::new(), waiters: Vec::new(), write_by: None, starters: BTreeSet::new() }
    }

    /// The call that began it has come again: the box that served it has died, or another owner has taken over.
    pub fn begun(&mut self, request: RequestId, out: &mut Vec<Effect>) {
        match &self.lra.parent {
            Some(parent) if !parent.enlisted && self.lra.status == LraStatus::Active => {
                self.starters.insert(request);
            }
            Some(parent) if !parent.enlisted => {
                let parent = parent.id;
                self.answer(request, Answer::Refused(Refusal::NoParent(parent)), out);
            }
            _ => self.answer(request, Answer::Started(self.lra.id), out),
        }
    }

    /// A request.
    pub fn request(&mut self, now: Timestamp, request: RequestId, what: Request, out: &mut Vec<Effect>) {
        self.cancel_if_late(now, out);
        match what {
            Request::Join(join) => self.join(now, request, join, out),
            Request::Leave(url) => self.leave(request, &url, out),
            Request::Renew(limit) => self.renew(now, request, limit, out),
            Request::Close(answer_by) => self.end(now, request, LraStatus::Closing, answer_by, None, out),
            Request::Cancel(answer_by) => self.end(now, request, LraStatus::Cancelling, answer_by, None, out),
            Request::EndAndTell(close, answer_by, told) => {
                let to = ending(close);
                if self.is_open_to(to) && !self.tell_with_the_end(told) {
                    self.answer(request, Answer::Refused(Refusal::Full(self.lra.id)), out);
                } else {
                    self.end(now, request, to, answer_by, None, out);
                }
            }
            Request::EndAndKeep(close, answer_by, kept) => self.end(now, request, ending(close), answer_by, Some(kept), out),
            Request::Outcome(of) => {
                let answer = match self.lra.kept.as_ref().filter(|kept| kept.of == of) {
                    Some(kept) if kept.outcome.is_some() => Answer::Kept(kept.clone()),
                    Some(_) => Answer::Refused(Refusal::OutcomeNotKept(self.lra.id)),
                    None => Answer::Refused(Refusal::NoOutcome(self.lra.id)),
                };
                self.answer(request, answer, out);
            }
            Request::Status => self.answer(request, Answer::Status(self.lra.status), out),
            Request::Read => self.answer(request, Answer::Lra(Box::new(self.lra.clone())), out),
            Request::ReadParticipant(callee) => {
                let answer = match self.participant(callee) {
                    Some(participant) => Answer::Links(Box::new(participant.links.clone())),
                    None => Answer::Refused(Refusal::NoSuchParticipant(self.lra.id)),
                };
                self.answer(request, answer, out);
            }
            Request::Move(callee, links) => self.move_to(request, callee, *links, out),
            Request::OfParent(phase, answer_by) => self.of_parent(now, request, phase, answer_by, out),
            Request::Retry => {
                self.retry(now);
                self.answer(request, Answer::Done, out);
            }
            Request::GiveUp => self.give_up(request, out),
            Request::Forget => self.forget(request, out),
        }
        self.drive(now, out);
    }

    /// Time has passed: call it at [`Self::wakes_at`], or later.
    pub fn tick(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.cancel_if_late(now, out);
        self.drive(now, out);
    }

    /// A callback has had its outcome. One that is not waited for (any more) changes nothing.
    pub fn outcome(&mut self, now: Timestamp, key: CallbackKey, outcome: Outcome, out: &mut Vec<Effect>) {
        self.cancel_if_late(now, out);
        self.apply_outcome(now, key, outcome, out);
        self.drive(now, out);
    }

    /// The next record to be appended, if one is to be made now: all of it is in [`Self::lra`].
    pub fn take_record(&mut self) -> Option<Version> {
        let version = self.gate.take()?;
        self.write_by = None;
        if let Some(kept) = &mut self.lra.kept {
            kept.is_written();
        }
        Some(version)
    }

    /// Keeps the outcome of the call that ended it no more: the next record is without.
    pub fn drop_kept(&mut self) {
        if let Some(kept) = &mut self.lra.kept {
            kept.outcome = None;
        }
    }

    /// A record has been read back, with no fence of a newer owner before it.
    pub fn durable(&mut self, now: Timestamp, version: Version, out: &mut Vec<Effect>) {
        let from = out.len();
        self.gate.durable(version, out);
        for effect in out.iter().skip(from) {
            if let Effect::Call(callback) = effect
                && let Some(left) = self.under_way.get_mut(&callback.key.callee)
            {
                *left = Some(now);
            }
        }
    }

    /// What lies in the log may not be the last record of this one any more: writes another one.
    pub fn write_again(&mut self) {
        self.gate.change();
    }

    /// What it is now. Not all of it need be durable.
    pub fn lra(&self) -> &Lra {
        &self.lra
    }

    /// Whether its records can be removed: it is over, nobody is yet to be told, and it was kept for its retention; or an operator has forgotten it.
    ///
    /// Who has failed stays until then, and nothing is removed before it is durable that it may be.
    pub fn is_removable(&self, now: Timestamp) -> bool {
        self.gate.is_durable() && self.removable_at().is_some_and(|at| at <= now)
    }

    fn removable_at(&self) -> Option<Timestamp> {
        let lra = &self.lra;
        let over = lra.is_settled() && !lra.is_recovering() && (!lra.status.is_failed() || lra.forgotten);
        lra.ended.filter(|_| over).map(|ended| later(ended, self.rules.retention))
    }

    /// When [`Self::tick`] has something to do, if nothing else happens.
    pub fn wakes_at(&self) -> Option<Timestamp> {
        let lra = &self.lra;
        let deadline = lra.deadline.filter(|_| lra.status == LraStatus::Active);
        let waiters = self.waiters.iter().map(|w| w.answer_by);
        let removable = self.removable_at().filter(|_| self.gate.is_durable());
        deadline.into_iter().chain(self.next_call_at()).chain(waiters).chain(removable).chain(self.write_by).min()
    }

    /// Answers when all that the answer can depend on is durable: a reader must not be told what a crash takes back.
    fn answer(&mut self, request: RequestId, answer: Answer, out: &mut Vec<Effect>) {
        self.gate.hold(Effect::Answer(request, answer), out);
    }

    fn set_status(&mut self, status: LraStatus, out: &mut Vec<Effect>) {
        self.lra.status = status;
        self.gate.change();
        self.gate.hold(Effect::Changed(self.lra.id, status), out);
    }

    fn participant(&self, callee: Callee) -> Option<&Participant> {
        self.lra.participants.iter().find(|p| p.callee == callee)
    }

    /// `retry` of an operator: pauses end now. Keys stay as they are.
    fn retry(&mut self, now: Timestamp) {
        for line in self.lra.lines_mut().filter(|line| line.phase.is_some() && line.not_before > now) {
            line.not_before = now;
            self.gate.change();
        }
    }

    /// `give-up` of an operator: nobody is called any more who has not answered yet. Who has not completed or compensated has failed, which is for good; a call to them that lies in the log may
    /// still be delivered.
    fn give_up(&mut self, request: RequestId, out: &mut Vec<Effect>) {
        if !self.lra.is_recovering() {
            let refusal = Refusal::NotEnding(self.lra.id, self.lra.status);
            return self.answer(request, Answer::Refused(refusal), out);
        }
        let mut given_up = BTreeSet::new();
        for participant in self.lra.participants.iter_mut().filter(|p| p.line.phase.is_some()) {
            given_up.insert(participant.callee);
            match participant.status {
                ParticipantStatus::Completing => participant.status = ParticipantStatus::FailedToComplete,
                ParticipantStatus::Compensating => participant.status = ParticipantStatus::FailedToCompensate,
                _ => {}
            }
            participant.line.give_up();
            (participant.told_after, participant.told_forget) = (true, true);
        }
        // A call whose record is not durable yet is in none: what is durable next says that nobody is called.
        self.gate.withdraw(|effect| matches!(effect, Effect::Call(callback) if given_up.contains(&callback.key.callee)));
        self.gate.change();
        self.answer(request, Answer::Done, out);
    }

    /// `DELETE /recovery/ID`: what has failed may be forgotten, and nobody is called any more. One that has closed and waits for its parent is settled: the parent may have been forgotten itself.
    fn forget(&mut self, request: RequestId, out: &mut Vec<Effect>) {
        if self.lra.status == LraStatus::Closed
            && let Some(parent) = self.lra.parent.as_mut().filter(|parent| !parent.settled)
        {
            parent.settled = true;
            self.gate.change();
            return self.answer(request, Answer::Done, out);
        }
        if !self.lra.status.is_failed() {
            let refusal = Refusal::NotFailed(self.lra.id, self.lra.status);
            return self.answer(request, Answer::Refused(refusal), out);
        }
        if !self.lra.forgotten {
            self.lra.forgotten = true;
            for participant in &mut self.lra.participants {
                participant.line.end();
            }
            self.gate.change();
        }
        self.answer(request, Answer::Done, out);
    }

    fn status_as_participant(&self) -> ParticipantStatus {
        match self.lra.status {
            LraStatus::Active => ParticipantStatus::Active,
            LraStatus::Closing => ParticipantStatus::Completing,
            LraStatus::Closed => ParticipantStatus::Completed,
            LraStatus::FailedToClose => ParticipantStatus::FailedToComplete,
            LraStatus::Cancelling => ParticipantStatus::Compensating,
            LraStatus::Cancelled => ParticipantStatus::Compensated,
            LraStatus::FailedToCancel => ParticipantStatus::FailedToCompensate,
        }
    }
}

//! A saga that came as one request: steps, each an action and what takes it back. Pure, as [`crate::transaction`].
//!
//! ```text
//!   start ──▶ Active ──────────────── all done ──▶ Closed
//!               └─ 409, cancel, deadline ─▶ Cancelling ──▶ Cancelled | FailedToCancel
//!
//!   step:  Waiting ─▶ Running ─┬─ 2xx ─▶ Done ────┐
//!             │                ├─ 409 ─▶ Refused  ├─▶ Undoing ─▶ Undone | FailedToUndo
//!             ▼                └─ else ▶ Unknown ─┘
//!          NeverRan           (once it is being cancelled; before, it is tried again)
//! ```
//!
//! Two mistakes that sagas make, and what guards against them here:
//!
//! - *The compensation of a step that never ran.* A step is `Running` in a durable record before its action is called. One that is not, when it is decided to cancel, has never been called, and
//!   is not compensated.
//! - *An action that comes after its compensation.* A compensation is called only when the last call of the action has had its outcome: then the log delivers nothing under its key any more. A
//!   step that last said 425 is asked until it says something else, because it is still going.
//!
//! What remains to the app: a step whose call failed may or may not have run (`Unknown`). It is compensated, so a compensation must not mind if there is nothing to compensate.
//!
//! - `plan`: what is asked for.
//! - `run`: doing it, and taking it back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::log::Timestamp;

use crate::TransactionId;
use crate::callback::{CallbackKey, Callee, Outcome, Phase};
use crate::effect::{Answer, Effect, Refusal, RequestId};
use crate::gate::{Gate, Version};
use crate::line::{Line, Rules};
use crate::time::later;
use crate::wire::status::LraStatus;

mod plan;
mod run;
#[cfg(test)]
mod tests;

pub use plan::{InvalidPlan, MAX_SAGA_BYTES, MAX_STEPS, Plan, PlannedStep, RawStep, StepRequest};

/// The state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepStatus {
    /// Those before it are not done.
    Waiting,
    /// Its action is called, or will be called again.
    Running,
    /// Its action is done.
    Done,
    /// Its action said no: it has done nothing.
    Refused,
    /// Its action's last call failed when the saga was being cancelled: it may have run.
    Unknown,
    /// It was never called, and won't be.
    NeverRan,
    /// Its compensation is called.
    Undoing,
    /// It is compensated, or there was nothing to compensate with.
    Undone,
    /// It will never be compensated.
    FailedToUndo,
}

impl StepStatus {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::Waiting, Self::Running, Self::Done, Self::Refused, Self::Unknown, Self::NeverRan, Self::Undoing, Self::Undone, Self::FailedToUndo];

    /// Whether nothing more happens to it while the saga is being cancelled.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Refused | Self::NeverRan | Self::Undone | Self::FailedToUndo)
    }
}

/// Where a step is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// Its state.
    pub status: StepStatus,
    /// What is asked for.
    pub line: Line,
    /// The action has asked for another call, which is made then. Its key is not used before that is durable; until then no call is under way anywhere.
    pub pause_until: Option<Timestamp>,
    /// The action last said that it is still going (425).
    pub still_going: bool,
}

impl Step {
    /// What it is asked for, as operators see it: between two calls of its action, the next one, though its key is not taken yet.
    pub fn asked(&self) -> Line {
        match self.pause_until {
            None => self.line.clone(),
            Some(until) => Line { phase: Some(Phase::Action), n: self.line.n.saturating_add(1), not_before: until, ..self.line.clone() },
        }
    }
}

/// A saga.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Saga {
    /// Its name.
    pub id: TransactionId,
    /// The call that began it: should that be delivered again, it has begun this one.
    pub origin: Option<CallId>,
    /// Active, Closed, Cancelling, Cancelled or FailedToCancel.
    pub status: LraStatus,
    /// When it began.
    pub started: Timestamp,
    /// When it is cancelled, if it is still active then. No action is delivered after it.
    pub deadline: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// What is to be done.
    pub plan: Arc<Plan>,
    /// Where each step is.
    pub steps: Vec<Step>,
    /// Why it was cancelled.
    pub why: Option<String>,
    /// An operator has said that its failure may be forgotten.
    pub forgotten: bool,
}

/// What begins a saga.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StartSaga {
    /// Its name.
    pub id: TransactionId,
    /// The call that begins it.
    pub origin: Option<CallId>,
    /// What is to be done.
    pub plan: Plan,
    /// How long it may take until it is cancelled.
    pub limit: Option<Duration>,
}

/// What is asked of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SagaRequest {
    /// To tell all of it.
    Read,
    /// To tell all of it when it has ended, or else then.
    Await(Timestamp),
    /// To cancel. Answered when it has ended, or else then.
    Cancel(Timestamp),
    /// From an operator: to try at once what waits to be tried again.
    Retry,
    /// From an operator: to wait no more for what is called now. It is not known to be taken back, and never will be.
    GiveUp,
    /// From an operator: to forget what has failed.
    Forget,
}

/// One saga in the hands of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunningSaga {
    rules: Arc<Rules>,
    saga: Saga,
    gate: Gate<Effect>,
    /// Steps with a call that this owner has made and that has no outcome yet.
    under_way: BTreeSet<Callee>,
    waiters: Vec<(RequestId, Timestamp)>,
}

impl RunningSaga {
    /// Begins one. It is answered (202) when it is durable.
    pub fn start(rules: Arc<Rules>, now: Timestamp, request: RequestId, start: StartSaga, out: &mut Vec<Effect>) -> Self {
        let StartSaga { id, origin, plan, limit } = start;
        let waiting = Step { status: StepStatus::Waiting, line: Line::default(), pause_until: None, still_going: false };
        let saga = Saga {
            id,
            origin,
            status: LraStatus::Active,
            started: now,
            deadline: limit.map(|limit| later(now, limit)),
            ended: None,
            steps: vec![waiting; plan.steps().len()],
            plan: Arc::new(plan),
            why: None,
            forgotten: false,
        };
        let mut running = Self::owned(rules, saga, Version::default());
        running.set_status(LraStatus::Active, out);
        running.begun(request, out);
        running.drive(now, out);
        running
    }

    /// Goes on with one from its last record.
    pub fn recover(rules: Arc<Rules>, now: Timestamp, saga: Saga, version: Version, out: &mut Vec<Effect>) -> Self {
        let mut running = Self::owned(rules, saga, version);
        running.drive(now, out);
        running
    }

    fn owned(rules: Arc<Rules>, saga: Saga, version: Version) -> Self {
        Self { rules, saga, gate: Gate::new(version), under_way: BTreeSet::new(), waiters: Vec::new() }
    }

    /// The call that began it has come again.
    pub fn begun(&mut self, request: RequestId, out: &mut Vec<Effect>) {
        self.answer(request, Answer::Started(self.saga.id), out);
    }

    /// A request.
    pub fn request(&mut self, now: Timestamp, request: RequestId, what: SagaRequest, out: &mut Vec<Effect>) {
        self.drive(now, out);
        match what {
            SagaRequest::Read => self.answer(request, Answer::Saga(Box::new(self.saga.clone())), out),
            SagaRequest::Await(by) => self.waiters.push((request, by)),
            SagaRequest::Cancel(by) => match self.saga.status {
                LraStatus::Closed => self.answer(request, Answer::Refused(Refusal::OtherEnd(self.saga.id, LraStatus::Closed)), out),
                status => {
                    if status == LraStatus::Active {
                        self.cancel("it was asked to", out);
                    }
                    self.waiters.push((request, by));
                }
            },
            SagaRequest::Retry => {
                self.retry(now);
                self.answer(request, Answer::Done, out);
            }
            SagaRequest::GiveUp if self.saga.status == LraStatus::Cancelling => {
                self.give_up();
                self.answer(request, Answer::Done, out);
            }
            SagaRequest::GiveUp => self.answer(request, Answer::Refused(Refusal::NotEnding(self.saga.id, self.saga.status)), out),
            SagaRequest::Forget if self.saga.status.is_failed() => {
                if !self.saga.forgotten {
                    self.saga.forgotten = true;
                    self.gate.change();
                }
                self.answer(request, Answer::Done, out);
            }
            SagaRequest::Forget => self.answer(request, Answer::Refused(Refusal::NotFailed(self.saga.id, self.saga.status)), out),
        }
        self.drive(now, out);
    }

    /// Time has passed: call it at [`Self::wakes_at`], or later.
    pub fn tick(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.drive(now, out);
    }

    /// A call has had its outcome. One that is not waited for (any more) changes nothing.
    pub fn outcome(&mut self, now: Timestamp, key: CallbackKey, outcome: Outcome, out: &mut Vec<Effect>) {
        self.apply_outcome(now, key, outcome, out);
        self.drive(now, out);
    }

    /// The next record to be appended, if one is to be made now.
    pub fn take_record(&mut self) -> Option<Version> {
        self.gate.take()
    }

    /// A record has been read back, with no fence of a newer owner before it.
    pub fn durable(&mut self, version: Version, out: &mut Vec<Effect>) {
        self.gate.durable(version, out);
    }

    /// Writes another record: what lies in the log may not be the last one any more.
    pub fn write_again(&mut self) {
        self.gate.change();
    }

    /// What it is now. Not all of it need be durable.
    pub fn saga(&self) -> &Saga {
        &self.saga
    }

    /// Whether its records can be removed.
    pub fn is_removable(&self, now: Timestamp) -> bool {
        self.removable_at().is_some_and(|at| at <= now)
    }

    fn removable_at(&self) -> Option<Timestamp> {
        let saga = &self.saga;
        let over = self.gate.is_durable() && (!saga.status.is_failed() || saga.forgotten);
        saga.ended.filter(|_| over).map(|ended| later(ended, self.rules.retention))
    }

    /// When [`Self::tick`] has something to do, if nothing else happens.
    pub fn wakes_at(&self) -> Option<Timestamp> {
        let saga = &self.saga;
        let deadline = saga.deadline.filter(|_| saga.status == LraStatus::Active);
        let tries = saga.steps.iter().zip(0..).filter(|(step, at)| step.line.phase.is_some() && !self.under_way.contains(&Callee(*at)));
        let tries = tries.map(|(step, _)| step.line.not_before);
        let pauses = saga.steps.iter().filter_map(|step| step.pause_until);
        let waiters = self.waiters.iter().map(|(_, by)| *by);
        deadline.into_iter().chain(tries).chain(pauses).chain(waiters).chain(self.removable_at()).min()
    }

    fn answer(&mut self, request: RequestId, answer: Answer, out: &mut Vec<Effect>) {
        self.gate.hold(Effect::Answer(request, answer), out);
    }

    fn set_status(&mut self, status: LraStatus, out: &mut Vec<Effect>) {
        self.saga.status = status;
        self.gate.change();
        self.gate.hold(Effect::Changed(self.saga.id, status), out);
    }

    fn retry(&mut self, now: Timestamp) {
        for step in &mut self.saga.steps {
            for pause in step.pause_until.iter_mut().chain(step.line.phase.is_some().then_some(&mut step.line.not_before)).filter(|pause| **pause > now) {
                *pause = now;
                self.gate.change();
            }
        }
    }
}

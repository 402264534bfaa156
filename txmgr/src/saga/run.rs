//! Doing what a saga is asked for, and taking it back.

use std::collections::BTreeSet;
use std::sync::Arc;

use bluebox_core::log::Timestamp;
use bluebox_core::planted;

use super::{RunningSaga, Step, StepStatus};
use crate::callback::{Callback, CallbackKey, Callee, Outcome, Phase};
use crate::effect::{Answer, Effect};
use crate::line::{possible_pause, with_reason};
use crate::time::{backoff, later};
use crate::wire::status::LraStatus;

impl RunningSaga {
    /// What follows from what is: it is called after everything that happens.
    pub(super) fn drive(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.saga.status == LraStatus::Active && self.saga.deadline.is_some_and(|deadline| deadline <= now) {
            self.cancel("its deadline has passed", out);
        }
        for step in &mut self.saga.steps {
            step.line.end_impossible_pause(now, &self.rules);
            step.pause_until = step.pause_until.map(|until| possible_pause(until, now, &self.rules));
        }
        match self.saga.status {
            LraStatus::Active => self.run(now, out),
            LraStatus::Cancelling => self.take_back(now, out),
            _ => {}
        }
        self.send(now, out);
        let over = self.saga.status.is_final();
        for (request, by) in std::mem::take(&mut self.waiters) {
            if over || by <= now {
                self.answer(request, Answer::Saga(Box::new(self.saga.clone())), out);
            } else {
                self.waiters.push((request, by));
            }
        }
    }

    /// Begins what can begin: independent steps at once.
    fn run(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let done: Vec<bool> = self.saga.steps.iter().map(|step| step.status == StepStatus::Done).collect();
        if done.iter().all(|done| *done) {
            self.saga.ended = Some(now);
            return self.set_status(LraStatus::Closed, out);
        }
        let plan = Arc::clone(&self.saga.plan);
        for (step, planned) in self.saga.steps.iter_mut().zip(plan.steps()) {
            let ready = planned.after.iter().all(|before| done.get(*before) == Some(&true)) || planted!(TxnDependenciesIgnored);
            if step.status == StepStatus::Waiting && ready {
                step.status = StepStatus::Running;
                step.line.ask(Phase::Action, now);
                self.gate.change();
            }
        }
        self.call_again(now);
    }

    /// Pauses of actions that are over.
    fn call_again(&mut self, now: Timestamp) {
        for step in self.saga.steps.iter_mut().filter(|step| step.pause_until.is_some_and(|until| until <= now)) {
            step.pause_until = None;
            let failures = step.line.failures;
            step.line.ask_again(Phase::Action, now, &self.rules, None);
            (step.line.failures, step.line.not_before) = (failures, now);
            self.gate.change();
        }
    }

    /// The decision to cancel: one record, which says of each step whether its action was ever called.
    pub(super) fn cancel(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.saga.why = Some(why.to_owned());
        self.set_status(LraStatus::Cancelling, out);
        for (at, step) in (0..).zip(&mut self.saga.steps) {
            match step.status {
                StepStatus::Waiting => step.status = if planted!(TxnUndoesWhatNeverRan) { StepStatus::Unknown } else { StepStatus::NeverRan },
                // Between two calls none is under way, by no owner: what was called has failed.
                StepStatus::Running if step.pause_until.is_some() && !step.still_going => step.gave_up(),
                StepStatus::Running if planted!(TxnUndoesTooEarly) => step.gave_up(),
                StepStatus::Running if !step.still_going => {
                    if let Some(key) = step.line.key(self.saga.id, Callee(at)) {
                        self.gate.hold(Effect::Hurry(key), out);
                    }
                }
                _ => {}
            }
        }
    }

    /// Takes back what was done: a step when all that came after it is settled.
    fn take_back(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.call_again(now);
        let plan = Arc::clone(&self.saga.plan);
        // Each round can settle what the next one waits for: there are at most as many as steps.
        loop {
            let settled: Vec<bool> = self.saga.steps.iter().map(|step| step.status.is_settled()).collect();
            let mut changed = false;
            for ((at, step), planned) in self.saga.steps.iter_mut().enumerate().zip(plan.steps()) {
                let turn = plan.dependents(at).all(|later_one| settled.get(later_one) == Some(&true));
                if !turn || !matches!(step.status, StepStatus::Done | StepStatus::Unknown) {
                    continue;
                }
                changed = true;
                self.gate.change();
                if planned.compensation.is_some() {
                    step.status = StepStatus::Undoing;
                    step.line.ask(Phase::Undo, now);
                } else {
                    step.status = StepStatus::Undone;
                }
            }
            if !changed {
                break;
            }
        }
        if self.saga.steps.iter().all(|step| step.status.is_settled()) {
            let failed = self.saga.steps.iter().any(|step| step.status == StepStatus::FailedToUndo);
            self.saga.ended = Some(now);
            self.set_status(if failed { LraStatus::FailedToCancel } else { LraStatus::Cancelled }, out);
        }
    }

    /// `give-up` of an operator, while it is being cancelled: what is called now, or would be again. Those before it have their turn then.
    pub(super) fn give_up(&mut self) {
        let mut given_up = BTreeSet::new();
        for (step, at) in self.saga.steps.iter_mut().zip(0..).filter(|(step, _)| matches!(step.status, StepStatus::Running | StepStatus::Undoing)) {
            given_up.insert(Callee(at));
            step.pause_until = None;
            step.settle(StepStatus::FailedToUndo);
            step.line.give_up();
            self.gate.change();
        }
        // A call whose record is not durable yet is in none: what is durable next says that nobody is called.
        self.gate.withdraw(|effect| matches!(effect, Effect::Call(callback) if given_up.contains(&callback.key.callee)));
    }

    fn send(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        for ((at, step), planned) in (0..).zip(&self.saga.steps).zip(self.saga.plan.steps()) {
            let Some(key) = step.line.key(self.saga.id, Callee(at)).filter(|_| step.line.not_before <= now && !self.under_way.contains(&Callee(at))) else {
                continue;
            };
            let (request, not_after) = match key.phase {
                Phase::Undo => (planned.compensation.as_ref(), None),
                // One that is still going is only asked.
                _ => (Some(&planned.action), self.saga.deadline.filter(|_| !step.still_going)),
            };
            let Some(request) = request else { continue };
            self.under_way.insert(Callee(at));
            let (url, request) = (Arc::from(request.url.as_str()), Some(Arc::clone(request)));
            let callback = Callback { key, url, base: None, parent: None, data: None, ended: None, step: request, not_after };
            self.gate.hold(Effect::Call(callback), out);
            if key.phase == Phase::Action && self.saga.status == LraStatus::Cancelling && !step.still_going {
                // The outcome of a call of the former owner, if it made it: only under its key it can be had.
                self.gate.hold(Effect::Hurry(key), out);
            }
        }
    }

    pub(super) fn apply_outcome(&mut self, now: Timestamp, key: CallbackKey, outcome: Outcome, out: &mut Vec<Effect>) {
        let id = self.saga.id;
        let place = usize::try_from(key.callee.0).unwrap_or(usize::MAX);
        let Some(step) = self.saga.steps.get_mut(place).filter(|step| step.line.key(id, key.callee) == Some(key)) else { return };
        self.under_way.remove(&key.callee);
        self.gate.change();
        let cancelling = self.saga.status == LraStatus::Cancelling;
        if key.phase == Phase::Undo {
            match outcome {
                Outcome::Done => step.settle(StepStatus::Undone),
                Outcome::Failed(reason) => {
                    step.line.last_error = Some(with_reason("its compensation said no (409)", reason.as_deref()));
                    step.settle(StepStatus::FailedToUndo);
                }
                Outcome::Again(error) => step.line.ask_again(Phase::Undo, now, &self.rules, Some(error)),
                Outcome::InProgress(_) | Outcome::Says(_) => step.line.ask_again(Phase::Undo, now, &self.rules, None),
            }
            return;
        }
        let going = matches!(outcome, Outcome::InProgress(_));
        match outcome {
            Outcome::Done => step.settle(StepStatus::Done),
            Outcome::Failed(reason) => {
                step.line.last_error = Some(with_reason("it said no (409)", reason.as_deref()));
                step.settle(StepStatus::Refused);
                if !cancelling {
                    let name = self.saga.plan.steps().get(place).map_or("", |planned| planned.name.as_str());
                    let why = with_reason(&format!("step {name:?} said no (409)"), reason.as_deref());
                    self.cancel(&why, out);
                }
            }
            // What failed is not begun again once it is decided to cancel.
            Outcome::Again(error) if cancelling => {
                step.line.last_error = Some(error);
                step.gave_up();
            }
            Outcome::InProgress(_) | Outcome::Again(_) | Outcome::Says(_) => {
                step.still_going = going;
                step.line.failures = step.line.failures.saturating_add(1);
                step.pause_until = Some(later(now, backoff(self.rules.first_pause, self.rules.longest_pause, step.line.failures)));
                step.line.phase = None;
                if let Outcome::Again(error) = outcome {
                    step.line.last_error = Some(error);
                }
            }
        }
    }
}

impl Step {
    fn settle(&mut self, status: StepStatus) {
        self.status = status;
        self.still_going = false;
        self.line.end();
    }

    /// Its action is not called again: it may have run.
    fn gave_up(&mut self) {
        self.pause_until = None;
        self.settle(StepStatus::Unknown);
    }
}

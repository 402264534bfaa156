//! The judge: it sees what lies in the log, what is called, what is done by participants and what is answered, and nothing of the machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::log::Offset;
use bluebox_txmgr::TransactionId;
use bluebox_txmgr::callback::{Callback, CallbackKey, Callee, Outcome, Phase};
use bluebox_txmgr::effect::Answer;
use bluebox_txmgr::record::{Entry, Record, State};
use bluebox_txmgr::saga::{Saga, StepStatus};
use bluebox_txmgr::transaction::Lra;
use bluebox_txmgr::wire::status::{LraStatus, ParticipantStatus};

/// What the judge remembers.
#[derive(Clone, Hash, Default)]
pub(crate) struct Witness {
    /// Everything that was ever appended, in order.
    pub(crate) history: Vec<Arc<Entry>>,
    /// The log's memory of calls: an outcome, once there is one, is for good.
    pub(crate) calls: BTreeMap<CallbackKey, Option<Outcome>>,
    /// Calls that the log was told to cancel.
    pub(crate) hurried: BTreeSet<CallbackKey>,
    /// What participants have done, in order.
    pub(crate) did: Vec<(Callee, Phase)>,
    /// The transaction that was answered to have been begun.
    pub(crate) started: Option<TransactionId>,
    /// Participants that were told that they have joined.
    pub(crate) joined: BTreeSet<Callee>,
    /// Those that have asked to leave.
    pub(crate) left: BTreeSet<Callee>,
    /// An operator has asked to give up on those who don't answer.
    pub(crate) may_be_given_up: bool,
    /// The end that was answered.
    pub(crate) ended: Option<LraStatus>,
    /// The outcomes that came with requests to end it, by the number of the request.
    pub(crate) told: BTreeMap<usize, &'static str>,
}

impl Witness {
    /// The records that count, in order: by the rule, not by what an owner makes of it.
    pub(crate) fn counting(&self) -> impl Iterator<Item = &Record> {
        let mut fence = None;
        self.history.iter().zip(0..).filter_map(move |(entry, offset)| match &**entry {
            Entry::Fence(_) => {
                fence = Some(Offset::new(offset));
                None
            }
            Entry::State(record) if fence.is_none_or(|fence| record.epoch >= fence) => Some(&**record),
            _ => None,
        })
    }

    pub(crate) fn last(&self) -> Option<&Record> {
        self.counting().reduce(|best, one| if one.supersedes(best) { one } else { best })
    }

    pub(crate) fn lra(&self) -> Option<&Lra> {
        match &self.last()?.state {
            State::Lra(lra) => Some(lra),
            State::Saga(_) => None,
        }
    }

    pub(crate) fn saga(&self) -> Option<&Saga> {
        match &self.last()?.state {
            State::Saga(saga) => Some(saga),
            State::Lra(_) => None,
        }
    }

    /// A record has come to lie in the log.
    pub(crate) fn landed(&mut self, entry: Arc<Entry>) -> Result<(), String> {
        let before = self.last().cloned();
        self.history.push(entry);
        let (Some(before), Some(after)) = (before, self.last()) else { return Ok(()) };
        if before.state.id() != after.state.id() {
            return Err(format!("one call has begun two transactions: {} and {}", before.state.id(), after.state.id()));
        }
        let next = before.version.get() + 1;
        if after.version.get() > next {
            return Err(format!("version {} comes after {}", after.version.get(), before.version.get()));
        }
        let (was, is) = (status(&before.state), status(&after.state));
        let again = before.version >= after.version;
        let nested = matches!(&after.state, State::Lra(lra) if lra.parent.is_some());
        // All of what follows a second decision may lie in one record, and what came just before it too.
        let completed = |callee: Callee| self.calls.iter().any(|(key, outcome)| key.callee == callee && key.phase == Phase::Complete && outcome.is_some());
        let had_closed =
            nested && matches!(&before.state, State::Lra(lra) if lra.participants.iter().all(|p| p.links.complete.is_none() || completed(p.callee)));
        let legal = again
            || was == is
            || match was {
                LraStatus::Active => true,
                LraStatus::Closing => matches!(is, LraStatus::Closed | LraStatus::FailedToClose) || (had_closed && is.is_cancel()),
                LraStatus::Cancelling => matches!(is, LraStatus::Cancelled | LraStatus::FailedToCancel),
                LraStatus::Closed => nested && is.is_cancel(),
                _ => false,
            };
        if !legal {
            return Err(format!("decided twice: {was}, then {is}"));
        }
        match (kept(before.state), kept(after.state.clone())) {
            (Some(was), is) if !again && is.as_ref() != Some(&was) => Err(format!("the outcome that was kept is {is:?}, and was {was:?}")),
            _ => Ok(()),
        }
    }

    /// A call is made.
    pub(crate) fn called(&mut self, callback: &Callback, patient_since: Option<u64>, now: u64, patience: u64) -> Result<(), String> {
        let key = callback.key;
        if !self.counting().any(|record| asks_for(record, key)) {
            return Err(format!("{key} is called before that is durable"));
        }
        let is_new = !self.calls.contains_key(&key);
        self.calls.entry(key).or_insert(None);
        if is_new && let Some(lra) = self.lra() {
            self.check_call(lra, key, patient_since.is_some_and(|since| since + patience <= now))?;
        }
        if is_new && let Some(saga) = self.saga() {
            self.check_step_call(saga, key)?;
        }
        Ok(())
    }

    fn check_call(&self, lra: &Lra, key: CallbackKey, waited: bool) -> Result<(), String> {
        let open = self.calls.iter().filter(|(other, outcome)| other.callee == key.callee && **other != key && outcome.is_none()).count();
        if open > 0 {
            return Err(format!("{key} is called while another call to the same participant is open"));
        }
        let first =
            key.phase == Phase::Compensate && !self.calls.keys().any(|other| other.callee == key.callee && other.phase == Phase::Compensate && *other != key);
        if !first || waited {
            return Ok(());
        }
        // In the reverse order of joining: who joined later has had an outcome before.
        for later_one in lra.participants.iter().filter(|p| p.callee > key.callee && p.links.compensate.is_some()) {
            if !self.calls.iter().any(|(other, outcome)| other.callee == later_one.callee && other.phase == Phase::Compensate && outcome.is_some()) {
                return Err(format!("{key} is called before participant {}, which joined later, was asked to compensate", later_one.callee.0));
            }
        }
        Ok(())
    }

    fn check_step_call(&self, saga: &Saga, key: CallbackKey) -> Result<(), String> {
        let place = usize::try_from(key.callee.0).unwrap();
        let was_called = |callee: u32| self.calls.keys().any(|other| other.callee == Callee(callee) && other.phase == Phase::Action);
        let done = |callee: u32| {
            self.calls.iter().any(|(other, outcome)| other.callee == Callee(callee) && other.phase == Phase::Action && *outcome == Some(Outcome::Done))
        };
        match key.phase {
            Phase::Action => match saga.plan.steps()[place].after.iter().find(|before| !done(u32::try_from(**before).unwrap())) {
                Some(before) => Err(format!("step {place} is called before step {before}, which comes before it, is done")),
                None => Ok(()),
            },
            _ if !was_called(key.callee.0) => Err(format!("step {place} is compensated, and was never called")),
            _ => Ok(()),
        }
    }

    /// A participant acts on a call.
    pub(crate) fn acted(&mut self, key: CallbackKey) -> Result<(), String> {
        let (callee, phase) = (key.callee, key.phase);
        if phase == Phase::Status || phase == Phase::Enlist {
            return Ok(());
        }
        let did = |what: Phase| self.did.contains(&(callee, what));
        let nested = self.lra().is_some_and(|lra| lra.parent.is_some());
        let broken = match phase {
            Phase::Complete | Phase::Compensate | Phase::After if did(Phase::Forget) => Some("after it was told to forget"),
            Phase::Complete if did(Phase::Compensate) => Some("after it has compensated"),
            // Of a nested one it is as it should be: Completed → Compensating.
            Phase::Compensate if did(Phase::Complete) && !nested => Some("after it has completed"),
            Phase::Action if did(Phase::Undo) => Some("after its compensation"),
            _ => None,
        };
        if let Some(broken) = broken {
            return Err(format!("participant {} gets {} {broken}", callee.0, phase.name()));
        }
        if !self.did.contains(&(callee, phase)) {
            self.did.push((callee, phase));
        }
        Ok(())
    }

    /// An answer has left.
    pub(crate) fn answered(&mut self, number: usize, answer: &Answer) -> Result<(), String> {
        if let (Some(told), Answer::Status(_) | Answer::EndedOtherwise(_)) = (self.told.get(&number), answer) {
            let other = matches!(answer, Answer::EndedOtherwise(_));
            let is_kept = |record: &Record| kept(record.state.clone()).is_some_and(|kept| (kept != told.as_bytes()) == other);
            if !self.counting().any(is_kept) {
                return Err(format!("{answer:?} is answered to who has told {told:?}, and that is not what is kept"));
            }
        }
        match answer {
            Answer::Started(id) => {
                if self.last().is_none_or(|record| record.state.id() != *id) {
                    return Err(format!("{id} is answered to have begun, and is not durable"));
                }
                if self.started.is_some_and(|before| before != *id) {
                    return Err("one call has begun two transactions".to_owned());
                }
                self.started = Some(*id);
            }
            Answer::Joined { callee, .. } => {
                if !self.lra().is_some_and(|lra| lra.participants.iter().any(|p| p.callee == *callee)) {
                    return Err(format!("participant {} is told that it has joined, and that is not durable", callee.0));
                }
                self.joined.insert(*callee);
            }
            Answer::Status(said) | Answer::EndedOtherwise(said) if said.is_final() => {
                // A former owner may still answer what was so when it was one: a nested one may be cancelled by now, and its two decisions may lie in one record.
                let nested = self.lra().is_some_and(|lra| lra.parent.is_some());
                let so = |is: LraStatus| is == *said || (nested && *said == LraStatus::Closed && is.is_cancel());
                if !self.counting().any(|record| so(status(&record.state))) {
                    return Err(format!("{said} is answered, and is not durable"));
                }
                self.ended = Some(*said);
            }
            _ => {}
        }
        Ok(())
    }

    /// Everything is over: was anything left out, or done by halves?
    pub(crate) fn check_end(&self, removed: bool) -> Result<(), String> {
        let Some(record) = self.last() else { return Ok(()) };
        let end = status(&record.state);
        if !end.is_final() {
            return Err(format!("it does not come to an end: {end}"));
        }
        if removed == end.is_failed() {
            return Err(if removed { "what has failed was removed".to_owned() } else { format!("{end} is kept for ever") });
        }
        if let Some(said) = self.ended.filter(|said| *said != end && *said != LraStatus::Closed) {
            return Err(format!("{said} was answered, and {end} it is"));
        }
        match &record.state {
            State::Lra(lra) => self.check_participants(lra),
            State::Saga(saga) => self.check_steps(saga),
        }
    }

    fn check_participants(&self, lra: &Lra) -> Result<(), String> {
        for callee in &self.joined {
            if !self.left.contains(callee) && !lra.participants.iter().any(|p| p.callee == *callee) {
                return Err(format!("participant {}, which was told that it has joined, is not there", callee.0));
            }
        }
        let mut urls = BTreeSet::new();
        for participant in &lra.participants {
            if !urls.insert(participant.links.identity()) {
                return Err("a participant has joined twice".to_owned());
            }
            let did = |phase| self.did.contains(&(participant.callee, phase));
            let half = match lra.status {
                LraStatus::Closed => participant.links.complete.is_some() && !did(Phase::Complete),
                LraStatus::Cancelled => participant.links.compensate.is_some() && !did(Phase::Compensate),
                _ => participant.status == ParticipantStatus::Active,
            };
            if half {
                return Err(format!("done by halves: {} and participant {} has done {:?}", lra.status, participant.callee.0, self.did));
            }
            let given_up = self.may_be_given_up && participant.line.last_error.as_ref().is_some_and(|error| error.contains("gave it up"));
            if given_up {
                continue;
            }
            if participant.links.after.is_some() && !did(Phase::After) {
                return Err(format!("participant {} was not told of the end", participant.callee.0));
            }
            if participant.links.forget.is_some() && participant.status.is_failed() && !did(Phase::Forget) {
                return Err(format!("participant {} has failed, and was not told to forget", participant.callee.0));
            }
        }
        Ok(())
    }

    fn check_steps(&self, saga: &Saga) -> Result<(), String> {
        for (callee, planned) in (0..).map(Callee).zip(saga.plan.steps()) {
            let done = self.calls.iter().any(|(key, outcome)| key.callee == callee && key.phase == Phase::Action && *outcome == Some(Outcome::Done));
            let undone = self.did.contains(&(callee, Phase::Undo)) || planned.compensation.is_none();
            let step = &saga.steps[usize::try_from(callee.0).unwrap()];
            let half = match saga.status {
                LraStatus::Closed => !done,
                _ => done && !undone && step.status != StepStatus::FailedToUndo,
            };
            if half {
                return Err(format!("done by halves: {} and step {:?} is {:?}", saga.status, planned.name, step.status));
            }
        }
        Ok(())
    }
}

/// The outcome of the call that ended it, as it is kept.
fn kept(state: State) -> Option<bytes::Bytes> {
    match state {
        State::Lra(lra) => lra.kept?.outcome,
        State::Saga(_) => None,
    }
}

fn status(state: &State) -> LraStatus {
    match state {
        State::Lra(lra) => lra.status,
        State::Saga(saga) => saga.status,
    }
}

/// Whether a record says that this call is to be made.
fn asks_for(record: &Record, key: CallbackKey) -> bool {
    match &record.state {
        State::Lra(lra) if key.callee == Callee::PARENT => lra.parent.as_ref().is_some_and(|p| p.line.key(lra.id, key.callee) == Some(key)),
        State::Lra(lra) => lra.participants.iter().any(|p| p.line.key(lra.id, p.callee) == Some(key)),
        State::Saga(saga) => saga.steps.iter().zip(0..).any(|(step, at)| step.line.key(saga.id, Callee(at)) == Some(key)),
    }
}

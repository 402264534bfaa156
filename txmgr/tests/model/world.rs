//! The world around the machines: a log that takes what zombies append, owners that die and come back, calls that are delivered at least once, clients, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::log::Timestamp;
use bluebox_core::{CallId, ComponentName};
use bluebox_txmgr::TransactionId;
use bluebox_txmgr::callback::{CallbackKey, Callee, Phase};
use bluebox_txmgr::effect::{Effect, RequestId};
use bluebox_txmgr::partition::{Ask, Out, Partition};
use bluebox_txmgr::record::Entry;
use bluebox_txmgr::saga::{SagaRequest, StartSaga};
use bluebox_txmgr::transaction::{Join, Kept, OutcomeOf, Request, Start};

use crate::scenario::{Budget, PATIENCE, Scenario, Want, parent_id};
use crate::witness::Witness;

/// Answers are given when all is over, not before.
const FAR: Timestamp = Timestamp::from_millis(u64::MAX);

#[derive(Clone, Hash)]
pub(crate) struct Owner {
    pub(crate) partition: Partition,
    pub(crate) position: usize,
    /// On their way to the log.
    pub(crate) appends: Vec<Arc<Entry>>,
    /// Calls whose outcomes it waits for.
    pub(crate) waits: BTreeSet<CallbackKey>,
    /// When it made its calls.
    pub(crate) since: BTreeMap<CallbackKey, u64>,
}

#[derive(Clone, Hash)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) owners: [Option<Owner>; 2],
    pub(crate) late: Vec<Arc<Entry>>,
    /// Offsets that compaction has taken.
    pub(crate) compacted: BTreeSet<usize>,
    pub(crate) asked: Vec<bool>,
    pub(crate) answered: Vec<bool>,
    pub(crate) starts: u8,
    pub(crate) budget: Budget,
    pub(crate) witness: Witness,
}

impl World {
    pub(crate) fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    pub(crate) fn next_unread(&self, mut position: usize) -> Option<usize> {
        while self.compacted.contains(&position) {
            position += 1;
        }
        (position < self.witness.history.len()).then_some(position)
    }

    pub(crate) fn wakes_at(&self) -> Option<u64> {
        self.owners.iter().flatten().filter_map(|owner| owner.partition.wakes_at()).map(Timestamp::as_millis).filter(|at| *at > self.now).min()
    }

    /// Takes what comes out of an owner.
    pub(crate) fn take(&mut self, at: usize, out: Vec<Out>) -> Result<(), String> {
        for one in out {
            match one {
                Out::Append(entry) => {
                    if let Some(owner) = &mut self.owners[at] {
                        owner.appends.push(Arc::new(entry));
                    }
                }
                Out::Do(Effect::Call(callback)) => {
                    let key = callback.key;
                    let owner = self.owners[at].as_mut().ok_or("a lost owner calls")?;
                    owner.waits.insert(key);
                    owner.since.insert(key, self.now);
                    // The first call of whoever joined later, by this owner.
                    let blockers =
                        owner.since.iter().filter(|(other, _)| other.phase == Phase::Compensate && other.callee > key.callee).map(|(_, since)| *since).max();
                    self.witness.called(&callback, blockers, self.now, PATIENCE)?;
                }
                Out::Do(Effect::Hurry(key)) => {
                    self.witness.hurried.insert(key);
                }
                Out::Do(Effect::Answer(RequestId(number), answer)) => {
                    let number = usize::try_from(number).unwrap();
                    self.answered[number] = true;
                    self.witness.answered(number, &answer)?;
                }
                Out::Do(Effect::Changed(..)) | Out::Serving => {}
                Out::Lost => {
                    let owner = self.owners[at].take();
                    self.late.extend(owner.into_iter().flat_map(|owner| owner.appends));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn with(&mut self, at: usize, act: impl FnOnce(&mut Partition, Timestamp, &mut Vec<Out>)) -> Result<(), String> {
        let now = self.at();
        let mut out = Vec::new();
        if let Some(owner) = &mut self.owners[at] {
            act(&mut owner.partition, now, &mut out);
        }
        self.take(at, out)
    }

    pub(crate) fn lands(&mut self, entry: Arc<Entry>) -> Result<(), String> {
        self.witness.landed(entry)
    }

    /// Whether it makes sense to ask for this now.
    pub(crate) fn may_ask(&self, want: &Want, scenario: &Scenario) -> bool {
        let answered = |other: &Want| scenario.wants.iter().position(|w| w == other).is_some_and(|at| self.answered[at]);
        let asked = |other: &Want| scenario.wants.iter().position(|w| w == other).is_some_and(|at| self.asked[at]);
        let started = self.witness.started.is_some();
        match want {
            Want::Start | Want::StartSaga => true,
            // One after the other, so that their order is known.
            Want::Join(at) => started && (*at == 0 || answered(&Want::Join(at - 1))),
            Want::Leave(at) => answered(&Want::Join(*at)),
            Want::ParentCompletes => started && !asked(&Want::ParentCompensates),
            Want::ParentCompensates => started && !asked(&Want::ParentCompletes),
            Want::ParentForgets => answered(&Want::ParentCompletes),
            Want::GiveUp => asked(&Want::Close) || asked(&Want::CancelSaga),
            Want::Close | Want::Cancel | Want::Tells(..) | Want::CancelSaga => started,
        }
    }

    pub(crate) fn asks(&mut self, scenario: &Scenario, at: usize, number: usize) -> Result<(), String> {
        self.asked[number] = true;
        let request = RequestId(u64::try_from(number).unwrap());
        let origin = Some(CallId::from_bytes([7; 16]));
        let id = self.witness.started;
        let want = scenario.wants[number].clone();
        if matches!(want, Want::Start | Want::StartSaga) {
            self.starts += 1;
        }
        if let Want::Leave(at) = &want {
            self.witness.left.insert(Callee(u32::try_from(*at).unwrap()));
        }
        self.witness.may_be_given_up |= want == Want::GiveUp;
        if let Want::Tells(_, outcome) = &want {
            self.witness.told.insert(number, outcome);
        }
        let fresh = TransactionId::new(0, Timestamp::from_millis(1), None, u64::from(self.starts));
        let participants = &scenario.participants;
        self.with(at, |partition, now, out| {
            let lra = |what| Ask::Lra(what);
            let ask = match want {
                Want::Start => {
                    let parent = scenario.parent.then(|| (parent_id(), Arc::from("http://txmgr/lra-coordinator/parent")));
                    partition
                        .start(
                            now,
                            request,
                            Start { id: fresh, origin, client: Arc::from("c"), base: Arc::from("http://txmgr/lra-coordinator"), limit: scenario.limit, parent },
                            out,
                        )
                        .unwrap();
                    return;
                }
                Want::StartSaga => {
                    let plan = scenario.plan.clone().unwrap();
                    partition.start_saga(now, request, StartSaga { id: fresh, origin, plan, limit: scenario.limit }, out).unwrap();
                    return;
                }
                Want::Join(at) => lra(Request::Join(Join { links: participants[at].clone(), limit: None, data: None })),
                Want::Leave(at) => lra(Request::Leave(participants[at].compensate.clone().unwrap())),
                Want::Close => lra(Request::Close(FAR)),
                Want::Cancel => lra(Request::Cancel(FAR)),
                Want::Tells(close, outcome) => {
                    let of = OutcomeOf { call: CallId::from_bytes([9; 16]), replay: 0, component: ComponentName::try_new("trip").unwrap() };
                    lra(Request::EndAndKeep(close, FAR, Box::new(Kept::new(of, bytes::Bytes::from_static(outcome.as_bytes())))))
                }
                Want::ParentCompletes => lra(Request::OfParent(Phase::Complete, FAR)),
                Want::ParentCompensates => lra(Request::OfParent(Phase::Compensate, FAR)),
                Want::ParentForgets => lra(Request::OfParent(Phase::Forget, FAR)),
                Want::GiveUp if scenario.plan.is_some() => Ask::Saga(SagaRequest::GiveUp),
                Want::GiveUp => lra(Request::GiveUp),
                Want::CancelSaga => Ask::Saga(SagaRequest::Cancel(FAR)),
            };
            // One that is not there any more has been removed.
            let _ = partition.request(now, request, id.unwrap(), ask, out);
        })
    }
}

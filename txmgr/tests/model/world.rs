//! The world around the machines: a log that takes what zombies append, owners that die and come back, calls that are delivered at least once, clients, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::log::{Offset, Timestamp};
use bluebox_core::{CallId, InstanceId};
use bluebox_txmgr::TransactionId;
use bluebox_txmgr::callback::{CallbackKey, Callee, Outcome, Phase};
use bluebox_txmgr::effect::{Effect, RequestId};
use bluebox_txmgr::partition::{Ask, Out, Partition};
use bluebox_txmgr::record::Entry;
use bluebox_txmgr::saga::{SagaRequest, StartSaga};
use bluebox_txmgr::transaction::{Join, Request, Start};

use crate::explore::Space;
use crate::scenario::{Budget, HORIZON, PATIENCE, Scenario, Want, parent_id};
use crate::witness::Witness;

/// Answers are given when all is over, not before.
const FAR: Timestamp = Timestamp::from_millis(u64::MAX);

/// What can happen.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// A process takes the partition: owner 0 or 1.
    Boot(usize),
    Crash(usize),
    /// An append of a living owner comes to lie in the log.
    Lands(usize, usize),
    /// So it does, and will once more.
    LandsTwice(usize, usize),
    /// An append of a dead owner comes to lie in the log.
    LandsLate(usize),
    Reads(usize),
    Asks(usize, usize),
    /// A call is delivered, and its outcome recorded.
    Delivers(CallbackKey, Outcome),
    /// A call is delivered, and its outcome lost.
    LosesOutcome(CallbackKey),
    /// The log has cancelled a call that was not delivered.
    Cancels(CallbackKey),
    Tells(usize, CallbackKey),
    TellsAgain(usize, CallbackKey),
    /// Time passes until something is due.
    Passes,
    Ticks(usize),
    Compacts,
}

#[derive(Clone, Hash)]
struct Owner {
    partition: Partition,
    position: usize,
    /// On their way to the log.
    appends: Vec<Arc<Entry>>,
    /// Calls whose outcomes it waits for.
    waits: BTreeSet<CallbackKey>,
    /// When it made its calls.
    since: BTreeMap<CallbackKey, u64>,
}

#[derive(Clone, Hash)]
pub(crate) struct World {
    now: u64,
    owners: [Option<Owner>; 2],
    late: Vec<Arc<Entry>>,
    /// Offsets that compaction has taken.
    compacted: BTreeSet<usize>,
    asked: Vec<bool>,
    answered: Vec<bool>,
    starts: u8,
    budget: Budget,
    pub(crate) witness: Witness,
}

impl World {
    fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    fn next_unread(&self, mut position: usize) -> Option<usize> {
        while self.compacted.contains(&position) {
            position += 1;
        }
        (position < self.witness.history.len()).then_some(position)
    }

    fn wakes_at(&self) -> Option<u64> {
        self.owners.iter().flatten().filter_map(|owner| owner.partition.wakes_at()).map(Timestamp::as_millis).filter(|at| *at > self.now).min()
    }

    /// Takes what comes out of an owner.
    fn take(&mut self, at: usize, out: Vec<Out>) -> Result<(), String> {
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
                    self.witness.answered(&answer)?;
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

    fn with(&mut self, at: usize, act: impl FnOnce(&mut Partition, Timestamp, &mut Vec<Out>)) -> Result<(), String> {
        let now = self.at();
        let mut out = Vec::new();
        if let Some(owner) = &mut self.owners[at] {
            act(&mut owner.partition, now, &mut out);
        }
        self.take(at, out)
    }

    fn lands(&mut self, entry: Arc<Entry>) -> Result<(), String> {
        self.witness.landed(entry)
    }

    /// Whether it makes sense to ask for this now.
    fn may_ask(&self, want: &Want, scenario: &Scenario) -> bool {
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
            Want::Close | Want::Cancel | Want::CancelSaga => started,
        }
    }

    fn asks(&mut self, scenario: &Scenario, at: usize, number: usize) -> Result<(), String> {
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
                Want::ParentCompletes => lra(Request::OfParent(Phase::Complete, FAR)),
                Want::ParentCompensates => lra(Request::OfParent(Phase::Compensate, FAR)),
                Want::ParentForgets => lra(Request::OfParent(Phase::Forget, FAR)),
                Want::CancelSaga => Ask::Saga(SagaRequest::Cancel(FAR)),
            };
            // One that is not there any more has been removed.
            let _ = partition.request(now, request, id.unwrap(), ask, out);
        })
    }
}

impl Space for Scenario {
    type State = World;
    type Action = Action;

    fn first(&self) -> World {
        let none = vec![false; self.wants.len()];
        World {
            now: 1,
            owners: [None, None],
            late: Vec::new(),
            compacted: BTreeSet::new(),
            asked: none.clone(),
            answered: none,
            starts: 0,
            budget: self.budget,
            witness: Witness::default(),
        }
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        let budget = &world.budget;
        for (at, owner) in world.owners.iter().enumerate() {
            let Some(owner) = owner else {
                // Who is second comes second: the two are the same otherwise.
                if budget.boots > 0 && (at == 0 || world.owners[0].is_some()) {
                    actions.push(Action::Boot(at));
                }
                continue;
            };
            if budget.crashes > 0 {
                actions.push(Action::Crash(at));
            }
            for number in 0..owner.appends.len() {
                actions.push(Action::Lands(at, number));
                if budget.twice > 0 {
                    actions.push(Action::LandsTwice(at, number));
                }
            }
            if world.next_unread(owner.position).is_some() {
                actions.push(Action::Reads(at));
            }
            if owner.partition.is_serving() {
                for (number, want) in self.wants.iter().enumerate() {
                    let again = world.asked[number] && budget.asked_again > 0;
                    if (!world.asked[number] || again) && world.may_ask(want, self) {
                        actions.push(Action::Asks(at, number));
                    }
                }
                if budget.compactions > 0 && owner.appends.is_empty() && world.next_unread(owner.position).is_none() {
                    actions.push(Action::Compacts);
                }
            }
            for (key, outcome) in &world.witness.calls {
                if outcome.is_some() && owner.waits.contains(key) {
                    actions.push(Action::Tells(at, *key));
                } else if outcome.is_some() && budget.told_again > 0 && owner.since.contains_key(key) {
                    actions.push(Action::TellsAgain(at, *key));
                }
            }
            if owner.partition.wakes_at().is_some_and(|wakes| wakes.as_millis() <= world.now) {
                actions.push(Action::Ticks(at));
            }
        }
        for number in 0..world.late.len() {
            actions.push(Action::LandsLate(number));
        }
        for (key, outcome) in &world.witness.calls {
            if outcome.is_some() {
                continue;
            }
            actions.push(Action::Delivers(*key, Outcome::Done));
            if key.n < self.max_tries {
                actions.extend((self.answers)(*key).into_iter().map(|outcome| Action::Delivers(*key, outcome)));
            }
            if budget.lost_outcomes > 0 {
                actions.push(Action::LosesOutcome(*key));
            }
            if world.witness.hurried.contains(key) {
                actions.push(Action::Cancels(*key));
            }
        }
        if world.wakes_at().is_some_and(|at| at < HORIZON) {
            actions.push(Action::Passes);
        }
        actions
    }

    fn next(&self, world: &World, action: &Action) -> Result<World, String> {
        let mut world = world.clone();
        match action.clone() {
            Action::Boot(at) => {
                world.budget.boots -= 1;
                let instance = InstanceId::from_bytes([world.budget.boots; 16]);
                let mut out = Vec::new();
                let partition = Partition::new(Arc::clone(&self.rules), instance, &mut out);
                world.owners[at] = Some(Owner { partition, position: 0, appends: Vec::new(), waits: BTreeSet::new(), since: BTreeMap::new() });
                world.take(at, out)?;
            }
            Action::Crash(at) => {
                world.budget.crashes -= 1;
                let owner = world.owners[at].take();
                world.late.extend(owner.into_iter().flat_map(|owner| owner.appends));
            }
            Action::Lands(at, number) => {
                let entry = world.owners[at].as_mut().map(|owner| owner.appends.remove(number)).unwrap();
                world.lands(entry)?;
            }
            Action::LandsTwice(at, number) => {
                world.budget.twice -= 1;
                let entry = world.owners[at].as_ref().map(|owner| Arc::clone(&owner.appends[number])).unwrap();
                world.lands(entry)?;
            }
            Action::LandsLate(number) => {
                let entry = world.late.remove(number);
                world.lands(entry)?;
            }
            Action::Reads(at) => {
                let position = world.owners[at].as_ref().and_then(|owner| world.next_unread(owner.position)).unwrap();
                let entry = Entry::clone(&world.witness.history[position]);
                if let Some(owner) = &mut world.owners[at] {
                    owner.position = position + 1;
                }
                world.with(at, |partition, now, out| partition.read(now, Offset::new(u64::try_from(position).unwrap()), entry, out))?;
            }
            Action::Asks(at, number) => {
                if world.asked[number] {
                    world.budget.asked_again -= 1;
                }
                world.asks(self, at, number)?;
            }
            Action::Delivers(key, outcome) => {
                world.witness.acted(key)?;
                world.witness.calls.insert(key, Some(outcome));
            }
            Action::LosesOutcome(key) => {
                world.budget.lost_outcomes -= 1;
                world.witness.acted(key)?;
            }
            Action::Cancels(key) => {
                world.witness.calls.insert(key, Some(Outcome::Again("cancelled".to_owned())));
            }
            Action::Tells(at, key) | Action::TellsAgain(at, key) => {
                if matches!(action, Action::TellsAgain(..)) {
                    world.budget.told_again -= 1;
                }
                if let Some(owner) = &mut world.owners[at] {
                    owner.waits.remove(&key);
                }
                let outcome = world.witness.calls[&key].clone().unwrap();
                world.with(at, |partition, now, out| partition.outcome(now, key, outcome, out))?;
            }
            Action::Passes => world.now = world.wakes_at().unwrap(),
            Action::Ticks(at) => world.with(at, Partition::tick)?,
            Action::Compacts => {
                world.budget.compactions -= 1;
                let mut kept = BTreeSet::new();
                for (offset, entry) in world.witness.history.iter().enumerate().rev() {
                    if !kept.insert(entry.encode().key) {
                        world.compacted.insert(offset);
                    }
                }
            }
        }
        Ok(world)
    }

    /// All owners die, another one comes, and nothing goes wrong any more.
    fn ends_well(&self, world: &World) -> Result<(), String> {
        let mut world = world.clone();
        world.owners = [None, None];
        world.late.clear();
        world.budget = Budget { boots: 1, ..Budget::default() };
        // A number that no other has had.
        world.budget.boots = 200;
        world = self.next(&world, &Action::Boot(0))?;
        world.budget = Budget::default();
        let (mut repeated, mut asked_to_end) = (false, false);
        for _ in 0..400 {
            let actions = self.actions(&world);
            let calm = |action: &&Action| match action {
                Action::Delivers(_, outcome) => *outcome == Outcome::Done,
                Action::Cancels(_) | Action::Asks(..) | Action::Passes => false,
                _ => true,
            };
            if let Some(action) = actions.iter().find(calm) {
                world = self.next(&world, action)?;
                continue;
            }
            let serving = world.owners[0].as_ref().is_some_and(|owner| owner.partition.is_serving());
            if serving && !repeated {
                // Requests are durable calls: what has no answer is delivered again.
                repeated = true;
                for number in (0..self.wants.len()).filter(|at| world.asked[*at] && !world.answered[*at]).collect::<Vec<_>>() {
                    if world.may_ask(&self.wants[number], self) {
                        world.asks(self, 0, number)?;
                    }
                }
                continue;
            }
            // What was begun is ended by somebody, and a parent that has asked goes on asking.
            if serving && !asked_to_end && world.witness.started.is_some() {
                asked_to_end = true;
                for (number, want) in self.wants.iter().enumerate() {
                    let parent_goes_on = matches!(want, Want::ParentCompletes | Want::ParentCompensates) && world.asked[number];
                    if parent_goes_on || matches!(want, Want::Cancel | Want::Close | Want::CancelSaga) {
                        world.asks(self, 0, number)?;
                    }
                }
                continue;
            }
            let wants = |want| self.wants.iter().position(|w| *w == want);
            if self.parent && asked_to_end && world.witness.lra().is_some_and(|lra| lra.status.is_final() && !lra.is_settled()) {
                // The parent has decided long ago, or does so now.
                let compensates = wants(Want::ParentCompensates).filter(|at| world.asked[*at] || wants(Want::ParentCompletes).is_none());
                let number = compensates.or(wants(Want::ParentForgets)).ok_or("a nested transaction without a parent that ends it")?;
                world.asks(self, 0, number)?;
                continue;
            }
            match world.wakes_at() {
                Some(at) => world.now = at,
                None => break,
            }
        }
        let partition = world.owners[0].as_ref().map(|owner| &owner.partition).ok_or("the last owner is lost")?;
        world.witness.check_end(partition.transactions().next().is_none())
    }
}

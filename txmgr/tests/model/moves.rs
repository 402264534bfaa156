//! What can happen in the world, one thing after the other, and how all of it ends when nothing goes wrong any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::InstanceId;
use bluebox_core::log::Offset;
use bluebox_txmgr::callback::{CallbackKey, Outcome};
use bluebox_txmgr::partition::Partition;
use bluebox_txmgr::record::Entry;

use crate::explore::Space;
use crate::scenario::{Budget, HORIZON, Scenario, Want};
use crate::witness::Witness;
use crate::world::{Owner, World};

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
                    if parent_goes_on || matches!(want, Want::Cancel | Want::Close | Want::Tells(..) | Want::CancelSaga) {
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

//! All partitions of one component that this box owns: what they share. Pure.
//!
//! They share the lease (only an owner that the log took for one a moment ago may start a delivery), the app's concurrency, the memory for bodies, the exclusiveness of a
//! solo delivery, and the commits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bluebox_core::clock::{Moment, OnceAMinute};
use bluebox_core::log::{Committed, LogError, Offset};
use bluebox_core::planted;

use super::partition::{Delivery, DeliveryEnd, Effect, Partition, Rules};
use super::recorded::Recorded;

/// Marks are committed after this long …
pub const COMMIT_AFTER: Duration = Duration::from_millis(100);

/// … or when there are so many of them.
pub const COMMIT_MARKS: u32 = 256;

/// The lease is kept up for this long after the last work, so that the next call need not wait for it.
pub const LEASE_KEPT: Duration = Duration::from_secs(10);

/// Records that are asked for at once, of one partition.
const MAX_WANT: u32 = 256;

/// After this long without asking for more, what was on its way has come.
const SETTLED_AFTER: Duration = Duration::from_millis(50);

/// What the owner wants to be done. Effects of one partition are named with its number.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// An effect of a partition.
    Of(u32, Effect),
    /// Begin this delivery, unless it is past this moment; then [`Owner::delivery_ended`].
    Deliver(u32, Delivery, Moment),
    /// Commit: for each partition, what for its calls and what for its parked ones; then [`Owner::commit_ended`].
    Commit(Vec<(u32, Committed, Committed)>),
    /// Take so many records of this partition.
    Want(u32, u32),
}

/// What all partitions of a component share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Deliveries under way at once.
    pub concurrency: usize,
    /// Memory for bodies, in bytes.
    pub body_memory_bytes: usize,
    /// What each partition goes by.
    pub rules: Rules,
}

#[derive(Debug)]
struct Commit {
    /// Partition, its frontier, and whether it is the last commit before its release.
    marks: Vec<(u32, Offset, bool)>,
    announces: Option<(u32, Delivery)>,
}

#[derive(Debug)]
struct Owned {
    partition: Partition,
    /// Records that were asked for and haven't come.
    wanted: u32,
    /// Since when fewer are wanted than were asked for: some may still be on their way.
    less_since: Option<Moment>,
}

/// All partitions of one component that this box owns.
#[derive(Debug)]
pub struct Owner {
    shared: Shared,
    partitions: BTreeMap<u32, Owned>,
    index: Recorded,
    /// When the last commit that succeeded was sent.
    lease_from: Option<Moment>,
    /// What was sent before then proves nothing.
    doubted: Option<Moment>,
    committing: Option<Commit>,
    last_commit: Moment,
    commit_failed: bool,
    failures: OnceAMinute,
    last_work: Option<Moment>,
    under_way: HashMap<(u32, Offset), bool>,
    /// The ends that are being made durable. Those of a tenure that was lost too: they go on, and the next tenure here must not take them for never recorded.
    recording: BTreeSet<(u32, Offset)>,
    /// The solo delivery that is under way, announced, or next.
    solo: Option<Solo>,
    app_is_there: bool,
    /// Where the next round begins, so that no partition is always first.
    next_turn: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum Solo {
    /// One of this partition waits until it is alone.
    Waiting(u32),
    /// Its crash count is on its way into a commit.
    Announced(u32, Delivery),
    UnderWay(u32, Offset),
}

impl Owner {
    /// An owner of nothing yet.
    pub fn new(now: Moment, shared: Shared, index: Recorded) -> Self {
        Self {
            shared,
            partitions: BTreeMap::new(),
            index,
            lease_from: None,
            doubted: None,
            committing: None,
            last_commit: now,
            commit_failed: false,
            failures: OnceAMinute::default(),
            last_work: None,
            under_way: HashMap::new(),
            recording: BTreeSet::new(),
            solo: None,
            app_is_there: true,
            next_turn: 0,
        }
    }

    /// A partition was assigned.
    pub fn assigned(
        &mut self,
        now: Moment,
        number: u32,
        committed: Option<&Committed>,
        parked_committed: Option<&Committed>,
        former_is_gone: bool,
        acts: &mut Vec<Act>,
    ) {
        let mut effects = Vec::new();
        if self.partitions.contains_key(&number) {
            // Taken away and given back without a word: nothing of what was under way goes on.
            self.lost(number, acts);
        }
        let mut partition = Partition::new(now, self.shared.rules.clone(), committed, parked_committed, former_is_gone, &mut effects);
        if !planted!(FormerEndForgotten) {
            let whole = (number, Offset::default())..=(number, Offset::new(u64::MAX));
            partition.still_recording(self.recording.range(whole).map(|(_, origin)| *origin));
        }
        self.partitions.insert(number, Owned { partition, wanted: 0, less_since: None });
        self.take(number, effects, acts);
    }

    /// Something happened to a partition: `event` tells it. Nothing if the partition isn't owned any more.
    pub fn tell<T>(&mut self, number: u32, acts: &mut Vec<Act>, event: impl FnOnce(&mut Partition, &mut Vec<Effect>) -> T) -> Option<T> {
        let mut effects = Vec::new();
        let told = event(&mut self.partitions.get_mut(&number)?.partition, &mut effects);
        self.take(number, effects, acts);
        Some(told)
    }

    /// So many records of a partition came, of those that were asked for.
    pub fn came(&mut self, number: u32, records: usize) {
        if let Some(owned) = self.partitions.get_mut(&number) {
            owned.wanted = owned.wanted.saturating_sub(u32::try_from(records).unwrap_or(u32::MAX));
        }
    }

    fn take(&mut self, number: u32, effects: Vec<Effect>, acts: &mut Vec<Act>) {
        for mut effect in effects {
            match &mut effect {
                Effect::Record(ending) => {
                    // The first end of a recorded call is the one that counts.
                    ending.indexed &= ending.replay > 0 || !self.index.knows(&ending.id);
                    self.recording.insert((number, ending.origin));
                }
                Effect::Cut(origin) => self.ended(number, *origin),
                Effect::Release => self.forget(number),
                _ => {}
            }
            acts.push(Act::Of(number, effect));
        }
    }

    fn ended(&mut self, number: u32, origin: Offset) {
        self.under_way.remove(&(number, origin));
        if self.solo == Some(Solo::UnderWay(number, origin)) {
            self.solo = None;
        }
    }

    /// The end of a call is durable, whichever tenure of this box it was begun in. To be told for every [`Effect::Record`].
    pub fn recorded(&mut self, now: Moment, number: u32, origin: Offset, acts: &mut Vec<Act>) {
        self.recording.remove(&(number, origin));
        self.tell(number, acts, |partition, effects| partition.recorded(now, origin, effects));
    }

    /// The partition was taken away.
    pub fn lost(&mut self, number: u32, acts: &mut Vec<Act>) {
        self.tell(number, acts, Partition::lost);
        self.forget(number);
    }

    fn forget(&mut self, number: u32) {
        self.partitions.remove(&number);
        self.index.give_up(number);
        if matches!(&self.solo, Some(Solo::Announced(of, _)) if *of == number) {
            self.solo = None;
        }
        // What is on its way into a commit says nothing of the next tenure.
        if let Some(commit) = &mut self.committing {
            commit.marks.retain(|(of, ..)| *of != number);
        }
    }

    /// A delivery has ended. `jitter` is a random number from 0 to 1.
    pub fn delivery_ended(&mut self, now: Moment, number: u32, origin: Offset, end: DeliveryEnd, jitter: f64, acts: &mut Vec<Act>) {
        if !self.under_way.contains_key(&(number, origin)) {
            return;
        }
        self.ended(number, origin);
        self.last_work = Some(now);
        if end == DeliveryEnd::NotThere {
            self.app_is_there = false;
        }
        self.tell(number, acts, |partition, effects| partition.delivery_ended(now, origin, end, jitter, effects));
    }

    /// The app accepts connections again.
    pub fn app_is_there(&mut self) {
        self.app_is_there = true;
    }

    /// Whether the app was there when it was last tried.
    pub fn sees_app(&self) -> bool {
        self.app_is_there
    }

    /// The commit has ended: the moment just before it was sent, or why it failed.
    pub fn commit_ended(&mut self, now: Moment, result: Result<Moment, LogError>, acts: &mut Vec<Act>) {
        let Some(commit) = self.committing.take() else { return };
        self.commit_failed = result.is_err();
        match result {
            Ok(sent) => {
                self.lease_from = self.lease_from.max(Some(sent).filter(|sent| self.doubted.is_none_or(|doubted| *sent >= doubted)));
                for (number, base, handing) in commit.marks {
                    self.tell(number, acts, |partition, effects| partition.mark_committed(base, handing, effects));
                }
                if let Some((number, delivery)) = commit.announces
                    && self.solo == Some(Solo::Announced(number, delivery.clone()))
                {
                    self.begin_solo(now, number, delivery, acts);
                }
            }
            Err(error) => {
                if let Some(times) = self.failures.happened(now) {
                    tracing::warn!(%error, times, "a commit failed; it is tried again. Told once a minute");
                }
                if matches!(error, LogError::Fenced(_)) {
                    // No member any more; the log will say what is lost.
                    self.lease_from = None;
                }
                for (number, _, _) in commit.marks {
                    self.tell(number, acts, |partition, effects| partition.mark_failed(now, effects));
                }
            }
        }
    }

    fn begin_solo(&mut self, now: Moment, number: u32, delivery: Delivery, acts: &mut Vec<Act>) {
        let Some(until) = self.lease_until().filter(|until| now < *until) else { return };
        if self.tell(number, acts, |partition, _| partition.announced(delivery.origin)) != Some(true) {
            self.solo = None;
            return;
        }
        self.solo = Some(Solo::UnderWay(number, delivery.origin));
        self.under_way.insert((number, delivery.origin), true);
        acts.push(Act::Deliver(number, delivery, until));
    }

    fn lease_until(&self) -> Option<Moment> {
        let lease = if planted!(LeaseIgnored) { Duration::from_secs(3600) } else { self.shared.rules.lease };
        self.lease_from.map(|from| from + lease)
    }

    /// To be called after events were told, and when [`Self::next_timer`] has come: begins what can be begun, commits what is due, asks for more.
    pub fn drive(&mut self, now: Moment, acts: &mut Vec<Act>) {
        for number in self.numbers() {
            self.tell(number, acts, |partition, effects| partition.tick(now, effects));
        }
        self.dispatch(now, acts);
        self.commit(now, acts);
        self.want(now, acts);
    }

    fn numbers(&self) -> Vec<u32> {
        self.partitions.keys().copied().collect()
    }

    fn dispatch(&mut self, now: Moment, acts: &mut Vec<Act>) {
        let Some(until) = self.lease_until().filter(|until| now < *until) else { return };
        if !self.app_is_there {
            return;
        }
        match &self.solo {
            Some(Solo::Waiting(number)) if self.under_way.is_empty() => {
                // Its turn, before another partition has one under way again.
                self.next_turn = *number;
                self.solo = None;
            }
            Some(_) => return,
            None => {}
        }
        let mut numbers = self.numbers();
        let turn = numbers.partition_point(|n| *n < self.next_turn);
        numbers.rotate_left(turn);
        let mut idle_rounds = 0;
        for number in numbers.into_iter().cycle() {
            if self.under_way.len() >= self.shared.concurrency || idle_rounds > self.partitions.len() {
                break;
            }
            idle_rounds += 1;
            let Some(owned) = self.partitions.get_mut(&number) else { continue };
            if !owned.partition.has_ready() || !owned.partition.has_committed() {
                continue;
            }
            let mut effects = Vec::new();
            let delivery = owned.partition.next_delivery(now, &mut self.index, &mut effects);
            self.take(number, effects, acts);
            let Some(delivery) = delivery else { continue };
            idle_rounds = 0;
            self.last_work = Some(now);
            self.next_turn = number + 1;
            if delivery.solo {
                if self.under_way.is_empty() {
                    self.solo = Some(Solo::Announced(number, delivery));
                } else {
                    self.tell(number, acts, |partition, _| partition.put_back(delivery.origin));
                    self.solo = Some(Solo::Waiting(number));
                }
                return;
            }
            self.under_way.insert((number, delivery.origin), false);
            acts.push(Act::Deliver(number, delivery, until));
        }
    }

    fn commit(&mut self, now: Moment, acts: &mut Vec<Act>) {
        if self.committing.is_some() {
            return;
        }
        let can_commit = || self.partitions.values().map(|o| &o.partition).filter(|p| p.can_commit());
        let waited = now.since(self.last_commit) >= COMMIT_AFTER;
        let marks: u32 = can_commit().map(Partition::dirty).fold(0, u32::saturating_add);
        let lease = self.shared.rules.lease;
        let lease_age = self.lease_from.map(|from| now.since(from));
        let no_lease = lease_age.is_none_or(|age| age >= lease);
        let urgent = marks >= COMMIT_MARKS
            || can_commit().any(|p| p.is_handing() || !p.has_committed() || (no_lease && p.has_ready()))
            || matches!(&self.solo, Some(Solo::Announced(..)));
        let renew = self.works(now) && lease_age.is_none_or(|age| age >= lease / 3);
        // What is urgent need not wait, unless the log has just refused it.
        if !(waited && (marks > 0 || renew) || urgent && (waited || !self.commit_failed)) {
            return;
        }
        let mut commits = Vec::new();
        let mut told = Vec::new();
        for (number, owned) in &mut self.partitions {
            let partition = &mut owned.partition;
            if partition.can_commit() && (partition.dirty() > 0 || partition.is_handing() || !partition.has_committed() || partition.has_work()) {
                let (calls, parked) = partition.mark();
                told.push((*number, calls.offset, partition.is_handing()));
                commits.push((*number, calls, parked));
            }
        }
        if commits.is_empty() {
            // Only the lease is wanted: any partition will do.
            let Some((number, owned)) = self.partitions.iter_mut().find(|(_, o)| o.partition.can_commit()) else { return };
            let (calls, parked) = owned.partition.mark();
            told.push((*number, calls.offset, owned.partition.is_handing()));
            commits.push((*number, calls, parked));
        }
        let announces = match &self.solo {
            Some(Solo::Announced(number, delivery)) => Some((*number, delivery.clone())),
            _ => None,
        };
        self.last_commit = now;
        self.committing = Some(Commit { marks: told, announces });
        acts.push(Act::Commit(commits));
    }

    fn want(&mut self, now: Moment, acts: &mut Vec<Act>) {
        let held: usize = self.partitions.values().map(|o| o.partition.held_bytes()).sum();
        let full = held >= self.shared.body_memory_bytes;
        for (number, owned) in &mut self.partitions {
            let room = if full { 0 } else { owned.partition.room().min(MAX_WANT) };
            if room < owned.wanted {
                owned.wanted = room;
                owned.less_since = Some(now);
                acts.push(Act::Want(*number, room));
            } else if owned.wanted == 0 && room > 0 && owned.less_since.is_none_or(|since| now.since(since) >= SETTLED_AFTER) {
                // Only when all that was asked for has come: so there is never more on its way than there is room for.
                owned.wanted = room;
                owned.less_since = None;
                acts.push(Act::Want(*number, room));
            }
        }
    }

    /// A sign that another may have taken a partition over: no delivery begins before a commit, sent from now on, has proven that this box is still a member.
    pub fn doubt(&mut self, now: Moment) {
        self.doubted = Some(now);
        self.lease_from = None;
    }

    /// Everything shall go to others: the box stops, or its app is away for too long.
    pub fn revoke_all(&mut self, now: Moment, acts: &mut Vec<Act>) {
        for number in self.numbers() {
            self.tell(number, acts, |partition, effects| partition.revoke(now, effects));
        }
    }

    /// There is no time for the drains that were begun.
    pub fn end_drains(&mut self, now: Moment, acts: &mut Vec<Act>) {
        for number in self.numbers() {
            self.tell(number, acts, |partition, effects| partition.end_drain(now, effects));
        }
    }

    /// Whether the lease is worth keeping.
    fn works(&self, now: Moment) -> bool {
        let has_work = self.partitions.values().any(|o| o.partition.can_commit() && o.partition.has_work());
        has_work || !self.under_way.is_empty() || self.last_work.is_some_and(|at| now.since(at) < LEASE_KEPT)
    }

    /// When [`Self::drive`] must be called next if nothing happens.
    pub fn next_timer(&self, now: Moment) -> Option<Moment> {
        let owned = || self.partitions.values().map(|o| &o.partition);
        let timers = owned().filter_map(|p| p.next_timer(now)).min();
        let can_commit = self.committing.is_none() && owned().any(Partition::can_commit);
        let next_commit = self.last_commit + COMMIT_AFTER;
        let settled =
            self.partitions.values().filter(|o| o.wanted == 0).filter_map(|o| o.less_since).map(|since| since + SETTLED_AFTER).filter(|at| *at > now).min();
        let commit = (can_commit && owned().any(|p| p.can_commit() && p.dirty() > 0)).then_some(next_commit);
        let renew = (can_commit && self.works(now)).then(|| self.lease_from.map_or(next_commit, |from| next_commit.max(from + self.shared.rules.lease / 3)));
        [timers, commit, renew, settled].into_iter().flatten().min()
    }

    /// The partition of that number.
    pub fn partition(&self, number: u32) -> Option<&Partition> {
        self.partitions.get(&number).map(|o| &o.partition)
    }

    /// The partitions, by number.
    pub fn partitions(&self) -> impl Iterator<Item = (u32, &Partition)> {
        self.partitions.iter().map(|(n, o)| (*n, &o.partition))
    }

    /// The index of recorded calls.
    pub fn index(&mut self) -> &mut Recorded {
        &mut self.index
    }

    /// Deliveries under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Whether nothing is owned.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }
}

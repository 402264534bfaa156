//! Boxes of a stateful component: instead of a group there is a frontier partition for each ordinal, and whoever claims it. As `bluebox_core::assigned` does it, on simulated
//! time.

use std::collections::BTreeMap;

use bluebox_core::InstanceId;
use bluebox_core::assigned::claimant::{Claimant, Heard};
use bluebox_core::log::{Assignment, Committed, LogError, Offset, TopicPartition};

use crate::boxes::{Inbox, Job};
use crate::jobs::Work;
use crate::log::{Place, Value, calls_topic, parked_topic};
use crate::scenario::{Kind, MS, SECOND, Scenario, Time};
use crate::world::{Event, World, moment, note};

impl Scenario {
    /// The same with ordinals: each has a box, and where everything goes wrong some have two.
    pub(crate) fn with_ordinals(&mut self) {
        let twice = if self.kind == Kind::Chaos { self.boxes / 2 } else { 0 };
        self.assigned = true;
        self.boxes = self.partitions as usize + twice;
        if self.kind == Kind::Chaos && self.calls.is_multiple_of(2) {
            // Every ordinal is taken over again and again from a box that lives, has much to do, and may be slow to hear of it.
            self.boxes = 2 * self.partitions as usize;
            (self.calls, self.heal_at) = (3 * self.calls, 20 * SECOND);
            self.in_a_rush = true;
            self.concurrency = 1 + self.concurrency % 3;
            self.cuts += 8;
        }
    }
}

/// A box's claim, and its commits on their way.
#[derive(Default)]
pub(crate) struct Claim {
    pub claimant: Option<Claimant>,
    /// Counts the claims of a process.
    pub which: u64,
    /// By number: when it was sent.
    open: BTreeMap<u64, Time>,
}

impl Claim {
    /// Nothing more is heard of it.
    pub(crate) fn give_up(&mut self) {
        self.claimant = None;
        self.open.clear();
    }
}

impl World {
    /// The ordinal that a box is told to be.
    pub(crate) fn ordinal_of(&self, index: usize) -> u32 {
        index as u32 % self.scenario.partitions
    }

    pub(crate) fn claim(&mut self, index: usize) {
        let claim = &mut self.boxes[index].claim;
        claim.which += 1;
        claim.open.clear();
        claim.claimant = Some(Claimant::default());
        let (which, number, life) = (claim.which, self.ordinal_of(index), self.boxes[index].life());
        let job = Job { number, tenure: 0, outlives: true, work: Work::Claim(which), pause: 20 * MS };
        self.after(0, Event::ToBox(life, Inbox::Go(job)));
    }

    /// The claim is appended, until it has been read.
    pub(crate) fn append_claim(&mut self, index: usize, job: Job, which: u64) {
        let mut by = [0; 16];
        by[..8].copy_from_slice(&self.random.next().to_be_bytes());
        let claim = &mut self.boxes[index].claim;
        let Some(claimant) = claim.claimant.as_mut().filter(|claimant| claim.which == which && !claimant.owns()) else { return };
        let entry = claimant.claim(InstanceId::from_bytes(by));
        let (life, number) = (self.boxes[index].life(), job.number);
        self.append(life, Place::Frontier(number), Value::Frontier(entry), job, None);
    }

    pub(crate) fn commit_as_ordinal(&mut self, index: usize, commits: Vec<(TopicPartition, Committed)>) {
        let (life, number, now) = (self.boxes[index].life(), self.ordinal_of(index), self.now);
        let claim = &mut self.boxes[index].claim;
        let Some((sequence, entry)) = claim.claimant.as_mut().and_then(|claimant| claimant.commit(commits)) else {
            return self.after(0, Event::ToBox(life, Inbox::Committed(Err(LogError::Fenced("not its own".to_owned())))));
        };
        claim.open.insert(sequence, now);
        let job = Job { number, tenure: 0, outlives: true, work: Work::Commit(claim.which, sequence), pause: 20 * MS };
        self.append(life, Place::Frontier(number), Value::Frontier(entry), job, None);
    }

    /// The append of a commit has failed.
    pub(crate) fn commit_failed(&mut self, index: usize, which: u64, sequence: u64) {
        let at_box = &mut self.boxes[index];
        if at_box.claim.which == which && at_box.claim.open.remove(&sequence).is_some() {
            let life = at_box.life();
            self.after(0, Event::ToBox(life, Inbox::Committed(Err(LogError::Unavailable("simulated".to_owned())))));
        }
    }

    /// Tells all that read a frontier partition that there is more.
    pub(crate) fn frontier_grows(&mut self, number: u32) {
        for index in (0..self.boxes.len()).filter(|index| self.ordinal_of(*index) == number).collect::<Vec<_>>() {
            let claim = &self.boxes[index].claim;
            if claim.claimant.is_some() {
                let (which, life, delay) = (claim.which, self.boxes[index].life(), self.delay(index));
                self.after(delay, Event::ToBox(life, Inbox::Frontier(which)));
            }
        }
    }

    /// A box reads on in its frontier partition. True: it has lost its ordinal.
    pub(crate) fn reads_frontier(&mut self, index: usize, which: u64) -> bool {
        let number = self.ordinal_of(index);
        let (place, life) = (Place::Frontier(number), self.boxes[index].life());
        let claim = &mut self.boxes[index].claim;
        let Some(claimant) = claim.claimant.as_mut().filter(|_| claim.which == which) else { return false };
        for (at, _, value) in self.log.range(place, claimant.next(), self.log.end(place)) {
            let Value::Frontier(entry) = value else { continue };
            match claimant.read(at, &entry.key(), Some(entry)) {
                None => {}
                Some(Heard::Claimed) => {
                    let committed = claimant.commits().get(&calls_topic().partition(number)).cloned();
                    let assignment = Assignment { partition: calls_topic().partition(number), committed, former_is_gone: false };
                    self.in_order(life, Inbox::Claimed(which, assignment));
                    // It reads on when it is told again; there may be more already.
                    self.frontier_grows(number);
                    return false;
                }
                Some(Heard::Committed(sequence)) => {
                    claimant.needless();
                    if let Some(sent) = claim.open.remove(&sequence) {
                        self.at(self.now, Event::ToBox(life, Inbox::Committed(Ok(moment(sent)))));
                        self.frontier_grows(number);
                        return false;
                    }
                }
                Some(Heard::Superseded) => {
                    claim.claimant = None;
                    if !std::mem::take(&mut claim.open).is_empty() {
                        self.after(0, Event::ToBox(life, Inbox::Committed(Err(LogError::Fenced("simulated".to_owned())))));
                    }
                    note!(self, "box {index}: another has claimed {number}, at {at}");
                    return true;
                }
            }
        }
        false
    }

    /// What a box knows to be committed for its ordinal.
    pub(crate) fn committed_of(&self, index: usize, number: u32) -> (Option<Committed>, Option<Committed>) {
        let of = |topic: bluebox_core::log::Topic| self.boxes[index].claim.claimant.as_ref()?.commits().get(&topic.partition(number)).cloned();
        (of(calls_topic()), of(parked_topic()))
    }

    /// What the next claimant would find.
    pub(crate) fn committed_by_ordinal(&self, number: u32) -> (Option<Committed>, Option<Committed>) {
        let place = Place::Frontier(number);
        let mut claimant = Claimant::default();
        for (at, _, value) in self.log.range(place, Offset::default(), self.log.end(place)) {
            if let Value::Frontier(entry) = value {
                claimant.read(at, &entry.key(), Some(entry));
            }
        }
        let of = |topic: bluebox_core::log::Topic| claimant.commits().get(&topic.partition(number)).cloned();
        (of(calls_topic()), of(parked_topic()))
    }

    /// A process that is an ordinal no more ends, and is started again; when everything has healed, only where no other is this ordinal.
    pub(crate) fn exits(&mut self, index: usize) {
        let number = self.ordinal_of(index);
        let others = (0..self.boxes.len()).any(|other| other != index && self.ordinal_of(other) == number && !self.boxes[other].retired);
        self.kill(index, "it ended, because another is its ordinal");
        self.boxes[index].retired = self.healed && others;
    }

    /// When a claim that was not this box's came to lie behind its own.
    pub(crate) fn claimed_by_another(&self, index: usize) -> Option<Time> {
        let (number, life) = (self.ordinal_of(index), self.boxes[index].life());
        let claims = self.claims.get(&number)?;
        let own = claims.iter().position(|(by, which, _)| (*by, *which) == (life, self.boxes[index].claim.which))?;
        claims[own..].iter().find(|(by, ..)| *by != life).map(|(.., at)| *at)
    }

    /// How long after a newer claim an older owner may begin a delivery.
    pub(crate) fn too_late(&self, index: usize) -> bool {
        self.scenario.assigned && self.claimed_by_another(index).is_some_and(|at| self.now >= at + self.scenario.lease)
    }

    pub(crate) fn restart_after(&mut self) -> Time {
        let most = if self.scenario.assigned && self.scenario.in_a_rush { 2 } else { 8 };
        self.random.between(100 * MS, most * SECOND)
    }
}

//! A box: its client of the group, and its consumer, which drives an [`Owner`] as `inbound/consume.rs` does.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bluebox_core::InstanceId;
use bluebox_core::clock::Moment;
use bluebox_core::log::embedded::group::{Holder, MemberId};
use bluebox_core::log::{AppendError, Assignment, Committed, LogError, Offset, Timestamp};
use bluebox_core::wire::ControlEntry;
use bluebox_proxy::inbound::owner::{Act, Owner, Shared};
use bluebox_proxy::inbound::partition::{Arrival, Cancel, DeliveryEnd, Effect, Partition, Rules};
use bluebox_proxy::inbound::recorded::Recorded;

use crate::jobs::{Input, Work};
use crate::log::{Place, Value, calls_topic, parked_topic, timestamp};
use crate::ordinals::Claim;
use crate::scenario::{MS, SECOND, Scenario, Time};
use crate::world::{Event, Life, Notice, Request, World, duration, moment, note};

/// As in `consume.rs`.
const APP_AWAY: Duration = Duration::from_secs(5);

/// What a box's process is told.
pub(crate) enum Inbox {
    /// When it was to come: another may have been set since.
    Wake(Time),
    Heartbeat,
    Notice(MemberId, Notice),
    // From the client to the consumer, in order.
    Assigned(MemberId, Vec<Assignment>),
    Revoking(Vec<u32>),
    Lost(MemberId, Vec<u32>),
    Records(u32, Vec<(Offset, Timestamp, Value)>),
    /// Its claim has been read.
    Claimed(u64, Assignment),
    /// There is more in the frontier partition, for that claim.
    Frontier(u64),
    /// There is more in the control partition of a tenure.
    Control(u32, u64),
    // Ends of what takes time.
    Go(Job),
    Appended(Job, Result<(Offset, Timestamp), AppendError>),
    Delivered(u32, u64, Offset, DeliveryEnd),
    Committed(Result<Moment, LogError>),
    AppBack,
    /// The frozen app goes on.
    AppEnds(u64),
    PoisonKills(u64),
}

/// Something that takes time, for a tenure.
pub(crate) struct Job {
    pub number: u32,
    pub tenure: u64,
    pub outlives: bool,
    pub work: Work,
    /// Before the next try.
    pub pause: Time,
}

pub(crate) struct Tenure {
    pub id: u64,
    /// By call: the number of the delivery, from when it is asked for.
    pub deliveries: BTreeMap<Offset, u64>,
    newest: Timestamp,
    /// The next record of the control partition, once that is followed.
    control: Option<Offset>,
}

/// Reads a partition for the client.
pub(crate) struct Feed {
    run: u64,
    at: Offset,
    wanted: u32,
    waiting: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Stopped,
    AppAway,
    Superseded,
}

pub(crate) struct Simulated {
    pub index: usize,
    pub incarnation: u64,
    pub alive: bool,
    pub paused: bool,
    pub app_paused: bool,
    /// It is not started again: another is its ordinal.
    pub retired: bool,
    pub claim: Claim,
    pub cut_until: Time,
    pub app_away_until: Time,
    pub inbox: VecDeque<Inbox>,
    pub told_until: Time,
    pub asked_until: Time,
    pub noticed_until: Time,
    wall_skew: i64,
    // The client.
    /// Counts the memberships of the process: one for each time that it joined on its own account.
    membership: u64,
    member: Option<MemberId>,
    feeds: BTreeMap<u32, Option<Feed>>,
    last_run: u64,
    // The consumer.
    pub owner: Option<Owner>,
    /// While the box is no member because its app is away: its next membership goes on with it.
    resting: Option<Owner>,
    pub tenures: BTreeMap<u32, Tenure>,
    wake_at: Option<Time>,
    stopping: Option<Left>,
    app_away_since: Option<Time>,
    /// The newest moment at which a commit was sent that succeeded: what the lease rests on.
    pub lease_from: Option<Moment>,
}

impl Simulated {
    pub(crate) fn new(index: usize, _: &Scenario) -> Self {
        Self {
            index,
            incarnation: 0,
            alive: false,
            paused: false,
            app_paused: false,
            retired: false,
            claim: Claim::default(),
            cut_until: 0,
            app_away_until: 0,
            inbox: VecDeque::new(),
            told_until: 0,
            asked_until: 0,
            noticed_until: 0,
            wall_skew: 0,
            membership: 0,
            member: None,
            feeds: BTreeMap::new(),
            last_run: 0,
            owner: None,
            resting: None,
            tenures: BTreeMap::new(),
            wake_at: None,
            stopping: None,
            app_away_since: None,
            lease_from: None,
        }
    }

    pub(crate) fn life(&self) -> Life {
        (self.index, if self.alive { self.incarnation } else { 0 })
    }

    pub(crate) fn holder(&self, incarnation: u64) -> Holder {
        Holder::new(self.index as u64 * 1_000_000 + incarnation)
    }

    fn instance(&self) -> InstanceId {
        let mut bytes = [0; 16];
        bytes[0] = self.index as u8 + 1;
        bytes[8..].copy_from_slice(&self.incarnation.to_be_bytes());
        InstanceId::from_bytes(bytes)
    }

    /// All memory is gone.
    pub(crate) fn dies(&mut self) {
        *self = Self {
            incarnation: self.incarnation,
            cut_until: self.cut_until,
            app_away_until: self.app_away_until,
            // Nothing overtakes what the former process sent: links are the machine's.
            told_until: self.told_until,
            asked_until: self.asked_until,
            noticed_until: self.noticed_until,
            ..Self::new(self.index, &Scenario::of(&mut crate::random::Random::new(0)))
        };
    }

    // The client's feeds.

    /// The feed of a partition, if it waits for records to be appended.
    pub(crate) fn waiting_feed(&mut self, number: u32) -> Option<u64> {
        let feed = self.feeds.get_mut(&number)?.as_mut().filter(|f| f.waiting)?;
        feed.waiting = false;
        Some(feed.run)
    }

    pub(crate) fn feed_wants(&mut self, number: u32, run: u64, end: Offset) -> Option<(Offset, u32)> {
        let feed = self.feeds.get_mut(&number)?.as_mut().filter(|f| f.run == run && f.wanted > 0)?;
        feed.waiting = feed.at >= end;
        (!feed.waiting).then_some((feed.at, feed.wanted))
    }

    /// Whether more is wanted.
    pub(crate) fn fed(&mut self, number: u32, until: Offset, records: u32) -> bool {
        let Some(Some(feed)) = self.feeds.get_mut(&number) else { return false };
        feed.at = until;
        feed.wanted = feed.wanted.saturating_sub(records);
        feed.wanted > 0
    }

    /// Everything that is at rest: nothing held, nothing to be committed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.stopping.is_none()
            && self.owner.as_ref().is_none_or(|o| o.under_way() == 0 && o.partitions().all(|(_, p)| p.can_commit() && p.held_calls() == 0 && p.dirty() == 0))
    }

    pub(crate) fn says(&self) -> String {
        let partitions: Vec<_> = self
            .owner
            .iter()
            .flat_map(Owner::partitions)
            .map(|(n, p)| {
                format!(
                    "{n}: {} held, {} parked, room {}, ready {}, committed {}",
                    p.held_calls(),
                    p.parked_calls(),
                    p.room(),
                    p.has_ready(),
                    p.has_committed()
                )
            })
            .collect();
        format!(
            "alive {}, paused {}, stopping {:?}, tenures {:?}, partitions {partitions:?}",
            self.alive,
            self.paused,
            self.stopping,
            self.tenures.keys().collect::<Vec<_>>()
        )
    }
}

impl World {
    pub(crate) fn start(&mut self, index: usize) {
        let at_box = &mut self.boxes[index];
        if at_box.alive || at_box.retired {
            return;
        }
        at_box.incarnation += 1;
        at_box.alive = true;
        at_box.wall_skew = self.random.between(0, 6_000) as i64 - 3_000;
        note!(self, "box {index}: started ({})", self.boxes[index].incarnation);
        let life = self.boxes[index].life();
        self.join(index);
        self.after(0, Event::ToBox(life, Inbox::Heartbeat));
    }

    fn join(&mut self, index: usize) {
        let scenario = &self.scenario;
        let rules = Rules {
            max_attempts: scenario.max_attempts,
            max_crashes: Some(scenario.max_crashes),
            first_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            drain: duration(scenario.drain),
            lease: duration(scenario.lease),
        };
        let shared = Shared { concurrency: scenario.concurrency, body_memory_bytes: scenario.body_memory_bytes, rules };
        let index_of_recorded = Recorded::new(scenario.max_recorded, Duration::from_secs(24 * 3600));
        let now = moment(self.now);
        let at_box = &mut self.boxes[index];
        let mut owner = at_box.resting.take().unwrap_or_else(|| Owner::new(now, shared, index_of_recorded));
        owner.app_is_there();
        at_box.owner = Some(owner);
        (at_box.stopping, at_box.app_away_since, at_box.lease_from) = (None, None, None);
        at_box.membership += 1;
        let (life, membership) = (at_box.life(), at_box.membership);
        if self.scenario.assigned {
            self.claim(index);
        } else {
            self.request(life, Request::Join(membership));
        }
    }

    pub(crate) fn box_is_told(&mut self, life: Life, what: Inbox) {
        let index = life.0;
        if !self.boxes[index].alive || self.boxes[index].life() != life {
            return;
        }
        if self.boxes[index].paused {
            self.boxes[index].inbox.push_back(what);
            return;
        }
        let mut acts = Vec::new();
        match what {
            Inbox::Heartbeat => return self.heartbeat(life),
            Inbox::Notice(member, notice) => return self.noticed(life, member, notice),
            Inbox::AppEnds(delivery) => return self.app_ends(delivery),
            Inbox::PoisonKills(delivery) => return self.happens_now(Event::PoisonKills(delivery)),
            Inbox::Go(job) => self.step(index, job, Input::Go, &mut acts),
            Inbox::Appended(job, result) => self.step(index, job, Input::Appended(result), &mut acts),
            Inbox::Wake(at) => {
                if self.boxes[index].wake_at != Some(at) {
                    return;
                }
                self.boxes[index].wake_at = None;
            }
            Inbox::Assigned(member, assignments) => {
                if self.boxes[index].member == Some(member) {
                    self.boxes[index].feeds.extend(assignments.iter().map(|a| (a.partition.partition, None)));
                    self.assigned(index, assignments);
                }
            }
            Inbox::Claimed(which, assignment) => {
                let at_box = &mut self.boxes[index];
                if at_box.claim.which == which && at_box.claim.claimant.is_some() {
                    at_box.feeds.insert(assignment.partition.partition, None);
                    self.assigned(index, vec![assignment]);
                }
            }
            Inbox::Frontier(which) => {
                if self.reads_frontier(index, which) {
                    self.superseded(index, &mut acts);
                }
            }
            Inbox::Revoking(numbers) => self.revoking(index, numbers, &mut acts),
            Inbox::Lost(member, numbers) => {
                if self.boxes[index].member != Some(member) {
                    return;
                }
                // The client joins again when its user has been told: what that wants for the former stay is not for the next one.
                self.boxes[index].member = None;
                self.boxes[index].feeds.clear();
                let membership = self.boxes[index].membership;
                self.request(life, Request::Join(membership));
                for number in numbers {
                    note!(self, "box {index}: lost {number}");
                    self.witness.seen.lost += 1;
                    self.perform(index, &mut acts);
                    if let Some(owner) = &mut self.boxes[index].owner {
                        owner.lost(number, &mut acts);
                    }
                    self.perform(index, &mut acts);
                    self.end_tenure(index, number);
                }
            }
            Inbox::Records(number, entries) => self.records(index, number, entries, &mut acts),
            Inbox::Control(number, tenure) => self.control(index, number, tenure, &mut acts),
            Inbox::Delivered(number, tenure, origin, end) => {
                let (now, jitter) = (moment(self.now), self.random.fraction());
                let at_box = &mut self.boxes[index];
                if let Some(tenure) = at_box.tenures.get_mut(&number).filter(|t| t.id == tenure) {
                    tenure.deliveries.remove(&origin);
                    if let Some(owner) = &mut at_box.owner {
                        owner.delivery_ended(now, number, origin, end, jitter, &mut acts);
                    }
                }
            }
            Inbox::Committed(result) => {
                let now = moment(self.now);
                let at_box = &mut self.boxes[index];
                if let Ok(sent) = result {
                    at_box.lease_from = at_box.lease_from.max(Some(sent));
                }
                if let Some(owner) = at_box.owner.as_mut().or(at_box.resting.as_mut()) {
                    owner.commit_ended(now, result, &mut acts);
                }
            }
            Inbox::AppBack => {
                let at_box = &mut self.boxes[index];
                at_box.app_away_since = None;
                if at_box.owner.is_none() {
                    self.join(index);
                } else if let Some(owner) = &mut at_box.owner {
                    owner.app_is_there();
                }
            }
        }
        self.run_consumer(index, acts);
    }

    /// As `Consumer::happened` for what a claimant loses.
    fn superseded(&mut self, index: usize, acts: &mut Vec<Act>) {
        let number = self.ordinal_of(index);
        self.witness.seen.lost += 1;
        let at_box = &mut self.boxes[index];
        at_box.feeds.clear();
        if let Some(owner) = &mut at_box.owner {
            owner.lost(number, acts);
        }
        self.perform(index, acts);
        self.end_tenure(index, number);
        self.boxes[index].stopping.get_or_insert(Left::Superseded);
    }

    fn happens_now(&mut self, event: Event) {
        self.after(0, event);
    }

    /// One round of `Consumer::run`.
    fn run_consumer(&mut self, index: usize, mut acts: Vec<Act>) {
        self.housekeeping(index, &mut acts);
        let now = moment(self.now);
        let Some(owner) = &mut self.boxes[index].owner else { return };
        owner.drive(now, &mut acts);
        self.perform(index, &mut acts);
        self.witness.bounds(index, self.boxes[index].owner.as_ref());
        let at_box = &mut self.boxes[index];
        let Some(owner) = &at_box.owner else { return };
        if let Some(why) = at_box.stopping
            && owner.is_empty()
        {
            return self.leave(index, why);
        }
        let timer = owner.next_timer(now).map_or(Duration::from_secs(1), |at| at.since(now).min(Duration::from_secs(1))).max(Duration::from_millis(1));
        let wake = self.now + timer.as_micros() as Time + 1;
        if at_box.wake_at.is_none_or(|at| at > wake || at <= self.now) {
            at_box.wake_at = Some(wake);
            let life = at_box.life();
            self.at(wake, Event::ToBox(life, Inbox::Wake(wake)));
        }
    }

    fn leave(&mut self, index: usize, why: Left) {
        note!(self, "box {index}: leaves ({why:?})");
        let at_box = &mut self.boxes[index];
        let life = at_box.life();
        at_box.resting = at_box.owner.take();
        at_box.feeds.clear();
        at_box.stopping = None;
        let member = at_box.member.take();
        for number in at_box.tenures.keys().copied().collect::<Vec<_>>() {
            self.end_tenure(index, number);
        }
        if let Some(member) = member {
            self.request(life, Request::Leave(member));
        }
        self.boxes[index].claim.give_up();
        if why == Left::Superseded {
            // What was answered is still being recorded until the process ends.
            let ends = self.random.between(0, 3 * SECOND);
            self.after(ends, Event::Exits(life));
        }
        if why == Left::AppAway {
            let there = self.boxes[index].app_away_until.max(self.now) + 100 * MS;
            self.at(there, Event::ToBox(life, Inbox::AppBack));
        }
        if why == Left::Stopped {
            self.witness.died(index);
            self.boxes[index].dies();
            let back = self.random.between(100 * MS, 8 * SECOND);
            self.after(back, Event::Start(index));
        }
    }

    pub(crate) fn stop_box(&mut self, index: usize) {
        let mut acts = Vec::new();
        let now = moment(self.now);
        let at_box = &mut self.boxes[index];
        if at_box.stopping.is_some() {
            return;
        }
        at_box.stopping = Some(Left::Stopped);
        if let Some(owner) = &mut at_box.owner {
            owner.revoke_all(now, &mut acts);
            self.run_consumer(index, acts);
        } else {
            self.leave(index, Left::Stopped);
        }
    }

    fn housekeeping(&mut self, index: usize, acts: &mut Vec<Act>) {
        let now = self.now;
        let at_box = &mut self.boxes[index];
        let Some(owner) = &mut at_box.owner else { return };
        let mut probe = None;
        if !owner.sees_app() && at_box.app_away_since.is_none() {
            at_box.app_away_since = Some(now);
            probe = Some(at_box.app_away_until.max(now) + 100 * MS);
        }
        if at_box.stopping.is_none() && !self.scenario.assigned && at_box.app_away_since.is_some_and(|since| duration(now - since) >= APP_AWAY) {
            at_box.stopping = Some(Left::AppAway);
            owner.revoke_all(moment(now), acts);
        }
        let life = at_box.life();
        if let Some(at) = probe {
            self.at(at, Event::ToBox(life, Inbox::AppBack));
        }
    }

    // The client of the group.

    fn heartbeat(&mut self, life: Life) {
        if let Some(member) = self.boxes[life.0].member {
            self.request(life, Request::Heartbeat(member));
        }
        self.after(self.scenario.session / 3, Event::ToBox(life, Inbox::Heartbeat));
    }

    fn noticed(&mut self, life: Life, member: MemberId, notice: Notice) {
        let at_box = &mut self.boxes[life.0];
        let numbers = |partitions: Vec<bluebox_core::log::TopicPartition>| partitions.into_iter().map(|p| p.partition).collect::<Vec<_>>();
        match notice {
            // Of an earlier stay.
            Notice::Assigned(_) | Notice::Revoking(_) | Notice::Expelled(_) if at_box.member != Some(member) => {}
            Notice::Joined(membership) => {
                if at_box.owner.is_some() && at_box.membership == membership {
                    at_box.member = Some(member);
                } else {
                    self.request(life, Request::Leave(member));
                }
            }
            Notice::Assigned(mut assignments) => {
                if self.scenario.kafka {
                    // It asks for the commit itself.
                    for assignment in &mut assignments {
                        assignment.committed = self.committed(assignment.partition.partition).0;
                    }
                }
                self.in_order(life, Inbox::Assigned(member, assignments));
            }
            Notice::Revoking(partitions) => self.in_order(life, Inbox::Revoking(numbers(partitions))),
            Notice::Expelled(partitions) => self.in_order(life, Inbox::Lost(member, numbers(partitions))),
        }
    }

    // The consumer.

    fn assigned(&mut self, index: usize, assignments: Vec<Assignment>) {
        for assignment in assignments {
            self.last_number += 1;
            let (id, number) = (self.last_number, assignment.partition.partition);
            note!(self, "box {index}: assigned {number} (tenure {id}), former is gone: {}", assignment.former_is_gone);
            self.witness.assigned(id, number, self.boxes[index].life());
            let tenure = Tenure { id, deliveries: BTreeMap::new(), newest: Timestamp::default(), control: None };
            self.boxes[index].tenures.insert(number, tenure);
            self.begin(index, number, false, Work::Commits(assignment));
        }
    }

    fn revoking(&mut self, index: usize, numbers: Vec<u32>, acts: &mut Vec<Act>) {
        let now = moment(self.now);
        for number in numbers {
            note!(self, "box {index}: asked for {number}");
            let Some(owner) = &mut self.boxes[index].owner else { return };
            if owner.tell(number, acts, |p, effects| p.revoke(now, effects)).is_none() {
                self.end_tenure(index, number);
                self.release(index, number);
            }
        }
    }

    fn release(&mut self, index: usize, number: u32) {
        let at_box = &mut self.boxes[index];
        at_box.feeds.remove(&number);
        let (life, member) = (at_box.life(), at_box.member);
        if let Some(member) = member {
            self.request(life, Request::Release(member, vec![calls_topic().partition(number)]));
        }
    }

    fn records(&mut self, index: usize, number: u32, entries: Vec<(Offset, Timestamp, Value)>, acts: &mut Vec<Act>) {
        let now = moment(self.now);
        let wall = timestamp(self.now).as_millis().saturating_add_signed(self.boxes[index].wall_skew);
        let at_box = &mut self.boxes[index];
        let instance = at_box.instance();
        let Some(owner) = &mut at_box.owner else { return };
        owner.came(number, entries.len());
        for (offset, at, value) in entries {
            let Some(tenure) = at_box.tenures.get_mut(&number) else { return };
            tenure.newest = tenure.newest.max(at);
            match value {
                Value::Call(call) => {
                    let age = Arrival::age(at, tenure.newest, Timestamp::from_millis(wall));
                    let arrival = Arrival { origin: offset, accepted: at, age, call };
                    owner.tell(number, acts, |p, effects| p.arrived(now, arrival, effects));
                }
                Value::Fence(of) if of != instance => {
                    let age = tenure.newest.since(at);
                    if owner.tell(number, acts, |p, effects| p.fence_read(now, offset, age, effects)) == Some(true) {
                        owner.doubt(now);
                    }
                }
                _ => {
                    owner.tell(number, acts, |p, effects| p.skipped(now, offset, effects));
                }
            }
        }
    }

    /// As `Consumer::watch_control`.
    pub(crate) fn follow_control(&mut self, index: usize, number: u32, from: Offset) {
        if let Some(tenure) = self.boxes[index].tenures.get_mut(&number) {
            tenure.control = Some(from);
        }
        self.control_grows(index, number);
    }

    /// Tells a box that follows it.
    pub(crate) fn control_grows(&mut self, index: usize, number: u32) {
        let Some(tenure) = self.boxes[index].tenures.get(&number).filter(|t| t.control.is_some()) else { return };
        let (life, id, delay) = (self.boxes[index].life(), tenure.id, self.delay(index));
        self.after(delay, Event::ToBox(life, Inbox::Control(number, id)));
    }

    fn control(&mut self, index: usize, number: u32, tenure: u64, acts: &mut Vec<Act>) {
        let end = self.log.end(Place::Control(number));
        let at_box = &mut self.boxes[index];
        let Some(from) = at_box.tenures.get_mut(&number).filter(|t| t.id == tenure).and_then(|t| t.control.replace(end)) else { return };
        let Some(owner) = &mut at_box.owner else { return };
        for (at, _, value) in self.log.range(Place::Control(number), from, end) {
            owner.tell(number, acts, |p, _| p.control_read(at));
            if let Value::Control(ControlEntry::Cancel { id, offset: origin }) = value {
                owner.tell(number, acts, |p, effects| p.cancel(Cancel { at, origin, id }, effects));
            }
        }
    }

    fn end_tenure(&mut self, index: usize, number: u32) {
        if let Some(tenure) = self.boxes[index].tenures.remove(&number) {
            for delivery in tenure.deliveries.into_values() {
                self.witness.cut(delivery);
            }
        }
    }

    /// Tells the partition of a tenure something.
    pub(crate) fn tell_partition<T>(
        &mut self,
        index: usize,
        number: u32,
        acts: &mut Vec<Act>,
        event: impl FnOnce(&mut Partition, &mut Vec<Effect>) -> T,
    ) -> Option<T> {
        self.boxes[index].owner.as_mut()?.tell(number, acts, event)
    }

    pub(crate) fn read_commits(&mut self, index: usize, number: u32, assignment: &Assignment, parked: Option<&Committed>, acts: &mut Vec<Act>) {
        let now = moment(self.now);
        let at_box = &mut self.boxes[index];
        if at_box.stopping.is_some() {
            return;
        }
        if let Some(owner) = &mut at_box.owner {
            owner.assigned(now, number, assignment.committed.as_ref(), parked, assignment.former_is_gone, acts);
        }
    }

    fn perform(&mut self, index: usize, acts: &mut Vec<Act>) {
        for act in std::mem::take(acts) {
            match act {
                Act::Of(number, effect) => self.effect(index, number, effect),
                Act::Deliver(number, delivery, until) => {
                    let Some(tenure) = self.boxes[index].tenures.get_mut(&number) else { continue };
                    self.last_number += 1;
                    tenure.deliveries.insert(delivery.origin, self.last_number);
                    self.begin(index, number, false, Work::Deliver(self.last_number, delivery, until));
                }
                Act::Want(number, records) => {
                    if let Some(Some(feed)) = self.boxes[index].feeds.get_mut(&number) {
                        feed.wanted = records;
                        feed.waiting = false;
                        let run = feed.run;
                        let (life, delay) = (self.boxes[index].life(), self.delay(index));
                        self.after(delay, Event::Fetch(life, number, run));
                    }
                }
                Act::Commit(marks) => {
                    self.witness.commits(&marks);
                    let numbers: Vec<_> = marks.iter().map(|(n, ..)| *n).collect();
                    let commits =
                        marks.into_iter().flat_map(|(n, calls, parked)| [(calls_topic().partition(n), calls), (parked_topic().partition(n), parked)]).collect();
                    // A client commits nothing that is not its own in its present stay.
                    if self.scenario.assigned {
                        self.commit_as_ordinal(index, commits);
                        continue;
                    }
                    let at_box = &self.boxes[index];
                    let (life, member) = (at_box.life(), at_box.member);
                    if numbers.iter().all(|n| at_box.feeds.contains_key(n)) {
                        self.commit(life, member, commits);
                    } else {
                        self.after(0, Event::ToBox(life, Inbox::Committed(Err(LogError::Fenced("not its own".to_owned())))));
                    }
                }
            }
        }
    }

    /// As `Consumer::ended`, for an end that is durable.
    pub(crate) fn recorded(&mut self, index: usize, number: u32, origin: Offset, acts: &mut Vec<Act>) {
        let now = moment(self.now);
        self.witness.recorded(index, number, origin);
        let at_box = &mut self.boxes[index];
        if let Some(owner) = at_box.owner.as_mut().or(at_box.resting.as_mut()) {
            owner.recorded(now, number, origin, acts);
        }
    }

    /// Begins a job for the present tenure of a partition.
    fn begin(&mut self, index: usize, number: u32, outlives: bool, work: Work) {
        let Some(tenure) = self.boxes[index].tenures.get(&number).map(|t| t.id) else { return };
        let job = Job { number, tenure, outlives, work, pause: 20 * MS };
        let slow = if self.random.per_mille(10) { 300 * MS } else { 3 * MS };
        let (life, delay) = (self.boxes[index].life(), self.random.between(0, slow));
        self.after(delay, Event::ToBox(life, Inbox::Go(job)));
    }

    fn effect(&mut self, index: usize, number: u32, effect: Effect) {
        if !self.boxes[index].tenures.contains_key(&number) {
            return;
        }
        let epoch = self.boxes[index].owner.as_ref().and_then(|o| o.partition(number)).map(Partition::epoch).unwrap_or_default();
        match effect {
            Effect::Fence => {
                let instance = self.boxes[index].instance();
                self.begin(index, number, false, Work::Fence(instance));
            }
            Effect::Load { parked_from: from, parked_end: end, control_from } => {
                let now = self.boxes[index].tenures.get(&number).map(|t| t.newest).unwrap_or_default();
                self.begin(index, number, false, Work::Load { from, end, now, control_from });
            }
            Effect::Start(from) => {
                let at_box = &mut self.boxes[index];
                at_box.last_run += 1;
                let feed = Feed { run: at_box.last_run, at: from, wanted: 0, waiting: false };
                if let Some(slot) = at_box.feeds.get_mut(&number) {
                    *slot = Some(feed);
                }
            }
            Effect::Search(suspects) => {
                note!(self, "box {index}: looks for the outcomes of {number}/{:?}", suspects.iter().map(|s| s.origin).collect::<Vec<_>>());
                if let Some(tenure) = self.boxes[index].tenures.get(&number) {
                    self.witness.looks_for(self.now, tenure.id, &suspects);
                }
                let work = Work::search(suspects);
                self.begin(index, number, false, work);
            }
            Effect::Cut(origin) => {
                if let Some(delivery) = self.boxes[index].tenures.get_mut(&number).and_then(|t| t.deliveries.remove(&origin)) {
                    note!(self, "box {index}: cut {number}/{origin} off");
                    self.witness.cut(delivery);
                }
            }
            Effect::Record(ending) => {
                self.witness.records(index, number, ending.origin);
                self.begin(index, number, true, Work::record(ending, epoch));
            }
            Effect::Park(parking) => self.begin(index, number, false, Work::Park(parking, epoch)),
            Effect::Release => {
                note!(self, "box {index}: releases {number}");
                if let Some(tenure) = self.boxes[index].tenures.get(&number) {
                    self.witness.released(tenure.id);
                }
                self.end_tenure(index, number);
                self.release(index, number);
            }
            Effect::Lost(records) => self.witness.fail(format!("{records} records of {number} are said to be lost")),
            Effect::Suppressed(id) => note!(self, "box {index}: {id} had ended before"),
            Effect::ParkedFull => note!(self, "box {index}: {number} has parked all it may"),
        }
    }

    /// A tenure's fence is there: its partition goes on.
    pub(crate) fn fence_is_there(&mut self, index: usize, number: u32, at: (Offset, Timestamp), acts: &mut Vec<Act>) {
        if let Some(tenure) = self.boxes[index].tenures.get_mut(&number) {
            tenure.newest = tenure.newest.max(at.1);
            self.witness.fenced(tenure.id);
        }
        self.tell_partition(index, number, acts, |p, effects| p.fenced(at.0, effects));
        self.begin(index, number, false, Work::LoadIndex);
    }

    pub(crate) fn wall_clock(&self, index: usize) -> Timestamp {
        Timestamp::from_millis(timestamp(self.now).as_millis().saturating_add_signed(self.boxes[index].wall_skew))
    }
}

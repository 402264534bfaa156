//! Simulated time, the queue of events, the log's side of everything, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::call::Digest;
use bluebox_core::clock::Moment;
use bluebox_core::log::embedded::group::{Effect, Groups, Holder, MemberId};
use bluebox_core::log::{AppendError, Assignment, Committed, GroupSpec, LogError, Offset, Timestamp, TopicPartition};
use bluebox_core::wire::{ControlEntry, FrontierEntry};

use crate::boxes::{Inbox, Job, Simulated};
use crate::callers::Plan;
use crate::log::{Place, TheLog, Value, calls_topic, parked_topic};
use crate::random::Random;
use crate::scenario::{Kind, MS, SECOND, Scenario, Time};
use crate::waits::Caller;
use crate::witness::Witness;

pub(crate) fn moment(at: Time) -> Moment {
    Moment::from_start(Duration::from_micros(at))
}

pub(crate) fn duration(of: Time) -> Duration {
    Duration::from_micros(of)
}

/// One process: which box, and which life of it.
pub(crate) type Life = (usize, u64);

/// Something that will happen.
pub(crate) enum Event {
    CallAppears(Plan),
    Noise(u32),
    /// A caller cancels a call.
    Cancel(u32, Offset, CallId),
    CallerDies(u32),
    CallerGivesUp(u32, u64, CallId, u64),
    Replied(u32),
    Follows(u32, u64, CallId, Digest, TopicPartition, Offset),
    Kill(usize),
    Pause(usize, Time, bool),
    Resume(usize, u64),
    Cut(usize, Time),
    Stop(usize),
    /// A process that was superseded ends.
    Exits(Life),
    Start(usize),
    AppAway(usize, Time),
    GroupTick,
    /// The broker learns that the process is gone.
    Gone(Life, Holder),
    Lands(Append),
    CommitLands(CommitRequest),
    GroupRequest(Life, Request),
    ToBox(Life, Inbox),
    Fetch(Life, u32, u64),
    /// The app ends a delivery (its number).
    AppEnds(u64),
    PoisonKills(u64),
}

/// An append on its way.
pub(crate) struct Append {
    pub from: Life,
    pub to: Place,
    pub value: Value,
    /// Who goes on when it is acknowledged; `None`: the acknowledgement is lost, and the failure is reported by another event.
    pub job: Option<Job>,
    /// For the witness: which call ends with it.
    pub ends: Option<(u32, Offset)>,
    pub tenure: u64,
}

pub(crate) struct CommitRequest {
    pub from: Life,
    pub member: Option<MemberId>,
    pub commits: Vec<(TopicPartition, Committed)>,
    pub sent: Time,
    pub answer: bool,
}

/// What a client asks the group's coordinator.
pub(crate) enum Request {
    /// Which membership of the process it is for.
    Join(u64),
    Heartbeat(MemberId),
    Release(MemberId, Vec<TopicPartition>),
    Leave(MemberId),
}

/// What the coordinator tells a client.
pub(crate) enum Notice {
    Joined(u64),
    Assigned(Vec<Assignment>),
    Revoking(Vec<TopicPartition>),
    Expelled(Vec<TopicPartition>),
}

pub(crate) struct World {
    pub now: Time,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: HashMap<u64, Event>,
    last_event: u64,
    pub random: Random,
    pub scenario: Scenario,
    pub healed: bool,
    pub log: TheLog,
    pub groups: Groups,
    members: BTreeMap<MemberId, Life>,
    closed: BTreeSet<Life>,
    pub commits: BTreeMap<TopicPartition, Committed>,
    /// Who was last given each partition, and when.
    given: BTreeMap<TopicPartition, (MemberId, Time)>,
    /// By ordinal: who claimed it, with which of its claims, and when, in the order of the log.
    pub claims: BTreeMap<u32, Vec<(Life, u64, Time)>>,
    pub boxes: Vec<Simulated>,
    pub callers: BTreeMap<u32, Caller>,
    pub last_number: u64,
    pub witness: Witness,
    pub trace: Option<Vec<String>>,
}

macro_rules! note {
    ($world:expr, $($what:tt)*) => {
        if let Some(trace) = &mut $world.trace {
            trace.push(format!("{:>12.6} {}", $world.now as f64 / 1e6, format!($($what)*)));
        }
    };
}
pub(crate) use note;

impl World {
    pub(crate) fn new(seed: u64, traced: bool, change: impl FnOnce(&mut Scenario)) -> Self {
        let mut random = Random::new(seed);
        let mut scenario = Scenario::of(&mut random);
        change(&mut scenario);
        let mut groups = Groups::default();
        groups.topic_created(moment(0), &calls_topic(), scenario.partitions);
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            last_event: 0,
            boxes: (0..scenario.boxes).map(|index| Simulated::new(index, &scenario)).collect(),
            random,
            healed: false,
            log: TheLog::default(),
            groups,
            members: BTreeMap::new(),
            closed: BTreeSet::new(),
            commits: BTreeMap::new(),
            given: BTreeMap::new(),
            claims: BTreeMap::new(),
            callers: BTreeMap::new(),
            last_number: 0,
            witness: Witness::new(&scenario),
            scenario,
            trace: traced.then(Vec::new),
        };
        note!(world, "{:?}", world.scenario);
        world.plan();
        world
    }

    /// Lays out the calls and the faults.
    fn plan(&mut self) {
        let scenario = self.scenario.clone();
        let heal = scenario.heal_at;
        for plan in Plan::all(&mut self.random, &scenario) {
            let until = if scenario.in_a_rush { 3 * SECOND } else { heal };
            let at = self.random.between(0, until);
            self.at(at, Event::CallAppears(plan));
        }
        for _ in 0..scenario.noise {
            let (at, number) = (self.random.between(0, heal), self.random.between(0, u64::from(scenario.partitions)) as u32);
            self.at(at, Event::Noise(number));
        }
        for index in 0..scenario.boxes {
            let at = self.random.between(0, 2 * SECOND);
            self.at(at, Event::Start(index));
        }
        type Fault = fn(usize, &mut Random) -> Event;
        let faults: [(u64, Fault); 5] = [
            (scenario.kills, |b, _| Event::Kill(b)),
            (scenario.pauses, |b, r| Event::Pause(b, long_or_short(r), r.per_mille(500))),
            (scenario.cuts, |b, r| Event::Cut(b, long_or_short(r))),
            (scenario.stops, |b, _| Event::Stop(b)),
            (scenario.app_away, |b, r| Event::AppAway(b, long_or_short(r))),
        ];
        for (times, make) in faults {
            for _ in 0..times {
                let at = self.random.between(0, heal);
                let index = self.random.between(0, scenario.boxes as u64) as usize;
                let event = make(index, &mut self.random);
                self.at(at, event);
            }
        }
        for _ in 0..scenario.caller_deaths {
            let (at, number) = (self.random.between(0, heal), self.random.between(0, u64::from(scenario.replies)) as u32);
            self.at(at, Event::CallerDies(number));
        }
        self.at(100 * MS, Event::GroupTick);
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.last_event += 1;
        self.queue.push(Reverse((at.max(self.now), self.last_event)));
        self.events.insert(self.last_event, event);
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Lets everything happen that does until then. An error is a broken promise.
    pub(crate) fn run_until(&mut self, until: Time) -> Result<(), String> {
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > until {
                break;
            }
            self.queue.pop();
            self.now = at;
            if let Some(event) = self.events.remove(&number) {
                self.happens(event);
            }
            if let Some(broken) = self.witness.broken.take() {
                return Err(broken);
            }
        }
        self.now = until;
        Ok(())
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::CallAppears(plan) => self.call_appears(plan),
            Event::Noise(number) => {
                self.log.append(self.now, Place::Calls(number), &Value::Noise);
                self.wake_readers(number);
            }
            Event::Cancel(number, origin, id) => self.cancel(number, origin, id),
            Event::CallerDies(number) => self.caller_dies(number),
            Event::CallerGivesUp(number, life, id, ticket) => self.gives_up(number, life, id, ticket),
            Event::Replied(number) => self.reads_replies(number),
            Event::Follows(number, life, id, digest, partition, offset) => self.follows(number, life, id, digest, &partition, offset),
            Event::Kill(index) => self.kill(index, "it was killed"),
            Event::Pause(index, how_long, app_too) => self.pause(index, how_long, app_too),
            Event::Resume(index, which) => self.resume(index, which),
            Event::Cut(index, how_long) => {
                if !self.healed {
                    note!(self, "box {index}: cut off from the log for {} ms", how_long / MS);
                    self.boxes[index].cut_until = self.now + how_long;
                }
            }
            Event::Stop(index) => self.stop(index),
            Event::Exits(life) => {
                if self.boxes[life.0].alive && self.boxes[life.0].life() == life {
                    self.exits(life.0);
                }
            }
            Event::Start(index) => self.start(index),
            Event::AppAway(index, how_long) => {
                if !self.healed {
                    note!(self, "box {index}: its app accepts no connections for {} ms", how_long / MS);
                    self.boxes[index].app_away_until = self.now + how_long;
                }
            }
            Event::GroupTick => {
                let effects = self.groups.tick(moment(self.now));
                self.tell_members(effects);
                self.after(100 * MS, Event::GroupTick);
            }
            Event::Gone(life, holder) => {
                self.closed.insert(life);
                let effects = self.groups.gone(moment(self.now), holder);
                self.tell_members(effects);
            }
            Event::Lands(append) => self.lands(append),
            Event::CommitLands(request) => self.commit_lands(request),
            Event::GroupRequest(life, request) => self.requested(life, request),
            Event::ToBox(life, what) => self.box_is_told(life, what),
            Event::Fetch(life, number, run) => self.fetch(life, number, run),
            Event::AppEnds(delivery) => self.app_ends(delivery),
            Event::PoisonKills(delivery) => {
                if let Some(index) = self.witness.box_of(delivery) {
                    if self.boxes[index].paused && self.boxes[index].app_paused {
                        self.boxes[index].inbox.push_back(Inbox::PoisonKills(delivery));
                    } else {
                        self.kill(index, "it died of a poison");
                    }
                }
            }
        }
    }

    /// How long a message to or from this box takes.
    pub(crate) fn delay(&mut self, index: usize) -> Time {
        let cut = self.boxes[index].cut_until.saturating_sub(self.now);
        let slow = if !self.healed && self.random.per_mille(self.scenario.slow_net) { self.random.between(0, 4 * SECOND) } else { 0 };
        cut + slow + self.random.between(200, 3 * MS)
    }

    fn call_appears(&mut self, plan: Plan) {
        let number = plan.number;
        let reply = plan.call.reply_to.partition.partition;
        // What the caller has read may lag behind.
        let mut call = plan.call;
        self.expects(&mut call);
        let call = Arc::new(call);
        let (offset, _) = self.log.append(self.now, Place::Calls(number), &Value::Call(Arc::clone(&call)));
        note!(self, "call {}: accepted at {number}/{offset}, {:?}, lane {:?}, id {}", call.request.target, plan.manner, call.ordering_key, call.id);
        self.witness.accepted(self.now, number, offset, Arc::clone(&call), plan.manner);
        self.waits(&call);
        if call.recorded.is_none() && self.random.per_mille(self.scenario.cancels) {
            let late = long_or_short(&mut self.random);
            self.after(late, Event::Cancel(number, offset, call.id));
        }
        // A retry can find what it waits for between the caller's read position and the end.
        let replies = Place::Replies(reply);
        for (at, _, value) in self.log.range(replies, call.reply_to.position, self.log.end(replies)) {
            if let Value::Reply(reply) = value {
                self.witness.read_by_retries(self.now, (0, offset), replies, at, &reply, (number, offset));
            }
        }
        self.wake_readers(number);
    }

    fn cancel(&mut self, number: u32, origin: Offset, id: CallId) {
        note!(self, "call {number}/{origin}: cancelled by its caller");
        self.log.append(self.now, Place::Control(number), &Value::Control(ControlEntry::Cancel { id, offset: origin }));
        self.witness.cancelled(number, origin);
        for index in 0..self.boxes.len() {
            self.control_grows(index, number);
        }
    }

    // Appends.

    /// Sends an append. `job` goes on with its answer.
    pub(crate) fn append(&mut self, from: Life, to: Place, value: Value, job: Job, ends: Option<(u32, Offset)>) {
        let (there, back) = (self.delay(from.0), self.delay(from.0));
        let tenure = job.tenure;
        let faulty = !self.healed;
        if faulty && self.random.per_mille(self.scenario.refused) {
            self.after(there + back, Event::ToBox(from, Inbox::Appended(job, Err(AppendError::NotPersisted("simulated".to_owned())))));
        } else if faulty && self.random.per_mille(self.scenario.ack_lost) {
            let late = if self.random.per_mille(self.scenario.lands_late) { self.random.between(0, 8 * SECOND) } else { 0 };
            let told = self.random.between(5 * MS, 500 * MS);
            note!(self, "box {}: the acknowledgement of an append to {to:?} gets lost", from.0);
            self.after(told, Event::ToBox(from, Inbox::Appended(job, Err(AppendError::Unknown("simulated".to_owned())))));
            self.after(there + late, Event::Lands(Append { from, to, value, job: None, ends, tenure }));
        } else {
            self.after(there, Event::Lands(Append { from, to, value, job: Some(job), ends, tenure }));
        }
    }

    fn lands(&mut self, append: Append) {
        let Append { from, to, value, job, ends, tenure } = append;
        let living = self.boxes[from.0].life() == from;
        if self.closed.contains(&from) || (!living && self.random.per_mille(500)) {
            return;
        }
        let (offset, timestamp) = self.log.append(self.now, to, &value);
        note!(self, "box {}: appended to {to:?} at {offset}: {}", from.0, brief(&value));
        self.witness.landed(self.now, tenure, to, offset, &value, ends);
        if let (Place::Frontier(number), Value::Frontier(FrontierEntry::Claim(_))) = (to, &value) {
            let which = self.boxes[from.0].claim.which;
            self.claims.entry(number).or_default().push((from, which, self.now));
        }
        match to {
            Place::Frontier(number) => self.frontier_grows(number),
            Place::Calls(number) => self.wake_readers(number),
            Place::Replies(number) => self.replied(number),
            _ => {}
        }
        if let Some(job) = job {
            let back = self.delay(from.0);
            self.after(back, Event::ToBox(from, Inbox::Appended(job, Ok((offset, timestamp)))));
        }
    }

    // Reading.

    fn wake_readers(&mut self, number: u32) {
        for index in 0..self.boxes.len() {
            let Some(run) = self.boxes[index].waiting_feed(number) else { continue };
            let (life, delay) = (self.boxes[index].life(), self.delay(index));
            self.after(delay, Event::Fetch(life, number, run));
        }
    }

    fn fetch(&mut self, life: Life, number: u32, run: u64) {
        let end = self.log.end(Place::Calls(number));
        let at_box = &mut self.boxes[life.0];
        if at_box.life() != life {
            return;
        }
        let Some((at, wanted)) = at_box.feed_wants(number, run, end) else { return };
        let until = Offset::new(end.get().min(at.get() + u64::from(wanted.min(64))));
        let entries: Vec<(Offset, Timestamp, Value)> = self.log.range(Place::Calls(number), at, until).collect();
        let more = self.boxes[life.0].fed(number, until, entries.len() as u32);
        self.in_order(life, Inbox::Records(number, entries));
        if more {
            let delay = self.delay(life.0);
            self.after(delay, Event::Fetch(life, number, run));
        }
    }

    /// To the box's consumer, after what was sent to it before.
    pub(crate) fn in_order(&mut self, life: Life, what: Inbox) {
        let delay = self.random.between(0, if self.random.clone().per_mille(20) { 50 * MS } else { MS });
        let at = (self.now + delay).max(self.boxes[life.0].told_until + 1);
        self.boxes[life.0].told_until = at;
        self.at(at, Event::ToBox(life, what));
    }

    // The group.

    pub(crate) fn request(&mut self, life: Life, request: Request) {
        let at = (self.now + self.delay(life.0)).max(self.boxes[life.0].asked_until + 1);
        self.boxes[life.0].asked_until = at;
        self.at(at, Event::GroupRequest(life, request));
    }

    fn requested(&mut self, life: Life, request: Request) {
        if self.closed.contains(&life) {
            return;
        }
        let now = moment(self.now);
        match request {
            Request::Join(membership) => {
                let spec = GroupSpec {
                    name: "app".to_owned(),
                    topics: vec![calls_topic()],
                    session_timeout: duration(self.scenario.session),
                    release_timeout: duration(self.scenario.drain + 15 * SECOND),
                    lease: duration(self.scenario.lease),
                };
                let (member, effects) = self.groups.join(now, self.boxes[life.0].holder(life.1), &spec);
                self.members.insert(member, life);
                self.tell(life, member, Notice::Joined(membership));
                self.tell_members(effects);
            }
            Request::Heartbeat(member) => {
                self.groups.heartbeat(now, member);
            }
            Request::Release(member, partitions) => {
                let effects = self.groups.release(now, member, &partitions);
                self.tell_members(effects);
            }
            Request::Leave(member) => {
                let effects = self.groups.leave(now, member);
                self.tell_members(effects);
            }
        }
    }

    fn tell_members(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let (member, notice) = match effect {
                Effect::Assigned(member, mut assignments) => {
                    for assignment in &mut assignments {
                        self.given.insert(assignment.partition.clone(), (member, self.now));
                        assignment.committed = self.commits.get(&assignment.partition).cloned();
                    }
                    (member, Notice::Assigned(assignments))
                }
                Effect::Revoking(member, partitions) => (member, Notice::Revoking(partitions)),
                Effect::Expelled(member, partitions) => (member, Notice::Expelled(partitions)),
                Effect::Missing(..) => continue,
            };
            if let Some(life) = self.members.get(&member).copied() {
                self.tell(life, member, notice);
            }
        }
    }

    fn tell(&mut self, life: Life, member: MemberId, notice: Notice) {
        let at = (self.now + self.delay(life.0)).max(self.boxes[life.0].noticed_until + 1);
        self.boxes[life.0].noticed_until = at;
        self.at(at, Event::ToBox(life, Inbox::Notice(member, notice)));
    }

    // Commits.

    pub(crate) fn commit(&mut self, from: Life, member: Option<MemberId>, commits: Vec<(TopicPartition, Committed)>) {
        let sent = self.now;
        let at = (self.now + self.delay(from.0)).max(self.boxes[from.0].asked_until + 1);
        let unavailable = || Inbox::Committed(Err(LogError::Unavailable("simulated".to_owned())));
        let faulty = !self.healed;
        if faulty && self.random.per_mille(self.scenario.commit_fails) {
            let told = self.random.between(5 * MS, 3 * SECOND);
            self.after(told, Event::ToBox(from, unavailable()));
            if self.random.per_mille(500) {
                note!(self, "box {}: the answer to a commit gets lost", from.0);
                let late = if self.random.per_mille(self.scenario.commit_late) { self.random.between(0, 8 * SECOND) } else { 0 };
                if late == 0 {
                    self.boxes[from.0].asked_until = at;
                }
                self.at(at + late, Event::CommitLands(CommitRequest { from, member, commits, sent, answer: false }));
            }
            return;
        }
        self.boxes[from.0].asked_until = at;
        self.at(at, Event::CommitLands(CommitRequest { from, member, commits, sent, answer: true }));
    }

    fn commit_lands(&mut self, request: CommitRequest) {
        let CommitRequest { from, member, commits, sent, answer } = request;
        if self.closed.contains(&from) {
            return;
        }
        let fenced = || LogError::Fenced("simulated".to_owned());
        let result = match member {
            None => Err(fenced()),
            // Kafka refuses no commit for a partition that the member does not own, but one of an older generation (of an older member epoch, in the new protocol): a
            // partition goes to another with a new one.
            Some(member) if self.scenario.kafka => {
                let given_since = |of: &TopicPartition| self.given.get(of).is_some_and(|(to, at)| *to != member && *at > sent);
                let is_old = commits.iter().any(|(of, _)| given_since(of));
                (self.groups.heartbeat(moment(self.now), member) && !is_old).then_some(()).ok_or_else(fenced)
            }
            Some(member) => self.groups.commit(moment(self.now), member, &commits),
        };
        note!(
            self,
            "box {}: commit of {:?}: {result:?}",
            from.0,
            commits.iter().filter(|(p, _)| p.topic == calls_topic()).map(|(p, c)| (p.partition, c.offset)).collect::<Vec<_>>()
        );
        if result.is_ok() {
            self.commits.extend(commits);
        }
        if answer {
            let back = self.delay(from.0);
            self.after(back, Event::ToBox(from, Inbox::Committed(result.map(|()| moment(sent)))));
        }
    }

    /// What the group has committed for a partition and its parked one.
    pub(crate) fn committed(&self, number: u32) -> (Option<Committed>, Option<Committed>) {
        if self.scenario.assigned {
            return self.committed_by_ordinal(number);
        }
        (self.commits.get(&calls_topic().partition(number)).cloned(), self.commits.get(&parked_topic().partition(number)).cloned())
    }

    // What goes wrong with boxes.

    pub(crate) fn kill(&mut self, index: usize, why: &str) {
        if !self.boxes[index].alive {
            return;
        }
        note!(self, "box {index}: {why}");
        let life = self.boxes[index].life();
        let holder = self.boxes[index].holder(life.1);
        self.witness.died(index);
        self.boxes[index].dies();
        if !self.scenario.kafka {
            let noticed = self.random.between(0, 100 * MS);
            self.after(noticed, Event::Gone(life, holder));
        }
        let back = self.restart_after();
        self.after(back, Event::Start(index));
    }

    fn pause(&mut self, index: usize, how_long: Time, app_too: bool) {
        let simulated = &mut self.boxes[index];
        if self.healed || !simulated.alive || simulated.paused {
            return;
        }
        (simulated.paused, simulated.app_paused) = (true, app_too);
        let which = simulated.incarnation;
        note!(self, "box {index}: paused for {} ms{}", how_long / MS, if app_too { ", with its app" } else { "" });
        self.after(how_long, Event::Resume(index, which));
    }

    pub(crate) fn resume(&mut self, index: usize, which: u64) {
        let simulated = &mut self.boxes[index];
        if !simulated.alive || !simulated.paused || simulated.incarnation != which {
            return;
        }
        (simulated.paused, simulated.app_paused) = (false, false);
        let life = simulated.life();
        let inbox = std::mem::take(&mut simulated.inbox);
        note!(self, "box {index}: goes on, with {} messages waiting", inbox.len());
        // All before anything that is still on its way: a connection keeps its order.
        for what in inbox {
            self.after(0, Event::ToBox(life, what));
        }
    }

    fn stop(&mut self, index: usize) {
        if self.healed || !self.boxes[index].alive || self.boxes[index].paused || self.scenario.boxes == 1 && self.scenario.kind == Kind::Clean {
            return;
        }
        note!(self, "box {index}: asked to stop");
        self.stop_box(index);
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self) {
        note!(self, "everything heals");
        self.healed = true;
        for index in 0..self.boxes.len() {
            let which = self.boxes[index].incarnation;
            self.resume(index, which);
            self.boxes[index].cut_until = 0;
            self.boxes[index].app_away_until = 0;
        }
    }
}

fn long_or_short(random: &mut Random) -> Time {
    if random.per_mille(500) { random.between(0, 3 * SECOND) } else { random.between(3 * SECOND, 25 * SECOND) }
}

fn brief(value: &Value) -> String {
    let mut text = format!("{value:?}");
    let most = text.char_indices().nth(160).map_or(text.len(), |(i, _)| i);
    text.truncate(most);
    text
}

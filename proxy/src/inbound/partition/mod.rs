//! One partition in the hands of its owner. Pure: time and events come in, effects go out.
//!
//! A call that is read is *held* until its outcome is durable. Its way:
//!
//! ```text
//! read → (suspect → searched) → blocked by its lane → ready → delivering → recording → done
//!                                                      ↑______ pausing ____|
//! ```
//!
//! and, beside that way, it may be *parked*: its record is moved to the parked partition so that the frontier can go on without it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bluebox_core::call::Reason;
use bluebox_core::clock::Moment;
use bluebox_core::log::{Committed, Offset, Timestamp};
use bluebox_core::{CallId, planted};

use super::frontier::{Frontier, MAX_SPAN, Mark, Suspects};
use super::recorded::{Known, Recorded};

mod cancels;
mod effects;
mod ending;
mod handover;
mod held;
mod parking;
mod searched;
mod status;
mod takeover;
#[cfg(test)]
mod tests;

use cancels::Cancels;
pub use cancels::{Cancel, MAX_CANCELS};
pub use effects::*;
use ending::uncount;
use held::{Held, Lane, State};
pub use searched::Note;
use searched::Searched;

/// Unfinished calls that a partition may hold at once; beyond, reading it pauses.
pub const MAX_UNFINISHED: usize = 1_024;

/// Parked calls that a partition may have at once; beyond, nothing is parked, the partition fills up and waits, and an alarm sounds.
pub const MAX_PARKED: usize = 4_096;

/// A call whose lane stands still for longer than this is parked.
pub const PARK_AFTER: Duration = Duration::from_secs(10);

/// After this long without a record, those that are there are searched for.
const QUIET_AFTER: Duration = Duration::from_millis(100);

/// For so long at least a log keeps the commits of a group without members (Kafka's least `offsets.retention.minutes`).
const COMMITS_KEPT: Duration = Duration::from_secs(60);

/// A retry whose deadline has passed before the end of the call that it repeats was known is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long the last commit of a handover is tried.
const HANDING_LIMIT: Duration = Duration::from_secs(12);

/// The longest `Retry-After` of an app that is honoured.
pub const MAX_NOT_NOW: Duration = Duration::from_secs(60);

/// The rules that a partition goes by. See [`crate::config::Inbound`] for what they mean.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Attempts that may fail.
    pub max_attempts: u32,
    /// Solo deliveries that may end in a crash. `None`: nothing is ever delivered solo.
    pub max_crashes: Option<u32>,
    /// The pause before the second attempt.
    pub first_backoff: Duration,
    /// The longest pause between attempts.
    pub max_backoff: Duration,
    /// How long deliveries may take to end on a handover.
    pub drain: Duration,
    /// How long after a commit a delivery may be started.
    pub lease: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fencing,
    Loading,
    Serving,
    /// Asked for before anything was begun: released when no zombie of the former owner can begin anything any more, as the next owner counts on.
    Leaving,
    Draining {
        until: Moment,
    },
    /// The last commit is on its way.
    Handing {
        since: Moment,
    },
    Gone,
}

/// What the former owner left.
#[derive(Debug)]
struct Takeover {
    /// Offsets from here on can't have been started by the former owner.
    suspect_below: Offset,
    suspects: Suspects,
    /// Nobody ever committed. Then only a foreign fence makes the calls before it suspects in earnest.
    virgin: bool,
    /// A zombie of the former owner may start deliveries until then.
    not_before: Moment,
    /// Nothing was read since then: what is there now is searched for, though there may be more to read (a box whose memory is full reads nothing).
    quiet_at: Moment,
    searching: bool,
    /// Calls that wait for the verdict of a search.
    waiting: usize,
    /// Calls whose ends this box began to record in a former tenure and is still recording: no search finds them yet.
    recording: BTreeSet<Offset>,
}

/// One partition in the hands of its owner.
#[derive(Debug)]
pub struct Partition {
    rules: Rules,
    phase: Phase,
    epoch: Offset,
    done: Frontier,
    parked_done: Frontier,
    /// From here on nothing in the parked partition counts; below, what lives there is in `held`. `None`: no commit says, all of it may count.
    parked_end: Option<Offset>,
    /// What the last commit said of that: copies that come to lie below it don't count either.
    parked_floor: Offset,
    /// Parked calls whose lanes wait for what lies before them to be read.
    ahead: BTreeSet<Offset>,
    /// By offset in the calls partition.
    held: BTreeMap<Offset, Held>,
    in_lane: HashMap<Lane, VecDeque<Offset>>,
    ready: VecDeque<Offset>,
    /// Those that wait for the index of recorded calls.
    for_index: Vec<Offset>,
    index_ready: bool,
    timers: BTreeSet<(Moment, Offset)>,
    takeover: Takeover,
    unclean_owners: u32,
    cancels: Cancels,
    searched: Searched,
    crashes: BTreeMap<Offset, u32>,
    former_attempts: BTreeMap<Offset, u32>,
    /// The next offset to be read.
    position: Offset,
    parked: usize,
    parked_full: bool,
    /// Parked copies that are on their way.
    parking: usize,
    /// Bytes of the bodies in memory.
    held_bytes: usize,
    /// Marks since the last commit was taken.
    dirty: u32,
    committed_base: Offset,
    /// Whether a commit of this owner has succeeded.
    committed: bool,
    cut_off: Vec<Offset>,
}

impl Partition {
    /// A partition that was just assigned. `committed` and `parked_committed` are the last commits for it and for its parked partition.
    pub fn new(
        now: Moment,
        rules: Rules,
        committed: Option<&Committed>,
        parked_committed: Option<&Committed>,
        former_is_gone: bool,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mark = committed.map(|c| Mark::decode(c).unwrap_or_else(|_| Mark { done: Frontier::new(c.offset), suspects: Suspects::Any, ..Mark::default() }));
        let virgin = mark.is_none();
        let mark = mark.unwrap_or_else(|| Mark { suspects: Suspects::Any, ..Mark::default() });
        let parked =
            parked_committed.map(|c| Mark::decode(c).unwrap_or_else(|_| Mark { done: Frontier::new(c.offset), ..Mark::default() })).unwrap_or_default();
        let unclean = mark.suspects == Suspects::Any && !virgin;
        let mut partition = Self {
            phase: Phase::Fencing,
            epoch: Offset::default(),
            position: mark.done.base(),
            committed_base: mark.done.base(),
            takeover: Takeover {
                suspect_below: if virgin { Offset::new(u64::MAX) } else { Offset::new(mark.done.base().get().saturating_add(MAX_SPAN)) },
                suspects: mark.suspects,
                virgin,
                // Who never committed never had a lease. Who has released it, or has died for certain, has none any more.
                not_before: if virgin || former_is_gone || !unclean { now } else { now + rules.lease },
                quiet_at: now,
                searching: false,
                waiting: 0,
                recording: BTreeSet::new(),
            },
            // Who handed over what it had not cleared up itself is no new death, and no end of the row either.
            unclean_owners: if unclean { mark.unclean_owners.saturating_add(1) } else { mark.unclean_owners },
            cancels: Cancels::new(mark.control_from),
            searched: Searched::new(mark.searched),
            crashes: mark.crashes,
            former_attempts: mark.attempts,
            done: mark.done,
            parked_done: parked.done,
            parked_end: parked.parked_end,
            parked_floor: Offset::default(),
            ahead: BTreeSet::new(),
            rules,
            held: BTreeMap::new(),
            in_lane: HashMap::new(),
            ready: VecDeque::new(),
            for_index: Vec::new(),
            index_ready: false,
            timers: BTreeSet::new(),
            parked: 0,
            parked_full: false,
            parking: 0,
            held_bytes: 0,
            dirty: 1,
            committed: false,
            cut_off: Vec::new(),
        };
        if planted!(NoFence) {
            partition.fenced(Offset::default(), effects);
        } else {
            effects.push(Effect::Fence);
        }
        partition
    }

    /// A call was read.
    pub fn arrived(&mut self, now: Moment, arrival: Arrival, effects: &mut Vec<Effect>) {
        let origin = arrival.origin;
        self.advance_to(origin, effects);
        if !self.done.is_done(origin) && !self.held.contains_key(&origin) {
            self.hold(now, arrival, None, 0, false);
        }
        self.read_to(now, origin.next(), effects);
    }

    /// A record without a call was read (a fence, or nothing that can be read).
    pub fn skipped(&mut self, now: Moment, at: Offset, effects: &mut Vec<Effect>) {
        self.advance_to(at, effects);
        self.done.mark(at);
        self.dirty += 1;
        self.read_to(now, at.next(), effects);
    }

    fn read_to(&mut self, now: Moment, position: Offset, effects: &mut Vec<Effect>) {
        self.position = self.position.max(position);
        self.takeover.quiet_at = now + QUIET_AFTER;
        while let Some(origin) = self.ahead.first().copied().filter(|o| *o < position) {
            self.ahead.remove(&origin);
            self.unblock(origin);
        }
        self.search(now, effects);
    }

    /// The log's start has moved beyond what was to be read: the records up to `start` are gone.
    pub fn truncated(&mut self, start: Offset, effects: &mut Vec<Effect>) {
        self.advance_to(start, effects);
    }

    /// Goes on at `to`: offsets between are holes, and those of them that had no outcome are lost.
    fn advance_to(&mut self, to: Offset, effects: &mut Vec<Effect>) {
        if to <= self.position {
            return;
        }
        let mut lost = 0;
        let mut at = self.position;
        while at < to {
            if at < self.done.base() {
                at = self.done.base().min(to);
                continue;
            }
            lost += u64::from(!self.done.is_done(at));
            at = at.next();
            if at.distance_from(self.position) > 4 * MAX_SPAN {
                // Beyond anything that can have been marked.
                lost += to.distance_from(at);
                break;
            }
        }
        self.done.mark_run(self.position, to);
        self.position = to;
        self.dirty += 1;
        if lost > 0 {
            effects.push(Effect::Lost(lost));
        }
    }

    fn hold(&mut self, now: Moment, arrival: Arrival, parked_at: Option<Offset>, attempts: u32, may_have_started: bool) {
        let Arrival { origin, accepted, age, call } = arrival;
        let lane = match (&call.ordering_key, call.recorded) {
            (Some(key), _) => Some(Lane::Key(key.clone())),
            (None, Some(_)) => Some(Lane::Id(call.id)),
            (None, None) => None,
        };
        let recording = self.takeover.recording.contains(&origin);
        let suspect = match &self.takeover.suspects {
            _ if recording => true,
            _ if parked_at.is_none() && origin >= self.takeover.suspect_below => false,
            _ if planted!(NoSearch) => false,
            Suspects::Any => true,
            Suspects::Only(these) => these.contains(&origin),
        };
        let left = |of: Duration| now + of.saturating_sub(age);
        let crashed = self.crashes.contains_key(&origin);
        let held = Held {
            id: call.id,
            replay: call.replay,
            reply_to: call.reply_to.clone(),
            recorded: call.recorded,
            accepted,
            deadline: left(call.ttl),
            wait_ends: call.wait.map(left),
            read_at: now,
            parked_at,
            parking: false,
            attempts: attempts.max(self.former_attempts.get(&origin).copied().unwrap_or(0)),
            not_now: false,
            may_have_started: may_have_started || recording || (suspect && !self.takeover.virgin),
            solo: self.rules.max_crashes.is_some() && ((suspect && self.unclean_owners >= 2) || crashed),
            call: if parked_at.is_none() { Some(call) } else { None },
            suspect,
            state: match suspect {
                true if recording => State::Ending,
                true => State::Suspect,
                false => State::Blocked,
            },
            lane,
        };
        self.held_bytes += held.bytes();
        self.takeover.waiting += usize::from(suspect && !recording);
        self.timers.insert((held.deadline, origin));
        if let Some(lane) = held.lane.clone() {
            let queue = self.in_lane.entry(lane).or_default();
            // By offset: a parked call may be loaded after it was read, or before.
            let place = queue.partition_point(|o| *o < origin);
            queue.insert(place, origin);
        }
        self.held.insert(origin, held);
        if !suspect {
            self.unblock(origin);
        }
    }

    /// Makes a call ready if nothing stands in its way any more.
    fn unblock(&mut self, origin: Offset) {
        let Some(held) = self.held.get_mut(&origin) else { return };
        if held.state != State::Blocked {
            return;
        }
        let first = held.lane.as_ref().and_then(|lane| self.in_lane.get(lane)).and_then(|queue| queue.front());
        if first.is_some_and(|first| *first != origin) && !planted!(LaneIgnored) {
            return;
        }
        if held.lane.is_some() && held.parked_at.is_some() && origin >= self.position {
            // Not all that comes before it in its lane need be parked.
            self.ahead.insert(origin);
            return;
        }
        if held.recorded.is_some() && !self.index_ready {
            self.for_index.push(origin);
            return;
        }
        held.state = State::Ready;
        self.ready.push_back(origin);
    }

    /// The next delivery that could be begun, if the lease and the box allow it. Calls whose end is already known end here.
    pub fn next_delivery(&mut self, now: Moment, index: &mut Recorded, effects: &mut Vec<Effect>) -> Option<Delivery> {
        if self.phase != Phase::Serving {
            return None;
        }
        while let Some(origin) = self.ready.pop_front() {
            let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Ready) else { continue };
            if let Some(digest) = held.recorded.filter(|_| held.replay == 0) {
                match index.known(&held.id, &digest) {
                    Known::New => {}
                    Known::Ended { partition, offset } => {
                        let verdict = Verdict::Known { partition, offset };
                        self.record(origin, verdict, effects);
                        continue;
                    }
                    Known::OtherDigest => {
                        self.record(origin, Verdict::Refused(Reason::KeyReused), effects);
                        continue;
                    }
                    // One that has begun before is not refused now.
                    Known::Full if held.attempts > 0 || held.may_have_started => {}
                    Known::Full => {
                        self.record(origin, Verdict::Refused(Reason::RecordedFull), effects);
                        continue;
                    }
                }
            }
            if self.cancels.is_wanted(origin, &held.id) {
                self.record(origin, Verdict::Refused(Reason::Cancelled), effects);
                continue;
            }
            if now >= held.deadline {
                self.give_up(origin, Reason::Deadline, "the deadline passed", effects);
                continue;
            }
            if held.solo {
                let crashes = self.crashes.entry(origin).or_insert(0);
                if self.rules.max_crashes.is_some_and(|max| *crashes >= max) {
                    let detail = format!("the box died {crashes} times while this was the only call under way");
                    self.give_up(origin, Reason::Poison, &detail, effects);
                    continue;
                }
                // Counted before it is known how it ends, and committed before it begins.
                *crashes += u32::from(!planted!(CrashNotCounted));
                held.state = State::Announced;
                self.dirty += 1;
            } else {
                held.state = State::Delivering;
            }
            held.attempts += 1;
            let Some(call) = held.payload() else { continue };
            let may_have_started = held.may_have_started;
            let (attempt, solo) = (held.attempts, held.solo);
            return Some(Delivery { origin, call, attempt, may_have_started, solo });
        }
        None
    }

    /// Whether there is a call that could be delivered.
    pub fn has_ready(&self) -> bool {
        self.phase == Phase::Serving && !self.ready.is_empty()
    }

    /// Puts a delivery back that was taken with [`Self::next_delivery`] but could not be begun after all.
    pub fn put_back(&mut self, origin: Offset) {
        let Some(held) = self.held.get_mut(&origin) else { return };
        if held.state == State::Announced {
            uncount(&mut self.crashes, origin);
        }
        held.attempts -= 1;
        held.state = State::Ready;
        self.ready.push_front(origin);
    }

    /// The commit with the crash count of this solo delivery is made: it begins. `false`: it does not, because the partition is being handed over.
    #[must_use]
    pub fn announced(&mut self, origin: Offset) -> bool {
        let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Announced) else { return false };
        held.state = State::Delivering;
        true
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        // Once the last commit is on its way nothing may end any more: the next owner would not know.
        while self.may_end()
            && let Some(&(at, origin)) = self.timers.first().filter(|(at, _)| *at <= now)
        {
            self.timers.remove(&(at, origin));
            self.timer(now, origin, effects);
        }
        self.search(now, effects);
        self.park_what_pins(effects);
        match self.phase {
            Phase::Draining { until } => self.drain(now, now >= until, effects),
            Phase::Leaving => self.leave(now, effects),
            _ => {}
        }
    }

    /// Whether calls may end for another reason than that a delivery did.
    fn may_end(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining { .. })
    }

    fn timer(&mut self, now: Moment, origin: Offset, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get(&origin) else { return };
        let waits = matches!(held.state, State::Blocked | State::Ready | State::Pausing(_));
        if waits && now >= held.deadline {
            if self.may_be_known(origin) {
                self.timers.insert((now + LOOK_AGAIN, origin));
            } else {
                self.give_up(origin, Reason::Deadline, "the deadline passed", effects);
            }
            return;
        }
        let Some(held) = self.held.get_mut(&origin) else { return };
        if let State::Pausing(until) = held.state {
            if now >= until {
                held.state = State::Ready;
                self.ready.push_back(origin);
            } else if now.since(held.read_at) >= PARK_AFTER && held.parked_at.is_none() {
                self.park_lane(origin, effects);
            }
        }
    }

    /// How many more records may be read.
    pub fn room(&self) -> u32 {
        if !matches!(self.phase, Phase::Serving) {
            return 0;
        }
        if planted!(UnboundedWindow) {
            return u32::MAX;
        }
        let unfinished = self.held.len().saturating_sub(self.parked);
        // Measured from what is committed: a successor looks for suspects no further than that.
        let span = MAX_SPAN.saturating_sub(self.position.distance_from(self.committed_base));
        u32::try_from(MAX_UNFINISHED.saturating_sub(unfinished).min(usize::try_from(span).unwrap_or(usize::MAX))).unwrap_or(0)
    }

    /// When the next timer runs out.
    pub fn next_timer(&self, now: Moment) -> Option<Moment> {
        let drain = match self.phase {
            Phase::Draining { until } => Some(until),
            _ => None,
        };
        let waits = matches!(self.phase, Phase::Serving | Phase::Leaving | Phase::Draining { .. });
        let zombies = Some(self.takeover.not_before).filter(|at| *at > now && waits);
        let quiet = Some(self.takeover.quiet_at).filter(|at| *at > now && self.takeover.waiting > 0 && self.phase == Phase::Serving);
        let timers = self.timers.first().map(|(at, _)| *at).filter(|_| self.may_end());
        [timers, drain, zombies, quiet].into_iter().flatten().min()
    }
}

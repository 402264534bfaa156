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
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::call::{Body, Call, Digest, Outcome, Reason, ReplyAddress};
use bluebox_core::clock::Moment;
use bluebox_core::log::{Committed, Offset, Timestamp, TopicPartition};
use bytes::Bytes;

use super::frontier::{Frontier, MAX_SPAN, Mark, Suspects};
use super::recorded::{Known, Recorded};

/// Unfinished calls that a partition may hold at once; beyond, reading it pauses.
pub const MAX_UNFINISHED: usize = 1_024;

/// Parked calls that a partition may have at once; beyond, nothing is parked, the partition fills up and waits, and an alarm sounds.
pub const MAX_PARKED: usize = 4_096;

/// A call whose lane stands still for longer than this is parked.
pub const PARK_AFTER: Duration = Duration::from_secs(10);

/// How long the last commit of a handover is tried.
const HANDING_LIMIT: Duration = Duration::from_secs(5);

/// The longest `Retry-After` of an app that is honoured.
pub const MAX_NOT_NOW: Duration = Duration::from_secs(60);

/// The rules that a partition goes by. See [`crate::config::Inbound`] for what they mean.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Attempts that may fail.
    pub max_attempts: u32,
    /// Solo deliveries that may end in a crash.
    pub max_crashes: u32,
    /// The pause before the second attempt.
    pub first_backoff: Duration,
    /// The longest pause between attempts.
    pub max_backoff: Duration,
    /// How long deliveries may take to end on a handover.
    pub drain: Duration,
    /// How long after a commit a delivery may be started.
    pub lease: Duration,
}

/// Something to be done by who drives the partition. Each has an answer: the method named with it.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Append a fence record; then [`Partition::fenced`].
    Fence,
    /// Append a fence to the parked partition, and read that to the fence; then [`Partition::parked_loaded`].
    LoadParked {
        /// Read from here.
        from: Offset,
        /// Entries of an older epoch are void, unless they come before a fence that is read.
        void_below: Offset,
    },
    /// Begin to read at this offset.
    Start(Offset),
    /// Look for the outcomes of these in the reply partitions that they name, from the positions that they name to an end taken now; then
    /// [`Partition::searched`].
    Search(Vec<Suspect>),
    /// Stop this delivery at once; it has no answer.
    Cut(Offset),
    /// Make this end durable; then [`Partition::recorded`].
    Record(Ending),
    /// Append the call to the parked partition; then [`Partition::parked`].
    Park(Parking),
    /// The clean commit has been made (or can't be): give the partition up. The last effect there is.
    Release,
    /// Records are gone that had no outcome: this many offsets. An alarm.
    Lost(u64),
    /// A call was not delivered again, because its outcome was found.
    Suppressed(CallId),
    /// The parked limit is reached: an alarm.
    ParkedFull,
}

/// A call that a former owner may have started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Which.
    pub origin: Offset,
    /// Its id.
    pub id: CallId,
    /// Which life of it.
    pub replay: u32,
    /// Where its outcome would be.
    pub reply_to: ReplyAddress,
}

/// A delivery to be begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Which call of this partition.
    pub origin: Offset,
    /// The call, or where in the parked partition to read it.
    pub call: Payload,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// Whether a former delivery may have been cut off by a crash.
    pub may_have_started: bool,
    /// Whether it must be the only one in its box.
    pub solo: bool,
}

/// A call, or where it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// In memory.
    Here(Arc<Call>),
    /// In the parked partition at this offset.
    Parked(Offset),
}

/// How a call ends, to be made durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Which call of this partition.
    pub origin: Offset,
    /// Its id.
    pub id: CallId,
    /// Which life of it.
    pub replay: u32,
    /// Where the caller waits.
    pub reply_to: ReplyAddress,
    /// For a recorded call: what its entry in the index must say.
    pub index: Option<Digest>,
    /// Deliveries begun.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// With what.
    pub verdict: Verdict,
}

/// What a call ends with.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// This outcome.
    Outcome(Box<Outcome>),
    /// It becomes a dead letter, then a 502.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// What happened last.
        detail: String,
        /// The call.
        call: Payload,
    },
    /// The proxy refuses it or was asked to end it.
    Refused(Reason),
    /// It had ended before: the outcome lies there.
    Known {
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
    /// Its outcome was found by a search; only the index lacks it.
    Found {
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
}

/// A call to be moved aside.
#[derive(Debug, Clone, PartialEq)]
pub struct Parking {
    /// Which call of this partition.
    pub origin: Offset,
    /// The call, or where in the parked partition it is now.
    pub call: Payload,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Deliveries begun.
    pub attempts: u32,
    /// Whether a delivery may have been cut off by a crash.
    pub may_have_started: bool,
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq)]
pub enum DeliveryEnd {
    /// With an outcome: the app's answer, or what stands for an answer that can't be passed on.
    Answered(Box<Outcome>),
    /// The app said *not now* (503 with Retry-After): no attempt. Its answer, should the time be over.
    NotNow(Duration, Box<Outcome>),
    /// Nothing was begun: the lease had run out.
    NotBegun,
    /// The app was not there (connection refused): nothing was begun, and the box takes no more until it is.
    NotThere,
    /// It failed: reset, no answer in time, a status of `retry-on`, a body that could not be read.
    Failed(String),
}

/// A call as it is read.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its offset in the calls partition.
    pub origin: Offset,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How old it is at least, by the log's clock and never more than by the wall clock.
    pub age: Duration,
    /// The call.
    pub call: Arc<Call>,
}

/// A call as it is read from the parked partition.
#[derive(Debug, Clone)]
pub struct ParkedArrival {
    /// Its offset in the parked partition.
    pub at: Offset,
    /// Deliveries begun.
    pub attempts: u32,
    /// Whether a delivery may have been cut off by a crash.
    pub may_have_started: bool,
    /// The call itself.
    pub arrival: Arrival,
}

/// Which calls go one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lane {
    Key(Bytes),
    /// Retries of a recorded call are in one lane, so that the second finds the end of the first.
    Id(CallId),
}

/// A call without an end.
#[derive(Debug)]
struct Held {
    id: CallId,
    replay: u32,
    reply_to: ReplyAddress,
    recorded: Option<Digest>,
    lane: Option<Lane>,
    accepted: Timestamp,
    deadline: Moment,
    wait_ends: Option<Moment>,
    read_at: Moment,
    /// Its durable home besides the calls partition, once it is parked.
    parked_at: Option<Offset>,
    parking: bool,
    /// `None` for one that lives in the parked partition: read again when it is delivered.
    call: Option<Arc<Call>>,
    attempts: u32,
    not_now: bool,
    may_have_started: bool,
    solo: bool,
    /// Whether a former owner may have started it.
    suspect: bool,
    state: State,
}

impl Held {
    /// Bytes of its body in memory.
    fn bytes(&self) -> usize {
        match self.call.as_ref().map(|call| &call.request.body) {
            Some(Body::Inline(bytes)) => bytes.len(),
            _ => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A former owner may have started it; its outcome must be looked for first.
    Suspect,
    /// In its lane behind another, or for the index of recorded calls to be read.
    Blocked,
    /// In the queue of those that can be delivered.
    Ready,
    /// Its crash count is on its way into a commit.
    Announced,
    Delivering,
    Pausing(Moment),
    Recording,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fencing,
    Loading,
    Serving,
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
    searching: bool,
}

/// One partition in the hands of its owner.
#[derive(Debug)]
pub struct Partition {
    rules: Rules,
    phase: Phase,
    epoch: Offset,
    done: Frontier,
    parked_done: Frontier,
    /// Our fence in the parked partition, or the former owner's until that is there.
    parked_fence: Option<Offset>,
    /// Parked entries of an older epoch are void.
    void_below: Offset,
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
        // The committer's fence won't be read again if it lies below: then only its own entries, which come after it, count.
        let void_below = if parked.parked_fence.is_some_and(|fence| fence < parked.done.base()) { parked.epoch } else { Offset::default() };
        let unclean = mark.suspects == Suspects::Any && !virgin;
        effects.push(Effect::Fence);
        Self {
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
                searching: false,
            },
            unclean_owners: if unclean { mark.unclean_owners.saturating_add(1) } else { 0 },
            crashes: mark.crashes,
            former_attempts: mark.attempts,
            done: mark.done,
            parked_done: parked.done,
            parked_fence: parked.parked_fence,
            void_below,
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
        }
    }

    /// The fence is durable, at `epoch`.
    pub fn fenced(&mut self, epoch: Offset, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Fencing {
            return;
        }
        self.epoch = epoch;
        self.takeover.suspect_below = self.takeover.suspect_below.min(epoch);
        self.phase = Phase::Loading;
        effects.push(Effect::LoadParked { from: self.parked_done.base(), void_below: self.void_below });
    }

    /// The parked partition was read up to our own fence there: these are its calls, in its order, those that are done included and those that are void left out.
    pub fn parked_loaded(&mut self, now: Moment, entries: Vec<ParkedArrival>, fence: Offset, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Loading {
            return;
        }
        // What is no call (fences, void entries) needs no end.
        let mut at = self.parked_done.base();
        for entry in &entries {
            self.parked_done.mark_run(at, entry.at);
            at = at.max(entry.at.next());
        }
        self.parked_done.mark_run(at, fence.next());
        self.parked_fence = Some(fence);
        for entry in entries {
            if self.parked_done.is_done(entry.at) {
                continue;
            }
            // Parked twice (parked again, or by a zombie too): the later one counts.
            if let Some(earlier) = self.held.get(&entry.arrival.origin).and_then(|h| h.parked_at) {
                self.parked_done.mark(earlier);
                if let Some(held) = self.held.get_mut(&entry.arrival.origin) {
                    held.parked_at = Some(entry.at);
                    held.attempts = held.attempts.max(entry.attempts);
                }
                continue;
            }
            self.parked += 1;
            let origin = entry.arrival.origin;
            self.hold(now, entry.arrival, Some(entry.at), entry.attempts, entry.may_have_started);
            // It is taken from there, whatever the commit says of its first place.
            if origin >= self.done.base() {
                self.done.mark(origin);
            }
        }
        self.phase = Phase::Serving;
        effects.push(Effect::Start(self.position));
        self.search(now, effects);
    }

    /// The index of recorded calls has been read.
    pub fn index_loaded(&mut self) {
        self.index_ready = true;
        for origin in std::mem::take(&mut self.for_index) {
            self.unblock(origin);
        }
    }

    /// A call was read.
    pub fn arrived(&mut self, now: Moment, arrival: Arrival, effects: &mut Vec<Effect>) {
        let origin = arrival.origin;
        self.advance_to(origin, effects);
        self.position = origin.next();
        if !self.done.is_done(origin) && !self.held.contains_key(&origin) {
            self.hold(now, arrival, None, 0, false);
        }
        self.search(now, effects);
    }

    /// A fence was read: ours, or another's. `true`: a newer owner has taken over, and this one must drop the partition.
    #[must_use]
    pub fn fence_read(&mut self, now: Moment, at: Offset, effects: &mut Vec<Effect>) -> bool {
        self.skipped(now, at, effects);
        if at < self.epoch && self.takeover.virgin {
            // There were owners, but their commits are gone (the group's offsets expired): what lies before may have been started.
            for held in self.held.range_mut(..at).map(|(_, h)| h).filter(|h| h.state == State::Suspect) {
                held.may_have_started = true;
            }
        }
        at > self.epoch
    }

    /// A record without a call was read (a fence, or nothing that can be read).
    pub fn skipped(&mut self, now: Moment, at: Offset, effects: &mut Vec<Effect>) {
        self.advance_to(at, effects);
        self.position = at.next();
        self.done.mark(at);
        self.dirty += 1;
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
        let suspect = match &self.takeover.suspects {
            _ if parked_at.is_none() && origin >= self.takeover.suspect_below => false,
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
            may_have_started: may_have_started || (suspect && !self.takeover.virgin),
            solo: (suspect && self.unclean_owners >= 2) || crashed,
            call: if parked_at.is_none() { Some(call) } else { None },
            suspect,
            state: if suspect { State::Suspect } else { State::Blocked },
            lane,
        };
        self.held_bytes += held.bytes();
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
        if first.is_some_and(|first| *first != origin) {
            return;
        }
        if held.recorded.is_some() && !self.index_ready {
            self.for_index.push(origin);
            return;
        }
        held.state = State::Ready;
        self.ready.push_back(origin);
    }

    /// Sends out a search for suspects when reading can't bring more of them now.
    fn search(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Serving || self.takeover.searching {
            return;
        }
        let unread = match &self.takeover.suspects {
            Suspects::Any => self.position < self.takeover.suspect_below,
            Suspects::Only(these) => these.iter().any(|o| *o >= self.position),
        };
        if (unread && self.room() > 0) || now < self.takeover.not_before {
            return;
        }
        let suspects: Vec<_> = self
            .held
            .iter()
            .filter(|(_, h)| h.state == State::Suspect)
            .map(|(o, h)| Suspect { origin: *o, id: h.id, replay: h.replay, reply_to: h.reply_to.clone() })
            .collect();
        if !suspects.is_empty() {
            self.takeover.searching = true;
            effects.push(Effect::Search(suspects));
        } else if !unread && self.unclean_owners > 0 && !self.has_suspects() {
            // All that the former owners left has ended: the next crash is the first again.
            self.unclean_owners = 0;
            self.dirty += 1;
        }
    }

    /// The search has ended: of `looked_for`, these have an outcome, there.
    pub fn searched(&mut self, now: Moment, looked_for: &[Suspect], found: &HashMap<Offset, (TopicPartition, Offset)>, effects: &mut Vec<Effect>) {
        self.takeover.searching = false;
        for origin in looked_for.iter().map(|s| s.origin) {
            let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Suspect) else { continue };
            if let Some((partition, offset)) = found.get(&origin) {
                effects.push(Effect::Suppressed(held.id));
                if held.recorded.is_some() {
                    let verdict = Verdict::Found { partition: partition.clone(), offset: *offset };
                    self.record(origin, verdict, effects);
                } else {
                    self.finish(origin);
                }
            } else {
                held.state = State::Blocked;
                self.unblock(origin);
            }
        }
        self.search(now, effects);
    }

    /// Whether suspects are still waiting for a verdict.
    fn has_suspects(&self) -> bool {
        self.held.values().any(|h| h.suspect)
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
            if now >= held.deadline {
                self.give_up(origin, Reason::Deadline, "the deadline passed", effects);
                continue;
            }
            if held.solo {
                let crashes = self.crashes.entry(origin).or_insert(0);
                if *crashes >= self.rules.max_crashes {
                    let detail = format!("the box died {crashes} times while this was the only call under way");
                    self.give_up(origin, Reason::Poison, &detail, effects);
                    continue;
                }
                // Counted before it is known how it ends, and committed before it begins.
                *crashes += 1;
                held.state = State::Announced;
                self.dirty += 1;
            } else {
                held.state = State::Delivering;
            }
            held.attempts += 1;
            let call = match (&held.call, held.parked_at) {
                (Some(call), _) => Payload::Here(Arc::clone(call)),
                (None, Some(at)) => Payload::Parked(at),
                // A held call is in memory or parked.
                (None, None) => continue,
            };
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

    /// The commit with the crash count of this solo delivery is made: it begins.
    pub fn announced(&mut self, origin: Offset) {
        if let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Announced) {
            held.state = State::Delivering;
        }
    }

    /// A delivery has ended. `jitter` is a random number from 0 to 1.
    pub fn delivery_ended(&mut self, now: Moment, origin: Offset, end: DeliveryEnd, jitter: f64, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Delivering) else { return };
        if held.solo {
            // It lived through it: no crash.
            uncount(&mut self.crashes, origin);
            self.dirty += 1;
        }
        match end {
            DeliveryEnd::Answered(outcome) => self.record(origin, Verdict::Outcome(outcome), effects),
            DeliveryEnd::NotNow(pause, outcome) => {
                held.attempts -= 1;
                held.not_now = true;
                let again = now + pause.min(MAX_NOT_NOW);
                if again >= held.deadline || held.wait_ends.is_some_and(|end| again >= end) {
                    self.record(origin, Verdict::Outcome(outcome), effects);
                } else {
                    self.pause(now, origin, again);
                }
            }
            DeliveryEnd::NotBegun | DeliveryEnd::NotThere => {
                held.attempts -= 1;
                held.state = State::Ready;
                self.ready.push_front(origin);
            }
            DeliveryEnd::Failed(detail) => {
                held.may_have_started = true;
                if held.attempts >= self.rules.max_attempts {
                    self.give_up(origin, Reason::Attempts, &detail, effects);
                } else {
                    let doubled = self.rules.first_backoff.saturating_mul(1 << held.attempts.saturating_sub(1).min(20));
                    let pause = doubled.min(self.rules.max_backoff).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
                    self.pause(now, origin, now + pause);
                }
            }
        }
    }

    fn pause(&mut self, now: Moment, origin: Offset, until: Moment) {
        if let Some(held) = self.held.get_mut(&origin) {
            held.state = State::Pausing(until);
            self.timers.insert((until, origin));
            self.timers.insert((now.max(held.read_at + PARK_AFTER), origin));
        }
    }

    fn give_up(&mut self, origin: Offset, reason: Reason, detail: &str, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get(&origin) else { return };
        let call = match (&held.call, held.parked_at) {
            (Some(call), _) => Payload::Here(Arc::clone(call)),
            (None, Some(at)) => Payload::Parked(at),
            (None, None) => return,
        };
        self.record(origin, Verdict::DeadLetter { reason, detail: detail.to_owned(), call }, effects);
    }

    fn record(&mut self, origin: Offset, verdict: Verdict, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(&origin) else { return };
        held.state = State::Recording;
        let index = match verdict {
            Verdict::Known { .. } | Verdict::Refused(Reason::KeyReused | Reason::RecordedFull) => None,
            _ => held.recorded,
        };
        effects.push(Effect::Record(Ending {
            origin,
            id: held.id,
            replay: held.replay,
            reply_to: held.reply_to.clone(),
            index,
            attempts: held.attempts,
            accepted: held.accepted,
            verdict,
        }));
    }

    /// The end of a call is durable.
    pub fn recorded(&mut self, origin: Offset) {
        if self.held.get(&origin).is_some_and(|h| h.state == State::Recording) {
            self.finish(origin);
        }
    }

    fn finish(&mut self, origin: Offset) {
        let Some(held) = self.held.remove(&origin) else { return };
        self.held_bytes -= held.bytes();
        if let Some(at) = held.parked_at {
            self.parked_done.mark(at);
            self.parked -= 1;
            self.parked_full = false;
        }
        // One that is being parked is marked as parked when it is, so that it isn't found again there.
        if origin >= self.done.base() {
            self.done.mark(origin);
        }
        self.crashes.remove(&origin);
        self.former_attempts.remove(&origin);
        self.dirty += 1;
        let Some(lane) = held.lane else { return };
        let Some(queue) = self.in_lane.get_mut(&lane) else { return };
        queue.retain(|o| *o != origin);
        match queue.front().copied() {
            Some(next) => self.unblock(next),
            None => {
                self.in_lane.remove(&lane);
            }
        }
    }

    /// The parked copy is durable at `at`.
    pub fn parked(&mut self, origin: Offset, at: Offset) {
        self.parking -= 1;
        let Some(held) = self.held.get_mut(&origin) else {
            // It ended meanwhile.
            self.parked_done.mark(at);
            self.dirty += 1;
            return;
        };
        held.parking = false;
        match held.parked_at.replace(at) {
            Some(earlier) => self.parked_done.mark(earlier),
            None => self.parked += 1,
        }
        self.held_bytes -= held.bytes();
        held.call = None;
        if origin >= self.done.base() {
            self.done.mark(origin);
        }
        self.dirty += 1;
    }

    /// The parked copy could not be made; it is tried again later.
    pub fn not_parked(&mut self, now: Moment, origin: Offset) {
        self.parking -= 1;
        if let Some(held) = self.held.get_mut(&origin) {
            held.parking = false;
            self.timers.insert((now + PARK_AFTER, origin));
        }
    }

    fn park(&mut self, origin: Offset, effects: &mut Vec<Effect>) {
        if self.parked >= MAX_PARKED {
            if !std::mem::replace(&mut self.parked_full, true) {
                effects.push(Effect::ParkedFull);
            }
            return;
        }
        let Some(held) = self.held.get_mut(&origin).filter(|h| !h.parking && h.state != State::Recording) else { return };
        let call = match (&held.call, held.parked_at) {
            (Some(call), _) => Payload::Here(Arc::clone(call)),
            (None, Some(at)) => Payload::Parked(at),
            (None, None) => return,
        };
        held.parking = true;
        self.parking += 1;
        let may_have_started = held.may_have_started || held.attempts > 0;
        effects.push(Effect::Park(Parking { origin, call, accepted: held.accepted, attempts: held.attempts, may_have_started }));
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while let Some(&(at, origin)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, origin));
            self.timer(now, origin, effects);
        }
        self.search(now, effects);
        self.park_what_pins(effects);
        if let Phase::Draining { until } = self.phase {
            self.drain(now, now >= until, effects);
        }
    }

    fn timer(&mut self, now: Moment, origin: Offset, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(&origin) else { return };
        let waits = matches!(held.state, State::Blocked | State::Ready | State::Pausing(_));
        if waits && now >= held.deadline {
            self.give_up(origin, Reason::Deadline, "the deadline passed", effects);
            return;
        }
        if let State::Pausing(until) = held.state {
            if now >= until {
                held.state = State::Ready;
                self.ready.push_back(origin);
            } else if now.since(held.read_at) >= PARK_AFTER && held.parked_at.is_none() {
                self.park_lane(origin, effects);
            }
        }
    }

    /// Parks a call whose lane stands still, and those behind it.
    fn park_lane(&mut self, head: Offset, effects: &mut Vec<Effect>) {
        let lane = self.held.get(&head).and_then(|h| h.lane.clone());
        let behind = lane.and_then(|lane| self.in_lane.get(&lane)).map(|queue| queue.iter().copied().collect()).unwrap_or_else(|| vec![head]);
        for origin in behind {
            if self.held.get(&origin).is_some_and(|h| h.parked_at.is_none() && !h.parking) {
                self.park(origin, effects);
            }
        }
    }

    /// Parks the calls that hold the frontier down while others go on, in either partition.
    fn park_what_pins(&mut self, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Serving {
            return;
        }
        let full = self.held.len().saturating_sub(self.parked) >= MAX_UNFINISHED;
        if self.done.span() >= MAX_SPAN / 4 * 3 || (full && !self.has_ready()) {
            let lowest: Vec<_> =
                self.held.iter().filter(|(_, h)| h.parked_at.is_none() && !h.parking && h.state != State::Suspect).map(|(o, _)| *o).take(64).collect();
            for origin in lowest {
                self.park(origin, effects);
            }
        }
        if self.parked_done.span() >= MAX_SPAN / 4 * 3 && self.parking == 0 {
            // Entries between ours that no held call lives in are a zombie's: void.
            let ours: BTreeSet<_> = self.held.values().filter_map(|h| h.parked_at).collect();
            let mut at = self.parked_done.base();
            for next in ours {
                self.parked_done.mark_run(at, next);
                at = next.next();
            }
            let pin = self.held.iter().filter(|(_, h)| !h.parking).min_by_key(|(_, h)| h.parked_at.unwrap_or(Offset::new(u64::MAX))).map(|(o, _)| *o);
            if let Some(origin) = pin {
                self.park(origin, effects);
            }
        }
    }

    /// The partition shall go to another, or the box stops: no new deliveries; those under way may end within the drain.
    pub fn revoke(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Fencing | Phase::Loading => {
                // Nothing was begun: what the former owner left stays as it is, without a commit of ours.
                self.phase = Phase::Gone;
                effects.push(Effect::Release);
            }
            Phase::Serving => {
                self.phase = Phase::Draining { until: now + self.rules.drain };
                self.drain(now, false, effects);
            }
            Phase::Draining { .. } | Phase::Handing { .. } | Phase::Gone => {}
        }
    }

    fn drain(&mut self, now: Moment, over: bool, effects: &mut Vec<Effect>) {
        let busy: Vec<_> = self
            .held
            .iter()
            .filter(|(_, h)| h.parking || matches!(h.state, State::Delivering | State::Recording | State::Announced))
            .map(|(o, h)| (*o, h.state))
            .collect();
        if !busy.is_empty() && !over {
            return;
        }
        for (origin, state) in busy {
            if state == State::Delivering {
                effects.push(Effect::Cut(origin));
            }
            if matches!(state, State::Delivering | State::Announced) {
                // Cut off by us: no crash.
                uncount(&mut self.crashes, origin);
            }
            self.cut_off.push(origin);
        }
        self.phase = Phase::Handing { since: now };
        self.dirty += 1;
    }

    /// Whether only the last commit is missing before it can be released.
    pub fn is_handing(&self) -> bool {
        matches!(self.phase, Phase::Handing { .. })
    }

    /// Whether there are marks that no commit has.
    pub fn dirty(&self) -> u32 {
        self.dirty
    }

    /// Whether there are calls that are not done.
    pub fn has_work(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether a commit of this owner has succeeded: only then can a delivery begin, so that its successor knows of it.
    pub fn has_committed(&self) -> bool {
        self.committed
    }

    /// Whether it may take part in a commit: not before what the former owner left has been read.
    pub fn can_commit(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining { .. } | Phase::Handing { .. })
    }

    /// What to commit now, for the calls and for the parked partition.
    pub fn mark(&mut self) -> (Committed, Committed) {
        self.dirty = 0;
        let suspects = if self.is_handing() {
            let mut suspects = self.cut_off.clone();
            // What was not cleared up is handed on as it was found.
            suspects.extend(self.held.iter().filter(|(_, h)| h.state == State::Suspect || h.may_have_started).map(|(o, _)| *o));
            suspects.sort_unstable();
            suspects.dedup();
            let unread = self.takeover.suspects == Suspects::Any && self.position < self.takeover.suspect_below;
            if unread { Suspects::Any } else { Suspects::Only(suspects) }
        } else {
            Suspects::Any
        };
        let attempts = self.held.iter().filter(|(_, h)| h.attempts > 0).map(|(o, h)| (*o, h.attempts)).collect();
        let calls = Mark {
            done: self.done.clone(),
            epoch: self.epoch,
            parked_fence: None,
            suspects,
            unclean_owners: self.unclean_owners,
            crashes: self.crashes.iter().filter(|(_, n)| **n > 0).map(|(o, n)| (*o, *n)).collect(),
            attempts,
        };
        let parked = Mark { done: self.parked_done.clone(), epoch: self.epoch, parked_fence: self.parked_fence, suspects: Suspects::Any, ..Mark::default() };
        (calls.encode(), parked.encode())
    }

    /// The commit that [`Self::mark`] gave has succeeded.
    pub fn mark_committed(&mut self, base: Offset, handing: bool, effects: &mut Vec<Effect>) {
        self.committed = true;
        self.committed_base = self.committed_base.max(base);
        if handing && self.is_handing() {
            self.phase = Phase::Gone;
            effects.push(Effect::Release);
        }
    }

    /// The commit that [`Self::mark`] gave has failed.
    pub fn mark_failed(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.dirty += 1;
        if let Phase::Handing { since } = self.phase
            && now.since(since) >= HANDING_LIMIT
        {
            // The next owner finds our last commit, and has to search.
            self.phase = Phase::Gone;
            effects.push(Effect::Release);
        }
    }

    /// The partition was taken away: nothing more is committed, deliveries under way are cut off.
    pub fn lost(&mut self, effects: &mut Vec<Effect>) {
        effects.extend(self.held.iter().filter(|(_, h)| h.state == State::Delivering).map(|(o, _)| Effect::Cut(*o)));
        self.phase = Phase::Gone;
    }

    /// How many more records may be read.
    pub fn room(&self) -> u32 {
        if !matches!(self.phase, Phase::Serving) {
            return 0;
        }
        let unfinished = self.held.len().saturating_sub(self.parked);
        // Measured from what is committed: a successor looks for suspects no further than that.
        let span = MAX_SPAN.saturating_sub(self.position.distance_from(self.committed_base));
        u32::try_from(MAX_UNFINISHED.saturating_sub(unfinished).min(usize::try_from(span).unwrap_or(usize::MAX))).unwrap_or(0)
    }

    /// What this owner knows of a call: deliveries begun, if it is held.
    pub fn attempts_of(&self, origin: Offset, id: &CallId) -> Option<u32> {
        self.held.get(&origin).filter(|h| h.id == *id).map(|h| h.attempts)
    }

    /// Whether this offset has not been read yet, because others are in front of it.
    pub fn is_unread(&self, offset: Offset) -> bool {
        offset >= self.position
    }

    /// Ends a call that has not been answered; one that is under way is cut off. `false`: there is none, or it is ending already.
    pub fn cancel(&mut self, origin: Offset, id: &CallId, effects: &mut Vec<Effect>) -> bool {
        let Some(held) = self.held.get(&origin).filter(|h| h.id == *id) else { return false };
        match held.state {
            State::Recording | State::Suspect | State::Announced => return false,
            State::Delivering => effects.push(Effect::Cut(origin)),
            State::Blocked | State::Ready | State::Pausing(_) => {}
        }
        self.record(origin, Verdict::Refused(Reason::Cancelled), effects);
        true
    }

    /// When the next timer runs out.
    pub fn next_timer(&self, now: Moment) -> Option<Moment> {
        let drain = match self.phase {
            Phase::Draining { until } => Some(until),
            _ => None,
        };
        let search = Some(self.takeover.not_before).filter(|at| *at > now && self.phase == Phase::Serving);
        [self.timers.first().map(|(at, _)| *at), drain, search].into_iter().flatten().min()
    }

    /// The epoch: the offset of this owner's fence.
    pub fn epoch(&self) -> Offset {
        self.epoch
    }

    /// Bytes of the bodies that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// How many calls have no end yet.
    pub fn held_calls(&self) -> usize {
        self.held.len()
    }

    /// When the oldest call that is held was accepted.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.held.values().map(|h| h.accepted).min()
    }

    /// How many calls are parked.
    pub fn parked_calls(&self) -> usize {
        self.parked
    }
}

fn uncount(crashes: &mut BTreeMap<Offset, u32>, origin: Offset) {
    if let Some(n) = crashes.get_mut(&origin) {
        *n = n.saturating_sub(1);
        if *n == 0 {
            crashes.remove(&origin);
        }
    }
}

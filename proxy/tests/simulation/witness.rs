//! Sees everything, and says when a promise is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::CallId;
use bluebox_core::call::{Body, Call, Digest, Outcome, Reason, ReplyAddress, Source};
use bluebox_core::log::{Committed, Offset};
use bluebox_core::wire::Reply;
use bluebox_proxy::inbound::frontier::{MAX_METADATA_BYTES, MAX_SPAN, Mark};
use bluebox_proxy::inbound::owner::Owner;
use bluebox_proxy::inbound::partition::{Delivery, MAX_PARKED, MAX_UNFINISHED, Suspect};

use bytes::Bytes;

use crate::log::{Place, Value};
use crate::scenario::{Kind, MS, Manner, Scenario, Time};
use crate::world::Life;

/// A call that was accepted.
pub(crate) struct Accepted {
    pub at: Time,
    pub call: Arc<Call>,
    pub manner: Manner,
    /// Every record that ended it.
    pub ends: Vec<End>,
    /// Deliveries that were begun.
    pub begun: u32,
    /// Its caller has cancelled it.
    cancelled: bool,
    /// The newest owner that has begun to deliver it: from then on no older one may begin.
    newest: Offset,
    /// When, and in which tenure, a delivery of it was last begun.
    last_begun: Option<(Time, u64)>,
    /// When each tenure looked for its outcome. If that one delivers it, no older one may have begun after that: its outcome would have been overlooked.
    searched: BTreeMap<u64, Time>,
    failed: u32,
    not_now: u32,
}

/// What a reply says.
fn how(reply: &Reply) -> How {
    match reply {
        Reply::Outcome(outcome) => match outcome.source {
            Source::App => How::App,
            Source::Proxy(reason) => How::Proxy(reason),
        },
        _ => How::Known,
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub at: Time,
    pub tenure: u64,
    /// Whose end it is: its own, or that of a retry.
    pub of: Offset,
    pub how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    App,
    Proxy(Reason),
    /// It had ended before.
    Known,
}

struct Tenure {
    number: u32,
    /// Whose: which box, and which process of it.
    life: Life,
    /// When its fence came to lie in the log, and where. If there are several, the last one before the owner knew of it: that one is its epoch.
    fence: Option<(Time, Offset)>,
    /// Its owner knows its epoch.
    serves: bool,
    released: bool,
    /// The newest attempt of each call.
    attempts: BTreeMap<Offset, u32>,
}

#[derive(Clone)]
pub(crate) struct UnderWay {
    pub index: usize,
    pub number: u32,
    pub origin: Offset,
    pub tenure: u64,
    pub attempt: u32,
    pub id: CallId,
    pub digest: Option<Digest>,
    solo: bool,
}

/// What was seen, for the report.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub deliveries: u64,
    pub redeliveries: u64,
    /// Deliveries of calls whose outcome a former owner recorded after this one had taken over, or that it still had under way.
    pub zombie_overlaps: u64,
    pub parked: u64,
    pub dead_letters: u64,
    pub poisoned: u64,
    pub known: u64,
    /// Partitions that were taken from a box that lived.
    pub lost: u64,
}

pub(crate) struct Witness {
    scenario: Scenario,
    pub calls: BTreeMap<(u32, Offset), Accepted>,
    tenures: BTreeMap<u64, Tenure>,
    under_way: BTreeMap<u64, UnderWay>,
    /// Ends that a living box is making durable, whatever became of the tenures that they began in.
    recording: BTreeSet<(usize, u32, Offset)>,
    /// For each recorded call: the first that came with its id.
    first: BTreeMap<CallId, Digest>,
    /// All calls with an id.
    retries: BTreeMap<CallId, Vec<(u32, Offset)>>,
    /// All calls with an ordering key, and their partitions.
    lanes: BTreeMap<(u32, Bytes), Vec<Offset>>,
    pub seen: Seen,
    pub broken: Option<String>,
    /// Nothing may be delivered any more.
    pub all_over: bool,
}

impl Witness {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            scenario: scenario.clone(),
            calls: BTreeMap::new(),
            tenures: BTreeMap::new(),
            under_way: BTreeMap::new(),
            recording: BTreeSet::new(),
            first: BTreeMap::new(),
            retries: BTreeMap::new(),
            lanes: BTreeMap::new(),
            seen: Seen::default(),
            broken: None,
            all_over: false,
        }
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(crate) fn accepted(&mut self, at: Time, number: u32, offset: Offset, call: Arc<Call>, manner: Manner) {
        if let Some(digest) = call.recorded {
            self.first.entry(call.id).or_insert(digest);
            self.retries.entry(call.id).or_default().push((number, offset));
        }
        if let Some(key) = &call.ordering_key {
            self.lanes.entry((number, key.clone())).or_default().push(offset);
            if let Some((other, _)) = self.lanes.keys().find(|(other, of)| of == key && *other != number) {
                let what = format!("calls of lane {key:?} lie in partitions {other} and {number}");
                self.fail(what);
            }
        }
        self.calls.insert(
            (number, offset),
            Accepted {
                at,
                call,
                manner,
                ends: Vec::new(),
                begun: 0,
                cancelled: false,
                newest: Offset::default(),
                last_begun: None,
                searched: BTreeMap::new(),
                failed: 0,
                not_now: 0,
            },
        );
    }

    pub(crate) fn cancelled(&mut self, number: u32, offset: Offset) {
        if let Some(call) = self.calls.get_mut(&(number, offset)) {
            call.cancelled = true;
        }
    }

    /// What identifies the call in its app's answer.
    pub(crate) fn target(&self, number: u32, offset: Offset) -> String {
        self.calls.get(&(number, offset)).map(|c| c.call.request.target.clone()).unwrap_or_default()
    }

    /// A caller takes this for the outcome of its call.
    pub(crate) fn is_told(&mut self, call: &Call, answer: &Outcome) {
        let target = &call.request.target;
        if (answer.id, answer.digest) != (call.id, call.recorded) {
            return self.fail(format!("the caller of {target} was told of another call: {answer:?}"));
        }
        let Body::Inline(of) = &answer.response.body else { return };
        let of = String::from_utf8_lossy(of).into_owned();
        let same = |other: &Accepted| other.call.request.target == of && other.call.id == call.id && other.call.recorded == call.recorded;
        let right = of.is_empty()
            || of == *target
            || (call.recorded.is_some() && self.retries.get(&call.id).into_iter().flatten().any(|at| self.calls.get(at).is_some_and(same)));
        if !right {
            self.fail(format!("the caller of {target} was given the answer to {of}"));
        }
    }

    // Tenures.

    pub(crate) fn assigned(&mut self, tenure: u64, number: u32, life: Life) {
        self.tenures.insert(tenure, Tenure { number, life, fence: None, serves: false, released: false, attempts: BTreeMap::new() });
    }

    /// Its owner knows that its fence is there.
    pub(crate) fn fenced(&mut self, tenure: u64) {
        if let Some(tenure) = self.tenures.get_mut(&tenure) {
            tenure.serves = true;
        }
    }

    pub(crate) fn released(&mut self, tenure: u64) {
        if let Some(tenure) = self.tenures.get_mut(&tenure) {
            tenure.released = true;
        }
    }

    /// An owner looks for the outcomes of these.
    pub(crate) fn looks_for(&mut self, now: Time, tenure: u64, suspects: &[Suspect]) {
        let Some(number) = self.tenures.get(&tenure).map(|t| t.number) else { return };
        for suspect in suspects {
            if let Some(call) = self.calls.get_mut(&(number, suspect.origin)) {
                call.searched.insert(tenure, now);
            }
        }
    }

    /// A box begins to make the end of a call durable.
    pub(crate) fn records(&mut self, index: usize, number: u32, origin: Offset) {
        if !self.recording.insert((index, number, origin)) {
            self.fail(format!("box {index} ends {number}/{origin} while it is still making an end of it durable"));
        }
    }

    /// That is done.
    pub(crate) fn recorded(&mut self, index: usize, number: u32, origin: Offset) {
        self.recording.remove(&(index, number, origin));
    }

    // What comes to lie in the log.

    pub(crate) fn landed(&mut self, now: Time, tenure: u64, to: Place, offset: Offset, value: &Value, ends: Option<(u32, Offset)>) {
        match (to, value) {
            (Place::Calls(_), Value::Fence(_)) => {
                if let Some(tenure) = self.tenures.get_mut(&tenure).filter(|tenure| !tenure.serves) {
                    tenure.fence = Some((now, offset));
                }
            }
            (Place::Parked(_), Value::Parked(_)) => self.seen.parked += 1,
            (Place::Dead(number), Value::Dead(letter)) => self.died_letter(now, number, letter),
            (Place::Replies(_), Value::Reply(reply)) => {
                let Some((_, of)) = ends else { return };
                let Some(call) = ends.and_then(|at| self.calls.get_mut(&at)) else { return };
                if call.call.recorded.is_none() {
                    return call.ends.push(End { at: now, tenure, of, how: how(reply) });
                }
                self.seen.known += u64::from(how(reply) == How::Known);
                // It is read by all that wait for the same.
                let id = call.call.id;
                for call in self.retries.get(&id).cloned().unwrap_or_default() {
                    self.read_by_retries(now, (tenure, of), to, offset, reply, call);
                }
            }
            _ => {}
        }
    }

    /// Ends a recorded call, if its caller takes this for its outcome.
    pub(crate) fn read_by_retries(&mut self, now: Time, (tenure, of): (u64, Offset), from: Place, offset: Offset, reply: &Reply, call: (u32, Offset)) {
        let key = match reply {
            Reply::Outcome(outcome) => (outcome.id, outcome.digest),
            Reply::At { id, digest, .. } => (*id, Some(*digest)),
            Reply::Status { .. } => return,
        };
        let Some(call) = self.calls.get_mut(&call).filter(|c| c.call.recorded.is_some()) else { return };
        let ReplyAddress { partition, position } = &call.call.reply_to;
        if (call.call.id, call.call.recorded) == key && from == Place::Replies(partition.partition) && offset >= *position {
            call.ends.push(End { at: now, tenure, of, how: how(reply) });
        }
    }

    fn died_letter(&mut self, now: Time, number: u32, letter: &bluebox_core::wire::DeadLetter) {
        self.seen.dead_letters += 1;
        let Some(call) = self.calls.get(&(number, letter.origin)) else { return self.fail("a dead letter of no call".to_owned()) };
        let target = &call.call.request.target;
        let broken = match letter.reason {
            // The log's clock has milliseconds.
            Reason::Deadline if now / MS < call.at / MS + call.call.ttl.as_millis() as Time => Some("before its deadline"),
            Reason::Attempts if letter.attempts < self.scenario.max_attempts => Some("before its last attempt"),
            Reason::Attempts if !matches!(call.manner, Manner::Fails(_)) => Some("though it never failed"),
            // A box that was taken for dead while it was the only call under way has died of it, as far as its successor can know.
            Reason::Poison => {
                self.seen.poisoned += 1;
                (!matches!(call.manner, Manner::Poison(_)) && !self.boxes_seemed_to_die()).then_some("for a poison, which it isn't")
            }
            _ => None,
        };
        if let Some(broken) = broken {
            let text = format!("call {target} at {number}/{} became a dead letter ({:?}) {broken}", letter.origin, letter.reason);
            self.fail(text);
        }
    }

    pub(crate) fn commits(&mut self, marks: &[(u32, Committed, Committed)]) {
        for (number, calls, parked) in marks {
            for (what, committed) in [("calls", calls), ("parked", parked)] {
                if committed.metadata.len() > MAX_METADATA_BYTES {
                    self.fail(format!("the commit for the {what} of {number} has {} bytes of metadata", committed.metadata.len()));
                }
                match Mark::decode(committed) {
                    Ok(mark) if mark.done.span() > MAX_SPAN + 512 => {
                        self.fail(format!("the {what} of {number} have {} offsets above the frontier", mark.done.span()))
                    }
                    Ok(_) => {}
                    Err(e) => self.fail(format!("the commit for the {what} of {number}: {e}")),
                }
            }
        }
    }

    pub(crate) fn bounds(&mut self, index: usize, owner: Option<&Owner>) {
        let Some(owner) = owner else { return };
        for (number, partition) in owner.partitions() {
            let unparked = partition.held_calls() - partition.parked_calls();
            if unparked > MAX_UNFINISHED || partition.parked_calls() > MAX_PARKED + MAX_UNFINISHED {
                self.fail(format!("box {index} holds {unparked} calls of {number}, and {} parked ones", partition.parked_calls()));
            }
        }
        if owner.under_way() > self.scenario.concurrency {
            self.fail(format!("box {index} has {} deliveries under way", owner.under_way()));
        }
    }

    /// A box that is taken for dead counts as one that died: it can't say any more that it lives.
    fn boxes_seemed_to_die(&self) -> bool {
        self.scenario.kills > 0 || self.seen.lost > 0
    }

    // Deliveries.

    /// A delivery reaches the app.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn begins(&mut self, now: Time, index: usize, number: u32, tenure: u64, delivery_number: u64, delivery: &Delivery, lease: bool) -> Manner {
        let origin = delivery.origin;
        self.seen.deliveries += 1;
        if let Some(broken) = self.breaks(now, index, number, tenure, delivery, lease) {
            let target = self.calls.get(&(number, origin)).map(|c| c.call.request.target.clone()).unwrap_or_default();
            self.fail(format!("delivery {delivery_number} of call {target} at {number}/{origin} by box {index}, tenure {tenure}: {broken}"));
        }
        let Some(call) = self.calls.get_mut(&(number, origin)) else { return Manner::Answers(MS) };
        call.begun += 1;
        call.last_begun = Some((now, tenure));
        if call.begun > 1 {
            self.seen.redeliveries += 1;
        }
        if let Some(tenure) = self.tenures.get_mut(&tenure) {
            call.newest = call.newest.max(tenure.fence.map_or(call.newest, |(_, epoch)| epoch));
            tenure.attempts.insert(origin, delivery.attempt);
        }
        let under_way =
            UnderWay { index, number, origin, tenure, attempt: delivery.attempt, id: call.call.id, digest: call.call.recorded, solo: delivery.solo };
        self.under_way.insert(delivery_number, under_way);
        let call = &self.calls[&(number, origin)];
        match call.manner {
            Manner::Fails(times) if call.failed >= times => Manner::Answers(MS),
            Manner::NotNow(times, _) if call.not_now >= times => Manner::Answers(MS),
            manner => manner,
        }
    }

    fn breaks(&mut self, now: Time, index: usize, number: u32, tenure: u64, delivery: &Delivery, lease: bool) -> Option<String> {
        let origin = delivery.origin;
        let Some(call) = self.calls.get(&(number, origin)) else { return Some("there is no such call".to_owned()) };
        let Some(by) = self.tenures.get(&tenure) else { return Some("nobody was assigned its partition".to_owned()) };
        let Some((fenced, epoch)) = by.fence else { return Some("its owner has no fence".to_owned()) };
        if !lease {
            return Some("the lease has run out".to_owned());
        }
        if call.newest > epoch {
            return Some(format!("a newer owner, with its fence at {}, has begun with it", call.newest));
        }
        if let (Some(searched), Some((at, other))) = (call.searched.get(&tenure), call.last_begun)
            && at > *searched
            && other != tenure
        {
            return Some(format!(
                "tenure {other} began with it at {:.6}, after this one had looked for its outcome at {:.6}",
                at as f64 / 1e6,
                *searched as f64 / 1e6
            ));
        }
        if self.all_over {
            return Some("everything had ended and been committed".to_owned());
        }
        if delivery.call == bluebox_proxy::inbound::partition::Payload::Parked(Offset::new(u64::MAX)) {
            return Some("it is nowhere".to_owned());
        }
        if self.recording.contains(&(index, number, origin)) {
            return Some("this box itself is making an end of it durable".to_owned());
        }
        // The id of a recorded call ends once.
        let same_id = |a: &Accepted| call.call.recorded.is_some() && a.call.id == call.call.id;
        let executed = |how: How| !matches!(how, How::Known | How::Proxy(Reason::KeyReused | Reason::RecordedFull));
        let itself_only = vec![(number, origin)];
        let retries = self.retries.get(&call.call.id).filter(|_| call.call.recorded.is_some()).unwrap_or(&itself_only);
        for (n, o) in retries {
            let Some(other) = self.calls.get(&(*n, *o)) else { continue };
            let itself = (*n, *o) == (number, origin);
            // A refusal is the end of the call that was refused; its other retries go on, under the same key.
            for end in other
                .ends
                .iter()
                .filter(|end| (itself && end.of == origin || executed(end.how)) && (end.of <= origin || matches!(end.how, How::App | How::Known)))
            {
                if end.tenure == tenure {
                    return Some(format!("the same owner had ended {n}/{o} ({:?}) at {:.6}", end.how, end.at as f64 / 1e6));
                }
                // Of what another box does late nobody can know; of what it does itself a box must.
                if self.tenures.get(&end.tenure).is_some_and(|of| of.life == by.life) {
                    return Some(format!("this box itself had ended {n}/{o} ({:?}, tenure {}) at {:.6}", end.how, end.tenure, end.at as f64 / 1e6));
                }
                if end.at < fenced {
                    return Some(format!(
                        "{n}/{o} had ended ({:?}, tenure {}) at {:.6}, before this owner took over",
                        end.how,
                        end.tenure,
                        end.at as f64 / 1e6
                    ));
                }
                self.seen.zombie_overlaps += 1;
            }
        }
        // One at a time in a lane.
        let lane = |a: &Accepted| a.call.ordering_key.clone();
        let in_lane = |a: &Accepted| (lane(call).is_some() && lane(a) == lane(call)) || same_id(a);
        for other in self.under_way.values().filter(|u| u.number == number) {
            let Some(other_call) = self.calls.get(&(number, other.origin)) else { continue };
            if other.origin != origin && !in_lane(other_call) {
                continue;
            }
            let Some(of) = self.tenures.get(&other.tenure) else { continue };
            if other.tenure == tenure {
                return Some(format!("{} is under way in its lane", other.origin));
            }
            if of.released {
                return Some(format!("{} is under way in its lane at tenure {}, which had given it up", other.origin, other.tenure));
            }
            if of.fence.is_some_and(|(_, other_epoch)| other_epoch > epoch) {
                return Some(format!("a newer owner, tenure {}, has {} under way", other.tenure, other.origin));
            }
            self.seen.zombie_overlaps += 1;
        }
        let in_order = call.call.ordering_key.clone().and_then(|key| self.lanes.get(&(number, key)));
        for o in in_order.into_iter().flatten().chain(retries.iter().map(|(_, o)| o)).filter(|o| **o < origin) {
            let Some(other) = self.calls.get(&(number, *o)) else { continue };
            if other.ends.is_empty() {
                return Some(format!("{o} comes first in its lane and has not ended"));
            }
        }
        if self.scenario.kind == Kind::Clean && delivery.attempt <= call.failed {
            return Some(format!("it is attempt {}, after {} that failed", delivery.attempt, call.failed));
        }
        if by.attempts.get(&origin).is_some_and(|last| *last >= delivery.attempt && !matches!(call.manner, Manner::NotNow(..))) {
            return Some(format!("it is attempt {} again", delivery.attempt));
        }
        let in_box = || self.under_way.values().filter(|u| u.index == index);
        if (delivery.solo && in_box().next().is_some()) || in_box().any(|u| u.solo) {
            return Some("a solo delivery is not alone".to_owned());
        }
        if call.begun > 0 && self.scenario.kind == Kind::Clean && call.failed + call.not_now < call.begun {
            return Some("it is delivered twice, though nothing died".to_owned());
        }
        if matches!(call.manner, Manner::Poison(_)) && self.scenario.kind == Kind::Poison && call.begun >= 2 + self.scenario.max_crashes {
            return Some(format!("{} boxes have died of it", call.begun));
        }
        let _ = (now, by.number);
        None
    }

    pub(crate) fn box_of(&self, delivery: u64) -> Option<usize> {
        self.under_way.get(&delivery).map(|u| u.index)
    }

    /// The app has ended it, and how.
    pub(crate) fn app_ends(&mut self, delivery: u64) -> Option<(UnderWay, Manner)> {
        let under_way = self.under_way.remove(&delivery)?;
        let call = self.calls.get_mut(&(under_way.number, under_way.origin))?;
        let manner = match call.manner {
            Manner::Fails(times) if call.failed < times => {
                call.failed += 1;
                call.manner
            }
            Manner::NotNow(times, _) if call.not_now < times => {
                call.not_now += 1;
                call.manner
            }
            _ => Manner::Answers(0),
        };
        Some((under_way, manner))
    }

    /// Its connection was closed by the proxy.
    pub(crate) fn cut(&mut self, delivery: u64) {
        self.under_way.remove(&delivery);
    }

    /// A box with all that it has under way.
    pub(crate) fn died(&mut self, index: usize) {
        self.under_way.retain(|_, u| u.index != index);
        self.recording.retain(|(of, ..)| *of != index);
    }

    pub(crate) fn nothing_under_way(&self) -> bool {
        self.under_way.is_empty()
    }

    /// How every call must have ended, at the end.
    pub(crate) fn check_ends(&mut self) -> Result<(), String> {
        for ((number, origin), call) in &self.calls {
            let what = format!("call {} at {number}/{origin} ({:?})", call.call.request.target, call.manner);
            let Some(end) = call.ends.first() else { return Err(format!("{what} has no end")) };
            let first = call.call.recorded.and(self.first.get(&call.call.id));
            let reused = first.is_some_and(|digest| Some(*digest) != call.call.recorded);
            let room = self.scenario.max_recorded > 1_000;
            let short_ttl = call.call.ttl.as_secs() < 3600;
            let right = match end.how {
                How::App => !reused || !room,
                How::Known => first.is_some() && (!reused || !room),
                How::Proxy(Reason::KeyReused) => reused || !room,
                How::Proxy(Reason::RecordedFull) => !room,
                How::Proxy(Reason::Deadline) => short_ttl || first.is_some(),
                How::Proxy(Reason::Attempts) => matches!(call.manner, Manner::Fails(_)) || first.is_some(),
                How::Proxy(Reason::Poison) => matches!(call.manner, Manner::Poison(_)) || self.boxes_seemed_to_die(),
                How::Proxy(Reason::Cancelled) => call.cancelled,
                How::Proxy(_) => false,
            };
            if !right {
                return Err(format!("{what} ended with {:?}", end.how));
            }
        }
        Ok(())
    }
}

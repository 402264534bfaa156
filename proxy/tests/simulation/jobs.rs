//! What a box does that takes time: the tasks of `consume.rs`, `search.rs` and `ending.rs`, a step at a time.

use std::sync::Arc;

use bluebox_core::InstanceId;
use bluebox_core::call::{Body, Call, Digest, Outcome, Reason, Response, Source};
use bluebox_core::clock::Moment;
use bluebox_core::log::{AppendError, Assignment, Offset, Timestamp, TopicPartition};
use bluebox_core::wire::{ControlEntry, DeadLetter, ParkedCall, RecordedEntry, Reply};
use bluebox_proxy::inbound::owner::Act;
use bluebox_proxy::inbound::partition::{
    Arrival, Cancel, Delivery, DeliveryEnd, Ending, Findings, Inheritance, ParkedArrival, Parking, Payload, Suspect, Verdict,
};
use bluebox_proxy::inbound::search::{Entries, Wanted};
use http::{HeaderMap, StatusCode};

use crate::boxes::{Inbox, Job};
use crate::log::{Place, Value, replies};
use crate::scenario::{MS, Manner, SECOND, Time};
use crate::world::{Event, World, moment, note};

pub(crate) enum Work {
    Commits(Assignment),
    Fence(InstanceId),
    Load {
        from: Offset,
        end: Option<Offset>,
        now: Timestamp,
        control_from: Offset,
    },
    LoadIndex,
    Search {
        suspects: Vec<Suspect>,
        todo: Vec<u32>,
        findings: Findings,
    },
    Deliver(u64, Delivery, Moment),
    Record {
        ending: Box<Ending>,
        epoch: Offset,
        step: Step,
    },
    Park(Parking, Offset),
    /// Of an ordinal: a claim, or a commit (its claim and its number).
    Claim(u64),
    Commit(u64, u64),
}

pub(crate) enum Step {
    Bury,
    Reply,
    Index(TopicPartition, Offset),
}

pub(crate) enum Input {
    Go,
    Appended(Result<(Offset, Timestamp), AppendError>),
}

impl Work {
    pub(crate) fn search(suspects: Vec<Suspect>) -> Self {
        let todo = Wanted::by_partition(&suspects).into_keys().map(|of| of.partition).collect();
        Self::Search { suspects, todo, findings: Findings::default() }
    }

    pub(crate) fn record(ending: Ending, epoch: Offset) -> Self {
        let step = match &ending.verdict {
            Verdict::DeadLetter { .. } => Step::Bury,
            Verdict::Found { partition, offset } => Step::Index(partition.clone(), *offset),
            _ => Step::Reply,
        };
        Self::Record { ending: Box::new(ending), epoch, step }
    }
}

fn refusal(ending: &Ending, reason: Reason) -> Outcome {
    outcome(ending.id, ending.replay, ending.digest, ending.attempts, Source::Proxy(reason), "")
}

/// Its content is the call that it is the answer to.
fn outcome(id: bluebox_core::CallId, replay: u32, digest: Option<Digest>, attempts: u32, source: Source, of: &str) -> Outcome {
    let body = Body::Inline(of.as_bytes().to_vec().into());
    let response = Response { status: StatusCode::OK, reason: None, headers: HeaderMap::new(), body, trailers: HeaderMap::new() };
    Outcome { id, replay, attempts, digest, source, response }
}

impl World {
    /// A job goes on, unless its tenure has ended.
    pub(crate) fn step(&mut self, index: usize, mut job: Job, input: Input, acts: &mut Vec<Act>) {
        let life = self.boxes[index].life();
        let current = self.boxes[index].tenures.get(&job.number).is_some_and(|t| t.id == job.tenure);
        if !current && !job.outlives {
            return;
        }
        let appended = match input {
            Input::Appended(result) if matches!(job.work, Work::Commit(..)) => {
                if let (Work::Commit(which, sequence), Err(_)) = (job.work, result) {
                    self.commit_failed(index, which, sequence);
                }
                return;
            }
            Input::Appended(Err(_)) => {
                let pause = job.pause;
                job.pause = (pause * 2).min(SECOND);
                return self.after(pause, Event::ToBox(life, Inbox::Go(job)));
            }
            Input::Appended(Ok(appended)) => {
                job.pause = 20 * MS;
                Some(appended)
            }
            Input::Go => None,
        };
        let now = moment(self.now);
        let number = job.number;
        match &mut job.work {
            Work::Commits(assignment) => {
                let assignment = assignment.clone();
                let parked = if self.scenario.assigned { self.committed_of(index, number).1 } else { self.committed(number).1 };
                self.read_commits(index, number, &assignment, parked.as_ref(), acts);
            }
            Work::Fence(instance) => match appended {
                None => {
                    let value = Value::Fence(*instance);
                    self.append(life, Place::Calls(number), value, job, None);
                }
                Some(at) => self.fence_is_there(index, number, at, acts),
            },
            Work::Load { from, end, now: log_time, control_from } => {
                let (cancels, control_end) = self.cancels(number, *control_from);
                let (parked, parked_end) = self.parked(index, number, *from, *end, *log_time);
                let inheritance = Inheritance { parked, parked_end, cancels, control_end };
                self.tell_partition(index, number, acts, |p, effects| p.loaded(now, inheritance, effects));
                self.follow_control(index, number, control_end);
            }
            Work::LoadIndex => self.load_index(index, number, acts),
            Work::Search { suspects, todo, findings } => {
                if let Some(reply) = todo.pop() {
                    self.look_for(suspects, reply, findings);
                    let delay = self.delay(index);
                    self.after(delay, Event::ToBox(life, Inbox::Go(job)));
                } else {
                    note!(self, "box {index}: of the suspects of {number}, {:?} had ended", findings.found.keys().collect::<std::collections::BTreeSet<_>>());
                    self.tell_partition(index, number, acts, |p, effects| p.searched(now, suspects, findings, effects));
                }
            }
            Work::Deliver(delivery_number, delivery, until) => {
                let (delivery_number, delivery, until) = (*delivery_number, delivery.clone(), *until);
                self.deliver(index, number, job.tenure, delivery_number, delivery, until);
            }
            Work::Record { .. } => self.record(index, job, appended, current, acts),
            Work::Claim(which) => {
                let which = *which;
                if appended.is_none() {
                    self.append_claim(index, job, which);
                }
            }
            Work::Commit(..) => {}
            Work::Park(parking, epoch) => match appended {
                None => {
                    let Some(call) = self.load(number, &parking.call) else {
                        self.witness.fail(format!("the parked record of {number}/{} can't be read", parking.origin));
                        return;
                    };
                    let Parking { origin, accepted, attempts, may_have_started, .. } = *parking;
                    let call = Box::new(Call::clone(&call));
                    let value = Value::Parked(ParkedCall { epoch: *epoch, origin, accepted, attempts, may_have_started, call });
                    self.append(life, Place::Parked(number), value, job, None);
                }
                Some((at, _)) => {
                    let origin = parking.origin;
                    self.tell_partition(index, number, acts, |p, _| p.parked(now, origin, at));
                }
            },
        }
    }

    fn load(&self, number: u32, payload: &Payload) -> Option<Arc<Call>> {
        match payload {
            Payload::Here(call) => Some(Arc::clone(call)),
            Payload::Parked(at) => match self.log.get(Place::Parked(number), *at) {
                Some(Value::Parked(parked)) => Some(Arc::from(parked.call)),
                _ => None,
            },
        }
    }

    /// As `search::parked`.
    fn parked(&mut self, index: usize, number: u32, from: Offset, end: Option<Offset>, now: Timestamp) -> (Vec<ParkedArrival>, Offset) {
        let wall = self.wall_clock(index);
        let end = end.unwrap_or_else(|| self.log.end(Place::Parked(number)));
        let mut entries = Vec::new();
        for (offset, _, value) in self.log.range(Place::Parked(number), from, end) {
            if let Value::Parked(parked) = value {
                let accepted = parked.accepted;
                let age = Arrival::age(accepted, now, wall);
                let arrival = Arrival { origin: parked.origin, accepted, age, call: Arc::from(parked.call) };
                entries.push(ParkedArrival { at: offset, attempts: parked.attempts, may_have_started: parked.may_have_started, arrival });
            }
        }
        note!(self, "box {index}: loaded the parked calls of {number}: {:?}", entries.iter().map(|e| (e.at, e.arrival.origin)).collect::<Vec<_>>());
        (entries, end)
    }

    /// As `search::cancels`.
    fn cancels(&self, number: u32, from: Offset) -> (Vec<Cancel>, Offset) {
        let end = self.log.end(Place::Control(number));
        let cancel = |(at, _, value)| match value {
            Value::Control(ControlEntry::Cancel { id, offset: origin }) => Some(Cancel { at, origin, id }),
            _ => None,
        };
        (self.log.range(Place::Control(number), from, end).filter_map(cancel).collect(), end)
    }

    /// As `search::recorded`.
    fn load_index(&mut self, index: usize, number: u32, acts: &mut Vec<Act>) {
        let mut read = Entries::default();
        for (_, at, value) in self.log.range(Place::Recorded(number), Offset::default(), self.log.end(Place::Recorded(number))) {
            if let Value::Recorded(entry) = value {
                read.see(at, entry);
            }
        }
        if let Some(owner) = &mut self.boxes[index].owner {
            for (at, entry) in read.entries {
                owner.index().insert(number, at, entry.id, entry.digest, entry.partition, entry.offset);
            }
        }
        self.tell_partition(index, number, acts, |p, _| p.index_loaded());
    }

    /// As `search::outcomes`, for one reply partition.
    fn look_for(&self, suspects: &[Suspect], reply: u32, findings: &mut Findings) {
        let place = Place::Replies(reply);
        let Some((_, mut wanted)) = Wanted::by_partition(suspects).into_iter().find(|(of, _)| **of == replies(reply)) else { return };
        let end = self.log.end(place);
        for (offset, _, value) in self.log.range(place, wanted.least, end) {
            if let Value::Reply(reply) = value {
                wanted.see(offset, reply);
            }
        }
        findings.found.extend(wanted.found);
        findings.ends.push((replies(reply), end));
    }

    /// As `Consumer::record` and `Endings::record`.
    fn record(&mut self, index: usize, mut job: Job, appended: Option<(Offset, Timestamp)>, current: bool, acts: &mut Vec<Act>) {
        let (life, number) = (self.boxes[index].life(), job.number);
        let Work::Record { ending, epoch, step } = &mut job.work else { return };
        let ends = Some((number, ending.origin));
        if let Some((offset, at)) = appended {
            match step {
                Step::Bury => *step = Step::Reply,
                Step::Reply if matches!(ending.verdict, Verdict::Known { .. }) || !ending.indexed => {
                    let origin = ending.origin;
                    return self.recorded(index, number, origin, acts);
                }
                Step::Reply => *step = Step::Index(ending.reply_to.partition.clone(), offset),
                Step::Index(partition, offset) => {
                    if let (true, Some(owner), Some(digest)) = (current, &mut self.boxes[index].owner, ending.digest) {
                        owner.index().insert(number, at, ending.id, digest, partition.clone(), *offset);
                    }
                    let origin = ending.origin;
                    return self.recorded(index, number, origin, acts);
                }
            }
        }
        let (to, value) = match step {
            Step::Bury => {
                let Verdict::DeadLetter { reason, detail, call } = &ending.verdict else { return };
                let Some(call) = self.load(number, call) else { return };
                let call = Box::new(Call::clone(&call));
                let letter =
                    DeadLetter { reason: *reason, detail: detail.clone(), attempts: ending.attempts, origin: ending.origin, accepted: ending.accepted, call };
                (Place::Dead(number), Value::Dead(Box::new(letter)))
            }
            Step::Reply => {
                let reply = match &ending.verdict {
                    Verdict::Outcome(outcome) => Reply::Outcome(outcome.clone()),
                    Verdict::DeadLetter { reason, .. } | Verdict::Refused(reason) => Reply::Outcome(Box::new(refusal(ending, *reason))),
                    Verdict::Known { partition, offset } | Verdict::Found { partition, offset } => Reply::At {
                        id: ending.id,
                        replay: ending.replay,
                        digest: ending.digest.unwrap_or_default(),
                        partition: partition.clone(),
                        offset: *offset,
                    },
                };
                (Place::Replies(ending.reply_to.partition.partition), Value::Reply(reply))
            }
            Step::Index(partition, offset) => {
                let Some(digest) = ending.digest.filter(|_| ending.indexed) else {
                    let origin = ending.origin;
                    return self.recorded(index, number, origin, acts);
                };
                let entry = RecordedEntry { id: ending.id, epoch: *epoch, digest, partition: partition.clone(), offset: *offset };
                (Place::Recorded(number), Value::Recorded(entry))
            }
        };
        let ends = ends.filter(|_| matches!(to, Place::Replies(_)));
        self.append(life, to, value, job, ends);
    }

    // The app.

    fn deliver(&mut self, index: usize, number: u32, tenure: u64, delivery_number: u64, delivery: Delivery, until: Moment) {
        let origin = delivery.origin;
        let at_box = &self.boxes[index];
        if at_box.tenures.get(&number).and_then(|t| t.deliveries.get(&origin)) != Some(&delivery_number) {
            // It was cut off before it began.
            return;
        }
        let life = at_box.life();
        let ends = |end| Event::ToBox(life, Inbox::Delivered(number, tenure, origin, end));
        let Some(call) = self.load(number, &delivery.call) else {
            self.witness.fail(format!("the parked record of {number}/{origin} can't be read"));
            return;
        };
        if moment(self.now) >= until {
            return self.after(MS, ends(DeliveryEnd::NotBegun));
        }
        if self.now < at_box.app_away_until {
            return self.after(MS, ends(DeliveryEnd::NotThere));
        }
        let lease = at_box.lease_from.is_some_and(|from| moment(self.now) < from + crate::world::duration(self.scenario.lease));
        note!(
            self,
            "box {index}: delivery {delivery_number} of {number}/{origin} ({}) begins: attempt {}, may have started {}, solo {}",
            call.request.target,
            delivery.attempt,
            delivery.may_have_started,
            delivery.solo
        );
        if self.too_late(index) {
            self.witness.fail(format!("delivery {delivery_number} of {number}/{origin} by box {index} begins a lease after another has claimed its ordinal"));
        }
        let manner = self.witness.begins(self.now, index, number, tenure, delivery_number, &delivery, lease);
        match manner {
            Manner::Answers(after) => self.after(after, Event::AppEnds(delivery_number)),
            Manner::Poison(after) => self.after(after, Event::PoisonKills(delivery_number)),
            Manner::Fails(_) | Manner::NotNow(..) => {
                let after: Time = self.random.between(MS, 100 * MS);
                self.after(after, Event::AppEnds(delivery_number));
            }
        }
    }

    /// The app ends a delivery.
    pub(crate) fn app_ends(&mut self, delivery_number: u64) {
        let Some(index) = self.witness.box_of(delivery_number) else { return };
        if self.boxes[index].paused && self.boxes[index].app_paused {
            self.boxes[index].inbox.push_back(Inbox::AppEnds(delivery_number));
            return;
        }
        let Some((delivery, manner)) = self.witness.app_ends(delivery_number) else { return };
        let outcome = Box::new(outcome(delivery.id, 0, delivery.digest, delivery.attempt, Source::App, &self.witness.target(delivery.number, delivery.origin)));
        let end = match manner {
            Manner::Fails(_) => DeliveryEnd::Failed("reset".to_owned()),
            Manner::NotNow(_, seconds) => DeliveryEnd::NotNow(std::time::Duration::from_secs(seconds), outcome),
            Manner::Answers(_) | Manner::Poison(_) => DeliveryEnd::Answered(outcome),
        };
        note!(self, "box {index}: delivery {delivery_number} of {}/{} ends", delivery.number, delivery.origin);
        let life = self.boxes[index].life();
        let delay = self.random.between(0, MS);
        self.after(delay, Event::ToBox(life, Inbox::Delivered(delivery.number, delivery.tenure, delivery.origin, end)));
    }
}

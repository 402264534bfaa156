//! How long it took until calls that were under way in a killed box were delivered by another and answered.
//!
//! All of it is measured from the SIGKILL, and on the calls that the app had begun and whose caller had no answer yet:
//!
//! - *detect*: until the log says that the session of the dead member ran out (Kafka's group coordinator; the embedded log says nothing).
//! - *reassign*: from then until another box says that it has looked for what the former owner had begun: the partition is assigned, fenced, the lease has run out.
//! - *redeliver*: from then until the app of another box begins with the call.
//! - *until begun*: from the kill until then: all of the above, and what none of it is.
//! - *takeover*: from the kill until the caller has its answer. The time that the app takes is in it, and long calls are more often under way at a kill than short ones.
//! - *beyond the app*: the takeover without the time that the app takes for the call by the plan of the load.
//!
//! And of boxes that were asked to end (*handover*): of each lane that such a box had, from when it was asked (or the next call of the lane was sent, if that was later) until another box's app
//! begins with that call. A partition is handed over when the calls of it that are under way have ended, so the same is told once more from when the box had answered the last of its calls.

use std::collections::BTreeMap;
use std::time::Duration;

use super::evidence::{Delivered, Evidence};
use crate::clock::Moment;
use crate::history::{Ending, History, Life, Note, On, Role, Said};

/// Times, each sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Takeover {
    pub(crate) detect: Vec<Duration>,
    pub(crate) reassign: Vec<Duration>,
    pub(crate) redeliver: Vec<Duration>,
    pub(crate) begun: Vec<Duration>,
    pub(crate) answered: Vec<Duration>,
    pub(crate) beyond_app: Vec<Duration>,
    /// Of each lane that another box had when one was killed, and kept, with nothing else going on: the longest that a call of it took then, beyond what the app took.
    pub(crate) others: Vec<Duration>,
    /// The same of lanes whose partition went, in good order, from a box that lives to one that came back.
    pub(crate) moved: Vec<Duration>,
    /// From SIGTERM until another box begins with the next call of a lane.
    pub(crate) handover: Vec<Duration>,
    /// The same from when the box that was asked to end had answered the last of its calls.
    pub(crate) handover_when_idle: Vec<Duration>,
    /// How long calls took beyond what the app took that were sent while boxes came and went in good order.
    pub(crate) in_storms: Vec<Duration>,
}

/// How long after a kill it is looked for what the others did.
const AROUND: Duration = Duration::from_secs(5);

/// The value below which this share of sorted times lies.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?)).copied()
}

pub(super) fn measure(evidence: &Evidence, history: &History) -> Takeover {
    let mut times = Takeover::default();
    for (value, call) in &evidence.calls {
        for (at, delivery) in call.deliveries.iter().enumerate() {
            let Some(life) = delivery.life.and_then(|life| history.lives.get(life)) else { continue };
            let Some((killed, Ending::Killed(_))) = life.ended else { continue };
            if delivery.began > life.gone.unwrap_or(killed) || call.answered().is_some_and(|answered| answered <= killed) {
                continue;
            }
            let again = call.deliveries[at + 1..].iter().find(|other| other.life != delivery.life && other.began >= killed);
            let Some(again) = again else { continue };
            times.begun.push(again.began.since(killed));
            times.answered.extend(call.answered().map(|answered| answered.since(killed)));
            times.beyond_app.extend(call.answered().map(|answered| answered.since(killed).saturating_sub(value.takes())));
            let new_owner = again.life.and_then(|life| history.lives.get(life)).map(|life| On::Box(life.of));
            let last = |said: Said, by: &dyn Fn(On) -> bool, from: Moment| {
                let fits = |note: &&Note| note.said == said && by(note.by) && note.at >= from && note.at <= again.began;
                history.notes.iter().filter(fits).map(|note| note.at).max()
            };
            let Some(took_over) = last(Said::TookOver, &|by| Some(by) == new_owner, killed) else { continue };
            times.redeliver.push(again.began.since(took_over));
            let noticed = history.notes.iter().find(|note| note.said == Said::SessionRanOut && note.at >= killed && note.at <= took_over);
            if let Some(noticed) = noticed {
                times.detect.push(noticed.at.since(killed));
                times.reassign.push(took_over.since(noticed.at));
            }
        }
    }
    others(evidence, history, &mut times);
    handovers(evidence, history, &mut times);
    let Takeover { detect, reassign, redeliver, begun, answered, beyond_app, others, moved, handover, handover_when_idle, in_storms } = &mut times;
    for times in [detect, reassign, redeliver, begun, answered, beyond_app, others, moved, handover, handover_when_idle, in_storms] {
        times.sort();
    }
    times
}

/// A call of a lane, as far as its pace goes.
struct Paced {
    sent: Moment,
    /// How long it took, beyond what the app took.
    beyond: Duration,
    /// Where it was delivered last.
    life: Option<usize>,
}

/// A lane stays in one partition: those of boxes that live should not notice that another has died.
fn others(evidence: &Evidence, history: &History, times: &mut Takeover) {
    let in_storm = |at: Moment| history.storms.iter().any(|(from, to)| (*from..=*to).contains(&at));
    for (value, call) in evidence.calls.iter().filter(|(value, _)| !value.manner().asynchronous) {
        if let (Some(sent), Some(answered)) = (call.sent().filter(|at| in_storm(*at)), call.answered()) {
            times.in_storms.push(answered.since(sent).saturating_sub(value.takes()));
        }
    }
    let mut lanes: BTreeMap<(u16, u16), Vec<Paced>> = BTreeMap::new();
    for (value, call) in evidence.calls.iter().filter(|(value, _)| value.manner().laned && !value.manner().asynchronous) {
        if let (Some(sent), Some(answered), Some(delivery)) = (call.sent(), call.answered(), call.deliveries.last()) {
            let beyond = answered.since(sent).saturating_sub(value.takes());
            lanes.entry((value.caller, value.worker)).or_default().push(Paced { sent, beyond, life: delivery.life });
        }
    }
    for (place, dead) in history.lives.iter().enumerate().filter(|(_, life)| life.of.role == Role::Callee) {
        let Some((killed, Ending::Killed(_))) = dead.ended else { continue };
        let until = killed.after(AROUND);
        let (from, to) = (Moment(killed.0.saturating_sub(AROUND.as_micros() as u64)), until);
        let ended = |life: &Life| life.ended.is_some_and(|(at, _)| (from..=to).contains(&at));
        let alone = !history.lives.iter().enumerate().any(|(other, life)| other != place && ended(life));
        if !alone || history.troubles.iter().any(|trouble| trouble.overlaps(from, to)) {
            continue;
        }
        for lane in lanes.values() {
            let first = lane.partition_point(|call| call.sent < killed);
            let Some(owner) = first.checked_sub(1).and_then(|before| lane[before].life).filter(|life| *life != place) else { continue };
            let then = || lane[first..].iter().take_while(|call| call.sent < until);
            let times = if then().all(|call| call.life == Some(owner)) { &mut times.others } else { &mut times.moved };
            times.extend(then().map(|call| call.beyond).max());
        }
    }
}

/// A lane's calls are sent one after the other: where one box that was asked to end had the last one and another has the next, the partition was handed over.
fn handovers(evidence: &Evidence, history: &History, times: &mut Takeover) {
    let mut idle: BTreeMap<usize, Moment> = BTreeMap::new();
    let mut lanes: BTreeMap<(u16, u16), Vec<(Moment, &Delivered)>> = BTreeMap::new();
    for (value, call) in &evidence.calls {
        for delivery in &call.deliveries {
            if let (Some(life), Some(ended)) = (delivery.life, delivery.ended) {
                let last = idle.entry(life).or_insert(ended);
                *last = ended.max(*last);
            }
        }
        if let (true, Some(sent), Some(first)) = (value.manner().laned, call.sent(), call.deliveries.first()) {
            lanes.entry((value.caller, value.worker)).or_default().push((sent, first));
        }
    }
    for lane in lanes.values() {
        for ((_, last), (sent, next)) in lane.iter().zip(&lane[1..]) {
            let Some((at, life)) = last.life.and_then(|at| Some((at, history.lives.get(at)?))) else { continue };
            let Some((asked, Ending::Asked)) = life.ended else { continue };
            if next.life == last.life || next.began < asked {
                continue;
            }
            let waits = asked.max(*sent);
            times.handover.push(next.began.since(waits));
            times.handover_when_idle.push(next.began.since(idle.get(&at).copied().unwrap_or(waits).max(waits)));
        }
    }
}

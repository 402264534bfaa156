//! How long it took until calls that were under way in a killed box were delivered by another and answered.
//!
//! All of it is measured from the SIGKILL, and on the calls that the app had begun and whose caller had no answer yet:
//!
//! - *detect*: until the log says that the session of the dead member ran out (Kafka's group coordinator; the embedded log says nothing).
//! - *reassign*: from then until another box says that it has looked for what the former owner had begun: the partition is assigned, fenced, the lease has run out.
//! - *redeliver*: from then until the app of another box begins with the call.
//! - *takeover*: from the kill until the caller has its answer.

use std::time::Duration;

use super::evidence::Evidence;
use crate::clock::Moment;
use crate::history::{Ending, History, Note, On, Role, Said};

/// Times, each sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Takeover {
    pub(crate) detect: Vec<Duration>,
    pub(crate) reassign: Vec<Duration>,
    pub(crate) redeliver: Vec<Duration>,
    pub(crate) answered: Vec<Duration>,
    /// Of each box that went on while another was dead: the longest time in which its app was given nothing.
    pub(crate) others_silent: Vec<Duration>,
}

/// How long after a kill it is looked for what the others did.
const AROUND: Duration = Duration::from_secs(5);

/// The value below which this share of sorted times lies.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?)).copied()
}

pub(super) fn measure(evidence: &Evidence, history: &History) -> Takeover {
    let mut times = Takeover::default();
    for call in evidence.calls.values() {
        for (at, delivery) in call.deliveries.iter().enumerate() {
            let Some(life) = delivery.life.and_then(|life| history.lives.get(life)) else { continue };
            let Some((killed, Ending::Killed(_))) = life.ended else { continue };
            if delivery.began > killed || call.answered().is_some_and(|answered| answered <= killed) {
                continue;
            }
            let again = call.deliveries[at + 1..].iter().find(|other| other.life != delivery.life && other.began >= killed);
            let Some(again) = again else { continue };
            times.answered.extend(call.answered().map(|answered| answered.since(killed)));
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
    silence(evidence, history, &mut times);
    for times in [&mut times.detect, &mut times.reassign, &mut times.redeliver, &mut times.answered, &mut times.others_silent] {
        times.sort();
    }
    times
}

fn silence(evidence: &Evidence, history: &History, times: &mut Takeover) {
    let mut begun: Vec<Vec<Moment>> = vec![Vec::new(); history.lives.len()];
    for delivery in evidence.calls.values().flat_map(|call| &call.deliveries) {
        if let Some(of) = delivery.life.and_then(|life| begun.get_mut(life)) {
            of.push(delivery.began);
        }
    }
    begun.iter_mut().for_each(|moments| moments.sort());
    for dead in history.lives.iter().filter(|life| life.of.role == Role::Callee) {
        let Some((killed, Ending::Killed(_))) = dead.ended else { continue };
        let until = killed.after(AROUND);
        for (life, moments) in history.lives.iter().zip(&begun).filter(|(life, _)| life.of.role == Role::Callee) {
            // Only who worked before and after, and had no trouble of its own.
            let worked = moments.first().is_some_and(|first| *first < killed) && moments.last().is_some_and(|last| *last > until);
            if !worked || life.ended.is_some_and(|(at, _)| at < until) || history.troubles.iter().any(|trouble| trouble.overlaps(killed, until)) {
                continue;
            }
            let around = moments.partition_point(|at| *at < killed).saturating_sub(1);
            let pairs = moments[around..].windows(2).take_while(|pair| pair[0] < until);
            times.others_silent.extend(pairs.map(|pair| pair[1].since(pair[0])).max());
        }
    }
}

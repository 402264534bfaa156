//! What was delivered more than once, and why.

use std::fmt;

use super::evidence::{Call, Delivered, Evidence};
use super::{Findings, Promise, Violation};
use crate::clock::Moment;
use crate::history::{Ending, History, Note, On, Said, Trouble};
use crate::plan::Kind;

/// Why a call was delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cause {
    /// Its box was killed, stopped or cut off while it was under way.
    Box(Kind),
    /// The log was away while it was under way, so that its end could not be made durable.
    Log(Kind),
    /// Its box was taken for dead, although nobody did anything to it: the machine was too slow.
    SessionRanOut,
    /// Boxes came or went in good order.
    Rebalance,
    /// Nothing happened.
    Nothing,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Box(kind) | Self::Log(kind) => kind.fmt(f),
            Self::SessionRanOut => f.write_str("session-ran-out"),
            Self::Rebalance => f.write_str("rebalance"),
            Self::Nothing => f.write_str("unexplained"),
        }
    }
}

/// What makes a live box lose its session.
pub(super) const MAKES_ZOMBIES: [Kind; 4] = [Kind::StopCalleeProxy, Kind::Cut, Kind::HalfOpen, Kind::Latency];
/// What keeps ends from becoming durable.
const OF_THE_LOG: [Kind; 6] = [Kind::KillLog, Kind::StopLog, Kind::LeaderMove, Kind::LogDown, Kind::DiskFull, Kind::ClockStep];

/// How long after a session ran out its box may come to say so.
const SAYS_SO_WITHIN: std::time::Duration = std::time::Duration::from_secs(15);

/// Whether a delivery was that of a zombie at some time until then: its box was stopped or cut off, or the log stood still, or it was taken for dead.
pub(super) fn explains_a_zombie(delivery: &Delivered, until: Moment, call: &Call, history: &History) -> bool {
    let until = call.deliveries.iter().map(|other| other.began).chain([until]).max().unwrap_or(until);
    matches!(lost_its_box(delivery, until, history), Some(Cause::Box(kind)) if MAKES_ZOMBIES.contains(&kind))
        || matches!(lost_its_box(delivery, until, history), Some(Cause::SessionRanOut | Cause::Log(_)))
}

/// What happened to the box of a delivery, or to the log, from its beginning until `until`, that lets another box begin it again.
pub(super) fn lost_its_box(delivery: &Delivered, until: Moment, history: &History) -> Option<Cause> {
    let life = delivery.life.and_then(|life| history.lives.get(life))?;
    let on = On::Box(life.of);
    // One half outlives the other by a moment, in which the app still reads what the proxy had sent.
    if let Some((at, Ending::Killed(kind))) = life.ended
        && at <= until
        && life.gone.unwrap_or(at) >= delivery.handed
    {
        return Some(Cause::Box(kind));
    }
    // A fault that was over when it began can still cost the session: the box learns it late.
    let trouble = |kinds: &[Kind], here: &dyn Fn(On) -> bool| {
        history
            .troubles
            .iter()
            .find(|trouble| kinds.contains(&trouble.kind) && here(trouble.on) && trouble.overlaps(delivery.handed, until))
            .map(|trouble| trouble.kind)
    };
    if let Some(kind) = trouble(&MAKES_ZOMBIES, &|there| there == on) {
        return Some(Cause::Box(kind));
    }
    if let Some(kind) = trouble(&OF_THE_LOG, &|there| matches!(there, On::Log(_))) {
        return Some(Cause::Log(kind));
    }
    let said = |note: &&Note| note.said == Said::TakenForDead && note.by == on && note.at >= delivery.handed && note.at <= until.after(SAYS_SO_WITHIN);
    history.notes.iter().find(said).map(|_| Cause::SessionRanOut)
}

/// Why a call was delivered again by `second`, after `first`.
fn cause(first: &Delivered, second: &Delivered, history: &History) -> Cause {
    if let Some(cause) = lost_its_box(first, second.began, history) {
        return cause;
    }
    if let Some(kind) = made_a_zombie(second, first, history) {
        return Cause::Box(kind);
    }
    if second.handed < first.began {
        return Cause::Box(Kind::StopCalleeApp);
    }
    let left =
        first.life.and_then(|life| history.lives.get(life)).is_some_and(|life| life.ended.is_some_and(|(at, how)| how == Ending::Asked && at <= second.began));
    let storm = history.storms.iter().any(|(from, to)| *from <= second.began && first.began <= *to);
    if left || storm { Cause::Rebalance } else { Cause::Nothing }
}

/// What had made its box a zombie before the first one began: it could not know of that.
pub(super) fn made_a_zombie(delivery: &Delivered, first: &Delivered, history: &History) -> Option<Kind> {
    let on = On::Box(delivery.life.and_then(|life| history.lives.get(life))?.of);
    let is_it = |trouble: &&Trouble| {
        MAKES_ZOMBIES.contains(&trouble.kind) && trouble.on == on && trouble.from <= first.began && trouble.overlaps(first.began, delivery.began)
    };
    history.troubles.iter().find(is_it).map(|trouble| trouble.kind)
}

pub(super) fn judge(evidence: &Evidence, history: &History, findings: &mut Findings) {
    for (value, call) in &evidence.calls {
        for at in 1..call.deliveries.len() {
            let (earlier, second) = (&call.deliveries[..at], &call.deliveries[at]);
            // Whichever of those before it explains it: a zombie's can come between those of others.
            let causes: Vec<Cause> = earlier.iter().rev().map(|first| cause(first, second, history)).collect();
            let cause = causes.iter().copied().find(|cause| !matches!(cause, Cause::Rebalance | Cause::Nothing)).unwrap_or_else(|| causes[0]);
            *findings.duplicates.entry(cause).or_default() += 1;
            let promise = match cause {
                Cause::Nothing => Some(Promise::DuplicateUnexplained),
                Cause::Rebalance => Some(Promise::DuplicateByRebalance),
                _ if second.handed == second.began
                    && second.saw.attempt < 2
                    && !second.saw.may_have_started
                    && made_a_zombie(second, &earlier[0], history).is_none() =>
                {
                    Some(Promise::DuplicateUnmarked)
                }
                _ => None,
            };
            findings.violations.extend(promise.map(|promise| Violation {
                promise,
                what: format!("{value}: {} after {}", second.saw.name, earlier[at - 1].saw.name),
                lines: call.lines(*value, history),
            }));
        }
    }
    findings.in_flight_at_kills = in_flight_at_kills(evidence, history);
}

/// Deliveries that had begun in a box that was killed, and whose callers had no answer yet.
fn in_flight_at_kills(evidence: &Evidence, history: &History) -> u64 {
    let mut count = 0;
    for call in evidence.calls.values() {
        for delivery in &call.deliveries {
            let killed = delivery.life.and_then(|life| history.lives.get(life)).and_then(|life| match life.ended {
                Some((at, Ending::Killed(_))) => Some((at, life.gone.unwrap_or(at))),
                _ => None,
            });
            count += u64::from(killed.is_some_and(|(at, gone)| delivery.began <= gone && call.answered().is_none_or(|answered| answered > at)));
        }
    }
    count
}

//! Boxes that were stopped for longer than their session, and went on.

use std::time::Duration;

use super::evidence::Evidence;
use super::{Findings, Promise, Violation};
use crate::history::{Ending, History, Note, On, Said};
use crate::plan::Kind;

/// What a zombie may have begun before its lease was over, and only get to now.
const ALREADY_UNDER_WAY: u64 = 1;

/// How long after it was continued it may come to say that it was taken for dead.
const SAYS_SO_WITHIN: Duration = Duration::from_secs(10);

/// After it was continued a zombie begins nothing that a new owner has begun.
pub(super) fn judge(evidence: &Evidence, history: &History, findings: &mut Findings) {
    for trouble in history.troubles.iter().filter(|trouble| trouble.kind == Kind::StopCalleeProxy) {
        let (On::Box(id), Some(continued)) = (trouble.on, trouble.to) else { continue };
        // Ended by a kill: it begins nothing any more.
        let Some(place) = history.lives.iter().position(|life| life.of == id && life.began <= trouble.from && life.ended.is_none_or(|(at, _)| at > continued))
        else {
            continue;
        };
        let mut begun = Vec::new();
        for (value, call) in &evidence.calls {
            let taken = call.deliveries.iter().filter(|other| other.life != Some(place) && other.began >= trouble.from);
            for delivery in call.deliveries.iter().filter(|delivery| delivery.life == Some(place)) {
                let before = |other: &&super::evidence::Delivered| {
                    let killed = other
                        .life
                        .and_then(|life| history.lives.get(life))
                        .and_then(|life| life.ended)
                        .is_some_and(|(at, how)| matches!(how, Ending::Killed(_)) && at <= delivery.began);
                    other.began < delivery.began && !killed
                };
                if delivery.began > continued && taken.clone().any(|other| before(&other)) {
                    begun.push((value, call, &delivery.saw.name));
                }
            }
        }
        let says_so =
            |note: &Note| note.said == Said::TakenForDead && note.by == trouble.on && note.at >= trouble.from && note.at <= continued.after(SAYS_SO_WITHIN);
        findings.zombies += u64::from(history.notes.iter().any(says_so));
        findings.begun_by_zombies += begun.len() as u64;
        for (value, call, name) in begun.iter().skip(usize::try_from(ALREADY_UNDER_WAY).unwrap_or(1)) {
            let what = format!("{value}: {name} by a zombie that was continued at {continued}");
            findings.violations.push(Violation { promise: Promise::BegunByZombie, what, lines: call.lines(**value, history) });
        }
    }
}

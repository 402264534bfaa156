//! Boxes that were stopped or cut off for longer than their session, and went on.

use std::time::Duration;

use super::duplicates::{MAKES_ZOMBIES, lost_its_box};
use super::evidence::Evidence;
use super::{Findings, Promise, Violation};
use crate::history::{History, Note, On, Said};

/// What a zombie may have begun before its lease was over, and only get to now.
const ALREADY_UNDER_WAY: u64 = 1;

/// How long after it goes on it may come to say that it was taken for dead.
const SAYS_SO_WITHIN: Duration = Duration::from_secs(10);

/// What another box began while this one was stopped or cut off is not begun by this one afterwards, for it has lost its lease. It is another matter if it was its turn again, because
/// something happened to the other one.
pub(super) fn judge(evidence: &Evidence, history: &History, findings: &mut Findings) {
    for trouble in history.troubles.iter().filter(|trouble| MAKES_ZOMBIES.contains(&trouble.kind)) {
        let (On::Box(id), Some(over)) = (trouble.on, trouble.to) else { continue };
        // Ended by a kill: it begins nothing any more.
        let lives_on = |life: &crate::history::Life| life.of == id && life.began <= trouble.from && life.ended.is_none_or(|(at, _)| at > over);
        let Some(place) = history.lives.iter().position(lives_on) else { continue };
        let says_so =
            |note: &Note| note.said == Said::TakenForDead && note.by == trouble.on && note.at >= trouble.from && note.at <= over.after(SAYS_SO_WITHIN);
        findings.zombies += u64::from(history.notes.iter().any(says_so));
        let mut begun = Vec::new();
        for (value, call) in evidence.calls.iter().filter(|(_, call)| call.deliveries.len() > 1) {
            for delivery in call.deliveries.iter().filter(|delivery| delivery.life == Some(place)) {
                let mut others = call.deliveries.iter().filter(|other| other.life != Some(place) && (trouble.from..=over).contains(&other.began));
                if others.any(|other| other.began < delivery.began && lost_its_box(other, delivery.began, history).is_none()) {
                    begun.push((value, call, delivery));
                }
            }
        }
        begun.sort_by_key(|(_, _, delivery)| delivery.began);
        findings.begun_by_zombies.extend(begun.iter().map(|(_, _, delivery)| delivery.began.since(over)));
        for (value, call, delivery) in begun.iter().skip(usize::try_from(ALREADY_UNDER_WAY).unwrap_or(1)) {
            let what = format!("{value}: {} by a zombie ({} until {over})", delivery.saw.name, trouble.kind);
            findings.violations.push(Violation { promise: Promise::BegunByZombie, what, lines: call.lines(**value, history) });
        }
    }
    findings.begun_by_zombies.sort();
}

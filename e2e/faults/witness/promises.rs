//! Nothing accepted is lost, every outcome is what the app answered, nothing is delivered after its outcome.

use std::collections::BTreeSet;

use super::duplicates::{explains_a_zombie, made_a_zombie};
use super::evidence::{Call, Evidence};
use super::{Findings, Promise, Violation};
use crate::call::Value;
use crate::clock::Moment;
use crate::history::History;
use crate::ledger::Entry;

pub(super) fn judge(evidence: &Evidence, history: &History, findings: &mut Findings) {
    for (value, call) in &evidence.calls {
        findings.calls += 1;
        findings.deliveries += call.deliveries.len() as u64;
        findings.answered += u64::from(call.answered().is_some());
        // A delivery proves that it is in the log, whatever its caller knows.
        let accepted = call.known_accepted().is_some() || !call.deliveries.is_empty();
        findings.accepted += u64::from(accepted);
        let refused = call.told.last().is_some_and(|(_, entry)| matches!(entry, Entry::NotAccepted(_)));
        findings.unknown += u64::from(!accepted && !refused);
        if accepted {
            not_lost(*value, call, history, findings);
        }
        outcomes(*value, call, history, findings);
        deliveries(*value, call, history, findings);
        no_error_in_storms(*value, call, history, findings);
    }
}

/// Boxes that come and go in good order are not noticed by who calls.
fn no_error_in_storms(value: Value, call: &Call, history: &History, findings: &mut Findings) {
    let in_storm = |at: Moment| history.storms.iter().any(|(from, to)| (*from..=*to).contains(&at));
    let is_error = |entry: &Entry| matches!(entry, Entry::NotAccepted(_) | Entry::Problem(..) | Entry::Broken(_) | Entry::Forgotten(_));
    // What was sent before may still suffer from what was before.
    let sent = call.sent().is_some_and(in_storm);
    if let Some((at, entry)) = call.told.iter().find(|(at, entry)| sent && in_storm(*at) && is_error(entry)) {
        findings.violations.push(found(value, call, history, Promise::ErrorInStorm, format!("{entry:?} at {at}")));
    }
}

fn found(value: Value, call: &Call, history: &History, promise: Promise, what: String) -> Violation {
    Violation { promise, what: format!("{value}: {what}"), lines: call.lines(value, history) }
}

fn not_lost(value: Value, call: &Call, history: &History, findings: &mut Findings) {
    let given_up = call.told.iter().find_map(|(_, entry)| match entry {
        Entry::Problem(status, word) if *status != 503 && *status != 504 => Some(format!("{status} {word}")),
        _ => None,
    });
    if let Some(how) = given_up {
        findings.violations.push(found(value, call, history, Promise::GivenUp, how));
        return;
    }
    let manner = value.manner();
    let asks = manner.keyed || call.told.iter().any(|(_, entry)| matches!(entry, Entry::Accepted(_)));
    let lost = if let Some((_, Entry::Forgotten(how))) = call.told.iter().find(|(_, entry)| matches!(entry, Entry::Forgotten(_))) {
        Some(format!("it was accepted, and is not known any more: {how}"))
    } else if call.ended().is_none() {
        Some("it was accepted, and the app never answered it".to_owned())
    } else if asks && call.answered().is_none() {
        Some("it was accepted and answered, and its caller can't have the outcome".to_owned())
    } else {
        None
    };
    findings.violations.extend(lost.map(|how| found(value, call, history, Promise::Lost, how)));
}

fn outcomes(value: Value, call: &Call, history: &History, findings: &mut Findings) {
    let mut names = BTreeSet::new();
    for (at, entry) in &call.told {
        match entry {
            Entry::Outcome(Err(how)) => findings.violations.push(found(value, call, history, Promise::WrongOutcome, how.clone())),
            Entry::Outcome(Ok(name)) => {
                names.insert(name);
                if !call.deliveries.iter().any(|delivery| delivery.saw.name == *name && delivery.ended.is_some_and(|ended| ended <= *at)) {
                    findings.violations.push(found(value, call, history, Promise::WrongOutcome, format!("nobody had answered {name} at {at}")));
                }
            }
            _ => {}
        }
    }
    if names.len() > 1 {
        let overlapped =
            call.deliveries.iter().any(|delivery| names.contains(&delivery.saw.name) && explains_a_zombie(delivery, delivery.began, call, history));
        if overlapped {
            findings.zombie_outcomes += 1;
        } else {
            findings.violations.push(found(value, call, history, Promise::TwoOutcomes, format!("{names:?}")));
        }
    }
}

fn deliveries(value: Value, call: &Call, history: &History, findings: &mut Findings) {
    for delivery in call.deliveries.iter().filter(|delivery| delivery.torn) {
        findings.violations.push(found(value, call, history, Promise::WrongCall, format!("{} got another body", delivery.saw.name)));
    }
    let ids: BTreeSet<_> = call.deliveries.iter().map(|delivery| &delivery.saw.id).collect();
    let sent_once = call.told.iter().filter(|(_, entry)| matches!(entry, Entry::Sending(_))).count() == 1;
    let only_refused = call.told.iter().all(|(_, entry)| matches!(entry, Entry::Sending(_) | Entry::NotAccepted(_)));
    if ids.len() > 1 || (sent_once && only_refused && !call.deliveries.is_empty() && call.told.len() > 1) {
        findings.violations.push(found(value, call, history, Promise::NotAcceptedButDelivered, format!("delivered as {ids:?}")));
    }
    let Some(answered) = call.answered() else { return };
    for delivery in call.deliveries.iter().filter(|delivery| delivery.handed > answered) {
        // What a zombie begins late is another promise.
        if made_a_zombie(delivery, &call.deliveries[0], history).is_some() {
            continue;
        }
        // A former owner that was stopped or cut off recorded its outcome after its successor had looked for it.
        let former = call.deliveries.iter().filter(|former| former.began < answered && former.life != delivery.life);
        if former.into_iter().any(|former| explains_a_zombie(former, answered, call, history)) {
            findings.zombie_overlaps += 1;
        } else {
            findings.violations.push(found(value, call, history, Promise::DeliveredAfterOutcome, delivery.saw.name.clone()));
        }
    }
}

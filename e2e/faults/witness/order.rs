//! The calls of a lane: judged on first deliveries, among those of which it is known that one was accepted before the other was sent.

use super::evidence::{Call, Evidence};
use super::{Findings, Promise, Violation};
use crate::call::Value;
use crate::clock::Moment;
use crate::history::History;

/// What came before in the lane.
#[derive(Debug, Clone, Copy)]
struct Before {
    accepted: Moment,
    value: Value,
    first: Moment,
    /// When the app had answered it.
    ended: Option<Moment>,
}

pub(super) fn judge(evidence: &Evidence, history: &History, findings: &mut Findings) {
    let mut before: Vec<Before> = Vec::new();
    let mut lane = None;
    for (value, call) in evidence.calls.iter().filter(|(value, _)| value.manner().laned) {
        if lane != Some((value.caller, value.worker)) {
            lane = Some((value.caller, value.worker));
            before.clear();
        }
        let (Some(sent), Some(first)) = (call.sent(), call.deliveries.first().map(|delivery| delivery.began)) else { continue };
        let earlier = before.iter().filter(|earlier| earlier.accepted < sent);
        if let Some(late) = earlier.clone().find(|earlier| earlier.first > first) {
            findings.violations.push(found(*value, call, late, evidence, history, Promise::OutOfOrder));
        } else if let Some(open) = earlier.into_iter().find(|earlier| earlier.ended.is_none_or(|ended| ended > first)) {
            findings.violations.push(found(*value, call, open, evidence, history, Promise::LaneOverlap));
        }
        if let Some(accepted) = call.known_accepted() {
            before.push(Before { accepted, value: *value, first, ended: call.ended() });
            // Each was answered before the next began, or that was a finding: so the last few are enough.
            let surplus = before.len().saturating_sub(64);
            before.drain(..surplus);
        }
    }
}

fn found(value: Value, call: &Call, earlier: &Before, evidence: &Evidence, history: &History, promise: Promise) -> Violation {
    let mut lines = evidence.calls.get(&earlier.value).map(|call| call.lines(earlier.value, history)).unwrap_or_default();
    lines.extend(call.lines(value, history));
    lines.sort();
    lines.dedup();
    Violation { promise, what: format!("{value} before {}", earlier.value), lines }
}

//! The judge: from what the apps wrote down and what was done to the system, whether the promises held. Pure.
//!
//! - [`evidence`]: everything that is known of each call, put together.
//! - [`promises`]: nothing accepted is lost, every outcome is what the app answered, nothing is delivered after its outcome.
//! - [`order`]: the calls of a lane.
//! - [`duplicates`]: what was delivered more than once, and why.
//! - [`zombies`]: what boxes did that had been taken for dead.
//! - [`takeover`]: how long it took.

pub(crate) mod duplicates;
pub(crate) mod evidence;
pub(crate) mod order;
pub(crate) mod promises;
pub(crate) mod takeover;
pub(crate) mod zombies;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::history::History;
use duplicates::Cause;
use evidence::Evidence;
use takeover::Takeover;

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Promise {
    /// An accepted call has no outcome, or its outcome can't be had.
    Lost,
    /// The proxy gave a call up: a dead letter, or one that it did not take for a call.
    GivenUp,
    /// A delivery began after the caller had the outcome.
    DeliveredAfterOutcome,
    /// An outcome is not what the app answered.
    WrongOutcome,
    /// A call has two outcomes.
    TwoOutcomes,
    /// A call arrived at the app as another than was sent.
    WrongCall,
    /// The first deliveries of a lane are not in the order in which its calls were accepted.
    OutOfOrder,
    /// A call was begun before the one before it in its lane had been answered.
    LaneOverlap,
    /// What was said to be not accepted was delivered.
    NotAcceptedButDelivered,
    /// A call was delivered again without anything having happened that explains it.
    DuplicateUnexplained,
    /// A call was delivered again because a box came or went in good order.
    DuplicateByRebalance,
    /// A second delivery did not say that there may have been a first.
    DuplicateUnmarked,
    /// A caller saw an error while boxes only came and went in good order.
    ErrorInStorm,
    /// A zombie began a call that its successor had begun, after its lease was over.
    BegunByZombie,
    /// The harness itself: a ledger has a gap.
    Gap,
    /// A process ended by itself, panicked, or the like.
    Broken,
}

impl Promise {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::GivenUp => "given_up",
            Self::DeliveredAfterOutcome => "delivered_after_outcome",
            Self::WrongOutcome => "wrong_outcome",
            Self::TwoOutcomes => "two_outcomes",
            Self::WrongCall => "wrong_call",
            Self::OutOfOrder => "out_of_order",
            Self::LaneOverlap => "lane_overlap",
            Self::NotAcceptedButDelivered => "not_accepted_but_delivered",
            Self::DuplicateUnexplained => "duplicates_unexplained",
            Self::DuplicateByRebalance => "duplicates_by_rebalance",
            Self::DuplicateUnmarked => "duplicates_unmarked",
            Self::ErrorInStorm => "errors_in_storms",
            Self::BegunByZombie => "begun_by_zombie",
            Self::Gap => "gaps_in_ledgers",
            Self::Broken => "broken_processes",
        }
    }

    /// All of them.
    pub(crate) const ALL: [Self; 16] = [
        Self::Lost,
        Self::GivenUp,
        Self::DeliveredAfterOutcome,
        Self::WrongOutcome,
        Self::TwoOutcomes,
        Self::WrongCall,
        Self::OutOfOrder,
        Self::LaneOverlap,
        Self::NotAcceptedButDelivered,
        Self::DuplicateUnexplained,
        Self::DuplicateByRebalance,
        Self::DuplicateUnmarked,
        Self::ErrorInStorm,
        Self::BegunByZombie,
        Self::Gap,
        Self::Broken,
    ];
}

/// One breach, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) promise: Promise,
    pub(crate) what: String,
    /// The lines of the ledgers about it.
    pub(crate) lines: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise.name(), self.what)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// What the judge found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    /// Calls that were sent at least once.
    pub(crate) calls: u64,
    /// Calls that were certainly accepted.
    pub(crate) accepted: u64,
    /// Calls whose caller has the app's answer.
    pub(crate) answered: u64,
    /// Calls of which nobody knows whether they were accepted, and that were never delivered.
    pub(crate) unknown: u64,
    /// Deliveries that began.
    pub(crate) deliveries: u64,
    pub(crate) violations: Vec<Violation>,
    /// Deliveries begun after the outcome by a new owner, of calls whose former owner was stopped or cut off and answered late: not promised, and counted apart.
    pub(crate) zombie_overlaps: u64,
    /// Further outcomes, of calls that a zombie and its successor both answered.
    pub(crate) zombie_outcomes: u64,
    /// Times that a box was stopped or cut off, and taken for dead meanwhile.
    pub(crate) zombies: u64,
    /// Deliveries that such a box began although its successor had begun them meanwhile: at most one each, which was under way when it was stopped. For each, how long after
    /// it could go on.
    pub(crate) begun_by_zombies: Vec<std::time::Duration>,
    /// Further deliveries by what they came from.
    pub(crate) duplicates: BTreeMap<Cause, u64>,
    /// Deliveries that were under way in a box when it was killed.
    pub(crate) in_flight_at_kills: u64,
    pub(crate) takeover: Takeover,
}

impl Findings {
    /// How often a promise was broken.
    pub(crate) fn count(&self, promise: Promise) -> u64 {
        self.violations.iter().filter(|violation| violation.promise == promise).count() as u64
    }
}

/// Judges.
pub(crate) fn judge(evidence: &Evidence, history: &History) -> Findings {
    let mut findings = Findings::default();
    for what in &history.broken {
        findings.violations.push(Violation { promise: Promise::Broken, what: what.clone(), lines: Vec::new() });
    }
    for what in &evidence.gaps {
        findings.violations.push(Violation { promise: Promise::Gap, what: what.clone(), lines: Vec::new() });
    }
    promises::judge(evidence, history, &mut findings);
    order::judge(evidence, history, &mut findings);
    duplicates::judge(evidence, history, &mut findings);
    zombies::judge(evidence, history, &mut findings);
    findings.takeover = takeover::measure(evidence, history);
    findings.violations.sort_by_key(|violation| violation.promise);
    findings
}

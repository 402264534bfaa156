//! The harness is tested too: each mistake that is planted into the state machines must be found, and nothing where none is.
//!
//! `BUG=no-fence` looks for one alone, `SEEDS=n` how far.

use bluebox_core::faults::{Bug, plant};

use crate::scenario::Scenario;
use crate::{number, run};

/// Seeds that are tried until one finds it: as many as are run for every change.
const SEEDS: u64 = 2_000;

/// What only real processes find: see the fail points of the tests of the contract.
const FOUND_ELSEWHERE: [Bug; 1] = [Bug::ReplyBeforeDurable];

/// The first seed that breaks a promise, and how.
fn found(bug: Bug, seeds: u64) -> Option<(u64, String)> {
    // Only ordinals are claimed.
    let change = if bug == Bug::ClaimOverlooked { Scenario::with_ordinals } else { |_: &mut Scenario| {} };
    plant(Some(bug));
    let found = (0..seeds).find_map(|seed| Some((seed, run(seed, false, change).0.err()?)));
    plant(None);
    found
}

#[test]
fn every_planted_bug_is_found() {
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let only = std::env::var("BUG").ok();
    let bugs = Bug::ALL.iter().filter(|bug| !FOUND_ELSEWHERE.contains(bug) && !bug.is_in_txmgr() && only.as_ref().is_none_or(|only| only == bug.name()));
    let mut missed = Vec::new();
    for bug in bugs {
        match found(*bug, seeds) {
            Some((seed, what)) => eprintln!("{}: seed {seed}: {}", bug.name(), what.chars().take(160).collect::<String>()),
            None => missed.push(bug.name()),
        }
    }
    assert!(missed.is_empty(), "{missed:?} were not found within {seeds} seeds");
}

//! The model is tested too: each mistake that is planted into the machines must be found.
//!
//! `BUG=txn-not-healed` looks for one alone.

use bluebox_core::faults::{Bug, plant};

use crate::explore::{explore, walk};
use crate::{STATES, STEPS, WALKS, number, scenario};

/// Where a bug is found, and how: first a little of everything is looked at.
fn found(bug: Bug) -> Option<String> {
    plant(Some(bug));
    let limit = number("STATES").unwrap_or(STATES);
    let explored = [limit / 16, limit].into_iter().find_map(|limit| {
        scenario::all().iter().find_map(|scenario| {
            let broken = explore(scenario, limit, 1).err()?;
            Some(format!("{}: after {} steps: {}", scenario.name, broken.way.len(), broken.what))
        })
    });
    let walked = || {
        scenario::large().iter().find_map(|scenario| {
            let (seed, broken) = (0..WALKS).find_map(|seed| Some((seed, walk(scenario, seed, STEPS).err()?)))?;
            Some(format!("{}: walk {seed}: {}", scenario.name, broken.what))
        })
    };
    let found = explored.or_else(walked);
    plant(None);
    found
}

#[test]
fn every_planted_bug_is_found() {
    let only = std::env::var("BUG").ok();
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().filter(|bug| bug.is_in_txmgr() && only.as_ref().is_none_or(|only| only == bug.name())) {
        match found(*bug) {
            Some(how) => eprintln!("{}: {how}", bug.name()),
            None => missed.push(bug.name()),
        }
    }
    assert!(missed.is_empty(), "{missed:?} were not found");
}

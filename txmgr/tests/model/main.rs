//! The machines of the transaction manager, explored: crashes at every point, zombies, appends that come late, twice and in another order, outcomes that are lost and told again, requests that
//! come again, deadlines that are late, compaction. A judge that sees only the log, the calls and the answers looks after each step whether a promise was broken, and from every state whether all
//! ends well once nothing goes wrong any more.
//!
//! `STATES=n` explores up to n states of each scenario, `WALKS=n` walks n times at random through larger ones, `ONLY=text` takes the scenarios whose names have it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod explore;
mod moves;
#[cfg(feature = "faults")]
mod planted;
mod scenario;
mod witness;
mod world;

use explore::{Broken, explore, walk};
use scenario::Scenario;

/// States of each scenario that are explored by default.
const STATES: usize = 16_000;
/// Walks through the larger ones.
const WALKS: u64 = 3_000;
/// How far one goes.
const STEPS: usize = 160;

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn only(scenario: &Scenario) -> bool {
    std::env::var("ONLY").map_or(true, |text| scenario.name.contains(&text))
}

fn fails(scenario: &Scenario, broken: Broken) -> ! {
    for line in &broken.way {
        eprintln!("{line}");
    }
    panic!("{}: {}", scenario.name, broken.what);
}

#[test]
fn no_way_breaks_a_promise() {
    let limit = number("STATES").unwrap_or(STATES);
    for scenario in scenario::all().into_iter().filter(only) {
        match explore(&scenario, limit, number("EVERY").unwrap_or(1)) {
            Ok(explored) => eprintln!("{}: {explored:?}", scenario.name),
            Err(broken) => fails(&scenario, broken),
        }
    }
}

#[test]
fn no_walk_breaks_a_promise() {
    let walks = number("WALKS").unwrap_or(WALKS);
    for scenario in scenario::large().into_iter().filter(only) {
        let mut steps = 0;
        for seed in 0..walks {
            match walk(&scenario, seed, STEPS) {
                Ok(walked) => steps += walked,
                Err(broken) => {
                    eprintln!("seed {seed}");
                    fails(&scenario, broken)
                }
            }
        }
        eprintln!("{}: {walks} walks, {steps} steps", scenario.name);
    }
}

//! The inbound side's state machines in simulated time: boxes that die, sleep, are cut off and come back, a log that loses acknowledgements, callers that repeat
//! themselves. Thousands of seeds in seconds; what a seed does is the same every time.
//!
//! `SEEDS=n` runs that many, `FROM=n` begins there, `SEED=n` runs one and prints all that happens in it.

// Events are few at a time and short-lived: boxes would only be noise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_enum_variant)]

mod boxes;
mod callers;
mod jobs;
mod log;
mod ordinals;
#[cfg(feature = "faults")]
mod planted;
mod random;
mod scenario;
mod waits;
mod witness;
mod world;

use bluebox_core::log::Offset;
use bluebox_proxy::inbound::frontier::Mark;

use crate::log::Place;
use crate::scenario::{MS, SECOND, Scenario};
use crate::witness::Seen;
use crate::world::{Event, World};

/// What they found, in their order: a handover that forgot suspects which it had inherited and not read; and of this harness itself, what it took for a broken promise: a
/// harmless call that was alone under way each time that its box was cut off, a search by one who was no member any more, and a log like Kafka that took a commit of an older
/// generation.
const FOUND: [u64; 4] = [1_012, 2_833, 3_365, 7_646];

/// Everything must be over this long after everything has healed.
const QUIET_WITHIN: u64 = 30 * 60 * SECOND;

impl World {
    /// Whether every call has ended and every box knows it.
    fn is_quiet(&self) -> bool {
        self.boxes.iter().all(|b| b.retired || b.alive && b.is_quiet())
            && self.witness.nothing_under_way()
            && self.witness.calls.values().all(|c| !c.ends.is_empty())
            // A commit that came late can have taken the frontier back.
            && (self.scenario.commit_late > 0 || (0..self.scenario.partitions).all(|n| self.uncommitted(n).is_none()))
    }

    /// What of a partition is not committed as done.
    fn uncommitted(&self, number: u32) -> Option<(Offset, Offset)> {
        let end = self.log.end(Place::Calls(number));
        let done = self.committed(number).0.and_then(|c| Mark::decode(&c).ok()).map(|mark| mark.done.base()).unwrap_or_default();
        (done < end).then_some((done, end))
    }

    fn run_until_quiet(&mut self, limit: u64) -> Result<(), String> {
        while !self.is_quiet() {
            if self.now >= limit {
                let open: Vec<_> = self.witness.calls.iter().filter(|(_, c)| c.ends.is_empty()).map(|(at, c)| (at, &c.call.request.target)).collect();
                let uncommitted: Vec<_> = (0..self.scenario.partitions).map(|n| self.uncommitted(n)).collect();
                let boxes: Vec<_> = self.boxes.iter().map(boxes::Simulated::says).collect();
                return Err(format!("it does not come to an end: calls without one {open:?}, uncommitted {uncommitted:?}, boxes {boxes:#?}"));
            }
            self.run_until(self.now + 500 * MS)?;
        }
        Ok(())
    }

    fn run_all(&mut self) -> Result<(), String> {
        self.run_until(self.scenario.heal_at)?;
        self.heal();
        self.run_until_quiet(self.scenario.heal_at + QUIET_WITHIN)?;
        self.witness.check_ends()?;
        self.run_until(self.now + 10 * SECOND)?;
        self.check_callers()?;
        // Whoever takes over now, in order or not, has nothing to deliver.
        self.witness.all_over = true;
        for index in (0..self.boxes.len()).filter(|index| !self.boxes[*index].retired).collect::<Vec<_>>() {
            if self.random.per_mille(500) {
                self.at(self.now, Event::Kill(index));
            } else {
                self.stop_box(index);
            }
        }
        self.run_until(self.now + 40 * SECOND)?;
        self.run_until_quiet(self.now + QUIET_WITHIN)
    }
}

fn run(seed: u64, traced: bool, change: impl FnOnce(&mut Scenario)) -> (Result<Seen, String>, Vec<String>) {
    let mut world = World::new(seed, traced, change);
    let result = world.run_all();
    (result.map(|()| world.witness.seen.clone()), world.trace.unwrap_or_default())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a seed; where it breaks a promise, prints all that happened before.
fn holds(seed: u64, change: fn(&mut Scenario)) -> Seen {
    match run(seed, false, change).0 {
        Ok(seen) => seen,
        Err(_) => {
            let (result, trace) = run(seed, true, change);
            for line in &trace {
                eprintln!("{line}");
            }
            panic!("seed {seed}: {}", result.map(|_| ()).expect_err("it broke a promise a moment ago"));
        }
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    no_seed_breaks_one(2_000, |_| {});
}

/// The same for a stateful component: each box claims an ordinal, some two boxes the same.
#[test]
fn no_seed_breaks_a_promise_of_ordinals() {
    no_seed_breaks_one(1_000, Scenario::with_ordinals);
}

fn no_seed_breaks_one(usual: u64, change: fn(&mut Scenario)) {
    if let Some(seed) = number("SEED") {
        let (result, trace) = run(seed, true, change);
        for line in &trace {
            eprintln!("{line}");
        }
        let seen = result.unwrap();
        eprintln!("{seen:?}");
        return;
    }
    let from = number("FROM").unwrap_or(0);
    let seeds = number("SEEDS").unwrap_or(usual);
    if number("SURVEY").is_some() {
        let mut broken = std::collections::BTreeMap::<String, Vec<u64>>::new();
        for seed in from..from + seeds {
            let began = std::time::Instant::now();
            let result = run(seed, false, change).0;
            if began.elapsed().as_millis() > 500 {
                eprintln!("seed {seed} took {:?}", began.elapsed());
            }
            if let Err(what) = result {
                let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).skip_while(|c| *c != ':').take(60).collect();
                broken.entry(kind).or_default().push(seed);
            }
        }
        for (what, seeds) in &broken {
            eprintln!("{} × {what}: {:?}", seeds.len(), &seeds[..seeds.len().min(8)]);
        }
        assert!(broken.is_empty());
        return;
    }
    let mut all = Seen::default();
    for seed in from..from + seeds {
        let seen = holds(seed, change);
        all.deliveries += seen.deliveries;
        all.redeliveries += seen.redeliveries;
        all.zombie_overlaps += seen.zombie_overlaps;
        all.parked += seen.parked;
        all.dead_letters += seen.dead_letters;
        all.poisoned += seen.poisoned;
        all.known += seen.known;
    }
    eprintln!("{seeds} seeds: {all:?}");
}

/// Seeds that have found something once; see docs/reliability.md.
#[test]
fn seeds_that_found_something_hold() {
    for seed in FOUND {
        holds(seed, |_| {});
    }
}

/// The same seed is the same world, so that a failure can be looked at.
#[test]
fn a_seed_is_the_same_every_time() {
    for seed in 0..5 {
        assert_eq!(run(seed, true, |_| {}).1, run(seed, true, |_| {}).1);
    }
}

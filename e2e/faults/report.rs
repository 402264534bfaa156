//! What is printed, and written as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::history::History;
use crate::plan::{Kind, LogKind};
use crate::steady::Growth;
use crate::witness::takeover::percentile;
use crate::witness::{Findings, Promise};

/// What came of one run.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) log: LogKind,
    pub(crate) seed: u64,
    /// What repeats it.
    pub(crate) command: String,
    pub(crate) done: BTreeMap<Kind, u64>,
    pub(crate) storms: usize,
    pub(crate) not_run: Vec<(Kind, String)>,
    /// Outcomes per second.
    pub(crate) throughput_before: f64,
    pub(crate) throughput_after: f64,
    pub(crate) growth: Vec<Growth>,
    pub(crate) findings: Findings,
    pub(crate) seconds: u64,
    /// Where its ledgers and logs are, if they were kept.
    pub(crate) kept: Option<PathBuf>,
}

impl Verdict {
    pub(crate) fn new(log: LogKind) -> Self {
        Self {
            log,
            seed: 0,
            command: String::new(),
            done: BTreeMap::new(),
            storms: 0,
            not_run: Vec::new(),
            throughput_before: 0.0,
            throughput_after: 0.0,
            growth: Vec::new(),
            findings: Findings::default(),
            seconds: 0,
            kept: None,
        }
    }

    /// What was done, and what the judge found.
    pub(crate) fn tell(&mut self, history: &History, findings: Findings) {
        self.done = history.done.clone();
        self.storms = history.storms.len();
        self.findings = findings;
    }

    /// Whether every promise held.
    pub(crate) fn is_good(&self) -> bool {
        self.findings.violations.is_empty() && !self.growth.iter().any(Growth::is_too_much)
    }

    fn kills(&self) -> u64 {
        self.done.iter().filter(|(kind, _)| kind.is_kill()).map(|(_, count)| count).sum()
    }

    fn json(&self) -> Value {
        let findings = &self.findings;
        let by_name =
            |counts: &BTreeMap<Kind, u64>| counts.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect::<serde_json::Map<_, _>>();
        let mut kills: BTreeMap<Kind, u64> = self.done.clone();
        let faults: BTreeMap<Kind, u64> = kills.extract_if(.., |kind, _| !kind.is_kill()).collect();
        let takeover = &findings.takeover;
        let mut value = json!({
            "log": self.log.to_string(),
            "seed": self.seed,
            "command": self.command,
            "seconds": self.seconds,
            "kills": by_name(&kills),
            "kills_total": self.kills(),
            "other_faults": by_name(&faults),
            "not_run": self.not_run.iter().map(|(kind, why)| json!({ "fault": kind.name(), "why": why })).collect::<Vec<_>>(),
            "calls": findings.calls,
            "accepted": findings.accepted,
            "answered": findings.answered,
            "unknown": findings.unknown,
            "deliveries": findings.deliveries,
            "zombies": findings.zombies,
            "begun_by_zombies_after_ms": times(&findings.begun_by_zombies),
            "zombie_overlaps": findings.zombie_overlaps,
            "zombie_outcomes": findings.zombie_outcomes,
            "duplicates": findings.duplicates.iter().map(|(cause, count)| (cause.to_string(), json!(count))).collect::<serde_json::Map<_, _>>(),
            "duplicates_total": findings.duplicates.values().sum::<u64>(),
            "in_flight_at_kills": findings.in_flight_at_kills,
            "takeover_ms": times(&takeover.answered),
            "takeover_until_begun_ms": times(&takeover.begun),
            "takeover_beyond_app_ms": times(&takeover.beyond_app),
            "takeover_detect_ms": times(&takeover.detect),
            "takeover_reassign_ms": times(&takeover.reassign),
            "takeover_redeliver_ms": times(&takeover.redeliver),
            "others_ms": times(&takeover.others),
            "moved_ms": times(&takeover.moved),
            "handover_ms": times(&takeover.handover),
            "handover_when_idle_ms": times(&takeover.handover_when_idle),
            "in_storms_ms": times(&takeover.in_storms),
            "outcomes_per_second": { "before": self.throughput_before.round(), "after": self.throughput_after.round() },
            "growth": self.growth.iter().map(Growth::json).collect::<Vec<_>>(),
            "violations": findings.violations.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>(),
            "kept": self.kept.as_ref().map(|path| path.display().to_string()),
        });
        for promise in Promise::ALL {
            value[promise.name()] = json!(findings.count(promise));
        }
        value
    }

    /// Tells a person.
    pub(crate) fn print(&self) {
        let findings = &self.findings;
        let list = |pairs: Vec<(String, u64)>| {
            if pairs.is_empty() { "none".to_owned() } else { pairs.into_iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ") }
        };
        println!("  {} s; {} kills; faults: {}", self.seconds, self.kills(), list(self.done.iter().map(|(kind, count)| (kind.to_string(), *count)).collect()));
        for (kind, why) in &self.not_run {
            println!("  NOT RUN: {kind}: {why}");
        }
        println!(
            "  {} calls, {} accepted, {} answered, {} never known; {} outcomes/s before, {} after",
            findings.calls,
            findings.accepted,
            findings.answered,
            findings.unknown,
            self.throughput_before.round(),
            self.throughput_after.round()
        );
        let duplicates = findings.duplicates.iter().map(|(cause, count)| (cause.to_string(), *count)).collect();
        println!("  {} deliveries; delivered again: {}; in flight at kills: {}", findings.deliveries, list(duplicates), findings.in_flight_at_kills);
        println!(
            "  zombies {}, of theirs begun late {} (at most {} ms), delivered after the outcome by their successors {}",
            findings.zombies,
            findings.begun_by_zombies.len(),
            percentile(&findings.begun_by_zombies, 100).unwrap_or_default().as_millis(),
            findings.zombie_overlaps
        );
        let takeover = &findings.takeover;
        for (name, of) in [
            ("takeover (kill to answer)", &takeover.answered),
            ("  of that beyond what the app takes", &takeover.beyond_app),
            ("  until another box begins", &takeover.begun),
            ("  detect", &takeover.detect),
            ("  reassign", &takeover.reassign),
            ("  redeliver", &takeover.redeliver),
            ("longest call to partitions that stay", &takeover.others),
            ("longest call to partitions that move", &takeover.moved),
            ("handover (asked to end, to the next call elsewhere)", &takeover.handover),
            ("  of that after the last call of the box", &takeover.handover_when_idle),
            ("calls during storms", &takeover.in_storms),
        ] {
            if let (Some(half), Some(most)) = (percentile(of, 50), percentile(of, 99)) {
                println!("  {name}: p50 {} ms, p99 {} ms, of {}", half.as_millis(), most.as_millis(), of.len());
            }
        }
        for growth in &self.growth {
            println!("  {}", growth.json());
        }
        let broken: Vec<_> = Promise::ALL.iter().map(|promise| (promise.name().to_owned(), findings.count(*promise))).filter(|(_, count)| *count > 0).collect();
        println!("  violations: {}", list(broken));
        for violation in findings.violations.iter().take(SHOWN) {
            println!("  {violation}");
        }
        if let Some(kept) = &self.kept {
            println!("  ledgers, logs and history are in {}\n  again: {}", kept.display(), self.command);
        }
    }
}

/// So many violations are shown in full.
const SHOWN: usize = 20;

fn times(sorted: &[Duration]) -> Value {
    let of = |percent| percentile(sorted, percent).map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    json!({ "p50": of(50), "p99": of(99), "max": of(100), "count": sorted.len() })
}

/// All runs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) runs: Vec<Verdict>,
}

impl Report {
    /// Whether every promise held in all of them.
    pub(crate) fn is_good(&self) -> bool {
        self.runs.iter().all(Verdict::is_good)
    }

    /// Writes it: the sums, and each run.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let runs: Vec<Value> = self.runs.iter().map(Verdict::json).collect();
        let sum = |name: &str| runs.iter().filter_map(|run| run[name].as_u64()).sum::<u64>();
        let mut all = json!({ "good": self.is_good(), "seeds": self.runs.iter().map(|run| run.seed).collect::<Vec<_>>() });
        for name in ["kills_total", "accepted", "answered", "duplicates_total", "zombies", "zombie_overlaps"].into_iter().chain(Promise::ALL.map(Promise::name))
        {
            all[name] = json!(sum(name));
        }
        let by_kind = |counts: fn(&Verdict) -> Vec<(String, u64)>| {
            let mut sums = BTreeMap::<String, u64>::new();
            self.runs.iter().flat_map(counts).for_each(|(name, count)| *sums.entry(name).or_default() += count);
            json!(sums)
        };
        all["kills"] = by_kind(|run| run.done.iter().filter(|(kind, _)| kind.is_kill()).map(|(kind, count)| (kind.name().to_owned(), *count)).collect());
        all["duplicates"] = by_kind(|run| run.findings.duplicates.iter().map(|(cause, count)| (cause.to_string(), *count)).collect());
        let mut takeover: Vec<Duration> = self.runs.iter().flat_map(|run| run.findings.takeover.answered.iter().copied()).collect();
        takeover.sort();
        all["takeover_ms"] = times(&takeover);
        all["runs"] = Value::Array(runs);
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text + "\n").with_context(|| format!("{}: the report can't be written", path.display()))
    }
}

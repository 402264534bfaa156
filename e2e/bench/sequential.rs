//! One call after the other: the floor, direct HTTP, pass-through and durable calls take turns.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::floor::Floor;
use crate::http::{Connection, Target};
use crate::load::sequential;
use crate::numbers::{Rounds, rounded};
use crate::options::{LogKind, RunOptions};
use crate::report::Report;
use crate::system::System;
use crate::usage::Used;

/// Not counted: connections are made, and code is loaded.
const WARM_UP: u32 = 200;
/// As good as for ever.
const NO_LIMIT: Duration = Duration::from_secs(3_600);

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    let pair = system.pair(&[], &[]).await?;
    let mut floor = match (options.log, &options.brokers) {
        (LogKind::Kafka, Some(brokers)) => Some(Floor::start(brokers, system.prefix(), options.body).await?),
        _ => None,
    };
    let app = pair.app.at;
    let direct = Target::direct(app, "/items", system.body())?;
    let passed = Target::through(pair.caller.at, &app.to_string(), "/items", system.body())?;
    let mut over_http = Vec::new();
    for (name, target) in [("direct", direct), ("passthrough", passed), ("durable", pair.durable.clone())] {
        let mut connection = Connection::open(target.at).await?;
        sequential(&mut connection, &target, WARM_UP).await?;
        over_http.push((name, target, connection, Rounds::default()));
    }
    if let Some(floor) = &mut floor {
        floor.play(1, WARM_UP.into(), NO_LIMIT)?;
    }
    let mut of_floor = Rounds::default();
    let (mut waits, mut cpu, mut threads) = (0, Duration::ZERO, BTreeMap::<String, Used>::new());
    for round in 0..options.rounds {
        if let Some(floor) = &mut floor {
            let (times, took) = floor.play(1, options.calls.into(), NO_LIMIT)?;
            of_floor.add(times, took);
        }
        for (name, target, connection, rounds) in &mut over_http {
            let (before, threads_before) = (pair.used()?, pair.used_by_threads()?);
            let (times, took) = sequential(connection, target, options.calls).await?;
            rounds.add(times, took);
            if *name == "durable" {
                let used = pair.used()?.since(before);
                waits += used.waits;
                cpu += used.cpu;
                for (name, used) in pair.used_by_threads()? {
                    let sum = threads.entry(name.clone()).or_default();
                    *sum = sum.and(used.since(threads_before.get(&name).copied().unwrap_or_default()));
                }
            }
        }
        report.progress(round + 1, options.rounds);
    }
    if floor.is_some() {
        report.put("floor", of_floor.json());
    }
    for (name, _, _, rounds) in &over_http {
        report.put(name, rounds.json());
    }
    let calls = f64::from(options.calls * options.rounds);
    #[allow(clippy::cast_precision_loss, reason = "fewer than that")]
    let waits = waits as f64 / calls;
    #[allow(clippy::cast_precision_loss, reason = "fewer than that")]
    let per_call = |used: Used| json!({ "cpu_us": rounded(used.cpu.as_secs_f64() * 1e6 / calls), "waits": rounded(used.waits as f64 / calls) });
    let threads: serde_json::Map<_, _> = threads.into_iter().map(|(name, used)| (name, per_call(used))).collect();
    report.put("threads_per_sequential_call", threads.into());
    report.put("proxy", json!({ "sequential_cpu_ms_per_1000_calls": rounded(cpu.as_secs_f64() * 1e6 / calls), "sequential_waits_per_call": rounded(waits) }));
    Ok(())
}

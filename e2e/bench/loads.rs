//! 64 and 512 callers at once, beside the floor with as many in flight.

use serde_json::{Map, json};

use crate::floor::Floor;
use crate::load::Callers;
use crate::numbers::{Rounds, rounded};
use crate::options::{LogKind, RunOptions};
use crate::report::Report;
use crate::system::System;
use crate::usage;

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    let pair = system.pair(&[], &[]).await?;
    let mut floor = match (options.log, &options.brokers) {
        (LogKind::Kafka, Some(brokers)) => Some(Floor::start(brokers, system.prefix(), options.body).await?),
        _ => None,
    };
    let (caller, callee) = (pair.caller.process.pid(), pair.callee.process.pid());
    let mut kinds = Vec::new();
    for count in &options.callers {
        let mut callers = Callers::open(&pair.durable, *count).await?;
        callers.call(&pair.durable, None, options.time).await?;
        if let Some(floor) = &mut floor {
            floor.play(*count, u64::MAX, options.time / 2)?;
        }
        kinds.push((*count, callers, Rounds::default(), Rounds::default(), Vec::new()));
    }
    // Fewer rounds than of sequential calls: each is longer.
    let all = options.rounds.div_ceil(2);
    let mut peak = 0;
    for round in 0..all {
        for (count, callers, durable, bare, cpu) in &mut kinds {
            if let Some(floor) = &mut floor {
                let (times, took) = floor.play(*count, u64::MAX, options.time)?;
                bare.add(times, took);
            }
            let before = pair.used()?;
            let (times, took) = callers.call(&pair.durable, None, options.time).await?;
            let used = pair.used()?.since(before);
            #[allow(clippy::cast_precision_loss, reason = "fewer than that")]
            let calls = times.len().max(1) as f64;
            #[allow(clippy::cast_precision_loss, reason = "fewer than that")]
            cpu.push((used.cpu.as_secs_f64() * 1e6 / calls, used.waits as f64 / calls));
            durable.add(times, took);
            peak = peak.max(usage::resident_bytes(caller)?).max(usage::resident_bytes(callee)?);
        }
        report.progress(round + 1, all);
    }
    let mut proxy = Map::new();
    for (count, _, durable, bare, used) in kinds {
        report.put(&format!("durable_{count}"), durable.json());
        if floor.is_some() {
            report.put(&format!("floor_{count}"), bare.json());
        }
        let cpu = crate::numbers::median(used.iter().map(|(cpu, _)| *cpu).collect());
        let waits = crate::numbers::median(used.iter().map(|(_, waits)| *waits).collect());
        proxy.insert(format!("cpu_ms_per_1000_calls_{count}"), rounded(cpu).into());
        proxy.insert(format!("waits_per_call_{count}"), rounded(waits).into());
        // What is told as *the* figure is that with 64 callers, or with as many as there were first.
        proxy.entry("cpu_ms_per_1000_calls").or_insert(rounded(cpu).into());
    }
    proxy.insert("load_rss_bytes".to_owned(), peak.into());
    proxy.insert("threads".to_owned(), json!({ "caller": usage::threads(caller)?, "callee": usage::threads(callee)? }));
    report.put("proxy", proxy.into());
    Ok(())
}

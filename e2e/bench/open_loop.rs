//! Calls at given rates, whether or not those before have been answered.

use serde_json::{Map, Value};

use crate::load::{Callers, at_rate};
use crate::numbers::Rounds;
use crate::options::RunOptions;
use crate::report::Report;
use crate::system::System;

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    let pair = system.pair(&[], &[]).await?;
    Callers::open(&pair.durable, 64).await?.call(&pair.durable, None, options.time).await?;
    let mut kinds: Vec<_> = options.rates.iter().map(|rate| (*rate, Rounds::default())).collect();
    let all = options.rounds.div_ceil(2);
    for round in 0..all {
        for (rate, rounds) in &mut kinds {
            let (times, took) = at_rate(&pair.durable, *rate, options.time).await?;
            rounds.add(times, took);
        }
        report.progress(round + 1, all);
    }
    let found: Map<String, Value> = kinds.into_iter().map(|(rate, rounds)| (rate.to_string(), rounds.json())).collect();
    report.put("open_loop", found.into());
    Ok(())
}

//! One call in a hundred takes a second in the app: what the others notice of it.

use serde_json::json;

use crate::load::Callers;
use crate::numbers::Rounds;
use crate::options::RunOptions;
use crate::report::Report;
use crate::system::System;

/// With 64 callers that call again at once, one call in a hundred that takes a second would soon have caught all of them. So there are more.
const CALLERS: usize = 256;

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    // Otherwise the slow ones alone take all the places that a box has.
    let pair = system.pair(&[], &["--concurrency=512".to_owned()]).await?;
    let slow = pair.durable.path("/slow")?;
    let mut callers = Callers::open(&pair.durable, CALLERS).await?;
    callers.call(&pair.durable, None, options.time).await?;
    let (mut without, mut with) = (Rounds::default(), Rounds::default());
    let all = options.rounds.div_ceil(2);
    for round in 0..all {
        let (times, took) = callers.call(&pair.durable, None, options.time).await?;
        without.add(times, took);
        let (times, took) = callers.call(&pair.durable, Some(&slow), options.time).await?;
        with.add(times, took);
        report.progress(round + 1, all);
    }
    report.put("slow_calls", json!({ "callers": CALLERS, "slow_percent": 1, "others": with.json(), "without_slow": without.json() }));
    Ok(())
}

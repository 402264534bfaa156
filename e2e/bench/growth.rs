//! What grows with the number of components, and with the number of replicas of one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Connection, Target};
use crate::load::{Callers, sequential};
use crate::numbers::{Rounds, rounded};
use crate::options::RunOptions;
use crate::report::Report;
use crate::system::{Listening, Pair, System};
use crate::usage;

/// Components that one process registers at once.
const BATCH: usize = 50;
/// How long an idle proxy is watched.
const IDLE: Duration = Duration::from_secs(5);
/// Callers of the throughput.
const CALLERS: usize = 64;

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let mut found = Vec::new();
    let system = System::start(options).await?;
    let pair = system.pair(&[], &[]).await?;
    let mut registered = 1;
    for count in &options.components {
        register(&system, &pair, registered, *count).await?;
        registered = registered.max(*count);
        let mut figures = figures(options, &system, &pair).await?;
        figures["components"] = json!(count);
        found.push(figures);
        report.say(&format!("  {count} components: {}", found.last().unwrap_or(&Value::Null)));
        report.put("growth_components", found.clone().into());
        report.write()?;
    }
    drop(pair);

    let mut found = Vec::new();
    let system = System::start(options).await?;
    let pair = system.pair(&[], &[]).await?;
    let mut others: Vec<Listening> = Vec::new();
    for count in &options.replicas {
        while others.len() + 1 < *count {
            others.push(system.proxy(&[system.serve(pair.app.at)]).await?);
        }
        settle(&pair).await?;
        let mut figures = figures(options, &system, &pair).await?;
        figures["replicas"] = json!(count);
        found.push(figures);
        report.say(&format!("  {count} replicas: {}", found.last().unwrap_or(&Value::Null)));
        report.put("growth_replicas", found.clone().into());
        report.write()?;
    }
    Ok(())
}

/// Makes components known, until there are so many. Nobody serves them: their app is not there.
async fn register(system: &System, pair: &Pair, from: usize, to: usize) -> anyhow::Result<()> {
    let nowhere = "127.0.0.1:1";
    for first in (from..to).step_by(BATCH) {
        let names: Vec<_> = (first..to.min(first + BATCH)).map(|number| format!("component-{number}")).collect();
        let flags: Vec<_> = names.iter().map(|name| format!("--serve={name}={nowhere},partitions=1")).collect();
        let registrar = system.proxy(&flags).await?;
        let began = Instant::now();
        for name in &names {
            bluebox_e2e::proxy::knows(pair.caller.at, name).await;
        }
        drop(registrar);
        eprintln!("  {} components are registered; the last {} took {:.1} s", first + names.len(), names.len(), began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Waits until calls are answered as fast as they were before partitions moved: none waits for a new owner.
async fn settle(pair: &Pair) -> anyhow::Result<()> {
    let mut connection = Connection::open(pair.durable.at).await?;
    for _ in 0..30 {
        let (times, _) = sequential(&mut connection, &pair.durable, 200).await?;
        if times.percentile(100.0) < 100_000.0 {
            break;
        }
    }
    Ok(())
}

async fn figures(options: &RunOptions, system: &System, pair: &Pair) -> anyhow::Result<Value> {
    let (caller, callee) = (pair.caller.process.pid(), pair.callee.process.pid());
    let mut connection = Connection::open(pair.durable.at).await?;
    sequential(&mut connection, &pair.durable, 100).await?;
    let mut alone = Rounds::default();
    for _ in 0..options.rounds.div_ceil(2) {
        let (times, took) = sequential(&mut connection, &pair.durable, options.calls).await?;
        alone.add(times, took);
    }
    let mut callers = Callers::open(&pair.durable, CALLERS).await?;
    callers.call(&pair.durable, None, options.time).await?;
    let before = pair.used()?;
    let (times, took) = callers.call(&pair.durable, None, options.time).await?;
    let used = pair.used()?.since(before);
    #[allow(clippy::cast_precision_loss, reason = "fewer than that")]
    let calls = times.len().max(1) as f64;
    let mut many = Rounds::default();
    many.add(times, took);
    drop((callers, connection));
    // One that knows as much and has done nothing.
    let fresh = system.proxy(&["--name=visitor".to_owned()]).await?;
    let target = Target::through(fresh.at, "cart", "/items", system.body())?;
    system.answers(&target, "cart").await?;
    tokio::time::sleep(IDLE / 2).await;
    let (idle_caller, idle_callee) = (usage::used(caller)?, usage::used(callee)?);
    tokio::time::sleep(IDLE).await;
    let per_second = |pid, before| anyhow::Ok(rounded(usage::used(pid)?.since(before).cpu.as_secs_f64() * 1_000.0 / IDLE.as_secs_f64()));
    Ok(json!({
        "p50_us": rounded(alone.percentile(50.0)), "p99_us": rounded(alone.percentile(99.0)), "per_second_64": rounded(many.per_second()),
        "cpu_ms_per_1000_calls_64": rounded(used.cpu.as_secs_f64() * 1e6 / calls),
        "rss_bytes": { "caller": usage::resident_bytes(caller)?, "callee": usage::resident_bytes(callee)?, "fresh": usage::resident_bytes(fresh.process.pid())? },
        "idle_cpu_ms_per_second": { "caller": per_second(caller, idle_caller)?, "callee": per_second(callee, idle_callee)? },
        "threads": { "caller": usage::threads(caller)?, "callee": usage::threads(callee)? },
    }))
}

//! `bluebox status`: how each component does.

use std::io::Write as _;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use http::Method;

use super::door::Door;
use super::{OutputOptions, SystemOptions, Whom, get, write_table};
use crate::units::spell;
use crate::watch::history::ago;
use crate::watch::{self, Status};

/// Shows how each component does: its boxes, calls a second, how many of them end well, how long they take, what is left to do, and how old the oldest of that is.
///
/// Under `bluebox up` rate, success and times are those of the last minute. Of any other log only what the log itself says is shown: what is left, and dead letters.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox status
  bluebox status -o json | jq '.components[] | select(.backlog > 100) | .name'
  bluebox status --brokers kafka:9092        what the log says, wherever the boxes are
  bluebox status --context production        of a cluster, as its bluebox-watch sees it")]
pub(crate) struct StatusOptions {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    system: SystemOptions,
}

/// How long a watch may take to have looked at the log for the first time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows it.
pub(crate) async fn run(options: StatusOptions) -> anyhow::Result<()> {
    let page = options.system.running().and_then(|state| state.page);
    let whom = match page {
        Some(page) => Whom::Watch(page.into()),
        None => options.system.whom().await?,
    };
    let (status, boxes) = match whom {
        Whom::Watch(door) => (ask(&door).await?, true),
        Whom::Log(reached) => (watch::once(reached).await?, false),
    };
    let mut out = std::io::stdout().lock();
    if options.output.is_json() {
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
        return Ok(());
    }
    if let Some(problem) = &status.problem {
        writeln!(out, "the last look failed, this is from {} ago: {problem}", spell(ago(status.at_ms)))?;
    }
    if status.components.is_empty() {
        writeln!(out, "no component was registered yet")?;
        return Ok(());
    }
    let head = [
        ("COMPONENT", false),
        ("CLASS", false),
        ("BOXES", true),
        ("CALLS/S", true),
        ("SUCCESS", true),
        ("P50", true),
        ("P99", true),
        ("IN FLIGHT", true),
        ("BACKLOG", true),
        ("OLDEST", true),
        ("DEAD", true),
    ];
    let rows: Vec<Vec<String>> = status.components.iter().map(|component| row(component, boxes)).collect();
    write_table(&mut out, &head, &rows)?;
    Ok(())
}

fn row(component: &watch::ComponentStatus, boxes: bool) -> Vec<String> {
    let nothing = || "-".to_owned();
    let seen = component.seen.as_ref();
    let time = |seconds: Option<f64>| {
        seconds.map_or_else(nothing, |seconds| if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") })
    };
    let log = &component.log;
    vec![
        log.name.to_string(),
        format!("{:?}", log.class).to_lowercase(),
        if boxes && seen.is_some() { component.boxes.len().to_string() } else { nothing() },
        seen.map_or_else(nothing, |seen| format!("{:.1}", seen.rate)),
        seen.and_then(|seen| seen.success).map_or_else(nothing, |success| format!("{:.1} %", success * 100.0)),
        time(seen.and_then(|seen| seen.p50_seconds)),
        time(seen.and_then(|seen| seen.p99_seconds)),
        seen.map_or_else(nothing, |seen| seen.in_flight.to_string()),
        log.backlog.to_string(),
        log.oldest_ms.map_or_else(nothing, |at| spell(ago(at))),
        log.dead_letters.to_string(),
    ]
}

/// Asks a watch; waits until it has looked for the first time.
async fn ask(door: &Door) -> anyhow::Result<Status> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status: Status = get::json(Method::GET, door, "/v1/status").await?;
        if status.at_ms > 0 || tokio::time::Instant::now() > deadline {
            return Ok(status);
        }
        if let Some(problem) = status.problem {
            bail!("the log could not be looked at: {problem}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

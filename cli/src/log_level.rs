//! `bluebox log-level`: what a process logs, changed while it runs.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments of options are what --help prints")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_observe::level;
use clap::Args;
use http::{Method, StatusCode};

use crate::operate::door::Door;
use crate::operate::get;
use crate::up::state;

/// What `bluebox log-level --help` ends with.
pub(crate) const EXAMPLES: &str = "\
Examples:
  The box `cart` of the `bluebox up` here (all its replicas), for ten minutes:
    bluebox log-level cart debug

  One module of one replica, for an hour:
    bluebox log-level cart-0 info,bluebox_proxy::inbound=trace --for 1h

  A pod (the same in its containers `txmgr` and `injector`): the command runs beside what it changes, so Kubernetes decides who may:
    kubectl -n shop exec cart-7d4b9 -c proxy -- /bluebox log-level debug

  What is logged now:
    kubectl -n shop exec cart-7d4b9 -c proxy -- /bluebox log-level

It falls back by itself. Who changed it is a line in that log.";

/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Changes what a proxy, the transaction manager or the injector logs, for a time; or shows it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LogLevelOptions {
    /// [NAME] LEVEL: a box of the `bluebox up` here, a replica (`cart-0`), or a component, by default the process at --control; and error, warn, info, debug, trace, off, or levels by
    /// module, as in `info,bluebox_proxy=debug`.
    #[arg(value_name = "[NAME] LEVEL", num_args = 0..=2)]
    what: Vec<String>,
    /// After this it falls back to what the process was started with.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = time)]
    time: Duration,
    /// Where the process is told: its --control.
    #[arg(long, env = "BLUEBOX_CONTROL", value_name = "HOST:PORT", default_value = "127.0.0.1:4142")]
    control: SocketAddr,
    /// The data directory of the `bluebox up` in question.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR", default_value = ".bluebox")]
    data: PathBuf,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = crate::units::positive_duration(text)?;
    let in_bounds = (1..=24 * 3600).contains(&time.as_secs());
    if in_bounds { Ok(time) } else { Err("from a second to a day: for longer, start it with --log-level".to_owned()) }
}

pub(crate) async fn run(options: LogLevelOptions) -> anyhow::Result<()> {
    let (name, level) = match options.what.as_slice() {
        [] => (None, None),
        [one] if level::check(one).is_ok() => (None, Some(one)),
        [one] if options.data.join(state::FILE).exists() => (Some(one), None),
        [one] => bail!("{}", level::check(one).err().unwrap_or_default()),
        [name, level] => (Some(name), Some(level)),
        _ => bail!("a name and a level, no more"),
    };
    if let Some(level) = level {
        level::check(level).map_err(anyhow::Error::msg)?;
    }
    let told = match name {
        Some(name) => of_up(&options, name)?,
        None => vec![(options.control.to_string(), options.control)],
    };
    for (who, control) in told {
        let path = level.map_or_else(|| level::PATH.to_owned(), |level| format!("{}?level={level}&for={}", level::PATH, options.time.as_secs()));
        let method = if level.is_some() { Method::PUT } else { Method::GET };
        let answer = get::ask(method, &Door::At(control.to_string()), &format!("http://{control}{path}"), PATIENCE).await;
        let answer = answer.with_context(|| format!("{who}: nobody could be told (--control names where a process listens for that)"))?;
        let text = String::from_utf8_lossy(answer.body());
        if answer.status() != StatusCode::OK {
            bail!("{who}: {}", text.trim());
        }
        println!("{who}: {}", text.trim());
    }
    Ok(())
}

/// The proxies of a `bluebox up` that have this name.
fn of_up(options: &LogLevelOptions, name: &str) -> anyhow::Result<Vec<(String, SocketAddr)>> {
    let in_a_cluster = "in a cluster: kubectl exec POD -c proxy -- /bluebox log-level LEVEL";
    let state = state::read(&options.data)
        .with_context(|| format!("no `bluebox up` runs in {} (--data names another place); {in_a_cluster}", options.data.display()))?;
    let is_it = |unit: &&state::UnitState| unit.name == name || unit.box_name == name || unit.components.iter().any(|component| component == name);
    let told: Vec<_> = state.units.iter().filter(is_it).filter_map(|unit| Some((unit.name.clone(), unit.control?))).collect();
    if told.is_empty() {
        let there: Vec<_> = state.units.iter().map(|unit| unit.name.as_str()).collect();
        bail!("`{name}` is none of what runs in {}: {}; {in_a_cluster}", options.data.display(), there.join(", "));
    }
    Ok(told)
}

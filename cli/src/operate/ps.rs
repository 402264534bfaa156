//! `bluebox ps`: what runs.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::{OutputOptions, running};

/// Shows what a `bluebox up` runs: replicas, their processes and ports, and how often they were started again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox ps
  bluebox ps --data ~/shop/.bluebox
  bluebox ps -o json | jq '.units[].status'")]
pub(crate) struct PsOptions {
    /// The data directory of the `bluebox up` in question.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR", default_value = ".bluebox")]
    data: PathBuf,
    #[command(flatten)]
    output: OutputOptions,
}

/// Shows it.
pub(crate) fn run(options: &PsOptions) -> anyhow::Result<()> {
    let Some(state) = running(&options.data) else {
        bail!("{}: no `bluebox up` runs on this data directory (--data names another)", options.data.display());
    };
    let mut out = std::io::stdout().lock();
    if options.output.is_json() {
        writeln!(out, "{}", serde_json::to_string_pretty(&state)?)?;
        return Ok(());
    }
    writeln!(out, "{} (pid {})", state.file.display(), state.pid)?;
    writeln!(out, "{:<20} {:<18} {:>8} {:>8} {:>8}  {:<21} RESTARTS", "NAME", "STATUS", "APP", "PORT", "PROXY", "CALLS OUT AT")?;
    let number = |n: u32| if n == 0 { "-".to_owned() } else { n.to_string() };
    for unit in &state.units {
        let port = unit.app_port.map_or_else(|| "-".to_owned(), |port| port.to_string());
        let proxy = unit.proxy.map_or_else(|| "-".to_owned(), |proxy| proxy.to_string());
        let restarts = match &unit.last_restart {
            Some(why) => format!("{} (last: {why})", unit.restarts),
            None => unit.restarts.to_string(),
        };
        writeln!(out, "{:<20} {:<18} {:>8} {:>8} {:>8}  {:<21} {restarts}", unit.name, unit.status, number(unit.app_pid), port, number(unit.proxy_pid), proxy)?;
    }
    Ok(())
}

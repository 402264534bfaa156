//! `bluebox drain`: no more calls into an app that is about to end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::{Method, StatusCode};

use super::get;

/// Tells a proxy to take no more calls into its app, and waits until none is being delivered. Calls out of the app go on. There is no way back: the box is about to end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox drain                                              as a preStop hook, beside the proxy
  bluebox drain --control 127.0.0.1:4142 --within 30s")]
pub(crate) struct DrainOptions {
    /// The proxy's --control.
    #[arg(long, env = "BLUEBOX_CONTROL", value_name = "HOST:PORT", default_value = "127.0.0.1:4142")]
    control: SocketAddr,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = crate::units::duration)]
    within: Duration,
}

pub(crate) async fn run(options: DrainOptions) -> anyhow::Result<()> {
    let url = format!("http://{}/drain?within={}", options.control, options.within.as_secs());
    let patience = options.within + Duration::from_secs(5);
    let answer =
        get::ask(Method::POST, &options.control.into(), &url, patience).await.context("no proxy could be told (--control names where it listens for that)")?;
    if answer.status() != StatusCode::OK {
        bail!("{}: {}", answer.status(), String::from_utf8_lossy(answer.body()).trim());
    }
    Ok(())
}

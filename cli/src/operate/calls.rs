//! `bluebox calls ID`: what became of a call.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{get, running};

/// Asks what became of a call: one that was sent with `Prefer: respond-async` or an `Idempotency-Key`. The same as GET http://bluebox/v1/calls/ID through any proxy.
#[derive(Debug, Args)]
pub(crate) struct CallsOptions {
    /// The id, or the whole `Location` that the caller was given.
    id: String,
    /// The proxy to ask; by default the gateway of the `bluebox up` on the data directory, else 127.0.0.1:4140.
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::file::address)]
    proxy: Option<SocketAddr>,
    /// The data directory of that `bluebox up`.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR", default_value = ".bluebox")]
    data: PathBuf,
}

const PLACE: &str = "http://bluebox/v1/calls/";

/// Asks.
pub(crate) async fn run(options: CallsOptions) -> anyhow::Result<()> {
    let id = options.id.strip_prefix(PLACE).unwrap_or(&options.id);
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~')) {
        bail!("{:?}: no call has this id; it is what follows {PLACE} in the Location that the caller was given", options.id);
    }
    let proxy = options.proxy.or_else(|| running(&options.data)?.gateway).unwrap_or(crate::file::DEFAULT_GATEWAY);
    let answer = get::get(proxy, &format!("{PLACE}{id}"), Duration::from_secs(30)).await.context("no proxy could be asked (--proxy names one)")?;
    let field = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let mut out = std::io::stdout().lock();
    match field("bluebox-call-state") {
        Some("pending") => writeln!(out, "pending: it has no outcome yet")?,
        Some("ended") => {
            writeln!(out, "ended: {}", answer.status())?;
            for (name, value) in answer.headers() {
                writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
            }
            writeln!(out)?;
            out.write_all(answer.body())?;
        }
        _ => bail!("{}: {}", answer.status(), String::from_utf8_lossy(answer.body()).trim()),
    }
    Ok(())
}

//! `bluebox log`: the embedded log alone, as a process of its own. For tests that kill one part at a time.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::log::{self, Served};

/// Serves the embedded log of a directory.
#[derive(Debug, Args)]
pub(crate) struct LogServerOptions {
    /// Where it keeps its data.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The socket at which proxies find it.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// When it waits for the disk: `always`, `never`, or how much may be lost with the power, such as 50ms.
    #[arg(long, value_name = "WHEN", value_parser = log::parse_fsync)]
    fsync: Option<log::Fsync>,
    /// Ends when its standard input does.
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(options: LogServerOptions) -> anyhow::Result<()> {
    if options.with_parent {
        crate::family::end_with_parent()?;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let served = Served::start(&options.data, options.fsync.unwrap_or_default(), &options.socket).await?;
    eprintln!("the log in {} is served at {}", options.data.display(), options.socket.display());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    served.close().await;
    Ok(())
}

//! `bluebox incarnate`: what the init container of a box runs, each time that the box starts. Where there is a redirect, `bluebox redirect` does it too: each init container
//! more is up to a second more until the pod is ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bluebox_proxy::incarnation::Place;
use clap::Args;
use nix::time::{ClockId, clock_gettime};
use tracing::{info, warn};

use crate::logging::LoggingOptions;

/// Starts a box: waits, if it keeps dying, and puts the token that its proxy takes.
#[derive(Debug, Args)]
pub(crate) struct IncarnateOptions {
    /// The directory that it shares with the proxy.
    #[arg(long, value_name = "DIRECTORY")]
    incarnation: PathBuf,
    /// A directory to put this program into: for containers of the app whose liveness probe is a command.
    #[arg(long, value_name = "DIRECTORY")]
    program: Option<PathBuf>,
    #[command(flatten)]
    logging: LoggingOptions,
}

pub(crate) fn run(options: &IncarnateOptions) -> anyhow::Result<()> {
    options.logging.start()?;
    begin(&options.incarnation, options.program.as_deref())
}

/// Lets the box begin once more: waits, if it keeps dying, and puts the token that its proxy takes.
pub(crate) fn begin(incarnation: &Path, program: Option<&Path>) -> anyhow::Result<()> {
    if let Some(directory) = program {
        std::fs::copy(std::env::current_exe()?, directory.join("bluebox"))
            .with_context(|| format!("{}: this program can't be put there", directory.display()))?;
    }
    let place = Place::new(incarnation);
    let (history, wait) = place.former(since_the_machine_started()?)?;
    if !wait.is_zero() {
        // While it waits there is no proxy that could say it.
        let former_proxy = place.word()?.unwrap_or_else(|| "it died without a word".to_owned());
        warn!(
            former_proxy,
            incarnation = history.incarnations,
            short_lived = history.short_lived,
            wait_seconds = wait.as_secs(),
            "this box keeps dying; it waits before it starts"
        );
        std::thread::sleep(wait);
    }
    place.prepare(history, since_the_machine_started()?)?;
    info!(incarnation = history.incarnations, "a box starts");
    Ok(())
}

/// The same in all containers of a machine, and not changed by whoever sets its clock.
fn since_the_machine_started() -> anyhow::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?))
}

//! `bluebox started`: what the kubelet runs in the container of a proxy as soon as it has started it. It starts what comes next, and at last the app, when this has ended.
//!
//! A startup probe says the same, up to two seconds later: the kubelet asks it once a second, and looks at the answer when it looks at the pod the next time.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;

use super::alive;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until a proxy has started: what comes next need not wait for its being ready, which depends on more.
#[derive(Debug, Args)]
pub(crate) struct StartedOptions {
    /// The proxy's --admin.
    #[arg(long, value_name = "HOST:PORT")]
    admin: SocketAddr,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = crate::units::duration)]
    within: Duration,
}

pub(crate) fn run(options: &StartedOptions) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let problem = match alive::ask(options.admin, "/started") {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(no)) => no,
            Err(error) => error.to_string(),
        };
        if began.elapsed() >= options.within {
            bail!("the proxy at {} has not started after {}: {problem}", options.admin, humantime::format_duration(options.within));
        }
        thread::sleep(PAUSE);
    }
}

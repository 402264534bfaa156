//! An app as `up` sees it: through its shim (see [`family`](crate::family)).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::output::{Output, Source};
use crate::family::{Ending, Order, Report, SHIM, this_program};

/// How long the shim may take to end everything that is killed.
const KILL_TIME: Duration = Duration::from_secs(5);

/// A running app. Dropping it ends it, and everything below it, soon.
pub(crate) struct App {
    /// Its process.
    pub(crate) pid: i32,
    shim: Child,
    orders: OwnedWriteHalf,
    reports: Lines<BufReader<OwnedReadHalf>>,
    ended: Option<Ending>,
}

/// What to start.
pub(crate) struct Start<'a> {
    /// Program and arguments.
    pub(crate) command: &'a [String],
    /// Where.
    pub(crate) cwd: &'a PathBuf,
    /// On top of the environment of `up`.
    pub(crate) env: &'a BTreeMap<String, String>,
}

impl App {
    /// Starts an app; its lines go to the output.
    ///
    /// # Errors
    /// When it can't be run, in words for the user.
    pub(crate) async fn start(start: Start<'_>, output: &Output, source: &Source) -> anyhow::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut shim = Command::from(this_program())
            .arg(SHIM)
            .envs(start.env)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("bluebox can't start itself again")?;
        if let Some(lines) = shim.stdout.take() {
            tokio::spawn(output.clone().copy(source.clone(), lines));
        }
        if let Some(lines) = shim.stderr.take() {
            tokio::spawn(output.clone().copy(source.clone(), lines));
        }
        let (reports, orders) = UnixStream::from_std(ours)?.into_split();
        let mut app = Self { pid: 0, shim, orders, reports: BufReader::new(reports).lines(), ended: None };
        app.order(&Order::Start { command: start.command.to_vec(), cwd: start.cwd.clone() }).await;
        match app.report().await {
            Some(Report::Started(pid)) => app.pid = pid,
            Some(Report::Failed(why)) => anyhow::bail!(why),
            Some(Report::Exited(_)) | None => anyhow::bail!("it was killed while it started"),
        }
        Ok(app)
    }

    async fn order(&mut self, order: &Order) {
        if let Ok(mut line) = serde_json::to_vec(order) {
            line.push(b'\n');
            // A shim that is gone is seen where its reports end.
            let _ = self.orders.write_all(&line).await;
        }
    }

    async fn report(&mut self) -> Option<Report> {
        let line = self.reports.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }

    /// Done when the app has ended. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Ending {
        if let Some(ending) = self.ended {
            return ending;
        }
        loop {
            match self.report().await {
                Some(Report::Exited(ending)) => return *self.ended.insert(ending),
                Some(_) => {}
                None => {
                    // The shim was killed: the kernel has killed the app with it, the rest of its group is ours to end.
                    self.end_group().await;
                    return *self.ended.insert(Ending::Signal(Signal::SIGKILL as i32));
                }
            }
        }
    }

    async fn end_group(&self) {
        let began = Instant::now();
        // An error means that nobody is left in it.
        while killpg(Pid::from_raw(self.pid), Signal::SIGKILL).is_ok() && began.elapsed() < KILL_TIME {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks it to end, and waits for as long as it may take. False if it goes on.
    pub(crate) async fn terminate(&mut self, grace: Duration) -> bool {
        self.order(&Order::Terminate).await;
        tokio::time::timeout(grace, self.ended()).await.is_ok()
    }

    /// Ends it and everything below it, at once. Done when it is gone.
    pub(crate) async fn kill(mut self) {
        self.order(&Order::Kill).await;
        if tokio::time::timeout(KILL_TIME, self.shim.wait()).await.is_err() {
            let _ = self.shim.kill().await;
            self.end_group().await;
        }
    }
}

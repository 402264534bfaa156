//! The log, the app and the proxies of a measurement, as processes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bluebox_e2e::{Process, proxy};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};

use crate::http::{Connection, Target};
use crate::options::{LogKind, RunOptions};
use crate::usage::{self, Used};

/// How long a process may take to come up, and a first call to be answered.
const START: Duration = Duration::from_secs(90);

/// Where everything of one measurement runs: topics, addresses and files of its own.
pub(crate) struct System {
    bluebox: PathBuf,
    directory: TempDir,
    log_flag: String,
    prefix: String,
    proxy_flags: Vec<String>,
    environment: Vec<(&'static str, String)>,
    body: Bytes,
    partitions: u32,
    labels: Cell<u8>,
    _log: Option<Process>,
}

/// A process that listens.
pub(crate) struct Listening {
    pub(crate) process: Process,
    pub(crate) at: SocketAddr,
}

/// An app that is called, its proxy, and the proxy of a caller: all that a durable call passes.
pub(crate) struct Pair {
    pub(crate) app: Listening,
    pub(crate) caller: Listening,
    pub(crate) callee: Listening,
    /// A durable call.
    pub(crate) durable: Target,
}

impl System {
    /// Starts the log, if it is the embedded one.
    pub(crate) async fn start(options: &RunOptions) -> anyhow::Result<Self> {
        let bluebox = options.tested.bluebox()?;
        let directory = tempfile::Builder::new().prefix("bluebox-bench-").tempdir()?;
        let (log, log_flag) = match options.log {
            LogKind::Kafka => {
                let brokers = options.brokers.as_deref().filter(|brokers| !brokers.is_empty());
                let brokers = brokers.context("which Kafka? scripts/kafka run -- target/release/bluebox-bench, or --brokers HOST:PORT, or --log embedded")?;
                (None, format!("--brokers={brokers}"))
            }
            LogKind::Embedded => {
                let (log, socket) = start_log(&bluebox, directory.path()).await?;
                (Some(log), format!("--log-socket={}", socket.display()))
            }
        };
        let prefix = format!("bench-{}-{}", std::process::id(), unique());
        let body = vec![b'x'; options.body].into();
        Ok(Self {
            bluebox,
            directory,
            log_flag,
            prefix,
            proxy_flags: options.tested.proxy_flag.clone(),
            environment: Vec::new(),
            body,
            partitions: options.partitions,
            labels: Cell::new(0),
            _log: log,
        })
    }

    /// With more in the environment of its proxies.
    pub(crate) fn with_environment(mut self, environment: &[(&'static str, String)]) -> Self {
        self.environment = environment.to_vec();
        self
    }

    /// An address that nobody has.
    pub(crate) fn free_address(&self) -> anyhow::Result<SocketAddr> {
        let number = self.labels.get();
        self.labels.set(number.wrapping_add(1));
        free_address(number)
    }

    /// What its topics' names begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The body of every request.
    pub(crate) fn body(&self) -> Bytes {
        self.body.clone()
    }

    fn start_process(&self, name: &str, make: impl FnOnce(SocketAddr) -> anyhow::Result<Command>) -> anyhow::Result<Listening> {
        let number = self.labels.get();
        self.labels.set(number.wrapping_add(1));
        let at = free_address(number)?;
        Ok(Listening { process: Process::start(&format!("{name}-{number}"), make(at)?, self.directory.path()), at })
    }

    /// Starts an app.
    pub(crate) async fn app(&self) -> anyhow::Result<Listening> {
        let mut app = self.start_process("app", |at| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["app", "--listen", &at.to_string()]);
            Ok(command)
        })?;
        app.listens().await?;
        Ok(app)
    }

    /// Starts a proxy.
    pub(crate) async fn proxy(&self, flags: &[String]) -> anyhow::Result<Listening> {
        let mut proxy = self.start_process("proxy", |at| {
            let mut command = Command::new(&self.bluebox);
            command.args(["proxy", "--with-parent", "--log-level=warn", "--shared-by-callers=false", &self.log_flag]);
            command.arg(format!("--listen={at}")).arg(format!("--topic-prefix={}", self.prefix)).args(flags).args(&self.proxy_flags);
            command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
            Ok(command)
        })?;
        proxy.listens().await?;
        Ok(proxy)
    }

    /// Starts a transaction manager.
    pub(crate) async fn txmgr(&self, partitions: u32, flags: &[String]) -> anyhow::Result<Listening> {
        let mut txmgr = self.start_process("txmgr", |at| {
            let mut command = Command::new(&self.bluebox);
            command.args(["txmgr", "--with-parent", "--log-level=warn", &self.log_flag]);
            command.arg(format!("--listen={at}")).arg(format!("--topic-prefix={}", self.prefix)).arg(format!("--partitions={partitions}")).args(flags);
            Ok(command)
        })?;
        txmgr.listens().await?;
        Ok(txmgr)
    }

    /// The flag of a proxy that serves the called component.
    pub(crate) fn serve(&self, app: SocketAddr) -> String {
        format!("--serve=cart={app},partitions={}", self.partitions)
    }

    /// Starts what a durable call passes, and waits for the first to be answered.
    pub(crate) async fn pair(&self, caller_flags: &[String], callee_flags: &[String]) -> anyhow::Result<Pair> {
        let app = self.app().await?;
        let mut flags = vec![self.serve(app.at)];
        flags.extend_from_slice(callee_flags);
        let callee = self.proxy(&flags).await?;
        let mut flags = vec!["--name=shop".to_owned()];
        flags.extend_from_slice(caller_flags);
        let caller = self.proxy(&flags).await?;
        let durable = Target::through(caller.at, "cart", "/items", self.body())?;
        self.answers(&durable, "cart").await?;
        Ok(Pair { app, caller, callee, durable })
    }

    /// Waits until a component is known and answers.
    pub(crate) async fn answers(&self, target: &Target, component: &str) -> anyhow::Result<()> {
        proxy::knows(target.at, component).await;
        let first = async { Connection::open(target.at).await?.call(target).await };
        tokio::time::timeout(START, first).await.with_context(|| format!("{component} did not answer within {START:?}"))?
    }
}

impl Pair {
    /// What both proxies have used so far.
    pub(crate) fn used(&self) -> anyhow::Result<Used> {
        Ok(usage::used(self.caller.process.pid())?.and(usage::used(self.callee.process.pid())?))
    }

    /// What the threads of both have used so far, with `out` or `in` before their names.
    pub(crate) fn used_by_threads(&self) -> anyhow::Result<BTreeMap<String, Used>> {
        let mut all = BTreeMap::new();
        for (side, process) in [("out", &self.caller.process), ("in", &self.callee.process)] {
            all.extend(usage::used_by_threads(process.pid())?.into_iter().map(|(name, used)| (format!("{side} {name}"), used)));
        }
        Ok(all)
    }
}

impl Listening {
    async fn listens(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while TcpStream::connect(self.at).await.is_err() {
            ensure!(self.process.ended().is_none(), "a process has ended: {}", self.process.said());
            ensure!(began.elapsed() < START, "{}: nobody listens there after {START:?}: {}", self.at, self.process.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

async fn start_log(bluebox: &Path, directory: &Path) -> anyhow::Result<(Process, PathBuf)> {
    let socket = directory.join("log.sock");
    let mut command = Command::new(bluebox);
    command.args(["log", "--with-parent", "--data"]).arg(directory.join("log")).arg("--socket").arg(&socket);
    let mut log = Process::start("log", command, directory);
    let began = Instant::now();
    while UnixStream::connect(&socket).await.is_err() {
        ensure!(log.ended().is_none() && began.elapsed() < START, "the embedded log did not start: {}", log.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok((log, socket))
}

/// A number that no earlier system of this process had.
fn unique() -> u32 {
    static LAST: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// An address that nobody has. Each process of a measurement has a loopback address of its own, so that none takes the port of another, nor lacks ports to connect from.
fn free_address(number: u8) -> anyhow::Result<SocketAddr> {
    let process = u8::try_from(std::process::id() % 200).context("a number below 200")? + 20;
    let ip = Ipv4Addr::new(127, process, 210, number.max(1));
    TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr()).with_context(|| format!("{ip}: no port can be had"))
}

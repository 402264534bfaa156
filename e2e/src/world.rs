//! One test's log, directory and addresses.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::app::App;
use crate::deadline::eventually;
use crate::faults::Faults;
use crate::process::{self, Process};
use crate::proxy::ProxySpec;
use crate::supervise::Supervised;

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// The embedded one, in a process of its own.
    Embedded,
    /// The Kafka that `BLUEBOX_TEST_BROKERS` names.
    Kafka,
}

/// One test's surroundings. Nothing in it is shared with another test but the Kafka, where its topics have a prefix of their own.
pub struct World {
    log: LogKind,
    /// Which log, as a flag, where it is not the world's own.
    flag: Option<String>,
    name: String,
    ip: Ipv4Addr,
    prefix: String,
    brokers: Option<String>,
    directory: Option<TempDir>,
    embedded: Option<Process>,
    labels: std::cell::Cell<u32>,
}

/// How long a test may take. One that takes longer hangs.
const TEST: Duration = Duration::from_secs(150);

/// Runs a test in a world of its own; one that needs Kafka only where there is one.
pub fn run<F: Future<Output = ()>>(log: LogKind, name: &str, test: impl FnOnce(World) -> F) {
    let brokers = std::env::var("BLUEBOX_TEST_BROKERS").ok().filter(|brokers| !brokers.is_empty());
    if log == LogKind::Kafka && brokers.is_none() {
        eprintln!("{name}: NOT RUN: BLUEBOX_TEST_BROKERS names no Kafka (scripts/kafka run -- cargo test ...)");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::start(log, name, brokers).await;
        // It must still be there when the panic below unwinds: what is in it then tells what went on.
        let mut test = std::pin::pin!(tokio::time::timeout(TEST, test(world)));
        assert!(test.as_mut().await.is_ok(), "{name} hangs: it is not over after {TEST:?}");
    });
    runtime.shutdown_background();
}

impl World {
    async fn start(log: LogKind, name: &str, brokers: Option<String>) -> Self {
        let mut world = Self::around(log, name, brokers);
        if log == LogKind::Embedded {
            world.start_log().await;
        }
        world
    }

    /// Surroundings for processes on a log that somebody else looks after; `flag` says to a proxy which. For programs that are no tests.
    pub fn on(log: LogKind, name: &str, flag: &str) -> Self {
        let mut world = Self::around(log, name, None);
        world.flag = Some(flag.to_owned());
        world
    }

    fn around(log: LogKind, name: &str, brokers: Option<String>) -> Self {
        static LAST: AtomicU16 = AtomicU16::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        // Every test has a loopback address of its own, so that a port it let go of can't be taken by another before it takes it again.
        let [high, low] = number.to_be_bytes();
        let ip = Ipv4Addr::new(127, u8::try_from(process % 200).unwrap() + 10, high.wrapping_add(1), low.wrapping_add(1));
        let directory = tempfile::Builder::new().prefix("bluebox-e2e-").tempdir().unwrap();
        Self {
            log,
            flag: None,
            name: name.to_owned(),
            ip,
            prefix: format!("e2e-{process}-{number}"),
            brokers,
            directory: Some(directory),
            embedded: None,
            labels: std::cell::Cell::new(0),
        }
    }

    /// Which log it has.
    pub fn log(&self) -> LogKind {
        self.log
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().unwrap().path()
    }

    fn socket(&self) -> PathBuf {
        self.directory().join("log.sock")
    }

    fn log_command(&self, mut bluebox: Command) -> Command {
        bluebox.args(["log", "--with-parent", "--data"]).arg(self.directory().join("log")).arg("--socket").arg(self.socket());
        bluebox
    }

    /// Starts the embedded log with faults, under a supervisor, in the place of that which runs.
    pub async fn supervise_log(&mut self, faults: Faults) -> Supervised {
        self.kill_log();
        let arguments: Vec<_> = self.log_command(process::bluebox()).get_args().map(ToOwned::to_owned).collect();
        let log = Supervised::start("log", self.directory(), move || {
            let mut command = faults.command();
            command.args(&arguments);
            command
        });
        let socket = self.socket();
        eventually("the log is served", || {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.ok() }
        })
        .await;
        log
    }

    /// Starts the embedded log.
    pub async fn start_log(&mut self) {
        let mut log = Process::start("log", self.log_command(process::bluebox()), self.directory());
        let socket = self.socket();
        eventually("the log is served", || {
            assert_eq!(log.ended(), None, "{}", log.said());
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.ok() }
        })
        .await;
        self.embedded = Some(log);
    }

    /// From now on proxies are told of this Kafka.
    pub fn use_brokers(&mut self, brokers: &str) {
        self.brokers = Some(brokers.to_owned());
    }

    /// Kills the embedded log with SIGKILL.
    pub fn kill_log(&mut self) {
        self.embedded.take().unwrap().kill();
    }

    /// Leaves its files there when it ends: where. Nothing can be started in it any more.
    pub fn keep(&mut self) -> Option<PathBuf> {
        self.directory.take().map(TempDir::keep)
    }

    /// An address that nobody has.
    pub fn address(&self) -> SocketAddr {
        TcpListener::bind((self.ip, 0)).unwrap().local_addr().unwrap()
    }

    /// Starts an app.
    pub async fn app(&self, name: &str) -> App {
        App::start(name, self.address(), self.directory()).await
    }

    /// Flags that say which log.
    pub fn log_flags(&self) -> Vec<String> {
        let log = match (self.log, &self.brokers) {
            _ if self.flag.is_some() => self.flag.clone().unwrap_or_default(),
            (LogKind::Kafka, Some(brokers)) => format!("--brokers={brokers}"),
            _ => format!("--log-socket={}", self.socket().display()),
        };
        vec![log, format!("--topic-prefix={}", self.prefix)]
    }

    /// The proxy of a box, or a gateway: `name` is who calls.
    pub fn proxy(&self, name: &str) -> ProxySpec {
        let number = self.labels.replace(self.labels.get() + 1);
        let spec = ProxySpec {
            program: "proxy",
            label: format!("proxy-{number}-{name}"),
            listen: self.address(),
            arguments: self.log_flags(),
            directory: self.directory().to_owned(),
            faults: None,
        };
        spec.flag("--name", name)
            // A Kafka on a busy machine stands still for seconds at times, and a box that is alive must not be taken for dead then.
            .flag("--session-timeout", if self.log == LogKind::Kafka { "8s" } else { "3s" })
            .flag("--lease", "1s")
            .flag("--first-backoff", "20ms")
            .flag("--max-backoff", "500ms")
            .flag("--shared-by-callers", "false")
    }

    /// A replica of the transaction manager, with this number of partitions. It takes the requests of those who are in no box.
    pub fn txmgr(&self, partitions: u32) -> ProxySpec {
        let number = self.labels.replace(self.labels.get() + 1);
        let spec = ProxySpec {
            program: "txmgr",
            label: format!("txmgr-{number}"),
            listen: self.address(),
            arguments: self.log_flags(),
            directory: self.directory().to_owned(),
            faults: None,
        };
        spec.flag("--partitions", &partitions.to_string())
            .flag("--session-timeout", if self.log == LogKind::Kafka { "8s" } else { "3s" })
            .flag("--lease", "1s")
            .flag("--first-pause", "50ms")
            .flag("--longest-pause", "500ms")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(directory) = self.directory.take() else { return };
        if !std::thread::panicking() {
            return;
        }
        // Who wants to know why reads what the processes said.
        let kept = directory.keep();
        eprintln!("{} on {:?}: what its processes said is kept in {}", self.name, self.log, kept.display());
        let mut files: Vec<_> = std::fs::read_dir(&kept).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "log")) {
            let text = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().collect();
            eprintln!("---- {}", file.file_name().unwrap_or_default().to_string_lossy());
            for line in &lines[lines.len().saturating_sub(15)..] {
                eprintln!("{line}");
            }
        }
    }
}

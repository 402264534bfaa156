//! The log of a run as processes: brokers that can be killed, stopped and cut off one by one, or the embedded log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bluebox_e2e::Process;
use nix::sys::signal::Signal;
use tokio::net::{TcpStream, UnixStream};

use crate::clock::Moment;
use crate::plan::LogKind;
use crate::system::network::Door;

/// One broker, or the embedded log.
#[derive(Debug)]
struct Node {
    process: Option<Process>,
    at: Option<SocketAddr>,
}

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    kind: LogKind,
    /// Where it keeps what.
    directory: PathBuf,
    /// Where the processes say what they say.
    output: PathBuf,
    bluebox: PathBuf,
    nodes: Vec<Node>,
    environment: Vec<(String, String)>,
}

/// The script that knows how to run Kafka.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kafka")
}

/// A broker on a busy machine takes its time.
const START: Duration = Duration::from_secs(90);

impl Log {
    /// Makes a log that has nothing in it, and starts it. With `doors`, clients can be let in by as many; see `scripts/kafka --help`.
    pub(crate) async fn start(kind: LogKind, output: &Path, bluebox: &Path, doors: u16, environment: &[(String, String)]) -> anyhow::Result<(Self, Vec<Door>)> {
        let directory = output.join("log");
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let mut last = String::new();
        for _ in 0..3 {
            let mut log = Self {
                kind,
                directory: directory.clone(),
                output: output.to_owned(),
                bluebox: bluebox.to_owned(),
                nodes: Vec::new(),
                environment: environment.to_vec(),
            };
            let found = log.prepare(doors)?;
            for node in 0..kind.nodes() {
                log.start_node(node);
            }
            match log.await_nodes().await {
                Ok(()) => return Ok((log, found)),
                // Another process may have taken a port meanwhile.
                Err(error) => last = format!("{error:#}"),
            }
        }
        bail!("the log could not be started: {last}")
    }

    fn prepare(&mut self, doors: u16) -> anyhow::Result<Vec<Door>> {
        if !self.kind.is_kafka() {
            self.nodes.push(Node { process: None, at: None });
            return Ok(Vec::new());
        }
        let mut command = Command::new(script());
        command.args(["prepare", "--brokers", &self.kind.nodes().to_string(), "--doors", &doors.to_string(), "--dir"]).arg(&self.directory);
        let output = command.output().with_context(|| format!("{command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let brokers = std::fs::read_to_string(self.directory.join("brokers"))?;
        for address in brokers.trim().split(',') {
            self.nodes.push(Node { process: None, at: Some(address.parse().with_context(|| address.to_owned())?) });
        }
        let text = std::fs::read_to_string(self.directory.join("doors")).unwrap_or_default();
        text.lines().map(|line| Door::read(line).with_context(|| format!("no line of doors: {line}"))).collect()
    }

    fn socket(&self) -> PathBuf {
        self.output.join("log.sock")
    }

    /// The flags by which a proxy finds it, without a door.
    pub(crate) fn flag(&self) -> String {
        if !self.kind.is_kafka() {
            return format!("--log-socket={}", self.socket().display());
        }
        let all: Vec<_> = self.nodes.iter().filter_map(|node| node.at).map(|at| at.to_string()).collect();
        format!("--brokers={}", all.join(","))
    }

    /// The file with what a node said.
    pub(crate) fn said(&self, node: u16) -> PathBuf {
        self.output.join(format!("log-{node}.log"))
    }

    /// Starts a node, with the data that it has.
    pub(crate) fn start_node(&mut self, node: u16) {
        let mut command;
        if self.kind.is_kafka() {
            command = Command::new(script());
            command.arg("node").arg((node + 1).to_string()).arg("--dir").arg(&self.directory);
        } else {
            command = Command::new(&self.bluebox);
            command.args(["log", "--with-parent", "--data"]).arg(self.directory.join("data")).arg("--socket").arg(self.socket());
            command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        }
        let process = Process::start(&format!("log-{node}"), command, &self.output);
        if let Some(there) = self.nodes.get_mut(usize::from(node)) {
            there.process = Some(process);
        }
    }

    /// Whether a node takes connections.
    pub(crate) async fn serves(&self, node: u16) -> bool {
        match self.nodes.get(usize::from(node)).and_then(|node| node.at) {
            Some(at) => TcpStream::connect(at).await.is_ok(),
            None => UnixStream::connect(self.socket()).await.is_ok(),
        }
    }

    async fn await_nodes(&mut self) -> anyhow::Result<()> {
        let began = Moment::now();
        for node in 0..self.kind.nodes() {
            while !self.serves(node).await {
                let log = self.said(node);
                ensure!(self.ended(node).is_none(), "it ended: see {}", log.display());
                ensure!(Moment::now().since(began) < START, "it takes no connections after {} s: see {}", START.as_secs(), log.display());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    fn process(&mut self, node: u16) -> Option<&mut Process> {
        self.nodes.get_mut(usize::from(node)).and_then(|node| node.process.as_mut())
    }

    /// How a node ended, if it runs no longer although nobody ended it.
    pub(crate) fn ended(&mut self, node: u16) -> Option<std::process::ExitStatus> {
        self.process(node).and_then(Process::ended)
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> Vec<u16> {
        (0..self.kind.nodes()).filter(|node| self.nodes.get(usize::from(*node)).is_some_and(|node| node.process.is_some())).collect()
    }

    /// SIGKILL, and it is gone.
    pub(crate) fn kill(&mut self, node: u16) {
        if let Some(process) = self.nodes.get_mut(usize::from(node)).and_then(|node| node.process.take()) {
            process.kill();
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&mut self, node: u16, signal: Signal) {
        if let Some(process) = self.process(node) {
            process.signal(signal);
        }
    }

    /// Forgets the process of a node that has ended.
    pub(crate) fn forget(&mut self, node: u16) {
        self.kill(node);
    }

    /// Starts to give every partition back to its preferred leader.
    pub(crate) fn elect(&self) -> Process {
        let mut command = Command::new(script());
        command.arg("elect").arg("--dir").arg(&self.directory);
        Process::start("elect", command, &self.output)
    }
}

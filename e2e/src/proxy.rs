//! `bluebox proxy`, to be killed, stopped and started again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use http::StatusCode;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::app::App;
use crate::client::{Answer, Call, Running};
use crate::deadline::{PATIENCE, eventually, within};
use crate::faults::Faults;
use crate::process::{self, Process};
use crate::supervise::Supervised;

/// What a proxy will be told.
#[derive(Debug, Clone)]
pub struct ProxySpec {
    pub(crate) program: &'static str,
    pub(crate) label: String,
    pub(crate) listen: SocketAddr,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: PathBuf,
    pub(crate) faults: Option<Faults>,
}

impl ProxySpec {
    /// It serves a component of this app, with this number of partitions.
    #[must_use]
    pub fn serves(self, component: &str, app: &App, partitions: u32) -> Self {
        self.flag("--serve", &format!("{component}={},partitions={partitions}", app.address()))
    }

    /// With one more flag; `--serve` can be repeated, of every other one the last counts.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.arguments.retain(|there| name == "--serve" || !there.starts_with(&format!("{name}=")));
        self.arguments.push(format!("{name}={value}"));
        self
    }

    /// The `bluebox` that has fail points and planted bugs, with these.
    #[must_use]
    pub fn faulty(self, faults: Faults) -> Self {
        Self { faults: Some(faults), ..self }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.faults.as_ref().map_or_else(process::bluebox, Faults::command);
        command.arg(self.program).arg(format!("--listen={}", self.listen)).args(&self.arguments).arg("--with-parent");
        command.arg(format!("--log-level={}", std::env::var("BLUEBOX_TEST_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned())));
        command
    }

    /// Starts it under a supervisor, which starts it again whenever it ends.
    pub async fn supervise(self) -> Supervised {
        let (label, directory, address) = (self.label.clone(), self.directory.clone(), self.listen);
        let supervised = Supervised::start(&label, &directory, move || self.command());
        eventually("a proxy listens", || async move { TcpStream::connect(address).await.ok() }).await;
        supervised
    }

    /// Starts it, and waits until it ends by itself: how, and what it said.
    pub async fn ends(self) -> (ExitStatus, String) {
        let mut process = Process::start(&self.label, self.command(), &self.directory);
        let status = eventually("a proxy ends by itself", || std::future::ready(process.ended())).await;
        (status, process.said())
    }

    /// Where it will take calls.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Starts it. It listens when this returns; what it knows of other components comes later: [`Proxy::knows`].
    pub async fn start(self) -> Proxy {
        let mut proxy = Proxy { spec: self, process: None };
        proxy.start_again().await;
        proxy
    }
}

/// A proxy.
#[derive(Debug)]
pub struct Proxy {
    spec: ProxySpec,
    process: Option<Process>,
}

impl Proxy {
    /// Starts its process again, as it was.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.spec.label);
        let mut process = Process::start(&self.spec.label, self.spec.command(), &self.spec.directory);
        let address = self.spec.listen;
        eventually("a proxy listens", || {
            assert_eq!(process.ended(), None, "{}", process.said());
            async move { TcpStream::connect(address).await.ok() }
        })
        .await;
        self.process = Some(process);
    }

    /// Where it takes calls.
    pub fn address(&self) -> SocketAddr {
        self.spec.listen
    }

    /// Waits until it knows a component and can call it. Nothing is delivered for that: what is far too large is refused for a component, and for a component only.
    pub async fn knows(&self, component: &str) {
        knows(self.address(), component).await;
    }

    /// The status that it answers the head of a request with, which says that a body of this length will follow; `None` if it gives none.
    pub async fn status_for_length(&self, component: &str, length: u64) -> Option<String> {
        status_for_length(self.address(), component, length).await
    }

    /// Sends a call through it.
    pub fn begin(&self, call: Call) -> Running {
        Running::start(call, self.address())
    }

    /// Sends a call through it, and waits for the answer.
    pub async fn call(&self, call: Call) -> Answer {
        self.begin(call).answer().await
    }

    /// What its status resource says of a call now; asked again while a proxy that has just started can't say.
    pub async fn status(&self, location: &str) -> Answer {
        eventually(&format!("{location} can be asked"), || async {
            let answer = self.call(Call::get(location)).await;
            (answer.header("bluebox-error") != "not-ready").then_some(answer)
        })
        .await
    }

    /// What has become of a call: asks its status resource until it has ended.
    pub async fn outcome(&self, location: &str) -> Answer {
        eventually(&format!("{location} ends"), || async {
            let answer = self.call(Call::get(location)).await;
            match answer.header("bluebox-call-state") {
                "pending" => {
                    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
                    assert_ne!(answer.header("retry-after"), "", "{answer:?}");
                    None
                }
                "ended" => Some(answer),
                _ if answer.status == StatusCode::SERVICE_UNAVAILABLE => None,
                _ => panic!("{answer:?}"),
            }
        })
        .await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// SIGTERM, and how it ends.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.process.take().unwrap().terminate().await
    }

    /// Waits until it has ended by itself, and says how.
    pub async fn ended(&mut self) -> ExitStatus {
        self.process.take().unwrap().exit().await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// SIGKILL, and started again as it was.
    pub async fn crash(&mut self) {
        self.kill();
        self.start_again().await;
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.spec.directory.join(format!("{}.log", self.spec.label))).unwrap_or_default()
    }
}

/// Waits until the proxy at an address knows a component; see [`Proxy::knows`].
pub async fn knows(proxy: SocketAddr, component: &str) {
    eventually(&format!("the proxy at {proxy} knows {component}"), || async {
        (status_for_length(proxy, component, u64::MAX / 4).await? == "413").then_some(())
    })
    .await;
}

async fn status_for_length(proxy: SocketAddr, component: &str, length: u64) -> Option<String> {
    let head = format!("POST / HTTP/1.1\r\nhost: {component}\r\ncontent-length: {length}\r\n\r\n");
    let mut stream = TcpStream::connect(proxy).await.ok()?;
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut status = [0; 12];
    within(PATIENCE, "an answer to a head", stream.read_exact(&mut status)).await.ok()?;
    String::from_utf8_lossy(&status).strip_prefix("HTTP/1.1 ").map(str::to_owned)
}

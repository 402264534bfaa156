//! For tests with a control plane that has no node: the injector runs as a process beside it. It is who it is in a cluster: its service account, with that one's rights and no more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Process;
use crate::kubectl::{Kubectl, wait_for};
use crate::process::bluebox;

/// How long anything may take, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something that has to hold; it ends the test if it doesn't.
pub type Check<C> = fn(&mut C);

/// Makes the checks one after the other, because there is one cluster and one injector.
pub fn check_all<C>(cluster: &mut C, checks: &[(&str, Check<C>)]) {
    for (name, check) in checks {
        println!("{name}");
        check(cluster);
    }
}

/// Asks until the answer is `Some`.
///
/// # Panics
/// When it never is; with `what`.
pub fn wait<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_for(PATIENCE, what, ask)
}

/// Writes a kubeconfig of a service account into a directory.
pub fn account(kubectl: &Kubectl, namespace: &str, name: &str, directory: &Path) -> PathBuf {
    let token = kubectl.must(&["create", "token", name, "-n", namespace], None);
    let mut config: Value = serde_json::from_str(&kubectl.must(&["config", "view", "--raw", "-o", "json"], None)).unwrap();
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = directory.join(format!("{namespace}-{name}.kubeconfig"));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// An injector that runs.
#[derive(Debug)]
pub struct Injector {
    process: Process,
    listen: String,
}

impl Injector {
    /// Starts one with the rights of a kubeconfig, and waits until it listens. What it says is in `NAME.log` in the directory.
    pub fn start(name: &str, kubeconfig: &Path, listen: &str, arguments: &[&str], directory: &Path) -> Self {
        let mut command = bluebox();
        command.args(["injector", "--listen", listen, "--admin", "127.0.0.1:0"]).args(arguments).env("KUBECONFIG", kubeconfig);
        let process = Process::start(name, command, directory);
        let listen = wait("the injector listens", || {
            let said = process.said();
            let line = said.lines().rev().find(|line| line.contains("the injector started"))?;
            Some(line.split_once("listen=")?.1.split_whitespace().next()?.to_owned())
        });
        Self { process, listen }
    }

    /// Where the webhook listens.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// The port of it.
    pub fn port(&self) -> u16 {
        self.listen.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// What it has said.
    pub fn said(&self) -> String {
        self.process.said()
    }

    /// Kills it.
    pub fn kill(self) {
        self.process.kill();
    }
}

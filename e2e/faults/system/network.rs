//! What is between the proxies and the brokers: Toxiproxy, with one door per box and broker, so that one box can be cut off while the others go on.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bluebox_e2e::{Call, Process};
use http::Method;
use serde_json::json;

use crate::clock::Moment;

/// The version that is built when there is none yet.
const TOXIPROXY: &str = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0";

/// A listener of a broker that only one box comes in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    /// From 1.
    broker: u16,
    /// From 1.
    number: u16,
    /// Where the broker listens.
    listens: SocketAddr,
    /// Where the box believes that it listens.
    advertised: SocketAddr,
}

impl Door {
    /// From a line of the file `doors`.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let door = Self {
            broker: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
            listens: words.next()?.parse().ok()?,
            advertised: words.next()?.parse().ok()?,
        };
        Some(door)
    }

    fn name(&self) -> String {
        format!("broker-{}-door-{}", self.broker, self.number)
    }
}

/// What can be wrong with the way of a box to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toxic {
    /// Connections break, and new ones are refused.
    Cut,
    /// Connections stay, and nothing comes through: to the brokers, from them.
    HalfOpen { to: bool, from: bool },
    /// Everything takes longer.
    Latency(Duration),
}

/// Toxiproxy.
#[derive(Debug)]
pub(crate) struct Network {
    process: Process,
    api: SocketAddr,
    doors: Vec<Door>,
}

impl Network {
    /// Whether there can be one here; why not.
    pub(crate) fn prepare(target: &Path) -> anyhow::Result<()> {
        let program = target.join("toxiproxy/server");
        if program.exists() {
            return Ok(());
        }
        eprintln!("Building Toxiproxy into {} ...", program.display());
        let mut command = Command::new("go");
        command.args(["install", TOXIPROXY]).env("GOBIN", target.join("toxiproxy")).env("CGO_ENABLED", "0");
        let output = command.output().context("go is not installed: it builds Toxiproxy")?;
        ensure!(output.status.success(), "Toxiproxy can't be built: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Starts it and opens the doors.
    pub(crate) async fn start(target: &Path, output: &Path, doors: Vec<Door>) -> anyhow::Result<Self> {
        let api = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        // Its own log goes to its standard output. The kernel ends it should this process be killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(target.join("toxiproxy/server"));
        command.args(["-host", &api.ip().to_string(), "-port", &api.port().to_string()]).env("LOG_LEVEL", "warn");
        let mut network = Self { process: Process::start("toxiproxy", command, output), api, doors };
        let began = Moment::now();
        while tokio::net::TcpStream::connect(api).await.is_err() {
            if let Some(status) = network.process.ended() {
                bail!("Toxiproxy ended: {status}: {}", network.process.said());
            }
            ensure!(Moment::now().since(began) < Duration::from_secs(20), "Toxiproxy takes no connections");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for door in network.doors.clone() {
            let body = json!({ "name": door.name(), "listen": door.advertised.to_string(), "upstream": door.listens.to_string(), "enabled": true });
            network.ask(Method::POST, "/proxies", body).await?;
        }
        Ok(network)
    }

    /// The brokers as a box sees them that has this door, from 1.
    pub(crate) fn brokers(&self, number: u16) -> String {
        let all: Vec<_> = self.doors.iter().filter(|door| door.number == number).map(|door| door.advertised.to_string()).collect();
        all.join(",")
    }

    /// Does something to the way through a door.
    pub(crate) async fn spoil(&self, number: u16, toxic: Toxic) -> anyhow::Result<()> {
        for door in self.doors.iter().filter(|door| door.number == number) {
            let path = format!("/proxies/{}", door.name());
            let toxics = format!("{path}/toxics");
            let add = |kind: &str, stream: &str, attributes: serde_json::Value| {
                let body = json!({ "name": format!("{kind}-{stream}"), "type": kind, "stream": stream, "toxicity": 1.0, "attributes": attributes });
                self.ask(Method::POST, &toxics, body)
            };
            match toxic {
                Toxic::Cut => self.ask(Method::POST, &path, json!({ "enabled": false })).await?,
                Toxic::HalfOpen { to, from } => {
                    // A timeout of 0: nothing comes through, and the connection stays.
                    for (stream, _) in [("upstream", to), ("downstream", from)].into_iter().filter(|(_, spoiled)| *spoiled) {
                        add("timeout", stream, json!({ "timeout": 0 })).await?;
                    }
                }
                Toxic::Latency(time) => {
                    let milliseconds = u64::try_from(time.as_millis())?;
                    for stream in ["upstream", "downstream"] {
                        add("latency", stream, json!({ "latency": milliseconds / 2, "jitter": milliseconds / 4 })).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything comes through again.
    pub(crate) async fn heal(&self, number: u16) -> anyhow::Result<()> {
        for door in self.doors.iter().filter(|door| door.number == number) {
            let path = format!("/proxies/{}", door.name());
            for toxic in ["timeout-upstream", "timeout-downstream", "latency-upstream", "latency-downstream"] {
                // What is not there need not go.
                let _ = self.ask(Method::DELETE, &format!("{path}/toxics/{toxic}"), json!(null)).await;
            }
            self.ask(Method::POST, &path, json!({ "enabled": true })).await?;
        }
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: serde_json::Value) -> anyhow::Result<()> {
        let call = Call::new(method.clone(), &format!("http://{}{path}", self.api)).with("content-type", "application/json");
        let call = if body.is_null() { call } else { call.body(body.to_string()) };
        let answer = call.send_to(self.api).await.map_err(|lost| anyhow::anyhow!("Toxiproxy: {}", lost.0))?;
        ensure!(answer.status.is_success(), "Toxiproxy: {method} {path} {body}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_read_as_the_script_writes_it() {
        let door = Door::read("3 2 127.0.0.1:28467 127.0.0.1:22619").unwrap();
        assert_eq!((door.broker, door.number, door.advertised.port()), (3, 2, 22619));
        assert_eq!(Door::read("3 2 127.0.0.1:28467"), None);
    }
}

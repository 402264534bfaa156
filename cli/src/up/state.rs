//! What runs, for those who ask: a file beside the log that `bluebox ps` and scripts read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The name of the file in the data directory.
pub(crate) const FILE: &str = "state.json";

/// A running `bluebox up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process of `up`.
    pub(crate) pid: u32,
    /// The file that it runs.
    pub(crate) file: PathBuf,
    /// Kafka's brokers, if the log is there.
    pub(crate) brokers: Option<String>,
    /// The settings for Kafka, if there are any.
    pub(crate) kafka_properties: Option<PathBuf>,
    /// The socket of the embedded log, if the log is that.
    pub(crate) log_socket: Option<PathBuf>,
    /// How topics begin.
    pub(crate) topic_prefix: String,
    /// Where callers outside any box call.
    pub(crate) gateway: Option<SocketAddr>,
    /// Where the page is.
    #[serde(default)]
    pub(crate) page: Option<SocketAddr>,
    /// The replicas of boxes, and the gateway.
    pub(crate) units: Vec<UnitState>,
}

/// A replica, or the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitState {
    /// `cart-0`.
    pub(crate) name: String,
    /// The box.
    #[serde(rename = "box")]
    pub(crate) box_name: String,
    /// The components that it serves.
    pub(crate) components: Vec<String>,
    /// How it is.
    pub(crate) status: Status,
    /// The app's process; 0: none.
    pub(crate) app_pid: u32,
    /// Where the app listens, or is to.
    pub(crate) app_port: Option<u16>,
    /// The proxy's process; 0: none.
    pub(crate) proxy_pid: u32,
    /// Where the proxy takes calls.
    pub(crate) proxy: Option<SocketAddr>,
    /// Where the proxy answers /metrics.
    pub(crate) admin: Option<SocketAddr>,
    /// Where the proxy is told something.
    #[serde(default)]
    pub(crate) control: Option<SocketAddr>,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// Why it was started again the last time.
    pub(crate) last_restart: Option<String>,
}

/// How a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Not all of it runs yet.
    Starting,
    /// The app listens, the proxy too.
    Up,
    /// It failed, and waits before it is started again.
    Waiting,
    /// It was asked to end.
    Stopping,
    /// It has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Waiting => "waiting to restart",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// Writes the file whenever something changes, and then tells `written`. Done when nothing can change any more.
pub(crate) async fn keep(mut state: watch::Receiver<State>, written: watch::Sender<State>, directory: PathBuf) {
    loop {
        let now = state.borrow_and_update().clone();
        // A state that can't be written is told by those who look for it; the system goes on.
        let _ = write(&now, &directory);
        written.send_replace(now);
        if state.changed().await.is_err() {
            return;
        }
    }
}

fn write(state: &State, directory: &Path) -> std::io::Result<()> {
    let next = directory.join("state.json.next");
    std::fs::write(&next, serde_json::to_vec_pretty(state)?)?;
    std::fs::rename(next, directory.join(FILE))
}

/// Reads what an `up` wrote last.
pub(crate) fn read(directory: &Path) -> anyhow::Result<State> {
    Ok(serde_json::from_slice(&std::fs::read(directory.join(FILE))?)?)
}

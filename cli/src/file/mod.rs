//! The file of `bluebox up`: one small YAML that says which boxes there are.
//!
//! - [`tree`]: YAML as a tree that knows its places.
//! - [`read`]: typed values out of the tree.
//! - [`problem`]: what is wrong, and where.
//! - [`boxes`]: what the file says, read key by key.
//! - here: what that comes to.

mod boxes;
mod problem;
mod read;
mod tree;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::registry::{Class, Streams};
use bluebox_core::topics::Prefix;
use bluebox_proxy::config::AppProtocol;

pub(crate) use problem::{Place, Problem, Problems};
use read::Reader;
pub(crate) use read::address;

/// A whole system, as its file says it.
#[derive(Debug)]
pub(crate) struct System {
    /// The boxes, in the order of the file; at least one.
    pub(crate) boxes: Vec<BoxSpec>,
    /// The proxy for callers outside any box.
    pub(crate) gateway: Option<Gateway>,
    /// The transaction manager, if there is one.
    pub(crate) txmgr: Option<Txmgr>,
    /// Where calls are kept.
    pub(crate) log: LogSpec,
}

/// The transaction manager.
#[derive(Debug)]
pub(crate) struct Txmgr {
    /// Where the first replica answers those who are in no box.
    pub(crate) listen: SocketAddr,
    /// How many of it; at least 1.
    pub(crate) replicas: u32,
    /// Partitions of its calls and transactions.
    pub(crate) partitions: u32,
    /// Its settings, as flags.
    pub(crate) settings: Vec<String>,
}

/// A box: an app with its proxy, as often as it has replicas.
#[derive(Debug)]
pub(crate) struct BoxSpec {
    /// Its name.
    pub(crate) name: ComponentName,
    /// The app's program and its arguments; at least one.
    pub(crate) command: Vec<String>,
    /// Where the command stands, for errors about it.
    pub(crate) command_at: Place,
    /// Where the first replica listens, if the file says so.
    pub(crate) port: Option<u16>,
    /// How many of it; at least 1.
    pub(crate) replicas: u32,
    /// More environment for the app.
    pub(crate) env: BTreeMap<String, String>,
    /// Where the app runs.
    pub(crate) cwd: PathBuf,
    /// The components that it serves; none for one that only calls.
    pub(crate) components: Vec<ComponentSpec>,
    /// Limits, as flags of its proxy.
    pub(crate) limits: Vec<String>,
    /// How long the app may take to end after SIGTERM.
    pub(crate) grace: Duration,
}

/// A component of a box. `None` means: the proxy's default.
#[derive(Debug, Clone)]
pub(crate) struct ComponentSpec {
    /// Its name.
    pub(crate) name: ComponentName,
    /// A port of its own in the app; not with more than one replica.
    pub(crate) port: Option<u16>,
    /// What the rest of the file says.
    pub(crate) settings: Settings,
}

/// What can be said of a component, or of a box for all its components.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// What kind of component it is.
    pub(crate) class: Option<Class>,
    /// What the app speaks.
    pub(crate) protocol: Option<AppProtocol>,
    /// Partitions of its topics.
    pub(crate) partitions: Option<u32>,
    /// The ports at which it is called.
    pub(crate) ports: Option<Vec<u16>>,
    /// The largest request body.
    pub(crate) body_limit: Option<u64>,
    /// What becomes of what can't be durable.
    pub(crate) streams: Option<Streams>,
}

/// The proxy for callers outside any box.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Its name as a caller.
    pub(crate) name: ComponentName,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Limits, as flags.
    pub(crate) limits: Vec<String>,
}

/// Where calls are kept.
#[derive(Debug)]
pub(crate) struct LogSpec {
    /// The directory of the embedded log, and of what `up` writes of itself.
    pub(crate) data: PathBuf,
    /// When the embedded log waits for the disk.
    pub(crate) fsync: Option<String>,
    /// Kafka instead of the embedded log.
    pub(crate) brokers: Option<String>,
    /// librdkafka's settings.
    pub(crate) properties: BTreeMap<String, String>,
    /// How topics begin.
    pub(crate) prefix: Prefix,
}

/// Where the gateway listens if nothing else is said.
pub(crate) const DEFAULT_GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4140);

/// Where the transaction manager answers those who are in no box if nothing else is said.
pub(crate) const DEFAULT_TXMGR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8070);

const EXAMPLE: &str = "`boxes: {cart: {command: [python3, cart.py], port: 8080}}`";
/// The file is small; what is larger is another file.
const MAX_BYTES: u64 = 1 << 20;

/// Reads and checks a file.
pub(crate) fn load(file: &Path) -> anyhow::Result<System> {
    let told = |error: std::io::Error| {
        let remedy = if error.kind() == std::io::ErrorKind::NotFound { format!("; the least file that works is {EXAMPLE}") } else { String::new() };
        anyhow::anyhow!("{}: can't be read: {error}{remedy}", file.display())
    };
    let size = std::fs::metadata(file).map_err(told)?.len();
    if size > MAX_BYTES {
        anyhow::bail!("{}: {size} bytes are no file of boxes (at most {MAX_BYTES})", file.display());
    }
    let bytes = std::fs::read(file).map_err(told)?;
    let text = String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{}: no UTF-8 text", file.display()))?;
    let directory = std::path::absolute(file).map_err(told)?.parent().map(Path::to_owned).unwrap_or_default();
    Ok(parse(&text, &directory).map_err(|list| Problems::new(file, &text, list))?)
}

/// Reads and checks the text of a file that lies in `directory`.
pub(crate) fn parse(text: &str, directory: &Path) -> Result<System, Vec<Problem>> {
    let root = tree::parse(text).map_err(|problem| vec![problem])?;
    let mut reader = Reader::default();
    let system = reader.system(&root, directory);
    match system {
        Some(system) if reader.problems.is_empty() => Ok(system),
        _ => Err(reader.problems),
    }
}

#[cfg(test)]
mod tests;

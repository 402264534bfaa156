//! Looking into a running system, or into what it has left behind.
//!
//! - [`ps`]: what runs.
//! - [`status`]: how each component does.
//! - [`calls`]: calls without an end, and what became of one.
//! - [`tap`]: calls as they come and end.
//! - [`topics`]: which topics there are, and which there should be.
//! - [`dlq`]: dead letters: list, show, replay, drop.
//! - [`txn`]: transactions: list, show, retry, cancel, forget.
//! - [`door`]: where somebody is asked: at an address, or at a port of a pod.
//! - [`get`]: asks a proxy something, or who watches.
//! - here: who is asked, the log or one who watches it; and reading topics of the log.

pub(crate) mod calls;
pub(crate) mod dlq;
pub(crate) mod door;
pub(crate) mod drain;
pub(crate) mod get;
#[cfg(not(feature = "images"))]
mod pod;
#[cfg(feature = "images")]
#[path = "no_pod.rs"]
mod pod;
pub(crate) mod ps;
pub(crate) mod status;
pub(crate) mod tap;
pub(crate) mod topics;
pub(crate) mod txn;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::Log;
use bluebox_core::log::{Entry, Offset, Read, TopicPartition};
use bluebox_core::registry::Registry;
use bluebox_core::topics::Prefix;
use bluebox_injector::settings::DEFAULT_NAMESPACE;
use clap::{Args, ValueEnum};

use self::door::{Door, Wanted};
use crate::kubernetes::cluster::ClusterOptions;
use crate::log::{self, LogOptions};
use crate::up::data;
use crate::up::state::{self, State};

/// How long a log may take to answer somebody who waits at a terminal.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an answer is written.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputOptions {
    /// How the answer is written.
    #[arg(long, short, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The same as `-o json`.
    #[arg(long, hide = true)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// For scripts, with everything that is known.
    Json,
}

impl OutputOptions {
    /// Whether it is for scripts.
    pub(crate) fn is_json(self) -> bool {
        self.json || self.output == Form::Json
    }
}

/// Lines with columns of one width; numbers to the right.
pub(crate) fn write_table(out: &mut impl Write, head: &[(&str, bool)], rows: &[Vec<String>]) -> std::io::Result<()> {
    let widths: Vec<usize> =
        head.iter().enumerate().map(|(n, (title, _))| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0).max(title.len())).collect();
    let titles: Vec<String> = head.iter().map(|(title, _)| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, right)) in row.iter().zip(&widths).zip(head) {
            line.push_str(&if *right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") });
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Which system: what is named, else the `bluebox up` that runs here, else what one has left here, else the cluster that kubectl would ask.
#[derive(Debug, Clone, Args)]
pub(crate) struct SystemOptions {
    /// The data directory of the `bluebox up` in question.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR", default_value = ".bluebox")]
    data: PathBuf,
    /// Ask this `bluebox watch` instead of the log.
    #[arg(long, env = "BLUEBOX_WATCH", value_name = "HOST:PORT", value_parser = crate::file::address)]
    watch: Option<SocketAddr>,
    #[command(flatten)]
    cluster: ClusterOptions,
    /// The namespace in which `bluebox watch` runs, which answers for the cluster; by default `bluebox`.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    log: LogOptions,
}

/// The pod that answers for a cluster.
const WATCH: Wanted = Wanted {
    what: "`bluebox watch`",
    labels: "app.kubernetes.io/name=bluebox-watch",
    port: 4145,
    remedy: "manifests/monitoring/watch.yaml makes it run (docs/operating.md); --namespace names another namespace, --brokers asks Kafka itself",
};

/// Who is asked.
pub(crate) enum Whom {
    /// One who watches the log.
    Watch(Door),
    /// The log itself.
    Log(Reached),
}

/// A log, and how its topics begin.
#[derive(Clone)]
pub(crate) struct Reached {
    /// The log.
    pub(crate) log: Arc<dyn Log>,
    /// How topics begin.
    pub(crate) prefix: Prefix,
}

impl SystemOptions {
    /// What runs there, if anything does; nothing if something else was named.
    pub(crate) fn running(&self) -> Option<State> {
        let other = self.names_cluster() || self.watch.is_some() || self.names_log();
        if other { None } else { running(&self.data) }
    }

    fn names_cluster(&self) -> bool {
        self.cluster.is_named() || self.namespace.is_some()
    }

    fn names_log(&self) -> bool {
        self.log.brokers.is_some() || self.log.log_socket.is_some()
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Who is to be asked.
    pub(crate) async fn whom(&self) -> anyhow::Result<Whom> {
        let cluster = || Door::of_pod(&self.cluster, Some(self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)), &WATCH);
        if self.names_cluster() {
            return cluster().await.map(Whom::Watch);
        }
        if let Some(watch) = self.watch {
            return Ok(Whom::Watch(watch.into()));
        }
        let here = self.names_log() || self.running().is_some() || self.data.join(data::LOG).is_dir();
        if !here && self.cluster.is_known() {
            let why = || format!("{}: no `bluebox up` runs here, so the cluster was asked that kubectl would ask", self.data.display());
            return cluster().await.map(Whom::Watch).with_context(why);
        }
        self.reach().await.map(Whom::Log)
    }

    /// The log: that of the flags, else that of the `up` that runs on the data directory, else what it has left there.
    async fn reach(&self) -> anyhow::Result<Reached> {
        let mut options = self.log.clone();
        if !self.names_log() {
            match self.running() {
                Some(state) => {
                    options.brokers = state.brokers;
                    options.log_socket = state.log_socket;
                    options.kafka.kafka_properties = options.kafka.kafka_properties.or(state.kafka_properties);
                    if options.kafka.topic_prefix == Prefix::default() {
                        options.kafka.topic_prefix = Prefix::try_new(&state.topic_prefix)?;
                    }
                }
                None if self.data.join(data::LOG).is_dir() => {
                    let log = log::open_embedded(&self.data.join(data::LOG), log::Fsync::default())?;
                    return Ok(Reached { log, prefix: options.kafka.topic_prefix });
                }
                None => bail!(
                    "{}: no `bluebox up` runs here, and none has left a log; and no cluster is known (KUBECONFIG, ~/.kube/config). \
                     Start one with `bluebox up`, or name a data directory (--data), a cluster (--kubeconfig, --context), or Kafka (--brokers)",
                    self.data.display()
                ),
            }
        }
        let reached = Reached { log: options.connect()?, prefix: options.kafka.topic_prefix.clone() };
        let asked = tokio::time::timeout(PATIENCE, reached.log.partitions(&reached.prefix.registry())).await;
        match asked {
            Ok(Ok(Some(_))) => Ok(reached),
            Ok(Ok(None)) => bail!(
                "{} has no topic {}: nothing was ever registered there. Is the prefix right (--topic-prefix)?",
                options.describe(),
                reached.prefix.registry()
            ),
            Ok(Err(error)) => Err(error).with_context(|| format!("{} can't be asked. {}", options.describe(), options.remedy())),
            Err(_) => bail!("{} did not answer within {} s. {}", options.describe(), PATIENCE.as_secs(), options.remedy()),
        }
    }
}

/// What runs on a data directory, if anything does.
pub(crate) fn running(directory: &Path) -> Option<State> {
    if !data::is_held(directory) {
        return None;
    }
    state::read(directory).ok()
}

impl Reached {
    /// All components that were ever registered.
    pub(crate) async fn registry(&self) -> anyhow::Result<Registry> {
        let mut registry = Registry::default();
        self.each(&self.prefix.registry().partition(0), |entry| {
            // A record that lost or makes no sense changes nothing, here as in the proxies.
            let _ = registry.apply(&entry.record.key, entry.record.value.as_deref());
        })
        .await?;
        Ok(registry)
    }

    /// Reads a partition from its start to the end that it has now.
    pub(crate) async fn each(&self, partition: &TopicPartition, take: impl FnMut(Entry)) -> anyhow::Result<()> {
        self.each_from(partition, Offset::default(), take).await.map(drop)
    }

    /// Reads a partition from `from` on to the end that it has now, which is returned.
    pub(crate) async fn each_from(&self, partition: &TopicPartition, from: Offset, mut take: impl FnMut(Entry)) -> anyhow::Result<Offset> {
        let bounds = tokio::time::timeout(PATIENCE, self.log.bounds(partition)).await.with_context(|| format!("{partition}: the log does not answer"))??;
        self.range(partition, from.max(bounds.start), bounds.end, |entry| {
            take(entry);
            true
        })
        .await?;
        Ok(bounds.end)
    }

    /// Reads a part of a partition, for as long as `take` wants more.
    pub(crate) async fn range(&self, partition: &TopicPartition, from: Offset, end: Offset, mut take: impl FnMut(Entry) -> bool) -> anyhow::Result<()> {
        if from >= end {
            return Ok(());
        }
        let mut reader = self.log.read(partition, from);
        let mut next = from;
        while next < end {
            // Compaction may have taken the last ones: silence is an end too.
            let Ok(read) = tokio::time::timeout(PATIENCE, reader.next()).await else { break };
            match read.with_context(|| format!("{partition}: the log was closed"))? {
                Read::Entries(entries) => {
                    for entry in entries.into_iter().take_while(|entry| entry.offset < end) {
                        next = entry.offset.next();
                        if !take(entry) {
                            return Ok(());
                        }
                    }
                }
                Read::Truncated { start, .. } => next = next.max(start),
            }
        }
        Ok(())
    }
}

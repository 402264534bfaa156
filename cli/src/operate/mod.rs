//! Looking into a running system, or into what it has left behind.
//!
//! - [`ps`]: what runs.
//! - [`calls`]: what became of a call.
//! - [`dlq`]: dead letters: list, show, replay, drop.
//! - [`txn`]: transactions: list, show, retry, cancel, forget.
//! - [`get`]: asks a proxy something.
//! - here: which log, and reading topics of it.

pub(crate) mod calls;
pub(crate) mod dlq;
pub(crate) mod drain;
pub(crate) mod get;
pub(crate) mod ps;
pub(crate) mod txn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::Log;
use bluebox_core::log::{Entry, Read, TopicPartition};
use bluebox_core::registry::Registry;
use bluebox_core::topics::Prefix;
use clap::Args;

use crate::log::{self, LogOptions};
use crate::up::data;
use crate::up::state::{self, State};

/// How long a log may take to answer somebody who waits at a terminal.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which system.
#[derive(Debug, Clone, Args)]
pub(crate) struct SystemOptions {
    /// The data directory of the `bluebox up` in question.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR", default_value = ".bluebox")]
    data: PathBuf,
    #[command(flatten)]
    log: LogOptions,
}

/// A log, and how its topics begin.
pub(crate) struct Reached {
    /// The log.
    pub(crate) log: Arc<dyn Log>,
    /// How topics begin.
    pub(crate) prefix: Prefix,
}

impl SystemOptions {
    /// What runs there, if anything does.
    fn running(&self) -> Option<State> {
        running(&self.data)
    }

    /// The log: that of the flags, else that of the `up` that runs on the data directory, else what it has left there.
    pub(crate) async fn reach(&self) -> anyhow::Result<Reached> {
        let mut options = self.log.clone();
        if options.brokers.is_none() && options.log_socket.is_none() {
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
                    "{}: no `bluebox up` runs here, and none has left a log. Name another data directory with --data, or Kafka with --brokers",
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
            Ok(Err(error)) => Err(error).context(options.remedy()),
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
    pub(crate) async fn each(&self, partition: &TopicPartition, mut take: impl FnMut(Entry)) -> anyhow::Result<()> {
        let bounds = tokio::time::timeout(PATIENCE, self.log.bounds(partition)).await.with_context(|| format!("{partition}: the log does not answer"))??;
        if bounds.start >= bounds.end {
            return Ok(());
        }
        let mut reader = self.log.read(partition, bounds.start);
        let mut next = bounds.start;
        while next < bounds.end {
            // Compaction may have taken the last ones: silence is an end too.
            let Ok(read) = tokio::time::timeout(PATIENCE, reader.next()).await else { break };
            match read.with_context(|| format!("{partition}: the log was closed"))? {
                Read::Entries(entries) => {
                    for entry in entries.into_iter().take_while(|entry| entry.offset < bounds.end) {
                        next = entry.offset.next();
                        take(entry);
                    }
                }
                Read::Truncated { start, .. } => next = next.max(start),
            }
        }
        Ok(())
    }
}

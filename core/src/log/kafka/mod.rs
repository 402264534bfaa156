//! Apache Kafka behind [`Log`], on librdkafka.
//!
//! librdkafka blocks, calls back and polls; the rest of Bluebox does none of that. So what blocks is done by OS threads here:
//!
//! - `append`: one idempotent producer for all appends, behind a gate that shuts when the broker is away.
//! - `fetch`, `lane`, `pump`, `stream`: consumers that are assigned partitions by hand, for all readers and for the members of groups.
//! - `group`, `session`, `ownership`, `member`, `commit`: a consumer per membership, which fetches nothing.
//! - `control`: questions about topics and offsets.
//! - `link`: whether there is a broker; `brokers`: whether a client still knows of any; `statistics`: how they answer, for the metrics.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{
    Append, Bounds, Committed, GroupSpec, Health, Log, LogError, Membership, Offset, Pending, Reader, Record, Statistics, Topic, TopicPartition, TopicSettings,
    TopicSpec,
};

mod append;
mod brokers;
mod commit;
mod config;
mod control;
mod error;
mod fetch;
mod group;
mod lane;
mod link;
mod member;
mod ownership;
mod pump;
mod session;
mod statistics;
mod stream;
mod wake;

pub use config::{GroupProtocol, KafkaConfig};

use append::Appender;
use control::Control;
use fetch::Fetcher;
use link::Link;
use pump::Clients;
use stream::Pace;

/// A client of these brokers. It need not reach them now: [`Log::health`] says when it does. To be called in a tokio runtime, which passes on what is read, and what came of appends.
///
/// # Errors
/// [`LogError::Refused`] when librdkafka does not take a property, or one is set that the promises rest on, and outside of a runtime.
pub fn connect(config: KafkaConfig) -> Result<Arc<dyn Log>, LogError> {
    config.check()?;
    let runtime = Handle::try_current().map_err(|error| LogError::Refused(format!("Kafka client: {error}")))?;
    let refuse = |error: rdkafka::error::KafkaError| LogError::Refused(format!("Kafka client: {error}"));
    let link = Link::new();
    let control = Control::start(&config, &link).map_err(refuse)?;
    let appender = Appender::start(&config, &link, &runtime).map_err(refuse)?;
    let clients = Clients { config: config.clone(), link: link.clone(), control: control.clone(), runtime };
    let fetcher = Fetcher::start(clients).map_err(refuse)?;
    let prober = link::start_prober(&link, Arc::downgrade(&control), Arc::downgrade(&appender));
    prober.map_err(|error| LogError::Refused(format!("Kafka client: no thread for the probe: {error}")))?;
    Ok(Arc::new(KafkaLog { config, link, control, appender, fetcher }))
}

struct KafkaLog {
    config: KafkaConfig,
    link: Arc<Link>,
    control: Arc<Control>,
    appender: Arc<Appender>,
    fetcher: Arc<Fetcher>,
}

impl Log for KafkaLog {
    fn append(&self, to: &TopicPartition, record: Record) -> Append {
        self.appender.append(to, record)
    }

    fn read(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.fetcher.read(from, at, Pace::Busy)
    }

    fn read_rare(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.fetcher.read(from, at, Pace::Rare)
    }

    fn read_late(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.fetcher.read(from, at, Pace::Late)
    }

    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds> {
        let of = of.clone();
        self.control.ask(move |control| control.bounds(&of))
    }

    fn ends(&self, of: Vec<TopicPartition>) -> Pending<Vec<Offset>> {
        self.control.ask(move |control| control.ends(&of))
    }

    fn join(&self, group: GroupSpec) -> Membership {
        group::join(&self.config, &self.link, &self.control, &self.fetcher, group)
    }

    fn committed(&self, group: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>> {
        let group = group.to_owned();
        self.control.ask_group(move |control| control.committed(&group, &of))
    }

    fn settings(&self, of: Vec<Topic>) -> Pending<Vec<Option<TopicSettings>>> {
        self.control.ask(move |control| control.settings(&of))
    }

    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()> {
        self.control.ask(move |control| control.create_topics(&topics))
    }

    fn partitions(&self, of: &Topic) -> Pending<Option<u32>> {
        let of = of.clone();
        self.control.ask(move |control| control.partitions(&of))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.link.health()
    }

    fn max_record_bytes(&self) -> usize {
        config::MAX_RECORD_BYTES
    }

    fn statistics(&self) -> Option<Statistics> {
        self.appender.statistics()
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.link.close();
    }
}

/// The partition's number as Kafka has it, if topic and number are such as Kafka can have.
fn legal(partition: &TopicPartition) -> Result<i32, String> {
    let name = partition.topic.as_str();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.bytes().all(legal) {
        return Err(format!("topic {:?}: 1 to 249 of the characters a-z A-Z 0-9 . _ -", name.chars().take(80).collect::<String>()));
    }
    i32::try_from(partition.partition).map_err(|_| format!("{partition}: partitions are numbered up to {}", i32::MAX))
}

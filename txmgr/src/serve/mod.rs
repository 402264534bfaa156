//! The transaction manager as a program: the I/O around the machines.
//!
//! It is the app of a box: its own proxy, in the same process, hands it its calls, and the calls that it makes leave through the same proxy. So every request and every callback is a durable
//! call. In the order in which a request meets them:
//!
//! - [`door`]: for clients that are no box: makes their requests calls as well.
//! - `http`: what is asked; `lra`, `sagas`, `operate`: of whom, and the answer; `problem`: the answers that say no.
//! - `partitions`: the partitions that this process has. They are those of the calls, told by the proxy, so that a call is always delivered where its transaction is.
//! - `owner`: one partition: reads and writes it, and does what its machines want done; `position`: how far it is known.
//! - `caller`: makes the callbacks; `places`: how many at once.
//! - `view`: transactions as JSON; `counts`: what is counted.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::log::{Log, LogError, Topic, TopicSpec};
use bluebox_core::topics::Prefix;
use tokio::sync::watch;
use tracing::warn;

use crate::calls::Calls;
use crate::components::Components;
use crate::line::Rules;
use crate::wire::participant::Allowed;

mod caller;
mod counts;
pub mod door;
mod http;
mod lra;
mod operate;
mod owner;
mod partitions;
mod places;
mod position;
mod problem;
mod sagas;
mod view;

pub use counts::families;
pub use http::App;

/// What the transaction manager is told when it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The component that it is.
    pub name: ComponentName,
    /// How many partitions its calls have, and its transactions.
    pub partitions: u32,
    /// How often and for how long things are tried, and how long what has ended is kept.
    pub rules: Rules,
    /// What the URLs of LRAs begin with (`https://lra.example/lra-coordinator`); `None`: what the client used.
    pub base: Option<String>,
    /// Plain URLs that may be called, besides components.
    pub allowed: Vec<Allowed>,
    /// How long a request to close or to cancel waits for the end. Default 5 s: Narayana's client takes it for an error when it has no answer after 10 s.
    pub end_wait: Duration,
}

/// What is around it.
#[derive(Clone)]
pub struct Surroundings {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The topic of transactions; see [`topic`].
    pub transactions: Topic,
    /// Its own proxy, as it takes calls of its app.
    pub calls: Arc<dyn Calls>,
    /// The components that there are.
    pub components: Arc<dyn Components>,
    /// The partitions of its calls that this process has, and which tenure of each this is.
    pub tenures: watch::Receiver<BTreeMap<(ComponentName, u32), u64>>,
}

/// A mistake in this program, or a topic that is there and can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The topic has another number of partitions.
    #[error(
        "topic {topic}: it has {there} partitions, not {wanted}; transactions are found by their partitions: start the transaction manager with --partitions {there}"
    )]
    Partitions {
        /// Which.
        topic: Topic,
        /// The partitions that it has.
        there: u32,
        /// The partitions that calls have.
        wanted: u32,
    },
    /// The topic can't be made.
    #[error("topic {0}: it can't be made: {1}")]
    Topic(Topic, LogError),
    /// Counts that can't be set up.
    #[error("the metrics can't be set up: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// How long records of transactions stay at least: longer than a partition is ever without an owner. A record of an owner that was replaced counts for nothing, but compaction would keep it in the
/// place of the last that does, until the next owner has written that again.
const COMPACTION_LAG: Duration = Duration::from_secs(6 * 3600);

/// How a topic of transactions has to be kept.
pub fn topic_spec(topic: Topic, partitions: u32) -> TopicSpec {
    TopicSpec { topic, partitions, retention: None, compacted: true, compaction_lag: Some(COMPACTION_LAG) }
}

/// The topic of a component's transactions.
pub fn topic(prefix: &Prefix, name: &ComponentName) -> Topic {
    Topic::new(&format!("{}.{name}.transactions", prefix.as_str()))
}

/// Serves what comes to `app` (from its own proxy). Ends only with an error: when the proxy has given up its partitions, it has still to answer others.
///
/// # Errors
/// When its topic is there with another number of partitions, or can't be made.
pub async fn run(settings: Settings, around: Surroundings, app: &App, registry: &prometheus::Registry) -> Result<Infallible, ServeError> {
    make_topic(&settings, &around).await?;
    let counts = counts::Counts::try_new(registry)?;
    let caller = Arc::new(caller::Caller::new(&settings, &around, counts.clone()));
    let partitions = partitions::Partitions::new(settings.clone(), &around, Arc::clone(&caller), counts);
    let following = Arc::clone(&partitions).follow(around.tenures.clone());
    app.serves(http::Service::new(settings, &around, partitions, caller));
    following.await;
    std::future::pending().await
}

async fn make_topic(settings: &Settings, around: &Surroundings) -> Result<(), ServeError> {
    const PAUSE: Duration = Duration::from_millis(500);
    let topic = &around.transactions;
    let spec = topic_spec(topic.clone(), settings.partitions);
    loop {
        let there = match around.log.create_topics(vec![spec.clone()]).await {
            Ok(()) => around.log.partitions(topic).await,
            Err(problem) => Err(problem),
        };
        match there {
            Ok(Some(there)) if there == settings.partitions => return Ok(()),
            Ok(Some(there)) => return Err(ServeError::Partitions { topic: topic.clone(), there, wanted: settings.partitions }),
            Err(problem @ LogError::Refused(_)) => return Err(ServeError::Topic(topic.clone(), problem)),
            Ok(None) => {}
            Err(problem) => warn!(%topic, %problem, "the topic of transactions can't be made yet; trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

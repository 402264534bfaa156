//! Into the app. In the order in which a call meets them:
//!
//! - [`consume`]: reads the partitions that this box owns, and does what the state machines want to be done.
//! - [`owner`]: what all partitions share: lease, concurrency, memory, solo deliveries, commits. Pure.
//! - [`partition`]: one partition: window, lanes, attempts, parking, takeover, handover. Pure.
//! - [`frontier`]: what is done, and how a commit says so. Pure.
//! - [`recorded`]: which recorded calls have ended. Pure.
//! - [`deliver`]: hands a call to the app.
//! - [`ending`]: makes the end of a call durable.
//! - [`search`]: reads what an owner must know before it serves.
//! - [`observe`]: what is told about it all.

use std::collections::BTreeMap;
use std::sync::Arc;

use bluebox_core::assigned::Assigned;
use bluebox_core::topics::{Prefix, Retention};
use bluebox_core::{ComponentName, InstanceId, Log};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::bulk::Bulk;
use crate::config::{Inbound, Served};
use crate::context::Contexts;
use crate::spans::Spans;
use crate::transaction::Transactions;

pub mod consume;
pub mod deliver;
pub mod ending;
pub mod frontier;
pub mod observe;
pub mod owner;
pub mod partition;
pub mod recorded;
pub mod search;

/// What [`run`] needs.
pub struct Start {
    /// The log.
    pub log: Arc<dyn Log>,
    /// This process.
    pub instance: InstanceId,
    /// The component; its topics are there.
    pub served: Served,
    /// Names of topics begin with it.
    pub prefix: Prefix,
    /// How long what is kept.
    pub retention: Retention,
    /// The limits.
    pub limits: Inbound,
    /// Where large answers go.
    pub bulk: Bulk,
    /// What the app is at.
    pub contexts: Contexts,
    /// What its paths have to do with transactions, if anything.
    pub transactions: Option<Transactions>,
    /// What is told about it.
    pub observe: observe::Observe,
    /// Makes spans of attempts and ends.
    pub spans: Spans,
    /// After `stop`: the drain is over at once.
    pub cut: CancellationToken,
    /// Cancelled when the app hangs.
    pub hung: CancellationToken,
    /// Where it is told which partitions this process has.
    pub tenures: watch::Sender<Tenures>,
}

/// The partitions that a process has now, by component and number, and which of its tenures of each this is: another one when it lost the partition and got it again.
///
/// It has a partition from its assignment on, until it has given it up or hears that it was taken away: so another process may have it too, for a while.
pub type Tenures = BTreeMap<(ComponentName, u32), u64>;

/// Another process has claimed the same ordinal of a stateful component, and so this one has lost it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "component {name}: another process has claimed ordinal {ordinal} after this one, which has lost it; each ordinal belongs to one process: end one of the two, or give it another ordinal"
)]
pub struct Superseded {
    /// The component.
    pub name: ComponentName,
    /// The ordinal.
    pub ordinal: u32,
}

/// Serves one component until `stop`; then hands its partitions over, within the drain, and leaves.
///
/// Dropping the future is a crash: what is under way is delivered again by the next owner.
///
/// # Errors
/// [`Superseded`], when this process is an ordinal no more. It delivers nothing from then on.
pub async fn run(start: Start, stop: CancellationToken) -> Result<(), Superseded> {
    let Start { log, instance, served, prefix, retention, limits, bulk, contexts, transactions, observe, spans, cut, hung, tenures } = start;
    let bulk = bulk.trying_again();
    let topics = prefix.topics(&served.name);
    let log = match served.ordinal {
        Some(ordinal) => Arc::new(Assigned::new(log, topics.frontier.clone(), ordinal)),
        None => log,
    };
    let service = consume::Service {
        app: deliver::App::new(&served, &limits, bulk.clone(), contexts),
        endings: ending::Endings::new(Arc::clone(&log), bulk, spans.clone()),
        transactions,
        searches: Arc::new(Semaphore::new(search::READ_AT_ONCE)),
        topics,
        keep_recorded: retention.recorded,
        log,
        instance,
        served,
        limits,
        observe,
        spans,
        cut,
        hung,
        tenures,
    };
    consume::serve(service, stop).await
}

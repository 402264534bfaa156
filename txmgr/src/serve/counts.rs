//! What is counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use bluebox_observe::counts::Family;
use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::callback::{Outcome, Phase};
use crate::partition::{Partition, StateRef};
use crate::wire::status::LraStatus;

/// What there is in one partition.
#[derive(Default)]
struct There {
    numbers: BTreeMap<(&'static str, LraStatus), i64>,
    /// When the oldest that has not ended began.
    oldest: Option<Timestamp>,
}

/// The counts. Cheap to clone; clones count together.
#[derive(Clone)]
pub(super) struct Counts {
    transactions: IntGaugeVec,
    oldest: IntGauge,
    changes: IntCounterVec,
    seconds: HistogramVec,
    callbacks: IntCounterVec,
    callback_seconds: HistogramVec,
    there: Arc<Mutex<BTreeMap<u32, There>>>,
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// What can be counted, for the reference.
///
/// # Errors
/// Only by a mistake in this program.
pub fn families() -> Result<Vec<Family>, prometheus::Error> {
    let Counts { transactions, oldest, changes, seconds, callbacks, callback_seconds, .. } = Counts::try_new(&Registry::new())?;
    let of = |kind: &'static str, collector: &dyn Collector| {
        let descriptions = collector.desc().into_iter();
        descriptions.map(|one| Family { name: one.fq_name.clone(), kind, labels: one.variable_labels.clone(), help: one.help.clone() }).collect::<Vec<_>>()
    };
    let all = [
        of("counter", &callbacks),
        of("histogram", &callback_seconds),
        of("counter", &changes),
        of("gauge", &oldest),
        of("gauge", &transactions),
        of("histogram", &seconds),
    ];
    Ok(all.concat())
}

impl Counts {
    pub(super) fn try_new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = |name: &str, help: &str| -> Result<HistogramOpts, prometheus::Error> {
            Ok(HistogramOpts::new(name, help).buckets(prometheus::exponential_buckets(0.001, 2.0, 22)?))
        };
        let transactions = Opts::new("bluebox_txn_transactions", "Transactions in the partitions of this process, by kind and state");
        let changes = Opts::new("bluebox_txn_changes_total", "Changes of state, by the state that they led to");
        let callbacks = Opts::new("bluebox_txn_callbacks_total", "Callbacks that had an outcome, by what was asked and by what it meant");
        let until = seconds("bluebox_txn_until_seconds", "From the beginning of a transaction to the state")?;
        let took = seconds("bluebox_txn_callback_duration_seconds", "From the first try of a callback to its outcome")?;
        Ok(Self {
            transactions: registered(registry, IntGaugeVec::new(transactions, &["kind", "status"])?)?,
            oldest: registered(registry, IntGauge::new("bluebox_txn_oldest_seconds", "Age of the oldest transaction that has not ended; 0: there is none")?)?,
            changes: registered(registry, IntCounterVec::new(changes, &["status"])?)?,
            seconds: registered(registry, HistogramVec::new(until, &["status"])?)?,
            callbacks: registered(registry, IntCounterVec::new(callbacks, &["phase", "result"])?)?,
            callback_seconds: registered(registry, HistogramVec::new(took, &["phase"])?)?,
            there: Arc::default(),
        })
    }

    /// A transaction of this age is in another state.
    pub(super) fn changed(&self, status: LraStatus, age: Duration) {
        self.changes.with_label_values(&[status.name()]).inc();
        self.seconds.with_label_values(&[status.name()]).observe(age.as_secs_f64());
    }

    /// A callback has had its outcome.
    pub(super) fn called(&self, phase: Phase, outcome: &Outcome, took: Duration) {
        self.callbacks.with_label_values(&[phase.name(), outcome.name()]).inc();
        self.callback_seconds.with_label_values(&[phase.name()]).observe(took.as_secs_f64());
    }

    /// What there is in a partition now.
    pub(super) fn owned(&self, number: u32, partition: &Partition) {
        let mut there = There::default();
        for state in partition.transactions() {
            let (kind, status, started, over) = match state {
                StateRef::Lra(lra) => ("lra", lra.status, lra.started, lra.status.is_final()),
                StateRef::Saga(saga) => ("saga", saga.status, saga.started, saga.status.is_final()),
            };
            *there.numbers.entry((kind, status)).or_default() += 1;
            if !over {
                there.oldest = Some(there.oldest.map_or(started, |oldest| oldest.min(started)));
            }
        }
        self.set(number, Some(there));
    }

    /// A partition was given up.
    pub(super) fn forget(&self, number: u32) {
        self.set(number, None);
    }

    fn set(&self, number: u32, there: Option<There>) {
        let mut all = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        match there {
            Some(there) => drop(all.insert(number, there)),
            None => drop(all.remove(&number)),
        }
        for kind in ["lra", "saga"] {
            for status in LraStatus::ALL {
                let sum = all.values().filter_map(|there| there.numbers.get(&(kind, *status))).sum();
                self.transactions.with_label_values(&[kind, status.name()]).set(sum);
            }
        }
        let oldest = all.values().filter_map(|there| there.oldest).min();
        let age = oldest.map_or(0, |oldest| wall_clock().since(oldest).as_secs());
        self.oldest.set(i64::try_from(age).unwrap_or(i64::MAX));
    }
}

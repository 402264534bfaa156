//! What the inbound side tells: counters, and one log line an event, at the border where it is known best.

use std::sync::Arc;

use bluebox_core::call::{Outcome, Source};
use bluebox_core::clock::wall_clock;
use bluebox_core::{CallId, ComponentName};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::owner::Owner;
use super::partition::{DeliveryEnd, Ending, Verdict};

/// The counters of one component. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Observe(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    component: ComponentName,
    deliveries: IntCounterVec,
    delivery_ends: IntCounterVec,
    calls_ended: IntCounterVec,
    suppressed: IntCounter,
    parked: IntCounter,
    parked_full: IntCounter,
    records_lost: IntCounter,
    unreadable: IntCounter,
    partition_changes: IntCounterVec,
    partitions: IntGauge,
    held: IntGauge,
    held_bytes: IntGauge,
    under_way: IntGauge,
    app_hangs: IntGauge,
    parked_now: IntGauge,
    recorded_now: IntGauge,
    oldest_seconds: IntGauge,
}

impl Observe {
    /// Counters for `component` in `registry`.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn new(component: &ComponentName, registry: &Registry) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("bluebox_inbound_{name}"), help).const_label("component", component.as_str());
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let counter = |name: &str, help: &str| IntCounter::with_opts(opts(name, help));
        let gauge = |name: &str, help: &str| IntGauge::with_opts(opts(name, help));
        let by = |name: &str, help: &str, label: &str| IntCounterVec::new(opts(name, help), &[label]);
        Ok(Self(Arc::new(Counters {
            component: component.clone(),
            deliveries: register!(by("deliveries_total", "Deliveries begun, by whether they were the first of their call", "kind")),
            delivery_ends: register!(by("delivery_ends_total", "Deliveries that ended, by how", "end")),
            calls_ended: register!(by("calls_ended_total", "Calls whose end became durable, by outcome", "outcome")),
            suppressed: register!(counter("duplicates_suppressed_total", "Calls not delivered again because their outcome was found on takeover")),
            parked: register!(counter("parked_total", "Calls moved to the parked partition")),
            parked_full: register!(counter("parked_full_total", "Times that a partition had to wait because too many calls were parked")),
            records_lost: register!(counter("records_lost_total", "Records without an outcome that the log deleted. An alarm if it is not 0")),
            unreadable: register!(counter("records_unreadable_total", "Records of the calls topic that could not be read")),
            partition_changes: register!(by("partition_changes_total", "Partitions assigned, lost, or dropped because of a newer fence", "change")),
            partitions: register!(gauge("partitions", "Partitions owned now")),
            held: register!(gauge("held_calls", "Calls read that have no end yet")),
            held_bytes: register!(gauge("held_bytes", "Bytes of bodies held in memory")),
            under_way: register!(gauge("deliveries_under_way", "Deliveries under way now")),
            app_hangs: register!(gauge("app_hangs", "1 while the app answers nothing and so gets no calls, else 0")),
            parked_now: register!(gauge("parked_calls", "Calls parked now")),
            recorded_now: register!(gauge("recorded_calls", "Recorded calls in the index now")),
            oldest_seconds: register!(gauge("oldest_call_age_seconds", "Age of the oldest call that was read and has no end; 0 if there is none")),
        })))
    }

    pub(super) fn owned(&self, owner: &mut Owner) {
        let c = &self.0;
        let to = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let sum = |of: fn(&super::partition::Partition) -> usize| to(owner.partitions().map(|(_, p)| of(p)).sum());
        c.partitions.set(to(owner.partitions().count()));
        c.held.set(sum(super::partition::Partition::held_calls));
        c.held_bytes.set(sum(super::partition::Partition::held_bytes));
        c.parked_now.set(sum(super::partition::Partition::parked_calls));
        c.under_way.set(to(owner.under_way()));
        let oldest = owner.partitions().filter_map(|(_, p)| p.oldest()).min();
        c.oldest_seconds.set(oldest.map_or(0, |at| i64::try_from(wall_clock().since(at).as_secs()).unwrap_or(i64::MAX)));
        c.recorded_now.set(to(owner.index().len()));
    }

    pub(super) fn hangs(&self, hangs: bool) {
        self.0.app_hangs.set(i64::from(hangs));
    }

    pub(super) fn assigned(&self) {
        self.0.partition_changes.with_label_values(&["assigned"]).inc();
    }

    pub(super) fn lost(&self) {
        self.0.partition_changes.with_label_values(&["lost"]).inc();
    }

    pub(super) fn fenced(&self) {
        self.0.partition_changes.with_label_values(&["fenced"]).inc();
    }

    pub(super) fn unreadable(&self) {
        self.0.unreadable.inc();
    }

    pub(super) fn records_lost(&self, records: u64) {
        self.0.records_lost.inc_by(records);
    }

    pub(super) fn suppressed(&self) {
        self.0.suppressed.inc();
    }

    pub(super) fn parked(&self) {
        self.0.parked.inc();
    }

    pub(super) fn parked_full(&self) {
        self.0.parked_full.inc();
    }

    pub(super) fn delivering(&self, attempt: u32, may_have_started: bool) {
        let kind = if attempt == 1 && !may_have_started { "first" } else { "again" };
        self.0.deliveries.with_label_values(&[kind]).inc();
    }

    pub(super) fn delivered(&self, id: &CallId, attempt: u32, end: &DeliveryEnd) {
        let component = &self.0.component;
        let word = match end {
            // `line` tells of it, with more than is known here.
            DeliveryEnd::Answered(_) => "answered",
            DeliveryEnd::NotNow(pause, _) => {
                tracing::info!(call = %id, %component, retry_after_seconds = pause.as_secs(), "the app said not now");
                "not_now"
            }
            DeliveryEnd::NotThere => {
                tracing::warn!(call = %id, %component, "the app does not accept connections");
                "not_there"
            }
            DeliveryEnd::NotBegun => "not_begun",
            DeliveryEnd::Failed(detail) => {
                tracing::warn!(call = %id, attempt, %component, %detail, "an attempt failed");
                "failed"
            }
        };
        self.0.delivery_ends.with_label_values(&[word]).inc();
    }

    pub(super) fn ended(&self, ending: &Ending) {
        let component = &self.0.component;
        let word = match &ending.verdict {
            Verdict::Outcome(outcome) => of_outcome(outcome),
            Verdict::DeadLetter { reason, detail, .. } => {
                tracing::warn!(call = %ending.id, %component, attempts = ending.attempts, ?reason, %detail, "a call became a dead letter");
                "dead_letter"
            }
            Verdict::Refused(reason) => {
                tracing::info!(call = %ending.id, %component, ?reason, "a call was ended by the proxy");
                "refused"
            }
            Verdict::Known { .. } | Verdict::Found { .. } => "known",
        };
        self.0.calls_ended.with_label_values(&[word]).inc();
    }
}

fn of_outcome(outcome: &Outcome) -> &'static str {
    match outcome.source {
        Source::Proxy(_) => "refused",
        Source::App => match outcome.response.status.as_u16() / 100 {
            1 | 2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        },
    }
}

//! What the inbound side tells: counters, and one log line an event, at the border where it is known best.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::{Outcome, Source};
use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use bluebox_core::{CallId, ComponentName};
use bluebox_observe::Words;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::owner::Owner;
use super::partition::{DeliveryEnd, Ending, Partition, Verdict};
use crate::metrics::{Metrics, took};

const KINDS: [&str; 2] = ["first", "again"];
const ENDS: [&str; 5] = ["answered", "failed", "not_now", "not_there", "not_begun"];
const OUTCOMES: [&str; 7] = ["2xx", "3xx", "4xx", "5xx", "dead_letter", "refused", "known"];
const CHANGES: [&str; 4] = ["assigned", "released", "lost", "fenced"];

/// The counters of one component. Cheap to clone.
#[derive(Clone)]
pub struct Observe(Arc<Counters>);

struct Counters {
    component: ComponentName,
    deliveries: Words,
    delivery_ends: Words,
    calls_ended: Words,
    wait: Histogram,
    app: Histogram,
    reply: Histogram,
    whole: Histogram,
    suppressed: IntCounter,
    parked: IntCounter,
    parked_full: IntCounter,
    records_lost: IntCounter,
    unreadable: IntCounter,
    partition_changes: Words,
    pause: Histogram,
    partitions: IntGauge,
    held: IntGauge,
    held_bytes: IntGauge,
    window: Gauge,
    lanes: IntGauge,
    longest_lane: IntGauge,
    under_way: IntGauge,
    app_hangs: IntGauge,
    parked_now: IntGauge,
    recorded_now: IntGauge,
    oldest: Gauge,
}

/// Bounds of the buckets of the pause of a partition, in seconds.
const PAUSES: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

impl Observe {
    /// Counters for `component`, a box of which this is.
    ///
    /// # Errors
    /// When they are there already.
    pub fn new(component: &ComponentName, metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let counts = metrics.counts().with("component", component.as_str());
        let counter = |name: &str, help: &str| counts.counter(&format!("bluebox_inbound_{name}"), help);
        let gauge = |name: &str, help: &str| counts.gauge(&format!("bluebox_inbound_{name}"), help);
        let real = |name: &str, help: &str| counts.real(&format!("bluebox_inbound_{name}"), help);
        let by = |name: &str, help: &str, label: &str| counts.words(&format!("bluebox_inbound_{name}"), help, label);
        Ok(Self(Arc::new(Counters {
            component: component.clone(),
            deliveries: by("deliveries_total", "Deliveries begun: `first` of their call, or `again`", "kind")?.from_zero(&KINDS),
            delivery_ends: by(
                "delivery_ends_total",
                "Deliveries that ended: `answered`, `failed`, `not_now` (503 with Retry-After), `not_there` (the app accepts no connections), `not_begun` (no owner any more)",
                "end",
            )?
            .from_zero(&ENDS),
            calls_ended: by(
                "calls_ended_total",
                "Calls whose end became durable: with an answer of the app (`2xx`, `3xx`, `4xx`, `5xx`), `dead_letter`, `refused` (by the proxy: cancelled, key used before, an answer \
                 that can't be recorded), `known` (it had ended before)",
                "outcome",
            )?
            .from_zero(&OUTCOMES),
            wait: metrics.stage_in(component, "wait"),
            app: metrics.stage_in(component, "app"),
            reply: metrics.stage_in(component, "reply"),
            whole: metrics.stage_in(component, "whole"),
            suppressed: counter("duplicates_suppressed_total", "Calls that were not delivered again, because their outcome was found on a takeover")?,
            parked: counter("parked_total", "Calls moved to the parked partition")?,
            parked_full: counter("parked_full_total", "Times that a partition had to wait because too many calls were parked. An alarm")?,
            records_lost: counter("records_lost_total", "The retention alarm: records without an outcome that the log deleted. Must be 0")?,
            unreadable: counter("records_unreadable_total", "Records of the calls topic that could not be read, and were skipped. Must be 0")?,
            partition_changes: by(
                "partition_changes_total",
                "What happened to partitions of this box: `assigned`, `released` (handed over), `lost` (it was taken for dead), `fenced` (another box has fenced one)",
                "change",
            )?
            .from_zero(&CHANGES),
            pause: counts.histogram(
                "bluebox_inbound_takeover_seconds",
                "How long partitions stood still that came to this box: from their assignment to the first record that was asked for",
                &PAUSES,
            )?,
            partitions: gauge("partitions", "Partitions owned now")?,
            held: gauge("held_calls", "Calls that were read and have no end yet")?,
            held_bytes: gauge("held_bytes", "Bytes of bodies of calls that are held in memory")?,
            window: real("window_used_ratio", "How full the fullest partition's window is, from 0 to 1. At 1 the partition is not read on")?,
            lanes: gauge("lanes", "Ordering keys with calls that are held")?,
            longest_lane: gauge("longest_lane_calls", "Calls in the longest of these lanes; all but the first wait")?,
            under_way: gauge("deliveries_under_way", "Deliveries under way now")?,
            app_hangs: gauge("app_hangs", "1 while the app answers nothing and so gets no calls, else 0")?,
            parked_now: gauge("parked_calls", "Calls parked now")?,
            recorded_now: gauge("recorded_calls", "Recorded calls in the index now")?,
            oldest: real("oldest_call_age_seconds", "Age of the oldest call that this box has read and that has no end; 0 if there is none")?,
        })))
    }

    #[cfg(test)]
    pub(crate) fn count_all(&self) {
        // All words are counted from zero.
        self.0.calls_ended.inc("dead_letter");
    }

    pub(super) fn owned(&self, owner: &mut Owner) {
        let c = &self.0;
        let to = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let sum = |of: fn(&Partition) -> usize| to(owner.partitions().map(|(_, p)| of(p)).sum());
        c.partitions.set(to(owner.partitions().count()));
        c.held.set(sum(Partition::held_calls));
        c.held_bytes.set(sum(Partition::held_bytes));
        c.parked_now.set(sum(Partition::parked_calls));
        c.lanes.set(sum(Partition::lanes));
        c.longest_lane.set(to(owner.partitions().map(|(_, p)| p.longest_lane()).max().unwrap_or(0)));
        c.window.set(owner.partitions().map(|(_, p)| p.window_used()).fold(0.0, f64::max));
        c.under_way.set(to(owner.under_way()));
        let oldest = owner.partitions().filter_map(|(_, p)| p.oldest()).min();
        c.oldest.set(oldest.map_or(0.0, |at| wall_clock().since(at).as_secs_f64()));
        c.recorded_now.set(to(owner.index().len()));
    }

    pub(super) fn hangs(&self, hangs: bool) {
        self.0.app_hangs.set(i64::from(hangs));
    }

    pub(super) fn assigned(&self) {
        self.0.partition_changes.inc("assigned");
    }

    pub(super) fn released(&self) {
        self.0.partition_changes.inc("released");
    }

    pub(super) fn lost(&self) {
        self.0.partition_changes.inc("lost");
    }

    pub(super) fn fenced(&self) {
        self.0.partition_changes.inc("fenced");
    }

    pub(super) fn taken_over(&self, pause: Duration) {
        took(&self.0.pause, pause);
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

    /// `accepted`: when the log took the call, by its clock.
    pub(super) fn delivering(&self, attempt: u32, may_have_started: bool, accepted: Option<Timestamp>) {
        let first = attempt == 1 && !may_have_started;
        self.0.deliveries.inc(if first { "first" } else { "again" });
        if let Some(accepted) = accepted.filter(|_| first) {
            took(&self.0.wait, wall_clock().since(accepted));
        }
    }

    pub(super) fn app_took(&self, time: Duration) {
        took(&self.0.app, time);
    }

    /// `accepted`: when the log took the call, by its clock.
    pub(super) fn reply_took(&self, time: Duration, accepted: Timestamp) {
        took(&self.0.reply, time);
        took(&self.0.whole, wall_clock().since(accepted));
    }

    pub(super) fn delivered(&self, id: &CallId, attempt: u32, end: &DeliveryEnd) {
        let component = &self.0.component;
        match end {
            // `line` tells of it, with more than is known here.
            DeliveryEnd::Answered(_) | DeliveryEnd::NotBegun => {}
            DeliveryEnd::NotNow(pause, outcome) => match outcome.source {
                Source::App => tracing::info!(call = %id, attempt, %component, retry_after_seconds = pause.as_secs(), "the app said not now"),
                Source::Proxy(reason) => {
                    tracing::info!(call = %id, attempt, %component, ?reason, retry_after_seconds = pause.as_secs(), "a delivery has to wait")
                }
            },
            DeliveryEnd::NotThere => tracing::warn!(call = %id, attempt, %component, "the app does not accept connections"),
            DeliveryEnd::Failed(detail) => tracing::warn!(call = %id, attempt, %component, %detail, "an attempt failed"),
        }
        self.0.delivery_ends.inc(end.word());
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
        self.0.calls_ended.inc(word);
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

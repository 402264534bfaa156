//! What is counted on the way out, and what both ways share. Into the app: [`crate::inbound::observe`].

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::log::{Health, Log};
use bluebox_observe::counts::Family;
use bluebox_observe::{Counts, Words, WordsOf};
use prometheus::{Histogram, HistogramVec, IntCounter, IntGauge};
use tokio::sync::watch;

use crate::problem::Kind;
use crate::readiness::Registered;
use crate::registry::Directory;

/// Bounds of the buckets of what takes time, in seconds: from half a millisecond to the longest wait.
const SECONDS: [f64; 16] = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 10.0, 60.0, 300.0];

/// The counts of a proxy. Cheap to clone; clones count together. Nothing here takes a lock or allocates once a word was seen, see [`bluebox_observe::handles`].
#[derive(Debug, Clone)]
pub struct Metrics {
    counts: Counts,
    stages: HistogramVec,
    /// Calls out of the box, by callee and by how they ended; see [`result_of`].
    pub calls: WordsOf,
    /// Problems that callers were answered with instead of an outcome, by word.
    pub problems: Words,
    /// From the first byte of an append of a call to its acknowledgement.
    pub append: Histogram,
    /// From the acknowledgement to the outcome.
    pub outcome: Histogram,
    /// From the request's head to the outcome.
    pub whole: Histogram,
    /// Callers that wait for an outcome now.
    pub waiting: IntGauge,
    /// Those of them that wait for long, and whose connections are held without hyper.
    pub waiting_long: IntGauge,
    /// Requests that took another way than the log, by how: `forwarded`, `tunnelled`, `upgraded`, or the word of a problem.
    pub passed: Words,
    /// Exchanges to components that can't be durable, by what became of them: `refused`, `passed`.
    pub streams: Words,
    /// Appends that failed, by what is known of the record: `not_persisted`, `unknown`.
    pub append_failures: Words,
    /// Requests that were refused before anything was done with them, by the word of the problem.
    pub refused: Words,
    /// Connections of the app that are open now.
    pub connections: IntGauge,
    /// Connections past the log that are open now.
    pub tunnels: IntGauge,
    /// Mistakes in Bluebox itself. Should be 0 for ever.
    pub internal_errors: IntCounter,
}

impl Metrics {
    /// Counts of nothing yet, of a box that calls by this name.
    ///
    /// # Errors
    /// When two of them have one name, which is a mistake in this program.
    pub fn try_new(name: &ComponentName) -> Result<Self, prometheus::Error> {
        let counts = Counts::try_new("proxy")?;
        let stages = counts.histograms(
            "bluebox_call_duration_seconds",
            "How long the stages of a call took. Out of a box (`direction=\"out\"`, `component` is who calls): `append` (until the log has it), `outcome` (from then to the outcome), \
             `whole` (from the request's head to the outcome). Into a box (`in`, `component` is the callee): `wait` (from the log's acceptance to the first delivery, by the log's clock \
             and this one), `app` (until the app has answered, or failed to), `reply` (until the outcome is in the log), `whole` (from the log's acceptance until then)",
            &["component", "direction", "stage"],
            &SECONDS,
        )?;
        let out = |stage| stages.with_label_values(&[name.as_str(), "out", stage]);
        Ok(Self {
            append: out("append"),
            outcome: out("outcome"),
            whole: out("whole"),
            calls: counts.words_of(
                "bluebox_outbound_calls_total",
                "Calls out of this box, by callee and by how they ended: `app` (with the app's answer), `accepted` (202: its caller asks later), `not_accepted` (503, or another \
                 refusal: provably not in the log), `acceptance_unknown` (504), `no_outcome` (504: accepted, and none within the wait), `ended` (by a proxy: dead letters and what was \
                 cancelled or refused on the way), `unreadable` (the outcome can't be read), `gone` (the \
                 connection of who made it ended before it was answered), `internal` (a mistake in Bluebox)",
                ["callee", "result"],
            )?,
            problems: counts.words(
                "bluebox_outbound_problems_total",
                "Calls out of this box that were answered with a problem of Bluebox, by its word (docs/http.md has them all)",
                "problem",
            )?,
            waiting: counts.gauge("bluebox_outbound_waiting", "Callers that wait for an outcome now")?,
            waiting_long: counts.gauge("bluebox_outbound_waiting_long", "Callers that have waited for 200 ms or more over HTTP/1: such a caller takes some 4.5 kB instead of 41")?,
            passed: counts.words(
                "bluebox_passed_through_total",
                "Requests that did not go through the log: `forwarded`, `upgraded`, `tunnelled`, or the word of the problem that they ended with",
                "result",
            )?,
            streams: counts.words("bluebox_streams_total", "Exchanges with components that can't be durable: `refused` or `passed`", "result")?,
            append_failures: counts
                .words("bluebox_append_failures_total", "Calls that the log did not take (`not_persisted`), or did not confirm (`unknown`)", "known")?
                .from_zero(&["not_persisted", "unknown"]),
            refused: counts.words("bluebox_refused_requests_total", "Requests that were refused before anything was done, by the word of the problem", "problem")?,
            connections: counts.gauge("bluebox_outbound_connections", "Connections of the app to its proxy that are open now")?,
            tunnels: counts.gauge("bluebox_passed_through_connections", "Tunnels and upgraded connections past the log that are open now")?,
            internal_errors: counts.counter("bluebox_internal_errors_total", "Mistakes in Bluebox itself. Must be 0")?,
            stages,
            counts,
        })
    }

    /// Where further counts are made.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Where what is counted otherwise is registered.
    pub fn registry(&self) -> &prometheus::Registry {
        self.counts.registry()
    }

    /// The duration of a stage of calls into a component of this box.
    pub fn stage_in(&self, component: &ComponentName, stage: &str) -> Histogram {
        self.stages.with_label_values(&[component.as_str(), "in", stage])
    }

    /// How a call out of the box ended that was answered with this problem.
    pub fn problem(&self, kind: Kind) -> &'static str {
        self.problems.inc(kind.word());
        result_of(kind)
    }

    /// Tells of the log, whenever somebody looks.
    ///
    /// # Errors
    /// As [`Self::try_new`].
    pub fn watch(&self, log: Arc<dyn Log>) -> Result<(), prometheus::Error> {
        let counts = &self.counts;
        let up = counts.gauge("bluebox_log_up", "Whether the log can be reached, as far as this process knows: 1, else 0")?;
        let of_broker = |name: &str, help: &str| counts.reals(name, help, &["broker"]);
        let mean = of_broker("bluebox_kafka_round_trip_mean_seconds", "Kafka: mean time from a request for appends to its answer, in the last 5 s, by broker")?;
        let p99 = of_broker("bluebox_kafka_round_trip_p99_seconds", "Kafka: the same, which 99 % did not exceed")?;
        let requests = of_broker("bluebox_kafka_requests_waiting", "Kafka: requests for appends that were sent or are to be, and have no answer, by broker")?;
        let connected = of_broker("bluebox_kafka_connected", "Kafka: whether there is a connection for appends to this broker: 1, else 0")?;
        let records = counts.gauge("bluebox_kafka_queued_records", "Kafka: records in the client's queue that the broker has not acknowledged")?;
        let bytes = counts.gauge("bluebox_kafka_queued_bytes", "Kafka: their bytes")?;
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let health = log.health();
        counts.before_a_look(move || {
            up.set((*health.borrow() == Health::Up).into());
            let Some(statistics) = log.statistics() else { return };
            for vector in [&mean, &p99, &requests, &connected] {
                vector.reset();
            }
            for broker in &statistics.brokers {
                let label = [broker.node.to_string()];
                mean.with_label_values(&label).set(broker.round_trip_mean.as_secs_f64());
                p99.with_label_values(&label).set(broker.round_trip_p99.as_secs_f64());
                requests.with_label_values(&label).set(f64::from(broker.requests_waiting));
                connected.with_label_values(&label).set(f64::from(u8::from(broker.connected)));
            }
            records.set(whole(statistics.queued_records));
            bytes.set(whole(statistics.queued_bytes));
        });
        Ok(())
    }

    /// All counts in Prometheus' text format.
    pub fn text(&self) -> Vec<u8> {
        self.counts.text()
    }
}

/// Every count that a proxy can have, for the reference.
///
/// # Errors
/// As [`Metrics::try_new`].
pub fn families(log: Arc<dyn Log>) -> Result<Vec<Family>, prometheus::Error> {
    // No component has this name: it stands for any.
    let name = ComponentName::try_new("any").map_err(|problem| prometheus::Error::Msg(problem.to_string()))?;
    let metrics = Metrics::try_new(&name)?;
    metrics.watch(log.clone())?;
    drop(Registered::watch(watch::channel(Directory::default()).1, log.health(), &metrics)?);
    drop(bluebox_observe::trace::Counts::try_new(metrics.counts())?);
    drop(crate::dns::Counts::try_new(&metrics)?);
    drop(crate::transparent::Counts::try_new(&metrics)?);
    drop(crate::transparent::probe::Redirected::watch(String::new(), &metrics)?);
    drop(crate::inbound::observe::Observe::new(&name, &metrics)?);
    Ok(metrics.counts.families())
}

/// How a call ended that was answered with this problem, in the few words that each callee has a counter for.
pub fn result_of(kind: Kind) -> &'static str {
    match kind {
        Kind::AcceptanceUnknown => "acceptance_unknown",
        Kind::NoOutcomeYet => "no_outcome",
        Kind::OutcomeUnreadable => "unreadable",
        Kind::Ended(_) => "ended",
        Kind::Internal => "internal",
        _ => "not_accepted",
    }
}

/// Adds a duration.
pub(crate) fn took(stage: &Histogram, time: Duration) {
    stage.observe(time.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bluebox_core::log::embedded::Embedded;

    use super::*;
    use crate::inbound::observe::Observe;
    use crate::problem::KINDS;

    fn name(name: &str) -> ComponentName {
        ComponentName::try_new(name).unwrap()
    }

    /// The promise: at most 600 series for a proxy that calls 20 components, whatever has happened to it.
    #[test]
    fn a_proxy_that_calls_twenty_components_has_at_most_600_series() {
        let metrics = Metrics::try_new(&name("shop")).unwrap();
        metrics.watch(Embedded::in_memory().client()).unwrap();
        bluebox_observe::trace::Counts::try_new(metrics.counts()).unwrap();
        crate::dns::Counts::try_new(&metrics).unwrap().count_all();
        crate::transparent::Counts::try_new(&metrics).unwrap().count_all();
        let (_registered, _waiting) = Registered::watch(watch::channel(Directory::default()).1, Embedded::in_memory().health(), &metrics).unwrap();
        let (_redirected, _watching) = crate::transparent::probe::Redirected::watch("token".to_owned(), &metrics).unwrap();
        Observe::new(&name("shop"), &metrics).unwrap().count_all();
        for callee in 0..20 {
            for kind in KINDS {
                metrics.calls.of(&format!("callee-{callee}")).inc(metrics.problem(kind));
            }
            for word in ["app", "accepted", "gone"] {
                metrics.calls.of(&format!("callee-{callee}")).inc(word);
            }
        }
        for kind in KINDS {
            metrics.passed.inc(kind.word());
            metrics.refused.inc(kind.word());
        }
        for word in ["forwarded", "tunnelled", "upgraded"] {
            metrics.passed.inc(word);
        }
        for word in ["refused", "passed"] {
            metrics.streams.inc(word);
        }
        let began = Instant::now();
        let text = String::from_utf8(metrics.text()).unwrap();
        let took = began.elapsed();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        println!("{series} series, {} bytes, written in {took:?}", text.len());
        assert!(series > 300, "this counts nothing: {text}");
        assert!(series <= 600, "{series} series");
        // What is bounded is bounded by construction: nothing but these labels.
        for line in text.lines().filter(|line| line.contains('{')) {
            let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map(|(labels, _)| labels).unwrap_or_default();
            for label in labels.split("\",") {
                let label = label.split('=').next().unwrap_or_default();
                const KNOWN: [&str; 16] = [
                    "broker",
                    "callee",
                    "change",
                    "component",
                    "direction",
                    "end",
                    "kind",
                    "known",
                    "le",
                    "outcome",
                    "part",
                    "problem",
                    "result",
                    "stage",
                    "version",
                    "word",
                ];
                assert!(KNOWN.contains(&label), "a label {label:?} in {line}");
                assert!(!(line.contains("_bucket{") && label == "callee"), "a histogram by peer: {line}");
            }
        }
    }

    #[test]
    fn counts_are_written_with_their_words() {
        let metrics = Metrics::try_new(&name("shop")).unwrap();
        metrics.calls.of("cart").inc("app");
        metrics.calls.of("cart").inc(metrics.problem(Kind::LogAway));
        metrics.internal_errors.inc();
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.contains("bluebox_outbound_calls_total{callee=\"cart\",result=\"app\"} 1"), "{text}");
        assert!(text.contains("bluebox_outbound_calls_total{callee=\"cart\",result=\"not_accepted\"} 1"), "{text}");
        assert!(text.contains("bluebox_outbound_problems_total{problem=\"log-away\"} 1"), "{text}");
        assert!(text.contains("bluebox_internal_errors_total 1"), "{text}");
    }
}

//! What is counted.

use prometheus::core::Collector;
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tracing::warn;

/// The counts of a proxy. Cheap to clone; clones count together.
///
/// Units are base units; labels have few values: words of this program, and component names, which the registry bounds.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Calls out of the box, by callee and by how they ended: `app`, `accepted` (202), or the word of a problem.
    pub calls: IntCounterVec,
    /// How long callers waited for an outcome of the app, in seconds, by callee.
    pub call_seconds: HistogramVec,
    /// Callers that wait for an outcome now.
    pub waiting: IntGauge,
    /// Those of them that wait for long, and whose connections are held without hyper.
    pub waiting_long: IntGauge,
    /// Requests that took another way than the log, by how: `forwarded`, `tunnelled`, `upgraded`, `stream`, or the word of a problem.
    pub passed: IntCounterVec,
    /// Exchanges to components that can't be durable, by what became of them: `refused`, `passed`.
    pub streams: IntCounterVec,
    /// Appends that failed, by what is known of the record: `not_persisted`, `unknown`.
    pub append_failures: IntCounterVec,
    /// Requests that were refused before anything was done with them, by the word of the problem.
    pub refused: IntCounterVec,
    /// Connections of the app that are open now.
    pub connections: IntGauge,
    /// Mistakes in Bluebox itself. Should be 0 for ever.
    pub internal_errors: IntCounter,
}

impl Metrics {
    /// Counts of nothing yet.
    ///
    /// # Errors
    /// When two of them have one name, which is a mistake in this program.
    pub fn try_new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let vector = |name: &str, help: &str, labels: &[&str]| registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help)?);
        let seconds = HistogramOpts::new("bluebox_outbound_call_duration_seconds", "Time from the request's head to the app's outcome")
            .buckets(prometheus::exponential_buckets(0.0005, 2.0, 20)?);
        Ok(Self {
            calls: vector("bluebox_outbound_calls_total", "Calls out of this box, by how they ended", &["callee", "result"])?,
            call_seconds: registered(&registry, HistogramVec::new(seconds, &["callee"])?)?,
            waiting: gauge("bluebox_outbound_waiting", "Callers that wait for an outcome")?,
            waiting_long: gauge("bluebox_outbound_waiting_long", "Callers that wait for long, at little cost")?,
            passed: vector("bluebox_passed_through_total", "Requests that did not go through the log, by how they went", &["result"])?,
            streams: vector("bluebox_streams_total", "Exchanges to components that can't be durable", &["result"])?,
            append_failures: vector("bluebox_append_failures_total", "Appends of calls that failed", &["known"])?,
            refused: vector("bluebox_refused_requests_total", "Requests that were refused at once", &["problem"])?,
            connections: gauge("bluebox_outbound_connections", "Connections of the app that are open")?,
            internal_errors: registered(&registry, IntCounter::new("bluebox_internal_errors_total", "Mistakes in Bluebox itself")?)?,
            registry,
        })
    }

    /// Where further counts are registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All counts in Prometheus' text format.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(problem) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            warn!(%problem, "the metrics could not be written");
        }
        text
    }
}

/// Counts one more in a gauge, until it is dropped.
pub(crate) struct Counted(IntGauge);

impl Counted {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_is_registered_and_written() {
        let metrics = Metrics::try_new().unwrap();
        metrics.calls.with_label_values(&["cart", "app"]).inc();
        metrics.internal_errors.inc();
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.contains("bluebox_outbound_calls_total{callee=\"cart\",result=\"app\"} 1"), "{text}");
        assert!(text.contains("bluebox_internal_errors_total 1"), "{text}");
    }

    #[test]
    fn the_docs_have_every_count() {
        let metrics = Metrics::try_new().unwrap();
        let vectors = [&metrics.calls, &metrics.passed, &metrics.streams, &metrics.append_failures, &metrics.refused];
        let names = vectors.iter().flat_map(|v| v.desc()).chain(metrics.call_seconds.desc()).map(|d| d.fq_name.clone());
        let names = names.chain(metrics.registry().gather().into_iter().map(|f| f.name().to_owned()));
        for name in names {
            assert!(include_str!("../../docs/http.md").contains(&format!("| `{name}")), "docs/http.md does not have {name}");
        }
    }
}

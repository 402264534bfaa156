//! What the injector counts, and where that and its state of health can be asked.

use std::collections::BTreeMap;
use std::time::Duration;

use bluebox_observe::listener::{self, plain};
use bluebox_observe::{Counts, Words};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::{Histogram, IntGauge, IntGaugeVec};
use tokio::net::TcpListener;

/// The counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    counts: Counts,
    reviews: Words,
    refused: Words,
    seconds: Histogram,
    certificate_until: IntGauge,
    failures: Words,
    restart_rules: IntGauge,
    bare: IntGaugeVec,
}

/// Bounds of the buckets of a review, in seconds.
const SECONDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

impl Metrics {
    /// All of them at zero.
    ///
    /// # Errors
    /// Only by a mistake in this program.
    pub fn try_new() -> Result<Self, prometheus::Error> {
        let counts = Counts::try_new("injector")?;
        Ok(Self {
            reviews: counts
                .words("bluebox_injector_reviews_total", "Pods judged: `injected`, `unchanged`, `denied`, or why a pod is exempt", "result")?
                .from_zero(&["injected", "unchanged", "denied"]),
            refused: counts.words("bluebox_injector_refused_total", "Requests that were no review, by reason", "reason")?,
            seconds: counts.histogram("bluebox_injector_review_seconds", "How long a review took", &SECONDS)?,
            certificate_until: counts
                .gauge("bluebox_injector_certificate_until_seconds", "Until when the certificate that is shown is good, in seconds since 1970")?,
            failures: counts
                .words("bluebox_injector_certificate_failures_total", "Attempts to keep the certificates right that failed, by what failed", "what")?
                .from_zero(&["secret", "webhook", "certificate", "patience"]),
            restart_rules: counts.gauge(
                "bluebox_injector_restart_rules",
                "Whether app and proxy of new pods are restarted together by restart rules: 1, or 0 where the cluster has none",
            )?,
            bare: counts.gauges(
                "bluebox_injector_bare_pods",
                "Pods that run without a proxy, because they are older than the label that asks for one, by namespace; each has an event `WithoutBluebox` too",
                &["namespace"],
            )?,
            counts,
        })
    }

    /// Every count, for the reference.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn reviewed(&self, result: &str) {
        self.reviews.inc(result);
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.inc(reason);
    }

    pub(crate) fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn certificate_until(&self, seconds: u64) {
        self.certificate_until.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub(crate) fn restart_rules(&self, usable: bool) {
        self.restart_rules.set(i64::from(usable));
    }

    /// How many bare pods there are in which namespaces; in all others there are none.
    pub(crate) fn bare(&self, counts: &BTreeMap<String, i64>) {
        self.bare.reset();
        for (namespace, count) in counts {
            self.bare.with_label_values(&[namespace]).set(*count);
        }
    }

    pub(crate) fn failed(&self, what: &str) {
        self.failures.inc(what);
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.counts.text()).into_owned()
    }
}

/// Whether the webhook can do its work, and if not, why.
pub trait Readiness: Clone + Send + Sync + 'static {
    /// Why it can't.
    ///
    /// # Errors
    /// The reason.
    fn ready(&self) -> Result<(), String>;
}

/// Answers `/metrics`, `/healthz` and `/readyz`, until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: impl Readiness) {
    listener::serve(listener, move |request| std::future::ready(answer(&request, &metrics, &readiness))).await;
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, readiness: &impl Readiness) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/metrics" => plain(StatusCode::OK, metrics.text()),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => match readiness.ready() {
            Ok(()) => plain(StatusCode::OK, "ready\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::try_new().unwrap();
        metrics.reviewed("injected");
        metrics.refused("size");
        metrics.failed("secret");
        metrics.took(Duration::from_millis(1));
        metrics.bare(&[("emptied".to_owned(), 7)].into());
        metrics.bare(&[("shop".to_owned(), 2)].into());
        assert!(metrics.text().contains(r#"bare_pods{namespace="shop"} 2"#) && !metrics.text().contains("emptied"), "{}", metrics.text());
        metrics.certificate_until(1_800_000_000);
        let text = metrics.text();
        for line in [
            "bluebox_injector_certificate_until_seconds 1800000000",
            "bluebox_injector_reviews_total{result=\"injected\"} 1",
            "bluebox_injector_refused_total{reason=\"size\"} 1",
            "bluebox_injector_certificate_failures_total{what=\"secret\"} 1",
            "bluebox_injector_review_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}

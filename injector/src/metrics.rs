//! What the injector counts, and where that and its state of health can be asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// The counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    reviews: IntCounterVec,
    refused: IntCounterVec,
    seconds: Histogram,
    certificate_until: IntGauge,
    failures: IntCounterVec,
    restart_rules: IntGauge,
    bare: IntGaugeVec,
}

impl Metrics {
    /// All of them at zero.
    ///
    /// # Errors
    /// Only by a mistake in this program.
    pub fn try_new() -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            reviews: IntCounterVec::new(Opts::new("bluebox_injector_reviews_total", "Pods judged, by result."), &["result"])?,
            refused: IntCounterVec::new(Opts::new("bluebox_injector_refused_total", "Requests that were no review, by reason."), &["reason"])?,
            seconds: Histogram::with_opts(
                HistogramOpts::new("bluebox_injector_review_seconds", "How long a review took.")
                    .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0]),
            )?,
            certificate_until: IntGauge::new(
                "bluebox_injector_certificate_until_seconds",
                "Until when the certificate that is shown is good, in seconds since 1970.",
            )?,
            failures: IntCounterVec::new(
                Opts::new("bluebox_injector_certificate_failures_total", "Attempts to keep the certificates right that failed, by what failed."),
                &["what"],
            )?,
            restart_rules: IntGauge::new(
                "bluebox_injector_restart_rules",
                "Whether app and proxy of new pods are restarted together by restart rules: 1, or 0 where the cluster has none.",
            )?,
            bare: IntGaugeVec::new(
                Opts::new(
                    "bluebox_injector_bare_pods",
                    "Pods that run without a proxy, because they are older than the label that asks for one, by namespace.",
                ),
                &["namespace"],
            )?,
        };
        for collector in [&metrics.reviews, &metrics.refused, &metrics.failures] {
            metrics.registry.register(Box::new(collector.clone()))?;
        }
        metrics.registry.register(Box::new(metrics.seconds.clone()))?;
        metrics.registry.register(Box::new(metrics.certificate_until.clone()))?;
        metrics.registry.register(Box::new(metrics.restart_rules.clone()))?;
        metrics.registry.register(Box::new(metrics.bare.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn reviewed(&self, result: &str) {
        self.reviews.with_label_values(&[result]).inc();
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
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
        self.failures.with_label_values(&[what]).inc();
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        // Only a write into memory: it can't fail.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
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
    const MAX_CONNECTIONS: usize = 32;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(problem) => {
                warn!(%problem, "a connection to the admin listener could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (metrics, readiness) = (metrics.clone(), readiness.clone());
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &metrics, &readiness))));
            let mut http = hyper::server::conn::http1::Builder::new();
            let served = http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(16 << 10);
            if let Err(problem) = served.serve_connection(TokioIo::new(stream), service).await {
                debug!(%problem, "a connection to the admin listener broke off");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, readiness: &impl Readiness) -> Response<Full<Bytes>> {
    let plain = |status, text: String| {
        let mut response = Response::new(Full::new(text.into()));
        *response.status_mut() = status;
        response
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => plain(StatusCode::OK, metrics.text()),
        "/healthz" => plain(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match readiness.ready() {
            Ok(()) => plain(StatusCode::OK, "ready\n".to_owned()),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_have_every_count() {
        let metrics = Metrics::try_new().unwrap();
        metrics.reviewed("injected");
        metrics.refused("size");
        metrics.failed("secret");
        metrics.took(Duration::from_millis(1));
        metrics.bare(&[("emptied".to_owned(), 7)].into());
        metrics.bare(&[("shop".to_owned(), 2)].into());
        assert!(metrics.text().contains(r#"bare_pods{namespace="shop"} 2"#) && !metrics.text().contains("emptied"), "{}", metrics.text());
        metrics.certificate_until(1_800_000_000);
        assert!(metrics.text().contains("bluebox_injector_certificate_until_seconds 1800000000"), "{}", metrics.text());
        let families = metrics.registry.gather();
        assert_eq!(families.len(), 7);
        for family in families {
            assert!(include_str!("../../docs/kubernetes.md").contains(&format!("| `{}`", family.name())), "docs/kubernetes.md does not have {}", family.name());
        }
    }
}

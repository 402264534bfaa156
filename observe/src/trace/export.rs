//! Sends spans to a collector: OTLP over HTTP, in Protocol Buffers (OpenTelemetry: *OTLP Specification*, OTLP/HTTP).

use std::time::Duration;

use bytes::buf::Chain;
use bytes::{Buf as _, Bytes};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::encode::Source;
use super::otlp::ExportResponse;
use super::settings::Settings;
use super::waiting::{Batch, Waiting};
use crate::{Words, chain};

/// How often it is told that spans get lost.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// The pause before the second try, which doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// More of an answer is not looked at.
const MAX_ANSWER_BYTES: usize = 16 << 10;

/// What becomes of spans.
#[derive(Debug, Clone)]
pub struct Counts(Words);

impl Counts {
    /// None yet.
    ///
    /// # Errors
    /// When they are there already.
    pub fn try_new(counts: &crate::Counts) -> Result<Self, prometheus::Error> {
        let help = "Spans of traces: `sent` (a collector took them), `refused` (it did not, or not in time), `dropped` (more waited to be sent than OTEL_BSP_MAX_QUEUE_SIZE), `limited` (the first of traces that were not begun, because as many as may had begun in that second)";
        Ok(Self(counts.words("bluebox_trace_spans_total", help, "result")?.from_zero(&["sent", "refused", "dropped", "limited"])))
    }

    pub(super) fn dropped(&self) {
        self.0.inc("dropped");
    }

    pub(super) fn limited(&self) {
        self.0.inc("limited");
    }
}

/// What sends spans.
pub(super) struct Export {
    settings: Settings,
    client: Client<HttpConnector, Full<Body>>,
    source: Source,
    counts: Counts,
    told: Option<Instant>,
    dropped_before: u64,
    works: bool,
}

impl Export {
    pub(super) fn new(settings: Settings, service: &str, instance: &str, counts: Counts) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(settings.timeout));
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).pool_timer(TokioTimer::new()).build(connector);
        let service = settings.service.as_deref().unwrap_or(service);
        let own = [("service.name", service), ("service.instance.id", instance), ("telemetry.sdk.name", "bluebox"), ("telemetry.sdk.language", "rust")];
        let own = own.into_iter().chain([("telemetry.sdk.version", env!("CARGO_PKG_VERSION"))]);
        let said = settings.resource.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let source = Source::new(own.chain(said), "bluebox", env!("CARGO_PKG_VERSION"));
        Self { settings, client, source, counts, told: None, dropped_before: 0, works: false }
    }

    /// Sends what waits until it is told to close: then what is there by then. It is woken by the first of many, and then when a batch is whole or it is time, not by each.
    pub(super) async fn run(mut self, waiting: &Waiting, mut closing: watch::Receiver<bool>) {
        info!(endpoint = %self.settings.endpoint, "sends traces");
        loop {
            tokio::select! {
                () = waiting.any() => {}
                _ = closing.wait_for(|closing| *closing) => break,
            }
            // Others are waited for, but not when this is to be the last.
            tokio::select! {
                () = sleep(self.settings.delay) => {}
                () = waiting.enough() => {}
                _ = closing.wait_for(|closing| *closing) => {}
            }
            let Some(batch) = waiting.take() else { continue };
            let longest = self.settings.timeout.min(LAST_TRY);
            tokio::select! {
                () = self.send(batch, waiting) => {}
                // What is being tried has no time any more.
                () = closed_for(&mut closing, longest) => {}
            }
        }
        while let Some(batch) = waiting.take() {
            self.send(batch, waiting).await;
        }
    }

    /// One request, tried until it was taken, refused for good, or the time is over. The room that it took is given back.
    async fn send(&mut self, batch: Batch, waiting: &Waiting) {
        let count = batch.spans as u64;
        let (before, spans) = (Bytes::from(self.source.before(batch.bytes.len())), Bytes::from(batch.bytes));
        let until = Instant::now() + self.settings.timeout;
        let mut pause = FIRST_PAUSE;
        let why = loop {
            let refused = match timeout_at(until, self.once(before.clone().chain(spans.clone()))).await {
                Ok(Ok(rejected)) => {
                    let rejected_count = rejected.as_ref().map_or(0, |(count, _)| *count).min(count);
                    self.counts.0.inc_by("sent", count - rejected_count);
                    match rejected {
                        Some((_, why)) => break format!("it refused {rejected_count} of {count} spans: {why}"),
                        None => {
                            self.worked();
                            return waiting.give_back(spans);
                        }
                    }
                }
                Ok(Err(refused)) => refused,
                Err(_) => Refused { why: format!("it did not answer within {} ms", self.settings.timeout.as_millis()), again: None },
            };
            let Some(asked) = refused.again.map(|asked| asked.max(pause)).filter(|asked| Instant::now() + *asked < until) else {
                self.counts.0.inc_by("refused", count);
                break refused.why;
            };
            sleep(asked).await;
            pause *= 2;
        };
        self.tell(&why);
    }

    async fn once(&self, body: Body) -> Result<Option<(u64, String)>, Refused> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.settings.endpoint.clone();
        let headers = request.headers_mut();
        headers.extend(self.settings.headers.iter().cloned());
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(concat!("bluebox/", env!("CARGO_PKG_VERSION"))));
        let response = self.client.request(request).await.map_err(|error| Refused { why: chain(&error), again: Some(Duration::ZERO) })?;
        let again = asks_for_another(&response);
        let (head, body) = response.into_parts();
        // Read to its end, so that the connection can be used again.
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if !head.status.is_success() {
            return Err(Refused { why: format!("it answered {}", head.status), again });
        }
        let partly = ExportResponse::decode(body).ok().and_then(|answer| answer.partial_success).filter(|partly| partly.rejected_spans > 0);
        Ok(partly.map(|partly| {
            let rejected = u64::try_from(partly.rejected_spans).unwrap_or_default();
            self.counts.0.inc_by("refused", rejected);
            (rejected, partly.error_message)
        }))
    }

    fn worked(&mut self) {
        if !std::mem::replace(&mut self.works, true) && self.told.is_some() {
            info!(endpoint = %self.settings.endpoint, "traces are taken again");
        }
        let dropped = self.counts.0.count("dropped");
        if dropped > self.dropped_before {
            self.tell("more came at once than can wait to be sent (OTEL_BSP_MAX_QUEUE_SIZE)");
        }
    }

    /// At most once a minute.
    fn tell(&mut self, why: &str) {
        self.works = false;
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        let dropped = self.counts.0.count("dropped");
        let since = dropped - std::mem::replace(&mut self.dropped_before, dropped);
        warn!(endpoint = %self.settings.endpoint, why, dropped = since, "spans are lost; calls go on. Told once a minute; bluebox_trace_spans_total counts them");
    }
}

/// What is being sent when it is told to close has this long.
const LAST_TRY: Duration = Duration::from_millis(200);

/// Done when it was told to close, and this long has passed.
async fn closed_for(closing: &mut watch::Receiver<bool>, long: Duration) {
    // Whoever could say so has gone: then it is closed too.
    let _ = closing.wait_for(|closing| *closing).await;
    sleep(long).await;
}

/// What comes before the spans, and the spans.
type Body = Chain<Bytes, Bytes>;

/// Why a request was not taken.
struct Refused {
    why: String,
    /// The least pause before another try, if there is to be one.
    again: Option<Duration>,
}

/// Which answers mean that a request can be sent again (OTLP/HTTP, *Failures*), and when.
fn asks_for_another(response: &Response<Incoming>) -> Option<Duration> {
    let again = [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    again.contains(&response.status()).then(|| after.unwrap_or_default())
}

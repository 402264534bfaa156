//! The webhook as a server: HTTP over TLS, with limits on everything that a client can hold.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::annotations::Limits;
use crate::metrics::Metrics;
use crate::review::{self, ANSWER_WITHIN, MAX_REVIEW_BYTES};
use crate::selection::Place;
use crate::settings::Settings;

/// The path of the webhook.
pub const PATH: &str = "/inject";

/// Connections at once; further ones wait to be accepted. An API server keeps a few.
const MAX_CONNECTIONS: usize = 256;
/// Reviews at once; further ones wait. Bounds the memory for their bodies.
const MAX_REVIEWS: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may end what it is at when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Where the labels of namespaces are looked up.
pub trait Places: Send + Sync + 'static {
    /// The namespace, or why it can't be had.
    fn place(&self, namespace: &str) -> impl Future<Output = Result<Place, String>> + Send;
}

/// What answers.
#[derive(Debug)]
pub struct Webhook<P, L> {
    /// The installation's settings.
    pub settings: watch::Receiver<Settings>,
    /// The proxy's limits.
    pub limits: L,
    /// The namespaces.
    pub places: P,
    /// What is counted.
    pub metrics: Metrics,
}

/// Serves until `stop`, with whatever certificate there is at the time of each connection. Connections wait until there is one.
pub async fn serve<P: Places, L: Limits + 'static>(
    listener: TcpListener,
    webhook: Arc<Webhook<P, L>>,
    mut tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let reviews = Arc::new(Semaphore::new(MAX_REVIEWS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            // Only then is a connection taken: until there is a certificate, and while there are too many, they wait in the kernel.
            tls.wait_for(Option::is_some).await.ok()?;
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let (place, (stream, from)) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => match accepted {
                None => break,
                Some((place, Ok(accepted))) => (place, accepted),
                Some((_, Err(problem))) => {
                    warn!(%problem, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Some(config) = tls.borrow().clone() else { continue };
        let (webhook, reviews, stop) = (webhook.clone(), reviews.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, from, TlsAcceptor::from(config), webhook, reviews, stop).await;
            drop(place);
        });
    }
    // They were told by `stop`; what doesn't end in time is dropped with the set.
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection<P: Places, L: Limits + 'static>(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    webhook: Arc<Webhook<P, L>>,
    reviews: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(problem)) => {
            webhook.metrics.refused("handshake");
            return debug!(%from, %problem, "a TLS handshake failed");
        }
        Err(_) => {
            webhook.metrics.refused("handshake");
            return debug!(%from, "a TLS handshake took too long");
        }
    };
    let service = service_fn(move |request| {
        let (webhook, reviews) = (webhook.clone(), reviews.clone());
        async move { Ok::<_, Infallible>(answer(request, &webhook, &reviews).await) }
    });
    let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 << 10);
    let mut http2 = http.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT).keep_alive_timeout(HEAD_TIMEOUT).max_concurrent_streams(64).max_header_list_size(64 << 10);
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(problem) = ended {
        debug!(%from, %problem, "a connection broke off");
    }
}

async fn answer<P: Places, L: Limits>(request: Request<Incoming>, webhook: &Webhook<P, L>, reviews: &Semaphore) -> Response<Full<Bytes>> {
    let began = Instant::now();
    match tokio::time::timeout(ANSWER_WITHIN, reviewed(request, webhook, reviews)).await {
        Ok(Ok(json)) => {
            webhook.metrics.took(began.elapsed());
            respond(StatusCode::OK, "application/json", json)
        }
        Ok(Err((status, reason, text))) => {
            webhook.metrics.refused(reason);
            warn!(status = status.as_u16(), text, "a request was refused");
            respond(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes())
        }
        Err(_) => {
            webhook.metrics.refused("timeout");
            warn!("a request took too long");
            respond(StatusCode::REQUEST_TIMEOUT, "text/plain; charset=utf-8", format!("not done within {} s\n", ANSWER_WITHIN.as_secs()).into_bytes())
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A refusal: the status, its reason for the counts, and a text.
type Refused = (StatusCode, &'static str, String);

async fn reviewed<P: Places, L: Limits>(request: Request<Incoming>, webhook: &Webhook<P, L>, reviews: &Semaphore) -> Result<Vec<u8>, Refused> {
    if request.uri().path() != PATH {
        return Err((StatusCode::NOT_FOUND, "path", format!("there is only {PATH}")));
    }
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "method", "POST an AdmissionReview".to_owned()));
    }
    let _place = reviews.acquire().await;
    let body = match Limited::new(request.into_body(), MAX_REVIEW_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(problem) if problem.is::<LengthLimitError>() => {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "size", format!("a review has at most {MAX_REVIEW_BYTES} bytes")));
        }
        Err(problem) => return Err((StatusCode::BAD_REQUEST, "body", format!("the body broke off: {problem}"))),
    };
    let question = review::read(&body).map_err(|bad| (StatusCode::BAD_REQUEST, "review", bad.to_string()))?;
    let namespace = question.namespace().to_owned();
    // Without the namespace's labels there is no judgement: the API server takes the failure for what it is, and its policy lets no pod run bare.
    let place = if question.is_new_pod() {
        let place = webhook.places.place(&namespace).await;
        place.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, "namespace", format!("namespace {namespace:?} can't be looked up: {why}")))?
    } else {
        Place::default()
    };
    let settings = webhook.settings.borrow().clone();
    let answer = question.answer(&place, &settings, &webhook.limits);
    webhook.metrics.reviewed(answer.result);
    info!(namespace, pod = question.pod(), result = answer.result, "{}", answer.said);
    answer.to_json().map_err(|problem| (StatusCode::INTERNAL_SERVER_ERROR, "answer", format!("the answer can't be written: {problem}")))
}

//! Where a part is asked about itself, over HTTP/1.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// Connections to a listener that may be open at once. Further ones wait.
const MAX_CONNECTIONS: usize = 32;

/// Who asks; among a request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Gives what `answer` says to each request, until it is dropped.
pub async fn serve<A, F>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(problem) => {
                warn!(%problem, "a connection to the admin listener could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Peer(peer));
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let served = http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(16 << 10);
            if let Err(problem) = served.serve_connection(TokioIo::new(stream), service).await {
                debug!(%problem, "a connection to the admin listener broke off");
            }
        });
    }
}

/// An answer in plain text, or in Prometheus' text format, which is plain text too.
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

/// Who asks, as far as that can be known.
pub fn who(peer: Option<SocketAddr>, headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("an unnamed program");
    let agent: String = agent.chars().filter(|c| !c.is_control()).take(80).collect();
    match peer {
        Some(peer) => format!("{peer} ({agent})"),
        None => agent,
    }
}

/// Whether a request was meant for a listener on loopback: it names that, and was not sent by a page of somebody else's (DNS rebinding, cross-site requests).
///
/// # Errors
/// With what speaks against it.
pub fn is_local(headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("not text"));
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    if headers.get_all(header::HOST).iter().count() != 1 || !["127.0.0.1", "localhost", "[::1]"].contains(&name.to_ascii_lowercase().as_str()) {
        return Err("the request's Host is not this machine's loopback: use http://127.0.0.1 or http://localhost");
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => Err("the request comes from a page of another origin"),
        _ => Ok(()),
    }
}

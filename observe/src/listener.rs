//! Where a part is asked about itself, over HTTP/1.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

/// Connections to a listener that may be open at once.
const MAX_CONNECTIONS: usize = 32;

/// Who asks; among a request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Whether a connection is of use now. One that is not gives way to others.
#[derive(Debug, Clone, Default)]
pub struct Busy(Arc<AtomicBool>);

impl Busy {
    /// Says so.
    pub fn set(&self, busy: bool) {
        self.0.store(busy, Ordering::Relaxed);
    }
}

/// A connection.
struct Open {
    task: AbortHandle,
    busy: Busy,
}

/// Hands connections to `served`, so many at once, until it is dropped. For a further one the oldest gives way that is not busy: who opens many and says nothing must keep nobody out, least
/// of all the kubelet. With all of them busy, it waits.
pub async fn accept<S, F>(listener: TcpListener, at_once: usize, served: S)
where
    S: Fn(TcpStream, SocketAddr, Busy) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    // The oldest first.
    let mut open: Vec<Open> = Vec::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(problem) => {
                warn!(%problem, "a connection to the admin listener could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= at_once {
            match open.iter().position(|connection| !connection.busy.0.load(Ordering::Relaxed)) {
                Some(idle) => open.remove(idle).task.abort(),
                None => _ = connections.join_next().await,
            }
        }
        let busy = Busy::default();
        let task = connections.spawn(served(stream, peer, busy.clone()));
        open.push(Open { task, busy });
        // It has its turn before others are accepted.
        tokio::task::yield_now().await;
    }
}

/// Gives what `answer` says to each request, until it is dropped.
pub async fn serve<A, F, B>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    accept(listener, MAX_CONNECTIONS, move |stream, peer, busy| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Peer(peer));
                let (answered, busy) = (answer(request), busy.clone());
                async move {
                    busy.set(true);
                    let answer = answered.await;
                    busy.set(false);
                    Ok::<_, Infallible>(answer)
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let served = http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(16 << 10);
            if let Err(problem) = served.serve_connection(TokioIo::new(stream), service).await {
                debug!(%problem, "a connection to the admin listener broke off");
            }
        }
    })
    .await;
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

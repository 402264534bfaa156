//! Where a part is asked about itself, over HTTP/1.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// Connections to a listener that may be open at once. Further ones wait.
const MAX_CONNECTIONS: usize = 32;

/// Who asks; among a request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Hands connections to `served`, so many at once, until it is dropped.
pub async fn accept<S, F>(listener: TcpListener, at_once: usize, served: S)
where
    S: Fn(TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(at_once));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let served = served(stream, peer);
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(problem) => {
                warn!(%problem, "a connection to the admin listener could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Gives what `answer` says to each request, until it is dropped.
pub async fn serve<A, F, B>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    accept(listener, MAX_CONNECTIONS, move |stream, peer| {
        let answer = answer.clone();
        async move {
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

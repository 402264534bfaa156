//! Where a part is asked about itself, over HTTP/1.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

/// Connections to a listener that may be open at once. For a further one the oldest gives way that asks nothing now: who opens many and says nothing must keep nobody out, least of
/// all the kubelet. With all of them being answered, it waits.
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
        if open.len() >= MAX_CONNECTIONS {
            match open.iter().position(|connection| !connection.asks.load(Ordering::Relaxed)) {
                Some(idle) => open.remove(idle).task.abort(),
                None => _ = connections.join_next().await,
            }
        }
        let asks = Arc::new(AtomicBool::new(false));
        let (answer, asking) = (answer.clone(), asks.clone());
        let task = connections.spawn(async move {
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Peer(peer));
                let (answered, asking) = (answer(request), asking.clone());
                async move {
                    asking.store(true, Ordering::Relaxed);
                    let answer = answered.await;
                    asking.store(false, Ordering::Relaxed);
                    Ok::<_, Infallible>(answer)
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let served = http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(16 << 10);
            if let Err(problem) = served.serve_connection(TokioIo::new(stream), service).await {
                debug!(%problem, "a connection to the admin listener broke off");
            }
        });
        open.push(Open { task, asks });
        // It has its turn before others are accepted.
        tokio::task::yield_now().await;
    }
}

/// A connection.
struct Open {
    task: AbortHandle,
    /// Whether a request of it is being answered.
    asks: Arc<AtomicBool>,
}

/// An answer in plain text, or in Prometheus' text format, which is plain text too.
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::Semaphore;

    use super::*;

    /// What comes first on a connection that is asked for `/` and closed after it.
    async fn ask(at: SocketAddr) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        all.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn who_opens_many_connections_and_asks_nothing_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (asked, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (tell, gate) = (asked.clone(), go_on.clone());
        let answer = move |request: Request<Incoming>| {
            let (tell, gate) = (tell.clone(), gate.clone());
            async move {
                if request.uri().path() == "/wait" {
                    tell.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                }
                plain(StatusCode::OK, "x")
            }
        };
        let serving = tokio::spawn(serve(listener, answer));
        // The oldest of all, but it is being answered.
        let mut waits = TcpStream::connect(at).await.unwrap();
        waits.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        asked.acquire().await.unwrap().forget();
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), ask(at)).await.unwrap(), "HTTP/1.1 200 OK");
        go_on.add_permits(1);
        let mut all = String::new();
        waits.read_to_string(&mut all).await.unwrap();
        assert!(all.starts_with("HTTP/1.1 200 OK"), "{all}");
        serving.abort();
    }
}

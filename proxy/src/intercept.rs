//! Takes requests off the app's connections: HTTP/1.1 and HTTP/2 with prior knowledge, on one port.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::outbound::OutboundSide;
use crate::passthrough::Place;

/// Requests that one HTTP/2 connection may have under way at once.
const STREAMS_PER_CONNECTION: u32 = 250;
/// The least buffer that hyper takes.
const LEAST_HEAD_BYTES: usize = 8192;

/// Serves connections until `stop`; then accepts no more, lets requests under way end for at most `drain`, and cuts off the rest.
pub async fn serve(listener: TcpListener, side: Arc<OutboundSide>, stop: CancellationToken, drain: Duration) {
    let limits = &side.config.outbound;
    let places = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let http = Arc::new(builder(&side));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        // Connections beyond the limit wait in the system's queue.
        let accepting = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let Some(Some((place, accepted))) = stop.run_until_cancelled(accepting).await else { break };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, side.clone(), http.clone(), Arc::new(place), stop.clone());
                let cut = cut.clone();
                connections.spawn(async move { cut.run_until_cancelled(connection).await });
            }
            Err(problem) => {
                // Out of file descriptors, usually: it gets better when connections end.
                warn!(%problem, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(drain, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "cut off requests that had not ended within the drain");
        cut.cancel();
        connections.wait().await;
    }
}

fn builder(side: &OutboundSide) -> auto::Builder<TokioExecutor> {
    let limits = &side.config.outbound;
    let head_bytes = limits.max_head_bytes.max(LEAST_HEAD_BYTES);
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Date is the app's to say: an outcome goes back verbatim.
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits.head_timeout).max_buf_size(head_bytes).auto_date_header(false);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .keep_alive_interval(Duration::from_secs(30))
        .auto_date_header(false);
    http
}

async fn connection(stream: TcpStream, side: Arc<OutboundSide>, http: Arc<auto::Builder<TokioExecutor>>, place: Place, stop: CancellationToken) {
    let _open = Open::new(&side);
    let _ = stream.set_nodelay(true);
    let (seen, mut first) = watch::channel(false);
    let head_timeout = side.config.outbound.head_timeout;
    let service = service_fn(|request: Request<Incoming>| {
        seen.send_if_modified(|seen| !std::mem::replace(seen, true));
        side.clone().answer(request, place.clone(), None)
    });
    let serving = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    // Which protocol it is, and the first request, must show in time; hyper sees to the heads after that.
    let silent = async {
        if tokio::time::timeout(head_timeout, first.wait_for(|seen| *seen)).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let mut silent = std::pin::pin!(silent);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = &mut serving => {
                if let Err(problem) = ended {
                    debug!(%problem, "a connection broke off");
                }
                return;
            }
            () = &mut silent => {
                debug!("closed a connection on which no request came in time");
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Counts an open connection, until it is dropped.
struct Open(prometheus::IntGauge);

impl Open {
    fn new(side: &OutboundSide) -> Self {
        side.metrics.connections.inc();
        Self(side.metrics.connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

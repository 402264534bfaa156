//! Takes requests off the app's connections: HTTP/1.1 and HTTP/2 with prior knowledge, on one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bluebox_observe::During;
use http::{Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::framing::Verdict;
use crate::guard::Guarded;
use crate::head::MOST_FIELDS;
use crate::interim::Interims;
use crate::outbound::{OutboundSide, Towards};
use crate::passthrough::Place;
use crate::target::RawTarget;

/// Requests that one HTTP/2 connection may have under way at once.
const STREAMS_PER_CONNECTION: u32 = 250;
/// How long a connection may stand idle between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
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
                let connection = connection(stream, side.clone(), http.clone(), Arc::new(place), stop.clone(), None);
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

/// How HTTP is served to the app.
pub(crate) fn builder(side: &OutboundSide) -> auto::Builder<TokioExecutor> {
    let limits = &side.config.outbound;
    let head_bytes = limits.max_head_bytes.max(LEAST_HEAD_BYTES);
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Date is the app's to say: an outcome goes back verbatim. hyper's timeout for heads runs on idle connections too; ours is in `Guarded`.
    // What is too large or malformed never gets as far as hyper: see `head`.
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(head_bytes + LEAST_HEAD_BYTES)
        .max_headers(MOST_FIELDS)
        .auto_date_header(false);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .keep_alive_interval(Duration::from_secs(30))
        .auto_date_header(false);
    http
}

/// Serves one connection; `towards` says where it was going, if the redirect caught it.
pub(crate) async fn connection(
    stream: TcpStream,
    side: Arc<OutboundSide>,
    http: Arc<auto::Builder<TokioExecutor>>,
    place: Place,
    stop: CancellationToken,
    towards: Option<SocketAddr>,
) {
    let _open = During::new(&side.metrics.connections);
    let _ = stream.set_nodelay(true);
    let limits = &side.config.outbound;
    let (stream, watch) = Guarded::new(stream, limits.max_head_bytes.max(LEAST_HEAD_BYTES), limits.head_timeout);
    // How many requests have come, and how many are being answered.
    let (came, mut first) = watch::channel(false);
    let under_way = Arc::new(AtomicUsize::new(0));
    let service = service_fn(|mut request: Request<Incoming>| {
        if let Some(towards) = towards {
            request.extensions_mut().insert(Towards(towards));
        }
        came.send_if_modified(|came| !std::mem::replace(came, true));
        let counted = UnderWay::new(&under_way);
        let is_http1 = request.version() <= Version::HTTP_11;
        let Verdict { refused, raw_target, may_switch } = if is_http1 { watch.take_verdict() } else { Verdict::default() };
        if let Some(target) = raw_target {
            request.extensions_mut().insert(RawTarget(target));
        }
        // HTTP/1.0 knows no interim responses (RFC 9110, section 15.2).
        let interims = (request.version() == Version::HTTP_11).then(|| Interims::begin(&watch));
        if let Some(interims) = interims.clone() {
            request.extensions_mut().insert(interims);
        }
        let (watch, connect) = (watch.clone(), request.method() == Method::CONNECT);
        let answer = side.clone().answer(request, place.clone(), refused.map(|problem| *problem));
        async move {
            let answer = answer.await;
            // From here on only its client can hold it up: such a connection is idle when no byte goes.
            drop(counted);
            if let Some(interims) = interims {
                interims.end().await;
            }
            if may_switch {
                let switches = answer.as_ref().is_ok_and(|a| a.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && a.status().is_success()));
                if switches { watch.let_go() } else { watch.go_on() }
            }
            answer
        }
    });
    let serving = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let silent = async {
        // The first request must show in time. If its head is under way, that has a time of its own, and an answer.
        while tokio::time::timeout(limits.head_timeout, first.wait_for(|came| *came)).await.is_err() {
            if !watch.is_in_head() {
                return;
            }
        }
        // After that a connection may stand idle for longer: a client that uses one again at the moment in which it is closed sees an error.
        loop {
            let idle = watch.last_byte().elapsed();
            if idle >= IDLE_TIMEOUT && under_way.load(Ordering::Relaxed) == 0 {
                return;
            }
            tokio::time::sleep(IDLE_TIMEOUT.saturating_sub(idle).max(IDLE_TIMEOUT / 10)).await;
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
                debug!("closed a connection on which nothing came");
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Counts a request that is being answered, until it is dropped.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

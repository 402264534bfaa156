//! Takes requests off the app's connections: HTTP/1.1 and HTTP/2 with prior knowledge, on one port.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bluebox_observe::During;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::fields;
use crate::head::MOST_FIELDS;
use crate::outbound::framing::{Protocol, Verdict};
use crate::outbound::guard::{Guarded, Watch};
use crate::outbound::interim::Interims;
use crate::outbound::long_wait::{Answering, Head, UnderWay};
use crate::outbound::passthrough::Place;
use crate::outbound::respond::AnswerBody;
use crate::outbound::tunnel::{Opened, Tunnel};
use crate::outbound::{OutboundSide, Towards};
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
    let http = Arc::new(Http::new(&side));
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
                // Boxed: each future that it is handed through would keep room for it.
                let connection = Box::pin(connection(stream, side.clone(), http.clone(), Arc::new(place), stop.clone(), None));
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
pub(crate) struct Http {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Http {
    /// As the configuration wants it.
    pub(crate) fn new(side: &OutboundSide) -> Self {
        let limits = &side.config.outbound;
        let head_bytes = limits.max_head_bytes.max(LEAST_HEAD_BYTES);
        let mut http1 = http1::Builder::new();
        // Date is the app's to say: an outcome goes back verbatim. hyper's timeout for heads runs on idle connections too; ours is in `Guarded`.
        // What is too large or malformed never gets as far as hyper: see `head`.
        http1.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(head_bytes + LEAST_HEAD_BYTES).max_headers(MOST_FIELDS).auto_date_header(false);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .keep_alive_interval(Duration::from_secs(30))
            .auto_date_header(false);
        Self { http1, http2 }
    }
}

/// Serves one connection; `towards` says where it was going, if the redirect caught it.
///
/// A block, and no function that is async by itself, which would keep its arguments twice: many may wait, and for long. What is not needed while a caller waits for long is boxed,
/// and gone meanwhile.
pub(crate) fn connection(
    stream: TcpStream,
    side: Arc<OutboundSide>,
    http: Arc<Http>,
    place: Place,
    stop: CancellationToken,
    towards: Option<SocketAddr>,
) -> impl Future<Output = ()> + Send {
    let _ = stream.set_nodelay(true);
    let (stream, asker) = begun(stream, Vec::new(), side, place, towards);
    async move {
        serve_to_the_end(stream, &http, &asker, &stop).await;
        if let Some(tunnel) = asker.requests.tunnel() {
            Box::pin(in_tunnel(tunnel, asker, http, stop)).await;
        }
    }
}

/// A connection that begins, on which this has come already.
fn begun(stream: TcpStream, came: Vec<u8>, side: Arc<OutboundSide>, place: Place, towards: Option<SocketAddr>) -> (Box<Guarded>, Asker) {
    let limits = &side.config.outbound;
    let (mut stream, watch) = Guarded::new(stream, limits.max_head_bytes.max(LEAST_HEAD_BYTES), limits.head_timeout);
    stream.takes_up(came);
    // Boxed: it is handed on, and each future that it is handed through would keep room for it.
    (Box::new(stream), Asker { side, place, watch, towards, requests: Arc::default(), under_way: UnderWay::default() })
}

/// Goes on with a connection that has become a tunnel to a component, and, if it does so again, again.
async fn in_tunnel(mut tunnel: Opened, mut asker: Asker, http: Arc<Http>, stop: CancellationToken) {
    loop {
        let (stream, came) = match tunnel.served(&asker.side, &asker.place).await {
            Ok(Some(served)) => served,
            Ok(None) => return,
            Err(problem) => return debug!(%problem, "a tunnel to a component broke off"),
        };
        let Asker { side, place, .. } = asker;
        let guarded;
        (guarded, asker) = begun(stream, came, side, place, None);
        serve_to_the_end(guarded, &http, &asker, &stop).await;
        let Some(next) = asker.requests.tunnel() else { return };
        tunnel = next;
    }
}

/// Serves a connection with hyper, and holds it without while its caller waits for long.
#[allow(clippy::manual_async_fn, reason = "a function that is async by itself would keep its arguments twice, and many may wait")]
fn serve_to_the_end<'a>(mut stream: Box<Guarded>, http: &'a Http, asker: &'a Asker, stop: &'a CancellationToken) -> impl Future<Output = ()> + Send + 'a {
    async move {
        let _open = During::new(&asker.side.metrics.connections);
        let mut served = Served::New;
        while let Some(left) = Box::pin(serve_connection(stream, http, asker, stop, served)).await {
            stream = left;
            if !hold(&stream, asker).await {
                return;
            }
            let stopping = stop.is_cancelled();
            stream.read_first(asker.under_way.tell_again(stopping));
            served = Served::Again { stopping };
        }
    }
}

/// Whether hyper has had a connection before.
#[derive(Clone, Copy)]
enum Served {
    New,
    /// It was left, and is begun again. `stopping`: it was told that the connection is to be closed with the answer.
    Again {
        stopping: bool,
    },
}

/// Serves a connection with hyper; `Some` where its caller waits for long now.
async fn serve_connection(mut stream: Box<Guarded>, http: &Http, asked: &Asker, stop: &CancellationToken, served: Served) -> Option<Box<Guarded>> {
    let mut silent = std::pin::pin!(silent(asked.side.config.outbound.head_timeout, &asked.watch, &asked.requests, served));
    let protocol = match served {
        Served::Again { .. } => Ok(Some(Protocol::Http1)),
        Served::New => tokio::select! {
            // First: what has come is answered.
            biased;
            protocol = stream.protocol() => protocol,
            () = &mut silent => {
                debug!("closed a connection on which nothing came");
                return None;
            }
            () = stop.cancelled() => return None,
        },
    };
    match protocol {
        Ok(Some(Protocol::Http1)) => tokio::select! {
            // First: an answer that was waited for longer than a connection may stand idle is written before anybody asks when the last byte went.
            biased;
            left = serve_http1(stream, http, asked, stop, matches!(served, Served::Again { stopping: true })) => return left,
            () = &mut silent => debug!("closed a connection on which nothing came"),
        },
        Ok(Some(Protocol::Http2)) => tokio::select! {
            // Large, and rare beside the other.
            () = Box::pin(serve_http2(stream, http, asked, stop)) => {}
            () = &mut silent => debug!("closed a connection on which nothing came"),
        },
        Ok(None) => {}
        Err(problem) => debug!(%problem, "a connection broke off before its first request"),
    }
    None
}

/// Holds a caller that waits for long, without hyper and its buffers, until there is an answer or more has come from it; `false` when it has gone.
async fn hold(stream: &Guarded, asker: &Asker) -> bool {
    let _held = During::new(&asker.side.metrics.waiting_long);
    std::future::poll_fn(|cx| {
        if asker.under_way.poll_made(cx).is_ready() {
            return Poll::Ready(true);
        }
        stream.poll_more(cx).map(|more| match more {
            Ok(true) => true,
            Ok(false) => {
                debug!("a caller hung up that waited");
                false
            }
            Err(problem) => {
                debug!(%problem, "a connection broke off");
                false
            }
        })
    })
    .await
}

async fn serve_http2(stream: Box<Guarded>, http: &Http, asker: &Asker, stop: &CancellationToken) {
    let service = service_fn(|request| {
        let answering = asker.answer(request);
        async move { *answering.await }
    });
    let mut serving = std::pin::pin!(http.http2.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(problem) = ended {
        debug!(%problem, "a connection broke off");
    }
}

/// As [`serve_connection`].
async fn serve_http1(stream: Box<Guarded>, http: &Http, asker: &Asker, stop: &CancellationToken, mut stopping: bool) -> Option<Box<Guarded>> {
    let mut serving = Box::pin(http.http1.serve_connection(TokioIo::new(stream), asker.clone()).with_upgrades());
    let ended = loop {
        let waits_or_ends = std::future::poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if asker.under_way.waits() && asker.watch.is_between_messages() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            // First: what hyper has not read yet of a request would be lost.
            biased;
            ended = waits_or_ends => break ended,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    };
    match ended {
        Some(Ok(())) => return None,
        Some(Err(problem)) => {
            debug!(%problem, "a connection broke off");
            return None;
        }
        None => {}
    }
    let left = Pin::into_inner(serving).into_parts()?;
    let mut stream = left.io.into_inner();
    // Copied: it may be a part of a large buffer, of nothing even.
    stream.read_first(Bytes::copy_from_slice(&left.read_buf));
    asker.watch.take_little();
    Some(stream)
}

/// Ends when a connection is to be closed because nothing comes.
async fn silent(head_timeout: Duration, watch: &Watch, requests: &Requests, served: Served) {
    // The first request must show in time. If its head is under way, that has a time of its own, and an answer.
    while matches!(served, Served::New) && tokio::time::timeout(head_timeout, requests.first.notified()).await.is_err() {
        if !watch.is_in_head() {
            return;
        }
    }
    // After that a connection may stand idle for longer: a client that uses one again at the moment in which it is closed sees an error.
    loop {
        let idle = watch.last_byte().elapsed();
        if idle >= IDLE_TIMEOUT && requests.under_way.load(Ordering::Relaxed) == 0 {
            return;
        }
        tokio::time::sleep(IDLE_TIMEOUT.saturating_sub(idle).max(IDLE_TIMEOUT / 10)).await;
    }
}

/// The requests of one connection.
#[derive(Debug, Default)]
struct Requests {
    /// Told when one has come.
    first: Notify,
    /// How many are being answered.
    under_way: AtomicUsize,
    /// What the connection becomes, if one of them asked for a tunnel.
    tunnel: Mutex<Option<Tunnel>>,
}

impl Requests {
    fn may_be_a_tunnel(&self) -> Tunnel {
        let tunnel = Tunnel::default();
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel.clone());
        tunnel
    }

    /// The one that was opened, when the connection is no longer served.
    fn tunnel(&self) -> Option<Opened> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()?.take()
    }
}

/// Has the requests of one connection answered.
#[derive(Clone)]
struct Asker {
    side: Arc<OutboundSide>,
    place: Place,
    watch: Watch,
    towards: Option<SocketAddr>,
    requests: Arc<Requests>,
    /// The one that is under way, on a connection of HTTP/1.
    under_way: UnderWay,
}

impl Asker {
    fn answer(&self, mut request: Request<Incoming>) -> Answering {
        if let Some(towards) = self.towards {
            request.extensions_mut().insert(Towards(towards));
        }
        self.requests.first.notify_one();
        let counted = Counted::new(&self.requests);
        let is_http1 = request.version() <= Version::HTTP_11;
        let Verdict { refused, raw_target, may_switch } = if is_http1 { self.watch.take_verdict() } else { Verdict::default() };
        if let Some(target) = raw_target {
            request.extensions_mut().insert(RawTarget(target));
        }
        // HTTP/1.0 knows no interim responses (RFC 9110, section 15.2).
        let interims = (request.version() == Version::HTTP_11).then(|| Interims::begin(&self.watch));
        if let Some(interims) = interims.clone() {
            request.extensions_mut().insert(interims);
        }
        let (watch, connect) = (self.watch.clone(), request.method() == Method::CONNECT);
        if is_http1 {
            request.extensions_mut().insert(self.under_way.long_wait());
            if connect {
                request.extensions_mut().insert(self.requests.may_be_a_tunnel());
            }
        }
        let (side, place, request) = (self.side.clone(), self.place.clone(), Box::new(request.map(Either::Left)));
        Box::pin(async move {
            let mut answer = side.answer(request, place, refused).await;
            // Of a request that was refused the rest of its body is not read, so there can be none after it (RFC 9112, section 9.6).
            if let Ok(answer) = answer.as_mut()
                && is_http1
                && answer.headers().contains_key(fields::ERROR)
                && watch.is_in_a_body()
            {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            // From here on only its client can hold it up: such a connection is idle when no byte goes.
            drop(counted);
            if let Some(interims) = interims {
                interims.end().await;
            }
            if may_switch {
                let switches = (*answer).as_ref().is_ok_and(|a| a.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && a.status().is_success()));
                if switches { watch.let_go() } else { watch.go_on() }
            }
            answer
        })
    }
}

/// For HTTP/1.
impl Service<Request<Incoming>> for Asker {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = UnderWay;

    fn call(&self, request: Request<Incoming>) -> UnderWay {
        if !self.under_way.is_told_again() {
            self.under_way.begin(Head::of(&request), self.answer(request));
        }
        self.under_way.clone()
    }
}

/// Counts a request that is being answered, until it is dropped.
struct Counted(Arc<Requests>);

impl Counted {
    fn new(requests: &Arc<Requests>) -> Self {
        requests.under_way.fetch_add(1, Ordering::Relaxed);
        Self(requests.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

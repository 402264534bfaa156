//! Boxes on one log in memory: `txmgr` with a coordinator, `trip` with the rules, `hotel`, which `trip` calls, and a gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::embedded::{Client, Embedded};
use bluebox_core::registry::Component;
use bluebox_proxy::Proxy;
use bluebox_proxy::config::{self, AppProtocol, Inbound, ProxyConfig, Served};
use bluebox_proxy::transaction::TransactionRules;
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::common::{self, Answer, PATIENCE, exchange, name};
use crate::coordinator::Coordinator;

/// A proxy that can be killed.
pub(crate) struct Running {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    client: Arc<Client>,
    task: tokio::task::JoinHandle<Result<(), bluebox_proxy::RunError>>,
}

impl Running {
    /// SIGKILL.
    pub(crate) fn kill(&self) {
        self.task.abort();
        self.client.kill();
    }

    pub(crate) async fn ask(&self, request: &str) -> Answer {
        exchange(self.listen, format!("{request}Connection: close\r\n\r\n").as_bytes()).await
    }

    /// Sends a request, and does not wait for its answer.
    pub(crate) fn asks(&self, request: &str) -> tokio::task::JoinHandle<Answer> {
        let (listen, request) = (self.listen, format!("{request}Connection: close\r\n\r\n"));
        tokio::spawn(async move { exchange(listen, request.as_bytes()).await })
    }

    pub(crate) async fn metrics(&self) -> String {
        String::from_utf8(exchange(self.admin, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.body).unwrap()
    }
}

/// A request as an app saw it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    answer: oneshot::Sender<Option<Response<Bytes>>>,
}

impl Seen {
    pub(crate) fn lra(&self) -> Option<&str> {
        self.header("long-running-action")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn answer(self, status: u16) {
        self.says(Response::builder().status(status).body("").unwrap());
    }

    pub(crate) fn says(self, response: Response<impl Into<Bytes>>) {
        self.end(Some(response.map(Into::into)));
    }

    /// 503 with Retry-After.
    pub(crate) fn not_now(self) {
        self.end(Response::builder().status(503).header("retry-after", "0").body(Bytes::new()).ok());
    }

    /// The connection is closed without an answer.
    pub(crate) fn reset(self) {
        self.end(None);
    }

    fn end(self, response: Option<Response<Bytes>>) {
        // The one who asked may be dead.
        let _ = self.answer.send(response);
    }
}

/// An app that shows each request to the test, which answers it.
pub(crate) struct App {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl App {
    async fn start() -> Self {
        let (show, seen) = mpsc::unbounded_channel();
        let address = serve(move |request| {
            let (answer, answered) = oneshot::channel();
            let (head, _) = request.into_parts();
            show.send(Seen { target: head.uri.to_string(), headers: head.headers, answer }).unwrap();
            async move {
                // Without an answer the connection stays open, as that of an app that takes its time.
                match answered.await {
                    Ok(response) => response,
                    Err(_) => std::future::pending().await,
                }
            }
        })
        .await;
        Self { address, seen }
    }

    pub(crate) async fn next(&mut self) -> Seen {
        tokio::time::timeout(PATIENCE, self.seen.recv()).await.expect("the app is asked").unwrap()
    }

    pub(crate) fn is_idle(&mut self) -> bool {
        self.seen.try_recv().is_err()
    }
}

async fn serve<F>(answer: impl Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = Option<Response<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { answer.await.map(|response| response.map(Full::new)).ok_or(std::io::Error::other("closed")) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

pub(crate) struct World {
    log: Arc<Embedded>,
    pub(crate) coordinator: Coordinator,
    coordinator_at: SocketAddr,
    rules: TransactionRules,
    pub(crate) trip: App,
    pub(crate) hotel: App,
    pub(crate) gateway: Running,
    pub(crate) txmgr_box: Running,
    pub(crate) trip_box: Running,
    _hotel_box: Running,
}

impl World {
    /// With these rules for `trip`; calls to `/guarded` of `hotel` are mandatory.
    pub(crate) async fn with(rules: TransactionRules) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
        let log = Embedded::in_memory();
        let coordinator = Coordinator::default();
        let answers = coordinator.clone();
        let coordinator_at = serve(move |request| {
            let (answers, (head, body)) = (answers.clone(), request.into_parts());
            async move {
                let body = body.collect().await.ok()?.to_bytes();
                Some(answers.answer(head.method, head.uri.to_string(), head.headers, body).await)
            }
        })
        .await;
        let (trip, hotel) = (App::start().await, App::start().await);
        let guarded = TransactionRules { rules: vec![crate::rule("* /guarded", "mandatory")], ..TransactionRules::default() };
        let world = Self {
            gateway: start(&log, "gateway", None, TransactionRules::default()).await,
            txmgr_box: start(&log, "txmgr", Some(coordinator_at), TransactionRules::default()).await,
            trip_box: start(&log, "trip", Some(trip.address), rules.clone()).await,
            _hotel_box: start(&log, "hotel", Some(hotel.address), guarded).await,
            log,
            coordinator,
            coordinator_at,
            rules,
            trip,
            hotel,
        };
        for callee in ["txmgr", "trip", "hotel"] {
            for caller in [&world.gateway, &world.trip_box, &world.txmgr_box] {
                knows(caller, callee).await;
            }
        }
        world
    }

    /// Starts the box of `trip` again.
    pub(crate) async fn start_trip(&mut self) {
        self.trip_box = start(&self.log, "trip", Some(self.trip.address), self.rules.clone()).await;
    }

    /// Starts that of the coordinator again.
    pub(crate) async fn start_txmgr(&mut self) {
        self.txmgr_box = start(&self.log, "txmgr", Some(self.coordinator_at), TransactionRules::default()).await;
    }

    /// Sends a call to `trip`, and does not wait for its answer.
    pub(crate) fn call(&self, path: &str, lra: Option<&str>) -> tokio::task::JoinHandle<Answer> {
        let lra = lra.map(|lra| format!("Long-Running-Action: {lra}\r\n")).unwrap_or_default();
        self.gateway.asks(&format!("POST {path} HTTP/1.1\r\nHost: trip\r\nContent-Length: 0\r\n{lra}"))
    }
}

/// Waits until a proxy knows a component: an empty ordering key is refused only then.
async fn knows(caller: &Running, callee: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while caller.ask(&format!("GET / HTTP/1.1\r\nHost: {callee}\r\nbluebox-ordering-key: \r\n")).await.status != 400 {
        assert!(tokio::time::Instant::now() < deadline, "{callee} does not get known");
    }
}

async fn start(log: &Arc<Embedded>, of: &str, app: Option<SocketAddr>, transactions: TransactionRules) -> Running {
    let component = Component { partitions: 2, ..Component::default() };
    let serves = app.map(|app| Served { name: name(of), component, ordinal: None, app: config::App::At { address: app, protocol: AppProtocol::Http1 } });
    let inbound = Inbound {
        transactions,
        first_backoff: Duration::from_millis(10),
        lease: Duration::from_millis(500),
        drain: Duration::from_secs(3),
        ..Inbound::default()
    };
    let config = ProxyConfig { name: name(of), serves: serves.into_iter().collect(), inbound, ..common::config() };
    let proxy = Proxy::bind(config).await.unwrap();
    let client = log.client();
    let (listen, admin) = (proxy.listen(), proxy.admin().unwrap());
    let task = tokio::spawn(proxy.run(client.clone(), std::future::pending()));
    Running { listen, admin, client, task }
}

//! A log, boxes, and an app that does what a test tells it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bluebox_core::call::{Body, Call, Outcome, ReplyAddress, Request};
use bluebox_core::log::embedded::{Client, Embedded};
use bluebox_core::log::{Log, Offset, Read, Record, TopicPartition};
use bluebox_core::registry::{Class, Component};
use bluebox_core::topics::{Prefix, Retention, Topics, partition_of};
use bluebox_core::wire::{CallsEntry, Reply};
use bluebox_core::{CallId, ComponentName, InstanceId};
use bluebox_proxy::bulk::Bulk;
use bluebox_proxy::config::{self, AppProtocol, Inbound, Served};
use bluebox_proxy::context::Contexts;
use bluebox_proxy::inbound::observe::Observe;
use bluebox_proxy::inbound::{self, Start};
use bluebox_proxy::metrics::Metrics;
use bluebox_proxy::spans::Spans;
use bluebox_proxy::transaction::Passing;
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) const PARTITIONS: u32 = 4;
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn name(name: &str) -> ComponentName {
    ComponentName::try_new(name).unwrap()
}

/// The log with the topics of `web`, who calls, and of `cart`, who is called.
pub(crate) struct World {
    pub(crate) log: Arc<Embedded>,
    pub(crate) topics: Topics,
    pub(crate) replies: TopicPartition,
}

impl World {
    pub(crate) async fn new() -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
        let log = Embedded::in_memory();
        let keep = Retention::default();
        let topics = Prefix::default().topics(&name("cart"));
        let callers = Prefix::default().topics(&name("web"));
        let mut specs = topics.callee_specs(Class::Service, PARTITIONS, &keep);
        specs.extend(topics.caller_specs(&keep));
        specs.extend(callers.caller_specs(&keep));
        log.create_topics(specs).await.unwrap();
        Self { log, topics, replies: callers.replies.partition(0) }
    }

    pub(crate) fn call(&self) -> Call {
        Call {
            id: CallId::random(),
            replay: 0,
            caller: name("web"),
            callee: name("cart"),
            ordering_key: None,
            reply_to: ReplyAddress { partition: self.replies.clone(), position: Offset::default() },
            ttl: Duration::from_secs(3600),
            wait: Some(Duration::from_secs(1)),
            recorded: None,
            request: Request {
                method: Method::POST,
                target: "/items".to_owned(),
                authority: "cart".to_owned(),
                headers: HeaderMap::new(),
                body: Body::Inline(Bytes::from_static(b"{}")),
                trailers: HeaderMap::new(),
            },
        }
    }

    /// A call whose path names it.
    pub(crate) fn call_to(&self, target: &str) -> Call {
        let mut call = self.call();
        call.request.target = target.to_owned();
        call
    }

    /// Calls to these targets whose partition is the same.
    pub(crate) fn calls_of_one_partition<const N: usize>(&self, targets: [&str; N]) -> [Call; N] {
        let number = |call: &Call| partition_of(&call.id, None, PARTITIONS);
        targets.map(|target| std::iter::repeat_with(|| self.call_to(target)).find(|call| number(call) == 0).unwrap())
    }

    /// Waits until the group has so many members.
    pub(crate) async fn until_members(&self, count: usize) {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.log.members(self.topics.calls.as_str()) != count {
            assert!(tokio::time::Instant::now() < deadline, "the group has not {count} members");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn append(&self, call: &Call) -> (u32, Offset) {
        let number = partition_of(&call.id, call.ordering_key.as_deref(), PARTITIONS);
        let record = Record::new(CallsEntry::Call(Box::new(call.clone())).encode());
        let appended = self.log.append(&self.topics.calls.partition(number), record).await.unwrap();
        (number, appended.offset)
    }

    /// Every outcome there is, in order, once there are `count` of them.
    pub(crate) async fn outcomes(&self, count: usize) -> Vec<Outcome> {
        let mut reader = self.log.read(&self.replies, Offset::default());
        let mut outcomes = Vec::new();
        let all = async {
            while outcomes.len() < count {
                let Some(Read::Entries(entries)) = reader.next().await else { continue };
                for entry in entries {
                    if let Ok(Reply::Outcome(outcome)) = Reply::decode(entry.record.value.unwrap()) {
                        outcomes.push(*outcome);
                    }
                }
            }
        };
        if tokio::time::timeout(SOON, all).await.is_err() {
            panic!("{} of {count} outcomes came: {outcomes:?}", outcomes.len());
        }
        outcomes
    }

    pub(crate) async fn outcome_of(&self, call: &Call) -> Outcome {
        let mut count = 1;
        loop {
            let outcomes = self.outcomes(count).await;
            if let Some(outcome) = outcomes.iter().find(|o| o.id == call.id && o.replay == call.replay) {
                return outcome.clone();
            }
            count = outcomes.len() + 1;
        }
    }
}

/// One request as the app saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) answer: Option<mpsc::Sender<Answer>>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub(crate) async fn answer(&self, answer: Answer) {
        self.answer.as_ref().unwrap().send(answer).await.ok();
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    With(u16, Vec<(&'static str, String)>, Bytes),
    /// The connection is closed without an answer.
    Reset,
}

pub(crate) fn ok() -> Answer {
    Answer::With(200, Vec::new(), Bytes::from_static(b"done"))
}

/// An app that shows each request to the test, which answers it.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) seen: tokio::sync::Mutex<mpsc::UnboundedReceiver<Seen>>,
    stop: CancellationToken,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub(crate) async fn start_at(address: &str) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (show, seen) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let (show, stopped) = (show.clone(), stopped.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| handle(request, show.clone()));
                    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = serving => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Self { address, seen: tokio::sync::Mutex::new(seen), stop }
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    pub(crate) async fn next(&self) -> Seen {
        tokio::time::timeout(SOON, self.seen.lock().await.recv()).await.expect("a delivery comes").unwrap()
    }

    /// Answers everything with 200, for ever.
    pub(crate) async fn answer_all(self: Arc<Self>) -> Arc<Mutex<Vec<Seen>>> {
        let all = Arc::new(Mutex::new(Vec::new()));
        let (app, list) = (Arc::clone(&self), Arc::clone(&all));
        tokio::spawn(async move {
            loop {
                let Some(seen) = app.seen.lock().await.recv().await else { return };
                list.lock().unwrap().push(seen.clone());
                seen.answer(ok()).await;
            }
        });
        all
    }
}

#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed")
    }
}

impl std::error::Error for Closed {}

async fn handle(request: http::Request<Incoming>, show: mpsc::UnboundedSender<Seen>) -> Result<http::Response<Full<Bytes>>, Closed> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let (answer, mut answered) = mpsc::channel(1);
    show.send(Seen { target: head.uri.to_string(), headers: head.headers, body, answer: Some(answer) }).map_err(|_| Closed)?;
    match answered.recv().await {
        Some(Answer::With(status, headers, body)) => {
            let mut response = http::Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(Full::new(body)).unwrap())
        }
        Some(Answer::Reset) | None => Err(Closed),
    }
}

/// The inbound half of a box.
pub(crate) struct Replica {
    pub(crate) client: Arc<Client>,
    pub(crate) stop: CancellationToken,
    pub(crate) metrics: Metrics,
    task: tokio::task::JoinHandle<Result<(), bluebox_proxy::inbound::Superseded>>,
}

pub(crate) fn limits() -> Inbound {
    Inbound { first_backoff: Duration::from_millis(10), drain: Duration::from_secs(5), lease: Duration::from_millis(500), ..Inbound::default() }
}

impl Replica {
    pub(crate) fn start(world: &World, app: &App, limits: Inbound) -> Self {
        Self::start_with(world, app, limits, Spans::default())
    }

    pub(crate) fn start_with(world: &World, app: &App, limits: Inbound, spans: Spans) -> Self {
        Self::start_before(world, app.address, limits, spans)
    }

    pub(crate) fn start_before(world: &World, app: SocketAddr, limits: Inbound, spans: Spans) -> Self {
        let client = world.log.client();
        let log: Arc<dyn Log> = Arc::clone(&client) as Arc<dyn Log>;
        let served =
            Served { name: name("cart"), component: Component::default(), ordinal: None, app: config::App::At { address: app, protocol: AppProtocol::Http1 } };
        let metrics = Metrics::try_new(&name("cart")).unwrap();
        let bulk = Bulk::new(Arc::clone(&log), world.topics.bulk.partition(0), 64 << 20);
        let observe = Observe::new(&served.name, &metrics).unwrap();
        let instance = InstanceId::random();
        let start = Start {
            log,
            instance,
            served,
            prefix: Prefix::default(),
            retention: Retention::default(),
            limits,
            bulk,
            contexts: Contexts::try_new(Passing::Any, metrics.registry()).unwrap(),
            transactions: None,
            observe,
            spans,
            cut: CancellationToken::new(),
            hung: CancellationToken::new(),
            tenures: tokio::sync::watch::Sender::default(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(inbound::run(start, stop.clone()));
        Self { client, stop, metrics, task }
    }

    /// SIGKILL of the proxy: its tasks and its connections end, without a word.
    pub(crate) fn kill(&self) {
        self.task.abort();
        self.client.kill();
    }

    pub(crate) async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task).await.expect("it stops").unwrap().unwrap();
    }

    pub(crate) fn metric(&self, wanted: &str) -> f64 {
        let text = String::from_utf8(self.metrics.text()).unwrap();
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(wanted));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric has this value.
    pub(crate) async fn until(&self, metric: &str, value: f64) {
        let deadline = tokio::time::Instant::now() + SOON;
        while (self.metric(metric) - value).abs() > 0.5 {
            assert!(tokio::time::Instant::now() < deadline, "{metric} is {} and not {value}", self.metric(metric));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

//! A gateway on a log in memory, and a callee that the test plays itself: it reads the calls and appends the outcomes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "each test takes what it needs, and fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::call::{Body, Call, Outcome, Response, Source};
use bluebox_core::log::embedded::{Client, Embedded};
use bluebox_core::log::{Log, Offset, Read, Record, TopicPartition, TopicSpec};
use bluebox_core::registry::Component;
use bluebox_core::topics::{Prefix, Retention, Topics};
use bluebox_core::wire::{CallsEntry, Reply};
use bluebox_proxy::Proxy;
use bluebox_proxy::config::{App, Inbound, Outbound, ProxyConfig, Served};
use bluebox_proxy::dns::resolv_conf::ResolvConf;
use bluebox_proxy::outbound::in_process::Calls;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Everything here answers within this, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both sides of a call: a gateway, and the proxy of a box `cart` with its app.
pub struct Installation {
    pub gateway: SocketAddr,
    /// Where the box's app makes its requests, if it is in this process.
    pub calls: Calls,
    stop: CancellationToken,
    running: Vec<tokio::task::JoinHandle<Result<(), bluebox_proxy::RunError>>>,
}

impl Installation {
    pub async fn start(app: App) -> Self {
        let (log, stop) = (Embedded::in_memory(), CancellationToken::new());
        let served = Served { name: name("cart"), component: Component { partitions: 2, ..Component::default() }, ordinal: None, app };
        let run = |proxy: Proxy| tokio::spawn(proxy.run(Arc::clone(&log) as Arc<dyn Log>, stop.clone().cancelled_owned()));
        let cart = Proxy::bind(ProxyConfig { name: name("cart"), serves: vec![served], ..config() }).await.unwrap();
        let out = Proxy::bind(config()).await.unwrap();
        let (calls, gateway) = (cart.calls(), out.listen());
        let installation = Self { gateway, calls, stop: stop.clone(), running: vec![run(cart), run(out)] };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // An empty ordering key is refused only where the component is known.
        while installation.ask("GET / HTTP/1.1\r\nHost: cart\r\nbluebox-ordering-key: \r\nConnection: close\r\n\r\n").await.status != 400 {
            assert!(tokio::time::Instant::now() < deadline);
        }
        installation
    }

    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        exchange(self.gateway, request.as_ref()).await
    }

    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.running {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
        }
    }
}

pub struct System {
    pub log: Arc<Embedded>,
    /// The gateway's way to the log.
    pub client: Arc<Client>,
    pub gateway: SocketAddr,
    pub admin: SocketAddr,
    pub control: SocketAddr,
    pub cart: Topics,
    pub config: ProxyConfig,
    pub stop: CancellationToken,
    pub running: tokio::task::JoinHandle<Result<(), bluebox_proxy::RunError>>,
}

pub fn name(name: &str) -> ComponentName {
    ComponentName::try_new(name).unwrap()
}

pub fn config() -> ProxyConfig {
    ProxyConfig {
        name: name("gateway"),
        serves: Vec::new(),
        listen: "127.0.0.1:0".parse().unwrap(),
        transparent: None,
        dns: None,
        resolv_conf: ResolvConf::default(),
        admin: Some("127.0.0.1:0".parse().unwrap()),
        control: Some("127.0.0.1:0".parse().unwrap()),
        together: None,
        restart_on_hang: false,
        liveness: Vec::new(),
        shared_by_callers: false,
        prefix: Prefix::default(),
        retention: Retention::default(),
        log_level: None,
        traces: None,
        outbound: outbound(),
        inbound: Inbound { drain: Duration::from_secs(3), ..Inbound::default() },
    }
}

/// With `LONG_WAIT=0` in the environment every wait is a long one.
fn outbound() -> Outbound {
    let default = Outbound::default();
    let long_wait = std::env::var("LONG_WAIT").ok().map(|text| Duration::from_millis(text.parse().unwrap()));
    Outbound { long_wait: long_wait.unwrap_or(default.long_wait), ..default }
}

impl System {
    /// A gateway that knows the component `cart` with one partition.
    pub async fn start() -> Self {
        Self::start_with(|_| {}, Component { partitions: 1, ..Component::default() }).await
    }

    pub async fn start_with(change: impl FnOnce(&mut ProxyConfig), cart: Component) -> Self {
        let log = Embedded::in_memory();
        let mut config = config();
        change(&mut config);
        let topics = config.prefix.topics(&name("cart"));
        register(&*log, &config.prefix, "cart", &cart).await;
        let client = log.client();
        let proxy = Proxy::bind(config.clone()).await.unwrap();
        let (gateway, admin, control) = (proxy.listen(), proxy.admin().unwrap(), proxy.control().unwrap());
        let stop = CancellationToken::new();
        let running = tokio::spawn(proxy.run(client.clone(), stop.clone().cancelled_owned()));
        let system = Self { log, client, gateway, admin, control, cart: topics, config, stop, running };
        system.ready().await;
        system
    }

    /// Waits until calls can be sent: a call that does not exist is then known not to.
    async fn ready(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Pass-through of a bare name is refused while the registry is unread, and a status while the replies are.
            let id = bluebox_proxy::outbound::calls::CallRef {
                callee: name("cart"),
                partition: 0,
                offset: Offset::new(u64::MAX),
                caller: name("gateway"),
                reply_partition: 0,
                position: Offset::new(0),
                id: bluebox_core::CallId::random(),
                kept_until: bluebox_core::log::Timestamp::from_millis(u64::MAX),
                digest: [0; 32],
            };
            let status = self.ask(&format!("GET /v1/calls/{} HTTP/1.1\r\nHost: bluebox\r\nConnection: close\r\n\r\n", id.encode())).await;
            let probe = self.ask("GET / HTTP/1.1\r\nHost: cart\r\nPrefer: wait=0\r\nbluebox-ordering-key: \r\nConnection: close\r\n\r\n").await;
            // An empty ordering key is refused only where `cart` is known to be a component.
            if probe.status == 400 && status.status == 400 && self.replies_are_read().await {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the gateway did not get ready: {status:?} {probe:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn replies_are_read(&self) -> bool {
        let metrics = exchange(self.admin, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        let probe = self.ask("PUT / HTTP/1.1\r\nHost: cart\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n").await;
        metrics.status == 200 && probe.status == 413
    }

    /// Sends bytes on a new connection, and reads the answer until the gateway closes it.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        exchange(self.gateway, request.as_ref()).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.gateway).await.unwrap()
    }

    /// Plays the component: every call goes through `handle`, what it gives is the outcome.
    pub fn callee(&self, handle: impl Fn(&Call) -> Option<Response> + Send + 'static) -> Callee {
        callee(self.log.clone(), self.cart.calls.partition(0), handle)
    }

    /// Plays a component that answers everything with this.
    pub fn answers(&self, response: Response) -> Callee {
        self.callee(move |_| Some(response.clone()))
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
    }

    /// The end of `cart`'s only partition: how many calls there were.
    pub async fn log_end(&self) -> u64 {
        self.log.bounds(&self.cart.calls.partition(0)).await.unwrap().end.get()
    }

    pub async fn metrics(&self) -> String {
        String::from_utf8(exchange(self.admin, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.body).unwrap()
    }
}

pub async fn register(log: &dyn Log, prefix: &Prefix, component: &str, with: &Component) {
    let topics = prefix.topics(&name(component));
    let mut specs = vec![TopicSpec { topic: prefix.registry(), partitions: 1, retention: None, compacted: true, compaction_lag: None }];
    specs.extend(topics.callee_specs(with.class, with.partitions, &Retention::default()));
    specs.extend(topics.caller_specs(&Retention::default()));
    log.create_topics(specs).await.unwrap();
    let record = Record::keyed(Bytes::copy_from_slice(component.as_bytes()), serde_json::to_vec(with).unwrap().into());
    log.append(&prefix.registry().partition(0), record).await.unwrap();
}

/// The callee's side, played by a test.
pub struct Callee {
    calls: mpsc::UnboundedReceiver<Call>,
}

impl Callee {
    /// The next call that arrived.
    pub async fn next(&mut self) -> Call {
        tokio::time::timeout(PATIENCE, self.calls.recv()).await.expect("no call arrived").unwrap()
    }

    /// Whether none has arrived.
    pub fn is_idle(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }
}

pub fn callee(log: Arc<dyn Log>, partition: TopicPartition, handle: impl Fn(&Call) -> Option<Response> + Send + 'static) -> Callee {
    let (seen, calls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut reader = log.read(&partition, Offset::new(0));
        while let Some(read) = reader.next().await {
            let Read::Entries(entries) = read else { continue };
            for entry in entries {
                let Ok(CallsEntry::Call(call)) = CallsEntry::decode(entry.record.value.unwrap()) else { continue };
                if let Some(response) = handle(&call) {
                    reply(&*log, &call, response).await;
                }
                if seen.send(*call).is_err() {
                    return;
                }
            }
        }
    });
    Callee { calls }
}

/// Appends the outcome of a call.
pub async fn reply(log: &dyn Log, call: &Call, response: Response) {
    let outcome = Outcome { id: call.id, replay: call.replay, attempts: 1, digest: call.recorded, source: Source::App, response };
    log.append(&call.reply_to.partition, Record::new(Reply::Outcome(Box::new(outcome)).encode())).await.unwrap();
}

pub fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    Response {
        status: StatusCode::from_u16(status).unwrap(),
        reason: None,
        headers: map,
        body: Body::Inline(Bytes::copy_from_slice(body)),
        trailers: HeaderMap::new(),
    }
}

/// An HTTP/1.1 answer as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    /// Names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// As sent, chunked framing included.
    pub body: Vec<u8>,
    /// All of it.
    pub raw: Vec<u8>,
}

impl Answer {
    pub fn parse(raw: &[u8]) -> Self {
        let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") else { return Self { raw: raw.to_vec(), ..Self::default() } };
        let mut lines = raw[..end].split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
        let first = String::from_utf8_lossy(lines.next().unwrap()).into_owned();
        let mut parts = first.splitn(3, ' ');
        let _ = parts.next();
        let status = parts.next().and_then(|s| s.parse().ok()).unwrap_or(0);
        let reason = parts.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|l| {
                let colon = l.iter().position(|b| *b == b':')?;
                Some((String::from_utf8_lossy(&l[..colon]).to_ascii_lowercase(), l[colon + 1..].trim_ascii().to_vec()))
            })
            .collect();
        Self { status, reason, headers, body: raw[end + 4..].to_vec(), raw: raw.to_vec() }
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| String::from_utf8_lossy(v).into_owned())
    }

    pub fn all(&self, name: &str) -> Vec<Vec<u8>> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    pub fn problem(&self) -> String {
        self.header("bluebox-error").unwrap_or_default()
    }
}

/// Sends bytes and reads until the other side closes.
pub async fn exchange(to: SocketAddr, request: &[u8]) -> Answer {
    let work = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        // The other side may close before it has read all: that is its right.
        let _ = stream.write_all(request).await;
        let mut raw = Vec::new();
        let _ = stream.read_to_end(&mut raw).await;
        Answer::parse(&raw)
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("no end of the answer to {:?}", String::from_utf8_lossy(&request[..request.len().min(300)])))
}

/// Reads one head, up to its empty line.
pub async fn read_head(stream: &mut TcpStream) -> Answer {
    let mut raw = Vec::new();
    let work = async {
        while !raw.ends_with(b"\r\n\r\n") {
            raw.push(stream.read_u8().await.unwrap_or_else(|e| panic!("the connection ended in a head: {e}: {:?}", String::from_utf8_lossy(&raw))));
        }
    };
    tokio::time::timeout(PATIENCE, work).await.expect("no head came");
    Answer::parse(&raw)
}

/// Reads one response with a `Content-Length`.
pub async fn read_response(stream: &mut TcpStream) -> Answer {
    let mut answer = read_head(stream).await;
    let length = answer.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    answer.body = vec![0; length];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer.body)).await.expect("no body came").unwrap();
    answer
}

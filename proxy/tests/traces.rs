//! A call's trace, as a collector gets it from the proxies on both sides.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "common/collector.rs"]
mod collector;
mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::log::embedded::Embedded;
use bluebox_core::registry::Component;
use bluebox_observe::trace::Context;
use bluebox_observe::trace::sampler::Sampler;
use bluebox_proxy::Proxy;
use bluebox_proxy::config::{App, AppProtocol, Inbound, ProxyConfig, Served};
use bluebox_proxy::spans::Traces;
use collector::{Collector, Told};
use common::{Answer, PATIENCE, exchange, name};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_millis(10);
/// Longer than any test: what comes was sent for another reason.
const LATE: Duration = Duration::from_secs(3600);

/// The traceparent of each request as the app saw it, and the call's id.
type Seen = Arc<Mutex<Vec<(Option<String>, String)>>>;

/// A gateway and a box `cart`, whose app closes the connection of as many requests as it is told before it answers the others.
struct System {
    gateway: SocketAddr,
    admin: SocketAddr,
    seen: Seen,
    stop: CancellationToken,
    running: Vec<tokio::task::JoinHandle<Result<(), bluebox_proxy::RunError>>>,
}

impl System {
    async fn start(resets: usize, traces: Option<Traces>, inbound: Inbound) -> Self {
        Self::start_with(resets, [traces.clone(), traces], inbound).await
    }

    /// With traces of the gateway, and of the box.
    async fn start_with(resets: usize, [of_gateway, of_box]: [Option<Traces>; 2], inbound: Inbound) -> Self {
        let log = Embedded::in_memory();
        let stop = CancellationToken::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let app = app(resets, seen.clone()).await;
        let served = Served {
            name: name("cart"),
            component: Component { partitions: 1, ..Component::default() },
            ordinal: None,
            app: App::At { address: app, protocol: AppProtocol::Http1 },
        };
        let mut running = Vec::new();
        let mut at = None;
        for config in [
            ProxyConfig { name: name("cart"), serves: vec![served], traces: of_box, inbound, ..common::config() },
            ProxyConfig { traces: of_gateway, ..common::config() },
        ] {
            let proxy = Proxy::bind(config).await.unwrap();
            at = Some((proxy.listen(), proxy.admin().unwrap()));
            running.push(tokio::spawn(proxy.run(Arc::clone(&log) as Arc<dyn Log>, stop.clone().cancelled_owned())));
        }
        let (gateway, admin) = at.unwrap();
        let system = Self { gateway, admin, seen, stop, running };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // An empty ordering key is refused only where the component is known.
        while system.ask("bluebox-ordering-key: \r\n").await.status != 400 {
            assert!(tokio::time::Instant::now() < deadline);
        }
        system
    }

    async fn ask(&self, fields: &str) -> Answer {
        let request = format!("POST http://cart/items?secret HTTP/1.1\r\nHost: cart\r\ncontent-length: 2\r\n{fields}Connection: close\r\n\r\n{{}}");
        exchange(self.gateway, request.as_bytes()).await
    }

    async fn metric(&self, line: &str) -> u64 {
        let text = exchange(self.admin, b"GET /metrics HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n").await.body;
        let text = String::from_utf8(text).unwrap();
        text.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in {text}")).trim().parse().unwrap()
    }

    fn seen(&self) -> Vec<(Option<String>, String)> {
        self.seen.lock().unwrap().clone()
    }

    async fn end(self) {
        self.stop.cancel();
        for running in self.running {
            tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
        }
    }
}

async fn app(mut resets: usize, seen: Seen) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
            let head = String::from_utf8(head).unwrap();
            let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned));
            // A connection that only looks whether somebody is there has none.
            let Some(call) = field("bluebox-call-id") else { continue };
            seen.lock().unwrap().push((field("traceparent"), call));
            if resets > 0 {
                resets -= 1;
                continue;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        }
    });
    at
}

fn of(context: &str) -> Context {
    Context::parse(context.as_bytes()).unwrap()
}

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn one_call_is_one_trace_with_a_span_for_each_attempt() {
    let collector = Collector::start().await;
    let system = System::start(1, Some(collector.traces(SOON)), Inbound::default()).await;
    let answer = system.ask(&format!("traceparent: {CALLER}\r\ntracestate: vendor=1\r\n")).await;
    assert_eq!(answer.status, 200);

    let call = collector.named("POST cart").await;
    let append = collector.named("send bluebox.cart.calls").await;
    let first = collector.span(|told| told.says("bluebox.attempt") == "1").await;
    let second = collector.span(|told| told.says("bluebox.attempt") == "2").await;
    let outcome = collector.named("send bluebox.gateway.replies").await;
    let all = [&call, &append, &first, &second, &outcome];
    assert!(all.iter().all(|told| told.trace() == of(CALLER).trace), "one trace: {all:#?}");
    assert_eq!(call.parent(), of(CALLER).span, "the app's own span goes on");
    assert_eq!(append.parent(), call.id());
    assert_eq!((first.parent(), second.parent()), (append.id(), append.id()));
    assert_eq!(outcome.parent(), second.id());
    assert_eq!(first.links(), [("accepted".to_owned(), append.id())]);
    assert_eq!(second.links(), [("accepted".to_owned(), append.id()), ("attempt before".to_owned(), first.id())]);
    assert_eq!(all.map(|told| told.span.kind), [3, 4, 5, 5, 4], "client, producer, consumers, producer");
    assert_eq!(all.map(|told| told.service.as_str()), ["gateway", "gateway", "cart", "cart", "cart"]);
    assert_eq!(all.map(Told::failed), [false, false, true, false, false]);

    // The app's own spans come below the attempt that it was handed.
    let seen = system.seen();
    let handed: Vec<_> = seen.iter().map(|(traceparent, _)| of(traceparent.as_ref().unwrap()).span).collect();
    assert_eq!(handed, [first.id(), second.id()]);

    let id = &seen[0].1;
    for told in [&call, &first, &second] {
        assert_eq!((&told.says("bluebox.call.id"), told.says("http.request.method").as_str()), (id, "POST"));
        assert_eq!(told.says("url.path"), "/items", "and no query: secrets stand there");
    }
    assert_eq!((call.says("http.response.status_code"), call.says("bluebox.result"), call.says("server.address")), ("200".into(), "app".into(), "cart".into()));
    for (told, operation, topic) in
        [(&append, "send", "bluebox.cart.calls"), (&second, "process", "bluebox.cart.calls"), (&outcome, "send", "bluebox.gateway.replies")]
    {
        assert_eq!((told.says("messaging.system"), told.says("messaging.operation.type")), ("kafka".to_owned(), operation.to_owned()));
        assert_eq!((&told.says("messaging.destination.name"), &told.says("messaging.message.id")), (&topic.to_owned(), id));
    }
    assert_eq!(append.says("messaging.kafka.offset"), second.says("messaging.kafka.offset"));
    assert_ne!(append.says("messaging.kafka.offset"), "");
    assert_eq!((first.says("bluebox.delivery.end"), second.says("bluebox.delivery.end")), ("failed".to_owned(), "answered".to_owned()));
    let times = |told: &Told| (told.span.start_time_unix_nano, told.span.end_time_unix_nano);
    assert!(times(&call).0 <= times(&append).0 && times(&append).1 <= times(&call).1, "the call takes as long as what is in it");
    assert!(times(&first).1 <= times(&second).0);
    system.end().await;
}

#[tokio::test]
async fn a_call_without_a_trace_begins_one_with_its_own_id() {
    let collector = Collector::start().await;
    let system = System::start(0, Some(collector.traces(SOON)), Inbound::default()).await;
    assert_eq!(system.ask("").await.status, 200);
    let call = collector.named("POST cart").await;
    let (handed, id) = system.seen().remove(0);
    assert_eq!(format!("{:032x}", call.trace()), id);
    assert_eq!((call.parent(), of(&handed.unwrap()).trace), (0, call.trace()));
    system.end().await;
}

#[tokio::test]
async fn what_its_caller_does_not_keep_is_passed_on_as_it_is_and_not_kept_here() {
    let collector = Collector::start().await;
    let system = System::start(0, Some(collector.traces(SOON)), Inbound::default()).await;
    let not_kept = CALLER.replace("-01", "-00");
    assert_eq!(system.ask(&format!("traceparent: {not_kept}\r\n")).await.status, 200);
    assert_eq!(system.ask("").await.status, 200);
    assert_eq!(system.seen()[0].0.as_deref(), Some(not_kept.as_str()));
    // All that comes is of the other.
    system.end().await;
    let call = collector.named("POST cart").await;
    for name in ["send bluebox.cart.calls", "process bluebox.cart.calls", "send bluebox.gateway.replies"] {
        assert_eq!(collector.named(name).await.trace(), call.trace());
    }
    assert_ne!(call.trace(), of(CALLER).trace);
}

#[tokio::test]
async fn a_trace_that_is_one_too_many_where_it_begins_is_kept_nowhere_and_counted() {
    let collector = Collector::start().await;
    let mut limited = collector.traces(SOON);
    limited.settings.sampler = Sampler::USUAL.limited_to(0);
    let system = System::start_with(0, [Some(limited), Some(collector.traces(SOON))], Inbound::default()).await;
    assert_eq!(system.ask("").await.status, 200);
    assert_eq!(system.ask(&format!("traceparent: {CALLER}\r\n")).await.status, 200);
    assert_eq!(system.metric("bluebox_trace_spans_total{result=\"limited\"}").await, 1);
    let (handed, id) = system.seen().remove(0);
    let handed = of(&handed.unwrap());
    assert_eq!((format!("{:032x}", handed.trace), handed.sampled), (id, false), "the app is told of it too");
    // All that comes is of the other, which somebody else began.
    system.end().await;
    for name in ["POST cart", "send bluebox.cart.calls", "process bluebox.cart.calls", "send bluebox.gateway.replies"] {
        assert_eq!(collector.named(name).await.trace(), of(CALLER).trace);
    }
}

#[tokio::test]
async fn without_traces_nothing_is_touched() {
    let system = System::start(0, None, Inbound::default()).await;
    assert_eq!(system.ask("").await.status, 200);
    assert_eq!(system.ask(&format!("traceparent: {CALLER}\r\n")).await.status, 200);
    let seen: Vec<_> = system.seen().into_iter().map(|(traceparent, _)| traceparent).collect();
    assert_eq!(seen, [None, Some(CALLER.to_owned())]);
    system.end().await;
}

#[tokio::test]
async fn a_dead_letter_is_a_span_of_its_trace() {
    let collector = Collector::start().await;
    let limits = Inbound { max_attempts: 2, first_backoff: Duration::from_millis(1), ..Inbound::default() };
    let system = System::start(usize::MAX, Some(collector.traces(SOON)), limits).await;
    assert_eq!(system.ask("").await.status, 502);
    let last = collector.span(|told| told.says("bluebox.attempt") == "2").await;
    let letter = collector.named("send bluebox.cart.dead-letters").await;
    let outcome = collector.named("send bluebox.gateway.replies").await;
    assert_eq!((letter.parent(), outcome.parent(), letter.trace()), (last.id(), last.id(), last.trace()));
    assert!(letter.failed() && letter.says("bluebox.attempts") == "2" && !letter.says("error.type").is_empty(), "{letter:?}");
    let call = collector.named("POST cart").await;
    assert!(call.failed() && call.says("bluebox.result") == "ended", "{call:?}");
    system.end().await;
}

#[tokio::test]
async fn the_last_spans_are_sent_when_the_proxy_ends() {
    let collector = Collector::start().await;
    let system = System::start(0, Some(collector.traces(LATE)), Inbound::default()).await;
    assert_eq!(system.ask("").await.status, 200);
    system.end().await;
    let call = collector.named("POST cart").await;
    assert_eq!(collector.named("process bluebox.cart.calls").await.trace(), call.trace());
}

/// Calls don't wait for who takes traces; what can't be sent is bounded, and counted.
#[tokio::test]
async fn a_collector_that_does_not_answer_costs_spans_and_no_calls() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut traces = collector::traces(silent.local_addr().unwrap(), SOON);
    (traces.settings.queue, traces.settings.batch) = (2, 2);
    let system = System::start(0, Some(traces), Inbound::default()).await;
    for _ in 0..10 {
        assert_eq!(system.ask("").await.status, 200);
    }
    assert!(system.metric("bluebox_trace_spans_total{result=\"dropped\"}").await > 0);
    assert_eq!(system.metric("bluebox_trace_spans_total{result=\"sent\"}").await, 0);
    system.end().await;
}

#[tokio::test]
async fn as_many_as_are_sent_at_once_do_not_wait_for_their_time() {
    let collector = Collector::start().await;
    let mut traces = collector.traces(LATE);
    traces.settings.batch = 3;
    let system = System::start(0, Some(traces), Inbound::default()).await;
    for _ in 0..5 {
        assert_eq!(system.ask("").await.status, 200);
    }
    // Each proxy has made two of each call.
    for (service, name, times) in [("gateway", "POST cart", 4), ("cart", "process bluebox.cart.calls", 4)] {
        for _ in 0..times {
            collector.span(|told| (told.service.as_str(), told.span.name.as_str()) == (service, name)).await;
        }
    }
    system.end().await;
}

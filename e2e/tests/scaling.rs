//! What a component is scaled by, on a real Kafka: beside the lag that others go by, and by the protocols of those who scale.

#![allow(clippy::unwrap_used, reason = "tests: one that can't go on ends")]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bluebox_e2e::app::content;
use bluebox_e2e::process::{self, Process};
use bluebox_e2e::{Call, LogKind, World, eventually, run, within};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::net::TcpStream;

/// Calls that end above the one that does not.
const ENDED: usize = 500;

/// `bluebox watch`.
struct Watch {
    _process: Process,
    listen: SocketAddr,
    scaler: SocketAddr,
    external: SocketAddr,
}

impl Watch {
    async fn start(world: &World) -> Self {
        let (listen, control, scaler, external) = (world.address(), world.address(), world.address(), world.address());
        let mut command = process::bluebox();
        command.arg("watch").args(world.log_flags());
        for (flag, address) in [("listen", listen), ("control", control), ("scaler", scaler), ("external-metrics", external)] {
            command.arg(format!("--{flag}={address}"));
        }
        let process = Process::start("watch", command, world.directory());
        let watch = Self { _process: process, listen, scaler, external };
        eventually("the log was looked at", || async { watch.component("cart").await.map(drop) }).await;
        watch
    }

    /// What the log says of a component.
    async fn component(&self, name: &str) -> Option<Value> {
        let answer = Call::get(&format!("http://{}/v1/status", self.listen)).send_to(self.listen).await.ok()?;
        let status: Value = serde_json::from_slice(&answer.body).ok()?;
        status["components"].as_array()?.iter().find(|component| component["name"] == name).cloned()
    }

    /// What the API server would be told.
    fn external(&self, metric: &str, component: &str) -> Value {
        let url = format!("https://{}/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/{metric}?labelSelector=component%3D{component}", self.external);
        let output = Command::new("curl").args(["--silent", "--show-error", "--insecure", "--max-time", "30", &url]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

/// KEDA, as far as it speaks to an external scaler.
struct Keda(hyper::client::conn::http2::SendRequest<Full<Bytes>>);

/// A field of a message, with a length.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
}

/// A ScaledObject with a trigger for `cart`, ten calls to a replica.
fn object(component: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| field(3, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    [field(1, b"cart"), field(2, b"shop"), entry("component", component), entry("calls", "10")].concat()
}

impl Keda {
    async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn begin(&mut self, method: &str, message: &[u8]) -> Response<Incoming> {
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(message);
        let request = Request::post(format!("http://watch/externalscaler.ExternalScaler/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(framed.freeze()))
            .unwrap();
        self.0.send_request(request).await.unwrap()
    }

    /// The message of the answer, or the status and its reason.
    async fn call(&mut self, method: &str, message: &[u8]) -> Result<Bytes, String> {
        let (head, body) = self.begin(method, message).await.into_parts();
        let whole = body.collect().await.unwrap();
        let trailers = whole.trailers().cloned().unwrap_or(head.headers);
        if trailers["grpc-status"] != "0" {
            return Err(format!("{} {}", trailers["grpc-status"].to_str().unwrap(), trailers["grpc-message"].to_str().unwrap()));
        }
        let bytes = whole.to_bytes();
        assert_eq!((bytes[0], u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize), (0, bytes.len() - 5));
        Ok(bytes.slice(5..))
    }

    /// The value of the backlog.
    async fn backlog(&mut self) -> u64 {
        let asked = [field(1, &object("cart")), field(2, b"backlog")].concat();
        let answer = self.call("GetMetrics", &asked).await.unwrap();
        // A list of one: its name, a whole number (none if it is 0), and a number.
        let value = &answer[2..];
        assert!(value.starts_with(&field(1, b"backlog")), "{answer:?}");
        match value[9..] {
            [0x10, count, ..] => u64::from(count),
            _ => 0,
        }
    }
}

/// What somebody waits for in a stream: whether a component is active.
async fn next_activity(stream: &mut Response<Incoming>) -> bool {
    let frame = within(Duration::from_secs(30), "a message of the stream", stream.body_mut().frame()).await.unwrap().unwrap();
    match frame.into_data().unwrap()[..] {
        [0, 0, 0, 0, 0] => false,
        [0, 0, 0, 0, 2, 8, 1] => true,
        ref other => panic!("{other:?}"),
    }
}

/// The lag of a group, as `kafka-consumer-groups` and KEDA's Kafka scaler count it: from what was committed to the end.
fn lag(brokers: &str, topic: &str) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", topic).create().unwrap();
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topic, 0);
    let limit = Duration::from_secs(20);
    let committed = consumer.committed_offsets(wanted, limit).unwrap();
    let (start, end) = consumer.fetch_watermarks(topic, 0, limit).unwrap();
    match committed.elements()[0].offset() {
        Offset::Offset(committed) => end - committed,
        _ => end - start,
    }
}

#[test]
fn a_lag_counts_what_has_ended_long_ago_and_the_backlog_does_not() {
    run(LogKind::Kafka, "a_lag_counts_what_has_ended_long_ago_and_the_backlog_does_not", async |world| {
        let brokers = std::env::var("BLUEBOX_TEST_BROKERS").unwrap();
        let topic = format!("{}.cart.calls", world.log_flags()[1].strip_prefix("--topic-prefix=").unwrap());
        let mut app = world.app("cart").await;
        app.rule(|asked| (asked.target != "/slow").then(|| Response::new(content(asked.body.clone()))));
        let cart = world.proxy("cart").serves("cart", &app, 1).start().await;
        let shop = world.proxy("shop").start().await;
        shop.knows("cart").await;
        let slow = shop.begin(Call::post("http://cart/slow", "takes its time"));
        let delivery = app.next().await;
        stream::iter(0..ENDED)
            .map(|n| shop.call(Call::post("http://cart/quick", n.to_string())))
            .buffer_unordered(16)
            .for_each(|answer| async move { assert_eq!(answer.status, 200, "{answer:?}") })
            .await;
        let watch = Watch::start(&world).await;
        eventually("the ends are committed", || async { (watch.component("cart").await?["backlog"] == 1).then_some(()) }).await;
        let counted = tokio::task::spawn_blocking(move || lag(&brokers, &topic)).await.unwrap();
        // Bluebox's own records are in it too.
        assert!(counted > i64::try_from(ENDED).unwrap(), "the lag counts all that ended above the slow one: {counted}");
        println!("one call has no end, {ENDED} above it have: the lag is {counted}, the backlog 1");

        let mut keda = Keda::connect(watch.scaler).await;
        assert_eq!(keda.backlog().await, 1);
        assert_eq!(keda.call("IsActive", &object("cart")).await.unwrap()[..], [8, 1]);
        // Ten calls to a replica: as a whole number, and as a number.
        let spec = [&field(1, b"backlog")[..], &[0x10, 10, 0x19], &10f64.to_le_bytes()].concat();
        assert_eq!(keda.call("GetMetricSpec", &object("cart")).await.unwrap(), field(1, &spec));
        assert!(keda.call("IsActive", &object("card")).await.unwrap_err().starts_with("5 component \"card\""));
        assert!(keda.call("IsActive", b"").await.unwrap_err().starts_with("3 "));
        assert!(keda.call("StreamMetricSpec", &object("cart")).await.unwrap_err().starts_with("12 "));
        let told = watch.external("bluebox_component_backlog_calls", "cart");
        assert_eq!((&told["items"][0]["value"], &told["items"][0]["metricLabels"]["component"]), (&"1".into(), &"cart".into()), "{told}");
        let told = watch.external("bluebox_component_oldest_call_age_seconds", "cart");
        assert!(told["items"][0]["value"].as_str().is_some_and(|age| age.ends_with('m') && age.len() >= 3), "{told}");
        assert_eq!(watch.external("bluebox_component_backlog_calls", "card")["code"], 404);

        // It becomes inactive when the slow one ends, and active when a call waits that nobody can take.
        let mut activity = keda.begin("StreamIsActive", &object("cart")).await;
        assert!(next_activity(&mut activity).await);
        delivery.answer(200, "done");
        slow.answer().await.is(200, "done");
        assert!(!next_activity(&mut activity).await);
        assert_eq!(keda.backlog().await, 0);
        drop(cart);
        let waits = shop.begin(Call::post("http://cart/waits", "for a box"));
        assert!(next_activity(&mut activity).await);
        assert_eq!(keda.backlog().await, 1);
        let _cart = world.proxy("cart").serves("cart", &app, 1).start().await;
        waits.answer().await.is(200, "for a box");
        assert!(!next_activity(&mut activity).await);
    });
}

//! Taking no more calls before the app is told to end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::Log;
use bluebox_core::log::embedded::Embedded;
use bluebox_core::registry::Component;
use bluebox_proxy::config::{App, AppProtocol, Inbound, ProxyConfig, Served, Together};
use bluebox_proxy::incarnation::{Place, Taken};
use bluebox_proxy::{Proxy, RunError};
use common::{Answer, PATIENCE, exchange, name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A proxy: where it takes calls, where it is asked, where it is told.
struct Running {
    listen: SocketAddr,
    admin: SocketAddr,
    control: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), bluebox_proxy::RunError>>,
}

async fn run(log: &Arc<Embedded>, app: Option<SocketAddr>) -> Running {
    let serves = app.map(|app| Served {
        name: name("cart"),
        component: Component { partitions: 1, ..Component::default() },
        ordinal: None,
        app: App::At { address: app, protocol: AppProtocol::Http1 },
    });
    let any = "127.0.0.1:0".parse().unwrap();
    let who = name(if app.is_some() { "cart" } else { "gateway" });
    let proxy = Proxy::bind(ProxyConfig { name: who, serves: serves.into_iter().collect(), control: Some(any), ..common::config() }).await.unwrap();
    let (listen, admin, control) = (proxy.listen(), proxy.admin().unwrap(), proxy.control().unwrap());
    let stop = CancellationToken::new();
    let task = tokio::spawn(proxy.run(Arc::clone(log) as Arc<dyn Log>, stop.clone().cancelled_owned()));
    Running { listen, admin, control, stop, task }
}

async fn ask(at: SocketAddr, what: &str) -> Answer {
    exchange(at, format!("{what} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// Until something is asked of the app; other connections only look whether it listens.
async fn asked(app: &TcpListener) -> TcpStream {
    loop {
        let (mut stream, _) = app.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        if head.ends_with(b"\r\n\r\n") {
            return stream;
        }
    }
}

#[tokio::test]
async fn what_is_under_way_ends_nothing_new_begins_and_calls_out_go_on() {
    let log = Embedded::in_memory();
    let (app, other) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let draining = run(&log, Some(app.local_addr().unwrap())).await;
    let gateway = run(&log, None).await;
    let first = tokio::spawn(async move { ask(gateway.listen, "GET http://cart/first").await });
    let mut under_way = tokio::time::timeout(PATIENCE, asked(&app)).await.unwrap();
    assert_eq!(ask(draining.admin, "GET /readyz").await.status, 200);
    assert_eq!(ask(draining.admin, "GET /drained?within=0").await.status, 504);

    // Told to drain: it waits for what is under way.
    let drained = tokio::spawn(async move { ask(draining.control, "POST /drain?within=600").await });
    loop {
        let answer = ask(draining.admin, "GET /readyz").await;
        if answer.status == 503 {
            break;
        }
    }
    assert_eq!(ask(draining.admin, "GET /drained?within=0").await.status, 504);
    assert!(!drained.is_finished());

    // The app can still call, for its answer.
    let passed = tokio::spawn(async move { ask(draining.listen, &format!("GET http://{}/", other.local_addr().unwrap())).await });
    under_way.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst").await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, first).await.unwrap().unwrap().body, b"first");
    assert_eq!(tokio::time::timeout(PATIENCE, drained).await.unwrap().unwrap().status, 200);
    assert_eq!(ask(draining.admin, "GET /drained?within=600").await.status, 200);
    assert!(!passed.is_finished(), "a call out was cut off by the drain");
    passed.abort();

    // A call that comes now is for another replica.
    let second = tokio::spawn(async move { ask(gateway.listen, "GET http://cart/second").await });
    // Had the first one begun it, it would have come to that one's app, and stayed there.
    let successor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken_over = run(&log, Some(successor.local_addr().unwrap())).await;
    let mut delivered = tokio::time::timeout(PATIENCE, asked(&successor)).await.unwrap();
    delivered.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond").await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().body, b"second");

    for proxy in [draining, taken_over, gateway] {
        proxy.stop.cancel();
        tokio::time::timeout(PATIENCE, proxy.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn only_who_may_can_tell_it_and_nonsense_is_refused() {
    let log = Embedded::in_memory();
    let gateway = run(&log, None).await;
    assert_eq!(ask(gateway.admin, "POST /drain").await.status, 403);
    assert_eq!(ask(gateway.control, "GET /drain").await.status, 405);
    // A page in a browser on this machine could say this.
    let control = gateway.control;
    for fields in ["Host: rebound.example".to_owned(), format!("Host: {control}\r\nOrigin: http://elsewhere.example")] {
        let answer = exchange(control, format!("POST /drain HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert_eq!(answer.status, 403, "{fields}");
    }
    assert_eq!(ask(gateway.admin, "POST /drained").await.status, 405);
    for query in ["within=", "within=x", "within=-1", "within=3601", "other=1"] {
        assert_eq!(ask(gateway.admin, &format!("GET /drained?{query}")).await.status, 400, "{query}");
    }
    assert_eq!(ask(gateway.admin, "GET /readyz").await.status, 200);
    // It serves nothing, so nothing has to end.
    assert_eq!(ask(gateway.control, "POST /drain").await.status, 200);
    gateway.stop.cancel();
    gateway.task.await.unwrap().unwrap();
}

/// A proxy of a box that lives and dies together, and the directory that its incarnations share.
async fn half(log: &Arc<Embedded>, app: SocketAddr, stop: &CancellationToken) -> (tempfile::TempDir, tokio::task::JoinHandle<Result<(), RunError>>) {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    place.prepare(place.former(Duration::ZERO).unwrap().0, Duration::ZERO).unwrap();
    assert!(matches!(place.take().unwrap(), Taken::WithTheBox { incarnation: 1, why: None }));
    let served = Served {
        ordinal: None,
        name: name("cart"),
        component: Component { partitions: 1, ..Component::default() },
        app: App::At { address: app, protocol: AppProtocol::Http1 },
    };
    let together = Some(Together { place, replaces: false });
    let proxy = Proxy::bind(ProxyConfig {
        name: name("cart"),
        serves: vec![served],
        together,
        inbound: Inbound { drain: Duration::from_secs(600), ..Inbound::default() },
        ..common::config()
    })
    .await
    .unwrap();
    (directory, tokio::spawn(proxy.run(Arc::clone(log) as Arc<dyn Log>, stop.clone().cancelled_owned())))
}

#[tokio::test]
async fn a_half_whose_app_is_gone_ends_and_says_why() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (directory, task) = half(&Embedded::in_memory(), app.local_addr().unwrap(), &CancellationToken::new()).await;
    // It runs: it looks whether the app takes connections.
    drop(tokio::time::timeout(PATIENCE, app.accept()).await.unwrap());
    drop(app);
    let ended = tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(RunError::AppGone { .. })), "{ended:?}");
    let Taken::Alone { why: Some(why), app_is_new: true } = Place::new(directory.path()).take().unwrap() else { panic!("it left no word") };
    assert!(why.contains("does not listen any more"), "{why}");
}

/// In place there are 2 s: what is under way is cut off, and not waited for as in a drain.
#[tokio::test]
async fn a_half_that_is_told_to_end_alone_does_not_wait_for_its_drain() {
    let (log, app, stop) = (Embedded::in_memory(), TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
    let (directory, task) = half(&log, app.local_addr().unwrap(), &stop).await;
    let gateway = run(&log, None).await;
    let _call = tokio::spawn(async move { ask(gateway.listen, "GET http://cart/never").await });
    let _under_way = tokio::time::timeout(PATIENCE, asked(&app)).await.unwrap();
    stop.cancel();
    // The drain would take longer than anyone waits here.
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    let Taken::Alone { why: Some(why), app_is_new: false } = Place::new(directory.path()).take().unwrap() else { panic!("it left no word") };
    assert!(why.contains("another container of its box had ended"), "{why}");
}

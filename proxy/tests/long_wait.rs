//! A caller that waits for long is held without hyper, and notices nothing of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::time::Duration;

use bluebox_core::call::Response;
use bluebox_core::registry::Component;
use common::{Answer, PATIENCE, System, read_head, read_response, reply, response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A gateway in which every wait is a long one.
async fn system() -> System {
    System::start_with(|config| config.outbound.long_wait = Duration::ZERO, Component { partitions: 1, ..Component::default() }).await
}

/// Waits until so many callers are held.
async fn held(system: &System, count: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !system.metrics().await.contains(&format!("\nbluebox_outbound_waiting_long {count}\n")) {
        assert!(tokio::time::Instant::now() < deadline, "{count} callers should be held:\n{}", system.metrics().await);
    }
}

fn made(body: &[u8]) -> Response {
    response(201, &[("x-from", "cart"), ("content-length", &body.len().to_string())], body)
}

#[tokio::test]
async fn one_connection_is_held_again_and_again() {
    let system = system().await;
    let mut cart = system.callee(|_| None);
    let mut caller = system.connect().await;
    for round in 0..3 {
        let body = format!("round {round}");
        caller.write_all(format!("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        let call = cart.next().await;
        held(&system, 1).await;
        reply(&*system.log, &call, made(body.as_bytes())).await;
        let answer = read_response(&mut caller).await;
        assert_eq!((answer.status, answer.header("x-from").as_deref(), &answer.body[..]), (201, Some("cart"), body.as_bytes()), "{answer:?}");
        held(&system, 0).await;

        caller.write_all(b"POST /b HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-trailer: t\r\n\r\n").await.unwrap();
        let call = cart.next().await;
        assert_eq!(call.request.target, "/b");
        held(&system, 1).await;
        reply(&*system.log, &call, made(b"chunked")).await;
        assert_eq!(read_response(&mut caller).await.body, b"chunked");
    }
    assert!(system.metrics().await.contains("\nbluebox_outbound_connections 1\n"));
}

/// Asks for something, is held, and reads to the end of the connection.
async fn ask_and_be_held(system: &System, request: &str, answer: Response) -> Answer {
    let mut cart = system.callee(|_| None);
    // What was called before is read again.
    let before = system.log_end().await;
    let mut caller = system.connect().await;
    caller.write_all(request.as_bytes()).await.unwrap();
    for _ in 0..before {
        cart.next().await;
    }
    let call = cart.next().await;
    held(system, 1).await;
    reply(&*system.log, &call, answer).await;
    let mut raw = Vec::new();
    tokio::time::timeout(PATIENCE, caller.read_to_end(&mut raw)).await.expect("the connection was not closed").unwrap();
    Answer::parse(&raw)
}

#[tokio::test]
async fn the_answer_has_the_form_that_its_request_asked_for() {
    let system = system().await;
    let head = ask_and_be_held(&system, "HEAD / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n", response(200, &[("content-length", "9")], b"")).await;
    assert_eq!((head.status, head.header("content-length").as_deref(), head.body.len()), (200, Some("9"), 0), "{head:?}");

    let mut with_trailers = response(200, &[], b"content");
    with_trailers.trailers.insert("x-sum", "1".parse().unwrap());
    let chunked = "GET / HTTP/1.1\r\nHost: cart\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n";
    let answer = ask_and_be_held(&system, chunked, with_trailers.clone()).await;
    assert_eq!(String::from_utf8(answer.body).unwrap(), "7\r\ncontent\r\n0\r\nx-sum: 1\r\n\r\n");
    let answer = ask_and_be_held(&system, "GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n", with_trailers.clone()).await;
    assert_eq!(answer.body, b"content", "trailers go to those who take them: {answer:?}");

    // HTTP/1.0 has no chunks, and closes unless it is told not to.
    let old = ask_and_be_held(&system, "GET / HTTP/1.0\r\nHost: cart\r\n\r\n", with_trailers).await;
    assert_eq!((old.header("transfer-encoding"), &old.body[..]), (None, &b"content"[..]), "{old:?}");
    let mut cart = system.callee(|_| None);
    let mut caller = system.connect().await;
    for round in 0..2 {
        caller.write_all(b"GET / HTTP/1.0\r\nHost: cart\r\nConnection: keep-alive\r\nbluebox-ordering-key: kept\r\n\r\n").await.unwrap();
        let call = loop {
            let call = cart.next().await;
            if call.ordering_key.is_some() {
                break call;
            }
        };
        held(&system, 1).await;
        reply(&*system.log, &call, made(b"kept")).await;
        assert_eq!(read_response(&mut caller).await.body, b"kept", "round {round}");
    }
}

#[tokio::test]
async fn what_comes_during_the_wait_is_answered_in_its_turn() {
    let system = system().await;
    let mut cart = system.callee(|_| None);
    let mut caller = system.connect().await;
    caller.write_all(b"GET /first HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
    let first = cart.next().await;
    held(&system, 1).await;
    // Half a head, which makes hyper come back; and the rest.
    caller.write_all(b"POST /second HTTP/1.1\r\nHost: ca").await.unwrap();
    held(&system, 0).await;
    caller.write_all(b"rt\r\nContent-Length: 3\r\n\r\nabcGET /third HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
    assert!(cart.is_idle(), "one at a time");
    reply(&*system.log, &first, made(b"1")).await;
    assert_eq!(read_response(&mut caller).await.body, b"1");
    for (target, body) in [("/second", b"2"), ("/third", b"3")] {
        let call = cart.next().await;
        assert_eq!(call.request.target, target);
        reply(&*system.log, &call, made(body)).await;
        assert_eq!(read_response(&mut caller).await.body, body);
    }
}

#[tokio::test]
async fn a_caller_that_is_held_can_hang_up() {
    let cancels = |config: &mut bluebox_proxy::config::ProxyConfig| {
        config.outbound.long_wait = Duration::ZERO;
        config.outbound.cancel_on_disconnect = true;
    };
    let system = System::start_with(cancels, Component { partitions: 1, ..Component::default() }).await;
    let mut cart = system.callee(|_| None);
    let mut caller = system.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
    cart.next().await;
    held(&system, 1).await;
    drop(caller);
    held(&system, 0).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !system.metrics().await.contains("\nbluebox_outbound_waiting 0\n") {
        assert!(tokio::time::Instant::now() < deadline, "nobody waits any more");
    }
    let metrics = system.metrics().await;
    assert!(metrics.contains("\nbluebox_outbound_calls_total{callee=\"cart\",result=\"gone\"} 1\n"), "{metrics}");
    use bluebox_core::log::Log as _;
    let control = system.cart.control.partition(0);
    while system.log.bounds(&control).await.unwrap().end.get() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the call was not cancelled");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_wait_ends_and_the_proxy_may_too() {
    let system = system().await;
    let mut cart = system.callee(|_| None);
    let mut caller = system.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\nPrefer: wait=1\r\n\r\n").await.unwrap();
    cart.next().await;
    let answer = read_head(&mut caller).await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "no-outcome-yet"), "{answer:?}");

    let mut caller = system.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
    let call = cart.next().await;
    held(&system, 1).await;
    system.stop.cancel();
    reply(&*system.log, &call, made(b"last")).await;
    let mut raw = Vec::new();
    tokio::time::timeout(PATIENCE, caller.read_to_end(&mut raw)).await.expect("the connection was not closed").unwrap();
    let answer = Answer::parse(&raw);
    assert_eq!((answer.status, &answer.body[..], answer.header("connection").as_deref()), (201, &b"last"[..], Some("close")), "{answer:?}");
    system.stop().await;
}

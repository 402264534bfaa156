//! What is malformed or hostile gets a clear error, costs little, and reaches no app.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::time::Duration;

use bluebox_core::registry::Component;
use common::{Answer, PATIENCE, System, read_head, read_response, response};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Asks, and checks that no call came of it and that the gateway still works.
async fn refused(system: &System, request: impl AsRef<[u8]>) -> Answer {
    let answer = system.ask(request).await;
    let end = system.log_end().await;
    assert_eq!(end, 0, "a call came of it: {answer:?}");
    answer
}

/// Asks, and checks that there is one answer, which is a problem document with this status and this word, and that nothing came of the request.
async fn refused_with(system: &System, request: impl AsRef<[u8]>, status: u16, word: &str) {
    let what = String::from_utf8_lossy(&request.as_ref()[..request.as_ref().len().min(120)]).into_owned();
    let answer = refused(system, request).await;
    assert_eq!((answer.status, answer.problem().as_str()), (status, word), "{what:?}: {answer:?}");
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"), "{what:?}: {answer:?}");
    assert_eq!(answer.header("bluebox-retry-safe").as_deref(), Some("true"), "{what:?}: {answer:?}");
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string()), "{what:?}: one answer, and the connection is closed: {answer:?}");
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((document["status"].as_u64(), document["type"].as_str()), (Some(u64::from(status)), Some(&*format!("urn:bluebox:problem:{word}"))));
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let system = System::start().await;
    for garbage in [
        &b"\r\n\r\nnonsense\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\nHost cart\n\n",
        b"G\x00T / HTTP/1.1\r\nHost: cart\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: cart\r\n\r\n",
        b"GET / HTTP/2.7\r\nHost: cart\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cart\r\nX-Folded: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cart\r\nX Y: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cart\r\nHost : shop\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cart\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cart\r\nX: a\rb\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03TLS hello\r\n\r\n",
    ] {
        refused_with(&system, garbage, 400, "bad-request").await;
    }
    assert!(system.metrics().await.contains("bluebox_refused_requests_total{problem=\"bad-request\"}"));
}

#[tokio::test]
async fn a_request_names_one_host() {
    let system = System::start().await;
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/1.1\r\nHost: cart\r\nHost: cart\r\n",
        "GET / HTTP/1.1\r\nHost: cart\r\nHost: shop\r\n",
        "GET / HTTP/1.1\r\nHost: cart, shop\r\n",
        "GET / HTTP/1.1\r\nHost: user@cart\r\n",
        "GET / HTTP/1.1\r\nHost: cart:99999\r\n",
        "GET / HTTP/1.1\r\nHost: cart:-1\r\n",
        "GET / HTTP/1.1\r\nHost: ca\u{fc}rt\r\n",
        "GET http://user@cart/ HTTP/1.1\r\nHost: cart\r\n",
        "GET https://cart/ HTTP/1.1\r\nHost: cart\r\n",
        "CONNECT cart HTTP/1.1\r\nHost: cart\r\n",
        "GET / HTTP/1.0\r\n",
    ] {
        refused_with(&system, format!("{head}\r\nGET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n"), 400, "bad-request").await;
    }
}

#[tokio::test]
async fn framing_that_two_could_read_differently_is_refused() {
    let system = System::start().await;
    let post = "POST / HTTP/1.1\r\nHost: cart\r\n";
    for (fields, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 6\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 99999999999999999999999\r\n", 400),
        ("Transfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: chunked, identity\r\n", 400),
        ("Transfer-Encoding: xchunked\r\n", 400),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, chunked\r\n", 501),
    ] {
        let answer = refused(&system, format!("{post}{fields}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
        let word = if status == 400 { "bad-request" } else { "unknown-coding" };
        assert_eq!((answer.status, answer.problem().as_str()), (status, word), "{fields:?}: {answer:?}");
        assert_eq!(answer.raw.windows(9).filter(|w| w == b"HTTP/1.1 ").count(), 1, "one answer, and the connection is closed: {answer:?}");
    }
    let old = refused(&system, "POST / HTTP/1.0\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert_eq!(old.status, 400);
}

#[tokio::test]
async fn two_framings_are_refused_on_a_used_connection_too() {
    let system = System::start().await;
    let mut cart = system.answers(response(200, &[], b"ok"));
    let good = "POST /good HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n";
    let bad = "POST /bad HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n";
    let answer = system.ask(format!("{good}{good}{bad}{good}")).await;
    let text = String::from_utf8_lossy(&answer.raw).into_owned();
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
    assert_eq!(text.matches("HTTP/1.1 400").count(), 1, "{text}");
    assert_eq!((cart.next().await.request.target, cart.next().await.request.target), ("/good".to_owned(), "/good".to_owned()));
    assert!(cart.is_idle());
}

#[tokio::test]
async fn a_broken_body_is_no_call() {
    let system = System::start().await;
    let post = "POST / HTTP/1.1\r\nHost: cart\r\n";
    for (fields, body) in [
        ("Transfer-Encoding: chunked\r\n", "zz\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "-1\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "3\r\nabcX\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\nBad Trailer\r\n\r\n"),
        // hyper looks for CR LF, its parser takes LF alone: the request behind would be taken for a part of the trailers, and never be answered.
        ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\nX: 1\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\nX: 1\r\n\n"),
    ] {
        // What would be the next request, had the body an end, is none.
        refused_with(&system, format!("{post}{fields}\r\n{body}GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n"), 400, "bad-request").await;
    }
    // Cut off: nobody is there to be answered, but nothing may come of it.
    let mut stream = system.connect().await;
    stream.write_all(format!("{post}Content-Length: 10\r\n\r\nabc").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(system.log_end().await, 0);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let system = System::start().await;
    let large = "x".repeat(70 << 10);
    for head in [
        format!("GET / HTTP/1.1\r\nHost: cart\r\nX: {large}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: cart\r\n{}\r\n", "a: b\r\n".repeat(1000)),
        format!("GET / HTTP/1.1\r\nHost: cart\r\nX: {}", "y".repeat(200 << 10)),
    ] {
        refused_with(&system, head, 431, "head-too-large").await;
    }
    refused_with(&system, format!("GET /{large} HTTP/1.1\r\nHost: cart\r\n\r\n"), 431, "head-too-large").await;
    // 64 KiB are not too many, and neither are 256 fields.
    let _cart = system.answers(response(200, &[("content-length", "2")], b"ok"));
    let bytes = |n: usize| format!("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(n - 54));
    assert_eq!(system.ask(bytes(64 << 10)).await.status, 200);
    assert_eq!(system.ask(bytes((64 << 10) + 1)).await.status, 431);
    let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n{}\r\n", "a: b\r\n".repeat(n - 2));
    assert_eq!(system.ask(fields(256)).await.status, 200);
    assert_eq!(system.ask(fields(257)).await.status, 431);
}

#[tokio::test]
async fn a_head_without_an_end_costs_little() {
    let system = System::start().await;
    for begin in ["GET / HTTP/1.1\r\nHost: cart\r\nX: ", "GET /", "G"] {
        let mut stream = system.connect().await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let block = vec![b'x'; 1 << 16];
        let sending = async {
            let mut sent = 0;
            while write.write_all(&block).await.is_ok() {
                sent += block.len();
            }
            sent
        };
        let reading = async {
            let mut raw = Vec::new();
            let _ = read.read_to_end(&mut raw).await;
            Answer::parse(&raw)
        };
        let (sent, answer) = tokio::time::timeout(PATIENCE, async { tokio::join!(sending, reading) }).await.expect("it is read for ever");
        assert_eq!((answer.status, answer.problem().as_str()), (431, "head-too-large"), "{answer:?}");
        // What lies in the sockets comes on top of what is read.
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
    assert_eq!(system.log_end().await, 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let system = System::start_with(|_| {}, Component { partitions: 1, body_limit_bytes: 300_000, ..Component::default() }).await;
    let told = refused(&system, "POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 300001\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n").await;
    assert_eq!((told.status, told.problem().as_str()), (413, "body-too-large"), "no 100 comes before it: {told:?}");

    let mut endless = system.connect().await;
    endless.write_all(b"POST / HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let (mut read, mut write) = endless.split();
    let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x10000));
    let sending = async { while write.write_all(chunk.as_bytes()).await.is_ok() {} };
    let reading = async {
        let mut raw = vec![0; 4096];
        let read = read.read(&mut raw).await.unwrap();
        Answer::parse(&raw[..read])
    };
    let answer = tokio::time::timeout(PATIENCE, async {
        tokio::select! { () = sending => panic!("the connection broke before the answer"), answer = reading => answer }
    });
    assert_eq!(answer.await.unwrap().status, 413);
    assert_eq!(system.log_end().await, 0);
}

#[tokio::test]
async fn slow_senders_are_cut_off() {
    let timeout = Duration::from_millis(300);
    let system = System::start_with(
        |config| {
            config.outbound.head_timeout = timeout;
            config.outbound.body_idle_timeout = timeout;
        },
        Component { partitions: 1, ..Component::default() },
    )
    .await;
    // Nothing at all, half a preface of HTTP/2, half a head, half a request line, and half a head on a connection that was used.
    let used = "GET http://bluebox/ HTTP/1.1\r\nHost: bluebox\r\n\r\nGET / HT";
    for (begin, answers) in [("", 0), ("PRI * HT", 0), ("GET / HTTP/1.1\r\nHost: cart\r\nX: ", 1), ("GET /", 1), (used, 2)] {
        let began = std::time::Instant::now();
        let answer = refused(&system, begin).await;
        assert!(began.elapsed() >= timeout, "{begin:?}");
        let text = String::from_utf8_lossy(&answer.raw).into_owned();
        assert_eq!(text.matches("HTTP/1.1 ").count(), answers, "{text}");
        assert!(answers == 0 || (text.contains("HTTP/1.1 408 ") && text.contains("bluebox-error: slow-head")), "{text}");
    }
    let mut dripping = system.connect().await;
    let drip = async {
        dripping.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n").await.unwrap();
        while dripping.write_all(b"a").await.is_ok() {
            tokio::time::sleep(timeout / 6).await;
        }
    };
    tokio::time::timeout(PATIENCE, drip).await.expect("a head that comes drop by drop is cut off");

    let slow = refused(&system, "POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 10\r\n\r\nabc").await;
    assert_eq!((slow.status, slow.problem().as_str()), (408, "slow-body"), "{slow:?}");
}

#[tokio::test]
async fn a_connection_may_stand_idle_for_longer_than_a_head_may_take() {
    let timeout = Duration::from_millis(100);
    let system = System::start_with(|config| config.outbound.head_timeout = timeout, Component { partitions: 1, ..Component::default() }).await;
    let _cart = system.answers(response(200, &[("content-length", "2")], b"ok"));
    let mut stream = system.connect().await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
        assert_eq!(common::read_response(&mut stream).await.status, 200);
        // The time that passes is what is tested.
        tokio::time::sleep(3 * timeout).await;
    }
}

#[tokio::test]
async fn names_that_no_component_has_are_no_calls() {
    let system = System::start().await;
    for host in ["cart_1", "cart-", "-cart", "cart.", "xcart"] {
        let answer = refused(&system, format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "pass-through-failed"), "{host}: {answer:?}");
        assert_eq!(answer.header("bluebox-retry-safe").as_deref(), Some("true"));
    }
    for host in ["ca%rt", "ca rt", "cart/x", "[cart", "cart\\x"] {
        let answer = refused(&system, format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, 400, "{host}: {answer:?}");
    }
}

#[tokio::test]
async fn forged_fields_of_ours_are_taken_out() {
    let system = System::start().await;
    let mut cart = system.answers(response(200, &[], b"ok"));
    let request = "GET / HTTP/1.1\r\nHost: cart\r\nBluebox-Call-Id: 1\r\nbluebox-attempt: 7\r\nBLUEBOX-CALLER: root\r\nbluebox-hops: x\r\nbluebox-anything: x\r\n\
                   X-Mine: 1\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: y\r\nTE: gzip\r\n\r\n";
    assert_eq!(system.ask(request).await.status, 200);
    let call = cart.next().await;
    let names: Vec<_> = call.request.headers.keys().map(|n| n.as_str().to_owned()).collect();
    // Who sends the id of a call has passed its request on.
    assert_eq!(names, ["x-mine", "bluebox-hops"]);
    assert_eq!(call.request.headers["bluebox-hops"], "1");
    assert_eq!(call.caller.as_str(), "gateway");
}

#[tokio::test]
async fn a_request_to_the_proxy_itself_is_a_loop() {
    let system = System::start().await;
    for head in [
        format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", system.gateway),
        format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", system.gateway),
        format!("GET / HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n", system.gateway.port()),
        format!("CONNECT {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", system.gateway, system.gateway),
        format!("GET / HTTP/1.1\r\nHost: 0.0.0.0:{}\r\nConnection: close\r\n\r\n", system.gateway.port()),
        format!("GET / HTTP/1.1\r\nHost: [::ffff:127.0.0.1]:{}\r\nConnection: close\r\n\r\n", system.gateway.port()),
        format!("GET / HTTP/1.1\r\nHost: 2130706433:{}\r\nConnection: close\r\n\r\n", system.gateway.port()),
        // What only loopback may reach is not to be reached through the proxy.
        format!("POST /drain HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", system.control),
        format!("CONNECT {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", system.control, system.control),
    ] {
        let answer = refused(&system, &head).await;
        assert_eq!((answer.status, answer.problem().as_str()), (508, "loop"), "{head:?}: {answer:?}");
    }
    let everywhere = System::start_with(|config| config.listen = "0.0.0.0:0".parse().unwrap(), Component { partitions: 1, ..Component::default() }).await;
    leads_back_by(&everywhere, &["127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost", &own_name()]).await;
    let everywhere = System::start_with(|config| config.listen = "[::]:0".parse().unwrap(), Component { partitions: 1, ..Component::default() }).await;
    leads_back_by(&everywhere, &["127.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "localhost", &own_name()]).await;
}

/// The name of this machine, where it leads to this machine.
fn own_name() -> String {
    use std::net::ToSocketAddrs as _;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let is_own = |a: std::net::SocketAddr| std::net::TcpListener::bind((a.ip(), 0)).is_ok();
    if (name.as_str(), 1).to_socket_addrs().is_ok_and(|mut all| all.all(is_own)) { name } else { "localhost".to_owned() }
}

async fn leads_back_by(everywhere: &System, names: &[&str]) {
    let port = everywhere.gateway.port();
    for name in names {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n");
        let answer = common::exchange(([127, 0, 0, 1], port).into(), request.as_bytes()).await;
        assert_eq!((answer.status, answer.problem().as_str()), (508, "loop"), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn request_lines_and_heads_that_are_none_get_a_document() {
    let system = System::start().await;
    let megabyte = "x".repeat(1 << 20);
    let host = "Host: cart\r\n\r\n";
    for (request, status, word) in [
        ("GET /\r\n".to_owned(), 400, "bad-request"),
        ("GET / HTTP/0.9\r\n\r\n".to_owned(), 400, "bad-request"),
        (format!("GET /{megabyte} HTTP/1.1\r\n{host}"), 431, "head-too-large"),
        (format!("{megabyte} / HTTP/1.1\r\n{host}"), 431, "head-too-large"),
        (format!("GET / HTTP/1.1\r\n{}{host}", "a: b\r\n".repeat(10_000)), 431, "head-too-large"),
        (format!("GET / HTTP/1.1\r\n{megabyte}: 1\r\n{host}"), 431, "head-too-large"),
        (format!("GET /\0 HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET / HTTP/1.1\r\n\0: a\r\n{host}"), 400, "bad-request"),
        (format!("GET / HTTP/1.1\r\n: a\r\n{host}"), 400, "bad-request"),
        (format!("GET /a\u{7f} HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET /a#b HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET  / HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET\t/ HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET / http/1.1\r\n{host}"), 400, "bad-request"),
        (format!(" GET / HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET / HTTP/1.1\r\n X: before the first field\r\n{host}"), 400, "bad-request"),
        // The form of the target (RFC 9112, section 3.2).
        (format!("GET cart HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET cart:80 HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET * HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("CONNECT / HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("CONNECT cart HTTP/1.1\r\nConnection: close\r\n{host}"), 400, "bad-request"),
        (format!("CONNECT http://cart:80/ HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET http:///x HTTP/1.1\r\n{host}"), 400, "bad-request"),
        (format!("GET ftp://cart/x HTTP/1.1\r\nConnection: close\r\n{host}"), 400, "bad-request"),
        (format!("GET http://user@cart/ HTTP/1.1\r\nConnection: close\r\n{host}"), 400, "bad-request"),
        ("GET http://cart/ HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n".to_owned(), 400, "bad-request"),
        // HTTP/2 that is none.
        ("PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_owned(), 400, "bad-request"),
        ("PRI / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400, "bad-request"),
    ] {
        refused_with(&system, request, status, word).await;
    }
    refused_with(&system, b"GET /\xff HTTP/1.1\r\nHost: cart\r\n\r\n", 400, "bad-request").await;
    let answer = refused(&system, "GET /a\u{7f}b HTTP/1.1\r\nHost: cart\r\n\r\n").await;
    assert!(String::from_utf8_lossy(&answer.body).contains("percent-encode it as %7F"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_is_still_sending_finds_the_answer() {
    let system = System::start().await;
    let megabytes = "x".repeat(4 << 20);
    for request in [
        format!("GET /{megabytes}"),
        format!("GET /\r\n{megabytes}"),
        format!("POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 4194304\r\n\r\n{megabytes}"),
    ] {
        let mut stream = system.connect().await;
        // What closes a connection with unread data resets it, and the answer may be lost with that.
        tokio::time::timeout(PATIENCE, stream.write_all(request.as_bytes())).await.expect("nobody reads on").expect("the connection was reset");
        let answer = read_head(&mut stream).await;
        assert!([400, 431].contains(&answer.status), "{answer:?}");
    }
}

#[tokio::test]
async fn what_surrounds_chunks_is_bounded() {
    let system = System::start().await;
    let megabyte = "x".repeat(1 << 20);
    for body in [
        format!("3;{megabyte}\r\nabc\r\n0\r\n\r\n"),
        format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(1 << 20)),
        format!("3{}\r\nabc\r\n0\r\n\r\n", " ".repeat(1 << 20)),
        format!("3\r\nabc\r\n0\r\nX: {megabyte}\r\n\r\n"),
        format!("3\r\nabc\r\n0\r\n{}\r\n", "a: b\r\n".repeat(10_000)),
        "3\r\nabc\r\n0\r\nX: a\0b\r\n\r\n".to_owned(),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET / HTTP/1.1\r\nHost: cart\r\n\r\n");
        refused_with(&system, request, 400, "bad-request").await;
    }
}

#[tokio::test]
async fn the_rest_of_a_body_that_was_refused_is_no_request() {
    let system = System::start_with(|_| {}, Component { partitions: 1, body_limit_bytes: 1000, ..Component::default() }).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n".repeat(2000);
    for framed in [
        format!("Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
    ] {
        let mut stream = system.connect().await;
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: cart\r\n{framed}").as_bytes()).await.unwrap();
        assert_eq!(read_head(&mut stream).await.status, 413);
        assert_eq!(system.log_end().await, 0);
    }
}

#[tokio::test]
async fn bytes_in_a_body_have_no_meaning() {
    let system = System::start().await;
    let mut cart = system.answers(response(200, &[("content-length", "2")], b"ok"));
    let body = b"\0\r\n\r\nGET / HTTP/1.1\r\n\r\n\xff";
    let head = format!("POST / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    assert_eq!(system.ask([head.as_bytes(), body].concat()).await.status, 200);
    let bluebox_core::call::Body::Inline(arrived) = cart.next().await.request.body else { panic!("it is small") };
    assert_eq!(&arrived[..], body);
    assert!(cart.is_idle());
}

#[tokio::test]
async fn expectations_that_nobody_knows_hold_nothing_up() {
    let system = System::start().await;
    let mut cart = system.answers(response(200, &[("content-length", "2")], b"ok"));
    for expect in ["200-maybe", "100-continue, x", "", "\"", "100-continue\r\nExpect: x"] {
        let request = format!("POST / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\nExpect: {expect}\r\nContent-Length: 2\r\n\r\nhi");
        let answer = system.ask(request).await;
        assert!(answer.raw.ends_with(b"ok"), "{expect:?}: {answer:?}");
        assert!(!cart.next().await.request.headers.contains_key("expect"));
    }
}

#[tokio::test]
async fn http_1_0_keeps_its_connection_only_if_it_says_so() {
    let system = System::start().await;
    let _cart = system.answers(response(200, &[("content-length", "2")], b"ok"));
    let get = |fields: &str| format!("GET / HTTP/1.0\r\nHost: cart\r\n{fields}\r\n");
    for (requests, answers) in [
        (format!("{}{}", get("Connection: keep-alive\r\n"), get("")), 2),
        (format!("{}{}", get(""), get("")), 1),
        (format!("{}{}", get("Connection: close, keep-alive\r\n"), get("")), 1),
    ] {
        let answer = system.ask(&requests).await;
        let text = String::from_utf8_lossy(&answer.raw).into_owned();
        assert_eq!((text.matches("HTTP/1.0 200 OK").count(), text.matches("HTTP/").count()), (answers, answers), "{requests:?}: {text}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let system = System::start().await;
    let _cart = system.callee(|call| Some(response(200, &[], call.request.target.as_bytes())));
    let requests: String = (0..300).map(|n| format!("\r\nGET /{n}. HTTP/1.1\r\nHost: cart\r\n\r\n")).collect();
    // Behind a request that is none nothing is answered.
    let answer = system.ask(format!("{requests}GET /bad\r\nGET /never HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
    let text = String::from_utf8_lossy(&answer.raw).into_owned();
    let mut rest = text.as_str();
    for n in 0..300 {
        let at = rest.find(&format!("/{n}.")).unwrap_or_else(|| panic!("{n} is missing"));
        rest = &rest[at..];
    }
    assert_eq!((text.matches("HTTP/1.1 200 OK").count(), text.matches("HTTP/1.1 400 ").count(), text.matches("HTTP/1.1 ").count()), (300, 1, 301));
}

#[tokio::test]
async fn a_client_that_half_closes_has_hung_up() {
    let system = System::start().await;
    for request in ["GET / HTTP/1.1\r\nHost: cart\r\n\r\n", "GET / HT", ""] {
        let mut stream = system.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut raw = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut raw)).await.expect("the connection stays open");
        assert_eq!(raw, b"", "{request:?}");
    }
    // But what is wrong with a request is said all the same.
    let mut stream = system.connect().await;
    stream.write_all(b"GET /\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut raw = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut raw)).await.unwrap().unwrap();
    assert_eq!(Answer::parse(&raw).status, 400);
}

#[tokio::test]
async fn http2_is_read_as_strictly() {
    let system = System::start().await;
    let stream = TokioIo::new(system.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut ask = |host: Option<&str>, length: usize| {
        let mut request = http::Request::get("http://cart/").header("x", "x".repeat(length));
        if let Some(host) = host {
            request = request.header("host", host);
        }
        sender.send_request(request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap())
    };
    for host in ["shop", "cart, shop", "user@cart"] {
        let answer = tokio::time::timeout(PATIENCE, ask(Some(host), 1)).await.unwrap().unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["bluebox-error"].to_str().unwrap()), (400, "bad-request"), "{host}");
        assert!(answer.headers().get("connection").is_none());
        let document = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(document.starts_with(b"{\"type\":\"urn:bluebox:problem:bad-request\""), "{document:?}");
    }
    // A head that is too large is hyper's to refuse: 431, or a reset of this stream alone.
    let large = tokio::time::timeout(PATIENCE, ask(None, 80 << 10)).await.unwrap();
    assert!(large.is_err() || large.is_ok_and(|answer| answer.status() == 431));
    let _cart = system.answers(response(200, &[], b"ok"));
    let answer = tokio::time::timeout(PATIENCE, ask(None, 1)).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200, "the connection goes on");
}

#[tokio::test]
async fn what_cant_be_durable_is_refused_and_counted() {
    let system = System::start().await;
    for request in [
        "GET / HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: cart\r\nContent-Type: application/grpc\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: cart\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n",
    ] {
        let mut stream = system.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_head(&mut stream).await;
        assert_eq!((answer.status, answer.problem().as_str()), (501, "stream-refused"), "{request:?}: {answer:?}");
    }
    assert!(system.metrics().await.contains("bluebox_streams_total{result=\"refused\"} 3"));
}

#[tokio::test]
async fn who_is_refused_before_his_body_was_read_is_told_that_the_connection_ends() {
    let system = System::start().await;
    let body = "x".repeat(100_000);
    for (head, status) in [
        ("POST / HTTP/1.1\r\nHost: cart\r\nContent-Type: application/grpc\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: cart\r\nIdempotency-Key: \r\n", 400),
        ("POST / HTTP/1.1\r\nHost: bluebox\r\n", 400),
    ] {
        let mut stream = system.connect().await;
        stream.write_all(format!("{head}Content-Length: 100000\r\n\r\n{body}").as_bytes()).await.unwrap();
        let answer = read_response(&mut stream).await;
        assert_eq!((answer.status, answer.header("connection").as_deref()), (status, Some("close")), "{head}: {answer:?}");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
        // With all of it read it goes on.
        let mut stream = system.connect().await;
        for _ in 0..2 {
            stream.write_all(format!("{head}Content-Length: 1\r\n\r\nx").as_bytes()).await.unwrap();
            let answer = read_response(&mut stream).await;
            assert_eq!((answer.status, answer.header("connection")), (status, None), "{head}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_outcome_that_ends_no_exchange_is_not_given_to_a_caller() {
    let system = System::start().await;
    for status in [101, 103] {
        let mut cart = system.answers(response(status, &[("upgrade", "x")], b""));
        let answer = system.ask("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "outcome-unreadable"), "{answer:?}");
        cart.next().await;
    }
}

/// A small generator of noise that is the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_bring_it_down() {
    const PARTS: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST http://cart/x HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.0\r\n",
        b"PUT /<\"`?> HTTP/1.1\r\n",
        b"GET http://cart?< HTTP/1.1\r\n",
        b"GET /",
        b" HTTP/1.1",
        b"CONNECT cart:80 HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"Host: cart\r\n",
        b"Host: bluebox\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: +5\r\n",
        b"Upgrade: h2c\r\n",
        b"5 ;x=\"\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: host, content-length, te\r\n",
        b"Prefer: respond-async, wait=0, \"\\\r\n",
        b"Idempotency-Key: \x80\r\n",
        b"Idempotency-Key: k\r\n",
        b"Trailer: host\r\n",
        b"TE: trailers\r\n",
        b"\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x8c",
        b"\xff\xfe\x00",
        b"hello",
    ];
    let system = System::start_with(
        |config| {
            config.outbound.head_timeout = Duration::from_millis(50);
            config.outbound.body_idle_timeout = Duration::from_millis(50);
            config.outbound.wait = Duration::from_millis(50);
            config.outbound.max_wait = Duration::from_millis(50);
        },
        Component { partitions: 1, ..Component::default() },
    )
    .await;
    let _cart = system.answers(response(200, &[], b"ok"));
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40);
    for _ in 0..rounds {
        let requests: Vec<Vec<u8>> = (0..16)
            .map(|_| {
                let mut bytes: Vec<u8> = (0..=noise.next(12)).flat_map(|_| PARTS[noise.next(PARTS.len())].to_vec()).collect();
                if noise.next(2) == 0 {
                    let at = noise.next(bytes.len());
                    bytes[at] = noise.next(256) as u8;
                }
                bytes
            })
            .collect();
        let asked = requests.iter().map(|request| async {
            let mut stream = system.connect().await;
            let _ = stream.write_all(request).await;
            let _ = stream.shutdown().await;
            let mut raw = Vec::new();
            let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut raw)).await.expect("a connection was never closed");
            // Whatever is refused over HTTP/1 is refused by the proxy, in a document: hyper's own answers have none.
            let text = String::from_utf8_lossy(&raw);
            let refusals: usize = ["1.1 4", "1.1 5", "1.0 4", "1.0 5"].iter().map(|status| text.matches(&format!("HTTP/{status}")).count()).sum();
            assert_eq!(text.matches("bluebox-error: ").count(), refusals, "{:?}: {text}", String::from_utf8_lossy(request));
        });
        futures_util::future::join_all(asked).await;
    }
    let answer = system.ask("GET / HTTP/1.1\r\nHost: cart\r\nPrefer: wait=20\r\nConnection: close\r\n\r\n").await;
    assert!([200, 504].contains(&answer.status), "{answer:?}");
    let metrics = system.metrics().await;
    assert!(metrics.contains("bluebox_internal_errors_total 0"), "{metrics}");
}

//! Durable calls as a caller sees them: bit for bit there and back, and what it is told in every other case.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::time::Duration;

use bluebox_core::call::{Body, Response};
use bluebox_core::log::embedded::AppendFault;
use bluebox_core::log::{Log, Offset, Read, Record};
use bluebox_core::registry::Component;
use bluebox_core::wire::{ControlEntry, Reply};
use bluebox_proxy::bulk::{Bulk, TakeIn};
use bytes::Bytes;
use common::{Answer, PATIENCE, System, read_head, read_response, reply, response};
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_call_goes_out_and_its_outcome_comes_back() {
    let system = System::start().await;
    let mut cart = system.answers(response(201, &[("x-from", "cart")], b"made"));
    let answer = system.ask("POST /items?q=1 HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\nX-Mine: 1\r\nConnection: close\r\n\r\nbody").await;
    assert_eq!((answer.status, &answer.body[..]), (201, &b"made"[..]), "{answer:?}");
    assert_eq!(answer.header("x-from").as_deref(), Some("cart"));
    let mut names: Vec<_> = answer.headers.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["connection", "content-length", "x-from"], "nothing is added to an app's answer but what the connection needs");
    let call = cart.next().await;
    assert_eq!((call.request.method.as_str(), call.request.target.as_str(), call.request.authority.as_str()), ("POST", "/items?q=1", "cart"));
    assert_eq!(call.request.headers["x-mine"], "1");
    assert_eq!(call.request.body, Body::Inline(Bytes::from_static(b"body")));
    let metrics = system.metrics().await;
    assert!(metrics.contains("bluebox_outbound_calls_total{callee=\"cart\",result=\"app\"} 1"), "{metrics}");
    system.stop().await;
}

#[tokio::test]
async fn requests_arrive_bit_for_bit() {
    let system = System::start().await;
    let mut cart = system.answers(response(200, &[], b""));
    let every_byte: Vec<u8> = (0..=255).collect();
    let value: Vec<u8> = (0x20..=0x7e).chain(0x80..=0xff).chain([b'\t', b'x']).collect();
    let mut request = b"BREW-Coffee! /a//b/../%zz;p?q=%20&&x[]={}|^`'\\&y=\xc3\xa4 HTTP/1.1\r\nHost: Cart:80\r\nX-Two: one\r\nx-bytes: ".to_vec();
    request.extend_from_slice(&value);
    request.extend_from_slice(b"\r\nx-two: two\r\nX-Empty:\r\nX-Spaces:   a  b  \r\nContent-Length: 256\r\nX-TWO: one\r\nConnection: close\r\n\r\n");
    request.extend_from_slice(&every_byte);
    let answer = system.ask(&request).await;
    // A method is a token: '!' is one of its characters.
    assert_eq!(answer.status, 200, "{answer:?}");
    let call = cart.next().await.request;
    assert_eq!(call.method.as_str(), "BREW-Coffee!");
    assert_eq!(call.target.as_bytes(), b"/a//b/../%zz;p?q=%20&&x[]={}|^`'\\&y=\xc3\xa4");
    assert_eq!(call.authority, "Cart:80");
    let all = |name: &str| call.headers.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(all("x-two"), [b"one", b"two", b"one"]);
    assert_eq!(all("x-bytes"), [value.trim_ascii()]);
    assert_eq!(all("x-empty"), [b""]);
    assert_eq!(all("x-spaces"), [b"a  b"]);
    assert_eq!(call.body, Body::Inline(Bytes::from(every_byte)));
}

#[tokio::test]
async fn forms_of_a_request_target() {
    let system = System::start().await;
    let mut cart = system.answers(response(200, &[], b""));
    for (line, target) in [
        ("OPTIONS * HTTP/1.1\r\nHost: cart", "*"),
        ("GET http://cart/x?y HTTP/1.1\r\nHost: cart", "/x?y"),
        ("GET http://cart HTTP/1.1\r\nHost: cart", "/"),
        ("GET http://CART:80?q HTTP/1.1\r\nHost: elsewhere", "/?q"),
        ("GET /old HTTP/1.0\r\nHost: cart", "/old"),
        ("DELETE /with/body HTTP/1.1\r\nHost: cart\r\nContent-Length: 0", "/with/body"),
    ] {
        let answer = system.ask(format!("{line}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        assert_eq!(cart.next().await.request.target, target, "{line}");
    }
}

#[tokio::test]
async fn answers_come_back_bit_for_bit() {
    let system = System::start().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut outcome = response(299, &[("x-two", "one"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-two", "two"), ("date", "then")], &every_byte);
    outcome.headers.append("x-bytes", http::HeaderValue::from_bytes(b"\x80\xff\tx").unwrap());
    outcome.reason = Some(Bytes::from_static(b"Fine by me"));
    let _cart = system.answers(outcome);
    let answer = system.ask("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.reason.as_str()), (299, "Fine by me"));
    assert_eq!(answer.all("set-cookie"), [b"a=1", b"b=2"]);
    assert_eq!(answer.all("x-two"), [b"one", b"two"]);
    assert_eq!(answer.all("x-bytes"), [b"\x80\xff\tx"]);
    assert_eq!(answer.all("date"), [b"then"]);
    assert_eq!(answer.header("content-length").as_deref(), Some("256"));
    assert_eq!(answer.body, every_byte);
}

#[tokio::test]
async fn answers_without_content_keep_their_heads() {
    let system = System::start().await;
    let _cart = system.callee(|call| {
        let mut response = match call.request.target.as_str() {
            "/204" => response(204, &[], b""),
            "/304" => response(304, &[("content-length", "12"), ("etag", "\"x\"")], b""),
            "/304-bare" => response(304, &[("etag", "\"x\"")], b""),
            "/205" => response(205, &[], b""),
            _ => response(200, &[("content-length", "12")], b""),
        };
        response.headers.append("x-mine", "1".parse().unwrap());
        Some(response)
    });
    for (method, path, status, length) in [
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, Some("12")),
        ("GET", "/304-bare", 304, None),
        ("HEAD", "/304", 304, Some("12")),
        ("HEAD", "/", 200, Some("12")),
        ("GET", "/205", 205, Some("0")),
    ] {
        // Two on one connection: the second only works when the first had no body.
        let mut stream = system.connect().await;
        for _ in 0..2 {
            stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: cart\r\n\r\n").as_bytes()).await.unwrap();
            let answer = read_head(&mut stream).await;
            assert_eq!((answer.status, answer.header("content-length").as_deref()), (status, length), "{method} {path}: {answer:?}");
            assert_eq!(answer.header("transfer-encoding"), None, "{method} {path}");
            assert_eq!(answer.header("x-mine").as_deref(), Some("1"));
        }
    }
}

#[tokio::test]
async fn a_recorded_answer_can_not_break_the_framing() {
    let system = System::start().await;
    let _cart = system.answers(response(200, &[("content-length", "1"), ("transfer-encoding", "chunked"), ("connection", "close")], b"five!"));
    let mut stream = system.connect().await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
        assert_eq!(read_response(&mut stream).await.body, b"five!");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let system = System::start_with(|c| c.outbound.max_connections = 1, Component { partitions: 1, ..Component::default() }).await;
    let _cart = system.answers(response(200, &[], b"ok"));
    let (mut first, mut second) = (system.connect().await, system.connect().await);
    let get = b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n";
    first.write_all(get).await.unwrap();
    assert_eq!(read_response(&mut first).await.body, b"ok");
    second.write_all(get).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await.is_err(), "answered beyond the limit");
    drop(first);
    assert_eq!(read_response(&mut second).await.body, b"ok");
}

#[tokio::test]
async fn the_admin_listener_says_how_it_is() {
    let system = System::start().await;
    for (path, status) in [("/metrics", 200), ("/healthz", 200), ("/started", 200), ("/readyz", 200), ("/", 404)] {
        let answer = common::exchange(system.admin, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert_eq!(answer.status, status, "{path}");
    }
    system.client.disconnect();
    let answer = common::exchange(system.admin, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status, 200, "what is ready stays so with the log away");
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let system = System::start().await;
    let mut outcome = response(200, &[], b"body");
    outcome.trailers.append("x-sum", "1".parse().unwrap());
    outcome.trailers.append("x-sum", "2".parse().unwrap());
    let mut cart = system.answers(outcome);
    let chunked = "POST / HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\nTrailer: x-check\r\n";
    let body = "4\r\nbody\r\n0\r\nX-Check: a\r\nHost: forged\r\nBluebox-Caller: forged\r\nX-Check: b\r\n\r\n";
    let answer = system.ask(format!("{chunked}TE: trailers\r\nConnection: TE, close\r\n\r\n{body}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("trailer").as_deref(), Some("x-sum"));
    assert_eq!(String::from_utf8_lossy(&answer.body), "4\r\nbody\r\n0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n");
    let call = cart.next().await;
    let trailers: Vec<_> = call.request.trailers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
    assert_eq!(trailers, [("x-check", &b"a"[..]), ("x-check", b"b")]);
    assert_eq!(call.request.headers["te"], "trailers");

    // Whoever did not say that it takes trailers gets none (RFC 9110, section 6.5.1).
    let answer = system.ask(format!("{chunked}Connection: close\r\n\r\n{body}")).await;
    assert_eq!((answer.header("content-length").as_deref(), &answer.body[..]), (Some("4"), &b"body"[..]), "{answer:?}");
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_it_is_wanted() {
    let system = System::start().await;
    let _cart = system.answers(response(200, &[], b"ok"));
    let mut stream = system.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\nExpect: 100-Continue\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 100);
    stream.write_all(b"body").await.unwrap();
    let answer = read_response(&mut stream).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));

    // With the log away the answer comes without a 100, at once.
    system.client.disconnect();
    let mut stream = system.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 503);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let system = System::start().await;
    let _cart = system.callee(|call| Some(response(200, &[("content-length", "2")], &call.request.target.as_bytes()[..2])));
    let mut stream = system.connect().await;
    let requests: String = (0..5).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: cart\r\n\r\n")).collect();
    stream.write_all(requests.as_bytes()).await.unwrap();
    for i in 0..5 {
        assert_eq!(read_response(&mut stream).await.body, format!("/{i}").as_bytes());
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let system = System::start().await;
    let mut outcome = response(200, &[("x-from", "cart")], b"answer");
    outcome.trailers.append("x-sum", "1".parse().unwrap());
    let mut cart = system.answers(outcome);
    let stream = hyper_util::rt::TokioIo::new(system.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://cart/items").body(http_body_util::Full::new(Bytes::from_static(b"body"))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["x-from"].as_bytes()), (200, &b"cart"[..]));
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "1");
    assert_eq!(body.to_bytes(), "answer");
    let call = cart.next().await.request;
    assert_eq!((call.authority.as_str(), call.target.as_str(), call.body), ("cart", "/items", Body::Inline(Bytes::from_static(b"body"))));
}

#[tokio::test]
async fn large_bodies_travel_beside_the_call() {
    let system = System::start().await;
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    // The callee gives back what it got, through chunks of its own.
    let bulk = Bulk::new(system.log.clone(), system.cart.bulk.partition(0), 64 << 20);
    let mut cart = system.callee(|_| None);
    let request = [format!("PUT / HTTP/1.1\r\nHost: cart\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).into_bytes(), body.clone()].concat();
    let (answer, ()) = tokio::join!(system.ask(&request), async {
        let call = cart.next().await;
        let Body::Bulk(ref chunks) = call.request.body else { panic!("{:?}", call.request.body) };
        assert_eq!(chunks.len_bytes, body.len() as u64);
        assert_eq!(chunks.chunks.len(), body.len().div_ceil(256 << 10));
        let limits = TakeIn { limit_bytes: 4_000_000, idle_timeout: PATIENCE, waits_out: false, least_bytes_per_second: 0, longest: PATIENCE };
        let copied = bulk.take_in(bulk.give_out(call.request.body.clone(), HeaderMap::new()), &limits, None).await.unwrap();
        reply(&*system.log, &call, Response { body: copied.body, ..response(200, &[], b"") }).await;
    });
    assert_eq!(answer.header("content-length").as_deref(), Some("3000000"));
    assert!(answer.body == body);
}

#[tokio::test]
async fn no_outcome_within_the_wait_is_504_and_the_call_goes_on() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let answer = system.ask("POST / HTTP/1.1\r\nHost: cart\r\nPrefer: wait=0\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str(), answer.header("bluebox-retry-safe").as_deref()), (504, "no-outcome-yet", Some("false")));
    let call = cart.next().await;
    assert_eq!(answer.header("bluebox-call-id"), Some(call.id.to_string()));
    assert!(call.ttl > Duration::from_secs(3600));
    let answer = system.ask("GET / HTTP/1.1\r\nHost: cart\r\nPrefer: wait=0\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("bluebox-retry-safe").as_deref()), (504, Some("true")), "a read can be repeated");
}

#[tokio::test]
async fn what_is_known_of_an_append_decides_the_answer() {
    let mut system = System::start().await;
    let _cart = system.answers(response(200, &[], b"ok"));
    let post = "POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    system.client.fail_appends(AppendFault::Refuse, Some(&system.cart.calls));
    let answer = system.ask(post).await;
    assert_eq!((answer.status, answer.problem().as_str(), answer.header("bluebox-retry-safe").as_deref()), (503, "not-accepted", Some("true")), "{answer:?}");
    assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
    assert_eq!(system.log_end().await, 0);

    // The record was lost with its acknowledgement, or only that: nobody knows. What is there has an outcome, and that is waited for.
    system.client.fail_appends(AppendFault::LoseRecord, Some(&system.cart.calls));
    let answer = system.ask(post.replace("Content-Length", "Prefer: wait=1\r\nContent-Length")).await;
    let expected = (504, "acceptance-unknown", Some("false"));
    assert_eq!((answer.status, answer.problem().as_str(), answer.header("bluebox-retry-safe").as_deref()), expected, "{answer:?}");
    assert_eq!(system.log_end().await, 0, "the proxy never appends again by itself");
    for fault in [AppendFault::LoseAck, AppendFault::HoldAck] {
        system.client.fail_appends(fault, Some(&system.cart.calls));
        assert_eq!(system.ask(post).await.status, 200, "{fault:?}: an outcome is as good an acknowledgement as any");
    }
    assert_eq!(system.log_end().await, 2);
    system.client.heal();

    system.client.disconnect();
    let began = std::time::Instant::now();
    let answer = system.ask(post).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "not-accepted"));
    assert!(began.elapsed() < Duration::from_secs(1));
    system.client.reconnect();
    assert_eq!(system.ask(post).await.status, 200, "it goes on by itself when the log is back");
    system.stop.cancel();
    (&mut system.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_large_body_that_can_not_be_stored_is_no_call() {
    let system = System::start().await;
    let bulk = system.config.prefix.topics(&common::name("gateway")).bulk;
    system.client.fail_appends(AppendFault::LoseAck, Some(&bulk));
    let head = "PUT / HTTP/1.1\r\nHost: cart\r\nContent-Length: 600000\r\nConnection: close\r\n\r\n".as_bytes().to_vec();
    let answer = system.ask([head, vec![7; 600_000]].concat()).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "not-accepted"), "{answer:?}");
    assert_eq!(system.log_end().await, 0);
}

#[tokio::test]
async fn the_first_outcome_wins() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let (answer, ()) = tokio::join!(system.ask("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n"), async {
        let call = cart.next().await;
        // One that is for nobody, one that can't be read, and two.
        let stranger = bluebox_core::call::Call { id: bluebox_core::CallId::random(), ..call.clone() };
        reply(&*system.log, &stranger, response(200, &[], b"stranger")).await;
        system.log.append(&call.reply_to.partition, Record::new(Bytes::from_static(b"\xff\xff"))).await.unwrap();
        reply(&*system.log, &call, response(200, &[], b"first")).await;
        reply(&*system.log, &call, response(200, &[], b"second")).await;
    });
    assert_eq!(answer.body, b"first");
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_nothing_unless_it_is_told_to() {
    for cancels in [false, true] {
        let system = System::start_with(|c| c.outbound.cancel_on_disconnect = cancels, Component { partitions: 1, ..Component::default() }).await;
        let mut cart = system.callee(|_| None);
        let mut stream = system.connect().await;
        stream.write_all(b"POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let call = cart.next().await;
        drop(stream);
        let control = system.cart.control.partition(0);
        if cancels {
            let mut reader = system.log.read(&control, Offset::new(0));
            let Some(Read::Entries(entries)) = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap() else { panic!() };
            let entry = ControlEntry::decode(entries[0].record.value.clone().unwrap()).unwrap();
            assert_eq!(entry, ControlEntry::Cancel { id: call.id, offset: Offset::new(0) });
        } else {
            // The connection is gone when the gateway counts none.
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while !system.metrics().await.contains("bluebox_outbound_waiting 0") {
                assert!(tokio::time::Instant::now() < deadline);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(system.log.bounds(&control).await.unwrap().end, Offset::new(0));
        }
    }
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let system = System::start_with(|c| c.outbound.max_waiting = 2, Component { partitions: 1, ..Component::default() }).await;
    let mut cart = system.callee(|_| None);
    let get = "GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n";
    let (first, second, ()) = tokio::join!(system.ask(get), system.ask(get), async {
        let calls = [cart.next().await, cart.next().await];
        let third = system.ask(get).await;
        assert_eq!((third.status, third.problem().as_str()), (503, "too-many-waiting"));
        for call in calls {
            reply(&*system.log, &call, response(200, &[], b"")).await;
        }
    });
    assert_eq!((first.status, second.status), (200, 200));
    // The places are free again.
    let (fourth, ()) = tokio::join!(system.ask(get), async { reply(&*system.log, &cart.next().await, response(200, &[], b"")).await });
    assert_eq!(fourth.status, 200);
}

#[tokio::test]
async fn two_retries_of_a_keyed_call_get_the_same_outcome() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let post = "POST / HTTP/1.1\r\nHost: cart\r\nIdempotency-Key: k\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let (first, second, ()) = tokio::join!(system.ask(post), system.ask(post), async {
        let (one, two) = (cart.next().await, cart.next().await);
        assert_eq!((one.id, one.recorded), (two.id, two.recorded));
        reply(&*system.log, &one, response(200, &[], b"once")).await;
    });
    assert_eq!((first.body, second.body), (b"once".to_vec(), b"once".to_vec()));

    // A later one is pointed to where the outcome lies.
    let (third, ()) = tokio::join!(system.ask(post), async {
        let call = cart.next().await;
        let at = Reply::At { id: call.id, replay: 0, digest: call.recorded.unwrap(), partition: call.reply_to.partition.clone(), offset: Offset::new(0) };
        system.log.append(&call.reply_to.partition, Record::new(at.encode())).await.unwrap();
    });
    assert_eq!(third.body, b"once");
}

/// Both have one id. Who sent other content must not get the answer that is not his.
#[tokio::test]
async fn an_outcome_is_only_for_the_call_with_its_digest() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let post = |body: &str| format!("POST / HTTP/1.1\r\nHost: cart\r\nIdempotency-Key: k\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{body}");
    let (x, y, ()) = tokio::join!(system.ask(post("x")), system.ask(post("y")), async {
        for call in [cart.next().await, cart.next().await] {
            let bluebox_core::Body::Inline(body) = &call.request.body else { panic!() };
            reply(&*system.log, &call, response(200, &[], body)).await;
        }
    });
    assert_eq!((x.body, y.body), (b"x".to_vec(), b"y".to_vec()));
}

#[tokio::test]
async fn respond_async_with_a_wait_answers_within_it() {
    let system = System::start().await;
    let _cart = system.answers(response(200, &[], b"quick"));
    let answer = system.ask("POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async, wait=20\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"quick"[..]));
}

#[tokio::test]
async fn stopping_lets_requests_under_way_end() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let mut stream = system.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
    let call = cart.next().await;
    system.stop.cancel();
    // New connections are refused once intake has stopped.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(system.gateway).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    reply(&*system.log, &call, response(200, &[("content-length", "2")], b"ok")).await;
    let mut raw = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut raw)).await.unwrap().unwrap();
    assert_eq!(Answer::parse(&raw).body, b"ok");
    tokio::time::timeout(PATIENCE, system.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_each_get_their_own() {
    let system = System::start().await;
    // Outcomes come in another order than the calls.
    let mut cart = system.callee(|_| None);
    let callers = 300;
    let answers = futures_util::future::join_all((0..callers).map(|i| {
        let request = format!("POST /{i} HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let system = &system;
        async move { (i, system.ask(request).await) }
    }));
    let answering = async {
        let mut calls = Vec::new();
        for _ in 0..callers {
            calls.push(cart.next().await);
        }
        calls.sort_by_key(|call| call.id);
        for call in calls {
            reply(&*system.log, &call, response(200, &[], call.request.target.as_bytes())).await;
        }
    };
    let (answers, ()) = tokio::join!(answers, answering);
    for (i, answer) in answers {
        assert_eq!(answer.body, format!("/{i}").as_bytes(), "{answer:?}");
    }
    assert!(system.metrics().await.contains("bluebox_outbound_waiting 0"));
}

#[tokio::test]
async fn an_outcome_that_is_not_there_any_more_is_502() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let post = "POST / HTTP/1.1\r\nHost: cart\r\nIdempotency-Key: k\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let unreadable = |answer: &Answer| {
        (answer.status, answer.problem(), answer.header("bluebox-retry-safe")) == (502, "outcome-unreadable".to_owned(), Some("false".to_owned()))
    };
    // Pointed to a record that is no outcome of it.
    let (answer, ()) = tokio::join!(system.ask(post), async {
        let call = cart.next().await;
        let at = Reply::At { id: call.id, replay: 0, digest: call.recorded.unwrap(), partition: system.cart.calls.partition(0), offset: Offset::new(0) };
        system.log.append(&call.reply_to.partition, Record::new(at.encode())).await.unwrap();
    });
    assert!(unreadable(&answer), "{answer:?}");
    // A large answer whose chunks are gone: found out before a head was sent.
    let (answer, ()) = tokio::join!(system.ask(post), async {
        let call = cart.next().await;
        let body = bluebox_core::call::BulkBody { partition: system.cart.calls.partition(0), chunks: vec![Offset::new(0)], len_bytes: 300_000 };
        reply(&*system.log, &call, Response { body: Body::Bulk(body), ..response(200, &[], b"") }).await;
    });
    assert!(unreadable(&answer), "{answer:?}");
}

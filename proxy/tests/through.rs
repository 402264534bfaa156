//! A call all the way: through a gateway, the log, and the proxy of a box, to an app that sees raw bytes, and back.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::net::SocketAddr;

use bluebox_core::log::embedded::Embedded;
use bluebox_core::registry::Component;
use bluebox_proxy::Proxy;
use bluebox_proxy::config::{App, AppProtocol, ProxyConfig, Served};
use common::{Answer, Installation, PATIENCE, exchange, name, read_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A gateway, and a box `cart` whose app listens there.
async fn installation(address: SocketAddr, protocol: AppProtocol) -> Installation {
    Installation::start(App::At { address, protocol }).await
}

/// An app that answers every request on a connection of its own with the same bytes, and hands out what it was sent: head, and body as framed.
async fn app(answer: impl Into<Vec<u8>>) -> (SocketAddr, mpsc::UnboundedReceiver<Answer>) {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, seen) = (answer.clone(), seen.clone());
            tokio::spawn(async move {
                // The proxy looks whether somebody listens, by connecting and hanging up.
                let mut raw = Vec::new();
                while !raw.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    raw.push(byte);
                }
                let mut request = Answer::parse(&raw);
                if let Some(length) = request.header("content-length") {
                    request.body = vec![0; length.parse().unwrap()];
                    stream.read_exact(&mut request.body).await.unwrap();
                } else if request.header("transfer-encoding").is_some() {
                    while !request.body.ends_with(b"\r\n\r\n") || !request.body.windows(5).any(|w| w == b"\r\n0\r\n") {
                        request.body.push(stream.read_u8().await.unwrap());
                    }
                }
                seen.send(request).unwrap();
                stream.write_all(&answer).await.unwrap();
            });
        }
    });
    (address, requests)
}

#[tokio::test]
async fn the_app_sees_what_was_sent_and_the_caller_what_was_answered() {
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut answer =
        b"HTTP/1.1 299 Fine by me\r\nX-Two: 1\r\nSet-Cookie: a\r\nX-Bytes: \x80\xff\r\nX-Two: 2\r\nBluebox-Error: forged\r\nKeep-Alive: timeout=1\r\n\
                       Set-Cookie: b\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nContent-Length: 256\r\n\r\n"
            .to_vec();
    answer.extend_from_slice(&every_byte);
    let (address, mut requests) = app(answer).await;
    let installation = installation(address, AppProtocol::Http1).await;
    let mut request = b"PURGE /a//b/%zz?x[]=1&&y=\xc3\xa4 HTTP/1.1\r\nHost: CART\r\nX-Two: 1\r\nX-Bytes: \x80\xff\r\nX-Two: 2\r\nBluebox-Attempt: 9\r\n\
                        Content-Length: 256\r\nConnection: close\r\n\r\n"
        .to_vec();
    request.extend_from_slice(&every_byte);
    let answer = installation.ask(&request).await;
    assert_eq!((answer.status, answer.reason.as_str()), (299, "Fine by me"), "{answer:?}");
    assert_eq!((answer.all("x-two"), answer.all("set-cookie")), (vec![b"1".to_vec(), b"2".to_vec()], vec![b"a".to_vec(), b"b".to_vec()]));
    assert_eq!(answer.all("x-bytes"), [b"\x80\xff"]);
    assert_eq!(answer.body, every_byte);
    for gone in ["bluebox-error", "keep-alive", "x-hop", "date"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }

    let seen = requests.recv().await.unwrap();
    assert!(seen.raw.starts_with(b"PURGE /a//b/%zz?x[]=1&&y=\xc3\xa4 HTTP/1.1\r\n"), "{seen:?}");
    assert_eq!(seen.body, every_byte);
    assert_eq!((seen.header("host").as_deref(), seen.all("x-two")), (Some("CART"), vec![b"1".to_vec(), b"2".to_vec()]));
    assert_eq!(seen.all("x-bytes"), [b"\x80\xff"]);
    assert_eq!((seen.header("bluebox-attempt").as_deref(), seen.header("bluebox-caller").as_deref()), (Some("1"), Some("gateway")));
    assert_eq!(seen.header("bluebox-call-id").unwrap().len(), 32);
    assert_eq!(seen.header("bluebox-may-have-started"), None);
    installation.stop().await;
}

#[tokio::test]
async fn a_body_of_no_bytes_says_so() {
    let (address, mut requests) = app("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let installation = installation(address, AppProtocol::Http1).await;
    for (request, length) in [
        ("POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\n", Some("0")),
        ("POST / HTTP/1.1\r\nHost: cart\r\n", Some("0")),
        ("GET / HTTP/1.1\r\nHost: cart\r\n", None),
    ] {
        assert_eq!(installation.ask(format!("{request}Connection: close\r\n\r\n")).await.status, 200);
        let seen = requests.recv().await.unwrap();
        assert_eq!((seen.header("content-length").as_deref(), seen.header("transfer-encoding")), (length, None), "{seen:?}");
    }
}

#[tokio::test]
async fn trailers_go_all_the_way() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-back\r\n\r\n1\r\nb\r\n0\r\nX-Back: 2\r\n\r\n";
    let (address, mut requests) = app(answer).await;
    let installation = installation(address, AppProtocol::Http1).await;
    let request = "POST / HTTP/1.1\r\nHost: cart\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n";
    let answer = installation.ask(request).await;
    assert_eq!(String::from_utf8_lossy(&answer.body), "1\r\nb\r\n0\r\nx-back: 2\r\n\r\n", "{answer:?}");
    let seen = requests.recv().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.body), "1\r\na\r\n0\r\nx-sum: 1\r\n\r\n", "{seen:?}");
    assert_eq!((seen.header("te").as_deref(), seen.header("trailer").as_deref()), (Some("trailers"), Some("x-sum")));
}

#[tokio::test]
async fn heads_that_tell_of_a_body_go_all_the_way() {
    for (method, head, status) in
        [("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", 200), ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n", 304)]
    {
        let (address, _requests) = app(head).await;
        let installation = installation(address, AppProtocol::Http1).await;
        let answer = installation.ask(format!("{method} / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((answer.status, answer.header("content-length").as_deref(), &answer.body[..]), (status, Some("12"), &b""[..]), "{answer:?}");
    }
}

#[tokio::test]
async fn large_bodies_go_all_the_way() {
    let body: Vec<u8> = (0..2_000_000u32).map(|i| (i % 241) as u8).collect();
    let (address, mut requests) = app([b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n".to_vec(), body.clone()].concat()).await;
    let installation = installation(address, AppProtocol::Http1).await;
    let head = b"PUT / HTTP/1.1\r\nHost: cart\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n".to_vec();
    let answer = installation.ask([head, body.clone()].concat()).await;
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
    assert!(requests.recv().await.unwrap().body == body);
}

#[tokio::test]
async fn an_outcome_can_be_asked_for_after_a_202() {
    let (address, mut requests) = app("HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nmade").await;
    let installation = installation(address, AppProtocol::Http1).await;
    let accepted = installation.ask("POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!(accepted.status, 202);
    let location = accepted.header("location").unwrap();
    requests.recv().await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = installation.ask(format!("GET {location} HTTP/1.1\r\nHost: bluebox\r\nConnection: close\r\n\r\n")).await;
        if answer.header("bluebox-call-state").as_deref() == Some("ended") {
            assert_eq!((answer.status, &answer.body[..]), (201, &b"made"[..]), "{answer:?}");
            break;
        }
        assert_eq!((answer.status, answer.header("bluebox-call-state").as_deref()), (200, Some("pending")), "{answer:?}");
        assert!(tokio::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn a_call_waits_for_a_component_that_is_just_starting() {
    let log = Embedded::in_memory();
    let run = async |config: ProxyConfig| {
        let proxy = Proxy::bind(config).await.unwrap();
        (proxy.listen(), tokio::spawn(proxy.run(log.clone(), std::future::pending())))
    };
    let (gateway, _gateway) = run(common::config()).await;
    let (app, _requests) = app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (answer, _cart) = tokio::join!(exchange(gateway, b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n"), async {
        let served = Served { name: name("cart"), component: Component::default(), ordinal: None, app: App::At { address: app, protocol: AppProtocol::Http1 } };
        run(ProxyConfig { name: name("cart"), serves: vec![served], ..common::config() }).await
    });
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]), "{answer:?}");
}

#[tokio::test]
async fn an_app_that_speaks_http2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
                let (uri, headers) = (request.uri(), request.headers());
                // The host that was called is `:authority`, and not beside that in another form.
                let host = (uri.authority().unwrap(), headers.get("host"));
                let text = format!("{:?} {host:?} {} {}", request.version(), uri.path_and_query().unwrap(), headers["bluebox-caller"].to_str().unwrap());
                Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(text))))
            });
            let http = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(http.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    let installation = installation(address, AppProtocol::H2c).await;
    // HTTP/2 takes only what is a URI.
    for (sent, arrives) in [("/x?y", "/x?y"), ("/<x>`?q=\"y\"", "/%3Cx%3E%60?q=%22y%22")] {
        let answer = installation.ask(format!("GET {sent} HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(String::from_utf8_lossy(&answer.body), format!("HTTP/2.0 (cart, None) {arrives} gateway"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_is_wanted_before_it_is_sent() {
    let (address, _requests) = app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let installation = installation(address, AppProtocol::Http1).await;
    let mut stream = tokio::net::TcpStream::connect(installation.gateway).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 100);
    stream.write_all(b"body").await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 200);
}

#[tokio::test]
async fn targets_that_are_no_uris_arrive_bit_for_bit() {
    let (address, mut requests) = app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let installation = installation(address, AppProtocol::Http1).await;
    // Every byte that is visible ASCII, but for the '#' of a fragment; and UTF-8.
    let visible: String = (0x21..=0x7eu8).map(char::from).filter(|c| *c != '#').collect();
    for (sent, arrives) in [
        (format!("/{visible}?{visible}"), format!("/{visible}?{visible}")),
        ("/s?q=\"x\"&<\u{e9}>".to_owned(), "/s?q=\"x\"&<\u{e9}>".to_owned()),
        ("http://cart/<x>?`".to_owned(), "/<x>?`".to_owned()),
        ("http://cart?<".to_owned(), "/?<".to_owned()),
        ("/plain?x".to_owned(), "/plain?x".to_owned()),
    ] {
        let body = "x".repeat(100_000);
        let request = format!("POST {sent} HTTP/1.1\r\nHost: cart\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n{body}");
        assert_eq!(installation.ask(request).await.body, b"ok");
        let seen = requests.recv().await.unwrap();
        assert_eq!(String::from_utf8_lossy(seen.raw.split(|b| *b == b'\r').next().unwrap()), format!("POST {arrives} HTTP/1.1"));
        assert_eq!(seen.header("host").as_deref(), Some("cart"), "{seen:?}");
        assert!(seen.body == body.as_bytes());
    }
    installation.stop().await;
}

#[tokio::test]
async fn interim_responses_of_an_app_are_no_part_of_its_outcome() {
    let interims = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 5\r\n\r\n";
    let (address, mut requests) = app(format!("{interims}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let installation = installation(address, AppProtocol::Http1).await;
    let answer = installation.ask("POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("link"), &answer.body[..]), (200, None, &b"ok"[..]), "{answer:?}");
    requests.recv().await.unwrap();
    assert!(requests.try_recv().is_err(), "it was delivered again");
}

#[tokio::test]
async fn an_app_that_speaks_otherwise_than_it_was_asked_has_no_answer() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ] {
        let (address, mut requests) = app(answer).await;
        let installation = installation(address, AppProtocol::Http1).await;
        let answer = installation.ask("POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "answer"), "{answer:?}");
        requests.recv().await.unwrap();
        assert!(requests.try_recv().is_err(), "the app did act, so the call is not delivered again");
    }
}

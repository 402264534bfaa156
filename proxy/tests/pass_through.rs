//! What is no component goes its way as if there were no proxy: streaming, with upgrades and tunnels.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use bluebox_core::registry::{Component, Streams};
use bytes::Bytes;
use common::{PATIENCE, System, read_head, read_response, response};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A server that is played by the test: connections come out of the channel.
async fn server() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, connections) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if sender.send(stream).await.is_err() {
                return;
            }
        }
    });
    (address, connections)
}

/// A connection that holds little of what its client does not read.
async fn small_client(system: &System) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(system.gateway).await.unwrap()
}

/// Sends 48 MB of interim responses, so slowly that they could all be passed on: many more than what fits between a server and a client that reads nothing.
/// How many there were.
async fn flood_with_interims(stream: &mut TcpStream) -> usize {
    const ROUNDS: usize = 1000;
    let interims = format!("HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n", "x".repeat(3000)).repeat(16);
    let sending = async {
        for _ in 0..ROUNDS {
            stream.write_all(interims.as_bytes()).await.unwrap();
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, sending).await.expect("the proxy stopped reading");
    ROUNDS * 16
}

async fn next(connections: &mut mpsc::Receiver<TcpStream>) -> TcpStream {
    tokio::time::timeout(PATIENCE, connections.recv()).await.expect("no connection came").unwrap()
}

async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("the bytes did not come").unwrap();
    bytes
}

#[tokio::test]
async fn requests_and_answers_pass_as_they_are() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    for form in ["/a?b", &format!("http://{address}/a?b")] {
        let request = format!(
            "PURGE {form} HTTP/1.1\r\nHost: {address}\r\nX-Two: 1\r\nContent-Length: 4\r\nX-Two: 2\r\nConnection: x-hop, close\r\nX-Hop: 1\r\n\
             Proxy-Authorization: secret\r\nBluebox-Caller: forged\r\n\r\nbody"
        );
        let (answer, request) = tokio::join!(system.ask(request), async {
            let mut stream = next(&mut connections).await;
            let request = read_response(&mut stream).await;
            stream.write_all(b"HTTP/1.1 299 Quite fine\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 3\r\nConnection: close\r\n\r\nyes").await.unwrap();
            request
        });
        assert_eq!((answer.status, answer.reason.as_str(), &answer.body[..]), (299, "Quite fine", &b"yes"[..]), "{answer:?}");
        assert_eq!(answer.all("set-cookie"), [b"a", b"b"]);
        assert!(request.raw.starts_with(b"PURGE /a?b HTTP/1.1\r\n"), "{request:?}");
        assert_eq!(request.body, b"body");
        assert_eq!(request.header("host"), Some(address.to_string()));
        assert_eq!(request.all("x-two"), [b"1", b"2"]);
        for gone in ["x-hop", "proxy-authorization", "bluebox-caller", "via", "connection"] {
            assert_eq!(request.header(gone), None, "{gone}: {request:?}");
        }
    }
    assert!(system.metrics().await.contains("bluebox_passed_through_total{result=\"forwarded\"} 2"));
}

#[tokio::test]
async fn connections_are_kept_and_heads_without_content_stay_what_they_are() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = system.connect().await;
    let serving = async {
        let mut stream = next(&mut connections).await;
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\nETag: x\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ] {
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        stream
    };
    let asking = async {
        for (method, status, length) in [("HEAD", 200, Some("12")), ("GET", 304, Some("12")), ("GET", 204, None)] {
            client.write_all(format!("{method} / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
            let answer = read_head(&mut client).await;
            assert_eq!((answer.status, answer.header("content-length").as_deref()), (status, length), "{answer:?}");
        }
        client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(read_head(&mut client).await.header("transfer-encoding").as_deref(), Some("chunked"));
        assert_eq!(read_exactly(&mut client, 13).await, b"3\r\nabc\r\n0\r\n\r\n");
    };
    // All four on one connection to the server.
    let _ = tokio::join!(serving, asking);
}

#[tokio::test]
async fn options_of_the_server_stays_an_asterisk() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let (answer, head) = tokio::join!(system.ask(format!("OPTIONS * HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")), async {
        let mut stream = next(&mut connections).await;
        let head = read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n").await.unwrap();
        head
    });
    assert_eq!(answer.status, 204);
    assert!(head.raw.starts_with(b"OPTIONS * HTTP/1.1\r\n"), "{head:?}");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = system.connect().await;
    client.write_all(format!("POST / HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    read_head(&mut stream).await;
    // Each side has what the other sent before the message ends: nothing is gathered on the way.
    assert_eq!(read_exactly(&mut stream, 6).await, b"1\r\na\r\n");
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n").await.unwrap();
    assert_eq!(read_head(&mut client).await.status, 200);
    assert_eq!(read_exactly(&mut client, 6).await, b"1\r\nb\r\n");
    client.write_all(b"1\r\nc\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(read_exactly(&mut stream, 11).await, b"1\r\nc\r\n0\r\n\r\n");
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_exactly(&mut client, 5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn a_large_answer_is_not_gathered() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = system.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    read_head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
    // The client reads nothing, so the server can't send all of it: what lies between them is bounded.
    let mut sent = 0;
    let block = vec![0; 1 << 20];
    while sent < 1_000_000_000 {
        match tokio::time::timeout(Duration::from_millis(500), stream.write(&block)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    assert!(sent < 100 << 20, "{sent} bytes went in with nobody taking them out");
    assert_eq!(read_head(&mut client).await.status, 200);
}

#[tokio::test]
async fn trailers_pass() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nTE: trailers\r\nTrailer: x-sum\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nx-sum: 1\r\n\r\n"
    );
    let (answer, (head, body)) = tokio::join!(system.ask(request), async {
        let mut stream = next(&mut connections).await;
        let head = read_head(&mut stream).await;
        let body = read_exactly(&mut stream, 21).await;
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-back\r\n\r\n1\r\nb\r\n0\r\nx-back: 2\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        (head, body)
    });
    assert_eq!((head.header("te").as_deref(), head.header("connection").as_deref()), (Some("trailers"), Some("TE")), "{head:?}");
    assert_eq!(String::from_utf8_lossy(&body), "1\r\na\r\n0\r\nx-sum: 1\r\n\r\n");
    assert_eq!(String::from_utf8_lossy(&answer.body), "1\r\nb\r\n0\r\nx-back: 2\r\n\r\n", "{answer:?}");
}

#[tokio::test]
async fn upgrades_become_a_pair_of_streams() {
    let system = System::start_with(|c| c.outbound.head_timeout = Duration::from_millis(200), Component { partitions: 1, ..Component::default() }).await;
    let (address, mut connections) = server().await;
    let mut client = system.connect().await;
    let request = format!("GET /chat HTTP/1.1\r\nHost: {address}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    let head = read_head(&mut stream).await;
    assert_eq!(head.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(head.header("connection").map(|c| c.to_ascii_lowercase()).as_deref(), Some("upgrade"));
    assert_eq!(head.header("sec-websocket-key").as_deref(), Some("k"));
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nfirst").await.unwrap();
    let answer = read_head(&mut client).await;
    assert_eq!((answer.status, answer.header("upgrade").as_deref()), (101, Some("websocket")), "{answer:?}");
    assert_eq!(answer.header("sec-websocket-accept").as_deref(), Some("a"));
    assert_eq!(read_exactly(&mut client, 5).await, b"first");
    for (from, to) in [(true, false), (false, true), (true, false)] {
        let message: Vec<u8> = (0..=255).collect();
        let (from, to) = if from && !to { (&mut client, &mut stream) } else { (&mut stream, &mut client) };
        from.write_all(&message).await.unwrap();
        assert_eq!(read_exactly(to, 256).await, message);
        // Longer than a head may take: this is no head any more. The time that passes is what is tested.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(client);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the end of one side is the end of the other");
    assert!(system.metrics().await.contains("bluebox_passed_through_total{result=\"upgraded\"} 1"));
}

#[tokio::test]
async fn an_upgrade_that_the_server_declines_is_an_ordinary_answer() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n");
    let (answer, ()) = tokio::join!(system.ask(request), async {
        let mut stream = next(&mut connections).await;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    });
    assert_eq!((answer.status, &answer.body[..]), (426, &b"no"[..]));
}

#[tokio::test]
async fn connect_makes_a_tunnel() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = system.connect().await;
    // What comes with the head belongs to the tunnel.
    client.write_all(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n\x16\x03").as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    let answer = read_head(&mut client).await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-length").is_none() && answer.header("transfer-encoding").is_none(), "{answer:?}");
    assert_eq!(read_exactly(&mut stream, 2).await, b"\x16\x03");
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(read_exactly(&mut client, 5).await, b"hello");
    // Half closed: the other direction goes on.
    client.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    stream.write_all(b"bye").await.unwrap();
    assert_eq!(read_exactly(&mut client, 3).await, b"bye");
    drop(client);

    let mut cut = system.connect().await;
    cut.write_all(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut cut).await.status, 200);
    system.stop().await;
    assert_eq!(tokio::time::timeout(PATIENCE, cut.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0, "the end of the proxy ends the tunnel");
}

#[tokio::test]
async fn what_is_http_in_a_tunnel_to_a_component_is_a_call() {
    let (address, mut connections) = server().await;
    for streams in [Streams::Refuse, Streams::Pass] {
        let cart = Component { partitions: 1, streams, direct: vec![address.to_string()], ..Component::default() };
        let system = System::start_with(|_| {}, cart).await;
        let mut cart = system.answers(response(200, &[], b"done"));
        let mut client = system.connect().await;
        client.write_all(b"CONNECT cart:80 HTTP/1.1\r\nHost: cart:80\r\n\r\n").await.unwrap();
        let opened = read_head(&mut client).await;
        assert_eq!(opened.status, 200);
        assert!(opened.header("content-length").is_none() && opened.header("transfer-encoding").is_none(), "{opened:?}");
        for path in ["/one", "/two"] {
            client.write_all(format!("POST {path} HTTP/1.1\r\nHost: cart\r\nContent-Length: 1\r\n\r\nx").as_bytes()).await.unwrap();
            let answer = read_response(&mut client).await;
            assert_eq!((answer.status, &answer.body[..]), (200, &b"done"[..]), "{answer:?}");
            assert_eq!(cart.next().await.request.target, path, "through the log");
        }
        // What is no call goes where it would go on any connection.
        client.write_all(b"GET /v1/calls/none HTTP/1.1\r\nHost: bluebox\r\n\r\n").await.unwrap();
        assert_eq!(read_response(&mut client).await.status, 400, "Bluebox itself: that is no id");
        // A tunnel in a tunnel, with what is said in it sent at once.
        let nested = b"CONNECT bluebox:80 HTTP/1.1\r\nHost: bluebox:80\r\n\r\nCONNECT cart:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /three HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n";
        client.write_all(nested).await.unwrap();
        assert_eq!((read_head(&mut client).await.status, read_head(&mut client).await.status), (200, 200));
        assert_eq!(&read_response(&mut client).await.body[..], b"done");
        assert_eq!(cart.next().await.request.target, "/three");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "closed, as was asked for");
        system.stop().await;
    }
    assert!(connections.try_recv().is_err(), "nothing went past the log");
}

#[tokio::test]
async fn what_is_no_http_in_a_tunnel_to_a_component_passes_where_it_says_so() {
    let (address, mut connections) = server().await;
    for (streams, sent_with_the_head) in [(Streams::Pass, false), (Streams::Pass, true), (Streams::Refuse, false)] {
        let cart = Component { partitions: 1, streams, direct: vec![address.to_string()], ..Component::default() };
        let system = System::start_with(|_| {}, cart).await;
        let mut client = system.connect().await;
        client
            .write_all([&b"CONNECT cart:80 HTTP/1.1\r\nHost: cart:80\r\n\r\n"[..], if sent_with_the_head { b"\x16\x03" } else { b"" }].concat().as_slice())
            .await
            .unwrap();
        assert_eq!(read_head(&mut client).await.status, 200);
        if !sent_with_the_head {
            client.write_all(b"\x16\x03").await.unwrap();
        }
        if streams == Streams::Pass {
            let mut stream = next(&mut connections).await;
            assert_eq!(read_exactly(&mut stream, 2).await, b"\x16\x03");
            stream.write_all(b"hello").await.unwrap();
            assert_eq!(read_exactly(&mut client, 5).await, b"hello");
        } else {
            assert_eq!(read_head(&mut client).await.status, 400, "it is read as HTTP");
        }
        system.stop().await;
    }
    assert!(connections.try_recv().is_err());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_502() {
    let system = System::start_with(|c| c.outbound.connect_timeout = Duration::from_millis(300), Component { partitions: 1, ..Component::default() }).await;
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let answer = system.ask(format!("GET / HTTP/1.1\r\nHost: {free}\r\nConnection: close\r\n\r\n")).await;
    assert_eq!((answer.status, answer.problem().as_str(), answer.header("bluebox-retry-safe").as_deref()), (502, "pass-through-failed", Some("true")));
    let answer = system.ask(format!("CONNECT {free} HTTP/1.1\r\nHost: {free}\r\nConnection: close\r\n\r\n")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "pass-through-failed"), "{answer:?}");

    // A server that breaks off: nobody knows what it did.
    let (address, mut connections) = server().await;
    let (answer, ()) = tokio::join!(system.ask(format!("POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")), async {
        read_head(&mut next(&mut connections).await).await;
    });
    assert_eq!((answer.status, answer.header("bluebox-retry-safe").as_deref()), (502, Some("false")), "{answer:?}");
}

#[tokio::test]
async fn pass_through_works_with_the_log_away() {
    let system = System::start().await;
    system.client.disconnect();
    let (address, mut connections) = server().await;
    let (answer, ()) = tokio::join!(system.ask(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")), async {
        let mut stream = next(&mut connections).await;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    });
    assert_eq!(answer.body, b"ok");
}

#[tokio::test]
async fn streams_to_a_component_pass_where_it_says_so() {
    let (address, mut connections) = server().await;
    let cart = Component { partitions: 1, streams: Streams::Pass, direct: vec![address.to_string()], ..Component::default() };
    let system = System::start_with(|_| {}, cart).await;
    let mut client = system.connect().await;
    client.write_all(b"GET /chat HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
    let mut stream = next(&mut connections).await;
    assert_eq!(read_head(&mut stream).await.header("host").as_deref(), Some("cart"));
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi").await.unwrap();
    assert_eq!(read_head(&mut client).await.status, 101);
    assert_eq!(read_exactly(&mut client, 2).await, b"hi");
    // What can be durable still is.
    let mut callee = system.answers(common::response(200, &[], b"durable"));
    assert_eq!(system.ask("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await.body, b"durable");
    callee.next().await;
    assert!(system.metrics().await.contains("bluebox_streams_total{result=\"passed\"} 1"));
}

#[tokio::test]
async fn grpc_passes_over_http2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
            assert_eq!(request.version(), http::Version::HTTP_2);
            let mut trailers = http::HeaderMap::new();
            trailers.append("grpc-status", "0".parse().unwrap());
            let body = http_body_util::Full::new(Bytes::from_static(b"message")).with_trailers(std::future::ready(Some(Ok(trailers))));
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await.unwrap();
    });
    let system = System::start().await;
    let stream = TokioIo::new(system.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/pkg.Service/Method")).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(http_body_util::Full::new(Bytes::from_static(b"question"))).unwrap();
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "message");
}

#[tokio::test]
async fn expect_continue_passes() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let post = format!("POST / HTTP/1.1\r\nHost: {address}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    let mut client = system.connect().await;
    client.write_all(post.as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    assert_eq!(read_head(&mut stream).await.header("expect").as_deref(), Some("100-continue"));
    stream.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await.unwrap();
    assert_eq!(read_head(&mut client).await.status, 417, "a body that the server does not want is not asked for");

    let mut client = system.connect().await;
    client.write_all(post.as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    read_head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut client).await.status, 100);
    client.write_all(b"body").await.unwrap();
    assert_eq!(read_exactly(&mut stream, 4).await, b"body");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut client).await.status, 200);
}

#[tokio::test]
async fn interim_responses_pass_at_once() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = system.connect().await;
    let mut to_server = None;
    for _ in 0..2 {
        client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
        let mut stream = match to_server.take() {
            None => next(&mut connections).await,
            Some(stream) => stream,
        };
        read_head(&mut stream).await;
        let hints =
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 9\r\nBluebox-Error: forged\r\n\r\n";
        stream.write_all(hints.as_bytes()).await.unwrap();
        // It is here before there is anything else to send.
        let interim = read_head(&mut client).await;
        assert_eq!((interim.status, interim.all("link")), (103, vec![b"</a>".to_vec(), b"</b>".to_vec()]), "{interim:?}");
        assert_eq!(interim.headers.len(), 2, "{interim:?}");
        // 100 is what the proxy itself asks for, and this client expects none.
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n").await.unwrap();
        assert_eq!(read_head(&mut client).await.status, 102);
        stream.write_all(b"HTTP/1.1 199 \r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        assert_eq!(read_head(&mut client).await.status, 199);
        assert_eq!(read_response(&mut client).await.body, b"ok");
        to_server = Some(stream);
    }
}

#[tokio::test]
async fn http_1_0_gets_no_interim_responses() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let (answer, ()) = tokio::join!(system.ask(format!("GET / HTTP/1.0\r\nHost: {address}\r\n\r\n")), async {
        let mut stream = next(&mut connections).await;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    });
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]), "{answer:?}");
    assert!(answer.raw.starts_with(b"HTTP/1.0 200"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_stay_between_the_answers_of_pipelined_requests() {
    const REQUESTS: usize = 60;
    let system = System::start().await;
    let (address, mut connections) = server().await;
    // Answers of very different sizes, some larger than what the sockets hold: so hyper is often in the middle of one when the next request is there.
    let size = |n: usize| [0, 1, 70_000, 3, 900_000][n % 5];
    tokio::spawn(async move {
        while let Some(mut stream) = connections.recv().await {
            tokio::spawn(async move {
                loop {
                    let mut raw = Vec::new();
                    while !raw.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        raw.push(byte);
                    }
                    let text = String::from_utf8(raw).unwrap();
                    let n: usize = text.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
                    for hint in 0..n % 4 {
                        let interim = format!("HTTP/1.1 103 Early Hints\r\nx-of: {n}-{hint}\r\n\r\n");
                        stream.write_all(interim.as_bytes()).await.unwrap();
                    }
                    let head = format!("HTTP/1.1 200 OK\r\nx-of: {n}\r\nContent-Length: {}\r\n\r\n", size(n));
                    stream.write_all(&[head.into_bytes(), vec![b'H'; size(n)]].concat()).await.unwrap();
                }
            });
        }
    });
    let mut client = system.connect().await;
    let requests: String = (0..REQUESTS).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: {address}\r\n\r\n")).collect();
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut client = tokio::io::BufReader::with_capacity(1000, client);
    for n in 0..REQUESTS {
        let mut interims = 0;
        loop {
            let mut raw = Vec::new();
            while !raw.ends_with(b"\r\n\r\n") {
                raw.push(tokio::time::timeout(PATIENCE, client.read_u8()).await.expect("no answer comes").unwrap());
            }
            let head = common::Answer::parse(&raw);
            if head.status == 103 {
                assert_eq!(head.header("x-of").as_deref(), Some(&*format!("{n}-{interims}")), "{head:?}");
                interims += 1;
                continue;
            }
            assert_eq!((head.status, head.header("x-of")), (200, Some(n.to_string())), "{head:?}");
            let mut body = vec![0; size(n)];
            tokio::time::timeout(PATIENCE, client.read_exact(&mut body)).await.expect("no body comes").unwrap();
            assert!(body.iter().all(|b| *b == b'H'), "something got into the body of {n}");
            break;
        }
        assert_eq!(interims, n % 4);
    }
}

#[tokio::test]
async fn interim_responses_that_nobody_takes_are_dropped() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = small_client(&system).await;
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    read_head(&mut stream).await;
    let sent = flood_with_interims(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let mut raw = Vec::new();
    tokio::time::timeout(PATIENCE, client.read_to_end(&mut raw)).await.unwrap().unwrap();
    let text = String::from_utf8(raw).unwrap();
    let heads: Vec<&str> = text.split("\r\n\r\n").collect();
    let (last, interims) = heads[..heads.len() - 1].split_last().unwrap();
    assert!(last.starts_with("HTTP/1.1 200 OK\r\n") && heads.last() == Some(&"ok"), "{last}");
    assert!(interims.iter().all(|i| i.starts_with("HTTP/1.1 103 Early Hints\r\nlink: <xxx") && i.len() < 3100), "one has been torn");
    assert!(!interims.is_empty() && interims.len() < sent / 2, "{}", interims.len());
}

#[tokio::test]
async fn targets_that_are_no_uris_pass_bit_for_bit() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let target = "/<a>?q=\"x\"&`{|}^\\\u{e9}";
    for form in [target.to_owned(), format!("http://{address}{target}")] {
        let (answer, head) = tokio::join!(system.ask(format!("GET {form} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")), async {
            let mut stream = next(&mut connections).await;
            let head = read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            head
        });
        assert_eq!(answer.status, 103, "{answer:?}");
        assert!(answer.body.ends_with(b"ok"), "{answer:?}");
        assert!(head.raw.starts_with(format!("GET {target} HTTP/1.1\r\nhost: {address}\r\n").as_bytes()), "{head:?}");
    }
}

#[tokio::test]
async fn what_is_sent_before_a_switch_is_decided_waits_for_it() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    // Not only does it not look like HTTP: it is more than a head may be, and has an empty line.
    let hello: Vec<u8> = b"\x16\x03\n\n".iter().copied().chain((0..200_000u32).map(|i| (i % 251) as u8)).collect();
    let mut client = system.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    read_head(&mut stream).await;
    let (mut read, mut write) = client.into_split();
    let sending = tokio::spawn({
        let hello = hello.clone();
        async move {
            write.write_all(&hello).await.unwrap();
            write
        }
    });
    stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.unwrap();
    let mut interim = [0; 28];
    tokio::time::timeout(PATIENCE, read.read_exact(&mut interim)).await.unwrap().unwrap();
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
    assert!(read_exactly(&mut stream, hello.len()).await == hello);
    sending.await.unwrap();

    // And if there is no switch, it is the next request.
    let offer = "Connection: Upgrade\r\nUpgrade: x\r\n";
    let two = format!("GET /1 HTTP/1.1\r\nHost: {address}\r\n{offer}\r\nGET /2 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let (answer, ()) = tokio::join!(system.ask(two), async {
        let mut stream = next(&mut connections).await;
        for body in ["a", "b"] {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{body}").as_bytes()).await.unwrap();
        }
    });
    let text = String::from_utf8_lossy(&answer.raw).into_owned();
    assert_eq!((text.matches("HTTP/1.1 200 OK").count(), text.ends_with('b')), (2, true), "{text}");
}

#[tokio::test]
async fn answers_framed_in_two_ways_are_read_in_one() {
    let system = System::start().await;
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (fields, body, status, arrives) in [
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", chunks, 200, chunks),
        ("Content-Length: 9\r\nTransfer-Encoding: chunked\r\n", chunks, 200, chunks),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello", 200, "hello"),
        ("Transfer-Encoding: identity\r\n", "hello", 200, chunks),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello", 502, ""),
        ("Transfer-Encoding: gzip, chunked\r\n", chunks, 502, ""),
        ("Transfer-Encoding: gzip\r\n", "hello", 502, ""),
    ] {
        let (address, mut connections) = server().await;
        let (answer, ()) = tokio::join!(system.ask(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")), async {
            let mut stream = next(&mut connections).await;
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}").as_bytes()).await.unwrap();
        });
        assert_eq!(answer.status, status, "{fields:?}: {answer:?}");
        let framings = answer.all("content-length").len() + answer.all("transfer-encoding").len();
        assert_eq!(framings, 1, "{fields:?}: {answer:?}");
        if status == 200 {
            assert_eq!(String::from_utf8_lossy(&answer.body), arrives, "{fields:?}: {answer:?}");
        } else {
            assert_eq!(answer.problem(), "pass-through-failed");
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_no_answer_is_not_kept_for_ever() {
    let system = System::start().await;
    let (address, mut connections) = server().await;
    let mut client = small_client(&system).await;
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut stream = next(&mut connections).await;
    read_head(&mut stream).await;
    flood_with_interims(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let until = async |line: &str| {
        let waiting = async {
            while !system.metrics().await.contains(line) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("the metrics never say {line}"));
    };
    until("bluebox_passed_through_total{result=\"forwarded\"} 1").await;
    until("bluebox_outbound_connections 1").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1300)).await;
    tokio::time::resume();
    until("bluebox_outbound_connections 0").await;
}

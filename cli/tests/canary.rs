//! No secret gets into what is logged, at the level of most words, nor into the metrics or traces: real processes, and one secret everywhere where apps have theirs.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::{DEADLINE, Place, request};
use nix::sys::signal::Signal;

const SECRET: &str = "kanarienvogel";

/// Sends bytes, and reads until the other side closes or has nothing to say.
fn send(to: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Takes what proxies send of traces: the bodies of all requests.
fn collector() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, all) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&all);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut length = 0;
                    loop {
                        let mut line = String::new();
                        if stream.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(bytes) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = bytes.trim().parse().unwrap();
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).unwrap();
                    kept.lock().unwrap().extend(body);
                    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    (at, all)
}

#[test]
fn no_secret_is_logged_counted_or_traced() {
    let yaml = "boxes:\n  cart: {command: [python3, app.py], partitions: 4, max-attempts: 2, first-backoff: 10ms}\n  web: {command: [python3, app.py], partitions: 4}\n";
    let place = Place::with(yaml);
    let mut command = place.command();
    let (collector, spans) = collector();
    command.args(["--proxy-log-level=trace"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}")).env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization={SECRET}"));
    let mut up = place.run(command);
    up.wait_until_up();
    let gateway = up.gateway();
    let secret = |name: &str| format!("{name}: {SECRET}");
    let fields =
        ["Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "Idempotency-Key", "bluebox-ordering-key", "Forwarded", "traceparent", "baggage"]
            .map(secret);
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let url = |path: &str| format!("http://cart{path}?token={SECRET}");

    // A call that goes well, the same again, and another with its key.
    for body in [SECRET, SECRET, "other"] {
        request(gateway, "POST", &url("/items"), &fields, body);
    }
    // One app calls another; a large body; a caller that asks later; one whose box breaks it off until it is a dead letter; one that nobody can answer.
    let (head, _) = request(gateway, "POST", &format!("http://web/call?http://cart/items?token={SECRET}"), &fields[..4], "");
    assert!(head.contains(" 200 "), "{head}");
    request(gateway, "POST", &url("/items"), &fields[..4], &SECRET.repeat(40_000));
    request(gateway, "POST", &url("/items"), &["Prefer: respond-async"], SECRET);
    let (head, _) = request(gateway, "POST", "http://cart/broken", &fields[..4], SECRET);
    assert!(head.contains(" 502 "), "{head}");
    request(gateway, "GET", &format!("http://bluebox/v1/calls/{SECRET}"), &fields[..4], "");
    // Past the log: a server that there is, and one that is not.
    let app = up.unit("cart-0").unwrap().port;
    request(gateway, "POST", &format!("http://127.0.0.1:{app}/items?token={SECRET}"), &fields[..4], SECRET);
    request(gateway, "POST", &format!("http://127.0.0.1:1/items?token={SECRET}"), &fields[..4], SECRET);
    // What is refused.
    let to = gateway.to_string();
    for head in [
        format!("GET http://user:{SECRET}@cart/ HTTP/1.1\r\nHost: cart"),
        format!("GET / HTTP/1.1\r\nHost: user:{SECRET}@cart"),
        format!("GET / HTTP/1.1\r\nHost: cart\r\nAuthorization: {SECRET}\u{1}"),
        format!("GET / HTTP/1.1\r\nHost: cart\r\nIdempotency-Key: {SECRET}\r\nIdempotency-Key: {SECRET}"),
    ] {
        let answer = send(&to, &format!("{head}\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"), "{head:?}: {answer}");
    }

    let state = up.state().unwrap();
    let admins: Vec<String> = state["units"].as_array().unwrap().iter().filter_map(|unit| Some(unit["admin"].as_str()?.to_owned())).collect();
    assert!(admins.len() >= 3, "{state}");
    for admin in admins {
        let metrics = send(&admin, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(metrics.contains("bluebox_outbound_waiting") && !metrics.contains(SECRET), "{metrics}");
    }
    up.signal(Signal::SIGINT);
    let (_, said) = up.ended();
    assert!(said.contains("a call became a dead letter") && said.contains("refused a request"), "this looks at nothing");
    let numbers = format!("{:?}", SECRET.as_bytes());
    let told: Vec<&str> = said.lines().filter(|line| line.contains(SECRET) || line.contains(numbers.trim_matches(['[', ']']))).collect();
    assert!(told.is_empty(), "{told:#?}");
    let spans = spans.lock().unwrap();
    let there = |text: &str| spans.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(there("process bluebox.cart.calls") && there("send bluebox.cart.dead-letters") && there("/items"), "this looks at nothing");
    assert!(!there(SECRET), "a secret is in a span");
}

//! `bluebox proxy` as a process: what it refuses, what it says when the log is away, and how it ends.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{DEADLINE, bluebox, get_through, run, send, wait_until};
use nix::sys::signal::Signal;

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A proxy, and what it says on standard error.
struct Proxy {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    listen: SocketAddr,
}

impl Proxy {
    fn start(arguments: &[&str]) -> Self {
        let listen = nobody();
        let mut command: Command = bluebox();
        let mut child = command.args(["proxy", "--listen", &listen.to_string()]).args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = std::sync::mpsc::channel();
        let from = child.stderr.take().unwrap();
        std::thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        Self { child, lines, listen }
    }

    fn expect(&self, text: &str) -> String {
        let mut said = String::new();
        loop {
            let line = self.lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("it did not say {text:?}, but:\n{said}"));
            if line.contains(text) {
                return line;
            }
            said.push_str(&line);
            said.push('\n');
        }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn exit_code(&mut self) -> Option<i32> {
        wait_until("the proxy has ended", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_wrong_with_its_flags() {
    for (arguments, says) in [
        (&["--serve", "cart=127.0.0.1:8080"][..], "--brokers HOST:PORT for Kafka"),
        (&["--brokers", "localhost"], "HOST:PORT, such as 127.0.0.1:9092"),
        (&["--brokers", "a:1", "--log-socket", "b"], "cannot be used with"),
        (&["--brokers", "a:1", "--serve", "Cart!=127.0.0.1:80"], "component \"Cart!\": names are lower-case DNS labels"),
        (&["--brokers", "a:1", "--name", "bluebox"], "reserved"),
        (&["--brokers", "a:1", "--attempt-timeout", "300"], "`300s`"),
        (&["--brokers", "a:1", "--control", "0.0.0.0:4142"], "on loopback only"),
        (&["--brokers", "a:1", "--ttl", "100h"], "keep-calls (2days) must be above ttl (4days 4h)"),
        (&["--brokers", "a:1", "--serve", "a=127.0.0.1:1", "--serve", "a=127.0.0.1:2"], "component `a` is served twice"),
        (&["--brokers", "a:1", "--log-level", "loud=very"], "--log-level"),
        (&["--brokers", "a:1", "--kafka-properties", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--brokers", "a:1", "--topic-prefix", "a b"], "topic prefix"),
    ] {
        let (status, said) = run(bluebox().arg("proxy").args(arguments));
        assert!(!status.success(), "{arguments:?}");
        assert!(said.contains(says), "{arguments:?}: expected {says:?} in\n{said}");
    }
}

#[test]
fn a_port_that_is_taken() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) = run(bluebox().args(["proxy", "--brokers", "127.0.0.1:1", "--listen", &address]));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&format!("{address}: can't listen there")), "{said}");
}

#[test]
fn a_log_that_is_not_there_is_told_within_seconds_and_calls_get_503() {
    let broker = nobody().to_string();
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("none.sock").display().to_string();
    for (arguments, says) in
        [(["--brokers", &broker], format!("Kafka at {broker} can't be reached")), (["--log-socket", &socket], format!("{socket} can't be reached"))]
    {
        let began = Instant::now();
        let mut proxy = Proxy::start(&arguments);
        let line = proxy.expect(&says);
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
        assert!(line.contains("Still trying"), "{line}");
        let began = Instant::now();
        let (status, body) = get_through(proxy.listen, "http://cart/");
        assert_eq!(status, 503, "{body}");
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
        // And it can still be ended in good order.
        send(proxy.pid(), Signal::SIGTERM);
        assert_eq!(proxy.exit_code(), Some(0));
    }
}

#[test]
fn configured_by_environment_alone() {
    let (listen, place) = (nobody(), tempfile::tempdir().unwrap());
    let mut command = bluebox();
    command.arg("proxy").env("BLUEBOX_LISTEN", listen.to_string()).env("BLUEBOX_LOG_SOCKET", place.path().join("none"));
    let mut child =
        command.env("BLUEBOX_SERVE", "a=127.0.0.1:1 b=127.0.0.1:2,partitions=3").env("BLUEBOX_LOG_FORMAT", "json").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(first["level"].is_string() && first["fields"].is_object(), "{first}");
    wait_until("it listens", || std::net::TcpStream::connect(listen).ok());
    send(i32::try_from(child.id()).unwrap(), Signal::SIGINT);
    // What it still says must not hold it up.
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.join().unwrap().contains("asked to end"));
}

#[test]
fn it_is_told_to_drain_even_with_the_log_away() {
    let (control, app) = (nobody().to_string(), nobody());
    let (status, said) = run(bluebox().args(["drain", "--control", &control]));
    assert!(status.code() == Some(1) && said.contains("nobody listens") && said.contains("--control"), "{said}");
    let proxy = Proxy::start(&["--brokers", &nobody().to_string(), "--control", &control, "--serve", &format!("cart={app}")]);
    proxy.expect("can't be reached");
    let (status, said) = run(bluebox().args(["drain", "--control", &control, "--within", "30s"]));
    assert!(status.success(), "{said}");
    proxy.expect("asked to drain");
}

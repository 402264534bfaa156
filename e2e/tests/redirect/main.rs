//! The redirect with real clients in network namespaces: a pod with its proxy and the rules, and servers outside of it.
//!
//! `make test-redirect`, as root. A component is called by curl and Python, which know nothing of Bluebox; so is everything that is no component, and it must not notice.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "tests: one that can't go on ends, and each is named by what it shows")]

mod scene;
mod servers;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bluebox_e2e::app::content;
use bluebox_e2e::{App, LogKind, Process, Proxy, World, eventually, within};
use domain::base::Name;
use domain::base::iana::{Rcode, Rtype};
use domain::base::message::Message;
use domain::base::message_builder::MessageBuilder;
use http::Response;
use scene::{PROXY_UID, Scene, at};
use servers::Nameserver;
use std::str::FromStr as _;

/// The names that the nameserver outside knows.
const NAMES: &[(&str, &[&str])] = &[
    ("web.example", &["10.77.0.2", "fd77::2"]),
    ("large.example", &[]),
    // A Service that is a component too: its address, and a server there.
    ("stock.shop.svc.cluster.local", &["10.77.0.10"]),
    // A headless one: the addresses of its pods.
    ("shard.shop.svc.cluster.local", &["10.77.0.11", "10.77.0.12"]),
    // A component whose Service has no pods.
    ("empty.shop.svc.cluster.local", &[]),
    // A Service that is no component.
    ("plain.shop.svc.cluster.local", &["10.77.0.2"]),
];

/// All that runs.
struct Pod {
    scene: Scene,
    app: App,
    proxy: Option<Process>,
    nameserver: Option<Nameserver>,
    _serves: Proxy,
}

fn here(name: &str) -> bool {
    let missing = scene::missing();
    if let Some(why) = &missing {
        bluebox_e2e::left_out(&format!("the redirect: {name}"), why);
    }
    missing.is_none()
}

impl Pod {
    /// A pod whose proxy runs, with the rules in place; servers outside; and components that another proxy serves.
    async fn start(world: &World) -> Self {
        let app = world.app("callee").await;
        app.rule(|asked| {
            Some(Response::new(content(format!("the app: {} of {} at attempt {}\n", asked.target, asked.header("host"), asked.header("bluebox-attempt")))))
        });
        let serve = |spec: bluebox_e2e::ProxySpec, name: &str, more: &str| spec.flag("--serve", &format!("{name}={},partitions=1{more}", app.address()));
        let spec = world.proxy("callee");
        let spec = serve(spec, "cart", "");
        let spec = serve(spec, "stock", ",ports=80+2525+8888");
        let spec = serve(spec, "shard", "");
        let spec = serve(spec, "empty", "");
        let serves = spec.start().await;

        let scene = Scene::new(world, true);
        let outside = &*scene.outside;
        for (address, name) in
            [(at(2, 8080), "outside"), (at(3, 8080), "excluded"), (at(10, 80), "stock's pod"), (at(10, 9090), "stock's metrics"), (at(11, 8080), "a shard")]
        {
            servers::http(outside, address, name);
        }
        servers::http(outside, at(12, 8080), "a shard");
        servers::http(outside, "[fd77::2]:8080".parse().unwrap(), "outside");
        servers::greeter(outside, at(2, 2525));
        servers::greeter(outside, at(10, 2525));
        servers::counter(outside, at(2, 7007));
        servers::breaker(outside, at(2, 7008));
        let nameserver = Nameserver::start(outside, &[at(53, 53), "[fd77::53]:53".parse().unwrap()], NAMES);
        scene.redirect_all(&[]).await;
        let proxy = scene.proxy().await;
        let pod = Self { scene, app, proxy: Some(proxy), nameserver: Some(nameserver), _serves: serves };
        eventually("the pod's proxy knows the components", || async {
            let answer = pod.scene.curl(&["-x", "http://127.0.0.1:4140", "http://empty/ready"]).await;
            answer.out.starts_with("the app: /ready").then_some(())
        })
        .await;
        pod
    }

    fn asked_nameserver(&self) -> Vec<String> {
        self.nameserver.as_ref().unwrap().asked()
    }
}

/// Things to check that don't get into each other's way.
macro_rules! checks {
    ($world:ident, [$($check:ident),* $(,)?]) => {{
        let mut pod = Pod::start(&$world).await;
        $(
            println!("{}", stringify!($check));
            $check(&mut pod).await;
        )*
    }};
}

#[test]
fn calls_are_caught() {
    if here("calls_are_caught") {
        bluebox_e2e::run(LogKind::Embedded, "calls_are_caught", |world| async move {
            checks!(
                world,
                [
                    components_without_a_service,
                    h2c_to_a_component,
                    a_service_that_is_a_component_and_its_metrics,
                    pods_of_a_headless_service,
                    a_component_whose_service_has_no_pods,
                    a_client_that_begins_late,
                    websocket_to_a_component_is_refused,
                    at_the_address_of_components_nothing_else_is,
                    bluebox_itself,
                    a_proxy_that_starts_again,
                    a_proxy_that_starts_with_the_log_away,
                ]
            );
        });
    }
}

#[test]
fn all_else_passes_as_if_nobody_were_there() {
    if here("all_else_passes_as_if_nobody_were_there") {
        bluebox_e2e::run(LogKind::Embedded, "all_else_passes", |world| async move {
            checks!(
                world,
                [
                    rules_twice_are_as_once,
                    http_to_others,
                    server_first,
                    tls,
                    h2c_to_others,
                    websocket_to_others,
                    half_closed_and_broken_off,
                    a_refused_destination,
                    a_port_that_is_tried,
                    excluded_ports_and_networks_and_loopback,
                    the_proxys_own_user,
                    the_transparent_port_itself,
                    ipv6,
                    a_proxy_whose_user_the_rules_do_not_know,
                    a_proxy_that_ends,
                ]
            );
        });
    }
}

#[test]
fn names_are_answered() {
    if here("names_are_answered") {
        bluebox_e2e::run(LogKind::Embedded, "names_are_answered", |world| async move {
            checks!(world, [forwarded_names, truncated_answers, what_is_no_query, kinds_of_answers, a_dead_nameserver]);
        });
    }
}

#[test]
fn a_pod_without_ipv6() {
    if here("a_pod_without_ipv6") {
        bluebox_e2e::run(LogKind::Embedded, "a_pod_without_ipv6", |world| async move {
            let scene = Scene::new(&world, false);
            let _nameserver = Nameserver::start(&scene.outside, &[at(53, 53)], NAMES);
            servers::http(&scene.outside, at(2, 8080), "outside");
            scene.redirect_all(&[]).await;
            let _proxy = scene.proxy().await;
            scene.curl(&["http://web.example:8080/"]).await.says("outside: HTTP/1.1 / of web.example:8080");
            scene.python("import socket; print({a[4][0] for a in socket.getaddrinfo('bluebox', 80)})").await.says("{'240.187.85.1'}");
        });
    }
}

// What is caught.

async fn components_without_a_service(pod: &mut Pod) {
    let before = pod.scene.decided("components without a Service").await;
    for host in ["cart", "cart.shop", "cart.shop.svc.cluster.local", "CART"] {
        pod.scene.curl(&[&format!("http://{host}/items?of={host}")]).await.says(&format!("the app: /items?of={host} of {host} at attempt 1"));
    }
    assert_eq!(pod.scene.decided("components without a Service").await, before + 4);
    let python = "import urllib.request as r; print(r.urlopen(r.Request('http://cart/post', data=b'x' * 300000)).read().decode())";
    pod.scene.python(python).await.says("the app: /post of cart at attempt 1");
    assert_eq!(pod.app.ledger().last().unwrap().body.len(), 300_000);
    // What is no component has no such address, once all is read and young no more; what is one has it at its ports only.
    let other = pod.scene.curl(&["http://cart:9090/"]).await;
    assert!(other.was_reset(), "{other:?}");
    let wrong = pod.scene.curl(&["-H", "Host: nobody.example", "http://cart/"]).await;
    assert!(wrong.out.contains("pass-through-failed") && wrong.out.contains("is no component"), "{wrong:?}");
}

async fn h2c_to_a_component(pod: &mut Pod) {
    pod.scene.curl(&["--http2-prior-knowledge", "http://cart/h2c"]).await.says("the app: /h2c of cart at attempt 1");
    pod.scene.curl(&["--http2-prior-knowledge", "http://stock/h2c"]).await.says("the app: /h2c of stock at attempt 1");
    // Offered, and not taken: RFC 9110, section 7.8, allows that.
    pod.scene.curl(&["--http2", "http://cart/offer"]).await.says("the app: /offer of cart at attempt 1");
}

async fn a_service_that_is_a_component_and_its_metrics(pod: &mut Pod) {
    pod.scene.python("import socket; print(socket.gethostbyname('stock'))").await.says("10.77.0.10");
    pod.scene.curl(&["http://stock/buy"]).await.says("the app: /buy of stock at attempt 1");
    pod.scene.curl(&["http://stock.shop.svc.cluster.local/buy"]).await.says("the app: /buy of stock.shop.svc.cluster.local");
    pod.scene.curl(&["http://stock:9090/metrics"]).await.says("stock's metrics: HTTP/1.1 /metrics of stock:9090");
    // By its address it is what it is.
    pod.scene.curl(&["http://10.77.0.10/buy"]).await.says("stock's pod: HTTP/1.1 /buy of 10.77.0.10");
    // One connection, two hosts.
    let both = pod.scene.curl(&["-H", "Host: other.example", "http://stock/1", "--next", "-sS", "http://stock/2"]).await;
    assert!(both.out.contains("stock's pod: HTTP/1.1 /1 of other.example") && both.out.contains("the app: /2 of stock"), "{both:?}");
    // Another protocol at a port of the component: whoever begins.
    let heard = "import socket; s = socket.create_connection(('stock', 2525), 10); print(s.recv(100)); s.sendall(b'EHLO me\\r\\n'); print(s.recv(100))";
    pod.scene.python(heard).await.says("b'220 hello\\r\\n'\nb'EHLO me\\r\\n'");
}

async fn pods_of_a_headless_service(pod: &mut Pod) {
    pod.scene.curl(&["http://shard/"]).await.says("the app: / of shard at attempt 1");
    // Nobody listens at port 80 of these pods, and at 8080 they are no component.
    pod.scene.curl(&["http://shard:8080/direct"]).await.says("a shard: HTTP/1.1 /direct of shard:8080");
    pod.scene.curl(&["http://10.77.0.11:8080/ip"]).await.says("a shard: HTTP/1.1 /ip of 10.77.0.11:8080");
    let refused = pod.scene.curl(&["http://10.77.0.11/ip"]).await;
    assert!(refused.out.contains("pass-through-failed"), "{refused:?}");
}

async fn a_component_whose_service_has_no_pods(pod: &mut Pod) {
    pod.scene.python("import socket; print(socket.gethostbyname('empty'))").await.says("240.187.85.1");
    pod.scene.curl(&["http://empty/waits"]).await.says("the app: /waits of empty at attempt 1");
}

async fn a_client_that_begins_late(pod: &mut Pod) {
    // A server at one of stock's ports, which says when the proxy has come: so the time for first bytes is over.
    let mut came = servers::teller(&pod.scene.outside, at(10, 8888));
    pod.scene.python("import socket; print(socket.gethostbyname('stock'))").await.says("10.77.0.10");
    let client = servers::within(&pod.scene.pod, || std::net::TcpStream::connect(at(10, 8888)).unwrap());
    within(Duration::from_secs(10), "the proxy connects to where the client was going", came.recv()).await.unwrap();
    let late = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut client = client;
        client.write_all(b"GET /la").unwrap();
        client.write_all(b"te HTTP/1.1\r\nHost: stock:8888\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).map(|_| answer)
    });
    let answer = within(Duration::from_secs(20), "the late call is answered", late).await.unwrap().unwrap();
    assert!(answer.contains("the app: /late of stock:8888"), "{answer}");
}

async fn websocket_to_a_component_is_refused(pod: &mut Pod) {
    let upgrade = ["-i", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket"];
    let answer = pod.scene.curl(&[&upgrade[..], &["http://cart/ws"]].concat()).await;
    assert!(answer.out.starts_with("HTTP/1.1 501") && answer.out.contains("bluebox-error: stream-refused"), "{answer:?}");
}

async fn at_the_address_of_components_nothing_else_is(pod: &mut Pod) {
    let tls = pod.scene.curl(&["-k", "https://cart:80/"]).await;
    assert!(tls.was_reset(), "{tls:?}");
    let python = "
import socket
s = socket.create_connection(('cart', 80), 10)
s.sendall(b'*1\\r\\n$4\\r\\nPING\\r\\n')
try: print('heard', s.recv(10))
except ConnectionResetError: print('reset')";
    pod.scene.python(python).await.says("reset");
}

async fn bluebox_itself(pod: &mut Pod) {
    let accepted = pod.scene.curl(&["-i", "-H", "Prefer: respond-async", "-d", "x", "http://cart/later"]).await;
    accepted.says("HTTP/1.1 202");
    let location = accepted.out.lines().find_map(|line| line.strip_prefix("location: ")).unwrap().trim().to_owned();
    eventually("the call has ended", || async {
        let answer = pod.scene.curl(&["-i", &location]).await;
        (answer.out.contains("bluebox-call-state: ended") && answer.out.contains("the app: /later of cart")).then_some(())
    })
    .await;
}

async fn a_proxy_that_starts_again(pod: &mut Pod) {
    pod.proxy.take().unwrap().kill();
    let away = pod.scene.curl(&["http://10.77.0.2:8080/"]).await;
    assert_eq!(away.code, Some(7), "nobody listens: nothing passes by the proxy: {away:?}");
    pod.proxy = Some(pod.scene.proxy().await);
    // An app that goes on using the address that it had: this proxy was never asked for it.
    eventually("the new proxy knows the components", || async {
        let answer = pod.scene.curl(&["--resolve", "stock:80:10.77.0.10", "http://stock/again"]).await;
        answer.out.starts_with("the app: /again of stock").then_some(())
    })
    .await;
    assert!(!pod.asked_nameserver().last().unwrap().contains("again"));
    pod.scene.curl(&["--resolve", "cart:80:240.187.85.1", "http://cart/again"]).await.says("the app: /again of cart");
    pod.scene.curl(&["http://10.77.0.2:8080/again"]).await.says("outside: HTTP/1.1 /again");
}

async fn a_proxy_that_starts_with_the_log_away(pod: &mut Pod) {
    pod.proxy.take().unwrap().kill();
    let nowhere = format!("--log-socket={}", pod.scene.file("no.sock"));
    pod.proxy = Some(pod.scene.proxy_that("ready", &[&nowhere]).await);
    // What may be a component, with a Service and without: it can't be known, and who calls is told to try again.
    for host in ["cart", "stock", "plain:8080"] {
        let answer = pod.scene.curl(&["-i", &format!("http://{host}/")]).await;
        assert!(answer.out.starts_with("HTTP/1.1 503") && answer.out.contains("retry-after") && answer.out.contains("bluebox-error: not-ready"), "{answer:?}");
    }
    // All else goes on.
    pod.scene.curl(&["http://web.example:8080/"]).await.says("outside: HTTP/1.1 / of web.example:8080");
    let heard = "import socket; s = socket.create_connection(('plain', 2525), 10); print(s.recv(100))";
    pod.scene.python(heard).await.says("b'220 hello");
}

// What passes.

async fn rules_twice_are_as_once(pod: &mut Pod) {
    let rules = |shown: scene::Ran| shown.out.lines().map(|line| line.trim_start().split_once("  ").unwrap().1.to_owned()).collect::<Vec<_>>();
    let once = rules(pod.scene.redirect(&["--show"]).await);
    pod.scene.redirect_all(&[]).await;
    pod.scene.redirect_all(&[]).await;
    assert_eq!(rules(pod.scene.redirect(&["--show"]).await), once);
    assert_eq!(once.len(), 12, "{once:?}");
    let user = pod.scene.as_proxy(&pod_bluebox(pod), &["redirect"]).await;
    assert!(user.code == Some(1) && user.err.contains("NET_ADMIN"), "{user:?}");
    // As many exclusions as there can be, and one more.
    let ports = |most: u16| (1000..1000 + most).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let networks = (0..64).map(|n| format!("fd00:{n:x}::/32")).collect::<Vec<_>>().join(",");
    pod.scene.redirect(&["--exclude-ports", &ports(64), "--exclude-networks", &networks]).await.says("IPv4 and IPv6");
    let many = pod.scene.redirect(&["--exclude-ports", &ports(65)]).await;
    assert!(many.code == Some(1) && many.err.contains("at most 64"), "{many:?}");
    assert_eq!(rules(pod.scene.redirect(&["--show"]).await).len(), 134, "a mistake changes nothing");
    // Taken away, nothing is caught.
    pod.scene.redirect(&["--remove"]).await.says("taken away");
    let before = pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await;
    pod.scene.curl(&["http://10.77.0.2:8080/"]).await.says("outside");
    assert_eq!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await, before);
    pod.scene.redirect(&["--show"]).await.says("no rules");
    // A proxy that is started now is not ready, and says why; one that was ready finds out.
    pod.proxy.take().unwrap().kill();
    pod.proxy = Some(pod.scene.proxy_that("the redirect is not in place", &[]).await);
    pod.scene.redirect_all(&[]).await;
    eventually("the proxy finds the redirect", || async { (pod.scene.curl(&["http://127.0.0.1:4141/readyz"]).await.out == "ready").then_some(()) }).await;
    assert_eq!(pod.scene.metric("bluebox_redirect_in_place").await, 1);
}

fn pod_bluebox(pod: &Pod) -> String {
    pod.scene.bluebox().to_string_lossy().into_owned()
}

async fn http_to_others(pod: &mut Pod) {
    let before = pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await;
    pod.scene.curl(&["http://10.77.0.2:8080/a"]).await.says("outside: HTTP/1.1 /a of 10.77.0.2:8080");
    pod.scene.curl(&["-4", "http://web.example:8080/b"]).await.says("outside: HTTP/1.1 /b of web.example:8080");
    pod.scene.curl(&["http://plain:8080/c"]).await.says("outside: HTTP/1.1 /c of plain:8080");
    assert_eq!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await, before + 3);
}

async fn server_first(pod: &mut Pod) {
    let python = "
import smtplib, socket
s = socket.create_connection(('10.77.0.2', 2525), 10)
print(s.recv(100))
s.sendall(b'hello yourself\\r\\n')
print(s.recv(100))";
    pod.scene.python(python).await.says("b'220 hello\\r\\n'\nb'hello yourself\\r\\n'");
}

async fn tls(pod: &mut Pod) {
    let (key, certificate) = (pod.scene.file("key.pem"), pod.scene.file("certificate.pem"));
    let made = pod
        .scene
        .app("openssl", &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=web.example", "-days", "1", "-keyout", &key, "-out", &certificate])
        .await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let server = ["s_server", "-accept", "10.77.0.2:8443", "-www", "-quiet", "-cert", &certificate, "-key", &key];
    let mut server = pod.scene.server("openssl", &server);
    eventually("the TLS server listens", || {
        assert_eq!(server.ended(), None, "{}", server.said());
        async {
            (pod.scene.curl(&["--cacert", &certificate, "--resolve", "web.example:8443:10.77.0.2", "https://web.example:8443/"]).await.code == Some(0))
                .then_some(())
        }
    })
    .await;
    pod.scene.curl(&["--cacert", &certificate, "--resolve", "web.example:8443:10.77.0.2", "https://web.example:8443/"]).await.says("Ciphers");
}

async fn h2c_to_others(pod: &mut Pod) {
    pod.scene.curl(&["--http2-prior-knowledge", "http://10.77.0.2:8080/h2c"]).await.says("outside: HTTP/2.0 /h2c of 10.77.0.2:8080");
}

async fn websocket_to_others(pod: &mut Pod) {
    let python = "
import socket
s = socket.create_connection(('10.77.0.2', 8080), 10)
s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: outside\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n')
head = b''
while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)
print(head.split(b'\\r\\n')[0])
s.sendall(b'\\x81\\x05hello')
print(s.recv(100))";
    pod.scene.python(python).await.says("b'HTTP/1.1 101 Switching Protocols'\nb'\\x81\\x05hello'");
}

async fn half_closed_and_broken_off(pod: &mut Pod) {
    // Whoever says no more can still hear: after bytes, and without any.
    for said in ["x' * 100000 + b'", ""] {
        let python = format!(
            "
import socket
s = socket.create_connection(('10.77.0.2', 7007), 10)
s.sendall(b'{said}')
s.shutdown(socket.SHUT_WR)
print(s.recv(100))"
        );
        pod.scene.python(&python).await.says(if said.is_empty() { "b'0 bytes'" } else { "b'100000 bytes'" });
    }
    // To a component's address too, where the proxy waits for first bytes.
    servers::counter(&pod.scene.outside, at(10, 8888));
    let python = "
import socket
s = socket.create_connection(('stock', 8888), 10)
s.shutdown(socket.SHUT_WR)
print(s.recv(100))";
    pod.scene.python(python).await.says("b'0 bytes'");
    let python = "
import socket
s = socket.create_connection(('10.77.0.2', 7008), 10)
s.sendall(b'x')
try: print('heard', s.recv(100))
except ConnectionResetError: print('reset')";
    pod.scene.python(python).await.says("reset");
}

async fn a_refused_destination(pod: &mut Pod) {
    let before = pod.scene.metric("bluebox_transparent_connections_total{kind=\"refused\"}").await;
    // The proxy has taken the connection by then: it is not refused, but reset, which a slow client finds out before it knows that it was connected.
    let python = "
import socket
try:
    s = socket.create_connection(('10.77.0.2', 1), 10)
    print('heard', s.recv(100))
except ConnectionResetError: print('reset')";
    pod.scene.python(python).await.says("reset");
    let refused = pod.scene.curl(&["http://10.77.0.2:1/"]).await;
    assert!(refused.was_reset(), "{refused:?}");
    assert_eq!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"refused\"}").await, before + 2);
}

async fn a_port_that_is_tried(pod: &mut Pod) {
    for (host, port) in [("cart", "80"), ("10.77.0.2", "8080"), ("stock", "9090")] {
        assert_eq!(pod.scene.app("nc", &["-z", "-w", "5", host, port]).await.code, Some(0), "{host} {port}");
    }
}

async fn excluded_ports_and_networks_and_loopback(pod: &mut Pod) {
    let _seen = servers::teller(&pod.scene.outside, at(2, 5432));
    let _seen = (_seen, servers::teller(&pod.scene.outside, at(2, 5433)), servers::teller(&pod.scene.outside, at(3, 6000)));
    let from = |address: SocketAddr| {
        format!(
            "import socket; s = socket.create_connection(('{}', {}), 10); s.sendall(b'?'); print(s.recv(100).decode().strip() == f'from {{s.getsockname()[1]}}')",
            address.ip(),
            address.port()
        )
    };
    // Whoever is not caught is seen with the port that it has.
    pod.scene.python(&from(at(2, 5432))).await.says("True");
    pod.scene.python(&from(at(3, 6000))).await.says("True");
    let before = pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await;
    pod.scene.curl(&["http://10.77.0.3:8080/"]).await.says("excluded");
    let own = "
import socket, threading
l = socket.create_server(('0.0.0.0', 0))
for ip in '127.0.0.1', '10.77.0.1':
    c = socket.create_connection((ip, l.getsockname()[1]), 10)
    print(l.accept()[1] == c.getsockname())";
    pod.scene.python(own).await.says("True\nTrue");
    assert_eq!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await, before);
    pod.scene.python(&from(at(2, 5433))).await;
    assert_eq!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"spliced\"}").await, before + 1, "what is not excluded is caught");
}

async fn the_proxys_own_user(pod: &mut Pod) {
    let (spliced, own) = ("bluebox_transparent_connections_total{kind=\"spliced\"}", "the proxy's own");
    let before = (pod.scene.metric(spliced).await, pod.scene.decided(own).await);
    pod.scene.as_proxy("curl", &["-sS", "--max-time", "10", "http://10.77.0.2:8080/own"]).await.says("outside: HTTP/1.1 /own");
    assert_eq!((pod.scene.metric(spliced).await, pod.scene.decided(own).await), (before.0, before.1 + 1));
    pod.scene.as_proxy("getent", &["ahostsv4", "web.example"]).await.says("10.77.0.2");
    let cart = pod.scene.as_proxy("getent", &["ahostsv4", "cart"]).await;
    assert_eq!(cart.code, Some(2), "its names are the nameserver's: {cart:?}");
}

async fn the_transparent_port_itself(pod: &mut Pod) {
    let before = pod.scene.metric("bluebox_transparent_connections_total{kind=\"direct\"}").await;
    for address in ["127.0.0.1:4143", "[::1]:4143"] {
        let direct = pod.scene.curl(&[&format!("http://{address}/")]).await;
        assert!(direct.was_reset(), "{direct:?}");
    }
    assert_eq!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"direct\"}").await, before + 2);
}

async fn ipv6(pod: &mut Pod) {
    pod.scene.curl(&["http://[fd77::2]:8080/"]).await.says("outside: HTTP/1.1 / of [fd77::2]:8080");
    pod.scene.curl(&["-6", "http://web.example:8080/"]).await.says("outside: HTTP/1.1 / of web.example:8080");
    pod.scene.curl(&["-6", "http://cart/six"]).await.says("the app: /six of cart");
    let refused = pod.scene.curl(&["http://[fd77::2]:1/"]).await;
    assert!(refused.was_reset(), "{refused:?}");
    pod.scene.python("import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('cart', 80)}))").await.says("['240.187.85.1', 'fdb1:eb0c:5b0e::1']");
}

async fn a_proxy_whose_user_the_rules_do_not_know(pod: &mut Pod) {
    pod.scene.redirect_all(&["--proxy-uid=4711"]).await;
    let looped = pod.scene.curl(&["http://10.77.0.2:8080/"]).await;
    assert!(looped.was_reset(), "{looped:?}");
    let said = pod.proxy.as_ref().unwrap().said();
    assert!(said.contains("--proxy-uid"), "{said}");
    assert!(pod.scene.metric("bluebox_transparent_connections_total{kind=\"loop\"}").await > 0);
    pod.scene.redirect_all(&[&format!("--proxy-uid={PROXY_UID}")]).await;
    pod.scene.curl(&["http://10.77.0.2:8080/"]).await.says("outside");
}

async fn a_proxy_that_ends(pod: &mut Pod) {
    use std::io::Read as _;
    let mut idle = servers::within(&pod.scene.pod, || std::net::TcpStream::connect(at(2, 2525)).unwrap());
    let mut heard = [0; 11];
    idle.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"220 hello\r\n");
    // A connection that nobody ends does not keep it: only for the drain.
    let ended = pod.proxy.take().unwrap().terminate().await;
    assert!(ended.success(), "{ended}");
    idle.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(matches!(idle.read(&mut heard), Ok(0) | Err(_)));
}

// Names.

/// Asks the pod's nameserver, as a resolver in the pod does.
fn ask(pod: &Pod, name: &str, rtype: Rtype, tcp: bool) -> Message<Vec<u8>> {
    ask_at(pod, at(53, 53), name, rtype, tcp)
}

fn ask_at(pod: &Pod, nameserver: SocketAddr, name: &str, rtype: Rtype, tcp: bool) -> Message<Vec<u8>> {
    let mut query = MessageBuilder::new_vec().question();
    query.header_mut().set_id(4711);
    query.header_mut().set_rd(true);
    query.push((Name::<Vec<u8>>::from_str(name).unwrap(), rtype)).unwrap();
    send(pod, nameserver, query.finish(), tcp)
}

fn send(pod: &Pod, nameserver: SocketAddr, query: Vec<u8>, tcp: bool) -> Message<Vec<u8>> {
    use std::io::{Read as _, Write as _};
    let answer = servers::within(&pod.scene.pod, move || {
        let patience = Some(Duration::from_secs(20));
        if tcp {
            let mut stream = std::net::TcpStream::connect(nameserver).unwrap();
            stream.set_read_timeout(patience).unwrap();
            stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes(), &query[..]].concat()).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            return answer;
        }
        let socket = std::net::UdpSocket::bind(if nameserver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.set_read_timeout(patience).unwrap();
        socket.connect(nameserver).unwrap();
        socket.send(&query).unwrap();
        let mut answer = vec![0; 65536];
        let length = socket.recv(&mut answer).unwrap();
        answer.truncate(length);
        answer
    });
    Message::from_octets(answer).unwrap()
}

fn addresses(answer: &Message<Vec<u8>>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for record in answer.answer().unwrap() {
        let record = record.unwrap();
        if let Some(record) = record.to_record::<domain::rdata::A>().unwrap() {
            found.push(record.data().addr().into());
        } else if let Some(record) = record.to_record::<domain::rdata::Aaaa>().unwrap() {
            found.push(record.data().addr().into());
        }
    }
    found
}

async fn forwarded_names(pod: &mut Pod) {
    for tcp in [false, true] {
        let answer = ask(pod, "web.example.", Rtype::A, tcp);
        assert_eq!((answer.header().id(), addresses(&answer)), (4711, vec!["10.77.0.2".parse().unwrap()]));
        assert_eq!(addresses(&ask(pod, "web.example.", Rtype::AAAA, tcp)), ["fd77::2".parse::<IpAddr>().unwrap()]);
        assert_eq!(ask(pod, "nobody.example.", Rtype::A, tcp).header().rcode(), Rcode::NXDOMAIN);
        let sixth: SocketAddr = "[fd77::53]:53".parse().unwrap();
        assert_eq!(addresses(&ask_at(pod, sixth, "web.example.", Rtype::A, tcp)), ["10.77.0.2".parse::<IpAddr>().unwrap()], "over IPv6");
        assert_eq!(addresses(&ask_at(pod, sixth, "cart.", Rtype::A, tcp)), ["240.187.85.1".parse::<IpAddr>().unwrap()]);
        let over = if tcp { "tcp web.example A" } else { "udp web.example A" };
        assert!(pod.asked_nameserver().contains(&over.to_owned()), "{:?}", pod.asked_nameserver());
    }
    let python = "import socket; print(socket.gethostbyname('web.example'), sorted(socket.gethostbyname_ex('shard')[2]))";
    pod.scene.python(python).await.says("10.77.0.2 ['10.77.0.11', '10.77.0.12']");
    let nobody = pod.scene.python("import socket; socket.gethostbyname('nobody.example')").await;
    assert!(nobody.err.contains("Name or service not known"), "{nobody:?}");
    assert!(pod.scene.metric("bluebox_dns_queries_total{result=\"forwarded\"}").await >= 8);
}

async fn truncated_answers(pod: &mut Pod) {
    let short = ask(pod, "large.example.", Rtype::TXT, false);
    assert!(short.header().tc() && short.header_counts().ancount() == 0);
    let long = ask(pod, "large.example.", Rtype::TXT, true);
    assert!(!long.header().tc() && long.header_counts().ancount() == 20 && long.as_slice().len() > 4000);
}

async fn what_is_no_query(pod: &mut Pod) {
    // Two questions in one.
    let mut query = ask(pod, "cart.", Rtype::A, false).as_slice().to_vec();
    query.truncate(12 + 6 + 4);
    query[2..12].copy_from_slice(&[1, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!(send(pod, at(53, 53), query, false).header().rcode(), Rcode::FORMERR);
    assert!(pod.scene.metric("bluebox_dns_queries_total{result=\"malformed\"}").await > 0);
}

async fn kinds_of_answers(pod: &mut Pod) {
    let (v4, v6): (IpAddr, IpAddr) = ("240.187.85.1".parse().unwrap(), "fdb1:eb0c:5b0e::1".parse().unwrap());
    for name in ["cart.", "cart.shop.svc.cluster.local.", "Bluebox.shop.svc.cluster.local.", "empty.shop.svc.cluster.local."] {
        for tcp in [false, true] {
            assert_eq!(addresses(&ask(pod, name, Rtype::A, tcp)), [v4], "{name}");
            assert_eq!(addresses(&ask(pod, name, Rtype::AAAA, tcp)), [v6], "{name}");
        }
        // The name is there, and has nothing else: if it were said not to exist, its addresses would not be believed either.
        let other = ask(pod, name, Rtype::HTTPS, false);
        assert!(other.header().rcode() == Rcode::NOERROR && other.header_counts().ancount() == 0, "{name}");
    }
    for record in ask(pod, "cart.", Rtype::A, false).answer().unwrap() {
        assert_eq!(record.unwrap().ttl().as_secs(), 5);
    }
    assert_eq!(addresses(&ask(pod, "stock.shop.svc.cluster.local.", Rtype::A, false)), ["10.77.0.10".parse::<IpAddr>().unwrap()]);
    let none = ask(pod, "stock.shop.svc.cluster.local.", Rtype::AAAA, false);
    assert!(none.header().rcode() == Rcode::NOERROR && none.header_counts().ancount() == 0, "it has an address of the other family");
    assert_eq!(ask(pod, "cart.other.svc.cluster.local.", Rtype::A, false).header().rcode(), Rcode::NXDOMAIN);
    // Without a route there is no such address.
    let unroute = pod.scene.app("ip", &["-6", "route", "del", "default"]).await;
    assert_eq!(unroute.code, Some(0), "{unroute:?}");
    let none = ask(pod, "cart.", Rtype::AAAA, false);
    assert!(none.header().rcode() == Rcode::NOERROR && none.header_counts().ancount() == 0);
}

async fn a_dead_nameserver(pod: &mut Pod) {
    pod.nameserver.take().unwrap().end().await;
    let began = Instant::now();
    for tcp in [false, true] {
        assert_eq!(ask(pod, "web.example.", Rtype::A, tcp).header().rcode(), Rcode::SERVFAIL);
        assert_eq!(addresses(&ask(pod, "cart.", Rtype::A, tcp)), ["240.187.85.1".parse::<IpAddr>().unwrap()], "calls go on");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    pod.scene.curl(&["http://cart/without-dns"]).await.says("the app: /without-dns of cart");
    // One that takes questions, and is silent: within the time after which a resolver would ask again.
    let _silent = servers::silent(&pod.scene.outside, at(53, 53));
    assert_eq!(ask(pod, "web.example.", Rtype::A, false).header().rcode(), Rcode::SERVFAIL);
    assert_eq!(addresses(&ask(pod, "cart.", Rtype::A, false)), ["240.187.85.1".parse::<IpAddr>().unwrap()]);
    assert!(pod.scene.metric("bluebox_dns_queries_total{result=\"failed\"}").await >= 3);
}

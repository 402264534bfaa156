//! Servers in a network namespace. They are tasks of the test: only their sockets are in the namespace.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use domain::base::Ttl;
use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::message::Message;
use domain::base::message_builder::MessageBuilder;
use domain::rdata::{A, Aaaa, Txt};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Runs something that makes sockets on a thread in a network namespace: they stay there.
pub fn within<T: Send + 'static>(namespace: &str, make: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        make()
    });
    thread.join().unwrap()
}

fn listener(namespace: &str, address: SocketAddr) -> TcpListener {
    let listener = within(namespace, move || std::net::TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")));
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// A server that greets whoever connects, and then says back what it hears.
pub fn greeter(namespace: &str, address: SocketAddr) {
    each(namespace, address, |mut stream, _| async move {
        let _ = stream.write_all(b"220 hello\r\n").await;
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
}

/// A server that says from where a client comes, as soon as it has heard something; the connections that it has accepted are told.
pub fn teller(namespace: &str, address: SocketAddr) -> mpsc::UnboundedReceiver<SocketAddr> {
    let (accepted, told) = mpsc::unbounded_channel();
    each(namespace, address, move |mut stream, peer| {
        let _ = accepted.send(peer);
        async move {
            let mut heard = [0; 100];
            if stream.read(&mut heard).await.is_ok_and(|n| n > 0) {
                let _ = stream.write_all(format!("from {}\n", peer.port()).as_bytes()).await;
            }
        }
    });
    told
}

/// A server that hears all until its client says no more, and then says how much it was.
pub fn counter(namespace: &str, address: SocketAddr) {
    each(namespace, address, |mut stream, _| async move {
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        let _ = stream.write_all(format!("{} bytes", heard.len()).as_bytes()).await;
    });
}

/// A server that accepts, and breaks off at the first byte.
pub fn breaker(namespace: &str, address: SocketAddr) {
    each(namespace, address, |mut stream, _| async move {
        let _ = stream.read(&mut [0]).await;
        let _ = stream.set_zero_linger();
    });
}

fn each<F: Future<Output = ()> + Send + 'static>(namespace: &str, address: SocketAddr, serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static) {
    let listener = listener(namespace, address);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(serve(stream, peer));
        }
    });
}

/// An HTTP server, HTTP/1.1 and h2c: says its name and what it was asked; `/ws` becomes a WebSocket, as far as a client of this test can tell, that says back what it hears.
pub fn http(namespace: &str, address: SocketAddr, name: &'static str) {
    each(namespace, address, move |stream, _| async move {
        let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| async move {
            if request.headers().contains_key("upgrade") && request.uri().path() == "/ws" {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let Ok(upgraded) = upgrade.await else { return };
                    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
                let answer = http::Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "websocket");
                return Ok::<_, Infallible>(answer.body(Full::new(Bytes::new())).unwrap());
            }
            let host = request.headers().get("host").map_or_else(|| request.uri().authority().map(ToString::to_string), |h| h.to_str().ok().map(str::to_owned));
            let text = format!("{name}: {:?} {} of {}\n", request.version(), request.uri().path(), host.unwrap_or_default());
            Ok(http::Response::new(Full::new(text.into())))
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    });
}

/// A nameserver, over UDP and TCP. It can be ended, and then nobody is there.
pub struct Nameserver {
    tasks: Vec<JoinHandle<()>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Nameserver {
    /// Starts it. A name that it doesn't know does not exist.
    pub fn start(namespace: &str, addresses: &[SocketAddr], names: &[(&str, &[&str])]) -> Self {
        let names: Arc<HashMap<String, Vec<IpAddr>>> =
            Arc::new(names.iter().map(|(name, addresses)| ((*name).to_owned(), addresses.iter().map(|a| a.parse().unwrap()).collect())).collect());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = Vec::new();
        for address in addresses {
            let address = *address;
            let socket = within(namespace, move || std::net::UdpSocket::bind(address).unwrap());
            socket.set_nonblocking(true).unwrap();
            let socket = UdpSocket::from_std(socket).unwrap();
            let (known, noted) = (names.clone(), asked.clone());
            tasks.push(tokio::spawn(async move {
                let mut query = [0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut query).await {
                    let _ = socket.send_to(&answer(&query[..length], &known, "udp", &noted), from).await;
                }
            }));
            let listener = listener(namespace, address);
            let (known, noted) = (names.clone(), asked.clone());
            tasks.push(tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut query = vec![0; usize::from(stream.read_u16().await.unwrap_or_default())];
                    if stream.read_exact(&mut query).await.is_ok() {
                        let answer = answer(&query, &known, "tcp", &noted);
                        let _ = stream.write_all(&[&u16::try_from(answer.len()).unwrap().to_be_bytes(), &answer[..]].concat()).await;
                    }
                }
            }));
        }
        Self { tasks, asked }
    }

    /// What it was asked, and how: `udp web.example A`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Ends it.
    pub async fn end(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

/// A nameserver that hears all and says nothing.
pub fn silent(namespace: &str, address: SocketAddr) -> std::net::UdpSocket {
    within(namespace, move || std::net::UdpSocket::bind(address).unwrap())
}

fn answer(query: &[u8], names: &HashMap<String, Vec<IpAddr>>, over: &str, asked: &Mutex<Vec<String>>) -> Vec<u8> {
    let query = Message::from_slice(query).unwrap();
    let question = query.sole_question().unwrap();
    let name = question.qname().to_string().to_ascii_lowercase();
    asked.lock().unwrap().push(format!("{over} {name} {}", question.qtype()));
    let known = names.get(&name);
    let mut answer = MessageBuilder::new_vec().start_answer(query, if known.is_some() { Rcode::NOERROR } else { Rcode::NXDOMAIN }).unwrap();
    let ttl = Ttl::from_secs(5);
    for address in known.into_iter().flatten() {
        match (address, question.qtype()) {
            (IpAddr::V4(address), Rtype::A) => answer.push((question.qname(), Class::IN, ttl, A::new(*address))).unwrap(),
            (IpAddr::V6(address), Rtype::AAAA) => answer.push((question.qname(), Class::IN, ttl, Aaaa::new(*address))).unwrap(),
            _ => {}
        }
    }
    if name == "large.example" && question.qtype() == Rtype::TXT {
        // Too large for UDP: over it only the truncation is said.
        if over == "udp" {
            answer.header_mut().set_tc(true);
        } else {
            for _ in 0..20 {
                let text = Txt::<Vec<u8>>::build_from_slice(&[b'x'; 200]).unwrap();
                answer.push((question.qname(), Class::IN, ttl, text)).unwrap();
            }
        }
    }
    answer.finish()
}

//! DNS for the app: what it asks its nameservers comes here by the redirect, so that components without a Service have an address, and so that the proxy knows which addresses
//! belong to components.
//!
//! - [`resolv_conf`]: which nameservers and domains the pod has.
//! - [`message`]: what is in a query and in an answer.
//! - [`resolve`]: answers one query.
//! - [`forward`]: asks the pod's nameservers.
//! - [`addresses`]: what was learned from their answers.
//!
//! Over UDP and TCP. Answers of nameservers go back bit for bit, so what a nameserver knows the app can know; nothing is kept but the addresses of components.

pub mod addresses;
pub mod forward;
pub mod message;
pub mod resolv_conf;
pub mod resolve;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bluebox_observe::Words;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use self::resolve::Resolver;
use crate::metrics::Metrics;

/// Queries under way at once; beyond, they are told so.
const MOST_QUERIES: usize = 512;
/// Connections at once; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may be silent (RFC 7766, section 6.2.3, leaves it to the server).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the app's DNS arrives: the same addresses for both.
#[derive(Debug)]
pub struct Listeners {
    /// UDP.
    pub udp: Vec<UdpSocket>,
    /// TCP.
    pub tcp: Vec<TcpListener>,
}

/// What is counted here.
#[derive(Clone)]
pub struct Counts {
    queries: Words,
}

impl Counts {
    /// Counts of nothing yet.
    ///
    /// # Errors
    /// When they are there already, which is a mistake in this program.
    pub fn try_new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let help = "Questions of the app for names, by how they were answered: `component`, `forwarded`, `failed` (no nameserver answered), `malformed`, `busy` (more than 512 under way)";
        Ok(Self { queries: metrics.counts().words("bluebox_dns_queries_total", help, "result")? })
    }

    fn count(&self, word: &str) {
        self.queries.inc(word);
    }

    #[cfg(test)]
    pub(crate) fn count_all(&self) {
        for word in ["component", "forwarded", "failed", "malformed", "busy"] {
            self.count(word);
        }
    }
}

/// Answers until it is dropped.
pub async fn serve(listeners: Listeners, resolver: Resolver, counts: Counts) {
    let server =
        Arc::new(Server { resolver, counts, queries: Arc::new(Semaphore::new(MOST_QUERIES)), connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)) });
    let mut serving = JoinSet::new();
    for socket in listeners.udp {
        serving.spawn(server.clone().udp(Arc::new(socket)));
    }
    for listener in listeners.tcp {
        serving.spawn(server.clone().tcp(listener));
    }
    // They never end; a panic in one ends the process.
    while serving.join_next().await.is_some() {}
}

struct Server {
    resolver: Resolver,
    counts: Counts,
    queries: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Server {
    async fn udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut answering = JoinSet::new();
        loop {
            while answering.try_join_next().is_some() {}
            let (query, from) = match socket.recv_from(&mut buffer).await {
                Ok((length, from)) => (buffer[..length].to_vec(), from),
                Err(problem) => {
                    warn!(%problem, "could not receive a question of the app for a name");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = self.queries.clone().try_acquire_owned() else {
                self.counts.count("busy");
                if let Some(failed) = message::failed(&query).filter(|_| query[2] & 0x80 == 0) {
                    answer_udp(&socket, &failed, from).await;
                }
                continue;
            };
            let (this, socket) = (self.clone(), socket.clone());
            answering.spawn(async move {
                let _place = place;
                if let Some(answer) = this.answer(&query, false).await {
                    answer_udp(&socket, &answer, from).await;
                }
            });
        }
    }

    async fn tcp(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(place) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let this = self.clone();
                    connections.spawn(async move {
                        let _place = place;
                        this.connection(stream).await;
                    });
                }
                Err(problem) => {
                    warn!(%problem, "a connection with questions for names could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// One question after the other, until there is none for a while.
    async fn connection(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        while let Ok(Ok(query)) = tokio::time::timeout(IDLE_TIMEOUT, forward::read(&mut stream)).await {
            let Ok(_place) = self.queries.acquire().await else { return };
            let Some(answer) = self.answer(&query, true).await else { return };
            if !matches!(tokio::time::timeout(IDLE_TIMEOUT, forward::write(&mut stream, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn answer(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let (answer, how) = self.resolver.answer(query, tcp).await?;
        self.counts.count(how.word());
        Some(answer)
    }
}

async fn answer_udp(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(problem) = socket.send_to(answer, to).await {
        debug!(%problem, %to, "an answer could not be sent");
    }
}

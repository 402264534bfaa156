//! The transparent listener: what the redirect caught arrives here, and for each connection it is known where it was going.
//!
//! Durable is a plain request of HTTP/1.1 or HTTP/2 whose Host names a component, and whose ports, that of the Host and that of the connection, are among the component's. All
//! else must go on as if nobody were in between, whatever it speaks and whichever side begins. So, for each connection:
//!
//! 1. If it goes to an address of a component (see [`Addresses`]) at one of its ports, the client's first bytes are waited for, [`FIRST_BYTES`] at most. If they are HTTP, it is
//!    served as the explicit listener does ([`crate::outbound::intercept`]), and requests that are no calls go to where the connection was going.
//! 2. Everywhere else, and after that time, the connection to where it was going is made. Whichever side speaks first decides: bytes of the server, or bytes of the client that are no HTTP, and the two
//!    are spliced. A late client is still heard: its request is no less a call.
//! 3. At the address of components without a Service nobody is: what isn't HTTP there is reset.
//!
//! The bytes are looked at where they are, in the socket (`MSG_PEEK`): nothing has to be put back.

pub mod probe;
pub mod sniff;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bluebox_observe::{During, Words};
use prometheus::IntGauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use self::sniff::Speaks;
use crate::dns::addresses::Addresses;
use crate::metrics::Metrics;
use crate::outbound::OutboundSide;
use crate::outbound::intercept::{self, Http};
use crate::outbound::passthrough::Place;
use crate::redirect::address;
use crate::registry::Directory;

/// How long a connection to a component waits for its client's first bytes before that to its destination is made.
pub const FIRST_BYTES: Duration = Duration::from_millis(20);
/// What is looked at of a client's first bytes. A longer request line is HTTP all the same: nothing else begins so.
const LOOKED_AT: usize = 8192;
/// How often a client is looked at again that has sent a part of a request line.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// When the kernel begins to ask whether the other side of a silent connection is still there: it can't be seen whether the app had it ask.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What is counted here.
#[derive(Clone)]
pub struct Counts {
    /// Connections, by what became of them.
    connections: Words,
    /// Those that are open.
    open: IntGauge,
}

impl Counts {
    /// Counts of nothing yet.
    ///
    /// # Errors
    /// When they are there already, which is a mistake in this program.
    pub fn try_new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let help = "Connections that the redirect caught, by what became of them: `http` (served by the proxy), `spliced`, `refused`, `timeout`, `nowhere` (to a component without a \
                    Service, at a port that none has), `silent` (the client went), `direct` (to the listener itself), `loop` (the proxy's own, sent back to it: the user that the proxy \
                    runs as is not the one that the redirect leaves alone)";
        let connections = metrics.counts().words("bluebox_transparent_connections_total", help, "kind")?;
        let open = metrics.counts().gauge("bluebox_transparent_connections", "Connections that the redirect caught and that are open now")?;
        Ok(Self { connections, open })
    }

    #[cfg(test)]
    pub(crate) fn count_all(&self) {
        for kind in ["http", "spliced", "refused", "timeout", "nowhere", "silent", "direct", "loop"] {
            self.connections.inc(kind);
        }
    }
}

/// What all connections share.
pub struct Transparent {
    /// The way of requests.
    pub side: Arc<OutboundSide>,
    /// Which addresses belong to components.
    pub addresses: Addresses,
    /// What is counted.
    pub counts: Counts,
    /// What is answered to whoever asks whether the redirect is in place.
    pub token: String,
    dialled: Dialled,
}

/// Connections that this proxy has made: from where, to where. One that arrives here as such has come back.
#[derive(Debug, Clone, Default)]
struct Dialled(Arc<Mutex<HashSet<(SocketAddr, SocketAddr)>>>);

impl Dialled {
    fn connections(&self) -> MutexGuard<'_, HashSet<(SocketAddr, SocketAddr)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection of the proxy to where the app's was going.
struct Server {
    stream: TcpStream,
    ends: (SocketAddr, SocketAddr),
    dialled: Dialled,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.dialled.connections().remove(&self.ends);
    }
}

/// What a client has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// Something of HTTP, which is served here.
    Http,
    /// Something else, or that it will say nothing: it may want to hear something all the same.
    Other,
    /// Nothing, and it has gone.
    Gone,
}

/// Where a connection was going, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    /// To a component, at one of its ports.
    Component,
    /// To where nobody is: to components without a Service, at a port that none of them has.
    Nowhere,
    /// Somewhere else.
    Elsewhere,
}

impl Transparent {
    /// With nothing under way.
    pub fn new(side: Arc<OutboundSide>, addresses: Addresses, counts: Counts, token: String) -> Self {
        Self { side, addresses, counts, token, dialled: Dialled::default() }
    }

    /// Serves connections until `stop`; then accepts no more, lets what is under way end for at most `drain`, and cuts off the rest.
    pub async fn serve(self: Arc<Self>, listeners: Vec<TcpListener>, stop: CancellationToken, drain: Duration) {
        let places = Arc::new(Semaphore::new(self.side.config.outbound.max_connections.min(Semaphore::MAX_PERMITS)));
        let http = Arc::new(Http::new(&self.side));
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let (this, places, http, connections, cut, stop) = (self.clone(), places.clone(), http.clone(), connections.clone(), cut.clone(), stop.clone());
            accepting.spawn(async move { this.accept(listener, places, http, connections, cut, stop).await });
        }
        while accepting.join_next().await.is_some() {}
        connections.close();
        if tokio::time::timeout(drain, connections.wait()).await.is_err() {
            warn!(connections = connections.len(), "cut off connections of the app that had not ended within the drain");
            cut.cancel();
            connections.wait().await;
        }
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        places: Arc<Semaphore>,
        http: Arc<Http>,
        connections: TaskTracker,
        cut: CancellationToken,
        stop: CancellationToken,
    ) {
        loop {
            // Connections beyond the limit wait in the system's queue.
            let accepting = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((place, listener.accept().await))
            };
            let Some(Some((place, accepted))) = stop.run_until_cancelled(accepting).await else { return };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = Box::pin(self.clone().connection(stream, peer, http.clone(), Arc::new(place), stop.clone()));
                    let cut = cut.clone();
                    connections.spawn(async move { cut.run_until_cancelled(connection).await });
                }
                Err(problem) => {
                    // Out of file descriptors, usually: it gets better when connections end.
                    warn!(%problem, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, client: TcpStream, peer: SocketAddr, http: Arc<Http>, place: Place, stop: CancellationToken) {
        let _open = During::new(&self.counts.open);
        let count = |kind: &str| self.counts.connections.inc(kind);
        let towards = match original_destination(&client) {
            Ok(towards) => towards,
            Err(problem) => {
                debug!(%peer, %problem, "refused a connection: nobody knows where it was going");
                count("direct");
                return reset(client);
            }
        };
        if client.local_addr().is_ok_and(|local| local == towards) {
            debug!(%peer, "refused a connection that was made to the transparent listener itself; it takes only what the redirect sends");
            count("direct");
            return reset(client);
        }
        if self.dialled.connections().contains(&(peer, towards)) {
            error!(%towards, "a connection of the proxy's own was sent back to it: the redirect does not know the user that this proxy runs as; run `bluebox redirect` with its --proxy-uid");
            count("loop");
            return reset(client);
        }
        if address::is_ours(towards.ip().to_canonical()) && towards.port() == probe::PORT {
            let mut client = client;
            if let Err(problem) = client.write_all(self.token.as_bytes()).await {
                debug!(%problem, "could not tell that the redirect is in place");
            }
            return;
        }
        let going = self.going(towards);
        if going == Going::Nowhere {
            debug!(%towards, "refused a connection to a component without a Service, at a port that none has");
            count("nowhere");
            return reset(client);
        }
        let _ = client.set_nodelay(true);
        // Boxed, as what follows is: a caller may wait for long, and meanwhile no room is kept for what is over or never comes.
        match Box::pin(self.until_someone_speaks(&client, towards, going)).await {
            Ok(Spoke::Http) => {
                count("http");
                Box::pin(intercept::connection(client, self.side.clone(), http, place, stop, Some(towards))).await;
            }
            Ok(Spoke::Splice(server)) => {
                count("spliced");
                Box::pin(splice(client, server, towards)).await;
            }
            Ok(Spoke::Nobody) => count("silent"),
            Err(problem) => {
                debug!(%towards, %problem, "reset a connection: it could not be made to where it was going");
                count(if problem.kind() == io::ErrorKind::TimedOut { "timeout" } else { "refused" });
                reset(client);
            }
        }
    }

    /// Where a connection is going.
    fn going(&self, towards: SocketAddr) -> Going {
        let directory = self.side.directory.borrow();
        let (ip, port) = (towards.ip().to_canonical(), towards.port());
        if address::is_ours(ip) {
            // Before the registry is read, any port may be one's.
            let some = !directory.complete || port == 80 || directory.registry.iter().any(|(_, component)| component.ports.contains(&port));
            return if some { Going::Component } else { Going::Nowhere };
        }
        let is_one = |name: &str| match directory.registry.get(name) {
            Some((_, component)) => component.ports.contains(&port),
            None => !directory.complete,
        };
        if self.addresses.names(ip).iter().any(|name| is_one(name)) { Going::Component } else { Going::Elsewhere }
    }

    /// What becomes of a connection.
    async fn until_someone_speaks(&self, client: &TcpStream, towards: SocketAddr, going: Going) -> io::Result<Spoke> {
        let directory = self.side.directory.clone();
        let mut since = directory.clone();
        since.mark_unchanged();
        let port = towards.port();
        let look = move |bytes: &[u8]| match going {
            Going::Component => sniff::speaks(bytes),
            // Of nothing that is no component's a moment is taken.
            _ if sniff::names_a_component(bytes, port, &directory.borrow()) => Speaks::Http,
            _ => Speaks::Other,
        };
        let mut saying = std::pin::pin!(first_said(client, &look));
        let ours = address::is_ours(towards.ip().to_canonical());
        if going == Going::Component {
            // Nobody else speaks there, and a slow client has as long as anywhere.
            let patience = if ours { self.side.config.outbound.head_timeout } else { FIRST_BYTES };
            match tokio::time::timeout(patience, &mut saying).await {
                Ok(Said::Http) => return Ok(Spoke::Http),
                Ok(Said::Gone) => return Ok(Spoke::Nobody),
                Ok(Said::Other) | Err(_) if ours => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody is at the address of components without a Service"));
                }
                Ok(Said::Other) => return Ok(Spoke::Splice(self.dial(towards).await?)),
                Err(_) => {}
            }
        }
        let mut dialling = std::pin::pin!(self.dial(towards));
        let dialled = tokio::select! {
            biased;
            said = &mut saying => match said {
                Said::Http => return Ok(Spoke::Http),
                Said::Gone => return Ok(Spoke::Nobody),
                Said::Other => return Ok(once_connected(client, dialling.await?, &since, &look).await),
            },
            dialled = &mut dialling => dialled,
        };
        let server = match dialled {
            Ok(server) => server,
            // A component may be called although nobody is there now: a call waits. Nothing else does.
            Err(problem) if going == Going::Component => {
                let patience = self.side.config.outbound.head_timeout;
                return match tokio::time::timeout(patience, &mut saying).await {
                    Ok(Said::Http) => Ok(Spoke::Http),
                    Ok(Said::Gone) => Ok(Spoke::Nobody),
                    _ => Err(problem),
                };
            }
            Err(problem) => return Err(problem),
        };
        tokio::select! {
            biased;
            said = &mut saying => match said {
                Said::Http => Ok(Spoke::Http),
                // If it has gone, the server has to be told.
                Said::Other | Said::Gone => Ok(Spoke::Splice(server)),
            },
            _ = server.stream.readable() => Ok(Spoke::Splice(server)),
        }
    }

    /// Connects to where the app's connection was going.
    async fn dial(&self, towards: SocketAddr) -> io::Result<Server> {
        let timeout = self.side.config.outbound.connect_timeout;
        let stream = tokio::time::timeout(timeout, TcpStream::connect(towards)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let ends = (stream.local_addr()?, towards);
        self.dialled.connections().insert(ends);
        let server = Server { stream, ends, dialled: self.dialled.clone() };
        server.stream.set_nodelay(true)?;
        SockRef::from(&server.stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        Ok(server)
    }
}

/// Who spoke first, and so what becomes of a connection.
enum Spoke {
    /// The client, HTTP: it is served here.
    Http,
    /// The server, or the client and no HTTP: the two are put together.
    Splice(Server),
    /// Nobody, and the client has gone.
    Nobody,
}

/// A server was connected to for what a client has said, which was no call. Where that took long, it may be one now: it takes as long as there is nobody, if the network says nothing
/// about a Service without pods, and then the first box of a component is there, which has registered before.
async fn once_connected(client: &TcpStream, server: Server, since: &watch::Receiver<Directory>, look: impl Fn(&[u8]) -> Speaks) -> Spoke {
    if since.has_changed().unwrap_or(false) && first_said(client, look).await == Said::Http { Spoke::Http } else { Spoke::Splice(server) }
}

/// Waits until it is clear what a client says first. Never ends while it says nothing.
///
/// Cancel safe: nothing is taken out of the socket.
pub(crate) async fn first_said(client: &TcpStream, look: impl Fn(&[u8]) -> Speaks) -> Said {
    // Before there is something to look at there is no memory for it.
    if client.readable().await.is_err() {
        return Said::Gone;
    }
    let mut bytes = vec![0; LOOKED_AT];
    loop {
        match client.peek(&mut bytes).await {
            Ok(0) => return Said::Other,
            Err(_) => return Said::Gone,
            Ok(there) => match look(&bytes[..there]) {
                Speaks::Http => return Said::Http,
                Speaks::Other => return Said::Other,
                Speaks::Unclear if there == bytes.len() => return Said::Http,
                // The socket does not tell when there is more than what was looked at.
                Speaks::Unclear => tokio::time::sleep(LOOK_AGAIN).await,
            },
        }
    }
}

/// Copies bytes both ways until both sides have ended. If one of them breaks off, the other one is told so.
async fn splice(mut client: TcpStream, mut server: Server, towards: SocketAddr) {
    match tokio::io::copy_bidirectional(&mut client, &mut server.stream).await {
        Ok((out, back)) => debug!(%towards, out, back, "a spliced connection ended"),
        Err(problem) => {
            debug!(%towards, %problem, "a spliced connection broke off");
            let _ = client.set_zero_linger();
            let _ = server.stream.set_zero_linger();
        }
    }
}

/// Ends a connection so that its client sees that it failed (RST), and not that it is over.
fn reset(client: TcpStream) {
    let _ = client.set_zero_linger();
}

/// Where a connection was going before the redirect sent it here.
fn original_destination(client: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client);
    let found = match client.local_addr()? {
        SocketAddr::V6(local) if local.ip().to_ipv4_mapped().is_none() => socket.original_dst_v6()?,
        _ => socket.original_dst_v4()?,
    };
    found.as_socket().ok_or_else(|| io::Error::other("its destination is no internet address"))
}

#[cfg(test)]
mod tests {
    use bluebox_core::registry::{Component, Registry};

    use super::*;

    #[tokio::test]
    async fn what_became_a_component_while_it_was_connected_to_is_called() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let pair = async || tokio::try_join!(TcpStream::connect(there), async { listener.accept().await.map(|(stream, _)| stream) }).unwrap();
        let ((mut app, client), (other, _server)) = (pair().await, pair().await);
        app.write_all(b"GET / HTTP/1.1\r\nHost: late\r\n\r\n").await.unwrap();
        client.readable().await.unwrap();

        let directory = watch::Sender::new(Directory { complete: true, ..Directory::default() });
        let since = directory.subscribe();
        let look = |bytes: &[u8]| if sniff::names_a_component(bytes, 80, &directory.borrow()) { Speaks::Http } else { Speaks::Other };
        let server = Server { stream: other, ends: (there, there), dialled: Dialled::default() };
        let Spoke::Splice(server) = once_connected(&client, server, &since, look).await else { panic!("nobody knows of a component") };

        let mut registry = Registry::default();
        registry.apply(b"other", Some(&serde_json::to_vec(&Component::default()).unwrap())).unwrap();
        directory.send_modify(|directory| directory.registry = Arc::new(registry.clone()));
        let Spoke::Splice(server) = once_connected(&client, server, &since, look).await else { panic!("it is another component") };

        registry.apply(b"late", Some(&serde_json::to_vec(&Component::default()).unwrap())).unwrap();
        directory.send_modify(|directory| directory.registry = Arc::new(registry));
        assert!(matches!(once_connected(&client, server, &since, look).await, Spoke::Http));
    }
}

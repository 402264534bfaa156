//! The process's own proxy, spoken to by HTTP/2: many requests share a connection.
//!
//! A connection of HTTP/1.1 has one request at a time, and buffers at both ends, and both ends are this process: with some 60 kB for each callback that is under way, that was most of what a
//! transaction takes.

use std::net::SocketAddr;

use bluebox_observe::chain;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

/// Requests that share a connection: as many as the proxy takes.
const STREAMS: usize = 250;
/// The most connections. One is enough, unless many participants take their time.
const CONNECTIONS: usize = 8;
/// Requests that can be under way at once.
pub(super) const AT_ONCE: usize = STREAMS * CONNECTIONS;
/// How much of an answer's head is taken.
const MAX_HEAD_BYTES: u32 = 256 << 10;

/// A connection, once there is one.
struct Shared {
    places: Semaphore,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

/// Where this process's proxy takes calls.
pub(super) struct OwnProxy {
    address: SocketAddr,
    shared: [Shared; CONNECTIONS],
}

/// What an answer comes with: as long as it is there, its body can be read.
pub(super) struct Place<'a>(#[expect(dead_code, reason = "it is let go when it is dropped")] SemaphorePermit<'a>);

impl OwnProxy {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, shared: std::array::from_fn(|_| Shared { places: Semaphore::new(STREAMS), connection: Mutex::default() }) }
    }

    /// Sends a request; where [`AT_ONCE`] are under way, when one of them has ended. Its URI names the component.
    ///
    /// Cancel safe: dropped, the request is as one whose client has hung up.
    ///
    /// # Errors
    /// When the proxy takes no connection, or broke off. It is not known then whether it has got the request.
    pub(super) async fn request(&self, request: Request<Full<Bytes>>) -> Result<(Response<Incoming>, Place<'_>), String> {
        let (shared, place) = self.place().await?;
        let mut sender = self.connected(shared).await?;
        let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
        Ok((response, Place(place)))
    }

    /// A place on the first connection that has one: so there are no more connections than are needed.
    async fn place(&self) -> Result<(&Shared, SemaphorePermit<'_>), String> {
        for shared in &self.shared {
            if let Ok(place) = shared.places.try_acquire() {
                return Ok((shared, place));
            }
        }
        let [first, ..] = &self.shared;
        // Never closed.
        Ok((first, first.places.acquire().await.map_err(|error| error.to_string())?))
    }

    async fn connected(&self, shared: &Shared) -> Result<SendRequest<Full<Bytes>>, String> {
        let mut connection = shared.connection.lock().await;
        if let Some(sender) = connection.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TcpStream::connect(self.address).await.map_err(|error| format!("{}: {error}", self.address))?;
        let _ = stream.set_nodelay(true);
        let mut builder = Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(MAX_HEAD_BYTES);
        let (sender, serving) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
        // Whoever has a request under way is told by that how it ended.
        tokio::spawn(async move { drop(serving.await) });
        Ok(connection.insert(sender).clone())
    }
}

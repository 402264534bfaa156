//! What is no component goes its way, streaming in both directions: ordinary requests, upgrades (WebSocket) and tunnels (CONNECT).
//!
//! No `Via` is added, although RFC 9110, section 7.6.3, asks it of a proxy: apps are to see what they would see without Bluebox, and some servers answer
//! otherwise when it is there. What `Via` is for, finding loops, is done by looking at where a connection went.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bluebox_observe::During;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use tracing::debug;

use crate::bulk::OutBody;
use crate::fields;
use crate::head::MOST_FIELDS;
use crate::metrics::Metrics;
use crate::outbound::AppBody;
use crate::outbound::interim::Interims;
use crate::outbound::respond::{AnswerBody, Asked, BodyError};
use crate::outbound::route::{Target, wants_upgrade};
use crate::problem::{Kind, Problem};
use crate::registry::Directory;
use crate::target::{self, Verbatim};

/// Unused connections to one server that are kept.
const IDLE_PER_HOST: usize = 32;
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The way past the log. Cheap to clone.
#[derive(Clone)]
pub struct PassThrough {
    http1: Client<Verbatim<Connector>, Asking>,
    http2: Client<Verbatim<Connector>, Asking>,
    connector: Connector,
    metrics: Metrics,
    /// Tunnels and upgraded connections, which outlive the requests that began them.
    tunnels: TaskTracker,
    stop: CancellationToken,
    turn: Arc<AtomicUsize>,
}

/// A place among the connections that may be open at once; a tunnel keeps that of the connection it came from.
pub type Place = Arc<OwnedSemaphorePermit>;

impl PassThrough {
    /// For a proxy that listens at these addresses of its `own`, none of which it connects to, and knows these components; its connections come up within `connect_timeout`.
    pub fn new(own: Vec<SocketAddr>, directory: watch::Receiver<Directory>, connect_timeout: Duration, metrics: Metrics) -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        // A server with several addresses: the timeout is for all of them, so that one that is dead does not use it up.
        http.set_connect_timeout(Some(connect_timeout));
        let connector = Connector { http, own: own.into(), directory, timeout: connect_timeout };
        let http1 = client(IDLE_PER_HOST).build(Verbatim::new(connector.clone(), None));
        let http2 = client(IDLE_PER_HOST).http2_only(true).build(Verbatim::new(connector.clone(), None));
        Self { http1, http2, connector, metrics, tunnels: TaskTracker::new(), stop: CancellationToken::new(), turn: Arc::default() }
    }

    /// Cuts off all tunnels, and waits until they have ended.
    pub async fn close(&self) {
        self.tunnels.close();
        self.stop.cancel();
        self.tunnels.wait().await;
    }

    /// Sends a request on and answers with what comes back. `direct` says where, if not to the authority that the request names.
    ///
    /// # Errors
    /// When the server can't be reached, or breaks off before its answer.
    pub async fn pass(&self, request: Request<AppBody>, target: Target, direct: &[String], place: Place) -> Result<Response<AnswerBody>, Problem> {
        let to = self.one_of(direct)?.unwrap_or_else(|| target.authority.clone());
        if target.tunnel { self.tunnel(request, &to, place).await } else { self.forward(request, target, to, place).await }
    }

    /// The boxes of a component take turns.
    fn one_of(&self, direct: &[String]) -> Result<Option<Authority>, Problem> {
        if direct.is_empty() {
            return Ok(None);
        }
        let address = &direct[self.turn.fetch_add(1, Ordering::Relaxed) % direct.len()];
        Authority::try_from(address.as_str())
            .map(Some)
            .map_err(|_| Problem::new(Kind::PassThroughFailed, format!("direct address {address:?} is no host:port; correct the component's registration")))
    }

    /// Connects a caller to one of `direct`, with what has come from him already.
    ///
    /// # Errors
    /// When none can be connected to.
    pub(crate) async fn connect(&self, caller: TcpStream, came: Vec<u8>, direct: &[String], place: Place) -> Result<(), Problem> {
        let nowhere = || Problem::new(Kind::PassThroughFailed, "no address of a box is known");
        let to = self.one_of(direct)?.ok_or_else(nowhere)?;
        let server = self.connector.clone().call(uri(&to, "")?.0).await.map_err(|e| failure(&to, &*e, true))?;
        let server = async move {
            let mut server = server.into_inner();
            server.write_all(&came).await.map(|()| server)
        };
        self.splice("tunnelled", std::future::ready(Ok(caller)), server, place);
        Ok(())
    }

    async fn forward(&self, mut request: Request<AppBody>, target: Target, to: Authority, place: Place) -> Result<Response<AnswerBody>, Problem> {
        let caller_side = hyper::upgrade::on(&mut request);
        let asked = Asked::of(&request);
        let (mut head, body) = request.into_parts();
        let upgrade = wants_upgrade(&head);
        let is_http2 = head.version == Version::HTTP_2;
        let interims = head.extensions.remove::<Interims>();
        let upgrades: Vec<HeaderValue> = head.headers.get_all(header::UPGRADE).iter().cloned().collect();

        strip(&mut head.headers);
        if !is_http2 {
            head.version = Version::HTTP_11;
            let host = HeaderValue::from_str(target.authority.as_str()).map_err(|e| Problem::new(Kind::BadRequest, format!("Host: {e}")))?;
            head.headers.insert(header::HOST, host);
        } else {
            head.headers.remove(header::HOST);
        }
        if asked.takes_trailers {
            head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
            if !is_http2 {
                head.headers.append(header::CONNECTION, HeaderValue::from_static("TE"));
            }
        }
        if upgrade {
            head.headers.append(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            for value in upgrades {
                head.headers.append(header::UPGRADE, value);
            }
        }
        let raw_target;
        (head.uri, raw_target) = uri(&to, &target.target)?;
        head.extensions.clear();

        let expects = head.headers.contains_key(header::EXPECT);
        let mut request = Request::from_parts(head, Asking { body, wanted: None });
        let (sender, wanted) = watch::channel(false);
        hyper::ext::on_informational(&mut request, move |told| match (told.status(), &interims) {
            // The caller is told so when its body is read.
            (StatusCode::CONTINUE, _) => _ = sender.send_replace(true),
            (status, Some(interims)) => interims.push(status, told.headers()),
            (_, None) => {}
        });
        if expects {
            request.body_mut().wanted = Some(Box::pin(when_wanted(wanted)));
        }
        let client = match raw_target {
            // On a connection of its own: it is the first request there.
            Some(_) => &client(0).build(Verbatim::new(self.connector.clone(), raw_target)),
            None if is_http2 => &self.http2,
            None => &self.http1,
        };
        let mut response = client.request(request).await.map_err(|e| failure(&to, &e, e.is_connect()))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !upgrade {
                return Err(Problem::new(Kind::PassThroughFailed, format!("{to} switched protocols unasked (RFC 9110, section 7.8)")));
            }
            let server_side = hyper::upgrade::on(&mut response);
            self.splice("upgraded", upgraded(caller_side), upgraded(server_side), place);
            let protocols: Vec<HeaderValue> = response.headers().get_all(header::UPGRADE).iter().cloned().collect();
            let mut response = response.map(|_| AnswerBody::Own(OutBody::empty()));
            strip(response.headers_mut());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            for protocol in protocols {
                response.headers_mut().append(header::UPGRADE, protocol);
            }
            return Ok(response);
        }
        if fields::is_still_coded(response.headers()) {
            let what = format!("{to} answered in a transfer coding that it was not asked for (RFC 9112, section 7.4)");
            return Err(Problem::new(Kind::PassThroughFailed, what));
        }
        self.metrics.passed.inc("forwarded");
        let (mut head, body) = response.into_parts();
        if head.headers.contains_key(header::TRANSFER_ENCODING) && asked.method != Method::HEAD {
            // Of two framings this one counts, and the other is not passed on (RFC 9112, section 6.3).
            head.headers.remove(header::CONTENT_LENGTH);
        }
        strip(&mut head.headers);
        head.version = Version::HTTP_11;
        let told = head.headers.contains_key(header::CONTENT_LENGTH);
        let body = match asked.method {
            Method::HEAD => AnswerBody::Own(OutBody::empty()),
            _ => asked.body(head.status, told, AnswerBody::Through(body)),
        };
        Ok(Response::from_parts(head, body))
    }

    async fn tunnel(&self, mut request: Request<AppBody>, to: &Authority, place: Place) -> Result<Response<AnswerBody>, Problem> {
        let server = self.connector.clone().call(uri(to, "")?.0).await.map_err(|e| failure(to, &*e, true))?;
        let caller_side = hyper::upgrade::on(&mut request);
        self.splice("tunnelled", upgraded(caller_side), std::future::ready(Ok(server.into_inner())), place);
        // Any 2xx opens the tunnel, and has no content (RFC 9110, section 9.3.6).
        Ok(Response::new(AnswerBody::Own(OutBody::empty())))
    }

    /// Copies bytes both ways until both sides have ended, or this proxy does.
    fn splice<C, S>(
        &self,
        how: &'static str,
        caller: impl Future<Output = std::io::Result<C>> + Send + 'static,
        server: impl Future<Output = std::io::Result<S>> + Send + 'static,
        place: Place,
    ) where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
    {
        self.metrics.passed.inc(how);
        let open = During::new(&self.metrics.tunnels);
        let stop = self.stop.clone();
        self.tunnels.spawn(async move {
            let (_place, _open) = (place, open);
            let copy = async {
                let mut server = server.await?;
                let mut caller = caller.await?;
                tokio::io::copy_bidirectional(&mut caller, &mut server).await
            };
            match stop.run_until_cancelled(copy).await {
                Some(Ok((out, back))) => debug!(how, out, back, "a tunnel ended"),
                Some(Err(problem)) => debug!(how, %problem, "a tunnel broke off"),
                None => debug!(how, "a tunnel was cut off: the proxy ends"),
            }
        });
    }
}

async fn upgraded(side: hyper::upgrade::OnUpgrade) -> std::io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    side.await.map(TokioIo::new).map_err(std::io::Error::other)
}

fn strip(headers: &mut HeaderMap) {
    fields::strip_hop_by_hop(headers);
    fields::strip_own(headers);
}

fn client(idle_per_host: usize) -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(idle_per_host).pool_timer(TokioTimer::new()).timer(TokioTimer::new()).set_host(false);
    builder.http1_max_headers(MOST_FIELDS);
    // Whoever passes a response on mends these (RFC 9112, sections 5.1 and 5.2).
    builder.http1_allow_spaces_after_header_name_in_responses(true).http1_allow_obsolete_multiline_headers_in_responses(true);
    builder
}

/// The URI of a request, and its target as it is to be sent where the URI can't have it so.
fn uri(to: &Authority, target: &str) -> Result<(Uri, Option<Box<str>>), Problem> {
    let bad = |e: &dyn std::fmt::Display| Problem::new(Kind::BadRequest, format!("request target: {e}"));
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(to.clone());
    let (path, raw_target) = target::path_and_query(if target.is_empty() { "/" } else { target }).map_err(|e| bad(&e))?;
    parts.path_and_query = Some(path);
    Ok((Uri::from_parts(parts).map_err(|e| bad(&e))?, raw_target))
}

fn failure(to: &Authority, error: &(dyn std::error::Error + 'static), before_sending: bool) -> Problem {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(e) = next {
        if e.is::<Looped>() {
            return Problem::new(Kind::Loop, format!("{to} is this proxy itself: name a component or another server"));
        }
        if e.is::<Registered>() {
            return Problem::new(Kind::NotReady, format!("{to}: {e}; nothing was sent there: try again, and it is a call"));
        }
        if e.is::<TimedOut>() {
            return Problem::new(Kind::PassThroughTimeout, format!("{to}: {e}"));
        }
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    if before_sending && !to.host().contains(['.', ':']) {
        text.push_str("; no component of this name is registered for this port either");
    }
    Problem::new(Kind::PassThroughFailed, format!("{to}{text}")).retry_safe(before_sending)
}

/// How long a server that was told `Expect: 100-continue` may be silent before the body is sent all the same (RFC 9110, section 10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

async fn when_wanted(mut wanted: watch::Receiver<bool>) {
    let _ = tokio::time::timeout(CONTINUE_TIMEOUT, async {
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            // Nobody can say so any more.
            std::future::pending::<()>().await;
        }
    })
    .await;
}

/// The body of a request on its way. Where its caller waits for `100 Continue`, reading it is what asks for it: so it is read only when the server wants it.
struct Asking {
    body: AppBody,
    wanted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl http_body::Body for Asking {
    type Data = bytes::Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if let Some(wanted) = &mut self.wanted {
            std::task::ready!(wanted.as_mut().poll(cx));
            self.wanted = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The connection would have come back to this proxy.
#[derive(Debug, thiserror::Error)]
#[error("the connection leads back to this proxy")]
struct Looped;

/// What was no component when a connection to it was begun is one now.
#[derive(Debug, thiserror::Error)]
#[error("a component of this name registered while it was connected to")]
struct Registered;

/// The connection did not come up in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {}", humantime::format_duration(self.0))]
struct TimedOut(Duration);

/// Connects, but never to this proxy itself, and not to what has become a component meanwhile: a Service without pods may refuse no connection, and then it takes until the first box is there,
/// which has registered before. What is sent to that is not to go past the log.
#[derive(Debug, Clone)]
struct Connector {
    http: HttpConnector,
    own: Arc<[SocketAddr]>,
    directory: watch::Receiver<Directory>,
    timeout: Duration,
}

impl Connector {
    /// A connection leads back here if its other end is where this proxy listens: at that address, or, where it listens at all of them, at the address that
    /// the connection itself comes from.
    fn leads_back(&self, stream: &TcpStream) -> bool {
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return false };
        // An IPv4 address may come as an IPv6 one.
        let (port, peer, local) = (peer.port(), peer.ip().to_canonical(), local.ip().to_canonical());
        self.own.iter().filter(|own| own.port() == port).any(|own| {
            let own = own.ip().to_canonical();
            peer == own || (own.is_unspecified() && (peer == local || peer.is_loopback()))
        })
    }

    /// Whether a request to there is a call, as far as is known now.
    fn is_a_component(&self, to: &Uri) -> bool {
        let (host, port) = (to.host().unwrap_or_default().to_ascii_lowercase(), to.port_u16().unwrap_or(80));
        self.directory.borrow().component_at(&host, &[port]).is_some()
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BodyError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        // A box of a component that is connected to past the log is one already.
        let was_one = self.is_a_component(&to);
        let connecting = self.http.call(to.clone());
        let this = self.clone();
        Box::pin(async move {
            // Looking the name up counts too.
            let stream = tokio::time::timeout(this.timeout, connecting).await.map_err(|_| TimedOut(this.timeout))??;
            if this.leads_back(stream.inner()) {
                return Err(Looped.into());
            }
            if !was_one && this.is_a_component(&to) { Err(Registered.into()) } else { Ok(stream) }
        })
    }
}

#[cfg(test)]
mod tests {
    use bluebox_core::registry::{Component, Registry};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_became_a_component_while_it_was_connected_to_is_not_sent_past_the_log() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // A name that a component can have, and that every machine knows: 127.0.0.1 in another form.
        let (name, to) = (b"0x7f000001", Uri::try_from(format!("http://0x7f000001:{port}/")).unwrap());
        let directory = watch::Sender::new(Directory { complete: true, ..Directory::default() });
        let mut connector = Connector { http: HttpConnector::new(), own: Arc::default(), directory: directory.subscribe(), timeout: Duration::from_secs(20) };
        let register = |ports: Vec<u16>| {
            let mut registry = Registry::default();
            registry.apply(name, Some(&serde_json::to_vec(&Component { ports, ..Component::default() }).unwrap())).unwrap();
            directory.send_modify(|directory| directory.registry = Arc::new(registry));
        };

        let connecting = connector.call(to.clone());
        assert!(connecting.await.is_ok(), "nobody knows of a component");
        let connecting = connector.call(to.clone());
        register(vec![80]);
        assert!(connecting.await.is_ok(), "at another port it is a server like any other");

        let connecting = connector.call(to.clone());
        register(vec![80, port]);
        let error = connecting.await.unwrap_err();
        assert_eq!(failure(to.authority().unwrap(), &*error, true).kind(), Kind::NotReady);

        // Where it is known to be one, it was decided that this does not go through the log.
        assert!(connector.call(to).await.is_ok());
    }
}

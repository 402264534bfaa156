//! Hands a call to the app, over loopback or in this process, and takes its answer in.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bluebox_core::call::{Call, Digest, Outcome, Reason, Response, Source};
use bluebox_core::{CallId, ComponentName, fail_point_async};
use bluebox_observe::chain;
use bluebox_observe::trace::{Context, TRACEPARENT};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_service::Service;

use super::partition::DeliveryEnd;
use crate::bulk::{Bulk, OutBody, TakeIn, TakeInError};
use crate::config::{self, AppProtocol, InProcess, Inbound, RouteLimits, Served};
use crate::context::trace::Trace;
use crate::context::{Contexts, LONG_RUNNING_ACTION};
use crate::fields;
use crate::head::MOST_FIELDS;
use crate::problem::Problem;
use crate::target::{self, Verbatim};
use crate::transaction::coordinator::RECOVERY;

/// How long a connection to the app may take to come up. It is on loopback: longer means that nobody accepts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An idle connection to the app is kept for so long. Short, because many servers close theirs after 5 s, and a request that crosses that close
/// looks like a crash.
const POOL_IDLE: Duration = Duration::from_secs(3);

/// An app that is alive answers a request that asks for nothing within this, whatever it is at.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer that is not complete when the time for an attempt is over counts as broken off if nothing came of it for so long, and else as one that never ends.
const ANSWER_IDLE: Duration = Duration::from_secs(60);

/// The longest head of an answer.
const ANSWER_HEAD_BYTES: usize = 1 << 20;

/// The app of this box. Cheap to clone.
#[derive(Clone)]
pub struct App {
    way: Way,
    component: ComponentName,
    bulk: Bulk,
    contexts: Contexts,
    attempt_timeout: Duration,
    answer_limit_bytes: u64,
    retry_on: Vec<StatusCode>,
    /// Whether the app is told the partition of a call.
    tells_partition: bool,
    /// The longest path first.
    routes: Vec<RouteLimits>,
    /// Attempts in a row that got no answer.
    unanswered: Arc<AtomicU32>,
}

/// How requests come to the app.
#[derive(Clone)]
enum Way {
    Loopback(Arc<Loopback>),
    Here(Arc<dyn InProcess>),
}

struct Loopback {
    client: Client<Verbatim<ToApp>, OutBody>,
    connector: ToApp,
    address: SocketAddr,
    protocol: AppProtocol,
}

/// Connects to the app, whichever host a request names.
#[derive(Debug, Clone)]
struct ToApp {
    inner: HttpConnector,
    app: Option<Uri>,
}

impl ToApp {
    fn new(app: SocketAddr) -> Self {
        let mut inner = HttpConnector::new();
        inner.set_nodelay(true);
        inner.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Self { inner, app: Uri::try_from(format!("http://{app}/")).ok() }
    }
}

impl Service<Uri> for ToApp {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = <HttpConnector as Service<Uri>>::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, named: Uri) -> Self::Future {
        // Every address makes a URI.
        self.inner.call(self.app.clone().unwrap_or(named))
    }
}

/// One try to hand a call to the app.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// Whether a former one may have been cut off by a crash.
    pub may_have_started: bool,
    /// The partition that the call lies in.
    pub partition: u32,
    /// Its span, if that is kept: the app is told of it instead of the one that the call came with.
    pub trace: Option<Context>,
}

/// In which transaction a call is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Handed {
    /// In the one that it came with, or in none.
    #[default]
    AsItCame,
    /// In none, whatever it came with.
    Without,
    /// In this one.
    Within {
        /// The LRA's URL.
        context: HeaderValue,
        /// Where the app's record as participant is, if it has one.
        recovery: Option<HeaderValue>,
    },
}

impl App {
    /// The app that serves a component. Its large answers go to where `bulk` writes; `contexts` knows what it is at.
    pub fn new(served: &Served, limits: &Inbound, bulk: Bulk, contexts: Contexts) -> Self {
        let way = match &served.app {
            config::App::Here(app) => Way::Here(app.clone()),
            config::App::At { address, protocol } => {
                let connector = ToApp::new(*address);
                let client = client(limits.concurrency).http2_only(*protocol == AppProtocol::H2c).build(Verbatim::new(connector.clone(), None));
                Way::Loopback(Arc::new(Loopback { client, connector, address: *address, protocol: *protocol }))
            }
        };
        let mut routes = limits.routes.clone();
        routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
        Self {
            way,
            component: served.name.clone(),
            bulk,
            contexts,
            attempt_timeout: limits.attempt_timeout,
            answer_limit_bytes: limits.answer_limit_bytes,
            retry_on: limits.retry_on.clone(),
            tells_partition: !served.component.routing.is_usual(),
            routes,
            unanswered: Arc::default(),
        }
    }

    /// How long this call's attempts may take, and which answers to it are failed attempts.
    fn limits_of(&self, call: &Call) -> (Duration, &[StatusCode]) {
        let route = self.routes.iter().find(|route| route.fits(&call.request.target));
        let time = route.and_then(|route| route.attempt_timeout).unwrap_or(self.attempt_timeout);
        let retry_on = route.and_then(|route| route.retry_on.as_ref()).unwrap_or(&self.retry_on);
        // Never below the wait: as long as somebody waits for this answer, it is worth waiting for.
        (time.max(call.wait.unwrap_or_default()), retry_on)
    }

    /// Whether the app accepts connections.
    pub async fn accepts(&self) -> bool {
        let Way::Loopback(there) = &self.way else { return true };
        matches!(tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(there.address)).await, Ok(Ok(_)))
    }

    /// Attempts in a row that got no answer.
    pub fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// It has answered something: it is alive.
    pub fn is_alive(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
    }

    /// Whether the app answers at all: `OPTIONS /` changes nothing (RFC 9110, section 9.3.7), and any answer will do. Calls that are slow by themselves don't make an
    /// app one that hangs. Not `OPTIONS *`: there are servers that answer that by themselves, whatever has become of the app's own code (Go's).
    pub async fn answers(&self) -> bool {
        // One in this process is alive as it is.
        let Way::Loopback(there) = &self.way else { return true };
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(there.address).await.ok()?;
            // With prior knowledge of HTTP/2, a connection is answered with the server's settings (RFC 9113, section 3.4): of the client's, these are the empty ones.
            const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            const HTTP1: &[u8] = b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(if there.protocol == AppProtocol::H2c { HTTP2 } else { HTTP1 }).await.ok()?;
            stream.read_u8().await.ok()
        };
        matches!(tokio::time::timeout(PING_TIMEOUT, ask).await, Ok(Some(_)))
    }

    /// Hands over a call and takes the complete answer in.
    ///
    /// Dropping the future closes the connection to the app (HTTP/1.1) or resets the stream (HTTP/2).
    pub async fn deliver(&self, call: &Call, attempt: Attempt, handed: &Handed) -> DeliveryEnd {
        let headers = &call.request.headers;
        let context = match handed {
            Handed::AsItCame => headers.get(LONG_RUNNING_ACTION),
            Handed::Without => None,
            Handed::Within { context, .. } => Some(context),
        };
        let trace = || -> Option<Trace> { attempt.trace.or_else(|| Context::of(headers)).map(Into::into) };
        let under_way = self.contexts.begun(&self.component, context, trace, self.limits_of(call).0);
        let end = self.exchange(call, attempt, handed).await;
        // After a failure, as after being cut off, the app may go on working.
        if !matches!(end, DeliveryEnd::Failed(_)) {
            under_way.ended();
        }
        end
    }

    async fn exchange(&self, call: &Call, attempt: Attempt, handed: &Handed) -> DeliveryEnd {
        let (request, raw_target) = match self.request(call, attempt, handed) {
            Ok(request) => request,
            // A call that can't be written as a request can't ever be delivered; it was taken in as one, so this is for the operator.
            Err(e) => return DeliveryEnd::Failed(format!("the call makes no request: {e}")),
        };
        fail_point_async!(InConnect, return DeliveryEnd::NotThere);
        let (time, retry_on) = self.limits_of(call);
        let ends = tokio::time::Instant::now() + time;
        let response = match tokio::time::timeout_at(ends, self.send(request, raw_target)).await {
            Err(_) => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                return DeliveryEnd::Failed(format!("no answer within {}", humantime::format_duration(time)));
            }
            Ok(Err(e)) if e.is_connect() => return DeliveryEnd::NotThere,
            Ok(Err(e)) if of_hyper(&e).is_some_and(hyper::Error::is_parse_too_large) => {
                self.is_alive();
                let detail = format!("the head of the app's answer has more than the {MOST_FIELDS} fields or {ANSWER_HEAD_BYTES} bytes that are taken");
                return self.no_answer(call, attempt, &detail);
            }
            Ok(Err(e)) if of_hyper(&e).is_some_and(hyper::Error::is_parse) => {
                self.is_alive();
                return self.no_answer(call, attempt, &format!("the app's answer can't be read as HTTP: {}", chain(&e)));
            }
            Ok(Err(e)) => return DeliveryEnd::Failed(chain(&e)),
            Ok(Ok(response)) => response,
        };
        self.is_alive();
        fail_point_async!(InHead, return DeliveryEnd::Failed("a fail point".to_owned()));
        let (mut head, body) = response.into_parts();
        if let Some(what) = no_outcome(&head) {
            return self.no_answer(call, attempt, what);
        }
        let longest = ends.saturating_duration_since(tokio::time::Instant::now());
        let limits = TakeIn { limit_bytes: self.answer_limit_bytes, idle_timeout: ANSWER_IDLE.min(time), waits_out: true, least_bytes_per_second: 0, longest };
        let taken = match self.bulk.take_in(body, &limits, None).await {
            // It was still coming: an endless answer, not a dead app, which the idle timeout sees.
            Err(TakeInError::Endless { .. }) => {
                return self.no_answer(call, attempt, &format!("the app's answer did not end within {}", humantime::format_duration(time)));
            }
            Err(TakeInError::TooLarge { limit_bytes }) => {
                return self.no_answer(call, attempt, &format!("the app's answer has more than the {limit_bytes} bytes that are taken"));
            }
            Err(e) => return DeliveryEnd::Failed(format!("the answer broke off: {e}")),
            Ok(taken) => taken,
        };
        fail_point_async!(InBody, return DeliveryEnd::Failed("a fail point".to_owned()));
        let not_now = if head.status == StatusCode::SERVICE_UNAVAILABLE { retry_after(&head.headers) } else { None };
        fields::strip_response(&call.request.method, head.status, &mut head.headers);
        let response = Response {
            status: head.status,
            reason: head.extensions.get::<hyper::ext::ReasonPhrase>().map(|r| bytes::Bytes::copy_from_slice(r.as_bytes())),
            headers: head.headers,
            body: taken.body,
            trailers: taken.trailers,
        };
        if retry_on.contains(&response.status) {
            return DeliveryEnd::Failed(format!("the app answered {}", response.status));
        }
        let outcome = Box::new(Outcome { id: call.id, replay: call.replay, attempts: attempt.number, digest: call.recorded, source: Source::App, response });
        match not_now {
            Some(pause) => DeliveryEnd::NotNow(pause, outcome),
            None => DeliveryEnd::Answered(outcome),
        }
    }

    async fn send(
        &self,
        request: http::Request<OutBody>,
        raw_target: Option<Box<str>>,
    ) -> Result<http::Response<Either<Incoming, Full<Bytes>>>, hyper_util::client::legacy::Error> {
        let there = match &self.way {
            Way::Loopback(there) => there,
            Way::Here(app) => {
                let mut response = app.answer(request).await;
                // As a server of HTTP adds it (RFC 9110, section 6.6.1).
                if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(std::time::SystemTime::now())) {
                    response.headers_mut().entry(header::DATE).or_insert(date);
                }
                return Ok(response.map(Either::Right));
            }
        };
        let response = match raw_target {
            // On a connection of its own: it is the first request there.
            Some(_) => client(0).build(Verbatim::new(there.connector.clone(), raw_target)).request(request).await,
            None => there.client.request(request).await,
        };
        response.map(|response| response.map(Either::Left))
    }

    fn no_answer(&self, call: &Call, attempt: Attempt, detail: &str) -> DeliveryEnd {
        DeliveryEnd::Answered(Box::new(refusal(call.id, call.replay, call.recorded, attempt.number, Reason::Answer, detail)))
    }

    /// The request, and its target as the app gets it where a URI can't have it so.
    fn request(&self, call: &Call, attempt: Attempt, handed: &Handed) -> Result<(http::Request<OutBody>, Option<Box<str>>), http::Error> {
        // Over HTTP/2, and in this process, the host that was called is a part of the URI (RFC 9113, section 8.3.1); over HTTP/1 all requests have one URI, so that they share connections.
        let http1 = match &self.way {
            Way::Loopback(there) if there.protocol == AppProtocol::Http1 => Some(there.address),
            _ => None,
        };
        let ((path, raw_target), authority) = match http1 {
            Some(address) => (target::path_and_query(&call.request.target)?, Authority::try_from(address.to_string())?),
            None => (target::path_and_query(&target::encoded(&call.request.target))?, Authority::try_from(call.request.authority.as_str())?),
        };
        let mut parts = http::uri::Parts::default();
        (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(authority), Some(path));
        let uri = Uri::from_parts(parts)?;
        let mut request = http::Request::builder().method(call.request.method.clone()).uri(uri);
        if http1.is_none() {
            request = request.version(Version::HTTP_2);
        }
        let body = self.bulk.give_out(call.request.body.clone(), call.request.trailers.clone());
        let mut request = request.body(body)?;
        let headers = request.headers_mut();
        *headers = call.request.headers.clone();
        if http1.is_some() {
            headers.insert(header::HOST, HeaderValue::from_str(&call.request.authority)?);
        }
        match handed {
            Handed::AsItCame => {}
            Handed::Without => _ = headers.remove(LONG_RUNNING_ACTION),
            Handed::Within { context, recovery } => {
                headers.insert(LONG_RUNNING_ACTION, context.clone());
                if let Some(recovery) = recovery {
                    headers.insert(RECOVERY, recovery.clone());
                }
            }
        }
        if let Some(trace) = attempt.trace {
            headers.insert(TRACEPARENT, trace.value());
        }
        fields::announce_trailers(headers, &call.request.trailers);
        if headers.contains_key(header::TE) && http1.is_some() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        let mut add = |name: HeaderName, value: &str| HeaderValue::from_str(value).map(|value| headers.insert(name, value));
        add(fields::CALL_ID, &call.id.to_string())?;
        add(fields::ATTEMPT, &attempt.number.to_string())?;
        add(fields::CALLER, call.caller.as_str())?;
        if self.tells_partition {
            add(fields::PARTITION, &attempt.partition.to_string())?;
        }
        // What is replayed was delivered before it became a dead letter, or may have been.
        if attempt.may_have_started || call.replay > 0 {
            add(fields::MAY_HAVE_STARTED, "true")?;
        }
        Ok((request, raw_target))
    }
}

fn client(idle_connections: usize) -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(POOL_IDLE).pool_timer(TokioTimer::new()).pool_max_idle_per_host(idle_connections);
    builder.http1_max_buf_size(ANSWER_HEAD_BYTES).http1_max_headers(MOST_FIELDS);
    // Whoever passes a response on mends these (RFC 9112, sections 5.1 and 5.2).
    builder.http1_allow_spaces_after_header_name_in_responses(true).http1_allow_obsolete_multiline_headers_in_responses(true);
    builder
}

/// What hyper says of an answer that can't be taken. The app has acted then.
fn of_hyper(error: &hyper_util::client::legacy::Error) -> Option<&hyper::Error> {
    error.source().and_then(|source| source.downcast_ref::<hyper::Error>())
}

/// The outcome of a call that a proxy ends itself.
pub fn refusal(id: CallId, replay: u32, digest: Option<Digest>, attempts: u32, reason: Reason, detail: &str) -> Outcome {
    Outcome { id, replay, attempts, digest, source: Source::Proxy(reason), response: Problem::for_reason(reason, id, detail) }
}

/// Why this answer can't be an outcome, if it is one that never ends by its nature, or can't be read.
fn no_outcome(head: &http::response::Parts) -> Option<&'static str> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Some("the app switched protocols unasked (101), so what it sends is no answer any more");
    }
    if fields::is_still_coded(&head.headers) {
        return Some("the app answered in a transfer coding that it was not asked for (RFC 9112, section 7.4)");
    }
    let media_type = head.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("text/event-stream").then_some("the app answered with an event stream, which has no end that could be recorded")
}

/// How long the app asks to be left alone (RFC 9110, section 10.2.3): seconds, or a date by the wall clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

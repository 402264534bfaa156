//! A caller: an app that calls through its proxy, as any HTTP client with `HTTP_PROXY` does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::deadline::within;

/// A request that a caller makes.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    uri: Uri,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    /// Any method.
    pub fn new(method: Method, url: &str) -> Self {
        Self { method, uri: url.parse().unwrap(), headers: Vec::new(), body: Bytes::new() }
    }

    /// A GET.
    pub fn get(url: &str) -> Self {
        Self::new(Method::GET, url)
    }

    /// A POST.
    pub fn post(url: &str, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(Method::POST, url) }
    }

    /// With a body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// With one more header field.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With `Prefer`.
    #[must_use]
    pub fn prefer(self, preference: &str) -> Self {
        self.with("prefer", preference)
    }

    /// With an ordering key.
    #[must_use]
    pub fn ordered(self, key: &str) -> Self {
        self.with("bluebox-ordering-key", key)
    }

    /// With an `Idempotency-Key`.
    #[must_use]
    pub fn keyed(self, key: &str) -> Self {
        self.with("idempotency-key", key)
    }

    /// Sends it to a proxy.
    pub async fn send_to(self, proxy: SocketAddr) -> Result<Answer, Lost> {
        let began = Instant::now();
        let stream = TcpStream::connect(proxy).await.map_err(|error| Lost(format!("{proxy}: {error}")))?;
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let host = self.uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = http::Request::builder().method(self.method).uri(self.uri).header("host", host);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(self.body)).unwrap()).await;
        let (head, body) = response?.into_parts();
        let collected = body.collect().await?;
        connection.abort();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Answer { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers, took: began.elapsed() })
    }
}

/// The connection to the proxy broke before there was an answer.
#[derive(Debug, Clone)]
pub struct Lost(pub String);

impl From<hyper::Error> for Lost {
    fn from(error: hyper::Error) -> Self {
        Self(format!("{error:?}"))
    }
}

/// What a caller got.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The content.
    pub body: Bytes,
    /// Trailer fields.
    pub trailers: HeaderMap,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// The content as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A header field as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// It is the app's, with this status and this content.
    pub fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status.as_u16(), self.text()), (status, body), "{self:?}");
        assert_eq!(self.header("bluebox-error"), "", "{self:?}");
    }

    /// It is the proxy's own: a problem document (RFC 9457) with this status, that says in header fields that it is the proxy's and whether a retry is safe.
    pub fn is_problem(&self, status: u16, retry_safe: bool) -> serde_json::Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_ne!(self.header("bluebox-error"), "", "{self:?}");
        assert_eq!(self.header("bluebox-retry-safe"), retry_safe.to_string(), "{self:?}");
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(document["status"], status, "{document}");
        assert!(document["title"].is_string() && document["type"].is_string(), "{document}");
        document
    }

    /// The status resource of a call that was accepted: the path and the rest of its `Location`.
    pub fn location(&self) -> String {
        let location = self.header("location");
        assert!(location.starts_with("http://bluebox/v1/calls/"), "{self:?}");
        location.to_owned()
    }
}

/// A call under way.
#[derive(Debug)]
pub struct Running(JoinHandle<Result<Answer, Lost>>);

impl Running {
    /// Sends it, and does not wait.
    pub fn start(call: Call, proxy: SocketAddr) -> Self {
        Self(tokio::spawn(call.send_to(proxy)))
    }

    /// Its answer.
    pub async fn answer(self) -> Answer {
        self.end().await.unwrap_or_else(|lost| panic!("the connection broke: {}", lost.0))
    }

    /// Its answer, or how the connection broke.
    pub async fn end(self) -> Result<Answer, Lost> {
        within(Duration::from_secs(90), "an answer", self.0).await.unwrap()
    }

    /// The caller hangs up.
    pub async fn hang_up(self) {
        self.0.abort();
        let _ = self.0.await;
    }

    /// Whether there is an answer already, or the connection broke.
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

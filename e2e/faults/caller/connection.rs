//! One connection of a worker to its proxy, opened again whenever it is gone.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `bluebox-error`: it is the proxy's own answer, and why.
    pub(crate) problem: Option<String>,
    /// `bluebox-retry-safe`.
    pub(crate) retry_safe: bool,
    pub(crate) location: Option<String>,
    /// `bluebox-call-state`; empty if it does not say.
    pub(crate) state: String,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was sent.
    Refused(String),
    /// Something may have been.
    Broken(String),
}

/// A connection, or none yet.
#[derive(Debug)]
pub(crate) struct Connection {
    proxy: SocketAddr,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    pub(crate) fn new(proxy: SocketAddr) -> Self {
        Self { proxy, open: None }
    }

    /// Sends a request and waits for the complete answer. The outer error is a request that can't be one.
    pub(crate) async fn send(&mut self, request: request::Builder, body: Bytes, patience: Duration) -> Result<Result<Answer, Failure>, http::Error> {
        let request = request.body(Full::new(body))?;
        let mut sender = match self.open.take() {
            Some(sender) if sender.is_ready() => sender,
            _ => match self.connect().await {
                Ok(sender) => sender,
                Err(why) => return Ok(Err(Failure::Refused(why))),
            },
        };
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
        };
        let (head, body) = match timeout(patience, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Ok(Err(Failure::Broken(format!("{error:?}")))),
            Err(_) => return Ok(Err(Failure::Broken(format!("no answer within {} s", patience.as_secs())))),
        };
        self.open = Some(sender);
        let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Ok(Answer {
            status: head.status.as_u16(),
            problem: field("bluebox-error"),
            retry_safe: field("bluebox-retry-safe").as_deref() == Some("true"),
            location: field("location"),
            state: field("bluebox-call-state").unwrap_or_default(),
            body,
        }))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let connecting = async {
            let stream = TcpStream::connect(self.proxy).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())
        };
        let (sender, connection) = timeout(Duration::from_secs(5), connecting).await.map_err(|_| "no connection within 5 s".to_owned())??;
        tokio::task::spawn_local(async move {
            // How it ends is seen by whoever waits for an answer on it.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

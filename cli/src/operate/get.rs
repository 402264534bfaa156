//! Asks something by plain HTTP: a proxy, or who watches a system.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;

use super::door::{Connected, Door, Trouble};

/// How long a watch may take to answer: it may have to look through the log.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest answer that is taken.
const MAX_BYTES: usize = 64 << 20;
/// The longest line of one that comes in lines.
const MAX_LINE_BYTES: usize = 1 << 20;

/// GETs a URL through the proxy that listens at `proxy`.
pub(crate) async fn get(proxy: SocketAddr, url: &str, patience: Duration) -> anyhow::Result<Response<Bytes>> {
    ask(Method::GET, &proxy.into(), url, patience).await
}

/// Asks a `bluebox watch`, or the page of an `up`, which answer in JSON.
pub(crate) async fn json<T: DeserializeOwned>(method: Method, door: &Door, path: &str) -> anyhow::Result<T> {
    serde_json::from_slice(&bytes(method, door, path).await?).with_context(|| format!("{door}: this is no `bluebox watch`"))
}

/// The same where what comes is no JSON.
pub(crate) async fn bytes(method: Method, door: &Door, path: &str) -> anyhow::Result<Bytes> {
    let answer = ask(method, door, &url(door, path), PATIENCE).await.context(NOBODY)?;
    if !answer.status().is_success() {
        return Err(refused(answer.status(), answer.body()));
    }
    Ok(answer.into_body())
}

const NOBODY: &str = "nobody watches there (--watch names another place)";

fn url(door: &Door, path: &str) -> String {
    format!("http://{}{path}", door.authority())
}

fn refused(status: StatusCode, body: &[u8]) -> anyhow::Error {
    let said = String::from_utf8_lossy(body).trim().to_owned();
    anyhow::anyhow!(if said.is_empty() { status.to_string() } else { said })
}

/// The same by any method; without a body. Cancel safe: the connection ends when this is dropped.
pub(crate) async fn ask(method: Method, door: &Door, url: &str, patience: Duration) -> anyhow::Result<Response<Bytes>> {
    let asked = async {
        let Sent { response, trouble, connection: _connection } = send(method, door, url).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BYTES).collect().await.map_err(|error| trouble.explain(anyhow::Error::from_boxed(error)))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::time::timeout(patience, asked).await.with_context(|| format!("{door} did not answer within {} s", patience.as_secs()))?
}

struct Sent {
    response: Response<Incoming>,
    trouble: Trouble,
    connection: AbortOnDropHandle<()>,
}

async fn send(method: Method, door: &Door, url: &str) -> anyhow::Result<Sent> {
    let url: Uri = url.parse().with_context(|| format!("{url:?}"))?;
    let Connected { io, trouble } = door.connect().await?;
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let host = url.authority().map_or_else(|| door.authority(), ToString::to_string);
        let request = Request::builder().method(method).uri(url).header("host", host).body(Empty::<Bytes>::new())?;
        anyhow::Ok((sender.send_request(request).await?, connection))
    };
    match asked.await {
        Ok((response, connection)) => Ok(Sent { response, trouble, connection }),
        Err(error) => Err(trouble.explain(error.context(format!("{door} has not answered")))),
    }
}

/// An answer that comes in lines, for as long as it is read.
pub(crate) struct Lines {
    body: Incoming,
    rest: BytesMut,
    _connection: AbortOnDropHandle<()>,
}

/// Asks a watch for one. The head, and the lines. Cancel safe, as is [`Lines::next`].
pub(crate) async fn lines(door: &Door, path: &str) -> anyhow::Result<(HeaderMap, Lines)> {
    let sent = tokio::time::timeout(PATIENCE, send(Method::GET, door, &url(door, path))).await;
    let sent = sent.with_context(|| format!("{door} did not answer within {} s", PATIENCE.as_secs()))?.context(NOBODY)?;
    let (head, body) = sent.response.into_parts();
    if !head.status.is_success() {
        let said = Limited::new(body, MAX_LINE_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?;
        return Err(refused(head.status, &said.to_bytes()));
    }
    Ok((head.headers, Lines { body, rest: BytesMut::new(), _connection: sent.connection }))
}

impl Lines {
    /// The next one, without its end; `None` at the end of all.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line = self.rest.split_to(end + 1);
                line.truncate(end);
                return Ok(Some(line.freeze()));
            }
            if self.rest.len() > MAX_LINE_BYTES {
                bail!("a line is longer than {MAX_LINE_BYTES} bytes");
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.context("the connection broke off")?.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

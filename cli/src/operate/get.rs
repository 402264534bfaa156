//! Asks a proxy something, by plain HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// How long a watch may take to answer: it may have to look through the log.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest answer that is taken.
const MAX_BYTES: usize = 64 << 20;

/// GETs a URL through the proxy that listens at `proxy`.
pub(crate) async fn get(proxy: SocketAddr, url: &str, patience: Duration) -> anyhow::Result<Response<Bytes>> {
    ask(Method::GET, proxy, url, patience).await
}

/// Asks a `bluebox watch`, or the page of an `up`, which answer in JSON.
pub(crate) async fn json<T: DeserializeOwned>(method: Method, at: SocketAddr, path: &str) -> anyhow::Result<T> {
    let answer = ask(method, at, &format!("http://{at}{path}"), PATIENCE).await.context("nobody watches there (--watch names another place)")?;
    if !answer.status().is_success() {
        bail!("{}", String::from_utf8_lossy(answer.body()).trim());
    }
    serde_json::from_slice(answer.body()).with_context(|| format!("{at}: this is no `bluebox watch`"))
}

/// The same by any method; without a body.
pub(crate) async fn ask(method: Method, proxy: SocketAddr, url: &str, patience: Duration) -> anyhow::Result<Response<Bytes>> {
    let asked = async {
        let url: Uri = url.parse().with_context(|| format!("{url:?}"))?;
        let stream = TcpStream::connect(proxy).await.with_context(|| format!("nobody listens at {proxy}"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _connection = tokio::spawn(connection);
        let host = url.authority().map_or_else(|| proxy.to_string(), ToString::to_string);
        let request = Request::builder().method(method).uri(url).header("host", host).body(Empty::<Bytes>::new())?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::time::timeout(patience, asked).await.with_context(|| format!("{proxy} did not answer within {} s", patience.as_secs()))?
}

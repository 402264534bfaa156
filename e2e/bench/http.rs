//! A caller's connection: HTTP/1.1 that is kept alive, as an app's client has it.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// One connection. Calls on it go one after the other.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

/// Where calls go, and what they carry.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// What is connected to.
    pub(crate) at: SocketAddr,
    /// `http://…` for a proxy, a path for who is asked directly.
    pub(crate) uri: Uri,
    /// The value of `Host`.
    pub(crate) host: String,
    /// The body.
    pub(crate) body: Bytes,
}

impl Target {
    /// Asked directly.
    pub(crate) fn direct(at: SocketAddr, path: &str, body: Bytes) -> anyhow::Result<Self> {
        Ok(Self { at, uri: path.parse().with_context(|| path.to_owned())?, host: at.to_string(), body })
    }

    /// Asked through a proxy, as an app with `HTTP_PROXY` does.
    pub(crate) fn through(proxy: SocketAddr, host: &str, path: &str, body: Bytes) -> anyhow::Result<Self> {
        let uri = format!("http://{host}{path}");
        Ok(Self { at: proxy, uri: uri.parse().with_context(|| uri)?, host: host.to_owned(), body })
    }

    /// The same, for another path.
    pub(crate) fn path(&self, path: &str) -> anyhow::Result<Self> {
        let uri = if self.uri.authority().is_some() { format!("http://{}{path}", self.host) } else { path.to_owned() };
        Ok(Self { uri: uri.parse().with_context(|| uri)?, ..self.clone() })
    }

    fn request(&self) -> anyhow::Result<Request<Full<Bytes>>> {
        Ok(Request::post(self.uri.clone()).header("host", &self.host).header("content-type", "application/json").body(Full::new(self.body.clone()))?)
    }
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(at: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(at).await.with_context(|| at.to_string())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// One call, to the last byte of its answer. Gives the status and the number of bytes.
    pub(crate) async fn ask(&mut self, target: &Target) -> anyhow::Result<(StatusCode, usize)> {
        self.sender.ready().await?;
        let mut response = self.sender.send_request(target.request()?).await.with_context(|| target.uri.to_string())?;
        let mut bytes = 0;
        while let Some(frame) = response.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok((response.status(), bytes))
    }

    /// One call, which must be answered with 200.
    pub(crate) async fn call(&mut self, target: &Target) -> anyhow::Result<()> {
        let (status, _) = self.ask(target).await?;
        ensure!(status == StatusCode::OK, "{}: {status}", target.uri);
        Ok(())
    }
}

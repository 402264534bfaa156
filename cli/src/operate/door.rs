//! Where something is asked over HTTP: at an address, or at a port of a pod, which the API server forwards to.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::pod::PodDoor;
use crate::kubernetes::cluster::ClusterOptions;

/// How long the API server may take to answer, or to open a connection to a pod.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Where something is asked.
#[derive(Clone)]
pub(crate) enum Door {
    /// At an address: HOST:PORT.
    At(String),
    /// At a port of a pod.
    Pod(Box<PodDoor>),
}

/// What a pod is looked for by, and what to do where there is none.
#[cfg_attr(feature = "images", expect(dead_code, reason = "nothing looks for one there"))]
pub(crate) struct Wanted {
    /// What runs in it, in words.
    pub(crate) what: &'static str,
    /// The labels that it has.
    pub(crate) labels: &'static str,
    /// Its port.
    pub(crate) port: u16,
    /// What to do where there is none.
    pub(crate) remedy: &'static str,
}

impl From<SocketAddr> for Door {
    fn from(address: SocketAddr) -> Self {
        Self::At(address.to_string())
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => f.write_str(address),
            Self::Pod(pod) => pod.fmt(f),
        }
    }
}

/// A connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, and what whoever forwards it has to say when it breaks.
pub(crate) struct Connected {
    /// The connection.
    pub(crate) io: Box<dyn Io>,
    /// Why it can't be used, if somebody knows.
    pub(crate) trouble: Trouble,
}

/// Why a connection can't be used, if somebody knows.
pub(crate) struct Trouble(pub(super) Option<BoxFuture<'static, Option<String>>>);

impl Trouble {
    /// An error, with what is known of its cause.
    pub(crate) fn explain(self, error: anyhow::Error) -> anyhow::Error {
        match self.0.and_then(|why| why.now_or_never()).flatten() {
            Some(why) => error.context(why.trim().to_owned()),
            None => error,
        }
    }
}

impl Door {
    /// Opens a connection, within 15 s. Cancel safe: what was opened ends when it is dropped.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connected> {
        match self {
            Self::At(address) => {
                let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await.map_err(|_| anyhow!("{address} takes no connection"))?;
                let stream = stream.with_context(|| format!("nobody listens at {address}"))?;
                Ok(Connected { io: Box::new(stream), trouble: Trouble(None) })
            }
            Self::Pod(pod) => pod.connect().await.with_context(|| format!("no connection to {self}")),
        }
    }

    /// What stands in `Host` where a request names no other.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::At(address) => address.clone(),
            // There it comes from loopback.
            Self::Pod(pod) => format!("127.0.0.1:{}", pod.port()),
        }
    }

    /// Looks for a pod that is ready.
    pub(crate) async fn of_pod(options: &ClusterOptions, namespace: Option<&str>, wanted: &Wanted) -> anyhow::Result<Self> {
        Ok(Self::Pod(Box::new(PodDoor::look_for(options, namespace, wanted).await?)))
    }
}

//! Where something is asked over HTTP: at an address, or at a port of a pod, which the API server forwards to.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Portforwarder};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::kubernetes::cluster::ClusterOptions;

/// How long the API server may take to answer, or to open a connection to a pod.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where something is asked.
#[derive(Clone)]
pub(crate) enum Door {
    /// At an address: HOST:PORT.
    At(String),
    /// At a port of a pod.
    Pod(Box<PodDoor>),
}

/// A port of a pod.
#[derive(Clone)]
pub(crate) struct PodDoor {
    pods: Api<Pod>,
    namespace: String,
    name: String,
    port: u16,
}

/// What a pod is looked for by, and what to do where there is none.
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
            Self::Pod(pod) => write!(f, "port {} of the pod {}/{}", pod.port, pod.namespace, pod.name),
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
pub(crate) struct Trouble(Option<BoxFuture<'static, Option<String>>>);

impl Trouble {
    /// An error, with what is known of its cause.
    pub(crate) fn explain(self, error: anyhow::Error) -> anyhow::Error {
        match self.0.and_then(|why| why.now_or_never()).flatten() {
            Some(why) => error.context(why.trim().to_owned()),
            None => error,
        }
    }
}

/// A stream through the API server. What forwards it ends with it.
struct Forwarded {
    stream: DuplexStream,
    forwarder: Portforwarder,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>, bytes: &[u8]) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
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
            Self::Pod(pod) => format!("127.0.0.1:{}", pod.port),
        }
    }

    /// Looks for a pod that is ready.
    pub(crate) async fn of_pod(options: &ClusterOptions, namespace: Option<&str>, wanted: &Wanted) -> anyhow::Result<Self> {
        let config = options.config().await?;
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        let url = config.cluster_url.to_string();
        // Without a limit on silence: a connection to a pod may be quiet for long.
        let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, &namespace);
        let labelled = ListParams::default().labels(wanted.labels);
        let list = match tokio::time::timeout(PATIENCE, pods.list(&labelled)).await {
            Ok(Ok(list)) => list.items,
            Ok(Err(kube::Error::Api(status))) => {
                bail!(
                    "the cluster at {url} says: {}. To reach {} takes the rights to list pods in the namespace {namespace}, and to get and create pods/portforward",
                    status.message,
                    wanted.what
                )
            }
            Ok(Err(error)) => {
                return Err(anyhow::Error::new(error)
                    .context(format!("the API server at {url} can't be asked. Does `kubectl version` work? --brokers asks Kafka itself")));
            }
            Err(_) => bail!("the API server at {url} did not answer within {} s", PATIENCE.as_secs()),
        };
        let found = list.len();
        match list.into_iter().find(is_ready).and_then(|pod| pod.metadata.name) {
            Some(name) => Ok(Self::Pod(Box::new(PodDoor { pods, namespace, name, port: wanted.port }))),
            None if found == 0 => bail!("{} does not run in the namespace {namespace} of the cluster at {url}. {}", wanted.what, wanted.remedy),
            None => bail!("no pod of {} is ready: kubectl -n {namespace} get pods -l {}", wanted.what, wanted.labels),
        }
    }
}

impl PodDoor {
    async fn connect(&self) -> anyhow::Result<Connected> {
        let ports = [self.port];
        let mut forwarder = match tokio::time::timeout(PATIENCE, self.pods.portforward(&self.name, &ports)).await {
            Ok(forwarder) => forwarder?,
            Err(_) => bail!("the API server did not open one within {} s", PATIENCE.as_secs()),
        };
        let trouble = forwarder.take_error(self.port).map(|why| Box::pin(why) as BoxFuture<'static, _>);
        let stream = forwarder.take_stream(self.port).context("the API server has forwarded another port")?;
        Ok(Connected { io: Box::new(Forwarded { stream, forwarder }), trouble: Trouble(trouble) })
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none() && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

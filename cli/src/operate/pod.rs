//! The port of a pod, which the API server forwards to.

use std::fmt;

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Portforwarder};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};

use super::door::{Connected, PATIENCE, Trouble, Wanted};
use crate::kubernetes::cluster::ClusterOptions;

/// A port of a pod.
#[derive(Clone)]
pub(crate) struct PodDoor {
    pods: Api<Pod>,
    namespace: String,
    name: String,
    port: u16,
}

impl fmt::Display for PodDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} of the pod {}/{}", self.port, self.namespace, self.name)
    }
}

impl PodDoor {
    /// Looks for a pod that is ready.
    pub(super) async fn look_for(options: &ClusterOptions, namespace: Option<&str>, wanted: &Wanted) -> anyhow::Result<Self> {
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
            Some(name) => Ok(Self { pods, namespace, name, port: wanted.port }),
            None if found == 0 => bail!("{} does not run in the namespace {namespace} of the cluster at {url}. {}", wanted.what, wanted.remedy),
            None => bail!("no pod of {} is ready: kubectl -n {namespace} get pods -l {}", wanted.what, wanted.labels),
        }
    }

    /// Its port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> anyhow::Result<Connected> {
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

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none() && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

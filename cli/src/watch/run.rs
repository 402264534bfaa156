//! `bluebox watch`: the part that always runs, beside a system that is on Kubernetes.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::page::{self, Rights};
use super::scale;
use crate::log::LogOptions;
use crate::logging::LoggingOptions;
use crate::operate::Reached;

/// Watches the log: how many calls of each component have no end, how old the oldest is, which are dead letters. It serves that as metrics, as JSON and as a page, and goes on
/// while components have no box at all: what scales them from zero asks here. One is enough; a second one sees the same.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox watch --brokers kafka:9092 --listen 0.0.0.0:4144
  kubectl -n bluebox port-forward deploy/bluebox-watch 4145, then http://127.0.0.1:4145 in a browser")]
pub(crate) struct WatchOptions {
    /// Where `/metrics`, the page and `/v1/…` can be looked at; nothing can be changed there.
    #[arg(long, env = "BLUEBOX_WATCH_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:4144", value_parser = crate::file::address)]
    listen: SocketAddr,
    /// The same, where requests can be seen as they came, dead letters be replayed and dropped, and transactions be ended too; on loopback only, so that the cluster's own access rules decide who reaches it.
    #[arg(long, env = "BLUEBOX_WATCH_CONTROL", value_name = "HOST:PORT", default_value = "127.0.0.1:4145", value_parser = crate::file::address)]
    control: SocketAddr,
    /// Where KEDA asks what components are to be scaled by: its external scaler, over gRPC without TLS. By default nowhere.
    #[arg(long, env = "BLUEBOX_WATCH_SCALER", value_name = "HOST:PORT", value_parser = crate::file::address)]
    scaler: Option<SocketAddr>,
    /// Where the API server asks the same for a HorizontalPodAutoscaler: external.metrics.k8s.io, over TLS. By default nowhere.
    #[arg(long, env = "BLUEBOX_WATCH_EXTERNAL_METRICS", value_name = "HOST:PORT", value_parser = crate::file::address)]
    external_metrics: Option<SocketAddr>,
    /// Where the transaction manager is asked, so that the page shows transactions: its `--listen`, or any proxy.
    #[arg(long, env = "BLUEBOX_TXMGR", value_name = "HOST:PORT", value_parser = crate::log::parse_host)]
    txmgr: Option<String>,
    #[command(flatten)]
    log: LogOptions,
    #[command(flatten)]
    logging: LoggingOptions,
}

/// Watches until SIGTERM or Ctrl-C.
pub(crate) async fn run(options: WatchOptions) -> anyhow::Result<()> {
    options.logging.start()?;
    if !options.control.ip().is_loopback() {
        bail!("--control {}: dead letters can be dropped there, so it must be on loopback: 127.0.0.1 or [::1]", options.control);
    }
    let reached = Reached { log: options.log.connect()?, prefix: options.log.kafka.topic_prefix.clone() };
    let (listener, listen) = bind(options.listen).await.with_context(|| format!("--listen {}", options.listen))?;
    let (control_listener, control) = bind(options.control).await.with_context(|| format!("--control {}", options.control))?;
    let (watched, looking) = super::begin(reached, None, options.txmgr)?;
    tracing::info!(%listen, %control, log = options.log.describe(), "watches");
    let log: page::Log = std::sync::Arc::new(|what| tracing::info!("{what}"));
    let mut parts = JoinSet::new();
    parts.spawn(looking);
    parts.spawn(page::serve(listener, watched.clone(), Rights::Look, log.clone()));
    if let Some(address) = options.scaler {
        let (listener, scaler) = bind(address).await.with_context(|| format!("--scaler {address}"))?;
        tracing::info!(%scaler, "answers KEDA");
        parts.spawn(scale::keda::serve(listener, watched.clone()));
    }
    if let Some(address) = options.external_metrics {
        let (listener, external_metrics) = bind(address).await.with_context(|| format!("--external-metrics {address}"))?;
        tracing::info!(%external_metrics, "answers the API server");
        parts.spawn(scale::external::serve(listener, watched.clone())?);
    }
    parts.spawn(page::serve(control_listener, watched, Rights::Change, log));
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        Some(ended) = parts.join_next() => bail!("a part of it ended by itself ({ended:?}); this is a mistake in Bluebox"),
    }
}

/// Listens there, and says where that is.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

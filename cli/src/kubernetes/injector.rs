//! `bluebox injector`: the admission webhook.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use bluebox_injector::keep::Names;
use bluebox_injector::run::{Config, run as serve};
use bluebox_observe::{level, listener};
use clap::Args;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{ProxyLimits, SettingsOptions};
use crate::logging::LoggingOptions;

/// Runs the admission webhook that puts the proxy into pods. It finds the cluster as kubectl does: by KUBECONFIG, or by where it runs. manifests/base installs it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox injector                                           as manifests/base runs it
  KUBECONFIG=test.kubeconfig bluebox injector --listen 127.0.0.1:0 --admin 127.0.0.1:0")]
pub(crate) struct InjectorOptions {
    /// Where the webhook listens.
    #[arg(long, env = "BLUEBOX_LISTEN", value_name = "HOST:PORT", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Where /metrics, /healthz and /readyz are answered.
    #[arg(long, env = "BLUEBOX_ADMIN", value_name = "HOST:PORT", default_value = "0.0.0.0:4141")]
    admin: SocketAddr,
    /// Where `bluebox log-level` tells it what to log; on loopback; by default nowhere.
    #[arg(long, env = "BLUEBOX_CONTROL", value_name = "HOST:PORT", value_parser = crate::proxy::loopback)]
    control: Option<SocketAddr>,
    /// A directory with the webhook's certificate (tls.crt, tls.key), where somebody else makes it, such as cert-manager; by default the injector makes it itself.
    #[arg(long, env = "BLUEBOX_CERTIFICATE", value_name = "DIRECTORY")]
    certificate: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsOptions,
    #[command(flatten)]
    logging: LoggingOptions,
}

pub(crate) async fn run(options: InjectorOptions) -> anyhow::Result<()> {
    let log_level = options.logging.start()?;
    if let Some(control) = options.control {
        let listener = TcpListener::bind(control).await.with_context(|| format!("{control}: can't listen there (--control names another place)"))?;
        tokio::spawn(listener::serve(listener, move |request| {
            let log_level = log_level.clone();
            async move {
                if request.uri().path() == level::PATH { log_level.answer(&request) } else { listener::plain(StatusCode::NOT_FOUND, "there is /log-level\n") }
            }
        }));
    }
    let settings = options.settings.settings()?;
    let names = Names::of(settings.namespace());
    let client = kube::Client::try_default().await.context("no cluster is known: set KUBECONFIG, or run this in one")?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("asked to end: no new connections, what is under way is finished");
        told.cancel();
    });
    serve(Config { listen: options.listen, admin: options.admin, settings, names, certificate: options.certificate }, client, ProxyLimits::new(), stop).await?;
    Ok(())
}

//! The injector as a whole: the webhook, its certificates, its counts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::GetParams;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::annotations::Limits;
use crate::bare;
use crate::keep::{self, Names};
use crate::metrics::{self, Metrics, Readiness};
use crate::rules;
use crate::selection::{ENABLED, INJECTION, Place};
use crate::serve::{self, Places, Webhook};
use crate::settings::Settings;

/// What the injector is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the webhook listens.
    pub listen: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are answered.
    pub admin: SocketAddr,
    /// What the installation says of its proxies.
    pub settings: Settings,
    /// Where its things are in the cluster.
    pub names: Names,
    /// A directory with its certificate, where somebody else makes that.
    pub certificate: Option<PathBuf>,
}

/// Why the injector can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener can't be had.
    #[error("{address}: can't listen there: {problem}; choose another address, or end what listens there")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        problem: std::io::Error,
    },
    /// A mistake in this program.
    #[error("the metrics can't be set up: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Runs until `stop`.
///
/// # Errors
/// When it can't listen.
pub async fn run(config: Config, client: Client, limits: impl Limits + 'static, stop: CancellationToken) -> Result<(), RunError> {
    let bind = async |address| TcpListener::bind(address).await.map_err(|problem| RunError::Listen { address, problem });
    let (listener, admin) = (bind(config.listen).await?, bind(config.admin).await?);
    let metrics = Metrics::try_new()?;
    let (show, tls) = watch::channel(None);
    let (trust, trusted) = watch::channel(false);
    let (tell_rules, rules) = watch::channel(None);
    let mut beside = JoinSet::new();
    beside.spawn(metrics::serve(admin, metrics.clone(), Ready { trusted, rules: rules.clone() }));
    match config.certificate {
        Some(directory) => beside.spawn(keep::keep_given(client.clone(), config.names, directory, show, trust, metrics.clone())),
        None => beside.spawn(keep::keep(client.clone(), config.names, show, trust, metrics.clone())),
    };
    beside.spawn(rules::watch(client.clone(), config.settings.namespace().to_owned(), tell_rules, metrics.clone()));
    beside.spawn(bare::watch(client.clone(), config.settings.clone(), metrics.clone()));
    let (tell_settings, settings) = watch::channel(config.settings.clone());
    beside.spawn(set_rules(config.settings.clone(), rules, tell_settings));
    // Port 0 takes one that is free: what is said is what it became.
    let listen = listener.local_addr().unwrap_or(config.listen);
    info!(%listen, image = config.settings.image(), "the injector started");
    let webhook = Webhook { settings, limits, places: Cluster(Api::all(client)), metrics };
    serve::serve(listener, Arc::new(webhook), tls, stop).await;
    info!("the injector ended");
    Ok(())
}

/// Keeps in the settings what is found out of the cluster.
async fn set_rules(settings: Settings, mut rules: watch::Receiver<Option<bool>>, tell: watch::Sender<Settings>) {
    loop {
        let there = rules.borrow_and_update().unwrap_or(false);
        tell.send_replace(settings.clone().with_restart_rules(there));
        if rules.changed().await.is_err() {
            return;
        }
    }
}

/// Ready when the API server trusts what is shown, and it is known how pods are restarted.
#[derive(Debug, Clone)]
struct Ready {
    trusted: watch::Receiver<bool>,
    rules: watch::Receiver<Option<bool>>,
}

impl Readiness for Ready {
    fn ready(&self) -> Result<(), String> {
        if !*self.trusted.borrow() {
            return Err("there is no certificate yet that the API server trusts".to_owned());
        }
        if self.rules.borrow().is_none() {
            return Err("it is not known yet whether the cluster has restart rules".to_owned());
        }
        Ok(())
    }
}

/// Asks the API server for a namespace's labels. Each time: a pod often comes right after its namespace, or after the label.
struct Cluster(Api<Namespace>);

impl Places for Cluster {
    async fn place(&self, namespace: &str) -> Result<Place, String> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let ask = async |params: GetParams| {
            let found = self.0.get_metadata_with(namespace, &params).await.map_err(|error| error.to_string())?;
            Ok(Place { namespace: namespace.to_owned(), labels: found.metadata.labels.unwrap_or_default() })
        };
        let asked = async {
            // What the API server has in memory is had fastest. It may be a moment old: only what is asked for there is believed.
            match ask(GetParams::any()).await {
                Ok(place) if place.labels.get(INJECTION).is_some_and(|value| value == ENABLED) => Ok(place),
                _ => ask(GetParams::default()).await,
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    }
}

//! The proxy of a box. A call goes through it in one direction, and each stage is one module that can be read alone.
//!
//! Out of the app: see [`outbound`], whose stages are a module each: `intercept`, `decide`, then `passthrough` or, for a call, `envelope`, `append`, `pending` and `respond`.
//!
//! What the app sends comes here because it obeys `HTTP_PROXY`, or because the kernel sends it here ([`redirect`]): then by [`transparent`], which looks at what a connection speaks,
//! and [`dns`], which answers for the names of components ([`names`]).
//!
//! Into the app: see [`inbound`].
//!
//! Used by both: [`config`], [`registry`] (which components there are), [`bulk`] (bodies, small and large), [`head`] (whether the head of a request is one), [`fields`] (which header
//! fields travel), [`target`] (which targets do, though they are no URIs), [`problem`] (the proxy's own errors), [`metrics`], [`line`](mod@line) (one line of log for each call), [`spans`] (where
//! its time went), [`admin`] and [`drain`].
//!
//! Transactions: [`context`] (which of them the calls out of the app belong to), [`transaction`] (what the app's paths have to do with them, by configuration).
//!
//! From its start to its end: `listeners`, `lifecycle`, and [`readiness`] (when others may be sent to it past Bluebox).
//!
//! One failure domain: [`incarnation`] (a proxy that was started again alone), [`listening`] (an app that was), [`liveness`] (whether the app has to be).

pub mod admin;
pub mod bulk;
pub mod components;
pub mod config;
pub mod context;
pub mod dns;
pub mod drain;
pub mod fields;
pub mod head;
pub mod inbound;
pub mod incarnation;
mod lifecycle;
pub mod line;
mod listeners;
pub mod listening;
pub mod liveness;
pub mod metrics;
pub mod names;
pub mod outbound;
pub mod problem;
pub mod readiness;
pub mod redirect;
pub mod registry;
pub mod spans;
pub mod target;
pub mod transaction;
pub mod transparent;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bluebox_core::InstanceId;
use bluebox_core::log::Log;
use tokio::sync::watch;

use crate::config::ProxyConfig;
use crate::inbound::{Superseded, Tenures};
use crate::lifecycle::Running;
use crate::listeners::Listeners;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::outbound::in_process::Calls;
use crate::registry::{Directory, RegisterError};

/// Why a proxy can't run, or can't go on.
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
    /// What is there contradicts what this box is told to be.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// It is an ordinal no more.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// The app of the box is gone, or is another one.
    #[error("the app at {app} does not listen any more where it did: it ended or was started again alone; the proxy ends too, so that both are started afresh")]
    AppGone {
        /// Where it listened.
        app: SocketAddr,
    },
    /// The app of the box answers nothing any more.
    #[error("the app hangs: it answers nothing any more; the proxy ends, so that both are started afresh (restart-on-hang)")]
    AppHangs,
    /// A part of it has ended that never ends by itself: a mistake in this program.
    #[error("{what} ended by itself ({how}); this is a mistake in Bluebox: the proxy ends, to be started afresh")]
    Ended {
        /// Which.
        what: &'static str,
        /// How.
        how: String,
    },
    /// A mistake in this program.
    #[error("the metrics can't be set up: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A proxy whose listeners are open. Connections wait until it runs.
pub struct Proxy {
    config: ProxyConfig,
    instance: InstanceId,
    listeners: Listeners,
    metrics: Metrics,
    publish: watch::Sender<Directory>,
    tenures: watch::Sender<Tenures>,
    calls: Calls,
}

/// Opens the listeners and runs until `shutdown` is done; see [`Proxy::bind`] and [`Proxy::run`].
///
/// # Errors
/// As those.
pub async fn run(config: ProxyConfig, log: Arc<dyn Log>, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    Proxy::bind(config).await?.run(log, shutdown).await
}

impl Proxy {
    /// Opens the listeners. Port 0 takes one that is free.
    ///
    /// # Errors
    /// When an address can't be listened at.
    pub async fn bind(config: ProxyConfig) -> Result<Self, RunError> {
        let listeners = Listeners::open(&config).await?;
        let directory = Directory { names: Names::new(config.resolv_conf.search.clone()), ..Directory::default() };
        let (publish, tenures) = (watch::Sender::new(directory), watch::Sender::default());
        let (metrics, instance) = (Metrics::try_new(&config.name)?, InstanceId::random());
        let calls = Calls::new(config.outbound.max_connections);
        Ok(Self { config, instance, listeners, metrics, publish, tenures, calls })
    }

    /// The components that it knows.
    pub fn directory(&self) -> watch::Receiver<Directory> {
        self.publish.subscribe()
    }

    /// The partitions that it has. For an app in the same process.
    pub fn tenures(&self) -> watch::Receiver<Tenures> {
        self.tenures.subscribe()
    }

    /// Where an app in the same process makes its requests.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Where further counts can be registered, to be told at `/metrics`.
    pub fn counts(&self) -> &prometheus::Registry {
        self.metrics.registry()
    }

    /// Where the app's requests are taken.
    pub fn listen(&self) -> SocketAddr {
        self.listeners.calls.1
    }

    /// Where what the redirect caught arrives.
    pub fn transparent(&self) -> Option<SocketAddr> {
        self.listeners.transparent.first().and_then(|listener| listener.local_addr().ok())
    }

    /// Where the app's DNS arrives.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.listeners.dns.as_ref()?.udp.first().and_then(|socket| socket.local_addr().ok())
    }

    /// Where the metrics are.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.listeners.admin.as_ref().map(|(_, address)| *address)
    }

    /// Where it can be told to drain.
    pub fn control(&self) -> Option<SocketAddr> {
        self.listeners.control.as_ref().map(|(_, address)| *address)
    }

    /// Runs until `shutdown` is done: then intake stops, deliveries end or are handed over, and requests under way get the time of the drain.
    ///
    /// Nothing waits for the log: with it away pass-through works, and calls get 503.
    ///
    /// # Errors
    /// When this box can't be what it is told to be, a part of it has ended by itself, or its app is gone.
    pub async fn run(self, log: Arc<dyn Log>, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let Some(mut running) = Running::start(self, log, shutdown.as_mut()).await? else { return Ok(()) };
        let result = running.until_it_has_to_end(shutdown).await;
        running.end(result.as_ref().err()).await;
        result
    }
}

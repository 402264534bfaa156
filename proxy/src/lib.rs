//! The proxy of a box. A call goes through it in one direction, and each stage is one module that can be read alone.
//!
//! Out of the app ([`outbound`] has these stages in their order):
//!
//! - [`intercept`]: takes requests off the app's connections, and refuses what is no HTTP.
//!   Its connections are guarded ([`guard`]), which follows the requests ([`framing`]), judges their heads ([`head`]) and writes interim responses
//!   ([`interim`]). Those of callers that wait for long are held without hyper ([`long_wait`]).
//! - [`route`]: decides: durable call, pass-through, Bluebox's own API, or a clear no.
//! - [`passthrough`]: what is no component goes its way, streaming.
//! - [`envelope`]: makes a call out of a request.
//!   Where nothing says which partition it goes to, [`spread`] does.
//! - [`append`]: makes it durable: from here on it is *accepted*.
//! - [`pending`]: waits for its outcome.
//! - [`respond`]: answers the app.
//!
//! What the app sends comes here because it obeys `HTTP_PROXY`, or because the kernel sends it here ([`redirect`]): then by [`transparent`], which looks at what a connection speaks,
//! and [`dns`], which answers for the names of components ([`names`]).
//!
//! Into the app: see [`inbound`].
//!
//! Used by both: [`config`], [`registry`] (which components there are), [`bulk`] (bodies, small and large), [`fields`] (which header fields
//! travel), [`target`] (which targets do, though they are no URIs), [`problem`] (the proxy's own errors), [`calls`] (`http://bluebox/v1/calls/ID`), [`metrics`], [`line`] (one line of log
//! for each call), [`spans`] (where its time went), [`admin`] and [`drain`].
//!
//! Transactions: [`context`] (which of them the calls out of the app belong to), [`transaction`] (what the app's paths have to do with them, by configuration).
//!
//! One failure domain: [`incarnation`] (a proxy that was started again alone), [`listening`] (an app that was), [`liveness`] (whether the app has to be).

pub mod admin;
pub mod append;
pub mod bulk;
pub mod calls;
pub mod config;
pub mod context;
pub mod dns;
pub mod drain;
pub mod envelope;
pub mod fields;
pub mod framing;
pub mod guard;
pub mod head;
pub mod inbound;
pub mod incarnation;
pub mod intercept;
pub mod interim;
pub mod line;
pub mod listening;
pub mod liveness;
pub mod long_wait;
pub mod metrics;
pub mod names;
pub mod outbound;
pub mod passthrough;
pub mod pending;
pub mod prefer;
pub mod problem;
pub mod redirect;
pub mod registry;
pub mod respond;
pub mod route;
pub mod spans;
pub mod spread;
pub mod target;
pub mod transaction;
pub mod transparent;

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::InstanceId;
use bluebox_core::log::Log;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{Rights, Shown};
use crate::bulk::Bulk;
use crate::config::{ProxyConfig, Together};
use crate::context::Contexts;
use crate::dns::addresses::Addresses;
use crate::dns::resolve::Resolver;
use crate::drain::Drain;
use crate::inbound::{Superseded, Tenures};
use crate::liveness::Alive;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::outbound::OutboundSide;
use crate::passthrough::PassThrough;
use crate::pending::{Pending, reply_partition};
use crate::registry::{Directory, RegisterError, Registration};
use crate::spans::Spans;
use crate::spread::Spread;
use crate::transaction::Transactions;
use crate::transparent::Transparent;
use crate::transparent::probe::Redirected;

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

/// A box that is restarted in place gets 2 s. Deliveries have this long to end, …
const QUICK_DRAIN: Duration = Duration::from_millis(700);
/// … and with it what ended is flushed and the group is left within this.
const QUICK_END: Duration = Duration::from_millis(1500);
/// The last spans have this long to be sent; a part of that time, where there are any.
const LAST_SPANS: Duration = Duration::from_millis(300);

/// A proxy whose listeners are open. Connections wait until it runs.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    instance: InstanceId,
    listener: TcpListener,
    listen: SocketAddr,
    transparent: Vec<TcpListener>,
    dns: Option<dns::Listeners>,
    admin: Option<(TcpListener, SocketAddr)>,
    control: Option<(TcpListener, SocketAddr)>,
    metrics: Metrics,
    publish: watch::Sender<Directory>,
    tenures: watch::Sender<Tenures>,
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
        let (listener, listen) = bind(config.listen).await?;
        let transparent = match config.transparent {
            Some(address) => bind_both_families(address).await?,
            None => Vec::new(),
        };
        let dns = match config.dns {
            Some(address) => Some(bind_dns(address).await?),
            None => None,
        };
        let admin = match config.admin {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let control = match config.control {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let directory = Directory { names: Names::new(config.resolv_conf.search.clone()), ..Directory::default() };
        let (publish, tenures) = (watch::Sender::new(directory), watch::Sender::default());
        let (metrics, instance) = (Metrics::try_new(&config.name)?, InstanceId::random());
        Ok(Self { config, instance, listener, listen, transparent, dns, admin, control, metrics, publish, tenures })
    }

    /// The components that it knows.
    pub fn directory(&self) -> watch::Receiver<Directory> {
        self.publish.subscribe()
    }

    /// The partitions that it has. For an app in the same process.
    pub fn tenures(&self) -> watch::Receiver<Tenures> {
        self.tenures.subscribe()
    }

    /// Where further counts can be registered, to be told at `/metrics`.
    pub fn counts(&self) -> &prometheus::Registry {
        self.metrics.registry()
    }

    /// Where the app's requests are taken.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where what the redirect caught arrives.
    pub fn transparent(&self) -> Option<SocketAddr> {
        self.transparent.first().and_then(|listener| listener.local_addr().ok())
    }

    /// Where the app's DNS arrives.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.dns.as_ref()?.udp.first().and_then(|socket| socket.local_addr().ok())
    }

    /// Where the metrics are.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Where it can be told to drain.
    pub fn control(&self) -> Option<SocketAddr> {
        self.control.as_ref().map(|(_, address)| *address)
    }

    /// Runs until `shutdown` is done: then intake stops, deliveries end or are handed over, and requests under way get the time of the drain.
    ///
    /// Nothing waits for the log: with it away pass-through works, and calls get 503.
    ///
    /// # Errors
    /// When this box can't be what it is told to be, a part of it has ended by itself, or its app is gone.
    pub async fn run(self, log: Arc<dyn Log>, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { config, instance, listener, listen, transparent, dns, admin, control, metrics, publish, tenures } = self;
        let config = Arc::new(config);
        metrics.watch(log.clone())?;
        let topics = config.prefix.topics(&config.name);
        let directory = publish.subscribe();
        let pending = Pending::new(log.clone(), &topics, &instance, config.outbound.max_waiting);
        let bulk = Bulk::new(log.clone(), topics.bulk.partition(reply_partition(&instance)), config.outbound.body_memory_bytes);
        // What only loopback may reach is no more to be reached through the proxy than the proxy itself.
        let caught = transparent.iter().filter_map(|listener| listener.local_addr().ok());
        let own = [Some(listen), control.as_ref().map(|(_, address)| *address)].into_iter().flatten().chain(caught).collect();
        let pass = PassThrough::new(own, config.outbound.connect_timeout, metrics.clone());
        info!(name = %config.name, %instance, %listen, serves = ?config.serves.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), "a proxy started");

        let spans = Spans::start(config.traces.as_ref(), &config.name, &instance.to_string(), bluebox_observe::trace::Counts::try_new(metrics.counts())?);

        // What runs beside the calls, for as long as the proxy does.
        let mut beside = JoinSet::new();
        beside.spawn(pending.clone().read());
        let drain = Drain::default();
        let token = instance.to_string();
        let redirected = if transparent.is_empty() {
            Redirected::not_wanted()
        } else {
            let (redirected, watching) = Redirected::watch(token.clone(), &metrics)?;
            beside.spawn(watching);
            redirected
        };
        let replaces = config.together.as_ref().is_some_and(|together| together.replaces);
        let alive = Alive::new(config.liveness.clone(), replaces);
        for (listener, rights) in [(admin, Rights::Look), (control, Rights::Change)] {
            if let Some((listener, _)) = listener {
                let shown = Shown {
                    metrics: metrics.clone(),
                    drain: drain.clone(),
                    redirected: redirected.clone(),
                    alive: alive.clone(),
                    log_level: config.log_level.clone(),
                };
                beside.spawn(admin::serve(listener, shown, rights));
            }
        }
        let mut shutdown = std::pin::pin!(shutdown);
        if replaces {
            warn!(
                "this proxy took the place of one that died: it serves nothing until its app was started afresh; the liveness probes of the app fail until then"
            );
            tokio::select! {
                () = app_is_another(&config) => {}
                () = shutdown.as_mut() => return Ok(()),
                Some(ended) = beside.join_next() => return Err(ended_by_itself("what reads replies", ended)),
            }
            info!("the app was started afresh");
            alive.app_is_new();
        }
        let registration =
            Registration { prefix: config.prefix.clone(), caller: config.name.clone(), serves: config.serves.clone(), retention: config.retention };
        let mut lost = std::pin::pin!(app_is_gone(&config));
        let registered = registry::follow(log.clone(), registration, publish);
        let stop_deliveries = CancellationToken::new();
        let (cut_deliveries, hung) = (CancellationToken::new(), CancellationToken::new());
        let mut calls_in = JoinSet::new();
        let contexts = Contexts::try_new(config.inbound.transactions.passing, metrics.registry())?;
        let side = Arc::new(OutboundSide {
            config: config.clone(),
            log: log.clone(),
            directory: directory.clone(),
            pending,
            bulk,
            pass: pass.clone(),
            contexts: contexts.clone(),
            metrics: metrics.clone(),
            spans: spans.clone(),
            spread: Spread::default(),
            began: std::time::Instant::now(),
        });
        for served in &config.serves {
            let start = inbound::Start {
                log: log.clone(),
                instance,
                served: served.clone(),
                prefix: config.prefix.clone(),
                retention: config.retention,
                limits: config.inbound.clone(),
                // Answers have a memory of their own: calls out that wait for theirs must not keep them from coming in.
                bulk: Bulk::new(log.clone(), topics.bulk.partition(reply_partition(&instance)), config.inbound.body_memory_bytes),
                contexts: contexts.clone(),
                transactions: Transactions::try_new(served, &config.inbound.transactions, side.clone(), metrics.registry())?,
                observe: inbound::observe::Observe::new(&served.name, &metrics)?,
                spans: spans.clone(),
                cut: cut_deliveries.clone(),
                hung: hung.clone(),
                tenures: tenures.clone(),
            };
            calls_in.spawn(once_registered(directory.clone(), stop_deliveries.clone(), inbound::run(start, stop_deliveries.clone())));
        }

        let addresses = Addresses::default();
        if let Some(listeners) = dns {
            let nameservers = config.resolv_conf.nameservers.clone();
            info!(?nameservers, search = ?config.resolv_conf.search, "answers the app's questions for names");
            let resolver = Resolver::new(nameservers, directory.clone(), log.clone(), addresses.clone());
            beside.spawn(dns::serve(listeners, resolver, dns::Counts::try_new(&metrics)?));
        }
        let stop = CancellationToken::new();
        let mut calls_out = JoinSet::new();
        if !transparent.is_empty() {
            let transparency = Transparent::new(side.clone(), addresses, transparent::Counts::try_new(&metrics)?, token);
            calls_out.spawn(Arc::new(transparency).serve(transparent, stop.clone(), config.inbound.drain));
        }
        calls_out.spawn(intercept::serve(listener, side, stop.clone(), config.inbound.drain));

        let mut registered = std::pin::pin!(registered);
        let mut draining = false;
        let result = loop {
            tokio::select! {
                result = registered.as_mut() => break match result {
                    Ok(()) => Ok(()), // the log's client was closed: the process ends
                    Err(problem) => Err(problem.into()),
                },
                // None of these ends before it is told to. A proxy without one of them must not live on.
                Some(ended) = beside.join_next() => break Err(ended_by_itself("what reads replies", ended)),
                Some(ended) = calls_in.join_next() => {
                    let ended = match ended {
                        Ok(Err(superseded)) => break Err(superseded.into()),
                        ended => ended.map(drop),
                    };
                    if !draining || ended.is_err() {
                        break Err(ended_by_itself("what delivers calls", ended));
                    }
                }
                Some(ended) = calls_out.join_next() => break Err(ended_by_itself("what takes requests", ended)),
                () = drain.asked(), if !draining => {
                    info!("asked to drain: no new calls into the app; calls out of it go on");
                    draining = true;
                    stop_deliveries.cancel();
                }
                // An app that was told to end may close what it listens at, and go on calling.
                app = lost.as_mut(), if !draining => {
                    let problem = RunError::AppGone { app };
                    error!("{problem}");
                    break Err(problem);
                }
                () = hung.cancelled(), if !draining && config.restart_on_hang && config.together.is_some() => {
                    error!("{}", RunError::AppHangs);
                    break Err(RunError::AppHangs);
                }
                () = shutdown.as_mut() => break Ok(()),
            }
            if draining && calls_in.is_empty() {
                drain.finish();
            }
        };

        // Without having been asked to drain before, a box is restarted in place, or its app is gone: there is little time, or nothing to wait for.
        let quick = config.together.is_some() && !draining;
        if let Some(Together { place, .. }) = &config.together {
            let app_is_gone = matches!(result, Err(RunError::AppGone { .. }));
            let why = result
                .as_ref()
                .err()
                .map_or_else(|| "it was told to end (SIGTERM), because another container of its box had ended".to_owned(), ToString::to_string);
            // At once: the time may not be enough for what comes next.
            if let Err(problem) = place.leave_word(&why, app_is_gone) {
                warn!(%problem, "the next proxy will not know why this one ended");
            }
        }
        stop_deliveries.cancel();
        let ended = async {
            let over = tokio::time::sleep(if quick { QUICK_DRAIN } else { Duration::MAX });
            let mut over = std::pin::pin!(over);
            loop {
                tokio::select! {
                    ended = calls_in.join_next() => if ended.is_none() { break },
                    () = over.as_mut(), if !cut_deliveries.is_cancelled() => cut_deliveries.cancel(),
                }
            }
            // Calls out go on until deliveries into the app have ended: the app may need them for its answers.
            stop.cancel();
            while calls_out.join_next().await.is_some() {}
            pass.close().await;
        };
        if quick {
            let last = if spans.are_wanted() { LAST_SPANS } else { Duration::ZERO };
            let _ = tokio::time::timeout(QUICK_END - last, ended).await;
        } else {
            ended.await;
        }
        spans.close(LAST_SPANS).await;
        info!(name = %config.name, %instance, "a proxy ended");
        result
    }
}

/// Done when an app that this box serves is gone, if the two are to live and die together.
fn app_is_gone(config: &ProxyConfig) -> impl Future<Output = SocketAddr> + use<> {
    let mut apps = JoinSet::new();
    for app in config.serves.iter().filter(|_| config.together.is_some()).map(|served| served.app) {
        let gone = listening::gone(app.port());
        apps.spawn(async move {
            gone.await;
            app
        });
    }
    async move {
        match apps.join_next().await {
            Some(Ok(app)) => app,
            // Nothing is watched.
            _ => std::future::pending().await,
        }
    }
}

/// Done when every app that this box serves is another one than now.
async fn app_is_another(config: &ProxyConfig) {
    let mut apps: JoinSet<()> = config.serves.iter().map(|served| listening::another(served.app.port())).collect();
    while apps.join_next().await.is_some() {}
}

/// Runs something when the registry has this box's components, and so their topics are there.
async fn once_registered(
    mut directory: watch::Receiver<Directory>,
    stop: CancellationToken,
    then: impl Future<Output = Result<(), Superseded>>,
) -> Result<(), Superseded> {
    let registered = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        found = directory.wait_for(|directory| directory.registered) => found.is_ok(),
    };
    if registered { then.await } else { Ok(()) }
}

fn ended_by_itself(what: &'static str, ended: Result<(), tokio::task::JoinError>) -> RunError {
    RunError::Ended { what, how: ended.err().map_or_else(|| "without a word".to_owned(), |error| error.to_string()) }
}

/// Listens at an address, and, where that is IPv4's loopback, at the same port of IPv6's too, if the kernel has it: what the redirect catches of IPv6 arrives there.
async fn bind_both_families(address: SocketAddr) -> Result<Vec<TcpListener>, RunError> {
    let (listener, at) = bind(address).await?;
    let mut listeners = vec![listener];
    if let Some(other) = on_the_other_loopback(at) {
        match bind(other).await {
            Ok((listener, _)) => listeners.push(listener),
            Err(RunError::Listen { problem, .. }) if has_no_ipv6(&problem) => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(listeners)
}

/// The same for DNS, over UDP and TCP.
async fn bind_dns(address: SocketAddr) -> Result<dns::Listeners, RunError> {
    let tcp = bind_both_families(address).await?;
    let mut udp = Vec::new();
    for listener in &tcp {
        let failed = |address| move |problem| RunError::Listen { address, problem };
        let at = listener.local_addr().map_err(failed(address))?;
        udp.push(UdpSocket::bind(at).await.map_err(failed(at))?);
    }
    Ok(dns::Listeners { udp, tcp })
}

fn on_the_other_loopback(address: SocketAddr) -> Option<SocketAddr> {
    (address.ip() == Ipv4Addr::LOCALHOST).then(|| (Ipv6Addr::LOCALHOST, address.port()).into())
}

/// No IPv6 in the kernel, or none in this network namespace.
fn has_no_ipv6(problem: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let absent = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL, Errno::EPROTONOSUPPORT];
    problem.raw_os_error().is_some_and(|code| absent.contains(&Errno::from_raw(code)))
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |problem| RunError::Listen { address, problem };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let at = listener.local_addr().map_err(failed)?;
    Ok((listener, at))
}

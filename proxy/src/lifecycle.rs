//! A proxy from its start to its end: what runs in it, what makes it end, and in which order its parts do.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bluebox_core::InstanceId;
use bluebox_core::log::Log;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Rights, Shown};
use crate::bulk::Bulk;
use crate::config::{ProxyConfig, Together};
use crate::context::Contexts;
use crate::dns::addresses::Addresses;
use crate::dns::resolve::Resolver;
use crate::drain::Drain;
use crate::inbound::Superseded;
use crate::liveness::Alive;
use crate::outbound::OutboundSide;
use crate::outbound::intercept;
use crate::outbound::passthrough::PassThrough;
use crate::outbound::pending::{Pending, reply_partition};
use crate::outbound::spread::Spread;
use crate::readiness::Registered;
use crate::registry::{self, Directory, RegisterError, Registration};
use crate::spans::Spans;
use crate::transaction::Transactions;
use crate::transparent::probe::Redirected;
use crate::transparent::{self, Transparent};
use crate::{Proxy, RunError, dns, inbound, listening};

/// A box that is restarted in place gets 2 s. Deliveries have this long to end, …
const QUICK_DRAIN: Duration = Duration::from_millis(700);
/// … and with it what ended is flushed and the group is left within this.
const QUICK_END: Duration = Duration::from_millis(1500);
/// The last spans have this long to be sent; a part of that time, where there are any.
const LAST_SPANS: Duration = Duration::from_millis(300);

/// A proxy that runs.
pub(crate) struct Running {
    config: Arc<ProxyConfig>,
    instance: InstanceId,
    /// Keeps its components in the registry, and reads that.
    registered: Pin<Box<dyn Future<Output = Result<(), RegisterError>> + Send>>,
    /// The app, when it is gone.
    lost: Pin<Box<dyn Future<Output = SocketAddr> + Send>>,
    /// What runs beside the calls, for as long as the proxy does.
    beside: JoinSet<()>,
    calls_in: JoinSet<Result<(), Superseded>>,
    calls_out: JoinSet<()>,
    /// No new calls into the app; those under way go on …
    stop_in: CancellationToken,
    /// … until this.
    cut_in: CancellationToken,
    /// No new calls out of it.
    stop_out: CancellationToken,
    /// The app answers nothing any more.
    hung: CancellationToken,
    drain: Drain,
    draining: bool,
    pass: PassThrough,
    spans: Spans,
}

impl Running {
    /// Starts all parts. `None` if `shutdown` was done before they could be.
    pub(crate) async fn start(proxy: Proxy, log: Arc<dyn Log>, shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<Option<Self>, RunError> {
        let Proxy { config, instance, listeners, metrics, publish, tenures, calls } = proxy;
        let config = Arc::new(config);
        metrics.watch(log.clone())?;
        let topics = config.prefix.topics(&config.name);
        let directory = publish.subscribe();
        let (listener, listen) = listeners.calls;
        // What only loopback may reach is no more to be reached through the proxy than the proxy itself.
        let caught = listeners.transparent.iter().filter_map(|listener| listener.local_addr().ok());
        let own = [Some(listen), listeners.control.as_ref().map(|(_, address)| *address)].into_iter().flatten().chain(caught).collect();
        let pass = PassThrough::new(own, directory.clone(), config.outbound.connect_timeout, metrics.clone());
        info!(name = %config.name, %instance, %listen, serves = ?config.serves.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), "a proxy started");
        let spans = Spans::start(config.traces.as_ref(), &config.name, &instance.to_string(), bluebox_observe::trace::Counts::try_new(metrics.counts())?);

        let mut beside = JoinSet::new();
        let pending = Pending::new(log.clone(), &topics, &instance, config.outbound.max_waiting);
        beside.spawn(pending.clone().read());
        let token = instance.to_string();
        let redirected = if listeners.transparent.is_empty() {
            Redirected::not_wanted()
        } else {
            let (redirected, watching) = Redirected::watch(token.clone(), &metrics)?;
            beside.spawn(watching);
            redirected
        };
        let (in_registry, waiting) = Registered::watch(directory.clone(), log.health(), &metrics)?;
        let replaces = config.together.as_ref().is_some_and(|together| together.replaces);
        let (drain, alive) = (Drain::default(), Alive::new(config.liveness.clone(), replaces));
        for (listener, rights) in [(listeners.admin, Rights::Look), (listeners.control, Rights::Change)] {
            if let Some((listener, _)) = listener {
                let shown = Shown {
                    metrics: metrics.clone(),
                    drain: drain.clone(),
                    redirected: redirected.clone(),
                    registered: in_registry.clone(),
                    alive: alive.clone(),
                    log_level: config.log_level.clone(),
                };
                beside.spawn(admin::serve(listener, shown, rights));
            }
        }
        if replaces {
            warn!(
                "this proxy took the place of one that died: it serves nothing until its app was started afresh; the liveness probes of the app fail until then"
            );
            tokio::select! {
                () = app_is_another(&config) => {}
                () = shutdown => return Ok(None),
                Some(ended) = beside.join_next() => return Err(ended_by_itself("what reads replies", ended)),
            }
            info!("the app was started afresh");
            alive.app_is_new();
        }
        beside.spawn(waiting);

        let lost = Box::pin(app_is_gone(&config));
        let registration =
            Registration { prefix: config.prefix.clone(), caller: config.name.clone(), serves: config.serves.clone(), retention: config.retention };
        let registered = Box::pin(registry::follow(log.clone(), registration, publish));
        let contexts = Contexts::try_new(config.inbound.transactions.passing, metrics.registry())?;
        let bulk = |memory_bytes| Bulk::new(log.clone(), topics.bulk.partition(reply_partition(&instance)), memory_bytes);
        let side = Arc::new(OutboundSide {
            config: config.clone(),
            log: log.clone(),
            directory: directory.clone(),
            pending,
            bulk: bulk(config.outbound.body_memory_bytes),
            pass: pass.clone(),
            contexts: contexts.clone(),
            metrics: metrics.clone(),
            spans: spans.clone(),
            spread: Spread::default(),
            began: Instant::now(),
        });
        calls.begin(side.clone());

        let (stop_in, cut_in, hung) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut calls_in = JoinSet::new();
        for served in &config.serves {
            let start = inbound::Start {
                log: log.clone(),
                instance,
                served: served.clone(),
                prefix: config.prefix.clone(),
                retention: config.retention,
                limits: config.inbound.clone(),
                // Answers have a memory of their own: calls out that wait for theirs must not keep them from coming in.
                bulk: bulk(config.inbound.body_memory_bytes),
                contexts: contexts.clone(),
                transactions: Transactions::try_new(served, &config.inbound.transactions, side.clone(), metrics.registry())?,
                observe: inbound::observe::Observe::new(&served.name, &metrics)?,
                spans: spans.clone(),
                cut: cut_in.clone(),
                hung: hung.clone(),
                tenures: tenures.clone(),
            };
            calls_in.spawn(once_registered(directory.clone(), stop_in.clone(), inbound::run(start, stop_in.clone())));
        }

        let addresses = Addresses::default();
        if let Some(listeners) = listeners.dns {
            let nameservers = config.resolv_conf.nameservers.clone();
            info!(?nameservers, search = ?config.resolv_conf.search, "answers the app's questions for names");
            let resolver = Resolver::new(nameservers, directory, log, addresses.clone());
            beside.spawn(dns::serve(listeners, resolver, dns::Counts::try_new(&metrics)?));
        }
        let stop_out = CancellationToken::new();
        let mut calls_out = JoinSet::new();
        if !listeners.transparent.is_empty() {
            let transparency = Transparent::new(side.clone(), addresses, transparent::Counts::try_new(&metrics)?, token);
            calls_out.spawn(Arc::new(transparency).serve(listeners.transparent, stop_out.clone(), config.inbound.drain));
        }
        calls_out.spawn(intercept::serve(listener, side, stop_out.clone(), config.inbound.drain));
        Ok(Some(Self { config, instance, registered, lost, beside, calls_in, calls_out, stop_in, cut_in, stop_out, hung, drain, draining: false, pass, spans }))
    }

    /// Until `shutdown` is done, or it can't go on.
    pub(crate) async fn until_it_has_to_end(&mut self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<(), RunError> {
        loop {
            tokio::select! {
                // Without an error the log's client was closed: the process ends.
                result = self.registered.as_mut() => return result.map_err(RunError::from),
                // None of these ends before it is told to. A proxy without one of them must not live on.
                Some(ended) = self.beside.join_next() => return Err(ended_by_itself("what reads replies", ended)),
                Some(ended) = self.calls_in.join_next() => {
                    let ended = match ended {
                        Ok(Err(superseded)) => return Err(superseded.into()),
                        ended => ended.map(drop),
                    };
                    if !self.draining || ended.is_err() {
                        return Err(ended_by_itself("what delivers calls", ended));
                    }
                }
                Some(ended) = self.calls_out.join_next() => return Err(ended_by_itself("what takes requests", ended)),
                () = self.drain.asked(), if !self.draining => {
                    info!("asked to drain: no new calls into the app; calls out of it go on");
                    self.draining = true;
                    self.stop_in.cancel();
                }
                // An app that was told to end may close what it listens at, and go on calling.
                app = self.lost.as_mut(), if !self.draining => {
                    let problem = RunError::AppGone { app };
                    error!("{problem}");
                    return Err(problem);
                }
                () = self.hung.cancelled(), if !self.draining && self.config.restart_on_hang && self.config.together.is_some() => {
                    error!("{}", RunError::AppHangs);
                    return Err(RunError::AppHangs);
                }
                () = shutdown.as_mut() => return Ok(()),
            }
            if self.draining && self.calls_in.is_empty() {
                self.drain.finish();
            }
        }
    }

    /// Intake stops, deliveries end or are handed over, and requests under way get the time of the drain.
    pub(crate) async fn end(mut self, why: Option<&RunError>) {
        if let Some(Together { place, .. }) = &self.config.together {
            let app_is_gone = matches!(why, Some(RunError::AppGone { .. }));
            let why = why.map_or_else(|| "it was told to end (SIGTERM), because another container of its box had ended".to_owned(), ToString::to_string);
            // At once: the time may not be enough for what comes next.
            if let Err(problem) = place.leave_word(&why, app_is_gone) {
                warn!(%problem, "the next proxy will not know why this one ended");
            }
        }
        // Without having been asked to drain before, a box is restarted in place, or its app is gone: there is little time, or nothing to wait for.
        if self.config.together.is_some() && !self.draining {
            let last = if self.spans.are_wanted() { LAST_SPANS } else { Duration::ZERO };
            let _ = tokio::time::timeout(QUICK_END - last, self.end_calls(QUICK_DRAIN)).await;
        } else {
            self.end_calls(Duration::MAX).await;
        }
        self.spans.close(LAST_SPANS).await;
        info!(name = %self.config.name, instance = %self.instance, "a proxy ended");
    }

    /// Ends all calls; deliveries have so long.
    async fn end_calls(&mut self, time: Duration) {
        self.stop_in.cancel();
        let mut over = std::pin::pin!(tokio::time::sleep(time));
        loop {
            tokio::select! {
                ended = self.calls_in.join_next() => if ended.is_none() { break },
                () = over.as_mut(), if !self.cut_in.is_cancelled() => self.cut_in.cancel(),
            }
        }
        // Calls out go on until deliveries into the app have ended: the app may need them for its answers.
        self.stop_out.cancel();
        while self.calls_out.join_next().await.is_some() {}
        self.pass.close().await;
    }
}

/// Done when an app that this box serves is gone, if the two are to live and die together.
fn app_is_gone(config: &ProxyConfig) -> impl Future<Output = SocketAddr> + use<> {
    let mut apps = JoinSet::new();
    for app in config.serves.iter().filter(|_| config.together.is_some()).filter_map(|served| served.app.address()) {
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
    let mut apps: JoinSet<()> = config.serves.iter().filter_map(|served| served.app.address()).map(|app| listening::another(app.port())).collect();
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

fn ended_by_itself(what: &'static str, ended: Result<(), JoinError>) -> RunError {
    RunError::Ended { what, how: ended.err().map_or_else(|| "without a word".to_owned(), |error| error.to_string()) }
}

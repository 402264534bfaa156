//! `bluebox txmgr`: the transaction manager as a process: the component `txmgr` and its proxy, one failure domain by being one process.

#![allow(rustdoc::bare_urls, reason = "the comments of options are what --help prints")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bluebox_core::ComponentName;
use bluebox_core::registry::{Class, Component};
use bluebox_core::routing::Routing;
use bluebox_core::topics::Retention;
use bluebox_proxy::Proxy;
use bluebox_proxy::bulk::OutBody;
use bluebox_proxy::components::Components;
use bluebox_proxy::config::{Answering, App, InProcess, Inbound, Outbound, ProxyConfig, Served};
use bluebox_proxy::dns::resolv_conf::ResolvConf;
use bluebox_proxy::outbound::in_process::Calls;
use bluebox_txmgr::line::Rules;
use bluebox_txmgr::serve::{self, Settings, Surroundings};
use bluebox_txmgr::wire::participant::Allowed;
use bluebox_txmgr::{calls, components};
use bytes::Bytes;
use clap::{Args, Command};
use http::{Request, Response};
use http_body_util::Full;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::log::LogOptions;
use crate::logging::LoggingOptions;
use crate::proxy::{Listening, asked_to_end};
use crate::units;

/// What `bluebox txmgr --help` ends with.
pub(crate) const EXAMPLES: &str = "\
Examples:
  On Kafka, for apps in boxes (they call http://txmgr/lra-coordinator) and for others (http://HOST:8070/lra-coordinator):
    bluebox txmgr --brokers kafka:9092 --listen 0.0.0.0:8070

  Participants outside any box, at plain URLs, are called only where they are named:
    bluebox txmgr --brokers kafka:9092 --allow http://legacy.example:8080/lra

Any number of replicas share the transactions. SIGTERM and SIGINT end one in good order; what it had goes on elsewhere.";

/// The name that apps call it by.
pub(crate) const NAME: &str = "txmgr";

/// Partitions of its calls and of its transactions: the most replicas that have something to do.
pub(crate) const PARTITIONS: u32 = 16;

/// Requests that wait for the end of a transaction are deliveries under way, and others bring that end about: so there is room for many.
const CONCURRENCY: usize = 4096;

/// The largest request: a saga with all its steps.
const BODY_LIMIT_BYTES: u64 = 1 << 20;

/// Runs the transaction manager.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TxmgrOptions {
    /// The component that it is.
    #[arg(long, env = "BLUEBOX_NAME", value_name = "NAME", default_value = NAME, value_parser = |text: &str| ComponentName::try_new(text))]
    name: ComponentName,
    /// Where clients that are no box are answered by plain HTTP.
    #[arg(long, env = "BLUEBOX_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:8070")]
    listen: SocketAddr,
    /// Where /metrics, /healthz and /readyz are answered; by default nowhere.
    #[arg(long, env = "BLUEBOX_ADMIN", value_name = "HOST:PORT")]
    admin: Option<SocketAddr>,
    /// Where `bluebox log-level` tells it what to log; on loopback; by default nowhere.
    #[arg(long, env = "BLUEBOX_CONTROL", value_name = "HOST:PORT", value_parser = crate::proxy::loopback)]
    control: Option<SocketAddr>,
    /// Partitions of its calls and of its transactions; fixed when it is first started.
    #[arg(long, env = "BLUEBOX_PARTITIONS", value_name = "COUNT", default_value_t = PARTITIONS, value_parser = clap::value_parser!(u32).range(1..=1024))]
    partitions: u32,
    /// What URLs of LRAs begin with, instead of what the client used: https://lra.example/lra-coordinator.
    #[arg(long, env = "BLUEBOX_BASE_URL", value_name = "URL", value_parser = base)]
    base_url: Option<String>,
    /// A plain URL that may be called though it is no component, and those below it; can be repeated.
    #[arg(long, env = "BLUEBOX_ALLOW", value_name = "URL", value_delimiter = ',', value_parser = allowed)]
    allow: Vec<Allowed>,
    /// How long a transaction that has ended can still be asked for.
    #[arg(long, env = "BLUEBOX_KEEP_TRANSACTIONS", value_name = "DURATION", default_value = "24h", value_parser = units::positive_duration)]
    keep_transactions: Duration,
    /// How long a request to close or to cancel waits for the end; then it is answered that it goes on.
    #[arg(long, env = "BLUEBOX_END_WAIT", value_name = "DURATION", default_value = "5s", value_parser = units::duration)]
    end_wait: Duration,
    /// The pause before a participant is asked again; doubles with each try.
    #[arg(long, env = "BLUEBOX_FIRST_PAUSE", value_name = "DURATION", default_value = "200ms", value_parser = units::positive_duration)]
    first_pause: Duration,
    /// The longest such pause.
    #[arg(long, env = "BLUEBOX_LONGEST_PAUSE", value_name = "DURATION", default_value = "5s", value_parser = units::positive_duration)]
    longest_pause: Duration,
    /// How long requests may take to end when a partition goes to another replica or this one stops.
    #[arg(long, env = "BLUEBOX_DRAIN", value_name = "DURATION", default_value = "15s", value_parser = units::duration)]
    drain: Duration,
    /// After this long without a sign of life another replica takes over.
    #[arg(long, env = "BLUEBOX_SESSION_TIMEOUT", value_name = "DURATION", default_value = "6s", value_parser = units::positive_duration)]
    session_timeout: Duration,
    /// How long after a commit this replica may take requests.
    #[arg(long, env = "BLUEBOX_LEASE", value_name = "DURATION", default_value = "2s", value_parser = units::positive_duration)]
    lease: Duration,
    #[command(flatten)]
    log: LogOptions,
    #[command(flatten)]
    logging: LoggingOptions,
    /// Ends when its standard input does: for `bluebox up`.
    #[arg(long, hide = true)]
    with_parent: bool,
}

fn allowed(text: &str) -> Result<Allowed, String> {
    let allowed = Allowed::try_new(text).map_err(|refused| refused.to_string())?;
    if text.starts_with("http://") { Ok(allowed) } else { Err("https can't be called yet: name an http URL".to_owned()) }
}

fn base(text: &str) -> Result<String, String> {
    Allowed::try_new(text).map_err(|refused| refused.to_string())?;
    let base = text.trim_end_matches('/');
    Ok(if base.ends_with(bluebox_txmgr::wire::BASE_PATH) { base.to_owned() } else { format!("{base}{}", bluebox_txmgr::wire::BASE_PATH) })
}

/// What the file of `bluebox up` can say of it besides where and how many: flags without the dashes.
pub(crate) const SETTINGS: &[&str] = &["base-url", "allow", "keep-transactions", "end-wait", "first-pause", "longest-pause", "session-timeout", "lease"];

/// Checks a setting; the flag that says it.
pub(crate) fn flag(name: &str, value: &str) -> Result<String, String> {
    let flag = format!("--{name}={value}");
    // The environment is the process's own, a file says what it says.
    let command = TxmgrOptions::augment_args(Command::new("txmgr").no_binary_name(true)).mut_args(|arg| arg.env(None::<&'static str>));
    match command.try_get_matches_from([&flag]) {
        Ok(_) => Ok(flag),
        Err(error) => Err(std::error::Error::source(&error).map_or_else(|| "a value that this key can't have".to_owned(), ToString::to_string)),
    }
}

/// The component, as the registry is to have it.
pub(crate) fn served(name: ComponentName, partitions: u32, app: App) -> Served {
    let component = Component { class: Class::Service, partitions, body_limit_bytes: BODY_LIMIT_BYTES, routing: Routing::Transaction, ..Component::default() };
    Served { name, component, ordinal: None, app }
}

/// The app that its own proxy hands its calls to.
struct Handed(serve::App);

impl InProcess for Handed {
    fn answer(&self, request: Request<OutBody>) -> Answering {
        let app = self.0.clone();
        Box::pin(async move { app.answer(request).await })
    }
}

/// Where its own calls go.
struct Own(Calls);

impl calls::Calls for Own {
    fn call(&self, request: Request<Bytes>, max_bytes: usize) -> calls::Calling<'_> {
        Box::pin(async move {
            let (head, body) = self.0.answer(request.map(Full::new)).await.into_parts();
            Response::from_parts(head, calls::content(body, max_bytes).await)
        })
    }
}

/// What its own proxy knows of components.
struct Known(Components);

impl components::Components for Known {
    fn has(&self, name: &ComponentName, port: u16) -> bool {
        self.0.has(name, port)
    }

    fn learn(&self, names: Vec<(ComponentName, u16)>) -> components::Learning<'_> {
        Box::pin(async move { self.0.learn(&names).await.is_ok() })
    }
}

/// Runs it until it is told to end.
pub(crate) async fn run(options: TxmgrOptions) -> anyhow::Result<()> {
    let log_level = options.logging.start()?;
    if options.with_parent {
        crate::family::end_with_parent()?;
    }
    let log = options.log.connect()?;
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let app = serve::App::default();
    let door = TcpListener::bind(options.listen).await.with_context(|| format!("{}: can't listen there (--listen names another place)", options.listen))?;
    let listen = door.local_addr()?;
    let served = served(options.name.clone(), options.partitions, App::Here(Arc::new(Handed(app.clone()))));
    let proxy = Proxy::bind(ProxyConfig {
        name: options.name.clone(),
        serves: vec![served],
        listen: any,
        transparent: None,
        dns: None,
        resolv_conf: ResolvConf::default(),
        admin: options.admin,
        control: options.control,
        together: None,
        restart_on_hang: false,
        liveness: Vec::new(),
        // Those who come by plain HTTP are strangers to each other.
        shared_by_callers: true,
        prefix: options.log.kafka.topic_prefix.clone(),
        retention: Retention::default(),
        log_level: Some(log_level),
        traces: crate::traces::wanted(&options.log),
        outbound: Outbound { max_waiting: 4 * CONCURRENCY, ..Outbound::default() },
        inbound: Inbound {
            concurrency: CONCURRENCY,
            drain: options.drain,
            session_timeout: options.session_timeout,
            lease: options.lease,
            // A request that waits for an end waits for others: delivered by itself, it would stand still, and the partition with it. And none of them ends this process.
            max_crashes: None,
            ..Inbound::default()
        },
    })
    .await?;
    let registry = options.log.kafka.topic_prefix.registry().partition(0);
    let known = Components::new(proxy.directory(), Arc::clone(&log), registry);
    let around = Surroundings {
        transactions: serve::topic(&options.log.kafka.topic_prefix, &options.name),
        log: log.clone(),
        calls: Arc::new(Own(proxy.calls())),
        components: Arc::new(Known(known)),
        tenures: proxy.tenures(),
    };
    let rules = Rules { first_pause: options.first_pause, longest_pause: options.longest_pause, retention: options.keep_transactions, ..Rules::default() };
    let settings = Settings {
        name: options.name.clone(),
        partitions: options.partitions,
        rules,
        base: options.base_url.clone(),
        allowed: options.allow.clone(),
        end_wait: options.end_wait,
    };
    let counts = proxy.counts().clone();
    info!(log = options.log.describe(), %listen, "transactions are kept in this log");
    if options.with_parent {
        println!("{}", serde_json::to_string(&Listening { listen, admin: proxy.admin(), control: proxy.control() })?);
    }
    let clients = serve::door::serve(door, options.name.clone(), proxy.listen());
    tokio::select! {
        ended = proxy.run(log, asked_to_end(terminate, interrupt)) => ended?,
        failed = serve::run(settings, around, &app, &counts) => match failed? {},
        () = clients => {}
    }
    Ok(())
}

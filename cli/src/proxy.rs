//! `bluebox proxy`: one proxy as a process.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments of options are what --help prints")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::ComponentName;
use bluebox_core::topics::Retention;
use bluebox_observe::level::Level;
use bluebox_proxy::Proxy;
use bluebox_proxy::config::{ProxyConfig, Served, Together};
use bluebox_proxy::dns::resolv_conf::ResolvConf;
use bluebox_proxy::incarnation::{Place, Taken};
use bluebox_proxy::liveness::Liveness;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::limits::{InboundLimits, OutboundLimits};
use crate::log::{self, LogOptions};
use crate::logging::LoggingOptions;
use crate::tail::{self, Tail};
use crate::units;

/// What `bluebox proxy --help` ends with.
pub(crate) const EXAMPLES: &str = "\
Examples:
  The proxy of an app that listens on 8080 and is called http://cart/ by others. The app runs with http_proxy=http://127.0.0.1:4140:
    bluebox proxy --brokers kafka:9092 --serve cart=127.0.0.1:8080

  A gateway, for callers that are in no box (curl -x 127.0.0.1:4140 http://cart/items):
    bluebox proxy --brokers kafka:9092 --name edge --listen 127.0.0.1:4140

  The same by environment:
    BLUEBOX_BROKERS=kafka:9092 BLUEBOX_SERVE=cart=127.0.0.1:8080 BLUEBOX_ATTEMPT_TIMEOUT=30s bluebox proxy

SIGTERM and SIGINT end it in good order: no new calls, what is under way is finished (--drain), then it leaves. The second signal ends it at once.";

/// Runs one proxy: an app's, or a gateway.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ProxyOptions {
    /// Who calls, when a call leaves this proxy; by default the first component that it serves, else `gateway`.
    #[arg(long, env = "BLUEBOX_NAME", value_name = "NAME", value_parser = |text: &str| ComponentName::try_new(text))]
    name: Option<ComponentName>,
    /// The components that the app serves; see [`serve`](crate::serve).
    #[arg(long, env = "BLUEBOX_SERVE", value_name = "NAME=HOST:PORT", value_delimiter = ' ', value_parser = crate::serve::parse, help = crate::serve::HELP)]
    serve: Vec<Served>,
    /// Where calls are taken: what the app's HTTP_PROXY names.
    #[arg(long, env = "BLUEBOX_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:4140")]
    listen: SocketAddr,
    /// Where what `bluebox redirect` caught arrives; with 127.0.0.1, the same port of [::1] too; by default nowhere.
    #[arg(long, env = "BLUEBOX_TRANSPARENT", value_name = "HOST:PORT")]
    transparent: Option<SocketAddr>,
    /// Where the app's DNS that `bluebox redirect` caught arrives; with 127.0.0.1, the same port of [::1] too; by default nowhere.
    #[arg(long, env = "BLUEBOX_DNS", value_name = "HOST:PORT")]
    dns: Option<SocketAddr>,
    /// With --transparent or --dns: where the app's nameservers and its search list are written.
    #[arg(long, env = "BLUEBOX_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// With --dns: the nameservers that are asked, instead of those in --resolv-conf.
    #[arg(long, env = "BLUEBOX_NAMESERVERS", value_name = "ADDRESSES", value_delimiter = ',', value_parser = crate::redirect::nameserver)]
    nameservers: Vec<SocketAddr>,
    /// Where /metrics, /healthz, /started, /readyz and /drained are answered; by default nowhere.
    #[arg(long, env = "BLUEBOX_ADMIN", value_name = "HOST:PORT")]
    admin: Option<SocketAddr>,
    /// Where `bluebox drain` tells it to take no more calls, and `bluebox log-level` what to log; on loopback; by default nowhere.
    #[arg(long, env = "BLUEBOX_CONTROL", value_name = "HOST:PORT", value_parser = loopback)]
    control: Option<SocketAddr>,
    /// The callers are strangers to each other: Authorization and Cookie count when an Idempotency-Key comes again. By default true for a gateway.
    #[arg(long, env = "BLUEBOX_SHARED_BY_CALLERS", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    shared_by_callers: Option<bool>,
    #[command(flatten)]
    log: LogOptions,
    #[command(flatten)]
    keep: KeepOptions,
    #[command(flatten)]
    outbound: OutboundLimits,
    #[command(flatten)]
    inbound: InboundLimits,
    #[command(flatten)]
    logging: LoggingOptions,
    /// The directory in which `bluebox incarnate` puts a token each time that the box starts: app and proxy then live and die together. For pods.
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    incarnation: Option<PathBuf>,
    /// An exit of the proxy does not restart the app: a proxy that was started again alone waits for another app, whose liveness probes it answers with no meanwhile.
    #[arg(long, requires = "incarnation", hide = true)]
    without_rules: bool,
    /// End when the app hangs, so that both are started afresh.
    #[arg(long, requires = "incarnation", hide = true)]
    restart_on_hang: bool,
    /// A liveness probe of the app, in JSON, that /alive asks.
    #[arg(long, value_name = "PROBE", value_parser = |text: &str| serde_json::from_str::<Liveness>(text), hide = true)]
    liveness: Vec<Liveness>,
    /// Ends when its standard input does: for `bluebox up`.
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// How long topics that are made keep what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "How long topics that are made keep what")]
pub(crate) struct KeepOptions {
    /// Calls; must be above --ttl.
    #[arg(long, env = "BLUEBOX_KEEP_CALLS", value_name = "DURATION", default_value = "48h", value_parser = units::positive_duration)]
    keep_calls: Duration,
    /// Outcomes and large bodies; must be above --keep-calls.
    #[arg(long, env = "BLUEBOX_KEEP_REPLIES", value_name = "DURATION", default_value = "72h", value_parser = units::positive_duration)]
    keep_replies: Duration,
    /// What is remembered of calls with an Idempotency-Key.
    #[arg(long, env = "BLUEBOX_KEEP_RECORDED", value_name = "DURATION", default_value = "24h", value_parser = units::positive_duration)]
    keep_recorded: Duration,
    /// Dead letters.
    #[arg(long, env = "BLUEBOX_KEEP_DEAD_LETTERS", value_name = "DURATION", default_value = "14days", value_parser = units::positive_duration)]
    keep_dead_letters: Duration,
}

impl KeepOptions {
    /// The same in one.
    pub(crate) fn retention(&self) -> Retention {
        Retention { calls: self.keep_calls, replies: self.keep_replies, recorded: self.keep_recorded, dead_letters: self.keep_dead_letters }
    }
}

impl ProxyOptions {
    /// What the flags say, as the proxy's configuration.
    ///
    /// # Errors
    /// When two of them contradict each other.
    pub(crate) fn config(&self) -> Result<ProxyConfig, String> {
        let name = match (&self.name, self.serve.first()) {
            (Some(name), _) => name.clone(),
            (None, Some(served)) => served.name.clone(),
            (None, None) => ComponentName::try_new("gateway").map_err(|error| error.to_string())?,
        };
        let config = ProxyConfig {
            name,
            serves: self.serve.clone(),
            listen: self.listen,
            transparent: self.transparent,
            dns: self.dns,
            resolv_conf: self.resolv_conf()?,
            admin: self.admin,
            control: self.control,
            together: self.incarnation.as_ref().map(|directory| Together { place: Place::new(directory), replaces: false }),
            restart_on_hang: self.restart_on_hang,
            liveness: self.liveness.clone(),
            shared_by_callers: self.shared_by_callers.unwrap_or(self.serve.is_empty()),
            prefix: self.log.kafka.topic_prefix.clone(),
            retention: self.keep.retention(),
            log_level: None,
            traces: None,
            outbound: self.outbound.clone().into(),
            inbound: self.inbound.clone().into(),
        };
        check(&config)?;
        Ok(config)
    }
}

impl ProxyOptions {
    /// What the app is told about names, where that matters.
    fn resolv_conf(&self) -> Result<ResolvConf, String> {
        if self.transparent.is_none() && self.dns.is_none() {
            return Ok(ResolvConf::default());
        }
        let mut read = ResolvConf::read(&self.resolv_conf).map_err(|error| error.to_string())?;
        if !self.nameservers.is_empty() {
            read.nameservers.clone_from(&self.nameservers);
        }
        if self.dns.is_some() && read.nameservers.is_empty() {
            return Err(format!("{}: it names no nameserver to ask; name them with --nameservers, or leave --dns away", self.resolv_conf.display()));
        }
        Ok(read)
    }
}

/// Reads an address that only this machine, or this pod, can reach: who reaches it can change something.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "an address is written as 127.0.0.1:4142".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("on loopback only: 127.0.0.1 or [::1]".to_owned()) }
}

/// Whether the limits go together.
fn check(config: &ProxyConfig) -> Result<(), String> {
    let above = |name: &str, value: Duration, other: &str, least: Duration| {
        let (value, least) = (humantime::format_duration(value), humantime::format_duration(least));
        format!("{name} ({value}) must be above {other} ({least})")
    };
    let (out, keep) = (&config.outbound, &config.retention);
    if out.ttl >= keep.calls {
        return Err(above("keep-calls", keep.calls, "ttl", out.ttl));
    }
    if keep.replies <= keep.calls {
        return Err(above("keep-replies", keep.replies, "keep-calls", keep.calls));
    }
    if out.max_wait < out.wait {
        return Err(above("max-wait", out.max_wait, "wait", out.wait));
    }
    if config.inbound.max_backoff < config.inbound.first_backoff {
        return Err(above("max-backoff", config.inbound.max_backoff, "first-backoff", config.inbound.first_backoff));
    }
    if config.inbound.lease >= config.inbound.session_timeout {
        return Err(above("session-timeout", config.inbound.session_timeout, "lease", config.inbound.lease));
    }
    let mut names: Vec<_> = config.serves.iter().map(|served| &served.name).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("component `{}` is served twice", twice[0]));
    }
    Ok(())
}

/// What a proxy tells the `bluebox up` that started it, as the first line on its standard output: the ports that the system chose.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Listening {
    /// Where it takes calls.
    pub(crate) listen: SocketAddr,
    /// Where it answers /metrics.
    pub(crate) admin: Option<SocketAddr>,
    /// Where it is told something.
    pub(crate) control: Option<SocketAddr>,
}

/// Runs the proxy until it is told to end.
pub(crate) async fn run(options: ProxyOptions) -> anyhow::Result<()> {
    let (log_level, replaces) = match &options.incarnation {
        Some(directory) => begin(&Place::new(directory), &options)?,
        None => (options.logging.start()?, false),
    };
    let place = options.incarnation.as_ref().map(Place::new);
    let ended = serve(options, log_level, replaces).await;
    // Where the box is started again in place, nobody else keeps what it ended with.
    if let (Err(error), Some(place)) = (&ended, place) {
        place.leave_word_if_none(&format!("{error:#}"))?;
    }
    ended
}

/// Runs the proxy, whose box has begun.
async fn serve(options: ProxyOptions, log_level: Level, replaces: bool) -> anyhow::Result<()> {
    if options.with_parent {
        crate::family::end_with_parent()?;
    }
    let mut config = options.config().map_err(anyhow::Error::msg)?;
    config.log_level = Some(log_level);
    config.traces = crate::traces::wanted(&options.log);
    if let Some(together) = &mut config.together {
        together.replaces = replaces;
    }
    let log = options.log.connect()?;
    // The `up` that started this says it once for all.
    if !options.with_parent {
        tokio::spawn(tell_about_the_log(log.clone(), options.log.clone()));
    }
    let log_described = options.log.describe();
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let proxy = Proxy::bind(config).await?;
    info!(log = log_described, "calls are kept in this log");
    if options.with_parent {
        println!("{}", serde_json::to_string(&Listening { listen: proxy.listen(), admin: proxy.admin(), control: proxy.control() })?);
    }
    proxy.run(log, asked_to_end(terminate, interrupt)).await?;
    Ok(())
}

/// Starts as a half of a box, and tells why the box was started again: the logs of its former containers are gone. `true` if the app still is that of a proxy that died.
fn begin(place: &Place, options: &ProxyOptions) -> anyhow::Result<(Level, bool)> {
    const LAST_LINES: usize = 20;
    let file = place.file("log");
    let lines = tail::last_lines(&file, LAST_LINES);
    let log_level = options.logging.start_with(Some(Tail::begin(&file).with_context(|| format!("{}: can't be written", file.display()))?))?;
    let said = |why: Option<String>| why.unwrap_or_else(|| "it died without a word: it was killed, or had no memory left".to_owned());
    let taken = place.take()?;
    let restarted = !matches!(taken, Taken::WithTheBox { incarnation: 1, .. });
    if restarted {
        info!("the last words of the former proxy:");
        for line in &lines {
            // As they were said; not once more in what is kept for the next.
            eprintln!("{}{line}", if options.logging.is_json() { "" } else { "  | " });
        }
    }
    match taken {
        Taken::WithTheBox { incarnation: 1, .. } => {}
        Taken::WithTheBox { incarnation, why } => warn!(incarnation, former_proxy = said(why), "this box was started again"),
        Taken::Alone { why, app_is_new: true } if options.without_rules => warn!(former_proxy = said(why), "this proxy was started again, after its app"),
        Taken::Alone { why, .. } if options.without_rules => {
            warn!(former_proxy = said(why), "this proxy was started again alone");
            // What serves nothing has no app that could be told from another.
            return Ok((log_level, !options.serve.is_empty()));
        }
        Taken::Alone { why, .. } => {
            let why = format!("a proxy was started again alone, without its app; it ends, so that both are started afresh. The one before: {}", said(why));
            error!("{why}");
            place.leave_word(&why, false)?;
            bail!("started again alone");
        }
    }
    Ok((log_level, false))
}

async fn tell_about_the_log(log: std::sync::Arc<dyn bluebox_core::Log>, options: LogOptions) {
    let prefix = options.kafka.topic_prefix.clone();
    log::watch(log, prefix, |reachable| {
        if reachable {
            info!("{} can be reached", options.describe());
        } else {
            error!("{} can't be reached; calls get 503 until it can. Still trying. {}", options.describe(), options.remedy());
        }
    })
    .await;
}

/// Done with the first SIGTERM or SIGINT. The second ends the process at once.
pub(crate) async fn asked_to_end(mut terminate: Signal, mut interrupt: Signal) {
    let mut next = async move || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
    next().await;
    info!("asked to end: no new calls, what is under way is finished");
    tokio::spawn(async move {
        next().await;
        error!("asked to end again: ended at once; what was under way will be delivered again");
        std::process::exit(130);
    });
}

//! What a proxy is told when it starts. Read once; nothing here changes while it runs.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::registry::Component;
use bluebox_core::topics::{Prefix, Retention};
use bluebox_observe::level::Level;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;

use crate::bulk::OutBody;
use crate::dns::resolv_conf::ResolvConf;
use crate::incarnation::Place;
use crate::liveness::Liveness;
use crate::spans::Traces;
use crate::transaction::TransactionRules;

/// Everything that a proxy is told.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Who calls, when a call leaves this box: the box's component, or the gateway's name.
    pub name: ComponentName,
    /// The components whose calls this box takes; none for a gateway.
    pub serves: Vec<Served>,
    /// Where the app's outbound requests arrive.
    pub listen: SocketAddr,
    /// Where what the redirect caught arrives; `None`: nowhere. Where it is IPv4's loopback, IPv6's is listened at too, if there is one.
    pub transparent: Option<SocketAddr>,
    /// Where the app's DNS arrives; `None`: nowhere. As with `transparent`, IPv6's loopback too.
    pub dns: Option<SocketAddr>,
    /// Which nameservers and domains the app would have without the proxy.
    pub resolv_conf: ResolvConf,
    /// Where `/metrics`, `/healthz`, `/started`, `/readyz` and `/drained` are answered; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// Where the proxy can be told to take no more calls (`POST /drain`); loopback. `None`: nowhere.
    pub control: Option<SocketAddr>,
    /// Where app and proxy live and die together: the proxy ends when what it serves is gone, and somebody starts both afresh.
    pub together: Option<Together>,
    /// Whether the proxy ends when its app hangs, so that both are started afresh; only where they live and die together.
    pub restart_on_hang: bool,
    /// The liveness probes of the app that are asked through this proxy.
    pub liveness: Vec<Liveness>,
    /// Whether the callers are strangers to each other (a gateway): then Authorization and Cookie count when a keyed call comes again.
    pub shared_by_callers: bool,
    /// Names of topics begin with it.
    pub prefix: Prefix,
    /// How long the topics that this proxy makes keep what.
    pub retention: Retention,
    /// What this process logs, if that can be changed while it runs.
    pub log_level: Option<Level>,
    /// Where traces go; `None`: there are none.
    pub traces: Option<Traces>,
    /// Limits of calls out of the box.
    pub outbound: Outbound,
    /// Limits of calls into the box.
    pub inbound: Inbound,
}

/// One failure domain.
#[derive(Debug, Clone)]
pub struct Together {
    /// The directory of the box's incarnations.
    pub place: Place,
    /// Whether this proxy took the place of one that died, and its app is still that one's.
    pub replaces: bool,
}

/// A component that this box serves.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its name.
    pub name: ComponentName,
    /// What the registry is to say of it.
    pub component: Component,
    /// Which ordinal of a stateful component this box is, from 0; `None` for other classes.
    pub ordinal: Option<u32>,
    /// Where the app is.
    pub app: App,
}

/// Where an app is, and how it is handed its calls.
#[derive(Clone)]
pub enum App {
    /// It listens there; on loopback.
    At {
        /// Where.
        address: SocketAddr,
        /// What it speaks.
        protocol: AppProtocol,
    },
    /// It is in this process, and nothing lies between.
    Here(Arc<dyn InProcess>),
}

impl App {
    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::At { address, .. } => Some(*address),
            Self::Here(_) => None,
        }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { address, .. } => address.fmt(f),
            Self::Here(_) => f.write_str("this process"),
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An app in the proxy's own process.
pub trait InProcess: Send + Sync {
    /// Answers a request. Dropped when nobody waits for the answer any more: the call is delivered again, here or elsewhere.
    fn answer(&self, request: http::Request<OutBody>) -> Answering;
}

/// What [`InProcess::answer`] becomes.
pub type Answering = Pin<Box<dyn Future<Output = http::Response<Full<Bytes>>> + Send>>;

/// What an app speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, without TLS.
    H2c,
}

/// Limits of calls out of the box.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// How long a caller's connection is held; `Prefer: wait=N` asks for another time, up to `max_wait`. Default 5 min.
    pub wait: Duration,
    /// The longest wait that a caller can ask for. Default 1 h.
    pub max_wait: Duration,
    /// How long an accepted call stays deliverable. Default 24 h; must be below the retention of calls.
    pub ttl: Duration,
    /// Calls that may wait for their outcome at once; beyond: 503. Default 10,000.
    pub max_waiting: usize,
    /// Connections that may be open at once; further ones wait to be accepted. Default 10,000.
    pub max_connections: usize,
    /// The largest request head, in bytes; beyond: 431. Default 64 KiB.
    pub max_head_bytes: usize,
    /// How long a request head may take to arrive. Default 30 s.
    pub head_timeout: Duration,
    /// How long a body may stand still while it arrives; beyond: 408. Default 30 s.
    pub body_idle_timeout: Duration,
    /// Memory for request bodies on their way into the log, all calls together, in bytes; beyond, reading them waits. Default 64 MiB.
    pub body_memory_bytes: usize,
    /// Whether a call is cancelled when its caller hangs up. Default no.
    pub cancel_on_disconnect: bool,
    /// How long a pass-through connection may take to come up. Default 10 s.
    pub connect_timeout: Duration,
    /// Whose call has not ended this long after it was accepted waits for long: see [`crate::outbound::long_wait`]. Default 200 ms.
    pub long_wait: Duration,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(300),
            max_wait: Duration::from_secs(3600),
            ttl: Duration::from_secs(24 * 3600),
            max_waiting: 10_000,
            max_connections: 10_000,
            max_head_bytes: 64 << 10,
            head_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(30),
            body_memory_bytes: 64 << 20,
            cancel_on_disconnect: false,
            connect_timeout: Duration::from_secs(10),
            long_wait: Duration::from_millis(200),
        }
    }
}

/// Limits of the calls to one path and those below it, where they are other than the box's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLimits {
    /// The path: `/reports` is also `/reports/2026` and `/reports?year=2026`, but not `/reportsx`. The longest one that fits a call counts.
    pub path: String,
    /// As [`Inbound::attempt_timeout`].
    pub attempt_timeout: Option<Duration>,
    /// As [`Inbound::retry_on`].
    pub retry_on: Option<Vec<StatusCode>>,
}

impl RouteLimits {
    /// Whether it is for this request target.
    pub fn fits(&self, target: &str) -> bool {
        let Some(rest) = target.strip_prefix(self.path.trim_end_matches('/')) else { return false };
        rest.is_empty() || rest.starts_with(['/', '?'])
    }
}

/// Limits of calls into the box.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// How long the app may take for its complete answer; then the attempt has failed. Default 5 min.
    pub attempt_timeout: Duration,
    /// Attempts that may fail before a call becomes a dead letter. Default 10.
    pub max_attempts: u32,
    /// Solo deliveries that may end in a crash of the box before a call becomes a dead letter. Default 3. `None`: no box dies of a call, and none is delivered solo, for apps whose calls wait for
    /// each other.
    pub max_crashes: Option<u32>,
    /// After so many attempts in a row without an answer, an app that then answers nothing else either counts as hung: it gets no more calls. Default 3.
    pub max_unanswered: u32,
    /// The pause before the second attempt; doubles with each, with jitter, up to `max_backoff`. Default 100 ms.
    pub first_backoff: Duration,
    /// The longest pause between attempts. Default 30 s.
    pub max_backoff: Duration,
    /// Answers of the app with one of these statuses count as failed attempts too. Default none.
    pub retry_on: Vec<StatusCode>,
    /// Paths with limits of their own. Default none.
    pub routes: Vec<RouteLimits>,
    /// What the app's paths have to do with transactions, and how contexts are passed on. Default: nothing, and all that is known for sure.
    pub transactions: TransactionRules,
    /// Deliveries under way at once in this box. Default 64.
    pub concurrency: usize,
    /// Memory for the bodies of calls that wait for delivery, in bytes; beyond, partitions are paused. Default 64 MiB.
    pub body_memory_bytes: usize,
    /// The largest answer of an app, in bytes; beyond, the call ends with a recorded 502. Default 64 MiB.
    pub answer_limit_bytes: u64,
    /// How long deliveries may take to end when a partition goes to another box or the proxy stops. Default 30 s.
    pub drain: Duration,
    /// After this long without a sign of life another box takes over. Default 6 s, the least that a stock Kafka broker grants.
    pub session_timeout: Duration,
    /// How long after a commit this box may start deliveries. Default 2 s.
    pub lease: Duration,
    /// Recorded calls that are remembered at once; beyond, new ones get 503. Default 200,000.
    pub max_recorded: usize,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(300),
            max_attempts: 10,
            max_crashes: Some(3),
            max_unanswered: 3,
            first_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            retry_on: Vec::new(),
            routes: Vec::new(),
            transactions: TransactionRules::default(),
            concurrency: 64,
            body_memory_bytes: 64 << 20,
            answer_limit_bytes: 64 << 20,
            drain: Duration::from_secs(30),
            session_timeout: Duration::from_secs(6),
            lease: Duration::from_secs(2),
            max_recorded: 200_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_fits_its_path_and_what_is_below() {
        let route = |path: &str| RouteLimits { path: path.to_owned(), attempt_timeout: None, retry_on: None };
        for (path, fits, not) in
            [("/a", &["/a", "/a/b", "/a?b", "/a/"][..], &["/ab", "/", "/b/a"][..]), ("/a/", &["/a", "/a/b"], &["/ab"]), ("/", &["/", "/a", "/?"], &["*"])]
        {
            assert!(fits.iter().all(|t| route(path).fits(t)), "{path}");
            assert!(!not.iter().any(|t| route(path).fits(t)), "{path}");
        }
    }
}

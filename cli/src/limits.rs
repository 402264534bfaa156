//! The limits of a proxy as flags. The keys of a box in the file of `bluebox up` are these flags without the dashes, so both are read and explained here and nowhere
//! else.

use std::time::Duration;

use bluebox_proxy::config::{Inbound, Outbound, RouteLimits};
use bluebox_proxy::transaction::rule::Rule;
use bluebox_proxy::transaction::{Passing, TransactionRules};
use clap::{ArgAction, Args, Command};
use http::StatusCode;

use crate::units;

/// Limits of calls out of the box.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Calls out of the box")]
pub(crate) struct OutboundLimits {
    /// How long a caller's connection is held; `Prefer: wait=N` asks for another time.
    #[arg(long, env = "BLUEBOX_WAIT", value_name = "DURATION", default_value = "5m", value_parser = units::positive_duration)]
    wait: Duration,
    /// The longest wait that a caller can ask for.
    #[arg(long, env = "BLUEBOX_MAX_WAIT", value_name = "DURATION", default_value = "1h", value_parser = units::positive_duration)]
    max_wait: Duration,
    /// How long an accepted call stays deliverable; must be below the retention of calls (48 h).
    #[arg(long, env = "BLUEBOX_TTL", value_name = "DURATION", default_value = "24h", value_parser = units::positive_duration)]
    ttl: Duration,
    /// Calls that may wait for their outcome at once; beyond: 503.
    #[arg(long, env = "BLUEBOX_MAX_WAITING", value_name = "COUNT", default_value = "10000", value_parser = units::count)]
    max_waiting: usize,
    /// Connections that may be open at once; further ones wait to be accepted.
    #[arg(long, env = "BLUEBOX_MAX_CONNECTIONS", value_name = "COUNT", default_value = "10000", value_parser = units::count)]
    max_connections: usize,
    /// The largest request head; beyond: 431.
    #[arg(long, env = "BLUEBOX_MAX_HEAD", value_name = "SIZE", default_value = "64KiB", value_parser = units::memory)]
    max_head: usize,
    /// How long a request head may take to arrive.
    #[arg(long, env = "BLUEBOX_HEAD_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = units::positive_duration)]
    head_timeout: Duration,
    /// How long a body may stand still while it arrives; beyond: 408.
    #[arg(long, env = "BLUEBOX_BODY_IDLE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = units::positive_duration)]
    body_idle_timeout: Duration,
    /// Memory for request bodies on their way into the log, all calls together; beyond, reading them waits.
    #[arg(long, env = "BLUEBOX_REQUEST_MEMORY", value_name = "SIZE", default_value = "64MiB", value_parser = units::memory)]
    request_memory: usize,
    /// Cancel a call when its caller hangs up.
    #[arg(long, env = "BLUEBOX_CANCEL_ON_DISCONNECT", value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    cancel_on_disconnect: bool,
    /// How long a pass-through connection may take to come up.
    #[arg(long, env = "BLUEBOX_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = units::positive_duration)]
    connect_timeout: Duration,
}

/// Limits of calls into the box.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Calls into the box")]
pub(crate) struct InboundLimits {
    /// How long the app may take for its complete answer; then the attempt has failed.
    #[arg(long, env = "BLUEBOX_ATTEMPT_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = units::positive_duration)]
    attempt_timeout: Duration,
    /// Attempts that may fail before a call becomes a dead letter.
    #[arg(long, env = "BLUEBOX_MAX_ATTEMPTS", value_name = "COUNT", default_value = "10", value_parser = units::count_u32)]
    max_attempts: u32,
    /// Solo deliveries that may end in a crash of the box before a call becomes a dead letter.
    #[arg(long, env = "BLUEBOX_MAX_CRASHES", value_name = "COUNT", default_value = "3", value_parser = units::count_u32)]
    max_crashes: u32,
    /// After so many attempts in a row without an answer, an app that then answers nothing else either counts as hung: it gets no more calls until it does.
    #[arg(long, env = "BLUEBOX_MAX_UNANSWERED", value_name = "COUNT", default_value = "3", value_parser = units::count_u32)]
    max_unanswered: u32,
    /// The pause before the second attempt; doubles with each further one, with jitter.
    #[arg(long, env = "BLUEBOX_FIRST_BACKOFF", value_name = "DURATION", default_value = "100ms", value_parser = units::positive_duration)]
    first_backoff: Duration,
    /// The longest pause between attempts.
    #[arg(long, env = "BLUEBOX_MAX_BACKOFF", value_name = "DURATION", default_value = "30s", value_parser = units::positive_duration)]
    max_backoff: Duration,
    /// Answers of the app with one of these statuses count as failed attempts too: 502,503. Default: none.
    #[arg(long, env = "BLUEBOX_RETRY_ON", value_name = "STATUSES", value_delimiter = ',', value_parser = units::status)]
    retry_on: Vec<StatusCode>,
    /// Other limits for a path and those below it: '/reports attempt-timeout=30m retry-on=502+503'. Can be repeated; the longest path counts.
    #[arg(long, env = "BLUEBOX_ROUTE", value_name = "ROUTE", value_delimiter = ',', value_parser = units::route)]
    route: Vec<RouteLimits>,
    /// What calls to a path have to do with transactions: 'POST /trips type=required cancel-on=409+5xx time-limit=1m'. Can be repeated; what says most counts.
    #[arg(long, env = "BLUEBOX_TRANSACTION", value_name = "RULE", value_delimiter = ',', value_parser = crate::transaction::rule)]
    transaction: Vec<Rule>,
    /// How a call out of the app gets the transaction of the call that it belongs to, if the app does not say it: by the trace that it copies, else by there being no other call that it could
    /// belong to (any); by the trace alone (traced); not (copied).
    #[arg(long, env = "BLUEBOX_PASS_CONTEXT", value_name = "HOW", default_value = "any", value_parser = crate::transaction::passing)]
    pass_context: Passing,
    /// Deliveries under way at once in this box.
    #[arg(long, env = "BLUEBOX_CONCURRENCY", value_name = "COUNT", default_value = "64", value_parser = units::count)]
    concurrency: usize,
    /// Memory for the bodies of calls that wait for delivery; beyond, partitions are paused.
    #[arg(long, env = "BLUEBOX_DELIVERY_MEMORY", value_name = "SIZE", default_value = "64MiB", value_parser = units::memory)]
    delivery_memory: usize,
    /// The largest answer of an app; beyond, the call ends with a recorded 502.
    #[arg(long, env = "BLUEBOX_ANSWER_LIMIT", value_name = "SIZE", default_value = "64MiB", value_parser = units::size)]
    answer_limit: u64,
    /// How long deliveries may take to end when a partition goes to another box or the proxy stops.
    #[arg(long, env = "BLUEBOX_DRAIN", value_name = "DURATION", default_value = "30s", value_parser = units::duration)]
    drain: Duration,
    /// After this long without a sign of life another box takes over.
    #[arg(long, env = "BLUEBOX_SESSION_TIMEOUT", value_name = "DURATION", default_value = "6s", value_parser = units::positive_duration)]
    session_timeout: Duration,
    /// How long after a commit this box may start deliveries.
    #[arg(long, env = "BLUEBOX_LEASE", value_name = "DURATION", default_value = "2s", value_parser = units::positive_duration)]
    lease: Duration,
    /// Recorded calls that are remembered at once; beyond, new ones get 503.
    #[arg(long, env = "BLUEBOX_MAX_RECORDED", value_name = "COUNT", default_value = "200000", value_parser = units::count)]
    max_recorded: usize,
}

impl From<OutboundLimits> for Outbound {
    fn from(limits: OutboundLimits) -> Self {
        Self {
            wait: limits.wait,
            max_wait: limits.max_wait,
            ttl: limits.ttl,
            max_waiting: limits.max_waiting,
            max_connections: limits.max_connections,
            max_head_bytes: limits.max_head,
            head_timeout: limits.head_timeout,
            body_idle_timeout: limits.body_idle_timeout,
            body_memory_bytes: limits.request_memory,
            cancel_on_disconnect: limits.cancel_on_disconnect,
            connect_timeout: limits.connect_timeout,
            ..Self::default()
        }
    }
}

impl From<InboundLimits> for Inbound {
    fn from(limits: InboundLimits) -> Self {
        Self {
            attempt_timeout: limits.attempt_timeout,
            max_attempts: limits.max_attempts,
            max_crashes: Some(limits.max_crashes),
            max_unanswered: limits.max_unanswered,
            first_backoff: limits.first_backoff,
            max_backoff: limits.max_backoff,
            retry_on: limits.retry_on,
            routes: limits.route,
            transactions: TransactionRules { passing: limits.pass_context, rules: limits.transaction },
            concurrency: limits.concurrency,
            body_memory_bytes: limits.delivery_memory,
            answer_limit_bytes: limits.answer_limit,
            drain: limits.drain,
            session_timeout: limits.session_timeout,
            lease: limits.lease,
            max_recorded: limits.max_recorded,
        }
    }
}

/// Which limits a place in the file can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A gateway: only calls out of it.
    Outbound,
    /// A box.
    Both,
}

/// The limits as a file knows them: their names, and whether a value is one.
#[derive(Debug)]
pub(crate) struct Known(Command);

impl Known {
    /// Those of a side.
    pub(crate) fn of(side: Side) -> Self {
        let command = OutboundLimits::augment_args(Command::new("limits").no_binary_name(true));
        let command = match side {
            Side::Outbound => command,
            Side::Both => InboundLimits::augment_args(command),
        };
        // The environment is the proxies' own, a file says what it says.
        Self(command.mut_args(|arg| arg.env(None::<&'static str>)))
    }

    /// Their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.get_arguments().filter_map(|arg| arg.get_long()).filter(|name| *name != "help")
    }

    /// Checks a value; the flag that says the same to a proxy.
    pub(crate) fn flag(&self, name: &str, value: &str) -> Result<String, String> {
        let flag = format!("--{name}={value}");
        match self.0.clone().try_get_matches_from([&flag]) {
            Ok(_) => Ok(flag),
            Err(error) => Err(std::error::Error::source(&error).map_or_else(|| "a value that this key can't have".to_owned(), ToString::to_string)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct All {
        #[command(flatten)]
        out: OutboundLimits,
        #[command(flatten)]
        into: InboundLimits,
    }

    #[test]
    fn the_defaults_are_the_proxys() {
        let all = All::parse_from(["x"]);
        assert_eq!(format!("{:?}", Outbound::from(all.out)), format!("{:?}", Outbound::default()));
        assert_eq!(format!("{:?}", Inbound::from(all.into)), format!("{:?}", Inbound::default()));
    }

    #[test]
    fn a_file_knows_every_limit_and_what_it_can_be() {
        let known = Known::of(Side::Both);
        assert!(known.names().any(|name| name == "attempt-timeout"));
        assert_eq!(known.flag("attempt-timeout", "5m"), Ok("--attempt-timeout=5m".to_owned()));
        assert_eq!(known.flag("retry-on", "502,503"), Ok("--retry-on=502,503".to_owned()));
        assert_eq!(known.flag("cancel-on-disconnect", "true"), Ok("--cancel-on-disconnect=true".to_owned()));
        assert!(known.flag("route", "/a attempt-timeout=1m,/b retry-on=502").is_ok());
        assert!(known.flag("transaction", "POST /a type=required,* /b/** type=never").is_ok());
        assert!(known.flag("pass-context", "guess").unwrap_err().contains("traced"));
        assert!(known.flag("attempt-timeout", "300").unwrap_err().contains("300s"));
        assert!(known.flag("concurrency", "0").unwrap_err().contains("at least 1"));
        assert!(known.flag("cancel-on-disconnect", "maybe").is_err());
        assert!(!Known::of(Side::Outbound).names().any(|name| name == "attempt-timeout"));
    }
}

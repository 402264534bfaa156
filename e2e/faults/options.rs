//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use bluebox_e2e::flags::{Tested, duration};
use clap::{Args, Parser, Subcommand};

use crate::call::Load;
use crate::callee::CalleeOptions;
use crate::caller::CallerOptions;
use crate::plan::{Kind, LogKind};
use crate::transactions::TransactionsOptions;

/// Injures a running system, and checks from outside that nothing accepted is lost.
///
/// Two boxes call, three are called, all real processes: an app and its proxy each, tied together. The apps write down, in ledgers outside of the system, what they send, what
/// they are told, and what they are asked. At the end the ledgers are judged: every accepted call was answered, every outcome is what the app answered, nothing was delivered after
/// its outcome, lanes are in order, and every duplicate has a reason.
#[derive(Debug, Parser)]
#[command(name = "bluebox-faults", args_conflicts_with_subcommands = true, after_help = after_help())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// An app that calls.
    #[command(hide = true)]
    Caller(CallerOptions),
    /// An app that is called.
    #[command(hide = true)]
    Callee(CalleeOptions),
    /// Kill replicas of the transaction manager, participants, proxies and the log, and judge how every transaction ended.
    Transactions(TransactionsOptions),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// Which logs, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "embedded")]
    pub(crate) log: Vec<LogKind>,
    /// How many SIGKILLs on each log; the other faults come between them. If --only names no SIGKILL: how many faults.
    #[arg(long, default_value_t = 30)]
    pub(crate) kills: u64,
    /// What the schedule of faults is made from. By default another one each time.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Only these faults.
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub(crate) only: Vec<Kind>,
    /// None of these.
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub(crate) without: Vec<Kind>,
    /// The pause between two faults, on average: 800ms, 8s; by default 900ms, from 500 kills on 2s. With a long one each recovery is seen by itself.
    #[arg(long, value_parser = duration)]
    pub(crate) gap: Option<Duration>,
    /// The session of the proxies.
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub(crate) session: Duration,
    /// The lease of the proxies; below the session.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub(crate) lease: Duration,
    /// How long everything of the log is down in `log-down`; by default 30s, from 500 kills on 5m.
    #[arg(long, value_parser = duration)]
    pub(crate) log_down: Option<Duration>,
    /// How many boxes are called.
    #[arg(long, default_value_t = 3)]
    pub(crate) callees: u16,
    /// How long each of the 36 workers pauses between two calls, on average.
    #[arg(long, value_parser = duration, default_value = "60ms")]
    pub(crate) think: Duration,
    #[command(flatten)]
    pub(crate) load: Load,
    /// No faults, but load for so many minutes, and whether the proxies' memory, files and threads grow.
    #[arg(long, value_name = "MINUTES")]
    pub(crate) steady: Option<u64>,
    #[command(flatten)]
    pub(crate) tested: Tested,
    /// Where the report is written.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Keep ledgers and logs of a run even if it finds nothing.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// From so many kills on it is the long set.
const LONG: u64 = 500;

impl RunOptions {
    /// Whether it is the long set.
    pub(crate) fn is_long(&self) -> bool {
        self.kills >= LONG
    }

    /// The pause between two faults.
    pub(crate) fn gap(&self) -> Duration {
        self.gap.unwrap_or(Duration::from_millis(if self.is_long() { 2_000 } else { 900 }))
    }

    /// How long the whole log is down.
    pub(crate) fn log_down(&self) -> Duration {
        self.log_down.unwrap_or(Duration::from_secs(if self.is_long() { 300 } else { 30 }))
    }

    /// What may happen in a run.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let all = Kind::ALL.iter().copied();
        all.filter(|kind| (self.only.is_empty() || self.only.contains(kind)) && !self.without.contains(kind)).collect()
    }

    /// The command that repeats a run.
    pub(crate) fn command(&self, log: LogKind, seed: u64) -> String {
        let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
        let names = |kinds: &[Kind]| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(",");
        let mut command = format!("target/debug/bluebox-faults --log {log} --seed {seed}");
        match self.steady {
            Some(minutes) => command += &format!(" --steady {minutes}"),
            None => command += &format!(" --kills {} --gap {}", self.kills, milliseconds(self.gap())),
        }
        if !self.only.is_empty() {
            command += &format!(" --only {}", names(&self.only));
        }
        if !self.without.is_empty() {
            command += &format!(" --without {}", names(&self.without));
        }
        if let Some(time) = self.log_down {
            command += &format!(" --log-down {}", milliseconds(time));
        }
        command += &format!(
            " --session {} --lease {} --callees {} --think {}",
            milliseconds(self.session),
            milliseconds(self.lease),
            self.callees,
            milliseconds(self.think)
        );
        for flag in self.load.to_flags() {
            command += &format!(" {flag}");
        }
        command + &self.tested.to_flags()
    }
}

fn after_help() -> String {
    let mut text = "Faults (--only, --without):\n".to_owned();
    for kind in Kind::ALL {
        text += &format!("  {:<18} {}\n", kind.name(), kind.help());
    }
    text += "
Examples:
  Thirty kills and what comes between them, on each log:
    bluebox-faults --log embedded,kafka,kafka-3

  Takeover, each by itself:
    bluebox-faults --log kafka --only kill-callee-proxy --kills 30 --gap 8s

  The same with apps that take no time of their own:
    bluebox-faults --log kafka --only kill-callee-proxy --kills 30 --gap 8s --quick

  Two hundred zombies:
    bluebox-faults --log kafka --only stop-callee-proxy --kills 200

  Whether memory grows:
    bluebox-faults --log kafka --steady 60 --plain

  Takeover in a group of the new protocol (KIP-848), whose session is the broker's to say:
    bluebox-faults --log kafka --only kill-callee-proxy --kills 30 --gap 8s --proxy-flag=--group-protocol=consumer

The exit status is 0 if every promise held, 2 if one did not (the call, its lines in the ledgers and the command that repeats the run are printed), 1 if the run could not be made.";
    text
}

//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use bluebox_e2e::flags::{Tested, duration};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::app::AppOptions;
use crate::plot::PlotOptions;

/// Measures what a durable call costs beside the bare broker, direct HTTP, and pass-through, all in one run.
///
/// Without --log embedded it needs a Kafka: `scripts/kafka run -- target/release/bluebox-bench`. `make bench` does all of it.
#[derive(Debug, Parser)]
#[command(name = "bluebox-bench", args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The app that is called.
    #[command(hide = true)]
    App(AppOptions),
    /// Draw what a run has written.
    Plot(PlotOptions),
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// One call after the other.
    Sequential,
    /// 64 and 512 callers at once.
    Loads,
    /// Calls at given rates, whether or not those before have ended.
    OpenLoop,
    /// One call in a hundred is slow.
    Slow,
    /// What a proxy takes at rest, with many who wait, and for a large body.
    Memory,
    /// Start, two joins, close of an LRA; the memory that many take, and how long a recovery takes.
    Transactions,
    /// With and without somebody who reads metrics and takes traces.
    Observe,
    /// Many components and many replicas. Takes long.
    Growth,
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogKind {
    /// The Kafka that --brokers names.
    Kafka,
    /// The embedded one, in a process of its own. There is no floor then.
    Embedded,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// Which log.
    #[arg(long, value_enum, default_value = "kafka")]
    pub(crate) log: LogKind,
    /// The Kafka.
    #[arg(long, env = "BLUEBOX_TEST_BROKERS")]
    pub(crate) brokers: Option<String>,
    #[command(flatten)]
    pub(crate) tested: Tested,
    /// What to measure; by default all but observe and growth.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Part>,
    /// Measure many components and many replicas too.
    #[arg(long)]
    pub(crate) growth: bool,
    /// Rounds that take turns; what is told is the median of them.
    #[arg(long, default_value_t = 9)]
    pub(crate) rounds: u32,
    /// Sequential calls of each kind in each round.
    #[arg(long, default_value_t = 300)]
    pub(crate) calls: u32,
    /// How long load is made in each round.
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub(crate) time: Duration,
    /// How many callers at once.
    #[arg(long, value_delimiter = ',', default_value = "64,512")]
    pub(crate) callers: Vec<usize>,
    /// Calls per second of the open loop.
    #[arg(long, value_delimiter = ',', default_value = "100,500,1000")]
    pub(crate) rates: Vec<u32>,
    /// How many wait at once.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) waiting: usize,
    /// How many transactions are open at once, and are then closed at once.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) at_once: usize,
    /// How many transactions are open when their manager dies.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) open: usize,
    /// Numbers of components.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    pub(crate) components: Vec<usize>,
    /// Numbers of replicas.
    #[arg(long, value_delimiter = ',', default_value = "1,5,10,25,50")]
    pub(crate) replicas: Vec<usize>,
    /// Bytes of a request's and an answer's body.
    #[arg(long, default_value_t = 1024)]
    pub(crate) body: usize,
    /// Partitions of the called component.
    #[arg(long, default_value_t = 32)]
    pub(crate) partitions: u32,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench.json")]
    pub(crate) output: PathBuf,
    /// Add the figures to those of an earlier run in the same file, under this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) add_as: Option<String>,
}

impl RunOptions {
    /// What is to be measured, in this order.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let wanted =
            |part: &Part| if self.only.is_empty() { *part != Part::Observe && (*part != Part::Growth || self.growth) } else { self.only.contains(part) };
        Part::value_variants().iter().copied().filter(wanted).collect()
    }
}

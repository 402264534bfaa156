//! What a process says of itself.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{MakeWriterExt as _, OptionalWriter};

use crate::tail::Tail;

/// How log lines are written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What it says")]
pub(crate) struct LoggingOptions {
    /// How log lines are written, to standard error.
    #[arg(long, env = "BLUEBOX_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// What is logged: error, warn, info, debug, trace; or by module, as in `info,bluebox_proxy=debug`.
    #[arg(long, env = "BLUEBOX_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For machines: one JSON object to a line.
    Json,
}

impl LoggingOptions {
    /// Whether lines are JSON.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self.log_format, Format::Json)
    }

    /// Starts it, once in a process.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        self.start_with(None)
    }

    /// The same, and what is said is kept in a file too.
    pub(crate) fn start_with(&self, tail: Option<Tail>) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log_level).with_context(|| format!("--log-level {:?}: error, warn, info, debug or trace", self.log_level))?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr.and(Kept(tail)));
        match self.log_format {
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
            Format::Json => lines.json().init(),
        }
        Ok(())
    }
}

/// What is kept, if anything is.
#[derive(Debug)]
struct Kept(Option<Tail>);

impl<'w> MakeWriter<'w> for Kept {
    type Writer = OptionalWriter<&'w Tail>;

    fn make_writer(&'w self) -> Self::Writer {
        match &self.0 {
            Some(tail) => OptionalWriter::some(tail),
            None => OptionalWriter::none(),
        }
    }

    /// Not the line of each call: those would leave no room for what was wrong.
    fn make_writer_for(&'w self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        if meta.target() == bluebox_proxy::line::TARGET { OptionalWriter::none() } else { self.make_writer() }
    }
}

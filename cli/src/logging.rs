//! What a process says of itself.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use bluebox_observe::level::{self, Level};
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
    pub(crate) fn start(&self) -> anyhow::Result<Level> {
        self.start_with(None)
    }

    /// The same, and what is said is kept in a file too.
    pub(crate) fn start_with(&self, tail: Option<Tail>) -> anyhow::Result<Level> {
        let begins = filter(&self.log_level).map_err(anyhow::Error::msg).context("--log-level")?;
        let lines = tracing_subscriber::fmt().with_env_filter(begins).with_writer(std::io::stderr.and(Kept(tail)));
        Ok(match self.log_format {
            Format::Text => {
                let lines = lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).with_filter_reloading();
                let handle = lines.reload_handle();
                lines.init();
                Level::new(&self.log_level, move |to| handle.reload(filter(to)?).map_err(|error| error.to_string()))
            }
            Format::Json => {
                let lines = lines.json().with_filter_reloading();
                let handle = lines.reload_handle();
                lines.init();
                Level::new(&self.log_level, move |to| handle.reload(filter(to)?).map_err(|error| error.to_string()))
            }
        })
    }
}

/// What is logged at a level. Who changes it is told at every one.
fn filter(level: &str) -> Result<EnvFilter, String> {
    level::check(level)?;
    EnvFilter::try_new(format!("{level},{}=warn", level::TARGET)).map_err(|error| error.to_string())
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

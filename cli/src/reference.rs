//! What is made out of the code: docs/metrics.md, docs/cli.md, and what completes commands in a shell.

use std::io::Write as _;

use bluebox_core::log::embedded::Embedded;
use bluebox_observe::reference::table;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::watch::Metrics;

const METRICS: &str = "\
# Metrics

This page is made by `bluebox metrics-reference > docs/metrics.md`, out of the code; a test fails where it is not.

Every part answers `/metrics` in Prometheus' text format at its admin listener (port 4141 of a box and of the injector, 4144 of `bluebox watch`; `bluebox ps --json` says where under `up`). Units are base units. Labels have few
values: words that stand here, and names of components. Never a path, an id, or anything else that a caller chooses. Histograms carry the stage and the direction of a call, and never the other side: a proxy
that calls 20 components has at most 600 series (about 460 when everything that can be counted has been; 40 KiB, written in less than a millisecond). What to watch and what to do about it is in [operating.md](operating.md).
";

/// Prints docs/metrics.md.
pub(crate) fn metrics() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{METRICS}")?;
    let sections = [
        ("The proxy of a box", bluebox_proxy::metrics::families(Embedded::in_memory().client())?),
        ("The part that always runs: `bluebox watch`, and the page of `bluebox up`", Metrics::try_new()?.counts().families()),
        ("The transaction manager; what its proxy counts too", bluebox_txmgr::serve::families()?),
        ("The injector", bluebox_injector::metrics::Metrics::try_new()?.counts().families()),
    ];
    for (title, families) in sections {
        writeln!(out, "## {title}\n\n{}", table(&families))?;
    }
    Ok(())
}

const COMMANDS: &str = "\
# The command

This page is made by `bluebox cli-reference > docs/cli.md`, out of the code; a test fails where it is not. What flags and variables mean in detail is in [configuration.md](configuration.md).

| exit code | |
|---|---|
| 0 | done; `check`: nothing is wrong |
| 1 | it could not be done, and the reason stands on standard error; `check`: something is wrong |
| 2 | the command line makes no sense |
| 3 | `topics`: it could look, and something is not as it should be; `check`: the cluster can't be asked |
| 101 | a mistake in Bluebox |
| 130 | `up`: after the second Ctrl-C |

`-o json` is for scripts; [operating.md](operating.md#what-scripts-get) says what is in it. Colour only on a terminal. Completion: `source <(bluebox completion bash)`.
";

/// Prints docs/cli.md.
pub(crate) fn commands(command: Command) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{COMMANDS}")?;
    let mut command = command.term_width(110).disable_help_subcommand(true);
    command.build();
    tell(&mut out, &mut command)
}

fn tell(out: &mut impl std::io::Write, command: &mut Command) -> anyhow::Result<()> {
    let title = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    writeln!(out, "## `{title}`\n\n```text\n{}\n```\n", help.join("\n"))?;
    for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        tell(out, below)?;
    }
    Ok(())
}

/// Prints what completes commands in a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(bluebox completion bash)
  bluebox completion zsh > ~/.zfunc/_bluebox
  bluebox completion fish > ~/.config/fish/completions/bluebox.fish")]
pub(crate) struct CompletionOptions {
    /// Which shell.
    shell: Shell,
}

/// Prints it.
pub(crate) fn completion(options: &CompletionOptions, command: &mut Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, command, "bluebox", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}

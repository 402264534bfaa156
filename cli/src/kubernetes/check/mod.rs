//! `bluebox check`: what is wrong with a cluster, before an install and after.
//!
//! - [`cluster`](super::cluster): asks the API server; nothing is changed.
//! - [`before`]: whether the cluster is fit; [`installation`]: whether what was installed works; [`namespaces`]: whether what is labelled gets its proxies. Each asks first, and
//!   then judges without asking any more.
//! - [`report`]: what was found.

mod before;
mod installation;
mod namespaces;
mod report;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bluebox_injector::Settings;
use bluebox_injector::settings::DEFAULT_NAMESPACE;
use clap::{Args, ValueEnum};
use serde_json::Value;

use self::report::{Check, Report, Section, Status};
use super::cluster::{Cluster, ClusterOptions};
use crate::units;

/// What `bluebox check --help` ends with.
const EXAMPLES: &str = "\
Examples:
  bluebox check --pre          # is this cluster fit, and may I install into it?
  bluebox check --wait 2m      # after the install: until all is well, at most two minutes
  bluebox check -o json        # for programs

√ is as it should be, ‼ works but somebody should know, × does not work; what to do stands below it.
Exit codes: 0 nothing is wrong (there may be ‼), 1 something is (×), 2 the command line makes no sense, 3 the cluster can't be asked.

Nothing is changed. Whether pods get proxies is tried with a pod that is not made (a dry run). What you may not read is ‼, not ×.";

/// Looks whether a cluster is fit for Bluebox, or what is wrong with an installation and with the pods that should have proxies.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckOptions {
    /// Before an install: whether the cluster is fit, and you may install.
    #[arg(long)]
    pre: bool,
    /// Bluebox's own namespace.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// How long to wait until nothing is wrong; by default it is looked once.
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    wait: Option<Duration>,
    /// How it is printed.
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Something is wrong.
const WRONG: u8 = 1;
/// It can't be known.
const UNREACHABLE: u8 = 3;
/// How long between two looks.
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) fn run(options: &CheckOptions) -> ExitCode {
    let looked = crate::in_runtime(look_and_print(options));
    match looked {
        Ok(Status::Failed) => ExitCode::from(WRONG),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(UNREACHABLE)
        }
    }
}

async fn look_and_print(options: &CheckOptions) -> anyhow::Result<Status> {
    Settings::try_new("bluebox")?.with_namespace(&options.namespace)?;
    let began = Instant::now();
    let report = loop {
        let looked = look(options).await;
        let over = options.wait.is_none_or(|wait| began.elapsed() + PAUSE > wait);
        match looked {
            Ok(report) if over || report.status != Status::Failed => break report,
            Err(error) if over => return Err(error),
            _ => tokio::time::sleep(PAUSE).await,
        }
    };
    let mut out = std::io::stdout().lock();
    match options.output {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?),
        Format::Text => {
            let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            out.write_all(report.text(colour).as_bytes())
        }
    }
    .context("standard output")?;
    Ok(report.status)
}

async fn look(options: &CheckOptions) -> anyhow::Result<Report> {
    let cluster = Cluster::of(&options.cluster).await?;
    let version = cluster.get("/version").await.and_then(|version| version.ok_or_else(|| "it has no /version".to_owned()));
    let version = version.map_err(|why| anyhow::anyhow!("the API server at {} can't be asked: {why}. Does `kubectl version` work?", cluster.url))?;
    let own = &options.namespace;
    let seen = before::Seen::ask(&cluster, version, own, options.pre).await;
    let mut sections = vec![Section { name: "the API server".to_owned(), checks: vec![Check::ok_because("it answers", &cluster.url)] }];
    sections.extend(before::judge(&seen, options.pre));
    if options.pre {
        return Ok(Report::of(sections));
    }
    let installation = installation::Seen::ask(&cluster, own).await;
    sections.push(installation::judge(&installation));
    let settings = match installation.settings() {
        Some(settings) => settings,
        None => Settings::try_new("unknown")?.with_namespace(own)?,
    };
    let labelled_pods = cluster.list("/api/v1/pods?labelSelector=bluebox.dev%2Finjection%3Denabled").await.unwrap_or_default();
    let mut all = Vec::new();
    for namespace in namespaces::asking(seen.namespaces.as_deref().unwrap_or_default(), &labelled_pods, own) {
        all.push(namespaces::Seen::ask(&cluster, &namespace, settings.kafka_secret()).await);
    }
    if all.is_empty() {
        let why = "there is no labelled namespace, and no labelled pod";
        let check = Check::warning("something asks for proxies", why, "bluebox enable NAMESPACE --brokers HOST:PORT | kubectl apply -f -");
        sections.push(Section { name: "the namespaces".to_owned(), checks: vec![check] });
    } else {
        sections.extend(namespaces::judge(&all, &settings));
    }
    Ok(Report::of(sections))
}

/// A text in JSON; empty if there is none.
fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

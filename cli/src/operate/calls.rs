//! `bluebox calls`: calls without an end, and what became of one.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::ComponentName;
use bluebox_proxy::outbound::calls::CallRef;
use clap::Args;
use http::Method;

use super::{OutputOptions, SystemOptions, Whom, get, running, write_table};
use crate::units::spell;
use crate::watch::history::{self, ago};

/// Shows the calls that were accepted and have no end yet, the oldest first. With an id: what became of that call, out of the log: when it was accepted, moved aside, given up,
/// replayed, and how it ended; and the same of the calls of its trace, where its caller sent a `traceparent`.
///
/// With what stood in a `Location`: the outcome itself, as GET http://bluebox/v1/calls/ID through any proxy gives it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox calls                                    what is in flight, or waits
  bluebox calls --component cart -o json
  bluebox calls 3f2a91                             the story of one call
  bluebox calls --context production               of a cluster
  bluebox calls http://bluebox/v1/calls/AgRjYXJ0…  the outcome of one sent with `Prefer: respond-async`")]
pub(crate) struct CallsOptions {
    /// The id of a call, or how it begins; or the whole `Location` that the caller was given.
    id: Option<String>,
    /// Only calls to this component.
    #[arg(long, value_name = "NAME", value_parser = |text: &str| ComponentName::try_new(text))]
    component: Option<ComponentName>,
    /// At most so many.
    #[arg(long, value_name = "COUNT", default_value = "50", value_parser = crate::units::count)]
    limit: usize,
    /// For a `Location`: the proxy to ask; by default the gateway of the `bluebox up` on the data directory, else 127.0.0.1:4140.
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::file::address)]
    proxy: Option<SocketAddr>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    system: SystemOptions,
}

const PLACE: &str = "http://bluebox/v1/calls/";

/// Shows it.
pub(crate) async fn run(options: CallsOptions) -> anyhow::Result<()> {
    let Some(id) = &options.id else { return list(&options).await };
    let id = id.strip_prefix(PLACE).unwrap_or(id);
    if CallRef::decode(id).is_some() {
        return outcome(&options, id).await;
    }
    if id.is_empty() || id.len() > 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!("{id:?}: no call has this id; it is what stands in `bluebox-call-id`, or what follows {PLACE} in the Location that the caller was given");
    }
    story(&options, &id.to_ascii_lowercase()).await
}

async fn list(options: &CallsOptions) -> anyhow::Result<()> {
    let waiting = match options.system.whom().await? {
        Whom::Watch(door) => {
            let query = options.component.as_ref().map_or_else(String::new, |name| format!("?component={name}"));
            let mut waiting: Vec<history::Waiting> = get::json(Method::GET, &door, &format!("/v1/calls{query}")).await?;
            waiting.truncate(options.limit);
            waiting
        }
        Whom::Log(reached) => history::waiting(&reached, options.component.as_ref(), options.limit).await?,
    };
    let mut out = std::io::stdout().lock();
    if options.output.is_json() {
        writeln!(out, "{}", serde_json::to_string_pretty(&waiting)?)?;
        return Ok(());
    }
    if waiting.is_empty() {
        writeln!(out, "none: everything that was accepted has ended")?;
        return Ok(());
    }
    let head = [("CALL", false), ("FROM", false), ("TO", false), ("AGE", true), ("DELIVERIES", true), ("REQUEST", false)];
    let row = |call: &history::Waiting| {
        let parked = if call.parked { " (parked)" } else { "" };
        vec![
            call.call.clone(),
            call.caller.to_string(),
            call.component.to_string(),
            spell(ago(call.accepted_ms)),
            call.attempts.to_string(),
            format!("{} {}{parked}", call.method, call.target),
        ]
    };
    write_table(&mut out, &head, &waiting.iter().map(row).collect::<Vec<_>>())?;
    Ok(())
}

async fn story(options: &CallsOptions, id: &str) -> anyhow::Result<()> {
    let story: history::Story = match options.system.whom().await? {
        Whom::Watch(door) => get::json(Method::GET, &door, &format!("/v1/calls/{id}")).await?,
        Whom::Log(reached) => history::story(&reached, id, options.component.as_ref()).await?,
    };
    let mut out = std::io::stdout().lock();
    if options.output.is_json() {
        writeln!(out, "{}", serde_json::to_string_pretty(&story)?)?;
        return Ok(());
    }
    writeln!(out, "{} {}", story.call, if story.ended { "has ended" } else { "has no end yet" })?;
    if let Some(trace) = &story.trace {
        writeln!(out, "trace {trace}")?;
    }
    let first = story.events.first().map_or(0, |event| event.at_ms);
    let head = [("AGO", true), ("AFTER", true), ("WHAT", false), ("BETWEEN", false), ("DETAIL", false)];
    let row = |event: &history::Event| {
        let after = Duration::from_millis(event.at_ms - first);
        let after = if after < Duration::from_secs(1) { format!("{} ms", after.as_millis()) } else { spell(after) };
        vec![spell(ago(event.at_ms)), after, event.what.clone(), event.between.clone(), format!("{}  [{}]", event.detail, event.place)]
    };
    write_table(&mut out, &head, &story.events.iter().map(row).collect::<Vec<_>>())?;
    Ok(())
}

async fn outcome(options: &CallsOptions, id: &str) -> anyhow::Result<()> {
    let proxy = options.proxy.or_else(|| running(options.system.data())?.gateway).unwrap_or(crate::file::DEFAULT_GATEWAY);
    let answer = get::get(proxy, &format!("{PLACE}{id}"), Duration::from_secs(30)).await.context("no proxy could be asked (--proxy names one)")?;
    let field = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let mut out = std::io::stdout().lock();
    match field("bluebox-call-state") {
        Some("pending") => writeln!(out, "pending: it has no outcome yet")?,
        Some("ended") => {
            writeln!(out, "ended: {}", answer.status())?;
            for (name, value) in answer.headers() {
                writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
            }
            writeln!(out)?;
            out.write_all(answer.body())?;
        }
        _ => bail!("{}: {}", answer.status(), String::from_utf8_lossy(answer.body()).trim()),
    }
    Ok(())
}

//! `bluebox tap`: calls as they come and end. It reads the log, as anybody may: no proxy notices.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::call::{Call, Outcome, Source};
use bluebox_core::log::{Log, Offset, Read, Timestamp, TopicPartition};
use bluebox_core::wire::{CallsEntry, Reply};
use bluebox_core::{CallId, ComponentName};
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;

use super::{OutputOptions, Reached, SystemOptions};

/// Calls whose end is awaited at once; of more, the oldest are forgotten.
const MOST: usize = 10_000;

/// Shows calls as they are accepted, and their ends as they become durable. Calls that were there before are not shown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox tap                                      everything
  bluebox tap --component cart --method POST
  bluebox tap --component cart --target /items --status 5xx   only those that end so
  bluebox tap --from web -o json | jq .target")]
pub(crate) struct TapOptions {
    /// Only calls to this component.
    #[arg(long, value_name = "NAME", value_parser = |text: &str| ComponentName::try_new(text))]
    component: Option<ComponentName>,
    /// Only calls by this component.
    #[arg(long, value_name = "NAME", value_parser = |text: &str| ComponentName::try_new(text))]
    from: Option<ComponentName>,
    /// Only this method.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Only targets that begin so.
    #[arg(long, value_name = "PATH")]
    target: Option<String>,
    /// Only ends with this status: `404`, or `5xx`. What is only accepted is not shown then.
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Option<String>,
    /// End after so many lines.
    #[arg(long, value_name = "COUNT", value_parser = crate::units::count)]
    limit: Option<usize>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    system: SystemOptions,
}

fn parse_status(text: &str) -> Result<String, String> {
    let fits = text.len() == 3 && text.starts_with(|c: char| ('1'..='5').contains(&c)) && text[1..].bytes().all(|b| b.is_ascii_digit() || b == b'x');
    if fits { Ok(text.to_owned()) } else { Err("a status is written as 404, or as 5xx".to_owned()) }
}

fn has_status(wanted: &str, status: u16) -> bool {
    wanted.chars().zip(status.to_string().chars()).all(|(wanted, is)| wanted == 'x' || wanted == is)
}

impl TapOptions {
    fn wants(&self, call: &Call) -> bool {
        self.from.as_ref().is_none_or(|from| *from == call.caller)
            && self.method.as_ref().is_none_or(|method| call.request.method.as_str().eq_ignore_ascii_case(method))
            && self.target.as_ref().is_none_or(|target| call.request.target.starts_with(target))
    }
}

enum Seen {
    Accepted(Box<Call>, Timestamp),
    Ended(Box<Outcome>, Timestamp),
}

/// A call whose end is awaited.
struct Known {
    between: (ComponentName, ComponentName),
    request: (String, String),
    accepted: Timestamp,
}

/// Shows them until Ctrl-C.
pub(crate) async fn run(options: TapOptions) -> anyhow::Result<()> {
    let reached = options.system.reach().await?;
    let (tell, mut seen) = mpsc::channel(256);
    let partitions = calls_partitions(&reached, options.component.as_ref()).await?;
    let ends = reached.log.ends(partitions.clone()).await?;
    let count = partitions.len();
    for (partition, end) in partitions.into_iter().zip(ends) {
        follow(reached.log.clone(), partition, end, tell.clone(), |value, at| match CallsEntry::decode(value) {
            Ok(CallsEntry::Call(call)) => Some(Seen::Accepted(call, at)),
            _ => None,
        });
    }
    eprintln!("tapping {count} partitions; Ctrl-C ends it");
    let mut awaited: HashMap<(CallId, u32), Known> = HashMap::new();
    let mut order = VecDeque::new();
    let mut replies: HashSet<TopicPartition> = HashSet::new();
    let mut lines = 0;
    while let Some(one) = seen.recv().await {
        let shown = match one {
            Seen::Accepted(call, at) => {
                if !options.wants(&call) {
                    continue;
                }
                let reply_to = &call.reply_to;
                if replies.insert(reply_to.partition.clone()) {
                    follow(reached.log.clone(), reply_to.partition.clone(), reply_to.position, tell.clone(), |value, at| match Reply::decode(value) {
                        Ok(Reply::Outcome(outcome)) => Some(Seen::Ended(outcome, at)),
                        _ => None,
                    });
                }
                let key = (call.id, call.replay);
                order.push_back(key);
                if order.len() > MOST
                    && let Some(oldest) = order.pop_front()
                {
                    awaited.remove(&oldest);
                }
                let known = Known {
                    between: (call.caller.clone(), call.callee.clone()),
                    request: (call.request.method.to_string(), call.request.target.clone()),
                    accepted: at,
                };
                let line = options.status.is_none().then(|| show(&options, &known, &call.id, at, None));
                awaited.insert(key, known);
                line
            }
            Seen::Ended(outcome, at) => {
                let Some(known) = awaited.remove(&(outcome.id, outcome.replay)) else { continue };
                let wanted = options.status.as_ref().is_none_or(|wanted| has_status(wanted, outcome.response.status.as_u16()));
                wanted.then(|| show(&options, &known, &outcome.id, at, Some(&outcome)))
            }
        };
        if let Some(line) = shown {
            let mut out = std::io::stdout().lock();
            // Whoever reads this has gone: that is an end like any other.
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
            lines += 1;
            if options.limit.is_some_and(|limit| lines >= limit) {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn calls_partitions(reached: &Reached, only: Option<&ComponentName>) -> anyhow::Result<Vec<TopicPartition>> {
    let registry = reached.registry().await?;
    let of = |name: &ComponentName, partitions: u32| {
        let calls = reached.prefix.topics(name).calls;
        (0..partitions).map(move |number| calls.partition(number)).collect::<Vec<_>>()
    };
    match only {
        Some(name) => {
            let (_, component) = registry.get(name.as_str()).with_context(|| format!("component `{name}`: never registered"))?;
            Ok(of(name, component.partitions))
        }
        None if registry.iter().next().is_none() => bail!("no component was registered yet"),
        None => Ok(registry.iter().flat_map(|(name, component)| of(name, component.partitions)).collect()),
    }
}

fn follow(
    log: Arc<dyn Log>,
    partition: TopicPartition,
    from: Offset,
    tell: mpsc::Sender<Seen>,
    read: impl Fn(bytes::Bytes, Timestamp) -> Option<Seen> + Send + 'static,
) {
    tokio::spawn(async move {
        let mut reader = log.read(&partition, from);
        while let Some(next) = reader.next().await {
            let Read::Entries(entries) = next else { continue };
            for entry in entries {
                if let Some(seen) = entry.record.value.and_then(|value| read(value, entry.timestamp))
                    && tell.send(seen).await.is_err()
                {
                    return;
                }
            }
        }
    });
}

fn show(options: &TapOptions, known: &Known, id: &CallId, at: Timestamp, outcome: Option<&Outcome>) -> String {
    let ((caller, callee), (method, target)) = (&known.between, &known.request);
    let took = at.since(known.accepted);
    if options.output.is_json() {
        let mut line = json!({
            "at_ms": at.as_millis(), "call": id.to_string(), "from": caller, "component": callee, "method": method, "target": target,
            "event": if outcome.is_some() { "ended" } else { "accepted" },
        });
        if let (Some(outcome), Some(fields)) = (outcome, line.as_object_mut()) {
            fields.insert("status".to_owned(), outcome.response.status.as_u16().into());
            fields.insert("deliveries".to_owned(), outcome.attempts.into());
            fields.insert("took_ms".to_owned(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into());
            fields.insert("by".to_owned(), if outcome.source == Source::App { "app" } else { "bluebox" }.into());
        }
        return line.to_string();
    }
    let time = humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + Duration::from_millis(at.as_millis()));
    let what = match outcome {
        None => "accepted".to_owned(),
        Some(outcome) => {
            let again = if outcome.attempts == 1 { String::new() } else { format!(", {} deliveries", outcome.attempts) };
            let by = if outcome.source == Source::App { "" } else { " by Bluebox" };
            format!("{}{by} in {} ms{again}", outcome.response.status.as_u16(), took.as_millis())
        }
    };
    format!("{time} {id} {caller} -> {callee} {method} {target}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_fits_its_class() {
        assert!(has_status("5xx", 503) && has_status("404", 404) && has_status("20x", 204));
        assert!(!has_status("5xx", 404) && !has_status("404", 405));
        assert!(parse_status("5xx").is_ok() && parse_status("404").is_ok());
        for wrong in ["", "x00", "9xx", "5", "5xy", "2000", "äx"] {
            assert!(parse_status(wrong).is_err(), "{wrong}");
        }
    }
}

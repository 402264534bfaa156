//! `bluebox tap`: calls as they come and end. It reads the log, as anybody may: no proxy notices.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::call::{Call, Outcome, Source};
use bluebox_core::log::{Log, Offset, Read, Timestamp, TopicPartition};
use bluebox_core::wire::{CallsEntry, Reply};
use bluebox_core::{CallId, ComponentName};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::{OutputOptions, Reached, SystemOptions, Whom, get};

/// Calls whose end is awaited at once; of more, the oldest are forgotten.
const MOST: usize = 10_000;

/// Shows calls as they are accepted, and their ends as they become durable. Calls that were there before are not shown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox tap                                      everything
  bluebox tap --component cart --method POST
  bluebox tap --component cart --target /items --status 5xx   only those that end so
  bluebox tap --from web -o json | jq .target
  bluebox tap --context production --limit 20      of a cluster, and no more than 20 lines")]
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
    fn wants(&self, event: &Event) -> bool {
        self.from.as_ref().is_none_or(|from| *from == event.from)
            && self.method.as_ref().is_none_or(|method| event.method.eq_ignore_ascii_case(method))
            && self.target.as_ref().is_none_or(|target| event.target.starts_with(target))
            && self.status.as_ref().is_none_or(|wanted| event.end.as_ref().is_some_and(|end| has_status(wanted, end.status)))
    }
}

/// Something that happened to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    at_ms: u64,
    call: String,
    from: ComponentName,
    component: ComponentName,
    method: String,
    target: String,
    event: What,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Accepted,
    Ended,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    status: u16,
    deliveries: u32,
    took_ms: u64,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    App,
    Bluebox,
}

enum Seen {
    Accepted(Box<Call>, Timestamp),
    Ended(Box<Outcome>, Timestamp),
}

/// Calls as they come and end. What reads them ends with it.
pub(crate) struct Tap {
    /// How many partitions are read.
    pub(crate) partitions: usize,
    events: mpsc::Receiver<Event>,
    _work: AbortOnDropHandle<()>,
}

impl Tap {
    /// Begins to read the calls of a component, or of all, from their ends on.
    pub(crate) async fn begin(reached: &Reached, only: Option<&ComponentName>) -> anyhow::Result<Self> {
        let partitions = calls_partitions(reached, only).await?;
        let ends = reached.log.ends(partitions.clone()).await?;
        let count = partitions.len();
        let (tell, events) = mpsc::channel(256);
        let from = partitions.into_iter().zip(ends).collect();
        let work = AbortOnDropHandle::new(tokio::spawn(follow_all(reached.log.clone(), from, tell)));
        Ok(Self { partitions: count, events, _work: work })
    }

    /// What happened next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// Events of here, or of one who watches.
enum Events {
    Here(Tap),
    There(get::Lines),
}

impl Events {
    async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        match self {
            Self::Here(tap) => Ok(tap.next().await),
            Self::There(lines) => match lines.next().await? {
                Some(line) => serde_json::from_slice(&line).context("this is no `bluebox watch`").map(Some),
                None => bail!("who watches has ended"),
            },
        }
    }
}

/// Where it stands how many partitions are read.
pub(crate) const PARTITIONS: &str = "bluebox-partitions";

/// Shows them until Ctrl-C.
pub(crate) async fn run(options: TapOptions) -> anyhow::Result<()> {
    let (count, mut events) = match options.system.whom().await? {
        Whom::Log(reached) => {
            let tap = Tap::begin(&reached, options.component.as_ref()).await?;
            (tap.partitions.to_string(), Events::Here(tap))
        }
        Whom::Watch(door) => {
            let query = options.component.as_ref().map_or_else(String::new, |name| format!("?component={name}"));
            let (head, lines) = get::lines(&door, &format!("/v1/tap{query}")).await?;
            let count = head.get(PARTITIONS).and_then(|count| count.to_str().ok()).unwrap_or("some").to_owned();
            (count, Events::There(lines))
        }
    };
    eprintln!("tapping {count} partitions; Ctrl-C ends it");
    let mut lines = 0;
    while let Some(event) = events.next().await? {
        if !options.wants(&event) {
            continue;
        }
        let line = if options.output.is_json() { serde_json::to_string(&event)? } else { event.to_string() };
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
    Ok(())
}

/// Reads all of them, and the ends of the calls that come, until nobody listens.
async fn follow_all(log: Arc<dyn Log>, from: Vec<(TopicPartition, Offset)>, tell: mpsc::Sender<Event>) {
    let (say, mut seen) = mpsc::channel(256);
    // Dropped with this: nothing is read any more then.
    let mut readers = JoinSet::new();
    for (partition, end) in from {
        readers.spawn(follow(log.clone(), partition, end, say.clone(), |value, at| match CallsEntry::decode(value) {
            Ok(CallsEntry::Call(call)) => Some(Seen::Accepted(call, at)),
            _ => None,
        }));
    }
    let mut awaited: HashMap<(CallId, u32), Event> = HashMap::new();
    let mut order = VecDeque::new();
    let mut replies: HashSet<TopicPartition> = HashSet::new();
    while let Some(one) = seen.recv().await {
        let event = match one {
            Seen::Accepted(call, at) => {
                let reply_to = &call.reply_to;
                if replies.insert(reply_to.partition.clone()) {
                    readers.spawn(follow(log.clone(), reply_to.partition.clone(), reply_to.position, say.clone(), |value, at| match Reply::decode(value) {
                        Ok(Reply::Outcome(outcome)) => Some(Seen::Ended(outcome, at)),
                        _ => None,
                    }));
                }
                let key = (call.id, call.replay);
                order.push_back(key);
                if order.len() > MOST
                    && let Some(oldest) = order.pop_front()
                {
                    awaited.remove(&oldest);
                }
                let event = Event {
                    at_ms: at.as_millis(),
                    call: call.id.to_string(),
                    from: call.caller,
                    component: call.callee,
                    method: call.request.method.to_string(),
                    target: call.request.target,
                    event: What::Accepted,
                    end: None,
                };
                awaited.insert(key, event.clone());
                event
            }
            Seen::Ended(outcome, at) => {
                let Some(accepted) = awaited.remove(&(outcome.id, outcome.replay)) else { continue };
                let end = End {
                    status: outcome.response.status.as_u16(),
                    deliveries: outcome.attempts,
                    took_ms: at.as_millis().saturating_sub(accepted.at_ms),
                    by: if outcome.source == Source::App { By::App } else { By::Bluebox },
                };
                Event { at_ms: at.as_millis(), event: What::Ended, end: Some(end), ..accepted }
            }
        };
        if tell.send(event).await.is_err() {
            return;
        }
    }
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

async fn follow(
    log: Arc<dyn Log>,
    partition: TopicPartition,
    from: Offset,
    tell: mpsc::Sender<Seen>,
    read: impl Fn(bytes::Bytes, Timestamp) -> Option<Seen> + Send + 'static,
) {
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
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + Duration::from_millis(self.at_ms));
        write!(f, "{time} {} {} -> {} {} {}: ", self.call, self.from, self.component, self.method, self.target)?;
        let Some(end) = &self.end else { return f.write_str("accepted") };
        let by = if end.by == By::App { "" } else { " by Bluebox" };
        write!(f, "{}{by} in {} ms", end.status, end.took_ms)?;
        if end.deliveries == 1 { Ok(()) } else { write!(f, ", {} deliveries", end.deliveries) }
    }
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

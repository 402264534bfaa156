//! Calls that have no end yet, and all that the log knows of one call: its timeline, across attempts, parking, death and replay, and of what it made its app call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use bluebox_core::call::{Call, Source};
use bluebox_core::clock::{millis, wall_clock};
use bluebox_core::log::{Offset, Timestamp, TopicPartition};
use bluebox_core::registry::{Component, Registry};
use bluebox_core::wire::{CallsEntry, ParkedCall, Reply, Settlement};
use bluebox_core::{CallId, ComponentName};
use bluebox_proxy::inbound::frontier::{Frontier, Mark};
use futures_util::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};

use super::survey;
use crate::operate::Reached;
use crate::operate::dlq::Kept;

/// Of one partition, at most so many of the newest records are looked at for a call.
pub(crate) const LOOK_BACK: u64 = 20_000;

/// A call without an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// Its id.
    pub(crate) call: String,
    /// Who called.
    pub(crate) caller: ComponentName,
    /// Who is called.
    pub(crate) component: ComponentName,
    /// The method.
    pub(crate) method: String,
    /// The target.
    pub(crate) target: String,
    /// When it was accepted, in milliseconds since 1970.
    pub(crate) accepted_ms: u64,
    /// When it becomes a dead letter if it has no end, in milliseconds since 1970.
    pub(crate) deadline_ms: u64,
    /// The partition.
    pub(crate) partition: u32,
    /// Its place there.
    pub(crate) offset: u64,
    /// Deliveries begun, as far as the last commit says.
    pub(crate) attempts: u32,
    /// Whether it was moved aside.
    pub(crate) parked: bool,
}

/// The oldest calls without an end, at most `most`.
pub(crate) async fn waiting(reached: &Reached, only: Option<&ComponentName>, most: usize) -> anyhow::Result<Vec<Waiting>> {
    let registry = known(reached, only).await?;
    let wanted = registry.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let asked: Vec<(ComponentName, Component)> = wanted.map(|(name, component)| (name.clone(), component.clone())).collect();
    let found: Vec<_> = stream::iter(asked)
        .map(|(name, component)| async move { waiting_of(reached, &name, &component, most).await })
        .buffered(survey::AT_ONCE)
        .collect()
        .await;
    let mut all: Vec<Waiting> = found.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect();
    all.sort_by_key(|call| call.accepted_ms);
    all.truncate(most);
    Ok(all)
}

/// Those of one component, at most `most` of each partition.
async fn waiting_of(reached: &Reached, name: &ComponentName, component: &Component, most: usize) -> anyhow::Result<Vec<Waiting>> {
    let topics = reached.prefix.topics(name);
    let numbers = 0..component.partitions;
    let calls: Vec<TopicPartition> = numbers.clone().map(|number| topics.calls.partition(number)).collect();
    let parked: Vec<TopicPartition> = numbers.map(|number| topics.parked.partition(number)).collect();
    let both: Vec<_> = calls.iter().chain(&parked).cloned().collect();
    let ends = reached.log.ends(both.clone()).await?;
    if ends.iter().all(|end| *end == Offset::default()) {
        return Ok(Vec::new());
    }
    let commits = survey::commits(reached, &topics, component, &both, &mut survey::Seen::default()).await?;
    let mut all = Vec::new();
    for ((partition, end), committed) in both.into_iter().zip(ends).zip(commits) {
        let is_parked = partition.topic == topics.parked;
        let mark = committed.as_ref().and_then(|committed| Mark::decode(committed).ok());
        let base = committed.map_or(Offset::default(), |committed| committed.offset);
        if base >= end || (is_parked && mark.is_none()) {
            continue;
        }
        let mark = mark.unwrap_or_else(|| Mark { done: Frontier::new(base), ..Mark::default() });
        let counts = mark.parked_end.filter(|_| is_parked).unwrap_or(end);
        let mut found: Vec<Waiting> = Vec::new();
        reached
            .range(&partition, base, end, |entry| {
                if found.len() >= most || entry.offset >= counts || mark.done.is_done(entry.offset) {
                    return found.len() < most;
                }
                let Some(value) = entry.record.value else { return true };
                let seen = if is_parked {
                    ParkedCall::decode(value).ok().map(|parked| (parked.call, parked.accepted, parked.origin, parked.attempts))
                } else {
                    match CallsEntry::decode(value) {
                        Ok(CallsEntry::Call(call)) => Some((call, entry.timestamp, entry.offset, mark.attempts.get(&entry.offset).copied().unwrap_or(0))),
                        _ => None,
                    }
                };
                if let Some((call, accepted, offset, attempts)) = seen {
                    found.push(one(&call, accepted, partition.partition, offset, attempts, is_parked));
                }
                true
            })
            .await?;
        all.append(&mut found);
    }
    Ok(all)
}

fn one(call: &Call, accepted: Timestamp, partition: u32, offset: Offset, attempts: u32, parked: bool) -> Waiting {
    Waiting {
        call: call.id.to_string(),
        caller: call.caller.clone(),
        component: call.callee.clone(),
        method: call.request.method.to_string(),
        target: call.request.target.clone(),
        accepted_ms: accepted.as_millis(),
        deadline_ms: accepted.as_millis().saturating_add(millis(call.ttl)),
        partition,
        offset: offset.get(),
        attempts,
        parked,
    }
}

async fn known(reached: &Reached, only: Option<&ComponentName>) -> anyhow::Result<Registry> {
    let registry = reached.registry().await?;
    if let Some(name) = only.filter(|name| registry.get(name.as_str()).is_none()) {
        bail!("component `{name}`: never registered; there are: {}", registry.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "));
    }
    Ok(registry)
}

/// Something that happened to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When, by the log's clock, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The call: those of the same trace are told too.
    pub(crate) call: String,
    /// Which component it was called by, and which.
    pub(crate) between: String,
    /// A word for it: `accepted`, `parked`, `ended`, `dead-letter`, `replayed`, `dropped`.
    pub(crate) what: String,
    /// The rest, in words.
    pub(crate) detail: String,
    /// Where the log says so.
    pub(crate) place: String,
}

/// All that the log knows of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Story {
    /// The call.
    pub(crate) call: String,
    /// Whether it has an outcome, or is a dead letter.
    pub(crate) ended: bool,
    /// The trace that it belongs to, if its caller sent one.
    pub(crate) trace: Option<String>,
    /// What happened, in its order.
    pub(crate) events: Vec<Event>,
}

/// The trace of a call: the second field of `traceparent` (W3C Trace Context).
fn trace(call: &Call) -> Option<String> {
    let value = call.request.headers.get("traceparent")?.to_str().ok()?;
    value.split('-').nth(1).filter(|id| id.len() == 32).map(str::to_owned)
}

/// Looks for a call by its id, or by the first characters of it, among the newest records of each partition; and for the calls of the same trace.
pub(crate) async fn story(reached: &Reached, id: &str, only: Option<&ComponentName>) -> anyhow::Result<Story> {
    let registry = known(reached, only).await?;
    let mut found: BTreeSet<CallId> = BTreeSet::new();
    let mut seen = Seen::default();
    let places: Vec<(ComponentName, u32)> = registry
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .flat_map(|(name, component)| (0..component.partitions).map(|number| (name.clone(), number)))
        .collect();
    for (name, number) in &places {
        seen.calls(reached, name, *number, |call| call.id.to_string().starts_with(id)).await?;
    }
    found.extend(seen.made.keys().map(|(id, _)| *id));
    let call = match found.len() {
        0 => bail!("{id:?}: no call with this id is among the last {LOOK_BACK} records of each partition"),
        1 => found.into_iter().next().unwrap_or_else(CallId::random),
        many => bail!("{id:?}: {many} calls begin so; give more characters"),
    };
    let trace = seen.made.values().find_map(|(made, _)| trace(made));
    if let Some(wanted) = &trace {
        for (name, number) in &places {
            seen.calls(reached, name, *number, |call| self::trace(call).as_ref() == Some(wanted)).await?;
        }
    }
    let made: Vec<(Call, Timestamp)> = seen.made.values().cloned().collect();
    for (call, _) in &made {
        seen.end(reached, call).await?;
    }
    let components: BTreeSet<(ComponentName, u32)> = seen.at.iter().cloned().collect();
    for (name, number) in components {
        seen.aside(reached, &name, number).await?;
    }
    let mut events = std::mem::take(&mut seen.events);
    events.sort_by_key(|event| (event.at_ms, order(&event.what)));
    events.dedup();
    let id = call.to_string();
    // Of its last life: one that was replayed begins anew.
    let ended = seen.made.keys().filter(|(of, _)| *of == call).max().is_some_and(|last| seen.over.contains(last));
    Ok(Story { call: id, ended, trace, events })
}

fn order(what: &str) -> u8 {
    match what {
        "accepted" => 0,
        "parked" => 1,
        "dead-letter" => 2,
        "ended" => 3,
        _ => 4,
    }
}

#[derive(Default)]
struct Seen {
    made: BTreeMap<(CallId, u32), (Call, Timestamp)>,
    at: Vec<(ComponentName, u32)>,
    events: Vec<Event>,
    /// Those that have an outcome.
    over: BTreeSet<(CallId, u32)>,
}

impl Seen {
    fn tell(&mut self, at: Timestamp, call: &Call, what: &str, detail: String, place: String) {
        let between = format!("{} → {}", call.caller, call.callee);
        self.events.push(Event { at_ms: at.as_millis(), call: call.id.to_string(), between, what: what.to_owned(), detail, place });
    }

    /// The calls in one partition that are wanted.
    async fn calls(&mut self, reached: &Reached, name: &ComponentName, number: u32, wanted: impl Fn(&Call) -> bool) -> anyhow::Result<()> {
        let partition = reached.prefix.topics(name).calls.partition(number);
        let bounds = reached.log.bounds(&partition).await?;
        let from = bounds.start.max(Offset::new(bounds.end.get().saturating_sub(LOOK_BACK)));
        let mut found = Vec::new();
        reached
            .range(&partition, from, bounds.end, |entry| {
                if let Some(Ok(CallsEntry::Call(call))) = entry.record.value.map(CallsEntry::decode)
                    && wanted(&call)
                {
                    found.push((*call, entry.timestamp, entry.offset));
                }
                true
            })
            .await?;
        for (call, at, offset) in found {
            let life = if call.replay > 0 { format!(" (replay {})", call.replay) } else { String::new() };
            let detail = format!("{} {}{life}", call.request.method, call.request.target);
            self.tell(at, &call, "accepted", detail, format!("{partition} offset {offset}"));
            if !self.at.contains(&(name.clone(), number)) {
                self.at.push((name.clone(), number));
            }
            self.made.insert((call.id, call.replay), (call, at));
        }
        Ok(())
    }

    /// The outcome of a call, in the reply partition that it names.
    async fn end(&mut self, reached: &Reached, call: &Call) -> anyhow::Result<()> {
        let partition = &call.reply_to.partition;
        let Ok(bounds) = reached.log.bounds(partition).await else { return Ok(()) };
        let mut found = Vec::new();
        reached
            .range(partition, call.reply_to.position.max(bounds.start), bounds.end, |entry| {
                if let Some(Ok(Reply::Outcome(outcome))) = entry.record.value.map(Reply::decode)
                    && (outcome.id, outcome.replay) == (call.id, call.replay)
                {
                    found.push((outcome, entry.timestamp, entry.offset));
                }
                found.is_empty()
            })
            .await?;
        for (outcome, at, offset) in found {
            self.over.insert((call.id, call.replay));
            let by = match outcome.source {
                Source::App => "by its app",
                Source::Proxy(_) => "by Bluebox",
            };
            let attempts = crate::units::so_many(outcome.attempts as usize, "delivery", "deliveries");
            let detail = format!("{} {by}, after {attempts}", outcome.response.status);
            self.tell(at, call, "ended", detail, format!("{partition} offset {offset}"));
        }
        Ok(())
    }

    /// What was moved aside, buried, replayed and dropped.
    async fn aside(&mut self, reached: &Reached, name: &ComponentName, number: u32) -> anyhow::Result<()> {
        let topics = reached.prefix.topics(name);
        let mut told = Vec::new();
        let partition = topics.parked.partition(number);
        reached
            .each(&partition, |entry| {
                if let Some(Ok(parked)) = entry.record.value.map(ParkedCall::decode) {
                    let detail = format!("after {}, so that others can go on", crate::units::so_many(parked.attempts as usize, "delivery", "deliveries"));
                    told.push((entry.timestamp, (parked.call.id, parked.call.replay), "parked", detail, format!("{partition} offset {}", entry.offset)));
                }
            })
            .await?;
        let partition = topics.dead_letters.partition(number);
        reached
            .each(&partition, |entry| {
                let place = format!("{partition} offset {}", entry.offset);
                match Kept::of(entry.record) {
                    Some(Kept::Settled(settled)) => {
                        let what = if settled.how == Settlement::Dropped { "dropped" } else { "replayed" };
                        told.push((entry.timestamp, (settled.id, settled.replay), what, "by an operator".to_owned(), place));
                    }
                    Some(Kept::Letter(letter)) => {
                        let attempts = crate::units::so_many(letter.attempts as usize, "delivery", "deliveries");
                        let detail = format!("after {attempts}: {}", letter.detail);
                        told.push((entry.timestamp, (letter.call.id, letter.call.replay), "dead-letter", detail, place));
                    }
                    None => {}
                }
            })
            .await?;
        for (at, key, what, detail, place) in told {
            if let Some((call, _)) = self.made.get(&key).cloned() {
                self.tell(at, &call, what, detail, place);
            }
        }
        Ok(())
    }
}

/// How long ago something was.
pub(crate) fn ago(at_ms: u64) -> Duration {
    Duration::from_millis(wall_clock().as_millis().saturating_sub(at_ms))
}

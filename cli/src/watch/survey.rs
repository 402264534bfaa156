//! What the log says of each component: calls without an end, how old the oldest is, dead letters. Nothing here asks a proxy, so it is as true of a component that has no box.
//!
//! The backlog is no lag: calls end out of order, so it is the offsets from the group's frontier to the end of the partition that the commit does not call done, and what is parked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use bluebox_core::log::{Committed, Offset, Read, Timestamp, TopicPartition};
use bluebox_core::registry::{Class, Component, Registry};
use bluebox_core::topics::Topics;
use bluebox_core::wire::{CallsEntry, FrontierEntry, ParkedCall};
use bluebox_core::{CallId, ComponentName};
use bluebox_proxy::inbound::frontier::{MAX_SPAN, Mark};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::operate::Reached;
use crate::operate::dlq::Kept;

/// Questions to the log that are under way at once.
pub(crate) const AT_ONCE: usize = 32;
/// How long one record may take to be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the oldest calls of a partition, so many are looked at for one that is a call at all: the rest may be fences.
const LOOKED_AT: usize = 64;

/// A component, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surveyed {
    /// Its name.
    pub(crate) name: ComponentName,
    /// Its class.
    pub(crate) class: Class,
    /// Its partitions.
    pub(crate) partitions: u32,
    /// Calls without an end, those included that nobody has read yet.
    pub(crate) backlog: u64,
    /// When the oldest of them was accepted, by the log's clock, in milliseconds since 1970.
    pub(crate) oldest_ms: Option<u64>,
    /// Dead letters with which nothing was done.
    pub(crate) dead_letters: u64,
    /// Records that were ever appended to its calls.
    pub(crate) appended: u64,
}

/// Surveys again and again, and asks only for what may have changed.
pub(crate) struct Surveyor {
    reached: Reached,
    registry: Registry,
    registry_end: Offset,
    seen: BTreeMap<ComponentName, Seen>,
}

/// What is known of a component from the last time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    ends: Vec<Offset>,
    letter_ends: Vec<Offset>,
    commits: HashMap<TopicPartition, Newest>,
    /// To where each partition of the frontier topic was read.
    frontier_read: Vec<Offset>,
    letters: BTreeMap<u32, Letters>,
    /// When the record at this place was accepted.
    times: HashMap<TopicPartition, (Offset, Timestamp)>,
    backlog: u64,
    oldest: Option<Timestamp>,
}

/// The newest commit of an ordinal's owner: its epoch, its number there, and what it says.
type Newest = (Offset, u64, Vec<(TopicPartition, Committed)>);

/// To where a partition of dead letters was read, and which of them are open.
type Letters = (Offset, BTreeSet<(CallId, u32)>);

/// What is not done of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// How many offsets.
    pub(crate) count: u64,
    /// The first of them.
    pub(crate) first: Option<Offset>,
}

/// What a commit leaves open below `end`.
pub(crate) fn left(committed: Option<&Committed>, end: Offset) -> Left {
    let Some(committed) = committed else {
        return Left { count: end.get(), first: (end > Offset::default()).then(Offset::default) };
    };
    let done = Mark::decode(committed).map_or_else(|_| bluebox_proxy::inbound::frontier::Frontier::new(committed.offset), |mark| mark.done);
    let base = done.base();
    // Nothing above can be done.
    let known = end.get().min(base.get().saturating_add(MAX_SPAN));
    let open = || (base.get()..known).map(Offset::new).filter(|offset| !done.is_done(*offset));
    let count = open().count() as u64 + end.get().saturating_sub(known.max(base.get()));
    Left { count, first: open().next().or_else(|| (end.get() > known && known >= base.get()).then(|| Offset::new(known))) }
}

impl Surveyor {
    /// Of what is reached.
    pub(crate) fn new(reached: Reached) -> Self {
        Self { reached, registry: Registry::default(), registry_end: Offset::default(), seen: BTreeMap::new() }
    }

    /// Looks at all components. What one costs when nothing was appended and nothing is left is one question for all ends together.
    pub(crate) async fn survey(&mut self) -> anyhow::Result<Vec<Surveyed>> {
        let partition = self.reached.prefix.registry().partition(0);
        let end = self.reached.log.bounds(&partition).await?.end;
        if end != self.registry_end {
            self.registry = self.reached.registry().await?;
            self.registry_end = end;
        }
        let components: Vec<(ComponentName, Component)> = self.registry.iter().map(|(name, component)| (name.clone(), component.clone())).collect();
        let mut ends = self.ends(&components).await?;
        let mut jobs = Vec::new();
        for (name, component) in components {
            let of_this = ends.remove(&name).unwrap_or_default();
            jobs.push((name.clone(), component, of_this, self.seen.remove(&name).unwrap_or_default()));
        }
        let reached = &self.reached;
        let surveyed: Vec<_> = futures_util::stream::iter(jobs)
            .map(|(name, component, ends, mut seen)| async move {
                let view = one(reached, &name, &component, &ends, &mut seen).await.with_context(|| format!("component {name}"));
                (name, seen, view)
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut all = Vec::new();
        let mut problem = None;
        for (name, seen, view) in surveyed {
            self.seen.insert(name, seen);
            match view {
                Ok(view) => all.push(view),
                Err(error) => problem = Some(error),
            }
        }
        // One that can't be read must not hide the others, unless there are none.
        match problem {
            Some(error) if all.is_empty() => Err(error),
            Some(error) => {
                tracing::warn!(error = format!("{error:#}"), "a component could not be surveyed");
                Ok(all)
            }
            None => Ok(all),
        }
    }

    /// The ends of the calls, the parked calls and the dead letters of all of them.
    async fn ends(&self, components: &[(ComponentName, Component)]) -> anyhow::Result<HashMap<ComponentName, Ends>> {
        let mut wanted = Vec::new();
        for (name, component) in components {
            let topics = self.reached.prefix.topics(name);
            for topic in [&topics.calls, &topics.parked, &topics.dead_letters] {
                wanted.extend((0..component.partitions).map(|number| topic.partition(number)));
            }
        }
        let found = self.reached.log.ends(wanted).await.context("the log does not say where its partitions end")?;
        let mut found = found.into_iter();
        let mut all = HashMap::new();
        for (name, component) in components {
            let mut next = || found.by_ref().take(component.partitions as usize).collect::<Vec<_>>();
            all.insert(name.clone(), Ends { calls: next(), parked: next(), letters: next() });
        }
        Ok(all)
    }
}

#[derive(Debug, Default)]
struct Ends {
    calls: Vec<Offset>,
    parked: Vec<Offset>,
    letters: Vec<Offset>,
}

async fn one(reached: &Reached, name: &ComponentName, component: &Component, ends: &Ends, seen: &mut Seen) -> anyhow::Result<Surveyed> {
    let topics = reached.prefix.topics(name);
    // To what was never called nothing was ever committed.
    let never_called = ends.calls.iter().chain(&ends.parked).all(|end| *end == Offset::default());
    if !never_called && (seen.ends != ends.calls || seen.backlog > 0) {
        let open = open(reached, &topics, component, ends, seen).await?;
        seen.backlog = open.iter().map(|(_, left)| left.count).sum();
        seen.oldest = oldest(reached, &topics, &open, seen).await;
        seen.ends.clone_from(&ends.calls);
    }
    if seen.letter_ends != ends.letters {
        for (number, end) in (0..component.partitions).zip(&ends.letters) {
            letters(reached, &topics.dead_letters.partition(number), *end, seen.letters.entry(number).or_default()).await?;
        }
        seen.letter_ends.clone_from(&ends.letters);
    }
    Ok(Surveyed {
        name: name.clone(),
        class: component.class,
        partitions: component.partitions,
        backlog: seen.backlog,
        oldest_ms: seen.oldest.filter(|_| seen.backlog > 0).map(Timestamp::as_millis),
        dead_letters: seen.letters.values().map(|(_, open)| open.len() as u64).sum(),
        appended: ends.calls.iter().map(|end| end.get()).sum(),
    })
}

/// What is left of each partition of calls and parked calls, where anything is.
async fn open(reached: &Reached, topics: &Topics, component: &Component, ends: &Ends, seen: &mut Seen) -> anyhow::Result<Vec<(TopicPartition, Left)>> {
    let numbers = 0..component.partitions;
    let calls: Vec<_> = numbers.clone().map(|number| topics.calls.partition(number)).collect();
    let parked: Vec<_> = numbers.clone().map(|number| topics.parked.partition(number)).collect();
    let all: Vec<TopicPartition> = calls.iter().chain(&parked).cloned().collect();
    let commits = commits(reached, topics, component, &all, seen).await?;
    let ends = ends.calls.iter().chain(&ends.parked);
    let mut open = Vec::new();
    for ((partition, committed), end) in all.into_iter().zip(&commits).zip(ends) {
        let is_parked = partition.topic == topics.parked;
        let end = match committed {
            // Without a commit nothing that was parked counts.
            None if is_parked => Offset::default(),
            Some(committed) if is_parked => Mark::decode(committed).ok().and_then(|mark| mark.parked_end).map_or(*end, |counts| counts.min(*end)),
            _ => *end,
        };
        let left = left(committed.as_ref(), end);
        if left.count > 0 {
            open.push((partition, left));
        }
    }
    Ok(open)
}

/// What was committed for these partitions of a component.
pub(crate) async fn commits(
    reached: &Reached,
    topics: &Topics,
    component: &Component,
    of: &[TopicPartition],
    seen: &mut Seen,
) -> anyhow::Result<Vec<Option<Committed>>> {
    if component.class != Class::Stateful {
        return Ok(reached.log.committed(topics.calls.as_str(), of.to_vec()).await?);
    }
    frontiers(reached, topics, component.partitions, seen).await?;
    let newest: HashMap<_, _> = seen.commits.values().flat_map(|(_, _, commits)| commits.iter().cloned()).collect();
    Ok(of.iter().map(|partition| newest.get(partition).cloned()).collect())
}

/// Reads on what the owners of ordinals have committed.
async fn frontiers(reached: &Reached, topics: &Topics, partitions: u32, seen: &mut Seen) -> anyhow::Result<()> {
    seen.frontier_read.resize(partitions as usize, Offset::default());
    for (number, read) in (0..partitions).zip(&mut seen.frontier_read) {
        let partition = topics.frontier.partition(number);
        let newest = seen.commits.entry(partition.clone()).or_default();
        let from = *read;
        *read = reached
            .each_from(&partition, from, |entry| {
                if let Some(Ok(FrontierEntry::Commit { epoch, sequence, commits, .. })) = entry.record.value.map(FrontierEntry::decode)
                    && (epoch, sequence) >= (newest.0, newest.1)
                {
                    *newest = (epoch, sequence, commits);
                }
            })
            .await?;
    }
    Ok(())
}

/// When the oldest of what is left was accepted.
async fn oldest(reached: &Reached, topics: &Topics, open: &[(TopicPartition, Left)], seen: &mut Seen) -> Option<Timestamp> {
    let asked: Vec<_> = open
        .iter()
        .filter_map(|(partition, left)| Some((partition.clone(), left.first?)))
        .map(|(partition, first)| {
            let known = seen.times.get(&partition).filter(|(at, _)| *at == first).map(|(_, time)| *time);
            async move {
                let time = match known {
                    Some(time) => Some(time),
                    None => accepted(reached, topics, &partition, first).await,
                };
                (partition, first, time)
            }
        })
        .collect();
    let found: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    seen.times = found.iter().filter_map(|(partition, first, time)| Some((partition.clone(), (*first, (*time)?)))).collect();
    found.into_iter().filter_map(|(_, _, time)| time).min()
}

/// When the call at this place, or the next one, was accepted.
async fn accepted(reached: &Reached, topics: &Topics, partition: &TopicPartition, at: Offset) -> Option<Timestamp> {
    let mut reader = reached.log.read(partition, at);
    let mut looked_at = 0;
    while let Ok(Some(read)) = tokio::time::timeout(PATIENCE, reader.next()).await {
        let Read::Entries(entries) = read else { continue };
        for entry in entries {
            looked_at += 1;
            let Some(value) = entry.record.value else { continue };
            if partition.topic == topics.parked {
                if let Ok(parked) = ParkedCall::decode(value) {
                    return Some(parked.accepted);
                }
            } else if matches!(CallsEntry::decode(value), Ok(CallsEntry::Call(_))) {
                return Some(entry.timestamp);
            }
        }
        if looked_at >= LOOKED_AT {
            break;
        }
    }
    None
}

/// Reads on which dead letters there are.
async fn letters(reached: &Reached, partition: &TopicPartition, end: Offset, seen: &mut Letters) -> anyhow::Result<()> {
    let (read, open) = seen;
    if *read >= end {
        return Ok(());
    }
    let next = reached
        .each_from(partition, *read, |entry| match Kept::of(entry.record) {
            Some(Kept::Settled(settled)) => drop(open.remove(&(settled.id, settled.replay))),
            Some(Kept::Letter(letter)) => drop(open.insert((letter.call.id, letter.call.replay))),
            None => {}
        })
        .await?;
    *read = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use bluebox_proxy::inbound::frontier::Frontier;

    use super::*;

    fn at(n: u64) -> Offset {
        Offset::new(n)
    }

    /// Ten calls, of which the fifth and everything below the third are done: a lag would say eight.
    #[test]
    fn what_ended_out_of_order_is_not_left() {
        let mut done = Frontier::new(at(2));
        done.mark(at(4));
        let committed = Mark { done, ..Mark::default() }.encode();
        assert_eq!(left(Some(&committed), at(10)), Left { count: 7, first: Some(at(2)) });
        assert_eq!(left(Some(&committed), at(2)), Left::default());
        assert_eq!(left(None, at(10)), Left { count: 10, first: Some(at(0)) });
        assert_eq!(left(None, at(0)), Left::default());
    }

    #[test]
    fn far_above_the_frontier_everything_is_left() {
        let committed = Mark { done: Frontier::new(at(5)), ..Mark::default() }.encode();
        let end = 5 + MAX_SPAN + 1000;
        assert_eq!(left(Some(&committed), at(end)), Left { count: MAX_SPAN + 1000, first: Some(at(5)) });
        let foreign = Committed { offset: at(7), metadata: "somebody else's".to_owned() };
        assert_eq!(left(Some(&foreign), at(9)), Left { count: 2, first: Some(at(7)) });
    }
}

//! Reads what an owner needs to know before it serves: outcomes that its predecessor may have recorded, the parked partition, the index of recorded calls.
//!
//! Each takes as long as it takes, and tries again for as long as the log is away; who asks gives up by dropping the future.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::clock::wall_clock;
use bluebox_core::log::{AppendError, Appended, Bounds, Committed, Entry, Log, LogError, Offset, Read, Record, TopicPartition};
use bluebox_core::wire::{ParkedEntry, RecordedEntry, Reply};
use bluebox_core::{CallId, InstanceId};
use bytes::Bytes;

use super::partition::{Arrival, ParkedArrival, Suspect};

/// The pause before the log is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Appends until the log has it. Where an acknowledgement was lost, it may have it twice.
pub async fn append(log: &Arc<dyn Log>, to: &TopicPartition, record: Record) -> Result<Appended, TooLarge> {
    let mut pause = Duration::from_millis(20);
    loop {
        match log.append(to, record.clone()).await {
            Ok(appended) => return Ok(appended),
            Err(AppendError::TooLarge { .. }) => return Err(TooLarge),
            Err(error) => tracing::debug!(topic = %to, %error, "an append failed and is tried again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// The log will never take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record is larger than the log takes")]
pub struct TooLarge;

/// The bounds of a partition; `None` if there is no such partition.
pub async fn bounds(log: &Arc<dyn Log>, of: &TopicPartition) -> Option<Bounds> {
    loop {
        match log.bounds(of).await {
            Ok(bounds) => return Some(bounds),
            Err(LogError::NotFound(_)) => return None,
            Err(error) => tracing::debug!(topic = %of, %error, "the bounds of a partition were not told and are asked for again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What a group has committed for these partitions.
pub async fn committed(log: &Arc<dyn Log>, group: &str, of: Vec<TopicPartition>) -> Vec<Option<Committed>> {
    loop {
        match log.committed(group, of.clone()).await {
            Ok(committed) => return committed,
            Err(error) => tracing::debug!(group, %error, "commits were not told and are asked for again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads `[from, end)` of a partition.
pub async fn range(log: &Arc<dyn Log>, of: &TopicPartition, from: Offset, end: Offset, mut each: impl FnMut(Entry)) {
    let mut next = from;
    while next < end {
        let mut reader = log.read(of, next);
        loop {
            match reader.next().await {
                // The log's client was closed: whoever waits for this is being closed too.
                None => {
                    tokio::time::sleep(AGAIN).await;
                    break;
                }
                Some(Read::Truncated { start, .. }) => next = next.max(start),
                Some(Read::Entries(entries)) => {
                    for entry in entries.into_iter().take_while(|e| e.offset < end) {
                        next = entry.offset.next();
                        each(entry);
                    }
                    // Holes at the end are possible; what comes after is past it.
                    if next < end {
                        continue;
                    }
                }
            }
            if next >= end {
                return;
            }
        }
    }
}

/// Looks for the outcomes of suspects: where each of those lies that has one.
pub async fn outcomes(log: &Arc<dyn Log>, suspects: &[Suspect]) -> HashMap<Offset, (TopicPartition, Offset)> {
    let mut by_partition: BTreeMap<&TopicPartition, Vec<&Suspect>> = BTreeMap::new();
    for suspect in suspects {
        by_partition.entry(&suspect.reply_to.partition).or_default().push(suspect);
    }
    let mut found = HashMap::new();
    for (partition, suspects) in by_partition {
        let Some(bounds) = bounds(log, partition).await else { continue };
        let least = suspects.iter().map(|s| s.reply_to.position).min().unwrap_or(bounds.end);
        // Several calls can have one id: retries of a recorded call.
        let mut wanted: HashMap<(CallId, u32), Vec<&Suspect>> = HashMap::new();
        for suspect in suspects {
            wanted.entry((suspect.id, suspect.replay)).or_default().push(suspect);
        }
        range(log, partition, least.max(bounds.start), bounds.end, |entry| {
            let (key, digest, place) = match entry.record.value.map(Reply::decode) {
                Some(Ok(Reply::Outcome(o))) => ((o.id, o.replay), o.digest, (partition.clone(), entry.offset)),
                Some(Ok(Reply::At { id, replay, digest, partition, offset })) => ((id, replay), Some(digest), (partition, offset)),
                _ => return,
            };
            // Below the position that a call names lies no outcome of its own; and another digest is another call with the same key.
            let its_own = |s: &&&Suspect| entry.offset >= s.reply_to.position && s.digest == digest;
            for suspect in wanted.get(&key).into_iter().flatten().filter(its_own) {
                // The first outcome wins, here as at the caller.
                found.entry(suspect.origin).or_insert_with(|| place.clone());
            }
        })
        .await;
    }
    found
}

/// Appends our fence to the parked partition and reads its calls up to there: the calls, and the fence.
pub async fn parked(log: &Arc<dyn Log>, of: &TopicPartition, from: Offset, void_below: Offset, epoch: Offset) -> (Vec<ParkedArrival>, Offset) {
    let fence = append_fence(log, of, Record::new(ParkedEntry::Fence { epoch }.encode())).await;
    let mut void_below = void_below;
    let mut calls = Vec::new();
    range(log, of, from, fence.offset, |entry| match entry.record.value.map(ParkedEntry::decode) {
        Some(Ok(ParkedEntry::Fence { epoch })) => void_below = void_below.max(epoch),
        Some(Ok(ParkedEntry::Call(parked))) if parked.epoch >= void_below => {
            let accepted = parked.accepted;
            // Never older than either clock says.
            let age = fence.timestamp.since(accepted).min(wall_clock().since(accepted));
            let arrival = Arrival { origin: parked.origin, accepted, age, call: parked.call.into() };
            calls.push(ParkedArrival { at: entry.offset, attempts: parked.attempts, may_have_started: parked.may_have_started, arrival });
        }
        Some(Ok(ParkedEntry::Call(_))) => tracing::debug!(topic = %of, offset = %entry.offset, "a parked call of a former owner's was void"),
        Some(Err(_)) | None => tracing::error!(topic = %of, offset = %entry.offset, "a parked record could not be read; it was skipped"),
    })
    .await;
    (calls, fence.offset)
}

/// Appends our fence to the index of recorded calls and reads it up to there.
pub async fn recorded(log: &Arc<dyn Log>, of: &TopicPartition, epoch: Offset) -> Vec<(bluebox_core::log::Timestamp, RecordedEntry)> {
    // A key of its own, so that compaction leaves every fence where it is.
    let key = Bytes::from(format!("fence-{epoch}"));
    let fence = append_fence(log, of, Record::keyed(key, RecordedEntry::Fence { epoch }.encode())).await;
    let start = bounds(log, of).await.map_or(fence.offset, |b| b.start);
    let mut void_below = Offset::default();
    let mut entries = Vec::new();
    range(log, of, start, fence.offset, |entry| match entry.record.value.map(RecordedEntry::decode) {
        Some(Ok(RecordedEntry::Fence { epoch })) => void_below = void_below.max(epoch),
        Some(Ok(RecordedEntry::Ended { epoch, .. })) if epoch < void_below => {}
        Some(Ok(ended)) => entries.push((entry.timestamp, ended)),
        Some(Err(_)) => tracing::error!(topic = %of, offset = %entry.offset, "a record of the index could not be read; it was skipped"),
        None => {}
    })
    .await;
    entries
}

async fn append_fence(log: &Arc<dyn Log>, to: &TopicPartition, record: Record) -> Appended {
    loop {
        if let Ok(appended) = append(log, to, record.clone()).await {
            return appended;
        }
        // A fence has a few bytes; a log that finds it too large is not in order.
        tracing::error!(topic = %to, "the log finds a fence of a few bytes too large");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// Appends our fence to the calls partition: its offset is the epoch.
pub async fn fence(log: &Arc<dyn Log>, calls: &TopicPartition, instance: InstanceId) -> Appended {
    append_fence(log, calls, Record::new(bluebox_core::wire::CallsEntry::Fence(instance).encode())).await
}

/// Reads one record.
pub async fn one(log: &Arc<dyn Log>, of: &TopicPartition, at: Offset) -> Option<Entry> {
    let mut found = None;
    range(log, of, at, at.next(), |entry| found = Some(entry)).await;
    found
}

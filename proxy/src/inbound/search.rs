//! Reads what an owner needs to know before it serves: outcomes that its predecessor may have recorded, the parked partition, the index of recorded calls.
//!
//! Each takes as long as it takes, and tries again for as long as the log is away; who asks gives up by dropping the future.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::{Reason, ReplyAddress, Source};
use bluebox_core::clock::wall_clock;
use bluebox_core::fail_point_async;
use bluebox_core::log::{AppendError, Appended, Bounds, Committed, Entry, Log, LogError, Offset, Read, Record, Timestamp, TopicPartition};
use bluebox_core::wire::{ControlEntry, ParkedCall, RecordedEntry, Reply};
use bluebox_core::{CallId, InstanceId, planted};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::partition::{Arrival, Cancel, Findings, Found, ParkedArrival, Suspect};

/// The pause before the log is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Appends until the log has it. Where an acknowledgement was lost, it may have it twice.
pub async fn append(log: &Arc<dyn Log>, to: &TopicPartition, record: Record) -> Result<Appended, TooLarge> {
    let mut pause = Duration::from_millis(20);
    loop {
        // An error before is a refusal, an error after is an acknowledgement that got lost.
        fail_point_async!(of to.topic.as_str(), append_to, continue);
        let appended = log.append(to, record.clone()).await;
        fail_point_async!(of to.topic.as_str(), appended_to, continue);
        match appended {
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

/// Reply partitions that one component's takeovers read at the same time: each has some batches of records in memory.
pub const READ_AT_ONCE: usize = 32;

/// Looks for the outcomes of suspects. All reply partitions that they name are read at once, as far as there are permits: [`READ_AT_ONCE`] for all takeovers together.
pub async fn outcomes(log: &Arc<dyn Log>, suspects: &[Suspect], permits: &Semaphore) -> Findings {
    fail_point_async!(InSearch);
    let mut findings = Findings::default();
    let searches = Wanted::by_partition(suspects).into_values().map(|wanted| in_one(log, wanted, permits));
    for (found, end) in join_all(searches).await.into_iter().flatten() {
        findings.found.extend(found);
        findings.ends.push(end);
    }
    fail_point_async!(InSearched);
    findings
}

/// The outcomes in one reply partition, and to where it was read; `None` if there is no such partition.
async fn in_one(log: &Arc<dyn Log>, mut wanted: Wanted<'_>, permits: &Semaphore) -> Option<(HashMap<Offset, Found>, (TopicPartition, Offset))> {
    // It is never closed.
    let _permit = permits.acquire().await.ok()?;
    let partition = wanted.partition;
    let bounds = bounds(log, partition).await?;
    range(log, partition, wanted.least.max(bounds.start), bounds.end, |entry| {
        if let Some(Ok(reply)) = entry.record.value.map(Reply::decode) {
            wanted.see(entry.offset, reply);
        }
    })
    .await;
    Some((wanted.found, (partition.clone(), bounds.end)))
}

/// The outcomes that are looked for in one reply partition. Pure.
#[derive(Debug)]
pub struct Wanted<'s> {
    partition: &'s TopicPartition,
    /// The least of the read positions: from here on it must be read.
    pub least: Offset,
    /// Several calls can have one id: retries of a recorded call.
    by_id: HashMap<(CallId, u32), Vec<&'s Suspect>>,
    /// What was found, by the call's offset.
    pub found: HashMap<Offset, Found>,
}

impl<'s> Wanted<'s> {
    /// What to look for, and where.
    pub fn by_partition(suspects: &'s [Suspect]) -> BTreeMap<&'s TopicPartition, Self> {
        let mut all: BTreeMap<_, Self> = BTreeMap::new();
        for suspect in suspects {
            let ReplyAddress { partition, position } = &suspect.reply_to;
            let wanted = all.entry(partition).or_insert_with(|| Self { partition, least: *position, by_id: HashMap::new(), found: HashMap::new() });
            wanted.least = if planted!(SearchTooLate) { wanted.least.max(*position) } else { wanted.least.min(*position) };
            wanted.by_id.entry((suspect.id, suspect.replay)).or_default().push(suspect);
        }
        all
    }

    /// A reply was read.
    pub fn see(&mut self, at: Offset, reply: Reply) {
        let (key, digest, refused, place) = match reply {
            Reply::Outcome(o) => {
                let refused = matches!(o.source, Source::Proxy(Reason::KeyReused | Reason::RecordedFull));
                ((o.id, o.replay), o.digest, refused, (self.partition.clone(), at))
            }
            Reply::At { id, replay, digest, partition, offset } => ((id, replay), Some(digest), false, (partition, offset)),
            Reply::Status { .. } => return,
        };
        // Below the position that a call names lies no outcome of its own; and another digest is another call with the same key.
        for suspect in self.by_id.get(&key).into_iter().flatten().filter(|s| at >= s.reply_to.position && s.digest == digest) {
            // The first outcome wins, here as at the caller.
            self.found.entry(suspect.origin).or_insert_with(|| Found { partition: place.0.clone(), offset: place.1, refused });
        }
    }
}

/// Reads the calls of the parked partition in `[from, end)`, or to its present end: the calls, and that end. `now` is what the log's clock has shown last.
pub async fn parked(log: &Arc<dyn Log>, of: &TopicPartition, from: Offset, end: Option<Offset>, now: Timestamp) -> (Vec<ParkedArrival>, Offset) {
    fail_point_async!(InLoadParked);
    let end = match end {
        Some(end) => end,
        None => bounds(log, of).await.map_or(from, |b| b.end),
    };
    let mut calls = Vec::new();
    range(log, of, from, end, |entry| match entry.record.value.map(ParkedCall::decode) {
        Some(Ok(parked)) => {
            let accepted = parked.accepted;
            let age = Arrival::age(accepted, now, wall_clock());
            let arrival = Arrival { origin: parked.origin, accepted, age, call: parked.call.into() };
            calls.push(ParkedArrival { at: entry.offset, attempts: parked.attempts, may_have_started: parked.may_have_started, arrival });
        }
        Some(Err(_)) | None => tracing::error!(topic = %of, offset = %entry.offset, "a parked record could not be read; it was skipped"),
    })
    .await;
    (calls, end)
}

/// Reads the cancels of the control partition from `from` to its present end: them, and that end.
pub async fn cancels(log: &Arc<dyn Log>, of: &TopicPartition, from: Offset) -> (Vec<Cancel>, Offset) {
    let Some(bounds) = bounds(log, of).await else { return (Vec::new(), from) };
    let mut cancels = Vec::new();
    range(log, of, from.max(bounds.start), bounds.end, |entry| {
        if let Some(Ok(ControlEntry::Cancel { id, offset: origin })) = entry.record.value.map(ControlEntry::decode) {
            cancels.push(Cancel { at: entry.offset, origin, id });
        }
    })
    .await;
    (cancels, bounds.end)
}

/// Reads the index of recorded calls up to its present end.
pub async fn recorded(log: &Arc<dyn Log>, of: &TopicPartition) -> Vec<(Timestamp, RecordedEntry)> {
    fail_point_async!(InLoadIndex);
    let Some(bounds) = bounds(log, of).await else { return Vec::new() };
    let mut index = Entries::default();
    range(log, of, bounds.start, bounds.end, |entry| match entry.record.value.map(RecordedEntry::decode) {
        Some(Ok(read)) => index.see(entry.timestamp, read),
        Some(Err(_)) => tracing::error!(topic = %of, offset = %entry.offset, "a record of the index could not be read; it was skipped"),
        None => {}
    })
    .await;
    index.entries
}

/// The entries of the index that count: of several for one call, that of the newest epoch, because a former owner may have written its own late. Pure.
#[derive(Debug, Default)]
pub struct Entries {
    newest: HashMap<CallId, Offset>,
    /// In the order of the log; a later one of the same call takes the place of an earlier one.
    pub entries: Vec<(Timestamp, RecordedEntry)>,
}

impl Entries {
    /// An entry was read.
    pub fn see(&mut self, at: Timestamp, entry: RecordedEntry) {
        if planted!(IndexNotMoved) {
            return;
        }
        let newest = self.newest.entry(entry.id).or_insert(entry.epoch);
        if *newest <= entry.epoch {
            *newest = entry.epoch;
            self.entries.push((at, entry));
        }
    }
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

#[cfg(test)]
mod tests {
    use bluebox_core::call::{Body, Outcome, Response};
    use bluebox_core::log::embedded::Embedded;
    use bluebox_core::log::{Topic, TopicSpec};

    use super::*;

    #[tokio::test]
    async fn outcomes_are_found_in_all_reply_partitions_whatever_the_number_of_permits() {
        let log = Embedded::in_memory();
        let replies = Topic::new("replies");
        log.create_topics(vec![TopicSpec { topic: replies.clone(), partitions: 3, retention: None, compacted: false, compaction_lag: None }]).await.unwrap();
        let log: Arc<dyn Log> = log;
        let mut suspects = Vec::new();
        // The last one names a partition that is not there.
        for number in 0..4_u32 {
            let id = CallId::from_bytes([u8::try_from(number).unwrap(); 16]);
            let reply_to = ReplyAddress { partition: replies.partition(number), position: Offset::default() };
            suspects.push(Suspect { origin: Offset::new(u64::from(number)), id, replay: 0, digest: None, reply_to });
            let response =
                Response { status: http::StatusCode::OK, reason: None, headers: http::HeaderMap::new(), body: Body::empty(), trailers: http::HeaderMap::new() };
            let outcome = Outcome { id, replay: 0, attempts: 1, digest: None, source: Source::App, response };
            if number < 3 {
                append(&log, &replies.partition(number), Record::new(Reply::Outcome(Box::new(outcome)).encode())).await.unwrap();
            }
        }
        for permits in [1, 8] {
            let found = outcomes(&log, &suspects, &Semaphore::new(permits)).await;
            assert_eq!(found.found.keys().copied().collect::<std::collections::BTreeSet<_>>(), (0..3).map(Offset::new).collect());
            assert_eq!(found.ends, [0, 1, 2].map(|number| (replies.partition(number), Offset::new(1))));
        }
    }
}

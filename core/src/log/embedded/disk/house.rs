//! Retention and compaction on disk.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};

use bytes::Bytes;

use super::store::{PATIENCE, Store, StoreError};
use super::{Job, Shared};
use crate::log::embedded::partition::Partition;
use crate::log::{Entry, LogError, Offset, Timestamp};

/// Keys that one pass of a compaction remembers.
const MAX_KEYS: usize = 200_000;

/// Removals that are written together.
const MAX_REMOVALS: usize = 4_096;

/// A compaction reads everything that is there. It is worth that for so many new records, or a quarter of what there was.
const MIN_NEW: u64 = 500;

/// Read at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Below this much, it is not worth the work to give room back.
const MIN_RECLAIM_BYTES: u64 = 64 << 20;

/// Does in the background what nobody waits for.
pub(in crate::log::embedded) struct Housekeeper {
    shared: Arc<Shared>,
    trimmed: Vec<Trimmed>,
}

/// A partition whose start was moved, to be told when that is written.
struct Trimmed {
    partition: Arc<Partition>,
    start: Offset,
    written: mpsc::Receiver<Result<(), LogError>>,
}

impl Housekeeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, trimmed: Vec::new() }
    }

    /// Moves the start of a partition to its first record that is not older than `oldest`.
    pub(in crate::log::embedded) fn trim(&mut self, partition: &Arc<Partition>, oldest: Timestamp) {
        let Some(store) = self.shared.store() else { return };
        match first_since(&store, partition, oldest) {
            Ok(start) if start > partition.bounds().start => {
                self.shared.passed.fetch_add(start.distance_from(partition.bounds().start), Ordering::Relaxed);
                partition.truncate(start);
                let (ack, written) = mpsc::channel();
                self.trimmed.push(Trimmed { partition: Arc::clone(partition), start, written });
                self.shared.write(Job::Trim { partition: Arc::clone(partition), ack: Box::new(move |done| drop(ack.send(done))) });
            }
            Ok(_) => {}
            Err(e) => tracing::error!(partition = partition.id, error = %e, "could not look for old records"),
        }
    }

    /// Removes from a compacted partition what was superseded before this call, and tombstones from before `tombstones_before`. Records from `young_since` on stay, and supersede nothing yet.
    pub(in crate::log::embedded) fn compact(&self, partition: &Arc<Partition>, tombstones_before: Timestamp, young_since: Option<Timestamp>, thorough: bool) {
        let Some(store) = self.shared.store() else { return };
        let bounds = partition.bounds();
        let end = match young_since.map(|since| first_since(&store, partition, since)) {
            None => bounds.end,
            Some(Ok(end)) => end,
            Some(Err(e)) => return tracing::error!(partition = partition.id, error = %e, "could not look for young records"),
        };
        let mut from = partition.compacted_to().max(bounds.start);
        if from > end {
            return;
        }
        let (new, old) = (end.distance_from(from), from.distance_from(bounds.start));
        if !thorough && new < MIN_NEW.max(old / 4) {
            return;
        }
        if thorough && from == end {
            // Tombstones may have become old.
            from = bounds.start;
        }
        while from < end {
            match self.compact_part(&store, partition, from, end, tombstones_before) {
                Ok(reached) => from = reached,
                Err(e) => return tracing::error!(partition = partition.id, error = %e, "could not compact"),
            }
        }
        partition.set_compacted_to(from);
    }

    /// One pass: learns the keys from `from` on, as many as are allowed, and removes every older record of them. Returns where the next pass begins.
    fn compact_part(&self, store: &Store, partition: &Arc<Partition>, from: Offset, end: Offset, tombstones_before: Timestamp) -> Result<Offset, StoreError> {
        let mut last: HashMap<Bytes, Offset> = HashMap::new();
        let mut reached = end;
        each(store, partition.id, from, end, |entry| {
            if last.len() >= MAX_KEYS && !last.contains_key(&entry.record.key) {
                reached = entry.offset;
                return false;
            }
            // A copy, because the key shares its memory with the whole record.
            last.insert(Bytes::copy_from_slice(&entry.record.key), entry.offset);
            true
        })?;
        let (mut removals, mut removed) = (Vec::new(), Ok(()));
        each(store, partition.id, partition.bounds().start, reached, |entry| {
            let key = &entry.record.key;
            let superseded = !key.is_empty() && last.get(key).is_some_and(|last| *last > entry.offset);
            if superseded || entry.record.value.is_none() && entry.timestamp < tombstones_before {
                removals.push(entry.offset);
            }
            removed = match removals.len() {
                MAX_REMOVALS.. => self.remove(partition, std::mem::take(&mut removals)),
                _ => Ok(()),
            };
            removed.is_ok()
        })?;
        removed?;
        if !removals.is_empty() {
            self.remove(partition, removals)?;
        }
        Ok(reached)
    }

    /// Removes these, and waits until that is written, so that no more than a batch of removals waits.
    fn remove(&self, partition: &Arc<Partition>, offsets: Vec<Offset>) -> Result<(), StoreError> {
        partition.remove(&offsets);
        let (ack, written) = mpsc::channel();
        self.shared.write(Job::Remove { partition: Arc::clone(partition), offsets, ack: Box::new(move |done| drop(ack.send(done))) });
        match written.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            _ => Err(StoreError::Stuck),
        }
    }

    /// Lets go of what the starts have passed, and gives room back to the disk, if that is much.
    pub(in crate::log::embedded) fn reclaim(&mut self) {
        let Some(store) = self.shared.store() else { return };
        self.trimmed.retain(|trimmed| matches!(trimmed.written.recv_timeout(PATIENCE), Ok(Ok(()))));
        // The new starts must be there for good before the records are not: else nobody would be told that they are missing.
        if !self.trimmed.is_empty()
            && let Err(e) = store.sync()
        {
            return tracing::error!(error = %e, "could not write the new starts of partitions");
        }
        for trimmed in self.trimmed.drain(..) {
            self.shared.starts.set(trimmed.partition.id, trimmed.start.get());
        }
        let passed = self.shared.passed.load(Ordering::Relaxed);
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        let live: u64 = partitions.iter().map(|p| p.bounds()).map(|b| b.end.distance_from(b.start)).sum();
        drop(partitions);
        let size = store.size_bytes().unwrap_or(0);
        let passed_bytes = u64::try_from(u128::from(size) * u128::from(passed) / u128::from((passed + live).max(1))).unwrap_or(size);
        if passed_bytes < MIN_RECLAIM_BYTES.max(size / 4) || !self.shared.reclaim_begins() {
            return;
        }
        match store.reclaim() {
            Ok(()) => {
                self.shared.passed.fetch_sub(passed, Ordering::Relaxed);
                tracing::info!(before_bytes = size, after_bytes = store.size_bytes().unwrap_or(0), "gave room back to the disk");
            }
            Err(e) => tracing::error!(error = %e, "could not give room back to the disk"),
        }
        self.shared.reclaim_ends();
    }
}

/// Reads a range in pieces, for as long as `goes_on` says so.
fn each(store: &Store, id: u32, mut from: Offset, below: Offset, mut goes_on: impl FnMut(&Entry) -> bool) -> Result<(), StoreError> {
    while from < below {
        let (entries, next) = store.read(id, from, below, usize::MAX, READ_BYTES)?;
        for entry in &entries {
            if !goes_on(entry) {
                return Ok(());
            }
        }
        from = next;
    }
    Ok(())
}

/// The first offset whose record is not older; the end, if all are. Times don't go back within a partition, so that halving finds it.
fn first_since(store: &Store, partition: &Partition, oldest: Timestamp) -> Result<Offset, StoreError> {
    let bounds = partition.bounds();
    let (mut low, mut high) = (bounds.start, bounds.end);
    while low < high {
        let middle = Offset::new(low.get() + (high.get() - low.get()) / 2);
        match store.first(partition.id, middle, high)? {
            Some(entry) if entry.timestamp < oldest => low = entry.offset.next(),
            // Everything between the middle and that one is a hole.
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

//! One partition as far as it is in memory: its bounds, its newest records, and the bell that wakes its readers. Time comes in from outside, so simulations run on it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::log::{Appended, Bounds, Entry, Offset, Record, Timestamp};

/// A partition. Its lock guards what is known of it in memory and is never held over I/O.
#[derive(Debug)]
pub struct Partition {
    /// Its number in the store; 0 in a log that is only in memory.
    pub(super) id: u32,
    state: Mutex<State>,
    /// Rings when the partition grows.
    end: watch::Sender<Offset>,
}

#[derive(Debug, Default)]
struct State {
    start: Offset,
    end: Offset,
    last: Timestamp,
    /// Every record that is there with an offset of `tail_from` or above.
    tail: VecDeque<Entry>,
    tail_from: Offset,
    tail_bytes: usize,
    /// Compaction has seen what lies below.
    compacted_to: Offset,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Records; the next ones are at `next` or above.
    Entries {
        /// Them.
        entries: Vec<Entry>,
        /// Where to go on.
        next: Offset,
    },
    /// The start lies above.
    Truncated {
        /// Where the partition begins.
        start: Offset,
    },
    /// Nothing is there yet.
    End,
    /// Older than what is kept in memory: in the store, from `from` up to `below` (excluded).
    Stored {
        /// The first.
        from: Offset,
        /// The first that is in memory.
        below: Offset,
    },
}

/// That part of it which is neither key nor value.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// What an entry counts for in memory, in bytes.
pub(super) fn weight(entry: &Entry) -> usize {
    ENTRY_OVERHEAD_BYTES + entry.record.key.len() + entry.record.value.as_ref().map_or(0, Bytes::len)
}

impl Partition {
    /// An empty partition.
    pub fn empty(id: u32) -> Self {
        Self::restored(id, Bounds { start: Offset::default(), end: Offset::default() }, Timestamp::default())
    }

    /// A partition whose records are in the store.
    pub(super) fn restored(id: u32, bounds: Bounds, last: Timestamp) -> Self {
        let state = State { start: bounds.start, end: bounds.end, last, tail_from: bounds.end, compacted_to: bounds.start, ..State::default() };
        Self { id, state: Mutex::new(state), end: watch::Sender::new(bounds.end) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bell that rings when the partition grows.
    pub(super) fn bell(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// Where it begins and ends.
    pub fn bounds(&self) -> Bounds {
        let state = self.state();
        Bounds { start: state.start, end: state.end }
    }

    /// The bounds, and the time of the last record.
    pub(super) fn bounds_and_time(&self) -> (Bounds, Timestamp) {
        let state = self.state();
        (Bounds { start: state.start, end: state.end }, state.last)
    }

    /// What the store has turned out to have, after it failed and was opened again.
    pub(super) fn reload(&self, bounds: Bounds, last: Timestamp) {
        let mut state = self.state();
        if bounds.end > state.end {
            state.tail.clear();
            state.tail_bytes = 0;
            state.tail_from = bounds.end;
            state.end = bounds.end;
            state.last = state.last.max(last);
        }
        drop(state);
        self.end.send_replace(bounds.end);
    }

    /// Where compaction goes on.
    pub(super) fn compacted_to(&self) -> Offset {
        self.state().compacted_to
    }

    pub(super) fn set_compacted_to(&self, to: Offset) {
        self.state().compacted_to = to;
    }

    /// The offset and the time of a record that is appended now. Times never go back within a partition.
    pub(super) fn next(&self, wall_clock: Timestamp) -> Appended {
        let state = self.state();
        Appended { offset: state.end, timestamp: wall_clock.max(state.last) }
    }

    /// Appends in one step. For a log that is only in memory.
    pub fn append(&self, record: Record, wall_clock: Timestamp) -> Appended {
        let mut state = self.state();
        let appended = Appended { offset: state.end, timestamp: wall_clock.max(state.last) };
        state.push(Entry { offset: appended.offset, timestamp: appended.timestamp, record });
        drop(state);
        self.end.send_replace(appended.offset.next());
        appended
    }

    /// Shows readers what is durable now. Returns how much memory the newest records take.
    pub(super) fn publish(&self, entries: Vec<Entry>) -> usize {
        let mut state = self.state();
        for entry in entries {
            state.push(entry);
        }
        let (end, bytes) = (state.end, state.tail_bytes);
        drop(state);
        self.end.send_replace(end);
        bytes
    }

    /// Forgets the oldest records in memory (they are in the store) until they take no more than `bytes`. Returns what they take then.
    pub(super) fn shed(&self, bytes: usize) -> usize {
        let mut state = self.state();
        while state.tail_bytes > bytes
            && let Some(entry) = state.tail.pop_front()
        {
            state.tail_bytes = state.tail_bytes.saturating_sub(weight(&entry));
            state.tail_from = entry.offset.next();
        }
        state.tail_bytes
    }

    /// Up to `records` records of together about `bytes` bytes from `at` on; at least one, if there is one.
    pub fn find(&self, at: Offset, records: usize, bytes: usize) -> Found {
        let state = self.state();
        if at < state.start {
            return Found::Truncated { start: state.start };
        }
        if at >= state.end {
            return Found::End;
        }
        if at < state.tail_from {
            return Found::Stored { from: at, below: state.tail_from };
        }
        let first = state.tail.partition_point(|e| e.offset < at);
        let (mut entries, mut size) = (Vec::new(), 0);
        for entry in state.tail.range(first..).take(records.max(1)) {
            size += weight(entry);
            if !entries.is_empty() && size > bytes {
                break;
            }
            entries.push(entry.clone());
        }
        match entries.last() {
            Some(last) => Found::Entries { next: last.offset.next(), entries },
            // What was above has been compacted away.
            None => Found::End,
        }
    }

    /// Moves the start up to `start`; never down, and not above the end.
    pub(super) fn truncate(&self, start: Offset) {
        let mut state = self.state();
        state.start = state.start.max(start).min(state.end);
        let start = state.start;
        while let Some(entry) = state.tail.front()
            && entry.offset < start
        {
            let freed = weight(entry);
            state.tail_bytes = state.tail_bytes.saturating_sub(freed);
            state.tail.pop_front();
        }
        state.tail_from = state.tail_from.max(start);
    }

    /// The first offset in memory whose record is not older than `oldest`; the end, if all are.
    pub(super) fn first_since(&self, oldest: Timestamp) -> Offset {
        let state = self.state();
        state.tail.get(state.tail.partition_point(|e| e.timestamp < oldest)).map_or(state.end, |e| e.offset)
    }

    /// Removes these records from memory.
    pub(super) fn remove(&self, offsets: &[Offset]) {
        let mut state = self.state();
        let mut freed = 0;
        state.tail.retain(|e| {
            let kept = offsets.binary_search(&e.offset).is_err();
            freed += if kept { 0 } else { weight(e) };
            kept
        });
        state.tail_bytes = state.tail_bytes.saturating_sub(freed);
    }

    /// Which records in memory a compaction removes: those with a newer one of the same key, and tombstones older than `tombstones_before`. Records from `young_since` on stay, and supersede nothing
    /// yet.
    pub(super) fn superseded(&self, tombstones_before: Timestamp, young_since: Option<Timestamp>) -> Vec<Offset> {
        let state = self.state();
        let old = || state.tail.iter().filter(|e| young_since.is_none_or(|since| e.timestamp < since));
        let last: HashMap<&Bytes, Offset> = old().map(|e| (&e.record.key, e.offset)).collect();
        let superseded =
            |e: &Entry| !e.record.key.is_empty() && last.get(&e.record.key) != Some(&e.offset) || e.record.value.is_none() && e.timestamp < tombstones_before;
        old().filter(|e| superseded(e)).map(|e| e.offset).collect()
    }
}

impl State {
    fn push(&mut self, entry: Entry) {
        self.end = entry.offset.next();
        self.last = entry.timestamp;
        self.tail_bytes += weight(&entry);
        self.tail.push_back(entry);
    }
}

//! What can be asked of a partition.

use bluebox_core::call::Digest;

use super::*;

impl Partition {
    /// Whether there are calls that are not done.
    pub fn has_work(&self) -> bool {
        !self.held.is_empty()
    }

    /// What this owner knows of a recorded call: deliveries begun, if it is held.
    pub fn attempts_of(&self, origin: Offset, id: &CallId, digest: &Digest) -> Option<u32> {
        self.held.get(&origin).filter(|h| h.id == *id && h.recorded.as_ref() == Some(digest)).map(|h| h.attempts)
    }

    /// Whether this offset has not been read yet, because others are in front of it.
    pub fn is_unread(&self, offset: Offset) -> bool {
        offset >= self.position
    }

    /// The epoch: the offset of this owner's fence.
    pub fn epoch(&self) -> Offset {
        self.epoch
    }

    /// Bytes of the bodies that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// How many calls have no end yet.
    pub fn held_calls(&self) -> usize {
        self.held.len()
    }

    /// When the oldest call that is held was accepted.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.held.values().map(|h| h.accepted).min()
    }

    /// When a call that is held was accepted.
    pub fn accepted(&self, origin: Offset) -> Option<Timestamp> {
        self.held.get(&origin).map(|held| held.accepted)
    }

    /// Lanes with calls that are held.
    pub fn lanes(&self) -> usize {
        self.in_lane.len()
    }

    /// Calls in the longest of them.
    pub fn longest_lane(&self) -> usize {
        self.in_lane.values().map(VecDeque::len).max().unwrap_or(0)
    }

    /// How much of the window is used, from 0 to 1: of the calls without an end, or of the offsets above what is committed, whichever is more.
    pub fn window_used(&self) -> f64 {
        let calls = self.held.len().saturating_sub(self.parked) as f64 / MAX_UNFINISHED as f64;
        let span = self.position.distance_from(self.committed_base) as f64 / MAX_SPAN as f64;
        calls.max(span).min(1.0)
    }

    /// How many calls are parked.
    pub fn parked_calls(&self) -> usize {
        self.parked
    }
}

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

    /// How many calls are parked.
    pub fn parked_calls(&self) -> usize {
        self.parked
    }
}

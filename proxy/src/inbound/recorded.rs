//! The index of recorded calls: which of them have ended, and where their outcomes lie. Pure.
//!
//! It is the memory behind `Idempotency-Key`: a key that is in it is never forgotten before its time, so it has a limit, beyond which new keys are refused.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::call::Digest;
use bluebox_core::log::{Offset, Timestamp, TopicPartition};

/// The index of the partitions that this box owns.
#[derive(Debug)]
pub struct Recorded {
    by_id: HashMap<CallId, Entry>,
    /// In the order of time, for expiry: what a partition brings along is older than much of what is there.
    by_time: BTreeSet<(Timestamp, CallId)>,
    max: usize,
    keep: Duration,
}

#[derive(Debug)]
struct Entry {
    owned: u32,
    at: Timestamp,
    digest: Digest,
    partition: TopicPartition,
    offset: Offset,
}

/// What the index knows of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing, and there is room for it.
    New,
    /// It has ended; its outcome lies there.
    Ended {
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
    /// It has ended, but with another method, target or body: another call with the same key.
    OtherDigest,
    /// Nothing, and there is no room for another.
    Full,
}

impl Recorded {
    /// An empty index for at most `max` calls, each kept for `keep`.
    pub fn new(max: usize, keep: Duration) -> Self {
        Self { by_id: HashMap::new(), by_time: BTreeSet::new(), max, keep }
    }

    /// What is known of a call.
    pub fn known(&self, id: &CallId, digest: &Digest) -> Known {
        match self.by_id.get(id) {
            Some(entry) if entry.digest == *digest => Known::Ended { partition: entry.partition.clone(), offset: entry.offset },
            Some(_) => Known::OtherDigest,
            None if self.by_id.len() >= self.max => Known::Full,
            None => Known::New,
        }
    }

    /// Whether a call of this id has ended.
    pub fn knows(&self, id: &CallId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Where the outcome of a call lies.
    pub fn ended(&self, id: &CallId, digest: &Digest) -> Option<(&TopicPartition, Offset)> {
        let entry = self.by_id.get(id).filter(|entry| *digest == entry.digest)?;
        Some((&entry.partition, entry.offset))
    }

    /// A call of the partition `owned` ended at `at`, by the log's clock.
    pub fn insert(&mut self, owned: u32, at: Timestamp, id: CallId, digest: Digest, partition: TopicPartition, offset: Offset) {
        if let Some(before) = self.by_id.insert(id, Entry { owned, at, digest, partition, offset }) {
            self.by_time.remove(&(before.at, id));
        }
        self.by_time.insert((at, id));
    }

    /// Forgets what has had its time at `now`, by the log's clock.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some((at, id)) = self.by_time.first().copied().filter(|(at, _)| now.since(*at) >= self.keep) {
            self.by_time.remove(&(at, id));
            self.by_id.remove(&id);
        }
    }

    /// Forgets a partition that belongs to another now.
    pub fn give_up(&mut self, owned: u32) {
        self.by_id.retain(|_, entry| entry.owned != owned);
        let by_id = &self.by_id;
        self.by_time.retain(|(_, id)| by_id.contains_key(id));
    }

    /// How many calls it knows.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::Topic;

    use super::*;

    #[test]
    fn a_key_is_known_until_its_time_is_over_or_its_partition_has_gone() {
        let replies = Topic::new("r").partition(0);
        let (a, b) = (CallId::random(), CallId::random());
        let mut index = Recorded::new(2, Duration::from_secs(10));
        let at = |s: u64| Timestamp::from_millis(s * 1000);
        index.insert(0, at(0), a, [1; 32], replies.clone(), Offset::new(4));
        assert_eq!(index.known(&a, &[1; 32]), Known::Ended { partition: replies.clone(), offset: Offset::new(4) });
        assert_eq!(index.known(&a, &[2; 32]), Known::OtherDigest);
        assert_eq!(index.ended(&a, &[2; 32]), None);
        assert_eq!(index.known(&b, &[1; 32]), Known::New);
        index.insert(1, at(5), b, [1; 32], replies.clone(), Offset::new(5));
        assert_eq!(index.known(&CallId::random(), &[1; 32]), Known::Full);
        // Written again later, it is kept for longer.
        index.insert(0, at(6), a, [1; 32], replies, Offset::new(9));
        index.expire(at(15));
        assert_eq!((index.ended(&a, &[1; 32]).map(|e| e.1), index.ended(&b, &[1; 32])), (Some(Offset::new(9)), None));
        index.give_up(0);
        assert!(index.is_empty() && index.by_time.is_empty());
    }

    #[test]
    fn what_a_partition_brings_along_is_forgotten_in_its_own_time() {
        let replies = Topic::new("r").partition(0);
        let (here, brought) = (CallId::random(), CallId::random());
        let mut index = Recorded::new(2, Duration::from_secs(10));
        index.insert(0, Timestamp::from_millis(9_000), here, [1; 32], replies.clone(), Offset::new(4));
        index.insert(1, Timestamp::from_millis(1_000), brought, [1; 32], replies, Offset::new(1));
        index.expire(Timestamp::from_millis(11_000));
        assert!(index.knows(&here) && !index.knows(&brought));
        assert_eq!(index.known(&CallId::random(), &[1; 32]), Known::New, "there is room again");
    }
}

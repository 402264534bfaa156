//! The name of a transaction.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bluebox_core::log::Timestamp;

/// The latest creation time that an id can say: 48 bits of milliseconds, the year 10889.
const LAST_MILLIS: u64 = (1 << 48) - 1;

/// How far in the future an id may have been created: clocks differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

/// The name of a transaction for life: its partition, the millisecond of its creation (UTC) and 64 random bits, written as `0007-019b2c3d4e5f-0123456789abcdef`.
///
/// The partition comes first, so that every proxy can tell the owner; the creation time next, so that an id that nobody knows any more can be told from one that nobody ever knew.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId {
    partition: u16,
    created_millis: u64,
    random: u64,
}

/// A text that is no id of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a transaction has 4, 12 and 16 lower-case hexadecimal digits with '-' between: partition, time of creation, random bits")]
pub struct InvalidId;

/// Why a transaction is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Absent {
    /// It was created longer ago than transactions are kept: it may have been there (410).
    Gone,
    /// It never was there, or its transaction can't have ended long enough ago (404).
    Unknown,
}

impl TransactionId {
    /// A new id. `random` comes from the system's random source. `after` is the parent of a nested transaction: the child's time of creation is later than its parent's, whatever the clocks
    /// say, so that a transaction can't be its own ancestor.
    pub fn new(partition: u16, now: Timestamp, after: Option<TransactionId>, random: u64) -> Self {
        let earliest = after.map_or(0, |parent| parent.created_millis.saturating_add(1));
        Self { partition, created_millis: now.as_millis().max(earliest).min(LAST_MILLIS), random }
    }

    /// The partition of the call topic and of the topic of transactions that it belongs to.
    pub fn partition(self) -> u32 {
        u32::from(self.partition)
    }

    /// When it was created, by the clock of its first owner.
    pub fn created(self) -> Timestamp {
        Timestamp::from_millis(self.created_millis)
    }

    /// Whether it can be nested in `parent`: only what was created later can, so that there are no cycles of nested transactions.
    pub fn can_be_nested_in(self, parent: TransactionId) -> bool {
        self.created_millis > parent.created_millis
    }

    /// What it means that no record of it is there, where finished transactions are kept for `retention` and there are `partitions`.
    pub fn absent(self, now: Timestamp, retention: Duration, partitions: u32) -> Absent {
        let impossible = self.partition() >= partitions || self.created().since(now) > CLOCKS_DIFFER;
        if !impossible && now.since(self.created()) > retention { Absent::Gone } else { Absent::Unknown }
    }

    /// What its records are keyed with.
    pub fn key(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}-{:012x}-{:016x}", self.partition, self.created_millis, self.random)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TransactionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut parts = text.split('-');
        let mut number = |digits: usize| {
            let part = parts.next().filter(|p| p.len() == digits && p.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).ok_or(InvalidId)?;
            u64::from_str_radix(part, 16).map_err(|_| InvalidId)
        };
        let partition = u16::try_from(number(4)?).map_err(|_| InvalidId)?;
        let (created_millis, random) = (number(12)?, number(16)?);
        if parts.next().is_some() {
            return Err(InvalidId);
        }
        Ok(Self { partition, created_millis, random })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn it_begins_with_its_partition_and_its_time() {
        let id = TransactionId::new(7, at(0x019b_2c3d_4e5f), None, 0x0123_4567_89ab_cdef);
        assert_eq!(id.to_string(), "0007-019b2c3d4e5f-0123456789abcdef");
        assert_eq!((id.partition(), id.created()), (7, at(0x019b_2c3d_4e5f)));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let good = TransactionId::new(7, at(5), None, 9).to_string();
        let upper = good.replace("0007", "000A");
        for bad in ["", "0007", &upper, &good[1..], &format!("{good}-"), &format!("{good}0"), &good.replace('-', "_"), "+007-000000000005-0000000000000009"] {
            assert_eq!(bad.parse::<TransactionId>(), Err(InvalidId), "{bad}");
        }
    }

    #[test]
    fn an_old_id_is_gone_and_every_other_one_unknown() {
        let now = at(10 * 86_400_000);
        let id = |partition, created| TransactionId::new(partition, at(created), None, 1);
        assert_eq!(id(3, 8 * 86_400_000).absent(now, DAY, 4), Absent::Gone);
        assert_eq!(id(3, 9 * 86_400_000).absent(now, DAY, 4), Absent::Unknown, "not longer ago than they are kept");
        assert_eq!(id(4, 8 * 86_400_000).absent(now, DAY, 4), Absent::Unknown, "there is no such partition");
        assert_eq!(id(3, 11 * 86_400_000).absent(now, DAY, 4), Absent::Unknown, "created in the future");
    }

    #[test]
    fn a_child_is_younger_than_its_parent_even_where_the_clock_is_not() {
        let parent = TransactionId::new(1, at(1_000), None, 1);
        let child = TransactionId::new(2, at(900), Some(parent), 2);
        assert!(child.can_be_nested_in(parent) && !parent.can_be_nested_in(child) && !parent.can_be_nested_in(parent));
    }

    proptest! {
        #[test]
        fn text_and_back(partition: u16, created in 0..=LAST_MILLIS, random: u64) {
            let id = TransactionId::new(partition, at(created), None, random);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<TransactionId>();
        }
    }
}

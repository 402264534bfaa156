//! Per partition, the offset below which every call has a durable outcome, and which ones above it have one too. Pure.
//!
//! Calls end out of order, so a commit is more than an offset: its metadata carries the ends above the frontier as a run-length list or a bitmap,
//! whichever is shorter, and what the next owner must know of the calls that have no end yet.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use bluebox_core::log::{Committed, Offset, Topic};
use bluebox_core::planted;
use prost::Message as _;

use super::partition::Note;

/// How far above the frontier an end may lie. A bitmap of this many bits fits into a commit.
pub const MAX_SPAN: u64 = 16_384;

/// The longest metadata that is ever committed, in bytes; Kafka's default limit is 4,096 (`offset.metadata.max.bytes`).
pub const MAX_METADATA_BYTES: usize = 3_000;

/// Which offsets of a partition are done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    /// Every offset below is done.
    base: Offset,
    /// Runs of done offsets above `base`: first → first after the run. Never adjacent to each other or to `base`.
    runs: BTreeMap<Offset, Offset>,
}

impl Frontier {
    /// Everything below `base` is done, nothing above.
    pub fn new(base: Offset) -> Self {
        Self { base, runs: BTreeMap::new() }
    }

    /// Every offset below this is done.
    pub fn base(&self) -> Offset {
        self.base
    }

    /// Whether this offset is done.
    pub fn is_done(&self, offset: Offset) -> bool {
        offset < self.base || self.runs.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// How far the highest done offset lies above the frontier.
    pub fn span(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, end)| end.distance_from(self.base))
    }

    /// Marks one offset as done.
    pub fn mark(&mut self, offset: Offset) {
        self.mark_run(offset, offset.next());
    }

    /// Marks all offsets from `start` (included) to `end` (excluded) as done.
    pub fn mark_run(&mut self, start: Offset, end: Offset) {
        let (mut start, mut end) = (start.max(self.base), end);
        if start >= end {
            return;
        }
        // Swallow the runs that the new one overlaps or touches.
        while let Some((&first, &after)) = self.runs.range(..=end).next_back() {
            if after < start {
                break;
            }
            self.runs.remove(&first);
            start = start.min(first);
            end = end.max(after);
        }
        if start <= self.base || (planted!(FrontierPastGap) && start == self.base.next()) {
            self.base = end;
        } else {
            self.runs.insert(start, end);
        }
    }

    /// The frontier that a commit speaks of.
    ///
    /// # Errors
    /// [`BadMark`] when the metadata isn't ours; then only the offset can be trusted.
    pub fn decode(committed: &Committed) -> Result<Self, BadMark> {
        Mark::decode(committed).map(|mark| mark.done)
    }
}

/// What an owner leaves to the next one with a commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// What is done.
    pub done: Frontier,
    /// The offset of the committer's fence.
    pub epoch: Offset,
    /// For a parked partition: what lies from here on does not count.
    pub parked_end: Option<Offset>,
    /// Which of the calls that are not done may have been started.
    pub suspects: Suspects,
    /// How many owners in a row had died with suspects when this was committed.
    pub unclean_owners: u32,
    /// From where in the control partition cancels may not have been carried out.
    pub control_from: Offset,
    /// How far reply partitions were searched.
    pub searched: Vec<Note>,
    /// Solo deliveries that were under way, or ended in a crash, by offset.
    pub crashes: BTreeMap<Offset, u32>,
    /// Deliveries begun, by offset, where there were any and the room allows it.
    pub attempts: BTreeMap<Offset, u32>,
}

/// Which of the calls that are not done may have been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspects {
    /// Any of them.
    Any,
    /// Only these: a handover. None at all is a *clean* commit.
    Only(Vec<Offset>),
}

impl Suspects {
    /// These, in whatever order they come.
    pub fn only(mut these: Vec<Offset>) -> Self {
        these.sort_unstable();
        these.dedup();
        Self::Only(these)
    }
}

impl Default for Suspects {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// Metadata that isn't ours or doesn't fit its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the metadata of a commit can't be read")]
pub struct BadMark;

/// The message in the metadata, in base64. Offsets are distances from the frontier.
#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    /// 1. Empty metadata, as an operator's reset of offsets leaves it, is no clean commit.
    #[prost(uint32, tag = "9")]
    version: u32,
    #[prost(uint64, optional, tag = "10")]
    parked_end: Option<u64>,
    /// Gap and length, alternating: offsets not done, offsets done, …
    #[prost(uint64, repeated, tag = "2")]
    runs: Vec<u64>,
    /// The same as one bit an offset, the lowest bit first; instead of `runs`.
    #[prost(bytes = "vec", tag = "3")]
    bitmap: Vec<u8>,
    #[prost(bool, tag = "4")]
    any_suspect: bool,
    /// Below the frontier, too: parked calls keep the offset that they had.
    #[prost(sint64, repeated, tag = "5")]
    suspects: Vec<i64>,
    #[prost(uint32, tag = "6")]
    unclean_owners: u32,
    #[prost(uint64, tag = "11")]
    control_from: u64,
    #[prost(message, repeated, tag = "12")]
    searched: Vec<SearchedMessage>,
    /// Distance and count, alternating.
    #[prost(sint64, repeated, tag = "7")]
    crashes: Vec<i64>,
    /// Distance and count, alternating.
    #[prost(sint64, repeated, tag = "8")]
    attempts: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SearchedMessage {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(uint32, tag = "2")]
    partition: u32,
    #[prost(sint64, tag = "3")]
    below: i64,
    #[prost(uint64, tag = "4")]
    end: u64,
}

impl Mark {
    /// The commit that says this. Always within [`MAX_METADATA_BYTES`]: what can be done without is left out first (how far was searched, attempts), then what can be
    /// said less exactly (suspects).
    pub fn encode(&self) -> Committed {
        let base = self.done.base;
        let far = |offset: &Offset| offset.get().wrapping_sub(base.get()).cast_signed();
        let pairs = |of: &BTreeMap<Offset, u32>, most: usize| of.iter().take(most).flat_map(|(o, n)| [far(o), i64::from(*n)]).collect();
        let said = |note: &Note| {
            let Note { partition, below, end } = note;
            SearchedMessage { topic: partition.topic.as_str().to_owned(), partition: partition.partition, below: far(below), end: end.get() }
        };
        let mut metadata = Metadata {
            version: 1,
            epoch: self.epoch.get(),
            parked_end: self.parked_end.map(Offset::get),
            unclean_owners: self.unclean_owners,
            control_from: self.control_from.get(),
            searched: self.searched.iter().map(said).collect(),
            // At most one solo delivery is under way in a box; more are remembered only from former owners.
            crashes: pairs(&self.crashes, 16),
            attempts: pairs(&self.attempts, 256),
            ..Metadata::default()
        };
        match &self.suspects {
            Suspects::Any => metadata.any_suspect = true,
            Suspects::Only(these) => metadata.suspects = these.iter().map(far).collect(),
        }
        self.write_runs(&mut metadata);
        let limit = MAX_METADATA_BYTES / 4 * 3;
        if metadata.encoded_len() > limit {
            metadata.searched.clear();
        }
        if metadata.encoded_len() > limit {
            metadata.attempts.clear();
        }
        if metadata.encoded_len() > limit {
            metadata.suspects.clear();
            metadata.any_suspect = true;
        }
        Committed { offset: base, metadata: BASE64.encode(metadata.encode_to_vec()) }
    }

    fn write_runs(&self, metadata: &mut Metadata) {
        let base = self.done.base;
        let mut at = base;
        for (&start, &end) in &self.done.runs {
            metadata.runs.extend([start.distance_from(at), end.distance_from(start)]);
            at = end;
        }
        let bitmap_bytes = usize::try_from(self.done.span().div_ceil(8)).unwrap_or(usize::MAX);
        let runs_bytes: usize = metadata.runs.iter().map(|n| prost::length_delimiter_len(usize::try_from(*n).unwrap_or(usize::MAX))).sum();
        if bitmap_bytes < runs_bytes {
            metadata.runs.clear();
            metadata.bitmap = vec![0; bitmap_bytes];
            for (&start, &end) in &self.done.runs {
                for n in start.distance_from(base)..end.distance_from(base) {
                    if let Some(byte) = usize::try_from(n / 8).ok().and_then(|i| metadata.bitmap.get_mut(i)) {
                        *byte |= 1 << ((n + u64::from(planted!(BitmapOffByOne))) % 8);
                    }
                }
            }
        }
    }

    /// Reads a commit.
    ///
    /// # Errors
    /// [`BadMark`] when the metadata isn't ours; then only the offset can be trusted, and every call above it is a suspect.
    pub fn decode(committed: &Committed) -> Result<Self, BadMark> {
        let base = committed.offset;
        let bytes = BASE64.decode(&committed.metadata).map_err(|_| BadMark)?;
        let metadata = Metadata::decode(bytes.as_slice()).map_err(|_| BadMark)?;
        if metadata.version != 1 {
            return Err(BadMark);
        }
        // Bounded, because an offset far above the frontier can only be a mistake.
        let at = |n: u64| if n <= 2 * MAX_SPAN { Ok(Offset::new(base.get() + n)) } else { Err(BadMark) };
        let mut done = Frontier::new(base);
        let mut from = 0u64;
        for pair in metadata.runs.chunks(2) {
            let &[gap, length] = pair else { return Err(BadMark) };
            let start = from.checked_add(gap).ok_or(BadMark)?;
            from = start.checked_add(length).ok_or(BadMark)?;
            done.mark_run(at(start)?, at(from)?);
        }
        if metadata.bitmap.len() as u64 > 2 * MAX_SPAN / 8 {
            return Err(BadMark);
        }
        for (i, byte) in metadata.bitmap.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                done.mark(at(i as u64 * 8 + bit)?);
            }
        }
        let near = |n: i64| base.get().checked_add_signed(n).map(Offset::new).ok_or(BadMark);
        let pairs = |list: &[i64]| -> Result<BTreeMap<Offset, u32>, BadMark> {
            list.chunks(2)
                .map(|pair| match pair {
                    &[n, count] => Ok((near(n)?, u32::try_from(count).map_err(|_| BadMark)?)),
                    _ => Err(BadMark),
                })
                .collect()
        };
        let heard = |note: SearchedMessage| {
            let partition = Topic::new(&note.topic).partition(note.partition);
            Ok(Note { partition, below: near(note.below)?, end: Offset::new(note.end) })
        };
        let suspects = if metadata.any_suspect { Suspects::Any } else { Suspects::Only(metadata.suspects.iter().map(|n| near(*n)).collect::<Result<_, _>>()?) };
        Ok(Self {
            epoch: Offset::new(metadata.epoch),
            parked_end: metadata.parked_end.map(Offset::new),
            suspects,
            unclean_owners: metadata.unclean_owners,
            control_from: Offset::new(metadata.control_from),
            searched: metadata.searched.into_iter().map(heard).collect::<Result<_, _>>()?,
            crashes: pairs(&metadata.crashes)?,
            attempts: pairs(&metadata.attempts)?,
            done,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(n: u64) -> Offset {
        Offset::new(n)
    }

    #[test]
    fn the_frontier_moves_only_over_what_is_done() {
        let mut frontier = Frontier::new(at(10));
        frontier.mark(at(12));
        frontier.mark(at(11));
        assert_eq!((frontier.base(), frontier.span()), (at(10), 3));
        frontier.mark(at(10));
        assert_eq!((frontier.base(), frontier.span()), (at(13), 0));
        frontier.mark(at(5));
        assert_eq!(frontier.base(), at(13));
    }

    /// The worst case that the bounds allow fits, and comes back exactly: every second offset of the whole span done, all crash counts in use.
    #[test]
    fn the_worst_case_fits_into_a_commit() {
        let mut done = Frontier::new(at(1 << 40));
        for n in (1..MAX_SPAN).step_by(2) {
            done.mark(at((1 << 40) + n));
        }
        let crashes: BTreeMap<_, _> = (0..16).map(|n| (at((1 << 40) + 16_000 + n * 2), 3)).collect();
        let attempts = (0..1024).map(|n| (at((1 << 40) + n * 2), 9)).collect();
        let searched = (0..16).map(|n| Note { partition: Topic::new("bluebox.a-caller.replies").partition(n), below: at(1 << 40), end: at(1 << 40) }).collect();
        let many: Vec<_> = (0..64).map(|n| at((1 << 40) + 15_000 + n * 2)).collect();
        let mark = Mark {
            done,
            epoch: at(u64::MAX),
            parked_end: None,
            suspects: Suspects::Only(many),
            unclean_owners: 2,
            control_from: at(u64::MAX),
            searched,
            crashes,
            attempts,
        };
        let commit = mark.encode();
        assert!(commit.metadata.len() <= MAX_METADATA_BYTES, "{}", commit.metadata.len());
        let back = Mark::decode(&commit).unwrap();
        assert_eq!((&back.done, &back.crashes), (&mark.done, &mark.crashes));
    }

    #[test]
    fn foreign_metadata_is_refused() {
        for metadata in ["", "hello, world", "////", "AAAA"] {
            assert_eq!(Mark::decode(&Committed { offset: at(3), metadata: metadata.to_owned() }), Err(BadMark), "{metadata}");
        }
    }

    proptest! {
        #[test]
        fn marks_are_what_a_set_would_be_and_survive_a_commit(base in 0u64..1000, marks in prop::collection::vec((0u64..2000, 1u64..40), 0..200)) {
            let mut frontier = Frontier::new(at(base));
            let mut model: BTreeSet<u64> = (0..base).collect();
            for (start, length) in marks {
                frontier.mark_run(at(start), at(start + length));
                model.extend(start..start + length);
            }
            let first_missing = (0..).find(|n| !model.contains(n)).unwrap();
            prop_assert_eq!(frontier.base(), at(first_missing));
            for n in 0..2100 {
                prop_assert_eq!(frontier.is_done(at(n)), model.contains(&n));
            }
            let note = Note { partition: Topic::new("replies").partition(3), below: at(first_missing + 1), end: at(base) };
            let mark = Mark { done: frontier, suspects: Suspects::Only(vec![at(first_missing)]), searched: vec![note], ..Mark::default() };
            prop_assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
        }

        #[test]
        fn no_metadata_makes_it_panic(offset in 0..u64::MAX / 2, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Mark::decode(&Committed { offset: at(offset), metadata: BASE64.encode(bytes) });
        }
    }
}

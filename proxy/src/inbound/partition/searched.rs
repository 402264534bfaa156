//! How far reply partitions were searched, so that the next takeover need not read them again.

use bluebox_core::log::TopicPartition;

use super::*;

/// Reply partitions that a commit speaks of at most; beyond, those with the least to skip are left out and read again.
const MAX_NOTES: usize = 16;

/// What the owners up to the one that committed this know of a reply partition: no call below `below` that is not done has an outcome there below `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The reply partition.
    pub partition: TopicPartition,
    /// An offset of the calls partition.
    pub below: Offset,
    /// An offset of the reply partition.
    pub end: Offset,
}

/// What is known of reply partitions, and what a takeover is about to add to that.
#[derive(Debug, Default)]
pub(super) struct Searched {
    notes: Vec<Note>,
    /// The ends of this takeover's searches, the first of each reply partition.
    ends: BTreeMap<TopicPartition, Offset>,
    /// Calls whose outcome was found and that are not done yet. A note that comes into a commit before them would hide what was found.
    found: BTreeSet<Offset>,
    /// The calls below this are all searched for; not before it is known do the ends count.
    below: Option<Offset>,
}

impl Searched {
    pub(super) fn new(notes: Vec<Note>) -> Self {
        Self { notes, ..Self::default() }
    }

    /// From where a reply partition must be read for the outcome of a call.
    pub(super) fn from(&self, origin: Offset, partition: &TopicPartition, position: Offset) -> Offset {
        let known = self.notes.iter().filter(|note| origin < note.below && note.partition == *partition).map(|note| note.end);
        known.fold(position, Offset::max)
    }

    /// A search has ended.
    pub(super) fn add(&mut self, findings: &Findings) {
        for (partition, end) in &findings.ends {
            self.ends.entry(partition.clone()).or_insert(*end);
        }
        self.found.extend(findings.found.keys());
    }

    pub(super) fn done(&mut self, origin: Offset) {
        self.found.remove(&origin);
    }

    /// All calls below this were searched for, and none of them began before.
    pub(super) fn complete(&mut self, below: Offset) {
        self.below.get_or_insert(below);
    }

    /// What a commit says that is taken now.
    pub(super) fn notes(&mut self) -> &[Note] {
        if let Some(below) = self.below.filter(|_| self.found.is_empty()) {
            for (partition, end) in std::mem::take(&mut self.ends) {
                self.notes.retain(|note| note.partition != partition);
                self.notes.push(Note { partition, below, end });
            }
            let surplus = self.notes.len().saturating_sub(MAX_NOTES);
            self.notes.sort_by_key(|note| note.end);
            self.notes.drain(..surplus);
        }
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::Topic;

    use super::*;

    #[test]
    fn a_note_hides_nothing_that_was_found() {
        let (replies, at) = (Topic::new("replies").partition(0), Offset::new);
        let found = Found { partition: replies.clone(), offset: at(7), refused: false };
        let mut searched = Searched::new(vec![Note { partition: replies.clone(), below: at(3), end: at(5) }]);
        assert_eq!(
            [searched.from(at(2), &replies, at(1)), searched.from(at(2), &replies, at(6)), searched.from(at(3), &replies, at(1))],
            [at(5), at(6), at(1)]
        );
        searched.add(&Findings { found: [(at(4), found)].into(), ends: vec![(replies.clone(), at(9))] });
        searched.add(&Findings { found: HashMap::new(), ends: vec![(replies.clone(), at(12))] });
        let former = Note { partition: replies.clone(), below: at(3), end: at(5) };
        assert_eq!(searched.notes(), std::slice::from_ref(&former), "not all were searched for");
        searched.complete(at(10));
        assert_eq!(searched.notes(), [former], "what was found is not done");
        searched.done(at(4));
        assert_eq!(searched.notes(), [Note { partition: replies, below: at(10), end: at(9) }], "the second search began where the first had ended");
    }

    #[test]
    fn there_are_not_more_than_a_commit_has_room_for() {
        let mut searched = Searched::default();
        let ends = (0..100).map(|n| (Topic::new("replies").partition(n), Offset::new(u64::from(n)))).collect();
        searched.add(&Findings { found: HashMap::new(), ends });
        searched.complete(Offset::new(1));
        assert_eq!(searched.notes().iter().map(|note| note.end.get()).collect::<Vec<_>>(), (84..100).collect::<Vec<_>>());
    }
}

//! How far a partition is known: by what was read, and by what was acknowledged. Pure.
//!
//! An owner acts on what it has appended only when it knows all that lies before it. To read it back is one way. Another is the acknowledgement, which says where it lies: where all that lies before
//! is known already, there is nothing in between, no fence above all, and the record is as good as read. That is so almost always, since an owner is alone with its partition; where it is not, what
//! was acknowledged waits until the rest was read.

use std::collections::BTreeMap;

use bluebox_core::log::Offset;

/// What comes next, and what was acknowledged beyond.
#[derive(Debug)]
pub(super) struct Position<E> {
    next: Offset,
    acknowledged: BTreeMap<Offset, E>,
}

impl<E> Position<E> {
    /// Before anything at or above `start` is known.
    pub(super) fn new(start: Offset) -> Self {
        Self { next: start, acknowledged: BTreeMap::new() }
    }

    /// An own entry lies there.
    pub(super) fn acknowledged(&mut self, at: Offset, entry: E) {
        if at >= self.next {
            self.acknowledged.insert(at, entry);
        }
    }

    /// The next entry, if it is known without being read.
    pub(super) fn pop(&mut self) -> Option<(Offset, E)> {
        let at = self.next;
        let entry = self.acknowledged.remove(&at)?;
        self.next = at.next();
        Some((at, entry))
    }

    /// An entry was read. Whether it is new: readers give all, in their order, and leave out what compaction has taken.
    pub(super) fn read(&mut self, at: Offset) -> bool {
        if at < self.next {
            return false;
        }
        self.skip_to(at.next());
        true
    }

    /// Nothing more comes below.
    pub(super) fn skip_to(&mut self, next: Offset) {
        if next > self.next {
            self.next = next;
            self.acknowledged = self.acknowledged.split_off(&next);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes known, in its order: (offset, whether it is own).
    fn drain(position: &mut Position<bool>, known: &mut Vec<(u64, bool)>) {
        while let Some((at, own)) = position.pop() {
            known.push((at.get(), own));
        }
    }

    #[test]
    fn what_lies_behind_something_unknown_waits_for_that() {
        let (mut position, mut known) = (Position::new(Offset::new(5)), Vec::new());
        position.acknowledged(Offset::new(6), true);
        drain(&mut position, &mut known);
        assert!(known.is_empty(), "somebody else's may lie at 5");
        assert!(position.read(Offset::new(5)));
        drain(&mut position, &mut known);
        assert_eq!(known, [(6, true)]);
        assert!(!position.read(Offset::new(6)), "what was acknowledged is read as well, later");
        position.acknowledged(Offset::new(6), true);
        drain(&mut position, &mut known);
        assert_eq!(known.len(), 1, "it was known before its acknowledgement came");
    }

    proptest! {
        /// Whatever is acknowledged when, or never: everything becomes known once, in the order of the log.
        #[test]
        fn all_becomes_known_once_and_in_order(log in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..20), steps in proptest::collection::vec(any::<bool>(), 0..60)) {
            // (own, its acknowledgement comes)
            let (mut position, mut known) = (Position::new(Offset::new(0)), Vec::new());
            let mut acknowledgements: Vec<u64> = (0..).zip(&log).filter(|(_, (own, comes))| *own && *comes).map(|(at, _)| at).collect();
            let mut to_read = (0..).zip(&log).map(|(at, (own, _))| (at, *own));
            let mut read = |position: &mut Position<bool>, known: &mut Vec<(u64, bool)>| {
                let Some((at, own)) = to_read.next() else { return false };
                if position.read(Offset::new(at)) {
                    known.push((at, own));
                }
                drain(position, known);
                true
            };
            for reads in steps {
                if reads {
                    read(&mut position, &mut known);
                } else if let Some(at) = acknowledgements.pop() {
                    position.acknowledged(Offset::new(at), true);
                    drain(&mut position, &mut known);
                }
            }
            while read(&mut position, &mut known) {}
            let expected: Vec<(u64, bool)> = (0..).zip(&log).map(|(at, (own, _))| (at, *own)).collect();
            prop_assert_eq!(known, expected);
        }
    }
}

//! What may leave only when a record is durable.
//!
//! Each transaction has at most one record on its way to the log, so that its records lie there in the order of their versions, whatever is tried again. What happens meanwhile goes into the
//! next one.

use std::collections::VecDeque;

use bluebox_core::planted;

/// Which record of a transaction: the first is 1, and each has the number of the one before plus 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Version(u64);

impl Version {
    /// The version with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// What waits for the records of one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gate<E> {
    /// Of the last record that was taken, or found.
    version: Version,
    /// Of the last record that was read back.
    durable: Version,
    on_its_way: bool,
    changed: bool,
    /// What has changed may be written later, with what changes next.
    can_wait: bool,
    waiting: VecDeque<(Version, E)>,
}

impl<E> Gate<E> {
    /// The gate of a transaction whose last record is this one; [`Version::default`] for one that has none yet.
    pub fn new(version: Version) -> Self {
        Self { version, durable: version, on_its_way: false, changed: false, can_wait: false, waiting: VecDeque::new() }
    }

    /// The transaction has changed: what comes to the gate from now on waits for a record that says so.
    pub fn change(&mut self) {
        (self.changed, self.can_wait) = (true, false);
    }

    /// The same, and nothing depends on it that could not be learned again: it is written with what changes next, or when somebody waits for it, or when it is [hurried](Self::hurry).
    pub fn change_by_and_by(&mut self) {
        self.can_wait |= !self.changed;
        self.changed = true;
    }

    /// Whether there is something that can be written later.
    pub fn can_wait(&self) -> bool {
        self.can_wait
    }

    /// What could be written later is written now.
    pub fn hurry(&mut self) {
        self.can_wait = false;
    }

    /// Lets an effect out when all that the transaction is now is durable: at once if it is.
    pub fn hold(&mut self, effect: E, out: &mut Vec<E>) {
        let waits_for = if self.changed { self.version.next() } else { self.version };
        let durable = !self.changed && !self.on_its_way;
        if durable || planted!(TxnBeforeDurable) {
            out.push(effect);
        } else {
            self.waiting.push_back((waits_for, effect));
            self.can_wait = false;
        }
    }

    /// Takes back what waits and is not to leave any more.
    pub fn withdraw(&mut self, which: impl Fn(&E) -> bool) {
        self.waiting.retain(|(_, effect)| !which(effect));
    }

    /// Takes the next record to be appended, if there is one to be made and none on its way.
    pub fn take(&mut self) -> Option<Version> {
        if !self.changed || self.on_its_way || self.can_wait {
            return None;
        }
        (self.changed, self.on_its_way) = (false, true);
        self.version = self.version.next();
        Some(self.version)
    }

    /// The record was read back. One that was appended twice is so twice; a copy that comes to lie behind a later record must not stay the last one, so another is made.
    pub fn durable(&mut self, version: Version, out: &mut Vec<E>) {
        if version == self.version {
            self.on_its_way = false;
        }
        if version < self.durable && !planted!(TxnNotHealed) {
            self.change();
        }
        self.durable = self.durable.max(version);
        while let Some((_, effect)) = self.waiting.pop_front_if(|(waits_for, _)| *waits_for <= version) {
            out.push(effect);
        }
    }

    /// Whether everything is durable.
    pub fn is_durable(&self) -> bool {
        !self.changed && !self.on_its_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_before_its_record_and_records_go_one_by_one() {
        let (mut gate, mut out) = (Gate::new(Version::default()), Vec::new());
        gate.hold("free", &mut out);
        assert_eq!(out, ["free"]);
        gate.change();
        gate.hold("first", &mut out);
        assert_eq!(gate.take(), Some(Version::new(1)));
        gate.change();
        gate.hold("second", &mut out);
        assert_eq!((gate.take(), out.len()), (None, 1), "one at a time");
        gate.durable(Version::new(1), &mut out);
        assert_eq!(out, ["free", "first"]);
        assert_eq!(gate.take(), Some(Version::new(2)));
        gate.hold("third", &mut out);
        gate.durable(Version::new(1), &mut out);
        assert_eq!(out.len(), 2, "a copy of the first says nothing of the second");
        gate.durable(Version::new(2), &mut out);
        assert_eq!(out, ["free", "first", "second", "third"]);
        assert!(gate.is_durable() && gate.take().is_none());
    }

    #[test]
    fn what_can_wait_is_written_with_what_can_not_or_when_somebody_waits() {
        let (mut gate, mut out) = (Gate::new(Version::new(1)), Vec::new());
        gate.change_by_and_by();
        assert!(gate.take().is_none() && gate.can_wait() && !gate.is_durable());
        gate.change();
        assert_eq!((gate.take(), gate.can_wait()), (Some(Version::new(2)), false));
        // What changes while a record is on its way is not in it.
        gate.change_by_and_by();
        gate.durable(Version::new(2), &mut out);
        assert!(gate.take().is_none() && !gate.is_durable());
        gate.hold("answer", &mut out);
        assert_eq!((out.len(), gate.take()), (0, Some(Version::new(3))));
        gate.durable(Version::new(3), &mut out);
        assert_eq!(out, ["answer"]);
        gate.change_by_and_by();
        gate.hurry();
        assert_eq!(gate.take(), Some(Version::new(4)));
        // What has to be written stays so.
        gate.change();
        gate.change_by_and_by();
        gate.durable(Version::new(4), &mut out);
        assert_eq!(gate.take(), Some(Version::new(5)));
    }

    #[test]
    fn a_copy_that_comes_late_is_followed_by_another_record() {
        let (mut gate, mut out) = (Gate::<()>::new(Version::default()), Vec::new());
        for version in [1, 2] {
            gate.change();
            gate.take();
            gate.durable(Version::new(version), &mut out);
        }
        gate.durable(Version::new(2), &mut out);
        assert_eq!(gate.take(), None, "a copy of the last one is as good");
        gate.durable(Version::new(1), &mut out);
        assert_eq!(gate.take(), Some(Version::new(3)));
    }

    #[test]
    fn what_was_withdrawn_never_leaves() {
        let (mut gate, mut out) = (Gate::new(Version::default()), Vec::new());
        gate.change();
        gate.hold("call", &mut out);
        gate.hold("answer", &mut out);
        gate.withdraw(|effect| *effect == "call");
        let version = gate.take().unwrap();
        gate.durable(version, &mut out);
        assert_eq!(out, ["answer"]);
    }

    #[test]
    fn what_is_held_without_a_change_waits_for_the_record_on_its_way() {
        let (mut gate, mut out) = (Gate::new(Version::new(7)), Vec::new());
        gate.change();
        assert_eq!(gate.take(), Some(Version::new(8)));
        gate.hold("answer", &mut out);
        assert!(out.is_empty());
        gate.durable(Version::new(8), &mut out);
        assert_eq!(out, ["answer"]);
    }
}

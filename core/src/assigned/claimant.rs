//! What a claimant makes of the records of its frontier partition. Pure: records come in, in their order, and what they mean goes out.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::log::{Committed, Offset, TopicPartition};
use crate::wire::FrontierEntry;
use crate::{InstanceId, planted};

/// What a record means to the claimant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Its claim is there: it is the owner, and [`Claimant::commits`] says from where.
    Claimed,
    /// Its commit of this number is made: no newer claim lies before it.
    Committed(u64),
    /// A newer claim is there: it has lost the partition, and nothing more is heard.
    Superseded,
}

/// A claim on a partition, as far as the frontier partition has been read.
#[derive(Debug, Default)]
pub struct Claimant {
    /// All that its claims were signed with.
    mine: BTreeSet<InstanceId>,
    /// The offset of the claim, once it has been read.
    epoch: Option<Offset>,
    superseded: bool,
    /// The next record to be read.
    next: Offset,
    /// Commits up to this number have no proof: there was a hole before them, where a claim may have been.
    unproven: u64,
    /// Epoch and number of the best commit below the claim.
    best: Option<(Offset, u64)>,
    /// What that says; with what was committed since.
    commits: BTreeMap<TopicPartition, Committed>,
    sequence: u64,
    /// Keys of what former owners left, which a commit of its own makes needless.
    former: BTreeSet<Bytes>,
    /// Slots that can be used again: what was last appended under them has been read, so nothing comes late, and it is not the last commit that was made.
    free: BTreeSet<u32>,
    /// Slots that were ever used.
    slots: u32,
    /// The highest number of those of its commits that were made, and its slot.
    made: Option<(u64, u32)>,
}

impl Claimant {
    /// A claim, to be appended: signed with this, which nobody has used before. Where it is not known whether it was appended, another one is.
    ///
    /// One that was appended twice could be removed (as the claim of a former owner) by a successor, though its second record lies behind that one's claim.
    pub fn claim(&mut self, by: InstanceId) -> FrontierEntry {
        self.mine.insert(by);
        FrontierEntry::Claim(by)
    }

    /// Whether it owns the partition, as far as it has read.
    pub fn owns(&self) -> bool {
        self.epoch.is_some() && !self.superseded
    }

    /// What the last commit says, of former owners or of its own.
    pub fn commits(&self) -> &BTreeMap<TopicPartition, Committed> {
        &self.commits
    }

    /// The next record to be read.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The next commit, to be appended, and its number: what was committed before and is not here is in it too. `None` where it is not the owner.
    pub fn commit(&mut self, commits: impl IntoIterator<Item = (TopicPartition, Committed)>) -> Option<(u64, FrontierEntry)> {
        let epoch = self.epoch.filter(|_| !self.superseded)?;
        self.sequence += 1;
        let slot = self.free.pop_first().unwrap_or_else(|| {
            self.slots += 1;
            self.slots
        });
        self.commits.extend(commits);
        let commits = self.commits.iter().map(|(of, committed)| (of.clone(), committed.clone())).collect();
        Some((self.sequence, FrontierEntry::Commit { epoch, sequence: self.sequence, slot, commits }))
    }

    /// A record was read: its key, and what it says; `None` for one that was removed (a tombstone), or can't be read.
    ///
    /// Offsets are missing where the log removed records before they were read. One of those may have been a claim, and it was removed because a newer one was there, which
    /// comes later. So what was sent before the hole was seen has no proof; what is sent afterwards lies behind that newer claim.
    pub fn read(&mut self, at: Offset, key: &Bytes, entry: Option<FrontierEntry>) -> Option<Heard> {
        if at > self.next {
            self.unproven = self.sequence;
        }
        self.next = self.next.max(at.next());
        if self.superseded {
            return None;
        }
        let Some(entry) = entry else {
            self.former.remove(key);
            return None;
        };
        match (entry, self.epoch) {
            (FrontierEntry::Claim(by), None) if self.mine.contains(&by) => {
                self.epoch = Some(at);
                Some(Heard::Claimed)
            }
            // Of several claims of its own the first that was read counts.
            (FrontierEntry::Claim(by), Some(_)) if self.mine.contains(&by) => None,
            (FrontierEntry::Claim(_), None) => {
                self.former.insert(key.clone());
                None
            }
            (FrontierEntry::Claim(_), Some(_)) if planted!(ClaimOverlooked) => None,
            (FrontierEntry::Claim(_), Some(_)) => self.loses(),
            (FrontierEntry::Commit { epoch, sequence, slot, .. }, Some(mine)) if epoch == mine => {
                let made = sequence > self.unproven;
                if made && self.made.is_none_or(|(last, _)| last < sequence) {
                    self.free.extend(self.made.replace((sequence, slot)).map(|(_, before)| before));
                } else {
                    // It was not made, or comes behind a later one.
                    self.free.insert(slot);
                }
                made.then_some(Heard::Committed(sequence))
            }
            (FrontierEntry::Commit { epoch, .. }, Some(mine)) if epoch > mine && planted!(ClaimOverlooked) => None,
            // Its claim may have been removed, because there is a newer one.
            (FrontierEntry::Commit { epoch, .. }, Some(mine)) if epoch > mine => self.loses(),
            (FrontierEntry::Commit { epoch, sequence, commits, .. }, mine) => {
                self.former.insert(key.clone());
                // Late commits of former owners change nothing any more: none of them was made.
                if mine.is_none() && self.best.is_none_or(|best| best < (epoch, sequence)) {
                    self.best = Some((epoch, sequence));
                    self.commits = commits.into_iter().collect();
                }
                None
            }
        }
    }

    fn loses(&mut self) -> Option<Heard> {
        self.superseded = true;
        Some(Heard::Superseded)
    }

    /// Keys of records of former owners, to be removed: to be asked when a commit is made. Each is said once.
    pub fn needless(&mut self) -> BTreeSet<Bytes> {
        std::mem::take(&mut self.former)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::Topic;

    fn instance(n: u8) -> InstanceId {
        InstanceId::from_bytes([n; 16])
    }

    /// One that has made a claim.
    fn one_with(n: u8) -> Claimant {
        let mut claimant = Claimant::default();
        claimant.claim(instance(n));
        claimant
    }

    fn commits(offset: u64) -> Vec<(TopicPartition, Committed)> {
        vec![(Topic::new("calls").partition(3), Committed { offset: Offset::new(offset), metadata: format!("at {offset}") })]
    }

    fn commit(epoch: u64, sequence: u64, offset: u64) -> FrontierEntry {
        FrontierEntry::Commit { epoch: Offset::new(epoch), sequence, slot: u32::try_from(sequence).unwrap(), commits: commits(offset) }
    }

    fn hear(claimant: &mut Claimant, at: u64, entry: FrontierEntry) -> Option<Heard> {
        claimant.read(Offset::new(at), &entry.key(), Some(entry))
    }

    /// What it hears of these, from offset 0 on.
    fn hears(claimant: &mut Claimant, entries: impl IntoIterator<Item = FrontierEntry>) -> Vec<Option<Heard>> {
        (0..).zip(entries).map(|(at, entry)| hear(claimant, at, entry)).collect()
    }

    #[test]
    fn the_last_commit_of_the_highest_epoch_is_inherited() {
        let claim = |n| FrontierEntry::Claim(instance(n));
        let mut claimant = one_with(9);
        // Of owner 2, the commits come in the wrong order; one of owner 1 comes after its claim.
        let heard = hears(&mut claimant, [claim(1), commit(0, 1, 5), claim(2), commit(2, 2, 8), commit(2, 1, 7), commit(0, 2, 6), claim(9), commit(0, 3, 100)]);
        assert_eq!(heard[6], Some(Heard::Claimed));
        assert!(heard.iter().enumerate().all(|(i, h)| i == 6 || h.is_none()), "{heard:?}");
        assert_eq!(claimant.commits(), &commits(8).into_iter().collect());
    }

    #[test]
    fn what_former_owners_left_is_needless_once() {
        let mut claimant = one_with(9);
        hears(&mut claimant, [FrontierEntry::Claim(instance(1)), commit(0, 1, 5), commit(0, 2, 6), FrontierEntry::Claim(instance(9))]);
        claimant.read(Offset::new(4), &commit(0, 1, 5).key(), None);
        assert_eq!(claimant.needless(), [FrontierEntry::Claim(instance(1)).key(), commit(0, 2, 6).key()].into());
        assert!(claimant.needless().is_empty());
    }

    #[test]
    fn a_key_is_used_again_when_nothing_can_come_late_and_a_later_commit_is_made() {
        let mut claimant = one_with(9);
        hears(&mut claimant, [FrontierEntry::Claim(instance(9))]);
        let (one, two) = (claimant_commit(&mut claimant, 1), claimant_commit(&mut claimant, 2));
        assert_ne!(one.key(), two.key(), "neither is made");
        assert!(hear(&mut claimant, 1, two.clone()).is_some());
        let three = claimant_commit(&mut claimant, 3);
        assert!(![one.key(), two.key()].contains(&three.key()), "the first may come late, the second is the last that was made");
        assert!(hear(&mut claimant, 2, three.clone()).is_some());
        assert_eq!(claimant_commit(&mut claimant, 4).key(), two.key());
        // The first comes late: its key is free, and the last that was made is still not.
        assert!(hear(&mut claimant, 3, one.clone()).is_some());
        assert_eq!(claimant_commit(&mut claimant, 5).key(), one.key());
        assert!(![one.key(), two.key(), three.key()].contains(&claimant_commit(&mut claimant, 6).key()));
    }

    fn claimant_commit(claimant: &mut Claimant, n: u64) -> FrontierEntry {
        claimant.commit(commits(n)).unwrap().1
    }

    #[test]
    fn a_commit_is_made_when_it_is_read_back_with_no_newer_claim_before_it() {
        let mut claimant = one_with(9);
        assert_eq!(claimant.commit(commits(1)), None, "before it owns anything");
        hears(&mut claimant, [FrontierEntry::Claim(instance(9))]);
        let (first, one) = claimant.commit(commits(1)).unwrap();
        let (second, two) = claimant.commit(commits(2)).unwrap();
        assert_eq!(hear(&mut claimant, 1, one), Some(Heard::Committed(first)));
        assert_eq!(hear(&mut claimant, 2, FrontierEntry::Claim(instance(9))), None, "its own, appended twice");
        assert_eq!(hear(&mut claimant, 3, FrontierEntry::Claim(instance(7))), Some(Heard::Superseded));
        assert_eq!(hear(&mut claimant, 4, two), None, "commit {second} came too late");
        assert!(!claimant.owns());
        assert_eq!(claimant.commit(commits(3)), None);
    }

    #[test]
    fn a_newer_owner_is_known_by_its_commits_too() {
        let mut claimant = one_with(9);
        hears(&mut claimant, [FrontierEntry::Claim(instance(9))]);
        assert_eq!(hear(&mut claimant, 8, commit(5, 1, 1)), Some(Heard::Superseded));
    }

    #[test]
    fn a_commit_behind_a_hole_has_no_proof_and_the_next_has() {
        let mut claimant = one_with(9);
        hears(&mut claimant, [FrontierEntry::Claim(instance(9))]);
        let (_, before) = claimant.commit(commits(1)).unwrap();
        assert_eq!(claimant.read(Offset::new(1), &Bytes::new(), None), None, "nothing is no hole");
        assert_eq!(hear(&mut claimant, 3, before), None, "a claim may have been at 2");
        let (number, after) = claimant.commit(commits(2)).unwrap();
        assert_eq!(hear(&mut claimant, 4, after), Some(Heard::Committed(number)));
    }

    #[test]
    fn a_commit_says_what_was_committed_before_too() {
        let beside = (Topic::new("parked").partition(3), Committed { offset: Offset::new(4), metadata: String::new() });
        let mut claimant = one_with(9);
        let former = FrontierEntry::Commit { epoch: Offset::new(0), sequence: 1, slot: 1, commits: vec![beside.clone()] };
        hears(&mut claimant, [FrontierEntry::Claim(instance(1)), former, FrontierEntry::Claim(instance(9))]);
        let (_, entry) = claimant.commit(commits(1)).unwrap();
        let FrontierEntry::Commit { commits: said, epoch, .. } = entry else { panic!("{entry:?}") };
        assert_eq!(epoch, Offset::new(2));
        assert_eq!(said, [commits(1).remove(0), beside]);
    }

    /// Some claimants, whose records land in any order, some twice, some never, in a log that is compacted at any time.
    #[derive(Debug, Clone)]
    enum Step {
        /// This claimant appends its claim, perhaps not for the first time.
        Claim(usize),
        /// It commits; the record lands now, or only when something is let go.
        Commit(usize, bool),
        /// A record that was held up lands.
        LetGo(usize),
        /// It reads so many records.
        Read(usize, usize),
        /// Of each key the last record is kept, and no tombstone.
        Compact,
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = 0usize..4;
        prop_oneof![
            2 => who.clone().prop_map(Step::Claim),
            6 => (who.clone(), any::<bool>()).prop_map(|(who, now)| Step::Commit(who, now)),
            2 => (0usize..8).prop_map(Step::LetGo),
            8 => (who, 1usize..8).prop_map(|(who, n)| Step::Read(who, n)),
            1 => Just(Step::Compact),
        ]
    }

    type Written = (Bytes, Option<FrontierEntry>);

    #[derive(Default)]
    struct Scene {
        /// `None`: compacted.
        log: Vec<Option<Written>>,
        /// The same without compaction.
        all: Vec<Written>,
        held_up: Vec<Written>,
    }

    impl Scene {
        fn append(&mut self, written: Written) {
            self.log.push(Some(written.clone()));
            self.all.push(written);
        }

        /// Whether another than the one with this epoch claimed between it and there.
        fn superseded(&self, epoch: usize, at: usize) -> bool {
            let by = |(_, entry): &Written| match entry {
                Some(FrontierEntry::Claim(by)) => Some(by.as_bytes()[7]),
                _ => None,
            };
            self.all[epoch + 1..at].iter().any(|written| by(written).is_some_and(|other| Some(other) != by(&self.all[epoch])))
        }

        fn compact(&mut self) {
            for at in 0..self.log.len() {
                let Some((key, entry)) = &self.log[at] else { continue };
                if entry.is_none() || self.log[at + 1..].iter().flatten().any(|(other, _)| other == key) {
                    self.log[at] = None;
                }
            }
        }
    }

    proptest! {
        /// In whatever order things happen: when a commit is made, nobody has claimed the partition between its owner and it; and whoever claims it afterwards, and is not
        /// superseded before it knows, inherits it, or a later one.
        #[test]
        fn no_two_own_it_and_no_commit_that_was_made_is_forgotten(steps in prop::collection::vec(step(), 1..150)) {
            let mut scene = Scene::default();
            let mut claimants: Vec<_> = (0..4).map(|_| (Claimant::default(), 0usize)).collect();
            let mut made: Vec<(usize, Offset, u64)> = Vec::new();
            let mut inherited: Vec<(usize, Option<(Offset, u64)>)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Claim(who) => {
                        // Its number, and one that no claim had before.
                        let claim = claimants[who].0.claim(InstanceId::from_bytes(((who as u128) << 64 | number as u128).to_be_bytes()));
                        scene.append((claim.key(), Some(claim)));
                    }
                    Step::Commit(who, now) => {
                        if let Some((_, entry)) = claimants[who].0.commit(commits(number as u64)) {
                            let written = (entry.key(), Some(entry));
                            if now { scene.append(written) } else { scene.held_up.push(written) }
                        }
                    }
                    Step::LetGo(which) => {
                        if which < scene.held_up.len() {
                            let written = scene.held_up.swap_remove(which);
                            scene.append(written);
                        }
                    }
                    Step::Compact => scene.compact(),
                    Step::Read(who, n) => {
                        for _ in 0..n {
                            let (claimant, next) = &mut claimants[who];
                            let Some(written) = scene.log.get(*next).cloned() else { break };
                            let at = *next;
                            *next += 1;
                            let Some((key, entry)) = written else { continue };
                            match claimant.read(Offset::new(at as u64), &key, entry) {
                                Some(Heard::Committed(sequence)) => {
                                    let epoch = claimant.epoch.unwrap();
                                    prop_assert!(!scene.superseded(usize::try_from(epoch.get()).unwrap(), at), "{who} has a commit at {at}, behind a newer claim");
                                    made.push((at, epoch, sequence));
                                    for key in claimant.needless() {
                                        if sequence % 2 == 0 { scene.append((key, None)) } else { scene.held_up.push((key, None)) }
                                    }
                                }
                                // One that is superseded before it has read its claim inherits what it likes: it will hear of that before it can commit.
                                Some(Heard::Claimed) if !scene.superseded(at, scene.all.len()) => inherited.push((at, claimant.best)),
                                _ => {}
                            }
                        }
                    }
                }
            }
            for (at, best) in inherited {
                let last = made.iter().filter(|(o, ..)| *o < at).map(|(_, epoch, sequence)| (*epoch, *sequence)).max();
                prop_assert!(last <= best, "{last:?} was made before the claim at {at}, and {best:?} is inherited");
            }
        }
    }
}

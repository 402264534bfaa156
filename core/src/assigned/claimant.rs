//! What a claimant makes of the records of its frontier partition. Pure: records come in, in their order, and what they mean goes out.

use std::collections::{BTreeMap, BTreeSet};

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
#[derive(Debug)]
pub struct Claimant {
    me: InstanceId,
    /// The offset of the claim, once it has been read.
    epoch: Option<Offset>,
    superseded: bool,
    /// Epoch and number of the best commit below the claim.
    best: Option<(Offset, u64)>,
    /// What that says; with what was committed since.
    commits: BTreeMap<TopicPartition, Committed>,
    /// Epochs before this one that have commits.
    former: BTreeSet<Offset>,
    sequence: u64,
}

impl Claimant {
    /// One that has read nothing. `me` is in its claim, and in no other claimant's.
    pub fn new(me: InstanceId) -> Self {
        Self { me, epoch: None, superseded: false, best: None, commits: BTreeMap::new(), former: BTreeSet::new(), sequence: 0 }
    }

    /// The claim, to be appended; again, where it is not known whether it was.
    pub fn claim(&self) -> FrontierEntry {
        FrontierEntry::Claim(self.me)
    }

    /// Whether it owns the partition, as far as it has read.
    pub fn owns(&self) -> bool {
        self.epoch.is_some() && !self.superseded
    }

    /// What the last commit says, of former owners or of its own.
    pub fn commits(&self) -> &BTreeMap<TopicPartition, Committed> {
        &self.commits
    }

    /// The next commit, to be appended, and its number: what was committed before and is not here is in it too. `None` where it is not the owner.
    pub fn commit(&mut self, commits: impl IntoIterator<Item = (TopicPartition, Committed)>) -> Option<(u64, FrontierEntry)> {
        let epoch = self.epoch.filter(|_| !self.superseded)?;
        self.sequence += 1;
        self.commits.extend(commits);
        let commits = self.commits.iter().map(|(of, committed)| (of.clone(), committed.clone())).collect();
        Some((self.sequence, FrontierEntry::Commit { epoch, sequence: self.sequence, commits }))
    }

    /// A record was read.
    pub fn read(&mut self, at: Offset, entry: FrontierEntry) -> Option<Heard> {
        if self.superseded {
            return None;
        }
        match (entry, self.epoch) {
            (FrontierEntry::Claim(by), None) if by == self.me => {
                self.epoch = Some(at);
                Some(Heard::Claimed)
            }
            // Appended twice, because it was not known whether the first was: the first that was read counts.
            (FrontierEntry::Claim(by), Some(_)) if by == self.me => None,
            (FrontierEntry::Claim(_), None) => None,
            (FrontierEntry::Claim(_), Some(_)) if planted!(ClaimOverlooked) => None,
            (FrontierEntry::Claim(_), Some(_)) => self.loses(),
            (FrontierEntry::Commit { epoch, sequence, .. }, Some(mine)) if epoch == mine => Some(Heard::Committed(sequence)),
            // Its claim may have given way to a newer one by compaction.
            (FrontierEntry::Commit { epoch, .. }, Some(mine)) if epoch > mine => self.loses(),
            (FrontierEntry::Commit { epoch, sequence, commits }, mine) => {
                self.former.insert(epoch);
                // Late commits of former owners change nothing any more: their successors count on what lay before the claim.
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

    /// Former epochs whose commits are there and are needed no more, once a commit of its own is made. Each is said once.
    pub fn needless(&mut self) -> BTreeSet<Offset> {
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

    fn commits(offset: u64) -> Vec<(TopicPartition, Committed)> {
        vec![(Topic::new("calls").partition(3), Committed { offset: Offset::new(offset), metadata: format!("at {offset}") })]
    }

    fn commit(epoch: u64, sequence: u64, offset: u64) -> FrontierEntry {
        FrontierEntry::Commit { epoch: Offset::new(epoch), sequence, commits: commits(offset) }
    }

    /// What it hears of these, from offset 0 on.
    fn hears(claimant: &mut Claimant, entries: impl IntoIterator<Item = FrontierEntry>) -> Vec<Option<Heard>> {
        (0..).zip(entries).map(|(at, entry)| claimant.read(Offset::new(at), entry)).collect()
    }

    #[test]
    fn the_last_commit_of_the_highest_epoch_is_inherited() {
        let claim = |n| FrontierEntry::Claim(instance(n));
        let mut claimant = Claimant::new(instance(9));
        // Of owner 2, the commits come in the wrong order; one of owner 1 comes after its claim.
        let heard = hears(&mut claimant, [claim(1), commit(0, 1, 5), claim(2), commit(2, 2, 8), commit(2, 1, 7), commit(0, 2, 6), claim(9), commit(0, 3, 100)]);
        assert_eq!(heard[6], Some(Heard::Claimed));
        assert!(heard.iter().enumerate().all(|(i, h)| i == 6 || h.is_none()), "{heard:?}");
        assert_eq!(claimant.commits(), &commits(8).into_iter().collect());
        assert_eq!(claimant.needless(), [0, 2].map(Offset::new).into());
        assert!(claimant.needless().is_empty());
    }

    #[test]
    fn a_commit_is_made_when_it_is_read_back_with_no_newer_claim_before_it() {
        let mut claimant = Claimant::new(instance(9));
        assert_eq!(claimant.commit(commits(1)), None, "before it owns anything");
        hears(&mut claimant, [FrontierEntry::Claim(instance(9))]);
        let (first, one) = claimant.commit(commits(1)).unwrap();
        let (second, two) = claimant.commit(commits(2)).unwrap();
        assert_eq!(claimant.read(Offset::new(1), one), Some(Heard::Committed(first)));
        assert_eq!(claimant.read(Offset::new(2), FrontierEntry::Claim(instance(9))), None, "its own, appended twice");
        assert_eq!(claimant.read(Offset::new(3), FrontierEntry::Claim(instance(7))), Some(Heard::Superseded));
        assert_eq!(claimant.read(Offset::new(4), two), None, "commit {second} came too late");
        assert!(!claimant.owns());
        assert_eq!(claimant.commit(commits(3)), None);
    }

    #[test]
    fn a_newer_owner_is_known_by_its_commits_too() {
        let mut claimant = Claimant::new(instance(9));
        hears(&mut claimant, [FrontierEntry::Claim(instance(9))]);
        assert_eq!(claimant.read(Offset::new(8), commit(5, 1, 1)), Some(Heard::Superseded));
    }

    #[test]
    fn a_commit_says_what_was_committed_before_too() {
        let beside = (Topic::new("parked").partition(3), Committed { offset: Offset::new(4), metadata: String::new() });
        let mut claimant = Claimant::new(instance(9));
        let former = FrontierEntry::Commit { epoch: Offset::new(0), sequence: 1, commits: vec![beside.clone()] };
        hears(&mut claimant, [FrontierEntry::Claim(instance(1)), former, FrontierEntry::Claim(instance(9))]);
        let (_, entry) = claimant.commit(commits(1)).unwrap();
        let FrontierEntry::Commit { commits: said, epoch, .. } = entry else { panic!("{entry:?}") };
        assert_eq!(epoch, Offset::new(2));
        assert_eq!(said, [commits(1).remove(0), beside]);
    }

    /// Some claimants, and records of theirs that land in any order, some twice, some never: compacted at any time, too.
    #[derive(Debug, Clone)]
    enum Step {
        /// This claimant appends its claim.
        Claim(usize),
        /// It commits; the record lands now, or only when something is let go.
        Commit(usize, bool),
        /// A record that was held up lands.
        LetGo(usize),
        /// It reads so many records.
        Read(usize, usize),
        /// Of each key the last record is kept.
        Compact,
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = 0usize..4;
        prop_oneof![
            2 => who.clone().prop_map(Step::Claim),
            6 => (who.clone(), any::<bool>()).prop_map(|(who, now)| Step::Commit(who, now)),
            2 => (0usize..8).prop_map(Step::LetGo),
            8 => (who, 1usize..6).prop_map(|(who, n)| Step::Read(who, n)),
            1 => Just(Step::Compact),
        ]
    }

    proptest! {
        /// In whatever order things happen: when a commit is made, nobody has claimed the partition before it and after its owner; and whoever claims it afterwards knows of it.
        #[test]
        fn no_two_own_it_and_no_commit_that_was_made_is_forgotten(steps in prop::collection::vec(step(), 1..120)) {
            let mut log: Vec<Option<FrontierEntry>> = Vec::new();
            // The truth: what compaction removes is not forgotten here.
            let mut all: Vec<FrontierEntry> = Vec::new();
            let mut claimants: Vec<_> = (0..4u8).map(|n| (Claimant::new(instance(n)), 0usize, false)).collect();
            let mut held_up: Vec<FrontierEntry> = Vec::new();
            let mut last = 0;
            for step in steps {
                let append = |log: &mut Vec<Option<FrontierEntry>>, all: &mut Vec<FrontierEntry>, entry: FrontierEntry| {
                    log.push(Some(entry.clone()));
                    all.push(entry);
                };
                match step {
                    Step::Claim(who) => {
                        let claim = claimants[who].0.claim();
                        if !claimants[who].2 || claimants[who].0.epoch.is_none() {
                            claimants[who].2 = true;
                            append(&mut log, &mut all, claim);
                        }
                    }
                    Step::Commit(who, now) => {
                        last += 1;
                        if let Some((_, entry)) = claimants[who].0.commit(commits(last)) {
                            if now { append(&mut log, &mut all, entry) } else { held_up.push(entry) }
                        }
                    }
                    Step::LetGo(which) => {
                        if which < held_up.len() {
                            let entry = held_up.swap_remove(which);
                            append(&mut log, &mut all, entry);
                        }
                    }
                    Step::Compact => {
                        let keys: Vec<_> = log.iter().map(|entry| entry.as_ref().map(|e| e.record().key)).collect();
                        for (at, key) in keys.iter().enumerate() {
                            if key.is_some() && keys[at + 1..].contains(key) {
                                log[at] = None;
                            }
                        }
                    }
                    Step::Read(who, n) => {
                        for _ in 0..n {
                            let (claimant, next, _) = &mut claimants[who];
                            let Some(entry) = log.get(*next) else { break };
                            let at = *next;
                            *next += 1;
                            let Some(entry) = entry.clone() else { continue };
                            let heard = claimant.read(Offset::new(at as u64), entry);
                            let epoch = claimant.epoch.map(|e| usize::try_from(e.get()).unwrap());
                            match heard {
                                Some(Heard::Committed(_)) => {
                                    let newer = all[epoch.unwrap() + 1..at].iter().position(|e| matches!(e, FrontierEntry::Claim(by) if *by != instance(who as u8)));
                                    prop_assert!(newer.is_none(), "{who} has a commit at {at}, though a newer claim lies before it");
                                }
                                Some(Heard::Claimed) => {
                                    // Every commit that its owner can take for made lies before the claim, and is of this or a lower number.
                                    let made = all[..at].iter().enumerate().filter_map(|(o, e)| match e {
                                        FrontierEntry::Commit { epoch, sequence, .. } => {
                                            let own = usize::try_from(epoch.get()).unwrap();
                                            let newer = all[own + 1..o].iter().any(|e| matches!((e, &all[own]), (FrontierEntry::Claim(by), FrontierEntry::Claim(of)) if by != of));
                                            (!newer).then_some((*epoch, *sequence))
                                        }
                                        FrontierEntry::Claim(_) => None,
                                    }).max();
                                    // After a compaction an older commit of the same owner can have taken the place of a newer one, never of another owner.
                                    prop_assert!(made.map(|(epoch, _)| epoch) <= claimant.best.map(|(epoch, _)| epoch), "{made:?} was made, {:?} is inherited", claimant.best);
                                }
                                _ => {}
                            }
                        }
                    }
                }
            }
        }
    }
}

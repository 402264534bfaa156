//! The state machine of groups, on its own: whatever happens in whatever order, what it promises holds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bluebox_core::clock::Moment;
use bluebox_core::log::embedded::group::{Effect, Groups, Holder, MemberId};
use bluebox_core::log::{Committed, GroupSpec, LogError, Offset, Topic, TopicPartition};
use proptest::prelude::*;

const SESSION: Duration = Duration::from_secs(10);
const RELEASE: Duration = Duration::from_secs(30);
const HOLDERS: usize = 5;
const TOPICS: [(&str, u32); 3] = [("a", 5), ("b", 3), ("late", 4)];

/// Those of some holders end with their sessions, those of others may go on for longer.
fn lease(holder: usize) -> Duration {
    if holder.is_multiple_of(2) { SESSION } else { 2 * SESSION }
}

/// Something that happens to a group, or time that passes.
#[derive(Debug, Clone)]
enum Step {
    Join {
        holder: usize,
        topics: Vec<usize>,
    },
    Heartbeat(usize),
    /// Gives up the partition with this number among those that the holder was asked for.
    Release(usize, usize),
    Leave(usize),
    Dies(usize),
    CutOff(usize),
    Commit(usize),
    Pass(Duration),
    MakeLateTopic,
}

fn step() -> impl Strategy<Value = Step> {
    let holder = 0..HOLDERS;
    prop_oneof![
        4 => (holder.clone(), prop::sample::select(vec![vec![0], vec![0, 1], vec![1], vec![0, 1, 2], vec![2]]))
            .prop_map(|(holder, topics)| Step::Join { holder, topics }),
        4 => holder.clone().prop_map(Step::Heartbeat),
        6 => (holder.clone(), 0..8usize).prop_map(|(holder, which)| Step::Release(holder, which)),
        1 => holder.clone().prop_map(Step::Leave),
        1 => holder.clone().prop_map(Step::Dies),
        1 => holder.clone().prop_map(Step::CutOff),
        2 => holder.prop_map(Step::Commit),
        3 => (1..15u64).prop_map(|s| Step::Pass(Duration::from_secs(s))),
        1 => Just(Step::MakeLateTopic),
    ]
}

/// What everybody outside knows, by what they were told.
#[derive(Default)]
struct Model {
    groups: Groups,
    now: Moment,
    /// The present stay of each holder.
    stays: BTreeMap<usize, (MemberId, BTreeSet<Topic>)>,
    owned: BTreeMap<TopicPartition, usize>,
    asked: BTreeSet<TopicPartition>,
    /// The last sign of life of each holder.
    seen: BTreeMap<usize, Moment>,
    /// Former owners that may still act, by partition.
    zombies: BTreeMap<TopicPartition, BTreeSet<usize>>,
    committed: BTreeMap<TopicPartition, Committed>,
    made: Vec<(Topic, u32)>,
    /// Topics that the group has ever shared out.
    shared: BTreeSet<Topic>,
    commits: u64,
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        for (name, partitions) in &TOPICS[..2] {
            model.make(name, *partitions);
        }
        model
    }

    fn make(&mut self, name: &str, partitions: u32) {
        let topic = Topic::new(name);
        let effects = self.groups.topic_created(self.now, &topic, partitions);
        if !self.made.iter().any(|(made, _)| *made == topic) {
            self.made.push((topic, partitions));
        }
        self.hear(effects);
    }

    fn holder_of(&self, member: MemberId) -> usize {
        *self.stays.iter().find(|(_, (id, _))| *id == member).expect("only members are told anything").0
    }

    /// Takes what members are told, and checks that it may be so.
    fn hear(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Assigned(member, assignments) => {
                    let holder = self.holder_of(member);
                    for assignment in assignments {
                        let partition = assignment.partition;
                        assert!(self.stays[&holder].1.contains(&partition.topic), "{partition} was not asked for by holder {holder}");
                        let owner = self.owned.insert(partition.clone(), holder);
                        assert_eq!(owner, None, "{partition} has an owner");
                        assert_eq!(assignment.committed.as_ref(), self.committed.get(&partition));
                        let zombies = self.zombies.entry(partition.clone()).or_default();
                        assert_eq!(assignment.former_is_gone, zombies.is_empty(), "{partition}: {zombies:?} may act");
                    }
                }
                Effect::Revoking(member, partitions) => {
                    let holder = self.holder_of(member);
                    for partition in partitions {
                        assert_eq!(self.owned.get(&partition), Some(&holder));
                        assert!(self.asked.insert(partition.clone()), "{partition} was asked for twice");
                    }
                }
                Effect::Expelled(member, lost) => {
                    let holder = self.holder_of(member);
                    self.stays.remove(&holder);
                    let owned: Vec<_> = self.owned_by(holder);
                    assert_eq!(lost, owned);
                    let lease_is_over = self.seen[&holder] + SESSION <= self.now && lease(holder) <= SESSION;
                    for partition in owned {
                        if !lease_is_over {
                            self.zombies.entry(partition.clone()).or_default().insert(holder);
                        }
                        self.gives_up(&partition);
                    }
                }
                Effect::Missing(_, topics) => assert!(topics.iter().all(|t| !self.made.iter().any(|(made, _)| made == t))),
            }
        }
    }

    fn owned_by(&self, holder: usize) -> Vec<TopicPartition> {
        self.owned.iter().filter(|(_, owner)| **owner == holder).map(|(partition, _)| partition.clone()).collect()
    }

    fn gives_up(&mut self, partition: &TopicPartition) {
        self.owned.remove(partition);
        self.asked.remove(partition);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Join { holder, topics } if !self.stays.contains_key(&holder) => {
                let topics: Vec<_> = topics.into_iter().map(|t| Topic::new(TOPICS[t].0)).collect();
                let spec =
                    GroupSpec { name: "group".to_owned(), topics: topics.clone(), session_timeout: SESSION, release_timeout: RELEASE, lease: lease(holder) };
                self.seen.insert(holder, self.now);
                let (member, effects) = self.groups.join(self.now, holder_id(holder), &spec);
                self.stays.insert(holder, (member, topics.into_iter().collect()));
                self.hear(effects);
            }
            Step::Heartbeat(holder) => {
                if let Some((member, _)) = self.stays.get(&holder) {
                    assert!(self.groups.heartbeat(self.now, *member));
                    self.seen.insert(holder, self.now);
                }
            }
            Step::Release(holder, which) => {
                let Some((member, _)) = self.stays.get(&holder).cloned() else { return };
                let asked: Vec<_> = self.owned_by(holder).into_iter().filter(|p| self.asked.contains(p)).collect();
                if let Some(partition) = asked.get(which % asked.len().max(1)) {
                    self.zombies.remove(partition);
                    self.gives_up(partition);
                    let effects = self.groups.release(self.now, member, std::slice::from_ref(partition));
                    self.hear(effects);
                }
            }
            Step::Leave(holder) => {
                let Some((member, _)) = self.stays.remove(&holder) else { return };
                for partition in self.owned_by(holder) {
                    self.zombies.remove(&partition);
                    self.gives_up(&partition);
                }
                let effects = self.groups.leave(self.now, member);
                self.hear(effects);
            }
            Step::Dies(holder) => {
                self.stays.remove(&holder);
                for partition in self.owned_by(holder) {
                    self.gives_up(&partition);
                }
                for zombies in self.zombies.values_mut() {
                    zombies.remove(&holder);
                }
                let effects = self.groups.gone(self.now, holder_id(holder));
                self.hear(effects);
            }
            Step::CutOff(holder) => {
                let effects = self.groups.cut_off(self.now, holder_id(holder));
                self.hear(effects);
                assert!(!self.stays.contains_key(&holder));
            }
            Step::Commit(holder) => self.commit(holder),
            Step::Pass(time) => {
                self.now = self.now + time;
                let effects = self.groups.tick(self.now);
                self.hear(effects);
                assert!(self.groups.next_deadline().is_none_or(|at| at > self.now), "somebody is late and was not expelled");
            }
            Step::MakeLateTopic => self.make(TOPICS[2].0, TOPICS[2].1),
            Step::Join { .. } => {}
        }
        let wanted = self.stays.values().flat_map(|(_, topics)| topics);
        self.shared.extend(wanted.filter(|t| self.made.iter().any(|(made, _)| made == *t)).cloned());
        self.check();
    }

    /// Owners' commits are taken, and nobody else's; and those of what the group does not share out.
    fn commit(&mut self, holder: usize) {
        let Some((member, _)) = self.stays.get(&holder).cloned() else { return };
        self.commits += 1;
        let committed = Committed { offset: Offset::new(self.commits), metadata: "note".to_owned() };
        for (topic, partitions) in self.made.clone() {
            for partition in (0..partitions).map(|p| topic.partition(p)) {
                let taken = self.groups.commit(self.now, member, &[(partition.clone(), committed.clone())]);
                if self.owned.get(&partition) == Some(&holder) || !self.shared.contains(&topic) {
                    assert_eq!(taken, Ok(()));
                    self.seen.insert(holder, self.now);
                    self.committed.insert(partition, committed.clone());
                } else {
                    assert!(matches!(taken, Err(LogError::Fenced(_))), "{partition}: {taken:?}");
                }
            }
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        for (topic, partitions) in &self.made {
            let wanted = self.stays.values().any(|(_, topics)| topics.contains(topic));
            assert!(!wanted || self.shared.contains(topic));
            for partition in (0..*partitions).map(|p| topic.partition(p)) {
                assert_eq!(self.owned.contains_key(&partition), wanted, "{partition}: somebody wants it and nobody has it, or the other way round");
                assert_eq!(self.groups.committed("group", &partition).as_ref(), self.committed.get(&partition));
            }
        }
        assert_eq!(self.groups.members("group"), self.stays.len());
    }

    /// Everybody does as asked until nobody is asked for anything.
    fn settle(&mut self) {
        for _ in 0..100 {
            let Some(partition) = self.asked.first().cloned() else { return };
            let holder = self.owned[&partition];
            let asked: Vec<_> = self.owned_by(holder).into_iter().filter(|p| self.asked.contains(p)).collect();
            let which = asked.iter().position(|p| *p == partition).unwrap();
            self.take(Step::Release(holder, which));
        }
        panic!("partitions go round and round");
    }
}

fn holder_id(holder: usize) -> Holder {
    Holder::new(holder as u64 + 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_promised_holds_after_any_steps(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in steps {
            model.take(step);
        }
        model.settle();
        // Between two that want the same, the numbers differ by one at most, unless what the larger one has is wanted by it alone.
        let load = |holder: usize| model.owned_by(holder).len();
        for (one, (_, of_one)) in &model.stays {
            for (two, (_, of_two)) in &model.stays {
                let shared = model.owned_by(*one).iter().any(|p| of_two.contains(&p.topic));
                let _ = of_one;
                prop_assert!(!shared || load(*one) <= load(*two) + 1, "{} against {}", load(*one), load(*two));
            }
        }
    }

    #[test]
    fn nothing_moves_that_need_not(members in 1..5usize, partitions in 1..40u32) {
        let mut groups = Groups::default();
        let topic = Topic::new("topic");
        let now = Moment::default();
        groups.topic_created(now, &topic, partitions);
        let spec = GroupSpec { name: "group".to_owned(), topics: vec![topic.clone()], session_timeout: SESSION, release_timeout: RELEASE, lease: SESSION };
        let mut ids = Vec::new();
        for holder in 0..members {
            let (id, mut effects) = groups.join(now, holder_id(holder), &spec);
            ids.push(id);
            let mut moved = 0;
            while let Some(effect) = effects.pop() {
                if let Effect::Revoking(from, asked) = effect {
                    moved += asked.len();
                    effects.extend(groups.release(now, from, &asked));
                }
            }
            // Only what the newcomer gets moves.
            prop_assert!(holder == 0 && moved == 0 || moved <= (partitions as usize).div_ceil(holder + 1), "{moved} moved");
        }
        // When one leaves, only what it had moves.
        let effects = groups.leave(now, ids[0]);
        prop_assert!(!effects.iter().any(|e| matches!(e, Effect::Revoking(..))), "{effects:?}");
    }
}

#[test]
fn nobody_is_expelled_for_a_time_when_nobody_looked() {
    let mut groups = Groups::default();
    let topic = Topic::new("topic");
    let start = Moment::default();
    groups.topic_created(start, &topic, 1);
    let spec = GroupSpec { name: "group".to_owned(), topics: vec![topic], session_timeout: SESSION, release_timeout: RELEASE, lease: SESSION };
    groups.join(start, holder_id(0), &spec);
    groups.overslept(Duration::from_secs(3600));
    assert_eq!(groups.tick(start + Duration::from_secs(3600)), []);
    assert_eq!(groups.tick(start + Duration::from_secs(3600) + SESSION).len(), 1);
}

#[test]
fn metadata_is_bounded() {
    let mut groups = Groups::default();
    let topic = Topic::new("topic");
    let now = Moment::default();
    groups.topic_created(now, &topic, 1);
    let spec = GroupSpec { name: "group".to_owned(), topics: vec![topic.clone()], session_timeout: SESSION, release_timeout: RELEASE, lease: SESSION };
    let (member, _) = groups.join(now, holder_id(0), &spec);
    let mut commit = |metadata: String| groups.commit(now, member, &[(topic.partition(0), Committed { offset: Offset::default(), metadata })]);
    assert_eq!(commit("x".repeat(4_000)), Ok(()));
    for bad in ["x".repeat(4_001), "new\nline".to_owned(), "ünicode".to_owned()] {
        assert!(matches!(commit(bad), Err(LogError::Refused(_))));
    }
}

//! Who owns which partition of a group, and what was committed: a pure state machine. Time and events come in, effects go out.
//!
//! The assignment is sticky, balanced and cooperative: a partition moves only when the numbers differ by more than one, and only after its owner released it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Moment;
use crate::log::{Assignment, Committed, GroupSpec, LogError, Topic, TopicPartition};

/// The longest metadata of a commit, in bytes.
pub const MAX_METADATA_BYTES: usize = 4_000;

/// Shorter timeouts than this are taken for this: a member could never be in time.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);

/// One stay in a group: a member that was expelled and comes again has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u64);

/// Who stands behind a member, through all its stays: one [`Membership`](crate::log::Membership). What a holder owned may be acted on by it until it is
/// known to be [gone](Groups::gone).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(u64);

impl Holder {
    /// Whoever was there before the log was opened: nothing is known of them.
    const BEFORE: Self = Self(0);

    /// The holder with this number, which is above 0.
    pub fn new(number: u64) -> Self {
        Self(number.max(1))
    }
}

/// What a member must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// These are its own now.
    Assigned(MemberId, Vec<Assignment>),
    /// It is asked to release these.
    Revoking(MemberId, Vec<TopicPartition>),
    /// It was expelled: it is no member any more, and these are no longer its own.
    Expelled(MemberId, Vec<TopicPartition>),
    /// It subscribed to topics that are not there.
    Missing(MemberId, Vec<Topic>),
}

/// All groups of a log.
#[derive(Debug, Default)]
pub struct Groups {
    topics: BTreeMap<Topic, Counted>,
    groups: BTreeMap<String, Group>,
    members: BTreeMap<MemberId, String>,
    last_member: u64,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    partitions: u32,
    /// Whether it was there when the log was opened, so that somebody may have owned its partitions before.
    inherited: bool,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<MemberId, Member>,
    partitions: BTreeMap<TopicPartition, Held>,
    commits: BTreeMap<TopicPartition, Committed>,
}

#[derive(Debug)]
struct Member {
    holder: Holder,
    topics: BTreeSet<Topic>,
    session_timeout: Duration,
    release_timeout: Duration,
    lease: Duration,
    /// The last sign of life.
    seen: Moment,
}

#[derive(Debug, Default)]
struct Held {
    owner: Option<MemberId>,
    /// Who should own it.
    target: Option<MemberId>,
    /// Since when the owner is asked to release it.
    asked: Option<Moment>,
    /// Former owners that may still act on their leases. Emptied by an orderly release, because the one who released it had dealt with them.
    zombies: BTreeSet<Holder>,
}

impl Groups {
    /// A topic that was just made. Members that wait for it get its partitions.
    pub fn topic_created(&mut self, now: Moment, topic: &Topic, partitions: u32) -> Vec<Effect> {
        self.topics.entry(topic.clone()).or_insert(Counted { partitions, inherited: false });
        let mut effects = Vec::new();
        for group in self.groups.values_mut() {
            if group.members.values().any(|m| m.topics.contains(topic)) {
                group.rebalance(now, &self.topics, &mut effects);
            }
        }
        effects
    }

    /// A topic that was there when the log was opened.
    pub fn topic_restored(&mut self, topic: &Topic, partitions: u32) {
        self.topics.entry(topic.clone()).or_insert(Counted { partitions, inherited: true });
    }

    /// A commit that was there when the log was opened.
    pub fn commit_restored(&mut self, group: &str, partition: TopicPartition, committed: Committed) {
        self.groups.entry(group.to_owned()).or_default().commits.insert(partition, committed);
    }

    /// A holder begins a stay in a group.
    pub fn join(&mut self, now: Moment, holder: Holder, spec: &GroupSpec) -> (MemberId, Vec<Effect>) {
        self.last_member += 1;
        let id = MemberId(self.last_member);
        let group = self.groups.entry(spec.name.clone()).or_default();
        let member = Member {
            holder,
            topics: spec.topics.iter().cloned().collect(),
            session_timeout: spec.session_timeout.max(SHORTEST_TIMEOUT),
            release_timeout: spec.release_timeout.max(SHORTEST_TIMEOUT),
            lease: spec.lease,
            seen: now,
        };
        let missing: Vec<_> = member.topics.iter().filter(|t| !self.topics.contains_key(*t)).cloned().collect();
        group.members.insert(id, member);
        self.members.insert(id, spec.name.clone());
        let mut effects = Vec::new();
        if !missing.is_empty() {
            effects.push(Effect::Missing(id, missing));
        }
        group.rebalance(now, &self.topics, &mut effects);
        (id, effects)
    }

    /// A sign of life. False: it is no member any more, and must join again.
    pub fn heartbeat(&mut self, now: Moment, member: MemberId) -> bool {
        let Some(member) = self.members.get(&member).and_then(|g| self.groups.get_mut(g)).and_then(|g| g.members.get_mut(&member)) else { return false };
        member.seen = member.seen.max(now);
        true
    }

    /// Commits for partitions that the member owns, or that the group does not share out, all or nothing. A sign of life, so that a lease of a
    /// session's length at most has run out with the session.
    ///
    /// # Errors
    /// [`LogError::Fenced`] where it is no member or another owns a partition, [`LogError::Refused`] where the metadata breaks the rules.
    pub fn commit(&mut self, now: Moment, member: MemberId, commits: &[(TopicPartition, Committed)]) -> Result<(), LogError> {
        let group = self.members.get(&member).and_then(|name| self.groups.get_mut(name));
        let Some(group) = group else { return Err(LogError::Fenced("the member was expelled or has left".to_owned())) };
        for (partition, committed) in commits {
            if group.partitions.get(partition).is_some_and(|held| held.owner != Some(member)) {
                return Err(LogError::Fenced(format!("{partition} is not the member's")));
            }
            let metadata = committed.metadata.as_bytes();
            if metadata.len() > MAX_METADATA_BYTES || !metadata.iter().all(|b| (0x20..0x7f).contains(b)) {
                return Err(LogError::Refused(format!(
                    "{partition}: metadata of {} bytes: up to {MAX_METADATA_BYTES} bytes of printable ASCII are taken",
                    metadata.len()
                )));
            }
        }
        group.commits.extend(commits.iter().cloned());
        self.heartbeat(now, member);
        Ok(())
    }

    /// The name of the group that this is a member of.
    pub fn group_of(&self, member: MemberId) -> Option<&str> {
        self.members.get(&member).map(String::as_str)
    }

    /// What a group has committed.
    pub fn committed(&self, group: &str, partition: &TopicPartition) -> Option<Committed> {
        self.groups.get(group)?.commits.get(partition).cloned()
    }

    /// The number of members of a group.
    pub fn members(&self, group: &str) -> usize {
        self.groups.get(group).map_or(0, |g| g.members.len())
    }

    /// The member gives these up; those that are not its own are ignored.
    pub fn release(&mut self, now: Moment, member: MemberId, partitions: &[TopicPartition]) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(group) = self.members.get(&member).and_then(|name| self.groups.get_mut(name)) {
            for partition in partitions {
                if let Some(held) = group.partitions.get_mut(partition)
                    && held.owner == Some(member)
                {
                    held.released();
                }
            }
            group.rebalance(now, &self.topics, &mut effects);
        }
        effects
    }

    /// The member gives up everything and ends its stay.
    pub fn leave(&mut self, now: Moment, member: MemberId) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(group) = self.members.remove(&member).and_then(|name| self.groups.get_mut(&name)) else { return effects };
        group.members.remove(&member);
        for held in group.partitions.values_mut() {
            if held.owner == Some(member) {
                held.released();
            }
        }
        group.rebalance(now, &self.topics, &mut effects);
        effects
    }

    /// The holder can't act any more: its process or its connection has ended.
    pub fn gone(&mut self, now: Moment, holder: Holder) -> Vec<Effect> {
        let mut effects = Vec::new();
        for group in self.groups.values_mut() {
            let members: Vec<_> = group.members.iter().filter(|(_, m)| m.holder == holder).map(|(id, _)| *id).collect();
            for held in group.partitions.values_mut() {
                held.zombies.remove(&holder);
                if held.owner.is_some_and(|owner| members.contains(&owner)) {
                    held.owner = None;
                    held.asked = None;
                }
            }
            for member in &members {
                group.members.remove(member);
                self.members.remove(member);
            }
            if !members.is_empty() {
                group.rebalance(now, &self.topics, &mut effects);
            }
        }
        effects
    }

    /// The holder's connection was ended by the log; it may live on and act.
    pub fn cut_off(&mut self, now: Moment, holder: Holder) -> Vec<Effect> {
        let members: Vec<_> = self.groups.values().flat_map(|g| &g.members).filter(|(_, member)| member.holder == holder).map(|(id, _)| *id).collect();
        let mut effects = Vec::new();
        for member in members {
            if let Some(group) = self.members.remove(&member).and_then(|name| self.groups.get_mut(&name)) {
                group.expel(member, false, &mut effects);
                group.rebalance(now, &self.topics, &mut effects);
            }
        }
        effects
    }

    /// Time has passed: expels members without a sign of life, and those that kept a partition that they were asked for.
    pub fn tick(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        for group in self.groups.values_mut() {
            let late: Vec<_> = group.members.keys().copied().filter(|id| group.deadline(*id).is_some_and(|at| at <= now)).collect();
            for member in &late {
                self.members.remove(member);
                let lease_is_over = group.members.get(member).is_some_and(|m| m.lease <= m.session_timeout && m.seen + m.session_timeout <= now);
                group.expel(*member, lease_is_over, &mut effects);
            }
            if !late.is_empty() {
                group.rebalance(now, &self.topics, &mut effects);
            }
        }
        effects
    }

    /// Nobody watched the time for this long (the process was stopped): signs of life may have come and not been seen.
    pub fn overslept(&mut self, by: Duration) {
        for group in self.groups.values_mut() {
            for member in group.members.values_mut() {
                member.seen = member.seen + by;
            }
            for asked in group.partitions.values_mut().filter_map(|held| held.asked.as_mut()) {
                *asked = *asked + by;
            }
        }
    }

    /// When [`Groups::tick`] has something to do next, as things stand.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.groups.values().flat_map(|g| g.members.keys().filter_map(|id| g.deadline(*id))).min()
    }
}

impl Held {
    /// Given up in order: its owner, and whoever was before, can't act on it any more.
    fn released(&mut self) {
        self.owner = None;
        self.asked = None;
        self.zombies.clear();
    }
}

impl Group {
    /// When this member is late, as things stand.
    fn deadline(&self, id: MemberId) -> Option<Moment> {
        let member = self.members.get(&id)?;
        let session = member.seen + member.session_timeout;
        let asked = self.partitions.values().filter(|held| held.owner == Some(id)).filter_map(|held| held.asked).min();
        Some(asked.map_or(session, |asked| session.min(asked + member.release_timeout)))
    }

    fn expel(&mut self, id: MemberId, lease_is_over: bool, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.remove(&id) else { return };
        let mut lost = Vec::new();
        for (partition, held) in &mut self.partitions {
            if held.owner == Some(id) {
                held.owner = None;
                held.asked = None;
                if !lease_is_over {
                    held.zombies.insert(member.holder);
                }
                lost.push(partition.clone());
            }
        }
        effects.push(Effect::Expelled(id, lost));
    }

    fn rebalance(&mut self, now: Moment, topics: &BTreeMap<Topic, Counted>, effects: &mut Vec<Effect>) {
        self.take_in_partitions(topics);
        self.choose_targets();
        self.balance_targets();
        let mut assigned: BTreeMap<MemberId, Vec<Assignment>> = BTreeMap::new();
        let mut revoking: BTreeMap<MemberId, Vec<TopicPartition>> = BTreeMap::new();
        for (partition, held) in &mut self.partitions {
            match (held.owner, held.target) {
                (None, Some(target)) => {
                    held.owner = Some(target);
                    assigned.entry(target).or_default().push(Assignment {
                        partition: partition.clone(),
                        committed: self.commits.get(partition).cloned(),
                        former_is_gone: held.zombies.is_empty(),
                    });
                }
                (Some(owner), target) if target != Some(owner) && held.asked.is_none() => {
                    held.asked = Some(now);
                    revoking.entry(owner).or_default().push(partition.clone());
                }
                _ => {}
            }
        }
        effects.extend(revoking.into_iter().map(|(member, partitions)| Effect::Revoking(member, partitions)));
        effects.extend(assigned.into_iter().map(|(member, assignments)| Effect::Assigned(member, assignments)));
    }

    fn take_in_partitions(&mut self, topics: &BTreeMap<Topic, Counted>) {
        let subscribed: BTreeSet<&Topic> = self.members.values().flat_map(|m| &m.topics).collect();
        for (topic, counted) in subscribed.into_iter().filter_map(|t| topics.get_key_value(t)) {
            for partition in 0..counted.partitions {
                self.partitions
                    .entry(topic.partition(partition))
                    .or_insert_with(|| Held { zombies: counted.inherited.then_some(Holder::BEFORE).into_iter().collect(), ..Held::default() });
            }
        }
    }

    /// Gives every partition that has none a target: the eligible member with the fewest, its present owner where they are equal.
    fn choose_targets(&mut self) {
        let mut loads: BTreeMap<MemberId, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        for held in self.partitions.values_mut() {
            match held.target.and_then(|target| loads.get_mut(&target)) {
                Some(load) => *load += 1,
                None => held.target = None,
            }
        }
        for (partition, held) in self.partitions.iter_mut().filter(|(_, held)| held.target.is_none()) {
            let eligible = self.members.iter().filter(|(_, m)| m.topics.contains(&partition.topic)).map(|(id, _)| *id);
            held.target = eligible.min_by_key(|id| (loads.get(id).copied().unwrap_or(0), held.owner != Some(*id), *id));
            if let Some(load) = held.target.and_then(|target| loads.get_mut(&target)) {
                *load += 1;
            }
        }
    }

    /// Moves targets from members with more partitions to members with at least two fewer, the last ones first, and those first that nobody would have to release.
    fn balance_targets(&mut self) {
        let mut loads: BTreeMap<MemberId, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        for target in self.partitions.values().filter_map(|held| held.target) {
            *loads.entry(target).or_default() += 1;
        }
        // Each move makes the sum of the squares of the loads smaller: this ends.
        while let Some((partition, to)) = self.next_move(&loads) {
            let Some(held) = self.partitions.get_mut(&partition) else { return };
            if let Some(from) = held.target.replace(to) {
                *loads.entry(from).or_default() -= 1;
            }
            *loads.entry(to).or_default() += 1;
        }
    }

    fn next_move(&self, loads: &BTreeMap<MemberId, usize>) -> Option<(TopicPartition, MemberId)> {
        let mut members: Vec<_> = loads.iter().map(|(id, load)| (*load, *id)).collect();
        members.sort_unstable();
        for (high, from) in members.iter().rev() {
            for (low, to) in members.iter().take_while(|(low, _)| low + 2 <= *high) {
                let _ = low;
                let topics = self.members.get(to).map(|m| &m.topics)?;
                let movable = self.partitions.iter().rev().filter(|(p, held)| held.target == Some(*from) && topics.contains(&p.topic));
                if let Some((partition, _)) = movable.min_by_key(|(_, held)| (held.owner != Some(*to), held.owner == Some(*from))) {
                    return Some((partition.clone(), *to));
                }
            }
        }
        None
    }
}

//! What an owner of an assigned partition is promised, on every log: see `bluebox_core::assigned`.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::assigned::Assigned;
use bluebox_core::clock::Moment;
use bluebox_core::log::{GroupEvent, GroupSpec, LogError, Offset, Topic, TopicSpec};

use crate::fixture::{Fixture, Member, append_all, commit};

/// What is claimed: a topic, another whose partitions go with its own, and their frontier topic.
struct Claimed<F> {
    fixture: F,
    topic: Topic,
    beside: Topic,
    frontier: Topic,
}

impl<F: Fixture> Claimed<F> {
    async fn new(fixture: F) -> Self {
        let log = fixture.client();
        let (topic, beside) = (fixture.topic(&*log, 3).await, fixture.topic(&*log, 3).await);
        let frontier = Topic::new(&fixture.name("frontier"));
        log.create_topics(vec![TopicSpec { topic: frontier.clone(), partitions: 3, retention: None, compacted: true, compaction_lag: None }]).await.unwrap();
        Self { fixture, topic, beside, frontier }
    }

    /// A process of its own that is this ordinal.
    fn process(&self, number: u32) -> (Arc<dyn Log>, GroupSpec) {
        let log: Arc<dyn Log> = Arc::new(Assigned::new(self.fixture.client(), self.frontier.clone(), number));
        (log, self.fixture.group(&[&self.topic]))
    }

    async fn claim(&self, number: u32) -> (Arc<dyn Log>, Member) {
        let (log, group) = self.process(number);
        let mut member = Member::join(&*log, group);
        member.until(|m| m.owned.len() == 1).await;
        (log, member)
    }
}

pub async fn a_claimant_gets_its_partition_and_no_other(fixture: impl Fixture) {
    let claimed = Claimed::new(fixture).await;
    let ((_zero, first), (_two, second)) = (claimed.claim(0).await, claimed.claim(2).await);
    assert!(first.owned.keys().eq([&claimed.topic.partition(0)]) && second.owned.keys().eq([&claimed.topic.partition(2)]));
    assert!(first.owned.values().chain(second.owned.values()).all(|a| a.committed.is_none()), "there never was a commit");
}

pub async fn it_is_read_from_where_its_owner_wants_and_no_further(fixture: impl Fixture) {
    let claimed = Claimed::new(fixture).await;
    let (log, mut member) = claimed.claim(1).await;
    let of = claimed.topic.partition(1);
    append_all(&*log, &of, (0..50).map(|n| n.to_string())).await;
    let control = member.membership.control().clone();
    control.start(&of, Offset::new(10));
    member.for_a_while().await;
    assert!(member.records.is_empty(), "nothing was wanted");
    control.want(&of, 7);
    member.until(|m| m.records.len() >= 7).await;
    member.for_a_while().await;
    assert_eq!(member.texts(), (10..17).map(|n| n.to_string()).collect::<Vec<_>>());
    control.want(&of, 100);
    append_all(&*log, &of, (50..80).map(|n| n.to_string())).await;
    member.until(|m| m.records.len() >= 70).await;
    assert_eq!(member.texts(), (10..80).map(|n| n.to_string()).collect::<Vec<_>>());
    control.start(&of, Offset::new(78));
    control.want(&of, 9);
    member.until(|m| m.records.len() >= 72).await;
    assert_eq!(member.texts()[70..], ["78", "79"], "from its new start");
}

pub async fn what_its_owner_committed_is_what_the_next_claimant_gets(fixture: impl Fixture) {
    let claimed = Claimed::new(fixture).await;
    let (of, beside) = (claimed.topic.partition(1), claimed.beside.partition(1));
    let (_first, member) = claimed.claim(1).await;
    let control = member.membership.control().clone();
    for n in 1..4 {
        let before = Moment::now();
        let at = control.commit(vec![(of.clone(), commit(n, "first")), (beside.clone(), commit(10 * n, "beside"))]).await.unwrap();
        assert!(before <= at && at <= Moment::now());
    }
    control.commit(vec![(of.clone(), commit(4, "last"))]).await.unwrap();
    control.leave().await.unwrap();
    let fenced = control.commit(vec![(of.clone(), commit(9, "left"))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    let (second, member) = claimed.claim(1).await;
    assert_eq!(member.owned[&of].committed, Some(commit(4, "last")));
    assert_eq!(second.committed("any", vec![beside, of]).await.unwrap(), [Some(commit(30, "beside")), Some(commit(4, "last"))]);
    // One that died without a word leaves the same.
    drop((second, member));
    let (_third, member) = claimed.claim(1).await;
    assert_eq!(member.owned[&claimed.topic.partition(1)].committed, Some(commit(4, "last")));
}

pub async fn the_newest_claim_wins_and_the_older_owner_is_told(fixture: impl Fixture) {
    let claimed = Claimed::new(fixture).await;
    let of = claimed.topic.partition(1);
    let (_first, mut old) = claimed.claim(1).await;
    let control = old.membership.control().clone();
    control.commit(vec![(of.clone(), commit(1, "old"))]).await.unwrap();
    let (_second, new) = claimed.claim(1).await;
    assert_eq!(new.owned[&of].committed, Some(commit(1, "old")));
    assert!(!new.owned[&of].former_is_gone, "it may still act");
    // Whether it has heard of the claim or not, its commits are none.
    let fenced = control.commit(vec![(of.clone(), commit(2, "too late"))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    old.until(|m| m.lost.contains(&of)).await;
    assert_eq!(old.membership.next().await, None, "and that is all");
    // Before the new owner has committed anything, nothing but what the old one knew can be said; what that appended too late is as good as what it committed.
    drop(new);
    let (_third, third) = claimed.claim(1).await;
    let inherited = third.owned[&of].committed.clone();
    assert!([Some(commit(1, "old")), Some(commit(2, "too late"))].contains(&inherited), "{inherited:?}");
    third.membership.control().commit(vec![(of.clone(), commit(1, "new"))]).await.unwrap();
    drop(third);
    let (_fourth, fourth) = claimed.claim(1).await;
    assert_eq!(fourth.owned[&of].committed, Some(commit(1, "new")), "of the highest epoch, whatever offsets are said");
}

pub async fn many_claimants_at_once_leave_one_owner(fixture: impl Fixture) {
    let claimed = Claimed::new(fixture).await;
    let of = claimed.topic.partition(0);
    let mut members = Vec::new();
    for _ in 0..5 {
        let (log, group) = claimed.process(0);
        members.push((Member::join(&*log, group), log));
    }
    // Each either has it lost again, or is the one that keeps it: then its claim is in the log.
    for (member, _) in &mut members {
        member.until(|m| !m.owned.is_empty() || !m.lost.is_empty()).await;
    }
    // Who has claimed it before another hears of that one, sooner or later.
    let settled = async {
        while members.iter().filter(|(member, _)| !member.owned.is_empty()).count() != 1 {
            for (member, _) in &mut members {
                member.for_a_while().await;
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), settled).await.is_ok(), "several own it");
    for (member, _) in &mut members {
        member.for_a_while().await;
    }
    assert_eq!(members.iter().filter(|(member, _)| !member.owned.is_empty()).count(), 1, "the newest keeps it");
    let mut made = 0;
    for (n, (member, _)) in (1..).zip(&members) {
        made += u32::from(member.membership.control().commit(vec![(of.clone(), commit(n, ""))]).await.is_ok());
    }
    assert_eq!(made, 1, "only the owner commits");
}

pub async fn a_claim_waits_for_its_topic(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 1).await;
    let frontier = Topic::new(&fixture.name("later"));
    let assigned = Assigned::new(fixture.client(), frontier.clone(), 0);
    let mut member = Member::join(&assigned, fixture.group(&[&topic]));
    member.until(|m| !m.trouble.is_empty()).await;
    assert!(member.trouble[0].contains(frontier.as_str()), "{:?}", member.trouble);
    log.create_topics(vec![TopicSpec { topic: frontier, partitions: 1, retention: None, compacted: true, compaction_lag: None }]).await.unwrap();
    member.until(|m| m.owned.len() == 1).await;
}

/// Commits by the hundred, with new owners in between, leave little behind once the log has been compacted, and nothing is forgotten.
pub async fn compaction_takes_what_is_needless_and_nothing_else(fixture: impl Fixture) {
    let claimed = Claimed::new(fixture).await;
    let (of, place) = (claimed.topic.partition(0), claimed.frontier.partition(0));
    for owner in 0..4u64 {
        let (log, member) = claimed.claim(0).await;
        let expected = (owner > 0).then(|| commit(owner * 100 - 1, "x"));
        assert_eq!(member.owned[&of].committed, expected);
        for n in 0..100 {
            member.membership.control().commit(vec![(of.clone(), commit(owner * 100 + n, "x"))]).await.unwrap();
        }
        // All that it has asked for is there: the tombstones, too.
        let end = log.bounds(&place).await.unwrap().end;
        if !claimed.fixture.compact().await {
            return;
        }
        let mut reader = log.read(&place, Offset::default());
        let mut left = 0;
        let read = async {
            while let Some(bluebox_core::log::Read::Entries(entries)) = reader.next().await {
                left += entries.iter().filter(|e| e.record.value.is_some()).count();
                if entries.last().is_some_and(|e| e.offset.next() >= end) {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), read).await;
        assert!(left <= 4, "{left} records are left of owner {owner}");
    }
    let GroupEvent::Assigned(assigned) = ({
        let (log, group) = claimed.process(0);
        let mut membership = log.join(group);
        membership.next().await.unwrap()
    }) else {
        panic!("not assigned")
    };
    assert_eq!(assigned[0].committed, Some(commit(399, "x")));
}

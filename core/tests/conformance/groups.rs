//! Promises 3 and 4: one owner at a time, and a partition moves in order.

use std::collections::BTreeSet;
use std::time::Duration;

use bluebox_core::clock::Moment;
use bluebox_core::log::{GroupSpec, LogError, Offset, Topic, TopicPartition};

use crate::fixture::{Fixture, Member, append_all, commit, plain, text};

pub async fn one_member_gets_every_partition(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 5).await;
    let mut member = Member::join(&*log, fixture.group(&[&topic]));
    member.until(|m| m.owned.len() == 5).await;
    assert!(member.owned.values().all(|a| a.committed.is_none()), "there never was a commit");
    if fixture.knows_the_dead() {
        assert!(member.owned.values().all(|a| a.former_is_gone), "there never was an owner");
    }
}

pub async fn nothing_is_read_before_start_and_never_more_than_wanted(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 1).await;
    let of = topic.partition(0);
    append_all(&*log, &of, (0..50).map(|n| n.to_string())).await;
    let mut member = Member::join(&*log, fixture.group(&[&topic]));
    member.until(|m| m.owned.len() == 1).await;
    member.for_a_while().await;
    assert_eq!(member.records.len(), 0, "before start");
    let control = member.membership.control().clone();
    control.start(&of, Offset::new(10));
    member.for_a_while().await;
    assert_eq!(member.records.len(), 0, "nothing was wanted");
    control.want(&of, 7);
    member.until(|m| m.records.len() >= 7).await;
    member.for_a_while().await;
    assert_eq!(member.texts(), (10..17).map(|n| n.to_string()).collect::<Vec<_>>());
    control.want(&of, 100);
    member.until(|m| m.records.len() >= 40).await;
    append_all(&*log, &of, (50..120).map(|n| n.to_string())).await;
    member.until(|m| m.records.len() >= 107).await;
    member.for_a_while().await;
    assert_eq!(member.texts(), (10..117).map(|n| n.to_string()).collect::<Vec<_>>(), "in order, as many as were wanted");
}

pub async fn want_replaces_what_was_wanted_before(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 1).await;
    let of = topic.partition(0);
    let mut member = Member::join(&*log, fixture.group(&[&topic]));
    member.until(|m| m.owned.len() == 1).await;
    let control = member.membership.control().clone();
    control.start(&of, Offset::default());
    control.want(&of, 1_000);
    control.want(&of, 3);
    member.for_a_while().await;
    append_all(&*log, &of, (0..10).map(|n| n.to_string())).await;
    member.until(|m| m.records.len() >= 3).await;
    control.want(&of, 5);
    control.want(&of, 0);
    // What was on its way between the two may have come: no more than 5, and then no more at all.
    member.for_a_while().await;
    let paused_at = member.records.len();
    assert!(paused_at <= 8);
    member.for_a_while().await;
    assert_eq!(member.records.len(), paused_at, "paused");
    control.want(&of, 2);
    member.until(|m| m.records.len() >= paused_at + 2).await;
    member.for_a_while().await;
    assert_eq!(member.texts(), (0..paused_at + 2).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn disjoint(a: &Member, b: &Member) -> bool {
    a.owned.keys().all(|p| !b.owned.contains_key(p))
}

pub async fn members_share_and_each_partition_has_one_owner(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 8).await;
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    a.until(|m| m.owned.len() == 8).await;
    let mut b = Member::join(&*two, group);
    a.both_until(&mut b, |a, b| {
        assert!(disjoint(a, b), "two owners of one partition");
        a.owned.len() == 4 && b.owned.len() == 4
    })
    .await;
    assert!(b.owned.values().all(|assignment| assignment.former_is_gone == fixture.knows_the_dead()), "the former owner released them");
    assert!(a.lost.is_empty(), "a live owner loses nothing");
    // Sticky: nothing moves that need not.
    let (of_a, of_b): (BTreeSet<_>, BTreeSet<_>) = (a.owned.keys().cloned().collect(), b.owned.keys().cloned().collect());
    tokio::join!(a.for_a_while(), b.for_a_while());
    assert!(of_a.iter().eq(a.owned.keys()) && of_b.iter().eq(b.owned.keys()));
}

pub async fn a_partition_moves_only_after_its_release(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 2).await;
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    a.until(|m| m.owned.len() == 2).await;
    a.releases = false;
    let mut b = Member::join(&*two, group);
    a.both_until(&mut b, |a, _| a.revoking.len() == 1).await;
    // It keeps what it was asked for, for longer than a session, and works on it.
    let asked_for = a.revoking[0].clone();
    let control = a.membership.control().clone();
    control.start(&asked_for, Offset::default());
    control.want(&asked_for, 10);
    append_all(&*one, &asked_for, ["still mine".to_owned()]).await;
    a.both_until(&mut b, |a, _| a.records.len() == 1).await;
    let kept_for = fixture.session_timeout() + Duration::from_millis(500);
    let kept_until = tokio::time::Instant::now() + kept_for;
    let given_away = tokio::time::timeout_at(kept_until, a.both_until(&mut b, |_, b| !b.owned.is_empty())).await;
    assert!(given_away.is_err(), "it was given away before it was released");
    control.commit(vec![(asked_for.clone(), commit(1, "before release"))]).await.unwrap();
    a.release(vec![asked_for.clone()]);
    a.both_until(&mut b, |_, b| b.owned.contains_key(&asked_for)).await;
    let assignment = &b.owned[&asked_for];
    assert_eq!(assignment.committed, Some(commit(1, "before release")));
    assert_eq!(assignment.former_is_gone, fixture.knows_the_dead());
    assert!(a.lost.is_empty());
}

pub async fn a_commit_is_what_the_next_owner_gets(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 2).await;
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    a.until(|m| m.owned.len() == 2).await;
    append_all(&*one, &topic.partition(0), (0..5).map(|n| n.to_string())).await;
    let control = a.membership.control().clone();
    control.commit(vec![(topic.partition(0), commit(2, "first"))]).await.unwrap();
    control.commit(vec![(topic.partition(0), commit(3, "a note"))]).await.unwrap();
    control.leave().await.unwrap();
    let mut b = Member::join(&*two, group);
    b.until(|m| m.owned.len() == 2).await;
    assert_eq!(b.owned[&topic.partition(0)].committed, Some(commit(3, "a note")));
    assert_eq!(b.owned[&topic.partition(1)].committed, None);
}

pub async fn metadata_of_four_thousand_bytes_is_kept(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 1).await;
    let group = fixture.group(&[&topic]);
    let mut member = Member::join(&*log, group.clone());
    member.until(|m| m.owned.len() == 1).await;
    let printable: String = (0..4_000u32).map(|n| char::from(b' ' + u8::try_from(n % 95).unwrap())).collect();
    let commits = vec![(topic.partition(0), commit(7, &printable))];
    member.membership.control().commit(commits).await.unwrap();
    assert_eq!(log.committed(&group.name, vec![topic.partition(0)]).await.unwrap(), [Some(commit(7, &printable))]);
}

pub async fn a_commit_after_a_release_is_fenced(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 2).await;
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    a.until(|m| m.owned.len() == 2).await;
    let mut b = Member::join(&*two, group.clone());
    a.both_until(&mut b, |a, b| a.owned.len() == 1 && b.owned.len() == 1).await;
    let moved = b.owned.keys().next().unwrap().clone();
    let control = a.membership.control().clone();
    let fenced = control.commit(vec![(moved.clone(), commit(9, "too late"))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert_eq!(one.committed(&group.name, vec![moved]).await.unwrap(), [None]);
}

pub async fn a_commit_is_all_or_nothing(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 2).await;
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    let mut b = Member::join(&*two, group.clone());
    a.both_until(&mut b, |a, b| a.owned.len() == 1 && b.owned.len() == 1).await;
    let mine = a.owned.keys().next().unwrap().clone();
    let others = b.owned.keys().next().unwrap().clone();
    let control = a.membership.control().clone();
    let fenced = control.commit(vec![(mine.clone(), commit(1, "mine")), (others.clone(), commit(1, "not mine"))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert_eq!(one.committed(&group.name, vec![mine.clone(), others.clone()]).await.unwrap(), [None, None]);
    control.commit(vec![(mine.clone(), commit(1, "mine"))]).await.unwrap();
    assert_eq!(one.committed(&group.name, vec![mine, others]).await.unwrap(), [Some(commit(1, "mine")), None]);
}

pub async fn a_commit_takes_along_what_the_group_does_not_share(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let (topic, beside) = (fixture.topic(&*one, 2).await, fixture.topic(&*one, 2).await);
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    a.until(|m| m.owned.len() == 2).await;
    let both = vec![(topic.partition(0), commit(1, "shared")), (beside.partition(0), commit(2, "beside"))];
    a.membership.control().commit(both).await.unwrap();
    let of = vec![beside.partition(0), beside.partition(1), topic.partition(0)];
    assert_eq!(two.committed(&group.name, of).await.unwrap(), [Some(commit(2, "beside")), None, Some(commit(1, "shared"))]);
    // With one that is not its own, it is nothing.
    let mut b = Member::join(&*two, group.clone());
    a.both_until(&mut b, |a, b| a.owned.len() == 1 && b.owned.len() == 1).await;
    let others = b.owned.keys().next().unwrap().clone();
    let fenced = a.membership.control().commit(vec![(beside.partition(1), commit(3, "")), (others, commit(3, ""))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert_eq!(one.committed(&group.name, vec![beside.partition(1)]).await.unwrap(), [None]);
}

pub async fn the_moment_of_a_commit_lies_before_its_answer(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 1).await;
    let mut member = Member::join(&*log, fixture.group(&[&topic]));
    member.until(|m| m.owned.len() == 1).await;
    for n in 1..20 {
        let before = Moment::now();
        let at = member.membership.control().commit(vec![(topic.partition(0), commit(n, ""))]).await.unwrap();
        assert!(before <= at && at <= Moment::now());
    }
}

pub async fn commits_can_be_read_from_outside(fixture: impl Fixture) {
    let (inside, outside) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*inside, 3).await;
    let group = fixture.group(&[&topic]);
    let all: Vec<TopicPartition> = (0..3).map(|p| topic.partition(p)).collect();
    assert_eq!(outside.committed(&group.name, all.clone()).await.unwrap(), [None, None, None], "a group that never was");
    let mut member = Member::join(&*inside, group.clone());
    member.until(|m| m.owned.len() == 3).await;
    let control = member.membership.control().clone();
    control.commit(vec![(topic.partition(0), commit(4, "zero")), (topic.partition(2), commit(0, ""))]).await.unwrap();
    assert_eq!(outside.committed(&group.name, all.clone()).await.unwrap(), [Some(commit(4, "zero")), None, Some(commit(0, ""))]);
    control.leave().await.unwrap();
    assert_eq!(outside.committed(&group.name, vec![all[2].clone(), all[0].clone()]).await.unwrap(), [Some(commit(0, "")), Some(commit(4, "zero"))]);
}

pub async fn leaving_hands_everything_over_at_once(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 4).await;
    let group = fixture.group(&[&topic]);
    let mut a = Member::join(&*one, group.clone());
    let mut b = Member::join(&*two, group);
    a.both_until(&mut b, |a, b| a.owned.len() == 2 && b.owned.len() == 2).await;
    let leaving = tokio::time::Instant::now();
    let kept = a.membership.control().clone();
    kept.leave().await.unwrap();
    b.until(|b| b.owned.len() == 4).await;
    assert!(leaving.elapsed() < fixture.session_timeout(), "no session had to run out");
    assert!(b.owned.values().all(|assignment| assignment.former_is_gone == fixture.knows_the_dead()));
    // What was decided before it left may still be said; then there is nothing more.
    while let Some(event) = a.membership.next().await {
        assert!(!matches!(event, bluebox_core::log::GroupEvent::Assigned(_)), "{event:?}");
    }
    let fenced = kept.commit(vec![(topic.partition(0), commit(1, ""))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
}

pub async fn a_dropped_member_is_dead(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 4).await;
    let group = GroupSpec { lease: fixture.session_timeout(), ..fixture.group(&[&topic]) };
    let mut a = Member::join(&*one, group.clone());
    let mut b = Member::join(&*two, group);
    a.both_until(&mut b, |a, b| a.owned.len() == 2 && b.owned.len() == 2).await;
    let inherited: BTreeSet<_> = a.owned.keys().cloned().collect();
    a.membership.control().commit(vec![(inherited.first().unwrap().clone(), commit(3, "last words"))]).await.unwrap();
    drop(a);
    drop(one);
    b.until(|b| b.owned.len() == 4).await;
    assert_eq!(b.owned[inherited.first().unwrap()].committed, Some(commit(3, "last words")));
    for partition in &inherited {
        assert_eq!(b.owned[partition].former_is_gone, fixture.knows_the_dead() || fixture.leases_end_with_sessions());
    }
}

pub async fn a_late_release_is_a_death(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 2).await;
    let mut group = fixture.group(&[&topic]);
    group.release_timeout = Duration::from_secs(1);
    let mut a = Member::join(&*one, group.clone());
    a.until(|m| m.owned.len() == 2).await;
    a.releases = false;
    let old = a.membership.control().clone();
    let mut b = Member::join(&*two, group);
    let mut of_b = BTreeSet::new();
    a.both_until(&mut b, |a, b| {
        of_b.extend(b.owned.keys().cloned());
        a.lost.len() == 2 && !b.owned.is_empty()
    })
    .await;
    assert!(b.owned.values().all(|assignment| !assignment.former_is_gone), "it may act on");
    let taken = b.owned.keys().next().unwrap().clone();
    let fenced = old.commit(vec![(taken, commit(1, "zombie"))]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    // It becomes a member again by itself.
    a.releases = true;
    a.both_until(&mut b, |a, b| a.owned.len() == 1 && b.owned.len() == 1).await;
}

pub async fn a_member_waits_for_a_topic_that_is_made_later(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = Topic::new(&fixture.name("later"));
    let mut member = Member::join(&*log, fixture.group(&[&topic]));
    member.until(|m| !m.trouble.is_empty()).await;
    assert!(member.trouble[0].contains(topic.as_str()), "{:?}", member.trouble);
    log.create_topics(vec![plain(&topic, 2)]).await.unwrap();
    member.until(|m| m.owned.len() == 2).await;
}

pub async fn groups_do_not_share(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 2).await;
    let (one, two) = (fixture.group(&[&topic]), fixture.group(&[&topic]));
    let mut a = Member::join(&*log, one.clone());
    let mut b = Member::join(&*log, two.clone());
    a.both_until(&mut b, |a, b| a.owned.len() == 2 && b.owned.len() == 2).await;
    append_all(&*log, &topic.partition(0), ["for both".to_owned()]).await;
    for member in [&mut a, &mut b] {
        let control = member.membership.control().clone();
        control.start(&topic.partition(0), Offset::default());
        control.want(&topic.partition(0), 1);
        member.until(|m| m.records.len() == 1).await;
        assert_eq!(text(&member.records[0].1), "for both");
    }
    a.membership.control().commit(vec![(topic.partition(0), commit(1, "a"))]).await.unwrap();
    assert_eq!(log.committed(&two.name, vec![topic.partition(0)]).await.unwrap(), [None]);
}

pub async fn topics_of_a_group_are_shared_evenly(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let (first, second) = (fixture.topic(&*one, 3).await, fixture.topic(&*one, 3).await);
    let group = fixture.group(&[&first, &second]);
    let mut a = Member::join(&*one, group.clone());
    let mut b = Member::join(&*two, group);
    a.both_until(&mut b, |a, b| a.owned.len() + b.owned.len() == 6 && a.owned.len() >= 2 && b.owned.len() >= 2 && disjoint(a, b)).await;
}

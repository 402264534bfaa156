//! The faults that a test can give a client of the embedded log: each does what its documentation says, because other tests build on that.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::log::embedded::{AppendFault, Embedded};
use bluebox_core::log::{AppendError, Assignment, Committed, GroupEvent, GroupSpec, Health, LogError, Membership, Offset, Read, Record, Topic, TopicSpec};

const SESSION: Duration = Duration::from_millis(300);

async fn topic(log: &Embedded, partitions: u32) -> Topic {
    let topic = Topic::new("topic");
    log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions, retention: None, compacted: false, compaction_lag: None }]).await.unwrap();
    topic
}

fn group(topic: &Topic) -> GroupSpec {
    GroupSpec { name: "group".to_owned(), topics: vec![topic.clone()], session_timeout: SESSION, release_timeout: Duration::from_secs(60), lease: 2 * SESSION }
}

fn commit(topic: &Topic, offset: u64) -> Vec<(bluebox_core::log::TopicPartition, Committed)> {
    vec![(topic.partition(0), Committed { offset: Offset::new(offset), metadata: String::new() })]
}

/// The next event, which comes within some seconds of the test's own (paused) time.
async fn next(member: &mut Membership) -> GroupEvent {
    tokio::time::timeout(Duration::from_secs(30), member.next()).await.expect("something happens").expect("it goes on")
}

async fn assigned(member: &mut Membership) -> Vec<Assignment> {
    match next(member).await {
        GroupEvent::Assigned(assignments) => assignments,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_zombie_goes_on_until_it_wakes_up() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let (one, two) = (log.client(), log.client());
    let mut zombie = one.join(group(&topic));
    assigned(&mut zombie).await;
    zombie.control().start(&topic.partition(0), Offset::default());
    zombie.control().want(&topic.partition(0), 10);
    zombie.control().commit(commit(&topic, 1)).await.unwrap();

    let mut heir = two.join(group(&topic));
    one.stop_heartbeats();
    zombie.control().commit(commit(&topic, 2)).await.expect("its session has not run out");
    let inherited = assigned(&mut heir).await;
    assert_eq!(inherited[0].committed.as_ref().map(|c| c.offset), Some(Offset::new(2)));
    assert!(!inherited[0].former_is_gone, "it may be a zombie");

    // It reads, appends, and is told nothing; but it can't commit.
    one.append(&topic.partition(0), Record::new("from a zombie".into())).await.unwrap();
    assert!(matches!(next(&mut zombie).await, GroupEvent::Records { entries, .. } if entries.len() == 1));
    let fenced = zombie.control().commit(commit(&topic, 9)).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    tokio::time::sleep(10 * SESSION).await;
    assert_eq!(zombie.try_next(), None);
    heir.control().commit(commit(&topic, 3)).await.unwrap();

    one.resume_heartbeats();
    assert_eq!(next(&mut zombie).await, GroupEvent::Lost(vec![topic.partition(0)]));
    // It is a member again: when the heir is gone, it gets what is left. The zombie of that time is the heir's predecessor still.
    two.kill();
    let again = assigned(&mut zombie).await;
    assert_eq!(again[0].committed.as_ref().map(|c| c.offset), Some(Offset::new(3)));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_no_longer_than_the_session_ends_with_it() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let (one, two) = (log.client(), log.client());
    let mut zombie = one.join(GroupSpec { lease: SESSION, ..group(&topic) });
    assigned(&mut zombie).await;
    one.stop_heartbeats();
    tokio::time::sleep(SESSION / 2).await;
    let sent = tokio::time::Instant::now();
    zombie.control().commit(commit(&topic, 1)).await.expect("its session has not run out");
    let mut heir = two.join(group(&topic));
    assert!(assigned(&mut heir).await[0].former_is_gone);
    assert!(sent.elapsed() >= SESSION, "a commit is a sign of life");
}

#[tokio::test(start_paused = true)]
async fn a_commit_from_before_a_loss_does_not_count_after_it() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let client = log.client();
    let mut member = client.join(group(&topic));
    assigned(&mut member).await;
    client.stop_heartbeats();
    tokio::time::sleep(3 * SESSION).await;
    client.resume_heartbeats();
    tokio::time::sleep(SESSION).await;
    // Alone in its group, it could have got the partition back; but it has not taken the news yet.
    let fenced = member.control().commit(commit(&topic, 1)).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert_eq!(next(&mut member).await, GroupEvent::Lost(vec![topic.partition(0)]));
    assigned(&mut member).await;
    member.control().commit(commit(&topic, 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_killed_client_is_known_to_be_gone() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let (one, two) = (log.client(), log.client());
    let mut dead = one.join(group(&topic));
    assigned(&mut dead).await;
    let mut reader = one.read(&topic.partition(0), Offset::default());
    let mut heir = two.join(group(&topic));
    let killed = tokio::time::Instant::now();
    one.kill();
    assert!(assigned(&mut heir).await[0].former_is_gone);
    assert!(killed.elapsed() < SESSION, "at once");
    assert_eq!(dead.next().await, None);
    assert_eq!(reader.next().await, None);
    let refused = one.append(&topic.partition(0), Record::new("dead".into())).await;
    assert!(matches!(refused, Err(AppendError::NotPersisted(_))), "{refused:?}");
    assert!(matches!(dead.control().commit(commit(&topic, 1)).await, Err(LogError::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_zombie_that_dies_is_gone_for_all_who_come_after() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let (one, two, three) = (log.client(), log.client(), log.client());
    let mut zombie = one.join(group(&topic));
    assigned(&mut zombie).await;
    one.stop_heartbeats();
    let mut heir = two.join(group(&topic));
    assert!(!assigned(&mut heir).await[0].former_is_gone);
    // The heir dies before it has handed over in order: the zombie may still act on what it owned.
    two.kill();
    let mut next_heir = three.join(group(&topic));
    assert!(!assigned(&mut next_heir).await[0].former_is_gone);
    one.kill();
    drop(next_heir);
    let mut last = three.join(group(&topic));
    assert!(assigned(&mut last).await[0].former_is_gone);
}

#[tokio::test(start_paused = true)]
async fn a_disconnected_client_can_do_nothing_until_it_is_back() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let (client, other) = (log.client(), log.client());
    let mut reader = client.read(&topic.partition(0), Offset::default());
    let mut member = client.join(group(&topic));
    assigned(&mut member).await;
    client.disconnect();
    assert!(matches!(*client.health().borrow(), Health::Away(_)));
    let refused = client.append(&topic.partition(0), Record::new("away".into())).await;
    assert!(matches!(refused, Err(AppendError::NotPersisted(_))), "{refused:?}");
    assert!(matches!(member.control().commit(commit(&topic, 1)).await, Err(LogError::Unavailable(_))));
    assert!(matches!(client.bounds(&topic.partition(0)).await, Err(LogError::Unavailable(_))));
    other.append(&topic.partition(0), Record::new("meanwhile".into())).await.unwrap();
    assert!(tokio::time::timeout(10 * SESSION, reader.next()).await.is_err(), "readers wait");
    client.reconnect();
    assert_eq!(*client.health().borrow(), Health::Up);
    assert!(matches!(reader.next().await, Some(Read::Entries(entries)) if entries.len() == 1));
    assert_eq!(next(&mut member).await, GroupEvent::Lost(vec![topic.partition(0)]));
    assigned(&mut member).await;
}

#[tokio::test(start_paused = true)]
async fn appends_fail_as_they_are_told_to() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 2).await;
    let client = log.client();
    let append = |text: &'static str| client.append(&topic.partition(0), Record::new(text.into()));
    client.fail_appends(AppendFault::Refuse, None);
    assert!(matches!(append("refused").await, Err(AppendError::NotPersisted(_))));
    client.fail_appends(AppendFault::LoseRecord, Some(&topic));
    assert!(matches!(append("lost").await, Err(AppendError::Unknown(_))));
    client.fail_appends(AppendFault::LoseAck, Some(&topic));
    assert!(matches!(append("stored").await, Err(AppendError::Unknown(_))));
    client.fail_appends(AppendFault::HoldAck, Some(&topic));
    let mut held = append("held");
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut held).await.is_err());
    client.fail_appends(AppendFault::Refuse, Some(&Topic::new("another")));
    append("not concerned").await.unwrap();
    client.heal();
    assert_eq!(held.await.unwrap().offset, Offset::new(1));
    let Some(Read::Entries(entries)) = log.read(&topic.partition(0), Offset::default()).next().await else { panic!("entries") };
    let texts: Vec<_> = entries.iter().map(|e| e.record.value.clone().unwrap()).collect();
    assert_eq!(texts, ["stored", "held", "not concerned"]);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_nobody_uses_ends() {
    let log = Embedded::in_memory();
    let topic = topic(&log, 1).await;
    let mut reader = log.read(&topic.partition(0), Offset::default());
    let mut member = log.join(group(&topic));
    assigned(&mut member).await;
    drop(log);
    assert_eq!(reader.next().await, None);
    assert_eq!(member.next().await, None);
}

#[test]
fn it_can_be_used_outside_of_a_runtime() {
    let log = Embedded::in_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let topic = topic(&log, 1).await;
        let mut member = log.join(group(&topic));
        assigned(&mut member).await;
    });
}

//! What the log no longer has.

use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::log::{Bounds, GroupEvent, Offset, Read, Record, Topic, TopicPartition, TopicSpec};
use bytes::Bytes;

use crate::fixture::{Fixture, Member, append_all, record, take, text};

/// A partition of which 0 to 4 were deleted and 5 to 9 are there; `None` where the log can't be made to do so.
async fn beheaded(fixture: &impl Fixture, log: &dyn Log) -> Option<TopicPartition> {
    let topic = Topic::new(&fixture.name("short"));
    let hour = Some(Duration::from_secs(3600));
    log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: hour, compacted: false, compaction_lag: None }]).await.unwrap();
    let of = topic.partition(0);
    append_all(log, &of, (0..5).map(|n| n.to_string())).await;
    let last = log.append(&of, record("5")).await.unwrap();
    // The clock has to go on, so that times tell them apart.
    while bluebox_core::clock::wall_clock() <= last.timestamp {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let first_kept = log.append(&of, record("6")).await.unwrap();
    append_all(log, &of, (7..10).map(|n| n.to_string())).await;
    if !fixture.delete_below(&of, first_kept).await {
        eprintln!("NOT TESTED: this log can't be made to delete records");
        return None;
    }
    assert_eq!(log.bounds(&of).await.unwrap(), Bounds { start: Offset::new(6), end: Offset::new(10) });
    Some(of)
}

pub async fn a_reader_is_told_of_what_is_gone(fixture: impl Fixture) {
    let log = fixture.client();
    let Some(of) = beheaded(&fixture, &*log).await else { return };
    let mut reader = log.read(&of, Offset::new(2));
    assert_eq!(reader.next().await, Some(Read::Truncated { wanted: Offset::new(2), start: Offset::new(6) }));
    let entries = take(&mut reader, 4).await;
    assert!(entries.iter().enumerate().all(|(n, e)| e.offset == Offset::new(n as u64 + 6) && text(e) == (n + 6).to_string()));
    // From the start on, nothing is missing.
    assert_eq!(take(&mut log.read(&of, Offset::new(6)), 4).await, entries);
}

pub async fn a_member_is_told_of_what_is_gone(fixture: impl Fixture) {
    let log = fixture.client();
    let Some(of) = beheaded(&fixture, &*log).await else { return };
    let mut member = Member::join(&*log, fixture.group(&[&of.topic]));
    member.until(|m| m.owned.len() == 1).await;
    let control = member.membership.control().clone();
    control.start(&of, Offset::new(3));
    control.want(&of, 10);
    let event = member.membership.next().await;
    assert_eq!(event, Some(GroupEvent::Truncated { partition: of.clone(), wanted: Offset::new(3), start: Offset::new(6) }));
    member.until(|m| m.records.len() == 4).await;
    assert_eq!(member.texts(), ["6", "7", "8", "9"]);
}

pub async fn compaction_keeps_the_last_record_of_each_key(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = Topic::new(&fixture.name("compacted"));
    log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: None, compacted: true, compaction_lag: None }]).await.unwrap();
    let of = topic.partition(0);
    let key = |n: u64| Bytes::from(format!("key-{}", n % 4));
    let keyed = |n: u64| Record::keyed(key(n), n.to_string().into());
    for n in 0..20 {
        log.append(&of, keyed(n)).await.unwrap();
    }
    log.append(&of, Record { key: key(1), value: None }).await.unwrap();
    if !fixture.compact().await {
        eprintln!("NOT TESTED: this log can't be made to compact");
        return;
    }
    assert_eq!(log.bounds(&of).await.unwrap().end, Offset::new(21));
    let entries = take(&mut log.read(&of, Offset::default()), 4).await;
    let offsets: Vec<_> = entries.iter().map(|e| e.offset.get()).collect();
    assert_eq!(offsets, [16, 18, 19, 20]);
    assert_eq!(entries[3].record, Record { key: key(1), value: None });
    // A reader in the middle of what is gone goes on behind it; that is no loss.
    assert_eq!(take(&mut log.read(&of, Offset::new(5)), 4).await, entries);
    assert_eq!(log.append(&of, keyed(2)).await.unwrap().offset, Offset::new(21));
}

pub async fn compaction_leaves_alone_what_is_young(fixture: impl Fixture) {
    let log = fixture.client();
    for (lag, left) in [(Duration::from_secs(3600), 20), (Duration::ZERO, 4)] {
        let topic = Topic::new(&fixture.name("lag"));
        log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: None, compacted: true, compaction_lag: Some(lag) }]).await.unwrap();
        let of = topic.partition(0);
        let mut last = None;
        for n in 0..20_u64 {
            let record = Record::keyed(Bytes::from(format!("key-{}", n % 4)), n.to_string().into());
            last = Some(log.append(&of, record).await.unwrap().timestamp);
        }
        // The last one is old then too.
        while Some(bluebox_core::clock::wall_clock()) <= last {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !fixture.compact().await {
            eprintln!("NOT TESTED: this log can't be made to compact");
            return;
        }
        let entries = take(&mut log.read(&of, Offset::default()), left).await;
        assert_eq!(entries.first().map(|e| e.offset), Some(Offset::new(20 - left as u64)), "{lag:?}");
        assert_eq!(entries.last().map(|e| e.offset), Some(Offset::new(19)), "{lag:?}");
    }
}

//! Promises 1 and 2: what was acknowledged is durable, has one offset, and is read by everybody in order.

use std::collections::BTreeSet;

use bluebox_core::log::{AppendError, Offset, Record, Topic};
use bytes::Bytes;

use crate::fixture::{Fixture, append_all, record, take, text};

pub async fn offsets_count_up_from_zero_in_the_order_of_the_appends(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    // Made without waiting for each other.
    let appends: Vec<_> = (0..500).map(|n| log.append(&to, record(format!("{n}")))).collect();
    for (n, append) in appends.into_iter().enumerate() {
        assert_eq!(append.await.unwrap().offset, Offset::new(n as u64));
    }
    let entries = take(&mut log.read(&to, Offset::default()), 500).await;
    for (n, entry) in entries.iter().enumerate() {
        assert_eq!((entry.offset, text(entry)), (Offset::new(n as u64), n.to_string()));
    }
}

pub async fn an_acknowledged_append_is_read_by_every_reader(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let to = fixture.topic(&*one, 1).await.partition(0);
    let mut readers: Vec<_> = (0..8).map(|n| if n % 2 == 0 { one.read(&to, Offset::default()) } else { two.read(&to, Offset::default()) }).collect();
    append_all(&*one, &to, (0..100).map(|n| n.to_string())).await;
    for reader in &mut readers {
        let texts: Vec<_> = take(reader, 100).await.iter().map(text).collect();
        assert_eq!(texts, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

pub async fn timestamps_are_the_logs_and_never_go_back(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    let before = bluebox_core::clock::wall_clock();
    let mut acknowledged = Vec::new();
    for n in 0..50 {
        acknowledged.push(log.append(&to, record(n.to_string())).await.unwrap());
    }
    let after = bluebox_core::clock::wall_clock();
    let entries = take(&mut log.read(&to, Offset::default()), 50).await;
    assert!(entries.is_sorted_by_key(|e| e.timestamp));
    assert!(entries[0].timestamp >= before && entries[49].timestamp <= after, "not the time of the append");
    for (entry, appended) in entries.iter().zip(acknowledged) {
        assert_eq!((entry.offset, entry.timestamp), (appended.offset, appended.timestamp), "the acknowledgement says what readers see");
    }
}

pub async fn a_record_comes_back_bit_for_bit(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    let records = [
        Record { key: Bytes::new(), value: Some(Bytes::new()) },
        Record { key: Bytes::from_static(b"\0\xff key"), value: Some(Bytes::from((0..=255).collect::<Vec<u8>>())) },
        Record { key: Bytes::from_static(b"gone"), value: None },
        Record::new(Bytes::from(vec![b'x'; 300 << 10])),
    ];
    for record in &records {
        log.append(&to, record.clone()).await.unwrap();
    }
    let entries = take(&mut log.read(&to, Offset::default()), records.len()).await;
    assert!(entries.iter().map(|e| &e.record).eq(&records), "records differ");
}

pub async fn a_record_over_the_limit_is_refused_and_not_there(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    let limit = log.max_record_bytes();
    assert!(limit >= 512 << 10, "chunks of bodies must fit: {limit}");
    let key = Bytes::from_static(b"key");
    let too_large = log.append(&to, Record::keyed(key.clone(), Bytes::from(vec![0; limit - 2]))).await;
    assert_eq!(too_large, Err(AppendError::TooLarge { size_bytes: limit + 1, limit_bytes: limit }));
    let fits = log.append(&to, Record::keyed(key, Bytes::from(vec![0; limit - 3]))).await.unwrap();
    assert_eq!(fits.offset, Offset::new(0));
    assert_eq!(take(&mut log.read(&to, Offset::default()), 1).await[0].record.value.as_ref().map(Bytes::len), Some(limit - 3));
}

pub async fn an_append_to_nowhere_is_not_persisted(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 2).await;
    let beyond = log.append(&topic.partition(2), record("x")).await;
    assert!(matches!(beyond, Err(AppendError::NotPersisted(_))), "{beyond:?}");
    let nowhere = log.append(&Topic::new(&fixture.name("nowhere")).partition(0), record("x")).await;
    assert!(matches!(nowhere, Err(AppendError::NotPersisted(_))), "{nowhere:?}");
}

pub async fn appends_of_many_clients_do_not_lose_or_repeat(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    let mut tasks = Vec::new();
    for client in 0..4 {
        let (log, to) = (fixture.client(), to.clone());
        tasks.push(tokio::spawn(async move {
            let mut offsets = Vec::new();
            for n in 0..100 {
                offsets.push(log.append(&to, record(format!("{client}-{n:03}"))).await.unwrap().offset);
            }
            offsets
        }));
    }
    let mut offsets = BTreeSet::new();
    for task in tasks {
        let of_one = task.await.unwrap();
        assert!(of_one.is_sorted());
        offsets.extend(of_one);
    }
    assert_eq!(offsets.len(), 400);
    let entries = take(&mut log.read(&to, Offset::default()), 400).await;
    for client in 0..4 {
        let texts: Vec<_> = entries.iter().map(text).filter(|t| t.starts_with(&format!("{client}-"))).collect();
        assert!(texts.len() == 100 && texts.is_sorted());
    }
}

//! Readers: every record of a partition, in order, to everybody who asks.

use std::time::Duration;

use bluebox_core::log::{Bounds, LogError, Offset, Topic};

use crate::fixture::{Fixture, append_all, record, take, text};

pub async fn a_reader_waits_for_what_is_appended_later(fixture: impl Fixture) {
    let (writer, reader) = (fixture.client(), fixture.client());
    let to = fixture.topic(&*writer, 1).await.partition(0);
    let mut reader = reader.read(&to, Offset::default());
    assert!(tokio::time::timeout(Duration::from_millis(200), reader.next()).await.is_err(), "nothing is there yet");
    for n in 0..20 {
        writer.append(&to, record(n.to_string())).await.unwrap();
        assert_eq!(text(&take(&mut reader, 1).await[0]), n.to_string());
    }
}

pub async fn a_reader_above_the_end_gets_nothing_below_where_it_asked(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    append_all(&*log, &to, (0..3).map(|n| n.to_string())).await;
    let mut reader = log.read(&to, Offset::new(5));
    append_all(&*log, &to, (3..8).map(|n| n.to_string())).await;
    let texts: Vec<_> = take(&mut reader, 3).await.iter().map(text).collect();
    assert_eq!(texts, ["5", "6", "7"]);
}

pub async fn a_reader_that_is_not_read_holds_nobody_up(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    let mut lazy = log.read(&to, Offset::default());
    let large = "x".repeat(100_000);
    for n in 0..60 {
        log.append(&to, record(format!("{n} {large}"))).await.unwrap();
    }
    assert_eq!(take(&mut log.read(&to, Offset::default()), 60).await.len(), 60);
    let late = take(&mut lazy, 60).await;
    assert!(late.iter().enumerate().all(|(n, e)| e.offset == Offset::new(n as u64)));
}

pub async fn a_reader_that_was_given_up_while_much_waited_holds_up_none_that_comes_later(fixture: impl Fixture) {
    let log = fixture.client();
    let to = fixture.topic(&*log, 1).await.partition(0);
    let large = "x".repeat(100_000);
    for n in 0..60 {
        log.append(&to, record(format!("{n} {large}"))).await.unwrap();
    }
    let reading = async {
        for _ in 0..3 {
            let mut hasty = log.read(&to, Offset::default());
            assert_eq!(take(&mut hasty, 1).await[0].offset, Offset::default());
            // It is full before it goes: another one is read to its end meanwhile.
            assert_eq!(take(&mut log.read(&to, Offset::default()), 60).await.len(), 60);
            drop(hasty);
        }
    };
    // Sooner than any watchdog would help.
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("whoever comes later is served at once");
}

pub async fn bounds_include_everything_that_was_acknowledged(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let to = fixture.topic(&*one, 1).await.partition(0);
    assert_eq!(two.bounds(&to).await.unwrap(), Bounds { start: Offset::new(0), end: Offset::new(0) });
    for n in 0..20 {
        let appended = one.append(&to, record("x")).await.unwrap();
        assert_eq!(two.bounds(&to).await.unwrap(), Bounds { start: Offset::new(0), end: appended.offset.next() }, "after {n}");
    }
}

pub async fn the_ends_of_many_partitions_come_in_the_order_in_which_they_were_asked_for(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let (first, second) = (fixture.topic(&*one, 4).await, fixture.topic(&*one, 2).await);
    for n in 0..3 {
        for _ in 0..=n {
            one.append(&first.partition(n), record("x")).await.unwrap();
        }
    }
    one.append(&second.partition(1), record("x")).await.unwrap();
    let asked: Vec<_> = [(&second, 1), (&first, 2), (&first, 3), (&first, 0), (&second, 0)].map(|(topic, n)| topic.partition(n)).into();
    let ends: Vec<_> = two.ends(asked).await.unwrap().into_iter().map(Offset::get).collect();
    assert_eq!(ends, [1, 3, 0, 1, 0]);
    assert_eq!(two.ends(Vec::new()).await.unwrap(), []);
    let nowhere = two.ends(vec![Topic::new(&fixture.name("nowhere")).partition(0)]).await;
    assert!(nowhere.is_err(), "{nowhere:?}");
}

pub async fn bounds_of_nothing_are_not_found(fixture: impl Fixture) {
    let log = fixture.client();
    let nowhere = log.bounds(&Topic::new(&fixture.name("nowhere")).partition(0)).await;
    assert!(matches!(nowhere, Err(LogError::NotFound(_))), "{nowhere:?}");
    let topic = fixture.topic(&*log, 1).await;
    let beyond = log.bounds(&topic.partition(1)).await;
    assert!(matches!(beyond, Err(LogError::NotFound(_))), "{beyond:?}");
}

pub async fn a_reader_sees_partitions_apart(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 4).await;
    for n in 0..40 {
        log.append(&topic.partition(n % 4), record(n.to_string())).await.unwrap();
    }
    for partition in 0..4 {
        let texts: Vec<_> = take(&mut log.read(&topic.partition(partition), Offset::default()), 10).await.iter().map(text).collect();
        assert_eq!(texts, (0..10).map(|n| (4 * n + partition).to_string()).collect::<Vec<_>>());
    }
}

pub async fn what_comes_seldom_is_read_beside_the_rest(fixture: impl Fixture) {
    let log = fixture.client();
    let topic = fixture.topic(&*log, 2).await;
    let (rare, busy) = (topic.partition(0), topic.partition(1));
    let mut readers = [log.read_rare(&rare, Offset::default()), log.read_rare(&rare, Offset::default()), log.read(&rare, Offset::default())];
    let mut other = log.read(&busy, Offset::default());
    for n in 0..10 {
        append_all(&*log, &busy, [n.to_string()]).await;
        assert_eq!(text(&take(&mut other, 1).await[0]), n.to_string());
        append_all(&*log, &rare, [n.to_string()]).await;
        for reader in &mut readers {
            assert_eq!(text(&take(reader, 1).await[0]), n.to_string());
        }
    }
}

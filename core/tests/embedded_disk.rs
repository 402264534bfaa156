//! The embedded log on disk: what survives what.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bluebox_core::Log as _;
use bluebox_core::log::embedded::{Embedded, Fsync, OpenError, Options};
use bluebox_core::log::{
    AppendError, Bounds, Committed, Entry, GroupEvent, GroupSpec, Health, LogError, Offset, Read, Record, Timestamp, Topic, TopicPartition, TopicSpec,
};
use bytes::Bytes;

fn options(fsync: Fsync) -> Options {
    Options { fsync, ..Options::default() }
}

fn record(text: impl AsRef<str>) -> Record {
    Record::new(text.as_ref().as_bytes().to_vec().into())
}

fn text(entry: &Entry) -> String {
    String::from_utf8(entry.record.value.clone().unwrap().to_vec()).unwrap()
}

fn spec(topic: &Topic, partitions: u32) -> TopicSpec {
    TopicSpec { topic: topic.clone(), partitions, retention: None, compacted: false, compaction_lag: None }
}

async fn read(log: &Embedded, from: &TopicPartition, at: u64, count: usize) -> Vec<Entry> {
    let mut reader = log.read(from, Offset::new(at));
    let mut entries = Vec::new();
    let all = async {
        while entries.len() < count {
            match reader.next().await.unwrap() {
                Read::Entries(more) => entries.extend(more),
                Read::Truncated { wanted, start } => panic!("wanted {wanted}, starts at {start}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("they can be read");
    entries
}

async fn commit_one(log: &Embedded, group: &str, topic: &Topic, offset: u64, metadata: &str) {
    let second = Duration::from_secs(1);
    let spec = GroupSpec { name: group.to_owned(), topics: vec![topic.clone()], session_timeout: 10 * second, release_timeout: 10 * second, lease: second };
    let mut member = log.join(spec);
    assert!(matches!(member.next().await, Some(GroupEvent::Assigned(_))));
    let committed = Committed { offset: Offset::new(offset), metadata: metadata.to_owned() };
    member.control().commit(vec![(topic.partition(0), committed)]).await.unwrap();
    member.control().leave().await.unwrap();
}

#[tokio::test]
async fn everything_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, empty) = (Topic::new("kept"), Topic::new("empty"));
    for opening in 0..4 {
        let log = Embedded::open(dir.path(), Options::default()).unwrap();
        log.create_topics(vec![spec(&kept, 3), spec(&empty, 2)]).await.unwrap();
        assert_eq!(log.partitions(&kept).await.unwrap(), Some(3));
        let end = Offset::new(50 * opening);
        assert_eq!(log.bounds(&kept.partition(1)).await.unwrap(), Bounds { start: Offset::new(0), end });
        for n in 0..50 {
            let appended = log.append(&kept.partition(1), record(format!("{opening}-{n}"))).await.unwrap();
            assert_eq!(appended.offset, Offset::new(50 * opening + n));
        }
        let entries = read(&log, &kept.partition(1), 0, usize::try_from(50 * (opening + 1)).unwrap()).await;
        assert!(entries.iter().enumerate().all(|(n, e)| text(e) == format!("{}-{}", n / 50, n % 50)));
        assert!(entries.is_sorted_by_key(|e| e.timestamp));
        let before = log.committed("group", vec![kept.partition(0)]).await.unwrap();
        assert_eq!(before[0].as_ref().map(|c| c.offset.get()), opening.checked_sub(1));
        commit_one(&log, "group", &kept, opening, "note").await;
        assert_eq!(log.bounds(&empty.partition(1)).await.unwrap().end, Offset::new(0));
    }
}

#[tokio::test]
async fn an_owner_from_before_the_log_was_closed_may_live_on() {
    let dir = tempfile::tempdir().unwrap();
    let topic = Topic::new("topic");
    for opening in 0..2 {
        let log = Embedded::open(dir.path(), Options::default()).unwrap();
        log.create_topics(vec![spec(&topic, 1)]).await.unwrap();
        let minute = Duration::from_secs(60);
        let group = GroupSpec { name: "group".to_owned(), topics: vec![topic.clone()], session_timeout: minute, release_timeout: minute, lease: minute };
        let mut member = log.join(group.clone());
        let Some(GroupEvent::Assigned(assigned)) = member.next().await else { panic!("assigned") };
        assert_eq!(assigned[0].former_is_gone, opening == 0);
        member.control().leave().await.unwrap();
        // Released in order: whoever was before was dealt with.
        let Some(GroupEvent::Assigned(assigned)) = log.join(group).next().await else { panic!("assigned") };
        assert!(assigned[0].former_is_gone);
    }
}

#[tokio::test]
async fn two_cannot_open_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::open(dir.path(), Options::default()).unwrap();
    let second = Embedded::open(dir.path(), Options::default()).map(drop);
    assert_eq!(second, Err(OpenError::InUse(dir.path().to_owned())));
    assert!(second.unwrap_err().to_string().contains(&dir.path().display().to_string()));
    drop(first);
    Embedded::open(dir.path(), Options::default()).unwrap();
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_a_clear_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = Embedded::open(&file.path().join("log"), Options::default()).map(drop).unwrap_err();
    assert!(matches!(&refused, OpenError::Store { dir, .. } if dir.starts_with(file.path())), "{refused}");
}

fn later(by: Duration) -> Timestamp {
    Timestamp::from_millis(bluebox_core::clock::wall_clock().as_millis() + u64::try_from(by.as_millis()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_moves_the_start_and_stays_moved() {
    let dir = tempfile::tempdir().unwrap();
    let topic = Topic::new("short");
    let of = topic.partition(0);
    let hour = Duration::from_secs(3600);
    {
        let log = Embedded::open(dir.path(), Options::default()).unwrap();
        log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: Some(hour), compacted: false, compaction_lag: None }])
            .await
            .unwrap();
        for n in 0..10 {
            log.append(&of, record(n.to_string())).await.unwrap();
        }
        log.keep_house(later(hour / 2));
        assert_eq!(log.bounds(&of).await.unwrap().start, Offset::new(0), "not old enough");
        let wanted = log.read(&of, Offset::new(4));
        log.keep_house(later(2 * hour));
        let bounds = Bounds { start: Offset::new(10), end: Offset::new(10) };
        assert_eq!(log.bounds(&of).await.unwrap(), bounds);
        drop(wanted);
        let mut late = log.read(&of, Offset::new(4));
        assert_eq!(late.next().await, Some(Read::Truncated { wanted: Offset::new(4), start: Offset::new(10) }));
        let appended = log.append(&of, record("after")).await.unwrap();
        assert_eq!(appended.offset, Offset::new(10));
        assert!(matches!(late.next().await, Some(Read::Entries(entries)) if entries[0].offset == Offset::new(10)));
        log.keep_house(later(3 * hour));
    }
    let log = Embedded::open(dir.path(), Options::default()).unwrap();
    assert_eq!(log.bounds(&of).await.unwrap(), Bounds { start: Offset::new(11), end: Offset::new(11) }, "an empty partition goes on where it was");
    assert_eq!(log.append(&of, record("reopened")).await.unwrap().offset, Offset::new(11));
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_the_last_record_of_each_key() {
    let dir = tempfile::tempdir().unwrap();
    let topic = Topic::new("compacted");
    let of = topic.partition(0);
    let key = |n: u32| Bytes::from(format!("key-{n}"));
    for opening in 0..2 {
        let log = Embedded::open(dir.path(), Options::default()).unwrap();
        if opening == 0 {
            log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: None, compacted: true, compaction_lag: None }]).await.unwrap();
            let keyless = log.append(&of, record("no key")).await;
            assert!(matches!(keyless, Err(AppendError::NotPersisted(_))), "{keyless:?}");
            for n in 0..100 {
                log.append(&of, Record::keyed(key(n % 10), n.to_string().into())).await.unwrap();
            }
            log.append(&of, Record { key: key(3), value: None }).await.unwrap();
            log.keep_house(bluebox_core::clock::wall_clock());
        }
        let entries = read(&log, &of, 0, 10).await;
        let values: Vec<_> = entries.iter().map(|e| e.record.value.as_ref().map(|v| String::from_utf8(v.to_vec()).unwrap())).collect();
        let expected: Vec<_> = [90, 91, 92, 94, 95, 96, 97, 98, 99].iter().map(|n: &i32| Some(n.to_string())).chain([None]).collect();
        assert_eq!(values, expected, "opening {opening}");
        if opening == 1 {
            // Tombstones go when everybody has had the time to see them; their offsets are not given again.
            log.keep_house(later(Duration::from_secs(48 * 3600)));
            assert_eq!(read(&log, &of, 0, 9).await.len(), 9);
            assert_eq!(log.bounds(&of).await.unwrap().end, Offset::new(101));
        }
    }
    let log = Embedded::open(dir.path(), Options::default()).unwrap();
    assert_eq!(log.append(&of, Record::keyed(key(0), "again".into())).await.unwrap().offset, Offset::new(101));
}

fn size_of(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(dir).unwrap().map_while(Result::ok);
    entries.map(|e| if e.path().is_dir() { size_of(&e.path()) } else { e.metadata().map_or(0, |m| m.blocks() * 512) }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_has_passed_is_given_back_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = Embedded::open(dir.path(), options(Fsync::Never)).unwrap();
    let (short, long) = (Topic::new("short"), Topic::new("long"));
    let hour = Duration::from_secs(3600);
    log.create_topics(vec![spec(&long, 1), TopicSpec { topic: short.clone(), partitions: 2, retention: Some(hour), compacted: false, compaction_lag: None }])
        .await
        .unwrap();
    for n in 0..400 {
        let appends: Vec<_> = (0..2).map(|p| log.append(&short.partition(p), record("x".repeat(250_000)))).collect();
        log.append(&long.partition(0), record(n.to_string())).await.unwrap();
        for append in appends {
            append.await.unwrap();
        }
    }
    let before = size_of(dir.path());
    log.keep_house(later(2 * hour));
    let after = size_of(dir.path());
    // What is left is the journal, which is bounded.
    assert!(before >= 190 << 20 && after < 90 << 20, "{} MiB, then {} MiB", before >> 20, after >> 20);
    let entries = read(&log, &long.partition(0), 0, 400).await;
    assert!(entries.iter().enumerate().all(|(n, e)| text(e) == n.to_string()), "the others' are all there");
    assert_eq!(log.bounds(&short.partition(1)).await.unwrap(), Bounds { start: Offset::new(400), end: Offset::new(400) });
    drop(log);
    let log = Embedded::open(dir.path(), options(Fsync::Never)).unwrap();
    assert_eq!(read(&log, &long.partition(0), 0, 400).await.len(), 400);
    assert_eq!(log.append(&short.partition(1), record("next")).await.unwrap().offset, Offset::new(400));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_are_read_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = Embedded::open(dir.path(), options(Fsync::Never)).unwrap();
    let topic = Topic::new("long");
    log.create_topics(vec![spec(&topic, 1)]).await.unwrap();
    // More than is kept in memory.
    let filler = "x".repeat(20_000);
    let appends: Vec<_> = (0..500).map(|n| log.append(&topic.partition(0), record(format!("{n} {filler}")))).collect();
    for append in appends {
        append.await.unwrap();
    }
    let entries = read(&log, &topic.partition(0), 0, 500).await;
    assert!(entries.iter().enumerate().all(|(n, e)| e.offset == Offset::new(n as u64) && text(e).starts_with(&format!("{n} "))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    static FREE: AtomicU64 = AtomicU64::new(u64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let log = Embedded::open(dir.path(), Options { free_bytes: |_| Ok(FREE.load(Ordering::SeqCst)), ..Options::default() }).unwrap();
    let topic = Topic::new("topic");
    log.create_topics(vec![spec(&topic, 1)]).await.unwrap();
    log.append(&topic.partition(0), record("before")).await.unwrap();
    let mut health = log.health();
    assert_eq!(*health.borrow_and_update(), Health::Up);

    FREE.store(10 << 20, Ordering::SeqCst);
    let refused = log.append(&topic.partition(0), record("refused")).await;
    let Err(AppendError::NotPersisted(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains(&dir.path().display().to_string()) && why.contains("10 MiB are free"), "{why}");
    assert!(matches!(log.create_topics(vec![spec(&Topic::new("another"), 1)]).await, Err(LogError::Unavailable(_))));
    health.wait_for(|h| matches!(h, Health::Away(_))).await.unwrap();
    assert_eq!(text(&read(&log, &topic.partition(0), 0, 1).await[0]), "before", "reading goes on");

    FREE.store(u64::MAX, Ordering::SeqCst);
    // Seen without anybody asking.
    tokio::time::timeout(Duration::from_secs(10), health.wait_for(|h| *h == Health::Up)).await.expect("it goes on by itself").unwrap();
    assert_eq!(log.append(&topic.partition(0), record("after")).await.unwrap().offset, Offset::new(1));
}

/// This test's own binary, running only `test`, with SIGXFSZ ignored.
fn run_again(test: &str, dir: &Path, how: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]).env("BLUEBOX_TEST_DIR", dir).env("BLUEBOX_TEST_HOW", how);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn fsync_of(how: &str) -> Fsync {
    match how {
        "always" => Fsync::Always,
        "interval" => Fsync::Interval(Duration::from_millis(20)),
        "never" => Fsync::Never,
        other => panic!("no such policy: {other}"),
    }
}

/// Appends for ever and says what was acknowledged. Killed by its parent.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by kill_nine_loses_nothing_that_was_acknowledged"]
async fn child_that_appends() {
    let dir = std::env::var("BLUEBOX_TEST_DIR").unwrap();
    let how = std::env::var("BLUEBOX_TEST_HOW").unwrap();
    let (fsync, filler) = match how.strip_suffix(" and large") {
        Some(how) => (fsync_of(how), "x".repeat(40_000)),
        None => (fsync_of(&how), String::new()),
    };
    let log = Embedded::open(Path::new(&dir), options(fsync)).unwrap();
    let topic = Topic::new("topic");
    log.create_topics(vec![spec(&topic, 4)]).await.unwrap();
    let out = Arc::new(std::sync::Mutex::new(std::io::stdout()));
    for partition in 0..4 {
        let (log, topic, out, filler) = (log.clone(), topic.clone(), out.clone(), filler.clone());
        tokio::spawn(async move {
            loop {
                let end = log.bounds(&topic.partition(partition)).await.unwrap().end;
                let text = |n| format!("{partition} {} {filler}", end.get() + n);
                let appends: Vec<_> = (0..5).map(|n| log.append(&topic.partition(partition), record(text(n)))).collect();
                for append in appends {
                    let offset = append.await.unwrap().offset;
                    let mut out = out.lock().unwrap();
                    writeln!(out, "ack {partition} {offset}").unwrap();
                    out.flush().unwrap();
                }
            }
        });
    }
    std::future::pending().await
}

/// Waits for so many acknowledgements, kills the child, and takes what else it said.
fn kill_after(mut child: Child, acks: usize) -> [u64; 4] {
    let mut ends = [0; 4];
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).filter_map(|line| {
        let (partition, offset) = line.strip_prefix("ack ")?.split_once(' ')?;
        Some((partition.parse::<usize>().ok()?, offset.parse::<u64>().ok()?))
    });
    for (partition, offset) in lines.by_ref().take(acks) {
        ends[partition] = offset + 1;
    }
    child.kill().unwrap();
    for (partition, offset) in lines {
        ends[partition] = offset + 1;
    }
    child.wait().unwrap();
    ends
}

async fn kill_nine(how: &str) {
    let dir = tempfile::tempdir().unwrap();
    let fsync = fsync_of(how.strip_suffix(" and large").unwrap_or(how));
    for (round, acks) in [3, 400, 57, 1_200].into_iter().enumerate() {
        let child = run_again("child_that_appends", dir.path(), how).spawn().unwrap();
        let ends = tokio::task::spawn_blocking(move || kill_after(child, acks)).await.unwrap();
        assert!(ends.iter().sum::<u64>() > 0, "the child said nothing");
        let log = Embedded::open(dir.path(), options(fsync)).unwrap();
        for partition in 0..4 {
            let of = Topic::new("topic").partition(partition);
            let bounds = log.bounds(&of).await.unwrap();
            let acknowledged = ends[usize::try_from(partition).unwrap()];
            assert!(bounds.end.get() >= acknowledged, "{how}, round {round}: {acknowledged} were acknowledged, {} are there", bounds.end);
            let entries = read(&log, &of, 0, usize::try_from(bounds.end.get()).unwrap()).await;
            for (n, entry) in entries.iter().enumerate() {
                assert_eq!(entry.offset.get(), n as u64, "{how}, round {round}");
                assert!(text(entry).starts_with(&format!("{partition} {n} ")), "{how}, round {round}: record {n}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_that_was_acknowledged_when_always_synced() {
    kill_nine("always").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_that_was_acknowledged_when_synced_at_intervals() {
    kill_nine("interval").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_that_was_acknowledged_when_never_synced() {
    kill_nine("never").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_that_was_acknowledged_while_the_store_sorts() {
    kill_nine("never and large").await;
}

fn limit_files_to(bytes: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, bytes.min(hard), hard).unwrap();
}

/// Runs with a limit on the size of files, which comes down on the store in the middle of its writes: to it, that is a disk that fails.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_write_that_fails_halfway_loses_nothing"]
async fn child_whose_disk_fails() {
    let dir = std::env::var("BLUEBOX_TEST_DIR").unwrap();
    let fsync = fsync_of(&std::env::var("BLUEBOX_TEST_HOW").unwrap());
    let log = Embedded::open(Path::new(&dir), options(fsync)).unwrap();
    let topic = Topic::new("topic");
    let of = topic.partition(0);
    log.create_topics(vec![spec(&topic, 1)]).await.unwrap();
    let mut acknowledged = Vec::new();
    let mut unknown = 0;
    for round in 0..3 {
        limit_files_to((1 + round) << 20);
        let mut failures = 0;
        for n in 0..2_000 {
            let text = format!("{round} {n} {}", "x".repeat(3_000));
            match log.append(&of, record(&text)).await {
                Ok(appended) => acknowledged.push((appended.offset, text)),
                Err(AppendError::NotPersisted(_)) => failures += 1,
                Err(AppendError::Unknown(_)) => (failures, unknown) = (failures + 1, unknown + 1),
                Err(other) => panic!("{other}"),
            }
            if failures > 20 {
                break;
            }
        }
        assert!(failures > 20, "the disk did not fail");
        limit_files_to(u64::MAX);
        let recovered = async {
            loop {
                let text = format!("recovered {round}");
                if let Ok(appended) = log.append(&of, record(&text)).await {
                    break acknowledged.push((appended.offset, text));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("it goes on when it can");
    }
    let count = usize::try_from(log.bounds(&of).await.unwrap().end.get()).unwrap();
    assert!((acknowledged.len()..=acknowledged.len() + unknown).contains(&count), "{count} records, {} acknowledged, {unknown} unknown", acknowledged.len());
    drop(log);
    let log = Embedded::open(Path::new(&dir), options(fsync)).unwrap();
    let entries = read(&log, &of, 0, count).await;
    for (offset, expected) in acknowledged {
        let entry = entries.iter().find(|e| e.offset == offset).expect("acknowledged and gone");
        assert_eq!(text(entry), expected);
    }
    println!("all there");
}

#[test]
fn a_write_that_fails_halfway_loses_nothing() {
    for how in ["always", "interval", "never"] {
        let dir = tempfile::tempdir().unwrap();
        let output = run_again("child_whose_disk_fails", dir.path(), how).stderr(Stdio::piped()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("all there"), "{how}: {}\n{out}\n{err}", output.status);
    }
}

/// A disk of 400 MiB for the log alone. What the store has superseded must not keep it full.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_of_what_was_superseded_has_room_again() {
    const LEFT: fn(&Path) -> std::io::Result<u64> = |dir| Ok((400_u64 << 20).saturating_sub(size_of(dir)));
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { fsync: Fsync::Never, keep_free_bytes: 100 << 20, free_bytes: LEFT };
    let log = Embedded::open(dir.path(), options()).unwrap();
    let topic = Topic::new("topic");
    log.create_topics(vec![spec(&topic, 16)]).await.unwrap();
    let mut accepted = vec![Vec::new(); 16];
    let mut refused_once = false;
    let began = tokio::time::Instant::now();
    // Until something is accepted after it was refused.
    for n in 0.. {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing is accepted any more, with {} MiB left", LEFT(dir.path()).unwrap() >> 20);
        let number = |p: u32| n * 16 + p;
        let appends: Vec<_> = (0..16).map(|p| (p, log.append(&topic.partition(p), record(format!("{} {}", number(p), "x".repeat(50_000)))))).collect();
        let mut all_refused = true;
        for (p, append) in appends {
            if let Ok(appended) = append.await {
                accepted[p as usize].push((appended.offset, number(p)));
                all_refused = false;
            }
        }
        if refused_once && !all_refused {
            break;
        }
        if all_refused {
            refused_once = true;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    drop(log);
    let log = Embedded::open(dir.path(), options()).unwrap();
    for (p, accepted) in (0..).zip(accepted) {
        let entries = read(&log, &topic.partition(p), 0, accepted.len()).await;
        let there: Vec<_> = entries.iter().map(|e| (e.offset, text(e).split(' ').next().unwrap().parse::<u32>().unwrap())).collect();
        assert_eq!(there, accepted);
    }
}

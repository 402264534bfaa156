//! The embedded log on disk against a list in memory: whatever is done in whatever order, both have the same.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::Log as _;
use bluebox_core::clock::wall_clock;
use bluebox_core::log::embedded::{Embedded, Fsync, Options};
use bluebox_core::log::{Bounds, Entry, Offset, Read, Record, Timestamp, Topic, TopicPartition, TopicSpec};
use bytes::Bytes;
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
enum Step {
    /// So many records with this key, together; without a value: tombstones. `bytes` is their size.
    Append {
        key: u8,
        count: u8,
        tombstone: bool,
        bytes: usize,
    },
    /// Everything so far becomes too old.
    Expire,
    Compact,
    Reopen,
    /// From a place somewhere between the start and a bit above the end, in percent.
    Read(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u8, 1..30u8, prop::bool::weighted(0.2), prop::sample::select(vec![10, 1_000, 60_000]))
            .prop_map(|(key, count, tombstone, bytes)| Step::Append { key, count, tombstone, bytes }),
        1 => Just(Step::Expire),
        2 => Just(Step::Compact),
        2 => Just(Step::Reopen),
        4 => (0..110u64).prop_map(Step::Read),
    ]
}

struct Model {
    log: Option<Arc<Embedded>>,
    compacted: bool,
    of: TopicPartition,
    start: u64,
    end: u64,
    /// What is there.
    entries: Vec<Entry>,
}

impl Model {
    async fn new(dir: &Path, compacted: bool) -> Self {
        let topic = Topic::new("topic");
        let log = open(dir);
        log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: Some(HOUR), compacted, compaction_lag: None }]).await.unwrap();
        Self { log: Some(log), compacted, of: topic.partition(0), start: 0, end: 0, entries: Vec::new() }
    }

    fn log(&self) -> &Arc<Embedded> {
        self.log.as_ref().expect("it is open")
    }

    async fn keep_house(&self, now: Timestamp) {
        let log = Arc::clone(self.log());
        tokio::task::spawn_blocking(move || log.keep_house(now)).await.unwrap();
    }

    async fn take(&mut self, dir: &Path, step: Step) {
        match step {
            Step::Append { key, count, tombstone, bytes } => {
                let key = Bytes::from(vec![key]);
                let value = |n: u8| (!tombstone).then(|| Bytes::from(vec![n; bytes]));
                let records: Vec<_> = (0..count).map(|n| Record { key: key.clone(), value: value(n) }).collect();
                let appends: Vec<_> = records.iter().map(|r| self.log().append(&self.of, r.clone())).collect();
                for (append, record) in appends.into_iter().zip(records) {
                    let appended = append.await.unwrap();
                    assert_eq!(appended.offset, Offset::new(self.end));
                    assert!(self.entries.last().is_none_or(|last| last.timestamp <= appended.timestamp));
                    self.end += 1;
                    self.entries.push(Entry { offset: appended.offset, timestamp: appended.timestamp, record });
                }
            }
            Step::Expire => {
                self.keep_house(Timestamp::from_millis(wall_clock().as_millis() + 3_700_000)).await;
                self.entries.clear();
                // All that was there is gone; the start lies behind the last of it.
                let bounds = self.log().bounds(&self.of).await.unwrap();
                assert!(bounds.start.get() >= self.start && bounds.start.get() <= self.end);
                self.start = bounds.start.get();
            }
            Step::Compact => {
                self.keep_house(wall_clock()).await;
                if self.compacted {
                    let entries = std::mem::take(&mut self.entries);
                    let last = |e: &Entry| entries.iter().rev().find(|other| other.record.key == e.record.key).map(|last| last.offset);
                    self.entries = entries.iter().filter(|e| last(e) == Some(e.offset)).cloned().collect();
                }
            }
            Step::Reopen => {
                self.log = None;
                self.log = Some(open(dir));
            }
            Step::Read(percent) => self.read(self.start + (self.end - self.start) * percent / 100).await,
        }
        let bounds = Bounds { start: Offset::new(self.start), end: Offset::new(self.end) };
        assert_eq!(self.log().bounds(&self.of).await.unwrap(), bounds);
    }

    async fn read(&self, from: u64) {
        let expected: Vec<_> = self.entries.iter().filter(|e| e.offset.get() >= from).cloned().collect();
        let mut reader = self.log().read(&self.of, Offset::new(from));
        let mut read = Vec::new();
        while read.len() < expected.len() {
            match tokio::time::timeout(Duration::from_secs(20), reader.next()).await.expect("there is more") {
                Some(Read::Entries(entries)) => read.extend(entries),
                other => panic!("{other:?}"),
            }
        }
        assert!(read == expected, "from {from}: {:?}, not {:?}", offsets(&read), offsets(&expected));
    }
}

fn offsets(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|e| e.offset.get()).collect()
}

fn open(dir: &Path) -> Arc<Embedded> {
    Embedded::open(dir, Options { fsync: Fsync::Never, ..Options::default() }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_has_what_the_list_has(compacted: bool, steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut model = Model::new(dir.path(), compacted).await;
            for step in steps {
                model.take(dir.path(), step).await;
            }
            model.read(model.start).await;
        });
    }
}

//! How the suite gets at a log, and what its tests share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::clock::wall_clock;
use bluebox_core::log::embedded::{Embedded, Options, Server, connect, serve};
use bluebox_core::log::{
    Appended, Assignment, Committed, Entry, GroupEvent, GroupSpec, Membership, Offset, Read, Reader, Record, Timestamp, Topic, TopicPartition, TopicSpec,
};

/// One log under test, with a name space of its own.
pub trait Fixture: Sized + Send + Sync {
    /// Starts or finds the log; `None`, and a loud word about it, where it can't be had.
    fn start() -> impl Future<Output = Option<Self>> + Send;

    /// A client of its own, as another process would have.
    fn client(&self) -> Arc<dyn Log>;

    /// Whether the log knows that a former owner can act no more: because it released the partition, or its connection ended.
    fn knows_the_dead(&self) -> bool {
        true
    }

    /// Whether a lease that is no longer than the session has run out with it, because a commit is a sign of life.
    fn leases_end_with_sessions(&self) -> bool {
        true
    }

    /// The shortest session that the log grants.
    fn session_timeout(&self) -> Duration {
        Duration::from_millis(1_500)
    }

    /// Has the log delete the records of a partition below this one, which was appended later than they were; the topic keeps them for an hour. False: it can't
    /// be made to.
    fn delete_below(&self, _of: &TopicPartition, _first_kept: Appended) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }

    /// Has the log compact what is there. False: it can't be made to.
    fn compact(&self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }

    /// A name that no other test uses.
    fn name(&self, name: &str) -> String {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let process = std::process::id();
        format!("test-{process}-{}-{name}", LAST.fetch_add(1, Ordering::Relaxed))
    }

    /// A new topic.
    fn topic(&self, log: &dyn Log, partitions: u32) -> impl Future<Output = Topic> + Send {
        let topic = Topic::new(&self.name("topic"));
        let made = log.create_topics(vec![plain(&topic, partitions)]);
        async move {
            made.await.unwrap();
            topic
        }
    }

    /// A group of its own that shares a topic.
    fn group(&self, topics: &[&Topic]) -> GroupSpec {
        GroupSpec {
            name: self.name("group"),
            topics: topics.iter().map(|t| (*t).clone()).collect(),
            session_timeout: self.session_timeout(),
            release_timeout: Duration::from_secs(20),
            lease: self.session_timeout() * 2,
        }
    }
}

/// A test that takes longer hangs.
pub async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(90), test).await.expect("the test hangs");
}

/// What is exactly as old as this now will be as old as an hour then.
fn an_hour_after(time: Timestamp) -> Timestamp {
    Timestamp::from_millis(time.as_millis() + 3_600_000)
}

async fn keep_house(log: &Arc<Embedded>, now: Timestamp) -> bool {
    let log = Arc::clone(log);
    tokio::task::spawn_blocking(move || log.keep_house(now)).await.is_ok()
}

/// The embedded log in memory.
pub struct InMemory(Arc<Embedded>);

impl Fixture for InMemory {
    async fn start() -> Option<Self> {
        Some(Self(Embedded::in_memory()))
    }

    fn client(&self) -> Arc<dyn Log> {
        self.0.client()
    }

    async fn delete_below(&self, _: &TopicPartition, first_kept: Appended) -> bool {
        keep_house(&self.0, an_hour_after(first_kept.timestamp)).await
    }

    async fn compact(&self) -> bool {
        keep_house(&self.0, wall_clock()).await
    }
}

/// The embedded log on disk, as it is by default.
pub struct OnDisk {
    log: Arc<Embedded>,
    /// Removed when the test has ended.
    _dir: tempfile::TempDir,
}

impl Fixture for OnDisk {
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        Some(Self { log: Embedded::open(dir.path(), Options::default()).unwrap(), _dir: dir })
    }

    fn client(&self) -> Arc<dyn Log> {
        self.log.client()
    }

    async fn delete_below(&self, _: &TopicPartition, first_kept: Appended) -> bool {
        keep_house(&self.log, an_hour_after(first_kept.timestamp)).await
    }

    async fn compact(&self) -> bool {
        keep_house(&self.log, wall_clock()).await
    }
}

/// The embedded log on disk, through the socket that other processes use.
pub struct OverASocket {
    log: Arc<Embedded>,
    _server: Server,
    dir: tempfile::TempDir,
}

impl Fixture for OverASocket {
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let log = Embedded::open(&dir.path().join("log"), Options::default()).unwrap();
        Some(Self { _server: serve(&log, &dir.path().join("socket")).unwrap(), log, dir })
    }

    fn client(&self) -> Arc<dyn Log> {
        connect(&self.dir.path().join("socket"))
    }

    async fn delete_below(&self, _: &TopicPartition, first_kept: Appended) -> bool {
        keep_house(&self.log, an_hour_after(first_kept.timestamp)).await
    }

    async fn compact(&self) -> bool {
        keep_house(&self.log, wall_clock()).await
    }
}

/// A topic without compaction that keeps everything.
pub fn plain(topic: &Topic, partitions: u32) -> TopicSpec {
    TopicSpec { topic: topic.clone(), partitions, retention: None, compacted: false, compaction_lag: None }
}

/// A record of a few bytes.
pub fn record(text: impl AsRef<str>) -> Record {
    Record::new(text.as_ref().as_bytes().to_vec().into())
}

/// What a record says.
pub fn text(entry: &Entry) -> String {
    String::from_utf8(entry.record.value.as_ref().expect("a value").to_vec()).unwrap()
}

/// The commit of an offset.
pub fn commit(offset: u64, metadata: &str) -> Committed {
    Committed { offset: Offset::new(offset), metadata: metadata.to_owned() }
}

/// Appends these one after another.
pub async fn append_all(log: &dyn Log, to: &TopicPartition, texts: impl IntoIterator<Item = String>) {
    let pending: Vec<_> = texts.into_iter().map(|t| log.append(to, record(t))).collect();
    for append in pending {
        append.await.unwrap();
    }
}

/// The next `count` entries of a reader.
pub async fn take(reader: &mut Reader, count: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    while entries.len() < count {
        match reader.next().await.expect("the reader goes on") {
            Read::Entries(more) => entries.extend(more),
            Read::Truncated { wanted, start } => panic!("truncated: wanted {wanted}, starts at {start}"),
        }
    }
    entries
}

/// A member that does what a good member does: it releases at once, and keeps what it is given.
pub struct Member {
    pub membership: Membership,
    pub owned: BTreeMap<TopicPartition, Assignment>,
    pub records: Vec<(TopicPartition, Entry)>,
    pub revoking: Vec<TopicPartition>,
    pub lost: Vec<TopicPartition>,
    pub trouble: Vec<String>,
    /// Whether it releases what it is asked for.
    pub releases: bool,
}

impl Member {
    pub fn join(log: &dyn Log, spec: GroupSpec) -> Self {
        let membership = log.join(spec);
        Self { membership, owned: BTreeMap::new(), records: vec![], revoking: vec![], lost: vec![], trouble: vec![], releases: true }
    }

    /// Takes one event; false when there will be no more.
    pub async fn step(&mut self) -> bool {
        let Some(event) = self.membership.next().await else { return false };
        self.take_in(event);
        true
    }

    fn take_in(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Assigned(assignments) => {
                for assignment in assignments {
                    let twice = self.owned.insert(assignment.partition.clone(), assignment);
                    assert!(twice.is_none(), "assigned what is owned already: {twice:?}");
                }
            }
            GroupEvent::Records { partition, entries } => {
                assert!(self.owned.contains_key(&partition), "records of {partition}, which is not owned");
                assert!(!entries.is_empty());
                self.records.extend(entries.into_iter().map(|e| (partition.clone(), e)));
            }
            GroupEvent::Revoking(partitions) => {
                for partition in &partitions {
                    assert!(self.owned.contains_key(partition), "asked for {partition}, which is not owned");
                }
                if self.releases {
                    self.release(partitions);
                } else {
                    self.revoking.extend(partitions);
                }
            }
            GroupEvent::Lost(partitions) => {
                for partition in &partitions {
                    assert!(self.owned.remove(partition).is_some(), "lost {partition}, which is not owned");
                }
                self.revoking.retain(|p| !partitions.contains(p));
                self.lost.extend(partitions);
            }
            GroupEvent::Truncated { partition, wanted, start } => panic!("{partition}: wanted {wanted}, starts at {start}"),
            GroupEvent::Trouble(trouble) => self.trouble.push(trouble),
        }
    }

    pub fn release(&mut self, partitions: Vec<TopicPartition>) {
        for partition in &partitions {
            self.owned.remove(partition);
        }
        self.membership.control().release(partitions);
    }

    /// Takes events until it is so.
    pub async fn until(&mut self, mut so: impl FnMut(&Self) -> bool) {
        while !so(self) {
            assert!(self.step().await, "the membership ended");
        }
    }

    /// Takes events of both until it is so of both together.
    pub async fn both_until(&mut self, other: &mut Self, mut so: impl FnMut(&Self, &Self) -> bool) {
        while !so(self, other) {
            tokio::select! {
                more = self.step() => assert!(more, "the first membership ended"),
                more = other.step() => assert!(more, "the second membership ended"),
            }
        }
    }

    /// Takes what comes for a while: to see that something does not.
    pub async fn for_a_while(&mut self) {
        let _ = tokio::time::timeout(Duration::from_millis(400), async { while self.step().await {} }).await;
    }

    pub fn texts(&self) -> Vec<String> {
        self.records.iter().map(|(_, e)| text(e)).collect()
    }
}

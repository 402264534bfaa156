//! What lies on disk, and how: two key spaces of one fjall database.
//!
//! `records` has one entry per record, by partition and offset. `meta` has the topics, the commits of groups, and the starts of partitions, by a first letter.
//! What a partition's start has passed is removed when the store is rewritten (compacted) anyway, so that retention costs one entry, not one per record.

use std::collections::HashMap;
use std::panic::RefUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use fjall::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use fjall::config::FilterPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use prost::Message as _;

use crate::clock::millis;
use crate::log::{Bounds, Committed, Entry, Offset, Record, Timestamp, Topic, TopicPartition, TopicSpec};

/// Records that wait in memory to be sorted into a table; up to four of these.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Blocks of tables that are kept in memory for readers of old records.
const CACHE_BYTES: u64 = 8 << 20;

/// Journals are replayed when the log is opened; this bounds how long that takes.
const JOURNAL_BYTES: u64 = 128 << 20;

/// A store that is behind in sorting is waited for this long before it is taken for stuck.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The layout that is written down here.
const FORMAT: u64 = 1;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Written by a version that this one doesn't know.
    #[error("{} has format {format}; this version reads format {FORMAT}", dir.display())]
    Format { dir: PathBuf, format: u64 },
    /// An entry that makes no sense.
    #[error("an entry of the store can't be read: {0}")]
    Unreadable(&'static str),
    /// What is in memory does not get into tables.
    #[error("the store could not sort what it has within {PATIENCE:?}")]
    Stuck,
    /// The store crate's own.
    #[error("{0}")]
    Store(#[from] fjall::Error),
}

/// An open store.
pub(super) struct Store {
    database: Database,
    records: Keyspace,
    meta: Keyspace,
}

/// Where the partitions start, by their id: shared with the filter that removes what lies below.
#[derive(Debug, Clone, Default)]
pub(super) struct Starts(Arc<RwLock<HashMap<u32, u64>>>);

/// A topic as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StoredTopic {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// Its partitions have this id and the ones after it.
    #[prost(uint32, tag = "2")]
    pub(super) first_id: u32,
    #[prost(uint32, tag = "3")]
    pub(super) partitions: u32,
    #[prost(uint64, optional, tag = "4")]
    pub(super) retention_ms: Option<u64>,
    #[prost(bool, tag = "5")]
    pub(super) compacted: bool,
    #[prost(uint64, optional, tag = "6")]
    pub(super) compaction_lag_ms: Option<u64>,
}

impl StoredTopic {
    pub(super) fn new(spec: &TopicSpec, first_id: u32) -> Self {
        Self {
            name: spec.topic.as_str().to_owned(),
            first_id,
            partitions: spec.partitions,
            retention_ms: spec.retention.map(millis),
            compacted: spec.compacted,
            compaction_lag_ms: spec.compaction_lag.map(millis),
        }
    }

    pub(super) fn spec(&self) -> TopicSpec {
        TopicSpec {
            topic: Topic::new(&self.name),
            partitions: self.partitions,
            retention: self.retention_ms.map(Duration::from_millis),
            compacted: self.compacted,
            compaction_lag: self.compaction_lag_ms.map(Duration::from_millis),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCommit {
    #[prost(string, tag = "1")]
    group: String,
    #[prost(string, tag = "2")]
    topic: String,
    #[prost(uint32, tag = "3")]
    partition: u32,
    #[prost(uint64, tag = "4")]
    offset: u64,
    #[prost(string, tag = "5")]
    metadata: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct StoredStart {
    #[prost(uint64, tag = "1")]
    start: u64,
    /// The end at that time: the start of an empty partition says where it goes on.
    #[prost(uint64, tag = "2")]
    end: u64,
    #[prost(uint64, tag = "3")]
    last_timestamp: u64,
}

const TOPIC: u8 = b't';
const COMMIT: u8 = b'c';
const START: u8 = b's';
const FORMAT_KEY: &[u8] = b"format";

fn record_key(partition: u32, offset: Offset) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_be_bytes());
    key[4..].copy_from_slice(&offset.get().to_be_bytes());
    key
}

fn parse_record_key(key: &[u8]) -> Option<(u32, Offset)> {
    let (partition, offset) = key.split_first_chunk()?;
    Some((u32::from_be_bytes(*partition), Offset::new(u64::from_be_bytes(offset.try_into().ok()?))))
}

const RECORD_HEAD_BYTES: usize = 13;

/// The time, whether there is a value, the key's length, the key, the value.
fn encode_record(timestamp: Timestamp, record: &Record) -> Bytes {
    let value = record.value.as_deref().unwrap_or_default();
    let mut out = BytesMut::with_capacity(RECORD_HEAD_BYTES + record.key.len() + value.len());
    out.put_u64(timestamp.as_millis());
    out.put_u8(u8::from(record.value.is_some()));
    // Records are below 1 MB.
    out.put_u32(u32::try_from(record.key.len()).unwrap_or(u32::MAX));
    out.put_slice(&record.key);
    out.put_slice(value);
    out.freeze()
}

fn decode_record(offset: Offset, bytes: &Bytes) -> Option<Entry> {
    let timestamp = Timestamp::from_millis(u64::from_be_bytes(*bytes.first_chunk()?));
    let has_value = *bytes.get(8)? == 1;
    let key_end = usize::try_from(u32::from_be_bytes(bytes.get(9..RECORD_HEAD_BYTES)?.try_into().ok()?)).ok()?.checked_add(RECORD_HEAD_BYTES)?;
    bytes.get(..key_end)?;
    let record = Record { key: bytes.slice(RECORD_HEAD_BYTES..key_end), value: has_value.then(|| bytes.slice(key_end..)) };
    Some(Entry { offset, timestamp, record })
}

impl Store {
    /// Opens the store in a directory, or makes one there.
    pub(super) fn open(dir: &Path, starts: &Starts) -> Result<Self, StoreError> {
        let factory = Arc::new(PassedFilter(starts.clone()));
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .worker_threads(2)
            .max_journaling_size(JOURNAL_BYTES)
            .with_compaction_filter_factories(Arc::new(move |name| (name == "records").then(|| Arc::clone(&factory) as Arc<dyn Factory>)))
            .open()
            .map_err(|e| if matches!(e, fjall::Error::Locked) { StoreError::InUse(dir.to_owned()) } else { e.into() })?;
        // Records are found by range, never by a key that may not be there: filters would only cost memory.
        let records =
            database.keyspace("records", || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES).filter_policy(FilterPolicy::disabled()))?;
        let meta = database.keyspace("meta", || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES / 4))?;
        match meta.get(FORMAT_KEY)?.map(|v| v.first_chunk().map(|v| u64::from_be_bytes(*v))) {
            Some(Some(FORMAT)) => {}
            Some(other) => return Err(StoreError::Format { dir: dir.to_owned(), format: other.unwrap_or(0) }),
            None => meta.insert(FORMAT_KEY, FORMAT.to_be_bytes().to_vec())?,
        }
        let store = Self { database, records, meta };
        store.load_starts(starts)?;
        Ok(store)
    }

    fn load_starts(&self, starts: &Starts) -> Result<(), StoreError> {
        for guard in self.meta.prefix([START]) {
            let (key, value) = guard.into_inner()?;
            let id = key.get(1..).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes).ok_or(StoreError::Unreadable("a start's key"))?;
            starts.set(id, StoredStart::decode(&*value).map_err(|_| StoreError::Unreadable("a start"))?.start);
        }
        Ok(())
    }

    pub(super) fn topics(&self) -> Result<Vec<StoredTopic>, StoreError> {
        let topics = self.meta.prefix([TOPIC]).map(|guard| StoredTopic::decode(&*guard.value()?).map_err(|_| StoreError::Unreadable("a topic")));
        topics.collect()
    }

    pub(super) fn commits(&self) -> Result<Vec<(String, TopicPartition, Committed)>, StoreError> {
        let commits = self.meta.prefix([COMMIT]).map(|guard| {
            let stored = StoredCommit::decode(&*guard.value()?).map_err(|_| StoreError::Unreadable("a commit"))?;
            let committed = Committed { offset: Offset::new(stored.offset), metadata: stored.metadata };
            Ok((stored.group, Topic::new(&stored.topic).partition(stored.partition), committed))
        });
        commits.collect()
    }

    /// The bounds of a partition, and the time of its last record.
    pub(super) fn bounds(&self, id: u32) -> Result<(Bounds, Timestamp), StoreError> {
        let started = match self.meta.get(start_key(id))? {
            Some(value) => StoredStart::decode(&*value).map_err(|_| StoreError::Unreadable("a start"))?,
            None => StoredStart::default(),
        };
        let mut bounds = Bounds { start: Offset::new(started.start), end: Offset::new(started.end) };
        let mut last = Timestamp::from_millis(started.last_timestamp);
        if let Some(guard) = self.records.range(record_key(id, bounds.start)..=record_key(id, Offset::new(u64::MAX))).next_back() {
            let entry = entry(guard)?;
            bounds.end = bounds.end.max(entry.offset.next());
            last = last.max(entry.timestamp);
        }
        Ok((bounds, last))
    }

    /// Records from `from` up to `below`, together about `bytes` bytes; at least one, if there is one. And where to go on.
    pub(super) fn read(&self, id: u32, from: Offset, below: Offset, records: usize, bytes: usize) -> Result<(Vec<Entry>, Offset), StoreError> {
        let (mut entries, mut size) = (Vec::new(), 0);
        for guard in self.records.range(record_key(id, from)..record_key(id, below)) {
            let entry = entry(guard)?;
            size += entry.record.key.len() + entry.record.value.as_ref().map_or(0, Bytes::len);
            if !entries.is_empty() && (size > bytes || entries.len() >= records) {
                return Ok((entries, entry.offset));
            }
            entries.push(entry);
        }
        Ok((entries, below))
    }

    /// The first record at `from` or above, below `below`.
    pub(super) fn first(&self, id: u32, from: Offset, below: Offset) -> Result<Option<Entry>, StoreError> {
        self.records.range(record_key(id, from)..record_key(id, below)).next().map(entry).transpose()
    }

    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { store: self, batch: self.database.batch() }
    }

    /// What is written is on the disk itself when this returns.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    /// Whether it has failed, and must be opened again to go on.
    pub(super) fn is_broken(&self) -> bool {
        self.database.persist(PersistMode::Buffer).is_err()
    }

    /// Whether more would have to wait until what is in memory was sorted into tables.
    pub(super) fn is_behind(&self) -> bool {
        self.records.sealed_memtable_count() >= 3 || self.meta.sealed_memtable_count() >= 3 || self.records.l0_table_count() >= 18
    }

    /// Its size on disk, in bytes.
    pub(super) fn size_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.database.disk_space()?)
    }

    /// What lies on the disk in tables that other ones have taken the place of, in bytes. They are removed when a later write is sorted, or when the store is opened again.
    pub(super) fn superseded_bytes(&self, dir: &Path) -> std::io::Result<u64> {
        let mut there = 0;
        for keyspace in std::fs::read_dir(dir.join("keyspaces"))? {
            // A file may be removed while it is looked at.
            let Ok(tables) = std::fs::read_dir(keyspace?.path().join("tables")) else { continue };
            there += tables.filter_map(|table| Some(table.ok()?.metadata().ok()?.len())).sum::<u64>();
        }
        Ok(there.saturating_sub(self.records.disk_space() + self.meta.disk_space()))
    }

    /// Gives back the room of records that the starts have passed. Writes what is left again; may take long.
    pub(super) fn reclaim(&self) -> Result<(), StoreError> {
        self.sort_all()?;
        self.records.major_compact()?;
        // The tables from before are removed when something is sorted next.
        self.meta.insert(FORMAT_KEY, FORMAT.to_be_bytes().to_vec())?;
        self.sort_all()
    }

    /// Gets what is in memory into tables.
    fn sort_all(&self) -> Result<(), StoreError> {
        // In both, because a journal is kept as long as any of its entries is not in a table.
        for keyspace in [&self.records, &self.meta] {
            keyspace.rotate_memtable()?;
            let begun = Instant::now();
            while keyspace.sealed_memtable_count() > 0 {
                if self.is_broken() || begun.elapsed() > PATIENCE {
                    return Err(StoreError::Stuck);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

fn start_key(id: u32) -> [u8; 5] {
    let mut key = [START; 5];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

fn entry(guard: fjall::Guard) -> Result<Entry, StoreError> {
    let (key, value) = guard.into_inner()?;
    let (_, offset) = parse_record_key(&key).ok_or(StoreError::Unreadable("a record's key"))?;
    decode_record(offset, &value.into()).ok_or(StoreError::Unreadable("a record"))
}

/// Changes that are written together or not at all.
pub(super) struct Batch<'a> {
    store: &'a Store,
    batch: OwnedWriteBatch,
}

impl Batch<'_> {
    pub(super) fn append(&mut self, id: u32, entry: &Entry) {
        self.batch.insert(&self.store.records, record_key(id, entry.offset), encode_record(entry.timestamp, &entry.record));
    }

    pub(super) fn remove(&mut self, id: u32, offset: Offset) {
        self.batch.remove(&self.store.records, record_key(id, offset));
    }

    pub(super) fn topic(&mut self, topic: &StoredTopic) {
        self.batch.insert(&self.store.meta, [&[TOPIC], topic.name.as_bytes()].concat(), topic.encode_to_vec());
    }

    pub(super) fn commit(&mut self, group: &str, partition: &TopicPartition, committed: &Committed) {
        let stored = StoredCommit {
            group: group.to_owned(),
            topic: partition.topic.as_str().to_owned(),
            partition: partition.partition,
            offset: committed.offset.get(),
            metadata: committed.metadata.clone(),
        };
        // Topics have no zero byte in their names; the topic and the partition come last and have a known form.
        let key = [&[COMMIT], group.as_bytes(), &[0], stored.topic.as_bytes(), &[0], &stored.partition.to_be_bytes()].concat();
        self.batch.insert(&self.store.meta, key, stored.encode_to_vec());
    }

    pub(super) fn start(&mut self, id: u32, bounds: Bounds, last: Timestamp) {
        let stored = StoredStart { start: bounds.start.get(), end: bounds.end.get(), last_timestamp: last.as_millis() };
        self.batch.insert(&self.store.meta, start_key(id), stored.encode_to_vec());
    }

    /// Writes all of it: to the operating system, or to the disk itself.
    pub(super) fn write(self, to_disk: bool) -> Result<(), StoreError> {
        Ok(self.batch.durability(Some(if to_disk { PersistMode::SyncData } else { PersistMode::Buffer })).commit()?)
    }
}

impl Starts {
    pub(super) fn set(&self, id: u32, start: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, start);
    }
}

/// Removes records below the start of their partition whenever tables are rewritten.
struct PassedFilter(Starts);

// What it shares is replaced whole and never left half-written.
impl RefUnwindSafe for PassedFilter {}

impl Factory for PassedFilter {
    fn name(&self) -> &'static str {
        "passed"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Passed(self.0.0.read().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

struct Passed(HashMap<u32, u64>);

impl CompactionFilter for Passed {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> fjall::compaction::filter::CompactionFilterResult {
        let passed = parse_record_key(item.key()).is_some_and(|(id, offset)| self.0.get(&id).is_some_and(|start| offset.get() < *start));
        // A record's key is written once.
        Ok(if passed { Verdict::Destroy } else { Verdict::Keep })
    }
}

//! The log on disk: one thread writes, and what arrives together is written together.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::partition::Partition;
use super::{Fsync, OpenError, Options};
use crate::log::{AppendError, Appended, Committed, Entry, Health, LogError, Offset, Record, TopicPartition, TopicSpec};

mod house;
mod store;
mod writer;

use store::{Starts, Store, StoreError};
use writer::refuse;

/// Appends and commits that may wait to be written, in number and in bytes; beyond, they are refused.
const MAX_WAITING: usize = 16_384;
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Called with what became of an append.
pub(super) type AppendAck = Box<dyn FnOnce(Result<Appended, AppendError>) + Send>;

/// Called with what became of something else.
pub(super) type Ack = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Called with the topics that are new, once they are durable.
pub(super) type Install = Box<dyn FnOnce(&[(TopicSpec, u32)]) + Send>;

/// Something to be written.
pub(super) enum Job {
    Append {
        partition: Arc<Partition>,
        record: Record,
        ack: AppendAck,
    },
    Commit {
        group: String,
        commits: Vec<(TopicPartition, Committed)>,
        ack: Ack,
    },
    CreateTopics {
        specs: Vec<TopicSpec>,
        install: Install,
        ack: Ack,
    },
    /// The start of a partition has moved, in memory already.
    Trim {
        partition: Arc<Partition>,
        ack: Ack,
    },
    /// Compaction has found these to be superseded.
    Remove {
        partition: Arc<Partition>,
        offsets: Vec<Offset>,
        ack: Ack,
    },
}

/// What was there when the log was opened.
pub(super) struct Contents {
    pub(super) topics: Vec<(TopicSpec, Vec<Arc<Partition>>)>,
    pub(super) commits: Vec<(String, TopicPartition, Committed)>,
}

/// The log's store, and the thread that writes into it.
pub(super) struct Disk {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    dir: PathBuf,
    options: Options,
    queue: Mutex<Queue>,
    bell: Condvar,
    /// `None` while it is broken. Its lock is held to take the reference only.
    store: RwLock<Option<Arc<Store>>>,
    starts: Starts,
    /// All partitions, by id.
    partitions: RwLock<Vec<Arc<Partition>>>,
    health: watch::Sender<Health>,
    reclaiming: AtomicBool,
    /// Records that the starts have passed and that were not given back yet, by a rough count.
    passed: AtomicU64,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    bytes: usize,
    closed: bool,
}

impl Disk {
    pub(super) fn open(dir: &Path, options: Options, health: watch::Sender<Health>) -> Result<(Self, Contents), OpenError> {
        let starts = Starts::default();
        let opened = |e| match e {
            StoreError::InUse(dir) => OpenError::InUse(dir),
            other => OpenError::Store { dir: dir.to_owned(), reason: other.to_string() },
        };
        std::fs::create_dir_all(dir).map_err(|e| OpenError::Store { dir: dir.to_owned(), reason: e.to_string() })?;
        let store = Store::open(dir, &starts).map_err(opened)?;
        let mut stored_topics = store.topics().map_err(opened)?;
        stored_topics.sort_by_key(|topic| topic.first_id);
        let (mut all, mut topics) = (Vec::new(), Vec::new());
        for topic in &stored_topics {
            let mut partitions = Vec::new();
            for id in topic.first_id..topic.first_id.saturating_add(topic.partitions) {
                let (bounds, last) = store.bounds(id).map_err(opened)?;
                partitions.push(Arc::new(Partition::restored(id, bounds, last)));
            }
            all.extend(partitions.iter().cloned());
            topics.push((topic.spec(), partitions));
        }
        let commits = store.commits().map_err(opened)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            options,
            queue: Mutex::default(),
            bell: Condvar::new(),
            store: RwLock::new(Some(Arc::new(store))),
            starts,
            partitions: RwLock::new(all),
            health,
            reclaiming: AtomicBool::new(false),
            passed: AtomicU64::new(0),
        });
        let writer = writer::Writer::new(Arc::clone(&shared), stored_topics);
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| OpenError::Store { dir: dir.to_owned(), reason: e.to_string() })?;
        Ok((Self { shared, writer: Mutex::new(Some(thread)) }, Contents { topics, commits }))
    }

    /// Puts an append into the queue; refused at once when that is full.
    pub(super) fn append(&self, partition: Arc<Partition>, record: Record, ack: AppendAck) {
        let mut queue = self.shared.queue();
        if queue.is_full() {
            drop(queue);
            return ack(Err(AppendError::NotPersisted("too many appends wait for the disk, or the log was closed".to_owned())));
        }
        queue.bytes += record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len);
        queue.jobs.push(Job::Append { partition, record, ack });
        drop(queue);
        self.shared.bell.notify_one();
    }

    /// Whether commits must be refused now.
    pub(super) fn is_full(&self) -> bool {
        self.shared.queue().is_full()
    }

    pub(super) fn write(&self, job: Job) {
        self.shared.write(job);
    }

    /// Takes in the partitions of a new topic.
    pub(super) fn register(&self, partitions: &[Arc<Partition>]) {
        self.shared.partitions.write().unwrap_or_else(PoisonError::into_inner).extend(partitions.iter().cloned());
    }

    /// Reads older records; `None` while the store is broken. Blocks.
    pub(super) fn reader(&self) -> impl FnOnce(u32, Offset, Offset, usize, usize) -> Option<(Vec<Entry>, Offset)> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move |id, from, below, records, bytes| {
            let store = shared.store()?;
            store.read(id, from, below, records, bytes).inspect_err(|e| tracing::error!(partition = id, error = %e, "could not read the log")).ok()
        }
    }

    /// Removes what retention and compaction no longer keep. Blocks.
    pub(super) fn housekeeper(&self) -> house::Housekeeper {
        house::Housekeeper::new(Arc::clone(&self.shared))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.bell.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last user may be the writer itself, in an acknowledgement: it ends when that returns.
        if let Some(writer) = writer.filter(|w| w.thread().id() != std::thread::current().id()) {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Option<Arc<Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, job: Job) {
        let mut queue = self.queue();
        if queue.closed {
            drop(queue);
            return refuse(vec![job], "the log was closed");
        }
        queue.jobs.push(job);
        drop(queue);
        self.bell.notify_one();
    }

    /// Whether the disk has room for more, and a word about it if not.
    fn check_room(&self) -> Result<(), String> {
        let free = match (self.options.free_bytes)(&self.dir) {
            Ok(free) => free,
            Err(e) => return Err(format!("can't tell how much room {} has: {e}", self.dir.display())),
        };
        let keep = self.options.keep_free_bytes;
        if free < keep {
            return Err(format!(
                "the disk under {} is full: {} MiB are free, and the log leaves {} MiB free; make room, and it goes on by itself",
                self.dir.display(),
                free >> 20,
                keep >> 20
            ));
        }
        Ok(())
    }

    fn is_up(&self) -> bool {
        *self.health.borrow() == Health::Up
    }

    fn reclaim_begins(&self) -> bool {
        !self.reclaiming.swap(true, Ordering::SeqCst)
    }

    fn reclaim_ends(&self) {
        self.reclaiming.store(false, Ordering::SeqCst);
    }
}

impl Queue {
    fn is_full(&self) -> bool {
        self.jobs.len() >= MAX_WAITING || self.bytes >= MAX_WAITING_BYTES || self.closed
    }
}

/// How often what is written goes to the disk itself, in the store's terms.
fn each_write_to_disk(options: &Options) -> bool {
    options.fsync == Fsync::Always
}

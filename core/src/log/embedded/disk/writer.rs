//! The thread that writes. It takes all that waits, gives it offsets and times, writes it in one go, shows it to readers, and acknowledges it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::store::{Batch, PATIENCE, Store, StoreError, StoredTopic};
use super::{Ack, AppendAck, Install, Job, Shared, each_write_to_disk};
use crate::clock::{Moment, wall_clock};
use crate::log::embedded::Fsync;
use crate::log::embedded::partition::Partition;
use crate::log::{AppendError, Appended, Entry, Health, LogError, TopicSpec};
use crate::{fail_point, planted};

/// What one write takes at most.
const MAX_BATCH_JOBS: usize = 2_048;
const MAX_BATCH_BYTES: usize = 4 << 20;

/// The newest records of all partitions that stay in memory for readers, in bytes; of one partition; and what a partition keeps when all together are too many.
const TAILS_BYTES: usize = 32 << 20;
const TAIL_BYTES: usize = 512 << 10;
const SHORT_TAIL_BYTES: usize = 16 << 10;

/// A broken store, or a full disk, is looked at again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// On a full disk, this much of what the store has superseded and not removed is worth opening it again; and how often that is done at most.
const WORTH_OPENING_BYTES: u64 = 16 << 20;
const OPEN_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Writer {
    shared: Arc<Shared>,
    topics: HashMap<String, StoredTopic>,
    next_id: u32,
    tails: HashMap<u32, usize>,
    tails_bytes: usize,
    /// Since when something is written but not on the disk itself.
    unsynced_since: Option<Instant>,
    opened_at: Instant,
}

/// What is done once a batch is written, or not.
#[derive(Default)]
struct Written {
    appends: Vec<(AppendAck, Appended)>,
    entries: HashMap<u32, (Arc<Partition>, Vec<Entry>)>,
    acks: Vec<Ack>,
    installs: Vec<(Install, Vec<(TopicSpec, u32)>)>,
    new_topics: Vec<StoredTopic>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, topics: Vec<StoredTopic>) -> Self {
        let next_id = topics.iter().map(|t| t.first_id.saturating_add(t.partitions)).max().unwrap_or(0);
        let topics = topics.into_iter().map(|t| (t.name.clone(), t)).collect();
        Self { shared, topics, next_id, tails: HashMap::new(), tails_bytes: 0, unsynced_since: None, opened_at: Instant::now() }
    }

    /// Writes until the log is closed and nothing waits any more. Should the store panic, everything is refused from then on.
    pub(super) fn run(self) {
        let shared = Arc::clone(&self.shared);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || self.write_all())).is_err() {
            tracing::error!(dir = %shared.dir.display(), "the log's store has panicked: nothing more is accepted; start again");
            shared.health.send_replace(Health::Away(Moment::now()));
            let mut queue = shared.queue();
            queue.closed = true;
            let jobs = std::mem::take(&mut queue.jobs);
            drop(queue);
            refuse(jobs, "the log's store has failed for good; start again");
        }
    }

    fn write_all(mut self) {
        while let Some(jobs) = self.take() {
            self.write(jobs);
            self.sync_if_due();
        }
        if let Some(store) = self.shared.store()
            && let Err(e) = store.sync()
        {
            tracing::error!(error = %e, "could not write the log to the disk when it was closed");
        }
        // Its files are free when the writer has ended.
        self.shared.store.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// What waits now. Returns with nothing when something else may be due; `None`: closed and empty.
    fn take(&self) -> Option<Vec<Job>> {
        let mut queue = self.shared.queue();
        if queue.jobs.is_empty() {
            if queue.closed {
                return None;
            }
            let nap = match (self.sync_due(), self.shared.is_up()) {
                (Some(due), _) => due.saturating_duration_since(Instant::now()),
                (None, false) => RETRY,
                (None, true) => Duration::from_secs(3600),
            };
            queue = self.shared.bell.wait_timeout_while(queue, nap, |q| q.jobs.is_empty() && !q.closed).unwrap_or_else(PoisonError::into_inner).0;
        }
        let (mut bytes, mut count) = (0, 0);
        for job in queue.jobs.iter().take(MAX_BATCH_JOBS) {
            bytes += job.size_bytes();
            count += 1;
            if bytes >= MAX_BATCH_BYTES {
                break;
            }
        }
        queue.bytes = queue.bytes.saturating_sub(bytes);
        let rest = queue.jobs.split_off(count);
        Some(std::mem::replace(&mut queue.jobs, rest))
    }

    fn write(&mut self, jobs: Vec<Job>) {
        let mut store = match self.store() {
            Ok(store) => store,
            Err(why) => return refuse(jobs, &why),
        };
        let jobs = match self.shared.check_room() {
            Ok(()) => {
                self.is_up();
                jobs
            }
            Err(why) => {
                self.is_away(&why);
                store = match self.give_back(store) {
                    Ok(store) => store,
                    Err(why) => return refuse(jobs, &why),
                };
                // What makes room is still done.
                let (house, refused) = jobs.into_iter().partition(|job| matches!(job, Job::Trim { .. } | Job::Remove { .. }));
                refuse(refused, &why);
                house
            }
        };
        if jobs.is_empty() {
            return;
        }
        if let Err(why) = wait_until_it_keeps_up(&store) {
            refuse(jobs, &why);
            drop(store);
            return self.broken(Written::default(), &why);
        }
        let mut batch = store.batch();
        let mut written = Written::default();
        for job in jobs {
            self.add(job, &mut batch, &mut written);
        }
        if planted!(ReplyBeforeDurable) {
            written.appends.drain(..).for_each(|(ack, appended)| ack(Ok(appended)));
        }
        if !written.entries.is_empty() {
            fail_point!(LogWrite, {
                drop(batch);
                drop(store);
                return self.broken(written, "a fail point");
            });
        }
        match batch.write(each_write_to_disk(&self.shared.options)) {
            Ok(()) => {
                fail_point!(LogWritten, {
                    drop(store);
                    return self.broken(written, "a fail point");
                });
                if self.shared.options.fsync != Fsync::Always {
                    self.unsynced_since.get_or_insert_with(Instant::now);
                }
                self.acknowledge(written);
            }
            Err(e) => {
                drop(store);
                self.broken(written, &e.to_string());
            }
        }
    }

    /// Nothing is written on a full disk, so that the store does not remove what it has superseded, and that alone may fill the disk. Opened again, it does.
    fn give_back(&mut self, store: Arc<Store>) -> Result<Arc<Store>, String> {
        let superseded = store.superseded_bytes(&self.shared.dir).unwrap_or(0);
        if superseded < WORTH_OPENING_BYTES || self.opened_at.elapsed() < OPEN_EVERY {
            return Ok(store);
        }
        tracing::info!(dir = %self.shared.dir.display(), bytes = superseded, "opening the log's store again, to give room back to the disk");
        drop(store);
        self.shared.store.write().unwrap_or_else(PoisonError::into_inner).take();
        self.reopen().map_err(|e| e.to_string())
    }

    fn add(&mut self, job: Job, batch: &mut Batch<'_>, written: &mut Written) {
        match job {
            Job::Append { partition, record, ack } => {
                let (_, entries) = written.entries.entry(partition.id).or_insert_with(|| (Arc::clone(&partition), Vec::new()));
                let appended = match entries.last() {
                    Some(last) => Appended { offset: last.offset.next(), timestamp: last.timestamp },
                    None => partition.next(wall_clock()),
                };
                let entry = Entry { offset: appended.offset, timestamp: appended.timestamp, record };
                batch.append(partition.id, &entry);
                entries.push(entry);
                written.appends.push((ack, appended));
            }
            Job::Commit { group, commits, ack } => {
                for (partition, committed) in &commits {
                    batch.commit(&group, partition, committed);
                }
                written.acks.push(ack);
            }
            Job::CreateTopics { specs, install, ack } => {
                let mut new = Vec::new();
                for spec in specs {
                    if self.topics.contains_key(spec.topic.as_str()) || written.new_topics.iter().any(|t| t.name == spec.topic.as_str()) {
                        continue;
                    }
                    let topic = StoredTopic::new(&spec, self.next_id);
                    self.next_id = self.next_id.saturating_add(spec.partitions);
                    batch.topic(&topic);
                    new.push((spec, topic.first_id));
                    written.new_topics.push(topic);
                }
                written.installs.push((install, new));
                written.acks.push(ack);
            }
            Job::Trim { partition, ack } => {
                let (bounds, last) = partition.bounds_and_time();
                batch.start(partition.id, bounds, last);
                written.acks.push(ack);
            }
            Job::Remove { partition, offsets, ack } => {
                written.acks.push(ack);
                for offset in offsets {
                    batch.remove(partition.id, offset);
                }
                // The last record may be among them, and its offset must not be given again.
                let (bounds, last) = partition.bounds_and_time();
                batch.start(partition.id, bounds, last);
            }
        }
    }

    fn acknowledge(&mut self, written: Written) {
        for topic in written.new_topics {
            self.topics.insert(topic.name.clone(), topic);
        }
        for (install, new) in written.installs {
            install(&new);
        }
        for (id, (partition, entries)) in written.entries {
            let bytes = partition.publish(entries);
            self.shed(id, &partition, bytes);
        }
        for (ack, appended) in written.appends {
            ack(Ok(appended));
        }
        for ack in written.acks {
            ack(Ok(()));
        }
    }

    fn shed(&mut self, id: u32, partition: &Partition, mut bytes: usize) {
        let before = self.tails.get(&id).copied().unwrap_or(0);
        if self.tails_bytes - before + bytes > TAILS_BYTES {
            bytes = partition.shed(SHORT_TAIL_BYTES);
        } else if bytes > TAIL_BYTES {
            bytes = partition.shed(TAIL_BYTES / 2);
        }
        self.tails.insert(id, bytes);
        self.tails_bytes = self.tails_bytes - before + bytes;
    }

    fn sync_due(&self) -> Option<Instant> {
        match self.shared.options.fsync {
            Fsync::Interval(interval) => self.unsynced_since.map(|since| since + interval),
            Fsync::Always | Fsync::Never => None,
        }
    }

    fn sync_if_due(&mut self) {
        if self.sync_due().is_some_and(|due| due <= Instant::now())
            && let Some(store) = self.shared.store()
        {
            self.unsynced_since = None;
            fail_point!(LogSync, {
                drop(store);
                return self.broken(Written::default(), "a fail point");
            });
            if let Err(e) = store.sync() {
                drop(store);
                self.broken(Written::default(), &e.to_string());
            }
        }
    }

    /// The store; opened again if it was broken, from time to time.
    fn store(&mut self) -> Result<Arc<Store>, String> {
        if let Some(store) = self.shared.store() {
            return Ok(store);
        }
        let not_yet = "its store is broken; it is opened again as soon as that is possible".to_owned();
        if self.opened_at.elapsed() < RETRY {
            return Err(not_yet);
        }
        self.reopen().map_err(|e| e.to_string())
    }

    fn reopen(&mut self) -> Result<Arc<Store>, StoreError> {
        self.opened_at = Instant::now();
        let store = Store::open(&self.shared.dir, &self.shared.starts)?;
        for partition in self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner).iter() {
            let (bounds, last) = store.bounds(partition.id)?;
            partition.reload(bounds, last);
        }
        let store = Arc::new(store);
        *self.shared.store.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&store));
        tracing::info!(dir = %self.shared.dir.display(), "opened the log's store again");
        Ok(store)
    }

    /// The store has failed with this batch under way. Opens it again, to see whether the batch is in it.
    fn broken(&mut self, written: Written, why: &str) {
        self.is_away(why);
        self.shared.store.write().unwrap_or_else(PoisonError::into_inner).take();
        let first = written.entries.values().find_map(|(partition, entries)| Some((partition.id, entries.first()?.offset)));
        let persisted = self.reopen().and_then(|store| match first {
            Some((id, offset)) => store.first(id, offset, offset.next()).map(|found| Some(found.is_some())),
            None => Ok(None),
        });
        match persisted {
            // After a failed fsync the system may say that something is there which the disk does not have.
            Ok(Some(true)) if !each_write_to_disk(&self.shared.options) => self.acknowledge(written),
            Ok(Some(false)) => written.fail(|| AppendError::NotPersisted(why.to_owned()), why),
            _ => written.fail(|| AppendError::Unknown(why.to_owned()), why),
        }
    }

    fn is_away(&self, why: &str) {
        self.shared.health.send_if_modified(|health| {
            let was_up = *health == Health::Up;
            if was_up {
                tracing::error!(dir = %self.shared.dir.display(), reason = why, "the log refuses to be written");
                *health = Health::Away(Moment::now());
            }
            was_up
        });
    }

    fn is_up(&self) {
        self.shared.health.send_if_modified(|health| {
            let was_away = *health != Health::Up;
            if was_away {
                tracing::info!(dir = %self.shared.dir.display(), "the log can be written again");
                *health = Health::Up;
            }
            was_away
        });
    }
}

impl Written {
    fn fail(self, append: impl Fn() -> AppendError, why: &str) {
        for (ack, _) in self.appends {
            ack(Err(append()));
        }
        for ack in self.acks {
            ack(Err(LogError::Unavailable(why.to_owned())));
        }
    }
}

impl Job {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Append { record, .. } => record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len),
            _ => 0,
        }
    }
}

/// Answers these in the negative: nothing of them was written.
pub(super) fn refuse(jobs: Vec<Job>, why: &str) {
    for job in jobs {
        match job {
            Job::Append { ack, .. } => ack(Err(AppendError::NotPersisted(why.to_owned()))),
            Job::Commit { ack, .. } | Job::CreateTopics { ack, .. } | Job::Trim { ack, .. } | Job::Remove { ack, .. } => {
                ack(Err(LogError::Unavailable(why.to_owned())));
            }
        }
    }
}

/// The store itself would wait without end if its sorting had failed.
fn wait_until_it_keeps_up(store: &Store) -> Result<(), String> {
    let begun = Instant::now();
    while store.is_behind() {
        if store.is_broken() {
            return Err("the store has failed in the background".to_owned());
        }
        if begun.elapsed() > PATIENCE {
            return Err(StoreError::Stuck.to_string());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

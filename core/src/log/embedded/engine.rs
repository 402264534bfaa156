//! What all clients of one embedded log share: its topics, its groups, and the task that watches the time.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::disk::{Ack, AppendAck, Disk, Job};
use super::group::{Effect, Groups, Holder, MemberId};
use super::partition::{Found, Partition};
use super::runtime::Runtime;
use super::seat::Seat;
use super::topics::{TopicState, keep_house_now_and_then};
use super::{OpenError, Options};
use crate::clock::Moment;
use crate::fail_point;
use crate::log::{AppendError, Committed, Entry, Health, LogError, Offset, Record, Topic, TopicPartition};

/// The largest record, in bytes: what a stock Kafka broker takes, rounded down.
pub(super) const MAX_RECORD_BYTES: usize = 1_000_000;

/// How much is read at once, in bytes of memory.
pub(super) const FETCH_BYTES: usize = 1 << 20;

pub(super) struct Engine {
    pub(super) topics: RwLock<HashMap<Topic, Arc<TopicState>>>,
    /// Rings when a topic was made.
    pub(super) new_topics: watch::Sender<()>,
    groups: Mutex<Coordinator>,
    /// Rings when a deadline of the groups may have become nearer.
    deadlines: Arc<Notify>,
    /// Tokio's clock when the log was opened; the groups count from it, so that tests can run on paused time.
    opened: Instant,
    last_holder: AtomicU64,
    /// Dropped with the log; those who wait for it hear of that.
    alive: watch::Sender<()>,
    /// `None`: only in memory.
    pub(super) disk: Option<Disk>,
    health: watch::Sender<Health>,
    runtime: Runtime,
}

/// How a seat ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// In order.
    Left,
    /// Its holder can't act any more.
    Gone,
    /// The log ended it; its holder may live on.
    CutOff,
}

/// The groups, and where their members sit. One lock, so that what members are told comes in the order in which it was decided.
#[derive(Default)]
struct Coordinator {
    groups: Groups,
    seats: BTreeMap<MemberId, Arc<Seat>>,
}

/// Records that were read, and where to go on.
pub(super) enum Fetched {
    Entries { entries: Vec<Entry>, next: Offset },
    Truncated { start: Offset },
    End,
}

impl Engine {
    pub(super) fn in_memory() -> std::io::Result<Arc<Self>> {
        Ok(Self::start(Runtime::here()?, None, watch::Sender::new(Health::Up)))
    }

    pub(super) fn open(dir: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        let runtime = Runtime::here().map_err(|e| OpenError::Store { dir: dir.to_owned(), reason: e.to_string() })?;
        let health = watch::Sender::new(Health::Up);
        let (disk, contents) = Disk::open(dir, options, health.clone())?;
        let engine = Self::start(runtime, Some(disk), health);
        let mut coordinator = engine.coordinator();
        let mut topics = engine.topics.write().unwrap_or_else(PoisonError::into_inner);
        for (spec, partitions) in contents.topics {
            coordinator.groups.topic_restored(&spec.topic, spec.partitions);
            topics.insert(spec.topic.clone(), Arc::new(TopicState { spec, partitions }));
        }
        for (group, partition, committed) in contents.commits {
            coordinator.groups.commit_restored(&group, partition, committed);
        }
        drop((topics, coordinator));
        Ok(engine)
    }

    fn start(runtime: Runtime, disk: Option<Disk>, health: watch::Sender<Health>) -> Arc<Self> {
        let engine = Arc::new(Self {
            topics: RwLock::default(),
            new_topics: watch::Sender::new(()),
            groups: Mutex::default(),
            deadlines: Arc::default(),
            opened: Instant::now(),
            last_holder: AtomicU64::new(0),
            alive: watch::Sender::new(()),
            disk,
            health,
            runtime,
        });
        engine.spawn(watch_the_time(Arc::downgrade(&engine)));
        engine.spawn(keep_house_now_and_then(Arc::downgrade(&engine)));
        engine
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.runtime.handle().spawn(task)
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn coordinator(&self) -> MutexGuard<'_, Coordinator> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn topic(&self, topic: &Topic) -> Option<Arc<TopicState>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    pub(super) fn partition(&self, of: &TopicPartition) -> Option<Arc<Partition>> {
        self.topic(&of.topic)?.partitions.get(usize::try_from(of.partition).ok()?).cloned()
    }

    /// Waits until the partition is there.
    pub(super) async fn partition_when_there(&self, of: &TopicPartition) -> Arc<Partition> {
        let mut new_topics = self.new_topics.subscribe();
        loop {
            new_topics.mark_unchanged();
            if let Some(partition) = self.partition(of) {
                return partition;
            }
            // The sender lives as long as self.
            let _ = new_topics.changed().await;
        }
    }

    /// Appends; `ack` is called once, with what became of it, maybe before this returns.
    pub(super) fn append(&self, to: &TopicPartition, record: Record, ack: AppendAck) {
        fail_point!(LogAppend, return ack(Err(AppendError::NotPersisted("a fail point".to_owned()))));
        let size_bytes = record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len);
        if size_bytes > MAX_RECORD_BYTES {
            return ack(Err(AppendError::TooLarge { size_bytes, limit_bytes: MAX_RECORD_BYTES }));
        }
        let Some(topic) = self.topic(&to.topic) else {
            return ack(Err(AppendError::NotPersisted(format!("there is no topic {}; make it first", to.topic))));
        };
        let Some(partition) = usize::try_from(to.partition).ok().and_then(|p| topic.partitions.get(p)) else {
            return ack(Err(AppendError::NotPersisted(format!("{to}: the topic has {} partitions", topic.partitions.len()))));
        };
        if topic.spec.compacted && record.key.is_empty() {
            return ack(Err(AppendError::NotPersisted(format!("{to}: a record of a compacted topic must have a key"))));
        }
        match &self.disk {
            None => ack(Ok(partition.append(record, crate::clock::wall_clock()))),
            Some(disk) => disk.append(Arc::clone(partition), record, ack),
        }
    }

    pub(super) async fn fetch(&self, partition: &Partition, at: Offset, records: usize) -> Fetched {
        let (from, below) = match partition.find(at, records, FETCH_BYTES) {
            Found::Entries { entries, next } => return Fetched::Entries { entries, next },
            Found::Truncated { start } => return Fetched::Truncated { start },
            Found::End => return Fetched::End,
            Found::Stored { from, below } => (from, below),
        };
        let Some(disk) = &self.disk else { return Fetched::End };
        let (read, id) = (disk.reader(), partition.id);
        let read = self.runtime.handle().spawn_blocking(move || read(id, from, below, records, FETCH_BYTES)).await;
        let Some((entries, next)) = read.ok().flatten() else {
            // The store is broken, and being opened again.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Fetched::Entries { entries: Vec::new(), next: at };
        };
        // What was passed while it was read may have been read in part.
        let start = partition.bounds().start;
        if at < start { Fetched::Truncated { start } } else { Fetched::Entries { entries, next } }
    }

    /// Tokio's clock as the groups count it.
    pub(super) fn now(&self) -> Moment {
        Moment::from_start(self.opened.elapsed())
    }

    pub(super) fn new_holder(&self) -> Holder {
        Holder::new(self.last_holder.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) fn committed(&self, group: &str, of: &[TopicPartition]) -> Vec<Option<Committed>> {
        let coordinator = self.coordinator();
        of.iter().map(|partition| coordinator.groups.committed(group, partition)).collect()
    }

    /// The number of members of a group, as the log sees it now.
    pub(super) fn members(&self, group: &str) -> usize {
        self.coordinator().groups.members(group)
    }

    /// Commits; `ack` is called once, with what became of it, maybe before this returns.
    pub(super) fn commit(&self, member: Option<MemberId>, commits: Vec<(TopicPartition, Committed)>, ack: Ack) {
        let Some(member) = member else { return ack(Err(LogError::Fenced("no member of the group now".to_owned()))) };
        fail_point!(LogCommit, return ack(Err(LogError::Unavailable("a fail point".to_owned()))));
        let mut coordinator = self.coordinator();
        if self.disk.as_ref().is_some_and(Disk::is_full) {
            drop(coordinator);
            return ack(Err(LogError::Unavailable("too much waits for the disk".to_owned())));
        }
        let group = coordinator.groups.group_of(member).unwrap_or_default().to_owned();
        let decided = coordinator.groups.commit(self.now(), member, &commits);
        match (&self.disk, decided) {
            // Under the lock, so that commits are written in the order in which they were decided.
            (Some(disk), Ok(())) => disk.write(Job::Commit { group, commits, ack }),
            (_, decided) => {
                drop(coordinator);
                ack(decided);
            }
        }
    }

    /// A sign of life of a seat. One that is no member now becomes one again.
    pub(super) fn heartbeat(&self, seat: &Arc<Seat>) {
        let mut coordinator = self.coordinator();
        let now = self.now();
        if seat.member().is_some_and(|member| coordinator.groups.heartbeat(now, member)) {
            return;
        }
        let Some(holder) = seat.begin_stay() else { return };
        let (member, effects) = coordinator.groups.join(now, holder, &seat.spec);
        seat.joined(member);
        coordinator.seats.insert(member, Arc::clone(seat));
        coordinator.tell(effects);
        drop(coordinator);
        self.deadlines.notify_one();
    }

    /// Changes the groups and tells the members what comes of it.
    pub(super) fn in_groups(&self, change: impl FnOnce(&mut Groups, Moment) -> Vec<Effect>) {
        self.change_groups(change);
        self.deadlines.notify_one();
    }

    fn change_groups(&self, change: impl FnOnce(&mut Groups, Moment) -> Vec<Effect>) {
        let mut coordinator = self.coordinator();
        let effects = change(&mut coordinator.groups, self.now());
        let expelled = coordinator.tell(effects);
        drop(coordinator);
        for seat in expelled.into_iter().filter(|seat| seat.beats_here()) {
            self.heartbeat(&seat);
        }
    }

    /// Ends the stay of a seat that takes part no more.
    pub(super) fn end_stay(&self, seat: &Seat, how: Ending) {
        let mut coordinator = self.coordinator();
        let member = seat.end_stay();
        if let Some(member) = member {
            coordinator.seats.remove(&member);
        }
        let now = self.now();
        let effects = match how {
            Ending::Left => member.map(|member| coordinator.groups.leave(now, member)).unwrap_or_default(),
            Ending::Gone => coordinator.groups.gone(now, seat.holder),
            Ending::CutOff => coordinator.groups.cut_off(now, seat.holder),
        };
        coordinator.tell(effects);
        drop(coordinator);
        self.deadlines.notify_one();
    }

    /// Never says anything; ends when the log is closed.
    pub(super) fn closing(&self) -> watch::Receiver<()> {
        self.alive.subscribe()
    }

    /// Gives the sign of life of every seat whose holder is this process, and expels who is late. Returns when to come again.
    fn tick(&self, overslept: Duration) -> Duration {
        let seats: Vec<_> = self.coordinator().seats.values().filter(|seat| seat.beats_here()).cloned().collect();
        for seat in &seats {
            self.heartbeat(seat);
        }
        self.change_groups(|groups, now| {
            groups.overslept(overslept);
            groups.tick(now)
        });
        let beat = seats.iter().map(|seat| seat.spec.session_timeout / 3).min().unwrap_or(LONGEST_NAP);
        let deadline = self.coordinator().groups.next_deadline().map_or(LONGEST_NAP, |at| at.since(self.now()));
        beat.min(deadline).clamp(Duration::from_millis(1), LONGEST_NAP)
    }
}

/// The time is looked at this often when nothing is due.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// A log that was stopped for longer than this can't tell who was alive meanwhile.
const OVERSLEPT: Duration = Duration::from_millis(500);

impl Coordinator {
    /// Tells the members. Returns the seats of those that are members no longer.
    fn tell(&mut self, effects: Vec<Effect>) -> Vec<Arc<Seat>> {
        let mut expelled = Vec::new();
        for effect in effects {
            match effect {
                Effect::Expelled(member, lost) => {
                    if let Some(seat) = self.seats.remove(&member) {
                        seat.expelled(lost);
                        expelled.push(seat);
                    }
                }
                Effect::Assigned(member, assignments) => {
                    if let Some(seat) = self.seats.get(&member) {
                        seat.assigned(assignments);
                    }
                }
                Effect::Revoking(member, partitions) => {
                    if let Some(seat) = self.seats.get(&member) {
                        seat.revoking(partitions);
                    }
                }
                Effect::Missing(member, topics) => {
                    if let Some(seat) = self.seats.get(&member) {
                        seat.missing(&topics);
                    }
                }
            }
        }
        expelled
    }
}

/// Expels members that are late, at the moment when they are.
async fn watch_the_time(engine: Weak<Engine>) {
    let mut overslept = Duration::ZERO;
    loop {
        // Held for the tick only: this task must not keep a log alive that nobody uses.
        let Some(strong) = engine.upgrade() else { return };
        let nap = strong.tick(overslept);
        let deadlines = Arc::clone(&strong.deadlines);
        drop(strong);
        let slept_from = Instant::now();
        let _ = tokio::time::timeout(nap, deadlines.notified()).await;
        overslept = slept_from.elapsed().saturating_sub(nap);
        if overslept < OVERSLEPT {
            overslept = Duration::ZERO;
        }
    }
}

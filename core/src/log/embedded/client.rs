//! A client of the embedded log in the same process, with the faults that a test can give it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Semaphore, oneshot, watch};

use super::engine::{Ending, Engine, Fetched, MAX_RECORD_BYTES};
use super::seat::{Seat, Taken};
use crate::clock::Moment;
use crate::log::{
    Append, AppendError, Appended, Bounds, Committed, GroupSpec, Health, Log, LogError, Membership, Offset, Pending, Read, Reader, Record, Topic,
    TopicPartition, TopicSpec,
};

/// Batches that a reader's user may leave unread.
pub(super) const READ_AHEAD: usize = 2;

/// A client of the log, as one process would be: what ends or breaks, ends or breaks for all that was asked through it.
///
/// [`Embedded`](super::Embedded) is a client without faults; tests make others with [`Embedded::client`](super::Embedded::client).
/// Dropping a client ends nothing: memberships and readers go on until they are dropped too.
pub struct Client {
    engine: Arc<Engine>,
    connection: Arc<Connection>,
    faults: Mutex<Faults>,
    seats: Mutex<Vec<Weak<Seat>>>,
    health: Arc<watch::Sender<Health>>,
}

/// What becomes of appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFault {
    /// They are not stored, and the log says so.
    Refuse,
    /// They are stored, but their acknowledgement is lost.
    LoseAck,
    /// They are lost on the way, and nothing is known of them.
    LoseRecord,
    /// They are stored, but their acknowledgement comes only when the fault ends.
    HoldAck,
}

#[derive(Default)]
struct Faults {
    appends: Option<(AppendFault, Option<Topic>)>,
    held: Vec<(oneshot::Sender<Result<Appended, AppendError>>, Append)>,
}

/// How a client and the log are connected.
pub(super) struct Connection {
    /// Whether the log itself gives the signs of life of this client's memberships, or the client does.
    local: bool,
    zombie: AtomicBool,
    online: watch::Sender<bool>,
    killed: watch::Sender<bool>,
}

impl Connection {
    pub(super) fn new(local: bool) -> Arc<Self> {
        Arc::new(Self { local, zombie: AtomicBool::new(false), online: watch::Sender::new(true), killed: watch::Sender::new(false) })
    }

    pub(super) fn beats_here(&self) -> bool {
        self.local && !self.is_zombie() && self.is_online()
    }

    pub(super) fn is_zombie(&self) -> bool {
        self.zombie.load(Ordering::SeqCst)
    }

    pub(super) fn is_online(&self) -> bool {
        *self.online.borrow() && !*self.killed.borrow()
    }

    pub(super) fn online(&self) -> watch::Receiver<bool> {
        self.online.subscribe()
    }

    /// Why nothing can be asked of the log now, if so.
    pub(super) fn check(&self) -> Result<(), String> {
        if *self.killed.borrow() {
            Err("the log's client was closed".to_owned())
        } else if !*self.online.borrow() {
            Err("the log can't be reached".to_owned())
        } else {
            Ok(())
        }
    }
}

impl Client {
    /// A client in this process.
    pub(super) fn new(engine: Arc<Engine>) -> Arc<Self> {
        let client = Self::connected_by(engine, Connection::new(true));
        client.engine.spawn(pass_on_health(client.engine.health(), Arc::downgrade(&client.health), client.connection.online()));
        client
    }

    /// A client for a connection, which gives the signs of life itself, and asks the engine for its health.
    pub(super) fn for_remote(&self) -> Arc<Self> {
        Self::connected_by(Arc::clone(&self.engine), Connection::new(false))
    }

    /// Takes a seat in a group for a connection that has this much room for records.
    pub(super) fn take_seat(&self, spec: GroupSpec, room: Arc<Semaphore>) -> Taken {
        Seat::take(&self.engine, &self.connection, spec, Some(room))
    }

    fn connected_by(engine: Arc<Engine>, connection: Arc<Connection>) -> Arc<Self> {
        let health = Arc::new(watch::Sender::new(*engine.health().borrow()));
        Arc::new(Self { engine, connection, faults: Mutex::default(), seats: Mutex::default(), health })
    }

    fn append_now(&self, to: &TopicPartition, record: Record) -> Append {
        let (sender, pending) = Pending::new();
        self.engine.append(to, record, Box::new(move |done| drop(sender.send(done))));
        pending
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seats(&self) -> Vec<Arc<Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// From now on appends fail like this, to one topic or to all, until [`heal`](Self::heal).
    pub fn fail_appends(&self, fault: AppendFault, to: Option<&Topic>) {
        self.faults().appends = Some((fault, to.cloned()));
    }

    /// Ends the fault of appends; held acknowledgements come now.
    pub fn heal(&self) {
        let mut faults = self.faults();
        faults.appends = None;
        for (sender, mut append) in std::mem::take(&mut faults.held) {
            self.engine.spawn(async move {
                let _ = sender.send((&mut append).await);
            });
        }
    }

    /// Makes a zombie of it: no signs of life, and it isn't told what the log decides on its memberships. It goes on reading, appending and committing; when
    /// its sessions have run out, its commits fail.
    pub fn stop_heartbeats(&self) {
        self.connection.zombie.store(true, Ordering::SeqCst);
    }

    /// Ends [`stop_heartbeats`](Self::stop_heartbeats): it is told what it has missed, and joins again what it was expelled from.
    pub fn resume_heartbeats(&self) {
        self.connection.zombie.store(false, Ordering::SeqCst);
        for seat in self.seats() {
            seat.wake_up();
            self.engine.heartbeat(&seat);
        }
    }

    /// Cuts the way to the log: appends are refused here, nothing is read, commits fail, sessions run out. The log doesn't know that it is gone.
    pub fn disconnect(&self) {
        self.stop_heartbeats();
        self.connection.online.send_replace(false);
        self.health.send_replace(Health::Away(Moment::now()));
    }

    /// Ends [`disconnect`](Self::disconnect).
    pub fn reconnect(&self) {
        self.connection.online.send_replace(true);
        self.health.send_replace(*self.engine.health().borrow());
        self.resume_heartbeats();
    }

    /// The death of the process: everything of it ends at once, and the log knows. Nothing more is said about appends under way.
    pub fn kill(&self) {
        self.connection.killed.send_replace(true);
        self.health.send_replace(Health::Away(Moment::now()));
        self.faults().held.clear();
        for seat in self.seats() {
            seat.end(Ending::Gone);
        }
    }

    /// The number of members of a group, as the log sees it now.
    pub fn members(&self, group: &str) -> usize {
        self.engine.members(group)
    }
}

impl Log for Client {
    fn append(&self, to: &TopicPartition, record: Record) -> Append {
        if let Err(away) = self.connection.check() {
            return Pending::ready(Err(AppendError::NotPersisted(away)));
        }
        let mut faults = self.faults();
        let fault = faults.appends.as_ref().filter(|(_, topic)| topic.as_ref().is_none_or(|topic| *topic == to.topic)).map(|(fault, _)| *fault);
        match fault {
            None => {
                drop(faults);
                self.append_now(to, record)
            }
            Some(AppendFault::Refuse) => Pending::ready(Err(AppendError::NotPersisted("the log refused it (test)".to_owned()))),
            Some(AppendFault::LoseRecord) => Pending::ready(Err(AppendError::Unknown("the connection broke (test)".to_owned()))),
            Some(AppendFault::LoseAck) => {
                drop(self.append_now(to, record));
                Pending::ready(Err(AppendError::Unknown("the acknowledgement was lost (test)".to_owned())))
            }
            Some(AppendFault::HoldAck) => {
                let (sender, held) = Pending::new();
                let stored = self.append_now(to, record);
                faults.held.push((sender, stored));
                held
            }
        }
    }

    fn read(&self, from: &TopicPartition, at: Offset) -> Reader {
        let (sender, reader) = Reader::new(READ_AHEAD);
        let task = pump(Arc::downgrade(&self.engine), Arc::clone(&self.connection), from.clone(), at, sender.clone());
        let mut killed = self.connection.killed.subscribe();
        let mut closing = self.engine.closing();
        self.engine.spawn(async move {
            tokio::select! {
                () = task => {}
                () = sender.closed() => {}
                _ = killed.wait_for(|killed| *killed) => {}
                _ = closing.changed() => {}
            }
        });
        reader
    }

    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds> {
        if let Err(away) = self.connection.check() {
            return Pending::ready(Err(LogError::Unavailable(away)));
        }
        Pending::ready(self.engine.partition(of).map(|p| p.bounds()).ok_or_else(|| LogError::NotFound(of.to_string())))
    }

    fn join(&self, group: GroupSpec) -> Membership {
        let taken = Seat::take(&self.engine, &self.connection, group, None);
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.strong_count() > 0);
        seats.push(Arc::downgrade(&taken.seat));
        Membership::new(taken.events, taken.control)
    }

    fn committed(&self, group: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>> {
        Pending::ready(self.connection.check().map_err(LogError::Unavailable).map(|()| self.engine.committed(group, &of)))
    }

    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()> {
        if let Err(away) = self.connection.check() {
            return Pending::ready(Err(LogError::Unavailable(away)));
        }
        let (sender, pending) = Pending::new();
        self.engine.create_topics(topics, Box::new(move |done| drop(sender.send(done))));
        pending
    }

    fn partitions(&self, of: &Topic) -> Pending<Option<u32>> {
        Pending::ready(self.connection.check().map_err(LogError::Unavailable).map(|()| self.engine.topic(of).map(|topic| topic.spec.partitions)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn max_record_bytes(&self) -> usize {
        MAX_RECORD_BYTES
    }
}

/// Says what the log's health is, while the client is connected.
async fn pass_on_health(mut engine: watch::Receiver<Health>, client: Weak<watch::Sender<Health>>, online: watch::Receiver<bool>) {
    loop {
        let health = *engine.borrow_and_update();
        let Some(client) = client.upgrade() else { return };
        if *online.borrow() {
            client.send_if_modified(|known| std::mem::replace(known, health) != health);
        }
        drop(client);
        if engine.changed().await.is_err() {
            return;
        }
    }
}

/// Reads a partition into a reader for as long as somebody takes what is read.
async fn pump(engine: Weak<Engine>, connection: Arc<Connection>, from: TopicPartition, mut at: Offset, reader: tokio::sync::mpsc::Sender<Read>) {
    let Some(strong) = engine.upgrade() else { return };
    let partition = strong.partition_when_there(&from).await;
    drop(strong);
    let mut bell = partition.bell();
    let mut online = connection.online();
    loop {
        let Ok(room) = reader.reserve().await else { return };
        if online.wait_for(|online| *online).await.is_err() {
            return;
        }
        bell.mark_unchanged();
        let Some(strong) = engine.upgrade() else { return };
        let fetched = strong.fetch(&partition, at, usize::MAX).await;
        drop(strong);
        match fetched {
            Fetched::Entries { entries, next } => {
                at = next;
                if !entries.is_empty() {
                    room.send(Read::Entries(entries));
                }
            }
            Fetched::Truncated { start } => {
                room.send(Read::Truncated { wanted: at, start });
                at = start;
            }
            Fetched::End => {
                drop(room);
                if bell.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

//! A proxy's end of the socket: [`Log`] over one connection, which is made again when it ends.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::frame::{Ask, Broken, FromLog, Say, ToLog};
use super::link::keep_connected;
use super::member::{Members, RemoteControl};
use super::message::{AppendAsk, CommittedAsk, Nothing, Place, ReadAsk, TopicSpecs};
use super::waiter::Waiter;
use crate::clock::Moment;
use crate::log::embedded::engine::MAX_RECORD_BYTES;
use crate::log::embedded::runtime::Runtime;
use crate::log::{
    Append, AppendError, Bounds, Committed, GroupSpec, Health, Log, Membership, Offset, Pending, Read, Reader, Record, Topic, TopicPartition, TopicSpec,
};

/// Appends under way, in number and in bytes; beyond, they are refused.
const MAX_WAITING: usize = 16_384;
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Batches that a reader's user may leave unread, and how many of them may be on their way at once.
const READ_AHEAD: usize = 4;
const CREDITS: usize = 2;

/// A request that is made while there is no connection waits this long for one.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct SocketLog(Arc<Shared>);

pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) health: watch::Sender<Health>,
    pub(super) connected: watch::Sender<bool>,
    /// Dropped with the client; those who wait for it hear of that.
    alive: watch::Sender<()>,
    pub(super) runtime: Runtime,
}

pub(super) struct State {
    /// `None` while there is no connection.
    link: Option<mpsc::UnboundedSender<ToLog>>,
    last_id: u64,
    waiting: HashMap<u64, Waiter>,
    waiting_bytes: usize,
    readers: HashMap<u64, RemoteReader>,
    pub(super) members: Members,
}

struct RemoteReader {
    from: TopicPartition,
    at: Offset,
    to: mpsc::Sender<Read>,
    /// Batches that the log may still send.
    credits: usize,
    /// Rings when the user is behind, so that credit has to be given when it has caught up.
    starved: Arc<Notify>,
}

impl SocketLog {
    pub(super) fn connect(path: &Path) -> Arc<Self> {
        #[allow(clippy::expect_used, reason = "inside of a runtime it can't fail, and there is nothing else that a caller could do")]
        let runtime = Runtime::here().expect("a thread can be started");
        // What is asked before the first try to connect has ended waits for it.
        let (link, queue) = mpsc::unbounded_channel();
        let state = State { link: Some(link), last_id: 0, waiting: HashMap::new(), waiting_bytes: 0, readers: HashMap::new(), members: Members::default() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            health: watch::Sender::new(Health::Up),
            connected: watch::Sender::new(false),
            alive: watch::Sender::new(()),
            runtime,
        });
        shared.runtime.handle().spawn(keep_connected(path.to_owned(), Arc::downgrade(&shared), queue));
        Arc::new(Self(shared))
    }

    /// Asks; when there is no connection now, as soon as there is one, within some time.
    fn ask(&self, ask: Ask, waiter: Waiter) {
        let Err((ask, waiter)) = self.0.state().ask(ask, waiter) else { return };
        let shared = Arc::downgrade(&self.0);
        let mut connected = self.0.connected.subscribe();
        self.0.runtime.handle().spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, connected.wait_for(|connected| *connected)).await;
            let Some(shared) = shared.upgrade() else { return };
            let asked = shared.state().ask(ask, waiter);
            if let Err((_, waiter)) = asked {
                waiter.fail(false, "there is no connection to the log");
            }
        });
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn closing(&self) -> watch::Receiver<()> {
        self.alive.subscribe()
    }
}

impl State {
    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Sends something that has no answer; lost when there is no connection.
    pub(super) fn send(&self, id: u64, ask: Ask) {
        if let Some(link) = &self.link {
            let _ = link.send(ToLog { id, ask: Some(ask) });
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Registers who waits, and returns the id under which the answer comes.
    pub(super) fn wait(&mut self, waiter: Waiter) -> u64 {
        let id = self.new_id();
        if let Waiter::Append { bytes, .. } = &waiter {
            self.waiting_bytes += bytes;
        }
        self.waiting.insert(id, waiter);
        id
    }

    /// A new connection: asks again for what goes on over its end.
    pub(super) fn begin_again(&mut self) -> mpsc::UnboundedReceiver<ToLog> {
        let (link, queue) = mpsc::unbounded_channel();
        self.link = Some(link);
        let readers: Vec<_> = self.readers.keys().copied().collect();
        for id in readers {
            self.begin_reading(id);
        }
        self.rejoin_all();
        queue
    }

    #[allow(clippy::result_large_err, reason = "what could not be asked goes back as it came")]
    fn ask(&mut self, ask: Ask, waiter: Waiter) -> Result<(), (Ask, Waiter)> {
        if !self.is_connected() {
            return Err((ask, waiter));
        }
        let id = self.wait(waiter);
        self.send(id, ask);
        Ok(())
    }

    /// The connection has ended; what is still in its queue was never written.
    pub(super) fn end_link(&mut self, mut queue: mpsc::UnboundedReceiver<ToLog>, why: &str) {
        self.link = None;
        queue.close();
        while let Ok(frame) = queue.try_recv() {
            if let (Some(Ask::Append(_)), Some(waiter)) = (frame.ask, self.take_waiter(frame.id)) {
                waiter.fail(false, why);
            }
        }
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            waiter.fail(true, why);
        }
        self.waiting_bytes = 0;
        self.members.lose_all();
    }

    fn take_waiter(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&id)?;
        if let Waiter::Append { bytes, .. } = &waiter {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(*bytes);
        }
        Some(waiter)
    }

    /// Begins, or begins again, to read.
    fn begin_reading(&mut self, id: u64) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        reader.credits = CREDITS.min(reader.to.capacity());
        let (at, from, credits) = (reader.at.get(), Place::from(&reader.from), reader.credits);
        self.send(id, Ask::Read(ReadAsk { from: Some(from), at }));
        if credits > 0 {
            self.send(id, Ask::ReadMore(u32::try_from(credits).unwrap_or(1)));
        } else if let Some(reader) = self.readers.get(&id) {
            reader.starved.notify_one();
        }
    }

    /// Gives the log credit for what a reader's user has room for.
    fn give_credit(&mut self, id: u64) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let credits = CREDITS.min(reader.to.capacity());
        let more = credits.saturating_sub(reader.credits);
        reader.credits += more;
        if reader.credits == 0 {
            reader.starved.notify_one();
        } else if more > 0 {
            self.send(id, Ask::ReadMore(u32::try_from(more).unwrap_or(1)));
        }
    }

    fn take_batch(&mut self, id: u64, read: Read, next: Offset) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        reader.credits = reader.credits.saturating_sub(1);
        reader.at = next;
        // There is room for what there was credit for; a reader that was dropped is forgotten by its task.
        let _ = reader.to.try_send(read);
        self.give_credit(id);
    }

    /// Takes in what the log says.
    pub(super) fn take_in(&mut self, frame: FromLog, health: &watch::Sender<Health>) -> Result<(), Broken> {
        let id = frame.id;
        match frame.say.ok_or(Broken::Protocol("a frame that says nothing"))? {
            Say::Welcome(_) => return Err(Broken::Protocol("a second welcome")),
            Say::Healthy(healthy) => {
                let now = if healthy { Health::Up } else { Health::Away(Moment::now()) };
                health.send_if_modified(|known| {
                    let changed = (*known == Health::Up) != healthy;
                    if changed {
                        *known = now;
                    }
                    changed
                });
            }
            Say::Entries(entries) => {
                let entries = entries.read();
                if let Some(next) = entries.last().map(|e| e.offset.next()) {
                    self.take_batch(id, Read::Entries(entries), next);
                }
            }
            Say::Truncated(say) if say.of.is_none() => {
                let (wanted, start) = (Offset::new(say.wanted), Offset::new(say.start));
                self.take_batch(id, Read::Truncated { wanted, start }, start);
            }
            event @ (Say::Truncated(_) | Say::Assigned(_) | Say::Records(_) | Say::Revoking(_) | Say::Lost(_) | Say::Trouble(_)) => {
                if let Some(answer) = self.members.take_in(id, event)? {
                    self.send(id, answer);
                }
            }
            answer => {
                if let Some(waiter) = self.take_waiter(id) {
                    waiter.answer(answer)?;
                }
            }
        }
        Ok(())
    }
}

impl Log for SocketLog {
    fn append(&self, to: &TopicPartition, record: Record) -> Append {
        let bytes = record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len);
        if bytes > MAX_RECORD_BYTES {
            return Pending::ready(Err(AppendError::TooLarge { size_bytes: bytes, limit_bytes: MAX_RECORD_BYTES }));
        }
        let refuse = |why: &str| Pending::ready(Err(AppendError::NotPersisted(why.to_owned())));
        let mut state = self.0.state();
        if !state.is_connected() {
            return refuse("there is no connection to the log");
        }
        if state.waiting.len() >= MAX_WAITING || state.waiting_bytes + bytes > MAX_WAITING_BYTES {
            return refuse("too many appends are on their way to the log");
        }
        let (answer, pending) = Pending::new();
        let id = state.wait(Waiter::Append { answer, bytes });
        state.send(id, Ask::Append(AppendAsk { to: Some(to.into()), key: record.key, value: record.value }));
        pending
    }

    fn read(&self, from: &TopicPartition, at: Offset) -> Reader {
        let (to, reader) = Reader::new(READ_AHEAD);
        let starved = Arc::new(Notify::new());
        let mut state = self.0.state();
        let id = state.new_id();
        let remote = RemoteReader { from: from.clone(), at, to: to.clone(), credits: 0, starved: Arc::clone(&starved) };
        state.readers.insert(id, remote);
        if state.is_connected() {
            state.begin_reading(id);
        }
        drop(state);
        self.0.runtime.handle().spawn(tend_reader(id, Arc::downgrade(&self.0), self.0.closing(), to, starved));
        reader
    }

    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds> {
        let (answer, pending) = Pending::new();
        self.ask(Ask::Bounds(of.into()), Waiter::Bounds(answer));
        pending
    }

    fn join(&self, group: GroupSpec) -> Membership {
        RemoteControl::join(&self.0, group)
    }

    fn committed(&self, group: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>> {
        let (answer, pending) = Pending::new();
        let ask = CommittedAsk { group: group.to_owned(), of: of.iter().map(Place::from).collect() };
        self.ask(Ask::Committed(ask), Waiter::Committed(answer));
        pending
    }

    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()> {
        let (answer, pending) = Pending::new();
        self.ask(Ask::CreateTopics(TopicSpecs::new(&topics)), Waiter::Done(answer));
        pending
    }

    fn partitions(&self, of: &Topic) -> Pending<Option<u32>> {
        let (answer, pending) = Pending::new();
        self.ask(Ask::Partitions(of.as_str().to_owned()), Waiter::Partitions(answer));
        pending
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    fn max_record_bytes(&self) -> usize {
        MAX_RECORD_BYTES
    }
}

/// Gives credit when a slow user has caught up, and tells the log when it is gone.
async fn tend_reader(id: u64, shared: Weak<Shared>, mut closing: watch::Receiver<()>, to: mpsc::Sender<Read>, starved: Arc<Notify>) {
    loop {
        tokio::select! {
            () = to.closed() => {
                let Some(shared) = shared.upgrade() else { return };
                let mut state = shared.state();
                state.readers.remove(&id);
                return state.send(id, Ask::EndRead(Nothing {}));
            }
            _ = closing.changed() => return,
            () = starved.notified() => {}
        }
        tokio::select! {
            // Given back at once: it only tells that there is room.
            room = to.reserve() => drop(room),
            _ = closing.changed() => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        shared.state().give_credit(id);
    }
}

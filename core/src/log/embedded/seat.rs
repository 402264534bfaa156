//! A membership seen from the log's side: what its holder owns, and the tasks that feed it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::client::Connection;
use super::engine::{Ending, Engine, Fetched};
use super::group::{Holder, MemberId};
use super::partition::weight;
use crate::clock::Moment;
use crate::log::{Assignment, Committed, Entry, GroupControl, GroupEvent, GroupSpec, LogError, Offset, Pending, Topic, TopicPartition};

/// Bytes of records of one membership that may wait for a slow connection. More than is read at once.
pub(super) const ROOM_BYTES: u32 = 4 << 20;

/// One membership.
pub(super) struct Seat {
    pub(super) spec: GroupSpec,
    engine: Weak<Engine>,
    connection: Arc<Connection>,
    pub(super) holder: Holder,
    state: Mutex<State>,
    /// Rings when it was ended.
    ended: Notify,
    /// Bytes of records that may wait for a slow connection; `None` where the user bounds them by what it wants.
    room: Option<Arc<Semaphore>>,
}

struct State {
    /// `None` once it was left.
    events: Option<mpsc::UnboundedSender<GroupEvent>>,
    /// The present stay; `None` between stays.
    member: Option<MemberId>,
    owned: BTreeMap<TopicPartition, Option<Feed>>,
    /// What a zombie isn't told yet.
    withheld: Vec<Notice>,
    /// Losses that its user has not taken yet. It is no member before it has: its commits would be those of its former stay.
    untaken: u32,
    last_run: u64,
}

enum Notice {
    Assigned(Vec<Assignment>),
    Revoking(Vec<TopicPartition>),
    Expelled(Vec<TopicPartition>),
}

/// Reads a partition for the member; dropping it ends that.
struct Feed {
    /// Tells this feed from an earlier one of the same partition.
    run: u64,
    wanted: watch::Sender<u32>,
    /// Records handed over so far.
    handed: u64,
    task: tokio::task::AbortHandle,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A seat that was just taken, and its user's end.
pub(super) struct Taken {
    pub(super) seat: Arc<Seat>,
    pub(super) events: mpsc::UnboundedReceiver<GroupEvent>,
    pub(super) control: Arc<dyn GroupControl>,
}

impl Seat {
    /// Takes a seat: joins the group, and watches for its user to drop the membership.
    pub(super) fn take(engine: &Arc<Engine>, connection: &Arc<Connection>, spec: GroupSpec, room: Option<Arc<Semaphore>>) -> Taken {
        let (events, receiver) = mpsc::unbounded_channel();
        let state = State { events: Some(events.clone()), member: None, owned: BTreeMap::new(), withheld: Vec::new(), untaken: 0, last_run: 0 };
        let seat = Arc::new(Self {
            spec,
            engine: Arc::downgrade(engine),
            connection: Arc::clone(connection),
            holder: engine.new_holder(),
            state: Mutex::new(state),
            ended: Notify::new(),
            room,
        });
        engine.heartbeat(&seat);
        let watched = Arc::clone(&seat);
        let mut closing = engine.closing();
        engine.spawn(async move {
            tokio::select! {
                () = events.closed() => {}
                _ = closing.changed() => {}
                () = watched.ended.notified() => return,
            }
            drop(events);
            watched.end(Ending::Gone);
        });
        let control: Arc<dyn GroupControl> = Arc::new(Control(Arc::clone(&seat)));
        Taken { seat, events: receiver, control }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the log itself gives this seat's signs of life.
    pub(super) fn beats_here(&self) -> bool {
        self.connection.beats_here()
    }

    pub(super) fn member(&self) -> Option<MemberId> {
        self.state().member
    }

    /// The holder, if the seat may begin another stay now.
    pub(super) fn begin_stay(&self) -> Option<Holder> {
        let state = self.state();
        (state.events.is_some() && state.withheld.is_empty() && state.untaken == 0).then_some(self.holder)
    }

    pub(super) fn joined(&self, member: MemberId) {
        self.state().member = Some(member);
    }

    pub(super) fn assigned(&self, assignments: Vec<Assignment>) {
        self.notice(Notice::Assigned(assignments));
    }

    pub(super) fn revoking(&self, partitions: Vec<TopicPartition>) {
        self.notice(Notice::Revoking(partitions));
    }

    pub(super) fn expelled(&self, lost: Vec<TopicPartition>) {
        self.notice(Notice::Expelled(lost));
    }

    pub(super) fn missing(&self, topics: &[Topic]) {
        let names: Vec<_> = topics.iter().map(Topic::as_str).collect();
        let trouble = format!("group {}: there is no topic {}; waiting for it to be made", self.spec.name, names.join(", "));
        self.state().send(GroupEvent::Trouble(trouble));
    }

    fn notice(&self, notice: Notice) {
        let mut state = self.state();
        if self.connection.is_zombie() || !state.withheld.is_empty() {
            state.withheld.push(notice);
        } else {
            state.apply(notice);
        }
    }

    /// Tells a zombie what it has missed.
    pub(super) fn wake_up(&self) {
        let mut state = self.state();
        for notice in std::mem::take(&mut state.withheld) {
            state.apply(notice);
        }
    }

    /// Ends it for good. The first ending counts.
    pub(super) fn end(&self, how: Ending) {
        let mut state = self.state();
        if state.events.is_none() {
            return;
        }
        state.owned.clear();
        state.withheld.clear();
        state.events = None;
        drop(state);
        self.ended.notify_one();
        if let Some(engine) = self.engine.upgrade() {
            engine.end_stay(self, how);
        }
    }

    /// The present stay is over.
    pub(super) fn end_stay(&self) -> Option<MemberId> {
        self.state().member.take()
    }

    /// Hands records over, as many of them as are still wanted, and says what they weigh.
    fn hand_over(&self, partition: &TopicPartition, run: u64, mut entries: Vec<Entry>) -> Handed {
        let mut state = self.state();
        let Some(Some(feed)) = state.owned.get_mut(partition) else { return Handed::Over };
        if feed.run != run {
            return Handed::Over;
        }
        let wanted = *feed.wanted.borrow();
        entries.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        let Some(next) = entries.last().map(|e| e.offset.next()) else { return Handed::Nothing };
        feed.handed += entries.len() as u64;
        feed.wanted.send_replace(wanted.saturating_sub(u32::try_from(entries.len()).unwrap_or(u32::MAX)));
        let bytes = weigh(&entries);
        state.send(GroupEvent::Records { partition: partition.clone(), entries });
        Handed::UpTo { next, bytes }
    }

    /// Wants as many records as make `total` since the start of the partition: what is on its way to a remote user counts.
    pub(super) fn want_up_to(&self, partition: &TopicPartition, total: u64) {
        if let Some(Some(feed)) = self.state().owned.get(partition) {
            feed.wanted.send_replace(u32::try_from(total.saturating_sub(feed.handed)).unwrap_or(u32::MAX));
        }
    }

    /// Its user has taken a loss.
    pub(super) fn loss_taken(&self) {
        let mut state = self.state();
        state.untaken = state.untaken.saturating_sub(1);
    }

    fn truncated(&self, partition: &TopicPartition, run: u64, wanted: Offset, start: Offset) -> Option<()> {
        let mut state = self.state();
        state.owned.get(partition)?.as_ref().filter(|feed| feed.run == run)?;
        state.send(GroupEvent::Truncated { partition: partition.clone(), wanted, start });
        Some(())
    }
}

/// What became of records that were handed over.
enum Handed {
    /// The feed has ended.
    Over,
    /// None is wanted now.
    Nothing,
    /// Those below `next`.
    UpTo { next: Offset, bytes: u32 },
}

/// What records count for in the room of a connection.
pub(super) fn weigh(entries: &[Entry]) -> u32 {
    u32::try_from(entries.iter().map(weight).sum::<usize>()).unwrap_or(u32::MAX)
}

impl State {
    fn send(&mut self, event: GroupEvent) {
        if let Some(events) = &self.events {
            // When the membership was dropped, its watcher ends the stay.
            let _ = events.send(event);
        }
    }

    fn apply(&mut self, notice: Notice) {
        match notice {
            Notice::Assigned(assignments) => {
                self.owned.extend(assignments.iter().map(|a| (a.partition.clone(), None)));
                self.send(GroupEvent::Assigned(assignments));
            }
            // What its user has released meanwhile is not its own any more.
            Notice::Revoking(mut partitions) => {
                partitions.retain(|p| self.owned.contains_key(p));
                if !partitions.is_empty() {
                    self.send(GroupEvent::Revoking(partitions));
                }
            }
            Notice::Expelled(mut lost) => {
                lost.retain(|p| self.owned.contains_key(p));
                self.member = None;
                self.owned.clear();
                if !lost.is_empty() {
                    self.untaken += 1;
                    self.send(GroupEvent::Lost(lost));
                }
            }
        }
    }
}

/// The user's end of a seat.
struct Control(Arc<Seat>);

impl GroupControl for Control {
    fn start(&self, partition: &TopicPartition, from: Offset) {
        let Some(engine) = self.0.engine.upgrade() else { return };
        let mut state = self.0.state();
        state.last_run += 1;
        let run = state.last_run;
        let Some(slot) = state.owned.get_mut(partition) else { return };
        let (wanted, receiver) = watch::channel(0);
        let task = engine.spawn(feed(Arc::downgrade(&engine), Arc::downgrade(&self.0), partition.clone(), from, run, receiver));
        *slot = Some(Feed { run, wanted, handed: 0, task: task.abort_handle() });
        if self.0.room.is_some() {
            // Tells a remote user which records are from after this start.
            state.send(GroupEvent::Records { partition: partition.clone(), entries: Vec::new() });
        }
    }

    fn want(&self, partition: &TopicPartition, records: u32) {
        if let Some(Some(feed)) = self.0.state().owned.get(partition) {
            feed.wanted.send_replace(records);
        }
    }

    fn commit(&self, commits: Vec<(TopicPartition, Committed)>) -> Pending<Moment> {
        let at = Moment::now();
        if let Err(away) = self.0.connection.check() {
            return Pending::ready(Err(LogError::Unavailable(away)));
        }
        let Some(engine) = self.0.engine.upgrade() else { return Pending::ready(Err(LogError::Unavailable("the log was closed".to_owned()))) };
        let (sender, pending) = Pending::new();
        engine.commit(self.0.member(), commits, Box::new(move |done| drop(sender.send(done.map(|()| at)))));
        pending
    }

    fn release(&self, partitions: Vec<TopicPartition>) {
        let mut state = self.0.state();
        for partition in &partitions {
            state.owned.remove(partition);
        }
        let Some(member) = state.member else { return };
        drop(state);
        if let Some(engine) = self.0.engine.upgrade() {
            engine.in_groups(|groups, now| groups.release(now, member, &partitions));
        }
    }

    fn leave(&self) -> Pending<()> {
        self.0.end(Ending::Left);
        Pending::ready(Ok(()))
    }

    fn taken(&self, event: &GroupEvent) {
        if matches!(event, GroupEvent::Lost(_)) {
            self.0.loss_taken();
            if self.0.beats_here()
                && let Some(engine) = self.0.engine.upgrade()
            {
                engine.heartbeat(&self.0);
            }
        }
    }
}

/// Reads a partition for a member, as far as it wants.
async fn feed(engine: Weak<Engine>, seat: Weak<Seat>, of: TopicPartition, from: Offset, run: u64, mut wanted: watch::Receiver<u32>) {
    let Some(strong) = engine.upgrade() else { return };
    let partition = strong.partition_when_there(&of).await;
    drop(strong);
    let mut bell = partition.bell();
    let mut at = from;
    loop {
        let Ok(records) = wanted.wait_for(|records| *records > 0).await.map(|records| *records) else { return };
        bell.mark_unchanged();
        let Some(strong) = engine.upgrade() else { return };
        let fetched = strong.fetch(&partition, at, usize::try_from(records).unwrap_or(usize::MAX)).await;
        drop(strong);
        let Some(strong) = seat.upgrade() else { return };
        if !strong.connection.is_online() {
            let mut online = strong.connection.online();
            drop(strong);
            if online.wait_for(|online| *online).await.is_err() {
                return;
            }
            continue;
        }
        match fetched {
            Fetched::Entries { entries, next } => {
                if entries.is_empty() {
                    at = next;
                    continue;
                }
                let offered = entries.last().map(|e| e.offset.next());
                let room = match &strong.room {
                    Some(room) => match Arc::clone(room).acquire_many_owned(weigh(&entries).min(ROOM_BYTES)).await {
                        Ok(room) => Some(room),
                        Err(_) => return,
                    },
                    None => None,
                };
                match strong.hand_over(&of, run, entries) {
                    Handed::Over => return,
                    Handed::Nothing => {}
                    Handed::UpTo { next: reached, bytes } => {
                        at = if Some(reached) == offered { next } else { reached };
                        // Given back when they were written to the connection.
                        if let Some(handed) = room.and_then(|mut room| room.split(usize::try_from(bytes.min(ROOM_BYTES)).unwrap_or(0))) {
                            handed.forget();
                        }
                    }
                }
            }
            Fetched::Truncated { start } => {
                if strong.truncated(&of, run, at, start).is_none() {
                    return;
                }
                at = start;
            }
            Fetched::End => {
                drop(strong);
                tokio::select! {
                    rung = bell.changed() => if rung.is_err() { return },
                    changed = wanted.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}

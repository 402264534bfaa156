//! A membership over the socket.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::client::{Shared, State};
use super::frame::{Ask, Broken, Say};
use super::message::{CommitAsk, CommitSay, JoinAsk, Nothing, Places, ReadAsk};
use super::waiter::Waiter;
use crate::clock::Moment;
use crate::log::{Committed, Entry, GroupControl, GroupEvent, GroupSpec, LogError, Membership, Offset, Pending, TopicPartition};

/// The memberships of a client, by id.
#[derive(Default)]
pub(super) struct Members(HashMap<u64, Member>);

struct Member {
    spec: GroupSpec,
    events: mpsc::UnboundedSender<GroupEvent>,
    /// Rings when it was left.
    left: Arc<Notify>,
    owned: BTreeMap<TopicPartition, Option<Feed>>,
    /// Whether the log knows of it on this connection.
    joined: bool,
    /// Losses that the user has not taken yet.
    untaken: u32,
    /// Of these, how many the log waits to hear of.
    told_by_log: u32,
}

/// A partition that is read.
struct Feed {
    /// Records that the user takes, and has got, since the start.
    limit: u64,
    delivered: u64,
    /// Starts that the log has not confirmed; what comes before is from an earlier start.
    unconfirmed: u32,
    /// Records that came although they are not wanted any more. At most what was wanted before.
    waiting: VecDeque<Entry>,
}

impl Members {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn shortest_session(&self) -> Option<Duration> {
        self.0.values().map(|m| m.spec.session_timeout).min()
    }

    /// The connection has ended, and with it all that was owned.
    pub(super) fn lose_all(&mut self) {
        for member in self.0.values_mut() {
            member.joined = false;
            member.told_by_log = 0;
            let lost: Vec<_> = std::mem::take(&mut member.owned).into_keys().collect();
            if !lost.is_empty() {
                member.untaken += 1;
                member.tell(GroupEvent::Lost(lost));
            }
        }
    }

    /// Takes in what the log says to a member. Returns what is to be said back.
    pub(super) fn take_in(&mut self, id: u64, say: Say) -> Result<Option<Ask>, Broken> {
        const MISSING: Broken = Broken::Protocol("an event without a partition");
        // One that was just left or dropped.
        let Some(member) = self.0.get_mut(&id) else { return Ok(None) };
        match say {
            Say::Assigned(assignments) => {
                let assignments = assignments.read();
                member.owned.extend(assignments.iter().map(|a| (a.partition.clone(), None)));
                member.tell(GroupEvent::Assigned(assignments));
            }
            Say::Records(say) => {
                let of = say.of.ok_or(MISSING)?.read();
                let entries = say.entries.unwrap_or_default().read();
                if let Some(Some(feed)) = member.owned.get_mut(&of) {
                    if entries.is_empty() {
                        feed.unconfirmed = feed.unconfirmed.saturating_sub(1);
                    } else if feed.unconfirmed == 0 {
                        feed.waiting.extend(entries);
                    }
                }
                member.deliver(&of);
            }
            Say::Truncated(say) => {
                let partition = say.of.ok_or(MISSING)?.read();
                if matches!(member.owned.get(&partition), Some(Some(feed)) if feed.unconfirmed == 0) {
                    member.tell(GroupEvent::Truncated { partition, wanted: Offset::new(say.wanted), start: Offset::new(say.start) });
                }
            }
            Say::Revoking(places) => {
                let partitions: Vec<_> = places.read().into_iter().filter(|p| member.owned.contains_key(p)).collect();
                if !partitions.is_empty() {
                    member.tell(GroupEvent::Revoking(partitions));
                }
            }
            Say::Lost(places) => {
                let lost: Vec<_> = places.read().into_iter().filter(|p| member.owned.remove(p).is_some()).collect();
                if lost.is_empty() {
                    // Released meanwhile: no news to the user.
                    return Ok(Some(Ask::LossTaken(Nothing {})));
                }
                member.untaken += 1;
                member.told_by_log += 1;
                member.tell(GroupEvent::Lost(lost));
            }
            Say::Trouble(trouble) => member.tell(GroupEvent::Trouble(trouble)),
            _ => return Err(Broken::Protocol("an event that is none")),
        }
        Ok(None)
    }
}

impl Member {
    fn tell(&self, event: GroupEvent) {
        // When the membership was dropped, its task tells the log.
        let _ = self.events.send(event);
    }

    /// Hands over what has come and is wanted.
    fn deliver(&mut self, of: &TopicPartition) {
        let Some(Some(feed)) = self.owned.get_mut(of) else { return };
        let room = usize::try_from(feed.limit.saturating_sub(feed.delivered)).unwrap_or(usize::MAX).min(feed.waiting.len());
        if room > 0 {
            let entries: Vec<_> = feed.waiting.drain(..room).collect();
            feed.delivered += entries.len() as u64;
            self.tell(GroupEvent::Records { partition: of.clone(), entries });
        }
    }
}

impl State {
    /// Joins on a new connection, as far as the users know that they were out.
    pub(super) fn rejoin_all(&mut self) {
        let ids: Vec<_> = self.members.0.keys().copied().collect();
        for id in ids {
            self.join_if_ready(id);
        }
    }

    fn join_if_ready(&mut self, id: u64) {
        let connected = self.is_connected();
        let Some(member) = self.members.0.get_mut(&id).filter(|m| connected && !m.joined && m.untaken == 0) else { return };
        member.joined = true;
        let ask = Ask::Join(JoinAsk::new(&member.spec));
        self.send(id, ask);
    }
}

/// The user's end.
pub(super) struct RemoteControl {
    id: u64,
    shared: Weak<Shared>,
}

impl RemoteControl {
    pub(super) fn join(shared: &Arc<Shared>, spec: GroupSpec) -> Membership {
        let (events, receiver) = mpsc::unbounded_channel();
        let mut state = shared.state();
        let id = state.new_id();
        let left = Arc::new(Notify::new());
        let member = Member { spec, events: events.clone(), left: Arc::clone(&left), owned: BTreeMap::new(), joined: false, untaken: 0, told_by_log: 0 };
        state.members.0.insert(id, member);
        state.join_if_ready(id);
        drop(state);
        let (weak, mut closing) = (Arc::downgrade(shared), shared.closing());
        shared.runtime.handle().spawn(async move {
            tokio::select! {
                () = events.closed() => {}
                () = left.notified() => return,
                _ = closing.changed() => return,
            }
            let Some(shared) = weak.upgrade() else { return };
            let mut state = shared.state();
            if state.members.0.remove(&id).is_some_and(|m| m.joined) {
                state.send(id, Ask::Drop(Nothing {}));
            }
        });
        Membership::new(receiver, Arc::new(Self { id, shared: Arc::downgrade(shared) }))
    }
}

impl GroupControl for RemoteControl {
    fn start(&self, partition: &TopicPartition, from: Offset) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.state();
        let Some(slot) = state.members.0.get_mut(&self.id).and_then(|m| m.owned.get_mut(partition)) else { return };
        let unconfirmed = slot.as_ref().map_or(0, |feed| feed.unconfirmed) + 1;
        *slot = Some(Feed { limit: 0, delivered: 0, unconfirmed, waiting: VecDeque::new() });
        state.send(self.id, Ask::Start(ReadAsk { from: Some(partition.into()), at: from.get() }));
    }

    fn want(&self, partition: &TopicPartition, records: u32) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.state();
        let Some(member) = state.members.0.get_mut(&self.id) else { return };
        let Some(Some(feed)) = member.owned.get_mut(partition) else { return };
        feed.limit = feed.delivered + u64::from(records);
        let limit = feed.limit;
        member.deliver(partition);
        state.send(self.id, Ask::Want(ReadAsk { from: Some(partition.into()), at: limit }));
    }

    fn commit(&self, commits: Vec<(TopicPartition, Committed)>) -> Pending<Moment> {
        let at = Moment::now();
        let Some(shared) = self.shared.upgrade() else { return Pending::ready(Err(LogError::Unavailable("the log's client was closed".to_owned()))) };
        let mut state = shared.state();
        let Some(member) = state.members.0.get(&self.id) else { return Pending::ready(Err(LogError::Fenced("the group was left".to_owned()))) };
        // What the group doesn't share out goes with what it does: the log decides.
        let shared = |of: &TopicPartition| member.spec.topics.contains(&of.topic);
        if let Some((partition, _)) = commits.iter().find(|(of, _)| shared(of) && !member.owned.contains_key(of)) {
            return Pending::ready(Err(LogError::Fenced(format!("{partition} is not the member's"))));
        }
        if !state.is_connected() {
            return Pending::ready(Err(LogError::Unavailable("there is no connection to the log".to_owned())));
        }
        let (answer, pending) = Pending::new();
        let request = state.wait(Waiter::Commit { answer, at });
        let commits = commits.into_iter().map(|(of, committed)| CommitSay::new(&of, Some(committed))).collect();
        state.send(self.id, Ask::Commit(CommitAsk { request, commits }));
        pending
    }

    fn release(&self, partitions: Vec<TopicPartition>) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.state();
        if let Some(member) = state.members.0.get_mut(&self.id) {
            for partition in &partitions {
                member.owned.remove(partition);
            }
            state.send(self.id, Ask::Release(Places::new(&partitions)));
        }
    }

    fn leave(&self) -> Pending<()> {
        let Some(shared) = self.shared.upgrade() else { return Pending::ready(Ok(())) };
        let mut state = shared.state();
        let member = state.members.0.remove(&self.id);
        if let Some(member) = &member {
            member.left.notify_one();
        }
        // A connection that has ended has left for it.
        if !member.is_some_and(|m| m.joined) || !state.is_connected() {
            return Pending::ready(Ok(()));
        }
        let (answer, pending) = Pending::new();
        let request = state.wait(Waiter::Done(answer));
        state.send(self.id, Ask::Leave(request));
        pending
    }

    fn taken(&self, event: &GroupEvent) {
        if !matches!(event, GroupEvent::Lost(_)) {
            return;
        }
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.state();
        let Some(member) = state.members.0.get_mut(&self.id) else { return };
        member.untaken = member.untaken.saturating_sub(1);
        // Losses are taken in the order in which they came: the log's own on this connection come last.
        if member.untaken < member.told_by_log {
            member.told_by_log -= 1;
            state.send(self.id, Ask::LossTaken(Nothing {}));
        }
        state.join_if_ready(self.id);
    }
}

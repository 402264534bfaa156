//! Membership in a group: what its user holds. The work is done by the member's own thread, in [`session`](super::session).

use std::collections::HashMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use tokio::sync::mpsc::{WeakUnboundedSender, unbounded_channel};
use tracing::warn;

use super::commit::{Request, Work};
use super::config::KafkaConfig;
use super::control::Control;
use super::fetch::{Fetcher, StreamHandle};
use super::link::Link;
use super::session::{Command, Session};
use crate::clock::Moment;
use crate::log::{Committed, GroupControl, GroupEvent, GroupSpec, LogError, Membership, Offset, Pending, TopicPartition};

/// The partitions that the user was told of and has not lost or released; with a stream each once it reads.
pub(super) type Owned = Arc<Mutex<HashMap<TopicPartition, Option<StreamHandle>>>>;

struct MemberControl {
    commands: mpsc::Sender<Command>,
    thread: Thread,
    owned: Owned,
    fetcher: Arc<Fetcher>,
    /// Weak, so that the events end when the member has left.
    events: WeakUnboundedSender<GroupEvent>,
}

impl MemberControl {
    fn command(&self, work: Work) {
        if let Err(mpsc::SendError(Command::Work(work))) = self.commands.send(Command::Work(work)) {
            work.refuse(&LogError::Fenced("this member has left its group".to_owned()));
        }
        self.thread.unpark();
    }
}

impl GroupControl for MemberControl {
    fn start(&self, partition: &TopicPartition, from: Offset) {
        let Some(events) = self.events.upgrade() else { return };
        if let Some(stream) = self.owned.lock().unwrap_or_else(PoisonError::into_inner).get_mut(partition) {
            *stream = Some(self.fetcher.follow(partition, from, events));
        }
    }

    fn want(&self, partition: &TopicPartition, records: u32) {
        if let Some(Some(stream)) = self.owned.lock().unwrap_or_else(PoisonError::into_inner).get(partition) {
            stream.want(records);
        }
    }

    fn commit(&self, commits: Vec<(TopicPartition, Committed)>) -> Pending<Moment> {
        let (reply, pending) = Pending::new();
        self.command(Work::Commit(Request::new(commits, reply)));
        pending
    }

    fn release(&self, partitions: Vec<TopicPartition>) {
        self.command(Work::Release(partitions));
    }

    fn leave(&self) -> Pending<()> {
        let (reply, pending) = Pending::new();
        self.command(Work::Leave(reply));
        pending
    }
}

/// Becomes a member. What can't be done at once is told as trouble, and tried again.
pub(super) fn join(config: &KafkaConfig, link: &Arc<Link>, control: &Arc<Control>, fetcher: &Arc<Fetcher>, spec: GroupSpec) -> Membership {
    let (events, told) = unbounded_channel();
    let (commands, received) = mpsc::channel();
    let owned = Owned::default();
    let weak = events.downgrade();
    let session = Session::new(config, link, control, spec, owned.clone(), events, commands.clone());
    let handle = std::thread::Builder::new().name("kafka-member".to_owned()).spawn(move || session.run(received));
    let thread = match handle {
        Ok(handle) => handle.thread().clone(),
        Err(error) => {
            // The member and its events ended with the closure; what is asked of it ends as unavailable.
            warn!(%error, "no thread for a member of a group");
            std::thread::current()
        }
    };
    Membership::new(told, Arc::new(MemberControl { commands, thread, owned, fetcher: fetcher.clone(), events: weak }))
}

//! Partitions that are assigned, not shared out: ordinal *i* of a stateful component has partition *i*, and nobody else.
//!
//! There is no group, and so no coordinator that says who owns the partition. What a group does is done here by a topic of its own, with a partition for each ordinal,
//! on what every log promises: that all readers see the same records in the same order.
//!
//! 1. A claimant appends a *claim* to its frontier partition. The claim's offset is the *epoch*.
//! 2. It reads the partition up to its claim. The last commit of the highest epoch that has one is where it goes on. One that was
//!    appended too late to be made may be among them, where nobody newer has one: then nobody newer has begun anything, and it says what is true of who was last to do so.
//! 3. It commits by appending a record with its epoch, and takes the commit for made when it has *read it back with no newer claim before it*. The claims and commits of a
//!    partition have one order, so of two owners the older one has no commit made after the newer one's claim.
//! 4. Whoever reads a newer claim than its own has lost the partition, for good.
//!
//! A claimant that reads its claim when a newer one is there already may find that what it would inherit has been removed for the newer one's sake. It hears of that one before it
//! could commit anything, and begins nothing.
//!
//! The newest claim wins, however it comes to be there: an old process that goes on, and a new one with the same ordinal, never both have a lease after the newer claim. Two that
//! are started again and again take the partition from each other in turn; that is a mistake in how they are started.
//!
//! The topic is compacted, and a commit must not give way to one that is never made. So each claim has a key of its own, and an owner's commits have a few keys in turn: one is used
//! again only when what was last appended under it has been read (nothing can come late), and when a later commit is made. (With one key for all of them, a late commit of
//! an owner that has lost the partition would take the place of its last one that was made.) What former owners left is removed by tombstones when a commit is made. Who reads so late that records are missing can't know whether a claim was among them, and has no proof for what it has sent (see [`Claimant::read`](claimant::Claimant::read)).
//!
//! - [`claimant`]: what a claimant makes of the records that it reads. Pure.
//! - `ownership`: the task that claims, commits and hears of newer claims.
//! - `feed`: reads the partition itself, as far as its owner wants.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

use crate::log::{Append, Bounds, Committed, GroupSpec, Health, Log, LogError, Membership, Offset, Pending, Reader, Record, Topic, TopicPartition, TopicSpec};

pub mod claimant;
mod feed;
mod ownership;

use ownership::Ownership;

/// A log on which [`Log::join`] claims one partition of the group's topic instead of sharing all of them out. Everything else is the log's own.
///
/// Of the group's terms only name and topic count: there are no sessions, and an owner is asked for nothing ([`GroupEvent::Revoking`](crate::log::GroupEvent::Revoking) never
/// comes). After [`GroupEvent::Lost`](crate::log::GroupEvent::Lost) the membership ends.
pub struct Assigned {
    log: Arc<dyn Log>,
    frontier: Topic,
    number: u32,
    /// The one that was begun last.
    ownership: Mutex<Weak<Ownership>>,
}

impl Assigned {
    /// `log`, with partition `number` to be claimed by whoever joins. `frontier` is compacted and has as many partitions as what is joined.
    pub fn new(log: Arc<dyn Log>, frontier: Topic, number: u32) -> Self {
        Self { log, frontier, number, ownership: Mutex::new(Weak::new()) }
    }
}

impl Log for Assigned {
    fn append(&self, to: &TopicPartition, record: Record) -> Append {
        self.log.append(to, record)
    }

    fn read(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.log.read(from, at)
    }

    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds> {
        self.log.bounds(of)
    }

    /// Claims the partition of the group's first topic, until the membership is left, dropped, or lost to a newer claim.
    fn join(&self, group: GroupSpec) -> Membership {
        let of = group.topics.into_iter().next().unwrap_or_else(|| Topic::new(&group.name)).partition(self.number);
        let (ownership, membership) = Ownership::claim(Arc::clone(&self.log), self.frontier.partition(self.number), of);
        *self.ownership.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&ownership);
        membership
    }

    /// What was committed for these when the partition was claimed, or by its owner since then. Known to the owner alone.
    fn committed(&self, _: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>> {
        let ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        match ownership.and_then(|ownership| ownership.committed(&of)) {
            Some(committed) => Pending::ready(Ok(committed)),
            None => Pending::ready(Err(LogError::Unavailable(format!("{}/{}: it is not claimed yet", self.frontier, self.number)))),
        }
    }

    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()> {
        self.log.create_topics(topics)
    }

    fn partitions(&self, of: &Topic) -> Pending<Option<u32>> {
        self.log.partitions(of)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.log.health()
    }

    fn max_record_bytes(&self) -> usize {
        self.log.max_record_bytes()
    }
}

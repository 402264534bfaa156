//! The log in the process of `bluebox up`.

use std::sync::Arc;

use tokio::sync::watch;

use crate::log::{Append, Bounds, Committed, GroupSpec, Health, Log, Membership, Offset, Pending, Reader, Record, Timestamp, Topic, TopicPartition, TopicSpec};

mod client;
mod engine;
pub mod group;
mod partition;
mod seat;

pub use client::{AppendFault, Client};

use engine::Engine;

/// The embedded log.
///
/// All of it runs on the Tokio runtime that it was opened on, or on a small one of its own where there is none. Sessions are measured on Tokio's clock, so
/// that a test on paused time is quick and deterministic.
pub struct Embedded {
    own: Arc<Client>,
}

impl Embedded {
    /// A log that lives as long as its users, in memory.
    ///
    /// # Panics
    /// Outside of a Tokio runtime, when the system refuses to start a thread.
    pub fn in_memory() -> Arc<Self> {
        #[allow(clippy::expect_used, reason = "inside of a runtime it can't fail, and there is nothing else that a caller could do")]
        let engine = Engine::in_memory().expect("a thread can be started");
        Arc::new(Self { own: Client::new(engine) })
    }

    /// Another client, as another process would be. What is done to it concerns nobody else.
    pub fn client(&self) -> Arc<Client> {
        Client::new(Arc::clone(self.own.engine()))
    }

    /// Removes now what retention and compaction no longer keep, as of `now` on the log's clock. It is done in the background too.
    pub fn keep_house(&self, now: Timestamp) {
        self.own.engine().keep_house(now);
    }

    /// The number of members of a group, as the log sees it now.
    pub fn members(&self, group: &str) -> usize {
        self.own.members(group)
    }
}

impl Log for Embedded {
    fn append(&self, to: &TopicPartition, record: Record) -> Append {
        self.own.append(to, record)
    }

    fn read(&self, from: &TopicPartition, at: Offset) -> Reader {
        self.own.read(from, at)
    }

    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds> {
        self.own.bounds(of)
    }

    fn join(&self, group: GroupSpec) -> Membership {
        self.own.join(group)
    }

    fn committed(&self, group: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>> {
        self.own.committed(group, of)
    }

    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()> {
        self.own.create_topics(topics)
    }

    fn partitions(&self, of: &Topic) -> Pending<Option<u32>> {
        self.own.partitions(of)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.own.health()
    }

    fn max_record_bytes(&self) -> usize {
        self.own.max_record_bytes()
    }
}

//! The log in the process of `bluebox up`: durable on local disk, served to the proxies over a Unix socket. The default for a laptop; no broker for a cluster.
//!
//! In the order in which things happen:
//!
//! - `socket`: another process connects, with [`connect`]; each connection is a [`Client`].
//! - `client`: what a process asks, and the faults that a test can give it.
//! - `engine`: what all clients share. `topics` makes and looks after topics, [`partition`] is what is known of a partition in memory.
//! - `disk`: one thread writes what has come together into one fjall database, and acknowledges it. Old records are read from there, new ones from memory.
//! - [`group`]: who owns which partition, as a pure state machine; `seat` is a member's place in it, and feeds it.
//!
//! What holds beyond the contract of [`Log`]:
//!
//! - An acknowledged record survives the death of this process at any moment. What a power failure can take is said by [`Fsync`].
//! - With less than [`Options::keep_free_bytes`] left, or a store that fails, appends are refused as not persisted and [`Health::Away`] is said, until it is mended.
//!   A write that failed is looked for when the store was opened again, so that only what can't be known is [`AppendError::Unknown`](crate::log::AppendError).
//! - [`Assignment::former_is_gone`](crate::log::Assignment) is true if every former owner released the partition, left, or ended its connection. It is false
//!   for who was expelled, was cut off by this side, or may be left from before the log was opened, until someone after them released it in order.
//! - Bounded: 16,384 waiting appends of 64 MiB; 32 MiB of new records, and those of one partition 512 KiB, in memory; per connection 4 MiB of unwritten
//!   records for each membership and two batches (of 1 MiB) for each reader. In memory only ([`Embedded::in_memory`]) there is no bound but retention.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::log::{Append, Bounds, Committed, GroupSpec, Health, Log, Membership, Offset, Pending, Reader, Record, Timestamp, Topic, TopicPartition, TopicSpec};

mod client;
mod disk;
mod engine;
pub mod group;
pub mod partition;
mod runtime;
mod seat;
mod socket;
mod topics;

pub use client::{AppendFault, Client};
pub use socket::{ServeError, Server, connect, serve};

use engine::Engine;

/// How often what was appended is forced from the operating system's memory to the disk itself.
///
/// An acknowledged record is always in the operating system's hands, so that it survives the death of this process (kill -9 included) under each of these.
/// They differ in what a power failure, or a crash of the whole machine, can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before each acknowledgement: nothing acknowledged is lost. What arrives together shares one.
    Always,
    /// This long after the first record that isn't there yet: what was acknowledged within it can be lost.
    Interval(Duration),
    /// When the operating system sees fit (Linux: within half a minute). What Kafka does.
    Never,
}

impl Default for Fsync {
    /// Every tenth of a second.
    fn default() -> Self {
        Self::Interval(Duration::from_millis(100))
    }
}

/// How a log is kept on disk.
#[derive(Debug, Clone)]
pub struct Options {
    /// When records are forced to the disk itself.
    pub fsync: Fsync,
    /// With less room than this left on the disk, nothing more is accepted, in bytes. The log needs some to sort what it has. Default 256 MiB.
    pub keep_free_bytes: u64,
    /// Finds out how much room there is; another one for tests.
    pub free_bytes: fn(&Path) -> std::io::Result<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: Fsync::default(), keep_free_bytes: 256 << 20, free_bytes }
    }
}

/// The room on the disk under a directory that is left for this user, in bytes.
#[allow(clippy::useless_conversion, reason = "the types differ between systems")]
fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size())))
}

/// Why a log can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the log in {} is in use by another process; stop that one, or choose another directory", .0.display())]
    InUse(PathBuf),
    /// It can't be read or written.
    #[error("the log in {} can't be opened: {reason}", dir.display())]
    Store {
        /// Where it is.
        dir: PathBuf,
        /// What is the matter.
        reason: String,
    },
}

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

    /// Opens the log in a directory, or makes one there. It is closed when the last of its users is dropped.
    ///
    /// # Errors
    /// When another process has it open, or it can't be read or written.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        Ok(Arc::new(Self { own: Client::new(Engine::open(dir, options)?) }))
    }

    /// Another client, as another process would be. What is done to it concerns nobody else.
    pub fn client(&self) -> Arc<Client> {
        Client::new(Arc::clone(self.own.engine()))
    }

    /// Removes now what retention and compaction no longer keep, as of `now` on the log's clock. It is done in the background too, every minute. Blocks while
    /// it reads the disk.
    pub fn keep_house(&self, now: Timestamp) {
        self.own.engine().keep_house(now, true);
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

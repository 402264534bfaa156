//! Waits for outcomes: this instance's partition of its component's reply topic, read from where it ended when the proxy started.
//!
//! The first outcome of a call wins; later ones find nobody waiting. An outcome that isn't for anybody here belongs to another instance that reads the same
//! partition, or to a caller who has gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bluebox_core::call::{Digest, Outcome, ReplyAddress};
use bluebox_core::log::{Log, Offset, Read, TopicPartition};
use bluebox_core::topics::{REPLY_PARTITIONS, Topics};
use bluebox_core::wire::{CallStatus, Reply};
use bluebox_core::{CallId, InstanceId};
use bluebox_core::{fail_point, fail_point_async};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{debug, error, warn};

use crate::problem::{Kind, Problem};

pub mod waiting;

pub use waiting::Answer;
use waiting::Waiting;

/// How long the one record that a reply points to may take to be read.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(30);

/// Where this instance awaits outcomes. Cheap to clone.
#[derive(Clone)]
pub struct Pending {
    shared: Arc<Shared>,
}

struct Shared {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    /// The next offset to be read, plus one; 0 until the end of the partition is known.
    position: AtomicU64,
    /// Closed when the end of the partition is known.
    reads: Semaphore,
    places: Arc<Semaphore>,
    max_waiting: usize,
    waiting: Mutex<Waiting>,
}

/// Why an outcome that was recorded can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// The log does not answer: it is there, and can be asked for again.
    #[error("{0}")]
    NotNow(String),
    /// What was recorded is not there any more, or is something else.
    #[error("{0}")]
    Gone(String),
}

impl Unread {
    /// As a problem; `not_now` says what it is called that the log doesn't answer.
    pub fn problem(self, not_now: Kind) -> Problem {
        match self {
            Self::NotNow(why) => Problem::new(not_now, why),
            Self::Gone(why) => Problem::new(Kind::OutcomeUnreadable, why),
        }
    }
}

/// A place among those who wait for the outcome of a call. Dropping it gives the place back.
pub struct Ticket {
    shared: Arc<Shared>,
    id: CallId,
    ticket: u64,
    answer: oneshot::Receiver<Answer>,
    _place: OwnedSemaphorePermit,
}

/// A place of one who waits for the answer to a query.
pub struct QueryTicket {
    shared: Arc<Shared>,
    query: CallId,
    answer: oneshot::Receiver<CallStatus>,
    _place: OwnedSemaphorePermit,
}

/// The partition of a component's reply topic (and of its bulk topic) that an instance uses.
pub fn reply_partition(instance: &InstanceId) -> u32 {
    let hash = instance.as_bytes().iter().take(4).fold(0u32, |n, b| n << 8 | u32::from(*b));
    hash % REPLY_PARTITIONS
}

impl Pending {
    /// Awaits outcomes for `instance` in the reply topic of the component whose `topics` these are; at most `max_waiting` at once. Reads nothing before
    /// [`Self::read`] runs.
    pub fn new(log: Arc<dyn Log>, topics: &Topics, instance: &InstanceId, max_waiting: usize) -> Self {
        let max_waiting = max_waiting.min(Semaphore::MAX_PERMITS);
        let shared = Shared {
            log,
            partition: topics.replies.partition(reply_partition(instance)),
            position: AtomicU64::new(0),
            reads: Semaphore::new(0),
            places: Arc::new(Semaphore::new(max_waiting)),
            max_waiting,
            waiting: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The partition that outcomes and answers for this instance go to.
    pub fn partition(&self) -> &TopicPartition {
        &self.shared.partition
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.shared.max_waiting - self.shared.places.available_permits()
    }

    /// Whether calls can be sent: the end of the reply partition is known.
    pub fn ready(&self) -> bool {
        self.shared.position().is_some()
    }

    /// Waits until [`Self::ready`]. Cancel safe.
    pub async fn until_ready(&self) {
        if !self.ready() {
            // Permits are never given out of this one: it is closed when reading begins.
            let _ = self.shared.reads.acquire().await;
        }
    }

    /// Waits for the outcome of a call. To be asked for *before* the call is appended.
    ///
    /// # Errors
    /// When the reply partition could not be read yet, or too many are waiting.
    pub fn expect(&self, id: CallId) -> Result<Ticket, Problem> {
        let place = self.place()?;
        let (ticket, answer) = self.shared.waiting().expect(id);
        Ok(Ticket { shared: self.shared.clone(), id, ticket, answer, _place: place })
    }

    /// Waits for the answer to a query. To be asked for *before* the query is appended.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn expect_status(&self, query: CallId) -> Result<QueryTicket, Problem> {
        let place = self.place()?;
        let answer = self.shared.waiting().expect_status(query);
        Ok(QueryTicket { shared: self.shared.clone(), query, answer, _place: place })
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        if !self.ready() {
            return Err(Problem::new(Kind::NotReady, format!("{}: the end of this reply partition is not known yet; try again", self.shared.partition)));
        }
        self.shared.places.clone().try_acquire_owned().map_err(|_| {
            Problem::new(
                Kind::TooManyWaiting,
                format!("{} calls of this proxy wait for their outcome already, as many as it may hold", self.shared.max_waiting),
            )
        })
    }

    /// Reads the reply partition until the log's client is closed. While the log is away it waits, and goes on where it was.
    pub async fn read(self) {
        let shared = &self.shared;
        let mut pause = Duration::from_millis(50);
        let end = loop {
            match shared.log.bounds(&shared.partition).await {
                Ok(bounds) => break bounds.end,
                // The topic is being made, or the log is away: both end.
                Err(e) => debug!(partition = %shared.partition, problem = %e, "the end of the reply partition is not known yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(Duration::from_secs(2));
        };
        let mut reader = shared.log.read(&shared.partition, end);
        shared.advance(end);
        shared.reads.close();
        while let Some(read) = reader.next().await {
            match read {
                Read::Entries(entries) => {
                    fail_point_async!(BackRead);
                    for entry in entries {
                        match entry.record.value.map(Reply::decode) {
                            Some(Ok(reply)) => shared.dispatch(reply),
                            Some(Err(e)) => warn!(partition = %shared.partition, offset = %entry.offset, problem = %e, "ignored a reply that can't be read"),
                            None => {}
                        }
                        shared.advance(entry.offset.next());
                    }
                }
                Read::Truncated { wanted, start } => {
                    error!(partition = %shared.partition, %wanted, %start, "the log deleted replies before they were read; their callers get 504");
                    shared.advance(start);
                }
            }
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in there can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn position(&self) -> Option<Offset> {
        self.position.load(Ordering::Acquire).checked_sub(1).map(Offset::new)
    }

    fn advance(&self, next: Offset) {
        self.position.store(next.get().saturating_add(1), Ordering::Release);
    }

    fn dispatch(self: &Arc<Self>, reply: Reply) {
        match reply {
            Reply::Outcome(outcome) => self.answer(outcome.id, outcome.digest, Ok(Arc::from(outcome))),
            Reply::At { id, digest, partition, offset, .. } => {
                if self.waiting().wants(&id) {
                    let shared = self.clone();
                    // One for each call that waits here at most: bounded by those.
                    tokio::spawn(async move {
                        let outcome = read_outcome(&*shared.log, &partition, offset, &id).await;
                        shared.answer(id, Some(digest), outcome.map(Arc::new));
                    });
                }
            }
            Reply::Status { query, status } => {
                if let Some(sender) = self.waiting().end_query(&query) {
                    // One who has gone is told nothing.
                    let _ = sender.send(status);
                }
            }
        }
    }

    fn answer(&self, id: CallId, digest: Option<Digest>, answer: Answer) {
        let waiters = self.waiting().answered(id, digest);
        if !waiters.is_empty() {
            fail_point!(BackMatched, return); // they hear that the proxy is closing
        }
        for waiter in waiters {
            // One who has gone is told nothing.
            let _ = waiter.send(answer.clone());
        }
    }
}

/// Reads the outcome that lies at one place.
///
/// # Errors
/// When there is none of this call, or the log does not answer for half a minute.
pub async fn read_outcome(log: &dyn Log, partition: &TopicPartition, offset: Offset, id: &CallId) -> Result<Outcome, Unread> {
    let mut reader = log.read(partition, offset);
    let place = format!("{partition} offset {offset}");
    match tokio::time::timeout(FOLLOW_TIMEOUT, reader.next()).await {
        Err(_) => Err(Unread::NotNow(format!("{place}: the log did not answer"))),
        Ok(Some(Read::Entries(entries))) => {
            let entry = entries.into_iter().next().filter(|e| e.offset == offset).ok_or_else(|| Unread::Gone(format!("{place}: the record is gone")))?;
            match entry.record.value.map(Reply::decode) {
                Some(Ok(Reply::Outcome(outcome))) if outcome.id == *id => Ok(*outcome),
                _ => Err(Unread::Gone(format!("{place}: this is not the outcome of call {id}"))),
            }
        }
        Ok(_) => Err(Unread::Gone(format!("{place}: the record is gone"))),
    }
}

impl Ticket {
    /// Says which recorded call of those with the same key is waited for. To be said before it is appended.
    pub fn only(&self, digest: Option<Digest>) {
        self.shared.waiting().only(&self.id, self.ticket, digest);
    }

    /// Where the outcome is awaited, for a call that is appended after this was asked.
    pub fn reply_address(&self) -> ReplyAddress {
        ReplyAddress { partition: self.shared.partition.clone(), position: self.shared.position().unwrap_or_default() }
    }

    /// Waits for the outcome, for ever if none comes. Cancel safe; to be awaited until it is there once.
    pub async fn answer(&mut self) -> Answer {
        // The sender goes only by sending.
        (&mut self.answer).await.unwrap_or_else(|_| Err(Unread::NotNow("the proxy is closing".to_owned())))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.waiting().give_up(&self.id, self.ticket);
    }
}

impl QueryTicket {
    /// Where the answer is awaited.
    pub fn reply_to(&self) -> TopicPartition {
        self.shared.partition.clone()
    }

    /// Waits for the answer, for ever if none comes. Cancel safe.
    pub async fn status(&mut self) -> CallStatus {
        (&mut self.answer).await.unwrap_or(CallStatus::Unknown)
    }
}

impl Drop for QueryTicket {
    fn drop(&mut self) {
        drop(self.shared.waiting().end_query(&self.query));
    }
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::Topic;
    use bluebox_core::log::embedded::Embedded;

    use super::*;

    /// A broker that is away for longer than anyone waits has lost nothing: who asks is told to ask again, and not that the outcome can't be read.
    #[tokio::test(start_paused = true)]
    async fn an_outcome_that_the_log_does_not_give_now_can_be_asked_for_again() {
        let log = Embedded::in_memory();
        let nowhere = Topic::new("bluebox.shop.replies").partition(0);
        let unread = read_outcome(&*log, &nowhere, Offset::new(7), &CallId::random()).await.unwrap_err();
        assert!(matches!(unread, Unread::NotNow(_)), "{unread:?}");
        let problem = unread.problem(Kind::LogAway);
        assert_eq!(problem.kind(), Kind::LogAway);
    }
}

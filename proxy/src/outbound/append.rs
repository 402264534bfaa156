//! Makes a call durable: from here on it is *accepted*.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::call::Call;
use bluebox_core::log::{Append, AppendError, Appended, Health, Log, Record, Topic, TopicPartition};
use bluebox_core::topics::{Topics, partition_of};
use bluebox_core::wire::{CallsEntry, ControlEntry};
use tracing::{debug, warn};

use crate::problem::{Kind, Problem};

/// A call that is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The partition of the `calls` topic that it is in.
    pub partition: TopicPartition,
    /// Its place and time there.
    pub appended: Appended,
}

/// A call on its way into the log. Dropping it does not call it back, but cancels it where that was asked for.
#[must_use]
pub struct Accepting {
    id: CallId,
    partition: TopicPartition,
    append: Option<Append>,
    accepted: Option<Appended>,
    cancel: Option<Box<(Arc<dyn Log>, Topic)>>,
}

/// Whether the log can be asked at all.
///
/// # Errors
/// When it is known to be away: then nothing needs to be tried.
pub fn check_health(log: &dyn Log) -> Result<(), Problem> {
    match *log.health().borrow() {
        Health::Up => Ok(()),
        Health::Away(_) => Err(Problem::new(Kind::NotAccepted, "the log can't be reached now; nothing was accepted, so it is safe to try again")),
    }
}

/// Appends a call to the partition of the ordinal that its caller named, else to that which its ordering key or its id gives. The append is under way when this
/// returns.
pub fn append(log: &dyn Log, topics: &Topics, partitions: u32, ordinal: Option<u32>, call: Call) -> Accepting {
    let number = ordinal.unwrap_or_else(|| partition_of(&call.id, call.ordering_key.as_deref(), partitions));
    let partition = topics.calls.partition(number);
    let id = call.id;
    let append = Some(log.append(&partition, Record::new(CallsEntry::Call(Box::new(call)).encode())));
    Accepting { id, partition, append, accepted: None, cancel: None }
}

impl Accepting {
    /// Waits until the log has it, at most for `patience`. Cancel safe; to be awaited until it says something once.
    ///
    /// # Errors
    /// When it provably is not in the log (503, 413), or when that is not known (504).
    pub async fn accepted(&mut self, patience: Duration) -> Result<Accepted, Problem> {
        let Some(append) = &mut self.append else {
            return Err(Problem::new(Kind::Internal, "an append was awaited twice").about(self.id));
        };
        let result = tokio::time::timeout(patience, append).await;
        if result.is_ok() {
            self.append = None;
        }
        let problem = match result {
            Ok(Ok(appended)) => {
                self.accepted = Some(appended);
                return Ok(Accepted { partition: self.partition.clone(), appended });
            }
            Ok(Err(AppendError::NotPersisted(why))) => Problem::new(Kind::NotAccepted, format!("{}: {why}; it is safe to try again", self.partition)),
            Ok(Err(e @ AppendError::TooLarge { .. })) => Problem::new(Kind::TooLarge, format!("{}: the call without its body: {e}", self.partition)),
            Ok(Err(AppendError::Unknown(why))) => Problem::new(Kind::AcceptanceUnknown, format!("{}: {why}", self.partition)),
            Err(_) => {
                Problem::new(Kind::AcceptanceUnknown, format!("{}: the log did not answer within {}", self.partition, humantime::format_duration(patience)))
            }
        };
        Err(problem.about(self.id))
    }

    /// Where it is, if [`Self::accepted`] has said that the log has it.
    pub fn place(&self) -> Option<Accepted> {
        self.accepted.map(|appended| Accepted { partition: self.partition.clone(), appended })
    }

    /// From now on the call is cancelled when this is dropped: for callers who want that a call ends with their connection.
    pub fn cancel_on_drop(&mut self, log: Arc<dyn Log>, topics: &Topics) {
        self.cancel = Some(Box::new((log, topics.control.clone())));
    }

    /// The call has ended, or goes on without its caller.
    pub fn let_go(&mut self) {
        self.cancel = None;
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        let (Some(cancel), Ok(runtime)) = (self.cancel.take(), tokio::runtime::Handle::try_current()) else { return };
        let (log, control) = *cancel;
        let (id, partition, append, accepted) = (self.id, self.partition.partition, self.append.take(), self.accepted.take());
        runtime.spawn(async move {
            let offset = match (accepted, append) {
                (Some(accepted), _) => accepted.offset,
                (None, Some(append)) => match append.await {
                    Ok(appended) => appended.offset,
                    // It is not in the log, as far as one can know.
                    Err(_) => return,
                },
                (None, None) => return,
            };
            let entry = ControlEntry::Cancel { id, offset };
            match log.append(&control.partition(partition), Record::new(entry.encode())).await {
                Ok(_) => debug!(call = %id, "cancelled a call whose caller hung up"),
                Err(e) => warn!(call = %id, problem = %e, "could not cancel a call whose caller hung up; it stays deliverable"),
            }
        });
    }
}

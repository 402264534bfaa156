//! Who waits for an answer of the log, and how it comes.

use tokio::sync::oneshot;

use super::frame::{Broken, Say};
use crate::clock::Moment;
use crate::log::{AppendError, Appended, Bounds, Committed, LogError, Offset, Timestamp};

/// Who waits for an answer.
pub(super) enum Waiter {
    Append { answer: oneshot::Sender<Result<Appended, AppendError>>, bytes: usize },
    Bounds(oneshot::Sender<Result<Bounds, LogError>>),
    Committed(oneshot::Sender<Result<Vec<Option<Committed>>, LogError>>),
    Partitions(oneshot::Sender<Result<Option<u32>, LogError>>),
    Done(oneshot::Sender<Result<(), LogError>>),
    Commit { answer: oneshot::Sender<Result<Moment, LogError>>, at: Moment },
}

impl Waiter {
    /// Takes the answer.
    pub(super) fn answer(self, say: Say) -> Result<(), Broken> {
        // Who does not wait any more does not want to know.
        match (self, say) {
            (Self::Append { answer, .. }, Say::Appended(say)) => {
                let appended = Appended { offset: Offset::new(say.offset), timestamp: Timestamp::from_millis(say.timestamp) };
                drop(answer.send(Ok(appended)));
            }
            (Self::Append { answer, .. }, Say::NotAppended(failure)) => drop(answer.send(Err(failure.append_error()))),
            (Self::Bounds(answer), Say::Bounds(bounds)) => drop(answer.send(Ok(bounds.read()))),
            (Self::Committed(answer), Say::Committed(say)) => {
                drop(answer.send(Ok(say.commits.into_iter().map(|c| c.read().and_then(|(_, committed)| committed)).collect())));
            }
            (Self::Partitions(answer), Say::Partitions(partitions)) => drop(answer.send(Ok((partitions > 0).then_some(partitions)))),
            (Self::Done(answer), Say::Done(_)) => drop(answer.send(Ok(()))),
            (Self::Commit { answer, at }, Say::Done(_)) => drop(answer.send(Ok(at))),
            (Self::Bounds(answer), Say::Failed(failure)) => drop(answer.send(Err(failure.log_error()))),
            (Self::Done(answer), Say::Failed(failure)) => drop(answer.send(Err(failure.log_error()))),
            (Self::Commit { answer, .. }, Say::Failed(failure)) => drop(answer.send(Err(failure.log_error()))),
            _ => return Err(Broken::Protocol("an answer to another question")),
        }
        Ok(())
    }

    /// There will be no answer. `maybe_sent`: the question may have arrived.
    pub(super) fn fail(self, maybe_sent: bool, why: &str) {
        let unavailable = || LogError::Unavailable(why.to_owned());
        match self {
            Self::Append { answer, .. } => {
                let error = if maybe_sent { AppendError::Unknown(why.to_owned()) } else { AppendError::NotPersisted(why.to_owned()) };
                drop(answer.send(Err(error)));
            }
            Self::Bounds(answer) => drop(answer.send(Err(unavailable()))),
            Self::Committed(answer) => drop(answer.send(Err(unavailable()))),
            Self::Partitions(answer) => drop(answer.send(Err(unavailable()))),
            Self::Done(answer) => drop(answer.send(Err(unavailable()))),
            Self::Commit { answer, .. } => drop(answer.send(Err(unavailable()))),
        }
    }
}

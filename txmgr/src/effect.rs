//! What comes out of a transaction.

use std::fmt;

use bluebox_core::call::MAX_KEPT_OUTCOME_BYTES;

use crate::TransactionId;
use crate::callback::{Callback, CallbackKey, Callee};
use crate::saga::Saga;
use crate::transaction::{Kept, Links, Lra};
use crate::wire::status::{LraStatus, ParticipantStatus};

/// A request that waits for its answer: whoever asks chooses the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Something to be done, now: all that it depends on is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Answer a request.
    Answer(RequestId, Answer),
    /// Make a call, and tell its outcome.
    Call(Callback),
    /// The outcome of this call is not worth waiting for: it may be cancelled. Its outcome is still waited for.
    Hurry(CallbackKey),
    /// The transaction is in another state: one line in the log of the process.
    Changed(TransactionId, LraStatus),
}

/// What tests look for among effects.
#[cfg(test)]
pub(crate) mod seen {
    use super::{Answer, Callback, Effect, RequestId};

    /// The answer to a request, if it was given.
    pub(crate) fn answer(effects: &[Effect], number: RequestId) -> Option<Answer> {
        effects.iter().find_map(|effect| match effect {
            Effect::Answer(request, answer) if *request == number => Some(answer.clone()),
            _ => None,
        })
    }

    /// Takes out the calls that are to be made.
    pub(crate) fn calls(effects: &mut Vec<Effect>) -> Vec<Callback> {
        effects
            .extract_if(.., |effect| matches!(effect, Effect::Call(_)))
            .filter_map(|effect| if let Effect::Call(callback) = effect { Some(callback) } else { None })
            .collect()
    }
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// There is a transaction of this name now.
    Started(TransactionId),
    /// The participant has (or had) this number.
    Joined {
        /// Its number: what its recovery URL names.
        callee: Callee,
        /// What it had left when it joined before.
        former_data: Option<String>,
    },
    /// It is done.
    Done,
    /// The state of the transaction.
    Status(LraStatus),
    /// The same, to a request to end it that came with an outcome: another one is kept for the same call, and that is the one that counts.
    EndedOtherwise(LraStatus),
    /// The outcome of the call that ended it.
    Kept(Box<Kept>),
    /// All of the transaction.
    Lra(Box<Lra>),
    /// All of the saga.
    Saga(Box<Saga>),
    /// How a participant is called.
    Links(Box<Links>),
    /// Of a nested LRA, to its parent: its state as participant.
    Participant(ParticipantStatus),
    /// Of a nested LRA, to its parent: nothing is left to be done (410).
    Gone,
    /// It can't be.
    Refused(Refusal),
}

/// Why a request is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The LRA is past that.
    NotActive(TransactionId, LraStatus),
    /// The other end was decided.
    OtherEnd(TransactionId, LraStatus),
    /// There is no such participant.
    NoSuchParticipant(TransactionId),
    /// The parent is not there, or not active any more.
    NoParent(TransactionId),
    /// It would not fit into a record any more.
    Full(TransactionId),
    /// Only what has failed can be forgotten.
    NotFailed(TransactionId, LraStatus),
    /// Only on those that are ending, or whose end somebody has yet to be told, can be given up.
    NotEnding(TransactionId, LraStatus),
    /// Only one that has ended can be forgotten by its parent.
    NotEnded(TransactionId, LraStatus),
    /// It is another kind of transaction.
    OtherKind(TransactionId),
    /// It keeps no outcome of this call.
    NoOutcome(TransactionId),
    /// The outcome of this call was too long to be kept, or others are kept instead.
    OutcomeNotKept(TransactionId),
}

impl Refusal {
    /// The status code of the answer, as the wire has it.
    pub fn status_code(&self) -> u16 {
        match self {
            // 412, the LRA is not active any more.
            Self::NotActive(..) | Self::OtherEnd(..) | Self::NotFailed(..) | Self::NotEnding(..) | Self::NotEnded(..) => 412,
            // Narayana's answer to `remove` for a participant that is none.
            Self::NoSuchParticipant(_) => 400,
            Self::NoParent(_) | Self::OtherKind(_) | Self::NoOutcome(_) => 404,
            Self::OutcomeNotKept(_) => 410,
            Self::Full(_) => 413,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotActive(id, status) => write!(f, "transaction {id} is {status}: this is for active ones"),
            Self::OtherEnd(id, status) => write!(f, "transaction {id} is {status}: the other end was decided before"),
            Self::NoSuchParticipant(id) => write!(f, "transaction {id} has no such participant: name it by the URL (or the links) that it joined with"),
            Self::NoParent(id) => write!(f, "transaction {id} was not begun: its parent is not there, or not active any more"),
            Self::Full(id) => write!(f, "transaction {id} is full: participants with less data, shorter URLs, or several transactions"),
            Self::NotFailed(id, status) => write!(f, "transaction {id} is {status}: only what has failed can be forgotten"),
            Self::NotEnding(id, status) => {
                write!(f, "transaction {id} is {status}: there is nobody to be given up; one that is active is closed or cancelled first")
            }
            Self::NotEnded(id, status) => write!(f, "transaction {id} is {status}: what has ended can be forgotten"),
            Self::NoOutcome(id) => write!(f, "transaction {id} keeps no outcome of this call"),
            Self::OutcomeNotKept(id) => {
                write!(
                    f,
                    "transaction {id} does not keep the outcome of this call (any more): it has more than {MAX_KEPT_OUTCOME_BYTES} bytes, or there are too many"
                )
            }
            Self::OtherKind(id) => write!(f, "transaction {id} is of another kind: an LRA is no saga, a saga no LRA, and only what has a parent is nested"),
        }
    }
}

//! The calls that go out, to participants and to steps of sagas.
//!
//! A callback is one durable call, named by its [`CallbackKey`] (its `Idempotency-Key`): however often it is sent, by whichever owner, and after whatever crash, the log records one outcome
//! for it and delivers nothing under that key afterwards. So there is never more than one call without an outcome per participant, and a call that comes late is known by its key.

use std::fmt;
use std::sync::Arc;

use bluebox_core::log::Timestamp;

use crate::TransactionId;
use crate::saga::StepRequest;
use crate::wire::status::{LraStatus, ParticipantStatus};

/// What a participant is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The parent of a nested LRA, to take it in: `PUT` with links.
    Enlist,
    /// `PUT` complete.
    Complete,
    /// `PUT` compensate.
    Compensate,
    /// `GET` status.
    Status,
    /// `DELETE` forget.
    Forget,
    /// `PUT` after, with the final status of the LRA.
    After,
    /// The action of a step of a saga.
    Action,
    /// Its compensation.
    Undo,
}

impl Phase {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Enlist, Self::Complete, Self::Compensate, Self::Status, Self::Forget, Self::After, Self::Action, Self::Undo];

    /// Its name in keys and in what operators see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enlist => "enlist",
            Self::Complete => "complete",
            Self::Compensate => "compensate",
            Self::Status => "status",
            Self::Forget => "forget",
            Self::After => "after",
            Self::Action => "action",
            Self::Undo => "compensation",
        }
    }
}

/// Who is called, within a transaction: participants are numbered in the order of joining, steps in that of the request; the parent of a nested LRA has a number of its own. Numbers never come
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Callee(pub u32);

impl Callee {
    /// The parent of a nested LRA.
    pub const PARENT: Self = Self(u32::MAX);
}

/// The name of one callback. `n` counts the outcomes so far that asked for another call: it grows only with such an outcome, and is durable before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallbackKey {
    /// The transaction.
    pub transaction: TransactionId,
    /// Whom it is for.
    pub callee: Callee,
    /// What is asked.
    pub phase: Phase,
    /// The number of the try.
    pub n: u32,
}

impl fmt::Display for CallbackKey {
    /// The value of the `Idempotency-Key`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transaction, callee, phase, n } = self;
        match *callee {
            Callee::PARENT => write!(f, "{transaction}/parent/{}/{n}", phase.name()),
            Callee(number) => write!(f, "{transaction}/{number}/{}/{n}", phase.name()),
        }
    }
}

/// A call to be made. It is repeated under its key until it has an outcome: a proxy's 503 and 504 are none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Callback {
    /// Its name.
    pub key: CallbackKey,
    /// Where it goes. [`Phase::Enlist`] goes to the transaction manager itself, through the log: then this is the parent's id, whatever its URL said.
    pub url: Arc<str>,
    /// What the URLs of this LRA begin with: that of `Long-Running-Action` is this, '/' and the id.
    pub base: Option<Arc<str>>,
    /// The URL of its parent.
    pub parent: Option<Arc<str>>,
    /// What the participant left when it joined, to be told again.
    pub data: Option<Arc<str>>,
    /// The body of [`Phase::After`].
    pub ended: Option<LraStatus>,
    /// The request of a step of a saga; without it, method and body are those of the phase.
    pub step: Option<Arc<StepRequest>>,
    /// It must not be delivered later than this. `None`: as late as the log keeps it.
    pub not_after: Option<Timestamp>,
}

/// How a callback ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// What was asked for is done (and may be forgotten there).
    Done,
    /// It is being done. A place to ask at, if one was given: a URL that was checked (see [`crate::wire::participant::Callable::check_location`]).
    InProgress(Option<String>),
    /// It will never be done. Of a saga's action: a business no. With the reason, if one was given.
    Failed(Option<String>),
    /// The participant names its status.
    Says(ParticipantStatus),
    /// Anything else, in words: it must be asked again.
    Again(String),
}

impl Outcome {
    /// What it is, without what the callee said: for what is counted and logged.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::InProgress(_) => "in_progress",
            Self::Failed(_) => "failed",
            Self::Says(_) => "says",
            Self::Again(_) => "again",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_in_every_part() {
        let id = |random| TransactionId::new(1, Timestamp::from_millis(2), None, random);
        let key = |transaction, callee, phase, n| CallbackKey { transaction, callee, phase, n }.to_string();
        let first = key(id(1), Callee(0), Phase::Complete, 0);
        assert_eq!(first, "0001-000000000002-0000000000000001/0/complete/0");
        for other in [
            key(id(2), Callee(0), Phase::Complete, 0),
            key(id(1), Callee(1), Phase::Complete, 0),
            key(id(1), Callee::PARENT, Phase::Complete, 0),
            key(id(1), Callee(0), Phase::Compensate, 0),
            key(id(1), Callee(0), Phase::Complete, 1),
        ] {
            assert_ne!(first, other);
        }
    }
}

//! A transaction of either kind, as its partition sees it.

use bluebox_core::log::Timestamp;

use crate::effect::{Effect, RequestId};
use crate::gate::Version;
use crate::record::State;
use crate::saga::{RunningSaga, Saga, SagaRequest};
use crate::transaction::{Kept, Lra, Request, Transaction};

/// What is asked of a transaction of either kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Of an LRA.
    Lra(Request),
    /// Of a saga.
    Saga(SagaRequest),
}

/// A look at a transaction of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateRef<'a> {
    /// An LRA.
    Lra(&'a Lra),
    /// A saga.
    Saga(&'a Saga),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Machine {
    Lra(Box<Transaction>),
    Saga(Box<RunningSaga>),
}

impl Machine {
    pub(super) fn state(&self) -> State {
        match self {
            Self::Lra(transaction) => State::Lra(Box::new(transaction.lra().clone())),
            Self::Saga(saga) => State::Saga(Box::new(saga.saga().clone())),
        }
    }

    pub(super) fn begun(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        match self {
            Self::Lra(transaction) => transaction.begun(request, effects),
            Self::Saga(saga) => saga.begun(request, effects),
        }
    }

    pub(super) fn durable(&mut self, now: Timestamp, version: Version, effects: &mut Vec<Effect>) {
        match self {
            Self::Lra(transaction) => transaction.durable(now, version, effects),
            Self::Saga(saga) => saga.durable(version, effects),
        }
    }

    pub(super) fn take_record(&mut self) -> Option<Version> {
        match self {
            Self::Lra(transaction) => transaction.take_record(),
            Self::Saga(saga) => saga.take_record(),
        }
    }

    /// How much it keeps of an outcome, in bytes.
    pub(super) fn kept_bytes(&self) -> usize {
        match self {
            Self::Lra(transaction) => transaction.lra().kept.as_deref().map_or(0, Kept::len_bytes),
            Self::Saga(_) => 0,
        }
    }

    pub(super) fn drop_kept(&mut self) {
        if let Self::Lra(transaction) = self {
            transaction.drop_kept();
        }
    }

    pub(super) fn write_again(&mut self) {
        match self {
            Self::Lra(transaction) => transaction.write_again(),
            Self::Saga(saga) => saga.write_again(),
        }
    }

    pub(super) fn is_removable(&self, now: Timestamp) -> bool {
        match self {
            Self::Lra(transaction) => transaction.is_removable(now),
            Self::Saga(saga) => saga.is_removable(now),
        }
    }

    pub(super) fn wakes_at(&self) -> Option<Timestamp> {
        match self {
            Self::Lra(transaction) => transaction.wakes_at(),
            Self::Saga(saga) => saga.wakes_at(),
        }
    }
}

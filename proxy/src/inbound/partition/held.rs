//! A call without an end.

use std::sync::Arc;

use bluebox_core::CallId;
use bluebox_core::call::{Body, Call, Digest, ReplyAddress};
use bluebox_core::clock::Moment;
use bluebox_core::log::{Offset, Timestamp};
use bytes::Bytes;

use super::effects::Payload;

/// Which calls go one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Key(Bytes),
    /// Retries of a recorded call are in one lane, so that the second finds the end of the first.
    Id(CallId),
}

/// A call without an end.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: CallId,
    pub(super) replay: u32,
    pub(super) reply_to: ReplyAddress,
    pub(super) recorded: Option<Digest>,
    pub(super) lane: Option<Lane>,
    pub(super) accepted: Timestamp,
    pub(super) deadline: Moment,
    pub(super) wait_ends: Option<Moment>,
    pub(super) read_at: Moment,
    /// Its durable home besides the calls partition, once it is parked.
    pub(super) parked_at: Option<Offset>,
    pub(super) parking: bool,
    /// `None` for one that lives in the parked partition: read again when it is delivered.
    pub(super) call: Option<Arc<Call>>,
    pub(super) attempts: u32,
    pub(super) not_now: bool,
    pub(super) may_have_started: bool,
    pub(super) solo: bool,
    /// Whether a former owner may have started it.
    pub(super) suspect: bool,
    pub(super) state: State,
}

impl Held {
    /// The call, or where it can be read again: it is in memory or parked, always one of them.
    pub(super) fn payload(&self) -> Option<Payload> {
        match (&self.call, self.parked_at) {
            (Some(call), _) => Some(Payload::Here(Arc::clone(call))),
            (None, at) => at.map(Payload::Parked),
        }
    }

    /// Bytes of its body in memory.
    pub(super) fn bytes(&self) -> usize {
        match self.call.as_ref().map(|call| &call.request.body) {
            Some(Body::Inline(bytes)) => bytes.len(),
            _ => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A former owner may have started it; its outcome must be looked for first.
    Suspect,
    /// This box has begun to record an end of it in a former tenure, and is still at it: a suspect once that is durable.
    Ending,
    /// In its lane behind another, or for the index of recorded calls to be read.
    Blocked,
    /// In the queue of those that can be delivered.
    Ready,
    /// Its crash count is on its way into a commit.
    Announced,
    Delivering,
    Pausing(Moment),
    Recording,
}

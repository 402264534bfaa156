//! What goes into a partition and what comes out of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::{Call, Digest, Outcome, Reason, ReplyAddress};
use bluebox_core::log::{Offset, Timestamp, TopicPartition};
use bluebox_core::{CallId, planted};

/// Something to be done by who drives the partition. Each has an answer: the method named with it.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Append a fence record; then [`super::Partition::fenced`].
    Fence,
    /// Read what former owners left; then [`super::Partition::loaded`].
    Load {
        /// The parked partition from here …
        parked_from: Offset,
        /// … up to there, or to its present end where no commit says …
        parked_end: Option<Offset>,
        /// … and the control partition from here to its present end.
        control_from: Offset,
    },
    /// Begin to read at this offset.
    Start(Offset),
    /// Look for the outcomes of these in the reply partitions that they name, from the positions that they name to an end taken now; then
    /// [`super::Partition::searched`].
    Search(Vec<Suspect>),
    /// Stop this delivery at once; it has no answer.
    Cut(Offset),
    /// Make this end durable; then [`super::Partition::recorded`].
    Record(Ending),
    /// Append the call to the parked partition; then [`super::Partition::parked`].
    Park(Parking),
    /// The clean commit has been made (or can't be): give the partition up. The last effect there is.
    Release,
    /// Records are gone that had no outcome: this many offsets. An alarm.
    Lost(u64),
    /// A call was not delivered again, because its outcome was found.
    Suppressed(CallId),
    /// The parked limit is reached: an alarm.
    ParkedFull,
}

/// A call that a former owner may have started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Which.
    pub origin: Offset,
    /// Its id.
    pub id: CallId,
    /// Which life of it.
    pub replay: u32,
    /// For a recorded call: its digest.
    pub digest: Option<Digest>,
    /// Where its outcome would be.
    pub reply_to: ReplyAddress,
}

/// What a search has found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// The outcomes, by the offsets of their calls.
    pub found: HashMap<Offset, Found>,
    /// To where each reply partition was read.
    pub ends: Vec<(TopicPartition, Offset)>,
}

/// The end of a suspect that a search has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The reply partition with the outcome.
    pub partition: TopicPartition,
    /// Its offset there.
    pub offset: Offset,
    /// Whether it is a refusal (key reused, no room): the index must not take it for the end of a call that was delivered.
    pub refused: bool,
}

/// A delivery to be begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Which call of this partition.
    pub origin: Offset,
    /// The call, or where in the parked partition to read it.
    pub call: Payload,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// Whether a former delivery may have been cut off by a crash.
    pub may_have_started: bool,
    /// Whether it must be the only one in its box.
    pub solo: bool,
}

/// A call, or where it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// In memory.
    Here(Arc<Call>),
    /// In the parked partition at this offset.
    Parked(Offset),
}

/// How a call ends, to be made durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Which call of this partition.
    pub origin: Offset,
    /// Its id.
    pub id: CallId,
    /// Which life of it.
    pub replay: u32,
    /// Where the caller waits.
    pub reply_to: ReplyAddress,
    /// For a recorded call: its digest.
    pub digest: Option<Digest>,
    /// Whether the index of recorded calls must know of it.
    pub indexed: bool,
    /// Deliveries begun.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// With what.
    pub verdict: Verdict,
}

/// What a call ends with.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// This outcome.
    Outcome(Box<Outcome>),
    /// It becomes a dead letter, then a 502.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// What happened last.
        detail: String,
        /// The call.
        call: Payload,
    },
    /// The proxy refuses it or was asked to end it.
    Refused(Reason),
    /// It had ended before: the outcome lies there.
    Known {
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
    /// Its outcome was found by a search; only the index lacks it.
    Found {
        /// The reply partition with the outcome.
        partition: TopicPartition,
        /// Its offset there.
        offset: Offset,
    },
}

/// A call to be moved aside.
#[derive(Debug, Clone, PartialEq)]
pub struct Parking {
    /// Which call of this partition.
    pub origin: Offset,
    /// The call, or where in the parked partition it is now.
    pub call: Payload,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Deliveries begun.
    pub attempts: u32,
    /// Whether a delivery may have been cut off by a crash.
    pub may_have_started: bool,
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq)]
pub enum DeliveryEnd {
    /// With an outcome: the app's answer, or what stands for an answer that can't be passed on.
    Answered(Box<Outcome>),
    /// The app said *not now* (503 with Retry-After): no attempt. Its answer, should the time be over.
    NotNow(Duration, Box<Outcome>),
    /// Nothing was begun: the lease had run out.
    NotBegun,
    /// The app was not there (connection refused): nothing was begun, and the box takes no more until it is.
    NotThere,
    /// It failed: reset, no answer in time, a status of `retry-on`, a body that could not be read.
    Failed(String),
}

impl DeliveryEnd {
    /// The word for it in metrics and traces.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Answered(_) => "answered",
            Self::NotNow(..) => "not_now",
            Self::NotBegun => "not_begun",
            Self::NotThere => "not_there",
            Self::Failed(_) => "failed",
        }
    }
}

/// A call as it is read.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its offset in the calls partition.
    pub origin: Offset,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How old it is at least, by the log's clock and never more than by the wall clock.
    pub age: Duration,
    /// The call.
    pub call: Arc<Call>,
}

impl Arrival {
    /// How old a call is that was accepted at `accepted`, where the newest time that the log has shown is `newest`, and the box's own clock shows `wall`: a step of one
    /// clock can only make a call younger than it is.
    pub fn age(accepted: Timestamp, newest: Timestamp, wall: Timestamp) -> Duration {
        if planted!(WrongClock) {
            return wall.since(accepted);
        }
        newest.since(accepted).min(wall.since(accepted))
    }
}

/// What former owners left.
#[derive(Debug, Clone, Default)]
pub struct Inheritance {
    /// The calls of the parked partition, in its order, those that are done included.
    pub parked: Vec<ParkedArrival>,
    /// Where reading it ended.
    pub parked_end: Offset,
    /// The cancels of the control partition, in its order.
    pub cancels: Vec<super::Cancel>,
    /// Where reading it ended: follow it from here.
    pub control_end: Offset,
}

/// A call as it is read from the parked partition.
#[derive(Debug, Clone)]
pub struct ParkedArrival {
    /// Its offset in the parked partition.
    pub at: Offset,
    /// Deliveries begun.
    pub attempts: u32,
    /// Whether a delivery may have been cut off by a crash.
    pub may_have_started: bool,
    /// The call itself.
    pub arrival: Arrival,
}

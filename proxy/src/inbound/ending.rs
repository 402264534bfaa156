//! Makes the end of a call durable, in this order: a dead letter if it becomes one → the outcome in the reply topic → the entry in the index of recorded calls.
//! Only then may its offset be marked as done.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::{Call, Outcome, Reason, Response};
use bluebox_core::log::{Log, Offset, Record, Timestamp, TopicPartition};
use bluebox_core::wire::{DeadLetter, ParkedCall, RecordedEntry, Reply};

use super::deliver::refusal;
use super::partition::{Ending, Payload, Verdict};
use super::search;
use crate::bulk::Bulk;
use crate::problem::Kind;
use crate::spans::{EndingSpans, Spans};

/// Writes ends of calls. Cheap to clone.
#[derive(Clone)]
pub struct Endings {
    log: Arc<dyn Log>,
    bulk: Bulk,
    spans: Spans,
}

/// The partitions of one number that belong to an owner.
#[derive(Debug, Clone)]
pub struct Places {
    /// The calls.
    pub calls: TopicPartition,
    /// Parked calls.
    pub parked: TopicPartition,
    /// Queries and cancels.
    pub control: TopicPartition,
    /// The index of recorded calls.
    pub recorded: TopicPartition,
    /// Dead letters.
    pub dead_letters: TopicPartition,
}

/// What the index must know of a recorded call that has ended.
#[derive(Debug, Clone)]
pub struct Indexed {
    /// When, by the log's clock.
    pub at: Timestamp,
    /// The reply partition with the outcome.
    pub partition: TopicPartition,
    /// Its offset there.
    pub offset: Offset,
}

impl Endings {
    /// Writes to `log`.
    pub fn new(log: Arc<dyn Log>, bulk: Bulk, spans: Spans) -> Self {
        Self { log, bulk: bulk.trying_again(), spans }
    }

    /// Makes an end durable. Tries for as long as it takes; cancel safe in this sense: what is already durable stays, and the next owner finds it.
    pub async fn record(&self, ending: &Ending, places: &Places, epoch: Offset) -> Option<Indexed> {
        let spans = self.spans.ends(ending);
        let spans = spans.as_ref();
        let (partition, offset) = match &ending.verdict {
            Verdict::Outcome(outcome) => self.reply(ending, outcome, spans).await,
            Verdict::Refused(reason) => self.reply(ending, &self.refuse(ending, *reason, detail(*reason)), spans).await,
            Verdict::DeadLetter { reason, detail, call } => {
                let span = spans.map(|spans| spans.buries(&places.dead_letters, Kind::Ended(*reason).word()));
                self.bury(ending, places, *reason, detail, call).await;
                if let Some(span) = span {
                    span.end();
                }
                self.reply(ending, &self.refuse(ending, *reason, detail), spans).await
            }
            Verdict::Found { partition, offset } => (partition.clone(), *offset),
            Verdict::Known { partition, offset } => {
                let at = Reply::At {
                    id: ending.id,
                    replay: ending.replay,
                    digest: ending.digest.unwrap_or_default(),
                    partition: partition.clone(),
                    offset: *offset,
                };
                // A few bytes; a log that doesn't take them takes nothing.
                let _ = search::append(&self.log, &ending.reply_to.partition, Record::new(at.encode())).await;
                return None;
            }
        };
        let digest = ending.digest.filter(|_| ending.indexed)?;
        // Keys are unique to the epoch: compaction must not let a zombie's entry, which is void, take the place of one that counts.
        let key = [ending.id.as_bytes().as_slice(), &epoch.get().to_be_bytes()].concat();
        let entry = RecordedEntry { id: ending.id, epoch, digest, partition: partition.clone(), offset };
        let at = search::append(&self.log, &places.recorded, Record::keyed(key.into(), entry.encode())).await.ok()?.timestamp;
        Some(Indexed { at, partition, offset })
    }

    fn refuse(&self, ending: &Ending, reason: Reason, detail: &str) -> Outcome {
        refusal(ending.id, ending.replay, ending.digest, ending.attempts, reason, detail)
    }

    async fn reply(&self, ending: &Ending, outcome: &Outcome, spans: Option<&EndingSpans>) -> (TopicPartition, Offset) {
        let to = &ending.reply_to.partition;
        let span = spans.map(|spans| spans.replies(to));
        let encode = |outcome: &Outcome| Record::new(Reply::Outcome(Box::new(outcome.clone())).encode());
        let appended = match search::append(&self.log, to, encode(outcome)).await {
            Ok(appended) => appended,
            Err(search::TooLarge) => {
                // Its head is larger than the log takes, since a large body is not in it.
                let instead = self.refuse(ending, Reason::Answer, "the head of the app's answer is larger than a record of the log");
                let nothing = Outcome { response: Response { headers: http::HeaderMap::new(), ..instead.response.clone() }, ..instead.clone() };
                match search::append(&self.log, to, encode(&instead)).await {
                    Ok(appended) => appended,
                    Err(search::TooLarge) => loop {
                        if let Ok(appended) = search::append(&self.log, to, encode(&nothing)).await {
                            break appended;
                        }
                        tokio::time::sleep(Duration::from_secs(10)).await;
                    },
                }
            }
        };
        if let Some(span) = span {
            span.end();
        }
        (to.clone(), appended.offset)
    }

    /// Writes a dead letter, with a body of its own.
    async fn bury(&self, ending: &Ending, places: &Places, reason: Reason, detail: &str, call: &Payload) {
        let Some(mut call) = self.load(call, places).await else {
            tracing::error!(call = %ending.id, "a call was to become a dead letter, but its parked record is gone");
            return;
        };
        let to = &places.dead_letters;
        let mut lost_body = false;
        match self.bulk.writing_to(to.clone()).copy(&call.request.body).await {
            Ok(body) => call.request.body = body,
            Err(error) => {
                // The chunks are gone. The letter still says what the call was.
                tracing::error!(call = %ending.id, %error, "a dead letter has lost its body");
                call.request.body = bluebox_core::Body::empty();
                lost_body = true;
            }
        }
        let detail = if lost_body { format!("{detail}; its body was lost before") } else { detail.to_owned() };
        let letter = DeadLetter { reason, detail, attempts: ending.attempts, origin: ending.origin, accepted: ending.accepted, call: Box::new(call) };
        if search::append(&self.log, to, Record::new(letter.encode())).await.is_err() {
            tracing::error!(call = %ending.id, "a dead letter is larger than a record of the log and was not kept");
        }
    }

    /// The call itself.
    pub async fn load(&self, payload: &Payload, places: &Places) -> Option<Call> {
        match payload {
            Payload::Here(call) => Some(Call::clone(call)),
            Payload::Parked(at) => match search::one(&self.log, &places.parked, *at).await?.record.value.map(ParkedCall::decode) {
                Some(Ok(parked)) => Some(*parked.call),
                _ => None,
            },
        }
    }
}

/// What a refusal says.
fn detail(reason: Reason) -> &'static str {
    match reason {
        Reason::KeyReused => "the same Idempotency-Key was used before with another method, target or body, or, at a gateway, another Authorization or Cookie",
        Reason::RecordedFull => "this box remembers as many recorded calls as it may; the call was not delivered",
        Reason::Cancelled => "the call was cancelled",
        Reason::Attempts => "too many attempts failed",
        Reason::Poison => "its box died of it too often",
        Reason::Deadline => "its deadline passed",
        Reason::Answer => "the app's answer can't be recorded",
        Reason::Transaction => "its transaction does not allow it",
        Reason::NoCoordinator => "its transaction could not be begun",
    }
}

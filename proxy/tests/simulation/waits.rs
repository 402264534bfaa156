//! Callers' proxies, one for each reply partition: they wait with the product's own [`Waiting`], read replies late and in order, give up, and die.

use std::sync::Arc;

use bluebox_core::CallId;
use bluebox_core::call::{Call, Digest, Outcome};
use bluebox_core::log::{Offset, TopicPartition};
use bluebox_core::wire::Reply;
use bluebox_proxy::outbound::pending::Answer;
use bluebox_proxy::outbound::pending::waiting::Waiting;
use tokio::sync::oneshot;

use crate::log::{Place, Value};
use crate::scenario::{MS, SECOND};
use crate::world::{Event, World, note};

/// One caller's proxy.
#[derive(Default)]
pub(crate) struct Caller {
    waiting: Waiting,
    waits: Vec<Wait>,
    /// The next reply that it reads.
    read: Offset,
    /// Counts its lives.
    life: u64,
}

struct Wait {
    call: Arc<Call>,
    ticket: u64,
    answer: oneshot::Receiver<Answer>,
}

impl World {
    /// A caller is about to append a call: its read position, from which on it waits.
    pub(crate) fn expects(&mut self, call: &mut Call) {
        let number = call.reply_to.partition.partition;
        let caller = self.callers.entry(number).or_default();
        call.reply_to.position = caller.read;
    }

    /// The call is appended.
    pub(crate) fn waits(&mut self, call: &Arc<Call>) {
        let number = call.reply_to.partition.partition;
        let caller = self.callers.entry(number).or_default();
        let (ticket, answer) = caller.waiting.expect(call.id);
        caller.waiting.only(&call.id, ticket, call.recorded);
        caller.waits.push(Wait { call: Arc::clone(call), ticket, answer });
        if let Some(wait) = call.wait {
            let (life, id) = (caller.life, call.id);
            self.after(wait.as_micros() as u64, Event::CallerGivesUp(number, life, id, ticket));
        }
    }

    pub(crate) fn gives_up(&mut self, number: u32, life: u64, id: CallId, ticket: u64) {
        let Some(caller) = self.callers.get_mut(&number).filter(|c| c.life == life) else { return };
        caller.waiting.give_up(&id, ticket);
        caller.waits.retain(|wait| wait.ticket != ticket);
    }

    /// Nobody waits any more; what was accepted goes on.
    pub(crate) fn caller_dies(&mut self, number: u32) {
        note!(self, "caller {number}: dies, and is started again");
        let end = self.log.end(Place::Replies(number));
        let caller = self.callers.entry(number).or_default();
        *caller = Caller { life: caller.life + 1, read: end, ..Caller::default() };
    }

    /// A reply has come to lie there: its reader gets it after a while.
    pub(crate) fn replied(&mut self, number: u32) {
        let slow = if !self.healed && self.random.clone().per_mille(50) { SECOND } else { 5 * MS };
        let delay = self.random.between(0, slow);
        self.after(delay, Event::Replied(number));
    }

    /// A caller reads what there is.
    pub(crate) fn reads_replies(&mut self, number: u32) {
        let place = Place::Replies(number);
        let caller = self.callers.entry(number).or_default();
        let (from, end, life) = (caller.read, self.log.end(place), caller.life);
        for (at, _, value) in self.log.range(place, from, end) {
            if let Some(caller) = self.callers.get_mut(&number) {
                caller.read = at.next();
            }
            match value {
                Value::Reply(Reply::Outcome(outcome)) => self.answered(number, outcome.id, outcome.digest, &outcome.into()),
                Value::Reply(Reply::At { id, digest, partition, offset, .. }) if self.callers.get(&number).is_some_and(|caller| caller.waiting.wants(&id)) => {
                    let delay = self.random.between(0, 5 * MS);
                    self.after(delay, Event::Follows(number, life, id, digest, partition, offset));
                }
                _ => {}
            }
        }
    }

    /// As `pending::read_outcome`, and then.
    pub(crate) fn follows(&mut self, number: u32, life: u64, id: CallId, digest: Digest, partition: &TopicPartition, offset: Offset) {
        if self.callers.get(&number).is_none_or(|caller| caller.life != life) {
            return;
        }
        match self.log.get(Place::Replies(partition.partition), offset) {
            Some(Value::Reply(Reply::Outcome(outcome))) if outcome.id == id => self.answered(number, id, Some(digest), &outcome.into()),
            other => self.witness.fail(format!("the outcome of {id} is said to lie at {partition} {offset}, and there lies {other:?}")),
        }
    }

    fn answered(&mut self, number: u32, id: CallId, digest: Option<Digest>, outcome: &Arc<Outcome>) {
        let Some(caller) = self.callers.get_mut(&number) else { return };
        for sender in caller.waiting.answered(id, digest) {
            let _ = sender.send(Ok(Arc::clone(outcome)));
        }
        let mut told = Vec::new();
        caller.waits.retain_mut(|wait| match wait.answer.try_recv() {
            Ok(Ok(answer)) => {
                told.push((Arc::clone(&wait.call), answer));
                false
            }
            _ => true,
        });
        for (call, answer) in told {
            self.witness.is_told(&call, &answer);
        }
    }

    /// Callers that wait although everything has ended and nobody needs to.
    pub(crate) fn check_callers(&self) -> Result<(), String> {
        let waits = self.callers.values().flat_map(|caller| &caller.waits).next();
        waits.map_or(Ok(()), |wait| Err(format!("call {} has ended, and its caller still waits", wait.call.request.target)))
    }
}

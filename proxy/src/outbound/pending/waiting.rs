//! Who waits for which outcome, in one proxy. Pure.
//!
//! The first outcome of a call wins: whoever is told is no longer there when a second one comes.

use std::collections::HashMap;
use std::sync::Arc;

use bluebox_core::call::{Digest, Outcome};
use bluebox_core::wire::CallStatus;
use bluebox_core::{CallId, planted};
use tokio::sync::oneshot;

use super::Unread;

/// What came for a call: its outcome, or why it can't be read.
pub type Answer = Result<Arc<Outcome>, Unread>;

/// Those who wait.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Who waits for a call's outcome; several where a recorded call was sent more than once, or another one with the same key.
    calls: HashMap<CallId, Vec<Waiter>>,
    queries: HashMap<CallId, oneshot::Sender<CallStatus>>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    /// For a recorded call: its digest. Another one with the same key has the same id, and its outcome is none of ours.
    digest: Option<Digest>,
    sender: oneshot::Sender<Answer>,
}

impl Waiting {
    /// One more waits for the outcome of this call.
    pub fn expect(&mut self, id: CallId) -> (u64, oneshot::Receiver<Answer>) {
        let (sender, answer) = oneshot::channel();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.calls.entry(id).or_insert_with(|| Vec::with_capacity(1)).push(Waiter { ticket, digest: None, sender });
        (ticket, answer)
    }

    /// It waits for that of the recorded calls with this id which has this digest.
    pub fn only(&mut self, id: &CallId, ticket: u64, digest: Option<Digest>) {
        if let Some(waiter) = self.calls.get_mut(id).and_then(|waiters| waiters.iter_mut().find(|w| w.ticket == ticket)) {
            waiter.digest = digest;
        }
    }

    /// It waits no longer.
    pub fn give_up(&mut self, id: &CallId, ticket: u64) {
        if let Some(waiters) = self.calls.get_mut(id) {
            waiters.retain(|waiter| waiter.ticket != ticket);
            if waiters.is_empty() {
                self.calls.remove(id);
            }
        }
    }

    /// Whether anybody waits for this call.
    pub fn wants(&self, id: &CallId) -> bool {
        self.calls.contains_key(id)
    }

    /// An outcome of this call has come: who is to be told.
    #[must_use]
    pub fn answered(&mut self, id: CallId, digest: Option<Digest>) -> Vec<oneshot::Sender<Answer>> {
        let Some(waiters) = self.calls.remove(&id) else { return Vec::new() };
        let (its, others): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|w| w.digest == digest || planted!(DigestIgnored));
        if !others.is_empty() {
            self.calls.insert(id, others);
        }
        its.into_iter().map(|waiter| waiter.sender).collect()
    }

    /// One waits for the answer to this query.
    pub fn expect_status(&mut self, query: CallId) -> oneshot::Receiver<CallStatus> {
        let (sender, answer) = oneshot::channel();
        self.queries.insert(query, sender);
        answer
    }

    /// The answer to this query has come, or it is not waited for any longer: who is to be told.
    pub fn end_query(&mut self, query: &CallId) -> Option<oneshot::Sender<CallStatus>> {
        self.queries.remove(query)
    }
}

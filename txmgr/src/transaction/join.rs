//! Join, leave, renew.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::Timestamp;
use bluebox_core::planted;

use super::{Links, Participant, Transaction};
use crate::callback::Callee;
use crate::effect::{Answer, Effect, Refusal, RequestId};
use crate::line::Line;
use crate::time::later;
use crate::wire::status::{LraStatus, ParticipantStatus};

/// The most that an LRA may have to say of its participants: it must fit into one record (Kafka's default limit is 1 MiB).
pub const MAX_LRA_BYTES: usize = 512 * 1024;

/// A participant, or a listener, that wants to join.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Join {
    /// How it is called. Checked.
    pub links: Links,
    /// How long it can compensate.
    pub limit: Option<Duration>,
    /// What it wants to be told again.
    pub data: Option<Arc<str>>,
}

/// What a participant is to be told in its callbacks from now on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Told {
    /// The URL that it is known by: of its compensate, or of its after.
    pub participant: Arc<str>,
    /// What it is told.
    pub data: Arc<str>,
}

impl Transaction {
    /// The participant that ends the LRA has left something else than it did before; one that has never joined is told nothing (both as Narayana). `false` when the record has no room for it.
    pub(super) fn tell_with_the_end(&mut self, told: Box<Told>) -> bool {
        let named = |p: &&Participant| p.links.identity() == Some(&told.participant);
        let callee = self.lra.participants.iter().find(named).map(|p| p.callee);
        callee.is_none_or(|callee| self.leave_with(callee, told.data))
    }

    /// A participant leaves this to be told again. `false` when the record has no room for it: then it is told what it was.
    fn leave_with(&mut self, callee: Callee, data: Arc<str>) -> bool {
        let Some(participant) = self.lra.participants.iter_mut().find(|p| p.callee == callee) else { return true };
        if participant.data.as_ref() == Some(&data) {
            return true;
        }
        let former = participant.data.replace(data);
        if self.lra.len_bytes() > MAX_LRA_BYTES {
            if let Some(participant) = self.lra.participants.iter_mut().find(|p| p.callee == callee) {
                participant.data = former;
            }
            return false;
        }
        self.gate.change();
        true
    }

    pub(super) fn join(&mut self, now: Timestamp, request: RequestId, join: Join, out: &mut Vec<Effect>) {
        let Join { links, limit, data } = join;
        // Only an active LRA takes in participants (412); its listeners may come while it is ending, as with Narayana, because they are called only afterwards.
        let status = self.lra.status;
        let same = |p: &Participant| p.links.identity() == links.identity();
        // Who takes part in a nested one that has closed may be called in it, to cancel it: a client of Narayana's joins before each call.
        let again = self.lra.can_be_undone() && self.lra.participants.iter().any(same);
        if status != LraStatus::Active && !(status.is_ending() && links.is_listener()) && !again {
            return self.answer(request, Answer::Refused(Refusal::NotActive(self.lra.id, status)), out);
        }
        // "The participant can be enlisted only once per LRA instance … the follow-up enlistments of such participant MUST be ignored" ("The Model").
        if let Some(before) = self.lra.participants.iter().find(|p| same(p)).filter(|_| !planted!(TxnJoinsTwice)) {
            let (callee, former_data) = (before.callee, before.data.as_deref().map(str::to_owned));
            // What it left is not part of the enlistment: Narayana takes the new one, and gives the former one back.
            let fits = data.is_none_or(|data| self.leave_with(callee, data));
            let answer = if fits { Answer::Joined { callee, former_data } } else { Answer::Refused(Refusal::Full(self.lra.id)) };
            return self.answer(request, answer, out);
        }
        let callee = Callee(self.lra.next_callee);
        let participant = Participant {
            callee,
            links,
            data,
            // A listener of one that is ending has nothing to do for that: as those who were there before.
            status: match status {
                LraStatus::Closing => ParticipantStatus::Completed,
                LraStatus::Cancelling => ParticipantStatus::Compensated,
                _ => ParticipantStatus::Active,
            },
            line: Line::default(),
            tried: false,
            was_in_progress: false,
            poll: None,
            told_after: false,
            told_forget: false,
        };
        self.lra.participants.push(participant);
        if self.lra.len_bytes() > MAX_LRA_BYTES {
            self.lra.participants.pop();
            return self.answer(request, Answer::Refused(Refusal::Full(self.lra.id)), out);
        }
        self.lra.next_callee = self.lra.next_callee.saturating_add(1);
        if let Some(identity) = self.lra.participants.last().and_then(|p| p.links.identity()) {
            self.lra.left.retain(|left| **left != *identity);
        }
        // "When this moment is earlier than the moment calculated for the LRA at that time, this new moment becomes the timeout moment for the LRA" ("Timing out LRAs").
        if let Some(limit) = limit {
            let end = later(now, limit);
            self.lra.deadline = Some(self.lra.deadline.map_or(end, |deadline| deadline.min(end)));
        }
        self.gate.change();
        // "the implementation must durably record that the participant/listener is associated with the LRA before allowing the business invocation to proceed" ("Starting and Ending LRAs").
        self.answer(request, Answer::Joined { callee, former_data: None }, out);
    }

    /// "it will be removed from the LRA … and will not be asked to complete or compensate" ("Leaving an LRA"), "provided that the associated LRA is in the state Active" (`ParticipantStatus`).
    pub(super) fn leave(&mut self, request: RequestId, url: &str, out: &mut Vec<Effect>) {
        let answer = match self.lra.participants.iter().position(|p| p.links.identity() == Some(url)) {
            None if self.lra.left.iter().any(|left| **left == *url) => Answer::Done,
            _ if self.lra.status != LraStatus::Active => Answer::Refused(Refusal::NotActive(self.lra.id, self.lra.status)),
            None => Answer::Refused(Refusal::NoSuchParticipant(self.lra.id)),
            Some(at) => {
                self.lra.participants.remove(at);
                self.lra.left.push(Arc::from(url));
                self.gate.change();
                Answer::Done
            }
        };
        self.answer(request, answer, out);
    }

    pub(super) fn renew(&mut self, now: Timestamp, request: RequestId, limit: Option<Duration>, out: &mut Vec<Effect>) {
        if self.lra.status != LraStatus::Active {
            let refusal = Refusal::NotActive(self.lra.id, self.lra.status);
            return self.answer(request, Answer::Refused(refusal), out);
        }
        let deadline = limit.map(|limit| later(now, limit));
        if deadline != self.lra.deadline {
            self.lra.deadline = deadline;
            self.gate.change();
        }
        self.answer(request, Answer::Done, out);
    }

    /// A participant has moved: "HTTP PUT on the reference will overwrite the old participant URL with the new one" (Narayana). What the new links don't say stays. A call that is under way goes
    /// to where it was; the next one to where it is now.
    pub(super) fn move_to(&mut self, request: RequestId, callee: Callee, links: Links, out: &mut Vec<Effect>) {
        let full = self.lra.len_bytes() + links.len_bytes() > MAX_LRA_BYTES;
        let answer = match self.lra.participants.iter_mut().find(|p| p.callee == callee) {
            None => Answer::Refused(Refusal::NoSuchParticipant(self.lra.id)),
            Some(_) if full => Answer::Refused(Refusal::Full(self.lra.id)),
            Some(participant) => {
                participant.links.overwrite(links);
                self.gate.change();
                Answer::Done
            }
        };
        self.answer(request, answer, out);
    }
}

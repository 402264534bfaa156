//! The state of an LRA: what its records say.

use std::sync::Arc;

use bluebox_core::CallId;
use bluebox_core::log::Timestamp;

use super::Kept;
use crate::TransactionId;
use crate::callback::Callee;
use crate::line::Line;
use crate::wire::status::{LraStatus, ParticipantStatus};

/// How a participant is called: URLs that were checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Links {
    /// `PUT` to compensate. A participant without one has nothing to compensate.
    pub compensate: Option<Arc<str>>,
    /// `PUT` to complete. A participant without one has nothing to complete ("The method is optional", MicroProfile LRA 2.0, "Compensating Activities").
    pub complete: Option<Arc<str>>,
    /// `GET` its status.
    pub status: Option<Arc<str>>,
    /// `DELETE`: it may forget.
    pub forget: Option<Arc<str>>,
    /// `PUT` when all has ended.
    pub after: Option<Arc<str>>,
    /// The nested LRA that the participant is.
    pub nested: Option<TransactionId>,
}

impl Links {
    /// Whether it only wants to know of the end: a listener, no participant ("LRA listeners").
    pub fn is_listener(&self) -> bool {
        self.compensate.is_none() && self.complete.is_none()
    }

    /// What a participant is known by: a second join with it is the same participant.
    pub fn identity(&self) -> Option<&str> {
        self.compensate.as_deref().or(self.after.as_deref())
    }

    /// Takes what the others say.
    pub(super) fn overwrite(&mut self, others: Self) {
        let Self { compensate, complete, status, forget, after, nested } = others;
        for (mine, other) in [
            (&mut self.compensate, compensate),
            (&mut self.complete, complete),
            (&mut self.status, status),
            (&mut self.forget, forget),
            (&mut self.after, after),
        ] {
            if other.is_some() {
                *mine = other;
            }
        }
        self.nested = nested.or(self.nested);
    }

    pub(super) fn len_bytes(&self) -> usize {
        [&self.compensate, &self.complete, &self.status, &self.forget, &self.after].into_iter().flatten().map(|url| url.len()).sum()
    }
}

/// One who has joined.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Participant {
    /// Its number, in the order of joining; never given again.
    pub callee: Callee,
    /// How it is called.
    pub links: Links,
    /// What it wants to be told again.
    pub data: Option<Arc<str>>,
    /// Its state.
    pub status: ParticipantStatus,
    /// What it is asked for.
    pub line: Line,
    /// Whether its first call of the present end has had an outcome: then those who joined before it may be asked too.
    pub tried: bool,
    /// Whether it once said that it takes its time: then it remembers, until it is told to forget ("Forgetting an LRA").
    pub was_in_progress: bool,
    /// Where to ask for its status, if it said so itself.
    pub poll: Option<Arc<str>>,
    /// It has been told how the LRA ended.
    pub told_after: bool,
    /// It has been told to forget.
    pub told_forget: bool,
}

impl Participant {
    /// Where its status can be asked for.
    pub fn status_url(&self) -> Option<&Arc<str>> {
        self.links.status.as_ref().or(self.poll.as_ref())
    }
}

/// The parent of a nested LRA.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parent {
    /// Its id.
    pub id: TransactionId,
    /// Its URL, as the client wrote it: what `Long-Running-Action-Parent` says.
    pub url: Arc<str>,
    /// The parent has this LRA among its participants.
    pub enlisted: bool,
    /// The parent is closing, and has asked this LRA to complete: only it can cancel this LRA now, if it is cancelled itself after that.
    pub closing: bool,
    /// The parent has closed: this LRA can't be cancelled any more.
    pub settled: bool,
    /// What the parent is asked for.
    pub line: Line,
}

/// An LRA.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lra {
    /// Its name.
    pub id: TransactionId,
    /// The call that began it: should that be delivered again, it has begun this one.
    pub origin: Option<CallId>,
    /// What its client calls itself.
    pub client: Arc<str>,
    /// What its URL begins with, as the client that began it wrote it: participants know it by that URL, whoever calls them later.
    pub base: Arc<str>,
    /// Its state.
    pub status: LraStatus,
    /// When it began.
    pub started: Timestamp,
    /// When it is cancelled, if it is still active then.
    pub deadline: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Whose part it is.
    pub parent: Option<Parent>,
    /// Those who joined, in that order.
    pub participants: Vec<Participant>,
    /// The number of the next one.
    pub next_callee: u32,
    /// What those were known by who left: a request to leave that is delivered again is answered as the first was.
    pub left: Vec<Arc<str>>,
    /// An operator has said that its failure may be forgotten.
    pub forgotten: bool,
    /// The outcome of the call that ended it, if that was said with the end.
    pub kept: Option<Box<Kept>>,
}

impl Lra {
    /// Everybody who is called, and for what.
    pub(super) fn lines_mut(&mut self) -> impl Iterator<Item = &mut Line> {
        self.participants.iter_mut().map(|p| &mut p.line).chain(self.parent.iter_mut().map(|p| &mut p.line))
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}/{}", self.base, self.id)
    }

    /// Whether it is nested in no other.
    pub fn is_top_level(&self) -> bool {
        self.parent.is_none()
    }

    /// Whether its state is its last one. A nested LRA that closed can still be cancelled until its parent has closed ("Nesting LRAs", 2).
    pub fn is_settled(&self) -> bool {
        self.status.is_final() && (self.status != LraStatus::Closed || self.parent.as_ref().is_none_or(|parent| parent.settled))
    }

    /// Whether it is a nested one that has closed by itself, and may yet be cancelled by its client: until its parent closes.
    pub(super) fn can_be_undone(&self) -> bool {
        self.status == LraStatus::Closed && self.parent.as_ref().is_some_and(|parent| !parent.closing && !parent.settled)
    }

    /// Whether it has ended and everybody who is to be told so, as things are, has been once, with whatever outcome: whoever waits for the end can count on that those have heard of it, and does not
    /// wait for who can't be told.
    pub(super) fn is_told(&self) -> bool {
        self.status.is_final() && self.participants.iter().all(|p| p.line.phase.is_none() || p.line.failures > 0)
    }

    /// Whether it is ending, or someone has yet to be told of its end (`isRecovering`).
    pub fn is_recovering(&self) -> bool {
        self.status.is_ending() || (self.status.is_final() && self.participants.iter().any(|p| p.line.phase.is_some()))
    }

    /// How long its record is, about.
    pub fn len_bytes(&self) -> usize {
        // Numbers and the last error included.
        let of = |p: &Participant| 460 + p.links.len_bytes() + p.data.as_ref().map_or(0, |d| d.len()) + p.poll.as_ref().map_or(0, |u| u.len());
        let left = self.left.iter().map(|url| url.len()).sum::<usize>();
        let parent = self.parent.as_ref().map_or(0, |parent| parent.url.len());
        1_000 + self.client.len() + self.base.len() + parent + left + self.participants.iter().map(of).sum::<usize>()
    }
}

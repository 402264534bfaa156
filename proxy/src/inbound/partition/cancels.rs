//! Cancels, and those of them that come before their calls are read.
//!
//! A cancel counts from the moment its record is in the control partition: it is remembered until its call is done, and every commit says from where in the control partition
//! the next owner must read, so that it finds what its predecessor had not carried out.

use super::*;

/// Cancels that one partition remembers at once. Beyond, that of the call which would be read last is dropped: the call is delivered.
pub const MAX_CANCELS: usize = 1_024;

/// So many records are read from the control partition before a commit is made for their sake alone.
const NOTE_AFTER: u64 = 1_024;

/// A cancel, as it is read from the control partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// Its own offset there.
    pub at: Offset,
    /// The offset of its call in the calls partition.
    pub origin: Offset,
    /// The call's id.
    pub id: CallId,
}

/// The cancels of calls that aren't done.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    by_origin: BTreeMap<Offset, Cancel>,
    /// The next offset of the control partition to be read.
    position: Offset,
    /// Where the next owner would begin by the last commit that was taken.
    noted: Offset,
}

impl Cancels {
    /// What lies below this was carried out by former owners.
    pub(super) fn new(from: Offset) -> Self {
        Self { by_origin: BTreeMap::new(), position: from, noted: from }
    }

    /// From where the control partition is to be read.
    pub(super) fn position(&self) -> Offset {
        self.position
    }

    fn remember(&mut self, cancel: Cancel) {
        self.by_origin.insert(cancel.origin, cancel);
        if self.by_origin.len() > MAX_CANCELS {
            self.by_origin.pop_last();
        }
    }

    pub(super) fn is_wanted(&self, origin: Offset, id: &CallId) -> bool {
        self.by_origin.get(&origin).is_some_and(|cancel| cancel.id == *id)
    }

    pub(super) fn carried_out(&mut self, origin: Offset) {
        self.by_origin.remove(&origin);
    }

    /// From where the next owner must read, for a commit that is taken now.
    pub(super) fn note(&mut self) -> Offset {
        self.noted = self.by_origin.values().map(|cancel| cancel.at).min().unwrap_or(self.position);
        self.noted
    }
}

impl Partition {
    /// The control partition was read up to and with this offset.
    pub fn control_read(&mut self, at: Offset) {
        self.cancels.position = self.cancels.position.max(at.next());
        if self.dirty == 0 && self.cancels.position.distance_from(self.cancels.noted) > NOTE_AFTER {
            self.dirty = 1;
        }
    }

    /// Ends a call that has not been answered; one that is under way is cut off, and one that can't be ended now (it was not read yet, it is a suspect) ends when its turn
    /// comes. `false`: it has ended, or is ending already.
    pub fn cancel(&mut self, cancel: Cancel, effects: &mut Vec<Effect>) -> bool {
        let Cancel { origin, id, .. } = cancel;
        let state = match self.held.get(&origin) {
            Some(held) if held.id != id || held.state == State::Recording => return false,
            Some(held) => Some(held.state),
            None if origin < self.position || self.done.is_done(origin) => return false,
            None => None,
        };
        self.cancels.remember(cancel);
        if self.may_be_known(origin) {
            return true;
        }
        match state {
            Some(State::Delivering) if self.may_end() => effects.push(Effect::Cut(origin)),
            Some(State::Blocked | State::Ready | State::Pausing(_)) if self.may_end() => {}
            _ => return true,
        }
        if planted!(DropOnCancel) {
            self.finish(origin);
            return true;
        }
        self.record(origin, Verdict::Refused(Reason::Cancelled), effects);
        true
    }
}

//! Giving a partition up in good order, and what each commit says.

use super::*;

impl Partition {
    /// The partition shall go to another, or the box stops: no new deliveries; those under way may end within the drain.
    pub fn revoke(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Fencing | Phase::Loading => {
                // Nothing was begun: what the former owner left stays as it is, without a commit of ours.
                self.phase = Phase::Leaving;
                self.leave(now, effects);
            }
            Phase::Serving => {
                // What was only announced is not begun any more.
                let announced: Vec<_> = self.held.iter().filter(|(_, h)| h.state == State::Announced).map(|(o, _)| *o).collect();
                for origin in announced {
                    self.put_back(origin);
                }
                self.phase = Phase::Draining { until: now + self.rules.drain };
                self.drain(now, false, effects);
            }
            Phase::Leaving | Phase::Draining { .. } | Phase::Handing { .. } | Phase::Gone => {}
        }
    }

    /// There is no time for the drain that was begun: what is under way is cut off, and handed over as a suspect.
    pub fn end_drain(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if let Phase::Draining { until } = &mut self.phase {
            *until = (*until).min(now);
            self.drain(now, true, effects);
        }
    }

    /// The next owner does not wait for zombies of this one's predecessor: not before they can't begin anything any more is it released.
    pub(super) fn leave(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if now >= self.takeover.not_before {
            self.phase = Phase::Gone;
            effects.push(Effect::Release);
        }
    }

    pub(super) fn drain(&mut self, now: Moment, over: bool, effects: &mut Vec<Effect>) {
        let is_busy = |state| matches!(state, State::Delivering | State::Recording | State::Ending);
        let busy: Vec<_> = self.held.iter().filter(|(_, h)| is_busy(h.state)).map(|(o, h)| (*o, h.state)).collect();
        if (!busy.is_empty() && !over) || now < self.takeover.not_before {
            return;
        }
        for (origin, state) in busy {
            if state == State::Delivering {
                effects.push(Effect::Cut(origin));
                // Cut off by us: no crash.
                uncount(&mut self.crashes, origin);
            }
            self.cut_off.push(origin);
        }
        self.phase = Phase::Handing { since: now };
        self.dirty += 1;
    }

    /// Whether only the last commit is missing before it can be released.
    pub fn is_handing(&self) -> bool {
        matches!(self.phase, Phase::Handing { .. })
    }

    /// Whether it may take part in a commit: not before what the former owner left has been read.
    pub fn can_commit(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining { .. } | Phase::Handing { .. })
    }

    /// Whether a commit of this owner has succeeded: only then can a delivery begin, so that its successor knows of it.
    pub fn has_committed(&self) -> bool {
        self.committed
    }

    /// Whether there are marks that no commit has.
    pub fn dirty(&self) -> u32 {
        self.dirty
    }

    /// What to commit now, for the calls and for the parked partition.
    pub fn mark(&mut self) -> (Committed, Committed) {
        self.dirty = 0;
        let suspects = if self.is_handing() {
            let mut suspects = self.cut_off.clone();
            // What was not cleared up is handed on as it was found.
            suspects.extend(self.held.iter().filter(|(_, h)| h.state == State::Suspect || h.may_have_started).map(|(o, _)| *o));
            // Nor was what has not been read.
            match &self.takeover.suspects {
                Suspects::Any if self.position < self.takeover.suspect_below => Suspects::Any,
                Suspects::Any => Suspects::only(suspects),
                Suspects::Only(former) => {
                    suspects.extend(former.iter().filter(|o| **o >= self.position && !self.done.is_done(**o)));
                    Suspects::only(suspects)
                }
            }
        } else {
            Suspects::Any
        };
        let unread = self.former_attempts.iter().filter(|(o, _)| **o >= self.position).map(|(o, n)| (*o, *n));
        let attempts = self.held.iter().filter(|(_, h)| h.attempts > 0).map(|(o, h)| (*o, h.attempts)).chain(unread);
        let attempts = attempts.filter(|_| !planted!(LostAttempts)).collect();
        let calls = Mark {
            done: self.done.clone(),
            epoch: self.epoch,
            parked_end: None,
            suspects,
            unclean_owners: self.unclean_owners,
            control_from: self.cancels.note(),
            searched: self.searched.notes().to_vec(),
            crashes: self.crashes.iter().filter(|(_, n)| **n > 0).map(|(o, n)| (*o, *n)).collect(),
            attempts,
        };
        let parked = Mark { done: self.parked_mark(), epoch: self.epoch, parked_end: self.parked_end, suspects: Suspects::Any, ..Mark::default() };
        (calls.encode(), parked.encode())
    }

    /// The commit that [`Self::mark`] gave has succeeded.
    pub fn mark_committed(&mut self, base: Offset, handing: bool, effects: &mut Vec<Effect>) {
        self.committed = true;
        self.committed_base = self.committed_base.max(base);
        if handing && self.is_handing() {
            self.phase = Phase::Gone;
            effects.push(Effect::Release);
        }
    }

    /// The commit that [`Self::mark`] gave has failed.
    pub fn mark_failed(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.dirty += 1;
        if let Phase::Handing { since } = self.phase
            && now.since(since) >= HANDING_LIMIT
        {
            // The next owner finds our last commit, and has to search.
            self.phase = Phase::Gone;
            effects.push(Effect::Release);
        }
    }

    /// The partition was taken away: nothing more is committed, deliveries under way are cut off.
    pub fn lost(&mut self, effects: &mut Vec<Effect>) {
        effects.extend(self.held.iter().filter(|(_, h)| h.state == State::Delivering).map(|(o, _)| Effect::Cut(*o)));
        self.phase = Phase::Gone;
    }
}

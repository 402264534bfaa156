//! Taking over: the fence, what the former owner parked, and the search for what it had begun.

use bluebox_core::call::ReplyAddress;

use super::*;

impl Partition {
    /// This box had the partition before, and is still recording the ends of these calls: an append of that time may come into the log after any search of this one. So they wait
    /// for [`Self::recorded`], and are looked for then.
    pub fn still_recording(&mut self, these: impl Iterator<Item = Offset>) {
        self.takeover.recording.extend(these);
    }

    /// The fence is durable, at `epoch`.
    pub fn fenced(&mut self, epoch: Offset, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Fencing {
            return;
        }
        self.epoch = epoch;
        self.takeover.suspect_below = self.takeover.suspect_below.min(epoch);
        self.phase = Phase::Loading;
        effects.push(Effect::Load { parked_from: self.parked_done.base(), parked_end: self.parked_end, control_from: self.cancels.position() });
    }

    /// What former owners left was read. Before that nothing is delivered: a call may be parked, or cancelled.
    pub fn loaded(&mut self, now: Moment, inheritance: Inheritance, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Loading {
            return;
        }
        let Inheritance { parked, parked_end, cancels, control_end } = inheritance;
        self.parked_loaded(now, parked, parked_end, effects);
        self.phase = Phase::Serving;
        for cancel in cancels {
            self.cancel(cancel, effects);
        }
        if let Some(last) = control_end.get().checked_sub(1) {
            self.control_read(Offset::new(last));
        }
        self.takeover.quiet_at = now + QUIET_AFTER;
        effects.push(Effect::Start(self.position));
        self.search(now, effects);
    }

    fn parked_loaded(&mut self, now: Moment, mut entries: Vec<ParkedArrival>, end: Offset, effects: &mut Vec<Effect>) {
        // What is there without being a call needs no end. But the commit said exactly what is parked: what is missing of that is lost.
        let (mut at, mut lost) = (self.parked_done.base(), 0);
        for next in entries.iter().map(|entry| entry.at).chain([end]) {
            lost += (at.get()..next.get()).filter(|n| !self.parked_done.is_done(Offset::new(*n))).count() as u64;
            self.parked_done.mark_run(at, next);
            at = at.max(next.next());
        }
        if lost > 0 && self.parked_end.is_some() {
            effects.push(Effect::Lost(lost));
        }
        self.parked_end = Some(end);
        self.parked_floor = end;
        // In the order of the calls: those of one lane may have been parked in another.
        entries.sort_by_key(|entry| (entry.arrival.origin, entry.at));
        for entry in entries {
            if self.parked_done.is_done(entry.at) {
                continue;
            }
            // Parked twice: the later one counts.
            if let Some(held) = self.held.get_mut(&entry.arrival.origin) {
                held.attempts = held.attempts.max(entry.attempts);
                if let Some(earlier) = held.parked_at.replace(entry.at) {
                    self.parked_done.mark(earlier);
                }
                continue;
            }
            self.parked += 1;
            let origin = entry.arrival.origin;
            self.hold(now, entry.arrival, Some(entry.at), entry.attempts, entry.may_have_started);
            // It is taken from there, whatever the commit says of its first place.
            if origin >= self.done.base() {
                self.done.mark(origin);
            }
        }
    }

    /// The index of recorded calls has been read.
    pub fn index_loaded(&mut self) {
        self.index_ready = true;
        for origin in std::mem::take(&mut self.for_index) {
            self.unblock(origin);
        }
    }

    /// A fence of another was read. `true`: it is newer than ours. Either that one has taken over and this box has not been told yet, or it is a former owner's that
    /// came late; only the log can tell, see [`crate::inbound::owner::Owner::doubt`]. `age` is how much older it is than what was read last.
    #[must_use]
    pub fn fence_read(&mut self, now: Moment, at: Offset, age: Duration, effects: &mut Vec<Effect>) -> bool {
        self.skipped(now, at, effects);
        if at < self.epoch && self.takeover.virgin && age >= COMMITS_KEPT {
            // There were owners, but their commits are gone (the group's offsets expired): what lies before may have been started. A younger fence without a
            // commit is of one that gave the partition up before it began anything.
            for held in self.held.range_mut(..at).map(|(_, h)| h).filter(|h| h.state == State::Suspect) {
                held.may_have_started = true;
            }
        }
        at > self.epoch
    }

    /// Sends out a search for suspects when reading can't bring more of them now.
    pub(super) fn search(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Serving || self.takeover.searching {
            return;
        }
        let unread = match &self.takeover.suspects {
            Suspects::Any => self.position < self.takeover.suspect_below,
            Suspects::Only(these) => these.iter().any(|o| *o >= self.position),
        };
        if (unread && self.room() > 0 && now < self.takeover.quiet_at) || now < self.takeover.not_before {
            return;
        }
        if self.takeover.waiting > 0 {
            let waiting = self.held.iter().filter(|(_, h)| h.state == State::Suspect);
            let suspects = waiting.map(|(o, h)| {
                let ReplyAddress { partition, position } = &h.reply_to;
                let reply_to = ReplyAddress { partition: partition.clone(), position: self.searched.from(*o, partition, *position) };
                Suspect { origin: *o, id: h.id, replay: h.replay, digest: h.recorded, reply_to }
            });
            let suspects = suspects.collect();
            self.takeover.searching = true;
            effects.push(Effect::Search(suspects));
            return;
        }
        if !unread && self.takeover.suspects == Suspects::Any && self.takeover.recording.is_empty() {
            self.searched.complete(self.takeover.suspect_below);
        }
        if !unread && self.unclean_owners > 0 && !self.has_suspects() {
            // All that the former owners left has ended: the next crash is the first again.
            self.unclean_owners = 0;
            self.dirty += 1;
        }
    }

    /// The search has ended: of `looked_for`, these have an outcome, there.
    pub fn searched(&mut self, now: Moment, looked_for: &[Suspect], findings: &Findings, effects: &mut Vec<Effect>) {
        self.takeover.searching = false;
        self.searched.add(findings);
        for origin in looked_for.iter().map(|s| s.origin) {
            let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Suspect) else { continue };
            self.takeover.waiting -= 1;
            if let Some(Found { partition, offset, refused }) = findings.found.get(&origin) {
                effects.push(Effect::Suppressed(held.id));
                if held.recorded.is_some() && !refused {
                    let verdict = Verdict::Found { partition: partition.clone(), offset: *offset };
                    self.record(origin, verdict, effects);
                } else {
                    self.finish(origin);
                }
            } else {
                held.state = State::Blocked;
                self.unblock(origin);
            }
        }
        self.search(now, effects);
    }

    /// Whether suspects are still waiting for a verdict.
    pub(super) fn has_suspects(&self) -> bool {
        self.held.values().any(|h| h.suspect)
    }
}

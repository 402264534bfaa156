//! Moving calls aside, so that the frontier can go on without them.

use super::*;

impl Partition {
    /// The parked copy is durable at `at`.
    pub fn parked(&mut self, now: Moment, origin: Offset, at: Offset) {
        if at < self.parked_floor {
            // A commit has said already that nothing lives there.
            return self.not_parked(now, origin);
        }
        self.parking -= 1;
        self.parked_end = self.parked_end.max(Some(at.next()));
        self.dirty += 1;
        // If it ended meanwhile the copy counts for nothing.
        let Some(held) = self.held.get_mut(&origin) else { return };
        held.parking = false;
        self.held_bytes -= held.bytes();
        held.call = None;
        match held.parked_at.replace(at) {
            Some(earlier) => self.parked_done.mark(earlier),
            None => self.parked += 1,
        }
        if origin >= self.done.base() {
            self.done.mark(origin);
        }
    }

    /// What a commit says of the parked partition: exactly what lives there. Everything else is done or void: copies of calls that ended, copies whose
    /// acknowledgement was lost, what a zombie wrote. So the next owner needs no other means to tell them apart, and no copy can outlive its call.
    pub(super) fn parked_mark(&mut self) -> Frontier {
        let end = self.parked_end.unwrap_or_default();
        let living: BTreeSet<_> = if self.parked == 0 { BTreeSet::new() } else { self.held.values().filter_map(|h| h.parked_at).collect() };
        let mut at = self.parked_done.base();
        for next in living {
            self.parked_done.mark_run(at, next);
            at = next.next();
        }
        self.parked_done.mark_run(at, end);
        self.parked_floor = end;
        self.parked_done.clone()
    }

    /// The parked copy could not be made; it is tried again later.
    pub fn not_parked(&mut self, now: Moment, origin: Offset) {
        self.parking -= 1;
        if let Some(held) = self.held.get_mut(&origin) {
            held.parking = false;
            self.timers.insert((now + PARK_AFTER, origin));
        }
    }

    pub(super) fn park(&mut self, origin: Offset, effects: &mut Vec<Effect>) {
        if self.parked >= MAX_PARKED {
            if !std::mem::replace(&mut self.parked_full, true) {
                effects.push(Effect::ParkedFull);
            }
            return;
        }
        let Some(held) = self.held.get_mut(&origin).filter(|h| !h.parking && !matches!(h.state, State::Recording | State::Ending)) else { return };
        let Some(call) = held.payload() else { return };
        held.parking = true;
        self.parking += 1;
        let may_have_started = held.may_have_started || held.attempts > 0;
        effects.push(Effect::Park(Parking { origin, call, accepted: held.accepted, attempts: held.attempts, may_have_started }));
    }

    /// Parks a call whose lane stands still, and those behind it.
    pub(super) fn park_lane(&mut self, head: Offset, effects: &mut Vec<Effect>) {
        let lane = self.held.get(&head).and_then(|h| h.lane.clone());
        let behind = lane.and_then(|lane| self.in_lane.get(&lane)).map(|queue| queue.iter().copied().collect()).unwrap_or_else(|| vec![head]);
        for origin in behind {
            if self.held.get(&origin).is_some_and(|h| h.parked_at.is_none() && !h.parking) {
                self.park(origin, effects);
            }
        }
    }

    /// Parks the calls that hold the frontier down while others go on, in either partition.
    pub(super) fn park_what_pins(&mut self, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Serving {
            return;
        }
        let full = self.held.len().saturating_sub(self.parked) >= MAX_UNFINISHED;
        if self.done.span() >= MAX_SPAN / 4 * 3 || (full && !self.has_ready()) {
            let can_move = |h: &Held| h.parked_at.is_none() && !h.parking && !matches!(h.state, State::Suspect | State::Ending);
            let lowest: Vec<_> = self.held.iter().filter(|(_, h)| can_move(h)).map(|(o, _)| *o).take(64).collect();
            for origin in lowest {
                self.park(origin, effects);
            }
        }
        if self.parked_done.span() >= MAX_SPAN / 4 * 3 && self.parking == 0 {
            let pin = self.held.iter().filter(|(_, h)| !h.parking).min_by_key(|(_, h)| h.parked_at.unwrap_or(Offset::new(u64::MAX))).map(|(o, _)| *o);
            if let Some(origin) = pin {
                self.park(origin, effects);
            }
        }
    }
}

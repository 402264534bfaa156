//! How deliveries and calls end.

use super::*;

impl Partition {
    /// A delivery has ended. `jitter` is a random number from 0 to 1.
    pub fn delivery_ended(&mut self, now: Moment, origin: Offset, end: DeliveryEnd, jitter: f64, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(&origin).filter(|h| h.state == State::Delivering) else { return };
        if held.solo {
            // It lived through it: no crash.
            uncount(&mut self.crashes, origin);
            self.dirty += 1;
        }
        match end {
            DeliveryEnd::Answered(outcome) => self.record(origin, Verdict::Outcome(outcome), effects),
            DeliveryEnd::NotNow(pause, outcome) => {
                held.attempts -= 1;
                held.not_now = true;
                // An app that says *at once* is given a moment all the same: nothing else would hold up one call that goes back and forth.
                let again = now + pause.max(self.rules.first_backoff).min(MAX_NOT_NOW);
                if again >= held.deadline || held.wait_ends.is_some_and(|end| again >= end) {
                    self.record(origin, Verdict::Outcome(outcome), effects);
                } else {
                    self.pause(now, origin, again);
                }
            }
            DeliveryEnd::NotBegun | DeliveryEnd::NotThere => {
                held.attempts -= 1;
                held.state = State::Ready;
                self.ready.push_front(origin);
            }
            DeliveryEnd::Failed(detail) => {
                held.may_have_started = true;
                if held.attempts >= self.rules.max_attempts {
                    self.give_up(origin, Reason::Attempts, &detail, effects);
                } else {
                    let doubled = self.rules.first_backoff.saturating_mul(1 << held.attempts.saturating_sub(1).min(20));
                    let pause = doubled.min(self.rules.max_backoff).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
                    self.pause(now, origin, now + pause);
                }
            }
        }
    }

    pub(super) fn pause(&mut self, now: Moment, origin: Offset, until: Moment) {
        if let Some(held) = self.held.get_mut(&origin) {
            held.state = State::Pausing(until);
            self.timers.insert((until, origin));
            self.timers.insert((now.max(held.read_at + PARK_AFTER), origin));
        }
    }

    /// Whether the end of this call may lie in an earlier one: it is a retry of a recorded call, and what became of that isn't known yet. Then its own deadline and its
    /// cancel have to wait for its turn, because its end would be taken for the end of that one.
    pub(super) fn may_be_known(&self, origin: Offset) -> bool {
        let Some(held) = self.held.get(&origin).filter(|h| h.recorded.is_some() && h.replay == 0) else { return false };
        let lane = held.lane.as_ref().and_then(|lane| self.in_lane.get(lane));
        let mut ahead = lane.into_iter().flatten().take_while(|o| **o < origin).filter_map(|o| self.held.get(o));
        !self.index_ready || ahead.any(|earlier| earlier.id == held.id)
    }

    pub(super) fn give_up(&mut self, origin: Offset, reason: Reason, detail: &str, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get(&origin) else { return };
        let Some(call) = held.payload() else { return };
        self.record(origin, Verdict::DeadLetter { reason, detail: detail.to_owned(), call }, effects);
    }

    pub(super) fn record(&mut self, origin: Offset, verdict: Verdict, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(&origin) else { return };
        held.state = State::Recording;
        if planted!(CommitBeforeOutcome) && origin >= self.done.base() {
            self.done.mark(origin);
        }
        let known = matches!(verdict, Verdict::Known { .. } | Verdict::Refused(Reason::KeyReused | Reason::RecordedFull));
        effects.push(Effect::Record(Ending {
            origin,
            id: held.id,
            replay: held.replay,
            reply_to: held.reply_to.clone(),
            digest: held.recorded,
            indexed: held.recorded.is_some() && !known,
            attempts: held.attempts,
            accepted: held.accepted,
            verdict,
        }));
    }

    /// The end of a call is durable: of this tenure, or of a former one of this box.
    pub fn recorded(&mut self, now: Moment, origin: Offset, effects: &mut Vec<Effect>) {
        self.takeover.recording.remove(&origin);
        let Some(held) = self.held.get_mut(&origin) else { return };
        match held.state {
            State::Recording => self.finish(origin),
            // What it says is for the search to find, as if another box had written it.
            State::Ending => {
                held.state = State::Suspect;
                self.takeover.waiting += 1;
                self.search(now, effects);
            }
            _ => {}
        }
    }

    pub(super) fn finish(&mut self, origin: Offset) {
        let Some(held) = self.held.remove(&origin) else { return };
        self.held_bytes -= held.bytes();
        // It may lie a day ahead, and would be kept until then. The other timers are soon over.
        self.timers.remove(&(held.deadline, origin));
        if let Some(at) = held.parked_at {
            self.parked_done.mark(at);
            self.parked -= 1;
            self.parked_full = false;
        }
        if origin >= self.done.base() {
            self.done.mark(origin);
        }
        self.crashes.remove(&origin);
        self.former_attempts.remove(&origin);
        self.cancels.carried_out(origin);
        self.searched.done(origin);
        self.dirty += 1;
        let Some(lane) = held.lane else { return };
        let Some(queue) = self.in_lane.get_mut(&lane) else { return };
        queue.retain(|o| *o != origin);
        match queue.front().copied() {
            Some(next) => self.unblock(next),
            None => {
                self.in_lane.remove(&lane);
            }
        }
    }
}

pub(super) fn uncount(crashes: &mut BTreeMap<Offset, u32>, origin: Offset) {
    if let Some(n) = crashes.get_mut(&origin) {
        *n = n.saturating_sub(1);
        if *n == 0 {
            crashes.remove(&origin);
        }
    }
}

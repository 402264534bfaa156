//! The judge is judged: each kind of breach in a made-up ledger is found, and what is allowed is not.

use std::time::Duration;

use super::evidence::Evidence;
use super::{Findings, Promise, judge};
use crate::call::Value;
use crate::clock::Moment;
use crate::history::{BoxId, Ending, History, Life, Note, On, Role, Said, Trouble};
use crate::ledger::{Delivery, Entry, Line};
use crate::plan::Kind;

/// A plain worker, one with a key, one with a lane, one with a lane that gets 202.
const PLAIN: u16 = 0;
const KEYED: u16 = 6;
const LANED: u16 = 9;
const ASYNCHRONOUS: u16 = 13;

fn value(worker: u16, number: u32) -> Value {
    Value { caller: 0, worker, number }
}

fn cart(index: u16) -> BoxId {
    BoxId { role: Role::Callee, index }
}

/// Ledgers of one caller and two boxes, each of which lives once. Times are milliseconds.
struct Story {
    caller: Vec<Line>,
    carts: [Vec<Line>; 2],
    history: History,
}

impl Story {
    fn new() -> Self {
        let life = |index| Life { of: cart(index), number: 1, began: Moment(0), ended: None, gone: None };
        Self { caller: Vec::new(), carts: [Vec::new(), Vec::new()], history: History { lives: vec![life(0), life(1)], ..History::default() } }
    }

    fn told(mut self, at: u64, value: Value, entry: Entry) -> Self {
        self.caller.push(Line { at: Moment(at * 1_000), value, entry });
        self
    }

    fn sent(self, at: u64, value: Value) -> Self {
        self.told(at, value, Entry::Sending(1))
    }

    fn answered(self, at: u64, value: Value, cart: u16, number: u32) -> Self {
        self.told(at, value, Entry::Outcome(Ok(format!("cart-{cart}.1.{number}"))))
    }

    fn begun_as(mut self, at: u64, value: Value, (cart, number): (u16, u32), id: &str, may_have_started: bool) -> Self {
        let delivery = Delivery { name: format!("cart-{cart}.1.{number}"), id: id.to_owned(), attempt: 1, may_have_started };
        self.carts[usize::from(cart)].push(Line { at: Moment(at * 1_000), value, entry: Entry::Begin(delivery) });
        self
    }

    fn begun(self, at: u64, value: Value, cart: u16, number: u32) -> Self {
        self.begun_as(at, value, (cart, number), "id", false)
    }

    fn begun_again(self, at: u64, value: Value, cart: u16, number: u32) -> Self {
        self.begun_as(at, value, (cart, number), "id", true)
    }

    fn ended(mut self, at: u64, value: Value, cart: u16, number: u32) -> Self {
        self.carts[usize::from(cart)].push(Line { at: Moment(at * 1_000), value, entry: Entry::End(format!("cart-{cart}.1.{number}")) });
        self
    }

    /// Sent, delivered, answered, from this time on.
    fn good(self, at: u64, value: Value, number: u32) -> Self {
        self.sent(at, value).begun(at + 1, value, 0, number).ended(at + 2, value, 0, number).answered(at + 3, value, 0, number)
    }

    fn killed(mut self, at: u64, cart: usize) -> Self {
        self.history.lives[cart].ended = Some((Moment(at * 1_000), Ending::Killed(Kind::KillCalleeProxy)));
        self
    }

    fn left(mut self, at: u64, cart: usize) -> Self {
        self.history.lives[cart].ended = Some((Moment(at * 1_000), Ending::Asked));
        self
    }

    fn trouble(mut self, kind: Kind, on: On, from: u64, to: u64) -> Self {
        self.history.troubles.push(Trouble { kind, on, from: Moment(from * 1_000), to: Some(Moment(to * 1_000)) });
        self
    }

    fn said(mut self, at: u64, by: On, said: Said) -> Self {
        self.history.notes.push(Note { at: Moment(at * 1_000), by, said });
        self
    }

    fn judge(self) -> Findings {
        let [first, second] = self.carts;
        let evidence = Evidence::collect(vec![self.caller], vec![(cart(0), first), (cart(1), second)], &self.history);
        judge(&evidence, &self.history)
    }

    fn holds(self) -> Findings {
        let findings = self.judge();
        assert!(findings.violations.is_empty(), "{:#?}", findings.violations);
        findings
    }

    fn breaks(self, promise: Promise) {
        let findings = self.judge();
        let found: Vec<_> = findings.violations.iter().map(|violation| violation.promise).collect();
        assert_eq!(found, [promise], "{:#?}", findings.violations);
    }
}

#[test]
fn a_run_without_trouble_is_good() {
    let findings = Story::new().good(1, value(PLAIN, 0), 0).good(5, value(PLAIN, 1), 1).good(10, value(LANED, 0), 2).good(20, value(LANED, 1), 3).holds();
    assert_eq!((findings.calls, findings.accepted, findings.answered, findings.deliveries, findings.unknown), (4, 4, 4, 4, 0));
}

#[test]
fn what_nobody_accepted_may_be_gone() {
    let call = value(PLAIN, 0);
    let findings = Story::new().sent(1, call).told(2, call, Entry::Broken("x".into())).holds();
    assert_eq!((findings.accepted, findings.unknown), (0, 1));
    let findings = Story::new().sent(1, call).told(2, call, Entry::NotAccepted("x".into())).holds();
    assert_eq!((findings.accepted, findings.unknown), (0, 0));
}

#[test]
fn an_accepted_call_without_an_answer_is_lost() {
    let call = value(ASYNCHRONOUS, 0);
    Story::new().sent(1, call).told(2, call, Entry::Accepted("there".into())).breaks(Promise::Lost);
    let waited = value(PLAIN, 0);
    Story::new().sent(1, waited).told(2, waited, Entry::Problem(504, "no-outcome-yet".into())).breaks(Promise::Lost);
}

#[test]
fn what_was_begun_was_accepted_and_must_be_answered() {
    Story::new().sent(1, value(PLAIN, 0)).begun(2, value(PLAIN, 0), 0, 0).killed(3, 0).breaks(Promise::Lost);
}

#[test]
fn an_outcome_that_can_t_be_had_is_lost() {
    let call = value(KEYED, 0);
    Story::new().sent(1, call).begun(2, call, 0, 0).ended(3, call, 0, 0).breaks(Promise::Lost);
    let call = value(ASYNCHRONOUS, 0);
    let story = Story::new().sent(1, call).told(2, call, Entry::Accepted("there".into())).begun(3, call, 0, 0).ended(4, call, 0, 0);
    story.told(5, call, Entry::Forgotten("410".into())).breaks(Promise::Lost);
}

#[test]
fn a_plain_call_whose_caller_died_needs_no_caller() {
    Story::new().sent(1, value(PLAIN, 0)).begun(2, value(PLAIN, 0), 0, 0).ended(3, value(PLAIN, 0), 0, 0).holds();
}

#[test]
fn a_call_that_was_given_up_is_found() {
    Story::new().sent(1, value(PLAIN, 0)).told(2, value(PLAIN, 0), Entry::Problem(502, "attempts".into())).breaks(Promise::GivenUp);
}

#[test]
fn an_outcome_that_no_app_gave_is_found() {
    let call = value(PLAIN, 0);
    Story::new().good(1, call, 0).told(9, call, Entry::Outcome(Err("other-bytes".into()))).breaks(Promise::WrongOutcome);
    Story::new().sent(1, call).begun(2, call, 0, 0).ended(3, call, 0, 0).answered(4, call, 1, 7).breaks(Promise::WrongOutcome);
    // Before the app was about to answer.
    Story::new().sent(1, call).begun(2, call, 0, 0).answered(3, call, 0, 0).ended(4, call, 0, 0).breaks(Promise::WrongOutcome);
}

#[test]
fn a_call_has_one_outcome() {
    let call = value(KEYED, 0);
    let twice = || Story::new().good(1, call, 0).begun_again(3, call, 1, 0).ended(3, call, 1, 0).answered(9, call, 1, 0);
    // A kill explains the second delivery, but not a second outcome.
    twice().killed(2, 0).breaks(Promise::TwoOutcomes);
    let zombie = twice().trouble(Kind::StopCalleeProxy, On::Box(cart(0)), 2, 3).holds();
    assert_eq!(zombie.zombie_outcomes, 1);
}

#[test]
fn a_call_that_arrived_as_another_is_found() {
    let call = value(PLAIN, 0);
    let mut story = Story::new().good(1, call, 0);
    story.carts[0].push(Line { at: Moment(2_500), value: call, entry: Entry::Torn("cart-0.1.0".into()) });
    story.breaks(Promise::WrongCall);
}

#[test]
fn nothing_is_delivered_after_its_outcome() {
    let call = value(PLAIN, 0);
    let late = || Story::new().good(1, call, 0).begun_again(50, call, 1, 0).ended(51, call, 1, 0);
    // The box was killed after the outcome was recorded: whoever took over had to find it.
    late().killed(40, 0).breaks(Promise::DeliveredAfterOutcome);
    let found = late().judge();
    assert_eq!((found.count(Promise::DeliveredAfterOutcome), found.count(Promise::DuplicateUnexplained)), (1, 1));
    // One that was stopped meanwhile recorded it after its successor had looked.
    let zombie = late().trouble(Kind::StopCalleeProxy, On::Box(cart(0)), 2, 3).holds();
    assert_eq!(zombie.zombie_overlaps, 1);
}

#[test]
fn an_app_that_was_stopped_reads_late_what_it_was_sent_before() {
    let call = value(PLAIN, 0);
    let late = || Story::new().good(1, call, 0).begun(50, call, 1, 0).ended(51, call, 1, 0);
    late().trouble(Kind::StopCalleeApp, On::Box(cart(1)), 0, 49).holds();
    // It was stopped only after the outcome was there, or another one was.
    assert_eq!(late().trouble(Kind::StopCalleeApp, On::Box(cart(1)), 40, 49).judge().count(Promise::DeliveredAfterOutcome), 1);
    assert_eq!(late().trouble(Kind::StopCalleeApp, On::Box(cart(0)), 0, 49).judge().count(Promise::DeliveredAfterOutcome), 1);
}

#[test]
fn what_was_not_accepted_must_not_arrive() {
    let call = value(PLAIN, 0);
    let story = Story::new().sent(1, call).told(2, call, Entry::NotAccepted("not-accepted".into()));
    story.begun(3, call, 0, 0).ended(4, call, 0, 0).breaks(Promise::NotAcceptedButDelivered);
    let story = Story::new().sent(1, call).told(2, call, Entry::NotAccepted("not-accepted".into())).told(3, call, Entry::Sending(2));
    let story = story.begun_as(4, call, (0, 0), "first", false).ended(5, call, 0, 0).begun_as(4, call, (0, 1), "second", false).ended(5, call, 0, 1);
    assert_eq!(story.judge().count(Promise::NotAcceptedButDelivered), 1);
}

#[test]
fn lanes_are_in_order() {
    let (first, second) = (value(ASYNCHRONOUS, 0), value(ASYNCHRONOUS, 1));
    let both = || {
        let accepted = |place: &str| Entry::Accepted(place.to_owned());
        let story = Story::new().sent(1, first).told(2, first, accepted("a")).sent(3, second).told(4, second, accepted("b"));
        story.answered(90, first, 0, 0).answered(91, second, 0, 1)
    };
    both().begun(10, first, 0, 0).ended(11, first, 0, 0).begun(12, second, 0, 1).ended(13, second, 0, 1).holds();
    both().begun(12, first, 0, 0).ended(13, first, 0, 0).begun(10, second, 0, 1).ended(11, second, 0, 1).breaks(Promise::OutOfOrder);
    both().begun(10, first, 0, 0).ended(14, first, 0, 0).begun(12, second, 0, 1).ended(13, second, 0, 1).breaks(Promise::LaneOverlap);
}

#[test]
fn what_was_not_known_to_be_accepted_has_no_order() {
    let (first, second) = (value(LANED, 0), value(LANED, 1));
    let story = Story::new().sent(1, first).told(2, first, Entry::Broken("x".into())).good(3, second, 0);
    story.begun(20, first, 0, 1).ended(21, first, 0, 1).holds();
}

#[test]
fn a_duplicate_has_a_reason() {
    let call = value(PLAIN, 0);
    let twice = || Story::new().sent(1, call).begun(2, call, 0, 0).begun_again(30, call, 1, 0).ended(31, call, 1, 0).answered(32, call, 1, 0);
    twice().breaks(Promise::DuplicateUnexplained);
    twice().left(10, 0).breaks(Promise::DuplicateByRebalance);
    let killed = twice().killed(10, 0).holds();
    assert_eq!((killed.duplicates.values().sum::<u64>(), killed.in_flight_at_kills), (1, 1));
    // The app read it when its proxy was dead already.
    let mut late = twice().killed(1, 0);
    late.history.lives[0].gone = Some(Moment(3_000));
    assert_eq!(late.holds().in_flight_at_kills, 1);
    twice().killed(1, 0).breaks(Promise::DuplicateUnexplained);
    twice().trouble(Kind::Cut, On::Box(cart(0)), 5, 20).holds();
    twice().trouble(Kind::KillLog, On::Log(0), 5, 20).holds();
    twice().said(12, On::Box(cart(0)), Said::TakenForDead).holds();
    // What happened to another box, or before, explains nothing.
    twice().trouble(Kind::Cut, On::Box(cart(1)), 5, 20).breaks(Promise::DuplicateUnexplained);
    twice().trouble(Kind::Cut, On::Box(cart(0)), 0, 1).breaks(Promise::DuplicateUnexplained);
    twice().said(12, On::Box(cart(1)), Said::TakenForDead).breaks(Promise::DuplicateUnexplained);
}

#[test]
fn a_storm_makes_no_duplicates() {
    let call = value(PLAIN, 0);
    let mut story = Story::new().sent(1, call).begun(2, call, 0, 0).begun_again(30, call, 1, 0).ended(31, call, 1, 0).answered(32, call, 1, 0);
    story.history.storms.push((Moment(0), Moment(100_000)));
    story.breaks(Promise::DuplicateByRebalance);
}

#[test]
fn nobody_notices_a_storm() {
    let call = value(PLAIN, 0);
    let with_error = |at| {
        let mut story = Story::new().sent(5, call).told(at, call, Entry::NotAccepted("x".into())).told(60, call, Entry::Sending(2));
        story.history.storms.push((Moment(1_000), Moment(10_000)));
        story.begun(61, call, 0, 0).ended(62, call, 0, 0).answered(63, call, 0, 0)
    };
    with_error(6).breaks(Promise::ErrorInStorm);
    assert_eq!(with_error(50).holds().takeover.in_storms.len(), 1);
}

#[test]
fn a_second_delivery_says_that_there_may_have_been_a_first() {
    let call = value(PLAIN, 0);
    let story = Story::new().sent(1, call).begun(2, call, 0, 0).begun(30, call, 1, 0).ended(31, call, 1, 0).answered(32, call, 1, 0);
    story.killed(10, 0).breaks(Promise::DuplicateUnmarked);
}

#[test]
fn a_zombie_begins_nothing_but_what_was_under_way() {
    let calls = [value(PLAIN, 0), value(PLAIN, 1)];
    let begun = |late: &[Value]| {
        let mut story = Story::new().trouble(Kind::StopCalleeProxy, On::Box(cart(0)), 10, 50);
        for (number, call) in (0..).zip(calls) {
            story = story.sent(5, call).begun_again(30, call, 1, number).ended(70, call, 1, number).answered(71, call, 1, number);
        }
        late.iter().zip(0..).fold(story, |story, (call, number)| story.begun(51, *call, 0, number))
    };
    assert_eq!(begun(&calls[..1]).holds().begun_by_zombies, [Duration::from_millis(1)]);
    begun(&calls).breaks(Promise::BegunByZombie);
}

#[test]
fn a_gap_in_a_ledger_is_found() {
    Story::new().good(1, value(PLAIN, 0), 0).good(5, value(PLAIN, 2), 1).breaks(Promise::Gap);
}

#[test]
fn a_process_that_ended_by_itself_is_found() {
    let mut story = Story::new().good(1, value(PLAIN, 0), 0);
    story.history.broken.push("the proxy of cart-0 ended by itself".into());
    story.breaks(Promise::Broken);
}

#[test]
fn a_takeover_is_measured_in_its_parts() {
    let call = value(PLAIN, 0);
    let story =
        Story::new().sent(1, call).begun(2, call, 0, 0).killed(10, 0).begun_again(2_600, call, 1, 0).ended(2_601, call, 1, 0).answered(2_610, call, 1, 0);
    let story = story.said(2_010, On::Log(0), Said::SessionRanOut).said(2_590, On::Box(cart(1)), Said::TookOver).said(2_595, On::Box(cart(0)), Said::TookOver);
    let takeover = story.holds().takeover;
    let milliseconds = |time: u64| vec![Duration::from_millis(time)];
    assert_eq!((takeover.detect, takeover.reassign), (milliseconds(2_000), milliseconds(580)));
    assert_eq!((takeover.redeliver, takeover.answered), (milliseconds(10), milliseconds(2_600)));
    assert_eq!((takeover.begun, takeover.beyond_app), (milliseconds(2_590), vec![Duration::from_millis(2_600) - call.takes()]));
    assert!(!call.takes().is_zero(), "a call that takes no time tells nothing here");
}

#[test]
fn a_handover_is_measured_from_the_request_to_end_and_from_the_last_answer() {
    let calls = [value(LANED, 0), value(LANED, 1), value(LANED, 2)];
    let mut story = Story::new().good(1, calls[0], 0).sent(5, calls[1]).begun(140, calls[1], 1, 0).ended(141, calls[1], 1, 0).answered(142, calls[1], 1, 0);
    story = story.sent(150, calls[2]).begun(151, calls[2], 1, 1).ended(152, calls[2], 1, 1).answered(153, calls[2], 1, 1);
    // Something else that the box had under way when it was asked to end.
    let other = value(PLAIN, 0);
    story = story.sent(6, other).begun(7, other, 0, 1).ended(100, other, 0, 1).answered(101, other, 0, 1);
    let unasked = Story { caller: story.caller.clone(), carts: story.carts.clone(), history: story.history.clone() };
    assert_eq!(unasked.holds().takeover.handover, []);
    story.history.lives[0].ended = Some((Moment(10_000), Ending::Asked));
    let takeover = story.holds().takeover;
    assert_eq!((takeover.handover, takeover.handover_when_idle), (vec![Duration::from_millis(130)], vec![Duration::from_millis(40)]));
}

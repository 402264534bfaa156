use super::*;

const DAY: u64 = 86_400 * SECOND;

#[test]
fn without_participants_it_ends_at_once() {
    for (request, end) in [(Request::Close(FAR), LraStatus::Closed), (Request::Cancel(FAR), LraStatus::Cancelled)] {
        let mut bench = Bench::start(None, false);
        assert_eq!(bench.ask(request), Some(Answer::Status(end)));
    }
}

/// The decision is one durable record, and the only commit point.
#[test]
fn nobody_is_called_before_the_decision_is_durable() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    bench.transaction.request(at(0), RequestId(50), Request::Close(FAR), &mut bench.effects);
    let version = bench.transaction.take_record().unwrap();
    assert!(bench.calls().is_empty());
    bench.transaction.durable(at(0), version, &mut bench.effects);
    assert_eq!(bench.urls(), ["http://a/complete"]);
}

#[test]
fn who_asks_for_the_same_end_is_told_it_and_who_asks_for_the_other_comes_too_late() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    assert_eq!(bench.ask(Request::Close(FAR)), None);
    assert_eq!(bench.ask(Request::Close(at(0))), Some(Answer::Status(LraStatus::Closing)), "whoever does not wait is told what is");
    assert_eq!(refusal(bench.ask(Request::Cancel(FAR))), 412);
    bench.ends(Outcome::Done);
    assert_eq!(bench.answer(RequestId(2)), Some(Answer::Status(LraStatus::Closed)));
    assert_eq!(bench.ask(Request::Close(FAR)), Some(Answer::Status(LraStatus::Closed)), "a close that is delivered again is answered again");
    assert_eq!(refusal(bench.ask(Request::Cancel(FAR))), 412);
}

#[test]
fn whoever_waits_is_answered_when_the_wait_is_over() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    assert_eq!(bench.ask(Request::Close(at(3 * SECOND))), None);
    assert_eq!(bench.transaction.wakes_at(), Some(at(3 * SECOND)));
    bench.pass(3 * SECOND);
    assert_eq!(bench.answer(RequestId(2)), Some(Answer::Status(LraStatus::Closing)));
}

/// As with Narayana, and as MicroProfile's TCK counts on: a client that is told of the end finds that those have heard of it who are to (`isLRAFinished` after each `closeLRA`).
#[test]
fn whoever_waits_is_answered_when_all_who_are_to_be_told_were_told_once() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete", "forget", "after"]);
    bench.join("b", &["after"]);
    assert_eq!(bench.ask(Request::Close(at(5 * SECOND))), None);
    let close = RequestId(bench.requests);
    bench.ends(Outcome::Failed(None));
    assert_eq!((bench.status(), bench.answer(close)), (LraStatus::FailedToClose, None));
    let calls = bench.calls();
    assert_eq!(calls.iter().map(|c| c.key.phase).collect::<Vec<_>>(), [Phase::After, Phase::After]);
    for call in &calls {
        let participant = call.url.starts_with("http://a/");
        bench.outcome(call.key, if participant { Outcome::Done } else { Outcome::Again("HTTP 500".to_owned()) });
    }
    assert_eq!(bench.answer(close), None);
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Forget);
    assert_eq!(bench.answer(close), Some(Answer::Status(LraStatus::FailedToClose)), "nobody waits for one who can't be told");
    // One who hangs is waited for as the end is.
    let mut bench = Bench::start(None, false);
    bench.join("b", &["after"]);
    assert_eq!(bench.ask(Request::Cancel(at(5 * SECOND))), None);
    bench.pass(5 * SECOND);
    assert_eq!(bench.answer(RequestId(bench.requests)), Some(Answer::Status(LraStatus::Cancelled)));
}

/// "in the reverse order" of joining; all complete at once, because nothing says in which order they do.
#[test]
fn compensations_begin_in_the_reverse_order_and_completions_at_once() {
    let mut bench = Bench::start(None, false);
    for name in ["a", "b", "c"] {
        bench.join(name, &["compensate", "complete"]);
    }
    let mut closing = Bench { transaction: bench.transaction.clone(), now: 0, requests: 9, effects: Vec::new() };
    closing.ask(Request::Close(FAR));
    assert_eq!(closing.calls().len(), 3);

    bench.ask(Request::Cancel(FAR));
    for (name, outcome) in [("c", Outcome::InProgress(None)), ("b", Outcome::Again("down".to_owned())), ("a", Outcome::Done)] {
        let calls = bench.calls();
        assert_eq!(calls.iter().map(|c| c.url.as_ref().to_owned()).collect::<Vec<_>>(), [format!("http://{name}/compensate")]);
        bench.outcome(calls[0].key, outcome);
    }
}

/// "a participant … could be unavailable in which case it will be periodically retried (out of order)".
#[test]
fn who_can_not_be_reached_holds_up_the_others_for_a_while_only() {
    let mut bench = Bench::start(None, false);
    for name in ["a", "b"] {
        bench.join(name, &["compensate"]);
    }
    bench.ask(Request::Cancel(FAR));
    assert_eq!(bench.urls(), ["http://b/compensate"]);
    let patience = u64::try_from(Rules::default().patience.as_millis()).unwrap();
    assert_eq!(bench.transaction.wakes_at(), Some(at(patience)));
    bench.pass(patience - 1);
    assert!(bench.calls().is_empty());
    bench.pass(1);
    assert_eq!(bench.urls(), ["http://a/compensate"]);
    assert_eq!(bench.transaction.wakes_at(), Some(FAR), "nothing is due while calls have no outcome, but for the answer of whoever waits");
}

/// The key of a call is the same until it has an outcome that asks for another one, through takeovers too.
#[test]
fn keys_grow_with_outcomes_only() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate"]);
    bench.ask(Request::Cancel(FAR));
    let first = bench.calls()[0].key;
    let mut effects = Vec::new();
    let recovered = Transaction::recover(Arc::new(Rules::default()), at(5), bench.transaction.lra().clone(), Version::new(4), &mut effects);
    assert!(matches!(&effects[..], [Effect::Call(callback)] if callback.key == first), "{effects:?}");
    assert!(recovered.gate.is_durable());
    bench.outcome(first, Outcome::Again("down".to_owned()));
    assert_eq!(bench.transaction.wakes_at(), Some(at(200)));
    bench.pass(200);
    let second = bench.calls()[0].key;
    assert_eq!((first.n, second.n), (0, 1));
    bench.outcome(first, Outcome::Done);
    assert_eq!(bench.status(), LraStatus::Cancelling, "an outcome that was told before counts no more");
    bench.outcome(second, Outcome::Done);
    assert_eq!(bench.status(), LraStatus::Cancelled);
}

/// "The method is optional": without one there is nothing to be done.
#[test]
fn a_participant_without_the_method_is_done() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate"]);
    assert_eq!(bench.ask(Request::Close(FAR)), Some(Answer::Status(LraStatus::Closed)));
    assert!(bench.calls().is_empty());
}

/// 202 and a status URL: "MUST invoke it"; the Location of a 202 where there is none; else the method again.
#[test]
fn progress_is_asked_for_where_it_can_be_told() {
    let mut with_status = Bench::start(None, false);
    with_status.join("a", &["compensate", "status"]);
    with_status.ask(Request::Cancel(FAR));
    with_status.ends(Outcome::InProgress(None));
    for says in [ParticipantStatus::Compensating, ParticipantStatus::Active] {
        with_status.pass(10 * SECOND);
        assert_eq!(with_status.ends(Outcome::Says(says)).phase, Phase::Status);
    }
    with_status.pass(10 * SECOND);
    assert_eq!(with_status.ends(Outcome::Says(ParticipantStatus::Compensated)).phase, Phase::Compensate, "Active: it must be asked again");
    assert_eq!(with_status.status(), LraStatus::Cancelled);

    let mut with_location = Bench::start(None, false);
    with_location.join("a", &["compensate"]);
    with_location.ask(Request::Cancel(FAR));
    with_location.ends(Outcome::InProgress(Some("http://a/progress/7".to_owned())));
    with_location.pass(10 * SECOND);
    assert_eq!(with_location.urls(), ["http://a/progress/7"]);

    let mut with_nothing = Bench::start(None, false);
    with_nothing.join("a", &["compensate"]);
    with_nothing.ask(Request::Cancel(FAR));
    with_nothing.ends(Outcome::InProgress(None));
    with_nothing.pass(10 * SECOND);
    assert_eq!(with_nothing.urls(), ["http://a/compensate"]);
}

/// "it cannot be sure if the @Compensate call passed through … the LRA implementation MUST invoke" status.
#[test]
fn after_an_unknown_outcome_the_status_is_asked_for() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete", "status"]);
    bench.ask(Request::Close(FAR));
    bench.ends(Outcome::Again("reset".to_owned()));
    bench.pass(SECOND);
    assert_eq!(bench.ends(Outcome::Again("HTTP 404".to_owned())).phase, Phase::Status);
    bench.pass(SECOND);
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Status);
    assert_eq!((bench.status(), bench.participant(0).line.last_error.as_deref()), (LraStatus::Closed, Some("HTTP 404")));
}

/// "compensation violations include the case where a participant completes when asked to compensate … must be logged".
#[test]
fn failures_stay_until_they_are_forgotten_and_the_participant_is_told_to_forget() {
    for outcome in [Outcome::Failed(None), Outcome::Says(ParticipantStatus::FailedToCompensate), Outcome::Says(ParticipantStatus::Completed)] {
        let mut bench = Bench::start(None, false);
        bench.join("a", &["compensate", "forget", "after"]);
        bench.join("b", &["compensate", "forget"]);
        bench.ask(Request::Cancel(FAR));
        bench.ends(Outcome::Done);
        bench.ends(outcome);
        assert_eq!((bench.status(), bench.participant(0).status), (LraStatus::FailedToCancel, ParticipantStatus::FailedToCompensate));
        assert_eq!(bench.ends(Outcome::Done).phase, Phase::After);
        bench.ends(Outcome::Done);
        assert!(bench.participant(0).told_forget && !bench.participant(1).told_forget, "who has compensated has nothing to remember");
        bench.pass(30 * DAY);
        assert!(!bench.transaction.is_removable(at(bench.now)));
        assert_eq!(bench.transaction.wakes_at(), None);
        assert_eq!(bench.ask(Request::Forget), Some(Answer::Done));
        assert!(bench.transaction.is_removable(at(bench.now)));
    }
}

#[test]
fn only_failures_can_be_forgotten_and_then_nobody_is_called() {
    let mut bench = Bench::start(None, false);
    assert_eq!(refusal(bench.ask(Request::Forget)), 412);
    bench.join("a", &["compensate", "after"]);
    bench.ask(Request::Cancel(FAR));
    bench.ends(Outcome::Failed(None));
    bench.ends(Outcome::Again("no".to_owned()));
    bench.ask(Request::Forget);
    bench.pass(DAY);
    assert!(bench.calls().is_empty());
}

/// "The implementation will keep resending the notification until it receives a 200 OK status code" (`AfterLRA`).
#[test]
fn listeners_are_told_the_final_state_until_they_say_so() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["after"]);
    bench.ask(Request::Cancel(FAR));
    let call = bench.calls().remove(0);
    assert_eq!((call.key.phase, call.ended), (Phase::After, Some(LraStatus::Cancelled)));
    bench.outcome(call.key, Outcome::Again("HTTP 404".to_owned()));
    assert!(bench.transaction.lra().is_recovering());
    bench.pass(10 * DAY);
    assert!(!bench.transaction.is_removable(at(bench.now)), "it is not over while somebody is to be told");
    bench.ends(Outcome::Done);
    assert!(bench.transaction.is_removable(at(bench.now)));
}

/// "it must remember the fact … until explicitly told that it can clean up using this @Forget": also who only took its time.
#[test]
fn who_took_its_time_is_told_to_forget() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "forget"]);
    bench.ask(Request::Cancel(FAR));
    bench.ends(Outcome::InProgress(None));
    bench.pass(SECOND);
    bench.ends(Outcome::Done);
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Forget);
    assert!(bench.calls().is_empty());
}

#[test]
fn what_has_ended_is_kept_for_its_retention() {
    let mut bench = Bench::start(None, false);
    bench.now = 5 * SECOND;
    bench.ask(Request::Close(FAR));
    assert_eq!(bench.transaction.wakes_at(), Some(at(5 * SECOND + DAY)));
    assert!(!bench.transaction.is_removable(at(5 * SECOND + DAY - 1)));
    assert!(bench.transaction.is_removable(at(5 * SECOND + DAY)));
}

/// An operator's retry ends pauses; the keys stay.
#[test]
fn retry_tries_at_once_under_the_same_key() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate"]);
    bench.ask(Request::Cancel(FAR));
    for _ in 0..8 {
        bench.ends(Outcome::Again("down".to_owned()));
        bench.pass(5 * SECOND);
    }
    let key = bench.ends(Outcome::Again("down".to_owned()));
    assert!(bench.calls().is_empty());
    assert_eq!(bench.ask(Request::Retry), Some(Answer::Done));
    assert_eq!(bench.calls()[0].key.n, key.n + 1);
}

#[test]
fn an_operator_gives_up_on_who_does_not_answer() {
    let mut bench = Bench::start(None, false);
    assert!(matches!(bench.ask(Request::GiveUp), Some(Answer::Refused(Refusal::NotEnding(..)))), "it is active");
    bench.join("a", &["compensate", "complete", "after", "forget"]);
    bench.join("b", &["compensate", "complete", "after"]);
    bench.ask(Request::Close(FAR));
    let calls = bench.calls();
    bench.outcome(calls.iter().find(|call| &*call.url == "http://b/complete").unwrap().key, Outcome::Done);
    assert_eq!(bench.ask(Request::GiveUp), Some(Answer::Done));
    assert_eq!(bench.transaction.lra().status, LraStatus::FailedToClose);
    assert_eq!(bench.urls(), ["http://b/after"], "who was given up is not called any more");
    bench.outcome(calls.iter().find(|call| &*call.url == "http://a/complete").unwrap().key, Outcome::Done);
    assert_eq!(bench.transaction.lra().participants[0].status, ParticipantStatus::FailedToComplete, "what is told late changes nothing");
    assert_eq!(bench.ask(Request::GiveUp), Some(Answer::Done), "nor is it waited for that the end is heard");
    assert!(!bench.transaction.lra().is_recovering() && !bench.transaction.is_removable(FAR), "failures stay");
    assert!(matches!(bench.ask(Request::GiveUp), Some(Answer::Refused(Refusal::NotEnding(..)))));
    assert_eq!(bench.ask(Request::Forget), Some(Answer::Done));
    assert!(bench.transaction.is_removable(FAR) && bench.urls().is_empty());
}

#[test]
fn who_is_done_first_is_written_with_who_is_done_next_or_soon() {
    for next_comes in [true, false] {
        let mut bench = Bench::start(None, false);
        bench.join("a", &["compensate", "complete"]);
        bench.join("b", &["compensate", "complete"]);
        bench.ask(Request::Close(FAR));
        let calls = bench.calls();
        bench.transaction.outcome(at(bench.now), calls[0].key, Outcome::Done, &mut bench.effects);
        assert_eq!(bench.transaction.take_record(), None);
        assert_eq!(bench.transaction.wakes_at(), Some(at(bench.now + 100)));
        if next_comes {
            bench.transaction.outcome(at(bench.now), calls[1].key, Outcome::Done, &mut bench.effects);
            assert_eq!(bench.status(), LraStatus::Closed);
        } else {
            bench.now += 100;
            bench.transaction.tick(at(bench.now), &mut bench.effects);
        }
        assert!(bench.transaction.take_record().is_some());
    }
    // Who is told what it is by then is told what is durable.
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    bench.join("b", &["compensate", "complete"]);
    bench.ask(Request::Close(FAR));
    let calls = bench.calls();
    bench.outcome(calls[0].key, Outcome::Done);
    bench.transaction.request(at(bench.now), RequestId(90), Request::Read, &mut bench.effects);
    assert_eq!(bench.answer(RequestId(90)), None);
    bench.settle();
    assert!(bench.answer(RequestId(90)).is_some());
}

/// A clock can be set back, and that of the next owner can be behind.
#[test]
fn no_pause_is_longer_than_the_longest_whatever_the_clock_says() {
    let mut bench = Bench::start(None, false);
    bench.pass(DAY);
    bench.join("a", &["compensate", "complete"]);
    bench.ask(Request::Close(FAR));
    bench.ends(Outcome::Again("down".to_owned()));
    assert!(bench.calls().is_empty(), "it is a pause");
    bench.now = SECOND;
    bench.pass(0);
    let key = bench.ends(Outcome::Again("down".to_owned()));
    assert_eq!(key.n, 1);
    assert!(bench.calls().is_empty(), "and the next one is one of this clock");
    bench.pass(SECOND);
    assert_eq!(bench.urls(), ["http://a/complete"]);
}

/// A place to ask at is one for the end that it was given for.
#[test]
fn where_a_completion_was_asked_after_no_compensation_is() {
    let mut bench = Bench::start(None, true);
    bench.ends(Outcome::Done);
    bench.join("a", &["compensate", "complete"]);
    bench.ask(Request::Close(FAR));
    bench.ends(Outcome::InProgress(Some("http://a/completing".to_owned())));
    bench.pass(SECOND);
    let calls = bench.calls();
    assert_eq!((calls[0].key.phase, &*calls[0].url), (Phase::Status, "http://a/completing"));
    bench.outcome(calls[0].key, Outcome::Says(ParticipantStatus::Completed));
    bench.ask(Request::OfParent(Phase::Compensate, FAR));
    bench.ends(Outcome::InProgress(None));
    bench.pass(SECOND);
    assert_eq!(bench.urls(), ["http://a/compensate"]);
}

/// A record has its limit, whatever participants answer.
#[test]
fn places_to_ask_at_make_no_record_too_long() {
    let mut bench = Bench::start(None, false);
    let long = |n: usize| format!("http://a/{n}/{}", "x".repeat(2_000));
    let joins =
        |n: usize| Join { links: Links { complete: Some(long(n).into()), compensate: Some(long(n).into()), ..Links::default() }, limit: None, data: None };
    let joined = (0..).take_while(|n| !matches!(bench.ask(Request::Join(joins(*n))), Some(Answer::Refused(Refusal::Full(_))))).count();
    bench.ask(Request::Close(FAR));
    let calls = bench.calls();
    assert_eq!(calls.len(), joined);
    for call in calls {
        bench.outcome(call.key, Outcome::InProgress(Some(long(0))));
    }
    assert!(bench.transaction.lra().len_bytes() <= MAX_LRA_BYTES, "{}", bench.transaction.lra().len_bytes());
    bench.pass(SECOND);
    assert!(bench.calls().len() == joined, "they are asked again");
}

/// A listener that joins late and is moved to links of a participant has no part in the end that was decided before.
#[test]
fn a_listener_that_becomes_a_participant_while_it_ends_holds_up_nothing() {
    for (end, last, done) in
        [(Request::Close(FAR), LraStatus::Closed, ParticipantStatus::Completed), (Request::Cancel(FAR), LraStatus::Cancelled, ParticipantStatus::Compensated)]
    {
        let mut bench = Bench::start(None, false);
        bench.join("a", &["compensate", "complete"]);
        bench.ask(end);
        let Some(Answer::Joined { callee, .. }) = bench.join("late", &["after"]) else { panic!("it may still listen") };
        assert_eq!(bench.ask(Request::Move(callee, Box::new(links("late", &["compensate", "complete"])))), Some(Answer::Done));
        bench.ends(Outcome::Says(done));
        assert_eq!((bench.status(), bench.urls()), (last, vec!["http://late/after".to_owned()]));
    }
}

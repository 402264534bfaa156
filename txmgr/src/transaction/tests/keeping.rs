//! The outcome of the call that ended it.

use bluebox_core::ComponentName;
use bytes::Bytes;

use super::*;

fn of(call: u8, component: &str) -> OutcomeOf {
    OutcomeOf { call: CallId::from_bytes([call; 16]), replay: 0, component: ComponentName::try_new(component).unwrap() }
}

fn ends(close: bool, of: OutcomeOf, outcome: &'static str) -> Request {
    Request::EndAndKeep(close, FAR, Box::new(Kept::new(of, Bytes::from_static(outcome.as_bytes()))))
}

fn kept(answer: Option<Answer>) -> Bytes {
    match answer {
        Some(Answer::Kept(kept)) => kept.outcome.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_in_the_record_of_the_decision_and_told_to_nobody_else() {
    for (close, end) in [(true, LraStatus::Closed), (false, LraStatus::Cancelled)] {
        let mut bench = Bench::start(None, false);
        assert_eq!(refusal(bench.ask(Request::Outcome(of(1, "trip")))), 404);
        let version = |bench: &mut Bench| bench.transaction.take_record();
        bench.transaction.request(at(0), RequestId(50), ends(close, of(1, "trip"), "fine"), &mut bench.effects);
        // One record has both.
        assert!(version(&mut bench).is_some());
        let lra = bench.transaction.lra();
        assert_eq!((lra.status, lra.kept.as_ref().unwrap().outcome.as_deref()), (end, Some(&b"fine"[..])));
        assert_eq!(bench.answer(RequestId(50)), None, "not before it is durable");
        let lra = lra.clone();
        let mut after = Vec::new();
        let recovered = Transaction::recover(Arc::new(Rules::default()), at(0), lra, Version::new(2), &mut after);
        bench.transaction = recovered;
        assert_eq!(kept(bench.ask(Request::Outcome(of(1, "trip")))), "fine");
        for other in [of(2, "trip"), of(1, "hotel"), OutcomeOf { replay: 1, ..of(1, "trip") }] {
            assert_eq!(refusal(bench.ask(Request::Outcome(other))), 404);
        }
        assert!(!format!("{:?}", bench.transaction).contains("fine"), "no text for logs has it");
    }
}

#[test]
fn the_first_one_counts_whoever_comes_later() {
    let mut bench = Bench::start(None, false);
    assert_eq!(bench.ask(ends(true, of(1, "trip"), "first")), Some(Answer::Status(LraStatus::Closed)));
    assert_eq!(bench.ask(ends(true, of(1, "trip"), "first")), Some(Answer::Status(LraStatus::Closed)), "the same request, delivered again");
    assert_eq!(bench.ask(ends(true, of(1, "trip"), "second")), Some(Answer::EndedOtherwise(LraStatus::Closed)));
    assert_eq!(bench.ask(ends(true, of(2, "trip"), "of another call")), Some(Answer::Status(LraStatus::Closed)));
    assert_eq!(refusal(bench.ask(ends(false, of(1, "trip"), "third"))), 412);
    assert_eq!(kept(bench.ask(Request::Outcome(of(1, "trip")))), "first");
}

#[test]
fn one_that_somebody_else_has_ended_keeps_that_of_the_first_call_that_ends_it_so() {
    let mut bench = Bench::start(None, false);
    bench.ask(Request::Close(FAR));
    assert_eq!(refusal(bench.ask(ends(false, of(1, "trip"), "no"))), 412);
    assert_eq!(refusal(bench.ask(Request::Outcome(of(1, "trip")))), 404, "what was not decided is not kept");
    assert_eq!(bench.ask(ends(true, of(1, "trip"), "yes")), Some(Answer::Status(LraStatus::Closed)));
    assert_eq!(kept(bench.ask(Request::Outcome(of(1, "trip")))), "yes");
}

#[test]
fn one_that_was_too_long_or_is_dropped_is_known_to_have_been_there() {
    let mut bench = Bench::start(None, false);
    let kept = Kept::new(of(1, "trip"), Bytes::from(vec![0; bluebox_core::call::MAX_KEPT_OUTCOME_BYTES + 1]));
    assert_eq!(bench.ask(Request::EndAndKeep(true, FAR, Box::new(kept))), Some(Answer::Status(LraStatus::Closed)));
    assert_eq!(refusal(bench.ask(Request::Outcome(of(1, "trip")))), 410);
    let mut bench = Bench::start(None, false);
    bench.ask(ends(true, of(1, "trip"), "fine"));
    bench.transaction.drop_kept();
    assert_eq!(refusal(bench.ask(Request::Outcome(of(1, "trip")))), 410);
    assert_eq!(bench.ask(ends(true, of(1, "trip"), "again")), Some(Answer::Status(LraStatus::Closed)), "it is not kept a second time");
    assert_eq!(refusal(bench.ask(Request::Outcome(of(1, "trip")))), 410);
}

#[test]
fn a_participant_that_is_asked_for_ever_does_not_fill_the_log_with_it() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    let kept = Kept::new(of(1, "trip"), Bytes::from(vec![0; bluebox_core::call::MAX_KEPT_OUTCOME_BYTES]));
    bench.ask(Request::EndAndKeep(true, FAR, Box::new(kept)));
    for _ in 0..20 {
        bench.ends(Outcome::Again("not now".to_owned()));
        bench.pass(5_000);
    }
    assert_eq!(bench.transaction.lra().kept.as_ref().unwrap().outcome, None);
    assert_eq!(bench.status(), LraStatus::Closing);
}

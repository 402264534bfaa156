use super::*;

/// "the follow-up enlistments of such participant MUST be ignored."
#[test]
fn a_participant_joins_once_and_what_it_leaves_is_what_it_left_last() {
    let mut bench = Bench::start(None, false);
    let mut join = |data: Option<&str>| bench.ask(Request::Join(Join { links: links("a", &["compensate"]), limit: None, data: data.map(Arc::from) })).unwrap();
    assert_eq!(join(Some("one")), Answer::Joined { callee: Callee(0), former_data: None });
    assert_eq!(join(Some("two")), Answer::Joined { callee: Callee(0), former_data: Some("one".to_owned()) });
    assert_eq!(join(None), Answer::Joined { callee: Callee(0), former_data: Some("two".to_owned()) });
    assert_eq!(bench.transaction.lra().participants.len(), 1);
    bench.ask(Request::Cancel(FAR));
    assert_eq!(bench.calls()[0].data.as_deref(), Some("two"));
}

/// "the implementation must durably record that the participant/listener is associated with the LRA before allowing the business invocation to proceed."
#[test]
fn a_join_is_answered_when_it_is_durable_and_so_is_whoever_asks_meanwhile() {
    let mut bench = Bench::start(None, false);
    let join = Join { links: links("a", &["compensate"]), limit: None, data: None };
    for number in [10, 11] {
        bench.transaction.request(at(0), RequestId(number), Request::Join(join.clone()), &mut bench.effects);
    }
    let version = bench.transaction.take_record().unwrap();
    assert_eq!((bench.answer(RequestId(10)), bench.answer(RequestId(11))), (None, None));
    bench.transaction.durable(at(0), version, &mut bench.effects);
    assert!(bench.answer(RequestId(10)).is_some() && bench.answer(RequestId(11)).is_some());
}

/// 412, not active; but a listener is called only afterwards.
#[test]
fn who_comes_too_late_is_refused_and_listeners_are_not_until_it_has_ended() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    bench.ask(Request::Close(FAR));
    assert_eq!(refusal(bench.join("b", &["compensate"])), 412);
    assert!(matches!(bench.join("c", &["after"]), Some(Answer::Joined { .. })));
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Complete);
    assert_eq!(bench.status(), LraStatus::Closed);
    assert_eq!(bench.urls(), ["http://c/after"]);
    assert_eq!(refusal(bench.join("d", &["after"])), 412);
}

/// "this new moment becomes the timeout moment for the LRA … the earliest one will trigger the cancellation."
#[test]
fn the_earliest_time_limit_wins_and_is_kept_as_a_moment() {
    let mut bench = Bench::start(Some(10 * SECOND), false);
    let join = |bench: &mut Bench, name: &str, limit: u64| {
        bench.now += SECOND;
        bench.ask(Request::Join(Join { links: links(name, &["compensate"]), limit: Some(Duration::from_millis(limit)), data: None }));
        bench.transaction.lra().deadline.unwrap().as_millis()
    };
    assert_eq!(join(&mut bench, "a", 20 * SECOND), 10 * SECOND);
    assert_eq!(join(&mut bench, "b", 3 * SECOND), 5 * SECOND);
    assert_eq!(join(&mut bench, "b", SECOND), 5 * SECOND, "the second join of one who has joined is ignored");
    assert_eq!(bench.transaction.wakes_at(), Some(at(5 * SECOND)));
    let record = bench.transaction.lra().clone();
    let mut effects = Vec::new();
    let mut next = Transaction::recover(Arc::new(Rules::default()), at(60 * SECOND), record, Version::new(9), &mut effects);
    assert_eq!(next.lra().deadline, Some(at(5 * SECOND)), "who takes over counts on from the same moment");
    next.tick(at(60 * SECOND), &mut effects);
    assert_eq!(next.lra().status, LraStatus::Cancelling);
}

#[test]
fn renew_sets_a_new_limit_from_now_on_and_takes_it_away() {
    let mut bench = Bench::start(Some(SECOND), false);
    bench.now = 500;
    assert_eq!(bench.ask(Request::Renew(Some(Duration::from_secs(3)))), Some(Answer::Done));
    assert_eq!(bench.transaction.wakes_at(), Some(at(3_500)));
    assert_eq!(bench.ask(Request::Renew(None)), Some(Answer::Done));
    assert_eq!(bench.transaction.wakes_at(), None);
    bench.ask(Request::Cancel(FAR));
    assert_eq!(refusal(bench.ask(Request::Renew(None))), 412);
}

/// "When the timeout is reached, the LRA moves to the state Cancelling", and whoever closes it later, however late the timer is, is told so.
#[test]
fn a_close_after_the_deadline_finds_it_cancelled_though_no_timer_has_fired() {
    let mut bench = Bench::start(Some(SECOND), false);
    bench.join("a", &["compensate", "complete"]);
    bench.now = SECOND;
    assert_eq!(refusal(bench.ask(Request::Close(FAR))), 412);
    assert_eq!(bench.urls(), ["http://a/compensate"]);
}

/// "will not be asked to complete or compensate"; and a request to leave that is delivered again is answered again.
#[test]
fn who_leaves_is_not_called_and_can_come_back_as_another() {
    let mut bench = Bench::start(None, false);
    let url: Arc<str> = Arc::from("http://a/compensate");
    assert_eq!(refusal(bench.ask(Request::Leave(Arc::clone(&url)))), 400);
    bench.join("a", &["compensate"]);
    for _ in 0..2 {
        assert_eq!(bench.ask(Request::Leave(Arc::clone(&url))), Some(Answer::Done));
    }
    assert_eq!(bench.join("a", &["compensate"]), Some(Answer::Joined { callee: Callee(1), former_data: None }));
    bench.join("b", &["compensate"]);
    assert_eq!(bench.ask(Request::Leave(url)), Some(Answer::Done));
    bench.ask(Request::Cancel(FAR));
    assert_eq!(bench.urls(), ["http://b/compensate"]);
    assert_eq!(refusal(bench.ask(Request::Leave(Arc::from("http://b/compensate")))), 412);
}

#[test]
fn a_client_s_name_is_cut_where_a_letter_ends() {
    let start = Start { id: id(2), origin: None, client: Arc::from("é".repeat(200)), base: Arc::from(""), limit: None, parent: None };
    let transaction = Transaction::start(Arc::new(Rules::default()), at(0), RequestId(0), start, &mut Vec::new());
    assert_eq!(transaction.lra().client.as_ref(), "é".repeat(128));
}

#[test]
fn it_takes_in_no_more_than_a_record_can_hold() {
    let mut bench = Bench::start(None, false);
    let long = "x".repeat(100_000);
    let answers: Vec<_> = (0..7).map(|n| bench.join(&format!("{n}{long}"), &["compensate"]).unwrap()).collect();
    let joined = answers.iter().filter(|answer| matches!(answer, Answer::Joined { .. })).count();
    assert_eq!((joined, refusal(answers.last().cloned())), (5, 413));
    assert_eq!(bench.transaction.lra().participants.len(), 5);
}

/// "HTTP PUT on the reference will overwrite the old participant URL with the new one" (Narayana).
#[test]
fn a_participant_that_has_moved_is_called_at_its_new_place() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate", "complete"]);
    bench.ask(Request::Cancel(FAR));
    let key = bench.calls()[0].key;
    assert_eq!(bench.ask(Request::Move(Callee(0), Box::new(links("b", &["compensate"])))), Some(Answer::Done));
    let Some(Answer::Links(now)) = bench.ask(Request::ReadParticipant(Callee(0))) else { panic!("no links") };
    assert_eq!((now.compensate.as_deref(), now.complete.as_deref()), (Some("http://b/compensate"), Some("http://a/complete")));
    bench.outcome(key, Outcome::Again("moved".to_owned()));
    bench.pass(SECOND);
    assert_eq!(bench.urls(), ["http://b/compensate"]);
    assert_eq!(refusal(bench.ask(Request::Move(Callee(7), Box::default()))), 400);
    assert_eq!(refusal(bench.ask(Request::ReadParticipant(Callee(7)))), 400);
}

/// `LRAParticipantData` that the method which ends the LRA has changed (Narayana): "the user data may have changed".
#[test]
fn what_a_participant_leaves_with_the_end_is_in_the_record_of_the_decision() {
    let told = |name: &str, data: &str| Box::new(Told { participant: Arc::from(format!("http://{name}/compensate")), data: Arc::from(data) });
    for close in [true, false] {
        let mut bench = Bench::start(None, false);
        let data = Some(Arc::from("at the join"));
        bench.ask(Request::Join(Join { links: links("a", &["compensate", "complete"]), limit: None, data })).unwrap();
        let before = bench.transaction.lra().participants.len();
        bench.transaction.request(at(0), RequestId(50), Request::EndAndTell(close, FAR, told("a", "at the end")), &mut bench.effects);
        let version = bench.transaction.take_record().unwrap();
        let lra = bench.transaction.lra();
        assert_eq!((lra.status, lra.participants[0].data.as_deref()), (ending(close), Some("at the end")), "both are in one record");
        bench.transaction.durable(at(0), version, &mut bench.effects);
        let call = bench.calls().remove(0);
        assert_eq!(call.data.as_deref(), Some("at the end"));
        // It is decided: what is called under this key stays as it is.
        assert_eq!(bench.ask(Request::EndAndTell(close, at(0), told("a", "too late"))), Some(Answer::Status(ending(close))));
        assert_eq!(refusal(bench.ask(Request::EndAndTell(!close, FAR, told("a", "too late")))), 412);
        assert_eq!(bench.participant(0).data.as_deref(), Some("at the end"));
        assert_eq!(bench.transaction.lra().participants.len(), before);
    }
    let mut bench = Bench::start(None, false);
    assert_eq!(
        bench.ask(Request::EndAndTell(true, FAR, told("never joined", "x"))),
        Some(Answer::Status(LraStatus::Closed)),
        "nobody is made a participant by it"
    );
}

#[test]
fn an_end_that_says_more_than_a_record_can_hold_decides_nothing() {
    let mut bench = Bench::start(None, false);
    bench.join("a", &["compensate"]);
    let told = Told { participant: Arc::from("http://a/compensate"), data: Arc::from("x".repeat(MAX_LRA_BYTES)) };
    assert_eq!(refusal(bench.ask(Request::EndAndTell(false, FAR, Box::new(told)))), 413);
    assert_eq!((bench.status(), bench.participant(0).data.as_deref()), (LraStatus::Active, None));
    assert!(bench.calls().is_empty());
}

//! Transactions by configuration, and the context of those that are under way, through whole proxies on a log in memory, against a coordinator that speaks the wire of MicroProfile LRA.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod coordinator;
mod world;

use bluebox_proxy::transaction::pattern::Pattern;
use bluebox_proxy::transaction::rule::{Participant, Rule};
use bluebox_proxy::transaction::{Passing, TransactionRules};
use common::Answer;
use coordinator::url;
use world::World;

fn rule(path: &str, kind: &str) -> Rule {
    let (method, path) = path.split_once(' ').unwrap();
    Rule::new(Pattern::try_new(method, path).unwrap(), kind.parse().unwrap())
}

fn rules(of: impl Into<Vec<Rule>>) -> TransactionRules {
    TransactionRules { rules: of.into(), ..TransactionRules::default() }
}

/// Every rule that these tests need.
fn all_rules() -> TransactionRules {
    let participant = Participant { compensate: Some("/undo/{id}".to_owned()), complete: Some("/confirm/{id}".to_owned()), ..Participant::default() };
    rules([
        rule("POST /required", "required"),
        Rule { end: Some(false), ..rule("POST /open", "required") },
        Rule { end: Some(true), ..rule("POST /ends", "required") },
        rule("POST /new", "requires-new"),
        rule("POST /nested", "nested"),
        rule("POST /mandatory", "mandatory"),
        rule("POST /supports", "supports"),
        rule("POST /not", "not-supported"),
        rule("* /never/**", "never"),
        Rule { participant: Some(participant.clone()), ..rule("POST /book/{id}", "mandatory") },
        Rule { participant: Some(participant), ..rule("POST /whole/{id}", "required") },
    ])
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "it never is so");
        tokio::task::yield_now().await;
    }
}

async fn answered(call: tokio::task::JoinHandle<Answer>) -> Answer {
    tokio::time::timeout(common::PATIENCE, call).await.expect("the call is answered").unwrap()
}

#[tokio::test]
async fn a_transaction_is_begun_before_the_app_and_closed_after_it() {
    let mut world = World::with(all_rules()).await;
    let call = world.call("/required?x=1", None);
    let seen = world.trip.next().await;
    assert_eq!((seen.target.as_str(), seen.lra()), ("/required?x=1", Some(url("1").as_str())));
    assert_eq!(world.coordinator.lra(1).status, "Active");
    seen.answer(201);
    let answer = answered(call).await;
    assert_eq!((answer.status, answer.header("long-running-action")), (201, Some(url("1"))));
    assert_eq!(world.coordinator.done(), ["start", "close 1"]);
    let query = world.coordinator.lra(1).query;
    assert!(query.starts_with("ClientID=trip%3A") && query.ends_with("&TimeLimit=600000"), "{query}");
    let metrics = world.trip_box.metrics().await;
    assert!(metrics.contains("bluebox_transaction_steps_total{component=\"trip\",step=\"closed\"} 1"), "{metrics}");
}

#[tokio::test]
async fn what_the_app_answers_decides() {
    let mut world = World::with(all_rules()).await;
    for (number, (path, status, end)) in
        [("/required", 409, "Cancelled"), ("/required", 500, "Cancelled"), ("/open", 200, "Active"), ("/open", 404, "Cancelled")].into_iter().enumerate()
    {
        let call = world.call(path, None);
        world.trip.next().await.answer(status);
        assert_eq!(answered(call).await.status, status, "the app's answer is the outcome");
        assert_eq!(world.coordinator.lra(number + 1).status, end, "{path} {status}");
    }
}

#[tokio::test]
async fn each_type_does_what_the_specification_says() {
    let mut world = World::with(all_rules()).await;
    let lra = world.coordinator.begun();
    for (path, comes_with, sees) in [
        ("/required", Some(&lra), Some(url("1"))),
        ("/new", Some(&lra), Some(url("2"))),
        ("/nested", Some(&lra), Some(url("3"))),
        ("/mandatory", Some(&lra), Some(url("1"))),
        ("/supports", Some(&lra), Some(url("1"))),
        ("/supports", None, None),
        ("/not", Some(&lra), None),
        ("/never/mind", None, None),
        ("/without-a-rule", Some(&lra), Some(url("1"))),
    ] {
        let call = world.call(path, comes_with.map(String::as_str));
        let seen = world.trip.next().await;
        assert_eq!(seen.lra(), sees.as_deref(), "{path} {comes_with:?}");
        seen.answer(200);
        assert_eq!(answered(call).await.status, 200);
    }
    assert!(world.coordinator.lra(3).query.ends_with("&ParentLRA=http%3A%2F%2Ftxmgr%2Flra-coordinator%2F1"));
    assert_eq!(world.coordinator.lra(1).status, "Active", "nobody ends what another began");
    for (path, comes_with) in [("/mandatory", None), ("/never/mind", Some(&lra))] {
        let answer = answered(world.call(path, comes_with.map(String::as_str))).await;
        assert_eq!((answer.status, answer.problem().as_str()), (412, "transaction"), "{path}");
    }
    assert!(world.trip.is_idle());
}

#[tokio::test]
async fn a_participant_is_enlisted_before_the_app_gets_the_call() {
    let mut world = World::with(all_rules()).await;
    let lra = world.coordinator.begun();
    let call = world.call("/book/7", Some(&lra));
    let seen = world.trip.next().await;
    assert_eq!(world.coordinator.lra(1).links, ["<http://trip/undo/7>; rel=\"compensate\", <http://trip/confirm/7>; rel=\"complete\""]);
    assert_eq!(seen.header("long-running-action-recovery"), Some("http://txmgr/lra-coordinator/recovery/1/1"));
    seen.answer(200);
    assert_eq!(answered(call).await.status, 200);
    world.coordinator.cancel(1);
    for lra in [lra.as_str(), "http://txmgr/lra-coordinator/99", "http://elsewhere/transactions/1"] {
        let answer = answered(world.call("/book/8", Some(lra))).await;
        assert_eq!((answer.status, answer.problem().as_str()), (412, "transaction"), "{lra}");
    }
    assert!(world.trip.is_idle());
}

#[tokio::test]
async fn rules_are_not_for_what_the_coordinator_calls() {
    let mut world = World::with(rules([rule("* /**", "never")])).await;
    let call = world.txmgr_box.asks(&format!("PUT /undo/7 HTTP/1.1\r\nHost: trip\r\nContent-Length: 0\r\nLong-Running-Action: {}\r\n", url("1")));
    let seen = world.trip.next().await;
    assert_eq!((seen.target.as_str(), seen.lra()), ("/undo/7", Some(url("1").as_str())));
    seen.answer(200);
    assert_eq!(answered(call).await.status, 200);
}

#[tokio::test]
async fn one_that_has_ended_by_its_time_limit_is_not_told_to_have_gone_well() {
    let mut world = World::with(all_rules()).await;
    let call = world.call("/required", None);
    let seen = world.trip.next().await;
    world.coordinator.cancel(1);
    seen.answer(200);
    let answer = answered(call).await;
    assert_eq!((answer.status, answer.problem().as_str()), (412, "transaction"));
    // What says itself that it did not go well is told as it is.
    let call = world.call("/required", None);
    let seen = world.trip.next().await;
    seen.answer(409);
    assert_eq!(answered(call).await.status, 409);
}

// The context.

fn calls_hotel(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: hotel\r\nContent-Length: 0\r\n{fields}")
}

#[tokio::test]
async fn calls_out_of_the_app_are_part_of_the_transaction_of_the_one_it_is_at() {
    let mut world = World::with(all_rules()).await;
    let call = world.call("/required", None);
    let at = world.trip.next().await;
    let out = world.trip_box.asks(&calls_hotel("/guarded", ""));
    let booked = world.hotel.next().await;
    assert_eq!(booked.lra(), Some(url("1").as_str()));
    booked.answer(200);
    assert_eq!(answered(out).await.status, 200);
    at.answer(200);
    answered(call).await;
    // Nothing is under way any more.
    let out = answered(world.trip_box.asks(&calls_hotel("/guarded", ""))).await;
    assert_eq!((out.status, out.problem().as_str()), (412, "transaction"));
    let metrics = world.trip_box.metrics().await;
    assert!(metrics.contains("\nbluebox_contexts_passed_total 1\n") && !metrics.contains("bluebox_contexts_lost_total{"), "{metrics}");
}

#[tokio::test]
async fn between_two_it_is_not_guessed_but_known_by_a_copied_trace() {
    let mut world = World::with(all_rules()).await;
    let mut at = Vec::new();
    let mut calls = Vec::new();
    for number in 1..=2 {
        let lra = world.coordinator.begun();
        let trace = format!("traceparent: 00-{number:032x}-{number:016x}-01\r\ntracestate: of=it\r\nbaggage: k=v");
        calls.push(world.call("/supports", Some(&format!("{lra}\r\n{trace}"))));
        let seen = world.trip.next().await;
        assert_eq!((seen.header("tracestate"), seen.header("baggage")), (Some("of=it"), Some("k=v")), "trace context travels untouched");
        assert_eq!(seen.header("traceparent"), Some(format!("00-{number:032x}-{number:016x}-01").as_str()));
        at.push(seen);
    }
    let lost = answered(world.trip_box.asks(&calls_hotel("/guarded", ""))).await;
    assert_eq!((lost.status, lost.problem().as_str()), (412, "transaction"));
    let out = world.trip_box.asks(&calls_hotel("/guarded", &format!("traceparent: 00-{:032x}-{:016x}-01\r\n", 2, 77)));
    let booked = world.hotel.next().await;
    assert_eq!(booked.lra(), Some(url("2").as_str()));
    booked.answer(200);
    answered(out).await;
    let out = world.trip_box.asks(&calls_hotel("/guarded", "Long-Running-Action: http://mine\r\n"));
    let booked = world.hotel.next().await;
    assert_eq!(booked.lra(), Some("http://mine"), "what the app says is not overruled");
    booked.answer(200);
    answered(out).await;
    at.into_iter().for_each(|seen| seen.answer(200));
    for call in calls {
        answered(call).await;
    }
    let metrics = world.trip_box.metrics().await;
    assert!(metrics.contains("bluebox_contexts_lost_total{why=\"several_calls\"} 1"), "{metrics}");
}

#[tokio::test]
async fn nothing_is_passed_on_where_the_app_does_it() {
    let mut world = World::with(TransactionRules { passing: Passing::Copied, ..all_rules() }).await;
    let call = world.call("/required", None);
    let at = world.trip.next().await;
    let out = world.trip_box.asks(&calls_hotel("/", ""));
    let booked = world.hotel.next().await;
    assert_eq!(booked.lra(), None);
    booked.answer(200);
    answered(out).await;
    at.answer(200);
    answered(call).await;
}

// What dies in between.

#[tokio::test]
async fn a_box_that_dies_after_begin_goes_on_with_the_transaction_that_it_began() {
    let mut world = World::with(all_rules()).await;
    let mut stopped = world.coordinator.stop_at("start");
    let call = world.call("/whole/1", None);
    let go_on = stopped.recv().await.unwrap();
    world.trip_box.kill();
    go_on.send(()).unwrap();
    world.start_trip().await;
    let seen = world.trip.next().await;
    assert_eq!((seen.lra(), seen.header("bluebox-may-have-started")), (Some(url("1").as_str()), Some("true")));
    seen.answer(200);
    assert_eq!(answered(call).await.status, 200);
    assert_eq!(world.coordinator.done(), ["start", "status 1", "join 1", "close 1"], "it was begun once");
}

#[tokio::test]
async fn a_box_that_dies_while_the_app_is_at_it_does_it_again_in_the_same_transaction() {
    let mut world = World::with(all_rules()).await;
    let call = world.call("/whole/1", None);
    let first = world.trip.next().await;
    world.trip_box.kill();
    drop(first);
    world.start_trip().await;
    let seen = world.trip.next().await;
    assert_eq!((seen.lra(), seen.header("bluebox-may-have-started")), (Some(url("1").as_str()), Some("true")));
    seen.answer(200);
    assert_eq!(answered(call).await.status, 200);
    assert_eq!(world.coordinator.done(), ["start", "join 1", "status 1", "join 1", "close 1"]);
    assert_eq!(world.coordinator.lra(1).links.len(), 1, "who joins twice is one participant");
}

/// An app's answer with something of everything in it.
fn says(status: u16, body: &str) -> http::Response<String> {
    http::Response::builder().status(status).header("x-made-by", "the app").header("content-type", "text/plain").body(body.to_owned()).unwrap()
}

/// A call's answer, when its box dies after the app has said this: its transaction has ended by then, and the call has no outcome.
async fn answer_without_its_box(world: &mut World, verb: &str, (path, lra): (&str, Option<&str>), said: http::Response<String>) -> Answer {
    let mut stopped = world.coordinator.stop_at(verb);
    let call = world.call(path, lra);
    world.trip.next().await.says(said);
    let go_on = stopped.recv().await.unwrap();
    world.trip_box.kill();
    go_on.send(()).unwrap();
    world.start_trip().await;
    answered(call).await
}

#[tokio::test]
async fn a_box_that_dies_between_the_end_and_the_outcome_leaves_the_apps_own_answer() {
    for (verb, status, end) in [("close", 201, "Closed"), ("cancel", 409, "Cancelled")] {
        let mut world = World::with(all_rules()).await;
        let answer = answer_without_its_box(&mut world, verb, ("/whole/1", None), says(status, "as it was said")).await;
        assert_eq!((answer.status, answer.header("x-made-by"), answer.header("bluebox-error")), (status, Some("the app".to_owned()), None), "{answer:?}");
        assert_eq!((&answer.body[..], answer.header("long-running-action")), (&b"as it was said"[..], Some(url("1"))), "{answer:?}");
        assert!(world.trip.is_idle(), "the app must not do it again outside of the transaction");
        assert_eq!(world.coordinator.lra(1).status, end);
        assert_eq!(world.coordinator.done().iter().filter(|step| step.starts_with(verb)).count(), 1, "it is ended once");
        let metrics = world.trip_box.metrics().await;
        assert!(metrics.contains("step=\"answer_found\"} 1"), "{metrics}");
    }
}

/// The end that a box has asked for is in the log, and not decided yet, when the box dies. The next delivery is done in the open transaction; whichever of the two ends comes first, its answer is
/// that of the call.
#[tokio::test]
async fn of_two_deliveries_the_one_whose_end_was_decided_has_answered() {
    for (second_says, second_first, status, body, end) in [
        (200, true, 200, "the second", "Closed"),
        (200, false, 200, "the first", "Closed"),
        (409, true, 409, "the second", "Cancelled"),
        (409, false, 200, "the first", "Closed"),
    ] {
        let mut world = World::with(all_rules()).await;
        let mut stopped = world.coordinator.stop_before("close");
        let call = world.call("/whole/1", None);
        world.trip.next().await.says(says(200, "the first"));
        let go_on = stopped.recv().await.unwrap();
        world.trip_box.kill();
        world.start_trip().await;
        let seen = world.trip.next().await;
        assert_eq!((seen.lra(), seen.header("bluebox-may-have-started")), (Some(url("1").as_str()), Some("true")));
        let call = if second_first {
            seen.says(says(second_says, "the second"));
            let answer = answered(call).await;
            go_on.send(()).unwrap();
            answer
        } else {
            go_on.send(()).unwrap();
            wait_until(|| world.coordinator.lra(1).status == "Closed").await;
            seen.says(says(second_says, "the second"));
            answered(call).await
        };
        assert_eq!((call.status, &call.body[..]), (status, body.as_bytes()), "the second says {second_says}, first: {second_first}");
        assert_eq!(world.coordinator.lra(1).status, end);
        assert!(world.trip.is_idle());
    }
}

#[tokio::test]
async fn an_answer_that_is_not_kept_is_told_to_be_lost() {
    let long = "x".repeat(bluebox_core::call::MAX_KEPT_OUTCOME_BYTES);
    for (body, keeps, said) in [(long.as_str(), true, "more than 65536 bytes"), ("short", false, "keeps none")] {
        let mut world = World::with(all_rules()).await;
        if !keeps {
            world.coordinator.keeps_nothing();
        }
        let answer = answer_without_its_box(&mut world, "close", ("/whole/1", None), says(200, body)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "answer"), "it is done, and its answer is lost");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.contains("has closed") && text.contains(said), "{text}");
        assert!(world.trip.is_idle(), "the app must not do it again outside of the transaction");
        assert_eq!(world.coordinator.lra(1).status, "Closed");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_in_the_record_is_found_as_well() {
    let mut world = World::with(all_rules()).await;
    let long = "x".repeat(1 << 20);
    let answer = answer_without_its_box(&mut world, "close", ("/whole/1", None), says(200, &long)).await;
    assert_eq!((answer.status, answer.body.len()), (200, long.len()), "{:?}", answer.header("bluebox-error"));
    assert!(world.trip.is_idle());
}

#[tokio::test]
async fn no_other_call_is_given_the_answer_that_is_kept() {
    let mut world = World::with(all_rules()).await;
    let lra = world.coordinator.begun();
    // Two calls of one transaction, which both end it.
    let first = world.call("/ends", Some(&lra));
    world.trip.next().await.says(says(200, "the first"));
    assert_eq!(answered(first).await.body, b"the first");
    let answer = answer_without_its_box(&mut world, "close", ("/ends", Some(&lra)), says(200, "the second")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "answer"), "{answer:?}");
    assert!(world.trip.is_idle());
}

#[tokio::test]
async fn a_call_that_comes_again_after_its_transaction_was_cancelled_ends() {
    let mut world = World::with(all_rules()).await;
    let call = world.call("/whole/1", None);
    let first = world.trip.next().await;
    world.trip_box.kill();
    drop(first);
    world.coordinator.cancel(1);
    world.start_trip().await;
    let answer = answered(call).await;
    assert_eq!((answer.status, answer.problem().as_str()), (412, "transaction"));
    assert!(world.trip.is_idle());
}

#[tokio::test]
async fn without_a_coordinator_the_app_is_not_asked_and_no_answer_is_lost() {
    let mut world = World::with(all_rules()).await;
    // Away when it is to begin …
    world.txmgr_box.kill();
    let call = world.call("/required", None);
    assert!(world.trip.is_idle());
    world.start_txmgr().await;
    let seen = world.trip.next().await;
    // … and when it is to close.
    world.txmgr_box.kill();
    seen.answer(200);
    world.start_txmgr().await;
    assert_eq!(answered(call).await.status, 200);
    assert_eq!(world.coordinator.lra(1).status, "Closed");
    assert!(world.trip.is_idle(), "it was asked once");
}

#[tokio::test]
async fn a_call_that_is_tried_again_goes_on_in_its_transaction() {
    let mut world = World::with(all_rules()).await;
    let call = world.call("/required", None);
    for end in [world::Seen::reset, world::Seen::not_now] {
        let seen = world.trip.next().await;
        assert_eq!(seen.lra(), Some(url("1").as_str()));
        end(seen);
    }
    let seen = world.trip.next().await;
    assert_eq!(seen.lra(), Some(url("1").as_str()));
    seen.answer(200);
    assert_eq!(answered(call).await.status, 200);
    let done = world.coordinator.done();
    assert_eq!((done.first().map(String::as_str), done.last().map(String::as_str)), (Some("start"), Some("close 1")), "{done:?}");
    assert!(done[1..done.len() - 1].iter().all(|step| step == "status 1"), "{done:?}");
}

#[tokio::test]
async fn a_coordinator_that_fails_at_first_is_asked_again_and_one_that_goes_on_failing_is_told_of() {
    let mut world = World::with(all_rules()).await;
    world.coordinator.break_begins(3);
    let call = world.call("/required", None);
    let seen = world.trip.next().await;
    assert_eq!(seen.lra(), Some(url("1").as_str()));
    // Delivered again, it finds what it began under the same key.
    seen.reset();
    let seen = world.trip.next().await;
    assert_eq!(seen.lra(), Some(url("1").as_str()));
    seen.answer(200);
    assert_eq!(answered(call).await.status, 200);
    assert_eq!(world.coordinator.done().iter().filter(|step| *step == "start").count(), 1);

    world.coordinator.break_begins(1000);
    let answer = answered(world.call("/required", None)).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "no-coordinator"));
    assert!(world.trip.is_idle());
}

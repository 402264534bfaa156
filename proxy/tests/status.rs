//! `http://bluebox/v1/calls/ID`: what has become of a call, told by any proxy.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use bluebox_core::log::{Log, Offset, Read, Record};
use bluebox_core::wire::{CallStatus, ControlEntry, Reply};
use common::{Answer, PATIENCE, System, reply, response};

async fn get_status(system: &System, location: &str) -> Answer {
    system.ask(format!("GET {location} HTTP/1.1\r\nHost: bluebox\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn an_outcome_can_be_asked_for_later_by_any_proxy() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let post = "POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async\r\nIdempotency-Key: k\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let accepted = system.ask(post).await;
    assert_eq!((accepted.status, accepted.header("preference-applied").as_deref()), (202, Some("respond-async")), "{accepted:?}");
    let location = accepted.header("location").unwrap();
    assert!(location.starts_with("http://bluebox/v1/calls/"), "{location}");
    let call = cart.next().await;
    assert!(call.recorded.is_some() && call.wait.is_none());

    // No owner answers: the reply partition says that there is no outcome.
    let pending = get_status(&system, &location).await;
    assert_eq!((pending.status, pending.header("bluebox-call-state").as_deref(), pending.header("retry-after").as_deref()), (200, Some("pending"), Some("1")));
    let document: serde_json::Value = serde_json::from_slice(&pending.body).unwrap();
    assert_eq!(document["state"], "pending");

    reply(&*system.log, &call, response(201, &[("x-from", "cart")], b"made")).await;
    let ended = get_status(&system, &location).await;
    assert_eq!((ended.status, ended.header("bluebox-call-state").as_deref(), &ended.body[..]), (201, Some("ended"), &b"made"[..]), "{ended:?}");

    // Another proxy, of another component, on the same log.
    let mut config = common::config();
    config.name = common::name("other");
    let other = bluebox_proxy::Proxy::bind(config).await.unwrap();
    let address = other.listen();
    let _other = tokio::spawn(other.run(system.log.client(), std::future::pending()));
    let path = location.strip_prefix("http://bluebox").unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let answer = loop {
        let answer = common::exchange(address, format!("GET {path} HTTP/1.1\r\nHost: bluebox\r\nConnection: close\r\n\r\n").as_bytes()).await;
        if answer.problem() != "not-ready" {
            break answer;
        }
        assert!(tokio::time::Instant::now() < deadline);
    };
    assert_eq!((answer.status, &answer.body[..]), (201, &b"made"[..]), "{answer:?}");
}

#[tokio::test]
async fn the_owner_of_a_call_is_asked_first() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let accepted = system.ask("POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async, wait=0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let location = accepted.header("location").unwrap();
    let call = cart.next().await;
    let mut control = system.log.read(&system.cart.control.partition(0), Offset::new(0));
    let (answer, ()) = tokio::join!(get_status(&system, &location), async {
        let Some(Read::Entries(entries)) = control.next().await else { panic!() };
        let Ok(ControlEntry::Query { query, id, offset, reply_to, .. }) = ControlEntry::decode(entries[0].record.value.clone().unwrap()) else { panic!() };
        assert_eq!((id, offset), (call.id, Offset::new(0)));
        let status = Reply::Status { query, status: CallStatus::Pending { attempts: 3 } };
        system.log.append(&reply_to, Record::new(status.encode())).await.unwrap();
    });
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &document["attempts"]), (200, &serde_json::json!(3)), "{answer:?}");
}

#[tokio::test]
async fn ids_that_are_forged_or_too_old_show_nothing() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let post = "POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async\r\nIdempotency-Key: k\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let location = system.ask(post).await.header("location").unwrap();
    let call = cart.next().await;
    reply(&*system.log, &call, response(200, &[], b"secret")).await;
    let good = bluebox_proxy::outbound::calls::CallRef::decode(location.rsplit('/').next().unwrap()).unwrap();
    let ask = async |call: bluebox_proxy::outbound::calls::CallRef| get_status(&system, &call.location()).await;
    assert_eq!(ask(good.clone()).await.body, b"secret");
    let mut forged = good.clone();
    forged.digest = [0; 32];
    assert_eq!(ask(forged).await.status, 400, "who guesses the key does not know the request");
    let mut unknown = good.clone();
    unknown.callee = common::name("nobody");
    assert_eq!(ask(unknown).await.status, 400);
    assert_eq!(system.log.partitions(&system.config.prefix.topics(&common::name("nobody")).calls).await, Ok(None), "no topic came of asking");
    let mut beyond = good.clone();
    beyond.partition = 99;
    assert_eq!(ask(beyond).await.status, 400);
    let mut elsewhere = good.clone();
    elsewhere.offset = Offset::new(77);
    assert_eq!(ask(elsewhere).await.status, 400);
    let mut old = good.clone();
    old.kept_until = bluebox_core::log::Timestamp::from_millis(1);
    assert_eq!(ask(old).await.status, 410);
    for id in ["", "x", "%00", "....", &"A".repeat(5000)] {
        assert_eq!(get_status(&system, &format!("http://bluebox/v1/calls/{id}")).await.status, 400, "{id:?}");
    }
    let delete = system.ask(format!("DELETE {location} HTTP/1.1\r\nHost: bluebox\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(delete.status, 405);
    system.client.disconnect();
    assert_eq!(ask(good).await.status, 503);
}

#[tokio::test]
async fn a_call_that_the_log_no_longer_keeps_is_gone() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let accepted = system.ask("POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    cart.next().await;
    system.log.keep_house(bluebox_core::log::Timestamp::from_millis(u64::MAX));
    let answer = get_status(&system, &accepted.header("location").unwrap()).await;
    assert_eq!((answer.status, answer.problem().as_str()), (410, "call-gone"), "{answer:?}");
}

#[tokio::test]
async fn the_last_life_of_a_call_is_what_a_status_tells() {
    let system = System::start().await;
    let mut cart = system.callee(|_| None);
    let accepted = system.ask("POST / HTTP/1.1\r\nHost: cart\r\nPrefer: respond-async\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let location = accepted.header("location").unwrap();
    let first = cart.next().await;
    reply(&*system.log, &first, response(502, &[], b"dead letter")).await;
    reply(&*system.log, &first, response(200, &[], b"too late")).await;
    assert_eq!(get_status(&system, &location).await.body, b"dead letter");
    let again = bluebox_core::call::Call { replay: 1, ..first };
    reply(&*system.log, &again, response(200, &[], b"replayed")).await;
    assert_eq!(get_status(&system, &location).await.body, b"replayed");
}

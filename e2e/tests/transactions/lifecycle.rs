//! Begin, close, cancel, time limits, lists, nesting (MicroProfile LRA 2.0, "The Model"; the coordinator's wire).

use bluebox_e2e::{Call, World};
use http::Method;
use serde_json::Value;

use crate::scene::{COORDINATOR, Scene, is_problem};

pub async fn start_answers_201_with_the_url_in_location_and_body(world: World) {
    let scene = Scene::new(world).await;
    let started = scene.client.call(Call::post(&format!("{COORDINATOR}/start?ClientID=a%20b&TimeLimit=0"), "")).await;
    assert_eq!(started.status, 201, "{started:?}");
    let url = started.text().to_owned();
    assert!(url.starts_with(&format!("{COORDINATOR}/")), "{url}");
    assert_eq!((started.header("location"), started.header("long-running-action")), (url.as_str(), url.as_str()));
    let read = scene.get(&url).await;
    let lra: Value = serde_json::from_slice(&read.body).unwrap();
    assert_eq!((&lra["lraId"], &lra["clientId"], &lra["status"]), (&Value::from(url.as_str()), &Value::from("a b"), &Value::from("Active")), "{lra}");
    assert_eq!((&lra["isTopLevel"], &lra["isRecovering"], &lra["finishTime"]), (&Value::from(true), &Value::from(false), &Value::from(0)), "{lra}");
    assert!(lra["startTime"].as_u64().unwrap() > 1_600_000_000_000, "{lra}");
    // Narayana's clients know it in this form, and in no other.
    for (path, version) in [(url.as_str(), "1.2"), (COORDINATOR, "2.0")] {
        let answer = scene.client.call(Call::get(path).with("narayana-lra-api-version", version)).await;
        let lra: Value = serde_json::from_slice(&answer.body).unwrap();
        let lra = lra.get(0).unwrap_or(&lra);
        let mut names: Vec<&str> = lra.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["clientId", "finishTime", "lraId", "recovering", "startTime", "status", "topLevel"], "{lra}");
    }
}

pub async fn close_completes_all_and_cancel_compensates_in_reverse_order(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    let closed = scene.start().await;
    let recovery = scene.join(&closed, &hotel).await;
    scene.join(&closed, &flight).await;
    assert!(hotel.asked().is_empty(), "nobody is asked before it ends");
    let answer = scene.put(&format!("{closed}/close")).await;
    answer.is(200, "Closed");
    hotel.was_asked_only(&["/complete"]);
    flight.was_asked_only(&["/complete"]);
    let asked = hotel.last();
    assert_eq!((asked.method.as_str(), asked.header("long-running-action"), asked.header("long-running-action-recovery")), ("PUT", &*closed, &*recovery));
    let cancelled = scene.start().await;
    scene.join(&cancelled, &hotel).await;
    scene.join(&cancelled, &flight).await;
    scene.put(&format!("{cancelled}/cancel")).await.is(200, "Cancelled");
    hotel.was_asked_only(&["/complete", "/compensate"]);
    flight.was_asked_only(&["/complete", "/compensate"]);
    assert!(flight.last().at < hotel.last().at, "who joined last compensates first");
}

/// Also where nobody sends traces anywhere.
pub async fn callbacks_go_on_in_the_trace_of_who_asks_for_the_end(world: World) {
    let scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    scene.client.call(Call::new(Method::PUT, &format!("{lra}/close")).with("traceparent", TRACE)).await.is(200, "Closed");
    hotel.was_asked_only(&["/complete"]);
    assert_eq!(hotel.last().header("traceparent"), TRACE);
}

pub async fn both_ends_can_be_asked_for_again_and_the_other_one_comes_too_late(world: World) {
    let scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let (close_it, cancel_it) = (format!("{lra}/close"), format!("{lra}/cancel"));
    let (close, again) = tokio::join!(scene.put(&close_it), scene.put(&close_it));
    close.is(200, "Closed");
    again.is(200, "Closed");
    scene.put(&close_it).await.is(200, "Closed");
    is_problem(&scene.put(&cancel_it).await, 412, "other-end");
    // Narayana's client names its version, and knows by 404 that it has ended otherwise.
    let narayanas = Call::new(Method::PUT, &cancel_it).with("narayana-lra-api-version", "1.2");
    is_problem(&scene.client.call(narayanas).await, 404, "other-end");
    is_problem(&scene.client.call(Call::new(Method::PUT, &lra).with("link", &hotel.links())).await, 412, "not-active");
    is_problem(&scene.put(&format!("{lra}/renew?TimeLimit=1000")).await, 412, "not-active");
    hotel.was_asked_only(&["/complete"]);
    // Close against cancel: one of them is decided, and both say so.
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let (close_it, cancel_it) = (format!("{lra}/close"), format!("{lra}/cancel"));
    let (close, cancel) = tokio::join!(scene.put(&close_it), scene.put(&cancel_it));
    let codes = [close.status.as_u16(), cancel.status.as_u16()];
    assert!(codes == [200, 412] || codes == [412, 200], "{codes:?}");
}

pub async fn versions_are_1_0_to_2_0_and_2_0_answers_202_while_it_ends(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "300ms")).await;
    let mut hotel = scene.service("hotel").await;
    hotel.app.rule(|_| None);
    let end = |lra: &str, version: &str| Call::new(Method::PUT, &format!("{lra}/close")).with("narayana-lra-api-version", version);
    for version in ["1.0", "1.1", "1.2", "1.3"] {
        let lra = scene.start().await;
        scene.join(&lra, &hotel).await;
        let answer = scene.client.call(end(&lra, version)).await;
        assert_eq!((answer.status.as_u16(), answer.text(), answer.header("narayana-lra-api-version")), (200, "Closing", version));
        hotel.app.next().await.answer(200, "");
        scene.becomes(&lra, "Closed").await;
    }
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let answer = scene.client.call(end(&lra, "2.0")).await;
    assert_eq!((answer.status.as_u16(), answer.text(), answer.header("location")), (202, "Closing", &*format!("{lra}/status")));
    hotel.app.next().await.answer(200, "");
    scene.becomes(&lra, "Closed").await;
    is_problem(&scene.client.call(end(&lra, "3.0")).await, 417, "unsupported-version");
    // Before 1.2, recovery URLs name the LRA by its URL.
    let lra = scene.start().await;
    let old = scene.client.call(Call::new(Method::PUT, &lra).with("link", &hotel.links()).with("narayana-lra-api-version", "1.1")).await;
    let recovery = old.header("long-running-action-recovery").to_owned();
    assert!(recovery.contains("/recovery/http%3A%2F%2Ftxmgr%2F"), "{recovery}");
    assert_eq!(scene.get(&recovery).await.status, 200);
}

pub async fn a_time_limit_cancels_and_renew_sets_another(world: World) {
    let scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    let lra = scene.start_with("&TimeLimit=400").await;
    scene.join(&lra, &hotel).await;
    scene.becomes(&lra, "Cancelled").await;
    hotel.was_asked_only(&["/compensate"]);
    // The earliest limit wins, whoever set it.
    let lra = scene.start_with("&TimeLimit=600000").await;
    let joined = scene.client.call(Call::new(Method::PUT, &format!("{lra}?TimeLimit=400")).with("link", &hotel.links())).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    scene.becomes(&lra, "Cancelled").await;
    let lra = scene.start_with("&TimeLimit=600000").await;
    assert_eq!(scene.put(&format!("{lra}/renew?TimeLimit=300")).await.status, 200);
    scene.becomes(&lra, "Cancelled").await;
    let lra = scene.start_with("&TimeLimit=600").await;
    assert_eq!(scene.put(&format!("{lra}/renew?TimeLimit=0")).await.status, 200);
    // One that begins later and has the same limit is cancelled meanwhile.
    let later = scene.start_with("&TimeLimit=600").await;
    scene.becomes(&later, "Cancelled").await;
    assert_eq!(scene.status(&lra).await, "Active", "without a limit it stays");
}

pub async fn status_is_plain_text_or_json_and_lists_can_be_filtered(world: World) {
    let scene = Scene::new(world).await;
    let (open, closed) = (scene.start().await, scene.start().await);
    scene.put(&format!("{closed}/close")).await.is(200, "Closed");
    let as_json = scene.client.call(Call::get(&format!("{open}/status")).with("accept", "application/json")).await;
    assert_eq!((as_json.text(), as_json.header("content-type")), ("\"Active\"", "application/json"));
    let as_text = scene.client.call(Call::get(&format!("{open}/status")).with("accept", "text/plain, application/json")).await;
    assert_eq!((as_text.text(), as_text.header("content-type")), ("Active", "text/plain"));
    let listed = async |query: &str| -> Vec<String> {
        let answer = scene.get(&format!("{COORDINATOR}{query}")).await;
        let all: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
        all.iter().map(|lra| lra["lraId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed("").await, [open.clone(), closed.clone()]);
    assert_eq!(listed("?Status=Active").await, [open]);
    assert_eq!(listed("/?Status=Closed").await, [closed]);
    assert!(listed("/recovery").await.is_empty() && listed("/recovery/failed").await.is_empty());
    is_problem(&scene.get(&format!("{COORDINATOR}?Status=open")).await, 400, "malformed");
}

pub async fn a_nested_one_closes_and_its_parent_can_still_cancel_it(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    for (end, hears) in [("close", vec!["/complete"]), ("cancel", vec!["/complete", "/compensate"])] {
        let before = (hotel.asked().len(), flight.asked().len());
        let parent = scene.start().await;
        // Narayana's client encodes it twice.
        let percent = if end == "close" { "%" } else { "%25" };
        let child = scene.start_with(&format!("&ParentLRA={}", parent.replace(':', &format!("{percent}3A")).replace('/', &format!("{percent}2F")))).await;
        scene.join(&parent, &flight).await;
        scene.join(&child, &hotel).await;
        let read: Value = serde_json::from_slice(&scene.get(&child).await.body).unwrap();
        assert_eq!(read["isTopLevel"], false, "{read}");
        scene.put(&format!("{child}/close")).await.is(200, "Closed");
        assert_eq!(hotel.last().header("long-running-action-parent"), parent);
        let answer = scene.put(&format!("{parent}/{end}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(scene.status(&parent).await, if end == "close" { "Closed" } else { "Cancelled" });
        assert_eq!(scene.status(&child).await, if end == "close" { "Closed" } else { "Cancelled" });
        assert_eq!(hotel.asked()[before.0..], hears);
        assert_eq!(flight.asked()[before.1..], [if end == "close" { "/complete" } else { "/compensate" }]);
    }
}

pub async fn a_nested_one_that_has_closed_can_be_cancelled_by_itself(world: World) {
    let scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    let parent = scene.start().await;
    let nested = async || {
        let child = scene.start_with(&format!("&ParentLRA={parent}")).await;
        let joined = scene.client.call(Call::new(Method::PUT, &child).with("link", &hotel.links_of(&["compensate", "complete", "after"]))).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        scene.put(&format!("{child}/close")).await.is(200, "Closed");
        child
    };
    let (cancelled, other) = (nested().await, nested().await);
    // Who takes part in it may be called in it once more.
    scene.join(&cancelled, &hotel).await;
    scene.put(&format!("{cancelled}/cancel")).await.is(200, "Cancelled");
    scene.put(&format!("{parent}/close")).await.is(200, "Closed");
    // Whoever is told of an end knows that all who are to be told have been: those of nested ones too.
    hotel.was_asked_only(&["/complete", "/complete", "/compensate", "/after", "/after"]);
    assert_eq!((scene.status(&cancelled).await, scene.status(&other).await), ("Cancelled".to_owned(), "Closed".to_owned()));
    is_problem(&scene.put(&format!("{other}/cancel")).await, 412, "other-end");
}

//! Join, leave, and what the answers of participants mean (MicroProfile LRA 2.0, "Participant State Model", "JAX-RS methods", "LRA listeners").

use bluebox_e2e::{Call, World, eventually};
use http::{Method, Response};
use serde_json::Value;

use crate::scene::{COORDINATOR, Scene, is_problem, says};

pub async fn join_by_link_header_or_by_body_and_a_second_join_is_the_first(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight, taxi) = (scene.service("hotel").await, scene.service("flight").await, scene.service("taxi").await);
    let lra = scene.start().await;
    let first = scene.join(&lra, &hotel).await;
    assert_eq!(scene.join(&lra, &hotel).await, first, "a second join is ignored");
    let by_body = scene.client.call(Call::new(Method::PUT, &lra).body(flight.links())).await;
    assert_eq!(by_body.status, 200, "{by_body:?}");
    assert_eq!(by_body.header("location"), by_body.header("long-running-action-recovery"));
    let by_url = scene.client.call(Call::new(Method::PUT, &lra).body(taxi.url("/lra")).with("narayana-lra-participant-data", "seat 7")).await;
    assert_eq!(by_url.status, 200, "{by_url:?}");
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    hotel.was_asked_only(&["/complete"]);
    flight.was_asked_only(&["/complete"]);
    taxi.was_asked_only(&["/lra/complete"]);
    assert_eq!(taxi.last().header("narayana-lra-participant-data"), "seat 7");
}

/// Narayana's filter: a method that ends an LRA may have changed what its participant is to be told.
pub async fn what_a_participant_has_left_last_comes_with_the_end(world: World) {
    const DATA: &str = "narayana-lra-participant-data";
    const DATA_OF: &str = "narayana-lra-participant-link";
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    for (end, word, path) in [("close", "Closed", "/complete"), ("cancel", "Cancelled", "/compensate")] {
        let lra = scene.start().await;
        let joined = scene.client.call(Call::new(Method::PUT, &lra).with("link", &hotel.links()).with(DATA, "seat 7")).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        scene.join(&lra, &flight).await;
        let ending = |links: &str, data: &str| Call::new(Method::PUT, &format!("{lra}/{end}")).with(DATA_OF, links).with(DATA, data);
        is_problem(&scene.client.call(ending("hotel", "seat 8")).await, 400, "malformed");
        is_problem(&scene.client.call(ending("<http://zoë/>; rel=after", "seat 8")).await, 400, "malformed");
        is_problem(&scene.client.call(ending(&hotel.links(), &"x".repeat(17_000))).await, 413, "too-large");
        is_problem(&scene.client.call(ending(&hotel.links(), "seat 8").with("narayana-lra-api-version", "1.0")).await, 412, "no-data");
        assert_eq!(scene.status(&lra).await, "Active", "what is refused decides nothing");
        scene.client.call(ending(&hotel.links(), "seat 8, Zoë")).await.is(200, word);
        assert_eq!((hotel.last().target.as_str(), hotel.last().header(DATA)), (path, "seat 8, Zoë"));
        assert_eq!((flight.last().target.as_str(), flight.last().header(DATA)), (path, ""), "the others are told what they left, or nothing");
        // As the filter sends it where nothing was left.
        let lra = scene.start().await;
        scene.join(&lra, &hotel).await;
        let nothing_left = Call::new(Method::PUT, &format!("{lra}/{end}")).with(DATA_OF, &hotel.links()).with(DATA, "");
        scene.client.call(nothing_left).await.is(200, word);
        assert_eq!(hotel.last().header(DATA), "");
    }
}

pub async fn leave_takes_a_participant_out(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    scene.join(&lra, &flight).await;
    let remove = |body: String| scene.client.call(Call::new(Method::PUT, &format!("{lra}/remove")).body(body));
    assert_eq!(remove(hotel.url("/compensate")).await.status, 200);
    assert_eq!(remove(hotel.url("/compensate")).await.status, 200, "one that comes again is answered as the first was");
    is_problem(&remove(hotel.url("/never")).await, 400, "no-such-participant");
    assert_eq!(remove(flight.links()).await.status, 200, "by its links");
    scene.put(&format!("{lra}/cancel")).await.is(200, "Cancelled");
    assert!(hotel.asked().is_empty() && flight.asked().is_empty());
}

pub async fn in_progress_is_polled_at_the_status_url(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "20s")).await;
    let hotel = scene.service("hotel").await;
    let lra = scene.start().await;
    let joined = scene.client.call(Call::new(Method::PUT, &lra).with("link", &hotel.links_of(&["compensate", "complete", "status", "forget"]))).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    let polls = std::sync::atomic::AtomicU32::new(0);
    hotel.app.rule(move |asked| {
        Some(match asked.target.as_str() {
            "/complete" => says(202, ""),
            "/status" if polls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 => says(200, "Completing"),
            "/status" => says(200, "Completed"),
            _ => says(200, ""),
        })
    });
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    // Who took its time is told that it may forget.
    eventually("it is told to forget", || async { hotel.asked().contains(&"/forget".to_owned()).then_some(()) }).await;
    hotel.was_asked_only(&["/complete", "/status", "/status", "/status", "/forget"]);
    let methods: Vec<String> = hotel.app.ledger().iter().map(|asked| asked.method.to_string()).collect();
    assert_eq!(methods, ["PUT", "GET", "GET", "GET", "DELETE"]);
    // Without a status URL, the Location of the 202 is asked.
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    hotel.app.rule(|asked| {
        Some(match asked.target.as_str() {
            "/compensate" => Response::builder().status(202).header("location", "/where?a=b").body(bluebox_e2e::app::content("")).unwrap(),
            "/where?a=b" => says(200, "Compensated"),
            _ => says(500, ""),
        })
    });
    scene.put(&format!("{lra}/cancel")).await.is(200, "Cancelled");
    assert_eq!(hotel.asked()[5..], ["/compensate", "/where?a=b"]);
}

pub async fn a_failure_stays_until_it_is_forgotten(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    hotel.app.rule(|_| Some(says(409, "FailedToComplete")));
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    scene.join(&lra, &flight).await;
    scene.put(&format!("{lra}/close")).await.is(200, "FailedToClose");
    flight.was_asked_only(&["/complete"]);
    let failed: Value = serde_json::from_slice(&scene.get(&format!("{COORDINATOR}/recovery/failed")).await.body).unwrap();
    assert_eq!((failed.as_array().unwrap().len(), &failed[0]["lraId"]), (1, &Value::from(lra.as_str())), "{failed}");
    let recovery = lra.replace("/lra-coordinator/", "/lra-coordinator/recovery/");
    let forgotten = scene.client.call(Call::new(Method::DELETE, &recovery)).await;
    assert_eq!(forgotten.status, 204, "{forgotten:?}");
    assert_eq!(scene.client.call(Call::new(Method::DELETE, &recovery)).await.status, 204, "once more");
    scene.get(&format!("{COORDINATOR}/recovery/failed")).await.is(200, "[]");
    let open = scene.start().await.replace("/lra-coordinator/", "/lra-coordinator/recovery/");
    is_problem(&scene.client.call(Call::new(Method::DELETE, &open)).await, 412, "not-failed");
}

pub async fn nonsense_is_asked_again_until_it_makes_sense(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "20s")).await;
    let hotel = scene.service("hotel").await;
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let tries = std::sync::atomic::AtomicU32::new(0);
    hotel.app.rule(move |_| {
        Some(match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => says(500, "boom"),
            1 => says(404, ""),
            2 => says(409, "Compensated"),
            3 => says(503, ""),
            _ => says(200, ""),
        })
    });
    scene.put(&format!("{lra}/cancel")).await.is(200, "Cancelled");
    hotel.was_asked_only(&["/compensate"; 5]);
    let keys: Vec<String> = hotel.app.ledger().iter().map(|asked| asked.header("idempotency-key").to_owned()).collect();
    let id = lra.rsplit('/').next().unwrap();
    assert_eq!(keys, (0..5).map(|n| format!("{id}/0/compensate/{n}")).collect::<Vec<_>>(), "each is a call of its own");
}

pub async fn who_wants_to_know_is_told_after_the_end_and_then_forget(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, listener) = (scene.service("hotel").await, scene.service("listener").await);
    let lra = scene.start().await;
    for (service, relations) in [(&hotel, &["compensate", "complete", "after"][..]), (&listener, &["after"])] {
        let joined = scene.client.call(Call::new(Method::PUT, &lra).with("link", &service.links_of(relations))).await;
        assert_eq!(joined.status, 200, "{joined:?}");
    }
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    for service in [&hotel, &listener] {
        // Before the close is answered.
        let told = service.last();
        assert_eq!((told.method.as_str(), told.text(), told.header("long-running-action-ended")), ("PUT", "Closed", lra.as_str()));
    }
    hotel.was_asked_only(&["/complete", "/after"]);
    listener.was_asked_only(&["/after"]);
}

pub async fn the_recovery_url_reads_and_moves_the_links(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    let lra = scene.start().await;
    let recovery = scene.join(&lra, &hotel).await;
    let read = scene.get(&recovery).await;
    assert!(read.status == 200 && read.text().contains("<http://hotel/compensate>; rel=\"compensate\""), "{read:?}");
    let moved = scene.client.call(Call::new(Method::PUT, &recovery).body(flight.links())).await;
    assert_eq!((moved.status.as_u16(), moved.text()), (200, recovery.as_str()));
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    assert!(hotel.asked().is_empty());
    flight.was_asked_only(&["/complete"]);
    let nobody = recovery.strip_suffix("/0").unwrap();
    is_problem(&scene.get(&format!("{nobody}/7")).await, 404, "no-such-participant");
}

pub async fn who_leaves_or_moves_too_late_is_told_so(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "200ms")).await;
    let mut hotel = scene.service("hotel").await;
    let remove = |lra: &str, body: String| scene.client.call(Call::new(Method::PUT, &format!("{lra}/remove")).body(body));
    hotel.app.rule(|_| None);
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    scene.put(&format!("{lra}/close")).await.is(200, "Closing");
    let delivery = hotel.app.next().await;
    is_problem(&remove(&lra, hotel.url("/compensate")).await, 412, "not-active");
    delivery.answer(200, "");
    scene.becomes(&lra, "Closed").await;
    is_problem(&remove(&lra, hotel.url("/compensate")).await, 412, "not-active");
    hotel.was_asked_only(&["/complete"]);
    let nobody = format!("{}0000000000000000", &lra[..lra.len() - 16]);
    is_problem(&remove(&nobody, hotel.url("/compensate")).await, 404, "unknown");
    is_problem(&scene.put(&format!("{nobody}/renew?TimeLimit=1")).await, 404, "unknown");
    let recovery = |id: &str| id.replace("/lra-coordinator/", "/lra-coordinator/recovery/");
    is_problem(&scene.client.call(Call::new(Method::DELETE, &recovery(&nobody))).await, 404, "unknown");
}

pub async fn ends_that_are_asked_for_at_once_are_one_end(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "20s")).await;
    let mut hotel = scene.service("hotel").await;
    hotel.app.rule(|_| None);
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let end = |end: &str| scene.client.begin(Call::new(Method::PUT, &format!("{lra}/{end}")));
    // All of them before the participant has said anything.
    let (closes, cancels) = ([end("close"), end("close")], [end("cancel"), end("cancel")]);
    let delivery = hotel.app.next().await;
    let closing = delivery.asked.target == "/complete";
    delivery.answer(200, "");
    for close in closes {
        let answer = close.answer().await;
        if closing { answer.is(200, "Closed") } else { is_problem(&answer, 412, "other-end") }
    }
    for cancel in cancels {
        let answer = cancel.answer().await;
        if closing { is_problem(&answer, 412, "other-end") } else { answer.is(200, "Cancelled") }
    }
    assert_eq!(hotel.asked().len(), 1);
}

pub async fn a_participant_that_can_remember_no_further_key_is_waited_for(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "300ms")).await;
    let app = scene.world.app("hotel").await;
    app.rule(|_| Some(says(200, "")));
    let hotel = || scene.world.proxy("hotel").serves("hotel", &app, 2);
    let full = hotel().flag("--max-recorded", "1").start().await;
    scene.client.knows("hotel").await;
    let links = "<http://hotel/compensate>; rel=\"compensate\", <http://hotel/complete>; rel=\"complete\"";
    let begin = async || {
        let lra = scene.start().await;
        assert_eq!(scene.client.call(Call::new(Method::PUT, &lra).with("link", links)).await.status, 200);
        assert_eq!(scene.put(&format!("{lra}/close")).await.status, 200);
        lra
    };
    // Its one place is taken by this callback, for a day.
    let first = begin().await;
    scene.becomes(&first, "Closed").await;
    let second = begin().await;
    let refused = |line: &str| line.contains("/complete") && line.contains("status=503");
    eventually("the participant's proxy refuses a further key, again and again", || async {
        (scene.txmgr.said().lines().filter(|line| refused(line)).count() > 1).then_some(())
    })
    .await;
    // An operator is told what it waits for.
    let shown = scene.get(&format!("http://txmgr/v1/transactions/{}", second.rsplit('/').next().unwrap())).await;
    let shown: serde_json::Value = serde_json::from_slice(&shown.body).unwrap();
    let again = &shown["participants"][0]["line"]["under_way"]["again"];
    assert!(again["why"].as_str().unwrap().starts_with("503 recorded-full: "), "{shown}");
    assert!(again["tries"].as_u64().unwrap() > 0 && again["at_ms"].as_u64().unwrap() > 0, "{shown}");
    // Nothing is lost, nobody is called without being remembered, and whoever asks is told that it goes on.
    assert_eq!(scene.status(&second).await, "Closing");
    assert_eq!(app.ledger().len(), 1);
    drop(full);
    let _roomy = hotel().start().await;
    scene.becomes(&second, "Closed").await;
    let asked: Vec<_> = app.ledger().iter().map(|asked| (asked.target.clone(), asked.header("idempotency-key").to_owned())).collect();
    let key = |lra: &str| ("/complete".to_owned(), format!("{}/0/complete/0", lra.rsplit('/').next().unwrap()));
    assert_eq!(asked, [key(&first), key(&second)]);
}

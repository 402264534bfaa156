//! Sagas that come as one request.

use bluebox_e2e::{Answer, Call, World, eventually};
use serde_json::{Value, json};

use crate::scene::{Scene, is_problem, says};

const SAGAS: &str = "http://txmgr/v1/sagas";

fn step(name: &str) -> Value {
    json!({
        "name": name, "action": { "url": format!("http://{name}/do"), "body": { "what": name } },
        "compensation": { "method": "DELETE", "url": format!("http://{name}/undo") },
    })
}

fn saga(steps: &[Value]) -> Call {
    Call::post(SAGAS, json!({ "steps": steps }).to_string()).with("content-type", "application/json")
}

fn document(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"))
}

fn statuses(saga: &Value) -> Vec<&str> {
    saga["steps"].as_array().unwrap().iter().map(|step| step["status"].as_str().unwrap()).collect()
}

pub async fn steps_run_in_their_order_and_independent_ones_at_once(world: World) {
    let scene = Scene::new(world).await;
    let (mut hotel, mut flight, mut taxi) = (scene.service("hotel").await, scene.service("flight").await, scene.service("taxi").await);
    for service in [&hotel, &flight, &taxi] {
        service.app.rule(|_| None);
    }
    let (mut two, mut three) = (step("flight"), step("taxi"));
    two["after"] = json!([]);
    three["after"] = json!(["hotel", "flight"]);
    let running = scene.client.begin(saga(&[step("hotel"), two, three]).prefer("wait=60"));
    // Both are under way before either has answered.
    let (first, second) = (hotel.app.next().await, flight.app.next().await);
    assert_eq!((first.asked.method.as_str(), first.asked.target.as_str(), first.asked.text()), ("POST", "/do", "{\"what\":\"hotel\"}"));
    assert_eq!(first.asked.header("content-type"), "application/json");
    first.answer(200, "");
    assert!(taxi.app.already().is_none());
    second.answer(201, "");
    taxi.app.next().await.answer(204, "");
    let answer = running.answer().await;
    assert_eq!((answer.status.as_u16(), answer.header("preference-applied")), (200, "wait"), "{answer:?}");
    let ended = document(&answer);
    assert_eq!((&ended["status"], statuses(&ended)), (&json!("Closed"), vec!["Done"; 3]), "{ended}");
    // Without waiting: 202, and where it can be asked for.
    for service in [&hotel, &flight, &taxi] {
        service.app.rule(|_| Some(says(200, "")));
    }
    let accepted = scene.client.call(saga(&[step("hotel")])).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let location = accepted.header("location").to_owned();
    assert!(location.starts_with(SAGAS), "{location}");
    let ended = scene.client.call(Call::get(&location).prefer("wait=60")).await;
    assert_eq!(document(&ended)["status"], "Closed", "{ended:?}");
}

pub async fn a_business_no_takes_back_what_was_done_and_nothing_else(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight, taxi) = (scene.service("hotel").await, scene.service("flight").await, scene.service("taxi").await);
    flight.app.rule(|_| Some(says(409, r#"{"type": "about:blank", "title": "Conflict", "detail": "no seat"}"#)));
    let answer = scene.client.call(saga(&[step("hotel"), step("flight"), step("taxi")]).prefer("wait=60")).await;
    let ended = document(&answer);
    assert_eq!((&ended["status"], statuses(&ended)), (&json!("Cancelled"), vec!["Undone", "Refused", "NeverRan"]), "{ended}");
    // Its reason is told to whoever asks.
    assert_eq!(ended["why"], "step \"flight\" said no (409): no seat", "{ended}");
    let of_operators = document(&scene.get(&format!("http://txmgr/v1/transactions/{}", ended["id"].as_str().unwrap())).await);
    for shown in [&ended, &of_operators] {
        assert_eq!(shown["steps"][1]["line"]["last_error"], "it said no (409): no seat", "{shown}");
    }
    hotel.was_asked_only(&["/do", "/undo"]);
    assert_eq!(hotel.last().method.as_str(), "DELETE");
    flight.was_asked_only(&["/do"]);
    assert!(taxi.asked().is_empty(), "a step that never ran is not compensated");
}

pub async fn the_same_key_is_the_same_saga(world: World) {
    let scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    let request = || saga(&[step("hotel")]).keyed("trip-7");
    let first = scene.client.call(request()).await;
    let again = scene.client.call(request()).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (202, 202), "{first:?} {again:?}");
    assert_eq!(first.header("location"), again.header("location"));
    let ended = scene.client.call(Call::get(first.header("location")).prefer("wait=60")).await;
    assert_eq!(document(&ended)["status"], "Closed", "{ended:?}");
    hotel.was_asked_only(&["/do"]);
    let other = scene.client.call(saga(&[step("hotel"), json!({ "name": "b", "action": { "url": "http://hotel/b" } })]).keyed("trip-7")).await;
    assert_eq!((other.status.as_u16(), other.header("bluebox-error")), (422, "key-reused"), "{other:?}");
}

pub async fn still_going_is_asked_again_and_a_deadline_cancels(world: World) {
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    let tries = std::sync::atomic::AtomicU32::new(0);
    flight.app.rule(move |_| Some(if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 { says(425, "") } else { says(200, "") }));
    let answer = scene.client.call(saga(&[step("hotel"), step("flight")]).prefer("wait=60")).await;
    assert_eq!(document(&answer)["status"], "Closed", "{answer:?}");
    flight.was_asked_only(&["/do"; 3]);
    // What fails is tried again until the deadline; then what may have run is taken back.
    flight.app.rule(|asked| Some(if asked.target == "/do" { says(500, "") } else { says(200, "") }));
    let limited = json!({ "steps": [step("hotel"), step("flight")], "time_limit_ms": 1500 });
    let answer = scene.client.call(Call::post(SAGAS, limited.to_string()).prefer("wait=60")).await;
    let ended = document(&answer);
    assert_eq!((&ended["status"], statuses(&ended)), (&json!("Cancelled"), vec!["Undone", "Undone"]), "{ended}");
    assert_eq!(flight.asked().last().unwrap(), "/undo", "no action comes after its compensation");
    eventually("the hotel is taken back too", || async { (hotel.asked().last().unwrap() == "/undo").then_some(()) }).await;
}

pub async fn tries_of_a_step_are_shown_and_an_operator_has_it_tried_at_once(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--first-pause", "1h").flag("--longest-pause", "1h")).await;
    let hotel = scene.service("hotel").await;
    hotel.app.rule(|_| Some(says(500, "boom")));
    let begun = document(&scene.client.call(saga(&[step("hotel")])).await);
    let transaction = format!("http://txmgr/v1/transactions/{}", begun["id"].as_str().unwrap());
    let shown = eventually("the failure is shown", || async {
        let shown = document(&scene.get(&transaction).await);
        shown["steps"][0]["line"]["last_error"].is_string().then_some(shown)
    })
    .await;
    let line = &shown["steps"][0]["line"];
    let expected =
        json!({ "asked": "action", "outcomes": 1, "failures": 1, "not_before_ms": line["not_before_ms"], "last_error": "HTTP 500: boom", "under_way": null });
    assert_eq!(*line, expected, "{shown}");
    assert!(line["not_before_ms"].as_u64().unwrap() >= shown["started_ms"].as_u64().unwrap() + 3_600_000, "{shown}");
    hotel.app.rule(|_| Some(says(200, "")));
    let retried = scene.client.call(Call::post(&format!("{transaction}/retry"), "")).await;
    assert_eq!(retried.status, 200, "{retried:?}");
    let ended = document(&scene.client.call(Call::get(&format!("{SAGAS}/{}", begun["id"].as_str().unwrap())).prefer("wait=60")).await);
    assert_eq!((&ended["status"], &ended["steps"][0]["line"]["outcomes"]), (&json!("Closed"), &json!(1)), "{ended}");
    hotel.was_asked_only(&["/do"; 2]);
}

pub async fn what_is_no_saga_is_refused(world: World) {
    let scene = Scene::new(world).await;
    scene.service("hotel").await;
    let refused = async |body: Value, status: u16, word: &str| {
        is_problem(&scene.client.call(Call::post(SAGAS, body.to_string())).await, status, word);
    };
    is_problem(&scene.client.call(Call::post(SAGAS, "no json")).await, 400, "malformed");
    refused(json!({}), 400, "malformed").await;
    refused(json!({ "steps": [] }), 400, "malformed").await;
    refused(json!({ "steps": [step("hotel"), step("hotel")] }), 400, "malformed").await;
    let mut cycle = step("hotel");
    cycle["after"] = json!(["hotel"]);
    refused(json!({ "steps": [cycle] }), 400, "malformed").await;
    refused(json!({ "steps": [step("nobody")] }), 412, "refused-url").await;
    refused(json!({ "steps": [{ "name": "a", "action": { "url": "http://txmgr/v1/sagas" } }] }), 412, "refused-url").await;
    refused(json!({ "steps": [{ "name": "a", "action": { "method": "GET", "url": "http://hotel/x" } }] }), 400, "malformed").await;
    refused(json!({ "steps": [step("hotel")], "surprise": 1 }), 400, "malformed").await;
    // Which mistake it is, and where.
    let says = async |body: Value, status: u16, detail: &str| {
        let said = document(&scene.client.call(Call::post(SAGAS, body.to_string())).await);
        assert!(said["status"] == status && said["detail"].as_str().unwrap().contains(detail), "{said}");
    };
    says(json!({ "steps": [["hotel", { "url": "http://hotel/do" }, null, null]] }), 400, "steps[0]: expected a step").await;
    says(
        json!({ "steps": [step("hotel"), { "name": "b", "action": { "ulr": "http://hotel/do" } }] }),
        400,
        "steps[1].action.ulr: unknown key; did you mean `url`?",
    )
    .await;
    let mut unknown = step("hotel");
    unknown["compensation"]["url"] = json!("http://nobody/undo");
    says(json!({ "steps": [unknown] }), 412, "steps[0].compensation.url: \"http://nobody/undo\": there is no such component").await;
    let large = "x".repeat(600 * 1024);
    refused(json!({ "steps": [{ "name": "a", "action": { "url": "http://hotel/x", "body": large } }] }), 413, "too-large").await;
    // More than a request may have is refused by the proxy.
    let larger = scene.client.call(Call::post(SAGAS, vec![b'x'; 2 << 20])).await;
    assert_eq!(larger.status, 413, "{larger:?}");
    is_problem(&scene.get(&format!("{SAGAS}/nonsense")).await, 404, "no-such-resource");
    let lra = scene.start().await;
    is_problem(&scene.get(&format!("{SAGAS}/{}", lra.rsplit('/').next().unwrap())).await, 404, "other-kind");
}

pub async fn a_compensation_waits_until_it_is_known_what_the_action_did(world: World) {
    let scene = Scene::new(world).await;
    let (mut hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    hotel.app.rule(|asked| (asked.target == "/undo").then(|| says(200, "")));
    let mut second = step("flight");
    second["after"] = json!([]);
    let begun = scene.client.call(saga(&[step("hotel"), second])).await;
    let location = begun.header("location").to_owned();
    let action = hotel.app.next().await;
    let cancel = scene.client.begin(Call::post(&format!("{location}/cancel"), ""));
    // The other step is done, and is taken back meanwhile.
    eventually("the other one is taken back", || async { flight.asked().contains(&"/undo".to_owned()).then_some(()) }).await;
    hotel.was_asked_only(&["/do"]);
    action.answer(200, "");
    let cancelled = cancel.answer().await;
    assert!([200, 202].contains(&cancelled.status.as_u16()), "{cancelled:?}");
    let ended = document(&scene.client.call(Call::get(&location).prefer("wait=60")).await);
    assert_eq!((&ended["status"], statuses(&ended)), (&json!("Cancelled"), vec!["Undone", "Undone"]), "{ended}");
    hotel.was_asked_only(&["/do", "/undo"]);
    // It ended so, and nothing else: neither another cancel nor the end of what is closed changes it.
    assert_eq!(scene.client.call(Call::post(&format!("{location}/cancel"), "")).await.status, 200);
    let closed = scene.client.call(saga(&[step("flight")]).prefer("wait=60")).await;
    is_problem(
        &scene.client.call(Call::post(&format!("http://txmgr/v1/sagas/{}/cancel", document(&closed)["id"].as_str().unwrap()), "")).await,
        412,
        "other-end",
    );
}

pub async fn who_registered_a_moment_ago_takes_part_at_once(world: World) {
    let scene = Scene::new(world).await;
    // Each names itself, through its own proxy, which is the first to know of it.
    for name in ["hotel", "flight", "taxi", "train", "ferry", "museum"] {
        let app = scene.world.app(name).await;
        app.rule(|_| Some(says(200, "")));
        let proxy = scene.world.proxy(name).serves(name, &app, 2).start().await;
        let answer = proxy.call(saga(&[step(name)]).prefer("wait=60")).await;
        assert_eq!((answer.status.as_u16(), &document(&answer)["status"]), (200, &json!("Closed")), "{name}: {answer:?}");
    }
}

pub async fn a_service_that_hangs_holds_up_those_that_wait_for_it_and_nobody_else(world: World) {
    // More steps are asked for than callbacks can be under way at once.
    const SAGAS_AT_ONCE: usize = 33;
    const STEPS: usize = 64;
    let scene = Scene::new(world).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    hotel.app.rule(|_| None);
    let steps: Vec<_> = (0..STEPS).map(|n| json!({ "name": n.to_string(), "action": { "url": "http://hotel/do" }, "after": [] })).collect();
    for _ in 0..SAGAS_AT_ONCE {
        let begun = scene.client.call(saga(&steps)).await;
        assert_eq!(begun.status, 202, "{begun:?}");
    }
    let under_way = async || -> Vec<Value> {
        let all = document(&scene.get("http://txmgr/v1/transactions?status=Active").await);
        let lines = all.as_array().unwrap().iter().flat_map(|saga| saga["steps"].as_array().unwrap());
        lines.map(|step| step["line"]["under_way"].clone()).filter(|under_way| !under_way.is_null()).collect()
    };
    let under_way = eventually("all of them are asked for", || async { Some(under_way().await).filter(|all| all.len() == SAGAS_AT_ONCE * STEPS) }).await;
    // Half of the places are left to the others. What waits for its turn was not tried.
    let turns: Vec<_> = under_way.iter().filter(|under_way| !under_way["turn"].is_null()).collect();
    assert_eq!(turns.len(), SAGAS_AT_ONCE * STEPS - 1_000);
    assert!(turns.iter().all(|waits| waits["turn"].as_str().unwrap().contains("hotel") && waits["again"].is_null()), "{turns:?}");
    let ended = scene.client.call(saga(&[step("flight")]).prefer("wait=60")).await;
    assert_eq!((ended.status.as_u16(), &document(&ended)["status"]), (200, &json!("Closed")), "{ended:?}");
    let lra = scene.start().await;
    scene.join(&lra, &flight).await;
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    flight.was_asked_only(&["/do", "/complete"]);
    assert!(hotel.asked().iter().all(|path| path == "/do"));
}

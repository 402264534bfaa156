//! Takeover, replicas, operators, retention.

use bluebox_e2e::{Call, World, eventually};
use http::Method;
use serde_json::Value;

use crate::scene::{COORDINATOR, PARTITIONS, Scene, is_problem, says};

pub async fn transactions_and_timers_go_on_after_a_takeover(world: World) {
    let mut scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (open, late) =
        (scene.start().await, scene.client.call(Call::post(&format!("{COORDINATOR}/start?TimeLimit=1500"), "").with("traceparent", TRACE)).await);
    let late = late.text().to_owned();
    scene.join(&open, &hotel).await;
    scene.join(&late, &hotel).await;
    let other = scene.world.txmgr(PARTITIONS).start().await;
    scene.txmgr.kill();
    // The deadline is a moment of UTC: whoever has the transaction by then cancels it.
    scene.becomes(&late, "Cancelled").await;
    hotel.was_asked_only(&["/compensate"]);
    assert_eq!(hotel.last().header("traceparent"), TRACE);
    assert_eq!(scene.status(&open).await, "Active");
    scene.put(&format!("{open}/close")).await.is(200, "Closed");
    hotel.was_asked_only(&["/compensate", "/complete"]);
    drop(other);
}

pub async fn replicas_share_the_partitions_and_a_list_has_all(world: World) {
    let scene = Scene::new(world).await;
    let other = scene.world.txmgr(PARTITIONS).start().await;
    let mut all = Vec::new();
    for _ in 0..8 {
        all.push(scene.start().await);
    }
    // From whichever of them a client comes to, it sees all, and can end all.
    let list = async |door| {
        eventually("a list has all", || async {
            let answer = Call::get(&format!("http://{door}/lra-coordinator?Status=Active")).send_to(door).await.ok()?;
            let listed: Vec<Value> = serde_json::from_slice(&answer.body).ok().filter(|_| answer.status == 200)?;
            (listed.len() == 8).then_some(())
        })
        .await;
    };
    list(scene.txmgr.address()).await;
    list(other.address()).await;
    eventually("the other one has partitions too", || async { other.said().contains("a partition of transactions is served here").then_some(()) }).await;
    for lra in &all {
        scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    }
}

pub async fn an_operator_lists_retries_and_forgets(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "200ms").flag("--first-pause", "1h").flag("--longest-pause", "1h")).await;
    let hotel = scene.service("hotel").await;
    hotel.app.rule(|_| Some(says(500, "boom")));
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    scene.put(&format!("{lra}/close")).await.is(200, "Closing");
    let id = lra.rsplit('/').next().unwrap();
    let shown = eventually("the failure is shown", || async {
        let shown: Value = serde_json::from_slice(&scene.get(&format!("http://txmgr/v1/transactions/{id}")).await.body).unwrap();
        shown["participants"][0]["line"]["last_error"].is_string().then_some(shown)
    })
    .await;
    let line = &shown["participants"][0]["line"];
    assert_eq!((&line["last_error"], &line["failures"]), (&Value::from("HTTP 500: boom"), &Value::from(1)), "{shown}");
    let listed = async |query: &str| -> usize {
        let answer = scene.get(&format!("http://txmgr/v1/transactions?{query}")).await;
        serde_json::from_slice::<Vec<Value>>(&answer.body).unwrap_or_else(|_| panic!("{answer:?}")).len()
    };
    assert_eq!((listed("in-doubt").await, listed("failed").await, listed("older-than=3600000").await, listed("kind=saga").await), (1, 0, 0, 0));
    let tell = |what: &str| scene.client.call(Call::post(&format!("http://txmgr/v1/transactions/{id}/{what}"), ""));
    // What would be taken for a filter, and is none.
    for (query, named) in [("older-than=soon", "older-than"), ("fialed", "fialed"), ("failed&failed", "twice")] {
        for of in ["transactions".to_owned(), format!("partitions/{id}")] {
            let refused = scene.get(&format!("http://txmgr/v1/{of}?{query}")).await;
            is_problem(&refused, 400, "malformed");
            assert!(refused.text().contains(named) && refused.text().contains("in-doubt"), "{refused:?}");
        }
    }
    is_problem(&scene.get(&format!("http://txmgr/v1/transactions/{id}?failed")).await, 400, "malformed");
    is_problem(&tell("cancel?dry-run").await, 400, "malformed");
    is_problem(&tell("forget").await, 412, "not-failed");
    // The pause would have been an hour.
    hotel.app.rule(|_| Some(says(409, "")));
    assert_eq!(tell("retry").await.status, 200);
    scene.becomes(&lra, "FailedToClose").await;
    assert_eq!(listed("failed").await, 1);
    assert_eq!(tell("forget").await.status, 200);
    hotel.was_asked_only(&["/complete"; 2]);
    // A pass over all of them does the same as a retry of each.
    hotel.app.rule(|_| Some(says(500, "")));
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    scene.put(&format!("{lra}/cancel")).await.is(200, "Cancelling");
    eventually("it was asked", || async { (hotel.asked().len() == 3).then_some(()) }).await;
    hotel.app.rule(|_| Some(says(200, "")));
    eventually("a pass ends it", || async {
        let pass = scene.client.call(Call::new(Method::GET, &format!("{COORDINATOR}/recovery"))).await;
        assert_eq!(pass.status, 200, "{pass:?}");
        (scene.status(&lra).await == "Cancelled").then_some(())
    })
    .await;
}

pub async fn what_has_ended_is_answered_for_its_time_and_gone_afterwards(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--keep-transactions", "1s")).await;
    let lra = scene.start().await;
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    let gone = eventually("it is gone", || async {
        let answer = scene.get(&lra).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    is_problem(&gone, 410, "gone");
}

pub async fn an_operator_gives_up_on_who_never_answers(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "200ms")).await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    hotel.app.rule(|_| Some(says(500, "boom")));
    let lra = scene.start().await;
    for service in [&hotel, &flight] {
        let joined = scene.client.call(Call::new(Method::PUT, &lra).with("link", &service.links_of(&["compensate", "complete", "after", "forget"]))).await;
        assert_eq!(joined.status, 200, "{joined:?}");
    }
    let id = lra.rsplit('/').next().unwrap();
    let tell = |id: &str, what: &str| scene.client.call(Call::post(&format!("http://txmgr/v1/transactions/{id}/{what}"), ""));
    is_problem(&tell(id, "give-up").await, 412, "not-ending");
    scene.put(&format!("{lra}/close")).await.is(200, "Closing");
    eventually("it was tried", || async { (!hotel.asked().is_empty()).then_some(()) }).await;
    // Who has not answered by then is given up too.
    let shown = format!("http://txmgr/v1/transactions/{id}");
    eventually("the other one has answered", || async { scene.client.call(Call::get(&shown)).await.text().contains("Completed").then_some(()) }).await;
    assert_eq!(tell(id, "give-up").await.status, 200);
    scene.becomes(&lra, "FailedToClose").await;
    eventually("the others are told how it ended", || async { flight.asked().contains(&"/after".to_owned()).then_some(()) }).await;
    flight.was_asked_only(&["/complete", "/after"]);
    assert!(hotel.asked().iter().all(|path| path == "/complete"), "who was given up is not called for anything else: {:?}", hotel.asked());
    assert_eq!(tell(id, "forget").await.status, 200);
    // A saga: what may have run, and is never heard of, is not known to be taken back.
    hotel.app.rule(|asked| Some(says(if asked.target == "/undo" { 500 } else { 200 }, "")));
    let step = |name: &str, what: &str| serde_json::json!({ "name": name, "action": { "url": format!("http://{name}/{what}") }, "compensation": { "url": format!("http://{name}/undo") } });
    flight.app.rule(|asked| Some(says(if asked.target == "/no" { 409 } else { 200 }, "")));
    let saga = serde_json::json!({ "steps": [step("hotel", "do"), step("flight", "no")] });
    let begun = scene.client.call(Call::post("http://txmgr/v1/sagas", saga.to_string())).await;
    let location = begun.header("location").to_owned();
    eventually("its compensation was tried", || async { hotel.asked().contains(&"/undo".to_owned()).then_some(()) }).await;
    assert_eq!(tell(location.rsplit('/').next().unwrap(), "give-up").await.status, 200);
    let ended: Value = serde_json::from_slice(&scene.client.call(Call::get(&location).prefer("wait=60")).await.body).unwrap();
    assert_eq!((&ended["status"], &ended["steps"][0]["status"]), (&Value::from("FailedToCancel"), &Value::from("FailedToUndo")), "{ended}");
}

pub async fn each_change_of_state_is_a_line_in_the_log_with_the_id(world: World) {
    let scene = Scene::new(world).await;
    let lra = scene.start().await;
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    let id = lra.rsplit('/').next().unwrap();
    let said = scene.txmgr.said();
    let changes: Vec<&str> = said.lines().filter(|line| line.contains("a transaction is in another state") && line.contains(id)).collect();
    for (line, status) in changes.iter().zip(["Active", "Closing", "Closed"]) {
        assert!(line.contains(&format!("status={status}")), "{line}");
    }
    assert_eq!(changes.len(), 3, "{changes:?}");
}

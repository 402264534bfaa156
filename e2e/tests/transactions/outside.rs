//! Clients and participants that are no box.

use std::net::SocketAddr;

use bluebox_e2e::{Call, Running, World, eventually};
use http::Method;
use nix::sys::signal::Signal;

use crate::scene::{PARTITIONS, Scene, is_problem, says};

pub async fn a_client_in_no_box_gets_urls_with_the_authority_that_it_used(world: World) {
    let scene = Scene::new(world).await;
    let hotel = scene.service("hotel").await;
    let door = scene.txmgr.address();
    let send = |call: Call| async move { call.send_to(door).await.unwrap() };
    let started = send(Call::post(&format!("http://{door}/lra-coordinator/start"), "")).await;
    let lra = started.text().to_owned();
    assert!(started.status == 201 && lra.starts_with(&format!("http://{door}/lra-coordinator/")), "{started:?}");
    let joined = send(Call::new(Method::PUT, &lra).with("link", &hotel.links())).await;
    let recovery = joined.header("long-running-action-recovery").to_owned();
    assert!(joined.status == 200 && recovery.starts_with(&format!("http://{door}/lra-coordinator/recovery/")), "{joined:?}");
    assert_eq!(send(Call::new(Method::PUT, &format!("{lra}/close"))).await.text(), "Closed");
    // Participants know it by the URL of the client that began it.
    assert_eq!(hotel.last().header("long-running-action"), lra);
    // From a box the same one has the coordinator's own name.
    let inside = format!("http://txmgr/lra-coordinator/{}/status", lra.rsplit('/').next().unwrap());
    scene.get(&inside).await.is(200, "Closed");
    assert_eq!(send(Call::get(&format!("http://{door}/metrics"))).await.status, 404);
    // An app in a box can't pretend to be another origin.
    let forged = scene.client.call(Call::post("http://txmgr/lra-coordinator/start", "").with("txmgr-origin", "http://evil.example")).await;
    assert!(forged.text().starts_with("http://txmgr/"), "{forged:?}");
}

pub async fn one_that_is_told_to_end_still_answers_who_has_asked_it(world: World) {
    let mut scene = Scene::with(world, |spec| spec.flag("--end-wait", "20s")).await;
    let mut hotel = scene.service("hotel").await;
    hotel.app.rule(|asked| (asked.target != "/complete").then(|| says(200, "")));
    let door = scene.txmgr.address();
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let closing = Running::start(Call::new(Method::PUT, &format!("http://{door}/lra-coordinator/{}/close", lra.rsplit('/').next().unwrap())), door);
    let completing = hotel.app.next().await;
    scene.txmgr.signal(Signal::SIGTERM);
    eventually("it ends in good order", || async { scene.txmgr.said().contains("asked to end").then_some(()) }).await;
    completing.answer(200, "");
    closing.answer().await.is(200, "Closed");
    let ended = scene.txmgr.ended().await;
    assert!(ended.success(), "{ended}");
}

pub async fn one_that_takes_no_more_calls_still_passes_on_those_of_its_clients(world: World) {
    let mut scene = Scene::with(world, |spec| spec.flag("--control", "127.0.0.1:0")).await;
    let other = scene.world.txmgr(PARTITIONS).start().await;
    let said = scene.txmgr.said();
    let control: SocketAddr = said.split("\"control\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().parse().unwrap();
    let drained = Call::post(&format!("http://{control}/drain"), "").send_to(control).await.unwrap();
    assert!(drained.status.is_success(), "{drained:?}");
    let drained = Call::get(&format!("http://{control}/drained?within=20")).send_to(control).await.unwrap();
    assert!(drained.status.is_success(), "{drained:?}");
    let door = scene.txmgr.address();
    for _ in 0..8 {
        let started = Call::post(&format!("http://{door}/lra-coordinator/start"), "").send_to(door).await.unwrap();
        assert_eq!(started.status, 201, "{started:?}");
    }
    let ended = scene.txmgr.terminate().await;
    assert!(ended.success(), "{ended}");
    drop(other);
}

pub async fn a_plain_url_of_the_allow_list_is_called_directly(world: World) {
    let plain = world.app("plain").await;
    plain.rule(|_| Some(says(200, "")));
    let address = plain.address();
    let scene = Scene::with(world, |spec| spec.flag("--allow", &format!("http://{address}/lra"))).await;
    let lra = scene.start().await;
    let links = format!(
        "<http://{address}/lra/compensate>; rel=\"compensate\", <http://{address}/lra/complete>; rel=\"complete\", <http://{address}/lra/after>; rel=\"after\""
    );
    let joined = scene.client.call(Call::new(Method::PUT, &lra).with("link", &links)).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    scene.put(&format!("{lra}/close")).await.is(200, "Closed");
    assert_eq!((plain.count("/lra/complete"), plain.count("/lra/after")), (1, 1));
    assert_eq!(plain.ledger()[0].header("bluebox-call-id"), "", "it came without the log");
    let beside = scene.client.call(Call::new(Method::PUT, &scene.start().await).with("link", &format!("<http://{address}/other>; rel=\"compensate\""))).await;
    assert_eq!(beside.status, 412, "{beside:?}");
}

pub async fn urls_can_begin_with_a_configured_base(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--base-url", "https://lra.example:8443/shop")).await;
    let hotel = scene.service("hotel").await;
    let started = scene.client.call(Call::post("http://txmgr/lra-coordinator/start", "")).await;
    let lra = started.text().to_owned();
    assert!(lra.starts_with("https://lra.example:8443/shop/lra-coordinator/"), "{started:?}");
    // What stands at that address passes requests on; an id is enough to name one.
    let here = format!("http://txmgr/lra-coordinator/{}", lra.rsplit('/').next().unwrap());
    let recovery = scene.join(&here, &hotel).await;
    assert!(recovery.starts_with("https://lra.example:8443/shop/lra-coordinator/recovery/"), "{recovery}");
    scene.put(&format!("{here}/close")).await.is(200, "Closed");
    assert_eq!(hotel.last().header("long-running-action"), lra);
    assert_eq!(hotel.last().header("long-running-action-recovery"), recovery);
}

/// As the proxy does whose rule ends a transaction. Whoever is no component, or another one, is told nothing, though it knows the call's id.
pub async fn the_outcome_that_came_with_an_end_is_told_to_its_component_alone(world: World) {
    const CALL: &str = "0198f0c2a1b37000800000000000004d/0";
    let mut scene = Scene::new(world).await;
    let other = scene.world.proxy("other").start().await;
    other.knows("txmgr").await;
    let lra = scene.start().await;
    let ends = |outcome: &'static [u8]| Call::new(Method::PUT, &format!("{lra}/close")).with("txmgr-outcome-of", CALL).body(outcome);
    let outcome = |of: &str| Call::get(&format!("{lra}/outcome")).with("txmgr-outcome-of", of);
    assert_eq!(scene.client.call(outcome(CALL)).await.status, 404);
    let closed = scene.client.call(ends(b"\x00 the first")).await;
    assert_eq!((closed.text(), closed.header("txmgr-outcome")), ("Closed", ""));
    let again = scene.client.call(ends(b"another")).await;
    assert_eq!((again.text(), again.header("txmgr-outcome")), ("Closed", "other"));
    // It is durable with the decision.
    scene.txmgr.crash().await;
    let kept = scene.client.call(outcome(CALL)).await;
    assert_eq!((kept.status.as_u16(), &kept.body[..]), (200, &b"\x00 the first"[..]));
    let (door, id) = (scene.txmgr.address(), lra.rsplit('/').next().unwrap());
    let plain = Call::get(&format!("http://{door}/lra-coordinator/{id}/outcome")).with("txmgr-outcome-of", CALL).with("bluebox-caller", "client");
    let refused = [other.call(outcome(CALL)).await, scene.client.call(outcome(&CALL.replace("/0", "/1"))).await, plain.send_to(door).await.unwrap()];
    for answer in refused {
        is_problem(&answer, 404, "no-outcome");
    }
    is_problem(&scene.client.call(outcome("x")).await, 400, "malformed");
    let shown = scene.get(&format!("http://txmgr/v1/transactions/{id}")).await;
    assert!(shown.status == 200 && !shown.text().contains("the first"), "{shown:?}");
    // One that is too long is only known to have been there.
    let long = scene.start().await;
    let close = Call::new(Method::PUT, &format!("{long}/close")).with("txmgr-outcome-of", CALL).body(vec![b'x'; (64 << 10) + 1]);
    scene.client.call(close).await.is(200, "Closed");
    is_problem(&scene.client.call(Call::get(&format!("{long}/outcome")).with("txmgr-outcome-of", CALL)).await, 410, "outcome-not-kept");
}

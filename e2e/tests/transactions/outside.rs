//! Clients and participants that are no box.

use bluebox_e2e::{Call, World, eventually};
use http::Method;

use crate::scene::{Scene, says};

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
    eventually("it is told how it ended", || async { (plain.count("/lra/after") == 1).then_some(()) }).await;
    assert_eq!(plain.count("/lra/complete"), 1);
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

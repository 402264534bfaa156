//! Deaths in the middle: every transaction ends, and each participant gets complete xor compensate.

use bluebox_e2e::{Call, World, eventually};
use http::Method;

use crate::scene::{COORDINATOR, PARTITIONS, Scene};

pub async fn it_dies_between_the_decision_and_the_end(world: World) {
    let mut scene = Scene::new(world).await;
    let mut hotel = scene.service("hotel").await;
    hotel.app.rule(|_| None);
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let close = scene.client.begin(Call::new(Method::PUT, &format!("{lra}/close")));
    let asked = hotel.app.next().await;
    scene.txmgr.crash().await;
    asked.answer(200, "");
    // The next owner has the same call, and so its outcome: the participant is not asked again.
    close.answer().await.is(200, "Closed");
    hotel.was_asked_only(&["/complete"]);
}

pub async fn a_participant_dies_while_it_compensates(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--end-wait", "30s")).await;
    let mut hotel = scene.service("hotel").await;
    hotel.app.rule(|_| None);
    let lra = scene.start().await;
    scene.join(&lra, &hotel).await;
    let cancel = scene.client.begin(Call::new(Method::PUT, &format!("{lra}/cancel")));
    hotel.app.next().await;
    hotel.app.kill();
    hotel.app.start_again().await;
    let again = hotel.app.next().await;
    assert_eq!((again.asked.target.as_str(), again.asked.may_have_started()), ("/compensate", true));
    again.answer(200, "");
    cancel.answer().await.is(200, "Cancelled");
}

pub async fn many_deaths_and_every_transaction_ends_one_way(world: World) {
    const TRANSACTIONS: usize = 40;
    let mut scene = Scene::new(world).await;
    let other = scene.world.txmgr(PARTITIONS).start().await;
    let (hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
    let (proxy, links) = (scene.client.address(), [hotel.links(), flight.links()]);
    let clients: Vec<_> = (0..TRANSACTIONS)
        .map(|n| {
            let links = links.clone();
            tokio::spawn(async move {
                let call = async |call: Call| call.send_to(proxy).await.unwrap();
                let started = call(Call::post(&format!("{COORDINATOR}/start?ClientID={n}"), "")).await;
                assert_eq!(started.status, 201, "{started:?}");
                let lra = started.text().to_owned();
                for links in &links {
                    let joined = call(Call::new(Method::PUT, &lra).with("link", links)).await;
                    assert_eq!(joined.status, 200, "{joined:?}");
                }
                let (end, last) = if n % 2 == 0 { ("close", "Closed") } else { ("cancel", "Cancelled") };
                let ended = call(Call::new(Method::PUT, &format!("{lra}/{end}"))).await;
                assert_eq!(ended.status, 200, "{ended:?}");
                (lra, last)
            })
        })
        .collect();
    for _ in 0..3 {
        scene.txmgr.crash().await;
        let door = scene.txmgr.address();
        eventually("it serves again", || async {
            let all = Call::get(COORDINATOR).send_to(door).await.ok()?;
            (all.status == 200).then_some(())
        })
        .await;
    }
    let mut all = Vec::new();
    for client in clients {
        all.push(client.await.unwrap());
    }
    for (lra, last) in &all {
        eventually(&format!("{lra} is {last}"), || async { (scene.status(lra).await == *last).then_some(()) }).await;
    }
    for service in [&hotel, &flight] {
        for (lra, last) in &all {
            let asked: Vec<String> =
                service.app.ledger().into_iter().filter(|asked| asked.header("long-running-action") == lra).map(|asked| asked.target).collect();
            let expected = if *last == "Closed" { "/complete" } else { "/compensate" };
            assert!(!asked.is_empty() && asked.iter().all(|path| path == expected), "{} of {lra} ({last}): {asked:?}", service.name);
        }
    }
    drop(other);
}

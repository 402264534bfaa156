//! Deaths in the middle: every transaction ends, and each participant gets complete xor compensate.

use bluebox_e2e::{Call, Delivery, Running, World, eventually};
use http::Method;
use nix::sys::signal::Signal;

use crate::scene::{COORDINATOR, PARTITIONS, Scene, Service, says};

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

/// A box whose rule ends the transaction of a call when its app has answered, and who takes part in it.
struct Trip {
    scene: Scene,
    trip: Service,
    hotel: Service,
    flight: Service,
    lra: String,
}

impl Trip {
    /// The app has answered, and its box has died: after the end of the transaction was decided (the hotel is asked for it, and has not answered, so the transaction manager hasn't either), and before
    /// the outcome of the call was recorded. With the call at its caller, and with what the hotel is asked.
    async fn died_after(world: World, status: u16, answer: &'static str, participant: &str) -> (Self, Running, Delivery) {
        let scene = Scene::with(world, |spec| spec.flag("--end-wait", "60s")).await;
        let rule = format!("POST /book type=required cancel-on=409{participant}");
        let mut trip = scene.service_with("trip", |spec| spec.flag("--transaction", &rule)).await;
        let (mut hotel, flight) = (scene.service("hotel").await, scene.service("flight").await);
        trip.app.rule(|_| None);
        hotel.app.rule(|_| None);
        let booking = scene.client.begin(Call::post("http://trip/book", ""));
        let delivery = trip.app.next().await;
        let lra = delivery.asked.header("long-running-action").to_owned();
        // Compensations come in the reverse order of joining: so nobody is asked before the hotel.
        scene.join(&lra, &flight).await;
        let links = hotel.links_of(&["compensate", "complete", "status", "after", "forget"]);
        let joined = scene.client.call(Call::new(Method::PUT, &lra).with("link", &links)).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        delivery.answer(status, answer);
        let asked = hotel.app.next().await;
        trip.dies();
        assert!(!booking.has_ended(), "its outcome is not recorded");
        // An app that got the call once more would answer something else.
        trip.app.rule(|asked| Some(if asked.target == "/book" { says(418, "another result") } else { says(200, "") }));
        (Self { scene, trip, hotel, flight, lra }, booking, asked)
    }

    /// The hotel takes its time, which is why it is told to forget in the end.
    async fn ends(&self, asked: Delivery, last: &str, done: &'static str) {
        self.hotel.app.rule(move |asked| Some(says(200, if asked.target == "/status" { done } else { "" })));
        asked.answer(202, "");
        self.scene.becomes(&self.lra, last).await;
        eventually("the hotel is told to forget", || async { self.hotel.asked().contains(&"/forget".to_owned()).then_some(()) }).await;
    }

    /// Each was asked for this one end, and for nothing after a forget.
    fn went_one_way(&self, end: &str) {
        self.hotel.was_asked_only(&[end, "/status", "/after", "/forget"]);
        self.flight.was_asked_only(&[end]);
    }
}

pub async fn a_box_that_dies_after_its_close_was_decided_answers_as_it_had(world: World) {
    let (mut trip, booking, asked) = Trip::died_after(world, 201, "booked", "").await;
    trip.ends(asked, "Closed", "Completed").await;
    trip.trip.comes_back().await;
    booking.answer().await.is(201, "booked");
    trip.trip.was_asked_only(&["/book"]);
    trip.went_one_way("/complete");
    assert_eq!(trip.scene.status(&trip.lra).await, "Closed");
}

pub async fn a_box_that_dies_after_its_cancel_was_decided_answers_as_it_had(world: World) {
    let (mut trip, booking, asked) = Trip::died_after(world, 409, "no seat", "").await;
    trip.ends(asked, "Cancelled", "Compensated").await;
    trip.trip.comes_back().await;
    booking.answer().await.is(409, "no seat");
    trip.trip.was_asked_only(&["/book"]);
    trip.went_one_way("/compensate");
    assert_eq!(trip.scene.status(&trip.lra).await, "Cancelled");
}

pub async fn a_box_that_dies_after_it_closed_a_transaction_without_participants_answers_as_it_had(world: World) {
    let scene = Scene::new(world).await;
    let admin = scene.world.address();
    let mut trip = scene.service_with("trip", |spec| spec.flag("--transaction", "POST /book type=required").flag("--admin", &admin.to_string())).await;
    trip.app.rule(|_| None);
    let booking = scene.client.begin(Call::post("http://trip/book", ""));
    let delivery = trip.app.next().await;
    let lra = delivery.asked.header("long-running-action").to_owned();
    // Nobody is asked for anything at the end, so it is answered at once. That the box does not learn of it, the close has to lie in the log before it is decided, and the box to stand still before it is answered.
    scene.txmgr.signal(Signal::SIGSTOP);
    let calls_in_the_log = async || {
        let metrics = Call::get("http://trip/metrics").send_to(admin).await.unwrap();
        let line = metrics
            .text()
            .lines()
            .find(|line| line.starts_with("bluebox_call_duration_seconds_count") && line.contains("\"out\"") && line.contains("\"append\""));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_else(|| panic!("{metrics:?}"))
    };
    let before = calls_in_the_log().await;
    delivery.answer(201, "booked");
    eventually("the close is in the log", || async { (calls_in_the_log().await > before).then_some(()) }).await;
    trip.proxy.signal(Signal::SIGSTOP);
    scene.txmgr.signal(Signal::SIGCONT);
    scene.becomes(&lra, "Closed").await;
    trip.dies();
    assert!(!booking.has_ended(), "its outcome is not recorded");
    // An app that got the call once more would answer something else.
    trip.app.rule(|_| Some(says(418, "another result")));
    trip.comes_back().await;
    booking.answer().await.is(201, "booked");
    trip.was_asked_only(&["/book"]);
    assert_eq!(scene.status(&lra).await, "Closed");
}

pub async fn a_box_and_the_transaction_manager_die_after_the_decision_and_the_answer_is_kept(world: World) {
    let (mut trip, booking, asked) = Trip::died_after(world, 201, "booked", " compensate=/undo complete=/done").await;
    trip.scene.txmgr.crash().await;
    trip.trip.comes_back().await;
    // It is told before the transaction has ended: the decision is all that it depends on.
    booking.answer().await.is(201, "booked");
    trip.ends(asked, "Closed", "Completed").await;
    // It may have been told before it died, and again.
    let asked = trip.trip.asked();
    assert!(asked[0] == "/book" && asked.len() > 1 && asked[1..].iter().all(|path| path == "/done"), "{asked:?}");
    trip.went_one_way("/complete");
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

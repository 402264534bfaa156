//! A stateful component: each ordinal is one box, and a call reaches exactly the one that it names.

use std::collections::BTreeSet;
use std::time::Duration;

use bluebox_e2e::{App, Call, Proxy, ProxySpec, World, eventually};
use nix::sys::signal::Signal;

/// Ordinals that the component of these tests can have.
const ORDINALS: u32 = 3;

fn ordinal(world: &World, app: &App, number: u32) -> ProxySpec {
    world.proxy("app").flag("--serve", &format!("app={},class=stateful,ordinal={number},partitions={ORDINALS}", app.address()))
}

/// An app and a proxy for each of these ordinals, and a caller that knows them.
async fn system(world: &World, numbers: impl IntoIterator<Item = u32>) -> (Vec<App>, Vec<Proxy>, Proxy) {
    let (mut apps, mut boxes) = (Vec::new(), Vec::new());
    for number in numbers {
        let app = world.app(&format!("app-{number}")).await;
        boxes.push(ordinal(world, &app, number).start().await);
        apps.push(app);
    }
    let shop = world.proxy("shop").start().await;
    shop.knows("app").await;
    (apps, boxes, shop)
}

/// Waits until an ordinal has nothing left to be delivered: a later call to it in a lane of its own has come and gone.
async fn later_call_goes_through(shop: &Proxy, number: u32) {
    let answer = shop.call(Call::post(&format!("http://app-{number}.app/later"), "later")).await;
    answer.is(200, "later");
}

pub async fn a_call_reaches_exactly_the_ordinal_that_it_names(world: World) {
    let (apps, _boxes, shop) = system(&world, 0..ORDINALS).await;
    for app in &apps {
        app.echo();
    }
    for n in 0..4 {
        for number in 0..ORDINALS {
            let target = format!("/{number}/{n}");
            shop.call(Call::post(&format!("http://app-{number}.app{target}"), "x")).await.is(200, "x");
        }
    }
    for (number, app) in (0..).zip(&apps) {
        let asked: Vec<_> = app.ledger();
        assert_eq!(asked.len(), 4, "{asked:?}");
        assert!(asked.iter().all(|a| a.target.starts_with(&format!("/{number}/")) && a.header("host") == format!("app-{number}.app")), "{asked:?}");
    }
}

pub async fn a_key_names_an_ordinal_and_without_one_it_is_any(world: World) {
    let (apps, _boxes, shop) = system(&world, 0..ORDINALS).await;
    for (number, app) in (0..).zip(&apps) {
        app.rule(move |_| Some(http::Response::new(bluebox_e2e::app::content(format!("{number}")))));
    }
    let mut homes = BTreeSet::new();
    for key in 0..8 {
        let mut answers = BTreeSet::new();
        for _ in 0..3 {
            let answer = shop.call(Call::post("http://app/x", "").ordered(&format!("customer-{key}"))).await;
            assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
            answers.insert(answer.text().to_owned());
        }
        assert_eq!(answers.len(), 1, "customer-{key} has one home: {answers:?}");
        homes.extend(answers);
    }
    assert!(homes.len() > 1, "keys spread: {homes:?}");
    let mut any = BTreeSet::new();
    for _ in 0..20 {
        any.insert(shop.call(Call::post("http://app/x", "")).await.text().to_owned());
    }
    assert!(any.len() > 1, "calls without a key spread: {any:?}");
}

pub async fn an_ordinal_that_can_never_be_is_400(world: World) {
    let (_apps, _boxes, shop) = system(&world, [0]).await;
    let answer = shop.call(Call::post(&format!("http://app-{ORDINALS}.app/x"), "")).await;
    let problem = answer.is_problem(400, true);
    assert_eq!(answer.header("bluebox-error"), "no-such-ordinal");
    assert!(problem["detail"].as_str().unwrap().contains("0 to 2"), "{problem}");
}

pub async fn a_call_to_an_ordinal_without_a_box_waits_for_it(world: World) {
    let (mut apps, _boxes, shop) = system(&world, [0]).await;
    let call = shop.begin(Call::post("http://app-2.app/order", "a book"));
    let location = shop.call(Call::post("http://app-2.app/asked-for", "a book").prefer("respond-async")).await.location();
    apps[0].echo();
    later_call_goes_through(&shop, 0).await;
    assert!(!call.has_ended());
    let pending = shop.status(&location).await;
    assert_eq!(pending.header("bluebox-call-state"), "pending", "{pending:?}");
    let app = world.app("app-2").await;
    app.echo();
    let _box = ordinal(&world, &app, 2).start().await;
    call.answer().await.is(200, "a book");
    shop.outcome(&location).await.is(200, "a book");
    assert!(app.ledger().iter().all(|asked| asked.attempt() == 1 && !asked.may_have_started()), "{:?}", app.ledger());
    assert!(apps[0].already().is_none() && apps[0].count("/order") == 0);
}

pub async fn the_box_of_an_ordinal_dies_while_delivering(world: World) {
    let (mut apps, mut boxes, shop) = system(&world, 0..2).await;
    let calls: Vec<_> = (0..4).map(|n| shop.begin(Call::post(&format!("http://app-1.app/{n}"), "a book"))).collect();
    let mut begun = Vec::new();
    for _ in &calls {
        begun.push(apps[1].next().await);
    }
    boxes[1].kill();
    apps[1].kill();
    apps[1].start_again().await;
    boxes[1].start_again().await;
    for _ in &calls {
        let delivery = apps[1].next().await;
        assert!(delivery.asked.may_have_started(), "{:?}", delivery.asked);
        let target = delivery.asked.target.clone();
        delivery.answer(200, target);
    }
    for (n, call) in calls.into_iter().enumerate() {
        call.answer().await.is(200, &format!("/{n}"));
    }
    apps[1].echo();
    later_call_goes_through(&shop, 1).await;
    assert!((0..4).all(|n| apps[1].count(&format!("/{n}")) == 2), "{:?}", apps[1].ledger());
    assert!(apps[0].ledger().is_empty(), "another ordinal was asked: {:?}", apps[0].ledger());
}

pub async fn what_an_ordinal_has_answered_it_is_not_asked_again(world: World) {
    let (mut apps, mut boxes, shop) = system(&world, [0]).await;
    for n in 0..4 {
        let call = shop.begin(Call::post(&format!("http://app-0.app/{n}"), "a book"));
        apps[0].next().await.answer(200, "ordered");
        call.answer().await.is(200, "ordered");
        // At once: what is recorded is not delivered again, whether or not it was committed.
        boxes[0].kill();
        apps[0].kill();
        apps[0].start_again().await;
        boxes[0].start_again().await;
    }
    apps[0].echo();
    later_call_goes_through(&shop, 0).await;
    assert!((0..4).all(|n| apps[0].count(&format!("/{n}")) == 1), "{:?}", apps[0].ledger());
}

pub async fn of_two_processes_with_one_ordinal_the_newer_one_serves_and_the_older_one_ends(world: World) {
    let (mut apps, mut boxes, shop) = system(&world, [0]).await;
    let call = shop.begin(Call::post("http://app-0.app/under-way", "a book"));
    let mut under_way = apps[0].next().await;
    let mut newer_app = world.app("app-0-newer").await;
    let _newer = ordinal(&world, &newer_app, 0).start().await;
    // The older one has the call under way cut off, says why, and ends.
    let ended = boxes[0].ended().await;
    assert!(!ended.success(), "{ended:?}");
    let said = boxes[0].said();
    assert!(said.contains("another process has claimed ordinal 0"), "{said}");
    under_way.closed().await;
    let again = newer_app.next().await;
    assert_eq!((again.asked.target.as_str(), again.asked.may_have_started()), ("/under-way", true));
    again.answer(200, "ordered");
    call.answer().await.is(200, "ordered");
    newer_app.echo();
    for _ in 0..5 {
        later_call_goes_through(&shop, 0).await;
    }
    assert!(apps[0].already().is_none() && apps[0].ledger().len() == 1, "{:?}", apps[0].ledger());
}

pub async fn an_ordinal_that_was_suspended_begins_nothing_after_another_has_taken_over(world: World) {
    let (apps, mut boxes, shop) = system(&world, [0]).await;
    apps[0].echo();
    later_call_goes_through(&shop, 0).await;
    boxes[0].signal(Signal::SIGSTOP);
    let newer_app = world.app("app-0-newer").await;
    newer_app.echo();
    let _newer = ordinal(&world, &newer_app, 0).start().await;
    for n in 0..5 {
        shop.call(Call::post(&format!("http://app-0.app/{n}"), "x")).await.is(200, "x");
    }
    // It wakes up in the middle of calls that it would take for its own.
    let calls: Vec<_> = (5..25).map(|n| shop.begin(Call::post(&format!("http://app-0.app/{n}"), "x"))).collect();
    boxes[0].signal(Signal::SIGCONT);
    for call in calls {
        call.answer().await.is(200, "x");
    }
    assert!(!boxes[0].ended().await.success());
    assert!((0..25).all(|n| newer_app.count(&format!("/{n}")) == 1), "{:?}", newer_app.ledger());
    assert_eq!(apps[0].ledger().len(), 1, "{:?}", apps[0].ledger());
}

pub async fn a_rolling_restart_of_ordinals_duplicates_nothing(world: World) {
    let (apps, mut boxes, shop) = system(&world, 0..2).await;
    for app in &apps {
        app.echo();
    }
    let caller = shop.address();
    let load = tokio::spawn(async move {
        let mut answered = 0;
        for round in 0..40 {
            let calls: Vec<_> = (0..2)
                .flat_map(|number| (0..2).map(move |n| (number, n)))
                .map(|(number, n)| {
                    let target = format!("/{number}/{round}-{n}");
                    let call = Call::post(&format!("http://app-{number}.app{target}"), target.clone()).ordered(&format!("lane-{n}"));
                    (target, bluebox_e2e::Running::start(call, caller))
                })
                .collect();
            for (target, call) in calls {
                call.answer().await.is(200, &target);
                answered += 1;
            }
        }
        answered
    });
    for number in [1, 0, 1, 0] {
        let seen = apps[number].ledger().len();
        eventually("calls come in", || std::future::ready((load.is_finished() || apps[number].ledger().len() > seen).then_some(()))).await;
        assert!(boxes[number].terminate().await.success());
        boxes[number].start_again().await;
    }
    assert_eq!(load.await.unwrap(), 160);
    for (number, app) in apps.iter().enumerate() {
        for asked in app.ledger() {
            assert!(asked.target.starts_with(&format!("/{number}/")), "{asked:?}");
            assert_eq!((app.count(&asked.target), asked.attempt(), asked.may_have_started()), (1, 1, false), "{asked:?}");
        }
    }
}

pub async fn order_within_an_ordinal_survives_its_death(world: World) {
    let (mut apps, mut boxes, shop) = system(&world, [0]).await;
    let mut locations = Vec::new();
    for n in 0..6 {
        let call = Call::post(&format!("http://app-0.app/{n}"), "").ordered("alice").prefer("respond-async");
        locations.push(shop.call(call).await.location());
    }
    for n in 0..6 {
        let delivery = apps[0].next().await;
        assert_eq!(delivery.asked.target, format!("/{n}"));
        let delivery = if n == 2 {
            boxes[0].kill();
            apps[0].kill();
            apps[0].start_again().await;
            boxes[0].start_again().await;
            let again = apps[0].next().await;
            assert_eq!((again.asked.target.as_str(), again.asked.may_have_started()), ("/2", true));
            again
        } else {
            delivery
        };
        assert!(apps[0].already().is_none(), "another call of the lane was begun");
        delivery.answer(200, n.to_string());
    }
    for (n, location) in locations.iter().enumerate() {
        shop.outcome(location).await.is(200, &n.to_string());
    }
}

pub async fn a_key_belongs_to_the_ordinal_and_survives_its_death(world: World) {
    let (apps, mut boxes, shop) = system(&world, 0..2).await;
    for (number, app) in (0..).zip(&apps) {
        app.rule(move |asked| Some(http::Response::new(bluebox_e2e::app::content(format!("{number} {}", asked.text())))));
    }
    let call = |number: u32, body: &'static str| Call::post(&format!("http://app-{number}.app/order"), body).keyed("order-7");
    shop.call(call(0, "a book")).await.is(200, "0 a book");
    shop.call(call(1, "a book")).await.is(200, "1 a book");
    boxes[0].crash().await;
    shop.call(call(0, "a book")).await.is(200, "0 a book");
    shop.call(call(0, "two books")).await.is_problem(422, true);
    assert_eq!((apps[0].count("/order"), apps[1].count("/order")), (1, 1));
}

pub async fn a_call_of_an_ordinal_becomes_a_dead_letter_and_is_replayed_to_it(world: World) {
    let app = world.app("app-1").await;
    let fails = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let failing = fails.clone();
    app.rule(move |_| {
        let status = if failing.load(std::sync::atomic::Ordering::Relaxed) { 500 } else { 200 };
        Some(http::Response::builder().status(status).body(bluebox_e2e::app::content("answered")).unwrap())
    });
    let _box = ordinal(&world, &app, 1).flag("--max-attempts", "2").flag("--retry-on", "500").start().await;
    let shop = world.proxy("shop").start().await;
    shop.knows("app").await;
    let location = shop.call(Call::post("http://app-1.app/order", "a book").prefer("respond-async")).await.location();
    let dead = shop.outcome(&location).await;
    assert_eq!((dead.status.as_u16(), dead.header("bluebox-error")), (502, "attempts"), "{dead:?}");
    fails.store(false, std::sync::atomic::Ordering::Relaxed);
    crate::dead_letters::dlq(&world, &["replay", "--all", "--component", "app"]).await;
    eventually("the last life has ended", || async {
        let answer = shop.status(&location).await;
        (answer.status.as_u16() == 200 && answer.header("bluebox-call-state") == "ended").then_some(())
    })
    .await;
    assert_eq!(app.count("/order"), 3);
}

pub async fn a_caller_that_hangs_up_can_cancel_a_call_to_an_ordinal(world: World) {
    let mut app = world.app("app-0").await;
    let _box = ordinal(&world, &app, 0).start().await;
    let shop = world.proxy("shop").flag("--cancel-on-disconnect", "true").start().await;
    shop.knows("app").await;
    let call = shop.begin(Call::post("http://app-0.app/order", "a book"));
    let mut delivery = app.next().await;
    call.hang_up().await;
    delivery.closed().await;
    app.echo();
    later_call_goes_through(&shop, 0).await;
    assert!(app.next_within(Duration::from_millis(100)).await.is_none());
    assert_eq!(app.count("/order"), 1);
}

pub async fn what_does_not_go_together_ends_with_a_clear_error(world: World) {
    let (apps, _boxes, _shop) = system(&world, [0]).await;
    // First writer wins, and the loser says why it won't start.
    let service = format!("app={},partitions={ORDINALS}", apps[0].address());
    let more = format!("app={},class=stateful,ordinal=3,partitions=4", apps[0].address());
    for (serve, says) in [(service, "registered as Stateful"), (more, "partitions")] {
        let (status, said) = world.proxy("app").flag("--serve", &serve).ends().await;
        assert!(!status.success() && said.contains(says), "{serve}: {said}");
    }
}

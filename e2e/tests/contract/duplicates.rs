//! Who gets a call twice: nobody when boxes come and go in good order; and a zombie begins nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bluebox_e2e::app::content;
use bluebox_e2e::{Call, World, eventually};
use http::Response;
use nix::sys::signal::Signal;

use crate::common::{cart, later_calls_go_through};

pub async fn a_rolling_restart_under_load_loses_and_duplicates_nothing(world: World) {
    let mut boxes = Vec::new();
    let mut apps = Vec::new();
    for n in 0..2 {
        let app = world.app(&format!("cart-{n}")).await;
        app.echo();
        boxes.push(cart(&world, &app, &[]).await);
        apps.push(app);
    }
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (stop, sent, address) = (stop.clone(), sent.clone(), shop.address());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let answer = Call::post(&format!("http://cart/{caller}-{n}"), format!("{n}")).send_to(address).await.unwrap();
                    answer.is(200, &format!("{n}"));
                    sent.fetch_add(1, Ordering::Relaxed);
                    n += 1;
                }
                n
            })
        })
        .collect();
    let more = async |than: u32| {
        let from = sent.load(Ordering::Relaxed);
        eventually("calls go through", || std::future::ready((sent.load(Ordering::Relaxed) >= from + than).then_some(()))).await;
    };
    for _ in 0..2 {
        for one in &mut boxes {
            more(50).await;
            assert!(one.terminate().await.success());
            more(50).await;
            one.start_again().await;
        }
    }
    more(50).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for (caller, sender) in callers.into_iter().enumerate() {
        let many = sender.await.unwrap();
        all.extend((0..many).map(|n| format!("/{caller}-{n}")));
    }
    for target in &all {
        let asked: Vec<_> = apps.iter().flat_map(|app| app.ledger()).filter(|asked| asked.target == *target).collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].attempt(), asked[0].may_have_started()), (1, false), "{asked:?}");
    }
}

pub async fn a_box_that_ends_in_good_order_finishes_what_is_under_way(world: World) {
    let mut first_app = world.app("cart-first").await;
    let mut first = cart(&world, &first_app, &[]).await;
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    let calls: Vec<_> = (0..4).map(|n| shop.begin(Call::post(&format!("http://cart/{n}"), ""))).collect();
    let mut begun = Vec::new();
    for _ in 0..4 {
        begun.push(first_app.next().await);
    }
    let second_app = world.app("cart-second").await;
    second_app.echo();
    let _second = cart(&world, &second_app, &[]).await;
    let ending = first.terminate();
    let answering = async {
        // New calls go to the other box, once it has a partition.
        tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>()).await.unwrap_err();
        for delivery in begun {
            delivery.answer(200, "done");
        }
    };
    let (status, ()) = tokio::join!(ending, answering);
    assert!(status.success(), "{status}");
    for call in calls {
        call.answer().await.is(200, "done");
    }
    later_calls_go_through(&shop, &[&second_app]).await;
    assert!(second_app.ledger().iter().all(|asked| asked.target == "/later"), "{:?}", second_app.ledger());
    assert_eq!(first_app.ledger().len(), 4);
}

pub async fn what_outlasts_the_drain_is_delivered_again_and_marked(world: World) {
    let mut app = world.app("cart").await;
    let mut first = cart(&world, &app, &[("--drain", "1s")]).await;
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    let call = shop.begin(Call::post("http://cart/slow", ""));
    let mut delivery = app.next().await;
    let (status, ()) = tokio::join!(first.terminate(), delivery.closed());
    assert!(status.success(), "{status}");
    first.start_again().await;
    let again = app.next().await;
    assert_eq!((again.asked.attempt(), again.asked.may_have_started()), (2, true));
    again.answer(200, "done");
    call.answer().await.is(200, "done");
}

pub async fn scaling_up_duplicates_nothing(world: World) {
    let mut first_app = world.app("cart-first").await;
    let _first = cart(&world, &first_app, &[]).await;
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    let calls: Vec<_> = (0..8).map(|n| shop.begin(Call::post(&format!("http://cart/{n}"), ""))).collect();
    let mut begun = Vec::new();
    for _ in 0..8 {
        begun.push(first_app.next().await);
    }
    let second_app = world.app("cart-second").await;
    second_app.echo();
    let second = cart(&world, &second_app, &[]).await;
    // The second asks for a partition; the first keeps it until its deliveries there have ended.
    second.knows("cart").await;
    for delivery in begun {
        assert!(!delivery.asked.may_have_started());
        delivery.answer(200, "first");
    }
    for call in calls {
        call.answer().await.is(200, "first");
    }
    first_app.echo();
    eventually("the second box gets calls", || async {
        shop.call(Call::post("http://cart/more", "x")).await.is(200, "x");
        (second_app.count("/more") > 0).then_some(())
    })
    .await;
    assert!((0..8).all(|n| second_app.count(&format!("/{n}")) == 0));
    for asked in first_app.ledger().iter().chain(&second_app.ledger()) {
        assert_eq!((asked.attempt(), asked.may_have_started()), (1, false), "{asked:?}");
    }
}

pub async fn a_zombie_begins_no_delivery(world: World) {
    let mut zombie_app = world.app("cart-zombie").await;
    let zombie = cart(&world, &zombie_app, &[("--concurrency", "2")]).await;
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    // Two are under way, and more are waiting in the box.
    let mut calls: Vec<_> = (0..2).map(|n| shop.begin(Call::post(&format!("http://cart/{n}"), ""))).collect();
    let under_way = [zombie_app.next().await, zombie_app.next().await];
    for n in 2..8 {
        let accepted = shop.call(Call::post(&format!("http://cart/{n}"), "").prefer("respond-async, wait=0")).await;
        assert_eq!(accepted.status.as_u16(), 202);
        calls.push(shop.begin(Call::get(&accepted.location())));
    }
    zombie.signal(Signal::SIGSTOP);
    let other_app = world.app("cart-other").await;
    other_app.rule(|asked| Some(Response::new(content(asked.target.clone()))));
    let _other = cart(&world, &other_app, &[]).await;
    eventually("the other took over", || std::future::ready((0..8).all(|n| other_app.count(&format!("/{n}")) == 1).then_some(()))).await;
    // The zombie wakes up, gets its answers, and has room for more.
    let before = zombie_app.ledger().len();
    let woken = Instant::now();
    zombie.signal(Signal::SIGCONT);
    for delivery in under_way {
        delivery.answer(200, "from the dead");
    }
    later_calls_go_through(&shop, &[&zombie_app, &other_app]).await;
    let begun: Vec<_> = zombie_app.ledger()[before..].iter().filter(|asked| asked.target != "/later" && asked.at > woken).cloned().collect();
    assert!(begun.is_empty(), "the zombie began {begun:?}");
    for (n, call) in calls.into_iter().take(2).enumerate() {
        // The first outcome counts, and that is not the zombie's.
        call.answer().await.is(200, &format!("/{n}"));
    }
    assert!((0..8).all(|n| other_app.count(&format!("/{n}")) == 1), "{:?}", other_app.ledger());
}

pub async fn many_crashes_under_load_lose_nothing(world: World) {
    let mut boxes = Vec::new();
    let mut apps = Vec::new();
    for n in 0..2 {
        let app = world.app(&format!("cart-{n}")).await;
        app.echo();
        boxes.push(cart(&world, &app, &[]).await);
        apps.push(app);
    }
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    let sending: Vec<_> = (0..4)
        .map(|caller| {
            let address = shop.address();
            tokio::spawn(async move {
                for n in 0..40 {
                    Call::post(&format!("http://cart/{caller}-{n}"), format!("{n}")).send_to(address).await.unwrap().is(200, &format!("{n}"));
                }
            })
        })
        .collect();
    for round in 1..=4 {
        eventually("calls go through", || std::future::ready((apps.iter().map(|app| app.ledger().len()).sum::<usize>() > 25 * round).then_some(()))).await;
        let index = round % 2;
        boxes[index].kill();
        apps[index].kill();
        apps[index].start_again().await;
        boxes[index].start_again().await;
    }
    for sender in sending {
        bluebox_e2e::within(Duration::from_secs(60), "all calls have ended", sender).await.unwrap();
    }
    let ledger: Vec<_> = apps.iter().flat_map(|app| app.ledger()).collect();
    for target in (0..4).flat_map(|caller| (0..40).map(move |n| format!("/{caller}-{n}"))) {
        let asked: Vec<_> = ledger.iter().filter(|asked| asked.target == target).collect();
        assert!(!asked.is_empty(), "{target} was lost");
        // A second delivery says that it is one.
        assert!(asked.iter().filter(|asked| !asked.may_have_started()).count() <= 1, "{asked:?}");
    }
}

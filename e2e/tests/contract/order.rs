//! Calls with the same ordering key are delivered in log order, one at a time; all others are concurrent.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use bluebox_e2e::{App, Call, Proxy, World, eventually};

use crate::common::{cart, later_calls_go_through, shop, was_delivered};

/// Sends calls of one lane, each accepted before the next is sent, and gives their status resources.
async fn lane(shop: &Proxy, key: &str, numbers: std::ops::Range<u32>) -> Vec<String> {
    let mut locations = Vec::new();
    for n in numbers {
        let accepted = shop.call(Call::post(&format!("http://cart/{key}/{n}"), "").ordered(key).prefer("respond-async")).await;
        assert_eq!(accepted.status.as_u16(), 202, "{accepted:?}");
        locations.push(accepted.location());
    }
    locations
}

/// The numbers of a lane in the order in which they were first asked for.
fn first_deliveries(apps: &[&App], key: &str) -> Vec<u32> {
    let mut asked: Vec<_> = apps.iter().flat_map(|app| app.ledger()).collect();
    asked.sort_by_key(|asked| asked.at);
    let mut numbers = Vec::new();
    for one in asked {
        if let Some(n) = one.target.strip_prefix(&format!("/{key}/")) {
            let n = n.parse().unwrap();
            if !numbers.contains(&n) {
                numbers.push(n);
            }
        }
    }
    numbers
}

pub async fn one_at_a_time_in_log_order(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let locations = lane(&shop, "alice", 0..5).await;
    for n in 0..5 {
        let delivery = app.next().await;
        assert_eq!(delivery.asked.target, format!("/alice/{n}"));
        if n == 2 {
            // A failed attempt holds its lane, and its lane only.
            delivery.cut();
            let again = app.next().await;
            assert_eq!((again.asked.target.as_str(), again.asked.attempt()), ("/alice/2", 2));
            later_calls_go_through(&shop, &[&app]).await;
            assert!(app.already().is_none(), "another call of the lane was begun");
            again.answer(200, "");
        } else {
            later_calls_go_through(&shop, &[&app]).await;
            assert!(app.already().is_none(), "another call of the lane was begun");
            delivery.answer(200, "");
        }
    }
    for location in locations {
        shop.outcome(&location).await.is(200, "");
    }
}

pub async fn lanes_do_not_hold_each_other_up(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let mut stuck = Vec::new();
    for key in 0..8 {
        let call = shop.begin(Call::post("http://cart/stuck", "").ordered(&format!("stuck-{key}")));
        let delivery = app.next().await;
        stuck.push((call, delivery));
    }
    // All of them wait at the app, and every partition goes on, with keys and without.
    later_calls_go_through(&shop, &[&app]).await;
    for key in 0..8 {
        shop.call(Call::post("http://cart/later", "").ordered(&format!("free-{key}"))).await.is(200, "later");
    }
    for (call, delivery) in stuck {
        delivery.answer(200, "at last");
        call.answer().await.is(200, "at last");
    }
}

pub async fn order_survives_the_death_of_the_box(world: World) {
    let (mut app, mut cart_box, shop) = shop(&world, &[]).await;
    let locations = lane(&shop, "alice", 0..6).await;
    for n in 0..2 {
        let delivery = app.next().await;
        assert_eq!(delivery.asked.target, format!("/alice/{n}"));
        delivery.answer(200, "");
    }
    let third = app.next().await;
    assert_eq!(third.asked.target, "/alice/2");
    let other_app = world.app("cart-other").await;
    other_app.echo();
    cart_box.kill();
    app.kill();
    let _other = cart(&world, &other_app, &[]).await;
    for location in locations {
        shop.outcome(&location).await.is(200, "");
    }
    assert_eq!(first_deliveries(&[&other_app], "alice").first(), Some(&2), "{:?}", other_app.ledger());
    assert_eq!(first_deliveries(&[&app, &other_app], "alice"), (0..6).collect::<Vec<_>>());
    was_delivered(&shop, &other_app, "/alice/0", 0).await;
}

pub async fn a_parked_lane_keeps_its_order_and_loses_nothing(world: World) {
    let (mut app, mut cart_box, shop) = shop(&world, &[("--wait", "2m")]).await;
    let mut locations = lane(&shop, "stuck", 0..4).await;
    let first = app.next().await;
    assert_eq!(first.asked.target, "/stuck/0");
    app.rule(|asked| (!asked.target.starts_with("/stuck")).then(|| http::Response::new(bluebox_e2e::app::content("later"))));
    // Longer than a lane may wait before it is parked; the others flow all the while.
    let parked = tokio::time::Instant::now() + Duration::from_secs(13);
    let mut flowed = 0;
    while tokio::time::Instant::now() < parked {
        shop.call(Call::post("http://cart/flows", flowed.to_string())).await.is(200, "later");
        flowed += 1;
    }
    assert!(flowed > 20, "only {flowed} others got through");
    // Later calls of the lane follow it.
    locations.extend(lane(&shop, "stuck", 4..8).await);
    assert!(app.already().is_none());
    let other_app = world.app("cart-other").await;
    other_app.echo();
    cart_box.kill();
    app.kill();
    let mut other = cart(&world, &other_app, &[]).await;
    for location in &locations {
        shop.outcome(location).await.is(200, "");
    }
    assert_eq!(first_deliveries(&[&other_app], "stuck"), (0..8).collect::<Vec<_>>());
    // Nothing of it comes back with the next owner.
    let seen = other_app.ledger().len();
    other.crash().await;
    later_calls_go_through(&shop, &[&other_app]).await;
    assert!(other_app.ledger()[seen..].iter().all(|asked| asked.target == "/later"));
}

pub async fn many_lanes_under_load_with_a_crash_in_between(world: World) {
    let (app, mut cart_box, shop) = shop(&world, &[]).await;
    app.echo();
    let keys: Vec<_> = (0..10).map(|key| format!("k{key}")).collect();
    let sending = async {
        let lanes: Vec<_> = keys.iter().map(|key| lane(&shop, key, 0..20)).collect();
        let mut locations = Vec::new();
        for lane in join_all(lanes).await {
            locations.extend(lane);
        }
        locations
    };
    let killing = async {
        eventually("it is under way", || std::future::ready((app.ledger().len() > 30).then_some(()))).await;
        cart_box.crash().await;
    };
    let (locations, ()) = tokio::join!(sending, killing);
    for location in locations {
        shop.outcome(&location).await.is(200, "");
    }
    for key in &keys {
        // Whatever was delivered twice: it never came after a later one had begun.
        let mut furthest: BTreeMap<&str, u32> = BTreeMap::new();
        let asked = app.ledger();
        for one in &asked {
            if let Some(n) = one.target.strip_prefix(&format!("/{key}/")) {
                let n: u32 = n.parse().unwrap();
                let last = furthest.entry(key).or_insert(0);
                assert!(n == *last || n == *last + 1, "{key}: {n} after {last}");
                *last = n;
            }
        }
        assert_eq!(first_deliveries(&[&app], key), (0..20).collect::<Vec<_>>());
    }
}

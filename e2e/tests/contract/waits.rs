//! What a caller sees that can't have an answer now: 503 when nothing was accepted, 504 when nothing is known yet; and who hangs up.

use std::time::Duration;

use bluebox_e2e::{Call, World, eventually};

use crate::common::{later_calls_go_through, shop, was_delivered};

pub async fn no_outcome_within_the_wait_is_504_and_the_outcome_comes_later(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let answer = shop.begin(Call::post("http://cart/order", "a book").prefer("wait=1"));
    let delivery = app.next().await;
    let answer = answer.answer().await;
    let document = answer.is_problem(504, false);
    assert!(answer.took >= Duration::from_millis(950) && answer.took < Duration::from_secs(10), "{:?}", answer.took);
    assert_eq!(document["call"], delivery.asked.header("bluebox-call-id"));
    assert_eq!(document["call"], answer.header("bluebox-call-id"));
    delivery.answer(200, "ordered");
    // The proxy never appends again by itself.
    was_delivered(&shop, &app, "/order", 1).await;
}

pub async fn the_wait_can_be_configured(world: World) {
    let (mut app, _cart, _shop) = shop(&world, &[]).await;
    let brief = world.proxy("brief").flag("--wait", "1s").start().await;
    brief.knows("cart").await;
    let call = brief.begin(Call::post("http://cart/order", "a book"));
    let delivery = app.next().await;
    call.answer().await.is_problem(504, false);
    drop(delivery);
}

pub async fn after_504_the_key_finds_the_outcome(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let order = || Call::post("http://cart/order", "a book").keyed("k");
    let call = shop.begin(order().prefer("wait=1"));
    let delivery = app.next().await;
    let late = call.answer().await;
    // Sending it again can't make two of it: it has a key.
    late.is_problem(504, true);
    delivery.answer(200, "ordered");
    shop.call(order()).await.is(200, "ordered");
    assert_eq!(app.count("/order"), 1);
    // What was recorded can be asked for.
    if late.headers.contains_key("location") {
        shop.outcome(&late.location()).await.is(200, "ordered");
    }
}

pub async fn a_caller_that_hangs_up_does_not_end_the_call(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    app.next().await.cut();
    call.hang_up().await;
    let delivery = app.next().await;
    assert_eq!(delivery.asked.attempt(), 2);
    delivery.answer(200, "ordered");
    was_delivered(&shop, &app, "/order", 2).await;
}

pub async fn where_it_is_wanted_a_caller_that_hangs_up_cancels(world: World) {
    let (mut app, _cart, _shop) = shop(&world, &[]).await;
    let shop = world.proxy("hasty").flag("--cancel-on-disconnect", "true").start().await;
    shop.knows("cart").await;
    // Under way: the connection to the app is closed, and it is not delivered again.
    let call = shop.begin(Call::post("http://cart/under-way", "a book"));
    let mut delivery = app.next().await;
    call.hang_up().await;
    delivery.closed().await;
    was_delivered(&shop, &app, "/under-way", 1).await;
}

pub async fn a_call_that_is_cancelled_before_anybody_took_it_is_never_begun(world: World) {
    let (mut app, mut cart, _shop) = shop(&world, &[]).await;
    let shop = world.proxy("hasty").flag("--cancel-on-disconnect", "true").start().await;
    shop.knows("cart").await;
    cart.kill();
    let cancelled = shop.begin(Call::post("http://cart/cancelled", "a book"));
    let location = shop.call(Call::post("http://cart/stays", "a book").prefer("respond-async")).await.location();
    cancelled.hang_up().await;
    cart.start_again().await;
    let delivery = app.next().await;
    assert_eq!(delivery.asked.target, "/stays");
    delivery.answer(200, "here");
    shop.outcome(&location).await.is(200, "here");
    was_delivered(&shop, &app, "/cancelled", 0).await;
}

pub async fn old_reads_are_not_replayed(world: World) {
    let (mut app, mut cart, shop) = shop(&world, &[]).await;
    cart.kill();
    let read = shop.begin(Call::get("http://cart/read").prefer("wait=1"));
    let head = shop.begin(Call::new(http::Method::HEAD, "http://cart/head").prefer("wait=1"));
    let options = shop.begin(Call::new(http::Method::OPTIONS, "http://cart/options").prefer("wait=1"));
    let write = shop.begin(Call::post("http://cart/write", "x").prefer("wait=1"));
    // Somebody can ask for these later.
    let keyed = shop.begin(Call::get("http://cart/keyed").keyed("k").prefer("wait=1"));
    let later = shop.call(Call::get("http://cart/asked-for").prefer("respond-async")).await.location();
    // What has no effect, or a key, can be sent again without making two of it.
    for (call, retry_safe) in [(read, true), (options, true), (write, false), (keyed, true)] {
        call.answer().await.is_problem(504, retry_safe);
    }
    assert_eq!(head.answer().await.status.as_u16(), 504);
    app.echo();
    cart.start_again().await;
    assert_eq!(shop.outcome(&later).await.status.as_u16(), 200);
    eventually("what can be asked for is delivered", || std::future::ready((app.count("/write") == 1 && app.count("/keyed") == 1).then_some(()))).await;
    later_calls_go_through(&shop, &[&app]).await;
    for old in ["/read", "/head", "/options"] {
        assert_eq!(app.count(old), 0, "{old} was replayed");
    }
    assert!(app.already().is_none());
}

pub async fn the_deadline_makes_a_dead_letter(world: World) {
    let (app, mut cart, _shop) = shop(&world, &[]).await;
    let brief = world.proxy("brief").flag("--ttl", "1s").start().await;
    brief.knows("cart").await;
    cart.kill();
    let call = brief.begin(Call::post("http://cart/order", "a book"));
    let location = brief.call(Call::post("http://cart/order", "a book").prefer("respond-async")).await.location();
    bluebox_e2e::within(Duration::from_secs(10), "the deadline passes", tokio::time::sleep(Duration::from_millis(1200))).await;
    cart.start_again().await;
    call.answer().await.is_problem(502, false);
    brief.outcome(&location).await.is_problem(502, false);
    was_delivered(&brief, &app, "/order", 0).await;
}

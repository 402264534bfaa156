//! Recorded calls: a retry finds its call again, from anywhere, and so does who asks later.

use bluebox_e2e::{Answer, Call, World};

use crate::common::{cart, later_calls_go_through, shop, was_delivered};

pub async fn a_retry_joins_the_call_while_it_runs_from_another_replica_too(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let other = world.proxy("shop").start().await;
    other.knows("cart").await;
    let order = || Call::post("http://cart/order", "a book").keyed("order-1");
    let first = shop.begin(order());
    let delivery = app.next().await;
    let calls = [shop.begin(order()), other.begin(order()), first];
    // The call goes on, and the retries are no calls of their own.
    let another = shop.begin(Call::post("http://cart/another", ""));
    let next = app.next().await;
    assert_eq!(next.asked.target, "/another");
    next.answer(200, "");
    another.answer().await.is(200, "");
    delivery.answer(201, "ordered");
    for call in calls {
        call.answer().await.is(201, "ordered");
    }
    was_delivered(&shop, &app, "/order", 1).await;
}

pub async fn a_retry_after_the_end_gets_the_outcome(world: World) {
    let (mut app, mut cart, shop) = shop(&world, &[]).await;
    let order = || Call::post("http://cart/order", "a book").keyed("order-1");
    let call = shop.begin(order());
    app.next().await.answer(500, "no luck");
    call.answer().await.is(500, "no luck");
    let other = world.proxy("shop").start().await;
    other.knows("cart").await;
    other.call(order()).await.is(500, "no luck");
    // The memory is in the log, not in the box.
    cart.crash().await;
    shop.call(order()).await.is(500, "no luck");
    assert!(cart.terminate().await.success());
    cart.start_again().await;
    other.call(order()).await.is(500, "no luck");
    was_delivered(&shop, &app, "/order", 1).await;
}

pub async fn a_retry_finds_the_call_of_a_caller_that_was_killed(world: World) {
    let (mut app, _cart, mut shop) = shop(&world, &[]).await;
    let order = || Call::post("http://cart/order", "a book").keyed("order-1");
    let call = shop.begin(order());
    let delivery = app.next().await;
    shop.kill();
    assert!(call.end().await.is_err());
    shop.start_again().await;
    shop.knows("cart").await;
    let retry = shop.begin(order());
    delivery.answer(200, "ordered");
    retry.answer().await.is(200, "ordered");
    was_delivered(&shop, &app, "/order", 1).await;
}

pub async fn a_key_with_another_request_is_422(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/order", "a book").keyed("k"));
    let delivery = app.next().await;
    let others = || {
        [
            Call::post("http://cart/order", "two books").keyed("k"),
            Call::post("http://cart/order?x", "a book").keyed("k"),
            Call::new(http::Method::PUT, "http://cart/order").body("a book").keyed("k"),
        ]
    };
    let at_once = others().map(|other| shop.begin(other));
    let another = world.proxy("shop").start().await;
    another.knows("cart").await;
    let elsewhere = others().map(|other| another.begin(other));
    let retry = another.begin(Call::post("http://cart/order", "a book").keyed("k"));
    // All of them are on their way before the first is answered.
    later_calls_go_through(&another, &[&app]).await;
    delivery.answer(200, "ordered");
    call.answer().await.is(200, "ordered");
    retry.answer().await.is(200, "ordered");
    for refused in at_once.into_iter().chain(elsewhere) {
        refused.answer().await.is_problem(422, true);
    }
    for other in others() {
        shop.call(other).await.is_problem(422, true);
    }
    // Other fields are nobody's business: a client's retry may have another trace id.
    shop.call(Call::post("http://cart/order", "a book").keyed("k").with("traceparent", "x").with("authorization", "y")).await.is(200, "ordered");
    assert_eq!(app.count("/order") + app.count("/order?x"), 1);
}

pub async fn at_a_gateway_authorization_and_cookie_count(world: World) {
    let mut app = world.app("cart").await;
    let _cart = cart(&world, &app, &[]).await;
    let gateway = world.proxy("edge").flag("--shared-by-callers", "true").start().await;
    gateway.knows("cart").await;
    let order = || Call::post("http://cart/order", "a book").keyed("k");
    let strangers = || {
        [
            order(),
            order().with("authorization", "Bearer alice"),
            order().with("authorization", "Bearer mallory").with("cookie", "session=1"),
            order().with("authorization", "Bearer alice").with("cookie", "session=2"),
        ]
    };
    let call = gateway.begin(order().with("authorization", "Bearer alice").with("cookie", "session=1"));
    let delivery = app.next().await;
    let meanwhile = strangers().map(|stranger| gateway.begin(stranger));
    later_calls_go_through(&gateway, &[&app]).await;
    delivery.answer(200, "for alice");
    call.answer().await.is(200, "for alice");
    let afterwards = strangers().map(|stranger| gateway.begin(stranger));
    for stranger in meanwhile.into_iter().chain(afterwards) {
        let answer = stranger.answer().await;
        answer.is_problem(422, true);
        assert!(!answer.text().contains("for alice"));
    }
    gateway.call(order().with("authorization", "Bearer alice").with("cookie", "session=1")).await.is(200, "for alice");
    assert_eq!(app.count("/order"), 1);
}

pub async fn two_callers_and_two_callees_share_no_key(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let mut stock_app = world.app("stock").await;
    let stock = world.proxy("stock").serves("stock", &stock_app, 2).start().await;
    stock.knows("cart").await;
    shop.knows("stock").await;
    let calls = [
        shop.begin(Call::post("http://cart/a", "x").keyed("k")),
        stock.begin(Call::post("http://cart/a", "x").keyed("k")),
        shop.begin(Call::post("http://stock/a", "x").keyed("k")),
        shop.begin(Call::post("http://cart/a", "x").keyed("k").ordered("lane")),
    ];
    for _ in 0..3 {
        app.next().await.answer(200, "cart");
    }
    stock_app.next().await.answer(200, "stock");
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.answer().await.text().to_owned());
    }
    assert_eq!(answers, ["cart", "cart", "stock", "cart"]);
}

pub async fn respond_async_says_202_with_a_location_that_tells_how_it_ends(world: World) {
    let (mut app, mut cart, mut shop) = shop(&world, &[]).await;
    let accepted = shop.call(Call::post("http://cart/order", "a book").prefer("respond-async")).await;
    assert_eq!(accepted.status.as_u16(), 202, "{accepted:?}");
    assert!(accepted.header("preference-applied").contains("respond-async"), "{accepted:?}");
    let location = accepted.location();
    let delivery = app.next().await;
    let elsewhere = world.proxy("elsewhere").start().await;
    let is_pending = |answer: Answer| {
        assert_eq!((answer.status.as_u16(), answer.header("bluebox-call-state")), (200, "pending"), "{answer:?}");
        assert_ne!(answer.header("retry-after"), "");
    };
    is_pending(shop.status(&location).await);
    is_pending(elsewhere.status(&location).await);
    // It is still there when the caller's proxy is not, and after that came back.
    shop.kill();
    is_pending(elsewhere.status(&location).await);
    shop.start_again().await;
    is_pending(shop.status(&location).await);
    delivery.answer(418, "short and stout");
    for proxy in [&shop, &elsewhere] {
        let ended = proxy.outcome(&location).await;
        ended.is(418, "short and stout");
        assert_eq!(ended.header("bluebox-call-state"), "ended");
    }
    // And with nobody who serves the cart.
    cart.kill();
    elsewhere.outcome(&location).await.is(418, "short and stout");
    shop.outcome(&location).await.is(418, "short and stout");
}

pub async fn respond_async_with_a_wait_answers_when_it_is_quick_enough(world: World) {
    let (app, _cart, shop) = shop(&world, &[]).await;
    app.echo();
    shop.call(Call::post("http://cart/order", "quick").prefer("respond-async, wait=20")).await.is(200, "quick");
}

pub async fn accepted_comes_before_the_answer_and_not_before_acceptance(world: World) {
    let mut world = world;
    let (mut app, mut cart, shop) = shop(&world, &[]).await;
    cart.kill();
    // There is nobody to deliver it, and still it is accepted.
    let location = shop.call(Call::post("http://cart/order", "a book").prefer("respond-async")).await.location();
    if world.log() == bluebox_e2e::LogKind::Embedded {
        world.kill_log();
        let refused = shop.call(Call::post("http://cart/order2", "a book").prefer("respond-async")).await;
        assert_ne!(refused.status.as_u16(), 202, "nothing can accept it");
        world.start_log().await;
    }
    cart.start_again().await;
    let delivery = app.next().await;
    assert_eq!((delivery.asked.target.as_str(), delivery.asked.attempt()), ("/order", 1));
    delivery.answer(200, "ordered");
    shop.outcome(&location).await.is(200, "ordered");
}

pub async fn a_location_is_asked_for_with_care(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let location = shop.call(Call::post("http://cart/order", "a book").prefer("respond-async")).await.location();
    app.next().await.answer(200, "ordered");
    shop.outcome(&location).await.is(200, "ordered");
    let cut = &location[..location.len() - 5];
    for broken in [format!("{location}x"), cut.to_owned(), location.replace("calls/", "calls/%00"), format!("{location}/x")] {
        shop.call(Call::get(&broken)).await.is_problem(400, true);
    }
    shop.call(Call::post(&location, "x")).await.is_problem(405, true);
    let head = shop.call(Call::new(http::Method::HEAD, &location)).await;
    assert_eq!((head.status.as_u16(), head.text()), (200, ""));
}

pub async fn past_the_retention_it_is_gone(world: World) {
    let mut app = world.app("cart").await;
    let _cart = cart(&world, &app, &[]).await;
    let brief = [("--ttl", "1s"), ("--keep-calls", "2s"), ("--keep-replies", "3s"), ("--keep-recorded", "1s")];
    let shop = brief.iter().fold(world.proxy("shop"), |spec, (name, value)| spec.flag(name, value)).start().await;
    shop.knows("cart").await;
    let location = shop.call(Call::post("http://cart/order", "a book").prefer("respond-async")).await.location();
    app.next().await.answer(200, "ordered");
    bluebox_e2e::eventually("the call is gone", || async {
        let answer = shop.call(Call::get(&location)).await;
        (answer.status.as_u16() == 410).then(|| answer.is_problem(410, true))
    })
    .await;
}

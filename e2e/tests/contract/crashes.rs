//! SIGKILL of the app and of the proxy, on both sides, at each point of a call's way.

use std::process::{Command, Stdio};

use bluebox_e2e::{Call, Process, World, eventually};

use crate::common::{cart, later_calls_go_through, shop, was_delivered};

/// A caller that is a process: curl, as it is.
fn curl(world: &World, name: &str, proxy: std::net::SocketAddr, arguments: &[&str]) -> Process {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--proxy", &format!("http://{proxy}")]).args(arguments).stderr(Stdio::inherit());
    Process::start(name, command, world.directory())
}

pub async fn the_callees_app_dies_while_delivering(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    let mut first = app.next().await;
    app.kill();
    first.closed().await;
    app.start_again().await;
    let second = app.next().await;
    assert_eq!((second.asked.attempt(), second.asked.may_have_started(), second.asked.text()), (2, true, "a book"));
    assert_eq!(second.asked.header("bluebox-call-id"), first.asked.header("bluebox-call-id"));
    second.answer(200, "ordered");
    call.answer().await.is(200, "ordered");
    was_delivered(&shop, &app, "/order", 2).await;
}

pub async fn the_callees_proxy_dies_while_delivering(world: World) {
    let (mut app, mut cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    let mut first = app.next().await;
    cart.kill();
    first.closed().await;
    cart.start_again().await;
    let second = app.next().await;
    // Nobody is left who knows for certain how often it was begun: that it may have been is what counts.
    assert_eq!((second.asked.may_have_started(), second.asked.text()), (true, "a book"));
    assert_eq!(second.asked.header("bluebox-call-id"), first.asked.header("bluebox-call-id"));
    second.answer(200, "ordered");
    call.answer().await.is(200, "ordered");
    was_delivered(&shop, &app, "/order", 2).await;
}

pub async fn the_callees_box_dies_while_delivering_and_another_takes_over(world: World) {
    let (mut app, mut first_box, shop) = shop(&world, &[]).await;
    let calls: Vec<_> = (0..6).map(|n| shop.begin(Call::post(&format!("http://cart/{n}"), "a book"))).collect();
    let mut begun = Vec::new();
    for _ in 0..calls.len() {
        begun.push(app.next().await);
    }
    let mut other_app = world.app("cart-other").await;
    first_box.kill();
    app.kill();
    let _other_box = cart(&world, &other_app, &[]).await;
    for _ in 0..calls.len() {
        let delivery = other_app.next().await;
        assert!(delivery.asked.may_have_started(), "{:?}", delivery.asked);
        let target = delivery.asked.target.clone();
        delivery.answer(200, target);
    }
    for (n, call) in calls.into_iter().enumerate() {
        call.answer().await.is(200, &format!("/{n}"));
    }
    later_calls_go_through(&shop, &[&other_app]).await;
    assert!((0..6).all(|n| other_app.count(&format!("/{n}")) == 1), "{:?}", other_app.ledger());
}

pub async fn the_callees_box_dies_after_the_answer(world: World) {
    let (mut app, mut cart_box, shop) = shop(&world, &[]).await;
    for n in 0..5 {
        let target = format!("/{n}");
        let call = shop.begin(Call::post(&format!("http://cart{target}"), "a book"));
        app.next().await.answer(200, "ordered");
        call.answer().await.is(200, "ordered");
        // At once: what is recorded is not delivered again, whether or not its offset was committed.
        cart_box.kill();
        app.kill();
        app.start_again().await;
        cart_box.start_again().await;
    }
    later_calls_go_through(&shop, &[&app]).await;
    assert!((0..5).all(|n| app.count(&format!("/{n}")) == 1), "{:?}", app.ledger());
}

pub async fn the_callees_box_is_not_there_when_the_call_is_accepted(world: World) {
    let (mut app, mut cart_box, shop) = shop(&world, &[]).await;
    cart_box.kill();
    app.kill();
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    let location = shop.call(Call::post("http://cart/later-asked", "a book").prefer("respond-async")).await.location();
    app.start_again().await;
    cart_box.start_again().await;
    for _ in 0..2 {
        let delivery = app.next().await;
        assert_eq!(delivery.asked.attempt(), 1);
        delivery.answer(200, "ordered");
    }
    call.answer().await.is(200, "ordered");
    shop.outcome(&location).await.is(200, "ordered");
    was_delivered(&shop, &app, "/order", 1).await;
}

pub async fn an_app_that_is_away_costs_no_attempt(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--max-attempts", "1")]).await;
    app.kill();
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    let accepted = shop.call(Call::post("http://cart/other", "a book").prefer("respond-async")).await.location();
    app.start_again().await;
    for _ in 0..2 {
        let delivery = app.next().await;
        assert_eq!((delivery.asked.attempt(), delivery.asked.may_have_started()), (1, false));
        delivery.answer(200, "ordered");
    }
    call.answer().await.is(200, "ordered");
    shop.outcome(&accepted).await.is(200, "ordered");
}

pub async fn the_callers_app_dies_while_waiting(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let caller = curl(&world, "curl", shop.address(), &["--data", "a book", "http://cart/order"]);
    let delivery = app.next().await;
    caller.kill();
    delivery.cut();
    // What was accepted goes on, whoever asked for it.
    let delivery = app.next().await;
    assert_eq!((delivery.asked.attempt(), delivery.asked.text()), (2, "a book"));
    delivery.answer(200, "ordered");
    was_delivered(&shop, &app, "/order", 2).await;
}

pub async fn the_callers_proxy_dies_while_waiting(world: World) {
    let (mut app, _cart, mut shop) = shop(&world, &[]).await;
    let location = shop.call(Call::post("http://cart/asked-for", "a book").prefer("respond-async")).await.location();
    let asked_for = app.next().await;
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    let order = app.next().await;
    shop.kill();
    assert!(call.end().await.is_err(), "there is nobody who could have answered");
    asked_for.cut();
    order.answer(200, "ordered");
    let again = app.next().await;
    assert_eq!((again.asked.target.as_str(), again.asked.attempt()), ("/asked-for", 2));
    again.answer(200, "ordered too");
    shop.start_again().await;
    shop.knows("cart").await;
    shop.outcome(&location).await.is(200, "ordered too");
    was_delivered(&shop, &app, "/order", 1).await;
}

pub async fn the_callers_proxy_dies_at_any_moment_of_the_append(world: World) {
    let (app, _cart, mut shop) = shop(&world, &[]).await;
    app.echo();
    for round in 0..3 {
        let calls: Vec<_> = (0..30).map(|n| shop.begin(Call::post(&format!("http://cart/{round}-{n}"), format!("{round}-{n}")))).collect();
        let seen = app.ledger().len();
        eventually("some have got through", || std::future::ready((app.ledger().len() > seen + 3 * round).then_some(()))).await;
        shop.crash().await;
        shop.knows("cart").await;
        let mut ordered = Vec::new();
        for (n, call) in calls.into_iter().enumerate() {
            if let Ok(answer) = call.end().await {
                answer.is(200, &format!("{round}-{n}"));
                ordered.push(format!("/{round}-{n}"));
            }
        }
        assert!(ordered.iter().all(|target| app.count(target) == 1));
    }
    later_calls_go_through(&shop, &[&app]).await;
    // No box of the callee died: whatever was accepted arrived once.
    for asked in app.ledger().iter().filter(|asked| asked.target != "/later") {
        assert_eq!((asked.attempt(), app.count(&asked.target)), (1, 1), "{asked:?}");
    }
}

pub async fn the_log_dies_and_comes_back(world: World) {
    let mut world = world;
    if world.log() != bluebox_e2e::LogKind::Embedded {
        // See `refused`: that test has a Kafka for itself.
        return;
    }
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let location = shop.call(Call::post("http://cart/asked-for", "a book").prefer("respond-async")).await.location();
    let asked_for = app.next().await;
    let call = shop.begin(Call::post("http://cart/order", "a book"));
    let order = app.next().await;
    world.kill_log();
    asked_for.answer(200, "asked for");
    order.answer(200, "ordered");
    world.start_log().await;
    // Without a log nothing can be recorded: either answer may have to be given again.
    app.rule(|asked| match asked.target.as_str() {
        "/order" => Some(http::Response::new(bluebox_e2e::app::content("ordered"))),
        "/asked-for" => Some(http::Response::new(bluebox_e2e::app::content("asked for"))),
        _ => None,
    });
    call.answer().await.is(200, "ordered");
    shop.outcome(&location).await.is(200, "asked for");
    later_calls_go_through(&shop, &[&app]).await;
}

pub async fn everything_dies_at_once_and_nothing_accepted_is_lost(world: World) {
    let mut world = world;
    let (mut app, mut cart_box, mut shop) = shop(&world, &[]).await;
    let mut locations = Vec::new();
    for n in 0..10 {
        locations.push(shop.call(Call::post(&format!("http://cart/{n}"), vec![b'x'; 100_000 * n]).prefer("respond-async")).await.location());
    }
    cart_box.kill();
    shop.kill();
    app.kill();
    if world.log() == bluebox_e2e::LogKind::Embedded {
        world.kill_log();
        world.start_log().await;
    }
    app.rule(|asked| Some(http::Response::new(bluebox_e2e::app::content(format!("{} {}", asked.target, asked.body.len())))));
    app.start_again().await;
    cart_box.start_again().await;
    shop.start_again().await;
    for (n, location) in locations.iter().enumerate() {
        shop.outcome(location).await.is(200, &format!("/{n} {}", 100_000 * n));
    }
}

pub async fn a_call_that_kills_its_box_becomes_a_dead_letter_and_its_neighbours_do_not(world: World) {
    let mut app = world.app("cart").await;
    let mut cart_box = cart(&world, &app, &[("--max-crashes", "2")]).await;
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    app.rule(|asked| (asked.target == "/good").then(|| http::Response::new(bluebox_e2e::app::content("good"))));
    let poison = shop.begin(Call::post("http://cart/poison", "x"));
    let (mut deaths, mut neighbours) = (0, Vec::new());
    while !poison.has_ended() {
        let delivery = tokio::select! {
            delivery = app.next() => delivery,
            () = eventually("the poison ends or is delivered", || std::future::ready(poison.has_ended().then_some(()))) => break,
        };
        assert_eq!(delivery.asked.target, "/poison");
        deaths += 1;
        assert!(deaths <= 6, "it kills and kills");
        // While the suspect is delivered alone its neighbours wait: so they do not share its fate.
        neighbours.push(shop.begin(Call::post("http://cart/good", deaths.to_string())));
        cart_box.kill();
        app.kill();
        app.start_again().await;
        cart_box.start_again().await;
    }
    poison.answer().await.is_problem(502, false);
    for neighbour in neighbours {
        neighbour.answer().await.is(200, "good");
    }
    assert!(deaths >= 2, "{deaths}");
    later_calls_go_through(&shop, &[&app]).await;
}

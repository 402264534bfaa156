//! Dead letters can be listed and delivered again.

use bluebox_e2e::{Call, World, eventually};

use crate::common::{later_calls_go_through, shop, was_delivered};

/// Runs `bluebox dlq` on this world's log, and gives what it says.
pub async fn dlq(world: &World, arguments: &[&str]) -> String {
    let mut command = bluebox_e2e::process::bluebox();
    command.arg("dlq").args(arguments).args(world.log_flags());
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = bluebox_e2e::within(std::time::Duration::from_secs(30), "dlq ends", output).await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub async fn they_can_be_listed_and_replayed(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--max-attempts", "1")]).await;
    let call = shop.begin(Call::post("http://cart/order", vec![b'x'; 400_000]).with("x-mine", "1"));
    let delivery = app.next().await;
    let id = delivery.asked.header("bluebox-call-id").to_owned();
    delivery.cut();
    // It is durable before its caller is told.
    call.answer().await.is_problem(502, false);
    let listed = dlq(&world, &["list"]).await;
    assert!(listed.contains(&id[..8]) && listed.contains("cart"), "{listed}");
    // A second life of the same call, with all it had.
    dlq(&world, &["replay", &id]).await;
    let again = app.next().await;
    assert_eq!(again.asked.header("bluebox-call-id"), id);
    assert_eq!((again.asked.target.as_str(), again.asked.body.len(), again.asked.header("x-mine")), ("/order", 400_000, "1"));
    assert!(again.asked.may_have_started(), "the app had it in its first life");
    again.answer(200, "ordered");
    was_delivered(&shop, &app, "/order", 2).await;
    let listed = dlq(&world, &["list"]).await;
    assert!(!listed.contains(&id[..8]), "{listed}");
}

pub async fn who_asks_later_gets_the_outcome_of_the_last_life(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--max-attempts", "1")]).await;
    let location = shop.call(Call::post("http://cart/order", "x").prefer("respond-async")).await.location();
    let delivery = app.next().await;
    let id = delivery.asked.header("bluebox-call-id").to_owned();
    delivery.cut();
    shop.outcome(&location).await.is_problem(502, false);
    dlq(&world, &["replay", &id]).await;
    app.next().await.answer(200, "ordered");
    eventually("the second life's outcome is there", || async {
        let answer = shop.call(Call::get(&location)).await;
        (answer.status.as_u16() == 200 && answer.header("bluebox-call-state") == "ended").then(|| answer.is(200, "ordered"))
    })
    .await;
}

pub async fn they_can_be_dropped(world: World) {
    let (mut app, mut cart, shop) = shop(&world, &[("--max-attempts", "1")]).await;
    let call = shop.begin(Call::post("http://cart/order", "x"));
    let delivery = app.next().await;
    let id = delivery.asked.header("bluebox-call-id").to_owned();
    delivery.cut();
    call.answer().await.is_problem(502, false);
    dlq(&world, &["drop", &id]).await;
    let listed = dlq(&world, &["list"]).await;
    assert!(!listed.contains(&id[..8]), "{listed}");
    cart.crash().await;
    later_calls_go_through(&shop, &[&app]).await;
    assert_eq!(app.count("/order"), 1);
}

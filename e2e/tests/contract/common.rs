//! What most tests begin with.

use bluebox_e2e::{App, Call, Proxy, World};
use http::Response;

/// A cart with a proxy that has these flags besides, and a shop that calls it.
pub async fn shop(world: &World, flags: &[(&str, &str)]) -> (App, Proxy, Proxy) {
    let app = world.app("cart").await;
    let cart = cart(world, &app, flags).await;
    let shop = world.proxy("shop").start().await;
    shop.knows("cart").await;
    (app, cart, shop)
}

/// How many partitions the cart has.
pub const PARTITIONS: u32 = 2;

/// A box of the cart.
pub async fn cart(world: &World, app: &App, flags: &[(&str, &str)]) -> Proxy {
    flags.iter().fold(world.proxy("cart").serves("cart", app, PARTITIONS), |spec, (name, value)| spec.flag(name, value)).start().await
}

/// Calls go through after it, in whichever partition: what has not been delivered again by now has ended.
pub async fn later_calls_go_through(shop: &Proxy, apps: &[&App]) {
    for app in apps {
        app.rule(|asked| (asked.target == "/later").then(|| Response::new(bluebox_e2e::app::content("later"))));
    }
    for n in 0..4 * PARTITIONS {
        shop.call(Call::post("http://cart/later", n.to_string())).await.is(200, "later");
    }
}

/// It was asked for this so often, and is not asked again.
pub async fn was_delivered(shop: &Proxy, app: &App, target: &str, times: usize) {
    later_calls_go_through(shop, &[app]).await;
    assert_eq!(app.count(target), times, "{:?}", app.ledger());
}

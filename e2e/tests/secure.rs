//! A Kafka with TLS, passwords and rights: the table in `docs/kafka.md`, and nothing beyond it.

#![allow(clippy::unwrap_used, reason = "tests: one that can't go on ends")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bluebox_e2e::{Answer, Call, LogKind, Proxy, ProxySpec, World, eventually, run};

/// What `docs/kafka.md` says that the proxies of `cart`, which serves, and of `shop`, which calls it, need.
fn rights(prefix: &str) -> String {
    let mut rights = String::new();
    for user in ["shop", "cart"] {
        rights += &format!("{user} topic literal {prefix}.registry Describe,Read,Write,Create\n");
        rights += &format!("{user} topic prefixed {prefix}.{user}. Describe,Read,Write,Create\n");
        rights += &format!("{user} group literal {prefix}.readers Describe\n");
    }
    rights += &format!("cart group literal {prefix}.cart.calls Read,Describe\n");
    rights += &format!("cart topic literal {prefix}.shop.bulk Describe,Read\n");
    rights += &format!("cart topic literal {prefix}.shop.replies Describe,Read,Write\n");
    rights += &format!("shop topic literal {prefix}.cart.calls Describe,Write\n");
    rights += &format!("shop topic literal {prefix}.cart.bulk Describe,Read\n");
    rights += &format!("shop topic literal {prefix}.cart.control Describe,Write\n");
    rights += &format!("shop group literal {prefix}.cart.calls Describe\n");
    // May read what there is, and call nobody.
    rights += &format!("stranger topic literal {prefix}.registry Describe,Read\n");
    rights += &format!("stranger topic prefixed {prefix}.stranger. Describe,Read,Write,Create\n");
    rights += &format!("stranger group literal {prefix}.readers Describe\n");
    rights
}

fn give(rights: &str, directory: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka");
    let mut giving = Command::new(script).args(["rights", "--dir", directory]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    giving.stdin.take().unwrap().write_all(rights.as_bytes()).unwrap();
    assert!(giving.wait().unwrap().success(), "the rights could not be given");
}

/// A proxy that comes with this user's password, or another's.
fn proxy(world: &World, user: &str, password: &str) -> ProxySpec {
    let file = world.directory().join(format!("{user}-{password}.properties"));
    let ca = PathBuf::from(std::env::var("BLUEBOX_TEST_BROKER_DIR").unwrap()).join("ca.pem");
    let properties =
        format!("security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username={user}\nsasl.password={password}\nssl.ca.location={}\n", ca.display());
    std::fs::write(&file, properties).unwrap();
    world.proxy(user).flag("--kafka-properties", &file.display().to_string())
}

async fn until_accepted(proxy: &Proxy, call: impl Fn() -> Call) -> Answer {
    eventually("a call is accepted", || async { Some(proxy.call(call()).await).filter(|answer| answer.status.as_u16() != 503) }).await
}

#[test]
fn the_rights_that_are_documented_are_enough_and_needed() {
    let Ok(brokers) = std::env::var("BLUEBOX_TEST_SECURE_BROKERS") else {
        eprintln!("NOT RUN: BLUEBOX_TEST_SECURE_BROKERS names no Kafka (scripts/kafka run --secure -- cargo test ...)");
        return;
    };
    run(LogKind::Kafka, "the_rights_that_are_documented_are_enough_and_needed", async |mut world| {
        world.use_brokers(&brokers);
        let prefix = world.log_flags().iter().find_map(|flag| flag.strip_prefix("--topic-prefix=").map(str::to_owned)).unwrap();
        give(&rights(&prefix), &std::env::var("BLUEBOX_TEST_BROKER_DIR").unwrap());
        let app = world.app("cart").await;
        app.echo();
        let cart = proxy(&world, "cart", "secret-of-cart").serves("cart", &app, 2).start().await;
        let shop = proxy(&world, "shop", "secret-of-shop").start().await;
        shop.knows("cart").await;
        until_accepted(&shop, || Call::post("http://cart/plain", "a book")).await.is(200, "a book");
        // A key, a large body each way, an answer that is asked for later.
        shop.call(Call::post("http://cart/keyed", "a book").keyed("k")).await.is(200, "a book");
        let large = "x".repeat(600_000);
        assert_eq!(shop.call(Call::post("http://cart/large", large.clone())).await.text(), large);
        let later = shop.call(Call::post("http://cart/later", "a book").prefer("respond-async")).await.location();
        shop.outcome(&later).await.is(200, "a book");
        // Another owner has to read what the former one left.
        drop(cart);
        let waits = shop.begin(Call::post("http://cart/waits", "for an owner"));
        let _cart = proxy(&world, "cart", "secret-of-cart").serves("cart", &app, 2).start().await;
        waits.answer().await.is(200, "for an owner");

        // Who may not write into a component's topic may not call it.
        let stranger = proxy(&world, "stranger", "secret-of-stranger").start().await;
        stranger.knows("cart").await;
        stranger.call(Call::post("http://cart/stranger", "")).await.is_problem(503, true);
        assert_eq!(app.count("/stranger"), 0);

        let forgetful = proxy(&world, "shop", "not-the-password").start().await;
        eventually("a wrong password is named", || std::future::ready(forgetful.said().contains("uthentication failed").then_some(()))).await;
        forgetful.call(Call::post("http://cart/forgetful", "")).await.is_problem(503, true);
    });
}

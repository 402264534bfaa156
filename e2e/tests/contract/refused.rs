//! With the log away a call is refused at once, provably not accepted; and all goes on by itself when it is back.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bluebox_e2e::{Call, LogKind, World, eventually};

use crate::common::shop;

/// A Kafka of its own, that this test may kill.
struct OwnKafka {
    script: PathBuf,
    directory: PathBuf,
}

impl OwnKafka {
    fn start(world: &World) -> Self {
        let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka"));
        let kafka = Self { script, directory: world.directory().join("kafka") };
        kafka.run(&["start"]);
        kafka
    }

    fn run(&self, arguments: &[&str]) {
        let output = Command::new(&self.script).args(arguments).arg("--dir").arg(&self.directory).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn brokers(&self) -> String {
        std::fs::read_to_string(self.directory.join("brokers")).unwrap().trim().to_owned()
    }

    fn kill(&self) {
        let pid: i32 = std::fs::read_to_string(self.directory.join("node-1/pid")).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    fn start_again(&self) {
        self.run(&["start", "--keep"]);
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let _ = Command::new(&self.script).args(["stop", "--dir"]).arg(&self.directory).output();
    }
}

pub async fn with_the_log_away_503_within_a_second_and_it_works_again_after(world: World) {
    let mut world = world;
    let kafka = (world.log() == LogKind::Kafka).then(|| OwnKafka::start(&world));
    if let Some(kafka) = &kafka {
        world.use_brokers(&kafka.brokers());
    }
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/under-way", "x"));
    let under_way = app.next().await;
    match &kafka {
        Some(kafka) => kafka.kill(),
        None => world.kill_log(),
    }
    // Until it is known to be away an answer may take longer, but is never another than that it is not or may not be accepted.
    let mut sent = 0;
    let known = eventually("it is known that the log is away", || {
        sent += 1;
        let call = Call::post(&format!("http://cart/refused-{sent}"), "x").prefer("wait=5");
        let shop = &shop;
        async move {
            let answer = shop.call(call).await;
            assert!([503, 504].contains(&answer.status.as_u16()), "{answer:?}");
            (answer.status.as_u16() == 503).then_some(answer)
        }
    })
    .await;
    known.is_problem(503, true);
    for n in 0..5 {
        let refused = shop.call(Call::post(&format!("http://cart/refused-{n}-more"), "x")).await;
        refused.is_problem(503, true);
        assert_ne!(refused.header("retry-after"), "", "{refused:?}");
        assert!(refused.took < Duration::from_secs(1), "{:?}", refused.took);
    }
    // What is no component is none of the log's business.
    let direct = shop.begin(Call::get(&format!("http://{}/direct", app.address())));
    app.next().await.answer(200, "direct");
    direct.answer().await.is(200, "direct");
    under_way.answer(200, "under way");
    match &kafka {
        Some(kafka) => kafka.start_again(),
        None => world.start_log().await,
    }
    app.rule(|asked| Some(http::Response::new(bluebox_e2e::app::content(asked.target.clone()))));
    eventually("calls are accepted again", || async { (shop.call(Call::post("http://cart/again", "x").prefer("wait=20")).await.status == 200).then_some(()) })
        .await;
    let answer = call.answer().await;
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    // Provably not accepted: they never come.
    shop.call(Call::post("http://cart/last", "x")).await.is(200, "/last");
    assert!(!app.ledger().iter().any(|asked| asked.target.ends_with("-more")), "what was refused was delivered");
}

pub async fn without_a_log_from_the_start_the_proxy_runs_and_says_so(world: World) {
    let mut world = world;
    let nowhere = world.address().to_string();
    match world.log() {
        LogKind::Kafka => world.use_brokers(&nowhere),
        LogKind::Embedded => world.kill_log(),
    }
    let mut app = world.app("cart").await;
    let admin = world.address();
    let gateway = world.proxy("edge").flag("--admin", &admin.to_string()).start().await;
    let refused = gateway.call(Call::post("http://cart/order", "x")).await;
    refused.is_problem(503, true);
    assert!(refused.took < Duration::from_secs(1), "{:?}", refused.took);
    // It says within seconds what can't be reached, and where that should be.
    let log = if world.log() == LogKind::Kafka { nowhere } else { world.directory().join("log.sock").display().to_string() };
    let says_so = |said: &str| said.lines().any(|line| line.contains(&log) && (line.contains("WARN") || line.contains("ERROR")));
    eventually("it says which log is away", || std::future::ready(says_so(&gateway.said()).then_some(()))).await;
    let direct = gateway.begin(Call::get(&format!("http://{}/direct", app.address())));
    app.next().await.answer(200, "direct");
    direct.answer().await.is(200, "direct");
    // Who waits for it to have started, or to be ready, does not wait for the log.
    Call::get("http://edge/started").send_to(admin).await.unwrap().is(200, "started\n");
    eventually("it is ready without a log", || async { (Call::get("http://edge/readyz").send_to(admin).await.ok()?.status == 200).then_some(()) }).await;
}

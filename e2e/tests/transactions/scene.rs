//! What most tests begin with.

use bluebox_e2e::app::{Asked, content};
use bluebox_e2e::{Answer, App, Call, Proxy, ProxySpec, World, eventually};
use http::{Method, Response};

/// How many partitions there are.
pub const PARTITIONS: u32 = 4;

/// Where apps find the coordinator.
pub const COORDINATOR: &str = "http://txmgr/lra-coordinator";

/// A transaction manager, and a client in a box.
pub struct Scene {
    pub world: World,
    pub txmgr: Proxy,
    pub client: Proxy,
}

/// A participant: an app and its proxy.
pub struct Service {
    pub app: App,
    pub proxy: Proxy,
    pub name: &'static str,
}

impl Scene {
    pub async fn new(world: World) -> Self {
        Self::with(world, |spec| spec).await
    }

    /// With more flags for the transaction manager.
    pub async fn with(world: World, flags: impl FnOnce(ProxySpec) -> ProxySpec) -> Self {
        let txmgr = flags(world.txmgr(PARTITIONS)).start().await;
        let client = world.proxy("client").start().await;
        client.knows("txmgr").await;
        let scene = Self { world, txmgr, client };
        eventually("the transaction manager serves", || async {
            let all = scene.client.call(Call::get(COORDINATOR).prefer("wait=5")).await;
            (all.status == 200).then_some(())
        })
        .await;
        scene
    }

    /// A service whose every answer is 200.
    pub async fn service(&self, name: &'static str) -> Service {
        self.service_with(name, |spec| spec).await
    }

    /// With more flags for its proxy.
    pub async fn service_with(&self, name: &'static str, flags: impl FnOnce(ProxySpec) -> ProxySpec) -> Service {
        let app = self.world.app(name).await;
        app.rule(|_| Some(says(200, "")));
        let proxy = flags(self.world.proxy(name).serves(name, &app, 2)).start().await;
        self.client.knows(name).await;
        Service { app, proxy, name }
    }

    pub async fn put(&self, url: &str) -> Answer {
        self.client.call(Call::new(Method::PUT, url)).await
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.client.call(Call::get(url)).await
    }

    /// Begins one: its URL.
    pub async fn start(&self) -> String {
        self.start_with("").await
    }

    pub async fn start_with(&self, query: &str) -> String {
        let started = self.client.call(Call::post(&format!("{COORDINATOR}/start?ClientID=test{query}"), "")).await;
        assert_eq!(started.status, 201, "{started:?}");
        started.text().to_owned()
    }

    /// A service joins: its recovery URL.
    pub async fn join(&self, lra: &str, service: &Service) -> String {
        let joined = self.client.call(Call::new(Method::PUT, lra).with("link", &service.links())).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        joined.header("long-running-action-recovery").to_owned()
    }

    pub async fn status(&self, lra: &str) -> String {
        let status = self.get(&format!("{lra}/status")).await;
        assert_eq!(status.status, 200, "{status:?}");
        status.text().to_owned()
    }

    /// Waits until it has this status.
    pub async fn becomes(&self, lra: &str, wanted: &str) {
        eventually(&format!("{lra} becomes {wanted}"), || async { (self.status(lra).await == wanted).then_some(()) }).await;
    }
}

impl Service {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.name)
    }

    /// Compensate and complete.
    pub fn links(&self) -> String {
        format!("<{}>; rel=\"compensate\", <{}>; rel=\"complete\"", self.url("/compensate"), self.url("/complete"))
    }

    /// With these relations, each at a path of its own.
    pub fn links_of(&self, relations: &[&str]) -> String {
        relations.iter().map(|rel| format!("<{}>; rel=\"{rel}\"", self.url(&format!("/{rel}")))).collect::<Vec<_>>().join(", ")
    }

    /// Both halves of its box die.
    pub fn dies(&mut self) {
        self.proxy.kill();
        self.app.kill();
    }

    /// And are started again, as they were.
    pub async fn comes_back(&mut self) {
        self.app.start_again().await;
        self.proxy.start_again().await;
    }

    /// The paths that it was asked for, one after the other.
    pub fn asked(&self) -> Vec<String> {
        self.app.ledger().into_iter().map(|asked| asked.target).collect()
    }

    /// What it was last asked.
    pub fn last(&self) -> Asked {
        self.app.ledger().pop().unwrap()
    }

    /// It was asked for this so often, and for nothing else.
    pub fn was_asked_only(&self, paths: &[&str]) {
        assert_eq!(self.asked(), paths, "{}", self.name);
    }
}

/// An answer.
pub fn says(status: u16, body: &'static str) -> Response<bluebox_e2e::app::Content> {
    Response::builder().status(status).body(content(body)).unwrap()
}

/// A problem document of the transaction manager.
pub fn is_problem(answer: &Answer, status: u16, word: &str) {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(document["type"], format!("urn:bluebox:txmgr:{word}"), "{document}");
    assert!(document["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{document}");
}

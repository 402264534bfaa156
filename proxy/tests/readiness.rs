//! When a box may be sent what does not go through the log: not before it is registered, unless the log can't be reached.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::Log;
use bluebox_core::log::embedded::{AppendFault, Client, Embedded};
use bluebox_core::registry::Component;
use bluebox_core::topics::Prefix;
use bluebox_proxy::Proxy;
use bluebox_proxy::config::{App, AppProtocol, ProxyConfig, Served, Together};
use bluebox_proxy::incarnation::Place;
use bluebox_proxy::registry::Directory;
use common::{PATIENCE, exchange, name};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The proxy of a box that serves `cart`. It ends with its test.
struct Running {
    admin: SocketAddr,
    directory: watch::Receiver<Directory>,
}

impl Running {
    async fn start(log: &Arc<Client>, app: SocketAddr, together: Option<Together>) -> Self {
        let served = Served {
            name: name("cart"),
            component: Component { partitions: 1, ..Component::default() },
            ordinal: None,
            app: App::At { address: app, protocol: AppProtocol::Http1 },
        };
        let proxy = Proxy::bind(ProxyConfig { name: name("cart"), serves: vec![served], together, ..common::config() }).await.unwrap();
        let running = Self { admin: proxy.admin().unwrap(), directory: proxy.directory() };
        tokio::spawn(proxy.run(Arc::clone(log) as Arc<dyn Log>, std::future::pending()));
        running
    }

    /// The status of an answer, and what it says.
    async fn ask(&self, path: &str) -> (u16, String) {
        let answer = exchange(self.admin, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    /// Until it is ready; whether it was registered by then.
    async fn ready(&self) -> bool {
        let ready = async {
            while self.ask("/readyz").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("it never gets ready");
        self.directory.borrow().registered
    }
}

async fn app() -> (TcpListener, SocketAddr) {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = app.local_addr().unwrap();
    (app, address)
}

/// What is called at its Service meanwhile would be no call. The app is started all the same: it may be what takes long.
#[tokio::test]
async fn it_is_started_at_once_and_ready_when_it_is_registered() {
    let (embedded, (_app, app)) = (Embedded::in_memory(), app().await);
    let client = embedded.client();
    client.fail_appends(AppendFault::Refuse, Some(&Prefix::default().registry()));
    let mut cart = Running::start(&client, app, None).await;
    tokio::time::timeout(PATIENCE, cart.directory.wait_for(|directory| directory.complete)).await.expect("the registry is read").unwrap();
    assert_eq!(cart.ask("/started").await, (200, "started\n".to_owned()));
    let (status, says) = cart.ask("/readyz").await;
    assert!(status == 503 && says.contains("not in the registry"), "{status} {says}");
    client.heal();
    assert!(cart.ready().await, "it is ready without being registered");
}

/// And it does not depend on an app that listens: the app is started after it.
#[tokio::test]
async fn it_needs_no_app_for_that() {
    let (listener, nobody) = app().await;
    drop(listener);
    assert!(Running::start(&Embedded::in_memory().client(), nobody, None).await.ready().await);
}

#[tokio::test]
async fn with_the_log_away_it_is_ready_all_the_same() {
    let (client, (_app, app)) = (Embedded::in_memory().client(), app().await);
    client.disconnect();
    let cart = Running::start(&client, app, None).await;
    assert_eq!(cart.ask("/started").await.0, 200);
    assert!(!cart.ready().await, "it can't be registered");
}

/// A proxy that took the place of one that died has no app until that is another one. The kubelet has to look at the app's liveness meanwhile: for it, the proxy has started.
#[tokio::test]
async fn one_that_waits_for_another_app_is_started_and_not_ready() {
    let (client, (listener, app), directory) = (Embedded::in_memory().client(), app().await, tempfile::tempdir().unwrap());
    let together = Together { place: Place::new(directory.path()), replaces: true };
    let cart = Running::start(&client, app, Some(together)).await;
    assert_eq!(cart.ask("/started").await.0, 200);
    assert_eq!(cart.ask("/readyz").await.0, 503);
    drop(listener);
    assert!(cart.ready().await);
}

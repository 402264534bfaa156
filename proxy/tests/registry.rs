//! The registry as proxies use it: topics are made, the first writer wins, and nothing waits for a log that is away.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::embedded::Embedded;
use bluebox_core::log::{Log, Record};
use bluebox_core::registry::{Class, Component};
use bluebox_core::topics::{Prefix, REPLY_PARTITIONS, Retention};
use bluebox_proxy::config::{App, AppProtocol, Served};
use bluebox_proxy::dns::addresses::Addresses;
use bluebox_proxy::dns::resolve::{How, Resolver};
use bluebox_proxy::registry::{Directory, RegisterError, Registration, follow};
use bytes::Bytes;
use common::{PATIENCE, name};
use tokio::sync::watch;
use tokio::task::JoinHandle;

fn registration(caller: &str, serves: &[(&str, Component)]) -> Registration {
    let serve = |(n, component): &(&str, Component)| Served {
        name: name(n),
        component: component.clone(),
        ordinal: (component.class == Class::Stateful).then_some(0),
        app: App::At { address: "127.0.0.1:1".parse().unwrap(), protocol: AppProtocol::Http1 },
    };
    Registration { prefix: Prefix::default(), caller: name(caller), serves: serves.iter().map(serve).collect(), retention: Retention::default() }
}

fn start(log: Arc<dyn Log>, registration: Registration) -> (watch::Receiver<Directory>, JoinHandle<Result<(), RegisterError>>) {
    let (publish, directory) = watch::channel(Directory::default());
    (directory, tokio::spawn(follow(log, registration, publish)))
}

async fn until(directory: &mut watch::Receiver<Directory>, what: impl FnMut(&Directory) -> bool) -> Directory {
    tokio::time::timeout(PATIENCE, directory.wait_for(what)).await.expect("it did not come to be").unwrap().clone()
}

fn of(partitions: u32) -> Component {
    Component { partitions, ..Component::default() }
}

#[tokio::test]
async fn a_box_registers_what_it_serves_and_others_see_it() {
    let log = Embedded::in_memory();
    let (mut gateway, _task) = start(log.clone(), registration("gateway", &[]));
    until(&mut gateway, |d| d.complete).await;
    let (mut cart, _cart) = start(log.clone(), registration("cart", &[("cart", of(4))]));
    until(&mut cart, |d| d.registered).await;
    let seen = until(&mut gateway, |d| d.registry.get("cart").is_some()).await;
    assert_eq!(seen.registry.get("cart").unwrap().1, &of(4));
    let topics = Prefix::default().topics(&name("cart"));
    for topic in [&topics.calls, &topics.parked, &topics.control, &topics.recorded, &topics.dead_letters] {
        assert_eq!(log.partitions(topic).await.unwrap(), Some(4), "{topic}");
    }
    for topic in [&topics.replies, &topics.bulk, &Prefix::default().topics(&name("gateway")).replies] {
        assert_eq!(log.partitions(topic).await.unwrap(), Some(REPLY_PARTITIONS), "{topic}");
    }

    // A second replica changes nothing; one with other ports does.
    let end = || async { log.bounds(&Prefix::default().registry().partition(0)).await.unwrap().end };
    let before = end().await;
    let (mut again, _again) = start(log.clone(), registration("cart", &[("cart", of(4))]));
    until(&mut again, |d| d.registered).await;
    assert_eq!(end().await, before);
    let (mut changed, _changed) = start(log.clone(), registration("cart", &[("cart", Component { ports: vec![80, 8080], ..of(4) })]));
    until(&mut changed, |d| d.registered).await;
    until(&mut gateway, |d| d.registry.get("cart").unwrap().1.ports.len() == 2).await;
}

#[tokio::test]
async fn who_comes_second_with_something_else_is_told() {
    let log = Embedded::in_memory();
    let (mut first, _first) = start(log.clone(), registration("cart", &[("cart", of(4))]));
    until(&mut first, |d| d.registered).await;

    let (_directory, task) = start(log.clone(), registration("cart", &[("cart", of(8))]));
    let error = tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, RegisterError::Conflict(c) if (c.there_partitions, c.asked_partitions) == (4, 8)), "{error}");

    // Of topics that nobody has registered a component for, it is said what they are like.
    let stray = Prefix::default().topics(&name("stock")).callee_specs(Class::Service, 4, &Retention::default());
    log.create_topics(stray).await.unwrap();
    let (_directory, task) = start(log.clone(), registration("stock", &[("stock", of(8))]));
    let error = tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, RegisterError::Partitions { there: 4, wanted: 8, .. }), "{error}");

    let (_directory, task) = start(log.clone(), registration("cart", &[("cart", Component { class: Class::Stateful, ..of(4) })]));
    let error = tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, RegisterError::Conflict(c) if c.there == Class::Service), "{error}");
    assert_eq!(first.borrow().registry.get("cart").unwrap().1, &of(4));
    // Nothing was made for it.
    assert_eq!(log.partitions(&Prefix::default().topics(&name("cart")).frontier).await.unwrap(), None);

    // A proxy ends with it.
    let mut config = common::config();
    config.serves = registration("cart", &[("cart", of(8))]).serves;
    let ended = tokio::time::timeout(PATIENCE, bluebox_proxy::run(config, log.client(), std::future::pending())).await.unwrap();
    assert!(matches!(ended, Err(bluebox_proxy::RunError::Register(_))), "{ended:?}");
}

#[tokio::test]
async fn records_that_make_no_sense_are_passed_over() {
    let log = Embedded::in_memory();
    common::register(&*log, &Prefix::default(), "cart", &of(1)).await;
    let registry = Prefix::default().registry().partition(0);
    for (key, value) in [(&b"Not A Name"[..], &b"{}"[..]), (b"cart", b"garbage"), (b"cart", br#"{"class":"service","partitions":0}"#)] {
        log.append(&registry, Record::keyed(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))).await.unwrap();
    }
    let second = serde_json::to_vec(&of(9)).unwrap();
    log.append(&registry, Record::keyed(Bytes::from_static(b"cart"), second.into())).await.unwrap();
    let (mut directory, _task) = start(log.clone(), registration("gateway", &[]));
    let seen = until(&mut directory, |d| d.complete).await;
    assert_eq!(seen.registry.get("cart").unwrap().1, &of(1));
    assert_eq!(seen.registry.iter().count(), 1);
}

#[tokio::test]
async fn with_the_log_away_it_goes_on_trying() {
    let log = Embedded::in_memory();
    let client = log.client();
    client.disconnect();
    let mut config = common::config();
    config.serves = registration("cart", &[("cart", of(1))]).serves;
    let proxy = bluebox_proxy::Proxy::bind(config).await.unwrap();
    let address = proxy.listen();
    let running = tokio::spawn(proxy.run(client.clone(), std::future::pending()));
    // The listener is up at once; a bare name may be a component, so it is refused, and that quickly.
    let began = std::time::Instant::now();
    let answer = common::exchange(address, b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str(), answer.header("retry-after").as_deref()), (503, "not-ready", Some("1")), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(!running.is_finished());

    client.reconnect();
    let (mut directory, _task) = start(log.clone(), registration("gateway", &[]));
    until(&mut directory, |d| d.registry.get("cart").is_some()).await;
}

#[tokio::test]
async fn what_class_partitions_and_ordinal_say_must_go_together() {
    let log: Arc<dyn Log> = Embedded::in_memory().client();
    for (class, ordinal, says) in [
        (Class::Actor, None, "`actor` can't be served yet"),
        (Class::Service, Some(1), "only a stateful component has ordinals"),
        (Class::Stateful, None, "must be told which ordinal it is"),
        (Class::Stateful, Some(4), "ordinals are 0 to 3"),
    ] {
        let mut registration = registration("app", &[("app", Component { class, ..of(4) })]);
        registration.serves[0].ordinal = ordinal;
        let (_directory, task) = start(log.clone(), registration);
        let error = tokio::time::timeout(PATIENCE, task).await.expect("it ends").unwrap().unwrap_err().to_string();
        assert!(error.starts_with("component app: ") && error.contains(says), "{error}");
    }
    // Nothing was made or written down for any of them.
    assert_eq!(log.partitions(&Prefix::default().registry()).await, Ok(None));
}

#[tokio::test]
async fn only_a_stateful_component_has_a_frontier() {
    let log: Arc<dyn Log> = Embedded::in_memory().client();
    for (name, class, there) in [("app", Class::Stateful, Some(4)), ("web", Class::Service, None)] {
        let (mut directory, _task) = start(log.clone(), registration(name, &[(name, Component { class, ..of(4) })]));
        until(&mut directory, |d| d.registered).await;
        assert_eq!(log.partitions(&Prefix::default().topics(&common::name(name)).frontier).await, Ok(there), "{name}");
    }
}

/// A query for the address of `files`, as an app that starts together with its proxy sends it.
const WHERE_IS_FILES: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05files\x00\x00\x01\x00\x01";

#[tokio::test]
async fn a_name_that_no_nameserver_answers_for_is_given_time_to_be_read_in_the_registry() {
    let log = Embedded::in_memory();
    let (mut files, _files) = start(log.clone(), registration("files", &[("files", of(4))]));
    until(&mut files, |d| d.registered).await;
    let (publish, directory) = watch::channel(Directory::default());
    let resolver = Resolver::new(Vec::new(), directory, log.clone(), Addresses::default());
    let answer = tokio::spawn(async move { resolver.answer(WHERE_IS_FILES, false).await });
    tokio::task::yield_now().await;
    assert!(!answer.is_finished(), "it is not known yet");
    let _task = tokio::spawn(follow(log, registration("report", &[]), publish));
    let (_, how) = tokio::time::timeout(PATIENCE, answer).await.expect("no answer").unwrap().expect("no answer");
    assert_eq!(how, How::Component);
}

//! Calls through a whole system, and what a person can do about them.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use common::{On, Place, Up, operate, operate_in, request, send, wait_until};
use nix::sys::signal::Signal;

const SHOP: &str = "boxes:
  web: {command: [python3, app.py], partitions: 4}
  cart: {command: [python3, app.py], partitions: 4, replicas: 2}
";

fn shop(on: On) -> Option<Up> {
    up(on, SHOP)
}

/// A system with this file, on this log; `None` if there is no Kafka to test with.
fn up(on: On, yaml: &str) -> Option<Up> {
    let mut up = Place::with(yaml).up_with(&on.arguments()?);
    up.wait_until_up();
    Some(up)
}

/// Runs a test on the embedded log and on Kafka.
macro_rules! on_both_logs {
    ($($test:ident),* $(,)?) => {
        mod on_the_embedded_log {
            $(#[test]
            fn $test() {
                super::$test(super::On::Embedded);
            })*
        }
        mod on_kafka {
            $(#[test]
            fn $test() {
                super::$test(super::On::Kafka);
            })*
        }
    };
}

on_both_logs!(
    a_call_from_outside_by_proxy_and_by_host,
    an_unchanged_app_calls_another_by_its_name,
    a_call_survives_its_app,
    a_call_survives_the_proxy_of_its_app,
    an_accepted_call_survives_everything,
    a_caller_that_does_not_wait_asks_later,
    dead_letters_are_listed_shown_replayed_and_dropped,
);

const ONE_BOX: &str = "boxes:\n  cart: {command: [python3, app.py], partitions: 4}\n";

fn a_call_from_outside_by_proxy_and_by_host(on: On) {
    let Some(up) = shop(on) else { return };
    assert_eq!(up.get("http://cart/items?all"), (200, "cart /items?all".to_owned()));
    let mut stream = TcpStream::connect(up.gateway()).unwrap();
    stream.write_all(b"GET /items HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\ncart /items"), "{answer}");
}

fn an_unchanged_app_calls_another_by_its_name(on: On) {
    let Some(up) = shop(on) else { return };
    assert_eq!(up.get("http://web/call?http://cart/items"), (200, "cart /items".to_owned()));
}

/// Kills a part of `cart` while a call is under way in it; the caller gets its answer all the same.
fn killed_in_the_middle(on: On, part: fn(common::Unit) -> i32) {
    let Some(up) = up(on, ONE_BOX) else { return };
    let gateway = up.gateway();
    let caller = std::thread::spawn(move || request(gateway, "POST", "http://cart/hang-once", &[], "one"));
    wait_until("the call is under way", || up.place.path().join("hung").exists().then_some(()));
    send(part(up.unit("cart-0").unwrap()), Signal::SIGKILL);
    let (head, body) = caller.join().unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(body, "cart /hang-once");
    let ledger = up.ledger();
    assert_eq!(ledger.len(), 2, "{ledger:?}");
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (words(&ledger[0]), words(&ledger[1]));
    assert_eq!(first[2], second[2], "the same call: {ledger:?}");
    assert_eq!((first[3].as_str(), second[3].as_str()), ("first", "true"), "the second may have started: {ledger:?}");
}

fn a_call_survives_its_app(on: On) {
    killed_in_the_middle(on, |unit| unit.app);
}

fn a_call_survives_the_proxy_of_its_app(on: On) {
    killed_in_the_middle(on, |unit| unit.proxy);
}

fn an_accepted_call_survives_everything(on: On) {
    let Some(arguments) = on.arguments() else { return };
    let mut up = Place::with(ONE_BOX).up_with(&arguments);
    up.wait_until_up();
    let mut caller = TcpStream::connect(up.gateway()).unwrap();
    caller.write_all(b"POST http://cart/hang-once HTTP/1.1\r\nHost: cart\r\nContent-Length: 3\r\n\r\none").unwrap();
    wait_until("the call is under way", || up.place.path().join("hung").exists().then_some(()));
    let place = up.killed();
    wait_until("nothing runs any more", || place.processes().is_empty().then_some(()));
    let up = place.up_with(&arguments);
    wait_until("the call has been delivered again", || (up.ledger().len() == 2).then_some(()));
}

fn a_caller_that_does_not_wait_asks_later(on: On) {
    let Some(up) = shop(on) else { return };
    let (head, _) = request(up.gateway(), "POST", "http://cart/later", &["Prefer: respond-async"], "x");
    assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
    let location = head.lines().find_map(|line| line.to_ascii_lowercase().starts_with("location: ").then(|| line[10..].to_owned())).unwrap();
    let said = wait_until("the call has ended", || {
        let (code, said) = operate(&up, &["calls", &location]);
        assert_eq!(code, Some(0), "{said}");
        said.starts_with("ended").then_some(said)
    });
    assert!(said.starts_with("ended: 200") && said.ends_with("\n\ncart /later"), "{said}");
    let (code, said) = operate(&up, &["calls", "no such id!"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no call has this id"), "{said}");
}

fn dead_letters_are_listed_shown_replayed_and_dropped(on: On) {
    let Some(arguments) = on.arguments() else { return };
    let mut up = Place::with("boxes:\n  cart: {command: [python3, app.py], partitions: 4, max-attempts: 2, first-backoff: 10ms}\n").up_with(&arguments);
    up.wait_until_up();
    assert_eq!(operate(&up, &["dlq", "list"]), (Some(0), "no dead letters\n".to_owned()));
    let letter = |body: &str| {
        let (head, problem) = request(up.gateway(), "POST", "http://cart/broken", &["X-Mine: yes"], body);
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let problem: serde_json::Value = serde_json::from_str(&problem).unwrap();
        problem["call"].as_str().unwrap().to_owned()
    };
    // The second body is too large for a record, and travels in chunks.
    let (first, second) = (letter("one"), letter(&"two".repeat(200_000)));
    let deliveries = up.ledger().len();
    assert_eq!(deliveries, 4);

    let (_, said) = operate(&up, &["dlq", "list"]);
    assert!(said.contains(&first) && said.contains(&second) && said.contains("POST /broken"), "{said}");
    let (_, said) = operate(&up, &["dlq", "list", "--json", "--component", "cart"]);
    let letters: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((letters.len(), letters[0]["call"].as_str(), letters[1]["body_bytes"].as_u64()), (2, Some(first.as_str()), Some(600_000)));
    let (_, said) = operate(&up, &["dlq", "show", &first[..12]]);
    assert!(said.contains("x-mine: yes") && said.ends_with("\n\none\n") && said.contains("after 2 attempts"), "{said}");
    let (_, said) = operate(&up, &["dlq", "show", &second, "--body"]);
    assert_eq!(said, "two".repeat(200_000));
    let (code, said) = operate(&up, &["dlq", "show", "ffff"]);
    assert!(code == Some(1) && said.contains("no dead letter has this id"), "{said}");

    // The cause is mended: replayed, both arrive, with the ids that they always had.
    std::fs::write(up.place.path().join("mended"), "").unwrap();
    let (code, said) = operate(&up, &["dlq", "replay", &second]);
    assert!(code == Some(0) && said.contains(&format!("{second}: replayed")), "{said}");
    let arrived = wait_until("the replayed call has arrived", || up.ledger().get(deliveries).cloned());
    // The app had it in its first life, and is told so.
    assert!(arrived.contains(&format!("/broken {second} true twotwo")), "{}", &arrived[..100]);
    let (_, said) = operate(&up, &["dlq", "list"]);
    assert!(said.contains(&first) && !said.contains(&second), "{said}");

    // What is left can also be seen to when nothing runs.
    up.signal(Signal::SIGINT);
    let place = up.ended_in_place();
    let offline = |command: &[&str]| operate_in(&place, &[command, arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    let (_, said) = offline(&["dlq", "list"]);
    assert!(said.contains(&first), "{said}");
    let (code, said) = offline(&["dlq", "drop", "--all"]);
    assert!(code == Some(0) && said.contains("1 dead letter dropped"), "{said}");
    assert_eq!(offline(&["dlq", "list"]), (Some(0), "no dead letters\n".to_owned()));
}

#[test]
fn what_is_under_way_is_finished_before_everything_ends() {
    let Some(up) = up(On::Embedded, SHOP) else { return };
    let gateway = up.gateway();
    // Through two boxes: neither may end before the call has come back through both.
    let caller = std::thread::spawn(move || request(gateway, "POST", "http://web/call?http://cart/slow", &[], ""));
    wait_until("the call is under way", || up.place.path().join("begun").exists().then_some(()));
    up.signal(Signal::SIGINT);
    let (head, body) = caller.join().unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && body == "cart /slow", "{head} {body}");
    let (code, said) = up.ended();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn ps_shows_what_runs() {
    let Some(up) = shop(On::Embedded) else { return };
    let (code, said) = operate(&up, &["ps"]);
    assert_eq!(code, Some(0));
    let unit = up.unit("cart-1").unwrap();
    let line = said.lines().find(|line| line.starts_with("cart-1 ")).unwrap();
    for part in [unit.app.to_string(), unit.proxy.to_string(), unit.port.to_string(), "up".to_owned()] {
        assert!(line.contains(&part), "{line}");
    }
    let (_, said) = operate(&up, &["ps", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said).unwrap(), up.state().unwrap());
    let (code, said) = operate_in(&Place::with(SHOP), &["ps"]);
    assert!(code == Some(1) && said.contains("no `bluebox up` runs"), "{said}");
}

#[test]
fn a_box_that_never_used_its_proxy_is_named() {
    let mut up = Place::with(SHOP).up_with(&["--look-for-idle".to_owned(), "2s".to_owned()]);
    up.wait_until_up();
    assert_eq!(up.get("http://web/call?http://cart/items").0, 200);
    up.expect("cart has not used its proxy so far");
    up.signal(Signal::SIGINT);
    let (_, said) = up.ended();
    assert!(!said.contains("web has not used"), "{said}");
}

#[test]
fn each_call_is_one_line_on_each_side_and_no_secret_is_in_it() {
    let mut up = Place::with(ONE_BOX).up_with(&["--proxy-log-level=info".to_owned()]);
    up.wait_until_up();
    let (head, _) = request(up.gateway(), "POST", "http://cart/items?token=geheim", &["Authorization: Bearer geheim"], "geheim");
    assert!(head.contains("200"), "{head}");
    up.expect_all(&["called call=", "answered call="]);
    up.signal(Signal::SIGTERM);
    let (_, said) = up.ended();
    let line = |begins: &str| said.lines().find(|line| line.contains(begins)).unwrap().to_owned();
    for (line, fields) in [
        (line("called call="), &["to=cart", "method=POST", "path=\"/items\"", "status=200", "result=\"app\"", "ms="][..]),
        (line("answered call="), &["component=cart", "from=gateway", "method=POST", "path=\"/items\"", "attempt=1", "status=200", "ms="]),
    ] {
        assert!(fields.iter().all(|field| line.contains(field)) && !line.contains("geheim"), "{line}");
    }
    // It is one call: both sides name it by its id.
    let id = |line: String| line.split_once("call=").unwrap().1.split(' ').next().unwrap().trim_matches('"').to_owned();
    assert_eq!(id(line("called call=")), id(line("answered call=")));
}

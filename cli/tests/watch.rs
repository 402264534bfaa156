//! What a person sees of a running system: by commands, and on the page.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{On, Place, Up, bluebox, get_through, operate, operate_in, request, run, wait_until};
use serde_json::Value;

const CART: &str = "boxes:\n  cart: {command: [python3, app.py], partitions: 4, max-attempts: 2, first-backoff: 10ms}\n";

fn cart(on: On) -> Option<Up> {
    let mut up = Place::with(CART).up_with(&on.arguments()?);
    up.wait_until_up();
    Some(up)
}

fn page(up: &Up) -> SocketAddr {
    up.state().unwrap()["page"].as_str().unwrap().parse().unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|problem| panic!("{problem}: {text}"))
}

fn body(page: SocketAddr, path: &str) -> Value {
    let (status, body) = get_through(page, &format!("http://{page}{path}"));
    assert_eq!(status, 200, "{body}");
    json(&body)
}

/// What scripts get has no field that docs/operating.md doesn't name.
fn documented(value: &Value) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md")).unwrap();
    let named = page.split_once("## What scripts get").unwrap().1;
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            assert!(named.contains(&format!("`{name}`")), "docs/operating.md does not name {name:?}");
            documented(value);
        }),
        Value::Array(values) => values.iter().for_each(documented),
        _ => {}
    }
}

/// Where no `up` runs.
fn run_elsewhere(arguments: &[&str]) -> (Option<i32>, String) {
    let place = tempfile::TempDir::new().unwrap();
    let (status, said) = run(bluebox().args(arguments).current_dir(place.path()));
    (status.code(), said)
}

/// A call that the app doesn't answer, and the connection that waits for it.
fn hanging(up: &Up) -> TcpStream {
    let mut caller = TcpStream::connect(up.gateway()).unwrap();
    caller.write_all(b"POST http://cart/hang-once HTTP/1.1\r\nHost: cart\r\nContent-Length: 3\r\n\r\none").unwrap();
    wait_until("the call is under way", || up.place.path().join("hung").exists().then_some(()));
    caller
}

#[test]
fn status_on_the_embedded_log() {
    status_tells_how_each_component_does(On::Embedded);
}

#[test]
fn status_on_kafka() {
    status_tells_how_each_component_does(On::Kafka);
}

fn status_tells_how_each_component_does(on: On) {
    let Some(up) = cart(on) else { return };
    assert_eq!(up.get("http://cart/one").0, 200);
    assert_eq!(up.get("http://cart/broken").0, 502);
    let status = wait_until("both calls were counted", || {
        up.get("http://cart/more");
        let (code, said) = operate(&up, &["status", "-o", "json"]);
        assert_eq!(code, Some(0), "{said}");
        let status = json(&said);
        let cart = status["components"].as_array().unwrap().iter().find(|one| one["name"] == "cart")?.clone();
        (cart["dead_letters"] == 1 && cart["rate"].as_f64()? > 0.0 && cart["success"].as_f64()? > 0.0 && cart["p99_seconds"].as_f64()? > 0.0).then_some(cart)
    });
    assert_eq!((&status["class"], &status["partitions"], status["boxes"].as_array().unwrap().len()), (&"service".into(), &4.into(), 1), "{status}");
    let (_, said) = operate(&up, &["status"]);
    assert!(said.contains("COMPONENT") && said.lines().any(|line| line.starts_with("cart ") && line.ends_with(" 1")), "{said}");

    documented(&json(&operate(&up, &["status", "-o", "json"]).1));
    documented(&json(&operate(&up, &["ps", "-o", "json"]).1));
    documented(&json(&operate(&up, &["topics", "-o", "json"]).1));
    documented(&json(operate(&up, &["dlq", "list", "-o", "json"]).1.lines().next().unwrap()));
    let _caller = hanging(&up);
    documented(&json(&operate(&up, &["calls", "-o", "json"]).1));
    let (_, said) = operate(&up, &["calls"]);
    let line = said.lines().find(|line| line.contains("/hang-once")).unwrap_or_else(|| panic!("{said}"));
    let id = line.split(' ').next().unwrap();
    let (code, said) = operate(&up, &["calls", &id[..10]]);
    assert!(code == Some(0) && said.contains("has no end yet") && said.contains("accepted") && said.contains("POST /hang-once"), "{said}");
    let waits = wait_until("it is in the backlog", || {
        let status = body(page(&up), "/v1/status");
        let cart = status["components"].as_array()?.iter().find(|one| one["name"] == "cart")?.clone();
        (cart["backlog"] == 1 && cart["in_flight"] == 1).then_some(cart)
    });
    assert!(waits["oldest_ms"].as_u64().unwrap() > 1_600_000_000_000, "{waits}");
    let (_, metrics) = get_through(page(&up), &format!("http://{}/metrics", page(&up)));
    assert!(metrics.contains("bluebox_component_backlog_calls{component=\"cart\"} 1"), "{metrics}");

    // Its box dies: the story has both deliveries.
    common::send(up.unit("cart-0").unwrap().app, nix::sys::signal::Signal::SIGKILL);
    let story = wait_until("the call has ended", || {
        let story = json(&operate(&up, &["calls", id, "-o", "json"]).1);
        (story["ended"] == true).then_some(story)
    });
    documented(&story);
    let last = story["events"].as_array().unwrap().last().unwrap();
    assert_eq!((last["what"].as_str(), last["detail"].as_str()), (Some("ended"), Some("200 OK by its app, after 2 deliveries")), "{story}");

    let (code, said) = operate(&up, &["topics"]);
    assert!(code == Some(0) && said.contains(".cart.dead-letters") && !said.contains("missing"), "{said}");
    assert_eq!(operate(&up, &["topics", "--wrong"]), (Some(0), "all topics are as they should be\n".to_owned()));
}

/// What was accepted and has no box any more: only the log knows of it.
#[test]
fn a_backlog_is_seen_without_any_box() {
    let up = cart(On::Embedded).unwrap();
    let _caller = hanging(&up);
    // The fences of its partitions are committed too.
    wait_until("it is all that is left", || (body(page(&up), "/v1/status")["components"][0]["backlog"] == 1).then_some(()));
    let place = up.killed();
    wait_until("nothing runs any more", || place.processes().is_empty().then_some(()));
    let (code, said) = operate_in(&place, &["status", "-o", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let status = json(&said);
    assert_eq!((&status["components"][0]["name"], &status["components"][0]["backlog"]), (&"cart".into(), &1.into()), "{status}");
    let (_, said) = operate_in(&place, &["calls", "-o", "json"]);
    assert_eq!((json(&said).as_array().unwrap().len(), &json(&said)[0]["target"]), (1, &"/hang-once".into()), "{said}");
}

#[test]
fn a_dead_letter_is_replayed_on_the_page_and_by_nobody_elses() {
    let mut up = cart(On::Embedded).unwrap();
    let (_, problem) = request(up.gateway(), "POST", "http://cart/broken", &[], "x");
    let id = json(&problem)["call"].as_str().unwrap().to_owned();
    let at = page(&up);
    let letters = body(at, "/v1/dead-letters");
    assert_eq!((letters.as_array().unwrap().len(), &letters[0]["call"]), (1, &id.as_str().into()), "{letters}");
    for path in ["/v1/dead-letters?component=web", "/v1/status?component=web", "/v1/calls?callee=web"] {
        assert_eq!(get_through(at, &format!("http://{at}{path}")).0, 400, "{path}");
    }
    // The same by who has no way to the log, but to the one who watches it.
    let (code, said) = run_elsewhere(&["dlq", "list", "--watch", &at.to_string()]);
    assert!(code == Some(0) && said.contains(&id), "{said}");
    let (code, said) = run_elsewhere(&["calls", &id, "--watch", &at.to_string()]);
    assert!(code == Some(0) && said.contains("dead-letter"), "{said}");
    let (code, said) = run_elsewhere(&["dlq", "drop", "abcd", "--watch", &at.to_string()]);
    assert!(code == Some(1) && said.contains("no dead letter has this id"), "{said}");
    let (code, said) = run_elsewhere(&["topics", "--watch", &at.to_string()]);
    assert!(code == Some(0) && said.contains(".cart.dead-letters"), "{said}");
    let (code, said) = run_elsewhere(&["dlq", "show", &id[..8], "--watch", &at.to_string()]);
    assert!(code == Some(0) && said.contains("POST /broken\nhost: cart") && said.ends_with("\n\nx\n"), "{said}");
    let (code, said) = run_elsewhere(&["dlq", "show", &id[..8], "--body", "--watch", &at.to_string()]);
    assert_eq!((code, said.as_str()), (Some(0), "x"));
    let (code, said) = run_elsewhere(&["dlq", "show", "../status", "--watch", &at.to_string()]);
    assert!(code == Some(1) && said.contains("no dead letter has this id"), "{said}");
    std::fs::write(up.place.path().join("mended"), "").unwrap();
    let replay = |host: &str, fields: &[&str]| {
        let mut stream = TcpStream::connect(at).unwrap();
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        write!(
            stream,
            "POST /v1/dead-letters/{id}/replay HTTP/1.1\r\nHost: {host}\r\nUser-Agent: test\r\nConnection: close\r\nContent-Length: 0\r\n{fields}\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let own = at.to_string();
    assert_eq!(replay("evil.example", &[]), 403);
    assert_eq!(replay(&own, &["Origin: http://evil.example"]), 403);
    assert_eq!(request(at, "GET", &format!("http://{at}/v1/dead-letters/{id}/replay"), &[], "").0.split(' ').nth(1), Some("405"));
    assert_eq!(up.ledger().len(), 2, "nothing was replayed so far");
    assert_eq!(replay(&own, &[&format!("Origin: http://{own}")]), 200);
    let said = up.expect("was replayed");
    assert!(said.contains(&id) && said.contains("asked for by 127.0.0.1:") && said.contains("(test)"), "{said}");
    let story = wait_until("the replayed call has ended", || {
        let story = body(at, &format!("/v1/calls/{id}"));
        (story["ended"] == true && story["events"].as_array()?.len() == 6).then_some(story)
    });
    let words: Vec<&str> = story["events"].as_array().unwrap().iter().map(|event| event["what"].as_str().unwrap()).collect();
    assert_eq!(words.iter().filter(|word| **word == "accepted").count(), 2, "{story}");
    for word in ["dead-letter", "replayed", "ended"] {
        assert!(words.contains(&word), "{word}: {story}");
    }
    assert_eq!(replay(&own, &[]), 409, "it is settled");
}

#[test]
fn tap_shows_calls_as_they_come_and_end() {
    let up = cart(On::Embedded).unwrap();
    tap_shows_them(&up, &[]);
}

/// As from a laptop, which does not reach the log.
#[test]
fn who_watches_can_be_tapped() {
    let up = cart(On::Embedded).unwrap();
    tap_shows_them(&up, &["--watch", &page(&up).to_string()]);
    // What one tap took is there for the next: it ended with its reader.
    for _ in 0..6 {
        let (code, said) = run_elsewhere(&["tap", "--component", "nobody", "--watch", &page(&up).to_string()]);
        assert!(code == Some(1) && said.contains("never registered"), "{said}");
    }
    tap_shows_them(&up, &["--watch", &page(&up).to_string()]);
}

fn tap_shows_them(up: &Up, whom: &[&str]) {
    let mut tap = bluebox();
    tap.args(["tap", "--component", "cart", "--target", "/wanted", "-o", "json", "--limit", "2"]).args(whom).current_dir(up.place.path());
    let mut tap = tap.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(tap.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("tapping 4 partitions"), "{said}");
    up.get("http://cart/other");
    up.get("http://cart/wanted?1");
    let output = tap.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines: Vec<Value> = String::from_utf8(output.stdout).unwrap().lines().map(json).collect();
    lines.iter().for_each(documented);
    assert_eq!((&lines[0]["event"], &lines[0]["target"]), (&"accepted".into(), &"/wanted?1".into()), "{lines:?}");
    assert_eq!(
        (&lines[1]["event"], &lines[1]["status"], &lines[1]["deliveries"], &lines[1]["call"]),
        (&"ended".into(), &200.into(), &1.into(), &lines[0]["call"])
    );
}

#[test]
fn shells_are_told_how_to_complete() {
    for (shell, text) in [("bash", "complete -F _bluebox"), ("zsh", "#compdef bluebox"), ("fish", "complete -c bluebox")] {
        let (status, said) = run(bluebox().args(["completion", shell]));
        assert!(status.success() && said.contains(text) && said.contains("dlq"), "{shell}: {said}");
    }
}

/// A transaction whose only participant does not answer when it is to compensate: its id.
fn cancelling(up: &Up) -> String {
    let (head, lra) = request(up.gateway(), "POST", "http://txmgr/lra-coordinator/start?ClientID=trip", &[], "");
    assert!(head.contains(" 201 "), "{head}");
    let lra = lra.trim().trim_matches('"').to_owned();
    let (head, body) = request(up.gateway(), "PUT", &lra, &["Link: <http://cart/broken>; rel=\"compensate\", <http://cart/fine>; rel=\"complete\""], "");
    assert!(head.contains(" 200 "), "{head} {body}");
    // It is answered once it has ended, or after a while: nobody waits for that here.
    let (gateway, cancel) = (up.gateway(), format!("{lra}/cancel"));
    std::thread::spawn(move || request(gateway, "PUT", &cancel, &[], ""));
    lra.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn transactions_are_looked_after_on_the_page() {
    let mut up = Place::with(&format!("txmgr: 127.0.0.1:0\n{CART}")).up();
    up.wait_until_up();
    let at = page(&up);
    wait_until("the transaction manager is known", || (get_through(at, &format!("http://{at}/v1/transactions")).0 == 200).then_some(()));
    let (status, said) = get_through(at, &format!("http://{at}/v1/transactions?fialed"));
    assert!(status == 400 && said.contains("fialed") && said.contains("in-doubt"), "{said}");
    let (code, said) = operate(&up, &["topics"]);
    assert!(code == Some(0) && said.contains(".txmgr.transactions"), "{said}");
    let id = cancelling(&up);
    let listed = wait_until("its participant was asked in vain", || {
        let listed = body(at, "/v1/transactions?in-doubt");
        (listed[0]["participants"][0]["line"]["failures"].as_u64()? > 0).then_some(listed)
    });
    assert_eq!((&listed[0]["id"], &listed[0]["status"]), (&id.as_str().into(), &"Cancelling".into()), "{listed}");
    assert_eq!(body(at, &format!("/v1/transactions/{id}"))["id"], id.as_str());
    let post = |what: &str, fields: &[&str]| {
        let (head, _) = request(at, "POST", &format!("http://{at}/v1/transactions/{id}/{what}"), fields, "");
        head.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    assert_eq!(post("retry", &["Origin: http://evil.example"]), 403);
    assert_eq!(post("explode", &[]), 404);
    // With its participant mended it ends, once it is tried again.
    std::fs::write(up.place.path().join("mended"), "").unwrap();
    assert!((200..300).contains(&post("retry", &[])));
    let said = up.expect(&format!("transaction {id}: retry"));
    assert!(said.contains("asked for by 127.0.0.1:"), "{said}");
    wait_until("it is cancelled", || (body(at, &format!("/v1/transactions/{id}"))["status"] == "Cancelled").then_some(()));
}

/// The page in a real browser: what stands there once it has asked everything.
#[test]
fn the_page_in_a_browser() {
    let got = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/debian-tools")).arg("chromium").stdin(Stdio::null()).output().unwrap();
    if !got.status.success() {
        return bluebox_e2e::left_out_at_home("the page in a browser: no Chromium", &String::from_utf8_lossy(&got.stderr));
    }
    let chromium = String::from_utf8(got.stdout).unwrap().trim().to_owned();
    let mut up = Place::with(&format!("txmgr: 127.0.0.1:0\n{CART}")).up();
    up.wait_until_up();
    for n in 0..5 {
        assert_eq!(up.get(&format!("http://cart/items/{n}")).0, 200);
    }
    let transaction = cancelling(&up);
    // A target that would be a script, if the page took it for HTML.
    let (_, problem) = request(up.gateway(), "POST", "http://cart/broken", &[], "x");
    let id = json(&problem)["call"].as_str().unwrap().to_owned();
    let _caller = hanging(&up);
    let at = page(&up);
    // What was to compensate is one too, before long.
    wait_until("the log was looked at", || (body(at, "/v1/status")["components"][0]["dead_letters"].as_u64()? > 0).then_some(()));
    let place = up.place.path().to_owned();
    let browse = |arguments: &[&str]| {
        let mut command = Command::new(&chromium);
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--virtual-time-budget=6000",
            "--window-size=1180,1520",
        ]);
        command.arg(format!("--user-data-dir={}", place.join("browser").display())).args(arguments).arg(format!("http://{at}/#{id}"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let dom = browse(&["--dump-dom"]);
    for text in [
        "data-looked=\"yes\"",
        "data-rights=\"change\"",
        ">cart<",
        ">cart-0<",
        "/hang-once",
        "/broken",
        "has ended.",
        "dead-letter",
        ">replay<",
        "after 2 deliveries",
        &transaction,
        ">Cancelling<",
        "http://cart/broken: Compensating",
        " in vain",
        ">retry<",
    ] {
        assert!(dom.contains(text), "{text} is not on the page: {dom}");
    }
    assert!(dom.contains("<span id=\"problem\" role=\"alert\"></span>"), "a problem: {dom}");
    let picture = std::env::var_os("BLUEBOX_PAGE_PICTURE").map_or_else(|| place.join("page.png"), Into::into);
    browse(&[&format!("--screenshot={}", Path::new(&picture).display())]);
    let bytes = std::fs::metadata(&picture).unwrap().len();
    assert!(bytes > 10_000, "{bytes}");
}

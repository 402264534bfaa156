//! Rules about transactions, and the real transaction manager: apps that know nothing of transactions, as real processes, on each log.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use common::{On, Place, Up, bluebox, request, run, send, wait_until};
use nix::sys::signal::Signal;

const SYSTEM: &str = "txmgr: 127.0.0.1:0
boxes:
  trip:
    command: [python3, trip.py]
    transactions: {POST /trips: {type: required, time-limit: 1m}}
  hotel:
    command: [python3, trip.py]
    transactions: {POST /rooms: {type: mandatory, compensate: /rooms/undo, complete: /rooms/confirm}}
";

/// `trip` books a room, and passes nothing on. `?full` finds no seat afterwards; `?slow` takes its time the first time. `hotel` writes down what it is told.
const APP: &str = r#"
import os, time, urllib.error, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        status = 200
        lra = self.headers["Long-Running-Action"] or "none"
        if self.path.startswith("/rooms"):
            with open("ledger", "a") as ledger:
                ledger.write(f"{self.command} {self.path} {lra}\n")
        elif self.path.startswith("/trips"):
            try:
                urllib.request.urlopen(urllib.request.Request("http://hotel/rooms", method="POST", data=b"")).read()
                status = 409 if self.path.endswith("?full") else 201
            except urllib.error.HTTPError as error:
                status = error.code
            if self.path.endswith("?slow") and not os.path.exists("begun"):
                open("begun", "w").close()
                time.sleep(1000)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_PUT = do_POST
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

fn book(up: &Up, path: &str) -> String {
    let (head, _) = request(up.gateway(), "POST", &format!("http://trip{path}"), &[], "");
    head.lines().next().unwrap().to_owned()
}

/// What the hotel was told, by the transaction that it was told of.
fn told(up: &Up, what: &str) -> Vec<String> {
    up.ledger().iter().filter_map(|line| line.strip_prefix(what)).map(|lra| lra.trim().to_owned()).collect()
}

fn apps_that_know_nothing_of_transactions_take_part_in_them(on: On) {
    let Some(arguments) = on.arguments() else { return };
    let place = Place::with(SYSTEM);
    std::fs::write(place.path().join("trip.py"), APP).unwrap();
    let mut up = place.up_with(&arguments);
    up.wait_until_up();

    assert!(book(&up, "/trips").contains(" 201 "), "{:?}", up.ledger());
    let booked = told(&up, "POST /rooms ");
    wait_until("the room is confirmed", || (told(&up, "PUT /rooms/confirm ") == booked).then_some(()));
    assert_eq!(booked.len(), 1);

    assert!(book(&up, "/trips?full").contains(" 409 "), "{:?}", up.ledger());
    let second = told(&up, "POST /rooms ")[1].clone();
    wait_until("the room is given back", || (told(&up, "PUT /rooms/undo ") == [second.clone()]).then_some(()));
    assert_ne!(booked[0], second);

    // Outside of a transaction no room is booked.
    let (head, _) = request(up.gateway(), "POST", "http://hotel/rooms", &[], "");
    assert!(head.contains(" 412 ") && head.contains("bluebox-error: transaction"), "{head}");

    // The box dies while its app is at it: it is done again, in the same transaction, and that is closed once.
    let gateway = up.gateway();
    let caller = std::thread::spawn(move || request(gateway, "POST", "http://trip/trips?slow", &[], "").0);
    wait_until("the app is at it", || up.place.path().join("begun").exists().then_some(()));
    send(up.unit("trip-0").unwrap().proxy, Signal::SIGKILL);
    let head = caller.join().unwrap();
    assert!(head.contains(" 201 "), "{head}");
    let rooms = told(&up, "POST /rooms ");
    assert!(rooms.len() == 4 && rooms[2] == rooms[3], "{rooms:?}");
    wait_until("the room is confirmed", || told(&up, "PUT /rooms/confirm ").contains(&rooms[3]).then_some(()));
    assert_eq!(told(&up, "PUT /rooms/undo "), [second]);

    wait_until("all have ended", || {
        let (status, listed) = run(bluebox().args(["txn", "list"]).current_dir(up.place.path()));
        let ended = (listed.matches(" Closed ").count(), listed.matches(" Cancelled ").count());
        (status.success() && ended == (2, 1)).then_some(())
    });
}

#[test]
fn on_the_embedded_log() {
    apps_that_know_nothing_of_transactions_take_part_in_them(On::Embedded);
}

#[test]
fn on_kafka() {
    apps_that_know_nothing_of_transactions_take_part_in_them(On::Kafka);
}

//! The trip booking of examples/trips: three services in two languages, none of which has a library for transactions.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Place, bluebox, request, run, send, wait_until};
use nix::sys::signal::Signal;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/trips");

fn place() -> Place {
    let yaml = std::fs::read_to_string(format!("{EXAMPLE}/trips.yaml")).unwrap();
    // A port that the system chooses: others test at the same time.
    let place = Place::with(&yaml.replace("txmgr: true", "txmgr: 127.0.0.1:0"));
    for app in ["trips.py", "hotel.py"] {
        std::fs::copy(format!("{EXAMPLE}/{app}"), place.path().join(app)).unwrap();
    }
    let flight = place.path().join("flight");
    std::fs::create_dir(&flight).unwrap();
    let (status, said) = run(Command::new("go").args(["build", "-o"]).arg(flight.join("flight")).arg(".").current_dir(format!("{EXAMPLE}/flight")));
    assert!(status.success(), "{said}");
    place
}

/// The trips that have a room, or a seat.
fn booked(place: &Path, what: &str) -> Vec<String> {
    let mut trips: Vec<String> =
        std::fs::read_dir(place.join("bookings").join(what)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    trips.sort();
    trips
}

#[test]
fn a_trip_is_booked_as_a_whole_or_not_at_all() {
    if Command::new("go").arg("version").output().is_err() {
        return bluebox_e2e::left_out("the example trips", "Go is not installed");
    }
    let mut up = place().up();
    up.wait_until_up();
    let gateway = up.gateway();
    let book = |trip: &str| request(gateway, "POST", "http://trips/trips", &["Content-Type: application/json"], &format!("{{\"trip\": \"{trip}\"}}"));
    for trip in ["T-1", "T-2"] {
        let (head, body) = book(trip);
        assert!(head.starts_with("HTTP/1.1 201"), "{head} {body}");
    }
    // The transaction manager dies; what it has is in the log.
    send(up.unit("txmgr-0").unwrap().proxy, Signal::SIGKILL);
    let (head, body) = book("T-3");
    assert!(head.starts_with("HTTP/1.1 201"), "{head} {body}");
    up.wait_for_restart("txmgr-0", 1);
    // There is no fourth seat: its room is given back.
    let (head, body) = book("T-4");
    assert!(head.starts_with("HTTP/1.1 409") && body.contains("seat"), "{head} {body}");
    let all = ["T-1", "T-2", "T-3"];
    assert_eq!((booked(up.place.path(), "hotel"), booked(up.place.path(), "flight")), (all.map(str::to_owned).to_vec(), all.map(str::to_owned).to_vec()));
    // Asked for again, it is the same trip.
    let (head, body) = book("T-4");
    assert!(head.starts_with("HTTP/1.1 409"), "{head} {body}");
    let txn = |arguments: &[&str]| run(bluebox().arg("txn").args(arguments).current_dir(up.place.path()));
    let listed = wait_until("all transactions are listed", || Some(txn(&["list"])).filter(|(status, _)| status.success())).1;
    assert_eq!((listed.matches(" Closed ").count(), listed.matches(" Cancelled ").count()), (3, 1), "{listed}");
    let id = listed.lines().find(|line| line.contains("Cancelled")).unwrap().split(' ').next().unwrap().to_owned();
    let (status, shown) = txn(&["show", &id]);
    assert!(status.success() && shown.contains("room: Undone") && shown.contains("seat: Refused") && shown.contains("said no (409)"), "{shown}");
    let (status, refused) = txn(&["forget", &id]);
    assert!(!status.success() && refused.contains("only what has failed can be forgotten"), "{refused}");
    let (status, nothing) = txn(&["list", "--failed"]);
    assert!(status.success() && nothing == "no transactions\n", "{nothing}");
}

//! Every fail point, crossed with a panic, an error, a delay and SIGKILL, with real processes: every accepted call has its outcome, none is delivered after it, lanes are in
//! order, and what failed lives on or is started afresh.
//!
//! `cargo test -p bluebox-e2e --test points`; a sample of it runs on the Kafka of `scripts/kafka run -- …`.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests: one that can't go on ends, and each is named by what it shows")]

mod scene;
mod traffic;

use std::sync::{Condvar, Mutex};

use bluebox_e2e::{LogKind, World, process};

use crate::scene::At::{Cart, Log, Shop};
use crate::scene::Then::{Ends, LivesOn};
use crate::scene::While::{Calls, Handover, Park, Solo, Stop, Takeover};
use crate::scene::{ACTIONS, Row, play};

macro_rules! points {
    ($($test:ident: $point:literal at $at:ident during $during:ident, panic $panic:ident, error $error:ident;)+) => {
        const ROWS: &[Row] = &[$(Row { point: $point, at: $at, during: $during, panic: $panic, error: $error },)+];

        mod embedded {
            use super::*;
            $(#[test]
            fn $test() {
                at_once(LogKind::Embedded, Row { point: $point, at: $at, during: $during, panic: $panic, error: $error }, &ACTIONS);
            })+
        }
    };
}

points! {
    out_intercepted: "out.intercepted" at Shop during Calls, panic LivesOn, error LivesOn;
    out_routed: "out.routed" at Shop during Calls, panic LivesOn, error LivesOn;
    out_enveloped: "out.enveloped" at Shop during Calls, panic LivesOn, error LivesOn;
    out_expected: "out.expected" at Shop during Calls, panic LivesOn, error LivesOn;
    bulk_chunk: "bulk.chunk" at Shop during Calls, panic LivesOn, error LivesOn;
    bulk_stored: "bulk.stored" at Shop during Calls, panic LivesOn, error LivesOn;
    out_taken_in: "out.taken-in" at Shop during Calls, panic LivesOn, error LivesOn;
    out_append: "out.append" at Shop during Calls, panic LivesOn, error LivesOn;
    out_appending: "out.appending" at Shop during Calls, panic LivesOn, error LivesOn;
    out_accepted: "out.accepted" at Shop during Calls, panic LivesOn, error LivesOn;

    log_append: "log.append" at Log during Calls, panic Ends, error LivesOn;
    log_write: "log.write" at Log during Calls, panic Ends, error LivesOn;
    log_written: "log.written" at Log during Calls, panic Ends, error LivesOn;
    log_sync: "log.sync" at Log during Calls, panic Ends, error LivesOn;
    log_commit: "log.commit" at Log during Calls, panic Ends, error LivesOn;

    in_assigned: "in.assigned" at Cart during Takeover, panic Ends, error Ends;
    in_fence: "in.fence" at Cart during Takeover, panic Ends, error LivesOn;
    in_fenced: "in.fenced" at Cart during Takeover, panic Ends, error LivesOn;
    in_load_parked: "in.load-parked" at Cart during Takeover, panic Ends, error Ends;
    in_load_index: "in.load-index" at Cart during Takeover, panic Ends, error Ends;
    in_search: "in.search" at Cart during Takeover, panic Ends, error Ends;
    in_searched: "in.searched" at Cart during Takeover, panic Ends, error Ends;
    in_read: "in.read" at Cart during Calls, panic Ends, error Ends;
    in_taken: "in.taken" at Cart during Calls, panic Ends, error Ends;
    in_turn: "in.turn" at Cart during Calls, panic Ends, error Ends;
    in_solo: "in.solo" at Cart during Solo, panic Ends, error Ends;
    in_lease: "in.lease" at Cart during Calls, panic Ends, error LivesOn;
    in_connect: "in.connect" at Cart during Calls, panic Ends, error LivesOn;
    body_given_to_the_app: "body.given" at Cart during Calls, panic Ends, error LivesOn;
    in_head: "in.head" at Cart during Calls, panic Ends, error LivesOn;
    bulk_chunk_of_an_answer: "bulk.chunk" at Cart during Calls, panic Ends, error LivesOn;
    bulk_stored_of_an_answer: "bulk.stored" at Cart during Calls, panic Ends, error LivesOn;
    in_body: "in.body" at Cart during Calls, panic Ends, error LivesOn;
    in_answered: "in.answered" at Cart during Calls, panic Ends, error Ends;
    in_park: "in.park" at Cart during Park, panic Ends, error LivesOn;
    in_parked: "in.parked" at Cart during Park, panic Ends, error LivesOn;
    in_dead_letter: "in.dead-letter" at Cart during Calls, panic Ends, error LivesOn;
    in_dead_lettered: "in.dead-lettered" at Cart during Calls, panic Ends, error LivesOn;
    in_outcome: "in.outcome" at Cart during Calls, panic Ends, error LivesOn;
    in_outcome_appended: "in.outcome-appended" at Cart during Calls, panic Ends, error LivesOn;
    in_index: "in.index" at Cart during Calls, panic Ends, error LivesOn;
    in_indexed: "in.indexed" at Cart during Calls, panic Ends, error LivesOn;
    in_mark: "in.mark" at Cart during Calls, panic Ends, error Ends;
    in_commit: "in.commit" at Cart during Calls, panic Ends, error LivesOn;
    in_committed: "in.committed" at Cart during Calls, panic Ends, error LivesOn;
    in_control: "in.control" at Cart during Park, panic Ends, error Ends;
    in_handover: "in.handover" at Cart during Handover, panic Ends, error Ends;
    in_release: "in.release" at Cart during Handover, panic Ends, error Ends;
    in_leave: "in.leave" at Cart during Stop, panic Ends, error Ends;

    back_read: "back.read" at Shop during Calls, panic Ends, error Ends;
    back_matched: "back.matched" at Shop during Calls, panic Ends, error LivesOn;
    back_first_byte: "back.first-byte" at Shop during Calls, panic LivesOn, error LivesOn;
    body_given_to_the_caller: "body.given" at Shop during Calls, panic Ends, error LivesOn;
}

/// On Kafka, one of each kind of step, and that at which nobody can know.
#[test]
fn a_sample_on_kafka() {
    const SAMPLE: [(&str, &str); 10] = [
        ("out.appending", "kill"),
        ("out.accepted", "panic"),
        ("in.fenced", "kill"),
        ("in.search", "panic"),
        ("in.turn", "kill"),
        ("in.outcome-appended", "error"),
        ("in.outcome-appended", "kill"),
        ("in.committed", "error"),
        ("in.release", "kill"),
        ("back.read", "kill"),
    ];
    for some in SAMPLE.chunks(3) {
        in_threads(some.iter().map(|(point, action)| {
            let row = *ROWS.iter().find(|row| row.point == *point).unwrap();
            (row, *action, move || one(LogKind::Kafka, row, action))
        }));
    }
}

/// The harness is tested too: a log that acknowledges what it then can't write is found out. What is lost with one batch can be something that nobody waits for; so it is
/// tried several times. (Not with SIGKILL: the acknowledgement might not get out.)
#[test]
fn a_log_that_acknowledges_too_early_is_found() {
    drop(process::faulty());
    let row = *ROWS.iter().find(|row| row.point == "log.write").unwrap();
    let fail = move |n: usize| {
        let (tell, told) = std::sync::mpsc::channel();
        one_of_few(LogKind::Embedded, &format!("reply-before-durable {n}"), |mut world| async move {
            tell.send(play(&mut world, row, "error", Some("reply-before-durable")).await).unwrap();
        });
        told.recv().unwrap()
    };
    for round in 0..10 {
        let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(move || fail(4 * round + n))).collect();
        let broken: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect();
        if !broken.is_empty() {
            eprintln!("reply-before-durable: after {} failures: {broken:?}", 4 * (round + 1));
            return;
        }
    }
    panic!("reply-before-durable was not found");
}

/// None is forgotten: neither here nor in the documentation.
#[test]
fn every_point_is_met_and_documented() {
    let listed = String::from_utf8(process::faulty().arg("fail-points").output().unwrap().stdout).unwrap();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reliability.md")).unwrap();
    assert!(listed.lines().count() >= 25, "{listed}");
    for line in listed.lines() {
        let (point, says) = line.split_once('\t').unwrap();
        assert!(ROWS.iter().any(|row| row.point == point), "{point} has no row here");
        let row = format!("| `{point}` | {says} |");
        assert!(text.contains(&row), "docs/reliability.md lacks this line: {row}");
    }
    assert!(ROWS.iter().all(|row| listed.contains(&format!("{}\t", row.point))), "a row names no point");
}

fn at_once(log: LogKind, row: Row, actions: &'static [&'static str]) {
    in_threads(actions.iter().map(move |action| (row, *action, move || one(log, row, action))));
}

fn one(log: LogKind, row: Row, action: &str) {
    // Built before the time of the test runs.
    drop(process::faulty());
    let name = format!("{} at {:?}: {action}", row.point, row.at);
    let action = action.to_owned();
    let title = name.clone();
    one_of_few(log, &title, |mut world| async move {
        if let Err(broken) = play(&mut world, row, &action, None).await {
            panic!("{name}: {broken}");
        }
    });
}

/// Runs a test in a world of its own, of which there are not many at once: each is four or five processes, and a hundred of these on two cores take longer to start than anything may take here.
fn one_of_few<F: Future<Output = ()>>(log: LogKind, name: &str, test: impl FnOnce(World) -> F) {
    const AT_ONCE: usize = 8;
    static RUNNING: Mutex<usize> = Mutex::new(0);
    static ENDED: Condvar = Condvar::new();
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            *RUNNING.lock().unwrap() -= 1;
            ENDED.notify_one();
        }
    }
    let _running = {
        let mut running = ENDED.wait_while(RUNNING.lock().unwrap(), |running| *running >= AT_ONCE).unwrap();
        *running += 1;
        Running
    };
    bluebox_e2e::run(log, name, test);
}

/// They mostly wait: so all of them at once, but for [`one_of_few`].
fn in_threads<F: FnOnce() + Send + 'static>(tests: impl Iterator<Item = (Row, &'static str, F)>) {
    let threads: Vec<_> = tests.map(|(row, action, test)| (row, action, std::thread::spawn(test))).collect();
    let broken: Vec<_> = threads.into_iter().filter_map(|(row, action, thread)| thread.join().err().map(|_| format!("{}={action}", row.point))).collect();
    assert!(broken.is_empty(), "{broken:?}: see above");
}

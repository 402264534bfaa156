//! The demo: that it ends well, and that it does not when the ledger is off.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use std::process::Command;

use common::run;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo");

#[test]
fn every_accepted_order_arrives_at_every_app() {
    if Command::new("go").arg("version").output().is_err() {
        return bluebox_e2e::left_out("the demo", "Go is not installed");
    }
    let place = tempfile::tempdir().unwrap();
    let mut demo = Command::new(SCRIPT);
    let (status, said) = run(demo.args(["--orders", "120", "--bluebox", env!("CARGO_BIN_EXE_bluebox"), "--place"]).arg(place.path()));
    assert!(status.success(), "{said}");
    for line in ["the app of shop-0, in the middle of its work", "the proxy of payment-1, in the middle of its work", "Orders sent: 120   accepted: 120"] {
        assert!(said.contains(line), "{line:?} is missing in\n{said}");
    }
}

/// Runs the end of the demo on a ledger in which one app lacks an order.
#[test]
fn a_lost_order_is_told_and_ends_with_a_failure() {
    let place = tempfile::tempdir().unwrap();
    let script = "
import importlib.machinery, importlib.util, json, pathlib, sys
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader('demo', sys.argv[1])
demo = importlib.util.module_from_spec(importlib.util.spec_from_loader('demo', loader))
loader.exec_module(demo)
demo.PLACE = pathlib.Path(sys.argv[2])
(demo.PLACE / 'ledger').mkdir()
for app in demo.APPS:
    orders = ['A-0000', 'A-0001', 'A-0001'] if app != 'mail' else ['A-0001']
    (demo.PLACE / 'ledger' / (app + '.jsonl')).write_text(''.join(json.dumps({'order': order}) + chr(10) for order in orders))
demo.conclude([('A-0000', 'done', 0.1, 'R'), ('A-0001', 'done', 0.1, 'R')], 0, 1)
";
    let (status, said) = run(Command::new("python3").args(["-c", script, SCRIPT]).arg(place.path()));
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("The demo FAILED: these accepted orders never arrived: A-0000 at mail"), "{said}");
}

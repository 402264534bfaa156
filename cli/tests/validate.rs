//! `bluebox validate`: what is wrong, where, and what would be right. (The table of all that can be wrong is beside the code that reads the file.)

mod common;

use common::{Place, bluebox, run};

fn validate(yaml: &str) -> (Option<i32>, String) {
    let place = Place::with(yaml);
    let (status, said) = run(bluebox().args(["validate", "bluebox.yaml"]).current_dir(place.path()));
    assert!(place.processes().is_empty() && !place.path().join(".bluebox").exists(), "it starts nothing");
    (status.code(), said)
}

#[test]
fn a_right_file() {
    let (code, said) = validate("boxes:\n  cart: {command: [python3, app.py], port: 8080, replicas: 2}\n");
    assert_eq!((code, said.as_str()), (Some(0), "bluebox.yaml: right: 1 box, 2 replicas, 1 component\n"));
}

#[test]
fn every_problem_with_its_place() {
    let (code, said) = validate("boxes:\n  cart:\n    comand: [python3, app.py]\n    port: 99999\n");
    assert_eq!(code, Some(1));
    let expected = "\
error: bluebox.yaml:3:5: boxes.cart.comand: unknown key; did you mean `command`?
    3 |     comand: [python3, app.py]
      |     ^
bluebox.yaml:4:11: boxes.cart.port: `99999`: a port is a number from 1 to 65535
    4 |     port: 99999
      |           ^
";
    assert_eq!(said, expected);
}

#[test]
fn ordinals_that_can_never_be() {
    let (code, said) = validate("boxes:\n  app: {command: [python3, app.py], class: stateful, replicas: 3, partitions: 2}\n");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("2:3: boxes.app: `app` is stateful: with 2 partitions it can have 2 ordinals, and there are 3 replicas; say `partitions: 3` or more"),
        "{said}"
    );
    let (code, said) = validate("boxes:\n  app: {command: [python3, app.py], class: stateful, replicas: 3, partitions: 4}\n");
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn limits_that_contradict_each_other() {
    let (code, said) = validate("boxes:\n  cart: {command: [python3, app.py], ttl: 100h}\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("cart: keep-calls (2days) must be above ttl (4days 4h)"), "{said}");
}

#[test]
fn a_port_that_two_are_to_have() {
    for (yaml, clash) in [
        ("boxes:\n  a: {command: [python3, app.py], port: 4155}\ngateway: 127.0.0.1:4155\n", Some("port 4155 is to be that of gateway and of a")),
        ("boxes:\n  a: {command: [python3, app.py], port: 4155}\ngateway: 0.0.0.0:4155\n", Some("port 4155 is to be that of gateway and of a")),
        (
            "boxes:\n  a: {command: [python3, app.py]}\ngateway: 127.0.0.1:4155\ntxmgr: 127.0.0.1:4155\n",
            Some("port 4155 is to be that of gateway and of txmgr"),
        ),
        // An app is called at 127.0.0.1 alone.
        ("boxes:\n  a: {command: [python3, app.py], port: 4155}\ngateway: 127.0.0.2:4155\n", None),
    ] {
        let (code, said) = validate(yaml);
        assert_eq!(code, Some(i32::from(clash.is_some())), "{said}");
        assert!(clash.is_none_or(|clash| said.contains(clash)), "{said}");
    }
}

#[test]
fn a_command_that_is_not_there_is_a_warning() {
    let (code, said) = validate("boxes:\n  cart: {command: [pyhton3, app.py]}\n");
    assert_eq!(code, Some(0));
    assert!(said.contains("warning: line 2: box cart: `pyhton3`: no such command in PATH"), "{said}");
}

#[test]
fn a_file_that_is_not_there() {
    let (status, said) = run(bluebox().args(["validate", "/nowhere/at/all.yaml"]));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("/nowhere/at/all.yaml: can't be read") && said.contains("boxes: {cart:"), "{said}");
}

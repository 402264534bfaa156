//! Pods as they come (`golden/NAME.in.yaml`) and as they become (`golden/NAME.out.yaml`). `UPDATE=1 cargo test -p bluebox-injector --test golden` writes what becomes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use bluebox_injector::{Decision, decide};
use common::{FewLimits, labelled, settings};
use serde_json::Value;

fn becomes(name: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let pod: Value = serde_saphyr::from_str(&std::fs::read_to_string(directory.join(format!("{name}.in.yaml"))).unwrap()).unwrap();
    let Decision::Injected(injected) = decide(&pod, &labelled("shop"), &settings(), &FewLimits) else { panic!("{name} is not injected") };
    let warnings: String = injected.warnings.iter().map(|warning| format!("# warning: {warning}\n")).collect();
    let text = format!("{warnings}{}", serde_saphyr::to_string(&injected.pod).unwrap());
    let file = directory.join(format!("{name}.out.yaml"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{name}");
    // What was written reads as what it was.
    assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), injected.pod);

    let Decision::Injected(again) = decide(&injected.pod, &labelled("shop"), &settings(), &FewLimits) else { panic!("{name} can't be injected again") };
    assert!(again.patch.0.is_empty(), "{name} is changed again: {}", again.patch);
}

#[test]
fn a_deployment_without_annotations() {
    becomes("deployment");
}

#[test]
fn all_annotations() {
    becomes("annotated");
}

#[test]
fn a_guaranteed_pod() {
    becomes("guaranteed");
}

#[test]
fn a_job() {
    becomes("job");
}

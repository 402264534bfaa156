//! Pods as they come (`golden/NAME.in.yaml`) and as they become (`golden/NAME.out.yaml`). `UPDATE=1 cargo test -p bluebox-injector --test golden` writes what becomes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use bluebox_injector::selection::Place;
use bluebox_injector::{Decision, Settings, decide};
use common::{FewLimits, labelled, restricted, settings};
use serde_json::Value;

fn becomes(name: &str) {
    becomes_in(name, &settings());
}

fn becomes_in(name: &str, settings: &Settings) {
    becomes_there(name, settings, &labelled("shop"));
}

fn becomes_there(name: &str, settings: &Settings, place: &Place) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let pod: Value = serde_saphyr::from_str(&std::fs::read_to_string(directory.join(format!("{name}.in.yaml"))).unwrap()).unwrap();
    let Decision::Injected(injected) = decide(&pod, place, settings, &FewLimits) else { panic!("{name} is not injected") };
    let warnings: String = injected.warnings.iter().map(|warning| format!("# warning: {warning}\n")).collect();
    let text = format!("{warnings}{}", serde_saphyr::to_string(&injected.pod).unwrap());
    let file = directory.join(format!("{name}.out.yaml"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{name}");
    // What was written reads as what it was.
    assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), injected.pod);

    let Decision::Injected(again) = decide(&injected.pod, place, settings, &FewLimits) else { panic!("{name} can't be injected again") };
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

/// A cluster without restart rules, and every kind of liveness probe.
#[test]
fn a_cluster_without_rules() {
    becomes_in("probes", &settings().with_restart_rules(false));
}

/// A namespace where no container may change the pod's network.
#[test]
fn a_restricted_namespace() {
    becomes_there("restricted", &settings(), &restricted("shop"));
}

/// A pod of a StatefulSet whose component has ordinals.
#[test]
fn a_stateful_pod() {
    becomes("stateful");
}

#[test]
fn a_job() {
    becomes("job");
}

/// Whom the halves of a pod are restarted by.
#[test]
fn who_restarts_a_box() {
    let mut pod = serde_json::json!({"metadata": {"name": "cart"}, "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]}});
    let judge = |pod: &Value, rules: bool| {
        let Decision::Injected(injected) = decide(pod, &labelled("shop"), &settings().with_restart_rules(rules), &FewLimits) else {
            panic!("it is not injected")
        };
        let text = injected.pod.to_string();
        (injected.report.restart, text.contains("restartPolicyRules"), text.contains("bluebox-redirect"), text.contains("--incarnation"))
    };
    assert_eq!(judge(&pod, true), ("rules".to_owned(), true, true, true));
    assert_eq!(judge(&pod, false), ("probes".to_owned(), false, true, true));
    pod["metadata"]["annotations"] = serde_json::json!({"bluebox.dev/restart": "probes"});
    assert_eq!(judge(&pod, true), ("probes".to_owned(), false, true, true), "a pod that wants no rules");
    pod["metadata"]["annotations"] = serde_json::json!({"bluebox.dev/restart": "separate"});
    assert_eq!(judge(&pod, true), ("separate".to_owned(), false, true, false));
    for asked in [Value::Null, serde_json::json!({"bluebox.dev/restart": "probes"})] {
        pod["metadata"]["annotations"] = asked;
        pod["spec"]["restartPolicy"] = "OnFailure".into();
        assert_eq!(judge(&pod, true), ("separate".to_owned(), false, true, false), "the pod of a Job");
    }
}

/// Who wants no rules in a cluster that has them gets what everybody gets in one that has none, with every kind of probe.
#[test]
fn probes_where_there_are_rules_are_those_where_there_are_none() {
    let mut pod: Value = serde_saphyr::from_str(include_str!("golden/probes.in.yaml")).unwrap();
    pod["metadata"]["annotations"]["bluebox.dev/restart"] = "probes".into();
    let injected = [true, false].map(|rules| {
        let Decision::Injected(injected) = decide(&pod, &labelled("shop"), &settings().with_restart_rules(rules), &FewLimits) else {
            panic!("it is not injected")
        };
        injected
    });
    assert_eq!(injected[0].report.restart, "probes");
    assert_eq!(injected[0], injected[1]);
}

/// Who says himself how a container is restarted is left so, and told.
#[test]
fn own_rules_stay() {
    let own = serde_json::json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = serde_json::json!({"metadata": {"name": "cart"}, "spec": {"containers": [
        {"name": "app", "ports": [{"containerPort": 8080}], "restartPolicy": "Never", "restartPolicyRules": own},
        {"name": "other"},
    ]}});
    let Decision::Injected(injected) = decide(&pod, &labelled("shop"), &settings(), &FewLimits) else { panic!("it is not injected") };
    let containers = &injected.pod["spec"]["containers"];
    assert_eq!((&containers[0]["restartPolicy"], &containers[0]["restartPolicyRules"]), (&"Never".into(), &own));
    assert_eq!(containers[1]["restartPolicyRules"].as_array().map(Vec::len), Some(2));
    assert!(injected.warnings.iter().any(|warning| warning.contains("container app") && warning.contains("bluebox.dev/restart")), "{:?}", injected.warnings);
}

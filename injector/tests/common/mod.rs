//! What the tests have in common.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "each test takes what it needs, and fails by panicking")]

pub mod legal;

use std::collections::BTreeMap;

use bluebox_injector::redirect::ENFORCE;
use bluebox_injector::selection::{ENABLED, INJECTION, Place};
use bluebox_injector::{Limits, Settings};

/// One limit that any text ending with `s` is a value of; the proxy's own are where its flags are.
pub struct FewLimits;

impl Limits for FewLimits {
    fn names(&self) -> Vec<String> {
        vec!["attempt-timeout".to_owned(), "route".to_owned()]
    }

    fn flag(&self, name: &str, value: &str) -> Result<String, String> {
        if name == "route" || value.ends_with('s') { Ok(format!("--{name}={value}")) } else { Err("write a duration".to_owned()) }
    }
}

/// How many cases a property is tried with: `CASES=1000000` for a long run.
pub fn cases(usual: u32) -> u32 {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// Those of a cluster with restart rules.
pub fn settings() -> Settings {
    Settings::try_new("registry.example/bluebox:0.1.0").unwrap().with_restart_rules(true)
}

/// A namespace that asks for proxies.
pub fn labelled(namespace: &str) -> Place {
    Place { namespace: namespace.to_owned(), labels: BTreeMap::from([(INJECTION.to_owned(), ENABLED.to_owned())]) }
}

/// One whose standard forbids that a container changes the pod's network.
pub fn restricted(namespace: &str) -> Place {
    let mut place = labelled(namespace);
    place.labels.insert(ENFORCE.to_owned(), "restricted".to_owned());
    place
}

/// What the API server asks when a pod is made.
pub fn review_of(namespace: &str, pod: serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "0c9a8d74",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

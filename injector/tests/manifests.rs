//! The files in `manifests/base` that are made from the code are what it makes. `UPDATE=1 cargo test -p bluebox-injector --test manifests` writes them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;

use bluebox_injector::keep::Names;
use bluebox_injector::manifests::{bindings, policy, webhook};
use bluebox_injector::settings::DEFAULT_NAMESPACE;
use serde::Serialize;

fn is(file: &str, documents: &[serde_json::Value]) {
    let yaml: Vec<_> = documents.iter().map(|document| serde_saphyr::to_string(document).unwrap()).collect();
    let text = format!("# Made from injector/src/manifests.rs by `UPDATE=1 cargo test -p bluebox-injector --test manifests`.\n{}", yaml.join("---\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base").join(file);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{file}");
}

fn json(object: impl Serialize) -> serde_json::Value {
    serde_json::to_value(object).unwrap()
}

#[test]
fn when_the_webhook_is_asked() {
    is("webhook.yaml", &[json(webhook(&Names::of(DEFAULT_NAMESPACE)))]);
}

#[test]
fn what_the_api_server_checks_itself() {
    let [namespaces, pods] = bindings(&Names::of(DEFAULT_NAMESPACE));
    is("policy.yaml", &[json(policy()), json(namespaces), json(pods)]);
}

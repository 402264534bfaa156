//! `bluebox inject`: what the webhook does, by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use bluebox_injector::offline::{OfflineError, Output, inject_all};
use common::{FewLimits, settings};
use serde_json::Value;

fn inject(yaml: &str) -> Result<Output, OfflineError> {
    inject_all(yaml, &settings(), &FewLimits)
}

fn documents(output: &Output) -> Vec<Value> {
    serde_saphyr::from_multiple(&output.yaml).unwrap()
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart}
spec:
  template:
    metadata: {labels: {app: other}}
    spec:
      containers: [{name: app, image: 'cart:1', ports: [{containerPort: 8080}]}]
      volumes: [{name: data, configMap: {name: x, defaultMode: 0644}}]
";

/// As whom the proxies of a pod call.
fn named(pod: &serde_json::Value) -> Vec<&str> {
    let containers = pod["initContainers"].as_array().unwrap().iter().filter(|container| container["name"] == "proxy");
    containers.flat_map(|proxy| proxy["args"].as_array().unwrap()).filter_map(|arg| arg.as_str()).filter(|arg| arg.starts_with("--name=")).collect()
}

#[test]
fn a_deployments_pods_get_the_proxy_and_its_name() {
    let output = inject(DEPLOYMENT).unwrap();
    let template = &documents(&output)[0]["spec"]["template"];
    assert_eq!(named(&template["spec"]), ["--name=cart"]);
    assert!(template["metadata"].get("ownerReferences").is_none());
    assert_eq!(template["spec"]["volumes"][0]["configMap"]["defaultMode"], 0o644);
    assert_eq!(output.notes, ["Deployment cart: gets a proxy: it is cart and serves [\"cart=8080\"]"]);
    // Twice is once.
    assert_eq!(inject(&output.yaml).unwrap().yaml, output.yaml);
}

#[test]
fn every_kind_with_pods_and_nothing_else() {
    let pod = "{spec: {containers: [{name: app, ports: [{containerPort: 80}]}]}}";
    let mut yaml = format!("kind: CronJob\nmetadata: {{name: report}}\nspec: {{jobTemplate: {{spec: {{template: {pod}}}}}}}\n");
    for kind in ["ReplicaSet", "StatefulSet", "DaemonSet", "Job"] {
        yaml.push_str(&format!("---\nkind: {kind}\nmetadata: {{name: one}}\nspec: {{template: {pod}}}\n"));
    }
    yaml.push_str("---\nkind: Pod\nmetadata: {name: shell}\nspec: {containers: [{name: app, ports: [{containerPort: 80}]}]}\n---\n# nothing\n---\n");
    yaml.push_str("kind: List\nitems: [{kind: Pod, metadata: {name: listed}, spec: {containers: []}}, {kind: Service, metadata: {name: s}}]\n---\n");
    yaml.push_str("kind: ConfigMap\nmetadata: {name: c}\ndata: {key: 'yes', text: \"a\\nb\\n\"}\n---\nkind: Widget\nspec: {template: {spec: {}}}\n");
    let output = inject(&yaml).unwrap();
    assert_eq!(output.yaml.matches("name: proxy").count(), 7, "{}", output.yaml);
    let all = documents(&output);
    assert_eq!(all.len(), 9);
    assert_eq!(named(&all[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]), ["--name=report"]);
    assert_eq!((&all[7]["data"]["key"], &all[7]["data"]["text"]), (&"yes".into(), &"a\nb\n".into()));
    assert_eq!(all[8], serde_json::json!({"kind": "Widget", "spec": {"template": {"spec": {}}}}));
}

#[test]
fn who_opted_out_stays_as_he_is() {
    let output = inject("kind: Pod\nmetadata: {name: shell, labels: {bluebox.dev/injection: disabled}}\nspec: {containers: [{name: app}]}\n").unwrap();
    assert!(!output.yaml.contains("proxy") && output.notes[0].contains("bluebox.dev/injection: disabled"), "{output:?}");
}

#[test]
fn a_mistake_names_the_workload_and_nothing_comes_out() {
    let error = inject(&format!("{DEPLOYMENT}---\nkind: Pod\nmetadata: {{name: shell, annotations: {{bluebox.dev/port: x}}}}\nspec: {{containers: []}}\n"))
        .unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("Pod shell: ") && text.contains("bluebox.dev/port"), "{text}");
    assert!(matches!(inject("a: [").unwrap_err(), OfflineError::Yaml(_)));
}

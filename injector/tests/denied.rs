//! What can't work is refused, with what it is and what would be right.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use bluebox_injector::mistake::denial;
use bluebox_injector::{Decision, decide};
use common::{FewLimits, labelled, settings};
use serde_json::{Value, json};

fn refused(pod: Value) -> String {
    match decide(&pod, &labelled("shop"), &settings(), &FewLimits) {
        Decision::Denied(mistakes) => denial(&mistakes),
        other => panic!("not refused: {other:?}"),
    }
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "cart"}, "spec": spec})
}

#[test]
fn a_foreign_container_of_the_proxys_name() {
    let text = refused(pod(json!({"containers": [{"name": "app"}, {"name": "proxy", "image": "envoy:1"}]})));
    assert!(text.contains("envoy:1") && text.contains("give yours another"), "{text}");
    let text = refused(pod(json!({"initContainers": [{"name": "proxy", "image": "envoy:1"}], "containers": [{"name": "app"}]})));
    assert!(text.contains("envoy:1") && text.contains("registry.example/bluebox:0.1.0"), "{text}");
    let ours = json!({"name": "proxy", "image": "registry.example/bluebox:0.1.0"});
    let text = refused(pod(json!({"initContainers": [ours, ours], "containers": [{"name": "app"}]})));
    assert!(text.contains("two have this name"), "{text}");
}

#[test]
fn volumes_that_are_blueboxs() {
    let text = refused(pod(json!({"containers": [{"name": "app"}], "volumes": [{"name": "bluebox-kafka", "hostPath": {"path": "/"}}]})));
    assert!(text.contains("bluebox-kafka"), "{text}");
    let text = refused(pod(json!({"containers": [{"name": "app", "volumeMounts": [{"name": "bluebox-kafka", "mountPath": "/steal"}]}]})));
    assert!(text.contains("container app") && text.contains("for its proxy alone"), "{text}");
}

#[test]
fn ports_that_are_the_proxys() {
    let text = refused(pod(json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}, {"containerPort": 4141}]}]})));
    assert!(text.contains("4141") && text.contains("container app"), "{text}");
}

#[test]
fn an_app_with_a_proxy_of_its_own() {
    let env = json!([{"name": "http_proxy", "value": "http://corporate:3128"}]);
    let text = refused(pod(json!({"containers": [{"name": "app", "env": env}]})));
    assert!(text.contains("http_proxy") && text.contains("corporate") && text.contains("app-containers"), "{text}");
    let from = json!([{"name": "HTTP_PROXY", "valueFrom": {"configMapKeyRef": {"name": "net", "key": "proxy"}}}]);
    let text = refused(pod(json!({"containers": [{"name": "app", "env": from}]})));
    assert!(text.contains("HTTP_PROXY"), "{text}");
}

#[test]
fn an_app_container_that_is_not_there() {
    let mut pod = pod(json!({"containers": [{"name": "web"}, {"name": "logs"}]}));
    pod["metadata"]["annotations"] = json!({"bluebox.dev/app-containers": "app"});
    let text = refused(pod);
    assert!(text.contains("\"app\"") && text.contains("web, logs"), "{text}");
}

#[test]
fn a_name_that_no_component_can_have() {
    let text = refused(json!({"metadata": {"name": "cart.v2"}, "spec": {"containers": [{"name": "app"}]}}));
    assert!(text.contains("cart.v2") && text.contains("bluebox.dev/component"), "{text}");
}

#[test]
fn what_is_no_pod() {
    for broken in [json!({"spec": {"containers": "many"}}), json!([]), json!({"spec": 7}), json!("pod")] {
        let text = refused(broken);
        assert!(text.contains("can't be read as a pod"), "{text}");
    }
    let text = refused(json!({"metadata": {"name": "cart"}}));
    assert!(text.contains("no spec"), "{text}");
}

#[test]
fn several_mistakes_are_told_together() {
    let text = refused(pod(json!({"containers": [{"name": "proxy", "image": "x"}, {"name": "app", "ports": [{"containerPort": 4140}]}]})));
    assert!(text.contains("(1)") && text.contains("(2)"), "{text}");
}

//! What can't work is refused, with what it is and what would be right.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use bluebox_injector::mistake::denial;
use bluebox_injector::selection::Place;
use bluebox_injector::{Decision, decide};
use common::{FewLimits, labelled, restricted, settings};
use serde_json::{Value, json};

fn refused(pod: Value) -> String {
    refused_in(&labelled("shop"), pod)
}

fn refused_in(place: &Place, pod: Value) -> String {
    match decide(&pod, place, &settings(), &FewLimits) {
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
    let text = refused_in(&restricted("shop"), pod(json!({"containers": [{"name": "app", "env": env}]})));
    assert!(text.contains("http_proxy") && text.contains("corporate") && text.contains("app-containers"), "{text}");
    let from = json!([{"name": "HTTP_PROXY", "valueFrom": {"configMapKeyRef": {"name": "net", "key": "proxy"}}}]);
    let text = refused_in(&restricted("shop"), pod(json!({"containers": [{"name": "app", "env": from}]})));
    assert!(text.contains("HTTP_PROXY"), "{text}");
    // Where the kernel catches calls it can work: whoever made it is told.
    let decision = decide(&pod(json!({"containers": [{"name": "app", "env": env}]})), &labelled("shop"), &settings(), &FewLimits);
    let Decision::Injected(injected) = decision else { panic!("refused: {decision:?}") };
    assert!(injected.warnings.iter().any(|warning| warning.contains("http_proxy") && warning.contains("not durable")), "{:?}", injected.warnings);
}

/// Two redirects in one pod would catch each other's connections; where the app itself sends its calls to the proxy there is only one.
#[test]
fn another_mesh() {
    let istio = || pod(json!({"containers": [{"name": "app"}, {"name": "istio-proxy", "image": "istio/proxyv2:1"}]}));
    let text = refused(istio());
    assert!(text.contains("Istio") && text.contains("istio-proxy") && text.contains("bluebox.dev/redirect: env"), "{text}");
    let mut env = istio();
    env["metadata"]["annotations"] = json!({"bluebox.dev/redirect": "env"});
    for (pod, place) in [(env, labelled("shop")), (istio(), restricted("shop"))] {
        assert!(matches!(decide(&pod, &place, &settings(), &FewLimits), Decision::Injected(_)));
    }
}

/// The rules of the kernel know no names.
#[test]
fn a_name_that_the_redirect_can_t_leave_out() {
    let excluding = |redirect: &str| {
        let mut pod = pod(json!({"containers": [{"name": "app"}]}));
        pod["metadata"]["annotations"] = json!({"bluebox.dev/excluded-hosts": "db.example,10.9.0.0/16", "bluebox.dev/redirect": redirect});
        pod
    };
    let text = refused(excluding("nftables"));
    assert!(text.contains("\"db.example\"") && text.contains("bluebox.dev/redirect: env") && !text.contains("\"10.9"), "{text}");
    assert!(matches!(decide(&excluding("env"), &labelled("shop"), &settings(), &FewLimits), Decision::Injected(_)));
}

/// The rules of the kernel know the proxy by its user.
#[test]
fn an_app_that_runs_as_the_proxys_user() {
    let of_container = json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 64140}}]});
    let of_pod = json!({"containers": [{"name": "app"}], "securityContext": {"runAsUser": 64140}});
    for spec in [of_container.clone(), of_pod] {
        let text = refused(pod(spec));
        assert!(text.contains("the user of container app") && text.contains("64140"), "{text}");
    }
    assert!(matches!(decide(&pod(of_container), &restricted("shop"), &settings(), &FewLimits), Decision::Injected(_)));
    let other = json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 1}}], "securityContext": {"runAsUser": 64140}});
    assert!(matches!(decide(&pod(other), &labelled("shop"), &settings(), &FewLimits), Decision::Injected(_)));
}

/// Ordinals are counted by a StatefulSet, replicas by whatever else makes the pods.
#[test]
fn two_authorities_over_how_many_there_are() {
    let mut pod = pod(json!({"containers": [{"name": "app"}]}));
    pod["metadata"]["annotations"] =
        json!({"bluebox.dev/components": "cart=8080,stock=8081", "bluebox.dev/class": "cart=service,stock=stateful", "bluebox.dev/partitions": "3"});
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-1", "uid": "1", "controller": true}]);
    let text = refused(pod.clone());
    assert!(text.contains("the class of stock") && text.contains("pods of a StatefulSet"), "{text}");
    pod["metadata"]["ownerReferences"][0]["kind"] = "StatefulSet".into();
    assert!(matches!(decide(&pod, &labelled("shop"), &settings(), &FewLimits), Decision::Injected(_)));
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

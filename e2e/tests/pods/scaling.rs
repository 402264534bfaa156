//! Scaling by what waits, down to nothing; and the commands of somebody at a laptop, who reaches the API server and nothing else.

use std::process::{Command, Output, Stdio};
use std::time::Instant;

use bluebox_e2e::process;
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait};
use crate::report::Report;
use crate::{answered, caller, name};

const MONITORING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/monitoring");

/// `bluebox watch` as its manifest makes it run.
fn watch(cluster: &Cluster) {
    cluster.may_reach_kafka("bluebox");
    cluster.run(&["apply", "-f", &format!("{MONITORING}/watch.yaml")], None);
    cluster.run(&["rollout", "status", "deployment/bluebox-watch", "-n", "bluebox", "--timeout=240s"], None);
}

/// The whole of `bluebox`, as somebody has it outside of all images.
fn bluebox() -> Command {
    let mut command = process::bluebox();
    // Nothing of a system is in this directory.
    command.env_remove("KUBECONFIG").current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// What a command says, which must do what it is told; by the kubeconfig that is named.
fn says(cluster: &Cluster, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = bluebox().args(arguments).args(["--kubeconfig", cluster.kubeconfig()]).output().unwrap();
    assert!(status.success(), "bluebox {}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

pub(crate) fn laptop(cluster: &Cluster, report: &Report) {
    watch(cluster);
    let from = caller(cluster);
    answered(cluster, "shop", &from, "http://cart/work/laptop");
    let began = Instant::now();
    let status: Value = serde_json::from_str(&says(cluster, &["status", "-o", "json"])).unwrap();
    report.found("statusFromALaptopMs", u64::try_from(began.elapsed().as_millis()).unwrap().into());
    assert!(status["components"].as_array().unwrap().iter().any(|component| component["name"] == "cart"), "{status}");
    assert!(says(cluster, &["topics"]).contains("bluebox.cart.dead-letters"));
    assert!(serde_json::from_str::<Value>(&says(cluster, &["calls", "-o", "json"])).unwrap().is_array());
    says(cluster, &["dlq", "list"]);
    // By KUBECONFIG, as kubectl does it, where no `up` runs.
    let Output { status, stderr, .. } = bluebox().arg("status").env("KUBECONFIG", cluster.kubeconfig()).output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));

    let tap = bluebox()
        .args(["tap", "--component", "cart", "--target", "/work/tapped", "--limit", "2", "-o", "json", "--kubeconfig", cluster.kubeconfig()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tap = Some(tap);
    let events = wait("a call is tapped", || {
        cluster.call("shop", &from, "http://cart/work/tapped");
        tap.as_mut()?.try_wait().unwrap()?;
        let Output { status, stdout, stderr } = tap.take()?.wait_with_output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        Some(String::from_utf8(stdout).unwrap())
    });
    assert!(events.lines().count() == 2 && events.contains("\"event\":\"accepted\""), "{events}");

    // What is not there is said, with what to do.
    let Output { status, stderr, .. } = bluebox().args(["status", "-n", "nowhere", "--kubeconfig", cluster.kubeconfig()]).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.code() == Some(1) && said.contains("does not run in the namespace nowhere") && said.contains("watch.yaml"), "{said}");
    let Output { status, stderr, .. } = bluebox().args(["txn", "list", "--kubeconfig", cluster.kubeconfig()]).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.code() == Some(1) && said.contains("the transaction manager does not run in the namespace default"), "{said}");
}

pub(crate) fn to_nothing(cluster: &Cluster, report: &Report) {
    const METRICS: &str = "apiservice/v1beta1.external.metrics.k8s.io";
    if !cluster.get(&[METRICS]).is_null() {
        return println!("        SKIPPED: this cluster has other external metrics");
    }
    watch(cluster);
    cluster.deployment("shop", "sleeper", 1, |_| {});
    let from = caller(cluster);
    answered(cluster, "shop", &from, "http://sleeper/work/awake");
    cluster.goes_with_us(METRICS.to_owned());
    cluster.run(&["apply", "-f", &format!("{MONITORING}/autoscaling/external-metrics.yaml")], None);
    wait("the API server asks bluebox-watch", || {
        let service = cluster.get(&[METRICS]);
        let conditions = service["status"]["conditions"].as_array()?.clone();
        conditions.iter().any(|condition| condition["type"] == "Available" && condition["status"] == "True").then_some(())
    });
    cluster.apply(&json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "sleeper", "namespace": "shop"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "sleeper"}, "minReplicas": 0, "maxReplicas": 4,
            "metrics": [{"type": "External", "external": {
                "metric": {"name": "bluebox_component_backlog_calls", "selector": {"matchLabels": {"component": "sleeper"}}},
                "target": {"type": "AverageValue", "averageValue": "64"},
            }}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }));
    wait("with nothing to do there is no pod", || {
        let autoscaler = cluster.get(&["hpa", "sleeper", "-n", "shop"]);
        let none = cluster.pods_until_the_end("shop", "sleeper").is_empty();
        if !none {
            println!("    not yet: {}", autoscaler["status"]["conditions"]);
        }
        none.then_some(())
    });
    // What is accepted waits, and wakes it.
    let began = Instant::now();
    let answer = cluster.call("shop", &from, "http://sleeper/work/woken&wait=240");
    assert_eq!(answer["status"], 200, "{answer}");
    report.found("wokenFromZeroMs", u64::try_from(began.elapsed().as_millis()).unwrap().into());
    let pods = cluster.pods("shop", "sleeper");
    assert!(!pods.is_empty(), "somebody must have answered");
    println!("    {} was woken: {} ms", name(&pods[0]), began.elapsed().as_millis());
    assert_eq!(cluster.ledger("woken")["ended"], 1);
    cluster.run(&["delete", "hpa", "sleeper", "-n", "shop"], None);
    cluster.run(&["delete", "deployment", "sleeper", "-n", "shop"], None);
}

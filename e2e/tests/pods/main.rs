//! Real pods on a real node: what a user sees of Bluebox on Kubernetes. `make e2e`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a check that can't go on says why and ends")]

mod cluster;
mod injector;
mod install;
mod kafka;
mod losses;
mod reboot;
mod redirected;
mod report;
mod scaling;
mod transactions;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use cluster::{BUSYBOX, Cluster, app, has_proxy, is_ready, name, statuses, wait};
use report::Report;
use serde_json::{Value, json};

/// Something that has to hold.
type Check = fn(&Cluster, &Report);

/// One test, because there is one cluster. A check that fails does not keep the others from being made.
#[test]
fn real_pods() {
    let Some(cluster) = Cluster::start() else { return };
    let report = Report::default();
    let checks: [(&str, Check); 22] = [
        ("the five commands of docs/install.md", install::five_commands),
        ("an unannotated Deployment gets its proxies and serves", deployment),
        ("a call between two apps that know nothing of Bluebox", call),
        ("an app that is no more than busybox httpd, and a Job that calls it and completes", job),
        ("who opted out and who never asked run bare; a label of a pod's own asks; what was injected twice is as if once", selection),
        ("the pods of a StatefulSet", stateful_set),
        ("a component with a Service, from its first call on, its metrics, and a server that speaks first", redirected::services),
        ("ordinals of a StatefulSet, and a second component of their name", redirected::ordinals),
        ("a namespace with the standard `restricted`", restricted),
        ("each loss of a half restarts the whole box", losses::all),
        ("each loss of a half, while another box answers", losses::beside_another),
        ("sagas over two Deployments, and the death of their managers", transactions::check),
        ("a rolling update under load", rolling_update),
        ("scaling down under load", scale_down),
        ("the commands of somebody at a laptop", scaling::laptop),
        ("with nothing to do there is no pod, and what is accepted wakes one", scaling::to_nothing),
        ("what a proxy adds to the start of a pod", start_up),
        ("Kafka is killed in the midst of calls; with it away pods start, and new calls get 503", kafka::killed),
        ("certificates are rotated while pods are made, and none is denied", injector::certificates_are_rotated),
        ("with the injector away for two minutes labelled pods wait, others start, and calls go on", injector::is_away),
        ("the logs of a proxy can be read", logs),
        // Last: what is at an address afterwards is another pod.
        ("a node that starts again", reboot::check),
    ];
    let only = std::env::var("E2E_ONLY").unwrap_or_default();
    for (number, (name, check)) in checks.into_iter().enumerate() {
        // The first three are what others build on.
        if !only.is_empty() && number > 2 && !only.split(',').any(|part| name.contains(part)) {
            continue;
        }
        println!("----    {name}");
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| check(&cluster, &report)));
        let why = |panic: Box<dyn std::any::Any + Send>| {
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        };
        report.check(name, result.map(|()| began.elapsed()).map_err(why));
    }
    let right = report.write();
    if !right {
        cluster.keep_logs();
    }
    assert!(right, "not all is right: see above");
}

/// The pod that makes calls.
fn caller(cluster: &Cluster) -> String {
    name(&cluster.ready("shop", "shop", 1)[0]).to_owned()
}

/// Until a call is answered with 200. A pod may be ready before the caller's proxy has read that its component is registered.
fn answered(cluster: &Cluster, namespace: &str, from: &str, to: &str) -> Value {
    wait(&format!("{to} is answered"), || {
        let answer = cluster.call(namespace, from, to);
        if answer["status"] != 200 {
            println!("    not yet: {answer}");
        }
        (answer["status"] == 200).then_some(answer)
    })
}

/// What the injector says that it did to a pod.
fn injected(pod: &Value) -> Value {
    serde_json::from_str(pod["metadata"]["annotations"]["bluebox.dev/injected"].as_str().unwrap()).unwrap()
}

fn deployment(cluster: &Cluster, report: &Report) {
    let pods = cluster.ready("shop", "cart", 2);
    assert!(pods.iter().all(has_proxy));
    let injected = injected(&pods[0]);
    assert_eq!((&injected["name"], &injected["serves"]), (&json!("cart"), &json!(["cart=8080"])));
    report.found("restart", injected["restart"].clone());
    assert_eq!(injected["redirect"], "nftables");
    assert!(pods.iter().all(|pod| !redirected::is_told_of_a_proxy(pod) && redirected::init_containers(pod)[0] == "bluebox-redirect"));
    caller(cluster);
}

fn call(cluster: &Cluster, report: &Report) {
    let from = caller(cluster);
    let answer = answered(cluster, "shop", &from, "http://cart/work/first");
    assert!(answer["body"].as_str().is_some_and(|body| body.contains("\"attempt\":\"1\"")), "it was no durable call: {answer}");
    assert_eq!(cluster.ledger("first")["ended"], 1);
    let mut times: Vec<u64> = (0..20).map(|n| cluster.call("shop", &from, &format!("http://cart/work/more-{n}"))["ms"].as_u64().unwrap()).collect();
    times.sort_unstable();
    report.found("callMedianMs", times[10].into());
}

fn job(cluster: &Cluster, _: &Report) {
    let container = |name: &str, command: Value| json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": command});
    cluster.deployment("shop", "files", 1, |pod| {
        let mut httpd =
            container("httpd", json!(["/bin/sh", "-c", "mkdir -p /www && echo hello from files > /www/index.html && exec httpd -f -p 8081 -h /www"]));
        httpd["ports"] = json!([{"containerPort": 8081}]);
        pod["spec"]["containers"] = json!([httpd]);
    });
    cluster.ready("shop", "files", 1);
    cluster.apply(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "report", "namespace": "shop"},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "report"}}, "spec": {
            "restartPolicy": "Never",
            "containers": [container("wget", json!(["/bin/wget", "-q", "-O", "-", "http://files/index.html"]))],
        }}},
    }));
    wait("the Job completes", || {
        let job = cluster.get(&["job", "report", "-n", "shop"]);
        assert_ne!(job["status"]["failed"], 1, "{}", cluster.run(&["logs", "-n", "shop", "job/report", "--all-containers"], None));
        (job["status"]["succeeded"] == 1).then_some(())
    });
    assert_eq!(cluster.run(&["logs", "-n", "shop", "job/report", "-c", "wget"], None), "hello from files\n");
    let pod = &cluster.pods("shop", "report")[0];
    assert!(has_proxy(pod) && injected(pod)["restart"] == "separate", "the pod of a Job has a proxy, and is restarted as it says itself");
}

fn selection(cluster: &Cluster, _: &Report) {
    cluster.namespace("elsewhere", &[]);
    let pod = |name: &str, namespace: &str, label: Option<&str>| {
        let mut labels = json!({"app": name});
        if let Some(label) = label {
            labels["bluebox.dev/injection"] = label.into();
        }
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {"containers": [app(&[])]}}));
        has_proxy(&cluster.ready(namespace, name, 1)[0])
    };
    assert!(!pod("opted-out", "shop", Some("disabled")));
    assert!(!pod("plain", "elsewhere", None));
    assert!(pod("labelled", "elsewhere", Some("enabled")));
    // What was injected is left as it is, should it come again.
    let first = cluster.pods("shop", "cart").remove(0);
    let metadata = json!({"name": "again", "labels": first["metadata"]["labels"], "annotations": first["metadata"]["annotations"]});
    let again = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": first["spec"]});
    let made = cluster.run(&["create", "--dry-run=server", "-n", "shop", "-o", "json", "-f", "-"], Some(&again));
    assert_eq!(serde_json::from_str::<Value>(&made).unwrap()["spec"], first["spec"]);
}

fn stateful_set(cluster: &Cluster, _: &Report) {
    cluster.apply(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "stock", "namespace": "shop"},
        "spec": {"replicas": 2, "serviceName": "stock", "selector": {"matchLabels": {"app": "stock"}}, "template": {
            "metadata": {"labels": {"app": "stock"}}, "spec": {"containers": [app(&[])]},
        }},
    }));
    let pods = cluster.ready("shop", "stock", 2);
    assert!(pods.iter().all(has_proxy));
    answered(cluster, "shop", &caller(cluster), "http://stock/work/stock");
}

/// Both the namespace's own check and the app's containers are strict; the proxy has to be too.
fn restricted(cluster: &Cluster, _: &Report) {
    cluster.namespace("restricted", &["bluebox.dev/injection=enabled", "pod-security.kubernetes.io/enforce=restricted"]);
    for name in ["strict", "strict-caller"] {
        cluster.deployment("restricted", name, 1, |pod| {
            pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
            pod["spec"]["containers"][0]["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        });
    }
    cluster.ready("restricted", "strict", 1);
    let caller = cluster.ready("restricted", "strict-caller", 1).remove(0);
    assert!(redirected::is_told_of_a_proxy(&caller) && !redirected::init_containers(&caller).contains(&"bluebox-redirect"));
    let from = name(&caller).to_owned();
    answered(cluster, "restricted", &from, "http://strict/work/strict");
}

/// Ten calls a second to a component for so long, and something meanwhile: what came of them.
fn under_load(cluster: &Cluster, component: &str, name: &str, seconds: u64, meanwhile: impl FnOnce()) -> Value {
    let from = caller(cluster);
    cluster.ask("shop", &from, &format!("/load?to=http://{component}/work&name={name}&rate=10&seconds={seconds}")).unwrap();
    meanwhile();
    wait("the load is over", || cluster.ask("shop", &from, "/loaded").filter(|loaded| loaded["done"] == true))
}

/// Calls under way all the while: what came of them, and what the ledger says.
fn cart_under_load(cluster: &Cluster, report: &Report, name: &str, meanwhile: impl FnOnce()) {
    const SECONDS: u64 = 40;
    let loaded = under_load(cluster, "cart", name, SECONDS, meanwhile);
    let ledger = cluster.ledger(name);
    report.found(name, json!({"load": loaded, "ledger": ledger}));
    assert_eq!((&loaded["answered"]["200"], &loaded["failed"]), (&json!(SECONDS * 10), &json!([])), "calls were lost");
    assert_eq!((&ledger["ended"], &ledger["againAfterEnd"]), (&json!(SECONDS * 10), &json!([])), "a call was delivered again after it had completed");
    assert_eq!(ledger["straight"], 0, "calls came past the log");
}

fn rolling_update(cluster: &Cluster, report: &Report) {
    cart_under_load(cluster, report, "rolling", || {
        cluster.run(&["rollout", "restart", "deployment/cart", "-n", "shop"], None);
        cluster.run(&["rollout", "status", "deployment/cart", "-n", "shop", "--timeout=240s"], None);
    });
}

fn scale_down(cluster: &Cluster, report: &Report) {
    cluster.run(&["scale", "deployment/cart", "-n", "shop", "--replicas=3"], None);
    cluster.ready("shop", "cart", 3);
    cart_under_load(cluster, report, "scaling", || {
        cluster.run(&["scale", "deployment/cart", "-n", "shop", "--replicas=1"], None);
        cluster.ready("shop", "cart", 1);
    });
    cluster.run(&["scale", "deployment/cart", "-n", "shop", "--replicas=2"], None);
}

/// From the making of a pod until it is ready, with a proxy and without, in turns.
fn start_up(cluster: &Cluster, report: &Report) {
    const PAIRS: usize = 10;
    cluster.namespace("start", &["bluebox.dev/injection=enabled"]);
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..PAIRS {
        for (label, times) in ["disabled", "enabled"].into_iter().zip(&mut times) {
            let pod_name = format!("{label}-{number}");
            // One name for all of them: which components there are is no question of theirs.
            let metadata = json!({"name": pod_name, "namespace": "start", "labels": {"app": "start", "bluebox.dev/injection": label}});
            let began = Instant::now();
            cluster.apply(
                &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [app(&[])], "terminationGracePeriodSeconds": 2}}),
            );
            // It is told as soon as it is so; who asks again and again would find out some of it late.
            cluster.run(&["wait", &format!("pod/{pod_name}"), "-n", "start", "--for=condition=Ready", "--timeout=240s"], None);
            times.push(u64::try_from(began.elapsed().as_millis()).unwrap());
            cluster.run(&["delete", "pod", &pod_name, "-n", "start"], None);
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    let all = times.clone();
    let [without, with] = times.map(|times| (times[PAIRS / 2 - 1] + times[PAIRS / 2]) / 2);
    report.found("startUpMs", json!({"without": without, "with": with, "added": with.saturating_sub(without), "all": {"without": all[0], "with": all[1]}}));
}

fn logs(cluster: &Cluster, _: &Report) {
    let said = cluster.run(&["logs", "-n", "shop", name(&cluster.ready("shop", "cart", 2)[0]), "-c", "proxy"], None);
    assert!(said.contains("a proxy started") && said.contains("joined the group"), "{said}");
    assert!(said.lines().all(|line| !line.contains('\u{1b}')), "colours for no one: {said}");
}

/// Whether a pod is as it was before; for messages.
fn told(pod: &Value) -> String {
    let all: Vec<_> = statuses(pod).map(|c| format!("{} {} {}", c["name"], c["restartCount"], c["state"])).collect();
    format!("ready {}, {}", is_ready(pod), all.join("; "))
}

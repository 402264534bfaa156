//! The redirect in real pods: apps that obey no variable, names with and without a Service, and all else that goes on as if nobody were there.

use std::process::Command;

use serde_json::{Value, json};

use crate::answered;
use crate::cluster::{Cluster, app, is_ready, name, wait};
use crate::report::Report;

/// So many calls to a component that has just come have to be answered.
const FIRST: u64 = 40;

/// The init containers of a pod, in their order.
pub(crate) fn init_containers(pod: &Value) -> Vec<&str> {
    pod["spec"]["initContainers"].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
}

/// Whether a container of the app is told of a proxy.
pub(crate) fn is_told_of_a_proxy(pod: &Value) -> bool {
    let env = pod["spec"]["containers"][0]["env"].as_array().into_iter().flatten();
    env.into_iter().any(|variable| ["HTTP_PROXY", "http_proxy"].iter().any(|name| variable["name"] == *name))
}

/// A component with a Service, which has other ports too: its metrics, and a server that speaks first. It is called long before it is there, and no call reaches it past the log.
pub(crate) fn services(cluster: &Cluster, report: &Report) {
    cluster.namespace("redirect", &["bluebox.dev/injection=enabled"]);
    let ports: Vec<_> =
        [(80, 8080), (8090, 8090), (9090, 9090)].map(|(port, to)| json!({"name": format!("port-{port}"), "port": port, "targetPort": to})).into();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bank", "namespace": "redirect"}, "spec": {"selector": {"app": "bank"}, "ports": ports}});
    cluster.apply(&service);
    cluster.deployment("redirect", "teller", 1, |_| {});
    let teller = cluster.ready("redirect", "teller", 1).remove(0);
    let from = name(&teller).to_owned();
    cluster.ask("redirect", &from, &format!("/load?to=http://bank/work&name=come&rate=20&seconds=200&enough={FIRST}")).unwrap();
    cluster.deployment("redirect", "bank", 1, |pod| {
        let app = &mut pod["spec"]["containers"][0];
        app["ports"] = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 8090}, {"containerPort": 9090}]);
        let env = app["env"].as_array_mut().unwrap();
        env.extend([json!({"name": "GREET", "value": ":8090"}), json!({"name": "METRICS", "value": ":9090"})]);
    });
    cluster.deployment("redirect", "past", 1, |pod| {
        pod["metadata"]["annotations"] = json!({"bluebox.dev/excluded-ports": "80"});
    });
    cluster.ready("redirect", "bank", 1);
    assert_eq!(init_containers(&teller), ["bluebox-redirect", "proxy"]);
    assert!(!is_told_of_a_proxy(&teller));
    // Until it has registered for the first time nobody knows that it is a component; but until then no pod of it is ready, and its Service leads nowhere.
    let loaded = wait("the first calls are answered", || cluster.ask("redirect", &from, "/loaded").filter(|loaded| loaded["done"] == true));
    let ledger = cluster.ledger("come");
    let failed = loaded["failed"].as_array().map(Vec::len);
    report.found(
        "firstCalls",
        json!({"answered": loaded["answered"], "failed": failed, "slowestMs": loaded["slowestMs"], "triedAgain": loaded["triedAgain"], "ledger": ledger}),
    );
    assert!(loaded["answered"]["200"].as_u64() >= Some(FIRST), "{loaded}");
    assert_eq!(ledger["straight"], 0, "calls came past the log: {ledger}");
    for host in ["bank", "bank.redirect", "bank.redirect.svc.cluster.local"] {
        let answer = answered(cluster, "redirect", &from, &format!("http://{host}/work/{host}"));
        assert!(answer["body"].as_str().unwrap().contains("\"attempt\":\"1\""), "it was no durable call: {answer}");
    }
    // Without a Service, its name is the proxy's to answer.
    let answer = answered(cluster, "redirect", &from, "http://past/work/without");
    assert!(answer["body"].as_str().unwrap().contains("\"attempt\":\"1\""), "it was no durable call: {answer}");
    let metrics = answered(cluster, "redirect", &from, "http://bank:9090/metrics");
    assert!(metrics["body"].as_str().unwrap().contains("attempt=\"\""), "metrics are no call: {metrics}");
    let greeted = cluster.ask("redirect", &from, "/greeted?at=bank:8090").unwrap();
    assert!(greeted["said"].as_str().is_some_and(|said| said.starts_with("220 bank-")), "{greeted}");
    // What is excluded goes straight to a pod.
    let past = name(&cluster.ready("redirect", "past", 1)[0]).to_owned();
    let answer = answered(cluster, "redirect", &past, "http://bank/work/past");
    assert!(answer["body"].as_str().unwrap().contains("\"attempt\":\"\""), "it was a durable call: {answer}");
    without_rules(cluster, &teller);
}

/// A pod whose rules are gone is not ready until they are back.
fn without_rules(cluster: &Cluster, pod: &Value) {
    let (Some(_), Ok(nameserver)) = (&cluster.node, std::env::var("E2E_ADDRESS")) else {
        return println!("        SKIPPED: the node is not on this machine");
    };
    let process = cluster.process(pod, "proxy").to_string();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/images/bluebox");
    let redirect = |flags: &[&str]| {
        let done = Command::new("nsenter").args(["--target", &process, "--net", program, "redirect"]).args(flags).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let now = || cluster.get(&["pod", name(pod), "-n", "redirect"]);
    redirect(&["--remove"]);
    wait("a pod without rules is not ready", || (!is_ready(&now())).then_some(()));
    let said = cluster.run(&["logs", "-n", "redirect", name(pod), "-c", "proxy"], None);
    assert!(said.contains("the redirect is not in place any more"), "{said}");
    redirect(&["--proxy-uid=64140", "--transparent-port=4143", "--dns-port=4153", &format!("--nameservers={nameserver}")]);
    wait("it is ready again", || is_ready(&now()).then_some(()));
}

/// The pods of a StatefulSet as ordinals: each is called by its own name, and a call to one that is not there yet waits for it.
pub(crate) fn ordinals(cluster: &Cluster, _: &Report) {
    let set = |replicas: u32| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "safe", "namespace": "shop"},
            "spec": {"replicas": replicas, "serviceName": "safe", "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "safe"}}, "template": {
                "metadata": {"labels": {"app": "safe"}, "annotations": {"bluebox.dev/class": "stateful", "bluebox.dev/partitions": "3"}},
                "spec": {"containers": [app(&[])]},
            }},
        })
    };
    cluster.apply(&set(2));
    cluster.ready("shop", "safe", 2);
    let from = crate::caller(cluster);
    let at = |answer: &Value| answer["body"].as_str().and_then(|body| serde_json::from_str::<Value>(body).ok()).map(|body| body["pod"].clone());
    for pod in ["safe-1", "safe-0", "safe-1"] {
        let answer = answered(cluster, "shop", &from, &format!("http://{pod}.safe/work/{pod}"));
        assert_eq!(at(&answer), Some(pod.into()), "{answer}");
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cluster.call("shop", &from, "http://safe-2.safe/work/safe-2"));
        cluster.apply(&set(3));
        let answer = waiting.join().unwrap();
        assert_eq!((&answer["status"], at(&answer)), (&json!(200), Some("safe-2".into())), "{answer}");
    });
    // The second of two components of one name and different classes doesn't start, and says why.
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late-safe", "namespace": "shop", "labels": {"app": "late-safe"}, "annotations": {"bluebox.dev/component": "safe"}},
        "spec": {"containers": [app(&[])]}}));
    let said = wait("the loser says why it doesn't start", || {
        // While it waits to be started again, only what waits can say it.
        let said = ["proxy", "bluebox-redirect"].map(|container| cluster.kubectl(&["logs", "late-safe", "-n", "shop", "-c", container], None).output);
        said.into_iter().find(|said| said.contains("former_proxy") && said.contains("registered"))
    });
    assert!(said.contains("component safe") && said.contains("Stateful"), "{said}");
    cluster.run(&["delete", "pod", "late-safe", "-n", "shop", "--wait=false"], None);
}

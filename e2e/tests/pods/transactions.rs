//! The transaction manager as `manifests/txmgr` has it, and sagas over two Deployments that know nothing of Bluebox.

use serde_json::{Value, json};

use crate::cluster::{BUSYBOX, Cluster, name, wait};
use crate::has_proxy;
use crate::report::Report;

const NAMESPACE: &str = "travel";

/// A step of a saga: `/work/NAME` of the app, which the ledger knows of, and `/work/undo-NAME`.
fn step(app: &str, path: &str) -> Value {
    json!({"name": app, "action": {"url": format!("http://{app}{path}")}, "compensation": {"url": format!("http://{app}/work/undo-{app}")}})
}

/// Asks again until somebody answers: an app may be there before its proxy knows of other components. Under a key, so that it is one saga.
const ASK: &str =
    "until /bin/wget -q -O - --header 'Prefer: wait=200' --header \"Idempotency-Key: $KEY\" --post-data \"$SAGA\" http://txmgr/v1/sagas; do /bin/sleep 1; done";

/// A Job with nothing but busybox, which asks for a saga; what it was answered.
fn saga(cluster: &Cluster, job: &str, saga: &Value, meanwhile: impl FnOnce()) -> Value {
    let env = json!([{"name": "SAGA", "value": saga.to_string()}, {"name": "KEY", "value": job}]);
    let wget = json!({"name": "wget", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "env": env, "command": ["/bin/sh", "-c", ASK]});
    cluster.apply(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job, "namespace": NAMESPACE},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": job}}, "spec": {"restartPolicy": "Never", "containers": [wget]}}},
    }));
    meanwhile();
    wait("the Job completes", || (cluster.get(&["job", job, "-n", NAMESPACE])["status"]["succeeded"] == 1).then_some(()));
    let said = cluster.run(&["logs", "-n", NAMESPACE, &format!("job/{job}"), "-c", "wget"], None);
    let answer = said.lines().last().unwrap_or_default();
    serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn statuses(saga: &Value) -> Vec<&str> {
    saga["steps"].as_array().into_iter().flatten().filter_map(|step| step["status"].as_str()).collect()
}

pub(crate) fn check(cluster: &Cluster, _: &Report) {
    cluster.namespace(NAMESPACE, &["bluebox.dev/injection=enabled"]);
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/txmgr");
    cluster.run(&["apply", "-n", NAMESPACE, "-k", manifests], None);
    for app in ["hotel", "flight"] {
        cluster.deployment(NAMESPACE, app, 1, |_| {});
    }
    cluster.run(&["rollout", "status", "deployment/txmgr", "-n", NAMESPACE, "--timeout=240s"], None);
    let managers = wait("both transaction managers run", || {
        let list = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=txmgr"]);
        list["items"].as_array().filter(|pods| pods.len() == 2).cloned()
    });
    assert!(managers.iter().all(|pod| !has_proxy(pod)), "it is its own proxy");
    for app in ["hotel", "flight"] {
        cluster.ready(NAMESPACE, app, 1);
    }
    // All of it: and while the first step is at it, both managers die.
    let booked = saga(cluster, "book", &json!({"steps": [step("hotel", "/work/room?ms=6000"), step("flight", "/work/seat")]}), || {
        wait("the first step is under way", || (cluster.ledger("room")["deliveries"] == 1).then_some(()));
        for pod in &managers {
            cluster.run(&["delete", "pod", name(pod), "-n", NAMESPACE, "--grace-period=0", "--force"], None);
        }
    });
    assert_eq!((&booked["status"], statuses(&booked)), (&json!("Closed"), vec!["Done", "Done"]), "{booked}");
    assert_eq!((&cluster.ledger("seat")["ended"], &cluster.ledger("undo-")["ended"]), (&json!(1), &json!(0)));
    // None of it: there is no such thing at the second one, until the time limit has passed.
    let limited = json!({"steps": [step("hotel", "/work/second"), step("flight", "/nothing")], "time_limit_ms": 5_000});
    let cancelled = saga(cluster, "give-back", &limited, || {});
    assert_eq!((&cancelled["status"], statuses(&cancelled)), (&json!("Cancelled"), vec!["Undone", "Undone"]), "{cancelled}");
    assert_eq!((&cluster.ledger("second")["ended"], &cluster.ledger("undo-hotel")["ended"]), (&json!(1), &json!(1)));
}

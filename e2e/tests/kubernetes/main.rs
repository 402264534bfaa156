//! The webhook and the policy behind it on a real API server: who is injected, exempt and denied, and what happens with the injector away.
//!
//! `make test-kubernetes`. There is no node: pods are made, and don't run.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on says why and ends")]

mod cluster;

use bluebox_e2e::control_plane::{Check, check_all, wait};
use cluster::Cluster;
use serde_json::{Value, json};

#[test]
fn the_box_on_a_real_api_server() {
    let Some(mut cluster) = Cluster::start() else { return };
    let checks: [(&str, Check<Cluster>); 14] = [
        ("an unannotated Deployment in a labelled namespace", unannotated_deployment),
        ("what was injected twice is as if once", idempotent),
        ("a labelled pod elsewhere, and one that says nothing", pod_label),
        ("who is exempt", exempt),
        ("a pod that is older than the label gets an event", older_than_the_label),
        ("mistakes are denied with the reason", denied),
        ("a forged proxy is no proxy", forged),
        ("a pod of a service account keeps its token from the proxy", no_token),
        ("limits that others set by default stay", limit_range),
        ("a Job, a CronJob and a StatefulSet", workloads),
        ("a pod that passes the standard `restricted` passes it with the proxy", restricted),
        ("two injectors agree on their certificates", two_injectors),
        ("a certificate that was lost is made anew, and the API server trusts it", certificates),
        ("with the injector away labelled pods wait, everything else starts", injector_away),
    ];
    check_all(&mut cluster, &checks);
}

/// A pod with one container.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}]},
    })
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}]}},
        },
    })
}

/// The pods of a namespace, once there are any.
fn pods(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    wait(&format!("there are pods in {namespace}"), || {
        let list = cluster.get(&["pods", "-n", namespace]);
        list["items"].as_array().filter(|items| !items.is_empty()).cloned()
    })
}

fn proxy(pod: &Value) -> Option<&Value> {
    pod["spec"]["initContainers"].as_array()?.iter().find(|container| container["name"] == "proxy")
}

fn unannotated_deployment(cluster: &mut Cluster) {
    cluster.namespace("shop", Some("enabled"));
    cluster.make("shop", &deployment("cart")).unwrap();
    let pod = &pods(cluster, "shop")[0];
    let proxy = proxy(pod).unwrap();
    assert_eq!((proxy["restartPolicy"].as_str(), proxy["image"].as_str()), (Some("Always"), Some("bluebox:0.1.0")));
    assert!(proxy["args"].as_array().unwrap().contains(&json!("--serve=cart=127.0.0.1:8080")), "{proxy}");
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "bluebox-redirect");
    assert!(proxy["args"].as_array().unwrap().contains(&json!("--transparent=127.0.0.1:4143")), "{proxy}");
    assert_eq!(proxy["lifecycle"]["preStop"]["exec"]["command"][1], "drain");
    assert_eq!(pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"], "/drained?within=20");
    let report: Value = serde_json::from_str(pod["metadata"]["annotations"]["bluebox.dev/injected"].as_str().unwrap()).unwrap();
    assert_eq!((&report["name"], &report["serves"]), (&json!("cart"), &json!(["cart=8080"])));
}

fn idempotent(cluster: &mut Cluster) {
    // What the API server made of it, with all its defaults, is made once more.
    let (made, _) = cluster.make("shop", &pod("first")).unwrap();
    let again = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "second", "annotations": made["metadata"]["annotations"], "labels": {"app": "first"}}, "spec": made["spec"]});
    let (second, _) = cluster.make("shop", &again).unwrap();
    assert_eq!(second["spec"], made["spec"]);
    assert!(cluster.injector_said().contains("result=\"unchanged\""), "the injector found something to do: {}", cluster.injector_said());
}

fn pod_label(cluster: &mut Cluster) {
    cluster.namespace("elsewhere", None);
    let mut labelled = pod("labelled");
    labelled["metadata"]["labels"] = json!({"bluebox.dev/injection": "enabled"});
    assert!(proxy(&cluster.make("elsewhere", &labelled).unwrap().0).is_some());
    assert!(proxy(&cluster.make("elsewhere", &pod("plain")).unwrap().0).is_none());
}

fn exempt(cluster: &mut Cluster) {
    let mut opted_out = pod("opted-out");
    opted_out["metadata"]["labels"] = json!({"bluebox.dev/injection": "disabled"});
    let mut host_network = pod("host-network");
    host_network["spec"]["hostNetwork"] = true.into();
    let mut windows = pod("windows");
    windows["spec"]["os"] = json!({"name": "windows"});
    let mut windows_node = pod("windows-node");
    windows_node["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"});
    for exempt in [opted_out, host_network, windows, windows_node] {
        let (made, _) = cluster.make("shop", &exempt).unwrap_or_else(|said| panic!("{}: {said}", exempt["metadata"]["name"]));
        assert!(proxy(&made).is_none(), "{}", exempt["metadata"]["name"]);
    }
    let mut system = pod("system");
    system["metadata"]["labels"] = json!({"bluebox.dev/injection": "enabled"});
    assert!(proxy(&cluster.make("kube-system", &system).unwrap().0).is_none());
}

fn older_than_the_label(cluster: &mut Cluster) {
    cluster.namespace("older", None);
    cluster.make("older", &pod("old")).unwrap();
    let done = cluster.kubectl(&["label", "namespace", "older", "bluebox.dev/injection=enabled"], None);
    assert!(done.right, "{}", done.errors);
    let event = wait("there is an event", || {
        let events = cluster.get(&["events", "-n", "older"]);
        events["items"].as_array()?.iter().find(|event| event["reason"] == "WithoutBluebox").cloned()
    });
    assert_eq!((&event["involvedObject"]["name"], &event["type"], &event["count"]), (&json!("old"), &json!("Warning"), &json!(1)));
}

fn denied(cluster: &mut Cluster) {
    for (annotation, value, says) in [
        ("port", "http", "1 to 65535"),
        ("image", "evil:1", "there is no such annotation"),
        ("attempt-timeout", "30", "unit"),
        ("atempt-timeout", "30s", "did you mean bluebox.dev/attempt-timeout?"),
    ] {
        let mut pod = pod("mistaken");
        pod["metadata"]["annotations"] = json!({format!("bluebox.dev/{annotation}"): value});
        let said = cluster.make("shop", &pod).unwrap_err();
        assert!(said.contains(&format!("bluebox.dev/{annotation}")) && said.contains(says), "{said}");
    }
    let mut labelled = pod("labelled");
    labelled["metadata"]["labels"] = json!({"bluebox.dev/injection": "yes"});
    let said = cluster.make("shop", &labelled).unwrap_err();
    assert!(said.contains("write enabled or disabled"), "{said}");
    let mut meshed = pod("meshed");
    meshed["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "istio-proxy", "image": "istio:1"}));
    let said = cluster.make("shop", &meshed).unwrap_err();
    assert!(said.contains("the mesh Istio") && said.contains("bluebox.dev/redirect: env"), "{said}");
    // No port: it is made, and whoever makes it is warned.
    let mut mute = pod("mute");
    mute["spec"]["containers"][0].as_object_mut().unwrap().remove("ports");
    let (_, warnings) = cluster.make("shop", &mute).unwrap();
    assert!(warnings.contains("Warning: Bluebox: mute takes no calls"), "{warnings}");
}

fn forged(cluster: &mut Cluster) {
    let mut foreign = pod("foreign");
    foreign["spec"]["initContainers"] = json!([{"name": "proxy", "image": "envoy:1", "restartPolicy": "Always"}]);
    let said = cluster.make("shop", &foreign).unwrap_err();
    assert!(said.contains("envoy:1") && said.contains("give yours another"), "{said}");
    // With the right image, but what is run in it is another's: the injector puts its own in that place.
    let mut forged = pod("forged");
    forged["spec"]["initContainers"] = json!([{
        "name": "proxy", "image": "bluebox:0.1.0", "restartPolicy": "Always", "command": ["sh"], "securityContext": {"privileged": true},
        "volumeMounts": [{"name": "root", "mountPath": "/host"}],
    }]);
    forged["spec"]["volumes"] = json!([{"name": "root", "hostPath": {"path": "/"}}]);
    let (made, _) = cluster.make("shop", &forged).unwrap();
    let proxy = proxy(&made).unwrap();
    assert!(proxy.get("command").is_none() && proxy["securityContext"]["privileged"] == false, "{proxy}");
    assert!(!proxy["volumeMounts"].as_array().unwrap().iter().any(|mount| mount["name"] == "root"), "{proxy}");
}

fn no_token(cluster: &mut Cluster) {
    let (made, _) = cluster.make("shop", &pod("token")).unwrap();
    let token = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        mounts
            .into_iter()
            .find(|mount| mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount")
            .map(|mount| mount["name"].as_str().unwrap().to_owned())
    };
    assert!(token(&made["spec"]["containers"][0]).unwrap().starts_with("kube-api-access"));
    assert_eq!(token(proxy(&made).unwrap()).unwrap(), "bluebox-empty");
}

fn limit_range(cluster: &mut Cluster) {
    cluster.namespace("limited", Some("enabled"));
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"},
        "spec": {"limits": [{"type": "Container", "default": {"memory": "512Mi"}, "defaultRequest": {"memory": "100Mi"}, "max": {"memory": "1Gi"}}]},
    });
    cluster.make("limited", &range).unwrap();
    let made = wait("the limits are known", || {
        let (made, _) =
            cluster.make("limited", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "one-"}, "spec": pod("x")["spec"]})).ok()?;
        (made["spec"]["containers"][0]["resources"]["limits"]["memory"] == "512Mi").then_some(made)
    });
    let resources = &proxy(&made).unwrap()["resources"];
    assert_eq!((&resources["requests"]["memory"], &resources["limits"]["memory"]), (&json!("64Mi"), &json!("512Mi")), "{resources}");
}

fn workloads(cluster: &mut Cluster) {
    cluster.namespace("works", Some("enabled"));
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": pod("x")["spec"]["containers"]}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "report"}, "spec": {"template": template}});
    cluster.make("works", &job).unwrap();
    let name = |pod: &Value| -> (Value, Value) {
        let report: Value = serde_json::from_str(pod["metadata"]["annotations"]["bluebox.dev/injected"].as_str().unwrap()).unwrap();
        (report["name"].clone(), report["serves"].clone())
    };
    assert_eq!(name(&pods(cluster, "works")[0]), (json!("report"), json!([])));
    cluster.namespace("state", Some("enabled"));
    let mut template = template.clone();
    template["spec"].as_object_mut().unwrap().remove("restartPolicy");
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {"serviceName": "db", "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    cluster.make("state", &set).unwrap();
    assert_eq!(name(&pods(cluster, "state")[0]), (json!("db"), json!(["db=8080"])));
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"}, "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": job["spec"]}}});
    cluster.namespace("cron", Some("enabled"));
    cluster.make("cron", &cron).unwrap();
    let done = cluster.kubectl(&["create", "job", "nightly-29384756", "--from=cronjob/nightly", "-n", "cron"], None);
    assert!(done.right, "{}", done.errors);
    assert_eq!(name(&pods(cluster, "cron")[0]), (json!("nightly"), json!([])));
}

fn restricted(cluster: &mut Cluster) {
    cluster.namespace("restricted", Some("enabled"));
    let done = cluster.kubectl(&["label", "namespace", "restricted", "pod-security.kubernetes.io/enforce=restricted"], None);
    assert!(done.right, "{}", done.errors);
    let said = wait("the standard is enforced", || {
        cluster
            .make(
                "restricted",
                &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "loose-", "labels": {"app": "loose"}}, "spec": pod("x")["spec"]}),
            )
            .err()
    });
    // Only the app's container is at fault.
    assert!(said.contains("restricted") && said.contains("\"app\"") && !said.contains("\"proxy\""), "{said}");
    let mut strict = pod("strict");
    strict["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    strict["spec"]["containers"][0]["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let (made, _) = cluster.make("restricted", &strict).unwrap();
    assert!(proxy(&made).is_some());
    assert!(made["spec"]["containers"][0]["env"].as_array().unwrap().contains(&json!({"name": "HTTP_PROXY", "value": "http://127.0.0.1:4140"})));
    // Who asks for the kernel's rules there is told that it can't be.
    strict["metadata"] = json!({"name": "wide", "annotations": {"bluebox.dev/redirect": "nftables"}});
    let said = cluster.make("restricted", &strict).unwrap_err();
    assert!(said.contains("NET_ADMIN") && said.contains("bluebox-redirect"), "{said}");
}

/// Both find that there are no certificates. One makes them, and the other takes them over.
fn two_injectors(cluster: &mut Cluster) {
    let other = cluster.another_injector();
    let bundle = |cluster: &Cluster| cluster.get(&["mutatingwebhookconfiguration", "bluebox-injector"])["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let shown = |said: &str| said.lines().filter(|line| line.contains("a new certificate is shown")).count();
    wait("both show a certificate", || (shown(&other.said()) > 0 && shown(&cluster.injector_said()) > 0).then_some(()));
    let before = (shown(&other.said()), shown(&cluster.injector_said()), bundle(cluster));
    let done =
        cluster.kubectl(&["patch", "secret", "bluebox-injector-certificates", "-n", "bluebox", "--type=merge", "-p", &json!({"data": null}).to_string()], None);
    assert!(done.right, "{}", done.errors);
    wait("both show a new one, and it is trusted", || {
        (shown(&other.said()) > before.0 && shown(&cluster.injector_said()) > before.1 && bundle(cluster) != before.2).then_some(())
    });
    // Not one each, but the same one: that of the Secret.
    let until = |said: &str| {
        said.lines().rfind(|line| line.contains("a new certificate is shown")).and_then(|line| line.split_once("until=")).map(|(_, until)| until.to_owned())
    };
    assert_eq!((shown(&other.said()), shown(&cluster.injector_said())), (before.0 + 1, before.1 + 1));
    assert_eq!(until(&other.said()), until(&cluster.injector_said()));
}

fn certificates(cluster: &mut Cluster) {
    let bundle = |cluster: &Cluster| cluster.get(&["mutatingwebhookconfiguration", "bluebox-injector"])["webhooks"][1]["clientConfig"]["caBundle"].clone();
    let before = bundle(cluster);
    assert!(before.as_str().unwrap().len() > 100);
    let empty = json!({"data": null}).to_string();
    let done = cluster.kubectl(&["patch", "secret", "bluebox-injector-certificates", "-n", "bluebox", "--type=merge", "-p", &empty], None);
    assert!(done.right, "{}", done.errors);
    wait("there are new authorities", || (bundle(cluster) != before).then_some(()));
    // Nothing was restarted; a moment later pods are injected again.
    let made = wait("pods are injected again", || {
        cluster
            .make("shop", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "new-", "labels": {"app": "new"}}, "spec": pod("x")["spec"]}))
            .ok()
    });
    assert!(proxy(&made.0).is_some());
}

/// With nobody to put it right, the policy lets the one container with a right over the network through as Bluebox makes it, and in no other way.
fn forged_redirects(cluster: &mut Cluster) {
    let injected = cluster.get(&["pods", "-n", "shop", "-l", "app=cart"])["items"][0].clone();
    let mut number = 0;
    let mut made = |change: &dyn Fn(&mut Value)| {
        number += 1;
        let mut spec = injected["spec"].clone();
        for field in ["nodeName", "tolerations", "priority", "preemptionPolicy"] {
            spec.as_object_mut().unwrap().remove(field);
        }
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("redirect-{number}"), "labels": {"a": "b"}}, "spec": spec});
        change(&mut pod["spec"]);
        cluster.make("shop", &pod)
    };
    made(&|_| {}).unwrap();
    let wider: [&dyn Fn(&mut Value); 13] = [
        &|spec| spec["initContainers"][0]["image"] = "evil:1".into(),
        &|spec| spec["initContainers"][0]["command"] = json!(["/bin/sh"]),
        &|spec| spec["initContainers"][0]["args"] = json!(["redirect", "--proxy-uid=64140", "--remove"]),
        &|spec| spec["initContainers"][0]["args"] = json!(["proxy", "--proxy-uid=64140"]),
        &|spec| spec["initContainers"][0]["args"][1] = "--proxy-uid=1000".into(),
        &|spec| spec["initContainers"][0]["args"].as_array_mut().unwrap().push("--incarnation=/proc".into()),
        &|spec| spec["initContainers"][0]["env"] = json!([{"name": "BLUEBOX_EXCLUDE_NETWORKS", "value": "0.0.0.0/0"}]),
        &|spec| spec["initContainers"][0]["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN", "SYS_ADMIN"]),
        &|spec| spec["initContainers"][0]["securityContext"]["capabilities"]["drop"] = json!([]),
        &|spec| spec["initContainers"][0]["securityContext"]["privileged"] = true.into(),
        &|spec| spec["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"] = false.into(),
        &|spec| spec["initContainers"][0]["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "bluebox-kafka", "mountPath": "/kafka"})),
        &|spec| spec["initContainers"][0]["restartPolicy"] = "Always".into(),
    ];
    for (number, change) in wider.iter().enumerate() {
        let said = made(change).err().unwrap_or_else(|| panic!("{number} was let through"));
        // A privileged container that may not have more rights than it has is no container at all.
        assert!(said.contains("`bluebox-redirect` runs another image or command") || said.contains("allowPrivilegeEscalation"), "{number}: {said}");
    }
    let said = made(&|spec| drop(spec["initContainers"].as_array_mut().unwrap().remove(0))).unwrap_err();
    assert!(said.contains("needs `bluebox-redirect`"), "{said}");
}

fn injector_away(cluster: &mut Cluster) {
    cluster.kill_injector();
    let said = cluster.make("shop", &pod("bare")).unwrap_err();
    assert!(said.contains("should have Bluebox's proxy and doesn't") && said.contains("bluebox.dev/injection: disabled"), "{said}");
    let mut labelled = pod("labelled");
    labelled["metadata"]["labels"] = json!({"bluebox.dev/injection": "enabled"});
    assert!(cluster.make("elsewhere", &labelled).unwrap_err().contains("should have Bluebox's proxy"));
    // What looks like a proxy, but is run as root.
    let mut forged = pod("forged-2");
    forged["spec"]["initContainers"] = json!([{"name": "proxy", "image": "bluebox:0.1.0", "restartPolicy": "Always"}]);
    assert!(cluster.make("shop", &forged).unwrap_err().contains("as another user or with more rights"));
    forged_redirects(cluster);

    assert!(proxy(&cluster.make("elsewhere", &pod("plain-2")).unwrap().0).is_none());
    let mut opted_out = pod("opted-out-2");
    opted_out["metadata"]["labels"] = json!({"bluebox.dev/injection": "disabled"});
    cluster.make("shop", &opted_out).unwrap();
    let mut host_network = pod("host-network-2");
    host_network["spec"]["hostNetwork"] = true.into();
    cluster.make("shop", &host_network).unwrap();

    // A Deployment waits, and says why; with the injector back it gets its pod by itself.
    cluster.namespace("waiting", Some("enabled"));
    cluster.make("waiting", &deployment("cart")).unwrap();
    wait("the ReplicaSet says why it waits", || {
        let events = cluster.get(&["events", "-n", "waiting"]).to_string();
        events.contains("should have Bluebox's proxy").then_some(())
    });
    assert_eq!(cluster.get(&["pods", "-n", "waiting"])["items"], json!([]));
    cluster.start_injector();
    assert!(proxy(&pods(cluster, "waiting")[0]).is_some());
}

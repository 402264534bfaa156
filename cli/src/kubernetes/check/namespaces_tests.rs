use super::*;

fn settings() -> Settings {
    Settings::try_new("bluebox:2").unwrap()
}

fn secret(data: &[(&str, &str)]) -> Option<Asked> {
    let data: BTreeMap<_, _> = data.iter().map(|(key, value)| (*key, STANDARD.encode(value))).collect();
    Some(Ok(Some(json!({"data": data}))))
}

fn owned(kind: &str, name: &str) -> Value {
    json!([{"controller": true, "kind": kind, "name": name}])
}

/// A pod of the Deployment `cart`, with a proxy that was given these.
fn pod(name: &str, image: &str, arguments: &[&str]) -> Value {
    json!({
        "metadata": {"name": name, "ownerReferences": owned("ReplicaSet", "cart-1"), "annotations": {INJECTED: r#"{"restart": "rules", "redirect": "env"}"#}},
        "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "proxy", "image": image, "args": arguments}]},
        "status": {"phase": "Running"},
    })
}

fn set(replicas: u32, there: u32, said: &str) -> Value {
    json!({
        "kind": "ReplicaSet", "metadata": {"name": "cart-1", "ownerReferences": owned("Deployment", "cart")}, "spec": {"replicas": replicas},
        "status": {"replicas": there, "conditions": [{"type": "ReplicaFailure", "status": if said.is_empty() { "False" } else { "True" }, "message": said}]},
    })
}

/// A list of pods, as it is kept: a pod whose kind is not `Pod` is read as none, and nobody would miss its proxy.
fn listed(pods: Vec<Value>) -> Vec<Value> {
    let mut seen = Seen::default();
    let pods = seen.or_unseen("pods", "Pod", Ok(pods));
    assert!(pods.iter().all(|pod| pod["kind"] == "Pod"));
    pods
}

/// A namespace in which all is well.
fn seen() -> Seen {
    Seen {
        name: "shop".to_owned(),
        labels: [(INJECTION.to_owned(), ENABLED.to_owned())].into(),
        now: 1_800_000_000,
        secret: secret(&[("brokers", "kafka:9092"), ("client.properties", "")]),
        pods: listed(vec![pod("cart-1-a", "bluebox:2", &["proxy", "--serve=cart=127.0.0.1:8080"])]),
        workloads: vec![set(1, 1, "")],
        new_pod: Some(Ok(pod("x", "bluebox:2", &[]))),
        ..Seen::default()
    }
}

fn found_in(all: &[Seen]) -> Vec<(Status, String)> {
    let checks = judge(all, &settings()).into_iter().flat_map(|section| section.checks);
    let bad: Vec<_> = checks.filter(|check| check.status != Status::Ok).collect();
    bad.into_iter().map(|check| (check.status, format!("{}: {} > {}", check.name, check.why.join("; "), check.hint.unwrap_or_default()))).collect()
}

fn found(change: impl FnOnce(&mut Seen)) -> Vec<(Status, String)> {
    let mut seen = seen();
    change(&mut seen);
    found_in(&[seen])
}

#[test]
fn a_namespace_in_which_all_is_well() {
    assert_eq!(found(|_| {}), []);
}

type Case = (Box<dyn FnOnce(&mut Seen)>, Status, &'static [&'static str]);

#[test]
fn each_thing_that_is_wrong_is_found_alone() {
    let refused = format!("pods \"cart-1-\" is forbidden: {BARE} (…)");
    let (waits, event) = (refused.clone(), refused.clone());
    let cases: Vec<Case> = vec![
        (
            Box::new(move |seen| seen.new_pod = Some(Err(refused))),
            Status::Failed,
            &["the injector did not answer", "rollout restart deployment/bluebox-injector"],
        ),
        (Box::new(|seen| seen.new_pod = Some(Err(format!("{DENIED}: annotation x")))), Status::Failed, &["annotation x"]),
        (Box::new(|seen| seen.new_pod = Some(Err("exceeded quota".to_owned()))), Status::Warning, &["exceeded quota", "auth can-i"]),
        (Box::new(|seen| seen.new_pod = Some(Ok(json!({"spec": {}})))), Status::Failed, &["would start without one"]),
        (Box::new(|seen| seen.new_pod = Some(Ok(pod("x", "bluebox:1", &[])))), Status::Failed, &["bluebox:1", "rollout restart deployment/bluebox-injector"]),
        (Box::new(|seen| seen.secret = Some(Ok(None))), Status::Failed, &["there is none", "bluebox enable shop"]),
        (Box::new(|seen| seen.secret = Some(Err("forbidden".to_owned()))), Status::Warning, &["forbidden"]),
        (Box::new(|seen| seen.secret = secret(&[("client.properties", "")])), Status::Failed, &["has no brokers"]),
        (Box::new(|seen| seen.secret = secret(&[("brokers", "kafka:9092")])), Status::Failed, &["has no client.properties"]),
        (Box::new(|seen| seen.secret = secret(&[("brokers", "kafka"), ("client.properties", "")])), Status::Failed, &["HOST:PORT"]),
        (Box::new(|seen| seen.secret = secret(&[("brokers", "k:1"), ("client.properties", "acks=1")])), Status::Failed, &["\"acks\" can't be set"]),
        (
            Box::new(|seen| seen.secret = secret(&[("brokers", "k:1"), ("client.properties", "ssl.ca.location=/etc/bluebox/kafka/ca")])),
            Status::Failed,
            &["it has no key ca"],
        ),
        (
            Box::new(|seen| seen.secret = secret(&[("brokers", "k:1"), ("client.properties", "ssl.ca.location=/etc/ca")])),
            Status::Failed,
            &["only what is in the Secret"],
        ),
        (Box::new(|seen| seen.secret = secret(&[("brokers", "k:1"), ("client.properties", ""), ("topic-prefix", "a b")])), Status::Failed, &["topic-prefix"]),
        (
            Box::new(|seen| seen.pods[0]["spec"]["initContainers"] = json!([])),
            Status::Warning,
            &["deployment/cart: 1 are older than the label", "cart-1-a", "kubectl -n shop rollout restart deployment/cart"],
        ),
        (
            Box::new(|seen| seen.pods[0]["spec"]["initContainers"][0]["image"] = "bluebox:1".into()),
            Status::Warning,
            &["of the version", "rollout restart deployment/cart"],
        ),
        (
            Box::new(move |seen| seen.workloads = vec![set(2, 1, &waits)]),
            Status::Failed,
            &["replicaset/cart-1: the injector did not answer", "up to 1000 s", "kubectl -n shop annotate replicaset/cart-1 --overwrite bluebox.dev/woken="],
        ),
        (Box::new(|seen| seen.workloads = vec![set(2, 1, &format!("{DENIED}: annotation y"))]), Status::Failed, &["annotation y", "in the pod's template"]),
        (
            Box::new(move |seen| {
                seen.workloads.push(json!({"kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {"replicas": 2}, "status": {"replicas": 1}}));
                seen.events.push(json!({"involvedObject": {"kind": "StatefulSet", "name": "db"}, "message": event}));
            }),
            Status::Failed,
            &["statefulset/db", "annotate statefulset/db"],
        ),
        (
            Box::new(
                |seen| seen.pods[0]["status"]["initContainerStatuses"] = json!([{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"message": "first\nerror: no Secret\n"}}}]),
            ),
            Status::Failed,
            &["cart-1-a: proxy: CrashLoopBackOff: error: no Secret", "logs POD -c proxy"],
        ),
        (
            Box::new(|seen| {
                seen.pods[0]["status"]["initContainerStatuses"] =
                    json!([{"name": "bluebox-redirect", "state": {"running": {"startedAt": "2027-01-15T07:59:00Z"}}}])
            }),
            Status::Failed,
            &["keeps dying"],
        ),
        (
            Box::new(|seen| seen.reached = vec![("cart-1-a".to_owned(), Ok(Some(true))), ("cart-1-b".to_owned(), Ok(Some(false)))]),
            Status::Failed,
            &["cart-1-b can't reach it", "kubectl -n shop logs cart-1-b -c proxy"],
        ),
        (Box::new(|seen| seen.reached = vec![("cart-1-a".to_owned(), Err("forbidden".to_owned()))]), Status::Warning, &["forbidden", "pods/proxy"]),
        (Box::new(|seen| seen.unseen.push("events: forbidden".to_owned())), Status::Warning, &["events: forbidden"]),
        (
            Box::new(|seen| {
                seen.pods.push(pod("canary", "bluebox:2", &["--serve=cart=127.0.0.1:8080,class=stateful,ordinal=$(BLUEBOX_ORDINAL),partitions=2"]))
            }),
            Status::Failed,
            &["of two classes", "(service)", "(stateful)"],
        ),
        (
            Box::new(|seen| {
                seen.pods = (0..3)
                    .map(|number| pod(&number.to_string(), "bluebox:2", &["--serve=cart=127.0.0.1:8080,partitions=2,streams=pass,direct=$(IP):80"]))
                    .collect()
            }),
            Status::Warning,
            &["cart: 3 pods for 2 partitions"],
        ),
    ];
    for (change, status, says) in cases {
        let found = found(change);
        assert!(found.len() == 1 && found[0].0 == status && says.iter().all(|says| found[0].1.contains(says)), "{says:?}: {found:?}");
        assert!(!found[0].1.ends_with("> "), "no hint: {found:?}");
    }
}

#[test]
fn who_asks_for_no_proxy_is_not_missed() {
    let change = |change: fn(&mut Value)| {
        found(|seen| {
            seen.pods[0]["spec"]["initContainers"] = json!([]);
            change(&mut seen.pods[0]);
        })
    };
    assert_eq!(change(|pod| pod["metadata"]["labels"] = json!({INJECTION: "disabled"})), []);
    assert_eq!(change(|pod| pod["spec"]["hostNetwork"] = true.into()), []);
    assert_eq!(change(|pod| pod["status"]["phase"] = "Succeeded".into()), []);
    assert_eq!(change(|pod| pod["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into()), []);
    // What was refused once and has its pods now does not wait.
    assert_eq!(found(|seen| seen.workloads = vec![set(1, 1, BARE)]), []);
}

#[test]
fn two_namespaces_with_one_kafka_and_one_prefix_are_one_system() {
    let (one, mut other) = (seen(), seen());
    other.name = "copy".to_owned();
    let found = found_in(&[one.clone(), other.clone()]);
    assert!(found.len() == 1 && found[0].0 == Status::Warning && found[0].1.contains("copy/deployment/cart, shop/deployment/cart"), "{found:?}");
    other.secret = secret(&[("brokers", "kafka:9092"), ("client.properties", ""), ("topic-prefix", "copy")]);
    assert_eq!(found_in(&[one, other]), []);
}

#[test]
fn what_a_proxy_says_of_its_log() {
    assert_eq!(log_up("# HELP bluebox_log_up x\nbluebox_log_upper 1\nbluebox_log_up 0\n"), Some(false));
    assert_eq!(log_up("bluebox_log_up{component=\"cart\"} 1\n"), Some(true));
    assert_eq!(log_up("bluebox_other 1\n"), None);
    assert_eq!(found(|seen| seen.reached = vec![("cart-1-a".to_owned(), Ok(None)), ("cart-1-b".to_owned(), Ok(Some(true)))]), []);
}

#[test]
fn where_something_asks() {
    let namespace = |name: &str, label: Option<&str>| json!({"metadata": {"name": name, "labels": label.map(|label| json!({INJECTION: label}))}});
    let all = [
        namespace("a", Some(ENABLED)),
        namespace("b", None),
        namespace("c", None),
        namespace("kube-system", Some(ENABLED)),
        namespace("bluebox", Some(ENABLED)),
    ];
    let pods = [json!({"metadata": {"namespace": "b"}})];
    let names: Vec<_> = asking(&all, &pods, "bluebox").iter().map(|one| text(one, "/metadata/name").to_owned()).collect();
    assert_eq!(names, ["a", "b"]);
}

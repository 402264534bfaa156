//! What holds for every pod.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use bluebox_injector::selection::Place;
use bluebox_injector::{Decision, decide};
use common::legal::faults;
use common::{FewLimits, cases, labelled, restricted, settings};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// An object with some of these fields.
fn some_of(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> = fields.into_iter().map(|(name, value)| proptest::option::of(value).prop_map(move |value| (name, value))).collect();
    fields.prop_map(|fields| Value::Object(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())).boxed()
}

fn any_of(values: Value) -> BoxedStrategy<Value> {
    proptest::sample::select(values.as_array().unwrap().clone()).boxed()
}

fn list_of(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop_oneof![1 => Just(Value::Null), 5 => proptest::collection::vec(item, 0..4).prop_map(Value::Array)].boxed()
}

fn containers() -> BoxedStrategy<Value> {
    let port = some_of(vec![("name", any_of(json!(["http", "metrics", "h2c"]))), ("protocol", any_of(json!(["TCP", "UDP"])))]);
    let port = (port, any_of(json!([80, 8080, 0, -1, 4140, 70000]))).prop_map(|(mut port, number)| {
        port["containerPort"] = number;
        port
    });
    let variable = any_of(json!([
        {"name": "MODE", "value": "x"}, {"name": "HTTP_PROXY", "value": "http://127.0.0.1:4140"}, {"name": "no_proxy", "value": "y"}, {"name": "http_proxy", "value": "z"},
    ]));
    let amounts = any_of(json!([{"cpu": "1", "memory": "1Gi"}, {"cpu": "1"}, {}, null]));
    let container = some_of(vec![
        ("image", any_of(json!(["a:1", "registry.example/bluebox:0.1.0"]))),
        ("command", any_of(json!([["sh", "-c", "id"], null]))),
        ("ports", list_of(port.boxed())),
        ("env", list_of(variable)),
        ("resources", some_of(vec![("limits", amounts.clone()), ("requests", amounts)])),
        ("volumeMounts", list_of(any_of(json!([{"name": "data", "mountPath": "/d"}])))),
        ("securityContext", any_of(json!([{"privileged": true, "runAsUser": 0}, {}]))),
        ("fieldOfTomorrow", any_of(json!([{"a": [1, null]}, "b"]))),
        ("lifecycle", any_of(json!([{"preStop": {"exec": {"command": ["x"]}}}, {"preStop": {"sleep": {"seconds": 3}}}]))),
        ("restartPolicy", any_of(json!(["Always", "Never"]))),
    ]);
    let named = (container, any_of(json!(["app", "web", "proxy", "logs", "init-1", "init-2", "bluebox-redirect"]))).prop_map(|(mut container, name)| {
        container["name"] = name;
        container
    });
    list_of(named.boxed())
}

fn pods() -> impl Strategy<Value = Value> {
    let annotation = prop_oneof![
        any_of(json!([
            ["bluebox.dev/component", "cart"],
            ["bluebox.dev/components", "a=1,b=2"],
            ["bluebox.dev/port", "8080"],
            ["bluebox.dev/port", "x"],
            ["bluebox.dev/app-containers", "app"],
            ["bluebox.dev/attempt-timeout", "3s"],
            ["bluebox.dev/streams", "pass"],
            ["bluebox.dev/memory-limit", "1Gi"],
            ["bluebox.dev/cpu-request", "2"],
            ["bluebox.dev/redirect", "env"],
            ["bluebox.dev/redirect", "nftables"],
            ["bluebox.dev/excluded-ports", "5432"],
            ["bluebox.dev/excluded-hosts", "db.example,10.0.0.0/8,::1/200"],
            ["bluebox.dev/injected", "{}"],
            ["bluebox.dev/route", "/$(BLUEBOX_BROKERS) attempt-timeout=1s"],
            ["bluebox.dev/log-level", "debug"],
            ["bluebox.dev/image", "evil:1"],
            ["example.com/x", "y"],
        ])),
        ("bluebox\\.dev/[a-z-]{1,12}", ".{0,20}").prop_map(|(name, value)| json!([name, value])),
    ];
    let annotations = proptest::collection::vec(annotation, 0..4)
        .prop_map(|pairs| Value::Object(pairs.into_iter().map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].clone())).collect::<Map<_, _>>()));
    let labels = any_of(
        json!([{"app": "cart"}, {"bluebox.dev/injection": "disabled"}, {"bluebox.dev/injection": "yes"}, {"bluebox.dev/injection": "enabled"}, {}, null]),
    );
    let metadata = some_of(vec![("name", any_of(json!(["cart", "cart.v2", ""]))), ("labels", labels), ("annotations", annotations.boxed())]);
    let volumes = any_of(json!([{"name": "data", "emptyDir": {}}, {"name": "bluebox-kafka", "hostPath": {"path": "/"}}, {"name": "tomorrow", "newKind": {}}]));
    let spec = some_of(vec![
        ("initContainers", containers()),
        ("containers", containers()),
        ("volumes", list_of(volumes)),
        ("hostNetwork", any_of(json!([true, false]))),
        ("fieldOfTomorrow", any_of(json!([{"a": 1}, []]))),
    ]);
    some_of(vec![("metadata", metadata), ("spec", spec)]).prop_map(|mut pod| {
        pod["kind"] = "Pod".into();
        pod
    })
}

/// Pods with everything that the API allows and few use; most of them are legal.
fn odd_pods() -> impl Strategy<Value = Value> {
    let port = any_of(json!([8080, "web", "none"]));
    let handler = prop_oneof![
        port.clone().prop_map(|port| json!({"httpGet": {"path": "/live", "port": port, "httpHeaders": [{"name": "X-$", "value": "$(Y)"}]}})),
        port.clone().prop_map(|port| json!({"httpGet": {"port": port, "scheme": "HTTPS", "path": "live"}})),
        port.clone().prop_map(|port| json!({"httpGet": {"port": port, "host": "elsewhere"}})),
        port.prop_map(|port| json!({"tcpSocket": {"port": port}})),
        Just(json!({"grpc": {"port": 8080, "service": "cart"}})),
        Just(json!({"exec": {"command": ["cat", "/alive"]}})),
        Just(json!({"exec": {"command": []}})),
    ];
    let probe = (handler.clone(), any_of(json!([null, 0, 1, 7, 99999]))).prop_map(|(mut probe, timeout)| {
        probe["timeoutSeconds"] = timeout;
        probe["terminationGracePeriodSeconds"] = 5.into();
        probe
    });
    let hook = prop_oneof![3 => handler, 1 => Just(json!({"sleep": {"seconds": 1}}))];
    let container = some_of(vec![
        ("image", any_of(json!(["a:1"]))),
        ("ports", any_of(json!([[{"containerPort": 8080, "name": "web"}, {"containerPort": 9090, "protocol": "SCTP"}], [], null]))),
        (
            "env",
            any_of(json!([[{"name": "A", "value": "$(B)"}, {"name": "A"}], [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], null])),
        ),
        ("envFrom", any_of(json!([[{"configMapRef": {"name": "c"}}]]))),
        ("livenessProbe", probe.clone().boxed()),
        ("lifecycle", some_of(vec![("preStop", hook.clone().boxed()), ("postStart", hook.boxed()), ("stopSignal", any_of(json!(["SIGUSR1"])))])),
        ("volumeMounts", any_of(json!([[{"name": "data", "mountPath": "/d"}, {"name": "data", "mountPath": "/e", "subPathExpr": "$(A)"}], null]))),
        ("volumeDevices", any_of(json!([[{"name": "block", "devicePath": "/dev/x"}]]))),
        (
            "resources",
            any_of(
                json!([{"limits": {"cpu": "1", "memory": "1Gi"}}, {"claims": [{"name": "gpu"}]}, {"requests": {"cpu": "0"}, "limits": {"example.com/gpu": "1"}}, null]),
            ),
        ),
        ("resizePolicy", any_of(json!([[{"resourceName": "cpu", "restartPolicy": "NotRequired"}]]))),
        ("securityContext", any_of(json!([{"runAsUser": 0, "privileged": true}, {"procMount": "Unmasked"}, {"windowsOptions": {}}, null]))),
        ("stdin", any_of(json!([true]))),
        ("restartPolicyRules", any_of(json!([[{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]]))),
        ("restartPolicy", any_of(json!(["Always", "Never", "OnFailure"]))),
    ]);
    let containers = |names: &'static [&'static str], least: usize| {
        let container = container.clone();
        proptest::sample::subsequence(names, least..=names.len())
            .prop_flat_map(move |names| {
                names
                    .into_iter()
                    .map(|name| {
                        container.clone().prop_map(move |mut container| {
                            container["name"] = name.into();
                            if container["restartPolicy"].is_null() {
                                container.as_object_mut().unwrap().remove("restartPolicyRules");
                            }
                            container
                        })
                    })
                    .collect::<Vec<_>>()
            })
            .prop_map(Value::Array)
            .boxed()
    };
    // What ends has neither probes nor hooks.
    let init = containers(&["init", "helper"], 0).prop_map(|mut all| {
        for container in all.as_array_mut().unwrap().iter_mut().filter(|container| container["restartPolicy"] != "Always") {
            let container = container.as_object_mut().unwrap();
            container.remove("livenessProbe");
            container.remove("lifecycle");
        }
        all
    });
    let annotations = any_of(json!([
        {"bluebox.dev/app-containers": "app"}, {"bluebox.dev/restart": "separate"}, {"bluebox.dev/restart": "probes"}, {"bluebox.dev/restart-on-hang": "true"}, {"bluebox.dev/redirect": "env"},
        {"bluebox.dev/excluded-ports": "1,2", "bluebox.dev/excluded-hosts": "10.0.0.1"}, {"bluebox.dev/cpu-limit": "1m"}, {"bluebox.dev/memory-request": "2Gi"},
        {"bluebox.dev/class": "stateful", "bluebox.dev/partitions": "2"}, {"bluebox.dev/components": "a=1,b=2", "bluebox.dev/class": "b=stateful", "bluebox.dev/partitions": "9"},
    ]));
    let owner = |kind: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "cart-1", "uid": "1", "controller": true}]);
    let metadata = some_of(vec![
        ("annotations", annotations),
        ("labels", any_of(json!([{"app": "cart", "apps.kubernetes.io/pod-index": "1"}, {"app": "cart"}]))),
        ("ownerReferences", any_of(json!([owner("StatefulSet"), owner("Job"), owner("ReplicaSet"), owner("Example")]))),
    ]);
    let spec = some_of(vec![
        ("initContainers", init.boxed()),
        ("containers", containers(&["app", "web"], 1)),
        ("ephemeralContainers", any_of(json!([[{"name": "debugger", "targetContainerName": "app"}]]))),
        ("hostUsers", any_of(json!([false]))),
        ("dnsPolicy", any_of(json!(["None"]))),
        ("shareProcessNamespace", any_of(json!([true]))),
        ("terminationGracePeriodSeconds", any_of(json!([0, 1, 30, 86400]))),
        ("securityContext", any_of(json!([{"runAsNonRoot": true, "runAsUser": 7}, {"runAsUser": 64140}, {"sysctls": []}]))),
        ("restartPolicy", any_of(json!(["Always", "OnFailure", "Never"]))),
        ("os", any_of(json!([{"name": "linux"}]))),
    ]);
    (metadata, spec).prop_map(|(mut metadata, mut spec)| {
        metadata["name"] = "cart".into();
        spec["volumes"] = json!([{"name": "data", "emptyDir": {}}, {"name": "block", "persistentVolumeClaim": {"claimName": "b"}}]);
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    })
}

/// Where a pod is made: with and without a standard that forbids the kernel's rules.
fn places() -> impl Strategy<Value = Place> {
    any::<bool>().prop_map(|strict| if strict { restricted("shop") } else { labelled("shop") })
}

fn proxy_of(pod: &Value) -> &Value {
    pod["spec"]["initContainers"].as_array().unwrap().iter().find(|container| container["name"] == "proxy").unwrap()
}

/// The names of the init containers that come first.
fn first(pod: &Value, count: usize) -> Vec<&str> {
    pod["spec"]["initContainers"].as_array().unwrap().iter().take(count).filter_map(|container| container["name"].as_str()).collect()
}

/// Bluebox's own containers, in their order.
fn ours(redirect: &str) -> Vec<&'static str> {
    if redirect == "nftables" { vec!["bluebox-redirect", "proxy"] } else { vec!["bluebox-incarnate", "proxy"] }
}

/// The containers, without what the injector adds to their environment.
fn apps(pod: &Value, list: &str) -> Vec<Value> {
    let mut apps: Vec<_> = pod["spec"][list]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|container| !["proxy", "bluebox-incarnate", "bluebox-redirect"].iter().any(|name| container["name"] == *name))
        .cloned()
        .collect();
    for app in &mut apps {
        let app = app.as_object_mut().unwrap();
        app.remove("restartPolicyRules");
        if app.get("restartPolicy").is_some_and(|policy| policy == "Always") && list == "containers" {
            app.remove("restartPolicy");
        }
    }
    for app in &mut apps {
        if let Some(env) = app["env"].as_array_mut() {
            env.retain(|variable| !["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"].iter().any(|name| variable["name"] == *name));
        }
        if app["lifecycle"]["preStop"]["httpGet"]["path"].as_str().is_some_and(|path| path.starts_with("/drained")) {
            app.as_object_mut().unwrap().remove("lifecycle");
        }
        if app["env"] == json!([]) || app["env"].is_null() {
            app.as_object_mut().unwrap().remove("env");
        }
    }
    apps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(2000)))]

    #[test]
    fn a_pod_is_injected_whole_or_not_at_all(pod in pods(), place in places()) {
        let Decision::Injected(injected) = decide(&pod, &place, &settings(), &FewLimits) else { return Ok(()) };
        let mut applied = pod.clone();
        json_patch::patch(&mut applied, &injected.patch).unwrap();
        prop_assert_eq!(&applied, &injected.pod);

        // Nothing of the app is lost or changed.
        prop_assert_eq!(apps(&pod, "containers"), apps(&applied, "containers"));
        prop_assert_eq!(apps(&pod, "initContainers"), apps(&applied, "initContainers"));
        prop_assert_eq!(&pod["spec"]["fieldOfTomorrow"], &applied["spec"]["fieldOfTomorrow"]);
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            prop_assert!(applied["spec"]["volumes"].as_array().unwrap().contains(volume));
        }

        // Nothing that a pod says chooses what is run, as whom, and with which files.
        let redirect = &injected.report.redirect;
        let plain = json!({"metadata": {"name": "plain", "annotations": {"bluebox.dev/redirect": redirect}}, "spec": {"containers": [{"name": "app"}]}});
        let Decision::Injected(plain) = decide(&plain, &place, &settings(), &FewLimits) else { panic!("a plain pod is injected") };
        for field in ["name", "image", "imagePullPolicy", "command", "restartPolicy", "securityContext", "volumeMounts", "env", "ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "restartPolicyRules"] {
            prop_assert_eq!(&proxy_of(&applied)[field], &proxy_of(&plain.pod)[field], "{}", field);
        }
        prop_assert_eq!(&proxy_of(&applied)["args"][0], "proxy");
        // The one container with a right over the pod's network is as it should be, there where it should be, and nowhere else.
        prop_assert_eq!(first(&applied, ours(redirect).len()), ours(redirect));
        for container in applied["spec"]["initContainers"].as_array().unwrap().iter().filter(|container| container["name"] == "bluebox-redirect") {
            let mut container = container.clone();
            let arguments = container["args"].take();
            let arguments: Vec<_> = arguments.as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
            prop_assert_eq!(&arguments[..4], &["redirect", "--proxy-uid=64140", "--transparent-port=4143", "--dns-port=4153"]);
            let known = |argument: &&str| argument.starts_with("--exclude-") || ["--incarnation=/run/bluebox", "--program=/.bluebox"].contains(argument);
            prop_assert!(arguments[4..].iter().all(known), "{:?}", arguments);
            let mut usual = plain.pod["spec"]["initContainers"][0].clone();
            usual["args"].take();
            // Who may have how much can be asked for.
            container["resources"].take();
            usual["resources"].take();
            prop_assert_eq!(container, usual);
        }
        let expands = |argument: &str| argument.replace("$$", "").contains("$(") && !argument.contains("direct=$(BLUEBOX_POD_IP)");
        prop_assert!(!proxy_of(&applied)["args"].as_array().unwrap().iter().any(|argument| expands(argument.as_str().unwrap())));
        prop_assert_eq!(applied["spec"]["initContainers"].as_array().unwrap().iter().filter(|container| container["name"] == "proxy").count(), 1);

        // Twice is once.
        let Decision::Injected(again) = decide(&applied, &place, &settings(), &FewLimits) else { panic!("what was injected is refused") };
        prop_assert!(again.patch.0.is_empty(), "{}", again.patch);
    }

    /// A pod that the API server would take is one that it takes with its proxy, in a cluster with restart rules and in one without, and twice is once there too.
    #[test]
    fn a_legal_pod_stays_legal(pod in odd_pods(), place in places(), rules in any::<bool>()) {
        if !faults(&pod).is_empty() {
            return Ok(());
        }
        let settings = settings().with_restart_rules(rules);
        let Decision::Injected(injected) = decide(&pod, &place, &settings, &FewLimits) else { return Ok(()) };
        prop_assert_eq!(faults(&injected.pod), Vec::<String>::new());
        let Decision::Injected(again) = decide(&injected.pod, &place, &settings, &FewLimits) else { panic!("what was injected is refused") };
        prop_assert!(again.patch.0.is_empty(), "{}", again.patch);
        // What nobody asked the injector about is as it was.
        for field in ["hostUsers", "dnsPolicy", "shareProcessNamespace", "ephemeralContainers", "terminationGracePeriodSeconds", "securityContext", "restartPolicy", "os"] {
            prop_assert_eq!(&injected.pod["spec"][field], &pod["spec"][field], "{}", field);
        }
    }

    /// Another webhook added a container after the first time: it is pointed to the proxy too, and nothing else changes.
    #[test]
    fn what_others_add_is_taken_in(pod in pods(), place in places()) {
        let Decision::Injected(once) = decide(&pod, &place, &settings(), &FewLimits) else { return Ok(()) };
        let mut more = once.pod.clone();
        let added = json!({"name": "added-by-another"});
        let Some(containers) = more["spec"]["containers"].as_array_mut() else { return Ok(()) };
        containers.push(added);
        more["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "first", "image": "x:1"}));
        let Decision::Injected(second) = decide(&more, &place, &settings(), &FewLimits) else { panic!("it is refused the second time") };
        let ours = ours(&second.report.redirect);
        prop_assert_eq!(first(&second.pod, ours.len()), ours);
        let Decision::Injected(third) = decide(&second.pod, &place, &settings(), &FewLimits) else { panic!("it is refused the third time") };
        prop_assert!(third.patch.0.is_empty(), "{}", third.patch);
    }

    /// Any JSON at all: a decision, never a panic.
    #[test]
    fn anything_gets_a_decision(text in "\\PC{0,200}", pod in pods(), at in any::<proptest::sample::Index>()) {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = decide(&value, &labelled("shop"), &settings(), &FewLimits);
        }
        // A pod that was cut off and mended somewhere reads as something odd, or not at all.
        let text = pod.to_string();
        let mut cut = text.clone();
        let at = (0..=at.index(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        cut.replace_range(at.., "}");
        for text in [cut.clone(), format!("{cut}}}"), format!("{cut}}}}}")] {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = decide(&value, &labelled("shop"), &settings(), &FewLimits);
            }
        }
    }
}

//! The part of who installs Bluebox, on a real API server: what `bluebox install`, `enable`, `check` and `uninstall` print and find, before an install, after it, and with things
//! broken on purpose; and the overlays, with the rights of the injector and no more.
//!
//! `make test-kubernetes`. There is no node: pods are made, and don't run.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on says why and ends")]

mod cluster;

use bluebox_e2e::control_plane::{Check, check_all, wait};
use cluster::Cluster;
use serde_json::{Value, json};

/// One test; the checks come one after the other, as somebody does who installs.
#[test]
fn installing_on_a_real_api_server() {
    let Some(mut cluster) = Cluster::start() else { return };
    let checks: [(&str, Check<Cluster>); 12] = [
        ("what `install` prints is what kustomize makes of the manifests", as_kustomize),
        ("a cluster that can't be asked", unreachable),
        ("before the install", before),
        ("who may not install is told what he lacks", without_rights),
        ("without an installation nearly all is wrong", nothing_installed),
        ("after the install all is well, but for what this cluster lacks", installed),
        ("a namespace that is enabled", enabled),
        ("the injector may do what it has to, and nothing else", rights),
        ("each thing that is broken is found, with what to do", broken),
        ("with the injector away workloads wait; what `check` says wakes them", away),
        ("production and cert-manager work with the rights that they leave", overlays),
        ("what `uninstall` names is gone, and nothing is in the way of pods", uninstalled),
    ];
    check_all(&mut cluster, &checks);
}

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

fn documents(yaml: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { with_snippet: false, legacy_octal_numbers: true };
    let mut all: Vec<Value> = serde_saphyr::from_multiple_with_options(yaml, options).unwrap();
    all.retain(|document| !document.is_null());
    all.sort_by_key(|object| format!("{} {} {}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]));
    all
}

fn as_kustomize(cluster: &mut Cluster) {
    for (directory, arguments) in [
        ("base", &[][..]),
        ("overlays/development", &["--with=development"]),
        ("overlays/production", &["--with=production"]),
        ("overlays/cert-manager", &["--with=cert-manager"]),
    ] {
        let by_kustomize = documents(&cluster.kubectl.must(&["kustomize", &format!("{MANIFESTS}/{directory}")], None));
        let printed = documents(&cluster.bluebox(&[&["install"], arguments].concat()));
        assert_eq!(by_kustomize.len(), printed.len(), "{directory}");
        for (kustomized, printed) in by_kustomize.iter().zip(&printed) {
            assert_eq!(kustomized, printed, "{directory}");
        }
    }
}

fn unreachable(cluster: &mut Cluster) {
    let nowhere = cluster.directory.path().join("nowhere.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "x", "user": {"token": "x"}}],
    });
    std::fs::write(&nowhere, config.to_string()).unwrap();
    let done = cluster.bluebox_as(&nowhere.to_string_lossy(), &["check"]);
    assert!(done.code == Some(3) && done.errors.contains("https://127.0.0.1:1") && done.errors.contains("kubectl version"), "{}", done.errors);
    let done = cluster.bluebox_as("/nowhere", &["check", "--context=other"]);
    assert!(done.code == Some(3) && done.errors.contains("set KUBECONFIG"), "{}", done.errors);
    assert_eq!(cluster.bluebox_as("/nowhere", &["check", "--wait=soon"]).code, Some(2));
}

fn before(cluster: &mut Cluster) {
    let (code, found) = cluster.check(&["--pre"]);
    assert_eq!((code, found.bad("failed")), (Some(0), Vec::new()));
    found.warns(&["restart rules", "there is no node that takes pods"]);
    // For people: no colour where no terminal is.
    let text = cluster.bluebox(&["check", "--pre"]);
    assert!(
        text.contains("√ Kubernetes is 1.33 or later\n    v1.37") && text.contains("√ you may make all that an install makes") && !text.contains('\u{1b}'),
        "{text}"
    );
}

fn without_rights(cluster: &mut Cluster) {
    let who = cluster.account("default", "default");
    let done = cluster.bluebox_as(&who, &["check", "--pre"]);
    assert_eq!(done.code, Some(1), "{}", done.output);
    for says in ["× you may make all that an install makes", "you may not create namespaces", "‼ all nodes that take pods are new enough"] {
        assert!(done.output.contains(says), "{says}: {}", done.output);
    }
}

fn nothing_installed(cluster: &mut Cluster) {
    let (code, found) = cluster.check(&[]);
    assert_eq!(code, Some(1));
    let failed = found.bad("failed");
    for says in ["no ConfigMap", "no Deployment", "no MutatingWebhookConfiguration", "no ValidatingAdmissionPolicy ", "no ValidatingAdmissionPolicyBinding"] {
        assert!(failed.iter().any(|one| one.contains(says) && one.contains("bluebox install")), "{says}: {failed:#?}");
    }
}

fn installed(cluster: &mut Cluster) {
    cluster.install(&[]);
    cluster.start_injector(&[]);
    cluster.pretend_that_injectors_run();
    let (code, found) = cluster.check(&["--wait=90s"]);
    assert_eq!((code, found.bad("failed")), (Some(0), Vec::new()));
    found.warns(&["something asks for proxies", "bluebox enable"]);
    // The same again is no change: no injector is made anew for it, and the policy stays as it is.
    let generations = |cluster: &Cluster| {
        [&["deployment", "bluebox-injector", "-n", "bluebox"][..], &["validatingadmissionpolicy", "bluebox-injected"]]
            .map(|object| cluster.kubectl.get(object)["metadata"]["generation"].clone())
    };
    let before = generations(cluster);
    cluster.apply(&cluster.bluebox(&["install"]));
    assert_eq!(generations(cluster), before);
    cluster.kill_injector();
    cluster.start_injector(&[]);
}

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
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod("x")["spec"]},
        },
    })
}

/// The pods of a namespace whose names begin so.
fn pods(cluster: &Cluster, namespace: &str, begin: &str) -> Vec<Value> {
    let list = cluster.kubectl.get(&["pods", "-n", namespace]);
    let begins = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(begin)) && pod["metadata"]["deletionTimestamp"].is_null();
    list["items"].as_array().into_iter().flatten().filter(begins).cloned().collect()
}

fn has_proxy(pod: &Value) -> bool {
    pod["spec"]["initContainers"].as_array().into_iter().flatten().any(|container| container["name"] == "proxy")
}

fn make(cluster: &Cluster, namespace: &str, object: &Value) {
    cluster.kubectl.must(&["create", "-n", namespace, "-f", "-"], Some(object));
}

fn namespace(cluster: &Cluster, name: &str) {
    cluster.kubectl.must(&["create", "namespace", name], None);
    wait("the namespace has its service account", || cluster.kubectl.run(&["get", "serviceaccount", "default", "-n", name], None).right.then_some(()));
}

/// A new pod in a labelled namespace gets its proxy.
fn injects(cluster: &Cluster, name: &str) {
    wait(&format!("the pod {name} gets its proxy"), || {
        cluster.kubectl.run(&["create", "-n", "shop", "-f", "-"], Some(&pod(name)));
        pods(cluster, "shop", name).first().map(has_proxy)
    });
    assert!(has_proxy(&pods(cluster, "shop", name)[0]));
}

fn enabled(cluster: &mut Cluster) {
    // Some pods are there before the label.
    namespace(cluster, "shop");
    make(cluster, "shop", &deployment("cart"));
    wait("there is a pod", || pods(cluster, "shop", "cart").first().cloned());
    let password = cluster.directory.path().join("password");
    std::fs::write(&password, "geheim\n").unwrap();
    let file = format!("--sasl-password-file={}", password.display());
    let printed = cluster.bluebox(&["enable", "shop", "--brokers=kafka.kafka:9092", "--topic-prefix=shop", "--sasl-username=shop", &file]);
    cluster.apply(&printed);
    let (code, found) = cluster.check(&["--wait=90s"]);
    assert_eq!((code, found.bad("failed")), (Some(0), Vec::new()));
    found.warns(&["no pod runs without its proxy", "deployment/cart: 1 are older than the label", "kubectl -n shop rollout restart deployment/cart"]);
    // What it says to do helps.
    cluster.kubectl.must(&["-n", "shop", "rollout", "restart", "deployment/cart"], None);
    let old = wait("the new pod has its proxy", || {
        let pods = pods(cluster, "shop", "cart");
        pods.iter().any(has_proxy).then(|| pods.iter().find(|pod| !has_proxy(pod)).cloned())
    });
    if let Some(old) = old {
        // Nothing here says that the new one runs, so that the old one would go.
        cluster.kubectl.must(&["delete", "pod", "-n", "shop", old["metadata"]["name"].as_str().unwrap(), "--grace-period=0", "--force"], None);
        cluster.kubectl.must(&["delete", "replicaset", "-n", "shop", old["metadata"]["ownerReferences"][0]["name"].as_str().unwrap()], None);
    }
    let (_, found) = cluster.check(&[]);
    let warnings = found.bad("warning");
    assert!(!warnings.iter().any(|warning| warning.contains("older than the label")), "{warnings:#?}");
    assert!(found.0.to_string().contains("kafka.kafka:9092, topics shop.*"), "{}", found.0);
}

fn rights(cluster: &mut Cluster) {
    let own = ["-n", "bluebox"];
    for allowed in [
        &["get", "secret/bluebox-injector-certificates"][..],
        &["update", "secret/bluebox-injector-certificates"],
        &["create", "pods"],
        &["list", "namespaces"],
        &["list", "pods", "--all-namespaces"],
        &["create", "events", "-n", "shop"],
        &["list", "nodes"],
        &["update", "mutatingwebhookconfigurations/bluebox-injector"],
    ] {
        let place = if allowed.iter().any(|word| word.starts_with('-')) { &[][..] } else { &own };
        assert!(cluster.may(&[allowed, place].concat()), "{allowed:?}");
    }
    refused(cluster);
}

/// What no injector may, however it was installed.
fn refused(cluster: &Cluster) {
    let own = ["-n", "bluebox"];
    for denied in [
        &["get", "secret/bluebox-kafka", "-n", "shop"][..],
        &["get", "secret/another", own[0], own[1]],
        &["list", "secrets", own[0], own[1]],
        &["list", "secrets", "--all-namespaces"],
        &["watch", "secrets", own[0], own[1]],
        &["create", "secrets", own[0], own[1]],
        &["delete", "secret/bluebox-injector-certificates", own[0], own[1]],
        &["create", "pods", "-n", "shop"],
        &["delete", "pods", own[0], own[1]],
        &["create", "pods", "--subresource=exec", own[0], own[1]],
        &["update", "deployments.apps", own[0], own[1]],
        &["update", "configmap/bluebox-settings", own[0], own[1]],
        &["update", "namespaces"],
        &["update", "nodes"],
        &["create", "mutatingwebhookconfigurations"],
        &["update", "mutatingwebhookconfigurations/another"],
        &["delete", "mutatingwebhookconfigurations/bluebox-injector"],
        &["update", "validatingadmissionpolicies/bluebox-injected"],
        &["create", "clusterrolebindings"],
        &["escalate", "clusterroles"],
        &["impersonate", "users"],
    ] {
        assert!(!cluster.may(denied), "the injector may {denied:?}");
    }
}

fn broken(cluster: &mut Cluster) {
    let kubectl = cluster.kubectl.clone();
    let restore = |kind: &str, name: &str, namespace: &[&str]| {
        let mut object = kubectl.get(&[&[kind, name], namespace].concat());
        for field in ["resourceVersion", "uid", "creationTimestamp"] {
            object["metadata"].as_object_mut().unwrap().remove(field);
        }
        kubectl.must(&[&["delete", kind, name], namespace].concat(), None);
        move |kubectl: &bluebox_e2e::kubectl::Kubectl| {
            kubectl.must(&["create", "-f", "-"], Some(&object));
        }
    };

    let back = restore("secret", "bluebox-kafka", &["-n", "shop"]);
    cluster.check(&[]).1.only_failure(&["namespace shop", "bluebox-kafka", "CreateContainerConfigError", "bluebox enable shop"]);
    back(&kubectl);

    let patch = json!({"stringData": {"client.properties": "ssl.ca.location=/etc/bluebox/kafka/ca.pem"}}).to_string();
    let before = kubectl.get(&["secret", "bluebox-kafka", "-n", "shop"])["data"]["client.properties"].clone();
    kubectl.must(&["patch", "secret", "bluebox-kafka", "-n", "shop", "-p", &patch], None);
    cluster.check(&[]).1.only_failure(&["ssl.ca.location", "it has no key ca.pem"]);
    kubectl.must(&["patch", "secret", "bluebox-kafka", "-n", "shop", "-p", &json!({"data": {"client.properties": before}}).to_string()], None);

    let back = restore("validatingadmissionpolicybinding", "bluebox-injected-namespaces", &[]);
    let (code, found) = cluster.check(&[]);
    found.only_failure(&["for labelled namespaces", "no ValidatingAdmissionPolicyBinding bluebox-injected-namespaces"]);
    assert_eq!(code, Some(1));
    back(&kubectl);

    let weak = json!({"spec": {"failurePolicy": "Ignore"}}).to_string();
    kubectl.must(&["patch", "validatingadmissionpolicy", "bluebox-injected", "--type=merge", "-p", &weak], None);
    cluster.check(&[]).1.warns(&["ValidatingAdmissionPolicy bluebox-injected: spec.failurePolicy is not as this version makes it"]);
    kubectl.must(&["patch", "validatingadmissionpolicy", "bluebox-injected", "--type=merge", "-p", &weak.replace("Ignore", "Fail")], None);

    // Another image than the one that the running injector knows: what it injects is not what the policy wants.
    let image = |image: &str| json!({"data": {"proxy-image": image}}).to_string();
    let right = kubectl.get(&["configmap", "bluebox-settings", "-n", "bluebox"])["data"]["proxy-image"].as_str().unwrap().to_owned();
    kubectl.must(&["patch", "configmap", "bluebox-settings", "-n", "bluebox", "-p", &image("bluebox:next")], None);
    wait("the new image is noticed", || {
        let (_, found) = cluster.check(&[]);
        found.bad("failed").iter().any(|one| one.contains("a new pod would get its proxy")).then_some(())
    });
    cluster.check(&[]).1.warns(&["all proxies are of the version that is installed", "deployment/cart"]);
    kubectl.must(&["patch", "configmap", "bluebox-settings", "-n", "bluebox", "-p", &image(&right)], None);
    wait("all is well again", || (cluster.check(&[]).0 == Some(0)).then_some(()));

    // With the injector away nobody mends the webhook.
    cluster.kill_injector();
    let bundle = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]).to_string();
    kubectl.must(&["patch", "mutatingwebhookconfiguration", "bluebox-injector", "--type=json", "-p", &bundle], None);
    let failed = cluster.check(&[]).1.bad("failed");
    for says in ["has no CA bundle", "new pods here wait"] {
        assert!(failed.iter().any(|one| one.contains(says)), "{says}: {failed:#?}");
    }
}

fn away(cluster: &mut Cluster) {
    make(cluster, "shop", &deployment("stock"));
    // Until its controller has tried so often that it waits for long: each time twice as long, from 5 ms.
    let waiting = wait("the ReplicaSet says that it waits", || {
        let (_, found) = cluster.check(&[]);
        found.bad("failed").into_iter().find(|one| one.contains("replicaset/stock"))
    });
    assert!(waiting.contains("the injector did not answer when it was asked") && waiting.contains("up to 1000 s"), "{waiting}");
    wait("its controller has tried often", || {
        let events = cluster.kubectl.get(&["events", "-n", "shop", "--field-selector=reason=FailedCreate"]);
        let tries = |event: &Value| event["count"].as_u64().or(event["series"]["count"].as_u64()).unwrap_or(1);
        let all: u64 = events["items"]
            .as_array()?
            .iter()
            .filter(|event| event["involvedObject"]["name"].as_str().is_some_and(|name| name.starts_with("stock")))
            .map(tries)
            .sum();
        (all >= 11).then_some(())
    });
    cluster.start_injector(&[]);
    wait("the injector answers again", || (!cluster.check(&[]).1.bad("failed").iter().any(|one| one.contains("new pods here wait"))).then_some(()));
    // What `check` says now, literally, in a shell.
    let (_, found) = cluster.check(&[]);
    if let Some(said) = found.bad("failed").into_iter().find(|one| one.contains("replicaset/stock")) {
        let hint = said.split_once(" > ").unwrap().1;
        let hint: String = serde_json::from_str(hint).unwrap();
        let command = hint.lines().find(|line| line.starts_with("kubectl ") && line.contains("stock")).unwrap();
        let done = std::process::Command::new("bash").args(["-c", command]).env("KUBECONFIG", cluster.kubectl.kubeconfig()).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        println!("    woken by: {command}");
    }
    wait("its pod is made", || pods(cluster, "shop", "stock").first().map(|pod| assert!(has_proxy(pod))));
    let (code, found) = cluster.check(&["--wait=30s"]);
    assert_eq!((code, found.bad("failed")), (Some(0), Vec::new()));
}

/// The types that cert-manager brings, as far as they have to be there.
fn cert_manager_types(cluster: &Cluster) {
    for (plural, kind) in [("certificates", "Certificate"), ("issuers", "Issuer")] {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.cert-manager.io")},
            "spec": {
                "group": "cert-manager.io", "scope": "Namespaced", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        });
        cluster.kubectl.must(&["apply", "-f", "-"], Some(&definition));
        cluster.kubectl.must(&["wait", "--for=condition=Established", &format!("crd/{plural}.cert-manager.io"), "--timeout=60s"], None);
    }
}

/// What cert-manager would make: an authority, and a certificate of it, in PEM.
fn certificate(cluster: &Cluster) -> (String, std::path::PathBuf) {
    let place = cluster.directory.path().join("tls");
    std::fs::create_dir_all(&place).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let script = format!(
        "cd {} && openssl req -x509 {key} -days 10 -subj /CN=authority -keyout ca.key -out ca.crt && openssl req {key} -subj /CN=injector -keyout tls.key -out tls.csr && \
         openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 9 -out tls.crt -extfile <(printf 'subjectAltName=DNS:bluebox-injector.bluebox.svc\\nextendedKeyUsage=serverAuth\\n')",
        place.display()
    );
    let done = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    (std::fs::read_to_string(place.join("ca.crt")).unwrap(), place)
}

fn overlays(cluster: &mut Cluster) {
    let apply = |cluster: &Cluster, overlay: &str| cluster.kubectl.must(&["apply", "-k", &format!("{MANIFESTS}/overlays/{overlay}")], None);
    cluster.kill_injector();
    apply(cluster, "development");
    assert_eq!(cluster.kubectl.get(&["statefulset", "kafka", "-n", "kafka"])["spec"]["replicas"], 1);
    wait("the pod of Kafka is made, whatever the standard of its namespace", || pods(cluster, "kafka", "kafka-0").first().cloned());

    apply(cluster, "production");
    cluster.start_injector(&[]);
    cluster.pretend_that_injectors_run();
    assert_eq!(cluster.kubectl.get(&["deployment", "bluebox-injector", "-n", "bluebox"])["status"]["readyReplicas"], 3);
    injects(cluster, "with-production");
    refused(cluster);
    assert_eq!(cluster.kubectl.get(&["networkpolicy", "bluebox-injector", "-n", "bluebox"])["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    wait("the budget counts all three", || {
        (cluster.kubectl.get(&["poddisruptionbudget", "bluebox-injector", "-n", "bluebox"])["status"]["expectedPods"] == 3).then_some(())
    });

    cluster.kill_injector();
    cert_manager_types(cluster);
    apply(cluster, "cert-manager");
    let (authority, directory) = certificate(cluster);
    let secret = ["create", "secret", "generic", "bluebox-injector-tls", "-n", "bluebox"];
    let files = ["tls.crt", "tls.key"].map(|file| format!("--from-file={}", directory.join(file).display()));
    cluster.kubectl.must(&[&secret[..], &[&files[0], &files[1]]].concat(), None);
    cluster.start_injector(&["--certificate", &directory.to_string_lossy()]);
    cluster.pretend_that_injectors_run();
    // Not yet: nobody has told the API server.
    let failed = cluster.check(&[]).1.bad("failed");
    assert!(failed.iter().any(|one| one.contains("the API server trusts the webhook's certificate")), "{failed:#?}");
    let bundle = base64(&authority);
    let at = |number: u8| json!({"op": "add", "path": format!("/webhooks/{number}/clientConfig/caBundle"), "value": bundle});
    cluster.kubectl.must(&["patch", "mutatingwebhookconfiguration", "bluebox-injector", "--type=json", "-p", &json!([at(0), at(1)]).to_string()], None);
    injects(cluster, "with-cert-manager");
    let (code, found) = cluster.check(&["--wait=60s"]);
    assert_eq!((code, found.bad("failed")), (Some(0), Vec::new()));
    refused(cluster);
    for denied in [&["get", "secret/bluebox-injector-certificates", "-n", "bluebox"][..], &["update", "mutatingwebhookconfigurations/bluebox-injector"]] {
        assert!(!cluster.may(denied), "the injector may {denied:?}");
    }
}

fn base64(text: &str) -> String {
    use std::io::Write as _;
    let mut encode = std::process::Command::new("base64").arg("-w0").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    encode.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(encode.wait_with_output().unwrap().stdout).unwrap()
}

fn uninstalled(cluster: &mut Cluster) {
    cluster.kill_injector();
    let printed = cluster.bluebox(&["uninstall", "--with=cert-manager,development"]);
    let done = cluster.kubectl.feed(&["delete", "--wait=false", "--ignore-not-found", "-f", "-"], Some(&printed));
    assert!(done.right, "{}", done.errors);
    for kind in ["mutatingwebhookconfiguration", "validatingadmissionpolicy", "validatingadmissionpolicybinding", "clusterrole", "clusterrolebinding"] {
        let all = cluster.kubectl.must(&["get", kind, "-o", "name"], None);
        assert!(!all.contains("bluebox"), "{all}");
    }
    wait("a pod starts bare", || cluster.kubectl.run(&["create", "-n", "shop", "-f", "-"], Some(&pod("bare"))).right.then_some(()));
    assert!(!has_proxy(&pods(cluster, "shop", "bare")[0]));
}

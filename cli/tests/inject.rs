//! `bluebox inject`, what `bluebox injector` says when it can't run, and what is printed for a cluster.

mod common;

use common::{Place, bluebox, run};

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart}
spec:
  template:
    metadata:
      annotations: {bluebox.dev/attempt-timeout: 30s, bluebox.dev/route: '/reports attempt-timeout=30m'}
    spec:
      containers: [{name: app, image: 'shop/cart:1', ports: [{containerPort: 8080}], livenessProbe: {httpGet: {path: /healthz, port: 8080}}}]
";

#[test]
fn a_deployment_gets_the_proxy_and_limits_are_the_proxys_own_flags() {
    let place = Place::with(DEPLOYMENT);
    let (status, said) = run(bluebox().args(["inject", "bluebox.yaml", "--proxy-image=registry.example/bluebox:7"]).current_dir(place.path()));
    assert!(status.success(), "{said}");
    for line in [
        "image: registry.example/bluebox:7",
        "- \"--serve=cart=127.0.0.1:8080\"",
        "--attempt-timeout=30s",
        "/reports attempt-timeout=30m",
        "Deployment cart: gets a proxy",
    ] {
        assert!(said.contains(line) || said.contains(&line.replace('"', "")), "{line}: {said}");
    }
}

#[test]
fn what_is_injected_is_what_the_proxy_takes() {
    let place = Place::with(DEPLOYMENT);
    let (_, said) = run(bluebox().args(["inject", "bluebox.yaml"]).current_dir(place.path()));
    let begin = said.find("apiVersion").unwrap_or_else(|| panic!("nothing came out: {said}"));
    let (manifest, _) = said[begin..].split_once("Deployment cart: gets").unwrap();
    let output: serde_json::Value = serde_saphyr::from_str(manifest).unwrap();
    let proxy =
        output.pointer("/spec/template/spec/initContainers").unwrap().as_array().unwrap().iter().find(|container| container["name"] == "proxy").unwrap();
    let arguments: Vec<&str> = proxy["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    assert!(arguments[0] == "proxy" && arguments.iter().any(|argument| argument.starts_with("--liveness=")), "{arguments:?}");
    // All of them are understood: what is wrong is that there is no directory that it shares with an init container.
    let (status, said) = run(bluebox().args(&arguments).env("BLUEBOX_BROKERS", "127.0.0.1:9").env("BLUEBOX_POD_IP", "10.0.0.1"));
    assert!(status.code() == Some(1) && said.contains("/run/bluebox/log: can't be written"), "{said}");
}

#[test]
fn a_mistake_is_an_error_and_nothing_comes_out() {
    let place = Place::with(&DEPLOYMENT.replace("30s", "'30'"));
    let (status, said) = run(bluebox().args(["inject", "bluebox.yaml"]).current_dir(place.path()));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("Deployment cart") && said.contains("bluebox.dev/attempt-timeout") && !said.contains("apiVersion"), "{said}");
    let place = Place::with(&DEPLOYMENT.replace("30s", "30"));
    let (_, said) = run(bluebox().args(["inject", "bluebox.yaml"]).current_dir(place.path()));
    assert!(said.contains("put numbers in quotes"), "{said}");
    let (status, said) = run(bluebox().args(["inject", "bluebox.yaml", "--proxy-uid=0"]).current_dir(place.path()));
    assert!(status.code() == Some(1) && said.contains("a user other than root"), "{said}");
}

#[test]
fn the_injector_needs_a_cluster() {
    let (status, said) = run(bluebox().arg("injector").env("KUBECONFIG", "/nowhere").env_remove("KUBERNETES_SERVICE_HOST"));
    assert!(status.code() == Some(1) && said.contains("set KUBECONFIG"), "{said}");
}

#[test]
fn the_docs_have_every_annotation_and_flag() {
    for (page, command) in
        [("kubernetes", "inject"), ("kubernetes", "injector"), ("install", "install"), ("install", "enable"), ("install", "check"), ("install", "uninstall")]
    {
        let docs = std::fs::read_to_string(format!("{}/../docs/{page}.md", env!("CARGO_MANIFEST_DIR"))).unwrap_or_default();
        let (_, help) = run(bluebox().args([command, "--help"]));
        let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
        for flag in words.filter_map(|word| word.strip_prefix("--")).filter(|flag| !["", "help"].contains(flag)) {
            assert!(docs.contains(&format!("--{flag}")), "docs/{page}.md does not have {command} --{flag}");
        }
    }
}

#[test]
fn what_is_printed_is_manifests_and_nothing_else() {
    let (status, said) = run(bluebox().args(["install", "--image=registry.example/bluebox:7", "--with=production,cert-manager"]));
    assert!(status.success(), "{said}");
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&said).unwrap();
    assert!(objects.len() > 15 && objects.iter().all(|object| object["kind"].is_string() && object["metadata"]["name"].is_string()), "{said}");
    let mut enable = bluebox();
    enable.args(["enable", "shop", "--brokers=kafka.kafka:9092"]);
    let printed = enable.output().unwrap();
    let (output, errors) = (String::from_utf8(printed.stdout).unwrap(), String::from_utf8(printed.stderr).unwrap());
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&output).unwrap();
    assert_eq!(objects.iter().map(|object| object["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["Namespace", "Secret"]);
    assert!(errors.contains("rollout restart"), "{errors}");
    let (status, said) = run(bluebox().args(["uninstall", "--with=everything"]));
    assert!(status.code() == Some(2) && said.contains("cert-manager"), "{said}");
}

#[test]
fn a_check_needs_a_cluster() {
    let (status, said) = run(bluebox().arg("check").env("KUBECONFIG", "/nowhere").env_remove("KUBERNETES_SERVICE_HOST"));
    assert!(status.code() == Some(3) && said.contains("set KUBECONFIG"), "{said}");
}

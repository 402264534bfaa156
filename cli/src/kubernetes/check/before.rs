//! Whether a cluster is fit for Bluebox: what has to hold before an install, and still has to after.

use serde_json::{Value, json};

use super::report::{Check, Section, Status};
use super::text;
use crate::kubernetes::cluster::{Asked, Cluster};
use crate::kubernetes::install;

/// The least version of Kubernetes: native sidecars.
const LEAST: (u32, u32) = (1, 33);
/// The least version of the kernel: the redirect's rules.
const LEAST_KERNEL: (u32, u32) = (5, 2);

/// What was seen of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The namespace of the installation, there or not.
    pub(super) own: String,
    /// Its version.
    pub(super) version: Value,
    /// Its nodes.
    pub(super) nodes: Result<Vec<Value>, String>,
    /// What of the admission API there is.
    pub(super) admission: Asked,
    /// What an installer needs and may not do, or that it can't be known.
    pub(super) missing_rights: Result<Vec<String>, String>,
    /// Whether there are restart rules, and if not, why.
    pub(super) restart_rules: Result<Result<(), String>, String>,
    /// All namespaces.
    pub(super) namespaces: Result<Vec<Value>, String>,
    /// What other webhooks there are.
    pub(super) webhooks: Result<Vec<Value>, String>,
}

impl Seen {
    /// Asks a cluster that has answered with its version.
    pub(super) async fn ask(cluster: &Cluster, version: Value, namespace: &str, rights: bool) -> Self {
        let namespaces = cluster.list("/api/v1/namespaces").await;
        let there = namespaces.as_ref().is_ok_and(|all| all.iter().any(|one| text(one, "/metadata/name") == namespace));
        // Before the install, where every cluster has a place.
        let place = if there { namespace } else { "default" };
        let client = cluster.client();
        let (nodes, admission, webhooks, restart_rules) = tokio::join!(
            cluster.list("/api/v1/nodes"),
            cluster.get("/apis/admissionregistration.k8s.io/v1"),
            cluster.list("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
            bluebox_injector::rules::ask(&client, place),
        );
        let missing_rights = if rights { missing_rights(cluster).await } else { Ok(Vec::new()) };
        Self { own: namespace.to_owned(), version, nodes, admission, missing_rights, restart_rules, namespaces, webhooks }
    }
}

/// Asks for each kind of object that `bluebox install` prints whether it may be made.
async fn missing_rights(cluster: &Cluster) -> Result<Vec<String>, String> {
    let mut missing = Vec::new();
    for (group, resource, namespace) in install::resources().map_err(|error| format!("{error:#}"))? {
        for verb in ["create", "patch"] {
            let mut attributes = json!({"verb": verb, "group": group, "resource": resource});
            if let Some(namespace) = &namespace {
                attributes["namespace"] = namespace.as_str().into();
            }
            let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}});
            let answer = cluster.make("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?.unwrap_or_default();
            if answer["status"]["allowed"] != true {
                missing.push(format!("{verb} {resource}{}", if group.is_empty() { String::new() } else { format!(".{group}") }));
            }
        }
    }
    Ok(missing)
}

/// The judgement over what was seen; `pre`: before an install.
pub(super) fn judge(seen: &Seen, pre: bool) -> Vec<Section> {
    let mut checks = vec![version(&seen.version), admission(&seen.admission)];
    if pre {
        checks.push(rights(&seen.missing_rights));
    }
    checks.push(nodes(&seen.nodes));
    checks.push(kernels(&seen.nodes));
    checks.push(restart_rules(&seen.restart_rules));
    if pre {
        checks.push(pod_security(&seen.namespaces, &seen.own));
    }
    checks.push(others(&seen.webhooks));
    vec![Section { name: "the cluster".to_owned(), checks }]
}

/// The first two numbers in a text such as `v1.37.2` or `5.15.0-generic`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn version(version: &Value) -> Check {
    let name = format!("Kubernetes is {}.{} or later", LEAST.0, LEAST.1);
    let said = text(version, "/gitVersion");
    match numbers(said) {
        Some(found) if found >= LEAST => Check::ok_because(name, said),
        Some(_) => Check::failed(name, format!("it is {said}"), "upgrade the cluster: older versions have no native sidecars that can be relied on"),
        None => Check::warning(name, format!("its version can't be read: {version}"), "look yourself: kubectl version"),
    }
}

fn admission(admission: &Asked) -> Check {
    let name = "the API server has webhooks and policies (admissionregistration.k8s.io/v1)";
    let hint = "they are part of Kubernetes since 1.30; look at --runtime-config and --disable-admission-plugins of the API server";
    match admission {
        Err(why) => Check::warning(name, why, "look yourself: kubectl api-resources --api-group=admissionregistration.k8s.io"),
        Ok(None) => Check::failed(name, "it doesn't serve that API", hint),
        Ok(Some(list)) => {
            let there: Vec<_> = list["resources"].as_array().into_iter().flatten().map(|resource| text(resource, "/name")).collect();
            let wanted = ["mutatingwebhookconfigurations", "validatingadmissionpolicies", "validatingadmissionpolicybindings"];
            let missing = wanted.iter().filter(|wanted| !there.contains(wanted)).map(|missing| format!("it has no {missing}")).collect();
            Check::none_of(name, Status::Failed, missing, hint)
        }
    }
}

fn rights(missing: &Result<Vec<String>, String>) -> Check {
    let name = "you may make all that an install makes";
    match missing {
        Ok(missing) => {
            let missing = missing.iter().map(|right| format!("you may not {right}")).collect();
            Check::none_of(name, Status::Failed, missing, "let somebody with these rights apply what `bluebox install` prints (usually cluster-admin)")
        }
        Err(why) => Check::warning(name, why, "look yourself: kubectl auth can-i --list"),
    }
}

fn linux(nodes: &[Value]) -> impl Iterator<Item = &Value> {
    nodes.iter().filter(|node| text(node, "/status/nodeInfo/operatingSystem") != "windows")
}

fn nodes(nodes: &Result<Vec<Value>, String>) -> Check {
    let name = "all nodes that take pods are new enough";
    match nodes {
        Err(why) => Check::warning(name, why, "look yourself: kubectl get nodes"),
        Ok(nodes) => {
            let old = linux(nodes).filter_map(|node| {
                let said = text(node, "/status/nodeInfo/kubeletVersion");
                (numbers(said)? < LEAST).then(|| format!("the kubelet of {} is {said}", text(node, "/metadata/name")))
            });
            Check::none_of(name, Status::Failed, old.collect(), format!("upgrade them to {}.{} or later", LEAST.0, LEAST.1))
        }
    }
}

fn kernels(nodes: &Result<Vec<Value>, String>) -> Check {
    let name = format!("all nodes have Linux {}.{} or later", LEAST_KERNEL.0, LEAST_KERNEL.1);
    match nodes {
        Err(why) => Check::warning(name, why, "look yourself: kubectl get nodes -o wide"),
        Ok(nodes) => {
            let old = linux(nodes).filter_map(|node| {
                let said = text(node, "/status/nodeInfo/kernelVersion");
                (numbers(said)? < LEAST_KERNEL).then(|| format!("{} has {said}", text(node, "/metadata/name")))
            });
            Check::none_of(name, Status::Warning, old.collect(), "pods there can't be redirected by rules in the kernel; give them bluebox.dev/redirect: env")
        }
    }
}

fn restart_rules(rules: &Result<Result<(), String>, String>) -> Check {
    let name = "restart rules: app and proxy can be restarted together at once";
    match rules {
        Ok(Ok(())) => Check::ok(name),
        Ok(Err(why)) => Check::warning(
            name,
            why,
            "nothing has to be done: they are restarted together by the app's liveness probes, which takes longer (docs/kubernetes.md has the times).\n\
             Kubernetes 1.36 has restart rules, once every node that takes pods declares them",
        ),
        Err(why) => {
            Check::warning(name, why, "you need the right to create pods (as a dry run) and to list nodes to find that out; the injector finds out itself")
        }
    }
}

/// What forbids an init container that may change the pod's network.
fn pod_security(namespaces: &Result<Vec<Value>, String>, own: &str) -> Check {
    let name = "Pod Security lets pods be redirected by rules in the kernel";
    match namespaces {
        Err(why) => Check::warning(name, why, "look yourself: kubectl get namespaces -L pod-security.kubernetes.io/enforce"),
        Ok(namespaces) => {
            let strict = namespaces.iter().filter_map(|namespace| {
                let standard = text(namespace, "/metadata/labels/pod-security.kubernetes.io~1enforce");
                (text(namespace, "/metadata/name") != own && ["baseline", "restricted"].contains(&standard))
                    .then(|| format!("namespace {}: {standard}", text(namespace, "/metadata/name")))
            });
            let hint = "nothing has to be done: pods there are sent to the proxy by HTTP_PROXY, and pass the standard; only clients that obey it are durable";
            Check::none_of(name, Status::Warning, strict.collect(), hint)
        }
    }
}

/// Meshes that take pods' connections too, by the names of their webhooks.
const MESHES: [(&str, &str); 5] = [("istio", "Istio"), ("linkerd", "Linkerd"), ("consul", "Consul"), ("kuma", "Kuma"), ("osm-", "Open Service Mesh")];

fn others(webhooks: &Result<Vec<Value>, String>) -> Check {
    let name = "no other mesh takes the connections of pods";
    match webhooks {
        Err(why) => Check::warning(name, why, "look yourself: kubectl get mutatingwebhookconfigurations"),
        Ok(webhooks) => {
            let found = webhooks.iter().filter_map(|webhook| {
                let called = text(webhook, "/metadata/name");
                let (_, mesh) = MESHES.iter().find(|(part, _)| called.contains(part))?;
                Some(format!("{mesh} (the webhook {called})"))
            });
            let hint = "a pod can have one of the two: don't label namespaces for both, or take the other's sidecar out of pods that get Bluebox's proxy";
            Check::none_of(name, Status::Warning, found.collect(), hint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            own: "bluebox".to_owned(),
            version: json!({"gitVersion": "v1.37.2"}),
            nodes: Ok(vec![
                json!({"metadata": {"name": "a"}, "status": {"nodeInfo": {"kubeletVersion": "v1.37.2", "kernelVersion": "6.1.0-13-amd64", "operatingSystem": "linux"}}}),
            ]),
            admission: Ok(Some(
                json!({"resources": [{"name": "mutatingwebhookconfigurations"}, {"name": "validatingadmissionpolicies"}, {"name": "validatingadmissionpolicybindings"}]}),
            )),
            missing_rights: Ok(Vec::new()),
            restart_rules: Ok(Ok(())),
            namespaces: Ok(vec![json!({"metadata": {"name": "shop"}})]),
            webhooks: Ok(Vec::new()),
        }
    }

    /// What is not as it should be: its name, what is said of it, and how bad it is.
    fn found(change: impl FnOnce(&mut Seen)) -> Vec<(Status, String)> {
        let mut seen = seen();
        change(&mut seen);
        let checks = judge(&seen, true).into_iter().flat_map(|section| section.checks);
        let bad: Vec<_> = checks.filter(|check| check.status != Status::Ok).collect();
        for check in &bad {
            assert!(check.hint.is_some(), "{check:?} has no hint");
        }
        bad.into_iter().map(|check| (check.status, check.why.join("; "))).collect()
    }

    #[test]
    fn a_cluster_that_is_fit() {
        assert_eq!(found(|_| {}), []);
    }

    /// What is broken, and what is found.
    type Case = (Box<dyn FnOnce(&mut Seen)>, Status, &'static str);

    #[test]
    fn each_thing_that_is_wrong_is_found_alone() {
        let node = |kubelet: &str, kernel: &str, system: &str| {
            Ok(vec![
                json!({"metadata": {"name": "n"}, "status": {"nodeInfo": {"kubeletVersion": kubelet, "kernelVersion": kernel, "operatingSystem": system}}}),
            ])
        };
        let cases: Vec<Case> = vec![
            (Box::new(|seen| seen.version = json!({"gitVersion": "v1.32.9"})), Status::Failed, "it is v1.32.9"),
            (Box::new(|seen| seen.version = json!({})), Status::Warning, "can't be read"),
            (Box::new(|seen| seen.admission = Ok(None)), Status::Failed, "doesn't serve"),
            (
                Box::new(|seen| {
                    seen.admission = Ok(Some(json!({"resources": [{"name": "mutatingwebhookconfigurations"}, {"name": "validatingadmissionpolicies"}]})))
                }),
                Status::Failed,
                "no validatingadmissionpolicybindings",
            ),
            (Box::new(|seen| seen.missing_rights = Ok(vec!["create secrets".to_owned()])), Status::Failed, "you may not create secrets"),
            (Box::new(move |seen| seen.nodes = node("v1.31.0", "6.1.0", "linux")), Status::Failed, "kubelet of n is v1.31.0"),
            (Box::new(move |seen| seen.nodes = node("v1.34.0+k3s1", "4.18.0-553.el8", "linux")), Status::Warning, "n has 4.18.0"),
            (Box::new(|seen| seen.restart_rules = Ok(Err("the node n doesn't declare it".to_owned()))), Status::Warning, "the node n"),
            (Box::new(|seen| seen.restart_rules = Err("forbidden".to_owned())), Status::Warning, "forbidden"),
            (
                Box::new(|seen| {
                    seen.namespaces = Ok(vec![json!({"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}}})])
                }),
                Status::Warning,
                "strict: baseline",
            ),
            (Box::new(|seen| seen.webhooks = Ok(vec![json!({"metadata": {"name": "istio-sidecar-injector"}})])), Status::Warning, "Istio"),
        ];
        for (change, status, says) in cases {
            let found = found(change);
            assert!(found.len() == 1 && found[0].0 == status && found[0].1.contains(says), "{says}: {found:?}");
        }
        assert_eq!(found(move |seen| seen.nodes = node("v1.20.0", "10.0.17763", "windows")), []);
    }
}

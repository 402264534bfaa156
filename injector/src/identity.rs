//! Who a pod is, and where its app listens, when no annotation says it: from its owner, its labels and the ports of its containers.

use bluebox_core::ComponentName;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};

use crate::annotations::{Asked, Class, Named, PREFIX, Protocol};
use crate::mistake::Mistake;
use crate::settings::PORTS;

/// Who a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who calls, when it calls.
    pub name: ComponentName,
    /// What it serves, and where its app listens.
    pub serves: Vec<(ComponentName, u16)>,
    /// What the app speaks.
    pub protocol: Protocol,
    /// What whoever made the pod should know.
    pub warnings: Vec<String>,
}

/// Finds it out.
///
/// # Errors
/// What has to be said by annotation, because it can't be found out.
pub fn find(pod: &Pod, spec: &PodSpec, asked: &Asked) -> Result<Identity, Vec<Mistake>> {
    let mut warnings = Vec::new();
    let app: Vec<&Container> = spec.containers.iter().filter(|container| is_app(container, asked)).collect();
    if asked.components.iter().any(|named| named.port.is_some()) {
        let serves: Vec<_> = asked.components.iter().filter_map(|Named { name, port }| port.map(|port| (name.clone(), port))).collect();
        check_ports(&serves)?;
        check_ordinals(pod, &serves, asked)?;
        let name = serves[0].0.clone();
        return Ok(Identity { name, serves, protocol: asked.protocol.unwrap_or(Protocol::Http1), warnings });
    }
    let name = match asked.components.first() {
        Some(named) => named.name.clone(),
        None => name_of(pod).map_err(|mistake| vec![mistake])?,
    };
    let found = if asked.port.is_none() { listening(&app, &mut warnings) } else { None };
    let port = asked.port.or(found.map(|(port, _)| port));
    // A Job is not called, unless it says so: its pods end.
    let is_called = owner(pod).is_none_or(|(kind, _)| kind != "Job") || asked.port.is_some() || !asked.components.is_empty();
    let serves: Vec<_> = port.filter(|_| is_called).map(|port| (name.clone(), port)).into_iter().collect();
    if serves.is_empty() && is_called {
        warnings.push(format!("{name} takes no calls: no container has a TCP port. {PREFIX}port says where the app listens"));
    }
    // A port of a container is checked with the container.
    if asked.port.is_some() {
        check_ports(&serves)?;
    }
    check_ordinals(pod, &serves, asked)?;
    let spoken = found.map_or(Protocol::Http1, |(_, protocol)| protocol);
    Ok(Identity { name, serves, protocol: asked.protocol.unwrap_or(spoken), warnings })
}

/// Whether a container is (part of) the app.
pub fn is_app(container: &Container, asked: &Asked) -> bool {
    asked.app_containers.is_empty() || asked.app_containers.contains(&container.name)
}

fn check_ports(serves: &[(ComponentName, u16)]) -> Result<(), Vec<Mistake>> {
    let taken = |port: u16| PORTS.contains(&port);
    let remedy = || format!("the proxy itself listens at {PORTS:?}: let the app listen elsewhere");
    let mistakes: Vec<_> =
        serves.iter().filter(|(_, port)| taken(*port)).map(|(name, port)| Mistake::new(format!("the port of {name}"), &port.to_string(), remedy())).collect();
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// The label by which a StatefulSet says which of its pods one is.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Whether the stateful components of a pod can be that: its ordinals are those of a StatefulSet. A box whose replicas are counted by somebody else has none.
fn check_ordinals(pod: &Pod, serves: &[(ComponentName, u16)], asked: &Asked) -> Result<(), Vec<Mistake>> {
    let Some((name, _)) = serves.iter().find(|(name, _)| asked.class_of(name) == Class::Stateful) else { return Ok(()) };
    let mistake = |value: &str, remedy: String| Mistake::new(format!("the class of {name}"), value, remedy);
    let mut mistakes = Vec::new();
    match owner(pod) {
        Some(("StatefulSet", _)) => {}
        owner => {
            let kind = owner.map_or("a pod without an owner", |(kind, _)| kind);
            let remedy = format!(
                "the boxes of a stateful component are the pods of a StatefulSet, which have ordinals, and this is one of {kind}; use a StatefulSet, or leave {PREFIX}class out"
            );
            mistakes.push(mistake("stateful", remedy));
        }
    }
    let index = pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_INDEX));
    match (asked.partitions, index.and_then(|index| index.parse::<u32>().ok())) {
        (None, _) => {
            let remedy = format!("say in {PREFIX}partitions how many replicas it can ever have; that is fixed when it is first registered");
            mistakes.push(mistake("stateful", remedy));
        }
        (Some(partitions), Some(index)) if index >= partitions => {
            let remedy = format!("with {PREFIX}partitions: {partitions} its ordinals are 0 to {}, and this pod is another", partitions - 1);
            mistakes.push(mistake(&index.to_string(), remedy));
        }
        _ => {}
    }
    if asked.streams_pass {
        mistakes.push(mistake("stateful", format!("leave {PREFIX}streams: pass out: a stream can't be passed to one ordinal")));
    }
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// The port at which an app that says nothing about it listens: the one that is called http or so, else the first.
fn listening(app: &[&Container], warnings: &mut Vec<String>) -> Option<(u16, Protocol)> {
    let tcp = |port: &&ContainerPort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let ports: Vec<&ContainerPort> = app.iter().flat_map(|container| container.ports.iter().flatten()).filter(tcp).collect();
    let named = |prefixes: &[&str]| {
        let fits = |name: &str| prefixes.iter().any(|prefix| name == *prefix || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')));
        ports.iter().find(|port| port.name.as_deref().is_some_and(fits)).and_then(|port| u16::try_from(port.container_port).ok())
    };
    if let Some(port) = named(&["http", "web", "http1"]) {
        return Some((port, Protocol::Http1));
    }
    if let Some(port) = named(&["h2c", "http2"]) {
        return Some((port, Protocol::H2c));
    }
    let first = ports.first().and_then(|port| u16::try_from(port.container_port).ok())?;
    if ports.len() > 1 {
        warnings.push(format!("no port is named http: calls go to {first}, the first. {PREFIX}port says another"));
    }
    Some((first, Protocol::Http1))
}

/// The kind and name of what controls a pod.
fn owner(pod: &Pod) -> Option<(&str, &str)> {
    let owners = pod.metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| (owner.kind.as_str(), owner.name.as_str()))
}

/// What a pod is called when nobody says it: as its workload, because its Service is usually called so too, and because two workloads never share a name. What ends
/// (Jobs), or belongs to nobody, goes by its labels first: its names come and go.
fn name_of(pod: &Pod) -> Result<ComponentName, Mistake> {
    let label = |key: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let by_label = || label("app.kubernetes.io/name").or_else(|| label("app"));
    let candidate = match owner(pod) {
        Some(("ReplicaSet", name)) => {
            let hash = label("pod-template-hash").map(|hash| format!("-{hash}")).unwrap_or_default();
            name.strip_suffix(hash.as_str()).unwrap_or(name)
        }
        Some(("Job", name)) => by_label().unwrap_or_else(|| without_schedule(name)),
        Some((_, name)) => name,
        None => by_label()
            .or(pod.metadata.name.as_deref())
            .or_else(|| pod.metadata.generate_name.as_deref().map(|name| name.trim_end_matches('-')))
            .unwrap_or_default(),
    };
    ComponentName::try_new(candidate)
        .map_err(|error| Mistake::new("the pod's name as a component", candidate, format!("{error}; the annotation {PREFIX}component says another")))
}

/// The name of a CronJob out of the name of one of its Jobs, which ends with when it was due: else every run would be a component of its own.
fn without_schedule(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((rest, due)) if due.len() >= 8 && due.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(metadata: Value, ports: Value, asked: &Asked) -> Result<Identity, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [{"name": "app", "ports": ports}]}})).unwrap();
        find(&pod, pod.spec.as_ref().unwrap(), asked).map_err(|mistakes| mistakes[0].to_string())
    }

    fn name(metadata: Value) -> Result<String, String> {
        found(metadata, json!([]), &Asked::default()).map(|identity| identity.name.to_string())
    }

    fn owned(kind: &str, name: &str, labels: Value) -> Value {
        json!({"labels": labels, "ownerReferences": [{"apiVersion": "v1", "uid": "1", "kind": kind, "name": name, "controller": true}]})
    }

    #[test]
    fn a_pod_is_called_as_its_workload() {
        assert_eq!(name(owned("ReplicaSet", "cart-5d8f", json!({"pod-template-hash": "5d8f", "app": "other"}))).unwrap(), "cart");
        assert_eq!(name(owned("ReplicaSet", "cart-5d8f", json!({}))).unwrap(), "cart-5d8f");
        assert_eq!(name(owned("StatefulSet", "db", json!({"app": "other"}))).unwrap(), "db");
        assert_eq!(name(owned("Job", "report-29384756", json!({}))).unwrap(), "report");
        assert_eq!(name(owned("Job", "report-29384756", json!({"app": "reports"}))).unwrap(), "reports");
        assert_eq!(name(owned("Job", "migrate-v2", json!({}))).unwrap(), "migrate-v2");
        assert_eq!(name(json!({"name": "shell", "labels": {"app.kubernetes.io/name": "tool", "app": "x"}})).unwrap(), "tool");
        assert_eq!(name(json!({"name": "shell"})).unwrap(), "shell");
        assert_eq!(name(json!({"generateName": "shell-"})).unwrap(), "shell");
    }

    #[test]
    fn a_name_that_no_component_can_have_has_to_be_said() {
        for metadata in [owned("StatefulSet", "db.v1", json!({})), json!({}), json!({"labels": {"app": "Cart"}})] {
            let error = name(metadata).unwrap_err();
            assert!(error.contains("bluebox.dev/component"), "{error}");
        }
    }

    #[test]
    fn the_app_listens_at_its_http_port() {
        let at = |ports: Value| {
            let identity = found(json!({"name": "cart"}), ports, &Asked::default()).unwrap();
            (identity.serves.first().map(|(_, port)| *port), identity.protocol, identity.warnings.len())
        };
        assert_eq!(at(json!([{"containerPort": 8080}])), (Some(8080), Protocol::Http1, 0));
        assert_eq!(at(json!([{"containerPort": 9090, "name": "metrics"}, {"containerPort": 8080, "name": "http"}])), (Some(8080), Protocol::Http1, 0));
        assert_eq!(at(json!([{"containerPort": 9090, "name": "metrics"}, {"containerPort": 8080, "name": "http-api"}])), (Some(8080), Protocol::Http1, 0));
        assert_eq!(at(json!([{"containerPort": 8080, "name": "h2c"}])), (Some(8080), Protocol::H2c, 0));
        assert_eq!(at(json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8080}])), (Some(8080), Protocol::Http1, 0));
        assert_eq!(at(json!([{"containerPort": 1}, {"containerPort": 2}])), (Some(1), Protocol::Http1, 1));
        assert_eq!(at(json!([])), (None, Protocol::Http1, 1));
        assert_eq!(at(json!([{"containerPort": 99999}])), (None, Protocol::Http1, 1));
    }

    #[test]
    fn a_job_serves_nothing_unless_it_says_so() {
        let job = || owned("Job", "report", json!({}));
        let port = json!([{"containerPort": 8080}]);
        let quiet = found(job(), port.clone(), &Asked::default()).unwrap();
        assert!(quiet.serves.is_empty() && quiet.warnings.is_empty());
        let asked = Asked { port: Some(8080), ..Asked::default() };
        assert_eq!(found(job(), port, &asked).unwrap().serves.len(), 1);
    }

    #[test]
    fn a_stateful_component_is_a_stateful_sets() {
        let asked = |partitions| Asked { class: Class::Stateful, partitions, ..Asked::default() };
        let pod = |kind: &str, index: &str| found(owned(kind, "db", json!({POD_INDEX: index})), json!([{"containerPort": 8080}]), &asked(Some(3)));
        assert_eq!(pod("StatefulSet", "2").unwrap().serves.len(), 1);
        let error = pod("StatefulSet", "3").unwrap_err();
        assert!(error.contains("bluebox.dev/partitions: 3") && error.contains("0 to 2"), "{error}");
        for kind in ["ReplicaSet", "DaemonSet"] {
            let error = pod(kind, "0").unwrap_err();
            assert!(error.contains("pods of a StatefulSet") && error.contains(kind), "{error}");
        }
        let error = found(owned("StatefulSet", "db", json!({})), json!([{"containerPort": 8080}]), &asked(None)).unwrap_err();
        assert!(error.contains("bluebox.dev/partitions"), "{error}");
        let passing = Asked { streams_pass: true, ..asked(Some(3)) };
        let error = found(owned("StatefulSet", "db", json!({})), json!([{"containerPort": 8080}]), &passing).unwrap_err();
        assert!(error.contains("bluebox.dev/streams"), "{error}");
        // What serves nothing has no ordinal.
        found(owned("ReplicaSet", "db", json!({})), json!([]), &asked(None)).unwrap();
    }

    #[test]
    fn the_proxys_ports_are_its_own() {
        let asked = Asked { port: Some(4140), ..Asked::default() };
        let error = found(json!({"name": "cart"}), json!([]), &asked).unwrap_err();
        assert!(error.contains("4140"), "{error}");
    }
}

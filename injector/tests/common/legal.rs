//! What the API server asks of a pod, as far as the injector can break it.

use std::collections::HashSet;

use bluebox_injector::quantity::Quantity;
use serde_json::Value;

/// What is wrong with a pod; nothing, if the API server would take it.
pub fn faults(pod: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let volumes: Vec<_> = list(&pod["spec"]["volumes"]).map(|volume| text(&volume["name"])).collect();
    faults.extend(twice(volumes.iter().copied()).map(|name| format!("two volumes {name:?}")));
    let containers = || ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| list(&pod["spec"][kind]).map(move |c| (kind, c)));
    faults.extend(twice(containers().map(|(_, container)| text(&container["name"]))).map(|name| format!("two containers {name:?}")));
    if list(&pod["spec"]["containers"]).next().is_none() {
        faults.push("no container".to_owned());
    }
    for (kind, container) in containers() {
        let mut fault = |what: String| faults.push(format!("{kind} {}: {what}", text(&container["name"])));
        let sidecar = container["restartPolicy"] == "Always";
        if kind == "initContainers" && !sidecar {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if !container[field].is_null() {
                    fault(format!("{field} of what ends"));
                }
            }
        }
        if container["restartPolicy"].is_null() && !container["restartPolicyRules"].is_null() {
            fault("rules without a policy".to_owned());
        }
        for mount in list(&container["volumeMounts"]) {
            if !volumes.contains(&text(&mount["name"])) {
                fault(format!("a mount of {}, which is no volume", mount["name"]));
            }
        }
        for path in twice(list(&container["volumeMounts"]).map(|mount| text(&mount["mountPath"]))) {
            fault(format!("two mounts at {path:?}"));
        }
        for port in twice(list(&container["ports"]).map(|port| text(&port["name"])).filter(|name| !name.is_empty())) {
            fault(format!("two ports {port:?}"));
        }
        for port in list(&container["ports"]).filter(|port| port["containerPort"].as_i64().is_none_or(|port| !(1..=65535).contains(&port))) {
            fault(format!("no port: {port}"));
        }
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|field| (field.to_owned(), &container[field], 1));
        let hooks = ["preStop", "postStart"].map(|field| (field.to_owned(), &container["lifecycle"][field], 1));
        for (field, handler, handlers) in probes.into_iter().chain(hooks) {
            let count = ["httpGet", "tcpSocket", "grpc", "exec", "sleep"].iter().filter(|kind| !handler[**kind].is_null()).count();
            if !handler.is_null() && count != handlers {
                fault(format!("{field} has {count} handlers"));
            }
        }
        for resource in ["cpu", "memory"] {
            let amount = |kind: &str| container["resources"][kind][resource].as_str().and_then(|amount| Quantity::try_new(amount).ok());
            if let (Some(request), Some(limit)) = (amount("requests"), amount("limits"))
                && request > limit
            {
                fault(format!("asks for more {resource} than it may have"));
            }
        }
        let own = &container["securityContext"];
        if own["runAsNonRoot"] == true && own["runAsUser"] == 0 {
            fault("root that is not root".to_owned());
        }
        if own["privileged"] == true && own["allowPrivilegeEscalation"] == false {
            fault("privileged without privileges".to_owned());
        }
    }
    faults
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn twice<'t>(texts: impl Iterator<Item = &'t str>) -> impl Iterator<Item = &'t str> {
    let mut seen = HashSet::new();
    texts.filter(move |text| !seen.insert(*text))
}

//! Other systems that catch a pod's connections: service meshes. Two of them in one pod would catch each other's.
//!
//! Such a sidecar is known by its containers once it is there (the API server asks again when another webhook has added some), and before by the label or annotation that asks for it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::annotations::PREFIX;
use crate::mistake::Mistake;
use crate::selection::Place;

/// A mesh, and how it is known.
struct Mesh {
    name: &'static str,
    /// The names of its containers.
    containers: &'static [&'static str],
    /// A part of the names of their images, where their own are too common.
    image: Option<&'static str>,
    /// Labels or annotations of a pod, or labels of its namespace, and the values that ask for it; no value: any.
    asks: &'static [(&'static str, &'static [&'static str])],
}

const MESHES: [Mesh; 6] = [
    Mesh {
        name: "Istio",
        containers: &["istio-proxy", "istio-init", "istio-validation"],
        image: None,
        asks: &[("sidecar.istio.io/inject", &["true"]), ("istio-injection", &["enabled"]), ("istio.io/rev", &[]), ("istio.io/dataplane-mode", &["ambient"])],
    },
    Mesh {
        name: "Linkerd",
        containers: &["linkerd-proxy", "linkerd-init", "linkerd-network-validator"],
        image: None,
        asks: &[("linkerd.io/inject", &["enabled", "ingress"])],
    },
    Mesh {
        name: "Consul",
        containers: &["consul-dataplane", "consul-connect-inject-init"],
        image: None,
        asks: &[("consul.hashicorp.com/connect-inject", &["true"])],
    },
    Mesh { name: "Kuma", containers: &["kuma-sidecar", "kuma-init"], image: None, asks: &[("kuma.io/sidecar-injection", &["enabled", "true"])] },
    Mesh { name: "AWS App Mesh", containers: &["proxyinit"], image: Some("appmesh-envoy"), asks: &[("appmesh.k8s.aws/sidecarInjectorWebhook", &["enabled"])] },
    Mesh { name: "Open Service Mesh", containers: &["osm-init"], image: None, asks: &[("openservicemesh.io/sidecar-injection", &["enabled", "yes", "true"])] },
];

/// Labels and annotations of a pod that keep Istio's sidecar out of it, whatever its namespace says.
const LEFT_OUT: [(&str, &[&str]); 4] = [
    ("sidecar.istio.io/inject", &["false"]),
    ("istio.io/dataplane-mode", &["none"]),
    ("kuma.io/sidecar-injection", &["disabled", "false"]),
    ("appmesh.k8s.aws/sidecarInjectorWebhook", &["disabled"]),
];

/// The meshes whose sidecar is in a pod, or will be: a mistake for each.
pub fn check(pod: &Pod, spec: &PodSpec, place: &Place) -> Vec<Mistake> {
    let said = [pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref()];
    let left_out = |asks: &[(&str, &[&str])]| {
        let out = LEFT_OUT.iter().filter(|(key, _)| asks.iter().any(|(asked, _)| asked == key));
        said.iter().flatten().any(|all| out.clone().any(|(key, values)| says(all, key, values)))
    };
    let remedy = "it catches the pod's connections too, and each of the two would catch the other's";
    let found = MESHES.iter().filter_map(|Mesh { name, containers, image, asks }| {
        let is_its = |container: &&Container| {
            containers.contains(&container.name.as_str()) || image.is_some_and(|part| container.image.as_ref().is_some_and(|image| image.contains(part)))
        };
        let container = spec.init_containers.iter().flatten().chain(&spec.containers).find(is_its).map(|container| format!("container {}", container.name));
        let asked = || {
            let on_pod = said.iter().flatten().find_map(|all| asks.iter().find(|(key, values)| says(all, key, values)));
            let on_namespace = || asks.iter().find(|(key, values)| says(&place.labels, key, values)).filter(|_| !left_out(asks));
            on_pod.map(|(key, _)| (*key).to_owned()).or_else(|| on_namespace().map(|(key, _)| format!("{key} on the namespace")))
        };
        let seen = container.or_else(asked)?;
        Some(Mistake::new(
            format!("the mesh {name}"),
            &seen,
            format!("{remedy}: leave the pod out of the mesh, or let its app send its calls to Bluebox itself ({PREFIX}redirect: env)"),
        ))
    });
    found.collect()
}

fn says(all: &BTreeMap<String, String>, key: &str, values: &[&str]) -> bool {
    all.get(key).is_some_and(|value| values.is_empty() || values.contains(&value.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(metadata: Value, spec: Value, namespace: &[(&str, &str)]) -> Vec<String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        let labels = namespace.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        check(&pod, pod.spec.as_ref().unwrap(), &Place { namespace: "shop".to_owned(), labels }).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_mesh_is_known_by_its_containers() {
        for (name, mesh) in [
            ("istio-proxy", "Istio"),
            ("linkerd-proxy", "Linkerd"),
            ("consul-dataplane", "Consul"),
            ("kuma-sidecar", "Kuma"),
            ("proxyinit", "AWS App Mesh"),
            ("osm-init", "Open Service Mesh"),
        ] {
            for spec in [json!({"containers": [{"name": "app"}, {"name": name}]}), json!({"initContainers": [{"name": name}], "containers": [{"name": "app"}]})]
            {
                let text = found(json!({}), spec, &[]).join("\n");
                assert!(text.contains(mesh) && text.contains(name) && text.contains("bluebox.dev/redirect: env"), "{name}: {text}");
            }
        }
        let envoy = |image: &str| found(json!({}), json!({"containers": [{"name": "app"}, {"name": "envoy", "image": image}]}), &[]).len();
        assert_eq!((envoy("public.ecr.aws/appmesh/aws-appmesh-envoy:v1"), envoy("envoyproxy/envoy:v1")), (1, 0));
        assert!(found(json!({}), json!({"containers": [{"name": "app"}, {"name": "daprd"}]}), &[]).is_empty());
    }

    #[test]
    fn a_mesh_is_known_by_what_asks_for_it() {
        let spec = || json!({"containers": [{"name": "app"}]});
        let on_pod = |kind: &str, key: &str, value: &str| found(json!({kind: {key: value}}), spec(), &[]).len();
        assert_eq!(on_pod("labels", "sidecar.istio.io/inject", "true"), 1);
        assert_eq!(on_pod("annotations", "sidecar.istio.io/inject", "false"), 0);
        assert_eq!(on_pod("annotations", "linkerd.io/inject", "enabled"), 1);
        assert_eq!(on_pod("annotations", "linkerd.io/inject", "disabled"), 0);
        assert_eq!(on_pod("annotations", "consul.hashicorp.com/connect-inject", "true"), 1);
        let of_namespace = |key: &str, value: &str| found(json!({}), spec(), &[(key, value)]).len();
        assert_eq!(of_namespace("istio-injection", "enabled"), 1);
        assert_eq!(of_namespace("istio-injection", "disabled"), 0);
        assert_eq!(of_namespace("istio.io/rev", "1-24"), 1);
        assert_eq!(of_namespace("istio.io/dataplane-mode", "ambient"), 1);
        assert_eq!(of_namespace("kuma.io/sidecar-injection", "enabled"), 1);
        // A pod can be left out of what its namespace asks for.
        assert!(found(json!({"labels": {"sidecar.istio.io/inject": "false"}}), spec(), &[("istio-injection", "enabled")]).is_empty());
        assert!(found(json!({"annotations": {"kuma.io/sidecar-injection": "disabled"}}), spec(), &[("kuma.io/sidecar-injection", "enabled")]).is_empty());
    }
}

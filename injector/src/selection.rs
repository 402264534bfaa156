//! Who gets a proxy. One list of exemptions, from which the webhook's own judgement, the API server's selectors and the policy that catches what the webhook missed
//! are made, so that they can't say different things.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::mistake::Mistake;
use crate::settings::Settings;

/// The label of namespaces and pods: [`ENABLED`] or [`DISABLED`].
pub const INJECTION: &str = "bluebox.dev/injection";
/// The value that asks for a proxy.
pub const ENABLED: &str = "enabled";
/// The value that asks for none: on a pod only.
pub const DISABLED: &str = "disabled";
/// What names a namespace in selectors; Kubernetes itself keeps it right.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// What pods of the system run in.
pub const KUBE_SYSTEM: &str = "kube-system";

/// A reason why a pod gets no proxy, whatever its labels ask for.
#[derive(Debug, Clone, Copy)]
pub struct Exemption {
    /// Its name: a DNS label.
    pub name: &'static str,
    /// The reason, to be read after "the pod gets no proxy: ".
    pub reason: &'static str,
    /// Whether a pod has it.
    applies: fn(&Pod) -> bool,
    /// The same for the API server: an expression in CEL over `object`, true when the pod has it.
    pub cel: &'static str,
}

/// All of them that lie in the pod. That namespaces are exempt, and that a pod can opt out, is said in selectors: see [`Why`].
pub const EXEMPTIONS: [Exemption; 3] = [
    Exemption {
        name: "host-network",
        reason: "it uses the network of its node",
        applies: |pod| pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false),
        cel: "has(object.spec.hostNetwork) && object.spec.hostNetwork",
    },
    Exemption {
        name: "windows",
        reason: "it is for Windows",
        applies: |pod| {
            let Some(spec) = &pod.spec else { return false };
            let asks = spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
            spec.os.as_ref().is_some_and(|os| os.name == "windows") || asks.is_some_and(|os| os == "windows")
        },
        cel: "(has(object.spec.os) && object.spec.os.name == 'windows') || \
              (has(object.spec.nodeSelector) && 'kubernetes.io/os' in object.spec.nodeSelector && object.spec.nodeSelector['kubernetes.io/os'] == 'windows')",
    },
    Exemption {
        name: "mirror",
        reason: "it mirrors a static pod of a node, which the API server can't change",
        applies: |pod| pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror")),
        cel: "has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations",
    },
];

/// Where a pod is created.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Why a pod gets no proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing asks for one.
    NotAsked,
    /// Its label says so.
    OptedOut,
    /// It is in the system's or the installation's own namespace.
    Namespace,
    /// The name of an [`Exemption`], and its reason.
    Exempt(&'static str, &'static str),
}

impl Why {
    /// A short name, for counts.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::OptedOut => "opted-out",
            Self::Namespace => "namespace",
            Self::Exempt(name, _) => name,
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAsked => write!(f, "neither it nor its namespace has the label {INJECTION}: {ENABLED}"),
            Self::OptedOut => write!(f, "its label {INJECTION}: {DISABLED} says so"),
            Self::Namespace => f.write_str("its namespace is the system's or Bluebox's own"),
            Self::Exempt(_, reason) => f.write_str(reason),
        }
    }
}

/// Decides who gets a proxy: `Ok(None)` does.
///
/// # Errors
/// When the pod's label has a value that means nothing.
pub fn exempt(pod: &Pod, place: &Place, settings: &Settings) -> Result<Option<Why>, Mistake> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(INJECTION)).map(String::as_str);
    let of_namespace = place.labels.get(INJECTION).is_some_and(|value| value == ENABLED);
    if place.namespace == KUBE_SYSTEM || place.namespace == settings.namespace() {
        return Ok(Some(Why::Namespace));
    }
    if label == Some(DISABLED) {
        return Ok(Some(Why::OptedOut));
    }
    let asked = of_namespace || label == Some(ENABLED);
    if !asked && label.is_none() {
        return Ok(Some(Why::NotAsked));
    }
    if let Some(Exemption { name, reason, .. }) = EXEMPTIONS.iter().find(|exemption| (exemption.applies)(pod)) {
        return Ok(Some(Why::Exempt(name, reason)));
    }
    match label {
        None | Some(ENABLED) => Ok(None),
        Some(other) => Err(Mistake::new(format!("label {INJECTION}"), other, format!("write {ENABLED} or {DISABLED}, or leave it out"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge(namespace: &str, namespace_label: Option<&str>, pod: serde_json::Value) -> Result<Option<&'static str>, String> {
        let labels = namespace_label.map(|value| (INJECTION.to_owned(), value.to_owned())).into_iter().collect();
        let place = Place { namespace: namespace.to_owned(), labels };
        let settings = Settings::try_new("bluebox:1").unwrap();
        exempt(&serde_json::from_value(pod).unwrap(), &place, &settings).map(|why| why.map(Why::name)).map_err(|mistake| mistake.to_string())
    }

    #[test]
    fn labels_ask() {
        let bare = json!({"spec": {"containers": []}});
        let labelled = |value: &str| json!({"metadata": {"labels": {INJECTION: value}}, "spec": {"containers": []}});
        assert_eq!(judge("shop", None, bare.clone()), Ok(Some("not-asked")));
        assert_eq!(judge("shop", Some("yes"), bare.clone()), Ok(Some("not-asked")));
        assert_eq!(judge("shop", Some(ENABLED), bare.clone()), Ok(None));
        assert_eq!(judge("shop", Some(ENABLED), labelled(DISABLED)), Ok(Some("opted-out")));
        assert_eq!(judge("shop", None, labelled(ENABLED)), Ok(None));
        assert_eq!(judge("kube-system", Some(ENABLED), labelled(ENABLED)), Ok(Some("namespace")));
        assert_eq!(judge("bluebox", Some(ENABLED), bare), Ok(Some("namespace")));
        let wrong = judge("shop", Some(ENABLED), labelled("true")).unwrap_err();
        assert!(wrong.contains("bluebox.dev/injection") && wrong.contains("\"true\"") && wrong.contains("enabled or disabled"), "{wrong}");
    }

    #[test]
    fn some_pods_are_exempt() {
        for (spec, metadata, name) in [
            (json!({"containers": [], "hostNetwork": true}), json!({}), "host-network"),
            (json!({"containers": [], "os": {"name": "windows"}}), json!({}), "windows"),
            (json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}}), json!({}), "windows"),
            (json!({"containers": []}), json!({"annotations": {"kubernetes.io/config.mirror": "x"}}), "mirror"),
        ] {
            assert_eq!(judge("shop", Some(ENABLED), json!({"spec": spec, "metadata": metadata})), Ok(Some(name)));
        }
        assert_eq!(judge("shop", Some(ENABLED), json!({"spec": {"containers": [], "os": {"name": "linux"}, "hostNetwork": false}})), Ok(None));
    }
}

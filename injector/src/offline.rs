//! The same by hand: manifests go in, manifests whose pods have the proxy come out. For who can't or won't run a webhook, and to see what it would do.

use serde_json::{Value, json};

use crate::annotations::Limits;
use crate::decide::{Decision, decide};
use crate::mistake::denial;
use crate::selection::{ENABLED, INJECTION, Place};
use crate::settings::Settings;

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// The manifests, in YAML; comments are lost.
    pub yaml: String,
    /// What was done to each workload, and what whoever made it should know.
    pub notes: Vec<String>,
}

/// Why nothing came out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfflineError {
    /// It is no YAML.
    #[error("it can't be read as YAML: {0}")]
    Yaml(String),
    /// Some workload can't have the proxy.
    #[error("{workload}: {denial}")]
    Denied {
        /// Kind and name.
        workload: String,
        /// All that stands against it.
        denial: String,
    },
}

/// Puts the proxy into all pods of some manifests. What has no pods stays as it is. Labels of namespaces aren't known here: every pod is taken as asking for a proxy,
/// but for those that are exempt.
///
/// # Errors
/// When it is no YAML, or some workload can't have the proxy.
pub fn inject_all(text: &str, settings: &Settings, limits: &dyn Limits) -> Result<Output, OfflineError> {
    // As Kubernetes reads YAML: 0644 is octal.
    let options = serde_saphyr::options! { with_snippet: false, legacy_octal_numbers: true };
    let mut documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| OfflineError::Yaml(error.to_string()))?;
    let mut output = Output::default();
    documents.retain(|document| !document.is_null());
    for (number, document) in documents.iter_mut().enumerate() {
        let workloads = match document.get("kind").and_then(Value::as_str) {
            Some("List") => document.get_mut("items").and_then(Value::as_array_mut).map(|items| items.iter_mut().collect()).unwrap_or_default(),
            _ => vec![&mut *document],
        };
        for workload in workloads {
            inject_one(workload, settings, limits, &mut output.notes)?;
        }
        if number > 0 {
            output.yaml.push_str("---\n");
        }
        output.yaml.push_str(&serde_saphyr::to_string(document).map_err(|error| OfflineError::Yaml(error.to_string()))?);
        if !output.yaml.ends_with('\n') {
            output.yaml.push('\n');
        }
    }
    Ok(output)
}

/// Where a workload of a kind has its pods' template, and the kind of what makes its pods.
fn template(kind: &str) -> Option<(&'static str, &str)> {
    match kind {
        "Pod" => Some(("", "")),
        "CronJob" => Some(("/spec/jobTemplate/spec/template", "Job")),
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" | "Job" => Some(("/spec/template", kind)),
        _ => None,
    }
}

fn inject_one(workload: &mut Value, settings: &Settings, limits: &dyn Limits, notes: &mut Vec<String>) -> Result<(), OfflineError> {
    let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text(workload, "/kind").unwrap_or_default();
    let name = text(workload, "/metadata/name").unwrap_or_default();
    let place = Place { namespace: text(workload, "/metadata/namespace").unwrap_or_default(), labels: [(INJECTION.to_owned(), ENABLED.to_owned())].into() };
    let Some((pointer, owner)) = template(&kind) else { return Ok(()) };
    let Some(pod) = workload.pointer_mut(pointer) else { return Ok(()) };
    let label = format!("{kind} {name}");
    let mut judged = pod.clone();
    if !owner.is_empty() && judged.is_object() {
        // In a cluster, the pod knows who made it.
        let owner = json!([{"apiVersion": "v1", "kind": owner, "name": name, "uid": "", "controller": true}]);
        if !judged["metadata"].is_object() {
            judged["metadata"] = json!({});
        }
        judged["metadata"]["ownerReferences"] = owner;
    }
    match decide(&judged, &place, settings, limits) {
        Decision::Exempt(why) => notes.push(format!("{label}: gets no proxy: {why}")),
        Decision::Denied(mistakes) => return Err(OfflineError::Denied { workload: label, denial: denial(&mistakes) }),
        Decision::Injected(injected) => {
            notes.push(format!("{label}: gets a proxy: it is {} and serves {:?}", injected.report.name, injected.report.serves));
            notes.extend(injected.warnings.iter().map(|warning| format!("{label}: warning: {warning}")));
            *pod = injected.pod;
            if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut).filter(|_| !owner.is_empty()) {
                metadata.remove("ownerReferences");
            }
        }
    }
    Ok(())
}

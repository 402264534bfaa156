//! App and proxy live and die together: how a pod is told so.
//!
//! Where Kubernetes has *restart rules* (1.36), the exit of any half restarts all containers of the pod in place. Every loss of a half becomes such an exit: an init container
//! puts a token each time that they start, and a proxy that finds none, or whose app has gone, ends. Where there are no such rules, or a pod doesn't want them, the app's liveness
//! goes through the proxy ([`crate::liveness`]).

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};

use crate::annotations::{Asked, PREFIX, RestartChoice};
use crate::settings::Settings;

/// How the halves of a pod are restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Together, by restart rules.
    Rules,
    /// Together, by the app's liveness probes: where the cluster has no rules, or the pod wants none.
    Probes,
    /// Each alone.
    Separate,
}

impl Restart {
    /// How it is in this pod.
    ///
    /// Pods that end (Jobs) have no rules: their own `backoffLimit` and `podFailurePolicy` would mean something else.
    pub fn of(spec: &PodSpec, asked: &Asked, settings: &Settings) -> Self {
        let lives = spec.restart_policy.as_deref().is_none_or(|policy| policy == "Always");
        match asked.restart {
            _ if !lives => Self::Separate,
            RestartChoice::Separate => Self::Separate,
            RestartChoice::Together if settings.restart_rules() => Self::Rules,
            RestartChoice::Together | RestartChoice::Probes => Self::Probes,
        }
    }

    /// Whether app and proxy are restarted together.
    pub fn together(self) -> bool {
        self != Self::Separate
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Probes => "probes",
            Self::Separate => "separate",
        }
    }
}

/// The rules: whatever a half ends with, all containers are started again. Two, because `NotIn [0]` alone leaves out an app that ends by itself.
pub fn rules() -> Value {
    let rule = |operator: &str| json!({"action": "RestartAllContainers", "exitCodes": {"operator": operator, "values": [0]}});
    json!([rule("In"), rule("NotIn")])
}

/// Gives the rules to a container of the app.
pub fn add_rules(container: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let own = |key: &str, ours: &Value| container.get(key).is_some_and(|value| !value.is_null() && value != ours);
    let (always, rules) = (json!("Always"), rules());
    if own("restartPolicy", &always) || own("restartPolicyRules", &rules) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        warnings.push(format!(
            "container {name} says itself how it is restarted; it is left so, and its end does not restart the proxy. {PREFIX}restart: separate takes this warning away"
        ));
        return;
    }
    container.insert("restartPolicy".to_owned(), always);
    container.insert("restartPolicyRules".to_owned(), rules);
}

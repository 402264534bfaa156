//! Finds out whether the cluster has restart rules: whether the API server accepts a pod with them, and every node that pods can come to declares that it knows them.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::restart;

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(30);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What nodes declare that know the action. A pod with it that no node declares waits for ever.
const FEATURE: &str = "RestartAllContainersOnContainerExits";

/// Asks again and again, and says what was found: `None` until it is known.
pub async fn watch(client: Client, namespace: String, found: watch::Sender<Option<bool>>, metrics: Metrics) {
    let mut troubled = false;
    loop {
        let asked = tokio::time::timeout(PATIENCE, ask(&client, &namespace)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        match asked {
            Ok(answer) => {
                troubled = false;
                let usable = answer.is_ok();
                metrics.restart_rules(usable);
                if found.send_replace(Some(usable)) != Some(usable) {
                    match answer {
                        Ok(()) => info!("the cluster has restart rules: app and proxy of new pods are restarted together"),
                        Err(why) => {
                            warn!(why, "the cluster has no restart rules: app and proxy of new pods are restarted together by the app's liveness probes")
                        }
                    }
                }
            }
            Err(problem) => {
                if !std::mem::replace(&mut troubled, true) {
                    warn!(problem, "it can't be found out whether the cluster has restart rules; what was known of it is taken");
                }
                // Not knowing is no reason to inject nothing.
                found.send_if_modified(|known| known.is_none() && known.replace(false).is_none());
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks once: `Ok(Err(why))` if it has none.
///
/// # Errors
/// When it can't be found out, and why.
pub async fn ask(client: &Client, namespace: &str) -> Result<Result<(), String>, String> {
    if let Err(why) = accepted(client, namespace).await? {
        return Ok(Err(why));
    }
    // From the memory of the API server: a moment old is new enough.
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default().match_any()).await.map_err(|error| format!("the nodes can't be listed: {error}"))?;
    Ok(declared(&nodes.items))
}

async fn accepted(client: &Client, namespace: &str) -> Result<Result<(), String>, String> {
    let pod = json!({
        "metadata": {"generateName": "bluebox-dry-run-"},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 64140, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app", "image": "bluebox", "restartPolicy": "Always", "restartPolicyRules": restart::rules(),
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).map_err(|error| error.to_string())?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await {
        Ok(made) => {
            let kept =
                made.spec.iter().flat_map(|spec| &spec.containers).any(|container| container.restart_policy_rules.as_ref().is_some_and(|r| r.len() == 2));
            Ok(if kept { Ok(()) } else { Err("the API server doesn't know them".to_owned()) })
        }
        // It knows rules, but not this action.
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(Err(format!("the API server refuses them: {}", status.message))),
        Err(error) => Err(format!("the API server was asked for a pod that is not made (dry run): {error}")),
    }
}

/// Whether pods with the action can come to all nodes that take pods. With no node at all nothing is declared.
fn declared(nodes: &[Node]) -> Result<(), String> {
    let takes_pods = |node: &&Node| {
        let windows = node.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os")).is_some_and(|os| os == "windows");
        !windows && !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
    };
    let declares = |node: &Node| node.status.as_ref().and_then(|status| status.declared_features.as_ref()).is_some_and(|all| all.iter().any(|f| f == FEATURE));
    let mut taking = nodes.iter().filter(takes_pods).peekable();
    if taking.peek().is_none() {
        return Err("there is no node that takes pods".to_owned());
    }
    match taking.find(|node| !declares(node)) {
        Some(node) => Err(format!("the node {} doesn't declare {FEATURE}", node.metadata.name.as_deref().unwrap_or_default())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_that_takes_pods_has_to_know_them() {
        let node = |name: &str, spec: serde_json::Value, features: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec, "status": {"declaredFeatures": features}})).unwrap()
        };
        let knows = node("a", json!({}), json!(["Other", FEATURE]));
        let old = node("b", json!({}), json!(null));
        let cordoned = node("c", json!({"unschedulable": true}), json!([]));
        let mut windows = node("d", json!({}), json!([]));
        windows.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
        assert_eq!(declared(&[knows.clone(), cordoned.clone(), windows.clone()]), Ok(()));
        assert!(declared(&[knows, old]).unwrap_err().contains("node b"));
        assert!(declared(&[cordoned, windows]).unwrap_err().contains("no node"));
        assert!(declared(&[]).is_err());
    }
}

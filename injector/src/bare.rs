//! Pods that should have a proxy and run without one: they are older than the label that asks for it. Nothing changes a pod that runs, so it is said: by an event for each, and by a
//! metric.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::selection::{ENABLED, INJECTION, Place, exempt};
use crate::settings::{PROXY, Settings};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(30);
/// How long one question to the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pods that are asked for at once: what is held of them in memory.
const PAGE: u32 = 200;
/// New events of one look, at most: more would push others' out.
const MOST_EVENTS: usize = 50;
/// The reason of the events.
const REASON: &str = "WithoutBluebox";

/// Whether a pod should have a proxy, lives, and has none.
pub fn is_bare(pod: &Pod, place: &Place, settings: &Settings) -> bool {
    // A label that means nothing asks for nothing that could be missing.
    let asks = matches!(exempt(pod, place, settings), Ok(None));
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let goes = pod.metadata.deletion_timestamp.is_some();
    let has = pod.spec.as_ref().is_some_and(|spec| spec.init_containers.iter().flatten().any(|container| container.name == PROXY));
    asks && !ended && !goes && !has
}

/// Looks again and again, counts, and tells of those it has not told of.
pub async fn watch(client: Client, settings: Settings, metrics: Metrics) {
    let (mut told, mut troubled) = (HashSet::new(), false);
    loop {
        match look(&client, &settings).await {
            Ok(bare) => {
                troubled = false;
                let mut counts = BTreeMap::new();
                for pod in &bare {
                    *counts.entry(pod.namespace().unwrap_or_default()).or_insert(0) += 1;
                }
                metrics.bare(&counts);
                tell(&client, &bare, &mut told).await;
            }
            Err(problem) => {
                if !std::mem::replace(&mut troubled, true) {
                    warn!(problem, "it can't be found out which pods run without a proxy because they are older than the label");
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The bare pods of the cluster, without what is not needed of them.
async fn look(client: &Client, settings: &Settings) -> Result<Vec<Pod>, String> {
    let labelled = ListParams::default().labels(&format!("{INJECTION}={ENABLED}"));
    let namespaces: Vec<Namespace> = all(&Api::all(client.clone()), &labelled).await.map_err(|error| format!("the namespaces can't be listed: {error}"))?;
    let mut bare = Vec::new();
    let places = namespaces.into_iter().map(|namespace| Place { namespace: namespace.name_any(), labels: namespace.metadata.labels.unwrap_or_default() });
    let places: BTreeMap<_, _> = places.map(|place| (place.namespace.clone(), place)).collect();
    for place in places.values() {
        bare.extend(bare_pods(&Api::namespaced(client.clone(), &place.namespace), &ListParams::default(), |_| Some(place), settings).await?);
    }
    // And those that ask by a label of their own.
    let elsewhere = Place::default();
    let place = |pod: &Pod| (!pod.namespace().is_some_and(|namespace| places.contains_key(&namespace))).then_some(&elsewhere);
    bare.extend(bare_pods(&Api::all(client.clone()), &labelled, place, settings).await?);
    Ok(bare)
}

async fn bare_pods<'p>(pods: &Api<Pod>, which: &ListParams, place: impl Fn(&Pod) -> Option<&'p Place>, settings: &Settings) -> Result<Vec<Pod>, String> {
    let is_one = |pod: &Pod| {
        place(pod).is_some_and(|known| {
            // Of a pod elsewhere only the namespace's name counts.
            let place = Place { namespace: pod.namespace().unwrap_or_default(), labels: known.labels.clone() };
            is_bare(pod, &place, settings)
        })
    };
    let mut bare = all_of(pods, which, is_one).await.map_err(|error| format!("pods can't be listed: {error}"))?;
    for pod in &mut bare {
        (pod.spec, pod.status) = (None, None);
    }
    Ok(bare)
}

async fn all<T>(api: &Api<T>, which: &ListParams) -> Result<Vec<T>, String>
where
    T: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    all_of(api, which, |_| true).await
}

/// All that a filter lets through, of which there is never more than a page in memory besides.
async fn all_of<T>(api: &Api<T>, which: &ListParams, keep: impl Fn(&T) -> bool) -> Result<Vec<T>, String>
where
    T: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let (mut kept, mut which) = (Vec::new(), which.clone().limit(PAGE));
    loop {
        let asked = tokio::time::timeout(PATIENCE, api.list(&which)).await.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
        let page = asked.map_err(|error| error.to_string())?;
        kept.extend(page.items.into_iter().filter(&keep));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => which.continue_token = Some(token),
            None => return Ok(kept),
        }
    }
}

/// Tells of each pod once. An event has a name that follows from its pod: of several injectors that tell, the first one does.
async fn tell(client: &Client, bare: &[Pod], told: &mut HashSet<String>) {
    let uids: HashSet<_> = bare.iter().filter_map(Pod::uid).collect();
    told.retain(|uid| uids.contains(uid));
    let new: Vec<_> = bare.iter().filter(|pod| pod.uid().is_some_and(|uid| !told.contains(&uid))).take(MOST_EVENTS).collect();
    for pod in new {
        let (Some(namespace), Some(uid)) = (pod.namespace(), pod.uid()) else { continue };
        let Ok(event) = event(pod, &namespace, &uid) else { continue };
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        match tokio::time::timeout(PATIENCE, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => info!(namespace, pod = pod.name_any(), "a pod runs without a proxy: it is older than the label that asks for one"),
            // Somebody else has told.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(problem)) => return warn!(namespace, %problem, "an event could not be made"),
            Err(_) => return warn!(namespace, "an event could not be made: no answer within {} s", PATIENCE.as_secs()),
        }
        told.insert(uid);
    }
}

fn event(pod: &Pod, namespace: &str, uid: &str) -> Result<Event, serde_json::Error> {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    serde_json::from_value(json!({
        "metadata": {"name": format!("bluebox-bare.{uid}"), "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "namespace": namespace, "uid": uid},
        "reason": REASON,
        "message": "This pod should have Bluebox's proxy and runs without it, because it is older than the label that asks for it: its calls are not durable. Restart its workload \
                    (kubectl rollout restart), or opt out with the label bluebox.dev/injection: disabled",
        "type": "Warning",
        "source": {"component": "bluebox-injector"},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_bare() {
        let settings = Settings::try_new("bluebox:1").unwrap();
        let labelled = Place { namespace: "shop".to_owned(), labels: [(INJECTION.to_owned(), ENABLED.to_owned())].into() };
        let elsewhere = Place { namespace: "elsewhere".to_owned(), ..Place::default() };
        let bare = |pod: Value, place: &Place| is_bare(&serde_json::from_value(pod).unwrap(), place, &settings);
        let plain = || json!({"metadata": {"name": "cart"}, "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"}});
        let with = |pointer: &str, value: Value| {
            let mut pod = plain();
            pod[pointer.split('/').next().unwrap()][pointer.split('/').next_back().unwrap()] = value;
            pod
        };
        assert!(bare(plain(), &labelled) && !bare(plain(), &elsewhere));
        assert!(bare(with("metadata/labels", json!({INJECTION: ENABLED})), &elsewhere));
        for (pointer, value) in [
            ("metadata/labels", json!({INJECTION: "disabled"})),
            ("metadata/labels", json!({INJECTION: "nonsense"})),
            ("metadata/deletionTimestamp", json!("2030-01-01T00:00:00Z")),
            ("spec/hostNetwork", json!(true)),
            ("spec/initContainers", json!([{"name": "proxy"}])),
            ("status/phase", json!("Succeeded")),
            ("status/phase", json!("Failed")),
        ] {
            assert!(!bare(with(pointer, value.clone()), &labelled), "{pointer}: {value}");
        }
    }

    #[test]
    fn an_event_can_be_read() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "cart-1", "namespace": "shop", "uid": "u-1"}})).unwrap();
        let event = event(&pod, "shop", "u-1").unwrap();
        assert_eq!((event.involved_object.name.as_deref(), event.metadata.name.as_deref()), (Some("cart-1"), Some("bluebox-bare.u-1")));
        assert!(event.first_timestamp.is_some() && event.message.is_some_and(|message| message.len() < 1024));
    }
}

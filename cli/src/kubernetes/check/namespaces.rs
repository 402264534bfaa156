//! Whether what is labelled gets its proxies: in each namespace its Secret, its pods, what waits, and who serves what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bluebox_core::log::kafka::KafkaConfig;
use bluebox_core::registry::Class;
use bluebox_core::topics::Prefix;
use bluebox_injector::Settings;
use bluebox_injector::annotations::INJECTED;
use bluebox_injector::container::KAFKA_PATH;
use bluebox_injector::manifests::BARE;
use bluebox_injector::mistake::DENIED;
use bluebox_injector::selection::{ENABLED, INJECTION, KUBE_SYSTEM, Place, exempt};
use bluebox_injector::settings::{ADMIN_PORT, BROKERS_KEY, INCARNATE, PREFIX_KEY, PROPERTIES_KEY, PROXY, REDIRECT};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::report::{Check, Section, Status};
use super::text;
use crate::kubernetes::cluster::{Asked, Cluster};
use crate::log::{parse_brokers, parse_properties};
use crate::serve;

/// As many proxies of a namespace are asked whether they reach Kafka: they all have the same Secret.
const MOST_ASKED: usize = 3;

/// A box that waits longer than this before it starts is one that keeps dying.
const LONG: Duration = Duration::from_secs(20);

/// What was seen of a namespace in which something asks for proxies.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Its name.
    pub(super) name: String,
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
    /// When it was looked, in seconds since 1970.
    pub(super) now: u64,
    /// The Secret that says which Kafka.
    pub(super) secret: Option<Asked>,
    /// Its pods.
    pub(super) pods: Vec<Value>,
    /// What makes its pods.
    pub(super) workloads: Vec<Value>,
    /// Why pods could not be made.
    pub(super) events: Vec<Value>,
    /// What could not be seen.
    pub(super) unseen: Vec<String>,
    /// What some of its proxies say of Kafka: the pod, and whether it can be reached; `None` if its proxy doesn't say it.
    pub(super) reached: Vec<(String, Result<Option<bool>, String>)>,
    /// What would become of a new pod; only in labelled namespaces.
    pub(super) new_pod: Option<Result<Value, String>>,
}

impl Seen {
    /// Whether it is the namespace that is labelled, and not only pods in it.
    fn labelled(&self) -> bool {
        self.labels.get(INJECTION).is_some_and(|value| value == ENABLED)
    }

    /// Asks a cluster about a namespace.
    pub(super) async fn ask(cluster: &Cluster, namespace: &Value, kafka_secret: &str) -> Self {
        let name = text(namespace, "/metadata/name").to_owned();
        let labels = serde_json::from_value(namespace["metadata"]["labels"].clone()).unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut seen = Self { labels, now, ..Self::default() };
        let core = format!("/api/v1/namespaces/{name}");
        let apps = format!("/apis/apps/v1/namespaces/{name}");
        let (secret, pods, events, sets, stateful, daemons, jobs, new_pod) = tokio::join!(
            async { cluster.get(&format!("{core}/secrets/{kafka_secret}")).await },
            async { cluster.list(&format!("{core}/pods")).await },
            async { cluster.list(&format!("{core}/events?fieldSelector=reason%3DFailedCreate")).await },
            async { cluster.list(&format!("{apps}/replicasets")).await },
            async { cluster.list(&format!("{apps}/statefulsets")).await },
            async { cluster.list(&format!("{apps}/daemonsets")).await },
            async { cluster.list(&format!("/apis/batch/v1/namespaces/{name}/jobs")).await },
            async { cluster.make(&format!("{core}/pods?dryRun=All"), &a_pod()).await },
        );
        seen.secret = Some(secret);
        seen.pods = seen.or_unseen("pods", "Pod", pods);
        seen.events = seen.or_unseen("events", "Event", events);
        for (what, kind, list) in
            [("replicasets", "ReplicaSet", sets), ("statefulsets", "StatefulSet", stateful), ("daemonsets", "DaemonSet", daemons), ("jobs", "Job", jobs)]
        {
            let list = seen.or_unseen(what, kind, list);
            seen.workloads.extend(list);
        }
        if seen.labelled() {
            seen.new_pod = Some(new_pod.map(Option::unwrap_or_default));
        }
        let asked = seen.pods.iter().filter(|pod| proxy(pod).is_some() && text(pod, "/status/phase") == "Running" && !text(pod, "/status/podIP").is_empty());
        let asked: Vec<_> = asked.take(MOST_ASKED).map(|pod| text(pod, "/metadata/name").to_owned()).collect();
        for pod in asked {
            let said = cluster.text(&format!("{core}/pods/{pod}:{ADMIN_PORT}/proxy/metrics")).await;
            seen.reached.push((pod, said.map(|said| log_up(&said))));
        }
        seen.name = name;
        seen
    }

    /// In lists the kind is not said. What is read as a pod must not say that it is something else.
    fn or_unseen(&mut self, what: &str, kind: &str, list: Result<Vec<Value>, String>) -> Vec<Value> {
        match list {
            Ok(mut list) => {
                for item in &mut list {
                    item["kind"] = kind.into();
                }
                list
            }
            Err(why) => {
                self.unseen.push(format!("{what}: {why}"));
                Vec::new()
            }
        }
    }

    /// What keeps a pod: kind and name, as kubectl names it.
    fn owner(&self, pod: &Value) -> Option<String> {
        let controller = |object: &Value| {
            let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
            let owner = owners.iter().find(|owner| owner["controller"] == true)?;
            Some((text(owner, "/kind").to_owned(), text(owner, "/name").to_owned()))
        };
        let (kind, name) = controller(pod)?;
        let above = self.workloads.iter().find(|one| one["kind"] == kind.as_str() && text(one, "/metadata/name") == name).and_then(controller);
        let (kind, name) = above.unwrap_or((kind, name));
        Some(format!("{}/{name}", kind.to_lowercase()))
    }

    /// The pods that should have a proxy.
    fn asking<'s>(&'s self, settings: &'s Settings) -> impl Iterator<Item = &'s Value> {
        let place = Place { namespace: self.name.clone(), labels: self.labels.clone() };
        self.pods.iter().filter(move |pod| {
            let ended = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase")) || !pod["metadata"]["deletionTimestamp"].is_null();
            let typed: Option<Pod> = serde_json::from_value((*pod).clone()).ok();
            !ended && typed.is_some_and(|typed| matches!(exempt(&typed, &place, settings), Ok(None)))
        })
    }
}

/// What the metrics of a proxy say of its log.
fn log_up(metrics: &str) -> Option<bool> {
    let line = metrics.lines().find(|line| line.strip_prefix(LOG_UP).is_some_and(|rest| rest.starts_with([' ', '{'])))?;
    Some(line.rsplit_once(' ')?.1 == "1")
}

/// The metric that says whether a proxy reaches its log.
const LOG_UP: &str = "bluebox_log_up";

/// A pod that passes every standard, and asks for next to nothing. It is never made.
fn a_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "bluebox-check-"},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app", "image": "bluebox-check", "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

/// The judgement over all of them.
pub(super) fn judge(all: &[Seen], settings: &Settings) -> Vec<Section> {
    let mut sections: Vec<_> = all.iter().map(|seen| one(seen, settings)).collect();
    let together = vec![classes(all), owners(all), partitions(all)];
    sections.push(Section { name: "the components".to_owned(), checks: together });
    sections
}

fn one(seen: &Seen, settings: &Settings) -> Section {
    let mut checks = Vec::new();
    checks.extend(seen.new_pod.as_ref().map(|made| new_pod(made, &seen.name, settings)));
    checks.extend(seen.secret.as_ref().map(|asked| secret(asked, &seen.name, settings)));
    checks.extend(reached(seen));
    checks.push(bare(seen, settings));
    checks.push(old(seen, settings));
    checks.push(waiting(seen));
    checks.push(ill(seen));
    checks.push(restarts(seen));
    if !seen.unseen.is_empty() {
        checks.push(Check::none_of("all of it can be seen", Status::Warning, seen.unseen.clone(), "let somebody look who may read them"));
    }
    Section { name: format!("namespace {}", seen.name), checks }
}

fn proxy(pod: &Value) -> Option<&Value> {
    pod.pointer("/spec/initContainers")?.as_array()?.iter().find(|container| container["name"] == PROXY)
}

fn new_pod(made: &Result<Value, String>, namespace: &str, settings: &Settings) -> Check {
    let name = "a new pod would get its proxy (dry run)";
    match made {
        Ok(pod) => match proxy(pod) {
            Some(proxy) if proxy["image"] == settings.image() => Check::ok(name),
            Some(proxy) => Check::failed(
                name,
                format!("it would get {}, not {}", proxy["image"], settings.image()),
                format!("kubectl -n {} rollout restart deployment/bluebox-injector", settings.namespace()),
            ),
            None => Check::failed(name, "it would start without one", "the webhook and the policy are not asked: see the checks of the installation"),
        },
        Err(why) if why.contains(BARE) => Check::failed(
            name,
            "the injector did not answer, or was started with other settings than those that are there now: new pods here wait",
            format!(
                "kubectl -n {0} logs deployment/bluebox-injector; after a change of bluebox-settings: kubectl -n {0} rollout restart deployment/bluebox-injector",
                settings.namespace()
            ),
        ),
        Err(why) if why.contains(DENIED) => Check::failed(name, why, "as it says"),
        Err(why) => Check::warning(
            name,
            format!("a pod can't be made here for another reason: {why}"),
            format!("look yourself: kubectl auth can-i create pods -n {namespace}; quotas; other webhooks"),
        ),
    }
}

fn secret(asked: &Asked, namespace: &str, settings: &Settings) -> Check {
    let name = format!("its Secret {} says which Kafka", settings.kafka_secret());
    let again = format!("bluebox enable {namespace} --brokers HOST:PORT … | kubectl apply -f -");
    match asked {
        Err(why) => Check::warning(name, why, "let somebody look who may read it"),
        Ok(None) => Check::failed(name, "there is none: pods here wait with CreateContainerConfigError", again),
        Ok(Some(secret)) => match kafka(secret) {
            Ok(brokers) => Check::ok_because(name, brokers),
            Err(why) => Check::failed(name, why, again),
        },
    }
}

/// What is wrong with the Secret, as far as it shows without a broker; else the brokers.
fn kafka(secret: &Value) -> Result<String, String> {
    let data = &secret["data"];
    let value = |key: &str| -> Option<Result<String, String>> {
        let decoded = STANDARD.decode(data[key].as_str()?).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        Some(decoded.ok_or_else(|| format!("{key}: it is no text")))
    };
    let brokers = value(BROKERS_KEY).ok_or_else(|| format!("it has no {BROKERS_KEY}"))??;
    parse_brokers(&brokers).map_err(|why| format!("{BROKERS_KEY}: {why}"))?;
    let lines = value(PROPERTIES_KEY).ok_or_else(|| format!("it has no {PROPERTIES_KEY}; it may be empty"))??;
    let properties = parse_properties(&lines, PROPERTIES_KEY).map_err(|error| format!("{error:#}"))?;
    for (name, place) in properties.iter().filter(|(name, _)| name.ends_with(".location")) {
        let key = place.strip_prefix(KAFKA_PATH).and_then(|rest| rest.strip_prefix('/'));
        match key {
            Some(key) if data[key].is_null() => return Err(format!("{name} names {place}, and it has no key {key}")),
            Some(_) => {}
            None => return Err(format!("{name} names {place}: proxies have only what is in the Secret, in {KAFKA_PATH}")),
        }
    }
    let mut config = KafkaConfig::new(&brokers);
    config.properties = properties;
    config.check().map_err(|error| error.to_string())?;
    let prefix = value(PREFIX_KEY).transpose()?.unwrap_or_else(|| Prefix::default().as_str().to_owned());
    Prefix::try_new(&prefix).map_err(|error| format!("{PREFIX_KEY}: {error}"))?;
    Ok(format!("{brokers}, topics {prefix}.*"))
}

/// Whether its proxies reach Kafka; nothing if none of them says it.
fn reached(seen: &Seen) -> Option<Check> {
    let name = "its proxies reach Kafka";
    let away = seen.reached.iter().filter(|(_, said)| *said == Ok(Some(false))).map(|(pod, _)| format!("{pod} can't reach it"));
    let away: Vec<_> = away.collect();
    if !away.is_empty() {
        let hint = format!("kubectl -n {} logs {} -c {PROXY}   (it has the reason)", seen.name, away[0].split(' ').next().unwrap_or_default());
        return Some(Check::none_of(name, Status::Failed, away, hint));
    }
    let asked = seen.reached.iter().filter(|(_, said)| *said == Ok(Some(true))).count();
    if asked > 0 {
        return Some(Check::ok_because(name, format!("{asked} of them were asked")));
    }
    let (pod, why) = seen.reached.iter().find_map(|(pod, said)| Some((pod, said.as_ref().err()?)))?;
    Some(Check::warning(
        name,
        format!("{pod} can't be asked: {why}"),
        "you need the right to get pods/proxy to find that out; the log of each proxy says it too",
    ))
}

/// How something is made anew.
fn restart(namespace: &str, owner: Option<&str>) -> String {
    match owner.and_then(|owner| owner.split_once('/')) {
        Some((kind @ ("deployment" | "statefulset" | "daemonset"), name)) => format!("kubectl -n {namespace} rollout restart {kind}/{name}"),
        Some(("job", name)) => format!("job/{name}: its next pod gets one"),
        Some((kind, name)) => format!("{kind}/{name}: delete its pods, it makes them anew"),
        None => "pods that belong to nobody: delete them, and make them again".to_owned(),
    }
}

/// Pods by who keeps them: one line each, and what to do.
fn by_owner<'p>(name: &str, status: Status, seen: &Seen, pods: impl Iterator<Item = &'p Value>, what: &str) -> Check {
    let mut owners: BTreeMap<Option<String>, Vec<&str>> = BTreeMap::new();
    for pod in pods {
        owners.entry(seen.owner(pod)).or_default().push(text(pod, "/metadata/name"));
    }
    let lines = owners.iter().map(|(owner, pods)| match owner {
        Some(owner) => format!("{owner}: {} {what}: {}", pods.len(), pods.join(", ")),
        None => format!("{} {what}: {}", pods.len(), pods.join(", ")),
    });
    let hints: Vec<_> = owners.keys().map(|owner| restart(&seen.name, owner.as_deref())).collect();
    Check::none_of(name, status, lines.collect(), hints.join("\n"))
}

fn bare(seen: &Seen, settings: &Settings) -> Check {
    let pods = seen.asking(settings).filter(|pod| proxy(pod).is_none());
    by_owner("no pod runs without its proxy", Status::Warning, seen, pods, "are older than the label, or than the installation")
}

fn old(seen: &Seen, settings: &Settings) -> Check {
    let pods = seen.asking(settings).filter(|pod| proxy(pod).is_some_and(|proxy| proxy["image"] != settings.image()));
    by_owner("all proxies are of the version that is installed", Status::Warning, seen, pods, "have another one")
}

/// What wants pods and was refused them; controllers try again with a growing pause, of up to 1000 s.
fn waiting(seen: &Seen) -> Check {
    let name = "nothing waits for pods that were refused";
    let mut found = Vec::new();
    let (mut denied, mut hints) = (false, Vec::new());
    for workload in &seen.workloads {
        let (kind, called) = (text(workload, "/kind"), text(workload, "/metadata/name"));
        let number = |pointer: &str| workload.pointer(pointer).and_then(Value::as_i64);
        let lacks = match kind {
            "ReplicaSet" => number("/status/replicas").unwrap_or(0) < number("/spec/replicas").unwrap_or(1),
            "StatefulSet" => number("/status/replicas").unwrap_or(0) < number("/spec/replicas").unwrap_or(1),
            "DaemonSet" => number("/status/currentNumberScheduled").unwrap_or(0) < number("/status/desiredNumberScheduled").unwrap_or(0),
            _ => {
                let done = number("/status/succeeded").unwrap_or(0) + number("/status/active").unwrap_or(0);
                workload["status"]["completionTime"].is_null() && done < number("/spec/completions").unwrap_or(1)
            }
        };
        let conditions = workload["status"]["conditions"].as_array().into_iter().flatten();
        let conditions = conditions.filter(|condition| condition["type"] == "ReplicaFailure" && condition["status"] == "True");
        let of_this = |event: &&Value| text(event, "/involvedObject/kind") == kind && text(event, "/involvedObject/name") == called;
        let mut said =
            conditions.chain(seen.events.iter().filter(of_this)).map(|one| text(one, "/message")).filter(|said| said.contains(BARE) || said.contains(DENIED));
        // The last that was said.
        let Some(said) = said.next_back().filter(|_| lacks) else { continue };
        denied |= said.contains(DENIED);
        let said = if said.contains(DENIED) { said } else { "the injector did not answer when it was asked" };
        found.push(format!("{}/{called}: {said}", kind.to_lowercase()));
        // Any change of it makes its controller look at once; this one changes nothing else.
        hints.push(format!("kubectl -n {} annotate {}/{called} --overwrite bluebox.dev/woken=\"$(date)\"", seen.name, kind.to_lowercase()));
    }
    if denied {
        hints.insert(0, "mend what it says, in the pod's template; what was refused because the injector was away is woken so:".to_owned());
    } else {
        hints.insert(0, "they try again by themselves, after up to 1000 s; with an injector that answers, this wakes them at once:".to_owned());
    }
    Check::none_of(name, Status::Failed, found, hints.join("\n"))
}

/// Proxies that don't run.
fn ill(seen: &Seen) -> Check {
    let mut found = Vec::new();
    for pod in &seen.pods {
        let statuses = ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
        for status in statuses {
            let (container, pod_name) = (text(status, "/name"), text(pod, "/metadata/name"));
            if ![PROXY, REDIRECT, INCARNATE].contains(&container) {
                continue;
            }
            let reason = text(status, "/state/waiting/reason");
            if !["", "PodInitializing", "ContainerCreating"].contains(&reason) {
                let last = text(status, "/lastState/terminated/message");
                let said = if last.is_empty() { text(status, "/state/waiting/message") } else { last };
                found.push(format!("{pod_name}: {container}: {reason}: {}", said.trim().lines().last().unwrap_or_default()));
            }
            let since = text(status, "/state/running/startedAt");
            let since = humantime::parse_rfc3339(since).ok().and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
            if container != PROXY && since.is_some_and(|since| Duration::from_secs(seen.now).saturating_sub(since) > LONG) {
                found.push(format!("{pod_name}: this box keeps dying; it waits before it starts once more"));
            }
        }
    }
    let hint = format!("kubectl -n {0} logs POD -c {PROXY}   (it begins with the last words of the one before)\nkubectl -n {0} describe pod POD", seen.name);
    Check::none_of("all proxies run", Status::Failed, found, hint)
}

/// How app and proxy of its pods are restarted.
fn restarts(seen: &Seen) -> Check {
    let mut ways: BTreeMap<(String, String), usize> = BTreeMap::new();
    for pod in &seen.pods {
        if let Some(report) = pod["metadata"]["annotations"][INJECTED].as_str().and_then(|said| serde_json::from_str::<Value>(said).ok()) {
            *ways.entry((text(&report, "/restart").to_owned(), text(&report, "/redirect").to_owned())).or_default() += 1;
        }
    }
    let said: Vec<_> = ways.iter().map(|((restart, redirect), count)| format!("{count} by {redirect}, restarted by {restart}")).collect();
    Check {
        why: if said.is_empty() { vec!["it has no pods with proxies".to_owned()] } else { said },
        ..Check::ok("how calls come to its proxies, and both halves are restarted together")
    }
}

/// Something that a proxy serves.
struct Serves {
    /// Of which system: namespaces that share brokers and prefix are one.
    system: String,
    component: String,
    class: &'static str,
    partitions: u32,
    /// Namespace and owner.
    owner: String,
    pod: String,
}

fn served(all: &[Seen]) -> Vec<Serves> {
    let mut found = Vec::new();
    for seen in all {
        let system = match &seen.secret {
            Some(Ok(Some(secret))) => kafka(secret).unwrap_or_else(|_| seen.name.clone()),
            _ => seen.name.clone(),
        };
        for pod in &seen.pods {
            let arguments = proxy(pod).and_then(|proxy| proxy["args"].as_array()).into_iter().flatten().filter_map(Value::as_str);
            for argument in arguments.filter_map(|argument| argument.strip_prefix("--serve=")) {
                // Kubernetes puts addresses and ordinals in here that are not known now, and don't matter.
                let known = argument.split(",streams=").next().unwrap_or(argument).replace("$(BLUEBOX_ORDINAL)", "0");
                let Ok(served) = serve::parse(&known) else { continue };
                let owner = seen.owner(pod).unwrap_or_else(|| format!("pod/{}", text(pod, "/metadata/name")));
                found.push(Serves {
                    system: system.clone(),
                    component: served.name.to_string(),
                    class: if served.component.class == Class::Stateful { "stateful" } else { "service" },
                    partitions: served.component.partitions,
                    owner: format!("{}/{owner}", seen.name),
                    pod: text(pod, "/metadata/name").to_owned(),
                });
            }
        }
    }
    found
}

/// The components, and what is different between those who serve them.
fn by_component<T: Ord>(all: &[Seen], of: impl Fn(&Serves) -> T) -> BTreeMap<(String, String), BTreeSet<T>> {
    let mut components: BTreeMap<_, BTreeSet<T>> = BTreeMap::new();
    for serves in served(all) {
        components.entry((serves.component.clone(), serves.system.clone())).or_default().insert(of(&serves));
    }
    components
}

fn classes(all: &[Seen]) -> Check {
    let found = by_component(all, |serves| (serves.class, serves.owner.clone())).into_iter().filter_map(|((component, system), owners)| {
        let classes: BTreeSet<_> = owners.iter().map(|(class, _)| class).collect();
        let said: Vec<_> = owners.iter().map(|(class, owner)| format!("{owner} ({class})")).collect();
        (classes.len() > 1).then(|| format!("{component} at {system}: {}", said.join(", ")))
    });
    let hint = "the registry takes the class that came first, the others' proxies don't start: give one of them another name (bluebox.dev/component), or its namespace another --topic-prefix";
    Check::none_of("no component is of two classes", Status::Failed, found.collect(), hint)
}

fn owners(all: &[Seen]) -> Check {
    let found = by_component(all, |serves| serves.owner.clone()).into_iter().filter_map(|((component, system), owners)| {
        let owners: Vec<_> = owners.into_iter().collect();
        (owners.len() > 1).then(|| format!("{component} at {system}: {}", owners.join(", ")))
    });
    let hint = "they share its calls: nothing has to be done if that is meant, as with a canary. Else give one of them another name (bluebox.dev/component), or its namespace another --topic-prefix";
    Check::none_of("each component is served by one workload", Status::Warning, found.collect(), hint)
}

fn partitions(all: &[Seen]) -> Check {
    let mut most: BTreeMap<(String, String), u32> = BTreeMap::new();
    for serves in served(all).into_iter().filter(|serves| serves.class == "service") {
        most.entry((serves.component, serves.system)).and_modify(|most| *most = serves.partitions.max(*most)).or_insert(serves.partitions);
    }
    let pods = by_component(all, |serves| serves.pod.clone());
    let found = most.into_iter().filter_map(|(component, partitions)| {
        let count = pods.get(&component)?.len();
        (count > partitions as usize).then(|| format!("{}: {count} pods for {partitions} partitions", component.0))
    });
    let hint = "the pods beyond get no calls. The number of partitions is fixed when a component is first registered (bluebox.dev/partitions)";
    Check::none_of("no component has more pods than partitions", Status::Warning, found.collect(), hint)
}

/// Which namespaces are looked at: those with the label, and those with a labelled pod. Never those in which nothing is injected.
pub(super) fn asking(namespaces: &[Value], labelled_pods: &[Value], own: &str) -> Vec<Value> {
    let with_pods: BTreeSet<_> = labelled_pods.iter().map(|pod| text(pod, "/metadata/namespace")).collect();
    let asks = |namespace: &&Value| {
        let (name, label) = (text(namespace, "/metadata/name"), namespace["metadata"]["labels"][INJECTION].as_str());
        name != KUBE_SYSTEM && name != own && (label == Some(ENABLED) || with_pods.contains(name))
    };
    namespaces.iter().filter(asks).cloned().collect()
}

#[cfg(test)]
#[path = "namespaces_tests.rs"]
mod tests;

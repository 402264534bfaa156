//! The containers that are injected.
//!
//! Every field that the API server would fill in by default is written out, so that a pod that was injected and then filled in is recognised as it is.

use bluebox_core::ComponentName;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use serde_json::{Map, Value, json};

use crate::annotations::{Asked, Class, Protocol};
use crate::identity::{Identity, POD_INDEX};
use crate::redirect::Redirect;
use crate::restart::{self, Restart};
use crate::settings::{
    ADMIN_PORT, BROKERS_KEY, CONTROL_PORT, DNS_PORT, INCARNATE, OUTBOUND_PORT, PREFIX_KEY, PROGRAM, PROPERTIES_KEY, PROXY, REDIRECT, Settings, TRACES_PREFIX,
    TRACES_SECRET, TRANSPARENT_PORT,
};

/// The volume with the Secret that says which Kafka.
pub const KAFKA_VOLUME: &str = "bluebox-kafka";
/// An empty volume, mounted where the token of the pod's service account would be: the proxy asks nothing of the API server.
pub const EMPTY_VOLUME: &str = "bluebox-empty";
/// The volume that the incarnations of a box share.
pub const BOX_VOLUME: &str = "bluebox-box";
/// The volume with the program, for containers whose probe is a command, where app and proxy are restarted by probes.
pub const PROGRAM_VOLUME: &str = "bluebox-program";
/// Where those containers have it.
pub const PROGRAM_PATH: &str = "/.bluebox";
/// What the names of volumes that are injected begin with.
pub const VOLUME_PREFIX: &str = "bluebox-";

/// Where the proxy has the files of the Secret that says which Kafka.
pub const KAFKA_PATH: &str = "/etc/bluebox/kafka";
/// Where its init container and the proxy have that one.
pub const BOX_PATH: &str = "/run/bluebox";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What the proxy asks of its node if nothing else is said: CPU, memory.
const REQUESTS: (&str, &str) = ("20m", "64Mi");
/// The same in a pod whose quality of service is Guaranteed, where requests are limits.
const GUARANTEED: (&str, &str) = ("250m", "256Mi");

/// The volumes that come with the proxy.
pub fn volumes(together: &Together, settings: &Settings) -> Vec<Value> {
    let mut volumes = vec![
        json!({"name": KAFKA_VOLUME, "secret": {"secretName": settings.kafka_secret(), "defaultMode": 0o644}}),
        json!({"name": EMPTY_VOLUME, "emptyDir": {}}),
    ];
    if together.restart.together() {
        volumes.push(json!({"name": BOX_VOLUME, "emptyDir": {}}));
    }
    if together.program {
        volumes.push(json!({"name": PROGRAM_VOLUME, "emptyDir": {}}));
    }
    volumes
}

/// How the halves of a pod are kept together.
#[derive(Debug, Clone, PartialEq)]
pub struct Together {
    /// How they are restarted.
    pub restart: Restart,
    /// What the proxy asks of the app in the kubelet's place.
    pub liveness: Vec<Value>,
    /// Whether a container of the app needs the program.
    pub program: bool,
}

/// The init container that runs before the proxy, and before everything else in the pod, each time that the box starts; if one has to. Not two: a pod with one more is ready
/// up to a second later.
pub fn before_the_proxy(asked: &Asked, guaranteed: bool, redirect: Redirect, together: &Together, settings: &Settings) -> Option<Value> {
    match redirect {
        Redirect::Nftables => Some(redirected(asked, guaranteed, together, settings)),
        Redirect::Env => together.restart.together().then(|| incarnate(asked, guaranteed, together, settings)),
    }
}

/// What the init container is told so that it puts the token that the proxy takes, after a wait if the box keeps dying; and what it has to have mounted.
fn incarnation(together: &Together) -> (Vec<String>, Vec<Value>) {
    let (mut arguments, mut mounts) = (Vec::new(), Vec::new());
    if together.restart.together() {
        arguments.push(format!("--incarnation={BOX_PATH}"));
        mounts.push(box_mount());
    }
    if together.program {
        arguments.push(format!("--program={PROGRAM_PATH}"));
        mounts.push(json!({"name": PROGRAM_VOLUME, "mountPath": PROGRAM_PATH}));
    }
    mounts.push(empty_mount());
    (arguments, mounts)
}

/// Puts the kernel's rules into the pod's network, and the token, and ends. The only one of the containers that has a right over it, and that is root: the kernel gives the right
/// to nobody else who is not told so by a file. It reads no file of the pod but its nameservers, and what it shares with the proxy.
fn redirected(asked: &Asked, guaranteed: bool, together: &Together, settings: &Settings) -> Value {
    let mut arguments = vec![
        "redirect".to_owned(),
        format!("--proxy-uid={}", settings.uid()),
        format!("--transparent-port={TRANSPARENT_PORT}"),
        format!("--dns-port={DNS_PORT}"),
    ];
    if !asked.excluded_ports.is_empty() {
        arguments.push(format!("--exclude-ports={}", comma(asked.excluded_ports.iter())));
    }
    if asked.excluded_networks().next().is_some() {
        arguments.push(format!("--exclude-networks={}", comma(asked.excluded_networks())));
    }
    let (more, mounts) = incarnation(together);
    arguments.extend(more);
    json!({
        "name": REDIRECT,
        "image": settings.image(),
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "resources": resources(asked, guaranteed),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"add": [NET_ADMIN], "drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// The one right that the redirect needs: over the network of its pod.
pub const NET_ADMIN: &str = "NET_ADMIN";

fn comma(parts: impl Iterator<Item = impl ToString>) -> String {
    parts.map(|part| part.to_string()).collect::<Vec<_>>().join(",")
}

/// Puts the token where there is no redirect.
fn incarnate(asked: &Asked, guaranteed: bool, together: &Together, settings: &Settings) -> Value {
    let (more, mounts) = incarnation(together);
    let arguments: Vec<_> = std::iter::once("incarnate".to_owned()).chain(more).collect();
    json!({
        "name": INCARNATE,
        "image": settings.image(),
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "resources": resources(asked, guaranteed),
        "securityContext": security_context(settings),
        "volumeMounts": mounts,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn box_mount() -> Value {
    json!({"name": BOX_VOLUME, "mountPath": BOX_PATH})
}

fn empty_mount() -> Value {
    json!({"name": EMPTY_VOLUME, "mountPath": TOKEN_PATH, "readOnly": true})
}

fn security_context(settings: &Settings) -> Value {
    json!({
        "runAsUser": settings.uid(),
        "runAsGroup": settings.uid(),
        "runAsNonRoot": true,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// How long calls may take to end once the pod is told to: two thirds of its grace, in seconds. The rest is the app's, to end in.
pub fn drain_seconds(grace: Option<i64>) -> i64 {
    // What the API server fills in if nothing is said.
    const USUAL: i64 = 30;
    (grace.unwrap_or(USUAL).clamp(0, 3600)) / 3 * 2
}

/// The hook of an app's container that lets it end only when its calls have. The kubelet runs all hooks of a pod at once; the proxy's stops the calls.
pub fn wait_for_drain(seconds: i64) -> Value {
    json!({"httpGet": {"path": format!("{DRAINED}?within={seconds}"), "port": ADMIN_PORT, "scheme": "HTTP"}})
}

/// The path that [`wait_for_drain`] asks.
pub const DRAINED: &str = "/drained";

/// The proxy's container, in a pod with that many seconds for its calls to end.
pub fn proxy(identity: &Identity, asked: &Asked, guaranteed: bool, drain_seconds: i64, redirect: Redirect, together: &Together, settings: &Settings) -> Value {
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"},
            "periodSeconds": period, "failureThreshold": failures, "successThreshold": 1, "timeoutSeconds": 2,
        })
    };
    let mut liveness = probe("/healthz", 5, 3);
    // Until then it may be starting, on a node that has much else to do.
    liveness["initialDelaySeconds"] = 20.into();
    // One that hangs does not end by itself. What it had to say it has no time for.
    liveness["terminationGracePeriodSeconds"] = 2.into();
    let mut mounts = vec![json!({"name": KAFKA_VOLUME, "mountPath": KAFKA_PATH, "readOnly": true}), empty_mount()];
    if together.restart.together() {
        mounts.push(box_mount());
    }
    let mut proxy = json!({
        "name": PROXY,
        "image": settings.image(),
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": arguments(identity, asked, redirect, together),
        "env": environment(identity, asked, settings),
        // Of a Secret that may be there, and nothing but what says where traces go: with any other name it would be a setting of the proxy.
        "envFrom": [{"prefix": TRACES_PREFIX, "secretRef": {"name": TRACES_SECRET, "optional": true}}],
        "ports": [{"name": "bluebox-admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}],
        "resources": resources(asked, guaranteed),
        // Ready means that its components are registered, so that nobody finds a pod at the address of their Service that is not called through Kafka yet. With Kafka away it
        // is not waited for. Asked each second, because until then the pod is not ready either.
        "readinessProbe": probe("/readyz", 1, 10),
        "livenessProbe": liveness,
        // The kubelet ends a sidecar only after the app. Calls have to stop before.
        "lifecycle": {"preStop": {"exec": {"command": [PROGRAM, "drain", format!("--control=127.0.0.1:{CONTROL_PORT}"), format!("--within={drain_seconds}s")]}}},
        "securityContext": security_context(settings),
        "volumeMounts": mounts,
        "terminationMessagePath": "/dev/termination-log",
        // A proxy that can't start says why in `kubectl describe pod`.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if together.restart == Restart::Rules {
        proxy["restartPolicyRules"] = restart::rules();
    }
    // What the app is started after: the proxy listens, and the redirect is in place. Nothing of it depends on Kafka, or on the app.
    if together.restart == Restart::Probes {
        // As long as a hook runs, the kubelet does nothing else with the pod: it would not end the app, which a proxy that took the place of another one waits for.
        proxy["startupProbe"] = probe("/started", 1, 60);
    } else {
        // The app is started when this has ended; after a startup probe it would be up to two seconds later.
        proxy["lifecycle"]["postStart"] = json!({"exec": {"command": [PROGRAM, "started", format!("--admin=127.0.0.1:{ADMIN_PORT}")]}});
    }
    proxy
}

/// The flag that says what the proxy asks of the app.
const LIVENESS: &str = "--liveness=";

/// What a proxy that is in the pod already asks of the app.
pub fn liveness_of(proxy: &Value) -> Vec<Value> {
    let arguments = proxy.get("args").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    arguments.filter_map(|argument| serde_json::from_str(&argument.strip_prefix(LIVENESS)?.replace("$$", "$")).ok()).collect()
}

/// What the proxy is started with: `bluebox` and these.
fn arguments(identity: &Identity, asked: &Asked, redirect: Redirect, together: &Together) -> Vec<String> {
    let mut arguments = vec!["proxy".to_owned(), format!("--name={}", identity.name)];
    arguments
        .extend(identity.serves.iter().map(|(name, port)| format!("--serve={name}=127.0.0.1:{port}{}", serve_options(name, *port, identity.protocol, asked))));
    arguments.push(format!("--listen=127.0.0.1:{OUTBOUND_PORT}"));
    if redirect == Redirect::Nftables {
        arguments.push(format!("--transparent=127.0.0.1:{TRANSPARENT_PORT}"));
        arguments.push(format!("--dns=127.0.0.1:{DNS_PORT}"));
    }
    arguments.push(format!("--admin=0.0.0.0:{ADMIN_PORT}"));
    arguments.push(format!("--control=127.0.0.1:{CONTROL_PORT}"));
    arguments.push(format!("--kafka-properties={KAFKA_PATH}/{PROPERTIES_KEY}"));
    if together.restart.together() {
        arguments.push(format!("--incarnation={BOX_PATH}"));
    }
    if together.restart.together() && asked.restart_on_hang {
        arguments.push("--restart-on-hang".to_owned());
    }
    if together.restart == Restart::Probes {
        arguments.push("--without-rules".to_owned());
        arguments.extend(together.liveness.iter().map(|ask| format!("{LIVENESS}{}", ask.to_string().replace('$', "$$"))));
    }
    arguments.extend(asked.log_level.iter().map(|level| format!("--log-level={level}")));
    if asked.log_json {
        arguments.push("--log-format=json".to_owned());
    }
    // In an argument, Kubernetes puts the value of an environment variable for `$(NAME)`. No annotation can have the proxy's.
    arguments.extend(asked.limits.iter().map(|flag| flag.replace('$', "$$")));
    arguments
}

fn serve_options(name: &ComponentName, port: u16, protocol: Protocol, asked: &Asked) -> String {
    let mut options = String::new();
    let mut add = |option: String| {
        options.push(',');
        options.push_str(&option);
    };
    if asked.class_of(name) == Class::Stateful {
        // The StatefulSet's controller says which one the pod is, and Kubernetes puts it in here: a template does not know it.
        add("class=stateful,ordinal=$(BLUEBOX_ORDINAL)".to_owned());
    }
    if protocol == Protocol::H2c {
        add("protocol=h2c".to_owned());
    }
    if let Some(partitions) = asked.partitions {
        add(format!("partitions={partitions}"));
    }
    if !asked.call_ports.is_empty() {
        add(format!("ports={}", asked.call_ports.iter().map(u16::to_string).collect::<Vec<_>>().join("+")));
    }
    if let Some(limit) = &asked.body_limit {
        add(format!("body-limit={limit}"));
    }
    if asked.streams_pass {
        // Other pods reach the app at the pod's address, which Kubernetes puts in here.
        add(format!("streams=pass,direct=$(BLUEBOX_POD_IP):{port}"));
    }
    options
}

fn environment(identity: &Identity, asked: &Asked, settings: &Settings) -> Value {
    let secret = |name: &str, key: &str, optional: bool| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": settings.kafka_secret(), "key": key, "optional": optional}}});
    let of_pod = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut environment =
        vec![secret("BLUEBOX_BROKERS", BROKERS_KEY, false), secret("BLUEBOX_TOPIC_PREFIX", PREFIX_KEY, true), of_pod("BLUEBOX_POD_IP", "status.podIP")];
    if identity.serves.iter().any(|(name, _)| asked.class_of(name) == Class::Stateful) {
        environment.push(of_pod("BLUEBOX_ORDINAL", &format!("metadata.labels['{POD_INDEX}']")));
    }
    Value::Array(environment)
}

fn resources(asked: &Asked, guaranteed: bool) -> Value {
    let (cpu, memory) = if guaranteed { GUARANTEED } else { REQUESTS };
    let pick = |request: &Option<crate::quantity::Quantity>, limit: &Option<crate::quantity::Quantity>, usual: &str| {
        let limit = limit.as_ref().map(|limit| limit.as_str().to_owned());
        let asked = request.as_ref().map(|request| request.as_str().to_owned());
        // A limit below what is usually asked for lowers that too.
        let request = asked.or_else(|| limit.clone()).unwrap_or_else(|| usual.to_owned());
        let limit = if guaranteed { Some(limit.unwrap_or_else(|| request.clone())) } else { limit };
        (if guaranteed { limit.clone().unwrap_or_else(|| request.clone()) } else { request }, limit)
    };
    let mut requests = Map::new();
    let mut limits = Map::new();
    for (name, (request, limit)) in
        [("cpu", pick(&asked.cpu_request, &asked.cpu_limit, cpu)), ("memory", pick(&asked.memory_request, &asked.memory_limit, memory))]
    {
        requests.insert(name.to_owned(), request.into());
        limits.extend(limit.map(|limit| (name.to_owned(), limit.into())));
    }
    let mut resources = Map::from_iter([("requests".to_owned(), Value::Object(requests))]);
    if !limits.is_empty() {
        resources.insert("limits".to_owned(), Value::Object(limits));
    }
    Value::Object(resources)
}

/// Whether these containers alone would make a pod Guaranteed: each has limits of CPU and memory, and asks for no less.
pub fn are_guaranteed<'a>(containers: impl Iterator<Item = &'a Container>) -> bool {
    let mut all = containers.map(|container| container.resources.as_ref()).peekable();
    let guaranteed = |resources: &ResourceRequirements| {
        ["cpu", "memory"].into_iter().all(|name| {
            let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
            let request = resources.requests.as_ref().and_then(|requests| requests.get(name));
            limit.is_some() && request.is_none_or(|request| Some(request) == limit)
        })
    };
    all.peek().is_some() && all.all(|resources| resources.is_some_and(guaranteed))
}

//! Puts the proxy into a pod.
//!
//! What is read of a pod is typed; what is changed is the pod as it came, so that fields which this version doesn't know stay as they are.

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::annotations::{Asked, Class, INJECTED, PREFIX};
use crate::container::{self, PROGRAM_PATH, PROGRAM_VOLUME, Together, VOLUME_PREFIX};
use crate::identity::{Identity, is_app};
use crate::liveness;
use crate::mistake::Mistake;
use crate::redirect::Redirect;
use crate::restart::{Restart, add_rules};
use crate::settings::{INCARNATE, OUTBOUND_PORT, PORTS, PROXY, REDIRECT, Settings};

/// A pod with its proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Value,
    /// What makes it out of the pod that came (RFC 6902). Empty when nothing had to be done.
    pub patch: Patch,
    /// What was done.
    pub report: Report,
    /// What whoever made the pod should know.
    pub warnings: Vec<String>,
}

/// What was done to a pod: the value of its annotation `bluebox.dev/injected`, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The image of the proxy.
    pub image: String,
    /// Who the pod is when it calls.
    pub name: String,
    /// What it serves: `NAME=PORT`.
    pub serves: Vec<String>,
    /// The components among them whose pods are ordinals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stateful: Vec<String>,
    /// How the app's calls come to the proxy: caught by `nftables`, or by `env`.
    pub redirect: String,
    /// How app and proxy are restarted: together by `rules` or by `probes`, or `separate`.
    pub restart: String,
    /// The containers that are the app.
    pub app_containers: Vec<String>,
}

/// The names of the init containers that are Bluebox's own.
const OURS: [&str; 3] = [REDIRECT, INCARNATE, PROXY];

/// The variables that send an app's calls to the proxy. Both spellings: curl only obeys the small one, others only the large one.
const PROXY_VARIABLES: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
/// Those that say what goes without it.
const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What in a pod stands against a proxy.
pub fn check(raw: &Value, spec: &PodSpec, asked: &Asked, redirect: Redirect, settings: &Settings) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    check_containers(spec, asked, settings, &mut mistakes);
    if redirect == Redirect::Nftables {
        check_users(spec, settings, &mut mistakes);
        check_excluded(asked, &mut mistakes);
    }
    check_volumes(raw, spec, settings, &mut mistakes);
    mistakes
}

/// Puts the proxy into a pod, which was [`check`]ed: `raw` as it came, `pod` and `spec` the same read.
///
/// # Errors
/// What stands against it.
pub fn inject(
    raw: &Value,
    pod: &Pod,
    spec: &PodSpec,
    asked: &Asked,
    identity: &Identity,
    redirect: Redirect,
    settings: &Settings,
) -> Result<Injected, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut warnings = identity.warnings.clone();
    let mut changed = raw.clone();
    let others = || spec.init_containers.iter().flatten().chain(&spec.containers).filter(|container| !OURS.contains(&container.name.as_str()));
    let app_containers: Vec<_> = others().filter(|container| is_app(container, asked)).map(|container| container.name.clone()).collect();

    let drain_seconds = container::drain_seconds(spec.termination_grace_period_seconds);
    let (restart, guaranteed) = (Restart::of(spec, asked, settings), container::are_guaranteed(others()));
    let former = raw.pointer("/spec/initContainers").and_then(Value::as_array).into_iter().flatten();
    let former: Vec<_> = former.filter(|container| container.get("name").and_then(Value::as_str) == Some(PROXY)).flat_map(container::liveness_of).collect();
    let mut together = Together { restart, liveness: Vec::new(), program: false };
    let spec_map = object(&mut changed, "spec");
    for list in ["initContainers", "containers"] {
        let app = spec_map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut);
        for container in app.filter(|container| container.get("name").and_then(Value::as_str).is_some_and(|name| app_containers.iter().any(|app| app == name)))
        {
            match redirect {
                Redirect::Nftables => warn_of_other_proxies(container, &mut warnings),
                Redirect::Env => point_to_proxy(container, asked, &mut mistakes, &mut warnings),
            }
            match restart {
                Restart::Rules if list == "containers" => add_rules(container, &mut warnings),
                Restart::Probes if list == "containers" => {
                    let rerouted = liveness::through_the_proxy(container, &former, &mut warnings);
                    together.liveness.extend(rerouted.ask);
                    if rerouted.needs_program {
                        together.program = true;
                        let (mounts, mount) = (array(container, "volumeMounts"), liveness::program_mount());
                        if !mounts.contains(&mount) {
                            mounts.push(mount);
                        }
                    }
                }
                _ => {}
            }
            if list == "containers" && !identity.serves.is_empty() {
                let lifecycle = object_in(container, "lifecycle");
                // The app's own hook is the app's own.
                let hook = lifecycle.entry("preStop").or_insert(Value::Null);
                if hook.is_null() {
                    *hook = container::wait_for_drain(drain_seconds);
                }
            }
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    warnings.extend(without_effect(asked, redirect));
    let before = container::before_the_proxy(asked, guaranteed, redirect, &together, settings);
    let proxy = container::proxy(identity, asked, guaranteed, drain_seconds, redirect, &together, settings);
    put_first(array(spec_map, "initContainers"), before.into_iter().chain([proxy]).collect());
    for volume in container::volumes(&together, settings) {
        let volumes = array(spec_map, "volumes");
        if !volumes.contains(&volume) {
            volumes.push(volume);
        }
    }

    let report = Report {
        image: settings.image().to_owned(),
        name: identity.name.to_string(),
        serves: identity.serves.iter().map(|(name, port)| format!("{name}={port}")).collect(),
        stateful: identity.serves.iter().filter(|(name, _)| asked.class_of(name) == Class::Stateful).map(|(name, _)| name.to_string()).collect(),
        redirect: redirect.to_string(),
        restart: restart.name().to_owned(),
        app_containers,
    };
    // Strings and lists of them: it can't fail.
    let said = serde_json::to_string(&report).unwrap_or_default();
    object_in(object(&mut changed, "metadata"), "annotations").insert(INJECTED.to_owned(), said.into());
    let patch = checked(raw, &changed, pod)?;
    Ok(Injected { pod: changed, patch, report, warnings })
}

/// The patch, which was applied and gives the pod that it should.
fn checked(raw: &Value, changed: &Value, before: &Pod) -> Result<Patch, Vec<Mistake>> {
    let broken = |why: String| {
        let name = before.metadata.name.as_deref().or(before.metadata.generate_name.as_deref()).unwrap_or_default();
        vec![Mistake::new(
            "the pod",
            name,
            format!("a mistake in Bluebox would have broken it ({why}); please report it. The label {PREFIX}injection: disabled lets it start"),
        )]
    };
    let patch = json_patch::diff(raw, changed);
    let mut applied = raw.clone();
    json_patch::patch(&mut applied, &patch).map_err(|error| broken(error.to_string()))?;
    if applied != *changed {
        return Err(broken("the patch gives another pod".to_owned()));
    }
    let after: Pod = serde_json::from_value(applied).map_err(|error| broken(error.to_string()))?;
    let names = |pod: &Pod| pod.spec.iter().flat_map(|spec| spec.containers.iter().map(|container| container.name.clone())).collect::<Vec<_>>();
    if names(before) == names(&after) { Ok(patch) } else { Err(broken("its containers are others".to_owned())) }
}

fn check_containers(spec: &PodSpec, asked: &Asked, settings: &Settings, mistakes: &mut Vec<Mistake>) {
    let init = || spec.init_containers.iter().flatten();
    for name in OURS {
        let named: Vec<&Container> = init().filter(|container| container.name == name).collect();
        if let Some(foreign) = named.iter().find(|container| container.image.as_deref() != Some(settings.image())) {
            let image = foreign.image.as_deref().unwrap_or_default();
            let remedy =
                format!("its image is not this installation's ({}); {name} is the name of Bluebox's own container: give yours another", settings.image());
            mistakes.push(Mistake::new(format!("init container {name}"), image, remedy));
        }
        if named.len() > 1 {
            mistakes.push(Mistake::new("initContainers", name, "two have this name"));
        }
        if let Some(foreign) = spec.containers.iter().find(|container| container.name == name) {
            let remedy = format!("{name} is the name of Bluebox's own container: give yours another");
            mistakes.push(Mistake::new("container", foreign.image.as_deref().unwrap_or_default(), remedy));
        }
    }
    let theirs = |name: &String| init().chain(&spec.containers).any(|container| &container.name == name) && !OURS.contains(&name.as_str());
    for name in asked.app_containers.iter().filter(|name| !theirs(name)) {
        let there: Vec<_> = spec.containers.iter().map(|container| container.name.as_str()).take(20).collect();
        mistakes.push(Mistake::new(
            format!("annotation {PREFIX}app-containers"),
            name,
            format!("the pod has no such container; there are {}", there.join(", ")),
        ));
    }
    for container in init().chain(&spec.containers).filter(|container| !OURS.contains(&container.name.as_str())) {
        for port in container.ports.iter().flatten().map(|port| port.container_port) {
            if PORTS.map(i32::from).contains(&port) {
                let remedy = "the proxy itself listens there: let the app listen elsewhere";
                mistakes.push(Mistake::new(format!("a port of container {}", container.name), &port.to_string(), remedy));
            }
        }
        // Of one that was injected already, the program is mounted to be run.
        let program = |mount: &VolumeMount| mount.name == PROGRAM_VOLUME && mount.mount_path == PROGRAM_PATH && mount.read_only == Some(true);
        for mount in container.volume_mounts.iter().flatten().filter(|mount| mount.name.starts_with(VOLUME_PREFIX) && !program(mount)) {
            mistakes.push(Mistake::new(
                format!("a mount of container {}", container.name),
                &mount.name,
                "volumes of that name are Bluebox's, for its proxy alone",
            ));
        }
    }
}

fn check_volumes(raw: &Value, spec: &PodSpec, settings: &Settings, mistakes: &mut Vec<Mistake>) {
    let ours = container::volumes(&Together { restart: Restart::Rules, liveness: Vec::new(), program: true }, settings);
    let raw = raw.pointer("/spec/volumes").and_then(Value::as_array);
    for (at, volume) in spec.volumes.iter().flatten().enumerate().filter(|(_, volume)| volume.name.starts_with(VOLUME_PREFIX)) {
        if !raw.and_then(|raw| raw.get(at)).is_some_and(|raw| ours.contains(raw)) {
            mistakes.push(Mistake::new("volume", &volume.name, format!("names that begin with {VOLUME_PREFIX} are Bluebox's: give it another")));
        }
    }
}

/// What runs as the proxy's user is not caught: the rules take it for the proxy.
fn check_users(spec: &PodSpec, settings: &Settings, mistakes: &mut Vec<Mistake>) {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    for container in spec.init_containers.iter().flatten().chain(&spec.containers).filter(|container| !OURS.contains(&container.name.as_str())) {
        let user = container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod);
        if user == Some(settings.uid()) {
            let remedy = "this is the proxy's user, and what it sends is not caught: let the app run as another";
            mistakes.push(Mistake::new(format!("the user of container {}", container.name), &settings.uid().to_string(), remedy));
        }
    }
}

/// The kernel's rules know no names: what somebody wants to keep from the proxy would go to it all the same.
fn check_excluded(asked: &Asked, mistakes: &mut Vec<Mistake>) {
    for name in asked.excluded_hosts.iter().filter(|host| !asked.excluded_networks().any(|network| network == host.as_str())) {
        let remedy = format!(
            "the kernel's rules know no names: exclude its addresses (10.9.0.0/16) or, with {PREFIX}excluded-ports, its port, or say {PREFIX}redirect: env. What is no component \
             needs no exclusion: it is passed on as it is"
        );
        mistakes.push(Mistake::new(format!("annotation {PREFIX}excluded-hosts"), name, remedy));
    }
}

/// What an annotation asks for that comes to nothing, because calls come to the proxy in another way.
fn without_effect(asked: &Asked, redirect: Redirect) -> Option<String> {
    (redirect == Redirect::Env && !asked.excluded_ports.is_empty())
        .then(|| format!("{PREFIX}excluded-ports has no effect with {PREFIX}redirect: env: no variable says ports; {PREFIX}excluded-hosts says hosts"))
}

/// What goes to a proxy of the app's own goes past the kernel's rules, as far as they can see.
fn warn_of_other_proxies(container: &Map<String, Value>, warnings: &mut Vec<String>) {
    let ours = format!("http://127.0.0.1:{OUTBOUND_PORT}");
    let env = container.get("env").and_then(Value::as_array).into_iter().flatten();
    let own = env.filter(|variable| variable.get("value").and_then(Value::as_str) != Some(&ours));
    let name = |variable: &Value| variable.get("name").and_then(Value::as_str).filter(|name| PROXY_VARIABLES.contains(name)).map(str::to_owned);
    for variable in own.filter_map(name) {
        let container = container.get("name").and_then(Value::as_str).unwrap_or_default();
        warnings.push(format!("container {container} sets {variable}: calls that it sends to that proxy are not durable; name the components in NO_PROXY"));
    }
}

/// Sets the variables that send an app's calls to the proxy.
fn point_to_proxy(container: &mut Map<String, Value>, asked: &Asked, mistakes: &mut Vec<Mistake>, warnings: &mut Vec<String>) {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let env = array(container, "env");
    let there = |env: &[Value], name: &str| env.iter().find(|variable| variable.get("name").and_then(Value::as_str) == Some(name)).cloned();
    let direct = ["localhost", "127.0.0.1", "::1"].into_iter().chain(asked.excluded_hosts.iter().map(String::as_str)).collect::<Vec<_>>().join(",");
    let proxy = format!("http://127.0.0.1:{OUTBOUND_PORT}");
    for (variable, value) in PROXY_VARIABLES.map(|variable| (variable, &proxy)).into_iter().chain(NO_PROXY_VARIABLES.map(|variable| (variable, &direct))) {
        let wanted = json!({"name": variable, "value": value});
        match there(env, variable) {
            None => env.push(wanted),
            Some(same) if same == wanted => {}
            Some(_) if NO_PROXY_VARIABLES.contains(&variable) => {
                warnings.push(format!("container {name} sets {variable} itself; it is left as it is"));
            }
            Some(other) => {
                let value = other.get("value").and_then(Value::as_str).unwrap_or("(from elsewhere)");
                let remedy = format!("Bluebox sets it to {proxy}: leave it out, or leave the container out of {PREFIX}app-containers");
                mistakes.push(Mistake::new(format!("variable {variable} of container {name}"), value, remedy));
            }
        }
    }
}

/// Puts our containers before the app's init containers, so that those can call components. One that is there already is replaced, whatever was made of it; only limits of
/// its resources that others set by default (a LimitRange) stay.
fn put_first(containers: &mut Vec<Value>, ours: Vec<Value>) {
    fn name(container: &Value) -> &str {
        container.get("name").and_then(Value::as_str).unwrap_or_default()
    }
    let (there, theirs): (Vec<_>, Vec<_>) = std::mem::take(containers).into_iter().partition(|container| OURS.contains(&name(container)));
    for mut container in ours {
        let former = there.iter().find(|former| name(former) == name(&container));
        for kind in ["requests", "limits"] {
            let amounts = former.and_then(|former| former.pointer(&format!("/resources/{kind}"))).and_then(Value::as_object);
            for (resource, amount) in amounts.into_iter().flatten() {
                if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
                    object_in(resources, kind).entry(resource.clone()).or_insert_with(|| amount.clone());
                }
            }
        }
        containers.push(container);
    }
    containers.extend(theirs);
}

/// The object at a key of a value that is an object; made, if there is none.
fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    object_in(as_object(value), key)
}

fn object_in<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    as_object(map.entry(key).or_insert(Value::Null))
}

/// What is no object (JSON's null; nothing else was read as a pod) becomes an empty one.
fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made one"),
    }
}

fn array<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = map.entry(key).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(array) => array,
        _ => unreachable!("it was made one"),
    }
}

//! Where the cluster has no restart rules, or a pod wants none: the liveness of the app goes through its proxy. A proxy that was started again alone answers no, until the kubelet has started the
//! app afresh too.

use serde_json::{Map, Value, json};

use crate::container::{PROGRAM_PATH, PROGRAM_VOLUME};
use crate::settings::ADMIN_PORT;

/// The path that is asked of the proxy.
const ALIVE: &str = "/alive?container=";
/// How often a container is asked that has no probe of its own.
const OWN_PERIOD_SECONDS: u32 = 5;

/// What became of a container's probe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rerouted {
    /// What the proxy has to ask in the kubelet's place, as `bluebox proxy --liveness` reads it.
    pub ask: Option<Value>,
    /// Whether a command in the container needs the program.
    pub needs_program: bool,
}

/// Sends the liveness probe of a container through the proxy. `former` is what a proxy that is there already asks: of a probe that was sent through it, nothing else knows.
pub fn through_the_proxy(container: &mut Map<String, Value>, former: &[Value], warnings: &mut Vec<String>) -> Rerouted {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let handler = json!({"path": format!("{ALIVE}{name}"), "port": ADMIN_PORT, "scheme": "HTTP"});
    let port_of = ports(container);
    let Some(probe) = container.get_mut("livenessProbe").and_then(Value::as_object_mut) else {
        // It only ever fails with a proxy that was started again alone.
        container.insert(
            "livenessProbe".to_owned(),
            json!({"httpGet": handler, "periodSeconds": OWN_PERIOD_SECONDS, "failureThreshold": 3, "successThreshold": 1, "timeoutSeconds": 2}),
        );
        return Rerouted::default();
    };
    if probe.get("httpGet") == Some(&handler) {
        return Rerouted { ask: former.iter().find(|ask| ask.get("container").and_then(Value::as_str) == Some(&name)).cloned(), needs_program: false };
    }
    if let Some(command) = probe.get_mut("exec").and_then(|exec| exec.get_mut("command")).and_then(Value::as_array_mut) {
        let first =
            [format!("{PROGRAM_PATH}/bluebox"), "alive".to_owned(), format!("--admin=127.0.0.1:{ADMIN_PORT}"), format!("--container={name}"), "--".to_owned()];
        if command.first().and_then(Value::as_str) != Some(&first[0]) {
            command.splice(0..0, first.map(Value::from));
        }
        return Rerouted { ask: None, needs_program: true };
    }
    let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64).filter(|seconds| (1..=3600).contains(seconds)).unwrap_or(1);
    match ask(&name, timeout, probe, &port_of) {
        Ok((kind, ask)) => {
            probe.remove(kind);
            probe.insert("httpGet".to_owned(), handler);
            Rerouted { ask: Some(ask), needs_program: false }
        }
        Err(why) => {
            warnings.push(format!("the liveness probe of container {name} stays as it is ({why}): a proxy that is started again alone goes unnoticed by it"));
            Rerouted::default()
        }
    }
}

/// What the proxy asks in the place of a probe, and the kind of that.
fn ask(name: &str, timeout: u64, probe: &Map<String, Value>, port_of: &dyn Fn(&Value) -> Option<u64>) -> Result<(&'static str, Value), String> {
    let mut ask = json!({"container": name, "timeoutSeconds": timeout});
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let port = |handler: &Value| handler.get("port").and_then(port_of).ok_or_else(|| "its port is none of the container's".to_owned());
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        let Some(handler) = probe.get(kind).filter(|handler| handler.is_object()) else { continue };
        if !text(handler, "host").is_empty() {
            return Err("it asks another host".to_owned());
        }
        let port = port(handler)?;
        ask[kind] = match kind {
            "httpGet" if text(handler, "scheme").eq_ignore_ascii_case("HTTPS") => return Err("it asks by HTTPS".to_owned()),
            "httpGet" => {
                let headers: Vec<_> =
                    handler.get("httpHeaders").and_then(Value::as_array).into_iter().flatten().map(|h| json!([text(h, "name"), text(h, "value")])).collect();
                let path = text(handler, "path");
                let path = if path.starts_with('/') { path } else { format!("/{path}") };
                if headers.is_empty() { json!({"port": port, "path": path}) } else { json!({"port": port, "path": path, "headers": headers}) }
            }
            "grpc" => json!({"port": port, "service": text(handler, "service")}),
            _ => json!({"port": port}),
        };
        return Ok((kind, ask));
    }
    Err("it is of a kind that this version doesn't know".to_owned())
}

/// Finds the number of a port, which may be the name of one of the container's.
fn ports(container: &Map<String, Value>) -> impl Fn(&Value) -> Option<u64> + use<> {
    let named: Vec<(String, u64)> = container
        .get("ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|port| Some((port.get("name")?.as_str()?.to_owned(), port.get("containerPort")?.as_u64()?)))
        .collect();
    move |port| {
        let number = port.as_u64().or_else(|| named.iter().find(|(name, _)| port.as_str() == Some(name)).map(|(_, number)| *number));
        number.filter(|number| (1..=65535).contains(number))
    }
}

/// The mount by which a container reaches the program.
pub fn program_mount() -> Value {
    json!({"name": PROGRAM_VOLUME, "mountPath": PROGRAM_PATH, "readOnly": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a probe, what the proxy asks, and that once more changes nothing.
    fn rerouted(probe: Value) -> (Value, Option<Value>, Vec<String>) {
        let mut container = json!({"name": "app", "ports": [{"name": "web", "containerPort": 8080}], "livenessProbe": probe}).as_object().unwrap().clone();
        let mut warnings = Vec::new();
        let rerouted = through_the_proxy(&mut container, &[], &mut warnings);
        let mut again = container.clone();
        let former: Vec<_> = rerouted.ask.iter().cloned().collect();
        assert_eq!(through_the_proxy(&mut again, &former, &mut Vec::new()), rerouted);
        assert_eq!(again, container);
        (container["livenessProbe"].clone(), rerouted.ask, warnings)
    }

    #[test]
    fn each_kind_of_probe_goes_through_the_proxy() {
        let ours = json!({"path": "/alive?container=app", "port": 4141, "scheme": "HTTP"});
        let (probe, ask, _) = rerouted(
            json!({"httpGet": {"path": "/healthz", "port": "web", "httpHeaders": [{"name": "X", "value": "y"}]}, "periodSeconds": 3, "timeoutSeconds": 4}),
        );
        assert_eq!(probe, json!({"httpGet": ours, "periodSeconds": 3, "timeoutSeconds": 4}));
        assert_eq!(ask, Some(json!({"container": "app", "timeoutSeconds": 4, "httpGet": {"port": 8080, "path": "/healthz", "headers": [["X", "y"]]}})));
        let (probe, ask, _) = rerouted(json!({"tcpSocket": {"port": 9000}, "failureThreshold": 5}));
        assert_eq!(probe, json!({"httpGet": ours, "failureThreshold": 5}));
        assert_eq!(ask, Some(json!({"container": "app", "timeoutSeconds": 1, "tcpSocket": {"port": 9000}})));
        let (_, ask, _) = rerouted(json!({"grpc": {"port": 9000, "service": "cart"}}));
        assert_eq!(ask, Some(json!({"container": "app", "timeoutSeconds": 1, "grpc": {"port": 9000, "service": "cart"}})));
        let (probe, ask, _) = rerouted(json!({"exec": {"command": ["cat", "/alive"]}}));
        assert_eq!(probe["exec"]["command"], json!(["/.bluebox/bluebox", "alive", "--admin=127.0.0.1:4141", "--container=app", "--", "cat", "/alive"]));
        assert_eq!(ask, None);
        let (probe, ask, _) = rerouted(Value::Null);
        assert_eq!((&probe["httpGet"], ask), (&ours, None));
    }

    #[test]
    fn what_the_proxy_can_t_ask_stays_and_is_told() {
        for (probe, says) in [
            (json!({"httpGet": {"port": 8443, "scheme": "HTTPS"}}), "HTTPS"),
            (json!({"httpGet": {"port": 80, "host": "elsewhere"}}), "another host"),
            (json!({"tcpSocket": {"port": "unknown"}}), "none of the container's"),
            (json!({"tomorrow": {"port": 1}}), "doesn't know"),
        ] {
            let (after, ask, warnings) = rerouted(probe.clone());
            assert_eq!((after, ask), (probe, None));
            assert!(warnings[0].contains(says) && warnings[0].contains("container app"), "{warnings:?}");
        }
    }
}

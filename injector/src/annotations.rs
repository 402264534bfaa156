//! What a pod's annotations ask for. Every mistake in one is found, not just the first.
//!
//! None of them chooses an image, a command, a security context or a mount of what is injected.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bluebox_core::ComponentName;
use bluebox_core::nearest::nearest;

use crate::mistake::Mistake;
use crate::quantity::Quantity;
use crate::redirect::Redirect;

/// What the names of all annotations begin with.
pub const PREFIX: &str = "bluebox.dev/";
/// The annotation in which the injector says what it did.
pub const INJECTED: &str = "bluebox.dev/injected";

/// The limits of a proxy that annotations can name, and their values: what `bluebox proxy` has as flags.
pub trait Limits: Send + Sync {
    /// Their names, such as `attempt-timeout`.
    fn names(&self) -> Vec<String>;

    /// The flag for the proxy that says it.
    ///
    /// # Errors
    /// When it can't have that value; why not.
    fn flag(&self, name: &str, value: &str) -> Result<String, String>;
}

/// A component on a box, as an annotation names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: ComponentName,
    /// The port at which its app listens; without one, the container's.
    pub port: Option<u16>,
}

/// What the app speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    H2c,
}

/// How the calls to a component are shared among its boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Any box takes any call.
    #[default]
    Service,
    /// A call goes to one ordinal: a pod of a StatefulSet.
    Stateful,
}

/// How the halves of a pod are to be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartChoice {
    /// Together, in the way that the cluster has.
    #[default]
    Together,
    /// Together, by the app's liveness probes, even where the cluster has restart rules.
    Probes,
    /// Each alone.
    Separate,
}

/// What annotations ask for. What none of them says is `None`, or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// Which components the pod serves, and who it is when it calls: the first.
    pub components: Vec<Named>,
    /// The port at which the app listens, of a pod with one component.
    pub port: Option<u16>,
    /// The class of all components of which `classes` says none.
    pub class: Class,
    /// The class of some of them.
    pub classes: Vec<(ComponentName, Class)>,
    /// The ports at which the components can be called.
    pub call_ports: Vec<u16>,
    /// What the app speaks.
    pub protocol: Option<Protocol>,
    /// Partitions of the components' topics.
    pub partitions: Option<u32>,
    /// The largest request body, as the proxy reads it.
    pub body_limit: Option<String>,
    /// Whether what can't be durable goes straight to the app.
    pub streams_pass: bool,
    /// The containers that are the app; by default all.
    pub app_containers: Vec<String>,
    /// Hosts that the app reaches without the proxy.
    pub excluded_hosts: Vec<String>,
    /// Ports elsewhere that it reaches so.
    pub excluded_ports: Vec<u16>,
    /// How the app's calls come to the proxy.
    pub redirect: Option<Redirect>,
    /// How app and proxy are restarted.
    pub restart: RestartChoice,
    /// Whether they are restarted when the app hangs.
    pub restart_on_hang: bool,
    /// What the proxy logs.
    pub log_level: Option<String>,
    /// Whether it does so in JSON.
    pub log_json: bool,
    /// What the proxy asks of its node.
    pub cpu_request: Option<Quantity>,
    /// See `cpu_request`.
    pub memory_request: Option<Quantity>,
    /// What the proxy may have at most.
    pub cpu_limit: Option<Quantity>,
    /// See `cpu_limit`.
    pub memory_limit: Option<Quantity>,
    /// Limits, as flags of the proxy.
    pub limits: Vec<String>,
}

impl Asked {
    /// The class of one of the components.
    pub fn class_of(&self, component: &ComponentName) -> Class {
        self.classes.iter().find(|(name, _)| name == component).map_or(self.class, |(_, class)| *class)
    }

    /// The networks among the excluded hosts, and the single addresses. The rest are names.
    pub fn excluded_networks(&self) -> impl Iterator<Item = &str> {
        self.excluded_hosts.iter().map(String::as_str).filter(|host| is_network(host))
    }
}

const COMPONENT: &str = "component";
const COMPONENTS: &str = "components";
const PORT: &str = "port";
/// All annotations but the limits, which the proxy knows.
const OWN: [&str; 21] = [
    COMPONENT,
    COMPONENTS,
    "class",
    PORT,
    "call-ports",
    "protocol",
    "partitions",
    "body-limit",
    "streams",
    "app-containers",
    "excluded-hosts",
    "excluded-ports",
    "redirect",
    "restart",
    "restart-on-hang",
    "log-level",
    "log-format",
    "cpu-request",
    "memory-request",
    "cpu-limit",
    "memory-limit",
];
/// At most as many of anything that is a list: more are a mistake.
const MOST: usize = 64;

/// Reads the annotations of a pod.
///
/// # Errors
/// All mistakes in them.
pub fn read(annotations: &BTreeMap<String, String>, limits: &dyn Limits) -> Result<Asked, Vec<Mistake>> {
    let mut asked = Asked::default();
    let mut mistakes = Vec::new();
    let names = limits.names();
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(PREFIX) && *key != INJECTED) {
        let name = &key[PREFIX.len()..];
        let read = if names.iter().any(|known| known == name) {
            limits.flag(name, value).map(|flag| asked.limits.push(flag))
        } else {
            one(name, value.trim(), &mut asked, &names)
        };
        if let Err(remedy) = read {
            mistakes.push(Mistake::new(format!("annotation {key}"), value, remedy));
        }
    }
    contradictions(annotations, &asked, &mut mistakes);
    if mistakes.is_empty() { Ok(asked) } else { Err(mistakes) }
}

fn one(name: &str, value: &str, asked: &mut Asked, limits: &[String]) -> Result<(), String> {
    match name {
        COMPONENT => asked.components = vec![Named { name: component(value)?, port: None }],
        COMPONENTS => asked.components = list(value, named)?,
        "class" if value.contains('=') => asked.classes = list(value, classed)?,
        "class" => asked.class = class(value)?,
        PORT => asked.port = Some(port(value)?),
        "call-ports" => asked.call_ports = list(value, port)?,
        "protocol" => {
            asked.protocol = Some(match value {
                "http1" => Protocol::Http1,
                "h2c" => Protocol::H2c,
                _ => return Err("an app speaks http1 or h2c".to_owned()),
            });
        }
        "partitions" => {
            let partitions = value.parse().ok().filter(|count| (1..=1024).contains(count));
            asked.partitions = Some(partitions.ok_or("write a number from 1 to 1024")?);
        }
        "body-limit" => {
            let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = ["", "B", "KiB", "MiB", "GiB", "KB", "MB", "GB"].contains(&&value[digits.len()..]);
            let number = digits.parse::<u32>().is_ok_and(|number| number > 0);
            asked.body_limit = Some((number && unit).then(|| value.to_owned()).ok_or("write a size such as 64MiB")?);
        }
        "streams" => {
            asked.streams_pass = match value {
                "refuse" => false,
                "pass" => true,
                _ => return Err("streams are refuse (a clear error) or pass (straight to the app, not durable)".to_owned()),
            };
        }
        "app-containers" => asked.app_containers = list(value, |name| Ok(name.to_owned()))?,
        "excluded-hosts" => asked.excluded_hosts = list(value, host)?,
        "excluded-ports" => asked.excluded_ports = list(value, port)?,
        "redirect" => asked.redirect = Some(value.parse::<Redirect>().map_err(|error| error.to_string())?),
        "restart" => {
            asked.restart = match value {
                "together" => RestartChoice::Together,
                "probes" => RestartChoice::Probes,
                "separate" => RestartChoice::Separate,
                _ => {
                    return Err(
                        "app and proxy are restarted together (by restart rules where the cluster has them), by probes (together, but never by rules) or separate".to_owned()
                    );
                }
            };
        }
        "restart-on-hang" => {
            asked.restart_on_hang = match value {
                "true" => true,
                "false" => false,
                _ => return Err("write true or false".to_owned()),
            };
        }
        "log-level" => asked.log_level = Some(level(value)?),
        "log-format" => {
            asked.log_json = match value {
                "text" => false,
                "json" => true,
                _ => return Err("write text or json".to_owned()),
            };
        }
        "cpu-request" => asked.cpu_request = Some(Quantity::try_new(value)?),
        "memory-request" => asked.memory_request = Some(Quantity::try_new(value)?),
        "cpu-limit" => asked.cpu_limit = Some(Quantity::try_new(value)?),
        "memory-limit" => asked.memory_limit = Some(Quantity::try_new(value)?),
        "injection" => return Err("this is a label, not an annotation".to_owned()),
        unknown => return Err(did_you_mean(unknown, limits)),
    }
    Ok(())
}

fn contradictions(annotations: &BTreeMap<String, String>, asked: &Asked, mistakes: &mut Vec<Mistake>) {
    let given = |name: &str| annotations.get(&format!("{PREFIX}{name}"));
    let mut wrong =
        |name: &str, remedy: &str| mistakes.push(Mistake::new(format!("annotation {PREFIX}{name}"), given(name).map_or("", String::as_str), remedy));
    if given(COMPONENT).is_some() && given(COMPONENTS).is_some() {
        wrong(COMPONENT, "leave it out: bluebox.dev/components says the same, and more");
    }
    if given(PORT).is_some() && given(COMPONENTS).is_some() {
        wrong(PORT, "leave it out: bluebox.dev/components has the port of each, as in cart=8080,stock=8081");
    }
    if asked.restart == RestartChoice::Separate && asked.restart_on_hang {
        wrong("restart-on-hang", "leave it out: with bluebox.dev/restart: separate nothing restarts the app");
    }
    if let Some((other, _)) = asked.classes.iter().find(|(name, _)| !asked.components.iter().any(|named| named.name == *name)) {
        wrong("class", &format!("{other} is no component of this pod: name those in {PREFIX}components, or say the class alone"));
    }
    let names: Vec<_> = asked.components.iter().map(|named| &named.name).collect();
    if names.iter().enumerate().any(|(at, name)| names[..at].contains(name)) {
        wrong(COMPONENTS, "name each component once");
    }
    for (request, limit, name) in [(&asked.cpu_request, &asked.cpu_limit, "cpu-request"), (&asked.memory_request, &asked.memory_limit, "memory-request")] {
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            wrong(name, "ask for no more than the limit");
        }
    }
}

fn component(text: &str) -> Result<ComponentName, String> {
    ComponentName::try_new(text).map_err(|error| error.to_string())
}

fn named(text: &str) -> Result<Named, String> {
    let (name, at) = text.split_once('=').ok_or("write each component with its port: cart=8080,stock=8081")?;
    Ok(Named { name: component(name.trim())?, port: Some(port(at.trim())?) })
}

fn class(text: &str) -> Result<Class, String> {
    match text {
        "service" => Ok(Class::Service),
        "stateful" => Ok(Class::Stateful),
        "actor" => Err("this version serves no actors yet; a component is a service or stateful".to_owned()),
        _ => Err("a component is a service (any pod takes any call) or stateful (a call goes to one pod of a StatefulSet)".to_owned()),
    }
}

fn classed(text: &str) -> Result<(ComponentName, Class), String> {
    let (name, kind) = text.split_once('=').ok_or("write one class for all, or each component with its own: cart=stateful,stock=service")?;
    Ok((component(name.trim())?, class(kind.trim())?))
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| "write a port: 1 to 65535".to_owned())
}

/// As they stand in `NO_PROXY`: a name, a domain with its dot, an address.
fn host(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._:[]/*".contains(c);
    if text.len() <= 253 && text.chars().all(legal) { Ok(text.to_owned()) } else { Err("write names or addresses: db.example,10.0.0.7".to_owned()) }
}

/// Whether it is an address, or addresses that begin alike (`10.0.0.0/8`).
fn is_network(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok_and(|prefix| prefix <= bits))
}

fn level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let module = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let part = |part: &str| match part.split_once('=') {
        Some((name, level)) => module(name) && LEVELS.contains(&level),
        None => LEVELS.contains(&part),
    };
    if text.len() <= 200 && text.split(',').all(part) {
        Ok(text.to_owned())
    } else {
        Err("write error, warn, info, debug or trace; or by module, as in info,bluebox_proxy=debug".to_owned())
    }
}

fn list<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err("write one or more, with commas between them".to_owned());
    }
    if parts.len() > MOST {
        return Err(format!("at most {MOST}"));
    }
    parts.into_iter().map(read).collect()
}

fn did_you_mean(unknown: &str, limits: &[String]) -> String {
    let known = OWN.iter().copied().chain(limits.iter().map(String::as_str));
    match nearest(unknown, known) {
        Some(name) => format!("there is no such annotation; did you mean {PREFIX}{name}?"),
        None => "there is no such annotation; docs/kubernetes.md has them all".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two limits, for tests: the proxy's own are where its flags are.
    pub(crate) struct TwoLimits;

    impl Limits for TwoLimits {
        fn names(&self) -> Vec<String> {
            vec!["wait".to_owned(), "attempt-timeout".to_owned()]
        }

        fn flag(&self, name: &str, value: &str) -> Result<String, String> {
            if value.ends_with('s') { Ok(format!("--{name}={value}")) } else { Err("write a duration".to_owned()) }
        }
    }

    fn reading(all: &[(&str, &str)]) -> Result<Asked, String> {
        let annotations = all.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect();
        read(&annotations, &TwoLimits).map_err(|mistakes| mistakes.iter().map(|m| format!("{m}\n")).collect())
    }

    #[test]
    fn all_of_them() {
        let asked = reading(&[
            ("components", "cart=8080, stock=8081"),
            ("class", "stock=stateful"),
            ("call-ports", "80,8080"),
            ("protocol", "h2c"),
            ("partitions", "8"),
            ("body-limit", "1MiB"),
            ("streams", "pass"),
            ("app-containers", "app,helper"),
            ("excluded-hosts", "db.example,.corp,10.0.0.0/8"),
            ("excluded-ports", "5432,6379"),
            ("redirect", "nftables"),
            ("restart", "together"),
            ("restart-on-hang", "true"),
            ("log-level", "info,bluebox_proxy=debug"),
            ("log-format", "json"),
            ("cpu-request", "10m"),
            ("cpu-limit", "0.5"),
            ("memory-request", "64Mi"),
            ("memory-limit", "1Gi"),
            ("attempt-timeout", "30s"),
            ("injected", "whatever the injector said"),
        ])
        .unwrap();
        assert_eq!(asked.components.iter().map(|c| (c.name.as_str(), c.port)).collect::<Vec<_>>(), [("cart", Some(8080)), ("stock", Some(8081))]);
        assert_eq!(asked.limits, ["--attempt-timeout=30s"]);
        assert_eq!((&asked.call_ports[..], asked.partitions, asked.protocol), (&[80, 8080][..], Some(8), Some(Protocol::H2c)));
        assert_eq!((asked.excluded_hosts.len(), asked.excluded_networks().collect::<Vec<_>>()), (3, vec!["10.0.0.0/8"]));
        assert_eq!((&asked.excluded_ports[..], asked.redirect), (&[5432, 6379][..], Some(Redirect::Nftables)));
        let class = |name: &str| asked.class_of(&ComponentName::try_new(name).unwrap());
        assert_eq!((class("cart"), class("stock")), (Class::Service, Class::Stateful));
        assert_eq!(reading(&[("class", "stateful")]).unwrap().class_of(&ComponentName::try_new("cart").unwrap()), Class::Stateful);
        assert_eq!(reading(&[("component", "cart"), ("port", "8080")]).unwrap().port, Some(8080));
        let restart = |value| reading(&[("restart", value)]).unwrap().restart;
        assert_eq!(["together", "probes", "separate"].map(restart), [RestartChoice::Together, RestartChoice::Probes, RestartChoice::Separate]);
    }

    #[test]
    fn every_mistake_says_which_what_and_what_would_be_right() {
        for (name, value, says) in [
            ("component", "Cart", "lower-case"),
            ("component", "bluebox", "reserved"),
            ("components", "cart", "cart=8080"),
            ("components", "cart=8080,cart=8081", "once"),
            ("components", "cart=8080,,", "commas"),
            ("class", "actor", "no actors yet"),
            ("class", "database", "stateful (a call goes to one pod"),
            ("class", "cart=stateful", "no component of this pod"),
            ("class", "cart=stateful,stock", "cart=stateful,stock=service"),
            ("excluded-ports", "http", "1 to 65535"),
            ("port", "http", "1 to 65535"),
            ("port", "0", "1 to 65535"),
            ("call-ports", "80+81", "1 to 65535"),
            ("protocol", "h3", "http1 or h2c"),
            ("partitions", "0", "1 to 1024"),
            ("body-limit", "much", "64MiB"),
            ("body-limit", "64Mébibytes", "64MiB"),
            ("streams", "maybe", "refuse"),
            ("excluded-hosts", "a b", "names or addresses"),
            ("excluded-hosts", "$(SECRET)", "names or addresses"),
            ("redirect", "transparent", "nftables"),
            ("restart", "never", "or separate"),
            ("restart", "rules", "together (by restart rules where the cluster has them)"),
            ("restart-on-hang", "yes", "true or false"),
            ("log-level", "loud", "debug"),
            ("log-format", "xml", "json"),
            ("cpu-request", "ten", "100m"),
            ("attempt-timeout", "30", "write a duration"),
            ("atempt-timeout", "30s", "did you mean bluebox.dev/attempt-timeout?"),
            ("image", "evil", "no such annotation"),
            ("injection", "enabled", "label"),
        ] {
            let text = reading(&[(name, value)]).unwrap_err();
            assert!(text.contains(&format!("bluebox.dev/{name}")) && text.contains(&format!("{value:?}")) && text.contains(says), "{name}={value}: {text}");
        }
        let text = reading(&[("cpu-request", "2"), ("cpu-limit", "1500m")]).unwrap_err();
        assert!(text.contains("no more than the limit"), "{text}");
    }

    #[test]
    fn the_docs_have_all_of_them() {
        for name in OWN {
            assert!(include_str!("../../docs/kubernetes.md").contains(&format!("`{PREFIX}{name}`")), "docs/kubernetes.md does not have {name}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = reading(&[("component", "A"), ("components", "b=1"), ("port", "x"), ("nonsense", "1")]).unwrap_err();
        assert_eq!(text.lines().count(), 5, "{text}");
    }
}

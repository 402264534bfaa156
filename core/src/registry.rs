//! Which components exist, and where their calls go.
//!
//! A compacted topic with one partition; the key of a record is the component's name. First writer wins: a registration under another class or with another number of
//! partitions than the one that is there is no change, and its writer is told so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ComponentName;
use crate::routing::Routing;

/// What kind of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Stateless: any replica takes any call.
    Service,
    /// A call goes to one ordinal: partition *i* is ordinal *i*'s.
    Stateful,
    /// A call goes to the owner of its actor's bucket.
    Actor,
}

/// What is done with an exchange that can't be durable (WebSocket, gRPC, CONNECT) to a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Streams {
    /// It is refused with a clear error.
    #[default]
    Refuse,
    /// It goes straight to a box, without the log.
    Pass,
}

/// What the registry says of a component. Everything a caller must know to call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its class; fixed.
    pub class: Class,
    /// Partitions of its topics; fixed. Of a stateful component: how many ordinals it can ever have.
    pub partitions: u32,
    /// The ports at which it can be called; a call to another port of the same name is passed through.
    #[serde(default = "default_ports")]
    pub ports: Vec<u16>,
    /// The largest request body, in bytes.
    #[serde(default = "default_body_limit")]
    pub body_limit_bytes: u64,
    /// What becomes of exchanges that can't be durable.
    #[serde(default)]
    pub streams: Streams,
    /// Where a box of it can be reached without the log: `host:port`. Only for `streams: pass`. Of a stateful component, in the order of its ordinals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<String>,
    /// How a call finds its partition.
    #[serde(default, skip_serializing_if = "Routing::is_usual")]
    pub routing: Routing,
}

fn default_ports() -> Vec<u16> {
    vec![80]
}

/// The largest body if nothing else is said: 64 MiB.
pub const DEFAULT_BODY_LIMIT_BYTES: u64 = 64 << 20;

const fn default_body_limit() -> u64 {
    DEFAULT_BODY_LIMIT_BYTES
}

/// Partitions of a service if nothing else is said.
pub const DEFAULT_PARTITIONS: u32 = 32;

impl Default for Component {
    fn default() -> Self {
        Self {
            class: Class::Service,
            partitions: DEFAULT_PARTITIONS,
            ports: default_ports(),
            body_limit_bytes: DEFAULT_BODY_LIMIT_BYTES,
            streams: Streams::default(),
            direct: Vec::new(),
            routing: Routing::default(),
        }
    }
}

/// A registration that lost against an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "component {name}: it is registered as {there:?} with {there_partitions} partitions, not as {asked:?} with {asked_partitions}; class and partitions are fixed when a component is first registered"
)]
pub struct Conflict {
    /// Which component.
    pub name: ComponentName,
    /// The class that it has.
    pub there: Class,
    /// The partitions that it has.
    pub there_partitions: u32,
    /// The class that was asked for.
    pub asked: Class,
    /// The partitions that were asked for.
    pub asked_partitions: u32,
}

/// The registry as read so far: a pure fold over its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    components: BTreeMap<ComponentName, Component>,
}

impl Registry {
    /// Takes in one record. A record that can't be read is an error and changes nothing.
    ///
    /// # Errors
    /// [`Malformed`] when key or value make no sense; [`Conflict`] when the record lost against an earlier one.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), ApplyError> {
        let name = std::str::from_utf8(key).ok().and_then(|k| ComponentName::try_new(k).ok()).ok_or(Malformed)?;
        let Some(value) = value else {
            self.components.remove(&name);
            return Ok(());
        };
        let component: Component = serde_json::from_slice(value).map_err(|_| Malformed)?;
        if component.partitions == 0 {
            return Err(Malformed.into());
        }
        self.agrees(&name, &component)?;
        self.components.insert(name, component);
        Ok(())
    }

    /// Whether `component` could be registered under `name`.
    ///
    /// # Errors
    /// When another class or number of partitions is there already.
    pub fn agrees(&self, name: &ComponentName, component: &Component) -> Result<(), Conflict> {
        match self.components.get(name) {
            Some(there) if (there.class, there.partitions) != (component.class, component.partitions) => Err(Conflict {
                name: name.clone(),
                there: there.class,
                there_partitions: there.partitions,
                asked: component.class,
                asked_partitions: component.partitions,
            }),
            _ => Ok(()),
        }
    }

    /// The component of that name.
    pub fn get(&self, name: &str) -> Option<(&ComponentName, &Component)> {
        self.components.get_key_value(name)
    }

    /// The component that a host names, in lower case: by its name or, for a stateful one, as `NAME-2.NAME`, which is one ordinal of it. Whether it can have that
    /// ordinal is for the caller to see.
    pub fn find(&self, host: &str) -> Option<(&ComponentName, &Component, Option<u32>)> {
        if let Some((name, component)) = self.get(host) {
            return Some((name, component, None));
        }
        let (name, ordinal) = ordinal_of(host)?;
        self.get(name).filter(|(_, component)| component.class == Class::Stateful).map(|(name, component)| (name, component, Some(ordinal)))
    }

    /// All components, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ComponentName, &Component)> {
        self.components.iter()
    }
}

/// Name and ordinal of a host `NAME-2.NAME`, as the pods of a StatefulSet are called behind their Service; `None` for any other.
pub fn ordinal_of(host: &str) -> Option<(&str, u32)> {
    let (pod, name) = host.split_once('.')?;
    let digits = pod.strip_prefix(name)?.strip_prefix('-')?;
    // As a StatefulSet writes it: `02` is no ordinal's.
    let canonical = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if !canonical || ComponentName::try_new(name).is_err() {
        return None;
    }
    // One that is too large for a number is larger than every ordinal.
    Some((name, digits.parse().unwrap_or(u32::MAX)))
}

/// A record of the registry that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the registry can't be read")]
pub struct Malformed;

/// Why a record of the registry changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It can't be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It lost against an earlier one.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// How long a call stays deliverable if nothing else is said: 24 h.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// How long a caller's connection is held if nothing else is said: 5 min.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_an_ordinal_as_a_stateful_set_does() {
        for (host, is) in [
            ("app-0.app", Some(("app", 0))),
            ("app-12.app", Some(("app", 12))),
            ("a-1-2.a-1", Some(("a-1", 2))),
            ("app-99999999999.app", Some(("app", u32::MAX))),
        ] {
            assert_eq!(ordinal_of(host), is, "{host}");
        }
        for host in ["app", "app-2", "app-.app", "app-02.app", "app-+2.app", "app-2.web", "app2.app", "app-2.app.svc", "-2.", "bluebox-2.bluebox", ""] {
            assert_eq!(ordinal_of(host), None, "{host}");
        }
    }

    #[test]
    fn only_a_stateful_component_has_ordinals() {
        let mut registry = Registry::default();
        for (name, class) in [("app", Class::Stateful), ("web", Class::Service)] {
            let component = Component { class, ..Component::default() };
            registry.apply(name.as_bytes(), Some(&serde_json::to_vec(&component).unwrap())).unwrap();
        }
        let find = |host| registry.find(host).map(|(name, _, ordinal)| (name.as_str(), ordinal));
        assert_eq!(find("app"), Some(("app", None)));
        assert_eq!(find("app-3.app"), Some(("app", Some(3))));
        assert_eq!(find("web"), Some(("web", None)));
        assert_eq!((find("web-3.web"), find("x-1.x")), (None, None));
    }
}

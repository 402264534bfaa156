//! Which components exist, and where their calls go.
//!
//! A compacted topic with one partition; the key of a record is the component's name. First writer wins: a registration under another class or with another number of
//! partitions than the one that is there is no change, and its writer is told so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ComponentName;

/// What kind of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Stateless: any replica takes any call.
    Service,
    /// A call goes to the replica of its partition.
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
    /// Partitions of its topics; fixed.
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
    /// Where a box of it can be reached without the log: `host:port`. Only for `streams: pass`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<String>,
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

    /// All components, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ComponentName, &Component)> {
        self.components.iter()
    }
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

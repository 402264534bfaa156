//! The registry, read and written: which components there are, and that this box's are among them.
//!
//! The rules are those of [`bluebox_core::registry`]; here is the I/O around them. With the log away it goes on trying; nothing waits for it but what needs it.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::log::{AppendError, Log, LogError, Offset, Read, Reader, Record, Topic, TopicSpec};
use bluebox_core::registry::{ApplyError, Class, Component, Conflict, Registry};
use bluebox_core::topics::{Prefix, Retention};
use bytes::Bytes;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::Served;
use crate::names::Names;

/// The registry as far as this proxy has read it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    /// The components.
    pub registry: Arc<Registry>,
    /// Whether it was read to the end that it had when this proxy started; before, what is not in it may still be a component.
    pub complete: bool,
    /// What of the registry's partition was read: all below.
    pub read_to: Offset,
    /// Whether this box's own components are in it and all topics that it needs are there.
    pub registered: bool,
    /// By which names components go besides their own.
    pub names: Names,
}

impl Directory {
    /// The component that the host of a request names, and which ordinal of it, if it names one; the host is in lower case.
    pub fn component(&self, host: &str) -> Option<(&ComponentName, &Component, Option<u32>)> {
        let longer = || self.registry.get(self.names.hosted(host)?).map(|(name, component)| (name, component, None));
        self.registry.find(host).or_else(longer)
    }

    /// The same, if all these ports are the component's: at another one it is a server like any other.
    pub fn component_at(&self, host: &str, ports: &[u16]) -> Option<(&ComponentName, &Component, Option<u32>)> {
        self.component(host).filter(|(_, component, _)| ports.iter().all(|port| component.ports.contains(port)))
    }
}

/// Why this box can't be what it is told to be. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A component of that name is there already, and another one.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A topic is there already, with another number of partitions.
    #[error(
        "topic {topic}: it has {there} partitions, not {wanted}; delete the topic if nothing in it is wanted, or set the component's partitions to {there}"
    )]
    Partitions {
        /// Which topic.
        topic: Topic,
        /// The partitions that it has.
        there: u32,
        /// The partitions that the component was to have.
        wanted: u32,
    },
    /// The component can't be served as it is said, or can't be written down.
    #[error("component {name}: {problem}")]
    Invalid {
        /// Which component.
        name: ComponentName,
        /// What is wrong with it.
        problem: String,
    },
}

/// Who wants what registered.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Names of topics begin with it.
    pub prefix: Prefix,
    /// Who calls from this box.
    pub caller: ComponentName,
    /// The components that this box serves.
    pub serves: Vec<Served>,
    /// How long the topics keep what.
    pub retention: Retention,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Makes the topics, reads the registry, writes down this box's components, and goes on following the registry until the log's client is closed.
///
/// Cancel safe: what was made stays made.
///
/// # Errors
/// When what is there contradicts what this box is told to be; see [`RegisterError`].
pub async fn follow(log: Arc<dyn Log>, mine: Registration, directory: watch::Sender<Directory>) -> Result<(), RegisterError> {
    for served in &mine.serves {
        can_be_served(served).map_err(|problem| RegisterError::Invalid { name: served.name.clone(), problem })?;
    }
    let topic = mine.prefix.registry();
    let partition = topic.partition(0);
    make_topics(&*log, own_topics(&mine, &topic)).await;

    let bounds = persist("the registry can't be read", || log.bounds(&partition)).await;
    let mut following = Following { reader: log.read(&partition, bounds.start), registry: Registry::default(), next: bounds.start, directory };
    if !following.read_up_to(bounds.end).await {
        return Ok(());
    }
    let read_to = following.next;
    following.directory.send_modify(|d| (d.complete, d.read_to) = (true, read_to));

    // Who comes second is told so before anything is made for it, or said about topics that are another's.
    for served in &mine.serves {
        following.registry.agrees(&served.name, &served.component)?;
    }
    make_topics(&*log, served_topics(&mine)).await;
    check_partitions(&*log, &mine).await?;

    for served in &mine.serves {
        following.registry.agrees(&served.name, &served.component)?;
        if following.registry.get(served.name.as_str()).is_some_and(|(_, there)| *there == served.component) {
            continue;
        }
        let invalid = |problem: String| RegisterError::Invalid { name: served.name.clone(), problem };
        let value = serde_json::to_vec(&served.component).map_err(|e| invalid(e.to_string()))?;
        let record = Record::keyed(Bytes::copy_from_slice(served.name.as_str().as_bytes()), value.into());
        // Written twice is as good as once, so a doubtful append is simply made again.
        let mut pause = FIRST_PAUSE;
        let appended = loop {
            match log.append(&partition, record.clone()).await {
                Ok(appended) => break appended,
                Err(e @ AppendError::TooLarge { .. }) => return Err(invalid(e.to_string())),
                Err(e) => warn!(component = %served.name, problem = %e, "a component could not be registered yet; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        };
        // First writer wins: only what is read back counts.
        if !following.read_up_to(appended.offset.next()).await {
            return Ok(());
        }
        following.registry.agrees(&served.name, &served.component)?;
        info!(component = %served.name, partitions = served.component.partitions, "registered a component");
    }
    following.directory.send_modify(|d| d.registered = true);
    while following.read_on().await {}
    Ok(())
}

/// Whether class, partitions and ordinal go together.
fn can_be_served(served: &Served) -> Result<(), String> {
    let partitions = served.component.partitions;
    match (served.component.class, served.ordinal) {
        (Class::Service, None) => Ok(()),
        (Class::Service, Some(ordinal)) => {
            Err(format!("ordinal {ordinal}: only a stateful component has ordinals; say `class=stateful`, or leave the ordinal out"))
        }
        (Class::Stateful, Some(ordinal)) if ordinal < partitions => Ok(()),
        (Class::Stateful, Some(ordinal)) => {
            let last = partitions.saturating_sub(1);
            Err(format!(
                "ordinal {ordinal}: with {partitions} partitions the ordinals are 0 to {last}; partitions are fixed when the component is first registered"
            ))
        }
        (Class::Stateful, None) => Err("a box of a stateful component must be told which ordinal it is, such as `ordinal=0`".to_owned()),
        (Class::Actor, _) => Err("class `actor` can't be served yet; `service` and `stateful` can".to_owned()),
    }
}

/// The topics that a box needs to call.
fn own_topics(mine: &Registration, registry: &Topic) -> Vec<TopicSpec> {
    let mut specs = vec![TopicSpec { topic: registry.clone(), partitions: 1, retention: None, compacted: true, compaction_lag: None }];
    specs.extend(mine.prefix.topics(&mine.caller).caller_specs(&mine.retention));
    specs
}

/// Those of the components that it serves.
fn served_topics(mine: &Registration) -> Vec<TopicSpec> {
    let mut specs = Vec::new();
    for served in &mine.serves {
        let topics = mine.prefix.topics(&served.name);
        specs.extend(topics.callee_specs(served.component.class, served.component.partitions, &mine.retention));
        if served.name != mine.caller {
            specs.extend(topics.caller_specs(&mine.retention));
        }
    }
    specs
}

async fn make_topics(log: &dyn Log, specs: Vec<TopicSpec>) {
    if !specs.is_empty() {
        persist("the topics can't be made", || log.create_topics(specs.clone())).await;
    }
}

async fn check_partitions(log: &dyn Log, mine: &Registration) -> Result<(), RegisterError> {
    for served in &mine.serves {
        let wanted = served.component.partitions;
        for spec in mine.prefix.topics(&served.name).callee_specs(served.component.class, wanted, &mine.retention) {
            let there = persist("the partitions of a topic can't be counted", || log.partitions(&spec.topic)).await.unwrap_or(wanted);
            if there != wanted {
                return Err(RegisterError::Partitions { topic: spec.topic, there, wanted });
            }
        }
    }
    Ok(())
}

/// Asks until there is an answer. Says so once when it has to, and once when it worked after all.
async fn persist<T: Unpin>(trouble: &'static str, ask: impl Fn() -> bluebox_core::log::Pending<T>) -> T {
    let mut pause = FIRST_PAUSE;
    let mut said: Option<LogError> = None;
    loop {
        match ask().await {
            Ok(answer) => {
                if said.is_some() {
                    info!("{trouble}: over now");
                }
                return answer;
            }
            Err(e) => {
                if said.as_ref() != Some(&e) {
                    warn!(problem = %e, "{trouble}; trying again");
                    said = Some(e);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

struct Following {
    reader: Reader,
    registry: Registry,
    next: Offset,
    directory: watch::Sender<Directory>,
}

impl Following {
    /// Reads until everything below `end` has been seen. False when the log's client was closed.
    async fn read_up_to(&mut self, end: Offset) -> bool {
        while self.next < end {
            if !self.read_on().await {
                return false;
            }
        }
        true
    }

    /// Reads the next records. False when the log's client was closed.
    async fn read_on(&mut self) -> bool {
        match self.reader.next().await {
            Some(Read::Entries(entries)) => {
                let mut changed = false;
                for entry in entries {
                    self.next = entry.offset.next();
                    match self.registry.apply(&entry.record.key, entry.record.value.as_deref()) {
                        Ok(()) => changed = true,
                        Err(ApplyError::Conflict(conflict)) => warn!(problem = %conflict, "ignored a registration that came second"),
                        Err(ApplyError::Malformed(_)) => warn!(offset = %entry.offset, "ignored a record of the registry that can't be read"),
                    }
                }
                let registry = changed.then(|| Arc::new(self.registry.clone()));
                self.directory.send_modify(|d| {
                    d.registry = registry.unwrap_or_else(|| Arc::clone(&d.registry));
                    d.read_to = self.next;
                });
                true
            }
            Some(Read::Truncated { start, .. }) => {
                self.next = self.next.max(start);
                self.directory.send_modify(|d| d.read_to = self.next);
                true
            }
            None => false,
        }
    }
}

//! The topics that belong to a component, and the partition that a call goes to.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::log::{Topic, TopicSpec};
use crate::registry::Class;
use crate::{CallId, ComponentName, planted};

/// The registry's topic, and the start of the name of every other one. Several installations on one Kafka have a prefix each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Self {
        Self("bluebox".to_owned())
    }
}

/// A prefix that topics can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic prefix {0:?}: 1 to 60 of the characters a-z A-Z 0-9 _ -")]
pub struct InvalidPrefix(String);

impl Prefix {
    /// Checks a prefix.
    ///
    /// # Errors
    /// When it has other characters than letters, digits, `_` and `-`, or more than 60.
    pub fn try_new(prefix: &str) -> Result<Self, InvalidPrefix> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if prefix.is_empty() || prefix.len() > 60 || !prefix.bytes().all(legal) {
            return Err(InvalidPrefix(prefix.chars().take(80).collect()));
        }
        Ok(Self(prefix.to_owned()))
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The compacted topic that says which components exist. One partition.
    pub fn registry(&self) -> Topic {
        Topic::new(&format!("{}.registry", self.0))
    }

    /// The topics of a component.
    pub fn topics(&self, component: &ComponentName) -> Topics {
        let topic = |suffix: &str| Topic::new(&format!("{}.{component}.{suffix}", self.0));
        Topics {
            calls: topic("calls"),
            parked: topic("parked"),
            control: topic("control"),
            recorded: topic("recorded"),
            dead_letters: topic("dead-letters"),
            frontier: topic("frontier"),
            bulk: topic("bulk"),
            replies: topic("replies"),
        }
    }
}

/// The topics of one component. The first six have its number of partitions, and partition *i* of each belongs to the owner of partition *i* of `calls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// The calls to it; its group has the same name.
    pub calls: Topic,
    /// Calls that were moved aside so that others can go on; written by the owner only.
    pub parked: Topic,
    /// Queries and cancels; read by the owner, never paused.
    pub control: Topic,
    /// Index of recorded calls, compacted; written by the owner only.
    pub recorded: Topic,
    /// Calls that were given up, with their bodies.
    pub dead_letters: Topic,
    /// Of a stateful component: who owns an ordinal, and what it has committed; compacted. Other classes have groups for that.
    pub frontier: Topic,
    /// Large bodies of the calls that this component *makes* and of the outcomes that it gives.
    pub bulk: Topic,
    /// Outcomes of the calls that this component *makes*.
    pub replies: Topic,
}

/// How long what is kept. All of it is the log's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Calls and parked calls; must be above every deadline. Default 48 h.
    pub calls: Duration,
    /// Outcomes and large bodies; above `calls`. Default 72 h.
    pub replies: Duration,
    /// The index of recorded calls. Default 24 h.
    pub recorded: Duration,
    /// Dead letters. Default 14 days.
    pub dead_letters: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self { calls: 48 * HOUR, replies: 72 * HOUR, recorded: 24 * HOUR, dead_letters: 14 * 24 * HOUR }
    }
}

/// Partitions of the reply and bulk topics of a component: its replicas spread over them.
pub const REPLY_PARTITIONS: u32 = 8;

impl Topics {
    /// What must be made before the component can be *called*.
    pub fn callee_specs(&self, class: Class, partitions: u32, keep: &Retention) -> Vec<TopicSpec> {
        let spec =
            |topic: &Topic, retention, compacted| TopicSpec { topic: topic.clone(), partitions, retention: Some(retention), compacted, compaction_lag: None };
        let mut specs = vec![
            spec(&self.calls, keep.calls, false),
            spec(&self.parked, keep.calls, false),
            spec(&self.control, Duration::from_secs(3600), false),
            spec(&self.recorded, keep.recorded, true),
            spec(&self.dead_letters, keep.dead_letters, false),
        ];
        if class == Class::Stateful {
            specs.push(TopicSpec { topic: self.frontier.clone(), partitions, retention: None, compacted: true, compaction_lag: None });
        }
        specs
    }

    /// What must be made before the component can *call*, or answer at length.
    pub fn caller_specs(&self, keep: &Retention) -> Vec<TopicSpec> {
        let spec = |topic: &Topic| TopicSpec {
            topic: topic.clone(),
            partitions: REPLY_PARTITIONS,
            retention: Some(keep.replies),
            compacted: false,
            compaction_lag: None,
        };
        vec![spec(&self.replies), spec(&self.bulk)]
    }
}

/// The partition of a call to no ordinal: by its ordering key if it has one, else by its id.
///
/// The number of partitions of a topic never changes, because this maps by it.
pub fn partition_of(id: &CallId, ordering_key: Option<&[u8]>, partitions: u32) -> u32 {
    // A client that believes in another number of partitions.
    let partitions = if planted!(OtherPartitionCount) && id.as_bytes()[15].is_multiple_of(2) { partitions.div_ceil(2) } else { partitions };
    let hash = match ordering_key {
        Some(key) => first_bytes(&Sha256::digest(key)),
        None => first_bytes(id.as_bytes()),
    };
    u32::try_from(hash % u64::from(partitions.max(1))).unwrap_or(0)
}

/// An id like this random one for a call without an ordering key that [`partition_of`] sends to `partition`.
pub fn id_in(random: CallId, partition: u32, partitions: u32) -> CallId {
    let (mut bytes, partitions) = (*random.as_bytes(), u64::from(partitions.max(1)));
    // What is above belongs to no whole round of the partitions.
    let round = first_bytes(&bytes).min(u64::MAX - partitions) / partitions;
    bytes[..8].copy_from_slice(&(round * partitions + u64::from(partition) % partitions).to_be_bytes());
    CallId::from_random(bytes)
}

fn first_bytes(of: &[u8]) -> u64 {
    of.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_to_one_partition_and_ids_spread() {
        let by_key = partition_of(&CallId::random(), Some(b"customer-7"), 32);
        assert_eq!(by_key, partition_of(&CallId::random(), Some(b"customer-7"), 32));
        let used: std::collections::BTreeSet<_> = (0..1000).map(|_| partition_of(&CallId::random(), None, 32)).collect();
        assert_eq!(used.len(), 32);
    }

    #[test]
    fn an_id_can_be_drawn_for_a_partition() {
        for partitions in [1, 3, 32, 1000, u32::MAX] {
            for random in [CallId::random(), CallId::from_bytes([0; 16]), CallId::from_bytes([255; 16])] {
                for partition in [0, partitions / 2, partitions - 1] {
                    let id = id_in(random, partition, partitions);
                    assert_eq!(partition_of(&id, None, partitions), partition, "{random} of {partitions}");
                    assert_eq!(id.as_bytes()[8..], random.as_bytes()[8..]);
                }
            }
        }
    }
}

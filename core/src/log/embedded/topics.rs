//! The topics of a log: made, looked after, and kept small.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::disk::{Ack, Disk, Job};
use super::engine::Engine;
use super::partition::Partition;
use crate::clock::millis;
use crate::log::{LogError, Timestamp, TopicSpec};

/// The most partitions that a topic can have here.
pub(super) const MAX_PARTITIONS: u32 = 4_096;

/// Tombstones of compacted topics are kept this long, so that readers see them (Kafka's `delete.retention.ms`).
const TOMBSTONE_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A topic, and its partitions by number.
pub(super) struct TopicState {
    pub(super) spec: TopicSpec,
    pub(super) partitions: Vec<Arc<Partition>>,
}

impl Engine {
    /// Makes topics; `ack` is called once they can be used.
    pub(super) fn create_topics(self: &Arc<Self>, specs: Vec<TopicSpec>, ack: Ack) {
        if let Some(refused) = specs.iter().find_map(|spec| check_topic(spec).err()) {
            return ack(Err(refused));
        }
        let engine = Arc::downgrade(self);
        match &self.disk {
            None => {
                self.install(&specs.into_iter().map(|spec| (spec, 0)).collect::<Vec<_>>());
                ack(Ok(()));
            }
            Some(disk) => {
                let install = Box::new(move |new: &[(TopicSpec, u32)]| {
                    if let Some(engine) = engine.upgrade() {
                        engine.install(new);
                    }
                });
                disk.write(Job::CreateTopics { specs, install, ack });
            }
        }
    }

    /// Takes in those of these topics that are not there yet; their partitions have these ids and the ones after them.
    fn install(&self, new: &[(TopicSpec, u32)]) {
        let mut created = Vec::new();
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        for (spec, first_id) in new {
            if topics.contains_key(&spec.topic) {
                continue;
            }
            let partitions: Vec<_> = (0..spec.partitions).map(|p| Arc::new(Partition::empty(first_id.saturating_add(p)))).collect();
            if let Some(disk) = &self.disk {
                disk.register(&partitions);
            }
            topics.insert(spec.topic.clone(), Arc::new(TopicState { spec: spec.clone(), partitions }));
            created.push(spec);
        }
        drop(topics);
        if !created.is_empty() {
            self.new_topics.send_replace(());
            for spec in created {
                self.in_groups(|groups, now| groups.topic_created(now, &spec.topic, spec.partitions));
            }
        }
    }

    /// Removes what the topics' retention and compaction no longer keep, as of `now`; where that is much work for little, only if it is to be `thorough`. Blocks
    /// while it reads the disk.
    pub(super) fn keep_house(&self, now: Timestamp, thorough: bool) {
        let topics: Vec<_> = self.topics.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let before = |age: Duration| Timestamp::from_millis(now.as_millis().saturating_sub(millis(age)));
        let mut housekeeper = self.disk.as_ref().map(Disk::housekeeper);
        for topic in topics {
            for partition in &topic.partitions {
                if let Some(oldest) = topic.spec.retention.map(before) {
                    match &mut housekeeper {
                        Some(housekeeper) => housekeeper.trim(partition, oldest),
                        None => partition.truncate(partition.first_since(oldest)),
                    }
                }
                if topic.spec.compacted {
                    let young_since = topic.spec.compaction_lag.map(before);
                    match &housekeeper {
                        Some(housekeeper) => housekeeper.compact(partition, before(TOMBSTONE_RETENTION), young_since, thorough),
                        None => partition.remove(&partition.superseded(before(TOMBSTONE_RETENTION), young_since)),
                    }
                }
            }
        }
        if let Some(mut housekeeper) = housekeeper {
            housekeeper.reclaim();
        }
    }
}

/// Retention and compaction are looked after this often.
const HOUSE: Duration = Duration::from_secs(60);

pub(super) async fn keep_house_now_and_then(engine: Weak<Engine>) {
    loop {
        tokio::time::sleep(HOUSE).await;
        let Some(strong) = engine.upgrade() else { return };
        let keep = move || strong.keep_house(crate::clock::wall_clock(), false);
        let _ = tokio::task::spawn_blocking(keep).await;
    }
}

fn check_topic(spec: &TopicSpec) -> Result<(), LogError> {
    let name = spec.topic.as_str();
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.bytes().all(legal) {
        return Err(LogError::Refused(format!("topic {name:?}: 1 to 249 of the characters a-z A-Z 0-9 . _ -")));
    }
    if spec.partitions == 0 || spec.partitions > MAX_PARTITIONS {
        return Err(LogError::Refused(format!("topic {name}: {} partitions: 1 to {MAX_PARTITIONS} are possible", spec.partitions)));
    }
    Ok(())
}

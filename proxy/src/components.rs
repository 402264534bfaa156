//! Whether there is a component of a name, for an app in the same process that others tell whom to call.
//!
//! Each proxy reads the registry for itself. So who sends such an app a name may know it, while the app's own proxy has not read of it yet. What is not known is therefore looked for at the end of
//! the registry before anybody is told that it is nothing: the log says where the end is, and [`Directory`] how far this proxy has read.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::log::{Log, TopicPartition};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::registry::Directory;

/// How long after its start a proxy waits for components to register, and how long for one.
pub(crate) const YOUTH: Duration = Duration::from_secs(30);
/// As [`YOUTH`]; and how long the registry may take to be read.
pub(crate) const REGISTER_PATIENCE: Duration = Duration::from_secs(5);

/// The log is asked so often at once where its end is; who asks besides waits for a turn.
const QUESTIONS: usize = 16;

/// The components that a proxy knows, and those that it has yet to read of.
pub struct Components {
    directory: watch::Receiver<Directory>,
    log: Arc<dyn Log>,
    registry: TopicPartition,
    questions: Semaphore,
    young_until: Instant,
}

/// It could not be found out in time what has registered: the log is away, or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the registry could not be read to its end")]
pub struct Unread;

impl Components {
    /// Those of the registry's partition in this log, which the proxy of this directory follows. It is young from now on.
    pub fn new(directory: watch::Receiver<Directory>, log: Arc<dyn Log>, registry: TopicPartition) -> Self {
        Self { directory, log, registry, questions: Semaphore::new(QUESTIONS), young_until: Instant::now() + YOUTH }
    }

    /// Whether there is such a component, with this port, as far as the registry was read.
    pub fn has(&self, name: &ComponentName, port: u16) -> bool {
        has(&self.directory.borrow(), name, port)
    }

    /// Waits until whatever had registered before this was called is known; afterwards [`Components::has`] is right about all of `names`. In the first 30 s of the proxy it also waits, 5 s at most,
    /// for names of which nothing is known: then a whole system may be starting. At once, if all are known.
    ///
    /// Cancel safe. It holds nothing but itself while it waits.
    ///
    /// # Errors
    /// When that takes longer than 5 s, or the log can't be asked.
    pub async fn learn(&self, names: &[(ComponentName, u16)]) -> Result<(), Unread> {
        let mut directory = self.directory.clone();
        tokio::time::timeout(REGISTER_PATIENCE, self.read_up_to_now(&mut directory, names)).await.map_err(|_| Unread)??;
        if Instant::now() < self.young_until {
            let are_there = |directory: &Directory| names.iter().all(|(name, _)| directory.registry.get(name.as_str()).is_some());
            // Those that don't come are not there: that is known, too.
            let _ = tokio::time::timeout(REGISTER_PATIENCE, directory.wait_for(are_there)).await;
        }
        Ok(())
    }

    async fn read_up_to_now(&self, directory: &mut watch::Receiver<Directory>, names: &[(ComponentName, u16)]) -> Result<(), Unread> {
        let known = |directory: &Directory| names.iter().all(|(name, port)| has(directory, name, *port));
        if known(&directory.borrow()) {
            return Ok(());
        }
        let end = {
            let _place = self.questions.acquire().await.map_err(|_| Unread)?;
            self.log.bounds(&self.registry).await.map_err(|_| Unread)?.end
        };
        directory.wait_for(|directory| directory.read_to >= end || known(directory)).await.map(|_| ()).map_err(|_| Unread)
    }
}

fn has(directory: &Directory, name: &ComponentName, port: u16) -> bool {
    directory.registry.get(name.as_str()).is_some_and(|(_, component)| component.ports.contains(&port))
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::embedded::Embedded;
    use bluebox_core::log::{Offset, Record, TopicSpec};
    use bluebox_core::registry::{Component, Registry};
    use bluebox_core::topics::Prefix;
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;

    /// A log whose registry has one record that nobody has read, and what a proxy has read of it so far.
    struct Scene {
        publish: watch::Sender<Directory>,
        components: Components,
        registry: Registry,
    }

    fn cart() -> (ComponentName, u16) {
        (ComponentName::try_new("cart").unwrap(), 80)
    }

    async fn scene() -> Scene {
        let (embedded, prefix) = (Embedded::in_memory(), Prefix::default());
        let log: Arc<dyn Log> = embedded.client();
        let topic = prefix.registry();
        log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: None, compacted: true, compaction_lag: None }]).await.unwrap();
        let value = serde_json::to_vec(&Component::default()).unwrap();
        log.append(&topic.partition(0), Record::keyed(Bytes::from_static(b"cart"), value.clone().into())).await.unwrap();
        let mut registry = Registry::default();
        registry.apply(b"cart", Some(&value)).unwrap();
        let publish = watch::Sender::new(Directory::default());
        let components = Components::new(publish.subscribe(), log, topic.partition(0));
        Scene { publish, components, registry }
    }

    /// It waits: however often it is looked at while nothing can have happened.
    async fn waits(learning: &mut (impl Future<Output = Result<(), Unread>> + Unpin)) {
        for _ in 0..100 {
            assert_eq!(learning.now_or_never(), None);
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_name_that_had_registered_is_known_once_its_record_is_read() {
        let scene = scene().await;
        let names = [cart()];
        let mut learning = std::pin::pin!(scene.components.learn(&names));
        waits(&mut learning).await;
        scene.publish.send_modify(|directory| {
            directory.registry = Arc::new(scene.registry.clone());
            directory.read_to = Offset::new(1);
        });
        assert_eq!(learning.await, Ok(()));
        assert!(scene.components.has(&names[0].0, 80) && !scene.components.has(&names[0].0, 81));
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_proxy_waits_for_a_name_and_later_one_that_has_read_all_says_at_once_that_it_is_nothing() {
        let scene = scene().await;
        scene.publish.send_modify(|directory| directory.read_to = Offset::new(1));
        let (names, began) = ([cart()], Instant::now());
        let comes = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            scene.publish.send_modify(|directory| directory.registry = Arc::new(scene.registry.clone()));
        };
        let (learned, ()) = tokio::join!(scene.components.learn(&names), comes);
        assert_eq!((learned, began.elapsed()), (Ok(()), Duration::from_secs(2)));

        let (nobody, began) = ([(ComponentName::try_new("nobody").unwrap(), 80)], Instant::now());
        assert_eq!(scene.components.learn(&nobody).await, Ok(()));
        assert_eq!(began.elapsed(), REGISTER_PATIENCE);

        tokio::time::sleep(YOUTH).await;
        let began = Instant::now();
        assert_eq!(scene.components.learn(&nobody).await, Ok(()));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_read_in_time_is_not_said_to_be_nothing() {
        let scene = scene().await;
        assert_eq!(scene.components.learn(&[cart()]).await, Err(Unread));
    }
}

//! Whether others may be sent to this box past Bluebox, at the address of its Service: not before its components are in the registry, while the log can be reached.
//!
//! A call to a name that no registry has is no call, but a request to a server like any other. So who calls a component in the moment between its pod's being ready and its first
//! registration would reach its app straight, and nothing of that would be durable. What comes after the proxy in its pod waits for none of this: the app may be what takes long.

use std::future::Future;
use std::time::Duration;

use bluebox_core::log::Health;
use prometheus::IntGauge;
use tokio::sync::watch;
use tracing::warn;

use crate::components::YOUTH;
use crate::metrics::Metrics;
use crate::registry::Directory;

/// A log that is away for so long after the start is not waited for. A busy one, whose first answer takes too long, is back before.
const AWAY_PATIENCE: Duration = Duration::from_secs(2);

/// Whether it is waited for any longer that the components of this box are registered. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registered(watch::Receiver<bool>);

impl Registered {
    /// Begins to wait when what is returned second is run, which has to be for as long as the proxy is. Two seconds later a log that is away is waited for no longer, and 30 s later none is:
    /// pods start with Kafka away, and with one that answers but takes no registration. That is said once, and what is ready stays so.
    ///
    /// # Errors
    /// When the count of it is there already, which is a mistake in this program.
    pub fn watch(
        directory: watch::Receiver<Directory>,
        health: watch::Receiver<Health>,
        metrics: &Metrics,
    ) -> Result<(Self, impl Future<Output = ()> + use<>), prometheus::Error> {
        let gauge = metrics
            .counts()
            .gauge("bluebox_registered", "Whether the components of this box are in the registry, and it has read that to the end that it had: 1, else 0")?;
        let (sender, receiver) = watch::channel(false);
        Ok((Self(receiver), wait(directory, health, gauge, sender)))
    }

    /// What speaks against being ready.
    pub fn problem(&self) -> Option<&'static str> {
        (!*self.0.borrow()).then_some("its components are not in the registry yet: what is sent straight to its app would not be durable")
    }
}

async fn wait(mut directory: watch::Receiver<Directory>, health: watch::Receiver<Health>, gauge: IntGauge, over: watch::Sender<bool>) {
    let given_up = tokio::select! {
        biased;
        () = is_registered(&mut directory) => None,
        () = stays_away(health) => Some("the log can't be reached"),
        () = tokio::time::sleep(YOUTH) => Some("the log can be reached, but has not taken the registration"),
    };
    over.send_replace(true);
    if let Some(why) = given_up {
        warn!(
            why,
            "this box is ready, but its components are not registered: until they are, what is sent to the address of its Service may reach its app straight, and is not durable"
        );
        is_registered(&mut directory).await;
    }
    gauge.set(1);
    std::future::pending().await
}

/// Done when all components of this box are registered. A proxy that ends publishes no more: never, then.
async fn is_registered(directory: &mut watch::Receiver<Directory>) {
    if directory.wait_for(|directory| directory.registered).await.is_err() {
        std::future::pending().await
    }
}

/// Done when the log is away, but not in the first moments.
async fn stays_away(mut health: watch::Receiver<Health>) {
    tokio::time::sleep(AWAY_PATIENCE).await;
    if health.wait_for(|health| matches!(health, Health::Away(_))).await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use bluebox_core::ComponentName;
    use bluebox_core::clock::Moment;
    use tokio::time::Instant;

    use super::*;

    struct Scene {
        directory: watch::Sender<Directory>,
        health: watch::Sender<Health>,
        metrics: Metrics,
        registered: Registered,
        _waiting: tokio::task::JoinHandle<()>,
    }

    fn scene(health: Health) -> Scene {
        let (directory, health) = (watch::Sender::new(Directory::default()), watch::Sender::new(health));
        let metrics = Metrics::try_new(&ComponentName::try_new("cart").unwrap()).unwrap();
        let (registered, waiting) = Registered::watch(directory.subscribe(), health.subscribe(), &metrics).unwrap();
        Scene { directory, health, metrics, registered, _waiting: tokio::spawn(waiting) }
    }

    impl Scene {
        fn register(&self) {
            self.directory.send_modify(|directory| (directory.complete, directory.registered) = (true, true));
        }

        /// How long it took until nothing spoke against being ready.
        async fn ready_after(&self) -> Duration {
            let began = Instant::now();
            let mut over = self.registered.0.clone();
            over.wait_for(|over| *over).await.unwrap();
            assert_eq!(self.registered.problem(), None);
            began.elapsed()
        }

        async fn gauge(&self, wanted: &str) -> bool {
            // What is told to the watcher it acts on when it runs next.
            tokio::task::yield_now().await;
            String::from_utf8(self.metrics.text()).unwrap().contains(&format!("bluebox_registered {wanted}\n"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn with_the_log_there_it_waits_for_the_registration() {
        let scene = scene(Health::Up);
        tokio::time::sleep(Duration::from_secs(20)).await;
        // To have read which components there are is not enough.
        scene.directory.send_modify(|directory| directory.complete = true);
        assert!(scene.gauge("0").await);
        assert!(scene.registered.problem().unwrap().contains("registry"));
        scene.register();
        assert_eq!(scene.ready_after().await, Duration::ZERO);
        assert!(scene.gauge("1").await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_away_is_waited_for_two_seconds() {
        let scene = scene(Health::Away(Moment::now()));
        assert_eq!(scene.ready_after().await, AWAY_PATIENCE);
        assert!(scene.gauge("0").await);
        // Ready once, it stays so: what others were told is not taken back when the log comes.
        scene.health.send_replace(Health::Up);
        assert!(scene.gauge("0").await);
        assert_eq!(scene.registered.problem(), None);
        scene.register();
        assert!(scene.gauge("1").await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_goes_away_later_is_waited_for_no_longer() {
        let scene = scene(Health::Up);
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(scene.registered.problem().is_some());
        scene.health.send_replace(Health::Away(Moment::now()));
        assert_eq!(scene.ready_after().await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_first_answer_is_late_is_waited_for() {
        let scene = scene(Health::Away(Moment::now()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.health.send_replace(Health::Up);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(scene.registered.problem().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_and_takes_no_registration_is_not_waited_for_for_ever() {
        assert_eq!(scene(Health::Up).ready_after().await, YOUTH);
    }
}

//! Taking no more calls, while calls out of the box go on: what a box does between the moment it is told to end and the moment its app does.
//!
//! SIGTERM would be too late. In a pod, the proxy gets it only after the app has ended; until then it would hand calls to an app that is about to go.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Serving,
    Draining,
    Drained,
}

/// Whether a box still takes calls. Cheap to clone; clones are one.
#[derive(Debug, Clone)]
pub struct Drain(Arc<watch::Sender<State>>);

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::Serving)))
    }
}

impl Drain {
    /// Asks the box to take no more calls. There is no way back.
    pub fn ask(&self) {
        self.go_on(State::Draining);
    }

    /// Whether it was asked.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() >= State::Draining
    }

    /// Done when it was asked. Cancel safe.
    pub async fn asked(&self) {
        self.reached(State::Draining).await;
    }

    /// Says that no delivery is under way, and that none will begin.
    pub(crate) fn finish(&self) {
        self.go_on(State::Drained);
    }

    /// Done when no delivery is under way and none will begin. Cancel safe.
    pub async fn drained(&self) {
        self.reached(State::Drained).await;
    }

    fn go_on(&self, to: State) {
        self.0.send_if_modified(|state| {
            let later = to > *state;
            *state = to.max(*state);
            later
        });
    }

    async fn reached(&self, wanted: State) {
        // The sender is in `self`: it can't be gone.
        let _ = self.0.subscribe().wait_for(|state| *state >= wanted).await;
    }
}

//! What passes on what a lane has fetched: a task of the runtime, woken by librdkafka itself. A thread in between would be one more to wake for each record.
//!
//! The lane belongs to the task and to the fetcher's thread in turns. What blocks is done by the thread; meanwhile the task does not wait for the lane, but is woken when it is free.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll};
use std::thread::Thread;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::warn;

use super::config::KafkaConfig;
use super::control::Control;
use super::lane::Lane;
use super::link::Link;
use super::stream::{Pace, Stream};
use super::wake::{Hearing, bell, block_on};

/// How long a task that is ended may take to notice.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A lane, and the task that passes on what it has fetched.
pub(super) struct Pump {
    pace: Pace,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What all pumps of a log need.
pub(super) struct Clients {
    pub(super) config: KafkaConfig,
    pub(super) link: Arc<Link>,
    pub(super) control: Arc<Control>,
    /// Where the tasks run.
    pub(super) runtime: Handle,
}

struct Shared {
    lane: Mutex<Lane>,
    /// The task, for the thread.
    woken: AtomicWaker,
    /// Does what the task must not do.
    thread: Thread,
}

impl Pump {
    /// Begins, with a lane for nothing yet; `thread` is unparked when the lane is to be tended.
    pub(super) fn start(clients: &Clients, pace: Pace, thread: Thread) -> Result<Self, KafkaError> {
        let (bell, hearing) = {
            let _runtime = clients.runtime.enter();
            bell()?
        };
        let lane = Mutex::new(Lane::create(&clients.config, &clients.link, &clients.control, pace, bell)?);
        let shared = Arc::new(Shared { lane, woken: AtomicWaker::new(), thread });
        let task = clients.runtime.spawn(Pumping { shared: Arc::clone(&shared), fetched: hearing });
        Ok(Self { pace, shared, task })
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// Does something with the lane; may block. The task goes on afterwards.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Lane) -> T) -> T {
        let done = work(&mut self.shared.lane.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.woken.wake();
        done
    }

    /// Ends the task and closes the consumer, on a thread of its own because that takes a moment; gives back the streams.
    pub(super) fn close(self) -> Vec<Stream> {
        let streams = self.with(Lane::take_all);
        self.task.abort();
        let closing = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || {
            // The last to have it closes it, and a task can't.
            let _ = block_on(self.task, END_LIMIT);
            drop(self.shared);
        });
        if let Err(error) = closing {
            warn!(%error, "a client was closed on the reading thread");
        }
        streams
    }
}

struct Pumping {
    shared: Arc<Shared>,
    /// librdkafka has fetched something.
    fetched: Hearing,
}

impl Future for Pumping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shared, fetched } = &mut *self;
        let Shared { lane, woken, thread } = &**shared;
        // First: whatever happens from here on wakes it again. (The bell goes with the lane, which is there.)
        fetched.listen(cx);
        woken.register(cx.waker());
        let mut lane = match lane.try_lock() {
            Ok(lane) => lane,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Woken when the thread is done with it.
            Err(TryLockError::WouldBlock) => return Poll::Pending,
        };
        if lane.pass_on(cx.waker()) {
            cx.waker().wake_by_ref();
        }
        if lane.needs_tending() {
            thread.unpark();
        }
        Poll::Pending
    }
}

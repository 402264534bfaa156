//! Waking: an OS thread from other threads, from librdkafka's queues, and from futures that such a thread waits on; and a task of the runtime from a thread that is not one of it.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::unix::pipe;

/// A bell, for a thread that is not the runtime's, and who hears it: a task.
///
/// A waker would do it too. But a worker of the runtime that is woken from outside wakes another one as soon as it has found something to do, which for a single record is in vain.
/// This one it waits for together with its sockets. To be made in a runtime.
pub(super) fn bell() -> Result<(Bell, Hearing), KafkaError> {
    let made = || {
        let (sender, receiver) = pipe::pipe()?;
        Ok((Bell(sender.into_nonblocking_fd()?.into()), Hearing(receiver)))
    };
    made().map_err(|error: io::Error| KafkaError::ClientCreation(format!("no pipe: {error}")))
}

/// Is rung.
pub(super) struct Bell(File);

impl Bell {
    pub(super) fn ring(&self) {
        // Where there is no room, there is something to be heard already.
        let _ = (&self.0).write(&[0]);
    }
}

/// Hears it.
pub(super) struct Hearing(pipe::Receiver);

impl Hearing {
    /// From now on the task is woken when it [rings](Bell::ring). False: it never will any more.
    pub(super) fn listen(&mut self, cx: &mut Context<'_>) -> bool {
        let mut rung = [0; 64];
        loop {
            let mut room = ReadBuf::new(&mut rung);
            match Pin::new(&mut self.0).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {}
                Poll::Ready(_) => return false,
                Poll::Pending => return true,
            }
        }
    }
}

/// Wakes a thread that waits in [`std::thread::park_timeout`].
pub(super) struct Unpark(pub(super) Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// A waker for the calling thread.
pub(super) fn waker() -> Waker {
    Waker::from(Arc::new(Unpark(std::thread::current())))
}

/// Waits for a future on the calling thread; `None` when `limit` has passed first.
pub(super) fn block_on<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let waker = waker();
    let deadline = Instant::now() + limit;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        std::thread::park_timeout(left);
    }
}

/// A future that is polled by a thread now and then, when its waker has woken that thread.
pub(super) type Watched<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Whether it is done.
pub(super) fn poll<T>(future: &mut Watched<T>, waker: &Waker) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(waker)) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bell_is_heard_each_time_also_if_nobody_listened_when_it_rang() {
        let (bell, mut hearing) = bell().unwrap();
        let (ring, rings) = std::sync::mpsc::channel::<u32>();
        let thread = std::thread::spawn(move || rings.iter().for_each(|times| (0..times).for_each(|_| bell.ring())));
        for times in [1, 1, 100, 100_000, 1] {
            ring.send(times).unwrap();
            let mut listened = false;
            std::future::poll_fn(|cx| {
                assert!(hearing.listen(cx));
                if std::mem::replace(&mut listened, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        drop(ring);
        thread.join().unwrap();
        std::future::poll_fn(|cx| if hearing.listen(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    #[test]
    fn a_thread_waits_for_a_future_and_gives_up_in_time() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let other = std::thread::spawn(move || sender.send(7));
        assert_eq!(block_on(receiver, Duration::from_secs(10)), Some(Ok(7)));
        other.join().unwrap().unwrap();
        assert_eq!(block_on(std::future::pending::<()>(), Duration::from_millis(1)), None);
    }
}

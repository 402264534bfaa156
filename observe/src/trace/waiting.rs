//! Spans that have ended and wait to be sent: as the bytes of the requests that they are sent in.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::encode;

/// Spans that are sent together, as they are sent.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// How many.
    pub(super) spans: usize,
    /// One after the other.
    pub(super) bytes: Vec<u8>,
}

/// Those that wait. Whoever ends a span waits for nobody but another one who does; one task takes them.
#[derive(Debug)]
pub(super) struct Waiting {
    batches: Mutex<Batches>,
    /// The first has come, or a batch is whole.
    news: Notify,
    /// So many are sent at once; no more than may wait.
    batch: usize,
    /// So many wait at most.
    most: usize,
}

#[derive(Debug, Default)]
struct Batches {
    /// Of all that wait.
    spans: usize,
    whole: VecDeque<Batch>,
    /// What comes goes in here, until it is whole.
    last: Batch,
    /// Room of a batch that was sent, for the next one.
    spare: Vec<u8>,
}

/// Of more room than this nothing is kept.
const MAX_SPARE_BYTES: usize = 1 << 20;

impl Waiting {
    pub(super) fn new(batch: usize, most: usize) -> Self {
        Self { batches: Mutex::default(), news: Notify::new(), batch, most }
    }

    fn batches(&self) -> MutexGuard<'_, Batches> {
        // Nothing in there can panic half-way.
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more, unless as many wait as may: then says so.
    pub(super) fn push(&self, span: &[u8]) -> bool {
        let mut batches = self.batches();
        if batches.spans >= self.most {
            return false;
        }
        encode::span(&mut batches.last.bytes, span);
        batches.last.spans += 1;
        batches.spans += 1;
        let is_whole = batches.last.spans >= self.batch;
        if is_whole {
            let next = Batch { spans: 0, bytes: std::mem::take(&mut batches.spare) };
            let whole = std::mem::replace(&mut batches.last, next);
            batches.whole.push_back(whole);
        }
        let is_news = is_whole || batches.spans == 1;
        drop(batches);
        if is_news {
            self.news.notify_one();
        }
        true
    }

    /// The oldest batch that is whole, or else what there is.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut batches = self.batches();
        let taken = batches.whole.pop_front().or_else(|| Some(std::mem::take(&mut batches.last)).filter(|last| last.spans > 0))?;
        batches.spans -= taken.spans;
        Some(taken)
    }

    /// A batch was sent that took this room.
    pub(super) fn give_back(&self, sent: Bytes) {
        // Nothing else has it any more, but for a connection that is slow to let go.
        if let Ok(room) = sent.try_into_mut()
            && room.capacity() <= MAX_SPARE_BYTES
        {
            let mut room = Vec::from(room);
            room.clear();
            self.batches().spare = room;
        }
    }

    /// Done when there is one. Cancel safe, as is the next; for one task.
    pub(super) async fn any(&self) {
        while self.batches().spans == 0 {
            self.news.notified().await;
        }
    }

    /// Done when a batch is whole.
    pub(super) async fn enough(&self) {
        while self.batches().whole.is_empty() {
            self.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_done(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn batches_are_taken_whole_and_in_order_and_the_rest_as_it_is() {
        let waiting = Waiting::new(2, 5);
        assert!(waiting.take().is_none() && !is_done(waiting.any()));
        for span in [b"a", b"b", b"c", b"d", b"e"] {
            assert!(waiting.push(span));
        }
        assert!(!waiting.push(b"f"), "no more may wait");
        let taken: Vec<_> = std::iter::from_fn(|| waiting.take()).map(|batch| (batch.spans, batch.bytes.len())).collect();
        assert_eq!(taken, [(2, 6), (2, 6), (1, 3)]);
        assert!(waiting.push(b"g"), "there is room again");
    }

    #[test]
    fn the_room_of_a_batch_is_used_again() {
        let waiting = Waiting::new(1, 5);
        waiting.push(&[b'a'; 1000]);
        let sent = waiting.take().unwrap();
        let room = sent.bytes.capacity();
        waiting.give_back(sent.bytes.into());
        waiting.push(b"b");
        waiting.push(b"c");
        let taken: Vec<_> = std::iter::from_fn(|| waiting.take()).map(|batch| (batch.bytes.len(), batch.bytes.capacity() == room)).collect();
        assert_eq!(taken, [(3, false), (3, true)]);
        waiting.give_back(vec![0; MAX_SPARE_BYTES + 1].into());
        assert_eq!(waiting.batches().spare.capacity(), 0);
    }

    #[test]
    fn who_takes_them_is_woken_by_the_first_and_by_a_whole_batch() {
        let waiting = Waiting::new(2, 10);
        waiting.push(b"a");
        assert!(is_done(waiting.any()) && !is_done(waiting.enough()));
        waiting.push(b"b");
        assert!(is_done(waiting.enough()));
        waiting.take();
        assert!(!is_done(waiting.any()) && !is_done(waiting.enough()));
    }
}

//! A body on its way into the log.

use std::collections::VecDeque;
use std::time::Duration;

use bluebox_core::call::{Body, BulkBody};
use bluebox_core::fail_point_async;
use bluebox_core::log::{Append, AppendError, Offset, Record};
use bytes::{Bytes, BytesMut};

use super::{Bulk, CHUNK_KEY, Hold};

/// Chunks of one body that may be on their way at once, memory permitting.
const CHUNKS_AT_ONCE: usize = 4;

/// The pauses before what the log did not take is tried again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One body on its way in.
///
/// It never waits for memory while it holds some: with its first share alone it can go on, one chunk after the other, so that no two bodies wait for each other.
pub(super) struct Upload<'b> {
    bulk: &'b Bulk,
    memory: Hold,
    expected: usize,
    buffer: Buffer,
    in_flight: VecDeque<Chunk>,
    offsets: Vec<Offset>,
}

/// A chunk on its way, and what has become of its append so far.
struct Chunk {
    bytes: Bytes,
    append: Result<Append, AppendError>,
}

/// What was read and not yet appended. The usual small body is one frame, which is kept as it came.
enum Buffer {
    Empty,
    One(Bytes),
    Many(BytesMut),
}

impl Buffer {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn push(&mut self, data: Bytes, capacity: usize) {
        *self = match std::mem::replace(self, Self::Empty) {
            Self::Empty => Self::One(data),
            Self::One(first) => {
                let mut bytes = BytesMut::with_capacity((first.len() + data.len()).max(capacity));
                bytes.extend_from_slice(&first);
                bytes.extend_from_slice(&data);
                Self::Many(bytes)
            }
            Self::Many(mut bytes) => {
                bytes.extend_from_slice(&data);
                Self::Many(bytes)
            }
        }
    }

    fn take(&mut self) -> Bytes {
        match std::mem::replace(self, Self::Empty) {
            Self::Empty => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

impl<'b> Upload<'b> {
    pub(super) fn new(bulk: &'b Bulk, memory: Hold, expected: usize) -> Self {
        Self { bulk, memory, expected, buffer: Buffer::Empty, in_flight: VecDeque::new(), offsets: Vec::new() }
    }

    pub(super) async fn push(&mut self, mut data: Bytes) -> Result<(), AppendError> {
        while !data.is_empty() {
            let room = self.bulk.chunk_bytes - self.buffer.len();
            if room == 0 {
                self.flush().await?;
                continue;
            }
            // Where the length isn't known, the buffer grows by what arrives, not at once to the whole share.
            let capacity = if self.expected < self.bulk.chunk_bytes { self.expected } else { 0 };
            self.buffer.push(data.split_to(room.min(data.len())), capacity);
        }
        Ok(())
    }

    /// Appends what is buffered as one chunk, and sees to it that there is memory for the next one.
    async fn flush(&mut self) -> Result<(), AppendError> {
        self.send().await;
        while self.in_flight.len() >= self.memory.shares.len().max(1) {
            if self.memory.shares.len() < CHUNKS_AT_ONCE
                && let Ok(share) = self.bulk.memory.clone().try_acquire_many_owned(u32::try_from(self.bulk.chunk_bytes).unwrap_or(u32::MAX))
            {
                self.memory.shares.push(share);
            } else if !self.settle_one().await? {
                break;
            }
        }
        Ok(())
    }

    /// Sends what is buffered on its way.
    async fn send(&mut self) {
        let bytes = self.buffer.take();
        let append = self.append(&bytes).await;
        self.in_flight.push_back(Chunk { bytes, append });
    }

    async fn append(&self, bytes: &Bytes) -> Result<Append, AppendError> {
        fail_point_async!(BulkChunk, return Err(AppendError::NotPersisted("a fail point".to_owned())));
        Ok(self.bulk.log.append(&self.bulk.partition, Record::keyed(Bytes::from_static(CHUNK_KEY), bytes.clone())))
    }

    /// Waits until the first chunk that is on its way is durable. One that the log has twice does no harm: the body names one of the two.
    async fn settle_one(&mut self) -> Result<bool, AppendError> {
        let Some(Chunk { bytes, append }) = self.in_flight.pop_front() else { return Ok(false) };
        let mut stored = settled(append).await;
        let mut pause = SHORTEST_PAUSE;
        while let Err(error @ (AppendError::NotPersisted(_) | AppendError::Unknown(_))) = &stored
            && self.bulk.tries_again
        {
            tracing::debug!(partition = %self.bulk.partition, %error, "a part of a body was not stored and is tried again");
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            stored = settled(self.append(&bytes).await).await;
        }
        self.offsets.push(stored?);
        Ok(true)
    }

    pub(super) async fn finish(mut self, len_bytes: u64) -> Result<(Body, Hold), AppendError> {
        if self.offsets.is_empty() && self.in_flight.is_empty() {
            return Ok((Body::Inline(self.buffer.take()), self.memory));
        }
        if self.buffer.len() > 0 {
            self.send().await;
        }
        while self.settle_one().await? {}
        let body = BulkBody { partition: self.bulk.partition.clone(), chunks: self.offsets, len_bytes };
        Ok((Body::Bulk(body), Hold::default()))
    }
}

async fn settled(append: Result<Append, AppendError>) -> Result<Offset, AppendError> {
    let offset = append?.await?.offset;
    fail_point_async!(BulkStored, return Err(AppendError::Unknown("a fail point".to_owned())));
    Ok(offset)
}

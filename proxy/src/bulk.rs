//! Bodies: small ones in the record, large ones in chunk records that are durable before the record that points to them.

use std::collections::VecDeque;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bluebox_core::call::{Body, BulkBody};
use bluebox_core::log::{Append, AppendError, Entry, Log, Offset, Read, Reader, Record, TopicPartition};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::fields;

/// The largest body that travels in a record, and the size of a chunk of a larger one: 256 KiB.
pub const INLINE_BYTES: usize = 256 << 10;

/// The key of every chunk record, so that a reader of a partition that has other entries too (dead letters) knows which they are.
pub const CHUNK_KEY: &[u8] = b"chunk";

/// What the log may add to a chunk and count against its largest record.
const RECORD_OVERHEAD_BYTES: usize = 1024;

/// Chunks of one body that may be on their way at once, memory permitting.
const CHUNKS_AT_ONCE: usize = 4;

/// A reader that must skip more records than this between two chunks begins anew at the second.
const SKIP_AT_MOST: u64 = 8;

/// After so long without a chunk, one that should be there is taken for missing.
const STALL: Duration = Duration::from_secs(60);

/// Takes bodies in, writing the large ones to one partition, and gives them out from wherever they lie. Cheap to clone; clones share the memory budget.
#[derive(Clone)]
pub struct Bulk {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    memory: Arc<Semaphore>,
    chunk_bytes: usize,
}

/// The limits of one body on its way in.
#[derive(Debug, Clone, Copy)]
pub struct TakeIn {
    /// The largest body, in bytes.
    pub limit_bytes: u64,
    /// How long it may stand still.
    pub idle_timeout: Duration,
    /// What must come of it per second on average, beyond the first `idle_timeout`; 0: anything will do.
    pub least_bytes_per_second: u64,
}

/// A body that was taken in: all of it is in memory or durable.
#[derive(Debug)]
pub struct Taken {
    /// The body.
    pub body: Body,
    /// Its trailer fields, without those that must not travel.
    pub trailers: HeaderMap,
    /// Its share of the memory budget; drop it when the body is no longer held.
    pub memory: Hold,
}

/// A share of the memory budget, given back when it is dropped.
#[derive(Debug, Default)]
pub struct Hold {
    shares: Vec<OwnedSemaphorePermit>,
}

/// Why a body was not taken in. Whatever the reason: no record points to what was written of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeInError {
    /// It is larger than it may be.
    #[error("the body has more than the {limit_bytes} bytes that are taken")]
    TooLarge {
        /// The largest body that is taken.
        limit_bytes: u64,
    },
    /// It stood still.
    #[error("nothing of the body arrived for {}", humantime::format_duration(*.after))]
    Idle {
        /// For so long.
        after: Duration,
    },
    /// It came drop by drop.
    #[error("the body came with less than {least_bytes_per_second} bytes per second")]
    TooSlow {
        /// What must come at least.
        least_bytes_per_second: u64,
    },
    /// Its sender broke off, or broke the rules of its framing.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// The log did not take a chunk.
    #[error("a part of the body could not be stored: {0}")]
    NotStored(#[from] AppendError),
}

/// Why a body can't be given out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GiveOutError {
    /// A chunk is not in the log any more.
    #[error("a part of the body is missing from the log: {0}")]
    Missing(String),
    /// What lies there is no chunk of this body.
    #[error("what the log has is not the body: {0}")]
    Mismatch(String),
    /// The log said nothing for a minute.
    #[error("the log does not give the body out")]
    Stalled,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Bulk {
    /// Takes large bodies in to `partition`. `memory_bytes` bound what all bodies being taken in hold together; at least two chunks.
    pub fn new(log: Arc<dyn Log>, partition: TopicPartition, memory_bytes: usize) -> Self {
        let chunk_bytes = INLINE_BYTES.min(log.max_record_bytes().saturating_sub(RECORD_OVERHEAD_BYTES)).max(1);
        let memory = Arc::new(Semaphore::new(memory_bytes.clamp(2 * chunk_bytes, Semaphore::MAX_PERMITS)));
        Self { log, partition, memory, chunk_bytes }
    }

    /// The same memory budget, writing to another partition.
    #[must_use]
    pub fn writing_to(&self, partition: TopicPartition) -> Self {
        Self { partition, ..self.clone() }
    }

    /// Reads a body to its end. Up to [`INLINE_BYTES`] stay in memory; more is appended chunk by chunk while it arrives, and all of it is durable when this
    /// returns. `digest` is fed with the content.
    ///
    /// Waits for memory when the budget is used up. A body that is known to be too large is refused before anything of it is read, so that a sender that waits
    /// for `100 Continue` never sends it.
    ///
    /// Not cancel safe in this sense: what was read is lost. Chunks that no record points to disappear with the topic's retention.
    ///
    /// # Errors
    /// See [`TakeInError`].
    pub async fn take_in<B>(&self, body: B, limits: &TakeIn, mut digest: Option<&mut Sha256>) -> Result<Taken, TakeInError>
    where
        B: http_body::Body,
        B::Error: Into<BoxError>,
    {
        let too_large = TakeInError::TooLarge { limit_bytes: limits.limit_bytes };
        let hint = body.size_hint();
        if hint.lower() > limits.limit_bytes {
            return Err(too_large);
        }
        if body.is_end_stream() {
            return Ok(Taken { body: Body::empty(), trailers: HeaderMap::new(), memory: Hold::default() });
        }
        let mut body = pin!(body);
        let expected = hint.upper().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX).min(self.chunk_bytes);
        let mut upload = Upload::new(self, self.reserve(expected).await, expected);
        let mut total: u64 = 0;
        let mut trailers = HeaderMap::new();
        // Only the time in which it is the sender that is waited for.
        let mut waited = Duration::ZERO;
        loop {
            let began = Instant::now();
            let frame = tokio::time::timeout(limits.idle_timeout, std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)));
            let frame = match frame.await {
                Err(_) => return Err(TakeInError::Idle { after: limits.idle_timeout }),
                Ok(None) => break,
                Ok(Some(Err(e))) => return Err(TakeInError::Broken(chain(&*e.into()))),
                Ok(Some(Ok(frame))) => frame,
            };
            waited += began.elapsed();
            if let Some(due) = total.checked_div(limits.least_bytes_per_second)
                && waited > limits.idle_timeout.saturating_add(Duration::from_secs(due))
            {
                return Err(TakeInError::TooSlow { least_bytes_per_second: limits.least_bytes_per_second });
            }
            match frame.into_data() {
                Ok(mut data) => {
                    let data = data.copy_to_bytes(data.remaining());
                    total += data.len() as u64;
                    if total > limits.limit_bytes {
                        return Err(too_large);
                    }
                    if let Some(digest) = digest.as_deref_mut() {
                        digest.update(&data);
                    }
                    upload.push(data).await?;
                }
                Err(frame) => {
                    if let Ok(mut more) = frame.into_trailers() {
                        fields::strip_trailers(&mut more);
                        trailers = more;
                    }
                }
            }
        }
        let (body, memory) = upload.finish(total).await?;
        Ok(Taken { body, trailers, memory })
    }

    /// A body as something to send. A large one is read from the log as it is sent, a few chunks ahead at most.
    pub fn give_out(&self, body: Body, trailers: HeaderMap) -> OutBody {
        let trailers = if trailers.is_empty() { None } else { Some(trailers) };
        match body {
            Body::Inline(bytes) => OutBody { left: bytes.len() as u64, content: Content::Inline(bytes), trailers },
            Body::Bulk(bulk) => {
                let left = bulk.len_bytes;
                OutBody { left, content: Content::Chunks(Box::pin(chunks(self.log.clone(), bulk))), trailers }
            }
        }
    }

    /// A body of one's own: a large one is copied, chunk by chunk, to the partition that this writes to, so that it lasts as long as that partition keeps it.
    ///
    /// # Errors
    /// When it can't be read or can't be stored.
    pub async fn copy(&self, body: &Body) -> Result<Body, TakeInError> {
        match body {
            Body::Inline(bytes) => Ok(Body::Inline(bytes.clone())),
            Body::Bulk(bulk) if bulk.partition == self.partition => Ok(body.clone()),
            Body::Bulk(bulk) => {
                let limits = TakeIn { limit_bytes: bulk.len_bytes, idle_timeout: STALL, least_bytes_per_second: 0 };
                Ok(self.take_in(self.give_out(body.clone(), HeaderMap::new()), &limits, None).await?.body)
            }
        }
    }

    async fn reserve(&self, bytes: usize) -> Hold {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed; were it, going on without a share is the lesser evil.
        Hold { shares: self.memory.clone().acquire_many_owned(permits).await.into_iter().collect() }
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk").field("partition", &self.partition).finish_non_exhaustive()
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

/// One body on its way in.
///
/// It never waits for memory while it holds some: with its first share alone it can go on, one chunk after the other, so that no two bodies wait for each other.
struct Upload<'b> {
    bulk: &'b Bulk,
    memory: Hold,
    expected: usize,
    buffer: Buffer,
    in_flight: VecDeque<Append>,
    offsets: Vec<Offset>,
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
    fn new(bulk: &'b Bulk, memory: Hold, expected: usize) -> Self {
        Self { bulk, memory, expected, buffer: Buffer::Empty, in_flight: VecDeque::new(), offsets: Vec::new() }
    }

    async fn push(&mut self, mut data: Bytes) -> Result<(), AppendError> {
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
        let chunk = self.buffer.take();
        self.in_flight.push_back(self.bulk.log.append(&self.bulk.partition, Record::keyed(Bytes::from_static(CHUNK_KEY), chunk)));
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

    async fn settle_one(&mut self) -> Result<bool, AppendError> {
        match self.in_flight.pop_front() {
            Some(append) => {
                self.offsets.push(append.await?.offset);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn finish(mut self, len_bytes: u64) -> Result<(Body, Hold), AppendError> {
        if self.offsets.is_empty() && self.in_flight.is_empty() {
            return Ok((Body::Inline(self.buffer.take()), self.memory));
        }
        if self.buffer.len() > 0 {
            let chunk = self.buffer.take();
            self.in_flight.push_back(self.bulk.log.append(&self.bulk.partition, Record::keyed(Bytes::from_static(CHUNK_KEY), chunk)));
        }
        while self.settle_one().await? {}
        let body = BulkBody { partition: self.bulk.partition.clone(), chunks: self.offsets, len_bytes };
        Ok((Body::Bulk(body), Hold::default()))
    }
}

/// A body on its way out.
///
/// Its size hint is exact, except where trailers follow: HTTP/1.1 sends those only in chunked framing, which an exact size would prevent.
pub struct OutBody {
    left: u64,
    content: Content,
    trailers: Option<HeaderMap>,
}

enum Content {
    Inline(Bytes),
    Chunks(Pin<Box<dyn Stream<Item = Result<Bytes, GiveOutError>> + Send>>),
}

impl OutBody {
    /// No content.
    pub fn empty() -> Self {
        Self { left: 0, content: Content::Inline(Bytes::new()), trailers: None }
    }

    /// This content, without trailers.
    pub fn full(bytes: Bytes) -> Self {
        Self { left: bytes.len() as u64, content: Content::Inline(bytes), trailers: None }
    }

    /// The names of the trailer fields that follow.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }
}

impl http_body::Body for OutBody {
    type Data = Bytes;
    type Error = GiveOutError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GiveOutError>>> {
        let this = &mut *self;
        if this.left > 0 {
            let data = match &mut this.content {
                Content::Inline(bytes) => std::mem::take(bytes),
                Content::Chunks(chunks) => match ready!(chunks.as_mut().poll_next(cx)) {
                    Some(Ok(data)) => data,
                    Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                    None => return Poll::Ready(Some(Err(GiveOutError::Mismatch(format!("{} bytes are not there", this.left))))),
                },
            };
            // The stream of chunks sees to it that there are never more.
            this.left = this.left.saturating_sub(data.len() as u64);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(this.trailers.take().map(|t| Ok(Frame::trailers(t))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.trailers.is_none() {
            return SizeHint::with_exact(self.left);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(self.left);
        hint
    }
}

impl fmt::Debug for OutBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutBody").field("left", &self.left).finish_non_exhaustive()
    }
}

/// The chunks of a body, in order, each read when it is wanted.
fn chunks(log: Arc<dyn Log>, body: BulkBody) -> impl Stream<Item = Result<Bytes, GiveOutError>> + Send {
    let state = Chunks { log, partition: body.partition, wanted: body.chunks.into(), left: body.len_bytes, reader: None, ahead: VecDeque::new() };
    stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|data| (data, state))) })
}

struct Chunks {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    wanted: VecDeque<Offset>,
    left: u64,
    /// Reads on from the chunk before, and the next offset that it will give.
    reader: Option<(Reader, Offset)>,
    ahead: VecDeque<Entry>,
}

impl Chunks {
    async fn next(&mut self) -> Result<Option<Bytes>, GiveOutError> {
        let Some(wanted) = self.wanted.pop_front() else { return Ok(None) };
        let entry = tokio::time::timeout(STALL, self.entry_at(wanted)).await.map_err(|_| GiveOutError::Stalled)??;
        let place = || format!("{} offset {wanted}", self.partition);
        let data = match entry.record {
            Record { key, value: Some(value) } if key == CHUNK_KEY && !value.is_empty() => value,
            _ => return Err(GiveOutError::Mismatch(place())),
        };
        self.left = self.left.checked_sub(data.len() as u64).ok_or_else(|| GiveOutError::Mismatch(place()))?;
        Ok(Some(data))
    }

    async fn entry_at(&mut self, wanted: Offset) -> Result<Entry, GiveOutError> {
        let missing = || GiveOutError::Missing(format!("{} offset {wanted}", self.partition));
        loop {
            while let Some(entry) = self.ahead.pop_front() {
                if entry.offset == wanted {
                    return Ok(entry);
                }
                if entry.offset > wanted {
                    return Err(missing());
                }
            }
            let near = self.reader.as_ref().is_some_and(|(_, next)| *next <= wanted && wanted.distance_from(*next) <= SKIP_AT_MOST);
            if !near {
                self.reader = Some((self.log.read(&self.partition, wanted), wanted));
            }
            let Some((reader, next)) = &mut self.reader else { continue };
            match reader.next().await {
                Some(Read::Entries(entries)) => {
                    if let Some(last) = entries.last() {
                        *next = last.offset.next();
                    }
                    self.ahead = entries.into();
                }
                Some(Read::Truncated { .. }) | None => return Err(missing()),
            }
        }
    }
}

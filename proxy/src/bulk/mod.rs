//! Bodies: small ones in the record, large ones in chunk records that are durable before the record that points to them.

mod out;
mod upload;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::{Body, BulkBody};
use bluebox_core::log::{AppendError, Log, TopicPartition};
use bluebox_observe::chain;
use bytes::Buf;
use http::HeaderMap;
use http_body::Body as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::fields;

pub use out::{GiveOutError, OutBody};

use upload::Upload;

/// The largest body that travels in a record, and the size of a chunk of a larger one: 256 KiB.
pub const INLINE_BYTES: usize = 256 << 10;

/// The key of every chunk record, so that a reader of a partition that has other entries too (dead letters) knows which they are.
pub const CHUNK_KEY: &[u8] = b"chunk";

/// What the log may add to a chunk and count against its largest record.
const RECORD_OVERHEAD_BYTES: usize = 1024;

/// Takes bodies in, writing the large ones to one partition, and gives them out from wherever they lie. Cheap to clone; clones share the memory budget.
#[derive(Clone)]
pub struct Bulk {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    memory: Arc<Semaphore>,
    chunk_bytes: usize,
    tries_again: bool,
}

/// The limits of one body on its way in.
#[derive(Debug, Clone, Copy)]
pub struct TakeIn {
    /// The largest body, in bytes.
    pub limit_bytes: u64,
    /// How long it may stand still.
    pub idle_timeout: Duration,
    /// Whether one that stands still is given up only when `longest` is over.
    pub waits_out: bool,
    /// What must come of it per second on average, beyond the first `idle_timeout`; 0: anything will do.
    pub least_bytes_per_second: u64,
    /// How long its sender may take for all of it. What the log takes to store it does not count.
    pub longest: Duration,
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
    /// It was still coming when its time was over.
    #[error("the body did not end within {}", humantime::format_duration(*.within))]
    Endless {
        /// Its time.
        within: Duration,
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

/// Why a body was not copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It can't be read.
    #[error(transparent)]
    Unread(#[from] GiveOutError),
    /// The log did not take a chunk.
    #[error("a part of the body could not be stored: {0}")]
    NotStored(#[from] AppendError),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Bulk {
    /// Takes large bodies in to `partition`. `memory_bytes` bound what all bodies being taken in hold together; at least two chunks.
    pub fn new(log: Arc<dyn Log>, partition: TopicPartition, memory_bytes: usize) -> Self {
        let chunk_bytes = INLINE_BYTES.min(log.max_record_bytes().saturating_sub(RECORD_OVERHEAD_BYTES)).max(1);
        let memory = Arc::new(Semaphore::new(memory_bytes.clamp(2 * chunk_bytes, Semaphore::MAX_PERMITS)));
        Self { log, partition, memory, chunk_bytes, tries_again: false }
    }

    /// The same, but what the log does not take now is tried again for as long as it takes, and holds its memory meanwhile. For bodies whose sender can't send them again: the
    /// app has acted when it answers, and a log that is away, or full, is no failure of the app.
    #[must_use]
    pub fn trying_again(self) -> Self {
        Self { tries_again: true, ..self }
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
            let left = limits.longest.saturating_sub(waited);
            let patience = if limits.waits_out { left } else { limits.idle_timeout.min(left) };
            let frame = tokio::time::timeout(patience, std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)));
            let frame = match frame.await {
                Err(_) if patience < limits.idle_timeout => return Err(TakeInError::Endless { within: limits.longest }),
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
        OutBody::new(&self.log, body, trailers)
    }

    /// A body of one's own: a large one is copied, chunk by chunk, to the partition that this writes to, so that it lasts as long as that partition keeps it.
    ///
    /// One that is [trying again](Self::trying_again) waits for a log that does not give the body out now.
    ///
    /// # Errors
    /// When it can't be read or can't be stored.
    pub async fn copy(&self, body: &Body) -> Result<Body, CopyError> {
        match body {
            Body::Inline(bytes) => Ok(Body::Inline(bytes.clone())),
            Body::Bulk(bulk) if bulk.partition == self.partition => Ok(body.clone()),
            Body::Bulk(bulk) => loop {
                match self.copy_once(bulk).await {
                    Err(CopyError::Unread(GiveOutError::Stalled)) if self.tries_again && !self.is_gone(bulk).await => {
                        tracing::debug!(partition = %bulk.partition, "a body that is to be copied is not given out by the log now, and is read again");
                    }
                    done => return done,
                }
            },
        }
    }

    async fn copy_once(&self, body: &BulkBody) -> Result<Body, CopyError> {
        let mut out = pin!(self.give_out(Body::Bulk(body.clone()), HeaderMap::new()));
        let mut upload = Upload::new(self, self.reserve(self.chunk_bytes).await, self.chunk_bytes);
        while let Some(frame) = std::future::poll_fn(|cx| out.as_mut().poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                upload.push(data).await?;
            }
        }
        Ok(upload.finish(body.len_bytes).await?.0)
    }

    /// Whether the log says that a chunk is not there: one that does not answer may have it all the same.
    async fn is_gone(&self, body: &BulkBody) -> bool {
        let bounds = self.log.bounds(&body.partition).await;
        bounds.is_ok_and(|bounds| body.chunks.iter().any(|chunk| *chunk < bounds.start || *chunk >= bounds.end))
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

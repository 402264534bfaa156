//! A body on its way out of the log.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bluebox_core::call::{Body, BulkBody};
use bluebox_core::fail_point;
use bluebox_core::log::{Entry, Log, Offset, Read, Reader, Record, TopicPartition};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use super::CHUNK_KEY;

/// A reader that must skip more records than this between two chunks begins anew at the second.
const SKIP_AT_MOST: u64 = 8;

/// A chunk that is not taken for so long gives back the place among the readers of its partition: a log has few of those, and others may wait for one.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// After so long without a chunk, one that should be there is taken for missing.
const STALL: Duration = Duration::from_secs(60);

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
    pub(super) fn new(log: &Arc<dyn Log>, body: Body, trailers: HeaderMap) -> Self {
        let trailers = if trailers.is_empty() { None } else { Some(trailers) };
        match body {
            Body::Inline(bytes) => Self { left: bytes.len() as u64, content: Content::Inline(bytes), trailers },
            Body::Bulk(bulk) => Self { left: bulk.len_bytes, content: Content::Chunks(Box::pin(chunks(log.clone(), bulk))), trailers },
        }
    }

    /// No content.
    pub fn empty() -> Self {
        Self { left: 0, content: Content::Inline(Bytes::new()), trailers: None }
    }

    /// This content, without trailers.
    pub fn full(bytes: Bytes) -> Self {
        Self { left: bytes.len() as u64, content: Content::Inline(bytes), trailers: None }
    }

    /// Reads the first chunk of a large body now, so that one whose chunks are gone is found out before a head was sent.
    ///
    /// # Errors
    /// When the first chunk can't be read.
    pub async fn preload(&mut self) -> Result<(), GiveOutError> {
        if let Content::Chunks(chunks) = &mut self.content
            && let Some(first) = std::future::poll_fn(|cx| chunks.as_mut().poll_next(cx)).await
        {
            let rest = std::mem::replace(chunks, Box::pin(stream::empty()));
            *chunks = Box::pin(stream::once(std::future::ready(Ok(first?))).chain(rest));
        }
        Ok(())
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
            if this.left == 0 {
                fail_point!(BodyGiven, return Poll::Ready(Some(Err(GiveOutError::Stalled))));
            }
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

/// The chunks of a body, in order. They are read when the first is wanted, two of them ahead.
fn chunks(log: Arc<dyn Log>, body: BulkBody) -> impl Stream<Item = Result<Bytes, GiveOutError>> + Send {
    let chunks = Chunks { log, partition: body.partition, wanted: body.chunks.into(), left: body.len_bytes, reader: None, ahead: VecDeque::new() };
    let (give, take) = mpsc::channel(1);
    stream::unfold((Some((chunks, give)), take), |(begin, mut take)| async move {
        if let Some((chunks, give)) = begin {
            tokio::spawn(chunks.feed(give));
        }
        Some((take.recv().await?, (None, take)))
    })
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
    /// Gives them one after the other, for as long as somebody takes them.
    async fn feed(mut self, give: mpsc::Sender<Result<Bytes, GiveOutError>>) {
        loop {
            let next = tokio::select! {
                next = self.next() => next,
                () = give.closed() => return,
            };
            let Some(next) = next.transpose() else { return };
            let ends = next.is_err();
            let room = match tokio::time::timeout(TAKEN_WITHIN, give.reserve()).await {
                Ok(room) => room,
                Err(_) => {
                    (self.reader, self.ahead) = (None, VecDeque::new());
                    give.reserve().await
                }
            };
            let Ok(room) = room else { return };
            room.send(next);
            if ends {
                return;
            }
        }
    }

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
        let mut read_from_there = false;
        loop {
            while let Some(entry) = self.ahead.pop_front() {
                if entry.offset == wanted {
                    return Ok(entry);
                }
                if entry.offset > wanted {
                    if read_from_there {
                        return Err(missing());
                    }
                    // A chunk that had to be appended again lies behind those after it.
                    self.ahead.clear();
                    self.reader = None;
                }
            }
            let near = self.reader.as_ref().is_some_and(|(_, next)| *next <= wanted && wanted.distance_from(*next) <= SKIP_AT_MOST);
            if !near {
                self.reader = Some((self.log.read(&self.partition, wanted), wanted));
                read_from_there = true;
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

//! What is said over the socket: frames of a length (four bytes, big-endian) and a Protocol Buffers message.
//!
//! Both sides are always of one build of Bluebox, on one machine; [`VERSION`] tells when they are not.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::{Message, Oneof};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::message::{
    AppendAsk, AppendedSay, Assignments, BoundsSay, CommitAsk, CommittedAsk, CommittedSay, Entries, Failure, JoinAsk, Nothing, Place, Places, ReadAsk,
    RecordsSay, TopicSpecs, TruncatedSay,
};

/// Changes with every change of the frames.
pub(super) const VERSION: u32 = 1;

/// The largest frame, in bytes. More than the largest batch of records.
pub(super) const MAX_FRAME_BYTES: usize = 16 << 20;

/// How much is read from the socket at once, at least.
const READ_BYTES: usize = 64 << 10;
/// A smaller frame is copied out of what was read.
const SHARED_BYTES: usize = 64 << 10;

/// From the client. `id` is what the answer refers to: a request, a reader, or a membership.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ToLog {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(oneof = "Ask", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19")]
    pub(super) ask: Option<Ask>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Ask {
    /// The first frame; the version.
    #[prost(uint32, tag = "2")]
    Hello(u32),
    /// The client lives.
    #[prost(message, tag = "3")]
    Heartbeat(Nothing),
    #[prost(message, tag = "4")]
    Append(AppendAsk),
    #[prost(message, tag = "5")]
    Bounds(Place),
    #[prost(message, tag = "6")]
    Committed(CommittedAsk),
    #[prost(message, tag = "7")]
    CreateTopics(TopicSpecs),
    #[prost(string, tag = "8")]
    Partitions(String),
    #[prost(message, tag = "9")]
    Read(ReadAsk),
    /// So many more batches of a reader.
    #[prost(uint32, tag = "10")]
    ReadMore(u32),
    /// The reader was dropped.
    #[prost(message, tag = "11")]
    EndRead(Nothing),
    #[prost(message, tag = "12")]
    Join(JoinAsk),
    #[prost(message, tag = "13")]
    Start(ReadAsk),
    /// As many records as make `at` since the start.
    #[prost(message, tag = "14")]
    Want(ReadAsk),
    #[prost(message, tag = "15")]
    Commit(CommitAsk),
    #[prost(message, tag = "16")]
    Release(Places),
    /// Answered under the request in it.
    #[prost(uint64, tag = "17")]
    Leave(u64),
    /// The membership was dropped.
    #[prost(message, tag = "18")]
    Drop(Nothing),
    /// The news of a loss was taken.
    #[prost(message, tag = "19")]
    LossTaken(Nothing),
}

/// From the log.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FromLog {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(oneof = "Say", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
    pub(super) say: Option<Say>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Say {
    /// The answer to a hello; the version.
    #[prost(uint32, tag = "2")]
    Welcome(u32),
    /// Whether the log can be written.
    #[prost(bool, tag = "3")]
    Healthy(bool),
    #[prost(message, tag = "4")]
    Appended(AppendedSay),
    #[prost(message, tag = "5")]
    NotAppended(Failure),
    #[prost(message, tag = "6")]
    Bounds(BoundsSay),
    #[prost(message, tag = "7")]
    Committed(CommittedSay),
    /// Topics were made, a commit was written, a group was left.
    #[prost(message, tag = "8")]
    Done(Nothing),
    /// 0: there is no such topic.
    #[prost(uint32, tag = "9")]
    Partitions(u32),
    #[prost(message, tag = "10")]
    Failed(Failure),
    #[prost(message, tag = "11")]
    Entries(Entries),
    /// Of a reader or a membership.
    #[prost(message, tag = "12")]
    Truncated(TruncatedSay),
    #[prost(message, tag = "13")]
    Assigned(Assignments),
    #[prost(message, tag = "14")]
    Records(RecordsSay),
    #[prost(message, tag = "15")]
    Revoking(Places),
    #[prost(message, tag = "16")]
    Lost(Places),
    #[prost(string, tag = "17")]
    Trouble(String),
}

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The other side has closed it, or is gone.
    #[error("the connection was closed")]
    Closed,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes; up to {MAX_FRAME_BYTES} are taken")]
    TooLarge(usize),
    #[error("a frame that can't be read: {0}")]
    Unreadable(#[from] prost::DecodeError),
    #[error("{0}")]
    Protocol(&'static str),
}

impl Broken {
    /// Whether it was the other side that ended, rather than this one that gives up on it.
    pub(super) fn by_peer(&self) -> bool {
        matches!(self, Self::Closed | Self::Io(_))
    }
}

/// Adds a frame to what is written next.
pub(super) fn put_frame(out: &mut BytesMut, message: &impl Message) {
    let length = message.encoded_len();
    out.reserve(4 + length);
    // Frames are far below 4 GiB: records, batches and requests are bounded.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room for it.
    let _ = message.encode(out);
}

/// Reads frames from a socket.
pub(super) struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: BytesMut::new() }
    }

    /// The next frame. Cancel safe. What is read shares the memory of the frame, and a large frame that of what was read with it: whoever keeps a small one keeps nothing else.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<M, Broken> {
        loop {
            let mut wanted = 4;
            if let Some(length) = self.buffer.first_chunk() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if length > MAX_FRAME_BYTES {
                    return Err(Broken::TooLarge(length));
                }
                wanted += length;
                if self.buffer.len() >= wanted {
                    self.buffer.advance(4);
                    let frame = if length < SHARED_BYTES {
                        let copied = Bytes::copy_from_slice(&self.buffer[..length]);
                        self.buffer.advance(length);
                        copied
                    } else {
                        self.buffer.split_to(length).freeze()
                    };
                    return Ok(M::decode(frame)?);
                }
            }
            self.buffer.reserve(READ_BYTES.max(wanted - self.buffer.len()));
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Err(Broken::Closed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_keeps_a_small_record_keeps_nothing_that_was_read_with_it() {
        let ask = |id, bytes| {
            let record = AppendAsk { to: None, key: Bytes::new(), value: Some(vec![b'x'; bytes].into()) };
            ToLog { id, ask: Some(Ask::Append(record)) }
        };
        let sent = [ask(1, 400_000), ask(2, 100), ask(3, 400_000), ask(4, 0)];
        let mut bytes = BytesMut::new();
        sent.iter().for_each(|frame| put_frame(&mut bytes, frame));
        let mut frames = FrameReader::new(&bytes[..]);
        let mut read = Vec::new();
        for _ in &sent {
            read.push(frames.next::<ToLog>().await.unwrap());
        }
        assert_eq!(read, sent);
        let Some(Ask::Append(AppendAsk { value: Some(small), .. })) = &read[1].ask else { panic!() };
        assert!(small.is_unique(), "it shares its memory with others");
        assert!(matches!(frames.next::<ToLog>().await, Err(Broken::Closed)));
    }
}

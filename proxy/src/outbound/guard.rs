//! A connection of the app, guarded: hyper sees of it only what [`crate::outbound::framing`] lets on; heads must arrive in time; interim responses are written between
//! hyper's own; and a connection is closed so that its peer can read the last answer.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::outbound::framing::{Framing, Protocol, Verdict};
use crate::outbound::interim::Queue;
use crate::problem::{Kind, Problem};

/// How long, and how much, is still read of a request that was refused: a connection that is closed with unread data loses the answer too.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 << 20;

/// What is known of a connection by its bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
struct Seen {
    framing: Framing,
    last_byte: Instant,
    /// Whether hyper may hold bytes that it has not written: it flushes only when it has written all.
    unflushed: bool,
    interims: Queue,
    /// The connection's task, when it waits for what another task may do.
    task: Option<Waker>,
}

impl Seen {
    fn remember(&mut self, cx: &Context<'_>) {
        match &mut self.task {
            Some(task) => task.clone_from(cx.waker()),
            None => self.task = Some(cx.waker().clone()),
        }
    }

    fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

impl Watch {
    /// The verdict on the head of the next request; to be asked once for each.
    pub fn take_verdict(&self) -> Verdict {
        self.seen().framing.take_verdict()
    }

    /// The connection speaks another protocol now: it is not watched any more.
    pub fn let_go(&self) {
        let mut seen = self.seen();
        seen.framing.let_go();
        seen.wake();
    }

    /// The request that may have switched protocols has not.
    pub fn go_on(&self) {
        let mut seen = self.seen();
        seen.framing.go_on();
        seen.wake();
    }

    /// Whether a head has begun and not ended.
    pub fn is_in_head(&self) -> bool {
        self.seen().framing.in_head().is_some()
    }

    /// Whether hyper has read no further than to the end of a request, and has written all that it had to write.
    pub(crate) fn is_between_messages(&self) -> bool {
        let seen = self.seen();
        seen.framing.is_between_messages() && !seen.unflushed
    }

    /// Whether there is more to be read of the body of a request.
    pub(crate) fn is_in_a_body(&self) -> bool {
        self.seen().framing.is_in_a_body()
    }

    /// Gives back the room that is kept for what comes: for long nothing will.
    pub(crate) fn take_little(&self) {
        self.seen().framing.take_little();
    }

    /// When the last byte came or went.
    pub fn last_byte(&self) -> Instant {
        self.seen().last_byte
    }

    /// Looks at the interim responses of the request under way.
    pub(crate) fn interims<T>(&self, look: impl FnOnce(&mut Queue) -> T) -> T {
        look(&mut self.seen().interims)
    }

    /// Adds to them, and has them written as soon as that can be.
    pub(crate) fn add_interim(&self, add: impl FnOnce(&mut Queue)) {
        let mut seen = self.seen();
        add(&mut seen.interims);
        seen.wake();
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    watch: Watch,
    head_timeout: Duration,
    /// Set while a head arrives: which, and until when.
    deadline: Option<(u64, Pin<Box<Sleep>>)>,
    /// What had come before it was guarded, and is not looked at yet.
    before: Bytes,
    /// What is read before anything else.
    again: Bytes,
    lingering: Option<Lingering>,
}

/// What became of what was read of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    /// Nothing: it has ended.
    End,
    /// Its reader may have it as it is.
    AsItIs,
    /// It was taken in. What its reader may have of it is ready.
    TakenIn,
}

#[derive(Debug)]
struct Lingering {
    until: Pin<Box<Sleep>>,
    left_bytes: usize,
    /// Whether more is to be expected than what is there.
    patient: bool,
}

impl Guarded {
    /// Guards a connection whose request heads may have `max_head_bytes`, and take `head_timeout` from their first byte to their last.
    pub fn new(stream: TcpStream, max_head_bytes: usize, head_timeout: Duration) -> (Self, Watch) {
        let seen = Seen { framing: Framing::new(max_head_bytes), last_byte: Instant::now(), unflushed: false, interims: Queue::default(), task: None };
        let watch = Watch { seen: Arc::new(Mutex::new(seen)) };
        (Self { stream, watch: watch.clone(), head_timeout, deadline: None, before: Bytes::new(), again: Bytes::new(), lingering: None }, watch)
    }

    /// Waits until it is known which protocol is spoken; `None` when the connection ends before. What has come is there for its next reader. Cancel safe.
    ///
    /// # Errors
    /// When the connection breaks off, or the preface of HTTP/2 does not arrive in time.
    pub(crate) async fn protocol(&mut self) -> io::Result<Option<Protocol>> {
        std::future::poll_fn(|cx| {
            loop {
                if let Some(protocol) = self.watch.seen().framing.protocol() {
                    return Poll::Ready(Ok(Some(protocol)));
                }
                let mut scratch = [MaybeUninit::uninit(); 4096];
                match ready!(self.poll_stream(cx, &mut ReadBuf::uninit(&mut scratch)))? {
                    Came::End => return Poll::Ready(Ok(None)),
                    Came::AsItIs | Came::TakenIn => {}
                }
            }
        })
        .await
    }

    /// Whether more has come, of which nothing is taken; `false` when the connection has ended.
    ///
    /// # Errors
    /// When it breaks off.
    pub(crate) fn poll_more(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.before.is_empty() {
            return Poll::Ready(Ok(true));
        }
        self.stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map_ok(|there| there > 0)
    }

    /// The connection, and what has come on it and nobody has read; `read` was read already, but not used. For one that was let go.
    pub(crate) fn into_stream(self, read: &[u8]) -> (TcpStream, Vec<u8>) {
        let left = self.watch.seen().framing.left();
        (self.stream, [read, &self.again, &left].concat())
    }

    /// What has come before it was guarded.
    pub(crate) fn takes_up(&mut self, came: Vec<u8>) {
        self.before = came.into();
    }

    /// Who reads next reads this first, before all else that it was to read.
    pub(crate) fn read_first(&mut self, bytes: Bytes) {
        self.again = if self.again.is_empty() { bytes } else { [bytes, std::mem::take(&mut self.again)].concat().into() };
    }

    /// Reads once, and follows what came.
    fn poll_stream(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<Came>> {
        let before = buffer.filled().len();
        let read = if self.before.is_empty() {
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        } else {
            buffer.put_slice(&self.before.split_to(self.before.len().min(buffer.remaining())));
            Poll::Ready(Ok(()))
        };
        match read {
            Poll::Ready(Ok(())) => {
                let mut seen = self.watch.seen();
                let came = &buffer.filled()[before..];
                if came.is_empty() {
                    return Poll::Ready(Ok(Came::End));
                }
                seen.last_byte = Instant::now();
                let was_in_a_body = seen.framing.is_in_a_body();
                let as_it_is = seen.framing.feed(came);
                if !was_in_a_body && seen.framing.is_in_a_body() {
                    // Some clients send a head and its body apart, and the body when the head was acknowledged (Nagle's algorithm, RFC 9293, section 3.7.4): urllib3 to every proxy. The kernel
                    // would wait for 40 ms.
                    let _ = SockRef::from(&self.stream).set_tcp_quickack(true);
                }
                match seen.framing.in_head() {
                    None => self.deadline = None,
                    Some(head) if self.deadline.as_ref().is_some_and(|(of, _)| *of == head) => {}
                    Some(head) => self.deadline = Some((head, Box::pin(tokio::time::sleep(self.head_timeout)))),
                }
                if as_it_is {
                    return Poll::Ready(Ok(Came::AsItIs));
                }
                buffer.set_filled(before);
                Poll::Ready(Ok(Came::TakenIn))
            }
            Poll::Pending => {
                ready!(self.deadline.as_mut().map_or(Poll::Pending, |(_, deadline)| deadline.as_mut().poll(cx)));
                self.deadline = None;
                self.late()?;
                Poll::Ready(Ok(Came::TakenIn))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Writes what is there of interim responses.
    fn poll_interims(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut seen = self.watch.seen();
        seen.remember(cx);
        while !seen.interims.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, seen.interims.begin()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => seen.interims.advance(written),
            }
            seen.last_byte = Instant::now();
        }
        Poll::Ready(Ok(()))
    }

    /// hyper has something to write. An interim response that has been written in part is written to its end before anything else.
    fn poll_before_writing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.seen().unflushed = true;
        if self.watch.seen().interims.has_begun() {
            ready!(self.poll_interims(cx))?;
        }
        self.watch.seen().last_byte = Instant::now();
        Poll::Ready(Ok(()))
    }

    /// The head under way did not come in time.
    fn late(&self) -> io::Result<()> {
        let mut seen = self.watch.seen();
        if !seen.framing.is_head_of_http1() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the preface of HTTP/2 did not arrive in time"));
        }
        let detail = format!("the head of the request did not arrive within {}", humantime::format_duration(self.head_timeout));
        seen.framing.refuse(Problem::new(Kind::SlowHead, detail));
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.again.is_empty() {
            let bytes = this.again.split_to(this.again.len().min(buffer.remaining()));
            buffer.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        loop {
            {
                let mut seen = this.watch.seen();
                if seen.framing.give(buffer.remaining(), |bytes| buffer.put_slice(bytes)) > 0 {
                    return Poll::Ready(Ok(()));
                }
                if !seen.framing.wants_more() {
                    seen.remember(cx);
                    return Poll::Pending;
                }
            }
            match this.poll_stream(cx, buffer) {
                Poll::Ready(came) => match came? {
                    Came::End | Came::AsItIs => return Poll::Ready(Ok(())),
                    Came::TakenIn => {}
                },
                Poll::Pending => {
                    this.watch.seen().remember(cx);
                    return Poll::Pending;
                }
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before_writing(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before_writing(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes only when all that it had to write is written. While a request is with the proxy, all of the answer before it is, and nothing of its own:
    /// so this is where an interim response can go out. Its request's answer is given to hyper only after that (see [`crate::outbound::interim`]).
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interims(cx))?;
        self.watch.seen().unflushed = false;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends the sending side, and then reads for a while what its peer is still sending.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if this.watch.seen().framing.is_let_go() {
                return Poll::Ready(Ok(()));
            }
        }
        let watch = &this.watch;
        let lingering = this.lingering.get_or_insert_with(|| Lingering {
            until: Box::pin(tokio::time::sleep(LINGER_TIME)),
            left_bytes: LINGER_BYTES,
            patient: watch.seen().framing.is_within_a_message(),
        });
        let mut scratch = [0; 8192];
        while lingering.left_bytes > 0 && lingering.until.as_mut().poll(cx).is_pending() {
            let mut unwanted = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut unwanted) {
                Poll::Pending if lingering.patient => return Poll::Pending,
                Poll::Ready(Ok(())) if !unwanted.filled().is_empty() => {
                    lingering.left_bytes = lingering.left_bytes.saturating_sub(unwanted.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::outbound::interim::Interims;

    /// A guarded connection that takes nothing more, as its peer reads nothing; and the peer.
    async fn full() -> (Guarded, Watch, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut guarded, watch) = Guarded::new(stream.unwrap(), 1000, Duration::from_secs(60));
        // The system may take more a moment later: it is full when nothing goes for a while.
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(200), guarded.write(&[b'x'; 1 << 16])).await {
            written.unwrap();
        }
        (guarded, watch, accepted.unwrap().0)
    }

    fn read_to_end(mut peer: TcpStream) -> tokio::task::JoinHandle<String> {
        tokio::spawn(async move {
            let mut all = String::new();
            peer.read_to_string(&mut all).await.unwrap();
            all.trim_start_matches('x').to_owned()
        })
    }

    #[tokio::test]
    async fn an_interim_response_waits_until_the_answer_before_it_is_written() {
        let (mut guarded, watch, peer) = full().await;
        Interims::begin(&watch).push(StatusCode::PROCESSING, &HeaderMap::new());
        let all = read_to_end(peer);
        guarded.write_all(b"the end of the answer before\r\n").await.unwrap();
        guarded.flush().await.unwrap();
        guarded.write_all(b"the answer").await.unwrap();
        drop(guarded);
        assert_eq!(all.await.unwrap(), "the end of the answer before\r\nHTTP/1.1 102 Processing\r\n\r\nthe answer");
    }

    #[tokio::test]
    async fn an_interim_response_is_written_to_its_end() {
        let (mut guarded, watch, peer) = full().await;
        let mut headers = HeaderMap::new();
        headers.insert("link", http::HeaderValue::try_from("z".repeat(60_000)).unwrap());
        let interims = Interims::begin(&watch);
        interims.push(StatusCode::from_u16(103).unwrap(), &headers);
        let mut flushing = std::pin::pin!(guarded.flush());
        assert!(futures_util::poll!(&mut flushing).is_pending(), "it has begun, and there is no room");
        let mut ended = std::pin::pin!(interims.end());
        assert!(futures_util::poll!(&mut ended).is_pending(), "the answer waits");
        let all = read_to_end(peer);
        guarded.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        ended.await;
        interims.push(StatusCode::PROCESSING, &HeaderMap::new());
        guarded.flush().await.unwrap();
        drop(guarded);
        let all = all.await.unwrap();
        assert_eq!(all.replace('z', ""), "HTTP/1.1 103 Early Hints\r\nlink: \r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", "none comes after the end");
    }
}

//! A connection of the app, guarded: heads must arrive in time, and their framing is watched (see [`crate::framing`]).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::framing::{Framing, Verdict};

/// What is known of a connection by its bytes. Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    framing: Framing,
    last_byte: Instant,
}

impl Watch {
    /// The verdict on the framing of the next request; to be asked once for each.
    pub fn take_verdict(&self) -> Verdict {
        self.seen().framing.take_verdict()
    }

    /// The connection speaks another protocol now: it is not watched any more.
    pub fn let_go(&self) {
        self.seen().framing.let_go();
    }

    /// When the last byte came or went.
    pub fn last_byte(&self) -> Instant {
        self.seen().last_byte
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection.
pub struct Guarded {
    stream: TcpStream,
    watch: Watch,
    head_timeout: Duration,
    /// Set while a head arrives.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    /// Guards a connection whose request heads may have `max_head_bytes`, and take `head_timeout` from their first byte to their last.
    pub fn new(stream: TcpStream, max_head_bytes: usize, head_timeout: Duration) -> (Self, Watch) {
        let seen = Seen { framing: Framing::new(max_head_bytes), last_byte: Instant::now() };
        let watch = Watch { seen: Arc::new(Mutex::new(seen)) };
        (Self { stream, watch: watch.clone(), head_timeout, deadline: None }, watch)
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                let mut seen = this.watch.seen();
                seen.framing.feed(&buffer.filled()[before..]);
                seen.last_byte = Instant::now();
                if !seen.framing.in_head() {
                    this.deadline = None;
                } else if this.deadline.is_none() {
                    this.deadline = Some(Box::pin(tokio::time::sleep(this.head_timeout)));
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                let late = this.deadline.as_mut().is_some_and(|d| d.as_mut().poll(cx).is_ready());
                if late && this.watch.seen().framing.in_head() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of a request did not arrive in time")));
                }
                Poll::Pending
            }
            failed => failed,
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.watch.seen().last_byte = Instant::now();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.watch.seen().last_byte = Instant::now();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Request targets that are no URIs: with `"`, `<`, `>` or a backtick in them, as curl and many a client send them. `http::Uri`, and so hyper, does not take
//! those bytes, but apps do; so they are masked on their way through hyper and are put back on the connection to the app or server.
//!
//! Nothing is corrected, which RFC 9112, section 3, warns of: what came is what goes on. None of these bytes ends a target or a line.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use http::uri::{InvalidUri, PathAndQuery};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};

/// The path and query of a request as they were sent, where its URI has them masked.
#[derive(Debug, Clone)]
pub struct RawTarget(pub Box<str>);

/// Bytes that `http::Uri` doesn't take somewhere in a path or a query, but HTTP's parsers do.
const MASKED: [char; 4] = ['"', '<', '>', '`'];

/// The target with those bytes masked; its length stays.
pub fn mask(target: &str) -> String {
    target.replace(MASKED, "_")
}

/// Path and query of a target in origin or absolute form, and where they begin, if they must be masked.
pub fn raw_part(target: &str) -> Option<(usize, &str)> {
    let from = if target.starts_with('/') {
        0
    } else {
        let authority = target.find("://")? + 3;
        authority + target[authority..].find(['/', '?'])?
    };
    let part = &target[from..];
    let must = part.contains(MASKED) && PathAndQuery::try_from(part).is_err();
    must.then_some((from, part))
}

/// A target as hyper takes it; and, if that isn't what is to be sent, what is.
///
/// # Errors
/// When it is no target in origin form, nor `*`.
pub fn path_and_query(target: &str) -> Result<(PathAndQuery, Option<Box<str>>), InvalidUri> {
    match PathAndQuery::try_from(target) {
        Ok(path) => Ok((path, None)),
        Err(_) => Ok((PathAndQuery::try_from(mask(target))?, Some(target.into()))),
    }
}

/// A target for HTTP/2, whose implementation takes URIs alone: if it is none, with those bytes percent-encoded.
pub fn encoded(target: &str) -> String {
    if PathAndQuery::try_from(target).is_ok() {
        return target.to_owned();
    }
    target.replace('"', "%22").replace('<', "%3C").replace('>', "%3E").replace('`', "%60")
}

/// Makes such connections.
#[derive(Debug, Clone)]
pub struct Verbatim<C> {
    inner: C,
    raw_target: Option<Box<str>>,
}

impl<C> Verbatim<C> {
    /// Connects as `inner` does; the target, if any, is for the first request on each connection.
    pub fn new(inner: C, raw_target: Option<Box<str>>) -> Self {
        Self { inner, raw_target }
    }
}

impl<C> tower_service::Service<Uri> for Verbatim<C>
where
    C: tower_service::Service<Uri, Future: Send + 'static>,
{
    type Response = Sending<C::Response>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (connecting, raw_target) = (self.inner.call(to), self.raw_target.clone());
        Box::pin(async move { Ok(Sending::new(connecting.await?, raw_target)) })
    }
}

/// A connection of a client for one request, on which the target of the first request line is replaced.
#[derive(Debug)]
pub struct Sending<S> {
    inner: S,
    line: Option<Line>,
}

#[derive(Debug)]
enum Line {
    /// The target that is to stand in the first request line.
    Target(Box<str>),
    /// What is to be written instead of so many bytes of hyper's, and how much of it has been.
    Instead { of: usize, bytes: Vec<u8>, written: usize },
}

impl<S> Sending<S> {
    /// A connection that sends this target, if any, instead of the one in the first request line.
    pub fn new(inner: S, target: Option<Box<str>>) -> Self {
        Self { inner, line: target.map(Line::Target) }
    }
}

/// The beginning of a request with another target in its first line.
fn with_target(head: &[u8], target: &str) -> Option<Vec<u8>> {
    let line = &head[..head.iter().position(|b| *b == b'\n')?];
    let from = line.iter().position(|b| *b == b' ')? + 1;
    let to = line.iter().rposition(|b| *b == b' ').filter(|to| *to > from)?;
    Some([&head[..from], target.as_bytes(), &head[to..]].concat())
}

impl<S: Write + Unpin> Write for Sending<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(Line::Target(target)) = &this.line {
            // hyper writes a head in one piece.
            let instead = with_target(bytes, target).ok_or_else(|| io::Error::other("the head of a request was not written in one piece"))?;
            this.line = Some(Line::Instead { of: bytes.len(), bytes: instead, written: 0 });
        }
        let Some(Line::Instead { of, bytes: instead, written }) = &mut this.line else { return Pin::new(&mut this.inner).poll_write(cx, bytes) };
        while *written < instead.len() {
            match ready!(Pin::new(&mut this.inner).poll_write(cx, &instead[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *written += more,
            }
        }
        let of = *of;
        this.line = None;
        Poll::Ready(Ok(of))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.line.is_some() {
            let first = buffers.iter().find(|b| !b.is_empty()).map_or(&b""[..], |b| b);
            return self.poll_write(cx, first);
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: Read + Unpin> Read for Sending<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: Connection> Connection for Sending<S> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_target_of_the_first_line_is_replaced() {
        let head = b"GET /_?_ HTTP/1.1\r\nx: /_?_ HTTP\r\n\r\nGET /_?_ HTTP/1.1\r\n";
        assert_eq!(with_target(head, "/<?>").unwrap(), b"GET /<?> HTTP/1.1\r\nx: /_?_ HTTP\r\n\r\nGET /_?_ HTTP/1.1\r\n");
        for broken in [&b"GET /_?_ HTTP/1.1"[..], b"GET\n", b"GET /\n", b""] {
            assert_eq!(with_target(broken, "/<?>"), None);
        }
    }

    #[test]
    fn every_byte_that_hyper_refuses_is_masked_or_refused_for_a_reason() {
        for byte in 0x21..=0x7eu8 {
            let target = format!("/{}?{}", char::from(byte), char::from(byte));
            if byte == b'#' {
                continue; // a fragment, which is refused
            }
            let (path, raw) = path_and_query(&target).unwrap_or_else(|e| panic!("{target}: {e}"));
            assert_eq!(raw.as_deref().unwrap_or(path.as_str()), target);
            assert!(PathAndQuery::try_from(encoded(&target)).is_ok(), "{target}");
        }
    }
}

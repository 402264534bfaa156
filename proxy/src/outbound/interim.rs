//! Interim responses (1xx, RFC 9110, section 15.2) of a server that is passed through, on their way to the app.
//!
//! hyper's server can't send them. So they are written beside it, by [`crate::outbound::guard`], under two rules that keep them from getting into another answer: they
//! are written only when hyper has nothing left to write while their request is with the proxy; and the answer to that request is given to hyper only when all
//! of them are written. HTTP/1.1 alone: HTTP/1.0 has none, and over HTTP/2 they are not passed on.

use std::task::{Poll, Waker};

use http::{HeaderMap, StatusCode, header};
use tracing::debug;

use crate::fields;
use crate::outbound::guard::Watch;

/// What may wait to be written, in responses and in bytes; further ones are dropped.
const MOST_WAITING: usize = 16;
const MOST_WAITING_BYTES: usize = 64 << 10;

/// The way to the app of interim responses to one request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Interims {
    watch: Watch,
    request: u64,
}

impl Interims {
    /// For the request that has just come on this connection.
    pub fn begin(watch: &Watch) -> Self {
        let request = watch.interims(|queue| {
            queue.request += 1;
            queue.open = true;
            queue.request
        });
        Self { watch: watch.clone(), request }
    }

    /// Passes one on. Does nothing when the request has been answered, and drops it when the app takes none out.
    pub fn push(&self, status: StatusCode, headers: &HeaderMap) {
        self.watch.add_interim(|queue| {
            if queue.open && queue.request == self.request {
                queue.push(status, headers);
            }
        });
    }

    /// Waits until all are written; further ones are not taken.
    pub async fn end(&self) {
        std::future::poll_fn(|cx| {
            self.watch.interims(|queue| {
                if queue.request != self.request {
                    return Poll::Ready(());
                }
                queue.open = false;
                if queue.is_empty() {
                    return Poll::Ready(());
                }
                queue.answer = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }
}

/// Those of the request under way that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// The number of the request on its connection.
    request: u64,
    open: bool,
    bytes: Vec<u8>,
    waiting: usize,
    /// How much of `bytes` has been written.
    written: usize,
    begun: bool,
    /// The answer, when it waits.
    answer: Option<Waker>,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether a part has been written, but not all.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// What is to be written; from now on nothing else may be before it is.
    pub(crate) fn begin(&mut self) -> &[u8] {
        self.begun = true;
        &self.bytes[self.written..]
    }

    /// So much has been written.
    pub(crate) fn advance(&mut self, written: usize) {
        self.written += written;
        if self.written >= self.bytes.len() {
            (self.bytes, self.written, self.waiting, self.begun) = (Vec::new(), 0, 0, false);
            if let Some(answer) = self.answer.take() {
                answer.wake();
            }
        }
    }

    fn push(&mut self, status: StatusCode, headers: &HeaderMap) {
        let mut headers = headers.clone();
        fields::strip_hop_by_hop(&mut headers);
        fields::strip_own(&mut headers);
        // An interim response has no content (RFC 9110, section 8.6).
        headers.remove(header::CONTENT_LENGTH);
        let mut bytes = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
        for (name, value) in &headers {
            bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
        if self.waiting == MOST_WAITING || self.bytes.len() + bytes.len() > MOST_WAITING_BYTES {
            debug!(%status, "dropped an interim response: the caller takes them too slowly");
            return;
        }
        self.waiting += 1;
        self.bytes.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in of {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_belongs_to_the_servers_connection_is_taken_out() {
        let mut queue = Queue::default();
        let fields = [
            ("link", "</a>"),
            ("link", "</b>"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("bluebox-error", "forged"),
        ];
        queue.push(StatusCode::from_u16(103).unwrap(), &headers(&fields));
        queue.push(StatusCode::from_u16(199).unwrap(), &headers(&[]));
        assert_eq!(queue.begin(), b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\nHTTP/1.1 199 \r\n\r\n");
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_bytes() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            queue.push(StatusCode::PROCESSING, &headers(&[]));
        }
        assert_eq!(queue.begin().len(), 16 * "HTTP/1.1 102 Processing\r\n\r\n".len());
        let written = queue.begin().len();
        queue.advance(written - 1);
        assert!(queue.has_begun());
        queue.advance(1);
        assert!(!queue.has_begun() && queue.is_empty());
        let mut large = HeaderMap::new();
        large.insert("x", HeaderValue::try_from("x".repeat(40 << 10)).unwrap());
        queue.push(StatusCode::PROCESSING, &large);
        queue.push(StatusCode::PROCESSING, &large);
        assert!(queue.begin().len() < 50 << 10);
    }
}

//! A caller that waits for long costs little: its connection is held without hyper, whose buffers take some 24 KiB for each.
//!
//! The answer to the one request that an HTTP/1 connection has under way is made [here](UnderWay), not in hyper's service. When the stages of that request say
//! that from now on they only [wait](LongWait), hyper is left. When there is an answer, or more comes from the caller, hyper is begun again: what it reads first is a
//! [head](Head) that says as much of the request as its answer depends on.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version, header};

use crate::fields;
use crate::outbound::respond::AnswerBody;

/// So many callers may be held with hyper, times those that wait in all: some 700 while there are no others, and 50 beside 10,000.
const MANY: usize = 500_000;

/// What a request ends in.
pub(crate) type Answer = Result<Response<AnswerBody>, Infallible>;
/// The answer to a request, in the making. Boxed, as many are in the making for long and have no use for the room of an answer meanwhile.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Box<Answer>> + Send>>;

/// Told by the stages of a request: from now on they only wait, perhaps for long. Among the request's extensions.
#[derive(Debug, Clone, Default)]
pub(crate) struct LongWait(Arc<AtomicBool>);

impl LongWait {
    /// It begins. To be told by the task of the connection.
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// After which time a caller waits for long, where so many wait, and `with_hyper` of them have not been held without it so far: the sooner the more there are, because until then
/// each costs some ten times as much. With many it is at once.
pub(crate) fn after(configured: Duration, waiting: usize, with_hyper: usize) -> Duration {
    let left = MANY.saturating_sub(waiting.saturating_mul(with_hyper));
    configured * u32::try_from(left).unwrap_or(u32::MAX) / u32::try_from(MANY).unwrap_or(u32::MAX)
}

/// The request that an HTTP/1 connection has under way. Cheap to clone; belongs to the task of the connection.
#[derive(Clone, Default)]
pub(crate) struct UnderWay {
    state: Arc<Mutex<State>>,
    waits: LongWait,
}

#[derive(Default)]
struct State {
    answer: Progress,
    /// What stands for the request, until hyper was told of it again.
    head: Option<Head>,
}

#[derive(Default)]
enum Progress {
    /// There is no request.
    #[default]
    None,
    Making(Answering),
    Made(Box<Answer>),
}

impl UnderWay {
    /// What the request's stages say that they wait with.
    pub(crate) fn long_wait(&self) -> LongWait {
        self.waits.clone()
    }

    /// A request has come, for which `head` stands, and is answered.
    pub(crate) fn begin(&self, head: Head, answering: Answering) {
        self.waits.0.store(false, Ordering::Relaxed);
        *self.state() = State { answer: Progress::Making(answering), head: Some(head) };
    }

    /// Whether the request that came is the one that hyper was told of again.
    pub(crate) fn is_told_again(&self) -> bool {
        let state = self.state();
        state.head.is_none() && !matches!(state.answer, Progress::None)
    }

    /// Whether it waits for long now, and hyper may be left.
    pub(crate) fn waits(&self) -> bool {
        self.waits.0.load(Ordering::Relaxed) && self.state().head.is_some()
    }

    /// Goes on with it until it has an answer, which is kept.
    pub(crate) fn poll_made(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if let Progress::Making(answering) = &mut state.answer {
            state.answer = Progress::Made(ready!(answering.as_mut().poll(cx)));
        }
        Poll::Ready(())
    }

    /// What hyper is told of it again, when it is begun again.
    pub(crate) fn tell_again(&self, closes: bool) -> Bytes {
        self.state().head.take().map_or_else(Bytes::new, |head| head.to_bytes(closes))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For hyper's service: the answer to the request under way.
impl Future for UnderWay {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.state();
        let answer = match &mut state.answer {
            Progress::None => return Poll::Pending,
            Progress::Making(answering) => ready!(answering.as_mut().poll(cx)),
            Progress::Made(_) => match std::mem::take(&mut state.answer) {
                Progress::Made(answer) => answer,
                Progress::None | Progress::Making(_) => return Poll::Pending,
            },
        };
        *state = State::default();
        Poll::Ready(*answer)
    }
}

/// What an answer's form depends on in the head of its request (RFC 9112, sections 6.3 and 9.3; RFC 9110, section 6.5.1). Holds nothing of the buffer that the head came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    method: Method,
    version: Version,
    persists: bool,
    takes_trailers: bool,
}

impl Head {
    /// That of a request.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let (version, headers) = (request.version(), request.headers());
        let persists = match version {
            Version::HTTP_11 => !says(headers, "close"),
            _ => says(headers, "keep-alive") && !says(headers, "close"),
        };
        Self { method: request.method().clone(), version, persists, takes_trailers: fields::takes_trailers(headers) }
    }

    /// As a head of HTTP/1 with no content. `closes`: the connection is to be closed with the answer.
    fn to_bytes(&self, closes: bool) -> Bytes {
        let persists = self.persists && !closes;
        let (version, connection) = match (self.version, persists) {
            (Version::HTTP_11, true) => ("HTTP/1.1", ""),
            (Version::HTTP_11, false) => ("HTTP/1.1", "connection: close\r\n"),
            (_, true) => ("HTTP/1.0", "connection: keep-alive\r\n"),
            (_, false) => ("HTTP/1.0", ""),
        };
        let te = if self.takes_trailers { "te: trailers\r\n" } else { "" };
        format!("{} / {version}\r\n{connection}{te}\r\n", self.method).into()
    }
}

/// Whether a message says this about its connection.
fn says(headers: &HeaderMap, what: &str) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_again(method: &str, version: Version, fields: &[(&str, &str)], closes: bool) -> String {
        let mut request = Request::builder().method(method).version(version).uri("http://cart/items?x=1");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        String::from_utf8(Head::of(&request.body(()).unwrap()).to_bytes(closes).to_vec()).unwrap()
    }

    #[test]
    fn of_many_who_wait_each_is_held_sooner() {
        let millis = |(waiting, with_hyper)| after(Duration::from_millis(200), waiting, with_hyper).as_millis();
        let few = [(0, 0), (64, 64), (512, 512)];
        assert_eq!(few.map(millis), [200, 198, 95]);
        let many = [(707, 707), (708, 708), (10_000, 25), (10_000, 50), (100_000, 100_000), (usize::MAX, 2)];
        assert_eq!(many.map(millis), [0, 0, 100, 0, 0, 0]);
        assert_eq!(after(Duration::ZERO, 5_000, 0), Duration::ZERO);
    }

    #[test]
    fn the_head_that_hyper_reads_again_says_what_the_answer_depends_on() {
        let length = ("content-length", "1000");
        assert_eq!(told_again("HEAD", Version::HTTP_11, &[length], false), "HEAD / HTTP/1.1\r\n\r\n");
        assert_eq!(told_again("POST", Version::HTTP_11, &[length], true), "POST / HTTP/1.1\r\nconnection: close\r\n\r\n");
        assert_eq!(told_again("BREW", Version::HTTP_11, &[("connection", "te, Close")], false), "BREW / HTTP/1.1\r\nconnection: close\r\n\r\n");
        let trailers = [("te", "trailers, deflate"), ("connection", "te")];
        assert_eq!(told_again("GET", Version::HTTP_11, &trailers, false), "GET / HTTP/1.1\r\nte: trailers\r\n\r\n");
        assert_eq!(told_again("GET", Version::HTTP_10, &[], false), "GET / HTTP/1.0\r\n\r\n");
        assert_eq!(told_again("GET", Version::HTTP_10, &[("connection", "Keep-Alive")], false), "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
        assert_eq!(told_again("GET", Version::HTTP_10, &[("connection", "keep-alive")], true), "GET / HTTP/1.0\r\n\r\n");
    }
}

//! Out of the app: one request, from its arrival to its answer. In the order in which it meets them:
//!
//! - [`intercept`]: takes requests off the app's connections, and refuses what is no HTTP.
//!   Its connections are guarded ([`guard`]), which follows the requests ([`framing`]), judges their heads ([`head`](crate::head)) and writes interim responses
//!   ([`interim`]). Those of callers that wait for long are held without hyper ([`long_wait`]). An app in this process has no connections ([`in_process`]).
//! - [`decide`]: where it goes, as far as the registry has been read. [`route`] decides: durable call, pass-through, Bluebox's own API, or a clear no.
//! - [`passthrough`]: what is no component goes its way, streaming. A [`tunnel`] to one that is ends here: its connection begins anew.
//! - [`calls`]: Bluebox's own API, `http://bluebox/v1/calls/ID`.
//! - [`durable`]: what is a call, with these stages:
//!   - [`envelope`]: makes a call out of a request, as its caller prefers ([`prefer`]). Where nothing says which partition it goes to, [`spread`] does.
//!   - [`append`]: makes it durable: from here on it is *accepted*.
//!   - [`pending`]: waits for its outcome.
//!   - [`respond`]: answers the app.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bluebox_core::fail_point_async;
use bluebox_core::log::Log;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio::sync::watch;
use tracing::{debug, error};

use crate::bulk::{Bulk, OutBody};
use crate::config::ProxyConfig;
use crate::context::Contexts;
use crate::metrics::Metrics;
use crate::outbound::decide::there;
use crate::outbound::durable::Handed;
use crate::outbound::passthrough::{PassThrough, Place};
use crate::outbound::pending::Pending;
use crate::outbound::respond::{AnswerBody, Asked};
use crate::outbound::route::Route;
use crate::outbound::spread::Spread;
use crate::outbound::tunnel::Tunnel;
use crate::problem::{Kind, Problem};
use crate::registry::Directory;
use crate::spans::Spans;

pub mod append;
pub mod calls;
mod decide;
mod durable;
pub mod envelope;
pub mod framing;
pub mod guard;
pub mod in_process;
pub mod intercept;
pub mod interim;
pub mod long_wait;
pub mod passthrough;
pub mod pending;
pub mod prefer;
pub mod respond;
pub mod route;
pub mod spread;
mod tunnel;

tokio::task_local! {
    /// Set while the stages of a request run: a panic in there is answered.
    static ANSWERED: ();
}

/// Whether a panic here and now is answered with 500 and ends nothing else. For the panic hook of a process.
pub fn panics_are_answered() -> bool {
    ANSWERED.try_with(|()| ()).is_ok()
}

/// Where the connection of a request was going, if the redirect caught it; among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Towards(pub SocketAddr);

/// The body of a request of the app: from a connection, or of an app in this process.
pub type AppBody = Either<Incoming, Full<Bytes>>;

/// What all requests of the app share.
pub struct OutboundSide {
    /// What the proxy was told.
    pub config: Arc<ProxyConfig>,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The registry, as far as it has been read.
    pub directory: watch::Receiver<Directory>,
    /// Who waits for an outcome.
    pub pending: Pending,
    /// Bodies.
    pub bulk: Bulk,
    /// The way past the log.
    pub pass: PassThrough,
    /// Which transactions the app is at.
    pub contexts: Contexts,
    /// What is counted.
    pub metrics: Metrics,
    /// Makes spans of calls.
    pub spans: Spans,
    /// Where calls go that may go anywhere.
    pub spread: Spread,
    /// When the proxy started.
    pub began: Instant,
}

impl OutboundSide {
    /// Answers one request. Always has an answer: a mistake in Bluebox is one too.
    ///
    /// Dropped when the caller hangs up. That ends no call: what was handed to the log goes on.
    ///
    /// A block, and so are its stages, and no functions that are async by themselves, which would keep their arguments twice: many may wait, and for long.
    pub(crate) fn answer(
        self: Arc<Self>,
        request: Box<Request<AppBody>>,
        place: Place,
        refused: Option<Box<Problem>>,
    ) -> impl Future<Output = Box<long_wait::Answer>> + Send {
        let asked = Asked::of(&request);
        async move {
            let stages = self.stages(request, &asked, place, refused);
            let result = AssertUnwindSafe(ANSWERED.scope((), stages)).catch_unwind().await.unwrap_or_else(|_| {
                self.metrics.internal_errors.inc();
                error!("a mistake in Bluebox: the stages of a request panicked");
                Err(Problem::new(Kind::Internal, "this is a mistake in Bluebox; its log has more"))
            });
            Box::new(Ok(result.unwrap_or_else(|problem| respond::problem(problem, &asked))))
        }
    }

    fn stages<'a>(
        &'a self,
        request: Box<Request<AppBody>>,
        asked: &'a Asked,
        place: Place,
        refused: Option<Box<Problem>>,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Problem>> + Send + 'a {
        // Boxed, and so gone when the wait begins.
        let until_the_wait = Box::pin(self.until_the_wait(request, asked, place, refused));
        async move {
            let handed = match until_the_wait.await {
                Ok(Begun::Answered(answer)) => return Ok(*answer),
                Ok(Begun::Call(handed)) => handed,
                Err(problem) => return Err(problem),
            };
            self.end(handed, asked).await
        }
    }

    async fn until_the_wait(&self, request: Box<Request<AppBody>>, asked: &Asked, place: Place, refused: Option<Box<Problem>>) -> Result<Begun, Problem> {
        let (mut head, body) = request.into_parts();
        let towards = head.extensions.get().map(|Towards(towards)| *towards);
        fail_point_async!(OutIntercepted, return Err(Problem::new(Kind::Internal, "a fail point")));
        let route = match refused {
            Some(problem) => Err(*problem),
            None => self.decide(&head, towards).await,
        };
        let route = route.inspect_err(|problem| {
            self.metrics.refused.inc(problem.kind().word());
            if problem.kind() == Kind::StreamRefused {
                self.metrics.streams.inc("refused");
            }
            debug!(?problem, "refused a request");
        })?;
        fail_point_async!(OutRouted, return Err(Problem::new(Kind::Internal, "a fail point")));
        let answer = match route {
            Route::Call { destination, component } => return self.call(head, body, destination, &component).await.map(|handed| Begun::Call(Box::new(handed))),
            Route::Own(target) => calls::serve(self, &head.method, &target, asked).await,
            Route::PassThrough(target) => match there(&target, towards) {
                Ok(there) => self.passed(self.pass.pass(Request::from_parts(head, body), target, &there, place).await),
                Err(problem) => self.passed(Err(problem)),
            },
            Route::Tunnel { target, direct } => {
                let (Some(tunnel), Some(connection)) = (head.extensions.remove::<Tunnel>(), head.extensions.remove()) else {
                    return Err(Problem::new(Kind::Internal, "a tunnel on a connection that can't have one"));
                };
                debug!(to = %target.authority, "a tunnel to a component ends here");
                tunnel.open(connection, direct);
                // Any 2xx opens the tunnel, and has no content (RFC 9110, section 9.3.6).
                Ok(Response::new(AnswerBody::Own(OutBody::empty())))
            }
            Route::Stream { target, direct } => {
                // Where the caller wanted to go is as good as any box of the component.
                let direct = there(&target, towards).ok().filter(|there| !there.is_empty()).unwrap_or(direct);
                self.metrics.streams.inc("passed");
                self.passed(self.pass.pass(Request::from_parts(head, body), target, &direct, place).await)
            }
        };
        answer.map(|answer| Begun::Answered(Box::new(answer)))
    }

    fn passed(&self, result: Result<Response<AnswerBody>, Problem>) -> Result<Response<AnswerBody>, Problem> {
        result.inspect_err(|problem| {
            self.metrics.passed.inc(problem.kind().word());
            debug!(?problem, "could not pass a request through");
        })
    }
}

/// How far a request has come when the wait begins.
enum Begun {
    /// It is answered.
    Answered(Box<Response<AnswerBody>>),
    /// It is a call, and is waited for.
    Call(Box<Handed>),
}

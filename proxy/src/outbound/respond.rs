//! Answers the app: the outcome verbatim, or what the proxy has to say itself.

use std::pin::Pin;
use std::task::{Context, Poll};

use bluebox_core::call::{Body, Response as Recorded};
use bytes::Bytes;
use http::header;
use http::{Method, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;

use crate::bulk::{Bulk, OutBody};
use crate::fields;
use crate::problem::{Kind, Problem};

/// The body of any response to the app.
#[derive(Debug)]
pub enum AnswerBody {
    /// From a record, or of the proxy itself.
    Own(OutBody),
    /// From a server that is no component, as it comes.
    Through(Incoming),
    /// None, but the head tells the length of one (304). hyper leaves `Content-Length` out of a head whose body it knows to be empty.
    Telling,
}

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Through(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Telling => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Through(body) => body.is_end_stream(),
            Self::Telling => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Through(body) => body.size_hint(),
            Self::Telling => SizeHint::new(),
        }
    }
}

/// What must be known of a request to answer it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its version of HTTP.
    pub version: Version,
    /// Whether it takes trailer fields (`TE: trailers`).
    pub takes_trailers: bool,
}

impl Asked {
    /// From the request as it came.
    pub fn of<B>(request: &http::Request<B>) -> Self {
        Self { method: request.method().clone(), version: request.version(), takes_trailers: fields::takes_trailers(request.headers()) }
    }

    /// The body for a response whose content would be `body`, where `told` says whether the head has a `Content-Length`.
    pub fn body(&self, status: StatusCode, told: bool, body: AnswerBody) -> AnswerBody {
        if status == StatusCode::NOT_MODIFIED && told && self.version < Version::HTTP_2 {
            return AnswerBody::Telling;
        }
        if self.method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
            return AnswerBody::Own(OutBody::empty());
        }
        body
    }
}

/// The recorded response as the caller gets it: its status and reason phrase, its fields, its content and trailers as they were.
///
/// # Errors
/// When a large body can't be read any more.
pub async fn recorded(response: &Recorded, bulk: &Bulk, asked: &Asked) -> Result<Response<AnswerBody>, Problem> {
    if response.status.is_informational() {
        // Nobody records such a one; but it would turn this connection into something else.
        return Err(Problem::new(Kind::OutcomeUnreadable, format!("the outcome has the status {}, which ends no exchange", response.status)));
    }
    let mut answer = Response::new(());
    *answer.status_mut() = response.status;
    *answer.headers_mut() = response.headers.clone();
    // Whoever recorded it has taken them out already; but a wrong length here would let one answer run into the next.
    fields::strip_framing(&asked.method, response.status, answer.headers_mut());
    if let Some(reason) = response.reason.clone().and_then(|r| ReasonPhrase::try_from(r).ok()) {
        answer.extensions_mut().insert(reason);
    }
    // HTTP/1.1 sends trailers to those who said that they take them, and only those that `Trailer` names; HTTP/2 sends them always.
    let mut trailers = http::HeaderMap::new();
    if asked.version == Version::HTTP_2 || (asked.version == Version::HTTP_11 && asked.takes_trailers) {
        trailers = response.trailers.clone();
    }
    if asked.version == Version::HTTP_11 {
        fields::announce_trailers(answer.headers_mut(), &trailers);
    }
    let told = answer.headers().contains_key(header::CONTENT_LENGTH);
    let content = if asked.method == Method::HEAD { Body::empty() } else { response.body.clone() };
    let mut body = bulk.give_out(content, trailers);
    body.preload().await.map_err(|e| Problem::new(Kind::OutcomeUnreadable, e.to_string()))?;
    let body = asked.body(response.status, told, AnswerBody::Own(body));
    Ok(answer.map(|()| body))
}

/// A problem as the caller gets it.
pub fn problem(problem: Problem, asked: &Asked) -> Response<AnswerBody> {
    let mut response = problem.into_response().map(|document| AnswerBody::Own(OutBody::full(document)));
    if asked.version == Version::HTTP_2 {
        // A connection has no say in HTTP/2 (RFC 9113, section 8.2.2).
        response.headers_mut().remove(header::CONNECTION);
    }
    response
}

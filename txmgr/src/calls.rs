//! The calls that the transaction manager makes: durable ones, by the process's own proxy.

use std::error::Error;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};

/// The process's own proxy, as it takes requests of its app.
pub trait Calls: Send + Sync {
    /// Makes a call to the component that the request's URI names, and waits for its answer, with its content as [`content`] takes it. What the proxy has to say itself is an answer, too, with
    /// `Bluebox-Error`.
    ///
    /// Cancel safe: dropped, the request is as one whose client has hung up.
    fn call(&self, request: Request<Bytes>, max_bytes: usize) -> Calling<'_>;
}

/// What [`Calls::call`] becomes.
pub type Calling<'a> = Pin<Box<dyn Future<Output = Response<Bytes>> + Send + 'a>>;

/// The content of an answer, of at most so many bytes. What is longer, or breaks off, says nothing that is known here: it counts as none.
pub async fn content<B>(body: B, max_bytes: usize) -> Bytes
where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    Limited::new(body, max_bytes).collect().await.map(|body| body.to_bytes()).unwrap_or_default()
}

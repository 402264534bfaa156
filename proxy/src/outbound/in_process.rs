//! Requests of an app in the proxy's own process: the same stages, without a connection.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{Either, Full};
use tokio::sync::{Semaphore, SetOnce};

use super::OutboundSide;
use super::respond::AnswerBody;

/// Where an app in this process makes its requests. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    side: Arc<SetOnce<Arc<OutboundSide>>>,
    places: Arc<Semaphore>,
}

impl Calls {
    /// Of a proxy that does not run yet. So many at once; further ones wait.
    pub(crate) fn new(at_once: usize) -> Self {
        Self { side: Arc::default(), places: Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS))) }
    }

    /// The proxy runs.
    pub(crate) fn begin(&self, side: Arc<OutboundSide>) {
        // Once for each proxy.
        let _ = self.side.set(side);
    }

    /// Makes a request as the app would over a connection: the host that its URI names says where it goes. As many at once as there may be connections. Waits until the proxy runs. What the proxy
    /// has to say itself is an answer, too.
    ///
    /// Dropped, it is as one whose client has hung up: what was handed to the log goes on.
    pub async fn answer(&self, mut request: Request<Full<Bytes>>) -> Response<AnswerBody> {
        // Of its versions the one in which a request is these values, and nothing of a connection (RFC 9113, section 8.3).
        *request.version_mut() = Version::HTTP_2;
        let side = Arc::clone(self.side.wait().await);
        let Ok(place) = self.places.clone().acquire_owned().await else {
            // Never closed.
            return std::future::pending().await;
        };
        // Kept until there is an answer.
        let place = Arc::new(place);
        match *side.answer(Box::new(request.map(Either::Right)), Arc::clone(&place), None).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }
}

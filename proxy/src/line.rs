//! One line of log for each call out of the box, when it is over for who made it, and for each answer of the app to one into it.
//!
//! Their target is this module: `info,bluebox_proxy::line=warn` takes them away. No line has header fields, a body, or a query: secrets stand there.

use bluebox_core::call::Call;
use bluebox_core::{CallId, ComponentName};
use http::{Method, Response, StatusCode, request};
use std::time::{Duration, Instant};
use tracing::{Level, enabled, info};

use crate::fields;
use crate::problem::Problem;

/// What the target of these lines is; for who wants to treat them otherwise.
pub const TARGET: &str = module_path!();

/// A longer path is cut off.
const MAX_PATH_BYTES: usize = 256;

/// A call out of the box that is under way.
#[derive(Debug)]
pub struct Sent {
    method: Method,
    path: Box<str>,
    to: ComponentName,
    began: Instant,
}

impl Sent {
    /// From the head of its request; `None` if nobody wants to read of it: then nothing is copied.
    pub fn begin(head: &request::Parts, to: &ComponentName) -> Option<Self> {
        enabled!(Level::INFO).then(|| Self { method: head.method.clone(), path: path(head.uri.path()).into(), to: to.clone(), began: Instant::now() })
    }

    /// It is over for who made it. `result` says by whom it was answered, or which problem there was.
    pub fn ended<B>(self, id: Option<CallId>, answer: Result<&Response<B>, &Problem>, result: &str) {
        let (status, told) = match answer {
            Ok(response) => (response.status(), response.headers().get(fields::CALL_ID).and_then(|id| id.to_str().ok().map(str::to_owned))),
            Err(problem) => (problem.kind().status(), problem.call().map(|id| id.to_string())),
        };
        let call = id.map(|id| id.to_string()).or(told).unwrap_or_default();
        let Self { method, path, to, began } = self;
        info!(call, %to, %method, path = &*path, status = status.as_u16(), result, ms = milliseconds(began.elapsed()), "called");
    }

    /// Nobody was there to be answered any more.
    pub fn broke_off(self, id: Option<CallId>, result: &str) {
        let Self { method, path, to, began } = self;
        let call = id.map(|id| id.to_string()).unwrap_or_default();
        info!(call, %to, %method, path = &*path, result, ms = milliseconds(began.elapsed()), "called");
    }
}

/// The app has answered a call into the box.
pub fn answered(call: &Call, component: &ComponentName, attempt: u32, status: StatusCode, took: Duration) {
    if enabled!(Level::INFO) {
        let (method, path) = (&call.request.method, path(&call.request.target));
        info!(call = %call.id, %component, from = %call.caller, %method, path, attempt, status = status.as_u16(), ms = milliseconds(took), "answered");
    }
}

/// Without the query, and not longer than anybody reads.
pub(crate) fn path(target: &str) -> &str {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut end = path.len().min(MAX_PATH_BYTES);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

/// In milliseconds, with three digits after the point.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_query_and_no_end_of_a_path_that_is_too_long() {
        assert_eq!(path("/items?token=geheim"), "/items");
        assert_eq!(path("/items#x"), "/items");
        assert_eq!(path("*"), "*");
        let long = format!("/{}", "ä".repeat(200));
        let cut = path(&long);
        assert!(cut.len() <= MAX_PATH_BYTES && long.starts_with(cut), "{cut}");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(milliseconds(Duration::from_nanos(1_234_567)), 1.235);
    }
}

//! The embedded log for other processes on the machine, over a Unix socket.

mod client;
mod frame;
mod link;
mod member;
mod message;
mod server;
mod waiter;

use std::path::Path;
use std::sync::Arc;

pub use server::{ServeError, Server};

use super::Embedded;
use crate::log::Log;

/// Serves a log at a path, for this user alone, until the server is dropped.
///
/// A client whose connection ends is taken for dead at once; one that is stopped keeps its partitions until its session has run out.
///
/// # Errors
/// When another process serves there, or the socket can't be made: a path of more than 107 bytes, for instance.
pub fn serve(log: &Arc<Embedded>, path: &Path) -> Result<Server, ServeError> {
    Server::bind(&log.own, path)
}

/// A client of a log that another process serves. It is there at once, and connects, again and again, in the background: until it is connected, and whenever
/// the connection has ended, the log is [away](crate::log::Health::Away), appends are refused, readers wait, and memberships are lost, to be joined again.
///
/// # Panics
/// Outside of a Tokio runtime, when the system refuses to start a thread.
pub fn connect(path: &Path) -> Arc<dyn Log> {
    client::SocketLog::connect(path)
}

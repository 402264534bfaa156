//! A tunnel (CONNECT) to a component: it ends here. What is HTTP in it is served as on any connection of the app, so it is a call; anything else goes straight to a box, if the
//! component takes such.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::outbound::OutboundSide;
use crate::outbound::guard::Guarded;
use crate::outbound::passthrough::Place;
use crate::transparent::sniff::{Speaks, speaks};
use crate::transparent::{Said, first_said};

/// What becomes of a connection on which a tunnel was asked for; among the request's extensions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tunnel(Arc<Mutex<Option<Opened>>>);

impl Tunnel {
    /// It ends here, as soon as its client was told that it is open. What is no HTTP goes to one of `direct`.
    pub(crate) fn open(&self, connection: OnUpgrade, direct: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Opened { connection, direct });
    }

    /// The one that was opened, when the connection is no longer served.
    pub(crate) fn take(&self) -> Option<Opened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    connection: OnUpgrade,
    direct: Vec<String>,
}

impl Opened {
    /// The connection, and what has come on it already, if it is to be served here.
    ///
    /// # Errors
    /// When it has broken off.
    pub(crate) async fn served(self, side: &OutboundSide, place: &Place) -> io::Result<Option<(TcpStream, Vec<u8>)>> {
        let upgraded = self.connection.await.map_err(io::Error::other)?;
        let parts = upgraded.downcast::<TokioIo<Box<Guarded>>>().map_err(|_| io::Error::other("not a connection of the app"))?;
        let (stream, came) = parts.io.into_inner().into_stream(&parts.read_buf);
        if self.direct.is_empty() {
            return Ok(Some((stream, came)));
        }
        let is_other = if came.is_empty() {
            tokio::time::timeout(side.config.outbound.head_timeout, first_said(&stream, speaks)).await.is_ok_and(|said| said == Said::Other)
        } else {
            speaks(&came) == Speaks::Other
        };
        if !is_other {
            return Ok(Some((stream, came)));
        }
        side.metrics.streams.inc("passed");
        let connected = side.pass.connect(stream, came, &self.direct, place.clone()).await;
        connected.map_err(|problem| io::Error::other(format!("{problem:?}")))?;
        Ok(None)
    }
}

//! Whether the redirect is in place: asked by connecting to where nobody but the redirect can lead back to this proxy.
//!
//! Without it an app's calls would go out as if Bluebox were not there, and nobody would see it. A proxy that waits for what the redirect sends is not ready before it is.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::redirect::address;

/// The port at which the proxy answers for itself, at the address of components without a Service. None of them can have it: nothing of HTTP is there (tcpmux, RFC 1078).
pub const PORT: u16 = 1;
/// How long an answer may take: it comes from this process.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often is asked while there is no answer.
const SOON: Duration = Duration::from_secs(1);
/// And once there was one: somebody may take the rules away.
const LATER: Duration = Duration::from_secs(30);

/// What is known of the redirect. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Redirected(watch::Receiver<Found>);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nobody waits for a redirect.
    NotWanted,
    /// Nothing yet.
    Unknown,
    /// It is in place.
    There,
    /// It is not.
    Missing,
    /// There is no route to where it could be asked.
    NoRoute,
}

impl Redirected {
    /// For a proxy that waits for none.
    pub fn not_wanted() -> Self {
        Self(watch::channel(Found::NotWanted).1)
    }

    /// Begins to ask; what is returned second has to run for as long as the proxy does. `token` is what this proxy answers.
    ///
    /// # Errors
    /// When the count of it is there already, which is a mistake in this program.
    pub fn watch(token: String, metrics: &Metrics) -> Result<(Self, impl Future<Output = ()> + use<>), prometheus::Error> {
        let gauge = metrics.counts().gauge("bluebox_redirect_in_place", "Whether the kernel sends what the app sends to this proxy: 1, else 0")?;
        let (sender, receiver) = watch::channel(Found::Unknown);
        Ok((Self(receiver), ask_on(token, gauge, sender)))
    }

    /// What speaks against being ready.
    pub fn problem(&self) -> Option<&'static str> {
        match *self.0.borrow() {
            Found::NotWanted | Found::There | Found::NoRoute => None,
            Found::Unknown => Some("it is not known yet whether the redirect is in place"),
            Found::Missing => Some("the redirect is not in place: run `bluebox redirect` in this network namespace"),
        }
    }
}

async fn ask_on(token: String, gauge: IntGauge, sender: watch::Sender<Found>) {
    loop {
        let found = ask(&token).await;
        gauge.set((found == Found::There).into());
        let before = sender.send_replace(found);
        match (before, found) {
            (before, found) if before == found => {}
            (_, Found::There) => info!("the redirect is in place"),
            (_, Found::NoRoute) => warn!(
                v4 = %address::V4, v6 = %address::V6,
                "there is no route to the addresses of components without a Service: they can't be called; give the pod a default route"
            ),
            (Found::There, _) => error!("the redirect is not in place any more: what the app sends goes out as if Bluebox were not there, and is not durable"),
            _ => warn!("the redirect is not in place yet: run `bluebox redirect` in this network namespace"),
        }
        tokio::time::sleep(if found == Found::There { LATER } else { SOON }).await;
    }
}

async fn ask(token: &str) -> Found {
    let addresses = [IpAddr::from(address::V4), IpAddr::from(address::V6)];
    let Some(address) = addresses.into_iter().find(|address| address::has_route(*address)) else { return Found::NoRoute };
    let asking = async {
        let mut stream = TcpStream::connect(SocketAddr::new(address, PORT)).await?;
        let mut heard = vec![0; token.len()];
        stream.read_exact(&mut heard).await?;
        Ok::<_, std::io::Error>(heard)
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(heard)) if heard == token.as_bytes() => Found::There,
        _ => Found::Missing,
    }
}

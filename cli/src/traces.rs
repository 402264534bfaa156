//! Where traces go, as the standard environment says it (docs/tracing.md).

use bluebox_observe::trace::Settings;
use bluebox_proxy::spans::{KAFKA, Traces};
use tracing::error;

use crate::log::LogOptions;

/// What one process is called: not for the proxies that `up` starts, each of which has a name.
pub(crate) const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

/// Reads it. What can't be done is told, and then there are no traces: calls go on.
pub(crate) fn wanted(log: &LogOptions) -> Option<Traces> {
    let settings = Settings::from_environment(|name| std::env::var(name).ok()).unwrap_or_else(|problem| {
        error!(%problem, "there are no traces: what the environment says of them can't be done");
        None
    })?;
    Some(Traces { settings, log: if log.brokers.is_some() { KAFKA } else { "bluebox" } })
}

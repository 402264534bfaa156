//! Bluebox on Kubernetes.

pub(crate) mod alive;
pub(crate) mod check;
pub(crate) mod cluster;
pub(crate) mod enable;
pub(crate) mod incarnate;
pub(crate) mod inject;
pub(crate) mod injector;
pub(crate) mod install;
pub(crate) mod started;

use std::io::Write as _;

use anyhow::Context as _;
use bluebox_injector::Settings;
use bluebox_injector::redirect::Redirect;
use bluebox_injector::settings::{DEFAULT_KAFKA_SECRET, DEFAULT_NAMESPACE, DEFAULT_UID};
use clap::Args;
use serde_json::Value;

use crate::limits::{Known, Side};

/// What an installation says of its proxies.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The proxies")]
pub(crate) struct SettingsOptions {
    /// The image of the proxies.
    #[arg(long, env = "BLUEBOX_PROXY_IMAGE", value_name = "IMAGE", default_value = concat!("bluebox:", env!("CARGO_PKG_VERSION")))]
    proxy_image: String,
    /// The user that they run as.
    #[arg(long, env = "BLUEBOX_PROXY_UID", value_name = "UID", default_value_t = DEFAULT_UID)]
    proxy_uid: i64,
    /// The Secret in each namespace that says which Kafka.
    #[arg(long, env = "BLUEBOX_KAFKA_SECRET", value_name = "NAME", default_value = DEFAULT_KAFKA_SECRET)]
    kafka_secret: String,
    /// How the calls of an app come to its proxy where neither its pod nor its namespace's Pod Security Standard says it: caught by `nftables`, or by `env` (HTTP_PROXY).
    #[arg(long, env = "BLUEBOX_REDIRECT", value_name = "nftables|env", default_value_t)]
    redirect: Redirect,
    /// Bluebox's own namespace.
    #[arg(long, env = "BLUEBOX_NAMESPACE", value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,
}

impl SettingsOptions {
    fn settings(&self) -> anyhow::Result<Settings> {
        let settings = Settings::try_new(&self.proxy_image)?.with_uid(self.proxy_uid)?.with_redirect(self.redirect);
        Ok(settings.with_kafka_secret(&self.kafka_secret)?.with_namespace(&self.namespace)?)
    }
}

/// The limits of `bluebox proxy`, as annotations of pods.
#[derive(Debug)]
struct ProxyLimits(Known);

impl ProxyLimits {
    fn new() -> Self {
        Self(Known::of(Side::Both))
    }
}

impl bluebox_injector::Limits for ProxyLimits {
    fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_owned).collect()
    }

    fn flag(&self, name: &str, value: &str) -> Result<String, String> {
        self.0.flag(name, value)
    }
}

/// Prints manifests, for `kubectl apply -f -`.
fn print(objects: &[Value]) -> anyhow::Result<()> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(serde_saphyr::to_string(object)?.trim_end());
        text.push('\n');
    }
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

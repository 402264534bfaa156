//! Keeps the certificates right in the cluster: in the Secret that all replicas share, in what is shown, and in the bundle that the API server trusts.
//!
//! Where somebody else makes them (cert-manager), the injector writes nothing: it shows what it finds in a directory, and looks whether the API server trusts it.
//!
//! Replicas don't elect anyone. Each writes only over what it has read (`resourceVersion`), so of two that find something due one wins, and the other reads what that one wrote.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{info, warn};

use crate::certificates::{CertificateError, Certificates, Signed};
use crate::metrics::Metrics;
use crate::trust;

/// How often it is looked.
pub const EVERY: Duration = Duration::from_secs(10);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The key in the Secret under which everything is.
pub const KEY: &str = "certificates.json";

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The installation's namespace.
    pub namespace: String,
    /// The Secret in it. It must be there; it may be empty.
    pub secret: String,
    /// The configuration of the webhook.
    pub webhook: String,
    /// The Service, by which the API server finds the webhook.
    pub service: String,
}

impl Names {
    /// Those of an installation in a namespace.
    pub fn of(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secret: "bluebox-injector-certificates".to_owned(),
            webhook: "bluebox-injector".to_owned(),
            service: "bluebox-injector".to_owned(),
        }
    }

    /// The name that the API server expects of the webhook.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {0}: {1}")]
    Secret(String, kube::Error),
    #[error("MutatingWebhookConfiguration {0}: {1}")]
    Webhook(String, kube::Error),
    #[error(transparent)]
    Make(#[from] CertificateError),
    #[error("the certificate can't be used: {0}")]
    Use(String),
    #[error("{0}: can't be read: {1}; it is where the Secret with the certificate is mounted")]
    Read(PathBuf, std::io::Error),
    #[error("the API server doesn't trust the certificate in {0}: {1}; whoever makes it has to write its authority into the webhook's configuration")]
    Untrusted(PathBuf, String),
    #[error("no answer from the API server within {} s", PATIENCE.as_secs())]
    Patience,
}

impl KeepError {
    fn what(&self) -> &'static str {
        match self {
            Self::Secret(..) => "secret",
            Self::Webhook(..) => "webhook",
            Self::Make(_) | Self::Use(_) | Self::Read(..) => "certificate",
            Self::Untrusted(..) => "trust",
            Self::Patience => "patience",
        }
    }
}

/// The name of the certificate in a directory: that, and those between it and its authority, in PEM.
const CERTIFICATE_FILE: &str = "tls.crt";
/// The name of its key.
const KEY_FILE: &str = "tls.key";

/// Shows what is in a directory, as somebody else makes it; looks every [`EVERY`], for ever, and writes nothing.
pub async fn keep_given(
    client: Client,
    names: Names,
    directory: PathBuf,
    tls: watch::Sender<Option<Arc<ServerConfig>>>,
    trusted: watch::Sender<bool>,
    metrics: Metrics,
) {
    let keeper = Keeper { secrets: Api::namespaced(client.clone(), &names.namespace), webhooks: Api::all(client), names };
    let mut shown = (Vec::new(), Vec::new());
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let looked = tokio::time::timeout(PATIENCE, keeper.look_at_given(&directory, &mut shown, &tls, &metrics)).await.unwrap_or(Err(KeepError::Patience));
        match looked {
            Ok(()) => {
                trusted.send_if_modified(|trusted| !std::mem::replace(trusted, true));
            }
            Err(problem) => {
                metrics.failed(problem.what());
                warn!(%problem, "the certificate could not be looked after; trying again in {} s", EVERY.as_secs());
            }
        }
    }
}

/// Looks every [`EVERY`], for ever. What is there goes on being shown while the API server can't be asked.
pub async fn keep(client: Client, names: Names, tls: watch::Sender<Option<Arc<ServerConfig>>>, trusted: watch::Sender<bool>, metrics: Metrics) {
    let keeper = Keeper { secrets: Api::namespaced(client.clone(), &names.namespace), webhooks: Api::all(client), names };
    let mut shown: Option<Certificates> = None;
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let looked = tokio::time::timeout(PATIENCE, keeper.look(&mut shown, &tls, &metrics)).await.unwrap_or(Err(KeepError::Patience));
        match looked {
            Ok(()) => {
                trusted.send_if_modified(|trusted| !std::mem::replace(trusted, true));
            }
            Err(KeepError::Secret(_, kube::Error::Api(status)) | KeepError::Webhook(_, kube::Error::Api(status))) if status.is_conflict() => {
                info!("another replica was faster; looking again");
                looks.reset_after(Duration::from_millis(200));
            }
            Err(problem) => {
                metrics.failed(problem.what());
                warn!(%problem, "the certificates could not be looked after; trying again in {} s", EVERY.as_secs());
            }
        }
    }
}

struct Keeper {
    secrets: Api<Secret>,
    webhooks: Api<MutatingWebhookConfiguration>,
    names: Names,
}

impl Keeper {
    async fn look_at_given(
        &self,
        directory: &Path,
        shown: &mut (Vec<u8>, Vec<u8>),
        tls: &watch::Sender<Option<Arc<ServerConfig>>>,
        metrics: &Metrics,
    ) -> Result<(), KeepError> {
        let read = |file: &str| {
            let path = directory.join(file);
            std::fs::read(&path).map_err(|error| KeepError::Read(path, error))
        };
        // Kubernetes exchanges all files of a Secret at once. What was read while it did so are a certificate and another's key, which are refused, and read again.
        let found = (read(CERTIFICATE_FILE)?, read(KEY_FILE)?);
        if *shown != found {
            tls.send_replace(Some(Arc::new(config_of(&found.0, &found.1).map_err(KeepError::Use)?)));
            info!(directory = %directory.display(), "a new certificate is shown");
            *shown = found;
        }
        let name = &self.names.webhook;
        let configuration = self.webhooks.get(name).await.map_err(|error| KeepError::Webhook(name.clone(), error))?;
        let chain = String::from_utf8_lossy(&shown.0);
        for webhook in configuration.webhooks.iter().flatten() {
            let bundle = webhook.client_config.ca_bundle.as_ref().map_or(&[][..], |bundle| &bundle.0);
            let bundle = String::from_utf8_lossy(bundle);
            let (host, now) = (self.names.host(), SystemTime::now());
            trust::check(&bundle, &chain, &host, now).map_err(|why| KeepError::Untrusted(directory.to_owned(), why))?;
            if let Some(until) = trust::good_until(&bundle, &chain, &host, now) {
                metrics.certificate_until(until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
            }
        }
        Ok(())
    }

    async fn look(&self, shown: &mut Option<Certificates>, tls: &watch::Sender<Option<Arc<ServerConfig>>>, metrics: &Metrics) -> Result<(), KeepError> {
        let all = self.certificates().await?;
        // Trusted first, shown second.
        self.trust(&all.bundle()).await?;
        if shown.as_ref().is_none_or(|shown| shown.shown() != all.shown()) {
            let config = server_config(all.shown()).map_err(KeepError::Use)?;
            metrics.certificate_until(all.shown().until());
            tls.send_replace(Some(Arc::new(config)));
            info!(until = all.shown().until(), "a new certificate is shown");
        }
        *shown = Some(all);
        Ok(())
    }

    /// What the Secret has, after what is due was done.
    async fn certificates(&self) -> Result<Certificates, KeepError> {
        let name = &self.names.secret;
        let failed = |error| KeepError::Secret(name.clone(), error);
        let mut secret = self.secrets.get(name).await.map_err(failed)?;
        let there = secret.data.as_ref().and_then(|data| data.get(KEY)).and_then(|bytes| match serde_json::from_slice::<Certificates>(&bytes.0) {
            Ok(there) => Some(there),
            Err(problem) => {
                warn!(secret = name, %problem, "what is in the Secret can't be read; it is made anew");
                None
            }
        });
        let all = Certificates::at(there.clone(), &self.names.host(), SystemTime::now())?;
        if there.as_ref() != Some(&all) {
            // Names, strings and numbers: it can be written.
            let text = serde_json::to_vec(&all).map_err(|error| KeepError::Use(error.to_string()))?;
            secret.data.get_or_insert_default().insert(KEY.to_owned(), ByteString(text));
            self.secrets.replace(name, &PostParams::default(), &secret).await.map_err(failed)?;
            info!(secret = name, "certificates were renewed");
        }
        Ok(all)
    }

    /// Makes the API server trust them.
    async fn trust(&self, bundle: &str) -> Result<(), KeepError> {
        let name = &self.names.webhook;
        let failed = |error| KeepError::Webhook(name.clone(), error);
        let mut configuration = self.webhooks.get(name).await.map_err(failed)?;
        let mut changed = false;
        for webhook in configuration.webhooks.iter_mut().flatten() {
            let there = webhook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice());
            if there != Some(bundle.as_bytes()) {
                webhook.client_config.ca_bundle = Some(ByteString(bundle.as_bytes().to_vec()));
                changed = true;
            }
        }
        if changed {
            self.webhooks.replace(name, &PostParams::default(), &configuration).await.map_err(failed)?;
            info!(webhook = name, "the API server was given the authorities to trust");
        }
        Ok(())
    }
}

/// What is shown, as rustls wants it.
///
/// # Errors
/// When it is no certificate with its key.
pub fn server_config(shown: &Signed) -> Result<ServerConfig, String> {
    config_of(shown.certificate().as_bytes(), shown.key().as_bytes())
}

/// The same of files in PEM.
fn config_of(chain: &[u8], key: &[u8]) -> Result<ServerConfig, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| error.to_string())?;
    let versions =
        ServerConfig::builder_with_provider(ring::default_provider().into()).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = versions.with_no_client_auth().with_single_cert(chain, key).map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

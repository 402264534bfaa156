//! Keeps the certificates right in the cluster: in the Secret that all replicas share, in what is shown, and in the bundle that the API server trusts.
//!
//! Replicas don't elect anyone. Each writes only over what it has read (`resourceVersion`), so of two that find something due one wins, and the other reads what that one wrote.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

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
    #[error("no answer from the API server within {} s", PATIENCE.as_secs())]
    Patience,
}

impl KeepError {
    fn what(&self) -> &'static str {
        match self {
            Self::Secret(..) => "secret",
            Self::Webhook(..) => "webhook",
            Self::Make(_) | Self::Use(_) => "certificate",
            Self::Patience => "patience",
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
    let certificate = CertificateDer::from_pem_slice(shown.certificate().as_bytes()).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(shown.key().as_bytes()).map_err(|error| error.to_string())?;
    let versions =
        ServerConfig::builder_with_provider(ring::default_provider().into()).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = versions.with_no_client_auth().with_single_cert(vec![certificate], key).map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

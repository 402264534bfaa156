//! A cluster: which one, and what its API server says. What it said goes on as it came.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

const REMEDY: &str = "no cluster is known: set KUBECONFIG, or run this in one";

/// Which cluster, as kubectl's flags say it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "The cluster")]
pub(crate) struct ClusterOptions {
    /// The kubeconfig; by default what KUBECONFIG names, or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; by default its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterOptions {
    /// Whether somebody named one.
    pub(crate) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Whether there is one to be asked if nobody names one: a kubeconfig where kubectl looks for it, or that in which this runs.
    pub(crate) fn is_known(&self) -> bool {
        let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
        let usual = || named("HOME").is_some_and(|home| PathBuf::from(home).join(".kube/config").is_file());
        self.is_named() || named("KUBECONFIG").is_some() || usual() || named("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// How it is reached.
    pub(crate) async fn config(&self) -> anyhow::Result<Config> {
        let mut config = if self.is_named() {
            let kubeconfig = match &self.kubeconfig {
                Some(file) => Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display()))?,
                None => Kubeconfig::read().context(REMEDY)?,
            };
            let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
            let which = || self.context.as_ref().map_or_else(|| "its current context".to_owned(), |context| format!("--context {context:?}"));
            Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(which)?
        } else {
            Config::infer().await.context(REMEDY)?
        };
        config.connect_timeout = Some(PATIENCE);
        Ok(config)
    }
}

/// What was asked for: `Ok(None)` if it isn't there, `Err` if it can't be known.
pub(crate) type Asked = Result<Option<Value>, String>;

/// A cluster.
pub(crate) struct Cluster {
    client: Client,
    /// Where its API server is.
    pub(crate) url: String,
}

impl Cluster {
    /// The one that the flags, the kubeconfig or the place in which this runs name.
    pub(crate) async fn of(options: &ClusterOptions) -> anyhow::Result<Self> {
        let mut config = options.config().await?;
        config.read_timeout = Some(PATIENCE);
        let url = config.cluster_url.to_string();
        Ok(Self { client: Client::try_from(config)?, url })
    }

    /// Its client.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Gets what is at a path.
    pub(crate) async fn get(&self, path: &str) -> Asked {
        self.ask(Request::get(path).body(Vec::new())).await
    }

    /// Gets a list: its items.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, String> {
        let mut list = self.get(path).await?.unwrap_or_default();
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Gets what is at a path, as it is; what a pod says is no JSON.
    pub(crate) async fn text(&self, path: &str) -> Result<String, String> {
        let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        match tokio::time::timeout(PATIENCE, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::new(error))),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    /// Makes something, or asks what would become of it.
    pub(crate) async fn make(&self, path: &str, object: &Value) -> Asked {
        let body = serde_json::to_vec(object).map_err(|error| error.to_string())?;
        self.ask(Request::post(path).header("content-type", "application/json").body(body)).await
    }

    async fn ask(&self, request: Result<Request<Vec<u8>>, http::Error>) -> Asked {
        let request = request.map_err(|error| error.to_string())?;
        match tokio::time::timeout(PATIENCE, self.client.request::<Value>(request)).await {
            Ok(Ok(value)) => Ok(Some(value)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::new(error))),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

//! Asks the API server, and no more than that: what it said goes to the judges as it came.

use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What was asked for: `Ok(None)` if it isn't there, `Err` if it can't be known.
pub(super) type Asked = Result<Option<Value>, String>;

/// A cluster.
pub(super) struct Cluster {
    client: Client,
    /// Where its API server is.
    pub(super) url: String,
}

impl Cluster {
    /// The one that the kubeconfig names, or in which this runs.
    pub(super) async fn of(context: Option<&str>) -> anyhow::Result<Self> {
        const REMEDY: &str = "no cluster is known: set KUBECONFIG, or run this in one";
        let mut config = match context {
            None => Config::infer().await.context(REMEDY)?,
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
                Config::from_custom_kubeconfig(Kubeconfig::read().context(REMEDY)?, &options).await.with_context(|| format!("--context {context:?}"))?
            }
        };
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        let url = config.cluster_url.to_string();
        Ok(Self { client: Client::try_from(config)?, url })
    }

    /// Its client.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Gets what is at a path.
    pub(super) async fn get(&self, path: &str) -> Asked {
        self.ask(Request::get(path).body(Vec::new())).await
    }

    /// Gets a list: its items.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Value>, String> {
        let mut list = self.get(path).await?.unwrap_or_default();
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Gets what is at a path, as it is; what a pod says is no JSON.
    pub(super) async fn text(&self, path: &str) -> Result<String, String> {
        let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        match tokio::time::timeout(PATIENCE, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::new(error))),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    /// Makes something, or asks what would become of it.
    pub(super) async fn make(&self, path: &str, object: &Value) -> Asked {
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

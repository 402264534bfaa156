//! `external.metrics.k8s.io/v1beta1`: what a HorizontalPodAutoscaler asks for a metric of type `External`. An APIService makes the API server ask here.
//!
//! The API server wants TLS. The certificate is made here and known to nobody, so the APIService says `insecureSkipTLSVerify`: what is told is what `/metrics` tells everybody,
//! and who stands in between could only have components scaled wrongly. For the same reason nobody is asked who he is: the API server asks that, and whether he may (RBAC).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use bluebox_injector::certificates::Certificates;
use bluebox_injector::keep::server_config;
use bluebox_observe::listener;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Unknown, figure};
use crate::watch::{Status, Watched};

const GROUP: &str = "external.metrics.k8s.io/v1beta1";
const BACKLOG: &str = "bluebox_component_backlog_calls";
const OLDEST: &str = "bluebox_component_oldest_call_age_seconds";
const MAX_CONNECTIONS: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers until it is dropped.
///
/// # Errors
/// When no certificate can be made.
pub(crate) fn serve(listener: TcpListener, watched: Watched) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let certificates = Certificates::at(None, "bluebox-watch", SystemTime::now())?;
    let config = server_config(certificates.shown()).map_err(anyhow::Error::msg).context("TLS")?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Ok(listener::accept(listener, MAX_CONNECTIONS, move |stream, _, busy| {
        busy.set(true);
        let (acceptor, watched) = (acceptor.clone(), watched.clone());
        async move {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let (status, body) = answer(request.method(), request.uri().path(), request.uri().query(), &watched.status.borrow(), wall_clock());
                let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
                *response.status_mut() = status;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let mut http = auto::Builder::new(TokioExecutor::new());
            http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            // A connection that broke is its client's affair.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        }
    }))
}

fn answer(method: &Method, path: &str, query: Option<&str>, status: &Status, now: Timestamp) -> (StatusCode, Value) {
    if method != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "GET only");
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts[..] {
        ["healthz" | "readyz" | "livez"] => (StatusCode::OK, json!("ok")),
        ["apis", "external.metrics.k8s.io", "v1beta1"] => {
            let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": ["get"]});
            (StatusCode::OK, json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [resource(BACKLOG), resource(OLDEST)]}))
        }
        // The namespace is that of who asks; a component is of no namespace.
        ["apis", "external.metrics.k8s.io", "v1beta1", "namespaces", _, metric] => match values(metric, query, status, now) {
            Ok(items) => (StatusCode::OK, json!({"kind": "ExternalMetricValueList", "apiVersion": GROUP, "metadata": {}, "items": items})),
            Err(answer) => answer,
        },
        _ => refused(StatusCode::NOT_FOUND, "NotFound", "there is /apis/external.metrics.k8s.io/v1beta1"),
    }
}

fn values(metric: &str, query: Option<&str>, status: &Status, now: Timestamp) -> Result<Vec<Value>, (StatusCode, Value)> {
    let bad = |why: &str| refused(StatusCode::BAD_REQUEST, "BadRequest", why);
    let component = component(query.unwrap_or_default()).map_err(|why| bad(&why))?;
    if ![BACKLOG, OLDEST].contains(&metric) {
        return Err(refused(StatusCode::NOT_FOUND, "NotFound", &format!("metric {metric:?}: there are {BACKLOG} and {OLDEST}")));
    }
    let figure = figure(status, &component, now).map_err(|unknown| match unknown {
        Unknown::NotNow(why) => refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &why),
        Unknown::NoComponent(why) => refused(StatusCode::NOT_FOUND, "NotFound", &why),
    })?;
    let value = if metric == BACKLOG { figure.backlog.to_string() } else { format!("{}m", figure.oldest.as_millis()) };
    let timestamp = std::time::UNIX_EPOCH + Duration::from_millis(status.at_ms);
    let timestamp = humantime::format_rfc3339_seconds(timestamp).to_string();
    Ok(vec![json!({"metricName": metric, "metricLabels": {"component": component}, "timestamp": timestamp, "value": value})])
}

/// The component that a label selector asks for: `component=cart`.
fn component(query: &str) -> Result<String, String> {
    const FORM: &str = "a selector is to name one component: matchLabels: {component: cart}";
    let selector = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector=")).ok_or(FORM)?;
    // What a label selector can have in it that a URL must not have plain.
    let selector = ["%3D", "%3d"].iter().fold(selector.to_owned(), |selector, equals| selector.replace(equals, "="));
    let name = selector.strip_prefix("component=").map(|name| name.trim_start_matches('='));
    let legal = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    name.filter(legal).map(str::to_owned).ok_or_else(|| format!("{FORM}; this one is {selector:?}"))
}

fn refused(status: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    (status, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": status.as_u16()}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::scale::tests::seen;

    const METRICS: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/";

    fn get(path: &str, query: Option<&str>, status: &Status) -> (u16, Value) {
        let (code, body) = answer(&Method::GET, path, query, status, Timestamp::from_millis(1_000_500));
        (code.as_u16(), body)
    }

    #[test]
    fn an_autoscaler_is_told_what_one_component_has() {
        let status = seen(1_000_000, 7);
        let (code, list) = get(&format!("{METRICS}{BACKLOG}"), Some("labelSelector=component%3Dcart"), &status);
        assert_eq!((code, &list["items"][0]["value"], &list["items"][0]["timestamp"]), (200, &json!("7"), &json!("1970-01-01T00:16:40Z")), "{list}");
        let (_, list) = get(&format!("{METRICS}{OLDEST}"), Some("timeoutSeconds=5&labelSelector=component=cart"), &status);
        assert_eq!(list["items"][0]["value"], "2000m", "{list}");
        let (code, list) = get(GROUP_PATH, None, &status);
        assert_eq!((code, list["resources"].as_array().unwrap().len()), (200, 2));
    }

    const GROUP_PATH: &str = "/apis/external.metrics.k8s.io/v1beta1";

    #[test]
    fn what_is_not_known_is_an_error() {
        let status = seen(1_000_000, 7);
        let backlog = format!("{METRICS}{BACKLOG}");
        for (path, query, status, code) in [
            (&backlog, Some("labelSelector=component%3Dcard"), &status, 404),
            (&backlog, Some("labelSelector=name%3Dcart"), &status, 400),
            (&backlog, Some("labelSelector=component%20in%20%28cart%2Ccard%29"), &status, 400),
            (&backlog, None, &status, 400),
            (&format!("{METRICS}lag"), Some("labelSelector=component%3Dcart"), &status, 404),
            (&backlog, Some("labelSelector=component%3Dcart"), &seen(2000, 7), 503),
            (&"/apis".to_owned(), None, &status, 404),
        ] {
            let (told, body) = get(path, query, status);
            assert!(told == code && body["kind"] == "Status" && body["message"].as_str().is_some_and(|why| !why.is_empty()), "{path} {query:?}: {told} {body}");
        }
    }
}

//! What goes on, over HTTP: `/` is a page for people, `/v1/…` the same as JSON, `/metrics` for Prometheus; and what can be changed.
//!
//! Whoever may change something is whoever reaches the listener: so that is on loopback. A browser on the same machine reaches it too, with pages of strangers in it: so the request's
//! `Host` must be loopback (DNS rebinding), and its `Origin`, if it has one, this page's own (cross-site requests).

use std::net::SocketAddr;
use std::sync::Arc;

use bluebox_observe::listener::{self, Peer, is_local, plain, who};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Watched, history};
use crate::operate::dlq;
use bluebox_core::ComponentName;
use bluebox_core::wire::Settlement;

/// What is shown to people.
const PAGE: &str = include_str!("page.html");
/// The most calls that are told at once.
const MOST: usize = 200;

/// What who connects may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Look.
    Look,
    /// Replay and drop dead letters too.
    Change,
}

/// Told of whatever was changed: what, and who asked for it.
pub(crate) type Log = Arc<dyn Fn(String) + Send + Sync>;

/// Answers until it is dropped.
pub(crate) async fn serve(listener: TcpListener, watched: Watched, rights: Rights, log: Log) {
    listener::serve(listener, move |request| {
        let (watched, log) = (watched.clone(), log.clone());
        async move { answer(request, &watched, rights, &log).await }
    })
    .await;
}

async fn answer(request: Request<Incoming>, watched: &Watched, rights: Rights, log: &Log) -> Response<Full<Bytes>> {
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| *address);
    if rights == Rights::Change
        && let Err(why) = is_local(request.headers())
    {
        return plain(StatusCode::FORBIDDEN, format!("{why}\n"));
    }
    let path = request.uri().path().to_owned();
    let changes = path.strip_prefix("/v1/dead-letters/").and_then(|rest| rest.rsplit_once('/'));
    if let Some((id, what)) = changes {
        let how = match what {
            "replay" => Settlement::Replayed,
            "drop" => Settlement::Dropped,
            _ => return plain(StatusCode::NOT_FOUND, "a dead letter can be replayed or dropped\n"),
        };
        return match (rights, request.method()) {
            (Rights::Look, _) => plain(StatusCode::FORBIDDEN, "this listener can be asked, not told\n"),
            (Rights::Change, &Method::POST) => settle(watched, id, how, &who(peer, request.headers()), log).await,
            (Rights::Change, _) => plain(StatusCode::METHOD_NOT_ALLOWED, "POST only\n"),
        };
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match path.as_str() {
        "/" => html(rights),
        "/metrics" => plain(StatusCode::OK, watched.metrics.counts().text()),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if watched.status.borrow().at_ms == 0 => plain(StatusCode::SERVICE_UNAVAILABLE, "the log was not looked at yet\n"),
        "/readyz" => plain(StatusCode::OK, "ready\n"),
        "/v1/status" => json(StatusCode::OK, &*watched.status.borrow()),
        "/v1/calls" => {
            let only = match component(request.uri()) {
                Ok(only) => only,
                Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
            };
            told(history::waiting(&watched.reached(), only.as_ref(), MOST).await)
        }
        "/v1/dead-letters" => told(dlq::list_all(&watched.reached(), None).await),
        path => match path.strip_prefix("/v1/calls/") {
            Some(id) if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) => told(history::story(&watched.reached(), id, None).await),
            _ => plain(StatusCode::NOT_FOUND, "there are /, /metrics, /v1/status, /v1/calls, /v1/calls/ID and /v1/dead-letters\n"),
        },
    }
}

fn component(uri: &Uri) -> Result<Option<ComponentName>, String> {
    let Some(query) = uri.query() else { return Ok(None) };
    let name = query.strip_prefix("component=").ok_or("?component=NAME")?;
    ComponentName::try_new(name).map(Some).map_err(|problem| problem.to_string())
}

async fn settle(watched: &Watched, id: &str, how: Settlement, who: &str, log: &Log) -> Response<Full<Bytes>> {
    let word = if how == Settlement::Dropped { "dropped" } else { "replayed" };
    match dlq::settle_one(&watched.reached(), id, how).await {
        Ok(call) => {
            log(format!("dead letter {call} was {word}, asked for by {who}"));
            json(StatusCode::OK, &json!({"call": call, "done": word}))
        }
        Err(error) => {
            log(format!("dead letter {id:?} could not be {word}, asked for by {who}: {error:#}"));
            plain(StatusCode::CONFLICT, format!("{error:#}\n"))
        }
    }
}

fn html(rights: Rights) -> Response<Full<Bytes>> {
    let page = if rights == Rights::Change { PAGE.replacen("data-rights=\"look\"", "data-rights=\"change\"", 1) } else { PAGE.to_owned() };
    let mut response = Response::new(Full::new(page.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    // Nothing from elsewhere, not in frames of others.
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn told<T: Serialize>(what: anyhow::Result<T>) -> Response<Full<Bytes>> {
    match what {
        Ok(what) => json(StatusCode::OK, &what),
        Err(error) => plain(StatusCode::NOT_FOUND, format!("{error:#}\n")),
    }
}

fn json(status: StatusCode, what: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(what) {
        Ok(text) => {
            let mut response = plain(status, text);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_pages_of_this_listener_may_ask() {
        for good in [
            &[("host", "127.0.0.1:4144")][..],
            &[("host", "localhost:4144"), ("origin", "http://localhost:4144")],
            &[("host", "[::1]:4144")],
            &[("host", "localhost")],
        ] {
            assert_eq!(is_local(&headers(good)), Ok(()), "{good:?}");
        }
        for bad in [
            &[("host", "evil.example")][..],
            &[("host", "127.0.0.1.evil.example:4144")],
            &[("host", "evil.example:127.0.0.1")],
            &[],
            &[("host", "localhost:4144"), ("origin", "http://evil.example")],
            &[("host", "localhost:4144"), ("origin", "http://localhost:8080")],
            &[("host", "localhost:4144"), ("origin", "null")],
            &[("host", "localhost:4144"), ("origin", "https://localhost:4144")],
        ] {
            assert!(is_local(&headers(bad)).is_err(), "{bad:?}");
        }
        let mut twice = headers(&[("host", "localhost:4144")]);
        twice.append(header::HOST, HeaderValue::from_static("localhost:4144"));
        assert!(is_local(&twice).is_err());
    }
}

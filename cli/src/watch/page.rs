//! What goes on, over HTTP: `/` is a page for people, `/v1/…` the same as JSON, `/metrics` for Prometheus; and what can be changed.
//!
//! Whoever may change something is whoever reaches the listener: so that is on loopback. A browser on the same machine reaches it too, with pages of strangers in it: so the request's
//! `Host` must be loopback (DNS rebinding), and its `Origin`, if it has one, this page's own (cross-site requests).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::wire::Settlement;
use bluebox_observe::listener::{self, Peer, is_local, plain, who};
use bluebox_txmgr::TransactionId;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use super::{MAX_TAPS, Watched, history};
use crate::operate::tap::{self, Tap};
use crate::operate::{dlq, get, topics};

/// What is shown to people.
const PAGE: &str = include_str!("page.html");
/// The most calls that are told at once.
const MOST: usize = 200;

/// What who connects may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Look.
    Look,
    /// See requests as they came, replay and drop dead letters, and end transactions too.
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

/// Whole, or as it comes.
type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

fn whole(response: Response<Full<Bytes>>) -> Response<Body> {
    response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

async fn answer(request: Request<Incoming>, watched: &Watched, rights: Rights, log: &Log) -> Response<Body> {
    if rights == Rights::Change
        && let Err(why) = is_local(request.headers())
    {
        return whole(plain(StatusCode::FORBIDDEN, format!("{why}\n")));
    }
    let path = request.uri().path().to_owned();
    // What shows requests as they came, or costs much, is for those who may change something too.
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let closed = match parts[..] {
        ["v1", "dead-letters" | "transactions", _, ..] | ["v1", "tap" | "topics"] => rights == Rights::Look,
        _ => false,
    };
    if closed {
        return whole(plain(StatusCode::FORBIDDEN, "this listener tells what everybody may see: the rest is told on the watch's loopback (--control)\n"));
    }
    if let ["v1", kind, id, what] = parts[..]
        && what != "body"
    {
        return whole(change(&request, watched, kind, id, what, log).await);
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return whole(plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"));
    }
    match parts[..] {
        ["v1", "tap"] => tapped(watched, request.uri()).await,
        ["v1", "dead-letters", id, "body"] => match dlq::body(&watched.reached(), id).await {
            Ok(body) => Response::new(body.map_err(Box::<dyn Error + Send + Sync>::from).boxed_unsync()),
            Err(error) => whole(plain(StatusCode::NOT_FOUND, format!("{error:#}\n"))),
        },
        _ => whole(look(&request, &parts, watched, rights).await),
    }
}

async fn look(request: &Request<Incoming>, parts: &[&str], watched: &Watched, rights: Rights) -> Response<Full<Bytes>> {
    // A filter that is none must not be taken for one that everything passes.
    if matches!(parts, ["v1", "status" | "dead-letters"] | ["v1", "calls" | "dead-letters" | "transactions", _])
        && request.uri().query().is_some_and(|query| !query.is_empty())
    {
        return plain(StatusCode::BAD_REQUEST, "this has no parameters\n");
    }
    match parts {
        [""] => html(rights),
        ["metrics"] => plain(StatusCode::OK, watched.metrics.counts().text()),
        ["healthz"] => plain(StatusCode::OK, "ok\n"),
        ["readyz"] if watched.status.borrow().at_ms == 0 => plain(StatusCode::SERVICE_UNAVAILABLE, "the log was not looked at yet\n"),
        ["readyz"] => plain(StatusCode::OK, "ready\n"),
        ["v1", "status"] => json(StatusCode::OK, &*watched.status.borrow()),
        ["v1", "calls"] => match component(request.uri()) {
            Ok(only) => told(history::waiting(&watched.reached(), only.as_ref(), MOST).await),
            Err(why) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        },
        ["v1", "calls", id] if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            told(history::story(&watched.reached(), id, None).await)
        }
        ["v1", "dead-letters"] => told(dlq::list_all(&watched.reached(), None).await),
        ["v1", "dead-letters", id] => told(dlq::shown(&watched.reached(), id).await),
        ["v1", "topics"] => match topics::keep_of(request.uri().query()) {
            Some(keep) => told(topics::look(&watched.reached(), &keep).await),
            None => plain(StatusCode::BAD_REQUEST, "?keep=SECONDS,SECONDS,SECONDS,SECONDS: of calls, replies, recorded calls and dead letters\n"),
        },
        ["v1", "transactions"] => {
            let query = request.uri().query().unwrap_or_default();
            if !query.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-=&".contains(&byte)) {
                return plain(StatusCode::BAD_REQUEST, "a filter is failed, in-doubt, recovering, status=STATE, kind=lra|saga or older-than=MILLISECONDS\n");
            }
            transactions(watched, Method::GET, &format!("?{query}")).await
        }
        ["v1", "transactions", id] => match id.parse::<TransactionId>() {
            Ok(id) => transactions(watched, Method::GET, &format!("/{id}")).await,
            Err(_) => no_transaction(id),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are /, /metrics, /v1/status, /v1/calls, /v1/calls/ID, /v1/dead-letters, /v1/dead-letters/ID, /v1/topics, /v1/tap, /v1/transactions and /v1/transactions/ID\n",
        ),
    }
}

/// What is asked to be changed.
async fn change(request: &Request<Incoming>, watched: &Watched, kind: &str, id: &str, what: &str, log: &Log) -> Response<Full<Bytes>> {
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| *address);
    let who = who(peer, request.headers());
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
    }
    match (kind, what) {
        ("dead-letters", "replay") => settle(watched, id, Settlement::Replayed, &who, log).await,
        ("dead-letters", "drop") => settle(watched, id, Settlement::Dropped, &who, log).await,
        ("transactions", "retry" | "cancel" | "forget") => {
            let Ok(id) = id.parse::<TransactionId>() else { return no_transaction(id) };
            let answer = transactions(watched, Method::POST, &format!("/{id}/{what}")).await;
            log(format!("transaction {id}: {what}, asked for by {who}: {}", answer.status()));
            answer
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "a dead letter can be replayed or dropped (replay, drop), a transaction tried again, cancelled or forgotten (retry, cancel, forget)\n",
        ),
    }
}

fn no_transaction(id: &str) -> Response<Full<Bytes>> {
    plain(StatusCode::NOT_FOUND, format!("{id:?} is no transaction's id\n"))
}

/// What the transaction manager says; 404 where there is none.
async fn transactions(watched: &Watched, method: Method, path: &str) -> Response<Full<Bytes>> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let Some(door) = watched.transactions.door(&watched.status.borrow()) else {
        return plain(StatusCode::NOT_FOUND, "no transaction manager is known here (`bluebox watch --txmgr` names one)\n");
    };
    let url = format!("http://{}/v1/transactions{path}", crate::txmgr::NAME);
    match get::ask(method, &door, &url, PATIENCE).await {
        Ok(answer) if answer.status().is_success() => {
            let mut told = plain(answer.status(), answer.body().clone());
            told.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            told
        }
        Ok(answer) => {
            let problem: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            let detail = problem["detail"].as_str().map_or_else(|| String::from_utf8_lossy(answer.body()).into_owned(), str::to_owned);
            plain(answer.status(), format!("{detail}\n"))
        }
        Err(error) => plain(StatusCode::BAD_GATEWAY, format!("the transaction manager: {error:#}\n")),
    }
}

/// Calls as they come and end, a line of JSON each, for as long as they are read.
async fn tapped(watched: &Watched, uri: &Uri) -> Response<Body> {
    let only = match component(uri) {
        Ok(only) => only,
        Err(why) => return whole(plain(StatusCode::BAD_REQUEST, format!("{why}\n"))),
    };
    let Ok(place) = watched.taps.clone().try_acquire_owned() else {
        return whole(plain(StatusCode::TOO_MANY_REQUESTS, format!("{MAX_TAPS} taps are open already\n")));
    };
    let tap = match Tap::begin(&watched.reached(), only.as_ref()).await {
        Ok(tap) => tap,
        Err(error) => return whole(plain(StatusCode::NOT_FOUND, format!("{error:#}\n"))),
    };
    let partitions = HeaderValue::from(tap.partitions);
    let lines = futures_util::stream::unfold((tap, place), |(mut tap, place)| async move {
        let event = tap.next().await?;
        let line = serde_json::to_vec(&event).map(|mut line| {
            line.push(b'\n');
            Frame::data(Bytes::from(line))
        });
        Some((line.map_err(Box::<dyn Error + Send + Sync>::from), (tap, place)))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(tap::PARTITIONS, partitions);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
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
    use http::HeaderMap;

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

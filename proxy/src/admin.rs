//! What a proxy is asked about itself: `/metrics`, `/healthz`, `/started`, `/readyz` and `/drained`; and, on a listener that only the box itself can reach, what it is told to do: `/drain`.

use std::time::Duration;

use bluebox_observe::level::{self, Level};
use bluebox_observe::listener::{self, plain};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::drain::Drain;
use crate::liveness::Alive;
use crate::metrics::Metrics;
use crate::readiness::Registered;
use crate::transparent::probe::Redirected;

/// What who connects may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Look.
    Look,
    /// Change something too.
    Change,
}

/// The longest that anyone waits here.
const MAX_WITHIN: Duration = Duration::from_secs(3600);
/// All hooks of a pod that ends run at once: the one that asks to drain comes within this after one that waits for it, or not at all.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// And if nobody says how long.
const WITHIN: Duration = Duration::from_secs(20);

/// What a proxy shows of itself.
#[derive(Clone)]
pub struct Shown {
    /// What is counted.
    pub metrics: Metrics,
    /// Whether it takes calls into the app, and when the last of them has ended.
    pub drain: Drain,
    /// Whether the kernel sends to it what it is to send.
    pub redirected: Redirected,
    /// Whether its components are in the registry, or it is not waited for that any longer.
    pub registered: Registered,
    /// Whether the app is alive.
    pub alive: Alive,
    /// What it logs, if that can be changed.
    pub log_level: Option<Level>,
}

/// Answers until it is dropped:
///
/// - `GET /metrics`, `GET /healthz` (this process answers: 200).
/// - `GET /started` (200; 503 while a redirect that it waits for is not in place): whether what comes after the proxy may be started. It does not depend on the log.
/// - `GET /readyz` (as `/started`; 503 also once it was asked to drain, and while its components are waited for to be in the registry: see [`crate::readiness`]).
/// - `GET /alive?container=NAME`: whether a container of the app is alive: 200, or 503 and why it has to be started afresh; see [`crate::liveness`].
/// - `GET /drained?within=SECONDS`: waits until no call is being delivered and none will be: 200; 504 if that takes longer. If nobody asks it to drain meanwhile, it is
///   an app that ends alone: it needn't wait.
/// - `GET /log-level`, `PUT /log-level?level=LEVEL&for=SECONDS`, with the right to: what is logged; see [`bluebox_observe::level`].
/// - `POST /drain?within=SECONDS`, with the right to, and from this machine's loopback ([`listener::is_local`]): no more calls, and then as `/drained`.
pub async fn serve(listener: TcpListener, shown: Shown, rights: Rights) {
    listener::serve(listener, move |request| {
        let shown = shown.clone();
        async move { answer(&request, &shown, rights).await }
    })
    .await;
}

async fn answer(request: &Request<Incoming>, shown: &Shown, rights: Rights) -> Response<Full<Bytes>> {
    let Shown { metrics, drain, redirected, registered, alive, log_level } = shown;
    let path = request.uri().path();
    let looks = [Method::GET, Method::HEAD].contains(request.method());
    if path == "/drain" {
        return match (rights, request.method()) {
            (Rights::Look, _) => plain(StatusCode::FORBIDDEN, "this listener can be asked, not told: POST /drain to the one of --control\n"),
            (Rights::Change, &Method::POST) => match listener::is_local(request.headers()) {
                Ok(()) => {
                    drain.ask();
                    plain_drained(drain, request).await
                }
                Err(why) => plain(StatusCode::FORBIDDEN, format!("{why}\n")),
            },
            (Rights::Change, _) => plain(StatusCode::METHOD_NOT_ALLOWED, "POST only\n"),
        };
    }
    if let (level::PATH, Rights::Change, Some(log_level)) = (path, rights, log_level) {
        return log_level.answer(request);
    }
    if !looks {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match path {
        "/metrics" => plain(StatusCode::OK, metrics.text()),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/started" => plain_unless(redirected.problem(), "started\n"),
        "/readyz" if drain.is_asked() => plain(StatusCode::SERVICE_UNAVAILABLE, "it was asked to drain: it takes no more calls\n"),
        "/readyz" => plain_unless(redirected.problem().or_else(|| registered.problem()), "ready\n"),
        "/drained" => tokio::select! {
            answer = plain_drained(drain, request) => answer,
            () = never_asked(drain) => plain(StatusCode::OK, "nobody asked it to drain\n"),
        },
        "/alive" => match alive.ask(request.uri().query().and_then(|query| query.strip_prefix("container=")).unwrap_or_default()).await {
            Ok(()) => plain(StatusCode::OK, "alive\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /started, /readyz, /alive and /drained\n"),
    }
}

fn plain_unless(problem: Option<&str>, text: &'static str) -> Response<Full<Bytes>> {
    match problem {
        Some(problem) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        None => plain(StatusCode::OK, text),
    }
}

async fn never_asked(drain: &Drain) {
    if tokio::time::timeout(ASKED_WITHIN, drain.asked()).await.is_ok() {
        std::future::pending().await
    }
}

async fn plain_drained(drain: &Drain, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let within = match request.uri().query() {
        None => WITHIN,
        Some(query) => match query.strip_prefix("within=").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs) {
            Some(within) if within <= MAX_WITHIN => within,
            _ => return plain(StatusCode::BAD_REQUEST, format!("?within=SECONDS, at most {}\n", MAX_WITHIN.as_secs())),
        },
    };
    match tokio::time::timeout(within, drain.drained()).await {
        Ok(()) => plain(StatusCode::OK, "drained\n"),
        Err(_) => plain(StatusCode::GATEWAY_TIMEOUT, format!("calls are still being delivered after {} s\n", within.as_secs())),
    }
}

//! For clients that are no box: a plain listener that makes their requests calls.
//!
//! What comes in is sent to the process's own proxy as a call to the transaction manager, so that it is as durable as one from a box, and comes to the owner of its transaction, whichever replica
//! the client has reached.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::ComponentName;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::wire::BASE_PATH;

/// What URLs that the client is given begin with: scheme and authority that it used. Only from the transaction manager itself it counts.
pub(super) const ORIGIN: HeaderName = HeaderName::from_static("txmgr-origin");

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS: usize = 4096;
/// How long a head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

type Body = BoxBody<Bytes, hyper::Error>;

struct Door {
    name: ComponentName,
    proxy: Authority,
    client: Client<HttpConnector, Incoming>,
}

/// Serves clients until the process ends. `proxy` is where the process's own proxy takes calls.
pub async fn serve(listener: TcpListener, name: ComponentName, proxy: SocketAddr) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(3)).pool_timer(TokioTimer::new()).build(connector);
    // An address is an authority.
    let proxy = Authority::try_from(proxy.to_string()).unwrap_or_else(|_| Authority::from_static("127.0.0.1:4140"));
    let door = Arc::new(Door { name, proxy, client });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let door = Arc::clone(&door);
                tokio::spawn(async move {
                    let _place = place;
                    let answer = service_fn(move |request| {
                        let door = Arc::clone(&door);
                        async move { Ok::<_, Infallible>(door.answer(request).await) }
                    });
                    let mut builder = auto::Builder::new(TokioExecutor::new());
                    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                    // A connection that broke is its client's affair.
                    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
            Err(problem) => {
                warn!(%problem, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Door {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path();
        if !(path == BASE_PATH || path.starts_with("/lra-coordinator/") || path.starts_with("/v1/")) {
            return problem(StatusCode::NOT_FOUND, "no-such-resource", "there are /lra-coordinator and /v1");
        }
        if head.headers.get_all(HOST).iter().count() > 1 {
            return problem(StatusCode::BAD_REQUEST, "malformed", "the request names several hosts (RFC 9112, section 3.2)");
        }
        let host = head.uri.authority().map(|authority| authority.as_str().to_owned());
        let host = host.or_else(|| head.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned));
        let Some(host) = host.filter(|host| Authority::try_from(host.as_str()).is_ok_and(|authority| !authority.as_str().contains('@'))) else {
            return problem(StatusCode::BAD_REQUEST, "malformed", "the request names no host that it could be answered with");
        };
        let (Ok(origin), Ok(name)) = (HeaderValue::from_str(&format!("http://{host}")), HeaderValue::from_str(self.name.as_str())) else {
            return problem(StatusCode::BAD_REQUEST, "malformed", "the request names no host that it could be answered with");
        };
        let mut parts = http::uri::Parts::default();
        let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(self.proxy.clone()), Some(target));
        let Ok(uri) = Uri::from_parts(parts) else { return problem(StatusCode::BAD_REQUEST, "malformed", "the target of the request makes no sense") };
        (head.uri, head.version) = (uri, http::Version::HTTP_11);
        head.headers.insert(HOST, name);
        head.headers.insert(ORIGIN, origin);
        match self.client.request(Request::from_parts(head, body)).await {
            Ok(response) => response.map(|body| body.boxed()),
            Err(broken) if broken.is_connect() => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-served",
                "the transaction manager's own proxy does not take connections; nothing was done: try again",
            ),
            Err(_) => problem(
                StatusCode::BAD_GATEWAY,
                "outcome-unknown",
                "the transaction manager's own proxy broke off before it answered: what was asked for may be done or not. Ask for its status, or repeat it with the same `Idempotency-Key`",
            ),
        }
    }
}

fn problem(status: StatusCode, word: &str, detail: &str) -> Response<Body> {
    let document = serde_json::json!({ "type": format!("urn:bluebox:txmgr:{word}"), "status": status.as_u16(), "detail": detail });
    let mut response = Response::new(Full::from(document.to_string()).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// What a door says whose proxy is there.
    async fn said(proxy: SocketAddr) -> String {
        said_to(proxy, "").await
    }

    /// The same, with more header fields.
    async fn said_to(proxy: SocketAddr, fields: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, ComponentName::try_new("txmgr").unwrap(), proxy));
        let mut client = TcpStream::connect(door).await.unwrap();
        let request = format!("POST /lra-coordinator/start HTTP/1.1\r\nHost: {door}\r\n{fields}Content-Length: 0\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_has_one_host() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        let refused = said_to(nobody, "Host: elsewhere\r\n").await;
        assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("several hosts"), "{refused}");
    }

    #[tokio::test]
    async fn nothing_was_done_only_where_nothing_was_sent() {
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = proxy.local_addr().unwrap();
        let breaks_off = tokio::spawn(async move {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
        });
        let unknown = said(at).await;
        assert!(unknown.starts_with("HTTP/1.1 502 ") && unknown.contains("urn:bluebox:txmgr:outcome-unknown"), "{unknown}");
        breaks_off.await.unwrap();
        // Its listener is closed now.
        let nothing = said(at).await;
        assert!(nothing.starts_with("HTTP/1.1 503 ") && nothing.contains("nothing was done") && nothing.contains("retry-after"), "{nothing}");
    }
}

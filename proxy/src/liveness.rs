//! Whether the app of a box is alive, asked in the place of the kubelet: where nothing else restarts app and proxy together, a proxy that took the place of one that died
//! answers no for its app, until that was started afresh too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::net::TcpStream;

/// The probe of a container, as the pod had it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Liveness {
    /// The container.
    pub container: String,
    /// How long the answer may take, in seconds.
    pub timeout_seconds: u64,
    /// What is asked.
    #[serde(flatten)]
    pub how: How,
}

/// What is asked of the app, at loopback.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum How {
    /// A GET whose status is from 200 to 399.
    HttpGet {
        /// Where the app listens.
        port: u16,
        /// Path and query.
        path: String,
        /// More header fields: name and value.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// A connection that is taken.
    TcpSocket {
        /// Where the app listens.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`, answered with SERVING.
    Grpc {
        /// Where the app listens.
        port: u16,
        /// Which service; empty: all.
        #[serde(default)]
        service: String,
    },
}

/// The longest answer that is read, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// Whether the apps of a box are alive. Cheap to clone; clones are one.
#[derive(Debug, Clone, Default)]
pub struct Alive(Arc<State>);

#[derive(Debug, Default)]
struct State {
    probes: Vec<Liveness>,
    app_is_old: AtomicBool,
}

impl Alive {
    /// With these probes. `app_is_old`: the app belongs to a proxy that died.
    pub fn new(probes: Vec<Liveness>, app_is_old: bool) -> Self {
        Self(Arc::new(State { probes, app_is_old: AtomicBool::new(app_is_old) }))
    }

    /// The app was started afresh.
    pub fn app_is_new(&self) {
        self.0.app_is_old.store(false, Ordering::Relaxed);
    }

    /// Whether a container is alive.
    ///
    /// # Errors
    /// Why it counts as dead.
    pub async fn ask(&self, container: &str) -> Result<(), String> {
        if self.0.app_is_old.load(Ordering::Relaxed) {
            return Err("the proxy of this app died; another took its place, and the app has to be started afresh too".to_owned());
        }
        let Some(probe) = self.0.probes.iter().find(|probe| probe.container == container) else { return Ok(()) };
        let time = Duration::from_secs(probe.timeout_seconds);
        tokio::time::timeout(time, probe.how.ask()).await.unwrap_or_else(|_| Err(format!("no answer within {} s", probe.timeout_seconds)))
    }
}

impl How {
    async fn ask(&self) -> Result<(), String> {
        match self {
            Self::TcpSocket { port } => connect(*port).await.map(drop),
            Self::HttpGet { port, path, headers } => {
                let mut request = Request::get(path).header(header::HOST, format!("127.0.0.1:{port}")).header(header::CONNECTION, "close");
                for (name, value) in headers {
                    if name.eq_ignore_ascii_case("host") {
                        request.headers_mut().map(|all| all.remove(header::HOST));
                    }
                    request = request.header(name, value);
                }
                let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
                let (mut send, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(connect(*port).await?)).await.map_err(|error| error.to_string())?;
                let asked = async { send.send_request(request).await.map_err(|error| error.to_string()) };
                let status = while_connected(connection, asked).await?.status();
                if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(format!("the app answered {status}")) }
            }
            Self::Grpc { port, service } => {
                let request = Request::post(format!("http://127.0.0.1:{port}/grpc.health.v1.Health/Check"))
                    .header(header::CONTENT_TYPE, "application/grpc")
                    .header(header::TE, "trailers")
                    .body(Full::new(health_request(service)))
                    .map_err(|error| error.to_string())?;
                let stream = TokioIo::new(connect(*port).await?);
                let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| error.to_string())?;
                let asked = async {
                    let response = send.send_request(request).await.map_err(|error| error.to_string())?;
                    let (head, body) = response.into_parts();
                    let body = http_body_util::Limited::new(body, MOST_BYTES).collect().await.map_err(|error| error.to_string())?;
                    let status = body.trailers().and_then(|all| all.get("grpc-status")).or_else(|| head.headers.get("grpc-status")).cloned();
                    Ok((head.status, status, body.to_bytes()))
                };
                let (status, grpc, message) = while_connected(connection, asked).await?;
                if status != StatusCode::OK || grpc.is_none_or(|grpc| grpc != "0") {
                    return Err(format!("the app answered {status}, and not with the gRPC status 0"));
                }
                // A message of its length, with the field 1 (status): 1 is SERVING.
                if message.get(5..7) == Some(&[0x08, 1]) { Ok(()) } else { Err("the app says that it is not serving".to_owned()) }
            }
        }
    }
}

async fn connect(port: u16) -> Result<TcpStream, String> {
    TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| format!("127.0.0.1:{port}: {error}"))
}

/// A connection has to be driven while something is asked over it.
async fn while_connected<T>(connection: impl Future<Output = hyper::Result<()>>, asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let (mut connection, mut asked) = (std::pin::pin!(connection), std::pin::pin!(asked));
    tokio::select! {
        answer = asked.as_mut() => answer,
        // What had come before it ended may still be there.
        _ = connection.as_mut() => asked.await,
    }
}

/// `HealthCheckRequest{service}` as a gRPC message: not compressed, its length, field 1.
fn health_request(service: &str) -> Bytes {
    // A service's name is no longer than a label of Kubernetes allows; a length of one byte is enough for that.
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, u8::try_from(service.len()).unwrap_or_default()]);
        message.extend(service);
    }
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    framed.extend(message);
    framed.into()
}

#[cfg(test)]
mod tests {
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;

    fn probe(text: &str) -> Liveness {
        serde_json::from_str(text).unwrap()
    }

    /// An app that answers each GET with the status in its path, and is healthy for the service `cart`.
    async fn app() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                    if request.uri().path() == "/slow" {
                        std::future::pending::<()>().await;
                    }
                    let status = request.uri().path()[1..].parse::<u16>();
                    let host = request.headers().get(header::HOST).cloned();
                    let asked = request.into_body().collect().await?.to_bytes();
                    let healthy = asked.ends_with(b"\x0a\x04cart");
                    let mut response = http::Response::new(Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, if healthy { 1 } else { 2 }])));
                    match status {
                        Ok(status) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
                        // Sent with the head, as a server may that answers at once.
                        Err(_) => drop(response.headers_mut().insert("grpc-status", "0".parse().unwrap())),
                    }
                    if host.is_some_and(|host| host == "refused.example") {
                        *response.status_mut() = StatusCode::FORBIDDEN;
                    }
                    Ok::<_, hyper::Error>(response)
                });
                tokio::spawn(async move {
                    drop(hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await)
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn each_kind_of_probe_is_asked_as_the_kubelet_would() {
        let port = app().await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        for (how, alive) in [
            (format!(r#""httpGet":{{"port":{port},"path":"/200"}}"#), true),
            (format!(r#""httpGet":{{"port":{port},"path":"/302"}}"#), true),
            (format!(r#""httpGet":{{"port":{port},"path":"/500"}}"#), false),
            (format!(r#""httpGet":{{"port":{port},"path":"/200","headers":[["Host","refused.example"]]}}"#), false),
            (format!(r#""httpGet":{{"port":{closed},"path":"/200"}}"#), false),
            (format!(r#""tcpSocket":{{"port":{port}}}"#), true),
            (format!(r#""tcpSocket":{{"port":{closed}}}"#), false),
            (format!(r#""grpc":{{"port":{port},"service":"cart"}}"#), true),
            (format!(r#""grpc":{{"port":{port},"service":"shop"}}"#), false),
            (format!(r#""grpc":{{"port":{closed}}}"#), false),
        ] {
            let probe = probe(&format!(r#"{{"container":"app","timeoutSeconds":30,{how}}}"#));
            let answer = Alive::new(vec![probe], false).ask("app").await;
            assert_eq!(answer.is_ok(), alive, "{how}: {answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_does_not_answer_is_dead() {
        let alive = Alive::new(vec![probe(&format!(r#"{{"container":"app","timeoutSeconds":2,"httpGet":{{"port":{},"path":"/slow"}}}}"#, app().await))], false);
        assert_eq!(alive.ask("app").await, Err("no answer within 2 s".to_owned()));
        assert_eq!(alive.ask("another").await, Ok(()), "a container without a probe of its own");
    }

    #[tokio::test]
    async fn the_app_of_a_proxy_that_died_is_dead_until_it_is_a_new_one() {
        let alive = Alive::new(Vec::new(), true);
        assert!(alive.ask("app").await.is_err());
        alive.clone().app_is_new();
        assert_eq!(alive.ask("app").await, Ok(()));
    }
}

//! The webhook as the API server sees it: over TLS, with its limits.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bluebox_injector::certificates::Certificates;
use bluebox_injector::keep::server_config;
use bluebox_injector::metrics::Metrics;
use bluebox_injector::review::MAX_REVIEW_BYTES;
use bluebox_injector::selection::Place;
use bluebox_injector::serve::{Places, Webhook, serve};
use bytes::Bytes;
use common::{FewLimits, labelled, review_of, settings};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

const NAME: &str = "bluebox-injector.bluebox.svc";
/// Everything here takes milliseconds; this is for a machine that does something else.
const DEADLINE: Duration = Duration::from_secs(60);

/// Namespaces, of which one can't be looked up.
struct Known;

impl Places for Known {
    async fn place(&self, namespace: &str) -> Result<Place, String> {
        if namespace == "unknown" { Err("not found".to_owned()) } else { Ok(labelled(namespace)) }
    }
}

struct Running {
    address: SocketAddr,
    certificates: Certificates,
    show: watch::Sender<Option<Arc<ServerConfig>>>,
    metrics: Metrics,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

async fn running() -> Running {
    let certificates = Certificates::at(None, NAME, SystemTime::now()).unwrap();
    let (show, tls) = watch::channel(Some(Arc::new(server_config(certificates.shown()).unwrap())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (metrics, stop) = (Metrics::try_new().unwrap(), CancellationToken::new());
    let webhook = Webhook { settings: watch::channel(settings()).1, limits: FewLimits, places: Known, metrics: metrics.clone() };
    let served = tokio::spawn(serve(listener, Arc::new(webhook), tls, stop.clone()));
    Running { address, certificates, show, metrics, stop, served }
}

/// A connection by one who trusts these certificates' authorities.
async fn connect(address: SocketAddr, trusted: &Certificates, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for pem in CertificateDer::pem_slice_iter(trusted.bundle().as_bytes()) {
        roots.add(pem.unwrap()).unwrap();
    }
    let versions = ClientConfig::builder_with_provider(ring::default_provider().into()).with_safe_default_protocol_versions().unwrap();
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
}

/// Sends one request over HTTP/1.1.
async fn send(running: &Running, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let stream = connect(running.address, &running.certificates, "http/1.1").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", NAME).body(Full::new(body.into())).unwrap();
    let response = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
    (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

fn a_pod() -> Value {
    json!({"metadata": {"name": "cart"}, "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]}})
}

#[tokio::test]
async fn a_review_is_answered_over_both_versions_of_http() {
    let running = running().await;
    let review = review_of("shop", a_pod()).to_string().into_bytes();
    let (status, body) = send(&running, "POST", "/inject?timeout=5s", review.clone()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["response"]["allowed"], &answer["response"]["patchType"]), (StatusCode::OK, &json!(true), &json!("JSONPatch")));

    let stream = connect(running.address, &running.certificates, "h2").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("https://{NAME}/inject")).body(Full::new(Bytes::from(review))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(serde_json::from_slice::<Value>(&response.into_body().collect().await.unwrap().to_bytes()).unwrap(), answer);
    assert!(running.metrics.text().contains("bluebox_injector_reviews_total{result=\"injected\"} 2"), "{}", running.metrics.text());
}

#[tokio::test]
async fn what_is_no_review_is_refused_with_the_reason() {
    let running = running().await;
    for (method, path, body, status, says) in [
        ("GET", "/inject", "", StatusCode::METHOD_NOT_ALLOWED, "POST"),
        ("POST", "/other", "{}", StatusCode::NOT_FOUND, "/inject"),
        ("POST", "/inject", "", StatusCode::BAD_REQUEST, "no JSON"),
        ("POST", "/inject", "{\"apiVersion\":\"admission.k8s.io/v1\",", StatusCode::BAD_REQUEST, "no JSON"),
        ("POST", "/inject", "{\"apiVersion\":\"admission.k8s.io/v1beta1\",\"kind\":\"AdmissionReview\"}", StatusCode::BAD_REQUEST, "v1beta1"),
        ("POST", "/inject", "{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"}", StatusCode::BAD_REQUEST, "there is none"),
    ] {
        let (got, text) = send(&running, method, path, body.into()).await;
        let text = String::from_utf8(text).unwrap();
        assert!(got == status && text.contains(says), "{method} {path} {body}: {got} {text}");
    }
    let (status, text) = send(&running, "POST", "/inject", review_of("unknown", a_pod()).to_string().into()).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && String::from_utf8(text).unwrap().contains("\"unknown\""), "{status}");
    let (status, _) = send(&running, "POST", "/inject", vec![b' '; MAX_REVIEW_BYTES + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_old_connections_go_on() {
    let running = running().await;
    let stream = connect(running.address, &running.certificates, "http/1.1").await.unwrap();
    let (mut old, connection) = hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    let other = Certificates::at(None, NAME, SystemTime::now()).unwrap();
    assert!(connect(running.address, &other, "h2").await.is_err(), "a stranger's certificate must not be trusted");
    running.show.send_replace(Some(Arc::new(server_config(other.shown()).unwrap())));
    connect(running.address, &other, "h2").await.unwrap();
    assert!(connect(running.address, &running.certificates, "h2").await.is_err(), "the old certificate is still shown");

    let request = Request::post("/inject").header("host", NAME).body(Full::new(review_of("shop", a_pod()).to_string().into())).unwrap();
    assert_eq!(old.send_request(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn what_hangs_or_is_no_tls_holds_up_nobody() {
    let running = running().await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(TcpStream::connect(running.address).await.unwrap());
    }
    let mut plain = TcpStream::connect(running.address).await.unwrap();
    plain.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut slow = connect(running.address, &running.certificates, "http/1.1").await.unwrap();
    slow.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();

    assert_eq!(send(&running, "POST", "/inject", review_of("shop", a_pod()).to_string().into()).await.0, StatusCode::OK);

    // They are ended: the plain one by an alert, the slow one by an answer, those that say nothing by the end of their connection.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.starts_with(b"HTTP"));
    let mut rest = vec![0; 12];
    tokio::time::timeout(DEADLINE, slow.read_exact(&mut rest)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(rest).unwrap(), "HTTP/1.1 408");
    for mut stream in idle {
        let ended = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_and_takes_what_is_under_way_to_its_end() {
    let running = running().await;
    let mut slow = connect(running.address, &running.certificates, "http/1.1").await.unwrap();
    let body = review_of("shop", a_pod()).to_string();
    slow.write_all(format!("POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    // The server asks for the body: the request is under way.
    let mut head = [0; 25];
    tokio::time::timeout(DEADLINE, slow.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    running.stop.cancel();
    slow.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, slow.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    tokio::time::timeout(DEADLINE, running.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}

//! A collector of traces: takes OTLP over HTTP, and shows each span to the test.
#![allow(unreachable_pub, dead_code, reason = "each test takes of it what it needs")]

use std::net::SocketAddr;
use std::time::Duration;

use bluebox_observe::listener;
use bluebox_observe::trace::Settings;
use bluebox_observe::trace::otlp::{AnyKind, ExportRequest, Span};
use bluebox_proxy::spans::Traces;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};

pub struct Collector {
    address: SocketAddr,
    spans: Mutex<(mpsc::UnboundedReceiver<Told>, Vec<Told>)>,
}

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Told {
    /// `service.name`.
    pub service: String,
    pub span: Span,
}

impl Told {
    pub fn trace(&self) -> u128 {
        u128::from_be_bytes(self.span.trace_id.as_slice().try_into().unwrap())
    }

    pub fn id(&self) -> u64 {
        u64::from_be_bytes(self.span.span_id.as_slice().try_into().unwrap())
    }

    pub fn parent(&self) -> u64 {
        self.span.parent_span_id.as_slice().try_into().map_or(0, u64::from_be_bytes)
    }

    /// An attribute as text.
    pub fn says(&self, key: &str) -> String {
        let value = self.span.attributes.iter().find(|attribute| attribute.key == key).and_then(|attribute| attribute.value.as_ref()?.kind.clone());
        match value {
            Some(AnyKind::Text(text)) => text,
            Some(AnyKind::Int(number)) => number.to_string(),
            Some(AnyKind::Bool(value)) => value.to_string(),
            None => String::new(),
        }
    }

    /// What it is linked to: what that is, and its id.
    pub fn links(&self) -> Vec<(String, u64)> {
        let link = |link: &bluebox_observe::trace::otlp::Link| {
            let Some(AnyKind::Text(what)) = link.attributes[0].value.as_ref().unwrap().kind.clone() else { panic!("{link:?}") };
            (what, u64::from_be_bytes(link.span_id.as_slice().try_into().unwrap()))
        };
        self.span.links.iter().map(link).collect()
    }

    pub fn failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code == 2)
    }
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (show, spans) = mpsc::unbounded_channel();
        tokio::spawn(listener::serve(listener, move |request| {
            let show = show.clone();
            async move {
                assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
                assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                for resource in ExportRequest::decode(body).unwrap().resource_spans {
                    let name = resource.resource.unwrap().attributes.into_iter().find(|attribute| attribute.key == "service.name").unwrap();
                    let Some(AnyKind::Text(service)) = name.value.unwrap().kind else { panic!("no service.name") };
                    for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                        let _ = show.send(Told { service: service.clone(), span });
                    }
                }
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::OK;
                response
            }
        }));
        Self { address, spans: Mutex::new((spans, Vec::new())) }
    }

    /// Traces that go there, after so long.
    pub fn traces(&self, delay: Duration) -> Traces {
        traces(self.address, delay)
    }

    /// Waits for a span like this; those before it are kept for the next who waits.
    pub async fn span(&self, of: impl Fn(&Told) -> bool) -> Told {
        let mut spans = self.spans.lock().await;
        let (coming, kept) = &mut *spans;
        if let Some(at) = kept.iter().position(&of) {
            return kept.remove(at);
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let Ok(told) = tokio::time::timeout_at(deadline, coming.recv()).await else { panic!("no such span; there are {kept:#?}") };
            let told = told.unwrap();
            if of(&told) {
                return told;
            }
            kept.push(told);
        }
    }

    pub async fn named(&self, name: &str) -> Told {
        self.span(|told| told.span.name == name).await
    }
}

/// Traces that go somewhere.
pub fn traces(to: SocketAddr, delay: Duration) -> Traces {
    let (endpoint, delay) = (format!("http://{to}"), delay.as_millis().to_string());
    let environment = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        "OTEL_BSP_SCHEDULE_DELAY" => Some(delay.clone()),
        _ => None,
    };
    Traces { settings: Settings::from_environment(environment).unwrap().unwrap(), log: "kafka" }
}

//! An app in the proxy's own process: it is handed its calls, and makes its own, without a connection.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bluebox_core::log::embedded::Embedded;
use bluebox_core::registry::Component;
use bluebox_proxy::Proxy;
use bluebox_proxy::bulk::OutBody;
use bluebox_proxy::config::{Answering, App, InProcess, ProxyConfig, Served};
use bluebox_proxy::outbound::in_process::Calls;
use bytes::Bytes;
use common::{Answer, PATIENCE, exchange, name};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio_util::sync::CancellationToken;

/// Tells what it was asked for, and by whom; what begins with `/ask` asks the app itself for the rest.
#[derive(Clone, Default)]
struct Teller(Arc<OnceLock<Calls>>);

impl InProcess for Teller {
    fn answer(&self, request: Request<OutBody>) -> Answering {
        let teller = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let path = head.uri.path();
            if let Some(rest) = path.strip_prefix("/ask") {
                let asked = Request::builder().method(Method::POST).uri(format!("http://cart{rest}")).body(Full::from(body)).unwrap();
                let (head, body) = teller.0.get().unwrap().answer(asked).await.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                return Response::builder().status(head.status).header("x-answered-by", head.headers["x-teller"].clone()).body(Full::from(body)).unwrap();
            }
            let caller = head.headers["bluebox-caller"].to_str().unwrap();
            let told = format!("{} {}{path} for {caller}: {}", head.method, head.uri.authority().unwrap(), String::from_utf8_lossy(&body));
            Response::builder()
                .status(StatusCode::IM_A_TEAPOT)
                .header("x-teller", "1")
                .header("x-hop", "1")
                .header("connection", "x-hop")
                .body(Full::from(told))
                .unwrap()
        })
    }
}

struct Installation {
    gateway: SocketAddr,
    /// Of the app.
    calls: Calls,
    stop: CancellationToken,
    running: Vec<tokio::task::JoinHandle<Result<(), bluebox_proxy::RunError>>>,
}

impl Installation {
    async fn start() -> Self {
        let (log, stop, teller) = (Embedded::in_memory(), CancellationToken::new(), Teller::default());
        let served = Served {
            name: name("cart"),
            component: Component { partitions: 2, ..Component::default() },
            ordinal: None,
            app: App::Here(Arc::new(teller.clone())),
        };
        let run = |proxy: Proxy| tokio::spawn(proxy.run(Arc::clone(&log) as Arc<dyn bluebox_core::Log>, stop.clone().cancelled_owned()));
        let cart = Proxy::bind(ProxyConfig { name: name("cart"), serves: vec![served], ..common::config() }).await.unwrap();
        let out = Proxy::bind(common::config()).await.unwrap();
        let (calls, gateway) = (cart.calls(), out.listen());
        assert!(teller.0.set(calls.clone()).is_ok());
        let installation = Self { gateway, calls, stop: stop.clone(), running: vec![run(cart), run(out)] };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // An empty ordering key is refused only where the component is known.
        while installation.ask("GET / HTTP/1.1\r\nHost: cart\r\nbluebox-ordering-key: \r\nConnection: close\r\n\r\n").await.status != 400 {
            assert!(tokio::time::Instant::now() < deadline);
        }
        installation
    }

    async fn ask(&self, request: &str) -> Answer {
        exchange(self.gateway, request.as_bytes()).await
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.running {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn it_is_handed_its_calls_and_what_it_answers_comes_back_as_from_a_server() {
    let installation = Installation::start().await;
    let answer = installation.ask("POST /a%20b?x=1 HTTP/1.1\r\nHost: CART\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
    assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (418, "POST CART/a%20b for gateway: hello"));
    assert!(httpdate::parse_http_date(&answer.header("date").unwrap()).is_ok(), "{answer:?}");
    assert_eq!((answer.header("x-teller").as_deref(), answer.header("x-hop")), (Some("1"), None), "{answer:?}");
    installation.stop().await;
}

#[tokio::test]
async fn what_it_asks_for_is_a_call_like_any_other() {
    let installation = Installation::start().await;
    let answer = installation.ask("POST /ask/me HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
    assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (418, "POST cart/me for cart: hello"), "{answer:?}");
    assert_eq!(answer.header("x-answered-by").as_deref(), Some("1"));
    installation.stop().await;
}

#[tokio::test]
async fn what_the_proxy_has_to_say_itself_is_an_answer_too() {
    let installation = Installation::start().await;
    let ask = async |uri: &str| {
        installation.calls.answer(Request::builder().uri(uri).header("bluebox-ordering-key", "").body(Full::<Bytes>::default()).unwrap()).await
    };
    for uri in ["/nowhere", "http://cart/"] {
        let refused = ask(uri).await;
        assert_eq!(refused.status(), 400, "{uri}: {refused:?}");
        assert!(refused.headers().contains_key("bluebox-error"), "{uri}: {refused:?}");
    }
    installation.stop().await;
}

//! An app in the proxy's own process: it is handed its calls, and makes its own, without a connection.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::sync::{Arc, OnceLock};

use bluebox_proxy::bulk::OutBody;
use bluebox_proxy::config::{Answering, App, InProcess};
use bluebox_proxy::outbound::in_process::Calls;
use bytes::Bytes;
use common::Installation;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

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

/// A gateway, and a box `cart` whose app is in its proxy's process.
async fn installation() -> Installation {
    let teller = Teller::default();
    let installation = Installation::start(App::Here(Arc::new(teller.clone()))).await;
    assert!(teller.0.set(installation.calls.clone()).is_ok());
    installation
}

#[tokio::test]
async fn it_is_handed_its_calls_and_what_it_answers_comes_back_as_from_a_server() {
    let installation = installation().await;
    let answer = installation.ask("POST /a%20b?x=1 HTTP/1.1\r\nHost: CART\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
    assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (418, "POST CART/a%20b for gateway: hello"));
    assert!(httpdate::parse_http_date(&answer.header("date").unwrap()).is_ok(), "{answer:?}");
    assert_eq!((answer.header("x-teller").as_deref(), answer.header("x-hop")), (Some("1"), None), "{answer:?}");
    installation.stop().await;
}

#[tokio::test]
async fn what_it_asks_for_is_a_call_like_any_other() {
    let installation = installation().await;
    let answer = installation.ask("POST /ask/me HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
    assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (418, "POST cart/me for cart: hello"), "{answer:?}");
    assert_eq!(answer.header("x-answered-by").as_deref(), Some("1"));
    installation.stop().await;
}

#[tokio::test]
async fn what_the_proxy_has_to_say_itself_is_an_answer_too() {
    let installation = installation().await;
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

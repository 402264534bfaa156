//! Durable calls as a caller sees them: bit for bit there and back, and a clear answer in every other case.

mod common;

use common::{System, response};

#[tokio::test]
async fn a_call_goes_out_and_its_outcome_comes_back() {
    let system = System::start().await;
    let mut cart = system.answers(response(201, &[("x-from", "cart")], b"made"));
    let answer = system.ask("POST /items?q=1 HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\nX-Mine: 1\r\nConnection: close\r\n\r\nbody").await;
    assert_eq!((answer.status, &answer.body[..]), (201, &b"made"[..]), "{answer:?}");
    assert_eq!(answer.header("x-from").as_deref(), Some("cart"));
    assert_eq!(answer.header("date"), None, "nothing is added to an app's answer");
    let call = cart.next().await;
    assert_eq!((call.request.method.as_str(), call.request.target.as_str(), call.request.authority.as_str()), ("POST", "/items?q=1", "cart"));
    assert_eq!(call.request.headers["x-mine"], "1");
    system.stop().await;
}

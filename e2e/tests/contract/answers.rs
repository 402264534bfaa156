//! The app's answer is the outcome; what is retried is the failure of a box.

use std::time::{Duration, Instant};

use bluebox_e2e::app::{content, endless};
use bluebox_e2e::{Call, World, eventually};
use bytes::Bytes;
use http::{Method, Response};

use crate::common::{shop, was_delivered};

pub async fn any_complete_response_goes_back_verbatim_and_ends_the_call(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    for status in [200, 201, 302, 400, 404, 409, 500, 502, 503, 504] {
        let target = format!("/{status}");
        let call = shop.begin(Call::post(&format!("http://cart{target}"), "order"));
        let response = Response::builder().status(status).header("x-app", "first").header("x-app", "second").header("content-type", "text/x");
        app.next().await.respond(response.body(content(format!("body of {status}"))).unwrap());
        let answer = call.answer().await;
        answer.is(status, &format!("body of {status}"));
        let repeated: Vec<_> = answer.headers.get_all("x-app").iter().collect();
        assert_eq!(repeated, ["first", "second"]);
        assert_eq!(answer.header("content-type"), "text/x");
    }
    for status in [500, 503] {
        was_delivered(&shop, &app, &format!("/{status}"), 1).await;
    }
}

pub async fn the_request_arrives_as_it_was_sent(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let body: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let call = Call::new(Method::PATCH, "http://cart/a%20b/..;c?x=1&x=2&%C3%A4").with("x-twice", "1").with("x-twice", "2").with("cookie", "a=b; c=d");
    let call = shop.begin(call.with("authorization", "Basic x").with("bluebox-attempt", "77").with("bluebox-may-have-started", "true").body(body.clone()));
    let delivery = app.next().await;
    let asked = delivery.asked.clone();
    assert_eq!((&asked.method, asked.target.as_str()), (&Method::PATCH, "/a%20b/..;c?x=1&x=2&%C3%A4"));
    assert_eq!(asked.headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((asked.header("cookie"), asked.header("authorization"), asked.header("host")), ("a=b; c=d", "Basic x", "cart"));
    assert!(asked.body == body, "the body changed");
    // What an app says in Bluebox's name is not believed.
    assert_eq!((asked.attempt(), asked.may_have_started()), (1, false));
    delivery.answer(204, "");
    assert_eq!(call.answer().await.status.as_u16(), 204);
}

pub async fn head_gets_the_head_alone(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::new(Method::HEAD, "http://cart/"));
    app.next().await.respond(Response::builder().header("content-length", "12345").body(content("")).unwrap());
    let answer = call.answer().await;
    assert_eq!((answer.status.as_u16(), answer.header("content-length"), answer.text()), (200, "12345", ""));
}

pub async fn retry_on_adds_statuses(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--retry-on", "502,503")]).await;
    let call = shop.begin(Call::post("http://cart/a", "x"));
    for (attempt, status) in [(1, 502), (2, 503), (3, 500)] {
        let delivery = app.next().await;
        assert_eq!(delivery.asked.attempt(), attempt);
        delivery.answer(status, "no");
    }
    call.answer().await.is(500, "no");
}

pub async fn a_connection_that_breaks_is_a_failed_attempt(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/a", "x"));
    let first = app.next().await;
    let id = first.asked.header("bluebox-call-id").to_owned();
    assert_eq!(id.len(), 32, "{id}");
    first.cut();
    let (chunks, body) = endless();
    let second = app.next().await;
    assert_eq!((second.asked.attempt(), second.asked.header("bluebox-call-id")), (2, id.as_str()));
    assert!(second.asked.may_have_started(), "the first attempt may have reached the app");
    second.respond(Response::builder().header("content-length", "1000").body(body).unwrap());
    chunks.send(Bytes::from("only half")).unwrap();
    drop(chunks);
    let third = app.next().await;
    assert_eq!((third.asked.attempt(), third.asked.text()), (3, "x"));
    third.answer(200, "done");
    call.answer().await.is(200, "done");
}

pub async fn too_many_failed_attempts_make_a_dead_letter_and_502(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--max-attempts", "3")]).await;
    let call = shop.begin(Call::post("http://cart/a", "x"));
    for attempt in 1..=3 {
        let delivery = app.next().await;
        assert_eq!(delivery.asked.attempt(), attempt);
        delivery.cut();
    }
    let answer = call.answer().await;
    let document = answer.is_problem(502, false);
    assert_eq!(document["call"], answer.header("bluebox-call-id"));
    was_delivered(&shop, &app, "/a", 3).await;
}

pub async fn an_app_that_does_not_answer_in_time_failed_the_attempt(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--attempt-timeout", "1s")]).await;
    let call = shop.begin(Call::post("http://cart/a", "x").prefer("wait=1"));
    let mut first = app.next().await;
    let began = Instant::now();
    first.closed().await;
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    let second = app.next().await;
    assert_eq!(second.asked.attempt(), 2);
    second.answer(200, "done");
    // The caller's wait was as long as the attempt.
    call.answer().await.is_problem(504, false);
}

pub async fn the_attempt_timeout_is_never_below_the_wait(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--attempt-timeout", "100ms")]).await;
    let call = shop.begin(Call::post("http://cart/a", "x").prefer("wait=15"));
    let mut delivery = app.next().await;
    let closed = tokio::time::timeout(Duration::from_millis(1500), delivery.closed()).await;
    assert!(closed.is_err(), "the attempt was ended while its caller waited");
    delivery.answer(200, "done");
    call.answer().await.is(200, "done");
}

pub async fn a_503_with_retry_after_is_not_now_and_no_attempt(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--max-attempts", "1")]).await;
    let call = shop.begin(Call::post("http://cart/a", "x"));
    let mut last = None;
    for _ in 0..3 {
        let delivery = app.next().await;
        assert_eq!(delivery.asked.attempt(), 1, "not now is no attempt");
        if let Some(last) = last.replace(delivery.asked.at) {
            assert!(delivery.asked.at - last >= Duration::from_millis(950), "Retry-After was not honoured");
        }
        delivery.respond(Response::builder().status(503).header("retry-after", "1").body(content("busy")).unwrap());
    }
    let delivery = app.next().await;
    assert_eq!(delivery.asked.attempt(), 1);
    delivery.answer(200, "done");
    call.answer().await.is(200, "done");
}

pub async fn not_now_becomes_the_outcome_when_the_wait_ends_first(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::post("http://cart/a", "x").prefer("wait=2"));
    app.next().await.respond(Response::builder().status(503).header("retry-after", "30").body(content("busy")).unwrap());
    let answer = call.answer().await;
    answer.is(503, "busy");
    assert_eq!(answer.header("retry-after"), "30");
    assert!(answer.took < Duration::from_secs(10), "{:?}", answer.took);
    was_delivered(&shop, &app, "/a", 1).await;
}

pub async fn an_answer_over_the_limit_ends_the_call_with_a_recorded_502(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--answer-limit", "100KiB")]).await;
    let call = shop.begin(Call::post("http://cart/a", "x"));
    app.next().await.answer(200, vec![b'x'; 100 * 1024 + 1]);
    call.answer().await.is_problem(502, false);
    was_delivered(&shop, &app, "/a", 1).await;
    let call = shop.begin(Call::post("http://cart/b", "x"));
    app.next().await.answer(200, vec![b'x'; 100 * 1024]);
    assert_eq!(call.answer().await.body.len(), 100 * 1024);
}

pub async fn an_event_stream_ends_the_call_with_a_recorded_502(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let call = shop.begin(Call::get("http://cart/events"));
    let (chunks, body) = endless();
    app.next().await.respond(Response::builder().header("content-type", "text/event-stream").body(body).unwrap());
    chunks.send(Bytes::from("data: 1\n\n")).unwrap();
    call.answer().await.is_problem(502, false);
    was_delivered(&shop, &app, "/events", 1).await;
}

pub async fn an_answer_with_too_many_fields_ends_the_call_with_a_recorded_502(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    // Beside those that the app's server adds.
    for (fields, status) in [(90, 200), (257, 502)] {
        let call = shop.begin(Call::post(&format!("http://cart/{fields}"), "x"));
        let response = (0..fields).fold(Response::builder(), |response, n| response.header(format!("x-{n}"), "1"));
        app.next().await.respond(response.body(content("many")).unwrap());
        assert_eq!(call.answer().await.status.as_u16(), status, "{fields}");
        was_delivered(&shop, &app, &format!("/{fields}"), 1).await;
    }
}

pub async fn an_answer_that_never_ends_ends_the_call_with_a_recorded_502(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[("--attempt-timeout", "2s")]).await;
    let location = shop.call(Call::post("http://cart/a", "x").prefer("respond-async, wait=1")).await.location();
    let (chunks, body) = endless();
    app.next().await.respond(Response::new(body));
    let sending = tokio::spawn(async move {
        while chunks.send(Bytes::from("more")).is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    shop.outcome(&location).await.is_problem(502, false);
    eventually("the connection to the app is closed", || std::future::ready(sending.is_finished().then_some(()))).await;
    was_delivered(&shop, &app, "/a", 1).await;
}

pub async fn large_bodies_arrive_bit_for_bit_both_ways(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let sent: Vec<u8> = (0u32..5 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let answered: Vec<u8> = sent.iter().rev().copied().collect();
    let call = shop.begin(Call::post("http://cart/a", sent.clone()));
    let delivery = app.next().await;
    assert!(delivery.asked.body == sent, "the request changed on its way");
    delivery.answer(200, answered.clone());
    let answer = call.answer().await;
    assert!(answer.status == 200 && answer.body == answered, "the answer changed on its way");
}

pub async fn a_body_over_the_limit_is_413(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let limit = 64 << 20;
    assert_eq!(shop.status_for_length("cart", limit as u64 + 1).await.unwrap(), "413");
    let call = shop.begin(Call::post("http://cart/at", vec![7; limit]));
    let delivery = app.next().await;
    assert_eq!((delivery.asked.target.as_str(), delivery.asked.body.len()), ("/at", limit));
    delivery.answer(200, "taken");
    call.answer().await.is(200, "taken");
}

pub async fn the_limit_of_a_body_can_be_configured(world: World) {
    let app = world.app("mail").await;
    app.echo();
    let _mail = world.proxy("mail").flag("--serve", &format!("mail={},partitions=2,body-limit=1000", app.address())).start().await;
    let shop = world.proxy("shop").start().await;
    shop.knows("mail").await;
    let over = shop.call(Call::post("http://mail/over", vec![b'x'; 1001])).await;
    over.is_problem(413, true);
    shop.call(Call::post("http://mail/at", vec![b'x'; 1000])).await.is(200, &"x".repeat(1000));
    assert_eq!(app.ledger().len(), 1);
}

pub async fn nobody_but_an_app_says_404(world: World) {
    let (_app, _cart, shop) = shop(&world, &[]).await;
    for url in ["http://bluebox/", "http://bluebox/v1/calls/", "http://bluebox/v1/calls/nonsense", "http://bluebox/v2/x"] {
        shop.call(Call::get(url)).await.is_problem(400, true);
    }
    let unknown = shop.call(Call::get("http://no-such-component.invalid/")).await;
    assert_eq!(unknown.status.as_u16(), 502, "{unknown:?}");
}

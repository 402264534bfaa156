use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::call::{Call, Reason, Source};
use bluebox_core::log::embedded::AppendFault;
use bluebox_proxy::config::{Inbound, RouteLimits};
use bluebox_proxy::spans::Spans;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Answer, App, Replica, World, limits, ok};

#[tokio::test]
async fn a_call_is_delivered_and_the_answer_is_its_outcome() {
    let world = World::new().await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, limits());
    let call = world.call();
    world.append(&call).await;
    let seen = app.next().await;
    assert_eq!((seen.target.as_str(), &seen.body[..]), ("/items", &b"{}"[..]));
    assert_eq!(seen.header("bluebox-call-id"), Some(call.id.to_string().as_str()));
    assert_eq!((seen.header("bluebox-attempt"), seen.header("bluebox-may-have-started")), (Some("1"), None));
    assert_eq!(seen.header("host"), Some("cart"));
    seen.answer(Answer::With(500, vec![("x-a", "b".to_owned())], Bytes::from_static(b"oops"))).await;
    let outcome = world.outcome_of(&call).await;
    assert_eq!((outcome.source, outcome.response.status.as_u16(), outcome.attempts), (Source::App, 500, 1));
    assert_eq!(outcome.response.headers.get("x-a").unwrap(), "b");
}

#[tokio::test]
async fn what_was_appended_before_anyone_served_is_delivered_as_the_first_time() {
    let world = World::new().await;
    let calls: Vec<_> = (0..20).map(|n| world.call_to(&format!("/{n}"))).collect();
    for call in &calls {
        world.append(call).await;
    }
    let app = Arc::new(App::start().await);
    let seen = Arc::clone(&app).answer_all().await;
    let _box = Replica::start(&world, &app, limits());
    world.outcomes(20).await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 20);
    assert!(seen.iter().all(|s| s.header("bluebox-attempt") == Some("1") && s.header("bluebox-may-have-started").is_none()), "{seen:?}");
}

#[tokio::test]
async fn a_reset_connection_is_a_failed_attempt_and_the_call_is_delivered_again() {
    let world = World::new().await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, limits());
    let call = world.call();
    world.append(&call).await;
    app.next().await.answer(Answer::Reset).await;
    let again = app.next().await;
    assert_eq!((again.header("bluebox-attempt"), again.header("bluebox-may-have-started")), (Some("2"), Some("true")));
    again.answer(ok()).await;
    assert_eq!(world.outcome_of(&call).await.attempts, 2);
}

#[tokio::test]
async fn after_too_many_failed_attempts_it_is_a_dead_letter_and_a_502() {
    let world = World::new().await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, Inbound { max_attempts: 3, ..limits() });
    let call = world.call();
    let (number, _) = world.append(&call).await;
    for _ in 0..3 {
        app.next().await.answer(Answer::Reset).await;
    }
    let outcome = world.outcome_of(&call).await;
    assert_eq!((outcome.source, outcome.response.status.as_u16()), (Source::Proxy(Reason::Attempts), 502));
    // The letter was durable before the 502.
    let letters = world.log.bounds(&world.topics.dead_letters.partition(number)).await.unwrap();
    assert_eq!(letters.end.get(), 1);
}

/// A large answer is stored before its outcome can say where. A log that is full or away meanwhile is no failure of the app, which has acted.
#[tokio::test]
async fn an_answer_that_the_log_does_not_take_now_is_no_failed_attempt() {
    let world = World::new().await;
    let app = App::start().await;
    let replica = Replica::start(&world, &app, Inbound { max_attempts: 2, ..limits() });
    replica.client.fail_appends(AppendFault::Refuse, Some(&world.topics.bulk));
    let call = world.call();
    world.append(&call).await;
    let answer = Bytes::from(vec![7; 600_000]);
    app.next().await.answer(Answer::With(200, vec![], answer)).await;
    // Others go on.
    let other = world.call_to("/other");
    world.append(&other).await;
    app.next().await.answer(ok()).await;
    world.outcome_of(&other).await;
    replica.client.heal();
    let outcome = world.outcome_of(&call).await;
    assert_eq!((outcome.source, outcome.attempts, outcome.response.status.as_u16()), (Source::App, 1, 200));
    assert!(app.seen.lock().await.try_recv().is_err(), "it was delivered again");
}

#[tokio::test]
async fn not_now_is_no_attempt() {
    let world = World::new().await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, limits());
    let mut call = world.call();
    call.wait = Some(Duration::from_secs(30));
    world.append(&call).await;
    app.next().await.answer(Answer::With(503, vec![("retry-after", "0".to_owned())], Bytes::new())).await;
    let again = app.next().await;
    assert_eq!(again.header("bluebox-attempt"), Some("1"));
    again.answer(ok()).await;
    assert_eq!(world.outcome_of(&call).await.response.status, 200);
}

#[tokio::test]
async fn not_now_becomes_the_outcome_when_the_wait_ends_first() {
    let world = World::new().await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, limits());
    let call = world.call();
    world.append(&call).await;
    app.next().await.answer(Answer::With(503, vec![("retry-after", "20".to_owned())], Bytes::from_static(b"busy"))).await;
    let outcome = world.outcome_of(&call).await;
    assert_eq!((outcome.source, outcome.response.status.as_u16()), (Source::App, 503));
}

#[tokio::test]
async fn a_call_whose_box_died_in_the_middle_is_delivered_again_by_another() {
    let world = World::new().await;
    let app = App::start().await;
    let first = Replica::start(&world, &app, limits());
    let call = world.call();
    world.append(&call).await;
    let seen = app.next().await;
    let _second = Replica::start(&world, &app, limits());
    first.kill();
    let again = app.next().await;
    assert_eq!(again.header("bluebox-call-id"), seen.header("bluebox-call-id"));
    assert_eq!(again.header("bluebox-may-have-started"), Some("true"));
    again.answer(ok()).await;
    world.outcome_of(&call).await;
}

#[tokio::test]
async fn a_call_with_an_outcome_is_not_delivered_again_by_the_next_owner() {
    let world = World::new().await;
    let app = Arc::new(App::start().await);
    let first = Replica::start(&world, &app, limits());
    let calls: Vec<_> = (0..50).map(|n| world.call_to(&format!("/{n}"))).collect();
    let seen = Arc::clone(&app).answer_all().await;
    for call in &calls {
        world.append(call).await;
    }
    // Killed as soon as the outcomes are there: the last of them are in no commit.
    world.outcomes(50).await;
    first.kill();
    let second = Replica::start(&world, &app, limits());
    let last = world.call_to("/last");
    world.append(&last).await;
    world.outcome_of(&last).await;
    second.until("bluebox_inbound_partitions", 4.0).await;
    second.until("bluebox_inbound_held_calls", 0.0).await;
    assert_eq!(seen.lock().unwrap().len(), 51);
}

/// The proxy lives, loses its session while it is recording an end, and gets the same partition again. No search finds that end yet, but the box itself knows of it.
#[tokio::test]
async fn a_box_does_not_deliver_again_what_it_is_still_recording_since_it_was_taken_for_dead() {
    let world = World::new().await;
    let app = App::start().await;
    let replica = Replica::start(&world, &app, Inbound { concurrency: 1, session_timeout: Duration::from_secs(1), ..limits() });
    let [answered, open] = world.calls_of_one_partition(["/answered", "/open"]);
    replica.client.fail_appends(AppendFault::Refuse, Some(&world.replies.topic));
    world.append(&answered).await;
    app.next().await.answer(ok()).await;
    world.append(&open).await;
    let under_way = app.next().await;
    assert_eq!(under_way.target, "/open", "the answer to the other is being recorded");
    replica.client.disconnect();
    world.until_members(0).await;
    replica.client.reconnect();
    // They are in one partition, one is delivered at a time, and the other would come first.
    let again = app.next().await;
    assert_eq!((again.target.as_str(), again.header("bluebox-may-have-started")), ("/open", Some("true")));
    again.answer(ok()).await;
    replica.client.heal();
    world.outcome_of(&open).await;
    assert_eq!(world.outcome_of(&answered).await.attempts, 1);
    replica.until("bluebox_inbound_held_calls", 0.0).await;
    assert!(app.seen.lock().await.try_recv().is_err(), "it was delivered again");
}

/// The same where the box has left its group and joined it again meanwhile, because its app was away.
#[tokio::test]
async fn a_box_does_not_deliver_again_what_it_is_still_recording_since_it_left() {
    let world = World::new().await;
    let app = App::start().await;
    let replica = Replica::start(&world, &app, Inbound { concurrency: 1, drain: Duration::from_millis(50), ..limits() });
    let [answered, open, last] = world.calls_of_one_partition(["/answered", "/open", "/last"]);
    replica.client.fail_appends(AppendFault::Refuse, Some(&world.replies.topic));
    world.append(&answered).await;
    app.next().await.answer(ok()).await;
    replica.until("bluebox_inbound_delivery_ends_total", 1.0).await;
    app.stop();
    world.append(&open).await;
    world.until_members(0).await;
    let app = App::start_at(&app.address.to_string()).await;
    let seen = app.next().await;
    assert_eq!(seen.target, "/open");
    seen.answer(ok()).await;
    world.append(&last).await;
    let seen = app.next().await;
    assert_eq!(seen.target, "/last");
    seen.answer(ok()).await;
    replica.client.heal();
    assert_eq!(world.outcome_of(&answered).await.attempts, 1);
    world.outcomes(3).await;
    replica.until("bluebox_inbound_held_calls", 0.0).await;
    assert!(app.seen.lock().await.try_recv().is_err(), "it was delivered again");
}

#[tokio::test]
async fn a_graceful_stop_lets_deliveries_end_and_duplicates_nothing() {
    let world = World::new().await;
    let app = App::start().await;
    let first = Replica::start(&world, &app, limits());
    let call = world.call();
    world.append(&call).await;
    let seen = app.next().await;
    let stopping = tokio::spawn(first.stopped());
    let _second = Replica::start(&world, &app, limits());
    seen.answer(ok()).await;
    world.outcome_of(&call).await;
    stopping.await.unwrap();
    let other = world.call_to("/other");
    world.append(&other).await;
    let seen = app.next().await;
    assert_eq!((seen.target.as_str(), seen.header("bluebox-may-have-started")), ("/other", None));
}

#[tokio::test]
async fn calls_with_one_ordering_key_go_one_at_a_time_in_log_order_and_others_beside_them() {
    let world = World::new().await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, limits());
    for n in 0..3 {
        let mut call = world.call_to(&format!("/k{n}"));
        call.ordering_key = Some(Bytes::from_static(b"k"));
        world.append(&call).await;
    }
    world.append(&world.call_to("/free")).await;
    let mut first = [app.next().await, app.next().await];
    first.sort_by_key(|s| s.target.clone());
    assert_eq!(first.each_ref().map(|s| s.target.as_str()), ["/free", "/k0"]);
    first[1].answer(Answer::Reset).await;
    for expected in ["/k0", "/k1", "/k2"] {
        let seen = app.next().await;
        assert_eq!(seen.target, expected);
        seen.answer(ok()).await;
    }
    first[0].answer(ok()).await;
    world.outcomes(4).await;
}

#[tokio::test]
async fn an_expired_call_is_a_dead_letter() {
    let world = World::new().await;
    let mut call = world.call();
    call.ttl = Duration::ZERO;
    world.append(&call).await;
    let app = App::start().await;
    let _box = Replica::start(&world, &app, limits());
    assert_eq!(world.outcome_of(&call).await.source, Source::Proxy(Reason::Deadline));
}

#[tokio::test]
async fn a_recorded_call_that_comes_again_gets_the_first_ones_outcome() {
    let world = World::new().await;
    let app = App::start().await;
    let first = Replica::start(&world, &app, limits());
    let mut call = world.call();
    call.recorded = Some([1; 32]);
    world.append(&call).await;
    world.append(&call).await;
    app.next().await.answer(ok()).await;
    world.outcome_of(&call).await;
    // Another owner knows it too.
    first.stopped().await;
    let _second = Replica::start(&world, &app, limits());
    world.append(&call).await;
    let mut other = call.clone();
    other.recorded = Some([2; 32]);
    world.append(&other).await;
    let outcomes = world.outcomes(2).await;
    assert_eq!(outcomes[1].source, Source::Proxy(Reason::KeyReused));
    world.append(&world.call_to("/next")).await;
    assert_eq!(app.next().await.target, "/next");
}

/// The poison kills every box that touches it; its neighbours get through, and it ends in the dead letters.
#[tokio::test]
async fn poison_ends_as_a_dead_letter_and_its_neighbours_dont() {
    let world = World::new().await;
    let app = App::start().await;
    let poison = world.call_to("/poison");
    world.append(&poison).await;
    let neighbours: Vec<_> = (0..5).map(|n| world.call_to(&format!("/{n}"))).collect();
    for call in &neighbours {
        world.append(call).await;
    }
    let mut deliveries_of_poison = 0;
    let mut living = Replica::start(&world, &app, limits());
    while deliveries_of_poison < 10 {
        let seen = tokio::select! {
            seen = app.next() => seen,
            outcome = world.outcome_of(&poison) => {
                assert_eq!(outcome.source, Source::Proxy(Reason::Poison));
                break;
            }
        };
        if seen.target == "/poison" {
            deliveries_of_poison += 1;
            living.kill();
            living = Replica::start(&world, &app, limits());
        } else {
            seen.answer(ok()).await;
        }
    }
    assert_eq!(deliveries_of_poison, 5, "two with others, three alone");
    tokio::spawn(async move {
        loop {
            app.next().await.answer(ok()).await;
        }
    });
    for call in &neighbours {
        assert_eq!(world.outcome_of(call).await.source, Source::App);
    }
}

#[tokio::test]
async fn an_app_that_is_not_there_makes_no_attempt_and_gets_its_calls_when_it_is_back() {
    let world = World::new().await;
    let app = App::start().await;
    let replica = Replica::start(&world, &app, limits());
    replica.until("bluebox_inbound_partitions", 4.0).await;
    app.stop();
    let call = world.call();
    world.append(&call).await;
    replica.until("bluebox_inbound_delivery_ends_total", 1.0).await;
    let app = App::start_at(&app.address.to_string()).await;
    let seen = app.next().await;
    assert_eq!((seen.target.as_str(), seen.header("bluebox-may-have-started")), ("/items", None));
    seen.answer(ok()).await;
    assert_eq!(world.outcome_of(&call).await.attempts, 1);
}

/// Each attempt is answered with nothing. While the app still answers other requests it goes on getting calls; when it answers none any more it gets no more.
#[tokio::test]
async fn an_app_that_answers_nothing_gets_no_more_calls_until_it_answers_something() {
    let world = World::new().await;
    let app = App::start().await;
    let limits = Inbound { attempt_timeout: Duration::from_millis(20), max_attempts: 1000, max_unanswered: 2, ..limits() };
    let replica = Replica::start(&world, &app, limits);
    let call = Call { wait: None, ..world.call() };
    world.append(&call).await;
    // Its calls are slow, but it is alive.
    let (mut asked, mut unanswered) = (0, Vec::new());
    while asked < 2 {
        let seen = app.next().await;
        if seen.target == "/" {
            seen.answer(ok()).await;
            asked += 1;
        } else {
            unanswered.push(seen);
        }
    }
    assert!(replica.metric("bluebox_inbound_app_hangs") < 0.5);

    // It answers nothing at all, and is not asked for anything but a sign of life.
    replica.until("bluebox_inbound_app_hangs", 1.0).await;
    replica.until("bluebox_inbound_partitions", 0.0).await;
    let app = Arc::new(app);
    let seen = Arc::clone(&app).answer_all().await;
    assert_eq!(world.outcome_of(&call).await.source, Source::App);
    replica.until("bluebox_inbound_app_hangs", 0.0).await;
    assert!(seen.lock().unwrap().iter().any(|seen| seen.target == "/"));
}

#[tokio::test]
async fn a_status_of_retry_on_is_a_failed_attempt_on_its_route_only() {
    let world = World::new().await;
    let app = App::start().await;
    let route = RouteLimits { path: "/flaky".to_owned(), attempt_timeout: None, retry_on: Some(vec![http::StatusCode::BAD_GATEWAY]) };
    let _replica = Replica::start(&world, &app, Inbound { routes: vec![route], ..limits() });
    let (flaky, other) = (world.call_to("/flaky/1"), world.call_to("/other"));
    world.append(&flaky).await;
    app.next().await.answer(Answer::With(502, Vec::new(), Bytes::new())).await;
    let again = app.next().await;
    assert_eq!(again.header("bluebox-attempt"), Some("2"));
    again.answer(ok()).await;
    assert_eq!(world.outcome_of(&flaky).await.response.status, 200);
    world.append(&other).await;
    app.next().await.answer(Answer::With(502, Vec::new(), Bytes::new())).await;
    assert_eq!(world.outcome_of(&other).await.response.status, 502);
}

/// The log deleted calls that nobody had answered: an alarm, not silence.
#[tokio::test]
async fn records_that_the_log_deleted_without_an_outcome_are_counted() {
    let world = World::new().await;
    let mut lost = 0;
    for _ in 0..8 {
        world.append(&world.call()).await;
        lost += 1;
    }
    // All of it is older than the topic keeps.
    let later = bluebox_core::clock::wall_clock().as_millis() + 1000 * 3600 * 24 * 3;
    world.log.keep_house(bluebox_core::log::Timestamp::from_millis(later));
    let app = App::start().await;
    let replica = Replica::start(&world, &app, limits());
    replica.until("bluebox_inbound_records_lost_total", f64::from(lost)).await;
}

#[tokio::test]
async fn an_answer_that_is_no_http_ends_the_call_and_what_is_only_old_is_mended() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
            let answer = match head.split(|byte| *byte == b' ').nth(1) {
                Some(b"/old") => "HTTP/1.1 200 OK\r\nx-folded: a\r\n  b\r\nx-space : c\r\ncontent-length: 2\r\n\r\nok",
                Some(b"/odd") => "HTTP/1.1 099 Odd\r\ncontent-length: 2\r\n\r\nok",
                // It only looks whether somebody is there.
                _ => continue,
            };
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let world = World::new().await;
    let replica = Replica::start_before(&world, address, limits(), Spans::default());
    let (old, odd) = (world.call_to("/old"), world.call_to("/odd"));
    world.append(&old).await;
    let outcome = world.outcome_of(&old).await;
    assert_eq!((outcome.source, outcome.response.status.as_u16()), (Source::App, 200));
    assert_eq!([&outcome.response.headers["x-folded"], &outcome.response.headers["x-space"]], ["a b", "c"]);
    world.append(&odd).await;
    let outcome = world.outcome_of(&odd).await;
    assert_eq!((outcome.source, outcome.attempts, asked.load(Ordering::Relaxed)), (Source::Proxy(Reason::Answer), 1, 2));
    replica.stopped().await;
}

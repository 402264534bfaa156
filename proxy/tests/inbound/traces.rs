//! Attempts of several boxes at one call, as a collector sees them.

use std::time::Duration;

use bluebox_observe::trace::{Context, Counts, TRACEPARENT};
use bluebox_proxy::spans::{Spans, Traces};

use super::collector::Collector;
use super::world::{App, Replica, World, limits, name, ok};

const ACCEPTED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn spans(traces: &Traces) -> Spans {
    let counts = bluebox_observe::Counts::try_new("test").unwrap();
    Spans::start(Some(traces), &name("cart"), "test", Counts::try_new(&counts).unwrap())
}

/// A box that is killed tells nothing any more. Its successor tells of the attempt that it may have been at, with the very span that the app was handed, and of its own, linked to it.
#[tokio::test]
async fn a_call_whose_box_was_killed_in_the_middle_has_two_attempts_in_one_trace() {
    let world = World::new().await;
    let app = App::start().await;
    // What the dead one would say is not looked at.
    let (unheard, collector) = (Collector::start().await, Collector::start().await);
    let first = Replica::start_with(&world, &app, limits(), spans(&unheard.traces(Duration::from_secs(3600))));
    let mut call = world.call();
    call.request.headers.insert(TRACEPARENT, ACCEPTED.parse().unwrap());
    world.append(&call).await;
    let seen = app.next().await;
    let _second = Replica::start_with(&world, &app, limits(), spans(&collector.traces(Duration::from_millis(10))));
    first.kill();
    let again = app.next().await;
    again.answer(ok()).await;
    world.outcome_of(&call).await;

    let accepted = Context::parse(ACCEPTED.as_bytes()).unwrap();
    let [handed, handed_again] = [&seen, &again].map(|seen| Context::of(&seen.headers).unwrap());
    assert_ne!(handed.span, handed_again.span);
    let lost = collector.span(|told| told.says("bluebox.delivery.end") == "box_lost").await;
    let other = collector.span(|told| told.says("bluebox.delivery.end") == "answered").await;
    assert_eq!((lost.id(), other.id()), (handed.span, handed_again.span));
    for told in [&lost, &other] {
        assert_eq!((told.trace(), told.parent()), (accepted.trace, accepted.span));
    }
    assert!(lost.failed() && lost.says("bluebox.told_by_successor") == "true" && lost.says("bluebox.attempt") == "1");
    assert_eq!(other.says("bluebox.may_have_started"), "true");
    assert_eq!(other.links(), [("accepted".to_owned(), accepted.span), ("attempt before".to_owned(), lost.id())]);
    let outcome = collector.named("send bluebox.web.replies").await;
    assert_eq!(outcome.parent(), other.id());
}

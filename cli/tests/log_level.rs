//! What a running process logs, changed and back again.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;

use common::{Place, operate, request};
use nix::sys::signal::Signal;

#[test]
fn the_level_of_a_box_is_changed_for_a_time_and_told() {
    let mut up = Place::with("boxes:\n  cart: {command: [python3, app.py], partitions: 1, replicas: 2}\n").up();
    up.wait_until_up();
    let (code, said) = operate(&up, &["log-level", "cart"]);
    assert!(code == Some(0) && said.contains("cart-0: warn") && said.contains("cart-1: warn"), "{said}");
    // Nothing of a call is told at `warn`.
    let (code, said) = operate(&up, &["log-level", "cart", "debug", "--for", "1h"]);
    assert!(code == Some(0) && said.contains("cart-1: debug for 3"), "{said}");
    up.expect("the log level was changed");
    request(up.gateway(), "POST", "http://cart/items", &[], "a book");
    up.expect("a delivery began");
    // A later change counts; when its time is over, what `up` said does.
    let (code, said) = operate(&up, &["log-level", "cart-0", "info,bluebox_proxy::line=off", "--for", "1s"]);
    assert!(code == Some(0) && said.contains("cart-0: info,bluebox_proxy::line=off for") && !said.contains("cart-1"), "{said}");
    up.expect("the time of the changed log level is over");
    let (_, said) = operate(&up, &["log-level", "cart-0"]);
    assert!(said.contains("cart-0: warn") && !said.contains("for"), "{said}");

    for (mistake, told) in [
        (&["log-level", "cart", "debgu"][..], "error, warn, info, debug or trace"),
        (&["log-level", "card", "debug"][..], "kubectl exec"),
        (&["log-level", "cart", "debug", "--for", "2days"][..], "to a day"),
        (&["log-level", "debug", "--control", "127.0.0.1:1"][..], "--control"),
    ] {
        let (code, said) = operate(&up, mistake);
        assert!(code != Some(0) && said.contains(told), "{mistake:?}: {said}");
    }
    up.signal(Signal::SIGINT);
    up.ended();
}

//! Finds boxes whose app never used its proxy: their HTTP client ignores `HTTP_PROXY`, or they have nothing to call. `up` can't know which, so it says so once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval};

use super::output::{Output, Tone};
use super::state::{State, Status};
use crate::operate::get::get;

/// A box that takes no calls is given this long, in looks, before it is worth a word.
const LOOKS: u32 = 4;

/// Looks again and again, until there is something to say of every box or the boxes have ended.
pub(crate) async fn watch(mut state: watch::Receiver<State>, output: Output, every: Duration) {
    // Nothing can be said of boxes that don't run yet.
    if state.wait_for(|state| state.units.iter().all(|unit| unit.status == Status::Up)).await.is_err() {
        return;
    }
    let mut settled = BTreeSet::new();
    let mut looks = 0;
    let mut look = interval(every);
    look.reset_at(Instant::now() + every);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            ended = async { while state.changed().await.is_ok() {} } => return ended,
        }
        looks += 1;
        let now = state.borrow().clone();
        let boxes: BTreeSet<&str> = now.units.iter().filter(|unit| unit.app_port.is_some()).map(|unit| unit.box_name.as_str()).collect();
        for name in boxes {
            if settled.contains(name) {
                continue;
            }
            let admins = now.units.iter().filter(|unit| unit.box_name == name).filter_map(|unit| unit.admin);
            let Some(seen) = sum(admins).await else { continue };
            if seen.out == 0 && (seen.into > 0 || looks >= LOOKS) {
                let what = "That is right if it calls nobody; else its HTTP client ignores HTTP_PROXY, and its calls are not durable (docs/up.md).";
                output.say(Tone::News, format!("{name} has not used its proxy so far. {what}"));
            }
            if seen.out > 0 || seen.into > 0 || looks >= LOOKS {
                settled.insert(name.to_owned());
            }
        }
    }
}

/// Requests out of a box and deliveries into it.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    out: u64,
    into: u64,
}

async fn sum(admins: impl Iterator<Item = SocketAddr>) -> Option<Seen> {
    let mut all = Seen::default();
    for admin in admins {
        // A proxy that is being started again has nothing to tell now.
        let answer = get(admin, &format!("http://{admin}/metrics"), Duration::from_secs(2)).await.ok()?;
        let seen = count(std::str::from_utf8(answer.body()).ok()?);
        all = Seen { out: all.out + seen.out, into: all.into + seen.into };
    }
    Some(all)
}

/// Reads the counts that matter out of Prometheus' text format.
fn count(metrics: &str) -> Seen {
    const OUT: [&str; 4] = ["bluebox_outbound_calls_total", "bluebox_passed_through_total", "bluebox_streams_total", "bluebox_refused_requests_total"];
    const INTO: [&str; 1] = ["bluebox_inbound_deliveries_total"];
    let of = |names: &[&str]| {
        let lines = metrics.lines().filter(|line| names.contains(&line.split(['{', ' ']).next().unwrap_or_default()));
        // Counts of requests are whole numbers, written as such.
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    };
    Seen { out: of(&OUT), into: of(&INTO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_both_ways() {
        let text = "# HELP bluebox_outbound_calls_total x\nbluebox_outbound_calls_total{callee=\"a b\",result=\"app\"} 3\nbluebox_passed_through_total{result=\"forwarded\"} 2\n\
                    bluebox_outbound_calls_total_created 9\nbluebox_inbound_deliveries_total{component=\"c\",kind=\"first\"} 7\n";
        assert_eq!(count(text), Seen { out: 5, into: 7 });
        assert_eq!(count(""), Seen::default());
    }
}

//! What proxies say of the components that they serve: out of their `/metrics`, over the last minute.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bluebox_core::ComponentName;
use serde::{Deserialize, Serialize};

use crate::operate::get::get;

/// How far back what is said goes.
const WINDOW: Duration = Duration::from_secs(60);
/// How long a proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What proxies say of a component.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Calls that ended a second, in the last minute.
    pub(crate) rate: f64,
    /// Of these, the part that ended with an answer of the app below 500, from 0 to 1; none if none ended.
    pub(crate) success: Option<f64>,
    /// How long half of them took from acceptance to outcome, in seconds.
    pub(crate) p50_seconds: Option<f64>,
    /// What 99 % of them did not exceed.
    pub(crate) p99_seconds: Option<f64>,
    /// Deliveries under way.
    pub(crate) in_flight: u64,
    /// Deliveries that were not the first of their call, ever.
    pub(crate) again: u64,
    /// Calls parked.
    pub(crate) parked: u64,
}

/// What a line of Prometheus' text format says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Series {
    component: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    Ended(String),
    Again,
    InFlight,
    Parked,
    /// Calls that took at most so long, as it is written.
    Within(String),
}

impl What {
    fn only_grows(&self) -> bool {
        !matches!(self, Self::InFlight | Self::Parked)
    }
}

/// Looks at proxies again and again. One that was started anew counts from 0: what is kept here goes on.
#[derive(Debug, Default)]
pub(crate) struct Boxes {
    last: HashMap<SocketAddr, HashMap<Series, u64>>,
    sums: BTreeMap<Series, u64>,
    before: VecDeque<(Instant, BTreeMap<Series, u64>)>,
    now: BTreeMap<Series, u64>,
}

impl Boxes {
    /// Asks all of these. One that does not answer has nothing to tell now.
    pub(crate) async fn look(&mut self, admins: &[SocketAddr]) {
        let mut asked = tokio::task::JoinSet::new();
        for admin in admins.iter().copied() {
            asked.spawn(async move { (admin, get(admin, &format!("http://{admin}/metrics"), PATIENCE).await) });
        }
        let mut told = Vec::new();
        while let Some(Ok((admin, answer))) = asked.join_next().await {
            if let Ok(answer) = answer {
                told.push((admin, read(&String::from_utf8_lossy(answer.body()))));
            }
        }
        self.take(Instant::now(), told);
        self.last.retain(|admin, _| admins.contains(admin));
    }

    fn take(&mut self, now: Instant, told: Vec<(SocketAddr, HashMap<Series, u64>)>) {
        self.now.clear();
        for (admin, series) in told {
            let before = self.last.remove(&admin).unwrap_or_default();
            for (one, value) in &series {
                if one.what.only_grows() {
                    let grown = value.checked_sub(before.get(one).copied().unwrap_or(0)).unwrap_or(*value);
                    *self.sums.entry(one.clone()).or_default() += grown;
                } else {
                    *self.now.entry(one.clone()).or_default() += value;
                }
            }
            self.last.insert(admin, series);
        }
        self.before.push_back((now, self.sums.clone()));
        // One that is older than the window is needed to look back on all of it.
        while self.before.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.before.pop_front();
        }
    }

    /// What they say of a component.
    pub(crate) fn seen(&self, name: &ComponentName) -> Seen {
        let (Some((from, before)), Some((to, _))) = (self.before.front(), self.before.back()) else { return Seen::default() };
        let of = |what: What| Series { component: name.to_string(), what };
        let mine = || self.sums.iter().filter(|(series, _)| series.component == name.as_str());
        let grown = |series: &Series, value: &u64| value - before.get(series).copied().unwrap_or(0);
        let (mut ended, mut good, mut buckets) = (0, 0, Vec::new());
        for (series, value) in mine() {
            match &series.what {
                What::Ended(outcome) => {
                    ended += grown(series, value);
                    if ["2xx", "3xx", "4xx", "known"].contains(&outcome.as_str()) {
                        good += grown(series, value);
                    }
                }
                What::Within(bound) => buckets.push((bound.parse().unwrap_or(f64::INFINITY), grown(series, value))),
                _ => {}
            }
        }
        let seconds = to.duration_since(*from).as_secs_f64();
        buckets.sort_by(|a: &(f64, u64), b| a.0.total_cmp(&b.0));
        Seen {
            rate: if seconds > 0.0 { ended as f64 / seconds } else { 0.0 },
            success: (ended > 0).then(|| good as f64 / ended as f64),
            p50_seconds: quantile(&buckets, 0.5),
            p99_seconds: quantile(&buckets, 0.99),
            in_flight: self.now.get(&of(What::InFlight)).copied().unwrap_or(0),
            again: self.sums.get(&of(What::Again)).copied().unwrap_or(0),
            parked: self.now.get(&of(What::Parked)).copied().unwrap_or(0),
        }
    }
}

/// As Prometheus' `histogram_quantile`: within a bucket all values are taken to be spread evenly. `buckets` are cumulative, in the order of their bounds.
fn quantile(buckets: &[(f64, u64)], q: f64) -> Option<f64> {
    let all = buckets.last()?.1;
    if all == 0 {
        return None;
    }
    let rank = q * all as f64;
    let mut below = (0.0, 0);
    for (bound, count) in buckets {
        if *count as f64 >= rank {
            if bound.is_infinite() {
                return Some(below.0);
            }
            let inside = (*count - below.1) as f64;
            return Some(if inside > 0.0 { below.0 + (bound - below.0) * (rank - below.1 as f64) / inside } else { *bound });
        }
        below = (*bound, *count);
    }
    Some(below.0)
}

/// Reads what matters.
fn read(text: &str) -> HashMap<Series, u64> {
    let mut all = HashMap::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        let label = |wanted: &str| labels.split(',').find_map(|label| label.strip_prefix(wanted)?.strip_prefix("=\"")?.strip_suffix('"'));
        let what = match name {
            "bluebox_inbound_calls_ended_total" => label("outcome").map(|outcome| What::Ended(outcome.to_owned())),
            "bluebox_inbound_deliveries_total" => label("kind").filter(|kind| *kind == "again").map(|_| What::Again),
            "bluebox_inbound_deliveries_under_way" => Some(What::InFlight),
            "bluebox_inbound_parked_calls" => Some(What::Parked),
            "bluebox_call_duration_seconds_bucket" => {
                let whole = label("direction") == Some("in") && label("stage") == Some("whole");
                label("le").filter(|_| whole).map(|bound| What::Within(bound.to_owned()))
            }
            _ => None,
        };
        if let (Some(what), Some(component), Ok(value)) = (what, label("component"), value.parse()) {
            all.insert(Series { component: component.to_owned(), what }, value);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ended: u64, failed: u64, fast: u64) -> String {
        let all = ended + failed;
        format!(
            "# HELP x y\nbluebox_inbound_calls_ended_total{{component=\"cart\",outcome=\"2xx\"}} {ended}\nbluebox_inbound_calls_ended_total{{component=\"cart\",outcome=\"dead_letter\"}} {failed}\n\
             bluebox_call_duration_seconds_bucket{{component=\"cart\",direction=\"in\",stage=\"whole\",le=\"0.1\"}} {fast}\n\
             bluebox_call_duration_seconds_bucket{{component=\"cart\",direction=\"in\",stage=\"whole\",le=\"0.2\"}} {all}\n\
             bluebox_call_duration_seconds_bucket{{component=\"cart\",direction=\"in\",stage=\"whole\",le=\"+Inf\"}} {all}\n\
             bluebox_call_duration_seconds_bucket{{component=\"cart\",direction=\"out\",stage=\"whole\",le=\"+Inf\"}} 900\n\
             bluebox_inbound_deliveries_under_way{{component=\"cart\"}} 2\nbluebox_inbound_deliveries_total{{component=\"cart\",kind=\"again\"}} 3\n"
        )
    }

    #[test]
    fn a_minute_is_looked_back_on_and_a_restart_is_no_step_back() {
        let (one, two): (SocketAddr, SocketAddr) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let cart = ComponentName::try_new("cart").unwrap();
        let mut boxes = Boxes::default();
        assert_eq!(boxes.seen(&cart), Seen::default());
        let began = Instant::now();
        boxes.take(began, vec![(one, read(&text(100, 0, 100))), (two, read(&text(0, 0, 0)))]);
        // The first was started again meanwhile: 10 calls of its new life.
        boxes.take(began + Duration::from_secs(10), vec![(one, read(&text(10, 0, 0))), (two, read(&text(80, 10, 0)))]);
        let seen = boxes.seen(&cart);
        assert_eq!((seen.rate, seen.success, seen.in_flight, seen.again), (10.0, Some(0.9), 4, 6));
        let (p50, p99) = (seen.p50_seconds.unwrap(), seen.p99_seconds.unwrap());
        assert!((p50 - 0.15).abs() < 1e-9 && (p99 - 0.199).abs() < 1e-9, "{p50} {p99}");
        // What lies more than a minute back no longer counts.
        for seconds in [40, 80, 120] {
            boxes.take(began + Duration::from_secs(seconds), vec![(one, read(&text(10, 0, 0))), (two, read(&text(80, 10, 0)))]);
        }
        let seen = boxes.seen(&cart);
        assert_eq!((seen.rate, seen.success, seen.p50_seconds), (0.0, None, None));
    }
}

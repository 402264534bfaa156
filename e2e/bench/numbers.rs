//! From times to percentiles.

use std::time::Duration;

use serde_json::{Value, json};

/// Times of calls of one round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    /// One more.
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// These too.
    pub(crate) fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    /// The time below which this part of them lies, in µs: the nearest rank. 0 of none.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "ranks are small and not negative")]
        let rank = ((percent / 100.0 * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len().max(1));
        sorted.get(rank - 1).map_or(0.0, |nanos| micros(*nanos))
    }
}

#[allow(clippy::cast_precision_loss, reason = "times of calls are below the year")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1_000.0
}

/// What one kind of call did in all rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    rounds: Vec<(Times, Duration)>,
}

impl Rounds {
    /// One more round, and how long it took.
    pub(crate) fn add(&mut self, times: Times, took: Duration) {
        self.rounds.push((times, took));
    }

    /// The median over the rounds of a percentile in each, in µs.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        median(self.rounds.iter().map(|(times, _)| times.percentile(percent)).collect())
    }

    /// The median over the rounds of the calls per second.
    pub(crate) fn per_second(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a round has fewer calls than that")]
        let rate = |(times, took): &(Times, Duration)| times.len() as f64 / took.as_secs_f64().max(1e-9);
        median(self.rounds.iter().map(rate).collect())
    }

    /// How many calls.
    pub(crate) fn calls(&self) -> usize {
        self.rounds.iter().map(|(times, _)| times.len()).sum()
    }

    /// As it is written down. What lies beyond a round's reach is taken from all rounds together.
    pub(crate) fn json(&self) -> Value {
        let mut all = Times::default();
        self.rounds.iter().for_each(|(times, _)| all.extend(times));
        let spread: Vec<_> = self.rounds.iter().map(|(times, _)| rounded(times.percentile(50.0))).collect();
        json!({
            "p50_us": rounded(self.percentile(50.0)), "p90_us": rounded(self.percentile(90.0)), "p99_us": rounded(self.percentile(99.0)),
            "p999_us": rounded(all.percentile(99.9)), "max_us": rounded(all.percentile(100.0)),
            "per_second": rounded(self.per_second()), "calls": self.calls(), "p50_us_of_rounds": spread,
        })
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

/// With one digit behind the point.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(micros: impl IntoIterator<Item = u64>) -> Times {
        let mut times = Times::default();
        micros.into_iter().for_each(|n| times.add(Duration::from_micros(n)));
        times
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let hundred = times((1..=100).rev());
        assert_eq!([50.0, 90.0, 99.0, 99.9, 100.0].map(|p| hundred.percentile(p)), [50.0, 90.0, 99.0, 100.0, 100.0]);
        assert_eq!(times([7]).percentile(50.0), 7.0);
        assert_eq!(times([]).percentile(99.0), 0.0);
    }

    #[test]
    fn one_bad_round_does_not_count() {
        let mut rounds = Rounds::default();
        for at in [10, 1_000, 12] {
            rounds.add(times([at; 4]), Duration::from_secs(2));
        }
        assert_eq!(rounds.percentile(50.0), 12.0);
        assert_eq!(rounds.per_second(), 2.0);
        assert_eq!(rounds.json()["max_us"], 1_000.0);
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}

//! Time as the machines see it: moments of UTC, so that whoever takes over counts on from the same ones.

use std::time::Duration;

use bluebox_core::clock::millis;
use bluebox_core::log::Timestamp;

/// The moment `after` a moment; the end of time where that can't be told.
///
/// A deadline is an absolute UTC time, so that recovery honours it (MicroProfile LRA 2.0, "Timing out LRAs").
pub fn later(moment: Timestamp, after: Duration) -> Timestamp {
    Timestamp::from_millis(moment.as_millis().saturating_add(millis(after)))
}

/// The pause before the try that follows `failures` tries in a row that asked for another one: doubling from `first` up to `longest`.
pub fn backoff(first: Duration, longest: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_somewhere() {
        let pause = |failures| backoff(Duration::from_millis(100), Duration::from_secs(1), failures).as_millis();
        assert_eq!([0, 1, 2, 3, 4, 5, 40, u32::MAX].map(pause), [100, 100, 200, 400, 800, 1_000, 1_000, 1_000]);
    }

    #[test]
    fn the_end_of_time_is_not_passed() {
        assert_eq!(later(Timestamp::from_millis(u64::MAX - 1), Duration::MAX), Timestamp::from_millis(u64::MAX));
        assert_eq!(later(Timestamp::from_millis(5), Duration::from_millis(7)), Timestamp::from_millis(12));
    }
}

//! The clocks that the promises are kept by.
//!
//! Leases run on a clock that goes on while the machine is suspended, because a proxy that slept through its lease must know it.
//! Deadlines run on the log's clock: see [`Timestamp`].

use std::ops::{Add, Sub};
use std::time::Duration;

use crate::log::Timestamp;

/// A moment on a clock that only goes forward, at the same rate through a suspension of the machine or of the process
/// (`CLOCK_BOOTTIME`, clock_gettime(2)). Only differences on one machine mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        // CLOCK_BOOTTIME is there since Linux 2.6.39; were it not, the time since the epoch is as good for differences.
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_or_else(|_| Self(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()), |t| Self(Duration::from(t)))
    }

    /// The moment `since_start` after an arbitrary start. For simulations, which bring their own time.
    pub fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// How long ago `earlier` was; zero if it is later than this.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(before))
    }
}

/// Something that happens again and again, of which a log is to say no more than one line a minute.
#[derive(Debug, Clone, Default)]
pub struct OnceAMinute {
    told: Option<Moment>,
    untold: u64,
}

impl OnceAMinute {
    /// It has happened. If it is to be told: how often it has since it was told last.
    pub fn happened(&mut self, now: Moment) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.since(told) < Duration::from_secs(60)) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// The wall clock as the log writes it. For the embedded log, and to bound a deadline from above; never to shorten one.
pub fn wall_clock() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(millis(since_epoch))
}

/// Whole milliseconds; more than there is room for are as many as there is.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_again_and_again_is_told_once_a_minute_with_how_often() {
        let at = |seconds| Moment::from_start(Duration::from_secs(seconds));
        let mut seldom = OnceAMinute::default();
        assert_eq!([0, 1, 59, 60, 61, 500].map(|seconds| seldom.happened(at(seconds))), [Some(1), None, None, Some(3), None, Some(2)]);
    }
}

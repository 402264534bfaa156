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

/// The wall clock as the log writes it. For the embedded log, and to bound a deadline from above; never to shorten one.
pub fn wall_clock() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(millis(since_epoch))
}

/// Whole milliseconds; more than there is room for are as many as there is.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

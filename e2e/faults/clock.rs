//! The one clock of a run: CLOCK_MONOTONIC, which all processes of a machine share and no step of the wall clock moves.

use std::fmt;
use std::time::Duration;

/// A moment: microseconds on CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    pub(crate) fn now() -> Self {
        // It can't fail for a clock that every Linux has.
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        Self(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long after `earlier`; zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl std::str::FromStr for Moment {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (seconds, micros) = text.split_once('.').ok_or(())?;
        let (seconds, micros): (u64, u64) = (seconds.parse().map_err(drop)?, micros.parse().map_err(drop)?);
        Ok(Self(seconds * 1_000_000 + micros))
    }
}

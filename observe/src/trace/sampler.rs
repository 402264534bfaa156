//! Which traces are kept (OpenTelemetry: *Built-in samplers*).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::context::Context;

/// Decides for a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Of the traces that begin here, and of all if `parent_decides` is not set: those are kept whose id is below this, by its last 56 bits.
    below: u64,
    /// Whether who has begun a trace decides for everybody.
    parent_decides: bool,
    /// Of the traces that begin here, so many are kept in a second at most.
    pub(super) most_begun: Option<u32>,
}

/// What is wrong with the name of a sampler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Samples {
    /// There is none of that name.
    NoName,
    /// Its argument is no part of a whole.
    NoRatio(String),
}

impl Sampler {
    /// Where nobody says which: all, as long as they are not so many that it shows in what else gets done.
    pub const USUAL: Self = Self { below: ALL_IDS, parent_decides: true, most_begun: Some(1_000) };

    /// With a limit: of the traces that begin here, so many are kept in a second at most.
    #[must_use]
    pub const fn limited_to(mut self, most_begun: u32) -> Self {
        self.most_begun = Some(most_begun);
        self
    }

    /// By its name, and its argument.
    ///
    /// # Errors
    /// When there is none of that name, or it has another argument.
    pub fn read(name: &str, argument: Option<&str>) -> Result<Self, Samples> {
        let (parent_decides, own) = match name.strip_prefix("parentbased_") {
            Some(own) => (true, own),
            None => (false, name),
        };
        let ratio = match own {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match argument {
                None => 1.0,
                Some(text) => text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| Samples::NoRatio(text.to_owned()))?,
            },
            _ => return Err(Samples::NoName),
        };
        Ok(Self { below: (ratio * ALL_IDS as f64) as u64, parent_decides, most_begun: None })
    }

    /// Whether a span of this trace is kept, which `parent` is above, if it came from elsewhere.
    pub fn keeps(&self, trace: u128, parent: Option<Context>) -> bool {
        match parent {
            Some(parent) if self.parent_decides => parent.sampled,
            // By the last seven bytes, which are random in all ids (W3C Trace Context, section 3.2.2.3): so that all parts decide alike.
            _ => (trace as u64) % ALL_IDS < self.below,
        }
    }
}

/// How many values 56 bits have.
const ALL_IDS: u64 = 1 << 56;

/// No more than so many in a second.
#[derive(Debug)]
pub(super) struct Limit {
    most: u32,
    began: Instant,
    /// The second since it began, and how many there were in it: 32 bits each.
    state: AtomicU64,
}

impl Limit {
    pub(super) fn new(most: u32, now: Instant) -> Self {
        Self { most, began: now, state: AtomicU64::new(0) }
    }

    /// How many.
    pub(super) const fn most(&self) -> u32 {
        self.most
    }

    /// Whether there may be one more.
    pub(super) fn takes(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.began).as_secs() << 32;
        let one_more = |state: u64| {
            let next = if state >= second { state + 1 } else { second + 1 };
            (next as u32 <= self.most).then_some(next)
        };
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_begins_a_trace_decides_for_all_if_that_is_wanted() {
        let parent = |sampled| Some(Context { trace: 1, span: 1, sampled });
        let decided = |name: &str, argument: Option<&str>| {
            let sampler = Sampler::read(name, argument).unwrap();
            (sampler.keeps(1, None), sampler.keeps(1, parent(true)), sampler.keeps(1, parent(false)))
        };
        assert_eq!(decided("always_on", None), (true, true, true));
        assert_eq!(decided("always_off", None), (false, false, false));
        assert_eq!(decided("parentbased_always_on", None), (true, true, false));
        assert_eq!(decided("parentbased_always_off", None), (false, true, false));
        assert_eq!(decided("parentbased_traceidratio", Some("0")), (false, true, false));
        assert_eq!(Sampler { most_begun: None, ..Sampler::USUAL }, Sampler::read("parentbased_always_on", None).unwrap());
    }

    #[test]
    fn each_second_has_its_own_number() {
        let began = Instant::now();
        let limit = Limit::new(2, began);
        let taken = |milliseconds: u64| limit.takes(began + Duration::from_millis(milliseconds));
        assert_eq!(
            [0, 1, 999, 1_000, 1_001, 900, 1_999, 7_000].map(taken),
            [true, true, false, true, true, false, false, true],
            "who looks late counts as now"
        );
    }

    #[test]
    fn a_ratio_is_that_part_of_all_traces() {
        let sampler = Sampler::read("traceidratio", Some("0.25")).unwrap();
        let ids = (0..1000u128).map(|n| n * u128::from(ALL_IDS) / 1000);
        assert_eq!(ids.filter(|id| sampler.keeps(*id, None)).count(), 250);
        assert!(Sampler::read("traceidratio", None).unwrap().keeps(u128::MAX, None));
    }
}

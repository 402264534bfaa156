//! Which traces are kept (OpenTelemetry: *Built-in samplers*).

use super::context::Context;

/// Decides for a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Of the traces that begin here, and of all if `parent_decides` is not set: those are kept whose id is below this, by its last 56 bits.
    below: u64,
    /// Whether who has begun a trace decides for everybody.
    parent_decides: bool,
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
    /// One that keeps everything.
    pub const ALL: Self = Self { below: ALL_IDS, parent_decides: true };

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
        Ok(Self { below: (ratio * ALL_IDS as f64) as u64, parent_decides })
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

#[cfg(test)]
mod tests {
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
        assert_eq!(Sampler::ALL, Sampler::read("parentbased_always_on", None).unwrap());
    }

    #[test]
    fn a_ratio_is_that_part_of_all_traces() {
        let sampler = Sampler::read("traceidratio", Some("0.25")).unwrap();
        let ids = (0..1000u128).map(|n| n * u128::from(ALL_IDS) / 1000);
        assert_eq!(ids.filter(|id| sampler.keeps(*id, None)).count(), 250);
        assert!(Sampler::read("traceidratio", None).unwrap().keeps(u128::MAX, None));
    }
}

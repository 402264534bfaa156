//! Counters, gauges and histograms, each described where it is made.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tracing::warn;

use crate::handles::{Words, WordsOf};

/// All counts of a part. Cheap to clone; clones count together.
///
/// Units are base units; names end in the unit, and in `_total` if they only grow. Labels have few values: words of this program, and names of components, which the registry bounds.
/// Never a path, an id, or anything else that a caller chooses.
#[derive(Clone)]
pub struct Counts {
    registry: Registry,
    shared: Arc<Shared>,
    /// Labels that all counts made here have.
    fixed: Vec<(String, String)>,
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").field("fixed", &self.fixed).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    families: Mutex<BTreeMap<String, Family>>,
    looks: Mutex<Vec<Look>>,
}

type Look = Box<dyn Fn() + Send + Sync>;

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<String>,
    /// What it says, with the values that its labels can have.
    pub help: String,
}

impl Counts {
    /// No counts but those that every part has. `part` is a word for it: `proxy`, `injector`.
    ///
    /// # Errors
    /// Only by a mistake in this program.
    pub fn try_new(part: &str) -> Result<Self, prometheus::Error> {
        let counts = Self { registry: Registry::new(), shared: Arc::default(), fixed: Vec::new() };
        let info = counts.gauges("bluebox_build_info", "Always 1; its labels say what runs: the part of Bluebox, and its version", &["part", "version"])?;
        info.with_label_values(&[part, env!("CARGO_PKG_VERSION")]).set(1);
        let started = counts.gauge("process_start_time_seconds", "When the process started, in seconds since 1970")?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        started.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        Ok(counts)
    }

    /// The same counts, where those that are made carry this label.
    #[must_use]
    pub fn with(&self, label: &str, value: &str) -> Self {
        let mut with = self.clone();
        with.fixed.push((label.to_owned(), value.to_owned()));
        with
    }

    /// What only grows.
    ///
    /// # Errors
    /// When the name is taken or is none, which is a mistake in this program. So for all of these.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.made("counter", name, help, &[], IntCounter::with_opts(self.opts(name, help)))
    }

    /// What only grows, by one label that has few values.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn words(&self, name: &str, help: &str, label: &str) -> Result<Words, prometheus::Error> {
        Ok(Words::new(self.counters(name, help, &[label])?, None))
    }

    /// What only grows, by a name and a word.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn words_of(&self, name: &str, help: &str, labels: [&str; 2]) -> Result<WordsOf, prometheus::Error> {
        Ok(WordsOf::new(self.counters(name, help, &labels)?))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.made("counter", name, help, labels, IntCounterVec::new(self.opts(name, help), labels))
    }

    /// What goes up and down, in whole numbers.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.made("gauge", name, help, &[], IntGauge::with_opts(self.opts(name, help)))
    }

    /// The same, by labels. Not for the way of a call.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.made("gauge", name, help, labels, IntGaugeVec::new(self.opts(name, help), labels))
    }

    /// What goes up and down.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn real(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.made("gauge", name, help, &[], Gauge::with_opts(self.opts(name, help)))
    }

    /// The same, by labels. Not for the way of a call.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn reals(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.made("gauge", name, help, labels, GaugeVec::new(self.opts(name, help), labels))
    }

    /// How something is distributed.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets: buckets.to_vec() };
        self.made("histogram", name, help, &[], Histogram::with_opts(opts))
    }

    /// The same, by labels; to be resolved before calls come.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets: buckets.to_vec() };
        self.made("histogram", name, help, labels, HistogramVec::new(opts, labels))
    }

    /// Where all of it is registered, for what is counted otherwise. What is registered there is written, but is not in [`Self::families`].
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Does this whenever somebody looks, just before: for what is known elsewhere. Must not block.
    pub fn before_a_look(&self, look: impl Fn() + Send + Sync + 'static) {
        guard(&self.shared.looks).push(Box::new(look));
    }

    /// All counts in Prometheus' text format.
    pub fn text(&self) -> Vec<u8> {
        for look in &*guard(&self.shared.looks) {
            look();
        }
        let mut text = Vec::new();
        if let Err(problem) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            warn!(%problem, "the metrics could not be written");
        }
        text
    }

    /// Every name that there is, also those that nothing was counted by yet.
    pub fn families(&self) -> Vec<Family> {
        guard(&self.shared.families).values().cloned().collect()
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.fixed.iter().cloned().collect::<HashMap<_, _>>())
    }

    fn made<C: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        name: &str,
        help: &str,
        labels: &[&str],
        made: Result<C, prometheus::Error>,
    ) -> Result<C, prometheus::Error> {
        let made = made?;
        self.registry.register(Box::new(made.clone()))?;
        let labels = self.fixed.iter().map(|(label, _)| label.as_str()).chain(labels.iter().copied()).map(str::to_owned).collect();
        guard(&self.shared.families).insert(name.to_owned(), Family { name: name.to_owned(), kind, labels, help: help.to_owned() });
        Ok(made)
    }
}

fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in there can panic half-way.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_written_and_described() {
        let counts = Counts::try_new("test").unwrap();
        let held = counts.with("component", "cart").gauge("bluebox_held_calls", "Calls held").unwrap();
        counts.before_a_look(move || held.set(7));
        counts.words("bluebox_ends_total", "Ends, by how", "how").unwrap();
        let text = String::from_utf8(counts.text()).unwrap();
        assert!(text.contains("bluebox_held_calls{component=\"cart\"} 7"), "{text}");
        assert!(text.contains("bluebox_build_info{part=\"test\",version="), "{text}");
        let names: Vec<_> = counts.families().into_iter().map(|family| (family.name, family.labels.join(","))).collect();
        // Also the one that has no value yet.
        assert!(names.contains(&("bluebox_ends_total".to_owned(), "how".to_owned())), "{names:?}");
        assert!(names.contains(&("bluebox_held_calls".to_owned(), "component".to_owned())), "{names:?}");
    }
}

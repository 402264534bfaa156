//! Counts by word, for the way of a call: whoever counts holds the counter of each word already.
//!
//! `prometheus` finds the counter of a label's value in a map behind a lock. Here each is found there once, and then in a list that only grows: reading it takes no lock and
//! allocates nothing. There are few words, so a list is as good as a map; of components there may be hundreds, and comparing their names takes a microsecond then.

use std::sync::{Arc, OnceLock};

use prometheus::{IntCounter, IntCounterVec, IntGauge};

/// Values by key, made when they are first asked for, never removed.
#[derive(Debug)]
struct Handles<T>(OnceLock<Box<Node<T>>>);

#[derive(Debug)]
struct Node<T> {
    key: Box<str>,
    value: T,
    next: Handles<T>,
}

impl<T> Handles<T> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    fn of(&self, key: &str, make: impl Fn() -> T) -> &T {
        let mut place = self;
        loop {
            // Two that add at once: the one that comes later looks on behind the other's.
            let node = place.0.get_or_init(|| Box::new(Node { key: key.into(), value: make(), next: Self::new() }));
            if &*node.key == key {
                return &node.value;
            }
            place = &node.next;
        }
    }
}

/// A counter for each word. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Words(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    vector: IntCounterVec,
    /// The values of the labels before the word.
    before: Option<Box<str>>,
    handles: Handles<IntCounter>,
}

impl Words {
    pub(crate) fn new(vector: IntCounterVec, before: Option<&str>) -> Self {
        Self(Arc::new(Counted { vector, before: before.map(Into::into), handles: Handles::new() }))
    }

    /// Counts these from 0 on, so that their first time is seen as a change.
    #[must_use]
    pub fn from_zero(self, words: &[&str]) -> Self {
        for word in words {
            self.of(word);
        }
        self
    }

    /// Counts one.
    pub fn inc(&self, word: &str) {
        self.of(word).inc();
    }

    /// Counts so many.
    pub fn inc_by(&self, word: &str, count: u64) {
        self.of(word).inc_by(count);
    }

    /// How many were counted.
    pub fn count(&self, word: &str) -> u64 {
        self.of(word).get()
    }

    fn of(&self, word: &str) -> &IntCounter {
        let Counted { vector, before, handles } = &*self.0;
        handles.of(word, || match before {
            Some(before) => vector.with_label_values(&[before, word]),
            None => vector.with_label_values(&[word]),
        })
    }
}

/// Counters by word for each of some things, such as the components that are called: as many as were ever asked for.
#[derive(Debug, Clone)]
pub struct WordsOf(Arc<(IntCounterVec, Handles<Words>)>);

impl WordsOf {
    pub(crate) fn new(vector: IntCounterVec) -> Self {
        Self(Arc::new((vector, Handles::new())))
    }

    /// The counters of one thing.
    pub fn of(&self, thing: &str) -> &Words {
        let (vector, handles) = &*self.0;
        handles.of(thing, || Words::new(vector.clone(), Some(thing)))
    }
}

/// Counts something in a gauge for as long as it is there: until this is dropped.
#[derive(Debug)]
pub struct During(IntGauge);

impl During {
    /// One more.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for During {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[test]
    fn each_word_has_one_counter_whoever_asks_first() {
        let vector = IntCounterVec::new(Opts::new("calls_total", "calls"), &["callee", "result"]).unwrap();
        let words = WordsOf::new(vector.clone());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..1000 {
                        words.of(["cart", "shop", "mail"][n % 3]).inc(["app", "refused"][n % 2]);
                    }
                });
            }
        });
        let counted = |callee, result| vector.with_label_values(&[callee, result]).get();
        assert_eq!(counted("cart", "app") + counted("cart", "refused"), 4 * 334);
        assert_eq!(["cart", "shop", "mail"].map(|callee| counted(callee, "app")).iter().sum::<u64>(), 4 * 500);
    }

    #[test]
    fn what_is_counted_from_zero_is_there_before_it_happens() {
        let vector = IntCounterVec::new(Opts::new("ends_total", "ends"), &["outcome"]).unwrap();
        let words = Words::new(vector.clone(), None).from_zero(&["dead_letter"]);
        assert_eq!(prometheus::core::Collector::collect(&vector)[0].get_metric().len(), 1);
        words.inc("2xx");
        assert_eq!(prometheus::core::Collector::collect(&vector)[0].get_metric().len(), 2);
    }
}

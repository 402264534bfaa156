//! What is known of the last of many things, within a bound.

use std::collections::HashMap;
use std::hash::Hash;

/// As many as this are remembered for certain, and twice as many at most.
const REMEMBERED: usize = 4096;

/// Values by key, of which some that came long ago are forgotten.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Hash + Eq, V: Clone> Recent<K, V> {
    /// What is known of one.
    pub fn of(&self, key: &K) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).cloned()
    }

    /// From now on this is.
    pub fn keep(&mut self, key: K, value: V) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Nothing is any more.
    pub fn take(&mut self, key: &K) -> Option<V> {
        let old = self.old.remove(key);
        self.young.remove(key).or(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_the_last_of_each_counts() {
        let mut last = Recent::default();
        last.keep(0, 1);
        last.keep(0, 2);
        assert_eq!(last.of(&0), Some(2));
        for key in 1..REMEMBERED {
            last.keep(key, 3);
        }
        assert_eq!(last.of(&0), Some(2), "not yet");
        for key in 0..3 * REMEMBERED {
            last.keep(key + REMEMBERED, 3);
        }
        assert_eq!(last.of(&0), None);
        assert!(last.young.len() + last.old.len() <= 2 * REMEMBERED);
        last.keep(0, 4);
        assert_eq!((last.take(&0), last.take(&0)), (Some(4), None));
    }
}

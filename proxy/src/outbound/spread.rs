//! Which partition a call goes to that may go to any: one without an `Idempotency-Key`, an ordering key, or an ordinal.
//!
//! A client of Kafka sends one batch of one partition in a request, and has few requests under way at once. Calls that are on their way at the same time share batches, the more of
//! them there are: they lie on [`BATCHES`] partitions or so, and not each on another. One call after the other goes to partitions at random.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bluebox_core::topics::{id_in, partition_of};
use bluebox_core::{CallId, ComponentName};

/// Over so many partitions the calls are spread at least that are on their way into the log to one component: with fewer, few of its boxes would have to do with all of them.
const BATCHES: u32 = 8;

/// The calls of a proxy that are on their way into the log. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spread {
    under_way: Arc<Mutex<HashMap<ComponentName, Batch>>>,
}

/// To one component.
#[derive(Debug, Default)]
struct Batch {
    /// Where the last one went.
    partition: u32,
    /// How many were sent there since the partition was drawn.
    sent: u32,
    under_way: u32,
}

/// A call on its way into the log; dropped when it is there.
#[derive(Debug)]
#[must_use]
pub struct OnItsWay {
    spread: Spread,
    callee: ComponentName,
}

impl Spread {
    /// An id for a call to a component with so many partitions, one of which the id chooses.
    pub fn draw(&self, callee: &ComponentName, partitions: u32) -> (CallId, OnItsWay) {
        let random = CallId::random();
        let on_its_way = OnItsWay { spread: self.clone(), callee: callee.clone() };
        let mut under_way = self.under_way();
        let batch = under_way.entry(callee.clone()).or_default();
        let joins = batch.under_way > 0 && batch.sent < batch.under_way.div_ceil(BATCHES) && batch.partition < partitions;
        if !joins {
            (batch.partition, batch.sent) = (partition_of(&random, None, partitions), 0);
        }
        batch.sent += 1;
        batch.under_way += 1;
        (id_in(random, batch.partition, partitions), on_its_way)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<ComponentName, Batch>> {
        // Nothing in there can panic half-way.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut under_way = self.spread.under_way();
        if let Some(batch) = under_way.get_mut(&self.callee) {
            batch.under_way -= 1;
            if batch.under_way == 0 {
                under_way.remove(&self.callee);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PARTITIONS: u32 = 32;

    fn draw(spread: &Spread, count: usize) -> (BTreeSet<CallId>, BTreeSet<u32>, Vec<OnItsWay>) {
        let callee = ComponentName::try_new("cart").unwrap();
        let (mut ids, mut used, mut kept) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for _ in 0..count {
            let (id, on_its_way) = spread.draw(&callee, PARTITIONS);
            ids.insert(id);
            used.insert(partition_of(&id, None, PARTITIONS));
            kept.push(on_its_way);
        }
        (ids, used, kept)
    }

    #[test]
    fn calls_that_are_on_their_way_together_share_partitions_but_not_all_one() {
        let spread = Spread::default();
        let (_, _, before) = draw(&spread, 256);
        let (ids, used, _kept) = draw(&spread, 256);
        assert_eq!(ids.len(), 256, "each has an id of its own");
        // Each partition that is drawn takes 32 to 64 of them, and the same may be drawn again.
        assert!((2..=9).contains(&used.len()), "{used:?}");
        drop(before);
    }

    #[test]
    fn one_call_after_the_other_goes_anywhere() {
        let spread = Spread::default();
        let mut used = BTreeSet::new();
        for _ in 0..2000 {
            let (_, partitions, on_its_way) = draw(&spread, 1);
            used.extend(partitions);
            drop(on_its_way);
        }
        assert_eq!(used.len(), PARTITIONS as usize);
        assert!(spread.under_way().is_empty(), "nothing is kept of what is over");
    }

    #[test]
    fn few_calls_at_once_are_spread_as_one_after_the_other() {
        let spread = Spread::default();
        let mut most = 0;
        for _ in 0..50 {
            most = most.max(draw(&spread, 8).1.len());
        }
        assert!(most > 5, "{most}");
    }
}

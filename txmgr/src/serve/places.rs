//! How many callbacks are under way at once, and to whom.
//!
//! A callback keeps its place until it has an outcome, and that can take a day, where its participant is away. So no one callee has more places than are left for all others: whoever is away holds
//! up those who wait for the same, and nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Places for callbacks. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    callees: HashMap<String, Callee>,
}

#[derive(Debug, Default)]
struct Callee {
    taken: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A place, as long as it is there.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    callee: String,
}

/// A place, or one's turn.
#[derive(Debug)]
pub(super) enum Asked {
    Here(Place),
    /// When one of the callee's places, or enough of all, are left. Dropped, it is given to the next.
    Later(oneshot::Receiver<Place>),
}

impl State {
    /// Takes a place for a callee, if it may have one more.
    fn take(&mut self, callee: &str) -> bool {
        let free = self.free;
        let may = self.callees.get_mut(callee).filter(|callee| callee.taken < free).map(|callee| callee.taken += 1).is_some();
        if may {
            self.free -= 1;
        }
        may
    }

    /// Whose turn it is; that place is taken.
    fn next(&mut self) -> Option<(String, oneshot::Sender<Place>)> {
        let free = self.free;
        let (callee, waiter) = self.callees.iter_mut().filter(|(_, callee)| callee.taken < free).find_map(|(name, callee)| {
            // Those who don't wait any more have no turn.
            while let Some(waiter) = callee.waiting.pop_front() {
                if !waiter.is_closed() {
                    return Some((name.clone(), waiter));
                }
            }
            None
        })?;
        self.take(&callee).then_some((callee, waiter))
    }
}

impl Places {
    /// So many, of all callees together.
    pub(super) fn new(all: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: all, callees: HashMap::new() })))
    }

    /// Asks for a place for a callback to this callee.
    pub(super) fn ask(&self, callee: &str) -> Asked {
        let mut state = self.state();
        let others = state.callees.entry(callee.to_owned()).or_default().waiting.iter().any(|waiter| !waiter.is_closed());
        if !others && state.take(callee) {
            return Asked::Here(Place { places: self.clone(), callee: callee.to_owned() });
        }
        let (waiter, turn) = oneshot::channel();
        state.callees.entry(callee.to_owned()).or_default().waiting.push_back(waiter);
        Asked::Later(turn)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives away what is free.
    fn give(&self) {
        loop {
            let Some((callee, waiter)) = self.state().next() else { return };
            // Who has gone in this moment gives it back by dropping it.
            drop(waiter.send(Place { places: self.clone(), callee }));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.places.state();
            state.free += 1;
            if let Some(callee) = state.callees.get_mut(&self.callee) {
                callee.taken = callee.taken.saturating_sub(1);
                if callee.taken == 0 && callee.waiting.is_empty() {
                    state.callees.remove(&self.callee);
                }
            }
        }
        self.places.give();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(places: &Places, callee: &str) -> Place {
        match places.ask(callee) {
            Asked::Here(place) => place,
            Asked::Later(_) => panic!("no place for {callee}"),
        }
    }

    fn later(places: &Places, callee: &str) -> oneshot::Receiver<Place> {
        match places.ask(callee) {
            Asked::Here(_) => panic!("a place for {callee}"),
            Asked::Later(turn) => turn,
        }
    }

    #[test]
    fn whoever_is_away_leaves_as_many_places_as_it_has() {
        let places = Places::new(16);
        let mut held = Vec::new();
        for (callee, most) in [("away", 8), ("gone", 4), ("lost", 2)] {
            held.extend((0..most).map(|_| here(&places, callee)));
            later(&places, callee);
        }
        drop(here(&places, "there"));
        assert_eq!(places.state().free, 2);
        held.clear();
        let state = places.state();
        assert_eq!((state.free, state.callees.len()), (16, 0), "nothing is kept of those who have none");
    }

    #[test]
    fn turns_come_in_order_and_not_to_those_who_have_gone() {
        let places = Places::new(2);
        let place = here(&places, "hotel");
        let (first, mut second, mut third) = (later(&places, "hotel"), later(&places, "hotel"), later(&places, "hotel"));
        let _other = here(&places, "flight");
        drop(first);
        drop(place);
        let second = second.try_recv().unwrap();
        assert!(third.try_recv().is_err(), "one place, one turn");
        drop(third);
        drop(second);
        assert_eq!(places.state().free, 1);
    }

    #[test]
    fn a_turn_that_nobody_takes_is_the_next_ones() {
        let places = Places::new(2);
        let place = here(&places, "hotel");
        let (first, mut second) = (later(&places, "hotel"), later(&places, "hotel"));
        drop(place);
        // It was given to the first, who goes before it looks.
        drop(first);
        assert!(second.try_recv().is_ok());
    }
}

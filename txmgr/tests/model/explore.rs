//! Exhaustive exploration, breadth first: every state that can be reached, and the shortest way to one that breaks a promise.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What can be explored.
pub(crate) trait Space {
    type State: Clone + Hash;
    type Action: Clone + Debug;

    fn first(&self) -> Self::State;
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    /// What an action makes of a state; an error is a broken promise.
    fn next(&self, state: &Self::State, action: &Self::Action) -> Result<Self::State, String>;
    /// Whether all ends well from here, when nothing more goes wrong.
    fn ends_well(&self, state: &Self::State) -> Result<(), String>;
}

/// How far it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// Nothing was left out.
    pub(crate) all: bool,
}

/// A broken promise, and the way to it.
pub(crate) struct Broken {
    pub(crate) what: String,
    pub(crate) way: Vec<String>,
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Explores up to that many states. From one state in `every` (all of them with 1) it also looks whether all ends well.
pub(crate) fn explore<S: Space>(space: &S, limit: usize, every: u64) -> Result<Explored, Broken> {
    let first = space.first();
    let mut seen: HashMap<u64, Option<(u64, u32)>> = HashMap::new();
    let mut queue = VecDeque::new();
    let mark = fingerprint(&first);
    seen.insert(mark, None);
    queue.push_back((mark, first));
    let mut explored = Explored { states: 0, steps: 0, all: true };
    while let Some((mark, state)) = queue.pop_front() {
        explored.states += 1;
        if mark % every == 0
            && let Err(what) = space.ends_well(&state)
        {
            return Err(Broken { what, way: way(space, &seen, mark, None) });
        }
        for (number, action) in (0..).zip(space.actions(&state)) {
            explored.steps += 1;
            match space.next(&state, &action) {
                Err(what) => return Err(Broken { what, way: way(space, &seen, mark, Some(format!("{action:?}"))) }),
                Ok(next) => {
                    let next_mark = fingerprint(&next);
                    if let std::collections::hash_map::Entry::Vacant(vacant) = seen.entry(next_mark) {
                        if explored.states + queue.len() >= limit {
                            explored.all = false;
                            continue;
                        }
                        vacant.insert(Some((mark, number)));
                        queue.push_back((next_mark, next));
                    }
                }
            }
        }
    }
    Ok(explored)
}

fn way<S: Space>(space: &S, seen: &HashMap<u64, Option<(u64, u32)>>, mut mark: u64, last: Option<String>) -> Vec<String> {
    let mut numbers = Vec::new();
    while let Some(Some((before, number))) = seen.get(&mark) {
        numbers.push(*number);
        mark = *before;
    }
    let mut state = space.first();
    let mut way = Vec::new();
    for number in numbers.into_iter().rev() {
        let action = space.actions(&state).swap_remove(usize::try_from(number).unwrap());
        way.push(format!("{action:?}"));
        state = space.next(&state, &action).unwrap();
    }
    way.extend(last);
    way
}

/// Walks at random, as far as a walk goes: deeper than what can be explored.
pub(crate) fn walk<S: Space>(space: &S, seed: u64, steps: usize) -> Result<usize, Broken> {
    let mut state = space.first();
    let mut way = Vec::new();
    // xorshift64*, so that a seed is the same walk everywhere.
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..steps {
        let mut actions = space.actions(&state);
        if actions.is_empty() {
            break;
        }
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        let at = usize::try_from(random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % actions.len();
        let action = actions.swap_remove(at);
        way.push(format!("{action:?}"));
        state = match space.next(&state, &action) {
            Ok(next) => next,
            Err(what) => return Err(Broken { what, way }),
        };
    }
    space.ends_well(&state).map_err(|what| Broken { what, way: way.clone() })?;
    Ok(way.len())
}

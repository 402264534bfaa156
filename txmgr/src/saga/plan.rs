//! What a saga is asked to do: steps, and which of them come after which.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::wire::excerpt;

/// The most steps of one saga.
pub const MAX_STEPS: usize = 64;

/// The most that the requests of all steps may have together: a saga must fit into one record.
pub const MAX_SAGA_BYTES: usize = 512 * 1024;

/// One request of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StepRequest {
    /// The method: POST, PUT, PATCH or DELETE.
    pub method: http::Method,
    /// A URL that may be called; see [`crate::wire::participant::Callable::check_step`].
    pub url: String,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// A step as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawStep {
    /// Its name, within the saga.
    pub name: String,
    /// What it does.
    pub action: StepRequest,
    /// What takes that back, if anything does.
    pub compensation: Option<StepRequest>,
    /// The steps that must have been done before. `None`: the step before it in the list. None at all: it can begin at once.
    pub after: Option<Vec<String>>,
}

/// A step that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlannedStep {
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Arc<StepRequest>,
    /// What takes that back.
    pub compensation: Option<Arc<StepRequest>>,
    /// The places of the steps that come before it.
    pub after: Vec<usize>,
}

impl PlannedStep {
    /// What it may call, and which of its requests that is.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &StepRequest)> {
        let requests = [("action", Some(&self.action)), ("compensation", self.compensation.as_ref())];
        requests.into_iter().filter_map(|(which, request)| Some((which, &**request?)))
    }
}

/// Steps that make a saga: at least one, with different names, and without cycles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Plan(Vec<PlannedStep>);

/// Why there is no such saga: 400, but 413 where it is too large.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlan {
    /// Nothing to be done, or too much.
    #[error("steps: a saga has 1 to {MAX_STEPS}, this one has {0}")]
    Count(usize),
    /// The requests together are too large.
    #[error("the requests of a saga have at most {MAX_SAGA_BYTES} bytes together: these have {0}")]
    TooLarge(usize),
    /// The name of the step at this place can't be one.
    #[error("steps[{0}].name: {1:?}: names have 1 to 64 of the characters a-z A-Z 0-9 . _ -")]
    Name(usize, String),
    /// The step at this place has the name of one before it.
    #[error("steps[{0}].name: {1:?} is the name of another step")]
    Twice(usize, String),
    /// The step at this place comes after one that is not there.
    #[error("steps[{0}].after: there is no step {1:?}")]
    UnknownStep(usize, String),
    /// Steps wait for each other.
    #[error("steps wait for each other: {0}")]
    Cycle(String),
    /// A method that changes nothing, or is no method of a request with a body.
    #[error("steps[{at}].{which}.method: {method:?}: a step is a POST, PUT, PATCH or DELETE")]
    Method {
        /// The place of the step.
        at: usize,
        /// `action` or `compensation`.
        which: &'static str,
        /// The method.
        method: String,
    },
}

impl Plan {
    /// Checks steps and makes them a plan.
    ///
    /// # Errors
    /// See [`InvalidPlan`].
    pub fn try_new(steps: Vec<RawStep>) -> Result<Self, InvalidPlan> {
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return Err(InvalidPlan::Count(steps.len()));
        }
        let mut places = BTreeMap::new();
        let mut len_bytes = 0;
        for (place, step) in steps.iter().enumerate() {
            let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            if step.name.is_empty() || step.name.len() > 64 || !step.name.bytes().all(legal) {
                return Err(InvalidPlan::Name(place, excerpt(&step.name)));
            }
            if places.insert(step.name.clone(), place).is_some() {
                return Err(InvalidPlan::Twice(place, step.name.clone()));
            }
            let requests = [("action", Some(&step.action)), ("compensation", step.compensation.as_ref())];
            for (which, request) in requests.into_iter().filter_map(|(which, request)| Some((which, request?))) {
                if ![http::Method::POST, http::Method::PUT, http::Method::PATCH, http::Method::DELETE].contains(&request.method) {
                    return Err(InvalidPlan::Method { at: place, which, method: excerpt(request.method.as_str()) });
                }
                len_bytes += request.url.len() + request.body.len() + request.content_type.as_ref().map_or(0, String::len);
            }
        }
        if len_bytes > MAX_SAGA_BYTES {
            return Err(InvalidPlan::TooLarge(len_bytes));
        }
        let mut planned = Vec::with_capacity(steps.len());
        for (place, step) in steps.into_iter().enumerate() {
            let RawStep { name, action, compensation, after } = step;
            let mut before = Vec::new();
            match after {
                None => before.extend(place.checked_sub(1)),
                Some(names) => {
                    for after in names {
                        let unknown = || InvalidPlan::UnknownStep(place, excerpt(&after));
                        before.push(*places.get(&after).ok_or_else(unknown)?);
                    }
                }
            }
            before.sort_unstable();
            before.dedup();
            planned.push(PlannedStep { name, action: Arc::new(action), compensation: compensation.map(Arc::new), after: before });
        }
        Self::of_planned(planned)
    }

    /// A plan of steps that were checked once: from a record.
    ///
    /// # Errors
    /// When steps wait for each other, or for one that is not there.
    pub fn of_planned(steps: Vec<PlannedStep>) -> Result<Self, InvalidPlan> {
        // Kahn's algorithm: takes out, again and again, what waits for nothing that is left.
        let mut left: Vec<usize> = (0..steps.len()).collect();
        loop {
            let waits = |place: &usize| steps.get(*place).is_some_and(|step| step.after.iter().any(|before| left.contains(before)));
            let still: Vec<usize> = left.iter().copied().filter(waits).collect();
            if still.len() == left.len() {
                break;
            }
            left = still;
        }
        if !left.is_empty() {
            return Err(InvalidPlan::Cycle(cycle(&steps, &left)));
        }
        match steps.iter().enumerate().find_map(|(place, step)| step.after.iter().find(|before| **before >= steps.len()).map(|before| (place, before))) {
            Some((place, before)) => Err(InvalidPlan::UnknownStep(place, before.to_string())),
            None => Ok(Self(steps)),
        }
    }

    /// The steps, in the order of the request.
    pub fn steps(&self) -> &[PlannedStep] {
        &self.0
    }

    /// The places of the steps that come after this one.
    pub fn dependents(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().filter(move |(_, step)| step.after.contains(&place)).map(|(at, _)| at)
    }
}

/// One cycle among steps each of which waits for another of them, in words.
fn cycle(steps: &[PlannedStep], left: &[usize]) -> String {
    let mut way: Vec<usize> = Vec::new();
    let mut at = left.first().copied();
    while let Some(place) = at.filter(|place| !way.contains(place)) {
        way.push(place);
        at = steps.get(place).and_then(|step| step.after.iter().copied().find(|before| left.contains(before)));
    }
    let from = way.iter().position(|place| Some(*place) == at).unwrap_or(0);
    let named = way.iter().skip(from).chain(at.iter()).filter_map(|place| steps.get(*place)).map(|step| step.name.as_str());
    named.collect::<Vec<_>>().join(" after ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> StepRequest {
        StepRequest { method: http::Method::POST, url: "http://cart/items".to_owned(), content_type: None, body: Bytes::new() }
    }

    fn step(name: &str, after: Option<&[&str]>) -> RawStep {
        RawStep { name: name.to_owned(), action: request(), compensation: None, after: after.map(|names| names.iter().map(|n| (*n).to_owned()).collect()) }
    }

    #[test]
    fn without_a_word_steps_come_one_after_the_other() {
        let plan = Plan::try_new(vec![step("a", None), step("b", None), step("c", Some(&[])), step("d", Some(&["c", "a", "c"]))]).unwrap();
        assert_eq!(plan.steps().iter().map(|s| s.after.clone()).collect::<Vec<_>>(), [vec![], vec![0], vec![], vec![0, 2]]);
        assert_eq!(plan.dependents(0).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn what_is_no_saga_is_refused_and_says_why() {
        let many = (0..=MAX_STEPS).map(|n| step(&n.to_string(), None)).collect();
        let get = RawStep { action: StepRequest { method: http::Method::GET, ..request() }, ..step("a", None) };
        let large = RawStep { compensation: Some(StepRequest { body: vec![0; MAX_SAGA_BYTES].into(), ..request() }), ..step("a", None) };
        for (steps, why) in [
            (vec![], "this one has 0"),
            (many, "this one has 65"),
            (vec![step("", None)], "names have"),
            (vec![step("a b", None)], "names have"),
            (vec![step("a", None), step("a", None)], "steps[1].name: \"a\" is the name of another"),
            (vec![step("a", Some(&["z"]))], "steps[0].after: there is no step \"z\""),
            (vec![step("a", Some(&["a"]))], "a after a"),
            (vec![step("x", None), step("a", Some(&["c"])), step("b", Some(&["a"])), step("c", Some(&["b", "x"]))], "a after c after b after a"),
            (vec![get], "steps[0].action.method: \"GET\""),
            (vec![large], "at most"),
        ] {
            let error = Plan::try_new(steps).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        /// Against another way to tell: an order in which each step comes after those before it exists, or it doesn't.
        #[test]
        fn cycles_are_found_and_nothing_else(edges in proptest::collection::vec((0..6_usize, 0..6_usize), 0..10)) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let steps = (0..6).map(|at| {
                let after: Vec<&str> = edges.iter().filter(|(to, _)| *to == at).filter_map(|(_, from)| names.get(*from).copied()).collect();
                step(names[at], Some(&after))
            }).collect();
            let reaches = |from: usize, to: usize| {
                let mut seen = vec![from];
                let mut at = 0;
                while at < seen.len() {
                    let next: Vec<usize> = edges.iter().filter(|(later, _)| *later == seen[at]).map(|(_, before)| *before).collect();
                    if next.contains(&to) { return true; }
                    for n in next { if !seen.contains(&n) { seen.push(n); } }
                    at += 1;
                }
                false
            };
            let cyclic = (0..6).any(|at| reaches(at, at));
            prop_assert_eq!(Plan::try_new(steps).is_err(), cyclic);
        }
    }
}

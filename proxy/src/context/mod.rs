//! Passes the context of a transaction on: from a call into the app to the calls out of it that belong to it, where the app does not do it itself.
//!
//! Whom a call belongs to is found out by [`belonging`]; what is here keeps that, and keeps it from costing anything where there are no transactions: as long as this proxy has never seen a
//! context, a call counts up and down, and nothing is locked, parsed or allocated.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::clock::Moment;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tracing::warn;

use crate::transaction::{COORDINATOR, Passing};

pub mod belonging;
pub mod trace;

use belonging::{Belonging, Belongs};
use trace::Trace;

/// The context of a transaction: the absolute URL of an LRA (MicroProfile LRA 2.0, section 3.1).
pub const LONG_RUNNING_ACTION: HeaderName = HeaderName::from_static("long-running-action");

/// What is longer is no URL of an LRA, and is not remembered.
const LONGEST_CONTEXT_BYTES: usize = 2048;

/// Which contexts are under way in this box. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Contexts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    passing: Passing,
    /// Whether a context has ever come. It stays so: an app that uses transactions goes on using them.
    used: AtomicBool,
    /// Calls under way that began before one had come.
    unseen: AtomicUsize,
    belonging: Mutex<Belonging>,
    passed: IntCounter,
    lost: IntCounterVec,
}

/// A call that the app is at. Dropping it says that it was cut off.
#[derive(Debug)]
pub struct UnderWay {
    contexts: Contexts,
    known: Known,
    goes_on_for: Duration,
}

#[derive(Debug)]
enum Known {
    /// Ended, or not looked at because nothing is passed on.
    No,
    Unseen,
    As(u64),
}

impl Contexts {
    /// None yet; counts in `registry`.
    ///
    /// # Errors
    /// When that has these counts already.
    pub fn try_new(passing: Passing, registry: &Registry) -> Result<Self, prometheus::Error> {
        let passed = IntCounter::new("bluebox_contexts_passed_total", "Calls out of the box that were given the context of the call that they belong to")?;
        let lost = IntCounterVec::new(
            Opts::new("bluebox_contexts_lost_total", "Calls out of the box that may belong to a transaction, by why that can't be known"),
            &["why"],
        )?;
        registry.register(Box::new(passed.clone()))?;
        registry.register(Box::new(lost.clone()))?;
        let shared = Shared { passing, used: AtomicBool::new(false), unseen: AtomicUsize::new(0), belonging: Mutex::default(), passed, lost };
        Ok(Self(Arc::new(shared)))
    }

    /// A call is being handed to the app of a component, with this context and in this trace. Should it get no answer, the app may go on working for as long as `goes_on_for`.
    pub fn begun(&self, callee: &ComponentName, context: Option<&HeaderValue>, trace: impl FnOnce() -> Option<Trace>, goes_on_for: Duration) -> UnderWay {
        let shared = &*self.0;
        let context = context.filter(|context| context.len() <= LONGEST_CONTEXT_BYTES);
        // What a coordinator calls on behalf of others has a context only where it says so.
        let known = if shared.passing == Passing::Copied || callee.as_str() == COORDINATOR {
            Known::No
        } else if context.is_some() || shared.used.load(Ordering::SeqCst) {
            shared.used.store(true, Ordering::SeqCst);
            Known::As(self.belonging().begun(context.cloned(), trace()))
        } else {
            // Whoever sees this app's calls sees this: they come after.
            shared.unseen.fetch_add(1, Ordering::SeqCst);
            Known::Unseen
        };
        UnderWay { contexts: self.clone(), known, goes_on_for }
    }

    /// Gives a call out of the app the context of the call that it belongs to, if it has none and that is known for sure.
    pub fn pass_on(&self, headers: &mut HeaderMap, callee: &ComponentName) {
        let shared = &*self.0;
        // What the app says itself counts. A coordinator is told in its paths what a request is about.
        if !shared.used.load(Ordering::SeqCst) || headers.contains_key(LONG_RUNNING_ACTION) || callee.as_str() == COORDINATOR {
            return;
        }
        let now = Moment::now();
        let unseen = shared.unseen.load(Ordering::SeqCst);
        let mut belonging = self.belonging();
        match belonging.of(now, Trace::of(headers), unseen, shared.passing == Passing::Traced) {
            Belongs::ToNone => {}
            Belongs::To(context) => {
                drop(belonging);
                headers.insert(LONG_RUNNING_ACTION, context);
                shared.passed.inc();
            }
            Belongs::Lost(why) => {
                let told = belonging.lost(now);
                let under_way = belonging.len();
                drop(belonging);
                shared.lost.with_label_values(&[why.word()]).inc();
                if let Some(times) = told {
                    warn!(
                        why = why.word(), %callee, under_way, times,
                        "a call may belong to a transaction, and it can't be known to which: it goes without. Let the app copy the field Long-Running-Action, or traceparent, from the call that it is at. Told once a minute"
                    );
                }
            }
        }
    }

    fn belonging(&self) -> MutexGuard<'_, Belonging> {
        // Nothing in there can panic half-way.
        self.0.belonging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// The app has answered, or was never asked.
    pub fn ended(mut self) {
        self.end(None);
    }

    fn end(&mut self, goes_on_for: Option<Duration>) {
        match std::mem::replace(&mut self.known, Known::No) {
            Known::No => {}
            Known::Unseen => {
                if let Some(time) = goes_on_for {
                    self.contexts.belonging().cut_off(Moment::now(), time);
                }
                self.contexts.0.unseen.fetch_sub(1, Ordering::SeqCst);
            }
            Known::As(delivery) => self.contexts.belonging().ended(Moment::now(), delivery, goes_on_for),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.end(Some(self.goes_on_for));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const LRA: &str = "http://txmgr/lra-coordinator/0_1";

    fn name(name: &str) -> ComponentName {
        ComponentName::try_new(name).unwrap()
    }

    fn contexts(passing: Passing) -> Contexts {
        Contexts::try_new(passing, &Registry::new()).unwrap()
    }

    fn fields(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn begun(contexts: &Contexts, callee: &str, context: Option<&str>) -> UnderWay {
        let context = context.map(|context| HeaderValue::from_str(context).unwrap());
        contexts.begun(&name(callee), context.as_ref(), || None, HOUR)
    }

    fn passed(contexts: &Contexts, callee: &str, of: &[(&'static str, &'static str)]) -> Option<String> {
        let mut headers = fields(of);
        contexts.pass_on(&mut headers, &name(callee));
        headers.get(LONG_RUNNING_ACTION).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_call_has_the_context_of_the_one_it_belongs_to() {
        let contexts = contexts(Passing::Any);
        let call = begun(&contexts, "trip", Some(LRA));
        assert_eq!(passed(&contexts, "hotel", &[]).as_deref(), Some(LRA));
        assert_eq!(passed(&contexts, "hotel", &[("long-running-action", "http://mine")]).as_deref(), Some("http://mine"), "it is not overruled");
        assert_eq!(passed(&contexts, "txmgr", &[]), None);
        call.ended();
        assert_eq!(passed(&contexts, "hotel", &[]), None);
        assert_eq!((contexts.0.passed.get(), contexts.belonging().len()), (1, 0));
    }

    #[test]
    fn calls_that_began_before_the_first_context_count() {
        let contexts = contexts(Passing::Any);
        let before = begun(&contexts, "trip", None);
        let call = begun(&contexts, "trip", Some(LRA));
        assert_eq!(passed(&contexts, "hotel", &[]), None);
        assert_eq!(contexts.0.lost.with_label_values(&["several_calls"]).get(), 1);
        before.ended();
        assert_eq!(passed(&contexts, "hotel", &[]).as_deref(), Some(LRA));
        let after = begun(&contexts, "trip", None);
        assert_eq!(passed(&contexts, "hotel", &[]), None, "one without a context, of those that are looked at");
        after.ended();
        call.ended();
    }

    #[test]
    fn one_that_was_cut_off_counts() {
        let contexts = contexts(Passing::Any);
        drop(begun(&contexts, "trip", None));
        let call = begun(&contexts, "trip", Some(LRA));
        assert_eq!(passed(&contexts, "hotel", &[]), None, "that one had none, and may go on");
        call.ended();

        let contexts = self::contexts(Passing::Any);
        drop(begun(&contexts, "trip", Some(LRA)));
        let call = begun(&contexts, "trip", Some("http://txmgr/lra-coordinator/0_2"));
        assert_eq!(passed(&contexts, "hotel", &[]), None);
        call.ended();
    }

    #[test]
    fn nothing_is_passed_on_where_that_is_not_wanted() {
        let contexts = contexts(Passing::Copied);
        let _call = begun(&contexts, "trip", Some(LRA));
        assert_eq!(passed(&contexts, "hotel", &[]), None);
        assert!(contexts.belonging().is_empty());
    }

    #[test]
    fn calls_to_a_coordinator_begin_no_context_and_endless_ones_are_none() {
        let contexts = contexts(Passing::Any);
        let _call = begun(&contexts, "txmgr", Some(LRA));
        let _other = begun(&contexts, "trip", Some(&"x".repeat(LONGEST_CONTEXT_BYTES + 1)));
        assert_eq!(passed(&contexts, "hotel", &[]), None);
        assert!(!contexts.0.used.load(Ordering::SeqCst));
    }
}

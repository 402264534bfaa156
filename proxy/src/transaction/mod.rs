//! Transactions by configuration: what the proxy does for a call to a path that has a rule, before the app gets it and after it has answered.
//!
//! - [`pattern`]: which calls a rule is for. Pure.
//! - [`rule`]: what follows from it. Pure.
//! - [`coordinator`]: what is asked of the coordinator, by durable calls.
//!
//! The order is: begin → join → the app → close or cancel → the outcome is recorded. Each of the first is safe to be done again, and a call that is delivered again does it all again: beginning is one
//! call with a key made from the call's id, whoever joins is known by its links, and an end that was decided is decided. What was left half done, because no delivery comes any more, is
//! cancelled by its time limit.
//!
//! A call whose transaction has ended must not be done again. So its outcome goes along with the end and is kept with the decision, and a delivery that comes after that takes it from there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bluebox_core::CallId;
use bluebox_core::call::{Call, MAX_KEPT_OUTCOME_BYTES, Outcome, Reason};
use bluebox_core::clock::Moment;
use http::HeaderValue;
use http::StatusCode;
use prometheus::{IntCounterVec, Opts, Registry};
use tracing::{debug, info, warn};

use crate::config::Served;
use crate::context::LONG_RUNNING_ACTION;
use crate::inbound::deliver::{App, Attempt, Handed, refusal};
use crate::inbound::partition::DeliveryEnd;
use crate::outbound::OutboundSide;

pub mod coordinator;
pub mod pattern;
pub mod rule;

use coordinator::{Coordinator, Ended, Fate, Kept, LraPath, Undone};
use pattern::Found;
use rule::{After, Before, Participant, Rule, filled};

/// The component that coordinates transactions.
pub const COORDINATOR: &str = "txmgr";

/// Calls that are ready for the app while their lease ran out, and that are remembered for their next turn, which comes at once.
const MOST_PREPARED: usize = 1024;
/// After longer, another box may have had them meanwhile.
const PREPARED_FOR: Duration = Duration::from_secs(5);

/// Pauses between tries: of a call whose transaction can't be begun now, and of an end that could not be told.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);
const END_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a proxy is told of transactions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TransactionRules {
    /// How contexts are passed on that the app does not pass on itself.
    pub passing: Passing,
    /// The rules for the app's paths.
    pub rules: Vec<Rule>,
}

/// By what a call out of the app is known to belong to a transaction, if it does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passing {
    /// By the trace that the app copied, else by there being no other call that it could belong to.
    #[default]
    Any,
    /// By the trace alone.
    Traced,
    /// By nothing: the app passes contexts on.
    Copied,
}

/// The rules of a component, and the way to its coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Transactions(Arc<Inner>);

struct Inner {
    served: Served,
    /// What the URLs of its participants begin with.
    base: String,
    /// Those that say most first.
    rules: Vec<Rule>,
    coordinator: Coordinator,
    prepared: Mutex<HashMap<(CallId, u32), Prepared>>,
    done: IntCounterVec,
}

/// A call for which all is done that comes before the app.
#[derive(Debug, Clone)]
struct Prepared {
    handed: Handed,
    lra: Option<Lra>,
    at: Moment,
}

#[derive(Debug, Clone)]
struct Lra {
    context: HeaderValue,
    /// `None`: it is no LRA of this coordinator, and nothing is asked about it.
    path: Option<LraPath>,
    began: bool,
}

impl Transactions {
    /// The rules of a component; `None` if it has none. Counts in `registry`.
    ///
    /// # Errors
    /// When that has these counts already.
    pub fn try_new(served: &Served, rules: &TransactionRules, side: Arc<OutboundSide>, registry: &Registry) -> Result<Option<Self>, prometheus::Error> {
        // What the coordinator itself answers has no rules: it would wait for itself.
        if rules.rules.is_empty() || served.name.as_str() == COORDINATOR {
            return Ok(None);
        }
        let opts = Opts::new("bluebox_transaction_steps_total", "What the proxy did about transactions on behalf of the app")
            .const_label("component", served.name.as_str());
        let done = IntCounterVec::new(opts, &["step"])?;
        registry.register(Box::new(done.clone()))?;
        let base = match served.component.ports.first() {
            None | Some(80) => format!("http://{}", served.name),
            Some(port) => format!("http://{}:{port}", served.name),
        };
        let mut sorted = rules.rules.clone();
        sorted.sort_by_key(|rule| rule.pattern.rank());
        let inner = Inner { served: served.clone(), base, rules: sorted, coordinator: Coordinator::new(side), prepared: Mutex::default(), done };
        Ok(Some(Self(Arc::new(inner))))
    }

    /// The rule for a call. Calls of the coordinator have none: they are how a transaction ends.
    pub fn rule<'t>(&'t self, call: &'t Call) -> Option<(&'t Rule, Found<'t>)> {
        if call.caller.as_str() == COORDINATOR {
            return None;
        }
        self.0.rules.iter().find_map(|rule| Some((rule, rule.find(&call.request.method, &call.request.target)?)))
    }

    /// Delivers a call as its rule says. `until`: the app must not get it later.
    pub async fn deliver(&self, rule: &Rule, found: &Found<'_>, app: &App, call: &Call, attempt: Attempt, until: Moment) -> DeliveryEnd {
        let before = self.prepared().remove(&(call.id, call.replay));
        let prepared = match before.filter(|prepared| Moment::now().since(prepared.at) < PREPARED_FOR) {
            Some(prepared) => prepared,
            None => match self.prepare(rule, found, call, attempt).await {
                Ok(prepared) => prepared,
                Err(end) => return end,
            },
        };
        // That took its time: whether this box is still the owner has to be known now.
        if Moment::now() >= until {
            let mut all = self.prepared();
            if all.len() >= MOST_PREPARED {
                // Nothing depends on it: what was done is done again, and changes nothing.
                all.clear();
            }
            all.insert((call.id, call.replay), Prepared { at: Moment::now(), ..prepared });
            return DeliveryEnd::NotBegun;
        }
        let end = app.deliver(call, attempt, &prepared.handed).await;
        match (end, prepared.lra) {
            (DeliveryEnd::Answered(outcome), Some(lra)) => DeliveryEnd::Answered(self.after(rule, &lra, call, attempt, outcome).await),
            (end, _) => end,
        }
    }

    /// What comes before the app.
    async fn prepare(&self, rule: &Rule, found: &Found<'_>, call: &Call, attempt: Attempt) -> Result<Prepared, DeliveryEnd> {
        let refuse = |reason, detail: &str| DeliveryEnd::Answered(Box::new(refusal(call.id, call.replay, call.recorded, attempt.number, reason, detail)));
        let at = Moment::now();
        let coordinator = self.0.coordinator.below(attempt.trace);
        let came_with = call.request.headers.get(LONG_RUNNING_ACTION);
        let (context, began) = match rule.before(came_with) {
            Before::AsItCame => return Ok(Prepared { handed: Handed::AsItCame, lra: None, at }),
            Before::Without => return Ok(Prepared { handed: Handed::Without, lra: None, at }),
            Before::Refuse(why) => {
                self.count("refused");
                return Err(refuse(Reason::Transaction, why));
            }
            Before::Within => (came_with.cloned().unwrap_or_else(|| HeaderValue::from_static("")), false),
            Before::Begin { parent } => {
                let begun = coordinator.begin(&self.0.served.name, call, rule.time_limit, parent.as_ref()).await;
                (begun.map_err(|undone| self.not_begun(call, attempt, "begun", undone))?, true)
            }
        };
        if began {
            self.count("begun");
            debug!(call = %call.id, lra = ?context, "began a transaction");
        }
        let path = LraPath::of(&context);
        if path.is_none() && (rule.participant.is_some() || rule.end == Some(true)) {
            self.count("refused");
            let detail = format!("the Long-Running-Action is no LRA of http://{COORDINATOR}/lra-coordinator, so nothing can be asked about it");
            return Err(refuse(Reason::Transaction, &detail));
        }
        let lra = Lra { context, path, began };
        let came_again = attempt.number > 1 || attempt.may_have_started;
        if let (Some(path), true) = (&lra.path, came_again) {
            // The delivery before may have come as far as its end.
            let fate = coordinator.fate(path).await.map_err(|undone| self.not_begun(call, attempt, "looked at", undone))?;
            if fate != Fate::Active {
                let kept = coordinator.outcome(path, call).await.map_err(|undone| self.not_begun(call, attempt, "looked at", undone))?;
                return Err(match kept {
                    Kept::Outcome(outcome) => DeliveryEnd::Answered(self.found(&lra, outcome)),
                    Kept::NotAny | Kept::Nothing if fate == Fate::Closed && rule.end.unwrap_or(began) => {
                        self.count("answer_lost");
                        warn!(call = %call.id, lra = ?lra.context, "the transaction of a call had closed, and the answer was lost with the box that had it");
                        let why = if kept == Kept::NotAny {
                            format!(
                                "it was not kept with the transaction: it has more than {MAX_KEPT_OUTCOME_BYTES} bytes, or too many calls have ended since then"
                            )
                        } else {
                            "it was not told to the transaction, which somebody else has closed, or whose coordinator keeps none".to_owned()
                        };
                        let detail = format!(
                            "the transaction of this call has closed: all that it was to do is done. The app's answer was lost with the box that had it, and {why}"
                        );
                        refuse(Reason::Answer, &detail)
                    }
                    Kept::NotAny => {
                        self.count("answer_lost");
                        let detail = format!(
                            "the transaction of this call was cancelled. The app's answer has more than {MAX_KEPT_OUTCOME_BYTES} bytes, or too many calls have ended since then"
                        );
                        refuse(Reason::Transaction, &detail)
                    }
                    Kept::Nothing => {
                        self.count("too_late");
                        refuse(Reason::Transaction, "the transaction of this call has ended: by its time limit, or because somebody ended it")
                    }
                });
            }
        }
        let mut recovery = None;
        if let (Some(path), Some(participant)) = (&lra.path, &rule.participant) {
            recovery = match coordinator.join(path, &self.links(participant, found, call)).await {
                Ok(recovery) => recovery,
                // An end that the delivery before has asked for can come at any time.
                Err(undone @ Undone::Refused(..)) if came_again => match coordinator.outcome(path, call).await {
                    Ok(Kept::Outcome(outcome)) => return Err(DeliveryEnd::Answered(self.found(&lra, outcome))),
                    Err(undone @ Undone::NotNow(_)) => return Err(self.not_begun(call, attempt, "looked at", undone)),
                    _ => return Err(self.not_begun(call, attempt, "joined", undone)),
                },
                Err(undone) => return Err(self.not_begun(call, attempt, "joined", undone)),
            };
            self.count("joined");
        }
        Ok(Prepared { handed: Handed::Within { context: lra.context.clone(), recovery }, lra: Some(lra), at })
    }

    /// What follows from the app's answer.
    async fn after(&self, rule: &Rule, lra: &Lra, call: &Call, attempt: Attempt, mut outcome: Box<Outcome>) -> Box<Outcome> {
        let after = rule.after(lra.began, outcome.response.status);
        // Whoever is to end it must know of it.
        if lra.began {
            outcome.response.headers.entry(LONG_RUNNING_ACTION).or_insert_with(|| lra.context.clone());
        }
        let Some(path) = &lra.path else { return outcome };
        let close = match after {
            After::Leave => return outcome,
            After::Close => true,
            After::Cancel => false,
        };
        let coordinator = self.0.coordinator.below(attempt.trace);
        let ended = self.insist(call, || coordinator.end(path, close, &outcome)).await;
        if let Ok(Ended::AsAsked) = ended {
            self.count(if close { "closed" } else { "cancelled" });
            debug!(call = %call.id, lra = ?lra.context, close, "ended a transaction");
            return outcome;
        }
        // Another delivery of this call may have ended it: what that one has told is how the call was answered, whatever the app has said now.
        if let Ok(Kept::Outcome(kept)) = self.insist(call, || coordinator.outcome(path, call)).await {
            return self.found(lra, kept);
        }
        match ended {
            Ok(_) => outcome,
            // It had ended before: then this changes nothing (MicroProfile LRA 2.0, section 3.2.3), and the app's answer says itself that it did not go well.
            Err(_) if !close => outcome,
            Err((status, detail)) => {
                self.count("too_late");
                info!(call = %call.id, lra = ?lra.context, status = status.as_u16(), %detail, "a transaction could not be closed: it had ended otherwise");
                let detail = format!(
                    "the app answered {}, but the transaction had been cancelled by then, by its time limit or by somebody: {detail}",
                    outcome.response.status
                );
                Box::new(refusal(call.id, call.replay, call.recorded, attempt.number, Reason::Transaction, &detail))
            }
        }
    }

    /// The outcome that another delivery of a call has told with the end of its transaction.
    fn found(&self, lra: &Lra, outcome: Box<Outcome>) -> Box<Outcome> {
        self.count("answer_found");
        info!(call = %outcome.id, lra = ?lra.context, status = outcome.response.status.as_u16(), "a call had ended its transaction before; its outcome is the one that was kept with that");
        outcome
    }

    /// Asks the coordinator, for as long as it takes, as an answer is kept that can't be recorded. An error is its no.
    async fn insist<T, F>(&self, call: &Call, ask: impl Fn() -> F) -> Result<T, (StatusCode, String)>
    where
        F: Future<Output = Result<T, Undone>>,
    {
        let (mut pause, longest) = END_AGAIN;
        loop {
            match ask().await {
                Ok(told) => return Ok(told),
                Err(Undone::Refused(status, detail)) => return Err((status, detail)),
                Err(Undone::NotNow(detail)) => {
                    self.count("not_now");
                    info!(call = %call.id, %detail, "a transaction can't be ended now; the app's answer is kept, and it is tried again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(longest);
        }
    }

    /// How a delivery ends that did not come as far as the app.
    fn not_begun(&self, call: &Call, attempt: Attempt, what: &str, undone: Undone) -> DeliveryEnd {
        let refuse = |reason, detail: String| Box::new(refusal(call.id, call.replay, call.recorded, attempt.number, reason, &detail));
        match undone {
            Undone::NotNow(detail) => {
                self.count("not_now");
                DeliveryEnd::NotNow(BEGIN_AGAIN, refuse(Reason::NoCoordinator, format!("the transaction can't be {what} now: {detail}")))
            }
            // The participant's URLs are this proxy's, so it is the LRA that does not take it: it has ended, or is not there.
            Undone::Refused(StatusCode::PRECONDITION_FAILED | StatusCode::NOT_FOUND | StatusCode::GONE, detail) => {
                self.count("too_late");
                DeliveryEnd::Answered(refuse(Reason::Transaction, format!("the transaction can't be {what}: {detail}")))
            }
            Undone::Refused(status, detail) => {
                self.count("refused");
                warn!(call = %call.id, status = status.as_u16(), %detail, "the coordinator refused a transaction");
                DeliveryEnd::Answered(refuse(Reason::NoCoordinator, format!("the transaction can't be {what}: the coordinator answered {status}: {detail}")))
            }
        }
    }

    /// The value of `Link` (RFC 8288).
    fn links(&self, participant: &Participant, found: &Found<'_>, call: &Call) -> String {
        let id = call.id.to_string();
        let link = |(rel, path): (&str, &str)| format!("<{}{}>; rel=\"{rel}\"", self.0.base, filled(path, found, &id));
        participant.links().map(link).collect::<Vec<_>>().join(", ")
    }

    fn count(&self, step: &str) {
        self.0.done.with_label_values(&[step]).inc();
    }

    fn prepared(&self) -> MutexGuard<'_, HashMap<(CallId, u32), Prepared>> {
        // Nothing in there can panic half-way.
        self.0.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

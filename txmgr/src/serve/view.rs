//! Transactions as JSON, and which of them are shown.

use std::time::Duration;

use bluebox_core::log::Timestamp;
use serde_json::{Value, json};

use super::caller::{Again, UnderWay};
use super::http::Query;
use crate::TransactionId;
use crate::callback::{CallbackKey, Callee};
use crate::line::Line;
use crate::partition::{Ask, StateRef};
use crate::saga::{Saga, SagaRequest};
use crate::transaction::{Lra, Participant, Request};
use crate::wire::excerpt;
use crate::wire::status::{LraStatus, UnknownStatus};

/// Which transactions are shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    kind: Option<&'static str>,
    status: Option<LraStatus>,
    failed: bool,
    recovering: bool,
    in_doubt: bool,
    older_than: Option<Duration>,
}

impl Filter {
    const NAMES: [&str; 6] = ["failed", "in-doubt", "recovering", "status", "kind", "older-than"];

    /// Reads one. A mistake in it is told: without what is wrong more would be shown than was asked for.
    pub(super) fn of(query: &Query) -> Result<Self, String> {
        Self::read(query).map_err(|wrong| format!("{wrong}; there are {}", Self::NAMES.join(", ")))
    }

    fn read(query: &Query) -> Result<Self, String> {
        query.only(&Self::NAMES)?;
        let is = |name: &str| match query.get(name) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(other) => Err(format!("{name}={:?}: nothing, `true` or `false`", excerpt(other))),
        };
        let kind = match query.get("kind") {
            None => None,
            Some("lra") => Some("lra"),
            Some("saga") => Some("saga"),
            Some(other) => return Err(format!("kind={:?}: `lra` or `saga`", excerpt(other))),
        };
        let millis = |text: &str| text.parse().map(Duration::from_millis).map_err(|_| format!("older-than={:?}: milliseconds, a whole number", excerpt(text)));
        Ok(Self {
            kind,
            status: query.get("status").map(|name| name.parse().map_err(|unknown: UnknownStatus| format!("status: {unknown}"))).transpose()?,
            failed: is("failed")?,
            recovering: is("recovering")?,
            in_doubt: is("in-doubt")?,
            older_than: query.get("older-than").map(millis).transpose()?,
        })
    }

    pub(super) fn passes(&self, state: &StateRef<'_>, now: Timestamp) -> bool {
        let (kind, status, started, recovering, forgotten) = match state {
            StateRef::Lra(lra) => ("lra", lra.status, lra.started, lra.is_recovering(), lra.forgotten),
            StateRef::Saga(saga) => ("saga", saga.status, saga.started, saga.status.is_ending(), saga.forgotten),
        };
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.status.is_none_or(|wanted| wanted == status)
            // What an operator has forgotten waits for nobody any more.
            && (!self.failed || (status.is_failed() && !forgotten))
            && (!self.recovering || recovering)
            && (!self.in_doubt || status.is_ending() || recovering)
            && self.older_than.is_none_or(|age| now.since(started) >= age)
    }
}

/// Its id, and what an operator says who wants it tried again.
pub(super) fn id_of(state: StateRef<'_>) -> (TransactionId, Ask) {
    match state {
        StateRef::Lra(lra) => (lra.id, Ask::Lra(Request::Retry)),
        StateRef::Saga(saga) => (saga.id, Ask::Saga(SagaRequest::Retry)),
    }
}

/// What is known of a callback that has no outcome yet, by whoever makes it.
pub(super) type OfCall<'a> = &'a dyn Fn(CallbackKey) -> Option<UnderWay>;

/// All of a transaction, for operators.
pub(super) fn transaction(state: StateRef<'_>, of_call: OfCall<'_>) -> Value {
    match state {
        StateRef::Lra(lra) => lra_in_full(lra, of_call),
        StateRef::Saga(saga) => self::saga(saga, of_call),
    }
}

fn millis(moment: Option<Timestamp>) -> Option<u64> {
    moment.map(Timestamp::as_millis)
}

/// An LRA as the wire has it.
pub(super) fn lra(lra: &Lra) -> Value {
    json!({
        "lraId": lra.url(), "clientId": &*lra.client, "status": lra.status.name(), "isTopLevel": lra.is_top_level(), "isRecovering": lra.is_recovering(),
        "startTime": lra.started.as_millis(), "finishTime": lra.ended.map_or(0, Timestamp::as_millis),
    })
}

/// What of a view in full is on the wire.
pub(super) fn as_on_the_wire(view: &Value) -> Value {
    view.get("lra").cloned().unwrap_or(Value::Null)
}

fn line(line: &Line, key: Option<CallbackKey>, of_call: OfCall<'_>) -> Value {
    let under_way = key.and_then(of_call).map(|UnderWay { since, turn, again }| {
        let again = again.map(|Again { why, tries, at }| json!({ "why": why, "tries": tries, "at_ms": at.as_millis() }));
        json!({ "since_ms": since.as_millis(), "turn": turn, "again": again })
    });
    json!({
        "asked": line.phase.map(|phase| phase.name()), "outcomes": line.n, "failures": line.failures, "not_before_ms": line.not_before.as_millis(),
        "last_error": line.last_error, "under_way": under_way,
    })
}

/// All of an LRA.
pub(super) fn lra_in_full(all: &Lra, of_call: OfCall<'_>) -> Value {
    let line = |line: &Line, callee: Callee| self::line(line, line.key(all.id, callee), of_call);
    let participant = |participant: &Participant| {
        let links = &participant.links;
        json!({
            "number": participant.callee.0, "status": participant.status.name(), "compensate": links.compensate.as_deref(), "complete": links.complete.as_deref(),
            "status_url": participant.status_url().map(|url| &**url), "forget": links.forget.as_deref(), "after": links.after.as_deref(),
            "nested": links.nested.map(|id| id.to_string()), "line": line(&participant.line, participant.callee),
        })
    };
    json!({
        "id": all.id.to_string(), "kind": "lra", "status": all.status.name(), "client": &*all.client, "started_ms": all.started.as_millis(), "deadline_ms": millis(all.deadline),
        "ended_ms": millis(all.ended), "recovering": all.is_recovering(), "forgotten": all.forgotten,
        "parent": all.parent.as_ref().map(|parent| json!({ "id": parent.id.to_string(), "enlisted": parent.enlisted, "settled": parent.settled, "line": line(&parent.line, Callee::PARENT) })),
        "participants": all.participants.iter().map(participant).collect::<Vec<_>>(), "lra": lra(all),
    })
}

/// All of a saga.
pub(super) fn saga(all: &Saga, of_call: OfCall<'_>) -> Value {
    let steps = (0..).map(Callee).zip(all.plan.steps().iter().zip(&all.steps)).map(|(callee, (planned, step))| {
        let asked = step.asked();
        let after: Vec<&str> = planned.after.iter().filter_map(|at| all.plan.steps().get(*at)).map(|before| before.name.as_str()).collect();
        json!({
            "name": planned.name, "status": format!("{:?}", step.status), "after": after, "still_going": step.still_going, "action": planned.action.url,
            "compensation": planned.compensation.as_ref().map(|request| request.url.clone()), "line": line(&asked, asked.key(all.id, callee), of_call),
        })
    });
    json!({
        "id": all.id.to_string(), "kind": "saga", "status": all.status.name(), "started_ms": all.started.as_millis(), "deadline_ms": millis(all.deadline), "ended_ms": millis(all.ended),
        "why": all.why, "forgotten": all.forgotten, "steps": steps.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::line::Rules;
    use crate::transaction::{Start, Transaction};

    fn filter(query: &str) -> Result<Filter, String> {
        Filter::of(&Query::parse(query).unwrap())
    }

    #[test]
    fn why_a_callback_waits_is_shown_and_no_outcome_that_is_kept() {
        use bluebox_core::{CallId, ComponentName};

        use crate::callback::Phase;
        use crate::transaction::{Join, Kept, Links, OutcomeOf};

        const SECRET: &str = "geheim";
        let at = Timestamp::from_millis;
        let id = TransactionId::new(0, at(1), None, 1);
        let start = Start { id, origin: None, client: Arc::from(""), base: Arc::from("http://txmgr/lra-coordinator"), limit: None, parent: None };
        let mut effects = Vec::new();
        let mut transaction = Transaction::start(Arc::new(Rules::default()), at(1), crate::effect::RequestId(0), start, &mut effects);
        let links = Links { complete: Some(Arc::from("http://hotel/complete")), compensate: Some(Arc::from("http://hotel/undo")), ..Links::default() };
        let of = OutcomeOf { call: CallId::from_bytes([1; 16]), replay: 0, component: ComponentName::try_new("trip").unwrap() };
        let close = Request::EndAndKeep(true, at(9), Box::new(Kept::new(of, SECRET.into())));
        for (number, request) in [(1, Request::Join(Join { links, limit: None, data: None })), (2, close)] {
            transaction.request(at(2), crate::effect::RequestId(number), request, &mut effects);
        }
        let key = CallbackKey { transaction: id, callee: Callee(0), phase: Phase::Complete, n: 0 };
        let again = Again { why: "503 recorded-full: no room".to_owned(), tries: 4, at: at(70) };
        let of_call = |asked| (asked == key).then(|| UnderWay { since: at(3), turn: None, again: Some(again.clone()) });
        let shown = lra_in_full(transaction.lra(), &of_call);
        assert_eq!(
            shown.pointer("/participants/0/line/under_way"),
            Some(&json!({ "since_ms": 3, "turn": null, "again": { "why": "503 recorded-full: no room", "tries": 4, "at_ms": 70 } }))
        );
        let turn = |_| Some(UnderWay { since: at(3), turn: Some("no place".to_owned()), again: None });
        let waits = lra_in_full(transaction.lra(), &turn);
        assert_eq!(waits.pointer("/participants/0/line/under_way"), Some(&json!({ "since_ms": 3, "turn": "no place", "again": null })));
        assert!(!shown.to_string().contains(SECRET) && !format!("{transaction:?}").contains(SECRET));
    }

    #[test]
    fn filters_pass_what_they_say() {
        let at = Timestamp::from_millis(1_000_000);
        let id = TransactionId::new(0, at, None, 1);
        let start = Start { id, origin: None, client: Arc::from(""), base: Arc::from("http://txmgr/lra-coordinator"), limit: None, parent: None };
        let transaction = Transaction::start(Arc::new(Rules::default()), at, crate::effect::RequestId(0), start, &mut Vec::new());
        let passes = |query: &str| filter(query).unwrap().passes(&StateRef::Lra(transaction.lra()), Timestamp::from_millis(1_005_000));
        for query in ["", "kind=lra", "status=Active", "older-than=5000", "failed=false"] {
            assert!(passes(query), "{query}");
        }
        for query in ["kind=saga", "status=Closed", "older-than=5001", "failed", "failed=true", "in-doubt", "recovering"] {
            assert!(!passes(query), "{query}");
        }
        for (wrong, named) in [
            ("kind=x", "kind=\"x\""),
            ("status=open", "status: "),
            ("status=", "status: "),
            ("older-than=1s", "older-than=\"1s\""),
            ("failed=yes", "failed=\"yes\""),
            ("fialed", "\"fialed\""),
            ("Status=Active", "\"Status\""),
            ("status=Active&status=Closed", "status: it is there twice"),
        ] {
            let said = filter(wrong).unwrap_err();
            assert!(said.starts_with(named) && said.ends_with("; there are failed, in-doubt, recovering, status, kind, older-than"), "{wrong}: {said}");
        }
    }
}

//! What is explored: one transaction with what is asked of it, how its participants may answer, and how much may go wrong.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::Timestamp;
use bluebox_txmgr::TransactionId;
use bluebox_txmgr::callback::{CallbackKey, Callee, Outcome, Phase};
use bluebox_txmgr::line::Rules;
use bluebox_txmgr::saga::{Plan, RawStep, StepRequest};
use bluebox_txmgr::transaction::Links;
use bluebox_txmgr::wire::status::ParticipantStatus;

/// A request of a client, of the parent, or of an operator.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Want {
    Start,
    StartSaga,
    Join(usize),
    Leave(usize),
    Close,
    Cancel,
    /// A delivery of the call whose rule began it ends it (`true`: closes), and tells this outcome.
    Tells(bool, &'static str),
    ParentCompletes,
    ParentCompensates,
    ParentForgets,
    CancelSaga,
    GiveUp,
}

/// How much may go wrong, each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Budget {
    /// Owners that are begun, the first included.
    pub(crate) boots: u8,
    pub(crate) crashes: u8,
    /// Appends that come to lie in the log twice: their acknowledgement was lost.
    pub(crate) twice: u8,
    /// Deliveries whose outcome was lost: they are delivered again.
    pub(crate) lost_outcomes: u8,
    /// Outcomes that are told twice, late.
    pub(crate) told_again: u8,
    /// Requests that come again.
    pub(crate) asked_again: u8,
    pub(crate) compactions: u8,
}

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) wants: Vec<Want>,
    pub(crate) participants: Vec<Links>,
    pub(crate) plan: Option<Plan>,
    pub(crate) parent: bool,
    pub(crate) limit: Option<Duration>,
    /// Tries of a callback that may ask for another one.
    pub(crate) max_tries: u32,
    /// Answers besides *done*, while tries are left.
    pub(crate) answers: fn(CallbackKey) -> Vec<Outcome>,
    pub(crate) budget: Budget,
    pub(crate) rules: Arc<Rules>,
}

/// How long those who joined earlier wait.
pub(crate) const PATIENCE: u64 = 50;
/// Nothing but the end of a transaction's retention comes so late.
pub(crate) const HORIZON: u64 = 10_000;

pub(crate) fn parent_id() -> TransactionId {
    TransactionId::new(1, Timestamp::from_millis(0), None, 99)
}

fn rules() -> Arc<Rules> {
    let (no_pause, patience) = (Duration::ZERO, Duration::from_millis(PATIENCE));
    Arc::new(Rules { first_pause: no_pause, longest_pause: no_pause, patience, retention: Duration::from_millis(10 * HORIZON) })
}

fn links(name: &str, kinds: &[&str]) -> Links {
    let url = |kind: &str| kinds.contains(&kind).then(|| Arc::from(format!("http://{name}/{kind}")));
    Links { compensate: url("compensate"), complete: url("complete"), status: url("status"), forget: url("forget"), after: url("after"), nested: None }
}

fn only_done(_: CallbackKey) -> Vec<Outcome> {
    Vec::new()
}

fn base(name: &'static str, wants: Vec<Want>) -> Scenario {
    let budget = Budget { boots: 2, crashes: 1, ..Budget::default() };
    Scenario { name, wants, participants: Vec::new(), plan: None, parent: false, limit: None, max_tries: 1, answers: only_done, budget, rules: rules() }
}

/// The scenarios. Together they have all that can go wrong; each has little of it, so that all of it can be explored.
pub(crate) fn all() -> Vec<Scenario> {
    use Want::*;
    let plain = |name| links(name, &["compensate", "complete"]);
    let step = |name: &str, after: Option<Vec<String>>| {
        let request =
            |what: &str| StepRequest { method: http::Method::POST, url: format!("http://{name}/{what}"), content_type: None, body: bytes::Bytes::new() };
        RawStep { name: name.to_owned(), action: request("do"), compensation: Some(request("undo")), after }
    };
    let saga = |steps| Some(Plan::try_new(steps).unwrap());
    vec![
        Scenario { participants: vec![plain("a")], ..base("close against cancel", vec![Start, Join(0), Close, Cancel]) },
        Scenario {
            participants: vec![plain("a")],
            budget: Budget { boots: 2, twice: 1, compactions: 1, ..Budget::default() },
            ..base("a zombie, compaction, and appends that come twice", vec![Start, Join(0), Cancel])
        },
        Scenario {
            participants: vec![plain("a"), plain("b")],
            budget: Budget { boots: 2, crashes: 1, lost_outcomes: 1, ..Budget::default() },
            ..base("two participants compensate in their order", vec![Start, Join(0), Join(1), Cancel])
        },
        Scenario { participants: vec![plain("a")], limit: Some(Duration::from_millis(100)), ..base("a deadline that comes late", vec![Start, Join(0), Close]) },
        Scenario {
            participants: vec![plain("a")],
            budget: Budget { boots: 2, crashes: 1, asked_again: 2, ..Budget::default() },
            ..base("requests that come again", vec![Start, Join(0), Close])
        },
        Scenario {
            participants: vec![links("a", &["compensate", "complete", "status", "forget", "after"])],
            max_tries: 2,
            answers: |key| match key.phase {
                Phase::Complete | Phase::Compensate => vec![Outcome::InProgress(None), Outcome::Failed(None), Outcome::Again("?".to_owned())],
                Phase::Status => vec![Outcome::Says(ParticipantStatus::Active)],
                Phase::After | Phase::Forget => vec![Outcome::Again("?".to_owned())],
                _ => Vec::new(),
            },
            budget: Budget { boots: 2, crashes: 1, told_again: 1, ..Budget::default() },
            ..base("answers of every kind, and who is told of the end", vec![Start, Join(0), Close])
        },
        Scenario {
            participants: vec![links("a", &["compensate", "complete", "forget", "after"])],
            parent: true,
            budget: Budget { boots: 2, crashes: 1, ..Budget::default() },
            answers: |key| if key.phase == Phase::Enlist { vec![Outcome::Failed(None)] } else { Vec::new() },
            ..base("nested: closed, and its parent cancels or closes", vec![Start, Join(0), Close, ParentCompletes, ParentCompensates, ParentForgets])
        },
        Scenario {
            participants: vec![links("a", &["compensate", "complete", "forget"])],
            parent: true,
            max_tries: 2,
            answers: |key| if key.phase == Phase::Complete { vec![Outcome::Again("?".to_owned())] } else { Vec::new() },
            budget: Budget { boots: 1, told_again: 1, lost_outcomes: 1, ..Budget::default() },
            ..base("nested: late outcomes", vec![Start, Join(0), Close, ParentCompensates])
        },
        Scenario {
            participants: vec![links("a", &["compensate", "complete", "forget", "after"])],
            max_tries: 2,
            answers: |key| if key.phase == Phase::Complete { vec![Outcome::Again("?".to_owned())] } else { Vec::new() },
            budget: Budget { boots: 2, crashes: 1, told_again: 1, ..Budget::default() },
            ..base("an operator gives up on a participant", vec![Start, Join(0), Close, GiveUp])
        },
        Scenario { participants: vec![plain("a")], ..base("a participant leaves", vec![Start, Join(0), Leave(0), Cancel]) },
        Scenario {
            participants: vec![plain("a")],
            budget: Budget { boots: 2, crashes: 1, asked_again: 1, ..Budget::default() },
            ..base(
                "deliveries of one call that tell its outcome with the end",
                vec![Start, Join(0), Tells(true, "yes"), Tells(true, "also"), Tells(false, "no")],
            )
        },
        Scenario {
            participants: vec![plain("a")],
            limit: Some(Duration::from_millis(100)),
            budget: Budget { boots: 2, twice: 1, compactions: 1, ..Budget::default() },
            ..base("an outcome that is kept, a deadline, a zombie, and compaction", vec![Start, Join(0), Tells(true, "yes")])
        },
        Scenario {
            plan: saga(vec![step("a", None), step("b", None)]),
            max_tries: 1,
            answers: |key| match key {
                CallbackKey { phase: Phase::Action, callee: Callee(1), .. } => {
                    vec![Outcome::Failed(None), Outcome::InProgress(None), Outcome::Again("?".to_owned())]
                }
                CallbackKey { phase: Phase::Undo, .. } => vec![Outcome::Again("?".to_owned())],
                _ => Vec::new(),
            },
            budget: Budget { boots: 2, crashes: 1, ..Budget::default() },
            ..base("a saga of two steps", vec![StartSaga, CancelSaga])
        },
        Scenario {
            plan: saga(vec![step("a", None), step("b", None)]),
            answers: |key| if key.phase == Phase::Undo { vec![Outcome::Again("?".to_owned())] } else { Vec::new() },
            budget: Budget { boots: 2, crashes: 1, ..Budget::default() },
            ..base("an operator gives up on a step", vec![StartSaga, CancelSaga, GiveUp])
        },
        Scenario {
            plan: saga(vec![step("a", None), step("b", Some(Vec::new()))]),
            limit: Some(Duration::from_millis(100)),
            answers: |key| if key.phase == Phase::Action { vec![Outcome::Failed(None)] } else { Vec::new() },
            budget: Budget { boots: 2, ..Budget::default() },
            ..base("a saga of two steps at once, and its deadline", vec![StartSaga])
        },
        Scenario {
            plan: saga(vec![step("a", None), step("b", Some(Vec::new()))]),
            limit: Some(Duration::from_millis(100)),
            answers: |key| if key.phase == Phase::Action { vec![Outcome::Failed(None), Outcome::InProgress(None)] } else { Vec::new() },
            budget: Budget { boots: 1, lost_outcomes: 2, asked_again: 1, ..Budget::default() },
            ..base("a saga of two steps at once, and lost outcomes", vec![StartSaga])
        },
    ]
}

/// More of everything, for walks.
pub(crate) fn large() -> Vec<Scenario> {
    use Want::*;
    let all_links = |name| links(name, &["compensate", "complete", "status", "forget", "after"]);
    let budget = Budget { boots: 5, crashes: 3, twice: 3, lost_outcomes: 4, told_again: 3, asked_again: 4, compactions: 2 };
    let answers: fn(CallbackKey) -> Vec<Outcome> = |key| match key.phase {
        Phase::Complete | Phase::Compensate => vec![Outcome::InProgress(None), Outcome::Failed(None), Outcome::Again("?".to_owned())],
        Phase::Status => vec![Outcome::Says(ParticipantStatus::Active), Outcome::InProgress(None), Outcome::Again("?".to_owned())],
        Phase::After | Phase::Forget => vec![Outcome::Again("?".to_owned())],
        Phase::Enlist => vec![Outcome::Failed(None), Outcome::Again("?".to_owned())],
        Phase::Action | Phase::Undo => vec![Outcome::Failed(None), Outcome::InProgress(None), Outcome::Again("?".to_owned())],
    };
    let step = |name: &str, after: Option<Vec<String>>| {
        let request =
            |what: &str| StepRequest { method: http::Method::POST, url: format!("http://{name}/{what}"), content_type: None, body: bytes::Bytes::new() };
        RawStep { name: name.to_owned(), action: request("do"), compensation: Some(request("undo")), after }
    };
    let three = vec![all_links("a"), links("b", &["compensate"]), links("c", &["compensate", "complete", "after"])];
    vec![
        Scenario {
            participants: three.clone(),
            limit: Some(Duration::from_millis(100)),
            max_tries: 3,
            answers,
            budget,
            ..base("three participants", vec![Start, Join(0), Join(1), Join(2), Leave(1), Close, Cancel, Tells(true, "yes"), Tells(false, "no"), GiveUp])
        },
        Scenario {
            participants: three,
            parent: true,
            max_tries: 3,
            answers,
            budget,
            ..base("three participants, nested", vec![Start, Join(0), Join(1), Join(2), Close, Cancel, ParentCompletes, ParentCompensates, ParentForgets])
        },
        Scenario {
            plan: Some(
                Plan::try_new(vec![step("a", None), step("b", Some(Vec::new())), step("c", Some(vec!["a".to_owned(), "b".to_owned()])), step("d", None)])
                    .unwrap(),
            ),
            limit: Some(Duration::from_millis(100)),
            max_tries: 3,
            answers,
            budget,
            ..base("a saga of four steps", vec![StartSaga, CancelSaga])
        },
    ]
}

use bytes::Bytes;

use super::*;
use crate::callback::{Callback, Phase};
use crate::effect::seen;

const FAR: Timestamp = Timestamp::from_millis(u64::MAX);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// A step with what it comes after; one that begins with '-' has no compensation.
fn step(name: &str, after: &[&str]) -> RawStep {
    let request =
        |what: &str| StepRequest { method: http::Method::POST, url: format!("http://{name}/{what}"), content_type: None, body: Bytes::from_static(b"{}") };
    let compensation = (!name.starts_with('-')).then(|| request("undo"));
    RawStep { name: name.to_owned(), action: request("do"), compensation, after: Some(after.iter().map(|n| (*n).to_owned()).collect()) }
}

/// A saga whose records are durable at once.
struct Bench {
    saga: RunningSaga,
    now: u64,
    effects: Vec<Effect>,
}

impl Bench {
    fn start(steps: Vec<RawStep>, limit: Option<u64>) -> Self {
        let id = TransactionId::new(0, at(1), None, 1);
        let start = StartSaga { id, origin: None, plan: Plan::try_new(steps).unwrap(), limit: limit.map(Duration::from_millis) };
        let mut effects = Vec::new();
        let saga = RunningSaga::start(Arc::new(Rules::default()), at(0), RequestId(0), start, &mut effects);
        let mut bench = Self { saga, now: 0, effects };
        bench.settle();
        bench
    }

    fn settle(&mut self) {
        while let Some(version) = self.saga.take_record() {
            self.saga.durable(version, &mut self.effects);
        }
    }

    fn ask(&mut self, number: u64, what: SagaRequest) -> Option<Answer> {
        self.saga.request(at(self.now), RequestId(number), what, &mut self.effects);
        self.settle();
        self.answer(number)
    }

    fn answer(&self, number: u64) -> Option<Answer> {
        seen::answer(&self.effects, RequestId(number))
    }

    fn calls(&mut self) -> Vec<Callback> {
        seen::calls(&mut self.effects)
    }

    fn urls(&mut self) -> Vec<String> {
        self.calls().iter().map(|call| call.url.as_ref().to_owned()).collect()
    }

    fn ends(&mut self, callee: u32, phase: Phase, n: u32, outcome: Outcome) {
        let key = CallbackKey { transaction: self.saga.saga().id, callee: Callee(callee), phase, n };
        self.saga.outcome(at(self.now), key, outcome, &mut self.effects);
        self.settle();
    }

    fn done(&mut self, callee: u32) {
        self.ends(callee, Phase::Action, 0, Outcome::Done);
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        self.saga.tick(at(self.now), &mut self.effects);
        self.settle();
    }

    fn status(&self) -> LraStatus {
        self.saga.saga().status
    }

    fn step(&self, at: usize) -> StepStatus {
        self.saga.saga().steps[at].status
    }

    fn hurried(&self) -> usize {
        self.effects.iter().filter(|effect| matches!(effect, Effect::Hurry(_))).count()
    }
}

#[test]
fn independent_steps_run_at_once_and_others_after_those_they_name() {
    let mut bench = Bench::start(vec![step("a", &[]), step("b", &[]), step("c", &["a", "b"])], None);
    assert!(matches!(bench.answer(0), Some(Answer::Started(_))));
    assert_eq!(bench.urls(), ["http://a/do", "http://b/do"]);
    bench.done(1);
    assert!(bench.calls().is_empty());
    bench.done(0);
    assert_eq!(bench.urls(), ["http://c/do"]);
    assert_eq!(bench.ask(1, SagaRequest::Await(FAR)), None);
    bench.done(2);
    assert_eq!(bench.status(), LraStatus::Closed);
    assert!(matches!(bench.answer(1), Some(Answer::Saga(_))));
    assert!(matches!(bench.ask(2, SagaRequest::Cancel(FAR)), Some(Answer::Refused(Refusal::OtherEnd(..)))));
}

#[test]
fn between_two_tries_operators_see_the_next_one() {
    let mut bench = Bench::start(vec![step("a", &[])], None);
    let asked = |bench: &Bench| {
        let line = bench.saga.saga().steps[0].asked();
        (line.phase, line.n, line.failures, line.not_before, line.last_error)
    };
    assert_eq!(asked(&bench), (Some(Phase::Action), 0, 0, at(bench.now), None));
    bench.ends(0, Phase::Action, 0, Outcome::Again("boom".to_owned()));
    let pause = Rules::default().first_pause;
    assert_eq!(asked(&bench), (Some(Phase::Action), 1, 1, later(at(bench.now), pause), Some("boom".to_owned())));
    // The next call has the key that was shown.
    bench.pass(200);
    assert_eq!(asked(&bench), (Some(Phase::Action), 1, 1, at(bench.now), Some("boom".to_owned())));
    bench.ends(0, Phase::Action, 1, Outcome::Done);
    assert_eq!(asked(&bench).0, None);
}

#[test]
fn no_pause_is_longer_than_the_longest_whatever_the_clock_says() {
    let mut bench = Bench::start(vec![step("a", &[])], None);
    bench.pass(1_000_000);
    bench.calls();
    bench.ends(0, Phase::Action, 0, Outcome::Again("down".to_owned()));
    assert!(bench.calls().is_empty(), "it is a pause");
    bench.now = 1_000;
    bench.pass(0);
    assert_eq!(bench.urls(), ["http://a/do"]);
    // The same for compensations.
    bench.ends(0, Phase::Action, 1, Outcome::Done);
    let mut bench = Bench::start(vec![step("a", &[]), step("b", &["a"])], None);
    bench.pass(1_000_000);
    bench.done(0);
    bench.ends(1, Phase::Action, 0, Outcome::Failed(None));
    bench.calls();
    bench.ends(0, Phase::Undo, 0, Outcome::Again("down".to_owned()));
    assert!(bench.calls().is_empty(), "it is a pause");
    bench.now = 1_000;
    bench.pass(0);
    assert_eq!(bench.urls(), ["http://a/undo"]);
}

#[test]
fn nothing_is_called_before_it_is_durable_that_it_is() {
    let id = TransactionId::new(0, at(1), None, 1);
    let start = StartSaga { id, origin: None, plan: Plan::try_new(vec![step("a", &[])]).unwrap(), limit: None };
    let mut effects = Vec::new();
    let mut saga = RunningSaga::start(Arc::new(Rules::default()), at(0), RequestId(0), start, &mut effects);
    assert_eq!(effects, []);
    let version = saga.take_record().unwrap();
    saga.durable(version, &mut effects);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Call(callback) if callback.step.is_some())));
}

/// 409 is a business no: what was done is taken back in the reverse order, and what never ran is left alone.
#[test]
fn a_no_takes_back_what_was_done_and_nothing_else() {
    let mut bench = Bench::start(vec![step("a", &[]), step("b", &["a"]), step("c", &["b"]), step("d", &["c"])], None);
    bench.done(0);
    bench.done(1);
    bench.calls();
    bench.ends(2, Phase::Action, 0, Outcome::Failed(Some("no seat".to_owned())));
    assert_eq!((bench.step(2), bench.step(3)), (StepStatus::Refused, StepStatus::NeverRan));
    assert_eq!(bench.saga.saga().why.as_deref(), Some("step \"c\" said no (409): no seat"));
    assert_eq!(bench.saga.saga().steps[2].line.last_error.as_deref(), Some("it said no (409): no seat"));
    assert_eq!(bench.urls(), ["http://b/undo"]);
    bench.ends(1, Phase::Undo, 0, Outcome::Done);
    assert_eq!(bench.urls(), ["http://a/undo"]);
    bench.ends(0, Phase::Undo, 0, Outcome::Done);
    assert_eq!(bench.status(), LraStatus::Cancelled);
}

/// A late action after its compensation: the compensation waits for the outcome of the action's last call.
#[test]
fn what_is_under_way_is_waited_for_and_hurried() {
    let mut bench = Bench::start(vec![step("a", &[]), step("b", &[])], None);
    bench.calls();
    bench.ends(1, Phase::Action, 0, Outcome::Failed(None));
    assert_eq!((bench.urls(), bench.hurried()), (vec![], 1));
    bench.done(0);
    assert_eq!(bench.urls(), ["http://a/undo"], "it was done after all");
}

/// What failed may have run: it is compensated, and not begun again.
#[test]
fn what_failed_is_tried_again_but_not_once_it_is_cancelled() {
    let mut bench = Bench::start(vec![step("a", &[])], None);
    bench.calls();
    bench.ends(0, Phase::Action, 0, Outcome::Again("HTTP 500".to_owned()));
    assert_eq!(bench.saga.wakes_at(), Some(at(200)));
    bench.pass(200);
    assert_eq!(bench.calls()[0].key.n, 1);
    assert_eq!(bench.ask(1, SagaRequest::Cancel(FAR)), None);
    assert!(bench.calls().is_empty());
    bench.ends(0, Phase::Action, 1, Outcome::Again("HTTP 499".to_owned()));
    assert_eq!((bench.step(0), bench.urls()), (StepStatus::Undoing, vec!["http://a/undo".to_owned()]));
}

/// Between two calls none is under way, by no owner: there is nothing to be waited for.
#[test]
fn one_that_pauses_when_it_is_cancelled_is_compensated_at_once() {
    let mut bench = Bench::start(vec![step("a", &[])], None);
    bench.calls();
    bench.ends(0, Phase::Action, 0, Outcome::Again("HTTP 500".to_owned()));
    bench.ask(1, SagaRequest::Cancel(FAR));
    assert_eq!(bench.urls(), ["http://a/undo"]);
}

/// 425: it is asked until it says something else, also while the saga is being cancelled.
#[test]
fn what_is_still_going_is_asked_until_it_is_over() {
    let mut bench = Bench::start(vec![step("a", &[])], Some(1_000));
    assert_eq!(bench.calls()[0].not_after, Some(at(1_000)));
    bench.ends(0, Phase::Action, 0, Outcome::InProgress(None));
    bench.pass(1_000);
    assert_eq!((bench.status(), bench.saga.saga().why.as_deref()), (LraStatus::Cancelling, Some("its deadline has passed")));
    let calls = bench.calls();
    assert_eq!((calls[0].key.phase, calls[0].key.n, calls[0].not_after), (Phase::Action, 1, None));
    bench.ends(0, Phase::Action, 1, Outcome::InProgress(None));
    bench.pass(5_000);
    bench.calls();
    bench.ends(0, Phase::Action, 2, Outcome::Done);
    assert_eq!(bench.urls(), ["http://a/undo"]);
}

#[test]
fn a_compensation_is_tried_for_ever_but_for_a_no() {
    let mut bench = Bench::start(vec![step("a", &[]), step("b", &["a"]), step("c", &["b"])], None);
    bench.done(0);
    bench.done(1);
    bench.ends(2, Phase::Action, 0, Outcome::Failed(None));
    for (n, outcome) in [(0, Outcome::Again("HTTP 500".to_owned())), (1, Outcome::InProgress(None)), (2, Outcome::Failed(Some("checked in".to_owned())))] {
        bench.pass(10_000);
        bench.ends(1, Phase::Undo, n, outcome);
    }
    assert_eq!(bench.step(1), StepStatus::FailedToUndo);
    assert_eq!(bench.saga.saga().steps[1].line.last_error.as_deref(), Some("its compensation said no (409): checked in"));
    bench.ends(0, Phase::Undo, 0, Outcome::Done);
    assert_eq!(bench.status(), LraStatus::FailedToCancel, "the others are taken back all the same");
    assert!(!bench.saga.is_removable(FAR), "failures stay");
    assert_eq!(bench.ask(9, SagaRequest::Forget), Some(Answer::Done));
    assert!(bench.saga.is_removable(FAR));
}

#[test]
fn a_step_without_a_compensation_is_done_for_good() {
    let mut bench = Bench::start(vec![step("a", &[]), step("-b", &["a"]), step("c", &["-b"])], None);
    bench.done(0);
    bench.done(1);
    bench.calls();
    bench.ends(2, Phase::Action, 0, Outcome::Failed(None));
    assert_eq!(bench.urls(), ["http://a/undo"]);
}

/// Who takes over sends the same calls, and waits for their outcomes before it compensates.
#[test]
fn a_takeover_goes_on_under_the_same_keys() {
    let mut bench = Bench::start(vec![step("a", &[])], None);
    let key = bench.calls()[0].key;
    let recovered = |saga: &Saga| {
        let mut effects = Vec::new();
        RunningSaga::recover(Arc::new(Rules::default()), at(9), saga.clone(), Version::new(3), &mut effects);
        effects
    };
    assert!(matches!(&recovered(bench.saga.saga())[..], [Effect::Call(callback)] if callback.key == key));
    bench.ask(1, SagaRequest::Cancel(FAR));
    assert!(matches!(&recovered(bench.saga.saga())[..], [Effect::Call(callback), Effect::Hurry(hurried)] if callback.key == key && *hurried == key));
}

#[test]
fn retry_ends_pauses_and_only_failures_can_be_forgotten() {
    let mut bench = Bench::start(vec![step("a", &[])], None);
    bench.calls();
    bench.ends(0, Phase::Action, 0, Outcome::Again("HTTP 500".to_owned()));
    assert_eq!(bench.ask(1, SagaRequest::Retry), Some(Answer::Done));
    assert_eq!(bench.calls()[0].key.n, 1);
    assert!(matches!(bench.ask(2, SagaRequest::Forget), Some(Answer::Refused(Refusal::NotFailed(..)))));
}

#[test]
fn an_operator_gives_up_on_who_does_not_answer() {
    let mut bench = Bench::start(vec![step("a", &[]), step("b", &["a"]), step("c", &["b"])], None);
    assert!(matches!(bench.ask(1, SagaRequest::GiveUp), Some(Answer::Refused(Refusal::NotEnding(..)))), "it is active");
    bench.done(0);
    bench.done(1);
    bench.ask(2, SagaRequest::Cancel(FAR));
    bench.calls();
    // The action of the last step is under way, and nobody is there.
    assert_eq!(bench.ask(3, SagaRequest::GiveUp), Some(Answer::Done));
    assert_eq!((bench.step(2), bench.urls()), (StepStatus::FailedToUndo, vec!["http://b/undo".to_owned()]), "the others have their turn");
    bench.ends(2, Phase::Action, 0, Outcome::Done);
    assert_eq!(bench.step(2), StepStatus::FailedToUndo, "what is told late changes nothing");
    bench.ends(1, Phase::Undo, 0, Outcome::Again("HTTP 500".to_owned()));
    assert_eq!(bench.ask(4, SagaRequest::GiveUp), Some(Answer::Done));
    assert_eq!(bench.saga.saga().steps[1].line.last_error.as_deref(), Some("an operator gave it up; before: HTTP 500"));
    bench.ends(0, Phase::Undo, 0, Outcome::Done);
    assert_eq!(bench.status(), LraStatus::FailedToCancel);
    assert!(matches!(bench.ask(5, SagaRequest::GiveUp), Some(Answer::Refused(Refusal::NotEnding(..)))), "it has ended");
    assert_eq!(bench.ask(6, SagaRequest::Forget), Some(Answer::Done));
}

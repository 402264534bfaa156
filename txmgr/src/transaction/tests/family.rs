//! Nested LRAs: rules by themselves, and whole families at random.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::wire::answer::meaning;

fn enlisted() -> Bench {
    let mut bench = Bench::start(None, true);
    assert_eq!(bench.answer(RequestId(0)), None, "it is answered when the parent has it");
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Enlist);
    assert_eq!(bench.answer(RequestId(0)), Some(Answer::Started(id(2))));
    bench
}

/// The parent is called by its id, wherever its URL leads; participants are told both URLs as clients wrote them ("Long-Running-Action-Parent").
#[test]
fn the_parent_is_called_by_its_id_and_participants_are_told_of_it() {
    let mut bench = Bench::start(None, true);
    let call = bench.calls().remove(0);
    assert_eq!(call.url.as_ref(), id(1).to_string());
    bench.outcome(call.key, Outcome::Done);
    bench.join("a", &["compensate"]);
    bench.ask(Request::Cancel(FAR));
    let call = bench.calls().remove(0);
    assert_eq!((call.base.as_deref(), call.parent.as_deref()), (Some("http://txmgr/lra-coordinator"), Some("http://txmgr/lra-coordinator/parent")));
    assert_eq!(bench.transaction.lra().url(), format!("http://txmgr/lra-coordinator/{}", id(2)));
}

#[test]
fn one_that_its_parent_does_not_take_in_was_not_begun() {
    let mut bench = Bench::start(None, true);
    bench.ends(Outcome::Again("HTTP 503".to_owned()));
    bench.pass(SECOND);
    bench.ends(Outcome::Failed(None));
    assert_eq!((refusal(bench.answer(RequestId(0))), bench.status()), (404, LraStatus::Cancelled));
    bench.transaction.begun(RequestId(77), &mut bench.effects);
    assert_eq!(refusal(bench.answer(RequestId(77))), 404, "so is who asks again");
}

/// "A nested LRA which has closed must retain the ability to cancel the effects if the parent cancels": Completed → Compensating.
#[test]
fn what_has_closed_can_be_cancelled_by_its_parent() {
    let mut bench = enlisted();
    bench.join("a", &["compensate", "complete", "forget", "after"]);
    bench.ask(Request::Close(FAR));
    bench.ends(Outcome::Done);
    assert_eq!(bench.status(), LraStatus::Closed);
    assert!(bench.calls().is_empty(), "neither told to forget nor of an end that may not be the last");
    bench.pass(10 * 86_400 * SECOND);
    assert!(!bench.transaction.is_removable(at(bench.now)));
    assert_eq!(bench.ask(Request::OfParent(Phase::Compensate, FAR)), None);
    assert_eq!(bench.ends(Outcome::Says(ParticipantStatus::Completed)).phase, Phase::Compensate);
    bench.pass(SECOND);
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Compensate, "it had completed, and has not begun to compensate");
    assert_eq!((bench.status(), bench.participant(0).status), (LraStatus::Cancelled, ParticipantStatus::Compensated));
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::After);
    assert!(bench.calls().is_empty());
}

/// "If the participant has a Forget method then it MUST be invoked if the parent LRA is closed."
#[test]
fn when_the_parent_has_closed_all_is_forgotten_and_over() {
    let mut bench = enlisted();
    bench.join("a", &["compensate", "complete", "forget"]);
    assert_eq!(bench.ask(Request::OfParent(Phase::Complete, at(0))), Some(Answer::Participant(ParticipantStatus::Completing)));
    bench.ends(Outcome::Done);
    assert_eq!(bench.ask(Request::OfParent(Phase::Status, FAR)), Some(Answer::Participant(ParticipantStatus::Completed)));
    assert_eq!(bench.ask(Request::OfParent(Phase::Forget, FAR)), None, "whoever waits for the parent's end waits for this too");
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Forget);
    assert_eq!(bench.answer(RequestId(bench.requests)), Some(Answer::Done));
    assert_eq!(bench.ask(Request::OfParent(Phase::Forget, FAR)), Some(Answer::Done));
    assert_eq!(bench.ask(Request::OfParent(Phase::Compensate, FAR)), Some(Answer::Participant(ParticipantStatus::FailedToCompensate)));
    assert_eq!(refusal(bench.ask(Request::Cancel(FAR))), 412);
    assert!(bench.calls().is_empty());
}

/// "A nested LRA can close or cancel independently of its parent": MicroProfile's TCK closes one and then cancels it (`mixedMultiLevelNestedActivity`).
#[test]
fn one_that_has_closed_can_be_cancelled_until_its_parent_closes() {
    let closed = || {
        let mut bench = enlisted();
        bench.join("a", &["compensate", "complete"]);
        bench.ask(Request::Close(FAR));
        bench.ends(Outcome::Done);
        bench
    };
    let mut bench = closed();
    assert!(matches!(bench.join("a", &["compensate", "complete"]), Some(Answer::Joined { callee: Callee(0), .. })), "it takes part already");
    assert_eq!(refusal(bench.join("b", &["compensate", "complete"])), 412);
    assert_eq!(bench.ask(Request::Cancel(FAR)), None);
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Compensate);
    assert_eq!(bench.answer(RequestId(bench.requests)), Some(Answer::Status(LraStatus::Cancelled)));
    assert_eq!(bench.ask(Request::OfParent(Phase::Complete, FAR)), Some(Answer::Gone));
    // The end of a parent is decided once.
    let mut bench = closed();
    assert_eq!(bench.ask(Request::OfParent(Phase::Complete, FAR)), Some(Answer::Participant(ParticipantStatus::Completed)));
    assert_eq!(refusal(bench.ask(Request::Cancel(FAR))), 412);
    assert_eq!(refusal(bench.join("a", &["compensate", "complete"])), 412);
    // Which may be nested itself, and be cancelled after it has closed.
    assert_eq!(bench.ask(Request::OfParent(Phase::Compensate, FAR)), None);
    // So is the end of a call that is kept with it.
    let kept = Kept::new(OutcomeOf { call: CallId::from_bytes([1; 16]), replay: 0, component: "trip".parse().unwrap() }, bytes::Bytes::from_static(b"no"));
    assert_eq!(refusal(closed().ask(Request::EndAndKeep(false, FAR, Box::new(kept)))), 412);
}

/// An operator who forgets a parent that has failed would otherwise leave its children waiting for ever.
#[test]
fn an_operator_can_settle_one_whose_parent_will_never_call() {
    let mut bench = enlisted();
    bench.join("a", &["compensate", "complete", "forget"]);
    bench.ask(Request::Close(FAR));
    bench.ends(Outcome::Done);
    assert_eq!(bench.ask(Request::Forget), Some(Answer::Done));
    assert_eq!(bench.ends(Outcome::Done).phase, Phase::Forget);
    assert!(bench.transaction.is_removable(FAR));
    assert_eq!(refusal(bench.ask(Request::Forget)), 412);
}

/// "A nested LRA can close or cancel independently of its parent."
#[test]
fn one_that_was_cancelled_has_nothing_left_to_complete() {
    let mut bench = enlisted();
    bench.ask(Request::Cancel(FAR));
    assert_eq!(bench.ask(Request::OfParent(Phase::Complete, FAR)), Some(Answer::Gone));
    assert_eq!(bench.ask(Request::OfParent(Phase::Compensate, FAR)), Some(Answer::Participant(ParticipantStatus::Compensated)));
}

#[test]
fn one_that_is_closing_is_to_be_asked_again_and_one_that_failed_says_so() {
    let mut bench = enlisted();
    bench.join("a", &["compensate", "complete"]);
    bench.ask(Request::Close(FAR));
    assert_eq!(bench.ask(Request::OfParent(Phase::Compensate, FAR)), Some(Answer::Participant(ParticipantStatus::Completing)));
    assert_eq!(refusal(bench.ask(Request::OfParent(Phase::Forget, FAR))), 412);
    bench.ends(Outcome::Failed(None));
    assert_eq!(bench.ask(Request::OfParent(Phase::Complete, FAR)), Some(Answer::Participant(ParticipantStatus::FailedToComplete)));
    assert_eq!(bench.ask(Request::OfParent(Phase::Compensate, FAR)), Some(Answer::Participant(ParticipantStatus::FailedToCompensate)));
}

#[test]
fn a_top_level_one_is_no_participant() {
    assert_eq!(refusal(Bench::start(None, false).ask(Request::OfParent(Phase::Complete, FAR))), 404);
}

/// A line of LRAs, each nested in the one before, with a participant each. Calls between them go as over the wire.
struct Family {
    members: Vec<Bench>,
    /// Calls that have no outcome yet; to whom, and the request that they are there.
    open: BTreeMap<CallbackKey, (Callback, Option<(usize, RequestId)>)>,
    did: Vec<Vec<Phase>>,
}

impl Family {
    fn new(generations: usize) -> Self {
        let mut family = Self { members: Vec::new(), open: BTreeMap::new(), did: vec![Vec::new(); generations] };
        for generation in 0..generations {
            let number = u64::try_from(generation).unwrap() + 2;
            let mut effects = Vec::new();
            let parent = (generation > 0).then(|| (id(number - 1), Arc::from("http://txmgr/parent")));
            let start = Start { id: id(number), origin: None, client: Arc::from(""), base: Arc::from("http://txmgr/lra-coordinator"), limit: None, parent };
            let transaction = Transaction::start(Arc::new(Rules::default()), at(0), RequestId(0), start, &mut effects);
            let mut bench = Bench { transaction, now: 0, requests: 0, effects };
            bench.settle();
            family.members.push(bench);
            family.collect();
            while family.deliver(0, 0) {}
            family.members[generation].join(&format!("p{generation}"), &["compensate", "complete", "forget"]);
        }
        family
    }

    fn collect(&mut self) {
        for member in &mut self.members {
            for call in member.calls() {
                self.open.insert(call.key, (call, None));
            }
        }
    }

    fn place(&self, of: TransactionId) -> usize {
        self.members.iter().position(|m| m.transaction.lra().id == of).unwrap()
    }

    /// Delivers one of the open calls, or tells the outcome of one that has its answer. Says whether there was one.
    fn deliver(&mut self, pick: usize, reply: usize) -> bool {
        self.collect();
        let keys: Vec<CallbackKey> = self.open.keys().copied().collect();
        let Some(key) = (!keys.is_empty()).then(|| keys[pick % keys.len()]) else { return false };
        let (call, asked) = self.open[&key].clone();
        let caller = self.place(key.transaction);
        let nested = self.members[caller].transaction.participant(key.callee).and_then(|p| p.links.nested);
        let outcome = if key.phase == Phase::Enlist {
            let child = key.transaction;
            let parent = self.place(self.members[caller].transaction.lra().parent.as_ref().unwrap().id);
            let url = |what: &str| Some(Arc::from(format!("http://txmgr/nested/{child}/{what}")));
            let links = Links {
                compensate: url("compensate"),
                complete: url("complete"),
                status: url("status"),
                forget: url("forget"),
                after: None,
                nested: Some(child),
            };
            let answer = self.members[parent].ask(Request::Join(Join { links, limit: None, data: None }));
            meaning(key.phase, if matches!(answer, Some(Answer::Joined { .. })) { 200 } else { 412 }, b"", None)
        } else if let Some(child) = nested {
            let child = self.place(child);
            let member = &mut self.members[child];
            let number = match asked {
                Some((_, number)) => number,
                None => {
                    // Half of the answers come at once, with whatever is so.
                    let answer_by = if reply.is_multiple_of(2) { FAR } else { at(0) };
                    member.ask(Request::OfParent(key.phase, answer_by));
                    RequestId(member.requests)
                }
            };
            match member.answer(number) {
                None => {
                    self.open.insert(key, (call, Some((child, number))));
                    return true;
                }
                Some(Answer::Done) => meaning(key.phase, 200, b"", None),
                Some(Answer::Gone) => meaning(key.phase, 410, b"", None),
                Some(Answer::Participant(status)) if status.is_final() || key.phase == Phase::Status => meaning(key.phase, 200, status.name().as_bytes(), None),
                Some(Answer::Participant(_)) => meaning(key.phase, 202, b"", None),
                Some(Answer::Refused(refusal)) => meaning(key.phase, refusal.status_code(), b"", None),
                other => panic!("{other:?}"),
            }
        } else {
            if !self.did[caller].contains(&key.phase) {
                self.did[caller].push(key.phase);
            }
            Outcome::Done
        };
        self.open.remove(&key);
        self.members[caller].outcome(key, outcome);
        self.collect();
        true
    }

    /// Goes on until nothing is left to be done.
    fn drain(&mut self) {
        for round in 0..2_000 {
            // Those that wait for each other may wait for a pause to be over.
            if self.open.is_empty() || round % 10 == 9 {
                self.members.iter_mut().for_each(|m| m.pass(10 * SECOND));
                self.collect();
                if self.open.is_empty() {
                    return;
                }
            }
            self.deliver(round, round);
        }
        panic!("it does not come to an end: {:?}", self.open.keys().collect::<Vec<_>>());
    }
}

proptest! {
    /// "If a nested LRA cancels then all of its children must cancel (even if they closed). If a nested LRA closes then it, and all of its children, must close" ("Nesting LRAs", 3 and 4).
    #[test]
    fn families_end_together(
        generations in 1..4_usize,
        actions in proptest::collection::vec((0..4_usize, any::<bool>(), 0..8_usize, 0..6_usize, any::<usize>()), 0..6),
        last: bool,
    ) {
        let mut family = Family::new(generations);
        for (who, cancel, picks, steps, reply) in actions {
            let member = who % generations;
            family.members[member].ask(if cancel { Request::Cancel(FAR) } else { Request::Close(FAR) });
            for step in 0..steps {
                family.deliver(picks + step, reply);
            }
        }
        family.members[0].ask(if last { Request::Cancel(FAR) } else { Request::Close(FAR) });
        family.drain();
        for (generation, member) in family.members.iter().enumerate() {
            let (lra, did) = (member.transaction.lra(), &family.did[generation]);
            prop_assert!(lra.is_settled(), "generation {} is {}", generation, lra.status);
            prop_assert!(!lra.status.is_failed());
            let ancestors_cancelled = family.members[..generation].iter().any(|m| m.status() == LraStatus::Cancelled);
            prop_assert!(!ancestors_cancelled || lra.status == LraStatus::Cancelled, "generation {} is {} though an ancestor was cancelled", generation, lra.status);
            let expected = if lra.status == LraStatus::Closed { Phase::Complete } else { Phase::Compensate };
            prop_assert!(did.contains(&expected), "{:?} has done {:?}", lra.status, did);
            prop_assert!(lra.status == LraStatus::Cancelled || !did.contains(&Phase::Compensate));
            let at = |phase| did.iter().position(|p| *p == phase);
            prop_assert!(at(Phase::Forget).is_none_or(|forget| forget + 1 == did.len()), "after forget: {:?}", did);
            prop_assert!(at(Phase::Complete) < at(Phase::Compensate) || at(Phase::Compensate).is_none(), "{:?}", did);
        }
    }
}

use std::sync::Arc;

use bluebox_core::log::Timestamp;
use bluebox_core::{CallId, ComponentName};
use proptest::prelude::*;

use super::words::Word;
use super::*;
use crate::callback::{Callee, Phase};
use crate::line::Line;
use crate::saga::{Plan, PlannedStep, Step, StepRequest, StepStatus};
use crate::transaction::{Kept, Links, OutcomeOf, Parent, Participant};
use crate::wire::status::{LraStatus, ParticipantStatus};

fn id(random: u64) -> TransactionId {
    TransactionId::new(3, Timestamp::from_millis(77), None, random)
}

fn word<W: Word + std::fmt::Debug>() -> impl Strategy<Value = W> {
    proptest::sample::select(W::WORDS)
}

prop_compose! {
    fn moment()(millis: u64) -> Timestamp { Timestamp::from_millis(millis) }
}

prop_compose! {
    fn line()(phase in proptest::option::of(word::<Phase>()), n: u32, failures: u32, not_before in moment(), last_error: Option<String>) -> Line {
        Line { phase, n, failures, not_before, last_error }
    }
}

prop_compose! {
    fn links()(urls: [Option<String>; 5], nested in proptest::option::of(any::<u64>().prop_map(id))) -> Links {
        let [compensate, complete, status, forget, after] = urls.map(|url| url.map(Arc::from));
        Links { compensate, complete, status, forget, after, nested }
    }
}

prop_compose! {
    fn participant()(callee: u32, links in links(), texts: [Option<String>; 2], status in word::<ParticipantStatus>(), line in line(), flags: [bool; 4]) -> Participant {
        let [data, poll] = texts.map(|text| text.map(Arc::from));
        let [tried, was_in_progress, told_after, told_forget] = flags;
        Participant { callee: Callee(callee), links, data, status, line, tried, was_in_progress, poll, told_after, told_forget }
    }
}

prop_compose! {
    fn kept()(call: [u8; 16], replay: u32, outcome: Option<Vec<u8>>, written: u32) -> Kept {
        let of = OutcomeOf { call: CallId::from_bytes(call), replay, component: ComponentName::try_new("trip").unwrap() };
        Kept { of, outcome: outcome.map(Into::into), written }
    }
}

prop_compose! {
    fn lra()(
        random: u64, origin: Option<[u8; 16]>, client: String, base: String, status in word::<LraStatus>(), started in moment(), deadline in proptest::option::of(moment()),
        ended in proptest::option::of(moment()), parent in proptest::option::of((any::<u64>(), any::<String>(), any::<[bool; 3]>(), line())),
        participants in proptest::collection::vec(participant(), 0..4), next_callee: u32, left: Vec<String>, forgotten: bool, kept in proptest::option::of(kept()),
    ) -> State {
        let left = left.into_iter().map(Arc::from).collect();
        let parent = parent.map(|(random, url, [enlisted, closing, settled], line)| Parent { id: id(random), url: Arc::from(url), enlisted, closing, settled, line });
        let origin = origin.map(CallId::from_bytes);
        State::Lra(Box::new(Lra { id: id(random), origin, client: Arc::from(client), base: Arc::from(base), status, started, deadline, ended, parent, participants, next_callee, left, forgotten, kept: kept.map(Box::new) }))
    }
}

prop_compose! {
    fn request()(method in proptest::sample::select(vec![http::Method::POST, http::Method::DELETE]), url: String, content_type: Option<String>, body: Vec<u8>) -> Arc<StepRequest> {
        Arc::new(StepRequest { method, url, content_type, body: body.into() })
    }
}

prop_compose! {
    fn step()(name: String, action in request(), compensation in proptest::option::of(request()), status in word::<StepStatus>(), line in line(), pause_until in proptest::option::of(moment()), still_going: bool)
        -> (PlannedStep, Step) {
        (PlannedStep { name, action, compensation, after: Vec::new() }, Step { status, line, pause_until, still_going })
    }
}

prop_compose! {
    fn saga()(
        random: u64, origin: Option<[u8; 16]>, status in word::<LraStatus>(), started in moment(), deadline in proptest::option::of(moment()), ended in proptest::option::of(moment()),
        steps in proptest::collection::vec(step(), 1..4), why: Option<String>, forgotten: bool,
    ) -> State {
        let (mut planned, steps): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
        for (at, step) in planned.iter_mut().enumerate() {
            step.after = (0..at).collect();
        }
        let plan = Arc::new(Plan::of_planned(planned).unwrap());
        State::Saga(Box::new(Saga { id: id(random), origin: origin.map(CallId::from_bytes), status, started, deadline, ended, plan, steps, why, forgotten }))
    }
}

proptest! {
    #[test]
    fn every_state_and_back(state in prop_oneof![lra(), saga()], epoch: u64, version: u64, trace in proptest::option::of((1..=u128::MAX, 1..=u64::MAX, any::<bool>()))) {
        let trace = trace.map(|(trace, span, sampled)| Context { trace, span, sampled });
        let entry = Entry::State(Box::new(Record { epoch: Offset::new(epoch), version: Version::new(version), state, trace }));
        prop_assert_eq!(Entry::decode(entry.encode()), Ok(entry));
    }

    #[test]
    fn no_bytes_panic(key: Vec<u8>, value: Option<Vec<u8>>) {
        let _ = Entry::decode(LogRecord { key: key.into(), value: value.map(Into::into) });
    }
}

#[test]
fn fences_and_tombstones_and_back() {
    for entry in [Entry::Fence(InstanceId::from_bytes([7; 16])), Entry::Removed(id(5))] {
        assert_eq!(Entry::decode(entry.encode()), Ok(entry));
    }
}

fn a_record(epoch: u64, version: u64) -> Record {
    let lra = Lra {
        id: id(1),
        origin: None,
        client: Arc::from(""),
        base: Arc::from(""),
        status: LraStatus::Active,
        started: Timestamp::default(),
        deadline: None,
        ended: None,
        parent: None,
        participants: Vec::new(),
        next_callee: 0,
        left: Vec::new(),
        forgotten: false,
        kept: None,
    };
    Record { epoch: Offset::new(epoch), version: Version::new(version), state: State::Lra(Box::new(lra)), trace: None }
}

#[test]
fn a_trace_that_is_none_makes_no_record_unreadable() {
    let record = a_record(1, 1);
    for text in ["", "00", "00-00000000000000000000000000000000-b7ad6b7169203331-01", &"x".repeat(1_000)] {
        let mut entry = proto::Entry::from(&record);
        entry.trace = Some(text.to_owned());
        let log = LogRecord::keyed(record.state.id().key().into(), prost::Message::encode_to_vec(&entry).into());
        assert_eq!(Entry::decode(log), Ok(Entry::State(Box::new(record.clone()))), "{text}");
    }
}

/// As the version wrote them that kept no outcomes, byte for byte.
#[test]
fn a_record_of_before_outcomes_were_kept_is_read_and_keeps_none() {
    let mut lra = vec![0x0a, 34];
    lra.extend_from_slice(id(1).key().as_bytes());
    // client, status 1 (active), started 77, next callee 2, not forgotten, base.
    lra.extend_from_slice(b"\x1a\x04trip\x20\x01\x28\x4d\x50\x02\x6a\x08http://x");
    let mut entry = vec![0x12, u8::try_from(lra.len()).unwrap()];
    entry.extend_from_slice(&lra);
    entry.extend_from_slice(b"\x20\x05\x28\x03");
    let read = Entry::decode(LogRecord::keyed(id(1).key().into(), entry.into())).unwrap();
    let Entry::State(record) = read else { panic!("{read:?}") };
    let State::Lra(lra) = record.state else { panic!("no LRA") };
    assert_eq!((record.epoch, record.version), (Offset::new(5), Version::new(3)));
    assert_eq!((&*lra.client, lra.started, lra.next_callee, &*lra.base, lra.kept), ("trip", Timestamp::from_millis(77), 2, "http://x", None));
}

#[test]
fn what_is_none_of_the_topic_is_refused() {
    let record = Entry::State(Box::new(a_record(1, 1))).encode();
    let cases = [
        LogRecord { key: id(2).key().into(), ..record.clone() },
        LogRecord { value: Some(Bytes::new()), ..record.clone() },
        LogRecord { value: Some(Bytes::from_static(b"\xff\xff")), ..record },
        LogRecord { key: Bytes::from_static(b"fence"), value: None },
    ];
    for case in cases {
        assert!(Entry::decode(case.clone()).is_err(), "{case:?}");
    }
}

#[test]
fn the_highest_epoch_counts_and_then_the_highest_version() {
    let ordered = [a_record(1, 9), a_record(2, 1), a_record(2, 2)];
    for (at, one) in ordered.iter().enumerate() {
        for (other_at, other) in ordered.iter().enumerate() {
            assert_eq!(one.supersedes(other), at > other_at);
        }
    }
}

/// Numbers are for good, and 0 is none.
#[test]
fn words_have_different_numbers() {
    fn check<W: Word + std::fmt::Debug>() {
        let mut numbers: Vec<u32> = W::WORDS.iter().map(|word| word.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=u32::try_from(W::WORDS.len()).unwrap()).collect::<Vec<_>>());
        assert!(W::numbered(0).is_err() && W::numbered(99).is_err());
    }
    check::<LraStatus>();
    check::<ParticipantStatus>();
    check::<StepStatus>();
    check::<Phase>();
}

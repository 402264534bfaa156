use super::*;
use crate::effect::Answer;
use crate::saga::SagaRequest;
use crate::transaction::Request;
use crate::wire::status::LraStatus;

const FAR: Timestamp = Timestamp::from_millis(u64::MAX);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn id(random: u64) -> TransactionId {
    TransactionId::new(0, at(1), None, random)
}

/// A log with owners that read it.
#[derive(Default)]
struct Log(Vec<Entry>);

struct Owner {
    partition: Partition,
    position: usize,
    out: Vec<Out>,
}

impl Owner {
    fn new(number: u8) -> Self {
        let mut out = Vec::new();
        let partition = Partition::new(Arc::new(Rules::default()), InstanceId::from_bytes([number; 16]), &mut out);
        Self { partition, position: 0, out }
    }

    /// Appends what it has to append.
    fn append(&mut self, log: &mut Log) -> usize {
        let before = log.0.len();
        self.out.retain(|out| match out {
            Out::Append(entry) => {
                log.0.push(entry.clone());
                false
            }
            _ => true,
        });
        log.0.len() - before
    }

    fn read(&mut self, log: &Log) {
        while let Some(entry) = log.0.get(self.position) {
            let offset = Offset::new(u64::try_from(self.position).unwrap());
            self.position += 1;
            self.partition.read(at(10), offset, entry.clone(), &mut self.out);
        }
    }

    /// Until nothing is left to be appended.
    fn run(&mut self, log: &mut Log) {
        loop {
            self.read(log);
            if self.append(log) == 0 {
                break;
            }
        }
    }

    fn start(&mut self, request: u64, random: u64, origin: Option<u8>) {
        let origin = origin.map(|byte| CallId::from_bytes([byte; 16]));
        let start = Start { id: id(random), origin, client: Arc::from(""), base: Arc::from("http://txmgr/lra-coordinator"), limit: None, parent: None };
        self.partition.start(at(10), RequestId(request), start, &mut self.out).unwrap();
    }

    fn ask(&mut self, request: u64, random: u64, what: Request) -> Result<(), NoAnswer> {
        self.partition.request(at(10), RequestId(request), id(random), Ask::Lra(what), &mut self.out)
    }

    fn answer(&self, number: u64) -> Option<Answer> {
        self.out.iter().find_map(|out| match out {
            Out::Do(Effect::Answer(RequestId(request), answer)) if *request == number => Some(answer.clone()),
            _ => None,
        })
    }

    fn is_lost(&self) -> bool {
        self.out.contains(&Out::Lost)
    }

    fn statuses(&self) -> Vec<LraStatus> {
        self.partition.transactions().map(|state| if let StateRef::Lra(lra) = state { lra.status } else { panic!("a saga") }).collect()
    }
}

fn serving(log: &mut Log, number: u8) -> Owner {
    let mut owner = Owner::new(number);
    owner.run(log);
    assert!(owner.partition.is_serving());
    owner
}

#[test]
fn it_serves_when_it_has_read_its_fence_back_and_not_before() {
    let mut log = Log::default();
    let mut owner = Owner::new(1);
    assert_eq!(owner.ask(1, 1, Request::Status), Err(NoAnswer::NotServing(NotServing)));
    owner.run(&mut log);
    assert!(owner.out.contains(&Out::Serving));
    assert_eq!(owner.ask(1, 1, Request::Status), Err(NoAnswer::Absent(id(1))));
}

#[test]
fn what_an_owner_has_appended_counts_when_it_has_read_it_and_not_when_it_was_acknowledged() {
    let mut log = Log::default();
    let mut owner = serving(&mut log, 1);
    owner.start(1, 1, None);
    assert_eq!(owner.append(&mut log), 1);
    assert_eq!(owner.answer(1), None);
    owner.read(&log);
    assert_eq!(owner.answer(1), Some(Answer::Started(id(1))));
}

#[test]
fn a_zombie_reads_the_fence_before_what_it_has_appended_after_it() {
    let mut log = Log::default();
    let mut zombie = serving(&mut log, 1);
    zombie.start(1, 1, None);
    zombie.run(&mut log);
    zombie.ask(2, 1, Request::Close(FAR)).unwrap();
    let mut owner = serving(&mut log, 2);
    assert_eq!(owner.statuses(), [LraStatus::Active]);
    zombie.append(&mut log);
    zombie.read(&log);
    assert!(zombie.is_lost() && zombie.answer(2).is_none());
    assert_eq!(zombie.ask(3, 1, Request::Status), Err(NoAnswer::NotServing(NotServing)));
    owner.read(&log);
    assert_eq!(owner.append(&mut log), 1, "it writes the present state again, so that it is the last");
    let mut third = serving(&mut log, 3);
    assert_eq!(third.statuses(), [LraStatus::Active]);
    third.run(&mut log);
    assert_eq!(third.append(&mut log), 0, "nothing is left to be healed");
}

#[test]
fn what_a_zombie_wrote_last_is_healed_by_whoever_comes_next() {
    let mut log = Log::default();
    let mut zombie = serving(&mut log, 1);
    zombie.start(1, 1, None);
    zombie.run(&mut log);
    zombie.ask(2, 1, Request::Close(FAR)).unwrap();
    drop(serving(&mut log, 2));
    zombie.append(&mut log);
    let third = serving(&mut log, 3);
    assert_eq!(third.statuses(), [LraStatus::Active]);
    let Some(Entry::State(last)) = log.0.last() else { panic!("no record") };
    assert_eq!(last.epoch, Offset::new(4), "the third one's");
}

#[test]
fn what_was_removed_stays_so_whatever_a_zombie_writes() {
    let mut log = Log::default();
    let mut zombie = serving(&mut log, 1);
    zombie.start(1, 1, None);
    zombie.run(&mut log);
    zombie.ask(2, 1, Request::Renew(Some(std::time::Duration::from_secs(9)))).unwrap();
    let mut owner = serving(&mut log, 2);
    owner.ask(1, 1, Request::Cancel(FAR)).unwrap();
    owner.run(&mut log);
    owner.partition.tick(at(10 + 86_400_000), &mut owner.out);
    owner.run(&mut log);
    assert_eq!((owner.partition.transactions().count(), log.0.last()), (0, Some(&Entry::Removed(id(1)))));
    zombie.append(&mut log);
    owner.run(&mut log);
    assert_eq!(log.0.last(), Some(&Entry::Removed(id(1))));
    assert_eq!(owner.partition.wakes_at(), None);
}

/// A call that is delivered again must not begin a second transaction, which nobody would ever end.
#[test]
fn a_call_that_comes_again_has_begun_what_it_began() {
    let mut log = Log::default();
    let mut owner = serving(&mut log, 1);
    owner.start(1, 1, Some(7));
    owner.run(&mut log);
    owner.start(2, 2, Some(7));
    owner.start(3, 3, Some(8));
    owner.run(&mut log);
    assert_eq!((owner.answer(2), owner.answer(3)), (Some(Answer::Started(id(1))), Some(Answer::Started(id(3)))));
    let mut next = serving(&mut log, 2);
    next.start(4, 4, Some(7));
    next.run(&mut log);
    assert_eq!(next.answer(4), Some(Answer::Started(id(1))), "so it is with the next owner");
}

#[test]
fn a_tombstone_of_a_zombie_whose_clock_is_ahead_takes_nothing_away() {
    let mut log = Log::default();
    let mut owner = serving(&mut log, 1);
    owner.start(1, 1, None);
    owner.ask(2, 1, Request::Close(FAR)).unwrap();
    owner.run(&mut log);
    log.0.push(Entry::Removed(id(1)));
    owner.run(&mut log);
    assert_eq!(serving(&mut log, 2).statuses(), [LraStatus::Closed]);
}

#[test]
fn timers_are_those_of_the_earliest() {
    let mut log = Log::default();
    let mut owner = serving(&mut log, 1);
    for (random, seconds) in [(1, 9), (2, 5), (3, 7)] {
        owner.start(random, random, None);
        owner.ask(10 + random, random, Request::Renew(Some(std::time::Duration::from_secs(seconds)))).unwrap();
    }
    owner.run(&mut log);
    assert_eq!(owner.partition.wakes_at(), Some(at(5_010)));
    owner.partition.tick(at(7_010), &mut owner.out);
    owner.run(&mut log);
    assert_eq!(owner.statuses(), [LraStatus::Active, LraStatus::Cancelled, LraStatus::Cancelled]);
    assert_eq!(owner.partition.wakes_at(), Some(at(9_010)));
}

#[test]
fn a_saga_is_no_lra() {
    let mut log = Log::default();
    let mut owner = serving(&mut log, 1);
    owner.start(1, 1, None);
    owner.partition.request(at(10), RequestId(2), id(1), Ask::Saga(SagaRequest::Read), &mut owner.out).unwrap();
    owner.run(&mut log);
    assert_eq!(owner.answer(2), Some(Answer::Refused(Refusal::OtherKind(id(1)))));
}

#[test]
fn a_new_owner_goes_on_in_the_trace_of_the_last_request_that_named_one() {
    let trace = |span| Context { trace: 7, span, sampled: true };
    let mut log = Log::default();
    let mut first = serving(&mut log, 1);
    first.partition.asked_in(id(1), trace(1));
    first.start(1, 1, Some(9));
    first.start(2, 2, None);
    first.run(&mut log);
    assert_eq!((first.partition.trace(id(1)), first.partition.trace(id(2))), (Some(trace(1)), None));
    // The decision is written down with the trace of who asked for it; who asks without one changes nothing.
    first.partition.asked_in(id(1), trace(2));
    first.ask(3, 1, Request::Close(FAR)).unwrap();
    first.ask(4, 1, Request::Status).unwrap();
    first.run(&mut log);
    let second = serving(&mut log, 2);
    assert_eq!((second.partition.trace(id(1)), second.partition.trace(id(2))), (Some(trace(2)), None));
}

#[test]
fn no_trace_is_kept_of_what_is_not_there() {
    let mut log = Log::default();
    let mut owner = Owner::new(1);
    let trace = Context { trace: 7, span: 1, sampled: true };
    owner.partition.asked_in(id(1), trace);
    assert_eq!(owner.partition.trace(id(1)), None, "it does not serve yet");
    owner.run(&mut log);
    owner.start(1, 1, Some(9));
    owner.partition.asked_in(id(2), trace);
    owner.start(2, 2, Some(9));
    owner.partition.asked_in(id(3), trace);
    assert!(owner.ask(3, 3, Request::Status).is_err());
    assert_eq!([id(2), id(3)].map(|id| owner.partition.trace(id)), [None, None], "the second call has begun the first one's, and there is no third");
}

#[test]
fn the_oldest_outcomes_are_dropped_where_there_are_too_many() {
    use bluebox_core::ComponentName;
    use bluebox_core::call::MAX_KEPT_OUTCOME_BYTES;

    use crate::transaction::{Kept, OutcomeOf};

    let of = OutcomeOf { call: CallId::from_bytes([1; 16]), replay: 0, component: ComponentName::try_new("trip").unwrap() };
    let (mut log, longest) = (Log::default(), bytes::Bytes::from(vec![0; MAX_KEPT_OUTCOME_BYTES]));
    let mut owner = serving(&mut log, 1);
    let fit = u64::try_from(MAX_KEPT_BYTES / MAX_KEPT_OUTCOME_BYTES).unwrap();
    for number in 1..=fit + 2 {
        owner.start(2 * number, number, None);
        owner.ask(2 * number + 1, number, Request::EndAndKeep(true, FAR, Box::new(Kept::new(of.clone(), longest.clone())))).unwrap();
        owner.run(&mut log);
        assert!(owner.answer(2 * number + 1).is_some());
    }
    let kept = |owner: &Owner| -> Vec<bool> {
        let all = owner.partition.transactions();
        all.map(|state| if let StateRef::Lra(lra) = state { lra.kept.as_ref().unwrap().outcome.is_some() } else { panic!("a saga") }).collect()
    };
    let expected: Vec<bool> = (1..=fit + 2).map(|number| number > 2).collect();
    assert_eq!(kept(&owner), expected);
    // And so it is for the next owner, though their last records have them.
    let next = serving(&mut log, 2);
    assert_eq!(kept(&next), expected);
}

#[test]
fn when_the_clock_goes_back_nobody_waits_for_a_moment_that_was_near() {
    use crate::callback::Outcome;
    use crate::transaction::{Join, Links};

    let mut log = Log::default();
    let mut owner = serving(&mut log, 1);
    owner.start(1, 1, None);
    let links = Links { complete: Some(Arc::from("http://a/complete")), compensate: Some(Arc::from("http://a/undo")), ..Links::default() };
    owner.ask(2, 1, Request::Join(Join { links, limit: None, data: None })).unwrap();
    owner.ask(3, 1, Request::Close(FAR)).unwrap();
    owner.run(&mut log);
    let called = |owner: &mut Owner| owner.out.extract_if(.., |out| matches!(out, Out::Do(Effect::Call(_)))).collect::<Vec<_>>();
    let calls = called(&mut owner);
    let [Out::Do(Effect::Call(callback))] = &calls[..] else { panic!("{calls:?}") };
    owner.partition.outcome(at(9_000_000), callback.key, Outcome::Again("down".to_owned()), &mut owner.out);
    owner.run(&mut log);
    assert!(called(&mut owner).is_empty() && owner.partition.wakes_at() > Some(at(9_000_000)));
    owner.partition.tick(at(1_000), &mut owner.out);
    assert!(called(&mut owner).is_empty(), "no timer is due");
    owner.partition.clock_went_back(at(1_000), &mut owner.out);
    assert_eq!(called(&mut owner).len(), 1);
}

//! What the simulation (`tests/simulation`) has found, each by itself.

use std::sync::Arc;

use bluebox_core::ComponentName;
use bluebox_core::call::{Body, Call, Digest, ReplyAddress, Request};
use bluebox_core::log::Topic;
use bytes::Bytes;

use super::*;

const RULES: Rules = Rules {
    max_attempts: 3,
    max_crashes: Some(3),
    first_backoff: Duration::from_millis(100),
    max_backoff: Duration::from_secs(30),
    drain: Duration::from_secs(30),
    lease: Duration::from_secs(2),
};

fn at(n: u64) -> Offset {
    Offset::new(n)
}

fn time(millis: u64) -> Moment {
    Moment::from_start(Duration::from_millis(millis))
}

fn arrival(origin: u64, lane: Option<&str>, recorded: Option<Digest>) -> Arrival {
    let name = |name| ComponentName::try_new(name).unwrap();
    let id = if recorded.is_some() { CallId::from_bytes([9; 16]) } else { CallId::from_bytes((u128::from(origin) + 1_000).to_be_bytes()) };
    let request = Request {
        method: http::Method::POST,
        target: "/".to_owned(),
        authority: "app".to_owned(),
        headers: http::HeaderMap::new(),
        body: Body::empty(),
        trailers: http::HeaderMap::new(),
    };
    let call = Call {
        id,
        replay: 0,
        caller: name("caller"),
        callee: name("app"),
        ordering_key: lane.map(|lane| Bytes::from(lane.to_owned())),
        reply_to: ReplyAddress { partition: Topic::new("replies").partition(0), position: at(0) },
        ttl: Duration::from_secs(if recorded == Some([2; 32]) { 1 } else { 3_600 }),
        wait: None,
        recorded,
        request,
    };
    Arrival { origin: at(origin), accepted: Timestamp::from_millis(0), age: Duration::ZERO, call: Arc::new(call) }
}

/// A partition that serves, after what its predecessor committed.
fn serving(committed: &(Committed, Committed), epoch: u64, parked: Vec<ParkedArrival>) -> Partition {
    let mut effects = Vec::new();
    let mut partition = Partition::new(time(0), RULES, Some(&committed.0), Some(&committed.1), false, &mut effects);
    partition.fenced(at(epoch), &mut effects);
    let parked_end = effects.iter().find_map(|e| if let Effect::Load { parked_end, .. } = e { *parked_end } else { None }).unwrap_or_default();
    partition.loaded(time(0), Inheritance { parked, parked_end, ..Inheritance::default() }, &mut effects);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Lost(_))), "{effects:?}");
    partition.index_loaded();
    partition
}

/// What a clean owner leaves that has had nothing to do.
fn clean() -> (Committed, Committed) {
    (Mark::default().encode(), Mark { parked_end: Some(at(0)), ..Mark::default() }.encode())
}

/// A clean owner's last commit.
fn hand_over(partition: &mut Partition) -> (Committed, Committed) {
    let mut effects = Vec::new();
    partition.revoke(time(20_000), &mut effects);
    partition.tick(time(20_000), &mut effects);
    assert!(partition.is_handing());
    partition.mark()
}

fn ready(partition: &mut Partition) -> Vec<u64> {
    ready_into(partition, &mut Vec::new())
}

fn ready_into(partition: &mut Partition, effects: &mut Vec<Effect>) -> Vec<u64> {
    let mut index = Recorded::new(10, Duration::from_secs(3_600));
    std::iter::from_fn(|| partition.next_delivery(time(3_000), &mut index, effects)).map(|d| d.origin.get()).collect()
}

fn parked_at(offset: u64, origin: u64, lane: Option<&str>) -> ParkedArrival {
    ParkedArrival { at: at(offset), attempts: 0, may_have_started: false, arrival: arrival(origin, lane, None) }
}

#[test]
fn parked_calls_of_a_lane_keep_their_order_whatever_order_they_were_parked_in() {
    let committed = (clean().0, Mark { parked_end: Some(at(2)), ..Mark::default() }.encode());
    let mut partition = serving(&committed, 9, vec![parked_at(0, 5, Some("lane")), parked_at(1, 3, Some("lane"))]);
    let mut effects = Vec::new();
    for origin in 0..6 {
        partition.skipped(time(0), at(origin), &mut effects);
    }
    assert_eq!(ready(&mut partition), [3]);
}

#[test]
fn a_parked_call_waits_for_those_of_its_lane_that_are_not_parked() {
    let committed = (clean().0, Mark { parked_end: Some(at(1)), ..Mark::default() }.encode());
    let mut partition = serving(&committed, 9, vec![parked_at(0, 5, Some("lane"))]);
    assert_eq!(ready(&mut partition), [0; 0], "what lies before it has not been read");
    let mut effects = Vec::new();
    for origin in 0..6 {
        match origin {
            3 => partition.arrived(time(0), arrival(3, Some("lane"), None), &mut effects),
            _ => partition.skipped(time(0), at(origin), &mut effects),
        }
    }
    assert_eq!(ready(&mut partition), [3]);
}

#[test]
fn a_copy_whose_acknowledgement_was_lost_is_no_second_call() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(0), arrival(0, None, None), &mut effects);
    partition.park(at(0), &mut effects);
    // Two copies came to lie in the log, at 0 and at 1; only the second was acknowledged.
    partition.parked(time(0), at(0), at(1));
    assert_eq!(ready(&mut partition), [0]);
    let outcome = crate::inbound::deliver::refusal(CallId::from_bytes([1; 16]), 0, None, 1, Reason::Answer, "");
    partition.delivery_ended(time(1), at(0), DeliveryEnd::Answered(Box::new(outcome)), 0.0, &mut effects);
    partition.recorded(time(0), at(0), &mut Vec::new());
    let left = hand_over(&mut partition);
    let mark = Mark::decode(&left.1).unwrap();
    assert!(mark.done.is_done(at(0)) && mark.done.is_done(at(1)));
}

#[test]
fn an_app_that_says_not_now_but_at_once_is_given_a_moment() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(0), arrival(0, None, None), &mut effects);
    assert_eq!(ready(&mut partition), [0]);
    let outcome = crate::inbound::deliver::refusal(CallId::from_bytes([1; 16]), 0, None, 1, Reason::Answer, "");
    partition.delivery_ended(time(1_000), at(0), DeliveryEnd::NotNow(Duration::ZERO, Box::new(outcome)), 0.0, &mut effects);
    partition.tick(time(1_099), &mut effects);
    assert!(!partition.has_ready());
    partition.tick(time(1_100), &mut effects);
    assert_eq!(ready(&mut partition), [0]);
}

#[test]
fn a_copy_that_comes_to_lie_where_a_commit_saw_nothing_is_made_again() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    for origin in 0..2 {
        partition.arrived(time(0), arrival(origin, None, None), &mut effects);
        partition.park(at(origin), &mut effects);
    }
    partition.parked(time(0), at(1), at(1));
    partition.mark();
    // Its acknowledgement comes after a commit has said that only the other lives there.
    partition.parked(time(0), at(0), at(0));
    let mark = Mark::decode(&partition.mark().0).unwrap();
    assert!(!mark.done.is_done(at(0)) && mark.done.is_done(at(1)), "only what the parked partition has counts as parked");
}

#[test]
fn parked_records_that_are_gone_are_an_alarm() {
    let mut effects = Vec::new();
    let parked = Mark { parked_end: Some(at(2)), ..Mark::default() }.encode();
    let mut partition = Partition::new(time(0), RULES, Some(&clean().0), Some(&parked), true, &mut effects);
    partition.fenced(at(9), &mut effects);
    let parked = vec![parked_at(1, 3, None)];
    partition.loaded(time(0), Inheritance { parked, parked_end: at(2), ..Inheritance::default() }, &mut effects);
    assert!(effects.contains(&Effect::Lost(1)), "{effects:?}");
}

#[test]
fn who_hands_over_suspects_does_not_end_the_row_of_unclean_owners() {
    let crashed = Mark { suspects: Suspects::Any, unclean_owners: 1, ..Mark::default() }.encode();
    let mut second = serving(&(crashed, clean().1), 9, Vec::new());
    let mut effects = Vec::new();
    second.arrived(time(0), arrival(0, None, None), &mut effects);
    for other in 1..10 {
        second.skipped(time(0), at(other), &mut effects);
    }
    // Asked for before it has looked for the outcome.
    let left = hand_over(&mut second);
    let mut third = serving(&left, 20, Vec::new());
    third.arrived(time(200), arrival(0, None, None), &mut effects);
    let Some(Effect::Search(suspects)) = effects.pop() else { panic!("{effects:?}") };
    third.searched(time(200), &suspects, &Findings::default(), &mut effects);
    let delivery = third.next_delivery(time(200), &mut Recorded::new(1, Duration::ZERO), &mut effects).unwrap();
    assert!(delivery.solo);
}

#[test]
fn an_app_that_no_call_kills_gets_what_its_dead_predecessors_had_beside_the_rest() {
    let crashed = (Mark { suspects: Suspects::Any, unclean_owners: 5, crashes: BTreeMap::from([(at(1), 3)]), ..Mark::default() }.encode(), clean().1);
    let mut effects = Vec::new();
    let mut partition = Partition::new(time(0), Rules { max_crashes: None, ..RULES }, Some(&crashed.0), Some(&crashed.1), false, &mut effects);
    partition.fenced(at(2), &mut effects);
    partition.loaded(time(0), Inheritance::default(), &mut effects);
    partition.index_loaded();
    for origin in 0..2 {
        partition.arrived(time(2_000), arrival(origin, None, None), &mut effects);
    }
    partition.tick(time(2_200), &mut effects);
    let suspects = suspects_of(&effects);
    partition.searched(time(2_200), &suspects, &Findings::default(), &mut effects);
    let mut next =
        || partition.next_delivery(time(2_200), &mut Recorded::new(1, Duration::ZERO), &mut effects).map(|delivery| (delivery.origin, delivery.solo));
    assert_eq!([next(), next()], [Some((at(0), false)), Some((at(1), false))]);
}

#[test]
fn what_was_inherited_and_not_read_is_handed_on() {
    let left = Mark { suspects: Suspects::Only(vec![at(3), at(7)]), attempts: BTreeMap::from([(at(3), 2), (at(7), 1)]), ..Mark::default() }.encode();
    let mut second = serving(&(left, clean().1), 9, Vec::new());
    let mut effects = Vec::new();
    for first in 0..3 {
        second.skipped(time(0), at(first), &mut effects);
    }
    second.arrived(time(0), arrival(3, None, None), &mut effects);
    // Asked for before it has come to the call at 7.
    let left = Mark::decode(&hand_over(&mut second).0).unwrap();
    assert_eq!(left.suspects, Suspects::Only(vec![at(3), at(7)]));
    assert_eq!(left.attempts, BTreeMap::from([(at(3), 2), (at(7), 1)]));
}

#[test]
fn nothing_is_released_before_zombies_of_the_former_owner_are_harmless() {
    let crashed = (Mark { suspects: Suspects::Any, ..Mark::default() }.encode(), clean().1);
    let mut effects = Vec::new();
    let mut fencing = Partition::new(time(0), RULES, Some(&crashed.0), Some(&crashed.1), false, &mut effects);
    let mut serving = serving(&crashed, 0, Vec::new());
    for partition in [&mut fencing, &mut serving] {
        effects.clear();
        partition.revoke(time(10), &mut effects);
        partition.tick(time(1_999), &mut effects);
        assert!(!partition.is_handing() && effects.is_empty(), "{effects:?}");
        assert_eq!(partition.next_timer(time(10)), Some(time(2_000)));
        partition.tick(time(2_000), &mut effects);
        assert!(partition.is_handing() || effects == [Effect::Release]);
    }
}

#[test]
fn suspects_are_searched_for_though_more_could_be_read() {
    // A box whose memory is full asks for no more records until some calls have ended.
    let crashed = (Mark { suspects: Suspects::Any, ..Mark::default() }.encode(), clean().1);
    let mut partition = serving(&crashed, 1_000, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(2_000), arrival(0, None, None), &mut effects);
    partition.tick(time(2_050), &mut effects);
    assert_eq!(effects, []);
    assert_eq!(partition.next_timer(time(2_050)), Some(time(2_100)));
    partition.tick(time(2_100), &mut effects);
    assert!(matches!(effects.as_slice(), [Effect::Search(_)]), "{effects:?}");
}

#[test]
fn a_retry_does_not_end_before_the_call_that_it_repeats() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(0), arrival(0, None, Some([1; 32])), &mut effects);
    partition.arrived(time(0), arrival(1, None, Some([2; 32])), &mut effects);
    assert_eq!(ready(&mut partition), [0]);
    effects.clear();
    // Its deadline passes, and it is cancelled.
    partition.tick(time(1_000), &mut effects);
    partition.cancel(Cancel { at: at(0), origin: at(1), id: CallId::from_bytes([9; 16]) }, &mut effects);
    assert_eq!(effects, []);
    let end = DeliveryEnd::Failed("reset".to_owned());
    for attempt in 1..=3 {
        partition.delivery_ended(time(1_000), at(0), end.clone(), 0.0, &mut effects);
        partition.tick(time(attempt * 10_000), &mut effects);
        ready_into(&mut partition, &mut effects);
    }
    assert!(matches!(effects.as_slice(), [Effect::Record(Ending { verdict: Verdict::DeadLetter { reason: Reason::Attempts, .. }, .. })]), "{effects:?}");
    partition.recorded(time(0), at(0), &mut Vec::new());
    let mut index = Recorded::new(1, Duration::from_secs(3_600));
    index.insert(0, Timestamp::default(), CallId::from_bytes([9; 16]), [2; 32], Topic::new("replies").partition(0), at(7));
    effects.clear();
    assert_eq!(partition.next_delivery(time(50_000), &mut index, &mut effects), None);
    assert!(matches!(effects.as_slice(), [Effect::Record(Ending { verdict: Verdict::Known { .. }, .. })]), "{effects:?}");
}

#[test]
fn nothing_is_kept_of_a_call_that_has_ended() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(0), arrival(0, Some("lane"), None), &mut effects);
    assert_eq!(partition.next_timer(time(0)), Some(time(3_600_000)), "its deadline");
    let id = arrival(0, None, None).call.id;
    partition.cancel(Cancel { at: at(0), origin: at(0), id }, &mut effects);
    assert_eq!(cancelled(&effects), [0]);
    partition.recorded(time(0), at(0), &mut effects);
    assert_eq!((partition.held_calls(), partition.next_timer(time(0))), (0, None));
}

#[test]
fn a_refusal_that_is_found_is_no_end_for_the_index() {
    let crashed = (Mark { suspects: Suspects::Any, ..Mark::default() }.encode(), clean().1);
    let mut partition = serving(&crashed, 1, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(2_000), arrival(0, None, Some([1; 32])), &mut effects);
    let Some(Effect::Search(suspects)) = effects.pop() else { panic!("{effects:?}") };
    let found = Found { partition: Topic::new("replies").partition(0), offset: at(4), refused: true };
    partition.searched(time(2_000), &suspects, &Findings { found: [(at(0), found)].into(), ends: Vec::new() }, &mut effects);
    assert!(matches!(effects.as_slice(), [Effect::Suppressed(_)]), "{effects:?}");
    assert_eq!(partition.held_calls(), 0);
}

#[test]
fn nothing_ends_and_nothing_begins_once_the_last_commit_is_on_its_way() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(0), arrival(0, None, None), &mut effects);
    hand_over(&mut partition);
    partition.tick(time(3_600_000), &mut effects);
    let id = arrival(0, None, None).call.id;
    partition.cancel(Cancel { at: at(0), origin: at(0), id }, &mut effects);
    assert_eq!(effects, []);
}

/// What a partition records a call with.
fn cancelled(effects: &[Effect]) -> Vec<u64> {
    let cancelled =
        |e: &Effect| if let Effect::Record(Ending { origin, verdict: Verdict::Refused(Reason::Cancelled), .. }) = e { Some(origin.get()) } else { None };
    effects.iter().filter_map(cancelled).collect()
}

#[test]
fn a_cancel_that_comes_before_its_call_is_read_ends_it_when_its_turn_comes() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let (first, second) = (arrival(0, None, None), arrival(1, None, None));
    let mut effects = Vec::new();
    assert!(partition.cancel(Cancel { at: at(4), origin: at(1), id: second.call.id }, &mut effects));
    partition.control_read(at(4));
    partition.control_read(at(5));
    assert_eq!(Mark::decode(&partition.mark().0).unwrap().control_from, at(4), "the next owner must find it, too");
    partition.arrived(time(0), first, &mut effects);
    partition.arrived(time(0), second, &mut effects);
    assert_eq!(ready_into(&mut partition, &mut effects), [0]);
    assert_eq!(cancelled(&effects), [1]);
    assert_eq!(Mark::decode(&partition.mark().0).unwrap().control_from, at(4), "its end is not durable");
    partition.recorded(time(0), at(1), &mut Vec::new());
    assert_eq!(Mark::decode(&partition.mark().0).unwrap().control_from, at(6), "it was carried out");
    assert!(!partition.cancel(Cancel { at: at(6), origin: at(1), id: CallId::random() }, &mut effects), "it has ended");
}

#[test]
fn an_owner_carries_out_the_cancels_that_it_inherits_before_it_delivers() {
    let (mut effects, parked) = (Vec::new(), parked_at(0, 3, None));
    let left = Mark { parked_end: Some(at(1)), ..Mark::default() }.encode();
    let mut partition = Partition::new(time(0), RULES, Some(&clean().0), Some(&left), true, &mut effects);
    partition.fenced(at(9), &mut effects);
    let unread = arrival(4, None, None);
    let cancels = vec![Cancel { at: at(7), origin: at(3), id: parked.arrival.call.id }, Cancel { at: at(8), origin: at(4), id: unread.call.id }];
    partition.loaded(time(0), Inheritance { parked: vec![parked], parked_end: at(1), cancels, control_end: at(9) }, &mut effects);
    assert_eq!(cancelled(&effects), [3]);
    partition.arrived(time(0), unread, &mut effects);
    assert_eq!(ready_into(&mut partition, &mut effects), [0; 0]);
    assert_eq!(cancelled(&effects), [3, 4]);
}

#[test]
fn where_nobody_ever_committed_only_an_old_fence_says_that_a_call_may_have_started() {
    for (age, may_have_started) in [(COMMITS_KEPT, true), (Duration::from_secs(1), false)] {
        let mut effects = Vec::new();
        let mut partition = Partition::new(time(0), RULES, None, None, true, &mut effects);
        partition.fenced(at(9), &mut effects);
        partition.loaded(time(0), Inheritance::default(), &mut effects);
        partition.arrived(time(0), arrival(0, None, None), &mut effects);
        assert!(!partition.fence_read(time(0), at(1), age, &mut effects), "it is older than ours");
        partition.tick(time(1_000), &mut effects);
        let Some(Effect::Search(suspects)) = effects.pop() else { panic!("{effects:?}") };
        partition.searched(time(1_000), &suspects, &Findings::default(), &mut effects);
        let delivery = partition.next_delivery(time(1_000), &mut Recorded::new(1, Duration::from_secs(60)), &mut effects);
        assert_eq!(delivery.map(|d| d.may_have_started), Some(may_have_started), "{age:?}");
    }
}

#[test]
fn suspects_that_were_handed_on_and_not_read_are_handed_on_again() {
    let left = (Mark { suspects: Suspects::Only(vec![at(0), at(2)]), ..Mark::default() }.encode(), clean().1);
    let mut partition = serving(&left, 9, Vec::new());
    partition.arrived(time(0), arrival(0, None, None), &mut Vec::new());
    let (calls, _) = hand_over(&mut partition);
    assert_eq!(Mark::decode(&calls).unwrap().suspects, Suspects::Only(vec![at(0), at(2)]));
}

#[test]
fn cancels_of_calls_that_never_come_are_bounded() {
    let mut partition = serving(&clean(), 9, Vec::new());
    let mut effects = Vec::new();
    for n in (0..2 * MAX_CANCELS as u64).rev() {
        partition.cancel(Cancel { at: at(n), origin: at(n), id: arrival(n, None, None).call.id }, &mut effects);
    }
    for n in [0, MAX_CANCELS as u64 - 1, MAX_CANCELS as u64] {
        partition.skipped(time(0), at(n.saturating_sub(1)), &mut effects);
        partition.arrived(time(0), arrival(n, None, None), &mut effects);
    }
    assert_eq!(ready(&mut partition), [MAX_CANCELS as u64], "those that come first are remembered");
}

#[test]
fn a_solo_delivery_that_was_only_announced_is_not_begun_by_a_commit_after_the_revocation() {
    let crashed = (Mark { suspects: Suspects::Any, unclean_owners: 1, ..Mark::default() }.encode(), clean().1);
    let mut partition = serving(&crashed, 1, Vec::new());
    let mut effects = Vec::new();
    partition.arrived(time(2_000), arrival(0, None, None), &mut effects);
    let Some(Effect::Search(suspects)) = effects.pop() else { panic!("{effects:?}") };
    partition.searched(time(2_000), &suspects, &Findings::default(), &mut effects);
    assert_eq!(ready(&mut partition), [0]);
    let (calls, _) = hand_over(&mut partition);
    assert!(!partition.announced(at(0)));
    let mark = Mark::decode(&calls).unwrap();
    assert!(mark.crashes.is_empty(), "nothing was begun");
    assert_eq!(mark.suspects, Suspects::Only(vec![at(0)]));
}

/// What a box looks for when it has the partition again, and what it delivers, while these are still being recorded.
fn again(recording: &[u64]) -> Partition {
    let mut effects = Vec::new();
    let (calls, parked) = (Mark { suspects: Suspects::Any, ..Mark::default() }.encode(), clean().1);
    let mut partition = Partition::new(time(0), RULES, Some(&calls), Some(&parked), true, &mut effects);
    partition.still_recording(recording.iter().copied().map(at));
    partition.fenced(at(9), &mut effects);
    partition.loaded(time(0), Inheritance::default(), &mut effects);
    partition.index_loaded();
    partition
}

fn looked_for(effects: &[Effect]) -> Vec<Vec<u64>> {
    let searches = effects.iter().filter_map(|e| if let Effect::Search(suspects) = e { Some(suspects) } else { None });
    searches.map(|suspects| suspects.iter().map(|s| s.origin.get()).collect()).collect()
}

fn suspects_of(effects: &[Effect]) -> Vec<Suspect> {
    effects.iter().rev().find_map(|e| if let Effect::Search(suspects) = e { Some(suspects.clone()) } else { None }).unwrap_or_default()
}

fn found(origin: u64) -> Findings {
    let found = Found { partition: Topic::new("replies").partition(0), offset: at(70), refused: false };
    Findings { found: [(at(origin), found)].into(), ends: vec![(Topic::new("replies").partition(0), at(71))] }
}

#[test]
fn what_this_box_is_still_recording_is_looked_for_when_that_has_ended() {
    let (mut partition, mut effects) = (again(&[3]), Vec::new());
    for origin in 0..9 {
        match origin {
            3 => partition.arrived(time(0), arrival(3, Some("lane"), None), &mut effects),
            4 => partition.arrived(time(0), arrival(4, Some("lane"), None), &mut effects),
            5 => partition.arrived(time(0), arrival(5, None, None), &mut effects),
            _ => partition.skipped(time(0), at(origin), &mut effects),
        }
    }
    assert_eq!(looked_for(&effects), [[4, 5]], "the others need not wait");
    partition.searched(
        time(100),
        &suspects_of(&effects),
        &Findings { ends: vec![(Topic::new("replies").partition(0), at(60))], ..Findings::default() },
        &mut effects,
    );
    assert_eq!(ready(&mut partition), [5], "its lane waits for it");
    let notes = Mark::decode(&partition.mark().0).unwrap().searched;
    assert_eq!(notes, [], "a note would hide what comes before its end");
    effects.clear();
    partition.recorded(time(200), at(3), &mut effects);
    assert_eq!(looked_for(&effects), [[3]]);
    partition.searched(time(300), &suspects_of(&effects), &found(3), &mut effects);
    assert_eq!(ready(&mut partition), [4]);
}

#[test]
fn an_end_that_is_recorded_before_its_call_is_read_again_is_looked_for_with_the_others() {
    let (mut partition, mut effects) = (again(&[3]), Vec::new());
    partition.recorded(time(0), at(3), &mut effects);
    for origin in 0..9 {
        match origin {
            3 => partition.arrived(time(0), arrival(3, None, None), &mut effects),
            _ => partition.skipped(time(0), at(origin), &mut effects),
        }
    }
    assert_eq!(looked_for(&effects), [[3]]);
}

#[test]
fn a_handover_waits_for_what_this_box_is_still_recording_and_else_hands_it_on() {
    let (mut partition, mut effects) = (again(&[3]), Vec::new());
    partition.arrived(time(0), arrival(3, None, None), &mut effects);
    partition.revoke(time(1_000), &mut effects);
    partition.tick(time(1_000), &mut effects);
    assert!(!partition.is_handing());
    partition.tick(time(31_000), &mut effects);
    assert!(partition.is_handing());
    assert_eq!(Mark::decode(&partition.mark().0).unwrap().suspects, Suspects::Any, "not all was read");

    let (mut partition, mut effects) = (again(&[3]), Vec::new());
    for origin in 0..9 {
        match origin {
            3 => partition.arrived(time(0), arrival(3, None, None), &mut effects),
            _ => partition.skipped(time(0), at(origin), &mut effects),
        }
    }
    partition.revoke(time(1_000), &mut effects);
    partition.recorded(time(1_000), at(3), &mut effects);
    partition.tick(time(1_000), &mut effects);
    assert!(partition.is_handing());
    assert_eq!(Mark::decode(&partition.mark().0).unwrap().suspects, Suspects::only(vec![at(3)]));
}

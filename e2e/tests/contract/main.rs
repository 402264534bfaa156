//! The contract, sentence by sentence, with real processes, on the embedded log and on a real Kafka.
//!
//! A test knows of Bluebox what its user knows. The names below are the table of contents; they run with `scripts/kafka run -- cargo test -p bluebox-e2e`, and without
//! `scripts/kafka` on the embedded log alone.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "tests: one that can't go on ends, and each is named by what it shows")]

mod answers;
mod clients;
mod common;
mod crashes;
mod dead_letters;
mod duplicates;
mod order;
mod recorded;
mod refused;
mod stateful;
mod waits;

/// Runs every test on every log.
macro_rules! contract {
    ($($module:ident: [$($(#[$attribute:meta])* $test:ident),* $(,)?]);* $(;)?) => {
        contract!(@log embedded Embedded $($module [$($(#[$attribute])* $test)*])*);
        contract!(@log kafka Kafka $($module [$($(#[$attribute])* $test)*])*);
    };
    (@log $name:ident $log:ident $($module:ident [$($(#[$attribute:meta])* $test:ident)*])*) => {
        mod $name {
            $(mod $module {
                $($(#[$attribute])*
                #[test]
                fn $test() {
                    bluebox_e2e::run(bluebox_e2e::LogKind::$log, stringify!($test), crate::$module::$test);
                })*
            })*
        }
    };
}

contract! {
    answers: [
        any_complete_response_goes_back_verbatim_and_ends_the_call,
        the_request_arrives_as_it_was_sent,
        head_gets_the_head_alone,
        retry_on_adds_statuses,
        a_connection_that_breaks_is_a_failed_attempt,
        too_many_failed_attempts_make_a_dead_letter_and_502,
        an_app_that_does_not_answer_in_time_failed_the_attempt,
        the_attempt_timeout_is_never_below_the_wait,
        a_503_with_retry_after_is_not_now_and_no_attempt,
        not_now_becomes_the_outcome_when_the_wait_ends_first,
        an_answer_over_the_limit_ends_the_call_with_a_recorded_502,
        an_event_stream_ends_the_call_with_a_recorded_502,
        an_answer_with_too_many_fields_ends_the_call_with_a_recorded_502,
        an_answer_that_never_ends_ends_the_call_with_a_recorded_502,
        large_bodies_arrive_bit_for_bit_both_ways,
        a_body_over_the_limit_is_413,
        the_limit_of_a_body_can_be_configured,
        nobody_but_an_app_says_404,
    ];
    waits: [
        no_outcome_within_the_wait_is_504_and_the_outcome_comes_later,
        the_wait_can_be_configured,
        after_504_the_key_finds_the_outcome,
        a_caller_that_hangs_up_does_not_end_the_call,
        where_it_is_wanted_a_caller_that_hangs_up_cancels,
        a_call_that_is_cancelled_before_anybody_took_it_is_never_begun,
        old_reads_are_not_replayed,
        the_deadline_makes_a_dead_letter,
    ];
    refused: [
        with_the_log_away_503_within_a_second_and_it_works_again_after,
        without_a_log_from_the_start_the_proxy_runs_and_says_so,
    ];
    recorded: [
        a_retry_joins_the_call_while_it_runs_from_another_replica_too,
        a_retry_after_the_end_gets_the_outcome,
        a_retry_finds_the_call_of_a_caller_that_was_killed,
        a_key_with_another_request_is_422,
        at_a_gateway_authorization_and_cookie_count,
        two_callers_and_two_callees_share_no_key,
        respond_async_says_202_with_a_location_that_tells_how_it_ends,
        respond_async_with_a_wait_answers_when_it_is_quick_enough,
        accepted_comes_before_the_answer_and_not_before_acceptance,
        a_location_is_asked_for_with_care,
        past_the_retention_it_is_gone,
    ];
    order: [
        one_at_a_time_in_log_order,
        lanes_do_not_hold_each_other_up,
        order_survives_the_death_of_the_box,
        a_parked_lane_keeps_its_order_and_loses_nothing,
        many_lanes_under_load_with_a_crash_in_between,
    ];
    crashes: [
        the_callees_app_dies_while_delivering,
        the_callees_proxy_dies_while_delivering,
        the_callees_box_dies_while_delivering_and_another_takes_over,
        the_callees_box_dies_after_the_answer,
        the_callees_box_is_not_there_when_the_call_is_accepted,
        an_app_that_is_away_costs_no_attempt,
        the_callers_app_dies_while_waiting,
        the_callers_proxy_dies_while_waiting,
        the_callers_proxy_dies_at_any_moment_of_the_append,
        the_log_dies_and_comes_back,
        everything_dies_at_once_and_nothing_accepted_is_lost,
        a_call_that_kills_its_box_becomes_a_dead_letter_and_its_neighbours_do_not,
    ];
    duplicates: [
        a_rolling_restart_under_load_loses_and_duplicates_nothing,
        a_box_that_ends_in_good_order_finishes_what_is_under_way,
        what_outlasts_the_drain_is_delivered_again_and_marked,
        scaling_up_duplicates_nothing,
        a_zombie_begins_no_delivery,
        many_crashes_under_load_lose_nothing,
    ];
    dead_letters: [
        they_can_be_listed_and_replayed,
        who_asks_later_gets_the_outcome_of_the_last_life,
        they_can_be_dropped,
    ];
    stateful: [
        a_call_reaches_exactly_the_ordinal_that_it_names,
        a_key_names_an_ordinal_and_without_one_it_is_any,
        an_ordinal_that_can_never_be_is_400,
        a_call_to_an_ordinal_without_a_box_waits_for_it,
        the_box_of_an_ordinal_dies_while_delivering,
        what_an_ordinal_has_answered_it_is_not_asked_again,
        of_two_processes_with_one_ordinal_the_newer_one_serves_and_the_older_one_ends,
        an_ordinal_that_was_suspended_begins_nothing_after_another_has_taken_over,
        a_rolling_restart_of_ordinals_duplicates_nothing,
        order_within_an_ordinal_survives_its_death,
        a_key_belongs_to_the_ordinal_and_survives_its_death,
        a_call_of_an_ordinal_becomes_a_dead_letter_and_is_replayed_to_it,
        a_caller_that_hangs_up_can_cancel_a_call_to_an_ordinal,
        what_does_not_go_together_ends_with_a_clear_error,
    ];
    clients: [
        curl,
        pythons_urllib,
        an_app_of_the_standard_library,
    ];
}

//! The transaction manager, rule by rule of MicroProfile LRA's wire, with real processes, on the embedded log and on a real Kafka: `scripts/kafka run -- cargo test -p bluebox-e2e --test transactions`.
//!
//! Clients and participants are boxes, and some clients are none. The names below are the table of contents.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "tests: one that can't go on ends, and each is named by what it shows")]

mod crashes;
mod lifecycle;
mod outside;
mod participants;
mod recovery;
mod refused;
mod sagas;
mod scene;

/// Runs every test on every log.
macro_rules! rules {
    ($($module:ident: [$($test:ident),* $(,)?]);* $(;)?) => {
        rules!(@log embedded Embedded $($module [$($test)*])*);
        rules!(@log kafka Kafka $($module [$($test)*])*);
    };
    (@log $name:ident $log:ident $($module:ident [$($test:ident)*])*) => {
        mod $name {
            $(mod $module {
                $(#[test]
                fn $test() {
                    bluebox_e2e::run(bluebox_e2e::LogKind::$log, stringify!($test), crate::$module::$test);
                })*
            })*
        }
    };
}

rules! {
    lifecycle: [
        start_answers_201_with_the_url_in_location_and_body,
        close_completes_all_and_cancel_compensates_in_reverse_order,
        callbacks_go_on_in_the_trace_of_who_asks_for_the_end,
        both_ends_can_be_asked_for_again_and_the_other_one_comes_too_late,
        versions_are_1_0_to_2_0_and_2_0_answers_202_while_it_ends,
        a_time_limit_cancels_and_renew_sets_another,
        status_is_plain_text_or_json_and_lists_can_be_filtered,
        a_nested_one_closes_and_its_parent_can_still_cancel_it,
        a_nested_one_that_has_closed_can_be_cancelled_by_itself,
    ];
    participants: [
        join_by_link_header_or_by_body_and_a_second_join_is_the_first,
        what_a_participant_has_left_last_comes_with_the_end,
        leave_takes_a_participant_out,
        in_progress_is_polled_at_the_status_url,
        a_failure_stays_until_it_is_forgotten,
        nonsense_is_asked_again_until_it_makes_sense,
        who_wants_to_know_is_told_after_the_end_and_then_forget,
        the_recovery_url_reads_and_moves_the_links,
        who_leaves_or_moves_too_late_is_told_so,
        ends_that_are_asked_for_at_once_are_one_end,
        a_participant_that_can_remember_no_further_key_is_waited_for,
    ];
    refused: [
        what_is_not_there_is_404_and_what_is_gone_410,
        joins_that_make_no_sense_are_400,
        nobody_is_called_who_is_no_component_and_not_in_the_allow_list,
        limits_versions_and_methods_are_checked,
        nested_ones_make_no_cycles,
    ];
    outside: [
        a_client_in_no_box_gets_urls_with_the_authority_that_it_used,
        one_that_is_told_to_end_still_answers_who_has_asked_it,
        one_that_takes_no_more_calls_still_passes_on_those_of_its_clients,
        a_plain_url_of_the_allow_list_is_called_directly,
        urls_can_begin_with_a_configured_base,
        the_outcome_that_came_with_an_end_is_told_to_its_component_alone,
    ];
    sagas: [
        steps_run_in_their_order_and_independent_ones_at_once,
        a_business_no_takes_back_what_was_done_and_nothing_else,
        the_same_key_is_the_same_saga,
        still_going_is_asked_again_and_a_deadline_cancels,
        tries_of_a_step_are_shown_and_an_operator_has_it_tried_at_once,
        what_is_no_saga_is_refused,
        who_registered_a_moment_ago_takes_part_at_once,
        a_service_that_hangs_holds_up_those_that_wait_for_it_and_nobody_else,
        a_compensation_waits_until_it_is_known_what_the_action_did,
    ];
    recovery: [
        transactions_and_timers_go_on_after_a_takeover,
        replicas_share_the_partitions_and_a_list_has_all,
        an_operator_lists_retries_and_forgets,
        an_operator_gives_up_on_who_never_answers,
        each_change_of_state_is_a_line_in_the_log_with_the_id,
        what_has_ended_is_answered_for_its_time_and_gone_afterwards,
    ];
    crashes: [
        it_dies_between_the_decision_and_the_end,
        a_participant_dies_while_it_compensates,
        a_box_that_dies_after_its_close_was_decided_answers_as_it_had,
        a_box_that_dies_after_its_cancel_was_decided_answers_as_it_had,
        a_box_that_dies_after_it_closed_a_transaction_without_participants_answers_as_it_had,
        a_box_and_the_transaction_manager_die_after_the_decision_and_the_answer_is_kept,
        many_deaths_and_every_transaction_ends_one_way,
    ];
}

//! What every [`Log`](bluebox_core::Log) promises, tested on every implementation by one suite that is written from the trait's documentation alone.
//!
//! An implementation takes part through a [`Fixture`].

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "the modules of a test share everything")]

mod appends;
mod assigned;
mod fixture;
mod groups;
mod kafka;
mod reads;
mod retention;
mod topics;

/// Runs the whole suite against one implementation.
macro_rules! conformance {
    ($name:ident, $fixture:ty) => {
        mod $name {
            use super::*;
            conformance!(@tests $fixture, appends: [
                offsets_count_up_from_zero_in_the_order_of_the_appends,
                an_acknowledged_append_is_read_by_every_reader,
                timestamps_are_the_logs_and_never_go_back,
                a_record_comes_back_bit_for_bit,
                a_record_over_the_limit_is_refused_and_not_there,
                an_append_to_nowhere_is_not_persisted,
                appends_of_many_clients_do_not_lose_or_repeat,
            ]);
            conformance!(@tests $fixture, reads: [
                a_reader_waits_for_what_is_appended_later,
                a_reader_above_the_end_gets_nothing_below_where_it_asked,
                a_reader_that_is_not_read_holds_nobody_up,
                a_reader_that_was_given_up_while_much_waited_holds_up_none_that_comes_later,
                bounds_include_everything_that_was_acknowledged,
                bounds_of_nothing_are_not_found,
                the_ends_of_many_partitions_come_in_the_order_in_which_they_were_asked_for,
                a_reader_sees_partitions_apart,
                what_comes_seldom_is_read_beside_the_rest,
            ]);
            conformance!(@tests $fixture, retention: [
                a_reader_is_told_of_what_is_gone,
                a_member_is_told_of_what_is_gone,
                compaction_keeps_the_last_record_of_each_key,
                compaction_leaves_alone_what_is_young,
            ]);
            conformance!(@tests $fixture, topics: [
                making_a_topic_twice_changes_nothing,
                a_topic_that_is_not_there_has_no_partitions,
                names_that_break_the_rule_are_refused,
                many_topics_at_once_can_be_used_at_once,
            ]);
            conformance!(@tests $fixture, groups: [
                one_member_gets_every_partition,
                nothing_is_read_before_start_and_never_more_than_wanted,
                want_replaces_what_was_wanted_before,
                members_share_and_each_partition_has_one_owner,
                a_partition_moves_only_after_its_release,
                a_commit_is_what_the_next_owner_gets,
                metadata_of_four_thousand_bytes_is_kept,
                a_commit_after_a_release_is_fenced,
                a_commit_is_all_or_nothing,
                a_commit_takes_along_what_the_group_does_not_share,
                the_moment_of_a_commit_lies_before_its_answer,
                commits_can_be_read_from_outside,
                leaving_hands_everything_over_at_once,
                a_dropped_member_is_dead,
                a_late_release_is_a_death,
                a_member_waits_for_a_topic_that_is_made_later,
                groups_do_not_share,
                topics_of_a_group_are_shared_evenly,
            ]);
            conformance!(@tests $fixture, assigned: [
                a_claimant_gets_its_partition_and_no_other,
                it_is_read_from_where_its_owner_wants_and_no_further,
                what_its_owner_committed_is_what_the_next_claimant_gets,
                the_newest_claim_wins_and_the_older_owner_is_told,
                many_claimants_at_once_leave_one_owner,
                a_claim_waits_for_its_topic,
                compaction_takes_what_is_needless_and_nothing_else,
            ]);
        }
    };
    (@tests $fixture:ty, $module:ident: [$($test:ident),* $(,)?]) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            if let Some(fixture) = <$fixture as fixture::Fixture>::start().await {
                fixture::in_time($module::$test(fixture)).await;
            }
        })*
    };
}

conformance!(in_memory, fixture::InMemory);
conformance!(on_disk, fixture::OnDisk);
conformance!(over_a_socket, fixture::OverASocket);
conformance!(on_kafka, kafka::Kafka);
conformance!(on_kafka_with_consumer_protocol, kafka::ConsumerProtocol);

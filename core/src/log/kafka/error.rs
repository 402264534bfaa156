//! What Kafka's error codes mean for the one who asked.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::log::{AppendError, LogError};

/// The errors of everything but appends. `what` names the thing that was asked for.
pub(super) fn log_error(what: &str, error: &KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(code) => by_code(what, code),
        None => LogError::Refused(format!("{what}: {error}")),
    }
}

/// The same, for a code.
pub(super) fn by_code(what: &str, code: Code) -> LogError {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => LogError::NotFound(what.to_owned()),
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::FencedMemberEpoch
        | Code::StaleMemberEpoch
        | Code::AssignmentLost
        | Code::Fenced => LogError::Fenced(format!("{what}: {code}")),
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::PolicyViolation
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidConfig
        | Code::InvalidRequest
        | Code::InvalidArgument
        | Code::InvalidGroupId
        | Code::InvalidCommitOffsetSize
        | Code::OffsetMetadataTooLarge
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature => LogError::Refused(format!("{what}: {code}")),
        _ => LogError::Unavailable(format!("{what}: {code}")),
    }
}

/// What the delivery report of a record says about it. `quick`: the report came so soon that the record can only have been sent once.
///
/// librdkafka knows more (`rd_kafka_message_status`) than its safe interface tells; so what can't be proven here is *unknown*.
pub(super) fn append_error(code: Code, quick: bool, what: &str, size_bytes: usize, limit_bytes: usize) -> AppendError {
    match code {
        // The topic is not there, so neither is the record.
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
            AppendError::NotPersisted(format!("{what}: there is no such topic or partition"))
        }
        // The broker said no, and it says so before it stores anything. Had the record been sent before, an earlier copy of it might be there.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge if quick => AppendError::TooLarge { size_bytes, limit_bytes },
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::InvalidTopic
        | Code::InvalidRecord
        | Code::PolicyViolation
        | Code::InvalidRequiredAcks
        | Code::InvalidMessageSize
        | Code::UnsupportedVersion
        | Code::UnsupportedForMessageFormat
            if quick =>
        {
            AppendError::NotPersisted(format!("{what}: {code}"))
        }
        _ => AppendError::Unknown(format!("{what}: {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_proven_is_unknown() {
        let error = |code, quick| append_error(code, quick, "t/0", 10, 5);
        assert!(matches!(error(Code::MessageTimedOut, true), AppendError::Unknown(_)));
        assert!(matches!(error(Code::BrokerTransportFailure, true), AppendError::Unknown(_)));
        assert!(matches!(error(Code::NotEnoughReplicasAfterAppend, true), AppendError::Unknown(_)));
        assert!(matches!(error(Code::PurgeInflight, true), AppendError::Unknown(_)));
        assert!(matches!(error(Code::TopicAuthorizationFailed, true), AppendError::NotPersisted(_)));
        assert!(matches!(error(Code::TopicAuthorizationFailed, false), AppendError::Unknown(_)), "an earlier copy may be there");
        assert_eq!(error(Code::MessageSizeTooLarge, true), AppendError::TooLarge { size_bytes: 10, limit_bytes: 5 });
    }

    #[test]
    fn a_member_that_is_none_any_more_is_fenced() {
        for code in [Code::IllegalGeneration, Code::UnknownMemberId, Code::FencedMemberEpoch, Code::StaleMemberEpoch] {
            assert!(matches!(by_code("g", code), LogError::Fenced(_)));
        }
        assert!(matches!(by_code("g", Code::BrokerTransportFailure), LogError::Unavailable(_)));
    }
}

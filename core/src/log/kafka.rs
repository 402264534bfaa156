//! Apache Kafka behind [`Log`](super::Log), on librdkafka.

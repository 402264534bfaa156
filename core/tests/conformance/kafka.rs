//! The suite on a real Kafka.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::log::kafka::{GroupProtocol, KafkaConfig, connect};
use bluebox_core::log::{Appended, Topic, TopicPartition, TopicSpec};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, TopicPartitionList};

use crate::fixture::Fixture;

/// A real Kafka, where `BLUEBOX_TEST_BROKERS` says that there is one (`scripts/kafka run -- cargo test`).
pub struct Kafka(KafkaConfig);

impl Fixture for Kafka {
    async fn start() -> Option<Self> {
        let Ok(brokers) = std::env::var("BLUEBOX_TEST_BROKERS") else {
            eprintln!("NOT TESTED ON KAFKA: BLUEBOX_TEST_BROKERS is not set; `scripts/kafka run -- cargo test` sets it");
            return None;
        };
        Some(Self(KafkaConfig::new(&brokers)))
    }

    fn client(&self) -> Arc<dyn Log> {
        connect(self.0.clone()).expect("Kafka's client")
    }

    fn knows_the_dead(&self) -> bool {
        false
    }

    async fn delete_below(&self, of: &TopicPartition, first_kept: Appended) -> bool {
        let brokers = std::env::var("BLUEBOX_TEST_BROKERS").expect("it was there at the start");
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("Kafka's client");
        let mut below = TopicPartitionList::new();
        let (partition, offset) = (i32::try_from(of.partition).unwrap(), i64::try_from(first_kept.offset.get()).unwrap());
        below.add_partition_offset(of.topic.as_str(), partition, rdkafka::Offset::Offset(offset)).unwrap();
        admin.delete_records(&below, &AdminOptions::new()).await.expect("they are deleted");
        true
    }
}

/// The same, with the group protocol of Kafka 4 (KIP-848).
pub struct ConsumerProtocol(KafkaConfig);

impl Fixture for ConsumerProtocol {
    async fn start() -> Option<Self> {
        let Kafka(config) = Kafka::start().await?;
        Some(Self(KafkaConfig { group_protocol: GroupProtocol::Consumer, ..config }))
    }

    fn client(&self) -> Arc<dyn Log> {
        connect(self.0.clone()).expect("Kafka's client")
    }

    fn leases_end_with_sessions(&self) -> bool {
        false
    }

    fn knows_the_dead(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_told_how_long_records_stay_before_they_are_compacted() {
    let Some(kafka) = Kafka::start().await else { return };
    let log = kafka.client();
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", &kafka.0.brokers).create().expect("Kafka's client");
    for (lag, told) in [(Some(Duration::from_secs(7)), "7000"), (None, "0")] {
        let topic = Topic::new(&kafka.name("lag"));
        log.create_topics(vec![TopicSpec { topic: topic.clone(), partitions: 1, retention: None, compacted: true, compaction_lag: lag }]).await.unwrap();
        let described = admin.describe_configs([&ResourceSpecifier::Topic(topic.as_str())], &AdminOptions::new()).await.unwrap();
        let config = described.into_iter().next().unwrap().unwrap();
        assert_eq!(config.get("min.compaction.lag.ms").and_then(|entry| entry.value.as_deref()), Some(told));
    }
}

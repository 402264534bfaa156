//! The suite on a real Kafka.

use std::sync::Arc;

use bluebox_core::Log;
use bluebox_core::log::kafka::{GroupProtocol, KafkaConfig, connect};
use bluebox_core::log::{Appended, TopicPartition};
use rdkafka::admin::{AdminClient, AdminOptions};
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

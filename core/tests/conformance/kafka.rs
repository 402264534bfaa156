//! The suite on a real Kafka.

use std::sync::Arc;

use bluebox_core::Log;
use bluebox_core::log::kafka::{KafkaConfig, connect};

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
}

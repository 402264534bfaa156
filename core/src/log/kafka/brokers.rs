//! Whether a client still knows of brokers that it can ask.
//!
//! librdkafka (since 2.10; its issue 5301) forgets every broker when it is told that the cluster has none, and so says a Kafka all of whose brokers were fenced for a moment. It
//! would begin again at the addresses that it was given; but the answer that told it so may stop that too, and then it asks nobody any more, for good. Its statistics show it, and
//! nothing else does. What such a client is for is done by another one then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Deserialize;
use tracing::warn;

/// How often a client tells of itself, in milliseconds.
pub(super) const INTERVAL_MS: &str = "5000";

/// So many times in a row it must have known none: one that begins again knows none for a moment.
const TIMES: u32 = 2;

/// What one client knows of brokers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    none: Arc<AtomicU32>,
}

#[derive(Deserialize)]
struct Said {
    brokers: BTreeMap<String, Broker>,
    cgrp: Option<Group>,
}

#[derive(Deserialize)]
struct Broker {
    source: String,
}

#[derive(Deserialize)]
struct Group {
    state: String,
    join_state: String,
}

impl Said {
    fn can_go_on(&self) -> bool {
        // A member that has its coordinator, which is known apart from the brokers, needs nobody else.
        let is_member = self.cgrp.as_ref().is_some_and(|group| group.state == "up" && group.join_state == "steady");
        is_member || self.brokers.values().any(|broker| matches!(broker.source.as_str(), "configured" | "learned"))
    }
}

impl Known {
    /// The client has told of itself.
    pub(super) fn hear(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Said>(statistics) {
            Ok(said) if said.can_go_on() => self.none.store(0, Ordering::Relaxed),
            Ok(_) => _ = self.none.fetch_add(1, Ordering::Relaxed),
            Err(error) => warn!(%error, "what a client says of itself can't be read"),
        }
    }

    /// Whether it can't go on any more.
    pub(super) fn is_none(&self) -> bool {
        self.none.load(Ordering::Relaxed) >= TIMES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERNAL: &str = r#"":0/internal":{"source":"internal","state":"INIT"}"#;
    const COORDINATOR: &str = r#""GroupCoordinator":{"source":"logical","state":"UP"}"#;

    fn said(brokers: &[&str], group: &str) -> String {
        format!(r#"{{"name":"x#consumer-1","brokers":{{{}}},"topics":{{}}{group}}}"#, brokers.join(","))
    }

    #[test]
    fn a_client_that_knows_no_broker_again_and_again_cant_go_on() {
        let known = Known::default();
        for bootstrap in [r#""a:9092/bootstrap":{"source":"configured","state":"DOWN"}"#, r#""a:9092/1":{"source":"learned","state":"INIT"}"#] {
            known.hear(said(&[INTERNAL], "").as_bytes());
            assert!(!known.is_none(), "for a moment");
            known.hear(said(&[INTERNAL, bootstrap], "").as_bytes());
            known.hear(said(&[INTERNAL, COORDINATOR], "").as_bytes());
            assert!(!known.is_none(), "one was known between");
            known.hear(said(&[INTERNAL, COORDINATOR], "").as_bytes());
            assert!(known.is_none());
            known.hear(said(&[INTERNAL, bootstrap], "").as_bytes());
        }
    }

    #[test]
    fn a_member_goes_on_as_long_as_it_has_its_coordinator() {
        let known = Known::default();
        for (state, join_state, goes_on) in [("up", "steady", true), ("query-coord", "steady", false), ("up", "wait-join", false)] {
            known.hear(said(&[r#""a:9092/1":{"source":"learned","state":"UP"}"#], "").as_bytes());
            for _ in 0..3 {
                known.hear(said(&[INTERNAL, COORDINATOR], &format!(r#","cgrp":{{"state":"{state}","join_state":"{join_state}"}}"#)).as_bytes());
            }
            assert_eq!(known.is_none(), !goes_on, "{state} {join_state}");
        }
    }
}

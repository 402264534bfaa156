//! What the user says about Kafka, and what each of the clients is told.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::brokers::INTERVAL_MS;
use super::stream::Pace;
use crate::log::LogError;

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Addresses of some of the brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// Further properties of librdkafka, by its names: TLS, SASL and the like. Those that the promises of [`Log`](crate::Log) rest on can't be changed.
    pub properties: BTreeMap<String, String>,
    /// In how many copies new topics are kept; `None`: as the broker decides (`default.replication.factor`).
    pub replication_factor: Option<i32>,
    /// After this long without an acknowledgement an append ends as [`Unknown`](crate::log::AppendError::Unknown). Default 10 s.
    pub append_timeout: Duration,
    /// How group members talk to the broker. Default [`GroupProtocol::Classic`].
    pub group_protocol: GroupProtocol,
    /// What the broker's logs and quotas call this client; readers belong to a group of this name that commits nothing. Default `bluebox`.
    pub client_id: String,
}

/// How group members talk to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// JoinGroup and SyncGroup with the cooperative-sticky assignor; the member chooses its session timeout.
    #[default]
    Classic,
    /// KIP-848, of Kafka 4.0 and later: the broker assigns, and *it* chooses the session timeout (`group.consumer.session.timeout.ms`, 45 s by default).
    Consumer,
}

impl KafkaConfig {
    /// These brokers, and the default of all else.
    pub fn new(brokers: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
            properties: BTreeMap::new(),
            replication_factor: None,
            append_timeout: Duration::from_secs(10),
            group_protocol: GroupProtocol::default(),
            client_id: "bluebox".to_owned(),
        }
    }

    /// Checks what can be checked without a broker.
    ///
    /// # Errors
    /// [`LogError::Refused`], with the property and the reason.
    pub fn check(&self) -> Result<(), LogError> {
        if self.brokers.trim().is_empty() {
            return Err(LogError::Refused("brokers \"\": name at least one as host:port".to_owned()));
        }
        for name in self.properties.keys() {
            if let Some((_, why)) = FIXED.iter().find(|(fixed, _)| fixed == name) {
                return Err(LogError::Refused(format!("Kafka property {name:?} can't be set: {why}")));
            }
        }
        if self.append_timeout < Duration::from_millis(100) {
            return Err(LogError::Refused(format!("append timeout {:?}: at least 100 ms", self.append_timeout)));
        }
        Ok(())
    }

    /// What all clients are told.
    fn base(&self, role: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", format!("{}-{role}", self.client_id))
            // A broker that came back is found within half a second, not ten.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("retry.backoff.ms", "50")
            .set("retry.backoff.max.ms", "500")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            // A topic that was made just now may not be known everywhere yet; one that is unknown for longer is none.
            .set("topic.metadata.propagation.max.ms", "3000")
            .set("topic.metadata.refresh.fast.interval.ms", "50")
            // Nobody collects what KIP-714 would send.
            .set("enable.metrics.push", "false")
            // The application reports what matters, once; the library repeats itself.
            .set("log.connection.close", "false");
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    fn with_user_properties(&self, mut config: ClientConfig) -> ClientConfig {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    /// The producer: durable and in order; small, because it lives in a sidecar.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.base("append");
        config
            .set("linger.ms", "0")
            .set("queue.buffering.max.messages", "10000")
            // For the metrics.
            .set("statistics.interval.ms", INTERVAL_MS)
            .set("queue.buffering.max.kbytes", "65536")
            .set("message.max.bytes", CLIENT_MESSAGE_BYTES.to_string());
        let mut config = self.with_user_properties(config);
        config.set("acks", "all").set("enable.idempotence", "true").set("message.timeout.ms", self.append_timeout.as_millis().to_string());
        config
    }

    /// A consumer that is assigned partitions by hand and is no member of a group.
    pub(super) fn reader(&self, pace: Pace) -> ClientConfig {
        let mut config = self.base("read");
        let longest_wait = match pace {
            Pace::Busy | Pace::Late => "100",
            Pace::Rare => "500",
        };
        let least_bytes = match pace {
            Pace::Busy | Pace::Rare => "1",
            Pace::Late => "1048576",
        };
        config
            // A fetch that waits for new records holds up a partition that joins or resumes meanwhile; this is how long at most.
            .set("fetch.wait.max.ms", longest_wait)
            .set("fetch.min.bytes", least_bytes)
            .set("fetch.message.max.bytes", "1048576")
            .set("fetch.max.bytes", "8388608")
            .set("queued.min.messages", "1000")
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "100");
        let mut config = self.with_user_properties(config);
        config
            .set("group.id", format!("{}.readers", self.client_id))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "false")
            .set("allow.auto.create.topics", "false")
            // An offset that is out of range must be told, not mended.
            .set("auto.offset.reset", "error")
            // What the watchdog looks at.
            .set("statistics.interval.ms", INTERVAL_MS);
        config
    }

    /// A client for questions: metadata, offsets.
    pub(super) fn control(&self) -> ClientConfig {
        self.asking("control")
    }

    fn asking(&self, role: &str) -> ClientConfig {
        let mut config = self.with_user_properties(self.base(role));
        config.set("allow.auto.create.topics", "false").set("enable.auto.commit", "false");
        config
    }

    /// A client for making topics. Closed after each use.
    pub(super) fn admin(&self) -> ClientConfig {
        self.with_user_properties(self.base("admin"))
    }

    /// A client that asks what a group has committed, without being in it.
    pub(super) fn outsider(&self, group: &str) -> ClientConfig {
        let mut config = self.asking("outsider");
        config.set("group.id", group);
        config
    }

    /// A member of a group. It is never assigned anything to fetch: readers do that.
    pub(super) fn member(&self, group: &str, session_timeout: Duration, release_timeout: Duration) -> ClientConfig {
        let mut config = self.with_user_properties(self.base("member"));
        config
            .set("group.id", group)
            .set("statistics.interval.ms", INTERVAL_MS)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("allow.auto.create.topics", "false")
            .set("auto.offset.reset", "earliest");
        match self.group_protocol {
            GroupProtocol::Classic => {
                let session = session_timeout.as_millis().max(10);
                config
                    .set("partition.assignment.strategy", "cooperative-sticky")
                    .set("session.timeout.ms", session.to_string())
                    // A member hears of a rebalance with its next heartbeat, and twice per move: so long a partition that moves has no owner.
                    .set("heartbeat.interval.ms", (session / 3).clamp(1, 500).to_string())
                    // How long the group waits for this member while it holds on to what it was asked for.
                    .set("max.poll.interval.ms", (release_timeout + Duration::from_secs(10)).max(session_timeout * 2).as_millis().to_string());
            }
            GroupProtocol::Consumer => {
                config.set("group.protocol", "consumer").set("max.poll.interval.ms", (release_timeout + Duration::from_secs(10)).as_millis().to_string());
            }
        }
        config
    }
}

/// What the producer takes at most, with the framing of a record. New topics take a little more.
pub(super) const CLIENT_MESSAGE_BYTES: usize = 1_048_576;

/// The largest key and value together.
pub(super) const MAX_RECORD_BYTES: usize = CLIENT_MESSAGE_BYTES - 1024;

/// What new topics take: the producer's limit and the framing of a batch around it.
pub(super) const TOPIC_MESSAGE_BYTES: usize = CLIENT_MESSAGE_BYTES + 4096;

const FIXED: &[(&str, &str)] = &[
    ("bootstrap.servers", "the brokers are a setting of their own"),
    ("metadata.broker.list", "the brokers are a setting of their own"),
    ("acks", "accepted means durable: it is always \"all\""),
    ("request.required.acks", "accepted means durable: it is always \"all\""),
    ("enable.idempotence", "order rests on it: it is always on"),
    ("max.in.flight", "order rests on it"),
    ("max.in.flight.requests.per.connection", "order rests on it"),
    ("message.timeout.ms", "the append timeout is a setting of its own"),
    ("delivery.timeout.ms", "the append timeout is a setting of its own"),
    ("transactional.id", "transactions are not used"),
    ("message.max.bytes", "what a record may hold is told to others"),
    ("group.id", "groups belong to components"),
    ("group.instance.id", "static membership hides deaths"),
    ("group.protocol", "it is a setting of its own"),
    ("partition.assignment.strategy", "handover rests on cooperative-sticky"),
    ("session.timeout.ms", "it is a setting of its own"),
    ("max.poll.interval.ms", "it follows from how long a partition may be held on to"),
    ("enable.auto.commit", "commits follow outcomes"),
    ("enable.auto.offset.store", "commits follow outcomes"),
    ("enable.partition.eof", "it is of no use here"),
    ("auto.offset.reset", "a loss must be told"),
    ("allow.auto.create.topics", "topics are made on purpose"),
    ("statistics.interval.ms", "the watchdog chooses it"),
    ("isolation.level", "transactions are not used"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_promises_rest_on_cannot_be_changed() {
        let mut config = KafkaConfig::new("127.0.0.1:9092");
        config.properties.insert("acks".into(), "0".into());
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("\"acks\"") && error.contains("durable"), "{error}");
    }

    #[test]
    fn every_client_takes_its_configuration() {
        let mut config = KafkaConfig::new("127.0.0.1:9092");
        config.properties.insert("fetch.wait.max.ms".into(), "250".into());
        config.check().unwrap();
        let second = Duration::from_secs(1);
        for client in [
            config.producer(),
            config.reader(Pace::Busy),
            config.reader(Pace::Rare),
            config.reader(Pace::Late),
            config.control(),
            config.admin(),
            config.outsider("g"),
            config.member("g", second, second),
        ] {
            client.create_native_config().unwrap();
        }
        config.group_protocol = GroupProtocol::Consumer;
        config.member("g", second, second).create_native_config().unwrap();
        assert_eq!(config.reader(Pace::Busy).get("fetch.wait.max.ms"), Some("250"));
    }
}

//! Which log: Kafka, or the embedded one of a `bluebox up` on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::Log;
use bluebox_core::log::Health;
pub(crate) use bluebox_core::log::embedded::Fsync;
use bluebox_core::log::embedded::{self, Embedded};
use bluebox_core::log::kafka::{self, GroupProtocol, KafkaConfig};
use bluebox_core::topics::Prefix;
use clap::{Args, ValueEnum};

use crate::units;

/// Which log, as flags.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "The log")]
pub(crate) struct LogOptions {
    /// Kafka: one or more of its brokers, HOST:PORT[,HOST:PORT…].
    #[arg(long, env = "BLUEBOX_BROKERS", value_name = "BROKERS", conflicts_with = "log_socket", value_parser = parse_brokers)]
    pub(crate) brokers: Option<String>,
    /// The embedded log of a `bluebox up` on this machine: its socket.
    #[arg(long, env = "BLUEBOX_LOG_SOCKET", value_name = "PATH")]
    pub(crate) log_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
}

/// Settings of the Kafka client.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The log")]
pub(crate) struct KafkaOptions {
    /// A setting of librdkafka, such as security.protocol=SSL; can be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_property)]
    pub(crate) kafka_property: Vec<(String, String)>,
    /// A file of such settings, one to a line, `#` begins a comment. For secrets, which have no place on a command line.
    #[arg(long, env = "BLUEBOX_KAFKA_PROPERTIES", value_name = "FILE")]
    pub(crate) kafka_properties: Option<PathBuf>,
    /// Copies of each topic that is made; by default what the broker says.
    #[arg(long, env = "BLUEBOX_REPLICATION_FACTOR", value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=32))]
    pub(crate) replication_factor: Option<i32>,
    /// After this long without an acknowledgement by Kafka it is not known whether a call was accepted: 504.
    #[arg(long, env = "BLUEBOX_APPEND_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = units::positive_duration)]
    pub(crate) append_timeout: Duration,
    /// How the members of a group talk to Kafka.
    #[arg(long, env = "BLUEBOX_GROUP_PROTOCOL", value_name = "PROTOCOL", default_value = "classic")]
    pub(crate) group_protocol: Protocol,
    /// Names of topics begin with it; installations that share a Kafka have one each.
    #[arg(long, env = "BLUEBOX_TOPIC_PREFIX", value_name = "PREFIX", default_value = "bluebox", value_parser = |text: &str| Prefix::try_new(text))]
    pub(crate) topic_prefix: Prefix,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        let usual = KafkaConfig::new("");
        Self {
            kafka_property: Vec::new(),
            kafka_properties: None,
            replication_factor: None,
            append_timeout: usual.append_timeout,
            group_protocol: Protocol::Classic,
            topic_prefix: Prefix::default(),
        }
    }
}

/// How the members of a group talk to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// The one that every broker has.
    Classic,
    /// KIP-848, of Kafka 4.0 and later; the broker chooses the session timeout.
    Consumer,
}

impl From<Protocol> for GroupProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Classic => Self::Classic,
            Protocol::Consumer => Self::Consumer,
        }
    }
}

/// Reads the address of a server, by name or number.
pub(crate) fn parse_host(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_some_and(|port| port > 0) { Ok(text.to_owned()) } else { Err("expected HOST:PORT, such as txmgr-clients.shop:8070".to_owned()) }
}

/// Reads the addresses of brokers.
pub(crate) fn parse_brokers(text: &str) -> Result<String, String> {
    for broker in text.split(',') {
        let port = broker.trim().rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(format!("`{broker}`: a broker is written as HOST:PORT, such as 127.0.0.1:9092"));
        }
    }
    Ok(text.to_owned())
}

fn parse_property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a setting is written as KEY=VALUE, such as security.protocol=SSL")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Reads a file of settings: one to a line, `#` begins a comment. `name` is the file's, for errors.
pub(crate) fn parse_properties(text: &str, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| parse_property(line).map_err(|why| anyhow::anyhow!("{name}:{number}: {why}"))).collect()
}

impl KafkaOptions {
    /// The same as flags, but for properties, which can be secrets, and the prefix.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--append-timeout={}", humantime::format_duration(self.append_timeout))];
        arguments.extend(self.replication_factor.map(|factor| format!("--replication-factor={factor}")));
        if self.group_protocol == Protocol::Consumer {
            arguments.push("--group-protocol=consumer".to_owned());
        }
        arguments
    }

    /// All settings: those of the file, then those of the command line.
    pub(crate) fn properties(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut properties = BTreeMap::new();
        if let Some(file) = &self.kafka_properties {
            let text = std::fs::read_to_string(file).with_context(|| format!("{}: can't be read", file.display()))?;
            properties = parse_properties(&text, &file.display().to_string())?;
        }
        properties.extend(self.kafka_property.iter().cloned());
        Ok(properties)
    }
}

impl LogOptions {
    /// A client of that log. It is there at once; the log itself may be away.
    pub(crate) fn connect(&self) -> anyhow::Result<Arc<dyn Log>> {
        match (&self.brokers, &self.log_socket) {
            (Some(brokers), _) => connect_kafka(brokers, &self.kafka),
            (None, Some(socket)) => Ok(connect_embedded(socket)),
            (None, None) => bail!("which log? Give --brokers HOST:PORT for Kafka, or --log-socket PATH for the embedded log of a `bluebox up`"),
        }
    }

    /// The log in words.
    pub(crate) fn describe(&self) -> String {
        match (&self.brokers, &self.log_socket) {
            (Some(brokers), _) => format!("Kafka at {brokers}"),
            (None, Some(socket)) => format!("the embedded log at {}", socket.display()),
            (None, None) => "no log".to_owned(),
        }
    }

    /// What to do when it can't be reached.
    pub(crate) fn remedy(&self) -> &'static str {
        if self.brokers.is_some() {
            "Is the broker running there, and is the address right? Settings such as TLS are given with --kafka-property"
        } else {
            "Is the `bluebox up` that serves it running?"
        }
    }
}

/// What the policy means, in words.
pub(crate) fn describe_fsync(fsync: Fsync) -> String {
    match fsync {
        Fsync::Always => "what is accepted survives a power cut".to_owned(),
        Fsync::Interval(interval) => format!("a power cut can take the last {}", humantime::format_duration(interval)),
        Fsync::Never => "a power cut can take the last half minute".to_owned(),
    }
}

/// The embedded log, served to other processes.
pub(crate) struct Served {
    log: Arc<Embedded>,
    server: embedded::Server,
}

impl Served {
    /// Opens it and serves it.
    pub(crate) async fn start(directory: &Path, fsync: Fsync, socket: &Path) -> anyhow::Result<Self> {
        let log = open_embedded(directory, fsync)?;
        let server = embedded::serve(&log, socket)?;
        Ok(Self { log, server })
    }

    /// The log.
    pub(crate) fn log(&self) -> Arc<dyn Log> {
        self.log.clone()
    }

    /// Ends it.
    pub(crate) async fn close(self) {
        drop(self.server);
        drop(self.log);
    }
}

/// The embedded log of a directory, in this process.
pub(crate) fn open_embedded(directory: &Path, fsync: Fsync) -> anyhow::Result<Arc<Embedded>> {
    Ok(Embedded::open(directory, embedded::Options { fsync, ..embedded::Options::default() })?)
}

/// Reads when the embedded log waits for the disk.
pub(crate) fn parse_fsync(text: &str) -> Result<Fsync, String> {
    match text {
        "always" => Ok(Fsync::Always),
        "never" => Ok(Fsync::Never),
        interval => {
            let why = |_| "`always`, `never`, or how much may be lost with the power, such as `50ms`".to_owned();
            units::positive_duration(interval).map(Fsync::Interval).map_err(why)
        }
    }
}

/// A client of Kafka.
pub(crate) fn connect_kafka(brokers: &str, options: &KafkaOptions) -> anyhow::Result<Arc<dyn Log>> {
    let config = KafkaConfig {
        properties: options.properties()?,
        replication_factor: options.replication_factor,
        append_timeout: options.append_timeout,
        group_protocol: options.group_protocol.into(),
        // Names on the broker begin with the prefix, so that one rule gives rights on all of them.
        client_id: options.topic_prefix.as_str().to_owned(),
        ..KafkaConfig::new(brokers)
    };
    Ok(kafka::connect(config)?)
}

/// A client of an embedded log in another process.
pub(crate) fn connect_embedded(socket: &Path) -> Arc<dyn Log> {
    embedded::connect(socket)
}

/// Tells `say` when the log can't be reached, within seconds, and when it can again. Ends with the log's client.
pub(crate) async fn watch(log: Arc<dyn Log>, prefix: Prefix, mut say: impl FnMut(bool)) {
    const PATIENCE: Duration = Duration::from_secs(3);
    let mut health = log.health();
    let mut reachable = matches!(tokio::time::timeout(PATIENCE, log.partitions(&prefix.registry())).await, Ok(Ok(_)));
    if !reachable {
        say(false);
    }
    loop {
        if !reachable {
            // Not every client learns by itself that it never was connected: ask, until there is an answer.
            reachable = matches!(tokio::time::timeout(PATIENCE, log.partitions(&prefix.registry())).await, Ok(Ok(_)));
            if reachable {
                say(true);
            } else {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            continue;
        }
        if health.changed().await.is_err() {
            return;
        }
        if matches!(*health.borrow_and_update(), Health::Away(_)) {
            reachable = false;
            say(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers() {
        assert!(parse_brokers("127.0.0.1:9092,kafka-1.example:9093").is_ok());
        for bad in ["", "localhost", ":9092", "a:b", "a:0", "a:9092,"] {
            assert!(parse_brokers(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn properties_of_file_and_command_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# secret\nsasl.password = a=b\n\nclient.id=one\n").unwrap();
        let options = KafkaOptions {
            kafka_property: vec![("client.id".to_owned(), "two".to_owned())],
            kafka_properties: Some(file.path().to_owned()),
            ..KafkaOptions::default()
        };
        let properties = options.properties().unwrap();
        assert_eq!(properties["sasl.password"], "a=b");
        assert_eq!(properties["client.id"], "two");
        std::fs::write(file.path(), "ok=1\nnonsense\n").unwrap();
        assert!(options.properties().unwrap_err().to_string().contains(":2: "));
    }
}

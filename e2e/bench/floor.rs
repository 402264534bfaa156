//! Ping-pong through the broker with nothing but librdkafka: a record goes to one topic, an echo reads it there and appends it to another, and there it is read. Two hops, as a
//! call and its outcome have them, each acknowledged by all replicas. Nobody who keeps calls in this broker gets below.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::Message;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::numbers::Times;

/// How long a record may be on its way.
const PATIENCE: Duration = Duration::from_secs(30);

/// One end: what it reads and where it writes.
struct End {
    producer: BaseProducer,
    consumer: BaseConsumer,
    to: String,
}

/// The floor, ready.
pub(crate) struct Floor {
    near: End,
    body: Vec<u8>,
    stop: Arc<AtomicBool>,
    echo: Option<std::thread::JoinHandle<()>>,
}

impl Floor {
    /// Makes the topics and starts the echo.
    pub(crate) async fn start(brokers: &str, name: &str, body_bytes: usize) -> anyhow::Result<Self> {
        let (there, back) = (format!("{name}.there"), format!("{name}.back"));
        let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
        // As many copies as the broker makes of any topic.
        let topic = |name| NewTopic::new(name, 1, TopicReplication::Fixed(-1)).set("message.timestamp.type", "LogAppendTime");
        for made in admin.create_topics(&[topic(&there), topic(&back)], &AdminOptions::new()).await? {
            made.map_err(|(topic, code)| anyhow::anyhow!("topic {topic}: {code}"))?;
        }
        let (brokers, stop) = (brokers.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        // Clients are made where they may block.
        tokio::task::spawn_blocking(move || {
            let far = End::new(&brokers, &there, &back)?;
            let near = End::new(&brokers, &back, &there)?;
            let echo = std::thread::Builder::new().name("floor-echo".to_owned()).spawn(move || far.echo(&stopped))?;
            Ok(Self { near, body: vec![b'x'; body_bytes.max(8)], stop, echo: Some(echo) })
        })
        .await?
    }

    /// Goes there and back so many times, with so many on their way at once; or for so long.
    pub(crate) fn play(&mut self, in_flight: usize, calls: u64, time: Duration) -> anyhow::Result<(Times, Duration)> {
        let began = Instant::now();
        let (mut times, mut sent, mut under_way) = (Times::default(), 0, HashMap::new());
        loop {
            while under_way.len() < in_flight && sent < calls && began.elapsed() < time {
                under_way.insert(sent, Instant::now());
                self.body[..8].copy_from_slice(&sent.to_le_bytes());
                self.near.send(&self.body)?;
                sent += 1;
            }
            if under_way.is_empty() {
                return Ok((times, began.elapsed()));
            }
            let Some(record) = self.near.next(PATIENCE)? else { bail!("the floor: a record did not come back within {PATIENCE:?}") };
            let number = record.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
            let since = number.and_then(|number| under_way.remove(&number)).context("the floor: a record came back that nobody sent")?;
            times.add(since.elapsed());
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(echo) = self.echo.take() {
            // It said why, should it have failed.
            let _ = echo.join();
        }
    }
}

fn await_topic(topic: &str, ask: impl Fn() -> KafkaResult<Metadata>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !ask()?.topics().iter().any(|known| known.name() == topic && known.error().is_none()) {
        ensure!(began.elapsed() < PATIENCE, "topic {topic} is not there");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("socket.nagle.disable", "true");
    config
}

impl End {
    fn new(brokers: &str, from: &str, to: &str) -> anyhow::Result<Self> {
        let producer: BaseProducer = client(brokers).set("acks", "all").set("linger.ms", "0").create()?;
        let consumer: BaseConsumer = client(brokers).set("group.id", "floor").set("enable.auto.commit", "false").set("fetch.min.bytes", "1").create()?;
        // Both are connected when this returns. A topic that was made just now may not be known yet.
        await_topic(to, || producer.client().fetch_metadata(Some(to), PATIENCE))?;
        await_topic(from, || consumer.fetch_metadata(Some(from), PATIENCE))?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(from, 0, Offset::Beginning)?;
        consumer.assign(&list)?;
        Ok(Self { producer, consumer, to: to.to_owned() })
    }

    fn send(&self, body: &[u8]) -> anyhow::Result<()> {
        self.producer.send(BaseRecord::<(), _>::to(&self.to).partition(0).payload(body)).map_err(|(error, _)| error)?;
        Ok(())
    }

    fn next(&self, patience: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        // What was acknowledged is forgotten.
        self.producer.poll(Duration::ZERO);
        match self.consumer.poll(patience) {
            None => Ok(None),
            Some(message) => Ok(Some(message?.payload().unwrap_or_default().to_vec())),
        }
    }

    fn echo(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let done = self.next(Duration::from_millis(100)).and_then(|record| record.map_or(Ok(()), |record| self.send(&record)));
            if let Err(error) = done {
                eprintln!("the floor's echo: {error:#}");
                return;
            }
        }
    }
}

//! Questions to the broker, and topics: what librdkafka can only do by blocking runs here, on threads of its own.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::Semaphore;
use tracing::warn;

use super::config::{KafkaConfig, TOPIC_MESSAGE_BYTES};
use super::error::{by_code, log_error};
use super::link::{Link, Observer};
use super::wake::block_on;
use crate::log::{Bounds, Committed, LogError, Offset, Pending, Topic, TopicPartition, TopicSettings, TopicSpec};

/// Questions that may wait for an answer at once.
const QUEUE: usize = 4096;
const THREADS: usize = 3;
/// Questions about groups that are asked at once, each on a thread that ends with it.
const GROUPS_AT_ONCE: usize = 32;
/// How long one question is asked again before the asker is told that there is no answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Making topics takes longer.
const TOPIC_PATIENCE: Duration = Duration::from_secs(30);
/// Clients that are kept for the next question.
const ASKERS: usize = 9;
/// How long one is kept that asks nothing. Each has threads, connections, and half a megabyte; and a proxy has questions when it starts and when it takes over, hardly any between.
const ASKER_IDLE: Duration = Duration::from_secs(30);

/// A topic that every Kafka has once a group was used; whether it exists does not matter to the probe.
const PROBED: &str = "__consumer_offsets";

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Control {
    /// The one that asked last first.
    askers: Mutex<VecDeque<Asker>>,
    config: KafkaConfig,
    link: Arc<Link>,
    jobs: SyncSender<Job>,
    /// Places for questions about groups.
    groups: Arc<Semaphore>,
}

/// A client for questions.
struct Asker {
    /// Whose commits it asks for; it is no member. `None`: it asks for all else.
    group: Option<String>,
    client: Arc<Client>,
    asked: Instant,
}

type Client = BaseConsumer<Observer>;

impl Control {
    pub(super) fn start(config: &KafkaConfig, link: &Arc<Link>) -> Result<Arc<Self>, KafkaError> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name("kafka-control".to_owned())
                .spawn(move || work(&queue))
                .map_err(|error| KafkaError::ClientCreation(format!("no thread for questions: {error}")))?;
        }
        Ok(Arc::new(Self { askers: Mutex::default(), config: config.clone(), link: link.clone(), jobs, groups: Arc::new(Semaphore::new(GROUPS_AT_ONCE)) }))
    }

    /// Serves what librdkafka has to say, since these clients are not polled otherwise; and closes those that have asked nothing for long.
    pub(super) fn tend(&self) {
        let mut askers = self.askers();
        for asker in &*askers {
            while let Some(Ok(_)) = asker.client.poll(Duration::ZERO) {}
        }
        let in_use = askers.partition_point(|asker| asker.asked.elapsed() < ASKER_IDLE);
        let idle = askers.split_off(in_use);
        drop(askers);
        close(idle);
    }

    fn askers(&self) -> MutexGuard<'_, VecDeque<Asker>> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client that asks for the commits of this group, or for all else; made if there is none.
    fn client(&self, group: Option<&str>) -> Result<Arc<Client>, LogError> {
        let mut askers = self.askers();
        let known = askers.iter().position(|asker| asker.group.as_deref() == group).and_then(|at| askers.remove(at));
        let client = match known {
            Some(asker) => asker.client,
            None => {
                let (config, role) = match group {
                    Some(group) => (self.config.outsider(group), "outsider"),
                    None => (self.config.control(), "control"),
                };
                Arc::new(config.create_with_context(Observer::new(&self.link, role)).map_err(|error| log_error("a client for questions", &error))?)
            }
        };
        askers.push_front(Asker { group: group.map(str::to_owned), client: client.clone(), asked: Instant::now() });
        let left_over = if askers.len() > ASKERS { askers.pop_back() } else { None };
        drop(askers);
        close(left_over);
        Ok(client)
    }

    /// The next question is asked by another client, with connections of its own. One that gets no answers for long may know of no broker any more, see [`brokers`](super::brokers).
    pub(super) fn renew(&self, group: Option<&str>) {
        let mut askers = self.askers();
        let old = askers.iter().position(|asker| asker.group.as_deref() == group).and_then(|at| askers.remove(at));
        drop(askers);
        close(old);
    }

    /// Whether any broker answers.
    pub(super) fn probe(&self, limit: Duration) -> Result<(), String> {
        let client = self.client(None).map_err(|error| error.to_string())?;
        client.client().fetch_metadata(Some(PROBED), limit).map(drop).map_err(|error| error.to_string())
    }

    /// Asks when a thread is free. `job` must not block for longer than the patience of its question.
    pub(super) fn ask<T: Send + 'static>(self: &Arc<Self>, job: impl FnOnce(&Self) -> Result<T, LogError> + Send + 'static) -> Pending<T> {
        if self.link.is_away() {
            return Pending::ready(Err(LogError::Unavailable(self.link.away())));
        }
        let (reply, pending) = Pending::new();
        let control = self.clone();
        let job = Box::new(move || {
            let _ = reply.send(job(&control));
        });
        match self.jobs.try_send(job) {
            Ok(()) => pending,
            Err(TrySendError::Full(_)) => Pending::ready(Err(LogError::Unavailable(format!("{QUEUE} questions wait for the broker already")))),
            Err(TrySendError::Disconnected(_)) => Pending::ready(Err(LogError::Unavailable("the log's client was closed".to_owned()))),
        }
    }

    /// Asks about a group: mostly that is waiting until a client of that group has its connections, some tenths of a second on a busy machine, so a hundred groups are not asked one after
    /// the other. When too many are asked already, this waits for a thread as every other question.
    pub(super) fn ask_group<T: Send + 'static>(self: &Arc<Self>, job: impl FnOnce(&Self) -> Result<T, LogError> + Send + 'static) -> Pending<T> {
        if self.link.is_away() {
            return self.ask(job);
        }
        let Ok(place) = self.groups.clone().try_acquire_owned() else { return self.ask(job) };
        let (reply, pending) = Pending::new();
        let control = self.clone();
        let asked = std::thread::Builder::new().name("kafka-group".to_owned()).spawn(move || {
            // A panic is one question's, whose asker learns that nobody answers.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reply.send(job(&control))));
            drop(place);
        });
        if let Err(error) = asked {
            return Pending::ready(Err(LogError::Unavailable(format!("no thread to ask about a group: {error}"))));
        }
        pending
    }

    /// Asks again while the broker is only not ready, and once more when it knows no such topic: brokers learn of new topics one after the other.
    fn patiently<T>(&self, group: Option<&str>, ask: impl Fn(&Client, Duration) -> Result<T, LogError>) -> Result<T, LogError> {
        let deadline = Instant::now() + PATIENCE;
        let mut unknown = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(50));
            let error = match ask(&*self.client(group)?, left) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match error {
                LogError::NotFound(_) if unknown < 2 => unknown += 1,
                LogError::Unavailable(_) if Instant::now() < deadline && !self.link.is_away() => {}
                error => {
                    if matches!(error, LogError::Unavailable(_)) {
                        self.renew(group);
                    }
                    return Err(error);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn bounds(&self, of: &TopicPartition) -> Result<Bounds, LogError> {
        let partition = super::legal(of).map_err(|_| LogError::NotFound(of.to_string()))?;
        self.patiently(None, |client, limit| {
            let asked = client.fetch_watermarks(of.topic.as_str(), partition, limit).map_err(|error| log_error(&of.to_string(), &error));
            let (start, end) = match asked {
                // Also said of a partition that only has no leader at the moment. The metadata knows; and without a leader this is *not available*.
                Err(LogError::NotFound(what)) if partitions_once(client, &of.topic, limit)? > of.partition => return Err(LogError::Unavailable(what)),
                asked => asked?,
            };
            let offset = |raw: i64| Offset::new(u64::try_from(raw).unwrap_or(0));
            Ok(Bounds { start: offset(start), end: offset(end) })
        })
    }

    /// One question to each broker, however many partitions.
    pub(super) fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Offset>, LogError> {
        let mut wanted = TopicPartitionList::with_capacity(of.len());
        for partition in of {
            let number = super::legal(partition).map_err(|_| LogError::NotFound(partition.to_string()))?;
            // In place of a time this asks for the end (ListOffsets, timestamp -1).
            let asked = wanted.add_partition_offset(partition.topic.as_str(), number, KafkaOffset::End);
            asked.map_err(|error| log_error(&partition.to_string(), &error))?;
        }
        if of.is_empty() {
            return Ok(Vec::new());
        }
        self.patiently(None, |client, limit| {
            let found = client.offsets_for_times(wanted.clone(), limit).map_err(|error| log_error("ends of partitions", &error))?;
            let end = |partition: &TopicPartition| {
                let number = i32::try_from(partition.partition).unwrap_or(i32::MAX);
                let element = found.find_partition(partition.topic.as_str(), number).ok_or_else(|| LogError::NotFound(partition.to_string()))?;
                element.error().map_err(|error| log_error(&partition.to_string(), &error))?;
                match element.offset() {
                    KafkaOffset::Offset(raw) => Ok(Offset::new(u64::try_from(raw).unwrap_or(0))),
                    other => Err(LogError::Unavailable(format!("{partition}: the broker said {other:?} for its end"))),
                }
            };
            of.iter().map(end).collect()
        })
    }

    pub(super) fn partitions(&self, of: &Topic) -> Result<Option<u32>, LogError> {
        if super::legal(&of.partition(0)).is_err() {
            return Ok(None);
        }
        match self.patiently(None, |client, limit| partitions_once(client, of, limit)) {
            Err(LogError::NotFound(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    pub(super) fn committed(&self, group: &str, of: &[TopicPartition]) -> Result<Vec<Option<Committed>>, LogError> {
        self.patiently(Some(group), |client, limit| committed_of(client, group, of, limit))
    }

    pub(super) fn settings(&self, of: &[Topic]) -> Result<Vec<Option<TopicSettings>>, LogError> {
        /// Of so many at once: an answer has some thirty settings of each.
        const AT_ONCE: usize = 200;
        let admin = self.admin()?;
        let mut all = Vec::with_capacity(of.len());
        for some in of.chunks(AT_ONCE) {
            let wanted: Vec<ResourceSpecifier<'_>> = some.iter().map(|topic| ResourceSpecifier::Topic(topic.as_str())).collect();
            let found = self.patiently(None, |_, limit| {
                let options = AdminOptions::new().request_timeout(Some(limit));
                match block_on(admin.describe_configs(&wanted, &options), limit * 2) {
                    Some(Ok(found)) => Ok(found),
                    Some(Err(error)) => Err(LogError::Unavailable(format!("settings of topics: {error}"))),
                    None => Err(LogError::Unavailable("settings of topics: the broker does not answer".to_owned())),
                }
            })?;
            // One that is not there, or that this client may not look at, has an error in its place.
            all.extend(found.iter().map(|resource| resource.as_ref().ok().map(settings_of)));
        }
        if all.len() == of.len() { Ok(all) } else { Err(LogError::Unavailable("settings of topics: the broker has told of others".to_owned())) }
    }

    fn admin(&self) -> Result<AdminClient<Observer>, LogError> {
        self.config.admin().create_with_context(Observer::new(&self.link, "admin")).map_err(|error| log_error("topics", &error))
    }

    pub(super) fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        let deadline = Instant::now() + TOPIC_PATIENCE;
        // Those that are there cost one question each, and need no right to create.
        let mut missing = Vec::new();
        for spec in specs {
            super::legal(&spec.topic.partition(0)).map_err(LogError::Refused)?;
            if spec.partitions == 0 {
                return Err(LogError::Refused(format!("topic {}: 0 partitions: at least 1", spec.topic)));
            }
            match self.client(None).and_then(|client| partitions_once(&client, &spec.topic, PATIENCE)) {
                Ok(_) => {}
                Err(LogError::NotFound(_)) => missing.push(spec),
                Err(LogError::Unavailable(_)) if !self.link.is_away() => missing.push(spec),
                Err(error) => return Err(error),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.create_missing(&missing, deadline)?;
        for spec in missing {
            loop {
                match self.client(None).and_then(|client| partitions_once(&client, &spec.topic, PATIENCE)) {
                    Ok(_) => break,
                    Err(LogError::NotFound(_) | LogError::Unavailable(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                    Err(LogError::NotFound(_)) => return Err(LogError::Unavailable(format!("{}: made, but not to be seen yet", spec.topic))),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn create_missing(&self, missing: &[&TopicSpec], deadline: Instant) -> Result<(), LogError> {
        let texts: Vec<_> = missing.iter().map(|spec| TopicTexts::of(spec)).collect();
        let topics: Vec<_> = missing
            .iter()
            .zip(&texts)
            .map(|(spec, texts)| {
                let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
                let replication = TopicReplication::Fixed(self.config.replication_factor.unwrap_or(-1));
                let topic = NewTopic::new(spec.topic.as_str(), partitions, replication)
                    .set("message.timestamp.type", "LogAppendTime")
                    .set("cleanup.policy", texts.cleanup)
                    .set("retention.ms", &texts.retention)
                    .set("max.message.bytes", &texts.max_message_bytes)
                    // What is compacted is small and read on start: don't let it grow for a week first.
                    .set("segment.ms", if spec.compacted { "3600000" } else { "86400000" });
                match &texts.compaction_lag {
                    Some(lag) => topic.set("min.compaction.lag.ms", lag),
                    None => topic,
                }
            })
            .collect();
        let admin = self.admin()?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
            let options = AdminOptions::new().request_timeout(Some(left.min(PATIENCE))).operation_timeout(Some(left.min(PATIENCE)));
            let results = block_on(admin.create_topics(&topics, &options), left.min(PATIENCE * 2));
            let error = match results {
                Some(Ok(results)) => first_failure(&results),
                Some(Err(error)) => Some(LogError::Unavailable(format!("topics: {error}"))),
                None => Some(LogError::Unavailable("topics: the broker does not answer".to_owned())),
            };
            match error {
                None => return Ok(()),
                Some(LogError::Unavailable(_)) if Instant::now() < deadline && !self.link.is_away() => std::thread::sleep(Duration::from_millis(100)),
                Some(error) => return Err(error),
            }
        }
    }
}

/// How many partitions a topic has, asked once.
fn partitions_once(client: &Client, of: &Topic, limit: Duration) -> Result<u32, LogError> {
    let metadata = client.fetch_metadata(Some(of.as_str()), limit).map_err(|error| log_error(of.as_str(), &error))?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == of.as_str());
    let topic = topic.ok_or_else(|| LogError::NotFound(of.to_string()))?;
    if let Some(error) = topic.error() {
        return Err(by_code(of.as_str(), error.into()));
    }
    if topic.partitions().iter().any(|partition| partition.leader() < 0) {
        return Err(LogError::Unavailable(format!("{of}: not all partitions have a leader")));
    }
    match u32::try_from(topic.partitions().len()) {
        Ok(0) | Err(_) => Err(LogError::NotFound(of.to_string())),
        Ok(count) => Ok(count),
    }
}

/// Closes clients in the background, if there are any: that takes a moment, and the prober has none.
fn close(askers: impl IntoIterator<Item = Asker>) {
    let clients: Vec<_> = askers.into_iter().map(|asker| asker.client).collect();
    if clients.is_empty() {
        return;
    }
    if let Err(error) = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || drop(clients)) {
        warn!(%error, "a client could not be closed in the background");
    }
}

fn settings_of(resource: &ConfigResource) -> TopicSettings {
    let text = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    // Below 0: without a limit.
    let limit = |name: &str| text(name).parse::<i64>().ok().and_then(|limit| u64::try_from(limit).ok());
    let cleanup: Vec<&str> = text("cleanup.policy").split(',').map(str::trim).collect();
    TopicSettings {
        retention: limit("retention.ms").map(Duration::from_millis),
        retention_bytes: limit("retention.bytes"),
        compacted: cleanup.contains(&"compact"),
        compaction_lag: limit("min.compaction.lag.ms").map(Duration::from_millis).unwrap_or_default(),
        deleted: cleanup.contains(&"delete"),
        log_append_time: text("message.timestamp.type") == "LogAppendTime",
        max_message_bytes: limit("max.message.bytes").unwrap_or(u64::MAX),
    }
}

fn first_failure(results: &[Result<String, (String, Code)>]) -> Option<LogError> {
    results.iter().find_map(|result| match result {
        Ok(_) | Err((_, Code::TopicAlreadyExists)) => None,
        Err((topic, code)) => Some(by_code(&format!("topic {topic:?}"), *code)),
    })
}

/// The texts of a topic's configuration, which must outlive the request.
struct TopicTexts {
    cleanup: &'static str,
    retention: String,
    max_message_bytes: String,
    compaction_lag: Option<String>,
}

impl TopicTexts {
    fn of(spec: &TopicSpec) -> Self {
        let cleanup = match (spec.compacted, spec.retention) {
            (false, _) => "delete",
            (true, None) => "compact",
            (true, Some(_)) => "compact,delete",
        };
        let millis = |time: Duration| time.as_millis().min(i64::MAX as u128).to_string();
        let retention = spec.retention.map_or_else(|| "-1".to_owned(), millis);
        Self { compaction_lag: spec.compaction_lag.map(millis), cleanup, retention, max_message_bytes: TOPIC_MESSAGE_BYTES.to_string() }
    }
}

/// What a group has committed, asked through any client of that group. In the order of `of`.
pub(super) fn committed_of<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    group: &str,
    of: &[TopicPartition],
    limit: Duration,
) -> Result<Vec<Option<Committed>>, LogError> {
    let mut wanted = TopicPartitionList::with_capacity(of.len());
    for partition in of {
        let number = super::legal(partition).map_err(|_| LogError::NotFound(partition.to_string()))?;
        wanted.add_partition(partition.topic.as_str(), number);
    }
    if of.is_empty() {
        return Ok(Vec::new());
    }
    let found = client.committed_offsets(wanted, limit).map_err(|error| log_error(&format!("group {group:?}"), &error))?;
    of.iter()
        .map(|partition| {
            let number = i32::try_from(partition.partition).unwrap_or(i32::MAX);
            let Some(element) = found.find_partition(partition.topic.as_str(), number) else { return Ok(None) };
            element.error().map_err(|error| log_error(&format!("group {group:?}, {partition}"), &error))?;
            let KafkaOffset::Offset(raw) = element.offset() else { return Ok(None) };
            let offset = Offset::new(u64::try_from(raw).unwrap_or(0));
            // rdkafka panics at what is no text. We never wrote such; whoever did has taken the note from its owner, who goes without.
            let metadata = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| element.metadata().to_owned())).unwrap_or_else(|_| {
                warn!(group, %partition, "the note beside a commit is no text and was ignored");
                String::new()
            });
            Ok(Some(Committed { offset, metadata }))
        })
        .collect()
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A panic ends one question, not the thread; its asker learns that nobody answers.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}

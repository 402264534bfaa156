//! One consumer that fetches for many streams, at most one per partition.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tracing::{debug, warn};

use super::config::KafkaConfig;
use super::control::Control;
use super::link::{Link, Observer};
use super::stream::{Pace, Stream, StreamId};
use crate::log::{Entry, Offset, Record, Timestamp, Topic, TopicPartition};

/// A partition that should be fetched and is not, for this long, is started again; a consumer that hears nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(15);

/// How long the metadata of a topic that is new to a consumer are waited for.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    consumer: Arc<BaseConsumer<LaneEvents>>,
    pace: Pace,
    /// Topics that the consumer has been told to look at.
    known: HashSet<Topic>,
    control: Arc<Control>,
    events: Arc<Shared>,
    link: Arc<Link>,
    /// By topic, then partition: what a message is looked up by.
    by_partition: HashMap<String, HashMap<i32, StreamId>>,
    streams: HashMap<StreamId, Stream>,
    /// Streams to be assigned and partitions to be unassigned, in the next turn and together.
    to_assign: Vec<StreamId>,
    to_unassign: Vec<TopicPartition>,
    ended: Vec<StreamId>,
    lost: Vec<Stream>,
    empty_since: Instant,
    out_of_range: Cell<bool>,
    fetched: (u64, Instant),
    stalled: bool,
}

/// What the consumer's callbacks leave for the lane.
#[derive(Default)]
struct Shared {
    /// Things that were served. A poll that returns nothing may have served something, with more to come.
    served: AtomicU64,
    woken: OnceLock<Thread>,
    /// Partitions that librdkafka does not fetch although they are assigned.
    inactive: Mutex<Vec<(String, i32)>>,
    /// Bytes received from brokers; a fetch that finds nothing counts too.
    received: AtomicU64,
    fresh: AtomicBool,
}

struct LaneEvents {
    observer: Observer,
    shared: Arc<Shared>,
}

impl ClientContext for LaneEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.observer.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.observer.error(error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.shared.received.store(statistics.brokers.values().map(|broker| broker.rx).sum(), Ordering::Relaxed);
        let mut inactive = self.shared.inactive.lock().unwrap_or_else(PoisonError::into_inner);
        inactive.clear();
        for (name, topic) in &statistics.topics {
            let idle = topic.partitions.values().filter(|partition| partition.desired && partition.fetch_state != "active");
            inactive.extend(idle.map(|partition| (name.clone(), partition.partition)));
        }
        self.shared.fresh.store(true, Ordering::Release);
    }
}

impl ConsumerContext for LaneEvents {}

impl Lane {
    pub(super) fn create(config: &KafkaConfig, link: &Arc<Link>, control: &Arc<Control>, pace: Pace) -> Result<Self, KafkaError> {
        let events = Arc::new(Shared::default());
        let context = LaneEvents { observer: Observer::new(link, "read"), shared: events.clone() };
        let mut consumer: BaseConsumer<LaneEvents> = config.reader(pace).create_with_context(context)?;
        let shared = events.clone();
        consumer.set_nonempty_callback(move || {
            if let Some(thread) = shared.woken.get() {
                thread.unpark();
            }
        });
        Ok(Self {
            consumer: Arc::new(consumer),
            pace,
            known: HashSet::new(),
            control: Arc::clone(control),
            events,
            link: link.clone(),
            by_partition: HashMap::new(),
            streams: HashMap::new(),
            to_assign: Vec::new(),
            to_unassign: Vec::new(),
            ended: Vec::new(),
            lost: Vec::new(),
            empty_since: Instant::now(),
            out_of_range: Cell::new(false),
            fetched: (0, Instant::now()),
            stalled: false,
        })
    }

    /// Who is to be woken when there is something to poll.
    pub(super) fn wake(&mut self, thread: Thread) {
        let _ = self.events.woken.set(thread);
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn idle_for(&self) -> Duration {
        if self.streams.is_empty() { self.empty_since.elapsed() } else { Duration::ZERO }
    }

    pub(super) fn reads(&self, partition: &TopicPartition) -> bool {
        self.by_partition.get(partition.topic.as_str()).is_some_and(|streams| streams.contains_key(&number(partition)))
    }

    pub(super) fn add(&mut self, mut stream: Stream) {
        stream.paused = false;
        stream.alive = Instant::now();
        self.by_partition.entry(stream.partition.topic.as_str().to_owned()).or_default().insert(number(&stream.partition), stream.id);
        self.to_assign.push(stream.id);
        self.streams.insert(stream.id, stream);
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        let topic = stream.partition.topic.as_str();
        if let Some(streams) = self.by_partition.get_mut(topic) {
            streams.remove(&number(&stream.partition));
            if streams.is_empty() {
                self.by_partition.remove(topic);
            }
        }
        // librdkafka remembers a pause beyond the assignment: whoever reads this partition next would get nothing.
        if stream.paused
            && let Err(error) = self.consumer.resume(&list([(stream.partition.clone(), None)]))
        {
            warn!(%error, "a partition could not be resumed");
        }
        // Not assigned yet: there is nothing to take back.
        if let Some(at) = self.to_assign.iter().position(|waiting| *waiting == id) {
            self.to_assign.swap_remove(at);
        } else {
            self.to_unassign.push(stream.partition.clone());
        }
        if self.streams.is_empty() {
            self.empty_since = Instant::now();
        }
        Some(stream)
    }

    pub(super) fn want(&mut self, id: StreamId, records: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.want(records);
        }
    }

    /// Tells the consumer what it is to read.
    pub(super) fn settle(&mut self) {
        if !self.to_unassign.is_empty() {
            let list = list(self.to_unassign.drain(..).map(|partition| (partition, None)));
            if let Err(error) = self.consumer.incremental_unassign(&list) {
                warn!(%error, "a partition could not be unassigned");
            }
        }
        if !self.to_assign.is_empty() {
            let streams = self.to_assign.drain(..).filter_map(|id| self.streams.get(&id));
            let list = list(streams.map(|stream| (stream.partition.clone(), Some(stream.next()))));
            if let Err(error) = self.consumer.incremental_assign(&list) {
                warn!(%error, "a partition could not be assigned");
            }
            for (topic, _) in list.to_topic_map().into_keys() {
                self.look_at(Topic::new(&topic));
            }
        }
    }

    /// librdkafka looks once a second where the partitions of topics are that it has not read before; one that is asked for its metadata is found at once.
    fn look_at(&mut self, topic: Topic) {
        if self.known.contains(&topic) {
            return;
        }
        let (consumer, asked) = (Arc::clone(&self.consumer), topic.clone());
        // Without an answer librdkafka finds it by itself.
        drop(self.control.ask(move |_| {
            let _ = consumer.client().fetch_metadata(Some(asked.as_str()), LOOK_LIMIT);
            Ok(())
        }));
        self.known.insert(topic);
    }

    /// Takes everything that was fetched.
    pub(super) fn poll(&mut self, waker: &Waker) {
        loop {
            let served = self.events.served.load(Ordering::Relaxed);
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    let id = self.by_partition.get(message.topic()).and_then(|streams| streams.get(&message.partition()));
                    if let Some(stream) = id.and_then(|id| self.streams.get_mut(id)) {
                        stream.push(entry(&message));
                        if stream.is_full() && !stream.paused {
                            let partition = stream.partition.clone();
                            // It may be taken at once; then there is no need to pause.
                            if stream.flush(waker) && stream.is_full() {
                                stream.paused = true;
                                let list = list([(partition, None)]);
                                drop(message);
                                if let Err(error) = self.consumer.pause(&list) {
                                    warn!(%error, "a partition could not be paused");
                                }
                            }
                        }
                    }
                }
                Some(Err(error)) => self.failed(&error),
                None if self.events.served.load(Ordering::Relaxed) == served => break,
                None => {}
            }
        }
        self.look_for_stalls();
    }

    fn failed(&self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            // Which partition it was is not told.
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => self.out_of_range.set(true),
            Some(Code::AllBrokersDown | Code::BrokerTransportFailure) => {}
            _ => debug!(%error, "reading failed; it goes on by itself"),
        }
    }

    /// Hands over what was fetched.
    pub(super) fn flush(&mut self, waker: &Waker) {
        let mut resume = Vec::new();
        for stream in self.streams.values_mut() {
            if !stream.flush(waker) {
                self.ended.push(stream.id);
            } else if stream.paused && stream.has_room() {
                stream.paused = false;
                stream.alive = Instant::now();
                resume.push((stream.partition.clone(), None));
            }
        }
        for at in 0..self.ended.len() {
            self.remove(self.ended[at]);
        }
        if !resume.is_empty() {
            if let Err(error) = self.consumer.resume(&list(resume)) {
                warn!(%error, "a partition could not be resumed");
            }
            // Records may be there already.
            std::thread::current().unpark();
        }
        // What ended is unassigned now, not when something happens next.
        self.settle();
    }

    /// Streams whose user is gone.
    pub(super) fn take_ended(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.ended)
    }

    /// Streams that are not read although they should be: the offset may lie outside of the log.
    pub(super) fn take_lost(&mut self) -> Vec<Stream> {
        if self.out_of_range.replace(false) {
            // Which one it was is not told, so all that have nothing going on are looked at.
            let suspects: Vec<_> = self.streams.values().filter(|stream| !stream.paused).map(|stream| stream.id).collect();
            for id in suspects {
                let removed = self.remove(id);
                self.lost.extend(removed);
            }
            self.settle();
        }
        std::mem::take(&mut self.lost)
    }

    /// Whether the consumer as a whole hears nothing.
    pub(super) fn is_stalled(&mut self) -> bool {
        std::mem::take(&mut self.stalled)
    }

    fn look_for_stalls(&mut self) {
        if !self.events.fresh.swap(false, Ordering::AcqRel) {
            return;
        }
        let received = self.events.received.load(Ordering::Relaxed);
        let reading = self.streams.values().any(|stream| !stream.paused);
        if self.link.is_away() || !reading || received != self.fetched.0 {
            self.fetched = (received, Instant::now());
        }
        if self.link.is_away() {
            self.streams.values_mut().for_each(|stream| stream.alive = Instant::now());
            return;
        }
        self.stalled = self.fetched.1.elapsed() > STALLED;
        let inactive = std::mem::take(&mut *self.events.inactive.lock().unwrap_or_else(PoisonError::into_inner));
        let is_inactive =
            |stream: &Stream| inactive.iter().any(|(topic, partition)| *topic == stream.partition.topic.as_str() && *partition == number(&stream.partition));
        let mut again = Vec::new();
        for stream in self.streams.values_mut() {
            if stream.paused || !is_inactive(stream) {
                stream.alive = Instant::now();
            } else if stream.alive.elapsed() > STALLED {
                again.push(stream.id);
            }
        }
        for id in again {
            if let Some(stream) = self.remove(id) {
                warn!(partition = %stream.partition, next = %stream.next(), "a partition was not fetched although it should be; it was started again");
                // As one whose offset may be outside of the log: that is asked first.
                self.lost.push(stream);
            }
        }
        self.settle();
    }

    /// Ends the consumer, on a thread of its own because that takes a moment; gives back the streams.
    pub(super) fn close(self) -> Vec<Stream> {
        let streams = self.streams.into_values().collect();
        let consumer = self.consumer;
        let closing = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || drop(consumer));
        if let Err(error) = closing {
            warn!(%error, "a client was closed on the reading thread");
        }
        streams
    }
}

fn number(partition: &TopicPartition) -> i32 {
    i32::try_from(partition.partition).unwrap_or(i32::MAX)
}

fn list(partitions: impl IntoIterator<Item = (TopicPartition, Option<Offset>)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        let mut element = list.add_partition(partition.topic.as_str(), number(&partition));
        if let Some(offset) = offset {
            let offset = KafkaOffset::Offset(i64::try_from(offset.get()).unwrap_or(i64::MAX));
            // Only negative offsets are refused.
            let _ = element.set_offset(offset);
        }
    }
    list
}

fn entry(message: &BorrowedMessage<'_>) -> Entry {
    let millis = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0);
    Entry {
        offset: Offset::new(u64::try_from(message.offset()).unwrap_or(0)),
        timestamp: Timestamp::from_millis(millis),
        record: Record { key: message.key().map_or_else(Bytes::new, Bytes::copy_from_slice), value: message.payload().map(Bytes::copy_from_slice) },
    }
}

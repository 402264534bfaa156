//! Appends: one idempotent producer, a gate in front of it, and the reports that come back.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::brokers::Known;
use super::config::{KafkaConfig, MAX_RECORD_BYTES};
use super::error::append_error;
use super::link::{Link, Observer};
use super::statistics;
use super::wake::{Bell, bell};
use crate::log::{Append, AppendError, Appended, Offset, Pending, Record, Statistics, Timestamp, TopicPartition};

/// Appends that may wait behind the gate, together with those in the producer's own queue.
const HELD_RECORDS: usize = 10_000;
const HELD_BYTES: usize = 64 << 20;

/// A report that comes within this time is about the only time that the record was sent: no timeout or reconnect fits in.
const QUICK: Duration = Duration::from_millis(500);

/// After this long without any acknowledgement, with some due, the broker is suspected.
const SILENCE: Duration = Duration::from_secs(1);

type Outcome = Result<Appended, AppendError>;
type Reply = oneshot::Sender<Outcome>;
type KafkaProducer = BaseProducer<Reports>;

pub(super) struct Appender {
    inner: RwLock<Inner>,
    config: KafkaConfig,
    link: Arc<Link>,
    load: Arc<Load>,
    results: Arc<Results>,
}

struct Inner {
    gate: Gate,
    producer: Arc<KafkaProducer>,
    known: Known,
}

/// What is behind it has provably not left this process. That is how an append that is made while nobody knows whether there is a broker can still end in
/// *not persisted*.
enum Gate {
    Open,
    /// A probe is under way.
    Held(Vec<(TopicPartition, Record, Reply)>, usize),
    /// Nothing gets through, for this reason.
    Shut(String),
}

/// How many records went into the producer and how many reports came out.
#[derive(Default)]
struct Load {
    sent: AtomicU64,
    reported: AtomicU64,
    /// What the producer said of itself last.
    statistics: Mutex<Option<Statistics>>,
}

/// What goes with a record through the producer.
pub(super) struct InFlight {
    reply: Reply,
    to: TopicPartition,
    size_bytes: usize,
    since: Instant,
}

impl Appender {
    pub(super) fn start(config: &KafkaConfig, link: &Arc<Link>, runtime: &Handle) -> Result<Arc<Self>, KafkaError> {
        let (load, results) = (Arc::new(Load::default()), Results::start(runtime)?);
        let (producer, known) = create(config, link, &load, &results)?;
        // Nothing is known yet: a probe opens it, or shuts it.
        let inner = RwLock::new(Inner { gate: Gate::Held(Vec::new(), 0), producer, known });
        let appender = Arc::new(Self { inner, config: config.clone(), link: link.clone(), load, results });
        let weak = Arc::downgrade(&appender);
        std::thread::Builder::new()
            .name("kafka-append".to_owned())
            .spawn(move || report_loop(&weak))
            .map_err(|error| KafkaError::ClientCreation(format!("no thread for the producer: {error}")))?;
        Ok(appender)
    }

    pub(super) fn append(&self, to: &TopicPartition, record: Record) -> Append {
        let size_bytes = record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len);
        if size_bytes > MAX_RECORD_BYTES {
            return Pending::ready(Err(AppendError::TooLarge { size_bytes, limit_bytes: MAX_RECORD_BYTES }));
        }
        if let Err(why) = super::legal(to) {
            return Pending::ready(Err(AppendError::NotPersisted(why)));
        }
        let (reply, append) = Pending::new();
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        match &inner.gate {
            Gate::Open => self.send(&inner.producer, to.clone(), &record, reply),
            Gate::Shut(why) => return Pending::ready(Err(AppendError::NotPersisted(why.clone()))),
            Gate::Held(..) => {
                drop(inner);
                self.wait_at_gate(to, record, size_bytes, reply);
            }
        }
        append
    }

    fn wait_at_gate(&self, to: &TopicPartition, record: Record, size_bytes: usize, reply: Reply) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Inner { gate, producer, .. } = &mut *inner;
        let refusal = match gate {
            Gate::Held(held, held_bytes) => {
                if held.len() < HELD_RECORDS && *held_bytes + size_bytes <= HELD_BYTES {
                    *held_bytes += size_bytes;
                    held.push((to.clone(), record, reply));
                    return;
                }
                format!("{to}: {} appends wait for the broker already", held.len())
            }
            // It moved meanwhile.
            Gate::Open => return self.send(producer, to.clone(), &record, reply),
            Gate::Shut(why) => why.clone(),
        };
        let _ = reply.send(Err(AppendError::NotPersisted(refusal)));
    }

    fn send(&self, producer: &KafkaProducer, to: TopicPartition, record: &Record, reply: Reply) {
        let size_bytes = record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len);
        let topic = to.topic.clone();
        let in_flight = Box::new(InFlight { reply, to, size_bytes, since: Instant::now() });
        let partition = i32::try_from(in_flight.to.partition).unwrap_or(i32::MAX);
        let mut message = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic.as_str(), in_flight).partition(partition);
        if !record.key.is_empty() {
            message = message.key(record.key.as_ref());
        }
        if let Some(value) = &record.value {
            message = message.payload(value.as_ref());
        }
        self.load.sent.fetch_add(1, Ordering::Relaxed);
        // Refused here, a record has not left this process, whatever the reason.
        if let Err((error, message)) = producer.send(message) {
            self.load.sent.fetch_sub(1, Ordering::Relaxed);
            let InFlight { reply, to, .. } = *message.delivery_opaque;
            let why = match error.rdkafka_error_code() {
                Some(Code::QueueFull) => format!("{to}: too many appends are on their way"),
                Some(Code::MessageSizeTooLarge) => {
                    let _ = reply.send(Err(AppendError::TooLarge { size_bytes, limit_bytes: MAX_RECORD_BYTES }));
                    return;
                }
                _ => format!("{to}: {error}"),
            };
            let _ = reply.send(Err(AppendError::NotPersisted(why)));
        }
    }

    /// Lets nothing more through until it is known whether there is a broker.
    pub(super) fn hold(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(inner.gate, Gate::Open) {
            inner.gate = Gate::Held(Vec::new(), 0);
        }
    }

    /// There is a broker.
    pub(super) fn open(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Gate::Held(held, _) = std::mem::replace(&mut inner.gate, Gate::Open) {
            for (to, record, reply) in held {
                self.send(&inner.producer, to, &record, reply);
            }
        }
    }

    /// There is none.
    pub(super) fn shut(&self, why: &str) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Gate::Held(held, _) = std::mem::replace(&mut inner.gate, Gate::Shut(why.to_owned())) {
            for (_, _, reply) in held {
                let _ = reply.send(Err(AppendError::NotPersisted(why.to_owned())));
            }
        }
    }

    /// What the producer said of itself last.
    pub(super) fn statistics(&self) -> Option<Statistics> {
        self.load.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn producer(&self) -> Arc<KafkaProducer> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).producer.clone()
    }

    /// Why the producer can't go on: after an error that ends it for good (idempotence can't be kept up), or because it knows of no broker.
    fn has_ended(&self) -> Option<String> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let fatal = inner.producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"));
        fatal.or_else(|| inner.known.is_none().then(|| "it knew no broker any more".to_owned()))
    }

    /// Another producer takes the place of one that has ended. What was on its way in the old one ends as unknown.
    fn replace_producer(&self) -> Result<Arc<KafkaProducer>, KafkaError> {
        let (new, known) = create(&self.config, &self.link, &self.load, &self.results)?;
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        (inner.producer, inner.known) = (new.clone(), known);
        Ok(new)
    }
}

fn create(config: &KafkaConfig, link: &Arc<Link>, load: &Arc<Load>, results: &Arc<Results>) -> Result<(Arc<KafkaProducer>, Known), KafkaError> {
    let observer = Observer::new(link, "append");
    let known = observer.known();
    Ok((Arc::new(config.producer().create_with_context(Reports { observer, load: load.clone(), results: results.clone() })?), known))
}

/// Takes the reports, as they come, until the appender is gone.
fn report_loop(appender: &Weak<Appender>) {
    let Some(mut producer) = appender.upgrade().map(|appender| appender.producer()) else { return };
    let mut reported = 0;
    let mut silent_since = Instant::now();
    loop {
        // Reports are handed over as they come. (The last millisecond of each turn is spent spinning, in rdkafka: so the turns are long.)
        producer.poll(Duration::from_millis(500));
        let Some(appender) = appender.upgrade() else { break };
        if appender.link.is_closed() {
            break;
        }
        let now_reported = appender.load.reported.load(Ordering::Relaxed);
        if now_reported != reported || appender.load.sent.load(Ordering::Relaxed) == now_reported {
            reported = now_reported;
            silent_since = Instant::now();
        } else if silent_since.elapsed() > SILENCE {
            silent_since = Instant::now();
            appender.link.suspect();
        }
        if let Some(reason) = appender.has_ended() {
            match appender.replace_producer() {
                Ok(new) => {
                    warn!(reason, "the producer ended for good and was replaced");
                    producer = new;
                }
                Err(error) => error!(reason, %error, "the producer ended for good and can't be replaced"),
            }
        }
    }
    // Dropping the last one purges it; each append that was under way is told.
}

/// Where delivery reports arrive.
pub(super) struct Reports {
    observer: Observer,
    load: Arc<Load>,
    results: Arc<Results>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.observer.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.observer.error(error, reason);
    }

    /// Not as rdkafka takes them: all that librdkafka knows is far more than is wanted.
    fn stats_raw(&self, statistics: &[u8]) {
        self.observer.stats_raw(statistics);
        match statistics::read(statistics) {
            Ok(read) => *self.load.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(read),
            Err(error) => warn!(%error, "what the producer says of itself can't be read"),
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, report: &DeliveryResult<'_>, in_flight: Self::DeliveryOpaque) {
        self.load.reported.fetch_add(1, Ordering::Relaxed);
        let InFlight { reply, to, size_bytes, since } = *in_flight;
        let result = match report {
            Ok(message) => match u64::try_from(message.offset()) {
                Ok(offset) => {
                    let timestamp = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
                    Ok(Appended { offset: Offset::new(offset), timestamp: timestamp.map_or_else(crate::clock::wall_clock, Timestamp::from_millis) })
                }
                // The broker knows that it has the record, but no longer where.
                Err(_) => Err(AppendError::Unknown(format!("{to}: persisted, but the broker did not say where"))),
            },
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                Err(append_error(code, since.elapsed() < QUICK, &to.to_string(), size_bytes, MAX_RECORD_BYTES))
            }
        };
        self.results.tell(reply, result);
    }
}

/// What came of appends, on its way from the producer's thread to a task of the runtime, which tells whoever waits for it: see [`Bell`].
struct Results {
    told: Arc<Mutex<Vec<(Reply, Outcome)>>>,
    bell: Bell,
}

impl Results {
    /// The task ends with it.
    fn start(runtime: &Handle) -> Result<Arc<Self>, KafkaError> {
        let _runtime = runtime.enter();
        let (bell, mut hearing) = bell()?;
        let told = Arc::default();
        let results = Arc::new(Self { told: Arc::clone(&told), bell });
        runtime.spawn(poll_fn(move |cx| {
            let is_over = !hearing.listen(cx);
            for (reply, outcome) in std::mem::take(&mut *all(&told)) {
                let _ = reply.send(outcome);
            }
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        }));
        Ok(results)
    }

    fn tell(&self, reply: Reply, outcome: Outcome) {
        let mut told = all(&self.told);
        told.push((reply, outcome));
        let is_first = told.len() == 1;
        drop(told);
        if is_first {
            self.bell.ring();
        }
    }
}

fn all(told: &Mutex<Vec<(Reply, Outcome)>>) -> MutexGuard<'_, Vec<(Reply, Outcome)>> {
    // Nothing in there can panic half-way.
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Whether Kafka can be reached: suspicion comes from the clients, certainty from a probe.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::append::Appender;
use super::brokers::Known;
use super::control::Control;
use crate::clock::Moment;
use crate::log::Health;

/// How long a probe may take. While it runs, appends wait; so a caller learns within a second that the broker is away.
const PROBE_LIMIT: Duration = Duration::from_millis(700);

/// How long a probe may take at first when it is known that Kafka is away, and nothing waits for it: were it no longer than above, a broker that takes longer for each answer
/// would be away for good. It grows from probe to probe for the same reason: a broker that opens thousands of partitions needs longer than any fixed time.
const PATIENT_PROBE_LIMIT: Duration = Duration::from_secs(5);
/// And at most.
const MOST_PATIENT_PROBE_LIMIT: Duration = Duration::from_secs(40);

/// After so many probes in a row without an answer the next ones are made by another client.
const RENEW_AFTER: u32 = 3;

/// How long a probe may take after so many that failed one after the other.
fn probe_limit(failed: u32) -> Duration {
    match failed.checked_sub(1) {
        None => PROBE_LIMIT,
        Some(since) => (PATIENT_PROBE_LIMIT * 2_u32.saturating_pow(since.min(8))).min(MOST_PATIENT_PROBE_LIMIT),
    }
}

/// What is known of the connection to Kafka, by all clients together.
pub(super) struct Link {
    health: watch::Sender<Health>,
    /// A client saw something: the prober is to look.
    doubted: AtomicBool,
    /// It looks as if there were no broker at all: appends wait until the prober has looked.
    suspected: AtomicBool,
    /// The last that a client complained of, for messages.
    complaint: Mutex<String>,
    prober: OnceLock<Thread>,
    closed: AtomicBool,
}

impl Link {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            health: watch::Sender::new(Health::Up),
            doubted: AtomicBool::new(true),
            suspected: AtomicBool::new(true),
            complaint: Mutex::new(String::new()),
            prober: OnceLock::new(),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(super) fn is_away(&self) -> bool {
        matches!(*self.health.borrow(), Health::Away(_))
    }

    /// The reason, as far as it is known, for someone who was refused.
    pub(super) fn away(&self) -> String {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if complaint.is_empty() { "no Kafka broker can be reached".to_owned() } else { format!("no Kafka broker can be reached: {complaint}") }
    }

    /// Asks for a probe now, and lets appends wait for it.
    pub(super) fn suspect(&self) {
        self.suspected.store(true, Ordering::Release);
        self.doubt();
    }

    /// Asks for a probe now. A single broker may be gone of several, and stay so for hours: that must hold up nobody.
    fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
        if let Some(prober) = self.prober.get() {
            prober.unpark();
        }
    }

    /// Ends the prober and everything else that looks at it.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(prober) = self.prober.get() {
            prober.unpark();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn complain(&self, reason: &str) {
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        complaint.clear();
        complaint.extend(reason.chars().take(300));
    }

    fn set(&self, health: Health) {
        let changed = self.health.send_if_modified(|known| {
            let change = matches!((&*known, &health), (Health::Up, Health::Away(_)) | (Health::Away(_), Health::Up));
            if change {
                *known = health;
            }
            change
        });
        match (changed, health) {
            (true, Health::Up) => info!("Kafka can be reached again"),
            (true, Health::Away(_)) => warn!(reason = self.away(), "Kafka went away"),
            _ => {}
        }
    }
}

/// Starts the thread that turns suspicion into knowledge. It ends when the link is closed.
pub(super) fn start_prober(link: &Arc<Link>, control: Weak<Control>, appender: Weak<Appender>) -> std::io::Result<()> {
    let own = link.clone();
    let handle = std::thread::Builder::new().name("kafka-probe".to_owned()).spawn(move || probe_loop(&own, &control, &appender))?;
    let _ = link.prober.set(handle.thread().clone());
    Ok(())
}

fn probe_loop(link: &Link, control: &Weak<Control>, appender: &Weak<Appender>) {
    let mut known = false;
    let mut failed = 0_u32;
    while !link.is_closed() {
        let (Some(control), Some(appender)) = (control.upgrade(), appender.upgrade()) else { return };
        control.tend();
        if link.doubted.swap(false, Ordering::AcqRel) || !known || link.is_away() {
            if link.suspected.swap(false, Ordering::AcqRel) {
                appender.hold();
            }
            known = true;
            match control.probe(probe_limit(failed)) {
                Ok(()) => {
                    failed = 0;
                    link.set(Health::Up);
                    appender.open();
                }
                Err(error) => {
                    failed = failed.saturating_add(1);
                    if failed.is_multiple_of(RENEW_AFTER) {
                        control.renew(None);
                    }
                    if link.complaint.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                        link.complain(&error);
                    }
                    link.set(Health::Away(Moment::now()));
                    appender.shut(&link.away());
                }
            }
        }
        drop((control, appender));
        // A probe of a broker that refuses connections returns at once or waits; neither may spin.
        std::thread::park_timeout(if link.is_away() { Duration::from_millis(100) } else { Duration::from_secs(1) });
    }
}

/// What every client reports to.
#[derive(Clone)]
pub(super) struct Observer {
    link: Arc<Link>,
    client: &'static str,
    known: Known,
}

impl Observer {
    pub(super) fn new(link: &Arc<Link>, client: &'static str) -> Self {
        Self { link: link.clone(), client, known: Known::default() }
    }

    /// What the client knows of brokers, if it tells of itself.
    pub(super) fn known(&self) -> Known {
        self.known.clone()
    }
}

impl ClientContext for Observer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(client = self.client, ?level, facility, message, "librdkafka reported");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(client = self.client, %error, reason, "librdkafka failed");
        if let Some(code) = error.rdkafka_error_code() {
            match code {
                Code::AllBrokersDown => self.link.suspect(),
                Code::BrokerTransportFailure | Code::Resolve | Code::SSL | Code::Authentication | Code::SaslAuthenticationFailed => {
                    self.link.complain(reason);
                    self.link.doubt();
                }
                _ => {}
            }
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.known.hear(statistics);
    }
}

impl ConsumerContext for Observer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_may_take_longer_each_time_until_one_is_answered() {
        let limits: Vec<_> = (0..=6).map(|failed| probe_limit(failed).as_millis()).collect();
        assert_eq!(limits, [700, 5_000, 10_000, 20_000, 40_000, 40_000, 40_000]);
        assert_eq!(probe_limit(u32::MAX), MOST_PATIENT_PROBE_LIMIT);
    }
}

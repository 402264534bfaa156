//! What goes on in a system, for those who look: `bluebox status`, the page of `bluebox up`, and `bluebox watch`, the part that always runs, also where a component has no box.
//!
//! - [`survey`]: what the log says of each component.
//! - [`boxes`]: what the proxies of an `up` say of it: how many calls a second, how they end, how long they take.
//! - [`history`]: calls that have no end yet, and all that the log knows of one call.
//! - [`page`](mod@page): all of it over HTTP: as a page, as JSON, as metrics; and what can be changed there.
//! - [`scale`]: what components are scaled by, for KEDA and for a HorizontalPodAutoscaler.
//! - [`run`](mod@run): `bluebox watch`.

pub(crate) mod boxes;
pub(crate) mod history;
pub(crate) mod page;
pub(crate) mod run;
pub(crate) mod scale;
pub(crate) mod survey;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bluebox_core::clock::wall_clock;
use bluebox_core::topics::Prefix;
use bluebox_core::{ComponentName, Log};
use bluebox_observe::Counts;
use prometheus::{Gauge, GaugeVec, IntCounter, IntGaugeVec};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use self::boxes::{Boxes, Seen};
use self::survey::{Surveyed, Surveyor};
use crate::operate::Reached;
use crate::operate::door::Door;
use crate::up::state::{State, UnitState};

/// How often is looked; where a look takes longer than that, there is a pause as long as the look.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// What there is to know of a system.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    /// When this was looked at, in milliseconds since 1970; 0: not yet.
    pub(crate) at_ms: u64,
    /// Why the last look failed, if it did. What is here is older then.
    pub(crate) problem: Option<String>,
    /// Every component that was ever registered.
    pub(crate) components: Vec<ComponentStatus>,
    /// The boxes, under `up`.
    pub(crate) boxes: Vec<UnitState>,
}

/// What there is to know of a component.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ComponentStatus {
    /// What the log says.
    #[serde(flatten)]
    pub(crate) log: Surveyed,
    /// What its proxies say, where they can be asked.
    #[serde(flatten)]
    pub(crate) seen: Option<Seen>,
    /// The boxes that serve it, under `up`.
    pub(crate) boxes: Vec<String>,
}

/// The counts of the part that always runs.
pub(crate) struct Metrics {
    counts: Counts,
    backlog: IntGaugeVec,
    oldest: GaugeVec,
    dead_letters: IntGaugeVec,
    partitions: IntGaugeVec,
    seconds: Gauge,
    at: Gauge,
    failures: IntCounter,
}

impl Metrics {
    /// All of them at nothing.
    pub(crate) fn try_new() -> Result<Arc<Self>, prometheus::Error> {
        let counts = Counts::try_new("watch")?;
        let by = |name: &str, help: &str, labels: &[&str]| counts.gauges(name, help, labels);
        Ok(Arc::new(Self {
            backlog: by(
                "bluebox_component_backlog_calls",
                "Calls of a component that were accepted and have no end, whether a box has read them or not; there also when the component has no box at all. Out of the log: what lies \
                 between frontier and end without being done, and what is parked. What to scale by",
                &["component"],
            )?,
            oldest: counts.reals("bluebox_component_oldest_call_age_seconds", "Age of the oldest of these calls; 0 if there is none", &["component"])?,
            dead_letters: by("bluebox_component_dead_letters", "Dead letters of a component with which nothing was done yet", &["component"])?,
            partitions: by("bluebox_component_partitions", "Partitions of a component: more replicas than that have nothing to do", &["component", "class"])?,
            seconds: counts.real("bluebox_watch_look_seconds", "How long the last look at the log took")?,
            at: counts.real("bluebox_watch_last_look_timestamp_seconds", "When the log was last looked at with success, in seconds since 1970")?,
            failures: counts.counter("bluebox_watch_failures_total", "Looks at the log that failed")?,
            counts,
        }))
    }

    /// Every count, for the reference.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    fn set(&self, surveyed: &[Surveyed], took: Duration) {
        let now = wall_clock();
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for one in surveyed {
            let label = [one.name.as_str()];
            self.backlog.with_label_values(&label).set(whole(one.backlog));
            let age = one.oldest_ms.map_or(Duration::ZERO, |at| Duration::from_millis(now.as_millis().saturating_sub(at)));
            self.oldest.with_label_values(&label).set(age.as_secs_f64());
            self.dead_letters.with_label_values(&label).set(whole(one.dead_letters));
            let class = format!("{:?}", one.class).to_lowercase();
            self.partitions.with_label_values(&[one.name.as_str(), &class]).set(one.partitions.into());
        }
        self.seconds.set(took.as_secs_f64());
        self.at.set(Duration::from_millis(now.as_millis()).as_secs_f64());
    }
}

/// What is watched, and what was seen last.
#[derive(Clone)]
pub(crate) struct Watched {
    /// What was seen last.
    pub(crate) status: watch::Receiver<Status>,
    /// The log.
    pub(crate) log: Arc<dyn Log>,
    /// How topics begin.
    pub(crate) prefix: Prefix,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// Where the transaction manager is asked.
    pub(crate) transactions: Transactions,
    /// Places for those who want calls as they come.
    pub(crate) taps: Arc<Semaphore>,
}

/// Where the transaction manager is asked.
#[derive(Clone)]
pub(crate) enum Transactions {
    /// Nobody has said.
    Unknown,
    /// There: HOST:PORT.
    At(String),
    /// Through the gateway of an `up`, or any of its proxies, if there is a transaction manager.
    Up(watch::Receiver<State>),
}

impl Transactions {
    /// Where, if there is one.
    pub(crate) fn door(&self, status: &Status) -> Option<Door> {
        match self {
            Self::Unknown => None,
            Self::At(address) => Some(Door::At(address.clone())),
            Self::Up(state) => {
                status.components.iter().find(|component| component.log.name.as_str() == crate::txmgr::NAME)?;
                let state = state.borrow();
                state.gateway.or_else(|| state.units.iter().find_map(|unit| unit.proxy)).map(Door::from)
            }
        }
    }
}

/// Taps that may be open at once: each reads every partition.
pub(crate) const MAX_TAPS: usize = 4;

impl Watched {
    /// The log, for one who asks it something.
    pub(crate) fn reached(&self) -> Reached {
        Reached { log: self.log.clone(), prefix: self.prefix.clone() }
    }
}

/// Begins to watch; what is returned second is to run for as long as somebody may look. `state` says which boxes there are, under `up`; elsewhere `txmgr` says where the transaction
/// manager is asked.
pub(crate) fn begin(
    reached: Reached,
    state: Option<watch::Receiver<State>>,
    txmgr: Option<String>,
) -> Result<(Watched, impl Future<Output = ()> + Send + use<>), prometheus::Error> {
    let metrics = Metrics::try_new()?;
    let (tell, status) = watch::channel(Status::default());
    let transactions = match (&state, txmgr) {
        (_, Some(address)) => Transactions::At(address),
        (Some(state), None) => Transactions::Up(state.clone()),
        (None, None) => Transactions::Unknown,
    };
    let taps = Arc::new(Semaphore::new(MAX_TAPS));
    let watched = Watched { status, log: reached.log.clone(), prefix: reached.prefix.clone(), metrics: metrics.clone(), transactions, taps };
    Ok((watched, look_on(reached, state, metrics, tell)))
}

async fn look_on(reached: Reached, state: Option<watch::Receiver<State>>, metrics: Arc<Metrics>, tell: watch::Sender<Status>) {
    let mut surveyor = Surveyor::new(reached);
    let mut boxes = Boxes::default();
    loop {
        let began = Instant::now();
        let units = state.as_ref().map(|state| state.borrow().units.clone()).unwrap_or_default();
        let admins: Vec<SocketAddr> = units.iter().filter_map(|unit| unit.admin.filter(|_| unit.proxy_pid != 0)).collect();
        let (surveyed, ()) = tokio::join!(surveyor.survey(), boxes.look(&admins));
        match surveyed {
            Ok(surveyed) => {
                metrics.set(&surveyed, began.elapsed());
                let asked = state.is_some();
                let components =
                    surveyed.into_iter().map(|log| ComponentStatus { seen: asked.then(|| boxes.seen(&log.name)), boxes: serving(&units, &log.name), log });
                tell.send_replace(Status { at_ms: wall_clock().as_millis(), problem: None, components: components.collect(), boxes: units });
            }
            Err(error) => {
                metrics.failures.inc();
                tell.send_modify(|status| (status.problem, status.boxes) = (Some(format!("{error:#}")), units));
            }
        }
        tokio::time::sleep(EVERY.max(began.elapsed())).await;
    }
}

fn serving(units: &[UnitState], name: &ComponentName) -> Vec<String> {
    units.iter().filter(|unit| unit.components.iter().any(|component| component == name.as_str())).map(|unit| unit.name.clone()).collect()
}

/// Looks once.
pub(crate) async fn once(reached: Reached) -> anyhow::Result<Status> {
    let components = Surveyor::new(reached).survey().await?.into_iter().map(|log| ComponentStatus { log, seen: None, boxes: Vec::new() }).collect();
    Ok(Status { at_ms: wall_clock().as_millis(), problem: None, components, boxes: Vec::new() })
}

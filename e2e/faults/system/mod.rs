//! The system under test, as processes that this one owns: boxes, the log, what is between them, and what can be done to them.

pub(crate) mod boxes;
pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod log;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod storm;
pub(crate) mod tail;
pub(crate) mod wall_clock;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::sleep;

use crate::call::Load;
use crate::clock::Moment;
use crate::history::{BoxId, History, Note, On, Role, Said};
use crate::plan::{Kind, LogKind};
use boxes::{Setup, Unit};
use disk::Disk;
use faults::Heal;
use log::Log;
use network::Network;
use tail::Tail;
use wall_clock::WallClocks;

/// What a system is made from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) log: LogKind,
    /// What will happen to it: only for that it is prepared.
    pub(crate) kinds: Vec<Kind>,
    /// Where its files are.
    pub(crate) directory: PathBuf,
    /// Where what was built is.
    pub(crate) target: PathBuf,
    pub(crate) bluebox: PathBuf,
    pub(crate) callers: u16,
    pub(crate) callees: u16,
    pub(crate) session: Duration,
    pub(crate) lease: Duration,
    pub(crate) think: Duration,
    pub(crate) load: Load,
    /// More flags for every proxy.
    pub(crate) proxy_flags: Vec<String>,
}

/// The most boxes of the called component that a storm makes.
pub(crate) const MOST_CALLEES: u16 = 4;
/// How often it is looked at what has become of the processes.
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// How long everything may take to be there.
const START: Duration = Duration::from_secs(90);

/// The system.
pub(crate) struct System {
    pub(crate) history: History,
    pub(crate) units: Vec<Unit>,
    settings: Settings,
    log: Log,
    network: Option<Network>,
    clocks: Option<WallClocks>,
    disk: Option<Disk>,
    /// What must be undone, and when.
    heals: Vec<(Moment, Heal)>,
    /// Nodes of the log that were started and don't take connections yet, since when, and what they came back from.
    returning: Vec<(u16, Moment, Kind)>,
    /// Partitions are being given back to their leaders.
    elections: Vec<bluebox_e2e::Process>,
    words: Vec<(On, Tail)>,
    progress: Vec<Tail>,
    /// Outcomes that callers have learned.
    pub(crate) outcomes: u64,
    /// Faults that can't be done here, and why.
    pub(crate) not_run: Vec<(Kind, String)>,
}

impl System {
    /// Starts everything; done when every caller has had an outcome.
    pub(crate) async fn start(settings: Settings) -> anyhow::Result<Self> {
        let mut not_run = Vec::new();
        let on_the_network = [Kind::Cut, Kind::HalfOpen, Kind::Latency];
        let faulty_network = prepare(&mut not_run, &settings, &on_the_network, || Network::prepare(&settings.target)).is_some();
        let clocks = prepare(&mut not_run, &settings, &[Kind::ClockStep], || WallClocks::prepare(&settings.target, &settings.directory));
        let disk = prepare(&mut not_run, &settings, &[Kind::DiskFull], || Disk::mount(&settings.directory.join("log")));
        let doors = if faulty_network { settings.callers + MOST_CALLEES } else { 0 };
        let environment = match &clocks {
            Some(clocks) if !settings.log.is_kafka() => clocks.environment("log-0")?,
            _ => Vec::new(),
        };
        let (log, doors) = Log::start(settings.log, &settings.directory, &settings.bluebox, doors, &environment).await?;
        let network = if faulty_network { Some(Network::start(&settings.target, &settings.directory, doors).await?) } else { None };
        let words = (0..settings.log.nodes()).map(|node| (On::Log(node), Tail::new(log.said(node)))).collect();
        let mut system = Self {
            history: History::default(),
            units: Vec::new(),
            log,
            network,
            clocks,
            disk,
            heals: Vec::new(),
            returning: Vec::new(),
            elections: Vec::new(),
            words,
            progress: Vec::new(),
            outcomes: 0,
            not_run,
            settings,
        };
        system.make_boxes()?;
        system.start_boxes().await?;
        system.await_outcomes().await?;
        Ok(system)
    }

    fn make_boxes(&mut self) -> anyhow::Result<()> {
        let callers = (0..self.settings.callers).map(|index| BoxId { role: Role::Caller, index });
        let callees = (0..MOST_CALLEES.max(self.settings.callees)).map(|index| BoxId { role: Role::Callee, index });
        for id in callers.chain(callees) {
            let setup = self.setup(id)?;
            self.units.push(Unit::new(id, free_address(self.units.len())?, free_address(self.units.len())?, setup));
            let directory = &self.settings.directory;
            self.words.push((On::Box(id), Tail::new(directory.join(format!("proxy-{id}.log")))));
            if id.role == Role::Caller {
                self.progress.push(Tail::new(Unit::ledger(directory, id)));
            }
        }
        Ok(())
    }

    /// Starts the boxes that are called, and once they are known those that call: what nobody has registered yet is passed through, and that is no call.
    async fn start_boxes(&mut self) -> anyhow::Result<()> {
        let wanted = self.settings.callees;
        for unit in self.units.iter_mut().filter(|unit| unit.id.role == Role::Callee && unit.id.index < wanted) {
            unit.start(&mut self.history)?;
        }
        let began = Moment::now();
        while self.history.notes.iter().filter(|note| note.said == Said::Joined).count() < usize::from(wanted) {
            if Moment::now().since(began) > START {
                bail!("not every box has joined its group within {} s; see {}", START.as_secs(), self.settings.directory.display());
            }
            self.pass(TICK).await?;
        }
        for unit in self.units.iter_mut().filter(|unit| unit.id.role == Role::Caller) {
            unit.start(&mut self.history)?;
        }
        Ok(())
    }

    /// The number of a box's door, from 1.
    fn door(&self, id: BoxId) -> u16 {
        1 + if id.role == Role::Caller { id.index } else { self.settings.callers + id.index }
    }

    fn setup(&self, id: BoxId) -> anyhow::Result<Setup> {
        let log = match &self.network {
            Some(network) => format!("--brokers={}", network.brokers(self.door(id))),
            None => self.log.flag(),
        };
        let milliseconds = |name: &str, time: Duration| format!("--{name}={}ms", time.as_millis());
        let mut proxy_flags = vec![
            log,
            milliseconds("session-timeout", self.settings.session),
            milliseconds("lease", self.settings.lease),
            "--first-backoff=20ms".to_owned(),
            "--max-backoff=500ms".to_owned(),
            // What dies here dies of the faults: nothing is to be given up for it.
            "--max-attempts=1000000".to_owned(),
            "--max-crashes=1000000".to_owned(),
            "--wait=30s".to_owned(),
            "--drain=10s".to_owned(),
        ];
        proxy_flags.extend(self.settings.proxy_flags.iter().cloned());
        let environment = match &self.clocks {
            Some(clocks) => clocks.environment(&id.to_string())?,
            None => Vec::new(),
        };
        let Settings { bluebox, directory, think, load, .. } = &self.settings;
        Ok(Setup { bluebox: bluebox.clone(), directory: directory.clone(), proxy_flags, environment, think: *think, load: *load })
    }

    async fn await_outcomes(&mut self) -> anyhow::Result<()> {
        let began = Moment::now();
        let mut first = vec![false; self.progress.len()];
        while first.contains(&false) {
            for (seen, tail) in first.iter_mut().zip(&mut self.progress) {
                tail.read(|line| *seen |= is_outcome(line));
            }
            if Moment::now().since(began) > START {
                bail!("not every caller had an outcome within {} s; see {}", START.as_secs(), self.settings.directory.display());
            }
            self.tick().await?;
            sleep(TICK).await;
        }
        Ok(())
    }

    /// Lets this much time pass, and does what is due meanwhile.
    pub(crate) async fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Moment::now().after(time);
        loop {
            self.tick().await?;
            let left = end.since(Moment::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(TICK)).await;
        }
    }

    /// Does what is due: ties boxes together, heals, listens.
    pub(crate) async fn tick(&mut self) -> anyhow::Result<()> {
        for unit in &mut self.units {
            unit.tick(&mut self.history)?;
        }
        self.heal_what_is_due().await?;
        self.await_the_log().await;
        self.listen();
        Ok(())
    }

    /// Reads what the processes said and how far the callers are.
    fn listen(&mut self) {
        let (history, outcomes) = (&mut self.history, &mut self.outcomes);
        for tail in &mut self.progress {
            tail.read(|line| *outcomes += u64::from(is_outcome(line)));
        }
        for (by, tail) in &mut self.words {
            tail.read(|line| {
                let said = if line.contains("taken for dead") || line.contains("partitions were lost") {
                    Some(Said::TakenForDead)
                } else if line.contains("took over what another box had begun") {
                    Some(Said::TookOver)
                } else if line.contains("joined the group") {
                    Some(Said::Joined)
                } else if line.contains("has failed, removing it") || line.contains("because the member session expired") {
                    Some(Said::SessionRanOut)
                } else {
                    None
                };
                history.notes.extend(said.map(|said| Note { at: Moment::now(), by: *by, said }));
                if ["panicked at", "a mistake in Bluebox", "the log deleted"].iter().any(|bad| line.contains(bad)) {
                    history.broken.push(format!("{by} said: {line}"));
                }
            });
        }
    }

    /// Whether nothing is to be undone and everything that shall run does.
    pub(crate) fn is_healed(&self) -> bool {
        let wanted = |unit: &Unit| unit.id.role == Role::Caller || unit.id.index < self.settings.callees;
        self.heals.is_empty() && self.returning.is_empty() && self.units.iter().filter(|unit| wanted(unit)).all(|unit| unit.is_up() || unit.done)
    }

    /// Waits until it is healed, and then as long as the sessions and leases of those that died.
    pub(crate) async fn settle(&mut self) -> anyhow::Result<()> {
        let began = Moment::now();
        while !self.is_healed() {
            if Moment::now().since(began) > Duration::from_secs(600) {
                bail!("the system is not healed after ten minutes: {:?} {:?}", self.heals, self.returning);
            }
            self.pass(TICK).await?;
        }
        self.pass(self.settings.session * 2 + self.settings.lease + Duration::from_secs(2)).await
    }

    /// Whether callers learn outcomes, now or within this time.
    pub(crate) async fn goes_on(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let (began, before) = (Moment::now(), self.outcomes);
        while self.outcomes == before && Moment::now().since(began) < patience {
            self.pass(TICK).await?;
        }
        Ok(self.outcomes > before)
    }

    /// The callers send nothing new, and learn what they can still learn; false if they don't get to the end of it.
    pub(crate) async fn drain(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let began = Moment::now();
        let callers = |system: &Self| system.units.iter().filter(|unit| unit.id.role == Role::Caller && !unit.done).count();
        while callers(self) > 0 && Moment::now().since(began) < patience {
            for unit in self.units.iter_mut().filter(|unit| unit.id.role == Role::Caller) {
                unit.tell("drain");
            }
            self.pass(Duration::from_millis(200)).await?;
        }
        Ok(callers(self) == 0)
    }

    /// Ends everything in good order.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        for unit in &mut self.units {
            unit.leave(&mut self.history);
        }
        while self.units.iter().any(|unit| !unit.is_away()) {
            self.pass(TICK).await?;
        }
        for node in self.log.running() {
            self.log.kill(node);
        }
        Ok(())
    }

    /// The processes of all proxies, with their names.
    pub(crate) fn proxies(&self) -> Vec<(String, i32)> {
        self.units.iter().filter_map(|unit| Some((unit.id.to_string(), unit.proxy_pid()?))).collect()
    }
}

fn is_outcome(line: &str) -> bool {
    line.split(' ').nth(2) == Some("outcome")
}

/// Prepares what some faults need, if they may happen; otherwise, or if it can't be had, they don't.
fn prepare<T>(not_run: &mut Vec<(Kind, String)>, settings: &Settings, kinds: &[Kind], preparation: impl FnOnce() -> anyhow::Result<T>) -> Option<T> {
    let wanted: Vec<_> = settings.kinds.iter().copied().filter(|kind| kinds.contains(kind) && kind.applies_to(settings.log)).collect();
    if wanted.is_empty() {
        return None;
    }
    match preparation() {
        Ok(value) => Some(value),
        Err(error) => {
            not_run.extend(wanted.into_iter().map(|kind| (kind, format!("{error:#}"))));
            None
        }
    }
}

/// An address that nobody has, and that nobody else in this run will take: each box has a loopback address of its own.
fn free_address(number: usize) -> anyhow::Result<SocketAddr> {
    let process = u8::try_from(std::process::id() % 200).context("a number below 200")? + 20;
    let ip = Ipv4Addr::new(127, process, 200, u8::try_from(number + 1).context("too many boxes")?);
    TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr()).with_context(|| format!("{ip}: no port can be had"))
}

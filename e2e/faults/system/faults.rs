//! Doing a fault to the system, and undoing it.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::System;
use super::boxes::Half;
use super::network::Toxic;
use crate::clock::Moment;
use crate::history::{BoxId, On, Role};
use crate::plan::{Fault, Kind};
use crate::random::Random;

/// What undoes a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heal {
    /// SIGCONT, if it is still the same life.
    Continue {
        id: BoxId,
        half: Half,
        kind: Kind,
        life: usize,
    },
    /// Start it again, once it has ended.
    Return(BoxId),
    ContinueLog(u16),
    StartLog(u16, Kind),
    Network(BoxId, Kind),
    Disk,
    WallClock(On),
    Elect,
}

/// After so long a broker that came back counts as one that can lead again.
const ELECT_AFTER: Duration = Duration::from_secs(3);
/// With less room than 256 MiB the embedded log accepts nothing more; this is less.
const LITTLE_ROOM_BYTES: u64 = 64 << 20;

impl System {
    /// Does a fault; false if there is nothing now that it could be done to.
    pub(crate) async fn perform(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let done = match fault.kind {
            Kind::KillCallerApp => self.kill_box(fault, Role::Caller, Half::App),
            Kind::KillCallerProxy => self.kill_box(fault, Role::Caller, Half::Proxy),
            Kind::KillCalleeApp => self.kill_box(fault, Role::Callee, Half::App),
            Kind::KillCalleeProxy => self.kill_box(fault, Role::Callee, Half::Proxy),
            Kind::StopCallerApp => self.stop_box(fault, Role::Caller, Half::App),
            Kind::StopCallerProxy => self.stop_box(fault, Role::Caller, Half::Proxy),
            Kind::StopCalleeApp => self.stop_box(fault, Role::Callee, Half::App),
            Kind::StopCalleeProxy => self.stop_box(fault, Role::Callee, Half::Proxy),
            Kind::KillLog | Kind::StopLog | Kind::LeaderMove => self.hurt_log(fault),
            Kind::LogDown => self.log_down(fault),
            Kind::Cut | Kind::HalfOpen | Kind::Latency => self.spoil_network(fault).await?,
            Kind::DiskFull => self.fill_disk(fault)?,
            Kind::ClockStep => self.step_clock(fault)?,
            Kind::RestartCallee => self.restart_box(fault),
            Kind::Storm => {
                self.storm(fault).await?;
                true
            }
        };
        if done {
            *self.history.done.entry(fault.kind).or_default() += 1;
        }
        Ok(done)
    }

    /// Whether all of the log is away.
    pub(crate) fn log_is_away(&self) -> bool {
        let away = |kind| kind == Kind::LogDown || (kind == Kind::KillLog && self.settings.log.nodes() == 1);
        self.history.troubles.iter().any(|trouble| away(trouble.kind) && trouble.to.is_none())
    }

    fn heal_after(&mut self, time: Duration, heal: Heal) {
        self.heals.push((Moment::now().after(time), heal));
    }

    /// One of the boxes that run: its place among the units.
    fn choose(&self, fault: Fault, role: Role) -> Option<usize> {
        let up: Vec<_> = (0..self.units.len()).filter(|at| self.units[*at].id.role == role && self.units[*at].is_up()).collect();
        let among = u64::try_from(up.len()).ok().filter(|among| *among > 0)?;
        up.get(usize::try_from(fault.target % among).ok()?).copied()
    }

    fn kill_box(&mut self, fault: Fault, role: Role, half: Half) -> bool {
        let Some(at) = self.choose(fault, role) else { return false };
        let id = self.units[at].id;
        self.units[at].kill(half, fault.kind, fault.lasts, &mut self.history);
        // What is dead is not stopped any more.
        for kind in [Kind::StopCallerApp, Kind::StopCallerProxy, Kind::StopCalleeApp, Kind::StopCalleeProxy] {
            self.history.ends(kind, On::Box(id));
        }
        true
    }

    /// One box is asked to end; the last that runs is left alone, so that there is somebody to hand over to.
    fn restart_box(&mut self, fault: Fault) -> bool {
        let others = self.units.iter().filter(|unit| unit.id.role == Role::Callee && unit.is_up()).count();
        let Some(at) = self.choose(fault, Role::Callee).filter(|_| others > 1) else { return false };
        let id = self.units[at].id;
        if [Kind::StopCalleeApp, Kind::StopCalleeProxy].iter().any(|kind| self.is_in_trouble(On::Box(id), *kind)) {
            return false;
        }
        self.units[at].leave(&mut self.history);
        self.heal_after(fault.lasts, Heal::Return(id));
        true
    }

    fn is_in_trouble(&self, on: On, kind: Kind) -> bool {
        self.history.troubles.iter().any(|trouble| (trouble.on, trouble.kind, trouble.to) == (on, kind, None))
    }

    fn stop_box(&mut self, fault: Fault, role: Role, half: Half) -> bool {
        let Some(at) = self.choose(fault, role) else { return false };
        let id = self.units[at].id;
        if self.is_in_trouble(On::Box(id), fault.kind) {
            return false;
        }
        self.history.begins(fault.kind, On::Box(id));
        self.units[at].signal(half, Signal::SIGSTOP);
        let life = self.lives_of(id);
        self.heal_after(fault.lasts, Heal::Continue { id, half, kind: fault.kind, life });
        true
    }

    fn lives_of(&self, id: BoxId) -> usize {
        self.history.lives.iter().filter(|life| life.of == id).count()
    }

    /// One of the log's nodes is killed, stopped, or asked to leave. Of three brokers only one at a time is: two are needed.
    fn hurt_log(&mut self, fault: Fault) -> bool {
        let nodes = self.settings.log.nodes();
        let troubled = self.history.troubles.iter().any(|trouble| matches!(trouble.on, On::Log(_)) && trouble.kind != Kind::ClockStep && trouble.to.is_none());
        if troubled || self.log.running().len() < usize::from(nodes) {
            return false;
        }
        let Ok(node) = u16::try_from(fault.target % u64::from(nodes)) else { return false };
        self.history.begins(fault.kind, On::Log(node));
        match fault.kind {
            Kind::StopLog => {
                self.log.signal(node, Signal::SIGSTOP);
                self.heal_after(fault.lasts, Heal::ContinueLog(node));
            }
            Kind::LeaderMove => {
                // It gives its partitions to the others, and ends; see `heal`.
                self.log.signal(node, Signal::SIGTERM);
                self.heal_after(Duration::ZERO, Heal::StartLog(node, fault.kind));
            }
            _ => {
                self.log.kill(node);
                self.heal_after(fault.lasts, Heal::StartLog(node, fault.kind));
            }
        }
        true
    }

    fn log_down(&mut self, fault: Fault) -> bool {
        self.heals.retain(|(_, heal)| !matches!(heal, Heal::StartLog(..) | Heal::ContinueLog(_)));
        self.returning.clear();
        for node in 0..self.settings.log.nodes() {
            self.log.kill(node);
            // What else was with it has become this.
            for kind in [Kind::KillLog, Kind::StopLog, Kind::LeaderMove] {
                self.history.ends(kind, On::Log(node));
            }
            self.history.begins(Kind::LogDown, On::Log(node));
            self.heal_after(fault.lasts, Heal::StartLog(node, Kind::LogDown));
        }
        true
    }

    async fn spoil_network(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let up: Vec<BoxId> = self.units.iter().filter(|unit| unit.is_up()).map(|unit| unit.id).collect();
        let Some(id) = u64::try_from(up.len()).ok().filter(|among| *among > 0).and_then(|among| up.get(usize::try_from(fault.target % among).ok()?)) else {
            return Ok(false);
        };
        let (id, door) = (*id, self.door(*id));
        let spoiled = [Kind::Cut, Kind::HalfOpen, Kind::Latency].iter().any(|kind| self.is_in_trouble(On::Box(id), *kind));
        let Some(network) = self.network.as_ref().filter(|_| !spoiled) else { return Ok(false) };
        let toxic = match fault.kind {
            Kind::Cut => Toxic::Cut,
            Kind::HalfOpen => Toxic::HalfOpen { to: fault.choice % 3 != 1, from: fault.choice % 3 != 2 },
            _ => Toxic::Latency(Duration::from_millis(50 + fault.choice % 400)),
        };
        network.spoil(door, toxic).await?;
        self.history.begins(fault.kind, On::Box(id));
        self.heal_after(fault.lasts, Heal::Network(id, fault.kind));
        Ok(true)
    }

    fn fill_disk(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let Some(disk) = &self.disk else { return Ok(false) };
        // Filling takes its time, and the log refuses what comes long before the last byte.
        self.history.begins(Kind::DiskFull, On::Log(0));
        disk.fill(if fault.choice.is_multiple_of(2) { 0 } else { LITTLE_ROOM_BYTES })?;
        self.heal_after(fault.lasts, Heal::Disk);
        Ok(true)
    }

    fn step_clock(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let mut on: Vec<On> = self.units.iter().filter(|unit| unit.is_up()).map(|unit| On::Box(unit.id)).collect();
        if !self.settings.log.is_kafka() {
            on.push(On::Log(0));
        }
        let mut random = Random::new(fault.choice);
        let Ok(at) = usize::try_from(random.between(0, on.len() as u64)) else { return Ok(false) };
        let (Some(clocks), on) = (&self.clocks, on[at]) else { return Ok(false) };
        if self.is_in_trouble(on, Kind::ClockStep) {
            return Ok(false);
        }
        let most = if random.next().is_multiple_of(2) { 10 } else { 86_400 };
        let seconds = i64::try_from(random.between(1, most))?;
        clocks.set(&on.to_string(), if random.next().is_multiple_of(2) { seconds } else { -seconds })?;
        self.history.begins(Kind::ClockStep, on);
        self.heal_after(fault.lasts, Heal::WallClock(on));
        Ok(true)
    }

    /// Undoes what it is time to undo.
    pub(super) async fn heal_what_is_due(&mut self) -> anyhow::Result<()> {
        let now = Moment::now();
        let (due, later) = std::mem::take(&mut self.heals).into_iter().partition(|(at, _)| *at <= now);
        self.heals = later;
        let due: Vec<(Moment, Heal)> = due;
        for (_, heal) in due {
            self.heal(heal).await?;
        }
        Ok(())
    }

    async fn heal(&mut self, heal: Heal) -> anyhow::Result<()> {
        match heal {
            Heal::Continue { id, half, kind, life } => {
                if self.lives_of(id) == life
                    && let Some(unit) = self.units.iter().find(|unit| unit.id == id)
                {
                    // First the line: what it does from now on is done by one that was continued.
                    self.history.ends(kind, On::Box(id));
                    unit.signal(half, Signal::SIGCONT);
                }
            }
            Heal::Return(id) => {
                if let Some(unit) = self.units.iter_mut().find(|unit| unit.id == id) {
                    unit.want();
                    if unit.is_leaving() {
                        self.heal_after(Duration::from_millis(20), Heal::Return(id));
                    }
                }
            }
            Heal::ContinueLog(node) => {
                self.log.signal(node, Signal::SIGCONT);
                self.returning.push((node, Moment::now(), Kind::StopLog));
            }
            Heal::StartLog(node, Kind::LeaderMove) if self.log.running().contains(&node) && self.log.ended(node).is_none() => {
                self.heal_after(Duration::from_millis(100), Heal::StartLog(node, Kind::LeaderMove));
            }
            Heal::StartLog(node, kind) => {
                self.log.forget(node);
                self.log.start_node(node);
                self.returning.push((node, Moment::now(), kind));
            }
            Heal::Network(id, kind) => {
                if let Some(network) = &self.network {
                    network.heal(self.door(id)).await?;
                }
                self.history.ends(kind, On::Box(id));
            }
            Heal::Disk => {
                if let Some(disk) = &self.disk {
                    disk.empty()?;
                }
                self.history.ends(Kind::DiskFull, On::Log(0));
            }
            Heal::WallClock(on) => {
                if let Some(clocks) = &self.clocks {
                    clocks.set(&on.to_string(), 0)?;
                }
                self.history.ends(Kind::ClockStep, on);
            }
            Heal::Elect => self.elections.push(self.log.elect()),
        }
        Ok(())
    }

    /// Looks which nodes of the log take connections again, and whether one has ended by itself.
    pub(super) async fn await_the_log(&mut self) {
        self.elections.retain_mut(|election| election.ended().is_none());
        for (node, since, kind) in std::mem::take(&mut self.returning) {
            if self.log.serves(node).await {
                self.history.ends(kind, On::Log(node));
                if kind == Kind::LeaderMove {
                    self.heal_after(ELECT_AFTER, Heal::Elect);
                }
            } else {
                if Moment::now().since(since) > super::START {
                    self.history.broken.push(format!(
                        "log-{node} takes no connections {} s after its start; see {}",
                        super::START.as_secs(),
                        self.log.said(node).display()
                    ));
                    self.log.forget(node);
                    continue;
                }
                self.returning.push((node, since, kind));
            }
        }
        for node in self.log.running() {
            let asked = self.is_in_trouble(On::Log(node), Kind::LeaderMove);
            if let Some(status) = self.log.ended(node).filter(|_| !asked) {
                self.history.broken.push(format!("log-{node} ended by itself: {status}; see {}", self.log.said(node).display()));
                self.log.forget(node);
                self.log.start_node(node);
                self.returning.push((node, Moment::now(), Kind::KillLog));
            }
        }
    }
}

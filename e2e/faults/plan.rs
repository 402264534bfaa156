//! From a seed to a schedule of faults. Pure: the same seed and settings give the same schedule.
//!
//! What a fault hits is said by a number; which box that is depends on who is alive then. So a seed repeats the schedule, not every interleaving of the processes.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::random::Random;

/// The log of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogKind {
    /// The embedded log, in a process of its own.
    Embedded,
    /// One broker.
    Kafka,
    /// Three brokers, every topic in three copies, two of them needed for an acknowledgement.
    #[value(name = "kafka-3")]
    Kafka3,
}

impl LogKind {
    /// How many brokers it has.
    pub(crate) fn nodes(self) -> u16 {
        if self == Self::Kafka3 { 3 } else { 1 }
    }

    pub(crate) fn is_kafka(self) -> bool {
        self != Self::Embedded
    }
}

impl fmt::Display for LogKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Kafka => "kafka",
            Self::Kafka3 => "kafka-3",
        })
    }
}

macro_rules! kinds {
    ($($kind:ident $name:literal $help:literal,)*) => {
        /// What can be done to the system.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Kind {
            $(#[doc = $help] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its name on the command line and in reports.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// What it is.
            pub(crate) fn help(self) -> &'static str {
                match self { $(Self::$kind => $help,)* }
            }
        }
    };
}

kinds! {
    KillCallerApp "kill-caller-app" "SIGKILL of an app that calls; its proxy is restarted with it",
    KillCallerProxy "kill-caller-proxy" "SIGKILL of the proxy of an app that calls; its app is restarted with it",
    KillCalleeApp "kill-callee-app" "SIGKILL of an app that is called; its proxy is restarted with it",
    KillCalleeProxy "kill-callee-proxy" "SIGKILL of the proxy of an app that is called; its app is restarted with it",
    KillLog "kill-log" "SIGKILL of a broker, or of the embedded log",
    StopCallerApp "stop-caller-app" "SIGSTOP, later SIGCONT, of an app that calls",
    StopCallerProxy "stop-caller-proxy" "SIGSTOP, later SIGCONT, of the proxy of an app that calls",
    StopCalleeApp "stop-callee-app" "SIGSTOP, later SIGCONT, of an app that is called",
    StopCalleeProxy "stop-callee-proxy" "SIGSTOP, later SIGCONT, of the proxy of an app that is called: a zombie, if it lasts longer than the session",
    StopLog "stop-log" "SIGSTOP, later SIGCONT, of a broker, or of the embedded log",
    LeaderMove "leader-move" "A broker hands its partitions over, leaves, and later gets them back (kafka-3)",
    Cut "cut" "All connections of a proxy to the brokers break, and new ones are refused (Kafka)",
    HalfOpen "half-open" "The connections of a proxy to the brokers stay open, and nothing comes through in one direction or both (Kafka)",
    Latency "latency" "What goes between a proxy and the brokers takes longer (Kafka)",
    Storm "storm" "Boxes of the called component are started and ended in good order: down to 1, up to 4, down to 1, and back. Nothing else happens meanwhile",
    RestartCallee "restart-callee" "A box of the called component is asked to end, in good order, and started again, as in a rolling update",
    LogDown "log-down" "Every broker, or the embedded log, is down: 30 s, in the long set five minutes",
    DiskFull "disk-full" "The disk of the embedded log is full (embedded)",
    ClockStep "clock-step" "The wall clock of a proxy, or of the embedded log, is moved back or forth by up to a day, and later back again",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("there is no fault `{text}`; there are {}", names.join(", "))
        })
    }
}

impl Kind {
    /// Whether it is a SIGKILL: what `--kills` counts.
    pub(crate) fn is_kill(self) -> bool {
        matches!(self, Self::KillCallerApp | Self::KillCallerProxy | Self::KillCalleeApp | Self::KillCalleeProxy | Self::KillLog)
    }

    /// Whether it can be done to this log.
    pub(crate) fn applies_to(self, log: LogKind) -> bool {
        match self {
            Self::LeaderMove => log == LogKind::Kafka3,
            Self::Cut | Self::HalfOpen | Self::Latency => log.is_kafka(),
            Self::DiskFull => log == LogKind::Embedded,
            _ => true,
        }
    }

    /// How often it happens, in relation to the others; 0: only as a set piece.
    fn weight(self, log: LogKind) -> u64 {
        match self {
            Self::KillCalleeProxy => 16,
            Self::KillCalleeApp => 14,
            Self::KillCallerProxy => 12,
            Self::KillCallerApp => 10,
            // A broker takes seconds to come back.
            Self::KillLog if log.is_kafka() => 2,
            Self::KillLog => 6,
            Self::StopCalleeProxy => 6,
            Self::Cut => 4,
            Self::StopCallerProxy | Self::StopCalleeApp | Self::HalfOpen | Self::Latency => 3,
            Self::StopCallerApp | Self::StopLog | Self::LeaderMove | Self::ClockStep => 2,
            Self::Storm | Self::RestartCallee | Self::LogDown | Self::DiskFull => 0,
        }
    }
}

/// What a schedule is made from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) log: LogKind,
    /// What may happen.
    pub(crate) kinds: Vec<Kind>,
    /// How many SIGKILLs there will be; of all kinds together if no SIGKILL may happen.
    pub(crate) kills: u64,
    /// The session of the proxies: what is stopped longer is taken for dead.
    pub(crate) session: Duration,
    /// The pause between two faults, on average.
    pub(crate) gap: Duration,
    /// How long every broker is down.
    pub(crate) log_down: Duration,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// How long after the one before.
    pub(crate) after: Duration,
    pub(crate) kind: Kind,
    /// What it hits: counted among those that it can hit.
    pub(crate) target: u64,
    /// How long it lasts; of a kill: how long until it is started again.
    pub(crate) lasts: Duration,
    /// What else there is to choose.
    pub(crate) choice: u64,
}

/// A schedule. It has no end.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    settings: Settings,
    random: Random,
    /// Restarts draw from it, so that the rest of a seed's schedule is the same with and without them.
    restarts: Random,
    /// SIGKILLs so far; without any, faults.
    done: u64,
    /// What is done once the counter is there, in order.
    pieces: Vec<(u64, Kind)>,
}

/// One storm, one full disk in so many kills.
const PIECES_EVERY: u64 = 100;
/// One restart in good order in so many kills.
const RESTART_EVERY: u64 = 20;

impl Plan {
    pub(crate) fn new(settings: Settings) -> Self {
        let kills = settings.kills;
        let mut pieces = Vec::new();
        let mut add = |at: u64, kind: Kind| {
            if settings.kinds.contains(&kind) && kind.applies_to(settings.log) {
                pieces.push((at, kind));
            }
        };
        for start in (0..kills).step_by(usize::try_from(PIECES_EVERY).unwrap_or(usize::MAX)) {
            let length = (kills - start).min(PIECES_EVERY);
            add(start + length / 4, Kind::Storm);
            add(start + length / 2, Kind::DiskFull);
        }
        add(kills * 3 / 4, Kind::LogDown);
        let restart_every = if settings.kinds == [Kind::RestartCallee] { 1 } else { RESTART_EVERY };
        (restart_every - 1..kills).step_by(usize::try_from(restart_every).unwrap_or(usize::MAX)).for_each(|at| add(at, Kind::RestartCallee));
        pieces.sort();
        Self { random: Random::new(settings.seed), restarts: Random::new(!settings.seed), settings, done: 0, pieces }
    }

    /// Whether as many kills as wanted, and all set pieces, are behind it.
    pub(crate) fn is_over(&self) -> bool {
        self.done >= self.settings.kills && self.pieces.is_empty()
    }

    /// The next fault.
    pub(crate) fn next(&mut self) -> Option<Fault> {
        if self.is_over() {
            return None;
        }
        let kind = match self.pieces.first() {
            Some((at, kind)) if *at <= self.done => {
                let kind = *kind;
                self.pieces.remove(0);
                kind
            }
            _ => self.pick()?,
        };
        if kind.is_kill() || !self.settings.kinds.iter().any(|kind| kind.is_kill()) {
            self.done += 1;
        }
        if kind == Kind::RestartCallee {
            let gap = u64::try_from(self.settings.gap.as_millis()).unwrap_or(u64::MAX);
            let after = Duration::from_millis(self.restarts.between(gap * 2 / 3, gap * 4 / 3));
            let lasts = Duration::from_millis(self.restarts.between(0, 1_000));
            return Some(Fault { after, kind, target: self.restarts.next(), lasts, choice: 0 });
        }
        let after = self.after(kind);
        let lasts = self.lasts(kind);
        Some(Fault { after, kind, target: self.random.next(), lasts, choice: self.random.next() })
    }

    fn pick(&mut self) -> Option<Kind> {
        let log = self.settings.log;
        let can: Vec<(Kind, u64)> = self.settings.kinds.iter().filter(|kind| kind.applies_to(log)).map(|kind| (*kind, kind.weight(log))).collect();
        let mut at = self.random.between(0, can.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in can {
            if at < weight {
                return Some(kind);
            }
            at -= weight;
        }
        // Only set pieces were asked for: they come when it is their time.
        self.done = self.settings.kills;
        (!self.pieces.is_empty()).then(|| self.pieces.remove(0).1)
    }

    fn after(&mut self, kind: Kind) -> Duration {
        if kind.weight(self.settings.log) == 0 {
            return Duration::ZERO;
        }
        let gap = u64::try_from(self.settings.gap.as_millis()).unwrap_or(u64::MAX);
        if self.settings.gap >= self.settings.session * 3 {
            // One by one: what follows is seen by itself.
            return Duration::from_millis(self.random.between(gap * 2 / 3, gap * 4 / 3));
        }
        Duration::from_millis(match self.random.between(0, 100) {
            // Two at once, or in the middle of a recovery.
            0..20 => 0,
            20..40 => self.random.between(20, (gap / 2).min(500)),
            _ => self.random.between(gap / 3, gap * 2),
        })
    }

    fn lasts(&mut self, kind: Kind) -> Duration {
        let session = u64::try_from(self.settings.session.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(match kind {
            Kind::StopCalleeProxy | Kind::Cut | Kind::HalfOpen | Kind::StopCallerProxy => match self.random.between(0, 10) {
                0..3 => self.random.between(50, session / 2),
                _ => self.random.between(session * 3 / 2, session * 3),
            },
            Kind::StopCallerApp | Kind::StopCalleeApp | Kind::StopLog => self.random.between(100, session * 2),
            Kind::Latency => self.random.between(1_000, 6_000),
            Kind::ClockStep => self.random.between(2_000, 8_000),
            Kind::DiskFull => self.random.between(2_000, 6_000),
            Kind::LogDown => return self.settings.log_down,
            Kind::LeaderMove | Kind::Storm => 0,
            _ => match self.random.between(0, 3) {
                0 => 0,
                1 => self.random.between(100, 1_000),
                _ => self.random.between(1_000, session * 2),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(log: LogKind, kills: u64) -> Settings {
        Settings {
            seed: 7,
            log,
            kinds: Kind::ALL.to_vec(),
            kills,
            session: Duration::from_secs(2),
            gap: Duration::from_secs(1),
            log_down: Duration::from_secs(30),
        }
    }

    fn all(settings: Settings) -> Vec<Fault> {
        let mut plan = Plan::new(settings);
        std::iter::from_fn(|| plan.next()).collect()
    }

    #[test]
    fn a_seed_repeats_its_schedule_and_another_does_not() {
        let first = all(settings(LogKind::Kafka3, 100));
        assert_eq!(first, all(settings(LogKind::Kafka3, 100)));
        assert_ne!(first, all(Settings { seed: 8, ..settings(LogKind::Kafka3, 100) }));
    }

    #[test]
    fn restarts_leave_the_rest_of_a_schedule_as_it_is() {
        let without = Settings { kinds: Kind::ALL.iter().copied().filter(|kind| *kind != Kind::RestartCallee).collect(), ..settings(LogKind::Kafka, 100) };
        let mut faults = all(settings(LogKind::Kafka, 100));
        faults.retain(|fault| fault.kind != Kind::RestartCallee);
        assert_eq!(faults, all(without));
    }

    #[test]
    fn as_many_kills_as_wanted_and_every_kind_that_the_log_can_have() {
        for log in [LogKind::Embedded, LogKind::Kafka, LogKind::Kafka3] {
            let faults = all(settings(log, 1_000));
            assert_eq!(faults.iter().filter(|fault| fault.kind.is_kill()).count(), 1_000);
            for kind in Kind::ALL {
                assert_eq!(faults.iter().any(|fault| fault.kind == *kind), kind.applies_to(log), "{kind} on {log}");
            }
        }
    }

    #[test]
    fn only_what_was_asked_for() {
        let only = |kinds: &[Kind]| all(Settings { kinds: kinds.to_vec(), ..settings(LogKind::Kafka, 20) });
        assert_eq!(only(&[Kind::StopCalleeProxy]).len(), 20);
        assert!(only(&[Kind::StopCalleeProxy]).iter().all(|fault| fault.kind == Kind::StopCalleeProxy));
        assert_eq!(only(&[Kind::RestartCallee]).len(), 20);
        assert_eq!(only(&[Kind::Storm]).iter().map(|fault| fault.kind).collect::<Vec<_>>(), [Kind::Storm]);
        assert_eq!(only(&[Kind::DiskFull]), []);
    }

    #[test]
    fn with_a_long_pause_faults_come_one_by_one() {
        let faults = all(Settings { gap: Duration::from_secs(8), ..settings(LogKind::Kafka, 100) });
        assert!(faults.iter().all(|fault| fault.after > Duration::from_secs(5) || fault.kind.weight(LogKind::Kafka) == 0));
        let close = all(settings(LogKind::Kafka, 100));
        assert!(close.iter().any(|fault| fault.after < Duration::from_millis(100)));
    }

    #[test]
    fn every_kind_is_found_by_its_name() {
        assert!(Kind::ALL.iter().all(|kind| kind.name().parse() == Ok(*kind)));
        assert!("kill".parse::<Kind>().unwrap_err().contains("kill-callee-proxy"));
    }
}

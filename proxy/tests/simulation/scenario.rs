//! What a seed means: how many boxes and calls there are, and what goes wrong.

use crate::random::Random;

/// Simulated time, in microseconds since the start.
pub(crate) type Time = u64;

pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000 * MS;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Boxes come and go in order, and the log works: nothing may be delivered twice.
    Clean,
    /// Everything goes wrong.
    Chaos,
    /// Boxes die of one kind of call only.
    Poison,
    /// More calls than a partition may hold, with lanes that stand still.
    Flood,
}

/// What an app does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers after so long.
    Answers(Time),
    /// The box dies of it, every time, after so long.
    Poison(Time),
    /// Fails so many times first.
    Fails(u32),
    /// Says *not now* so many times first, for so many seconds.
    NotNow(u32, u64),
}

/// Odds are out of a thousand.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub kind: Kind,
    /// Commits are refused to those who are no members, not to those who don't own the partition; nobody is known to be gone.
    pub kafka: bool,
    /// Boxes are ordinals of a stateful component: there is no group.
    pub assigned: bool,
    pub partitions: u32,
    pub boxes: usize,
    pub calls: u64,
    /// All calls come in the first seconds.
    pub in_a_rush: bool,
    pub replies: u32,
    /// When the faults end.
    pub heal_at: Time,
    pub max_attempts: u32,
    pub max_crashes: u32,
    pub drain: Time,
    pub lease: Time,
    pub session: Time,
    pub concurrency: usize,
    pub body_memory_bytes: usize,
    pub max_recorded: usize,
    /// Faults of boxes in the whole time: kill, pause, cut off from the log, stop in order, app away.
    pub kills: u64,
    pub pauses: u64,
    pub cuts: u64,
    pub stops: u64,
    pub app_away: u64,
    pub ack_lost: u64,
    pub refused: u64,
    pub lands_late: u64,
    pub commit_fails: u64,
    pub commit_late: u64,
    pub slow_net: u64,
    pub poisons: u64,
    pub slow_calls: u64,
    pub failing: u64,
    pub keyed: u64,
    pub recorded: u64,
    pub short_ttl: u64,
    pub noise: u64,
    pub cancels: u64,
    pub caller_deaths: u64,
}

impl Scenario {
    pub(crate) fn of(random: &mut Random) -> Self {
        let kind = random.pick(&[Kind::Chaos, Kind::Chaos, Kind::Chaos, Kind::Chaos, Kind::Clean, Kind::Poison]);
        let kind = if random.per_mille(4) { Kind::Flood } else { kind };
        let mut upto = |most: u64| random.between(0, most + 1);
        let faulty = kind == Kind::Chaos;
        let scenario = Self {
            kind,
            kafka: upto(1) == 0,
            assigned: false,
            partitions: 1 + upto(2) as u32,
            boxes: 1 + upto(3) as usize,
            calls: 10 + upto(60),
            in_a_rush: kind == Kind::Flood,
            replies: 1 + upto(2) as u32,
            heal_at: (20 + upto(60)) * SECOND,
            max_attempts: 3 + upto(7) as u32,
            max_crashes: 3,
            drain: if kind == Kind::Clean { 30 } else { 1 + upto(29) } * SECOND,
            lease: 2 * SECOND,
            // Shorter than the lease, too: then only the wait of the new owner keeps zombies apart from it.
            session: (1 + upto(7)) * SECOND,
            concurrency: 1 + upto(16) as usize,
            body_memory_bytes: if upto(3) == 0 { 2_000 } else { 64 << 20 },
            max_recorded: if upto(9) == 0 { 3 } else { 200_000 },
            kills: if faulty { upto(6) } else { 0 },
            pauses: if faulty { upto(5) } else { 0 },
            cuts: if faulty { upto(3) } else { 0 },
            stops: if kind == Kind::Poison { 0 } else { upto(4) },
            app_away: if faulty { upto(2) } else { 0 },
            ack_lost: if faulty { upto(1) * upto(200) } else { upto(1) * upto(50) },
            refused: if faulty { upto(1) * upto(200) } else { 0 },
            lands_late: if faulty { upto(1) * upto(300) } else { 0 },
            commit_fails: if faulty { upto(1) * upto(300) } else { 0 },
            commit_late: if faulty { upto(1) * upto(100) } else { 0 },
            slow_net: if faulty { upto(1) * upto(100) } else { 0 },
            poisons: match kind {
                Kind::Poison => 1 + upto(2),
                Kind::Chaos => upto(3) / 3,
                _ => 0,
            },
            slow_calls: upto(1) * upto(100),
            failing: upto(1) * upto(300),
            keyed: upto(2) * upto(500),
            recorded: upto(1) * upto(500),
            short_ttl: if kind == Kind::Clean { 0 } else { upto(1) * upto(200) },
            noise: upto(1) * upto(100),
            cancels: if kind == Kind::Poison { 0 } else { upto(2) / 2 * upto(300) },
            caller_deaths: upto(1) * upto(3),
        };
        match kind {
            Kind::Flood => Self {
                calls: 2_600,
                partitions: 1,
                boxes: 2,
                kills: 1,
                max_recorded: 200_000,
                body_memory_bytes: if scenario.kafka { 40_000 } else { 64 << 20 },
                noise: 300,
                failing: 5,
                slow_calls: 3,
                poisons: 0,
                ..scenario
            },
            Kind::Poison => Self { boxes: scenario.boxes.max(2), ..scenario },
            _ => scenario,
        }
    }
}

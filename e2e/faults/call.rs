//! The calls of a run: each is known by its value, and everything about it (how it is sent, how the app behaves, what the answer is) is a function of the value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;

use crate::random::Random;

/// What a call is about. Unique in a run; the numbers of a worker have no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Value {
    pub(crate) caller: u16,
    pub(crate) worker: u16,
    pub(crate) number: u32,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.caller, self.worker, self.number)
    }
}

impl FromStr for Value {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '-');
        let mut next = || parts.next().ok_or(());
        let (caller, worker, number) = (next()?, next()?, next()?);
        Ok(Self { caller: caller.parse().map_err(drop)?, worker: worker.parse().map_err(drop)?, number: number.parse().map_err(drop)? })
    }
}

/// How a worker sends its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Manner {
    /// With an `Idempotency-Key`: asked again with it until there is an outcome.
    pub(crate) keyed: bool,
    /// All of the worker's calls share an ordering key.
    pub(crate) laned: bool,
    /// With `Prefer: respond-async`: several are under way at once, and their outcomes are asked for.
    pub(crate) asynchronous: bool,
    /// With bodies that do not fit into a record.
    pub(crate) large: bool,
}

/// The workers of one caller; the same again, from this number on, make calls over which the app takes no time.
pub(crate) const WORKERS: u16 = 18;

/// Which calls there are.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Load {
    /// Only calls that leave nothing to be remembered: none with a key, none that is answered by 202. Each of those has an entry in an index for a day, which is meant to grow.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Only calls over which the app takes a few milliseconds. Of the others 2 % take 0.8 to 2 s, and those are most of what a fault meets.
    #[arg(long)]
    pub(crate) quick: bool,
}

impl Load {
    /// The workers that make them.
    pub(crate) fn workers(self) -> impl Iterator<Item = u16> {
        let workers = (0..WORKERS).filter(move |worker| !self.plain || Manner::of(*worker).leaves_nothing());
        workers.map(move |worker| if self.quick { worker + WORKERS } else { worker })
    }

    /// As flags.
    pub(crate) fn to_flags(self) -> Vec<&'static str> {
        [(self.plain, "--plain"), (self.quick, "--quick")].into_iter().filter_map(|(is, flag)| is.then_some(flag)).collect()
    }
}

impl Manner {
    pub(crate) fn of(worker: u16) -> Self {
        let plain = Self::default();
        match worker % WORKERS {
            0..6 => plain,
            6..9 => Self { keyed: true, ..plain },
            9..12 => Self { laned: true, ..plain },
            12 => Self { laned: true, keyed: true, ..plain },
            13 => Self { laned: true, asynchronous: true, ..plain },
            14 => Self { laned: true, asynchronous: true, keyed: true, ..plain },
            15 => Self { asynchronous: true, ..plain },
            16 => Self { large: true, ..plain },
            _ => Self { large: true, keyed: true, ..plain },
        }
    }

    /// Whether nobody can ask for its outcome later, so that nothing is kept of it.
    pub(crate) fn leaves_nothing(self) -> bool {
        !self.keyed && !self.asynchronous
    }

    /// Whether the caller can learn its outcome later, whatever happened to its connection.
    pub(crate) fn can_be_asked_again(self) -> bool {
        self.keyed
    }
}

/// A body up to this travels in the record of its call.
const IN_RECORD_BYTES: u64 = 256 << 10;

impl Value {
    pub(crate) fn manner(self) -> Manner {
        Manner::of(self.worker)
    }

    fn random(self, about: u64) -> Random {
        Random::new(u64::from(self.number) | u64::from(self.worker) << 32 | u64::from(self.caller) << 48 ^ about.rotate_left(17))
    }

    /// How long the app takes over it.
    pub(crate) fn takes(self) -> Duration {
        let (mut random, quick) = (self.random(1), self.worker >= WORKERS);
        Duration::from_millis(match random.between(0, 100) {
            0..2 if !quick => random.between(800, 2_000),
            2..10 if !quick => random.between(50, 300),
            _ => random.between(0, 6),
        })
    }

    /// A share of 1 that is its own.
    pub(crate) fn share(self) -> f64 {
        f64::from(u16::try_from(self.random(5).between(0, 1_000)).unwrap_or(0)) / 1_000.0
    }

    /// What it sends.
    pub(crate) fn body(self) -> Bytes {
        let mut random = self.random(2);
        let length = if self.manner().large { IN_RECORD_BYTES + random.between(1, 3 * IN_RECORD_BYTES) } else { random.between(0, 1_200) };
        self.filled(format!("{self}\n"), length, random)
    }

    /// The status of its answer.
    pub(crate) fn status(self) -> u16 {
        match self.random(3).between(0, 100) {
            0..5 => 404,
            5..8 => 500,
            8..10 => 409,
            10..20 => 201,
            _ => 200,
        }
    }

    /// Its answer: the delivery that gave it, and then what must be the same in each.
    pub(crate) fn answer(self, delivery: &str) -> Bytes {
        let mut random = self.random(4);
        let large = random.between(0, if self.manner().large { 10 } else { 400 }) == 0;
        let length = if large { IN_RECORD_BYTES + random.between(1, IN_RECORD_BYTES) } else { random.between(0, 1_200) };
        self.filled(format!("{self} {delivery}\n"), length, random)
    }

    fn filled(self, head: String, length: u64, mut random: Random) -> Bytes {
        let mut bytes = head.into_bytes();
        let end = bytes.len() + usize::try_from(length).unwrap_or(0);
        bytes.reserve_exact(end - bytes.len() + 8);
        while bytes.len() < end {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(end);
        bytes.into()
    }

    /// What is wrong with an answer; otherwise the delivery that it says it comes from.
    pub(crate) fn check_answer(self, status: u16, body: &[u8]) -> Result<String, String> {
        let head = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let head = String::from_utf8_lossy(head);
        let Some((value, delivery)) = head.split_once(' ') else {
            return Err(format!("status-{status}-and-{}-bytes-that-are-no-answer", body.len()));
        };
        if value != self.to_string() {
            return Err(format!("the-answer-of-{}", value.chars().filter(|c| !c.is_whitespace()).take(40).collect::<String>()));
        }
        if status != self.status() {
            return Err(format!("status-{status}-instead-of-{}", self.status()));
        }
        if body != self.answer(delivery) {
            return Err(format!("{}-bytes-that-differ-from-the-answer", body.len()));
        }
        Ok(delivery.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_itself() {
        let value = Value { caller: 1, worker: 12, number: 70_000 };
        assert_eq!(value.to_string().parse(), Ok(value));
        assert_eq!("1-2".parse::<Value>(), Err(()));
    }

    #[test]
    fn an_answer_is_checked_to_the_last_byte() {
        let value = Value { caller: 0, worker: 17, number: 3 };
        let answer = value.answer("d1");
        assert_eq!(value.check_answer(value.status(), &answer), Ok("d1".to_owned()));
        assert!(value.check_answer(value.status() + 1, &answer).is_err());
        assert!(value.check_answer(value.status(), &answer[..answer.len() - 1]).is_err());
        let mut changed = answer.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        assert!(value.check_answer(value.status(), &changed).is_err());
        let other = Value { number: 4, ..value };
        assert!(value.check_answer(value.status(), &other.answer("d1")).is_err());
    }

    #[test]
    fn every_kind_of_call_that_leaves_nothing_is_left() {
        for quick in [false, true] {
            let left: Vec<_> = Load { plain: true, quick }.workers().map(Manner::of).collect();
            assert!(left.iter().any(|manner| manner.laned) && left.iter().any(|manner| manner.large) && left.contains(&Manner::default()));
            assert!(left.iter().all(|manner| manner.leaves_nothing()));
        }
    }

    #[test]
    fn quick_calls_are_of_every_kind_and_quick() {
        let [all, quick] = [false, true].map(|quick| Load { plain: false, quick });
        assert!(all.workers().map(Manner::of).eq(quick.workers().map(Manner::of)));
        let longest = |load: Load| load.workers().flat_map(|worker| (0..200).map(move |number| Value { caller: 0, worker, number }.takes())).max();
        assert!(longest(quick) < Some(Duration::from_millis(10)) && longest(all) > Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn large_bodies_do_not_fit_into_a_record() {
        assert!((0..50).all(|number| Value { caller: 0, worker: 16, number }.body().len() > 256 << 10));
    }
}

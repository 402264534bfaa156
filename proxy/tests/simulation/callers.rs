//! Callers: which calls there are.

use std::time::Duration;

use bluebox_core::call::{Body, Call, ReplyAddress, Request};
use bluebox_core::log::Offset;
use bluebox_core::topics::partition_of;
use bluebox_core::{CallId, ComponentName};
use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::log::replies;
use crate::random::Random;
use crate::scenario::{Kind, MS, Manner, SECOND, Scenario};

/// A call that will be made.
pub(crate) struct Plan {
    pub number: u32,
    pub call: Call,
    pub manner: Manner,
}

impl Plan {
    pub(crate) fn all(random: &mut Random, scenario: &Scenario) -> Vec<Self> {
        (0..scenario.calls).map(|n| Self::one(random, scenario, n)).collect()
    }

    fn one(random: &mut Random, scenario: &Scenario, n: u64) -> Self {
        let poison = n < scenario.poisons;
        let recorded = !poison && random.per_mille(scenario.recorded);
        // Few keys, so that they come again.
        let key = random.between(0, 1 + scenario.calls.min(80) / 4);
        let lanes = if scenario.kind == Kind::Flood { 40 } else { 4 };
        let lane = if recorded { key.is_multiple_of(3).then_some(key % lanes) } else { random.per_mille(scenario.keyed).then(|| random.between(0, lanes)) };
        let name = |name| ComponentName::try_new(name).unwrap();
        let ordering_key = lane.map(|lane| Bytes::from(format!("lane-{lane}")));
        let id = if recorded {
            CallId::keyed(&name("caller"), &name("app"), None, ordering_key.as_deref(), &key.to_be_bytes())
        } else {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&random.next().to_be_bytes());
            bytes[8..].copy_from_slice(&n.to_be_bytes());
            CallId::from_random(bytes)
        };
        let number = partition_of(&id, ordering_key.as_deref(), scenario.partitions);
        let digest = [if random.per_mille(150) { 2 } else { 1 }; 32];
        let manner = if poison {
            Manner::Poison(random.between(MS, 300 * MS))
        } else if random.per_mille(scenario.slow_calls) {
            let most = match scenario.kind {
                Kind::Clean => 20,
                Kind::Poison => 5,
                Kind::Chaos | Kind::Flood => 60,
            };
            Manner::Answers(random.between(SECOND, most * SECOND))
        } else if random.per_mille(scenario.failing) {
            match random.between(0, 4) {
                0 => Manner::NotNow(random.between(1, 3) as u32, random.between(1, 20)),
                1 => Manner::Fails(100),
                _ => Manner::Fails(random.between(1, 3) as u32),
            }
        } else {
            Manner::Answers(random.between(MS, 200 * MS))
        };
        let ttl = if random.per_mille(scenario.short_ttl) { random.between(100 * MS, 30 * SECOND) } else { 24 * 3600 * SECOND };
        let call = Call {
            id,
            replay: 0,
            caller: name("caller"),
            callee: name("app"),
            ordering_key,
            reply_to: ReplyAddress { partition: replies(random.between(0, u64::from(scenario.replies)) as u32), position: Offset::default() },
            ttl: Duration::from_micros(ttl),
            wait: random.per_mille(500).then(|| Duration::from_secs(random.between(1, 300))),
            recorded: recorded.then_some(digest),
            request: Request {
                method: Method::POST,
                target: format!("/{n}"),
                authority: "app".to_owned(),
                headers: HeaderMap::new(),
                body: Body::Inline(Bytes::from(vec![0; random.between(0, 400) as usize])),
                trailers: HeaderMap::new(),
            },
        };
        Self { number, call, manner }
    }
}

//! The rules, each by itself. Quotations are from MicroProfile LRA 2.0.

use std::time::Duration;

use super::*;
use crate::callback::Callback;
use crate::effect::seen;

mod ending;
mod family;
mod joining;
mod keeping;

const SECOND: u64 = 1_000;
/// Answers are given when all is over.
const FAR: Timestamp = Timestamp::from_millis(u64::MAX);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn id(random: u64) -> TransactionId {
    TransactionId::new(0, at(random), None, random)
}

fn links(name: &str, kinds: &[&str]) -> Links {
    let url = |kind: &str| kinds.contains(&kind).then(|| Arc::from(format!("http://{name}/{kind}")));
    Links { compensate: url("compensate"), complete: url("complete"), status: url("status"), forget: url("forget"), after: url("after"), nested: None }
}

/// A transaction whose records are durable at once.
struct Bench {
    transaction: Transaction,
    now: u64,
    requests: u64,
    effects: Vec<Effect>,
}

impl Bench {
    fn start(limit: Option<u64>, nested: bool) -> Self {
        let mut effects = Vec::new();
        let parent = nested.then(|| (id(1), Arc::from("http://txmgr/lra-coordinator/parent")));
        let start = Start {
            id: id(2),
            origin: None,
            client: Arc::from("client"),
            base: Arc::from("http://txmgr/lra-coordinator"),
            limit: limit.map(Duration::from_millis),
            parent,
        };
        let transaction = Transaction::start(Arc::new(Rules::default()), at(0), RequestId(0), start, &mut effects);
        let mut bench = Self { transaction, now: 0, requests: 0, effects };
        bench.settle();
        bench
    }

    fn settle(&mut self) {
        while let Some(version) = self.transaction.take_record() {
            self.transaction.durable(at(self.now), version, &mut self.effects);
        }
    }

    /// Asks, and gives the answer if there is one yet.
    fn ask(&mut self, request: Request) -> Option<Answer> {
        self.requests += 1;
        let number = RequestId(self.requests);
        self.transaction.request(at(self.now), number, request, &mut self.effects);
        self.settle();
        self.answer(number)
    }

    fn answer(&self, number: RequestId) -> Option<Answer> {
        seen::answer(&self.effects, number)
    }

    fn join(&mut self, name: &str, kinds: &[&str]) -> Option<Answer> {
        self.ask(Request::Join(Join { links: links(name, kinds), limit: None, data: None }))
    }

    /// The calls that were made since this was last asked.
    fn calls(&mut self) -> Vec<Callback> {
        seen::calls(&mut self.effects)
    }

    fn urls(&mut self) -> Vec<String> {
        self.calls().iter().map(|call| call.url.as_ref().to_owned()).collect()
    }

    fn outcome(&mut self, key: CallbackKey, outcome: Outcome) {
        self.transaction.outcome(at(self.now), key, outcome, &mut self.effects);
        self.settle();
    }

    /// The outcome of the one call that was made.
    fn ends(&mut self, outcome: Outcome) -> CallbackKey {
        let calls = self.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        self.outcome(calls[0].key, outcome);
        calls[0].key
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        self.transaction.tick(at(self.now), &mut self.effects);
        self.settle();
    }

    fn status(&self) -> LraStatus {
        self.transaction.lra().status
    }

    fn participant(&self, callee: u32) -> &Participant {
        self.transaction.participant(Callee(callee)).unwrap()
    }
}

fn refusal(answer: Option<Answer>) -> u16 {
    match answer {
        Some(Answer::Refused(refusal)) => refusal.status_code(),
        other => panic!("{other:?}"),
    }
}

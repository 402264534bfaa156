//! One transaction after the other, of every kind, by clients that give up nothing: what has no answer is asked again, under the same key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bluebox_e2e::{Answer, Call};
use http::Method;
use serde_json::{Value, json};

use super::scene::PARTICIPANTS;
use crate::random::Random;

/// No transaction has more time.
pub(crate) const LONGEST_LIMIT: Duration = Duration::from_secs(30);
/// Those that nobody ends have so much.
const SHORT_LIMIT: Duration = Duration::from_secs(2);

const COORDINATOR: &str = "http://txmgr/lra-coordinator";

/// How much is still wanted.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    enough: AtomicBool,
    begun: AtomicU64,
}

impl Wanted {
    pub(crate) fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }
}

/// What kind of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lra,
    /// One that is nested in the one before it.
    Nested,
    Saga,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lra => "lra",
            Self::Nested => "nested",
            Self::Saga => "saga",
        }
    }
}

/// A transaction, as its client knows it.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    /// Those whose joins were answered; of a saga, those that its steps call, in their order.
    pub(crate) members: Vec<&'static str>,
    /// Of a saga: what the paths of its steps begin with.
    pub(crate) tag: String,
    /// As it ended.
    pub(crate) status: String,
}

impl Transaction {
    fn new(kind: Kind, url: String) -> Self {
        Self { kind, url, members: Vec::new(), tag: String::new(), status: "?".to_owned() }
    }

    /// Waits until it has ended; whether it did, by then.
    pub(crate) async fn await_end(&mut self, door: SocketAddr, by: Instant) -> bool {
        loop {
            let url = if self.kind == Kind::Saga { self.url.clone() } else { format!("{}/status", self.url) };
            if let Ok(answer) = Call::get(&url).send_to(door).await
                && answer.status == 200
            {
                let saga = || serde_json::from_slice::<Value>(&answer.body).ok()?["status"].as_str().map(str::to_owned);
                self.status = if self.kind == Kind::Saga { saga().unwrap_or_default() } else { answer.text().to_owned() };
                if ["Closed", "Cancelled", "FailedToClose", "FailedToCancel"].contains(&self.status.as_str()) {
                    return true;
                }
            }
            if Instant::now() > by {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// One that makes transactions.
pub(crate) struct Client {
    pub(crate) proxies: Vec<SocketAddr>,
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) random: Random,
    pub(crate) number: u64,
}

impl Client {
    /// Until there are enough: all that it has made.
    pub(crate) async fn run(mut self) -> Vec<Transaction> {
        let mut made = Vec::new();
        let mut n = 0;
        while !self.wanted.enough.load(Ordering::Relaxed) {
            n += 1;
            let tag = format!("{}-{n}", self.number);
            match self.random.between(0, 99) {
                0..=24 => made.extend(self.saga(&tag).await),
                25..=39 => made.extend(self.family(&tag).await),
                _ => made.extend(self.lra(&tag).await),
            }
            self.wanted.begun.fetch_add(1, Ordering::Relaxed);
        }
        made
    }

    /// Asks until there is an answer that is one, under one key.
    async fn ask(&self, key: &str, call: Call) -> Answer {
        let call = call.keyed(key).prefer("wait=20");
        let mut tries = usize::try_from(self.number).unwrap_or(0);
        loop {
            let proxy = self.proxies[tries % self.proxies.len()];
            tries += 1;
            let asked = tokio::time::timeout(Duration::from_secs(40), call.clone().send_to(proxy)).await;
            if let Ok(Ok(answer)) = asked
                && ![503, 504].contains(&answer.status.as_u16())
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn start(&self, tag: &str, limit: Duration, parent: Option<&str>) -> Option<String> {
        let parent = parent.map(|url| format!("&ParentLRA={}", url.replace(':', "%3A").replace('/', "%2F"))).unwrap_or_default();
        let url = format!("{COORDINATOR}/start?ClientID={tag}&TimeLimit={}{parent}", limit.as_millis());
        let answer = self.ask(&format!("{tag}-start"), Call::post(&url, "")).await;
        (answer.status == 201).then(|| answer.text().to_owned())
    }

    async fn join(&self, tag: &str, transaction: &mut Transaction, name: &'static str) {
        let relations = ["compensate", "complete", "forget", "after"];
        let links: Vec<String> = relations.iter().map(|rel| format!("<http://{name}/{rel}>; rel=\"{rel}\"")).collect();
        let joined = self.ask(&format!("{tag}-join-{name}"), Call::new(Method::PUT, &transaction.url).with("link", &links.join(", "))).await;
        if joined.status == 200 {
            transaction.members.push(name);
        }
    }

    async fn end(&self, tag: &str, transaction: &Transaction, end: &str) {
        self.ask(&format!("{tag}-{end}"), Call::new(Method::PUT, &format!("{}/{end}", transaction.url))).await;
    }

    async fn lra(&mut self, tag: &str) -> Vec<Transaction> {
        let luck = self.random.between(0, 99);
        let left_alone = luck >= 85;
        let Some(url) = self.start(tag, if left_alone { SHORT_LIMIT } else { LONGEST_LIMIT }, None).await else { return Vec::new() };
        let mut transaction = Transaction::new(Kind::Lra, url);
        for name in PARTICIPANTS {
            if self.random.per_mille(700) {
                self.join(tag, &mut transaction, name).await;
            }
        }
        if !left_alone {
            self.end(tag, &transaction, if luck < 50 { "close" } else { "cancel" }).await;
        }
        vec![transaction]
    }

    /// An LRA with one that is nested in it.
    async fn family(&mut self, tag: &str) -> Vec<Transaction> {
        let Some(url) = self.start(tag, LONGEST_LIMIT, None).await else { return Vec::new() };
        let mut parent = Transaction::new(Kind::Lra, url);
        let mut all = Vec::new();
        if let Some(url) = self.start(&format!("{tag}-child"), LONGEST_LIMIT, Some(&parent.url)).await {
            let mut child = Transaction::new(Kind::Nested, url);
            self.join(&format!("{tag}-child"), &mut child, PARTICIPANTS[0]).await;
            self.join(&format!("{tag}-child"), &mut child, PARTICIPANTS[1]).await;
            if self.random.per_mille(600) {
                self.end(&format!("{tag}-child"), &child, "close").await;
            }
            all.push(child);
        }
        self.join(tag, &mut parent, PARTICIPANTS[2]).await;
        let end = if self.random.per_mille(500) { "close" } else { "cancel" };
        self.end(tag, &parent, end).await;
        // Once the parent has ended, the child has.
        all.insert(0, parent);
        all
    }

    async fn saga(&mut self, tag: &str) -> Vec<Transaction> {
        let step = |name: &str| {
            let url = |what: &str| format!("http://{name}/saga/{tag}/{what}");
            json!({ "name": name, "action": { "url": url("do") }, "compensation": { "url": url("undo") } })
        };
        let mut steps: Vec<Value> = PARTICIPANTS.iter().map(|name| step(name)).collect();
        if self.random.per_mille(300) {
            // All at once.
            steps.iter_mut().for_each(|step| step["after"] = json!([]));
        }
        let limit = u64::try_from(LONGEST_LIMIT.as_millis()).unwrap_or(u64::MAX);
        let wanted = json!({ "steps": steps, "time_limit_ms": limit });
        let answer = self.ask(&format!("{tag}-saga"), Call::post("http://txmgr/v1/sagas", wanted.to_string())).await;
        let url = answer.header("location").to_owned();
        if ![200, 202].contains(&answer.status.as_u16()) || url.is_empty() {
            return Vec::new();
        }
        if self.random.per_mille(150) {
            self.ask(&format!("{tag}-cancel"), Call::post(&format!("{url}/cancel"), "")).await;
        }
        vec![Transaction { members: PARTICIPANTS.to_vec(), tag: format!("/saga/{tag}/"), ..Transaction::new(Kind::Saga, url) }]
    }
}

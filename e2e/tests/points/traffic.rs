//! Callers, and what each call came to: everything that is needed to say afterwards whether a promise was broken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bluebox_e2e::app::content;
use bluebox_e2e::{Answer, App, Call, Lost};
use bytes::Bytes;
use http::Response;

/// Flags of the callee's proxy that go with the app below.
pub(crate) const FLAGS: [(&str, &str); 2] = [("--retry-on", "500"), ("--max-attempts", "4")];

/// Flags of the caller's proxy: where nobody can know whether a call was accepted, and it was not, its caller waits for nothing.
pub(crate) const CALLER_FLAGS: [(&str, &str); 1] = [("--wait", "4s")];

/// More than travels in a record.
const LARGE_BYTES: usize = 600_000;

/// Calls that are not answered while it is closed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What the app does: `/held` stays unanswered, and `/parked` gets *not now*, until the gate is open; `/dead` always fails; everything else is answered with what was sent.
pub(crate) fn behave(app: &App, gate: &Gate) {
    let gate = gate.clone();
    app.rule(move |asked| {
        let open = gate.0.load(Ordering::SeqCst);
        let answer = |status: u16| Response::builder().status(status);
        match asked.target.split('/').nth(1)? {
            "held" if !open => None,
            "parked" if !open => answer(503).header("retry-after", "1").body(content("not now")).ok(),
            "dead" => answer(500).body(content("it always fails")).ok(),
            _ => answer(200).body(content(asked.body.clone())).ok(),
        }
    });
}

/// A call and what its caller knows of it.
#[derive(Debug, Default)]
struct Made {
    body: Bytes,
    /// With an `Idempotency-Key`: sent again until there is an outcome.
    keyed: bool,
    /// Its lane, where it is one of those that were accepted one after the other.
    lane: Option<&'static str>,
    /// Where to ask for the outcome of a call that was accepted.
    location: Option<String>,
    /// The proxy said that it was accepted, and no more.
    accepted: bool,
    /// The proxy said that it was not accepted.
    refused: bool,
    /// When its caller knew its outcome.
    ended: Option<Instant>,
}

/// All calls of a scene, by target.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    made: BTreeMap<String, Made>,
    next: AtomicU64,
    /// Outcomes seen so far.
    pub(crate) outcomes: u64,
}

/// One call of a round.
struct Plan {
    target: String,
    call: Call,
    made: Made,
}

impl Traffic {
    fn plan(&self, kind: &'static str, body: impl Into<Bytes>, change: impl FnOnce(Call, &str) -> Call) -> Plan {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (target, body) = (format!("/{kind}/{n:06}"), body.into());
        let call = change(Call::post(&format!("http://cart{target}"), body.clone()), &target);
        Plan { target, call, made: Made { body, ..Made::default() } }
    }

    /// One call of each kind at once, and what comes of them.
    pub(crate) async fn round(&mut self, shop: std::net::SocketAddr) -> Result<(), String> {
        let mut at_once = vec![
            self.plan("plain", "a book", |call, _| call),
            self.plan("dead", "a book", |call, _| call),
            self.plan("large", vec![7; LARGE_BYTES], |call, _| call),
            self.plan("keyed", "a book", |call, target| call.keyed(target)),
        ];
        at_once[3].made.keyed = true;
        let at_once = at_once.into_iter().map(|plan| async move { (plan.call.send_to(shop).await, plan.target, plan.made) });
        // One after the other, so that the order in which they are accepted is known.
        let mut in_order = Vec::new();
        for _ in 0..2 {
            let mut plan = self.plan("lane", "a book", |call, _| call.ordered("lane").prefer("respond-async"));
            plan.made.lane = Some("lane");
            in_order.push(plan);
        }
        let in_order = async {
            let mut answers = Vec::new();
            for plan in in_order {
                answers.push((plan.call.send_to(shop).await, plan.target, plan.made));
            }
            answers
        };
        let (answers, in_order) = tokio::join!(futures_util::future::join_all(at_once), in_order);
        let mut lost = false;
        for (answer, target, made) in answers.into_iter().chain(in_order) {
            lost |= answer.is_err();
            self.learn(target, made, answer)?;
        }
        if lost {
            // Whoever can't connect tries again, but not a thousand times a second.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // What was accepted is asked for: that goes by the control topic while it runs.
        let open: Vec<_> =
            self.made.iter().rev().filter(|(_, made)| made.ended.is_none() && made.location.is_some()).map(|(target, _)| target.clone()).collect();
        for target in open.into_iter().take(3) {
            self.ask(shop, &target).await?;
        }
        Ok(())
    }

    /// Accepts a call whose outcome comes later.
    pub(crate) async fn accept(&mut self, shop: std::net::SocketAddr, kind: &'static str) -> Result<String, String> {
        let mut plan = self.plan(kind, "a book", |call, _| call.ordered(kind).prefer("respond-async"));
        plan.made.lane = Some(kind);
        let target = plan.target.clone();
        let answer = plan.call.send_to(shop).await;
        let accepted = answer.as_ref().is_ok_and(|answer| answer.status == 202);
        self.learn(plan.target, plan.made, answer)?;
        accepted.then_some(target).ok_or_else(|| "a call could not be accepted before anything went wrong".to_owned())
    }

    fn learn(&mut self, target: String, mut made: Made, answer: Result<Answer, Lost>) -> Result<(), String> {
        if let Ok(answer) = answer {
            if answer.status == 202 {
                made.location = Some(answer.location());
            } else if is_outcome(&target, &made.body, &answer)? {
                made.ended = Some(Instant::now());
                self.outcomes += 1;
            } else {
                made.accepted = answer.header("bluebox-error") == "no-outcome-yet";
                // One with a key is sent again.
                made.refused = answer.header("bluebox-retry-safe") == "true" && !made.keyed;
            }
        }
        self.made.insert(target, made);
        Ok(())
    }

    /// Asks for an outcome.
    async fn ask(&mut self, shop: std::net::SocketAddr, target: &str) -> Result<bool, String> {
        let Some(made) = self.made.get_mut(target) else { return Ok(true) };
        let call = match (&made.location, made.keyed) {
            (Some(location), _) => Call::get(location),
            (None, true) => Call::post(&format!("http://cart{target}"), made.body.clone()).keyed(target),
            // Nobody can ask for it.
            (None, false) => return Ok(true),
        };
        let Ok(answer) = call.send_to(shop).await else { return Ok(false) };
        let known = match answer.header("bluebox-call-state") {
            "pending" => false,
            _ if answer.status == 410 || answer.status == 400 => return Err(format!("{target} was accepted, and nothing is known of it: {answer:?}")),
            _ => is_outcome(target, &made.body, &answer)?,
        };
        if known {
            made.ended = Some(Instant::now());
            self.outcomes += 1;
        }
        Ok(known)
    }

    /// Asks for everything that can be asked for, until all of it has ended.
    pub(crate) async fn all_end(&mut self, shop: std::net::SocketAddr, patience: Duration) -> Result<(), String> {
        let until = Instant::now() + patience;
        let open: Vec<_> = self.made.iter().filter(|(_, made)| made.ended.is_none()).map(|(target, _)| target.clone()).collect();
        for target in open {
            while !self.ask(shop, &target).await? {
                if Instant::now() > until {
                    return Err(format!("{target} was accepted and has no outcome"));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// What the app was asked must agree with what callers know.
    pub(crate) fn check(&self, app: &App) -> Result<(), String> {
        let mut first = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for (place, asked) in app.ledger().into_iter().enumerate() {
            let target = asked.target.as_str();
            if let Some(other) = ids.insert(asked.header("bluebox-call-id").to_owned(), target.to_owned()).filter(|other| other != target) {
                return Err(format!("{target} and {other} have the same id"));
            }
            first.entry(target.to_owned()).or_insert(place);
            let Some(made) = self.made.get(target) else { continue };
            if asked.body != made.body {
                return Err(format!("{target} was delivered with another body"));
            }
            if made.refused {
                return Err(format!("{target} was delivered, though its caller was told that it is not accepted"));
            }
            if made.ended.is_some_and(|ended| ended < asked.at) {
                return Err(format!("{target} was delivered after its caller had its outcome: {asked:?}"));
            }
        }
        let mut last: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (target, made) in self.made.iter().filter(|(_, made)| made.location.is_some() || made.accepted) {
            let Some(place) = first.get(target) else { return Err(format!("{target} was accepted and never delivered")) };
            let Some(lane) = made.lane else { continue };
            if let Some((before, other)) = last.insert(lane, (*place, target)).filter(|(before, _)| before > place) {
                return Err(format!("{target} (delivery {place}) was accepted after {other} (delivery {before}) and delivered before it"));
            }
        }
        Ok(())
    }
}

/// Whether this is the outcome of the call. One that is not the call's own breaks a promise.
fn is_outcome(target: &str, body: &Bytes, answer: &Answer) -> Result<bool, String> {
    let of_the_proxy = answer.header("bluebox-error");
    if target.starts_with("/dead/") {
        // Every attempt fails: a dead letter.
        return match (answer.status.as_u16(), of_the_proxy) {
            (_, "") => Err(format!("{target}: what its app never said: {answer:?}")),
            (_, problem) => Ok(problem == "attempts"),
        };
    }
    if !of_the_proxy.is_empty() {
        let ended = ["attempts", "poison", "deadline", "answer", "key-reused", "recorded-full", "cancelled"].contains(&of_the_proxy);
        return if ended { Err(format!("{target} ended with what is not its app's answer: {answer:?}")) } else { Ok(false) };
    }
    if answer.status == 200 && answer.body == *body {
        return Ok(true);
    }
    Err(format!("{target}: this is not what its app answered: {} with {} bytes, {:?}", answer.status, answer.body.len(), answer.headers))
}

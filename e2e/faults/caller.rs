//! The app that calls, as a process: it writes down what it is about to send, and what it learned.
//!
//! Killed at any moment it goes on from its ledger: a worker's next value is the one after its last, calls with an `Idempotency-Key` are asked for again with it, and those
//! that were accepted by 202 at their `Location`. Of the others nobody will know whether they were accepted.

mod connection;
mod past;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::call::{Load, Manner, Value};
use crate::ledger::{Entry, Ledger};
use connection::{Answer, Connection, Failure};
use past::Past;

/// What the app is told.
#[derive(Debug, Args)]
pub(crate) struct CallerOptions {
    /// Where its proxy takes calls.
    #[arg(long)]
    proxy: SocketAddr,
    #[arg(long)]
    ledger: PathBuf,
    /// Its number.
    #[arg(long)]
    caller: u16,
    /// How long a worker pauses between calls, on average.
    #[arg(long)]
    think_ms: u64,
    #[command(flatten)]
    load: Load,
}

/// Whom it calls.
pub(crate) const CALLEE: &str = "cart";
/// How many calls of one worker may be unanswered after their 202.
const UNASKED: usize = 6;
/// The pause before something is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// By how much the workers with large bodies pause longer.
const LARGE_ARE_SLOWER: u32 = 15;
/// How long an answer may take beyond what the proxy may hold the connection.
const NO_ANSWER: Duration = Duration::from_secs(60);

struct App {
    ledger: Ledger,
    proxy: SocketAddr,
    caller: u16,
    think: Duration,
    drain: watch::Receiver<bool>,
}

/// Calls until it is told `drain` on its standard input; then learns what it can still learn, and ends. The end of the input ends it at once.
pub(crate) async fn run(options: CallerOptions) -> anyhow::Result<()> {
    let (tell, drain) = watch::channel(false);
    crate::system::process::on_line(move |line| {
        if line == "drain" {
            tell.send_replace(true);
        }
    });
    let mut past = Past::read(&options.ledger)?;
    let ledger = Ledger::open(&options.ledger)?;
    let app = Rc::new(App { ledger, proxy: options.proxy, caller: options.caller, think: Duration::from_millis(options.think_ms), drain });
    let all = tokio::task::LocalSet::new();
    all.run_until(async {
        let mut workers = JoinSet::new();
        for worker in options.load.workers() {
            let (app, past) = (Rc::clone(&app), past.take(worker));
            workers.spawn_local(async move { work(&app, worker, past).await });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(())
    })
    .await
}

/// What became of one sending.
enum Sent {
    /// There is nothing more to learn, or somebody else learns it.
    Settled,
    /// Nobody took it: it can be sent again whatever it is.
    NotAccepted,
    /// It may be in the log.
    Unknown,
}

/// A place among the calls that were accepted and whose outcomes are not known yet. Given back when it is dropped.
type Place = OwnedSemaphorePermit;

async fn work(app: &Rc<App>, worker: u16, past: past::Worker) -> anyhow::Result<()> {
    let manner = Manner::of(worker);
    let places = Arc::new(Semaphore::new(UNASKED));
    let mut asking = JoinSet::new();
    for (value, location) in past.unasked {
        asking.spawn_local(ask(Rc::clone(app), value, location, None));
    }
    let mut connection = Connection::new(app.proxy);
    // The last one that was sent before the end: whoever has a key may ask again.
    let mut open = past.open.filter(|_| manner.can_be_asked_again());
    let mut number = past.next;
    loop {
        let (value, mut times, mut may_be_accepted) = match open.take() {
            Some((value, times)) => (value, times, true),
            None if *app.drain.borrow() => break,
            None => (Value { caller: app.caller, worker, number }, 0, false),
        };
        number = number.max(value.number + 1);
        let mut place = if manner.asynchronous { Some(Arc::clone(&places).acquire_owned().await?) } else { None };
        loop {
            times += 1;
            app.ledger.write(value, Entry::Sending(times))?;
            match send(app, &mut connection, value).await? {
                (Sent::Settled, None) => break,
                (Sent::Settled, Some(location)) => {
                    asking.spawn_local(ask(Rc::clone(app), value, location, place.take()));
                    break;
                }
                (Sent::Unknown, _) if !manner.can_be_asked_again() => break,
                (Sent::Unknown, _) => may_be_accepted = true,
                // It stays unsent, and everybody knows.
                (Sent::NotAccepted, _) if *app.drain.borrow() && !may_be_accepted => break,
                (Sent::NotAccepted, _) => {}
            }
            sleep(AGAIN).await;
        }
        while let Some(ended) = asking.try_join_next() {
            ended??;
        }
        // Large bodies would soon fill the disk.
        let slower = if manner.large { LARGE_ARE_SLOWER } else { 1 };
        sleep(app.think.mul_f64(value.share() + 0.5) * slower).await;
    }
    while let Some(ended) = asking.join_next().await {
        ended??;
    }
    Ok(())
}

/// Sends a call once, and writes down what came of it; with the `Location` of one that was accepted by 202.
async fn send(app: &App, connection: &mut Connection, value: Value) -> anyhow::Result<(Sent, Option<String>)> {
    let manner = value.manner();
    let mut request = Request::post(format!("http://{CALLEE}/call")).header("host", CALLEE).header("x-value", value.to_string());
    if manner.keyed {
        request = request.header("idempotency-key", value.to_string());
    }
    if manner.laned {
        request = request.header("bluebox-ordering-key", format!("{}-{}", value.caller, value.worker));
    }
    if manner.asynchronous {
        request = request.header("prefer", "respond-async");
    }
    let (sent, entry, location) = match connection.send(request, value.body(), NO_ANSWER).await? {
        Err(Failure::Refused(why)) => (Sent::NotAccepted, Entry::NotAccepted(why), None),
        Err(Failure::Broken(why)) => (Sent::Unknown, Entry::Broken(why), None),
        Ok(answer) if answer.problem.is_none() && answer.status == 202 && answer.location.is_some() => {
            let location = answer.location.unwrap_or_default();
            (Sent::Settled, Entry::Accepted(location.clone()), Some(location))
        }
        Ok(Answer { problem: Some(word), status: 503, retry_safe: true, .. }) => (Sent::NotAccepted, Entry::NotAccepted(word), None),
        Ok(Answer { problem: Some(word), status, .. }) if status == 503 || status == 504 => (Sent::Unknown, Entry::Problem(status, word), None),
        Ok(Answer { problem: Some(word), status, .. }) => (Sent::Settled, Entry::Problem(status, word), None),
        Ok(answer) => (Sent::Settled, Entry::Outcome(value.check_answer(answer.status, &answer.body)), None),
    };
    app.ledger.write(value, entry)?;
    Ok((sent, location))
}

/// Asks for the outcome of a call that was accepted by 202, until there is one.
async fn ask(app: Rc<App>, value: Value, location: String, place: Option<Place>) -> anyhow::Result<()> {
    let mut connection = Connection::new(app.proxy);
    let mut pause = AGAIN;
    let entry = loop {
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN * 10);
        let request = Request::get(&location).header("host", "bluebox");
        match connection.send(request, bytes::Bytes::new(), NO_ANSWER).await? {
            Ok(answer) if answer.state == "ended" => match answer.problem {
                None => break Entry::Outcome(value.check_answer(answer.status, &answer.body)),
                Some(word) => break Entry::Problem(answer.status, word),
            },
            Ok(answer) if answer.state == "pending" || answer.status >= 503 => {}
            Ok(answer) => break Entry::Forgotten(format!("{}-{}", answer.status, answer.problem.unwrap_or_default())),
            Err(_) => {}
        }
    };
    app.ledger.write(value, entry)?;
    drop(place);
    Ok(())
}

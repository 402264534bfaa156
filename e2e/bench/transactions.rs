//! A whole transaction: start → two joins → close, beside as many bare round trips through the log.
//!
//! One after the other it goes through the log 16 times: each of the four requests there and its answer back, and between them the record that the answer depends on (12); in the close, the callbacks there
//! and their outcomes back (2; both participants at once), and a record for each outcome, one after the other (2). Two hops are one round trip of the floor.
//!
//! That is the yardstick. What is waited for is a little less: the two outcomes of the close are in one record where they come one soon after the other, so that there are five records, and a record is only acknowledged
//! where the floor is read as well. So the five durable calls that it can't do without are measured in the same run too, four requests and the callbacks, as calls to an app that does nothing: what a transaction takes beyond
//! them is the transaction manager's.
//!
//! And what many take: the memory of one transaction manager for [`RunOptions::at_once`] at once, again and again; how long it takes until [`RunOptions::open`] open ones go on after its death.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bluebox_e2e::proxy;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::floor::Floor;
use crate::http::Connection;
use crate::numbers::{Rounds, Times, rounded};
use crate::options::{LogKind, RunOptions};
use crate::report::Report;
use crate::system::{Listening, Pair, System};
use crate::usage;

/// Round trips of the floor that are one transaction.
const ROUND_TRIPS: u64 = 8;
/// Durable calls, one after the other, that are one transaction.
const CALLS: u64 = 5;
/// Records of its state that are waited for, one after the other.
const RECORDS: u64 = 5;
/// Not counted.
const WARM_UP: u32 = 20;
/// Transactions at once, where it is measured how many there are in a second.
const AT_ONCE: usize = 64;
/// How often [`RunOptions::at_once`] of them are made.
const TIMES: u32 = 10;
/// How long what has ended is kept where it is measured what is left of it.
const KEPT: Duration = Duration::from_secs(1);
/// What was kept is gone after that, and a process is at rest.
const REST: Duration = Duration::from_secs(5);
/// How long it may take until as many are open as are wanted, and until all of them go on after a death.
const PATIENCE: Duration = Duration::from_secs(600);
/// As good as for ever.
const NO_LIMIT: Duration = Duration::from_secs(3_600);

const COORDINATOR: &str = "http://txmgr/lra-coordinator";

/// A client with a connection of its own.
struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn open(at: std::net::SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(at).await.with_context(|| at.to_string())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    async fn ask(&mut self, method: Method, url: &str, link: Option<&str>) -> anyhow::Result<Response<Bytes>> {
        self.0.ready().await?;
        let mut request = Request::builder().method(method).uri(url).header("host", "txmgr");
        if let Some(link) = link {
            request = request.header("link", link);
        }
        let (head, body) = self.0.send_request(request.body(Full::default())?).await.with_context(|| url.to_owned())?.into_parts();
        let body = body.collect().await?.to_bytes();
        ensure!(head.status.is_success(), "{url}: {}: {}", head.status, String::from_utf8_lossy(&body));
        Ok(Response::from_parts(head, body))
    }

    /// Start, two joins, close.
    async fn transaction(&mut self) -> anyhow::Result<()> {
        let lra = self.begin().await?;
        self.close(&lra).await
    }

    /// Start, two joins: its URL.
    async fn begin(&mut self) -> anyhow::Result<String> {
        let started = self.ask(Method::POST, &format!("{COORDINATOR}/start"), None).await?;
        let lra = std::str::from_utf8(started.body())?.to_owned();
        for n in 0..2 {
            let link = format!("<http://cart/{n}/compensate>; rel=\"compensate\", <http://cart/{n}/complete>; rel=\"complete\"");
            self.ask(Method::PUT, &lra, Some(&link)).await?;
        }
        Ok(lra)
    }

    async fn close(&mut self, lra: &str) -> anyhow::Result<()> {
        let closed = self.ask(Method::PUT, &format!("{lra}/close"), None).await?;
        ensure!(&closed.body()[..] == b"Closed", "{lra}: {}", String::from_utf8_lossy(closed.body()));
        Ok(())
    }
}

/// So many clients, each with a connection of its own.
async fn clients(at: std::net::SocketAddr, count: usize) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::open(at).await?);
    }
    Ok(clients)
}

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    // First: a broker that makes many topics takes its time to tell of each.
    let mut floor = match (options.log, &options.brokers) {
        (LogKind::Kafka, Some(brokers)) => Some(Floor::start(brokers, system.prefix(), options.body).await?),
        _ => None,
    };
    let pair = system.pair(&[], &[]).await?;
    let txmgr = system.txmgr(options.partitions, &[]).await?;
    proxy::knows(pair.caller.at, "txmgr").await;
    let figures = latency(options, report, &pair, floor.as_mut()).await?;
    report.put("transactions", figures);
    txmgr.process.terminate().await;
    let many = many(options, &system, pair.caller.at).await?;
    report.put("transactions", json!({ "many": many }));
    report.say("  many at once: done");
    let recovery = recovery(options, &system, pair.caller.at).await?;
    report.put("transactions", json!({ "recovery": recovery }));
    Ok(())
}

/// One after the other, and [`AT_ONCE`] at once, in turns with the floor.
async fn latency(options: &RunOptions, report: &Report, pair: &Pair, mut floor: Option<&mut Floor>) -> anyhow::Result<Value> {
    let at = pair.caller.at;
    let (mut client, mut caller) = (Client::open(at).await?, Connection::open(at).await?);
    for _ in 0..WARM_UP {
        client.transaction().await?;
        caller.call(&pair.durable).await?;
    }
    if let Some(floor) = &mut floor {
        floor.play(1, WARM_UP.into(), NO_LIMIT)?;
    }
    let mut clients = clients(at, AT_ONCE).await?;
    let (mut of_floor, mut of_calls, mut alone, mut at_once) = (Rounds::default(), Rounds::default(), Rounds::default(), Rounds::default());
    let mut of_close = Rounds::default();
    let transactions = (options.calls / 4).max(10);
    for round in 0..options.rounds {
        if let Some(floor) = &mut floor {
            let (mut times, began) = (Times::default(), Instant::now());
            for _ in 0..transactions {
                let begun = Instant::now();
                floor.play(1, ROUND_TRIPS, NO_LIMIT)?;
                times.add(begun.elapsed());
            }
            of_floor.add(times, began.elapsed());
        }
        let (mut times, began) = (Times::default(), Instant::now());
        for _ in 0..transactions {
            let begun = Instant::now();
            for _ in 0..CALLS {
                caller.call(&pair.durable).await?;
            }
            times.add(begun.elapsed());
        }
        of_calls.add(times, began.elapsed());
        let (mut times, mut closes, began) = (Times::default(), Times::default(), Instant::now());
        for _ in 0..transactions {
            let begun = Instant::now();
            let lra = client.begin().await?;
            let closing = Instant::now();
            client.close(&lra).await?;
            closes.add(closing.elapsed());
            times.add(begun.elapsed());
        }
        alone.add(times, began.elapsed());
        of_close.add(closes, began.elapsed());
        let began = Instant::now();
        let until = began + options.time;
        let all = clients.drain(..).map(|mut client| async move {
            let mut times = Times::default();
            while Instant::now() < until {
                let begun = Instant::now();
                client.transaction().await?;
                times.add(begun.elapsed());
            }
            anyhow::Ok((client, times))
        });
        let mut times = Times::default();
        for done in futures_util::future::join_all(all).await {
            let (client, of_client) = done?;
            times.extend(&of_client);
            clients.push(client);
        }
        at_once.add(times, began.elapsed());
        report.progress(round + 1, options.rounds);
    }
    let mut figures = json!({
        "alone": alone.json(), "at_once": AT_ONCE, "together": at_once.json(), "calls": of_calls.json(), "durable_calls": CALLS, "awaited_records": RECORDS,
        "close_p50_us": rounded(of_close.percentile(50.0)), "times_its_calls_p50": alone.percentile(50.0) / of_calls.percentile(50.0),
    });
    if floor.is_some() {
        figures["floor"] = of_floor.json();
        figures["floor_round_trips"] = json!(ROUND_TRIPS);
        figures["times_the_floor_p50"] = json!(alone.percentile(50.0) / of_floor.percentile(50.0));
    }
    Ok(figures)
}

/// Many that are open at once, with two participants each, and then all closed at once, again and again: what that takes of the memory of the transaction manager, and what is left of it.
async fn many(options: &RunOptions, system: &System, at: std::net::SocketAddr) -> anyhow::Result<Value> {
    let txmgr = system.txmgr(options.partitions, &[format!("--keep-transactions={}ms", KEPT.as_millis())]).await?;
    serves(&txmgr).await?;
    let pid = txmgr.process.pid();
    tokio::time::sleep(REST).await;
    let rest = usage::resident_bytes(pid)?;
    let mut clients = clients(at, options.at_once).await?;
    let (mut open_bytes, mut peak_bytes, mut left_bytes, mut seconds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TIMES {
        usage::forget_peak(pid)?;
        let began = Instant::now();
        let begun = clients.drain(..).map(|mut client| async move { client.begin().await.map(|lra| (client, lra)) });
        let begun = futures_util::future::try_join_all(begun).await?;
        open_bytes.push(usage::resident_bytes(pid)?);
        let closed = begun.into_iter().map(|(mut client, lra)| async move { client.close(&lra).await.map(|()| client) });
        clients = futures_util::future::try_join_all(closed).await?;
        seconds.push(rounded(began.elapsed().as_secs_f64()));
        peak_bytes.push(usage::peak_bytes(pid)?);
        tokio::time::sleep(REST).await;
        left_bytes.push(usage::resident_bytes(pid)?);
    }
    txmgr.process.terminate().await;
    Ok(
        json!({ "at_once": options.at_once, "rest_rss_bytes": rest, "open_rss_bytes": open_bytes, "peak_rss_bytes": peak_bytes, "left_rss_bytes": left_bytes, "seconds": seconds }),
    )
}

/// Many that are open, and how long it takes after a SIGKILL until the next owner serves all of them.
async fn recovery(options: &RunOptions, system: &System, at: std::net::SocketAddr) -> anyhow::Result<Value> {
    let txmgr = system.txmgr(options.partitions, &[]).await?;
    serves(&txmgr).await?;
    let rest = usage::resident_bytes(txmgr.process.pid())?;
    let each = options.open.div_ceil(AT_ONCE);
    let began = Instant::now();
    let starts = clients(at, AT_ONCE).await?.into_iter().map(|mut client| async move {
        for _ in 0..each {
            client.ask(Method::POST, &format!("{COORDINATOR}/start"), None).await?;
        }
        anyhow::Ok(())
    });
    tokio::time::timeout(PATIENCE, futures_util::future::try_join_all(starts))
        .await
        .with_context(|| format!("{} not begun within {PATIENCE:?}", options.open))??;
    let begun_in = began.elapsed();
    let resident = usage::resident_bytes(txmgr.process.pid())?;
    // SIGKILL: the session of the dead one is part of it.
    drop(txmgr);
    let began = Instant::now();
    let txmgr = system.txmgr(options.partitions, &[]).await?;
    serves(&txmgr).await?;
    let recovered_in = began.elapsed();
    let recovered = usage::resident_bytes(txmgr.process.pid())?;
    Ok(json!({
        "open": each * AT_ONCE, "begun_in_s": rounded(begun_in.as_secs_f64()), "recovered_in_s": rounded(recovered_in.as_secs_f64()),
        "rest_rss_bytes": rest, "open_rss_bytes": resident, "recovered_rss_bytes": recovered,
    }))
}

/// Waits until a transaction manager serves all partitions: a list is whole, or an error.
async fn serves(txmgr: &Listening) -> anyhow::Result<()> {
    let asking = async {
        loop {
            let mut client = Client::open(txmgr.at).await?;
            if let Ok(closing) = client.ask(Method::GET, &format!("{COORDINATOR}?Status=Closing"), None).await {
                ensure!(&closing.body()[..] == b"[]", "there are none that are closing: {}", String::from_utf8_lossy(closing.body()));
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.with_context(|| format!("a transaction manager does not serve all partitions within {PATIENCE:?}"))?
}

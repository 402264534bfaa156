//! A whole transaction: start → two joins → close, beside as many bare round trips through the log.
//!
//! One after the other it goes through the log 16 times: each of the four requests there and its answer back, and between them the record that the answer depends on, read back (12); in the close, the callbacks there
//! and their outcomes back (2; both participants at once), and a record for each outcome, one after the other (2). Two hops are one round trip of the floor.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bluebox_e2e::proxy;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use crate::floor::Floor;
use crate::numbers::{Rounds, Times, rounded};
use crate::options::{LogKind, RunOptions};
use crate::report::Report;
use crate::system::System;
use crate::usage;

/// Round trips of the floor that are one transaction.
const ROUND_TRIPS: u64 = 8;
/// Not counted.
const WARM_UP: u32 = 20;
/// Transactions at once, where it is measured how many there are in a second.
const AT_ONCE: usize = 64;
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
        let started = self.ask(Method::POST, &format!("{COORDINATOR}/start"), None).await?;
        let lra = std::str::from_utf8(started.body())?.to_owned();
        for n in 0..2 {
            let link = format!("<http://cart/{n}/compensate>; rel=\"compensate\", <http://cart/{n}/complete>; rel=\"complete\"");
            self.ask(Method::PUT, &lra, Some(&link)).await?;
        }
        let closed = self.ask(Method::PUT, &format!("{lra}/close"), None).await?;
        ensure!(&closed.body()[..] == b"Closed", "{lra}: {}", String::from_utf8_lossy(closed.body()));
        Ok(())
    }
}

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    // First: a broker that makes many topics takes its time to tell of each.
    let mut floor = match (options.log, &options.brokers) {
        (LogKind::Kafka, Some(brokers)) => Some(Floor::start(brokers, system.prefix(), options.body).await?),
        _ => None,
    };
    let pair = system.pair(&[], &[]).await?;
    let txmgr = system.txmgr(options.partitions).await?;
    proxy::knows(pair.caller.at, "txmgr").await;
    let mut client = Client::open(pair.caller.at).await?;
    for _ in 0..WARM_UP {
        client.transaction().await?;
    }
    if let Some(floor) = &mut floor {
        floor.play(1, WARM_UP.into(), NO_LIMIT)?;
    }
    let mut clients = Vec::new();
    for _ in 0..AT_ONCE {
        clients.push(Client::open(pair.caller.at).await?);
    }
    let (mut of_floor, mut alone, mut at_once) = (Rounds::default(), Rounds::default(), Rounds::default());
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
            client.transaction().await?;
            times.add(begun.elapsed());
        }
        alone.add(times, began.elapsed());
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
    let mut figures = json!({ "alone": alone.json(), "at_once": AT_ONCE, "together": at_once.json() });
    if floor.is_some() {
        figures["floor"] = of_floor.json();
        figures["floor_round_trips"] = json!(ROUND_TRIPS);
        figures["times_the_floor_p50"] = json!(rounded(alone.percentile(50.0) / of_floor.percentile(50.0)));
    }
    // Many that are open, and how long it takes until the next owner has them all.
    let each = options.waiting.div_ceil(AT_ONCE);
    let began = Instant::now();
    let starts = clients.into_iter().map(|mut client| async move {
        for _ in 0..each {
            client.ask(Method::POST, &format!("{COORDINATOR}/start"), None).await?;
        }
        anyhow::Ok(())
    });
    for done in futures_util::future::join_all(starts).await {
        done?;
    }
    let begun_in = began.elapsed();
    let resident = usage::resident_bytes(txmgr.process.pid())?;
    txmgr.process.terminate().await;
    let began = Instant::now();
    let txmgr = system.txmgr(options.partitions).await?;
    let mut client = Client::open(txmgr.at).await?;
    loop {
        // Whole, or an error.
        if let Ok(closing) = client.ask(Method::GET, &format!("{COORDINATOR}?Status=Closing"), None).await {
            ensure!(&closing.body()[..] == b"[]", "there are none that are closing");
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(120), "{} open transactions were not recovered within 120 s", each * AT_ONCE);
        client = Client::open(txmgr.at).await?;
    }
    figures["recovery"] = json!({
        "open": each * AT_ONCE, "begun_in_s": rounded(begun_in.as_secs_f64()), "recovered_in_s": rounded(began.elapsed().as_secs_f64()), "rss_bytes": resident,
    });
    report.put("transactions", figures);
    Ok(())
}

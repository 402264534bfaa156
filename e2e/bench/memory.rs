//! What a proxy keeps in memory: at rest, with many callers that wait, and while a large body goes through.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;

use crate::http::{Connection, Target};
use crate::options::RunOptions;
use crate::report::Report;
use crate::system::{Pair, System};
use crate::usage;

/// How long a proxy is left alone before it counts as at rest: clients for questions are closed after 30 s.
const REST: Duration = Duration::from_secs(35);
/// A large body.
const LARGE: usize = 64 << 20;
/// A call that waits keeps its request's body, and the head around it, at least once.
const HEAD_BYTES: u64 = 256;
/// How long so many may take to be accepted.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let system = System::start(options).await?;
    let wait = ["--wait=5m".to_owned()];
    let pair = system.pair(&wait, &[]).await?;
    tokio::time::sleep(REST).await;
    let (caller, callee) = (pair.caller.process.pid(), pair.callee.process.pid());
    let rest = (usage::resident_bytes(caller)?, usage::resident_bytes(callee)?);
    report.put("proxy", json!({ "rest_rss_bytes": rest.0.max(rest.1), "rest": { "caller": rest.0, "callee": rest.1 } }));
    report.progress(1, 3);

    let large = large_bodies(&pair).await?;
    report.put("body_64_mib", large);
    report.progress(2, 3);

    // A member of the same group would take its share of the calls.
    drop((pair, system));
    let system = System::start(options).await?;
    let (pair, admin) = with_admin(&system).await?;
    let waiting = many_wait(options, &pair, admin).await?;
    report.put("waiting", waiting);
    report.progress(3, 3);
    Ok(())
}

/// How much more than before a body costs at most, in each proxy, on its way to the app and on the way back.
async fn large_bodies(pair: &Pair) -> anyhow::Result<serde_json::Value> {
    let pids = [pair.caller.process.pid(), pair.callee.process.pid()];
    let request = Target { body: vec![b'x'; LARGE].into(), ..pair.durable.path("/sink")? };
    let answer = Target { body: Bytes::new(), ..pair.durable.path(&format!("/large/{LARGE}"))? };
    let mut found = serde_json::Map::new();
    for (name, target) in [("request", request), ("answer", answer)] {
        let mut before = Vec::new();
        for pid in pids {
            usage::forget_peak(pid)?;
            before.push(usage::resident_bytes(pid)?);
        }
        let began = Instant::now();
        let (status, bytes) = Connection::open(target.at).await?.ask(&target).await?;
        ensure!(status == StatusCode::OK && (name == "request" || bytes == LARGE), "a large {name}: {status}, {bytes} bytes");
        let took = began.elapsed();
        let mut more = Vec::new();
        for (pid, before) in pids.into_iter().zip(before) {
            more.push(usage::peak_bytes(pid)?.saturating_sub(before));
        }
        found.insert(name.to_owned(), json!({ "caller_more_bytes": more[0], "callee_more_bytes": more[1], "took_ms": took.as_millis() }));
    }
    Ok(found.into())
}

/// A pair whose caller's proxy says how many wait.
async fn with_admin(system: &System) -> anyhow::Result<(Pair, std::net::SocketAddr)> {
    let admin = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let pair = system.pair(&["--wait=10m".to_owned(), "--max-wait=10m".to_owned(), format!("--admin={admin}")], &[]).await?;
    Ok((pair, admin))
}

/// So many callers wait: their calls are accepted, the app holds as many as it is given, and the others are in the log.
async fn many_wait(options: &RunOptions, pair: &Pair, admin: std::net::SocketAddr) -> anyhow::Result<serde_json::Value> {
    let pid = pair.caller.process.pid();
    // The first few make the proxy load what it needs.
    let mut connection = Connection::open(pair.durable.at).await?;
    crate::load::sequential(&mut connection, &pair.durable, 100).await?;
    drop(connection);
    let before = (usage::resident_bytes(pid)?, usage::resident_bytes(pair.callee.process.pid())?);
    let held = pair.durable.path("/hold")?;
    let mut calls = JoinSet::new();
    for number in 0..options.waiting {
        let held = held.clone();
        let mut connection = Connection::open(held.at).await?;
        calls.spawn(async move { connection.call(&held).await });
        // Connections are accepted one by one.
        if number % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let began = Instant::now();
    loop {
        let count = waiting(admin).await?;
        if count >= options.waiting {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "only {count} of {} calls wait after {PATIENCE:?}", options.waiting);
        if let Some(done) = calls.try_join_next() {
            done??;
            anyhow::bail!("a call was answered that should wait");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let with = (usage::resident_bytes(pid)?, usage::resident_bytes(pair.callee.process.pid())?);
    let release = Target::direct(pair.app.at, "/release", Bytes::new())?;
    Connection::open(release.at).await?.call(&release).await?;
    let began = Instant::now();
    while let Some(done) = calls.join_next().await {
        done??;
    }
    let bodies = (u64::try_from(options.body)? + HEAD_BYTES) * u64::try_from(options.waiting)?;
    let more = with.0.saturating_sub(before.0);
    Ok(json!({
        "calls": options.waiting, "caller_more_bytes": more, "bodies_bytes": bodies, "beyond_bodies_bytes": more.saturating_sub(bodies),
        "callee_more_bytes": with.1.saturating_sub(before.1), "answered_in_ms": began.elapsed().as_millis(),
    }))
}

/// How many callers wait in a proxy, by its metrics.
async fn waiting(admin: std::net::SocketAddr) -> anyhow::Result<usize> {
    use http_body_util::BodyExt as _;
    let stream = tokio::net::TcpStream::connect(admin).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/metrics").header("host", "proxy").body(http_body_util::Empty::<Bytes>::new())?;
    let text = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    let text = std::str::from_utf8(&text)?;
    let line = text.lines().find_map(|line| line.strip_prefix("bluebox_outbound_waiting ")).context("the metrics don't say how many wait")?;
    Ok(line.trim().parse()?)
}

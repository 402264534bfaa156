//! What it costs to be looked at: the same load on proxies that nobody asks, on some whose metrics are read every second, and on some that send traces: as many as they do if only told
//! where to, of one call in twenty, and of every call.
//!
//! Counting itself can't be switched off in a proxy; what a call counts is done here alone, many times, and its time is told beside the processor time of a call.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bluebox_observe::Counts;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::load::Callers;
use crate::numbers::{median, rounded};
use crate::options::RunOptions;
use crate::report::Report;
use crate::system::{Pair, System};

/// Callers at once.
const CALLERS: usize = 64;
/// How often metrics are read: more often than anybody does.
const SCRAPE: Duration = Duration::from_secs(1);

struct Kind {
    name: &'static str,
    pair: Pair,
    callers: Callers,
    scraped: [SocketAddr; 2],
    /// Calls per second, and processor time of both proxies per call in µs, of each round.
    rounds: Vec<(f64, f64)>,
    // Its log may be a process of its own.
    _system: System,
}

pub(crate) async fn measure(options: &RunOptions, report: &mut Report) -> anyhow::Result<()> {
    let collector = collector().await?;
    let traces = [("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"))];
    let some = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}")),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
        ("OTEL_TRACES_SAMPLER_ARG", "0.05".to_owned()),
    ];
    let every = [traces[0].clone(), ("OTEL_TRACES_SAMPLER", "parentbased_always_on".to_owned())];
    let mut kinds = Vec::new();
    // The first once more at the end: what the two differ by is what this machine makes of the same.
    for (name, environment) in [
        ("not_looked_at", &[][..]),
        ("metrics_read", &[][..]),
        ("traced", &traces[..]),
        ("every_20th_traced", &some[..]),
        ("every_call_traced", &every[..]),
        ("not_looked_at_again", &[][..]),
    ] {
        let system = System::start(options).await?.with_environment(environment);
        let [out, into] = [system.free_address()?, system.free_address()?];
        let pair = system.pair(&[format!("--admin={out}")], &[format!("--admin={into}")]).await?;
        let mut callers = Callers::open(&pair.durable, CALLERS).await?;
        callers.call(&pair.durable, None, options.time).await?;
        kinds.push(Kind { name, pair, callers, scraped: [out, into], rounds: Vec::new(), _system: system });
    }
    for round in 0..options.rounds {
        // Each comes after each other one.
        let first = round as usize % kinds.len();
        kinds.rotate_left(first);
        for kind in &mut kinds {
            let reads: Vec<JoinHandle<()>> =
                if kind.name == "metrics_read" { kind.scraped.map(|at| tokio::spawn(read_again_and_again(at))).into() } else { Vec::new() };
            let before = kind.pair.used()?;
            let (times, took) = kind.callers.call(&kind.pair.durable, None, options.time).await?;
            let used = kind.pair.used()?.since(before);
            reads.iter().for_each(JoinHandle::abort);
            #[allow(clippy::cast_precision_loss, reason = "fewer than that")]
            let calls = times.len().max(1) as f64;
            kind.rounds.push((calls / took.as_secs_f64(), used.cpu.as_secs_f64() * 1e6 / calls));
        }
        kinds.rotate_right(first);
        report.progress(round + 1, options.rounds);
    }
    let counting = counting()?;
    let table: BTreeMap<_, _> = kinds.iter().map(|kind| (kind.name, told(&kind.rounds, &kinds[0].rounds))).collect();
    println!(
        "\n| {CALLERS} callers | calls/s | to the first: median (least–most of {} rounds) | processor time per call | to the first |\n|---|---|---|---|---|",
        options.rounds
    );
    let mut figures = Map::new();
    for kind in &kinds {
        let Some([per_second, ratio, least, most, cpu, cpu_ratio]) = table.get(kind.name) else { continue };
        println!("| {} | {per_second:.0} | {ratio:.3} ({least:.3}–{most:.3}) | {cpu:.0} µs | {cpu_ratio:.3} |", kind.name);
        let figure = json!({ "per_second": rounded(*per_second), "ratio": ratio, "least": least, "most": most, "cpu_us_per_call": rounded(*cpu), "cpu_ratio": cpu_ratio });
        figures.insert(kind.name.to_owned(), figure);
    }
    println!("\nWhat a call counts on both sides takes {:.2} µs of processor time.\n", counting.as_secs_f64() * 1e6);
    figures.insert("counting_us_per_call".to_owned(), rounded(counting.as_secs_f64() * 1e6).into());
    report.put("observe", Value::Object(figures));
    Ok(())
}

/// Medians, and ratios to what was measured beside it in the same rounds.
fn told(rounds: &[(f64, f64)], first: &[(f64, f64)]) -> [f64; 6] {
    let ratios: Vec<f64> = rounds.iter().zip(first).map(|(this, first)| this.0 / first.0).collect();
    let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(least, most), ratio| (least.min(*ratio), most.max(*ratio)));
    let cpu = rounds.iter().zip(first).map(|(this, first)| this.1 / first.1).collect();
    [median(rounds.iter().map(|r| r.0).collect()), median(ratios), least, most, median(rounds.iter().map(|r| r.1).collect()), median(cpu)]
}

/// The counters and histograms that one call moves in both proxies, alone.
fn counting() -> anyhow::Result<Duration> {
    const TIMES: u32 = 200_000;
    let counts = Counts::try_new("bench")?;
    let buckets = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 10.0, 60.0, 300.0];
    let stages = counts.histograms("stages", "stages", &["stage"], &buckets)?;
    let stages = ["append", "outcome", "whole", "wait", "app", "reply", "whole_in"].map(|stage| stages.with_label_values(&[stage]));
    let words = ["calls", "deliveries", "delivery_ends", "ends"].map(|name| counts.words(name, "words", "word"));
    let gauge = counts.gauge("waiting", "waiting")?;
    let began = Instant::now();
    for n in 0..TIMES {
        for stage in &stages {
            stage.observe(f64::from(n % 1000) / 1e5);
        }
        for word in words.iter().flatten() {
            word.inc("one");
        }
        gauge.inc();
        gauge.dec();
    }
    Ok(began.elapsed() / TIMES)
}

async fn read_again_and_again(at: SocketAddr) {
    loop {
        // One that fails is one that is not there: the load fails too then.
        let _ = read(at).await;
        tokio::time::sleep(SCRAPE).await;
    }
}

async fn read(at: SocketAddr) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n").await?;
    stream.read_to_end(&mut Vec::new()).await
}

/// Takes spans, and does nothing with them: what a real collector does is not to be measured.
async fn collector() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(bluebox_observe::listener::serve(listener, |request| async move {
        let taken = http_body_util::BodyExt::collect(request.into_body()).await.is_ok();
        let mut response = http::Response::new(http_body_util::Full::default());
        *response.status_mut() = if taken { http::StatusCode::OK } else { http::StatusCode::BAD_REQUEST };
        response
    }));
    Ok(at)
}

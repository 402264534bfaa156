//! Kills replicas of the transaction manager, participants, proxies and the log while transactions run, and judges how each of them ended.
//!
//! - `scene`: the processes, and what is done to them. `answers`: what participants say.
//! - `client`: one transaction after the other, of every kind.
//! - `judge`: what must be true of what the participants were asked. Pure.

mod answers;
mod client;
mod judge;
mod scene;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::plan::LogKind;
use crate::random::Random;
use client::{Client, Transaction};
use judge::{Verdict, judge};
use scene::{Scene, Target};

#[derive(Debug, Clone, Args)]
pub(crate) struct TransactionsOptions {
    /// Which logs, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "embedded")]
    log: Vec<LogKind>,
    /// How many SIGKILLs on each log, at least.
    #[arg(long, default_value_t = 12)]
    kills: u64,
    /// How many transactions on each log, at least.
    #[arg(long, default_value_t = 300)]
    transactions: u64,
    /// What is done is made from this. By default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients there are at once.
    #[arg(long, default_value_t = 24)]
    clients: u64,
    /// Only these are killed.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Target>,
    /// The pause between two kills, on average.
    #[arg(long, default_value = "1500ms", value_parser = humantime::parse_duration)]
    gap: Duration,
    /// The session of the proxies and of the transaction manager: so long a death is not noticed.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    session: Duration,
    /// Where the report is written; by default txn-faults.json beside the directory of this program.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How long everything may take to end once nothing is killed any more: the longest time limit, and 10 s.
const SETTLE: Duration = Duration::from_secs(client::LONGEST_LIMIT.as_secs() + 10);
/// How long the processes may take to be there again after the last kill. Not a matter of transactions.
const COME_BACK: Duration = Duration::from_secs(180);

/// Transactions that are asked for their ends at once.
const ASKED_AT_ONCE: usize = 16;
/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Runs on each log; whether every transaction ended as it must.
pub(crate) async fn all(options: &TransactionsOptions) -> anyhow::Result<bool> {
    let program = std::env::current_exe().context("this program")?;
    let binaries = program.parent().context("this program has no directory")?.to_owned();
    bluebox_e2e::process::use_binaries(&binaries);
    let target = binaries.parent().context("the directory of this program has none above it")?.to_owned();
    let report_at = options.report.clone().unwrap_or_else(|| target.join("txn-faults.json"));
    let mut runs = Vec::new();
    let mut good = true;
    for log in &options.log {
        let seed = options.seed.unwrap_or_else(|| crate::clock::Moment::now().0 % 1_000_000);
        println!("bluebox-faults transactions --log {log} --seed {seed} --kills {} --transactions {}", options.kills, options.transactions);
        let (run, is_good) = one(options, *log, seed, &binaries.join("bluebox")).await?;
        good &= is_good;
        runs.push(run);
        write(&report_at, &runs)?;
    }
    println!("{}: {}", report_at.display(), if good { "every transaction ended as it must" } else { "A PROMISE WAS BROKEN" });
    Ok(good)
}

fn write(path: &std::path::Path, runs: &[Value]) -> anyhow::Result<()> {
    let sum = |name: &str| runs.iter().filter_map(|run| run[name].as_u64()).sum::<u64>();
    let names = ["kills", "transactions", "half_done", "both", "nested_both", "stuck", "after_forget", "out_of_order", "undone_unseen"];
    let mut all: BTreeMap<&str, Value> = names.into_iter().map(|name| (name, json!(sum(name)))).collect();
    all.insert("runs", json!(runs));
    std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n").with_context(|| format!("{}: the report can't be written", path.display()))
}

async fn one(options: &TransactionsOptions, log: LogKind, seed: u64, bluebox: &std::path::Path) -> anyhow::Result<(Value, bool)> {
    ensure!(bluebox.exists(), "{}: not there; `cargo build --bin bluebox` makes it", bluebox.display());
    let directory = tempfile::Builder::new().prefix("bluebox-txn-faults-").tempdir().context("a directory for the run")?;
    let began = Instant::now();
    let mut scene = Scene::start(log, directory.path(), bluebox, options.session).await?;
    let mut random = Random::new(seed);
    // Clients go on until there were enough kills and enough transactions.
    let wanted = Arc::new(client::Wanted::default());
    let clients: Vec<_> = (0..options.clients)
        .map(|number| {
            let client = Client {
                proxies: scene.client_proxies(),
                wanted: Arc::clone(&wanted),
                random: Random::new(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                number,
            };
            tokio::spawn(client.run())
        })
        .collect();
    let (mut kills, mut said) = (BTreeMap::<Target, u64>::new(), Instant::now());
    let targets: Vec<Target> = Target::ALL.iter().copied().filter(|target| options.only.is_empty() || options.only.contains(target)).collect();
    while kills.values().sum::<u64>() < options.kills || wanted.begun() < options.transactions {
        let gap = options.gap.as_millis().try_into().unwrap_or(u64::MAX);
        tokio::time::sleep(Duration::from_millis(random.between(gap / 2, gap * 3 / 2))).await;
        if kills.values().sum::<u64>() < options.kills {
            let target = random.pick(&targets);
            *kills.entry(target).or_default() += scene.kill(target, &mut random).await;
            // A broker that is killed again before it is there has done nothing meanwhile, and nobody else has.
            scene.log_serves(COME_BACK).await?;
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            println!("  {} s: {} kills, {} transactions", began.elapsed().as_secs(), kills.values().sum::<u64>(), wanted.begun());
        }
    }
    wanted.enough();
    if let Err(error) = scene.come_back(COME_BACK).await {
        return Err(error.context(format!("what the processes said is in {} and {}", directory.keep().display(), scene.keep())));
    }
    let healed = Instant::now();
    let mut transactions: Vec<Transaction> = Vec::new();
    for client in clients {
        transactions.extend(client.await.context("a client")?);
    }
    let mut stuck = Vec::new();
    for some in transactions.chunks_mut(ASKED_AT_ONCE) {
        let asked = some.iter_mut().map(|transaction| async { (!transaction.await_end(scene.door(), healed + SETTLE).await).then(|| transaction.url.clone()) });
        stuck.extend(futures_util::future::join_all(asked).await.into_iter().flatten());
    }
    // What comes after the end: who is told, and may forget.
    scene.until_quiet().await;
    let verdict = judge(&transactions, &scene.asked());
    let took = began.elapsed();
    let run = report(log, seed, &kills, &transactions, &verdict, &stuck, took);
    println!("  {run:#}");
    for what in verdict.examples.iter().take(20) {
        println!("  {what}");
    }
    for url in stuck.iter().take(20) {
        println!("  stuck: {url}");
    }
    let good = verdict.is_good() && stuck.is_empty();
    if !good {
        println!("  what the processes said is in {} and {}", directory.keep().display(), scene.keep());
    }
    Ok((run, good))
}

fn report(log: LogKind, seed: u64, kills: &BTreeMap<Target, u64>, transactions: &[Transaction], verdict: &Verdict, stuck: &[String], took: Duration) -> Value {
    let mut ends = BTreeMap::<String, u64>::new();
    for transaction in transactions {
        *ends.entry(format!("{}:{}", transaction.kind.name(), transaction.status)).or_default() += 1;
    }
    let by_target: BTreeMap<&str, u64> = kills.iter().map(|(target, count)| (target.name(), *count)).collect();
    json!({
        "log": log.to_string(), "seed": seed, "kills": kills.values().sum::<u64>(), "kills_by_target": by_target, "transactions": transactions.len(), "ends": ends,
        "half_done": verdict.half_done, "both": verdict.both, "nested_both": verdict.nested_both, "after_forget": verdict.after_forget, "out_of_order": verdict.out_of_order, "undone_unseen": verdict.undone_unseen,
        "stuck": stuck.len(), "callbacks": verdict.callbacks, "more_than_once": verdict.more_than_once, "seconds": took.as_secs(),
    })
}

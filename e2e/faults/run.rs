//! One run, from start to verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::clock::Moment;
use crate::history::Role;
use crate::ledger::{self, Entry};
use crate::options::RunOptions;
use crate::plan::{self, LogKind, Plan};
use crate::report::{Report, Verdict};
use crate::steady;
use crate::system::boxes::Unit;
use crate::system::{self, System};
use crate::witness::evidence::Evidence;
use crate::witness::{self, Findings};

/// How long the load is watched before the faults and after them.
const CALM: Duration = Duration::from_secs(4);
/// How long what was accepted may take to be answered once everything is healed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs on each log that was asked for; whether every promise held.
pub(crate) async fn all(options: &RunOptions) -> anyhow::Result<bool> {
    ensure!(options.lease < options.session, "--session ({:?}) must be above --lease ({:?})", options.session, options.lease);
    let program = std::env::current_exe().context("this program")?;
    let binaries = program.parent().context("this program has no directory")?;
    let bluebox = options.tested.bluebox()?;
    let target = binaries.parent().context("the directory of this program has none above it")?.to_owned();
    let report_at = options.report.clone().unwrap_or_else(|| target.join("faults.json"));
    let mut report = Report::default();
    for log in &options.log {
        let seed = options.seed.unwrap_or_else(|| Moment::now().0 % 1_000_000);
        report.runs.push(one(options, *log, seed, &target, &bluebox).await?);
        report.write(&report_at)?;
    }
    println!("{}: {}", report_at.display(), if report.is_good() { "every promise held" } else { "A PROMISE WAS BROKEN" });
    Ok(report.is_good())
}

async fn one(options: &RunOptions, log: LogKind, seed: u64, target: &Path, bluebox: &Path) -> anyhow::Result<Verdict> {
    let command = options.command(log, seed);
    println!("{command}");
    let directory = tempfile::Builder::new().prefix("bluebox-faults-").tempdir().context("a directory for the run")?;
    let kinds = if options.steady.is_some() { Vec::new() } else { options.kinds() };
    let settings = system::Settings {
        log,
        kinds: kinds.clone(),
        directory: directory.path().to_owned(),
        target: target.to_owned(),
        bluebox: bluebox.to_owned(),
        callers: 2,
        callees: options.callees,
        session: options.session,
        lease: options.lease,
        think: options.think,
        load: options.load,
        proxy_flags: options.tested.proxy_flag.clone(),
    };
    let began = Moment::now();
    let mut system = System::start(settings).await?;
    let mut verdict = Verdict { log, seed, command, ..Verdict::new(log) };
    verdict.not_run = std::mem::take(&mut system.not_run);
    verdict.throughput_before = throughput(&mut system).await?;
    match options.steady {
        Some(minutes) => verdict.growth = steady::watch(&mut system, Duration::from_secs(minutes * 60)).await?,
        None => {
            let available: Vec<_> = kinds.into_iter().filter(|kind| !verdict.not_run.iter().any(|(not, _)| not == kind)).collect();
            let settings = plan::Settings {
                seed,
                log,
                kinds: available,
                kills: options.kills,
                session: options.session,
                gap: options.gap(),
                log_down: options.log_down(),
            };
            injure(&mut system, Plan::new(settings)).await?;
            system.settle().await?;
            if !system.goes_on(PATIENCE).await? {
                system.history.broken.push(format!("no caller had an outcome within {} s after everything was healed", PATIENCE.as_secs()));
            }
        }
    }
    verdict.throughput_after = throughput(&mut system).await?;
    if !system.drain(PATIENCE).await? {
        system.history.broken.push(format!("the callers could not learn all outcomes within {} s after everything was healed", PATIENCE.as_secs()));
    }
    await_the_called(&mut system, directory.path()).await?;
    system.end().await?;
    verdict.seconds = Moment::now().since(began).as_secs();
    let (evidence, findings) = judge(&system, directory.path())?;
    verdict.tell(&system.history, findings);
    if !verdict.is_good() || options.keep {
        std::fs::write(directory.path().join("history"), system.history.lines().join("\n"))?;
        // What is mounted there goes with the system.
        drop(system);
        verdict.kept = Some(directory.keep());
    }
    drop(evidence);
    verdict.print();
    Ok(verdict)
}

async fn throughput(system: &mut System) -> anyhow::Result<f64> {
    system.pass(Duration::from_millis(100)).await?;
    let (began, before) = (Moment::now(), system.outcomes);
    system.pass(CALM).await?;
    Ok((system.outcomes - before) as f64 / Moment::now().since(began).as_secs_f64())
}

async fn injure(system: &mut System, mut plan: Plan) -> anyhow::Result<()> {
    let mut last = Moment::now();
    while let Some(fault) = plan.next() {
        // With the log away there is little to break in a box: what is done to them is only spread over that time.
        let after = if system.log_is_away() { fault.after * 4 } else { fault.after };
        system.pass(after).await?;
        // Nobody is there to be hit: wait until somebody is, so that there are as many faults as were asked for.
        let began = Moment::now();
        while !system.perform(fault).await? && Moment::now().since(began) < Duration::from_secs(30) {
            system.pass(system::TICK).await?;
        }
        if Moment::now().since(last) > Duration::from_secs(10) {
            last = Moment::now();
            let done: u64 = system.history.done.values().sum();
            println!("  {done} faults, {} outcomes", system.outcomes);
        }
    }
    Ok(())
}

/// Waits until the app has answered everything that it began, and nothing new comes.
async fn await_the_called(system: &mut System, directory: &Path) -> anyhow::Result<()> {
    let began = Moment::now();
    let mut lines_before = usize::MAX;
    loop {
        let (mut open, mut lines) = (std::collections::BTreeSet::new(), 0);
        let mut ended = std::collections::BTreeSet::new();
        for path in ledgers(system, directory, Role::Callee) {
            for line in ledger::read(&path)? {
                lines += 1;
                match line.entry {
                    Entry::Begin(_) => open.insert(line.value),
                    Entry::End(_) => ended.insert(line.value),
                    _ => false,
                };
            }
        }
        let all_ended = open.iter().all(|value| ended.contains(value));
        if (all_ended && lines == lines_before) || Moment::now().since(began) > PATIENCE {
            return Ok(());
        }
        lines_before = lines;
        system.pass(Duration::from_secs(1)).await?;
    }
}

fn ledgers(system: &System, directory: &Path, role: Role) -> Vec<PathBuf> {
    system.units.iter().filter(|unit| unit.id.role == role).map(|unit| Unit::ledger(directory, unit.id)).collect()
}

fn judge(system: &System, directory: &Path) -> anyhow::Result<(Evidence, Findings)> {
    let callers = ledgers(system, directory, Role::Caller).iter().map(|path| ledger::read(path)).collect::<Result<_, _>>()?;
    let mut callees = Vec::new();
    for unit in system.units.iter().filter(|unit| unit.id.role == Role::Callee) {
        callees.push((unit.id, ledger::read(&Unit::ledger(directory, unit.id))?));
    }
    let evidence = Evidence::collect(callers, callees, &system.history);
    let findings = witness::judge(&evidence, &system.history);
    Ok((evidence, findings))
}

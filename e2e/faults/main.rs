//! `bluebox-faults`: drives load through real proxies over a real log, injures all of it, and judges from outside whether the promises held.
//!
//! - [`plan`]: from a seed to a schedule of faults. Pure.
//! - [`call`]: the calls; everything about them is a function of their value.
//! - [`ledger`]: what the apps write down, outside of the system.
//! - [`caller`], [`callee`]: the apps, as processes.
//! - [`system`]: the processes, what is between them, and what can be done to them.
//! - [`history`]: what was done to them.
//! - [`witness`]: the judge. Pure.
//! - [`run`]: one run, from start to verdict. [`steady`]: the same without faults, for a long time.
//! - [`transactions`]: the same for the transaction manager: other boxes, another judge.
//! - [`report`]: what is printed, and written to `target/faults.json`.
//! - [`random`], [`clock`]: what the rest is made with.

mod call;
mod callee;
mod caller;
mod clock;
mod history;
mod ledger;
mod options;
mod plan;
#[path = "../../proxy/tests/simulation/random.rs"]
#[allow(dead_code, reason = "the simulation's, which needs more of it")]
mod random;
mod report;
mod run;
mod steady;
mod system;
mod transactions;
mod witness;

use std::process::ExitCode;

use clap::Parser as _;
use options::{Cli, Command};

// One thread: the kernel ends what this thread has started when it ends.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Caller(options)) => caller::run(options).await.map(|()| true),
        Some(Command::Callee(options)) => callee::run(options).await.map(|()| true),
        Some(Command::Transactions(options)) => tokio::select! {
            done = transactions::all(&options) => done,
            name = asked_to_end() => Err(anyhow::anyhow!("ended by {name}")),
        },
        // Dropped, it ends all its processes and gives back what it has mounted.
        None => tokio::select! {
            done = run::all(&cli.run) => done,
            name = asked_to_end() => Err(anyhow::anyhow!("ended by {name}")),
        },
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Done with the first SIGINT or SIGTERM.
async fn asked_to_end() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    // Without a handler the signal ends the process, as it does anyway.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => "SIGINT", _ = terminate.recv() => "SIGTERM" }
}

//! `bluebox-bench`: what a durable call costs, beside what nobody can get below: the same two hops through the same broker without Bluebox.
//!
//! - [`options`]: the command line.
//! - [`app`]: the app that is called, a process of its own.
//! - [`system`]: the proxies and the log, as processes. [`usage`]: what a process takes from the machine.
//! - [`http`]: a caller's connection. [`load`]: callers, many at once or at a given rate.
//! - [`floor`]: ping-pong through the broker with nothing but librdkafka.
//! - [`numbers`]: from times to percentiles.
//! - [`sequential`], [`loads`], [`open_loop`], [`slow`], [`memory`], [`transactions`], [`observe`], [`growth`]: what is measured.
//! - [`report`]: what is printed, and written to `target/bench.json`; [`plot`]: the picture of it.
//!
//! What is to be compared is measured in short rounds that take turns, so that whatever else the machine does hits all alike.

mod app;
mod floor;
mod growth;
mod http;
mod load;
mod loads;
mod memory;
mod numbers;
mod observe;
mod open_loop;
mod options;
mod plot;
mod report;
mod sequential;
mod slow;
mod system;
mod transactions;
mod usage;

use std::process::ExitCode;

use clap::Parser as _;
use options::{Cli, Command, Part, RunOptions};
use report::Report;

// One thread: the kernel ends what this thread has started when it ends, and a generator of load should take as little of the machine as it can.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::App(options)) => app::run(options).await,
        Some(Command::Plot(options)) => plot::run(&options),
        // Dropped, it ends all its processes.
        None => tokio::select! {
            done = measure(&cli.run) => done,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("ended by SIGINT")),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: &RunOptions) -> anyhow::Result<()> {
    usage::open_many_files();
    let mut report = Report::begin(options)?;
    for part in options.parts() {
        let began = std::time::Instant::now();
        report.say(&format!("{part:?} ..."));
        match part {
            Part::Sequential => sequential::measure(options, &mut report).await?,
            Part::Loads => loads::measure(options, &mut report).await?,
            Part::OpenLoop => open_loop::measure(options, &mut report).await?,
            Part::Slow => slow::measure(options, &mut report).await?,
            Part::Memory => memory::measure(options, &mut report).await?,
            Part::Transactions => transactions::measure(options, &mut report).await?,
            Part::Observe => observe::measure(options, &mut report).await?,
            Part::Growth => growth::measure(options, &mut report).await?,
        }
        report.say(&format!("{part:?}: done in {:.0} s", began.elapsed().as_secs_f64()));
        report.write()?;
    }
    report.print();
    Ok(())
}

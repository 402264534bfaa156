//! The one command a person types.
//!
//! - [`up`]: `bluebox up FILE`: a whole system on one machine.
//! - [`file`](mod@file): the file that says which boxes there are; `bluebox validate FILE`.
//! - [`family`]: processes that end together.
//! - [`proxy`]: `bluebox proxy`: one proxy as a process; [`log_server`]: the embedded log as one.
//! - [`txmgr`]: `bluebox txmgr`: the transaction manager as a process.
//! - [`redirect`]: `bluebox redirect`: the rules that send what an app sends to its proxy.
//! - [`kubernetes`]: `bluebox injector`, the admission webhook; `bluebox inject`, the same by hand; `install`, `enable` and `check`; what runs in pods beside the proxy.
//! - [`watch`]: what goes on: `bluebox watch`, and the page of `up`.
//! - [`log_level`]: what a running process logs.
//! - [`operate`]: looking into a running system: `bluebox status`, `ps`, `calls`, `tap`, `topics`, `dlq`, `txn`; `drain`.
//! - [`programs`]: what of all this is in the images.
//! - [`reference`](mod@reference): docs/metrics.md, docs/cli.md, completion.
//! - [`serve`], [`limits`], [`log`], [`logging`], [`tail`], [`traces`], [`units`]: what flags and the file have in common.

mod family;
mod file;
mod kubernetes;
mod limits;
mod log;
mod log_level;
mod log_server;
mod logging;
mod operate;
mod programs;
mod proxy;
mod redirect;
mod reference;
mod serve;
mod tail;
mod traces;
mod transaction;
mod txmgr;
mod units;
mod up;
mod validate;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
pub use programs::{in_boxes, in_injectors};

/// What a command ends with that could look, and found something that is not as it should be.
const NOT_AS_IT_SHOULD_BE: u8 = 3;

/// Durable HTTP for unchanged apps: a call that was accepted arrives, whatever dies on the way.
#[derive(Debug, Parser)]
#[command(name = "bluebox", version, after_help = "`bluebox COMMAND --help` says more, with examples.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole system on this machine, from one small file
    Up(up::UpOptions),
    /// Check a file for `up`, and start nothing
    Validate(validate::ValidateOptions),
    #[command(flatten)]
    InBoxes(programs::InBoxes),
    /// Put the proxy into the pods of Kubernetes manifests
    Inject(kubernetes::inject::InjectOptions),
    /// Print what a cluster needs to run Bluebox
    Install(kubernetes::install::InstallOptions),
    /// Print what a namespace needs so that its pods get proxies
    Enable(kubernetes::enable::EnableOptions),
    /// Look whether a cluster is fit for Bluebox, or what is wrong with it
    Check(kubernetes::check::CheckOptions),
    /// Print what of an installation to delete
    Uninstall(kubernetes::install::UninstallOptions),
    #[command(flatten)]
    InInjectors(programs::InInjectors),
    /// Show what a `bluebox up` runs
    Ps(operate::ps::PsOptions),
    /// Print what completes commands in a shell
    Completion(reference::CompletionOptions),
    #[command(flatten)]
    Anywhere(programs::Anywhere),
    /// Print docs/metrics.md.
    #[command(hide = true)]
    MetricsReference,
    /// Print docs/cli.md.
    #[command(hide = true)]
    CliReference,
    /// The embedded log alone.
    #[command(hide = true)]
    Log(log_server::LogServerOptions),
    /// What `up` starts apps with.
    #[command(name = family::SHIM, hide = true)]
    BoxApp,
    /// What becomes an app.
    #[command(name = family::EXEC, hide = true)]
    BoxExec,
}

/// Runs what the command line says, to its end.
pub fn main() -> ExitCode {
    end_with_a_panic();
    ended(match Cli::parse().command {
        Command::Up(options) => in_runtime(up::run(options)),
        Command::Validate(options) => validate::run(&options),
        Command::InBoxes(command) => return command.run(),
        Command::Inject(options) => kubernetes::inject::run(&options),
        Command::Install(options) => kubernetes::install::run(&options),
        Command::Enable(options) => kubernetes::enable::run(&options),
        Command::Check(options) => return kubernetes::check::run(&options),
        Command::Uninstall(options) => kubernetes::install::run_uninstall(&options),
        Command::InInjectors(command) => return command.run(),
        Command::Anywhere(command) => return command.run(),
        Command::Ps(options) => operate::ps::run(&options),
        Command::Completion(options) => reference::completion(&options, &mut <Cli as clap::CommandFactory>::command()),
        Command::MetricsReference => reference::metrics(),
        Command::CliReference => reference::commands(<Cli as clap::CommandFactory>::command()),
        Command::Log(options) => {
            open_many_files();
            in_runtime(log_server::run(options))
        }
        Command::BoxApp => family::run_shim(),
        Command::BoxExec => family::run_exec(),
    })
}

/// What a process ends with, and what it says if it was an error.
fn ended(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has gone: that is an end like any other.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A mistake that nobody catches ends the whole process, wherever it was made, so that who looks after it starts it afresh: a process that lives on without one of its
/// parts would take calls that it never delivers. What is answered with 500 instead, because it concerns one request alone, ends nothing.
fn end_with_a_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        usual(what);
        if !bluebox_proxy::outbound::panics_are_answered() {
            std::process::exit(101);
        }
    }));
}

/// Takes as many open files as the process may have: each connection is one. Not where apps are started, which would inherit it, and some can't cope.
fn open_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Where it can't be had, the limit that there is will be told when it is met.
    let _ = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}

/// How many threads of a proxy serve connections, unless somebody says: not one for each processor of a large node. A call is handed from task to task, and each time that wakes
/// another thread costs more than what is done there.
fn proxy_threads() -> Option<usize> {
    const MOST: usize = 2;
    // tokio reads it by itself.
    let said = std::env::var_os("TOKIO_WORKER_THREADS").is_some();
    (!said).then(|| std::thread::available_parallelism().map_or(MOST, |processors| processors.get().min(MOST)))
}

fn in_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    in_runtime_of(None, work)
}

fn in_runtime_of<T>(threads: Option<usize>, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build()?;
    let done = runtime.block_on(work);
    // What is still blocked in a system call must not hold up the end.
    runtime.shutdown_background();
    done
}

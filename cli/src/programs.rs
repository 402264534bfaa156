//! The programs of the images. Each has what its pods run and no more: all of `bluebox` would be a third larger than an image may be, and what of a program was once touched is
//! in the memory of each proxy.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    NOT_AS_IT_SHOULD_BE, end_with_a_panic, ended, in_runtime, in_runtime_of, kubernetes, log_level, open_many_files, operate, proxy, proxy_threads, redirect,
    txmgr, watch,
};

/// What runs beside apps, and whatever else lives on the log.
#[derive(Debug, Subcommand)]
pub(crate) enum InBoxes {
    /// Run one proxy
    Proxy(Box<proxy::ProxyOptions>),
    /// Run the transaction manager
    Txmgr(Box<txmgr::TxmgrOptions>),
    /// Send what an app sends to its proxy, by rules in the kernel
    Redirect(redirect::RedirectOptions),
    /// Show how each component does
    Status(operate::status::StatusOptions),
    /// Show calls without an end, and what became of one
    Calls(operate::calls::CallsOptions),
    /// Show calls as they come and end
    Tap(operate::tap::TapOptions),
    /// Show which topics there are, and which there should be
    Topics(operate::topics::TopicsOptions),
    /// Watch a system: metrics, a page, what to scale by
    Watch(watch::run::WatchOptions),
    /// Tell a proxy to take no more calls, because its app is about to end
    Drain(operate::drain::DrainOptions),
    /// Look after dead letters: list, show, replay, drop
    Dlq(operate::dlq::DlqOptions),
    /// Look after transactions: list, show, retry, cancel, forget
    Txn(operate::txn::TxnOptions),
    /// What the init container of a box runs.
    #[command(hide = true)]
    Incarnate(kubernetes::incarnate::IncarnateOptions),
    /// A liveness probe of an app, through its proxy.
    #[command(hide = true)]
    Alive(kubernetes::alive::AliveOptions),
    /// What the app of a box waits for before it is started.
    #[command(hide = true)]
    Started(kubernetes::started::StartedOptions),
}

impl InBoxes {
    /// Runs it to its end.
    pub(crate) fn run(self) -> ExitCode {
        ended(match self {
            Self::Proxy(options) => {
                open_many_files();
                in_runtime_of(proxy_threads(), proxy::run(*options))
            }
            Self::Txmgr(options) => {
                open_many_files();
                in_runtime(txmgr::run(*options))
            }
            Self::Redirect(options) => redirect::run(&options),
            Self::Status(options) => in_runtime(operate::status::run(options)),
            Self::Calls(options) => in_runtime(operate::calls::run(options)),
            Self::Tap(options) => in_runtime(operate::tap::run(options)),
            Self::Topics(options) => match in_runtime(operate::topics::run(options)) {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::from(NOT_AS_IT_SHOULD_BE),
                Err(error) => Err(error),
            },
            Self::Watch(options) => in_runtime(watch::run::run(options)),
            Self::Drain(options) => in_runtime(operate::drain::run(options)),
            Self::Dlq(options) => in_runtime(operate::dlq::run(options)),
            Self::Txn(options) => in_runtime(operate::txn::run(options)),
            Self::Incarnate(options) => kubernetes::incarnate::run(&options),
            Self::Alive(options) => kubernetes::alive::run(&options),
            Self::Started(options) => kubernetes::started::run(&options),
        })
    }
}

/// What runs in the injectors' pods.
#[derive(Debug, Subcommand)]
pub(crate) enum InInjectors {
    /// Run the admission webhook that does so in a cluster
    Injector(kubernetes::injector::InjectorOptions),
}

impl InInjectors {
    /// Runs it to its end.
    pub(crate) fn run(self) -> ExitCode {
        let Self::Injector(options) = self;
        ended(in_runtime(kubernetes::injector::run(options)))
    }
}

/// What helps with whatever runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Anywhere {
    /// Change what a process logs, for a time
    LogLevel(log_level::LogLevelOptions),
}

impl Anywhere {
    /// Runs it to its end.
    pub(crate) fn run(self) -> ExitCode {
        let Self::LogLevel(options) = self;
        ended(in_runtime(log_level::run(options)))
    }
}

/// Bluebox, as far as it is in this image.
#[derive(Debug, Parser)]
#[command(name = "bluebox", version)]
struct Program<C: Subcommand> {
    #[command(subcommand)]
    command: Of<C>,
}

#[derive(Debug, Subcommand)]
enum Of<C: Subcommand> {
    #[command(flatten)]
    Own(C),
    #[command(flatten)]
    Anywhere(Anywhere),
}

fn run<C: Subcommand>(own: impl FnOnce(C) -> ExitCode) -> ExitCode {
    end_with_a_panic();
    match Program::<C>::parse().command {
        Of::Own(command) => own(command),
        Of::Anywhere(command) => command.run(),
    }
}

/// Runs what the command line says in a pod with a proxy, or another part that lives on the log.
pub fn in_boxes() -> ExitCode {
    run(InBoxes::run)
}

/// Runs what the command line says in the pod of an injector.
pub fn in_injectors() -> ExitCode {
    run(InInjectors::run)
}

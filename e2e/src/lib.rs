//! What the tests of the contract are made of: a [`World`] with a log of its own, [`proxies`](Proxy) and [`apps`](App) that are real processes, and callers.
//!
//! The tests know Bluebox from outside only: its command line, its ports, and what the contract promises. An app is a process that can be killed, but what it answers, and
//! the ledger of what it was asked, are in the test.
//!
//! - [`world`]: one test's log, directory and addresses.
//! - [`process`]: a process that never outlives its test.
//! - [`faults`]: what makes a process fail on purpose.
//! - [`supervise`]: a process that is started again whenever it ends.
//! - [`proxy`]: `bluebox proxy`, to be killed, stopped, started again.
//! - [`app`]: an app whose answers are the test's.
//! - [`client`]: a caller.
//! - [`deadline`]: waiting for conditions.
//! - [`kubectl`]: for tests with a cluster.
//! - [`control_plane`]: for those whose cluster has no node.
//! - [`flags`]: what the command lines of the fault runner and the benchmarks have in common.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "a test that can't go on says why and ends")]

pub mod app;
pub mod client;
pub mod control_plane;
pub mod deadline;
pub mod faults;
pub mod flags;
pub mod kubectl;
pub mod process;
pub mod proxy;
pub mod supervise;
pub mod world;

pub use app::{App, Delivery};
pub use client::{Answer, Call, Lost, Running};
pub use deadline::{eventually, within};
pub use faults::Faults;
pub use process::Process;
pub use proxy::{Proxy, ProxySpec};
pub use supervise::Supervised;
pub use world::{LogKind, World, run};

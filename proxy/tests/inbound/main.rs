//! The inbound side against the in-memory log and a real app on loopback: each test is a sentence of the contract.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/collector.rs"]
mod collector;
mod contract;
mod traces;
mod world;

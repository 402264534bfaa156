//! The heart of the transaction manager: what a transaction is, and what happens to it. No HTTP, no log and no clock (but in [`serve`]): requests, outcomes, records and the time come in; records, calls
//! and answers go out.
//!
//! In the order in which a request meets them:
//!
//! - [`wire`]: how a coordinator of MicroProfile LRA is spoken to: links, limits, versions, names of states, and what the answers of participants mean.
//! - [`components`]: whom it may call, besides plain URLs that are allowed.
//! - [`calls`]: how its own proxy makes its calls.
//! - [`id`]: the name of a transaction, which says where it lives and when it began.
//! - [`partition`]: one partition of the topic of transactions in the hands of its owner: who may act, and on what.
//! - [`transaction`]: one LRA with its participants.
//! - [`saga`]: one saga that came as one request.
//! - [`effect`]: what comes out of both: answers, calls, news.
//! - [`gate`]: what may leave only when a record is durable.
//! - [`mod@line`]: whom is asked for what, how often, and when again.
//! - [`callback`]: the calls that go out, and the keys that make each of them one call.
//! - [`record`]: how a transaction is written down: all of it in one record, the latest of which counts.
//! - [`time`]: moments of UTC, and pauses.
//! - [`serve`]: the I/O around all of it: HTTP, the log, the clock.
//!
//! The rule that holds everywhere: **what an effect depends on is durable before the effect leaves**, and *durable* means that its owner knows it to lie in the log, with no fence of a newer owner before it.
//! `tests/model` explores these machines with crashes, zombies, duplicates and reordering.

pub mod callback;
pub mod calls;
pub mod components;
pub mod effect;
pub mod gate;
pub mod id;
pub mod line;
pub mod partition;
pub mod record;
pub mod saga;
pub mod serve;
pub mod time;
pub mod transaction;
pub mod wire;

pub use id::TransactionId;

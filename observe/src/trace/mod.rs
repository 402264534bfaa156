//! Traces: where the time of a call went, over all the processes that it passed.
//!
//! - [`context`]: which span a request belongs to (`traceparent`).
//! - [`settings`]: what the standard environment says.
//! - [`sampler`]: which traces are kept.
//! - [`span`]: what takes time, and who makes spans of it.
//! - [`recent`]: what is remembered, within a bound, of what they may point to.
//! - [`encode`]: writes them as they are sent. [`waiting`]: where they wait for that. [`export`]: sends them to a collector. [`otlp`]: the messages, as a collector reads them.
//!
//! Where nothing is to be sent there is no [`Tracer`], and nothing here costs anything.

pub mod context;
mod encode;
pub mod export;
pub mod otlp;
pub mod recent;
pub mod sampler;
pub mod settings;
pub mod span;
mod waiting;

pub use context::{Context, TRACEPARENT};
pub use export::Counts;
pub use settings::Settings;
pub use span::{Kind, Span, Tracer};

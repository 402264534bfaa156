//! The words of Bluebox as types, and the log that calls travel on.
//!
//! Nothing here knows HTTP servers, Kubernetes or processes: this crate is what the proxy, the transaction
//! manager and the command line agree on. In the order in which a call meets them:
//!
//! - [`name`]: what can be called: a [`ComponentName`].
//! - [`registry`]: which components exist, and where their calls go.
//! - [`routing`]: how a call finds its partition where its path says it.
//! - [`topics`]: the topics that belong to a component, and the partition that a call goes to.
//! - [`id`]: a call's one id for life.
//! - [`call`]: the call and its outcome as values.
//! - [`wire`]: how both are written into records.
//! - [`log`]: the pub/sub substrate: topics of partitions of ordered records, groups, commits.
//! - [`assigned`]: an owner for a partition that no group shares out.
//! - [`mod@nearest`]: "did you mean".
//! - [`clock`]: the clocks that the promises are kept by.
//! - [`faults`]: faults on purpose, for tests only.

pub mod assigned;
pub mod call;
pub mod clock;
pub mod faults;
pub mod id;
pub mod log;
pub mod name;
pub mod nearest;
pub mod registry;
pub mod routing;
pub mod topics;
pub mod wire;

pub use call::{Body, Call, Outcome};
pub use id::{CallId, InstanceId};
pub use log::Log;
pub use name::ComponentName;

//! How a coordinator of MicroProfile LRA is spoken to, as values: parsing only, no HTTP.
//!
//! - [`path`]: what a path of the coordinator names.
//! - [`version`]: versions of the interface, and the answers that differ between them.
//! - [`limit`]: the TimeLimit of a request.
//! - [`link`]: the Link header of a join.
//! - [`participant`]: the URLs that a participant may have: logical names, and what an allow-list names.
//! - [`saga`]: a saga as it is asked for; `json`: what it is read out of.
//! - [`status`]: the names of states.
//! - [`answer`]: what the answer of a participant means.

use http::HeaderName;

pub mod answer;
mod json;
pub mod limit;
pub mod link;
pub mod participant;
pub mod path;
pub mod saga;
pub mod status;
pub mod version;

/// The context: the URL of the LRA that a request belongs to (MicroProfile LRA 2.0, `LRA_HTTP_CONTEXT_HEADER`).
pub const CONTEXT: HeaderName = HeaderName::from_static("long-running-action");
/// The URL of the parent of that LRA (`LRA_HTTP_PARENT_CONTEXT_HEADER`).
pub const PARENT: HeaderName = HeaderName::from_static("long-running-action-parent");
/// In a notification that an LRA has ended: its URL (`LRA_HTTP_ENDED_CONTEXT_HEADER`).
pub const ENDED: HeaderName = HeaderName::from_static("long-running-action-ended");
/// The URL of the record of a participant (`LRA_HTTP_RECOVERY_HEADER`).
pub const RECOVERY: HeaderName = HeaderName::from_static("long-running-action-recovery");
/// The version of the coordinator's interface that the client speaks (Narayana).
pub const VERSION: HeaderName = HeaderName::from_static("narayana-lra-api-version");
/// What a participant wants to be told again in its callbacks (Narayana, from version 1.1 on).
pub const DATA: HeaderName = HeaderName::from_static("narayana-lra-participant-data");
/// On a request to close or to cancel that comes with such: the links of the participant that has left it (Narayana).
pub const DATA_OF: HeaderName = HeaderName::from_static("narayana-lra-participant-link");
/// On a request of a proxy to close or to cancel, whose body is an encoded outcome, and on one for that: the call that it is of, as its id, '/', and the number of its replay.
pub const OUTCOME_OF: HeaderName = HeaderName::from_static("txmgr-outcome-of");
/// On the answer to a request to close or to cancel that came with an outcome: `other`, if another one is kept for the same call.
pub const OUTCOME: HeaderName = HeaderName::from_static("txmgr-outcome");
/// Where a coordinator is, below its authority.
pub const BASE_PATH: &str = "/lra-coordinator";

/// The start of a text that came from outside, to be named in an error.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

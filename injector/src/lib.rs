//! The admission webhook that puts the proxy into pods.
//!
//! The judgement is pure: a pod, its namespace's labels and the installation's settings go in, a decision comes out. In the order in which a pod meets it:
//!
//! - [`decide`]: all of it.
//! - [`selection`]: who gets a proxy, and the one list of exemptions.
//! - [`annotations`]: what the pod's annotations ask for ([`quantity`]: amounts of CPU and memory).
//! - [`identity`]: who the pod is and where its app listens, when no annotation says it.
//! - [`inject`](mod@inject): puts the proxy ([`container`]) into the pod.
//! - [`mistake`]: what is wrong, in words.
//!
//! [`settings`] is what an installation says.

pub mod annotations;
pub mod container;
pub mod decide;
pub mod identity;
pub mod inject;
pub mod mistake;
pub mod quantity;
pub mod selection;
pub mod settings;

pub use annotations::Limits;
pub use decide::{Decision, decide};
pub use settings::Settings;

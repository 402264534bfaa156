//! The admission webhook that puts the proxy into pods.
//!
//! The judgement is pure: a pod, its namespace's labels and the installation's settings go in, a decision comes out. In the order in which a pod meets it:
//!
//! - [`decide`](mod@decide): all of it.
//! - [`selection`]: who gets a proxy, and the one list of exemptions.
//! - [`annotations`]: what the pod's annotations ask for ([`quantity`]: amounts of CPU and memory).
//! - [`identity`]: who the pod is and where its app listens, when no annotation says it.
//! - [`redirect`]: how the app's calls come to the proxy; [`meshes`]: who else catches them.
//! - [`inject`](mod@inject): puts the proxy ([`container`]) into the pod.
//! - [`restart`]: how app and proxy are restarted together; [`liveness`]: and how where there are no rules for that.
//! - [`mistake`]: what is wrong, in words.
//!
//! [`settings`] is what an installation says.
//!
//! [`offline`] is the same judgement over files, by hand.
//!
//! [`manifests`]: what the API server has to know, from the same list.
//!
//! Around it, what a cluster needs:
//!
//! - [`review`]: the admission review, as the API server asks and is answered.
//! - [`serve`]: the webhook's server, [`metrics`] what it counts.
//! - [`rules`]: whether the cluster has restart rules.
//! - [`bare`]: which pods run without a proxy because they are older than the label.
//! - [`certificates`]: which certificates there should be; [`keep`]: keeps them so in the cluster; [`trust`]: whether they are taken.
//! - [`run`](mod@run): all of that.

pub mod annotations;
pub mod bare;
pub mod certificates;
pub mod container;
pub mod decide;
pub mod identity;
pub mod inject;
pub mod keep;
pub mod liveness;
pub mod manifests;
pub mod meshes;
pub mod metrics;
pub mod mistake;
pub mod offline;
pub mod quantity;
pub mod redirect;
pub mod restart;
pub mod review;
pub mod rules;
pub mod run;
pub mod selection;
pub mod serve;
pub mod settings;
pub mod trust;

pub use annotations::Limits;
pub use decide::{Decision, decide};
pub use settings::Settings;

//! How an app's calls come to its proxy: caught by the kernel's rules, or sent by the app itself.
//!
//! The rules need an init container that may change the pod's network (`NET_ADMIN`). Where the Pod Security Standard of a namespace forbids that, the app's environment names
//! the proxy instead.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use crate::annotations::Asked;
use crate::selection::Place;
use crate::settings::Settings;

/// The label of a namespace that says which Pod Security Standard its pods have to meet.
pub const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// How an app's calls come to its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirect {
    /// By rules in the kernel (nftables): whatever the app sends.
    #[default]
    Nftables,
    /// By `HTTP_PROXY` in the app's environment: what clients send that obey it.
    Env,
}

impl Redirect {
    /// How it is for a pod: as its annotation says, else as its namespace allows, else as the installation says.
    pub fn of(asked: &Asked, place: &Place, settings: &Settings) -> Self {
        asked.redirect.unwrap_or(if forbids_net_admin(place) { Self::Env } else { settings.redirect() })
    }
}

/// Whether the namespace's standard lets no container have `NET_ADMIN`.
pub fn forbids_net_admin(place: &Place) -> bool {
    place.labels.get(ENFORCE).is_some_and(|standard| standard == "baseline" || standard == "restricted")
}

impl Display for Redirect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Env => "env",
        })
    }
}

/// A text that says no way of redirecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "calls are caught by nftables (rules of the kernel, which need NET_ADMIN for an init container), or sent by the app itself: env (HTTP_PROXY in its environment)"
)]
pub struct NoRedirect;

impl FromStr for Redirect {
    type Err = NoRedirect;

    fn from_str(text: &str) -> Result<Self, NoRedirect> {
        match text {
            "nftables" => Ok(Self::Nftables),
            "env" => Ok(Self::Env),
            _ => Err(NoRedirect),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_counts_then_the_namespace_then_the_installation() {
        let settings = |redirect| Settings::try_new("bluebox:1").unwrap().with_redirect(redirect);
        let of = |annotation, standard: Option<&str>, redirect| {
            let labels = standard.map(|standard| (ENFORCE.to_owned(), standard.to_owned())).into_iter().collect();
            Redirect::of(&Asked { redirect: annotation, ..Asked::default() }, &Place { namespace: "shop".to_owned(), labels }, &settings(redirect))
        };
        assert_eq!(of(None, None, Redirect::Nftables), Redirect::Nftables);
        assert_eq!(of(None, None, Redirect::Env), Redirect::Env);
        assert_eq!(of(None, Some("privileged"), Redirect::Nftables), Redirect::Nftables);
        assert_eq!(of(None, Some("baseline"), Redirect::Nftables), Redirect::Env);
        assert_eq!(of(None, Some("restricted"), Redirect::Nftables), Redirect::Env);
        assert_eq!(of(Some(Redirect::Nftables), Some("restricted"), Redirect::Env), Redirect::Nftables);
        assert_eq!(of(Some(Redirect::Env), None, Redirect::Nftables), Redirect::Env);
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        for redirect in [Redirect::Nftables, Redirect::Env] {
            assert_eq!(redirect.to_string().parse(), Ok(redirect));
        }
        assert!("iptables".parse::<Redirect>().unwrap_err().to_string().contains("nftables"));
    }
}

//! The URLs that a participant may have. A coordinator that calls whatever it is told to would be a way into every network that it can reach: so a participant is a logical name, called through
//! the log, or a plain URL that an allow-list names.

use std::sync::Arc;

use bluebox_core::ComponentName;

use super::link::RawLinks;
use super::path::{Resource, resource};
use super::{BASE_PATH, excerpt};
use crate::TransactionId;
use crate::callback::Phase;
use crate::components::Components;
use crate::transaction::Links;

/// The longest URL.
const MAX_URL_BYTES: usize = 2_048;

/// A URL that nobody will be called at: 412, as Narayana answers what is no URL of a participant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?}: {what}")]
pub struct RefusedUrl {
    url: String,
    what: &'static str,
}

/// A plain URL of an allow-list: what lies at or below its path, at its scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    origin: (String, String, u16),
    path: String,
}

/// Whom the coordinator may call.
pub struct Callable<'a> {
    /// The components that there are.
    pub components: &'a dyn Components,
    /// What else may be called.
    pub allowed: &'a [Allowed],
    /// The coordinator itself: of it only nested LRAs are participants.
    pub coordinator: &'a ComponentName,
}

struct Parts {
    scheme: String,
    host: String,
    port: u16,
    path: String,
}

fn parts(url: &str) -> Result<Parts, RefusedUrl> {
    let refuse = |what| RefusedUrl { url: excerpt(url), what };
    if url.len() > MAX_URL_BYTES {
        return Err(refuse("longer than 2048 bytes"));
    }
    let parsed: http::Uri = url.parse().map_err(|_| refuse("no URL (RFC 3986)"))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(refuse("not absolute: http://NAME/PATH is"));
    };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(refuse("neither http nor https")),
    };
    if authority.as_str().contains('@') {
        return Err(refuse("has a user name"));
    }
    if url.contains('#') {
        return Err(refuse("has a fragment, which is never sent"));
    }
    // What a server makes of them is its own affair, so they can't be compared with an allow-list.
    let lower = parsed.path().to_ascii_lowercase().replace("%2e", ".");
    if lower.split(['/', '\\']).any(|segment| segment == "." || segment == "..") || lower.contains("%2f") || lower.contains("%5c") {
        return Err(refuse("has '.' or '..', or an encoded '/', in its path"));
    }
    // `Authority::port` has none for one that is too large.
    let port = match authority.as_str().get(authority.host().len()..).unwrap_or_default() {
        "" | ":" => default_port,
        port => {
            let digits = port.strip_prefix(':').filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|port| port.parse().ok()).ok_or_else(|| refuse("its port is none: 1 to 65535"))?
        }
    };
    let host = authority.host().to_ascii_lowercase();
    if host.is_empty() {
        return Err(refuse("has no host"));
    }
    Ok(Parts { scheme: scheme.to_owned(), host, port, path: parsed.path().to_owned() })
}

impl Allowed {
    /// An entry of the list, as configured.
    ///
    /// # Errors
    /// When it is no absolute URL of http or https.
    pub fn try_new(url: &str) -> Result<Self, RefusedUrl> {
        let Parts { scheme, host, port, path } = parts(url)?;
        if url.contains('?') {
            return Err(RefusedUrl { url: excerpt(url), what: "has a query, which an allow-list can't tell" });
        }
        Ok(Self { origin: (scheme, host, port), path: path.trim_end_matches('/').to_owned() })
    }

    fn covers(&self, url: &Parts) -> bool {
        let below = url.path.strip_prefix(self.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below && (self.origin.0.as_str(), self.origin.1.as_str(), self.origin.2) == (url.scheme.as_str(), url.host.as_str(), url.port)
    }
}

impl Callable<'_> {
    /// Checks the links of a participant that wants to join `lra`.
    ///
    /// # Errors
    /// When one of them is no URL that may be called; that of `leave` is not called, and not looked at.
    pub fn check(&self, lra: TransactionId, raw: RawLinks) -> Result<Links, RefusedUrl> {
        let mut nested = None;
        let mut check = |url: Option<String>, phase: Phase| -> Result<Option<Arc<str>>, RefusedUrl> {
            let Some(url) = url else { return Ok(None) };
            if let Some(child) = self.check_url(lra, &url, phase)? {
                nested = Some(child);
            }
            Ok(Some(url.into()))
        };
        let mut links = Links {
            compensate: check(raw.compensate, Phase::Compensate)?,
            complete: check(raw.complete, Phase::Complete)?,
            status: check(raw.status, Phase::Status)?,
            forget: check(raw.forget, Phase::Forget)?,
            after: check(raw.after, Phase::After)?,
            nested: None,
        };
        links.nested = nested;
        Ok(links)
    }

    /// The component that a URL means, and its port, if none of them is known but may be: only such a name is worth waiting for.
    pub fn unknown(&self, url: &str) -> Option<(ComponentName, u16)> {
        let parts = parts(url).ok().filter(|parts| parts.scheme == "http" && !self.allowed.iter().any(|allowed| allowed.covers(parts)))?;
        let name = ComponentName::try_new(&parts.host).ok().filter(|name| name != self.coordinator && name.as_str() != "localhost")?;
        (!self.components.has(&name, parts.port)).then_some((name, parts.port))
    }

    /// Checks one URL; says which nested LRA it is of, if it is of one.
    fn check_url(&self, lra: TransactionId, url: &str, phase: Phase) -> Result<Option<TransactionId>, RefusedUrl> {
        let refuse = |what| Err(RefusedUrl { url: excerpt(url), what });
        let parts = parts(url)?;
        if self.allowed.iter().any(|allowed| allowed.covers(&parts)) {
            return Ok(None);
        }
        if parts.scheme != "http" {
            return refuse("https is for what the allow-list names: a component is called by http");
        }
        let Ok(name) = ComponentName::try_new(&parts.host) else {
            return refuse("neither a component nor in the allow-list");
        };
        if name == *self.coordinator {
            // Its other paths would let a transaction end itself, or another one.
            return match parts.path.strip_prefix(BASE_PATH).map(resource) {
                Some(Ok(Resource::Nested(child, of))) if of == phase && child.can_be_nested_in(lra) => Ok(Some(child)),
                Some(Ok(Resource::Nested(..))) => refuse("of a nested LRA that was not begun after this one: there would be a cycle"),
                _ => refuse("of the transaction manager itself, and no nested LRA"),
            };
        }
        if !self.components.has(&name, parts.port) {
            return refuse("there is no such component, or it has no such port; what is no component must be in the allow-list");
        }
        Ok(None)
    }

    /// Checks a URL once more, before it is called.
    ///
    /// # Errors
    /// When it may not be called any more.
    pub fn check_callback(&self, transaction: TransactionId, url: &str, phase: Phase) -> Result<(), RefusedUrl> {
        self.check_url(transaction, url, phase).map(|_| ())
    }

    /// Where a participant wants to be asked for its status: the `Location` of its answer to a call at `callback`, made absolute (RFC 9110, section 10.2.2, but for references that are neither a URL
    /// nor an absolute path). `None` when it may not be called: then the participant is asked as if it had not said anything.
    pub fn check_location(&self, lra: TransactionId, callback: &str, location: &str) -> Option<String> {
        let absolute = if location.starts_with('/') && !location.starts_with("//") {
            let (scheme, rest) = callback.split_once("://")?;
            let authority = rest.split(['/', '?']).next()?;
            format!("{scheme}://{authority}{location}")
        } else {
            location.to_owned()
        };
        self.check_url(lra, &absolute, Phase::Status).ok().map(|_| absolute)
    }

    /// Checks a URL that a step of a saga calls: as those of participants, but never one of the transaction manager's own.
    ///
    /// # Errors
    /// When it may not be called.
    pub fn check_step(&self, url: &str) -> Result<(), RefusedUrl> {
        // A step is no participant of an LRA: the id is not looked at.
        let no_lra = TransactionId::new(0, bluebox_core::log::Timestamp::default(), None, 0);
        self.check_url(no_lra, url, Phase::Action).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::components::Learning;

    fn lra(created: u64) -> TransactionId {
        TransactionId::new(1, Timestamp::from_millis(created), None, 9)
    }

    fn check(url: &str, phase: Phase) -> Result<Option<TransactionId>, String> {
        with_callable(|callable| callable.check_url(lra(1_000), url, phase).map_err(|e| e.to_string()))
    }

    /// There is one component.
    struct Cart;

    impl Components for Cart {
        fn has(&self, name: &ComponentName, port: u16) -> bool {
            name.as_str() == "cart" && (port == 80 || port == 8080)
        }

        fn learn(&self, _: Vec<(ComponentName, u16)>) -> Learning<'_> {
            Box::pin(std::future::ready(true))
        }
    }

    fn with_callable<T>(of: impl FnOnce(Callable<'_>) -> T) -> T {
        let allowed = ["https://partner.example/saga/", "http://10.0.0.7:8080"].map(|url| Allowed::try_new(url).unwrap());
        let coordinator = ComponentName::try_new("txmgr").unwrap();
        of(Callable { components: &Cart, allowed: &allowed, coordinator: &coordinator })
    }

    #[test]
    fn components_and_what_the_list_names() {
        for url in [
            "http://cart/compensate?id=7",
            "http://CART:8080/x",
            "https://partner.example/saga",
            "https://partner.example:443/saga/x?y",
            "http://10.0.0.7:8080/anything",
        ] {
            assert_eq!(check(url, Phase::Compensate), Ok(None), "{url}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for url in [
            "",
            "cart/compensate",
            "/compensate",
            "http://",
            "ftp://cart/x",
            "https://cart/x",
            "http://cart:81/x",
            "http://nobody/x",
            "http://cart.shop/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]/x",
            "http://localhost:9/",
            "http://user@cart/x",
            "http://cart/x#y",
            "http://cart:99999/x",
            "http://cart:+80/x",
            "http://cart:80:80/x",
            "https://partner.example/sagas",
            "https://partner.example/saga/../admin",
            "https://partner.example/saga/%2E%2e/admin",
            "https://partner.example/saga/..%2fadmin",
            "http://partner.example/saga",
            "https://partner.example:444/saga",
            "https://partner.example.evil/saga",
            "http://bluebox/v1/calls",
            &format!("http://cart/{}", "x".repeat(MAX_URL_BYTES)),
        ] {
            assert!(check(url, Phase::Compensate).unwrap_err().starts_with(&format!("{:?}: ", excerpt(url))), "{url}");
        }
    }

    #[test]
    fn only_what_may_be_a_component_and_is_not_known_is_waited_for() {
        let unknown = |url: &str| with_callable(|callable| callable.unknown(url).map(|(name, port)| format!("{name}:{port}")));
        assert_eq!(unknown("http://nobody/x"), Some("nobody:80".to_owned()));
        assert_eq!(unknown("http://CART:81/x"), Some("cart:81".to_owned()));
        for url in [
            "http://cart/x",
            "http://10.0.0.7:8080/x",
            "https://nobody/x",
            "http://nobody.shop/x",
            "http://169.254.169.254/x",
            "http://localhost/x",
            "http://[::1]/x",
            "http://user@nobody/x",
            "http://txmgr/x",
            "nobody",
        ] {
            assert_eq!(unknown(url), None, "{url}");
        }
    }

    #[test]
    fn of_the_coordinator_only_younger_nested_lras_take_part() {
        let nested = |created, what: &str| format!("http://txmgr/lra-coordinator/nested/{}/{what}", lra(created));
        assert_eq!(check(&nested(1_001, "compensate"), Phase::Compensate), Ok(Some(lra(1_001))));
        for (url, phase) in [
            (nested(1_000, "compensate"), Phase::Compensate),
            (nested(999, "compensate"), Phase::Compensate),
            (nested(1_001, "complete"), Phase::Compensate),
            (format!("http://txmgr/lra-coordinator/{}/close", lra(1_001)), Phase::Complete),
            ("http://txmgr/v1/sagas".to_owned(), Phase::Complete),
        ] {
            assert!(check(&url, phase).is_err(), "{url}");
        }
    }

    #[test]
    fn a_location_is_made_absolute_and_checked() {
        let check = |location: &str| with_callable(|callable| callable.check_location(lra(1_000), "http://cart:8080/compensate?x", location));
        assert_eq!(check("/progress/7?a"), Some("http://cart:8080/progress/7?a".to_owned()));
        assert_eq!(check("https://partner.example/saga/7"), Some("https://partner.example/saga/7".to_owned()));
        for bad in ["//evil/x", "http://evil/x", "progress", "", "/../x", "http://txmgr/lra-coordinator/start"] {
            assert_eq!(check(bad), None, "{bad}");
        }
    }

    #[test]
    fn steps_of_sagas_never_call_the_transaction_manager() {
        let check = |url: &str| with_callable(|callable| callable.check_step(url).is_ok());
        assert!(check("http://cart/x") && !check("http://evil/x"));
        assert!(!check("http://txmgr/v1/sagas") && !check(&format!("http://txmgr/lra-coordinator/nested/{}/complete", lra(9_999))));
    }

    #[test]
    fn entries_of_the_list_are_checked() {
        for bad in ["partner.example", "https://partner.example/?x", "file:///etc"] {
            assert!(Allowed::try_new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_no_host_slips_through(host in "[a-z0-9.@:\\[\\]%-]{1,30}", path in "[a-z/.%2ef]{0,20}") {
            let url = format!("http://{host}/{path}");
            if check(&url, Phase::Complete).is_ok() {
                prop_assert!(["cart", "cart:80", "cart:8080", "cart:", "10.0.0.7:8080"].contains(&host.as_str()), "{}", url);
            }
        }
    }
}

//! What a path of the coordinator names.

use std::borrow::Cow;

use super::excerpt;
use super::status::{LraStatus, UnknownStatus};
use crate::TransactionId;
use crate::callback::{Callee, Phase};

/// The longest path that is looked at.
const MAX_PATH: usize = 4_096;

/// What a path below `/lra-coordinator` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// All LRAs: `GET /`, with `?Status=`.
    All,
    /// `POST /start`.
    Start,
    /// One LRA: `GET` to read it, `PUT` to join it.
    Lra(TransactionId),
    /// `PUT` or `GET`, below one LRA.
    Of(TransactionId, Verb),
    /// `GET /recovery`: those that are ending.
    Recovering,
    /// `GET /recovery/failed`.
    Failed,
    /// `DELETE /recovery/ID`.
    Recovery(TransactionId),
    /// The record of a participant: `GET` or `PUT /recovery/ID/NUMBER`.
    Participant(TransactionId, Callee),
    /// A nested LRA as participant of its parent: `/nested/ID/status`, `complete`, `compensate`, `forget`.
    Nested(TransactionId, Phase),
}

/// What is asked of one LRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `GET` its status as a text.
    Status,
    /// `GET` the outcome that is kept for a call: for proxies.
    Outcome,
    /// `PUT`: close it.
    Close,
    /// `PUT`: cancel it.
    Cancel,
    /// `PUT`: a new time limit.
    Renew,
    /// `PUT`: take a participant out.
    Remove,
}

/// A path that names nothing here: 404.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names nothing of a coordinator")]
pub struct NoSuchPath(String);

/// What a path (below `/lra-coordinator`, without its query) names. Where an id is expected, the whole URL of an LRA is taken too, percent-encoded as one segment: older clients of Narayana send
/// that.
///
/// # Errors
/// When it names nothing.
pub fn resource(path: &str) -> Result<Resource, NoSuchPath> {
    let none = || NoSuchPath(excerpt(path));
    if path.len() > MAX_PATH {
        return Err(none());
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let id = |segment| lra_named(segment).ok_or_else(none);
    Ok(match segments[..] {
        [] => Resource::All,
        ["start"] => Resource::Start,
        ["recovery"] => Resource::Recovering,
        ["recovery", "failed"] => Resource::Failed,
        ["recovery", lra] => Resource::Recovery(id(lra)?),
        ["recovery", lra, participant] => Resource::Participant(id(lra)?, participant.parse().map(Callee).map_err(|_| none())?),
        ["nested", lra, what] => {
            let phase = [Phase::Status, Phase::Complete, Phase::Compensate, Phase::Forget].into_iter().find(|phase| phase.name() == what);
            Resource::Nested(id(lra)?, phase.ok_or_else(none)?)
        }
        [lra] => Resource::Lra(id(lra)?),
        [lra, what] => {
            let verb = match what {
                "status" => Verb::Status,
                "outcome" => Verb::Outcome,
                "close" => Verb::Close,
                "cancel" => Verb::Cancel,
                "renew" => Verb::Renew,
                "remove" => Verb::Remove,
                _ => return Err(none()),
            };
            Resource::Of(id(lra)?, verb)
        }
        _ => return Err(none()),
    })
}

/// The LRA that a segment names: its id, or its URL percent-encoded.
fn lra_named(segment: &str) -> Option<TransactionId> {
    segment.parse().ok().or_else(|| lra_of_url(&decoded(segment)?))
}

/// The LRA that a URL names (the value of `Long-Running-Action`, or of `ParentLRA`): the last segment of its path. The authority is whatever the client used.
pub fn lra_of_url(url: &str) -> Option<TransactionId> {
    let (_, rest) = url.split_once("://")?;
    let path = rest.split(['?', '#']).next()?;
    let (_, last) = path.trim_end_matches('/').rsplit_once('/')?;
    last.parse().ok()
}

/// The URL that a `ParentLRA` says, decoded as values in a query are. Narayana's client encodes it before it makes a value in a query of it, which is encoded once more.
pub fn parent_url(value: &str) -> Cow<'_, str> {
    if value.contains("://") { Cow::Borrowed(value) } else { decoded(value).map_or(Cow::Borrowed(value), Cow::Owned) }
}

/// Percent-decoding (RFC 3986, section 2.1).
pub(crate) fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (hex, after) = rest.split_at_checked(2)?;
            rest = after;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok().filter(|hex| !hex.starts_with('+'))?, 16).ok()?);
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The `Status` that a list of LRAs is asked for; none or an empty one is all.
///
/// # Errors
/// When there is no such status: 400.
pub fn status_filter(query: Option<&str>) -> Result<Option<LraStatus>, UnknownStatus> {
    query.filter(|name| !name.is_empty()).map(str::parse).transpose()
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn id() -> TransactionId {
        TransactionId::new(7, Timestamp::from_millis(0x1_0000), None, 5)
    }

    #[test]
    fn every_path_of_the_wire() {
        let id = id();
        let encoded = format!("http%3A%2F%2Ftxmgr%2Flra-coordinator%2F{id}%3FParentLRA%3Dhttp%3a%2f%2fx");
        for (path, expected) in [
            ("/".to_owned(), Resource::All),
            (String::new(), Resource::All),
            ("/start".to_owned(), Resource::Start),
            (format!("/{id}"), Resource::Lra(id)),
            (format!("/{id}/"), Resource::Lra(id)),
            (format!("/{encoded}"), Resource::Lra(id)),
            (format!("/{encoded}/close"), Resource::Of(id, Verb::Close)),
            (format!("/{id}/cancel"), Resource::Of(id, Verb::Cancel)),
            (format!("/{id}/status"), Resource::Of(id, Verb::Status)),
            (format!("/{id}/outcome"), Resource::Of(id, Verb::Outcome)),
            (format!("/{id}/renew"), Resource::Of(id, Verb::Renew)),
            (format!("/{id}/remove"), Resource::Of(id, Verb::Remove)),
            ("/recovery".to_owned(), Resource::Recovering),
            ("/recovery/failed".to_owned(), Resource::Failed),
            (format!("/recovery/{id}"), Resource::Recovery(id)),
            (format!("/recovery/{id}/3"), Resource::Participant(id, Callee(3))),
            (format!("/recovery/{encoded}/3"), Resource::Participant(id, Callee(3))),
            (format!("/nested/{id}/complete"), Resource::Nested(id, Phase::Complete)),
            (format!("/nested/{id}/compensate"), Resource::Nested(id, Phase::Compensate)),
            (format!("/nested/{id}/status"), Resource::Nested(id, Phase::Status)),
            (format!("/nested/{id}/forget"), Resource::Nested(id, Phase::Forget)),
        ] {
            assert_eq!(resource(&path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn what_names_nothing() {
        let id = id();
        for path in [
            format!("/{id}/open"),
            format!("/nested/{id}/after"),
            "/nope".to_owned(),
            format!("/recovery/{id}/x"),
            format!("/recovery/{id}/3/4"),
            "/%zz".to_owned(),
            "/%+1".to_owned(),
        ] {
            assert!(resource(&path).is_err(), "{path}");
        }
        assert!(resource(&"/".repeat(MAX_PATH + 1)).is_err());
    }

    #[test]
    fn urls_of_lras() {
        let id = id();
        for url in
            [format!("http://txmgr/lra-coordinator/{id}"), format!("https://h:1/x/lra-coordinator/{id}/?a=/b"), format!("http://txmgr/lra-coordinator/{id}#f")]
        {
            assert_eq!(lra_of_url(&url), Some(id), "{url}");
        }
        for url in ["", "http://txmgr", "http://txmgr/lra-coordinator/", &id.to_string()] {
            assert_eq!(lra_of_url(url), None, "{url}");
        }
    }

    #[test]
    fn a_parent_may_be_encoded_twice() {
        let url = format!("http://txmgr/lra-coordinator/{}?a=%20", id());
        let encoded = url.replace('%', "%25").replace(':', "%3A").replace('/', "%2F").replace('?', "%3F").replace('=', "%3D");
        assert!(parent_url(&url) == url && parent_url(&encoded) == url);
        assert_eq!(parent_url("%zz"), "%zz");
    }

    #[test]
    fn filters() {
        assert_eq!(status_filter(None), Ok(None));
        assert_eq!(status_filter(Some("")), Ok(None));
        assert_eq!(status_filter(Some("Closing")), Ok(Some(LraStatus::Closing)));
        assert!(status_filter(Some("closing")).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(path in "[/%a-z0-9é-]{0,60}") {
            let _ = resource(&path);
            let _ = lra_of_url(&path);
        }
    }
}

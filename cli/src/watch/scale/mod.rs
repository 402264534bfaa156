//! What components are scaled by, for those who scale: by the protocols that they speak.
//!
//! - [`keda`]: KEDA's external scaler, over gRPC.
//! - [`external`]: `external.metrics.k8s.io`, for a HorizontalPodAutoscaler without anything between.
//! - here: what both tell.
//!
//! What is not known is an error and never 0: nobody is scaled to nothing because the log could not be read.

pub(crate) mod external;
pub(crate) mod keda;

use std::time::Duration;

use bluebox_core::log::Timestamp;

use super::Status;

/// A look that is older than this says nothing any more about what waits.
const FRESH: Duration = Duration::from_secs(60);

/// What a component is scaled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figure {
    /// Calls that have no end.
    pub(crate) backlog: u64,
    /// How long ago the oldest of them was accepted; zero: there is none.
    pub(crate) oldest: Duration,
}

/// Why it can't be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// The log can't be read, or was not read yet.
    NotNow(String),
    /// There is no such component.
    NoComponent(String),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotNow(why) | Self::NoComponent(why) => f.write_str(why),
        }
    }
}

/// What a component is scaled by at `now`, by what was seen last.
pub(crate) fn figure(status: &Status, component: &str, now: Timestamp) -> Result<Figure, Unknown> {
    let looked = Timestamp::from_millis(status.at_ms);
    if status.at_ms == 0 {
        return Err(Unknown::NotNow("the log was not looked at yet".to_owned()));
    }
    if now.since(looked) > FRESH {
        let why = status.problem.as_deref().unwrap_or("a look takes too long");
        return Err(Unknown::NotNow(format!("the log was last looked at {} s ago: {why}", now.since(looked).as_secs())));
    }
    let Some(found) = status.components.iter().find(|one| one.log.name.as_str() == component) else {
        let why = format!("component {component:?} is in no registry: a box of it has to run once before it can be scaled to nothing");
        return Err(Unknown::NoComponent(why));
    };
    let oldest = found.log.oldest_ms.map_or(Duration::ZERO, |at| now.since(Timestamp::from_millis(at)));
    Ok(Figure { backlog: found.log.backlog, oldest })
}

#[cfg(test)]
pub(crate) mod tests {
    use bluebox_core::ComponentName;
    use bluebox_core::registry::Class;

    use super::*;
    use crate::watch::ComponentStatus;
    use crate::watch::survey::Surveyed;

    /// One in which `cart` has so many calls.
    pub(crate) fn seen(at_ms: u64, backlog: u64) -> Status {
        let name = ComponentName::try_new("cart").unwrap();
        let oldest_ms = (backlog > 0).then_some(at_ms - 1500);
        let log = Surveyed { name, class: Class::Service, partitions: 4, backlog, oldest_ms, dead_letters: 0, appended: 9 };
        Status { at_ms, problem: None, components: vec![ComponentStatus { log, seen: None, boxes: Vec::new() }], boxes: Vec::new() }
    }

    #[test]
    fn what_is_not_known_is_never_nothing() {
        let at = |ms| Timestamp::from_millis(ms);
        let status = seen(1_000_000, 7);
        assert_eq!(figure(&status, "cart", at(1_000_500)), Ok(Figure { backlog: 7, oldest: Duration::from_secs(2) }));
        assert_eq!(figure(&seen(1_000_000, 0), "cart", at(1_000_500)), Ok(Figure { backlog: 0, oldest: Duration::ZERO }));
        assert!(matches!(figure(&status, "card", at(1_000_500)), Err(Unknown::NoComponent(_))));
        assert!(matches!(figure(&status, "cart", at(1_060_001)), Err(Unknown::NotNow(_))));
        assert!(matches!(figure(&Status::default(), "cart", at(5)), Err(Unknown::NotNow(_))));
    }
}

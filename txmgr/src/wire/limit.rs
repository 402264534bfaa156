//! The TimeLimit of a request: milliseconds, 0 for none.

use std::time::Duration;

use super::excerpt;

/// A TimeLimit that is none: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TimeLimit {0:?}: milliseconds as a whole number up to 9223372036854775807; 0 for none")]
pub struct InvalidLimit(String);

/// Reads a TimeLimit. None, an empty one, 0 and less mean that there is no limit: Narayana takes negative ones for 0. The value is a Java `long`.
///
/// # Errors
/// When it is no number, or one that no client can have meant.
pub fn time_limit(query: Option<&str>) -> Result<Option<Duration>, InvalidLimit> {
    let text = query.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let millis: i64 = text.parse().map_err(|_| InvalidLimit(excerpt(text)))?;
    Ok(u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        for none in [None, Some(""), Some("0"), Some("-1"), Some("-9223372036854775808")] {
            assert_eq!(time_limit(none), Ok(None), "{none:?}");
        }
        assert_eq!(time_limit(Some("500")), Ok(Some(Duration::from_millis(500))));
        assert_eq!(time_limit(Some("9223372036854775807")), Ok(Some(Duration::from_millis(i64::MAX as u64))));
    }

    #[test]
    fn what_overflows_or_is_no_number_is_refused() {
        for bad in ["9223372036854775808", "1e3", "5s", " 5", "0x10", "١"] {
            assert!(time_limit(Some(bad)).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}

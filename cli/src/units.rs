//! How durations, sizes and statuses are written by people.

use std::time::Duration;

use bluebox_proxy::config::RouteLimits;
use http::StatusCode;

/// Reads a duration: `30s`, `5m`, `1h30m`, `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text.trim() != "0" && text.trim().parse::<f64>().is_ok() {
        return Err(format!("a duration needs its unit: `{0}s` or `{0}m`?", text.trim()));
    }
    humantime::parse_duration(text.trim()).map_err(|_| "a duration is written as 250ms, 30s, 5m, 1h30m or 2days".to_owned())
}

/// Reads a duration that can't be zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// Writes a duration as [`duration`] reads it, without what is below a tenth.
pub(crate) fn spell(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Reads a size in bytes: `65536`, `64KiB`, `64MiB`, `1GB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const FORM: &str = "a size is written as 65536, 64KiB, 64MiB or 1GB";
    let bytes = text.trim().parse::<bytesize::ByteSize>().map_err(|_| FORM.to_owned())?.as_u64();
    if bytes == 0 { Err("must be more than zero".to_owned()) } else { Ok(bytes) }
}

/// Reads a size in bytes that must fit into this machine's memory.
pub(crate) fn memory(text: &str) -> Result<usize, String> {
    usize::try_from(size(text)?).map_err(|_| "more than this machine can address".to_owned())
}

/// Reads a number from 1 on.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("a whole number from 1 on".to_owned()),
    }
}

/// Reads a number from 1 on.
pub(crate) fn count_u32(text: &str) -> Result<u32, String> {
    u32::try_from(count(text)?).map_err(|_| "at most 4294967295".to_owned())
}

/// Reads an HTTP status from 200 on.
pub(crate) fn status(text: &str) -> Result<StatusCode, String> {
    let status = text.trim().parse::<u16>().ok().and_then(|number| StatusCode::from_u16(number).ok());
    status.filter(|status| status.as_u16() >= 200).ok_or_else(|| "a status is a number from 200 to 999 (RFC 9110)".to_owned())
}

/// So many of something: `1 box`, `2 boxes`.
pub(crate) fn so_many(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Reads the limits of a path.
pub(crate) fn route(text: &str) -> Result<RouteLimits, String> {
    const FORM: &str = "a route is written as `/reports attempt-timeout=30m retry-on=502+503`";
    let mut words = text.split_whitespace();
    let path = words.next().filter(|path| path.starts_with('/')).ok_or(FORM)?.to_owned();
    let mut route = RouteLimits { path, attempt_timeout: None, retry_on: None };
    for word in words {
        match word.split_once('=') {
            Some(("attempt-timeout", value)) => route.attempt_timeout = Some(positive_duration(value)?),
            Some(("retry-on", value)) => route.retry_on = Some(value.split('+').map(status).collect::<Result<_, _>>()?),
            _ => return Err(format!("`{word}`: {FORM}")),
        }
    }
    if route.attempt_timeout.is_none() && route.retry_on.is_none() {
        return Err(format!("`{}` says nothing; {FORM}", route.path));
    }
    Ok(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("300").unwrap_err().contains("`300s`"));
        assert!(duration("soon").unwrap_err().contains("30s"));
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn routes() {
        let read = route("/reports attempt-timeout=30m retry-on=502+503").unwrap();
        assert_eq!((read.path.as_str(), read.attempt_timeout), ("/reports", Some(Duration::from_secs(1800))));
        assert_eq!(read.retry_on, Some(vec![StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE]));
        for bad in ["", "reports attempt-timeout=1m", "/a", "/a colour=red", "/a attempt-timeout=3", "/a retry-on=x"] {
            assert!(route(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("64 MiB"), Ok(64 << 20));
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        for bad in ["", "big", "-1", "0", "1XB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses() {
        assert_eq!(status("503"), Ok(StatusCode::SERVICE_UNAVAILABLE));
        for bad in ["100", "ok", "1000", ""] {
            assert!(status(bad).is_err(), "{bad}");
        }
    }
}

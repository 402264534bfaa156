//! `Prefer: respond-async, wait=N` (RFC 7240).

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// The request field.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// The response field.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a caller prefers, of what is understood here. What is not understood is ignored (RFC 7240, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preferences {
    /// It wants an answer at once and asks for the outcome later (section 4.1).
    pub respond_async: bool,
    /// It waits for so long (section 4.3).
    pub wait: Option<Duration>,
}

impl Preferences {
    /// Reads the `Prefer` fields of a request. Where a preference is there twice, the first one counts (section 2).
    pub fn of(headers: &HeaderMap) -> Self {
        let mut preferences = Self::default();
        let (mut seen_async, mut seen_wait) = (false, false);
        for line in headers.get_all(PREFER) {
            for preference in split_outside_quotes(line.as_bytes(), b',') {
                // Parameters follow a semicolon; none is defined for these two.
                let first = split_outside_quotes(preference, b';').next().unwrap_or_default();
                let (name, value) = match first.iter().position(|b| *b == b'=') {
                    Some(at) => (first[..at].trim_ascii(), Some(unquoted(first[at + 1..].trim_ascii()))),
                    None => (first.trim_ascii(), None),
                };
                if name.eq_ignore_ascii_case(b"respond-async") && !seen_async {
                    seen_async = true;
                    // A preference with an empty value is one without (section 2).
                    preferences.respond_async = value.is_none_or(<[u8]>::is_empty);
                } else if name.eq_ignore_ascii_case(b"wait") && !seen_wait {
                    seen_wait = true;
                    preferences.wait = value.and_then(delta_seconds);
                }
            }
        }
        preferences
    }

    /// The value of `Preference-Applied` (section 3) for a response that these made what it is; `waited` when the wait that was asked for was waited.
    pub fn applied(&self, waited: bool) -> Option<HeaderValue> {
        let wait = self.wait.filter(|_| waited).map(|w| format!("wait={}", w.as_secs()));
        let value = match (self.respond_async, wait) {
            (true, Some(wait)) => format!("respond-async, {wait}"),
            (true, None) => "respond-async".to_owned(),
            (false, Some(wait)) => wait,
            (false, None) => return None,
        };
        HeaderValue::try_from(value).ok()
    }
}

/// 1*DIGIT (RFC 9111, section 1.2.2); what is larger than can be counted is the largest that can.
fn delta_seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = text.iter().fold(0u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0')));
    Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))))
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\"")).unwrap_or(text)
}

fn split_outside_quotes(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |b| {
        if escaped {
            escaped = false;
        } else if quoted && *b == b'\\' {
            escaped = true;
        } else if *b == b'"' {
            quoted = !quoted;
        }
        !quoted && *b == separator
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&'static str]) -> Preferences {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, HeaderValue::from_static(line));
        }
        Preferences::of(&headers)
    }

    const fn is(respond_async: bool, wait: Option<u64>) -> Preferences {
        let wait = match wait {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => None,
        };
        Preferences { respond_async, wait }
    }

    #[test]
    fn forms_of_the_rfc() {
        for (lines, expected) in [
            (&[][..], is(false, None)),
            (&["respond-async, wait=10"], is(true, Some(10))),
            (&["respond-async", "wait=10"], is(true, Some(10))),
            (&["Wait=5 ; foo=bar,return=minimal, RESPOND-ASYNC"], is(true, Some(5))),
            (&["wait=\"7\""], is(false, Some(7))),
            (&["wait = 3"], is(false, Some(3))),
            (&["respond-async=\"\""], is(true, None)),
            (&["wait=1, wait=2"], is(false, Some(1))),
            (&["wait=0"], is(false, Some(0))),
        ] {
            assert_eq!(of(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for line in ["wait", "wait=", "wait=-1", "wait=1.5", "wait=abc", "x=\"respond-async, wait=9\"", "\"respond-async\"", ",,;=", "x=\"a\\\", wait=4\""] {
            assert_eq!(of(&[line]), is(false, None), "{line}");
        }
        assert_eq!(of(&["wait=99999999999999999999999"]).wait, Some(Duration::from_secs(u32::MAX.into())));
    }

    #[test]
    fn applied_says_what_was_done() {
        assert_eq!(is(true, Some(10)).applied(true).unwrap(), "respond-async, wait=10");
        assert_eq!(is(true, None).applied(true).unwrap(), "respond-async");
        assert_eq!(is(false, Some(2)).applied(true).unwrap(), "wait=2");
        assert_eq!(is(false, Some(2)).applied(false), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(lines in proptest::collection::vec("(wait|respond-async)?[ -~]{0,30}", 0..4)) {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(PREFER, HeaderValue::try_from(line).unwrap());
            }
            let _ = Preferences::of(&headers).applied(true);
        }
    }
}

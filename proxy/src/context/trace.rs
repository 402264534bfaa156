//! `traceparent` (W3C Trace Context, section 3.2), as far as it says which call a request belongs to.

use http::HeaderMap;
use http::header::HeaderName;

/// The field that names a trace and the span in it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A trace, and the span in it that made a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The trace's id.
    pub id: u128,
    /// The span's id.
    pub span: u64,
}

impl Trace {
    /// The one that a request names; `None` without the field, with several of them, or with one that is none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).into_iter();
        let (first, None) = (values.next()?, values.next()) else { return None };
        Self::parse(first.as_bytes())
    }

    /// Reads a value. Of versions to come the first four parts are read, as section 4.3 asks.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.trim_ascii().split(|byte| *byte == b'-');
        let version = hex(parts.next()?, 2)?;
        let (id, span, _flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        let no_more = parts.next().is_none();
        let is_one = version != 0xff && (version != 0 || no_more) && id != 0 && span != 0;
        is_one.then_some(Self { id, span: u64::try_from(span).ok()? })
    }
}

/// So many lower-case hexadecimal digits.
fn hex(text: &[u8], digits: usize) -> Option<u128> {
    if text.len() != digits {
        return None;
    }
    text.iter().try_fold(0, |number, byte| match byte {
        b'0'..=b'9' => Some(number << 4 | u128::from(byte - b'0')),
        b'a'..=b'f' => Some(number << 4 | u128::from(byte - b'a' + 10)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn forms_of_the_specification() {
        let trace = Trace { id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0xb7ad_6b71_6920_3331 };
        assert_eq!(Trace::parse(EXAMPLE.as_bytes()), Some(trace));
        let of_a_later_version = format!("cc{}-what-comes-one-day", &EXAMPLE[2..]);
        assert_eq!(Trace::parse(of_a_later_version.as_bytes()), Some(trace));
    }

    #[test]
    fn what_is_no_trace_names_none() {
        let zeros = |of: std::ops::Range<usize>| {
            let mut text = EXAMPLE.to_owned();
            text.replace_range(of.clone(), &"0".repeat(of.len()));
            text
        };
        let longer = format!("{EXAMPLE}-x");
        let forbidden = format!("ff{}", &EXAMPLE[2..]);
        for text in ["", "00", "00-1-2-01", &EXAMPLE.to_uppercase(), &longer, &forbidden, &zeros(3..35), &zeros(36..52), &EXAMPLE[..54]] {
            assert_eq!(Trace::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_request_that_names_two_names_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(Trace::of(&headers), None);
        headers.append(TRACEPARENT, EXAMPLE.parse().unwrap());
        assert!(Trace::of(&headers).is_some());
        headers.append(TRACEPARENT, EXAMPLE.parse().unwrap());
        assert_eq!(Trace::of(&headers), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "(00-)?[0-9a-f-]{0,60}", bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
            let _ = (Trace::parse(text.as_bytes()), Trace::parse(&bytes));
        }
    }
}

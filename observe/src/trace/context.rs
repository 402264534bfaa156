//! `traceparent` (W3C Trace Context, section 3.2): which span a request belongs to.

use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The field that names a trace and the span in it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A span, and the trace that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    /// The trace's id; never 0.
    pub trace: u128,
    /// The span's id; never 0.
    pub span: u64,
    /// Whether the span is kept by whoever made it.
    pub sampled: bool,
}

impl Context {
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
        let (trace, span, flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        let no_more = parts.next().is_none();
        let is_one = version != 0xff && (version != 0 || no_more) && trace != 0 && span != 0;
        is_one.then_some(Self { trace, span: u64::try_from(span).ok()?, sampled: flags & 1 == 1 })
    }

    /// As a value of the field.
    pub fn value(&self) -> HeaderValue {
        // Digits and hyphens: always a value.
        HeaderValue::from_bytes(&self.text()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Digit by digit: this is on the way of a call, and formatting takes ten times as long.
    fn text(&self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let digit = |number: u64, at: usize| b"0123456789abcdef"[(number >> (4 * at) & 0xf) as usize];
        let (high, low) = ((self.trace >> 64) as u64, self.trace as u64);
        for at in 0..16 {
            text[18 - at] = digit(high, at);
            text[34 - at] = digit(low, at);
            text[51 - at] = digit(self.span, at);
        }
        text[54] = b'0' + u8::from(self.sampled);
        text
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
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
        let context = Context { trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0xb7ad_6b71_6920_3331, sampled: true };
        assert_eq!(Context::parse(EXAMPLE.as_bytes()), Some(context));
        let of_a_later_version = format!("cc{}-what-comes-one-day", &EXAMPLE[2..]);
        assert_eq!(Context::parse(of_a_later_version.as_bytes()), Some(context));
        let not_kept = EXAMPLE.replace("-01", "-02");
        assert_eq!(Context::parse(not_kept.as_bytes()), Some(Context { sampled: false, ..context }));
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Context::parse(EXAMPLE.as_bytes()).unwrap().value(), EXAMPLE);
        let small = Context { trace: 1, span: 2, sampled: false };
        assert_eq!(Context::parse(small.value().as_bytes()), Some(small));
    }

    #[test]
    fn what_is_no_trace_names_none() {
        let zeros = |of: std::ops::Range<usize>| {
            let mut text = EXAMPLE.to_owned();
            text.replace_range(of.clone(), &"0".repeat(of.len()));
            text
        };
        let longer = format!("{EXAMPLE}-x");
        for text in ["", "00", "nonsense", &EXAMPLE[..54], &longer, &EXAMPLE.to_uppercase(), &zeros(3..35), &zeros(36..52), &EXAMPLE.replace("00-", "ff-")] {
            assert_eq!(Context::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_field_that_is_there_twice_says_nothing() {
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of(&headers), None);
        headers.append(TRACEPARENT, EXAMPLE.parse().unwrap());
        assert!(Context::of(&headers).is_some());
        headers.append(TRACEPARENT, EXAMPLE.parse().unwrap());
        assert_eq!(Context::of(&headers), None);
    }
}

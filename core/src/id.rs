//! Ids: of a call, and of a running process.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::{ComponentName, planted};

/// A call's one id for life, however often it is delivered: 128 bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId([u8; 16]);

/// One running process (a proxy, a gateway): a new one at every start. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId([u8; 16]);

/// A text that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id has 32 lower-case hexadecimal digits")]
pub struct InvalidId;

impl CallId {
    /// A new id from the system's random source.
    pub fn random() -> Self {
        Self::from_random(random())
    }

    /// The id that these random bytes make.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        if planted!(ReusedId) {
            bytes = [bytes[0] % 4; 16];
        }
        Self(bytes)
    }

    /// The id of a call that its caller named with an `Idempotency-Key`: the same for every retry of it, from any replica.
    ///
    /// Two callers, two callees, two ordinals of one callee or two ordering keys never share one.
    pub fn keyed(caller: &ComponentName, callee: &ComponentName, ordinal: Option<u32>, ordering_key: Option<&[u8]>, key: &[u8]) -> Self {
        let mut hash = Sha256::new();
        // Lengths first: ("ab", "c") and ("a", "bc") are different calls.
        let mut part = |part: &[u8]| {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        part(caller.as_str().as_bytes());
        part(callee.as_str().as_bytes());
        part(&[u8::from(ordering_key.is_none())]);
        part(ordering_key.unwrap_or_default());
        part(key);
        if let Some(ordinal) = ordinal {
            part(&ordinal.to_be_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        Self(id)
    }

    /// The id as bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl InstanceId {
    /// A new id from the system's random source.
    pub fn random() -> Self {
        Self(random())
    }

    /// The id as bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // The system's random source is there on every system we run on; without it no id is safe, and going on would be worse.
    #[allow(clippy::expect_used)]
    getrandom::fill(&mut bytes).expect("the system's random source answers");
    bytes
}

fn write_hex(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (i, b) in bytes.iter().enumerate() {
        text[2 * i] = DIGITS[usize::from(b >> 4)];
        text[2 * i + 1] = DIGITS[usize::from(b & 15)];
    }
    f.write_str(std::str::from_utf8(&text).unwrap_or_default())
}

fn parse_hex(text: &str) -> Result<[u8; 16], InvalidId> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Ok(b - b'0'),
        b'a'..=b'f' => Ok(b - b'a' + 10),
        _ => Err(InvalidId),
    };
    let text = text.as_bytes();
    if text.len() != 32 {
        return Err(InvalidId);
    }
    let mut bytes = [0; 16];
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = digit(text[2 * i])? << 4 | digit(text[2 * i + 1])?;
    }
    Ok(bytes)
}

macro_rules! as_text {
    ($id:ty) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl FromStr for $id {
            type Err = InvalidId;

            fn from_str(s: &str) -> Result<Self, InvalidId> {
                parse_hex(s).map(Self)
            }
        }
    };
}

as_text!(CallId);
as_text!(InstanceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = CallId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33)] {
            assert_eq!(bad.parse::<CallId>(), Err(InvalidId), "{bad}");
        }
    }

    #[test]
    fn a_keyed_id_depends_on_every_part() {
        let name = |n| ComponentName::try_new(n).unwrap();
        let (a, b) = (name("a"), name("b"));
        let ids = [
            CallId::keyed(&a, &b, None, None, b"k"),
            CallId::keyed(&b, &a, None, None, b"k"),
            CallId::keyed(&a, &b, None, Some(b""), b"k"),
            CallId::keyed(&a, &b, None, Some(b"k"), b""),
            CallId::keyed(&a, &b, None, None, b"l"),
            CallId::keyed(&a, &b, Some(0), None, b"k"),
            CallId::keyed(&a, &b, Some(1), None, b"k"),
        ];
        for (i, x) in ids.iter().enumerate() {
            for y in &ids[i + 1..] {
                assert_ne!(x, y);
            }
        }
        assert_eq!(ids[0], CallId::keyed(&a, &b, None, None, b"k"));
    }
}

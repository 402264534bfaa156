//! What can be called.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The logical name of a component: a lower-case DNS label (RFC 1123, section 2.1), at most 63 bytes, neither `localhost` nor digits alone.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComponentName(Arc<str>);

/// Why a text is no [`ComponentName`]. The message names the text and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("component {name:?}: {rule}")]
pub struct InvalidName {
    name: String,
    rule: &'static str,
}

/// A name that no component can have, because Bluebox itself answers to it.
pub const RESERVED: &str = "bluebox";

impl ComponentName {
    /// Checks `name` and makes it a component's.
    ///
    /// # Errors
    /// When `name` is no lower-case DNS label, or one that means something else: the reserved name `bluebox`, `localhost`, or digits alone.
    pub fn try_new(name: &str) -> Result<Self, InvalidName> {
        let refuse = |rule| {
            // A name comes from outside: what is echoed is bounded.
            let name = name.chars().take(80).collect();
            Err(InvalidName { name, rule })
        };
        if name == RESERVED {
            return refuse("the name is reserved: Bluebox itself answers at http://bluebox/");
        }
        if name.is_empty() || name.len() > 63 {
            return refuse("names have 1 to 63 characters (RFC 1123)");
        }
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !name.bytes().all(|b| letter(b) || b == b'-') {
            return refuse("names are lower-case DNS labels: a to z, 0 to 9 and '-' (RFC 1123)");
        }
        if name.starts_with('-') || name.ends_with('-') {
            return refuse("names begin and end with a letter or a digit (RFC 1123)");
        }
        // Clients take the first for an address (0.0.0.123), and the second for their own machine, proxy or not.
        if name.bytes().all(|b| b.is_ascii_digit()) {
            return refuse("clients take a name of digits alone for an address; put a letter into it");
        }
        if name == "localhost" {
            return refuse("clients ask nobody for localhost: it is their own machine; take another name");
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Hash, Eq and Ord are those of the text, so maps by name can be asked with a text.
impl Borrow<str> for ComponentName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for ComponentName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::try_new(s)
    }
}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for ComponentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for ComponentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::try_new(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names() {
        for name in ["a", "cart", "cart-2", "0a", &"x".repeat(63)] {
            assert!(ComponentName::try_new(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn everything_else_is_refused_and_says_why() {
        for name in ["", "Cart", "cart!", "-cart", "cart-", "a.b", "bluebox", "café", &"x".repeat(64)] {
            let error = ComponentName::try_new(name).unwrap_err().to_string();
            assert!(error.contains("component"), "{error}");
        }
    }
}

//! JSON as it is written: values that keep their text, and objects that keep a name that comes twice. What is asked for is read out of it key by key, so that a mistake is told by its path; and
//! what is only passed on, such as the body of a step, stays byte for byte what it was.

use std::fmt;

use serde::de::IgnoredAny;

use super::excerpt;

/// A value, as it is written. Its syntax was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raw<'j>(&'j str);

const SPACE: [char; 4] = [' ', '\n', '\r', '\t'];

/// Takes the next value off a text, and what stands between it and the one after.
fn next<'j>(rest: &mut &'j str) -> Option<Raw<'j>> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    let (value, left) = rest.split_at_checked(values.byte_offset())?;
    *rest = left.trim_start_matches([' ', '\n', '\r', '\t', ',', ':']);
    Some(Raw(value.trim_matches(SPACE)))
}

impl<'j> Raw<'j> {
    /// Reads a document. Nothing in it makes this recurse.
    ///
    /// # Errors
    /// When it is no JSON (RFC 8259): what is wrong, and where.
    pub(crate) fn read(document: &'j [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(document).map_err(|error| format!("byte {} is no UTF-8", error.valid_up_to() + 1))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| error.to_string())?;
        Ok(Self(text.trim_matches(SPACE)))
    }

    /// Its text.
    pub(crate) fn written(self) -> &'j str {
        self.0
    }

    pub(crate) fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// A text; `None` if it is none, or one that no UTF-8 can write.
    pub(crate) fn text(self) -> Option<String> {
        if self.0.starts_with('"') { serde_json::from_str(self.0).ok() } else { None }
    }

    /// The values of a list.
    pub(crate) fn items(self) -> Option<impl Iterator<Item = Self>> {
        let mut rest = self.0.strip_prefix('[')?.trim_start_matches(SPACE);
        Some(std::iter::from_fn(move || if rest.starts_with(']') { None } else { next(&mut rest) }))
    }

    /// The names and values of an object, as they come: a name that no UTF-8 can write as it is written.
    pub(crate) fn entries(self) -> Option<impl Iterator<Item = (String, Self)>> {
        let mut rest = self.0.strip_prefix('{')?.trim_start_matches(SPACE);
        Some(std::iter::from_fn(move || {
            if rest.starts_with('}') {
                return None;
            }
            let name = next(&mut rest)?;
            Some((name.text().unwrap_or_else(|| name.0.to_owned()), next(&mut rest)?))
        }))
    }
}

/// What it is, in the words of a message.
impl fmt::Display for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_bytes().first() {
            Some(b'{') => f.write_str("an object"),
            Some(b'[') => f.write_str("a list"),
            Some(b'"') if self.text().is_none() => f.write_str("a text with half of a surrogate pair (RFC 8259, section 8.2)"),
            Some(b'"') if self.0.len() <= 80 => write!(f, "the text {}", self.0),
            Some(b'"') => write!(f, "the text {}…", excerpt(self.0)),
            _ => f.write_str(&excerpt(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_keep_their_text() {
        let document = Raw::read(br#" { "a" : [ 1.10 , {"x":[]},"]" ] ,"b":{},"a":-0e1, "\ud800":null} "#).unwrap();
        let entries: Vec<_> = document.entries().unwrap().collect();
        let entries: Vec<_> = entries.iter().map(|(name, value)| (name.as_str(), value.written())).collect();
        assert_eq!(entries, [("a", r#"[ 1.10 , {"x":[]},"]" ]"#), ("b", "{}"), ("a", "-0e1"), (r#""\ud800""#, "null")]);
        let items: Vec<_> = Raw(entries[0].1).items().unwrap().map(Raw::written).collect();
        assert_eq!(items, ["1.10", r#"{"x":[]}"#, r#""]""#]);
        assert_eq!((Raw(r#""\u00e4""#).text().as_deref(), Raw(r#""\ud800""#).text(), Raw("1").text()), (Some("\u{e4}"), None, None));
        assert!(Raw("{}").items().is_none() && Raw("[]").entries().is_none() && Raw("[]").items().unwrap().next().is_none());
    }

    #[test]
    fn what_is_no_json_says_where() {
        for (text, why) in [
            (&b"no"[..], "line 1 column 2"),
            (b"{\"a\":}", "line 1 column 6"),
            (b"", "line 1 column 0"),
            (b"1 2", "line 1 column 3"),
            (b"\"\xff\"", "byte 2 is no UTF-8"),
        ] {
            let error = Raw::read(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn depth_costs_nothing() {
        let deep = "[".repeat(500_000) + &"]".repeat(500_000);
        let mut value = Raw::read(deep.as_bytes()).unwrap();
        for _ in 0..10 {
            value = value.items().unwrap().next().unwrap();
        }
        assert_eq!(value.written().len(), 1_000_000 - 20);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf =
            prop_oneof![Just(serde_json::Value::Null), any::<bool>().prop_map(Into::into), any::<i64>().prop_map(Into::into), ".{0,6}".prop_map(Into::into)];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                proptest::collection::btree_map(".{0,3}", inner, 0..5).prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// The value, read by the walk alone.
    fn walked(raw: Raw<'_>) -> serde_json::Value {
        if let Some(items) = raw.items() {
            return items.map(walked).collect::<Vec<_>>().into();
        }
        match raw.entries() {
            Some(entries) => serde_json::Value::Object(entries.map(|(name, value)| (name, walked(value))).collect()),
            None => serde_json::from_str(raw.written()).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn all_of_a_document_is_walked(value in json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            prop_assert_eq!(walked(Raw::read(text.as_bytes()).unwrap()), value);
        }

        #[test]
        fn nothing_makes_it_panic(text in "[\\[\\]{}\",:a1\\\\u ]{0,24}") {
            if let Ok(raw) = Raw::read(text.as_bytes()) {
                prop_assert_eq!(walked(raw), serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|_| walked(raw)));
            }
        }
    }
}

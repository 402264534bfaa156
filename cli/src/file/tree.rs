//! YAML as a tree in which every key and value knows where it stands.
//!
//! The tree is read before it is understood, so that all problems of a file can be told at once, each with its place, and not only the first.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::problem::{Place, Problem};

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where it begins.
    pub(crate) at: Place,
    /// What it is.
    pub(crate) value: Value,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A text, a number, a truth value: as it was written.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// Where it begins.
    pub(crate) at: Place,
    /// The key.
    pub(crate) text: String,
}

impl Value {
    /// What it is, in the words of an error message.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Scalar(text) => format!("`{}`", shorten(text)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// The start of a text, so that what is echoed is bounded.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads one YAML document.
pub(crate) fn parse(text: &str) -> Result<Node, Problem> {
    let options = serde_saphyr::options! { with_snippet: false };
    let raw = serde_saphyr::from_str_with_options::<Option<Spanned<Raw>>>(text, options).map_err(|error| {
        let at = error.location().map_or(Place::START, Place::from);
        let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        Problem::new(at, message.strip_suffix(&format!(" at line {}, column {}", at.line, at.column)).unwrap_or(&message).to_owned())
    })?;
    Ok(raw.map_or(Node { at: Place::START, value: Value::Null }, |raw| settle(raw, text)))
}

/// What the parser gives: numbers and truth values have lost how they were written.
enum Raw {
    Null,
    Text(String),
    /// A number or a truth value, and how it would be written if its place were not known.
    Plain(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

/// Gives numbers back the text that they were written with: `1.10` and `0755` are what they are.
fn settle(raw: Spanned<Raw>, source: &str) -> Node {
    let span = raw.defined.span();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Scalar(text),
        Raw::Plain(fallback) => {
            let written = span.byte_offset().zip(span.byte_len()).and_then(|(start, len)| {
                let start = usize::try_from(start).ok()?;
                source.get(start..start.checked_add(usize::try_from(len).ok()?)?)
            });
            Value::Scalar(written.map_or(fallback, |text| text.trim().to_owned()))
        }
        Raw::List(items) => Value::List(items.into_iter().map(|item| settle(item, source)).collect()),
        Raw::Map(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (Key { at: key.referenced.into(), text: key.value }, settle(value, source))).collect())
        }
    };
    Node { at: raw.referenced.into(), value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalars(node: &Node, into: &mut Vec<(String, u32, u32)>) {
        match &node.value {
            Value::Null => into.push(("~".to_owned(), node.at.line, node.at.column)),
            Value::Scalar(text) => into.push((text.clone(), node.at.line, node.at.column)),
            Value::List(items) => items.iter().for_each(|item| scalars(item, into)),
            Value::Map(entries) => {
                for (key, value) in entries {
                    into.push((key.text.clone(), key.at.line, key.at.column));
                    scalars(value, into);
                }
            }
        }
    }

    #[test]
    fn everything_has_its_place_and_is_as_written() {
        let text = "a:\n  b: [x, 1.10, 0755, true, \"q\"]\n  8080: ~\n  c:\n";
        let mut all = Vec::new();
        scalars(&parse(text).unwrap(), &mut all);
        let all: Vec<_> = all.iter().map(|(t, l, c)| (t.as_str(), *l, *c)).collect();
        assert_eq!(
            all,
            [
                ("a", 1, 1),
                ("b", 2, 3),
                ("x", 2, 7),
                ("1.10", 2, 10),
                ("0755", 2, 16),
                ("true", 2, 22),
                ("q", 2, 28),
                ("8080", 3, 3),
                ("~", 3, 9),
                ("c", 4, 3),
                ("~", 4, 4)
            ]
        );
    }

    #[test]
    fn broken_yaml_says_where() {
        for (text, line) in [("a: [1, 2\nb: 3\n", 2), ("a: 1\n\tb: 2\n", 2), ("a: 1\na: 2\n", 2), ("a: *nowhere\n", 1), ("a: \"x\n", 2)] {
            let problem = parse(text).unwrap_err();
            assert!(problem.at.line >= 1 && problem.at.line <= line + 1, "{text:?}: {problem:?}");
            assert!(!problem.message.is_empty());
        }
    }
}

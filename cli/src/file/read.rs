//! Reads typed values out of the tree, and remembers everything that is wrong on the way.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bluebox_core::nearest::nearest;

use super::problem::{Place, Problem};
use super::tree::{Key, Node, Value, shorten};

/// Takes in what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// What was wrong so far.
    pub(crate) problems: Vec<Problem>,
}

impl Reader {
    /// Something is wrong at a place.
    pub(crate) fn wrong(&mut self, at: Place, message: impl Into<String>) {
        self.problems.push(Problem::new(at, message.into()));
    }

    fn expected(&mut self, path: &str, node: &Node, what: &str) {
        self.wrong(node.at, format!("{path}: expected {what}, found {}", node.value.kind()));
    }

    /// A mapping; nothing counts as an empty one.
    pub(crate) fn map<'a>(&mut self, path: &str, node: &'a Node, example: &str) -> &'a [(Key, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.expected(path, node, &format!("a mapping, such as {example}"));
                &[]
            }
        }
    }

    /// A key that is none here.
    pub(crate) fn unknown<'a>(&mut self, path: &str, key: &Key, known: impl Iterator<Item = &'a str>) {
        let known: Vec<&str> = known.collect();
        let place = if path.is_empty() { shorten(&key.text) } else { format!("{path}.{}", shorten(&key.text)) };
        let remedy = match nearest(&key.text, known.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        self.wrong(key.at, format!("{place}: unknown key; {remedy}"));
    }

    /// A text, or anything else that is one value.
    pub(crate) fn text(&mut self, path: &str, node: &Node, what: &str) -> Option<String> {
        match &node.value {
            Value::Scalar(text) => Some(text.clone()),
            _ => {
                self.expected(path, node, what);
                None
            }
        }
    }

    /// A value that `parse` reads; its error says what would be right.
    pub(crate) fn parsed<T>(&mut self, path: &str, node: &Node, what: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(path, node, what)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong(node.at, format!("{path}: `{}`: {why}", shorten(&text)));
                None
            }
        }
    }

    /// A list of texts; at least one.
    pub(crate) fn texts(&mut self, path: &str, node: &Node, what: &str) -> Option<Vec<String>> {
        let Value::List(items) = &node.value else {
            self.expected(path, node, what);
            return None;
        };
        if items.is_empty() {
            self.wrong(node.at, format!("{path}: expected {what}, found an empty list"));
            return None;
        }
        items.iter().enumerate().map(|(i, item)| self.text(&format!("{path}[{i}]"), item, "a text")).collect()
    }

    /// Names and their values.
    pub(crate) fn pairs(&mut self, path: &str, node: &Node, example: &str) -> BTreeMap<String, String> {
        let mut pairs = BTreeMap::new();
        for (key, value) in self.map(path, node, example) {
            let path = format!("{path}.{}", shorten(&key.text));
            let text = if matches!(value.value, Value::Null) { Some(String::new()) } else { self.text(&path, value, "one value") };
            if let Some(text) = text {
                pairs.insert(key.text.clone(), text);
            }
        }
        pairs
    }
}

/// Reads a port.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
    }
}

/// Reads an address to listen at: `127.0.0.1:4140`, or a port alone, which means loopback.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.replace("localhost:", "127.0.0.1:");
    if let Ok(port) = port(&text) {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| "an address is written as 127.0.0.1:4140, or as a port alone, which means loopback".to_owned())
}

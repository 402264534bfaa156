//! Which requests a rule is for: a method, and a path in which `{name}` stands for one segment and `/**` at the end for whatever is below. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::Method;

/// A method and a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    method: Option<Method>,
    segments: Vec<Segment>,
    /// Whether what is below the path fits too.
    below: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    Any(String),
}

/// The segments that the names of a pattern stand for.
pub type Found<'t> = BTreeMap<&'t str, Cow<'t, str>>;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {rule}; a path is written as `POST /trips`, `PUT /trips/{{id}}`, `* /trips/**` (any method; and what is below)")]
pub struct InvalidPattern {
    text: String,
    rule: &'static str,
}

impl Pattern {
    /// Reads `METHOD /path`; `*` is any method.
    ///
    /// # Errors
    /// When it is none.
    pub fn try_new(method: &str, path: &str) -> Result<Self, InvalidPattern> {
        let refuse = |rule| InvalidPattern { text: format!("{method} {path}").chars().take(100).collect(), rule };
        let method = match method {
            "*" => None,
            name if name.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') => Some(name.parse().map_err(|_| refuse("this is no method"))?),
            _ => return Err(refuse("a method is written in capitals, or `*`")),
        };
        let rest = path.strip_prefix('/').ok_or_else(|| refuse("a path begins with `/`"))?;
        if path.contains(['?', '#']) {
            return Err(refuse("a query does not belong to a path"));
        }
        let (rest, below) = match rest.strip_suffix("**") {
            Some("") => ("", true),
            Some(rest) => (rest.strip_suffix('/').ok_or_else(|| refuse("`**` stands alone after the last `/`"))?, true),
            None => (rest, false),
        };
        let mut names = Vec::new();
        let mut segments = Vec::new();
        // `/**` alone has no segment above it.
        for text in rest.split('/').filter(|_| !(below && rest.is_empty())) {
            let name = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
            segments.push(match name {
                Some(name) if is_name(name) && !names.contains(&name) => {
                    names.push(name);
                    Segment::Any(name.to_owned())
                }
                Some(_) => return Err(refuse("a name in braces is made of letters, digits, `-` and `_`, and is there once")),
                None if text.contains(['{', '}', '*']) => return Err(refuse("braces and stars stand for a whole segment")),
                None => Segment::Literal(plain(text).into_owned()),
            });
        }
        Ok(Self { method, segments, below })
    }

    /// What its names stand for in a request; `None` if it does not fit.
    pub fn find<'t>(&'t self, method: &Method, target: &'t str) -> Option<Found<'t>> {
        if self.method.as_ref().is_some_and(|only| only != method) {
            return None;
        }
        let path = target.split_once('?').map_or(target, |(path, _)| path).strip_prefix('/')?;
        let mut found = Found::new();
        let mut parts = path.split('/');
        for segment in &self.segments {
            let part = parts.next()?;
            match segment {
                Segment::Literal(text) if plain(part) == *text => {}
                Segment::Any(name) if !part.is_empty() => {
                    found.insert(name, Cow::Borrowed(part));
                }
                _ => return None,
            }
        }
        (self.below || parts.next().is_none()).then_some(found)
    }

    /// The names in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| if let Segment::Any(name) = segment { Some(name.as_str()) } else { None })
    }

    /// In this order the first that fits is the one that says most: literal segments before names, a whole path before what is below one, a method before any.
    pub fn rank(&self) -> impl Ord + use<> {
        let kinds: Vec<u8> = self.segments.iter().map(|segment| u8::from(matches!(segment, Segment::Any(_)))).chain([if self.below { 2 } else { 0 }]).collect();
        (kinds, self.method.is_none())
    }

    /// Whether two are for the same requests, but for the names.
    pub fn is_as(&self, other: &Self) -> bool {
        let same = |(one, other): (&Segment, &Segment)| match (one, other) {
            (Segment::Any(_), Segment::Any(_)) => true,
            (one, other) => one == other,
        };
        let alike = self.segments.len() == other.segments.len() && self.segments.iter().zip(&other.segments).all(same);
        alike && self.below == other.below && self.method == other.method
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A segment in which what need not be encoded is not (RFC 3986, section 6.2.2.2): the two are the same to a server.
fn plain(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut text = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let byte = rest.get(1..3).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                text.push(char::from(byte));
                rest = &rest[3..];
            }
            _ => {
                text.push('%');
                rest = &rest[1..];
            }
        }
    }
    text.push_str(rest);
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        let (method, path) = text.split_once(' ').unwrap();
        Pattern::try_new(method, path).unwrap()
    }

    fn fits(text: &str, method: Method, target: &str) -> bool {
        pattern(text).find(&method, target).is_some()
    }

    #[test]
    fn a_path_fits_itself() {
        for target in ["/trips", "/trips?x=/y", "/%74rips"] {
            assert!(fits("POST /trips", Method::POST, target), "{target}");
        }
        for target in ["/", "/trips/", "/trips/1", "/tripsx", "/Trips", "*", "/trips%2F1"] {
            assert!(!fits("POST /trips", Method::POST, target), "{target}");
        }
        assert!(!fits("POST /trips", Method::PUT, "/trips"));
        assert!(fits("* /trips", Method::DELETE, "/trips"));
        assert!(fits("GET /", Method::GET, "/?a") && !fits("GET /", Method::GET, "/a"));
    }

    #[test]
    fn a_name_stands_for_one_segment() {
        let of = pattern("PUT /trips/{id}/seats/{seat}");
        let found = of.find(&Method::PUT, "/trips/7%2f8/seats/b?q").unwrap();
        assert_eq!(found.into_iter().map(|(name, text)| (name, text.into_owned())).collect::<Vec<_>>(), [("id", "7%2f8".to_owned()), ("seat", "b".to_owned())]);
        for target in ["/trips/7/seats", "/trips//seats/1", "/trips/7/seats/1/2", "/trips/7/chairs/1"] {
            assert!(of.find(&Method::PUT, target).is_none(), "{target}");
        }
        assert_eq!(of.names().collect::<Vec<_>>(), ["id", "seat"]);
    }

    #[test]
    fn what_is_below_fits_too() {
        for target in ["/trips", "/trips/", "/trips/1/2"] {
            assert!(fits("* /trips/**", Method::GET, target), "{target}");
        }
        assert!(!fits("* /trips/**", Method::GET, "/tripsx"));
        assert!(fits("* /**", Method::GET, "/") && fits("* /**", Method::GET, "/a/b"));
    }

    #[test]
    fn the_one_that_says_most_comes_first() {
        let mut patterns = ["* /**", "* /a/**", "GET /a/**", "* /a/{b}", "GET /a/{b}", "* /a/b", "GET /a/b"].map(pattern);
        let sorted: Vec<_> = patterns.iter().rev().cloned().collect();
        patterns.sort_by_key(Pattern::rank);
        let order: Vec<_> = patterns.iter().map(|p| sorted.iter().position(|s| s == p).unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
        assert!(pattern("PUT /a/{b}").is_as(&pattern("PUT /a/{c}")));
        assert!(!pattern("PUT /a/{b}").is_as(&pattern("PUT /a/b")) && !pattern("PUT /a").is_as(&pattern("GET /a")));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (method, path) in [
            ("post", "/a"),
            ("POST", "a"),
            ("POST", "/a?b"),
            ("POST", "/{}"),
            ("POST", "/{a}/{a}"),
            ("POST", "/a{b}"),
            ("POST", "/*"),
            ("POST", "/a**"),
            ("POST", "/a/**/b"),
            ("P T", "/a"),
        ] {
            let error = Pattern::try_new(method, path).unwrap_err().to_string();
            assert!(error.contains("POST /trips"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(method in "[A-Z*]{1,4}", path in "[ -~\u{e0}]{0,20}", target in "/?[%0-9a-f/\u{e0}?]{0,20}") {
            if let Ok(pattern) = Pattern::try_new(&method, &path) {
                let _ = pattern.find(&Method::POST, &target);
            }
            let _ = plain(&target);
        }
    }
}

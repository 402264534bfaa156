//! A saga as it is asked for, in JSON: `{"steps": [{"name": …, "action": {"url": …}}]}`. All mistakes are told at once, each with its path, what was found there, and what would be right.

use std::fmt;
use std::time::Duration;

use bluebox_core::nearest::nearest;
use bytes::Bytes;

use super::excerpt;
use super::json::Raw;
use crate::saga::{MAX_STEPS, RawStep, StepRequest};

/// Further mistakes are counted.
const MOST_TOLD: usize = 8;

/// A saga as it is asked for: of its form only, names and URLs were not looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct WantedSaga {
    /// Its steps.
    pub steps: Vec<RawStep>,
    /// How long it may take; `None` for as long as it takes.
    pub limit: Option<Duration>,
}

/// All that is wrong: 400.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub struct Mistakes {
    told: Vec<String>,
    more: usize,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told.join("; "))?;
        if self.more > 0 { write!(f, "; and {} more", self.more) } else { Ok(()) }
    }
}

/// Reads a saga.
///
/// # Errors
/// When it is no JSON, or something in it is of another kind than it must be, is missing, is there twice, or is nothing that is known.
pub fn wanted(body: &[u8]) -> Result<WantedSaga, Mistakes> {
    let mut reader = Reader::default();
    let saga = match Raw::read(body) {
        Ok(raw) => reader.saga(raw),
        Err(_) if body.is_empty() => reader.wrong(format!("the body is empty; expected {SAGA}")),
        Err(why) => reader.wrong(format!("the body is no JSON: {why}; expected {SAGA}")),
    };
    match saga {
        Some(saga) if reader.0.told.is_empty() => Ok(saga),
        _ => Err(reader.0),
    }
}

const SAGA: &str = r#"a saga: {"steps": [{"name": "room", "action": {"url": "http://hotel/rooms/7"}}]}"#;
const STEP: &str = r#"a step: {"name": "room", "action": {"url": "http://hotel/rooms/7"}}"#;
const REQUEST: &str = r#"a request: {"url": "http://hotel/rooms/7"}"#;

#[derive(Default)]
struct Reader(Mistakes);

impl Reader {
    /// Something is wrong: so nothing is there.
    fn wrong<T>(&mut self, what: String) -> Option<T> {
        if self.0.told.len() < MOST_TOLD {
            self.0.told.push(what)
        } else {
            self.0.more += 1
        }
        None
    }

    fn expected<T>(&mut self, path: &str, found: Option<Raw<'_>>, what: &str) -> Option<T> {
        self.wrong(match found {
            Some(found) => format!("{path}: expected {what}, found {found}"),
            None => format!("{path}: missing; expected {what}"),
        })
    }

    /// The values of an object that has these names and no others, in their order.
    fn object<'j, const N: usize>(&mut self, path: &str, raw: Raw<'j>, known: [&str; N], what: &str) -> Option<[Option<Raw<'j>>; N]> {
        let Some(entries) = raw.entries() else { return self.expected(if path.is_empty() { "the body" } else { path }, Some(raw), what) };
        let mut values = [None; N];
        for (name, value) in entries {
            let at = || if path.is_empty() { excerpt(&name) } else { format!("{path}.{}", excerpt(&name)) };
            match values.iter_mut().zip(known).find(|(_, known)| *known == name) {
                Some((there @ None, _)) => *there = Some(value),
                Some(_) => drop(self.wrong::<()>(format!("{}: it is there twice", at()))),
                None => {
                    let remedy = nearest(&name, known).map_or_else(|| format!("known here: {}", known.join(", ")), |name| format!("did you mean `{name}`?"));
                    self.wrong::<()>(format!("{}: unknown key; {remedy}", at()));
                }
            }
        }
        Some(values)
    }

    /// The values of a list, of which there are so many at most.
    fn list<'j>(&mut self, path: &str, raw: Option<Raw<'j>>, most: usize, what: &str) -> Option<Vec<Raw<'j>>> {
        let Some(mut items) = raw.and_then(Raw::items) else { return self.expected(path, raw, what) };
        let list: Vec<_> = items.by_ref().take(most).collect();
        match items.count() {
            0 => Some(list),
            more => self.wrong(format!("{path}: expected at most {most}, found {}", list.len() + more)),
        }
    }

    fn text(&mut self, path: &str, raw: Option<Raw<'_>>, what: &str) -> Option<String> {
        raw.and_then(Raw::text).or_else(|| self.expected(path, raw, what))
    }

    fn saga(&mut self, raw: Raw<'_>) -> Option<WantedSaga> {
        let [steps, limit] = self.object("", raw, ["steps", "time_limit_ms"], SAGA)?;
        let limit = match limit.filter(|raw| !raw.is_null()) {
            None => Some(0),
            Some(raw) => raw.written().parse().ok().or_else(|| self.expected("time_limit_ms", Some(raw), "milliseconds as a whole number, 0 for no limit")),
        };
        let steps = self.list("steps", steps, MAX_STEPS, "a list of steps")?;
        let steps = steps.into_iter().enumerate().map(|(at, raw)| self.step(&format!("steps[{at}]"), raw));
        // All of them are looked at, so that all mistakes are told.
        let steps: Vec<Option<RawStep>> = steps.collect();
        let limit = limit?;
        Some(WantedSaga { steps: steps.into_iter().collect::<Option<_>>()?, limit: (limit > 0).then(|| Duration::from_millis(limit)) })
    }

    fn step(&mut self, path: &str, raw: Raw<'_>) -> Option<RawStep> {
        let [name, action, compensation, after] = self.object(path, raw, ["name", "action", "compensation", "after"], STEP)?;
        let name = self.text(&format!("{path}.name"), name, "a text");
        let action = match action {
            Some(raw) => self.request(&format!("{path}.action"), raw),
            None => self.expected(&format!("{path}.action"), None, REQUEST),
        };
        let compensation = match compensation.filter(|raw| !raw.is_null()) {
            Some(raw) => self.request(&format!("{path}.compensation"), raw).map(Some),
            None => Some(None),
        };
        let after = match after.filter(|raw| !raw.is_null()) {
            Some(raw) => self.names(&format!("{path}.after"), raw).map(Some),
            None => Some(None),
        };
        Some(RawStep { name: name?, action: action?, compensation: compensation?, after: after? })
    }

    fn names(&mut self, path: &str, raw: Raw<'_>) -> Option<Vec<String>> {
        const WHAT: &str = "the name of a step";
        let names = self.list(path, Some(raw), MAX_STEPS, r#"a list of names of steps: ["room"], or [] for none"#)?;
        let names: Vec<_> = names.into_iter().enumerate().map(|(at, raw)| self.text(&format!("{path}[{at}]"), Some(raw), WHAT)).collect();
        names.into_iter().collect()
    }

    fn request(&mut self, path: &str, raw: Raw<'_>) -> Option<StepRequest> {
        let [method, url, content_type, body] = self.object(path, raw, ["method", "url", "content_type", "body"], REQUEST)?;
        let method = match method {
            None => Some(http::Method::POST),
            Some(raw) => {
                raw.text().and_then(|text| text.parse().ok()).or_else(|| self.expected(&format!("{path}.method"), Some(raw), "POST, PUT, PATCH or DELETE"))
            }
        };
        let url = self.text(&format!("{path}.url"), url, "a URL: http://hotel/rooms/7");
        let content_type = match content_type.filter(|raw| !raw.is_null()) {
            None => Some(None),
            Some(raw) => {
                let text = raw.text().filter(|text| text.contains('/') && http::HeaderValue::from_str(text).is_ok());
                text.or_else(|| self.expected(&format!("{path}.content_type"), Some(raw), "a media type: text/plain")).map(Some)
            }
        };
        // JSON as it was written, or with a `content_type` a text as it is.
        let (content_type, body) = match (content_type?, body.filter(|raw| !raw.is_null())) {
            (content_type, None) => (content_type, Bytes::new()),
            (Some(content_type), Some(raw)) if raw.written().starts_with('"') => {
                (Some(content_type), Bytes::from(self.text(&format!("{path}.body"), Some(raw), "a text")?))
            }
            (content_type, Some(raw)) => (content_type.or_else(|| Some("application/json".to_owned())), Bytes::copy_from_slice(raw.written().as_bytes())),
        };
        Some(StepRequest { method: method?, url: url?, content_type, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(body: &str) -> String {
        wanted(body.as_bytes()).unwrap_err().to_string()
    }

    /// With one step, of which this is all but its name.
    fn step(rest: &str) -> String {
        format!(r#"{{"steps": [{{"name": "a", {rest}}}]}}"#)
    }

    fn action(action: &str) -> Result<StepRequest, Mistakes> {
        wanted(step(&format!(r#""action": {action}"#)).as_bytes()).map(|mut saga| saga.steps.remove(0).action)
    }

    #[test]
    fn a_saga_is_what_was_written() {
        let saga = r#"{"steps": [
            {"name": "room", "action": {"method": "PUT", "url": "http://hotel/7", "body": {"nights": 3}}, "compensation": {"method": "DELETE", "url": "http://hotel/7"}},
            {"name": "seat", "action": {"url": "http://flight/7"}, "compensation": null, "after": []}, {"name": "taxi", "action": {"url": "u"}, "after": ["room", "seat"]}],
            "time_limit_ms": 120000}"#;
        let saga = wanted(saga.as_bytes()).unwrap();
        assert_eq!(saga.limit, Some(Duration::from_secs(120)));
        let told: Vec<_> = saga
            .steps
            .iter()
            .map(|step| (step.name.as_str(), step.action.method.as_str(), step.compensation.is_some(), step.after.as_deref().map(<[_]>::len)))
            .collect();
        assert_eq!(told, [("room", "PUT", true, None), ("seat", "POST", false, Some(0)), ("taxi", "POST", false, Some(2))]);
        for none in [step(r#""action": {"url": "u"}"#), r#"{"time_limit_ms": 0, "steps": []}"#.to_owned(), r#"{"time_limit_ms": null, "steps": []}"#.to_owned()]
        {
            assert_eq!(wanted(none.as_bytes()).unwrap().limit, None);
        }
    }

    #[test]
    fn a_body_is_json_as_it_was_written_or_a_text_as_it_is() {
        for (json, content_type, body) in [
            (r#"{"url": "u"}"#, None, ""),
            (
                r#"{"url": "u", "body": {"b": 1.10, "a": 123456789012345678901234567890, "a": 2}}"#,
                Some("application/json"),
                r#"{"b": 1.10, "a": 123456789012345678901234567890, "a": 2}"#,
            ),
            (r#"{"url": "u", "body": "a"}"#, Some("application/json"), r#""a""#),
            (r#"{"url": "u", "body": "a\n", "content_type": "text/plain"}"#, Some("text/plain"), "a\n"),
            (r#"{"url": "u", "body": [1], "content_type": "application/x+json"}"#, Some("application/x+json"), "[1]"),
            (r#"{"url": "u", "content_type": "text/plain"}"#, Some("text/plain"), ""),
        ] {
            let request = action(json).unwrap();
            assert_eq!((request.content_type.as_deref(), &request.body[..]), (content_type, body.as_bytes()), "{json}");
        }
    }

    #[test]
    fn each_mistake_names_its_place_what_was_found_and_what_would_be_right() {
        let url = r#""action": {"url": "u"}"#;
        for (body, why) in [
            ("".to_owned(), "the body is empty; expected a saga"),
            ("no".to_owned(), "the body is no JSON: "),
            ("[]".to_owned(), "the body: expected a saga: {\"steps\""),
            ("null".to_owned(), "found null"),
            ("\"x\"".to_owned(), "found the text \"x\""),
            ("{}".to_owned(), "steps: missing; expected a list of steps"),
            (r#"{"steps": {}}"#.to_owned(), "steps: expected a list of steps, found an object"),
            (r#"{"steps": null}"#.to_owned(), "steps: expected a list of steps, found null"),
            // A list is no object with its names left out.
            (
                r#"{"steps": [["a", {"url": "u"}, null, null]]}"#.to_owned(),
                "steps[0]: expected a step: {\"name\": \"room\", \"action\": {\"url\": \"http://hotel/rooms/7\"}}, found a list",
            ),
            (step(r#""action": ["POST", "u", null, null]"#), "steps[0].action: expected a request: {\"url\": \"http://hotel/rooms/7\"}, found a list"),
            (
                step(r#""action": "http://hotel/7""#),
                "steps[0].action: expected a request: {\"url\": \"http://hotel/rooms/7\"}, found the text \"http://hotel/7\"",
            ),
            (step(r#""action": {}"#), "steps[0].action.url: missing; expected a URL: http://hotel/rooms/7"),
            (step(r#""action": {"url": {}}"#), "steps[0].action.url: expected a URL: http://hotel/rooms/7, found an object"),
            (step(r#""action": {"url": 7}"#), "steps[0].action.url: expected a URL: http://hotel/rooms/7, found 7"),
            (step(r#""action": {"url": "u", "method": 7}"#), "steps[0].action.method: expected POST, PUT, PATCH or DELETE, found 7"),
            (step(r#""action": {"url": "u", "method": "a b"}"#), "steps[0].action.method: expected POST, PUT, PATCH or DELETE, found the text \"a b\""),
            (
                step(r#""action": {"url": "u", "content_type": "a/\n"}"#),
                "steps[0].action.content_type: expected a media type: text/plain, found the text \"a/\\n\"",
            ),
            (
                step(r#""action": {"url": "u", "content_type": "text/plain", "body": "\ud800"}"#),
                "steps[0].action.body: expected a text, found a text with half of a surrogate pair",
            ),
            (step(r#""action": {"url": "u", "header": {}}"#), "steps[0].action.header: unknown key; known here: method, url, content_type, body"),
            (step(r#""action": {"url": "u", "url": "v"}"#), "steps[0].action.url: it is there twice"),
            (step(r#""after": []"#), "steps[0].action: missing; expected a request"),
            (step(&format!(r#"{url}, "compensation": true"#)), "steps[0].compensation: expected a request: {\"url\": \"http://hotel/rooms/7\"}, found true"),
            (step(&format!(r#"{url}, "compensate": {{}}"#)), "steps[0].compensate: unknown key; did you mean `compensation`?"),
            (step(&format!(r#"{url}, "after": "b""#)), "steps[0].after: expected a list of names of steps: [\"room\"], or [] for none, found the text \"b\""),
            (step(&format!(r#"{url}, "after": ["b", 1]"#)), "steps[0].after[1]: expected the name of a step, found 1"),
            (step(&format!(r#"{url}, "\ud800": 1"#)), "steps[0].\"\\ud800\": unknown key"),
            (format!(r#"{{"steps": [{{"name": null, {url}}}]}}"#), "steps[0].name: expected a text, found null"),
            (format!(r#"{{"steps": [{{{url}}}]}}"#), "steps[0].name: missing; expected a text"),
            (r#"{"steps": [], "time_limit": 5}"#.to_owned(), "time_limit: unknown key; did you mean `time_limit_ms`?"),
            (r#"{"steps": [], "time_limit_ms": -1}"#.to_owned(), "time_limit_ms: expected milliseconds as a whole number, 0 for no limit, found -1"),
            (r#"{"steps": [], "time_limit_ms": 1e400}"#.to_owned(), "found 1e400"),
            (r#"{"steps": [], "time_limit_ms": 99999999999999999999}"#.to_owned(), "found 99999999999999999999"),
            (r#"{"steps": [], "time_limit_ms": "5"}"#.to_owned(), "found the text \"5\""),
        ] {
            let found = mistakes(&body);
            assert!(found.starts_with(why) || (!why.contains(':') && found.contains(why)), "{body}: {found}");
            assert!(!["line 1 column", "struct", "invalid type", "Wanted"].iter().any(|rust| found.contains(rust)) || found.contains("no JSON"), "{found}");
        }
        assert_eq!(wanted(b"{\"steps\": \"\xff\"}").unwrap_err().to_string(), format!("the body is no JSON: byte 12 is no UTF-8; expected {SAGA}"));
    }

    #[test]
    fn all_mistakes_are_told_at_once_and_the_rest_is_counted() {
        let two = mistakes(r#"{"steps": [{"name": 1, "action": {}}], "time_limit_ms": "x"}"#);
        assert_eq!(two.matches("; expected").count() + two.matches(": expected").count(), 3, "{two}");
        let many = mistakes(&format!("{{{}}}", vec!["\"x\": 0"; 100_000].join(",")));
        assert!(many.ends_with("; and 99993 more") && many.len() < 2_000, "{many}");
    }

    #[test]
    fn too_many_of_anything_are_counted_and_not_read() {
        let steps = mistakes(&format!(r#"{{"steps": [{}]}}"#, vec!["1"; 500_000].join(",")));
        assert_eq!(steps, "steps: expected at most 64, found 500000");
        let after = mistakes(&step(&format!(r#""action": {{"url": "u"}}, "after": [{}]"#, vec!["\"a\""; 65].join(","))));
        assert_eq!(after, "steps[0].after: expected at most 64, found 65");
        let long = mistakes(&format!(r#"{{"{}": 1, "steps": "{}"}}"#, "k".repeat(400_000), "v".repeat(400_000)));
        assert!(long.len() < 1_000, "{}", long.len());
        let deep = mistakes(&format!(r#"{{"steps": {}{}}}"#, "[".repeat(500_000), "]".repeat(500_000)));
        assert!(deep.starts_with("steps[0]: expected a step") && deep.ends_with("found a list"), "{deep}");
    }
}

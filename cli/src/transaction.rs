//! How a rule about transactions is written: `POST /trips type=required time-limit=1m cancel-on=409+5xx`.

use bluebox_proxy::transaction::Passing;
use bluebox_proxy::transaction::pattern::Pattern;
use bluebox_proxy::transaction::rule::{Participant, Rule};

use crate::units;

/// What a rule can say, in a flag and in the file.
pub(crate) const KEYS: [&str; 9] = ["type", "end", "cancel-on", "time-limit", "compensate", "complete", "status", "forget", "after"];

const FORM: &str = "a rule is written as `POST /trips type=required time-limit=1m cancel-on=409+5xx`";

/// Reads a rule.
pub(crate) fn rule(text: &str) -> Result<Rule, String> {
    let mut words = text.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Err(FORM.to_owned()) };
    let pattern = Pattern::try_new(method, path).map_err(|error| error.to_string())?;
    let pairs = words.map(|word| word.split_once('=').ok_or_else(|| format!("`{word}`: {FORM}"))).collect::<Result<Vec<_>, _>>()?;
    let kind = pairs.iter().find(|(key, _)| *key == "type").ok_or_else(|| format!("`{method} {path}` has no type; {FORM}"))?.1.parse()?;
    let mut rule = Rule::new(pattern, kind);
    let mut participant = Participant::default();
    for (key, value) in pairs {
        let path = || Some(value.to_owned());
        match key {
            "type" => {}
            "end" => rule.end = Some(value.parse().map_err(|_| format!("end `{value}`: `true` or `false`"))?),
            "cancel-on" if value == "none" => rule.cancel_on = Vec::new(),
            "cancel-on" => rule.cancel_on = value.split('+').map(str::parse).collect::<Result<_, _>>()?,
            "time-limit" => rule.time_limit = units::positive_duration(value)?,
            "compensate" => participant.compensate = path(),
            "complete" => participant.complete = path(),
            "status" => participant.status = path(),
            "forget" => participant.forget = path(),
            "after" => participant.after = path(),
            _ => return Err(format!("`{key}`: a rule can say {}", KEYS.join(", "))),
        }
    }
    rule.participant = (participant != Participant::default()).then_some(participant);
    rule.check().map_err(|error| error.to_string())?;
    Ok(rule)
}

/// Reads how contexts are passed on.
pub(crate) fn passing(text: &str) -> Result<Passing, String> {
    match text {
        "any" => Ok(Passing::Any),
        "traced" => Ok(Passing::Traced),
        "copied" => Ok(Passing::Copied),
        _ => Err("one of `any`, `traced`, `copied`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bluebox_proxy::transaction::rule::Kind;

    use super::*;

    #[test]
    fn rules() {
        let read = rule("POST /trips/{id} type=requires-new end=false cancel-on=409+5xx time-limit=1m compensate=/undo/{id} after=/over").unwrap();
        assert_eq!((read.kind, read.end, read.time_limit), (Kind::RequiresNew, Some(false), Duration::from_secs(60)));
        assert_eq!(read.cancel_on, ["409".parse().unwrap(), "5xx".parse().unwrap()]);
        let participant = read.participant.unwrap();
        assert_eq!((participant.compensate.as_deref(), participant.after.as_deref(), participant.complete), (Some("/undo/{id}"), Some("/over"), None));
        let least = rule("* /** type=never").unwrap();
        assert_eq!((least.kind, least.end, least.participant, least.cancel_on.len()), (Kind::Never, None, None, 2));
        assert!(rule("GET /a type=supports cancel-on=none").unwrap().cancel_on.is_empty());
        for bad in [
            "",
            "POST",
            "POST /a",
            "POST a type=required",
            "POST /a type=maybe",
            "POST /a type=required colour=red",
            "POST /a type=required end=perhaps",
            "POST /a type=required time-limit=30",
            "POST /a type=required cancel-on=x",
            "POST /a type=required complete=/c",
            "POST /a type=required x",
        ] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }
}

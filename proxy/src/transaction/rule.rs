//! What a path of an app has to do with transactions, and what follows from it for one call: pure.

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};

use super::pattern::{Found, InvalidPattern, Pattern};

/// The limit of a transaction that a rule begins, if it says nothing.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(600);

/// The longest limit: a transaction that is left half done holds what it has taken for so long.
pub const LONGEST_TIME_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the calls to a path have to do with transactions: the types of MicroProfile LRA 2.0, section 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In the one that the call comes with, else in a new one.
    Required,
    /// In a new one.
    RequiresNew,
    /// In a new one within that which the call comes with, if it does.
    Nested,
    /// In the one that the call comes with; without one it is refused.
    Mandatory,
    /// In the one that the call comes with, if it does.
    Supports,
    /// In none: the app does not see the one that the call comes with.
    NotSupported,
    /// In none: a call that comes with one is refused.
    Never,
}

/// Every kind with its name.
const KINDS: [(&str, Kind); 7] = [
    ("required", Kind::Required),
    ("requires-new", Kind::RequiresNew),
    ("nested", Kind::Nested),
    ("mandatory", Kind::Mandatory),
    ("supports", Kind::Supports),
    ("not-supported", Kind::NotSupported),
    ("never", Kind::Never),
];

/// How the app is told how a transaction ends that it took part in: paths in it. Names in braces stand for what they stand for in the rule's path, and `{call}` for the call's id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Participant {
    /// `PUT` when the transaction is cancelled.
    pub compensate: Option<String>,
    /// `PUT` when it is closed.
    pub complete: Option<String>,
    /// `GET`, when one of these has not been done at once.
    pub status: Option<String>,
    /// `DELETE`, when it need not be remembered any more.
    pub forget: Option<String>,
    /// `PUT` when all is over.
    pub after: Option<String>,
}

/// A status, or the hundred of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statuses {
    /// All of `4xx`, for 4.
    Family(u16),
    /// One.
    One(StatusCode),
}

/// The rule for a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which calls it is for.
    pub pattern: Pattern,
    /// What they have to do with transactions.
    pub kind: Kind,
    /// Whether the transaction is closed when the app has answered; if nothing is said, one that this rule began is.
    pub end: Option<bool>,
    /// Answers with these statuses cancel it.
    pub cancel_on: Vec<Statuses>,
    /// After so long a transaction that this rule began is cancelled.
    pub time_limit: Duration,
    /// How the app takes part in it; `None`: it does not.
    pub participant: Option<Participant>,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// Its path.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// What must be done before the app gets a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// It gets it as it came.
    AsItCame,
    /// It gets it without the transaction that it came with.
    Without,
    /// It gets it in the transaction that it came with.
    Within,
    /// A transaction is begun, within this one if there is one, and the app gets the call in it.
    Begin {
        /// The parent.
        parent: Option<HeaderValue>,
    },
    /// It does not get it.
    Refuse(&'static str),
}

/// What must be done after the app has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Leave,
    /// The transaction is closed.
    Close,
    /// It is cancelled.
    Cancel,
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = KINDS.map(|(name, _)| name).join(", ");
        KINDS.into_iter().find(|(name, _)| *name == text).map(|(_, kind)| kind).ok_or_else(|| format!("type `{text}`: one of {names}"))
    }
}

impl std::str::FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "statuses are written as 409, or 4xx for all from 400 to 499";
        if let Some(hundred) = text.strip_suffix("xx") {
            return hundred.parse().ok().filter(|hundred| (2..=5).contains(hundred)).map(Self::Family).ok_or_else(|| format!("`{text}`: {FORM}"));
        }
        let status = text.parse::<u16>().ok().and_then(|number| StatusCode::from_u16(number).ok());
        status.filter(|status| status.as_u16() >= 200).map(Self::One).ok_or_else(|| format!("`{text}`: {FORM}"))
    }
}

impl Statuses {
    fn have(self, status: StatusCode) -> bool {
        match self {
            Self::Family(hundred) => status.as_u16() / 100 == hundred,
            Self::One(one) => status == one,
        }
    }
}

impl Participant {
    /// Its links: relation and path.
    pub fn links(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [("compensate", &self.compensate), ("complete", &self.complete), ("status", &self.status), ("forget", &self.forget), ("after", &self.after)];
        all.into_iter().filter_map(|(rel, path)| Some((rel, path.as_deref()?)))
    }
}

impl Rule {
    /// A rule that says nothing but this.
    pub fn new(pattern: Pattern, kind: Kind) -> Self {
        Self { pattern, kind, end: None, cancel_on: vec![Statuses::Family(4), Statuses::Family(5)], time_limit: DEFAULT_TIME_LIMIT, participant: None }
    }

    /// Whether what it says goes together.
    ///
    /// # Errors
    /// When it does not; says what would.
    pub fn check(&self) -> Result<(), InvalidRule> {
        let wrong = |what: String| Err(InvalidRule::Other(what));
        if self.time_limit.is_zero() || self.time_limit > LONGEST_TIME_LIMIT {
            return wrong("time-limit: more than zero, and at most 30days: what is left half done is cancelled then".to_owned());
        }
        let in_none = matches!(self.kind, Kind::NotSupported | Kind::Never);
        if in_none && (self.end.is_some() || self.participant.is_some()) {
            return wrong("a path that is in no transaction ends none and takes part in none: leave `end` and the participant's paths out".to_owned());
        }
        let Some(participant) = &self.participant else { return Ok(()) };
        if participant.compensate.is_none() && participant.after.is_none() {
            return wrong("a participant needs `compensate` or `after`: it could not be told of anything that matters".to_owned());
        }
        for (rel, path) in participant.links() {
            if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"\\^`|#,;".contains(&b)) {
                return wrong(format!("{rel} `{path}`: a path of the app, such as `/trips/{{id}}/{rel}`"));
            }
            let pieces = pieces(path).map_err(|()| InvalidRule::Other(format!("{rel} `{path}`: a name in braces has an end")))?;
            for piece in pieces {
                if let Piece::Name(name) = piece
                    && name != CALL
                    && !self.pattern.names().any(|known| known == name)
                {
                    return wrong(format!("{rel} `{path}`: {{{name}}} is not in the rule's path; {{{CALL}}} is the call's id"));
                }
            }
        }
        Ok(())
    }

    /// What must be done before the app gets a call that comes in this transaction, or in none.
    pub fn before(&self, context: Option<&HeaderValue>) -> Before {
        match (self.kind, context) {
            (Kind::Required | Kind::Mandatory | Kind::Supports, Some(_)) => Before::Within,
            (Kind::Required | Kind::RequiresNew | Kind::Nested, None) | (Kind::RequiresNew, Some(_)) => Before::Begin { parent: None },
            (Kind::Nested, Some(parent)) => Before::Begin { parent: Some(parent.clone()) },
            (Kind::Mandatory, None) => Before::Refuse("calls to this path must be part of a transaction, and this one has no Long-Running-Action"),
            (Kind::Never, Some(_)) => Before::Refuse("calls to this path must not be part of a transaction, and this one has a Long-Running-Action"),
            (Kind::NotSupported, Some(_)) => Before::Without,
            (Kind::Supports | Kind::NotSupported | Kind::Never, None) => Before::AsItCame,
        }
    }

    /// What must be done with the transaction when the app has answered; `began`: this rule began it.
    pub fn after(&self, began: bool, status: StatusCode) -> After {
        // Cancelling goes before `end` (MicroProfile LRA 2.0, section 3.2.3).
        if self.cancel_on.iter().any(|statuses| statuses.have(status)) {
            After::Cancel
        } else if self.end.unwrap_or(began) {
            After::Close
        } else {
            After::Leave
        }
    }

    /// The names in its path, if it is for this call.
    pub fn find<'t>(&'t self, method: &Method, target: &'t str) -> Option<Found<'t>> {
        self.pattern.find(method, target)
    }
}

/// The name that stands for the call's id.
const CALL: &str = "call";

enum Piece<'p> {
    Text(&'p str),
    Name(&'p str),
}

fn pieces(path: &str) -> Result<Vec<Piece<'_>>, ()> {
    let mut pieces = Vec::new();
    let mut rest = path;
    while let Some((text, from)) = rest.split_once('{') {
        let (name, then) = from.split_once('}').ok_or(())?;
        pieces.extend([Piece::Text(text), Piece::Name(name)]);
        rest = then;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// A participant's path, for one call.
pub fn filled(path: &str, found: &Found<'_>, call: &str) -> String {
    let Ok(pieces) = pieces(path) else { return path.to_owned() };
    let value = |piece| match piece {
        Piece::Text(text) => text.to_owned(),
        Piece::Name(CALL) => call.to_owned(),
        Piece::Name(name) => found.get(name).map(|text| safe(text)).unwrap_or_default(),
    };
    pieces.into_iter().map(value).collect()
}

/// A segment as it may stand in a link: the caller has chosen it.
fn safe(segment: &str) -> String {
    segment
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"-._~%!$&'()*+=:@".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: Kind) -> Rule {
        Rule::new(Pattern::try_new("POST", "/trips/{id}").unwrap(), kind)
    }

    fn status(number: u16) -> StatusCode {
        StatusCode::from_u16(number).unwrap()
    }

    /// The table of MicroProfile LRA 2.0, section 3.2.
    #[test]
    fn types_of_the_specification() {
        let lra = HeaderValue::from_static("http://txmgr/lra-coordinator/0_1");
        let new = Before::Begin { parent: None };
        for (kind, without, within) in [
            (Kind::Required, new.clone(), Before::Within),
            (Kind::RequiresNew, new.clone(), new.clone()),
            (Kind::Nested, new.clone(), Before::Begin { parent: Some(lra.clone()) }),
            (Kind::Mandatory, Before::Refuse(""), Before::Within),
            (Kind::Supports, Before::AsItCame, Before::Within),
            (Kind::NotSupported, Before::AsItCame, Before::Without),
            (Kind::Never, Before::AsItCame, Before::Refuse("")),
        ] {
            let shown = |before| if let Before::Refuse(_) = before { Before::Refuse("") } else { before };
            assert_eq!((shown(rule(kind).before(None)), shown(rule(kind).before(Some(&lra)))), (without, within), "{kind:?}");
        }
    }

    #[test]
    fn what_was_begun_is_ended_and_statuses_cancel() {
        let mut rule = rule(Kind::Required);
        for (began, end, answered, expected) in [
            (true, None, 200, After::Close),
            (false, None, 200, After::Leave),
            (true, Some(false), 200, After::Leave),
            (false, Some(true), 200, After::Close),
            (false, None, 404, After::Cancel),
            (true, Some(false), 500, After::Cancel),
            (true, None, 302, After::Close),
        ] {
            rule.end = end;
            assert_eq!(rule.after(began, status(answered)), expected, "{began} {end:?} {answered}");
        }
        rule.cancel_on = vec!["409".parse().unwrap()];
        assert_eq!((rule.after(true, status(409)), rule.after(false, status(404))), (After::Cancel, After::Leave));
    }

    #[test]
    fn statuses_and_types_as_they_are_written() {
        assert_eq!("5xx".parse(), Ok(Statuses::Family(5)));
        assert_eq!("409".parse(), Ok(Statuses::One(StatusCode::CONFLICT)));
        for bad in ["1xx", "6xx", "xx", "4XX", "99", "1000", "x", ""] {
            assert!(bad.parse::<Statuses>().is_err(), "{bad}");
        }
        assert_eq!("requires-new".parse(), Ok(Kind::RequiresNew));
        assert!("REQUIRED".parse::<Kind>().unwrap_err().contains("required, requires-new"));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let with = |change: fn(&mut Rule)| {
            let mut rule = rule(Kind::Required);
            change(&mut rule);
            rule.check()
        };
        let participant = |compensate: &str| Participant { compensate: Some(compensate.to_owned()), ..Participant::default() };
        assert_eq!(with(|_| {}), Ok(()));
        assert!(with(|r| r.time_limit = Duration::ZERO).is_err());
        assert!(with(|r| r.time_limit = Duration::MAX).is_err());
        assert!(with(|r| (r.kind, r.end) = (Kind::Never, Some(true))).is_err());
        assert!(with(|r| r.participant = Some(Participant { complete: Some("/done".to_owned()), ..Participant::default() })).is_err());
        for (path, good) in [
            ("/undo", true),
            ("/undo/{id}/{call}?x=1", true),
            ("undo", false),
            ("/undo/{seat}", false),
            ("/undo/{id", false),
            ("/a b", false),
            ("/a>; rel=\"x\"", false),
            ("http://elsewhere/", false),
        ] {
            let mut rule = rule(Kind::Required);
            rule.participant = Some(participant(path));
            assert_eq!(rule.check().is_ok(), good, "{path}");
        }
    }

    #[test]
    fn names_in_a_participants_path_are_those_of_the_call() {
        let rule = rule(Kind::Required);
        let found = rule.find(&Method::POST, "/trips/7%2Fx>;\u{e4}").unwrap();
        assert_eq!(filled("/undo/{id}?call={call}", &found, "c1"), "/undo/7%2Fx%3E%3B%C3%A4?call=c1");
    }
}

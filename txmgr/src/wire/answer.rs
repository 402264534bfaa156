//! What the answer of a participant means.

use super::status::ParticipantStatus;
use crate::callback::{Outcome, Phase};

/// The longest body that is looked at: the longest name of a status has 18 bytes.
const MAX_BODY: usize = 64;

/// How much is kept, to be shown, of the reason of a no, and of an answer that nobody can make sense of.
const MAX_ERROR: usize = 200;

fn kept(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_ERROR).collect::<String>().trim().to_owned()
}

/// What a problem document says (RFC 9457).
fn problem(body: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    ["detail", "title"].iter().filter_map(|name| Some(kept(document.get(name)?.as_str()?))).find(|text| !text.is_empty())
}

/// The reason that came with a no: of a problem document, else the first line of a text.
fn reason(body: &[u8]) -> Option<String> {
    problem(body).or_else(|| std::str::from_utf8(body).ok()?.lines().map(kept).find(|line| !line.is_empty()))
}

/// What the answer to a callback means: the outcome of the call, whoever made it (a dead letter of the log is a 502).
///
/// A callback without an outcome (the log said 503 or 504) never comes here: it is repeated under its own key until it has one.
///
/// `location` is the `Location` of a 202: where to ask for the status, if it joined without a status link ("Eventual compensations").
pub fn meaning(phase: Phase, status_code: u16, body: &[u8], location: Option<&str>) -> Outcome {
    let named =
        || std::str::from_utf8(body.get(..MAX_BODY).unwrap_or(body)).ok().and_then(|body| body.trim().trim_matches('"').parse::<ParticipantStatus>().ok());
    let again = || {
        let text = problem(body).unwrap_or_else(|| kept(&String::from_utf8_lossy(body)));
        Outcome::Again(if text.is_empty() { format!("HTTP {status_code}") } else { format!("HTTP {status_code}: {text}") })
    };
    match (phase, status_code) {
        // 200 is done, unless the body names another status ("JAX-RS methods"); a method without a result answers 204, which Narayana takes as 200.
        (Phase::Complete | Phase::Compensate, 200 | 204) => named().map_or(Outcome::Done, Outcome::Says),
        (Phase::Complete | Phase::Compensate, 202) => Outcome::InProgress(location.map(str::to_owned)),
        // 410 has the effect of 200 ("JAX-RS methods").
        (Phase::Complete | Phase::Compensate | Phase::Status, 410) => Outcome::Done,
        // "by reporting FailedToCompensate … using the 409 Conflict status code" ("Compensating Activities"); what names something else makes no sense.
        (Phase::Complete | Phase::Compensate, 409) => match named() {
            None if body.is_empty() => Outcome::Failed(None),
            Some(status) if status.is_failed() => Outcome::Says(status),
            _ => again(),
        },
        (Phase::Status, 200) => named().map_or_else(again, Outcome::Says),
        (Phase::Status, 202) => Outcome::InProgress(None),
        (Phase::Forget, 200 | 204 | 410) => Outcome::Done,
        // Resent until it is answered with 200 (`AfterLRA`); a method without a result answers 204.
        (Phase::After, 200 | 204) => Outcome::Done,
        (Phase::Enlist, 200) => Outcome::Done,
        // The parent is not there, or not active any more.
        (Phase::Enlist, 404 | 410 | 412) => Outcome::Failed(None),
        (Phase::Action | Phase::Undo, 200..=299) => Outcome::Done,
        // The result codes of one-request sagas: 409 is a business no, 425 is still going.
        (Phase::Action | Phase::Undo, 409) => Outcome::Failed(reason(body)),
        (Phase::Action | Phase::Undo, 425) => Outcome::InProgress(None),
        _ => again(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_again(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Again(_))
    }

    #[test]
    fn of_complete_and_compensate() {
        for phase in [Phase::Complete, Phase::Compensate] {
            assert_eq!(meaning(phase, 200, b"", None), Outcome::Done);
            assert_eq!(meaning(phase, 204, b"", None), Outcome::Done);
            assert_eq!(meaning(phase, 200, b"whatever", None), Outcome::Done);
            assert_eq!(meaning(phase, 200, b"Compensating\n", None), Outcome::Says(ParticipantStatus::Compensating));
            assert_eq!(meaning(phase, 200, b"\"FailedToComplete\"", None), Outcome::Says(ParticipantStatus::FailedToComplete));
            assert_eq!(meaning(phase, 202, b"", Some("http://a/s")), Outcome::InProgress(Some("http://a/s".to_owned())));
            assert_eq!(meaning(phase, 410, b"", None), Outcome::Done);
            assert_eq!(meaning(phase, 409, b"", None), Outcome::Failed(None));
            assert_eq!(meaning(phase, 409, b"FailedToCompensate", None), Outcome::Says(ParticipantStatus::FailedToCompensate));
            assert!(is_again(&meaning(phase, 409, b"Completed", None)));
            for code in [100, 201, 301, 400, 404, 412, 425, 500, 502, 503, 504] {
                assert!(is_again(&meaning(phase, code, b"FailedToComplete", None)), "{code}");
            }
        }
    }

    #[test]
    fn of_status() {
        assert_eq!(meaning(Phase::Status, 200, b"Active", None), Outcome::Says(ParticipantStatus::Active));
        assert_eq!(meaning(Phase::Status, 410, b"", None), Outcome::Done);
        assert_eq!(meaning(Phase::Status, 202, b"", None), Outcome::InProgress(None));
        for (code, body) in [(200, &b""[..]), (200, b"no idea"), (404, b""), (500, b"Completed")] {
            assert!(is_again(&meaning(Phase::Status, code, body, None)), "{code}");
        }
    }

    #[test]
    fn of_forget_after_and_enlist() {
        assert_eq!(meaning(Phase::Forget, 410, b"", None), Outcome::Done);
        assert!(is_again(&meaning(Phase::Forget, 404, b"", None)));
        assert_eq!(meaning(Phase::After, 200, b"", None), Outcome::Done);
        assert!(is_again(&meaning(Phase::After, 410, b"", None)), "only 200 ends it");
        assert_eq!([200, 404, 412].map(|code| meaning(Phase::Enlist, code, b"", None)), [Outcome::Done, Outcome::Failed(None), Outcome::Failed(None)]);
        assert!(is_again(&meaning(Phase::Enlist, 503, b"", None)));
    }

    #[test]
    fn of_steps_of_sagas() {
        for phase in [Phase::Action, Phase::Undo] {
            assert_eq!([200, 201, 204].map(|code| meaning(phase, code, b"", None)), [Outcome::Done, Outcome::Done, Outcome::Done]);
            assert_eq!(meaning(phase, 409, b"sold out", None), Outcome::Failed(Some("sold out".to_owned())));
            assert_eq!(meaning(phase, 425, b"", None), Outcome::InProgress(None));
            for code in [302, 400, 404, 410, 422, 500, 502] {
                assert!(is_again(&meaning(phase, code, b"", None)), "{code}");
            }
        }
    }

    #[test]
    fn the_reason_of_a_no_is_what_a_problem_document_says_or_the_first_line_of_a_text() {
        let given = |body: &[u8]| match meaning(Phase::Action, 409, body, None) {
            Outcome::Failed(reason) => reason,
            other => panic!("{other:?}"),
        };
        for (body, expected) in [
            (&br#"{"type": "urn:x", "title": "Conflict", "detail": "no seat\u0007 left"}"#[..], "no seat left"),
            (br#"{"title": "Conflict", "detail": ""}"#, "Conflict"),
            (br#"{"error": "sold out"}"#, r#"{"error": "sold out"}"#),
            (b"\r\n  sold out \x1b\r\nsecond line", "sold out"),
            ("\u{e4}".repeat(1_000).as_bytes(), &"\u{e4}".repeat(MAX_ERROR)),
        ] {
            assert_eq!(given(body).as_deref(), Some(expected));
        }
        for none in [&b""[..], b"\n \n", b"\xff\xfe"] {
            assert_eq!(given(none), None, "{none:?}");
        }
        // Of what is asked again too.
        let boom = br#"{"type": "about:blank", "detail": "boom"}"#;
        assert_eq!(meaning(Phase::Complete, 409, boom, None), Outcome::Again("HTTP 409: boom".to_owned()));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_kept_is_short(code in prop_oneof![any::<u16>(), Just(409)], body: Vec<u8>) {
            for phase in Phase::ALL {
                if let Outcome::Again(text) | Outcome::Failed(Some(text)) = meaning(*phase, code, &body, None) {
                    prop_assert!(text.chars().count() <= MAX_ERROR + 20 && !text.chars().any(char::is_control));
                }
            }
        }
    }
}

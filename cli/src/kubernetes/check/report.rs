//! What was found, for people and for programs.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warning,
    /// It does not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What should hold.
    pub(super) name: String,
    /// Whether it does.
    pub(super) status: Status,
    /// What is so, where that has to be said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) why: Vec<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
}

/// More lines than this about one thing help nobody at a terminal; JSON has them all.
const MOST_LINES: usize = 10;

impl Check {
    /// It holds.
    pub(super) fn ok(name: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, why: Vec::new(), hint: None }
    }

    /// It holds, and this is how.
    pub(super) fn ok_because(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { why: vec![why.into()], ..Self::ok(name) }
    }

    /// It holds badly.
    pub(super) fn warning(name: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Warning, why: vec![why.into()], hint: Some(hint.into()) }
    }

    /// It doesn't hold.
    pub(super) fn failed(name: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Failed, ..Self::warning(name, why, hint) }
    }

    /// It holds if there are none of these, each of which says what is wrong.
    pub(super) fn none_of(name: impl Into<String>, status: Status, found: Vec<String>, hint: impl Into<String>) -> Self {
        if found.is_empty() { Self::ok(name) } else { Self { name: name.into(), status, why: found, hint: Some(hint.into()) } }
    }
}

/// Checks that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Section {
    /// About what.
    pub(super) name: String,
    /// In the order in which they were made.
    pub(super) checks: Vec<Check>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// This program's version.
    pub(super) version: &'static str,
    /// The worst of all.
    pub(super) status: Status,
    /// Section by section.
    pub(super) sections: Vec<Section>,
}

impl Report {
    /// Of these.
    pub(super) fn of(sections: Vec<Section>) -> Self {
        let status = sections.iter().flat_map(|section| &section.checks).map(|check| check.status).max().unwrap_or(Status::Ok);
        Self { version: env!("CARGO_PKG_VERSION"), status, sections }
    }

    /// For people.
    pub(super) fn text(&self, colour: bool) -> String {
        let mut text = String::new();
        // Writing into a String can't fail.
        for Section { name, checks } in &self.sections {
            let _ = writeln!(text, "{name}\n{}", "-".repeat(name.chars().count()));
            for check in checks {
                let (mark, style) = match check.status {
                    Status::Ok => ('√', AnsiColor::Green.on_default()),
                    Status::Warning => ('‼', AnsiColor::Yellow.on_default()),
                    Status::Failed => ('×', AnsiColor::Red.on_default()),
                };
                let style = if colour { style } else { Style::new() };
                let _ = writeln!(text, "{style}{mark}{style:#} {}", check.name);
                for line in check.why.iter().take(MOST_LINES) {
                    let _ = writeln!(text, "    {line}");
                }
                if check.why.len() > MOST_LINES {
                    let _ = writeln!(text, "    and {} more (-o json has them all)", check.why.len() - MOST_LINES);
                }
                for line in check.hint.iter().flat_map(|hint| hint.lines()) {
                    let _ = writeln!(text, "    > {line}");
                }
            }
            text.push('\n');
        }
        let all = |status| self.sections.iter().flat_map(|section| &section.checks).filter(|check| check.status == status).count();
        let _ = match self.status {
            Status::Ok => writeln!(text, "All is as it should be."),
            Status::Warning => writeln!(text, "It works; {} to look at (‼).", all(Status::Warning)),
            Status::Failed => writeln!(text, "{} wrong (×), {} to look at (‼).", all(Status::Failed), all(Status::Warning)),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let many = (0..12).map(|number| format!("pod {number}")).collect();
        Report::of(vec![Section {
            name: "the cluster".to_owned(),
            checks: vec![Check::ok_because("it answers", "v1.37.2"), Check::none_of("no pod is bare", Status::Failed, many, "first\nsecond")],
        }])
    }

    #[test]
    fn for_people() {
        let text = report().text(false);
        assert_eq!(text.lines().take(4).collect::<Vec<_>>(), ["the cluster", "-----------", "√ it answers", "    v1.37.2"], "{text}");
        assert!(text.contains("× no pod is bare\n    pod 0\n") && text.contains("    and 2 more") && text.contains("    > first\n    > second\n"), "{text}");
        assert!(text.ends_with("1 wrong (×), 0 to look at (‼).\n") && !text.contains('\u{1b}'), "{text}");
        assert!(report().text(true).contains("\u{1b}[31m×"));
    }

    #[test]
    fn for_programs() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!((&json["status"], &json["sections"][0]["checks"][1]["why"][11]), (&"failed".into(), &"pod 11".into()));
        assert_eq!(Report::of(Vec::new()).status, Status::Ok);
    }
}

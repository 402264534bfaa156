//! The page that says which metrics there are, out of their descriptions.

use std::fmt::Write as _;

use crate::counts::Family;

/// A table of these, in Markdown.
pub fn table(families: &[Family]) -> String {
    let mut text = String::from("| name | kind | what |\n|---|---|---|\n");
    for Family { name, kind, labels, help } in families {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Writing into a String can't fail.
        let _ = writeln!(text, "| `{name}{labels}` | {kind} | {} |", help.replace('|', "\\|"));
    }
    text
}

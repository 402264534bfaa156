//! What is wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The line; the first is 1.
    pub(crate) line: u32,
    /// The character in the line; the first is 1.
    pub(crate) column: u32,
}

impl Place {
    /// The start of the file.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
        Self { line: number(location.line()), column: number(location.column()) }
    }
}

/// One thing that is wrong, and what would be right.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// Where.
    pub(crate) at: Place,
    /// What is wrong: names the thing, the value and the remedy.
    pub(crate) message: String,
}

impl Problem {
    /// A problem at a place.
    pub(crate) fn new(at: Place, message: String) -> Self {
        Self { at, message }
    }
}

/// All that is wrong with a file.
#[derive(Debug)]
pub(crate) struct Problems {
    /// The file, as the user named it.
    pub(crate) file: PathBuf,
    /// Its text, to show the lines.
    pub(crate) text: String,
    /// At least one, in the order of the file.
    pub(crate) list: Vec<Problem>,
}

impl Problems {
    /// All that is wrong with `file`, in its order.
    pub(crate) fn new(file: &Path, text: &str, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.at);
        Self { file: file.to_owned(), text: text.to_owned(), list }
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let Place { line, column } = problem.at;
            write!(f, "{}:{line}:{column}: {}", self.file.display(), problem.message)?;
            let Some(shown) = self.text.lines().nth(line as usize - 1).filter(|shown| !shown.trim().is_empty()) else { continue };
            let shown: String = shown.chars().take(160).map(|c| if c.is_control() { ' ' } else { c }).collect();
            let before = usize::try_from(column - 1).unwrap_or(0).min(160);
            write!(f, "\n {line:>4} | {shown}\n      | {}^", " ".repeat(before))?;
        }
        Ok(())
    }
}

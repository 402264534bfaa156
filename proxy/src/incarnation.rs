//! The two halves of a box live and die together: an app that goes on with another proxy, or a proxy with another app, is two boxes that share a name.
//!
//! In a directory that outlives both, an init container puts a *token* each time that the box starts ([`Place::prepare`]), and the proxy takes it away when it starts
//! ([`Place::take`]): a proxy that finds none was started again alone. That the app was, is seen by its listening socket ([`crate::listening`]). Each loss of a half
//! becomes an exit of the proxy; who looks after the box starts it afresh.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bluebox_core::clock::millis;
use serde::{Deserialize, Serialize};

/// A box that lived less than this, counted from the end of its wait, was short-lived.
const SHORT: Duration = Duration::from_secs(60);
/// The longest wait before a box that keeps dying is started.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

const TOKEN: &str = "token";
const TAKEN: &str = "taken";
const HISTORY: &str = "history";
const WHY: &str = "why";
const APP_IS_NEW: &str = "app-is-new";

/// The directory that a box's incarnations share.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

/// What went wrong in the directory.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}; it must be a directory that the proxy and its init container share, and may write into")]
pub struct PlaceError {
    path: PathBuf,
    problem: io::Error,
}

/// What the incarnations before left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// How many there were.
    pub incarnations: u64,
    /// How many of the last ones, without a longer one between, were short-lived.
    pub short_lived: u32,
    /// When the last one began, in milliseconds of the machine's time since its start.
    began_ms: u64,
}

/// How a proxy started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// With the box: its number, from 1, and why the one before ended, if it said so.
    WithTheBox {
        /// The number of this incarnation.
        incarnation: u64,
        /// What the former proxy said when it ended; `None` if it died without a word.
        why: Option<String>,
    },
    /// Alone, in the place of a proxy that died; and what that one said, if anything.
    Alone {
        /// See [`Taken::WithTheBox`].
        why: Option<String>,
        /// Whether that one ended because its app was gone: then the app that there is now, or will be, is a new one.
        app_is_new: bool,
    },
}

/// What the next incarnation is, and how long it has to wait first. `now` is the machine's time since its start.
pub fn next(former: Option<History>, now: Duration) -> (History, Duration) {
    let Some(former) = former else { return (History { incarnations: 1, ..History::default() }, Duration::ZERO) };
    let began = Duration::from_millis(former.began_ms);
    // Of another start of the machine: it tells nothing.
    let lived = now.checked_sub(began).unwrap_or(Duration::MAX);
    let short_lived = if lived < SHORT { former.short_lived.saturating_add(1) } else { 0 };
    (History { incarnations: former.incarnations + 1, short_lived, began_ms: 0 }, wait(short_lived))
}

/// 0, 1, 2, 4 … 300 s.
fn wait(short_lived: u32) -> Duration {
    match short_lived {
        0 | 1 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 2).min(16)).min(LONGEST_WAIT),
    }
}

impl Place {
    /// That directory; it must be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is to be started, and how long to wait before.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn former(&self, now: Duration) -> Result<(History, Duration), PlaceError> {
        let former = self.read(HISTORY)?.and_then(|text| serde_json::from_str(&text).ok());
        Ok(next(former, now))
    }

    /// Starts an incarnation: writes down that it began, and puts its token. A token that nobody took is replaced.
    ///
    /// # Errors
    /// When the directory can't be written into.
    pub fn prepare(&self, history: History, now: Duration) -> Result<(), PlaceError> {
        let history = History { began_ms: millis(now), ..history };
        // Numbers in an object: they can be written.
        self.write(HISTORY, &serde_json::to_string(&history).unwrap_or_default())?;
        self.write(TOKEN, &history.incarnations.to_string())
    }

    /// Takes the token away. Of two that try at once, one gets it.
    ///
    /// # Errors
    /// When the directory can't be written into.
    pub fn take(&self) -> Result<Taken, PlaceError> {
        let taken = match fs::rename(self.file(TOKEN), self.file(TAKEN)) {
            Ok(()) => true,
            Err(problem) if problem.kind() == io::ErrorKind::NotFound && self.0.is_dir() => false,
            Err(problem) => return Err(PlaceError { path: self.file(TOKEN), problem }),
        };
        let why = self.word()?;
        if why.is_some() {
            self.write(WHY, "")?;
        }
        let app_is_new = self.read(APP_IS_NEW)?.is_some_and(|new| new == "yes");
        if app_is_new {
            self.write(APP_IS_NEW, "")?;
        }
        if !taken {
            return Ok(Taken::Alone { why, app_is_new });
        }
        let incarnation = self.read(TAKEN)?.and_then(|number| number.trim().parse().ok()).unwrap_or(1);
        Ok(Taken::WithTheBox { incarnation, why })
    }

    /// Leaves word for the next proxy why this one ends: whether because its app was gone.
    ///
    /// # Errors
    /// When the directory can't be written into.
    pub fn leave_word(&self, why: &str, app_is_gone: bool) -> Result<(), PlaceError> {
        if app_is_gone {
            self.write(APP_IS_NEW, "yes")?;
        }
        self.write(WHY, why)
    }

    /// Leaves word to the next proxy as [`leave_word`](Self::leave_word) does, unless that was done: what ends a proxy that has said why says less.
    ///
    /// # Errors
    /// When the directory can't be read or written into.
    pub fn leave_word_if_none(&self, why: &str) -> Result<(), PlaceError> {
        if self.word()?.is_some() { Ok(()) } else { self.leave_word(why, false) }
    }

    /// The word that was left to the next proxy, which is still to come.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn word(&self) -> Result<Option<String>, PlaceError> {
        Ok(self.read(WHY)?.filter(|why| !why.is_empty()))
    }

    fn read(&self, name: &str) -> Result<Option<String>, PlaceError> {
        match fs::read_to_string(self.file(name)) {
            Ok(text) => Ok(Some(text)),
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(problem) => Err(PlaceError { path: self.file(name), problem }),
        }
    }

    /// Whole or not at all. Another user may have left a half-written one, and the init container, which may be root, must not write to where a link of the proxy's points:
    /// so the file is made, and none that is there is opened.
    fn write(&self, name: &str, text: &str) -> Result<(), PlaceError> {
        let failed = |path: &Path, problem| PlaceError { path: path.to_owned(), problem };
        let new = self.file(&format!("{name}.new"));
        match fs::remove_file(&new) {
            Err(problem) if problem.kind() != io::ErrorKind::NotFound => return Err(failed(&new, problem)),
            _ => {}
        }
        fs::File::create_new(&new).and_then(|mut file| file.write_all(text.as_bytes())).map_err(|problem| failed(&new, problem))?;
        fs::rename(&new, self.file(name)).map_err(|problem| failed(&new, problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_box_that_keeps_dying_waits_longer_each_time() {
        let place = tempfile::tempdir().unwrap();
        let place = Place::new(place.path());
        let mut now = S(1000);
        let mut waits = Vec::new();
        for number in 1..=13 {
            let (history, wait) = place.former(now).unwrap();
            assert_eq!(history.incarnations, number);
            waits.push(wait.as_secs());
            now += wait;
            place.prepare(history, now).unwrap();
            now += S(5);
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        // One that lived: as if nothing had been.
        now += S(60);
        let (history, wait) = place.former(now).unwrap();
        assert_eq!((history.short_lived, wait), (0, S(0)));
        // The machine was started again: its time begins anew.
        assert_eq!(place.former(S(3)).unwrap().0.short_lived, 0);
    }

    #[test]
    fn a_proxy_that_finds_no_token_was_started_alone() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path());
        assert_eq!(place.take().unwrap(), Taken::Alone { why: None, app_is_new: false });
        let (history, _) = place.former(S(1)).unwrap();
        place.prepare(history, S(1)).unwrap();
        assert_eq!(place.take().unwrap(), Taken::WithTheBox { incarnation: 1, why: None });
        place.leave_word("the app is gone", true).unwrap();
        assert_eq!(place.take().unwrap(), Taken::Alone { why: Some("the app is gone".to_owned()), app_is_new: true });
        // It is said once.
        assert_eq!(place.take().unwrap(), Taken::Alone { why: None, app_is_new: false });

        // Both were started again, and the word comes with the token.
        place.leave_word("the app is gone", false).unwrap();
        place.leave_word_if_none("an error").unwrap();
        assert_eq!(place.word().unwrap().as_deref(), Some("the app is gone"));
        let (history, _) = place.former(S(2)).unwrap();
        place.prepare(history, S(2)).unwrap();
        assert_eq!(place.take().unwrap(), Taken::WithTheBox { incarnation: 2, why: Some("the app is gone".to_owned()) });
    }

    #[test]
    fn what_is_no_directory_is_an_error_and_not_a_loss() {
        let error = Place::new("/nowhere/at/all").take().unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all/token"), "{error}");
    }

    #[test]
    fn a_link_is_not_written_through() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("history.new")).unwrap();
        let place = Place::new(directory.path());
        place.prepare(place.former(S(1)).unwrap().0, S(1)).unwrap();
        assert_eq!(fs::read_to_string(elsewhere.path()).unwrap(), "");
        assert_eq!(place.former(S(2)).unwrap().0.incarnations, 2);
    }

    #[test]
    fn what_can_t_be_read_as_history_is_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(HISTORY), "half a li").unwrap();
        assert_eq!(Place::new(directory.path()).former(S(9)).unwrap(), (History { incarnations: 1, ..History::default() }, S(0)));
    }
}

//! What the apps write down, outside of the system: one line for each thing that happened, written before anybody is told of it.
//!
//! A line is one `write` to a file that is only ever appended to, so it outlives a SIGKILL at any moment.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context as _;

use crate::call::Value;
use crate::clock::Moment;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at: Moment,
    pub(crate) value: Value,
    pub(crate) entry: Entry,
}

/// What happened to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The caller is about to send it, for the nth time.
    Sending(u32),
    /// The caller has the app's answer. `Err`: it is not what the app must have answered, and how.
    Outcome(Result<String, String>),
    /// The caller was told by 202 that it is accepted.
    Accepted(String),
    /// The caller was told, with this word, that it is not accepted, or nobody took the connection.
    NotAccepted(String),
    /// The proxy ended it itself, with this word: accepted or not known.
    Problem(u16, String),
    /// The caller's connection broke.
    Broken(String),
    /// Asked for its outcome, the proxy does not know it any more.
    Forgotten(String),
    /// The app began with it.
    Begin(Delivery),
    /// The app is about to answer it.
    End(String),
    /// What arrived is not what was sent.
    Torn(String),
}

/// What the app saw at the beginning of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Delivery {
    /// Its name, unique in the run.
    pub(crate) name: String,
    /// `bluebox-call-id`.
    pub(crate) id: String,
    /// `bluebox-attempt`.
    pub(crate) attempt: u32,
    /// `bluebox-may-have-started`.
    pub(crate) may_have_started: bool,
}

/// Without what would break a line apart.
fn word(text: &str) -> String {
    let text: String = text.chars().take(200).map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.at, self.value)?;
        match &self.entry {
            Entry::Sending(n) => write!(f, "sending {n}"),
            Entry::Outcome(Ok(delivery)) => write!(f, "outcome {}", word(delivery)),
            Entry::Outcome(Err(wrong)) => write!(f, "wrong {}", word(wrong)),
            Entry::Accepted(location) => write!(f, "accepted {}", word(location)),
            Entry::NotAccepted(why) => write!(f, "not-accepted {}", word(why)),
            Entry::Problem(status, problem) => write!(f, "problem {status} {}", word(problem)),
            Entry::Broken(why) => write!(f, "broken {}", word(why)),
            Entry::Forgotten(why) => write!(f, "forgotten {}", word(why)),
            Entry::Begin(d) => write!(f, "begin {} {} {} {}", word(&d.name), word(&d.id), d.attempt, d.may_have_started),
            Entry::End(delivery) => write!(f, "end {}", word(delivery)),
            Entry::Torn(delivery) => write!(f, "torn {}", word(delivery)),
        }
    }
}

impl FromStr for Line {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        let (at, value, kind) = (next()?.parse()?, next()?.parse()?, next()?);
        let mut text = || next().map(str::to_owned);
        let entry = match kind {
            "sending" => Entry::Sending(text()?.parse().map_err(drop)?),
            "outcome" => Entry::Outcome(Ok(text()?)),
            "wrong" => Entry::Outcome(Err(text()?)),
            "accepted" => Entry::Accepted(text()?),
            "not-accepted" => Entry::NotAccepted(text()?),
            "problem" => Entry::Problem(text()?.parse().map_err(drop)?, text()?),
            "broken" => Entry::Broken(text()?),
            "forgotten" => Entry::Forgotten(text()?),
            "begin" => {
                Entry::Begin(Delivery { name: text()?, id: text()?, attempt: text()?.parse().map_err(drop)?, may_have_started: text()?.parse().map_err(drop)? })
            }
            "end" => Entry::End(text()?),
            "torn" => Entry::Torn(text()?),
            _ => return Err(()),
        };
        Ok(Self { at, value, entry })
    }
}

/// A ledger that is being written.
#[derive(Debug)]
pub(crate) struct Ledger(File);

impl Ledger {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(path).with_context(|| format!("{}: the ledger can't be written", path.display()))?;
        Ok(Self(file))
    }

    /// Writes a line, as of now.
    pub(crate) fn write(&self, value: Value, entry: Entry) -> anyhow::Result<()> {
        let line = Line { at: Moment::now(), value, entry };
        let text = format!("{line}\n");
        (&self.0).write_all(text.as_bytes()).context("the ledger can't be written")
    }
}

/// Reads a ledger; empty if there is none. A last line without its end was not written completely, and does not count.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{}: the ledger can't be read", path.display())),
    };
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    let line = |(number, line): (usize, &str)| line.parse().map_err(|()| anyhow::anyhow!("{}:{}: no line of a ledger: {line}", path.display(), number + 1));
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let value = Value { caller: 1, worker: 2, number: 3 };
        let delivery = Delivery { name: "cart-1.2.3".into(), id: "x".into(), attempt: 2, may_have_started: true };
        let entries = [
            Entry::Sending(1),
            Entry::Outcome(Ok("cart-1.2.3".into())),
            Entry::Outcome(Err("other".into())),
            Entry::Accepted("http://bluebox/v1/calls/x".into()),
            Entry::NotAccepted("refused by them".into()),
            Entry::Problem(504, "no-outcome-yet".into()),
            Entry::Broken(String::new()),
            Entry::Forgotten("410".into()),
            Entry::Begin(delivery),
            Entry::End("cart-1.2.3".into()),
            Entry::Torn("cart-1.2.3".into()),
        ];
        let ledger = Ledger::open(path.path()).unwrap();
        for entry in &entries {
            ledger.write(value, entry.clone()).unwrap();
        }
        std::io::Write::write_all(&mut &ledger.0, b"12.000000 1-2-3 begi").unwrap();
        let read: Vec<_> = read(path.path()).unwrap().into_iter().map(|line| line.entry).collect();
        assert_eq!(read[..4], entries[..4]);
        assert_eq!(read[4], Entry::NotAccepted("refused_by_them".into()));
        assert_eq!(read[6], Entry::Broken("-".into()));
        assert_eq!((read.len(), &read[7..]), (entries.len(), &entries[7..]));
    }

    #[test]
    fn what_is_no_ledger_is_refused() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), "nonsense\n").unwrap();
        assert!(read(path.path()).unwrap_err().to_string().contains(":1:"));
    }
}

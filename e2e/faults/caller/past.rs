//! Where a caller was when it ended.

use std::collections::BTreeMap;
use std::path::Path;

use crate::call::{Value, WORKERS};
use crate::ledger::{self, Entry, Line};

/// What a ledger says of the workers.
#[derive(Debug, Default)]
pub(crate) struct Past(BTreeMap<u16, Worker>);

/// What it says of one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Worker {
    /// The number of its next value.
    pub(crate) next: u32,
    /// The last call that it sent, if that has no answer, and how often it was sent.
    pub(crate) open: Option<(Value, u32)>,
    /// Calls that were accepted by 202 and have no outcome yet.
    pub(crate) unasked: BTreeMap<Value, String>,
}

impl Past {
    pub(crate) fn read(ledger: &Path) -> anyhow::Result<Self> {
        Ok(Self::of(ledger::read(ledger)?))
    }

    fn of(lines: Vec<Line>) -> Self {
        let mut past = Self((0..WORKERS).map(|worker| (worker, Worker::default())).collect());
        for Line { value, entry, .. } in lines {
            let worker = past.0.entry(value.worker).or_default();
            let is_open = worker.open.as_ref().is_some_and(|(open, _)| *open == value);
            match entry {
                Entry::Sending(times) => {
                    worker.next = worker.next.max(value.number + 1);
                    worker.open = Some((value, times));
                }
                Entry::Accepted(location) => {
                    worker.unasked.insert(value, location);
                    worker.open.take_if(|_| is_open);
                }
                // Not known yet, or not accepted: it is still to be sent again, if it can be.
                Entry::Problem(503 | 504, _) | Entry::Broken(_) | Entry::NotAccepted(_) => {}
                Entry::Outcome(_) | Entry::Problem(..) | Entry::Forgotten(_) => {
                    worker.unasked.remove(&value);
                    worker.open.take_if(|_| is_open);
                }
                Entry::Begin(_) | Entry::End(_) | Entry::Torn(_) => {}
            }
        }
        past
    }

    /// A worker's part.
    pub(crate) fn take(&mut self, worker: u16) -> Worker {
        self.0.remove(&worker).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    #[test]
    fn a_caller_goes_on_where_it_was() {
        let value = |worker, number| Value { caller: 0, worker, number };
        let line = |value, entry| Line { at: Moment(1), value, entry };
        let mut past = Past::of(vec![
            line(value(0, 0), Entry::Sending(1)),
            line(value(0, 0), Entry::Outcome(Ok("d".into()))),
            line(value(0, 1), Entry::Sending(1)),
            line(value(6, 0), Entry::Sending(1)),
            line(value(6, 0), Entry::Broken("x".into())),
            line(value(6, 0), Entry::Sending(2)),
            line(value(13, 0), Entry::Sending(1)),
            line(value(13, 0), Entry::Accepted("there".into())),
            line(value(13, 1), Entry::Sending(1)),
            line(value(13, 1), Entry::Accepted("here".into())),
            line(value(13, 0), Entry::Outcome(Ok("d".into()))),
        ]);
        assert_eq!(past.take(0), Worker { next: 2, open: Some((value(0, 1), 1)), unasked: BTreeMap::new() });
        assert_eq!(past.take(6), Worker { next: 1, open: Some((value(6, 0), 2)), unasked: BTreeMap::new() });
        assert_eq!(past.take(13), Worker { next: 2, open: None, unasked: [(value(13, 1), "here".to_owned())].into() });
        assert_eq!(past.take(3), Worker::default());
    }
}

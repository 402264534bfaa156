//! Everything that is known of each call.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::call::Value;
use crate::clock::Moment;
use crate::history::{BoxId, History, On, Trouble};
use crate::ledger::{Delivery, Entry, Line};
use crate::plan::Kind;

/// A delivery, from its beginning to the app's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) began: Moment,
    /// When it may have been handed over at the earliest: an app that was stopped reads only later what was sent to it meanwhile.
    pub(crate) handed: Moment,
    /// When the app was about to answer; `None`: it never was.
    pub(crate) ended: Option<Moment>,
    /// What arrived was not what was sent.
    pub(crate) torn: bool,
    pub(crate) saw: Delivery,
    /// Which life of which box, as a place in [`History::lives`].
    pub(crate) life: Option<usize>,
}

/// A call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    /// What its caller wrote down, in order.
    pub(crate) told: Vec<(Moment, Entry)>,
    /// In the order in which they began.
    pub(crate) deliveries: Vec<Delivered>,
}

impl Call {
    /// When it was sent first.
    pub(crate) fn sent(&self) -> Option<Moment> {
        self.told.iter().find(|(_, entry)| matches!(entry, Entry::Sending(_))).map(|(at, _)| *at)
    }

    /// When its caller knew that it was accepted: by a 202, by an outcome, or by a 504 that says so.
    pub(crate) fn known_accepted(&self) -> Option<Moment> {
        let says_so = |entry: &Entry| match entry {
            Entry::Accepted(_) | Entry::Outcome(_) | Entry::Forgotten(_) => true,
            Entry::Problem(status, word) => *status == 502 || word == "no-outcome-yet",
            _ => false,
        };
        self.told.iter().find(|(_, entry)| says_so(entry)).map(|(at, _)| *at)
    }

    /// When its caller had the app's answer first.
    pub(crate) fn answered(&self) -> Option<Moment> {
        self.told.iter().find(|(_, entry)| matches!(entry, Entry::Outcome(_))).map(|(at, _)| *at)
    }

    /// When the app had first answered it.
    pub(crate) fn ended(&self) -> Option<Moment> {
        self.deliveries.iter().filter_map(|delivery| delivery.ended).min()
    }

    /// All that the ledgers say about it, in order.
    pub(crate) fn lines(&self, value: Value, history: &History) -> Vec<String> {
        let mut lines: Vec<Line> = self.told.iter().map(|(at, entry)| Line { at: *at, value, entry: entry.clone() }).collect();
        for delivery in &self.deliveries {
            lines.push(Line { at: delivery.began, value, entry: Entry::Begin(delivery.saw.clone()) });
            lines.extend(delivery.ended.map(|at| Line { at, value, entry: Entry::End(delivery.saw.name.clone()) }));
        }
        lines.sort_by_key(|line| line.at);
        let (from, to) = (lines.first().map_or(Moment(0), |line| line.at), lines.last().map_or(Moment(0), |line| line.at));
        let mut lines: Vec<(Moment, String)> = lines.into_iter().map(|line| (line.at, line.to_string())).collect();
        // And what was done meanwhile.
        for text in history.lines() {
            if let Some(at) = text.split(' ').next().and_then(|at| at.parse().ok()).filter(|at| (from..=to).contains(at)) {
                lines.push((at, format!("{text} (history)")));
            }
        }
        lines.sort();
        lines.into_iter().map(|(_, text)| text).collect()
    }
}

/// How long an app that goes on may take to read what was sent to it.
const CATCHES_UP: Duration = Duration::from_secs(1);

fn handed(began: Moment, life: Option<usize>, history: &History) -> Moment {
    let Some(on) = life.and_then(|life| history.lives.get(life)).map(|life| On::Box(life.of)) else { return began };
    let stopped = |trouble: &&Trouble| {
        trouble.kind == Kind::StopCalleeApp && trouble.on == on && trouble.from <= began && trouble.to.is_some_and(|to| to.after(CATCHES_UP) >= began)
    };
    history.troubles.iter().filter(stopped).map(|trouble| trouble.from).min().unwrap_or(began)
}

/// All calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    pub(crate) calls: BTreeMap<Value, Call>,
    /// What the ledgers themselves lack.
    pub(crate) gaps: Vec<String>,
}

impl Evidence {
    /// Puts ledgers together: those of the callers, those of the called.
    pub(crate) fn collect(callers: Vec<Vec<Line>>, callees: Vec<(BoxId, Vec<Line>)>, history: &History) -> Self {
        let mut all = Self::default();
        let lives: HashMap<String, usize> = history.lives.iter().enumerate().map(|(at, life)| (life.name(), at)).collect();
        for line in callers.into_iter().flatten() {
            all.calls.entry(line.value).or_default().told.push((line.at, line.entry));
        }
        for (id, lines) in callees {
            let mut open: HashMap<String, (Value, usize)> = HashMap::new();
            for Line { at, value, entry } in lines {
                let call = all.calls.entry(value).or_default();
                match entry {
                    Entry::Begin(saw) => {
                        let life = saw.name.rsplit_once('.').and_then(|(life, _)| lives.get(life)).copied();
                        open.insert(saw.name.clone(), (value, call.deliveries.len()));
                        call.deliveries.push(Delivered { began: at, handed: handed(at, life, history), ended: None, torn: false, saw, life });
                    }
                    Entry::End(name) | Entry::Torn(name) if !open.contains_key(&name) => {
                        all.gaps.push(format!("{id} has the end of {name}, which never began, at {at}"));
                    }
                    Entry::End(name) => {
                        open.get(&name).and_then(|(_, place)| call.deliveries.get_mut(*place)).into_iter().for_each(|there| there.ended = Some(at))
                    }
                    Entry::Torn(name) => open.get(&name).and_then(|(_, place)| call.deliveries.get_mut(*place)).into_iter().for_each(|there| there.torn = true),
                    other => all.gaps.push(format!("{id} has a line of a caller: {other:?}")),
                }
            }
        }
        for call in all.calls.values_mut() {
            call.deliveries.sort_by_key(|delivery| delivery.began);
        }
        all.find_gaps();
        all
    }

    /// A worker sends its values without a gap, and nobody delivers what was never sent.
    fn find_gaps(&mut self) {
        let mut next: BTreeMap<(u16, u16), u32> = BTreeMap::new();
        for (value, call) in &self.calls {
            if call.sent().is_none() {
                self.gaps.push(format!("{value} was never sent, but delivered"));
            }
            let expected = next.entry((value.caller, value.worker)).or_default();
            if value.number != *expected {
                self.gaps.push(format!("after {}-{}-{expected} comes {value}", value.caller, value.worker));
            }
            *expected = value.number + 1;
        }
    }
}

//! What was done to the system, and what it said: the other half of what the witness judges by.

use std::collections::BTreeMap;
use std::fmt;

use crate::clock::Moment;
use crate::plan::Kind;

/// Which side of a call a box is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Caller,
    Callee,
}

/// A box, whichever its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BoxId {
    pub(crate) role: Role,
    pub(crate) index: u16,
}

impl fmt::Display for BoxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", if self.role == Role::Caller { "shop" } else { "cart" }, self.index)
    }
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By SIGKILL of one half; the other followed.
    Killed(Kind),
    /// In good order.
    Asked,
}

/// From the start of a box to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) of: BoxId,
    pub(crate) number: u32,
    pub(crate) began: Moment,
    /// When it was asked to end, or was killed, and how.
    pub(crate) ended: Option<(Moment, Ending)>,
    /// Since when nothing of it runs.
    pub(crate) gone: Option<Moment>,
}

impl Life {
    /// What the ledger calls it: deliveries are named `LIFE.N`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.of, self.number)
    }
}

/// What a trouble is with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Box(BoxId),
    /// A broker, or the embedded log.
    Log(u16),
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Box(id) => id.fmt(f),
            Self::Log(node) => write!(f, "log-{node}"),
        }
    }
}

/// Something that was done to the system, from its beginning until it was over (a broker: until it took connections again).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    pub(crate) on: On,
    pub(crate) from: Moment,
    /// `None`: to the end of the run.
    pub(crate) to: Option<Moment>,
}

impl Trouble {
    /// Whether it was there at any time from `from` to `to`.
    pub(crate) fn overlaps(&self, from: Moment, to: Moment) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }
}

/// What a process said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// A proxy: it has joined the group of its component.
    Joined,
    /// A proxy: its session had run out, although it lives.
    TakenForDead,
    /// A proxy: it has looked for what the former owner of a partition had begun.
    TookOver,
    /// The log: the session of a member has run out.
    SessionRanOut,
}

/// When it was seen that it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) at: Moment,
    pub(crate) by: On,
    pub(crate) said: Said,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) lives: Vec<Life>,
    pub(crate) troubles: Vec<Trouble>,
    pub(crate) notes: Vec<Note>,
    /// From the first SIGTERM of each storm until all are back.
    pub(crate) storms: Vec<(Moment, Moment)>,
    /// What was done how often.
    pub(crate) done: BTreeMap<Kind, u64>,
    /// What must not have happened and no ledger tells: processes that ended by themselves, panics.
    pub(crate) broken: Vec<String>,
}

impl History {
    /// Writes down that something begins.
    pub(crate) fn begins(&mut self, kind: Kind, on: On) {
        self.troubles.push(Trouble { kind, on, from: Moment::now(), to: None });
    }

    /// Writes down that it is over.
    pub(crate) fn ends(&mut self, kind: Kind, on: On) {
        for trouble in self.troubles.iter_mut().filter(|trouble| (trouble.kind, trouble.on, trouble.to) == (kind, on, None)) {
            trouble.to = Some(Moment::now());
        }
    }

    /// Everything in the order in which it happened, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<(Moment, String)> = Vec::new();
        for life in &self.lives {
            lines.push((life.began, format!("{} starts", life.name())));
            if let Some((at, ending)) = life.ended {
                let how = match ending {
                    Ending::Killed(kind) => kind.to_string(),
                    Ending::Asked => "is asked to end".to_owned(),
                };
                lines.push((at, format!("{} {how}", life.name())));
            }
            lines.extend(life.gone.map(|at| (at, format!("{} is gone", life.name()))));
        }
        for trouble in &self.troubles {
            lines.push((trouble.from, format!("{} {} begins", trouble.on, trouble.kind)));
            lines.extend(trouble.to.map(|at| (at, format!("{} {} is over", trouble.on, trouble.kind))));
        }
        lines.extend(self.notes.iter().map(|note| (note.at, format!("{} said {:?}", note.by, note.said))));
        lines.extend(self.storms.iter().flat_map(|(from, to)| [(*from, "a storm begins".to_owned()), (*to, "the storm is over".to_owned())]));
        lines.sort();
        lines.into_iter().map(|(at, text)| format!("{at} {text}")).collect()
    }
}

//! One partition of the topic of transactions in the hands of its owner. Pure: what is read, asked and told comes in; what is to be appended, called and answered goes out.
//!
//! A partition of a log refuses no append of an owner that does not know yet that it is one no more (a *zombie*). So what counts is decided by reading:
//!
//! 1. A new owner appends a *fence*, reads the partition from its start, and serves only when it has read its fence back. The offset of that is its *epoch*.
//! 2. A record counts only if no fence with a higher offset than its epoch lies before it. So nothing counts that a zombie appends after the fence of its successor.
//! 3. An owner acts on what it has appended only when it knows all that lies before it: when it has read it back, or when it is told where it lies, and has read all before. Before a record that does
//!    not count it reads the fence that makes it so, and is *lost*: it does nothing any more. An acknowledgement that is lost changes nothing: the record is read.
//! 4. Compaction keeps the last record of a key, whether it counts or not. An owner that reads one that does not count therefore writes the present state again (*heals* it). The topic's
//!    `min.compaction.lag.ms` must be longer than a partition is ever without an owner.
//!
//! No clock is needed for that, and no lease. What a zombie may still do is what records before the fence have told it to: calls whose keys are in these records. The log delivers them once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bluebox_core::log::{Offset, Timestamp};
use bluebox_core::{CallId, InstanceId, planted};
use bluebox_observe::trace::Context;

use crate::TransactionId;
use crate::callback::{CallbackKey, Outcome};
use crate::effect::{Answer, Effect, Refusal, RequestId};
use crate::line::Rules;
use crate::record::{Entry, Record, State};
use crate::saga::{RunningSaga, StartSaga};
use crate::transaction::{Start, Transaction};

mod machine;
#[cfg(test)]
mod tests;

use machine::Machine;
pub use machine::{Ask, StateRef};

/// How much the transactions of a partition keep of the outcomes of the calls that ended them, in bytes. Beyond, the oldest lose theirs: they are of use for as long as another box needs to take
/// over a call.
pub const MAX_KEPT_BYTES: usize = 4 << 20;

/// Something to be done by who drives the partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Out {
    /// Append this, again and again until it is read back. (But a fence once: after an error the partition is given up, and taken with a new instance.)
    Append(Entry),
    /// Do this, now.
    Do(Effect),
    /// All was read: it serves.
    Serving,
    /// Another owner has taken over: drop all that is under way. The last there is.
    Lost,
}

/// The partition does not serve: it has not read its fence yet, or it is lost. The caller is told to try again (503): nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this partition is not served here at the moment")]
pub struct NotServing;

/// Why a request has come to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// See [`NotServing`].
    #[error(transparent)]
    NotServing(#[from] NotServing),
    /// There is no such transaction: [`TransactionId::absent`] says whether it is gone.
    #[error("there is no transaction {0}")]
    Absent(TransactionId),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// Until the fence is read back: the last records that count, and the transactions whose last record by offset is another one.
    Reading {
        found: BTreeMap<TransactionId, Record>,
        to_heal: BTreeSet<TransactionId>,
    },
    Serving {
        epoch: Offset,
    },
    Lost,
}

/// One partition in the hands of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Partition {
    rules: Arc<Rules>,
    instance: InstanceId,
    phase: Phase,
    /// The last fence that was read.
    fence: Option<Offset>,
    machines: BTreeMap<TransactionId, Machine>,
    /// Which transactions were begun by which calls: a call that is delivered again has begun the one that it began.
    origins: BTreeMap<CallId, TransactionId>,
    /// The trace of the last request about a transaction that named one.
    traces: BTreeMap<TransactionId, Context>,
    /// Transactions whose tombstones are on their way.
    removing: BTreeSet<TransactionId>,
    timers: BTreeSet<(Timestamp, TransactionId)>,
    wakes: BTreeMap<TransactionId, Timestamp>,
    /// How many bytes each transaction keeps of an outcome; ids are in the order of time.
    kept: BTreeMap<TransactionId, usize>,
    /// All of them together.
    kept_bytes: usize,
}

impl Partition {
    /// Takes a partition: read it from its start. `instance` is new each time that one is taken.
    pub fn new(rules: Arc<Rules>, instance: InstanceId, out: &mut Vec<Out>) -> Self {
        out.push(Out::Append(Entry::Fence(instance)));
        Self {
            rules,
            instance,
            phase: Phase::Reading { found: BTreeMap::new(), to_heal: BTreeSet::new() },
            fence: None,
            machines: BTreeMap::new(),
            origins: BTreeMap::new(),
            traces: BTreeMap::new(),
            removing: BTreeSet::new(),
            timers: BTreeSet::new(),
            wakes: BTreeMap::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
        }
    }

    /// Whether it serves.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// An entry was read: each one, in the order of the log.
    pub fn read(&mut self, now: Timestamp, offset: Offset, entry: Entry, out: &mut Vec<Out>) {
        match entry {
            Entry::Fence(instance) => self.read_fence(now, offset, instance, out),
            Entry::State(record) => self.read_record(now, *record, out),
            Entry::Removed(id) => self.read_tombstone(now, id, out),
        }
    }

    fn read_fence(&mut self, now: Timestamp, offset: Offset, instance: InstanceId, out: &mut Vec<Out>) {
        match &mut self.phase {
            Phase::Reading { found, to_heal } if instance == self.instance => {
                let (found, to_heal) = (std::mem::take(found), std::mem::take(to_heal));
                self.phase = Phase::Serving { epoch: offset };
                out.push(Out::Serving);
                self.recover(now, found, out);
                for id in to_heal {
                    self.heal(now, id, out);
                }
            }
            Phase::Serving { .. } if !planted!(TxnFenceIgnored) => {
                self.phase = Phase::Lost;
                self.machines.clear();
                self.traces.clear();
                self.timers.clear();
                self.wakes.clear();
                self.kept.clear();
                out.push(Out::Lost);
            }
            Phase::Serving { .. } => return,
            _ => {}
        }
        self.fence = Some(offset);
    }

    fn recover(&mut self, now: Timestamp, found: BTreeMap<TransactionId, Record>, out: &mut Vec<Out>) {
        for (id, Record { version, state, trace, .. }) in found {
            self.traces.extend(trace.map(|trace| (id, trace)));
            let mut effects = Vec::new();
            let rules = Arc::clone(&self.rules);
            let (origin, machine) = match state {
                State::Lra(lra) => (lra.origin, Machine::Lra(Box::new(Transaction::recover(rules, now, *lra, version, &mut effects)))),
                State::Saga(saga) => (saga.origin, Machine::Saga(Box::new(RunningSaga::recover(rules, now, *saga, version, &mut effects)))),
            };
            self.take_in(now, id, origin, machine, effects, out);
        }
    }

    fn take_in(&mut self, now: Timestamp, id: TransactionId, origin: Option<CallId>, machine: Machine, effects: Vec<Effect>, out: &mut Vec<Out>) {
        if let Some(origin) = origin {
            self.origins.insert(origin, id);
        }
        self.machines.insert(id, machine);
        self.settle(now, id, effects, out);
    }

    fn read_record(&mut self, now: Timestamp, record: Record, out: &mut Vec<Out>) {
        let id = record.state.id();
        let counts = self.fence.is_none_or(|fence| record.epoch >= fence);
        match &mut self.phase {
            Phase::Reading { found, to_heal } => {
                let last = found.get(&id);
                if (counts && last.is_none_or(|last| record.supersedes(last))) || planted!(TxnZombiesCount) {
                    to_heal.remove(&id);
                    found.insert(id, record);
                } else if last.is_none_or(|last| *last != record) {
                    to_heal.insert(id);
                }
            }
            Phase::Serving { epoch } if record.epoch == *epoch && self.machines.contains_key(&id) => {
                let version = record.version;
                self.with(now, id, out, |machine, now, effects| machine.durable(now, version, effects));
            }
            Phase::Serving { .. } => self.heal(now, id, out),
            Phase::Lost => {}
        }
    }

    fn read_tombstone(&mut self, now: Timestamp, id: TransactionId, out: &mut Vec<Out>) {
        match &mut self.phase {
            // Who removes a transaction has read that it is over, and that is for good: whose tombstone it is does not matter.
            Phase::Reading { found, to_heal } => {
                found.remove(&id);
                to_heal.remove(&id);
            }
            Phase::Serving { .. } if self.removing.remove(&id) => self.drop_machine(id),
            // Of a zombie whose clock is ahead: it is kept for its time.
            Phase::Serving { .. } if self.machines.contains_key(&id) => self.heal(now, id, out),
            _ => {}
        }
    }

    fn drop_machine(&mut self, id: TransactionId) {
        self.traces.remove(&id);
        let origin = match self.machines.remove(&id) {
            Some(Machine::Lra(transaction)) => transaction.lra().origin,
            Some(Machine::Saga(saga)) => saga.saga().origin,
            None => None,
        };
        if let Some(origin) = origin {
            self.origins.remove(&origin);
        }
        if let Some(at) = self.wakes.remove(&id) {
            self.timers.remove(&(at, id));
        }
        self.keeps(id, 0);
    }

    /// A transaction keeps so many bytes of an outcome.
    fn keeps(&mut self, id: TransactionId, bytes: usize) {
        let before = if bytes == 0 { self.kept.remove(&id) } else { self.kept.insert(id, bytes) };
        self.kept_bytes = self.kept_bytes.saturating_sub(before.unwrap_or(0)).saturating_add(bytes);
        while self.kept_bytes > MAX_KEPT_BYTES
            && let Some((oldest, bytes)) = self.kept.pop_first()
        {
            self.kept_bytes = self.kept_bytes.saturating_sub(bytes);
            if let Some(machine) = self.machines.get_mut(&oldest) {
                machine.drop_kept();
            }
        }
    }

    /// The last record of a transaction is not the one that counts: makes it so.
    fn heal(&mut self, now: Timestamp, id: TransactionId, out: &mut Vec<Out>) {
        if planted!(TxnNotHealed) {
            return;
        }
        if self.machines.contains_key(&id) {
            self.with(now, id, out, |machine, _, _| machine.write_again());
        } else {
            out.push(Out::Append(Entry::Removed(id)));
        }
    }

    /// What is asked of a transaction next, or begins it, comes in this trace. That is written down with whatever follows from it.
    pub fn asked_in(&mut self, id: TransactionId, trace: Context) {
        if self.is_serving() {
            self.traces.insert(id, trace);
        }
    }

    /// The trace that a transaction's calls go on in.
    pub fn trace(&self, id: TransactionId) -> Option<Context> {
        self.traces.get(&id).copied()
    }

    /// Begins an LRA. A call that has begun one before has begun that one.
    ///
    /// # Errors
    /// When the partition does not serve.
    pub fn start(&mut self, now: Timestamp, request: RequestId, start: Start, out: &mut Vec<Out>) -> Result<(), NotServing> {
        if self.has_begun(now, request, start.origin, out)? {
            self.traces.remove(&start.id);
            return Ok(());
        }
        let (id, origin, mut effects) = (start.id, start.origin, Vec::new());
        let machine = Transaction::start(Arc::clone(&self.rules), now, request, start, &mut effects);
        self.take_in(now, id, origin, Machine::Lra(Box::new(machine)), effects, out);
        Ok(())
    }

    /// Begins a saga. A call that has begun one before has begun that one.
    ///
    /// # Errors
    /// When the partition does not serve.
    pub fn start_saga(&mut self, now: Timestamp, request: RequestId, start: StartSaga, out: &mut Vec<Out>) -> Result<(), NotServing> {
        if self.has_begun(now, request, start.origin, out)? {
            self.traces.remove(&start.id);
            return Ok(());
        }
        let (id, origin, mut effects) = (start.id, start.origin, Vec::new());
        let machine = RunningSaga::start(Arc::clone(&self.rules), now, request, start, &mut effects);
        self.take_in(now, id, origin, Machine::Saga(Box::new(machine)), effects, out);
        Ok(())
    }

    fn has_begun(&mut self, now: Timestamp, request: RequestId, origin: Option<CallId>, out: &mut Vec<Out>) -> Result<bool, NotServing> {
        if !self.is_serving() {
            return Err(NotServing);
        }
        let begun = origin.and_then(|origin| self.origins.get(&origin).copied()).filter(|_| !planted!(TxnBeginsTwice));
        if let Some(id) = begun {
            self.with(now, id, out, |machine, _, effects| machine.begun(request, effects));
        }
        Ok(begun.is_some())
    }

    /// A request.
    ///
    /// # Errors
    /// When the partition does not serve, or there is no such transaction.
    pub fn request(&mut self, now: Timestamp, request: RequestId, id: TransactionId, ask: Ask, out: &mut Vec<Out>) -> Result<(), NoAnswer> {
        if !self.is_serving() {
            return Err(NotServing.into());
        }
        if !self.machines.contains_key(&id) {
            self.traces.remove(&id);
            return Err(NoAnswer::Absent(id));
        }
        self.with(now, id, out, |machine, now, effects| match (machine, ask) {
            (Machine::Lra(transaction), Ask::Lra(what)) => transaction.request(now, request, what, effects),
            (Machine::Saga(saga), Ask::Saga(what)) => saga.request(now, request, what, effects),
            _ => effects.push(Effect::Answer(request, Answer::Refused(Refusal::OtherKind(id)))),
        });
        Ok(())
    }

    /// A callback has had its outcome.
    pub fn outcome(&mut self, now: Timestamp, key: CallbackKey, outcome: Outcome, out: &mut Vec<Out>) {
        self.with(now, key.transaction, out, |machine, now, effects| match machine {
            Machine::Lra(transaction) => transaction.outcome(now, key, outcome, effects),
            Machine::Saga(saga) => saga.outcome(now, key, outcome, effects),
        });
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Timestamp, out: &mut Vec<Out>) {
        self.tick_those(now, self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect(), out);
    }

    /// The clock was set back: what waits for a moment that was near may wait for long now.
    pub fn clock_went_back(&mut self, now: Timestamp, out: &mut Vec<Out>) {
        self.tick_those(now, self.timers.iter().map(|(_, id)| *id).collect(), out);
    }

    fn tick_those(&mut self, now: Timestamp, which: Vec<TransactionId>, out: &mut Vec<Out>) {
        for id in which {
            self.with(now, id, out, |machine, now, effects| match machine {
                Machine::Lra(transaction) => transaction.tick(now, effects),
                Machine::Saga(saga) => saga.tick(now, effects),
            });
        }
    }

    /// When [`Self::tick`] has something to do, if nothing else happens.
    pub fn wakes_at(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// All transactions, for lists. Not all of what they say need be durable.
    pub fn transactions(&self) -> impl Iterator<Item = StateRef<'_>> {
        self.machines.values().map(|machine| match machine {
            Machine::Lra(transaction) => StateRef::Lra(transaction.lra()),
            Machine::Saga(saga) => StateRef::Saga(saga.saga()),
        })
    }

    fn with(&mut self, now: Timestamp, id: TransactionId, out: &mut Vec<Out>, change: impl FnOnce(&mut Machine, Timestamp, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        change(machine, now, &mut effects);
        self.settle(now, id, effects, out);
    }

    /// What follows from something that has happened to a transaction.
    fn settle(&mut self, now: Timestamp, id: TransactionId, effects: Vec<Effect>, out: &mut Vec<Out>) {
        out.extend(effects.into_iter().map(Out::Do));
        let Phase::Serving { epoch } = self.phase else { return };
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if let Some(version) = machine.take_record() {
            // Whatever tombstone is on its way: this comes after it.
            self.removing.remove(&id);
            out.push(Out::Append(Entry::State(Box::new(Record { epoch, version, state: machine.state(), trace: self.traces.get(&id).copied() }))));
        } else if machine.is_removable(now) && self.removing.insert(id) {
            out.push(Out::Append(Entry::Removed(id)));
        }
        let kept_bytes = machine.kept_bytes();
        let wakes = machine.wakes_at().filter(|_| !self.removing.contains(&id));
        let before = match wakes {
            Some(at) => self.wakes.insert(id, at),
            None => self.wakes.remove(&id),
        };
        if before != wakes {
            if let Some(at) = before {
                self.timers.remove(&(at, id));
            }
            self.timers.extend(wakes.map(|at| (at, id)));
        }
        self.keeps(id, kept_bytes);
    }
}

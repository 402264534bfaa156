//! One partition: reads and writes it, and does what its machines want done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::InstanceId;
use bluebox_core::clock::wall_clock;
use bluebox_core::log::{AppendError, Entry as LogEntry, Log, Offset, Read, Record as LogRecord, Timestamp, TopicPartition};
use bluebox_observe::trace::Context;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::caller::Caller;
use super::counts::Counts;
use super::position::Position;
use super::view::{self, Filter};
use crate::TransactionId;
use crate::callback::{CallbackKey, Outcome};
use crate::effect::{Answer, Effect, RequestId};
use crate::line::Rules;
use crate::partition::{Ask, NoAnswer, Out, Partition};
use crate::record::Entry;
use crate::saga::StartSaga;
use crate::transaction::Start;

/// The pause before a record is appended again, and before the log is asked again.
const APPEND_AGAIN: Duration = Duration::from_millis(100);
/// The longest time without a look at the clock: it can be set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is counted what there is.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How many events are taken in at once, before what follows from them is done.
const BATCH: usize = 256;

/// Where the answer to a request goes. Dropped without one: the partition is not served here any more.
pub(super) type Reply = oneshot::Sender<Result<Answer, NoAnswer>>;

/// What is asked of a partition; with the trace that the request came in.
pub(super) enum Command {
    /// To begin an LRA.
    Start(Start, Option<Context>, Reply),
    /// To begin a saga.
    StartSaga(StartSaga, Option<Context>, Reply),
    /// Something of a transaction.
    Ask(TransactionId, Ask, Option<Context>, Reply),
    /// To show those that pass a filter.
    Show(Filter, oneshot::Sender<Vec<Value>>),
    /// To try at once what waits to be tried again.
    RetryAll,
}

impl Command {
    /// The transaction that it is about, and the trace that it came in.
    fn trace(&self) -> Option<(TransactionId, Context)> {
        match self {
            Self::Start(Start { id, .. }, trace, _) | Self::StartSaga(StartSaga { id, .. }, trace, _) | Self::Ask(id, _, trace, _) => {
                trace.map(|trace| (*id, trace))
            }
            Self::Show(..) | Self::RetryAll => None,
        }
    }
}

/// Why an owner has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Another one has taken over, or what was read makes no sense: it is taken again, if it is still this process's.
    Again,
    /// The log's client was closed, or nobody can ask any more.
    Closed,
}

/// What an owner needs.
pub(super) struct Owning {
    pub(super) log: Arc<dyn Log>,
    pub(super) place: TopicPartition,
    pub(super) rules: Arc<Rules>,
    pub(super) caller: Arc<Caller>,
    pub(super) counts: Counts,
}

enum Event {
    Outcome(CallbackKey, Outcome),
    /// This append was acknowledged: it lies there.
    Appended(Bytes, u64, Offset),
    /// This append has failed: it is made again, if it is still wanted.
    NotAppended(Bytes, u64),
    /// It is not known whether the fence was appended.
    NotFenced,
}

/// A record that lies in the log, and was not read back yet.
struct Acknowledged {
    key: Bytes,
    number: u64,
    entry: Entry,
}

/// A record of which it is not known yet where it lies, or what lies before it.
struct Unread {
    number: u64,
    entry: Entry,
    record: LogRecord,
}

struct Owner<'a> {
    owning: &'a Owning,
    serving: &'a watch::Sender<bool>,
    partition: Partition,
    out: Vec<Out>,
    asked: HashMap<RequestId, Reply>,
    last_request: u64,
    unread: HashMap<Bytes, Unread>,
    position: Position<Acknowledged>,
    last_append: u64,
    /// Polled by the owner itself: each acknowledgement wakes it, and nobody else before it.
    appends: FuturesUnordered<BoxFuture<'static, Event>>,
    /// Tasks of their own: what a callback takes must not hold up the owner.
    callbacks: JoinSet<Event>,
}

/// Owns a partition until another one has taken over. Dropping the future gives it up: nothing of it goes on.
pub(super) async fn run(owning: &Owning, commands: &mut mpsc::Receiver<Command>, serving: &watch::Sender<bool>) -> End {
    let mut out = Vec::new();
    let partition = Partition::new(Arc::clone(&owning.rules), InstanceId::random(), &mut out);
    let mut owner = Owner {
        owning,
        serving,
        partition,
        out,
        asked: HashMap::new(),
        last_request: 0,
        unread: HashMap::new(),
        position: Position::new(Offset::new(0)),
        last_append: 0,
        appends: FuturesUnordered::new(),
        callbacks: JoinSet::new(),
    };
    let end = owner.run(commands).await;
    serving.send_replace(false);
    owning.counts.forget(owning.place.partition);
    end
}

impl Owner<'_> {
    async fn run(&mut self, commands: &mut mpsc::Receiver<Command>) -> End {
        let start = loop {
            match self.owning.log.bounds(&self.owning.place).await {
                Ok(bounds) => break bounds.start,
                Err(problem) => debug!(partition = %self.owning.place, %problem, "the partition can't be read yet"),
            }
            tokio::time::sleep(APPEND_AGAIN).await;
        };
        self.position.skip_to(start);
        let mut reader = self.owning.log.read_late(&self.owning.place, start);
        let began = tokio::time::Instant::now();
        let mut last = wall_clock();
        let mut count = tokio::time::interval(COUNT_EVERY);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Some(end) = self.perform(began.elapsed()) {
                return end;
            }
            let pause = self.partition.wakes_at().map_or(LOOK_EVERY, |at| at.since(wall_clock()).min(LOOK_EVERY));
            tokio::select! {
                read = reader.next() => match read {
                    Some(Read::Entries(entries)) => for entry in entries {
                        if let Some(end) = self.read(entry) {
                            return end;
                        }
                    },
                    Some(Read::Truncated { start, .. }) => {
                        warn!(partition = %self.owning.place, %start, "the start of the partition was removed while it was read");
                        self.position.skip_to(start);
                        self.take_acknowledged();
                    }
                    None => return End::Closed,
                },
                command = commands.recv() => match command {
                    Some(command) => self.asked(command),
                    None => return End::Closed,
                },
                Some(event) = self.appends.next() => if let Some(end) = self.happened(event) {
                    return end;
                },
                Some(Ok(event)) = self.callbacks.join_next() => if let Some(end) = self.happened(event) {
                    return end;
                },
                _ = count.tick() => self.owning.counts.owned(self.owning.place.partition, &self.partition),
                () = tokio::time::sleep(pause) => {}
            }
            for _ in 0..BATCH {
                if let Ok(command) = commands.try_recv() {
                    self.asked(command);
                } else if let Some(event) = self.appends.next().now_or_never().flatten().or_else(|| self.callbacks.try_join_next()?.ok()) {
                    if let Some(end) = self.happened(event) {
                        return end;
                    }
                } else {
                    break;
                }
            }
            let now = wall_clock();
            if now < std::mem::replace(&mut last, now) {
                info!(partition = %self.owning.place, "the clock was set back");
                self.partition.clock_went_back(now, &mut self.out);
            }
            self.partition.tick(now, &mut self.out);
        }
    }

    /// One record of the log.
    fn read(&mut self, entry: LogEntry) -> Option<End> {
        let (offset, key) = (entry.offset, entry.record.key.clone());
        if !self.position.read(offset) {
            return None;
        }
        let entry = match Entry::decode(entry.record) {
            Ok(entry) => entry,
            Err(problem) => {
                // It may be the last state of a transaction, written by a later version: serving without it could do what it says was done, or not do what it says is to be done.
                error!(partition = %self.owning.place, %offset, %problem, "a record of the transactions can't be read; the partition is not served");
                return Some(End::Again);
            }
        };
        let is_back = |unread: &Unread| match (&unread.entry, &entry) {
            (Entry::State(mine), Entry::State(read)) => (mine.epoch, mine.version) == (read.epoch, read.version),
            (mine, read) => mine == read,
        };
        if self.unread.get(&key).is_some_and(is_back) {
            self.unread.remove(&key);
        }
        self.partition.read(wall_clock(), offset, entry, &mut self.out);
        self.take_acknowledged();
        None
    }

    /// An append was acknowledged.
    fn appended(&mut self, key: Bytes, number: u64, offset: Offset) {
        if let Some(unread) = self.unread.get(&key).filter(|unread| unread.number == number) {
            self.position.acknowledged(offset, Acknowledged { entry: unread.entry.clone(), key, number });
            self.take_acknowledged();
        }
    }

    /// What is known to come next because it is this owner's.
    fn take_acknowledged(&mut self) {
        while let Some((offset, Acknowledged { key, number, entry })) = self.position.pop() {
            if self.unread.get(&key).is_some_and(|unread| unread.number == number) {
                self.unread.remove(&key);
            }
            self.partition.read(wall_clock(), offset, entry, &mut self.out);
        }
    }

    fn asked(&mut self, command: Command) {
        let now = wall_clock();
        let request = RequestId(self.last_request);
        self.last_request += 1;
        if let Some((id, trace)) = command.trace() {
            self.partition.asked_in(id, trace);
        }
        let (refused, reply) = match command {
            Command::Start(start, _, reply) => (self.partition.start(now, request, start, &mut self.out).map_err(NoAnswer::from), reply),
            Command::StartSaga(start, _, reply) => (self.partition.start_saga(now, request, start, &mut self.out).map_err(NoAnswer::from), reply),
            Command::Ask(id, ask, _, reply) => (self.partition.request(now, request, id, ask, &mut self.out), reply),
            // Who has not read all of it must not show a part for the whole: the reply is dropped.
            Command::Show(..) if !self.partition.is_serving() => return,
            Command::Show(filter, reply) => {
                let of_call = |key| self.owning.caller.of_under_way(key);
                let shown = self.partition.transactions().filter(|state| filter.passes(state, now)).map(|state| view::transaction(state, &of_call)).collect();
                // Who asked may have gone.
                let _ = reply.send(shown);
                return;
            }
            Command::RetryAll => return self.retry_all(now, request),
        };
        match refused {
            Ok(()) => drop(self.asked.insert(request, reply)),
            Err(why) => drop(reply.send(Err(why))),
        }
    }

    fn retry_all(&mut self, now: Timestamp, request: RequestId) {
        let all: Vec<_> = self.partition.transactions().map(view::id_of).collect();
        for (id, retry) in all {
            // Those that have nothing to be tried are as they were; nobody waits for an answer.
            let _ = self.partition.request(now, request, id, retry, &mut self.out);
        }
    }

    fn happened(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Outcome(key, outcome) => self.partition.outcome(wall_clock(), key, outcome, &mut self.out),
            Event::Appended(key, number, offset) => self.appended(key, number, offset),
            Event::NotAppended(key, number) => {
                if let Some(unread) = self.unread.get(&key).filter(|unread| unread.number == number) {
                    let record = unread.record.clone();
                    self.send(key, number, record, false);
                }
            }
            Event::NotFenced => return Some(End::Again),
        }
        None
    }

    /// Does what is to be done.
    fn perform(&mut self, since: Duration) -> Option<End> {
        for out in std::mem::take(&mut self.out) {
            match out {
                Out::Append(entry) => self.append(entry),
                Out::Do(effect) => self.effect(effect),
                Out::Serving => {
                    let transactions = self.partition.transactions().count();
                    info!(partition = %self.owning.place, transactions, took = ?since, "a partition of transactions is served here");
                    self.serving.send_replace(true);
                    self.owning.counts.owned(self.owning.place.partition, &self.partition);
                }
                Out::Lost => {
                    info!(partition = %self.owning.place, "another owner has taken over this partition of transactions");
                    return Some(End::Again);
                }
            }
        }
        None
    }

    fn append(&mut self, entry: Entry) {
        self.last_append += 1;
        let (number, record) = (self.last_append, entry.encode());
        let (key, is_fence) = (record.key.clone(), matches!(entry, Entry::Fence(_)));
        self.unread.insert(key.clone(), Unread { number, entry, record: record.clone() });
        self.send(key, number, record, is_fence);
    }

    fn send(&mut self, key: Bytes, number: u64, record: LogRecord, is_fence: bool) {
        let (append, place) = (self.owning.log.append(&self.owning.place, record), self.owning.place.clone());
        self.appends.push(Box::pin(async move {
            let problem = match append.await {
                Ok(appended) => return Event::Appended(key, number, appended.offset),
                Err(problem) => problem,
            };
            if matches!(problem, AppendError::TooLarge { .. }) {
                error!(partition = %place, %problem, "a transaction does not fit into a record; it stands still. Raise max.message.bytes of the topic");
            } else {
                warn!(partition = %place, %problem, "a record of the transactions was not appended; trying again");
            }
            tokio::time::sleep(APPEND_AGAIN).await;
            if is_fence { Event::NotFenced } else { Event::NotAppended(key, number) }
        }));
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Answer(request, answer) => {
                if let Some(reply) = self.asked.remove(&request) {
                    // Who asked may have gone.
                    let _ = reply.send(Ok(answer));
                }
            }
            Effect::Call(callback) => {
                let caller = Arc::clone(&self.owning.caller);
                let trace = self.partition.trace(callback.key.transaction);
                self.callbacks.spawn(async move { Event::Outcome(callback.key, caller.call(&callback, trace).await) });
            }
            // The call ends by its own deadline, or when its app answers: a call with a key can't be cancelled yet.
            Effect::Hurry(key) => debug!(callback = %key, "the outcome of a call is waited for before its step is compensated"),
            Effect::Changed(id, status) => {
                info!(transaction = %id, %status, "a transaction is in another state");
                self.owning.counts.changed(status, wall_clock().since(id.created()));
            }
        }
    }
}

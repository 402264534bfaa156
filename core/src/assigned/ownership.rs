//! Owns one partition: the task that claims it, commits, and hears of newer claims; and its owner's side of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::claimant::{Claimant, Heard};
use super::feed::Feed;
use crate::InstanceId;
use crate::clock::Moment;
use crate::log::{
    AppendError, Appended, Assignment, Committed, Entry, GroupControl, GroupEvent, Log, LogError, Membership, Offset, Pending, Read, Reader, Record,
    TopicPartition,
};
use crate::wire::FrontierEntry;

/// The pause before the log is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// What an owner's side and the task share.
pub(super) struct Ownership {
    log: Arc<dyn Log>,
    of: TopicPartition,
    state: Mutex<State>,
}

struct State {
    /// `None` once it was left or lost.
    events: Option<mpsc::UnboundedSender<GroupEvent>>,
    /// At most one is on its way at a time, or the few that its user asks for. `None` as above: the task ends.
    asks: Option<mpsc::UnboundedSender<Ask>>,
    /// `None` before the claim.
    commits: Option<BTreeMap<TopicPartition, Committed>>,
    feed: Option<Feed>,
    last_run: u64,
}

/// A commit that is asked for.
struct Ask {
    commits: Vec<(TopicPartition, Committed)>,
    sent: Moment,
    answer: oneshot::Sender<Result<Moment, LogError>>,
}

impl Ownership {
    /// Begins to claim `of` by way of `frontier`.
    pub(super) fn claim(log: Arc<dyn Log>, frontier: TopicPartition, of: TopicPartition) -> (Arc<Self>, Membership) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (asks, asked) = mpsc::unbounded_channel();
        let state = State { events: Some(events.clone()), asks: Some(asks), commits: None, feed: None, last_run: 0 };
        let ownership = Arc::new(Self { log: Arc::clone(&log), of, state: Mutex::new(state) });
        let keeper = Keeper {
            ownership: Arc::clone(&ownership),
            log,
            frontier,
            claimant: Claimant::default(),
            open: BTreeMap::new(),
            appends: JoinSet::new(),
            claiming: JoinSet::new(),
        };
        tokio::spawn(async move {
            let keep = keeper.keep(asked);
            tokio::select! {
                // Dropped by its user.
                () = events.closed() => {}
                () = keep => {}
            }
        });
        let control: Arc<dyn GroupControl> = Arc::new(Control(Arc::clone(&ownership)));
        (ownership, Membership::new(receiver, control))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was committed for these; `None` before the claim.
    pub(super) fn committed(&self, of: &[TopicPartition]) -> Option<Vec<Option<Committed>>> {
        let state = self.state();
        let commits = state.commits.as_ref()?;
        Some(of.iter().map(|partition| commits.get(partition).cloned()).collect())
    }

    fn tell(&self, event: GroupEvent) {
        self.state().send(event);
    }

    fn claimed(&self, commits: BTreeMap<TopicPartition, Committed>) {
        let committed = commits.get(&self.of).cloned();
        let mut state = self.state();
        state.commits = Some(commits);
        // Who was there before is not known to be gone.
        state.send(GroupEvent::Assigned(vec![Assignment { partition: self.of.clone(), committed, former_is_gone: false }]));
    }

    /// It was lost before its user could be told that it had it. Both are said, and nothing of what was committed.
    fn never_owned(&self) {
        let assignment = Assignment { partition: self.of.clone(), committed: None, former_is_gone: false };
        let mut state = self.state();
        state.send(GroupEvent::Assigned(vec![assignment]));
        drop(state);
        self.lost();
    }

    fn lost(&self) {
        let mut state = self.state();
        state.send(GroupEvent::Lost(vec![self.of.clone()]));
        state.end();
    }

    /// Hands over as many records as are wanted. False: the feed has ended.
    pub(super) fn hand_over(&self, run: u64, waiting: &mut VecDeque<Entry>) -> bool {
        let mut state = self.state();
        let Some(feed) = state.feed.as_mut().filter(|feed| feed.run == run) else { return false };
        let wanted = *feed.wanted.borrow();
        let count = waiting.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
        feed.wanted.send_replace(wanted.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX)));
        let entries: Vec<_> = waiting.drain(..count).collect();
        if !entries.is_empty() {
            state.send(GroupEvent::Records { partition: self.of.clone(), entries });
        }
        true
    }

    pub(super) fn truncated(&self, run: u64, wanted: Offset, start: Offset) {
        let mut state = self.state();
        if state.feed.as_ref().is_some_and(|feed| feed.run == run) {
            state.send(GroupEvent::Truncated { partition: self.of.clone(), wanted, start });
        }
    }
}

impl State {
    fn send(&mut self, event: GroupEvent) {
        if let Some(events) = &self.events {
            // When the membership was dropped, the task ends.
            let _ = events.send(event);
        }
    }

    fn end(&mut self) {
        (self.events, self.asks, self.feed) = (None, None, None);
    }
}

/// The owner's side.
struct Control(Arc<Ownership>);

impl Control {
    fn fenced(&self, why: &str) -> Pending<Moment> {
        Pending::ready(Err(LogError::Fenced(format!("{}: {why}", self.0.of))))
    }
}

impl GroupControl for Control {
    fn start(&self, partition: &TopicPartition, from: Offset) {
        let mut state = self.0.state();
        if *partition != self.0.of || state.commits.is_none() || state.events.is_none() {
            return;
        }
        state.last_run += 1;
        let reader = self.0.log.read(partition, from);
        state.feed = Some(Feed::start(state.last_run, reader, Arc::downgrade(&self.0)));
    }

    fn want(&self, partition: &TopicPartition, records: u32) {
        if let Some(feed) = self.0.state().feed.as_ref().filter(|_| *partition == self.0.of) {
            feed.wanted.send_replace(records);
        }
    }

    fn commit(&self, commits: Vec<(TopicPartition, Committed)>) -> Pending<Moment> {
        if commits.iter().any(|(of, _)| of.topic == self.0.of.topic && *of != self.0.of) {
            return self.fenced("the only partition that is its own");
        }
        let state = self.0.state();
        let Some(asks) = state.asks.as_ref().filter(|_| state.commits.is_some()) else { return self.fenced("it is not claimed, or was given up or lost") };
        let (answer, pending) = Pending::new();
        match asks.send(Ask { commits, sent: Moment::now(), answer }) {
            Ok(()) => pending,
            Err(_) => self.fenced("it was given up or lost"),
        }
    }

    fn release(&self, partitions: Vec<TopicPartition>) {
        if partitions.contains(&self.0.of) {
            let mut state = self.0.state();
            (state.feed, state.asks) = (None, None);
        }
    }

    /// Nothing need be said to the log: the next claimant finds the last commit.
    fn leave(&self) -> Pending<()> {
        self.0.state().end();
        Pending::ready(Ok(()))
    }
}

/// A commit that is on its way.
struct Open {
    sent: Moment,
    answer: oneshot::Sender<Result<Moment, LogError>>,
    /// Where it was appended, once that is known.
    at: Option<Offset>,
}

/// The task.
struct Keeper {
    ownership: Arc<Ownership>,
    log: Arc<dyn Log>,
    frontier: TopicPartition,
    claimant: Claimant,
    open: BTreeMap<u64, Open>,
    appends: JoinSet<(u64, Result<Appended, AppendError>)>,
    claiming: JoinSet<(FrontierEntry, Result<Appended, AppendError>)>,
}

impl Keeper {
    /// Until the partition is given up or lost.
    async fn keep(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        let mut reader = self.read_all().await;
        let claim = self.claimant.claim(InstanceId::random());
        self.append_claim(claim, Duration::ZERO);
        loop {
            tokio::select! {
                biased;
                read = reader.next() => match read {
                    Some(read) => if !self.takes(read) { break },
                    // The log's client was closed.
                    None => break,
                },
                Some(Ok((claim, appended))) = self.claiming.join_next() => self.claim_appended(claim, appended),
                Some(Ok((sequence, appended))) = self.appends.join_next() => self.appended(sequence, appended),
                ask = asked.recv() => match ask {
                    Some(ask) => self.commit(ask),
                    None => break,
                },
            }
            self.answer_what_was_passed();
        }
        let gone = || LogError::Fenced(format!("{}: it was given up, or lost to a newer claim", self.ownership.of));
        for open in std::mem::take(&mut self.open).into_values() {
            drop(open.answer.send(Err(gone())));
        }
        asked.close();
        while let Some(ask) = asked.recv().await {
            drop(ask.answer.send(Err(gone())));
        }
    }

    /// A reader from the start on.
    async fn read_all(&self) -> Reader {
        let mut said = None;
        loop {
            match self.log.bounds(&self.frontier).await {
                Ok(bounds) => return self.log.read(&self.frontier, bounds.start),
                Err(LogError::Unavailable(_)) => {}
                Err(error) => {
                    if said.as_ref() != Some(&error) {
                        self.ownership.tell(GroupEvent::Trouble(error.to_string()));
                        said = Some(error);
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn append_claim(&mut self, claim: FrontierEntry, pause: Duration) {
        let (log, to) = (Arc::clone(&self.log), self.frontier.clone());
        self.claiming.spawn(async move {
            tokio::time::sleep(pause).await;
            let appended = log.append(&to, claim.record()).await;
            (claim, appended)
        });
    }

    /// A claim was appended, or another try is needed.
    fn claim_appended(&mut self, claim: FrontierEntry, appended: Result<Appended, AppendError>) {
        let Err(error) = appended else { return };
        if self.claimant.owns() {
            return;
        }
        tracing::debug!(partition = %self.frontier, %error, "a claim was not appended and is tried again");
        let again = if matches!(error, AppendError::NotPersisted(_)) { claim } else { self.claimant.claim(InstanceId::random()) };
        self.append_claim(again, AGAIN);
    }

    /// False: the partition is lost.
    fn takes(&mut self, read: Read) -> bool {
        let entries = match read {
            Read::Entries(entries) => entries,
            // The next record tells.
            Read::Truncated { .. } => return true,
        };
        let mut claimed = false;
        for Entry { offset, record, .. } in entries {
            let entry = match record.value.clone().map(FrontierEntry::decode) {
                None => None,
                Some(Ok(entry)) => Some(entry),
                Some(Err(error)) => {
                    tracing::error!(partition = %self.frontier, %offset, %error, "a record of the frontier could not be read; it was skipped");
                    None
                }
            };
            match self.claimant.read(offset, &record.key, entry) {
                None => {}
                Some(Heard::Claimed) => {
                    tracing::info!(partition = %self.ownership.of, epoch = %offset, "claimed a partition");
                    claimed = true;
                }
                Some(Heard::Committed(sequence)) => self.committed(sequence),
                Some(Heard::Superseded) => {
                    tracing::warn!(partition = %self.ownership.of, %offset, "another process has claimed a partition that this one had");
                    if !claimed {
                        self.ownership.lost();
                    } else {
                        self.ownership.never_owned();
                    }
                    return false;
                }
            }
        }
        // Not before all that came with it is read: a newer claim may be there already, and what lay before ours may have been removed for that one's sake.
        if claimed {
            self.ownership.claimed(self.claimant.commits().clone());
        }
        true
    }

    fn committed(&mut self, sequence: u64) {
        if let Some(open) = self.open.remove(&sequence) {
            drop(open.answer.send(Ok(open.sent)));
        }
        for key in self.claimant.needless() {
            // One that gets lost is removed by the next owner.
            drop(self.log.append(&self.frontier, Record { key, value: None }));
        }
    }

    fn commit(&mut self, ask: Ask) {
        let Some((sequence, entry)) = self.claimant.commit(ask.commits) else {
            let fenced = LogError::Fenced(format!("{}: it is not claimed, or was lost", self.ownership.of));
            return drop(ask.answer.send(Err(fenced)));
        };
        self.open.insert(sequence, Open { sent: ask.sent, answer: ask.answer, at: None });
        // Appended here, so that commits are stored in the order in which they were asked for.
        let append = self.log.append(&self.frontier, entry.record());
        self.appends.spawn(async move { (sequence, append.await) });
    }

    fn appended(&mut self, sequence: u64, appended: Result<Appended, AppendError>) {
        match appended {
            Ok(appended) => {
                if let Some(open) = self.open.get_mut(&sequence) {
                    open.at = Some(appended.offset);
                }
            }
            Err(error) => {
                if let Some(open) = self.open.remove(&sequence) {
                    drop(open.answer.send(Err(LogError::Unavailable(error.to_string()))));
                }
            }
        }
    }

    /// A commit that was stored and passed, and has not been heard of, has no proof.
    fn answer_what_was_passed(&mut self) {
        let next = self.claimant.next();
        for (_, open) in self.open.extract_if(.., |_, open| open.at.is_some_and(|at| at < next)) {
            let why = "the commit was read back too late to prove anything: the log has been compacted meanwhile";
            drop(open.answer.send(Err(LogError::Unavailable(why.to_owned()))));
        }
    }
}

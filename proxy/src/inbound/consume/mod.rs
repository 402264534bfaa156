//! The task that owns a component's partitions: it feeds what happens to the [`Owner`] and does what that wants to be done.
//!
//! All state is in the owner; what takes time runs in tasks of its own, whose ends come back here as [`Done`]. Each carries the *tenure* it belongs to: a partition that was lost and
//! came back is another tenure, and what ends late for the former one is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::call::Digest;
use bluebox_core::clock::{Moment, wall_clock};
use bluebox_core::log::{Appended, Assignment, Committed, Entry, GroupEvent, GroupSpec, Log, LogError, Membership, Offset, Record, Timestamp, TopicPartition};
use bluebox_core::topics::Topics;
use bluebox_core::wire::{CallStatus, CallsEntry, ControlEntry, RecordedEntry, Reply};
use bluebox_core::{CallId, InstanceId, fail_point, fail_point_async};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Inbound, Served};
use crate::inbound::deliver::App;
use crate::inbound::ending::{Endings, Indexed, Places};
use crate::inbound::owner::{Act, Owner, Shared};
use crate::inbound::partition::{Arrival, Cancel, DeliveryEnd, Findings, Inheritance, Rules, Suspect};
use crate::inbound::recorded::Recorded;
use crate::inbound::{Superseded, Tenures, search};
use crate::spans::Spans;
use crate::transaction::Transactions;

mod perform;

/// An app that has not accepted a connection for so long has its partitions handed to others.
const APP_AWAY: Duration = Duration::from_secs(5);

/// How often an app that is away is tried.
const APP_PROBE: Duration = Duration::from_millis(100);

/// How often what is owned is counted, and what has had its time is forgotten.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Events that are taken in before acting on them.
const BATCH: usize = 256;

/// What serving a component needs.
#[derive(Clone)]
pub struct Service {
    /// The log.
    pub log: Arc<dyn Log>,
    /// This process.
    pub instance: InstanceId,
    /// The component.
    pub served: Served,
    /// Its topics.
    pub topics: Topics,
    /// The limits.
    pub limits: Inbound,
    /// How long recorded calls are remembered.
    pub keep_recorded: Duration,
    /// The app.
    pub app: App,
    /// What its paths have to do with transactions.
    pub transactions: Option<Transactions>,
    /// Writes ends of calls.
    pub endings: Endings,
    /// Of its searches for outcomes.
    pub searches: Arc<Semaphore>,
    /// What is told about it all.
    pub observe: super::observe::Observe,
    /// Makes spans of attempts.
    pub spans: Spans,
    /// The drain is over at once.
    pub cut: CancellationToken,
    /// Cancelled when the app hangs.
    pub hung: CancellationToken,
    /// Which partitions this process has.
    pub tenures: watch::Sender<Tenures>,
}

/// Why a membership ended.
enum Left {
    Stopped,
    AppAway,
    /// Another process is this ordinal now.
    Superseded,
    AppHangs,
}

/// Serves a component until `stop`: joins its group when the app accepts connections, and leaves it when the app has been away for too long.
///
/// For a stateful component it claims its ordinal instead. It keeps that when the app is away: nobody else could take its calls. One that hangs has it left, and claimed again
/// when it answers.
///
/// # Errors
/// When another process has claimed the ordinal.
pub async fn serve(service: Service, stop: CancellationToken) -> Result<(), Superseded> {
    let Some(membership) = join(&service, &stop).await else { return Ok(()) };
    // One for all memberships: what an earlier one has begun to record, a later one must know of.
    let mut consumer = Consumer::new(&service, membership);
    loop {
        match consumer.run(&stop).await {
            Left::Stopped => return Ok(()),
            Left::Superseded => return Err(Superseded { name: service.served.name.clone(), ordinal: service.served.ordinal.unwrap_or_default() }),
            Left::AppHangs => {
                let attempts = service.app.unanswered();
                tracing::error!(
                    component = %service.served.name, app = %service.served.app, attempts,
                    "the app hangs: it left attempts without an answer, and answers nothing else; it gets no more calls until it answers something"
                );
                service.observe.hangs(true);
                service.hung.cancel();
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = wait_until_it_answers(&service.app) => {}
                }
                tracing::info!(component = %service.served.name, app = %service.served.app, "the app answers again");
                service.observe.hangs(false);
                service.app.is_alive();
            }
            Left::AppAway => {
                tracing::warn!(component = %service.served.name, app = %service.served.app, "the app does not accept connections; its calls go to other boxes until it does");
            }
        }
        let Some(membership) = join(&service, &stop).await else { return Ok(()) };
        consumer.begin_again(membership);
    }
}

/// Joins the group once the app accepts connections; `None` when told to stop before.
async fn join(service: &Service, stop: &CancellationToken) -> Option<Membership> {
    let there = wait_for(&service.app);
    tokio::select! {
        () = stop.cancelled() => return None,
        () = there => {}
    }
    match service.served.ordinal {
        Some(ordinal) => {
            tracing::info!(component = %service.served.name, ordinal, app = %service.served.app, "the app accepts connections; claims its ordinal")
        }
        None => tracing::info!(component = %service.served.name, app = %service.served.app, "the app accepts connections; joined the group"),
    }
    Some(service.log.join(GroupSpec {
        name: service.topics.calls.as_str().to_owned(),
        topics: vec![service.topics.calls.clone()],
        session_timeout: service.limits.session_timeout,
        release_timeout: service.limits.drain + Duration::from_secs(15),
        lease: service.limits.lease,
    }))
}

async fn wait_for(app: &App) {
    while !app.accepts().await {
        tokio::time::sleep(APP_PROBE).await;
    }
}

async fn wait_until_it_answers(app: &App) {
    while !app.answers().await {
        tokio::time::sleep(APP_PROBE).await;
    }
}

/// The end of something that took time, for the tenure that it belongs to.
struct Done {
    number: u32,
    tenure: u64,
    what: What,
}

enum What {
    /// What the former owner committed for the calls and for the parked calls, and whether it is certainly gone.
    Assigned(Option<Committed>, Option<Committed>, bool),
    Fenced(Appended),
    Loaded(Inheritance),
    IndexLoaded(Vec<(Timestamp, RecordedEntry)>),
    Searched(Vec<Suspect>, Findings),
    Delivered(Offset, DeliveryEnd),
    Recorded(Offset, Option<(CallId, Digest, Indexed)>),
    Parked(Offset, Option<Offset>),
    /// The next record of the control partition; `None` for one that can't be read.
    Control(Offset, Option<ControlEntry>),
}

/// One tenure of a partition.
struct Tenure {
    id: u64,
    since: Moment,
    places: Places,
    /// Ends everything that was started for it, but for ends of calls that are being made durable.
    stop: CancellationToken,
    deliveries: HashMap<Offset, AbortHandle>,
    /// The newest time that was read from it.
    newest: Timestamp,
}

struct Consumer<'s> {
    service: &'s Service,
    membership: Membership,
    owner: Owner,
    tenures: HashMap<u32, Tenure>,
    last_tenure: u64,
    done: mpsc::UnboundedReceiver<Done>,
    /// Bounded by what is under way: deliveries by the concurrency, the rest by the calls that are held.
    tell: mpsc::UnboundedSender<Done>,
    committed: mpsc::UnboundedReceiver<Result<Moment, LogError>>,
    tell_committed: mpsc::UnboundedSender<Result<Moment, LogError>>,
    app_back: mpsc::Receiver<()>,
    tell_app_back: mpsc::Sender<()>,
    app_away_since: Option<Moment>,
    answers: mpsc::Receiver<bool>,
    tell_answers: mpsc::Sender<bool>,
    /// Whether it is being found out if the app answers anything.
    asking: bool,
    stopping: Option<Left>,
    cut: bool,
    next_look: Moment,
}

impl<'s> Consumer<'s> {
    fn new(service: &'s Service, membership: Membership) -> Self {
        let (tell, done) = mpsc::unbounded_channel();
        let (tell_committed, committed) = mpsc::unbounded_channel();
        let (tell_app_back, app_back) = mpsc::channel(1);
        let (tell_answers, answers) = mpsc::channel(1);
        let limits = &service.limits;
        let rules = Rules {
            max_attempts: limits.max_attempts,
            max_crashes: limits.max_crashes,
            first_backoff: limits.first_backoff,
            max_backoff: limits.max_backoff,
            drain: limits.drain,
            lease: limits.lease,
        };
        let shared = Shared { concurrency: limits.concurrency.max(1), body_memory_bytes: limits.body_memory_bytes, rules };
        let index = Recorded::new(limits.max_recorded, service.keep_recorded);
        let now = Moment::now();
        Self {
            service,
            membership,
            owner: Owner::new(now, shared, index),
            tenures: HashMap::new(),
            last_tenure: 0,
            done,
            tell,
            committed,
            tell_committed,
            app_back,
            tell_app_back,
            app_away_since: None,
            answers,
            tell_answers,
            asking: false,
            stopping: None,
            cut: false,
            next_look: now,
        }
    }

    /// Goes on as another member: the former membership was left in good order.
    fn begin_again(&mut self, membership: Membership) {
        self.membership = membership;
        self.stopping = None;
        self.app_is_back();
    }

    async fn run(&mut self, stop: &CancellationToken) -> Left {
        let mut acts = Vec::new();
        loop {
            let now = Moment::now();
            self.owner.drive(now, &mut acts);
            self.perform(&mut acts);
            if self.stopping.is_some() && self.owner.is_empty() {
                fail_point_async!(InLeave);
                // Within what a shutdown allows; a log that is away finds out by the session's end.
                let _ = tokio::time::timeout(Duration::from_secs(1), self.membership.control().leave()).await;
                self.service.observe.owned(&mut self.owner);
                return self.stopping.take().unwrap_or(Left::Stopped);
            }
            let timer = self.owner.next_timer(now).map_or(Duration::from_secs(1), |at| at.since(now).min(Duration::from_secs(1)));
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.stopping.is_none() => self.stop(Left::Stopped, &mut acts),
                () = self.service.cut.cancelled(), if self.stopping.is_some() && !self.cut => {
                    self.cut = true;
                    self.owner.end_drains(Moment::now(), &mut acts);
                }
                event = self.membership.next() => match event {
                    Some(event) => self.happened(event, &mut acts),
                    // The log's client was closed. Nothing can be committed any more.
                    None => return Left::Stopped,
                },
                Some(done) = self.done.recv() => self.ended(done, &mut acts),
                Some(result) = self.committed.recv() => self.owner.commit_ended(Moment::now(), result, &mut acts),
                Some(()) = self.app_back.recv() => self.app_is_back(),
                Some(answers) = self.answers.recv() => self.asked_whether_it_answers(answers, &mut acts),
                () = tokio::time::sleep(timer.max(Duration::from_millis(1))) => {}
            }
            // What else has happened meanwhile is taken in before anything is done about it.
            for _ in 0..BATCH {
                if let Some(event) = self.membership.try_next() {
                    self.happened(event, &mut acts);
                } else if let Ok(done) = self.done.try_recv() {
                    self.ended(done, &mut acts);
                } else {
                    break;
                }
            }
            self.housekeeping(&mut acts);
        }
    }

    fn stop(&mut self, why: Left, acts: &mut Vec<Act>) {
        self.stopping = Some(why);
        self.owner.revoke_all(Moment::now(), acts);
    }

    fn housekeeping(&mut self, acts: &mut Vec<Act>) {
        let now = Moment::now();
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            // By the log's time: while nothing is read, nothing is forgotten.
            if let Some(newest) = self.tenures.values().map(|tenure| tenure.newest).max() {
                self.owner.index().expire(newest);
            }
            self.service.observe.owned(&mut self.owner);
        }
        if !self.owner.sees_app() && self.app_away_since.is_none() {
            self.app_away_since = Some(now);
            let (app, tell) = (self.service.app.clone(), self.tell_app_back.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = wait_for(&app) => drop(tell.send(()).await),
                    () = tell.closed() => {}
                }
            });
        }
        if self.stopping.is_none() && !self.asking && self.service.app.unanswered() >= self.service.limits.max_unanswered {
            self.asking = true;
            let (app, tell) = (self.service.app.clone(), self.tell_answers.clone());
            tokio::spawn(async move {
                let answers = app.answers().await;
                let _ = tell.send(answers).await;
            });
        }
        let others_can = self.service.served.ordinal.is_none();
        if self.stopping.is_none() && others_can && self.app_away_since.is_some_and(|since| now.since(since) >= APP_AWAY) {
            self.stop(Left::AppAway, acts);
        }
    }

    fn asked_whether_it_answers(&mut self, answers: bool, acts: &mut Vec<Act>) {
        self.asking = false;
        if answers {
            self.service.app.is_alive();
        } else if self.stopping.is_none() && self.service.app.unanswered() >= self.service.limits.max_unanswered {
            self.stop(Left::AppHangs, acts);
            // What waits for this app waits for nothing.
            self.owner.end_drains(Moment::now(), acts);
        }
    }

    fn app_is_back(&mut self) {
        self.app_away_since = None;
        self.owner.app_is_there();
    }

    // What the group says.

    fn happened(&mut self, event: GroupEvent, acts: &mut Vec<Act>) {
        let now = Moment::now();
        match event {
            GroupEvent::Assigned(assignments) => {
                fail_point!(InAssigned);
                self.assigned(assignments, acts);
            }
            GroupEvent::Records { partition, entries } => self.records(&partition, entries, acts),
            GroupEvent::Truncated { partition, start, .. } => {
                self.owner.tell(partition.partition, acts, |p, effects| p.truncated(start, effects));
            }
            GroupEvent::Revoking(partitions) => {
                fail_point!(InHandover);
                for partition in partitions {
                    if self.owner.tell(partition.partition, acts, |p, effects| p.revoke(now, effects)).is_none() {
                        // Nothing was begun with it.
                        self.end_tenure(partition.partition);
                        self.membership.control().release(vec![partition]);
                    }
                }
            }
            GroupEvent::Lost(partitions) => {
                let numbers: Vec<_> = partitions.iter().map(|partition| partition.partition).collect();
                tracing::warn!(component = %self.service.served.name, partitions = ?numbers, "partitions were taken away: this box was taken for dead");
                for number in numbers {
                    self.lost(number, acts);
                    self.service.observe.lost();
                }
                if self.service.served.ordinal.is_some() && self.stopping.is_none() {
                    self.stopping = Some(Left::Superseded);
                }
            }
            GroupEvent::Trouble(what) => tracing::error!(component = %self.service.served.name, trouble = %what, "the group can't be joined; trying again"),
        }
    }

    /// What the tenure wanted before it ended is still done in its name: an answer that came just before is recorded.
    fn lost(&mut self, number: u32, acts: &mut Vec<Act>) {
        self.perform(acts);
        self.owner.lost(number, acts);
        self.perform(acts);
        self.end_tenure(number);
    }

    fn assigned(&mut self, assignments: Vec<Assignment>, acts: &mut Vec<Act>) {
        let topics = &self.service.topics;
        tracing::debug!(component = %self.service.served.name, partitions = assignments.len(), "partitions were assigned");
        let mut ids = Vec::new();
        for assignment in &assignments {
            let number = assignment.partition.partition;
            let places = Places {
                calls: topics.calls.partition(number),
                parked: topics.parked.partition(number),
                control: topics.control.partition(number),
                recorded: topics.recorded.partition(number),
                dead_letters: topics.dead_letters.partition(number),
            };
            self.last_tenure += 1;
            ids.push(self.last_tenure);
            let tenure = Tenure {
                id: self.last_tenure,
                since: Moment::now(),
                stop: CancellationToken::new(),
                deliveries: HashMap::new(),
                newest: Timestamp::default(),
                places,
            };
            // Taken away and given back without a word: nothing of what was under way goes on.
            self.lost(number, acts);
            self.tell_tenure(number, Some(tenure.id));
            self.tenures.insert(number, tenure);
            self.service.observe.assigned();
        }
        // The commits for the parked partitions are not in the assignment: they are asked for first.
        let (log, group, tell) = (Arc::clone(&self.service.log), topics.calls.as_str().to_owned(), self.tell.clone());
        let parked = assignments.iter().map(|a| topics.parked.partition(a.partition.partition)).collect();
        tokio::spawn(async move {
            let parked = tokio::select! {
                () = tell.closed() => return,
                parked = search::committed(&log, &group, parked) => parked,
            };
            for ((assignment, tenure), parked) in assignments.into_iter().zip(ids).zip(parked) {
                let number = assignment.partition.partition;
                let what = What::Assigned(assignment.committed, parked, assignment.former_is_gone);
                drop(tell.send(Done { number, tenure, what }));
            }
        });
    }

    fn records(&mut self, partition: &TopicPartition, entries: Vec<Entry>, acts: &mut Vec<Act>) {
        let now = Moment::now();
        let number = partition.partition;
        fail_point!(InRead);
        self.owner.came(number, entries.len());
        for entry in entries {
            let Some(tenure) = self.tenures.get_mut(&number) else { return };
            tenure.newest = tenure.newest.max(entry.timestamp);
            let newest = tenure.newest;
            let offset = entry.offset;
            let value = entry.record.value.unwrap_or_default();
            match CallsEntry::decode(value) {
                Ok(CallsEntry::Call(call)) => {
                    let age = Arrival::age(entry.timestamp, newest, wall_clock());
                    let arrival = Arrival { origin: offset, accepted: entry.timestamp, age, call: Arc::new(*call) };
                    self.owner.tell(number, acts, |p, effects| p.arrived(now, arrival, effects));
                    fail_point!(InTaken);
                }
                Ok(CallsEntry::Fence(instance)) if instance == self.service.instance => {
                    self.owner.tell(number, acts, |p, effects| p.skipped(now, offset, effects));
                }
                Ok(CallsEntry::Fence(_)) => {
                    if self.owner.tell(number, acts, |p, effects| p.fence_read(now, offset, newest.since(entry.timestamp), effects)) == Some(true) {
                        tracing::warn!(%partition, %offset, "another box has fenced this partition; nothing is delivered before the log says that it is still this one's");
                        self.owner.doubt(now);
                        self.service.observe.fenced();
                    }
                }
                Err(error) => {
                    tracing::error!(%partition, %offset, %error, "a record of the calls topic could not be read; it was skipped");
                    self.service.observe.unreadable();
                    self.owner.tell(number, acts, |p, effects| p.skipped(now, offset, effects));
                }
            }
        }
    }

    /// Tells an app in the same process which partitions it has.
    fn tell_tenure(&self, number: u32, tenure: Option<u64>) {
        let of = (self.service.served.name.clone(), number);
        self.service.tenures.send_modify(|all| {
            let _ = match tenure {
                Some(tenure) => all.insert(of, tenure),
                None => all.remove(&of),
            };
        });
    }

    fn end_tenure(&mut self, number: u32) {
        if let Some(tenure) = self.tenures.remove(&number) {
            self.tell_tenure(number, None);
            tenure.stop.cancel();
            for delivery in tenure.deliveries.into_values() {
                delivery.abort();
            }
        }
    }

    // What has ended.

    fn ended(&mut self, done: Done, acts: &mut Vec<Act>) {
        let Done { number, tenure, what } = done;
        let now = Moment::now();
        let current = self.tenures.get_mut(&number).filter(|t| t.id == tenure);
        if let What::Recorded(origin, indexed) = what {
            fail_point!(InMark);
            // What a former tenure has written into the index, the present one writes again, with its own epoch.
            if let Some((id, digest, at)) = indexed.filter(|_| current.is_some()) {
                self.owner.index().insert(number, at.at, id, digest, at.partition, at.offset);
            }
            return self.owner.recorded(now, number, origin, acts);
        }
        let Some(current) = current else { return };
        match what {
            What::Assigned(committed, parked, gone) => {
                tracing::debug!(partition = number, former_is_gone = gone, "what was committed is known");
                if self.stopping.is_none() {
                    self.owner.assigned(now, number, committed.as_ref(), parked.as_ref(), gone, acts);
                }
            }
            What::Fenced(at) => {
                tracing::debug!(partition = number, epoch = %at.offset, "the fence is durable");
                current.newest = current.newest.max(at.timestamp);
                self.owner.tell(number, acts, |p, effects| p.fenced(at.offset, effects));
                self.load_index(number);
            }
            What::Loaded(inheritance) => {
                let control_end = inheritance.control_end;
                tracing::debug!(partition = number, parked = inheritance.parked.len(), "what former owners left was read");
                self.owner.tell(number, acts, |p, effects| p.loaded(now, inheritance, effects));
                self.watch_control(number, control_end);
            }
            What::IndexLoaded(entries) => {
                let index = self.owner.index();
                for (at, entry) in entries {
                    index.insert(number, at, entry.id, entry.digest, entry.partition, entry.offset);
                }
                self.owner.tell(number, acts, |p, _| p.index_loaded());
            }
            What::Searched(suspects, findings) => {
                tracing::info!(component = %self.service.served.name, partition = number, suspects = suspects.len(), had_ended = findings.found.len(), "took over what another box had begun");
                self.owner.tell(number, acts, |p, effects| p.searched(now, &suspects, &findings, effects));
            }
            What::Delivered(origin, end) => {
                fail_point!(InAnswered);
                current.deliveries.remove(&origin);
                self.owner.delivery_ended(now, number, origin, end, jitter(), acts);
            }
            // Of any tenure: see above.
            What::Recorded(..) => {}
            What::Parked(origin, at) => {
                self.owner.tell(number, acts, |p, _| match at {
                    Some(at) => p.parked(now, origin, at),
                    None => p.not_parked(now, origin),
                });
            }
            What::Control(at, entry) => {
                fail_point!(InControl);
                self.control(number, at, entry, acts);
            }
        }
    }

    fn control(&mut self, number: u32, at: Offset, entry: Option<ControlEntry>, acts: &mut Vec<Act>) {
        self.owner.tell(number, acts, |p, _| p.control_read(at));
        match entry {
            None => {}
            Some(ControlEntry::Query { query, id, offset, digest, reply_to }) => {
                let ended = self.owner.index().ended(&id, &digest).map(|(partition, offset)| CallStatus::Ended { partition: partition.clone(), offset });
                let held = self.owner.partition(number).and_then(|p| p.attempts_of(offset, &id, &digest)).map(|attempts| CallStatus::Pending { attempts });
                let unread = self.owner.partition(number).filter(|p| p.is_unread(offset)).map(|_| CallStatus::Pending { attempts: 0 });
                let status = ended.or(held).or(unread).unwrap_or(CallStatus::Unknown);
                let answer = Record::new(Reply::Status { query, status }.encode());
                // An answer that gets lost is asked for again.
                drop(self.service.log.append(&reply_to, answer));
            }
            Some(ControlEntry::Cancel { id, offset: origin }) => {
                let cancelled = self.owner.tell(number, acts, |p, effects| p.cancel(Cancel { at, origin, id }, effects));
                tracing::info!(call = %id, taken = cancelled == Some(true), "a cancel was read");
            }
        }
    }
}

/// A random number from 0 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness every pause is the longest.
    if getrandom::fill(&mut bytes).is_err() {
        return 1.0;
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

//! Reading: one OS thread tells the consumers what to fetch, for all readers and all members of groups. What they fetch it does not touch: see [`pump`](super::pump).
//!
//! A consumer can read a partition only once, so there are *lanes*: a stream goes to the first lane that does not read its partition yet. Almost always
//! there is one lane, one more for partitions in which something comes [seldom](Pace), and one for those whose end nobody waits for. A stream that can't hand over its records is paused; the others go on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Waker;
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use tracing::{debug, error, warn};

use super::lane::Lane;
use super::pump::{Clients, Pump};
use super::stream::{Gate, MemberSink, Pace, ReaderSink, Sink, Stream, StreamId};
use crate::log::{Bounds, GroupEvent, LogError, Offset, Reader, TopicPartition};

/// Batches that may wait unread in a reader.
const READER_BATCHES: usize = 4;
/// Consumers at most. A stream that finds no place in them waits for one.
const LANES: usize = 16;
/// A lane that nobody needs is kept this long.
const LANE_IDLE: Duration = Duration::from_secs(30);
/// How long the thread sleeps at most.
const TICK: Duration = Duration::from_millis(500);

enum Command {
    Add(Stream),
    Remove(StreamId),
    Want(StreamId, u32),
    /// The bounds of a partition that can't be read where it was to be.
    Located(StreamId, Result<Bounds, LogError>),
}

/// The other threads' end of the fetcher. Dropping it ends the thread.
pub(super) struct Fetcher {
    commands: mpsc::Sender<Command>,
    thread: Thread,
    ids: AtomicU64,
}

/// A member's stream; ends when dropped.
pub(super) struct StreamHandle {
    id: StreamId,
    gate: Gate,
    fetcher: Arc<Fetcher>,
}

impl StreamHandle {
    pub(super) fn want(&self, records: u32) {
        self.fetcher.command(Command::Want(self.id, records));
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.gate.close();
        self.fetcher.command(Command::Remove(self.id));
    }
}

impl Fetcher {
    /// Starts the thread.
    pub(super) fn start(clients: Clients) -> Result<Arc<Self>, KafkaError> {
        let (commands, received) = mpsc::channel();
        let (started, first) = mpsc::channel();
        let answers = commands.clone();
        let handle = std::thread::Builder::new()
            .name("kafka-fetch".to_owned())
            .spawn(move || {
                let first = match Pump::start(&clients, Pace::Busy, std::thread::current()) {
                    Ok(first) => first,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let _ = started.send(Ok(()));
                FetchLoop { lanes: vec![first], lane_of: HashMap::new(), waiting: Vec::new(), lost: Vec::new(), clients, answers }.run(&received);
            })
            .map_err(|error| KafkaError::ClientCreation(format!("no thread for reading: {error}")))?;
        first.recv().unwrap_or_else(|_| Err(KafkaError::ClientCreation("the thread for reading ended".to_owned())))?;
        Ok(Arc::new(Self { commands, thread: handle.thread().clone(), ids: AtomicU64::new(1) }))
    }

    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        self.thread.unpark();
    }

    fn id(&self) -> StreamId {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn read(&self, from: &TopicPartition, at: Offset, pace: Pace) -> Reader {
        let (sender, reader) = Reader::new(READER_BATCHES);
        if super::legal(from).is_ok() {
            self.command(Command::Add(Stream::new(self.id(), from.clone(), at, Sink::Reader(ReaderSink::new(sender))).at_pace(pace)));
        }
        reader
    }

    pub(super) fn follow(self: &Arc<Self>, partition: &TopicPartition, from: Offset, events: tokio::sync::mpsc::UnboundedSender<GroupEvent>) -> StreamHandle {
        let gate = Gate::open();
        let id = self.id();
        let sink = Sink::Member(MemberSink { events, gate: gate.clone(), want: 0 });
        self.command(Command::Add(Stream::new(id, partition.clone(), from, sink)));
        StreamHandle { id, gate, fetcher: self.clone() }
    }
}

struct FetchLoop {
    lanes: Vec<Pump>,
    lane_of: HashMap<StreamId, usize>,
    /// Streams that no lane has a place for.
    waiting: Vec<Stream>,
    /// Streams whose offset is not in the log, and when to ask again where it starts and ends.
    lost: Vec<(Stream, Option<Instant>)>,
    clients: Clients,
    answers: mpsc::Sender<Command>,
}

impl FetchLoop {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        while !self.clients.link.is_closed() {
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            for lane in &self.lanes {
                lane.with(Lane::tend);
            }
            self.take_back();
            self.ask_for_lost();
            self.place_waiting();
            std::thread::park_timeout(TICK);
        }
        for lane in self.lanes {
            lane.close();
        }
    }

    fn start_lane(&self, pace: Pace) -> Result<Pump, KafkaError> {
        Pump::start(&self.clients, pace, std::thread::current())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(stream) => self.place(stream),
            Command::Remove(id) => {
                if let Some(lane) = self.lane_of.remove(&id) {
                    self.lanes[lane].with(|lane| lane.remove(id));
                }
                self.waiting.retain(|stream| stream.id != id);
                self.lost.retain(|(stream, _)| stream.id != id);
            }
            Command::Want(id, records) => {
                if let Some(lane) = self.lane_of.get(&id) {
                    self.lanes[*lane].with(|lane| lane.want(id, records));
                } else if let Some(stream) = self.waiting.iter_mut().chain(self.lost.iter_mut().map(|(stream, _)| stream)).find(|stream| stream.id == id) {
                    stream.want(records);
                }
            }
            Command::Located(id, bounds) => self.locate(id, bounds),
        }
    }

    /// Gives a stream to the first lane of its pace that does not read its partition yet.
    fn place(&mut self, stream: Stream) {
        let free = self.lanes.iter().position(|lane| lane.pace() == stream.pace && !lane.with(|lane| lane.reads(&stream.partition)));
        let lane = match free {
            Some(lane) => lane,
            None if self.lanes.len() < LANES => match self.start_lane(stream.pace) {
                Ok(lane) => {
                    self.lanes.push(lane);
                    self.lanes.len() - 1
                }
                Err(error) => {
                    error!(partition = %stream.partition, %error, "a further reader of a partition waits: no client could be made for it");
                    self.waiting.push(stream);
                    return;
                }
            },
            None => {
                debug!(partition = %stream.partition, lanes = LANES, "a further reader of a partition waits until another one ends");
                self.waiting.push(stream);
                return;
            }
        };
        self.lane_of.insert(stream.id, lane);
        self.lanes[lane].with(|lane| lane.add(stream));
    }

    fn place_waiting(&mut self) {
        for stream in std::mem::take(&mut self.waiting) {
            self.place(stream);
        }
        while self.lanes.len() > 1 && self.lanes.last().is_some_and(|lane| lane.with(|lane| lane.idle_for()) > LANE_IDLE) {
            if let Some(lane) = self.lanes.pop() {
                lane.close();
            }
        }
    }

    /// Takes from the lanes the streams that have ended and those that can't be read where they are.
    fn take_back(&mut self) {
        let mut broken = Vec::new();
        for (index, lane) in self.lanes.iter().enumerate() {
            let (ended, lost, stalled) = lane.with(|lane| (lane.take_ended(), lane.take_lost(), lane.is_stalled()));
            for id in ended {
                self.lane_of.remove(&id);
            }
            for stream in lost {
                self.lane_of.remove(&stream.id);
                self.lost.push((stream, Some(Instant::now())));
            }
            if stalled {
                broken.push(index);
            }
        }
        for index in broken {
            self.replace_lane(index);
        }
    }

    /// The watchdog's last means: a consumer that fetches nothing although the broker can be reached is given up for a new one.
    fn replace_lane(&mut self, index: usize) {
        match self.start_lane(self.lanes[index].pace()) {
            Ok(lane) => {
                let old = std::mem::replace(&mut self.lanes[index], lane).close();
                warn!(streams = old.len(), "fetching stood still although the broker can be reached; the client was replaced");
                self.lanes[index].with(|lane| old.into_iter().for_each(|stream| lane.add(stream)));
            }
            Err(error) => error!(%error, "fetching stands still and no new client could be made"),
        }
    }

    /// Asks where the partitions of lost streams begin and end.
    fn ask_for_lost(&mut self) {
        let now = Instant::now();
        for (stream, due) in &mut self.lost {
            if due.is_none_or(|due| due > now) {
                continue;
            }
            *due = None;
            let (id, partition, answers, thread) = (stream.id, stream.partition.clone(), self.answers.clone(), std::thread::current());
            let answers_too = answers.clone();
            let asked = self.clients.control.ask(move |control| {
                let _ = answers.send(Command::Located(id, control.bounds(&partition)));
                thread.unpark();
                Ok(())
            });
            // Refused at once (the broker is away): asked again later.
            let mut asked: super::wake::Watched<Result<(), LogError>> = Box::pin(asked);
            if let Some(Err(error)) = super::wake::poll(&mut asked, Waker::noop()) {
                let _ = answers_too.send(Command::Located(id, Err(error)));
            }
        }
    }

    fn locate(&mut self, id: StreamId, bounds: Result<Bounds, LogError>) {
        let Some(at) = self.lost.iter().position(|(stream, _)| stream.id == id) else { return };
        let later = Some(Instant::now() + Duration::from_millis(100));
        let place = match bounds {
            Ok(bounds) if self.lost[at].0.next() < bounds.start => self.lost[at].0.truncate(bounds.start),
            // Above the end: what is to be read is not there yet.
            Ok(bounds) => self.lost[at].0.next() <= bounds.end,
            Err(_) => false,
        };
        if place {
            let (stream, _) = self.lost.swap_remove(at);
            self.place(stream);
        } else {
            let waker = super::wake::waker();
            if self.lost[at].0.flush(&waker) {
                self.lost[at].1 = later;
            } else {
                self.lost.swap_remove(at);
            }
        }
    }
}

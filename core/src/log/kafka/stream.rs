//! One partition being read for one user: what was fetched and not yet taken. No I/O: the fetcher brings records and asks what to do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::wake::{self, Watched};
use crate::log::{Entry, GroupEvent, Offset, Read, TopicPartition};

/// With this much fetched and not taken, fetching pauses.
const PENDING_RECORDS: usize = 256;
const PENDING_BYTES: usize = 256 << 10;

pub(super) type StreamId = u64;

/// How often something is expected. librdkafka knows no fetch sessions (KIP-227): each fetch names all partitions of its consumer, and the broker looks at each of them, twice
/// for a fetch that waits. So partitions in which hardly anything comes are read by a consumer of their own, out of the way of those that calls wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Busy,
    Rare,
    /// Much comes, and nobody waits for it: the broker gathers it for a while.
    Late,
}

pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) partition: TopicPartition,
    pub(super) pace: Pace,
    /// The offset that comes next from the log.
    next: Offset,
    pending: VecDeque<Entry>,
    pending_bytes: usize,
    sink: Sink,
    /// Whether the consumer has been told to read it.
    pub(super) assigned: bool,
    /// Whether fetching is to be paused.
    pub(super) paused: bool,
    /// Whether the consumer has been told so.
    pub(super) held: bool,
    /// When anything last happened that shows that fetching works.
    pub(super) alive: Instant,
}

pub(super) enum Sink {
    Reader(ReaderSink),
    Member(MemberSink),
}

/// The user's end of a [`Reader`](crate::log::Reader).
pub(super) struct ReaderSink {
    sender: mpsc::Sender<Read>,
    /// Done when the reader has room again.
    room: Option<Watched<()>>,
    /// Done when the reader is gone; `None`: it is.
    gone: Option<Watched<()>>,
}

impl ReaderSink {
    pub(super) fn new(sender: mpsc::Sender<Read>) -> Self {
        let watched = sender.clone();
        Self { sender, room: None, gone: Some(Box::pin(async move { watched.closed().await })) }
    }
}

/// A member of a group that reads a partition it owns.
pub(super) struct MemberSink {
    pub(super) events: mpsc::UnboundedSender<GroupEvent>,
    pub(super) gate: Gate,
    pub(super) want: u32,
}

/// Nothing is told of a partition after its gate was closed.
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<bool>>);

impl Gate {
    pub(super) fn open() -> Self {
        Self(Arc::new(Mutex::new(true)))
    }

    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Does it if the gate is open; no one can close it meanwhile.
    fn if_open(&self, tell: impl FnOnce() -> bool) -> bool {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *open && tell()
    }
}

impl Stream {
    pub(super) fn new(id: StreamId, partition: TopicPartition, from: Offset, sink: Sink) -> Self {
        let (pending, alive) = (VecDeque::new(), Instant::now());
        Self { id, partition, pace: Pace::Busy, next: from, pending, pending_bytes: 0, sink, assigned: false, paused: false, held: false, alive }
    }

    /// The same, at this pace.
    pub(super) fn at_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// The offset that is to be fetched next.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Takes a fetched record. One that was seen already is ignored.
    pub(super) fn push(&mut self, entry: Entry) {
        self.alive = Instant::now();
        if entry.offset < self.next {
            return;
        }
        self.next = entry.offset.next();
        self.pending_bytes += size(&entry);
        self.pending.push_back(entry);
    }

    /// Whether so much is pending that fetching must pause.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_RECORDS || self.pending_bytes >= PENDING_BYTES
    }

    /// Whether so little is pending that fetching can go on.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() <= PENDING_RECORDS / 4 && self.pending_bytes <= PENDING_BYTES / 4
    }

    /// How many more records its user takes; for members.
    pub(super) fn want(&mut self, records: u32) {
        if let Sink::Member(member) = &mut self.sink {
            member.want = records;
        }
    }

    /// Hands over what can be handed over. False when the user is gone.
    pub(super) fn flush(&mut self, waker: &Waker) -> bool {
        match &mut self.sink {
            Sink::Member(member) => {
                let count = self.pending.len().min(member.want as usize);
                if count == 0 {
                    return !member.events.is_closed();
                }
                let entries: Vec<_> = self.pending.drain(..count).collect();
                self.pending_bytes -= entries.iter().map(size).sum::<usize>();
                member.want -= u32::try_from(count).unwrap_or(u32::MAX);
                let event = GroupEvent::Records { partition: self.partition.clone(), entries };
                member.gate.if_open(|| member.events.send(event).is_ok())
            }
            Sink::Reader(reader) => {
                // A future that is done must not be polled again, and a stream is flushed until somebody removes it.
                let Some(gone) = &mut reader.gone else { return false };
                if wake::poll(gone, waker).is_some() {
                    reader.gone = None;
                    return false;
                }
                while !self.pending.is_empty() {
                    if let Some(room) = &mut reader.room {
                        if wake::poll(room, waker).is_none() {
                            return true;
                        }
                        reader.room = None;
                    }
                    match reader.sender.try_reserve() {
                        Ok(permit) => {
                            self.pending_bytes = 0;
                            permit.send(Read::Entries(self.pending.drain(..).collect()));
                        }
                        Err(TrySendError::Closed(())) => return false,
                        Err(TrySendError::Full(())) => {
                            // Polled at once in the next turn, so that its waker is known.
                            let sender = reader.sender.clone();
                            reader.room = Some(Box::pin(async move {
                                let _ = sender.reserve().await;
                            }));
                        }
                    }
                }
                true
            }
        }
    }

    /// The log starts at `start` now, above what was to be read next. Told once all that was read before has been handed over: false if it can't be told yet.
    pub(super) fn truncate(&mut self, start: Offset) -> bool {
        let (partition, wanted) = (self.partition.clone(), self.next);
        if !self.pending.is_empty() {
            return false;
        }
        let told = match &self.sink {
            Sink::Member(member) => {
                member.gate.if_open(|| member.events.send(GroupEvent::Truncated { partition, wanted, start }).is_ok());
                true
            }
            Sink::Reader(reader) => !matches!(reader.sender.try_send(Read::Truncated { wanted, start }), Err(TrySendError::Full(_))),
        };
        if told {
            self.next = start;
        }
        told
    }
}

fn size(entry: &Entry) -> usize {
    entry.record.key.len() + entry.record.value.as_ref().map_or(0, bytes::Bytes::len)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::{Reader, Record, Timestamp, Topic};

    fn entry(offset: u64) -> Entry {
        Entry { offset: Offset::new(offset), timestamp: Timestamp::default(), record: Record::new(Bytes::from_static(b"x")) }
    }

    fn offsets(read: Option<Read>) -> Vec<u64> {
        match read {
            Some(Read::Entries(entries)) => entries.iter().map(|e| e.offset.get()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_slow_reader_loses_nothing_and_sees_nothing_twice() {
        let (sender, mut reader) = Reader::new(1);
        let mut stream = Stream::new(1, Topic::new("t").partition(0), Offset::new(5), Sink::Reader(ReaderSink::new(sender)));
        let waker = wake::waker();
        for offset in [3, 5, 6] {
            stream.push(entry(offset));
            assert!(stream.flush(&waker));
        }
        stream.push(entry(6));
        stream.push(entry(9));
        assert!(stream.flush(&waker));
        assert_eq!(offsets(reader.next().await), [5]);
        assert!(stream.flush(&waker));
        assert_eq!(offsets(reader.next().await), [6, 9]);
        drop(reader);
        assert!(!stream.flush(&waker), "its user is gone");
        assert!(!stream.flush(&waker), "and stays gone");
    }

    #[test]
    fn a_member_gets_what_it_wants_and_nothing_after_the_gate_is_closed() {
        let (events, mut told) = mpsc::unbounded_channel();
        let gate = Gate::open();
        let member = MemberSink { events, gate: gate.clone(), want: 0 };
        let mut stream = Stream::new(1, Topic::new("t").partition(0), Offset::default(), Sink::Member(member));
        let waker = Waker::noop();
        (0..4).for_each(|offset| stream.push(entry(offset)));
        assert!(stream.flush(waker));
        assert!(told.try_recv().is_err(), "nothing was wanted");
        stream.want(3);
        assert!(stream.flush(waker));
        let Ok(GroupEvent::Records { entries, .. }) = told.try_recv() else { panic!() };
        assert_eq!(entries.len(), 3);
        stream.want(5);
        gate.close();
        assert!(!stream.flush(waker));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_loss_is_told_after_what_came_before_it() {
        let (sender, mut reader) = mpsc::channel(4);
        let mut stream = Stream::new(1, Topic::new("t").partition(0), Offset::new(0), Sink::Reader(ReaderSink::new(sender)));
        stream.push(entry(0));
        assert!(!stream.truncate(Offset::new(7)), "a record is still to be handed over");
        assert!(stream.flush(Waker::noop()));
        assert!(stream.truncate(Offset::new(7)));
        assert_eq!(offsets(reader.try_recv().ok()), [0]);
        assert_eq!(reader.try_recv(), Ok(Read::Truncated { wanted: Offset::new(1), start: Offset::new(7) }));
        assert_eq!(stream.next(), Offset::new(7));
    }
}

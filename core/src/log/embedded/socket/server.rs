//! The log's end of the socket.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::frame::{Ask, Broken, FrameReader, FromLog, Say, ToLog, VERSION, put_frame};
use super::message::{AppendedSay, Assignments, CommitSay, CommittedSay, Entries, Nothing, Place, Places, RecordsSay, TruncatedSay};
use crate::log::embedded::client::Client;
use crate::log::embedded::engine::Ending;
use crate::log::embedded::seat::{ROOM_BYTES, Seat, Taken, weigh};
use crate::log::{AppendError, GroupControl, GroupEvent, Health, Log as _, LogError, Offset, Read, Reader, Record, Topic};

/// Serves an embedded log to other processes. Dropping it ends that, and removes the socket.
pub struct Server {
    path: PathBuf,
    accepting: AbortHandle,
}

/// Why a log can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else serves there.
    #[error("{}: another process serves a log there; stop that one, or choose another path", .0.display())]
    InUse(PathBuf),
    /// The socket can't be made.
    #[error("{}: the socket can't be made: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What is the matter.
        source: std::io::Error,
    },
}

/// What is written to a connection in one go, in bytes, as long as more waits.
const WRITE_BYTES: usize = 256 << 10;

impl Server {
    /// Serves at this path, for this user alone.
    pub(super) fn bind(client: &Arc<Client>, path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Socket { path: path.to_owned(), source };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ServeError::InUse(path.to_owned()));
        }
        // Made elsewhere and moved, so that nobody can connect before the rights are set, and a socket that was left behind is replaced.
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(new);
        let _ = std::fs::remove_file(&new);
        let listener = std::os::unix::net::UnixListener::bind(&new).map_err(failed)?;
        let prepared = std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| std::fs::rename(&new, path));
        if let Err(e) = prepared {
            let _ = std::fs::remove_file(&new);
            return Err(failed(e));
        }
        let client = Arc::clone(client);
        let engine = Arc::clone(client.engine());
        let accepting = engine.spawn(async move {
            match UnixListener::from_std(listener) {
                Ok(listener) => accept(listener, client).await,
                Err(e) => tracing::error!(error = %e, "could not listen"),
            }
        });
        Ok(Self { path: path.to_owned(), accepting: accepting.abort_handle() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Accepts until it is dropped; then all connections end with it.
async fn accept(listener: UnixListener, log: Arc<Client>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, log.for_remote()));
            }
            Err(e) => {
                tracing::warn!(error = %e, "could not accept a connection to the log");
                // Out of descriptors, for instance: there is nothing to wait for but time.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A frame to be written, and room to be given back when it was.
type Out = (FromLog, Option<(Arc<Semaphore>, u32)>);

/// One connection: everything of it ends with it.
struct Session {
    log: Arc<Client>,
    out: mpsc::UnboundedSender<Out>,
    readers: HashMap<u64, (Arc<Semaphore>, AbortHandle)>,
    members: HashMap<u64, Member>,
    tasks: JoinSet<()>,
    ending: Ending,
}

struct Member {
    seat: Arc<Seat>,
    control: Arc<dyn GroupControl>,
    forwarding: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        for member in self.members.values() {
            member.seat.end(self.ending);
        }
    }
}

async fn serve(stream: UnixStream, log: Arc<Client>) {
    let (from, to) = stream.into_split();
    // Bounded by what the client may have under way: acknowledgements by its appends, batches by its credits, records by their room.
    let (out, queue) = mpsc::unbounded_channel();
    // Should this end without the client having ended, the client may live on.
    let mut session = Session { log, out, readers: HashMap::new(), members: HashMap::new(), tasks: JoinSet::new(), ending: Ending::CutOff };
    session.tasks.spawn(pass_on_health(session.log.engine().health(), session.out.clone()));
    let mut frames = FrameReader::new(from);
    let broken = tokio::select! {
        broken = session.listen(&mut frames) => broken,
        broken = write_all(to, queue) => broken,
    };
    if broken.by_peer() {
        session.ending = Ending::Gone;
    } else {
        tracing::warn!(reason = %broken, "ended a connection to the log");
    }
}

async fn write_all(mut to: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Out>) -> Broken {
    let mut buffer = BytesMut::new();
    let mut rooms = Vec::new();
    while let Some((frame, room)) = queue.recv().await {
        put_frame(&mut buffer, &frame);
        rooms.extend(room);
        while buffer.len() < WRITE_BYTES
            && let Ok((frame, room)) = queue.try_recv()
        {
            put_frame(&mut buffer, &frame);
            rooms.extend(room);
        }
        if let Err(e) = to.write_all(&buffer).await {
            return e.into();
        }
        buffer.clear();
        if buffer.capacity() > 4 * WRITE_BYTES {
            buffer = BytesMut::new();
        }
        for (room, bytes) in rooms.drain(..) {
            room.add_permits(usize::try_from(bytes).unwrap_or(0));
        }
    }
    Broken::Closed
}

async fn pass_on_health(mut health: watch::Receiver<Health>, out: mpsc::UnboundedSender<Out>) {
    loop {
        let healthy = *health.borrow_and_update() == Health::Up;
        if out.send((FromLog { id: 0, say: Some(Say::Healthy(healthy)) }, None)).is_err() || health.changed().await.is_err() {
            return;
        }
    }
}

fn say(out: &mpsc::UnboundedSender<Out>, id: u64, say: Say) {
    // When the connection has ended, so does everything that could be said.
    let _ = out.send((FromLog { id, say: Some(say) }, None));
}

fn say_done(out: &mpsc::UnboundedSender<Out>, id: u64, done: Result<(), LogError>) {
    say(out, id, done.map_or_else(|e| Say::Failed(e.into()), |()| Say::Done(Nothing {})));
}

impl Session {
    async fn listen<R: tokio::io::AsyncRead + Unpin>(&mut self, frames: &mut FrameReader<R>) -> Broken {
        match frames.next::<ToLog>().await {
            Ok(ToLog { ask: Some(Ask::Hello(VERSION)), .. }) => say(&self.out, 0, Say::Welcome(VERSION)),
            Ok(_) => return Broken::Protocol("the client is of another version of Bluebox"),
            Err(broken) => return broken,
        }
        loop {
            let frame = match frames.next::<ToLog>().await {
                Ok(frame) => frame,
                Err(broken) => return broken,
            };
            let Some(ask) = frame.ask else { return Broken::Protocol("a frame without a question") };
            if let Err(broken) = self.answer(frame.id, ask) {
                return broken;
            }
        }
    }

    fn answer(&mut self, id: u64, ask: Ask) -> Result<(), Broken> {
        const MISSING: Broken = Broken::Protocol("a frame without a partition");
        let out = self.out.clone();
        match ask {
            Ask::Hello(_) => return Err(Broken::Protocol("a second hello")),
            Ask::Heartbeat(_) => self.heartbeat(),
            Ask::Append(ask) => {
                let to = ask.to.ok_or(MISSING)?.read();
                let record = Record { key: ask.key, value: ask.value };
                let acknowledge = move |done: Result<crate::log::Appended, AppendError>| {
                    let answer = match done {
                        Ok(a) => Say::Appended(AppendedSay { offset: a.offset.get(), timestamp: a.timestamp.as_millis() }),
                        Err(e) => Say::NotAppended(e.into()),
                    };
                    say(&out, id, answer);
                };
                self.log.engine().append(&to, record, Box::new(acknowledge));
            }
            Ask::Bounds(of) => {
                let of = of.read();
                let bounds = self.log.engine().partition(&of).map(|p| p.bounds());
                say(&out, id, bounds.map_or_else(|| Say::Failed(LogError::NotFound(of.to_string()).into()), |b| Say::Bounds(b.into())));
            }
            Ask::Committed(ask) => {
                let of: Vec<_> = ask.of.iter().map(Place::read).collect();
                let commits = self.log.engine().committed(&ask.group, &of);
                let commits = of.iter().zip(commits).map(|(of, committed)| CommitSay::new(of, committed)).collect();
                say(&out, id, Say::Committed(CommittedSay { commits }));
            }
            Ask::CreateTopics(specs) => self.log.engine().create_topics(specs.read(), Box::new(move |done| say_done(&out, id, done))),
            Ask::Partitions(topic) => {
                let partitions = self.log.engine().topic(&Topic::new(&topic)).map_or(0, |t| t.spec.partitions);
                say(&out, id, Say::Partitions(partitions));
            }
            Ask::Read(ask) => {
                let reader = self.log.read(&ask.from.ok_or(MISSING)?.read(), Offset::new(ask.at));
                let credits = Arc::new(Semaphore::new(0));
                let task = self.tasks.spawn(forward_reads(id, reader, Arc::clone(&credits), out));
                self.readers.insert(id, (credits, task));
                while self.tasks.try_join_next().is_some() {}
            }
            Ask::ReadMore(batches) => {
                if let Some((credits, _)) = self.readers.get(&id) {
                    credits.add_permits(usize::try_from(batches).unwrap_or(0).min(1_024));
                }
            }
            Ask::EndRead(_) => {
                if let Some((_, task)) = self.readers.remove(&id) {
                    task.abort();
                }
            }
            Ask::Join(ask) => {
                let room = Arc::new(Semaphore::new(usize::try_from(ROOM_BYTES).unwrap_or(usize::MAX)));
                let Taken { seat, events, control } = self.log.take_seat(ask.read(), Arc::clone(&room));
                let forwarding = self.tasks.spawn(forward_events(id, events, room, out));
                self.members.insert(id, Member { seat, control, forwarding });
            }
            ask => self.answer_member(id, ask)?,
        }
        Ok(())
    }

    fn answer_member(&mut self, id: u64, ask: Ask) -> Result<(), Broken> {
        const MISSING: Broken = Broken::Protocol("a frame without a partition");
        let out = self.out.clone();
        let member = self.members.get(&id);
        match ask {
            Ask::Start(ask) => {
                let of = ask.from.ok_or(MISSING)?.read();
                if let Some(member) = member {
                    member.control.start(&of, Offset::new(ask.at));
                }
            }
            Ask::Want(ask) => {
                let of = ask.from.ok_or(MISSING)?.read();
                if let Some(member) = member {
                    member.seat.want_up_to(&of, ask.at);
                }
            }
            Ask::Commit(ask) => {
                let commits: Option<Vec<_>> = ask.commits.into_iter().map(|c| c.read().and_then(|(of, c)| Some((of, c?)))).collect();
                let commits = commits.ok_or(MISSING)?;
                match member {
                    Some(member) => {
                        let acknowledge = move |done| say_done(&out, ask.request, done);
                        self.log.engine().commit(member.seat.member(), commits, Box::new(acknowledge));
                    }
                    None => say_done(&out, ask.request, Err(LogError::Fenced("the group was left".to_owned()))),
                }
            }
            Ask::Release(places) => {
                if let Some(member) = member {
                    member.control.release(places.read());
                }
            }
            Ask::LossTaken(_) => {
                if let Some(member) = member {
                    member.seat.loss_taken();
                    self.log.engine().heartbeat(&member.seat);
                }
            }
            Ask::Leave(request) => {
                if let Some(member) = self.members.remove(&id) {
                    member.seat.end(Ending::Left);
                    member.forwarding.abort();
                }
                say_done(&out, request, Ok(()));
            }
            Ask::Drop(_) => {
                if let Some(member) = self.members.remove(&id) {
                    member.seat.end(Ending::Gone);
                    member.forwarding.abort();
                }
            }
            _ => return Err(Broken::Protocol("a question that is none")),
        }
        Ok(())
    }

    fn heartbeat(&self) {
        for member in self.members.values() {
            self.log.engine().heartbeat(&member.seat);
        }
    }
}

async fn forward_reads(id: u64, mut reader: Reader, credits: Arc<Semaphore>, out: mpsc::UnboundedSender<Out>) {
    while let Ok(credit) = credits.acquire().await {
        credit.forget();
        let Some(read) = reader.next().await else { return };
        let read = match read {
            Read::Entries(entries) => Say::Entries(Entries::new(entries)),
            Read::Truncated { wanted, start } => Say::Truncated(TruncatedSay { of: None, wanted: wanted.get(), start: start.get() }),
        };
        say(&out, id, read);
    }
}

async fn forward_events(id: u64, mut events: mpsc::UnboundedReceiver<GroupEvent>, room: Arc<Semaphore>, out: mpsc::UnboundedSender<Out>) {
    while let Some(event) = events.recv().await {
        let mut taken = None;
        let event = match event {
            GroupEvent::Assigned(assignments) => Say::Assigned(Assignments::new(assignments)),
            GroupEvent::Records { partition, entries } => {
                taken = Some((Arc::clone(&room), weigh(&entries).min(ROOM_BYTES)));
                Say::Records(RecordsSay { of: Some((&partition).into()), entries: Some(Entries::new(entries)) })
            }
            GroupEvent::Truncated { partition, wanted, start } => {
                Say::Truncated(TruncatedSay { of: Some((&partition).into()), wanted: wanted.get(), start: start.get() })
            }
            GroupEvent::Revoking(partitions) => Say::Revoking(Places::new(&partitions)),
            GroupEvent::Lost(partitions) => Say::Lost(Places::new(&partitions)),
            GroupEvent::Trouble(trouble) => Say::Trouble(trouble),
        };
        if out.send((FromLog { id, say: Some(event) }, taken)).is_err() {
            return;
        }
    }
}

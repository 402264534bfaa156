//! The connection of a client: made, kept, and made again.

use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::client::Shared;
use super::frame::{Ask, Broken, FrameReader, FromLog, Say, ToLog, VERSION, put_frame};
use super::message::Nothing;
use crate::clock::Moment;
use crate::log::Health;

/// What is written in one go, in bytes, as long as more waits.
const WRITE_BYTES: usize = 256 << 10;

/// The pause before the connection is tried again; doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection that was made and does not answer for this long is given up.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Signs of life are given at least this often, while there are memberships.
const BEAT: Duration = Duration::from_millis(500);

/// Connects, again and again, for as long as the client is there.
pub(super) async fn keep_connected(path: PathBuf, shared: Weak<Shared>, first: mpsc::UnboundedReceiver<ToLog>) {
    let mut pause = FIRST_PAUSE;
    let mut first = Some(first);
    loop {
        let Some(mut closing) = shared.upgrade().map(|s| s.closing()) else { return };
        let why = tokio::select! {
            broken = one_connection(&path, &shared, first.take(), &mut pause) => broken,
            _ = closing.changed() => return,
        };
        let Some(strong) = shared.upgrade() else { return };
        strong.health.send_if_modified(|health| {
            let was_up = *health == Health::Up;
            if was_up {
                tracing::warn!(socket = %path.display(), reason = %why, "the log is away");
                *health = Health::Away(Moment::now());
            }
            was_up
        });
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.changed() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One connection from its beginning to its end. `waiting`: what was asked before the first.
async fn one_connection(path: &Path, shared: &Weak<Shared>, waiting: Option<mpsc::UnboundedReceiver<ToLog>>, pause: &mut Duration) -> Broken {
    let (mut frames, mut to, health) = match tokio::time::timeout(HELLO_TIMEOUT, open(path)).await {
        Ok(Ok(opened)) => opened,
        failed => {
            let broken = failed.map_or(Broken::Protocol("the log does not answer"), |failed| failed.err().unwrap_or(Broken::Closed));
            if let (Some(shared), Some(queue)) = (shared.upgrade(), waiting) {
                disconnected(&shared, queue, &broken);
            }
            return broken;
        }
    };
    *pause = FIRST_PAUSE;
    let mut queue = {
        let Some(shared) = shared.upgrade() else { return Broken::Closed };
        let queue = waiting.unwrap_or_else(|| shared.state().begin_again());
        shared.health.send_if_modified(|known| std::mem::replace(known, health) != health);
        shared.connected.send_replace(true);
        queue
    };
    let broken = tokio::select! {
        broken = listen(&mut frames, shared) => broken,
        broken = write_all(&mut to, &mut queue) => broken,
        () = beat(shared) => Broken::Closed,
    };
    if let Some(shared) = shared.upgrade() {
        disconnected(&shared, queue, &broken);
    }
    broken
}

/// Connects, and sees that the other side is a log.
async fn open(path: &Path) -> Result<(FrameReader<OwnedReadHalf>, OwnedWriteHalf, Health), Broken> {
    let (from, mut to) = UnixStream::connect(path).await?.into_split();
    let mut frames = FrameReader::new(from);
    let mut buffer = BytesMut::new();
    put_frame(&mut buffer, &ToLog { id: 0, ask: Some(Ask::Hello(VERSION)) });
    to.write_all(&buffer).await?;
    // Its health may be said before.
    let mut health = Health::Up;
    loop {
        match frames.next::<FromLog>().await?.say {
            Some(Say::Welcome(VERSION)) => return Ok((frames, to, health)),
            Some(Say::Healthy(healthy)) => health = if healthy { Health::Up } else { Health::Away(Moment::now()) },
            _ => return Err(Broken::Protocol("the log is of another version of Bluebox")),
        }
    }
}

/// Settles what was under way.
fn disconnected(shared: &Shared, queue: mpsc::UnboundedReceiver<ToLog>, broken: &Broken) {
    shared.connected.send_replace(false);
    shared.state().end_link(queue, &format!("the connection to the log ended: {broken}"));
}

async fn listen<R: AsyncRead + Unpin>(frames: &mut FrameReader<R>, shared: &Weak<Shared>) -> Broken {
    loop {
        let frame = match frames.next::<FromLog>().await {
            Ok(frame) => frame,
            Err(broken) => return broken,
        };
        let Some(shared) = shared.upgrade() else { return Broken::Closed };
        let taken = shared.state().take_in(frame, &shared.health);
        if let Err(broken) = taken {
            return broken;
        }
    }
}

async fn write_all(to: &mut OwnedWriteHalf, queue: &mut mpsc::UnboundedReceiver<ToLog>) -> Broken {
    let mut buffer = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        put_frame(&mut buffer, &frame);
        while buffer.len() < WRITE_BYTES
            && let Ok(frame) = queue.try_recv()
        {
            put_frame(&mut buffer, &frame);
        }
        if let Err(e) = to.write_all(&buffer).await {
            return e.into();
        }
        buffer.clear();
        if buffer.capacity() > 4 * WRITE_BYTES {
            buffer = BytesMut::new();
        }
    }
    Broken::Closed
}

/// Gives signs of life.
async fn beat(shared: &Weak<Shared>) {
    loop {
        let next = {
            let Some(shared) = shared.upgrade() else { return };
            let state = shared.state();
            if !state.members.is_empty() {
                state.send(0, Ask::Heartbeat(Nothing {}));
            }
            state.members.shortest_session().map_or(BEAT, |session| (session / 4).clamp(Duration::from_millis(5), BEAT))
        };
        tokio::time::sleep(next).await;
    }
}

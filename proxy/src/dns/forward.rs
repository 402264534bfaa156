//! Asks the pod's own nameservers. What they answer goes back as it is.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{self, Says};

/// How a query came, and so goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// UDP; an answer of at most this many bytes is taken.
    Udp(usize),
    /// TCP.
    Tcp,
}

/// How often each nameserver is asked over UDP, where packets get lost.
const ROUNDS: u32 = 2;
/// The least time that a nameserver is given.
const LEAST: Duration = Duration::from_millis(200);

/// No nameserver has answered.
#[derive(Debug, thiserror::Error)]
#[error("no nameserver answered")]
pub struct Unanswered;

/// Asks these nameservers, in their order, until one says something, within `patience`.
///
/// One that can't say (SERVFAIL, REFUSED) is believed only if no other one can.
///
/// # Errors
/// When none has answered in time.
pub async fn ask(nameservers: &[SocketAddr], query: &[u8], over: Over, patience: Duration) -> Result<Vec<u8>, Unanswered> {
    let rounds = if over == Over::Tcp { 1 } else { ROUNDS };
    let tries = rounds.saturating_mul(u32::try_from(nameservers.len()).unwrap_or(u32::MAX)).max(1);
    let each = (patience / tries).max(LEAST);
    let mut cannot_say = None;
    let asking = async {
        for _ in 0..rounds {
            for nameserver in nameservers {
                let answered = match over {
                    Over::Udp(bytes) => tokio::time::timeout(each, udp(*nameserver, query, bytes)).await,
                    Over::Tcp => tokio::time::timeout(each, tcp(*nameserver, query)).await,
                };
                let Ok(Ok(answer)) = answered else { continue };
                if message::says(&answer) != Says::CannotSay {
                    return Some(answer);
                }
                cannot_say = Some(answer);
            }
            if cannot_say.is_some() {
                break;
            }
        }
        None
    };
    let answer = tokio::time::timeout(patience, asking).await.unwrap_or_default();
    answer
        .or(cannot_say)
        .map(|mut answer| {
            answer[..2].copy_from_slice(&query[..2]);
            answer
        })
        .ok_or(Unanswered)
}

/// Each query has a socket, and so a port, and a number of its own: who can't see them can't forge an answer (RFC 5452, section 9.2).
async fn udp(nameserver: SocketAddr, query: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if nameserver.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(nameserver).await?;
    let query = renumbered(query)?;
    socket.send(&query).await?;
    let mut answer = vec![0; bytes];
    loop {
        let length = socket.recv(&mut answer).await?;
        if message::answers(&answer[..length], &query) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn tcp(nameserver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(nameserver).await?;
    stream.set_nodelay(true)?;
    let query = renumbered(query)?;
    write(&mut stream, &query).await?;
    let answer = read(&mut stream).await?;
    if message::answers(&answer, &query) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Reads one message from a stream (RFC 1035, section 4.2.2).
pub async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message to a stream.
pub async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// The query under a number that nobody can guess.
fn renumbered(query: &[u8]) -> io::Result<Vec<u8>> {
    let mut query = query.to_vec();
    let number = query.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?;
    getrandom::fill(number).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(query)
}

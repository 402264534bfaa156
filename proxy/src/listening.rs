//! Whether the app that listens is still the one that did: a socket is as old as the process that opened it, and the kernel gives no two the same number.
//!
//! `/proc/net/tcp` and `tcp6` of the pod's network show all containers' sockets, and list those that listen first: however many connections there are, only a few lines are read.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Duration;

/// How often it is looked. A look costs some ten microseconds.
const EVERY: Duration = Duration::from_millis(200);
/// A table that shows more listening sockets than this is not an app's.
const MOST_LINES: usize = 4096;

/// The sockets that listen at some ports, by their numbers (inodes).
type Sockets = BTreeSet<u64>;

/// The halves of a box as seen from one: which sockets the app has had. Pure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct App {
    known: Sockets,
}

impl App {
    /// What listens now is this. `true` when nothing of what listened before does any more: the app is gone, or is another one.
    ///
    /// Workers that take each other's place one after the other (`SO_REUSEPORT`) stay the same app, and so does one that opens a second socket.
    pub fn is_gone(&mut self, now: Sockets) -> bool {
        if !self.known.is_empty() && self.known.is_disjoint(&now) {
            return true;
        }
        self.known = now;
        false
    }

    /// Whether it has listened yet.
    pub fn has_listened(&self) -> bool {
        !self.known.is_empty()
    }
}

/// Done when the app that listens at this port is gone, or has become another one; a wait for it to listen at all comes before. What listens when this is called is seen.
pub fn gone(port: u16) -> impl Future<Output = ()> + Send {
    let mut app = App::default();
    let mut look = sockets(port);
    async move {
        let mut troubled = false;
        loop {
            match look {
                Ok(now) => {
                    if app.is_gone(now) {
                        return;
                    }
                }
                Err(problem) if !troubled => {
                    troubled = true;
                    tracing::error!(%problem, "the sockets of this network can't be listed: an app that is started again alone goes unnoticed");
                }
                Err(_) => {}
            }
            tokio::time::sleep(EVERY).await;
            look = sockets(port);
        }
    }
}

/// Done when what listens at this port is not what listens now; at once if nothing does.
pub async fn another(port: u16) {
    if sockets(port).is_ok_and(|now| !now.is_empty()) {
        gone(port).await;
    }
}

/// The sockets that listen at a port, at whichever address.
fn sockets(port: u16) -> io::Result<Sockets> {
    let mut all = listening(Path::new("/proc/net/tcp"), port)?;
    // Without IPv6 there is no such table.
    match listening(Path::new("/proc/net/tcp6"), port) {
        Ok(more) => all.extend(more),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => {}
        Err(problem) => return Err(problem),
    }
    Ok(all)
}

fn listening(table: &Path, port: u16) -> io::Result<Sockets> {
    read(BufReader::with_capacity(4096, File::open(table)?), port)
}

/// proc_net_tcp(5): `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`, the state of a listening socket is 0A.
fn read(table: impl io::BufRead, port: u16) -> io::Result<Sockets> {
    let mut found = Sockets::new();
    for line in table.lines().skip(1).take(MOST_LINES) {
        let line = line?;
        let mut words = line.split_whitespace();
        let (Some(local), Some(state)) = (words.nth(1), words.nth(1)) else { continue };
        if state != "0A" {
            break;
        }
        let at = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        if at == Some(port)
            && let Some(inode) = words.nth(5).and_then(|inode| inode.parse().ok())
        {
            found.insert(inode);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u64]) -> Sockets {
        numbers.iter().copied().collect()
    }

    #[test]
    fn an_app_is_the_same_as_long_as_one_of_its_sockets_is() {
        let mut app = App::default();
        assert!(!app.is_gone(set(&[])), "it has not listened yet");
        assert!(!app.has_listened());
        assert!(!app.is_gone(set(&[1])));
        assert!(app.has_listened());
        assert!(!app.is_gone(set(&[1, 2])), "a second worker");
        assert!(!app.is_gone(set(&[2, 3])), "the first worker was replaced");
        assert!(!app.is_gone(set(&[3])));
        assert!(app.clone().is_gone(set(&[])), "it is gone");
        assert!(app.clone().is_gone(set(&[4])), "it is another one");
    }

    #[test]
    fn only_what_listens_at_the_port_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 711 1 0 100 0 0 10 0\n\
            1: 0100007F:102C 00000000:0000 0A 00000000:00000000 00:00000000 00000000 64140        0 712 1 0 100 0 0 10 0\n\
            2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 713 1 0 100 0 0 10 0\n\
            3: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 714 1 0 100 0 0 10 0\n\
            4: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 715 1 0 100 0 0 10 0\n";
        assert_eq!(read(table.as_bytes(), 8080).unwrap(), set(&[711, 713]), "what comes after the first connection is not read");
        assert_eq!(read(table.as_bytes(), 81).unwrap(), set(&[]));
    }

    /// The kernel's own table, with a socket of this process that is closed and opened again.
    #[tokio::test]
    async fn a_socket_that_was_opened_again_is_another_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut app = App::default();
        assert!(!app.is_gone(sockets(at.port()).unwrap()));
        assert!(app.has_listened());
        // A connection does not hide it.
        let _connection = std::net::TcpStream::connect(at).unwrap();
        assert!(!app.is_gone(sockets(at.port()).unwrap()));
        let gone = tokio::spawn(gone(at.port()));
        drop(listener);
        assert!(app.is_gone(sockets(at.port()).unwrap()));
        drop(gone);
    }

    #[tokio::test]
    async fn the_end_of_an_app_is_noticed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gone = gone(port);
        drop(listener);
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    }
}

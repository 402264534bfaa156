//! Ports of this machine.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// From here on the kernel gives ports away: to whoever listens at any, and to outgoing connections. One of those, kept for an app, would be taken before the app is there.
fn first_of_the_kernels() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

/// An address on loopback that nobody listens at, that was not chosen before, and that the kernel gives to nobody else.
pub(crate) fn free() -> std::io::Result<SocketAddr> {
    const FIRST: u16 = 10_000;
    static CHOSEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    let room = first_of_the_kernels().saturating_sub(FIRST);
    for _ in 0..if room < 1_000 { 0 } else { 1_000 } {
        let random = RandomState::new().hash_one(());
        let port = FIRST + u16::try_from(random % u64::from(room)).unwrap_or(0);
        if !chosen.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            chosen.insert(port);
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
    // A kernel that gives nearly all of them away.
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Whether something listens at a port of 127.0.0.1, as seen without connecting (apps would see an empty connection): proc_pid_net(5).
pub(crate) fn is_open(port: u16) -> bool {
    listeners().any(|listener| listener.port == port && listener.is_called)
}

/// Whether something listens at a port, but only at addresses where nobody calls it.
pub(crate) fn is_open_elsewhere_only(port: u16) -> bool {
    let called: Vec<bool> = listeners().filter(|listener| listener.port == port).map(|listener| listener.is_called).collect();
    !called.is_empty() && !called.contains(&true)
}

/// A socket that listens.
struct Listener {
    port: u16,
    /// Whether who connects to 127.0.0.1 gets there.
    is_called: bool,
    inode: String,
}

/// Whether a connection to 127.0.0.1 arrives at an address, as the kernel writes it: that one, or all, as IPv4 or as IPv6. (One of `::` may be for IPv6 alone, which is not told.)
fn is_called(address: &str) -> bool {
    const MAPPED: &str = "0000000000000000FFFF0000";
    let of_ipv4 = address.strip_prefix(MAPPED).unwrap_or(address);
    of_ipv4 == "0100007F" || of_ipv4.bytes().all(|digit| digit == b'0')
}

fn listeners() -> impl Iterator<Item = Listener> {
    const LISTEN: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let rows: Vec<Listener> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|row| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let (address, port) = fields.get(1)?.rsplit_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            let inode = fields.get(9).copied().unwrap_or_default().to_owned();
            (fields.get(3) == Some(&LISTEN)).then(|| Listener { port, is_called: is_called(address), inode })
        })
        .collect();
    rows.into_iter()
}

/// Who listens at a port, in words; empty if that can't be seen.
pub(crate) fn owner(port: u16) -> String {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let Some(pid) = owner_among(port, pids) else { return String::new() };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!(" by {} (pid {pid})", name.trim())
}

/// Whether a process of this group listens at a port.
pub(crate) fn is_open_in_group(port: u16, group: i32) -> bool {
    is_open(port) && owner_among(port, crate::family::processes(|process| process.group == group).into_iter()).is_some()
}

fn owner_among(port: u16, mut pids: impl Iterator<Item = i32>) -> Option<i32> {
    let inodes: BTreeSet<String> = listeners().filter(|open| open.port == port).map(|open| format!("socket:[{}]", open.inode)).collect();
    pids.find(|pid| {
        let mut links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.any(|link| link.to_str().is_some_and(|link| inodes.contains(link)))
    })
}

/// Whether an address can be listened at now; why not, in words.
pub(crate) fn check_free(address: SocketAddr) -> Result<(), String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(format!("port {} is taken{}", address.port(), owner(address.port()))),
        Err(error) => Err(format!("{address} can't be listened at: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_was_chosen_is_given_to_nobody_else() {
        let chosen: BTreeSet<u16> = (0..100).map(|_| free().unwrap().port()).collect();
        assert_eq!(chosen.len(), 100);
        let kernels = first_of_the_kernels();
        assert!(kernels < 11_000 || chosen.iter().all(|port| *port < kernels), "{chosen:?}");
    }

    #[test]
    fn a_port_is_open_where_it_is_called() {
        for (at, called) in [("0.0.0.0:0", true), ("[::]:0", true), ("[::ffff:127.0.0.1]:0", true), ("127.0.0.2:0", false), ("[::1]:0", false)] {
            // Without IPv6 there is none of it.
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert_eq!((is_open(port), is_open_elsewhere_only(port)), (called, !called), "{at}");
        }
        assert!(!is_called("00000000000000000000000001000000") && is_called("0000000000000000FFFF00000100007F"));
        assert!(is_called("0000000000000000FFFF000000000000") && !is_called("0000000000000000FFFF00000200007F"));
    }

    #[test]
    fn a_port_is_seen_open_and_whose() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(is_open(address.port()));
        assert!(owner(address.port()).contains(&format!("pid {}", std::process::id())));
        assert!(check_free(address).unwrap_err().contains("is taken by"));
        drop(listener);
        assert!(!is_open(address.port()));
        assert!(check_free(address).is_ok());
    }
}

//! Ports of this machine.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// An address on loopback that nobody listens at, chosen by the system.
pub(crate) fn free() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The port at which something listens, as seen without connecting (apps would see an empty connection): proc_pid_net(5).
pub(crate) fn is_open(port: u16) -> bool {
    listening().contains(&port)
}

fn listening() -> BTreeSet<u16> {
    listeners().map(|(port, _)| port).collect()
}

/// Ports and the inodes of their sockets.
fn listeners() -> impl Iterator<Item = (u16, String)> {
    const LISTEN: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let rows: Vec<(u16, String)> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|row| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
            (fields.get(3) == Some(&LISTEN)).then(|| (port, fields.get(9).copied().unwrap_or_default().to_owned()))
        })
        .collect();
    rows.into_iter()
}

/// Who listens at a port, in words; empty if that can't be seen.
pub(crate) fn owner(port: u16) -> String {
    let inodes: BTreeSet<String> = listeners().filter(|(open, _)| *open == port).map(|(_, inode)| format!("socket:[{inode}]")).collect();
    let Ok(processes) = std::fs::read_dir("/proc") else { return String::new() };
    for pid in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let mut links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        if links.any(|link| link.to_str().is_some_and(|link| inodes.contains(link))) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return format!(" by {} (pid {pid})", name.trim());
        }
    }
    String::new()
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

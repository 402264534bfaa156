//! What a pod is told about names: `/etc/resolv.conf`, as far as it matters here.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// Nameservers beyond these are not asked, as no resolver does (resolv.conf(5), `MAXNS`).
const MOST_NAMESERVERS: usize = 3;
/// Search domains beyond these are not looked at (Kubernetes allows 32).
const MOST_DOMAINS: usize = 32;

/// Which nameservers a pod has, and which domains it searches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The nameservers, in the order in which they are asked.
    pub nameservers: Vec<SocketAddr>,
    /// The search list, in lower case, without dots at the ends. In Kubernetes the first one is that of the pod's namespace.
    pub search: Vec<String>,
}

/// Why it can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: can't be read: {problem}; name another file with --resolv-conf, or the nameservers themselves with --nameservers")]
pub struct Unreadable {
    path: String,
    problem: std::io::Error,
}

impl ResolvConf {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read. What it says and isn't understood is passed over, as resolvers do.
    pub fn read(path: &Path) -> Result<Self, Unreadable> {
        let bytes = std::fs::read(path).map_err(|problem| Unreadable { path: path.display().to_string(), problem })?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Reads the text of one.
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if read.nameservers.len() < MOST_NAMESERVERS => read.nameservers.extend(words.next().and_then(nameserver)),
                // The last one counts.
                Some("search" | "domain") => {
                    let domains = words.map(|domain| domain.trim_matches('.').to_ascii_lowercase()).filter(|domain| !domain.is_empty());
                    read.search = domains.take(MOST_DOMAINS).collect();
                }
                _ => {}
            }
        }
        read
    }
}

/// Reads the address of a nameserver: with an interface behind it where it is link-local (`fe80::1%eth0`).
pub fn nameserver(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, 53));
    }
    let (address, interface) = text.split_once('%')?;
    let scope = interface.parse().ok().or_else(|| nix::net::if_::if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_of_a_pod() {
        let text = "search shop.svc.cluster.local svc.cluster.local cluster.local.\nnameserver 10.96.0.10\noptions ndots:5\n";
        let read = ResolvConf::parse(text);
        assert_eq!(read.nameservers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(read.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
    }

    #[test]
    fn oddities() {
        let text = "# nothing\nnameserver\nnameserver ten\n  nameserver fd00::a # mine\nnameserver fe80::1%1\nnameserver 1.1.1.1;x\nnameserver 9.9.9.9\ndomain A.example\nsearch\tB.Example. .";
        let read = ResolvConf::parse(text);
        assert_eq!(read.nameservers, ["[fd00::a]:53".parse().unwrap(), "[fe80::1%1]:53".parse().unwrap(), "1.1.1.1:53".parse().unwrap()]);
        assert_eq!(read.search, ["b.example"]);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }

    #[test]
    fn what_is_not_there_is_said() {
        let said = ResolvConf::read(Path::new("/nowhere/resolv.conf")).unwrap_err().to_string();
        assert!(said.contains("/nowhere/resolv.conf") && said.contains("--nameservers"), "{said}");
    }
}

//! Where a proxy listens.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, UdpSocket};

use crate::config::ProxyConfig;
use crate::{RunError, dns};

/// What is open. Connections wait until somebody takes them.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// For the app's requests.
    pub(crate) calls: (TcpListener, SocketAddr),
    /// For what the redirect catches; of both families.
    pub(crate) transparent: Vec<TcpListener>,
    /// For the app's DNS.
    pub(crate) dns: Option<dns::Listeners>,
    /// For who looks.
    pub(crate) admin: Option<(TcpListener, SocketAddr)>,
    /// For who changes something.
    pub(crate) control: Option<(TcpListener, SocketAddr)>,
}

impl Listeners {
    /// Opens all that are wanted.
    pub(crate) async fn open(config: &ProxyConfig) -> Result<Self, RunError> {
        Ok(Self {
            calls: bind(config.listen).await?,
            transparent: match config.transparent {
                Some(address) => bind_both_families(address).await?,
                None => Vec::new(),
            },
            dns: match config.dns {
                Some(address) => Some(bind_dns(address).await?),
                None => None,
            },
            admin: bind_if_wanted(config.admin).await?,
            control: bind_if_wanted(config.control).await?,
        })
    }
}

/// Listens at an address, and, where that is IPv4's loopback, at the same port of IPv6's too, if the kernel has it: what the redirect catches of IPv6 arrives there.
async fn bind_both_families(address: SocketAddr) -> Result<Vec<TcpListener>, RunError> {
    let (listener, at) = bind(address).await?;
    let mut listeners = vec![listener];
    if let Some(other) = on_the_other_loopback(at) {
        match bind(other).await {
            Ok((listener, _)) => listeners.push(listener),
            Err(RunError::Listen { problem, .. }) if has_no_ipv6(&problem) => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(listeners)
}

/// The same for DNS, over UDP and TCP.
async fn bind_dns(address: SocketAddr) -> Result<dns::Listeners, RunError> {
    let tcp = bind_both_families(address).await?;
    let mut udp = Vec::new();
    for listener in &tcp {
        let failed = |address| move |problem| RunError::Listen { address, problem };
        let at = listener.local_addr().map_err(failed(address))?;
        udp.push(UdpSocket::bind(at).await.map_err(failed(at))?);
    }
    Ok(dns::Listeners { udp, tcp })
}

fn on_the_other_loopback(address: SocketAddr) -> Option<SocketAddr> {
    (address.ip() == Ipv4Addr::LOCALHOST).then(|| (Ipv6Addr::LOCALHOST, address.port()).into())
}

/// No IPv6 in the kernel, or none in this network namespace.
fn has_no_ipv6(problem: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let absent = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL, Errno::EPROTONOSUPPORT];
    problem.raw_os_error().is_some_and(|code| absent.contains(&Errno::from_raw(code)))
}

async fn bind_if_wanted(address: Option<SocketAddr>) -> Result<Option<(TcpListener, SocketAddr)>, RunError> {
    match address {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |problem| RunError::Listen { address, problem };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let at = listener.local_addr().map_err(failed)?;
    Ok((listener, at))
}

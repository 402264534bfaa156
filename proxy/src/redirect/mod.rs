//! The redirect: what of the app's outbound traffic is sent to the proxy, as rules of the kernel's packet filter (nftables).
//!
//! - [`rules`]: which rules there are, and in which order: a pure function of [`Redirect`].
//! - [`kernel`]: puts them into the kernel over netlink, in one transaction, and reads them back.
//! - [`address`]: the address that Bluebox gives to components without a Service.
//!
//! The rules live in a table of their own, in the network namespace of the process that installs them, and are replaced whole: installing them twice is as good as once.
//! Only the first packet of a connection meets them (a `nat` chain); what is open when they change stays as it is.

pub mod address;
pub mod kernel;
pub mod rules;

use std::net::IpAddr;
use std::str::FromStr;

/// What is to be caught, and what not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The user that the proxy runs as: what it sends is never caught.
    pub proxy_uid: u32,
    /// The port of the proxy's transparent listener on loopback.
    pub transparent_port: u16,
    /// The port of the proxy's DNS listener on loopback; `None`: DNS is not caught.
    pub dns_port: Option<u16>,
    /// The pod's nameservers.
    pub nameservers: Vec<IpAddr>,
    /// Destination ports that are not caught.
    pub excluded_ports: Vec<u16>,
    /// Destination addresses that are not caught.
    pub excluded_networks: Vec<Network>,
}

/// Addresses that begin alike: `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network; networks are written as 10.0.0.0/8, fd00::/8, or as a single address")]
pub struct NoNetwork(String);

impl Network {
    /// Its first address, and how many bits are the same in all of them.
    pub fn parts(&self) -> (IpAddr, u8) {
        (self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || NoNetwork(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |p| p.parse().map_err(|_| refuse()))?;
        if prefix > bits {
            return Err(refuse());
        }
        let address = match address {
            IpAddr::V4(a) => IpAddr::V4((u32::from(a) & u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0)).into()),
            IpAddr::V6(a) => IpAddr::V6((u128::from(a) & u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0)).into()),
        };
        Ok(Self { address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_nonsense_is_not() {
        for (text, address, prefix) in [
            ("10.1.2.3", "10.1.2.3", 32),
            ("10.1.2.3/8", "10.0.0.0", 8),
            ("0.0.0.0/0", "0.0.0.0", 0),
            ("fd00:1::5/8", "fd00::", 8),
            ("::/0", "::", 0),
            ("::1", "::1", 128),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().parts(), (address.parse().unwrap(), prefix), "{text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/", "10.0.0.0/-1", "db.example"] {
            assert!(text.parse::<Network>().unwrap_err().to_string().contains("10.0.0.0/8"), "{text}");
        }
    }
}

//! The address of components without a Service.
//!
//! One for all of them, in each address family: which component is meant is what the request's Host says. Nobody is there: the redirect catches what is sent to it, and
//! without the redirect it leads nowhere, so that a call can't end at somebody else.
//!
//! For IPv4 it is taken from the range that is reserved for ever (240.0.0.0/4, RFC 1112, section 4; Linux sends to it like to any other), outside of 240.240.0.0/16, where
//! Istio takes its own from. For IPv6 it is a unique local address with a random global id (RFC 4193, section 3.2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// The one for IPv4.
pub const V4: Ipv4Addr = Ipv4Addr::new(240, 187, 85, 1);
/// The one for IPv6.
pub const V6: Ipv6Addr = Ipv6Addr::new(0xfdb1, 0xeb0c, 0x5b0e, 0, 0, 0, 0, 1);

/// Whether it is one of them.
pub fn is_ours(address: IpAddr) -> bool {
    address == V4 || address == V6
}

/// Whether this network namespace has a route to it: without one a client could not even begin to connect.
///
/// Asks the kernel each time (a few microseconds, and nothing is sent): routes come and go.
pub fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 9))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ours_are_ours() {
        assert!(is_ours(V4.into()) && is_ours(V6.into()));
        assert!(!is_ours(Ipv4Addr::LOCALHOST.into()) && !is_ours(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn loopback_always_has_a_route_and_nothing_is_sent() {
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}

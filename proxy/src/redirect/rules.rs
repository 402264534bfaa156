//! Which rules there are, and in which order. The first one that fits a connection decides.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Network, Redirect, address};

/// One rule: all of its conditions, and what becomes of a connection for which they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its conditions.
    pub when: Vec<Condition>,
    /// What it does.
    pub then: Then,
    /// What it is for.
    pub why: &'static str,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The sending process runs as this user.
    User(u32),
    /// It leaves by the loopback interface: it stays in the pod.
    Loopback,
    /// It is IPv4, or else IPv6.
    Family(Family),
    /// It is TCP, or else UDP.
    Protocol(Protocol),
    /// It goes to one of these addresses.
    To(Network),
    /// It goes to this port.
    Port(u16),
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Its loopback address: where what is caught goes.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes where it was going.
    Pass,
    /// It goes to this port of the family's loopback address instead.
    Send(Family, u16),
}

impl Redirect {
    /// The rules.
    pub fn rules(&self) -> Vec<Rule> {
        use Condition::{Family as Is, Loopback, Port, Protocol as Speaks, To, User};
        let mut rules = Vec::new();
        // Before all else, the proxy's own too, which so knows that it is redirected to: there is nothing else at these addresses.
        for ours in [IpAddr::from(address::V4), IpAddr::from(address::V6)] {
            let when = vec![To(Network::from(ours)), Speaks(Protocol::Tcp)];
            rules.push(Rule { when, then: Then::Send(Family::of(ours), self.transparent_port), why: "components without a Service" });
        }
        rules.push(Rule { when: vec![User(self.proxy_uid)], then: Then::Pass, why: "the proxy's own" });
        // Before loopback: nameservers may be there (127.0.0.53).
        if let Some(port) = self.dns_port {
            for nameserver in &self.nameservers {
                let family = Family::of(*nameserver);
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    let when = vec![To(Network::from(*nameserver)), Speaks(protocol), Port(53)];
                    rules.push(Rule { when, then: Then::Send(family, port), why: "DNS" });
                }
            }
        }
        rules.push(Rule { when: vec![Loopback], then: Then::Pass, why: "within the pod" });
        for network in &self.excluded_networks {
            rules.push(Rule { when: vec![To(*network)], then: Then::Pass, why: "excluded" });
        }
        for port in &self.excluded_ports {
            rules.push(Rule { when: vec![Speaks(Protocol::Tcp), Port(*port)], then: Then::Pass, why: "excluded" });
        }
        for family in [Family::V4, Family::V6] {
            let when = vec![Is(family), Speaks(Protocol::Tcp)];
            rules.push(Rule { when, then: Then::Send(family, self.transparent_port), why: "all other TCP" });
        }
        rules
    }
}

impl Rule {
    /// Whether it says nothing about this family, or speaks of it: what an installation for one family alone has of the rules.
    pub fn is_for(&self, family: Family) -> bool {
        let other = |condition: &Condition| match condition {
            Condition::Family(f) => *f != family,
            Condition::To(network) => Family::of(network.parts().0) != family,
            _ => false,
        };
        !self.when.iter().any(other)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

/// As `nft` would write it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut protocol = "";
        for condition in &self.when {
            match condition {
                Condition::User(uid) => write!(f, "meta skuid {uid} ")?,
                Condition::Loopback => write!(f, "oifname \"lo\" ")?,
                Condition::Family(Family::V4) => write!(f, "meta nfproto ipv4 ")?,
                Condition::Family(Family::V6) => write!(f, "meta nfproto ipv6 ")?,
                Condition::Protocol(p) => {
                    protocol = if *p == Protocol::Tcp { "tcp" } else { "udp" };
                    write!(f, "meta l4proto {protocol} ")?;
                }
                Condition::To(network) => {
                    let (address, prefix) = network.parts();
                    write!(f, "{} daddr {address}/{prefix} ", if address.is_ipv4() { "ip" } else { "ip6" })?;
                }
                Condition::Port(port) => write!(f, "{protocol} dport {port} ")?,
            }
        }
        match self.then {
            Then::Pass => f.write_str("accept"),
            Then::Send(family, port) => write!(f, "dnat to {}", std::net::SocketAddr::new(family.loopback(), port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect() -> Redirect {
        Redirect {
            proxy_uid: 64140,
            transparent_port: 4143,
            dns_port: Some(4153),
            nameservers: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            excluded_ports: vec![5432],
            excluded_networks: vec!["10.9.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn the_rules_in_their_order() {
        let rules: Vec<String> = redirect().rules().iter().map(ToString::to_string).collect();
        assert_eq!(
            rules,
            [
                "ip daddr 240.187.85.1/32 meta l4proto tcp dnat to 127.0.0.1:4143",
                "ip6 daddr fdb1:eb0c:5b0e::1/128 meta l4proto tcp dnat to [::1]:4143",
                "meta skuid 64140 accept",
                "ip daddr 10.96.0.10/32 meta l4proto udp udp dport 53 dnat to 127.0.0.1:4153",
                "ip daddr 10.96.0.10/32 meta l4proto tcp tcp dport 53 dnat to 127.0.0.1:4153",
                "ip6 daddr fd00::a/128 meta l4proto udp udp dport 53 dnat to [::1]:4153",
                "ip6 daddr fd00::a/128 meta l4proto tcp tcp dport 53 dnat to [::1]:4153",
                "oifname \"lo\" accept",
                "ip daddr 10.9.0.0/16 accept",
                "meta l4proto tcp tcp dport 5432 accept",
                "meta nfproto ipv4 meta l4proto tcp dnat to 127.0.0.1:4143",
                "meta nfproto ipv6 meta l4proto tcp dnat to [::1]:4143",
            ]
        );
    }

    #[test]
    fn without_dns_it_is_not_caught() {
        let rules = Redirect { dns_port: None, ..redirect() }.rules();
        assert!(!rules.iter().any(|rule| rule.when.contains(&Condition::Port(53))));
    }

    #[test]
    fn rules_for_one_family_alone() {
        let rules = redirect().rules();
        let v4: Vec<_> = rules.iter().filter(|rule| rule.is_for(Family::V4)).map(ToString::to_string).collect();
        assert!(v4.iter().all(|rule| !rule.contains("ip6") && !rule.contains("[::1]")), "{v4:?}");
        assert_eq!(v4.len(), rules.len() - 4);
    }
}

//! The rules in the kernel: put there, taken away and read back over netlink, without a program that an image would have to bring.

use std::io;
use std::net::IpAddr;

use netlink_bindings::nftables::{self, BitwiseOps, CmpOps, ExprListAttrs, MetaKeys, Nfgenmsg, PayloadBase, PushExprListAttrs, Registers, VerdictCode};
use netlink_bindings::traits::Pusher;
use netlink_socket2::{NetlinkSocket, ReplyError};
use tracing::debug;

use super::rules::{Condition, Family, Protocol, Rule, Then};
use super::{Network, Redirect};

/// The table that is ours.
pub const TABLE: &str = "bluebox";
/// Its one chain.
const CHAIN: &[u8] = b"output";
/// As `nft` calls it: before other address translation of what leaves.
const PRIORITY_DSTNAT: i32 = -100;

// What the kernel's headers say (linux/netfilter.h, nf_tables.h).
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const HOOK_LOCAL_OUT: u32 = 3;
const NAT_DESTINATION: u32 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EAFNOSUPPORT: i32 = 97;
const EOPNOTSUPP: i32 = 95;
const EPROTONOSUPPORT: i32 = 93;

/// Why the rules could not be put into the kernel, taken away or read.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// This process may not.
    #[error("the kernel's packet filter can't be changed: not permitted; it needs the capability NET_ADMIN in its network namespace")]
    NotPermitted,
    /// The kernel has no packet filter that could.
    #[error(
        "the kernel has no nftables with address translation ({0}); it needs Linux 5.2 or later with nf_tables, nft_chain_nat and nf_conntrack, or their modules loaded"
    )]
    NotSupported(String),
    /// The kernel refused the rules.
    #[error("the kernel refused the rules: {0}")]
    Refused(String),
}

impl RedirectError {
    fn of(error: &ReplyError) -> Self {
        match error.as_io_error().raw_os_error() {
            Some(EPERM) => Self::NotPermitted,
            Some(EOPNOTSUPP | EAFNOSUPPORT | EPROTONOSUPPORT | ENOENT) => Self::NotSupported(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }

    fn of_io(error: io::Error) -> Self {
        Self::of(&error.into())
    }
}

/// Which tables carry the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// One for both address families.
    Both,
    /// One for IPv4 alone: this kernel has no IPv6.
    V4Only,
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// What it says, and what it is for.
    pub rule: String,
    /// How many connections it has decided on.
    pub connections: u64,
}

/// Puts the rules into the network namespace of this process. Those of an earlier installation are replaced in the same transaction: at no moment there are none.
///
/// # Errors
/// When the kernel refuses; then nothing has changed.
pub fn install(redirect: &Redirect) -> Result<Installed, RedirectError> {
    let rules = redirect.rules();
    match replace(NFPROTO_INET, &rules) {
        Ok(()) => Ok(Installed::Both),
        Err(RedirectError::NotSupported(problem)) => {
            debug!(problem, "the kernel has no table for both address families: one for IPv4 alone");
            let rules: Vec<Rule> = rules.into_iter().filter(|rule| rule.is_for(Family::V4)).collect();
            replace(NFPROTO_IPV4, &rules)?;
            Ok(Installed::V4Only)
        }
        Err(problem) => Err(problem),
    }
}

/// Takes them away. That there are none is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), RedirectError> {
    for family in [NFPROTO_INET, NFPROTO_IPV4] {
        match transaction(|batch| clear(batch, family)) {
            Ok(()) | Err(RedirectError::NotSupported(_)) => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(())
}

/// The rules that the kernel has, with their counts; none if none were installed.
///
/// # Errors
/// When the kernel can't be asked.
pub fn show() -> Result<Vec<Counted>, RedirectError> {
    let mut socket = NetlinkSocket::new();
    let mut shown = Vec::new();
    for family in [NFPROTO_INET, NFPROTO_IPV4] {
        let mut request = nftables::Request::new().op_getrule_dump(&header(family));
        request.encode().push_table_bytes(TABLE.as_bytes()).push_chain_bytes(CHAIN);
        let mut replies = socket.request(&request).map_err(RedirectError::of_io)?;
        while let Some(reply) = replies.recv() {
            let (_, rule) = match reply {
                Ok(rule) => rule,
                // No such table.
                Err(error) if matches!(error.as_io_error().raw_os_error(), Some(ENOENT | EAFNOSUPPORT)) => break,
                Err(error) => return Err(RedirectError::of(&error)),
            };
            // The filter in the request is only a hint to older kernels.
            if rule.get_table().is_ok_and(|table| table.to_bytes() != TABLE.as_bytes()) {
                continue;
            }
            let userdata = rule.get_userdata().unwrap_or_default();
            shown.push(Counted { rule: comment_of(userdata), connections: rule.get_expressions().ok().map_or(0, connections) });
        }
    }
    Ok(shown)
}

/// Replaces the table of this family.
fn replace(family: u8, rules: &[Rule]) -> Result<(), RedirectError> {
    transaction(|batch| {
        clear(batch, family);
        batch.request().set_create().op_newtable_do(&header(family)).encode().push_name_bytes(TABLE.as_bytes());
        let chain = batch.request().set_create().op_newchain_do(&header(family));
        let mut chain = chain;
        chain
            .encode()
            .push_table_bytes(TABLE.as_bytes())
            .push_name_bytes(CHAIN)
            .nested_hook()
            .push_num(HOOK_LOCAL_OUT)
            .push_priority(PRIORITY_DSTNAT)
            .end_nested()
            .push_policy(VerdictCode::Accept as u32)
            .push_type_bytes(b"nat");
        for rule in rules {
            let mut request = batch.request().set_create().set_append().op_newrule_do(&header(family));
            let into = request.encode().push_table_bytes(TABLE.as_bytes()).push_chain_bytes(CHAIN);
            expressions(into.nested_expressions(), rule).end_nested().push_userdata(&comment(rule));
        }
    })
}

/// Takes the table away, whether it is there or not: it is made first, so that there is one.
fn clear(batch: &mut nftables::Chained<'_>, family: u8) {
    batch.request().set_create().op_newtable_do(&header(family)).encode().push_name_bytes(TABLE.as_bytes());
    batch.request().op_deltable_do(&header(family)).encode().push_name_bytes(TABLE.as_bytes());
}

/// Sends all that `fill` writes down as one transaction: the kernel takes all of it or nothing.
fn transaction(fill: impl FnOnce(&mut nftables::Chained<'_>)) -> Result<(), RedirectError> {
    let mut socket = NetlinkSocket::new();
    let mut batch = nftables::Chained::new(socket.reserve_seq(1024));
    let mut edge = Nfgenmsg::new();
    edge.set_res_id(NFNL_SUBSYS_NFTABLES);
    batch.request().op_batch_begin_do(&edge);
    fill(&mut batch);
    batch.request().op_batch_end_do(&edge);
    socket.request_chained(&batch.finalize()).map_err(RedirectError::of_io)?.recv_all().map_err(|error| RedirectError::of(&error))
}

fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header
}

/// A rule as the small programs that the kernel runs.
fn expressions<P: Pusher>(mut list: PushExprListAttrs<P>, rule: &Rule) -> PushExprListAttrs<P> {
    for condition in &rule.when {
        list = match condition {
            Condition::User(uid) => equals(meta(list, MetaKeys::Skuid), &uid.to_ne_bytes()),
            // Names of interfaces are padded with zeros.
            Condition::Loopback => equals(meta(list, MetaKeys::Oifname), b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            Condition::Family(family) => equals(meta(list, MetaKeys::Nfproto), &[nfproto(*family)]),
            Condition::Protocol(Protocol::Tcp) => equals(meta(list, MetaKeys::L4Proto), &[IPPROTO_TCP]),
            Condition::Protocol(Protocol::Udp) => equals(meta(list, MetaKeys::L4Proto), &[IPPROTO_UDP]),
            Condition::To(network) => to(list, network),
            Condition::Port(port) => equals(payload(list, PayloadBase::TransportHeader, 2, 2), &port.to_be_bytes()),
        };
    }
    let list = list.nested_elem().nested_data_counter().end_nested().end_nested();
    match rule.then {
        Then::Pass => list
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(Registers::RegVerdict as u32)
            .nested_data()
            .nested_verdict()
            .push_code(VerdictCode::Accept as u32)
            .end_nested()
            .end_nested()
            .end_nested()
            .end_nested(),
        Then::Send(family, port) => {
            let list = match family.loopback() {
                IpAddr::V4(address) => load(list, Registers::Reg1, &address.octets()),
                IpAddr::V6(address) => load(list, Registers::Reg1, &address.octets()),
            };
            load(list, Registers::Reg2, &port.to_be_bytes())
                .nested_elem()
                .nested_data_nat()
                .push_type(NAT_DESTINATION)
                .push_family(u32::from(nfproto(family)))
                .push_reg_addr_min(Registers::Reg1 as u32)
                .push_reg_proto_min(Registers::Reg2 as u32)
                .end_nested()
                .end_nested()
        }
    }
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

fn to<P: Pusher>(list: PushExprListAttrs<P>, network: &Network) -> PushExprListAttrs<P> {
    let (address, prefix) = network.parts();
    let list = equals(meta(list, MetaKeys::Nfproto), &[nfproto(Family::of(address))]);
    // Where the destination is in the header, and which bits of it count.
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
            equals(masked(payload(list, PayloadBase::NetworkHeader, 16, 4), &mask.to_be_bytes()), &address.octets())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
            equals(masked(payload(list, PayloadBase::NetworkHeader, 24, 16), &mask.to_be_bytes()), &address.octets())
        }
    }
}

fn meta<P: Pusher>(list: PushExprListAttrs<P>, key: MetaKeys) -> PushExprListAttrs<P> {
    list.nested_elem().nested_data_meta().push_dreg(Registers::Reg1 as u32).push_key(key as u32).end_nested().end_nested()
}

fn payload<P: Pusher>(list: PushExprListAttrs<P>, base: PayloadBase, offset: u32, bytes: u32) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_payload()
        .push_dreg(Registers::Reg1 as u32)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(bytes)
        .end_nested()
        .end_nested()
}

fn masked<P: Pusher>(list: PushExprListAttrs<P>, mask: &[u8]) -> PushExprListAttrs<P> {
    let zeros = [0; 16];
    list.nested_elem()
        .nested_data_bitwise()
        .push_sreg(Registers::Reg1 as u32)
        .push_dreg(Registers::Reg1 as u32)
        .push_len(u32::try_from(mask.len()).unwrap_or(u32::MAX))
        .push_op(BitwiseOps::MaskXor as u32)
        .nested_mask()
        .push_value(mask)
        .end_nested()
        .nested_xor()
        .push_value(&zeros[..mask.len()])
        .end_nested()
        .end_nested()
        .end_nested()
}

fn equals<P: Pusher>(list: PushExprListAttrs<P>, value: &[u8]) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_cmp()
        .push_sreg(Registers::Reg1 as u32)
        .push_op(CmpOps::Eq as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn load<P: Pusher>(list: PushExprListAttrs<P>, register: Registers, value: &[u8]) -> PushExprListAttrs<P> {
    list.nested_elem().nested_data_immediate().push_dreg(register as u32).nested_data().push_value(value).end_nested().end_nested().end_nested()
}

/// What a rule says and is for, as `nft` keeps comments: type 0, length, text with a zero at its end.
fn comment(rule: &Rule) -> Vec<u8> {
    let mut text = format!("{rule} ({})", rule.why).into_bytes();
    text.truncate(250);
    text.push(0);
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, length], &text[..]].concat()
}

fn comment_of(userdata: &[u8]) -> String {
    match userdata {
        [0, _, text @ .., 0] => String::from_utf8_lossy(text).into_owned(),
        _ => "(not ours)".to_owned(),
    }
}

fn connections(expressions: nftables::IterableExprListAttrs<'_>) -> u64 {
    for expression in expressions {
        let Ok(ExprListAttrs::Elem(expression)) = expression else { continue };
        if let Ok(nftables::ExprOps::Counter(counter)) = expression.get_data() {
            return counter.get_packets().unwrap_or(0);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_back() {
        let rule = Rule { when: vec![Condition::Loopback], then: Then::Pass, why: "within the pod" };
        assert_eq!(comment_of(&comment(&rule)), "oifname \"lo\" accept (within the pod)");
        assert_eq!(comment_of(&[1, 2, 3]), "(not ours)");
    }

    #[test]
    fn the_longest_rule_has_room_for_its_comment() {
        let address: IpAddr = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff".parse().unwrap();
        let redirect = Redirect {
            proxy_uid: u32::MAX,
            transparent_port: u16::MAX,
            dns_port: Some(u16::MAX),
            nameservers: vec![address],
            excluded_ports: vec![u16::MAX],
            excluded_networks: vec![address.into()],
        };
        for rule in redirect.rules() {
            assert!(comment_of(&comment(&rule)).ends_with(&format!("({})", rule.why)), "{rule}");
        }
    }
}

//! Messages of DNS (RFC 1035, section 4), as far as they matter here: which question a query asks, which addresses an answer has, and answers of our own.

use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message::Message;
use domain::base::message_builder::{AnswerBuilder, MessageBuilder, PushError};
use domain::base::{Ttl, wire::ParseError};
use domain::rdata::{A, Aaaa};

/// How long an answer of our own is good for, as that of Kubernetes' DNS: what is no Service now may be one soon.
pub const TTL: Duration = Duration::from_secs(5);
/// What fits into a UDP packet if nobody says otherwise (RFC 1035, section 4.2.1).
const UDP_BYTES: usize = 512;
/// What we take over UDP; only said where EDNS is spoken.
const OUR_UDP_BYTES: u16 = 1232;

/// A query.
#[derive(Debug)]
pub struct Query<'a> {
    message: &'a Message<[u8]>,
    /// The name that it asks for, in lower case and without a dot at its end.
    pub name: String,
    /// What of it.
    pub asks: Asks,
    /// The most that its sender takes over UDP, in bytes.
    pub udp_bytes: usize,
}

/// What a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// IPv4 addresses.
    V4,
    /// IPv6 addresses.
    V6,
    /// Something else about the name.
    Other,
    /// Something that is no name of the internet (another class).
    OtherClass,
}

/// What a message that somebody sent to a nameserver is.
#[derive(Debug)]
pub enum Received<'a> {
    /// A query with one question.
    Query(Query<'a>),
    /// Something else that a nameserver may understand (an update, a notification).
    Opaque,
    /// A query that can't be read, and the answer to it.
    Malformed(Vec<u8>),
    /// Nothing that has an answer.
    Nothing,
}

/// Reads a message.
pub fn read(bytes: &[u8]) -> Received<'_> {
    let Ok(message) = Message::from_slice(bytes) else { return Received::Nothing };
    let header = message.header();
    if header.qr() {
        return Received::Nothing;
    }
    if header.opcode() != Opcode::QUERY {
        return Received::Opaque;
    }
    let Ok(question) = message.sole_question() else { return Received::Malformed(failure(message, Rcode::FORMERR)) };
    let asks = match (question.qclass(), question.qtype()) {
        (Class::IN, Rtype::A) => Asks::V4,
        (Class::IN, Rtype::AAAA) => Asks::V6,
        (Class::IN, _) => Asks::Other,
        _ => Asks::OtherClass,
    };
    let name = question.qname().to_string().to_ascii_lowercase();
    let udp_bytes = message.opt().map_or(UDP_BYTES, |opt| usize::from(opt.udp_payload_size()).max(UDP_BYTES));
    Received::Query(Query { message, name, asks, udp_bytes })
}

impl Query<'_> {
    /// An answer with this address, or with none: the name is there, and has nothing of what was asked for (NODATA; RFC 2308, section 2.2, without an SOA, so that nobody keeps it).
    pub fn answer(&self, address: Option<IpAddr>) -> Vec<u8> {
        let compose = || -> Result<Vec<u8>, PushError> {
            let mut answer = MessageBuilder::new_vec().start_answer(self.message, Rcode::NOERROR)?;
            answer.header_mut().set_aa(true);
            if let (Some(address), Some(question)) = (address, self.message.first_question()) {
                let ttl = Ttl::from_secs(u32::try_from(TTL.as_secs()).unwrap_or(u32::MAX));
                match address {
                    IpAddr::V4(address) => answer.push((question.qname(), Class::IN, ttl, A::new(address)))?,
                    IpAddr::V6(address) => answer.push((question.qname(), Class::IN, ttl, Aaaa::new(address)))?,
                }
            }
            finish(answer, self.message)
        };
        compose().unwrap_or_else(|_| failure(self.message, Rcode::SERVFAIL))
    }

    /// The answer that it could not be answered.
    pub fn failed(&self) -> Vec<u8> {
        failure(self.message, Rcode::SERVFAIL)
    }

    /// The same question for addresses of the other family.
    ///
    /// # Errors
    /// When the name can't be written down, which it can if it could be read.
    pub fn for_the_other_family(&self) -> Result<Vec<u8>, PushError> {
        let other = if self.asks == Asks::V4 { Rtype::AAAA } else { Rtype::A };
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_rd(true);
        if let Some(question) = self.message.first_question() {
            builder.push((question.qname(), other, Class::IN))?;
        }
        Ok(builder.finish())
    }
}

/// The answer to something opaque that could not be passed on.
pub fn failed(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(failure(Message::from_slice(bytes).ok()?, Rcode::SERVFAIL))
}

fn failure(query: &Message<[u8]>, rcode: Rcode) -> Vec<u8> {
    let answer = MessageBuilder::new_vec().start_error(query, rcode);
    let plain = answer.as_slice().to_vec();
    finish(answer, query).unwrap_or(plain)
}

/// Whoever speaks EDNS is answered in it (RFC 6891, section 6.1.1).
fn finish(mut answer: AnswerBuilder<Vec<u8>>, query: &Message<[u8]>) -> Result<Vec<u8>, PushError> {
    answer.header_mut().set_ra(true);
    let mut additional = answer.additional();
    if query.opt().is_some() {
        additional.opt(|opt| {
            opt.set_udp_payload_size(OUR_UDP_BYTES);
            Ok(())
        })?;
    }
    Ok(additional.finish())
}

/// Whether `answer` is one to `query`: what a stranger sends isn't. An error may be without its question.
pub fn answers(answer: &[u8], query: &[u8]) -> bool {
    let (Ok(answer), Ok(query)) = (Message::from_slice(answer), Message::from_slice(query)) else { return false };
    let header = answer.header();
    let bare_error = header.qr() && header.id() == query.header().id() && header.rcode() != Rcode::NOERROR && answer.header_counts().qdcount() == 0;
    // What is no query may have other sections in the place of the question.
    let opaque = query.header().opcode() != Opcode::QUERY && header.qr() && header.id() == query.header().id();
    bare_error || opaque || answer.is_answer(query)
}

/// What a nameserver's answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// It has something; these addresses are in it, with how long they are good for.
    Something(Vec<(IpAddr, Duration)>),
    /// The name is there, and has nothing of what was asked for.
    NoData,
    /// There is no such name.
    NoName,
    /// It can't say.
    CannotSay,
}

/// Reads an answer.
pub fn says(answer: &[u8]) -> Says {
    let Ok(message) = Message::from_slice(answer) else { return Says::CannotSay };
    match message.header().rcode() {
        Rcode::NXDOMAIN => Says::NoName,
        // What was cut off is asked for again over TCP.
        Rcode::NOERROR if message.header_counts().ancount() > 0 || message.header().tc() => Says::Something(addresses(message).unwrap_or_default()),
        Rcode::NOERROR => Says::NoData,
        _ => Says::CannotSay,
    }
}

/// All addresses in an answer, whatever names they are at: those at the end of aliases are addresses too.
fn addresses(message: &Message<[u8]>) -> Result<Vec<(IpAddr, Duration)>, ParseError> {
    let mut found = Vec::new();
    for record in message.answer()? {
        let record = record?;
        let address = match (record.class(), record.rtype()) {
            (Class::IN, Rtype::A) => record.to_record::<A>()?.map(|record| IpAddr::from(record.data().addr())),
            (Class::IN, Rtype::AAAA) => record.to_record::<Aaaa>()?.map(|record| IpAddr::from(record.data().addr())),
            _ => None,
        };
        found.extend(address.map(|address| (address, Duration::from_secs(record.ttl().as_secs().into()))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use domain::base::Name;
    use domain::rdata::Cname;

    use super::*;

    type Text = Name<Vec<u8>>;

    fn query(name: &str, rtype: Rtype, edns: Option<u16>) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_id(7);
        builder.header_mut().set_rd(true);
        builder.push((Text::from_str(name).unwrap(), rtype)).unwrap();
        let mut builder = builder.additional();
        if let Some(bytes) = edns {
            builder
                .opt(|opt| {
                    opt.set_udp_payload_size(bytes);
                    Ok(())
                })
                .unwrap();
        }
        builder.finish()
    }

    fn read_query(bytes: &[u8]) -> Query<'_> {
        match read(bytes) {
            Received::Query(query) => query,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_query_is_read() {
        let bytes = query("Cart.Shop.svc.cluster.local.", Rtype::A, Some(4096));
        let read = read_query(&bytes);
        assert_eq!((read.name.as_str(), read.asks, read.udp_bytes), ("cart.shop.svc.cluster.local", Asks::V4, 4096));
        let bytes = query("cart.", Rtype::HTTPS, None);
        let read = read_query(&bytes);
        assert_eq!((read.name.as_str(), read.asks, read.udp_bytes), ("cart", Asks::Other, 512));
    }

    #[test]
    fn our_answers_answer() {
        let bytes = query("cart.", Rtype::A, Some(1232));
        let answer = read_query(&bytes).answer(Some("240.187.85.1".parse().unwrap()));
        assert!(answers(&answer, &bytes));
        assert_eq!(says(&answer), Says::Something(vec![("240.187.85.1".parse().unwrap(), TTL)]));
        assert!(Message::from_slice(&answer).unwrap().opt().is_some(), "EDNS is answered in EDNS");
        let bytes = query("cart.", Rtype::AAAA, None);
        let answer = read_query(&bytes).answer(None);
        assert!(answers(&answer, &bytes));
        assert_eq!(says(&answer), Says::NoData);
        assert!(Message::from_slice(&answer).unwrap().opt().is_none());
        let failed = read_query(&bytes).failed();
        assert!(answers(&failed, &bytes));
        assert_eq!(says(&failed), Says::CannotSay);
    }

    #[test]
    fn strangers_answers_are_none() {
        let bytes = query("cart.", Rtype::A, None);
        let mut other_id = read_query(&bytes).answer(None);
        other_id[1] ^= 1;
        assert!(!answers(&other_id, &bytes));
        let other = query("shop.", Rtype::A, None);
        assert!(!answers(&read_query(&other).answer(None), &bytes));
        assert!(!answers(&bytes, &bytes), "a query is no answer");
        assert!(!answers(&[], &bytes));
    }

    #[test]
    fn addresses_behind_an_alias_are_found() {
        let bytes = query("cart.", Rtype::A, None);
        let query = Message::from_slice(&bytes).unwrap();
        let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
        let (cart, real) = (Text::from_str("cart.").unwrap(), Text::from_str("real.example.").unwrap());
        answer.push((cart, Class::IN, Ttl::from_secs(9), Cname::new(real.clone()))).unwrap();
        answer.push((real, Class::IN, Ttl::from_secs(30), A::new("10.0.0.7".parse().unwrap()))).unwrap();
        let expected = vec![("10.0.0.7".parse().unwrap(), Duration::from_secs(30))];
        assert_eq!(says(&answer.finish()), Says::Something(expected));
    }

    #[test]
    fn what_cant_be_read_is_refused_and_what_has_no_answer_has_none() {
        let mut two = query("cart.", Rtype::A, None);
        two[5] = 2;
        let Received::Malformed(answer) = read(&two) else { panic!() };
        assert_eq!(Message::from_slice(&answer).unwrap().header().rcode(), Rcode::FORMERR);
        let mut cut = query("cart.", Rtype::A, None);
        cut.truncate(14);
        assert!(matches!(read(&cut), Received::Malformed(_)));
        assert!(matches!(read(&[0; 5]), Received::Nothing));
        let mut answer = query("cart.", Rtype::A, None);
        answer[2] |= 0x80;
        assert!(matches!(read(&answer), Received::Nothing), "an answer that nobody asked for");
        let mut update = query("cart.", Rtype::SOA, None);
        update[2] |= 5 << 3;
        assert!(matches!(read(&update), Received::Opaque));
    }

    #[test]
    fn the_other_family_is_asked_for() {
        let bytes = query("cart.", Rtype::AAAA, None);
        let other = read_query(&bytes).for_the_other_family().unwrap();
        let other = read_query(&other);
        assert_eq!((other.name.as_str(), other.asks), ("cart", Asks::V4));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120), head in proptest::bool::ANY) {
            let mut bytes = bytes;
            if head && bytes.len() > 12 {
                // A query with a question.
                bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            }
            says(&bytes);
            answers(&bytes, &bytes);
            if let Received::Query(query) = read(&bytes) {
                query.answer(Some("240.187.85.1".parse().unwrap()));
                query.failed();
                let _ = query.for_the_other_family();
            }
            failed(&bytes);
        }
    }
}

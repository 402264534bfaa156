//! How a call finds its partition where its path says it.
//!
//! A transaction lives in one partition of the transaction manager, and its id begins with the number of that. So every proxy can tell where a call about it goes, without asking anybody. It is no
//! ordering key: calls about one transaction are not delivered one at a time, because one that waits for the end of a transaction must not hold up those that bring it about.

use serde::{Deserialize, Serialize};

/// How a call to a component finds its partition, where it names no ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// By its ordering key, else by its id.
    #[default]
    Call,
    /// By the id of a transaction in its path, else as the others.
    Transaction,
}

impl Routing {
    /// Whether it is that of ordinary components, which is not written down.
    pub fn is_usual(&self) -> bool {
        *self == Self::Call
    }

    /// The partition that a request target (origin form) names; `None` where it names none that there is.
    pub fn partition(self, target: &str, partitions: u32) -> Option<u32> {
        match self {
            Self::Call => None,
            Self::Transaction => transaction_partition(target).filter(|partition| *partition < partitions),
        }
    }
}

/// How an id is written: so many hexadecimal digits, with '-' between: partition, time of creation, random bits.
pub const TRANSACTION_ID_DIGITS: [usize; 3] = [4, 12, 16];

/// The length of an id as it is written.
const ID_LEN: usize = 34;

/// The partition of the first id of a transaction in the path. It is a segment of its own, or the end of a URL that was percent-encoded into a segment.
fn transaction_partition(target: &str) -> Option<u32> {
    let path = target.split('?').next()?;
    let starts = path.match_indices('/').map(|(at, _)| at + 1).chain(["%2F", "%2f"].iter().flat_map(|slash| path.match_indices(slash)).map(|(at, _)| at + 3));
    starts.filter_map(|at| Some((at, id_at(path.get(at..)?)?))).min().map(|(_, partition)| partition)
}

fn id_at(text: &str) -> Option<u32> {
    let id = text.get(..ID_LEN)?;
    let ends = text.get(ID_LEN..)?.bytes().next().is_none_or(|next| matches!(next, b'/' | b'%'));
    let mut parts = id.split('-');
    let legal = TRANSACTION_ID_DIGITS
        .iter()
        .all(|digits| parts.next().is_some_and(|part| part.len() == *digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))));
    if legal && ends { u32::from_str_radix(id.get(..4)?, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0007-019b2c3d4e5f-0123456789abcdef";

    #[test]
    fn the_id_in_the_path_says_the_partition() {
        for target in [
            format!("/lra-coordinator/{ID}"),
            format!("/lra-coordinator/{ID}/close?x=y"),
            format!("/lra-coordinator/recovery/{ID}/3"),
            format!("/lra-coordinator/http%3A%2F%2Ftxmgr%2Flra-coordinator%2F{ID}/close"),
            format!("/lra-coordinator/http%3a%2f%2ftxmgr%2flra-coordinator%2f{ID}%3FParentLRA%3Dx/close"),
            format!("/{ID}/0008-019b2c3d4e5f-0123456789abcdef"),
        ] {
            assert_eq!(Routing::Transaction.partition(&target, 8), Some(7), "{target}");
            assert_eq!(Routing::Transaction.partition(&target, 7), None, "there is no such partition");
            assert_eq!(Routing::Call.partition(&target, 8), None);
        }
    }

    #[test]
    fn what_is_no_id_says_nothing() {
        for target in [
            "/lra-coordinator/start?ParentLRA=http://txmgr/lra-coordinator/0007-019b2c3d4e5f-0123456789abcdef".to_owned(),
            "*".to_owned(),
            String::new(),
            format!("/x{ID}"),
            format!("/{ID}0"),
            format!("/{}", ID.to_uppercase()),
            format!("/{}", &ID[1..]),
            "/0007-019b2c3d4e5f-é".to_owned(),
        ] {
            assert_eq!(Routing::Transaction.partition(&target, 8), None, "{target}");
        }
    }
}

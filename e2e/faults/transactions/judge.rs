//! What must be true of what the participants were asked. Pure.

use std::collections::HashMap;

use bluebox_e2e::app::Asked;

use super::answers::says_no;
use super::client::{Kind, Transaction};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Participants that were not asked what the end of their transaction asks for.
    pub(crate) half_done: u64,
    /// Participants that were asked to complete and to compensate.
    pub(crate) both: u64,
    /// The same in nested LRAs, where it is right: complete, then compensate.
    pub(crate) nested_both: u64,
    /// Participants that were asked anything after they were told to forget.
    pub(crate) after_forget: u64,
    /// Steps whose action came after their compensation, or before that of a step before them; nested LRAs that compensated first.
    pub(crate) out_of_order: u64,
    /// Steps that were compensated and never came: their calls had expired in the log, so it was not known whether they had. That is as it should be.
    pub(crate) undone_unseen: u64,
    /// Callbacks in all.
    pub(crate) callbacks: u64,
    /// Callbacks that came again under the same key.
    pub(crate) more_than_once: u64,
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.half_done + self.both + self.after_forget + self.out_of_order == 0
    }
}

/// Whom a callback is for: a transaction, or what the paths of a saga's steps begin with.
fn of(asked: &Asked) -> Option<(String, &str)> {
    let what = asked.target.rsplit('/').next()?;
    if let Some(path) = asked.target.strip_suffix(what).filter(|path| path.starts_with("/saga/")) {
        return Some((path.to_owned(), what));
    }
    let lra = [asked.header("long-running-action"), asked.header("long-running-action-ended")].into_iter().find(|url| !url.is_empty())?;
    Some((lra.to_owned(), what))
}

/// Judges all transactions by the ledgers of all participants.
pub(crate) fn judge(transactions: &[Transaction], ledgers: &[(&'static str, Vec<Asked>)]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys = HashMap::<&str, u64>::new();
    let mut by_member = HashMap::<(String, &str), Vec<&str>>::new();
    for (name, ledger) in ledgers {
        for asked in ledger {
            // One that asks whether it is there.
            if asked.header("idempotency-key").is_empty() {
                continue;
            }
            verdict.callbacks += 1;
            *keys.entry(asked.header("idempotency-key")).or_default() += 1;
            if let Some((transaction, what)) = of(asked) {
                by_member.entry((transaction, name)).or_default().push(what);
            }
        }
    }
    verdict.more_than_once = keys.values().map(|times| times - 1).sum();
    for transaction in transactions {
        for name in &transaction.members {
            let of = if transaction.kind == Kind::Saga { &transaction.tag } else { &transaction.url };
            let asked = by_member.get(&(of.clone(), *name)).map_or(&[][..], Vec::as_slice);
            let wrong = if transaction.kind == Kind::Saga { step(&mut verdict, transaction, asked) } else { participant(&mut verdict, transaction, asked) };
            if let Some(wrong) = wrong {
                verdict.examples.push(format!("{} ({}): {name} {wrong}: it was asked {asked:?}", transaction.url, transaction.status));
            }
        }
    }
    verdict
}

fn participant(verdict: &mut Verdict, transaction: &Transaction, asked: &[&str]) -> Option<&'static str> {
    let first = |what: &str| asked.iter().position(|there| *there == what);
    let (complete, compensate) = (first("complete"), first("compensate"));
    if let Some(forget) = first("forget")
        && asked.iter().skip(forget).any(|what| *what != "forget")
    {
        verdict.after_forget += 1;
        return Some("was asked something after it was told to forget");
    }
    if let (Some(complete), Some(compensate)) = (complete, compensate) {
        if transaction.kind == Kind::Nested && transaction.status == "Cancelled" {
            verdict.nested_both += 1;
            if compensate < complete {
                verdict.out_of_order += 1;
                return Some("compensated before it completed");
            }
            return None;
        }
        verdict.both += 1;
        return Some("was asked to complete and to compensate");
    }
    let done = match transaction.status.as_str() {
        "Closed" => complete.is_some(),
        "Cancelled" => compensate.is_some(),
        _ => false,
    };
    if !done {
        verdict.half_done += 1;
        return Some("was not asked what the end asks for");
    }
    None
}

fn step(verdict: &mut Verdict, transaction: &Transaction, asked: &[&str]) -> Option<&'static str> {
    let first = |what: &str| asked.iter().position(|there| *there == what);
    let last_do = asked.iter().rposition(|there| *there == "do");
    match (last_do, first("undo")) {
        (None, Some(_)) => {
            if transaction.status != "Cancelled" {
                verdict.out_of_order += 1;
                return Some("was compensated and never ran, in a saga that was not cancelled");
            }
            verdict.undone_unseen += 1;
        }
        (Some(last), Some(undo)) if last > undo => {
            verdict.out_of_order += 1;
            return Some("ran after it was compensated");
        }
        _ => {}
    }
    match transaction.status.as_str() {
        "Closed" if first("undo").is_some() => {
            verdict.both += 1;
            Some("ran and was compensated, though all is done")
        }
        "Closed" if last_do.is_none() => {
            verdict.half_done += 1;
            Some("never ran, though all is done")
        }
        // Of one that said no, nothing is taken back: it may be, if its answer was lost.
        "Cancelled" if last_do.is_some() && first("undo").is_none() && !says_no(&format!("{}do", transaction.tag)) => {
            verdict.half_done += 1;
            Some("ran and was not compensated")
        }
        "Closed" | "Cancelled" => None,
        _ => {
            verdict.half_done += 1;
            Some("is of a saga that has not ended")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lra(kind: Kind, status: &str) -> Transaction {
        Transaction { kind, url: "u".to_owned(), members: vec!["hotel"], tag: String::new(), status: status.to_owned() }
    }

    fn of_participant(kind: Kind, status: &str, asked: &[&str]) -> Verdict {
        let mut verdict = Verdict::default();
        participant(&mut verdict, &lra(kind, status), asked);
        verdict
    }

    #[test]
    fn what_is_right_is_found_right() {
        for (kind, status, asked) in [
            (Kind::Lra, "Closed", &["complete", "after"][..]),
            (Kind::Lra, "Cancelled", &["compensate", "compensate", "after", "forget", "forget"]),
            (Kind::Nested, "Cancelled", &["complete", "compensate", "after"]),
        ] {
            assert!(of_participant(kind, status, asked).is_good(), "{asked:?}");
        }
        assert_eq!(of_participant(Kind::Nested, "Cancelled", &["complete", "compensate"]).nested_both, 1);
    }

    #[test]
    fn what_is_wrong_is_found() {
        assert_eq!(of_participant(Kind::Lra, "Closed", &["after"]).half_done, 1);
        assert_eq!(of_participant(Kind::Lra, "Closed", &["compensate"]).half_done, 1);
        assert_eq!(of_participant(Kind::Lra, "Cancelled", &["complete", "compensate"]).both, 1);
        assert_eq!(of_participant(Kind::Nested, "Closed", &["complete", "compensate"]).both, 1);
        assert_eq!(of_participant(Kind::Nested, "Cancelled", &["compensate", "complete"]).out_of_order, 1);
        assert_eq!(of_participant(Kind::Lra, "Closed", &["complete", "forget", "after"]).after_forget, 1);
        assert_eq!(of_participant(Kind::Lra, "Closing", &["complete"]).half_done, 1);
        let saga = |status: &str, asked: &[&str]| {
            let mut verdict = Verdict::default();
            step(&mut verdict, &lra(Kind::Saga, status), asked);
            verdict
        };
        assert_eq!(saga("Closed", &["undo"]).out_of_order, 1);
        assert!(saga("Cancelled", &["undo"]).is_good() && saga("Cancelled", &["undo"]).undone_unseen == 1);
        assert_eq!(saga("Cancelled", &["do", "undo", "do"]).out_of_order, 1);
        assert_eq!(saga("Closed", &["do", "undo"]).both, 1);
        assert_eq!(saga("Closed", &[]).half_done, 1);
        assert_eq!(saga("Cancelled", &["do"]).half_done, 1);
        assert!(saga("Cancelled", &[]).is_good() && saga("Cancelled", &["do", "do", "undo"]).is_good() && saga("Closed", &["do"]).is_good());
    }

    #[test]
    fn of_a_step_that_said_no_nothing_is_taken_back() {
        let tag = (0..1_000).map(|n| format!("/saga/{n}/")).find(|tag| says_no(&format!("{tag}do"))).unwrap();
        let mut verdict = Verdict::default();
        step(&mut verdict, &Transaction { tag, ..lra(Kind::Saga, "Cancelled") }, &["do"]);
        assert!(verdict.is_good());
    }
}

//! The commits of a member, in order, one request at a time. No I/O, no clock: the member's thread brings events and does what comes out.

use std::collections::{BTreeMap, VecDeque};

use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::log::{Committed, LogError, TopicPartition};

/// Partitions in one request at most.
const REQUEST_PARTITIONS: usize = 512;

pub(super) type CommitReply = oneshot::Sender<Result<Moment, LogError>>;

/// What a member has asked for, in its order.
pub(super) enum Work {
    Commit(Request),
    /// Nothing is committed for these any more.
    Release(Vec<TopicPartition>),
    Leave(oneshot::Sender<Result<(), LogError>>),
}

impl Work {
    /// Answers that it can't be done.
    pub(super) fn refuse(self, why: &LogError) {
        match self {
            Self::Commit(request) => request.answer(Err(why.clone())),
            Self::Leave(reply) => {
                let _ = reply.send(Ok(()));
            }
            Self::Release(_) => {}
        }
    }
}

pub(super) struct Request {
    commits: Vec<(TopicPartition, Committed)>,
    reply: CommitReply,
    /// Goes in a request of its own, because it may be what the broker refused.
    alone: bool,
}

impl Request {
    pub(super) fn new(commits: Vec<(TopicPartition, Committed)>, reply: CommitReply) -> Self {
        Self { commits, reply, alone: false }
    }

    pub(super) fn answer(self, result: Result<Moment, LogError>) {
        let _ = self.reply.send(result);
    }
}

/// What the broker said about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// The group or its coordinator is being rearranged: the same request may succeed in a moment.
    Again(LogError),
    /// Final.
    Failed(LogError),
}

impl Verdict {
    /// The verdict on a request that was answered with this code; `None`: done.
    pub(super) fn of(group: &str, code: Option<Code>) -> Self {
        let Some(code) = code else { return Self::Done };
        match (code, super::error::by_code(&format!("group {group:?}"), code)) {
            // With the classic protocol the generation moves a moment before the member hears of it; with KIP-848 the epoch does. That is no loss: the
            // partitions that are kept through the rebalance stay this member's. A real loss is told by the group itself.
            (Code::IllegalGeneration | Code::StaleMemberEpoch | Code::RebalanceInProgress, error) | (_, error @ LogError::Unavailable(_)) => Self::Again(error),
            (_, error) => Self::Failed(error),
        }
    }
}

/// The queue, and what is on its way.
#[derive(Default)]
pub(super) struct CommitQueue {
    waiting: VecDeque<Work>,
    in_flight: Option<InFlight>,
}

struct InFlight {
    requests: Vec<Request>,
    sent: Moment,
}

impl CommitQueue {
    pub(super) fn push(&mut self, work: Work) {
        self.waiting.push_back(work);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_none()
    }

    /// The next thing to do that is no commit, if it is its turn.
    pub(super) fn next_other(&mut self) -> Option<Work> {
        if self.in_flight.is_some() || matches!(self.waiting.front(), None | Some(Work::Commit(_))) {
            return None;
        }
        self.waiting.pop_front()
    }

    /// What the next request to the broker holds; later commits of a partition replace earlier ones. Requests that `owns` does not allow are answered as fenced.
    /// The caller sends it; `now` is the moment just before. `None`: nothing to send.
    pub(super) fn next_request(&mut self, now: Moment, owns: impl Fn(&TopicPartition) -> bool) -> Option<BTreeMap<TopicPartition, Committed>> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut content = BTreeMap::new();
        let mut requests: Vec<Request> = Vec::new();
        while let Some(Work::Commit(next)) = self.waiting.front() {
            let fits = content.len() + next.commits.len() <= REQUEST_PARTITIONS;
            let joins = !next.alone && !requests.iter().any(|request| request.alone);
            if !(requests.is_empty() || fits && joins) {
                break;
            }
            let Some(Work::Commit(request)) = self.waiting.pop_front() else { break };
            if let Some((partition, _)) = request.commits.iter().find(|(partition, _)| !owns(partition)) {
                let error = LogError::Fenced(format!("{partition}: this member does not own it"));
                request.answer(Err(error));
                continue;
            }
            if request.commits.is_empty() {
                request.answer(Err(LogError::Refused("a commit without partitions".to_owned())));
                continue;
            }
            content.extend(request.commits.iter().cloned());
            requests.push(request);
        }
        if requests.is_empty() {
            return None;
        }
        self.in_flight = Some(InFlight { requests, sent: now });
        Some(content)
    }

    /// The broker's answer to the request that is on its way. True if it goes again, after a pause; `give_up`: it does not.
    pub(super) fn answered(&mut self, verdict: Verdict, give_up: bool) -> bool {
        let Some(InFlight { requests, sent }) = self.in_flight.take() else { return false };
        match verdict {
            Verdict::Done => requests.into_iter().for_each(|request| request.answer(Ok(sent))),
            Verdict::Again(error) if give_up => requests.into_iter().for_each(|request| request.answer(Err(error.clone()))),
            Verdict::Again(_) => {
                let again = !requests.is_empty();
                self.put_back(requests, false);
                return again;
            }
            Verdict::Failed(LogError::Refused(_) | LogError::NotFound(_)) if requests.len() > 1 => self.put_back(requests, true),
            Verdict::Failed(error) => requests.into_iter().for_each(|request| request.answer(Err(error.clone()))),
        }
        false
    }

    fn put_back(&mut self, requests: Vec<Request>, alone: bool) {
        for mut request in requests.into_iter().rev() {
            request.alone |= alone;
            self.waiting.push_front(Work::Commit(request));
        }
    }

    /// The answer that is due won't come: the client that sent the request is gone.
    pub(super) fn forget(&mut self) {
        self.in_flight = None;
    }

    /// The member is none any more: nothing that waits can be done.
    pub(super) fn end(&mut self, why: &LogError) {
        self.fence(why);
        for work in self.waiting.drain(..) {
            work.refuse(why);
        }
    }

    /// The member lost partitions, or is none any more: what is on its way can't count, whatever the broker says. Its answer is still due.
    pub(super) fn fence(&mut self, why: &LogError) {
        if let Some(in_flight) = &mut self.in_flight {
            for request in in_flight.requests.drain(..) {
                request.answer(Err(why.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::log::{Offset, Topic};

    fn commit(queue: &mut CommitQueue, partition: u32, offset: u64) -> oneshot::Receiver<Result<Moment, LogError>> {
        let (reply, answer) = oneshot::channel();
        let committed = Committed { offset: Offset::new(offset), metadata: String::new() };
        queue.push(Work::Commit(Request::new(vec![(Topic::new("t").partition(partition), committed)], reply)));
        answer
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    fn offsets(content: Option<BTreeMap<TopicPartition, Committed>>) -> Vec<(u32, u64)> {
        content.unwrap_or_default().into_iter().map(|(partition, committed)| (partition.partition, committed.offset.get())).collect()
    }

    #[test]
    fn one_request_at_a_time_and_the_last_commit_of_a_partition_wins() {
        let mut queue = CommitQueue::default();
        let mut answers = vec![commit(&mut queue, 0, 1), commit(&mut queue, 0, 2), commit(&mut queue, 1, 7)];
        assert_eq!(offsets(queue.next_request(at(5), |_| true)), [(0, 2), (1, 7)]);
        let mut later = commit(&mut queue, 0, 3);
        assert_eq!(queue.next_request(at(6), |_| true), None, "one is on its way");
        assert!(!queue.answered(Verdict::Done, false));
        for answer in &mut answers {
            assert_eq!(answer.try_recv(), Ok(Ok(at(5))), "the moment before it was sent");
        }
        assert!(later.try_recv().is_err());
        assert_eq!(offsets(queue.next_request(at(7), |_| true)), [(0, 3)]);
    }

    #[test]
    fn a_release_waits_for_the_commits_before_it() {
        let mut queue = CommitQueue::default();
        let _first = commit(&mut queue, 0, 1);
        queue.push(Work::Release(vec![Topic::new("t").partition(0)]));
        assert!(queue.next_other().is_none());
        assert!(queue.next_request(at(1), |_| true).is_some());
        assert!(queue.next_other().is_none(), "the commit is still on its way");
        queue.answered(Verdict::Done, false);
        assert!(matches!(queue.next_other(), Some(Work::Release(_))));
    }

    #[test]
    fn what_is_not_owned_is_not_sent() {
        let mut queue = CommitQueue::default();
        let mut lost = commit(&mut queue, 0, 1);
        let _kept = commit(&mut queue, 1, 2);
        assert_eq!(offsets(queue.next_request(at(1), |partition| partition.partition == 1)), [(1, 2)]);
        assert!(matches!(lost.try_recv(), Ok(Err(LogError::Fenced(_)))));
    }

    #[test]
    fn a_refusal_hits_only_the_one_it_is_for() {
        let mut queue = CommitQueue::default();
        let mut good = commit(&mut queue, 0, 1);
        let mut bad = commit(&mut queue, 1, 1);
        queue.next_request(at(1), |_| true);
        queue.answered(Verdict::Failed(LogError::Refused("too long".into())), false);
        assert_eq!(offsets(queue.next_request(at(2), |_| true)), [(0, 1)]);
        queue.answered(Verdict::Done, false);
        assert_eq!(good.try_recv(), Ok(Ok(at(2))));
        assert_eq!(offsets(queue.next_request(at(3), |_| true)), [(1, 1)]);
        queue.answered(Verdict::Failed(LogError::Refused("too long".into())), false);
        assert!(matches!(bad.try_recv(), Ok(Err(LogError::Refused(_)))));
    }

    #[test]
    fn a_loss_answers_what_is_on_its_way_and_a_late_success_changes_nothing() {
        let mut queue = CommitQueue::default();
        let mut answer = commit(&mut queue, 0, 1);
        queue.next_request(at(1), |_| true);
        queue.fence(&LogError::Fenced("lost".into()));
        assert!(matches!(answer.try_recv(), Ok(Err(LogError::Fenced(_)))));
        assert!(!queue.answered(Verdict::Done, false));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_rebalance_is_no_loss() {
        let verdict = Verdict::of("g", Some(Code::IllegalGeneration));
        assert!(matches!(verdict, Verdict::Again(_)), "{verdict:?}");
        let mut queue = CommitQueue::default();
        let mut answer = commit(&mut queue, 0, 1);
        queue.next_request(at(1), |_| true);
        assert!(queue.answered(verdict, false));
        queue.next_request(at(2), |_| true);
        queue.answered(Verdict::Done, false);
        assert_eq!(answer.try_recv(), Ok(Ok(at(2))), "what counts is the request that succeeded");
        assert!(matches!(Verdict::of("g", Some(Code::UnknownMemberId)), Verdict::Failed(LogError::Fenced(_))));
    }
}

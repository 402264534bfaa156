//! Which partitions a member owns: how they come, are asked for, and go.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::control::committed_of;
use super::member::{self, Client};
use super::session::{ASK_AGAIN, Command, Session};
use super::wake::{self, Watched};
use crate::log::{Assignment, Committed, GroupEvent, LogError, TopicPartition};

/// Partitions that others should get. The answer to the group is due when all are released.
pub(super) struct Revoking {
    /// What is not released yet.
    pub(super) left: BTreeSet<TopicPartition>,
    pub(super) since: Instant,
}

pub(super) struct Question {
    pub(super) id: u64,
    pub(super) partitions: Vec<TopicPartition>,
    /// When to ask (again); `None`: it is being asked.
    pub(super) due: Option<Instant>,
}

impl Session {
    pub(super) fn question(&mut self, partitions: Vec<TopicPartition>) {
        self.next_question += 1;
        self.questions.push(Question { id: self.next_question, partitions, due: Some(Instant::now()) });
    }

    /// Asks what was committed for new partitions, on another thread because it takes a moment.
    pub(super) fn ask(&mut self, client: &Client) {
        let now = Instant::now();
        for question in self.questions.iter_mut().filter(|question| question.due.is_some_and(|due| due <= now)) {
            question.due = None;
            let (id, partitions, consumer) = (question.id, question.partitions.clone(), client.consumer.clone());
            let (group, answers, thread) = (self.spec.name.clone(), self.answers.clone(), std::thread::current());
            let asked = self.control.ask(move |_| {
                let found = committed_of(&consumer, &group, &partitions, Duration::from_secs(2));
                drop(consumer);
                let _ = answers.send(Command::Found(id, found));
                thread.unpark();
                Ok(())
            });
            let mut asked: Watched<Result<(), LogError>> = Box::pin(asked);
            if let Some(Err(_)) = wake::poll(&mut asked, std::task::Waker::noop()) {
                question.due = Some(now + ASK_AGAIN);
            }
        }
    }

    pub(super) fn found(&mut self, id: u64, found: Result<Vec<Option<Committed>>, LogError>) {
        let Some(at) = self.questions.iter().position(|question| question.id == id) else { return };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                if matches!(error, LogError::Refused(_)) {
                    self.tell_trouble(error.to_string());
                }
                self.questions[at].due = Some(Instant::now() + ASK_AGAIN);
                return;
            }
        };
        let question = self.questions.swap_remove(at);
        let mut assigned = Vec::with_capacity(question.partitions.len());
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, committed) in question.partitions.into_iter().zip(found) {
            owned.insert(partition.clone(), None);
            assigned.push(Assignment { partition, committed, former_is_gone: self.leases_end_with_sessions() });
        }
        drop(owned);
        if !assigned.is_empty() {
            let _ = self.events.send(GroupEvent::Assigned(assigned));
        }
    }

    /// Partitions that were assigned but that nobody was told of yet, are not asked about any more.
    fn forget(&mut self, partitions: &[TopicPartition]) {
        for question in &mut self.questions {
            if question.partitions.iter().any(|partition| partitions.contains(partition)) {
                let rest: Vec<_> = question.partitions.iter().filter(|partition| !partitions.contains(partition)).cloned().collect();
                // An answer that is on its way no longer fits: the rest is asked about anew.
                self.next_question += 1;
                *question = Question { id: self.next_question, partitions: rest, due: Some(Instant::now()) };
            }
        }
        self.questions.retain(|question| !question.partitions.is_empty());
    }

    pub(super) fn revoke(&mut self, client: &Client, partitions: Vec<TopicPartition>) {
        self.forget(&partitions);
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<_> = partitions.into_iter().filter(|partition| owned.contains_key(partition)).collect();
        drop(owned);
        if told.is_empty() {
            member::release(&client.consumer);
            return;
        }
        self.revoking = Some(Revoking { left: told.iter().cloned().collect(), since: Instant::now() });
        let _ = self.events.send(GroupEvent::Revoking(told));
    }

    /// Whether a partition that was asked for is held for too long: that is a death, from which the member rises as a new one.
    pub(super) fn is_late(&self) -> bool {
        let late = self.revoking.as_ref().is_some_and(|revoking| revoking.since.elapsed() > self.spec.release_timeout);
        if late {
            warn!(group = self.spec.name, limit = ?self.spec.release_timeout, "a partition was not released in time; the member gave up all of them");
        }
        late
    }

    pub(super) fn release(&mut self, partitions: &[TopicPartition]) {
        let Some(revoking) = &mut self.revoking else {
            debug!(?partitions, "partitions were released that nobody asked for");
            return;
        };
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in partitions {
            if revoking.left.remove(partition) {
                owned.remove(partition);
            }
        }
    }

    /// When everything that was asked for is released, the group is told.
    pub(super) fn answer_revocation(&mut self, client: &Client) {
        if !self.commits.is_busy() && self.revoking.as_ref().is_some_and(|revoking| revoking.left.is_empty()) {
            self.revoking = None;
            member::release(&client.consumer);
        }
    }

    fn lose(&mut self, partitions: &[TopicPartition], why: &str) {
        self.forget(partitions);
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let lost: Vec<_> = partitions.iter().filter(|partition| owned.remove(partition).is_some()).cloned().collect();
        drop(owned);
        self.revoking = None;
        self.commits.fence(&LogError::Fenced(format!("group {:?}: {why}", self.spec.name)));
        if !lost.is_empty() {
            info!(group = self.spec.name, partitions = lost.len(), why, "partitions were lost");
            let _ = self.events.send(GroupEvent::Lost(lost));
        }
    }

    pub(super) fn lose_all(&mut self, why: &str) {
        let mut all: Vec<_> = self.owned.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        all.extend(self.questions.iter().flat_map(|question| question.partitions.iter().cloned()));
        self.lose(&all, why);
    }
}

//! Does what the [`Owner`] wants to be done.

use std::sync::Arc;

use bluebox_core::clock::Moment;
use bluebox_core::log::{Committed, Offset, Read, Record};
use bluebox_core::wire::{ControlEntry, ParkedCall};
use bluebox_observe::trace::Span;
use tokio::task::AbortHandle;

use crate::inbound::deliver::{Attempt, Handed};
use crate::inbound::ending::Places;
use crate::inbound::owner::Act;
use crate::inbound::partition::{Delivery, DeliveryEnd, Effect, Ending, Parking, Partition};
use crate::inbound::search;
use crate::line;
use crate::spans::{self, Trying};

use super::*;

impl Consumer<'_> {
    pub(super) fn perform(&mut self, acts: &mut Vec<Act>) {
        for act in acts.drain(..) {
            tracing::trace!(?act, "act");
            match act {
                Act::Of(number, effect) => self.perform_effect(number, effect),
                Act::Deliver(number, delivery, until) => self.deliver(number, delivery, until),
                Act::Want(number, records) => {
                    if let Some(tenure) = self.tenures.get(&number) {
                        self.membership.control().want(&tenure.places.calls, records);
                    }
                }
                Act::Commit(marks) => self.commit(marks),
            }
        }
    }

    fn commit(&self, marks: Vec<(u32, Committed, Committed)>) {
        fail_point!(InCommit, return drop(self.tell_committed.send(Err(LogError::Unavailable("a fail point".to_owned())))));
        let topics = &self.service.topics;
        let commits = marks.into_iter().flat_map(|(n, calls, parked)| [(topics.calls.partition(n), calls), (topics.parked.partition(n), parked)]).collect();
        let committed = self.membership.control().commit(commits);
        let tell = self.tell_committed.clone();
        tokio::spawn(async move {
            let committed = committed.await;
            fail_point_async!(InCommitted, return drop(tell.send(Err(LogError::Unavailable("a fail point".to_owned())))));
            drop(tell.send(committed));
        });
    }

    /// Runs something for the present tenure of a partition; its end comes back as [`Done`].
    pub(super) fn run_for(&self, number: u32, task: impl Future<Output = What> + Send + 'static) -> Option<AbortHandle> {
        let tenure = self.tenures.get(&number)?;
        let (tell, id, stop) = (self.tell.clone(), tenure.id, tenure.stop.clone());
        let handle = tokio::spawn(async move {
            let what = tokio::select! {
                () = stop.cancelled() => return,
                what = task => what,
            };
            drop(tell.send(Done { number, tenure: id, what }));
        });
        Some(handle.abort_handle())
    }

    fn perform_effect(&mut self, number: u32, effect: Effect) {
        let Some(tenure) = self.tenures.get_mut(&number) else { return };
        let log = Arc::clone(&self.service.log);
        let (id, places) = (tenure.id, tenure.places.clone());
        match effect {
            Effect::Fence => {
                let instance = self.service.instance;
                self.run_for(number, async move { What::Fenced(search::fence(&log, &places.calls, instance).await) });
            }
            Effect::Load { parked_from, parked_end, control_from } => {
                let newest = tenure.newest;
                self.run_for(number, async move {
                    let parked = search::parked(&log, &places.parked, parked_from, parked_end, newest);
                    let ((parked, parked_end), (cancels, control_end)) = tokio::join!(parked, search::cancels(&log, &places.control, control_from));
                    What::Loaded(Inheritance { parked, parked_end, cancels, control_end })
                });
            }
            Effect::Start(from) => {
                self.service.observe.taken_over(Moment::now().since(tenure.since));
                self.membership.control().start(&places.calls, from);
            }
            Effect::Search(suspects) => {
                tracing::debug!(partition = number, suspects = suspects.len(), "looks for outcomes of what another box had begun");
                let permits = Arc::clone(&self.service.searches);
                self.run_for(number, async move {
                    let findings = search::outcomes(&log, &suspects, &permits).await;
                    What::Searched(suspects, findings)
                });
            }
            Effect::Cut(origin) => {
                if let Some(delivery) = tenure.deliveries.remove(&origin) {
                    delivery.abort();
                }
            }
            Effect::Record(ending) => self.record(number, id, ending, places),
            Effect::Park(parking) => self.park(number, parking, places),
            Effect::Release => {
                fail_point!(InRelease);
                self.service.observe.released();
                self.membership.control().release(vec![places.calls]);
                self.end_tenure(number);
            }
            Effect::Lost(records) => {
                tracing::error!(partition = %places.calls, records, "the log deleted records that had no outcome: calls may be lost. Raise the topic's retention.ms above every deadline");
                self.service.observe.records_lost(records);
            }
            Effect::Suppressed(id) => {
                tracing::debug!(call = %id, "a call had ended before this box took over; it was not delivered again");
                self.service.observe.suppressed();
            }
            Effect::ParkedFull => {
                tracing::error!(partition = %places.calls, "as many calls are parked as may be; the partition waits until the app answers some of them");
                self.service.observe.parked_full();
            }
        }
    }

    fn epoch(&self, number: u32) -> Offset {
        self.owner.partition(number).map(Partition::epoch).unwrap_or_default()
    }

    pub(super) fn load_index(&self, number: u32) {
        let Some(tenure) = self.tenures.get(&number) else { return };
        let (log, places) = (Arc::clone(&self.service.log), tenure.places.clone());
        self.run_for(number, async move { What::IndexLoaded(search::recorded(&log, &places.recorded).await) });
    }

    /// Follows the control partition.
    pub(super) fn watch_control(&self, number: u32, from: Offset) {
        let Some(tenure) = self.tenures.get(&number) else { return };
        let (log, control, tell) = (Arc::clone(&self.service.log), tenure.places.control.clone(), self.tell.clone());
        let (id, stop) = (tenure.id, tenure.stop.clone());
        let follow = async move {
            let mut reader = log.read_rare(&control, from);
            while let Some(read) = reader.next().await {
                let Read::Entries(entries) = read else { continue };
                for entry in entries {
                    let control = entry.record.value.and_then(|value| ControlEntry::decode(value).ok());
                    drop(tell.send(Done { number, tenure: id, what: What::Control(entry.offset, control) }));
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow => {}
            }
        });
    }

    fn deliver(&mut self, number: u32, delivery: Delivery, until: Moment) {
        fail_point!(InTurn);
        let Some(tenure) = self.tenures.get(&number) else { return };
        let (app, endings, places) = (self.service.app.clone(), self.service.endings.clone(), tenure.places.clone());
        let (transactions, observe, component) = (self.service.transactions.clone(), self.service.observe.clone(), self.service.served.name.clone());
        let spans = self.service.spans.clone();
        if delivery.solo {
            fail_point!(InSolo);
        }
        let Delivery { origin, call, attempt, may_have_started, .. } = delivery;
        let accepted = self.owner.partition(number).and_then(|partition| partition.accepted(origin));
        let task = self.run_for(number, async move {
            let Some(call) = endings.load(&call, &places).await else {
                return What::Delivered(origin, DeliveryEnd::Failed("its parked record can't be read".to_owned()));
            };
            fail_point_async!(InLease, return What::Delivered(origin, DeliveryEnd::NotBegun));
            // The last moment at which it can be known that this box is still the owner.
            if Moment::now() >= until {
                return What::Delivered(origin, DeliveryEnd::NotBegun);
            }
            observe.delivering(attempt, may_have_started, accepted);
            let began = Moment::now();
            tracing::debug!(call = %call.id, attempt, caller = %call.caller, "a delivery began");
            let span = spans.attempts(&call, Trying { number: attempt, may_have_started, of: &places.calls, origin, accepted });
            let trace = span.as_ref().and_then(Span::context);
            let this = Attempt { number: attempt, may_have_started, partition: number, trace };
            let end = match transactions.as_ref().and_then(|all| Some((all, all.rule(&call)?))) {
                // In a box of its own: those without a rule have no room for it.
                Some((all, (rule, found))) => Box::pin(all.deliver(rule, &found, &app, &call, this, until)).await,
                None => app.deliver(&call, this, &Handed::AsItCame).await,
            };
            let took = Moment::now().since(began);
            observe.app_took(took);
            if let DeliveryEnd::Answered(outcome) = &end {
                line::answered(&call, &component, attempt, outcome.response.status, took);
            }
            observe.delivered(&call.id, attempt, &end);
            if let Some(span) = span {
                spans::delivered(span, &end);
            }
            What::Delivered(origin, end)
        });
        if let (Some(task), Some(tenure)) = (task, self.tenures.get_mut(&number)) {
            tenure.deliveries.insert(origin, task);
        }
    }

    fn record(&self, number: u32, tenure: u64, ending: Ending, places: Places) {
        let (endings, epoch, observe, tell) = (self.service.endings.clone(), self.epoch(number), self.service.observe.clone(), self.tell.clone());
        // Goes on when the partition is lost: the caller waits for what the app answered, and the next owner looks for it. See `Owner::recorded`.
        tokio::spawn(async move {
            let began = Moment::now();
            let indexed = endings.record(&ending, &places, epoch).await;
            observe.reply_took(Moment::now().since(began), ending.accepted);
            observe.ended(&ending);
            let what = What::Recorded(ending.origin, ending.digest.zip(indexed).map(|(digest, at)| (ending.id, digest, at)));
            drop(tell.send(Done { number, tenure, what }));
        });
    }

    fn park(&self, number: u32, parking: Parking, places: Places) {
        let (endings, log, epoch, observe) = (self.service.endings.clone(), Arc::clone(&self.service.log), self.epoch(number), self.service.observe.clone());
        let Parking { origin, call, accepted, attempts, may_have_started } = parking;
        self.run_for(number, async move {
            let Some(call) = endings.load(&call, &places).await else { return What::Parked(origin, None) };
            let parked = ParkedCall { epoch, origin, accepted, attempts, may_have_started, call: Box::new(call) };
            let record = Record::new(parked.encode());
            let at = search::append(&log, &places.parked, record).await.ok().map(|a| a.offset);
            observe.parked();
            What::Parked(origin, at)
        });
    }
}

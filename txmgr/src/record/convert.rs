//! Between the values and their messages.

use std::sync::Arc;

use bluebox_core::log::{Offset, Timestamp};
use bluebox_core::{CallId, ComponentName, InstanceId};
use bluebox_observe::trace::Context;
use bytes::Bytes;

use super::words::Word as _;
use super::{Entry, Record, State, Unreadable, proto};
use crate::TransactionId;
use crate::callback::{Callee, Phase};
use crate::gate::Version;
use crate::line::Line;
use crate::saga::{Plan, PlannedStep, Saga, Step, StepRequest, StepStatus};
use crate::transaction::{Kept, Links, Lra, OutcomeOf, Parent, Participant};
use crate::wire::status::{LraStatus, ParticipantStatus};

fn id_of(text: &str) -> Result<TransactionId, Unreadable> {
    text.parse().map_err(|_| Unreadable("no id of a transaction"))
}

fn sixteen(bytes: &Bytes) -> Result<[u8; 16], Unreadable> {
    bytes[..].try_into().map_err(|_| Unreadable("an id has 16 bytes"))
}

fn origin_of(bytes: Option<&Bytes>) -> Result<Option<CallId>, Unreadable> {
    bytes.map(|bytes| sixteen(bytes).map(CallId::from_bytes)).transpose()
}

fn origin_bytes(origin: Option<&CallId>) -> Option<Bytes> {
    origin.map(|id| Bytes::copy_from_slice(id.as_bytes()))
}

fn text(text: Option<&Arc<str>>) -> Option<String> {
    text.map(|text| text.as_ref().to_owned())
}

fn shared(text: Option<String>) -> Option<Arc<str>> {
    text.map(Arc::from)
}

fn millis(moment: Option<Timestamp>) -> Option<u64> {
    moment.map(Timestamp::as_millis)
}

fn moment(millis: Option<u64>) -> Option<Timestamp> {
    millis.map(Timestamp::from_millis)
}

impl proto::Entry {
    pub(super) fn of_fence(instance: InstanceId) -> Self {
        Self { kind: Some(proto::Kind::Fence(Bytes::copy_from_slice(instance.as_bytes()))), epoch: 0, version: 0, trace: None }
    }
}

impl From<&Record> for proto::Entry {
    fn from(record: &Record) -> Self {
        let kind = match &record.state {
            State::Lra(lra) => proto::Kind::Lra((&**lra).into()),
            State::Saga(saga) => proto::Kind::Saga((&**saga).into()),
        };
        let trace = record.trace.as_ref().map(Context::to_string);
        Self { kind: Some(kind), epoch: record.epoch.get(), version: record.version.get(), trace }
    }
}

impl TryFrom<proto::Entry> for Entry {
    type Error = Unreadable;

    fn try_from(entry: proto::Entry) -> Result<Self, Unreadable> {
        let state = match entry.kind.ok_or(Unreadable("an entry of an unknown kind"))? {
            proto::Kind::Fence(instance) => return Ok(Self::Fence(InstanceId::from_bytes(sixteen(&instance)?))),
            proto::Kind::Lra(lra) => State::Lra(Box::new(lra.try_into()?)),
            proto::Kind::Saga(saga) => State::Saga(Box::new(saga.try_into()?)),
        };
        // What is no trace is none: nothing that is promised depends on it.
        let trace = entry.trace.as_deref().and_then(|text| Context::parse(text.as_bytes()));
        Ok(Self::State(Box::new(Record { epoch: Offset::new(entry.epoch), version: Version::new(entry.version), state, trace })))
    }
}

impl From<&Line> for proto::Line {
    fn from(line: &Line) -> Self {
        let Line { phase, n, failures, not_before, last_error } = line;
        let phase = phase.map_or(0, |phase| phase.number());
        Self { phase, n: *n, failures: *failures, not_before_millis: not_before.as_millis(), last_error: last_error.clone() }
    }
}

impl TryFrom<proto::Line> for Line {
    type Error = Unreadable;

    fn try_from(line: proto::Line) -> Result<Self, Unreadable> {
        let proto::Line { phase, n, failures, not_before_millis, last_error } = line;
        let phase = if phase == 0 { None } else { Some(Phase::numbered(phase)?) };
        Ok(Self { phase, n, failures, not_before: Timestamp::from_millis(not_before_millis), last_error })
    }
}

impl From<&Links> for proto::Links {
    fn from(links: &Links) -> Self {
        let Links { compensate, complete, status, forget, after, nested } = links;
        Self {
            compensate: text(compensate.as_ref()),
            complete: text(complete.as_ref()),
            status: text(status.as_ref()),
            forget: text(forget.as_ref()),
            after: text(after.as_ref()),
            nested: nested.map(TransactionId::key),
        }
    }
}

impl TryFrom<proto::Links> for Links {
    type Error = Unreadable;

    fn try_from(links: proto::Links) -> Result<Self, Unreadable> {
        let proto::Links { compensate, complete, status, forget, after, nested } = links;
        let nested = nested.as_deref().map(id_of).transpose()?;
        Ok(Self { compensate: shared(compensate), complete: shared(complete), status: shared(status), forget: shared(forget), after: shared(after), nested })
    }
}

impl From<&Participant> for proto::Participant {
    fn from(participant: &Participant) -> Self {
        let Participant { callee, links, data, status, line, tried, was_in_progress, poll, told_after, told_forget } = participant;
        Self {
            callee: callee.0,
            links: links.into(),
            data: text(data.as_ref()),
            status: status.number(),
            line: line.into(),
            tried: *tried,
            was_in_progress: *was_in_progress,
            poll: text(poll.as_ref()),
            told_after: *told_after,
            told_forget: *told_forget,
        }
    }
}

impl TryFrom<proto::Participant> for Participant {
    type Error = Unreadable;

    fn try_from(participant: proto::Participant) -> Result<Self, Unreadable> {
        let proto::Participant { callee, links, data, status, line, tried, was_in_progress, poll, told_after, told_forget } = participant;
        Ok(Self {
            callee: Callee(callee),
            links: links.try_into()?,
            data: shared(data),
            status: ParticipantStatus::numbered(status)?,
            line: line.try_into()?,
            tried,
            was_in_progress,
            poll: shared(poll),
            told_after,
            told_forget,
        })
    }
}

impl From<&Kept> for proto::Kept {
    fn from(kept: &Kept) -> Self {
        let Kept { of: OutcomeOf { call, replay, component }, outcome, written } = kept;
        let (call, component) = (Bytes::copy_from_slice(call.as_bytes()), component.as_str().to_owned());
        Self { call, replay: *replay, component, outcome: outcome.clone(), written: *written }
    }
}

impl TryFrom<proto::Kept> for Kept {
    type Error = Unreadable;

    fn try_from(kept: proto::Kept) -> Result<Self, Unreadable> {
        let proto::Kept { call, replay, component, outcome, written } = kept;
        let component = ComponentName::try_new(&component).map_err(|_| Unreadable("no name of a component"))?;
        Ok(Self { of: OutcomeOf { call: CallId::from_bytes(sixteen(&call)?), replay, component }, outcome, written })
    }
}

impl From<&Lra> for proto::Lra {
    fn from(lra: &Lra) -> Self {
        let Lra { id, origin, client, base, status, started, deadline, ended, parent, participants, next_callee, left, forgotten, kept } = lra;
        let parent = parent.as_ref().map(|Parent { id, url, enlisted, closing, settled, line }| proto::Parent {
            id: id.key(),
            url: url.as_ref().to_owned(),
            enlisted: *enlisted,
            settled: *settled,
            closing: *closing,
            line: line.into(),
        });
        Self {
            id: id.key(),
            origin: origin_bytes(origin.as_ref()),
            client: client.as_ref().to_owned(),
            base: base.as_ref().to_owned(),
            status: status.number(),
            started_millis: started.as_millis(),
            deadline_millis: millis(*deadline),
            ended_millis: millis(*ended),
            parent,
            participants: participants.iter().map(Into::into).collect(),
            next_callee: *next_callee,
            left: left.iter().map(|url| url.as_ref().to_owned()).collect(),
            forgotten: *forgotten,
            kept: kept.as_deref().map(|kept| Box::new(kept.into())),
        }
    }
}

impl TryFrom<proto::Lra> for Lra {
    type Error = Unreadable;

    fn try_from(lra: proto::Lra) -> Result<Self, Unreadable> {
        let proto::Lra {
            id,
            origin,
            client,
            base,
            status,
            started_millis,
            deadline_millis,
            ended_millis,
            parent,
            participants,
            next_callee,
            left,
            forgotten,
            kept,
        } = lra;
        let parent_of = |proto::Parent { id, url, enlisted, settled, line, closing }| -> Result<Parent, Unreadable> {
            Ok(Parent { id: id_of(&id)?, url: Arc::from(url), enlisted, closing, settled, line: line.try_into()? })
        };
        Ok(Self {
            id: id_of(&id)?,
            origin: origin_of(origin.as_ref())?,
            client: Arc::from(client),
            base: Arc::from(base),
            status: LraStatus::numbered(status)?,
            started: Timestamp::from_millis(started_millis),
            deadline: moment(deadline_millis),
            ended: moment(ended_millis),
            parent: parent.map(parent_of).transpose()?,
            participants: participants.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            next_callee,
            left: left.into_iter().map(Arc::from).collect(),
            forgotten,
            kept: kept.map(|kept| (*kept).try_into().map(Box::new)).transpose()?,
        })
    }
}

impl From<&StepRequest> for proto::StepRequest {
    fn from(request: &StepRequest) -> Self {
        let StepRequest { method, url, content_type, body } = request;
        Self { method: method.as_str().to_owned(), url: url.clone(), content_type: content_type.clone(), body: body.clone() }
    }
}

impl TryFrom<proto::StepRequest> for StepRequest {
    type Error = Unreadable;

    fn try_from(request: proto::StepRequest) -> Result<Self, Unreadable> {
        let proto::StepRequest { method, url, content_type, body } = request;
        Ok(Self { method: method.parse().map_err(|_| Unreadable("no method"))?, url, content_type, body })
    }
}

impl From<&Saga> for proto::Saga {
    fn from(saga: &Saga) -> Self {
        let Saga { id, origin, status, started, deadline, ended, plan, steps, why, forgotten } = saga;
        let step = |(planned, step): (&PlannedStep, &Step)| proto::Step {
            name: planned.name.clone(),
            action: (&*planned.action).into(),
            compensation: planned.compensation.as_deref().map(Into::into),
            after: planned.after.iter().filter_map(|before| u32::try_from(*before).ok()).collect(),
            status: step.status.number(),
            line: (&step.line).into(),
            pause_until_millis: millis(step.pause_until),
            still_going: step.still_going,
        };
        Self {
            id: id.key(),
            origin: origin_bytes(origin.as_ref()),
            status: status.number(),
            started_millis: started.as_millis(),
            deadline_millis: millis(*deadline),
            ended_millis: millis(*ended),
            steps: plan.steps().iter().zip(steps).map(step).collect(),
            why: why.clone(),
            forgotten: *forgotten,
        }
    }
}

impl TryFrom<proto::Saga> for Saga {
    type Error = Unreadable;

    fn try_from(saga: proto::Saga) -> Result<Self, Unreadable> {
        let proto::Saga { id, origin, status, started_millis, deadline_millis, ended_millis, steps, why, forgotten } = saga;
        let (mut planned, mut states) = (Vec::with_capacity(steps.len()), Vec::with_capacity(steps.len()));
        for proto::Step { name, action, compensation, after, status, line, pause_until_millis, still_going } in steps {
            planned.push(PlannedStep {
                name,
                action: Arc::new(action.try_into()?),
                compensation: compensation.map(TryInto::try_into).transpose()?.map(Arc::new),
                after: after.into_iter().map(|before| usize::try_from(before).map_err(|_| Unreadable("no place of a step"))).collect::<Result<_, _>>()?,
            });
            let status = StepStatus::numbered(status)?;
            states.push(Step { status, line: line.try_into()?, pause_until: moment(pause_until_millis), still_going });
        }
        Ok(Self {
            id: id_of(&id)?,
            origin: origin_of(origin.as_ref())?,
            status: LraStatus::numbered(status)?,
            started: Timestamp::from_millis(started_millis),
            deadline: moment(deadline_millis),
            ended: moment(ended_millis),
            plan: Arc::new(Plan::of_planned(planned).map_err(|_| Unreadable("steps that are no saga"))?),
            steps: states,
            why,
            forgotten,
        })
    }
}

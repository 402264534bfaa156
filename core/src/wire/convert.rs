//! Values to messages and back.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::call::{Body, BulkBody, Call, Digest, Outcome, Reason, ReplyAddress, Request, Response, Source};
use crate::clock::millis;
use crate::log::{Offset, Timestamp, Topic, TopicPartition};
use crate::{CallId, ComponentName, InstanceId};

use super::*;

fn id_bytes(id: &CallId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn id_from(bytes: &Bytes) -> Result<CallId, Unreadable> {
    <[u8; 16]>::try_from(&bytes[..]).map(CallId::from_bytes).map_err(|_| Unreadable("an id has 16 bytes"))
}

fn digest_bytes(digest: Option<Digest>) -> Option<Bytes> {
    digest.map(|d| Bytes::copy_from_slice(&d))
}

fn digest_from(bytes: Bytes) -> Result<Digest, Unreadable> {
    Digest::try_from(&bytes[..]).map_err(|_| Unreadable("a digest has 32 bytes"))
}

fn name_from(name: &str) -> Result<ComponentName, Unreadable> {
    ComponentName::try_new(name).map_err(|_| Unreadable("no component's name"))
}

fn fields(headers: &HeaderMap) -> Vec<proto::Field> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| proto::Field { name: name.as_str().to_owned(), value: Bytes::copy_from_slice(value.as_bytes()) };
    headers.iter().map(field).collect()
}

fn headers_from(fields: Vec<proto::Field>) -> Result<HeaderMap, Unreadable> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Unreadable("no field name"))?;
        let value = HeaderValue::from_maybe_shared(field.value).map_err(|_| Unreadable("no field value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn place(partition: &TopicPartition, offset: Offset) -> proto::Place {
    proto::Place { topic: partition.topic.as_str().to_owned(), partition: partition.partition, offset: offset.get() }
}

fn place_from(place: &proto::Place) -> (TopicPartition, Offset) {
    (Topic::new(&place.topic).partition(place.partition), Offset::new(place.offset))
}

fn content(body: &Body, trailers: &HeaderMap) -> proto::Content {
    let (inline, bulk) = match body {
        Body::Inline(bytes) => (bytes.clone(), None),
        Body::Bulk(bulk) => {
            let chunks = bulk.chunks.iter().map(|c| c.get()).collect();
            let at = place(&bulk.partition, Offset::default());
            (Bytes::new(), Some(proto::Bulk { at, chunks, len_bytes: bulk.len_bytes }))
        }
    };
    proto::Content { inline, bulk, trailers: fields(trailers) }
}

fn content_from(content: proto::Content) -> Result<(Body, HeaderMap), Unreadable> {
    let body = match content.bulk {
        None => Body::Inline(content.inline),
        Some(bulk) => {
            Body::Bulk(BulkBody { partition: place_from(&bulk.at).0, chunks: bulk.chunks.into_iter().map(Offset::new).collect(), len_bytes: bulk.len_bytes })
        }
    };
    Ok((body, headers_from(content.trailers)?))
}

impl From<&Call> for proto::Call {
    fn from(call: &Call) -> Self {
        Self {
            id: id_bytes(&call.id),
            replay: call.replay,
            caller: call.caller.to_string(),
            callee: call.callee.to_string(),
            ordering_key: call.ordering_key.clone(),
            reply_to: place(&call.reply_to.partition, call.reply_to.position),
            ttl_millis: millis(call.ttl),
            wait_millis: call.wait.map(millis),
            recorded: digest_bytes(call.recorded),
            method: call.request.method.to_string(),
            target: call.request.target.clone(),
            authority: call.request.authority.clone(),
            headers: fields(&call.request.headers),
            content: content(&call.request.body, &call.request.trailers),
        }
    }
}

impl TryFrom<proto::Call> for Call {
    type Error = Unreadable;

    fn try_from(call: proto::Call) -> Result<Self, Unreadable> {
        let (partition, position) = place_from(&call.reply_to);
        let (body, trailers) = content_from(call.content)?;
        Ok(Self {
            id: id_from(&call.id)?,
            replay: call.replay,
            caller: name_from(&call.caller)?,
            callee: name_from(&call.callee)?,
            ordering_key: call.ordering_key,
            reply_to: ReplyAddress { partition, position },
            ttl: Duration::from_millis(call.ttl_millis),
            wait: call.wait_millis.map(Duration::from_millis),
            recorded: call.recorded.map(digest_from).transpose()?,
            request: Request {
                method: Method::from_bytes(call.method.as_bytes()).map_err(|_| Unreadable("no method"))?,
                target: call.target,
                authority: call.authority,
                headers: headers_from(call.headers)?,
                body,
                trailers,
            },
        })
    }
}

impl From<&CallsEntry> for proto::CallsEntry {
    fn from(entry: &CallsEntry) -> Self {
        let kind = match entry {
            CallsEntry::Call(call) => proto::CallsKind::Call((&**call).into()),
            CallsEntry::Fence(instance) => proto::CallsKind::Fence(proto::Fence { instance: Bytes::copy_from_slice(instance.as_bytes()) }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::CallsEntry> for CallsEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::CallsEntry) -> Result<Self, Unreadable> {
        match entry.kind.ok_or(Unreadable("a calls entry of an unknown kind"))? {
            proto::CallsKind::Call(call) => Ok(Self::Call(Box::new(call.try_into()?))),
            proto::CallsKind::Fence(fence) => {
                let instance = <[u8; 16]>::try_from(&fence.instance[..]).map_err(|_| Unreadable("an id has 16 bytes"))?;
                Ok(Self::Fence(InstanceId::from_bytes(instance)))
            }
        }
    }
}

impl From<&ParkedCall> for proto::ParkedCall {
    fn from(parked: &ParkedCall) -> Self {
        Self {
            epoch: parked.epoch.get(),
            origin: parked.origin.get(),
            accepted_millis: parked.accepted.as_millis(),
            attempts: parked.attempts,
            may_have_started: parked.may_have_started,
            call: (&*parked.call).into(),
        }
    }
}

impl TryFrom<proto::ParkedCall> for ParkedCall {
    type Error = Unreadable;

    fn try_from(parked: proto::ParkedCall) -> Result<Self, Unreadable> {
        Ok(Self {
            epoch: Offset::new(parked.epoch),
            origin: Offset::new(parked.origin),
            accepted: Timestamp::from_millis(parked.accepted_millis),
            attempts: parked.attempts,
            may_have_started: parked.may_have_started,
            call: Box::new(parked.call.try_into()?),
        })
    }
}

pub(super) const REASONS: [Reason; 9] = [
    Reason::Attempts,
    Reason::Poison,
    Reason::Deadline,
    Reason::Answer,
    Reason::KeyReused,
    Reason::RecordedFull,
    Reason::Cancelled,
    Reason::Transaction,
    Reason::NoCoordinator,
];

fn reason_number(reason: Reason) -> u32 {
    match reason {
        Reason::Attempts => 1,
        Reason::Poison => 2,
        Reason::Deadline => 3,
        Reason::Answer => 4,
        Reason::KeyReused => 5,
        Reason::RecordedFull => 6,
        Reason::Cancelled => 7,
        Reason::Transaction => 8,
        Reason::NoCoordinator => 9,
    }
}

fn reason_from(number: u32) -> Result<Reason, Unreadable> {
    REASONS.into_iter().find(|r| reason_number(*r) == number).ok_or(Unreadable("an unknown reason"))
}

impl From<&Outcome> for proto::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let response = &outcome.response;
        Self {
            id: id_bytes(&outcome.id),
            replay: outcome.replay,
            attempts: outcome.attempts,
            digest: digest_bytes(outcome.digest),
            source: match outcome.source {
                Source::App => 0,
                Source::Proxy(reason) => reason_number(reason),
            },
            status: response.status.as_u16().into(),
            reason: response.reason.clone(),
            headers: fields(&response.headers),
            content: content(&response.body, &response.trailers),
        }
    }
}

impl TryFrom<proto::Outcome> for Outcome {
    type Error = Unreadable;

    fn try_from(outcome: proto::Outcome) -> Result<Self, Unreadable> {
        let (body, trailers) = content_from(outcome.content)?;
        let status = u16::try_from(outcome.status).ok().and_then(|s| StatusCode::from_u16(s).ok());
        Ok(Self {
            id: id_from(&outcome.id)?,
            replay: outcome.replay,
            attempts: outcome.attempts,
            digest: outcome.digest.map(digest_from).transpose()?,
            source: match outcome.source {
                0 => Source::App,
                number => Source::Proxy(reason_from(number)?),
            },
            response: Response {
                status: status.ok_or(Unreadable("no status"))?,
                reason: outcome.reason,
                headers: headers_from(outcome.headers)?,
                body,
                trailers,
            },
        })
    }
}

impl From<&Reply> for proto::Reply {
    fn from(reply: &Reply) -> Self {
        let kind = match reply {
            Reply::Outcome(outcome) => proto::ReplyKind::Outcome((&**outcome).into()),
            Reply::At { id, replay, digest, partition, offset } => {
                proto::ReplyKind::At(proto::At { id: id_bytes(id), replay: *replay, digest: Bytes::copy_from_slice(digest), place: place(partition, *offset) })
            }
            Reply::Status { query, status } => {
                let (pending_attempts, ended) = match status {
                    CallStatus::Pending { attempts } => (Some(*attempts), None),
                    CallStatus::Ended { partition, offset } => (None, Some(place(partition, *offset))),
                    CallStatus::Unknown => (None, None),
                };
                proto::ReplyKind::Status(proto::Status { query: id_bytes(query), pending_attempts, ended })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::Reply> for Reply {
    type Error = Unreadable;

    fn try_from(reply: proto::Reply) -> Result<Self, Unreadable> {
        Ok(match reply.kind.ok_or(Unreadable("a reply of an unknown kind"))? {
            proto::ReplyKind::Outcome(outcome) => Self::Outcome(Box::new(outcome.try_into()?)),
            proto::ReplyKind::At(at) => {
                let (partition, offset) = place_from(&at.place);
                Self::At { id: id_from(&at.id)?, replay: at.replay, digest: digest_from(at.digest)?, partition, offset }
            }
            proto::ReplyKind::Status(status) => {
                let said = match (status.pending_attempts, &status.ended) {
                    (Some(attempts), _) => CallStatus::Pending { attempts },
                    (None, Some(at)) => {
                        let (partition, offset) = place_from(at);
                        CallStatus::Ended { partition, offset }
                    }
                    (None, None) => CallStatus::Unknown,
                };
                Self::Status { query: id_from(&status.query)?, status: said }
            }
        })
    }
}

impl From<&ControlEntry> for proto::ControlEntry {
    fn from(entry: &ControlEntry) -> Self {
        let kind = match entry {
            ControlEntry::Query { query, id, offset, digest, reply_to } => proto::ControlKind::Query(proto::Query {
                query: id_bytes(query),
                id: id_bytes(id),
                offset: offset.get(),
                digest: Bytes::copy_from_slice(digest),
                reply_to: place(reply_to, Offset::default()),
            }),
            ControlEntry::Cancel { id, offset } => proto::ControlKind::Cancel(proto::Cancel { id: id_bytes(id), offset: offset.get() }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::ControlEntry> for ControlEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::ControlEntry) -> Result<Self, Unreadable> {
        Ok(match entry.kind.ok_or(Unreadable("a control entry of an unknown kind"))? {
            proto::ControlKind::Query(q) => Self::Query {
                query: id_from(&q.query)?,
                id: id_from(&q.id)?,
                offset: Offset::new(q.offset),
                digest: digest_from(q.digest)?,
                reply_to: place_from(&q.reply_to).0,
            },
            proto::ControlKind::Cancel(c) => Self::Cancel { id: id_from(&c.id)?, offset: Offset::new(c.offset) },
        })
    }
}

impl From<&RecordedEntry> for proto::RecordedEntry {
    fn from(entry: &RecordedEntry) -> Self {
        Self { epoch: entry.epoch.get(), id: id_bytes(&entry.id), digest: Bytes::copy_from_slice(&entry.digest), place: place(&entry.partition, entry.offset) }
    }
}

impl TryFrom<proto::RecordedEntry> for RecordedEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::RecordedEntry) -> Result<Self, Unreadable> {
        let (partition, offset) = place_from(&entry.place);
        Ok(Self { id: id_from(&entry.id)?, epoch: Offset::new(entry.epoch), digest: digest_from(entry.digest)?, partition, offset })
    }
}

impl From<&FrontierEntry> for proto::FrontierEntry {
    fn from(entry: &FrontierEntry) -> Self {
        let commit = |(of, committed): &(TopicPartition, Committed)| proto::Commit { place: place(of, committed.offset), metadata: committed.metadata.clone() };
        let kind = match entry {
            FrontierEntry::Claim(by) => proto::FrontierKind::Claim(proto::Fence { instance: Bytes::copy_from_slice(by.as_bytes()) }),
            FrontierEntry::Commit { epoch, sequence, slot, commits } => {
                let commits = commits.iter().map(commit).collect();
                proto::FrontierKind::Commits(proto::Commits { epoch: epoch.get(), sequence: *sequence, slot: *slot, commits })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::FrontierEntry> for FrontierEntry {
    type Error = Unreadable;

    fn try_from(entry: proto::FrontierEntry) -> Result<Self, Unreadable> {
        let commit = |commit: proto::Commit| {
            let (of, offset) = place_from(&commit.place);
            (of, Committed { offset, metadata: commit.metadata })
        };
        match entry.kind {
            Some(proto::FrontierKind::Claim(claim)) => {
                let by = <[u8; 16]>::try_from(&claim.instance[..]).map_err(|_| Unreadable("an id has 16 bytes"))?;
                Ok(Self::Claim(InstanceId::from_bytes(by)))
            }
            Some(proto::FrontierKind::Commits(said)) => {
                let commits = said.commits.into_iter().map(commit).collect();
                Ok(Self::Commit { epoch: Offset::new(said.epoch), sequence: said.sequence, slot: said.slot, commits })
            }
            None => Err(Unreadable("neither a claim nor a commit")),
        }
    }
}

impl From<&DeadLetter> for proto::DeadLetter {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            reason: reason_number(letter.reason),
            detail: letter.detail.clone(),
            attempts: letter.attempts,
            origin: letter.origin.get(),
            accepted_millis: letter.accepted.as_millis(),
            call: (&*letter.call).into(),
        }
    }
}

impl TryFrom<proto::DeadLetter> for DeadLetter {
    type Error = Unreadable;

    fn try_from(letter: proto::DeadLetter) -> Result<Self, Unreadable> {
        Ok(Self {
            reason: reason_from(letter.reason)?,
            detail: letter.detail,
            attempts: letter.attempts,
            origin: Offset::new(letter.origin),
            accepted: Timestamp::from_millis(letter.accepted_millis),
            call: Box::new(letter.call.try_into()?),
        })
    }
}

impl From<&Settled> for proto::Settled {
    fn from(settled: &Settled) -> Self {
        let how = match settled.how {
            Settlement::Replayed => 1,
            Settlement::Dropped => 2,
        };
        Self { id: id_bytes(&settled.id), replay: settled.replay, how }
    }
}

impl TryFrom<proto::Settled> for Settled {
    type Error = Unreadable;

    fn try_from(settled: proto::Settled) -> Result<Self, Unreadable> {
        let how = match settled.how {
            1 => Settlement::Replayed,
            2 => Settlement::Dropped,
            _ => return Err(Unreadable("an unknown settlement")),
        };
        Ok(Self { id: id_from(&settled.id)?, replay: settled.replay, how })
    }
}

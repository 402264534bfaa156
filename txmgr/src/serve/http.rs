//! What is asked: requests as values, and the partition that they are for.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use bluebox_core::topics::partition_of;
use bluebox_core::{CallId, ComponentName, InstanceId};
use bluebox_observe::trace::Context;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use serde_json::Value;
use tokio::sync::SetOnce;

use super::caller::Caller;
use super::owner::Command;
use super::partitions::Partitions;
use super::problem::{Answered, Problem};
use super::{Settings, Surroundings, door, lra, operate, sagas};
use crate::TransactionId;
use crate::components::Components;
use crate::effect::Answer;
use crate::id::Absent;
use crate::partition::{Ask, NoAnswer};
use crate::wire::participant::Callable;
use crate::wire::path::decoded;
use crate::wire::{BASE_PATH, excerpt};

/// The largest body of a request: a saga with all its steps.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What the proxy says of a delivery.
const CALL_ID: HeaderName = HeaderName::from_static("bluebox-call-id");
const PARTITION: HeaderName = HeaderName::from_static("bluebox-partition");
const CALLER: HeaderName = HeaderName::from_static("bluebox-caller");

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// As forms write it; what can't be decoded is refused.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let decode =
            |part: &str| decoded(&part.replace('+', " ")).ok_or_else(|| Problem::malformed("the query is not percent-encoded UTF-8 (RFC 3986, section 2.1)"));
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// The first value of that name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// What has another name than these, or is there twice, is a mistake.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), String> {
        self.0.iter().enumerate().try_for_each(|(at, (name, _))| match self.0.iter().take(at).any(|(before, _)| before == name) {
            _ if !known.contains(&name.as_str()) => Err(format!("{:?}: no such parameter", excerpt(name))),
            true => Err(format!("{name}: it is there twice")),
            false => Ok(()),
        })
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Query,
    pub(super) raw_query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What URLs that are given back begin with: scheme and authority that the client used, or what was configured.
    pub(super) origin: String,
    /// The call: the same whenever it is delivered again.
    pub(super) call: Option<CallId>,
    /// The partition that the call lies in.
    pub(super) partition: Option<u32>,
}

impl Asked {
    /// A header field as text.
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The component that calls, as the proxy that delivers says.
    pub(super) fn caller(&self) -> Option<ComponentName> {
        self.header(&CALLER)?.parse().ok()
    }

    /// The trace that it is in.
    pub(super) fn trace(&self) -> Option<Context> {
        Context::of(&self.headers)
    }

    /// No parameter may be in the query.
    pub(super) fn without_parameters(&self) -> Result<(), Problem> {
        self.query.only(&[]).map_err(|wrong| Problem::malformed(format!("{wrong}; here there are none")))
    }

    /// The body as text.
    pub(super) fn text(&self) -> Result<&str, Problem> {
        std::str::from_utf8(&self.body).map_err(|_| Problem::malformed("the body is no UTF-8 text"))
    }
}

/// Answers requests.
pub(super) struct Service {
    pub(super) settings: Settings,
    components: Arc<dyn Components>,
    pub(super) partitions: Arc<Partitions>,
    pub(super) caller: Arc<Caller>,
}

/// Where requests come to. Cheap to clone.
#[derive(Clone, Default)]
pub struct App(Arc<SetOnce<Service>>);

impl App {
    /// From now on this answers.
    pub(super) fn serves(&self, service: Service) {
        // Once for each process.
        let _ = self.0.set(service);
    }

    /// Answers a request; waits until the transaction manager serves. Dropped, it is not answered: what was asked for may be done or not.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        self.0.wait().await.answer(request).await
    }
}

impl Service {
    pub(super) fn new(settings: Settings, around: &Surroundings, partitions: Arc<Partitions>, caller: Arc<Caller>) -> Self {
        Self { settings, components: Arc::clone(&around.components), partitions, caller }
    }

    async fn answer<B>(&self, mut request: Request<B>) -> Answered
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        if request.method() == Method::OPTIONS {
            return empty(StatusCode::NO_CONTENT);
        }
        // Whatever can be read (RFC 9110, section 9.3.2).
        let is_head = request.method() == Method::HEAD;
        if is_head {
            *request.method_mut() = Method::GET;
        }
        let answered = match self.take_in(request).await {
            Ok(asked) => self.route(&asked).await,
            Err(problem) => Err(problem),
        };
        let answered = answered.unwrap_or_else(|problem| problem.answer());
        if is_head { without_content(answered) } else { answered }
    }

    async fn take_in<B>(&self, request: Request<B>) -> Result<Asked, Problem>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(problem) if problem.is::<LengthLimitError>() => return Err(Problem::too_large(format!("a body has at most {MAX_BODY_BYTES} bytes"))),
            Err(_) => return Err(Problem::malformed("the body broke off")),
        };
        let header = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        let call = header(&CALL_ID).and_then(|id| id.parse().ok());
        let partition = header(&PARTITION).and_then(|number| number.parse().ok());
        // Only the manager itself says for whom it asks: a client that is no box.
        let outside = header(&door::ORIGIN).filter(|_| header(&CALLER) == Some(self.settings.name.as_str()));
        let origin = match outside {
            Some(origin) => origin.to_owned(),
            None => format!("http://{}", header(&HOST).unwrap_or(self.settings.name.as_str())),
        };
        let raw_query = head.uri.query().unwrap_or_default().to_owned();
        let query = Query::parse(&raw_query)?;
        Ok(Asked { method: head.method, path: head.uri.path().to_owned(), query, raw_query, headers: head.headers, body, origin, call, partition })
    }

    async fn route(&self, asked: &Asked) -> Result<Answered, Problem> {
        let path = asked.path.as_str();
        if let Some(rest) = path.strip_prefix(BASE_PATH).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            return lra::answer(self, asked, rest).await;
        }
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        // Only lists take any. (To the coordinator, above, clients may say what they like.)
        if matches!(segments[..], ["v1", "sagas", ..] | ["v1", "transactions", _, ..]) {
            asked.without_parameters()?;
        }
        match segments[..] {
            ["v1", "sagas"] => sagas::begin(self, asked).await,
            ["v1", "sagas", id] => sagas::read(self, asked, id).await,
            ["v1", "sagas", id, "cancel"] => sagas::cancel(self, asked, id).await,
            ["v1", "transactions"] => operate::list(self, asked).await,
            ["v1", "transactions", id] => operate::one(self, asked, id).await,
            ["v1", "transactions", id, what] => operate::tell(self, asked, id, what).await,
            ["v1", "partitions", id] => operate::partition(self, asked, id).await,
            _ => Err(Problem::no_such_resource(path)),
        }
    }

    /// What the URLs of LRAs begin with.
    pub(super) fn base(&self, asked: &Asked) -> String {
        self.settings.base.clone().unwrap_or_else(|| format!("{}{BASE_PATH}", asked.origin))
    }

    /// The id of a transaction that is to begin: in the partition that the call lies in, so that the call, delivered again, comes to the same one.
    pub(super) fn new_id(&self, asked: &Asked, after: Option<TransactionId>) -> Result<TransactionId, Problem> {
        let by_call = || asked.call.map(|call| partition_of(&call, None, self.settings.partitions));
        let number = asked.partition.or_else(by_call).ok_or_else(Problem::not_served)?;
        let number = u16::try_from(number).map_err(|_| Problem::not_served())?;
        let random = InstanceId::random().as_bytes().iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte));
        Ok(TransactionId::new(number, wall_clock(), after, random))
    }

    /// Whom a transaction may call.
    pub(super) fn callable(&self) -> Callable<'_> {
        Callable { components: &*self.components, allowed: &self.settings.allowed, coordinator: &self.settings.name }
    }

    /// Waits until it is known of each of these URLs whether a component is meant: what was registered a moment ago may not have been read yet. Nothing is held for it but the request itself.
    pub(super) async fn learn(&self, urls: impl Iterator<Item = &str>) -> Result<(), Problem> {
        let unknown: BTreeSet<_> = urls.filter_map(|url| self.callable().unknown(url)).collect();
        if unknown.is_empty() || self.components.learn(unknown.into_iter().collect()).await { Ok(()) } else { Err(Problem::registry_unread()) }
    }

    /// Asks for a transaction; with a trace, its callbacks go on in that.
    pub(super) async fn ask(&self, id: TransactionId, ask: Ask, trace: Option<Context>) -> Result<Answer, Problem> {
        if id.partition() >= self.settings.partitions {
            return Err(self.absent(id));
        }
        self.said(self.partitions.ask(id.partition(), |reply| Command::Ask(id, ask, trace, reply)).await)
    }

    /// What the answer of a partition is.
    pub(super) fn said(&self, answer: Result<Answer, NoAnswer>) -> Result<Answer, Problem> {
        match answer {
            Ok(Answer::Refused(refusal)) => Err(Problem::refusal(&refusal)),
            Ok(answer) => Ok(answer),
            Err(NoAnswer::NotServing(_)) => Err(Problem::not_served()),
            Err(NoAnswer::Absent(id)) => Err(self.absent(id)),
        }
    }

    fn absent(&self, id: TransactionId) -> Problem {
        match id.absent(wall_clock(), self.settings.rules.retention, self.settings.partitions) {
            Absent::Gone => Problem::gone(format!("transaction {id} was begun longer ago than transactions are kept")),
            Absent::Unknown => Problem::unknown(format!("transaction {id} was never begun, or is not kept any more")),
        }
    }

    /// Until when a request waits for the end of a transaction.
    pub(super) fn end_by(&self) -> Timestamp {
        crate::time::later(wall_clock(), self.settings.end_wait)
    }
}

/// The same without its content, of which the length is told.
fn without_content(answered: Answered) -> Answered {
    let (mut head, body) = answered.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, Full::default())
}

/// An answer without content.
pub(super) fn empty(status: StatusCode) -> Answered {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// An answer that is a text.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Answered {
    typed(status, "text/plain", text.into())
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &Value) -> Answered {
    typed(status, "application/json", value.to_string())
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Answered {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Adds a field; a value that can't be one is left out.
pub(super) fn with(mut response: Answered, name: HeaderName, value: &str) -> Answered {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_forms_write_it() {
        let query = Query::parse("ClientID=a%20b+c&TimeLimit=&ParentLRA=http%3A%2F%2Fx%2F1&flag&ClientID=second").unwrap();
        assert_eq!(query.get("ClientID"), Some("a b c"));
        assert_eq!((query.get("TimeLimit"), query.get("flag"), query.get("Nope")), (Some(""), Some(""), None));
        assert_eq!(query.get("ParentLRA"), Some("http://x/1"));
        assert!(Query::parse("a=%zz").is_err() && Query::parse("a=%ff").is_err());
    }

    #[test]
    fn only_what_is_known_and_once() {
        let only = |query: &str| Query::parse(query).unwrap().only(&["kind", "failed"]);
        assert_eq!((only(""), only("failed&kind=lra")), (Ok(()), Ok(())));
        assert_eq!(only("kind=lra&fialed"), Err("\"fialed\": no such parameter".to_owned()));
        assert_eq!(only("kind=lra&failed&kind=lra"), Err("kind: it is there twice".to_owned()));
    }
}

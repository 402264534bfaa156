//! MicroProfile LRA's coordinator: `/lra-coordinator` and below.

use std::sync::Arc;

use http::header::{ACCEPT, HeaderName, LINK, LOCATION};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use super::http::{Asked, Service, empty, json, text, with};
use super::operate;
use super::owner::Command;
use super::problem::{Answered, Problem};
use super::view;
use crate::TransactionId;
use crate::callback::{Callee, Phase};
use crate::effect::{Answer, Refusal};
use crate::partition::Ask;
use crate::transaction::{Join, Kept, Links, OutcomeOf, Request, Start, Told};
use crate::wire::limit::time_limit;
use crate::wire::link::{InvalidLinks, RawLinks, links_of_join};
use crate::wire::path::{Resource, Verb, lra_of_url, parent_url, resource, status_filter};
use crate::wire::status::ParticipantStatus;
use crate::wire::version::ApiVersion;
use crate::wire::{CONTEXT, DATA, DATA_OF, OUTCOME, OUTCOME_OF, RECOVERY, VERSION};

/// The most that a participant can leave to be told again.
const MAX_DATA_BYTES: usize = 16 * 1024;

/// Answers a request for what is below the coordinator's path.
pub(super) async fn answer(service: &Service, asked: &Asked, path: &str) -> Result<Answered, Problem> {
    let version = ApiVersion::of_request(asked.header(&VERSION)).map_err(|unsupported| Problem::version(unsupported.to_string()))?;
    let resource = resource(path).map_err(|_| Problem::no_such_resource(&asked.path))?;
    let it = Coordinator { service, asked, version };
    let is = |method: Method| asked.method == method;
    let answered = match resource {
        Resource::All if is(Method::GET) => it.list().await,
        Resource::Start if is(Method::POST) => it.start().await,
        Resource::Lra(id) if is(Method::GET) => it.read(id).await,
        Resource::Lra(id) if is(Method::PUT) => it.join(id).await,
        Resource::Of(id, Verb::Status) if is(Method::GET) => it.status(id).await,
        Resource::Of(id, Verb::Outcome) if is(Method::GET) => it.outcome(id).await,
        Resource::Of(id, verb) if is(Method::PUT) && !matches!(verb, Verb::Status | Verb::Outcome) => it.change(id, verb).await,
        Resource::Recovering if is(Method::GET) => it.recovering().await,
        Resource::Failed if is(Method::GET) => it.gathered("kind=lra&failed").await,
        Resource::Recovery(id) if is(Method::DELETE) => it.forget(id).await,
        Resource::Participant(id, callee) if is(Method::GET) => it.participant(id, callee).await,
        Resource::Participant(id, callee) if is(Method::PUT) => it.move_to(id, callee).await,
        Resource::Nested(id, phase) if it.fits_nested(phase) => it.nested(id, phase).await,
        Resource::All | Resource::Recovering | Resource::Failed | Resource::Of(_, Verb::Status | Verb::Outcome) | Resource::Nested(_, Phase::Status) => {
            Err(Problem::method("GET, HEAD"))
        }
        Resource::Start => Err(Problem::method("POST")),
        Resource::Lra(_) | Resource::Participant(..) => Err(Problem::method("GET, HEAD, PUT")),
        Resource::Of(..) => Err(Problem::method("PUT")),
        Resource::Recovery(_) => Err(Problem::method("DELETE")),
        Resource::Nested(_, Phase::Forget) => Err(Problem::method("DELETE, PUT")),
        Resource::Nested(..) => Err(Problem::method("PUT")),
    };
    answered.map(|answered| with(answered, VERSION, version.name()))
}

struct Coordinator<'a> {
    service: &'a Service,
    asked: &'a Asked,
    version: ApiVersion,
}

impl Coordinator<'_> {
    fn url(&self, id: TransactionId) -> String {
        format!("{}/{id}", self.service.base(self.asked))
    }

    fn recovery_url(&self, id: TransactionId, callee: Callee) -> String {
        let base = self.service.base(self.asked);
        let lra = if self.version.recovery_by_id() { id.to_string() } else { encoded(&self.url(id)) };
        format!("{base}/recovery/{lra}/{}", callee.0)
    }

    async fn ask(&self, id: TransactionId, request: Request) -> Result<Answer, Problem> {
        self.service.ask(id, Ask::Lra(request), self.asked.trace()).await
    }

    async fn start(&self) -> Result<Answered, Problem> {
        let query = &self.asked.query;
        let limit = time_limit(query.get("TimeLimit")).map_err(|invalid| Problem::malformed(invalid.to_string()))?;
        let parent = match query.get("ParentLRA").filter(|url| !url.is_empty()) {
            None => None,
            Some(url) => {
                let url = parent_url(url);
                let id = lra_of_url(&url).filter(|id| id.partition() < self.service.settings.partitions);
                let shown: String = url.chars().take(80).collect();
                Some((id.ok_or_else(|| Problem::unknown(format!("ParentLRA {shown:?} is no LRA of this coordinator")))?, Arc::from(url)))
            }
        };
        let id = self.service.new_id(self.asked, parent.as_ref().map(|(id, _)| *id))?;
        let (client, base) = (Arc::from(query.get("ClientID").unwrap_or_default()), Arc::from(self.service.base(self.asked)));
        let start = Start { id, origin: self.asked.call, client, base, limit, parent };
        let answer = self.service.partitions.ask(id.partition(), |reply| Command::Start(start, self.asked.trace(), reply)).await;
        match self.service.said(answer)? {
            Answer::Started(id) => {
                let url = self.url(id);
                let answered = with(text(StatusCode::CREATED, &url), LOCATION, &url);
                Ok(with(answered, CONTEXT, &url))
            }
            answer => Err(unexpected(&answer)),
        }
    }

    /// The links of a request: all lines of the Link field, else the body.
    fn links(&self) -> Result<RawLinks, Problem> {
        links_of_join(Some(&self.lines(&LINK)?), self.asked.text()?).map_err(invalid_links)
    }

    /// All lines of a field, which are one list; empty if there are none.
    fn lines(&self, name: &HeaderName) -> Result<String, Problem> {
        let lines: Option<Vec<&str>> = self.asked.headers.get_all(name).iter().map(|line| line.to_str().ok()).collect();
        lines.map(|lines| lines.join(", ")).ok_or_else(|| Problem::malformed(format!("{name} is no ASCII text")))
    }

    /// What a participant leaves to be told again.
    fn data(&self) -> Result<Option<Arc<str>>, Problem> {
        let Some(data) = self.asked.headers.get(DATA).filter(|data| !data.is_empty()) else { return Ok(None) };
        if !self.version.allows_data() {
            return Err(Problem::no_data(format!("{DATA} is of version 1.1 and later; this request says {}", self.version)));
        }
        if data.len() > MAX_DATA_BYTES {
            return Err(Problem::too_large(format!("{DATA} has at most {MAX_DATA_BYTES} bytes")));
        }
        let text = std::str::from_utf8(data.as_bytes()).map_err(|_| Problem::malformed(format!("{DATA} is no UTF-8 text")))?;
        Ok(Some(Arc::from(text)))
    }

    /// What the participant that ends an LRA has left meanwhile, if it has.
    fn told(&self) -> Result<Option<Told>, Problem> {
        let links = self.lines(&DATA_OF)?;
        if links.is_empty() {
            return Ok(None);
        }
        let Some(data) = self.data()? else { return Ok(None) };
        let links = links_of_join(Some(&links), "").map_err(invalid_links)?;
        Ok(links.compensate.or(links.after).map(|participant| Told { participant: participant.into(), data }))
    }

    async fn checked_links(&self, id: TransactionId) -> Result<Links, Problem> {
        let raw = self.links()?;
        self.service.learn(raw.called().map(String::as_str)).await?;
        self.service.callable().check(id, raw).map_err(|refused| Problem::refused_url(format!("participant {refused}")))
    }

    async fn join(&self, id: TransactionId) -> Result<Answered, Problem> {
        let limit = time_limit(self.asked.query.get("TimeLimit")).map_err(|invalid| Problem::malformed(invalid.to_string()))?;
        let join = Join { data: self.data()?, links: self.checked_links(id).await?, limit };
        match self.ask(id, Request::Join(join)).await? {
            Answer::Joined { callee, former_data } => {
                let url = self.recovery_url(id, callee);
                let answered = with(with(text(StatusCode::OK, &url), LOCATION, &url), RECOVERY, &url);
                let answered = with(answered, CONTEXT, &self.url(id));
                Ok(former_data.map_or_else(|| answered.clone(), |data| with(answered.clone(), DATA, &data)))
            }
            answer => Err(unexpected(&answer)),
        }
    }

    async fn change(&self, id: TransactionId, verb: Verb) -> Result<Answered, Problem> {
        match verb {
            Verb::Close => self.end(id, true).await,
            Verb::Cancel => self.end(id, false).await,
            Verb::Renew => {
                let limit = time_limit(self.asked.query.get("TimeLimit")).map_err(|invalid| Problem::malformed(invalid.to_string()))?;
                self.ask(id, Request::Renew(limit)).await?;
                Ok(text(StatusCode::OK, self.url(id)))
            }
            Verb::Remove => self.leave(id).await,
            Verb::Status => self.status(id).await,
            Verb::Outcome => self.outcome(id).await,
        }
    }

    async fn end(&self, id: TransactionId, close: bool) -> Result<Answered, Problem> {
        let by = self.service.end_by();
        let request = if let Some(of) = self.outcome_of()? {
            Request::EndAndKeep(close, by, Box::new(Kept::new(of, self.asked.body.clone())))
        } else if let Some(told) = self.told()? {
            Request::EndAndTell(close, by, Box::new(told))
        } else if close {
            Request::Close(by)
        } else {
            Request::Cancel(by)
        };
        let (status, other) = match self.ask(id, request).await.map_err(|problem| self.too_late(problem))? {
            Answer::Status(status) => (status, false),
            Answer::EndedOtherwise(status) => (status, true),
            answer => return Err(unexpected(&answer)),
        };
        let code = StatusCode::from_u16(self.version.end_status_code(status)).unwrap_or(StatusCode::OK);
        let mut answered = self.in_the_form_that_is_accepted(code, status.name());
        if code == StatusCode::ACCEPTED {
            answered = with(answered, LOCATION, &format!("{}/status", self.url(id)));
        }
        Ok(if other { with(answered, OUTCOME, "other") } else { answered })
    }

    /// Narayana's clients, which are those that name a version and come with no outcome, take 404 for "has ended before, by whatever it was called by or by its time limit", and all else for a failure
    /// that they tell instead of the app's answer: what has ended is unknown to Narayana's coordinator.
    fn too_late(&self, problem: Problem) -> Problem {
        let narayanas = self.asked.headers.contains_key(VERSION) && !self.asked.headers.contains_key(OUTCOME_OF);
        if narayanas && problem.is_other_end() { problem.coded(StatusCode::NOT_FOUND) } else { problem }
    }

    /// Whose outcome a request is about. Only a proxy that is another component's has any: what comes to the plain listener comes in the transaction manager's own name, whoever sent it.
    fn outcome_of(&self) -> Result<Option<OutcomeOf>, Problem> {
        let Some(text) = self.asked.header(&OUTCOME_OF) else { return Ok(None) };
        let Some(component) = self.asked.caller().filter(|caller| *caller != self.service.settings.name) else { return Ok(None) };
        let named = text.split_once('/').and_then(|(call, replay)| Some(OutcomeOf { call: call.parse().ok()?, replay: replay.parse().ok()?, component }));
        named.map(Some).ok_or_else(|| Problem::malformed(format!("{OUTCOME_OF} is a call's id, '/' and the number of its replay")))
    }

    /// The outcome that is kept for a call, to the component that it is of.
    async fn outcome(&self, id: TransactionId) -> Result<Answered, Problem> {
        let of = self.outcome_of()?.ok_or_else(|| Problem::refusal(&Refusal::NoOutcome(id)))?;
        match self.ask(id, Request::Outcome(of)).await? {
            Answer::Kept(kept) => Ok(Response::new(Full::from(kept.outcome.unwrap_or_default()))),
            answer => Err(unexpected(&answer)),
        }
    }

    /// Who leaves is named by what it joined with: its links, or the URL that they lie below.
    async fn leave(&self, id: TransactionId) -> Result<Answered, Problem> {
        let body = self.asked.text()?.trim();
        let mut names = Vec::new();
        if !body.is_empty() && !body.starts_with('<') {
            names.push(body.to_owned());
        }
        if let Ok(links) = self.links() {
            names.extend(links.compensate.or(links.after));
        }
        let mut refused = Problem::malformed("the participant is named by a body: the URL (or the links) that it joined with");
        for name in names {
            match self.ask(id, Request::Leave(name.into())).await {
                Ok(_) => return Ok(empty(StatusCode::OK)),
                Err(problem) => refused = problem,
            }
        }
        Err(refused)
    }

    async fn status(&self, id: TransactionId) -> Result<Answered, Problem> {
        match self.ask(id, Request::Status).await? {
            Answer::Status(status) => Ok(self.in_the_form_that_is_accepted(StatusCode::OK, status.name())),
            answer => Err(unexpected(&answer)),
        }
    }

    /// A plain text, or a JSON string where that is what is accepted.
    fn in_the_form_that_is_accepted(&self, code: StatusCode, word: &str) -> Answered {
        let accept = self.asked.header(&ACCEPT).unwrap_or_default();
        let at = |kind: &str| accept.find(kind).unwrap_or(usize::MAX);
        if at("application/json") < at("text/plain") { json(code, &Value::from(word)) } else { text(code, word) }
    }

    async fn read(&self, id: TransactionId) -> Result<Answered, Problem> {
        match self.ask(id, Request::Read).await? {
            Answer::Lra(lra) => Ok(json(StatusCode::OK, &self.named(view::lra(&lra)))),
            answer => Err(unexpected(&answer)),
        }
    }

    async fn list(&self) -> Result<Answered, Problem> {
        let status = status_filter(self.asked.query.get("Status")).map_err(|unknown| Problem::malformed(unknown.to_string()))?;
        self.gathered(&status.map_or_else(|| "kind=lra".to_owned(), |status| format!("kind=lra&status={status}"))).await
    }

    /// Those that are ending; and a pass over them.
    async fn recovering(&self) -> Result<Answered, Problem> {
        operate::retry_all(self.service).await?;
        self.gathered("kind=lra&recovering").await
    }

    async fn gathered(&self, query: &str) -> Result<Answered, Problem> {
        let all = operate::gather(self.service, query).await?;
        Ok(json(StatusCode::OK, &Value::Array(all.iter().map(|one| self.named(view::as_on_the_wire(one))).collect())))
    }

    /// Narayana's clients, which are those that name a version, know two of the properties by other names, and refuse a document with one that they don't know.
    fn named(&self, mut lra: Value) -> Value {
        if self.asked.headers.contains_key(VERSION)
            && let Some(properties) = lra.as_object_mut()
        {
            for (name, narayanas) in [("isTopLevel", "topLevel"), ("isRecovering", "recovering")] {
                if let Some(value) = properties.remove(name) {
                    properties.insert(narayanas.to_owned(), value);
                }
            }
        }
        lra
    }

    async fn forget(&self, id: TransactionId) -> Result<Answered, Problem> {
        self.ask(id, Request::Forget).await.map(|_| empty(StatusCode::NO_CONTENT))
    }

    async fn participant(&self, id: TransactionId, callee: Callee) -> Result<Answered, Problem> {
        match self.ask(id, Request::ReadParticipant(callee)).await.map_err(not_there)? {
            Answer::Links(links) => Ok(text(StatusCode::OK, written(&links))),
            answer => Err(unexpected(&answer)),
        }
    }

    async fn move_to(&self, id: TransactionId, callee: Callee) -> Result<Answered, Problem> {
        let links = self.checked_links(id).await?;
        self.ask(id, Request::Move(callee, Box::new(links))).await.map_err(not_there)?;
        Ok(text(StatusCode::OK, self.recovery_url(id, callee)))
    }

    fn fits_nested(&self, phase: Phase) -> bool {
        match phase {
            Phase::Status => self.asked.method == Method::GET,
            Phase::Forget => [Method::DELETE, Method::PUT].contains(&self.asked.method),
            _ => self.asked.method == Method::PUT,
        }
    }

    /// A nested LRA as participant of its parent.
    async fn nested(&self, id: TransactionId, phase: Phase) -> Result<Answered, Problem> {
        match self.ask(id, Request::OfParent(phase, self.service.end_by())).await? {
            Answer::Participant(status) => {
                let code = match status {
                    _ if phase == Phase::Status => StatusCode::OK,
                    ParticipantStatus::Completed | ParticipantStatus::Compensated => StatusCode::OK,
                    ParticipantStatus::FailedToComplete | ParticipantStatus::FailedToCompensate => StatusCode::CONFLICT,
                    ParticipantStatus::Active | ParticipantStatus::Completing | ParticipantStatus::Compensating => StatusCode::ACCEPTED,
                };
                Ok(text(code, status.name()))
            }
            Answer::Gone => Ok(empty(StatusCode::GONE)),
            Answer::Done => Ok(empty(StatusCode::OK)),
            answer => Err(unexpected(&answer)),
        }
    }
}

/// A machine that answers another question than it was asked is a mistake in this program; the request is tried again elsewhere, or becomes a dead letter.
fn unexpected(answer: &Answer) -> Problem {
    tracing::error!(?answer, "a mistake in Bluebox: a transaction gave an answer to another question");
    Problem::not_served()
}

fn invalid_links(invalid: InvalidLinks) -> Problem {
    if matches!(invalid, InvalidLinks::TooLong(_)) { Problem::too_large(invalid.to_string()) } else { Problem::malformed(invalid.to_string()) }
}

/// A resource that is not there, where the wire has 404.
fn not_there(problem: Problem) -> Problem {
    if problem.is_no_such_participant() { problem.coded(StatusCode::NOT_FOUND) } else { problem }
}

/// Links as a Link field writes them.
fn written(links: &Links) -> String {
    let Links { compensate, complete, status, forget, after, nested: _ } = links;
    let named = [("compensate", compensate), ("complete", complete), ("status", status), ("forget", forget), ("after", after)];
    let one = |(rel, url): (&str, &Option<Arc<str>>)| url.as_ref().map(|url| format!("<{url}>; rel=\"{rel}\""));
    named.into_iter().filter_map(one).collect::<Vec<_>>().join(", ")
}

/// Percent-encoded, to be one segment of a path (RFC 3986, section 2.1).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 3), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::path::decoded;

    #[test]
    fn a_url_in_a_segment_comes_back_and_names_its_lra() {
        let url = "http://txmgr:80/lra-coordinator/0007-019b2c3d4e5f-0123456789abcdef?a=ä b";
        let segment = encoded(url);
        assert!(segment.starts_with("http%3A%2F%2Ftxmgr%3A80%2F") && !segment.contains('/'), "{segment}");
        assert_eq!(decoded(&segment).as_deref(), Some(url));
        assert!(matches!(resource(&format!("/recovery/{segment}/3")), Ok(Resource::Participant(_, Callee(3)))));
    }

    #[test]
    fn links_are_written_as_they_are_read() {
        let links = Links { compensate: Some("http://a/c?x=1".into()), after: Some("http://a/after".into()), ..Links::default() };
        let read = links_of_join(Some(&written(&links)), "").unwrap();
        assert_eq!((read.compensate.as_deref(), read.complete, read.after.as_deref()), (Some("http://a/c?x=1"), None, Some("http://a/after")));
    }
}

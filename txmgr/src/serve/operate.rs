//! For operators, and for lists: transactions of all partitions.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::log::Timestamp;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::http::{Asked, Query, Service, empty, json as answer_json, text};
use super::owner::Command;
use super::problem::{Answered, Problem};
use super::view::{self, Filter};
use crate::TransactionId;
use crate::effect::{Answer, Refusal};
use crate::partition::Ask;
use crate::saga::SagaRequest;
use crate::transaction::Request;

/// How long a partition of another process may take to tell what it has.
const PATIENCE: Duration = Duration::from_secs(15);

/// Reads an id; what is none is nowhere.
pub(super) fn id_in(path: &str, id: &str) -> Result<TransactionId, Problem> {
    id.parse().map_err(|_| Problem::no_such_resource(path))
}

/// `GET /v1/transactions`, with a filter.
pub(super) async fn list(service: &Service, asked: &Asked) -> Result<Answered, Problem> {
    if asked.method != Method::GET {
        return Err(Problem::method("GET, HEAD"));
    }
    Filter::of(&asked.query).map_err(Problem::malformed)?;
    Ok(answer_json(StatusCode::OK, &Value::Array(gather(service, &asked.raw_query).await?)))
}

/// `/v1/partitions/ID`, where ID is any that lies in the partition: GET shows those that pass a filter, POST tries at once what waits to be tried again.
pub(super) async fn partition(service: &Service, asked: &Asked, id: &str) -> Result<Answered, Problem> {
    let id = id_in(&asked.path, id)?;
    let number = id.partition();
    if number >= service.settings.partitions {
        return Err(Problem::unknown(format!("{id} is in no partition: there are {}", service.settings.partitions)));
    }
    match asked.method {
        Method::GET => {
            let filter = Filter::of(&asked.query).map_err(Problem::malformed)?;
            Ok(answer_json(StatusCode::OK, &Value::Array(show(service, number, filter).await?)))
        }
        Method::POST => {
            asked.without_parameters()?;
            service.partitions.tell(number, Command::RetryAll).await.map_err(|_| Problem::not_served())?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Problem::method("GET, HEAD, POST")),
    }
}

async fn show(service: &Service, number: u32, filter: Filter) -> Result<Vec<Value>, Problem> {
    let (reply, shown) = oneshot::channel();
    service.partitions.tell(number, Command::Show(filter, reply)).await.map_err(|_| Problem::not_served())?;
    shown.await.map_err(|_| Problem::not_served())
}

/// A path that is routed to a partition.
fn path_of(number: u32, query: &str) -> String {
    let id = TransactionId::new(u16::try_from(number).unwrap_or(u16::MAX), Timestamp::default(), None, 0);
    format!("/v1/partitions/{id}?{query}")
}

/// The transactions of all partitions that pass a filter: those of this process, and those of others by calls. All of them or none: half a list would look whole.
pub(super) async fn gather(service: &Service, query: &str) -> Result<Vec<Value>, Problem> {
    let own = service.partitions.numbers();
    let mut others = JoinSet::new();
    for number in (0..service.settings.partitions).filter(|number| !own.contains(number)) {
        let (caller, path) = (Arc::clone(&service.caller), path_of(number, query));
        others.spawn(async move { caller.get_own(&path, PATIENCE).await.filter(|answered| answered.status == StatusCode::OK) });
    }
    let mut all = Vec::new();
    let filter = Filter::of(&Query::parse(query)?).map_err(Problem::malformed)?;
    for number in own {
        all.extend(show(service, number, filter.clone()).await?);
    }
    while let Some(answered) = others.join_next().await {
        let there = answered.ok().flatten().and_then(|answered| serde_json::from_slice::<Vec<Value>>(&answered.body).ok());
        all.extend(there.ok_or_else(Problem::not_served)?);
    }
    all.sort_by_cached_key(|one| (one.get("started_ms").and_then(Value::as_u64), one.get("id").and_then(Value::as_str).map(str::to_owned)));
    Ok(all)
}

/// Tries at once, in all partitions, what waits to be tried again.
pub(super) async fn retry_all(service: &Service) -> Result<(), Problem> {
    let own = service.partitions.numbers();
    let mut others = JoinSet::new();
    for number in (0..service.settings.partitions).filter(|number| !own.contains(number)) {
        let (caller, path) = (Arc::clone(&service.caller), path_of(number, ""));
        others.spawn(async move { caller.own(Method::POST, &path, PATIENCE).await.is_some_and(|answered| answered.status == StatusCode::NO_CONTENT) });
    }
    for number in own {
        service.partitions.tell(number, Command::RetryAll).await.map_err(|_| Problem::not_served())?;
    }
    while let Some(told) = others.join_next().await {
        if !told.unwrap_or(false) {
            return Err(Problem::not_served());
        }
    }
    Ok(())
}

/// Asks for a transaction of either kind: as an LRA, and if it is none, as a saga.
async fn either(service: &Service, id: TransactionId, lra: Request, saga: SagaRequest) -> Result<Answer, Problem> {
    match service.ask(id, Ask::Lra(lra), None).await {
        Err(problem) if problem == Problem::refusal(&Refusal::OtherKind(id)) => service.ask(id, Ask::Saga(saga), None).await,
        answer => answer,
    }
}

/// `GET /v1/transactions/ID`.
pub(super) async fn one(service: &Service, asked: &Asked, id: &str) -> Result<Answered, Problem> {
    let id = id_in(&asked.path, id)?;
    if asked.method != Method::GET {
        return Err(Problem::method("GET, HEAD"));
    }
    let of_call = |key| service.caller.of_under_way(key);
    match either(service, id, Request::Read, SagaRequest::Read).await? {
        Answer::Lra(lra) => Ok(answer_json(StatusCode::OK, &view::lra_in_full(&lra, &of_call))),
        Answer::Saga(saga) => Ok(answer_json(StatusCode::OK, &view::saga(&saga, &of_call))),
        _ => Err(Problem::not_served()),
    }
}

/// `POST /v1/transactions/ID/retry`, `cancel`, `give-up`, `forget`.
pub(super) async fn tell(service: &Service, asked: &Asked, id: &str, what: &str) -> Result<Answered, Problem> {
    let id = id_in(&asked.path, id)?;
    let by = service.end_by();
    let (lra, saga) = match what {
        "retry" => (Request::Retry, SagaRequest::Retry),
        "cancel" => (Request::Cancel(by), SagaRequest::Cancel(by)),
        "give-up" => (Request::GiveUp, SagaRequest::GiveUp),
        "forget" => (Request::Forget, SagaRequest::Forget),
        _ => return Err(Problem::no_such_resource(&asked.path)),
    };
    if asked.method != Method::POST {
        return Err(Problem::method("POST"));
    }
    match either(service, id, lra, saga).await? {
        Answer::Status(status) => Ok(text(StatusCode::OK, status.name())),
        Answer::Saga(saga) => Ok(text(StatusCode::OK, saga.status.name())),
        _ => Ok(answer_json(StatusCode::OK, &json!({ "id": id.to_string(), "done": what }))),
    }
}

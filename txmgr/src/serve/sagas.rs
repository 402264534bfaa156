//! One-request sagas: `/v1/sagas`.

use std::time::Duration;

use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use http::header::{HeaderName, LOCATION};
use http::{Method, StatusCode};
use serde_json::Value;

use super::http::{Asked, Service, json, with};
use super::operate::id_in;
use super::owner::Command;
use super::problem::{Answered, Problem};
use super::view;
use crate::TransactionId;
use crate::effect::Answer;
use crate::partition::Ask;
use crate::saga::{InvalidPlan, Plan, PlannedStep, RawStep, Saga, SagaRequest, StartSaga};
use crate::time::later;
use crate::wire::saga::{WantedSaga, wanted};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// How long `Prefer: wait` without a number waits, and the longest wait: below the time that a caller's connection is held (5 min).
const USUAL_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(240);
/// So much earlier than the proxy gives up the answer is sent.
const EARLIER: Duration = Duration::from_millis(500);

async fn planned(service: &Service, steps: Vec<RawStep>) -> Result<Plan, Problem> {
    let plan = Plan::try_new(steps).map_err(|invalid| match invalid {
        InvalidPlan::TooLarge(_) => Problem::too_large(invalid.to_string()),
        _ => Problem::malformed(invalid.to_string()),
    })?;
    service.learn(plan.steps().iter().flat_map(PlannedStep::requests).map(|(_, request)| request.url.as_str())).await?;
    let callable = service.callable();
    for (at, step) in plan.steps().iter().enumerate() {
        for (which, request) in step.requests() {
            callable.check_step(&request.url).map_err(|refused| Problem::refused_url(format!("steps[{at}].{which}.url: {refused}")))?;
        }
    }
    Ok(plan)
}

/// `POST /v1/sagas`.
pub(super) async fn begin(service: &Service, asked: &Asked) -> Result<Answered, Problem> {
    if asked.method != Method::POST {
        return Err(Problem::method("POST"));
    }
    let WantedSaga { steps, limit } = wanted(&asked.body).map_err(|mistakes| Problem::malformed(mistakes.to_string()))?;
    let plan = planned(service, steps).await?;
    let id = service.new_id(asked, None)?;
    let start = StartSaga { id, origin: asked.call, plan, limit };
    let answer = service.partitions.ask(id.partition(), |reply| Command::StartSaga(start, asked.trace(), reply)).await;
    let Answer::Started(id) = service.said(answer)? else { return Err(Problem::not_served()) };
    tell(service, asked, id, wait(asked)).await
}

/// `GET /v1/sagas/ID`.
pub(super) async fn read(service: &Service, asked: &Asked, id: &str) -> Result<Answered, Problem> {
    let id = id_in(&asked.path, id)?;
    if asked.method != Method::GET {
        return Err(Problem::method("GET, HEAD"));
    }
    let saga = saga(service, asked, id, wait(asked).map_or(SagaRequest::Read, SagaRequest::Await)).await?;
    Ok(json(StatusCode::OK, &shown(service, asked, &saga)))
}

/// `POST /v1/sagas/ID/cancel`.
pub(super) async fn cancel(service: &Service, asked: &Asked, id: &str) -> Result<Answered, Problem> {
    let id = id_in(&asked.path, id)?;
    if ![Method::POST, Method::PUT].contains(&asked.method) {
        return Err(Problem::method("POST, PUT"));
    }
    let by = wait(asked).unwrap_or_else(|| service.end_by());
    let saga = saga(service, asked, id, SagaRequest::Cancel(by)).await?;
    let code = if saga.status.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(json(code, &shown(service, asked, &saga)))
}

async fn saga(service: &Service, asked: &Asked, id: TransactionId, request: SagaRequest) -> Result<Saga, Problem> {
    match service.ask(id, Ask::Saga(request), asked.trace()).await? {
        Answer::Saga(saga) => Ok(*saga),
        _ => Err(Problem::not_served()),
    }
}

/// 202 with where it can be asked for; who waits gets 200 when it has ended.
async fn tell(service: &Service, asked: &Asked, id: TransactionId, until: Option<Timestamp>) -> Result<Answered, Problem> {
    let saga = saga(service, asked, id, until.map_or(SagaRequest::Read, SagaRequest::Await)).await?;
    let ended = until.is_some() && saga.status.is_final();
    let answered = json(if ended { StatusCode::OK } else { StatusCode::ACCEPTED }, &shown(service, asked, &saga));
    let answered = with(answered, LOCATION, &url(asked, id));
    Ok(if until.is_some() { with(answered, PREFERENCE_APPLIED, "wait") } else { answered })
}

fn url(asked: &Asked, id: TransactionId) -> String {
    format!("{}/v1/sagas/{id}", asked.origin)
}

fn shown(service: &Service, asked: &Asked, saga: &Saga) -> Value {
    let mut shown = view::saga(saga, &|key| service.caller.of_under_way(key));
    if let Some(object) = shown.as_object_mut() {
        object.insert("url".to_owned(), Value::from(url(asked, saga.id)));
    }
    shown
}

/// Until when the client wants to wait: `Prefer: wait`, or `wait=SECONDS` (RFC 7240, section 4.3).
fn wait(asked: &Asked) -> Option<Timestamp> {
    let lines = asked.headers.get_all(&PREFER).iter().filter_map(|line| line.to_str().ok());
    let preferences = lines.flat_map(|line| line.split(',')).map(|preference| preference.split(';').next().unwrap_or_default().trim());
    let wanted = preferences.filter_map(|preference| {
        let (name, value) = preference.split_once('=').map_or((preference, None), |(name, value)| (name.trim(), Some(value.trim().trim_matches('"'))));
        name.eq_ignore_ascii_case("wait").then_some(value)
    });
    let wait = match wanted.into_iter().next()? {
        None => USUAL_WAIT,
        Some(seconds) => Duration::from_secs(seconds.parse().ok()?).saturating_sub(EARLIER),
    };
    Some(later(wall_clock(), wait.min(LONGEST_WAIT)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::super::http::Query;
    use super::*;

    #[test]
    fn a_wait_is_shorter_than_the_proxys() {
        let until = |prefer: &'static str| {
            let headers = HeaderMap::from_iter([(PREFER, http::HeaderValue::from_static(prefer))]);
            let asked = Asked {
                method: Method::GET,
                path: String::new(),
                query: Query::default(),
                raw_query: String::new(),
                headers,
                body: Bytes::new(),
                origin: String::new(),
                call: None,
                partition: None,
            };
            wait(&asked)
        };
        let before = wall_clock();
        let seconds = |prefer| until(prefer).map(|until| until.since(before).as_secs_f64().round());
        assert_eq!((seconds("respond-async"), seconds("wait=soon")), (None, None));
        assert_eq!((seconds("wait"), seconds("return=minimal, wait=100")), (Some(60.0), Some(100.0)));
        assert!(until("wait=100").unwrap().since(before) < Duration::from_secs(100));
        assert_eq!(seconds("wait=99999"), Some(240.0));
    }
}

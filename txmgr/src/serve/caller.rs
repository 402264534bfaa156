//! Makes the callbacks: each is one durable call, repeated under its key until it has an outcome.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use bluebox_observe::chain;
use bluebox_observe::trace::{Context, TRACEPARENT};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tracing::debug;

use super::counts::Counts;
use super::places::{self, Places};
use super::{Settings, Surroundings};
use crate::TransactionId;
use crate::callback::{Callback, CallbackKey, Outcome, Phase};
use crate::calls::{Calls, content};
use crate::components::Components;
use crate::time::later;
use crate::wire::answer::meaning;
use crate::wire::participant::{Allowed, Callable};
use crate::wire::{BASE_PATH, CONTEXT, DATA, ENDED, PARENT, RECOVERY};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long the log may deliver a call, where that is less than usual.
const TTL: HeaderName = HeaderName::from_static("bluebox-ttl");
/// On an answer: it is the proxy's own.
const ERROR: HeaderName = HeaderName::from_static("bluebox-error");

/// The pause before a call without an outcome is made again.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest such pause, whatever the proxy asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a plain URL may take. (A component: as long as the proxy waits.)
const PLAIN_PATIENCE: Duration = Duration::from_secs(30);
/// More of an answer is not looked at.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Callbacks that are under way at once.
const AT_ONCE: usize = 2000;
/// The longest text of a reason that is kept.
const MAX_WHY: usize = 300;

type Http = Client<HttpConnector, Full<Bytes>>;

/// Makes calls, through the process's own proxy.
pub(super) struct Caller {
    name: ComponentName,
    /// To components.
    calls: Arc<dyn Calls>,
    /// For plain URLs.
    client: Http,
    components: Arc<dyn Components>,
    allowed: Vec<Allowed>,
    /// Callbacks that are under way at once; further ones wait for their turn.
    places: Places,
    /// Those that have no outcome yet.
    under_way: Mutex<HashMap<CallbackKey, UnderWay>>,
    counts: Counts,
}

/// A callback that has no outcome yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnderWay {
    /// Since when this process makes it; as long as it waits for its turn: since when it does.
    pub(super) since: Timestamp,
    /// What its turn waits for: it was not tried yet.
    pub(super) turn: Option<String>,
    /// Why it is made again: nobody has got it, or it is not known whether somebody has.
    pub(super) again: Option<Again>,
}

/// Why a callback is made again, under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Again {
    /// What was said last.
    pub(super) why: String,
    /// How often that was so.
    pub(super) tries: u32,
    /// When it is, or was, made again.
    pub(super) at: Timestamp,
}

/// A callback is under way as long as this is there.
struct Noted<'a> {
    caller: &'a Caller,
    key: CallbackKey,
}

impl Noted<'_> {
    fn again(&self, why: String, pause: Duration) {
        if let Some(under_way) = self.caller.under_way().get_mut(&self.key) {
            let tries = under_way.again.as_ref().map_or(0, |again| again.tries).saturating_add(1);
            under_way.again = Some(Again { why, tries, at: later(wall_clock(), pause) });
        }
    }

    /// Until its turn comes it is not tried.
    fn waits(&self, turn: Option<String>) {
        if let Some(under_way) = self.caller.under_way().get_mut(&self.key) {
            (under_way.since, under_way.turn) = (wall_clock(), turn);
        }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.caller.under_way().remove(&self.key);
    }
}

/// What was answered, as far as it is looked at.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

enum Way {
    Component,
    Plain,
}

impl Caller {
    pub(super) fn new(settings: &Settings, around: &Surroundings, counts: Counts) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        // Shorter than servers keep theirs: a request that crosses a close has no answer.
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(3)).pool_timer(TokioTimer::new()).build(connector);
        Self {
            name: settings.name.clone(),
            calls: Arc::clone(&around.calls),
            client,
            components: Arc::clone(&around.components),
            allowed: settings.allowed.clone(),
            places: Places::new(AT_ONCE),
            under_way: Mutex::default(),
            counts,
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<CallbackKey, UnderWay>> {
        // Nothing in there can panic half-way.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a callback of this process that has no outcome yet.
    pub(super) fn of_under_way(&self, key: CallbackKey) -> Option<UnderWay> {
        self.under_way().get(&key).cloned()
    }

    /// Makes a callback, until it has an outcome; in this trace.
    pub(super) async fn call(&self, callback: &Callback, trace: Option<Context>) -> Outcome {
        self.under_way().insert(callback.key, UnderWay { since: wall_clock(), turn: None, again: None });
        let noted = Noted { caller: self, key: callback.key };
        let url = match callback.key.phase {
            Phase::Enlist => format!("http://{}{BASE_PATH}/{}", self.name, callback.url),
            _ => callback.url.to_string(),
        };
        let _place = self.place(&url, &noted).await;
        let began = tokio::time::Instant::now();
        let outcome = loop {
            match self.once(callback, &url, trace).await {
                Ok(outcome) => break outcome,
                Err((pause, why)) => {
                    noted.again(why, pause);
                    tokio::time::sleep(pause).await;
                }
            }
        };
        self.counts.called(callback.key.phase, &outcome, began.elapsed());
        debug!(callback = %callback.key, %url, outcome = outcome.name(), "a callback had its outcome");
        outcome
    }

    /// A place among those that are under way at once; `None` if there are none any more.
    async fn place(&self, url: &str, noted: &Noted<'_>) -> Option<places::Place> {
        let callee = url.parse::<Uri>().ok().and_then(|url| url.authority().map(|authority| authority.as_str().to_ascii_lowercase())).unwrap_or_default();
        match self.places.ask(&callee) {
            places::Asked::Here(place) => Some(place),
            places::Asked::Later(turn) => {
                noted.waits(Some(format!("as many callbacks to {callee} have no outcome yet as may be under way at once")));
                let place = turn.await.ok();
                noted.waits(None);
                place
            }
        }
    }

    /// One try. The error is the pause before the next, and why: this one has no outcome, or none that is known.
    async fn once(&self, callback: &Callback, url: &str, trace: Option<Context>) -> Result<Outcome, (Duration, String)> {
        let (way, request) = match self.request(callback, url, trace) {
            Ok(request) => request,
            // It was checked when it was taken in: what may be called has changed since.
            Err(why) => return Ok(Outcome::Again(why)),
        };
        let plain = matches!(way, Way::Plain);
        let answered = if plain {
            // The log delivers no such call again: whether it was done can only be asked.
            match tokio::time::timeout(PLAIN_PATIENCE, self.call_plainly(request)).await.unwrap_or_else(|_| Err("no answer within 30 s".to_owned())) {
                Ok(answered) => answered,
                Err(why) => return Ok(Outcome::Again(why)),
            }
        } else {
            self.call_component(request, MAX_ANSWER_BYTES).await
        };
        let own = answered.headers.contains_key(&ERROR) && !plain;
        if own && [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT].contains(&answered.status) {
            let asked = answered.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map_or(PAUSE, Duration::from_secs);
            return Err((asked.min(LONGEST_PAUSE), why(&answered)));
        }
        let location = answered.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|location| self.callable().check_location(callback.key.transaction, url, location));
        Ok(meaning(callback.key.phase, answered.status.as_u16(), &answered.body, location.as_deref()))
    }

    fn callable(&self) -> Callable<'_> {
        Callable { components: &*self.components, allowed: &self.allowed, coordinator: &self.name }
    }

    fn request(&self, callback: &Callback, url: &str, trace: Option<Context>) -> Result<(Way, Request<Bytes>), String> {
        let key = callback.key;
        let refused = |why: &dyn std::fmt::Display| format!("{url}: {why}");
        let (method, body, content_type) = match (&callback.step, key.phase) {
            (Some(step), _) => (step.method.clone(), step.body.clone(), step.content_type.clone()),
            (None, Phase::Status) => (Method::GET, Bytes::new(), None),
            (None, Phase::Forget) => (Method::DELETE, Bytes::new(), None),
            (None, Phase::After) => (Method::PUT, Bytes::from(callback.ended.map_or("", |status| status.name())), Some("text/plain".to_owned())),
            (None, _) => (Method::PUT, Bytes::new(), None),
        };
        let mut headers = HeaderMap::new();
        let mut add = |name: HeaderName, value: &str| -> Result<(), String> {
            headers.insert(name, HeaderValue::from_str(value).map_err(|error| refused(&error))?);
            Ok(())
        };
        add(IDEMPOTENCY_KEY, &key.to_string())?;
        if let Some(content_type) = content_type {
            add(CONTENT_TYPE, &content_type)?;
        }
        if let Some(base) = &callback.base {
            let lra = format!("{base}/{}", key.transaction);
            match key.phase {
                Phase::After => add(ENDED, &lra)?,
                Phase::Enlist => add(LINK, &nested_links(&self.name, key.transaction))?,
                _ => {
                    add(CONTEXT, &lra)?;
                    add(RECOVERY, &format!("{base}/recovery/{}/{}", key.transaction, key.callee.0))?;
                }
            }
            if let Some(parent) = callback.parent.as_ref().filter(|_| key.phase != Phase::Enlist) {
                add(PARENT, parent)?;
            }
            if let Some(data) = &callback.data {
                add(DATA, data)?;
            }
        }
        let way = self.way(key.transaction, key.phase, url)?;
        if let (Some(not_after), Way::Component) = (callback.not_after, &way) {
            add(TTL, &not_after.since(wall_clock()).as_millis().to_string())?;
        }
        let uri: Uri = url.parse().map_err(|error| refused(&error))?;
        let (authority, path) = (uri.authority().cloned().ok_or_else(|| refused(&"no authority"))?, uri.path_and_query().cloned());
        add(HOST, authority.as_str())?;
        if let Some(trace) = trace {
            headers.insert(TRACEPARENT, trace.value());
        }
        let mut request = Request::new(body);
        (*request.method_mut(), *request.headers_mut()) = (method, headers);
        *request.uri_mut() = addressed(authority, path)?;
        Ok((way, request))
    }

    /// How a URL is reached. What is neither a component's nor in the allow-list is not called, though it once was allowed.
    fn way(&self, transaction: TransactionId, phase: Phase, url: &str) -> Result<Way, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url}: no URL"))?;
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(80);
        let named = ComponentName::try_new(&host).ok().filter(|_| uri.scheme_str() == Some("http"));
        if named.is_some_and(|name| name == self.name || self.components.has(&name, port)) {
            return Ok(Way::Component);
        }
        self.callable().check_callback(transaction, url, phase).map_err(|refused| refused.to_string())?;
        Ok(Way::Plain)
    }

    async fn call_plainly(&self, request: Request<Bytes>) -> Result<Answered, String> {
        let (head, body) = self.client.request(request.map(Full::new)).await.map_err(|error| chain(&error))?.into_parts();
        Ok(Answered { status: head.status, headers: head.headers, body: content(body, MAX_ANSWER_BYTES).await })
    }

    async fn call_component(&self, request: Request<Bytes>, max_bytes: usize) -> Answered {
        let (head, body) = self.calls.call(request, max_bytes).await.into_parts();
        Answered { status: head.status, headers: head.headers, body }
    }

    /// GETs something of the transaction manager itself, wherever it is: through the log. `None` when it can't be told now.
    pub(super) async fn get_own(&self, path: &str, patience: Duration) -> Option<Answered> {
        self.own(Method::GET, path, patience).await
    }

    /// Asks the transaction manager itself.
    pub(super) async fn own(&self, method: Method, path: &str, patience: Duration) -> Option<Answered> {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method;
        *request.uri_mut() = addressed(Authority::try_from(self.name.as_str()).ok()?, PathAndQuery::try_from(path).ok()).ok()?;
        tokio::time::timeout(patience, self.call_component(request, usize::MAX)).await.ok()
    }
}

/// What a proxy says: the word and the text of its problem document.
fn why(answered: &Answered) -> String {
    let word = answered.headers.get(&ERROR).and_then(|word| word.to_str().ok()).unwrap_or_default();
    let problem: serde_json::Value = serde_json::from_slice(&answered.body).unwrap_or_default();
    let detail = problem.get("detail").and_then(serde_json::Value::as_str).unwrap_or_default();
    format!("{} {word}: {detail}", answered.status.as_u16()).chars().take(MAX_WHY).collect()
}

fn addressed(to: Authority, path: Option<PathAndQuery>) -> Result<Uri, String> {
    let mut parts = http::uri::Parts::default();
    (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(to), Some(path.unwrap_or_else(|| PathAndQuery::from_static("/"))));
    Uri::from_parts(parts).map_err(|error| error.to_string())
}

/// How a nested LRA is called by its parent.
fn nested_links(name: &ComponentName, child: TransactionId) -> String {
    let link = |phase: Phase| format!("<http://{name}{BASE_PATH}/nested/{child}/{0}>; rel=\"{0}\"", phase.name());
    [Phase::Compensate, Phase::Complete, Phase::Status, Phase::Forget].map(link).join(", ")
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::callback::Callee;
    use crate::calls::Calling;
    use crate::components::Learning;

    struct All;

    impl Components for All {
        fn has(&self, _: &ComponentName, _: u16) -> bool {
            true
        }

        fn learn(&self, _: Vec<(ComponentName, u16)>) -> Learning<'_> {
            Box::pin(std::future::ready(true))
        }
    }

    /// A proxy whose log is away.
    struct Away;

    impl Calls for Away {
        fn call(&self, _: Request<Bytes>, _: usize) -> Calling<'_> {
            let mut away = Response::new(Bytes::new());
            *away.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            away.headers_mut().insert(ERROR, HeaderValue::from_static("log-unavailable"));
            Box::pin(std::future::ready(away))
        }
    }

    #[tokio::test]
    async fn one_that_waits_for_its_turn_was_not_tried() {
        let places = Places::new(1);
        let caller = Arc::new(Caller {
            name: ComponentName::try_new("txmgr").unwrap(),
            calls: Arc::new(Away),
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            components: Arc::new(All),
            allowed: Vec::new(),
            places: places.clone(),
            under_way: Mutex::default(),
            counts: Counts::try_new(&prometheus::Registry::new()).unwrap(),
        });
        let places::Asked::Here(place) = places.ask("hotel") else { panic!("it is free") };
        let key = CallbackKey { transaction: TransactionId::new(0, Timestamp::default(), None, 1), callee: Callee(0), phase: Phase::Complete, n: 0 };
        let callback = Callback { key, url: "http://hotel/complete".into(), base: None, parent: None, data: None, ended: None, step: None, not_after: None };
        let call = tokio::spawn({
            let caller = Arc::clone(&caller);
            async move { caller.call(&callback, None).await }
        });
        let becomes = async |is: fn(&UnderWay) -> bool| {
            loop {
                match caller.of_under_way(key).filter(is) {
                    Some(under_way) => break under_way,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let waits = becomes(|under_way| under_way.turn.is_some()).await;
        assert!(waits.again.is_none() && waits.turn.unwrap().contains("callbacks to hotel"));
        drop(place);
        let tried = becomes(|under_way| under_way.again.is_some()).await;
        assert!(tried.turn.is_none() && tried.again.unwrap().tries > 0 && tried.since >= waits.since);
        call.abort();
    }

    #[test]
    fn a_proxy_that_says_no_is_quoted() {
        let headers = HeaderMap::from_iter([(ERROR, HeaderValue::from_static("recorded-full"))]);
        let body = Bytes::from_static(br#"{"type": "urn:x", "detail": "this box remembers as many recorded calls as it may"}"#);
        let answered = Answered { status: StatusCode::SERVICE_UNAVAILABLE, headers, body };
        assert_eq!(why(&answered), "503 recorded-full: this box remembers as many recorded calls as it may");
        let long = format!(r#"{{"detail": "{}"}}"#, "\u{e4}".repeat(1_000));
        assert_eq!(why(&Answered { body: long.into(), ..answered }).chars().count(), MAX_WHY);
    }
}

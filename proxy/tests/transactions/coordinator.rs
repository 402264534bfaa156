//! A coordinator for tests: it speaks the wire of MicroProfile LRA as far as a proxy does, keeps everything in memory, and can be stopped at any request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use tokio::sync::{mpsc, oneshot};

/// What it knows, and what it was asked. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coordinator(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    lras: BTreeMap<String, Lra>,
    /// Every request that was carried out: `start`, `join 1`, `close 1` …
    done: Vec<String>,
    /// Where the next request of this verb stops: after it was carried out, before it is answered.
    stop: Option<Stop>,
    /// Where it stops before it is carried out.
    stop_before: Option<Stop>,
    /// It knows nothing of outcomes.
    keeps_nothing: bool,
    /// So many requests to begin are answered with 500.
    broken: usize,
}

type Stop = (String, mpsc::UnboundedSender<oneshot::Sender<()>>);

/// Of which call an outcome is, and the outcome.
type Kept = (String, Bytes);

#[derive(Debug, Clone, Default)]
pub(crate) struct Lra {
    pub(crate) status: String,
    pub(crate) query: String,
    pub(crate) links: Vec<String>,
    pub(crate) kept: Option<Kept>,
}

impl Coordinator {
    pub(crate) fn lra(&self, number: usize) -> Lra {
        self.0.lock().unwrap().lras.get(&number.to_string()).cloned().unwrap_or_default()
    }

    pub(crate) fn done(&self) -> Vec<String> {
        self.0.lock().unwrap().done.clone()
    }

    /// As its time limit does.
    pub(crate) fn cancel(&self, number: usize) {
        self.0.lock().unwrap().lras.get_mut(&number.to_string()).unwrap().status = "Cancelled".to_owned();
    }

    /// An LRA that somebody else has begun.
    pub(crate) fn begun(&self) -> String {
        let mut state = self.0.lock().unwrap();
        let id = (state.lras.len() + 1).to_string();
        state.lras.insert(id.clone(), Lra { status: "Active".to_owned(), ..Lra::default() });
        url(&id)
    }

    /// The next request of this verb is carried out, and then not answered before its sender says so.
    pub(crate) fn stop_at(&self, verb: &str) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
        let (tell, stopped) = mpsc::unbounded_channel();
        self.0.lock().unwrap().stop = Some((verb.to_owned(), tell));
        stopped
    }

    /// The next request of this verb is not carried out before its sender says so.
    pub(crate) fn stop_before(&self, verb: &str) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
        let (tell, stopped) = mpsc::unbounded_channel();
        self.0.lock().unwrap().stop_before = Some((verb.to_owned(), tell));
        stopped
    }

    /// It is one that knows nothing of outcomes.
    pub(crate) fn keeps_nothing(&self) {
        self.0.lock().unwrap().keeps_nothing = true;
    }

    /// The next requests to begin are answered with 500.
    pub(crate) fn break_begins(&self, count: usize) {
        self.0.lock().unwrap().broken = count;
    }

    /// Carries a request out, and answers it.
    pub(crate) async fn answer(&self, method: Method, target: String, headers: HeaderMap, body: Bytes) -> Response<Bytes> {
        let before = self.0.lock().unwrap().stop_before.take_if(|(at, _)| verb_of(&method, &target) == *at).map(stopped_at);
        if let Some(stopped) = before {
            let _ = stopped.await;
        }
        let (response, stopped) = self.carry_out(&method, &target, &headers, body);
        if let Some(stopped) = stopped {
            // Should the test have no more interest, it goes on.
            let _ = stopped.await;
        }
        response
    }

    fn carry_out(&self, method: &Method, target: &str, headers: &HeaderMap, body: Bytes) -> (Response<Bytes>, Option<oneshot::Receiver<()>>) {
        assert_eq!(headers["narayana-lra-api-version"], "2.0");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path: Vec<&str> = path.strip_prefix("/lra-coordinator/").unwrap().split('/').collect();
        let mut state = self.0.lock().unwrap();
        let verb = verb_of(method, target);
        let of = headers.get("txmgr-outcome-of").filter(|_| !state.keeps_nothing).map(|of| of.to_str().unwrap().to_owned());
        let mut other = false;
        let response = if verb == "start" && state.broken > 0 {
            state.broken -= 1;
            return (Response::builder().status(500).body("broken".into()).unwrap(), None);
        } else if verb == "start" {
            let id = (state.lras.len() + 1).to_string();
            state.lras.insert(id.clone(), Lra { status: "Active".to_owned(), query: query.to_owned(), ..Lra::default() });
            Response::builder().status(StatusCode::CREATED).header("location", url(&id)).body(url(&id))
        } else if let Some(lra) = state.lras.get_mut(path[0]) {
            if let (Some(of), "close" | "cancel") = (&of, verb)
                && (lra.status == "Active" || lra.status.starts_with(if verb == "close" { "Close" } else { "Cancel" }))
            {
                let kept = lra.kept.get_or_insert_with(|| (of.clone(), body.clone()));
                other = kept.0 == *of && kept.1 != body;
            }
            match (verb, lra.status.as_str()) {
                ("outcome", _) => {
                    let kept = lra.kept.as_ref().filter(|kept| of.as_ref() == Some(&kept.0)).map(|kept| kept.1.clone());
                    let status = kept.as_ref().map_or(404, |kept| if kept.is_empty() { 410 } else { 200 });
                    return (Response::builder().status(status).body(kept.unwrap_or_default()).unwrap(), None);
                }
                ("status", status) => Response::builder().body(status.to_owned()),
                ("join", "Active") => {
                    let links = headers["link"].to_str().unwrap().to_owned();
                    if !lra.links.contains(&links) {
                        lra.links.push(links);
                    }
                    let record = format!("http://txmgr/lra-coordinator/recovery/{}/1", path[0]);
                    Response::builder().header("location", &record).header("long-running-action-recovery", &record).body(record)
                }
                ("close", "Active" | "Closed") => {
                    lra.status = "Closed".to_owned();
                    Response::builder().status(StatusCode::ACCEPTED).body(String::new())
                }
                ("cancel", "Active" | "Cancelled") => {
                    lra.status = "Cancelled".to_owned();
                    Response::builder().body("Cancelled".to_owned())
                }
                (_, status) => Response::builder().status(StatusCode::PRECONDITION_FAILED).body(format!("it is {status}")),
            }
        } else {
            Response::builder().status(StatusCode::NOT_FOUND).body("no such LRA".to_owned())
        };
        state.done.push(if verb == "start" { "start".to_owned() } else { format!("{verb} {}", path[0]) });
        let stopped = state.stop.take_if(|(at, _)| at == verb).map(stopped_at);
        let mut response = response.unwrap();
        if other {
            response.headers_mut().insert("txmgr-outcome", http::HeaderValue::from_static("other"));
        }
        (response.map(Bytes::from), stopped)
    }
}

fn verb_of<'t>(method: &Method, target: &'t str) -> &'t str {
    let path: Vec<&str> = target.split('?').next().unwrap().strip_prefix("/lra-coordinator/").unwrap().split('/').collect();
    match (method, path.as_slice()) {
        (&Method::POST, ["start"]) => "start",
        (&Method::PUT, [_]) => "join",
        (&Method::PUT, [_, verb]) | (&Method::GET, [_, verb @ ("status" | "outcome")]) => verb,
        _ => panic!("{method} {target}"),
    }
}

fn stopped_at((_, tell): Stop) -> oneshot::Receiver<()> {
    let (go_on, stopped) = oneshot::channel();
    tell.send(go_on).unwrap();
    stopped
}

pub(crate) fn url(id: &str) -> String {
    format!("http://txmgr/lra-coordinator/{id}")
}

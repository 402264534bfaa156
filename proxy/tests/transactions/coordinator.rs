//! A coordinator for tests: it speaks the wire of MicroProfile LRA as far as a proxy does, keeps everything in memory, and can be stopped at any request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

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
    stop: Option<(String, mpsc::UnboundedSender<oneshot::Sender<()>>)>,
    /// So many requests to begin are answered with 500.
    broken: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Lra {
    pub(crate) status: String,
    pub(crate) query: String,
    pub(crate) links: Vec<String>,
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

    /// The next requests to begin are answered with 500.
    pub(crate) fn break_begins(&self, count: usize) {
        self.0.lock().unwrap().broken = count;
    }

    /// Carries a request out, and answers it.
    pub(crate) async fn answer(&self, method: Method, target: String, headers: HeaderMap) -> Response<String> {
        let (response, stopped) = self.carry_out(&method, &target, &headers);
        if let Some(stopped) = stopped {
            // Should the test have no more interest, it goes on.
            let _ = stopped.await;
        }
        response
    }

    fn carry_out(&self, method: &Method, target: &str, headers: &HeaderMap) -> (Response<String>, Option<oneshot::Receiver<()>>) {
        assert_eq!(headers["narayana-lra-api-version"], "2.0");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path: Vec<&str> = path.strip_prefix("/lra-coordinator/").unwrap().split('/').collect();
        let mut state = self.0.lock().unwrap();
        let verb = match (method, path.as_slice()) {
            (&Method::POST, ["start"]) => "start",
            (&Method::PUT, [_]) => "join",
            (&Method::PUT, [_, verb]) => verb,
            (&Method::GET, [_, "status"]) => "status",
            _ => panic!("{method} {target}"),
        };
        let response = if verb == "start" && state.broken > 0 {
            state.broken -= 1;
            return (Response::builder().status(500).body("broken".to_owned()).unwrap(), None);
        } else if verb == "start" {
            let id = (state.lras.len() + 1).to_string();
            state.lras.insert(id.clone(), Lra { status: "Active".to_owned(), query: query.to_owned(), ..Lra::default() });
            Response::builder().status(StatusCode::CREATED).header("location", url(&id)).body(url(&id))
        } else if let Some(lra) = state.lras.get_mut(path[0]) {
            match (verb, lra.status.as_str()) {
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
        let stopped = state.stop.take_if(|(at, _)| at == verb).map(|(_, tell)| {
            let (go_on, stopped) = oneshot::channel();
            tell.send(go_on).unwrap();
            stopped
        });
        (response.unwrap(), stopped)
    }
}

pub(crate) fn url(id: &str) -> String {
    format!("http://txmgr/lra-coordinator/{id}")
}

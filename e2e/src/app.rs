//! An app whose answers are the test's: the process can be killed, the ledger of what it was asked can't.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::deadline::{PATIENCE, eventually, within};
use crate::process::{self, Process};

/// The content of an answer.
pub type Content = BoxBody<Bytes, Infallible>;

/// What an app was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The content.
    pub body: Bytes,
    /// Trailer fields.
    pub trailers: HeaderMap,
    /// When it was complete.
    pub at: Instant,
}

impl Asked {
    /// A header field as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| std::str::from_utf8(value.as_bytes()).unwrap())
    }

    /// Which attempt this is.
    pub fn attempt(&self) -> u32 {
        self.header("bluebox-attempt").parse().unwrap_or_else(|_| panic!("no attempt number: {self:?}"))
    }

    /// Whether it may have been delivered before.
    pub fn may_have_started(&self) -> bool {
        self.header("bluebox-may-have-started") == "true"
    }

    /// The content as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// One delivery to the app, unanswered. Dropping it closes the connection.
#[derive(Debug)]
pub struct Delivery {
    /// What is asked.
    pub asked: Asked,
    answer: oneshot::Sender<Response<Content>>,
}

impl Delivery {
    /// Answers.
    pub fn answer(self, status: u16, body: impl Into<Bytes>) {
        self.respond(Response::builder().status(status).body(content(body)).unwrap());
    }

    /// Answers in detail.
    pub fn respond(self, response: Response<Content>) {
        // Who does not take the answer any more is the proxy, and that may be what the test is about.
        let _ = self.answer.send(response);
    }

    /// Closes the connection without an answer, as an app does that crashes.
    pub fn cut(self) {
        drop(self);
    }

    /// The proxy, or the app's process, has closed the connection.
    pub async fn closed(&mut self) {
        within(PATIENCE, "the connection of a delivery closes", self.answer.closed()).await;
    }
}

/// Content that is there.
pub fn content(body: impl Into<Bytes>) -> Content {
    Full::new(body.into()).boxed()
}

/// Content that never ends: what is sent comes, and then nothing, until the sender is dropped.
pub fn endless() -> (mpsc::UnboundedSender<Bytes>, Content) {
    struct Channel(mpsc::UnboundedReceiver<Bytes>);
    impl hyper::body::Body for Channel {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Channel(receiver).boxed())
}

type Rule = Arc<dyn Fn(&Asked) -> Option<Response<Content>> + Send + Sync>;

#[derive(Default)]
struct Ledger {
    asked: Mutex<Vec<Asked>>,
    rule: Mutex<Option<Rule>>,
}

/// An app.
pub struct App {
    name: String,
    address: SocketAddr,
    test: SocketAddr,
    directory: PathBuf,
    process: Option<Process>,
    ledger: Arc<Ledger>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
}

impl App {
    /// Starts it at an address.
    pub(crate) async fn start(name: &str, address: SocketAddr, directory: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let test = listener.local_addr().unwrap();
        let ledger = Arc::<Ledger>::default();
        let (sender, deliveries) = mpsc::unbounded_channel();
        tokio::spawn(accept(listener, ledger.clone(), sender));
        let mut app = Self { name: name.to_owned(), address, test, directory: directory.to_owned(), process: None, ledger, deliveries };
        app.start_again().await;
        app
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts its process, at the address that it had.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        let mut command = process::app();
        command.args([self.address.to_string(), self.test.to_string()]);
        self.process = Some(Process::start(&format!("app-{}", self.name), command, &self.directory));
        let address = self.address;
        eventually("an app listens", || async move { TcpStream::connect(address).await.ok() }).await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// From now on what the rule gives an answer to is answered at once, and only the rest is left to the test.
    pub fn rule(&self, rule: impl Fn(&Asked) -> Option<Response<Content>> + Send + Sync + 'static) {
        *self.ledger.rule.lock().unwrap() = Some(Arc::new(rule));
    }

    /// From now on everything is answered with 200 and what was sent.
    pub fn echo(&self) {
        self.rule(|asked| Some(Response::new(content(asked.body.clone()))));
    }

    /// The next delivery that no rule answered.
    pub async fn next(&mut self) -> Delivery {
        within(PATIENCE, &format!("a delivery to {}", self.name), self.deliveries.recv()).await.unwrap()
    }

    /// A delivery that no rule answered, if there is one within this time.
    pub async fn next_within(&mut self, time: Duration) -> Option<Delivery> {
        tokio::time::timeout(time, self.deliveries.recv()).await.ok().flatten()
    }

    /// A delivery that no rule answered, if there is one already.
    pub fn already(&mut self) -> Option<Delivery> {
        self.deliveries.try_recv().ok()
    }

    /// Everything that it was asked so far.
    pub fn ledger(&self) -> Vec<Asked> {
        self.ledger.asked.lock().unwrap().clone()
    }

    /// How often it was asked for this target.
    pub fn count(&self, target: &str) -> usize {
        self.ledger.asked.lock().unwrap().iter().filter(|asked| asked.target == target).count()
    }
}

async fn accept(listener: TcpListener, ledger: Arc<Ledger>, deliveries: mpsc::UnboundedSender<Delivery>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let (ledger, deliveries) = (ledger.clone(), deliveries.clone());
        let service = service_fn(move |request| answer(request, ledger.clone(), deliveries.clone()));
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: http::Request<Incoming>,
    ledger: Arc<Ledger>,
    deliveries: mpsc::UnboundedSender<Delivery>,
) -> Result<Response<Content>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let target = head.uri.path_and_query().map_or("*", |target| target.as_str()).to_owned();
    let asked = Asked { method: head.method, target, headers: head.headers, body: collected.to_bytes(), trailers, at: Instant::now() };
    ledger.asked.lock().unwrap().push(asked.clone());
    let rule = ledger.rule.lock().unwrap().clone();
    if let Some(response) = rule.and_then(|rule| rule(&asked)) {
        return Ok(response);
    }
    let (answer, answered) = oneshot::channel();
    let _ = deliveries.send(Delivery { asked, answer });
    // No answer, an error: hyper closes the connection.
    Ok(answered.await?)
}

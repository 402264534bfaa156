//! The app that is called, as a process: it writes down each delivery when it begins and before it is answered, and answers as the value says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use clap::Args;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::call::Value;
use crate::ledger::{Delivery, Entry, Ledger};

/// What the app is told.
#[derive(Debug, Args)]
pub(crate) struct CalleeOptions {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    ledger: PathBuf,
    /// The name of this life of the box.
    #[arg(long)]
    life: String,
}

struct App {
    ledger: Ledger,
    life: String,
    deliveries: AtomicU64,
}

/// Serves until its standard input ends.
pub(crate) async fn run(options: CalleeOptions) -> anyhow::Result<()> {
    crate::system::process::end_with_parent();
    let app = Rc::new(App { ledger: Ledger::open(&options.ledger)?, life: options.life, deliveries: AtomicU64::new(0) });
    let listener = TcpListener::bind(options.listen).await.with_context(|| format!("{}: can't listen there", options.listen))?;
    let all = tokio::task::LocalSet::new();
    let accepting = async {
        loop {
            // An app that can't accept (out of files, say) is one that is broken: it ends, and with it its box.
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let app = Rc::clone(&app);
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| answer(Rc::clone(&app), request));
                // A connection that breaks is the proxy's business, and the ledger has what was begun.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    };
    all.run_until(accepting).await
}

async fn answer(app: Rc<App>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match deliver(&app, request).await {
        Ok(response) => Ok(response),
        Err(error) => {
            eprintln!("a delivery that is no call of this run: {error:#}");
            // The ledger lacks it: whoever gets this answer sees that it is none.
            let mut response = Response::new(Full::from("no call of this run"));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            Ok(response)
        }
    }
}

async fn deliver(app: &App, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let value: Value = header("x-value").parse().map_err(|()| anyhow::anyhow!("{:?}", request.headers()))?;
    let name = format!("{}.{}", app.life, app.deliveries.fetch_add(1, Ordering::Relaxed));
    let begin = Delivery {
        name: name.clone(),
        id: header("bluebox-call-id"),
        attempt: header("bluebox-attempt").parse().unwrap_or(0),
        may_have_started: header("bluebox-may-have-started") == "true",
    };
    app.ledger.write(value, Entry::Begin(begin))?;
    let body = request.into_body().collect().await?.to_bytes();
    if body != value.body() {
        app.ledger.write(value, Entry::Torn(name.clone()))?;
    }
    tokio::time::sleep(value.takes()).await;
    app.ledger.write(value, Entry::End(name.clone()))?;
    let mut response = Response::new(Full::new(value.answer(&name)));
    *response.status_mut() = StatusCode::from_u16(value.status())?;
    Ok(response)
}

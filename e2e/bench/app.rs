//! The app that is called: as little work as an app can do, so that what is measured is the way to it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

#[derive(Debug, Args)]
pub(crate) struct AppOptions {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
}

/// How long `/slow` takes.
pub(crate) const SLOW: Duration = Duration::from_secs(1);

/// Answers until it is killed. `/sink` swallows the body, `/slow` takes a second, `/hold` waits for the first `/release`, `/large/BYTES` has so many in its answer, and everything
/// else gives back what it was sent.
pub(crate) async fn run(options: AppOptions) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen).await.with_context(|| options.listen.to_string())?;
    let released = Rc::new(Semaphore::new(0));
    tokio::task::LocalSet::new()
        .run_until(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let released = Rc::clone(&released);
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |request| answer(request, Rc::clone(&released)));
                    // Who hangs up is seen at the other end.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        })
        .await
}

async fn answer(request: Request<Incoming>, released: Rc<Semaphore>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path();
    if path == "/sink" {
        while let Some(Ok(_)) = body.frame().await {}
        return Ok(Response::default());
    }
    let body = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
    match path {
        "/slow" => tokio::time::sleep(SLOW).await,
        // Permits are never given out: it is closed when all are let go.
        "/hold" => drop(released.acquire().await),
        "/release" => released.close(),
        _ => {
            if let Some(bytes) = path.strip_prefix("/large/").and_then(|bytes| bytes.parse().ok()) {
                return Ok(Response::new(Full::new(vec![b'x'; bytes].into())));
            }
        }
    }
    Ok(Response::new(Full::new(body)))
}

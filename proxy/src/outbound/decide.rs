//! Where a request goes, while the registry is still being read, too: what [`route`] decides once all is known.

use std::net::SocketAddr;
use std::time::Duration;

use bluebox_core::log::Health;
use http::request;

use crate::components::{REGISTER_PATIENCE, YOUTH};
use crate::outbound::route::{self, Route, Target};
use crate::outbound::{OutboundSide, append};
use crate::problem::{Kind, Problem};
use crate::redirect::address;

/// How long a request waits for a proxy that has just started, while the log can be reached: the registry and the end of the replies are read first. A busy
/// Kafka takes seconds for both.
const START_PATIENCE: Duration = Duration::from_secs(15);

impl OutboundSide {
    /// Where a request of the app goes.
    pub(super) async fn decide(&self, head: &request::Parts, towards: Option<SocketAddr>) -> Result<Route, Problem> {
        let directory = self.directory.borrow().clone();
        let at = towards.map(|towards| towards.port());
        match route::decide_at(head, &directory, at) {
            Err(problem) if problem.kind() == Kind::NotReady && append::check_health(&*self.log).is_ok() => {
                let mut read = self.directory.clone();
                let complete = self.while_the_log_is_there(read.wait_for(|d| d.complete)).await;
                let Some(Ok(directory)) = complete.map(|r| r.map(|d| d.clone())) else { return Err(problem) };
                route::decide_at(head, &directory, at)
            }
            Ok(Route::PassThrough(target)) if self.began.elapsed() < YOUTH => match target.may_be_a_component(&directory.names) {
                Some(name) => self.decide_when_young(head, target, &name, towards).await,
                None => Ok(Route::PassThrough(target)),
            },
            decided => decided,
        }
    }

    /// What a proxy that has just started must read first, if it comes in time and the log does not go away meanwhile: then the answer is 503, within a second.
    pub(super) async fn while_the_log_is_there<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut health = self.log.health();
        tokio::select! {
            biased;
            came = wait => Some(came),
            _ = health.wait_for(|health| matches!(health, Health::Away(_))) => None,
            () = tokio::time::sleep(START_PATIENCE) => None,
        }
    }

    /// When a whole system starts for the first time, boxes call each other before all of them have registered. What looks like a component's name and is no
    /// server's either is given a moment to become one.
    async fn decide_when_young(&self, head: &request::Parts, target: Target, name: &str, towards: Option<SocketAddr>) -> Result<Route, Problem> {
        let is_a_server = match towards {
            Some(towards) => !address::is_ours(towards.ip().to_canonical()),
            None => tokio::net::lookup_host(target.host_and_port()).await.is_ok_and(|mut addresses| addresses.next().is_some()),
        };
        if is_a_server || append::check_health(&*self.log).is_err() {
            return Ok(Route::PassThrough(target));
        }
        let mut read = self.directory.clone();
        let known = tokio::time::timeout(REGISTER_PATIENCE, read.wait_for(|d| d.registry.get(name).is_some())).await;
        let Ok(Ok(directory)) = known.map(|r| r.map(|d| d.clone())) else { return Ok(Route::PassThrough(target)) };
        route::decide_at(head, &directory, towards.map(|towards| towards.port()))
    }
}

/// Where a request that is no call goes: to where its connection was going, if that is known.
pub(super) fn there(target: &Target, towards: Option<SocketAddr>) -> Result<Vec<String>, Problem> {
    let Some(towards) = towards else { return Ok(Vec::new()) };
    if target.tunnel {
        return Err(Problem::new(Kind::StreamRefused, "a tunnel (CONNECT) on a connection to a component: open it on a connection of its own"));
    }
    if address::is_ours(towards.ip().to_canonical()) {
        let (host, port) = target.host_and_port();
        let detail = format!("{host:?} is no component at port {port}, and no server: the request came to the address of components without a Service");
        return Err(Problem::new(Kind::PassThroughFailed, detail).retry_safe(true));
    }
    Ok(vec![towards.to_string()])
}

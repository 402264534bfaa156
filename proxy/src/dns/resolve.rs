//! Answers one query: for a component without a Service with the address that is caught, else with what the pod's own nameservers say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bluebox_core::log::{Health, Log};
use bluebox_core::name::RESERVED;
use bluebox_core::registry::Class;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::addresses::Addresses;
use super::forward::{self, Over};
use super::message::{self, Asks, Query, Received, Says};
use crate::redirect::address;
use crate::registry::Directory;

/// How long the nameservers have. Below the 5 s after which a resolver asks again by itself (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(4);
/// How long they have for a component's name, which can be answered without them.
const PATIENCE_FOR_A_COMPONENT: Duration = Duration::from_secs(2);
/// How long a name that nobody knows may take to become a component, while the proxy or the system has just started.
const REGISTER_PATIENCE: Duration = Duration::from_secs(2);
/// How long after its start a proxy waits for components to register.
const YOUTH: Duration = Duration::from_secs(30);

/// How a query was answered: what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By the proxy: it asked for a component.
    Component,
    /// With what a nameserver said.
    Forwarded,
    /// Not: no nameserver answered.
    Failed,
    /// Not: it can't be read.
    Malformed,
}

impl How {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Component => "component",
            Self::Forwarded => "forwarded",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
        }
    }
}

/// What answers queries.
pub struct Resolver {
    nameservers: Vec<SocketAddr>,
    directory: watch::Receiver<Directory>,
    log: Arc<dyn Log>,
    addresses: Addresses,
    began: Instant,
}

impl Resolver {
    /// One that asks these nameservers, and remembers the addresses that it hears.
    pub fn new(nameservers: Vec<SocketAddr>, directory: watch::Receiver<Directory>, log: Arc<dyn Log>, addresses: Addresses) -> Self {
        Self { nameservers, directory, log, addresses, began: Instant::now() }
    }

    /// The answer to a message, if it has one. Always within [`PATIENCE`] and [`REGISTER_PATIENCE`] together.
    pub async fn answer(&self, bytes: &[u8], tcp: bool) -> Option<(Vec<u8>, How)> {
        match message::read(bytes) {
            Received::Nothing => None,
            Received::Malformed(answer) => Some((answer, How::Malformed)),
            Received::Opaque => {
                let over = if tcp { Over::Tcp } else { Over::Udp(usize::from(u16::MAX)) };
                match forward::ask(&self.nameservers, bytes, over, PATIENCE).await {
                    Ok(answer) => Some((answer, How::Forwarded)),
                    Err(_) => Some((message::failed(bytes)?, How::Failed)),
                }
            }
            Received::Query(query) => {
                let over = if tcp { Over::Tcp } else { Over::Udp(query.udp_bytes) };
                Some(self.resolve(bytes, &query, over).await)
            }
        }
    }

    async fn resolve(&self, bytes: &[u8], query: &Query<'_>, over: Over) -> (Vec<u8>, How) {
        let names = self.directory.borrow().names.clone();
        let asked = || names.asked(&query.name).or_else(|| names.asked_ordinal(&query.name).filter(|name| self.may_have_ordinals(name)));
        let name = if query.asks == Asks::OtherClass { None } else { asked() };
        let Some(name) = name else {
            return match forward::ask(&self.nameservers, bytes, over, PATIENCE).await {
                Ok(answer) => (answer, How::Forwarded),
                Err(problem) => {
                    warn!(name = query.name, %problem, "could not answer a question of the app for a name");
                    (query.failed(), How::Failed)
                }
            };
        };
        if name == RESERVED {
            return (ours(query), How::Component);
        }
        let patience = if self.is_component(name) { PATIENCE_FOR_A_COMPONENT } else { PATIENCE };
        let answer = forward::ask(&self.nameservers, bytes, over, patience).await.ok();
        let without_service = match answer.as_deref().map(message::says) {
            Some(Says::Something(addresses)) => {
                for (address, ttl) in addresses {
                    self.addresses.learn(address, name, ttl);
                }
                false
            }
            // A name without any address is no Service that could be called.
            Some(Says::NoData) => query.asks != Asks::Other && self.is_component(name) && !self.has_the_other_family(query, name).await,
            // Or nobody can say what it is: calls to it work all the same.
            Some(Says::NoName | Says::CannotSay) | None => self.will_be_component(name).await,
        };
        match answer {
            _ if without_service => {
                debug!(component = name, "answered a question for a component without a Service");
                (ours(query), How::Component)
            }
            Some(answer) => (answer, How::Forwarded),
            None => {
                warn!(name = query.name, "could not answer a question of the app for a name: no nameserver answered");
                (query.failed(), How::Failed)
            }
        }
    }

    /// Whether a component is stateful. What is in no registry yet may become it.
    fn may_have_ordinals(&self, name: &str) -> bool {
        self.directory.borrow().registry.get(name).is_none_or(|(_, component)| component.class == Class::Stateful)
    }

    fn is_component(&self, name: &str) -> bool {
        self.directory.borrow().registry.get(name).is_some()
    }

    /// Whether a name that no nameserver knows, or for which none answers, is a component's, or may be one's.
    ///
    /// Before the registry is read, that can't be known: then it is taken for one, so that the app is told by a 503 that it should try again, and not that there is no such name. When
    /// a system starts for the first time, boxes call each other before all of them have registered: a name is given a moment to become one.
    async fn will_be_component(&self, name: &str) -> bool {
        let known = |directory: &Directory| directory.registry.get(name).is_some();
        let complete = {
            let directory = self.directory.borrow();
            if known(&directory) {
                return true;
            }
            directory.complete
        };
        if complete && self.began.elapsed() >= YOUTH {
            return false;
        }
        let mut directory = self.directory.clone();
        let mut health = self.log.health();
        tokio::select! {
            biased;
            found = directory.wait_for(|d| known(d)) => return found.is_ok(),
            _ = health.wait_for(|health| matches!(health, Health::Away(_))) => {}
            () = tokio::time::sleep(REGISTER_PATIENCE) => {}
        }
        !self.directory.borrow().complete
    }

    /// Whether a name that has no addresses of one family has some of the other one.
    async fn has_the_other_family(&self, query: &Query<'_>, name: &str) -> bool {
        if self.addresses.has_any(name) {
            return true;
        }
        let Ok(other) = query.for_the_other_family() else { return true };
        let Ok(answer) = forward::ask(&self.nameservers, &other, Over::Udp(512), PATIENCE_FOR_A_COMPONENT).await else { return false };
        match message::says(&answer) {
            Says::Something(addresses) => {
                for (address, ttl) in addresses {
                    self.addresses.learn(address, name, ttl);
                }
                true
            }
            _ => false,
        }
    }
}

/// What is answered for a component without a Service.
fn ours(query: &Query<'_>) -> Vec<u8> {
    let address = match query.asks {
        Asks::V4 => Some(address::V4.into()),
        Asks::V6 => Some(address::V6.into()),
        Asks::Other | Asks::OtherClass => None,
    };
    query.answer(address.filter(|address| address::has_route(*address)))
}

//! The processes, and what is done to them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bluebox_e2e::app::Asked;
use bluebox_e2e::{App, Call, Proxy, World};

use super::answers::answer;
use crate::plan::LogKind;
use crate::random::Random;
use crate::system::log::Log;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Target {
    /// A replica of the transaction manager.
    Txmgr,
    /// All of them, at once.
    AllTxmgrs,
    /// The app of a participant.
    Participant,
    /// The proxy of a participant.
    ParticipantProxy,
    /// The proxy of a client.
    ClientProxy,
    /// A broker, or the embedded log.
    Log,
}

impl Target {
    /// As often as they are picked.
    pub(crate) const ALL: &[Self] = &[
        Self::Txmgr,
        Self::Txmgr,
        Self::Txmgr,
        Self::AllTxmgrs,
        Self::Participant,
        Self::ParticipantProxy,
        Self::ParticipantProxy,
        Self::ClientProxy,
        Self::Log,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Txmgr => "txmgr",
            Self::AllTxmgrs => "all-txmgrs",
            Self::Participant => "participant",
            Self::ParticipantProxy => "participant-proxy",
            Self::ClientProxy => "client-proxy",
            Self::Log => "log",
        }
    }
}

/// The participants: each a component of this name.
pub(crate) const PARTICIPANTS: [&str; 3] = ["hotel", "flight", "taxi"];
const PARTITIONS: u32 = 8;

pub(crate) struct Scene {
    // Processes end before what they stand on.
    txmgrs: Vec<Proxy>,
    clients: Vec<Proxy>,
    participants: Vec<(App, Proxy)>,
    world: World,
    log: Log,
    nodes: u16,
}

impl Scene {
    pub(crate) async fn start(kind: LogKind, directory: &Path, bluebox: &Path, session: Duration) -> anyhow::Result<Self> {
        let session = format!("{}ms", session.as_millis());
        let (log, _) = Log::start(kind, directory, bluebox, 0, &[]).await?;
        let world_kind = if kind.is_kafka() { bluebox_e2e::LogKind::Kafka } else { bluebox_e2e::LogKind::Embedded };
        let world = World::on(world_kind, "txn-faults", &log.flag());
        let mut participants = Vec::new();
        for name in PARTICIPANTS {
            let app = world.app(name).await;
            app.rule(|asked| Some(answer(asked)));
            let proxy = world.proxy(name).serves(name, &app, 4).flag("--session-timeout", &session).start().await;
            participants.push((app, proxy));
        }
        let mut txmgrs = Vec::new();
        for _ in 0..2 {
            txmgrs.push(world.txmgr(PARTITIONS).flag("--session-timeout", &session).start().await);
        }
        let mut clients = Vec::new();
        for _ in 0..2 {
            let client = world.proxy("client").start().await;
            for name in PARTICIPANTS.into_iter().chain(["txmgr"]) {
                client.knows(name).await;
            }
            clients.push(client);
        }
        let scene = Self { txmgrs, clients, participants, world, log, nodes: kind.nodes() };
        scene.serves(Duration::from_secs(60)).await?;
        Ok(scene)
    }

    /// Where clients call.
    pub(crate) fn client_proxies(&self) -> Vec<SocketAddr> {
        self.clients.iter().map(Proxy::address).collect()
    }

    /// Where a replica answers those who are in no box.
    pub(crate) fn door(&self) -> SocketAddr {
        self.txmgrs.first().map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), Proxy::address)
    }

    /// SIGKILL, and started again at once: how many processes.
    pub(crate) async fn kill(&mut self, target: Target, random: &mut Random) -> u64 {
        let which = usize::try_from(random.next() % 1_000).unwrap_or(0);
        let (txmgrs, clients, participants) = (self.txmgrs.len(), self.clients.len(), self.participants.len());
        match target {
            Target::Txmgr => self.txmgrs[which % txmgrs].crash().await,
            Target::AllTxmgrs => {
                self.txmgrs.iter_mut().for_each(Proxy::kill);
                for txmgr in &mut self.txmgrs {
                    txmgr.start_again().await;
                }
                return u64::try_from(txmgrs).unwrap_or(u64::MAX);
            }
            Target::ClientProxy => self.clients[which % clients].crash().await,
            Target::ParticipantProxy => self.participants[which % participants].1.crash().await,
            Target::Participant => {
                let app = &mut self.participants[which % participants].0;
                app.kill();
                app.start_again().await;
            }
            Target::Log => {
                let node = u16::try_from(which).unwrap_or(0) % self.nodes;
                self.log.kill(node);
                self.log.start_node(node);
            }
        }
        1
    }

    /// Waits until everything is there again.
    pub(crate) async fn come_back(&self, patience: Duration) -> anyhow::Result<()> {
        self.log_serves(patience).await?;
        self.serves(patience).await
    }

    /// Waits until all of the log is there again.
    pub(crate) async fn log_serves(&self, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        for node in 0..self.nodes {
            while !self.log.serves(node).await {
                ensure!(began.elapsed() < patience, "node {node} of the log takes no connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    async fn serves(&self, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        for txmgr in &self.txmgrs {
            let list = || Call::get("http://txmgr/lra-coordinator?Status=Closing").send_to(txmgr.address());
            while !list().await.is_ok_and(|answer| answer.status == 200) {
                ensure!(began.elapsed() < patience, "the transaction manager does not serve all partitions after {patience:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        for name in PARTICIPANTS {
            let Some(client) = self.clients.first() else { continue };
            let ping = || Call::get(&format!("http://{name}/ping")).prefer("wait=5").send_to(client.address());
            while !ping().await.is_ok_and(|answer| answer.status == 200) {
                ensure!(began.elapsed() < patience, "{name} does not answer after {patience:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// What each participant was asked.
    pub(crate) fn asked(&self) -> Vec<(&'static str, Vec<Asked>)> {
        PARTICIPANTS.into_iter().zip(self.participants.iter().map(|(app, _)| app.ledger())).collect()
    }

    /// Waits until nobody is asked anything any more.
    pub(crate) async fn until_quiet(&self) {
        let count = || self.participants.iter().map(|(app, _)| app.ledger().len()).sum::<usize>();
        let mut before = usize::MAX;
        for _ in 0..30 {
            let now = count();
            if now == before {
                return;
            }
            before = now;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Keeps what the processes have said: where.
    pub(crate) fn keep(&mut self) -> String {
        self.world.keep().map_or_else(String::new, |kept| kept.display().to_string())
    }
}

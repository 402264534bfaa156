//! What will be started, out of what the file says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::registry::{Class, Component, Streams};
use bluebox_proxy::config::{App, AppProtocol, Served};
use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::ports;
use crate::file::{BoxSpec, ComponentSpec, Gateway, System, Txmgr};
use crate::proxy::ProxyOptions;
use crate::serve;

/// How long callers outside may wait for their answers when the gateway ends. Their calls are kept whatever becomes of them.
const GATEWAY_DRAIN: Duration = Duration::from_secs(10);

/// How long requests to the transaction manager may take to end when it ends.
const TXMGR_DRAIN: Duration = Duration::from_secs(10);

/// One replica of a box, or the gateway: a proxy, and perhaps an app.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    /// As it is called in the output: `cart-0`.
    pub(crate) name: String,
    /// The box.
    pub(crate) box_name: String,
    /// Its number in the box; the first is 0.
    pub(crate) replica: u32,
    /// What it is besides its proxy.
    pub(crate) program: Program,
    /// The app; none for what is no box.
    pub(crate) app: Option<AppPlan>,
    /// Where the proxy listens; none: the system chooses at each start.
    pub(crate) listen: Option<SocketAddr>,
    /// Arguments of the proxy that don't change.
    pub(crate) proxy: Vec<String>,
    /// How long the proxy may take to end what is under way.
    pub(crate) drain: Duration,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// A proxy for callers outside any box.
    Gateway,
    /// An app and its proxy.
    Box,
    /// The transaction manager, which is its own proxy.
    Txmgr,
}

impl Program {
    /// The command of this program that runs it, or its proxy.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Gateway | Self::Box => "proxy",
            Self::Txmgr => "txmgr",
        }
    }
}

/// The app of a replica.
#[derive(Debug, Clone)]
pub(crate) struct AppPlan {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Where it runs.
    pub(crate) cwd: PathBuf,
    /// What the file says of its environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it is told to listen.
    pub(crate) port: u16,
    /// Whether it serves anything: if not, no port is awaited.
    pub(crate) serves: bool,
    /// Which ordinal its stateful components have; `None` where it has none.
    pub(crate) ordinal: Option<u32>,
    /// Whether another replica has the port that the file says.
    pub(crate) port_is_anothers: Option<u16>,
    /// How long it may take to end.
    pub(crate) grace: Duration,
}

/// All components of the system, as the registry is to have them.
pub(crate) fn components(system: &System, units: &[Unit]) -> anyhow::Result<Vec<Served>> {
    let mut all = Vec::new();
    if let Some(txmgr) = &system.txmgr {
        // Its app is in its own process; nothing is sent there from this one.
        let nowhere = App::At { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), protocol: AppProtocol::default() };
        all.push(crate::txmgr::served(ComponentName::try_new(crate::txmgr::NAME)?, txmgr.partitions, nowhere));
    }
    for spec in &system.boxes {
        let of_box = units.iter().filter(|unit| unit.app.is_some() && unit.box_name == spec.name.as_str());
        let apps: Vec<SocketAddr> = of_box.filter_map(|unit| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, unit.app.as_ref()?.port)))).collect();
        if let Some(first) = apps.first() {
            all.extend(spec.components.iter().map(|component| served(component, *first, 0, &apps)));
        }
    }
    Ok(all)
}

/// Plans every unit. Ports that the file leaves open are chosen now, and stay.
pub(crate) fn units(system: &System, log: &[String]) -> anyhow::Result<Vec<Unit>> {
    let mut units = Vec::new();
    if let Some(gateway) = &system.gateway {
        units.push(gateway_unit(gateway, log)?);
    }
    if let Some(txmgr) = &system.txmgr {
        for replica in 0..txmgr.replicas {
            units.push(txmgr_unit(txmgr, replica, log)?);
        }
    }
    for spec in &system.boxes {
        let apps: Vec<SocketAddr> = (0..spec.replicas)
            .map(|replica| match spec.port {
                Some(port) if replica == 0 => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
                _ => ports::free(),
            })
            .collect::<Result<_, _>>()?;
        for (replica, app) in (0..).zip(&apps) {
            let proxy = proxy_arguments(spec, *app, replica, &apps, log);
            units.push(Unit {
                name: format!("{}-{replica}", spec.name),
                box_name: spec.name.to_string(),
                replica,
                program: Program::Box,
                app: Some(AppPlan {
                    command: spec.command.clone(),
                    cwd: spec.cwd.clone(),
                    env: spec.env.clone(),
                    port: app.port(),
                    serves: !spec.components.is_empty(),
                    ordinal: spec.components.iter().any(|component| component.settings.class == Some(Class::Stateful)).then_some(replica),
                    port_is_anothers: spec.port.filter(|_| replica > 0),
                    grace: spec.grace,
                }),
                listen: None,
                drain: options(&proxy)?.config().map_err(anyhow::Error::msg)?.inbound.drain,
                proxy,
            });
        }
    }
    Ok(units)
}

fn gateway_unit(gateway: &Gateway, log: &[String]) -> anyhow::Result<Unit> {
    let listen = if gateway.listen.port() == 0 { SocketAddr::new(gateway.listen.ip(), ports::free()?.port()) } else { gateway.listen };
    let mut proxy = vec!["--name".to_owned(), gateway.name.to_string()];
    proxy.push(format!("--drain={}", humantime::format_duration(GATEWAY_DRAIN)));
    proxy.extend(gateway.limits.iter().chain(log).cloned());
    Ok(Unit {
        name: gateway.name.to_string(),
        box_name: gateway.name.to_string(),
        replica: 0,
        program: Program::Gateway,
        app: None,
        listen: Some(listen),
        proxy,
        drain: GATEWAY_DRAIN,
    })
}

fn txmgr_unit(txmgr: &Txmgr, replica: u32, log: &[String]) -> anyhow::Result<Unit> {
    // The first replica has the address of the file; all of them do the same.
    let listen = if replica == 0 && txmgr.listen.port() != 0 { txmgr.listen } else { SocketAddr::new(txmgr.listen.ip(), ports::free()?.port()) };
    let mut arguments = vec![format!("--partitions={}", txmgr.partitions), format!("--drain={}", humantime::format_duration(TXMGR_DRAIN))];
    arguments.extend(txmgr.settings.iter().chain(log).cloned());
    let name = crate::txmgr::NAME;
    Ok(Unit {
        name: format!("{name}-{replica}"),
        box_name: name.to_owned(),
        replica,
        program: Program::Txmgr,
        app: None,
        listen: Some(listen),
        proxy: arguments,
        drain: TXMGR_DRAIN,
    })
}

fn proxy_arguments(spec: &BoxSpec, app: SocketAddr, replica: u32, replicas: &[SocketAddr], log: &[String]) -> Vec<String> {
    let mut arguments = vec!["--name".to_owned(), spec.name.to_string()];
    for component in &spec.components {
        arguments.extend(["--serve".to_owned(), serve::spell(&served(component, app, replica, replicas))]);
    }
    arguments.extend(spec.limits.iter().chain(log).cloned());
    arguments
}

/// A component as a replica serves it. Of a stateful one, replica *i* is ordinal *i*, and there can be as many as there are, if the file does not say how many.
fn served(spec: &ComponentSpec, app: SocketAddr, replica: u32, replicas: &[SocketAddr]) -> Served {
    let own = |of_box: &SocketAddr| SocketAddr::new(of_box.ip(), spec.port.unwrap_or(of_box.port()));
    let settings = &spec.settings;
    let default = Component::default();
    let streams = settings.streams.unwrap_or_default();
    let direct = if streams == Streams::Pass { replicas.iter().map(|replica| own(replica).to_string()).collect() } else { Vec::new() };
    let class = settings.class.unwrap_or(Class::Service);
    let stateful = class == Class::Stateful;
    let partitions = if stateful { u32::try_from(replicas.len()).unwrap_or(u32::MAX) } else { default.partitions };
    Served {
        name: spec.name.clone(),
        ordinal: stateful.then_some(replica),
        component: Component {
            class,
            partitions: settings.partitions.unwrap_or(partitions),
            ports: settings.ports.clone().unwrap_or_else(|| default.ports.clone()),
            body_limit_bytes: settings.body_limit.unwrap_or(default.body_limit_bytes),
            streams,
            direct,
            routing: default.routing,
        },
        app: App::At { address: own(&app), protocol: settings.protocol.unwrap_or_default() },
    }
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    proxy: ProxyOptions,
}

/// What a proxy will make of its arguments; the environment, which is not the proxies', does not count.
fn options(arguments: &[String]) -> anyhow::Result<ProxyOptions> {
    let matches = Alone::command().mut_args(|arg| arg.env(None::<&'static str>)).try_get_matches_from(arguments)?;
    Ok(Alone::from_arg_matches(&matches)?.proxy)
}

/// Whether the gateway and the transaction manager listen where no app does. (That no two boxes have one port is seen where the file is read.)
pub(crate) fn check_ports(system: &System) -> anyhow::Result<()> {
    let gateway = system.gateway.as_ref().map(|gateway| (gateway.name.as_str(), gateway.listen));
    let txmgr = system.txmgr.as_ref().map(|txmgr| (crate::txmgr::NAME, txmgr.listen));
    let boxes = system.boxes.iter().flat_map(|one| {
        let ports = one.port.into_iter().chain(one.components.iter().filter_map(|component| component.port));
        ports.map(|port| (one.name.as_str(), SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    });
    let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
    for (name, at) in gateway.into_iter().chain(txmgr).chain(boxes) {
        let clashes = |there: SocketAddr| {
            let any = there.ip().is_unspecified() || at.ip().is_unspecified();
            at.port() != 0 && there.port() == at.port() && (any || there.ip() == at.ip())
        };
        if let Some((other, _)) = taken.iter().find(|(other, there)| *other != name && clashes(*there)) {
            let port = at.port();
            anyhow::bail!(
                "port {port} is to be that of {other} and of {name}: give one of them another (`port:` of a box, `listen:` of the gateway and of txmgr)"
            );
        }
        taken.push((name, at));
    }
    Ok(())
}

/// Whether the limits of each box go together.
pub(crate) fn check_limits(system: &System) -> anyhow::Result<()> {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let boxes = system.boxes.iter().map(|spec| (spec.name.to_string(), proxy_arguments(spec, nowhere, 0, &[nowhere], &[])));
    let gateway = system.gateway.iter().map(|gateway| ("gateway".to_owned(), gateway.limits.clone()));
    for (name, arguments) in boxes.chain(gateway) {
        options(&arguments)?.config().map_err(|why| anyhow::anyhow!("{name}: {why}"))?;
    }
    Ok(())
}

/// The boxes whose program can't be found, in words.
pub(crate) fn missing_commands(system: &System) -> Vec<String> {
    system.boxes.iter().filter_map(|spec| missing_command(spec).map(|why| format!("line {}: box {}: {why}", spec.command_at.line, spec.name))).collect()
}

fn missing_command(spec: &BoxSpec) -> Option<String> {
    use nix::unistd::{AccessFlags, access};
    let program = spec.command.first()?;
    let can_run = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if program.contains('/') {
        let path = spec.cwd.join(program);
        return match (path.is_file(), can_run(&path)) {
            (_, true) => None,
            (true, false) => Some(format!("`{program}` is there but can't be run: make it executable (chmod +x {})", path.display())),
            (false, _) => Some(format!("`{program}`: there is no such file ({})", path.display())),
        };
    }
    let path = spec.env.get("PATH").map_or_else(|| std::env::var_os("PATH").unwrap_or_default(), Into::into);
    if std::env::split_paths(&path).any(|directory| can_run(&directory.join(program))) {
        return None;
    }
    let local = if spec.cwd.join(program).is_file() { format!("; for the file beside it write `./{program}`") } else { String::new() };
    Some(format!("`{program}`: no such command in PATH{local}"))
}

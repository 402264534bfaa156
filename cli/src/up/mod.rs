//! `bluebox up FILE`: a whole system on one machine.
//!
//! - [`plan`]: what will be started, out of what the file says.
//! - [`register`]: all components, before anything runs.
//! - [`unit`](mod@unit): one replica: an app and its proxy in one failure domain.
//! - [`app`]: an app, as `up` sees it.
//! - [`data`]: the directory of the log and of what `up` writes of itself.
//! - [`idle`]: finds boxes that never used their proxy.
//! - [`ports`]: ports of this machine.
//! - [`output`]: what a person sees.
//! - [`state`]: what others see.

pub(crate) mod app;
pub(crate) mod data;
mod idle;
pub(crate) mod output;
pub(crate) mod plan;
pub(crate) mod ports;
mod register;
pub(crate) mod state;
pub(crate) mod unit;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::log::Health;
use bluebox_core::topics::Retention;
use bluebox_proxy::registry::Registration;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::data::{Kept, OpenLog};
use self::output::{Output, Source, Tone};
use self::plan::{Program, Unit};
use self::state::{State, Status, UnitState};
use self::unit::{Phase, Supervisor};
use crate::file::{self, System};
use crate::log::KafkaOptions;
use crate::operate::Reached;
use crate::units::so_many;
use crate::watch::page;
use crate::watch::run::bind;

/// What `bluebox up --help` ends with.
pub(crate) const EXAMPLES: &str = "\
The least file that works:
  boxes:
    cart:
      command: [python3, cart.py]
      port: 8080

Then, from anywhere on this machine:
  curl -x 127.0.0.1:4140 http://cart/items

Examples:
  bluebox up orders.yaml
  bluebox up orders.yaml --brokers 127.0.0.1:9092      the same on Kafka
  bluebox up orders.yaml --fsync always                every accepted call also survives a power cut

Ctrl-C ends it in good order: no new calls, what is under way is finished, then the apps end.
The second Ctrl-C ends it at once. Nothing that was accepted is lost either way: it is delivered
after the next start.";

/// Runs a whole system on this machine: the log, a proxy for each replica, and the apps.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpOptions {
    /// The file that says which boxes there are.
    #[arg(default_value = "bluebox.yaml")]
    file: PathBuf,
    /// Use this Kafka instead of the embedded log: HOST:PORT[,HOST:PORT…].
    #[arg(long, env = "BLUEBOX_BROKERS", value_name = "BROKERS", value_parser = crate::log::parse_brokers)]
    brokers: Option<String>,
    /// Where the embedded log keeps its data; by default `.bluebox` beside the file.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where callers outside any box call; port 0 lets the system choose. By default what the file says, or 127.0.0.1:4140.
    #[arg(long, env = "BLUEBOX_GATEWAY", value_name = "HOST:PORT", value_parser = file::address)]
    gateway: Option<std::net::SocketAddr>,
    /// Where the page with what goes on is, for a browser on this machine; port 0 lets the system choose. By default 127.0.0.1:4144, or another port if that is taken.
    #[arg(long, env = "BLUEBOX_PAGE", value_name = "HOST:PORT", value_parser = loopback)]
    page: Option<SocketAddr>,
    /// When the embedded log waits for the disk: `always`, `never`, or how much may be lost with the power, such as 50ms. No choice loses
    /// anything when processes die.
    #[arg(long, env = "BLUEBOX_FSYNC", value_name = "WHEN", value_parser = |text: &str| crate::log::parse_fsync(text).map(|_| text.to_owned()))]
    fsync: Option<String>,
    /// What the proxies log: error, warn, info, debug, trace.
    #[arg(long, env = "BLUEBOX_PROXY_LOG_LEVEL", value_name = "LEVEL", default_value = "warn")]
    proxy_log_level: String,
    /// How often to look for boxes that never used their proxy.
    #[arg(long, hide = true, value_name = "DURATION", default_value = "30s", value_parser = crate::units::positive_duration)]
    look_for_idle: Duration,
    #[command(flatten)]
    kafka: KafkaOptions,
}

/// Runs until Ctrl-C.
pub(crate) async fn run(options: UpOptions) -> anyhow::Result<()> {
    // Asked for now, while it is surely there.
    let _ = crate::family::this_program();
    let mut system = file::load(&options.file)?;
    apply(&options, &mut system)?;
    plan::check_limits(&system)?;
    plan::check_ports(&system)?;
    let missing = plan::missing_commands(&system);
    if !missing.is_empty() {
        bail!("{}: {}", options.file.display(), missing.join("\n"));
    }
    let mut ended = Ended::new()?;
    let kept = Kept::lock(&system.log.data)?;
    let width = system.boxes.iter().map(|one| one.name.as_str().len() + 8).max().unwrap_or(0).max("bluebox".len());
    let output = Output::start(width)?;
    let log = OpenLog::open(&system.log, &options.kafka, &kept, &output).await?;
    let mut arguments = log.proxy_arguments().to_vec();
    arguments.extend(["--log-level".to_owned(), options.proxy_log_level.clone()]);
    let units = plan::units(&system, &arguments)?;
    check_ports(&units).await?;
    greet(&output, &options.file, &system, &log, &units);
    let registration = Registration {
        prefix: system.log.prefix.clone(),
        caller: system.gateway.as_ref().map(|gateway| &gateway.name).or(system.boxes.first().map(|spec| &spec.name)).cloned().context("no boxes")?,
        serves: plan::components(&system, &units)?,
        retention: Retention::default(),
    };
    tokio::select! {
        registered = register::register(log.client(), registration, &output) => if let Err(error) = registered {
            output.flush().await;
            bail!("{}: {error}", options.file.display());
        },
        () = ended.next() => {
            output.say(Tone::Good, "ended before anything was started.");
            output.flush().await;
            return Ok(());
        }
    }

    let (listener, page) = open_page(options.page).await?;
    let (state, changing) = watch::channel(first_state(&options.file, &system, &log, &units, page));
    // What is said of the state is said when others can see it too.
    let (written, watched) = watch::channel(changing.borrow().clone());
    let keeper = tokio::spawn(state::keep(changing, written, kept.directory().to_owned()));
    let (phase, phases) = watch::channel(Phase::Run);
    let mut boxes = JoinSet::new();
    let mut gateway = JoinSet::new();
    for (index, unit) in units.into_iter().enumerate() {
        let source = Source::numbered(&unit.name, index);
        let set = if unit.program == Program::Gateway { &mut gateway } else { &mut boxes };
        set.spawn(Supervisor { unit, index, output: output.clone(), source, state: state.clone(), phase: phases.clone() }.run());
    }
    drop(state);
    let (seen, looking) = crate::watch::begin(Reached { log: log.client(), prefix: system.log.prefix.clone() }, Some(watched.clone()), None)?;
    let mut watching = JoinSet::new();
    watching.spawn(looking);
    let told = output.clone();
    watching.spawn(page::serve(listener, seen, page::Rights::Change, Arc::new(move |what| told.say(Tone::News, what))));
    output.say(Tone::Plain, format!("  what goes on: http://{page}/"));
    tokio::spawn(tell_when_up(watched.clone(), log.client().health(), output.clone()));
    let idle = tokio::spawn(idle::watch(watched.clone(), output.clone(), options.look_for_idle));

    ended.next().await;
    idle.abort();
    output.say(Tone::News, "ending: no new calls, what is under way is finished. Ctrl-C again ends everything at once.");
    let orderly = async {
        phase.send_replace(Phase::EndGateway);
        while gateway.join_next().await.is_some() {}
        phase.send_replace(Phase::EndBoxes);
        while boxes.join_next().await.is_some() {}
    };
    let at_once = tokio::select! {
        () = orderly => false,
        () = ended.next() => true,
        () = tell_what_is_awaited(watched, output.clone()) => false,
    };
    if at_once {
        output.say(Tone::Trouble, "ending at once; calls that were under way are delivered again after the next start.");
        phase.send_replace(Phase::Now);
        while gateway.join_next().await.is_some() {}
        while boxes.join_next().await.is_some() {}
    }
    watching.shutdown().await;
    log.close().await;
    let _ = keeper.await;
    kept.forget_state();
    if !at_once {
        output.say(Tone::Good, "ended. Everything that was accepted is kept, and goes on with the next `bluebox up`.");
    }
    output.flush().await;
    if at_once {
        std::process::exit(130);
    }
    Ok(())
}

/// Says now and then what the end is waiting for. Never done.
async fn tell_what_is_awaited(state: watch::Receiver<State>, output: Output) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let left: Vec<String> = state.borrow().units.iter().filter(|unit| unit.status != Status::Stopped).map(|unit| unit.name.clone()).collect();
        output.say(Tone::News, format!("still ending: {}. Ctrl-C again ends everything at once.", left.join(", ")));
    }
}

/// Ctrl-C, SIGTERM, or the end of the terminal.
struct Ended(tokio::sync::mpsc::Receiver<()>);

impl Ended {
    fn new() -> std::io::Result<Self> {
        let (mut interrupt, mut terminate, mut hangup) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let (tell, told) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
                if tell.send(()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self(told))
    }

    /// Done at the next one. Cancel safe.
    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Flags go before the file.
fn apply(options: &UpOptions, system: &mut System) -> anyhow::Result<()> {
    if let Some(data) = &options.data {
        system.log.data = std::path::absolute(data)?;
    }
    if options.brokers.is_some() {
        system.log.brokers = options.brokers.clone();
    }
    if let (Some(listen), Some(gateway)) = (options.gateway, &mut system.gateway) {
        gateway.listen = listen;
    }
    if options.fsync.is_some() {
        system.log.fsync = options.fsync.clone();
    }
    if options.kafka.topic_prefix != bluebox_core::topics::Prefix::default() {
        system.log.prefix = options.kafka.topic_prefix.clone();
    }
    system.log.properties.extend(options.kafka.properties()?);
    Ok(())
}

/// Where the page is if nothing else is said.
const DEFAULT_PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4144);

/// Reads an address of this machine that only this machine reaches.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = file::address(text)?;
    if address.ip().is_loopback() { Ok(address) } else { Err("dead letters can be dropped there, so it must be on loopback: 127.0.0.1 or [::1]".to_owned()) }
}

/// Another `up` may have the port that nobody asked for by its number.
async fn open_page(asked: Option<SocketAddr>) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let told = |address: SocketAddr| format!("the page can't be had at {address} (--page names another place)");
    match asked {
        Some(address) => bind(address).await.with_context(|| told(address)),
        None => match bind(DEFAULT_PAGE).await {
            Ok(bound) => Ok(bound),
            Err(_) => {
                let any = SocketAddr::new(DEFAULT_PAGE.ip(), 0);
                bind(any).await.with_context(|| told(any))
            }
        },
    }
}

/// Whether the ports that the file names are free. What an `up` that was killed has left behind is given a moment to end.
async fn check_ports(units: &[Unit]) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let began = tokio::time::Instant::now();
    loop {
        let taken = taken_ports(units);
        if taken.is_empty() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!(taken.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn taken_ports(units: &[Unit]) -> Vec<String> {
    let mut taken = Vec::new();
    for unit in units {
        let app = unit.app.as_ref().filter(|app| app.serves).map(|app| std::net::SocketAddr::from(([127, 0, 0, 1], app.port)));
        for address in unit.listen.into_iter().chain(app) {
            if let Err(why) = ports::check_free(address) {
                let remedy = match unit.program {
                    Program::Box => "end that, or give the box another `port:`",
                    Program::Gateway => "end that, or set another `gateway: {listen: …}`",
                    Program::Txmgr => "end that, or set another `txmgr: {listen: …}`",
                };
                taken.push(format!("{}: {why}; {remedy}", unit.name));
            }
        }
    }
    taken
}

fn greet(output: &Output, file: &Path, system: &System, log: &OpenLog, units: &[Unit]) {
    output.say(Tone::News, format!("{}: {}, {}", file.display(), so_many(system.boxes.len(), "box", "boxes"), log.describe()));
    for spec in &system.boxes {
        let names: Vec<String> = spec.components.iter().map(|component| format!("http://{}/", component.name)).collect();
        let ports: Vec<String> =
            units.iter().filter(|unit| unit.box_name == spec.name.as_str()).filter_map(|unit| Some(unit.app.as_ref()?.port.to_string())).collect();
        let what = if names.is_empty() { "only calls".to_owned() } else { format!("{} at port {}", names.join(" "), ports.join(", ")) };
        output.say(Tone::Plain, format!("  {:<12} {what}", spec.name.as_str()));
    }
    if let Some(listen) = units.iter().find(|unit| unit.program == Program::Txmgr).and_then(|unit| unit.listen) {
        output.say(Tone::Plain, format!("  {:<12} http://{0}/lra-coordinator, without a proxy http://{listen}/lra-coordinator", crate::txmgr::NAME));
    }
    let called = system.boxes.iter().find_map(|spec| spec.components.first());
    if let (Some(gateway), Some(component)) = (units.iter().find(|unit| unit.program == Program::Gateway).and_then(|unit| unit.listen), called) {
        output.say(Tone::Plain, format!("  from outside: curl -x {gateway} http://{}/", component.name));
    }
}

fn first_state(file: &Path, system: &System, log: &OpenLog, units: &[Unit], page: SocketAddr) -> State {
    State {
        pid: std::process::id(),
        file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
        brokers: system.log.brokers.clone(),
        kafka_properties: log.kafka_properties().map(Path::to_owned),
        log_socket: log.socket().map(Path::to_owned),
        topic_prefix: system.log.prefix.as_str().to_owned(),
        gateway: units.iter().find(|unit| unit.program == Program::Gateway).and_then(|unit| unit.listen),
        page: Some(page),
        units: units
            .iter()
            .map(|unit| UnitState {
                name: unit.name.clone(),
                box_name: unit.box_name.clone(),
                components: system
                    .boxes
                    .iter()
                    .filter(|spec| unit.app.is_some() && spec.name.as_str() == unit.box_name)
                    .flat_map(|spec| spec.components.iter().map(|component| component.name.to_string()))
                    .chain((unit.program == Program::Txmgr).then(|| crate::txmgr::NAME.to_owned()))
                    .collect(),
                status: Status::Starting,
                app_pid: 0,
                app_port: unit.app.as_ref().map(|app| app.port),
                proxy_pid: 0,
                proxy: unit.listen,
                admin: None,
                control: None,
                restarts: 0,
                last_restart: None,
            })
            .collect(),
    }
}

/// Says once that everything is up.
async fn tell_when_up(mut state: watch::Receiver<State>, log: watch::Receiver<Health>, output: Output) {
    if state.wait_for(|state| state.units.iter().all(|unit| unit.status == Status::Up)).await.is_err() {
        return;
    }
    match *log.borrow() {
        Health::Up => output.say(Tone::Good, "everything is up (Ctrl-C ends it)"),
        Health::Away(_) => output.say(Tone::Trouble, "everything is up but the log: calls get 503 until it can be reached (Ctrl-C ends it)"),
    }
}

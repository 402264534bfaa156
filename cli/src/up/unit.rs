//! One replica: its app and its proxy in one failure domain. Either dies: the other is killed, and both are started again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::app::{App, Start};
use super::output::{Output, Source, Tone};
use super::plan::{AppPlan, Program, Unit};
use super::ports;
use super::state::{State, Status, UnitState};
use crate::family::{Ending, this_program};
use crate::proxy::Listening;
use crate::units::spell;

/// A unit that ran this long has shown that it can: its next restart is not delayed.
const STABLE: Duration = Duration::from_secs(30);
/// An app that has not opened its port after this long is worth a word.
const SLOW_START: Duration = Duration::from_secs(10);
/// How long a proxy may take to listen.
const PROXY_START: Duration = Duration::from_secs(10);
/// What a proxy tells of itself is short.
const MAX_TOLD_BYTES: u64 = 4096;
/// What a proxy may take beyond its drain.
const BEYOND_DRAIN: Duration = Duration::from_secs(5);

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Everything runs.
    Run,
    /// No calls from outside any more: the gateway ends.
    EndGateway,
    /// The boxes end.
    EndBoxes,
    /// Everything ends at once.
    Now,
}

/// A unit and what it needs.
pub(crate) struct Supervisor {
    /// What to run.
    pub(crate) unit: Unit,
    /// Its number in the state.
    pub(crate) index: usize,
    /// What the user sees.
    pub(crate) output: Output,
    /// Who says it.
    pub(crate) source: Source,
    /// What others see.
    pub(crate) state: watch::Sender<State>,
    /// How far the end has come.
    pub(crate) phase: watch::Receiver<Phase>,
}

/// A started proxy. Dropping its input ends it.
struct Proxy {
    child: Child,
    _input: Option<ChildStdin>,
    listen: SocketAddr,
}

/// What runs.
struct Running {
    app: Option<App>,
    proxy: Proxy,
}

/// Why it ran no longer.
enum End {
    App(Ending),
    Proxy(Ending),
    /// The app took the port that the file gives to the first replica.
    WrongPort(u16),
    Asked,
}

/// The pause before a restart, after this many failures in a row: 0, 1, 2, 4 … 30 s.
pub(crate) fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 1).min(5)).min(Duration::from_secs(30)),
    }
}

impl Supervisor {
    /// Runs the unit until it is asked to end. Done when nothing of it runs.
    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        while !self.must_end() {
            self.change(|unit| unit.status = Status::Starting);
            let began = Instant::now();
            let why = match self.start().await {
                Ok(mut running) => {
                    let (end, opened) = self.watch(&mut running).await;
                    let why = match end {
                        End::Asked => return self.end(running).await,
                        End::App(ending) => self.app_ended(ending, began.elapsed(), opened),
                        End::Proxy(ending) => self.proxy_ended(ending),
                        End::WrongPort(first) => format!("its app listens on port {first} and not on $PORT. {}", self.only_one(first)),
                    };
                    kill_both(running).await;
                    why
                }
                Err(error) => format!("can't be started: {error:#}"),
            };
            if self.must_end() {
                break;
            }
            if began.elapsed() >= STABLE {
                failures = 0;
            }
            let pause = backoff(failures);
            failures += 1;
            let when = if pause.is_zero() { "now".to_owned() } else { format!("in {} s", pause.as_secs()) };
            self.output.say(Tone::Trouble, format!("{}: {why}. Starts again {when}.", self.unit.name));
            self.change(|unit| {
                (unit.status, unit.app_pid, unit.proxy_pid) = (Status::Waiting, 0, 0);
                unit.restarts += 1;
                unit.last_restart = Some(why);
            });
            tokio::select! { () = sleep(pause) => {}, () = self.asked() => {} }
        }
        self.change(stopped);
    }

    fn change(&self, change: impl FnOnce(&mut UnitState)) {
        self.state.send_modify(|state| {
            if let Some(unit) = state.units.get_mut(self.index) {
                change(unit);
            }
        });
    }

    fn last_phase(&self) -> Phase {
        if self.unit.program == Program::Gateway { Phase::EndGateway } else { Phase::EndBoxes }
    }

    fn must_end(&self) -> bool {
        *self.phase.borrow() >= self.last_phase()
    }

    async fn reached(&mut self, phase: Phase) {
        // The sender is dropped only when there is nothing left to run for.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    async fn asked(&mut self) {
        self.reached(self.last_phase()).await;
    }

    async fn start(&mut self) -> anyhow::Result<Running> {
        if let Some(app) = self.unit.app.as_ref().filter(|app| app.serves) {
            ports::check_free(SocketAddr::from(([127, 0, 0, 1], app.port))).map_err(anyhow::Error::msg).context("its app could not listen")?;
            // An app that ignores $PORT must not take the first replica's port from it.
            let began = Instant::now();
            while app.port_is_anothers.is_some_and(|first| !ports::is_open(first)) && began.elapsed() < SLOW_START && !self.must_end() {
                sleep(Duration::from_millis(25)).await;
            }
        }
        let proxy = self.start_proxy().await?;
        let app = match &self.unit.app {
            None => None,
            Some(app) => {
                let env = self.environment(app, proxy.listen);
                let start = Start { command: &app.command, cwd: &app.cwd, env: &env };
                Some(App::start(start, &self.output, &self.source).await?)
            }
        };
        let pid = app.as_ref().map_or(0, |app| app.pid.unsigned_abs());
        self.change(|unit| unit.app_pid = pid);
        Ok(Running { app, proxy })
    }

    /// Starts the proxy; done when it listens.
    async fn start_proxy(&self) -> anyhow::Result<Proxy> {
        if let Some(listen) = self.unit.listen {
            ports::check_free(listen).map_err(anyhow::Error::msg)?;
        }
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = self.unit.listen.unwrap_or(any);
        let mut command = Command::from(this_program());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("BLUEBOX_"))) {
            command.env_remove(name);
        }
        // Each proxy is told where traces go, and has its own name there.
        command.env_remove(crate::traces::SERVICE_NAME);
        command
            .args([self.unit.program.command(), "--with-parent", "--listen", &listen.to_string(), "--admin", &any.to_string(), "--control", &any.to_string()])
            .args(&self.unit.proxy);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("its proxy can't be started")?;
        let source = if self.unit.app.is_some() { self.source.proxy() } else { self.source.clone() };
        if let Some(lines) = child.stderr.take() {
            tokio::spawn(self.output.clone().copy(source, lines));
        }
        let (input, told) = (child.stdin.take(), child.stdout.take().context("its proxy has no output")?);
        let mut told = BufReader::new(told.take(MAX_TOLD_BYTES)).lines();
        let Ok(line) = timeout(PROXY_START, told.next_line()).await else {
            anyhow::bail!("its proxy did not listen at {listen} within {}", spell(PROXY_START));
        };
        let Some(line) = line? else { anyhow::bail!("its proxy {}", Ending::from(child.wait().await?)) };
        let Listening { listen, admin, control } = serde_json::from_str(&line)?;
        let pid = child.id().unwrap_or(0);
        self.change(|unit| (unit.proxy_pid, unit.proxy, unit.admin, unit.control) = (pid, Some(listen), admin, control));
        Ok(Proxy { child, _input: input, listen })
    }

    /// What the app is told, on top of what `up` was told: its port, and how to reach its proxy.
    fn environment(&self, app: &AppPlan, proxy: SocketAddr) -> BTreeMap<String, String> {
        const DIRECT: &str = "localhost,127.0.0.1,::1";
        let own = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok()).filter(|own| !own.trim().is_empty());
        let direct = own.map_or(DIRECT.to_owned(), |own| format!("{DIRECT},{own}"));
        let url = format!("http://{proxy}");
        let java = format!("-Dhttp.proxyHost={} -Dhttp.proxyPort={} -Dhttp.nonProxyHosts=localhost|127.*|[::1]", proxy.ip(), proxy.port());
        let java =
            app.env.get("JAVA_TOOL_OPTIONS").cloned().or_else(|| std::env::var("JAVA_TOOL_OPTIONS").ok()).map_or(java.clone(), |own| format!("{own} {java}"));
        let mut env = BTreeMap::from(
            [
                ("PORT", app.port.to_string()),
                ("HTTP_PROXY", url.clone()),
                ("http_proxy", url),
                ("NO_PROXY", direct.clone()),
                ("no_proxy", direct),
                ("NODE_USE_ENV_PROXY", "1".to_owned()),
                // Lines appear when they are written, as they would on a terminal.
                ("PYTHONUNBUFFERED", "1".to_owned()),
                ("BLUEBOX_BOX", self.unit.box_name.clone()),
                ("BLUEBOX_REPLICA", self.unit.replica.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        env.extend(app.env.clone());
        if let Some(ordinal) = app.ordinal {
            env.insert("BLUEBOX_ORDINAL".to_owned(), ordinal.to_string());
        }
        env.insert("JAVA_TOOL_OPTIONS".to_owned(), java);
        env
    }

    /// Watches until something ends, and whether the app's port was opened by then.
    async fn watch(&mut self, running: &mut Running) -> (End, bool) {
        let port = self.unit.app.as_ref().filter(|app| app.serves).map(|app| app.port);
        let (mut opened, began, mut warned) = (false, Instant::now(), false);
        let mut phase = self.phase.clone();
        let last = self.last_phase();
        loop {
            if !opened && port.is_none_or(ports::is_open) {
                opened = true;
                self.is_up(port, running);
            }
            if !opened && !warned && port.is_some_and(ports::is_open_elsewhere_only) {
                warned = true;
                self.elsewhere(port.unwrap_or_default());
            }
            if !opened && !warned && began.elapsed() > SLOW_START {
                warned = true;
                self.slow(port.unwrap_or_default());
            }
            // Until the port is open only looking tells; from then on there is nothing to look for.
            let look = if opened {
                Duration::MAX
            } else if warned {
                Duration::from_millis(500)
            } else {
                Duration::from_millis(25)
            };
            if let (false, Some(first)) = (opened, self.took_anothers_port(running)) {
                return (End::WrongPort(first), false);
            }
            let app = async {
                match &mut running.app {
                    Some(app) => app.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ending = app => return (End::App(ending), opened),
                status = running.proxy.child.wait() => return (End::Proxy(status.map_or(Ending::Code(-1), Ending::from)), opened),
                _ = phase.wait_for(|now| *now >= last) => return (End::Asked, opened),
                () = sleep(look.min(Duration::from_secs(3600))) => {}
            }
        }
    }

    /// The first replica's port, if the app of this one listens there.
    fn took_anothers_port(&self, running: &Running) -> Option<u16> {
        let first = self.unit.app.as_ref()?.port_is_anothers?;
        ports::is_open_in_group(first, running.app.as_ref()?.pid).then_some(first)
    }

    fn is_up(&self, port: Option<u16>, running: &Running) {
        let proxy = running.proxy.child.id().unwrap_or(0);
        let text = match (&running.app, port) {
            (None, _) => format!("{} listens at http://{} (pid {proxy})", self.unit.name, running.proxy.listen),
            (Some(app), Some(port)) => format!("{} is up: its app (pid {}) listens on port {port}, its proxy is pid {proxy}", self.unit.name, app.pid),
            (Some(app), None) => format!("{} runs: its app is pid {}, its proxy pid {proxy}", self.unit.name, app.pid),
        };
        self.output.say(Tone::Good, text);
        self.change(|unit| unit.status = Status::Up);
    }

    fn elsewhere(&self, port: u16) {
        let name = &self.unit.name;
        let text = format!("{name}: its app listens on port {port}, but not at 127.0.0.1, where it is called (only at [::1], say). Calls wait until it does");
        self.output.say(Tone::Trouble, text);
    }

    fn slow(&self, port: u16) {
        let remedy = match self.unit.app.as_ref().and_then(|app| app.port_is_anothers) {
            Some(first) => format!("Does it read $PORT? Only the first replica can have port {first}."),
            None => "Does it listen there, or does it need `port:` in the file?".to_owned(),
        };
        let name = &self.unit.name;
        self.output.say(
            Tone::Trouble,
            format!("{name}: its app has not opened port {port} ($PORT) after {} s; calls wait until it does. {remedy}", SLOW_START.as_secs()),
        );
    }

    fn app_ended(&self, ending: Ending, after: Duration, opened: bool) -> String {
        let mut why = format!("its app {ending} after {}", spell(after));
        if let Some(app) = self.unit.app.as_ref().filter(|app| app.serves && !opened) {
            why.push_str(&format!(", without opening port {}", app.port));
            if let Some(first) = app.port_is_anothers {
                why.push_str(". ");
                why.push_str(&self.only_one(first));
            }
        }
        why
    }

    fn only_one(&self, first: u16) -> String {
        let port = self.unit.app.as_ref().map_or(0, |app| app.port);
        format!("Only one process can have port {first}: with more than one replica the app must listen on $PORT (here {port}), or set `replicas: 1`")
    }

    fn proxy_ended(&self, ending: Ending) -> String {
        let also = if self.unit.app.is_some() { ", so its app was killed too (one failure domain)" } else { "" };
        format!("its proxy {ending}{also}")
    }

    /// The orderly end: the proxy finishes what is under way, then the app is asked to end.
    async fn end(mut self, running: Running) {
        self.change(|unit| unit.status = Status::Stopping);
        let Running { app, mut proxy } = running;
        if let Some(pid) = proxy.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
        let patience = self.unit.drain + BEYOND_DRAIN;
        tokio::select! {
            _ = proxy.child.wait() => {}
            () = sleep(patience) => {
                self.output.say(Tone::Trouble, format!("{}: its proxy did not end within {}; it was killed. What was under way is delivered again.", self.unit.name, spell(patience)));
            }
            () = self.reached(Phase::Now) => {}
        }
        let _ = proxy.child.kill().await;
        if let (Some(mut app), Some(plan)) = (app, self.unit.app.clone()) {
            tokio::select! {
                in_time = app.terminate(plan.grace) => {
                    if !in_time {
                        self.output.say(Tone::Trouble, format!("{}: its app did not end within {} of SIGTERM; it was killed.", self.unit.name, spell(plan.grace)));
                    }
                }
                () = self.reached(Phase::Now) => {}
            }
            app.kill().await;
        }
        self.change(stopped);
    }
}

fn stopped(unit: &mut UnitState) {
    (unit.status, unit.app_pid, unit.proxy_pid) = (Status::Stopped, 0, 0);
}

async fn kill_both(running: Running) {
    let Running { app, mut proxy } = running;
    let _ = proxy.child.start_kill();
    if let Some(app) = app {
        app.kill().await;
    }
    let _ = proxy.child.wait().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_later_and_later() {
        let pauses: Vec<u64> = (0..9).map(|failures| backoff(failures).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
    }
}

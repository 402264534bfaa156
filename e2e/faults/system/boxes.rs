//! A box as two processes that live and die together, as under `bluebox up`: when one half ends the other is killed, and both start again.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bluebox_e2e::Process;
use nix::sys::signal::Signal;

use crate::call::Load;
use crate::caller::CALLEE;
use crate::clock::Moment;
use crate::history::{BoxId, Ending, History, Life, Role};
use crate::plan::Kind;

/// Which half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    App,
    Proxy,
}

/// What a box is started with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) bluebox: PathBuf,
    pub(crate) directory: PathBuf,
    /// Flags of its proxy: the log, the limits.
    pub(crate) proxy_flags: Vec<String>,
    /// What else its proxy finds in its environment.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) think: Duration,
    pub(crate) load: Load,
}

#[derive(Debug)]
enum State {
    /// It does not run. With a time: from then on it does again.
    Down(Option<Moment>),
    Up {
        app: Process,
        proxy: Process,
    },
    /// The proxy was asked to end; the app is, once that has.
    Leaving {
        app: Process,
        proxy: Process,
        since: Moment,
    },
}

/// One box.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) id: BoxId,
    pub(crate) proxy_at: SocketAddr,
    app_at: SocketAddr,
    setup: Setup,
    state: State,
    lives: u32,
    /// The caller has done everything: its app is not started again.
    pub(crate) done: bool,
}

/// How long a proxy may take to end in good order: its drain, and more.
const LEAVING: Duration = Duration::from_secs(45);

impl Unit {
    pub(crate) fn new(id: BoxId, proxy_at: SocketAddr, app_at: SocketAddr, setup: Setup) -> Self {
        Self { id, proxy_at, app_at, setup, state: State::Down(None), lives: 0, done: false }
    }

    /// Where its app's ledger is.
    pub(crate) fn ledger(directory: &Path, id: BoxId) -> PathBuf {
        directory.join(format!("ledger-{id}"))
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether it was asked to end, and has not yet.
    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving { .. })
    }

    /// Whether nothing of it runs and nothing is going to.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.state, State::Down(None))
    }

    /// Starts both halves. Whether they get anywhere is seen by who calls them.
    pub(crate) fn start(&mut self, history: &mut History) -> anyhow::Result<()> {
        self.lives += 1;
        let life = Life { of: self.id, number: self.lives, began: Moment::now(), ended: None, gone: None };
        let setup = &self.setup;
        let mut proxy = Command::new(&setup.bluebox);
        proxy.args(["proxy", "--with-parent", "--log-level=info"]).arg(format!("--listen={}", self.proxy_at)).args(&setup.proxy_flags);
        proxy.envs(setup.environment.iter().map(|(name, value)| (name, value)));
        match self.id.role {
            Role::Caller => proxy.args(["--name=shop", "--shared-by-callers=false"]),
            Role::Callee => proxy.arg(format!("--serve={CALLEE}={},partitions={PARTITIONS}", self.app_at)),
        };
        // Also if it was built again since.
        let mut app = Command::new("/proc/self/exe");
        app.arg0("bluebox-faults");
        let ledger = Self::ledger(&setup.directory, self.id);
        match self.id.role {
            Role::Caller => {
                app.args(["caller", "--caller", &self.id.index.to_string(), "--think-ms", &setup.think.as_millis().to_string()]);
                app.args(setup.load.to_flags());
                app.arg("--proxy").arg(self.proxy_at.to_string()).arg("--ledger").arg(ledger);
            }
            Role::Callee => {
                app.arg("callee").arg("--listen").arg(self.app_at.to_string()).arg("--ledger").arg(ledger).args(["--life", &life.name()]);
            }
        }
        let proxy = Process::start(&format!("proxy-{}", self.id), proxy, &setup.directory);
        let app = Process::start(&format!("app-{}", self.id), app, &setup.directory);
        history.lives.push(life);
        self.state = State::Up { app, proxy };
        Ok(())
    }

    /// Starts it as soon as [`Self::tick`] is called.
    pub(crate) fn want(&mut self) {
        if self.is_away() {
            self.state = State::Down(Some(Moment::now()));
        }
    }

    /// SIGKILL of a half; the other follows, and both start again after a while.
    pub(crate) fn kill(&mut self, half: Half, kind: Kind, down: Duration, history: &mut History) {
        if let State::Up { app, proxy } | State::Leaving { app, proxy, .. } = std::mem::replace(&mut self.state, State::Down(None)) {
            let now = Moment::now();
            let (first, second) = if half == Half::App { (app, proxy) } else { (proxy, app) };
            first.kill();
            second.kill();
            self.ended(history, now, Ending::Killed(kind));
            self.state = State::Down(Some(now.after(down)));
        }
    }

    /// SIGTERM: it hands over what it has, and goes.
    pub(crate) fn leave(&mut self, history: &mut History) {
        if let State::Up { app, proxy } = std::mem::replace(&mut self.state, State::Down(None)) {
            let since = Moment::now();
            proxy.signal(Signal::SIGTERM);
            if let Some(life) = self.life(history) {
                life.ended = Some((since, Ending::Asked));
            }
            self.state = State::Leaving { app, proxy, since };
        }
    }

    /// Sends a signal to a half.
    pub(crate) fn signal(&self, half: Half, signal: Signal) {
        if let State::Up { app, proxy } | State::Leaving { app, proxy, .. } = &self.state {
            if half == Half::App { app.signal(signal) } else { proxy.signal(signal) }
        }
    }

    /// Tells the app something.
    pub(crate) fn tell(&mut self, line: &str) {
        if let State::Up { app, .. } = &mut self.state {
            app.tell(line);
        }
    }

    /// The process of its proxy.
    pub(crate) fn proxy_pid(&self) -> Option<i32> {
        match &self.state {
            State::Up { proxy, .. } | State::Leaving { proxy, .. } => Some(proxy.pid()),
            State::Down(_) => None,
        }
    }

    /// Ties the halves together, and starts what is to be started.
    pub(crate) fn tick(&mut self, history: &mut History) -> anyhow::Result<()> {
        let now = Moment::now();
        match &mut self.state {
            State::Down(Some(at)) if *at <= now && !self.done => self.start(history)?,
            State::Down(_) => {}
            State::Up { app, proxy } => {
                let app_ended = app.ended();
                if app_ended.is_some_and(|status| status.success()) && self.id.role == Role::Caller {
                    self.done = true;
                    self.leave(history);
                } else if let Some(status) = app_ended.or(proxy.ended()) {
                    let which = if app_ended.is_some() { "app" } else { "proxy" };
                    let log = self.setup.directory.join(format!("{which}-{}.log", self.id));
                    history.broken.push(format!("the {which} of {} ended by itself: {status}; see {}", self.id, log.display()));
                    self.kill(Half::App, Kind::KillCalleeApp, Duration::from_secs(1), history);
                }
            }
            State::Leaving { app, proxy, since } => {
                let Some(status) = proxy.ended() else {
                    if now.since(*since) > LEAVING {
                        history.broken.push(format!("the proxy of {} did not end within {} s of SIGTERM", self.id, LEAVING.as_secs()));
                        self.gone(history);
                    }
                    return Ok(());
                };
                if !status.success() {
                    history.broken.push(format!("the proxy of {} was asked to end, and failed: {status}", self.id));
                }
                if app.ended().is_none() {
                    app.signal(Signal::SIGTERM);
                }
                self.gone(history);
            }
        }
        Ok(())
    }

    fn gone(&mut self, history: &mut History) {
        self.state = State::Down(None);
        if let Some(life) = self.life(history) {
            life.gone = Some(Moment::now());
        }
    }

    fn ended(&self, history: &mut History, at: Moment, ending: Ending) {
        if let Some(life) = self.life(history) {
            life.ended = Some((at, ending));
            life.gone = Some(Moment::now());
        }
    }

    fn life<'a>(&self, history: &'a mut History) -> Option<&'a mut Life> {
        history.lives.iter_mut().rev().find(|life| life.of == self.id)
    }
}

/// How many partitions the called component has.
const PARTITIONS: u32 = 8;

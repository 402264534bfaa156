//! Processes that end together.
//!
//! `bluebox up` starts each app through a small process of its own, the *shim* (`bluebox box-app`), so that nothing of a box outlives it:
//!
//! - The shim is the app's parent and the one that orphans of the app fall to (`PR_SET_CHILD_SUBREAPER`, prctl(2)): it can end all of them, also those that left the
//!   app's process group.
//! - The shim's standard input is a socket to `up`. When it ends, `up` is gone or wants the app to be, and the shim ends everything below it.
//! - Should somebody kill the shim, the kernel kills the app (`PR_SET_PDEATHSIG`), and `up` its process group.
//!
//! What the app is told goes through the socket and not through arguments, so that whoever looks for the app by its command line finds only the app.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The hidden subcommand of the shim.
pub(crate) const SHIM: &str = "box-app";
/// The hidden subcommand that becomes the app.
pub(crate) const EXEC: &str = "box-exec";

/// This program, to be started again: by the path that it was started from, or, if that has been replaced or deleted since, from where the kernel still has it.
pub(crate) fn this_program() -> Command {
    const STILL: &str = "/proc/self/exe";
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| std::env::current_exe().unwrap_or_else(|_| STILL.into()));
    if path.exists() {
        return Command::new(path);
    }
    let mut command = Command::new(STILL);
    command.arg0(path);
    command
}

/// What `up` tells the shim: a line of JSON each. The end of the stream means [`Order::Kill`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start the app; the first order. Its environment is the shim's.
    Start {
        /// Program and arguments; at least one.
        command: Vec<String>,
        /// Where it runs.
        cwd: PathBuf,
    },
    /// Ask the app to end: SIGTERM to its process group.
    Terminate,
    /// End it, and everything below it.
    Kill,
}

/// What the shim tells `up`: a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The app runs as this process.
    Started(i32),
    /// There is no app: it can't be run.
    Failed(String),
    /// The app ended.
    Exited(Ending),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        status.signal().map_or_else(|| Self::Code(status.code().unwrap_or(-1)), Self::Signal)
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Code(0) => f.write_str("ended (exit code 0)"),
            Self::Code(code) => write!(f, "failed (exit code {code})"),
            Self::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed ({signal})"),
                Err(_) => write!(f, "was killed (signal {number})"),
            },
        }
    }
}

/// Makes this process end when its parent does, or closes its standard input.
pub(crate) fn end_with_parent() -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    std::thread::Builder::new().name("parent".to_owned()).spawn(|| {
        let mut rest = [0; 64];
        while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
        std::process::exit(137);
    })?;
    Ok(())
}

/// The standard input, which is a socket.
fn socket_from_parent() -> anyhow::Result<UnixStream> {
    let fd: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    Ok(UnixStream::from(fd))
}

fn tell(socket: &mut UnixStream, report: &Report) {
    // Nobody there to be told: then the end of the stream is what counts, and it is seen elsewhere.
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = socket.write_all(&line);
    }
}

/// The shim: runs an app for `up` until one of them ends.
pub(crate) fn run_shim() -> anyhow::Result<()> {
    prctl::set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
    let mut up = socket_from_parent()?;
    let mut orders = BufReader::new(up.try_clone()?);
    let mut first = String::new();
    if orders.read_line(&mut first)? == 0 {
        return Ok(());
    }
    let app = match start_app(&first) {
        Ok(app) => app,
        Err(error) => {
            tell(&mut up, &Report::Failed(format!("{error:#}")));
            return Ok(());
        }
    };
    tell(&mut up, &Report::Started(app.as_raw()));
    std::thread::Builder::new().name("orders".to_owned()).spawn(move || {
        for line in orders.lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Order::Terminate) => {
                    let _ = killpg(app, Signal::SIGTERM);
                }
                Ok(Order::Kill) => break,
                Ok(Order::Start { .. }) | Err(_) => {}
            }
        }
        let _ = killpg(app, Signal::SIGKILL);
    })?;
    // Orphans of the app are reaped on the way.
    let ending = loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == app => break Ending::Code(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == app => break Ending::Signal(signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waitpid"),
        }
    };
    tell(&mut up, &Report::Exited(ending));
    end_descendants(app);
    Ok(())
}

fn start_app(order: &str) -> anyhow::Result<Pid> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let child = this_program().arg(EXEC).stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0).spawn()?;
    ours.write_all(order.as_bytes())?;
    ours.shutdown(std::net::Shutdown::Write)?;
    // Its end of the socket is closed by a successful exec, or carries the error of a failed one.
    let mut error = String::new();
    ours.read_to_string(&mut error)?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    if error.is_empty() {
        return Ok(pid);
    }
    waitpid(pid, None)?;
    anyhow::bail!(error)
}

/// Becomes the app that the shim names.
pub(crate) fn run_exec() -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    let mut shim = socket_from_parent()?;
    let mut order = String::new();
    shim.read_to_string(&mut order)?;
    let Order::Start { command, cwd } = serde_json::from_str(&order)? else { anyhow::bail!("no order to start") };
    let (program, arguments) = command.split_first().context("an empty command")?;
    let error = Command::new(program).args(arguments).current_dir(&cwd).stdin(Stdio::null()).exec();
    shim.write_all(format!("`{program}` can't be run: {error}").as_bytes())?;
    std::process::exit(127);
}

/// Ends everything that is left of an app. All of it is below this process, which is where orphans fall to.
fn end_descendants(app: Pid) {
    let _ = killpg(app, Signal::SIGKILL);
    let me = Pid::this().as_raw();
    loop {
        for child in processes(|process| process.parent == me) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// A process, by proc_pid_stat(5).
pub(crate) struct Process {
    /// Its parent.
    pub(crate) parent: i32,
    /// Its process group.
    pub(crate) group: i32,
}

/// The running processes that are wanted.
pub(crate) fn processes(wanted: impl Fn(&Process) -> bool) -> Vec<i32> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name of the program is in parentheses and can contain anything. After it come the state, the parent, the group.
        let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').skip(1).map_while(|field| field.parse().ok())).into_iter().flatten();
        matches!((fields.next(), fields.next()), (Some(parent), Some(group)) if wanted(&Process { parent, group }))
    })
    .collect()
}

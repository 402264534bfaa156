//! A process that never outlives its test.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::deadline::eventually;

/// A running process. Its standard input is held open by the test, its output goes to a file; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a command; what it says is added to `NAME.log` in `directory`.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Self {
        let output = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&output).unwrap();
        command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        Self { name: name.to_owned(), stdin: child.stdin.take(), child, output }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid()), signal).unwrap_or_else(|error| panic!("{}: {signal}: {error}", self.name));
    }

    /// Writes a line to its standard input. One that has ended can't be told anything.
    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// SIGKILL, and it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// How it ends.
    pub async fn exit(mut self) -> ExitStatus {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), || std::future::ready(self.ended())).await
    }

    /// SIGTERM, and how it ends.
    pub async fn terminate(self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.exit().await
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait()
            && std::thread::panicking()
        {
            eprintln!("{} had ended by itself: {status} (signal {:?})", self.name, status.signal());
        }
        self.end();
    }
}

/// The `bluebox` of this build; it is built if it has to be.
pub fn bluebox() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BUILT.get_or_init(|| BINARIES.get().map_or_else(|| build("bluebox", &[]), |there| there.join("bluebox"))))
}

/// Where the binaries are, for programs that are no tests: these don't build.
static BINARIES: OnceLock<PathBuf> = OnceLock::new();

/// From now on the binaries in this directory are used, as they are.
pub fn use_binaries(directory: &Path) {
    // Said twice, the first counts.
    let _ = BINARIES.set(directory.to_owned());
}

/// The `bluebox` that has fail points and planted bugs.
pub fn faulty() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BUILT.get_or_init(|| build("bluebox-faulty", &["--features", "faults"])))
}

fn build(program: &str, flags: &[&str]) -> PathBuf {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--package", "bluebox", "--bin", program]).args(flags).current_dir(env!("CARGO_MANIFEST_DIR"));
    if directory().ends_with("release") {
        build.arg("--release");
    }
    // What cargo tells a test about its package; crates that look at it (ring does) would be built anew, and all that is made of them, and once more by whoever builds outside of a test.
    for (variable, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|what| variable.to_string_lossy().starts_with(what)) {
            build.env_remove(variable);
        }
    }
    let status = build.status().unwrap();
    assert!(status.success(), "{build:?}: {status}");
    directory().join(program)
}

/// The app of this crate.
pub fn app() -> Command {
    Command::new(BINARIES.get().cloned().unwrap_or_else(directory).join("bluebox-e2e-app"))
}

/// Where cargo puts binaries: above the `deps` that the test is in.
fn directory() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_owned()
}

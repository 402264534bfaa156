//! A `bluebox up` as a user has it: a file in a directory, a process, what it prints, and what it says that runs.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "it is all test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes, on a machine that has much else to do.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// An HTTP app in Python's standard library. `/call?URL` calls on; `/hang-once` answers only the second time that it is asked; `/slow` takes a second; `/broken` breaks the connection off
/// until there is a file `mended`; everything else says who it is. Each delivery is a line in the file `ledger`.
pub const APP: &str = r#"
import os, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with open("ledger", "a") as ledger:
            ledger.write(f"{os.environ['BLUEBOX_BOX']} {self.path} {self.headers['bluebox-call-id']} {self.headers['bluebox-may-have-started'] or 'first'} {body.decode()}\n")
        answer = f"{os.environ['BLUEBOX_BOX']} {self.path}"
        if self.path.startswith("/call?"):
            answer = urllib.request.urlopen(self.path[6:]).read().decode()
        if self.path == "/hang-once" and not os.path.exists("hung"):
            open("hung", "w").close()
            time.sleep(1000)
        if self.path == "/slow":
            open("begun", "w").close()
            time.sleep(1)
        if self.path == "/broken" and not os.path.exists("mended"):
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())
    do_POST = do_PUT = do_GET
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Which log a system is tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Embedded,
    Kafka,
}

impl On {
    /// What `up` and the commands for operators are told, with a prefix for topics that nobody else has; `None` if there is no Kafka to test with.
    pub fn arguments(self) -> Option<Vec<String>> {
        if self == Self::Embedded {
            return Some(Vec::new());
        }
        let Ok(brokers) = std::env::var("BLUEBOX_TEST_BROKERS") else {
            eprintln!("SKIPPED: needs a Kafka: scripts/kafka run -- cargo test");
            return None;
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Some(["--brokers", &brokers, "--topic-prefix", &prefix].map(str::to_owned).to_vec())
    }
}

/// The binary under test.
pub fn bluebox() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bluebox"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BLUEBOX_")) {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end; what it said, on both streams.
pub fn run(command: &mut Command) -> (ExitStatus, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status, format!("{}{}", String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap()))
}

/// Runs one of the commands for operators in the place of a system.
pub fn operate(up: &Up, arguments: &[&str]) -> (Option<i32>, String) {
    operate_in(&up.place, arguments)
}

/// The same where nothing runs any more.
pub fn operate_in(place: &Place, arguments: &[&str]) -> (Option<i32>, String) {
    let (status, said) = run(bluebox().args(arguments).current_dir(place.path()));
    (status.code(), said)
}

/// Waits for a condition; with the deadline, says what was waited for.
pub fn wait_until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    bluebox_e2e::deadline::wait_for(DEADLINE, what, condition)
}

/// Whether a process runs (a zombie does not).
pub fn runs(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// All running processes that have `text` in their environment: everything that a system with this directory has started.
pub fn processes_with(text: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| runs(*pid) && std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| String::from_utf8_lossy(&env).contains(text))).collect()
}

pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A directory with a file of boxes and the app.
pub struct Place(TempDir);

impl Place {
    pub fn with(yaml: &str) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("bluebox.yaml"), yaml).unwrap();
        std::fs::write(directory.path().join("app.py"), APP).unwrap();
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// `bluebox up` in here, the gateway's port chosen by the system. Everything that it starts carries the directory in its environment.
    pub fn command(&self) -> Command {
        let mut command = bluebox();
        command.args(["up", "--gateway", "127.0.0.1:0"]).current_dir(self.path()).env("TEST_PLACE", self.path());
        command
    }

    pub fn processes(&self) -> Vec<i32> {
        processes_with(&format!("TEST_PLACE={}\0", self.path().display()))
    }

    pub fn up(self) -> Up {
        self.up_with(&[])
    }

    pub fn up_with(self, arguments: &[String]) -> Up {
        let mut command = self.command();
        command.args(arguments);
        self.run(command)
    }

    /// Runs a command that is an `up` in here.
    pub fn run(self, mut command: Command) -> Up {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = channel();
        for from in [Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>, Box::new(child.stderr.take().unwrap())] {
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    let _ = tell.send(line);
                }
            });
        }
        Up { place: self, child, lines, said: String::new() }
    }
}

/// A running `bluebox up`. Dropped, it is killed.
pub struct Up {
    pub place: Place,
    child: Child,
    lines: Receiver<String>,
    said: String,
}

/// A replica as `state.json` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub app: i32,
    pub proxy: i32,
    pub restarts: u64,
    pub status: String,
    pub port: u16,
}

impl Up {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn state(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.place.path().join(".bluebox/state.json")).ok()?).ok()
    }

    pub fn unit(&self, name: &str) -> Option<Unit> {
        let state = self.state()?;
        let unit = state["units"].as_array()?.iter().find(|unit| unit["name"] == name)?.clone();
        Some(Unit {
            app: i32::try_from(unit["app_pid"].as_i64()?).ok()?,
            proxy: i32::try_from(unit["proxy_pid"].as_i64()?).ok()?,
            restarts: unit["restarts"].as_u64()?,
            status: unit["status"].as_str()?.to_owned(),
            port: u16::try_from(unit["app_port"].as_u64().unwrap_or(0)).ok()?,
        })
    }

    /// Waits until everything is up.
    pub fn wait_until_up(&mut self) {
        self.expect("everything is up");
    }

    /// Waits until everything is up and the app has said that it is ready, in whatever order.
    pub fn wait_until_ready(&mut self) {
        self.expect_all(&["everything is up", "| ready"]);
    }

    /// Waits until lines with all these texts were printed.
    pub fn expect_all(&mut self, texts: &[&str]) {
        while let Some(missing) = texts.iter().find(|text| !self.said.contains(**text)) {
            self.expect(missing);
        }
    }

    /// Waits until a replica is up after its n-th restart.
    pub fn wait_for_restart(&mut self, name: &str, restarts: u64) -> Unit {
        wait_until(&format!("{name} has been started again {restarts} times"), || self.unit(name).filter(|u| u.restarts == restarts && u.status == "up"))
    }

    /// Waits until a line with this text was printed; the line.
    pub fn expect(&mut self, text: &str) -> String {
        let began = Instant::now();
        loop {
            match self.lines.recv_timeout(DEADLINE.saturating_sub(began.elapsed())) {
                Ok(line) => {
                    self.said.push_str(&line);
                    self.said.push('\n');
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("waited in vain for {text:?}; it said:\n{}", self.said),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended without saying {text:?}; it said:\n{}", self.said),
            }
        }
    }

    pub fn gateway(&self) -> SocketAddr {
        self.state().unwrap()["gateway"].as_str().unwrap().parse().unwrap()
    }

    /// GETs a URL through the gateway; status and body.
    pub fn get(&self, url: &str) -> (u16, String) {
        get_through(self.gateway(), url)
    }

    /// What the apps have written down.
    pub fn ledger(&self) -> Vec<String> {
        std::fs::read_to_string(self.place.path().join("ledger")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Kills it with SIGKILL; its place is left as it is.
    pub fn killed(mut self) -> Place {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.take_place()
    }

    /// Waits for the end; its place is left as it is.
    pub fn ended_in_place(mut self) -> Place {
        wait_until("it has ended", || self.child.try_wait().unwrap());
        self.take_place()
    }

    fn take_place(&mut self) -> Place {
        let empty = Place(TempDir::new().unwrap());
        std::mem::replace(&mut self.place, empty)
    }

    /// Waits for the end; the exit code, and everything that was said.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let status = wait_until("it has ended", || self.child.try_wait().unwrap());
        self.said.extend(self.lines.iter().map(|line| line + "\n"));
        (status.code(), std::mem::take(&mut self.said))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.said.extend(self.lines.iter().map(|line| line + "\n"));
            eprintln!("it said:\n{}", self.said);
        }
    }
}

/// GETs a URL through a proxy; status and body.
pub fn get_through(proxy: SocketAddr, url: &str) -> (u16, String) {
    let (head, body) = request(proxy, "GET", url, &[], "");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {head:?}")), body)
}

/// Sends a request through a proxy; the head of the answer, and its body.
pub fn request(proxy: SocketAddr, method: &str, url: &str, fields: &[&str], body: &str) -> (String, String) {
    let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    write!(stream, "{method} {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.to_owned(), body.to_owned())
}

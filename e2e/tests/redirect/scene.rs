//! A pod and the network around it, as two network namespaces: one with an app's clients, its proxy and the redirect, one with servers and a nameserver.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bluebox_e2e::{Process, World, eventually, process};

/// The user that proxies run as.
pub const PROXY_UID: u32 = 64140;
/// The network between the two: `.1` is the pod.
pub const POD: &str = "10.77.0.1";
/// What the app's resolver is told.
const RESOLV_CONF: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.77.0.53\nnameserver fd77::53\noptions ndots:5\n";

/// Why the tests can't run here; `None`: they can.
pub fn missing() -> Option<String> {
    if !nix_is_root() {
        return Some("it needs root, for network namespaces".to_owned());
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/network-tools");
    match Command::new(tools).stdin(Stdio::null()).output() {
        Ok(done) if done.status.success() => {}
        Ok(done) => return Some(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        Err(error) => return Some(format!("scripts/network-tools: {error}")),
    }
    let name = format!("bluebox-try-{}", std::process::id());
    let made = run("ip", &["netns", "add", &name]);
    let _ = run("ip", &["netns", "del", &name]);
    (!made.status.success()).then(|| format!("no network namespaces here: {}", String::from_utf8_lossy(&made.stderr).trim()))
}

fn nix_is_root() -> bool {
    run("id", &["-u"]).stdout == b"0\n"
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn must(program: &str, arguments: &[&str]) {
    let done = run(program, arguments);
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The namespaces. They end with it.
pub struct Scene {
    /// The pod's.
    pub pod: String,
    /// The servers'.
    pub outside: String,
    bluebox: PathBuf,
    directory: PathBuf,
    log: Vec<String>,
    started: std::cell::Cell<u32>,
}

impl Scene {
    /// Makes them. IPv6 can be left out.
    pub fn new(world: &World, ipv6: bool) -> Self {
        let number = format!("{}-{}", std::process::id(), world.directory().file_name().unwrap().to_string_lossy());
        let (pod, outside) = (format!("pod-{number}"), format!("out-{number}"));
        let directory = world.directory().to_owned();
        // The proxy runs as another user: it must reach the log's socket, and the program.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(directory.join("log.sock"), fs::Permissions::from_mode(0o777)).unwrap();
        let bluebox = directory.join("bluebox");
        let built = process::bluebox().get_program().to_owned();
        fs::hard_link(&built, &bluebox).or_else(|_| fs::copy(&built, &bluebox).map(|_| ())).unwrap();

        let scene = Self { pod, outside, bluebox, directory, log: world.log_flags(), started: std::cell::Cell::new(0) };
        let conf = scene.conf();
        fs::create_dir_all(&conf).unwrap();
        fs::write(conf.join("resolv.conf"), RESOLV_CONF).unwrap();
        let (pod, outside) = (&*scene.pod, &*scene.outside);
        for namespace in [pod, outside] {
            must("ip", &["netns", "add", namespace]);
            if !ipv6 {
                must("ip", &["netns", "exec", namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"]);
            }
            must("ip", &["-n", namespace, "link", "set", "lo", "up"]);
        }
        must("ip", &["-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside]);
        for namespace in [pod, outside] {
            must("ip", &["-n", namespace, "link", "set", "eth0", "up"]);
        }
        must("ip", &["-n", pod, "address", "add", &format!("{POD}/24"), "dev", "eth0"]);
        for last in [2, 3, 10, 11, 12, 53] {
            must("ip", &["-n", outside, "address", "add", &format!("10.77.0.{last}/24"), "dev", "eth0"]);
        }
        must("ip", &["-n", pod, "route", "add", "default", "via", "10.77.0.2"]);
        if ipv6 {
            must("ip", &["-n", pod, "address", "add", "fd77::1/64", "dev", "eth0", "nodad"]);
            for last in ["2", "53"] {
                must("ip", &["-n", outside, "address", "add", &format!("fd77::{last}/64"), "dev", "eth0", "nodad"]);
            }
            must("ip", &["-n", pod, "route", "add", "default", "via", "fd77::2"]);
        }
        scene
    }

    fn conf(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.pod)
    }

    /// A command in the pod.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.pod, program]).stdin(Stdio::null());
        command
    }

    /// Runs a program of the app to its end, which comes soon.
    pub async fn app(&self, program: &str, arguments: &[&str]) -> Ran {
        self.ran(self.command(program), arguments).await
    }

    /// The same, as the proxy's user.
    pub async fn as_proxy(&self, program: &str, arguments: &[&str]) -> Ran {
        let mut command = self.command("setpriv");
        command.args([&format!("--reuid={PROXY_UID}"), &format!("--regid={PROXY_UID}"), "--clear-groups", program]);
        self.ran(command, arguments).await
    }

    async fn ran(&self, mut command: Command, arguments: &[&str]) -> Ran {
        command.args(arguments);
        let mut command = tokio::process::Command::from(command);
        let done = tokio::time::timeout(Duration::from_secs(30), command.kill_on_drop(true).output()).await;
        let done = done.unwrap_or_else(|_| panic!("{arguments:?} hangs")).unwrap();
        Ran {
            code: done.status.code(),
            out: String::from_utf8_lossy(&done.stdout).trim().to_owned(),
            err: String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        }
    }

    /// The program that runs in the pod.
    pub fn bluebox(&self) -> &Path {
        &self.bluebox
    }

    /// A file of this test.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Starts a server outside.
    pub fn server(&self, program: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.outside, program]).args(arguments);
        Process::start(program, command, &self.directory)
    }

    /// What a URL answers, by curl.
    pub async fn curl(&self, arguments: &[&str]) -> Ran {
        self.app("curl", &[&["--silent", "--show-error", "--max-time", "20"], arguments].concat()).await
    }

    /// What a Python program prints.
    pub async fn python(&self, program: &str) -> Ran {
        self.app("python3", &["-c", program]).await
    }

    /// `bluebox redirect` in the pod.
    pub async fn redirect(&self, arguments: &[&str]) -> Ran {
        let bluebox = self.bluebox.to_string_lossy().into_owned();
        self.app(&bluebox, &[&["redirect"], arguments].concat()).await
    }

    /// Puts the rules in place, as an init container does.
    pub async fn redirect_all(&self, more: &[&str]) {
        let done = self.redirect(&[&["--dns-port=4153", "--exclude-ports=5432", "--exclude-networks=10.77.0.3"], more].concat()).await;
        assert_eq!(done.code, Some(0), "{done:?}");
    }

    /// Starts the pod's proxy; it is ready when this returns.
    pub async fn proxy(&self) -> Process {
        self.proxy_that("ready", &[]).await
    }

    /// Starts the pod's proxy, with these flags instead of those that say which log; this is what it says about being ready when this returns.
    pub async fn proxy_that(&self, says: &str, more: &[&str]) -> Process {
        let mut command = self.command("setpriv");
        command.args([&format!("--reuid={PROXY_UID}"), &format!("--regid={PROXY_UID}"), "--clear-groups"]).arg(&self.bluebox);
        command.args(["proxy", "--with-parent", "--name=web", "--listen=127.0.0.1:4140", "--transparent=127.0.0.1:4143", "--dns=127.0.0.1:4153"]);
        command.args(["--admin=127.0.0.1:4141", "--connect-timeout=5s", "--drain=1s"]);
        if more.is_empty() {
            command.args(&self.log)
        } else {
            command.args(more)
        };
        command.arg(format!("--log-level={}", std::env::var("BLUEBOX_TEST_LOG_LEVEL").unwrap_or_else(|_| "debug".to_owned())));
        let number = self.started.replace(self.started.get() + 1);
        let mut proxy = Process::start(&format!("proxy-of-the-pod-{number}"), command, &self.directory);
        eventually("the pod's proxy listens", || {
            assert_eq!(proxy.ended(), None, "{}", proxy.said());
            async { (self.curl(&["http://127.0.0.1:4141/readyz"]).await.out.starts_with(says)).then_some(()) }
        })
        .await;
        proxy
    }

    /// A number among the proxy's metrics; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> u64 {
        let metrics = self.curl(&["http://127.0.0.1:4141/metrics"]).await.out;
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
    }

    /// How many connections the rule decided on that has this in it.
    pub async fn decided(&self, rule: &str) -> u64 {
        let shown = self.redirect(&["--show"]).await.out;
        let lines = shown.lines().filter(|line| line.contains(rule));
        lines.map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it said.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Ran {
    /// curl's connection was reset: while it received (56), sent (55), or spoke TLS (35), or before it knew that it was connected (7).
    pub fn was_reset(&self) -> bool {
        matches!(self.code, Some(7 | 35 | 55 | 56)) && !self.err.contains("refused")
    }

    /// It must have ended well, and said something with this in it.
    #[track_caller]
    pub fn says(&self, what: &str) {
        assert!(self.code == Some(0) && self.out.contains(what), "{self:?} does not say {what:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.outside] {
            let _ = run("ip", &["netns", "del", namespace]);
        }
        let _ = fs::remove_dir_all(self.conf());
        let _ = fs::remove_dir("/etc/netns");
    }
}

/// An address outside.
pub fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([10, 77, 0, last]), port)
}

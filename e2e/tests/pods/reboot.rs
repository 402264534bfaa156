//! A node that goes down with all that runs on it, and comes back with what was on its disk.

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, is_ready, name, statuses, wait};
use crate::report::Report;
use crate::{answered, caller};

/// A process of the node.
struct Running {
    pid: i32,
    command: Vec<String>,
}

/// The processes whose command line has this in it.
fn processes(with: &str) -> Vec<Running> {
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let read = all.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command: Vec<_> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        command.iter().any(|word| word.contains(with)).then_some(Running { pid, command })
    });
    read.collect()
}

/// The processes that a process has started, and those that they have.
fn descendants(of: i32) -> Vec<i32> {
    let children =
        fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> = children.flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    children.into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child)).collect::<Vec<_>>()).collect()
}

fn kill(pid: i32) {
    // What has gone in the meantime is gone.
    let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// The containers that run in pods.
fn containers(pods: &[Value]) -> HashSet<String> {
    pods.iter().flat_map(statuses).filter_map(|status| status["containerID"].as_str().map(str::to_owned)).collect()
}

/// Everything of the node is killed at once, and started again as it was: all pods come back, and a call is answered.
pub(crate) fn check(cluster: &Cluster, report: &Report) {
    let Some(node) = &cluster.node else { return println!("        SKIPPED: the node is not on this machine") };
    let node = node.to_str().unwrap();
    let from = caller(cluster);
    let before = cluster.ready("shop", "cart", 2);
    let of_node = |program: &str| processes(node).into_iter().find(|process| process.command[0].ends_with(program)).unwrap();
    let daemons = ["kubelet", "containerd"].map(of_node);
    let shims: Vec<_> = processes(node).into_iter().filter(|process| process.command[0].ends_with("containerd-shim-runc-v2")).collect();
    let began = Instant::now();
    for daemon in &daemons {
        kill(daemon.pid);
    }
    for shim in &shims {
        // A shim that is killed first would leave its containers to somebody else.
        let containers = descendants(shim.pid);
        containers.iter().copied().chain([shim.pid]).for_each(kill);
    }
    let start = |daemon: &Running| {
        let log = fs::File::options().append(true).create(true).open(format!("{node}/again.log")).unwrap();
        let mut command = Command::new(&daemon.command[0]);
        command.args(&daemon.command[1..]).process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // It ends with the namespace that all of it is in.
        command.spawn().unwrap()
    };
    let [kubelet, containerd] = &daemons;
    drop(start(containerd));
    let mut running = start(kubelet);
    println!("        {} sandboxes are gone", shims.len());
    let after = wait("the same pods are back with new containers", || {
        // As whoever looks after a node does: it ends while what runs containers is not ready for it.
        if running.try_wait().unwrap().is_some() {
            running = start(kubelet);
        }
        // Until the kubelet has looked, the pods are called ready, and their containers those of before.
        let pods = cluster.pods("shop", "cart");
        (!pods.is_empty() && pods.iter().all(is_ready) && containers(&pods).is_disjoint(&containers(&before))).then_some(pods)
    });
    let names = |pods: &[Value]| pods.iter().map(|pod| name(pod).to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before), "the same pods, started afresh");
    wait("the caller is back", || is_ready(&cluster.get(&["pod", &from, "-n", "shop"])).then_some(()));
    wait("the ledger is back", || is_ready(&cluster.get(&["pod", "ledger", "-n", "ledger"])).then_some(()));
    answered(cluster, "shop", &from, "http://cart/work/after-the-reboot");
    report.found("rebootMs", u64::try_from(began.elapsed().as_millis()).unwrap().into());
    assert_eq!(cluster.ledger("after-the-reboot")["ended"], 1);
    cluster.run(&["rollout", "status", "deployment/bluebox-injector", "-n", "bluebox", "--timeout=240s"], None);
}

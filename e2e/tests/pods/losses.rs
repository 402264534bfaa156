//! One failure domain: a box loses one of its halves in every way there is, and each time both are started afresh. By restart rules and without them, at the same time, in a pod each.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, name, status_of, wait};
use crate::report::Report;
use crate::{answered, caller, injected, told, under_load};

/// How a half is lost.
struct Loss {
    name: &'static str,
    inflict: fn(&Cluster, &Value),
    /// Whether it takes a signal from outside.
    from_outside: bool,
}

/// A half that is killed by the kubelet is none of its own: that is what becomes of one that hangs.
const LOSSES: [Loss; 7] = [
    Loss { name: "app-exits-0", inflict: |cluster, pod| cluster.tell(namespace(pod), name(pod), "/exit?code=0"), from_outside: false },
    Loss { name: "app-exits-1", inflict: |cluster, pod| cluster.tell(namespace(pod), name(pod), "/exit?code=1"), from_outside: false },
    Loss { name: "app-crashes", inflict: |cluster, pod| cluster.signal(pod, "app", Signal::SIGKILL), from_outside: true },
    // Its probe fails, and the kubelet kills it; without one, the proxy finds it out.
    Loss { name: "app-hangs", inflict: |cluster, pod| cluster.tell(namespace(pod), name(pod), "/hang"), from_outside: false },
    Loss { name: "proxy-exits", inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGTERM), from_outside: true },
    Loss { name: "proxy-crashes", inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGKILL), from_outside: true },
    // Its probe fails, and the kubelet kills it.
    Loss { name: "proxy-hangs", inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGSTOP), from_outside: true },
];

fn namespace(pod: &Value) -> &str {
    pod["metadata"]["namespace"].as_str().unwrap()
}

/// How an app is asked whether it lives.
struct Probe {
    name: &'static str,
    probe: Option<&'static str>,
}

const PROBES: [Probe; 5] = [
    Probe { name: "none", probe: None },
    Probe { name: "http", probe: Some(r#"{"httpGet": {"path": "/healthz", "port": 8080}}"#) },
    Probe { name: "tcp", probe: Some(r#"{"tcpSocket": {"port": 8080}}"#) },
    Probe { name: "grpc", probe: Some(r#"{"grpc": {"port": 8080}}"#) },
    Probe { name: "exec", probe: Some(r#"{"exec": {"command": ["/app", "healthy"]}}"#) },
];

impl Probe {
    /// Every 2 s, and the second failure counts.
    fn put_into(&self, pod: &mut Value) {
        let Some(probe) = self.probe else { return };
        let mut probe: Value = serde_json::from_str(probe).unwrap();
        for (field, value) in [("periodSeconds", 2), ("failureThreshold", 2), ("timeoutSeconds", 2)] {
            probe[field] = value.into();
        }
        pod["spec"]["containers"][0]["livenessProbe"] = probe;
    }
}

/// The ways in which both halves are restarted together.
static WAYS: [&str; 2] = ["rules", "probes"];

/// Those that this cluster has, and that which it takes by itself.
fn ways(cluster: &Cluster) -> (&'static [&'static str], String) {
    let taken = injected(&cluster.ready("shop", "cart", 2)[0])["restart"].as_str().unwrap().to_owned();
    // Without rules there are only probes.
    let ways = if taken == WAYS[0] { &WAYS[..] } else { &WAYS[1..] };
    (ways, taken)
}

/// What is said in a pod that is to be restarted in a way, where the cluster takes another one by itself.
fn ask_for(way: &str, taken: &str, pod: &mut Value) {
    if way != taken {
        pod["metadata"]["annotations"]["bluebox.dev/restart"] = way.into();
    }
}

/// A loss of a box whose app is probed in a way, and that is restarted in a way.
struct Case {
    name: String,
    loss: &'static Loss,
    probe: &'static Probe,
    way: &'static str,
}

/// The cases that are tried each time: every loss of an app with an HTTP probe, and three that go through each kind of probe.
fn usual(loss: &Loss, probe: &Probe) -> bool {
    probe.name == "http" || ["app-exits-0", "app-hangs", "proxy-crashes"].contains(&loss.name)
}

/// What can't be seen: a hung app still takes connections, which is all that such a probe asks. It is found out by its attempts, as one without a probe is.
fn goes_unseen(loss: &Loss, probe: &Probe) -> bool {
    loss.name == "app-hangs" && ["none", "tcp"].contains(&probe.name)
}

/// Every loss; with `FULL=1` of apps with every kind of probe.
pub(crate) fn all(cluster: &Cluster, report: &Report) {
    // Boxes at once: this is one machine. An even number, so that the same loss comes to both ways at the same time.
    const AT_ONCE: usize = 8;
    let full = std::env::var_os("FULL").is_some();
    cluster.namespace("losses", &["bluebox.dev/injection=enabled"]);
    let (ways, taken) = ways(cluster);
    let every = LOSSES.iter().flat_map(|loss| PROBES.iter().map(move |probe| (loss, probe)));
    let wanted = every.filter(|(loss, probe)| (full || usual(loss, probe)) && (cluster.node.is_some() || !loss.from_outside));
    let cases: Vec<_> = wanted
        .flat_map(|(loss, probe)| ways.iter().copied().map(move |way| Case { name: format!("{}-{}-{way}", loss.name, probe.name), loss, probe, way }))
        .collect();
    let mut failed = Vec::new();
    for some in cases.chunks(AT_ONCE) {
        failed.extend(some_of_them(cluster, report, some, &taken));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// All of these at once, in a pod each; which of them failed, and why.
fn some_of_them(cluster: &Cluster, report: &Report, cases: &[Case], taken: &str) -> Vec<String> {
    for Case { name, loss, probe, way } in cases {
        cluster.deployment("losses", name, 1, |pod| {
            // The broker has the topics of all of them until the end.
            pod["metadata"]["annotations"] = json!({"bluebox.dev/partitions": "1"});
            if goes_unseen(loss, probe) {
                pod["metadata"]["annotations"]["bluebox.dev/restart-on-hang"] = "true".into();
                pod["metadata"]["annotations"]["bluebox.dev/attempt-timeout"] = "3s".into();
            }
            ask_for(way, taken, pod);
            probe.put_into(pod);
        });
    }
    let from = caller(cluster);
    let failed = thread::scope(|scope| {
        let running: Vec<_> = cases.iter().map(|case| (&case.name, scope.spawn(|| one(cluster, report, case, &from)))).collect();
        let ended = running.into_iter().filter_map(|(name, case)| {
            let panic = case.join().err()?;
            Some(format!("{name}: {}", panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "?".to_owned())))
        });
        ended.collect()
    });
    for Case { name, .. } in cases {
        cluster.run(&["delete", "deployment", name, "-n", "losses", "--wait=false"], None);
    }
    // The next ones have the machine to themselves.
    wait("the boxes are gone", || cluster.get(&["pods", "-n", "losses"])["items"].as_array()?.is_empty().then_some(()));
    failed
}

fn one(cluster: &Cluster, report: &Report, Case { name: case, loss, probe, way }: &Case, from: &str) {
    let before = cluster.ready("losses", case, 1).remove(0);
    assert_eq!(injected(&before)["restart"], *way, "{case}");
    let to = format!("http://{case}/work/{case}");
    wait(&format!("{case} answers at first"), || (cluster.call("shop", from, &format!("{to}-first"))["status"] == 200).then_some(()));
    (loss.inflict)(cluster, &before);
    let lost = Instant::now();
    if goes_unseen(loss, probe) {
        // An attempt lasts as long as its caller waits: these wait for less than others.
        for number in 0..3 {
            cluster.call("shop", from, &format!("{to}-hung-{number}&wait=2"));
        }
    }
    let answer = cluster.call("shop", from, &format!("{to}-then"));
    let took = lost.elapsed();
    let after = wait(&format!("{case}: both halves were started again"), || {
        let pod = cluster.pods("losses", case).into_iter().next()?;
        let again = |container: &str| status_of(&pod, container)["containerID"] != status_of(&before, container)["containerID"];
        let settled = crate::is_ready(&pod) && again("app") && again("proxy");
        settled.then_some(pod)
    });
    assert_eq!(answer["status"], 200, "{case}: {answer}; {}", told(&after));
    report.recovered(case, took);
    // In place: the same pod, at the same address.
    assert_eq!((&after["metadata"]["uid"], &after["status"]["podIP"]), (&before["metadata"]["uid"], &before["status"]["podIP"]), "{case}");
    let said = cluster.run(&["logs", "-n", "losses", name(&after), "-c", "proxy"], None);
    assert!(said.contains("was started again") && said.contains("the last words of the former proxy"), "{case}: the new proxy doesn't say why: {said}");
}

/// The same, one after the other, in one of two boxes of a component, under load: all calls are answered, and how long the slowest had to wait for another box, or for this one.
pub(crate) fn beside_another(cluster: &Cluster, report: &Report) {
    if std::env::var_os("FULL").is_none() {
        return println!("        SKIPPED: FULL=1 has it");
    }
    // A namespace of its own: this check can be made alone.
    cluster.namespace("spare", &["bluebox.dev/injection=enabled"]);
    let (ways, taken) = ways(cluster);
    for way in ways {
        let spare = format!("spare-{way}");
        cluster.deployment("spare", &spare, 2, |pod| {
            pod["metadata"]["annotations"] = json!({});
            ask_for(way, &taken, pod);
            PROBES[1].put_into(pod);
        });
        for loss in LOSSES.iter().filter(|loss| cluster.node.is_some() || !loss.from_outside) {
            one_of_two(cluster, report, &spare, loss, &format!("elsewhere-{}-{way}", loss.name));
        }
        cluster.run(&["delete", "deployment", &spare, "-n", "spare", "--wait=false"], None);
    }
}

/// One of two boxes of a component has a loss under this load.
fn one_of_two(cluster: &Cluster, report: &Report, spare: &str, loss: &Loss, load: &str) {
    const CALLS: u64 = 100;
    let before = cluster.ready("spare", spare, 2).remove(0);
    answered(cluster, "shop", &caller(cluster), &format!("http://{spare}/work/{load}-first"));
    let loaded = under_load(cluster, spare, load, CALLS / 10, || (loss.inflict)(cluster, &before));
    assert_eq!((&loaded["answered"]["200"], &loaded["failed"]), (&json!(CALLS), &json!([])), "{}: calls were lost: {loaded}", loss.name);
    report.recovered(load, Duration::from_millis(loaded["slowestMs"].as_u64().unwrap()));
    wait(&format!("{load}: the box was lost"), || {
        let pod = cluster.get(&["pod", name(&before), "-n", "spare"]);
        (status_of(&pod, "app")["containerID"] != status_of(&before, "app")["containerID"]).then_some(())
    });
    // So that the kubelet's pauses, which grow with each restart, are no part of the next one.
    cluster.run(&["delete", "pod", name(&before), "-n", "spare", "--wait=false"], None);
}

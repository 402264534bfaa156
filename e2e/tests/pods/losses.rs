//! One failure domain: a box loses one of its halves in every way there is, and each time both are started afresh. All at once, in a pod each.

use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, name, status_of, wait};
use crate::report::Report;
use crate::{caller, told};

/// How a half is lost.
struct Loss {
    name: &'static str,
    /// The app's liveness probe.
    probe: Option<&'static str>,
    inflict: fn(&Cluster, &Value),
    /// Whether it takes a signal from outside.
    from_outside: bool,
}

const LOSSES: [Loss; 10] = [
    Loss { name: "app-exits-0", probe: None, inflict: |cluster, pod| cluster.tell("losses", name(pod), "/exit?code=0"), from_outside: false },
    Loss { name: "app-exits-1", probe: None, inflict: |cluster, pod| cluster.tell("losses", name(pod), "/exit?code=1"), from_outside: false },
    Loss { name: "app-crashes", probe: None, inflict: |cluster, pod| cluster.signal(pod, "app", Signal::SIGKILL), from_outside: true },
    // Its probe fails, and the kubelet kills it.
    Loss { name: "app-hangs", probe: Some(HTTP), inflict: |cluster, pod| cluster.tell("losses", name(pod), "/hang"), from_outside: false },
    Loss { name: "proxy-exits", probe: None, inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGTERM), from_outside: true },
    Loss { name: "proxy-crashes", probe: None, inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGKILL), from_outside: true },
    // Its probe fails, and the kubelet kills it.
    Loss { name: "proxy-hangs", probe: None, inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGSTOP), from_outside: true },
    Loss { name: "proxy-crashes-tcp", probe: Some(TCP), inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGKILL), from_outside: true },
    Loss { name: "proxy-crashes-grpc", probe: Some(GRPC), inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGKILL), from_outside: true },
    Loss { name: "proxy-crashes-exec", probe: Some(EXEC), inflict: |cluster, pod| cluster.signal(pod, "proxy", Signal::SIGKILL), from_outside: true },
];

const HTTP: &str = r#"{"httpGet": {"path": "/healthz", "port": 8080}}"#;
const TCP: &str = r#"{"tcpSocket": {"port": 8080}}"#;
const GRPC: &str = r#"{"grpc": {"port": 8080}}"#;
const EXEC: &str = r#"{"exec": {"command": ["/app", "healthy"]}}"#;

pub(crate) fn all(cluster: &Cluster, report: &Report) {
    cluster.namespace("losses", &["bluebox.dev/injection=enabled"]);
    let losses: Vec<_> = LOSSES.iter().filter(|loss| cluster.node.is_some() || !loss.from_outside).collect();
    for loss in &losses {
        cluster.deployment("losses", loss.name, 1, |pod| {
            // One broker has them all, and in a later check it has to start again with them.
            pod["metadata"]["annotations"] = serde_json::json!({"bluebox.dev/partitions": "2"});
            if let Some(probe) = loss.probe {
                let mut probe: Value = serde_json::from_str(probe).unwrap();
                for (field, value) in [("periodSeconds", 2), ("failureThreshold", 2), ("timeoutSeconds", 2)] {
                    probe[field] = value.into();
                }
                pod["spec"]["containers"][0]["livenessProbe"] = probe;
            }
        });
    }
    let from = caller(cluster);
    thread::scope(|scope| {
        let cases: Vec<_> = losses.iter().map(|loss| (loss.name, scope.spawn(|| one(cluster, report, loss, &from)))).collect();
        let failed: Vec<_> = cases
            .into_iter()
            .filter_map(|(name, case)| {
                let panic = case.join().err()?;
                Some(format!("{name}: {}", panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "?".to_owned())))
            })
            .collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    });
}

fn one(cluster: &Cluster, report: &Report, loss: &Loss, from: &str) {
    let case = loss.name;
    let before = cluster.ready("losses", case, 1).remove(0);
    let to = format!("http://{case}/work/{case}");
    wait(&format!("{case} answers at first"), || (cluster.call("shop", from, &format!("{to}-first"))["status"] == 200).then_some(()));
    (loss.inflict)(cluster, &before);
    let lost = Instant::now();
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

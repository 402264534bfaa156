//! The Kafka that the manifests bring, in a pod: it dies with all that is under way, and comes back with what it had.

use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, name, status_of, wait};
use crate::report::Report;
use crate::{answered, caller};

/// Calls that an app is at when Kafka dies.
const UNDER_WAY: u64 = 20;

/// The pod of Kafka.
fn broker(cluster: &Cluster) -> Value {
    cluster.get(&["pod", "kafka-0", "-n", "kafka"])
}

/// Kills the broker while calls are under way, and keeps it from starting again for a while: those that were accepted are answered when it is back.
pub(crate) fn killed(cluster: &Cluster, report: &Report) {
    if cluster.foreign_kafka.is_some() || cluster.node.is_none() {
        return println!("        SKIPPED: Kafka is not in a pod on this machine");
    }
    let from = caller(cluster);
    answered(cluster, "shop", &from, "http://cart/work/before");
    let before = broker(cluster);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..UNDER_WAY)
            .map(|number| {
                scope.spawn({
                    let from = &from;
                    move || cluster.call("shop", from, &format!("http://cart/work/held-{number}?ms=15000"))
                })
            })
            .collect();
        wait("all of them are at the app", || (cluster.ledger("held")["deliveries"] == UNDER_WAY).then_some(()));
        cluster.signal(&before, "kafka", Signal::SIGKILL);
        let again = wait("Kafka is started again", || {
            let pod = broker(cluster);
            let status = status_of(&pod, "kafka");
            (status["containerID"] != status_of(&before, "kafka")["containerID"] && !status["state"]["running"].is_null()).then_some(pod)
        });
        // Nobody listens where it was, until it may go on.
        cluster.signal(&again, "kafka", Signal::SIGSTOP);
        cluster.deployment("shop", "late", 1, |_| {});
        // Long before, it is known that the broker is away.
        cluster.ready("shop", "late", 1);
        // At once; that one of them takes longer says that the machine has much else to do.
        let answer = wait("calls get 503 within a second", || {
            let answer = cluster.call("shop", &from, "http://cart/work/away&wait=2");
            (answer["status"] == 503 && answer["ms"].as_u64().is_some_and(|ms| ms < 1000)).then_some(answer)
        });
        report.found("kafkaAwayAnswerMs", answer["ms"].clone());
        assert!(calls.iter().all(|call| !call.is_finished()), "what was accepted has no end without Kafka");
        assert_eq!(cluster.ledger("away")["deliveries"], 0, "a call was refused and delivered");
        cluster.signal(&again, "kafka", Signal::SIGCONT);
        for call in calls {
            let answer = call.join().unwrap();
            assert_eq!(answer["status"], 200, "{answer}");
        }
    });
    let ledger = cluster.ledger("held");
    report.found("kafkaKilled", ledger.clone());
    assert_eq!(ledger["ended"], UNDER_WAY, "{ledger}");
    answered(cluster, "shop", &from, "http://late/work/back");
    let after = broker(cluster);
    assert_eq!((name(&after), &after["metadata"]["uid"]), (name(&before), &before["metadata"]["uid"]), "the same pod, with the data that it had");
}

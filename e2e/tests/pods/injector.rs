//! The injector: its certificates are rotated, and it is away.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::cluster::{Cluster, app, has_proxy, wait};
use crate::report::Report;

const DAY: u64 = 24 * 3600;
const SECRET: &str = "bluebox-injector-certificates";
/// Long enough for controllers to lose their patience.
const AWAY: Duration = Duration::from_secs(120);

/// Pods are made all the while, and each gets its proxy: while another certificate is shown, and while another authority takes over.
pub(crate) fn certificates_are_rotated(cluster: &Cluster, report: &Report) {
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let denied = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut denied = Vec::new();
            while !over.load(Ordering::Relaxed) {
                denied.extend(why_denied(cluster));
                made.fetch_add(1, Ordering::Relaxed);
            }
            denied
        });
        let rotated = catch_unwind(AssertUnwindSafe(|| rotate(cluster, &made)));
        over.store(true, Ordering::Relaxed);
        let denied = load.join().unwrap();
        rotated.unwrap_or_else(|why| resume_unwind(why));
        denied
    });
    let made = made.into_inner();
    report.found("rotation", json!({"pods": made, "denied": denied.len()}));
    assert!(denied.is_empty(), "{} of {made} pods: {}", denied.len(), denied[0]);
}

/// Asks for a pod without making it; why it got no proxy.
fn why_denied(cluster: &Cluster) -> Option<String> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rotation"}, "spec": {"containers": [app(&[])]}});
    let done = cluster.kubectl(&["create", "--dry-run=server", "-n", "shop", "-o", "json", "-f", "-"], Some(&pod));
    if !done.right {
        return Some(done.errors);
    }
    let became: Value = serde_json::from_str(&done.output).unwrap();
    (!has_proxy(&became)).then(|| format!("it was let in without a proxy: {became}"))
}

/// Years in a minute: what is in the Secret is made to look old, piece by piece, and each time the injectors do what is due.
fn rotate(cluster: &Cluster, made: &AtomicUsize) {
    let in_secret = || -> Value {
        let template = "go-template={{index .data \"certificates.json\" | base64decode}}";
        serde_json::from_str(&cluster.run(&["get", "secret", SECRET, "-n", "bluebox", "-o", template], None)).unwrap()
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let aged = |which: &str, made: u64| {
        let mut all = in_secret();
        all[which]["made"] = made.into();
        if which != "next" {
            all[which]["until"] = (now + DAY).into();
        }
        let patch = json!({"stringData": {"certificates.json": all.to_string()}}).to_string();
        cluster.run(&["patch", "secret", SECRET, "-n", "bluebox", "--type=merge", "-p", &patch], None);
        all
    };
    let before = aged("shown", now - 25 * DAY);
    wait("a new certificate is shown", || (in_secret()["shown"]["certificate"] != before["shown"]["certificate"]).then_some(()));
    let before = aged("authority", now - 300 * DAY);
    wait("there is the next authority", || (!in_secret()["next"].is_null()).then_some(()));
    // It is known for an hour before it is used; so long nobody waits here.
    aged("next", now - 7200);
    wait("the next authority is used", || {
        let all = in_secret();
        let used = all["next"].is_null() && all["authority"]["certificate"] != before["authority"]["certificate"];
        (used && all["retired"][0][0] == before["authority"]["certificate"]).then_some(())
    });
    // The other replica looks for itself, every ten seconds: what the API server asks after that goes to what both of them show now.
    let (shown, after) = (Instant::now(), made.load(Ordering::Relaxed));
    wait("pods are made with it", || (shown.elapsed() > Duration::from_secs(12) && made.load(Ordering::Relaxed) > after + 5).then_some(()));
}

/// What has to have a proxy waits for it; everything else goes on.
pub(crate) fn is_away(cluster: &Cluster, report: &Report) {
    let injectors = cluster.get(&["deployment", "bluebox-injector", "-n", "bluebox"])["spec"]["replicas"].clone();
    cluster.run(&["scale", "deployment/bluebox-injector", "-n", "bluebox", "--replicas=0"], None);
    wait("no injector is left", || {
        let list = cluster.get(&["pods", "-n", "bluebox", "-l", "app.kubernetes.io/name=bluebox-injector"]);
        list["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let away = Instant::now();
    cluster.deployment("shop", "waiting", 1, |_| {});
    cluster.namespace("unlabelled", &[]);
    cluster.deployment("unlabelled", "bare", 1, |_| {});
    assert!(!has_proxy(&cluster.ready("unlabelled", "bare", 1)[0]));
    wait("the ReplicaSet says why it waits", || {
        let events = cluster.get(&["events", "-n", "shop"]).to_string();
        events.contains("should have Bluebox's proxy").then_some(())
    });
    // Boxes that run need no injector.
    crate::cart_under_load(cluster, report, "injectorAway", || thread::sleep(AWAY.saturating_sub(away.elapsed())));
    assert!(cluster.pods("shop", "waiting").is_empty());
    cluster.run(&["scale", "deployment/bluebox-injector", "-n", "bluebox", &format!("--replicas={injectors}")], None);
    cluster.run(&["rollout", "status", "deployment/bluebox-injector", "-n", "bluebox", "--timeout=240s"], None);
    // It would get its pod by itself too, but with the controller's pause.
    cluster.run(&["rollout", "restart", "deployment/waiting", "-n", "shop"], None);
    assert!(has_proxy(&cluster.ready("shop", "waiting", 1)[0]));
}

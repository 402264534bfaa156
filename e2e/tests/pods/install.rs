//! The five commands of docs/install.md, as they are typed; with the Kafka that the manifests can bring.

use std::path::Path;
use std::process::Command;

use bluebox_e2e::process::bluebox;

use crate::cluster::{Cluster, KAFKA, has_proxy, wait};
use crate::report::Report;

/// What brings a Kafka, as the page has it.
const WITH_KAFKA: &str = "bluebox install --with development";

/// The commands, with the image and the Kafka of this cluster in place of the examples.
fn commands(foreign_kafka: Option<&str>) -> Vec<String> {
    let page = include_str!("../../../docs/install.md");
    let (_, after) = page.split_once("Then five commands:").expect("docs/install.md has its five commands");
    let lines = after.lines().skip_while(|line| line.trim().is_empty()).map_while(|line| line.strip_prefix("    "));
    let image = concat!("bluebox:", env!("CARGO_PKG_VERSION"));
    let lines = lines.map(|line| line.replace(concat!("registry.example/bluebox:", env!("CARGO_PKG_VERSION")), image));
    assert!(page.contains(&format!("`{WITH_KAFKA}` brings one for tests, at `{KAFKA}`")), "docs/install.md says how Kafka comes along");
    let typed = lines.map(|line| match foreign_kafka {
        Some(brokers) => line.replace(KAFKA, brokers),
        None => line.replace("bluebox install", WITH_KAFKA),
    });
    typed.collect()
}

/// Pods that run without Bluebox get their proxies by them, and then all is well.
pub(crate) fn five_commands(cluster: &Cluster, _: &Report) {
    cluster.create_namespace("shop");
    cluster.deployment("shop", "cart", 2, |_| {});
    cluster.deployment("shop", "shop", 1, |_| {});
    assert!(!cluster.ready("shop", "cart", 2).iter().any(has_proxy));
    cluster.ready("shop", "shop", 1);
    let commands = commands(cluster.foreign_kafka.as_deref());
    assert_eq!(commands.len(), 5, "{commands:#?}");
    for command in &commands {
        println!("        $ {command}");
        // Each may be typed again: `check --wait` where the machine has much else to do.
        wait(&format!("`{command}` does right"), || typed(cluster, command));
    }
    if cluster.foreign_kafka.is_none() {
        cluster.run(&["rollout", "status", "statefulset/kafka", "-n", "kafka", "--timeout=240s"], None);
    }
    for (app, count) in [("cart", 2), ("shop", 1)] {
        // Those without a proxy go one by one.
        wait(&format!("all pods of {app} have proxies"), || cluster.pods("shop", app).iter().all(has_proxy).then_some(()));
        cluster.ready("shop", app, count);
    }
    wait("`bluebox check` finds nothing wrong", || typed(cluster, "bluebox check"));
}

/// Types it into a shell; `None` if it ends with an error, or says that something is wrong.
fn typed(cluster: &Cluster, command: &str) -> Option<()> {
    let bluebox = bluebox();
    let programs = Path::new(bluebox.get_program()).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let done = Command::new("bash").args(["-o", "pipefail", "-c", command]).env("PATH", path).env("KUBECONFIG", cluster.kubeconfig()).output().unwrap();
    if !done.status.success() {
        println!("    not yet: {}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    }
    done.status.success().then_some(())
}

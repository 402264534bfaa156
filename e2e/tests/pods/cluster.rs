//! A cluster with nodes, and the apps of the tests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bluebox_e2e::kubectl::{Done, Kubectl, wait_for};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How long anything may take, on a machine that has much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// The image of the tests' app; it knows nothing of Bluebox.
pub(crate) const APP: &str = "bluebox-test/app:1";
/// Another one that doesn't.
pub(crate) const BUSYBOX: &str = "bluebox-test/busybox:1";
/// Where the Kafka is that `bluebox install --with development` brings.
pub(crate) const KAFKA: &str = "kafka.kafka:9092";

/// The cluster.
pub(crate) struct Cluster {
    kubectl: Kubectl,
    /// The directory of the node, if it runs on this machine: then its processes can be killed.
    pub(crate) node: Option<PathBuf>,
    /// A Kafka that is there already, and takes the place of the one that the manifests bring.
    pub(crate) foreign_kafka: Option<String>,
    /// Where the ledger is.
    ledger: String,
    /// What was made here and is in no namespace, or is one: `kind/name`.
    made: Mutex<Vec<String>>,
}

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

impl Cluster {
    /// Brings what tests need into the cluster that `E2E_KUBECONFIG` names; `None` without one.
    pub(crate) fn start() -> Option<Self> {
        let Ok(kubeconfig) = std::env::var("E2E_KUBECONFIG") else {
            eprintln!("SKIPPED: needs a cluster: make e2e");
            return None;
        };
        let node = std::env::var_os("E2E_NODE").map(PathBuf::from);
        let foreign_kafka = std::env::var("E2E_BROKERS").ok();
        let kubectl = Kubectl::new(kubeconfig);
        for what in ["namespace/bluebox", "mutatingwebhookconfiguration/bluebox-injector", "namespace/kafka"] {
            let ours = foreign_kafka.is_none() || what != "namespace/kafka";
            let there = kubectl.must(&["get", what, "--ignore-not-found", "-o", "name"], None);
            assert!(!ours || there.is_empty(), "{what} is in this cluster already, and these checks would change it: take another cluster");
        }
        let mut cluster = Self { kubectl, node, foreign_kafka, ledger: String::new(), made: Mutex::default() };
        cluster.load_images();
        cluster.create_namespace("ledger");
        let ledger = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ledger", "namespace": "ledger", "labels": {"app": "ledger"}}, "spec": {"containers": [app(&[])]}});
        cluster.apply(&ledger);
        // At an address that outlives its pod's.
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ledger", "namespace": "ledger"},
            "spec": {"selector": {"app": "ledger"}, "ports": [{"port": 8080}]}}));
        wait("the ledger runs", || is_ready(&cluster.get(&["pod", "ledger", "-n", "ledger"])).then_some(()));
        let service = cluster.get(&["service", "ledger", "-n", "ledger"]);
        cluster.ledger = format!("http://{}:8080", service["spec"]["clusterIP"].as_str().unwrap());
        Some(cluster)
    }

    /// Nothing is pulled: the images are put into the node, or were put where the cluster finds them.
    fn load_images(&self) {
        let Some(node) = &self.node else { return };
        for image in ["bluebox", "bluebox-injector", "kafka", "app", "busybox"] {
            let archive = format!("{}/../target/images/{image}.tar", env!("CARGO_MANIFEST_DIR"));
            let loaded =
                Command::new("ctr").arg("--address").arg(node.join("containerd.sock")).args(["--namespace", "k8s.io", "images", "import", &archive]).output();
            let loaded = loaded.unwrap();
            assert!(loaded.status.success(), "{archive}: {}", String::from_utf8_lossy(&loaded.stderr));
        }
    }

    /// A namespace whose pods are injected, and may reach Kafka.
    pub(crate) fn namespace(&self, name: &str, labels: &[&str]) {
        self.create_namespace(name);
        self.may_reach_kafka(name);
        for label in labels {
            self.run(&["label", "namespace", name, label], None);
        }
        wait("the namespace has its service account", || self.kubectl(&["get", "serviceaccount", "default", "-n", name], None).right.then_some(()));
    }

    /// A namespace, which goes with the cluster, or at the end.
    pub(crate) fn create_namespace(&self, name: &str) {
        self.run(&["create", "namespace", name], None);
        self.goes_with_us(format!("namespace/{name}"));
    }

    /// What is to be deleted at the end.
    pub(crate) fn goes_with_us(&self, what: String) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Where the node is not on this machine: what pods have said, before they are gone.
    pub(crate) fn keep_logs(&self) {
        if self.node.is_some() {
            return;
        }
        let place = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-logs");
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let namespaces = made.iter().filter_map(|what| what.strip_prefix("namespace/")).fold("bluebox,kafka".to_owned(), |all, name| all + "," + name);
        self.kubectl(&["cluster-info", "dump", "--namespaces", &namespaces, "--output-directory", place], None);
        println!("what the pods have said is in {place}");
    }

    /// The Secret that says which Kafka, if it is not there yet.
    pub(crate) fn may_reach_kafka(&self, name: &str) {
        if self.kubectl(&["get", "secret", "bluebox-kafka", "-n", name], None).right {
            return;
        }
        let brokers = format!("--from-literal=brokers={}", self.brokers());
        let properties = "--from-literal=client.properties=";
        self.run(&["create", "secret", "generic", "bluebox-kafka", "-n", name, &brokers, properties], None);
    }

    /// Where pods find Kafka.
    pub(crate) fn brokers(&self) -> &str {
        self.foreign_kafka.as_deref().unwrap_or(KAFKA)
    }

    /// How the cluster is reached.
    pub(crate) fn kubeconfig(&self) -> &str {
        self.kubectl.kubeconfig()
    }

    /// Makes something, or changes it.
    pub(crate) fn apply(&self, object: &Value) {
        // A policy or a webhook that the API server has just learned of is not everywhere yet.
        wait("something can be made", || {
            let done = self.kubectl(&["apply", "-f", "-"], Some(object));
            if !done.right {
                println!("    not yet: {}", done.errors.trim());
            }
            done.right.then_some(())
        });
    }

    /// Gets something as JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Value {
        self.kubectl.get(arguments)
    }

    /// Runs kubectl, which must do right; what it printed.
    pub(crate) fn run(&self, arguments: &[&str], input: Option<&Value>) -> String {
        self.kubectl.must(arguments, input)
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: Option<&Value>) -> Done {
        self.kubectl.run(arguments, input)
    }

    /// The pods with a label `app`, that are not about to go.
    pub(crate) fn pods(&self, namespace: &str, app: &str) -> Vec<Value> {
        self.pods_until_the_end(namespace, app).into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// All pods with a label `app`, those too that are about to go: they may still answer calls that they have taken.
    pub(crate) fn pods_until_the_end(&self, namespace: &str, app: &str) -> Vec<Value> {
        self.get(&["pods", "-n", namespace, "-l", &format!("app={app}")])["items"].as_array().cloned().unwrap_or_default()
    }

    /// So many pods with this label, all of them ready.
    pub(crate) fn ready(&self, namespace: &str, app: &str, count: usize) -> Vec<Value> {
        wait(&format!("{count} pods of {namespace}/{app} are ready"), || {
            let pods = self.pods(namespace, app);
            (pods.len() == count && pods.iter().all(is_ready)).then_some(pods)
        })
    }

    /// Asks an app, past all proxies; `None` if it doesn't answer.
    pub(crate) fn ask(&self, namespace: &str, pod: &str, path: &str) -> Option<Value> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy{path}");
        let done = self.kubectl(&["get", "--raw", &path, "--request-timeout=300s"], None);
        done.right.then(|| serde_json::from_str(&done.output).unwrap_or(Value::String(done.output)))
    }

    /// Tells an app something that it may not survive.
    pub(crate) fn tell(&self, namespace: &str, pod: &str, path: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy{path}");
        self.kubectl(&["get", "--raw", &path, "--request-timeout=1s"], None);
    }

    /// Lets a pod call: what came of it.
    pub(crate) fn call(&self, namespace: &str, from: &str, to: &str) -> Value {
        self.ask(namespace, from, &format!("/call?to={to}")).unwrap_or(Value::Null)
    }

    /// What the ledger knows of the calls whose names begin so.
    pub(crate) fn ledger(&self, name: &str) -> Value {
        self.ask("ledger", "ledger", &format!("/ledger?name={name}")).unwrap_or(Value::Null)
    }

    /// Sends the first process of a container a signal, past Kubernetes. Only where the node is on this machine.
    pub(crate) fn signal(&self, pod: &Value, container: &str, signal: Signal) {
        signal::kill(Pid::from_raw(self.process(pod, container)), signal).unwrap();
    }

    /// The first process of a container. Only where the node is on this machine.
    pub(crate) fn process(&self, pod: &Value, container: &str) -> i32 {
        let node = self.node.as_ref().expect("the node is on this machine");
        let id = status_of(pod, container)["containerID"].as_str().unwrap().trim_start_matches("containerd://").to_owned();
        let tasks = Command::new("ctr").arg("--address").arg(node.join("containerd.sock")).args(["--namespace", "k8s.io", "tasks", "list"]).output().unwrap();
        let tasks = String::from_utf8_lossy(&tasks.stdout).into_owned();
        let line = tasks.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("no task {id} in {tasks}"));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A Deployment of the tests' app.
    pub(crate) fn deployment(&self, namespace: &str, name: &str, replicas: u32, change: impl FnOnce(&mut Value)) {
        let mut pod = json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [app(&[("LEDGER", &self.ledger)])]}});
        change(&mut pod);
        // One broker has them all, and in a later check it has to start again with them. Only the first Deployment says nothing about Bluebox.
        if name != "cart" && pod["metadata"]["annotations"]["bluebox.dev/partitions"].is_null() {
            pod["metadata"]["annotations"]["bluebox.dev/partitions"] = "4".into();
        }
        self.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": pod},
        }));
    }
}

/// A cluster that was there before is left as it was.
impl Drop for Cluster {
    fn drop(&mut self) {
        if self.node.is_some() {
            return;
        }
        let installed = if self.foreign_kafka.is_some() { "base" } else { "overlays/development" };
        let made = std::mem::take(self.made.get_mut().unwrap_or_else(PoisonError::into_inner));
        let delete = |what: &[&str]| {
            let done = self.kubectl(&[&["delete", "--ignore-not-found"], what].concat(), None);
            if !done.right {
                println!("not everything could be deleted: {}", done.errors.trim());
            }
        };
        // First what asks about pods, and would no longer answer.
        delete(&[
            "mutatingwebhookconfiguration/bluebox-injector",
            "validatingadmissionpolicybinding/bluebox-injected-namespaces",
            "validatingadmissionpolicybinding/bluebox-injected-pods",
        ]);
        delete(&made.iter().map(String::as_str).collect::<Vec<_>>());
        delete(&["-k", &format!("{MANIFESTS}/{installed}")]);
    }
}

/// The container of the tests' app.
pub(crate) fn app(variables: &[(&str, &str)]) -> Value {
    let env: Vec<_> = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({
        "name": "app", "image": APP, "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 8080}], "env": env,
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5},
    })
}

pub(crate) fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// What Kubernetes says of the containers of a pod, those that only begin it first.
pub(crate) fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
}

/// What Kubernetes says of a container.
pub(crate) fn status_of<'p>(pod: &'p Value, container: &str) -> &'p Value {
    statuses(pod).find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

pub(crate) fn has_proxy(pod: &Value) -> bool {
    pod["spec"]["initContainers"].as_array().into_iter().flatten().any(|container| container["name"] == "proxy")
}

/// Asks until the answer is `Some`.
pub(crate) fn wait<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_for(PATIENCE, what, ask)
}

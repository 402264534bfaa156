//! A control plane, and `bluebox` as somebody types it who installs it.

use std::process::Stdio;

use bluebox_e2e::control_plane::{self, Injector, wait};
use bluebox_e2e::kubectl::Kubectl;
use bluebox_e2e::process::bluebox;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The cluster. There is no node: pods are made, and don't run.
pub(crate) struct Cluster {
    pub(crate) kubectl: Kubectl,
    pub(crate) directory: TempDir,
    injector: Option<Injector>,
}

/// What `bluebox` did.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Cluster {
    /// The one that `BLUEBOX_TEST_KUBECONFIG` names; `None` without one.
    pub(crate) fn start() -> Option<Self> {
        let Ok(kubeconfig) = std::env::var("BLUEBOX_TEST_KUBECONFIG") else {
            eprintln!("SKIPPED: needs a control plane: make test-kubernetes");
            return None;
        };
        Some(Self { kubectl: Kubectl::new(kubeconfig), directory: tempfile::tempdir().unwrap(), injector: None })
    }

    /// Runs `bluebox` as who owns a kubeconfig.
    pub(crate) fn bluebox_as(&self, kubeconfig: &str, arguments: &[&str]) -> Done {
        let output = bluebox().args(arguments).env("KUBECONFIG", kubeconfig).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done { code: output.status.code(), output: text(&output.stdout), errors: text(&output.stderr) }
    }

    /// Runs `bluebox` as the administrator; it must do right. What it printed.
    pub(crate) fn bluebox(&self, arguments: &[&str]) -> String {
        let done = self.bluebox_as(self.kubectl.kubeconfig(), arguments);
        assert!(done.code == Some(0), "bluebox {}: {}", arguments.join(" "), done.errors);
        done.output
    }

    /// `bluebox check -o json`: its exit code, and what it found.
    pub(crate) fn check(&self, arguments: &[&str]) -> (Option<i32>, Found) {
        let done = self.bluebox_as(self.kubectl.kubeconfig(), &[&["check", "-o", "json"], arguments].concat());
        let report = serde_json::from_str(&done.output).unwrap_or_else(|error| panic!("{error}: {}{}", done.output, done.errors));
        (done.code, Found(report))
    }

    /// `bluebox install … | kubectl apply -f -`.
    pub(crate) fn install(&mut self, arguments: &[&str]) {
        self.apply(&self.bluebox(&[&["install"], arguments].concat()));
    }

    /// `kubectl apply -f -`: what it said.
    pub(crate) fn apply(&self, manifests: &str) -> String {
        let done = self.kubectl.feed(&["apply", "-f", "-"], Some(manifests));
        assert!(done.right, "{}", done.errors);
        done.output
    }

    /// A kubeconfig of a service account.
    pub(crate) fn account(&self, namespace: &str, name: &str) -> String {
        control_plane::account(&self.kubectl, namespace, name, self.directory.path()).to_string_lossy().into_owned()
    }

    /// Starts the injector, and tells the API server where it is: there is no node that would.
    pub(crate) fn start_injector(&mut self, arguments: &[&str]) {
        let directory = self.directory.path();
        let account = control_plane::account(&self.kubectl, "bluebox", "bluebox-injector", directory);
        let injector = Injector::start(&format!("injector-{}", self.injector_number()), &account, "127.0.0.1:0", arguments, directory);
        let port = injector.port();
        self.injector = Some(injector);
        let spec = json!([{"op": "replace", "path": "/spec", "value": {"type": "ExternalName", "externalName": "localhost"}}]);
        self.kubectl.must(&["patch", "service", "bluebox-injector", "-n", "bluebox", "--type=json", "-p", &spec.to_string()], None);
        let at = |number: u8| json!({"op": "replace", "path": format!("/webhooks/{number}/clientConfig/service/port"), "value": port});
        self.kubectl.must(&["patch", "mutatingwebhookconfiguration", "bluebox-injector", "--type=json", "-p", &json!([at(0), at(1)]).to_string()], None);
    }

    fn injector_number(&self) -> usize {
        std::fs::read_dir(self.directory.path()).unwrap().count()
    }

    /// Kills the injector.
    pub(crate) fn kill_injector(&mut self) {
        self.injector.take().unwrap().kill();
    }

    /// Says of the injector what its Deployment would if its pods ran: nothing here runs them.
    pub(crate) fn pretend_that_injectors_run(&self) {
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]}}).to_string();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "bluebox-injector", "namespace": "bluebox", "labels": {"kubernetes.io/service-name": "bluebox-injector"}},
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}], "ports": [],
        });
        self.kubectl.must(&["apply", "-f", "-"], Some(&slice));
        wait("the Deployment of the injector is ready", || {
            for pod in self.kubectl.get(&["pods", "-n", "bluebox"])["items"].as_array()? {
                let name = pod["metadata"]["name"].as_str()?;
                self.kubectl.run(&["patch", "pod", name, "-n", "bluebox", "--subresource=status", "--type=strategic", "-p", &ready], None);
            }
            let injector = self.kubectl.get(&["deployment", "bluebox-injector", "-n", "bluebox"]);
            (injector["status"]["readyReplicas"] == injector["spec"]["replicas"]).then_some(())
        });
    }

    /// Whether the injector may do something.
    pub(crate) fn may(&self, what: &[&str]) -> bool {
        let who = ["--as=system:serviceaccount:bluebox:bluebox-injector"];
        self.kubectl.run(&[&["auth", "can-i", "--quiet"], &who[..], what].concat(), None).right
    }
}

/// What a check found.
#[derive(Debug)]
pub(crate) struct Found(pub(crate) Value);

impl Found {
    /// All that is not as it should be: section, check and what was said.
    pub(crate) fn bad(&self, status: &str) -> Vec<String> {
        let mut bad = Vec::new();
        for section in self.0["sections"].as_array().unwrap() {
            for check in section["checks"].as_array().unwrap().iter().filter(|check| check["status"] == status) {
                assert!(check["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{check} has no hint");
                bad.push(format!("{}: {}: {} > {}", section["name"], check["name"], check["why"], check["hint"]));
            }
        }
        bad
    }

    /// The one check that failed.
    pub(crate) fn only_failure(&self, says: &[&str]) -> String {
        let failed = self.bad("failed");
        assert!(failed.len() == 1 && says.iter().all(|says| failed[0].contains(says)), "{says:?}: {failed:#?}");
        failed[0].clone()
    }

    /// One warning among them.
    pub(crate) fn warns(&self, says: &[&str]) {
        let warnings = self.bad("warning");
        assert!(warnings.iter().any(|warning| says.iter().all(|says| warning.contains(says))), "{says:?}: {warnings:#?}");
    }
}

//! A control plane with Bluebox installed from `manifests/base`, and kubectl.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bluebox_e2e::control_plane::{self, Injector, wait};
use bluebox_e2e::kubectl::{Done, Kubectl};
use serde_json::Value;
use tempfile::TempDir;

/// The cluster.
pub(crate) struct Cluster {
    pub(crate) kubectl: Kubectl,
    directory: TempDir,
    injector: Option<Injector>,
    /// The injector's rights.
    account: PathBuf,
    /// Where the webhook listens; the API server was told so.
    listen: String,
}

impl Cluster {
    /// Installs Bluebox into the cluster that `BLUEBOX_TEST_KUBECONFIG` names; `None` without one.
    pub(crate) fn start() -> Option<Self> {
        let Ok(kubeconfig) = std::env::var("BLUEBOX_TEST_KUBECONFIG") else {
            eprintln!("SKIPPED: needs a control plane: make test-kubernetes");
            return None;
        };
        let (kubectl, directory) = (Kubectl::new(kubeconfig), tempfile::tempdir().unwrap());
        let mut cluster = Self { kubectl, directory, injector: None, account: PathBuf::new(), listen: "127.0.0.1:0".to_owned() };
        cluster.apply(1);
        cluster.account = control_plane::account(&cluster.kubectl, "bluebox", "bluebox-injector", cluster.directory.path());
        let port = cluster.start_injector();
        cluster.apply(port);
        cluster.wait_until_it_is_trusted();
        Some(cluster)
    }

    /// Applies the manifests. The API server finds the webhook where it would find a pod's, but for the address.
    fn apply(&self, port: u16) {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base");
        let copy = self.directory.path().join("base");
        std::fs::create_dir_all(&copy).unwrap();
        for file in std::fs::read_dir(base).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        let mut overlay = String::from("resources: [base]\npatches:\n");
        let mut patch =
            |kind: &str, operations: &str| writeln!(overlay, "- {{target: {{kind: {kind}, name: bluebox-injector}}, patch: '{operations}'}}").unwrap();
        patch("Service", r#"[{"op": "replace", "path": "/spec", "value": {"type": "ExternalName", "externalName": "localhost"}}]"#);
        let at = |number: u8| format!(r#"{{"op": "replace", "path": "/webhooks/{number}/clientConfig/service/port", "value": {port}}}"#);
        patch("MutatingWebhookConfiguration", &format!("[{}, {}]", at(0), at(1)));
        std::fs::write(self.directory.path().join("kustomization.yaml"), overlay).unwrap();
        self.kubectl.must(&["apply", "-k", &self.directory.path().to_string_lossy()], None);
    }

    /// Starts the injector, where it was before if it ran already, and waits until it listens: its port.
    pub(crate) fn start_injector(&mut self) -> u16 {
        let injector = Injector::start("injector", &self.account, &self.listen, &["--log-level", "debug"], self.directory.path());
        injector.listen().clone_into(&mut self.listen);
        self.injector.insert(injector).port()
    }

    /// Starts another injector beside it; the API server doesn't ask it.
    pub(crate) fn another_injector(&self) -> Injector {
        Injector::start("another-injector", &self.account, "127.0.0.1:0", &[], self.directory.path())
    }

    /// Kills the injector.
    pub(crate) fn kill_injector(&mut self) {
        self.injector.take().unwrap().kill();
    }

    /// What the injector said.
    pub(crate) fn injector_said(&self) -> String {
        self.injector.as_ref().unwrap().said()
    }

    /// Until a pod of a namespace with the label is injected: the API server takes a moment to learn of webhooks and policies.
    fn wait_until_it_is_trusted(&self) {
        self.namespace("probe", Some("enabled"));
        wait("the webhook and the policy work", || {
            let mut pod = crate::pod("probe");
            pod["metadata"]["annotations"] = serde_json::json!({"bluebox.dev/port": "none"});
            // Denied by the webhook, and an opted-out one of the same is not denied by the policy.
            self.make("probe", &pod).err().filter(|said| said.contains("Bluebox can't put"))
        });
        wait("the policy works", || {
            let mut pod = crate::pod("probe");
            pod["spec"]["hostNetwork"] = true.into();
            self.make("probe", &pod).ok()
        });
    }

    /// A namespace with or without the label.
    pub(crate) fn namespace(&self, name: &str, label: Option<&str>) {
        self.kubectl.must(&["create", "namespace", name], None);
        if let Some(label) = label {
            self.kubectl.must(&["label", "namespace", name, &format!("bluebox.dev/injection={label}")], None);
        }
        wait("the namespace has its service account", || self.kubectl(&["get", "serviceaccount", "default", "-n", name], None).right.then_some(()));
    }

    /// Makes something: what it became, with warnings, or why it can't be made.
    pub(crate) fn make(&self, namespace: &str, object: &Value) -> Result<(Value, String), String> {
        let done = self.kubectl(&["create", "-n", namespace, "-o", "json", "-f", "-"], Some(object));
        if !done.right {
            return Err(done.errors);
        }
        Ok((serde_json::from_str(&done.output).unwrap(), done.errors))
    }

    /// Gets something as JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Value {
        self.kubectl.get(arguments)
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: Option<&Value>) -> Done {
        self.kubectl.run(arguments, input)
    }
}

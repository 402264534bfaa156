//! kubectl, for tests with a cluster.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

pub use crate::deadline::wait_for;

/// kubectl, for one cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    kubeconfig: String,
}

/// What it did.
#[derive(Debug)]
pub struct Done {
    /// Whether it did what it was told.
    pub right: bool,
    /// What it printed.
    pub output: String,
    /// What it said besides: errors, and warnings.
    pub errors: String,
}

impl Kubectl {
    /// For the cluster of this file.
    pub fn new(kubeconfig: String) -> Self {
        Self { kubeconfig }
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Runs it, with an object as its input.
    pub fn run(&self, arguments: &[&str], input: Option<&Value>) -> Done {
        self.feed(arguments, input.map(Value::to_string).as_deref())
    }

    /// Runs it, with a text as its input.
    pub fn feed(&self, arguments: &[&str], input: Option<&str>) -> Done {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if let Some(input) = input {
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done { right: output.status.success(), output: text(&output.stdout), errors: text(&output.stderr) }
    }

    /// Runs it; it must do right. What it printed.
    pub fn must(&self, arguments: &[&str], input: Option<&Value>) -> String {
        let done = self.run(arguments, input);
        assert!(done.right, "kubectl {}: {}", arguments.join(" "), done.errors);
        done.output
    }

    /// Gets something as JSON; null if it can't be had.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let done = self.run(&[&["get", "-o", "json"], arguments].concat(), None);
        serde_json::from_str(&done.output).unwrap_or(Value::Null)
    }
}

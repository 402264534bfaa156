//! `bluebox inject`: what the webhook does, by hand.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bluebox_injector::offline::inject_all;
use clap::Args;

use super::{ProxyLimits, SettingsOptions};

/// What `bluebox inject --help` ends with.
const EXAMPLES: &str = "\
Examples:
  bluebox inject cart.yaml | kubectl apply -f -
  kubectl get deployment cart -o yaml | bluebox inject - | kubectl apply -f -

Manifests go to standard output, what was done to each to standard error. Pods with the label bluebox.dev/injection: disabled stay as they are.
docs/kubernetes.md has the annotations that a pod's template can have.";

/// Puts the proxy into the pods of Kubernetes manifests, as the webhook does in a cluster.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InjectOptions {
    /// The manifests, in YAML or JSON; `-` is standard input.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    settings: SettingsOptions,
    /// The cluster has restart rules (Kubernetes 1.36 or later): app and proxy are restarted together.
    #[arg(long)]
    restart_rules: bool,
}

pub(crate) fn run(options: &InjectOptions) -> anyhow::Result<()> {
    let (settings, limits) = (options.settings.settings()?.with_restart_rules(options.restart_rules), ProxyLimits::new());
    let mut outputs = Vec::new();
    // All of them first: with a mistake in one, nothing comes out that could be applied.
    for file in &options.files {
        let output = inject_all(&read(file)?, &settings, &limits).with_context(|| file.display().to_string())?;
        outputs.push(output);
    }
    for note in outputs.iter().flat_map(|output| &output.notes) {
        eprintln!("{note}");
    }
    let yaml = outputs.into_iter().map(|output| output.yaml).filter(|yaml| !yaml.is_empty()).collect::<Vec<_>>().join("---\n");
    std::io::stdout().write_all(yaml.as_bytes()).context("standard output")
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input: can't be read")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("{}: can't be read", file.display()))
}

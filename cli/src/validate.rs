//! `bluebox validate FILE`: checks the file and starts nothing.

use std::path::PathBuf;

use clap::Args;

use crate::file;
use crate::up::plan;

/// Checks a file for `bluebox up`, and starts nothing. Exit code 0 means that it is right.
#[derive(Debug, Args)]
pub(crate) struct ValidateOptions {
    /// The file.
    #[arg(default_value = "bluebox.yaml")]
    file: PathBuf,
}

/// Checks the file.
pub(crate) fn run(options: &ValidateOptions) -> anyhow::Result<()> {
    let system = file::load(&options.file)?;
    plan::check_limits(&system)?;
    let replicas: u32 = system.boxes.iter().map(|one| one.replicas).sum();
    let components: usize = system.boxes.iter().map(|one| one.components.len()).sum();
    println!("{}: right: {} boxes with {replicas} replicas, {components} components", options.file.display(), system.boxes.len());
    for warning in plan::missing_commands(&system) {
        println!("warning: {warning}");
    }
    Ok(())
}

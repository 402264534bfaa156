//! `bluebox validate FILE`: checks the file and starts nothing.

use std::path::PathBuf;

use clap::Args;

use crate::file;
use crate::units::so_many;
use crate::up::plan;

/// Checks a file for `bluebox up`, and starts nothing. Exit code 0 means that it is right.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox validate                 bluebox.yaml in this directory
  bluebox validate shop.yaml && bluebox up shop.yaml")]
pub(crate) struct ValidateOptions {
    /// The file.
    #[arg(default_value = "bluebox.yaml")]
    file: PathBuf,
}

/// Checks the file.
pub(crate) fn run(options: &ValidateOptions) -> anyhow::Result<()> {
    let system = file::load(&options.file)?;
    plan::check_limits(&system)?;
    plan::check_ports(&system)?;
    let replicas = system.boxes.iter().map(|one| one.replicas as usize).sum();
    let components = system.boxes.iter().map(|one| one.components.len()).sum();
    let boxes = so_many(system.boxes.len(), "box", "boxes");
    println!("{}: right: {boxes}, {}, {}", options.file.display(), so_many(replicas, "replica", "replicas"), so_many(components, "component", "components"));
    for warning in plan::missing_commands(&system) {
        println!("warning: {warning}");
    }
    Ok(())
}

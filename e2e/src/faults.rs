//! What makes a process fail on purpose: `bluebox-faulty`, and what it is told by its environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// What a process is to do wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    variables: Vec<(&'static str, String)>,
    armed: PathBuf,
}

impl Faults {
    /// Once [armed](Self::arm), at this point this happens (`panic`, `error`, `delay`, `kill`), once.
    pub fn fail_point(point: &str, action: &str, directory: &Path) -> Self {
        let armed = directory.join("armed");
        let variables = vec![("BLUEBOX_FAIL_POINT", format!("{point}={action}")), ("BLUEBOX_FAIL_POINT_ARMED", armed.display().to_string())];
        Self { variables, armed }
    }

    /// With a planted bug besides.
    #[must_use]
    pub fn with_bug(mut self, bug: &str) -> Self {
        self.variables.push(("BLUEBOX_PLANTED_BUG", bug.to_owned()));
        self
    }

    /// From now on it happens.
    pub fn arm(&self) {
        std::fs::write(&self.armed, "").unwrap();
    }

    /// Whether it is armed and has not happened yet.
    pub fn is_armed(&self) -> bool {
        self.armed.exists()
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = process::faulty();
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        command
    }
}

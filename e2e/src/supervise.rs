//! A process that is started again whenever it ends, as the kubelet does it, and `bluebox up`.

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use crate::process::Process;

/// A process under a supervisor. Dropping it ends both.
#[derive(Debug)]
pub struct Supervised {
    state: Arc<Mutex<State>>,
    supervisor: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    process: Option<Process>,
    ends: Vec<ExitStatus>,
}

impl Supervised {
    /// Starts what `command` makes, and starts it again whenever it ends.
    pub fn start(name: &str, directory: &Path, command: impl Fn() -> Command + Send + 'static) -> Self {
        let start = {
            let (name, directory) = (name.to_owned(), directory.to_owned());
            move || Process::start(&name, command(), &directory)
        };
        let state = Arc::new(Mutex::new(State { process: Some(start()), ends: Vec::new() }));
        let watched = Arc::clone(&state);
        let supervisor = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let mut state = watched.lock().unwrap();
                if let Some(status) = state.process.as_mut().and_then(Process::ended) {
                    state.ends.push(status);
                    state.process = Some(start());
                }
            }
        });
        Self { state, supervisor }
    }

    /// How it has ended, each time.
    pub fn ends(&self) -> Vec<ExitStatus> {
        self.state.lock().unwrap().ends.clone()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.state.lock().unwrap().process.as_ref().unwrap().signal(signal);
    }

    /// What it said so far, in all its lives.
    pub fn said(&self) -> String {
        self.state.lock().unwrap().process.as_ref().unwrap().said()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.supervisor.abort();
        if let Ok(mut state) = self.state.lock() {
            state.process = None;
        }
    }
}

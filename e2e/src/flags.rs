//! Flags that the programs of this crate have in common.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// What is tested or measured.
#[derive(Debug, Clone, Args)]
pub struct Tested {
    /// The `bluebox` that is run; by default the one beside this program.
    #[arg(long, value_name = "PROGRAM")]
    bluebox: Option<PathBuf>,
    /// A further flag for every proxy, such as --proxy-flag=--group-protocol=consumer. Can be repeated.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub proxy_flag: Vec<String>,
}

impl Tested {
    /// The program.
    ///
    /// # Errors
    /// When it is not there.
    pub fn bluebox(&self) -> io::Result<PathBuf> {
        let path = match &self.bluebox {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("bluebox"),
        };
        if path.exists() {
            Ok(path)
        } else {
            let text = format!("{}: not there; build it, or say where it is with --bluebox", path.display());
            Err(io::Error::new(io::ErrorKind::NotFound, text))
        }
    }

    /// The flags that say so.
    pub fn to_flags(&self) -> String {
        let program = self.bluebox.iter().map(|program| format!(" --bluebox {}", program.display()));
        program.chain(self.proxy_flag.iter().map(|flag| format!(" --proxy-flag={flag}"))).collect()
    }
}

/// Reads a duration.
///
/// # Errors
/// With what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; a duration is written as 900ms, 2s or 5m"))
}

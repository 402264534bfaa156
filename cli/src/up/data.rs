//! The directory of the log and of what `up` writes of itself, and the log in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bluebox_core::Log;

use super::output::{Output, Tone};
use super::state;
use crate::file::LogSpec;
use crate::log::{self, KafkaOptions, LogOptions};

/// The directory, held by this process alone.
pub(crate) struct Kept {
    directory: PathBuf,
    _lock: File,
    _name: UnixListener,
}

/// Where in the directory the embedded log lies.
pub(crate) const LOG: &str = "log";
/// A longer path can't be a socket's (unix(7)).
const MAX_SOCKET_PATH: usize = 100;

impl Kept {
    /// Makes the directory if need be, and holds it until this process ends.
    ///
    /// # Errors
    /// When another `up` holds it.
    pub(crate) fn lock(directory: &Path) -> anyhow::Result<Self> {
        let told = || unusable(directory);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(told)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("up.lock")).with_context(told)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let who = state::read(directory).map_or_else(|_| String::new(), |state| format!(" (pid {}, {})", state.pid, state.file.display()));
                bail!("another `bluebox up` runs on {}{who}: end it first, or give this one a data directory of its own with --data", directory.display());
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(told),
        }
        let name = hold_name(directory)?;
        // What is in here is nobody's source.
        let ignore = directory.join(".gitignore");
        if !ignore.exists() {
            let _ = fs::write(ignore, "*\n");
        }
        Ok(Self { directory: directory.to_owned(), _lock: lock, _name: name })
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// There is nothing more that runs.
    pub(crate) fn forget_state(&self) {
        let _ = fs::remove_file(self.directory.join(state::FILE));
    }
}

fn unusable(directory: &Path) -> String {
    format!("{}: the data directory can't be used (--data names another)", directory.display())
}

/// Holds the name of a directory, beside the lock in it: that goes with the directory if somebody removes it, and an `up` that still ends would write into what the next one has made.
fn hold_name(directory: &Path) -> anyhow::Result<UnixListener> {
    let told = || unusable(directory);
    let mut hash = DefaultHasher::new();
    fs::canonicalize(directory).with_context(told)?.hash(&mut hash);
    // In no file system (unix(7)): it is free again when nobody has it.
    let name = SocketAddr::from_abstract_name(format!("bluebox-up-{:016x}", hash.finish())).with_context(told)?;
    match UnixListener::bind_addr(&name) {
        Ok(held) => Ok(held),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "{} was removed while a `bluebox up` ran on it, which has not ended yet: wait until it has, or end it; or give this one a data directory of its own with --data",
            directory.display()
        ),
        Err(error) => Err(error).with_context(told),
    }
}

/// Whether an `up` holds this directory.
pub(crate) fn is_held(directory: &Path) -> bool {
    File::open(directory.join("up.lock")).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

/// The log that this `up` uses.
pub(crate) struct OpenLog {
    arguments: Vec<String>,
    description: String,
    properties: Option<PathBuf>,
    socket: Option<PathBuf>,
    client: Arc<dyn Log>,
    served: Option<log::Served>,
}

impl OpenLog {
    /// Opens the embedded log and serves it to the proxies, or looks for Kafka.
    pub(crate) async fn open(spec: &LogSpec, kafka: &KafkaOptions, kept: &Kept, output: &Output) -> anyhow::Result<Self> {
        let prefix = ["--topic-prefix".to_owned(), spec.prefix.as_str().to_owned()];
        let Some(brokers) = &spec.brokers else {
            let fsync = spec.fsync.as_deref().map(log::parse_fsync).transpose().map_err(anyhow::Error::msg)?.unwrap_or_default();
            let socket = socket_path(kept.directory());
            let served = log::Served::start(&kept.directory().join(LOG), fsync, &socket).await?;
            let mut arguments = vec!["--log-socket".to_owned(), socket.display().to_string()];
            arguments.extend(prefix);
            let description = format!("embedded log in {} ({})", kept.directory().display(), log::describe_fsync(fsync));
            return Ok(Self { arguments, description, properties: None, socket: Some(socket), client: served.log(), served: Some(served) });
        };
        let mut arguments = vec!["--brokers".to_owned(), brokers.clone()];
        arguments.extend(prefix);
        arguments.extend(kafka.arguments());
        let properties = write_properties(&spec.properties, kept.directory())?;
        if let Some(file) = &properties {
            arguments.extend(["--kafka-properties".to_owned(), file.display().to_string()]);
        }
        let options = LogOptions {
            brokers: Some(brokers.clone()),
            log_socket: None,
            kafka: KafkaOptions {
                kafka_property: spec.properties.clone().into_iter().collect(),
                kafka_properties: None,
                topic_prefix: spec.prefix.clone(),
                ..kafka.clone()
            },
        };
        let client = options.connect()?;
        let output = output.clone();
        tokio::spawn(log::watch(client.clone(), spec.prefix.clone(), move |reachable| {
            if reachable {
                output.say(Tone::Good, format!("{} can be reached", options.describe()));
            } else {
                output.say(Tone::Trouble, format!("{} can't be reached: calls get 503 until it can. Still trying. {}", options.describe(), options.remedy()));
            }
        }));
        Ok(Self { arguments, description: format!("Kafka at {brokers}"), properties, socket: None, client, served: None })
    }

    /// What the proxies are told of it.
    pub(crate) fn proxy_arguments(&self) -> &[String] {
        &self.arguments
    }

    /// In words.
    pub(crate) fn describe(&self) -> &str {
        &self.description
    }

    /// The log, for `up` itself.
    pub(crate) fn client(&self) -> Arc<dyn Log> {
        self.client.clone()
    }

    /// The socket of the embedded log.
    pub(crate) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The settings for Kafka.
    pub(crate) fn kafka_properties(&self) -> Option<&Path> {
        self.properties.as_deref()
    }

    /// Ends it; everything that was acknowledged is on disk.
    pub(crate) async fn close(self) {
        drop(self.client);
        if let Some(served) = self.served {
            served.close().await;
        }
    }
}

/// Where the embedded log is served: in the data directory, or, if that is too deep for a socket, beside other temporary files.
fn socket_path(directory: &Path) -> PathBuf {
    let beside = directory.join("log.sock");
    if beside.as_os_str().len() <= MAX_SOCKET_PATH {
        return beside;
    }
    std::env::temp_dir().join(format!("bluebox-{}.sock", std::process::id()))
}

/// Settings can be secrets: they go through a file that only this user can read, not over command lines.
fn write_properties(properties: &BTreeMap<String, String>, directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    if properties.is_empty() {
        return Ok(None);
    }
    let path = directory.join("kafka.properties");
    let mut text = String::new();
    for (key, value) in properties {
        // Writing into a String can't fail.
        let _ = writeln!(text, "{key}={value}");
    }
    let _ = fs::remove_file(&path);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).with_context(|| path.display().to_string())?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_removed_is_still_held_by_who_holds_it() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("data");
        let held = Kept::lock(&directory).unwrap();
        let refused = || Kept::lock(&directory).err().unwrap().to_string();
        assert!(refused().contains("another `bluebox up` runs"));
        fs::remove_dir_all(&directory).unwrap();
        assert!(refused().contains("was removed while"));
        drop(held);
        Kept::lock(&directory).unwrap();
    }
}

//! Wall clocks that can be set: libfaketime, loaded into a process before all else, reads from a file how far its wall clock is off. The monotonic clocks stay as they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The wall clocks of a run.
#[derive(Debug, Clone)]
pub(crate) struct WallClocks {
    library: PathBuf,
    directory: PathBuf,
}

/// Where a package of it puts it, below its root.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

impl WallClocks {
    /// Finds libfaketime, or takes it from Debian's packages into `target`, without installing it.
    pub(crate) fn prepare(target: &Path, directory: &Path) -> anyhow::Result<Self> {
        let kept = target.join("libfaketime");
        let find = || [Path::new("/"), &kept].iter().find_map(|root| find_in(root));
        let library = match find() {
            Some(library) => library,
            None => {
                download(&kept).context("libfaketime is not installed, and Debian's package of it can't be had")?;
                find().context("Debian's package of libfaketime holds no library")?
            }
        };
        Ok(Self { library, directory: directory.to_owned() })
    }

    /// What the process with this name is started with.
    pub(crate) fn environment(&self, name: &str) -> anyhow::Result<Vec<(String, String)>> {
        let file = self.file(name);
        if !file.exists() {
            self.set(name, 0)?;
        }
        let pairs = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_RESET", "1".to_owned()),
        ];
        Ok(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// From now on its wall clock is off by so many seconds.
    pub(crate) fn set(&self, name: &str, seconds: i64) -> anyhow::Result<()> {
        // By rename: nobody reads half a number.
        let (file, fresh) = (self.file(name), self.file(&format!("{name}-new")));
        std::fs::write(&fresh, format!("{seconds:+}\n")).and_then(|()| std::fs::rename(&fresh, &file)).with_context(|| file.display().to_string())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("clock-{name}"))
    }
}

fn find_in(root: &Path) -> Option<PathBuf> {
    let libraries = std::fs::read_dir(root.join("usr/lib")).ok()?;
    libraries.flatten().map(|entry| entry.path().join(LIBRARY)).find(|path| path.exists())
}

fn download(into: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(into)?;
    let run = |command: &mut Command| {
        let output = command.current_dir(into).output().with_context(|| format!("{command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        anyhow::Ok(())
    };
    run(Command::new("apt-get").args(["download", "libfaketime"]))?;
    let package = std::fs::read_dir(into)?.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    run(Command::new("dpkg").arg("-x").arg(package.context("nothing was downloaded")?).arg("."))
}

//! A disk that can be full: a tmpfs that only the embedded log of a run and a ballast are on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

/// The disk. It is unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    mounted: PathBuf,
}

/// What it holds at most; it takes memory only for what is on it.
const SIZE: &str = "size=3g";

impl Disk {
    /// Mounts one, which only root may do.
    pub(crate) fn mount(at: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at)?;
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "bluebox-faults"]).arg(at).output().context("mount")?;
        ensure!(output.status.success(), "a disk of its own can't be mounted at {}: {}", at.display(), String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self { mounted: at.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.join("ballast")
    }

    /// Fills it, but for so many bytes.
    pub(crate) fn fill(&self, leave_bytes: u64) -> anyhow::Result<()> {
        let found = statvfs(&self.mounted).context("statvfs")?;
        let free = found.blocks_available() * found.fragment_size();
        let ballast = File::create(self.ballast())?;
        let length = i64::try_from(free.saturating_sub(leave_bytes))?;
        // Somebody else may have taken the last blocks meanwhile: full is what it was to be.
        if length > 0 && posix_fallocate(&ballast, 0, length).is_err() {
            posix_fallocate(&ballast, 0, length - length / 100).context("the disk can't be filled")?;
        }
        Ok(())
    }

    /// There is room again.
    pub(crate) fn empty(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.ballast()).context("the ballast can't be removed")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may have files open there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).output();
    }
}

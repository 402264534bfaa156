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

    fn free_bytes(&self) -> anyhow::Result<u64> {
        let found = statvfs(&self.mounted).context("statvfs")?;
        Ok(found.blocks_available() * found.fragment_size())
    }

    /// Fills it, but for so many bytes.
    pub(crate) fn fill(&self, leave_bytes: u64) -> anyhow::Result<()> {
        let ballast = File::create(self.ballast())?;
        // The log takes room, and gives it back, meanwhile.
        for _ in 0..20 {
            let length = i64::try_from(ballast.metadata()?.len() + self.free_bytes()?.saturating_sub(leave_bytes))?;
            if length == 0 || posix_fallocate(&ballast, 0, length).is_ok() {
                return Ok(());
            }
        }
        // What could not be had was taken by another: full it is.
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

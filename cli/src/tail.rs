//! The last lines of a log in files, for who comes after: where a process is started again in place, nobody else keeps what it said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// After so many bytes the file becomes the former one, and what was the former one is gone.
const LIMIT_BYTES: u64 = 64 << 10;

/// Two files with the end of what was said; at most 128 KiB.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    /// The file that is written to, and how much is in it.
    file: Mutex<(File, u64)>,
}

impl Tail {
    /// Begins anew: what is in the files is gone.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let former = former(path);
        match fs::remove_file(&former) {
            Err(problem) if problem.kind() != io::ErrorKind::NotFound => return Err(problem),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), file: Mutex::new((file, 0)) })
    }
}

/// The last lines that were written there; none if there are no such files.
pub(crate) fn last_lines(path: &Path, most: usize) -> Vec<String> {
    let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let text = read(&former(path)) + &read(path);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(most)..].iter().map(|line| (*line).to_owned()).collect()
}

fn former(path: &Path) -> PathBuf {
    path.with_extension("former")
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(true).open(path)
}

impl Write for &Tail {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.1 >= LIMIT_BYTES {
            fs::rename(&self.path, former(&self.path))?;
            *file = (open(&self.path)?, 0);
        }
        file.0.write_all(line)?;
        file.1 += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_the_rest_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(last_lines(&path, 3).is_empty());
        let tail = Tail::begin(&path).unwrap();
        for number in 0..20_000 {
            (&tail).write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        assert_eq!(last_lines(&path, 3), ["line 19997", "line 19998", "line 19999"]);
        let kept: u64 = [path.clone(), former(&path)].iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(kept <= 2 * (LIMIT_BYTES + 100), "{kept}");
        // A process that begins has nothing to say of the one before: that was read.
        let _tail = Tail::begin(&path).unwrap();
        assert!(last_lines(&path, 3).is_empty());
    }
}

//! What is added to files while a run goes on: the processes' own words, and how far the callers have come.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

/// A file that is read as it grows.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    position: u64,
    half_line: Vec<u8>,
}

/// What is read of one file at once.
const AT_ONCE_BYTES: u64 = 4 << 20;

impl Tail {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, position: 0, half_line: Vec::new() }
    }

    /// Calls back for each complete line that was added since the last time.
    pub(crate) fn read(&mut self, mut each: impl FnMut(&str)) {
        // A file that is not there yet has said nothing.
        let Ok(mut file) = File::open(&self.path) else { return };
        let mut bytes = std::mem::take(&mut self.half_line);
        if file.seek(SeekFrom::Start(self.position)).is_err() {
            return;
        }
        self.position += u64::try_from(file.take(AT_ONCE_BYTES).read_to_end(&mut bytes).unwrap_or(0)).unwrap_or(0);
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.half_line = bytes.split_off(end);
        String::from_utf8_lossy(&bytes).lines().for_each(&mut each);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn each_line_is_read_once_and_only_when_it_is_complete() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut tail = Tail::new(file.path().to_owned());
        let read = |tail: &mut Tail| {
            let mut lines = Vec::new();
            tail.read(|line| lines.push(line.to_owned()));
            lines
        };
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(read(&mut tail), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(read(&mut tail), ["two", "three"]);
        assert!(read(&mut tail).is_empty());
    }
}

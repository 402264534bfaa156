//! What a person sees: the apps' lines with their names in front, and between them what `up` does.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::sync::{mpsc, oneshot};

/// Lines that may wait for a slow terminal; then the apps wait, as they would for the terminal itself.
const WAITING_LINES: usize = 1024;
/// A longer line of an app is shown in pieces.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Takes lines; cheap to clone. A thread of its own writes them, so that a terminal that stands still holds up nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    lines: mpsc::Sender<Work>,
    unseen: Arc<AtomicU64>,
}

/// Who says something.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    name: Arc<str>,
    style: Style,
}

#[derive(Debug)]
enum Work {
    Write(Line),
    /// Everything before this has been written.
    Tell(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Line {
    source: Source,
    text: String,
    tone: Tone,
}

/// How something is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// What was said by others, as it is.
    Plain,
    /// News.
    News,
    /// Good news.
    Good,
    /// Something that the user should look at.
    Trouble,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::News => Style::new().bold(),
            Self::Good => AnsiColor::Green.on_default().bold(),
            Self::Trouble => AnsiColor::Yellow.on_default().bold(),
        }
    }
}

impl Source {
    /// `up` itself.
    pub(crate) fn bluebox() -> Self {
        Self { name: "bluebox".into(), style: AnsiColor::BrightBlue.on_default().bold() }
    }

    /// The box with this number, in the order of the file.
    pub(crate) fn numbered(name: &str, number: usize) -> Self {
        const COLOURS: [AnsiColor; 6] =
            [AnsiColor::Cyan, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Yellow, AnsiColor::BrightCyan, AnsiColor::BrightMagenta];
        Self { name: name.into(), style: COLOURS[number % COLOURS.len()].on_default() }
    }

    /// Its proxy.
    pub(crate) fn proxy(&self) -> Self {
        Self { name: format!("{} proxy", self.name).into(), style: self.style.dimmed() }
    }
}

impl Output {
    /// Starts writing, names padded to `width`.
    pub(crate) fn start(width: usize) -> anyhow::Result<Self> {
        let (lines, mut waiting) = mpsc::channel(WAITING_LINES);
        let unseen = Arc::new(AtomicU64::new(0));
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let missed = unseen.clone();
        std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            while let Some(work) = waiting.blocking_recv() {
                let Line { source, text, tone } = match work {
                    Work::Write(line) => line,
                    Work::Tell(written) => {
                        let _ = written.send(());
                        continue;
                    }
                };
                let missed = missed.swap(0, Ordering::Relaxed);
                let mut out = std::io::stdout().lock();
                // A reader that went away is no reason to stop the system.
                if missed > 0 {
                    let _ = writeln!(out, "({missed} lines of bluebox were not shown: the terminal was too slow)");
                }
                let name = &source.name;
                let _ = if coloured {
                    let (bar, tone) = (source.style, tone.style());
                    writeln!(out, "{bar}{name:<width$} |{bar:#} {tone}{text}{tone:#}")
                } else {
                    writeln!(out, "{name:<width$} | {text}")
                };
                let _ = out.flush();
            }
        })?;
        Ok(Self { lines, unseen })
    }

    /// Says something of `up` itself. Never waits.
    pub(crate) fn say(&self, tone: Tone, text: impl Into<String>) {
        let line = Line { source: Source::bluebox(), text: text.into(), tone };
        if self.lines.try_send(Work::Write(line)).is_err() {
            self.unseen.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Shows what a process writes, until it ends or closes its end.
    pub(crate) async fn copy(self, source: Source, from: impl AsyncRead + Unpin) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while let Ok(1..) = { (&mut from).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await } {
            let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            if self.lines.send(Work::Write(Line { source: source.clone(), text, tone: Tone::Plain })).await.is_err() {
                return;
            }
            line.clear();
        }
    }

    /// Waits until everything that was said has been written, but not for a terminal that stands still.
    pub(crate) async fn flush(&self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let (tell, written) = oneshot::channel();
        let flushed = async {
            if self.lines.send(Work::Tell(tell)).await.is_ok() {
                let _ = written.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, flushed).await;
    }
}

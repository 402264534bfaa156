//! What a process takes from the machine, as the kernel counts it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

/// What a process has used since its start, as far as its threads still live.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    /// Time on a processor.
    pub(crate) cpu: Duration,
    /// How often one of its threads has waited.
    pub(crate) waits: u64,
}

impl Used {
    /// What two have used together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, waits: self.waits + other.waits }
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), waits: self.waits.saturating_sub(before.waits) }
    }
}

/// What a process has used so far.
pub(crate) fn used(pid: i32) -> anyhow::Result<Used> {
    Ok(used_by_threads(pid)?.into_values().fold(Used::default(), Used::and))
}

/// What the threads of a process have used so far, by their names: those of one name together.
pub(crate) fn used_by_threads(pid: i32) -> anyhow::Result<BTreeMap<String, Used>> {
    let tasks = process(pid).join("task");
    let mut threads = BTreeMap::<String, Used>::new();
    for task in std::fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
        let task = task?.path();
        if let (Ok(name), Some(used)) = (std::fs::read_to_string(task.join("comm")), used_by_thread(&task)) {
            let sum = threads.entry(name.trim().to_owned()).or_default();
            *sum = sum.and(used);
        }
    }
    Ok(threads)
}

/// `None` if it has ended.
fn used_by_thread(task: &Path) -> Option<Used> {
    let (schedstat, status) = (std::fs::read_to_string(task.join("schedstat")).ok()?, std::fs::read_to_string(task.join("status")).ok()?);
    let nanos = schedstat.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
    Some(Used { cpu: Duration::from_nanos(nanos), waits: number(&status, "voluntary_ctxt_switches:").unwrap_or(0) })
}

/// How many bytes of a process are in memory.
pub(crate) fn resident_bytes(pid: i32) -> anyhow::Result<u64> {
    kilobytes(pid, "VmRSS:")
}

/// The largest [`resident_bytes`] since [`forget_peak`].
pub(crate) fn peak_bytes(pid: i32) -> anyhow::Result<u64> {
    kilobytes(pid, "VmHWM:")
}

/// From now on the peak is counted anew.
pub(crate) fn forget_peak(pid: i32) -> anyhow::Result<()> {
    let file = process(pid).join("clear_refs");
    std::fs::write(&file, "5").with_context(|| file.display().to_string())
}

/// How many threads a process has.
pub(crate) fn threads(pid: i32) -> anyhow::Result<u64> {
    let file = process(pid).join("status");
    let status = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    number(&status, "Threads:").with_context(|| format!("{}: no Threads", file.display()))
}

fn kilobytes(pid: i32, name: &str) -> anyhow::Result<u64> {
    let file = process(pid).join("status");
    let status = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(number(&status, name).with_context(|| format!("{}: no {name}", file.display()))? * 1024)
}

fn process(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn number(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Takes as many open files as this process may have: each caller is one.
pub(crate) fn open_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Where it can't be had, the limit that there is will be told when it is met.
    let _ = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}

/// The machine, in words.
pub(crate) fn machine() -> serde_json::Value {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, model)| model.trim())).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse::<f64>().ok());
    serde_json::json!({
        "cpu": model, "cores": cores, "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "memory_bytes": number(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0) * 1024,
        "load_average_at_start": load,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let used = used(pid).unwrap();
        assert!(used.cpu > Duration::ZERO);
        assert!(resident_bytes(pid).unwrap() > 100_000);
        assert!(peak_bytes(pid).unwrap() >= resident_bytes(pid).unwrap() / 2);
        assert!(threads(pid).unwrap() >= 1);
    }
}

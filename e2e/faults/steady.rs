//! Load without faults, for a long time: whether what the proxies take from the machine grows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::clock::Moment;
use crate::system::System;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);
/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// The first part of the time is warm-up: of an hour and a half, half an hour. Until then the indexes of outcomes and the buffers of the Kafka client fill.
const WARM_UP_SHARE: f64 = 1.0 / 3.0;
/// What counts as growth, for runs that are long enough to tell.
const MOST_MB_PER_HOUR: f64 = 1.0;
/// Below this the slope is noise, and only reported.
const LONG_ENOUGH: Duration = Duration::from_secs(55 * 60);

/// What a process takes at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    hours: f64,
    resident_mb: f64,
    files: f64,
    threads: f64,
}

/// How what a proxy takes has grown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Growth {
    pub(crate) proxy: String,
    pub(crate) mb_per_hour: f64,
    resident_mb: (f64, f64),
    files: (f64, f64),
    threads: (f64, f64),
    long_enough: bool,
}

impl Growth {
    /// Whether it is more than may be, as far as can be told.
    pub(crate) fn is_too_much(&self) -> bool {
        let grown = |(first, last): (f64, f64)| last > first * 1.1 + 2.0;
        self.long_enough && (self.mb_per_hour > MOST_MB_PER_HOUR || grown(self.files) || grown(self.threads))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "proxy": self.proxy, "mb_per_hour": rounded(self.mb_per_hour),
            "resident_mb": { "after_warm_up": rounded(self.resident_mb.0), "at_the_end": rounded(self.resident_mb.1) },
            "open_files": { "after_warm_up": self.files.0, "at_the_end": self.files.1 },
            "threads": { "after_warm_up": self.threads.0, "at_the_end": self.threads.1 },
        })
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Watches the proxies for so long.
pub(crate) async fn watch(system: &mut System, time: Duration) -> anyhow::Result<Vec<Growth>> {
    let began = Moment::now();
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let mut said = began;
    while Moment::now().since(began) < time {
        for (name, pid) in system.proxies() {
            if let Some(sample) = sample(pid, Moment::now().since(began)) {
                samples.entry(name).or_default().push(sample);
            }
        }
        system.pass(EVERY).await?;
        if Moment::now().since(said) >= SAY_EVERY {
            said = Moment::now();
            let now: Vec<_> = samples.iter().filter_map(|(name, all)| Some(format!("{name} {:.1} MB", all.last()?.resident_mb))).collect();
            println!("  {} min, {} outcomes; {}", said.since(began).as_secs() / 60, system.outcomes, now.join(", "));
        }
    }
    let from = time.as_secs_f64() * WARM_UP_SHARE / 3_600.0;
    let warm = samples.into_iter().map(|(proxy, all)| (proxy, all.into_iter().filter(|sample| sample.hours >= from).collect::<Vec<_>>()));
    Ok(warm.filter_map(|(proxy, samples)| growth(proxy, &samples, time >= LONG_ENOUGH)).collect())
}

fn sample(pid: i32, at: Duration) -> Option<Sample> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let number = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
    let files = u32::try_from(std::fs::read_dir(process.join("fd")).ok()?.count()).ok()?;
    Some(Sample { hours: at.as_secs_f64() / 3_600.0, resident_mb: number("VmRSS:")? / 1024.0, files: f64::from(files), threads: number("Threads:")? })
}

fn growth(proxy: String, samples: &[Sample], long_enough: bool) -> Option<Growth> {
    let (first, last) = (samples.first()?, samples.last()?);
    // The slope of the line that lies least far from all of them.
    let count = f64::from(u32::try_from(samples.len()).ok()?);
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (hours, megabytes) = (mean(|s| s.hours), mean(|s| s.resident_mb));
    let spread: f64 = samples.iter().map(|s| (s.hours - hours).powi(2)).sum();
    let slope = if spread > 0.0 { samples.iter().map(|s| (s.hours - hours) * (s.resident_mb - megabytes)).sum::<f64>() / spread } else { 0.0 };
    Some(Growth {
        proxy,
        mb_per_hour: slope,
        resident_mb: (first.resident_mb, last.resident_mb),
        files: (first.files, last.files),
        threads: (first.threads, last.threads),
        long_enough,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(mb_per_hour: f64) -> Vec<Sample> {
        (0..60).map(|n| f64::from(n) / 60.0).map(|hours| Sample { hours, resident_mb: 20.0 + mb_per_hour * hours, files: 30.0, threads: 8.0 }).collect()
    }

    #[test]
    fn growth_is_seen_and_a_flat_line_is_none() {
        let grows = growth("a".into(), &samples(3.0), true).unwrap();
        assert!((grows.mb_per_hour - 3.0).abs() < 0.001 && grows.is_too_much());
        assert!(!growth("a".into(), &samples(0.5), true).unwrap().is_too_much());
        assert!(!growth("a".into(), &samples(3.0), false).unwrap().is_too_much());
    }

    #[test]
    fn files_that_stay_open_are_seen() {
        let mut leak = samples(0.0);
        leak.last_mut().unwrap().files = 300.0;
        assert!(growth("a".into(), &leak, true).unwrap().is_too_much());
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let found = sample(i32::try_from(std::process::id()).unwrap(), Duration::from_secs(36)).unwrap();
        assert!(found.resident_mb > 0.1 && found.files >= 3.0 && found.threads >= 1.0 && (found.hours - 0.01).abs() < 1e-9);
    }
}

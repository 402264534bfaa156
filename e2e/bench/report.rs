//! What is printed, and written to `target/bench.json`.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::options::{LogKind, RunOptions};
use crate::usage;

/// The figures of a run.
pub(crate) struct Report {
    output: PathBuf,
    add_as: Option<String>,
    figures: Map<String, Value>,
}

impl Report {
    /// Nothing yet, but the machine.
    pub(crate) fn begin(options: &RunOptions) -> anyhow::Result<Self> {
        let log = match options.log {
            LogKind::Kafka => format!("Apache Kafka {}", kafka_version().unwrap_or_else(|| "of unknown version".to_owned())),
            LogKind::Embedded => "embedded".to_owned(),
        };
        let brokers = options.brokers.as_ref().filter(|_| options.log == LogKind::Kafka).map(|list| list.split(',').count());
        let about = json!({
            "machine": usage::machine(), "log": log, "brokers": brokers, "body_bytes": options.body, "rounds": options.rounds,
            "calls_per_round": options.calls, "seconds_per_round": options.time.as_secs_f64(), "version": env!("CARGO_PKG_VERSION"), "proxy_flags": options.tested.proxy_flag,
        });
        Ok(Self { output: options.output.clone(), add_as: options.add_as.clone(), figures: Map::from_iter([("about".to_owned(), about)]) })
    }

    /// Says how far it is.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Says how many rounds of one part are over.
    pub(crate) fn progress(&self, done: u32, of: u32) {
        eprintln!("  {done} of {of}");
    }

    /// Adds figures. What is an object already gets further fields.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        match (self.figures.get_mut(name), value) {
            (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
            (_, value) => drop(self.figures.insert(name.to_owned(), value)),
        }
    }

    /// Writes what there is so far.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let whole = match &self.add_as {
            None => Value::Object(self.figures.clone()),
            Some(name) => {
                let text = std::fs::read_to_string(&self.output).with_context(|| format!("{}: no earlier run to add to", self.output.display()))?;
                let mut whole: Map<String, Value> = serde_json::from_str(&text).with_context(|| self.output.display().to_string())?;
                whole.insert(name.clone(), Value::Object(self.figures.clone()));
                Value::Object(whole)
            }
        };
        if let Some(directory) = self.output.parent() {
            std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        std::fs::write(&self.output, format!("{whole:#}\n")).with_context(|| self.output.display().to_string())
    }

    /// Prints the tables.
    pub(crate) fn print(&self) {
        println!("{}", tables(&self.figures));
        println!("All figures: {}", self.output.display());
    }
}

/// The version of Kafka that `scripts/kafka` starts. Another broker that was named may have another.
fn kafka_version() -> Option<String> {
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka")).ok()?;
    script.lines().find_map(|line| line.strip_prefix("KAFKA_VERSION=")).map(str::to_owned)
}

/// A figure of a figure.
pub(crate) fn figure(figures: &Map<String, Value>, name: &str, field: &str) -> Option<f64> {
    figures.get(name)?.get(field)?.as_f64()
}

const MEBIBYTE: f64 = 1_048_576.0;

/// The figures for a reader, as tables in Markdown.
pub(crate) fn tables(figures: &Map<String, Value>) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let about = &figures["about"];
    let machine = &about["machine"];
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "\n{}, {} cores, Linux {}; log: {}; brokers: {}; bodies of {} bytes\n",
        machine["cpu"].as_str().unwrap_or(""),
        machine["cores"],
        machine["kernel"].as_str().unwrap_or(""),
        about["log"].as_str().unwrap_or(""),
        about["brokers"],
        about["body_bytes"]
    );
    let _ = writeln!(text, "| one after the other | p50 | p90 | p99 | p99.9 | p50 to floor | p99 to floor |\n|---|---|---|---|---|---|---|");
    for name in ["floor", "direct", "passthrough", "durable"] {
        let Some(p50) = figure(figures, name, "p50_us") else { continue };
        let of = |field| figure(figures, name, field).unwrap_or(0.0);
        let ratio = |field| figure(figures, "floor", field).map_or_else(|| "–".to_owned(), |floor| format!("{:.2}", of(field) / floor));
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} |",
            millis(p50),
            millis(of("p90_us")),
            millis(of("p99_us")),
            millis(of("p999_us")),
            ratio("p50_us"),
            ratio("p99_us")
        );
    }
    let many: Vec<_> = figures.keys().filter(|name| name.starts_with("floor_") || name.starts_with("durable_")).collect();
    if !many.is_empty() {
        let _ = writeln!(text, "\n| many at once | calls/s | p50 | p99 | share of the floor |\n|---|---|---|---|---|");
    }
    for name in many {
        let of = |field| figure(figures, name, field).unwrap_or(0.0);
        let floor = name.strip_prefix("durable_").and_then(|count| figure(figures, &format!("floor_{count}"), "per_second"));
        let share = floor.map_or_else(|| "–".to_owned(), |floor| format!("{:.2}", of("per_second") / floor));
        let _ = writeln!(text, "| {name} | {:.0} | {} | {} | {share} |", of("per_second"), millis(of("p50_us")), millis(of("p99_us")));
    }
    if let Some(rates) = figures.get("open_loop").and_then(Value::as_object) {
        let _ = writeln!(text, "\n| at a given rate | p50 | p99 | p99.9 |\n|---|---|---|---|");
        for rate in rates.keys() {
            let of = |field| figure(rates, rate, field).unwrap_or(0.0);
            let _ = writeln!(text, "| {rate}/s | {} | {} | {} |", millis(of("p50_us")), millis(of("p99_us")), millis(of("p999_us")));
        }
    }
    if let Some(slow) = figures.get("slow_calls").and_then(Value::as_object) {
        let of = |name, field| figure(slow, name, field).map_or_else(String::new, millis);
        let _ = writeln!(
            text,
            "\nOne call in a hundred takes a second: the others' p50 {}, p99 {}; without slow ones {}, {}",
            of("others", "p50_us"),
            of("others", "p99_us"),
            of("without_slow", "p50_us"),
            of("without_slow", "p99_us")
        );
    }
    if let Some(transactions) = figures.get("transactions").and_then(Value::as_object) {
        let of = |name, field| figure(transactions, name, field).map_or_else(String::new, millis);
        let times = transactions.get("times_the_floor_p50").and_then(Value::as_f64).map_or_else(String::new, |times| format!(": {times:.2} times the floor"));
        let _ = writeln!(
            text,
            "\nA transaction (start, two joins, close): p50 {}, p99 {}; as many bare round trips {}, {}{times}",
            of("alone", "p50_us"),
            of("alone", "p99_us"),
            of("floor", "p50_us"),
            of("floor", "p99_us")
        );
        if let Some(times) = transactions.get("times_its_calls_p50").and_then(Value::as_f64) {
            let count = |name| transactions.get(name).and_then(Value::as_u64).unwrap_or(0);
            let _ = writeln!(
                text,
                "\nIts {} durable calls alone, one after the other: p50 {}, p99 {}; a transaction, with {} records of its state, takes {times:.2} times that",
                count("durable_calls"),
                of("calls", "p50_us"),
                of("calls", "p99_us"),
                count("awaited_records")
            );
        }
        let number = |name, field| figure(transactions, name, field).unwrap_or(0.0);
        if let Some(many) = transactions.get("many") {
            let last = |field: &str| many.get(field).and_then(|all| all.as_array()?.last()?.as_f64()).unwrap_or(0.0) / MEBIBYTE;
            let _ = writeln!(
                text,
                "\n{} transactions at once: the transaction manager takes {:.1} MiB before, {:.1} MiB at most the last time, {:.1} MiB afterwards",
                number("many", "at_once"),
                number("many", "rest_rss_bytes") / MEBIBYTE,
                last("peak_rss_bytes"),
                last("left_rss_bytes")
            );
        }
        if transactions.contains_key("recovery") {
            let _ = writeln!(
                text,
                "\n{} open transactions, begun in {:.0} s, go on {:.1} s after the death of their manager; it takes {:.0} MiB",
                number("recovery", "open"),
                number("recovery", "begun_in_s"),
                number("recovery", "recovered_in_s"),
                number("recovery", "recovered_rss_bytes") / MEBIBYTE
            );
        }
    }
    let _ = writeln!(text, "\n| a proxy | |\n|---|---|");
    let mut line = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "| {what} | {value} |");
        }
    };
    let mebibytes = |bytes: f64| format!("{:.1} MiB", bytes / MEBIBYTE);
    let proxy = |field| figure(figures, "proxy", field);
    line("resident at rest", proxy("rest_rss_bytes").map(mebibytes));
    line("resident under load", proxy("load_rss_bytes").map(mebibytes));
    line("processor time of both for 1,000 calls, one after the other", proxy("sequential_cpu_ms_per_1000_calls").map(|ms| format!("{ms:.0} ms")));
    line("the same with many at once", proxy("cpu_ms_per_1000_calls").map(|ms| format!("{ms:.0} ms")));
    line("waits of their threads per call, one after the other", proxy("sequential_waits_per_call").map(|waits| format!("{waits:.1}")));
    line("many who wait, beyond their bytes", figure(figures, "waiting", "beyond_bodies_bytes").map(mebibytes));
    for way in ["request", "answer"] {
        let large = figures.get("body_64_mib").and_then(|large| large.get(way));
        for side in ["caller", "callee"] {
            let bytes = large.and_then(|large| large.get(format!("{side}_more_bytes"))?.as_f64());
            line(&format!("a {way} of 64 MiB, at the {side}"), bytes.map(mebibytes));
        }
    }
    text
}

fn millis(micros: f64) -> String {
    format!("{:.2} ms", micros / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_ratios_to_the_floor_of_the_same_run() {
        let Value::Object(figures) = json!({
            "about": { "machine": { "cpu": "a", "cores": 2, "kernel": "6" }, "log": "Kafka", "brokers": 1, "body_bytes": 1024 },
            "floor": { "p50_us": 1000.0, "p99_us": 3000.0 }, "durable": { "p50_us": 1500.0, "p99_us": 6000.0 },
            "floor_64": { "per_second": 9000.0 }, "durable_64": { "per_second": 3000.0 },
            "transactions": {
                "alone": { "p50_us": 6000.0, "p99_us": 9000.0 }, "floor": { "p50_us": 3000.0, "p99_us": 4000.0 }, "times_the_floor_p50": 2.0,
                "calls": { "p50_us": 4000.0, "p99_us": 5000.0 }, "times_its_calls_p50": 1.5, "durable_calls": 5, "awaited_records": 5,
            },
        }) else {
            panic!()
        };
        let text = tables(&figures);
        assert!(text.contains("| durable | 1.50 ms | 0.00 ms | 6.00 ms | 0.00 ms | 1.50 | 2.00 |"), "{text}");
        assert!(text.contains("bare round trips 3.00 ms, 4.00 ms: 2.00 times the floor"), "{text}");
        assert!(
            text.contains(
                "5 durable calls alone, one after the other: p50 4.00 ms, p99 5.00 ms; a transaction, with 5 records of its state, takes 1.50 times that"
            ),
            "{text}"
        );
        assert!(text.contains("| durable_64 | 3000 | 0.00 ms | 0.00 ms | 0.33 |"), "{text}");
    }

    #[test]
    fn the_broker_has_a_version() {
        assert!(kafka_version().unwrap().starts_with(char::is_numeric));
    }
}

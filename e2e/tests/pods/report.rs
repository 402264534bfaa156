//! What came of it all: `target/e2e.json`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Filled while checks run, some at once.
#[derive(Default)]
pub(crate) struct Report {
    checks: Mutex<Vec<(String, Result<Duration, String>)>>,
    recovery_ms: Mutex<BTreeMap<String, u128>>,
    more: Mutex<Map<String, Value>>,
}

impl Report {
    /// How a check ended.
    pub(crate) fn check(&self, name: &str, result: Result<Duration, String>) {
        match &result {
            Ok(time) => println!("ok      {name} ({:.1} s)", time.as_secs_f64()),
            Err(why) => println!("FAILED  {name}: {why}"),
        }
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), result));
    }

    /// How long a box took from a loss to answering again.
    pub(crate) fn recovered(&self, case: &str, time: Duration) {
        println!("        {case}: answers again after {:.1} s", time.as_secs_f64());
        self.recovery_ms.lock().unwrap_or_else(PoisonError::into_inner).insert(case.to_owned(), time.as_millis());
    }

    /// Something else that was found out.
    pub(crate) fn found(&self, what: &str, value: Value) {
        println!("        {what}: {value}");
        self.more.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned(), value);
    }

    /// Writes it, and says whether all is right.
    pub(crate) fn write(&self) -> bool {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let list: Vec<_> = checks
            .iter()
            .map(|(name, result)| match result {
                Ok(time) => json!({"check": name, "passed": true, "ms": time.as_millis()}),
                Err(why) => json!({"check": name, "passed": false, "why": why}),
            })
            .collect();
        let recovery = &*self.recovery_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let report = json!({"checks": list, "recoveryMs": recovery, "found": &*self.more.lock().unwrap_or_else(PoisonError::into_inner)});
        let path = std::env::var("E2E_REPORT").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e.json").to_owned());
        std::fs::write(&path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
        println!("the report is in {path}");
        checks.iter().all(|(_, result)| result.is_ok())
    }
}

//! `bluebox topics`: which topics there are, and which there should be.

use std::io::Write as _;

use bluebox_core::log::TopicSpec;
use bluebox_core::topics::Retention;
use clap::Args;
use futures_util::StreamExt as _;
use serde::Serialize;

use super::{OutputOptions, SystemOptions, write_table};
use crate::units::spell;

/// Questions that are under way at once.
const AT_ONCE: usize = 32;

/// Shows the topics of every registered component: whether they are there, with the partitions that they should have. Those of callers that serve nothing, such as gateways, are
/// not known to the registry, and so are not shown.
///
/// Ends with 3 where something is not as it should be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox topics
  bluebox topics --wrong                       only what is not as it should be
  bluebox topics --brokers kafka:9092 -o json")]
pub(crate) struct TopicsOptions {
    /// Only those that are not as they should be.
    #[arg(long)]
    wrong: bool,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    system: SystemOptions,
}

#[derive(Debug, Serialize)]
struct Topic {
    topic: String,
    wanted: u32,
    there: Option<u32>,
    compacted: bool,
    kept_seconds: Option<u64>,
    verdict: &'static str,
}

/// Shows them; whether all is as it should be.
pub(crate) async fn run(options: TopicsOptions) -> anyhow::Result<bool> {
    let reached = options.system.reach().await?;
    let keep = Retention::default();
    let mut wanted = vec![TopicSpec { topic: reached.prefix.registry(), partitions: 1, retention: None, compacted: true, compaction_lag: None }];
    for (name, component) in reached.registry().await?.iter() {
        let topics = reached.prefix.topics(name);
        wanted.extend(topics.callee_specs(component.class, component.partitions, &keep));
        wanted.extend(topics.caller_specs(&keep));
    }
    let log = &reached.log;
    let found: Vec<_> =
        futures_util::stream::iter(wanted).map(|spec| async move { (log.partitions(&spec.topic).await, spec) }).buffered(AT_ONCE).collect().await;
    let mut topics = Vec::new();
    for (there, spec) in found {
        let there = there?;
        let verdict = match there {
            None => "missing",
            Some(there) if there != spec.partitions => "other partitions",
            Some(_) => "ok",
        };
        topics.push(Topic {
            topic: spec.topic.as_str().to_owned(),
            wanted: spec.partitions,
            there,
            compacted: spec.compacted,
            kept_seconds: spec.retention.map(|keep| keep.as_secs()),
            verdict,
        });
    }
    let fine = topics.iter().all(|topic| topic.verdict == "ok");
    topics.retain(|topic| !options.wrong || topic.verdict != "ok");
    let mut out = std::io::stdout().lock();
    if options.output.is_json() {
        writeln!(out, "{}", serde_json::to_string_pretty(&topics)?)?;
        return Ok(fine);
    }
    let head = [("TOPIC", false), ("PARTITIONS", true), ("SHOULD BE", true), ("KEPT", false), ("", false)];
    let row = |topic: &Topic| {
        let kept = topic.kept_seconds.map_or_else(|| "for ever".to_owned(), |seconds| spell(std::time::Duration::from_secs(seconds)));
        vec![
            topic.topic.clone(),
            topic.there.map_or_else(|| "-".to_owned(), |there| there.to_string()),
            topic.wanted.to_string(),
            if topic.compacted { format!("{kept}, compacted") } else { kept },
            topic.verdict.to_owned(),
        ]
    };
    if options.wrong && fine {
        writeln!(out, "all topics are as they should be")?;
        return Ok(fine);
    }
    write_table(&mut out, &head, &topics.iter().map(row).collect::<Vec<_>>())?;
    Ok(fine)
}

//! `bluebox topics`: which topics there are and how they are kept, and which there should be.

use std::io::Write as _;
use std::time::Duration;

use bluebox_core::log::{TopicSettings, TopicSpec};
use bluebox_core::routing::Routing;
use bluebox_core::topics::Retention;
use clap::Args;
use futures_util::StreamExt as _;
use http::Method;
use serde::{Deserialize, Serialize};

use super::{OutputOptions, Reached, SystemOptions, Whom, get, write_table};
use crate::proxy::KeepOptions;
use crate::units::spell;

/// Questions that are under way at once.
const AT_ONCE: usize = 32;

/// Shows the topics of every registered component: whether they are there, with the partitions that they should have, and whether they are kept as long as they should be. Those of
/// callers that serve nothing, such as gateways, are not known to the registry, and so are not shown.
///
/// Ends with 3 where something is not as it should be. Proxies that are told to keep topics for other times are told so by --keep-calls and the others; say the same here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox topics
  bluebox topics --wrong                       only what is not as it should be
  bluebox topics --brokers kafka:9092 -o json
  bluebox topics --context production")]
pub(crate) struct TopicsOptions {
    /// Only those that are not as they should be.
    #[arg(long)]
    wrong: bool,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    keep: KeepOptions,
    #[command(flatten)]
    system: SystemOptions,
}

/// A topic, as it is and as it should be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Topic {
    topic: String,
    /// Partitions that it should have.
    wanted: u32,
    /// Partitions that it has; none: it is not there.
    there: Option<u32>,
    /// Whether it should be compacted.
    compacted: bool,
    /// How long it should keep a record; none: for ever.
    kept_seconds: Option<u64>,
    /// `ok`, `missing`, `other partitions` or `other settings`.
    verdict: String,
    /// What is not as it should be about its settings.
    problems: Vec<String>,
}

/// Shows them; whether all is as it should be.
pub(crate) async fn run(options: TopicsOptions) -> anyhow::Result<bool> {
    let keep = options.keep.retention();
    let mut topics = match options.system.whom().await? {
        Whom::Watch(door) => get::json(Method::GET, &door, &format!("/v1/topics?{}", query(&keep))).await?,
        Whom::Log(reached) => look(&reached, &keep).await?,
    };
    let fine = topics.iter().all(|topic: &Topic| topic.verdict == "ok");
    topics.retain(|topic| !options.wrong || topic.verdict != "ok");
    let mut out = std::io::stdout().lock();
    if options.output.is_json() {
        writeln!(out, "{}", serde_json::to_string_pretty(&topics)?)?;
        return Ok(fine);
    }
    let head = [("TOPIC", false), ("PARTITIONS", true), ("SHOULD BE", true), ("KEPT", false), ("", false)];
    let row = |topic: &Topic| {
        let kept = topic.kept_seconds.map_or_else(|| "for ever".to_owned(), |seconds| spell(Duration::from_secs(seconds)));
        let problems = if topic.problems.is_empty() { String::new() } else { format!(": {}", topic.problems.join("; ")) };
        vec![
            topic.topic.clone(),
            topic.there.map_or_else(|| "-".to_owned(), |there| there.to_string()),
            topic.wanted.to_string(),
            if topic.compacted { format!("{kept}, compacted") } else { kept },
            format!("{}{problems}", topic.verdict),
        ]
    };
    if options.wrong && fine {
        writeln!(out, "all topics are as they should be")?;
        return Ok(fine);
    }
    write_table(&mut out, &head, &topics.iter().map(row).collect::<Vec<_>>())?;
    Ok(fine)
}

/// How long what should be kept, for one who watches.
fn query(keep: &Retention) -> String {
    let Retention { calls, replies, recorded, dead_letters } = keep;
    let seconds: Vec<String> = [calls, replies, recorded, dead_letters].iter().map(|keep| keep.as_secs().to_string()).collect();
    format!("keep={}", seconds.join(","))
}

/// What [`query`] says; what is usual where nothing is said.
pub(crate) fn keep_of(query: Option<&str>) -> Option<Retention> {
    let Some(query) = query else { return Some(Retention::default()) };
    let seconds: Result<Vec<u64>, _> = query.strip_prefix("keep=")?.split(',').map(str::parse).collect();
    match seconds.ok()?[..] {
        [calls, replies, recorded, dead_letters] => {
            let [calls, replies, recorded, dead_letters] = [calls, replies, recorded, dead_letters].map(Duration::from_secs);
            Some(Retention { calls, replies, recorded, dead_letters })
        }
        _ => None,
    }
}

/// Looks at all of them.
pub(crate) async fn look(reached: &Reached, keep: &Retention) -> anyhow::Result<Vec<Topic>> {
    let mut wanted = vec![TopicSpec { topic: reached.prefix.registry(), partitions: 1, retention: None, compacted: true, compaction_lag: None }];
    for (name, component) in reached.registry().await?.iter() {
        let topics = reached.prefix.topics(name);
        wanted.extend(topics.callee_specs(component.class, component.partitions, keep));
        wanted.extend(topics.caller_specs(keep));
        if component.routing == Routing::Transaction {
            wanted.push(bluebox_txmgr::serve::topic_spec(bluebox_txmgr::serve::topic(&reached.prefix, name), component.partitions));
        }
    }
    let log = &reached.log;
    let settings = log.settings(wanted.iter().map(|spec| spec.topic.clone()).collect()).await?;
    let found: Vec<_> =
        futures_util::stream::iter(wanted).map(|spec| async move { (log.partitions(&spec.topic).await, spec) }).buffered(AT_ONCE).collect().await;
    let largest = log.max_record_bytes();
    found.into_iter().zip(settings).map(|((there, spec), settings)| Ok(judge(&spec, there?, settings.as_ref(), largest))).collect()
}

fn judge(spec: &TopicSpec, there: Option<u32>, settings: Option<&TopicSettings>, largest: usize) -> Topic {
    let problems = settings.map(|settings| problems(spec, settings, largest)).unwrap_or_default();
    let verdict = match there {
        None => "missing",
        Some(there) if there != spec.partitions => "other partitions",
        Some(_) if !problems.is_empty() => "other settings",
        Some(_) => "ok",
    };
    Topic {
        topic: spec.topic.as_str().to_owned(),
        wanted: spec.partitions,
        there,
        compacted: spec.compacted,
        kept_seconds: spec.retention.map(|keep| keep.as_secs()),
        verdict: verdict.to_owned(),
        problems,
    }
}

/// What is not as it should be, with the setting that mends it. What is kept for longer than it has to be does no harm.
fn problems(spec: &TopicSpec, settings: &TopicSettings, largest: usize) -> Vec<String> {
    let mut problems = Vec::new();
    let millis = |keep: Duration| keep.as_millis();
    if settings.compacted != spec.compacted {
        let policy = match (spec.compacted, spec.retention) {
            (false, _) => "delete",
            (true, None) => "compact",
            (true, Some(_)) => "compact,delete",
        };
        let is = if settings.compacted { "is compacted" } else { "is not compacted" };
        problems.push(format!("it {is} (cleanup.policy={policy})"));
    }
    if let Some(lag) = spec.compaction_lag
        && settings.compacted
        && settings.compaction_lag < lag
    {
        let is = spell(settings.compaction_lag);
        problems.push(format!("records are safe from compaction for {is} and not for {} (min.compaction.lag.ms={})", spell(lag), millis(lag)));
    }
    match (settings.retention.filter(|_| settings.deleted), spec.retention) {
        (Some(kept), Some(wanted)) if kept < wanted => {
            problems.push(format!("records are kept for {} and not for {} (retention.ms={})", spell(kept), spell(wanted), millis(wanted)));
        }
        (Some(kept), None) => problems.push(format!("records are kept for {} and not for ever (cleanup.policy=compact)", spell(kept))),
        _ => {}
    }
    if settings.deleted
        && let Some(bytes) = settings.retention_bytes
    {
        problems.push(format!("of a partition only {bytes} bytes are kept, whatever their age (retention.bytes=-1)"));
    }
    if !settings.log_append_time {
        problems.push("a record's time is its producer's, and deadlines count from it (message.timestamp.type=LogAppendTime)".to_owned());
    }
    if settings.max_message_bytes < largest as u64 {
        problems.push(format!("it takes no records above {} bytes, and there are some of {largest} (max.message.bytes)", settings.max_message_bytes));
    }
    problems
}

#[cfg(test)]
mod tests {
    use bluebox_core::log::Topic as Name;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn spec(retention: Option<Duration>, compacted: bool) -> TopicSpec {
        TopicSpec { topic: Name::new("bluebox.cart.calls"), partitions: 4, retention, compacted, compaction_lag: None }
    }

    fn kept(retention: Option<Duration>, compacted: bool, deleted: bool) -> TopicSettings {
        TopicSettings { retention, retention_bytes: None, compacted, compaction_lag: HOUR, deleted, log_append_time: true, max_message_bytes: 1 << 20 }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_setting_that_mends_it() {
        let calls = spec(Some(48 * HOUR), false);
        let good = kept(Some(48 * HOUR), false, true);
        let said = |settings: &TopicSettings, spec: &TopicSpec| problems(spec, settings, 1000).join("; ");
        assert_eq!(said(&good, &calls), "");
        assert_eq!(said(&kept(None, false, true), &calls), "", "what is kept for longer does no harm");
        for (settings, says) in [
            (kept(Some(HOUR), false, true), "retention.ms=172800000"),
            (kept(Some(48 * HOUR), true, false), "cleanup.policy=delete"),
            (TopicSettings { retention_bytes: Some(5), ..good.clone() }, "retention.bytes=-1"),
            (TopicSettings { log_append_time: false, ..good.clone() }, "message.timestamp.type=LogAppendTime"),
            (TopicSettings { max_message_bytes: 999, ..good.clone() }, "max.message.bytes"),
        ] {
            assert!(said(&settings, &calls).contains(says), "{says}: {settings:?}");
        }
        let registry = spec(None, true);
        assert_eq!(said(&kept(Some(HOUR), true, false), &registry), "", "nothing is deleted by age");
        assert!(said(&kept(Some(HOUR), true, true), &registry).contains("cleanup.policy=compact"));
        let transactions = TopicSpec { compaction_lag: Some(6 * HOUR), ..spec(None, true) };
        assert_eq!(said(&TopicSettings { compaction_lag: 6 * HOUR, ..kept(None, true, false) }, &transactions), "");
        assert!(said(&kept(None, true, false), &transactions).contains("min.compaction.lag.ms=21600000"));
    }

    #[test]
    fn a_verdict_names_the_worst() {
        let (calls, short) = (spec(Some(48 * HOUR), false), kept(Some(HOUR), false, true));
        for (there, settings, verdict) in [
            (Some(4), None, "ok"),
            (Some(4), Some(&kept(Some(48 * HOUR), false, true)), "ok"),
            (Some(4), Some(&short), "other settings"),
            (Some(5), Some(&short), "other partitions"),
            (None, None, "missing"),
        ] {
            assert_eq!(judge(&calls, there, settings, 1000).verdict, verdict);
        }
    }

    #[test]
    fn retentions_are_told_to_who_watches() {
        let keep = Retention { calls: HOUR, ..Retention::default() };
        assert_eq!(keep_of(Some(&query(&keep))), Some(keep));
        assert_eq!(keep_of(None), Some(Retention::default()));
        assert_eq!((keep_of(Some("keep=1,2")), keep_of(Some("x")), keep_of(Some("keep=a,b,c,d"))), (None, None, None));
    }
}

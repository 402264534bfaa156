//! How long a record takes through Kafka and back: append to one topic, read it there, append to another, read that. The floor under every durable call.
//!
//! `scripts/kafka run -- cargo run --release -p bluebox-core --example round_trip -- 5000`

use std::time::{Duration, Instant};

use bluebox_core::log::kafka::{KafkaConfig, connect};
use bluebox_core::log::{Entry, Offset, Read, Reader, Record, Topic, TopicSpec};
use bytes::Bytes;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(Ok(2_000), |n| n.parse())?;
    let pause = Duration::from_micros(arguments.next().map_or(Ok(0), |n| n.parse())?);
    let brokers = std::env::var("BLUEBOX_TEST_BROKERS")?;
    let (caller, callee) = (connect(KafkaConfig::new(&brokers))?, connect(KafkaConfig::new(&brokers))?);
    let name = |what: &str| Topic::new(&format!("round-trip-{}-{what}", std::process::id()));
    let spec = |topic: &Topic| TopicSpec { topic: topic.clone(), partitions: 1, retention: None, compacted: false };
    let (calls, replies) = (name("calls"), name("replies"));
    caller.create_topics(vec![spec(&calls), spec(&replies)]).await?;

    let (to, back) = (calls.partition(0), replies.partition(0));
    let mut asked = callee.read(&to, Offset::default());
    let mut answered = caller.read(&back, Offset::default());
    let echo = tokio::spawn(async move {
        loop {
            for entry in batch(&mut asked).await {
                if callee.append(&back, entry.record).await.is_err() {
                    return;
                }
            }
        }
    });

    let body = Bytes::from(vec![b'x'; 1024]);
    let (mut appends, mut trips) = (Vec::new(), Vec::new());
    for round in 0..rounds + 200 {
        let start = Instant::now();
        caller.append(&to, Record::new(body.clone())).await?;
        let appended = start.elapsed();
        batch(&mut answered).await;
        if round >= 200 {
            appends.push(appended);
            trips.push(start.elapsed());
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    echo.abort();
    report("append acknowledged", &mut appends);
    report("round trip", &mut trips);
    Ok(())
}

async fn batch(reader: &mut Reader) -> Vec<Entry> {
    match reader.next().await {
        Some(Read::Entries(entries)) => entries,
        _ => Vec::new(),
    }
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}, max {:?}", at(0.5), at(0.9), at(0.99), at(1.0 - f64::EPSILON));
}

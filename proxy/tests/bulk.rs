//! Bodies, small and large: in, out, bounded, and never half.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bluebox_core::call::{Body, BulkBody};
use bluebox_core::log::embedded::{AppendFault, Embedded};
use bluebox_core::log::{
    Append, Bounds, Committed, GroupSpec, Health, Log, Membership, Offset, Pending, Reader, Record, Timestamp, Topic, TopicPartition, TopicSpec,
};
use bluebox_proxy::bulk::{Bulk, CopyError, GiveOutError, INLINE_BYTES, TakeIn, TakeInError};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

const MIB: usize = 1 << 20;
const LIMITS: TakeIn =
    TakeIn { limit_bytes: 64 << 20, idle_timeout: Duration::from_secs(20), waits_out: false, least_bytes_per_second: 0, longest: Duration::from_secs(3600) };

async fn log_with_a_partition() -> (Arc<Embedded>, TopicPartition) {
    let log = Embedded::in_memory();
    let topic = Topic::new("bulk");
    log.create_topics(vec![TopicSpec {
        topic: topic.clone(),
        partitions: 2,
        retention: Some(Duration::from_secs(3600)),
        compacted: false,
        compaction_lag: None,
    }])
    .await
    .unwrap();
    (log, topic.partition(0))
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|i| (i % 253) as u8).collect::<Vec<_>>().into()
}

/// A body of unknown length that comes in pieces.
fn pieces(of: Bytes, size: usize) -> impl http_body::Body<Data = Bytes, Error = Infallible> {
    let pieces: Vec<_> = of.chunks(size).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    StreamBody::new(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log.clone(), partition.clone(), 8 * MIB);
    for length in [0, 1, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 2 * INLINE_BYTES, 5 * MIB + 7] {
        for piece in [1000, 70_000, 3 * MIB] {
            let content = bytes(length);
            let mut digest = Sha256::new();
            let taken = bulk.take_in(pieces(content.clone(), piece), &LIMITS, Some(&mut digest)).await.unwrap();
            assert_eq!(digest.finalize(), Sha256::digest(&content));
            assert_eq!(matches!(taken.body, Body::Inline(_)), length <= INLINE_BYTES, "{length}");
            let out = bulk.give_out(taken.body, HeaderMap::new());
            assert_eq!(http_body::Body::size_hint(&out).exact(), Some(length as u64));
            assert!(out.collect().await.unwrap().to_bytes() == content, "{length} in pieces of {piece}");
        }
        let known = bulk.take_in(Full::new(bytes(length)), &LIMITS, None).await.unwrap();
        assert!(bulk.give_out(known.body, HeaderMap::new()).collect().await.unwrap().to_bytes() == bytes(length));
    }
}

#[tokio::test]
async fn chunks_of_several_bodies_lie_between_each_other() {
    let (log, partition) = log_with_a_partition().await;
    // With so little memory each body goes on with one chunk at a time; none waits for another for ever.
    let bulk = Bulk::new(log.clone(), partition.clone(), 1);
    let bodies: Vec<_> = (0..12).map(|i| bytes(2 * MIB + i)).collect();
    let tasks: Vec<_> = bodies
        .iter()
        .map(|content| {
            let (bulk, content) = (bulk.clone(), content.clone());
            tokio::spawn(async move { bulk.take_in(pieces(content, 50_000), &LIMITS, None).await.unwrap().body })
        })
        .collect();
    for (task, content) in tasks.into_iter().zip(bodies) {
        let body = task.await.unwrap();
        assert!(bulk.give_out(body, HeaderMap::new()).collect().await.unwrap().to_bytes() == content);
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_at_once_or_as_soon_as_it_is() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log.clone(), partition.clone(), MIB);
    let limits = TakeIn { limit_bytes: 400_000, ..LIMITS };
    let too_large = TakeInError::TooLarge { limit_bytes: 400_000 };
    assert_eq!(bulk.take_in(Full::new(bytes(400_001)), &limits, None).await.unwrap_err(), too_large);
    assert_eq!(log.bounds(&partition).await.unwrap().end, Offset::new(0), "nothing of it was read");
    let endless = StreamBody::new(futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 1000])))));
    assert_eq!(bulk.take_in(endless, &limits, None).await.unwrap_err(), too_large);
    assert!(bulk.take_in(Full::new(bytes(400_000)), &limits, None).await.is_ok());
}

/// A body that gives a little and then nothing more.
struct Stuck(bool);

impl http_body::Body for Stuck {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.0, true) { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x"))))) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_is_given_up() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log, partition, MIB);
    let limits = TakeIn { idle_timeout: Duration::from_secs(30), ..LIMITS };
    assert_eq!(bulk.take_in(Stuck(false), &limits, None).await.unwrap_err(), TakeInError::Idle { after: Duration::from_secs(30) });
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_drop_by_drop_is_given_up() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log, partition, MIB);
    let drops = |pause| {
        StreamBody::new(Box::pin(futures_util::stream::unfold(0, move |sent| async move {
            tokio::time::sleep(pause).await;
            (sent < 200).then(|| (Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 100]))), sent + 1))
        })))
    };
    let limits = TakeIn { least_bytes_per_second: 100, ..LIMITS };
    assert!(bulk.take_in(drops(Duration::from_secs(1)), &limits, None).await.is_ok());
    let slow = bulk.take_in(drops(Duration::from_secs(3)), &limits, None).await;
    assert_eq!(slow.unwrap_err(), TakeInError::TooSlow { least_bytes_per_second: 100 });
    assert!(bulk.take_in(drops(Duration::from_secs(3)), &LIMITS, None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_in_its_time_is_given_up() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log, partition, MIB);
    let drops = StreamBody::new(Box::pin(futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), ()))
    })));
    let limits = TakeIn { longest: Duration::from_secs(90), ..LIMITS };
    assert_eq!(bulk.take_in(drops, &limits, None).await.unwrap_err(), TakeInError::Endless { within: Duration::from_secs(90) });
    assert_eq!(bulk.take_in(Stuck(false), &limits, None).await.unwrap_err(), TakeInError::Idle { after: LIMITS.idle_timeout });
    // Where it may take a pause that is as long as it likes, but not for ever.
    let slow = StreamBody::new(Box::pin(futures_util::stream::unfold(0, |sent| async move {
        tokio::time::sleep(Duration::from_secs(40)).await;
        (sent < 2).then_some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), sent + 1))
    })));
    let limits = TakeIn { waits_out: true, longest: Duration::from_secs(130), ..LIMITS };
    assert!(bulk.take_in(slow, &limits, None).await.is_ok());
    let began = tokio::time::Instant::now();
    assert_eq!(bulk.take_in(Stuck(false), &limits, None).await.unwrap_err(), TakeInError::Idle { after: LIMITS.idle_timeout });
    assert_eq!(began.elapsed(), limits.longest);
}

/// What it takes the log to store a body is not held against its sender.
#[tokio::test(start_paused = true)]
async fn what_the_log_does_not_take_now_is_tried_again_where_nobody_can_send_it_again() {
    let (log, partition) = log_with_a_partition().await;
    let client = log.client();
    let bulk = Bulk::new(client.clone(), partition, MIB).trying_again();
    let limits = TakeIn { longest: Duration::from_secs(10), ..LIMITS };
    for fault in [AppendFault::Refuse, AppendFault::LoseAck, AppendFault::LoseRecord] {
        client.fail_appends(fault, None);
        let content = bytes(2 * MIB + 5);
        let mut taking = Box::pin(bulk.take_in(pieces(content.clone(), 100_000), &limits, None));
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut taking).await.is_err(), "{fault:?}");
        client.heal();
        let taken = taking.await.unwrap();
        assert!(bulk.give_out(taken.body, HeaderMap::new()).collect().await.unwrap().to_bytes() == content, "{fault:?}");
    }
}

#[tokio::test]
async fn memory_is_given_back() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log, partition, 2 * INLINE_BYTES);
    let held: Vec<_> =
        [bulk.take_in(pieces(bytes(10), 10), &LIMITS, None).await.unwrap(), bulk.take_in(pieces(bytes(10), 10), &LIMITS, None).await.unwrap()].into();
    // Both bodies of unknown length hold all there is; a third waits until one is let go.
    let (waits, third) = (bulk.clone(), bytes(10));
    let mut third = tokio::spawn(async move { waits.take_in(pieces(third, 10), &LIMITS, None).await.unwrap() });
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut third).await.is_err(), "it went on without memory");
    drop(held);
    tokio::time::timeout(LIMITS.idle_timeout, third).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_that_breaks_or_cant_be_stored_is_an_error() {
    let (log, partition) = log_with_a_partition().await;
    let client = log.client();
    let bulk = Bulk::new(client.clone(), partition, MIB);
    let frames = [Ok(Frame::data(Bytes::from_static(b"x"))), Err(std::io::Error::other("reset"))];
    let broken = bulk.take_in(StreamBody::new(futures_util::stream::iter(frames)), &LIMITS, None).await.unwrap_err();
    assert_eq!(broken, TakeInError::Broken("reset".to_owned()));
    for fault in [AppendFault::Refuse, AppendFault::LoseAck, AppendFault::LoseRecord] {
        client.fail_appends(fault, None);
        let error = bulk.take_in(Full::new(bytes(MIB)), &LIMITS, None).await.unwrap_err();
        assert!(matches!(error, TakeInError::NotStored(_)), "{fault:?}: {error:?}");
    }
}

#[tokio::test]
async fn trailers_come_along_and_prevent_exact_framing() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log, partition, MIB);
    let mut trailers = HeaderMap::new();
    trailers.append("x-sum", "1".parse().unwrap());
    trailers.append("content-length", "1".parse().unwrap());
    let body = Full::new(Bytes::from_static(b"abc")).with_trailers(std::future::ready(Some(Ok(trailers))));
    let taken = bulk.take_in(body, &LIMITS, None).await.unwrap();
    assert_eq!(taken.trailers.len(), 1);
    let out = bulk.give_out(taken.body, taken.trailers);
    assert_eq!(http_body::Body::size_hint(&out).exact(), None);
    let out = out.collect().await.unwrap();
    assert_eq!(out.trailers().unwrap()["x-sum"], "1");
    assert_eq!(out.to_bytes(), "abc");
}

async fn out(bulk: &Bulk, body: BulkBody) -> Result<Bytes, GiveOutError> {
    Ok(bulk.give_out(Body::Bulk(body), HeaderMap::new()).collect().await?.to_bytes())
}

#[tokio::test]
async fn what_is_not_all_there_is_an_error_and_never_a_shorter_body() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log.clone(), partition.clone(), 4 * MIB);
    let Body::Bulk(good) = bulk.take_in(Full::new(bytes(MIB)), &LIMITS, None).await.unwrap().body else { panic!() };
    assert!(out(&bulk, good.clone()).await.unwrap() == bytes(MIB));

    let other = log.append(&partition, Record::new(Bytes::from_static(b"no chunk"))).await.unwrap().offset;
    let with = |change: fn(&mut BulkBody, Offset)| {
        let mut body = good.clone();
        change(&mut body, other);
        body
    };
    for (body, what) in [
        (with(|b, _| b.len_bytes += 1), "shorter than it says"),
        (with(|b, _| b.len_bytes -= 1), "longer than it says"),
        (with(|b, _| b.chunks.truncate(3)), "a chunk less"),
        (with(|b, other| b.chunks[1] = other), "no chunk"),
    ] {
        assert!(matches!(out(&bulk, body).await, Err(GiveOutError::Mismatch(_))), "{what}");
    }
    let chunks = good.chunks.clone();
    let copy = bulk.writing_to(Topic::new("bulk").partition(1)).copy(&Body::Bulk(good.clone())).await.unwrap();

    log.keep_house(Timestamp::from_millis(u64::MAX));
    assert!(matches!(out(&bulk, good).await, Err(GiveOutError::Missing(_))), "{chunks:?}");
    // The copy is gone with it here, because both partitions keep as long; what counts is that it had been one of its own.
    let Body::Bulk(copy) = copy else { panic!() };
    assert_eq!((copy.partition.partition, copy.len_bytes), (1, MIB as u64));
}

/// As that of a dead letter, which is the last copy.
#[tokio::test(start_paused = true)]
async fn a_body_is_copied_as_soon_as_the_log_gives_it_out() {
    let (log, partition) = log_with_a_partition().await;
    let client = log.client();
    let bulk = Bulk::new(client.clone(), partition.clone(), MIB);
    let body = bulk.take_in(Full::new(bytes(MIB)), &LIMITS, None).await.unwrap().body;
    let copying = bulk.clone().trying_again().writing_to(Topic::new("bulk").partition(1));
    client.disconnect();
    let mut copied = Box::pin(copying.copy(&body));
    assert!(tokio::time::timeout(Duration::from_secs(1000), &mut copied).await.is_err());
    client.reconnect();
    let copy = tokio::time::timeout(Duration::from_secs(100), copied).await.unwrap().unwrap();
    assert!(bulk.give_out(copy, HeaderMap::new()).collect().await.unwrap().to_bytes() == bytes(MIB));
    // What is nowhere is not waited for.
    let nowhere = Body::Bulk(BulkBody { partition, chunks: vec![Offset::new(1000)], len_bytes: 5 });
    assert_eq!(copying.copy(&nowhere).await, Err(CopyError::Unread(GiveOutError::Stalled)));
}

/// A log that can be read by one at a time.
struct OneReader {
    log: Arc<Embedded>,
    place: Arc<Semaphore>,
}

impl Log for OneReader {
    fn read(&self, from: &TopicPartition, at: Offset) -> Reader {
        let (sender, reader) = Reader::new(1);
        let (place, log, from) = (self.place.clone(), self.log.clone(), from.clone());
        tokio::spawn(async move {
            let _place = place.acquire_owned().await;
            let mut inner = log.read(&from, at);
            loop {
                tokio::select! {
                    Some(read) = inner.next() => if sender.send(read).await.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        reader
    }

    fn append(&self, to: &TopicPartition, record: Record) -> Append {
        self.log.append(to, record)
    }

    fn bounds(&self, of: &TopicPartition) -> Pending<Bounds> {
        self.log.bounds(of)
    }

    fn join(&self, group: GroupSpec) -> Membership {
        self.log.join(group)
    }

    fn committed(&self, group: &str, of: Vec<TopicPartition>) -> Pending<Vec<Option<Committed>>> {
        self.log.committed(group, of)
    }

    fn create_topics(&self, topics: Vec<TopicSpec>) -> Pending<()> {
        self.log.create_topics(topics)
    }

    fn partitions(&self, of: &Topic) -> Pending<Option<u32>> {
        self.log.partitions(of)
    }

    fn health(&self) -> tokio::sync::watch::Receiver<Health> {
        self.log.health()
    }

    fn max_record_bytes(&self) -> usize {
        self.log.max_record_bytes()
    }
}

/// Else a few slow clients would keep all others from reading what lies in the same partition.
#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_takes_keeps_no_other_from_being_read() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(Arc::new(OneReader { log, place: Arc::new(Semaphore::new(1)) }), partition, 8 * MIB);
    let content = bytes(3 * MIB);
    let body = bulk.take_in(Full::new(content.clone()), &LIMITS, None).await.unwrap().body;
    let mut slow = bulk.give_out(body.clone(), HeaderMap::new());
    let first = slow.frame().await.unwrap().unwrap().into_data().unwrap();
    let quick = tokio::time::timeout(Duration::from_secs(10), bulk.give_out(body, HeaderMap::new()).collect()).await.unwrap().unwrap();
    assert!(quick.to_bytes() == content);
    let rest = slow.collect().await.unwrap().to_bytes();
    assert!([first, rest].concat() == content, "it goes on where it was");
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_never_comes_is_not_awaited_for_ever() {
    let (log, partition) = log_with_a_partition().await;
    let bulk = Bulk::new(log, partition.clone(), MIB);
    let body = BulkBody { partition, chunks: vec![Offset::new(1000)], len_bytes: 5 };
    assert_eq!(out(&bulk, body).await, Err(GiveOutError::Stalled));
}

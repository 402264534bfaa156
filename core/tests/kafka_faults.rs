//! What only a real Kafka can do wrong: brokers that die, freeze and come back, and members that were frozen while the group went on.
//!
//! These tests start brokers of their own with `scripts/kafka`. They run where `BLUEBOX_TEST_BROKERS` says that tests on Kafka are wanted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bluebox_core::Log;
use bluebox_core::log::kafka::{KafkaConfig, connect};
use bluebox_core::log::{
    AppendError, Committed, GroupEvent, GroupSpec, Health, LogError, Membership, Offset, Read, Reader, Record, Topic, TopicPartition, TopicSpec,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt as _};

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that belongs to one test.
struct Broker {
    dir: PathBuf,
    address: String,
}

impl Broker {
    /// `None` where tests on Kafka are not wanted.
    fn start(name: &str) -> Option<Self> {
        Self::start_with(name, &[])
    }

    fn start_with(name: &str, options: &[&str]) -> Option<Self> {
        if std::env::var_os("BLUEBOX_TEST_BROKERS").is_none() {
            eprintln!("NOT TESTED ON KAFKA: BLUEBOX_TEST_BROKERS is not set; `scripts/kafka run -- cargo test` sets it");
            return None;
        }
        let dir = root().join(format!("target/kafka/faults-{}-{name}", std::process::id()));
        let mut broker = Self { dir, address: String::new() };
        broker.script("start", options);
        broker.address = std::fs::read_to_string(broker.dir.join("brokers")).unwrap().trim().to_owned();
        Some(broker)
    }

    /// One that isn't started, with another way in.
    fn prepare(name: &str) -> Option<Self> {
        let dir = root().join(format!("target/kafka/faults-{}-{name}", std::process::id()));
        let broker = Self { dir, address: String::new() };
        std::env::var_os("BLUEBOX_TEST_BROKERS")?;
        broker.script("prepare", &["--doors", "1"]);
        Some(broker)
    }

    fn script(&self, command: &str, more: &[&str]) {
        let mut script = Command::new(root().join("scripts/kafka"));
        script.arg(command).arg("--dir").arg(&self.dir).args(more).stdout(Stdio::null());
        assert!(script.status().unwrap().success(), "scripts/kafka {command}");
    }

    fn pid(&self) -> Pid {
        self.pid_of(1)
    }

    fn pid_of(&self, node: usize) -> Pid {
        Pid::from_raw(std::fs::read_to_string(self.dir.join(format!("node-{node}/pid"))).unwrap().trim().parse().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Starts it again where it was, with what it had.
    fn restart(&self) {
        self.script("start", &["--keep"]);
    }

    fn client(&self) -> Arc<dyn Log> {
        connect(KafkaConfig::new(&self.address)).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGCONT);
        self.script("stop", &[]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn spec(topic: &Topic, partitions: u32, retention: Option<Duration>) -> TopicSpec {
    TopicSpec { topic: topic.clone(), partitions, retention, compacted: false, compaction_lag: None }
}

fn record(text: &str) -> Record {
    Record::new(text.as_bytes().to_vec().into())
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

async fn until_health(log: &dyn Log, up: bool) {
    let mut health = log.health();
    in_time(if up { "up again" } else { "away" }, health.wait_for(|health| matches!(health, Health::Up) == up)).await.unwrap();
}

/// A broker that has just come back may stumble once more; what is not persisted can be tried again.
async fn append_when_possible(log: &dyn Log, to: &TopicPartition, text: &str) {
    in_time("append", async {
        while let Err(error) = log.append(to, record(text)).await {
            assert!(matches!(error, AppendError::NotPersisted(_)), "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn texts(reader: &mut Reader, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        match in_time("records", reader.next()).await.expect("the reader goes on") {
            Read::Entries(entries) => texts.extend(entries.iter().map(|e| String::from_utf8(e.record.value.as_ref().unwrap().to_vec()).unwrap())),
            truncated @ Read::Truncated { .. } => panic!("{truncated:?}"),
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_everything_says_so_within_a_second() {
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = connect(KafkaConfig::new(&port.to_string())).unwrap();
    let to = Topic::new("t").partition(0);
    let start = Instant::now();
    let first = log.append(&to, record("x")).await;
    assert!(matches!(first, Err(AppendError::NotPersisted(_))), "{first:?}");
    assert!(start.elapsed() < Duration::from_millis(1_000), "{:?}", start.elapsed());
    assert!(matches!(*log.health().borrow(), Health::Away(_)));
    let start = Instant::now();
    assert!(matches!(log.append(&to, record("x")).await, Err(AppendError::NotPersisted(_))));
    assert!(matches!(log.bounds(&to).await, Err(LogError::Unavailable(_))));
    assert!(start.elapsed() < Duration::from_millis(100), "known now: {:?}", start.elapsed());
}

/// A broker behind a relay.
struct Relayed {
    broker: Broker,
    node: Child,
    config: KafkaConfig,
    between: Arc<Between>,
}

/// What the relay does with what the broker answers.
#[derive(Default)]
struct Between {
    late: Duration,
    /// When it changes, the connections that there are get no more answers, and stay.
    era: AtomicU32,
    /// Clients are told that the cluster has no brokers, as a Kafka says whose only broker was fenced for a moment; and which have been.
    no_brokers: AtomicBool,
    told: Mutex<BTreeSet<String>>,
}

impl Relayed {
    async fn start(name: &str, late: Duration) -> Option<Self> {
        let broker = Broker::prepare(name)?;
        let doors = std::fs::read_to_string(broker.dir.join("doors")).unwrap();
        let [listens_at, advertised] = doors.split_whitespace().skip(2).collect::<Vec<_>>()[..] else { panic!("{doors}") };
        let between = Arc::new(Between { late, ..Between::default() });
        relay(advertised, listens_at.to_owned(), between.clone()).await;
        Some(Self { config: KafkaConfig::new(advertised), node: Self::node(&broker), broker, between })
    }

    fn node(broker: &Broker) -> Child {
        let node = Command::new(root().join("scripts/kafka")).args(["node", "1", "--dir"]).arg(&broker.dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let node = node.unwrap();
        std::fs::write(broker.dir.join("node-1/pid"), node.id().to_string()).unwrap();
        node
    }

    fn restart(&mut self) {
        self.broker.signal(Signal::SIGKILL);
        self.node.wait().unwrap();
        self.node = Self::node(&self.broker);
    }

    fn end(mut self) {
        self.broker.signal(Signal::SIGKILL);
        self.node.wait().unwrap();
    }
}

async fn relay(at: &str, to: String, between: Arc<Between>) {
    let listener = tokio::net::TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(broker) = tokio::net::TcpStream::connect(&to).await else { continue };
            let ((mut from_client, mut to_client), (mut from_broker, mut to_broker)) = (client.into_split(), broker.into_split());
            let (between, mine) = (between.clone(), between.era.load(Ordering::SeqCst));
            // Who asked for metadata, by the number of the request.
            let asked = Arc::new(Mutex::new(BTreeMap::new()));
            let asking = asked.clone();
            tokio::spawn(async move {
                while let Some(request) = message(&mut from_client).await {
                    // Request header v1 and v2: API key, its version, correlation id, client id.
                    if let [0, 3, _, version, a, b, c, d, _, length, rest @ ..] = &request[4..]
                        && *version >= 10
                    {
                        let name = String::from_utf8_lossy(&rest[..usize::from(*length)]).into_owned();
                        asking.lock().unwrap().insert([*a, *b, *c, *d], name);
                    }
                    if to_broker.write_all(&request).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move {
                while let Some(mut answer) = message(&mut from_broker).await {
                    tokio::time::sleep(between.late).await;
                    let asker = asked.lock().unwrap().remove(&answer[4..8]);
                    if let Some(asker) = asker.filter(|_| between.no_brokers.load(Ordering::SeqCst)) {
                        answer = without_brokers(&answer);
                        between.told.lock().unwrap().insert(asker);
                    }
                    if between.era.load(Ordering::SeqCst) == mine && to_client.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// One message of Kafka's protocol, its length included.
async fn message(from: &mut (impl AsyncReadExt + Unpin)) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut message = vec![0; 4 + length as usize];
    message[..4].copy_from_slice(&length.to_be_bytes());
    from.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}

/// The answer to a question for metadata, from version 10 on, with an empty list of brokers in the place of its own. And with so many more topics that librdkafka is still
/// busy with them when it has forgotten its brokers: that is when it does not look for others any more.
fn without_brokers(answer: &[u8]) -> Vec<u8> {
    // Length, correlation id, no tagged fields, throttle time.
    let (begin, mut rest) = answer.split_at(4 + 4 + 1 + 4);
    let text = |rest: &mut &[u8]| *rest = &rest[usize::from(rest[0]).max(1)..];
    let brokers = rest[0] - 1;
    rest = &rest[1..];
    for _ in 0..brokers {
        rest = &rest[4..];
        text(&mut rest);
        rest = &rest[4..];
        text(&mut rest);
        assert_eq!(rest[0], 0, "no tagged fields");
        rest = &rest[1..];
    }
    let cluster = rest;
    text(&mut rest);
    let (cluster, topics) = cluster.split_at(cluster.len() - rest.len() + 4);
    let (count, topics) = (u32::from(topics[0]) + MORE_TOPICS, &topics[1..]);
    // A number in the manner of Protocol Buffers, with two bytes.
    let count = [u8::try_from(count & 0x7f).unwrap() | 0x80, u8::try_from(count >> 7).unwrap()];
    let mut all = [begin, &[1], cluster, &count].concat();
    for number in 0..MORE_TOPICS {
        let name = format!("more-{number}");
        // No error, the name, an id, not internal, no partitions, no rights, no tagged fields.
        all.extend([0, 0, u8::try_from(name.len() + 1).unwrap()]);
        all.extend(name.as_bytes());
        all.extend([&[7; 16][..], &[0, 1], &i32::MIN.to_be_bytes(), &[0]].concat());
    }
    all.extend(topics);
    let length = u32::try_from(all.len() - 4).unwrap();
    all[..4].copy_from_slice(&length.to_be_bytes());
    all
}

const MORE_TOPICS: u32 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_answers_all_come_late_is_reached_all_the_same() {
    let Some(relayed) = Relayed::start("late", Duration::from_millis(900)).await else { return };
    let log = connect(relayed.config.clone()).unwrap();
    until_health(&*log, false).await;
    until_health(&*log, true).await;
    relayed.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gets_no_more_answers_is_replaced() {
    let Some(relayed) = Relayed::start("forgetful", Duration::ZERO).await else { return };
    // Longer than the test waits: the client does not find out by itself.
    let mut config = relayed.config.clone();
    config.properties.insert("socket.timeout.ms".to_owned(), "300000".to_owned());
    let log = connect(config).unwrap();
    until_health(&*log, false).await;
    until_health(&*log, true).await;
    // Again and again: a client may open another connection just then.
    let forgetting = async {
        loop {
            relayed.between.era.fetch_add(1, Ordering::SeqCst);
            drop(log.append(&Topic::new("t").partition(0), record("x")));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = until_health(&*log, false) => {}
        () = forgetting => {}
    }
    until_health(&*log, true).await;
    relayed.end();
}

/// A Kafka whose brokers were all fenced for a moment says that it has none, and librdkafka may then forget those that it knows and never look for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_were_told_of_no_brokers_find_them_again() {
    let Some(mut relayed) = Relayed::start("nobody", Duration::ZERO).await else { return };
    let mut config = relayed.config.clone();
    config.properties.insert("topic.metadata.refresh.interval.ms".to_owned(), "300".to_owned());
    let log = connect(config).unwrap();
    let topic = Topic::new("t");
    until_health(&*log, true).await;
    in_time("the topic", async { while log.create_topics(vec![spec(&topic, 1, None)]).await.is_err() {} }).await;
    let of = topic.partition(0);
    append_when_possible(&*log, &of, "before").await;
    let mut reader = log.read(&of, Offset::default());
    assert_eq!(texts(&mut reader, 1).await, ["before"]);
    let mut member = log.join(group(&topic));
    owns(&mut member, 1).await;

    // As long as each needs to hear it.
    relayed.between.no_brokers.store(true, Ordering::SeqCst);
    let all = ["bluebox-append", "bluebox-read", "bluebox-member", "bluebox-control"];
    in_time("all are told", async {
        while let Some(missing) = all.iter().find(|name| !relayed.between.told.lock().unwrap().contains(**name)) {
            if *missing == "bluebox-control" {
                let _ = log.partitions(&topic).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    relayed.between.no_brokers.store(false, Ordering::SeqCst);

    in_time("an append", async { while log.append(&of, record("after")).await.is_err() {} }).await;
    in_time("what was appended", async { while texts(&mut reader, 1).await != ["after"] {} }).await;
    in_time("a question", async { while log.bounds(&of).await.is_err() {} }).await;
    // Its coordinator goes away too, and it must find that again.
    relayed.restart();
    let mine = Committed { offset: Offset::new(1), metadata: "mine".to_owned() };
    in_time("a commit", async {
        loop {
            tokio::select! {
                done = member.control().commit(vec![(of.clone(), mine.clone())]) => if done.is_ok() { break } else { tokio::time::sleep(Duration::from_millis(100)).await },
                event = member.next() => assert!(event.is_some()),
            }
        }
    })
    .await;
    relayed.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_death_of_the_broker_and_everything_goes_on() {
    let Some(broker) = Broker::start("death") else { return };
    let log = broker.client();
    let topic = Topic::new("t");
    log.create_topics(vec![spec(&topic, 1, None)]).await.unwrap();
    let to = topic.partition(0);
    let mut reader = log.read(&to, Offset::default());
    let (mut acknowledged, mut unknown, mut refused) = (Vec::new(), BTreeSet::new(), 0);
    for n in 0..100 {
        log.append(&to, record(&n.to_string())).await.unwrap();
        acknowledged.push(n.to_string());
    }
    broker.signal(Signal::SIGKILL);
    until_health(&*log, false).await;
    let start = Instant::now();
    for n in 100..110 {
        let away = log.append(&to, record(&n.to_string())).await;
        assert!(matches!(away, Err(AppendError::NotPersisted(_))), "{away:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    let appending = async {
        for n in 110.. {
            match log.append(&to, record(&n.to_string())).await {
                Ok(_) => acknowledged.push(n.to_string()),
                Err(AppendError::Unknown(_)) => drop(unknown.insert(n.to_string())),
                Err(_) => {
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            if acknowledged.len() >= 200 {
                break;
            }
        }
    };
    // On a thread, so that appends are tried all the while.
    std::thread::scope(|scope| {
        let restarting = scope.spawn(|| broker.restart());
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(in_time("appends", appending)));
        restarting.join().unwrap();
    });
    until_health(&*log, true).await;
    assert!(refused > 0, "the broker was away");
    append_when_possible(&*log, &to, "last").await;
    acknowledged.push("last".to_owned());
    let end = log.bounds(&to).await.unwrap().end;
    let read = texts(&mut reader, usize::try_from(end.get()).unwrap()).await;
    let sure: Vec<_> = read.iter().filter(|text| !unknown.contains(*text)).cloned().collect();
    assert_eq!(sure, acknowledged, "each once and in order, and nothing of what was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_one_broker_of_three_loses_nothing_and_stops_nobody() {
    let Some(brokers) = Broker::start_with("three", &["--brokers", "3"]) else { return };
    let log = brokers.client();
    let topic = Topic::new("t");
    // Each broker leads some of them.
    log.create_topics(vec![spec(&topic, 6, None)]).await.unwrap();
    let (mut acknowledged, mut unknown) = (vec![Vec::new(); 6], BTreeSet::new());
    let mut killed = false;
    let start = Instant::now();
    for n in 0.. {
        if n == 60 {
            kill(brokers.pid_of(2), Signal::SIGKILL).unwrap();
            killed = true;
        }
        let partition = n % 6;
        match in_time("append", log.append(&topic.partition(partition), record(&n.to_string()))).await {
            Ok(_) => acknowledged[partition as usize].push(n.to_string()),
            Err(AppendError::Unknown(_)) => drop(unknown.insert(n.to_string())),
            Err(error) => assert!(killed, "{error}"),
        }
        if killed && acknowledged.iter().all(|texts| texts.len() >= 40) {
            break;
        }
        assert!(start.elapsed() < PATIENCE * 2, "{acknowledged:?}");
    }
    for (partition, acknowledged) in (0..).zip(acknowledged) {
        let of = topic.partition(partition);
        let end = log.bounds(&of).await.unwrap().end.get();
        let mut read = texts(&mut log.read(&of, Offset::default()), usize::try_from(end).unwrap()).await;
        read.retain(|text| !unknown.contains(text));
        assert_eq!(read, acknowledged, "partition {partition}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_is_away_and_what_was_on_its_way_ends() {
    let Some(broker) = Broker::start("frozen") else { return };
    let log = connect(KafkaConfig { append_timeout: Duration::from_secs(3), ..KafkaConfig::new(&broker.address) }).unwrap();
    let topic = Topic::new("t");
    log.create_topics(vec![spec(&topic, 1, None)]).await.unwrap();
    let to = topic.partition(0);
    log.append(&to, record("before")).await.unwrap();
    broker.signal(Signal::SIGSTOP);
    // Its threads may take in one more.
    let mut pending = log.append(&to, record("pending"));
    while let Ok(taken) = tokio::time::timeout(Duration::from_millis(200), &mut pending).await {
        assert!(taken.is_ok(), "{taken:?}");
        pending = log.append(&to, record("pending"));
    }
    let start = Instant::now();
    until_health(&*log, false).await;
    assert!(start.elapsed() < Duration::from_secs(4), "noticed after {:?}", start.elapsed());
    let start = Instant::now();
    assert!(matches!(log.append(&to, record("refused")).await, Err(AppendError::NotPersisted(_))));
    assert!(start.elapsed() < Duration::from_secs(1));
    let ended = in_time("the append ends though the broker does not answer", pending).await;
    // Not persisted if it was held back because of a suspicion that came before it.
    assert!(matches!(ended, Err(AppendError::Unknown(_) | AppendError::NotPersisted(_))), "{ended:?}");
    broker.signal(Signal::SIGCONT);
    until_health(&*log, true).await;
    append_when_possible(&*log, &to, "after").await;
    let mut reader = log.read(&to, Offset::default());
    let end = log.bounds(&to).await.unwrap().end.get();
    let mut read = texts(&mut reader, usize::try_from(end).unwrap()).await;
    read.retain(|text| text != "pending");
    assert_eq!(read, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_told_what_the_log_deleted() {
    let Some(broker) = Broker::start("deleted") else { return };
    let log = broker.client();
    let topic = Topic::new("t");
    log.create_topics(vec![spec(&topic, 1, Some(Duration::from_millis(500)))]).await.unwrap();
    let of = topic.partition(0);
    for n in 0..10 {
        log.append(&of, record(&n.to_string())).await.unwrap();
    }
    in_time("retention", async {
        while log.bounds(&of).await.unwrap().start.get() < 10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let mut reader = log.read(&of, Offset::new(3));
    let told = in_time("truncated", reader.next()).await.unwrap();
    assert_eq!(told, Read::Truncated { wanted: Offset::new(3), start: Offset::new(10) });
    log.append(&of, record("new")).await.unwrap();
    assert_eq!(texts(&mut reader, 1).await, ["new"]);

    let mut member = log.join(group(&topic));
    in_time("assigned", async { while !matches!(member.next().await, Some(GroupEvent::Assigned(_))) {} }).await;
    member.control().start(&of, Offset::new(3));
    let told = in_time("truncated", member.next()).await.unwrap();
    assert!(matches!(told, GroupEvent::Truncated { wanted, .. } if wanted == Offset::new(3)), "{told:?}");
}

fn group(topic: &Topic) -> GroupSpec {
    GroupSpec {
        name: format!("{topic}-group"),
        topics: vec![topic.clone()],
        session_timeout: Duration::from_millis(1_500),
        release_timeout: Duration::from_secs(30),
        lease: Duration::from_secs(1),
    }
}

/// A member in a process of its own, so that it can be frozen.
struct Other {
    process: Child,
    said: Receiver<String>,
}

impl Other {
    fn start(broker: &Broker, topic: &Topic) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "member_in_a_process_of_its_own", "--nocapture", "--test-threads=1"])
            .env("BLUEBOX_TEST_MEMBER_OF", format!("{} {topic}", broker.address))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, said) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { process, said }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// The next thing that it says of those that begin like this.
    fn hears(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or_else(|_| panic!("in vain: {start}"));
            if line.starts_with(start) {
                return line;
            }
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other tests run it in a process of its own"]
async fn member_in_a_process_of_its_own() {
    let Ok(arguments) = std::env::var("BLUEBOX_TEST_MEMBER_OF") else { return };
    let (address, topic) = arguments.split_once(' ').unwrap();
    let topic = Topic::new(topic);
    let log = connect(KafkaConfig::new(address)).unwrap();
    let mut member = log.join(group(&topic));
    let (commands, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).for_each(|line| drop(commands.send(line))));
    println!();
    loop {
        tokio::select! {
            event = member.next() => {
                let numbers = |partitions: &[TopicPartition]| partitions.iter().map(|p| p.partition.to_string()).collect::<Vec<_>>().join(",");
                match event {
                    Some(GroupEvent::Assigned(all)) => println!("assigned {}", numbers(&all.iter().map(|a| a.partition.clone()).collect::<Vec<_>>())),
                    Some(GroupEvent::Revoking(partitions)) => println!("revoking {}", numbers(&partitions)),
                    Some(GroupEvent::Lost(partitions)) => println!("lost {}", numbers(&partitions)),
                    Some(_) => {}
                    None => return,
                }
            }
            command = told.recv() => {
                let Some(command) = command else { return };
                let words: Vec<_> = command.split(' ').collect();
                let partition = topic.partition(words[1].parse().unwrap());
                match words[0] {
                    "release" => member.control().release(vec![partition]),
                    "commit" => {
                        let committed = Committed { offset: Offset::new(words[2].parse().unwrap()), metadata: "other".to_owned() };
                        println!("committed {:?}", member.control().commit(vec![(partition, committed)]).await);
                    }
                    _ => panic!("{command}"),
                }
            }
        }
    }
}

async fn owns(member: &mut Membership, wanted: usize) {
    let mut owned = BTreeSet::new();
    in_time("ownership", async {
        while owned.len() < wanted {
            match member.next().await {
                Some(GroupEvent::Assigned(all)) => owned.extend(all.into_iter().map(|a| a.partition)),
                Some(GroupEvent::Revoking(partitions)) => {
                    owned.retain(|p| !partitions.contains(p));
                    member.control().release(partitions);
                }
                Some(GroupEvent::Lost(partitions)) => owned.retain(|p| !partitions.contains(p)),
                Some(_) => {}
                None => panic!("it ended"),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_frozen_is_fenced_and_learns_that_it_lost() {
    let Some(broker) = Broker::start("zombie") else { return };
    let log = broker.client();
    let topic = Topic::new("t");
    log.create_topics(vec![spec(&topic, 2, None)]).await.unwrap();
    let mut zombie = Other::start(&broker, &topic);
    zombie.hears("assigned");
    zombie.tell("commit 0 5");
    assert!(zombie.hears("committed").contains("Ok"));
    zombie.signal(Signal::SIGSTOP);
    let mut member = log.join(group(&topic));
    owns(&mut member, 2).await;
    let mine = Committed { offset: Offset::new(9), metadata: "mine".to_owned() };
    member.control().commit(vec![(topic.partition(0), mine.clone())]).await.unwrap();
    // What it does first when it wakes up is a commit.
    zombie.tell("commit 0 6");
    zombie.signal(Signal::SIGCONT);
    // The one or the other comes first.
    let (mut committed, mut lost) = (None, false);
    while committed.is_none() || !lost {
        let line = zombie.hears("");
        lost |= line.starts_with("lost");
        committed = if line.starts_with("committed") { Some(line) } else { committed };
    }
    assert!(committed.as_ref().is_some_and(|said| said.contains("Fenced")), "{committed:?}");
    assert_eq!(log.committed(&group(&topic).name, vec![topic.partition(0)]).await.unwrap(), [Some(mine)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_frozen_while_it_was_to_release_claims_nothing_back() {
    let Some(broker) = Broker::start("holder") else { return };
    let log = broker.client();
    let topic = Topic::new("t");
    log.create_topics(vec![spec(&topic, 2, None)]).await.unwrap();
    let mut zombie = Other::start(&broker, &topic);
    zombie.hears("assigned");
    for partition in 0..2 {
        zombie.tell(&format!("commit {partition} 5"));
        assert!(zombie.hears("committed").contains("Ok"));
    }
    let mut member = log.join(group(&topic));
    let asked = zombie.hears("revoking");
    let asked = asked.strip_prefix("revoking ").unwrap().to_owned();
    // Neither releases it nor lives.
    zombie.signal(Signal::SIGSTOP);
    owns(&mut member, 2).await;
    let committed = Committed { offset: Offset::new(9), metadata: "mine".to_owned() };
    for partition in 0..2 {
        member.control().commit(vec![(topic.partition(partition), committed.clone())]).await.unwrap();
    }
    zombie.signal(Signal::SIGCONT);
    zombie.tell(&format!("release {asked}"));
    zombie.hears("lost");
    for partition in 0..2 {
        zombie.tell(&format!("commit {partition} 6"));
    }
    // It may own one again by now, honestly; a commit that was taken must be one of such a partition.
    let mut assigned = Vec::new();
    for partition in 0..2 {
        let deadline = Instant::now() + PATIENCE;
        let said = loop {
            let line = zombie.said.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap();
            if let Some(again) = line.strip_prefix("assigned ") {
                assigned.extend(again.split(',').map(str::to_owned));
            } else if line.starts_with("committed") {
                break line;
            }
        };
        assert!(said.contains("Fenced") || assigned.contains(&partition.to_string()), "{said}, and owns {assigned:?}");
    }
}

//! The embedded log over its socket: what ends a connection, and what that means. Processes are real here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::log::embedded::{Embedded, ServeError, connect, serve};
use bluebox_core::log::{
    AppendError, Assignment, Committed, Entry, GroupEvent, GroupSpec, Health, LogError, Membership, Offset, Read, Reader, Record, Topic, TopicSpec,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SESSION: Duration = Duration::from_millis(800);

fn topic() -> Topic {
    Topic::new("topic")
}

fn group() -> GroupSpec {
    GroupSpec { name: "group".to_owned(), topics: vec![topic()], session_timeout: SESSION, release_timeout: Duration::from_secs(60), lease: 2 * SESSION }
}

async fn make_topic(log: &dyn Log, partitions: u32) {
    let made = log.create_topics(vec![TopicSpec { topic: topic(), partitions, retention: None, compacted: false, compaction_lag: None }]);
    made.await.unwrap();
}

fn record(text: &str) -> Record {
    Record::new(text.as_bytes().to_vec().into())
}

fn commit(offset: u64) -> Vec<(bluebox_core::log::TopicPartition, Committed)> {
    vec![(topic().partition(0), Committed { offset: Offset::new(offset), metadata: String::new() })]
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("it happens soon")
}

async fn next(member: &mut Membership) -> GroupEvent {
    soon(member.next()).await.expect("it goes on")
}

async fn assigned(member: &mut Membership) -> Vec<Assignment> {
    match next(member).await {
        GroupEvent::Assigned(assignments) => assignments,
        other => panic!("{other:?}"),
    }
}

async fn take(reader: &mut Reader, count: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    while entries.len() < count {
        match soon(reader.next()).await.expect("it goes on") {
            Read::Entries(more) => entries.extend(more),
            Read::Truncated { wanted, start } => panic!("wanted {wanted}, starts at {start}"),
        }
    }
    entries
}

async fn is_away(log: &dyn Log) {
    let mut health = log.health();
    soon(health.wait_for(|h| matches!(h, Health::Away(_)))).await.unwrap();
}

async fn is_up(log: &dyn Log) {
    let mut health = log.health();
    soon(health.wait_for(|h| *h == Health::Up)).await.unwrap();
}

#[tokio::test]
async fn the_socket_is_for_this_user_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let log = Embedded::in_memory();
    let server = serve(&log, &path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let second = serve(&log, &path).map(drop);
    assert!(matches!(&second, Err(ServeError::InUse(at)) if *at == path), "{second:?}");
    drop(server);
    assert!(!path.exists());
    // A socket that was left behind by a dead process is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    serve(&log, &path).unwrap();
}

#[tokio::test]
async fn a_path_that_cannot_be_is_a_clear_error() {
    let log = Embedded::in_memory();
    for path in ["/no/such/directory/socket".to_owned(), format!("/tmp/{}", "x".repeat(200))] {
        let refused = serve(&log, Path::new(&path)).map(drop).unwrap_err();
        assert!(refused.to_string().starts_with(&path), "{refused}");
    }
}

#[tokio::test]
async fn with_the_log_away_everything_says_so_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let client = connect(&path);
    // Asked before the first try.
    let early = client.append(&topic().partition(0), record("early"));
    assert!(matches!(early.await, Err(AppendError::NotPersisted(_))));
    is_away(&*client).await;
    let refused = client.append(&topic().partition(0), record("refused")).await;
    assert!(matches!(refused, Err(AppendError::NotPersisted(_))), "{refused:?}");
    let unavailable = soon(client.bounds(&topic().partition(0))).await;
    assert!(matches!(unavailable, Err(LogError::Unavailable(_))), "{unavailable:?}");
    let mut reader = client.read(&topic().partition(0), Offset::new(1));
    let mut member = client.join(group());

    let log = Embedded::in_memory();
    make_topic(&*log, 1).await;
    for round in 0..3 {
        let server = serve(&log, &path).unwrap();
        is_up(&*client).await;
        assert_eq!(assigned(&mut member).await.len(), 1, "round {round}");
        member.control().start(&topic().partition(0), Offset::new(2 * round));
        member.control().want(&topic().partition(0), 100);
        for text in ["one", "two"] {
            client.append(&topic().partition(0), record(text)).await.unwrap();
        }
        let expected = if round == 0 { 1 } else { 2 };
        assert_eq!(take(&mut reader, expected).await.last().unwrap().offset, Offset::new(2 * round + 1), "nothing is read twice, nothing is left out");
        let mut count = 0;
        while count < 2 {
            match next(&mut member).await {
                GroupEvent::Records { entries, .. } => count += entries.len(),
                other => panic!("{other:?}"),
            }
        }
        drop(server);
        assert_eq!(next(&mut member).await, GroupEvent::Lost(vec![topic().partition(0)]));
        is_away(&*client).await;
        let fenced = member.control().commit(commit(1)).await;
        assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    }
}

#[tokio::test]
async fn a_client_that_the_log_cuts_off_may_live_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let log = Embedded::in_memory();
    make_topic(&*log, 1).await;
    let server = serve(&log, &path).unwrap();
    let client = connect(&path);
    let mut remote = client.join(group());
    assigned(&mut remote).await;
    let mut heir = log.join(group());
    drop(server);
    assert!(!assigned(&mut heir).await[0].former_is_gone);
}

#[tokio::test]
async fn what_was_under_way_when_the_connection_ended_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // A log that welcomes, takes, and never answers.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (taken, was_taken) = tokio::sync::oneshot::channel();
    let silent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 64];
        let hello = stream.read(&mut bytes).unwrap();
        assert!(hello > 4);
        // A frame with field 2, a number: the version.
        stream.write_all(&[0, 0, 0, 2, 0x10, bytes[hello - 1]]).unwrap();
        let _ = stream.read(&mut bytes).unwrap();
        taken.send(()).unwrap();
        stream
    });
    let client = connect(&path);
    let append = client.append(&topic().partition(0), record("on its way"));
    soon(was_taken).await.unwrap();
    drop(silent.join().unwrap());
    let unknown = soon(append).await;
    assert!(matches!(unknown, Err(AppendError::Unknown(_))), "{unknown:?}");
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let log = Embedded::in_memory();
    make_topic(&*log, 1).await;
    let _server = serve(&log, &path).unwrap();
    let client = connect(&path);
    client.append(&topic().partition(0), record("before")).await.unwrap();
    let hello = [0, 0, 0, 2, 0x10, 1];
    let after_hello = |frame: &[u8]| [&hello[..], frame].concat();
    let cases: [Vec<u8>; 8] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0, 0, 0, 2, 0x10, 99],
        after_hello(&[0xff, 0xff, 0xff, 0xff]),
        after_hello(&[0, 0, 0, 3, 0xff, 0xff, 0xff]),
        after_hello(&[0, 0, 0, 0]),
        after_hello(&[0, 0, 0, 2, 0x22, 0]),
        after_hello(&hello),
    ];
    for bytes in cases {
        let path = path.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let _ = stream.write_all(&bytes);
            let ended = std::io::copy(&mut stream, &mut std::io::sink());
            (bytes, ended.map_err(|e| e.kind()))
        });
        let (bytes, ended) = ended.await.unwrap();
        assert!(matches!(ended, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{bytes:?}: {ended:?}");
    }
    client.append(&topic().partition(0), record("after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_of_large_records_gets_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let log = Embedded::in_memory();
    make_topic(&*log, 1).await;
    let _server = serve(&log, &path).unwrap();
    let client = connect(&path);
    let large = "x".repeat(400_000);
    for _ in 0..60 {
        log.append(&topic().partition(0), record(&large)).await.unwrap();
    }
    let mut member = client.join(group());
    assigned(&mut member).await;
    let control = Arc::clone(member.control());
    // More than the connection has room for.
    control.start(&topic().partition(0), Offset::default());
    control.want(&topic().partition(0), 60);
    let mut count = 0;
    while count < 60 {
        match next(&mut member).await {
            GroupEvent::Records { entries, .. } => count += entries.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count, 60);
    // Started again: what was on its way from before does not come.
    control.want(&topic().partition(0), 60);
    control.start(&topic().partition(0), Offset::new(50));
    control.want(&topic().partition(0), 60);
    let mut offsets = Vec::new();
    while offsets.len() < 10 {
        match next(&mut member).await {
            GroupEvent::Records { entries, .. } => offsets.extend(entries.iter().map(|e| e.offset.get())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(offsets, (50..60).collect::<Vec<_>>());
}

/// Joins, says what it owns, and then what it commits.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests of dead and stopped processes"]
async fn child_that_is_a_member() {
    let path = std::env::var("BLUEBOX_TEST_SOCKET").unwrap();
    let log = connect(Path::new(&path));
    let mut member = log.join(group());
    let mut committed = 0;
    loop {
        match member.next().await.unwrap() {
            GroupEvent::Assigned(_) => {
                println!("assigned");
                while member.control().commit(commit(committed)).await.is_ok() {
                    committed += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                println!("fenced");
            }
            GroupEvent::Lost(_) => println!("lost"),
            other => println!("{other:?}"),
        }
    }
}

struct Process {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Process {
    fn member(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_is_a_member", "--ignored", "--nocapture"]).env("BLUEBOX_TEST_SOCKET", path);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn says(&self, line: &str) {
        while self.lines.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("it never says {line:?}")) != line {}
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_gone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let log = Embedded::in_memory();
    make_topic(&*log, 1).await;
    let _server = serve(&log, &path).unwrap();
    let process = Process::member(&path);
    process.says("assigned");
    let mut heir = log.join(GroupSpec { session_timeout: Duration::from_secs(600), ..group() });
    let killed = std::time::Instant::now();
    process.signal(Signal::SIGKILL);
    assert!(assigned(&mut heir).await[0].former_is_gone);
    assert!(killed.elapsed() < SESSION, "no session had to run out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_a_zombie_when_its_session_has_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let log = Embedded::in_memory();
    make_topic(&*log, 1).await;
    let _server = serve(&log, &path).unwrap();
    let process = Process::member(&path);
    process.says("assigned");
    let mut heir = log.join(group());
    process.signal(Signal::SIGSTOP);
    let inherited = assigned(&mut heir).await;
    assert!(!inherited[0].former_is_gone, "it will go on");
    heir.control().commit(commit(1_000_000)).await.unwrap();
    process.signal(Signal::SIGCONT);
    process.says("fenced");
    process.says("lost");
    assert_eq!(log.committed("group", vec![topic().partition(0)]).await.unwrap()[0].as_ref().map(|c| c.offset), Some(Offset::new(1_000_000)));
    // It is a member again, and gets what is left to it.
    soon(async {
        while log.members("group") < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    heir.control().leave().await.unwrap();
    process.says("assigned");
}

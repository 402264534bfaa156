//! What happens at a fail point.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Bug, Point};

/// How long a delay is.
const DELAY: Duration = Duration::from_millis(700);

/// How a process ends at a point where nothing else can fail.
const EXIT_CODE: i32 = 70;

#[derive(Debug, Clone, Copy)]
enum Action {
    Panic,
    Error,
    Delay,
    Kill,
}

struct Armed {
    point: Point,
    action: Action,
    file: PathBuf,
}

/// What this process was told. A mistake there ends it: a test that injures nothing shows nothing.
fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let read = || {
        let told = std::env::var("BLUEBOX_FAIL_POINT").ok()?;
        let read = |(name, action): (&str, &str)| {
            let action = match action {
                "panic" => Action::Panic,
                "error" => Action::Error,
                "delay" => Action::Delay,
                "kill" => Action::Kill,
                _ => return None,
            };
            Some(Armed { point: Point::named(name)?, action, file: std::env::var_os("BLUEBOX_FAIL_POINT_ARMED")?.into() })
        };
        let armed = told.split_once('=').and_then(read);
        if armed.is_none() {
            eprintln!("BLUEBOX_FAIL_POINT={told}: POINT=panic|error|delay|kill, and BLUEBOX_FAIL_POINT_ARMED=FILE");
            std::process::exit(2);
        }
        armed
    };
    ARMED.get_or_init(read).as_ref()
}

/// Whether this point fails now, and with what is left to be done: everything but an error and a delay is done here.
fn reach(point: Point) -> Option<Action> {
    let armed = armed().filter(|armed| armed.point == point)?;
    std::fs::remove_file(&armed.file).ok()?;
    eprintln!("fail point {}: {:?}", point.name(), armed.action);
    match armed.action {
        #[allow(clippy::panic, reason = "what it is for")]
        Action::Panic => panic!("fail point {}", point.name()),
        Action::Kill => loop {
            // It doesn't return, but for the moment that the signal takes.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        },
        action => Some(action),
    }
}

/// Passes a point where nothing can fail by itself.
pub fn pass(point: Point) {
    if fails(point) {
        std::process::exit(EXIT_CODE);
    }
}

/// Passes a point: `true`, an error happens there.
pub fn fails(point: Point) -> bool {
    match reach(point) {
        Some(Action::Delay) => std::thread::sleep(DELAY),
        Some(_) => return true,
        None => {}
    }
    false
}

/// As [`pass`], in code that waits.
pub async fn pass_later(point: Point) {
    if fails_later(point).await {
        std::process::exit(EXIT_CODE);
    }
}

/// As [`fails`], in code that waits. Cancel safe.
pub async fn fails_later(point: Point) -> bool {
    match reach(point) {
        Some(Action::Delay) => tokio::time::sleep(DELAY).await,
        Some(_) => return true,
        None => {}
    }
    false
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug for this thread, or pulls it out again.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted, for this thread or this process.
pub fn is_planted(bug: Bug) -> bool {
    static OF_PROCESS: OnceLock<Option<Bug>> = OnceLock::new();
    let read = || {
        let name = std::env::var("BLUEBOX_PLANTED_BUG").ok()?;
        let named = Bug::named(&name);
        if named.is_none() {
            eprintln!("BLUEBOX_PLANTED_BUG={name}: there is no such bug");
            std::process::exit(2);
        }
        named
    };
    PLANTED.get() == Some(bug) || *OF_PROCESS.get_or_init(read) == Some(bug)
}

//! What a process logs, changed while it runs: by whoever reaches its control listener, for a time that ends by itself.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tracing::warn;

use crate::listener::{self, Peer, plain};

/// Where it is asked and told.
pub const PATH: &str = "/log-level";

/// The target of the line that tells of a change. It is logged at every level.
pub const TARGET: &str = "bluebox::log_level";

/// How long a change lasts if nobody says, and the longest that it can last.
const USUAL: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What this process logs. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Level(Arc<Shared>);

/// Makes a level the one that counts; why not, if it can't.
type Set = dyn Fn(&str) -> Result<(), String> + Send + Sync;

struct Shared {
    /// What it was started with.
    usual: String,
    set: Box<Set>,
    now: Mutex<Now>,
}

struct Now {
    level: String,
    until: Option<Instant>,
    /// Counts the changes: what ends one must not end a later one.
    changes: u64,
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level").field("usual", &self.0.usual).finish_non_exhaustive()
    }
}

/// Whether this says what is to be logged: a level, or levels by module, as in `info,bluebox_proxy=debug`.
///
/// # Errors
/// With what is wrong about it.
pub fn check(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',').map(str::trim) {
        let (module, level) = part.rsplit_once('=').map_or((None, part), |(module, level)| (Some(module), level));
        let is_module = module.is_none_or(|module| !module.is_empty() && module.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b)));
        if !is_module || !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            return Err(format!("{part:?}: error, warn, info, debug or trace (or off); or by module, as in info,bluebox_proxy=debug"));
        }
    }
    Ok(())
}

impl Level {
    /// What is logged is `usual` now; `set` makes it something else.
    pub fn new(usual: &str, set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        let now = Now { level: usual.to_owned(), until: None, changes: 0 };
        Self(Arc::new(Shared { usual: usual.to_owned(), set: Box::new(set), now: Mutex::new(now) }))
    }

    /// What is logged now, and for how long still, if not for good.
    pub fn now(&self) -> (String, Option<Duration>) {
        let now = self.lock();
        (now.level.clone(), now.until.map(|until| until.saturating_duration_since(Instant::now())))
    }

    /// Logs something else for a time; then again what is usual. To be called in a tokio runtime.
    ///
    /// # Errors
    /// When that says nothing that could be logged.
    pub fn change(&self, to: &str, time: Duration, who: &str) -> Result<(), String> {
        check(to)?;
        let mut now = self.lock();
        (self.0.set)(to)?;
        let former = std::mem::replace(&mut now.level, to.to_owned());
        now.until = Some(Instant::now() + time);
        now.changes += 1;
        let change = now.changes;
        drop(now);
        warn!(target: TARGET, level = to, former, seconds = time.as_secs(), who, "the log level was changed");
        let level = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            level.fall_back(change);
        });
        Ok(())
    }

    fn fall_back(&self, change: u64) {
        let mut now = self.lock();
        if now.changes != change || (self.0.set)(&self.0.usual).is_err() {
            return;
        }
        let former = std::mem::replace(&mut now.level, self.0.usual.clone());
        now.until = None;
        drop(now);
        warn!(target: TARGET, level = self.0.usual, former, "the time of the changed log level is over");
    }

    /// Answers `GET /log-level`, and `PUT /log-level?level=LEVEL&for=SECONDS`. For a listener on loopback: what comes from a page of a browser, or was meant for another host, is refused.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if let Err(why) = listener::is_local(request.headers()) {
            return plain(StatusCode::FORBIDDEN, format!("{why}\n"));
        }
        if *request.method() == Method::PUT {
            let (mut level, mut time) = (None, USUAL);
            for (key, value) in request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
                match (key, value.parse().ok().map(Duration::from_secs)) {
                    ("level", _) => level = Some(value),
                    ("for", Some(seconds)) if seconds <= LONGEST && !seconds.is_zero() => time = seconds,
                    _ => return plain(StatusCode::BAD_REQUEST, format!("?level=LEVEL&for=SECONDS, at most {} s\n", LONGEST.as_secs())),
                }
            }
            let peer: Option<SocketAddr> = request.extensions().get::<Peer>().map(|Peer(address)| *address);
            let changed =
                level.ok_or_else(|| "?level=LEVEL is missing".to_owned()).and_then(|level| self.change(level, time, &listener::who(peer, request.headers())));
            if let Err(why) = changed {
                return plain(StatusCode::BAD_REQUEST, format!("{why}\n"));
            }
        } else if ![Method::GET, Method::HEAD].contains(request.method()) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "GET or PUT\n");
        }
        plain(
            StatusCode::OK,
            match self.now() {
                (level, None) => format!("{level}\n"),
                (level, Some(left)) => format!("{level} for {} s, then {}\n", left.as_secs(), self.0.usual),
            },
        )
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Nothing in there can panic half-way.
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level() -> (Level, Arc<Mutex<Vec<String>>>) {
        let set = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&set);
        let level = Level::new("info", move |to| {
            told.lock().unwrap().push(to.to_owned());
            Ok(())
        });
        (level, set)
    }

    fn asked(level: &Level, method: Method, path: &str, fields: &[(&str, &str)]) -> StatusCode {
        let request = fields.iter().fold(Request::builder().method(method).uri(path), |request, (name, value)| request.header(*name, *value));
        level.answer(&request.body(()).unwrap()).status()
    }

    const HERE: (&str, &str) = ("host", "127.0.0.1:4142");

    #[tokio::test(start_paused = true)]
    async fn a_change_ends_by_itself_and_no_later_one() {
        let (level, set) = level();
        assert_eq!(asked(&level, Method::PUT, "/log-level?level=debug&for=10", &[HERE]), 200);
        assert_eq!(level.now().0, "debug");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(asked(&level, Method::PUT, "/log-level?level=info,bluebox_proxy=trace&for=10", &[HERE]), 200);
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert_eq!(level.now().0, "info,bluebox_proxy=trace", "the first change's time is over, not this one's");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(level.now(), ("info".to_owned(), None));
        assert_eq!(*set.lock().unwrap(), ["debug", "info,bluebox_proxy=trace", "info"]);
    }

    #[tokio::test]
    async fn strangers_and_nonsense_change_nothing() {
        let (level, set) = level();
        let refused = |path, fields: &[(&str, &str)]| asked(&level, Method::PUT, path, fields);
        assert_eq!(refused("/log-level?level=debug", &[("host", "evil.example")]), 403);
        assert_eq!(refused("/log-level?level=debug", &[HERE, ("origin", "http://evil.example")]), 403);
        assert_eq!(refused("/log-level?level=debug", &[]), 403);
        assert_eq!(asked(&level, Method::POST, "/log-level?level=debug", &[HERE]), 405);
        for nonsense in [
            "/log-level",
            "/log-level?level=",
            "/log-level?level=debgu",
            "/log-level?level=a=b",
            "/log-level?level==debug",
            "/log-level?level=debug&for=0",
            "/log-level?level=debug&for=86401",
            "/log-level?level=debug&for=x",
            "/log-level?level=debug&more=1",
        ] {
            assert_eq!(refused(nonsense, &[HERE]), 400, "{nonsense}");
        }
        assert_eq!(asked(&level, Method::GET, "/log-level", &[HERE]), 200);
        assert!(set.lock().unwrap().is_empty());
    }
}

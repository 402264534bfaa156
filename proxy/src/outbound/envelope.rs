//! Makes a call out of a request: first what the head says, then, when the body has been taken in, the whole.

use std::time::Duration;

use bluebox_core::call::{Call, ReplyAddress, Request};
use bluebox_core::{CallId, ComponentName};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, request};
use sha2::{Digest as _, Sha256};

use crate::bulk::Taken;
use crate::config::Outbound;
use crate::fields;
use crate::outbound::prefer::Preferences;
use crate::problem::{Kind, Problem};
use crate::spans::Calling;

/// Names a call, so that its caller can send it again without making two of it (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest `Idempotency-Key` and the longest ordering key, in bytes.
const LONGEST_KEY_BYTES: usize = 255;

/// Through so many calls a request may come that is passed on with all of its fields. Who passes it on to himself would do so for ever.
const MOST_HOPS: u32 = 16;

/// Where a request goes, as [`crate::outbound::route`] found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Who is called.
    pub callee: ComponentName,
    /// Which partition, if the request names one: by the ordinal of a stateful component in its host, or as the component's routing says.
    pub ordinal: Option<u32>,
    /// The authority that the caller named.
    pub authority: String,
    /// The request target in origin form, or `*`.
    pub target: String,
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'c> {
    /// The caller's component, or the gateway's name.
    pub name: &'c ComponentName,
    /// Whether strangers call under this name; see [`crate::config::ProxyConfig::shared_by_callers`].
    pub shared_by_callers: bool,
}

/// A call without its body.
#[derive(Debug)]
pub struct Draft {
    /// Its id.
    pub id: CallId,
    /// What the caller prefers.
    pub preferences: Preferences,
    /// How long the caller's connection is held once the call is accepted; zero for one that wants to be answered at once.
    pub hold: Duration,
    /// How long it may be delivered.
    pub ttl: Duration,
    /// Whether the caller named it with an `Idempotency-Key`.
    pub keyed: bool,
    /// For a recorded call: the digest so far, to be fed with the content.
    pub digest: Option<Sha256>,
    /// The method.
    pub method: Method,
    /// Which ordinal it goes to, if the caller named one.
    pub ordinal: Option<u32>,
    says_length: bool,
    caller: ComponentName,
    destination: Destination,
    ordering_key: Option<Bytes>,
    headers: HeaderMap,
}

impl Draft {
    /// Reads the head of a request. Consumes the fields that are for Bluebox, and takes out those that must not travel. A call that may go to any partition gets the id that is
    /// drawn for it.
    ///
    /// # Errors
    /// When a key is there twice, or is none; when the request goes in a circle.
    pub fn new(head: request::Parts, destination: Destination, caller: Caller<'_>, limits: &Outbound, draw: impl FnOnce() -> CallId) -> Result<Self, Problem> {
        let request::Parts { method, mut headers, .. } = head;
        let says_length = headers.contains_key(header::CONTENT_LENGTH)
            || headers.contains_key(header::TRANSFER_ENCODING)
            || [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        let preferences = Preferences::of(&headers);
        let key = single(&headers, &IDEMPOTENCY_KEY, |b| b.is_ascii_graphic() || b == b' ')?;
        let ordering_key = single(&headers, &fields::ORDERING_KEY, |_| true)?;

        let id = match &key {
            Some(key) => CallId::keyed(caller.name, &destination.callee, destination.ordinal, ordering_key.as_deref(), key),
            None if ordering_key.is_some() || destination.ordinal.is_some() => CallId::random(),
            None => draw(),
        };
        let keyed = key.is_some();
        let recorded = keyed || preferences.respond_async;
        let digest = recorded.then(|| digest_of_head(&method, &destination.target, &headers, caller.shared_by_callers));

        let wait = preferences.wait.unwrap_or(limits.wait).min(limits.max_wait);
        // Whoever wants to be answered at once waits only if it says for how long.
        let hold = if preferences.respond_async { preferences.wait.unwrap_or_default().min(limits.max_wait) } else { wait };
        let nobody_asks_later = !recorded && [Method::GET, Method::HEAD, Method::OPTIONS].contains(&method);
        let ttl = if nobody_asks_later { wait } else { limits.ttl };
        let ttl = ttl_of(&headers)?.map_or(ttl, |asked| asked.min(ttl));

        let hops = hops(&headers, &destination)?;
        fields::strip_request(&mut headers);
        if let Some(hops) = hops {
            headers.insert(fields::HOPS, hops.into());
        }
        Ok(Self {
            id,
            preferences,
            hold,
            keyed,
            digest,
            says_length,
            method,
            ordinal: destination.ordinal,
            caller: caller.name.clone(),
            destination,
            ordering_key,
            ttl,
            headers,
        })
    }

    /// What its spans say of it, and the fields that travel.
    pub fn calling<'c>(&'c mut self, topic: &'c str) -> (Calling<'c>, &'c mut HeaderMap) {
        let Destination { callee, target, .. } = &self.destination;
        (Calling { id: self.id, caller: &self.caller, callee, method: &self.method, target, topic }, &mut self.headers)
    }

    /// The call, with its body, which is durable or in memory. Also gives back the share of memory that the body has.
    pub fn seal(mut self, taken: Taken, reply_to: ReplyAddress) -> (Call, crate::bulk::Hold) {
        let Taken { body, trailers, memory } = taken;
        // No content is not the same as content of no bytes: many a server reads the length without asking whether it is there (RFC 9110, section 8.6).
        if body.is_empty() && self.says_length {
            self.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let call = Call {
            id: self.id,
            replay: 0,
            caller: self.caller,
            callee: self.destination.callee,
            ordering_key: self.ordering_key,
            reply_to,
            ttl: self.ttl,
            wait: (!self.preferences.respond_async).then_some(self.hold),
            recorded: self.digest.map(|d| d.finalize().into()),
            request: Request {
                method: self.method,
                target: self.destination.target,
                authority: self.destination.authority,
                headers: self.headers,
                body,
                trailers,
            },
        };
        (call, memory)
    }
}

/// The one value of a field; none if it isn't there.
fn single(headers: &HeaderMap, name: &HeaderName, legal: impl Fn(u8) -> bool) -> Result<Option<Bytes>, Problem> {
    let mut values = headers.get_all(name).into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = |rule: &str| Err(Problem::new(Kind::BadRequest, format!("{name}: {rule}")));
    let value = value.as_bytes().trim_ascii();
    if values.next().is_some() {
        return refuse("the field is there more than once; send it once");
    }
    if value.is_empty() || value.len() > LONGEST_KEY_BYTES {
        return refuse("a key has 1 to 255 bytes");
    }
    if !value.iter().all(|b| legal(*b)) {
        return refuse("a key is made of visible ASCII characters");
    }
    Ok(Some(Bytes::copy_from_slice(value)))
}

/// How long a call may be delivered, where its caller says so.
fn ttl_of(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(&fields::TTL) else { return Ok(None) };
    let millis = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let malformed = || Problem::new(Kind::BadRequest, format!("{}: a whole number of milliseconds", fields::TTL));
    millis.map(|millis| Some(Duration::from_millis(millis))).ok_or_else(malformed)
}

/// Through how many calls a request has come, if it has the fields of one: a reverse proxy passes them on.
fn hops(headers: &HeaderMap, destination: &Destination) -> Result<Option<u32>, Problem> {
    if !headers.contains_key(fields::CALL_ID) {
        return Ok(None);
    }
    let before = headers.get(&fields::HOPS).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0_u32);
    if before >= MOST_HOPS {
        let Destination { callee, authority, .. } = destination;
        let detail = format!(
            "this request has come through {MOST_HOPS} calls, and would go to {callee} now: it goes in a circle. A reverse proxy that keeps the Host field ({authority}) calls whoever called it; \
             have it name whom it wants to call"
        );
        return Err(Problem::new(Kind::Loop, detail).retry_safe(true));
    }
    Ok(Some(before + 1))
}

/// What must be the same when a recorded call comes again, but for the content, which follows. At a gateway the credentials count too, so that nobody gets
/// another's answer by guessing a key.
fn digest_of_head(method: &Method, target: &str, headers: &HeaderMap, shared_by_callers: bool) -> Sha256 {
    let mut digest = Sha256::new();
    // Lengths first: ("a", "bc") and ("ab", "c") are different requests.
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(method.as_str().as_bytes());
    part(target.as_bytes());
    if shared_by_callers {
        for name in [header::AUTHORIZATION, header::COOKIE] {
            let values: Vec<&[u8]> = headers.get_all(&name).iter().map(|v| v.as_bytes()).collect();
            part(&(values.len() as u64).to_be_bytes());
            values.into_iter().for_each(&mut part);
        }
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::Hold;
    use bluebox_core::call::Body;
    use bluebox_core::log::{Offset, Topic};

    fn draft(method: &str, shared: bool, fields: &[(&str, &str)]) -> Result<Draft, Problem> {
        let mut request = http::Request::builder().method(method).uri("/items");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let destination =
            Destination { callee: ComponentName::try_new("cart").unwrap(), ordinal: None, authority: "cart".to_owned(), target: "/items".to_owned() };
        let name = ComponentName::try_new("web").unwrap();
        Draft::new(
            request.body(()).unwrap().into_parts().0,
            destination,
            Caller { name: &name, shared_by_callers: shared },
            &Outbound::default(),
            CallId::random,
        )
    }

    fn call(method: &str, shared: bool, fields: &[(&str, &str)], content: &'static [u8]) -> Call {
        let mut draft = draft(method, shared, fields).unwrap();
        if let Some(digest) = &mut draft.digest {
            digest.update(content);
        }
        let taken = Taken { body: Body::Inline(Bytes::from_static(content)), trailers: HeaderMap::new(), memory: Hold::default() };
        draft.seal(taken, ReplyAddress { partition: Topic::new("r").partition(0), position: Offset::new(0) }).0
    }

    #[test]
    fn reads_that_nobody_asks_for_later_die_with_their_wait() {
        let limits = Outbound::default();
        assert_eq!(call("GET", false, &[("prefer", "wait=9")], b"").ttl, Duration::from_secs(9));
        assert_eq!(call("GET", false, &[("idempotency-key", "k")], b"").ttl, limits.ttl);
        assert_eq!(call("GET", false, &[("prefer", "respond-async, wait=9")], b"").ttl, limits.ttl);
        assert_eq!(call("POST", false, &[("prefer", "wait=9")], b"").ttl, limits.ttl);
        assert_eq!(call("POST", false, &[("prefer", "wait=9")], b"").wait, Some(Duration::from_secs(9)));
        assert_eq!(call("POST", false, &[("prefer", "wait=999999")], b"").wait, Some(limits.max_wait));
        assert_eq!(call("POST", false, &[("prefer", "respond-async, wait=9")], b"").wait, None);
    }

    #[test]
    fn a_caller_can_ask_for_less_time_to_live_and_not_for_more() {
        let ttl = |value| call("POST", false, &[("bluebox-ttl", value)], b"").ttl;
        assert_eq!((ttl("1500"), ttl("0")), (Duration::from_millis(1500), Duration::ZERO));
        assert_eq!(ttl("999999999999"), Outbound::default().ttl);
        for bad in ["", "-1", "5s", "99999999999999999999999"] {
            assert_eq!(draft("POST", false, &[("bluebox-ttl", bad)]).unwrap_err().kind(), Kind::BadRequest, "{bad}");
        }
    }

    #[test]
    fn the_same_key_is_the_same_call_and_its_digest_tells_requests_apart() {
        let key = [("idempotency-key", "k")];
        let first = call("POST", false, &key, b"one");
        let again = call("POST", false, &key, b"one");
        let other = call("POST", false, &key, b"two");
        assert_eq!((first.id, first.recorded), (again.id, again.recorded));
        assert_eq!(first.id, other.id);
        assert_ne!(first.recorded, other.recorded);
        assert_ne!(call("PUT", false, &key, b"one").recorded, first.recorded);
        let ordered = call("POST", false, &[("idempotency-key", "k"), ("bluebox-ordering-key", "o")], b"one");
        assert_ne!(ordered.id, first.id);
        assert_eq!(ordered.ordering_key.as_deref(), Some(&b"o"[..]));
        assert!(!ordered.request.headers.contains_key(fields::ORDERING_KEY));
        assert!(ordered.request.headers.contains_key(IDEMPOTENCY_KEY));
        let plain = call("POST", false, &[], b"one");
        assert_eq!(plain.recorded, None);
        assert_ne!(plain.id, call("POST", false, &[], b"one").id);
    }

    #[test]
    fn a_request_that_is_passed_on_and_on_comes_to_an_end() {
        assert_eq!(call("GET", false, &[("bluebox-hops", "3")], b"").request.headers.get(fields::HOPS), None, "it has no fields of a delivery");
        let mut hops = String::from("none");
        for expected in 1..=MOST_HOPS {
            let passed_on = call("GET", false, &[("bluebox-call-id", "x"), ("bluebox-hops", &hops)], b"");
            hops = passed_on.request.headers[fields::HOPS].to_str().unwrap().to_owned();
            assert_eq!(hops, expected.to_string());
        }
        let refused = draft("GET", false, &[("bluebox-call-id", "x"), ("bluebox-hops", &hops)]).unwrap_err();
        assert_eq!(refused.kind(), Kind::Loop);
    }

    #[test]
    fn credentials_count_where_strangers_call() {
        let alice = [("idempotency-key", "k"), ("authorization", "alice")];
        let bob = [("idempotency-key", "k"), ("authorization", "bob")];
        let cookie = [("idempotency-key", "k"), ("cookie", "alice")];
        assert_eq!(call("POST", false, &alice, b"").recorded, call("POST", false, &bob, b"").recorded);
        assert_ne!(call("POST", true, &alice, b"").recorded, call("POST", true, &bob, b"").recorded);
        assert_ne!(call("POST", true, &alice, b"").recorded, call("POST", true, &cookie, b"").recorded);
    }

    #[test]
    fn content_of_no_bytes_is_not_no_content() {
        let length = |method: &str, fields: &[(&str, &str)], content| call(method, false, fields, content).request.headers.get("content-length").cloned();
        assert_eq!(length("POST", &[], b"").unwrap(), "0");
        assert_eq!(length("DELETE", &[("content-length", "0")], b"").unwrap(), "0");
        assert_eq!(length("GET", &[], b""), None);
        assert_eq!(length("POST", &[("content-length", "1")], b"x"), None, "whoever sends it knows its length");
    }

    #[test]
    fn bad_keys_are_refused() {
        let long = "x".repeat(256);
        for bad in [
            &[("idempotency-key", "")][..],
            &[("idempotency-key", &long)],
            &[("idempotency-key", "a"), ("idempotency-key", "a")],
            &[("idempotency-key", "caf\u{e9}")],
            &[("bluebox-ordering-key", "a"), ("bluebox-ordering-key", "b")],
        ] {
            assert_eq!(draft("POST", false, bad).unwrap_err().kind(), Kind::BadRequest, "{bad:?}");
        }
    }
}

//! Judges the head of an HTTP/1 request, whole, before hyper sees it. What it refuses gets a problem document as any other refusal does; hyper would answer
//! with an empty 400 or 431, or, where there are two framings, choose one.
//!
//! A pure function. It uses hyper's own parser and types, so that it takes nothing that hyper does not.

use http::{Method, Uri};

use crate::problem::{Kind, Problem};
use crate::target;

/// Fields that a head may have; beyond: 431. (hyper's own limit, 100, is one that real requests have met.)
pub const MOST_FIELDS: usize = 256;
/// The longest target, and the longest name or value of a field, that hyper's types hold, in bytes.
const LONGEST_PART_BYTES: usize = 65_534;
/// Larger contents than these can't be counted by hyper.
const LARGEST_CONTENT_BYTES: u64 = i64::MAX as u64;

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    None,
    /// So many bytes.
    Sized(u64),
    /// Chunks.
    Chunked,
}

/// A head that is well-formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What follows it.
    pub content: Content,
    /// Whether the connection may speak another protocol after the answer: CONNECT, or an `Upgrade`.
    pub may_switch: bool,
    /// The path and query as they were sent, where hyper's types don't take them: then those bytes are masked in the head.
    pub raw_target: Option<Box<str>>,
}

/// Judges a complete head, its empty line included. Masks bytes of the target that hyper's types don't take, and says so in [`Head::raw_target`].
///
/// # Errors
/// When it is malformed, too large for hyper, or framed in a way that two readers could read differently. Nothing after it can be read.
pub fn judge(head: &mut [u8]) -> Result<Head, Problem> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(too_large(format!("the head has more than {MOST_FIELDS} fields; send fewer")));
        }
        _ => return Err(fault(head)),
    }
    let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else { return Err(fault(head)) };
    if path.len() > LONGEST_PART_BYTES {
        return Err(too_large(format!("the request target has {} bytes; {LONGEST_PART_BYTES} are taken", path.len())));
    }
    if let Some(long) = request.headers.iter().find(|f| f.name.len() > LONGEST_PART_BYTES || f.value.len() > LONGEST_PART_BYTES) {
        return Err(too_large(format!("field {:?} is longer than the {LONGEST_PART_BYTES} bytes that are taken", shown(long.name.as_bytes()))));
    }
    let content = content(request.headers, minor == 1)?;
    let is_connect = method == Method::CONNECT.as_str();
    let may_switch = is_connect || (minor == 1 && request.headers.iter().any(|f| f.name.eq_ignore_ascii_case("upgrade")));
    let mut raw_target = None;
    if let Some((from, text)) = if is_connect { None } else { target::raw_part(path) } {
        let masked = target::mask(text);
        check_target(method, &format!("{}{masked}", &path[..from]), path)?;
        let (from, text) = (method.len() + 1 + from, Box::from(text));
        head[from..from + masked.len()].copy_from_slice(masked.as_bytes());
        raw_target = Some(text);
    } else {
        check_target(method, path, path)?;
    }
    Ok(Head { content, may_switch, raw_target })
}

/// Judges a request line alone, its line end included: what can be no head is refused before the rest of it comes.
///
/// # Errors
/// When no head can begin with it.
pub fn judge_line(line: &[u8]) -> Result<(), Problem> {
    let mut fields = [];
    match httparse::Request::new(&mut fields).parse(line) {
        Ok(httparse::Status::Partial) => Ok(()),
        _ => Err(fault(line)),
    }
}

/// Judges the beginning of a request line in which no space has come yet.
///
/// # Errors
/// When it can be no method.
pub fn judge_method(begin: &[u8]) -> Result<(), Problem> {
    if begin.iter().copied().all(is_token) { Ok(()) } else { Err(fault(begin)) }
}

/// What follows (RFC 9112, section 6.3), where that is clear.
fn content(fields: &[httparse::Header<'_>], is_http_11: bool) -> Result<Content, Problem> {
    let bad = |detail: String| Err(Problem::new(Kind::BadRequest, detail).closing());
    let mut length: Option<u64> = None;
    let mut codings: Option<Vec<&[u8]>> = None;
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            let digits = field.value.trim_ascii();
            let number = std::str::from_utf8(digits).ok().filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse().ok());
            match number.filter(|n| *n <= LARGEST_CONTENT_BYTES) {
                None => return bad(format!("Content-Length {:?} is no number of bytes (RFC 9110, section 8.6)", shown(digits))),
                Some(number) if length.is_some_and(|l| l != number) => {
                    return bad("there are several Content-Length fields that differ; send one (RFC 9110, section 8.6)".to_owned());
                }
                Some(number) => length = Some(number),
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            let named = field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|c| !c.is_empty());
            codings.get_or_insert_default().extend(named);
        }
    }
    let Some(codings) = codings else {
        return Ok(length.filter(|l| *l > 0).map_or(Content::None, Content::Sized));
    };
    if length.is_some() {
        return bad("the request has both Content-Length and Transfer-Encoding; send one of them (RFC 9112, section 6.3)".to_owned());
    }
    if !is_http_11 {
        return bad("HTTP/1.0 has no Transfer-Encoding (RFC 9112, section 6.1); send a Content-Length".to_owned());
    }
    let text = shown(&codings.join(&b", "[..]));
    match codings.as_slice() {
        [only] if only.eq_ignore_ascii_case(b"chunked") => Ok(Content::Chunked),
        // hyper would decode the last and leave the others in the content, though they end with this connection.
        [.., last] if last.eq_ignore_ascii_case(b"chunked") => {
            Err(Problem::new(Kind::UnknownCoding, format!("Transfer-Encoding {text:?}: only \"chunked\", once, is understood")).closing())
        }
        _ => bad(format!("Transfer-Encoding {text:?} does not end with \"chunked\", so the end of the body can't be known (RFC 9112, section 6.3)")),
    }
}

/// Whether the target has the form that it may have with this method (RFC 9112, section 3.2).
fn check_target(method: &str, masked: &str, sent: &str) -> Result<(), Problem> {
    let bad = |detail: String| Err(Problem::new(Kind::BadRequest, detail).closing());
    if sent.contains('#') {
        return bad("the request target has a '#': fragments are not sent (RFC 9112, section 3.2); if it is data, percent-encode it as %23".to_owned());
    }
    let uri = Uri::try_from(masked).ok();
    let has_its_form = uri.is_some_and(|uri| match method {
        "CONNECT" => uri.authority().is_some() && uri.scheme().is_none() && uri.path_and_query().is_none(),
        "OPTIONS" if masked == "*" => true,
        // Else the name of a server alone is none: it would be taken for the host, whatever Host says.
        _ => masked.starts_with('/') || (uri.scheme().is_some() && uri.authority().is_some()),
    });
    if has_its_form {
        return Ok(());
    }
    bad(format!(
        "request target {:?} has none of the forms of RFC 9112, section 3.2: /path?query, http://host/path, host:port for CONNECT, * for OPTIONS",
        shown(sent.as_bytes())
    ))
}

/// What is wrong with a head that hyper's parser does not take.
fn fault(head: &[u8]) -> Problem {
    let mut lines = head.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let line = lines.next().unwrap_or_default();
    let detail = fault_in_line(line)
        .or_else(|| lines.find_map(fault_in_field))
        .unwrap_or_else(|| "the head of the request is no HTTP (RFC 9112, section 2.1)".to_owned());
    Problem::new(Kind::BadRequest, detail).closing()
}

fn fault_in_line(line: &[u8]) -> Option<String> {
    let mut words = line.splitn(3, |b| *b == b' ');
    let (method, target, version) = (words.next().unwrap_or_default(), words.next(), words.next());
    if method.is_empty() {
        return Some("the request line has no method (RFC 9112, section 3)".to_owned());
    }
    if let Some(bad) = method.iter().find(|b| !is_token(**b)) {
        return Some(format!("the request does not begin with a method: {} is not allowed in it (RFC 9110, section 9.1); for TLS use CONNECT", byte(*bad)));
    }
    let target = target.unwrap_or_default();
    if target.is_empty() {
        return Some("the request line has no target (RFC 9112, section 3)".to_owned());
    }
    if let Some(bad) = target.iter().find(|b| b.is_ascii_control()) {
        return Some(format!("the request target has {}; percent-encode it as %{bad:02X} (RFC 3986, section 2.1)", byte(*bad)));
    }
    if std::str::from_utf8(target).is_err() {
        let bad = target.utf8_chunks().find_map(|c| c.invalid().first().copied()).unwrap_or_default();
        return Some(format!("the request target has {}, which is no UTF-8 there; percent-encode it as %{bad:02X} (RFC 3986, section 2.1)", byte(bad)));
    }
    match version {
        None => Some("the request line has no version: HTTP/0.9 is not spoken here; send HTTP/1.1".to_owned()),
        Some(b"HTTP/1.1" | b"HTTP/1.0") => None,
        Some(version) if version.contains(&b' ') => Some("the request target has a space; percent-encode it as %20 (RFC 3986, section 2.1)".to_owned()),
        Some(version) => Some(format!("version {:?}: HTTP/1.1, HTTP/1.0, and HTTP/2 with prior knowledge are spoken here", shown(version))),
    }
}

/// Values are not shown: they may be secrets.
fn fault_in_field(line: &[u8]) -> Option<String> {
    if line.is_empty() {
        return None;
    }
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Some("a field is folded over several lines (RFC 9112, section 5.2); send it in one".to_owned());
    }
    let Some(colon) = line.iter().position(|b| *b == b':') else {
        return Some("a field line has no colon (RFC 9112, section 5)".to_owned());
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let text = shown(name);
    if name.is_empty() {
        return Some("a field has no name (RFC 9112, section 5)".to_owned());
    }
    if let Some(bad) = name.iter().find(|b| !is_token(**b)) {
        return Some(format!("field name {text:?} has {}, which is not allowed there (RFC 9110, section 5.1)", byte(*bad)));
    }
    let bad = value.iter().find(|b| b.is_ascii_control() && **b != b'\t')?;
    Some(format!("the value of field {text:?} has {}, which is not allowed there (RFC 9110, section 5.5)", byte(*bad)))
}

fn too_large(detail: String) -> Problem {
    Problem::new(Kind::HeadTooLarge, detail).closing()
}

/// Characters of a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte as a person reads it.
fn byte(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("{:?}", char::from(byte)) } else { format!("byte 0x{byte:02X}") }
}

/// The beginning of what came, to be shown.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Result<(Head, String), Problem> {
        let mut bytes = head.as_bytes().to_vec();
        judge(&mut bytes).map(|head| (head, String::from_utf8(bytes).unwrap()))
    }

    fn detail(head: &[u8]) -> String {
        let problem = judge(&mut head.to_vec()).unwrap_err();
        let document: serde_json::Value = serde_json::from_slice(problem.into_response().body()).unwrap();
        document["detail"].as_str().unwrap().to_owned()
    }

    #[test]
    fn what_follows_is_told_from_the_head() {
        for (fields, content) in [
            ("", Content::None),
            ("Content-Length: 0\r\n", Content::None),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Content::Sized(5)),
            ("Transfer-Encoding: Chunked\r\n", Content::Chunked),
        ] {
            assert_eq!(judged(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).unwrap().0.content, content, "{fields}");
        }
        for (fields, kind) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Kind::BadRequest),
            ("Transfer-Encoding: chunked\r\ncontent-length: 0\r\n", Kind::BadRequest),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", Kind::BadRequest),
            ("Content-Length: +5\r\n", Kind::BadRequest),
            ("Content-Length:\r\n", Kind::BadRequest),
            ("Content-Length: 18446744073709551615\r\n", Kind::BadRequest),
            ("Transfer-Encoding:\r\n", Kind::BadRequest),
            ("Transfer-Encoding: \u{80}\r\n", Kind::BadRequest),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", Kind::BadRequest),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Kind::UnknownCoding),
            (&"a: b\r\n".repeat(257), Kind::HeadTooLarge),
        ] {
            assert_eq!(judged(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).unwrap_err().kind(), kind, "{fields}");
        }
        assert_eq!(judged("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err().kind(), Kind::BadRequest);
        assert!(judged(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(256))).is_ok());
    }

    #[test]
    fn what_may_switch_protocols_is_seen() {
        for (head, may_switch) in [
            ("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n", false),
            ("CONNECT a:1 HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.1\r\n\r\n", false),
        ] {
            assert_eq!(judged(head).unwrap().0.may_switch, may_switch, "{head}");
        }
    }

    #[test]
    fn bytes_that_are_no_uris_are_masked_in_path_and_query_alone() {
        for (sent, masked, raw) in [
            ("/a?q=\"x\"", "/a?q=_x_", Some("/a?q=\"x\"")),
            ("http://cart/<a>?`", "http://cart/_a_?_", Some("/<a>?`")),
            ("http://cart?<", "http://cart?_", Some("?<")),
            ("/caf\u{e9}?{}|\\^", "/caf\u{e9}?{}|\\^", None),
        ] {
            let (head, bytes) = judged(&format!("GET {sent} HTTP/1.1\r\nHost: cart\r\n\r\n")).unwrap();
            assert_eq!((head.raw_target.as_deref(), bytes), (raw, format!("GET {masked} HTTP/1.1\r\nHost: cart\r\n\r\n")));
        }
        for sent in ["http://ca<rt/", "ca<rt", "/a#b", "/a?x#", "//a\u{7f}", "x", "http:///a", "<", "*?x"] {
            assert_eq!(judged(&format!("GET {sent} HTTP/1.1\r\n\r\n")).map_err(|p| p.kind()), Err(Kind::BadRequest), "{sent}");
        }
        for (line, fits) in [
            ("CONNECT cart:80", true),
            ("CONNECT ca<rt:80", false),
            ("CONNECT /", false),
            ("CONNECT http://cart:80/", false),
            ("OPTIONS *", true),
            ("GET *", false),
            ("GET cart:80", false),
            ("OPTIONS http://cart", true),
        ] {
            assert_eq!(judged(&format!("{line} HTTP/1.1\r\n\r\n")).is_ok(), fits, "{line}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_wrong_and_the_remedy() {
        for (head, says) in [
            (&b"GET /a\x7fb HTTP/1.1\r\n\r\n"[..], "byte 0x7F; percent-encode it as %7F"),
            (b"GET /a\xffb HTTP/1.1\r\n\r\n", "byte 0xFF, which is no UTF-8 there; percent-encode it as %FF"),
            (b"GET /a b HTTP/1.1\r\n\r\n", "a space; percent-encode it as %20"),
            (b"GET /a#b HTTP/1.1\r\n\r\n", "%23"),
            (b"GET /\r\n\r\n", "HTTP/0.9 is not spoken"),
            (b"GET / HTTP/3.0\r\n\r\n", "version \"HTTP/3.0\""),
            (b"G\0T / HTTP/1.1\r\n\r\n", "byte 0x00 is not allowed"),
            (b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "folded"),
            (b"GET / HTTP/1.1\r\nHost cart\r\n\r\n", "no colon"),
            (b"GET / HTTP/1.1\r\nHost : cart\r\n\r\n", "\"Host \" has byte 0x20"),
            (b"GET / HTTP/1.1\r\nX: se\0cret\r\n\r\n", "the value of field \"X\" has byte 0x00"),
        ] {
            let detail = detail(head);
            assert!(detail.contains(says) && !detail.contains("cret"), "{detail:?}");
        }
    }

    #[test]
    fn a_request_line_is_judged_as_soon_as_it_is_there() {
        assert!(judge_line(b"GET / HTTP/1.1\r\n").is_ok() && judge_method(b"GE").is_ok());
        assert!(judge_line(b"GET /\r\n").is_err() && judge_method(b"\x16\x03").is_err());
    }
}

//! What a client speaks, by its first bytes. Pure functions.

use http::uri::Authority;

use crate::registry::Directory;

/// What is known by the bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.x, or HTTP/2 with prior knowledge.
    Http,
    /// Something else.
    Other,
    /// It could still be HTTP: more bytes are needed.
    Unclear,
}

/// How HTTP/2 begins (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method that is taken for one; the longest that is registered has 17.
const LONGEST_METHOD: usize = 32;

/// What a client speaks that begins with these bytes.
///
/// HTTP/1.x is a whole request line that ends in its version (RFC 9112, section 3): other protocols of text begin with words too. A tunnel (CONNECT) is no HTTP here: it
/// leads from one server to another, which the redirect is not.
pub fn speaks(bytes: &[u8]) -> Speaks {
    if bytes.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(bytes) {
        return Speaks::Unclear;
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Speaks::Http;
    }
    // A server passes over empty lines before a request (RFC 9112, section 2.2).
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = &bytes[start..];
    let method = line.iter().position(|b| !is_token(*b)).unwrap_or(line.len());
    if method > LONGEST_METHOD {
        return Speaks::Other;
    }
    match line.get(method) {
        None => return Speaks::Unclear,
        Some(b' ') if method > 0 && &line[..method] != b"CONNECT" => {}
        Some(_) => return Speaks::Other,
    }
    let rest = &line[method + 1..];
    match rest.iter().position(|b| *b == b'\n') {
        Some(end) if rest[..end].trim_ascii_end().rsplit(|b| *b == b' ').next().is_some_and(|last| last.starts_with(b"HTTP/1.")) => Speaks::Http,
        Some(_) => Speaks::Other,
        // A request target has no control characters.
        None if rest.iter().any(|b| b.is_ascii_control() && *b != b'\r') => Speaks::Other,
        None => Speaks::Unclear,
    }
}

/// Characters of a method (RFC 9110, section 5.6.2).
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Whether these bytes begin a request of HTTP/1.x whose Host names a component, and whose ports, that of the Host and that of the connection, are among the component's.
///
/// For connections to addresses of which nothing is known: an app that was told the address by somebody else than the proxy.
pub fn names_a_component(bytes: &[u8], port: u16, directory: &Directory) -> bool {
    if speaks(bytes) != Speaks::Http {
        return false;
    }
    let lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).skip_while(|line| line.is_empty()).skip(1);
    let mut fields = lines.take_while(|line| !line.is_empty());
    let Some(host) =
        fields.find_map(|line| line.split_at_checked(5).filter(|(name, _)| name.eq_ignore_ascii_case(b"host:")).map(|(_, value)| value.trim_ascii()))
    else {
        return false;
    };
    let Ok(host) = Authority::try_from(host) else { return false };
    let name = host.host().to_ascii_lowercase();
    directory.component_at(&name, &[port, host.port_u16().unwrap_or(80)]).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bluebox_core::registry::{Component, Registry};

    use super::*;

    #[test]
    fn http_is_told_by_its_whole_request_line() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost: cart\r\n\r\n",
            "POST /items?q=a HTTP/1.0\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1\n",
            "M-SEARCH * HTTP/1.1\r\n",
            "GET http://cart/ HTTP/1.1\r\n",
            "GET /a b HTTP/1.1\r\n",
        ] {
            assert_eq!(speaks(text.as_bytes()), Speaks::Http, "{text:?}");
        }
        assert_eq!(speaks(HTTP2_PREFACE), Speaks::Http);
        assert_eq!(speaks(&[HTTP2_PREFACE, b"\0\0\0\x04"].concat()), Speaks::Http);
    }

    #[test]
    fn what_could_become_http_is_unclear_as_long_as_it_could() {
        for text in ["", "G", "GET", "GET /", "GET / HTTP/1.1", "GET / HTTP/1.1\r", "\r\n", "P", "PRI * HTTP/2.0\r\n\r\nSM", "PATCH"] {
            assert_eq!(speaks(text.as_bytes()), Speaks::Unclear, "{text:?}");
        }
    }

    #[test]
    fn other_protocols_are_other() {
        let tls: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0];
        for bytes in [
            tls,
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"SSH-2.0-OpenSSH_9\r\n",
            b"get key\r\n",
            b"EHLO me\r\n",
            b"EHLO me.example HTTP\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"GET /\r\n",
            b"CONNECT cart:80 HTTP/1.1\r\n",
            b" GET / HTTP/1.1\r\n",
            b"GET\t/ HTTP/1.1\r\n",
            b"GET /\x01",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"thismethodislongerthananymethodthatthereis",
        ] {
            assert_eq!(speaks(bytes), Speaks::Other, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_host_at_an_unknown_address() {
        let mut registry = Registry::default();
        let cart = Component { ports: vec![80, 8080], ..Component::default() };
        registry.apply(b"cart", Some(&serde_json::to_vec(&cart).unwrap())).unwrap();
        let directory = Directory { registry: Arc::new(registry), complete: true, ..Directory::default() };
        let names = |text: &str, port| names_a_component(text.as_bytes(), port, &directory);
        assert!(names("GET / HTTP/1.1\r\nHost: cart\r\n\r\n", 80));
        assert!(names("\r\nGET / HTTP/1.1\r\nAccept: */*\r\nHOST:CART:8080\r\n", 8080));
        assert!(!names("GET / HTTP/1.1\r\nHost: cart\r\n\r\n", 81), "another port of the connection");
        assert!(!names("GET / HTTP/1.1\r\nHost: cart:81\r\n\r\n", 80), "another port of the Host");
        assert!(!names("GET / HTTP/1.1\r\nHost: other\r\n\r\n", 80));
        assert!(!names("GET / HTTP/1.1\r\nAccept: */*\r\n\r\nhost: cart\r\n", 80), "that is the body");
        assert!(!names("GET / HTTP/1.1\r\nHost: cart@x\r\n\r\n", 80));
        assert!(!names("PING\r\nHost: cart\r\n\r\n", 80));
    }

    proptest::proptest! {
        #[test]
        fn more_bytes_only_ever_decide_what_was_unclear(text in "(GET|PRI|PING|\\*1)?[ -~\r\n]{0,60}( HTTP/1.1\r\n)?", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let before = speaks(&bytes[..cut.min(bytes.len())]);
            let after = speaks(bytes);
            proptest::prop_assert!(before == Speaks::Unclear || before == after, "{before:?} became {after:?}");
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            speaks(&bytes);
            names_a_component(&bytes, 80, &Directory::default());
        }
    }
}

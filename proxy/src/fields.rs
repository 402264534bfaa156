//! Which header fields travel with a call, and which end here.
//!
//! Hop-by-hop fields belong to one connection (RFC 9110, section 7.6.1) and are taken out on both sides. Fields whose names begin with `bluebox-` are
//! Bluebox's own: what an app sends under such a name is never passed on, so none can be forged.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

/// The call's id, on a delivery and on what the proxy answers itself.
pub const CALL_ID: HeaderName = HeaderName::from_static("bluebox-call-id");
/// On a delivery: which attempt this is; the first is 1.
pub const ATTEMPT: HeaderName = HeaderName::from_static("bluebox-attempt");
/// On a delivery: `true` when an earlier one may have reached the app; else not there.
pub const MAY_HAVE_STARTED: HeaderName = HeaderName::from_static("bluebox-may-have-started");
/// On a delivery of a request that an app has passed on with the fields of its own delivery: through how many calls it had come by then.
pub const HOPS: HeaderName = HeaderName::from_static("bluebox-hops");
/// On a delivery: the component that calls.
pub const CALLER: HeaderName = HeaderName::from_static("bluebox-caller");
/// On a delivery to a component whose calls are routed by transactions: the partition that the call lies in.
pub const PARTITION: HeaderName = HeaderName::from_static("bluebox-partition");
/// On a response: it is the proxy's, not the app's; the value says why in a word (see [`crate::problem`]).
pub const ERROR: HeaderName = HeaderName::from_static("bluebox-error");
/// On a response of the proxy: whether sending the request again can't make two of it; `true` or `false`.
pub const RETRY_SAFE: HeaderName = HeaderName::from_static("bluebox-retry-safe");
/// On a request: the ordering key that the caller gives it. Taken out on the way.
pub const ORDERING_KEY: HeaderName = HeaderName::from_static("bluebox-ordering-key");
/// On a request: how long it may be delivered, in milliseconds from its acceptance, where that is less than usual. Taken out on the way.
pub const TTL: HeaderName = HeaderName::from_static("bluebox-ttl");
/// On an answer of `http://bluebox/v1/calls/ID`: `pending` or `ended`.
pub const CALL_STATE: HeaderName = HeaderName::from_static("bluebox-call-state");

/// What the names of Bluebox's own fields begin with.
pub const OWN_PREFIX: &str = "bluebox-";

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

/// Fields of one connection whether or not `Connection` lists them.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    PROXY_AUTHENTICATION_INFO,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out of a request what must not travel: hop-by-hop fields, forged fields of Bluebox, `Host` (the authority is a part of its own), `Expect` (it is
/// answered where the body is taken in) and `Content-Length` (whoever sends the body knows its length).
///
/// `TE: trailers` stays, in that form alone, because trailers do travel; on HTTP/1.1 its next sender adds the connection option `TE` (RFC 9110, section 10.1.4).
/// Take out [`ORDERING_KEY`] before.
pub fn strip_request(headers: &mut HeaderMap) {
    let trailers = takes_trailers(headers);
    strip_hop_by_hop(headers);
    strip_own(headers);
    for name in [header::HOST, header::EXPECT, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out of an app's response what must not travel: hop-by-hop fields, forged fields of Bluebox, and a `Content-Length` that is the framing of a body.
///
/// A `Content-Length` that only tells of a body stays: in an answer to HEAD, and with 304 (RFC 9110, section 8.6).
pub fn strip_response(method: &Method, status: StatusCode, headers: &mut HeaderMap) {
    strip_framing(method, status, headers);
    strip_own(headers);
}

/// The part of [`strip_response`] that is not about Bluebox.
pub fn strip_framing(method: &Method, status: StatusCode, headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    let tells = (*method == Method::HEAD && status != StatusCode::NO_CONTENT) || status == StatusCode::NOT_MODIFIED;
    if !tells {
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// Takes out of trailer fields what must not be there: framing, routing and hop-by-hop fields (RFC 9110, section 6.5.1) and forged fields of Bluebox.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    strip_own(trailers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::TRAILER, header::EXPECT] {
        trailers.remove(name);
    }
}

/// Takes out the fields that belong to one connection (RFC 9110, section 7.6.1): `Connection`, what it lists, and those that are so by nature.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers, &header::CONNECTION).filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok()).collect();
    for name in listed.iter().chain(&HOP_BY_HOP).chain([&header::TE]) {
        headers.remove(name);
    }
}

/// Takes out every field whose name begins with [`OWN_PREFIX`].
pub fn strip_own(headers: &mut HeaderMap) {
    let own: Vec<HeaderName> = headers.keys().filter(|n| n.as_str().starts_with(OWN_PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Whether the content of a response is left in a transfer coding that only this connection was to have: hyper decodes `chunked`, and we ask for no other.
pub fn is_still_coded(headers: &HeaderMap) -> bool {
    let taken = |coding: &str| coding.eq_ignore_ascii_case("chunked") || coding.eq_ignore_ascii_case("identity");
    headers.contains_key(header::TRANSFER_ENCODING)
        && (!tokens(headers, &header::TRANSFER_ENCODING).all(taken) || tokens(headers, &header::TRANSFER_ENCODING).count() != 1)
}

/// Names in `Trailer` (RFC 9110, section 6.6.2) those of the trailer fields that it doesn't name yet: HTTP/1.1 is sent no others.
pub fn announce_trailers(headers: &mut HeaderMap, trailers: &HeaderMap) {
    let named: Vec<String> = tokens(headers, &header::TRAILER).map(str::to_ascii_lowercase).collect();
    for name in trailers.keys().filter(|n| !named.iter().any(|m| m == n.as_str())) {
        headers.append(header::TRAILER, HeaderValue::from(name.clone()));
    }
}

/// Whether the sender of this request takes trailer fields with the answer (`TE: trailers`, RFC 9110, section 10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|t| t.eq_ignore_ascii_case("trailers"))
}

/// Whether `Connection` lists `option`.
pub fn connection_lists(headers: &HeaderMap, option: &str) -> bool {
    tokens(headers, &header::CONNECTION).any(|t| t.eq_ignore_ascii_case(option))
}

/// The members of a comma-separated field, over all its lines. What is no text is no member.
pub fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_belongs_to_a_connection_ends_with_it() {
        let mut request = headers(&[
            ("connection", "close, X-Mine"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip, Trailers"),
            ("host", "cart"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("cookie", "a=b"),
        ]);
        strip_request(&mut request);
        assert_eq!(request, headers(&[("x-other", "2"), ("cookie", "a=b"), ("te", "trailers")]));
    }

    #[test]
    fn connection_lists_over_several_lines() {
        let mut request = HeaderMap::new();
        request.append("connection", HeaderValue::from_static("x-one"));
        request.append("connection", HeaderValue::from_static(" ,x-two ,"));
        request.append("x-one", HeaderValue::from_static("1"));
        request.append("x-two", HeaderValue::from_static("2"));
        strip_request(&mut request);
        assert!(request.is_empty(), "{request:?}");
    }

    #[test]
    fn fields_of_our_own_are_never_an_apps() {
        for strip in [strip_request, |h: &mut HeaderMap| strip_response(&Method::GET, StatusCode::OK, h), strip_trailers] {
            let mut forged = headers(&[("bluebox-call-id", "1"), ("bluebox-later", "2"), ("blueboxer", "3")]);
            strip(&mut forged);
            assert_eq!(forged, headers(&[("blueboxer", "3")]));
        }
    }

    #[test]
    fn a_length_that_only_tells_survives() {
        for (method, status, survives) in
            [("GET", 200, false), ("HEAD", 200, true), ("GET", 304, true), ("HEAD", 304, true), ("GET", 204, false), ("HEAD", 204, false)]
        {
            let mut response = headers(&[("content-length", "12")]);
            strip_response(&method.parse().unwrap(), StatusCode::from_u16(status).unwrap(), &mut response);
            assert_eq!(!response.is_empty(), survives, "{method} {status}");
        }
    }
}

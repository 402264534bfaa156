//! Decides where a request goes: a durable call, straight to a server, to Bluebox itself, or nowhere. A pure function of the request's head and the registry.

use bluebox_core::ComponentName;
use bluebox_core::name::RESERVED;
use bluebox_core::registry::{Component, Streams, ordinal_of};
use http::uri::Authority;
use http::{Method, Version, header, request};

use crate::fields;
use crate::names::Names;
use crate::outbound::envelope::Destination;
use crate::problem::{Kind, Problem};
use crate::registry::Directory;
use crate::target::RawTarget;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A durable call.
    Call {
        /// Whom, and what of it.
        destination: Destination,
        /// What the registry says of the component.
        component: Component,
    },
    /// A resource of Bluebox's own; the path and query.
    Own(String),
    /// To a server that is no component, as it is.
    PassThrough(Target),
    /// To a component, but without the log: the exchange can't be durable, and the component takes such.
    Stream {
        /// As the caller named it.
        target: Target,
        /// Where boxes of the component can be reached; any of them will do.
        direct: Vec<String>,
    },
    /// Nowhere: a tunnel to a component ends here, and what is HTTP in it is served as on any connection.
    Tunnel {
        /// As the caller named it.
        target: Target,
        /// Where what is not HTTP can go, if the component takes such.
        direct: Vec<String>,
    },
}

/// What the caller asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The authority, as the caller named it.
    pub authority: Authority,
    /// The request target in origin form, or `*`; empty for CONNECT.
    pub target: String,
    /// Whether a tunnel was asked for (CONNECT, RFC 9110, section 9.3.6).
    pub tunnel: bool,
}

impl Target {
    /// The component that it could be, or of which it could be an ordinal: what is in no registry yet may be soon.
    pub fn may_be_a_component(&self, names: &Names) -> Option<String> {
        may_be_a_component(&host_of(&self.authority).to_ascii_lowercase(), names).map(str::to_owned)
    }

    /// Host and port to connect to; port 80 where none is named.
    pub fn host_and_port(&self) -> (&str, u16) {
        (host_of(&self.authority), self.authority.port_u16().unwrap_or(80))
    }
}

/// Decides.
///
/// # Errors
/// When the request names no server, or one that can't be told for sure; when the exchange can't be durable and the component takes no other; and, while the
/// registry has not been read, when the name may be a component's.
pub fn decide(head: &request::Parts, directory: &Directory) -> Result<Route, Problem> {
    decide_at(head, directory, None)
}

/// Decides for a request on a connection that was going to this port: a call's port must be one of the component's there too.
///
/// # Errors
/// As [`decide`].
pub fn decide_at(head: &request::Parts, directory: &Directory, at: Option<u16>) -> Result<Route, Problem> {
    let authority = authority(head)?;
    let tunnel = head.method == Method::CONNECT;
    let port = port(&authority, tunnel)?;
    let host = host_of(&authority).to_ascii_lowercase();
    let target = Target { authority, target: if tunnel { String::new() } else { origin_form(head) }, tunnel };

    let label = directory.names.hosted(&host);
    // Some clients ask for a tunnel whatever they want to say in it (those of Node's `fetch` up to 24). One that the redirect caught would have to be in another one.
    let ends_here = tunnel && at.is_none() && head.version <= Version::HTTP_11;
    let at = at.unwrap_or(port);

    if label == Some(RESERVED) && port == 80 && at == 80 && (!tunnel || ends_here) {
        return Ok(if ends_here { Route::Tunnel { target, direct: Vec::new() } } else { Route::Own(target.target) });
    }
    let Some((name, component, ordinal)) = directory.component_at(&host, &[port, at]) else {
        if !directory.complete && may_be_a_component(&host, &directory.names).is_some() {
            let detail = format!("{host:?} may be a component, but the registry has not been read yet; try again");
            return Err(Problem::new(Kind::NotReady, detail));
        }
        return Ok(Route::PassThrough(target));
    };
    if let Some(ordinal) = ordinal.filter(|ordinal| *ordinal >= component.partitions) {
        let last = component.partitions.saturating_sub(1);
        let detail =
            format!("{host}: component {name} has the ordinals 0 to {last}, not {ordinal}; how many it can have was fixed when it was first registered");
        return Err(Problem::new(Kind::NoSuchOrdinal, detail));
    }
    if let Some(what) = cannot_be_durable(head) {
        let direct = match ordinal.and_then(|ordinal| usize::try_from(ordinal).ok()) {
            Some(ordinal) => component.direct.get(ordinal).map(std::slice::from_ref).unwrap_or_default(),
            None => &component.direct,
        };
        if ends_here {
            let direct = if component.streams == Streams::Pass { direct.to_vec() } else { Vec::new() };
            return Ok(Route::Tunnel { target, direct });
        }
        return match component.streams {
            Streams::Pass if !direct.is_empty() => Ok(Route::Stream { target, direct: direct.to_vec() }),
            Streams::Pass => Err(refused(name, what, "its registration names no address to reach it at directly (`direct`)")),
            Streams::Refuse => Err(refused(name, what, "register the component with `streams: pass` to let such through without the log")),
        };
    }
    let ordinal = ordinal.or_else(|| component.routing.partition(&target.target, component.partitions));
    let destination = Destination { callee: name.clone(), ordinal, authority: target.authority.to_string(), target: target.target };
    Ok(Route::Call { destination, component: component.clone() })
}

fn may_be_a_component<'h>(host: &'h str, names: &Names) -> Option<&'h str> {
    let name = ordinal_of(host).map(|(name, _)| name).or_else(|| names.hosted(host))?;
    ComponentName::try_new(name).is_ok().then_some(name)
}

fn refused(name: &ComponentName, what: &str, remedy: &str) -> Problem {
    Problem::new(Kind::StreamRefused, format!("component {name}: {what} can't be durable, so it was refused; {remedy}"))
}

/// The one authority that the request names.
///
/// HTTP/1.1 with none or several Host fields is refused (RFC 9112, section 3.2). An absolute request target is what counts, and Host is replaced by it (section
/// 3.2.2). In HTTP/2 the two must agree (RFC 9113, section 8.3.1).
fn authority(head: &request::Parts) -> Result<Authority, Problem> {
    let bad = |rule: String| Problem::new(Kind::BadRequest, rule).closing();
    let mut hosts = head.headers.get_all(header::HOST).into_iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("the Host field is there more than once; send it once (RFC 9112, section 3.2)".to_owned()));
    }
    let parse = |bytes: &[u8]| {
        // What stands before an `@` is a name and a password.
        let host = bytes.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
        let shown = String::from_utf8_lossy(&host[..host.len().min(100)]);
        let refuse = || {
            let rule = if host.len() < bytes.len() {
                "there is no user information (what stands before an `@`) in the host of a request"
            } else {
                "this is no host with an optional port"
            };
            bad(format!("Host {shown:?}: {rule} (RFC 9110, section 7.2)"))
        };
        let authority = Authority::try_from(bytes).map_err(|_| refuse())?;
        if authority.host().is_empty() || authority.as_str().contains('@') { Err(refuse()) } else { Ok(authority) }
    };
    if host.is_none() && head.version == Version::HTTP_11 {
        return Err(bad("the Host field is missing (RFC 9112, section 3.2)".to_owned()));
    }
    // What is replaced must be well-formed all the same: a Host that can't be read is 400 (section 3.2).
    let named = host.map(|h| h.as_bytes()).filter(|h| !h.is_empty()).map(parse).transpose()?;
    let Some(absolute) = head.uri.authority() else {
        return named.ok_or_else(|| bad("the request names no host".to_owned()));
    };
    if let Some(scheme) = head.uri.scheme_str().filter(|s| !s.eq_ignore_ascii_case("http")) {
        return Err(bad(format!("scheme {scheme:?}: only http is taken in a request target; for TLS use CONNECT")));
    }
    let absolute = parse(absolute.as_str().as_bytes())?;
    if head.version == Version::HTTP_2 && named.as_ref().is_some_and(|n| !n.as_str().eq_ignore_ascii_case(absolute.as_str())) {
        return Err(bad(":authority and Host differ (RFC 9113, section 8.3.1)".to_owned()));
    }
    Ok(absolute)
}

fn port(authority: &Authority, tunnel: bool) -> Result<u16, Problem> {
    // The port is what follows the host: `cart:` has an empty one, which is the usual one (RFC 3986, section 3.2.3).
    let text = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    match text.strip_prefix(':').unwrap_or(text) {
        "" if tunnel => Err(Problem::new(Kind::BadRequest, "CONNECT needs a port (RFC 9110, section 9.3.6)").closing()),
        "" => Ok(80),
        digits => digits.parse::<u16>().ok().filter(|p| *p != 0 && digits.bytes().all(|b| b.is_ascii_digit())).ok_or_else(|| {
            let shown: String = digits.chars().take(20).collect();
            Problem::new(Kind::BadRequest, format!("port {shown:?}: ports are 1 to 65535")).closing()
        }),
    }
}

/// The host without the brackets of an IPv6 address.
fn host_of(authority: &Authority) -> &str {
    let host = authority.host();
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

fn origin_form(head: &request::Parts) -> String {
    let raw = head.extensions.get::<RawTarget>().map(|raw| &*raw.0);
    let text = raw.or_else(|| head.uri.path_and_query().map(|p| p.as_str())).unwrap_or_default();
    // An absolute target may have no path; in origin form it has one (RFC 9112, section 3.2.1).
    if text.starts_with(['/', '*']) { text.to_owned() } else { format!("/{text}") }
}

/// What makes an exchange one that the log can't carry: it goes both ways at once, or never ends.
fn cannot_be_durable(head: &request::Parts) -> Option<&'static str> {
    if head.method == Method::CONNECT {
        return Some("a tunnel (CONNECT)");
    }
    if wants_upgrade(head) {
        return Some("an upgrade to another protocol (WebSocket)");
    }
    let content_type = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    if content_type.len() >= 16 && content_type[..16].eq_ignore_ascii_case(b"application/grpc") {
        return Some("gRPC");
    }
    let mut accepts = fields::tokens(&head.headers, &header::ACCEPT);
    let first = accepts.next().and_then(|a| a.split(';').next()).map(str::trim);
    if first.is_some_and(|a| a.eq_ignore_ascii_case("text/event-stream")) && accepts.next().is_none() {
        return Some("an event stream (text/event-stream)");
    }
    None
}

/// Whether the request asks for another protocol on its connection (RFC 9110, section 7.8).
///
/// `h2c` and `TLS` don't count: they are offers that Java's and other clients make with every request, and a server may leave them (RFC 9113 dropped the first).
pub fn wants_upgrade(head: &request::Parts) -> bool {
    let offer = |p: &str| p.eq_ignore_ascii_case("h2c") || p.get(..4).is_some_and(|t| t.eq_ignore_ascii_case("tls/")) || p.eq_ignore_ascii_case("http/2.0");
    head.version == Version::HTTP_11
        && fields::connection_lists(&head.headers, "upgrade")
        && fields::tokens(&head.headers, &header::UPGRADE).any(|protocol| !offer(protocol))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bluebox_core::registry::{Class, Registry};

    use super::*;

    fn directory() -> Directory {
        let mut registry = Registry::default();
        let mut put = |name: &str, component: &Component| registry.apply(name.as_bytes(), Some(&serde_json::to_vec(component).unwrap())).unwrap();
        put("cart", &Component { ports: vec![80, 8080], ..Component::default() });
        put("chat", &Component { streams: Streams::Pass, direct: vec!["127.0.0.1:9".to_owned()], ..Component::default() });
        let direct = vec!["127.0.0.1:90".to_owned(), "127.0.0.1:91".to_owned()];
        put("app", &Component { class: Class::Stateful, partitions: 3, streams: Streams::Pass, direct, ..Component::default() });
        Directory { registry: Arc::new(registry), complete: true, registered: true, ..Directory::default() }
    }

    fn head(method: &str, uri: &str, version: Version, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(method).uri(uri).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn get(uri: &str, fields: &[(&str, &str)]) -> Result<Route, Problem> {
        decide(&head("GET", uri, Version::HTTP_11, fields), &directory())
    }

    fn callee(route: &Result<Route, Problem>) -> Option<(&str, &str, &str)> {
        match route {
            Ok(Route::Call { destination: d, .. }) => Some((d.callee.as_str(), &d.authority, &d.target)),
            _ => None,
        }
    }

    #[test]
    fn a_component_at_one_of_its_ports_is_called() {
        assert_eq!(callee(&get("/items?q=1", &[("host", "cart")])), Some(("cart", "cart", "/items?q=1")));
        assert_eq!(callee(&get("/", &[("host", "CART:8080")])), Some(("cart", "CART:8080", "/")));
        assert_eq!(callee(&get("/", &[("host", "cart:")])), Some(("cart", "cart:", "/")));
        assert_eq!(callee(&get("http://cart?x", &[("host", "cart")])), Some(("cart", "cart", "/?x")));
        // The request target counts, not the Host field (RFC 9112, section 3.2.2).
        assert_eq!(callee(&get("http://cart/", &[("host", "example.org")])), Some(("cart", "cart", "/")));
        assert_eq!(callee(&decide(&head("OPTIONS", "*", Version::HTTP_11, &[("host", "cart")]), &directory())), Some(("cart", "cart", "*")));
        assert_eq!(callee(&decide(&head("GET", "http://cart/", Version::HTTP_2, &[]), &directory())), Some(("cart", "cart", "/")));
    }

    #[test]
    fn an_ordinal_is_called_by_its_host() {
        let to = |host| match get("/x", &[("host", host)]) {
            Ok(Route::Call { destination: d, .. }) => Some((d.callee.as_str().to_owned(), d.ordinal, d.authority)),
            _ => None,
        };
        assert_eq!(to("app-2.app"), Some(("app".to_owned(), Some(2), "app-2.app".to_owned())));
        assert_eq!(to("APP-0.app:80"), Some(("app".to_owned(), Some(0), "APP-0.app:80".to_owned())));
        assert_eq!(to("app"), Some(("app".to_owned(), None, "app".to_owned())));
        let beyond = get("/x", &[("host", "app-3.app")]).unwrap_err();
        assert_eq!((beyond.kind(), beyond.kind().status().as_u16()), (Kind::NoSuchOrdinal, 400));
        for host in ["cart-0.cart", "app-2.app:81", "app-02.app", "app-2.app.svc"] {
            assert!(matches!(get("/", &[("host", host)]), Ok(Route::PassThrough(_))), "{host}");
        }
        // What goes without the log goes to the same ordinal.
        let stream = |host| get("/", &[("host", host), ("accept", "text/event-stream")]);
        assert!(matches!(stream("app-1.app"), Ok(Route::Stream { direct, .. }) if direct == ["127.0.0.1:91"]));
        assert_eq!(stream("app-2.app").unwrap_err().kind(), Kind::StreamRefused);
    }

    #[test]
    fn a_call_about_a_transaction_goes_where_that_is() {
        let mut registry = Registry::default();
        let component = Component { partitions: 8, routing: bluebox_core::routing::Routing::Transaction, ..Component::default() };
        registry.apply(b"txmgr", Some(&serde_json::to_vec(&component).unwrap())).unwrap();
        let directory = Directory { registry: Arc::new(registry), complete: true, ..Directory::default() };
        let ordinal = |uri| match decide(&head("PUT", uri, Version::HTTP_11, &[("host", "txmgr")]), &directory) {
            Ok(Route::Call { destination, .. }) => destination.ordinal,
            _ => panic!("no call"),
        };
        assert_eq!(ordinal("/lra-coordinator/0007-019b2c3d4e5f-0123456789abcdef/close"), Some(7));
        assert_eq!(ordinal("/lra-coordinator/0008-019b2c3d4e5f-0123456789abcdef/close"), None, "there is no such partition");
        assert_eq!(ordinal("/lra-coordinator/start"), None);
    }

    #[test]
    fn everything_else_passes() {
        for host in ["cart:81", "example.org", "cart.example.org", "127.0.0.1:8080", "[::1]:8080", "localhost", "cart."] {
            assert!(matches!(get("/", &[("host", host)]), Ok(Route::PassThrough(_))), "{host}");
        }
        let Ok(Route::PassThrough(target)) = get("/", &[("host", "[::1]:8080")]) else { panic!() };
        assert_eq!(target.host_and_port(), ("::1", 8080));
        let connect = decide(&head("CONNECT", "example.org:443", Version::HTTP_11, &[("host", "example.org:443")]), &directory());
        assert!(matches!(connect, Ok(Route::PassThrough(Target { tunnel: true, .. }))));
    }

    #[test]
    fn the_search_list_of_a_pod_makes_longer_names() {
        let names = Names::new(vec!["shop.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()]);
        let directory = Directory { names, ..directory() };
        let get = |host, at| decide_at(&head("GET", "/", Version::HTTP_11, &[("host", host)]), &directory, at);
        let call = get("Cart.shop.svc.cluster.local:8080", None);
        assert_eq!(callee(&call), Some(("cart", "Cart.shop.svc.cluster.local:8080", "/")), "the app sees the Host as it was sent");
        assert!(callee(&get("cart.shop", None)).is_some());
        assert!(matches!(get("cart.other.svc.cluster.local", None), Ok(Route::PassThrough(_))));
        assert!(matches!(get("bluebox.shop.svc.cluster.local", None), Ok(Route::Own(_))));
    }

    #[test]
    fn where_a_connection_was_going_counts_too() {
        let at = |host, port| decide_at(&head("GET", "/", Version::HTTP_11, &[("host", host)]), &directory(), Some(port));
        assert!(callee(&at("cart", 80)).is_some());
        assert!(callee(&at("cart", 8080)).is_some(), "both are the component's");
        assert!(matches!(at("cart", 9090), Ok(Route::PassThrough(_))), "its metrics");
        assert!(matches!(at("cart:9090", 80), Ok(Route::PassThrough(_))));
        assert!(matches!(at("bluebox", 9090), Ok(Route::PassThrough(_))));
    }

    #[test]
    fn bluebox_answers_itself() {
        assert_eq!(get("/v1/calls/x?y", &[("host", "bluebox")]), Ok(Route::Own("/v1/calls/x?y".to_owned())));
        assert_eq!(get("http://bluebox/v1", &[("host", "bluebox")]), Ok(Route::Own("/v1".to_owned())));
    }

    #[test]
    fn a_request_names_one_server() {
        for fields in [
            &[][..],
            &[("host", "")],
            &[("host", "cart"), ("host", "cart")],
            &[("host", "cart"), ("host", "shop")],
            &[("host", "me@cart")],
            &[("host", "cart/../x")],
            &[("host", "ca rt")],
            &[("host", "cart:0")],
            &[("host", "cart:65536")],
            &[("host", "cart:8o")],
            &[("host", "cart:+80")],
            &[("host", ":80")],
        ] {
            assert_eq!(get("/", fields).map_err(|p| p.kind()), Err(Kind::BadRequest), "{fields:?}");
        }
        assert_eq!(get("http://cart/", &[]).unwrap_err().kind(), Kind::BadRequest, "HTTP/1.1 without Host");
        assert_eq!(get("http://user:pw@cart/", &[("host", "cart")]).unwrap_err().kind(), Kind::BadRequest);
        assert_eq!(get("https://cart/", &[("host", "cart")]).unwrap_err().kind(), Kind::BadRequest);
        let differs = head("GET", "http://cart/", Version::HTTP_2, &[("host", "shop")]);
        assert_eq!(decide(&differs, &directory()).unwrap_err().kind(), Kind::BadRequest);
        let old = head("GET", "http://cart/", Version::HTTP_10, &[]);
        assert!(decide(&old, &directory()).is_ok(), "HTTP/1.0 has no Host");
        let no_port = head("CONNECT", "cart", Version::HTTP_11, &[("host", "cart")]);
        assert_eq!(decide(&no_port, &directory()).unwrap_err().kind(), Kind::BadRequest);
    }

    #[test]
    fn what_cant_be_durable_is_refused_or_passed() {
        let upgrade = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let grpc = [("content-type", "application/grpc+proto")];
        let events = [("accept", "text/event-stream")];
        for fields in [&upgrade[..], &grpc, &events] {
            let to = |host| get("/", &[fields, &[("host", host)]].concat());
            assert_eq!(to("cart").unwrap_err().kind(), Kind::StreamRefused, "{fields:?}");
            assert!(matches!(to("chat"), Ok(Route::Stream { .. })), "{fields:?}");
            assert!(matches!(to("example.org"), Ok(Route::PassThrough(_))), "{fields:?}");
        }
        let connect = |version| head("CONNECT", "cart:80", version, &[("host", "cart:80")]);
        assert_eq!(decide(&connect(Version::HTTP_2), &directory()).unwrap_err().kind(), Kind::StreamRefused);
        let caught = decide_at(&connect(Version::HTTP_11), &directory(), Some(80));
        assert_eq!(caught.unwrap_err().kind(), Kind::StreamRefused);
        // Java's HttpClient offers h2c with every request.
        let java = [("host", "cart"), ("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")];
        assert!(callee(&get("/", &java)).is_some());
        assert!(callee(&get("/", &[("host", "cart"), ("accept", "text/event-stream, */*")])).is_some());
    }

    #[test]
    fn a_tunnel_to_a_component_ends_here() {
        let connect = |to: &str| decide(&head("CONNECT", to, Version::HTTP_11, &[("host", to)]), &directory());
        for (to, can_pass) in [("cart:80", false), ("cart:8080", false), ("chat:80", true), ("bluebox:80", false)] {
            let Ok(Route::Tunnel { target, direct }) = connect(to) else { panic!("{to}") };
            assert!(target.tunnel && direct.is_empty() != can_pass, "{to}");
        }
        assert!(matches!(connect("cart:443"), Ok(Route::PassThrough(_))), "that is no port of it");
    }

    #[test]
    fn before_the_registry_is_read_a_bare_name_may_be_a_component() {
        let unread = Directory::default();
        let decide = |host| decide(&head("GET", "/", Version::HTTP_11, &[("host", host)]), &unread);
        for host in ["cart", "app-2.app"] {
            assert_eq!(decide(host).unwrap_err().kind(), Kind::NotReady, "{host}");
        }
        for host in ["example.org", "127.0.0.1", "localhost"] {
            assert!(decide(host).is_ok(), "{host}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_head_makes_it_panic_and_what_is_a_call_names_its_component(
            host in "(cart|bluebox|chat)?[ -~\\x80-\\xff]{0,12}(:[0-9a-z]{0,6})?",
            uri in "(/|http://|cart:|\\*)?[!-~]{0,20}",
            fields in proptest::collection::vec(("(connection|upgrade|accept|content-type|te)", "[ -~]{0,20}"), 0..5),
        ) {
            let mut request = http::Request::builder().uri(uri.as_str()).header("host", host.as_str());
            for (name, value) in &fields {
                request = request.header(name, value);
            }
            let Ok(request) = request.body(()) else { return Ok(()) };
            if let Ok(Route::Call { destination, .. }) = decide(&request.into_parts().0, &directory()) {
                let named = destination.authority.to_ascii_lowercase();
                proptest::prop_assert!(named.starts_with(destination.callee.as_str()), "{named}");
                proptest::prop_assert!(destination.target.starts_with(['/', '*']), "{}", destination.target);
            }
        }
    }
}

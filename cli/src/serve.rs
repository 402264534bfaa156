//! How a component that a proxy serves is written on the command line: `cart=127.0.0.1:8080,partitions=8`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bluebox_core::ComponentName;
use bluebox_core::registry::{Component, Streams};
use bluebox_proxy::config::{AppProtocol, Served};

use crate::units;

/// The form, for errors.
const FORM: &str = "NAME=HOST:PORT[,protocol=http1|h2c][,partitions=N][,ports=80+8080][,body-limit=SIZE][,streams=refuse|pass][,direct=HOST:PORT+…]";
/// What the help says of it.
pub(crate) const HELP: &str = "\
A component that the app serves, and where the app listens; can be repeated. More is said after a comma: \
NAME=HOST:PORT[,protocol=http1|h2c][,partitions=N][,ports=80+8080][,body-limit=SIZE][,streams=refuse|pass]. Without it the proxy is a gateway";
/// More partitions than that are a mistake: every one costs each log and each proxy.
const MAX_PARTITIONS: u32 = 1024;

/// Reads what an app speaks.
pub(crate) fn parse_protocol(text: &str) -> Result<AppProtocol, String> {
    match text {
        "http1" | "http/1.1" => Ok(AppProtocol::Http1),
        "h2c" => Ok(AppProtocol::H2c),
        _ => Err("an app speaks `http1` or `h2c`".to_owned()),
    }
}

/// Reads what becomes of exchanges that can't be durable.
pub(crate) fn parse_streams(text: &str) -> Result<Streams, String> {
    match text {
        "refuse" => Ok(Streams::Refuse),
        "pass" => Ok(Streams::Pass),
        _ => Err("streams are `refuse`d with a clear error, or `pass` straight to the app".to_owned()),
    }
}

/// Reads a number of partitions.
pub(crate) fn parse_partitions(text: &str) -> Result<u32, String> {
    match units::count_u32(text)? {
        partitions if partitions > MAX_PARTITIONS => Err(format!("at most {MAX_PARTITIONS} partitions")),
        partitions => Ok(partitions),
    }
}

/// Reads a component that a proxy serves.
pub(crate) fn parse(text: &str) -> Result<Served, String> {
    let mut parts = text.split(',');
    let (name, app) = parts.next().and_then(|first| first.split_once('=')).ok_or_else(|| format!("expected {FORM}"))?;
    let name = ComponentName::try_new(name.trim()).map_err(|error| error.to_string())?;
    let app: SocketAddr =
        app.trim().replace("localhost:", "127.0.0.1:").parse().map_err(|_| format!("`{app}`: expected the app's address, such as 127.0.0.1:8080"))?;
    let mut component = Component::default();
    let mut protocol = AppProtocol::default();
    for part in parts {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}`: expected {FORM}"))?;
        let wrong = |why: String| format!("{key}: `{value}`: {why}");
        match key.trim() {
            "protocol" => protocol = parse_protocol(value).map_err(wrong)?,
            "partitions" => component.partitions = parse_partitions(value).map_err(wrong)?,
            "ports" => {
                let ports: Result<Vec<u16>, _> = value.split('+').map(str::parse).collect();
                component.ports = ports.map_err(|_| wrong("ports are written as 80+8080".to_owned()))?;
            }
            "body-limit" => component.body_limit_bytes = units::size(value).map_err(wrong)?,
            "streams" => component.streams = parse_streams(value).map_err(wrong)?,
            "direct" => component.direct = value.split('+').map(str::to_owned).collect(),
            _ => return Err(format!("`{key}`: unknown; expected {FORM}")),
        }
    }
    if component.streams == Streams::Pass && component.direct.is_empty() {
        component.direct.push(app.to_string());
    }
    Ok(Served { name, component, app, protocol })
}

/// Writes it as [`parse`] reads it; what is as always is left out.
pub(crate) fn spell(served: &Served) -> String {
    let Component { partitions, ports, body_limit_bytes, streams, direct, .. } = &served.component;
    let usual = Component::default();
    let mut text = format!("{}={}", served.name, served.app);
    let mut add = |key: &str, value: String| {
        // Writing into a String can't fail.
        let _ = write!(text, ",{key}={value}");
    };
    if *partitions != usual.partitions {
        add("partitions", partitions.to_string());
    }
    if *ports != usual.ports {
        add("ports", ports.iter().map(u16::to_string).collect::<Vec<_>>().join("+"));
    }
    if *body_limit_bytes != usual.body_limit_bytes {
        add("body-limit", body_limit_bytes.to_string());
    }
    if served.protocol == AppProtocol::H2c {
        add("protocol", "h2c".to_owned());
    }
    if *streams == Streams::Pass {
        add("streams", "pass".to_owned());
        add("direct", direct.join("+"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_and_back() {
        let text = "cart=127.0.0.1:8080,partitions=8,ports=80+8080,body-limit=1024,protocol=h2c,streams=pass,direct=127.0.0.1:8080+127.0.0.1:8081";
        let served = parse(text).unwrap();
        assert_eq!(served.component.partitions, 8);
        assert_eq!(served.component.ports, [80, 8080]);
        assert_eq!(served.protocol, AppProtocol::H2c);
        assert_eq!(spell(&served), text);
        assert_eq!(parse("cart=localhost:8080").unwrap().app, "127.0.0.1:8080".parse().unwrap());
    }

    #[test]
    fn nonsense_says_what_would_be_right() {
        for (text, says) in [
            ("cart", "NAME=HOST:PORT"),
            ("Cart=127.0.0.1:80", "lower-case"),
            ("cart=8080", "127.0.0.1:8080"),
            ("cart=127.0.0.1:80,partitions=0", "at least 1"),
            ("cart=127.0.0.1:80,ports=x", "80+8080"),
            ("cart=127.0.0.1:80,colour=red", "unknown"),
            ("cart=127.0.0.1:80,streams=maybe", "refuse"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

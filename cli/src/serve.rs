//! How a component that a proxy serves is written on the command line: `cart=127.0.0.1:8080,partitions=8`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bluebox_core::ComponentName;
use bluebox_core::registry::{Class, Component, Streams};
use bluebox_proxy::config::{App, AppProtocol, Served};

use crate::units;

/// The form, for errors.
const FORM: &str = "NAME=HOST:PORT[,class=service|stateful,ordinal=N][,protocol=http1|h2c][,partitions=N][,ports=80+8080][,body-limit=SIZE][,streams=refuse|pass][,direct=HOST:PORT+…]";
/// What the help says of it.
pub(crate) const HELP: &str = "\
A component that the app serves, and where the app listens; can be repeated. More is said after a comma: \
NAME=HOST:PORT[,class=stateful,ordinal=N][,protocol=http1|h2c][,partitions=N][,ports=80+8080][,body-limit=SIZE][,streams=refuse|pass]. \
Of a stateful component this box is one ordinal, and `partitions` says how many there can ever be. Without it the proxy is a gateway";
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

/// Reads what kind of component it is.
pub(crate) fn parse_class(text: &str) -> Result<Class, String> {
    match text {
        "service" => Ok(Class::Service),
        "stateful" => Ok(Class::Stateful),
        "actor" => Err("virtual actors can't be served yet; `service` and `stateful` can".to_owned()),
        _ => Err("a component is a `service` (any replica takes any call) or `stateful` (a call goes to one ordinal)".to_owned()),
    }
}

/// Reads an ordinal.
fn parse_ordinal(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "an ordinal is a whole number from 0".to_owned())
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
    let (mut ordinal, mut partitions) = (None, None);
    for part in parts {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}`: expected {FORM}"))?;
        let wrong = |why: String| format!("{key}: `{value}`: {why}");
        match key.trim() {
            "protocol" => protocol = parse_protocol(value).map_err(wrong)?,
            "class" => component.class = parse_class(value).map_err(wrong)?,
            "ordinal" => ordinal = Some(parse_ordinal(value).map_err(wrong)?),
            "partitions" => partitions = Some(parse_partitions(value).map_err(wrong)?),
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
    let stateful = component.class == Class::Stateful;
    if stateful && partitions.is_none() {
        return Err(format!(
            "component {name}: a stateful component needs `partitions=N`: how many ordinals it can ever have, fixed when it is first registered"
        ));
    }
    component.partitions = partitions.unwrap_or(component.partitions);
    match ordinal {
        None if stateful => return Err(format!("component {name}: a box of a stateful component needs `ordinal=N`: which one it is, from 0")),
        Some(_) if !stateful => return Err(format!("component {name}: only a stateful component has ordinals; add `class=stateful`")),
        Some(ordinal) if ordinal >= component.partitions => {
            let last = component.partitions - 1;
            return Err(format!("component {name}: ordinal={ordinal}: with partitions={} the ordinals are 0 to {last}", component.partitions));
        }
        _ => {}
    }
    if component.streams == Streams::Pass && component.direct.is_empty() {
        if stateful {
            return Err(format!("component {name}: streams=pass of a stateful component needs `direct=HOST:PORT+…`: where each ordinal is, in their order"));
        }
        component.direct.push(app.to_string());
    }
    Ok(Served { name, component, ordinal, app: App::At { address: app, protocol } })
}

/// Writes it as [`parse`] reads it; what is as always is left out.
pub(crate) fn spell(served: &Served) -> String {
    let Component { class, partitions, ports, body_limit_bytes, streams, direct, routing: _ } = &served.component;
    let usual = Component::default();
    let mut text = format!("{}={}", served.name, served.app);
    let mut add = |key: &str, value: String| {
        // Writing into a String can't fail.
        let _ = write!(text, ",{key}={value}");
    };
    if *class == Class::Stateful {
        add("class", "stateful".to_owned());
    }
    if let Some(ordinal) = served.ordinal {
        add("ordinal", ordinal.to_string());
    }
    if *partitions != usual.partitions || *class == Class::Stateful {
        add("partitions", partitions.to_string());
    }
    if *ports != usual.ports {
        add("ports", ports.iter().map(u16::to_string).collect::<Vec<_>>().join("+"));
    }
    if *body_limit_bytes != usual.body_limit_bytes {
        add("body-limit", body_limit_bytes.to_string());
    }
    if matches!(served.app, App::At { protocol: AppProtocol::H2c, .. }) {
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
        assert!(matches!(served.app, App::At { protocol: AppProtocol::H2c, .. }));
        assert_eq!(spell(&served), text);
        let stateful = "app=127.0.0.1:8080,class=stateful,ordinal=2,partitions=4";
        let served = parse(stateful).unwrap();
        assert_eq!((served.component.class, served.ordinal, served.component.partitions), (Class::Stateful, Some(2), 4));
        assert_eq!(spell(&served), stateful);
        let as_many_as_usual = "app=127.0.0.1:8080,class=stateful,ordinal=31,partitions=32";
        assert_eq!(spell(&parse(as_many_as_usual).unwrap()), as_many_as_usual);
        assert_eq!(parse("cart=localhost:8080").unwrap().app.address(), Some("127.0.0.1:8080".parse().unwrap()));
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
            ("cart=127.0.0.1:80,class=pet", "`stateful`"),
            ("cart=127.0.0.1:80,class=actor", "can't be served yet"),
            ("cart=127.0.0.1:80,class=stateful,ordinal=0", "needs `partitions=N`"),
            ("cart=127.0.0.1:80,class=stateful,partitions=4", "needs `ordinal=N`"),
            ("cart=127.0.0.1:80,class=stateful,partitions=4,ordinal=4", "ordinals are 0 to 3"),
            ("cart=127.0.0.1:80,class=stateful,partitions=4,ordinal=-1", "from 0"),
            ("cart=127.0.0.1:80,ordinal=1", "add `class=stateful`"),
            ("cart=127.0.0.1:80,class=stateful,partitions=4,ordinal=1,streams=pass", "in their order"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

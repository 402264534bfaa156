//! What the file says, read and checked key by key. Everything that is wrong is told, not only the first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::registry::Class;
use bluebox_core::topics::Prefix;

use super::problem::Place;
use super::read::{self, Reader};
use super::tree::{self, Key, Node, Value};
use super::{BoxSpec, ComponentSpec, DEFAULT_GATEWAY, DEFAULT_TXMGR, EXAMPLE, Gateway, LogSpec, Settings, System, Txmgr};
use crate::limits::{Known, Side};
use crate::serve;
use crate::transaction;
use crate::units;

impl Reader {
    /// A whole system; `None` when something is wrong.
    pub(super) fn system(&mut self, root: &Node, directory: &Path) -> Option<System> {
        let mut boxes = None;
        let mut gateway = Some(None);
        let mut log = None;
        let (mut txmgr, mut txmgr_at) = (None, None);
        for (key, value) in self.map("the file", root, EXAMPLE) {
            match key.text.as_str() {
                "boxes" => boxes = Some(self.boxes(value, directory)),
                "gateway" => gateway = self.gateway(value).map(Some),
                "log" => log = Some(self.log(value, directory)),
                "txmgr" => {
                    txmgr = self.txmgr(value);
                    txmgr_at = Some(key.at);
                }
                _ => self.unknown("", key, ["boxes", "gateway", "txmgr", "log"].into_iter()),
            }
        }
        let boxes = boxes.or_else(|| {
            if self.problems.is_empty() {
                self.wrong(root.at, format!("`boxes` is missing; the least file that works is {EXAMPLE}"));
            }
            None
        })?;
        let gateway = match gateway {
            Some(None) => Some(Gateway { name: ComponentName::try_new("gateway").ok()?, listen: DEFAULT_GATEWAY, limits: Vec::new() }),
            Some(Some(gateway)) => gateway,
            None => None,
        };
        let log = match log {
            Some(log) => log?,
            None => LogSpec { data: directory.join(".bluebox"), fsync: None, brokers: None, properties: BTreeMap::new(), prefix: Prefix::default() },
        };
        if let Some(clash) = gateway.as_ref().and_then(|gateway| boxes.iter().find(|b| b.name == gateway.name)) {
            let at = clash.command_at;
            self.wrong(at, format!("box `{}`: the gateway has this name; rename one of them (`gateway: {{name: edge}}`)", clash.name));
        }
        let is_taken = |name: &ComponentName| name.as_str() == crate::txmgr::NAME;
        let taken =
            boxes.iter().any(|b| is_taken(&b.name) || b.components.iter().any(|c| is_taken(&c.name))) || gateway.as_ref().is_some_and(|g| is_taken(&g.name));
        if let Some(at) = txmgr_at.filter(|_| taken) {
            self.wrong(
                at,
                format!("txmgr: a box, a component or the gateway is called `{}`, which is the transaction manager's name; rename it", crate::txmgr::NAME),
            );
        }
        Some(System { boxes, gateway, txmgr, log })
    }

    fn name(&mut self, at: Place, text: &str) -> Option<ComponentName> {
        match ComponentName::try_new(text) {
            Ok(name) => Some(name),
            Err(error) => {
                let remedy: String = text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                let remedy = remedy.trim_matches('-');
                let hint = if ComponentName::try_new(remedy).is_ok() { format!("; `{remedy}` would be right") } else { String::new() };
                self.wrong(at, format!("{error}{hint}"));
                None
            }
        }
    }

    fn boxes(&mut self, node: &Node, directory: &Path) -> Vec<BoxSpec> {
        let entries = self.map("boxes", node, "`cart: {command: [python3, cart.py], port: 8080}`");
        if entries.is_empty() && self.problems.is_empty() {
            self.wrong(node.at, format!("boxes: there must be at least one, such as {EXAMPLE}"));
        }
        let mut boxes: Vec<BoxSpec> = Vec::new();
        let mut served = BTreeMap::new();
        let mut ports = BTreeMap::new();
        for (key, value) in entries {
            let Some(one) = self.one_box(key, value, directory) else { continue };
            for component in &one.components {
                if let Some(other) = served.insert(component.name.clone(), one.name.clone()) {
                    self.wrong(key.at, format!("component `{}` is served by box `{other}` and by box `{}`: one box must have it", component.name, one.name));
                }
            }
            let own: BTreeSet<u16> = one.port.into_iter().chain(one.components.iter().filter_map(|c| c.port)).collect();
            for port in own {
                if let Some(other) = ports.insert(port, one.name.clone()) {
                    self.wrong(
                        key.at,
                        format!("port {port} is box `{other}`'s and box `{}`'s: each needs its own, or none (the app is then told by $PORT)", one.name),
                    );
                }
            }
            boxes.push(one);
        }
        boxes
    }

    fn one_box(&mut self, key: &Key, node: &Node, directory: &Path) -> Option<BoxSpec> {
        const KEYS: [&str; 15] = [
            "command",
            "port",
            "replicas",
            "env",
            "cwd",
            "components",
            "grace",
            "routes",
            "transactions",
            "class",
            "protocol",
            "partitions",
            "ports",
            "body-limit",
            "streams",
        ];
        let path = format!("boxes.{}", tree::shorten(&key.text));
        let before = self.problems.len();
        let name = self.name(key.at, &key.text);
        let mut command = None;
        let mut port = None;
        let mut replicas = 1;
        let mut env = BTreeMap::new();
        let mut cwd = directory.to_owned();
        let mut components = None;
        let mut grace = Duration::from_secs(10);
        let mut settings = Settings::default();
        let mut limits = Vec::new();
        let known = Known::of(Side::Both);
        for (key, value) in self.map(&path, node, "`{command: [python3, cart.py], port: 8080}`") {
            let at = format!("{path}.{}", tree::shorten(&key.text));
            match key.text.as_str() {
                "command" => command = Some((self.command(&at, value), value.at)),
                "port" => port = self.parsed(&at, value, "a port", read::port),
                "replicas" => replicas = self.parsed(&at, value, "a number", replica_count).unwrap_or(1),
                "env" => {
                    env = self.pairs(&at, value, "`{LOG_LEVEL: debug}`");
                    if env.contains_key("PORT") {
                        self.wrong(value.at, format!("{at}.PORT: the app is told its port by `up`; say `port:` in the box instead"));
                    }
                }
                "cwd" => {
                    if let Some(text) = self.text(&at, value, "a directory") {
                        cwd = directory.join(&text);
                        if !cwd.is_dir() {
                            self.wrong(value.at, format!("{at}: `{text}`: there is no such directory ({})", cwd.display()));
                        }
                    }
                }
                "components" => components = Some(self.components(&at, value)),
                "grace" => grace = self.parsed(&at, value, "a duration", units::duration).unwrap_or(grace),
                "routes" => limits.extend(self.routes(&at, &known, value)),
                "transactions" => limits.extend(self.transactions(&at, &known, value)),
                _ if self.setting(&path, key, value, &mut settings) => {}
                _ => limits.extend(self.limit(&path, &known, &KEYS, key, value)),
            }
        }
        if command.is_none() && self.problems.len() == before {
            self.wrong(key.at, format!("{path}: `command` is missing, such as `command: [python3, {}.py]`", key.text));
        }
        let components = match components {
            None => vec![ComponentSpec { name: name.clone()?, port: None, settings: Settings::default() }],
            Some(components) => components,
        };
        let components: Vec<_> = components.into_iter().map(|c| ComponentSpec { settings: c.settings.or(&settings), ..c }).collect();
        if replicas > 1
            && let Some(component) = components.iter().find(|c| c.port.is_some())
        {
            let hint = "leave it out: each replica listens at its own $PORT";
            self.wrong(
                key.at,
                format!("{path}.components.{}.port: a port of its own can't be shared by {replicas} replicas on one machine; {hint}", component.name),
            );
        }
        for component in components.iter().filter(|component| component.settings.class == Some(Class::Stateful)) {
            if let Some(partitions) = component.settings.partitions.filter(|partitions| *partitions < replicas) {
                self.wrong(
                    key.at,
                    format!(
                        "{path}: `{}` is stateful: with {partitions} partitions it can have {partitions} ordinals, and there are {replicas} replicas; \
                         say `partitions: {replicas}` or more, or leave it out",
                        component.name
                    ),
                );
            }
        }
        let (command, command_at) = command?;
        Some(BoxSpec { name: name?, command: command?, command_at, port, replicas, env, cwd, components, limits, grace })
    }

    fn command(&mut self, path: &str, node: &Node) -> Option<Vec<String>> {
        if let Value::Scalar(line) = &node.value {
            let words: Vec<&str> = line.split_whitespace().collect();
            let list = if line.contains(['"', '\'', '|', '>', '<', '&', ';', '$', '*', ',', '#', ':']) {
                format!("[sh, -c, {line:?}]")
            } else {
                format!("[{}]", words.join(", "))
            };
            self.wrong(node.at, format!("{path}: expected a list of program and arguments, found a text; write `{list}`"));
            return None;
        }
        let command = self.texts(path, node, "a list of program and arguments, such as `[python3, cart.py]`")?;
        if command.iter().any(|part| part.contains('\0')) || command.first().is_some_and(String::is_empty) {
            self.wrong(node.at, format!("{path}: no program has an empty name, and no argument a NUL"));
            return None;
        }
        // What a shell gets may be for it. Other variables may mean something to the program; nobody but `up` knows this one.
        let is_for_a_shell = command.first().is_some_and(|program| program.ends_with("sh"));
        let names_port = |part: &&String| ["$PORT", "${PORT}", "$(PORT)"].iter().any(|name| part.contains(name));
        if let Some(part) = command.iter().find(names_port).filter(|_| !is_for_a_shell) {
            let line = command.join(" ").replace("$(PORT)", "$PORT");
            self.wrong(node.at, format!("{path}: no shell reads the command, so {part:?} stays as it is; write `[sh, -c, {:?}]`", format!("exec {line}")));
            return None;
        }
        Some(command)
    }

    fn components(&mut self, path: &str, node: &Node) -> Vec<ComponentSpec> {
        let mut components = Vec::new();
        for (key, value) in self.map(path, node, "`{cart: {}, prices: {}}`") {
            let at = format!("{path}.{}", tree::shorten(&key.text));
            let name = self.name(key.at, &key.text);
            let mut port = None;
            let mut settings = Settings::default();
            for (key, value) in self.map(&at, value, "`{partitions: 8}`") {
                match key.text.as_str() {
                    "port" => port = self.parsed(&format!("{at}.port"), value, "a port", read::port),
                    _ if self.setting(&at, key, value, &mut settings) => {}
                    _ => self.unknown(&at, key, ["port", "class", "protocol", "partitions", "ports", "body-limit", "streams"].into_iter()),
                }
            }
            components.extend(name.map(|name| ComponentSpec { name, port, settings }));
        }
        components
    }

    /// Reads one setting of a component; false if the key is none.
    fn setting(&mut self, path: &str, key: &Key, value: &Node, settings: &mut Settings) -> bool {
        let at = format!("{path}.{}", tree::shorten(&key.text));
        match key.text.as_str() {
            "class" => settings.class = self.parsed(&at, value, "`service` or `stateful`", serve::parse_class),
            "protocol" => settings.protocol = self.parsed(&at, value, "`http1` or `h2c`", serve::parse_protocol),
            "partitions" => settings.partitions = self.parsed(&at, value, "a number", serve::parse_partitions),
            "ports" => {
                settings.ports = match &value.value {
                    Value::List(items) if !items.is_empty() => {
                        items.iter().enumerate().map(|(i, item)| self.parsed(&format!("{at}[{i}]"), item, "a port", read::port)).collect()
                    }
                    _ => self.parsed(&at, value, "ports, such as `[80, 8080]`", read::port).map(|port| vec![port]),
                }
            }
            "body-limit" => settings.body_limit = self.parsed(&at, value, "a size", units::size),
            "streams" => settings.streams = self.parsed(&at, value, "`refuse` or `pass`", serve::parse_streams),
            _ => return false,
        }
        true
    }

    fn limit(&mut self, path: &str, known: &Known, others: &[&str], key: &Key, node: &Node) -> Option<String> {
        if !known.names().any(|name| name == key.text) {
            self.unknown(path, key, others.iter().copied().chain(known.names()));
            return None;
        }
        let at = format!("{path}.{}", key.text);
        let text = match &node.value {
            Value::List(_) => self.texts(&at, node, "a value")?.join(","),
            _ => self.text(&at, node, "a value")?,
        };
        match known.flag(&key.text, &text) {
            Ok(flag) => Some(flag),
            Err(why) => {
                self.wrong(node.at, format!("{at}: `{}`: {why}", tree::shorten(&text)));
                None
            }
        }
    }

    /// Paths with limits of their own, as flags.
    fn routes(&mut self, path: &str, known: &Known, node: &Node) -> Vec<String> {
        let mut flags = Vec::new();
        for (key, value) in self.map(path, node, "`{/reports: {attempt-timeout: 30m}}`") {
            let at = format!("{path}.{}", tree::shorten(&key.text));
            if !key.text.starts_with('/') || key.text.contains([' ', ',']) {
                self.wrong(key.at, format!("{at}: a route is a path such as `/reports`, without spaces and commas"));
                continue;
            }
            let mut route = key.text.clone();
            for (key, value) in self.map(&at, value, "`{attempt-timeout: 30m}`") {
                if !["attempt-timeout", "retry-on"].contains(&key.text.as_str()) {
                    self.unknown(&at, key, ["attempt-timeout", "retry-on"].into_iter());
                } else if let Some(flag) = self.limit(&at, known, &[], key, value) {
                    route.push(' ');
                    route.push_str(&flag.trim_start_matches("--").replace(',', "+"));
                }
            }
            match known.flag("route", &route) {
                Ok(flag) => flags.push(flag),
                Err(why) => self.wrong(value.at, format!("{at}: {why}")),
            }
        }
        flags
    }

    /// What paths have to do with transactions, as flags.
    fn transactions(&mut self, path: &str, known: &Known, node: &Node) -> Vec<String> {
        const FORM: &str = "`{POST /trips: {type: required}}`";
        let mut flags = Vec::new();
        for (key, value) in self.map(path, node, FORM) {
            let at = format!("{path}.{}", tree::shorten(&key.text));
            if key.text.contains(',') || key.text.split_whitespace().count() != 2 {
                self.wrong(key.at, format!("{at}: a rule is for a method and a path without commas, such as `POST /trips`"));
                continue;
            }
            let mut rule = key.text.clone();
            for (key, value) in self.map(&at, value, "`{type: required}`") {
                let at = format!("{at}.{}", key.text);
                if !transaction::KEYS.contains(&key.text.as_str()) {
                    self.unknown(&at, key, transaction::KEYS.into_iter());
                    continue;
                }
                let said = match &value.value {
                    Value::List(items) if items.is_empty() => Some("none".to_owned()),
                    Value::List(_) => self.texts(&at, value, "a value").map(|texts| texts.join("+")),
                    _ => self.text(&at, value, "a value"),
                };
                match said {
                    Some(text) if text.contains([',', ' ']) => self.wrong(value.at, format!("{at}: `{}`: no spaces and no commas", tree::shorten(&text))),
                    Some(text) => rule.push_str(&format!(" {}={text}", key.text)),
                    None => {}
                }
            }
            match known.flag("transaction", &rule) {
                Ok(flag) => flags.push(flag),
                Err(why) => self.wrong(value.at, format!("{at}: {why}")),
            }
        }
        flags
    }

    /// `None` in the inner option: the file wants no gateway.
    fn gateway(&mut self, node: &Node) -> Option<Option<Gateway>> {
        let mut gateway = Gateway { name: ComponentName::try_new("gateway").ok()?, listen: DEFAULT_GATEWAY, limits: Vec::new() };
        match &node.value {
            Value::Scalar(text) if matches!(text.as_str(), "false" | "no" | "off" | "none") => return Some(None),
            Value::Scalar(text) if text == "true" => return Some(Some(gateway)),
            Value::Scalar(_) => {
                gateway.listen = self.parsed("gateway", node, "an address", read::address)?;
                return Some(Some(gateway));
            }
            _ => {}
        }
        let known = Known::of(Side::Outbound);
        for (key, value) in self.map("gateway", node, "`{listen: 127.0.0.1:4140}`") {
            match key.text.as_str() {
                "listen" => gateway.listen = self.parsed("gateway.listen", value, "an address", read::address).unwrap_or(gateway.listen),
                "name" => {
                    if let Some(name) = self.text("gateway.name", value, "a name").and_then(|text| self.name(value.at, &text)) {
                        gateway.name = name;
                    }
                }
                _ => gateway.limits.extend(self.limit("gateway", &known, &["listen", "name"], key, value)),
            }
        }
        Some(Some(gateway))
    }

    /// The transaction manager: `true`, where it listens, or a mapping.
    fn txmgr(&mut self, node: &Node) -> Option<Txmgr> {
        let mut txmgr = Txmgr { listen: DEFAULT_TXMGR, replicas: 1, partitions: crate::txmgr::PARTITIONS, settings: Vec::new() };
        match &node.value {
            Value::Scalar(text) if matches!(text.as_str(), "false" | "no" | "off" | "none") => return None,
            Value::Scalar(text) if text == "true" => return Some(txmgr),
            Value::Scalar(_) => {
                txmgr.listen = self.parsed("txmgr", node, "an address", read::address)?;
                return Some(txmgr);
            }
            _ => {}
        }
        for (key, value) in self.map("txmgr", node, "`{listen: 127.0.0.1:8070}`") {
            let at = format!("txmgr.{}", tree::shorten(&key.text));
            match key.text.as_str() {
                "listen" => txmgr.listen = self.parsed(&at, value, "an address", read::address).unwrap_or(txmgr.listen),
                "replicas" => txmgr.replicas = self.parsed(&at, value, "a number", replica_count).unwrap_or(1),
                "partitions" => txmgr.partitions = self.parsed(&at, value, "a number", serve::parse_partitions).unwrap_or(txmgr.partitions),
                name if crate::txmgr::SETTINGS.contains(&name) => {
                    let text = match &value.value {
                        Value::List(_) => self.texts(&at, value, "a value").map(|texts| texts.join(",")),
                        _ => self.text(&at, value, "a value"),
                    };
                    match text.map(|text| (crate::txmgr::flag(name, &text), text)) {
                        Some((Ok(flag), _)) => txmgr.settings.push(flag),
                        Some((Err(why), text)) => self.wrong(value.at, format!("{at}: `{}`: {why}", tree::shorten(&text))),
                        None => {}
                    }
                }
                _ => self.unknown("txmgr", key, ["listen", "replicas", "partitions"].into_iter().chain(crate::txmgr::SETTINGS.iter().copied())),
            }
        }
        Some(txmgr)
    }

    fn log(&mut self, node: &Node, directory: &Path) -> Option<LogSpec> {
        let mut log = LogSpec { data: directory.join(".bluebox"), fsync: None, brokers: None, properties: BTreeMap::new(), prefix: Prefix::default() };
        for (key, value) in self.map("log", node, "`{fsync: always}`") {
            let at = format!("log.{}", tree::shorten(&key.text));
            match key.text.as_str() {
                "data" => log.data = directory.join(self.text(&at, value, "a directory").unwrap_or_default()),
                "fsync" => {
                    log.fsync = self.parsed(&at, value, "`always`, `never` or a duration", |text| crate::log::parse_fsync(text).map(|_| text.to_owned()))
                }
                "brokers" => log.brokers = self.parsed(&at, value, "a broker", crate::log::parse_brokers),
                "properties" => log.properties = self.pairs(&at, value, "`{security.protocol: SSL}`"),
                "prefix" => log.prefix = self.parsed(&at, value, "a prefix", |text| Prefix::try_new(text).map_err(|e| e.to_string())).unwrap_or_default(),
                _ => self.unknown("log", key, ["data", "fsync", "brokers", "properties", "prefix"].into_iter()),
            }
        }
        Some(log)
    }
}

fn replica_count(text: &str) -> Result<u32, String> {
    match units::count_u32(text)? {
        count if count > 100 => Err("at most 100 on one machine".to_owned()),
        count => Ok(count),
    }
}

impl Settings {
    /// These, and where they say nothing, those of the box.
    fn or(self, of_box: &Self) -> Self {
        Self {
            class: self.class.or(of_box.class),
            protocol: self.protocol.or(of_box.protocol),
            partitions: self.partitions.or(of_box.partitions),
            ports: self.ports.or_else(|| of_box.ports.clone()),
            body_limit: self.body_limit.or(of_box.body_limit),
            streams: self.streams.or(of_box.streams),
        }
    }
}

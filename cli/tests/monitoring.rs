//! The dashboards and the alerts, on a real Prometheus that scrapes a real system: every query of every panel must have an answer, and every alert must fire when it should.
//!
//! Prometheus comes from Debian's packages, by `scripts/debian-tools`. Where it can't be had, these tests say so and leave that out; with `CI` in the environment they fail.

#![allow(clippy::unwrap_used, reason = "it is all test")]

mod common;
mod injector;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{On, Place, bluebox, get_through, request, runs, send, wait_until};
use injector::Injector;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// From the first scrape on, everything is to be seen within this.
const DEADLINE: Duration = Duration::from_secs(240);

/// A rate is looked at over 30 s.
const BETWEEN_DEATHS: Duration = Duration::from_secs(15);

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|problem| panic!("{path}: {problem}"))
}

/// Where Prometheus is; `None`, said loudly, where it can't be had.
fn prometheus() -> Option<PathBuf> {
    let got = Command::new(Path::new(ROOT).join("scripts/debian-tools")).arg("prometheus").stdin(Stdio::null()).output().unwrap();
    if got.status.success() {
        return Some(PathBuf::from(String::from_utf8(got.stdout).unwrap().trim()));
    }
    bluebox_e2e::left_out_at_home("dashboards and alerts: no Prometheus", &String::from_utf8_lossy(&got.stderr));
    None
}

/// The rules as Prometheus reads them: what the PrometheusRule has as its spec. JSON is YAML.
fn plain_rules() -> Value {
    let rule: Value = serde_saphyr::from_str(&read("manifests/monitoring/rules.yaml")).unwrap();
    rule["spec"].clone()
}

fn rules() -> Vec<Value> {
    plain_rules()["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

struct Query {
    panel: String,
    expression: String,
}

/// Every query of every panel of every dashboard, as it stands there.
fn queries() -> Vec<Query> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(Path::new(ROOT).join("manifests/monitoring/dashboards")).unwrap() {
        let path = file.unwrap().path();
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // What every Grafana has: no plugins, and no data source but the one that is chosen.
        let variables: Vec<&str> = dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
        assert!(variables.contains(&"datasource"), "{name} has no variable for the data source");
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(["timeseries", "stat", "table"].contains(&panel["type"].as_str().unwrap()), "{name}: {title}: a plugin");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title}: no query");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {title}");
                all.push(Query { panel: format!("{name}: {title}"), expression: target["expr"].as_str().unwrap().to_owned() });
            }
        }
    }
    assert!(all.len() > 60, "{}", all.len());
    all
}

/// What in an expression is a name of a metric of Bluebox, without what a histogram adds.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let names = words.filter(|word| word.starts_with("bluebox_"));
    names.map(|name| ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()).collect()
}

#[test]
fn dashboards_and_rules_use_nothing_that_is_not_in_the_reference() {
    let reference = read("docs/metrics.md");
    let expressions = queries().into_iter().map(|query| (query.panel, query.expression));
    let rules =
        rules().into_iter().map(|rule| (rule["alert"].as_str().or(rule["record"].as_str()).unwrap().to_owned(), rule["expr"].as_str().unwrap().to_owned()));
    for (of, expression) in expressions.chain(rules) {
        for name in names(&expression) {
            assert!(reference.contains(&format!("| `{name}")), "{of}: {name} is not in docs/metrics.md");
        }
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_tested() {
    let page = read("docs/operating.md");
    let tests = read("manifests/monitoring/rules.test.yaml");
    let alerts: Vec<Value> = rules().into_iter().filter(|rule| rule["alert"].is_string()).collect();
    assert!(alerts.len() > 15);
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(page.contains(&format!("\n### {name}\n")), "docs/operating.md has no section on {name}");
        let runbook = alert["annotations"]["runbook_url"].as_str().unwrap();
        assert_eq!(runbook, format!("docs/operating.md#{}", name.to_ascii_lowercase()));
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(tests.contains(&format!("  - name: {name}\n")), "rules.test.yaml does not make {name} fire");
    }
}

#[test]
fn every_alert_fires_when_it_should_and_none_while_all_is_well() {
    let Some(prometheus) = prometheus() else { return };
    let place = TempDir::new().unwrap();
    std::fs::write(place.path().join("rules.plain.yaml"), plain_rules().to_string()).unwrap();
    std::fs::write(place.path().join("rules.test.yaml"), read("manifests/monitoring/rules.test.yaml")).unwrap();
    let tested = Command::new(prometheus.with_file_name("promtool")).args(["test", "rules", "rules.test.yaml"]).current_dir(place.path()).output().unwrap();
    assert!(tested.status.success(), "{}{}", String::from_utf8_lossy(&tested.stdout), String::from_utf8_lossy(&tested.stderr));
}

/// A process that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A proxy to which nothing is redirected, but which could be: what comes to its listeners comes there by mistake, and is counted.
fn edge(log: &[String]) -> (Ends, u16, u16, u16) {
    let (transparent, dns, admin) = (free_port(), free_port(), free_port());
    let mut command = bluebox();
    command.args(["proxy", "--name", "edge", "--listen", "127.0.0.1:0", "--nameservers", "127.0.0.1"]).args(log);
    command.args(["--transparent", &at(transparent).to_string(), "--dns", &at(dns).to_string(), "--admin", &at(admin).to_string()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    (Ends(child), transparent, dns, admin)
}

/// Everything that panels speak of, again and again: calls that end well and badly, one that is given up, what goes past the log, what is refused, and connections where none belong.
fn traffic(gateway: SocketAddr, prometheus: SocketAddr, transparent: u16, dns: u16, injector: &Injector) {
    assert_eq!(get_through(gateway, "http://cart/items").0, 200);
    assert_eq!(get_through(gateway, "http://web/call?http://cart/more").0, 200);
    assert_eq!(get_through(gateway, "http://cart/broken").0, 502);
    let with_key = request(gateway, "POST", "http://cart/keyed", &["bluebox-ordering-key: one", "Idempotency-Key: k1"], "x").0;
    assert!(with_key.contains(" 200 "), "{with_key}");
    assert_eq!(get_through(gateway, &format!("http://{prometheus}/-/ready")).0, 200);
    let upgrade = request(gateway, "GET", "http://cart/socket", &["Upgrade: websocket", "Connection: upgrade"], "").0;
    assert!(upgrade.starts_with("HTTP/1.1 "), "{upgrade}");
    let mut nonsense = TcpStream::connect(gateway).unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").unwrap();
    let _ = nonsense.read(&mut [0; 64]);
    if let Ok(mut stray) = TcpStream::connect(at(transparent)) {
        let _ = stray.write_all(b"hello");
    }
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04cart\x00\x00\x01\x00\x01";
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(question, at(dns)).unwrap();
    let step = |name: &str| serde_json::json!({"name": name, "action": {"url": format!("http://cart/{name}")}, "compensation": {"url": "http://cart/back"}});
    let saga = serde_json::json!({"steps": [step("first"), step("second")]}).to_string();
    let (head, answer) = request(gateway, "POST", "http://txmgr/v1/sagas", &["Content-Type: application/json"], &saga);
    assert!(head.starts_with("HTTP/1.1 20"), "{head} {answer}");
    injector.review();
    injector.nonsense();
}

/// Asks Prometheus' API.
fn asked(prometheus: SocketAddr, what: &str, arguments: &[&str]) -> Value {
    let url = format!("http://{prometheus}/api/v1/{what}");
    let output = Command::new("curl").args(["--silent", "--show-error", "--noproxy", "*"]).args(arguments).arg(&url).output().unwrap();
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|problem| panic!("{url}: {problem}"))
}

/// Asks Prometheus; whether there is an answer with a number in it.
fn has_data(prometheus: SocketAddr, expression: &str) -> bool {
    let answer = asked(prometheus, "query", &["--get", "--data-urlencode", &format!("query={expression}")]);
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    let series = answer["data"]["result"].as_array().unwrap();
    series.iter().any(|one| one["value"][1].as_str().is_some_and(|value| value != "NaN"))
}

#[test]
fn every_panel_has_data() {
    let Some(program) = prometheus() else { return };
    let on = if std::env::var_os("BLUEBOX_TEST_BROKERS").is_some() { On::Kafka } else { On::Embedded };
    let log = on.arguments().unwrap();
    // What fails here is meant to.
    let arguments = [&log[..], &["--proxy-log-level".to_owned(), "error".to_owned()]].concat();
    let mut up = Place::with(
        "txmgr: true\nboxes:\n  cart: {command: [python3, app.py], replicas: 2, partitions: 4, max-attempts: 2, first-backoff: 10ms}\n  web: {command: [python3, app.py], partitions: 4}\n",
    )
    .up_with(&arguments);
    up.wait_until_up();
    let state = up.state().unwrap();
    let log = if on == On::Kafka { log } else { vec!["--log-socket".to_owned(), state["log_socket"].as_str().unwrap().to_owned()] };
    let (_edge, transparent, dns, edge_admin) = edge(&log);
    let injector = Injector::start();

    let place = TempDir::new().unwrap();
    let boxes: Vec<&str> = state["units"].as_array().unwrap().iter().map(|unit| unit["admin"].as_str().unwrap()).collect();
    let job = |name: &str, targets: Vec<String>| serde_json::json!({"job_name": name, "static_configs": [{"targets": targets}]});
    let config = serde_json::json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            job("boxes", boxes.iter().map(|at| (*at).to_owned()).chain([at(edge_admin).to_string()]).collect()),
            job("watch", vec![state["page"].as_str().unwrap().to_owned()]),
            job("injector", vec![injector.admin().to_string()]),
        ],
    });
    std::fs::write(place.path().join("prometheus.yaml"), config.to_string()).unwrap();
    std::fs::write(place.path().join("rules.yaml"), plain_rules().to_string()).unwrap();
    let prometheus = at(free_port());
    let mut command = Command::new(program);
    command.args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn"]).arg(format!("--web.listen-address={prometheus}"));
    let _prometheus = Ends(command.current_dir(place.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_until("Prometheus is there", || {
        TcpStream::connect(prometheus).ok().filter(|_| get_through(prometheus, &format!("http://{prometheus}/-/ready")).0 == 200)
    });

    wait_until("a change would be seen", || has_data(prometheus, "rate(bluebox_inbound_takeover_seconds_count[30s])").then_some(()));

    let over = Arc::new(AtomicBool::new(false));
    let mut left: Vec<Query> = queries();
    if on == On::Embedded {
        let before = left.len();
        left.retain(|query| !query.expression.contains("bluebox_kafka_"));
        eprintln!("LEFT OUT: {} queries on Kafka, because there is none (BLUEBOX_TEST_BROKERS): scripts/kafka run -- cargo test", before - left.len());
    }
    let all = left.len();
    std::thread::scope(|scope| {
        let done = over.clone();
        let (gateway, injector) = (up.gateway(), &injector);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                traffic(gateway, prometheus, transparent, dns, injector);
            }
        });
        let began = Instant::now();
        let mut killed = None::<Instant>;
        // Each is asked until it has an answer: a rate needs two scrapes.
        while !left.is_empty() && began.elapsed() < DEADLINE {
            // A box dies: its partitions go to the other one, and stand still meanwhile. Again and again: what is asked late on a busy machine must find one that is not long ago.
            if killed.is_none_or(|at| at.elapsed() > BETWEEN_DEATHS)
                && let Some(cart) = up.unit("cart-0")
                && runs(cart.app)
            {
                send(cart.app, Signal::SIGKILL);
                killed = Some(Instant::now());
            }
            left.retain(|query| !has_data(prometheus, &query.expression.replace("$__rate_interval", "30s").replace("$component", "cart")));
        }
        over.store(true, Ordering::Relaxed);
    });
    let without: Vec<String> = left.iter().map(|query| format!("{}: {}", query.panel, query.expression)).collect();
    assert!(without.is_empty(), "{} of {all} queries have no data:\n{}", without.len(), without.join("\n"));
    let rules = asked(prometheus, "rules", &[]).to_string();
    assert!(rules.contains("BlueboxDeadLetters") && !rules.contains("\"health\":\"err\""), "{rules}");
    println!("{all} queries have data");
}

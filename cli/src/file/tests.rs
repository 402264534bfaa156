use std::path::Path;

use super::*;

fn right(text: &str) -> System {
    parse(text, Path::new("/")).unwrap_or_else(|problems| panic!("{text}\n{}", Problems::new(Path::new("f"), text, problems)))
}

#[test]
fn the_least_file() {
    let system = right("boxes:\n  cart:\n    command: [python3, cart.py]\n    port: 8080\n    replicas: 2\n");
    assert_eq!(system.gateway.as_ref().map(|gateway| gateway.listen), Some(DEFAULT_GATEWAY));
    assert_eq!(system.log.data, Path::new("/.bluebox"));
    let cart = &system.boxes[0];
    assert_eq!((cart.name.as_str(), cart.port, cart.replicas), ("cart", Some(8080), 2));
    assert_eq!(cart.command, ["python3", "cart.py"]);
    assert_eq!(cart.components.len(), 1);
    assert_eq!(cart.components[0].name.as_str(), "cart");
}

#[test]
fn everything_that_can_be_said() {
    let system = right(
        "gateway: {listen: 127.0.0.1:5000, name: edge, wait: 10s}
log: {data: var, fsync: always, prefix: shop}
boxes:
  cart:
    command: [sh, -c, 'exec ./cart $PORT']
    port: 8080
    env: {LEVEL: 3, EMPTY: , FLAG: yes}
    cwd: tmp
    grace: 3s
    attempt-timeout: 30s
    retry-on: [502, 503]
    concurrency: 8
    routes: {/reports: {attempt-timeout: 30m, retry-on: [502, 503]}}
    transactions: {POST /items: {type: required, cancel-on: [409, 5xx]}, GET /items: {type: never, cancel-on: []}}
    streams: pass
    partitions: 4
    components:
      cart: {}
      prices: {port: 8081, protocol: h2c, ports: [80, 8081], body-limit: 1MiB, partitions: 2, streams: refuse}
  worker: {command: [./worker], components: {}}
",
    );
    let gateway = system.gateway.unwrap();
    assert_eq!((gateway.name.as_str(), gateway.listen.port()), ("edge", 5000));
    assert_eq!(gateway.limits, ["--wait=10s"]);
    assert_eq!(system.log.data, Path::new("/var"));
    let cart = &system.boxes[0];
    assert_eq!(cart.env["LEVEL"], "3");
    assert_eq!(cart.env["EMPTY"], "");
    assert_eq!(cart.env["FLAG"], "yes");
    assert_eq!(
        cart.limits,
        [
            "--attempt-timeout=30s",
            "--retry-on=502,503",
            "--concurrency=8",
            "--route=/reports attempt-timeout=30m retry-on=502+503",
            "--transaction=POST /items type=required cancel-on=409+5xx",
            "--transaction=GET /items type=never cancel-on=none"
        ]
    );
    let [one, two] = &cart.components[..] else { panic!("{cart:?}") };
    assert_eq!((one.settings.partitions, one.settings.streams), (Some(4), Some(Streams::Pass)));
    assert_eq!((two.port, two.settings.partitions, two.settings.streams), (Some(8081), Some(2), Some(Streams::Refuse)));
    assert_eq!(two.settings.ports.as_deref(), Some(&[80, 8081][..]));
    assert!(system.boxes[1].components.is_empty());
    assert!(right("gateway: false\nboxes: {a: {command: [a]}}").gateway.is_none());
}

#[test]
fn a_component_has_its_class_or_that_of_its_box() {
    let system = right("boxes:\n  app: {command: [a], replicas: 2, class: stateful, components: {app: {partitions: 4}, web: {class: service}}}\n");
    let classes: Vec<_> = system.boxes[0].components.iter().map(|c| (c.name.as_str(), c.settings.class, c.settings.partitions)).collect();
    assert_eq!(classes, [("app", Some(Class::Stateful), Some(4)), ("web", Some(Class::Service), None)]);
}

/// What is wrong, where (line:column), and words that must be in the message.
#[test]
fn what_is_wrong_and_what_would_be_right() {
    let cart = |lines: &str| format!("boxes:\n  cart:\n    command: [python3, cart.py]\n{lines}");
    let table = [
        // Not YAML.
        ("boxes: [1, 2\n".to_owned(), 1, 8, "unclosed"),
        ("boxes:\n\tcart: 1\n".to_owned(), 2, 2, "tab"),
        ("boxes:\n  a: {command: [a]}\n  a: {command: [b]}\n".to_owned(), 3, 3, "duplicate"),
        ("boxes: *nowhere\n".to_owned(), 1, 8, "nowhere"),
        ("a: 1\n---\nb: 1\n".to_owned(), 3, 1, "document"),
        // Nothing in it.
        (String::new(), 1, 1, "`boxes` is missing"),
        ("# empty\n".to_owned(), 1, 1, "`boxes` is missing"),
        ("boxes:\n".to_owned(), 1, 6, "at least one"),
        ("just text\n".to_owned(), 1, 1, "expected a mapping"),
        ("gateway: 4140\n".to_owned(), 1, 1, "`boxes` is missing"),
        // Unknown keys.
        ("boxs:\n  cart: {}\n".to_owned(), 1, 1, "did you mean `boxes`?"),
        (cart("    comand: [a]\n"), 4, 5, "boxes.cart.comand: unknown key; did you mean `command`?"),
        (cart("    attempt_timeout: 5m\n"), 4, 5, "did you mean `attempt-timeout`?"),
        (cart("    zebra: 1\n"), 4, 5, "known here: command, port, replicas"),
        (cart("log: {fsink: always}\n"), 4, 7, "did you mean `fsync`?"),
        (cart("gateway: {attempt-timeout: 5m}\n"), 4, 11, "unknown key"),
        (cart("    components: {cart: {colour: red}}\n"), 4, 25, "known here: port"),
        // Wrong types.
        ("boxes:\n  cart:\n    command: python3 cart.py\n".to_owned(), 3, 14, "write `[python3, cart.py]`"),
        ("boxes:\n  cart:\n    command: cd x && y\n".to_owned(), 3, 14, "[sh, -c, \"cd x && y\"]"),
        ("boxes:\n  cart:\n    command: []\n".to_owned(), 3, 14, "an empty list"),
        ("boxes:\n  cart:\n    command: [node, app.js, --port=$PORT]\n".to_owned(), 3, 14, "write `[sh, -c, \"exec node app.js --port=$PORT\"]`"),
        ("boxes:\n  cart:\n    command: [./cart, $(PORT)]\n".to_owned(), 3, 14, "write `[sh, -c, \"exec ./cart $PORT\"]`"),
        ("boxes:\n  cart:\n    command: [a, [b]]\n".to_owned(), 3, 18, "boxes.cart.command[1]: expected a text, found a list"),
        ("boxes:\n  cart: 3\n".to_owned(), 2, 9, "boxes.cart: expected a mapping"),
        ("boxes: [cart]\n".to_owned(), 1, 8, "boxes: expected a mapping"),
        (cart("    port: eighty\n"), 4, 11, "`eighty`: a port is a number from 1 to 65535"),
        (cart("    port: 80800\n"), 4, 11, "1 to 65535"),
        (cart("    port: [80]\n"), 4, 11, "expected a port, found a list"),
        (cart("    replicas: 0\n"), 4, 15, "at least 1"),
        (cart("    replicas: two\n"), 4, 15, "a whole number"),
        (cart("    replicas: 1000\n"), 4, 15, "at most 100"),
        (cart("    env: [A=1]\n"), 4, 10, "boxes.cart.env: expected a mapping"),
        (cart("    env: {A: [1]}\n"), 4, 14, "boxes.cart.env.A: expected one value"),
        (cart("    env: {PORT: 80}\n"), 4, 10, "say `port:` in the box instead"),
        (cart("    cwd: nowhere-at-all\n"), 4, 10, "there is no such directory"),
        // Values.
        (cart("    attempt-timeout: 300\n"), 4, 22, "boxes.cart.attempt-timeout: `300`: a duration needs its unit: `300s` or `300m`?"),
        (cart("    attempt-timeout: soon\n"), 4, 22, "30s"),
        (cart("    attempt-timeout: 0s\n"), 4, 22, "more than zero"),
        (cart("    retry-on: [502, 12]\n"), 4, 15, "a status is a number from 200 to 999"),
        (cart("    concurrency: many\n"), 4, 18, "a whole number"),
        (cart("    body-limit: huge\n"), 4, 17, "64MiB"),
        (cart("    protocol: http3\n"), 4, 15, "`http1` or `h2c`"),
        (cart("    streams: maybe\n"), 4, 14, "`refuse`"),
        (cart("    partitions: 5000\n"), 4, 17, "at most 1024"),
        (cart("    class: statefull\n"), 4, 12, "`stateful`"),
        (cart("    class: actor\n"), 4, 12, "can't be served yet"),
        (cart("    replicas: 3\n    class: stateful\n    partitions: 2\n"), 2, 3, "say `partitions: 3` or more"),
        (cart("    components: {cart: {ordinal: 1}}\n"), 4, 25, "known here: port, class"),
        (cart("    cancel-on-disconnect: maybe\n"), 4, 27, "cancel-on-disconnect"),
        (cart("log: {fsync: sometimes}\n"), 4, 14, "`always`, `never`"),
        (cart("log: {brokers: localhost}\n"), 4, 16, "HOST:PORT"),
        (cart("gateway: {listen: nowhere}\n"), 4, 19, "127.0.0.1:4140"),
        (cart("    routes: {reports: {attempt-timeout: 5m}}\n"), 4, 14, "a path such as `/reports`"),
        (cart("    routes: {/a: {attempt-timeout: 5}}\n"), 4, 36, "`5s`"),
        (cart("    routes: {/a: {colour: red}}\n"), 4, 19, "known here: attempt-timeout, retry-on"),
        (cart("    transactions: {/a: {type: required}}\n"), 4, 20, "such as `POST /trips`"),
        (cart("    transactions: {GET /a: {colour: red, type: never}}\n"), 4, 29, "known here: type, end"),
        (cart("    transactions: {GET /a: {type: perhaps}}\n"), 4, 28, "required, requires-new"),
        (cart("    transactions: {GET /a: {end: true}}\n"), 4, 28, "has no type"),
        (cart("    routes: {/a: {}}\n"), 4, 18, "says nothing"),
        // Names.
        ("boxes:\n  Cart_1: {command: [a]}\n".to_owned(), 2, 3, "`cart-1` would be right"),
        ("boxes:\n  bluebox: {command: [a]}\n".to_owned(), 2, 3, "reserved"),
        ("boxes:\n  gateway: {command: [a]}\n".to_owned(), 2, 22, "the gateway has this name"),
        (cart("    components: {Prices: {}}\n"), 4, 18, "`prices` would be right"),
        // What does not go together.
        ("boxes:\n  a: {command: [a], port: 80}\n  b: {command: [b], port: 80}\n".to_owned(), 3, 3, "port 80 is box `a`'s and box `b`'s"),
        ("boxes:\n  a: {command: [a], components: {x: }}\n  b: {command: [b], components: {x: }}\n".to_owned(), 3, 3, "served by box `a` and by box `b`"),
        (cart("    replicas: 2\n    components: {x: {port: 81}}\n"), 2, 3, "can't be shared by 2 replicas"),
        ("boxes:\n  cart:\n    port: 80\n".to_owned(), 2, 3, "`command` is missing"),
    ];
    let mut wrong = String::new();
    for (text, line, column, words) in table {
        let problems = parse(&text, Path::new("/")).expect_err(&text);
        let all = Problems::new(Path::new("f.yaml"), &text, problems).to_string();
        let place = format!("f.yaml:{line}:{column}: ");
        let in_place = all.starts_with(&place) || all.contains(&format!("\n{place}"));
        if !in_place || !all.to_lowercase().contains(&words.to_lowercase()) {
            wrong.push_str(&format!("\nexpected {place}…{words}… for\n{text}but it says\n{all}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn all_problems_at_once_and_in_order() {
    let text = "boxes:\n  cart:\n    command: [a]\n    port: x\n    replicas: y\nlog: {fsync: z}\n";
    let problems = parse(text, Path::new("/")).unwrap_err();
    assert_eq!(problems.len(), 3);
    let all = Problems::new(Path::new("f"), text, problems).to_string();
    let lines: Vec<&str> = all.lines().filter(|line| line.starts_with("f:")).collect();
    assert!(lines[0].starts_with("f:4:") && lines[1].starts_with("f:5:") && lines[2].starts_with("f:6:"), "{all}");
    assert!(all.contains("    4 |     port: x"), "{all}");
}

#[test]
fn hostile_files_are_refused_and_nothing_more() {
    for text in [
        "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f]\n".to_owned(),
        "[".repeat(5000),
        "{a: ".repeat(5000),
        "\u{0}".to_owned(),
        "? [a]\n: b\n".to_owned(),
        "- !!binary x\n".to_owned(),
        "\u{feff}boxes: 1".to_owned(),
    ] {
        let problems = parse(&text, Path::new("/")).expect_err("refused");
        let told = Problems::new(Path::new("f"), &text, problems).to_string();
        assert!(told.len() < 5000, "{}", told.len());
    }
}

#[test]
fn one_line_starts_the_transaction_manager() {
    const BOX: &str = "boxes: {cart: {command: [x]}}\n";
    assert!(right(BOX).txmgr.is_none() && right(&format!("{BOX}txmgr: false")).txmgr.is_none());
    let usual = right(&format!("{BOX}txmgr: true")).txmgr.unwrap();
    assert_eq!((usual.listen, usual.replicas, usual.partitions), (crate::file::DEFAULT_TXMGR, 1, crate::txmgr::PARTITIONS));
    assert_eq!(right(&format!("{BOX}txmgr: 9000")).txmgr.unwrap().listen, "127.0.0.1:9000".parse().unwrap());
    let all = right(&format!("{BOX}txmgr: {{replicas: 2, partitions: 8, allow: ['http://a/x', 'http://b'], keep-transactions: 2h}}")).txmgr.unwrap();
    assert_eq!((all.replicas, all.partitions), (2, 8));
    assert_eq!(all.settings, ["--allow=http://a/x,http://b", "--keep-transactions=2h"]);
}

#[test]
fn what_is_wrong_with_the_transaction_manager_is_told() {
    for (text, says) in [
        ("boxes: {cart: {command: [x]}}\ntxmgr: {allow: 'https://a'}", "https can't be called yet"),
        ("boxes: {cart: {command: [x]}}\ntxmgr: {allow: 'a'}", "not absolute"),
        ("boxes: {cart: {command: [x]}}\ntxmgr: {keep-transactions: 5}", "5s"),
        ("boxes: {cart: {command: [x]}}\ntxmgr: {replica: 2}", "did you mean `replicas`?"),
        ("boxes: {txmgr: {command: [x]}}\ntxmgr: true", "is the transaction manager's name"),
    ] {
        let problems = parse(text, Path::new("/")).unwrap_err();
        let said: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
        assert!(said.iter().any(|problem| problem.contains(says)), "{text}: {said:?}");
    }
}

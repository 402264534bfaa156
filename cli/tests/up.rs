//! `bluebox up` as a user sees it: real processes, killed and asked to end.

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Place, bluebox, run, runs, send, wait_until};
use nix::sys::signal::Signal;

const ONE_BOX: &str = "boxes:\n  cart: {command: [python3, app.py]}\n";

#[test]
fn says_what_runs_where_and_how_to_call_it() {
    let mut up = Place::with("boxes:\n  cart: {command: [python3, app.py], replicas: 2}\n").up();
    let line = up.expect("from outside");
    up.wait_until_up();
    assert!(line.contains(&format!("curl -x {} http://cart/", up.gateway())), "{line}");
    let (one, two) = (up.unit("cart-0").unwrap(), up.unit("cart-1").unwrap());
    assert_ne!(one.port, two.port);
    for pid in [one.app, one.proxy, two.app, two.proxy] {
        assert!(runs(pid));
    }
    up.signal(Signal::SIGINT);
    let (_, said) = up.ended();
    assert!(!said.contains('\u{1b}'), "no colours where there is no terminal: {said}");
}

#[test]
fn lines_of_an_app_have_its_name_in_front() {
    let mut up = Place::with("boxes:\n  chat: {command: [sh, -c, 'echo one; echo two >&2; echo ready; exec sleep 1000'], components: {}}\n").up();
    up.wait_until_ready();
    up.signal(Signal::SIGINT);
    let (_, said) = up.ended();
    for text in [" | one", " | two"] {
        assert!(said.lines().any(|line| line.starts_with("chat-0 ") && line.ends_with(text)), "{said}");
    }
}

#[test]
fn an_app_gets_what_it_needs_to_find_its_proxy() {
    let script = "env; echo ready; exec sleep 1000";
    let mut up =
        Place::with(&format!("boxes:\n  cart: {{command: [sh, -c, '{script}'], components: {{}}, env: {{MINE: yes, JAVA_TOOL_OPTIONS: -Xmx64m}}}}\n")).up();
    up.wait_until_ready();
    let state = up.state().unwrap();
    let proxy = state["units"].as_array().unwrap().iter().find(|unit| unit["name"] == "cart-0").unwrap()["proxy"].as_str().unwrap().to_owned();
    let port = proxy.rsplit_once(':').unwrap().1.to_owned();
    up.signal(Signal::SIGINT);
    let (_, said) = up.ended();
    for wanted in [
        format!("HTTP_PROXY=http://{proxy}"),
        format!("http_proxy=http://{proxy}"),
        "NO_PROXY=localhost,127.0.0.1,::1".to_owned(),
        "no_proxy=localhost,127.0.0.1,::1".to_owned(),
        "NODE_USE_ENV_PROXY=1".to_owned(),
        format!("JAVA_TOOL_OPTIONS=-Xmx64m -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={port} -Dhttp.nonProxyHosts=localhost|127.*|[::1]"),
        "BLUEBOX_BOX=cart".to_owned(),
        "BLUEBOX_REPLICA=0".to_owned(),
        "MINE=yes".to_owned(),
        "PORT=".to_owned(),
    ] {
        assert!(said.contains(&format!("| {wanted}")), "{wanted} is missing in\n{said}");
    }
}

#[test]
fn replicas_of_a_stateful_component_are_ordinals() {
    let script = "BLUEBOX_BOX=app-$BLUEBOX_ORDINAL exec python3 app.py";
    let mut up = Place::with(&format!("boxes:\n  app: {{command: [sh, -c, '{script}'], class: stateful, replicas: 2}}\n")).up();
    up.wait_until_up();
    for ordinal in [1, 0, 1] {
        assert_eq!(up.get(&format!("http://app-{ordinal}.app/x")), (200, format!("app-{ordinal} /x")));
    }
    assert_eq!(up.get("http://app-2.app/x").0, 400, "there can be as many as there are replicas");
    let before = up.unit("app-1").unwrap();
    send(before.proxy, Signal::SIGKILL);
    up.wait_for_restart("app-1", 1);
    assert_eq!(up.get("http://app-1.app/y"), (200, "app-1 /y".to_owned()));
    // In order, too: what is there afterwards is the same ordinal's.
    up.signal(Signal::SIGINT);
    let mut up = up.ended_in_place().up();
    up.wait_until_up();
    assert_eq!(up.get("http://app-1.app/z"), (200, "app-1 /z".to_owned()));
    let asked: Vec<_> = up.ledger().iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(asked, ["app-1 /x", "app-0 /x", "app-1 /x", "app-1 /y", "app-1 /z"]);
}

#[test]
fn a_killed_app_takes_its_proxy_with_it_and_both_start_again() {
    let mut up = Place::with(ONE_BOX).up();
    up.wait_until_up();
    let before = up.unit("cart-0").unwrap();
    send(before.app, Signal::SIGKILL);
    let line = up.expect("cart-0: its app was killed (SIGKILL)");
    assert!(line.contains("Starts again now"), "{line}");
    let after = up.wait_for_restart("cart-0", 1);
    assert!(!runs(before.app) && !runs(before.proxy));
    assert!(after.app != before.app && after.proxy != before.proxy);
}

#[test]
fn a_killed_proxy_takes_its_app_with_it_and_both_start_again() {
    let mut up = Place::with(ONE_BOX).up();
    up.wait_until_up();
    let before = up.unit("cart-0").unwrap();
    send(before.proxy, Signal::SIGKILL);
    up.expect("cart-0: its proxy was killed (SIGKILL), so its app was killed too");
    let after = up.wait_for_restart("cart-0", 1);
    assert!(!runs(before.app) && !runs(before.proxy));
    assert!(after.app != before.app && after.proxy != before.proxy);
}

#[test]
fn an_app_that_ends_by_itself_starts_again_later_and_later() {
    let mut up = Place::with("boxes:\n  flaky: {command: [sh, -c, 'exit 3'], port: 1}\n").up();
    let line = up.expect("flaky-0: its app failed (exit code 3)");
    assert!(line.contains("without opening port 1. Starts again now"), "{line}");
    up.expect("Starts again in 1 s");
    up.expect("Starts again in 2 s");
    up.signal(Signal::SIGTERM);
    let began = Instant::now();
    let (code, _) = up.ended();
    assert_eq!(code, Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "waiting to restart is no reason to wait with the end");
}

/// Everything that a killed app has left behind is ended with it, also what has left its process group.
const WITH_FAMILY: &str = "boxes:\n  cart: {command: [sh, -c, 'sleep 1001 & (setsid sleep 1002 &); exec sleep 1003'], components: {}}\n";

#[test]
fn what_an_app_has_started_ends_with_it() {
    let mut up = Place::with(WITH_FAMILY).up();
    up.wait_until_up();
    let before = wait_until("the family is there", || Some(up.place.processes()).filter(|all| all.len() == 7));
    let unit = up.unit("cart-0").unwrap();
    let gateway = up.unit("gateway").unwrap();
    send(unit.app, Signal::SIGKILL);
    up.wait_for_restart("cart-0", 1);
    let left: Vec<i32> = before.into_iter().filter(|pid| runs(*pid)).collect();
    assert_eq!(left.len(), 2, "only up and the gateway are left: {left:?}");
    assert!(left.contains(&up.pid()) && left.contains(&gateway.proxy));
}

#[test]
fn when_up_is_killed_everything_ends() {
    let mut up = Place::with(WITH_FAMILY).up();
    up.wait_until_up();
    wait_until("the family is there", || (up.place.processes().len() == 7).then_some(()));
    up.signal(Signal::SIGKILL);
    wait_until("nothing runs any more", || up.place.processes().is_empty().then_some(()));
}

#[test]
fn when_the_shim_is_killed_the_box_starts_again() {
    let mut up = Place::with(ONE_BOX).up();
    up.wait_until_up();
    let before = up.unit("cart-0").unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", before.app)).unwrap();
    let shim = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    assert_ne!(shim, up.pid());
    send(shim, Signal::SIGKILL);
    up.wait_for_restart("cart-0", 1);
    assert!(!runs(before.app) && !runs(before.proxy));
}

#[test]
fn ctrl_c_ends_in_good_order() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let script = "trap \"echo asked to end; exit 0\" TERM; echo ready; while :; do sleep 0.1; done";
        let mut up = Place::with(&format!("boxes:\n  cart: {{command: [sh, -c, '{script}'], components: {{}}}}\n")).up();
        up.wait_until_ready();
        let place = up.place.path().to_owned();
        let unit = up.unit("cart-0").unwrap();
        up.signal(signal);
        let (code, said) = up.ended();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("| asked to end"), "the app gets SIGTERM: {said}");
        assert!(said.contains("Everything that was accepted is kept"), "{said}");
        assert!(!runs(unit.app) && !runs(unit.proxy));
        assert!(!place.join(".bluebox/state.json").exists());
    }
}

#[test]
fn an_app_that_does_not_end_is_killed_after_its_grace() {
    let script = "trap \"\" TERM; echo ready; while :; do sleep 0.1; done";
    let mut up = Place::with(&format!("boxes:\n  cart: {{command: [sh, -c, '{script}'], components: {{}}, grace: 200ms}}\n")).up();
    up.wait_until_ready();
    up.signal(Signal::SIGINT);
    let (code, said) = up.ended();
    assert_eq!(code, Some(0));
    assert!(said.contains("cart-0: its app did not end within 0.2 s of SIGTERM; it was killed"), "{said}");
}

#[test]
fn the_second_ctrl_c_ends_at_once() {
    let script = "trap \"echo not yet\" TERM; echo ready; while :; do sleep 0.1; done";
    let mut up = Place::with(&format!("boxes:\n  cart: {{command: [sh, -c, '{script}'], components: {{}}, grace: 10m}}\n")).up();
    up.wait_until_ready();
    up.signal(Signal::SIGINT);
    up.expect("| not yet");
    up.signal(Signal::SIGINT);
    let place = up.place.path().to_owned();
    let (code, said) = up.ended();
    assert_eq!(code, Some(130));
    assert!(said.contains("ending at once"), "{said}");
    assert!(common::processes_with(&place.display().to_string()).is_empty());
}

#[test]
fn a_command_that_is_not_there() {
    for (command, says) in
        [("[pyhton3, app.py]", "`pyhton3`: no such command in PATH"), ("[./app]", "`./app`: there is no such file"), ("[./app.py]", "chmod +x")]
    {
        let place = Place::with(&format!("boxes:\n  cart: {{command: {command}}}\n"));
        let (status, said) = run(&mut place.command());
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("line 2: box cart") && said.contains(says), "{said}");
    }
}

#[test]
fn a_command_that_can_not_be_run() {
    let place = Place::with("boxes:\n  cart: {command: [./broken]}\n");
    std::fs::write(place.path().join("broken"), "#!/nowhere/at-all\n").unwrap();
    std::fs::set_permissions(place.path().join("broken"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut up = place.up();
    up.expect("cart-0: can't be started: `./broken` can't be run: No such file or directory");
}

#[test]
fn a_port_that_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let by_me = format!("port {} is taken by", address.port());
    let place = Place::with(&format!("boxes:\n  cart: {{command: [python3, app.py], port: {}}}\n", address.port()));
    let (status, said) = run(&mut place.command());
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("cart-0: ") && said.contains(&by_me) && said.contains(&format!("pid {}", std::process::id())), "{said}");

    let place = Place::with(ONE_BOX);
    let (status, said) = run(bluebox().args(["up", "--gateway", &address.to_string()]).current_dir(place.path()));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("gateway: ") && said.contains(&by_me), "{said}");
}

#[test]
fn an_app_that_ignores_its_port_can_not_have_replicas() {
    let taken = "import socket, time; mine = socket.create_server((\"127.0.0.1\", PORT)); time.sleep(1000)";
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let yaml = format!("boxes:\n  cart: {{command: [python3, fixed.py], port: {port}, replicas: 2}}\n");
    let place = Place::with(&yaml);
    std::fs::write(place.path().join("fixed.py"), taken.replace("PORT", &port.to_string())).unwrap();
    let mut up = place.up();
    let line = up.expect("with more than one replica the app must listen on $PORT");
    assert!(line.contains("cart-1: ") && line.contains(&format!("Only one process can have port {port}")) && line.contains("replicas: 1"), "{line}");
    // The one that can run does, and when it starts again the other doesn't take its place.
    let first = up.unit("cart-0").unwrap();
    assert_eq!((first.status.as_str(), first.restarts), ("up", 0));
    send(first.app, Signal::SIGKILL);
    let after = wait_until("the first is up again", || up.unit("cart-0").filter(|unit| unit.restarts > 0 && unit.status == "up"));
    assert!(runs(after.app));
}

#[test]
fn two_on_the_same_data() {
    let mut first = Place::with(ONE_BOX).up();
    first.wait_until_up();
    let (status, said) = run(&mut first.place.command());
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("another `bluebox up` runs on") && said.contains(&format!("pid {}", first.pid())) && said.contains("--data"), "{said}");
    let before = first.unit("cart-0").unwrap();
    assert!(runs(before.app) && before.restarts == 0, "the first one goes on");
}

#[test]
fn partitions_that_contradict_what_is_there() {
    let mut up = Place::with("boxes:\n  cart: {command: [python3, app.py], partitions: 4}\n").up();
    up.wait_until_up();
    up.signal(Signal::SIGINT);
    let place = up.ended_in_place();
    std::fs::write(place.path().join("bluebox.yaml"), "boxes:\n  cart: {command: [python3, app.py], partitions: 5}\n").unwrap();
    let (status, said) = run(&mut place.command());
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("bluebox.yaml: ") && said.contains("cart") && said.contains("with 4 partitions, not") && said.contains("with 5;"), "{said}");
}

#[test]
fn a_killed_gateway_listens_again_at_the_same_port() {
    let mut up = Place::with(ONE_BOX).up();
    up.wait_until_up();
    let (before, address) = (up.unit("gateway").unwrap(), up.gateway());
    send(before.proxy, Signal::SIGKILL);
    up.expect("gateway: its proxy was killed (SIGKILL). Starts again now");
    let after = up.wait_for_restart("gateway", 1);
    assert_ne!(after.proxy, before.proxy);
    assert_eq!(up.gateway(), address);
    assert_eq!(up.get("http://cart/").0, 200);
}

#[test]
fn a_kafka_that_is_not_there_is_told_within_seconds_and_tried_again() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut up = Place::with(ONE_BOX).up_with(&["--brokers".to_owned(), nobody.to_string()]);
    let began = Instant::now();
    let line = up.expect(&format!("Kafka at {nobody} can't be reached"));
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert!(line.contains("Still trying") && line.contains("Is the broker running there"), "{line}");
    up.expect("everything is up but the log");
    assert_eq!(up.get("http://cart/").0, 503);
    up.signal(Signal::SIGINT);
    assert_eq!(up.ended().0, Some(0));
}

#[test]
fn a_program_that_was_replaced_goes_on() {
    let place = Place::with(ONE_BOX);
    let copy = place.path().join("bluebox");
    std::fs::copy(env!("CARGO_BIN_EXE_bluebox"), &copy).unwrap();
    let mut command = std::process::Command::new(&copy);
    command.args(["up", "--gateway", "127.0.0.1:0"]).current_dir(place.path());
    let mut up = place.run(command);
    up.wait_until_up();
    std::fs::remove_file(copy).unwrap();
    send(up.unit("cart-0").unwrap().app, Signal::SIGKILL);
    up.wait_for_restart("cart-0", 1);
}

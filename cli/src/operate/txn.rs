//! `bluebox txn`: transactions, by asking the transaction manager.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bluebox_core::clock::wall_clock;
use bluebox_core::log::Timestamp;
use bluebox_txmgr::TransactionId;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::Value;

use super::door::{Door, Wanted};
use super::{OutputOptions, get, running};
use crate::kubernetes::cluster::ClusterOptions;
use crate::units::{self, so_many, spell};

/// How long an answer may take: a partition that changes hands is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks after transactions: LRAs and sagas.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox txn list --failed
  bluebox txn list --in-doubt --older-than 1h -o json
  bluebox txn show 0003-0198f0c2a1b3-00000000000004d2
  bluebox txn retry 0003-0198f0c2a1b3-00000000000004d2
  bluebox txn list --context production -n shop         of the transaction manager in a cluster")]
pub(crate) struct TxnOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List transactions, the oldest first
    #[command(after_help = "Examples:
  bluebox txn list --failed
  bluebox txn list --in-doubt --older-than 1h -o json")]
    List {
        /// Only those that are ending, or of whose end somebody has yet to be told.
        #[arg(long)]
        in_doubt: bool,
        /// Only those that have failed, and wait for an operator.
        #[arg(long)]
        failed: bool,
        /// Only those in this state: Active, Closing, Closed, FailedToClose, Cancelling, Cancelled, FailedToCancel.
        #[arg(long, value_name = "STATE", value_parser = |text: &str| text.parse::<bluebox_txmgr::wire::status::LraStatus>())]
        status: Option<bluebox_txmgr::wire::status::LraStatus>,
        /// Only those that began at least so long ago.
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        older_than: Option<Duration>,
        /// Only LRAs, or only sagas.
        #[arg(long)]
        kind: Option<Kind>,
        #[command(flatten)]
        output: OutputOptions,
        #[command(flatten)]
        asked: AskedOptions,
    },
    /// Show one: its participants or steps, with state, tries, last error and next try
    #[command(after_help = "Example:
  bluebox txn show 0003-0198f0c2a1b3-00000000000004d2")]
    Show {
        /// Its id.
        id: TransactionId,
        #[command(flatten)]
        output: OutputOptions,
        #[command(flatten)]
        asked: AskedOptions,
    },
    /// Try at once what waits to be tried again
    #[command(after_help = "Example:
  bluebox txn retry 0003-0198f0c2a1b3-00000000000004d2")]
    Retry(WhichOptions),
    /// Cancel: what was done is compensated
    #[command(after_help = "Example:
  bluebox txn cancel 0003-0198f0c2a1b3-00000000000004d2")]
    Cancel(WhichOptions),
    /// Give up on those who don't answer: they have failed, and the transaction with them
    #[command(after_help = "Example:
  bluebox txn give-up 0003-0198f0c2a1b3-00000000000004d2")]
    GiveUp(WhichOptions),
    /// Forget what has failed: nobody is called any more
    #[command(after_help = "Example:
  bluebox txn forget 0003-0198f0c2a1b3-00000000000004d2")]
    Forget(WhichOptions),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Lra,
    Saga,
}

#[derive(Debug, Args)]
struct WhichOptions {
    /// Ids.
    #[arg(required = true)]
    ids: Vec<TransactionId>,
    #[command(flatten)]
    asked: AskedOptions,
}

/// Whom to ask.
#[derive(Debug, Args)]
struct AskedOptions {
    /// Any proxy, or where the transaction manager answers those in no box; by default the gateway of the `bluebox up` on the data directory, else the transaction manager of the
    /// cluster that kubectl would ask.
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::file::address)]
    proxy: Option<SocketAddr>,
    /// The data directory of that `bluebox up`.
    #[arg(long, env = "BLUEBOX_DATA", value_name = "DIR", default_value = ".bluebox")]
    data: PathBuf,
    #[command(flatten)]
    cluster: ClusterOptions,
    /// The namespace of the transaction manager; by default that of the context, as with kubectl.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
}

/// The pod that answers for a cluster.
const TXMGR: Wanted = Wanted {
    what: "the transaction manager",
    labels: "app.kubernetes.io/name=txmgr",
    port: 8070,
    remedy: "--namespace names another namespace; manifests/txmgr makes it run (docs/transactions.md)",
};

impl AskedOptions {
    async fn door(&self) -> anyhow::Result<Door> {
        if let Some(proxy) = self.proxy {
            return Ok(proxy.into());
        }
        let named = self.cluster.is_named() || self.namespace.is_some();
        match running(&self.data).and_then(|state| state.gateway).filter(|_| !named) {
            Some(gateway) => Ok(gateway.into()),
            None if named || self.cluster.is_known() => Door::of_pod(&self.cluster, self.namespace.as_deref(), &TXMGR).await,
            None => Ok(crate::file::DEFAULT_GATEWAY.into()),
        }
    }

    /// What the transaction manager answers; an error where it says no.
    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Vec<u8>> {
        let door = self.door().await?;
        let url = format!("http://{}{path}", crate::txmgr::NAME);
        const NOBODY: &str = "no `bluebox up` runs here, and no cluster is known (KUBECONFIG, ~/.kube/config): name a proxy (--proxy), a data directory (--data), or a cluster (--kubeconfig, --context)";
        let guessed = matches!(&door, Door::At(_)) && self.proxy.is_none() && running(&self.data).is_none();
        let answer = get::ask(method, &door, &url, PATIENCE).await.context(if guessed { NOBODY } else { "the transaction manager can't be asked" })?;
        let (status, body) = (answer.status(), answer.into_body());
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem.get("detail").and_then(Value::as_str).map_or_else(|| String::from_utf8_lossy(&body).trim().to_owned(), str::to_owned);
        bail!("{status}: {detail}")
    }
}

/// Does what was asked.
pub(crate) async fn run(options: TxnOptions) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match options.command {
        Command::List { in_doubt, failed, status, older_than, kind, output, asked } => {
            let mut query = Vec::new();
            query.extend(in_doubt.then(|| "in-doubt".to_owned()));
            query.extend(failed.then(|| "failed".to_owned()));
            query.extend(status.map(|status| format!("status={status}")));
            query.extend(older_than.map(|age| format!("older-than={}", age.as_millis())));
            query.extend(kind.map(|kind| format!("kind={}", if matches!(kind, Kind::Lra) { "lra" } else { "saga" })));
            let body = asked.ask(Method::GET, &format!("/v1/transactions?{}", query.join("&"))).await?;
            let all: Vec<Value> = serde_json::from_slice(&body).context("the answer is no list")?;
            list(&mut out, &all, output.is_json())
        }
        Command::Show { id, output, asked } => {
            let body = asked.ask(Method::GET, &format!("/v1/transactions/{id}")).await?;
            let one: Value = serde_json::from_slice(&body).context("the answer is no transaction")?;
            if output.is_json() { Ok(writeln!(out, "{one}")?) } else { show(&mut out, &one) }
        }
        Command::Retry(which) => tell(&mut out, which, "retry", "is tried again").await,
        Command::Cancel(which) => tell(&mut out, which, "cancel", "").await,
        Command::GiveUp(which) => tell(&mut out, which, "give-up", "waits for nobody any more").await,
        Command::Forget(which) => tell(&mut out, which, "forget", "is forgotten").await,
    }
}

async fn tell(out: &mut impl std::io::Write, which: WhichOptions, what: &str, done: &str) -> anyhow::Result<()> {
    for id in &which.ids {
        let body = which.asked.ask(Method::POST, &format!("/v1/transactions/{id}/{what}")).await.with_context(|| id.to_string())?;
        if done.is_empty() { writeln!(out, "{id}: {}", String::from_utf8_lossy(&body))? } else { writeln!(out, "{id} {done}")? }
    }
    Ok(())
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn ago(value: &Value, name: &str) -> String {
    let then = value.get(name).and_then(Value::as_u64).map(Timestamp::from_millis);
    then.map_or_else(|| "-".to_owned(), |then| spell(wall_clock().since(then)))
}

/// Participants of an LRA, or steps of a saga.
fn members(one: &Value) -> &[Value] {
    one.get("participants").or_else(|| one.get("steps")).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Why the call that is under way to one of them is not made yet, or is made again and again.
fn why_it_waits(line: &Value) -> Option<&str> {
    ["/under_way/turn", "/under_way/again/why"].iter().find_map(|at| line.pointer(at)?.as_str())
}

/// What was last said that made another try necessary, of any of them: first of those whose call nobody has taken yet.
fn last_error(one: &Value) -> Option<&str> {
    let lines = || members(one).iter().filter_map(|member| member.get("line"));
    lines().find_map(why_it_waits).or_else(|| lines().find_map(|line| line.get("last_error")?.as_str()))
}

/// In how long something is, if it is still to come.
fn until(value: &Value, name: &str) -> Option<String> {
    let then = value.get(name).and_then(Value::as_u64).map(Timestamp::from_millis)?;
    let left = then.since(wall_clock());
    (!left.is_zero()).then(|| spell(left))
}

fn list(out: &mut impl std::io::Write, all: &[Value], json: bool) -> anyhow::Result<()> {
    if json {
        for one in all {
            writeln!(out, "{one}")?;
        }
        return Ok(());
    }
    if all.is_empty() {
        writeln!(out, "no transactions")?;
        return Ok(());
    }
    writeln!(out, "{:<34} {:<5} {:<14} {:<12} {:>7}  LAST ERROR", "TRANSACTION", "KIND", "STATE", "AGE", "MEMBERS")?;
    for one in all {
        let error = last_error(one).unwrap_or_default();
        writeln!(
            out,
            "{:<34} {:<5} {:<14} {:<12} {:>7}  {error}",
            text(one, "id"),
            text(one, "kind"),
            text(one, "status"),
            ago(one, "started_ms"),
            members(one).len()
        )?;
    }
    writeln!(out, "\n{}; bluebox txn show ID, retry ID, cancel ID, forget ID", so_many(all.len(), "transaction", "transactions"))?;
    Ok(())
}

fn show(out: &mut impl std::io::Write, one: &Value) -> anyhow::Result<()> {
    writeln!(out, "{} {}: {}", text(one, "kind"), text(one, "id"), text(one, "status"))?;
    writeln!(out, "began {} ago, ended {} ago", ago(one, "started_ms"), ago(one, "ended_ms"))?;
    for (name, says) in [("client", "client"), ("why", "because")] {
        if let Some(value) = one.get(name).and_then(Value::as_str).filter(|value| !value.is_empty()) {
            writeln!(out, "{says}: {value}")?;
        }
    }
    if let Some(parent) = one.get("parent").and_then(|parent| parent.get("id")).and_then(Value::as_str) {
        writeln!(out, "nested in {parent}")?;
    }
    for member in members(one) {
        let name = member.get("name").and_then(Value::as_str).map_or_else(|| member.get("number").map(ToString::to_string).unwrap_or_default(), str::to_owned);
        writeln!(out, "\n  {name}: {}", text(member, "status"))?;
        for link in ["compensate", "complete", "status_url", "forget", "after", "action", "compensation"] {
            if let Some(url) = member.get(link).and_then(Value::as_str) {
                writeln!(out, "    {link}: {url}")?;
            }
        }
        let before = member.get("after").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
        if !before.is_empty() {
            writeln!(out, "    comes after: {}", before.join(", "))?;
        }
        let Some(line) = member.get("line") else { continue };
        let number = |name: &str| line.get(name).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
        let (failures, outcomes) = (so_many(number("failures"), "try", "tries"), number("outcomes"));
        match line.get("asked").and_then(Value::as_str) {
            Some(asked) => writeln!(out, "    is asked for: {asked}; {failures} in vain, {outcomes} in all")?,
            None if outcomes > 0 => writeln!(out, "    was asked again: {}", so_many(outcomes, "time", "times"))?,
            None => {}
        }
        if member.get("still_going").and_then(Value::as_bool) == Some(true) {
            writeln!(out, "    still going: it said so itself (425)")?;
        }
        waits(out, line)?;
        if let Some(error) = line.get("last_error").and_then(Value::as_str) {
            writeln!(out, "    last error: {error}")?;
        }
    }
    Ok(())
}

/// What the call waits for that one of them is to get.
fn waits(out: &mut impl std::io::Write, line: &Value) -> std::io::Result<()> {
    let under_way = line.get("under_way").filter(|under_way| !under_way.is_null());
    let Some(under_way) = under_way else {
        let asked = line.get("asked").is_some_and(|asked| !asked.is_null());
        return match until(line, "not_before_ms").filter(|_| asked) {
            Some(time) => writeln!(out, "    next try: in {time}"),
            None => Ok(()),
        };
    };
    if let Some(turn) = under_way.get("turn").and_then(Value::as_str) {
        return writeln!(out, "    waits for its turn: {turn}\n           for {}, not tried yet", ago(under_way, "since_ms"));
    }
    let (since, again) = (ago(under_way, "since_ms"), under_way.get("again").filter(|again| !again.is_null()));
    let Some(again) = again else { return writeln!(out, "    under way: for {since}, without an answer yet") };
    let tries = again.get("tries").and_then(Value::as_u64).and_then(|tries| usize::try_from(tries).ok()).unwrap_or(0);
    let next = until(again, "at_ms").map_or_else(|| "is tried again now".to_owned(), |time| format!("next try in {time}"));
    writeln!(out, "    waits: {}\n           for {since}, {} without an outcome; {next}", text(again, "why"), so_many(tries, "try", "tries"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lra() -> Value {
        let line = json!({ "asked": "complete", "outcomes": 3, "failures": 2, "last_error": "HTTP 500: boom" });
        json!({
            "id": "0001-000000000001-0000000000000001", "kind": "lra", "status": "Closing", "client": "trip", "started_ms": 1, "ended_ms": null, "parent": null,
            "participants": [{ "number": 0, "status": "Completing", "complete": "http://hotel/complete", "line": line }],
        })
    }

    #[test]
    fn what_is_wrong_is_shown() {
        let mut out = Vec::new();
        list(&mut out, &[lra()], false).unwrap();
        show(&mut out, &lra()).unwrap();
        let said = String::from_utf8(out).unwrap();
        for part in ["Closing", "HTTP 500: boom", "1 transaction;", "0: Completing", "complete: http://hotel/complete", "2 tries in vain, 3 in all"] {
            assert!(said.contains(part), "{part:?} is missing in\n{said}");
        }
    }

    #[test]
    fn why_a_call_waits_is_shown_and_when_it_is_made_again() {
        let millis = |seconds: u64| wall_clock().as_millis() + 1000 * seconds;
        let mut waits = lra();
        waits["participants"][0]["line"]["under_way"] =
            json!({ "since_ms": 1, "turn": null, "again": { "why": "503 recorded-full: no room", "tries": 4, "at_ms": millis(3_600) } });
        let said = |one: &Value| {
            let mut out = Vec::new();
            list(&mut out, std::slice::from_ref(one), false).unwrap();
            show(&mut out, one).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = said(&waits);
        for part in
            ["  503 recorded-full: no room\n", "waits: 503 recorded-full: no room\n", "4 tries without an outcome; next try in ", "last error: HTTP 500"]
        {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        waits["participants"][0]["line"]["under_way"] = json!({ "since_ms": 1, "turn": "no place for hotel", "again": null });
        let text = said(&waits);
        for part in ["  no place for hotel\n", "waits for its turn: no place for hotel\n           for ", ", not tried yet\n"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("without an"), "{text}");
        waits["participants"][0]["line"]["under_way"] = json!({ "since_ms": 1, "turn": null, "again": null });
        assert!(said(&waits).contains("under way: for "), "{}", said(&waits));
        waits["participants"][0]["line"]["under_way"] = Value::Null;
        assert!(!said(&waits).contains("next try"), "{}", said(&waits));
        waits["participants"][0]["line"]["not_before_ms"] = json!(millis(3_600));
        assert!(said(&waits).contains("next try: in "), "{}", said(&waits));
    }

    #[test]
    fn steps_of_a_saga_show_what_participants_show() {
        let line = json!({ "asked": "action", "outcomes": 3, "failures": 3, "not_before_ms": wall_clock().as_millis() + 3_600_000, "last_error": "HTTP 500: boom", "under_way": null });
        let saga = json!({
            "id": "0001-000000000001-0000000000000001", "kind": "saga", "status": "Active", "started_ms": 1, "ended_ms": null, "why": null,
            "steps": [
                { "name": "room", "status": "Undone", "after": [], "still_going": false, "action": "http://hotel/do", "compensation": null,
                  "line": { "asked": null, "outcomes": 1, "failures": 0, "not_before_ms": 1, "last_error": null, "under_way": null } },
                { "name": "seat", "status": "Running", "after": ["room"], "still_going": true, "action": "http://flight/do", "compensation": "http://flight/undo", "line": line },
            ],
        });
        let mut out = Vec::new();
        list(&mut out, std::slice::from_ref(&saga), false).unwrap();
        show(&mut out, &saga).unwrap();
        let said = String::from_utf8(out).unwrap();
        for part in [
            "  HTTP 500: boom\n",
            "\n  room: Undone\n",
            "    was asked again: 1 time\n",
            "\n  seat: Running\n",
            "    action: http://flight/do\n",
            "    compensation: http://flight/undo\n",
            "    comes after: room\n",
            "    is asked for: action; 3 tries in vain, 3 in all\n",
            "    still going: it said so itself (425)\n",
            "    next try: in ",
            "    last error: HTTP 500: boom\n",
        ] {
            assert!(said.contains(part), "{part:?} is missing in\n{said}");
        }
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        let mut out = Vec::new();
        list(&mut out, &[], false).unwrap();
        assert_eq!(out, b"no transactions\n");
    }
}

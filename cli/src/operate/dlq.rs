//! `bluebox dlq`: dead letters. Calls that were given up, with all that is needed to deliver them after all.
//!
//! A letter is never changed: the log only grows. What was done with it is a record behind it ([`Settled`]), and a settled letter is not listed any more.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use anyhow::{Context as _, bail};
use bluebox_core::call::{Body, Call};
use bluebox_core::log::{Appended, Record, Timestamp, TopicPartition};
use bluebox_core::wire::{CallsEntry, DeadLetter, SETTLED_KEY, Settled, Settlement};
use bluebox_core::{CallId, ComponentName};
use bluebox_proxy::bulk::{Bulk, CHUNK_KEY, OutBody};
use clap::{Args, Subcommand};
use http::Method;
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};

use super::door::Door;
use super::{OutputOptions, Reached, SystemOptions, Whom, get};
use crate::units::{so_many, spell};
use crate::watch::history::ago;

/// What a record of a `dead-letters` topic tells.
pub(crate) enum Kept {
    /// A call was given up.
    Letter(Box<DeadLetter>),
    /// Somebody did something with one.
    Settled(Settled),
}

impl Kept {
    /// `None` for a part of a body, and for what can't be read.
    pub(crate) fn of(record: Record) -> Option<Self> {
        let Record { key, value: Some(value) } = record else { return None };
        match &key[..] {
            SETTLED_KEY => Settled::decode(value).ok().map(Self::Settled),
            CHUNK_KEY => None,
            _ => DeadLetter::decode(value).ok().map(|letter| Self::Letter(Box::new(letter))),
        }
    }
}

/// Memory for bodies that are copied.
const BODY_MEMORY: usize = 8 << 20;

/// Looks after dead letters: calls that were given up after too many attempts, because their box died of them, or because their deadline passed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bluebox dlq list --component cart
  bluebox dlq show 3f2a                   the request, and why it was given up
  bluebox dlq show 3f2a --body > body     its body alone
  bluebox dlq replay 3f2a 77b0            deliver these after all
  bluebox dlq drop --all --component cart")]
pub(crate) struct DlqOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters
    #[command(after_help = "Examples:
  bluebox dlq list --component cart
  bluebox dlq list -o json | jq -r .call")]
    List {
        /// Only those of this component.
        #[arg(long, value_name = "NAME", value_parser = |text: &str| ComponentName::try_new(text))]
        component: Option<ComponentName>,
        #[command(flatten)]
        output: OutputOptions,
        #[command(flatten)]
        system: SystemOptions,
    },
    /// Show one: the request and why it was given up
    #[command(after_help = "Examples:
  bluebox dlq show 3f2a
  bluebox dlq show 3f2a --body > body     its body alone")]
    Show {
        /// The call's id, or its first characters.
        id: String,
        /// Write the body alone, as it is.
        #[arg(long)]
        body: bool,
        #[command(flatten)]
        system: SystemOptions,
    },
    /// Deliver again: the same call, with its time to live anew
    #[command(after_help = "Examples:
  bluebox dlq replay 3f2a 77b0
  bluebox dlq replay --all --component cart")]
    Replay(WhichOptions),
    /// Give up for good
    #[command(after_help = "Examples:
  bluebox dlq drop 3f2a
  bluebox dlq drop --all --component cart")]
    Drop(WhichOptions),
}

#[derive(Debug, Args)]
struct WhichOptions {
    /// Ids of calls, or their first characters.
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All dead letters.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only those of this component.
    #[arg(long, value_name = "NAME", requires = "all", value_parser = |text: &str| ComponentName::try_new(text))]
    component: Option<ComponentName>,
    #[command(flatten)]
    system: SystemOptions,
}

/// A dead letter that nothing was done with yet.
struct Letter {
    partition: TopicPartition,
    buried: Timestamp,
    letter: DeadLetter,
}

impl Letter {
    fn call(&self) -> &Call {
        &self.letter.call
    }
}

/// Does what was asked.
pub(crate) async fn run(options: DlqOptions) -> anyhow::Result<()> {
    match options.command {
        Command::List { component, output, system } => {
            let letters = match system.whom().await? {
                Whom::Watch(door) => told(&door, component.as_ref()).await?,
                Whom::Log(reached) => list_all(&reached, component.as_ref()).await?,
            };
            list(&letters, output.is_json())
        }
        Command::Show { id, body, system } => {
            let mut out = std::io::stdout();
            match system.whom().await? {
                Whom::Watch(door) => {
                    let path = format!("/v1/dead-letters/{}", legal(&id)?);
                    if !body {
                        let shown: Shown = get::json(Method::GET, &door, &path).await?;
                        show(&mut out, &shown)?;
                    }
                    out.write_all(&get::bytes(Method::GET, &door, &format!("{path}/body")).await?)?;
                }
                Whom::Log(reached) => {
                    let letters = letters(&reached, None).await?;
                    let letter = one(&letters, &id)?;
                    if !body {
                        show(&mut out, &Shown::from(letter))?;
                    }
                    let mut body = body_of(&reached, letter);
                    while let Some(frame) = body.frame().await {
                        if let Ok(data) = frame.context("the body can't be read")?.into_data() {
                            out.write_all(&data)?;
                        }
                    }
                }
            }
            if !body {
                writeln!(out)?;
            }
            Ok(())
        }
        Command::Replay(which) => each(which, Settlement::Replayed).await,
        Command::Drop(which) => each(which, Settlement::Dropped).await,
    }
}

/// The letters that are not settled, oldest first.
async fn letters(reached: &Reached, component: Option<&ComponentName>) -> anyhow::Result<Vec<Letter>> {
    let registry = reached.registry().await?;
    if let Some(name) = component.filter(|name| registry.get(name.as_str()).is_none()) {
        bail!("component `{name}`: never registered; there are: {}", registry.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "));
    }
    let mut all = Vec::new();
    for (name, registered) in registry.iter().filter(|(name, _)| component.is_none_or(|wanted| wanted == *name)) {
        let topic = reached.prefix.topics(name).dead_letters;
        for number in 0..registered.partitions {
            let partition = topic.partition(number);
            // A call that was buried twice, by a box that died in between, is one.
            let mut open: BTreeMap<(CallId, u32), Letter> = BTreeMap::new();
            reached
                .each(&partition, |entry| match Kept::of(entry.record) {
                    Some(Kept::Settled(settled)) => drop(open.remove(&(settled.id, settled.replay))),
                    Some(Kept::Letter(letter)) => {
                        let letter = Letter { partition: partition.clone(), buried: entry.timestamp, letter: *letter };
                        open.insert((letter.letter.call.id, letter.letter.call.replay), letter);
                    }
                    None => {}
                })
                .await?;
            all.extend(open.into_values());
        }
    }
    all.sort_by_key(|letter| letter.buried);
    Ok(all)
}

/// A dead letter, for who looks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listed {
    call: String,
    replay: u32,
    component: ComponentName,
    caller: ComponentName,
    reason: String,
    detail: String,
    attempts: u32,
    accepted_ms: u64,
    buried_ms: u64,
    method: String,
    target: String,
    body_bytes: u64,
}

impl From<&Letter> for Listed {
    fn from(letter: &Letter) -> Self {
        let (call, it) = (letter.call(), &letter.letter);
        Self {
            call: call.id.to_string(),
            replay: call.replay,
            component: call.callee.clone(),
            caller: call.caller.clone(),
            reason: format!("{:?}", it.reason).to_lowercase(),
            detail: it.detail.clone(),
            attempts: it.attempts,
            accepted_ms: it.accepted.as_millis(),
            buried_ms: letter.buried.as_millis(),
            method: call.request.method.to_string(),
            target: call.request.target.clone(),
            body_bytes: call.request.body.len(),
        }
    }
}

fn list(letters: &[Listed], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        for letter in letters {
            writeln!(out, "{}", serde_json::to_string(letter)?)?;
        }
        return Ok(());
    }
    if letters.is_empty() {
        writeln!(out, "no dead letters")?;
        return Ok(());
    }
    let width = letters.iter().map(|letter| letter.component.as_str().len()).max().unwrap_or(0).max(9);
    writeln!(out, "{:<32} {:<width$} {:<10} {:>8}  REQUEST, AND WHAT HAPPENED LAST", "CALL", "COMPONENT", "AGE", "ATTEMPTS")?;
    for letter in letters {
        let age = spell(ago(letter.buried_ms));
        writeln!(out, "{} {:<width$} {age:<10} {:>8}  {} {}", letter.call, letter.component.as_str(), letter.attempts, letter.method, letter.target)?;
        writeln!(out, "{:<32} {:<width$} {}", "", "", letter.detail)?;
    }
    writeln!(out, "\nbluebox dlq show ID, replay ID, drop ID")?;
    Ok(())
}

/// All of them, for who asks over HTTP.
pub(crate) async fn list_all(reached: &Reached, component: Option<&ComponentName>) -> anyhow::Result<Vec<Listed>> {
    Ok(letters(reached, component).await?.iter().map(Listed::from).collect())
}

/// Replays or drops one, and says which it was.
pub(crate) async fn settle_one(reached: &Reached, id: &str, how: Settlement) -> anyhow::Result<String> {
    let letters = letters(reached, None).await?;
    let letter = one(&letters, id)?;
    if how == Settlement::Replayed {
        replay(reached, letter).await?;
    }
    settle(reached, letter, how).await?;
    Ok(letter.call().id.to_string())
}

fn one<'a>(letters: &'a [Letter], id: &str) -> anyhow::Result<&'a Letter> {
    let found: Vec<&Letter> = letters.iter().filter(|letter| letter.call().id.to_string().starts_with(id)).collect();
    match found[..] {
        [letter] if !id.is_empty() => Ok(letter),
        [] => bail!("{id:?}: no dead letter has this id; `bluebox dlq list` shows those that are there"),
        _ => bail!("{id:?}: {} dead letters begin so; give more characters", found.len()),
    }
}

/// A dead letter with its request, but for the body.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    listed: Listed,
    authority: String,
    headers: Vec<(String, String)>,
}

impl From<&Letter> for Shown {
    fn from(letter: &Letter) -> Self {
        let request = &letter.call().request;
        let headers = request.headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        Self { listed: letter.into(), authority: request.authority.clone(), headers: headers.collect() }
    }
}

/// One of them, for who asks over HTTP.
pub(crate) async fn shown(reached: &Reached, id: &str) -> anyhow::Result<Shown> {
    Ok(one(&letters(reached, None).await?, id)?.into())
}

/// The body of one of them.
pub(crate) async fn body(reached: &Reached, id: &str) -> anyhow::Result<OutBody> {
    Ok(body_of(reached, one(&letters(reached, None).await?, id)?))
}

fn body_of(reached: &Reached, letter: &Letter) -> OutBody {
    let request = &letter.call().request;
    bulk(reached, &letter.partition).give_out(request.body.clone(), request.trailers.clone())
}

fn show(out: &mut impl Write, shown: &Shown) -> anyhow::Result<()> {
    let it = &shown.listed;
    writeln!(out, "{}: {} -> {}, replay {}", it.call, it.caller, it.component, it.replay)?;
    writeln!(out, "given up after {} attempts: {}", it.attempts, it.detail)?;
    writeln!(out, "accepted {} ago, given up {} ago", spell(ago(it.accepted_ms)), spell(ago(it.buried_ms)))?;
    writeln!(out, "\n{} {}\nhost: {}", it.method, it.target, shown.authority)?;
    for (name, value) in &shown.headers {
        writeln!(out, "{name}: {value}")?;
    }
    writeln!(out)?;
    Ok(())
}

/// What can stand in a path.
fn legal(id: &str) -> anyhow::Result<&str> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("{id:?}: no dead letter has this id");
    }
    Ok(id)
}

fn bulk(reached: &Reached, to: &TopicPartition) -> Bulk {
    Bulk::new(reached.log.clone(), to.clone(), BODY_MEMORY)
}

/// What a watch has.
async fn told(door: &Door, component: Option<&ComponentName>) -> anyhow::Result<Vec<Listed>> {
    let letters: Vec<Listed> = get::json(Method::GET, door, "/v1/dead-letters").await?;
    Ok(letters.into_iter().filter(|letter| component.is_none_or(|name| *name == letter.component)).collect())
}

/// Has a watch do it.
async fn each_by(door: &Door, which: &WhichOptions, how: Settlement) -> anyhow::Result<()> {
    let word = if how == Settlement::Dropped { "drop" } else { "replay" };
    let ids = if which.all { told(door, which.component.as_ref()).await?.into_iter().map(|letter| letter.call).collect() } else { which.ids.clone() };
    let mut out = std::io::stdout().lock();
    for id in &ids {
        let done: serde_json::Value = get::json(Method::POST, door, &format!("/v1/dead-letters/{}/{word}", legal(id)?)).await?;
        writeln!(out, "{}: {}", done["call"].as_str().unwrap_or(id), done["done"].as_str().unwrap_or(word))?;
    }
    Ok(())
}

async fn each(which: WhichOptions, how: Settlement) -> anyhow::Result<()> {
    let reached = match which.system.whom().await? {
        Whom::Watch(door) => return each_by(&door, &which, how).await,
        Whom::Log(reached) => reached,
    };
    let all = letters(&reached, which.component.as_ref()).await?;
    let wanted: Vec<&Letter> = if which.all { all.iter().collect() } else { which.ids.iter().map(|id| one(&all, id)).collect::<anyhow::Result<_>>()? };
    // The same letter named twice is one.
    let wanted: HashMap<CallId, &Letter> = wanted.into_iter().map(|letter| (letter.call().id, letter)).collect();
    let mut out = std::io::stdout().lock();
    for letter in wanted.values() {
        let id = letter.call().id;
        match how {
            Settlement::Replayed => {
                let appended = replay(&reached, letter).await.with_context(|| format!("call {id} was not replayed"))?;
                writeln!(out, "{id}: replayed, as call {} of {}/{}", appended.offset, letter.call().callee, letter.partition.partition)?;
            }
            Settlement::Dropped => writeln!(out, "{id}: dropped")?,
        }
        settle(&reached, letter, how).await.with_context(|| format!("call {id}: it is not known whether this was noted"))?;
    }
    writeln!(out, "{} {}", so_many(wanted.len(), "dead letter", "dead letters"), if how == Settlement::Dropped { "dropped" } else { "replayed" })?;
    Ok(())
}

/// Appends the call again. Between this and the note a crash can come: then it is replayed once more by whoever asks for it, which is a duplicate as any other.
async fn replay(reached: &Reached, letter: &Letter) -> anyhow::Result<Appended> {
    let mut call = letter.call().clone();
    call.replay += 1;
    // Its outcome can only come after now. Were the position kept, a search for it would begin days ago.
    if let Ok(bounds) = reached.log.bounds(&call.reply_to.partition).await {
        call.reply_to.position = bounds.end;
    }
    let topics = reached.prefix.topics(&call.callee);
    if let Body::Bulk(_) = &call.request.body {
        // The letter's own copy may be gone before the call's new deadline.
        let to = topics.bulk.partition(letter.partition.partition % bluebox_core::topics::REPLY_PARTITIONS);
        call.request.body = bulk(reached, &to).copy(&call.request.body).await?;
    }
    let entry = CallsEntry::Call(Box::new(call));
    Ok(reached.log.append(&topics.calls.partition(letter.partition.partition), Record::new(entry.encode())).await?)
}

async fn settle(reached: &Reached, letter: &Letter, how: Settlement) -> anyhow::Result<()> {
    let settled = Settled { id: letter.call().id, replay: letter.call().replay, how };
    reached.log.append(&letter.partition, Record::keyed(SETTLED_KEY.into(), settled.encode())).await?;
    Ok(())
}

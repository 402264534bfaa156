//! `bluebox alive`: a liveness probe of the app that is a command, where the cluster has no restart rules. First its proxy is asked, then the command is run.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

/// The kubelet's own limit for the whole is the probe's.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the proxy whether the app has to be started afresh, and if not becomes the command.
#[derive(Debug, Args)]
pub(crate) struct AliveOptions {
    /// The proxy's --admin.
    #[arg(long, value_name = "HOST:PORT")]
    admin: SocketAddr,
    /// The container that is asked about.
    #[arg(long, value_name = "NAME")]
    container: String,
    /// The command, as the pod had it.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn run(options: &AliveOptions) -> anyhow::Result<()> {
    let path = format!("/alive?container={}", options.container);
    if let Err(no) = ask(options.admin, &path).with_context(|| format!("the proxy at {} can't be asked", options.admin))? {
        bail!("{no}");
    }
    let (program, arguments) = options.command.split_first().context("no command")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("{program}: can't be run"))
}

/// Asks a proxy: whether it said 200; what it said, if it was something else.
pub(super) fn ask(admin: SocketAddr, path: &str) -> std::io::Result<Result<(), String>> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bluebox\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(64 << 10).read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(Ok(()));
    }
    Ok(Err(answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body).trim().to_owned()))
}

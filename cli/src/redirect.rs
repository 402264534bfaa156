//! `bluebox redirect`: the rules that send what an app sends to its proxy.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::bail;
use bluebox_proxy::dns::resolv_conf::{self, ResolvConf};
use bluebox_proxy::redirect::kernel::{self, Installed};
use bluebox_proxy::redirect::{Network, Redirect};
use clap::Args;

use crate::kubernetes::incarnate;
use crate::logging::LoggingOptions;

/// What `bluebox redirect --help` ends with.
const EXAMPLES: &str = "\
Examples:
  In the init container of a pod (it needs NET_ADMIN there, and nothing else):
    bluebox redirect --proxy-uid 64140 --transparent-port 4143 --dns-port 4153

  What is in place, and how many connections each rule has decided on:
    bluebox redirect --show

Twice is as good as once: the rules are replaced as a whole, in one transaction.";

/// Sends the app's outbound TCP and DNS to the proxy, by rules in the kernel of this network namespace.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RedirectOptions {
    /// The user that the proxy runs as; what it sends is not caught.
    #[arg(long, env = "BLUEBOX_PROXY_UID", value_name = "UID", default_value = "64140", value_parser = clap::value_parser!(u32).range(1..))]
    proxy_uid: u32,
    /// The port of the proxy's --transparent.
    #[arg(long, env = "BLUEBOX_TRANSPARENT_PORT", value_name = "PORT", default_value = "4143", value_parser = clap::value_parser!(u16).range(1..))]
    transparent_port: u16,
    /// The port of the proxy's --dns; without it DNS is not caught.
    #[arg(long, env = "BLUEBOX_DNS_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    dns_port: Option<u16>,
    /// The nameservers whose DNS is caught; by default those of --resolv-conf.
    #[arg(long, env = "BLUEBOX_NAMESERVERS", value_name = "ADDRESSES", value_delimiter = ',', value_parser = nameserver)]
    nameservers: Vec<SocketAddr>,
    /// Where the pod's nameservers are written.
    #[arg(long, env = "BLUEBOX_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Destination ports that are not caught: 5432,6379.
    #[arg(long, env = "BLUEBOX_EXCLUDE_PORTS", value_name = "PORTS", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    exclude_ports: Vec<u16>,
    /// Destination addresses that are not caught: 10.9.0.0/16,fd00::/8.
    #[arg(long, env = "BLUEBOX_EXCLUDE_NETWORKS", value_name = "NETWORKS", value_delimiter = ',')]
    exclude_networks: Vec<Network>,
    /// Only show the rules that are in place, with the number of connections that each has decided on.
    #[arg(long, conflicts_with = "remove")]
    show: bool,
    /// Take the rules away.
    #[arg(long)]
    remove: bool,
    /// Then do what `bluebox incarnate` does, with this directory. For pods.
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["show", "remove"], hide = true)]
    incarnation: Option<PathBuf>,
    /// See `bluebox incarnate`.
    #[arg(long, value_name = "DIRECTORY", requires = "incarnation", hide = true)]
    program: Option<PathBuf>,
    #[command(flatten)]
    logging: LoggingOptions,
}

/// Reads the address of a nameserver.
pub(crate) fn nameserver(text: &str) -> Result<SocketAddr, String> {
    resolv_conf::nameserver(text.trim()).ok_or_else(|| "a nameserver is an address: 10.96.0.10, fd00::a or fe80::1%eth0".to_owned())
}

/// The most rules of a kind: each one is looked at for each new connection, and the kernel acknowledges each one before anything is read, for which its buffer must do.
const MOST_EXCLUSIONS: usize = 64;

pub(crate) fn run(options: &RedirectOptions) -> anyhow::Result<()> {
    if options.show {
        let rules = kernel::show()?;
        if rules.is_empty() {
            println!("no rules of Bluebox in this network namespace");
        }
        for rule in rules {
            println!("{:>10}  {}", rule.connections, rule.rule);
        }
        return Ok(());
    }
    if options.remove {
        kernel::remove()?;
        println!("the rules of Bluebox are taken away: nothing is caught any more");
        return Ok(());
    }
    let redirect = options.redirect()?;
    let installed = kernel::install(&redirect)?;
    let families = match installed {
        Installed::Both => "IPv4 and IPv6",
        Installed::V4Only => "IPv4; the kernel has no IPv6",
    };
    println!("outbound TCP is sent to port {} of loopback ({families}), but not that of user {}", redirect.transparent_port, redirect.proxy_uid);
    if let Some(port) = redirect.dns_port {
        let nameservers: Vec<_> = redirect.nameservers.iter().map(ToString::to_string).collect();
        println!("DNS to {} is sent to port {port}", nameservers.join(", "));
    }
    if let Some(incarnation) = &options.incarnation {
        options.logging.start()?;
        incarnate::begin(incarnation, options.program.as_deref())?;
    }
    Ok(())
}

impl RedirectOptions {
    fn redirect(&self) -> anyhow::Result<Redirect> {
        let nameservers: Vec<IpAddr> = match (self.dns_port, &self.nameservers[..]) {
            (None, _) => Vec::new(),
            (Some(_), []) => ResolvConf::read(&self.resolv_conf)?.nameservers.iter().map(SocketAddr::ip).collect(),
            (Some(_), named) => named.iter().map(SocketAddr::ip).collect(),
        };
        if self.dns_port.is_some() && nameservers.is_empty() {
            bail!("{}: it names no nameserver, so no DNS can be caught; name them with --nameservers, or leave --dns-port away", self.resolv_conf.display());
        }
        if self.dns_port == Some(self.transparent_port) {
            bail!("--dns-port and --transparent-port are the same ({}); each listener has a port of its own", self.transparent_port);
        }
        for (count, what) in [(self.exclude_ports.len(), "--exclude-ports"), (self.exclude_networks.len(), "--exclude-networks")] {
            if count > MOST_EXCLUSIONS {
                bail!("{what}: {count} of them, at most {MOST_EXCLUSIONS}; name a network that contains several");
            }
        }
        Ok(Redirect {
            proxy_uid: self.proxy_uid,
            transparent_port: self.transparent_port,
            dns_port: self.dns_port,
            nameservers,
            excluded_ports: self.exclude_ports.clone(),
            excluded_networks: self.exclude_networks.clone(),
        })
    }
}

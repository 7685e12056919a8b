//! `coracle net add|rm|ls|inspect`, the options of `run` on networks, and the two servers that stand
//! beside a network.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use coracle_engine::client::Client;
use coracle_engine::network::{
    self, AttachRequest, Attached, Egress, NetworkSpec, Published, Rates, Source, dns, forward,
    process,
};
use coracle_engine::root::Root;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Format;
use crate::columns;
use crate::life::block_on;

/// What `run` and `net add` say of one network, beside its name.
#[derive(Debug, Args)]
pub struct NetworkOptions {
    /// Have a port of the host lead to one of the sandbox.
    #[arg(short, long, value_name = "[IP:]HOST:GUEST[/udp]")]
    pub publish: Vec<Published>,
    /// What the sandbox may begin to talk to: `all`, `none`, or networks by name.
    #[arg(long, value_name = "none|all|CIDR,...", default_value = "all")]
    pub egress: Egress,
    /// The most the sandbox receives in a second, with k, m or g.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_bytes)]
    pub rate_in: Option<u64>,
    /// The most the sandbox sends in a second, with k, m or g.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_bytes)]
    pub rate_out: Option<u64>,
    /// Name server of the containers; may be given more than once.
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// Another name of the sandbox on the network.
    #[arg(long, value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// Hardware address of the card; one of ours if not given.
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    pub mac: Option<[u8; 6]>,
}

impl NetworkOptions {
    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        let texts = self.publish.is_empty() && self.dns.is_empty() && self.network_alias.is_empty();
        let rates = self.rate_in.is_none() && self.rate_out.is_none() && self.mac.is_none();
        !texts || !rates || self.egress != Egress::All
    }
}

/// The verbs of `net`.
#[derive(Debug, Subcommand)]
pub enum NetVerb {
    /// Put a sandbox that runs on one more network.
    #[command(after_help = "EXAMPLES:\n  coracle net add web backend\n  \
        coracle net add web lab,subnet=10.5.0.0/24,mtu=1400\n  \
        coracle net add web backend -p 5432:5432 --egress none")]
    Add {
        /// The sandbox.
        sandbox: String,
        /// The network: NAME[,subnet=CIDR]...[,mtu=BYTES], made if nobody is on it; ns:PATH; cni:NAME.
        #[arg(value_parser = parse_source)]
        network: Source,
        /// The rest.
        #[command(flatten)]
        options: NetworkOptions,
        /// How the answer is written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Take a sandbox off a network; its last user takes the network along.
    Rm {
        /// The sandbox.
        sandbox: String,
        /// The network.
        network: String,
        /// How errors are written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// List all networks, or those a sandbox is on.
    Ls {
        /// The sandbox.
        sandbox: Option<String>,
        /// How the list is written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Show a network and who is on it, as JSON.
    Inspect {
        /// The network.
        network: String,
        /// How errors are written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
}

impl NetVerb {
    /// How its errors are written.
    pub fn format(&self) -> Format {
        match self {
            Self::Add { format, .. }
            | Self::Rm { format, .. }
            | Self::Ls { format, .. }
            | Self::Inspect { format, .. } => *format,
        }
    }
}

impl NetworkOptions {
    /// A network with these options.
    fn request(&self, source: Source) -> AttachRequest {
        AttachRequest {
            source,
            published: self.publish.clone(),
            egress: self.egress.clone(),
            rates: Rates { receive: self.rate_in, send: self.rate_out },
            dns: self.dns.clone(),
            aliases: self.network_alias.clone(),
            mac: self.mac,
        }
    }
}

/// The networks that `run --net` asks for.
pub fn requests(net: Option<&str>, options: &NetworkOptions) -> Result<Vec<AttachRequest>> {
    let source = match net {
        Some(text) => text.parse::<Source>().context("cannot use --net")?,
        None => usual_network(),
    };
    let request = options.request(source);
    request.check()?;
    Ok(if request.source == Source::None { Vec::new() } else { vec![request] })
}

/// The network of who asks for none: a private one if this host lets us make it, else QEMU's own,
/// which is said.
fn usual_network() -> Source {
    let why_not = if !rustix::process::geteuid().is_root() {
        "networks of the host need root"
    } else if !network::has_nft() {
        "the program `nft` is not installed"
    } else if !Path::new("/dev/net/tun").exists() {
        "this host has no /dev/net/tun"
    } else {
        return Source::Private(NetworkSpec::named(NetworkSpec::DEFAULT));
    };
    eprintln!("note: {why_not}: the sandbox gets QEMU's own network (`--net user`)");
    Source::User
}

/// Does it.
pub fn run(verb: NetVerb, root: &Root) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match verb {
        NetVerb::Add { sandbox, network, options, format } => {
            let client = Client::find(root, &sandbox)?;
            let request = options.request(network);
            let attached = block_on(async { Ok(client.attach_network(&request).await?) })?;
            match format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(&attached)?)?,
                Format::Text => {
                    for card in &attached {
                        writeln!(out, "{}", addresses(card))?;
                    }
                }
            }
        }
        NetVerb::Rm { sandbox, network, .. } => {
            let client = Client::find(root, &sandbox)?;
            block_on(async { Ok(client.detach_network(&network).await?) })?;
            writeln!(out, "{network}")?;
        }
        NetVerb::Ls { sandbox: Some(sandbox), format } => {
            let client = Client::find(root, &sandbox)?;
            let networks = block_on(async { Ok(client.networks().await?) })?;
            match format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(&networks)?)?,
                Format::Text => print_attached(&mut out, &networks)?,
            }
        }
        NetVerb::Ls { sandbox: None, format } => {
            let networks = network::all(root)?;
            match format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(&networks)?)?,
                Format::Text => {
                    let cells: Vec<[String; 4]> = networks
                        .iter()
                        .map(|network| {
                            [
                                network.name.clone(),
                                join(&network.subnets),
                                network.mtu.to_string(),
                                network.leases.len().to_string(),
                            ]
                        })
                        .collect();
                    let heading = ["NETWORK", "SUBNETS", "MTU", "SANDBOXES"];
                    let rows = cells.iter().map(|row| row.each_ref().map(String::as_str));
                    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
                    columns::print(&mut out, &rows)?;
                }
            }
        }
        NetVerb::Inspect { network, .. } => {
            let network = network::one(root, &network)?;
            writeln!(out, "{}", serde_json::to_string_pretty(&network)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_attached(out: &mut impl Write, networks: &[Attached]) -> std::io::Result<()> {
    let cells: Vec<[String; 5]> = networks
        .iter()
        .map(|network| {
            let ports = join(&network.published);
            [
                network.network.clone(),
                addresses(network),
                network.mac.clone(),
                if ports.is_empty() { "-".to_owned() } else { ports },
                network.egress.to_string(),
            ]
        })
        .collect();
    let heading = ["NETWORK", "ADDRESSES", "MAC", "PORTS", "EGRESS"];
    let rows = cells.iter().map(|row| row.each_ref().map(String::as_str));
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    columns::print(out, &rows)
}

fn addresses(network: &Attached) -> String {
    join(&network.addresses)
}

fn join<T: ToString>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// clap shows no causes: they are put into the text.
fn parse_source(text: &str) -> Result<Source, String> {
    text.parse::<Source>().map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let mac = network::parse_mac(text).map_err(|error| error.to_string())?;
    if mac[0] & 1 != 0 {
        return Err("it is a group's address: the first byte must be even".to_owned());
    }
    Ok(mac)
}

/// What a server beside a network is told.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// The network's folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// What a forwarder is told.
#[derive(Debug, Args)]
pub struct PortsArgs {
    /// The network's folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The sandbox.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

/// Serves the names of a network until it is gone.
pub fn serve_names(args: &NamesArgs) -> Result<ExitCode> {
    serve(async { Ok(dns::serve(&args.folder, tell_ready).await?) })
}

/// Forwards the ports of a sandbox until it is off the network.
pub fn serve_ports(args: &PortsArgs) -> Result<ExitCode> {
    serve(async { Ok(forward::serve(&args.folder, &args.sandbox, tell_ready).await?) })
}

fn serve(work: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = work => done,
            _ = terminate.recv() => Ok(()),
        }
    });
    // Tasks still in a conversation end with us.
    runtime.shutdown_background();
    if let Err(error) = &outcome {
        // Whoever started us reads one line.
        println!("{error:#}");
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn tell_ready() {
    if let Err(error) = process::tell_ready() {
        tracing::warn!(%error, "nobody hears that we serve");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_six_bytes_and_one_cards() {
        assert_eq!(parse_mac("02:00:00:00:00:ff"), Ok([2, 0, 0, 0, 0, 255]));
        assert_eq!(parse_mac("02-00-00-00-00-01"), Ok([2, 0, 0, 0, 0, 1]));
        assert!(parse_mac("01:00:00:00:00:01").unwrap_err().contains("group"));
        for bad in ["", "02:00:00:00:00", "2:0:0:0:0:1", "02:00:00:00:00:01:02"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
